use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

use super::{EVENTS_MAX, Event, LINE_BYTES_MAX, Qmp, Version};
use crate::error::Fault;
use crate::peer::{PATIENCE, Peer, event, greeted, over, with_peer};

const SHORT: Duration = Duration::from_millis(50);
#[test]
fn a_command_is_answered_and_the_version_is_the_greetings() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let command = peer.hear();
        peer.answer(&command, &json!({ "status": "running" }));
        command
    });
    assert_eq!(qmp.version(), Version { major: 11, minor: 1, micro: 3 });
    let said = qmp.execute("query-status", json!({ "a": 1 })).unwrap();
    assert_eq!(said["status"], "running");
    let command = peer.join().unwrap();
    assert_eq!((&command["execute"], &command["arguments"]), (&json!("query-status"), &json!({ "a": 1 })));
}

#[test]
fn events_are_kept_in_order_and_taken_one_by_one() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let command = peer.hear();
        peer.say(&event("STOP"));
        peer.say("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"pre-switchover\"}, \"timestamp\": {\"seconds\": 7, \"microseconds\": 5}}\n");
        peer.answer(&command, &json!({}));
        peer.say(&event("RESUME"));
        peer
    });
    qmp.execute("query-status", json!({})).unwrap();
    let mut next = || qmp.event(PATIENCE).unwrap().unwrap();
    assert_eq!(
        next(),
        Event { name: "STOP".into(), data: Value::Null, at: Duration::from_micros(1_000_002) }
    );
    let (data, at) = (json!({ "status": "pre-switchover" }), Duration::from_micros(7_000_005));
    assert_eq!(next(), Event { name: "MIGRATION".into(), data, at });
    assert_eq!(next().name, "RESUME");
    assert_eq!(qmp.event(SHORT).unwrap(), None);
    drop(peer.join().unwrap());
}

#[test]
fn a_refusal_says_what_was_asked_of_whom_and_what_qemu_answered() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let id = peer.hear()["id"].clone();
        let error =
            json!({ "class": "GenericError", "desc": "There's a migration\u{1b}[2J process in progress" });
        peer.say(&format!("{}\n", json!({ "error": error, "id": id })));
        peer.accept();
    });
    let error = qmp.execute("migrate", json!({ "uri": "fd:x" })).unwrap_err();
    assert!(error.is_an_answer());
    let said = error.to_string();
    let wanted = "QEMU at /run/vm.qmp: migrate: it refused: There's a migration\\u{1b}[2J process in progress (GenericError)";
    assert_eq!(said, wanted);
    qmp.execute("query-status", json!({})).expect("the connection is good");
    peer.join().unwrap();
}

#[test]
fn a_descriptor_goes_with_its_command() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let (mut space, mut bytes) = ([std::mem::MaybeUninit::uninit(); 64], [0; 1024]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        let got =
            rustix::net::recvmsg(peer.stream.get_ref(), &mut slices, &mut ancillary, RecvFlags::empty());
        let count = got.unwrap().bytes;
        let fds: Vec<_> = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        let command: Value = serde_json::from_slice(&bytes[..count]).unwrap();
        peer.answer(&command, &json!({}));
        assert_eq!((fds.len(), &command["execute"]), (1, &json!("getfd")));
        let mut text = String::new();
        File::from(fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        text
    });
    let (reader, mut writer) = std::io::pipe().unwrap();
    qmp.execute_with_fd("getfd", json!({ "fdname": "memory" }), reader.as_fd()).unwrap();
    drop(reader);
    writer.write_all(b"through the pipe").unwrap();
    drop(writer);
    assert_eq!(peer.join().unwrap(), "through the pipe");
}

