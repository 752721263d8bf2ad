//! Bytes and file descriptors over the unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::frame::{Frame, HEADER_BYTES, Header};
use crate::{Error, Result};

/// The kernel's own limit of file descriptors a message (SCM_MAX_FD).
const FDS_MAX: usize = 253;
/// No reply this client asks for is longer.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Sends all of `bytes`; the fds go with the first of them.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut sent = 0;
    while sent < bytes.len() || bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::Io(io::ErrorKind::InvalidInput.into()));
        }
        match sendmsg(stream, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) if bytes.is_empty() => return Ok(()),
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Err(Error::Closed),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Receives one whole message; `timeout` is for each wait.
pub(super) fn recv(stream: &UnixStream, timeout: Duration) -> Result<Frame> {
    let mut fds = Vec::new();
    let mut bytes = [0; HEADER_BYTES];
    recv_exact(stream, &mut bytes, &mut fds, timeout)?;
    let header = Header::from_bytes(&bytes);
    let size = header.size as usize;
    if !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&size) {
        return Err(Error::Protocol(format!("a message of {size} bytes")));
    }
    let mut payload = vec![0; size - HEADER_BYTES];
    recv_exact(stream, &mut payload, &mut fds, timeout)?;
    Ok(Frame { header, payload, fds })
}

fn recv_exact(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    timeout: Duration,
) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        if !readable(stream, timeout)? {
            return Err(Error::Timeout(timeout));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut target = [IoSliceMut::new(&mut bytes[filled..])];
        let count = match recvmsg(stream, &mut target, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => 0,
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

/// Waits until there is something to read (or the peer has gone).
pub(super) fn readable(fd: impl AsFd, timeout: Duration) -> Result<bool> {
    let wait = Timespec::try_from(timeout).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the other end has closed a socket.
pub(crate) fn hung_up(stream: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], Some(&now)).is_ok_and(|ready| ready > 0)
}
