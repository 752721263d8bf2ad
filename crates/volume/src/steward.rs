//! What a pool's one thread does, as a machine that is turned: it gives doors the extents they ask for, takes extents back, wipes
//! them, and waits for I/O by older maps. It has no thread, mailbox or clock of its own, so a simulation turns it as the engine does.
//!
//! The order of things, for each kind of change (what a kill between any two leaves is in `docs/decisions/0017-door.md`):
//!
//! - an extent for a write: record durable, entry, announcement, the write goes on
//! - a copy before a write: copy, flush, record durable, entry, announcement, the write goes on; what is left over is wiped
//! - taken back: record durable, entry, answer; then wait for all I/O by the old entry, wipe, read back, record durable, free
//! - snapshot, clone: record durable, entries shared; then wait for all I/O by the old entries, answer; no copy before that

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Weak};

use crate::ahead::Ahead;
use crate::door::{Gate, Ticket};
use crate::pool::WANTED_MAX;
use crate::{Allocation, CopyOrder, Pool, PoolError, VolumeId, VolumeSpec, WipeOrder};

/// Wiped in one turn: bounds how long a write waits for an extent meanwhile.
const WIPE_STEP_BYTES: u64 = 8 << 20;
/// Extents ordered to be wiped at once.
const WIPE_EXTENTS_MAX: u32 = 64;

/// The pool's drive, for the data that the steward moves itself. Nothing of it needs to be durable when a call returns: the pool
/// flushes before it writes that down.
pub trait Medium {
    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// It may not be, all of it.
    fn zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<()>;

    /// Reads a range back: whether all of it is zeros.
    ///
    /// # Errors
    /// It cannot be read.
    fn is_zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<bool>;

    /// Copies a range to another.
    ///
    /// # Errors
    /// The target may hold anything.
    fn copy(&self, from_bytes: u64, to_bytes: u64, len_bytes: u64) -> io::Result<()>;
}

impl<M: Medium + ?Sized> Medium for Arc<M> {
    fn zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<()> {
        (**self).zero(start_bytes, len_bytes)
    }

    fn is_zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<bool> {
        (**self).is_zero(start_bytes, len_bytes)
    }

    fn copy(&self, from_bytes: u64, to_bytes: u64, len_bytes: u64) -> io::Result<()> {
        (**self).copy(from_bytes, to_bytes, len_bytes)
    }
}

/// What an operator or a log should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody must do something.
    Fault(String),
    /// Somebody may want to know.
    Remark(String),
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do.
    Turn,
    /// I/O at the drive is waited for: look again in a while, or when asked.
    Look,
    /// Nothing until asked.
    Rest,
}

/// A snapshot or clone that is not to be told of before [`Steward::is_settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settling(u64);

/// A number of the pool's, and the gates whose doors are waited for, each with its generation.
type Grace = (u64, Vec<(Arc<Gate>, u64)>);

/// See the module.
#[derive(Debug)]
pub struct Steward<M> {
    pool: Pool,
    medium: M,
    /// Of volumes that are served, or were.
    gates: BTreeMap<VolumeId, Weak<Gate>>,
    /// Those of them that are only written down: nobody waits there for space.
    landing: BTreeSet<VolumeId>,
    /// Extents that doors wait for.
    wanted: BTreeSet<(VolumeId, u32)>,
    /// The wanted were asked for with this much free, and there was none.
    hungry: bool,
    /// An operator was told that it is full.
    told: bool,
    /// A wait for I/O by older maps, and the pool's number of the last change before it.
    grace: Option<Grace>,
    /// The pool's number up to which the waits are over.
    graced: u64,
    /// The newest snapshot or clone: until the wait for it is over, no copy may begin.
    settling: u64,
    wiping: Option<(WipeOrder, u64)>,
    ahead: Ahead,
    /// Why nothing of the map can change any more.
    broken: Option<String>,
    news: Vec<News>,
}

