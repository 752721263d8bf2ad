//! Messages over the unix socket (QEMU's `docs/interop/vhost-user.rst`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::{Error, Result};

const HEADER_BYTES: usize = 12;
const FDS_MAX: usize = 32;
const PAYLOAD_BYTES_MAX: usize = 1 << 16;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Requests of a front-end.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// A connection to a back-end.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Duration,
    /// REPLY_ACK is agreed on: every message is answered.
    acknowledged: bool,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(UnixStream::connect(path)?))
    }

    /// Takes a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Client { stream, timeout: crate::PATIENCE, acknowledged: false }
    }

    /// How long an answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Closes the connection.
    pub fn hang_up(&self) {
        let _closed_already = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the back-end has closed the connection.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        crate::vfio_user::hung_up(&self.stream)
    }

    /// From now on every message asks for an acknowledgement.
    pub fn use_acknowledgements(&mut self) {
        self.acknowledged = true;
    }

    /// Sends a message; with acknowledgements in use, waits for one.
    ///
    /// # Errors
    /// [`Error::Refused`]; the connection's.
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let flags = if self.acknowledged { VERSION | NEED_REPLY } else { VERSION };
        self.send(request, flags, payload, fds)?;
        if !self.acknowledged {
            return Ok(());
        }
        let (answer, _) = self.receive(request)?;
        match u64_at(&answer, 0) {
            Some(0) => Ok(()),
            Some(errno) => Err(Error::Refused {
                command: u16::try_from(request).unwrap_or(u16::MAX),
                errno: u32::try_from(errno).unwrap_or(u32::MAX),
            }),
            None => Err(Error::Protocol(format!("an acknowledgement of {} bytes", answer.len()))),
        }
    }

    /// Sends a message that has an answer of its own.
    ///
    /// # Errors
    /// The connection's.
    pub fn ask(&self, request: u32, payload: &[u8]) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.send(request, VERSION, payload, &[])?;
        self.receive(request)
    }

    /// An answer that is one number.
    ///
    /// # Errors
    /// The connection's.
    pub fn ask_number(&self, request: u32) -> Result<u64> {
        let (answer, _) = self.ask(request, &[])?;
        u64_at(&answer, 0).ok_or_else(|| Error::Protocol(format!("a number of {} bytes", answer.len())))
    }

    /// Sends a message with any flags.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let size = u32::try_from(payload.len()).expect("a short payload");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        [request, flags, size].iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// The connection's.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Error::Io(std::io::ErrorKind::InvalidInput.into()));
            }
            let rest = [IoSlice::new(&bytes[sent..])];
            match sendmsg(&self.stream, &rest, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives the answer to `request`.
    ///
    /// # Errors
    /// The connection's; [`Error::Protocol`] for an answer to something else.
    pub fn receive(&self, request: u32) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER_BYTES];
        self.receive_exact(&mut header, &mut fds)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (answered, flags, size) = (word(0), word(4), word(8) as usize);
        if answered != request || flags != VERSION | REPLY || size > PAYLOAD_BYTES_MAX {
            let what = format!("{answered} with flags {flags:#x} and {size} bytes answers {request}");
            return Err(Error::Protocol(what));
        }
        let mut payload = vec![0; size];
        self.receive_exact(&mut payload, &mut fds)?;
        Ok((payload, fds))
    }

    fn receive_exact(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.wait()?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut target = [IoSliceMut::new(&mut bytes[filled..])];
            let count = match recvmsg(&self.stream, &mut target, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if count == 0 {
                return Err(Error::Closed);
            }
            filled += count;
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let timeout = Timespec::try_from(self.timeout).map_err(|_| Error::Timeout(self.timeout))?;
        loop {
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(Error::Timeout(self.timeout)),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The number at an offset.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes)
}

/// Two halves, as a vring state has them.
pub(super) fn state(index: u32, num: u32) -> [u8; 8] {
    (u64::from(num) << 32 | u64::from(index)).to_le_bytes()
}
