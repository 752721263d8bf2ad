//! The thread of one pool: the only one that changes its map.
//!
//! The order of things, for each kind of change (what a kill between any two leaves is in `docs/decisions/0017-door.md`):
//!
//! - an extent for a write: record durable, entry, announcement, the write goes on
//! - a copy before a write: copy, flush, record durable, entry, announcement, the write goes on; what is left over is wiped
//! - taken back: record durable, entry, answer; then wait for all I/O by the old entry, wipe, read back, record durable, free

use super::Wish;
use super::disk::PoolDisk;
use crate::keeper::Keeper;
use crate::mailbox::Mailbox;
use anyhow::{Context, ensure};
use api::config;
use api::control::{PoolRequest, Response};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::Duration;
use volume::door::{Gate, Ticket};
use volume::{Allocation, CopyOrder, Pool, PoolError, Provisioning, VolumeId, VolumeSpec, WipeOrder};

/// Wiped in one turn: bounds how long a write waits for an extent meanwhile.
const WIPE_STEP_BYTES: u64 = 8 << 20;
/// Extents ordered to be wiped at once.
const WIPE_EXTENTS_MAX: u32 = 64;
/// Between two looks at whether I/O by an old map has ended.
const GRACE_PAUSE_NS: u64 = 200_000;
/// Extents given in one journal write.
const BATCH_MAX: usize = 1024;

/// What a pool's thread is asked.
pub(crate) enum Order {
    /// See [`volume::door::Allocator::own`].
    Own(VolumeId, u32),
    /// See [`volume::door::Allocator::release`].
    Release(VolumeId, (u32, u32), Arc<Ticket>),
    /// An ssd's volume; whether it gives extents back comes with it.
    Volume(Wish, SyncSender<anyhow::Result<(Arc<Gate>, bool)>>),
    /// Whether a volume can grow to this size.
    CanGrow(VolumeId, u64, SyncSender<anyhow::Result<()>>),
    /// It grows.
    Grow(VolumeId, u64, SyncSender<anyhow::Result<()>>),
    /// Somebody asks by the keeper.
    Request(PoolRequest, SyncSender<Response>),
    /// What waits for space fails.
    RefuseParked,
    /// End.
    Rest,
}

/// A number of the pool's, and the gates whose doors are waited for, each with its generation.
type Grace = (u64, Vec<(Arc<Gate>, u64)>);

/// See the module.
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) pool: Pool,
    pub(super) disk: Arc<PoolDisk>,
    mailbox: Arc<Mailbox<Order>>,
    keeper: Option<Arc<Keeper>>,
    /// Of volumes that are served, or were.
    gates: BTreeMap<VolumeId, Weak<Gate>>,
    /// Extents that doors wait for.
    pub(super) wanted: BTreeSet<(VolumeId, u32)>,
    /// The wanted were asked for with this much free, and there was none.
    hungry: bool,
    /// An operator was told that it is full.
    told: bool,
    /// A wait for I/O by older maps, and the pool's number of the last change before it.
    grace: Option<Grace>,
    /// The pool's number up to which the waits are over.
    graced: u64,
    wiping: Option<(WipeOrder, u64)>,
    /// Why nothing of the map can change any more.
    pub(super) broken: Option<String>,
}

