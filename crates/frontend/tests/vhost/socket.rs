//! The same over a plain socket: clients that stall, leave or never read (hostile inputs, rows 16 and 19).

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use frontend::vfio_user::Shutdown;
use frontend::vhost_user::{BrokenStream, EndReason, FDS_MAX, Limits, SessionEnd, serve};
use guest::PATIENCE;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::harness::*;

struct Served {
    socket: UnixStream,
    server: JoinHandle<SessionEnd>,
    shutdown: Shutdown,
}

fn impatient() -> Limits {
    let soon = Duration::from_millis(200);
    Limits { frame_time: soon, send_time: soon, ..Limits::default() }
}

fn patient() -> Limits {
    Limits { frame_time: PATIENCE, send_time: PATIENCE, ..Limits::default() }
}

impl Served {
    fn new() -> Self {
        Self::with(patient())
    }

    fn with(limits: Limits) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("pair");
        let shutdown = Shutdown::new().expect("eventfd");
        let stop = shutdown.clone();
        let server = std::thread::spawn(move || serve(theirs, &mut Fake::new(), &limits, &stop));
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { socket, server, shutdown }
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(bytes.len()));
    }

    fn tell(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(payload.len()).expect("short");
        self.send(&[&header(request, flags, size)[..], payload].concat(), fds);
    }

    fn answer(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.socket.read_exact(&mut head).expect("a reply");
        let size = u32::from_le_bytes(head[8..].try_into().expect("4 bytes"));
        let mut payload = vec![0; size as usize];
        self.socket.read_exact(&mut payload).expect("a payload");
        payload
    }

    fn ends(self) -> SessionEnd {
        self.server.join().expect("no panic")
    }

    fn leave(self) -> SessionEnd {
        drop(self.socket);
        self.server.join().expect("no panic")
    }
}

#[test]
fn a_client_is_served_from_the_first_message_to_a_running_ring() {
    let mut served = Served::new();
    served.tell(GET_FEATURES, 1, &[], &[]);
    assert_ne!(u64_of(&served.answer()) & PROTOCOL, 0);
    served.tell(SET_PROTOCOL_FEATURES, 1, &u64s(&[ALL_PROTOCOL]), &[]);
    served.tell(SET_FEATURES, 9, &u64s(&[VERSION_1 | PROTOCOL]), &[]);
    assert_eq!(u64_of(&served.answer()), 0);
    served.tell(SET_MEM_TABLE, 9, &table(&[FIRST]), &[memfd(REGION_BYTES).as_fd()]);
    served.tell(SET_VRING_NUM, 9, &u32s(&[0, 64]), &[]);
    served.tell(SET_VRING_ADDR, 9, &good_addr(0), &[]);
    served.tell(SET_VRING_KICK, 9, &u64s(&[0]), &[event().as_fd()]);
    served.tell(SET_VRING_ENABLE, 9, &u32s(&[0, 1]), &[]);
    (0..5).for_each(|_| assert_eq!(u64_of(&served.answer()), 0));
    let end = served.leave();
    assert_eq!((end.reason, end.messages, end.refused), (EndReason::Disconnected, 8, 0));
    assert_eq!(end.running, [0], "the caller stops it");
}

#[test]
fn a_refusal_that_cannot_be_told_ends_the_session_and_says_why() {
    let served = Served::new();
    served.tell(SET_VRING_NUM, 1, &u32s(&[99, 1]), &[]);
    let end = served.ends();
    let EndReason::Refused(refusal) = end.reason else { panic!("{:?}", end.reason) };
    assert!(refusal.to_string().contains("there is no such ring"), "{refusal}");
}

#[test]
fn a_client_that_leaves_anywhere_in_a_message_ends_only_its_session() {
    let whole = [&header(SET_FEATURES, 1, 8)[..], &u64s(&[VERSION_1])].concat();
    for cut in 0..whole.len() {
        let served = Served::new();
        served.socket.shutdown(std::net::Shutdown::Read).expect("half");
        if cut > 0 {
            served.send(&whole[..cut], &[]);
        }
        let reason = if cut == 0 { EndReason::Disconnected } else { EndReason::Truncated };
        assert_eq!(served.leave().reason, reason, "after {cut} bytes");
    }
}

#[test]
fn a_message_of_one_byte_a_second_is_given_up() {
    let served = Served::with(impatient());
    served.send(&header(SET_FEATURES, 1, 8)[..5], &[]);
    assert_eq!(served.ends().reason, EndReason::Slow);
}

#[test]
fn a_message_that_is_there_is_taken_however_late_we_come_to_look() {
    let mut served = Served::with(Limits { frame_time: Duration::ZERO, ..patient() });
    served.tell(SET_FEATURES, 1, &u64s(&[VERSION_1 | PROTOCOL]), &[]);
    served.tell(GET_QUEUE_NUM, 1, &[], &[]);
    assert_ne!(u64_of(&served.answer()), 0);
}

#[test]
fn a_client_that_reads_no_reply_is_given_up() {
    let mut served = Served::with(impatient());
    let question = header(GET_QUEUE_NUM, 1, 0);
    served.socket.set_write_timeout(Some(PATIENCE)).expect("timeout");
    while served.socket.write_all(&question).is_ok() {}
    assert_eq!(served.ends().reason, EndReason::Unread);
}

#[test]
fn a_length_that_makes_no_sense_ends_the_session() {
    let served = Served::new();
    served.send(&header(GET_FEATURES, 1, u32::MAX), &[]);
    assert_eq!(served.ends().reason, EndReason::Broken(BrokenStream::TooLong(u32::MAX)));
}

#[test]
fn surplus_descriptors_are_closed_and_their_message_is_refused() {
    let mut served = Served::new();
    served.tell(SET_PROTOCOL_FEATURES, 1, &u64s(&[REPLY_ACK]), &[]);
    let (read, write) = rustix::pipe::pipe().expect("pipe");
    let many: Vec<BorrowedFd<'_>> = (0..FDS_MAX + 3).map(|_| write.as_fd()).collect();
    served.tell(SET_OWNER, 9, &[], &many);
    assert_eq!(u64_of(&served.answer()), EINVAL);
    drop(many);
    drop(write);
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    served.tell(SET_OWNER, 9, &[], &[]);
    assert_eq!(u64_of(&served.answer()), 0);
}

#[test]
fn a_session_ends_when_it_is_told_to() {
    let served = Served::new();
    served.shutdown.trigger();
    assert_eq!(served.ends().reason, EndReason::Shutdown);
}