impl<M: Medium> Steward<M> {
    /// For a pool that was just opened, and the drive it is on.
    pub fn new(pool: Pool, medium: M) -> Self {
        Self {
            graced: pool.grace(),
            settling: pool.grace(),
            pool,
            medium,
            gates: BTreeMap::new(),
            landing: BTreeSet::new(),
            wanted: BTreeSet::new(),
            hungry: false,
            told: false,
            grace: None,
            wiping: None,
            ahead: Ahead::default(),
            broken: None,
            news: Vec::new(),
        }
    }

    /// The pool, to look at.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The drive.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    /// Why nothing of the map can change any more.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Extents that writes wait for.
    pub fn waiting(&self) -> usize {
        self.wanted.len()
    }

    /// What happened since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Of a volume that is served.
    pub fn gate(&self, id: VolumeId) -> Option<Arc<Gate>> {
        self.gates.get(&id).and_then(Weak::upgrade)
    }

    /// Some volume is served.
    pub fn is_served(&self) -> bool {
        self.gates.values().any(|gate| gate.strong_count() > 0)
    }

    /// The gate of a volume whose owner is here, for its doors.
    ///
    /// # Errors
    /// As [`Pool::may_serve`] and [`Pool::map`].
    pub fn serve(&mut self, id: VolumeId) -> Result<Arc<Gate>, PoolError> {
        self.pool.may_serve(id)?;
        self.landing.remove(&id);
        self.open(id)
    }

    /// The gate of a volume that comes from another host, for who writes it down here and for nobody else. What it has no space for fails: it can come
    /// another time, and the source is not to wait.
    ///
    /// # Errors
    /// As [`Pool::may_land`] and [`Pool::map`], it is served, or there is no space for it.
    pub fn land(&mut self, id: VolumeId) -> Result<Arc<Gate>, PoolError> {
        self.pool.may_land(id)?;
        if self.gate(id).is_some() {
            return Err(PoolError::Open(id));
        }
        self.pool.refill(id)?;
        self.landing.insert(id);
        self.open(id)
    }

    fn open(&mut self, id: VolumeId) -> Result<Arc<Gate>, PoolError> {
        let map = self.pool.map(id)?;
        if let Some(gate) = self.gate(id) {
            gate.replace_map(map);
            return Ok(gate);
        }
        let gate = Gate::new(id, map);
        self.gates.insert(id, Arc::downgrade(&gate));
        Ok(gate)
    }

    /// As [`Pool::create`].
    ///
    /// # Errors
    /// The same.
    pub fn create(&mut self, spec: &VolumeSpec) -> Result<VolumeId, PoolError> {
        self.pool.create(spec)
    }

    /// As [`Pool::delete`], of a volume that nobody serves.
    ///
    /// # Errors
    /// The same, and it is served.
    pub fn delete(&mut self, id: VolumeId) -> Result<(), PoolError> {
        if self.gate(id).is_some() {
            return Err(PoolError::Invalid(format!("volume {id} is served")));
        }
        let along = self.pool.deleted_with(id)?;
        if let Some(open) = along.into_iter().find(|snapshot| self.gate(*snapshot).is_some()) {
            return Err(PoolError::Open(open));
        }
        self.ahead.forget(id);
        self.pool.delete(id)
    }

    /// As [`Pool::grow`]; its doors take the new size.
    ///
    /// # Errors
    /// The same.
    pub fn grow(&mut self, id: VolumeId, size_bytes: u64) -> Result<(), PoolError> {
        self.pool.grow(id, size_bytes)?;
        let map = self.pool.map(id)?;
        if let Some(gate) = self.gate(id) {
            gate.replace_map(map);
        }
        Ok(())
    }

    /// As [`Pool::snapshot`], to be told when it is settled.
    ///
    /// # Errors
    /// The same.
    pub fn snapshot(
        &mut self,
        id: VolumeId,
        name: &str,
        uuid: [u8; 16],
    ) -> Result<(VolumeId, Settling), PoolError> {
        let new = self.pool.snapshot(id, name, uuid)?;
        Ok((new, self.settle()))
    }