impl Worker {
    pub(super) fn new(
        config: &config::Pool,
        pool: Pool,
        disk: Arc<PoolDisk>,
        mailbox: Arc<Mailbox<Order>>,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        Self {
            name: config.name.clone(),
            graced: pool.grace(),
            pool,
            disk,
            mailbox,
            keeper,
            gates: BTreeMap::new(),
            wanted: BTreeSet::new(),
            hungry: false,
            told: false,
            grace: None,
            wiping: None,
            broken: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            for order in self.mailbox.take() {
                match order {
                    Order::Rest => return,
                    Order::Request(PoolRequest::Export { .. }, reply) if !self.is_served() => {
                        let answer = self.export();
                        let _ =
                            reply.send(answer.unwrap_or_else(|error| Response::Error(format!("{error:#}"))));
                        return;
                    }
                    order => self.obey(order),
                }
            }
            if !self.wanted.is_empty() && !self.hungry {
                self.feed();
            }
            self.look_at_grace();
            let wipes = self.broken.is_none() && self.wipe();
            let has_more = !self.wanted.is_empty() && !self.hungry;
            if !wipes && !has_more {
                let waits = self.grace.is_some().then_some(GRACE_PAUSE_NS);
                self.mailbox.sleep(&[], waits);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Own(volume, extent) => {
                self.hungry &= !self.wanted.insert((volume, extent));
            }
            Order::Release(volume, (_, end), ticket) if self.is_outdated(volume, end, &ticket) => {
                ticket.refuse_outdated();
                self.announce(volume);
            }
            Order::Release(volume, (first, end), ticket) => {
                let released = self.pool.release(volume, first..end);
                ticket.answer(released.is_ok());
                if let Err(error) = released {
                    self.failed("taking extents back", &error);
                }
                self.announce(volume);
            }
            Order::Volume(wish, reply) => _ = reply.send(self.volume(&wish)),
            Order::CanGrow(id, size_bytes, reply) => {
                let _ = reply.send(self.pool.can_grow(id, size_bytes).map_err(Into::into));
            }
            Order::Grow(id, size_bytes, reply) => _ = reply.send(self.grow(id, size_bytes)),
            Order::Request(request, reply) => {
                let answer = self.answer(request);
                let _ = reply.send(answer.unwrap_or_else(|error| Response::Error(format!("{error:#}"))));
                self.hungry = false;
            }
            Order::RefuseParked => {
                self.wanted.clear();
                self.gates.values().filter_map(Weak::upgrade).for_each(|gate| gate.refuse_parked());
            }
            Order::Rest => {}
        }
    }

    /// The volume that an ssd of the configuration wants, and its gate.
    fn volume(&mut self, wish: &Wish) -> anyhow::Result<(Arc<Gate>, bool)> {
        let id = match self.pool.find(&wish.name) {
            Some(id) => id,
            None => {
                let provisioning = if wish.thin { Provisioning::Thin } else { Provisioning::Full };
                let (name, size_bytes) = (wish.name.clone(), wish.size_bytes);
                let (uuid, attributes) = (super::random()?, Vec::new());
                self.pool.create(&VolumeSpec { name, uuid, size_bytes, provisioning, attributes })?
            }
        };
        let info = self.pool.volume(id).context("a volume that is not there")?;
        ensure!(!info.read_only, "\"{}\" is a snapshot; clone it, and serve the clone", wish.name);
        if wish.size_bytes > info.size_bytes
            && let Err(error) = self.grow(id, wish.size_bytes)
        {
            // An ssd that there is: its data is not kept from its guest for what it was to have beside it.
            self.fault(&format!(
                "ssd \"{}\" cannot grow from {} to {} bytes and is served as it is: {error:#}",
                wish.name, info.size_bytes, wish.size_bytes
            ));
        }
        ensure!(
            wish.size_bytes >= info.size_bytes,
            "\"{}\" has {} bytes, the configuration says {}: an ssd does not shrink, so write its size there",
            wish.name,
            info.size_bytes,
            wish.size_bytes
        );
        let map = self.pool.map(id)?;
        let gate = match self.gate(id) {
            Some(gate) => {
                gate.replace_map(map);
                gate
            }
            None => {
                let gate = Gate::new(id, map);
                self.gates.insert(id, Arc::downgrade(&gate));
                gate
            }
        };
        Ok((gate, info.provisioning == Provisioning::Thin))
    }

    /// Record durable, then the doors' map. A kill between the two leaves a volume that the next opening finds grown.
    fn grow(&mut self, id: VolumeId, size_bytes: u64) -> anyhow::Result<()> {
        self.pool.grow(id, size_bytes)?;
        let map = self.pool.map(id)?;
        if let Some(gate) = self.gate(id) {
            gate.replace_map(map);
        }
        Ok(())
    }

    /// A volume has grown since a door asked to take back its last extent, which its end had cut short.
    fn is_outdated(&self, id: VolumeId, end: u32, ticket: &Ticket) -> bool {
        let size_bytes = self.pool.volume(id).map_or(0, |volume| volume.size_bytes);
        ticket.is_outdated(end, self.pool.info().extent_bytes, size_bytes)
    }

    /// Of a volume that is served.
    pub(super) fn gate(&self, id: VolumeId) -> Option<Arc<Gate>> {
        self.gates.get(&id).and_then(Weak::upgrade)
    }

    fn announce(&self, id: VolumeId) {
        if let Some(gate) = self.gate(id) {
            gate.announce();
        }
    }

    /// Gives doors the extents that they wait for, all in one journal write, and makes the copies that go before.
    fn feed(&mut self) {
        let batch: Vec<_> = self.wanted.iter().copied().take(BATCH_MAX).collect();
        let answers = match self.pool.allocate(&batch) {
            Ok(answers) => answers,
            Err(error @ (PoolError::Drive { .. } | PoolError::Stopped | PoolError::Fenced { .. })) => {
                return self.failed("giving extents", &error);
            }
            Err(error) => {
                // One of them is of a volume that is gone, or beyond its end: each for itself, then.
                tracing::warn!(pool = self.name, %error, "an extent that nobody can have was asked for");
                return self.feed_one_by_one(&batch);
            }
        };
        self.fed(&batch, &answers);
    }

    fn feed_one_by_one(&mut self, batch: &[(VolumeId, u32)]) {
        for wish in batch {
            match self.pool.allocate(&[*wish]) {
                Ok(answers) => self.fed(&[*wish], &answers),
                Err(_) => _ = self.wanted.remove(wish),
            }
        }
    }

    fn fed(&mut self, batch: &[(VolumeId, u32)], answers: &[Allocation]) {
        let (mut copies, mut changed, mut starved) = (Vec::new(), BTreeSet::new(), 0_usize);
        for (wish, answer) in batch.iter().zip(answers) {
            match answer {
                Allocation::NoSpace => starved += 1,
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
        self.hungry = starved > 0;
        if self.hungry && !self.told {
            self.fault(&format!(
                "it is full: writes to {starved} extents wait for space, all else goes on; delete something in it \
                 (`godwit pool list` shows what there is), or discard in a guest"
            ));
        }
        self.told = self.hungry;
    }

    fn copy(&mut self, orders: Vec<CopyOrder>) {
        let len = self.pool.info().extent_bytes;
        let mut made = Vec::new();
        for order in orders {
            let (from, to) = (self.pool.drive_offset(order.from), self.pool.drive_offset(order.to));
            match self.disk.copy(from, to, len) {
                Ok(()) => made.push(order),
                Err(error) => {
                    self.fault(&format!("an extent of it could not be copied before a write: {error}"));
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

    /// Waits until no I/O by older maps of a volume is at the drive. The drive answers, or nothing goes on here anyhow.
    pub(super) fn quiesce(&mut self, id: VolumeId) {
        // One wait at a time: see `Gate`.
        while self.grace.is_some() {
            self.look_at_grace();
            std::thread::sleep(Duration::from_nanos(GRACE_PAUSE_NS));
        }
        let Some(gate) = self.gate(id) else { return };
        let generation = gate.begin_grace();
        while !gate.is_over(generation) {
            std::thread::sleep(Duration::from_nanos(GRACE_PAUSE_NS));
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
        let wiped = self.disk.zero(start, step).and_then(|()| self.disk.is_zero(start, step));
        if matches!(wiped, Ok(true)) && done + step < len {
            self.wiping = Some((order, done + step));
            return true;
        }
        let recorded = match wiped {
            Ok(true) => self.pool.wiped(order),
            failed => {
                let why =
                    failed.err().map_or("it does not read as zeros".to_owned(), |error| error.to_string());
                self.fault(&format!(
                    "{} extents from {} on could not be wiped ({why}): they are quarantined and nobody gets them",
                    order.count, order.first
                ));
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
        let lasting =
            matches!(error, PoolError::Drive { .. } | PoolError::Stopped | PoolError::Fenced { .. });
        if lasting && self.broken.is_none() {
            self.broken = Some(error.to_string());
            self.fault(&format!(
                "{doing}: {error}. Writes that need a new extent wait; `godwit upgrade` starts an engine that opens it anew"
            ));
        } else {
            tracing::warn!(pool = self.name, doing, %error, "a pool refuses");
        }
        if lasting {
            self.hungry = true;
        }
        if matches!(error, PoolError::Fenced { .. }) {
            // Somebody else writes there by a map of their own.
            self.gates.values().filter_map(Weak::upgrade).for_each(|gate| gate.close());
        }
    }

    fn fault(&self, why: &str) {
        let why = format!("pool \"{}\": {why}", self.name);
        match &self.keeper {
            Some(keeper) => keeper.fault(None, why),
            None => tracing::error!(why, "a pool has trouble"),
        }
    }
}
