//! A session over a plain unix socket: one thread that takes a message, carries it out and answers it.
//!
//! With a keeper there is no such thread: whoever has the session link gives [`Session`] the frames itself.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::device::Blk;
use super::frame::{BrokenStream, ClientFd, FDS_MAX, FdId, HEADER_BYTES, Header, Message, Refusal};
use super::session::{DEVICE_FDS, Reply, Session};
use crate::vfio_user::Shutdown;

/// What one client may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a message may take from its first byte to its last.
    pub frame_time: Duration,
    /// How long a reply may wait for room in the socket.
    pub send_time: Duration,
    /// The most log lines about the client's faults; those beyond are counted.
    pub log_lines_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { frame_time: five, send_time: five, log_lines_max: 20 }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The client closed the connection.
    #[error("the client closed the connection")]
    Disconnected,
    /// The client closed the connection inside a message.
    #[error("the client closed the connection inside a message")]
    Truncated,
    /// A message's size makes no sense.
    #[error("{0}")]
    Broken(BrokenStream),
    /// A message could not be carried out, and there was no other way to tell the client.
    #[error("a message could not be carried out: {0}")]
    Refused(Refusal),
    /// The client took too long to complete a message.
    #[error("the client took too long to complete a message")]
    Slow,
    /// The client did not read what was sent to it.
    #[error("the client did not read its replies")]
    Unread,
    /// The shutdown handle was triggered.
    #[error("shut down")]
    Shutdown,
    /// The socket failed.
    #[error("{0}")]
    Failed(Errno),
}

/// How a session went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// Why it ended.
    pub reason: EndReason,
    /// Messages carried out or refused.
    pub messages: u64,
    /// Messages refused.
    pub refused: u64,
    /// Rings that the device still runs: the caller stops them.
    pub running: Vec<u16>,
}

/// Serves one connected client until it leaves or `shutdown` is triggered. When this returns, the socket is hung up and no
/// descriptor of the client is left in the session. What the device was given is the device's: the caller stops the rings
/// that run, and drops memory and eventfds.
pub fn serve(stream: UnixStream, blk: &mut dyn Blk, limits: &Limits, shutdown: &Shutdown) -> SessionEnd {
    let mut wire = Wire { socket: stream, shutdown, limits, next_fd: 0 };
    let mut session = Session::new(blk);
    let (mut messages, mut refused, mut lines) = (0, 0, 0);
    let reason = loop {
        let message = match wire.receive() {
            Ok(message) => message,
            Err(reason) => break reason,
        };
        messages += 1;
        let request = message.header.request;
        let outcome = session.handle(message, blk);
        if let Some(refusal) = outcome.refused {
            refused += 1;
            if lines < limits.log_lines_max {
                lines += 1;
                tracing::warn!(request = request.0, %refusal, "vhost-user message refused");
            }
        }
        if let Some(Err(reason)) = outcome.reply.map(|reply| wire.send(&reply)) {
            break reason;
        }
        if outcome.close {
            break outcome.refused.map_or(EndReason::Failed(Errno::IO), EndReason::Refused);
        }
    };
    let _ = wire.socket.shutdown(std::net::Shutdown::Both);
    tracing::info!(%reason, messages, refused, "vhost-user session ended");
    SessionEnd { reason, messages, refused, running: session.running() }
}

struct Wire<'a> {
    socket: UnixStream,
    shutdown: &'a Shutdown,
    limits: &'a Limits,
    next_fd: FdId,
}

/// A message on its way in.
#[derive(Default)]
struct Intake {
    /// None until the first byte is here.
    deadline: Option<Instant>,
    fds: Vec<ClientFd>,
    surplus_fds: bool,
}

impl Wire<'_> {
    fn receive(&mut self) -> Result<Message, EndReason> {
        let mut intake = Intake::default();
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, &mut intake)?;
        let header = Header::parse(&header).map_err(EndReason::Broken)?;
        let mut payload = vec![0; header.payload_bytes];
        self.fill(&mut payload, &mut intake)?;
        Ok(Message { header, payload, fds: intake.fds, surplus_fds: intake.surplus_fds })
    }

    /// Reads exactly `buffer.len()` bytes, never one of the next message.
    fn fill(&mut self, buffer: &mut [u8], intake: &mut Intake) -> Result<(), EndReason> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            self.wait(PollFlags::IN, intake.deadline, EndReason::Slow)?;
            match self.receive_some(rest, intake) {
                Ok(0) | Err(Errno::CONNRESET) if intake.deadline.is_none() => {
                    return Err(EndReason::Disconnected);
                }
                Ok(0) | Err(Errno::CONNRESET) => return Err(EndReason::Truncated),
                Ok(count) => {
                    filled += count;
                    intake.deadline.get_or_insert_with(|| Instant::now() + self.limits.frame_time);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(EndReason::Failed(errno)),
            }
        }
        Ok(())
    }

    fn receive_some(&mut self, buffer: &mut [u8], intake: &mut Intake) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        // The kernel closes what did not fit; what is drained and not kept is closed here.
        intake.surplus_fds |= received.flags.contains(ReturnFlags::CTRUNC);
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(fds) = message else { continue };
            for fd in fds {
                if intake.fds.len() < FDS_MAX {
                    intake.fds.push(ClientFd { id: self.next_fd, fd });
                    // Names matter only where a keeper keeps descriptors; here they may come again after 2^31.
                    self.next_fd = (self.next_fd + 1) % DEVICE_FDS;
                } else {
                    intake.surplus_fds = true;
                }
            }
        }
        Ok(received.bytes)
    }

    /// Sends a whole message, in one `sendmsg` if the socket has room, with its descriptor on the first byte.
    fn send(&self, reply: &Reply) -> Result<(), EndReason> {
        let deadline = Some(Instant::now() + self.limits.send_time);
        let (mut rest, mut fd) = (reply.bytes.as_slice(), reply.fd.as_ref().map(|fd| fd.as_fd()));
        while !rest.is_empty() {
            match self.send_some(rest, fd) {
                Ok(sent) => {
                    fd = fd.filter(|_| sent == 0);
                    rest = rest.get(sent..).unwrap_or(&[]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline, EndReason::Unread)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(EndReason::Disconnected),
                Err(errno) => return Err(EndReason::Failed(errno)),
            }
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds
            && !control.push(SendAncillaryMessage::ScmRights(fds))
        {
            return Err(Errno::NOBUFS);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)
    }

    /// Waits until the socket is ready, the deadline has passed or we are told to stop. What is there when we come to look is not late: we are.
    fn wait(&self, flags: PollFlags, deadline: Option<Instant>, late: EndReason) -> Result<(), EndReason> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(&self.socket, flags), PollFd::new(self.shutdown, PollFlags::IN)];
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Err(late),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) if !fds[1].revents().is_empty() => return Err(EndReason::Shutdown),
                Ok(_) => return Ok(()),
                Err(errno) => return Err(EndReason::Failed(errno)),
            }
        }
    }
}