    /// As [`Pool::clone_volume`], to be told when it is settled.
    ///
    /// # Errors
    /// The same.
    pub fn clone_volume(
        &mut self,
        id: VolumeId,
        name: &str,
        uuid: [u8; 16],
    ) -> Result<(VolumeId, Settling), PoolError> {
        let new = self.pool.clone_volume(id, name, uuid)?;
        Ok((new, self.settle()))
    }

    /// As [`Pool::keep_come`], of what nobody writes to now.
    ///
    /// # Errors
    /// The same.
    pub fn keep_come(
        &mut self,
        id: VolumeId,
        name: &str,
        uuid: [u8; 16],
        migration: [u8; 16],
    ) -> Result<(), PoolError> {
        self.pool.keep_come(id, name, uuid, migration)?;
        self.settle();
        Ok(())
    }

    /// As [`Pool::mark_went`].
    ///
    /// # Errors
    /// The same.
    pub fn mark_went(&mut self, id: VolumeId, name: &str, migration: [u8; 16]) -> Result<(), PoolError> {
        self.pool.mark_went(id, name, migration)
    }

    /// The gate of a snapshot, for doors that read. It cannot be deleted as long as somebody has it.
    ///
    /// # Errors
    /// It is none.
    pub fn look(&mut self, id: VolumeId) -> Result<Arc<Gate>, PoolError> {
        match self.pool.volume(id) {
            Some(info) if info.read_only => self.open(id),
            _ => Err(PoolError::NoVolume(id)),
        }
    }

    /// As [`Pool::set_passage`]. Doors that are open stay so: whoever opened them lets nothing through that the step does not allow.
    ///
    /// # Errors
    /// The same.
    pub fn set_passage(&mut self, id: VolumeId, bytes: &[u8]) -> Result<(), PoolError> {
        self.pool.set_passage(id, bytes)
    }

    /// As [`Pool::vacate`], of a volume that nobody has open.
    ///
    /// # Errors
    /// The same, and somebody has.
    pub fn vacate(&mut self, id: VolumeId) -> Result<(), PoolError> {
        let all = self.pool.snapshots_of(id).into_iter().chain([id]);
        if let Some(open) = all.into_iter().find(|id| self.gate(*id).is_some()) {
            return Err(PoolError::Open(open));
        }
        self.ahead.forget(id);
        self.pool.vacate(id)
    }

    /// As [`Pool::retry_quarantined`].
    ///
    /// # Errors
    /// The same.
    pub fn retry_quarantined(&mut self) -> Result<u64, PoolError> {
        self.pool.retry_quarantined()
    }

    /// Gives the pool up, as [`Pool::export`].
    ///
    /// # Errors
    /// The same.
    pub fn export(self) -> Result<(), PoolError> {
        self.pool.export()
    }

    fn settle(&mut self) -> Settling {
        self.settling = self.pool.grace();
        Settling(self.settling)
    }

    /// No write that was under way when it was made can change it any more.
    pub fn is_settled(&self, settling: Settling) -> bool {
        self.graced >= settling.0
    }

    /// See [`crate::door::Allocator::own`].
    pub fn own(&mut self, volume: VolumeId, extent: u32) {
        self.hungry &= !self.wanted.insert((volume, extent));
    }

    /// See [`crate::door::Allocator::release`].
    pub fn release(&mut self, volume: VolumeId, (first, end): (u32, u32), ticket: &Ticket) {
        let size_bytes = self.pool.volume(volume).map_or(0, |volume| volume.size_bytes);
        if ticket.is_outdated(end, self.pool.info().extent_bytes, size_bytes) {
            // The volume has grown since the door took its last extent, cut short by its end, for whole.
            ticket.refuse_outdated();
            return self.announce(volume);
        }
        let released = self.pool.release(volume, first..end);
        ticket.answer(released.is_ok());
        if let Err(error) = released {
            self.failed("taking extents back", &error);
        }
        self.announce(volume);
    }

