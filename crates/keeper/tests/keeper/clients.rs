//! What clients are promised, and what hostile ones can do (hostile inputs, rows 16, 19 and 20).

use crate::double::frame;
use crate::harness::{Running, impatient};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::AsFd;
use std::time::Duration;

fn event() -> std::os::fd::OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")
}

#[test]
fn messages_go_to_the_engine_and_its_answers_come_back() {
    let running = Running::start("");
    let mut client = running.client("a");
    assert_eq!(client.call("count"), "count 1 1");
    assert_eq!(client.call("count"), "count 1 2");
    let mut other = running.client("b");
    assert_eq!(other.call("count"), "count 1 1");
    client.send_with("count", 0x10, &[]);
    assert_eq!(client.call("hello"), "hello 1 3", "a command that wants no reply is carried out, too");
    running.stop().expect("stopped");
}

#[test]
fn many_commands_in_one_piece_are_answered_in_order() {
    let running = Running::start("");
    let mut client = running.client("a");
    let all: Vec<u8> = (0..2000).flat_map(|id| frame(id, 9, 0, b"count")).collect();
    let mut writer = client.stream.try_clone().expect("cloned");
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &all).expect("sent"));
    for id in 0..2000 {
        let reply = client.receive().expect("a reply");
        assert_eq!((reply.id, reply.text), (id, format!("count 1 {}", id + 1)));
    }
    sender.join().expect("no panic");
}

#[test]
fn descriptors_are_kept_as_the_deposit_says_and_closed_otherwise() {
    let running = Running::start("");
    let mut client = running.client("a");
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    let kept = event();
    client.send_with("keep", 0, &[kept.as_fd()]);
    assert_eq!(client.receive().expect("a reply").text, "keep 1 1");
    client.send_with("count", 0, &[writer.as_fd()]);
    client.receive().expect("a reply");
    drop(writer);
    running.kill();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0), "nobody holds what was not kept");
    assert_eq!(client.call("ring"), "ring 1");
    let mut value = [0; 8];
    rustix::io::read(&kept, &mut value).expect("rung by the second engine");
    assert_eq!(client.call("drop"), "drop 2 3");
    running.kill();
    assert_eq!(client.call("ring"), "ring 0");
}

#[test]
fn an_answer_may_bring_a_descriptor() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.send("gift");
    let reply = client.receive().expect("a reply");
    let mut value = [0; 8];
    rustix::io::read(&reply.fds[0], &mut value).expect("an eventfd");
    assert_eq!(u64::from_ne_bytes(value), 41);
}

#[test]
fn requests_of_the_engine_are_answered_by_the_client() {
    let running = Running::start("");
    let mut client = running.client("a");
    let id = client.send("ask");
    let request = client.receive().expect("a request");
    assert_eq!((request.flags, request.text.as_str()), (0, "data please"));
    // Replies that nobody asked for go nowhere.
    client.raw(&frame(request.id.wrapping_add(9), 11, 1, b"wrong"), &[]);
    client.raw(&frame(request.id, 11, 1, b"right"), &[]);
    client.raw(&frame(request.id, 11, 1, b"twice"), &[]);
    let reply = client.receive().expect("a reply");
    assert_eq!((reply.id, reply.text.as_str()), (id, "right"));
}

#[test]
fn a_second_client_is_turned_away_while_the_first_is_served() {
    let running = Running::start("");
    let mut first = running.client("a");
    assert_eq!(first.call("count"), "count 1 1");
    for _ in 0..3 {
        assert!(running.client("a").receive().is_none());
    }
    assert_eq!(first.call("count"), "count 1 2");
    drop(first);
    let mut next = running.client("a");
    assert_eq!(next.call("count"), "count 1 1", "it finds nothing of the first");
}

#[test]
fn the_next_client_is_served_as_often_as_one_leaves() {
    let running = Running::start("");
    for _ in 0..50 {
        let mut client = running.client("a");
        client.send_with("count", 0x10, &[]);
        assert_eq!(client.call("count"), "count 1 2");
    }
}

#[test]
fn a_command_sent_just_before_leaving_is_carried_out_and_half_a_connection_is_answered() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.send("sleep 50");
    client.send("count");
    client.stream.shutdown(std::net::Shutdown::Write).expect("shut");
    assert_eq!(client.receive().expect("a reply").text, "sleep 1 0");
    assert_eq!(client.receive().expect("a reply").text, "count 1 1");
    assert!(client.receive().is_none());
}

