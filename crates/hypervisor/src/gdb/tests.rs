use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use super::{ANSWER_BYTES_MAX, Gdb, NAME};
use crate::error::Fault;
use crate::peer::{PATIENCE, qemu};

/// What became of a write to a debugger's server that answers this, and what it heard.
fn write(answer: &[u8], patience: Duration) -> (Result<(), Fault>, Vec<u8>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(answer).unwrap();
    let mut gdb = Gdb::over(ours, patience);
    let done = gdb.write([(0xfe20_4000, vec![0xfe, 0x01])]);
    drop(gdb);
    let mut heard = Vec::new();
    // An answer that was not read is a reset to the other side.
    let _ = theirs.read_to_end(&mut heard);
    (done, heard)
}

#[test]
fn a_write_is_a_packet_with_a_sum_and_its_answer_is_acknowledged() {
    let (done, heard) = write(b"+$OK#9a", PATIENCE);
    done.unwrap();
    assert_eq!(heard, b"$Mfe204000,2:fe01#02+");
}

#[test]
fn several_writes_go_at_once_and_the_first_that_fails_is_told() {
    let writes = || [(0x10, vec![1]), (0x20, vec![2]), (0x30, vec![3])];
    let ask = |answers: &[u8]| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answers).unwrap();
        let mut gdb = Gdb::over(ours, Duration::from_millis(50));
        let done = gdb.write(writes());
        let mut heard = [0; 64];
        let count = theirs.read(&mut heard).unwrap();
        assert_eq!(&heard[..count], b"$M10,1:01#a6+$M20,1:02#a8+$M30,1:03#aa+");
        done
    };
    ask(b"+$OK#9a+$OK#9a+$OK#9a").unwrap();
    ask(b"+$OK#9a$OK#9a+$OK#9a").unwrap();
    assert!(matches!(ask(b"+$OK#9a+$E14#aa+$OK#9a"), Err(Fault::Refused { .. })));
    assert!(matches!(ask(b"+$OK#9a+$OK#9a+"), Err(Fault::Patience(_))));
}

#[test]
fn what_is_no_ok_is_an_error_and_no_hang() {
    let short = Duration::from_millis(50);
    for refused in [&b"+$E22#a9"[..], b"+$#00", b"$OKAY#00", b"#9a$OK", b"+$\xff\xff#00"] {
        let (done, _) = write(refused, short);
        assert!(done.is_err(), "{refused:?}");
    }
    assert!(matches!(write(b"", short).0, Err(Fault::Patience(_))));
    assert!(matches!(write(b"+++$OK", short).0, Err(Fault::Patience(_))));
    assert!(matches!(write(&[b'+'; 2 * ANSWER_BYTES_MAX], PATIENCE).0, Err(Fault::TooLong(_))));
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut gdb = Gdb::over(ours, PATIENCE);
    assert!(matches!(gdb.write([(0, vec![0])]), Err(Fault::Closed)));
}

#[test]
fn a_debugger_of_somebody_elses_is_left_alone() {
    let (mut qmp, peer) = qemu(|command, _| match command {
        "query-chardev" => {
            Ok(json!([{ "label": "gdb", "filename": "disconnected:tcp:0.0.0.0:1234,server=on" }]))
        }
        _ => Err("what?"),
    });
    let error = Gdb::start(&mut qmp).unwrap_err();
    assert!(error.is_an_answer() && error.to_string().contains("gdbserver none"), "{error}");
    drop(qmp);
    assert_eq!(peer.join().unwrap().last().unwrap(), "query-chardev");
}

#[test]
fn a_server_that_was_left_is_ended_first_and_one_that_does_not_answer_afterwards() {
    let (send, heard) = std::sync::mpsc::channel();
    let (mut qmp, peer) = qemu(move |command, arguments| match command {
        "query-chardev" => Ok(json!([{ "label": NAME, "filename": "unix:" }])),
        "human-monitor-command" => {
            let line = arguments["command-line"].as_str().unwrap().to_owned();
            send.send(line).unwrap();
            Ok(json!("gdbstub: current accelerator doesn't support guest debugging"))
        }
        _ => Ok(json!({})),
    });
    // It has no end of the socket pair, and says nothing. QEMU answers in that time, on the busiest machine.
    qmp.set_patience(Duration::from_secs(3));
    let error = Gdb::start(&mut qmp).unwrap_err();
    assert!(error.to_string().contains("doesn't support guest debugging"), "{error}");
    drop(qmp);
    let asked = peer.join().unwrap();
    assert_eq!(asked.iter().filter(|name| *name == "chardev-remove").count(), 2);
    let lines: Vec<String> = heard.iter().collect();
    assert_eq!(lines, ["gdbserver none", "gdbserver chardev:godwit-gdb", "gdbserver none"]);
}

/// What became of a last write that is answered so, and the human monitor's lines and whether the line was removed.
fn finish(answers: &[u8]) -> (Result<Vec<String>, crate::Error>, Vec<String>, bool) {
    let (send, heard) = std::sync::mpsc::channel();
    let (mut qmp, peer) = qemu(move |command, arguments| match command {
        "human-monitor-command" => {
            let line = arguments["command-line"].as_str().unwrap().to_owned();
            send.send(line).unwrap();
            Ok(json!("seen"))
        }
        _ => Ok(json!({})),
    });
    let (socket, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(answers).unwrap();
    let gdb = Gdb::over(socket, Duration::from_millis(50));
    let done = gdb.finish(&mut qmp, [(0x10, vec![1])], &["look".to_owned()]);
    drop(qmp);
    let removed = peer.join().unwrap().contains(&"chardev-remove".to_owned());
    let mut packets = String::new();
    let _ = theirs.read_to_string(&mut packets);
    assert!(packets.ends_with("$Qqemu.PhyMemMode:0#76+"), "{packets}");
    (done, heard.iter().collect(), removed)
}

#[test]
fn the_last_write_puts_back_how_addresses_are_read_and_ends_the_server_whatever_came_of_it() {
    let (done, lines, _) = finish(b"+$OK#9a+$OK#9a");
    assert_eq!(done.unwrap(), ["seen"]);
    assert_eq!(lines, ["gdbserver none", "look"]);
    // Refused, and silent.
    for answers in [&b"+$E14#aa+$OK#9a"[..], b"+$OK#9a"] {
        let (done, lines, removed) = finish(answers);
        assert!(done.unwrap_err().to_string().contains("write to the guest's memory"));
        assert_eq!((lines, removed), (vec!["gdbserver none".to_owned()], true));
    }
}

#[test]
fn after_a_silence_nothing_more_is_asked_and_the_server_is_ended() {
    let (mut qmp, peer) = qemu(|_, _| Ok(json!("")));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut gdb = Gdb::over(ours, Duration::from_millis(50));
    assert!(matches!(gdb.write([(0x10, vec![1])]), Err(Fault::Patience(_))));
    theirs.write_all(b"+$OK#9a").unwrap();
    assert!(matches!(gdb.write([(0x20, vec![2])]), Err(Fault::Broken)), "that answer is the first one's");
    gdb.give_up(&mut qmp);
    drop(qmp);
    assert_eq!(peer.join().unwrap(), ["human-monitor-command", "chardev-remove"]);
}
