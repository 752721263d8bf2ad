//! The data path of a volume: a [`Backend`] over its [`ExtentMap`](crate::ExtentMap) and a door to the pool's drive.
//!
//! ```text
//!  request --one extent, mapped--> slot --> the drive                    (nearly all: a load, a shift, an addition)
//!          --else--> job --+-- piece --> slot --> the drive
//!                          +-- unmapped, read ------> zeros
//!                          +-- unmapped or shared, write --> asks the allocator, parks until the entry changes
//!                          +-- whole extents, discard -----> asks the allocator, parks until its ticket is answered
//! ```
//! The map and the allocator belong to the pool's thread (see [`Gate`]); a door never changes an entry and never waits. What is
//! parked disturbs nothing else of the door.
//!
//! Who does not want a parked request any more has it fail ([`Backend::give_up_waiting`]), and a process that ends need not wait for it
//! ([`Backend::at_drive`]). Not done here: what the allocator was asked for is not taken back. It gives the extent when it has one.
#![expect(unsafe_code, reason = "guest memory is handed to the drive, or filled with zeros")]
// UNSAFETY: two uses of the promise made to `Backend::submit` (the memory stays mapped until the token is returned, or the door is
// dropped): it is passed on to the lower backend with the pieces of a request, and segments of a request that has not ended are filled.

mod flights;
mod gate;
mod job;
mod ticket;

pub use gate::{Gate, Waker};
pub use ticket::{Answered, Ticket};

use crate::{Entry, ExtentMap, VolumeId};
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use flights::{Flight, Flights, Owner};
use gate::{Pass, Stamp};
use job::{Job, Jobs, Wait};
use memory::{MemoryMap, Segment};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

/// Requests at the drive at once, of one door.
const DEPTH: usize = 1024;
/// Requests that are parked or under way in pieces, of one door. More are not taken.
const JOBS_MAX: usize = 4096;
/// Completions taken from the drive at once.
const COMPLETIONS_MAX: usize = 256;

/// Who gives extents and takes them back: the pool's thread. No call waits; asking again for the same is harmless.
pub trait Allocator: Send + Sync {
    /// The extent of the volume shall be its own to write to. When it is, the entry says so, and [`Gate::announce`] is called. Without
    /// space in the pool that may be long after.
    fn own(&self, volume: VolumeId, extent: u32);
    /// The extents, from the first to before the second, shall read as zeros and may be anybody's. Answered by the ticket, durably.
    fn release(&self, volume: VolumeId, extents: (u32, u32), ticket: Arc<Ticket>);
}

/// One reactor's door to a volume.
pub struct Door<B: Backend + ?Sized> {
    /// First: the drive is done with all memory before the pass tells so.
    lower: Box<B>,
    pass: Pass,
    map: Arc<ExtentMap>,
    allocator: Arc<dyn Allocator>,
    drive: Limits,
    shift: u32,
    /// Whole extents are given back to the pool.
    gives_back: bool,
    flights: Flights,
    jobs: Jobs,
    /// Jobs that wait for the pool's thread.
    parked: Vec<usize>,
    /// Jobs that wait for room at the drive.
    roomless: VecDeque<usize>,
    /// Requests whose end was not told yet.
    ended: VecDeque<Completion>,
    /// Requests taken and not told ended.
    taken: usize,
    /// The gate's changes that the parked have seen.
    seen: u64,
    done: Vec<Completion>,
    list: Vec<Segment>,
}

/// How far a job came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It has more to do now.
    On,
    /// It waits, or has begun all that it is.
    Rests,
}