#[test]
fn the_engine_may_hang_up_after_its_last_answer() {
    let running = Running::start("");
    let mut client = running.client("a");
    assert_eq!(client.call("hangup"), "hangup 1 0");
    assert!(client.receive().is_none());
    assert_eq!(running.client("a").call("count"), "count 1 1");
}

#[test]
fn a_message_size_that_makes_no_sense_ends_the_session() {
    let running = Running::start("");
    for size in [0_u32, 15, 16 + 17 + (1 << 20), u32::MAX] {
        let mut client = running.client("a");
        let mut bytes = frame(1, 9, 0, b"");
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        client.raw(&bytes, &[]);
        assert!(client.receive().is_none(), "size {size}");
    }
    assert_eq!(running.client("a").call("count"), "count 1 1");
}

#[test]
fn a_client_that_leaves_anywhere_in_a_message_ends_only_its_session() {
    let running = Running::start("");
    let mut neighbour = running.client("b");
    let whole = frame(1, 9, 0, b"count");
    for cut in 0..whole.len() {
        let fd = event();
        let mut client = running.client("a");
        if cut > 0 {
            client.raw(&whole[..cut], &[fd.as_fd()]);
        }
    }
    assert_eq!(running.client("a").call("hello"), "hello 1 0");
    assert_eq!(neighbour.call("count"), "count 1 1");
}

#[test]
fn a_message_that_comes_a_byte_at_a_time_is_cut_off_in_bounded_time() {
    let running = Running::start_with("", impatient());
    let mut client = running.client("a");
    let whole = frame(1, 9, 0, b"count");
    for byte in &whole[..15] {
        if std::io::Write::write_all(&mut client.stream, &[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(client.receive().is_none());
    assert_eq!(running.client("a").call("hello"), "hello 1 0");
}

#[test]
fn a_client_may_be_silent_between_messages_for_as_long_as_it_likes() {
    let running = Running::start_with("", impatient());
    let mut client = running.client("a");
    client.call("count");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(client.call("count"), "count 1 2");
}

#[test]
fn replies_never_read_end_the_session_in_bounded_time_and_disturb_nobody() {
    let running = Running::start_with("", impatient());
    let mut client = running.client("a");
    let mut neighbour = running.client("b");
    for id in 0..64 {
        if std::io::Write::write_all(&mut client.stream, &frame(id, 9, 0, b"big")).is_err() {
            break;
        }
    }
    for count in 1..50 {
        assert_eq!(neighbour.call("count"), format!("count 1 {count}"));
    }
    running.wait("rid of it", |status| !status.ssds[0].client);
    assert_eq!(running.client("a").call("hello"), "hello 1 0");
}

#[test]
fn more_descriptors_than_a_message_may_carry_are_closed_and_the_engine_is_told() {
    let running = Running::start("");
    let mut client = running.client("a");
    let fds: Vec<_> = (0..20).map(|_| event()).collect();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    client.send_with("surplus", 0, &borrowed);
    assert_eq!(client.receive().expect("a reply").text, "surplus true 16");
    client.send_with("surplus", 0, &borrowed[..16]);
    assert_eq!(client.receive().expect("a reply").text, "surplus false 16");
    // Spread over a message, they are counted together.
    let whole = frame(9, 9, 0, b"surplus");
    client.raw(&whole[..18], &borrowed[..10]);
    client.raw(&whole[18..], &borrowed[10..]);
    assert_eq!(client.receive().expect("a reply").text, "surplus true 16");
}

#[test]
fn a_flood_of_commands_waits_in_the_clients_socket() {
    let running = Running::start("");
    let mut client = running.client("a");
    // More answers than its socket has room for, and nobody reads them.
    client.send("sleep 300");
    let mut writer = client.stream.try_clone().expect("cloned");
    let sender = std::thread::spawn(move || {
        for id in 0..1000_u16 {
            std::io::Write::write_all(&mut writer, &frame(id, 9, 0, &[b'c'; 10_000])).expect("sent");
        }
    });
    let status = running.wait("full", |status| status.ssds[0].unanswered > 100);
    assert!(status.ssds[0].unanswered <= 256);
    for _ in 0..1001 {
        client.receive().expect("a reply");
    }
    sender.join().expect("no panic");
}