#[test]
fn commands_that_are_sent_at_once_are_answered_each_for_itself() {
    let (mut qmp, peer) = greeted(|mut peer| {
        // All are there before the first is answered.
        let asked = [peer.hear(), peer.hear(), peer.hear()];
        peer.answer(&asked[0], &json!(1));
        peer.say(&event("STOP"));
        let error = json!({ "class": "GenericError", "desc": "no" });
        peer.say(&format!("{}\n", json!({ "error": error, "id": asked[1]["id"] })));
        peer.answer(&asked[2], &json!(3));
        asked.map(|asked| asked["execute"].clone())
    });
    let [one, two, three] = qmp.execute_all([("one", json!({})), ("two", json!({})), ("three", json!({}))]);
    assert_eq!((one.unwrap(), three.unwrap()), (json!(1), json!(3)));
    assert!(two.unwrap_err().to_string().contains("two: it refused: no"));
    assert_eq!(qmp.event(Duration::ZERO).unwrap().unwrap().name, "STOP");
    assert_eq!(peer.join().unwrap(), ["one", "two", "three"]);
}

#[test]
fn after_a_connection_has_ended_no_command_sent_with_others_has_an_answer() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let first = peer.hear();
        peer.answer(&first, &json!("said"));
    });
    let said = qmp.human_all(["one", "two", "three"]);
    peer.join().unwrap();
    // The first answer is lost, too, if the end was seen before it was read.
    assert!(matches!(&said[..], [_, Err(_), Err(_)]), "{said:?}");
}

#[test]
fn an_answer_that_came_too_late_is_not_taken_for_the_next_one() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let (first, second) = (peer.hear(), peer.hear());
        peer.answer(&first, &json!("late"));
        peer.answer(&second, &json!("right"));
        peer.say(&format!("{}\n", json!({ "return": "unasked", "id": second["id"] })));
        peer.say(&event("RESUME"));
        peer
    });
    qmp.set_patience(SHORT);
    let error = qmp.execute("stop", json!({})).unwrap_err();
    assert!(matches!(error.fault, Fault::Patience(SHORT)), "{error}");
    qmp.set_patience(PATIENCE);
    assert_eq!(qmp.execute("query-status", json!({})).unwrap(), "right");
    assert_eq!(qmp.event(PATIENCE).unwrap().unwrap().name, "RESUME");
    drop(peer.join().unwrap());
}

#[test]
fn a_silent_peer_is_given_up_in_time() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    let error = over(ours, SHORT).unwrap_err();
    assert!(matches!(error.fault, Fault::NoGreeting(SHORT)), "{error}");
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn a_patience_without_end_is_one() {
    let (mut qmp, peer) = greeted(|mut peer| {
        peer.accept();
        peer.say(&event("STOP"));
    });
    qmp.set_patience(Duration::MAX);
    qmp.execute("query-status", json!({})).unwrap();
    assert_eq!(qmp.event(Duration::MAX).unwrap().unwrap().name, "STOP");
    peer.join().unwrap();
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_in_time() {
    let (mut qmp, peer) = greeted(|peer| peer);
    let _peer = peer.join().unwrap();
    qmp.set_patience(SHORT);
    let large = json!({ "text": "x".repeat(8 << 20) });
    let error = qmp.execute("large", large).unwrap_err();
    assert!(matches!(error.fault, Fault::Patience(SHORT)), "{error}");
    let error = qmp.execute("query-status", json!({})).unwrap_err();
    assert!(matches!(error.fault, Fault::Broken), "half a command is in the socket: {error}");
}

#[test]
fn a_connection_that_ends_is_an_error_and_no_hang() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(over(ours, PATIENCE).unwrap_err().fault, Fault::Closed));
    let (mut qmp, peer) = greeted(|mut peer| drop(peer.hear()));
    assert!(matches!(qmp.execute("quit", json!({})).unwrap_err().fault, Fault::Closed));
    peer.join().unwrap();
    assert!(qmp.execute("quit", json!({})).is_err());
    assert!(qmp.event(PATIENCE).is_err());
}

