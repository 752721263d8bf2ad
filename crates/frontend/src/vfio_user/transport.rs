//! Messages over a unix stream socket: whole, in bounded time, with their descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::channel::{Channel, Fault};
use super::device::{ClientFd, Deposit};
use super::frame::{FDS_MAX, HEADER_BYTES, Header};
use super::queue::Message;
use super::session::Reply;
use super::shutdown::Shutdown;

/// The connected socket. One thread receives, any thread sends.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: UnixStream,
    /// Held while a message is sent, so that messages never mix.
    sending: Mutex<()>,
    shutdown: Shutdown,
    frame_time: Duration,
    send_time: Duration,
    next_fd: AtomicU32,
}

impl Transport {
    pub(crate) fn new(
        socket: UnixStream,
        shutdown: Shutdown,
        frame_time: Duration,
        send_time: Duration,
    ) -> Self {
        Self { socket, sending: Mutex::new(()), shutdown, frame_time, send_time, next_fd: AtomicU32::new(0) }
    }

    /// Sends a whole message, in one `sendmsg` if the socket has room, with its descriptor on the first byte.
    fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + self.send_time;
        let (mut rest, mut fd) = (message, fd);
        while !rest.is_empty() {
            match self.send_some(rest, fd) {
                Ok(sent) => {
                    fd = fd.filter(|_| sent == 0);
                    rest = rest.get(sent..).unwrap_or(&[]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, Some(deadline))?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Fault::Closed),
                Err(errno) => return Err(Fault::Io(errno)),
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
    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> Result<(), Fault> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(&self.socket, flags), PollFd::new(&self.shutdown, PollFlags::IN)];
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Err(Fault::Slow),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) if !fds[1].revents().is_empty() => return Err(Fault::Shutdown),
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Fault::Io(errno)),
            }
        }
    }
}

impl Channel for Transport {
    /// Waits for the next message, however long; once begun it must be complete in the frame time.
    fn receive(&self) -> Result<Message, Fault> {
        let mut intake = Intake { transport: self, deadline: None, fds: Vec::new(), surplus_fds: false };
        let mut header = [0; HEADER_BYTES];
        intake.fill(&mut header)?;
        let header = Header::parse(&header).map_err(Fault::Broken)?;
        let mut payload = vec![0; header.payload_bytes];
        intake.fill(&mut payload)?;
        let number = |fd| ClientFd { id: self.next_fd.fetch_add(1, Ordering::Relaxed), fd };
        let fds = intake.fds.into_iter().map(number).collect();
        Ok(Message { seq: 0, header, payload, fds, surplus_fds: intake.surplus_fds })
    }

    /// Nobody outlives a process that is its client's own peer: there is nothing to deposit.
    fn answer(&self, _seq: u64, reply: Option<&Reply>, _deposit: Option<Deposit>) -> Result<(), Fault> {
        reply.map_or(Ok(()), |reply| self.send(&reply.bytes, reply.fd.as_ref().map(|fd| fd.as_fd())))
    }

    fn requests(&self, frames: Vec<Vec<u8>>) -> Result<(), Fault> {
        frames.iter().try_for_each(|frame| self.send(frame, None))
    }

    fn hang_up(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn is_shut_down(&self) -> bool {
        self.shutdown.is_triggered()
    }

    fn peer_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message on its way in.
struct Intake<'a> {
    transport: &'a Transport,
    /// None until the first byte is here.
    deadline: Option<Instant>,
    fds: Vec<OwnedFd>,
    surplus_fds: bool,
}

impl Intake<'_> {
    /// Reads exactly `buffer.len()` bytes, never one of the next message.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            self.transport.wait(PollFlags::IN, self.deadline)?;
            match self.receive_some(rest) {
                Ok(0) if self.deadline.is_none() => return Err(Fault::Closed),
                Ok(0) => return Err(Fault::Truncated),
                Ok(count) => {
                    filled += count;
                    self.deadline.get_or_insert_with(|| Instant::now() + self.transport.frame_time);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::CONNRESET) if self.deadline.is_none() => return Err(Fault::Closed),
                Err(Errno::CONNRESET) => return Err(Fault::Truncated),
                Err(errno) => return Err(Fault::Io(errno)),
            }
        }
        Ok(())
    }

    fn receive_some(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.transport.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        // The kernel closes what did not fit; what is drained and not kept is closed here.
        self.surplus_fds |= received.flags.contains(ReturnFlags::CTRUNC);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    if self.fds.len() < FDS_MAX {
                        self.fds.push(fd);
                    } else {
                        self.surplus_fds = true;
                    }
                }
            }
        }
        Ok(received.bytes)
    }
}
