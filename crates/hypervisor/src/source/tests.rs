use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Progress, Source, SourceNow, SourceWord, Terms, standing};
use crate::error::Fault;
use crate::migration::Status;
use crate::peer::{PATIENCE, Peer, event, greeted, qemu};

const TERMS: Terms = Terms { bandwidth_bytes_s: 0, downtime_limit_ms: 300 };

fn status(word: &str) -> Status {
    Status { running: word == "running", word: word.to_owned() }
}

fn fd() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

/// Why a QEMU that answers so does not migrate its guest.
fn unfit(migration: Value, status: &'static str) -> Option<String> {
    let (qmp, _) = qemu(move |command, _| match command {
        "query-migrate" => Ok(migration.clone()),
        "query-status" => Ok(json!({ "status": status, "running": status == "running" })),
        _ => Err("what?"),
    });
    let error = Source::over(qmp).check().err()?;
    assert!(error.is_an_answer(), "{error}");
    Some(error.to_string())
}

#[test]
fn a_guest_that_cannot_be_migrated_is_refused_with_the_reason() {
    assert_eq!(unfit(json!({}), "running"), None);
    assert_eq!(unfit(json!({ "status": "failed", "error-desc": "x" }), "running"), None);
    assert_eq!(unfit(json!({ "status": "completed" }), "running"), None);
    let paused = unfit(json!({}), "paused").unwrap();
    assert!(paused.contains("does not run (it is paused)"), "{paused}");
    for under_way in ["setup", "active", "pre-switchover", "device", "failing", "what-comes-in-qemu-12"] {
        let said = unfit(json!({ "status": under_way }), "running").unwrap();
        assert!(said.contains(&format!("a migration is {under_way} already")), "{said}");
    }
    let blocked = unfit(json!({ "blocked-reasons": ["VirtFS is mounted", "and more"] }), "running").unwrap();
    assert!(blocked.contains("VirtFS is mounted; and more"), "{blocked}");
}

#[test]
fn a_qemu_that_is_too_old_is_refused_with_its_version() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let old = std::thread::spawn(|| {
        let mut peer = Peer { stream: std::io::BufReader::new(theirs) };
        peer.say("{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 9, \"minor\": 0, \"major\": 11}}}}\n");
        peer.accept();
    });
    let qmp = crate::peer::over(ours, PATIENCE).unwrap();
    let said = Source::over(qmp).check().unwrap_err().to_string();
    assert!(said.contains("it is version 11.0.9, and 11.1.0 is needed"), "{said}");
    old.join().unwrap();
}

#[test]
fn each_event_of_a_migration_is_a_word_and_others_are_none() {
    let (qmp, peer) = greeted(|mut peer| {
        let mut migration = |status: &str| {
            peer.say(&format!("{}\n", json!({ "event": "MIGRATION", "data": { "status": status } })))
        };
        migration("setup");
        migration("active");
        peer.say("{\"event\": \"MIGRATION_PASS\", \"data\": {\"pass\": 2}}\n");
        peer.say("{\"event\": \"MIGRATION_PASS\", \"data\": {\"pass\": \"x\"}}\n");
        peer.say(&event("RTC_CHANGE"));
        peer.say(&event("STOP"));
        for status in ["pre-switchover", "device", "completed", "cancelling", "cancelled", "from-qemu-12"] {
            peer.say(&format!("{}\n", json!({ "event": "MIGRATION", "data": { "status": status } })));
        }
        peer.say(&event("RESUME"));
        peer.say(&event("SHUTDOWN"));
        peer
    });
    let mut source = Source::over(qmp);
    let peer = peer.join().unwrap();
    let mut words = Vec::new();
    while let Some(word) = source.next(Duration::ZERO).unwrap() {
        words.push(word);
    }
    let wanted = [
        SourceWord::Copying,
        SourceWord::Pass(2),
        SourceWord::Stopped,
        SourceWord::PreSwitchover,
        SourceWord::SwitchingOver,
        SourceWord::Completed,
        SourceWord::Cancelled,
        SourceWord::Resumed,
        SourceWord::Ended,
    ];
    assert_eq!(words, wanted);
    drop(peer);
    assert!(matches!(source.next(PATIENCE).unwrap_err().fault, Fault::Closed));
}

#[test]
fn a_failure_is_told_with_qemus_reason_or_without_if_it_says_none() {
    const FAILED: &str = "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\n";
    let (qmp, peer) = greeted(|mut peer| {
        peer.say(FAILED);
        let command = peer.hear();
        peer.answer(
            &command,
            &json!({ "status": "failed", "error-desc": "Channel error: Input/output error" }),
        );
        peer.say(FAILED);
        // And no answer to the second question.
        peer
    });
    let mut source = Source::over(qmp);
    let why = "Channel error: Input/output error".to_owned();
    assert_eq!(source.next(PATIENCE).unwrap(), Some(SourceWord::Failed { why }));
    let Some(SourceWord::Failed { why }) = source.next(PATIENCE).unwrap() else { panic!("another word") };
    assert!(why.starts_with("QEMU does not say why (no answer"), "{why}");
    drop(peer.join().unwrap());
}

