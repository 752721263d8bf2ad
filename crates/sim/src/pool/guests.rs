//! The guests of a pool's volumes, their doors, and the auditor: what each sector of each volume may hold.
//!
//! Guests touch the first and last sectors of extents only (those are *hot*), which is where extents of one owner and of the next
//! meet. Every write has a stamp of its own, so whoever reads one that was not written to his volume reads somebody else's data.
#![expect(unsafe_code, reason = "buffers of the simulated guests are handed to doors")]
// UNSAFETY: a command's buffer is kept until its answer came, or the door that had it is gone and the drive was told so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Backend, Completion, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use volume::VolumeId;
use volume::door::{Allocator, Door, Gate};

use super::process::Lower;
use crate::disk::{Disk, SECTOR};
use crate::ledger::{Content, End, Ledger};
use crate::rng::Rng;

/// Sectors of an extent.
pub(super) const EXTENT_SECTORS: u64 = 2048;
/// Hot sectors at each end of an extent.
const HOT: u64 = 8;
/// Outstanding commands of one door, at most.
const DEPTH: usize = 5;

/// What guests know of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Face {
    pub(super) sectors: u64,
    pub(super) thin: bool,
    pub(super) read_only: bool,
}

/// One command.
struct Io {
    volume: u32,
    op: Op,
    start: u64,
    sectors: u64,
    data: Box<[u8]>,
    begun: u64,
    /// The door that has it.
    seat: Option<usize>,
}

/// A reactor's door to a volume.
struct Seat {
    number: usize,
    volume: u32,
    door: Door<dyn Backend>,
    done: Vec<Completion>,
}

/// See the module.
pub(super) struct Guests {
    pub(super) ledger: Ledger,
    pub(super) clock: u64,
    pub(super) volumes: BTreeMap<u32, Face>,
    pub(super) answers: u64,
    /// A snapshot or clone was asked for then and is not answered: it may hold what there was at that time.
    pub(super) deriving: Option<u64>,
    /// What is wrong.
    pub(super) violation: Option<String>,
    /// Nothing new begins.
    pub(super) quiet: bool,
    /// What happens is printed.
    pub(super) trace: bool,
    seats: Vec<Seat>,
    doors: usize,
    ios: BTreeMap<u64, Io>,
    next: u64,
    rng: Rng,
}

