//! How many bytes went through a socket, known even when this process is killed in the middle of a system call.
//!
//! `sendmmsg` and `recvmmsg` write how much went through into the message's header, in the same system call; here the header lies
//! in a memfd. SIGKILL takes effect between system calls only, so whoever has the memfd afterwards knows the count to the
//! byte. Two slots take turns: a count is added up in the slot that is not current, and that one becomes current by one store.
#![expect(unsafe_code, reason = "the kernel writes into shared memory")]
// UNSAFETY: `page` is one mapping of `PAGE_BYTES` of a memfd sealed against shrinking, from `map` to `drop`; only this object (one
// thread at a time: its methods that write take `&mut self`) and the kernel, inside the calls here, touch it. All accesses are
// volatile or by the kernel; no reference into it is ever made. A message's header points to locals that outlive the call.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

/// One count, as of the last turn, and the header of the message under way.
#[repr(C)]
struct Slot {
    base: u64,
    message: libc::mmsghdr,
}

/// Bytes one way.
#[repr(C)]
struct Way {
    current: u64,
    slots: [Slot; 2],
}

const _: () = assert!(2 * size_of::<Way>() <= PAGE_BYTES);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
}

/// The counts of one socket.
#[derive(Debug)]
pub(crate) struct Tally {
    page: NonNull<u8>,
    pub(crate) fd: Arc<OwnedFd>,
}

// SAFETY: the mapping belongs to this object alone and to no thread in particular.
unsafe impl Send for Tally {}

