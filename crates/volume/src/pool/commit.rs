//! How a change becomes durable, and then visible.
//!
//! The order of the stores is the protocol:
//! 1. the header is read: it still names this opening;
//! 2. the record is written after the last one in the journal, and flushed;
//! 3. the header is read again: whoever opened the pool in between sees the record or will never count it;
//! 4. the maps that reactors read change, and the caller is told.
//!
//! A full journal, or a change too large for it: the whole map goes into the area that does not hold, and is flushed;
//! then one header is written and flushed, and then the other.

use state::pool::{ChangeV1, VERSION_PLAIN};

use super::{Pool, PoolError};
use crate::header;
use crate::journal::{self, Tail};
use crate::ledger::{Effect, Effects};
use crate::load::stamp_of;
use crate::map_area;
use crate::{Entry, ExtentMap};

/// More changes than these are written as a whole map.
const CHANGES_MAX: usize = 1000;
/// Kept in the map's area for the changes that give space back.
const RESERVE_BYTES: u64 = 64 << 10;

impl Pool {
    /// Whether it may be changed.
    pub(super) fn ready(&self) -> Result<(), PoolError> {
        if self.stopped { Err(PoolError::Stopped) } else { Ok(()) }
    }

    /// Makes changes, all or none. `frees`: they give space back, and may use the map's reserve.
    pub(super) fn commit(&mut self, changes: &[ChangeV1], frees: bool) -> Result<(), PoolError> {
        self.ready()?;
        if changes.is_empty() {
            return Ok(());
        }
        self.check_room(changes, frees)?;
        // From here on a failure leaves it open what is on the drive.
        self.stopped = true;
        let effects = self.store(changes)?;
        self.stopped = false;
        self.publish(effects);
        Ok(())
    }

    /// Whether the map has room for changes, and may be changed.
    pub(super) fn check_room(&self, changes: &[ChangeV1], frees: bool) -> Result<(), PoolError> {
        self.ready()?;
        let growth: u64 = changes.iter().map(|change| self.ledger.growth_bytes(change)).sum();
        let reserve = if frees { 0 } else { RESERVE_BYTES };
        let fits = self.ledger.map_bytes() + growth + reserve <= self.geometry.map_capacity_bytes();
        if fits { Ok(()) } else { Err(PoolError::MapFull) }
    }

    /// Makes what the data path has written so far durable.
    pub(super) fn settle_data(&mut self) -> Result<(), PoolError> {
        self.ready()?;
        self.disk.flush().map_err(|source| {
            self.stopped = true;
            PoolError::Drive { doing: "making data durable", source }
        })
    }

    fn store(&mut self, changes: &[ChangeV1]) -> Result<Effects, PoolError> {
        self.check_fence()?;
        // The version that a reader meets first has to be that of what follows: a map of another version is written whole, and its header
        // makes it so.
        if changes.len() > CHANGES_MAX || self.ledger.version_after(changes) != self.header.layout() {
            let effects = self.apply(changes)?;
            self.switch_map(self.tail.seq + 1, false)?;
            return Ok(effects);
        }
        let (mut record, mut chain) = self.seal(changes)?;
        if self.tail.used_bytes + record.len() as u64 > self.geometry.journal_bytes {
            self.switch_map(self.tail.seq, true)?;
            (record, chain) = self.seal(changes)?;
        }
        let effects = self.apply(changes)?;
        let at = self.geometry.journal_at(self.header.slot) + self.tail.used_bytes;
        let fail = |doing| move |source| PoolError::Drive { doing, source };
        self.disk.write_at(at, &record).map_err(fail("writing its journal"))?;
        self.disk.flush().map_err(fail("making its journal durable"))?;
        self.check_fence()?;
        self.tail = Tail {
            seq: self.tail.seq + 1,
            chain,
            epoch: self.header.epoch,
            used_bytes: self.tail.used_bytes + record.len() as u64,
        };
        Ok(effects)
    }

