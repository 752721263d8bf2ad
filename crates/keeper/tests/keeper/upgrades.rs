//! One engine after another, as planned.

use crate::harness::{Running, limits, program};
use api::control::{Request, Response};
use keeper::Limits;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

fn upgrade(binary: Option<PathBuf>, no_wait: bool) -> Request {
    Request::Upgrade { binary, keeper: false, no_wait }
}

#[test]
fn an_upgrade_keeps_every_session_and_every_waiting_command() {
    let running = Running::start("");
    running.serving();
    let mut clients = [running.client("a"), running.client("b")];
    for round in 1..=10 {
        for client in &mut clients {
            client.send("sleep 20");
            client.send("count");
        }
        let answer = running.ask(&upgrade(None, true));
        assert!(matches!(&answer, Response::Done(_)), "{answer:?}");
        for client in &mut clients {
            assert!(client.receive().expect("a reply").text.starts_with("sleep"));
            let reply = client.receive().expect("a reply").text;
            assert!(reply.starts_with("count") && reply.ends_with(&format!(" {round}")), "{reply}");
        }
    }
    let status = running.serving();
    assert_eq!((status.engine.handovers, status.engine.crashes), (10, 0));
    assert!(status.restarts.iter().all(|restart| restart.planned && restart.blackout_us.is_some()));
}

#[test]
fn an_upgrade_tells_how_it_goes_and_ends_with_its_probation() {
    let running = Running::start("");
    running.serving();
    let new = program(running.directory.path(), "new-habits");
    let lines = BufReader::new(running.question(&upgrade(Some(new.clone()), false))).lines();
    let said: Vec<Response> =
        lines.map(|line| serde_json::from_str(&line.expect("a line")).expect("a response")).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(matches!(&said[0], Response::Progress(_)));
    assert!(matches!(&said[1], Response::Progress(text) if text.contains("on probation")));
    assert_eq!(said[2], Response::Done("upgraded to engine 2".to_owned()));
    let status = running.serving();
    assert_eq!((status.engine.binary, status.engine.release.as_str()), (new, "double-new-habits"));
    // The new program is what runs from now on.
    running.kill();
    assert_eq!(running.serving().engine.release, "double-new-habits");
}

#[test]
fn an_engine_that_cannot_read_what_is_saved_changes_nothing() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.call("count");
    for habit in ["refuse-check", "die-early"] {
        let new = program(running.directory.path(), habit);
        let answer = running.ask(&upgrade(Some(new), false));
        assert!(
            matches!(&answer, Response::Error(text) if text.contains("nothing has changed")),
            "{answer:?}"
        );
    }
    let missing = running.ask(&upgrade(Some("/nowhere".into()), false));
    assert!(matches!(&missing, Response::Error(text) if text.contains("/nowhere")), "{missing:?}");
    let status = running.serving();
    assert_eq!((status.engine.generation, status.engine.handovers), (1, 0));
    assert_eq!(client.call("count"), "count 1 2");
}

#[test]
fn an_engine_that_fails_when_it_takes_over_gives_way_to_the_old_program() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.call("count");
    let new = program(running.directory.path(), "die-at-start");
    let answer = running.ask(&upgrade(Some(new), false));
    assert!(matches!(&answer, Response::Error(text) if text.contains("rolled back")), "{answer:?}");
    assert_eq!(client.call("count"), "count 3 2");
    assert_eq!(running.serving().engine.release, "double-");
}

#[test]
fn an_engine_that_fails_on_probation_gives_way_to_the_old_program() {
    let patient = Limits { probation: Duration::from_secs(20), ..limits() };
    let running = Running::start_with("", patient);
    let mut client = running.client("a");
    client.call("count");
    let new = program(running.directory.path(), "new");
    let question = running.question(&upgrade(Some(new), false));
    let mut lines = BufReader::new(question).lines();
    assert!(lines.nth(1).expect("a line").expect("read").contains("probation"));
    assert_eq!(client.call("die 2"), "die 3 1");
    let last = lines.next().expect("a line").expect("read");
    assert!(last.contains("error") && last.contains("rolled back"), "{last}");
    assert_eq!(running.serving().engine.release, "double-");
}

#[test]
fn an_engine_that_does_not_pause_is_killed_and_its_work_goes_on() {
    let impatient = Limits { pause_time: Duration::from_millis(100), ..limits() };
    let running = Running::start_with("never-pause", impatient);
    let mut client = running.client("a");
    client.call("count");
    let answer = running.ask(&upgrade(None, true));
    assert!(matches!(&answer, Response::Done(_)), "{answer:?}");
    assert_eq!(client.call("count"), "count 2 2");
    assert!(running.status().restarts[0].reason.contains("took too long to pause"));
}

#[test]
fn nonsense_on_the_control_socket_is_answered_and_forgotten() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let running = Running::start("");
    running.serving();
    let ask = |bytes: &[u8]| {
        let mut socket = UnixStream::connect(running.path("control")).expect("connected");
        let _ = socket.write_all(bytes);
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    for bytes in [&b"\n"[..], b"{}\n", b"{\"command\":\"dance\"}\n", b"\xFF\xFE\n", b"[[[[\n"] {
        assert!(ask(bytes).contains("does not understand"), "{bytes:?}");
    }
    assert_eq!(ask(&vec![b'x'; 1 << 20]), "");
    let silent: Vec<_> =
        (0..16).map(|_| UnixStream::connect(running.path("control")).expect("connected")).collect();
    drop(silent);
    running.serving();
}