    /// What waits for space fails, now and later.
    pub fn refuse_parked(&mut self) {
        self.wanted.clear();
        self.gates.values().filter_map(Weak::upgrade).for_each(|gate| gate.refuse_parked());
    }

    /// Space may have appeared, or what is wanted may have changed: whoever waits is looked at again.
    pub fn look_again(&mut self) {
        self.hungry = false;
    }

    /// Does some of what there is to do.
    pub fn turn(&mut self) -> Next {
        let may_feed = |this: &Self| {
            let settled = this.is_settled(Settling(this.settling));
            !this.wanted.is_empty() && !this.hungry && settled && this.broken.is_none()
        };
        if may_feed(self) {
            self.feed();
        }
        self.look_at_grace();
        let wipes = self.broken.is_none() && self.wipe();
        match () {
            () if wipes || may_feed(self) => Next::Turn,
            () if self.grace.is_some() => Next::Look,
            () => Next::Rest,
        }
    }

    fn announce(&self, id: VolumeId) {
        if let Some(gate) = self.gate(id) {
            gate.announce();
        }
    }

    /// Gives doors the extents that they wait for and those that they will ask for, all in one journal write, and makes the copies that
    /// go before.
    fn feed(&mut self) {
        let mut batch: Vec<_> = self.wanted.iter().copied().take(WANTED_MAX).collect();
        let count = batch.len();
        batch.extend(self.beside(&batch));
        match self.pool.allocate(&batch) {
            Ok(answers) => self.fed(&batch, &answers),
            Err(error) if is_lasting(&error) => self.failed("giving extents", &error),
            Err(error) => {
                // One of them is of a volume that is gone, or beyond its end: each for itself, then.
                self.news
                    .push(News::Remark(format!("an extent that nobody can have was asked for: {error}")));
                batch.truncate(count);
                self.feed_one_by_one(&batch);
            }
        }
    }

    /// See [`Ahead`].
    fn beside(&mut self, wanted: &[(VolumeId, u32)]) -> Vec<(VolumeId, u32)> {
        let info = self.pool.info();
        let pool = &self.pool;
        let is_open = |volume, extent| pool.is_unmapped(volume, extent);
        self.ahead.beside(wanted, WANTED_MAX - wanted.len(), info.extent_bytes, info.free, is_open)
    }

    fn feed_one_by_one(&mut self, batch: &[(VolumeId, u32)]) {
        for wish in batch {
            match self.pool.allocate(&[*wish]) {
                Ok(answers) => self.fed(&[*wish], &answers),
                Err(error) if is_lasting(&error) => return self.failed("giving an extent", &error),
                Err(_) => _ = self.wanted.remove(wish),
            }
        }
    }

    fn fed(&mut self, batch: &[(VolumeId, u32)], answers: &[Allocation]) {
        let (mut copies, mut changed, mut starved) = (Vec::new(), BTreeSet::new(), 0_usize);
        // What is being wiped will be free.
        let may_come = self.pool.info().wiping > 0;
        for (wish, answer) in batch.iter().zip(answers) {
            match answer {
                Allocation::NoSpace if self.landing.contains(&wish.0) && !may_come => {
                    self.wanted.remove(wish);
                    if let Some(gate) = self.gate(wish.0) {
                        gate.refuse_parked();
                    }
                }
                Allocation::NoSpace => starved += usize::from(self.wanted.contains(wish)),
                Allocation::Mapped { .. } => {
                    self.wanted.remove(wish);
                    changed.insert(wish.0);
                }
                Allocation::Copy(order) => {
                    self.wanted.remove(wish);
                    changed.insert(wish.0);
                    copies.push(*order);
                }
                Allocation::Copying => _ = self.wanted.remove(wish),
            }
        }
        self.copy(copies);
        changed.into_iter().for_each(|volume| self.announce(volume));
        self.hungry |= starved > 0;
        if starved > 0 && !self.told {
            self.news.push(News::Fault(format!(
                "it is full: writes to {starved} extents wait for space, all else goes on; delete something in it \
                 (`godwit volume list` shows what there is), or discard in a guest"
            )));
        }
        self.told = starved > 0;
    }