#[test]
fn what_is_not_qmp_is_an_error() {
    for nonsense in ["hello\n", "[]\n", "{}\n", "7\n", "\u{1}\n", "{\"QMP\": {}}\n", "\n", "{\"QMP\": \n"] {
        let (ours, peer) = with_peer(|mut peer| {
            peer.say(nonsense);
            peer
        });
        let error = over(ours, PATIENCE).unwrap_err();
        assert!(matches!(error.fault, Fault::NotUnderstood(_)), "{nonsense:?}: {error}");
        drop(peer.join().unwrap());
    }
    for nonsense in
        ["{}\n", "{\"return\": {}}\n", "{\"return\": {}, \"id\": 999}\n", "{\"id\": 2}\n", "nonsense\n"]
    {
        let (mut qmp, peer) = greeted(|mut peer| {
            peer.hear();
            peer.say(nonsense);
            peer
        });
        let error = qmp.execute("query-status", json!({})).unwrap_err();
        assert!(matches!(error.fault, Fault::NotUnderstood(_)), "{nonsense:?}: {error}");
        drop(peer.join().unwrap());
    }
}

#[test]
fn json_that_is_too_deep_is_an_error() {
    let (mut qmp, peer) = greeted(|mut peer| {
        peer.hear();
        peer.say(&format!("{}\n", "[".repeat(1 << 20)));
    });
    assert!(matches!(qmp.execute("query-status", json!({})).unwrap_err().fault, Fault::NotUnderstood(_)));
    peer.join().unwrap();
}

#[test]
fn a_line_without_an_end_takes_bounded_memory() {
    let (mut qmp, peer) = greeted(|mut peer| {
        peer.hear();
        for _ in 0..LINE_BYTES_MAX / 1024 + 1024 {
            peer.say(&" ".repeat(1024));
        }
    });
    let error = qmp.execute("query-status", json!({})).unwrap_err();
    assert!(matches!(error.fault, Fault::TooLong(LINE_BYTES_MAX)), "{error}");
    assert!(qmp.pending.len() <= LINE_BYTES_MAX + super::READ_BYTES);
    assert!(matches!(qmp.execute("query-status", json!({})).unwrap_err().fault, Fault::Broken));
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn events_without_end_are_an_error() {
    let (mut qmp, peer) = greeted(|mut peer| {
        peer.hear();
        for _ in 0..=EVENTS_MAX {
            peer.say(&event("RTC_CHANGE"));
        }
        peer
    });
    let error = qmp.execute("query-status", json!({})).unwrap_err();
    assert!(matches!(error.fault, Fault::TooManyEvents(EVENTS_MAX)), "{error}");
    drop(peer.join().unwrap());
}

#[test]
fn a_peer_that_talks_of_other_things_for_ever_is_given_up_in_time() {
    let (mut qmp, peer) = greeted(|mut peer| {
        let id = peer.hear()["id"].as_u64().unwrap();
        peer.stream.get_ref().set_write_timeout(Some(PATIENCE)).unwrap();
        let old = format!("{}\n", json!({ "return": {}, "id": id - 1 })).repeat(100);
        while peer.stream.get_mut().write_all(old.as_bytes()).is_ok() {}
    });
    qmp.set_patience(SHORT);
    let error = qmp.execute("query-status", json!({})).unwrap_err();
    assert!(matches!(error.fault, Fault::Patience(SHORT)), "{error}");
    drop(qmp);
    peer.join().unwrap();
}

#[test]
fn a_socket_is_connected_to_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let error = Qmp::connect(&path, PATIENCE).unwrap_err();
    assert!(matches!(error.fault, Fault::NoConnection(_)), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let peer = std::thread::spawn(move || {
        let mut peer = Peer { stream: BufReader::new(listener.accept().unwrap().0) };
        peer.greet();
    });
    assert_eq!(Qmp::connect(&path, PATIENCE).unwrap().path(), path);
    peer.join().unwrap();
}

#[test]
fn a_listener_that_takes_nobody_is_given_up_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = Qmp::connect(&path, SHORT).unwrap_err();
    assert!(matches!(error.fault, Fault::NoConnection(_)), "{error}");
}
