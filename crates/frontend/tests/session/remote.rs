//! Client memory without a descriptor: DMA_READ and DMA_WRITE over the same socket.

use std::time::Duration;

use crate::harness::*;
use frontend::vfio_user::{Errno, Limits, Receipt, Store};

/// Answers a DMA command from (and into) `memory`, whose first byte has address 0.
fn answer(client: &Client, command: &Answer, memory: &mut [u8]) {
    let at = usize::try_from(command.u64_at(0)).expect("small");
    let count = usize::try_from(command.u64_at(8)).expect("small");
    let mut payload = command.payload[..16].to_vec();
    if command.command == DMA_READ {
        payload.extend_from_slice(&memory[at..at + count]);
    } else {
        assert_eq!(command.payload.len(), 16 + count);
        memory[at..at + count].copy_from_slice(&command.payload[16..]);
    }
    client.send(&message(command.id, command.command, 1, &payload), &[]);
}

fn small_transfers(running: &mut Running, bytes: u32) {
    let json = format!("{{\"capabilities\":{{\"max_data_xfer_size\":{bytes}}}}}");
    assert!(running.client.call(VERSION, &version(&json)).is_ok());
}

#[test]
fn reads_and_writes_are_cut_to_what_the_client_takes() {
    let mut running = Running::start();
    small_transfers(&mut running, 64);
    let remote = running.remote.clone();
    let caller = std::thread::spawn(move || {
        let data: Vec<u8> = (0..200).collect();
        remote.write(100, &data).expect("written");
        let mut back = vec![0; 200];
        remote.read(100, &mut back).expect("read");
        assert_eq!(back, data);
        remote.read(0, &mut []).expect("nothing to read");
    });
    let mut memory = vec![0; 400];
    for (at, count) in [(100, 64), (164, 64), (228, 64), (292, 8)].repeat(2) {
        let command = running.client.receive().expect("a command");
        assert_eq!((command.flags, command.u64_at(0), command.u64_at(8)), (0, at, count));
        answer(&running.client, &command, &mut memory);
    }
    caller.join().expect("no panic");
    running.leave();
}

#[test]
fn a_device_call_reads_client_memory_while_the_client_sends_more_commands() {
    let mut running = Running::negotiated();
    let mut memory: Vec<u8> = (0..=255).collect();
    let ask = [range(ASK_AT, 0, 8), u64s(&[16])].concat();
    running.client.send(&message(1, REGION_WRITE, 0, &ask), &[]);
    for id in 2..50 {
        running.client.send(&message(id, REGION_READ, 0, &range(ASK_AT + 8, 0, 8)), &[]);
    }
    let command = running.client.receive().expect("a command");
    assert_eq!(command.command, DMA_READ);
    answer(&running.client, &command, &mut memory);
    for id in 1..50 {
        let reply = running.client.receive().expect("a reply");
        assert_eq!(reply.id, id);
        if id > 1 {
            assert_eq!(reply.payload[16..], memory[16..24]);
        }
    }
    assert!(running.client.call(RESET, &[]).is_ok());
    running.leave();
}

#[test]
fn many_threads_reach_client_memory_at_once_amid_commands() {
    let running = Running::negotiated();
    let callers: Vec<_> = (0..8u8)
        .map(|who| {
            let remote = running.remote.clone();
            std::thread::spawn(move || {
                for round in 0..50u8 {
                    let data = [who ^ round; 100];
                    remote.write(u64::from(who) * 100, &data).expect("written");
                    let mut back = [0; 100];
                    remote.read(u64::from(who) * 100, &mut back).expect("read");
                    assert_eq!(back, data);
                }
            })
        })
        .collect();
    let mut memory = vec![0; 800];
    let (mut commands, mut replies) = (0, 0);
    running.client.send(&message(5, REGION_READ, 0, &range(0, 7, 4)), &[]);
    while commands < 800 || replies < 100 {
        let got = running.client.receive().expect("a message");
        if got.flags & 1 == 1 {
            replies += 1;
            if replies < 100 {
                running.client.send(&message(5, REGION_READ, 0, &range(0, 7, 4)), &[]);
            }
        } else {
            commands += 1;
            answer(&running.client, &got, &mut memory);
        }
    }
    for caller in callers {
        caller.join().expect("no panic");
    }
    running.leave();
}

#[test]
fn answers_may_come_in_any_order() {
    let running = Running::negotiated();
    let mut memory: Vec<u8> = (0..=255).collect();
    let callers: Vec<_> = (0..8u8)
        .map(|who| {
            let remote = running.remote.clone();
            std::thread::spawn(move || {
                let mut data = [0; 1];
                remote.read(u64::from(who), &mut data).expect("read");
                assert_eq!(data, [who]);
            })
        })
        .collect();
    let mut commands: Vec<_> = (0..8).map(|_| running.client.receive().expect("a command")).collect();
    commands.reverse();
    for command in &commands {
        answer(&running.client, command, &mut memory);
    }
    for caller in callers {
        caller.join().expect("no panic");
    }
    running.leave();
}

