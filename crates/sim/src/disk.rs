//! The model drive: a volatile write cache, requests that end in any order, faults, and what a crash or a power cut leaves.
#![expect(unsafe_code, reason = "the drive moves bytes between itself and guest memory")]
// UNSAFETY: segments are touched while the engine that named them is alive, or when they lie in guest RAM, which lives as long
// as the world. `Disk::orphan` copies what lies elsewhere before the engine's buffers go.

use std::collections::BTreeSet;
use std::rc::Rc;

use block::{Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;

use crate::rng::Rng;

/// Bytes of a sector: what is written whole or not at all.
pub const SECTOR: usize = 512;

/// What a write put into one sector.
#[derive(Clone)]
enum Bytes {
    Zero,
    Part(Rc<Vec<u8>>, usize),
}

impl Bytes {
    fn copy_to(&self, to: &mut [u8]) {
        match self {
            Self::Zero => to.fill(0),
            Self::Part(data, at) => to.copy_from_slice(&data[*at..*at + SECTOR]),
        }
    }
}

/// A write that is in the cache and not known to be on the medium.
struct Cached {
    request: u64,
    bytes: Bytes,
    /// When its end was reported: only then does a later flush cover it.
    reported: Option<u64>,
}

/// Where a request's data is.
enum Data {
    Guest(Vec<Segment>),
    /// The dead engine's own buffer, as it was at its death.
    Kept(Rc<Vec<u8>>),
    /// Nobody wants it.
    None,
}

/// A request at the drive.
struct Pending {
    id: u64,
    /// Which reactor's.
    door: usize,
    token: Token,
    op: Op,
    range: Range,
    data: Data,
    submitted: u64,
    ended: Option<Outcome>,
}

/// How the drive behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// Percent of requests that end within `submit`.
    pub at_once: usize,
    /// Percent of submissions for which there is no room.
    pub full: usize,
    /// Of a thousand requests, how many fail.
    pub faults: usize,
    /// Discards are understood.
    pub discard: bool,
}

/// The drive.
pub struct Disk {
    now: Vec<u8>,
    stable: Vec<u8>,
    cached: Vec<Vec<Cached>>,
    /// Sectors with something cached.
    dirty: BTreeSet<usize>,
    pending: Vec<Pending>,
    manners: Manners,
    /// Guest RAM: first address and length.
    ram: (usize, usize),
    rng: Rng,
    clock: u64,
    /// Faults so far.
    pub faults: u64,
}

impl Disk {
    /// A drive of zeros.
    #[must_use]
    pub fn new(capacity: usize, manners: Manners, ram: (usize, usize), rng: Rng) -> Self {
        Self {
            now: vec![0; capacity],
            stable: vec![0; capacity],
            cached: (0..capacity / SECTOR).map(|_| Vec::new()).collect(),
            dirty: BTreeSet::new(),
            pending: Vec::new(),
            manners,
            ram,
            rng,
            clock: 0,
            faults: 0,
        }
    }