#[test]
fn begin_turns_on_what_is_needed_and_everything_else_off() {
    let (send, heard) = std::sync::mpsc::channel();
    let (qmp, peer) = qemu(move |command, arguments| {
        send.send((command.to_owned(), arguments.clone())).unwrap();
        match command {
            "query-migrate-capabilities" => {
                let known = [
                    "multifd",
                    "events",
                    "return-path",
                    "auto-converge",
                    "pause-before-switchover",
                    "from-qemu-12",
                ];
                Ok(json!(known.map(|name| json!({ "capability": name, "state": name == "multifd" }))))
            }
            _ => Ok(json!({})),
        }
    });
    let mut source = Source::over(qmp);
    source.begin(fd(), &TERMS).unwrap();
    drop(source);
    let asked = [
        "query-migrate-capabilities",
        "migrate-set-capabilities",
        "migrate-set-parameters",
        "getfd",
        "migrate",
    ];
    assert_eq!(peer.join().unwrap(), asked);
    let heard: Vec<(String, Value)> = heard.iter().collect();
    let on: Vec<&str> = heard[1].1["capabilities"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["state"] == true)
        .map(|one| one["capability"].as_str().unwrap())
        .collect();
    assert_eq!(on, ["events", "return-path", "auto-converge", "pause-before-switchover"]);
    assert_eq!(heard[1].1["capabilities"].as_array().unwrap().len(), 6);
    assert_eq!(heard[2].1["downtime-limit"], 300);
    assert_eq!(heard[4].1["uri"], format!("fd:{}", heard[3].1["fdname"].as_str().unwrap()));
}

#[test]
fn a_migration_that_is_refused_leaves_no_descriptor_with_qemu() {
    let (qmp, peer) = qemu(|command, _| match command {
        "query-migrate-capabilities" => Ok(json!(
            ["events", "return-path", "pause-before-switchover", "auto-converge"]
                .map(|name| json!({ "capability": name }))
        )),
        "migrate" => Err("Guest is waiting for an incoming migration"),
        _ => Ok(json!({})),
    });
    let mut source = Source::over(qmp);
    let error = source.begin(fd(), &TERMS).unwrap_err();
    assert!(error.to_string().contains("waiting for an incoming migration"), "{error}");
    drop(source);
    assert_eq!(peer.join().unwrap().last().unwrap(), "closefd");
}

#[test]
fn where_a_source_stands_is_told_by_both_of_its_states() {
    let cases = [
        ("none", "running", SourceNow::Runs),
        ("failed", "running", SourceNow::Runs),
        ("cancelled", "running", SourceNow::Runs),
        ("completed", "running", SourceNow::Runs),
        ("active", "running", SourceNow::Copying),
        ("active", "finish-migrate", SourceNow::Copying),
        ("setup", "running", SourceNow::Copying),
        ("pre-switchover", "finish-migrate", SourceNow::PreSwitchover),
        ("device", "finish-migrate", SourceNow::SwitchingOver),
        ("failing", "finish-migrate", SourceNow::GivingUp),
        ("cancelling", "running", SourceNow::GivingUp),
        ("completed", "postmigrate", SourceNow::Completed),
        ("completed", "paused", SourceNow::Stopped("paused".into())),
        ("failed", "io-error", SourceNow::Stopped("io-error".into())),
        ("none", "shutdown", SourceNow::Stopped("shutdown".into())),
        ("postcopy-active", "finish-migrate", SourceNow::Unknown("postcopy-active".into())),
    ];
    for (migration, guest, wanted) in cases {
        assert_eq!(standing(migration, &status(guest)), wanted, "{migration}, {guest}");
    }
}

#[test]
fn progress_is_taken_from_what_qemu_tells_and_is_zero_without() {
    let (qmp, _) = qemu(|command, _| match command {
        "query-migrate" => Ok(
            json!({ "status": "active", "expected-downtime": 74, "cpu-throttle-percentage": 30, "ram": { "transferred": 10, "remaining": 20,
            "total": 30, "dirty-pages-rate": 40, "page-size": 4096, "dirty-sync-count": 2 } }),
        ),
        _ => Err("what?"),
    });
    let wanted = Progress {
        transferred_bytes: 10,
        remaining_bytes: 20,
        total_bytes: 30,
        dirty_bytes_s: 40 * 4096,
        passes: 2,
        held_back_percent: 30,
        downtime_ms: Some(74),
    };
    assert_eq!(Source::over(qmp).progress().unwrap(), wanted);
    let (qmp, _) = qemu(|_, _| Ok(json!([-1, { "ram": "no" }])));
    assert_eq!(Source::over(qmp).progress().unwrap(), Progress::default());
}

#[test]
fn a_qemu_that_ends_before_it_answers_has_been_quit() {
    let (qmp, peer) = greeted(|mut peer| drop(peer.hear()));
    Source::over(qmp).quit().unwrap();
    peer.join().unwrap();
}
