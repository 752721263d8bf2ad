//! A drive in memory: one memfd, mapped once, shared by all doors.
//!
//! Reads and writes end at once. Large discards give pages back in steps of one a poll, so that no call takes long.
#![expect(unsafe_code, reason = "maps a memfd, and copies between it and guest memory")]
// UNSAFETY: `Memory` owns its mapping from `map` to `drop`, and its memfd is sealed against shrinking. All accesses to
// it are `Segment` copies, whose bytes may change underneath (other doors, guests): bytes are bytes, no reference to
// them exists. Every range was checked against the capacity.

use crate::{Error, SEGMENTS_MAX, checked};
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Request, Submitted, Token};
use core::ptr;
use memory::Segment;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages are given back from this length on; less is filled with zeros.
const PUNCH_MIN_BYTES: u64 = 64 * 1024;
/// Given back in one step.
const STEP_BYTES: u64 = 16 * 1024 * 1024;
/// Large discards under way in one door.
const PENDING_MAX: usize = 64;
const PAGE_BYTES: u64 = 4096;
/// Copies put off at once.
const COPIES_MAX: usize = 256;
/// Longer ones are made at once: the first line's delay matters little to them.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// What is fetched ahead: the page's translation, and enough lines for the processor to see where this goes.
const PREFETCH_LINES: usize = 4;

/// What a ram drive is: its memory as it is now. One that has grown has another mapping of the same memfd; doors come to it when they
/// are asked for what the one at hand does not have.
#[derive(Debug)]
pub struct Source {
    newest: Mutex<Arc<Memory>>,
    capacity_bytes: AtomicU64,
}

impl Source {
    /// A predecessor's memory, made longer if it is shorter than this; without, memory that reads as zeros and takes no room until it
    /// is written.
    pub(crate) fn new(size_bytes: u64, kept: Option<OwnedFd>) -> Result<Source, Error> {
        let memory = Arc::new(Memory::new(size_bytes, kept)?);
        Ok(Source { newest: Mutex::new(memory), capacity_bytes: AtomicU64::new(size_bytes) })
    }

    fn newest(&self) -> Arc<Memory> {
        Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As each door reports them.
    pub(crate) fn limits(&self) -> Limits {
        let capacity_bytes = self.capacity_bytes.load(Ordering::Acquire);
        Limits { capacity_bytes, block_bytes: 512, segments_max: SEGMENTS_MAX, discard: true }
    }

    /// For a successor process.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.newest().file.try_clone().map(OwnedFd::from)
    }

    /// See `Drive::make_room`. Memory takes no room before it is written: only what would not be allowed is told here.
    pub(crate) fn can_grow(&self, size_bytes: u64) -> Result<(), Error> {
        crate::drive::sized(size_bytes)?;
        let seals = seals(&self.newest().file).map_err(|error| Error::Memory { size_bytes, error })?;
        if seals & libc::F_SEAL_GROW == 0 { Ok(()) } else { Err(Error::Sealed) }
    }

    /// See `Drive::grow`. The memfd first: a successor finds it at this size, or makes it so.
    pub(crate) fn grow(&self, size_bytes: u64) -> Result<(), Error> {
        self.can_grow(size_bytes)?;
        let failed = |error| Error::Memory { size_bytes, error };
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if size_bytes <= newest.len as u64 {
            return Ok(());
        }
        let file = newest.file.try_clone().map_err(failed)?;
        file.set_len(size_bytes).map_err(failed)?;
        *newest = Arc::new(Memory::map(file, size_bytes).map_err(failed)?);
        self.capacity_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }
}

fn seals(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: no memory involved.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals) }
}

/// One mapping of a ram drive's memory.
#[derive(Debug)]
pub struct Memory {
    file: File,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to the process; all accesses are raw copies (see the module).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(size_bytes: u64, kept: Option<OwnedFd>) -> Result<Memory, Error> {
        let failed = |error| Error::Memory { size_bytes, error };
        let file = match kept {
            Some(fd) => Self::checked(File::from(fd), size_bytes),
            None => Self::fresh(size_bytes),
        };
        Self::map(file.map_err(failed)?, size_bytes).map_err(failed)
    }