impl<B: Backend + ?Sized> Door<B> {
    /// One more door, over a door to the pool's drive. `wake` is called when something parked may go on.
    ///
    /// `gives_back`: discarded extents go back to the pool (a thin volume); else they stay the volume's, and are zeroed.
    pub fn new(
        lower: Box<B>,
        gate: &Arc<Gate>,
        allocator: Arc<dyn Allocator>,
        gives_back: bool,
        wake: Waker,
    ) -> Self {
        let (drive, map) = (lower.limits(), gate.map());
        Self {
            shift: map.extent_bytes().trailing_zeros(),
            map,
            pass: gate.enter(wake),
            allocator,
            drive,
            gives_back,
            flights: Flights::new(DEPTH),
            jobs: Jobs::default(),
            parked: Vec::new(),
            roomless: VecDeque::new(),
            ended: VecDeque::new(),
            taken: 0,
            seen: gate.changes(),
            done: Vec::with_capacity(COMPLETIONS_MAX),
            list: Vec::with_capacity(drive.segments_max.saturating_add(1)),
            lower,
        }
    }

    fn gate(&self) -> &Arc<Gate> {
        self.pass.gate()
    }

    #[inline]
    fn capacity_bytes(&self) -> u64 {
        self.map.size_bytes()
    }

    /// Whole blocks, inside the volume, data as long as the range.
    #[inline]
    fn check(&self, request: &Request<'_>) -> Result<(), Outcome> {
        let range = request.range;
        let block = u64::from(self.drive.block_bytes).wrapping_sub(1);
        let inside = range.end_bytes().is_some_and(|end| end <= self.capacity_bytes());
        if !inside || (range.start_bytes | range.len_bytes) & block != 0 {
            return Err(Outcome::Failed(Fault::OutOfRange));
        }
        if matches!(request.op, Op::Read | Op::Write { .. }) {
            let total = request.data.iter().try_fold(0_u64, |sum, one| sum.checked_add(one.len() as u64));
            if request.data.len() > self.drive.segments_max || total != Some(range.len_bytes) {
                return Err(Outcome::Failed(Fault::Memory));
            }
        }
        Ok(())
    }

    /// A volume that has grown since this door last looked.
    #[cold]
    fn check_grown(&mut self, request: &Request<'_>) -> Result<(), Outcome> {
        self.map = self.gate().map();
        self.check(request)
    }

    /// Where a request lies on the drive if it lies in one piece, and may go there as it is. Called between begin and end of a pass.
    #[inline]
    fn whole(&self, op: Op, range: Range) -> Option<u64> {
        let writes = match op {
            Op::Read => false,
            Op::Write { .. } => true,
            _ => return None,
        };
        let first = range.start_bytes >> self.shift;
        let last = (range.start_bytes + range.len_bytes - 1) >> self.shift;
        let usable = |extent: u64| match self.entry(extent) {
            Entry::Mapped { physical } => Some(physical),
            Entry::Shared { physical } if !writes => Some(physical),
            _ => None,
        };
        let physical = usable(first)?;
        // Neighbours on the drive are as good as one: full volumes have them.
        for extent in first + 1..=last {
            if usable(extent).map(u64::from) != Some(u64::from(physical) + (extent - first)) {
                return None;
            }
        }
        Some(self.place(physical, range.start_bytes))
    }

    /// An extent of a byte inside the volume.
    #[inline]
    fn entry(&self, extent: u64) -> Entry {
        u32::try_from(extent).map_or(Entry::Unmapped, |extent| self.map.entry(extent))
    }

    #[inline]
    fn place(&self, physical: u32, start: u64) -> u64 {
        self.map.drive_offset(physical) + (start & ((1 << self.shift) - 1))
    }

    /// Hands a request to the drive as it is, but for its place. `None`: it did not go.
    ///
    /// # Safety
    /// As [`Backend::submit`].
    #[inline]
    unsafe fn pass_down(&mut self, stamp: Stamp, owner: Owner, request: Request<'_>) -> Submitted {
        let Some(token) = self.flights.take(Flight { owner, stamp }) else {
            self.pass.end(stamp);
            return Submitted::Full;
        };
        // SAFETY: as promised to us.
        let submitted = unsafe { self.lower.submit(&Request { token, ..request }) };
        if submitted != Submitted::Queued {
            self.flights.end(token);
            self.pass.end(stamp);
        }
        submitted
    }