#[test]
fn before_the_version_and_after_the_end_memory_is_out_of_reach() {
    let mut running = Running::start();
    let remote = running.remote.clone();
    assert_eq!(remote.read(0, &mut [0]), Err(Errno::NOTCONN));
    running.client.negotiate();
    running.leave();
    assert_eq!(remote.read(0, &mut [0]), Err(Errno::NOTCONN));
    assert_eq!(remote.write(0, &[0]), Err(Errno::NOTCONN));
}

#[test]
fn a_client_that_leaves_frees_whoever_waits_for_it() {
    let running = Running::negotiated();
    let remote = running.remote.clone();
    let caller = std::thread::spawn(move || remote.read(0, &mut [0]));
    running.client.receive().expect("a command");
    running.leave();
    // Who waited for the answer would be told that it took too long.
    assert_eq!(caller.join().expect("no panic"), Err(Errno::NOTCONN));
}

#[test]
fn a_client_that_never_answers_costs_the_time_limit_and_the_session_goes_on() {
    let limits = Limits { remote_time: Duration::from_millis(100), ..Limits::default() };
    let mut running = Running::start_with(limits);
    running.client.negotiate();
    assert_eq!(running.remote.read(0, &mut [0]), Err(Errno::TIMEDOUT));
    let late = running.client.receive().expect("a command");
    answer(&running.client, &late, &mut [1]);
    assert!(running.client.call(RESET, &[]).is_ok());
    assert_eq!(running.leave().unasked_replies, 1);
}

#[test]
fn answers_that_do_not_fit_the_question_are_refused() {
    let running = Running::negotiated();
    let good = u64s(&[0x10, 8]);
    // Command, flags, errno, payload, what the caller gets.
    let cases = [
        (DMA_READ, 1, 0, [&good[..], &[1; 8]].concat(), Ok(())),
        (DMA_READ, 1, 0, [&good[..], &[1; 7]].concat(), Err(Errno::PROTO)),
        (DMA_READ, 1, 0, [&good[..], &[1; 9]].concat(), Err(Errno::PROTO)),
        (DMA_READ, 1, 0, good.clone(), Err(Errno::PROTO)),
        (DMA_READ, 1, 0, vec![], Err(Errno::PROTO)),
        (DMA_READ, 1, 0, [u64s(&[0x11, 8]), vec![1; 8]].concat(), Err(Errno::PROTO)),
        (DMA_READ, 1, 0, [u64s(&[0x10, 7]), vec![1; 7]].concat(), Err(Errno::PROTO)),
        (DMA_WRITE, 1, 0, [&good[..], &[1; 8]].concat(), Err(Errno::PROTO)),
        (DMA_READ, 0x21, 14, vec![], Err(Errno::FAULT)),
        (DMA_READ, 0x21, 0, vec![], Err(Errno::IO)),
        (DMA_READ, 0x21, 4096, vec![], Err(Errno::IO)),
        (DMA_READ, 0x21, u32::MAX, vec![], Err(Errno::IO)),
    ];
    for (command, flags, errno, payload, expected) in cases {
        let remote = running.remote.clone();
        let caller = std::thread::spawn(move || remote.read(0x10, &mut [0; 8]));
        let asked = running.client.receive().expect("a command");
        let mut bytes = message(asked.id, command, flags, &payload);
        bytes[12..16].copy_from_slice(&errno.to_le_bytes());
        running.client.send(&bytes, &[]);
        assert_eq!(caller.join().expect("no panic"), expected);
    }
    // The reply to a write has a count of 8 bytes, or of 4 as the text says.
    for payload in [u64s(&[0x10, 8]), [u64s(&[0x10]), u32s(&[8])].concat()] {
        let remote = running.remote.clone();
        let caller = std::thread::spawn(move || remote.write(0x10, &[0; 8]));
        let asked = running.client.receive().expect("a command");
        running.client.send(&message(asked.id, DMA_WRITE, 1, &payload), &[]);
        assert_eq!(caller.join().expect("no panic"), Ok(()));
    }
    running.leave();
}

/// QEMU 10.1 and 10.2: `offset` u64, `count` u32, data, and the structure's padding at the end.
fn answer_narrow(client: &Client, command: &Answer, memory: &mut [u8]) {
    let at = usize::try_from(command.u64_at(0)).expect("small");
    let count = usize::try_from(command.u32_at(8)).expect("small");
    let mut payload = command.payload[..12].to_vec();
    if command.command == DMA_READ {
        payload.extend_from_slice(&memory[at..at + count]);
        payload.extend_from_slice(&[0; 4]);
    } else {
        memory[at..at + count].copy_from_slice(&command.payload[12..12 + count]);
        payload.extend_from_slice(&command.payload[12..16]);
    }
    client.send(&message(command.id, command.command, 1, &payload), &[]);
}

