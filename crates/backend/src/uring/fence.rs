//! The rings of a process that was killed: has everything they took ended?
//!
//! A ring lives as long as anyone has its descriptor. What a dead submitter left in it is ended by the kernel all the same
//! (the work deferred to its threads goes to a worker of the kernel's when they exit), and its completions are counted in the
//! ring's shared memory. So: every entry the kernel consumed (`sq.head`) gets exactly one completion (`cq.tail`), because no
//! request of ours has several or none; when the two are equal, nothing of the dead process is at the drive any more.
//!
//! The completion queue cannot overflow: it has twice as many entries as a door has slots, and a slot has one request.
#![expect(unsafe_code, reason = "maps a ring that another process made")]
// UNSAFETY: one page of a ring is mapped, read-only, from `new` to `drop`. It is read with atomic loads at aligned offsets that
// this kernel reported for a ring of our own; the kernel writes it at any time.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_micros(50);
/// All offsets lie in the first page of a ring.
const MAPPED_BYTES: usize = 4096;

/// Where this kernel keeps the counts, in bytes from the beginning of a ring.
#[derive(Clone, Copy, Debug)]
struct Layout {
    sq_head: usize,
    sq_flags: usize,
    sq_dropped: usize,
    cq_tail: usize,
    cq_overflow: usize,
}

/// `struct io_uring_params` as far as it is needed: ten words, then the offsets of both queues.
#[repr(C)]
struct Params {
    words: [u32; 10],
    sq_off: [u32; 10],
    cq_off: [u32; 10],
}
const _: () = assert!(size_of::<Params>() == 120);

impl Layout {
    /// Asks the kernel, by means of a ring of one entry.
    fn learn() -> io::Result<Self> {
        const FEATURES: usize = 5;
        const SINGLE_MMAP: u32 = 1;
        let mut params = MaybeUninit::<Params>::zeroed();
        // SAFETY: the kernel reads and writes our buffer of the right size; zeros ask for nothing special.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new and ours alone.
        let _ring = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: zeros were valid, and so is what the kernel stored.
        let params = unsafe { params.assume_init() };
        if params.words[FEATURES] & SINGLE_MMAP == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel maps its rings in two pieces",
            ));
        }
        let at = |offset: u32| {
            let at = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(4) && *at < MAPPED_BYTES - 4);
            at.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel's rings look different"))
        };
        Ok(Self {
            sq_head: at(params.sq_off[0])?,
            sq_flags: at(params.sq_off[4])?,
            sq_dropped: at(params.sq_off[5])?,
            cq_tail: at(params.cq_off[1])?,
            cq_overflow: at(params.cq_off[4])?,
        })
    }
}

/// A ring of another process.
#[derive(Debug)]
pub struct OldRing {
    page: NonNull<u8>,
    layout: Layout,
    /// Kept open: the last descriptor's end would take the ring apart, and then nobody counts.
    _fd: OwnedFd,
}

impl OldRing {
    /// Maps a ring.
    ///
    /// # Errors
    /// It is no io_uring; this kernel keeps its counts elsewhere.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[io_uring]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor that is no io_uring"));
        }
        let layout = Layout::learn()?;
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing. Offset 0 names the ring.
        let page = unsafe { libc::mmap(ptr::null_mut(), MAPPED_BYTES, prot, flags, fd.as_raw_fd(), 0) };
        match NonNull::new(page.cast()) {
            Some(at) if page != libc::MAP_FAILED => Ok(Self { page: at, layout, _fd: fd }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn word(&self, at: usize) -> u32 {
        // SAFETY: inside the mapped page and aligned (see `Layout::learn`); the kernel's concurrent stores are word-sized.
        unsafe { self.page.add(at).cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire)
    }

    /// Requests that the kernel took and has not ended.
    ///
    /// # Errors
    /// Completions were put aside, so the count means nothing. Not with rings of this crate.
    pub fn in_flight(&self) -> io::Result<u32> {
        const CQ_OVERFLOW: u32 = 2;
        let Layout { sq_head, sq_flags, sq_dropped, cq_tail, cq_overflow } = self.layout;
        // The completions first: a count that is too old makes more seem to be in flight, never fewer.
        let ended = self.word(cq_tail).wrapping_add(self.word(cq_overflow));
        if self.word(sq_flags) & CQ_OVERFLOW != 0 {
            return Err(io::Error::other("completions of the old ring were put aside"));
        }
        let taken = self.word(sq_head).wrapping_sub(self.word(sq_dropped));
        Ok(taken.wrapping_sub(ended))
    }

    /// Waits until nothing is in flight. The owner of the ring must have ended. Returns how many were in flight at first.
    ///
    /// # Errors
    /// As [`OldRing::in_flight`]; `TimedOut` after `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<u32> {
        let first = self.in_flight()?;
        let start = Instant::now();
        while self.in_flight()? != 0 {
            if start.elapsed() > patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(first)
    }
}

impl Drop for OldRing {
    fn drop(&mut self) {
        // SAFETY: ours from mmap; no reference outlives self.
        unsafe { libc::munmap(self.page.as_ptr().cast(), MAPPED_BYTES) };
    }
}