    /// # Safety
    /// As [`Backend::submit`].
    #[cold]
    unsafe fn submit_job(&mut self, request: &Request<'_>) -> Submitted {
        if self.jobs.count() >= JOBS_MAX {
            return Submitted::Full;
        }
        let at = self.jobs.add(request);
        self.go_on(at);
        match self.jobs.get(at) {
            Some(job) if job.is_over() => {
                let outcome = self.jobs.remove(at).map_or(Outcome::Done, |(_, outcome)| outcome);
                Submitted::Ended(outcome)
            }
            _ => {
                self.taken += 1;
                Submitted::Queued
            }
        }
    }

    /// Begins of a job what can begin.
    fn go_on(&mut self, at: usize) {
        while self.step(at) == Step::On {}
        match self.jobs.get(at).map(|job| &job.wait) {
            Some(Wait::Room) => self.roomless.push_back(at),
            Some(Wait::Extent | Wait::Release(..)) => self.parked.push(at),
            Some(Wait::Nothing) | None => {}
        }
    }

    /// As [`Self::go_on`], and tells its end.
    fn go_on_or_end(&mut self, at: usize) {
        self.go_on(at);
        if self.jobs.get(at).is_some_and(|job| job.is_over()) {
            self.ended.extend(self.jobs.remove(at));
        }
    }

    fn step(&mut self, at: usize) -> Step {
        let closed = self.gate().is_closed();
        let Some(job) = self.jobs.get(at) else { return Step::Rests };
        if closed {
            job.give_up(Outcome::Failed(Fault::Gone));
        }
        if let Wait::Release(ticket, then) = &job.wait {
            match ticket.answered() {
                Answered::Open => return Step::Rests,
                Answered::Done => job.advance(then.saturating_sub(job.at)),
                Answered::Failed => job.give_up(Outcome::Failed(Fault::Media)),
                // Looked at anew, by the map of the volume as it is now.
                Answered::Outdated => {}
            }
        }
        job.wait = Wait::Nothing;
        if job.at >= job.end || job.outcome != Outcome::Done {
            job.at = job.end;
            return Step::Rests;
        }
        let (op, start, end) = (job.op, job.at, job.end);
        let stamp = self.pass.begin();
        let extent = start >> self.shift;
        let entry = self.entry(extent);
        let len = end.min((extent + 1) << self.shift) - start;
        let is_write = matches!(op, Op::Write { .. });
        let is_zeroing = matches!(op, Op::WriteZeroes { .. } | Op::Discard);
        if let Some(run) = self.run_to_release(op, start, end).filter(|_| is_zeroing) {
            self.pass.end(stamp);
            return self.ask_release(at, run);
        }
        let place = match entry {
            Entry::Mapped { physical } => Some(physical),
            Entry::Shared { physical } if op == Op::Read => Some(physical),
            Entry::Shared { .. } => None,
            Entry::Unmapped if is_write => None,
            Entry::Unmapped => {
                self.pass.end(stamp);
                return self.skip_unmapped(at, op, len);
            }
        };
        match place {
            Some(physical) => self.piece(at, stamp, self.place(physical, start), len),
            None => {
                self.pass.end(stamp);
                let refusal = self.gate().refusal(extent);
                match (refusal, self.jobs.get(at)) {
                    (Some(fault), Some(job)) => {
                        job.give_up(Outcome::Failed(fault));
                        Step::Rests
                    }
                    _ => self.ask_own(at, start, end),
                }
            }
        }
    }

