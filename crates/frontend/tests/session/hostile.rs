//! Clients that lie, stall or leave (hostile inputs, rows 16 and 18 to 20).

use std::os::fd::AsFd;
use std::time::Duration;

use crate::harness::*;
use frontend::vfio_user::frame::{BrokenStream, MESSAGE_BYTES_MAX};
use frontend::vfio_user::{EndReason, Limits};
use guest::PATIENCE;

fn impatient() -> Limits {
    let soon = Duration::from_millis(200);
    Limits { frame_time: soon, send_time: soon, remote_time: soon, ..Limits::default() }
}

#[test]
fn a_message_size_that_makes_no_sense_ends_the_session() {
    let longest = u32::try_from(MESSAGE_BYTES_MAX).expect("small");
    for size in [0, 1, 15] {
        let running = Running::negotiated();
        running.client.send(&header(1, RESET, size, 0), &[]);
        assert_eq!(running.ends().reason, EndReason::Broken(BrokenStream::TooShort(size)));
    }
    for size in [longest + 1, u32::MAX] {
        let running = Running::negotiated();
        running.client.send(&header(1, RESET, size, 0), &[]);
        assert_eq!(running.ends().reason, EndReason::Broken(BrokenStream::TooLong(size)));
    }
}

#[test]
fn a_client_that_leaves_anywhere_in_a_message_ends_only_its_session() {
    let whole = message(1, REGION_WRITE, 0, &[range(0, 0, 4), vec![0; 4]].concat());
    for cut in 0..whole.len() {
        let running = Running::negotiated();
        running.client.send(&whole[..cut], &[]);
        let reason = if cut == 0 { EndReason::Disconnected } else { EndReason::Truncated };
        let calls = running.calls.clone();
        assert_eq!(running.leave().reason, reason, "after {cut} bytes");
        assert!(calls.lock().expect("not poisoned").is_empty());
    }
}

#[test]
fn descriptors_of_a_message_never_completed_are_closed() {
    let (end, other) = rustix::pipe::pipe().expect("pipe");
    let running = Running::negotiated();
    running.client.send(&header(1, DMA_MAP, 48, 0), &[other.as_fd()]);
    drop(other);
    running.leave();
    // Nobody holds the write end any more.
    assert_eq!(rustix::io::read(&end, &mut [0; 1]), Ok(0));
}

#[test]
fn descriptors_spread_over_a_message_are_counted_together() {
    let running = Running::negotiated();
    let fds: Vec<_> = (0..20).map(|_| event()).collect();
    let whole = message(1, SET_IRQS, 0, &u32s(&[20, 0x24, 2, 0, 20]));
    running.client.send(&whole[..20], &borrow(&fds[..10]));
    running.client.send(&whole[20..], &borrow(&fds[10..]));
    running.client.receive().expect("a reply").expect_error(EINVAL);
    let whole = message(1, SET_IRQS, 0, &u32s(&[20, 0x24, 2, 0, 4]));
    running.client.send(&whole[..20], &borrow(&fds[..2]));
    running.client.send(&whole[20..], &borrow(&fds[2..4]));
    assert!(running.client.receive().expect("a reply").is_ok());
    running.leave();
}

