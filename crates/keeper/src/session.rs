//! One client: its socket, its link to the engine, the commands that nobody has answered yet, and what was deposited.
//!
//! ```text
//!  client --intake--> unanswered (kept until answered) --> link outbox --> engine
//!  client <--outbox-- reply  <---- Answer: deposit, kept descriptors and reply change together
//! ```
//!
//! The client is slow alone: what it does not read waits here, in bounded memory, and for a bounded time.

use crate::limits::Limits;
use crate::protocol::Protocol;
use crate::requests::Requests;
use crate::store::Desk;
use link::LinkError;
use link::frame::{BadFrame, Frame, Intake, Step, Wait};
use link::outbox::{Outbox, Parcel};
use link::session::{self, Answer, ENGINE_FDS, FdId, ToKeeper};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// The most commands of a client that wait for their answers; further ones wait in its socket.
const COMMANDS_MAX: usize = 256;
/// The most bytes of them, beyond those of one command.
const COMMAND_BYTES_MAX: usize = 2 << 20;
/// The most descriptors of them, beyond those of one command.
const COMMAND_FDS_MAX: usize = 64;
/// The most bytes that wait for the client to read, beyond those of one message.
const REPLY_BYTES_MAX: usize = 2 << 20;
/// Frames taken from one socket before others have their turn.
const FRAMES_A_TURN: usize = 32;

/// Why a client's session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    Disconnected,
    Truncated,
    Broken(BadFrame),
    Slow,
    Unread,
    HangUp,
    Requests,
    Failed(Errno),
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disconnected => f.write_str("the client closed the connection"),
            Self::Truncated => f.write_str("the client closed the connection inside a message"),
            Self::Broken(bad) => bad.fmt(f),
            Self::Slow => f.write_str("the client took too long to complete a message"),
            Self::Unread => f.write_str("the client did not read what was sent to it"),
            Self::HangUp => f.write_str("the engine ended it"),
            Self::Requests => f.write_str("the client leaves too many requests unanswered"),
            Self::Failed(errno) => errno.fmt(f),
        }
    }
}

/// A client and what is known of it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) protocol: &'static Protocol,
    /// `None`: it has left, and the engine takes leave of it.
    pub(crate) client: Option<Client>,
    /// `None`: no engine has it.
    pub(crate) link: Option<LinkEnd>,
    pub(crate) unanswered: VecDeque<Pending>,
    pub(crate) next_seq: u64,
    pub(crate) next_fd: FdId,
    pub(crate) deposit: Option<Arc<Vec<u8>>>,
    pub(crate) kept: BTreeMap<FdId, Arc<OwnedFd>>,
    pub(crate) requests: Requests,
    /// Commands answered in all.
    pub(crate) answered: u64,
    /// Where it is written down, for a keeper after this one.
    pub(crate) desk: Option<Desk>,
    /// It is not as it is written down.
    pub(crate) changed: bool,
}

/// The client's socket.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) intake: Intake,
    pub(crate) outbox: Outbox,
    /// By when the frame that has begun must be complete.
    pub(crate) frame_by: Option<Instant>,
    /// By when the message that is being sent must be read.
    pub(crate) read_by: Option<Instant>,
    /// Nothing more is read from it; it goes when all is sent.
    pub(crate) ending: Option<EndReason>,
}

/// The keeper's end of the link to the engine.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    pub(crate) socket: OwnedFd,
    pub(crate) intake: Intake,
    pub(crate) outbox: Outbox,
    /// The engine was told that nothing more comes.
    pub(crate) ended: bool,
}

/// A command not yet answered.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) seq: u64,
    pub(crate) frame: Arc<Vec<u8>>,
    pub(crate) fd_first: FdId,
    pub(crate) fds: Vec<Arc<OwnedFd>>,
    pub(crate) surplus_fds: bool,
}

impl Client {
    pub(crate) fn new(socket: Arc<OwnedFd>, protocol: &'static Protocol) -> Self {
        let intake = Intake::new(&protocol.shape);
        Self { socket, intake, outbox: Outbox::default(), frame_by: None, read_by: None, ending: None }
    }