    /// A piece of a job, of one extent.
    fn piece(&mut self, at: usize, stamp: Stamp, place: u64, len: u64) -> Step {
        self.list.clear();
        let mut list = std::mem::take(&mut self.list);
        let Some(job) = self.jobs.get(at) else { return Step::Rests };
        let op = match job.op {
            // A drive's discard is advice; what is asked for here are zeros.
            Op::Discard => Op::WriteZeroes { deallocate: true, fua: false },
            op => op,
        };
        if matches!(op, Op::Read | Op::Write { .. }) {
            job.gather(len, &mut list);
        }
        let range = Range { start_bytes: place, len_bytes: len };
        let request = Request { token: Token(0), op, range, data: &list };
        // SAFETY: segments of a request that has not ended.
        let submitted = unsafe { self.pass_down(stamp, Owner::Job(at), request) };
        self.list = list;
        let Some(job) = self.jobs.get(at) else { return Step::Rests };
        match submitted {
            Submitted::Full => {
                job.wait = Wait::Room;
                return Step::Rests;
            }
            Submitted::Queued => job.pieces += 1,
            Submitted::Ended(outcome) => job.merge(outcome),
        }
        job.advance(len);
        Step::On
    }

    /// What was never written: zeros to whoever reads it, and nothing to do for whoever wants zeros.
    fn skip_unmapped(&mut self, at: usize, op: Op, len: u64) -> Step {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        if let Some(job) = self.jobs.get(at) {
            if op == Op::Read {
                job.gather(len, &mut list);
            }
            job.advance(len);
        }
        for segment in &list {
            // SAFETY: segments of a request that has not ended.
            unsafe { segment.fill(0) };
        }
        self.list = list;
        Step::On
    }

    /// Asks for every extent that the rest of a job needs and does not have, so that the pool's thread can give all at once.
    fn ask_own(&mut self, at: usize, start: u64, end: u64) -> Step {
        let volume = self.gate().volume();
        for extent in start >> self.shift..=(end - 1) >> self.shift {
            let missing = !matches!(self.entry(extent), Entry::Mapped { .. });
            if let Ok(extent) = u32::try_from(extent)
                && missing
            {
                self.allocator.own(volume, extent);
            }
        }
        if let Some(job) = self.jobs.get(at) {
            job.wait = Wait::Extent;
        }
        Step::Rests
    }

    /// The whole mapped extents that a request begins with and that go back to the pool.
    fn run_to_release(&self, op: Op, start: u64, end: u64) -> Option<(u32, u32)> {
        let wanted = matches!(op, Op::Discard | Op::WriteZeroes { deallocate: true, .. });
        let extent_bytes = 1_u64 << self.shift;
        if !wanted || !self.gives_back || start & (extent_bytes - 1) != 0 {
            return None;
        }
        // The last extent may be cut short by the volume's end.
        let last = if end == self.capacity_bytes() { end.next_multiple_of(extent_bytes) } else { end };
        let (first, last) = (start >> self.shift, last >> self.shift);
        let run = (first..last).take_while(|extent| self.entry(*extent) != Entry::Unmapped).count();
        let until = first + run as u64;
        (run > 0).then_some((u32::try_from(first).ok()?, u32::try_from(until).ok()?))
    }

    fn ask_release(&mut self, at: usize, run: (u32, u32)) -> Step {
        let ticket = Arc::new(Ticket::new(self.capacity_bytes()));
        self.allocator.release(self.gate().volume(), run, Arc::clone(&ticket));
        let then = u64::from(run.1) << self.shift;
        if let Some(job) = self.jobs.get(at) {
            job.wait = Wait::Release(ticket, then.min(job.end));
        }
        Step::Rests
    }