#[test]
fn a_message_that_comes_a_byte_at_a_time_is_cut_off_in_bounded_time() {
    let mut running = Running::start_with(impatient());
    running.client.negotiate();
    let whole = message(1, RESET, 0, &[]);
    for byte in &whole[..15] {
        if running.client.try_send(&[*byte], &[]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(running.ends().reason, EndReason::Slow);
}

#[test]
fn a_message_that_is_there_is_taken_however_late_we_come_to_look() {
    let mut running = Running::start_with(Limits { frame_time: Duration::ZERO, ..Limits::default() });
    running.client.negotiate();
    assert!(running.client.call(DMA_MAP, &dma_map(3, 0, 0x1000, 0x1000)).is_ok());
    running.leave();
}

#[test]
fn a_client_may_be_silent_between_messages_for_as_long_as_it_likes() {
    let mut running = Running::start_with(impatient());
    running.client.negotiate();
    std::thread::sleep(Duration::from_millis(600));
    assert!(running.client.call(RESET, &[]).is_ok());
    running.leave();
}

#[test]
fn a_message_in_pieces_is_put_together() {
    let running = Running::negotiated();
    let data = vec![3; 0x4000];
    let whole = message(1, REGION_WRITE, 0, &[range(0, 0, 0x4000), data].concat());
    for piece in whole.chunks(1000) {
        running.client.send(piece, &[]);
    }
    assert!(running.client.receive().expect("a reply").is_ok());
    running.leave();
}

#[test]
fn many_messages_in_one_piece_are_answered_in_order() {
    let running = Running::negotiated();
    let all: Vec<_> = (0..500).flat_map(|id| message(id, REGION_READ, 0, &range(0, 7, 4))).collect();
    running.client.send(&all, &[]);
    for id in 0..500 {
        assert_eq!(running.client.receive().expect("a reply").id, id);
    }
    running.leave();
}

#[test]
fn replies_never_read_end_the_session_in_bounded_time() {
    let mut running = Running::start_with(impatient());
    running.client.negotiate();
    let read = message(1, REGION_READ, 0, &range(0, 0, 0x4000));
    running.client.stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    for _ in 0..20_000 {
        if running.client.try_send(&read, &[]).is_err() {
            break;
        }
    }
    assert_eq!(running.ended().reason, EndReason::Unread);
}

#[test]
fn a_command_of_ours_that_is_never_read_ends_the_session_too() {
    let mut running = Running::start_with(impatient());
    running.client.negotiate();
    let data = vec![0; 1 << 20];
    assert!(running.remote.write(0, &data).is_err());
    assert_eq!(running.remote.write(0, &data), Err(frontend::vfio_user::Errno::NOTCONN));
    assert_eq!(running.ended().reason, EndReason::Unread);
}

#[test]
fn replies_nobody_asked_for_are_dropped_and_counted() {
    let mut running = Running::negotiated();
    let fd = event();
    for (id, command) in [(0, DMA_READ), (1, DMA_WRITE), (0xFFFF, RESET), (7, 0)] {
        running.client.send(&message(id, command, 1, &[0; 40]), &[fd.as_fd()]);
        running.client.send(&message(id, command, 0x21, &[]), &[]);
    }
    assert!(running.client.call(RESET, &[]).is_ok());
    let end = running.leave();
    assert_eq!((end.reason, end.unasked_replies), (EndReason::Disconnected, 8));
}

#[test]
fn a_command_sent_just_before_leaving_is_still_carried_out() {
    let running = Running::negotiated();
    let calls = running.calls.clone();
    running.client.send(&message(1, RESET, NO_REPLY, &[]), &[]);
    running.leave();
    assert_eq!(*calls.lock().expect("not poisoned"), ["reset"]);
}

#[test]
fn shutdown_ends_an_idle_session_at_once() {
    let running = Running::negotiated();
    running.shutdown.trigger();
    assert_eq!(running.ends().reason, EndReason::Shutdown);
}

#[test]
fn shutdown_ends_a_session_inside_a_message() {
    let running = Running::negotiated();
    running.client.send(&header(1, RESET, 100, 0), &[]);
    running.shutdown.trigger();
    assert_eq!(running.ends().reason, EndReason::Shutdown);
}

#[test]
fn a_device_that_panics_takes_its_session_down_and_no_thread_is_left_waiting() {
    use frontend::vfio_user::{Connection, Shutdown};
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let shutdown = Shutdown::new().expect("eventfd");
    let connection = Connection::new(theirs, Limits::default(), &shutdown);
    let mut client = Client::new(ours);
    let session = std::thread::spawn(move || {
        let mut device = Fake::new(); // without the remote memory that ASK_AT wants
        connection.serve(&mut device)
    });
    client.negotiate();
    client.send(&message(1, REGION_WRITE, 0, &[range(ASK_AT, 0, 8), vec![0; 8]].concat()), &[]);
    assert!(session.join().is_err());
    assert!(client.receive().is_none());
}
