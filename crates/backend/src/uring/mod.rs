//! A file or block device through io_uring.
//!
//! ```text
//!  submit: slot <- request; SQE (READ/WRITE, fixed or not; READV/WRITEV; FALLOCATE; FSYNC) -> submission ring
//!  kick:   one io_uring_enter for all of them
//!  poll:   completion ring -> result -> the rest again, the next stage, or the submitter's token
//! ```
//!
//! The ring is of the kind whose completions wait until this thread is in the kernel (`COOP_TASKRUN`): the kernel never
//! interrupts the reactor, it raises a flag in shared memory, and `poll` enters the kernel only when it sees that flag.
//! A sleep of this thread ends early (`EINTR` from `poll(2)` and its kin) when there is such work; poll then.
//! Guest memory that direct I/O cannot take as it lies goes through aligned buffers of our own, in steps.
#![expect(unsafe_code, reason = "io_uring: the kernel reads and writes memory that is named in the entries")]
// UNSAFETY: an entry names (1) guest memory, mapped until the token is returned or this is dropped (the contract of
// `Backend::submit`); (2) lists and bounce buffers of `self.work`; (3) ZEROS, a static. `drop` waits until the kernel
// holds no entry. A slot has at most one entry in the rings, so an index comes back once for each time it went in.

mod arena;
mod buffers;
pub mod fence;
mod request;
mod target;

pub use target::{Config, Direct, Target};

use crate::{Rings, checked};
use arena::{Bounces, Lists};
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Request, Submitted};
use buffers::Buffers;
use core::ffi::c_int;
use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, opcode, types};
use memory::{MemoryMap, Segment};
use request::{InFlight, Next, Stage, ZEROS_BYTES};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

#[repr(C, align(4096))]
struct Zeros([u8; 256 * 1024]);
/// Written where a file cannot zero a range itself. Never touched by a store, so it takes no memory.
static ZEROS: Zeros = Zeros([0; 256 * 1024]);
const _: () = assert!(size_of::<Zeros>() as u64 == ZEROS_BYTES);

/// The target in the ring's table of files.
const FILE: types::Fixed = types::Fixed(0);

/// One reactor's door to a file or device. Stays on the thread that made it.
pub struct Uring {
    ring: IoUring,
    work: Work,
    /// Entries in the submission ring that the kernel has not taken.
    waiting: u32,
    /// The last enter left entries, or poll made new ones: the next poll has to enter.
    must_enter: bool,
    /// Who holds a duplicate of the ring.
    rings: Option<Arc<dyn Rings>>,
}

/// All but the ring, so that both can be borrowed at once.
struct Work {
    target: Arc<Target>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    lists: Lists,
    bounces: Bounces,
    buffers: Buffers,
}

impl Uring {
    /// A ring of this thread's own.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or has no memory for a ring; `rings` refuses it.
    pub fn new(target: Arc<Target>, rings: Option<Arc<dyn Rings>>) -> io::Result<Uring> {
        let depth = usize::from(target.config.depth);
        let ring = ring(u32::from(target.config.depth))?;
        ring.submitter().register_files(&[target.file.as_raw_fd()])?;
        let mut buffers = Buffers::default();
        if target.config.register_buffers {
            buffers.prepare(&ring.submitter());
        }
        let work = Work {
            slots: vec![None; depth],
            free: (0..u32::from(target.config.depth)).rev().collect(),
            lists: Lists::new(depth)?,
            bounces: Bounces::new()?,
            buffers,
            target,
        };
        let door = Uring { ring, work, waiting: 0, must_enter: false, rings };
        if let Some(rings) = &door.rings {
            rings.opened(door.as_fd())?;
        }
        Ok(door)
    }

    /// Gives the kernel what waits, and lets it finish what it has deferred to us.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: the entries name memory as stated at the top of the module; no signal mask is passed.
        let taken = unsafe { self.ring.submitter().enter::<libc::sigset_t>(self.waiting, want, flags, None) };
        match taken {
            Ok(taken) => {
                self.waiting = self.waiting.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                self.must_enter = self.waiting > 0;
                Ok(())
            }
            Err(error) => {
                // EINTR, or EAGAIN and EBUSY for want of kernel memory: what waits still waits.
                self.must_enter = self.waiting > 0;
                Err(error)
            }
        }
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: the entry names memory as stated at the top of the module.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "a slot has one entry, and there are as many entries as slots");
        self.waiting += u32::from(pushed.is_ok());
    }
}

impl Backend for Uring {
    fn limits(&self) -> Limits {
        self.work.target.limits
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if let Err(outcome) = checked(request, &self.work.target.limits) {
            return Submitted::Ended(outcome);
        }
        if request.op != Op::Flush && request.range.len_bytes == 0 {
            return Submitted::Ended(Outcome::Done);
        }
        let Some(slot) = self.work.take(request) else { return Submitted::Full };
        let entry = self.work.entry(slot);
        self.push(&entry);
        Submitted::Queued
    }

