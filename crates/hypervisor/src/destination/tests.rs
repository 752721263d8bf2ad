use serde_json::{Value, json};

use super::{Destination, DestinationNow, DestinationWord, standing};
use crate::migration::Status;
use crate::peer::{PATIENCE, greeted, qemu};

/// What a QEMU that answers so was asked, and why it takes no guest.
fn check(migration: Value, status: &'static str) -> (Vec<String>, Option<String>) {
    let (qmp, peer) = qemu(move |command, _| match command {
        "query-migrate" => Ok(migration.clone()),
        "query-status" => Ok(json!({ "status": status, "running": status == "running" })),
        "stop" => Ok(json!({})),
        _ => Err("what?"),
    });
    let error = Destination::over(qmp).check().err();
    assert!(error.as_ref().is_none_or(|error| error.is_an_answer()), "{error:?}");
    (peer.join().unwrap(), error.map(|error| error.to_string()))
}

#[test]
fn a_qemu_that_waits_is_told_not_to_run_the_guest_by_itself() {
    let (asked, error) = check(json!({}), "inmigrate");
    assert_eq!(error, None);
    assert_eq!(asked.last().unwrap(), "stop");
}

#[test]
fn a_qemu_that_waits_for_no_guest_is_refused_and_never_stopped() {
    let cases = [
        (json!({}), "running", "-S -incoming defer"),
        (json!({}), "prelaunch", "-S -incoming defer"),
        (json!({ "status": "active" }), "inmigrate", "on its way"),
        (json!({ "status": "failed" }), "inmigrate", "start it anew"),
        (json!({ "status": "completed" }), "paused", "-S -incoming defer"),
    ];
    for (migration, status, wanted) in cases {
        let (asked, error) = check(migration, status);
        let error = error.unwrap();
        assert!(error.contains(wanted), "{status}: {error}");
        assert!(!asked.contains(&"stop".to_owned()), "{status}");
    }
}

#[test]
fn a_guest_that_has_not_come_is_not_run() {
    let (qmp, peer) = qemu(|command, _| match command {
        "query-status" => Ok(json!({ "status": "inmigrate", "running": false })),
        _ => Ok(json!({})),
    });
    let error = Destination::over(qmp).run().unwrap_err();
    assert!(error.to_string().contains("has not come yet"), "{error}");
    assert_eq!(peer.join().unwrap(), ["query-status"]);
}

#[test]
fn each_event_of_a_migration_is_a_word() {
    let (qmp, peer) = greeted(|mut peer| {
        for status in ["setup", "active", "completed"] {
            peer.say(&format!("{}\n", json!({ "event": "MIGRATION", "data": { "status": status } })));
        }
        for name in ["RESUME", "STOP", "SHUTDOWN", "RTC_CHANGE"] {
            peer.say(&format!("{}\n", json!({ "event": name })));
        }
        peer.say("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\n");
        let command = peer.hear();
        peer.answer(&command, &json!({ "status": "failed", "error-desc": "Section footer error" }));
        peer
    });
    let mut destination = Destination::over(qmp);
    let wanted = [
        DestinationWord::Coming,
        DestinationWord::Completed,
        DestinationWord::Resumed,
        DestinationWord::Stopped,
        DestinationWord::Ended,
        DestinationWord::Failed { why: "Section footer error".to_owned() },
    ];
    for word in wanted {
        assert_eq!(destination.next(PATIENCE).unwrap(), Some(word));
    }
    drop(peer.join().unwrap());
}

#[test]
fn where_a_destination_stands_is_told_by_both_of_its_states() {
    let cases = [
        ("none", "inmigrate", DestinationNow::Waits),
        ("active", "inmigrate", DestinationNow::Coming),
        ("setup", "inmigrate", DestinationNow::Coming),
        ("completed", "paused", DestinationNow::Completed),
        ("completed", "running", DestinationNow::Runs),
        ("none", "running", DestinationNow::Runs),
        ("failed", "inmigrate", DestinationNow::Failed),
        ("completed", "io-error", DestinationNow::Other("io-error, migration completed".into())),
        ("none", "paused", DestinationNow::Other("paused, migration none".into())),
    ];
    for (migration, word, wanted) in cases {
        let status = Status { running: word == "running", word: word.to_owned() };
        assert_eq!(standing(migration, &status), wanted, "{migration}, {word}");
    }
}