    fn seal(&self, changes: &[ChangeV1]) -> Result<(Vec<u8>, u32), PoolError> {
        journal::seal(&self.header, &self.tail, changes)
    }

    fn apply(&mut self, changes: &[ChangeV1]) -> Result<Effects, PoolError> {
        let mut effects = Effects::default();
        for change in changes {
            self.ledger.apply(change, &mut effects).map_err(PoolError::Damaged)?;
        }
        Ok(effects)
    }

    /// Writes the map as it is now into the other area and has the headers name it.
    fn switch_map(&mut self, seq: u64, follows: bool) -> Result<(), PoolError> {
        let mut header = self.header.clone();
        header.generation += 1;
        header.slot = 1 - header.slot;
        header.map_generation += 1;
        header.map_seq = seq;
        header.map_epoch = header.epoch;
        header.map_follows = follows;
        let version = self.ledger.version();
        header.version = (version != VERSION_PLAIN).then_some(version);
        let stamp = stamp_of(&header);
        header.map_chain = map_area::write(&*self.disk, &self.geometry, header.slot, &self.ledger, stamp)?;
        self.disk.flush().map_err(|source| PoolError::Drive { doing: "making its map durable", source })?;
        self.check_fence()?;
        header::write(&*self.disk, &header)?;
        self.tail = Tail { seq, chain: header.map_chain, epoch: header.epoch, used_bytes: 0 };
        self.header = header;
        self.check_fence()
    }

    /// The header on the drive still names this opening.
    pub(super) fn check_fence(&self) -> Result<(), PoolError> {
        let there = header::newest(&header::read(&*self.disk))?;
        let ours = &self.header;
        if there.uuid == ours.uuid && there.epoch == ours.epoch && there.nonce == ours.nonce {
            Ok(())
        } else {
            Err(PoolError::Fenced { ours: ours.epoch, theirs: there.epoch })
        }
    }

    /// Shows reactors what is durable by now, and queues what is to be wiped.
    fn publish(&mut self, effects: Effects) {
        for effect in &effects.entries {
            match *effect {
                Effect::Mapped { volume, run } => {
                    self.each_map(volume, |map| {
                        map.set_run(run.logical, run.count, Entry::Mapped { physical: run.physical });
                    });
                }
                Effect::Unmapped { volume, logical, count } => {
                    self.each_map(volume, |map| unmap(map, logical, count));
                    self.copies.cancel(volume, logical, count);
                }
                Effect::Shared { volume } => {
                    self.share(volume);
                    self.wipes.hold(Vec::new());
                }
                Effect::Gone { volume } => {
                    // Whoever still has the map finds nothing there: neither this volume's extents nor their next owner's.
                    self.each_map(volume, |map| unmap(map, 0, map.extents()));
                    self.maps.remove(&volume);
                    self.copies.cancel(volume, 0, u32::MAX);
                }
            }
        }
        if !effects.dropped.is_empty() {
            self.wipes.hold(effects.dropped);
        }
    }

    fn share(&mut self, volume: u64) {
        let Some(shared) = self.ledger.volumes.get(&volume).map(|volume| volume.map.clone()) else { return };
        self.each_map(volume, |map| {
            for run in shared.iter() {
                map.set_run(run.first, run.count, Entry::Shared { physical: run.value.0 });
            }
            map.advance_generation();
        });
    }

    /// Every map of a volume that anyone still holds.
    pub(super) fn each_map(&mut self, volume: u64, change: impl Fn(&ExtentMap)) {
        if let Some(maps) = self.maps.get_mut(&volume) {
            maps.retain(|map| map.upgrade().inspect(|map| change(map)).is_some());
        }
    }
}

fn unmap(map: &ExtentMap, logical: u32, count: u32) {
    map.set_run(logical, count, Entry::Unmapped);
    map.advance_generation();
}
