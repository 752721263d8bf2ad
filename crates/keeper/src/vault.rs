//! Descriptors that wait in a socket for whoever reads it: they outlive whoever put them there, as long as somebody has the
//! socket. A packet is the ids of its descriptors, four little-endian bytes each.

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most descriptors one `sendmsg` carries (Linux, SCM_MAX_FD).
pub(crate) const PACKET_FDS_MAX: usize = 253;
/// Bytes of packets that may wait; the kernel gives at most what the system allows.
const BUFFER_BYTES: usize = 8 << 20;

/// Both ends.
#[derive(Debug)]
pub(crate) struct Vault {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
}

impl Vault {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (read, write) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let _ = set_socket_send_buffer_size(&write, BUFFER_BYTES);
        Ok(Self { read, write })
    }

    /// Puts descriptors in, at the end.
    ///
    /// # Errors
    /// EAGAIN: it is full. ETOOMANYREFS: more are under way than this user may have (RLIMIT_NOFILE).
    pub(crate) fn put(&self, entries: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
        for packet in entries.chunks(PACKET_FDS_MAX) {
            let ids: Vec<u8> = packet.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
            let fds: Vec<BorrowedFd<'_>> = packet.iter().map(|(_, fd)| *fd).collect();
            send(self.write.as_fd(), &ids, &fds)?;
        }
        Ok(())
    }
}

fn send(to: BorrowedFd<'_>, ids: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS.into());
    }
    sendmsg(to, &[IoSlice::new(ids)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// The packet at the head; `None`: nothing (more) is there. With `stays` it stays there.
///
/// # Errors
/// The socket is none of this kind; no descriptor is left in this process.
pub(crate) fn take(from: BorrowedFd<'_>, stays: bool) -> io::Result<Option<Vec<(u32, OwnedFd)>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut ids = [0; PACKET_FDS_MAX * 4];
    let mut flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    flags.set(RecvFlags::PEEK, stays);
    let received = match recvmsg(from, &mut [IoSliceMut::new(&mut ids)], &mut control, flags) {
        Err(Errno::AGAIN) => return Ok(None),
        other => other?,
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let ids = ids.get(..received.bytes).unwrap_or(&[]).as_chunks::<4>().0;
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) || ids.len() != fds.len() {
        return Err(io::Error::other("descriptors are missing: is RLIMIT_NOFILE too low?"));
    }
    Ok(Some(ids.iter().map(|id| u32::from_le_bytes(*id)).zip(fds).collect()))
}

/// Puts the packet at the head at the end as well; it is taken away from the head only when it is there. So a reader that is
/// killed at any moment leaves each descriptor there once or twice. `None`: nothing is there.
pub(crate) fn turn(vault: &Vault) -> io::Result<Option<Vec<(u32, OwnedFd)>>> {
    let Some(entries) = take(vault.read.as_fd(), true)? else { return Ok(None) };
    let borrowed: Vec<_> = entries.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
    vault.put(&borrowed)?;
    take(vault.read.as_fd(), false)?;
    Ok(Some(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn named(name: &str) -> OwnedFd {
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        rustix::io::write(&fd, name.as_bytes()).expect("written");
        fd
    }

    fn content(fd: &OwnedFd) -> String {
        let mut bytes = [0; 16];
        let count = rustix::io::pread(fd, &mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn what_was_put_in_comes_out_with_its_ids_when_the_writer_is_gone() {
        let vault = Vault::new().expect("a vault");
        let fds: Vec<OwnedFd> = (0..600).map(|number| named(&number.to_string())).collect();
        let entries: Vec<_> = (0..).zip(fds.iter().map(|fd| fd.as_fd())).collect();
        vault.put(&entries).expect("room");
        drop(fds);
        let Vault { read, write } = vault;
        drop(write);
        let mut out = BTreeMap::new();
        while let Some(more) = take(read.as_fd(), false).expect("sound") {
            out.extend(more);
        }
        assert_eq!(out.len(), 600);
        assert!(out.iter().all(|(id, fd)| content(fd) == id.to_string()));
    }

    #[test]
    fn a_full_turn_leaves_everything_where_it_was() {
        let vault = Vault::new().expect("a vault");
        for number in 0..20 {
            vault.put(&[(number, named(&number.to_string()).as_fd())]).expect("room");
        }
        for _ in 0..3 {
            let ids: Vec<u32> =
                (0..20).map(|_| turn(&vault).expect("sound").expect("a packet")[0].0).collect();
            assert_eq!(ids, (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_vault_that_is_full_says_so() {
        let vault = Vault::new().expect("a vault");
        let fd = named("x");
        let full = (0..100_000).find_map(|number| vault.put(&[(number, fd.as_fd())]).err());
        assert_eq!(full.expect("bounded").kind(), io::ErrorKind::WouldBlock);
    }
}