#[test]
fn the_narrow_layout_of_qemu_10_is_recognised_by_the_first_command_read() {
    let running = Running::negotiated();
    let remote = running.remote.clone();
    let caller = std::thread::spawn(move || {
        let mut command = [0; 64];
        remote.read(0, &mut command).expect("read");
        assert_eq!((command[0], command[63]), (6, 0));
        remote.write(64, &[7; 3]).expect("written");
        remote.write(67, &[8; 100]).expect("written");
        let mut back = [0; 3];
        remote.read(64, &mut back).expect("read");
        assert_eq!(back, [7; 3]);
        let mut zeros = [1; 8];
        remote.read(200, &mut zeros).expect("read");
        assert_eq!(zeros, [0; 8]);
        let mut one = [1; 1];
        remote.read(166, &mut one).expect("read");
        assert_eq!(one, [8]);
    });
    let mut memory = vec![0; 256];
    memory[0] = 6;
    for _ in 0..6 {
        let command = running.client.receive().expect("a command");
        answer_narrow(&running.client, &command, &mut memory);
    }
    caller.join().expect("no panic");
    assert_eq!(memory[64..67], [7; 3]);
    assert_eq!(memory[67..167], [8; 100]);
    running.leave();
}

#[test]
fn zeros_do_not_make_a_client_look_narrow() {
    let running = Running::negotiated();
    let remote = running.remote.clone();
    let caller = std::thread::spawn(move || {
        for at in 0..60 {
            let mut four = [9; 4];
            remote.read(at, &mut four).expect("read");
            assert_eq!(four.iter().any(|&byte| byte != 0), (29..=32).contains(&at));
        }
    });
    let mut memory = vec![0; 64];
    memory[32] = 6;
    for _ in 0..60 {
        let command = running.client.receive().expect("a command");
        answer(&running.client, &command, &mut memory);
    }
    caller.join().expect("no panic");
    running.leave();
}

fn store(iova: u64, byte: u8) -> Store {
    Store { iova, bytes: vec![byte] }
}

/// In both layouts: of a byte that is not 0 the client is asked first how it lays out its messages.
#[test]
fn touches_store_the_bytes_that_are_there_and_the_last_of_them_is_answered() {
    for narrow in [false, true] {
        let running = Running::negotiated();
        let remote = running.remote.clone();
        let caller = std::thread::spawn(move || {
            let zero = remote.touch(&[store(2, 0)]).expect("a zero is a zero in any layout");
            let more = remote.touch(&[store(7, 0xa5), store(8, 0x5a), store(9, 1)]).expect("sent");
            (zero.wait(), more.wait())
        });
        let data_at = if narrow { 12 } else { 16 };
        let mut messages = Vec::new();
        while messages.len() < 5 {
            let command = running.client.receive().expect("a command");
            let (at, byte) = (command.u64_at(0), command.payload[data_at..].first().copied());
            messages.push((command.command, at, command.flags, byte.filter(|_| command.command != DMA_READ)));
            if command.flags == 0 {
                let mut payload = command.payload[..16].to_vec();
                if command.command == DMA_READ {
                    payload.insert(data_at, 0xa5);
                }
                running.client.send(&message(command.id, command.command, 1, &payload), &[]);
            }
        }
        let write = |at, flags, byte| (DMA_WRITE, at, flags, Some(byte));
        let expected = [
            write(2, 0, 0),
            (DMA_READ, 7, 0, None),
            write(7, 0x10, 0xa5),
            write(8, 0x10, 0x5a),
            write(9, 0, 1),
        ];
        assert_eq!(messages, expected, "narrow: {narrow}");
        assert_eq!(caller.join().expect("no panic"), (Ok(()), Ok(())));
        running.leave();
    }
}

#[test]
fn a_client_that_has_another_byte_there_is_not_touched_and_one_that_refuses_is_believed() {
    let running = Running::negotiated();
    let remote = running.remote.clone();
    let caller = std::thread::spawn(move || {
        let other = remote.touch(&[store(3, 7)]).map(drop);
        (other, remote.touch(&[store(3, 0)]).and_then(Receipt::wait), remote.touch(&[]).map(drop))
    });
    let command = running.client.receive().expect("a command");
    answer(&running.client, &command, &mut [1; 8]);
    let command = running.client.receive().expect("a command");
    let mut refusal = message(command.id, command.command, 0x21, &[]);
    refusal[12..16].copy_from_slice(&19_u32.to_le_bytes());
    running.client.send(&refusal, &[]);
    let results = caller.join().expect("no panic");
    assert_eq!(results, (Err(Errno::PROTO), Err(Errno::NODEV), Err(Errno::INVAL)));
    running.leave();
}
