//! One `sendmsg`, one `recvmsg`, with descriptors.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most descriptors one `sendmsg` carries (Linux, SCM_MAX_FD).
pub(crate) const SCM_FDS_MAX: usize = 253;

/// Whether a call waits for the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Block,
    /// Not at all.
    Never,
}

/// Sends what the socket takes; the descriptors go with the first byte.
pub(crate) fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, wait == Wait::Never);
    loop {
        match sendmsg(&socket, parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What one `recvmsg` brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    /// The message did not fit (SEQPACKET), or descriptors were lost.
    pub(crate) cut: bool,
}

/// Receives into `buffer`; descriptors are added to `fds`, close-on-exec.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    wait: Wait,
) -> Result<Received, Errno> {
    receive_with(socket, buffer, fds, wait, RecvFlags::empty())
}

/// As [`receive`] without waiting; what is received stays in the socket, too (descriptors are duplicates).
pub(crate) fn peek(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Received, Errno> {
    receive_with(socket, buffer, fds, Wait::Never, RecvFlags::PEEK)
}

fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    wait: Wait,
    more: RecvFlags,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC | more;
    flags.set(RecvFlags::DONTWAIT, wait == Wait::Never);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    Ok(Received {
        bytes: received.bytes,
        cut: received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC),
    })
}
