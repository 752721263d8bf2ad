//! A file or block device through io_uring.
//!
//! ```text
//!  submit: slot <- request; SQE (READ/WRITE, fixed or not; READV/WRITEV; FALLOCATE; FSYNC) -> the thread's submission ring
//!  kick:   one io_uring_enter for all of them
//!  poll:   completion ring -> lane -> result -> the rest again, the next stage, or the submitter's token
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
mod ring;
mod target;

pub use ring::Rings;
pub use target::{Config, Direct, Target};

use crate::checked;
use arena::{Bounces, Lists};
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Request, Submitted};
use buffers::Buffers;
use core::ffi::c_int;
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use memory::{MemoryMap, Segment};
use request::{InFlight, Next, Stage, ZEROS_BYTES};
use ring::Lane;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

#[repr(C, align(4096))]
struct Zeros([u8; 256 * 1024]);
/// Written where a file cannot zero a range itself. Never touched by a store, so it takes no memory.
static ZEROS: Zeros = Zeros([0; 256 * 1024]);
const _: () = assert!(size_of::<Zeros>() as u64 == ZEROS_BYTES);

/// One reactor's door to a file or device. Stays on the thread that made it.
pub struct Uring {
    work: Work,
    /// Slots whose next entry found no room in the ring.
    again: Vec<u32>,
    /// After the work: given up when nothing of it is in the kernel.
    lane: Lane,
}

/// All but the lane, so that both can be borrowed at once.
struct Work {
    target: Arc<Target>,
    /// The target in the ring's table of files.
    file: types::Fixed,
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    lists: Lists,
    bounces: Bounces,
    buffers: Buffers,
}

impl Uring {
    /// A door at one of this thread's rings.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or has no memory for a ring; the rings' holder refuses it.
    pub fn new(target: Arc<Target>, rings: &Rings) -> io::Result<Uring> {
        let depth = usize::from(target.config.depth);
        let lane = rings.lane(target.config.depth, target.file.as_raw_fd())?;
        if target.config.register_buffers
            && let Err(error) = lane.prepare_buffers()
        {
            tracing::warn!(%error, "the ring takes no buffers: going on without");
        }
        let work = Work {
            file: lane.file(),
            slots: vec![None; depth],
            free: (0..u32::from(target.config.depth)).rev().collect(),
            lists: Lists::new(depth)?,
            bounces: Bounces::new()?,
            buffers: Buffers::default(),
            target,
        };
        Ok(Uring { work, again: Vec::new(), lane })
    }

    /// Pushes the next entry of a slot that is under way.
    fn go_on(&mut self, slot: u32) {
        let entry = self.work.entry(slot);
        if !self.lane.push(slot, entry) {
            self.again.push(slot);
        }
    }
}

impl Backend for Uring {
    fn limits(&self) -> Limits {
        self.work.target.limits()
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if let Err(outcome) = checked(request, &self.work.target.limits()) {
            return Submitted::Ended(outcome);
        }
        if request.op != Op::Flush && request.range.len_bytes == 0 {
            return Submitted::Ended(Outcome::Done);
        }
        let Some(slot) = self.work.take(request) else { return Submitted::Full };
        let entry = self.work.entry(slot);
        if self.lane.push(slot, entry) {
            return Submitted::Queued;
        }
        self.work.end(slot);
        Submitted::Full
    }

    fn kick(&mut self) {
        self.lane.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.work.in_flight() == 0 {
            return;
        }
        self.lane.turn();
        for slot in core::mem::take(&mut self.again) {
            self.go_on(slot);
        }
        let mut goes_on = false;
        while done.len() < done.capacity() {
            let Some((slot, result)) = self.lane.result() else { break };
            match self.work.result(slot, result) {
                Next::Again => {
                    self.go_on(slot);
                    goes_on = true;
                }
                Next::End(outcome) => done.extend(self.work.end(slot).map(|ended| (ended.token, outcome))),
            }
        }
        if goes_on {
            self.lane.kick();
        }
    }

    fn in_flight(&self) -> usize {
        self.work.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.lane.wake_fd())
    }

    fn memory_changed(&mut self, map: &Arc<MemoryMap>) {
        if self.work.target.config.register_buffers {
            self.work.buffers.changed(&self.lane, map);
        }
    }
}

impl Drop for Uring {
    /// Waits for the kernel: it must not write to memory that its owner takes back after this. Where it cannot be waited for, the
    /// process ends: its successor waits for it then.
    fn drop(&mut self) {
        for slot in self.again.drain(..) {
            self.work.end(slot);
        }
        loop {
            self.lane.turn();
            while let Some((slot, _)) = self.lane.result() {
                self.work.end(slot);
            }
            let held = self.work.in_flight();
            if held == 0 {
                break;
            }
            if let Err(error) = self.lane.wait()
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                tracing::error!(%error, held, "cannot wait for I/O under way; ending the process");
                std::process::abort();
            }
        }
        self.work.buffers.clear(&self.lane);
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
            return opcode::Nop::new().build();
        };
        flight.asked = flight.step();
        let (at, asked) = (flight.at, flight.asked);
        let sync = if flight.is_fua() { libc::RWF_DSYNC } else { 0 };
        match flight.stage {
            Stage::Transfer => {
                transfer(self.file, flight, index, &mut self.lists, &self.bounces, &self.buffers)
            }
            Stage::Allocate(mode) => opcode::Fallocate::new(self.file, asked).offset(at).mode(mode).build(),
            Stage::Fill => opcode::Write::new(self.file, ZEROS.0.as_ptr(), u32_of(asked))
                .offset(at)
                .rw_flags(sync)
                .build(),
            Stage::Sync => opcode::Fsync::new(self.file).flags(types::FsyncFlags::DATASYNC).build(),
        }
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
    file: types::Fixed,
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
            opcode::Readv::new(file, iovecs, count).offset(at).build()
        } else {
            opcode::Writev::new(file, iovecs, count).offset(at).rw_flags(sync).build()
        };
    } else {
        let segment = flight.only.split_at(len_of(asked)).0;
        (segment, buffers.find(segment))
    };
    let (addr, len) = (segment.addr(), u32_of(segment.len() as u64));
    match (is_read, fixed) {
        (true, None) => opcode::Read::new(file, addr, len).offset(at).build(),
        (false, None) => opcode::Write::new(file, addr, len).offset(at).rw_flags(sync).build(),
        (true, Some(buffer)) => opcode::ReadFixed::new(file, addr, len, buffer).offset(at).build(),
        (false, Some(buffer)) => {
            opcode::WriteFixed::new(file, addr, len, buffer).offset(at).rw_flags(sync).build()
        }
    }
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