    fn copy(&mut self, orders: Vec<CopyOrder>) {
        let len = self.pool.info().extent_bytes;
        let mut made = Vec::new();
        for order in orders {
            let (from, to) = (self.pool.drive_offset(order.from), self.pool.drive_offset(order.to));
            match self.medium.copy(from, to, len) {
                Ok(()) => made.push(order),
                Err(error) => {
                    self.news.push(News::Fault(format!(
                        "an extent of it could not be copied before a write: {error}"
                    )));
                    if let Err(error) = self.pool.copy_failed(order) {
                        self.failed("giving a copy up", &error);
                    }
                    if let Some(gate) = self.gate(order.volume) {
                        gate.refuse(order.logical);
                    }
                }
            }
        }
        if !made.is_empty()
            && let Err(error) = self.pool.copied(&made)
        {
            self.failed("taking over copies", &error);
        }
    }

    /// What was taken from maps may be wiped when nobody uses it any more.
    fn look_at_grace(&mut self) {
        if let Some((number, gates)) = &mut self.grace {
            gates.retain(|(gate, generation)| !gate.is_over(*generation));
            if gates.is_empty() {
                let number = *number;
                self.pool.grace_over(number);
                self.graced = number;
                self.grace = None;
            }
        }
        let newest = self.pool.grace();
        if self.grace.is_none() && newest > self.graced {
            self.gates.retain(|_, gate| gate.strong_count() > 0);
            let begin = |gate: Arc<Gate>| {
                let generation = gate.begin_grace();
                (gate, generation)
            };
            let gates = self.gates.values().filter_map(Weak::upgrade).map(begin).collect();
            self.grace = Some((newest, gates));
        }
    }

    /// A step of a wipe. `false`: there is nothing to wipe.
    fn wipe(&mut self) -> bool {
        let Some((order, done)) = self.wiping.take() else {
            self.wiping = self.pool.next_wipe(WIPE_EXTENTS_MAX).map(|order| (order, 0));
            return self.wiping.is_some();
        };
        let len = u64::from(order.count) * self.pool.info().extent_bytes;
        let start = self.pool.drive_offset(order.first) + done;
        let step = WIPE_STEP_BYTES.min(len - done);
        let wiped = self.medium.zero(start, step).and_then(|()| self.medium.is_zero(start, step));
        if matches!(wiped, Ok(true)) && done + step < len {
            self.wiping = Some((order, done + step));
            return true;
        }
        let recorded = match wiped {
            Ok(true) => self.pool.wiped(order),
            failed => {
                let why =
                    failed.err().map_or("it does not read as zeros".to_owned(), |error| error.to_string());
                self.news.push(News::Fault(format!(
                    "{} extents from {} on could not be wiped ({why}): they are quarantined and nobody gets them",
                    order.count, order.first
                )));
                self.pool.wipe_failed(order)
            }
        };
        if let Err(error) = recorded {
            self.failed("recording a wipe", &error);
        }
        self.hungry = false;
        true
    }

    /// The pool's own records cannot be changed any more.
    fn failed(&mut self, doing: &str, error: &PoolError) {
        if !is_lasting(error) {
            self.news.push(News::Remark(format!("{doing}: {error}")));
            return;
        }
        if self.broken.is_none() {
            self.broken = Some(error.to_string());
            self.news.push(News::Fault(format!(
                "{doing}: {error}. Writes that need a new extent wait; `godwit upgrade` starts an engine that opens it anew"
            )));
        }
        if matches!(error, PoolError::Fenced { .. }) {
            // Somebody else writes there by a map of their own.
            self.gates.values().filter_map(Weak::upgrade).for_each(|gate| gate.close());
        }
    }
}

/// What is on the drive is not known, or not ours, any more.
fn is_lasting(error: &PoolError) -> bool {
    matches!(error, PoolError::Drive { .. } | PoolError::Stopped | PoolError::Fenced { .. })
}