    /// Constant facts.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let capacity_bytes = self.now.len() as u64;
        Limits { capacity_bytes, block_bytes: 512, segments_max: 8, discard: self.manners.discard }
    }

    /// From now on nothing fails, and there is room.
    pub fn calm(&mut self) {
        self.manners.faults = 0;
        self.manners.full = 0;
    }

    /// Takes a request of a live engine.
    pub fn submit(&mut self, door: usize, request: &Request<'_>) -> Submitted {
        if self.rng.percent(self.manners.full) {
            return Submitted::Full;
        }
        self.clock += 1;
        let bad = request.range.end_bytes().is_none_or(|end| end > self.now.len() as u64);
        if bad || !request.range.start_bytes.is_multiple_of(SECTOR as u64) {
            return Submitted::Ended(Outcome::Failed(Fault::OutOfRange));
        }
        let mut pending = Pending {
            id: self.clock,
            door,
            token: request.token,
            op: request.op,
            range: request.range,
            data: Data::Guest(request.data.to_vec()),
            submitted: self.clock,
            ended: None,
        };
        if self.rng.percent(self.manners.at_once) {
            let outcome = self.carry_out(&mut pending);
            self.reported(pending.id, pending.range);
            return Submitted::Ended(outcome);
        }
        self.pending.push(pending);
        Submitted::Queued
    }

    /// A write by a system call: it has ended when this returns, and is in the cache. `None` writes zeros.
    pub fn write_now(&mut self, start: u64, len: u64, bytes: Option<&[u8]>) {
        self.clock += 1;
        let op = match bytes {
            Some(_) => Op::Write { fua: false },
            None => Op::WriteZeroes { deallocate: true, fua: false },
        };
        let mut pending = Pending {
            id: self.clock,
            door: usize::MAX,
            token: Token(0),
            op,
            range: Range { start_bytes: start, len_bytes: len },
            data: bytes.map_or(Data::None, |bytes| Data::Kept(Rc::new(bytes.to_vec()))),
            submitted: self.clock,
            ended: None,
        };
        self.perform(&mut pending, |_| true);
        self.reported(pending.id, pending.range);
    }

    /// A flush by a system call.
    pub fn flush_now(&mut self) {
        self.clock += 1;
        self.flush(self.clock);
    }

    /// Bytes as a read sees them.
    #[must_use]
    pub fn look(&self, start: u64, len: u64) -> &[u8] {
        self.now.get(index(start)..index(start.saturating_add(len))).unwrap_or_default()
    }

    /// Requests whose end was not reported.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Moves one request on, whichever.
    pub fn step(&mut self) {
        let waiting: Vec<usize> =
            (0..self.pending.len()).filter(|at| self.pending[*at].ended.is_none()).collect();
        if let Some(at) = self.rng.pick(&waiting) {
            let mut pending = self.pending.swap_remove(at);
            let outcome = self.carry_out(&mut pending);
            pending.ended = Some(outcome);
            self.pending.push(pending);
        }
    }

    /// The next end for this door.
    pub fn reap(&mut self, door: usize) -> Option<(Token, Outcome)> {
        let at = self.pending.iter().position(|p| p.door == door && p.ended.is_some())?;
        let pending = self.pending.swap_remove(at);
        self.reported(pending.id, pending.range);
        Some((pending.token, pending.ended?))
    }

    fn reported(&mut self, id: u64, range: Range) {
        self.clock += 1;
        let at = self.clock;
        for sector in sectors(range) {
            for cached in self.cached[sector].iter_mut().filter(|cached| cached.request == id) {
                cached.reported = Some(at);
            }
        }
    }

    fn carry_out(&mut self, pending: &mut Pending) -> Outcome {
        if self.rng.below(1000) < self.manners.faults {
            self.faults += 1;
            // Part of it may have landed.
            if self.rng.percent(50) {
                let keep = self.rng.word();
                self.perform(pending, |sector| keep >> (sector % 64) & 1 == 1);
            }
            return Outcome::Failed(if self.rng.percent(80) { Fault::Media } else { Fault::Gone });
        }
        self.perform(pending, |_| true);
        Outcome::Done
    }

    fn perform(&mut self, pending: &mut Pending, lands: impl Fn(usize) -> bool) {
        let (start, len) = (index(pending.range.start_bytes), index(pending.range.len_bytes));
        match pending.op {
            Op::Read => {
                if let Data::Guest(segments) = &pending.data {
                    scatter(segments, &self.now[start..start + len]);
                }
            }
            Op::Write { fua } => {
                let bytes = match &pending.data {
                    Data::Guest(segments) => Rc::new(gather(segments, len)),
                    Data::Kept(bytes) => Rc::clone(bytes),
                    Data::None => return,
                };
                for (at, sector) in sectors(pending.range).enumerate().filter(|(_, s)| lands(*s)) {
                    let part = Bytes::Part(Rc::clone(&bytes), at * SECTOR);
                    self.store(sector, part, pending.id, fua);
                }
            }
            Op::WriteZeroes { fua, .. } => {
                for sector in sectors(pending.range).filter(|sector| lands(*sector)) {
                    self.store(sector, Bytes::Zero, pending.id, fua);
                }
            }
            Op::Discard => {
                for sector in sectors(pending.range).filter(|sector| lands(*sector)) {
                    self.store(sector, Bytes::Zero, pending.id, false);
                }
            }
            Op::Flush => self.flush(pending.submitted),
        }
    }

    fn store(&mut self, sector: usize, bytes: Bytes, request: u64, fua: bool) {
        let place = sector * SECTOR..(sector + 1) * SECTOR;
        bytes.copy_to(&mut self.now[place.clone()]);
        if fua {
            bytes.copy_to(&mut self.stable[place]);
            self.cached[sector].clear();
            self.dirty.remove(&sector);
        } else {
            self.dirty.insert(sector);
            self.cached[sector].push(Cached { request, bytes, reported: None });
        }
    }

    /// What had ended before the flush was submitted is on the medium; of the rest nothing is known.
    fn flush(&mut self, submitted: u64) {
        let covered = |c: &Cached| c.reported.is_some_and(|at| at < submitted);
        self.dirty.retain(|&sector| {
            let cached = &mut self.cached[sector];
            if let Some(last) = cached.iter().rposition(covered) {
                cached[last].bytes.copy_to(&mut self.stable[sector * SECTOR..(sector + 1) * SECTOR]);
                cached.drain(..=last);
            }
            !cached.is_empty()
        });
    }

    /// The engine was killed: what it had at the drive goes on without it. Its private buffers are about to go.
    pub fn orphan(&mut self) {
        let (from, to) = (self.ram.0, self.ram.0 + self.ram.1);
        for pending in &mut self.pending {
            pending.door = usize::MAX;
            let Data::Guest(segments) = &pending.data else { continue };
            let private = segments.iter().any(|s| !(from..to).contains(&s.addr().addr()));
            if private {
                pending.data = match pending.op {
                    Op::Write { .. } => Data::Kept(Rc::new(gather(segments, index(pending.range.len_bytes)))),
                    _ => Data::None,
                };
            }
        }
    }

    /// Every request of the dead engine ends, done, not done or in part; nothing of it happens after this.
    pub fn fence(&mut self) {
        while !self.pending.is_empty() {
            let at = self.rng.below(self.pending.len());
            let mut pending = self.pending.swap_remove(at);
            if pending.ended.is_none() {
                let keep = self.rng.word();
                match self.rng.below(3) {
                    0 => {}
                    1 => self.perform(&mut pending, |_| true),
                    _ => self.perform(&mut pending, |sector| keep >> (sector % 64) & 1 == 1),
                }
            }
        }
    }

    /// Power is gone: each sector keeps what is stable or any write since; requests landed in any part.
    pub fn power_loss(&mut self) {
        for mut pending in std::mem::take(&mut self.pending) {
            let keep = self.rng.word();
            if pending.ended.is_none() && pending.op != Op::Read && pending.op != Op::Flush {
                self.perform(&mut pending, |sector| keep >> (sector % 64) & 1 == 1);
            }
        }
        for sector in std::mem::take(&mut self.dirty) {
            let cached = std::mem::take(&mut self.cached[sector]);
            let place = sector * SECTOR..(sector + 1) * SECTOR;
            if let Some(survivor) = cached.get(self.rng.below(cached.len() + 1)) {
                survivor.bytes.copy_to(&mut self.stable[place.clone()]);
            }
            let stable = &self.stable[place.clone()];
            self.now[place].copy_from_slice(stable);
        }
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn sectors(range: Range) -> impl Iterator<Item = usize> {
    let first = index(range.start_bytes) / SECTOR;
    first..first + index(range.len_bytes) / SECTOR
}

fn scatter(segments: &[Segment], bytes: &[u8]) {
    let mut rest = bytes;
    for segment in segments {
        let (part, tail) = rest.split_at(segment.len().min(rest.len()));
        // SAFETY: see the module.
        unsafe { segment.copy_from(part) };
        rest = tail;
    }
    assert!(rest.is_empty(), "segments add up to the range");
}

fn gather(segments: &[Segment], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut rest = &mut bytes[..];
    for segment in segments {
        let (part, tail) = rest.split_at_mut(segment.len().min(rest.len()));
        // SAFETY: see the module.
        unsafe { segment.copy_to(part) };
        rest = tail;
    }
    assert!(rest.is_empty(), "segments add up to the range");
    bytes
}