impl Tally {
    /// At zero.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("godwit-tally", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, PAGE_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(Arc::new(fd))
    }

    /// Of a keeper that is gone.
    pub(crate) fn map(fd: Arc<OwnedFd>) -> io::Result<Self> {
        let sealed = rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK);
        if !sealed || rustix::fs::fstat(&fd)?.st_size != PAGE_BYTES as i64 {
            return Err(io::Error::other("a count's memory is none"));
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a file that has all of it and cannot shrink.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, flags, fd.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // The kernel must not have to wait for the page when it counts. Without the right to, it hardly ever will.
        // SAFETY: our own mapping.
        unsafe { libc::mlock(page, PAGE_BYTES) };
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page, fd })
    }

    fn way(&self, direction: Direction) -> NonNull<Way> {
        let at = match direction {
            Direction::Out => 0,
            Direction::In => size_of::<Way>(),
        };
        // SAFETY: both ways lie inside the page (asserted above).
        unsafe { self.page.add(at) }.cast()
    }

    fn slot(&self, direction: Direction, number: u64) -> NonNull<Slot> {
        let at = offset_of!(Way, slots) + usize::from(number & 1 != 0) * size_of::<Slot>();
        // SAFETY: one of the two slots of the way.
        unsafe { self.way(direction).cast::<u8>().add(at) }.cast()
    }

    fn current(&self, direction: Direction) -> u64 {
        // SAFETY: inside the mapping, aligned by the layout.
        unsafe { (&raw const (*self.way(direction).as_ptr()).current).read_volatile() }
    }

    /// Bytes that went through so far.
    pub(crate) fn bytes(&self, direction: Direction) -> u64 {
        let slot = self.slot(direction, self.current(direction)).as_ptr();
        // SAFETY: inside the mapping, aligned by the layout.
        let (base, more) = unsafe {
            ((&raw const (*slot).base).read_volatile(), (&raw const (*slot).message.msg_len).read_volatile())
        };
        base.saturating_add(u64::from(more))
    }

    /// Makes the other slot current, with the count so far and a header for the kernel to count in.
    fn turn(&mut self, direction: Direction, header: libc::msghdr) -> *mut libc::mmsghdr {
        let base = self.bytes(direction);
        let next = self.current(direction) ^ 1;
        let slot = self.slot(direction, next).as_ptr();
        // SAFETY: inside the mapping, aligned by the layout. The release store comes after the slot's: a kill between them
        // leaves the old slot current, which says the same.
        unsafe {
            (&raw mut (*slot).base).write_volatile(base);
            (&raw mut (*slot).message).write_volatile(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            (&raw mut (*self.way(direction).as_ptr()).current).write_volatile(next);
            &raw mut (*slot).message
        }
    }

    /// Sends; descriptors go with the first byte. Never waits.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        parts: &[IoSlice<'_>],
        fds: &[BorrowedFd<'_>],
    ) -> Result<usize, Errno> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let fd_bytes = u32::try_from(size_of_val(&raw[..])).map_err(|_| Errno::INVAL)?;
        // SAFETY: arithmetic only.
        let (space, length) = unsafe { (libc::CMSG_SPACE(fd_bytes), libc::CMSG_LEN(fd_bytes)) };
        let mut control = vec![0_u64; (space as usize).div_ceil(8)];
        // SAFETY: all zeros is a header with nothing in it.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = parts.len();
        if !raw.is_empty() {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = space as usize;
            // SAFETY: the buffer has room for one header with these descriptors, and is aligned for it.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = length as usize;
                std::ptr::copy_nonoverlapping(
                    raw.as_ptr().cast::<u8>(),
                    libc::CMSG_DATA(first),
                    fd_bytes as usize,
                );
            }
        }
        loop {
            let message = self.turn(Direction::Out, header);
            // SAFETY: one message, whose header points to `parts` and `control`, alive until here.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), message, 1, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
            };
            if let Some(count) = self.went_through(Direction::Out, sent)? {
                return Ok(count);
            }
        }
    }

    /// Takes bytes out of a socket, which were looked at before. What lies beside them is closed.
    pub(crate) fn consume(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
        let mut scratch = vec![0_u8; bytes];
        let mut left = bytes;
        while left > 0 {
            let mut part = libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: left };
            // SAFETY: all zeros is a header with nothing in it.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            let message = self.turn(Direction::In, header);
            let no_timeout = std::ptr::null_mut();
            // SAFETY: one message, whose header points to `part`, and that to `scratch`, alive until here.
            let taken =
                unsafe { libc::recvmmsg(socket.as_raw_fd(), message, 1, libc::MSG_DONTWAIT, no_timeout) };
            match self.went_through(Direction::In, taken)? {
                Some(0) => return Err(Errno::CONNRESET),
                Some(count) => left = left.saturating_sub(count),
                None => {}
            }
        }
        Ok(())
    }

    /// What the kernel counted; `None`: interrupted.
    fn went_through(&self, direction: Direction, messages: libc::c_int) -> Result<Option<usize>, Errno> {
        if messages < 1 {
            let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO);
            return if error == Errno::INTR { Ok(None) } else { Err(error) };
        }
        let slot = self.slot(direction, self.current(direction)).as_ptr();
        // SAFETY: inside the mapping, aligned by the layout.
        let count = unsafe { (&raw const (*slot).message.msg_len).read_volatile() };
        Ok(Some(count as usize))
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_goes_out_is_counted_to_the_byte_for_whoever_has_the_memory() {
        let mut tally = Tally::new().expect("a tally");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
        let parts = [IoSlice::new(b"head "), IoSlice::new(b"body")];
        assert_eq!(tally.send(ours.as_fd(), &parts, &[eventfd.as_fd()]), Ok(9));
        let big = vec![7; 1 << 20];
        let mut sent = 9;
        let full = loop {
            match tally.send(ours.as_fd(), &[IoSlice::new(&big)], &[]) {
                Ok(count) => sent += count as u64,
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::AGAIN);
        assert_eq!(tally.bytes(Direction::Out), sent);
        let successor = Tally::map(Arc::clone(&tally.fd)).expect("the same memory");
        assert_eq!((successor.bytes(Direction::Out), successor.bytes(Direction::In)), (sent, 0));
        drop((tally, ours));
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, sent);
        assert_eq!(&bytes[..9], b"head body");
    }

    #[test]
    fn what_is_taken_out_of_a_socket_is_counted_and_not_a_byte_more_is_taken() {
        let mut tally = Tally::new().expect("a tally");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        theirs.write_all(b"hello world").expect("written");
        tally.consume(ours.as_fd(), 6).expect("there");
        assert_eq!(tally.bytes(Direction::In), 6);
        assert_eq!(tally.consume(ours.as_fd(), 6), Err(Errno::AGAIN), "one byte is missing");
        assert_eq!(tally.bytes(Direction::In), 11);
        drop(theirs);
        assert_eq!(tally.consume(ours.as_fd(), 1), Err(Errno::CONNRESET));
    }
}