    /// A predecessor's memory, if it is what `fresh` makes.
    fn checked(file: File, size_bytes: u64) -> io::Result<File> {
        let sealed = seals(&file)? & libc::F_SEAL_SHRINK != 0;
        let len = file.metadata()?.len();
        if !sealed || len > size_bytes {
            let what = "what was kept of it is no memory, or more than this: was its size changed?";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if len < size_bytes {
            // Its predecessor ended before it made it longer.
            file.set_len(size_bytes)?;
        }
        Ok(file)
    }

    fn fresh(size_bytes: u64) -> io::Result<File> {
        // SAFETY: a NUL-terminated name; the result is checked.
        let fd = unsafe {
            libc::memfd_create(c"godwit-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new and ours alone.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(size_bytes)?;
        // Not against growing: that is what a drive that grows does.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: no memory involved.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(file)
    }

    fn map(file: File, size_bytes: u64) -> io::Result<Memory> {
        let len = usize::try_from(size_bytes).map_err(io::Error::other)?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: our own new mapping. Advice may fail without harm.
        unsafe {
            libc::madvise(base, len, libc::MADV_DONTDUMP);
            libc::madvise(base, len, libc::MADV_DONTFORK);
            libc::madvise(base, len, libc::MADV_HUGEPAGE);
        }
        Ok(Memory { file, base: base.cast(), len })
    }

    /// `len` bytes from `start`; shorter at the end of the memory, which checked ranges never reach.
    #[inline]
    fn segment(&self, start: u64, len: usize) -> Segment {
        let start = usize::try_from(start).unwrap_or(self.len).min(self.len);
        // SAFETY: start <= self.len, inside or one past our mapping.
        Segment::from_raw(unsafe { self.base.add(start) }, len.min(self.len - start))
    }

    fn zero(&self, start: u64, end: u64) {
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        // SAFETY: inside our mapping, which lives as long as self.
        unsafe { self.segment(start, len).fill(0) };
    }

    /// Gives whole pages back; they read as zeros.
    fn punch(&self, start: u64, end: u64) -> Result<(), Fault> {
        let offset = |at: u64| libc::off_t::try_from(at).map_err(|_| Fault::OutOfRange);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed. Pages of our mapping become zeros, which raw copies do not mind.
        let result =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset(start)?, offset(end - start)?) };
        if result == 0 { Ok(()) } else { Err(Fault::Media) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours from mmap, and no door is left.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// A discard that goes on with each poll.
#[derive(Debug)]
struct Pending {
    token: Token,
    at: u64,
    end: u64,
}

/// A copy that waits for the next kick.
#[derive(Clone, Copy, Debug)]
struct Copy {
    token: Token,
    drive: Segment,
    guest: Segment,
    direction: Direction,
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    /// # Safety
    /// Both segments are mapped.
    #[inline]
    unsafe fn copy(self, drive: Segment, guest: Segment) {
        // SAFETY: as promised to us.
        unsafe {
            match self {
                // A guest looks at what it read; nobody looks at a drive's block soon.
                Direction::Read => drive.copy_into(guest),
                Direction::Write => guest.stream_into(drive),
            }
        }
    }
}

/// One reactor's door to a [`Source`].
#[derive(Debug)]
pub struct Ram {
    source: Arc<Source>,
    /// The newest when this door last looked.
    memory: Arc<Memory>,
    /// Of it.
    limits: Limits,
    /// Copies of a burst: made in `kick`, while the memory of the later ones is already on its way to the cache.
    copies: Vec<Copy>,
    /// Short copies asked for since the last kick.
    burst: usize,
    /// The last burst was of several: only then is it worth the detour to put copies off.
    bursts_are_deep: bool,
    /// Those made, until the next poll.
    copied: VecDeque<Token>,
    pending: VecDeque<Pending>,
}

impl Ram {
    /// One more door.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Ram {
        let memory = source.newest();
        let limits = Limits { capacity_bytes: memory.len as u64, ..source.limits() };
        Ram {
            source,
            memory,
            limits,
            burst: 0,
            bursts_are_deep: false,
            copies: Vec::with_capacity(COPIES_MAX),
            copied: VecDeque::with_capacity(COPIES_MAX),
            pending: VecDeque::with_capacity(PENDING_MAX),
        }
    }

    /// Puts a copy off until the burst is complete, if it is short, in one piece, and one of several.
    #[inline]
    fn put_off(&mut self, request: &Request<'_>, direction: Direction) -> bool {
        let [guest] = *request.data else { return false };
        let drive = self.memory.segment(request.range.start_bytes, guest.len());
        for line in 0..PREFETCH_LINES {
            drive.split_at(line * 64).1.prefetch();
        }
        self.burst += 1;
        let room = self.copies.len() + self.copied.len() < COPIES_MAX;
        if !self.bursts_are_deep || guest.len() > COPY_BYTES_MAX || !room {
            return false;
        }
        self.copies.push(Copy { token: request.token, drive, guest, direction });
        true
    }

    /// A drive that may have grown since this door last looked.
    #[cold]
    fn look_again(&mut self, request: &Request<'_>) -> Result<(), Outcome> {
        // They name the mapping at hand, which may end here.
        self.make_copies();
        self.memory = self.source.newest();
        self.limits.capacity_bytes = self.memory.len as u64;
        checked(request, &self.limits)
    }

    fn make_copies(&mut self) {
        for Copy { token, drive, guest, direction } in self.copies.drain(..) {
            // SAFETY: both sides mapped: the drive's by self, the guest's by the promise made to `submit`.
            unsafe { direction.copy(drive, guest) };
            self.copied.push_back(token);
        }
    }

    fn discard(&mut self, request: &Request<'_>) -> Submitted {
        let (start, end) = (request.range.start_bytes, request.range.start_bytes + request.range.len_bytes);
        let (first, last) = (start.next_multiple_of(PAGE_BYTES), end - end % PAGE_BYTES);
        if last.saturating_sub(first) < PUNCH_MIN_BYTES {
            self.memory.zero(start, end);
            return Submitted::Ended(Outcome::Done);
        }
        if last - first > STEP_BYTES && self.pending.len() == PENDING_MAX {
            return Submitted::Full;
        }
        self.memory.zero(start, first);
        self.memory.zero(last, end);
        if last - first > STEP_BYTES {
            self.pending.push_back(Pending { token: request.token, at: first, end: last });
            return Submitted::Queued;
        }
        Submitted::Ended(match self.memory.punch(first, last) {
            Ok(()) => Outcome::Done,
            Err(fault) => Outcome::Failed(fault),
        })
    }
}

impl Backend for Ram {
    fn limits(&self) -> Limits {
        self.source.limits()
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if let Err(outcome) = checked(request, &self.limits).or_else(|_| self.look_again(request)) {
            return Submitted::Ended(outcome);
        }
        let direction = match request.op {
            Op::Read => Direction::Read,
            Op::Write { .. } => Direction::Write,
            Op::Flush => return Submitted::Ended(Outcome::Done),
            Op::WriteZeroes { .. } | Op::Discard => return self.discard(request),
        };
        if self.put_off(request, direction) {
            return Submitted::Queued;
        }
        let mut at = request.range.start_bytes;
        for guest in request.data {
            // SAFETY: both sides mapped: the drive's by self, the guest's by the caller's promise.
            unsafe { direction.copy(self.memory.segment(at, guest.len()), *guest) };
            at += guest.len() as u64;
        }
        Submitted::Ended(Outcome::Done)
    }

    fn kick(&mut self) {
        if self.burst > 0 {
            self.bursts_are_deep = self.burst > 1;
            self.burst = 0;
        }
        self.make_copies();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let room = done.capacity() - done.len();
        let copied = self.copied.len().min(room);
        done.extend(self.copied.drain(..copied).map(|token| (token, Outcome::Done)));
        if done.len() == done.capacity() {
            return;
        }
        let Some(pending) = self.pending.front_mut() else { return };
        let step = pending.end.min(pending.at + STEP_BYTES);
        let result = self.memory.punch(pending.at, step);
        pending.at = step;
        let outcome = match result {
            Ok(()) if step < pending.end => return,
            Ok(()) => Outcome::Done,
            Err(fault) => Outcome::Failed(fault),
        };
        done.push((pending.token, outcome));
        self.pending.pop_front();
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.copies.len() + self.copied.len()
    }
}