    fn kick(&mut self) {
        if self.waiting > 0 {
            // An error leaves `must_enter`, and poll tries again.
            let _ = self.enter(0);
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.work.in_flight() == 0 {
            return;
        }
        if self.must_enter || self.ring.completion().is_empty() && wants_enter(&mut self.ring) {
            let _ = self.enter(0);
        }
        while done.len() < done.capacity() {
            let Some(entry) = self.ring.completion().next() else { break };
            let Ok(slot) = u32::try_from(entry.user_data()) else { continue };
            match self.work.result(slot, entry.result()) {
                Next::Again => {
                    let entry = self.work.entry(slot);
                    self.push(&entry);
                    self.must_enter = true;
                }
                Next::End(outcome) => done.extend(self.work.end(slot).map(|ended| (ended.token, outcome))),
            }
        }
        if self.must_enter {
            let _ = self.enter(0);
        }
    }

    fn in_flight(&self) -> usize {
        self.work.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }

    fn memory_changed(&mut self, map: &Arc<MemoryMap>) {
        if self.work.target.config.register_buffers {
            self.work.buffers.changed(&self.ring.submitter(), map);
        }
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's, which lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    /// Waits for the kernel: it must not write to memory that its owner takes back after this. Where it cannot be waited for, the
    /// process ends: its successor waits for it then.
    fn drop(&mut self) {
        let taken_back = std::mem::take(&mut self.waiting);
        let mut held =
            self.work.in_flight().saturating_sub(usize::try_from(taken_back).unwrap_or(usize::MAX));
        while held > 0 {
            held = held.saturating_sub(self.ring.completion().count());
            if held == 0 {
                break;
            }
            if let Err(error) = self.enter(1)
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                tracing::error!(%error, held, "cannot wait for I/O under way; ending the process");
                std::process::abort();
            }
        }
        if let Some(rings) = self.rings.take() {
            rings.closing(self.as_fd());
        }
        // The kernel takes a ring apart later; the file, and with it its lock, shall be free now.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl Work {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot for a request, with a bounce buffer where its memory needs one. `None`: no room.
    fn take(&mut self, request: &Request<'_>) -> Option<u32> {
        let slot = *self.free.last()?;
        let index = usize::try_from(slot).ok()?;
        let mut flight = InFlight::new(request);
        if flight.stage == Stage::Transfer {
            let (addr, len) = (self.target.addr_align - 1, self.target.len_align - 1);
            let fits = |s: &Segment| s.addr().addr() & addr == 0 && s.len() & len == 0;
            if request.data.len() > 1 {
                flight.segments = copy_joined(request.data, self.lists.of(index));
                let list = self.lists.of(index);
                flight.only = list.first().copied().unwrap_or_default();
                if !list.get(..flight.segments)?.iter().all(fits) {
                    flight.bounce = Some(self.bounces.take()?);
                }
            } else if !fits(&flight.only) {
                flight.bounce = Some(self.bounces.take()?);
            }
        }
        *self.slots.get_mut(index)? = Some(flight);
        self.free.pop();
        Some(slot)
    }

    fn end(&mut self, slot: u32) -> Option<InFlight> {
        let ended = self.slots.get_mut(usize::try_from(slot).ok()?)?.take()?;
        if let Some(bounce) = ended.bounce {
            self.bounces.give_back(bounce);
        }
        self.free.push(slot);
        Some(ended)
    }

    /// The entry for the next step of a slot.
    fn entry(&mut self, slot: u32) -> Entry {
        let index = slot as usize;
        let Some(Some(flight)) = self.slots.get_mut(index) else {
            debug_assert!(false, "an entry for a free slot");
            return opcode::Nop::new().build().user_data(u64::from(slot));
        };
        flight.asked = flight.step();
        let (at, asked) = (flight.at, flight.asked);
        let sync = if flight.is_fua() { libc::RWF_DSYNC } else { 0 };
        let entry = match flight.stage {
            Stage::Transfer => transfer(flight, index, &mut self.lists, &self.bounces, &self.buffers),
            Stage::Allocate(mode) => opcode::Fallocate::new(FILE, asked).offset(at).mode(mode).build(),
            Stage::Fill => {
                opcode::Write::new(FILE, ZEROS.0.as_ptr(), u32_of(asked)).offset(at).rw_flags(sync).build()
            }
            Stage::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        };
        entry.user_data(u64::from(slot))
    }

    /// What a result means for its slot.
    fn result(&mut self, slot: u32, result: c_int) -> Next {
        let index = slot as usize;
        let Some(Some(flight)) = self.slots.get_mut(index) else { return Next::End(Outcome::Done) };
        let Ok(moved) = u64::try_from(result) else { return flight.failed(-result, &self.target) };
        if matches!(flight.stage, Stage::Allocate(_) | Stage::Sync) {
            return flight.finished();
        }
        // Direct I/O goes on at whole blocks only.
        let whole = moved.min(flight.asked);
        let whole = if whole < flight.asked { whole - whole % self.target.len_align as u64 } else { whole };
        if moved == 0 {
            // The file was cut short under us, or takes no more.
            return Next::End(Outcome::Failed(Fault::Media));
        }
        if whole == 0 {
            return flight.retry();
        }
        flight.progressed();
        if flight.stage == Stage::Fill {
            flight.at += whole;
            flight.left -= whole;
        } else {
            let list = if flight.segments > 1 { self.lists.of(index) } else { &mut [] };
            if let (Op::Read, Some(bounce)) = (flight.op, flight.bounce) {
                // SAFETY: guest memory under the caller's promise; the bounce buffer is ours.
                unsafe { scatter(self.bounces.segment(bounce, len_of(whole)), flight.rest(list)) };
            }
            flight.advance(whole, list);
        }
        if flight.left == 0 { flight.finished() } else { Next::Again }
    }
}

/// The entry for a step of a read or write.
fn transfer(
    flight: &mut InFlight,
    index: usize,
    lists: &mut Lists,
    bounces: &Bounces,
    buffers: &Buffers,
) -> Entry {
    let (at, asked, is_read) = (flight.at, flight.asked, flight.op == Op::Read);
    let sync = if flight.is_fua() { libc::RWF_DSYNC } else { 0 };
    let list = if flight.segments > 1 { lists.of(index) } else { &mut [] };
    let (segment, fixed) = if let Some(bounce) = flight.bounce {
        let buffer = bounces.segment(bounce, len_of(asked));
        if !is_read {
            // SAFETY: guest memory under the caller's promise; the bounce buffer is ours.
            unsafe { gather(flight.rest(list), buffer) };
        }
        (buffer, None)
    } else if flight.segments > 1 {
        let rest = flight.rest(list);
        let (iovecs, count) = (rest.as_ptr().cast::<libc::iovec>(), u32_of(rest.len() as u64));
        return if is_read {
            opcode::Readv::new(FILE, iovecs, count).offset(at).build()
        } else {
            opcode::Writev::new(FILE, iovecs, count).offset(at).rw_flags(sync).build()
        };
    } else {
        let segment = flight.only.split_at(len_of(asked)).0;
        (segment, buffers.find(segment))
    };
    let (addr, len) = (segment.addr(), u32_of(segment.len() as u64));
    match (is_read, fixed) {
        (true, None) => opcode::Read::new(FILE, addr, len).offset(at).build(),
        (false, None) => opcode::Write::new(FILE, addr, len).offset(at).rw_flags(sync).build(),
        (true, Some(buffer)) => opcode::ReadFixed::new(FILE, addr, len, buffer).offset(at).build(),
        (false, Some(buffer)) => {
            opcode::WriteFixed::new(FILE, addr, len, buffer).offset(at).rw_flags(sync).build()
        }
    }
}

/// The best kind of ring this kernel has.
///
/// Not `DEFER_TASKRUN`: nobody asleep on the descriptor of such a ring is woken (seen on Linux 6.18), and it was no
/// faster here.
fn ring(depth: u32) -> io::Result<IoUring> {
    let cooperative = || {
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all().dontfork();
        builder
    };
    match cooperative().setup_single_issuer().build(depth) {
        // Before Linux 6.0, and before 5.19.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            cooperative().build(depth).or_else(|_| IoUring::builder().dontfork().build(depth))
        }
        other => other,
    }
}

/// Has the kernel deferred work to this thread?
fn wants_enter(ring: &mut IoUring) -> bool {
    let queue = ring.submission();
    queue.taskrun() || queue.cq_overflow()
}

/// Copies segments, those that touch as one. How many it takes then. `to` has room for all.
fn copy_joined(from: &[Segment], to: &mut [Segment]) -> usize {
    let mut count = 0_usize;
    for segment in from.iter().filter(|segment| !segment.is_empty()) {
        let joined = count.checked_sub(1).and_then(|last| to.get(last)).and_then(|last| last.join(*segment));
        let at = if joined.is_some() { count - 1 } else { count };
        if let Some(to) = to.get_mut(at) {
            *to = joined.unwrap_or(*segment);
            count = at + 1;
        }
    }
    count
}

/// Fills `to` from the beginning of `from`.
///
/// # Safety
/// All segments are mapped; `to` overlaps none.
unsafe fn gather(from: &[Segment], mut to: Segment) {
    for part in from {
        let (now, later) = to.split_at(part.len());
        // SAFETY: as promised to us.
        unsafe { part.copy_into(now) };
        to = later;
    }
}

/// Stores `from` at the beginning of `to`.
///
/// # Safety
/// All segments are mapped; `from` overlaps none.
unsafe fn scatter(mut from: Segment, to: &[Segment]) {
    for part in to {
        let (now, later) = from.split_at(part.len());
        // SAFETY: as promised to us.
        unsafe { now.copy_into(*part) };
        from = later;
    }
}

/// A step's length, which is at most 1 GiB.
fn u32_of(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn len_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl core::fmt::Debug for Uring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Uring").field("target", &self.work.target.config.path).finish_non_exhaustive()
    }
}