    fn take_from_drive(&mut self, done: &mut Vec<Completion>) {
        let mut taken = std::mem::take(&mut self.done);
        self.lower.poll(&mut taken);
        for (token, outcome) in taken.drain(..) {
            let Some(flight) = self.flights.end(token) else { continue };
            self.pass.end(flight.stamp);
            match flight.owner {
                Owner::Request(token) if done.len() < done.capacity() => {
                    self.taken -= 1;
                    done.push((token, outcome));
                }
                Owner::Request(token) => self.ended.push_back((token, outcome)),
                Owner::Job(at) => {
                    if let Some(job) = self.jobs.get(at) {
                        job.pieces = job.pieces.saturating_sub(1);
                        job.merge(outcome);
                    }
                    if self.jobs.get(at).is_some_and(|job| job.is_over()) {
                        self.ended.extend(self.jobs.remove(at));
                    }
                }
            }
        }
        self.done = taken;
    }

    #[cold]
    fn wake_parked(&mut self, changes: u64) {
        self.seen = changes;
        self.map = self.gate().map();
        for at in std::mem::take(&mut self.parked) {
            self.go_on_or_end(at);
        }
    }

    fn give_room(&mut self) {
        for _ in 0..self.roomless.len() {
            let Some(at) = self.roomless.pop_front() else { break };
            self.go_on_or_end(at);
        }
    }
}

impl<B: Backend + ?Sized> Backend for Door<B> {
    fn limits(&self) -> Limits {
        Limits {
            // Not the map's at hand: that is an older one until a request needs the new.
            capacity_bytes: self.gate().size_bytes(),
            discard: self.gives_back || self.drive.discard,
            ..self.drive
        }
    }

    #[inline]
    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if self.gate().is_closed() {
            return Submitted::Ended(Outcome::Failed(Fault::Gone));
        }
        if request.op != Op::Flush {
            if let Err(outcome) = self.check(request).or_else(|_| self.check_grown(request)) {
                return Submitted::Ended(outcome);
            }
            if request.range.len_bytes == 0 {
                return Submitted::Ended(Outcome::Done);
            }
        }
        let stamp = self.pass.begin();
        let place = match request.op {
            Op::Flush => Some(0),
            op => self.whole(op, request.range),
        };
        let Some(start_bytes) = place else {
            self.pass.end(stamp);
            // SAFETY: as promised to us.
            return unsafe { self.submit_job(request) };
        };
        let range = Range { start_bytes, ..request.range };
        // SAFETY: as promised to us.
        let submitted =
            unsafe { self.pass_down(stamp, Owner::Request(request.token), Request { range, ..*request }) };
        self.taken += usize::from(submitted == Submitted::Queued);
        submitted
    }

    #[inline]
    fn kick(&mut self) {
        self.lower.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.lower.in_flight() > 0 {
            self.take_from_drive(done);
        }
        let went_on = !self.roomless.is_empty() || !self.parked.is_empty();
        if !self.roomless.is_empty() {
            self.give_room();
        }
        let changes = self.gate().changes();
        if changes != self.seen {
            self.wake_parked(changes);
        }
        while done.len() < done.capacity() {
            let Some(ended) = self.ended.pop_front() else { break };
            self.taken -= 1;
            done.push(ended);
        }
        if went_on {
            self.lower.kick();
        }
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.taken
    }

    fn at_drive(&self) -> usize {
        // What the next poll lets go is as good as there.
        let going = if self.gate().changes() == self.seen { 0 } else { self.parked.len() };
        self.lower.in_flight() + self.roomless.len() + self.ended.len() + going
    }

    /// A release is not given up: it is answered soon, and may take back what is written after it.
    fn give_up_waiting(&mut self, whose: &dyn Fn(Token) -> bool) {
        for at in std::mem::take(&mut self.parked) {
            let unwanted = |job: &&mut Job| matches!(job.wait, Wait::Extent) && whose(job.token);
            let Some(job) = self.jobs.get(at).filter(unwanted) else {
                self.parked.push(at);
                continue;
            };
            job.give_up(Outcome::Failed(Fault::NoSpace));
            if job.is_over() {
                self.ended.extend(self.jobs.remove(at));
            }
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.lower.wake_fd()
    }

    fn memory_changed(&mut self, map: &Arc<MemoryMap>) {
        self.lower.memory_changed(map);
    }
}