    /// It is gone, whether or not what it sent has been read.
    fn has_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        ready.is_ok() && fds[0].revents().intersects(gone)
    }
}

impl Session {
    /// With nobody at its end yet.
    pub(crate) fn new(id: u64, protocol: &'static Protocol) -> Self {
        Self {
            id,
            protocol,
            client: None,
            link: None,
            unanswered: VecDeque::new(),
            next_seq: 0,
            next_fd: 0,
            deposit: None,
            kept: BTreeMap::new(),
            requests: Requests::default(),
            answered: 0,
            desk: None,
            changed: false,
        }
    }

    /// Its place is not taken any more: whoever comes next waits for the engine's farewell instead of being turned away.
    pub(crate) fn is_leaving(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.ending.is_some() || client.has_hung_up())
    }

    // ---- the client's side

    /// The keeper has room for another command.
    fn has_room(&self) -> bool {
        let bytes: usize = self.unanswered.iter().map(|pending| pending.frame.len()).sum();
        let fds: usize = self.unanswered.iter().map(|pending| pending.fds.len()).sum();
        self.unanswered.len() < COMMANDS_MAX && bytes < COMMAND_BYTES_MAX && fds < COMMAND_FDS_MAX
    }

    /// Whether to look for input and for room at the client's socket.
    pub(crate) fn client_interest(&self) -> (bool, bool) {
        let Some(client) = &self.client else { return (false, false) };
        (client.ending.is_none() && self.has_room(), !client.outbox.is_empty())
    }

    /// Reads what the client sent, as far as there is room.
    pub(crate) fn client_readable(&mut self, now: Instant, limits: &Limits) {
        for _ in 0..FRAMES_A_TURN {
            if !self.has_room() {
                return;
            }
            let Some(client) = self.client.as_mut().filter(|client| client.ending.is_none()) else { return };
            let (step, peeked) = match self.desk {
                None => (client.intake.step(&client.socket, Wait::Never), 0),
                Some(_) => client.intake.peek(&client.socket),
            };
            if !client.intake.is_begun() {
                client.frame_by = None;
            }
            let step = self.looked_at(step, peeked);
            let Some(client) = self.client.as_mut() else { return };
            match step {
                // It is taken already.
                Step::Frame(frame) if frame.bytes.is_empty() => {}
                Step::Frame(frame) => self.take(frame),
                Step::Later if peeked > 0 => {}
                Step::Later => {
                    if client.intake.is_begun() {
                        client.frame_by.get_or_insert(now + limits.frame_time);
                    }
                    return;
                }
                Step::Closed => return self.end_client(EndReason::Disconnected),
                Step::Truncated => return self.end_client(EndReason::Truncated),
                Step::Bad(bad) => return self.end_client(EndReason::Broken(bad)),
                Step::Failed(errno) => return self.end_client(EndReason::Failed(errno)),
            }
        }
    }

    /// What was only looked at is written down, then taken out of the socket: see `store`.
    fn looked_at(&mut self, step: Step, peeked: usize) -> Step {
        if peeked == 0 {
            return step;
        }
        let step = match step {
            Step::Frame(frame) => {
                self.take(frame);
                Step::Frame(Frame::default())
            }
            other => other,
        };
        self.changed = true;
        if let Some(desk) = &mut self.desk {
            desk.came_bytes += peeked as u64;
        }
        self.save();
        let (Some(desk), Some(client)) = (&mut self.desk, &self.client) else { return step };
        match desk.tally.consume(client.socket.as_fd(), peeked) {
            Ok(()) => step,
            Err(errno) => Step::Failed(errno),
        }
    }

    fn take(&mut self, frame: Frame) {
        self.changed = true;
        if (self.protocol.is_reply)(&frame.bytes) {
            // Without an engine there is nobody who asked.
            if let Some(reply) = self.requests.answered(frame.bytes)
                && let Some(link) = &mut self.link
            {
                link.push(session::encode_reply(reply));
            }
            return;
        }
        let fds: Vec<_> = frame.fds.into_iter().map(Arc::new).collect();
        let count = FdId::try_from(fds.len()).unwrap_or(0);
        // 2^31 descriptors of one client: it would take years.
        if self.next_fd >= ENGINE_FDS - count {
            return self.end_client(EndReason::Failed(Errno::OVERFLOW));
        }
        let pending = Pending {
            seq: self.next_seq,
            frame: Arc::new(frame.bytes),
            fd_first: self.next_fd,
            fds,
            surplus_fds: frame.surplus_fds,
        };
        self.next_seq += 1;
        self.next_fd += count;
        if let Some(link) = &mut self.link {
            link.push(pending.encode());
        }
        self.unanswered.push_back(pending);
    }

    /// Nothing more is read from the client; it goes when what was answered is sent, or cannot be.
    pub(crate) fn end_client(&mut self, reason: EndReason) {
        if let Some(client) = &mut self.client
            && client.ending.is_none()
        {
            self.changed = true;
            client.ending = Some(reason);
            client.frame_by = None;
            client.intake = Intake::new(&self.protocol.shape);
        }
    }

    /// Sends to the client what waits. Call it after whatever may have put something in its outbox.
    pub(crate) fn flush_client(&mut self, now: Instant, limits: &Limits) {
        // Written down before the first byte of it goes out.
        self.save();
        let Some(client) = &mut self.client else { return };
        let messages = client.outbox.len();
        let flushed = match &mut self.desk {
            None => client.outbox.flush(&client.socket, Wait::Never),
            Some(desk) => {
                client.outbox.flush_by(|parts, fds| desk.tally.send(client.socket.as_fd(), parts, fds))
            }
        };
        match flushed {
            Ok(true) => client.read_by = None,
            Ok(false) => {
                if client.outbox.len() < messages || client.read_by.is_none() {
                    client.read_by = Some(now + limits.send_time);
                }
            }
            Err(errno) => {
                let reason = match errno {
                    Errno::PIPE | Errno::CONNRESET => EndReason::Disconnected,
                    errno => EndReason::Failed(errno),
                };
                client.outbox = Outbox::default();
                client.read_by = None;
                self.end_client(reason);
            }
        }
        self.let_go();
        self.save();
    }

    /// Closes the client's socket when nothing more will go through it, and tells the engine.
    fn let_go(&mut self) {
        let Some(client) = &self.client else { return };
        let Some(reason) = client.ending else { return };
        // After a mere end of its input the client may still read the answers it is owed.
        let owed = matches!(reason, EndReason::Disconnected) && !self.unanswered.is_empty();
        let gone = || client.has_hung_up_both();
        if client.outbox.is_empty() && (!owed || gone()) {
            tracing::info!(session = self.id, %reason, commands = self.answered, "client left");
            // Duplicates may be kept for a keeper after this one: the client hears of the end by this.
            let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
            self.client = None;
            self.changed = true;
        }
    }

    /// Until when something of this session must have happened, if there is such a time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let client = self.client.as_ref()?;
        [client.frame_by, client.read_by].into_iter().flatten().min()
    }

    /// Ends a client that keeps us waiting. What lies there, or has been taken, when we come to look is not late: we are.
    pub(crate) fn look_at_clock(&mut self, now: Instant, limits: &Limits) {
        self.client_readable(now, limits);
        self.flush_client(now, limits);
        let Some(client) = &mut self.client else { return };
        let late = |by: Option<Instant>| by.is_some_and(|by| by <= now);
        if late(client.read_by) {
            self.changed = true;
            client.outbox = Outbox::default();
            client.read_by = None;
            client.ending = Some(EndReason::Unread);
            client.frame_by = None;
        } else if late(client.frame_by) {
            self.end_client(EndReason::Slow);
        }
        self.let_go();
    }

    // ---- the engine's side

    /// Gives the session to an engine: the descriptor is its end of the link.
    pub(crate) fn attach(&mut self) -> Result<OwnedFd, LinkError> {
        let (ours, theirs) = session::pair()
            .map_err(|error| LinkError::Io(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let mut link = LinkEnd::new(ours);
        let kept: Vec<_> = self.kept.iter().map(|(id, fd)| (*id, Arc::clone(fd))).collect();
        for parcel in session::encode_restore(self.deposit.as_ref().map(|bytes| &bytes[..]), &kept)? {
            link.outbox.push(parcel)?;
        }
        for pending in &self.unanswered {
            link.push(pending.encode());
        }
        self.link = Some(link);
        Ok(theirs)
    }

    /// Whether to look for input and for room at the link.
    pub(crate) fn link_interest(&self) -> (bool, bool) {
        let Some(link) = &self.link else { return (false, false) };
        let waiting = self.client.as_ref().map_or(0, |client| client.outbox.len_bytes());
        (waiting < REPLY_BYTES_MAX, !link.outbox.is_empty())
    }

    /// Reads what the engine sent, as long as the client keeps up.
    ///
    /// # Errors
    /// The engine sent what no engine sends: it is broken.
    pub(crate) fn link_readable(&mut self) -> Result<Linked, LinkError> {
        for _ in 0..FRAMES_A_TURN {
            if !self.link_interest().0 {
                return Ok(Linked::Open);
            }
            match self.link_step()? {
                Some(Linked::Open) => {}
                Some(Linked::Closed) => return Ok(Linked::Closed),
                None => return Ok(Linked::Open),
            }
        }
        Ok(Linked::Open)
    }

    /// Reads all that a dead engine had sent, and lets go of the link.
    pub(crate) fn detach(&mut self) {
        loop {
            match self.link_step() {
                Ok(Some(Linked::Open)) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(session = self.id, %error, "the dead engine's last message");
                    break;
                }
            }
        }
        self.link = None;
        self.requests.forget_engine();
    }

    /// `None`: nothing more for now.
    fn link_step(&mut self) -> Result<Option<Linked>, LinkError> {
        let Some(link) = &mut self.link else { return Ok(None) };
        match link.intake.step(&link.socket, Wait::Never) {
            Step::Frame(frame) => {
                self.heard(session::parse_to_keeper(frame)?);
                Ok(Some(Linked::Open))
            }
            Step::Later => Ok(None),
            Step::Closed | Step::Truncated => Ok(Some(Linked::Closed)),
            Step::Bad(bad) => Err(bad.into()),
            Step::Failed(Errno::CONNRESET | Errno::PIPE) => Ok(Some(Linked::Closed)),
            Step::Failed(errno) => Err(errno.into()),
        }
    }

    fn heard(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Answer(answer) => self.answer(answer),
            ToKeeper::Request { frame } => self.request(frame),
            ToKeeper::HangUp => self.end_client(EndReason::HangUp),
        }
    }

    /// The atomic step.
    fn answer(&mut self, answer: Answer) {
        self.changed = true;
        let Some(at) = self.unanswered.iter().position(|pending| pending.seq == answer.seq) else {
            tracing::error!(
                session = self.id,
                seq = answer.seq,
                "the engine answered what nobody asked; dropped"
            );
            return;
        };
        let pending = self.unanswered.remove(at);
        self.answered += 1;
        if let Some(deposit) = answer.deposit {
            let mut at_hand = std::mem::take(&mut self.kept);
            if let Some(pending) = &pending {
                at_hand.extend((pending.fd_first..).zip(pending.fds.iter().cloned()));
            }
            at_hand.extend((answer.fds.first..).zip(answer.fds.fds.iter().cloned()));
            for id in deposit.keep {
                match at_hand.get(&id) {
                    Some(fd) => _ = self.kept.insert(id, Arc::clone(fd)),
                    None => tracing::error!(
                        session = self.id,
                        id,
                        "the engine keeps a descriptor that is not there"
                    ),
                }
            }
            self.deposit = Some(Arc::new(deposit.bytes));
        }
        let fds = answer.fds.fds.into_iter().take(answer.fds.for_client).collect();
        self.send_client(Parcel::whole(answer.reply, fds));
    }

    fn request(&mut self, frame: Vec<u8>) {
        self.changed = true;
        let sound = frame.get(..self.protocol.shape.header_bytes).is_some_and(|header| {
            let payload_bytes = (self.protocol.shape.payload_bytes)(header);
            payload_bytes.is_ok_and(|bytes| bytes + self.protocol.shape.header_bytes == frame.len())
        });
        if !sound || !self.protocol.has_ids {
            tracing::error!(session = self.id, "the engine sent a request that is none; dropped");
            return;
        }
        let wants_reply = !(self.protocol.wants_no_reply)(&frame);
        match self.requests.asked(frame, wants_reply) {
            Some(frame) => self.send_client(Parcel::whole(frame, Vec::new())),
            None => self.end_client(EndReason::Requests),
        }
    }

    fn send_client(&mut self, parcel: Parcel) {
        if let Some(client) = &mut self.client
            && client.outbox.push(parcel).is_err()
        {
            tracing::error!(session = self.id, "the engine sent more descriptors than a message carries");
        }
    }

    /// Sends to the engine what waits, and the end when the client has left and all is sent.
    pub(crate) fn flush_link(&mut self) -> Result<(), LinkError> {
        let left = self.client.as_ref().is_none_or(|client| client.ending.is_some());
        let Some(link) = &mut self.link else { return Ok(()) };
        match link.outbox.flush(&link.socket, Wait::Never) {
            Ok(true) if left && !link.ended => {
                link.ended = true;
                let _ = rustix::net::shutdown(&link.socket, rustix::net::Shutdown::Write);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whether the engine still has its end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linked {
    Open,
    Closed,
}

impl Client {
    /// Neither reads nor writes any more.
    fn has_hung_up_both(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

impl LinkEnd {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, intake: Intake::new(&session::SHAPE), outbox: Outbox::default(), ended: false }
    }

    fn push(&mut self, parcel: Result<Parcel, LinkError>) {
        let pushed = parcel.and_then(|parcel| self.outbox.push(parcel));
        // Frames of clients are smaller than what the link carries: checked where they come in.
        if let Err(error) = pushed {
            tracing::error!(%error, "a message to the engine is lost");
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Pending {
    fn encode(&self) -> Result<Parcel, LinkError> {
        session::encode_command(self.seq, &self.frame, self.fd_first, &self.fds, self.surplus_fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::VFIO_USER;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

    /// A session, and its client's end.
    fn session() -> (Session, OwnedFd) {
        let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, kind.2, None).expect("a pair");
        let mut session = Session::new(1, &VFIO_USER);
        session.client = Some(Client::new(Arc::new(ours), &VFIO_USER));
        (session, theirs)
    }

    /// A command with as many bytes of data.
    fn command(bytes: u32) -> Vec<u8> {
        let header = [&[1, 0, 2, 0][..], &(16 + bytes).to_le_bytes(), &[0; 8]].concat();
        [header, vec![7; bytes as usize]].concat()
    }

    #[test]
    fn a_client_whose_message_lay_there_whole_when_the_keeper_came_late_is_not_ended() {
        let (limits, begun) = (Limits::default(), Instant::now());
        let late = begun + 2 * limits.frame_time;
        for is_whole in [true, false] {
            let (mut session, client) = session();
            let command = command(100);
            send(&client, &command[..20], SendFlags::empty()).expect("room");
            session.client_readable(begun, &limits);
            assert_eq!(session.deadline(), Some(begun + limits.frame_time));
            let rest = if is_whole { 20..command.len() } else { 20..30 };
            send(&client, &command[rest], SendFlags::empty()).expect("room");
            session.look_at_clock(late, &limits);
            assert_eq!(session.client.is_some(), is_whole);
            assert_eq!((session.unanswered.len(), session.deadline()), (usize::from(is_whole), None));
        }
    }

    #[test]
    fn a_client_that_had_made_room_when_the_keeper_came_late_is_not_ended() {
        let (limits, begun) = (Limits::default(), Instant::now());
        for reads in [true, false] {
            let (mut session, client) = session();
            if let Some(client) = &mut session.client {
                client.outbox.push(Parcel::whole(vec![1; 300 << 10], Vec::new())).expect("room");
            }
            session.flush_client(begun, &limits);
            assert_eq!(session.deadline(), Some(begun + limits.send_time));
            let mut data = vec![0; 64 << 10];
            while reads && recv(&client, &mut data, RecvFlags::DONTWAIT).is_ok() {}
            session.look_at_clock(begun + 2 * limits.send_time, &limits);
            assert_eq!((session.client.is_some(), session.deadline()), (reads, None));
        }
    }
}