impl Guests {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            ledger: Ledger::default(),
            clock: 1,
            volumes: BTreeMap::new(),
            answers: 0,
            deriving: None,
            violation: None,
            quiet: false,
            trace: false,
            seats: Vec::new(),
            doors: 0,
            ios: BTreeMap::new(),
            next: 1,
            rng,
        }
    }

    /// One thing happens at a reactor, or at the drive.
    pub(super) fn turn(&mut self, disk: &RefCell<Disk>) {
        match self.rng.below(10) {
            0..=2 if !self.quiet => self.begin(),
            0..=5 => {
                let at = self.rng.below(self.seats.len());
                self.poll(at);
            }
            _ => disk.borrow_mut().step(),
        }
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A door more for a volume.
    pub(super) fn sit(&mut self, volume: u32, gate: &Arc<Gate>, allocator: Arc<dyn Allocator>) {
        let Some(face) = self.volumes.get(&volume) else { return };
        self.doors += 1;
        let lower: Box<dyn Backend> = Box::new(Lower::new(self.doors));
        let door = Door::new(lower, gate, allocator, face.thin, Arc::new(|| {}));
        self.seats.push(Seat { number: self.doors, volume, door, done: Vec::with_capacity(4) });
    }

    pub(super) fn seats_of(&self, volume: u32) -> usize {
        self.seats.iter().filter(|seat| seat.volume == volume).count()
    }

    /// Closes the doors of a volume, if nothing of it is under way.
    pub(super) fn leave(&mut self, volume: u32) -> bool {
        if self.ios.values().any(|io| io.volume == volume) {
            return false;
        }
        self.seats.retain(|seat| seat.volume != volume);
        true
    }

    /// The process is gone. Its commands have no answer yet.
    pub(super) fn orphan(&mut self) {
        self.seats.clear();
        self.ios.values_mut().for_each(|io| io.seat = None);
    }

    /// The host is gone, and all who waited for an answer.
    pub(super) fn power_loss(&mut self) {
        self.ios.clear();
        let at = self.tick();
        self.ledger.power_loss(at);
    }

    /// Volumes with commands that no door has.
    pub(super) fn left_over(&self) -> Vec<u32> {
        let mut volumes: Vec<u32> =
            self.ios.values().filter(|io| io.seat.is_none()).map(|io| io.volume).collect();
        volumes.dedup();
        volumes
    }

    pub(super) fn outstanding(&self) -> usize {
        self.ios.len()
    }

    /// Commands that no door has are given to one, in the order they were begun.
    pub(super) fn submit_again(&mut self) {
        let waiting: Vec<u64> =
            self.ios.iter().filter(|(_, io)| io.seat.is_none()).map(|(token, _)| *token).collect();
        for token in waiting {
            self.submit(token);
        }
    }

    fn begin(&mut self) {
        let at = self.rng.below(self.seats.len());
        let Some(Seat { number, volume, .. }) = self.seats.get(at) else { return };
        let (number, volume) = (*number, *volume);
        let Some(face) = self.volumes.get(&volume).copied() else { return };
        if self.ios.values().filter(|io| io.seat == Some(number)).count() >= DEPTH {
            return;
        }
        let fua = self.rng.one_in(8);
        let op = match self.rng.below(100) {
            0..=34 => Op::Read,
            _ if face.read_only => Op::Read,
            35..=74 => Op::Write { fua },
            75..=79 => Op::WriteZeroes { deallocate: self.rng.percent(50), fua },
            80..=89 if self.rng.percent(50) => Op::Discard,
            80..=89 => Op::WriteZeroes { deallocate: true, fua },
            _ => Op::Flush,
        };
        let whole = matches!(op, Op::Discard) || (op_is_zeroes(op) && self.rng.percent(60));
        let (start, sectors) = if whole { self.extents(face) } else { self.place(face) };
        let (token, begun) = (self.next, self.tick());
        self.next += 1;
        let stamped = |sector| Content::Stamp(token, sector);
        let len = if matches!(op, Op::Read | Op::Write { .. }) { bytes(sectors) } else { 0 };
        let mut data = vec![0xA5; len].into_boxed_slice();
        let changed = (start..start + sectors).filter(|sector| is_hot(*sector));
        match op {
            Op::Read | Op::Flush => {}
            Op::Write { .. } => {
                for (sector, part) in (start..).zip(data.chunks_mut(SECTOR)) {
                    stamped(sector).fill(part);
                }
                self.ledger.begin(token, volume, changed, begun, stamped);
            }
            _ => self.ledger.begin(token, volume, changed, begun, |_| Content::Zero),
        }
        if self.trace {
            println!("{begun}: #{token} {op:?} of {sectors} at {start} of volume {volume}, door {number}");
        }
        self.ios.insert(token, Io { volume, op, start, sectors, data, begun, seat: None });
        self.submit(token);
    }

    /// Some hot sectors, of one extent or across two.
    fn place(&mut self, face: Face) -> (u64, u64) {
        let extents = face.sectors.div_ceil(EXTENT_SECTORS);
        let first = self.draw(extents) * EXTENT_SECTORS;
        let by = self.draw(HOT);
        let (start, most) = match self.rng.percent(50) {
            true => (first + by, HOT - by),
            false => (first + EXTENT_SECTORS - HOT + by, HOT),
        };
        let start = start.min(face.sectors - 1);
        if !is_hot(start) {
            // The volume's end cuts the extent short.
            return (first, 1);
        }
        let most = most.min(face.sectors - start);
        (start, 1 + self.draw(most))
    }

    /// One or two whole extents.
    fn extents(&mut self, face: Face) -> (u64, u64) {
        let first = self.draw(face.sectors.div_ceil(EXTENT_SECTORS)) * EXTENT_SECTORS;
        let count = (1 + self.draw(2)) * EXTENT_SECTORS;
        (first, count.min(face.sectors - first))
    }

    fn draw(&mut self, end: u64) -> u64 {
        self.rng.word() % end.max(1)
    }

    fn submit(&mut self, token: u64) {
        let Some(io) = self.ios.get_mut(&token) else { return };
        let Some(seat) = self.seats.iter_mut().filter(|seat| seat.volume == io.volume).max_by_key(|seat| {
            // Any of them, but the same for a seed.
            (token ^ seat.number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }) else {
            return;
        };
        let range = Range { start_bytes: io.start * SECTOR as u64, len_bytes: io.sectors * SECTOR as u64 };
        let whole = Segment::of(&mut io.data);
        let (front, back) = whole.split_at(io.data.len() / 3);
        let data: &[Segment] = if io.data.is_empty() { &[] } else { &[front, back] };
        io.seat = Some(seat.number);
        // SAFETY: see the module.
        let submitted = unsafe { seat.door.submit(&Request { token: Token(token), op: io.op, range, data }) };
        match submitted {
            Submitted::Queued => {}
            Submitted::Full => io.seat = None,
            Submitted::Ended(outcome) => self.answered(token, outcome),
        }
    }

    fn poll(&mut self, at: usize) {
        let Some(seat) = self.seats.get_mut(at) else { return };
        let mut done = std::mem::take(&mut seat.done);
        seat.door.kick();
        seat.door.poll(&mut done);
        for (token, outcome) in &done {
            self.answered(token.0, *outcome);
        }
        done.clear();
        if let Some(seat) = self.seats.get_mut(at) {
            seat.done = done;
        }
        self.submit_again();
    }

    fn answered(&mut self, token: u64, outcome: Outcome) {
        let Some(io) = self.ios.remove(&token) else {
            self.violation.get_or_insert(format!("command {token} is answered and nobody waits for it"));
            return;
        };
        self.answers += 1;
        let at = self.tick();
        let oldest = self.ios.values().map(|io| io.begun).chain(self.deriving).min().unwrap_or(at);
        if self.trace {
            println!("{at}: #{token} {outcome:?}");
        }
        match (io.op, outcome) {
            (Op::Read, Outcome::Done) => self.verify(&io),
            (Op::Flush, Outcome::Done) => self.ledger.flushed(None, io.begun),
            (Op::Read | Op::Flush, _) => {}
            (op, Outcome::Done) => {
                let fua = matches!(op, Op::Write { fua: true } | Op::WriteZeroes { fua: true, .. });
                let durable = fua || self.returned(&io);
                self.ledger.end(token, at, if durable { End::Durable } else { End::Done }, oldest);
            }
            (_, Outcome::Failed(_)) => self.ledger.end(token, at, End::Unknown, oldest),
        }
    }

    /// Whole extents went back to the pool: their record is durable before the answer.
    fn returned(&self, io: &Io) -> bool {
        let Some(face) = self.volumes.get(&io.volume) else { return false };
        let end = io.start + io.sectors;
        let whole = io.start.is_multiple_of(EXTENT_SECTORS)
            && (end.is_multiple_of(EXTENT_SECTORS) || end == face.sectors);
        whole && face.thin && matches!(io.op, Op::Discard | Op::WriteZeroes { deallocate: true, .. })
    }

    fn verify(&mut self, io: &Io) {
        for (sector, bytes) in (io.start..).zip(io.data.chunks(SECTOR)) {
            let content = Content::read(bytes);
            let allowed = content.filter(|content| self.is_allowed(io.volume, sector, *content, io.begun));
            match allowed {
                Some(content) => self.ledger.decide(io.volume, sector, content),
                None => self.strange(io.volume, sector, content),
            }
        }
    }

    fn is_allowed(&self, volume: u32, sector: u64, content: Content, since: u64) -> bool {
        let own = match content {
            Content::Stamp(_, origin) => origin == sector,
            _ => true,
        };
        own && self.ledger.is_allowed(volume, sector, content, since)
    }

    fn strange(&mut self, volume: u32, sector: u64, content: Option<Content>) {
        let known = self.ledger.describe(volume, sector);
        self.violation.get_or_insert(format!(
            "sector {sector} of volume {volume} holds {content:?}; it may hold: {known}"
        ));
    }

    /// What lies in an extent of a volume on the drive, or zeros for one that is nowhere.
    pub(super) fn audit(&mut self, volume: VolumeId, extent: u32, bytes: &[u8]) {
        let Some((volume, face)) = known(&self.volumes, volume) else { return };
        let (first, since) = (u64::from(extent) * EXTENT_SECTORS, self.clock);
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            let content = Content::read(bytes);
            let fine = match content {
                // Beyond the volume's end, and where no guest ever wrote, there are zeros.
                Some(content) if is_hot(sector) && sector < face.sectors => {
                    self.is_allowed(volume, sector, content, since)
                }
                content => content == Some(Content::Zero),
            };
            if !fine {
                return self.strange(volume, sector, content);
            }
        }
    }
}

fn known(volumes: &BTreeMap<u32, Face>, id: VolumeId) -> Option<(u32, Face)> {
    let id = u32::try_from(id.0).ok()?;
    Some((id, *volumes.get(&id)?))
}

fn op_is_zeroes(op: Op) -> bool {
    matches!(op, Op::WriteZeroes { .. })
}

pub(super) fn is_hot(sector: u64) -> bool {
    let at = sector % EXTENT_SECTORS;
    !(HOT..EXTENT_SECTORS - HOT).contains(&at)
}

fn bytes(sectors: u64) -> usize {
    usize::try_from(sectors).unwrap_or(usize::MAX) * SECTOR
}
