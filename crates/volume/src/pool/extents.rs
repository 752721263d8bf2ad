//! Single extents: allocate, copy before a write, release.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use state::pool::{ChangeV1, RunV1};

use super::{Allocation, CopyOrder, Pool, VolumeId};
use crate::ledger::Refs;
use crate::{Entry, PoolError};

/// Most extents asked for at once: what surely fits one journal record.
pub(crate) const WANTED_MAX: usize = 500;

/// Copies that were ordered and not yet answered.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// By target.
    ordered: BTreeMap<u32, CopyOrder>,
    /// Those whose logical extent is still waiting for them: (volume, logical) to target.
    current: BTreeMap<(u64, u32), u32>,
}

impl Copies {
    /// Their extents were taken away meanwhile: what is copied is not wanted any more.
    pub(super) fn cancel(&mut self, volume: u64, logical: u32, count: u32) {
        let end = logical.saturating_add(count);
        let gone: Vec<(u64, u32)> =
            self.current.range((volume, logical)..(volume, end)).map(|(key, _)| *key).collect();
        for key in gone {
            self.current.remove(&key);
        }
    }

    /// An outstanding order, no more so. Says whether its result is still wanted.
    fn take(&mut self, order: CopyOrder) -> bool {
        self.ordered.remove(&order.to);
        let key = (order.volume.0, order.logical);
        let wanted = self.current.get(&key) == Some(&order.to);
        if wanted {
            self.current.remove(&key);
        }
        wanted
    }

    fn check(&self, order: &CopyOrder) -> Result<(), PoolError> {
        match self.ordered.get(&order.to) {
            Some(there) if there == order => Ok(()),
            _ => Err(PoolError::StaleOrder(format!("{order:?}"))),
        }
    }
}

/// What an allocation is to be, before it is written down.
#[derive(Debug, Default)]
struct Plan {
    answers: Vec<Allocation>,
    by_place: BTreeMap<(u64, u32), Allocation>,
    changes: Vec<ChangeV1>,
    orders: Vec<CopyOrder>,
    unshared: Vec<(u64, u32, u32)>,
    cursor: u32,
}

impl Plan {
    fn map(&mut self, volume: u64, logical: u32, physical: u32) {
        if let Some(ChangeV1::Map(last, run)) = self.changes.last_mut()
            && *last == volume
            && run.logical + run.count == logical
            && run.physical + run.count == physical
        {
            run.count += 1;
            return;
        }
        self.changes.push(ChangeV1::Map(volume, RunV1 { logical, count: 1, physical }));
    }

    fn reserve(&mut self, order: CopyOrder) {
        self.orders.push(order);
        if let Some(ChangeV1::Reserve(first, count)) = self.changes.last_mut()
            && *first + *count == order.to
        {
            *count += 1;
            return;
        }
        self.changes.push(ChangeV1::Reserve(order.to, 1));
    }
}

impl Pool {
    /// Gives volumes extents to write into: one journal write for all of them. The answers come in the order asked.
    /// At most 500 at once.
    ///
    /// # Errors
    /// No such volume or extent, a snapshot, or too many; then nothing was given.
    pub fn allocate(&mut self, wanted: &[(VolumeId, u32)]) -> Result<Vec<Allocation>, PoolError> {
        self.ready()?;
        if wanted.len() > WANTED_MAX {
            return Err(PoolError::Invalid(format!(
                "{} extents at once, the most is {WANTED_MAX}",
                wanted.len()
            )));
        }
        let plan = self.plan(wanted)?;
        self.commit(&plan.changes, false)?;
        self.cursor = plan.cursor;
        for (volume, logical, physical) in plan.unshared {
            self.each_map(volume, |map| map.set(logical, Entry::Mapped { physical }));
        }
        for order in plan.orders {
            self.copies.ordered.insert(order.to, order);
            self.copies.current.insert((order.volume.0, order.logical), order.to);
        }
        Ok(plan.answers)
    }

    /// The volume has such an extent, and it is nowhere yet.
    pub(crate) fn is_unmapped(&self, id: VolumeId, logical: u32) -> bool {
        self.known(id).is_ok_and(|volume| {
            let extents = self.ledger.logical_extents(volume.saved.size_bytes);
            extents.is_some_and(|count| logical < count) && volume.map.get(logical).is_none()
        })
    }

    fn plan(&self, wanted: &[(VolumeId, u32)]) -> Result<Plan, PoolError> {
        let mut plan = Plan { cursor: self.cursor, ..Plan::default() };
        let mut free =
            self.ledger.free.iter_round(self.cursor).flat_map(|run| run.first..run.first + run.count);
        for &(id, logical) in wanted {
            let volume = self.known(id)?;
            if volume.saved.read_only {
                return Err(PoolError::ReadOnly(id));
            }
            if logical >= self.ledger.logical_extents(volume.saved.size_bytes).unwrap_or(0) {
                return Err(PoolError::Invalid(format!("volume {id} has no extent {logical}")));
            }
            let place = (id.0, logical);
            let answer = match (plan.by_place.get(&place), volume.map.get(logical).map(|physical| physical.0))
            {
                (Some(Allocation::Copy(_)), _) => Allocation::Copying,
                (Some(answer), _) => *answer,
                (None, _) if self.copies.current.contains_key(&place) => Allocation::Copying,
                (None, Some(physical)) if self.ledger.used.get(physical) == Some(Refs(1)) => {
                    plan.unshared.push((id.0, logical, physical));
                    Allocation::Mapped { physical }
                }
                (None, mapped) => match (free.next(), mapped) {
                    (None, _) => Allocation::NoSpace,
                    (Some(physical), None) => {
                        plan.map(id.0, logical, physical);
                        Allocation::Mapped { physical }
                    }
                    (Some(to), Some(from)) => {
                        let order = CopyOrder { volume: id, logical, from, to };
                        plan.reserve(order);
                        Allocation::Copy(order)
                    }
                },
            };
            if let Allocation::Mapped { physical } | Allocation::Copy(CopyOrder { to: physical, .. }) = answer
            {
                plan.cursor = physical;
            }
            plan.by_place.entry(place).or_insert(answer);
            plan.answers.push(answer);
        }
        Ok(plan)
    }

    /// The ordered copies were made (writes finished; the pool flushes): the maps point at them when this returns. An
    /// order whose extent was released or deleted meanwhile is dropped; its copy will be wiped.
    ///
    /// # Errors
    /// An order that was not given; then nothing has changed.
    pub fn copied(&mut self, orders: &[CopyOrder]) -> Result<(), PoolError> {
        let orders: BTreeSet<CopyOrder> = orders.iter().copied().collect();
        orders.iter().try_for_each(|order| self.copies.check(order))?;
        // The copy is durable before the map points at it.
        self.settle_data()?;
        let wanted =
            |order: &&CopyOrder| self.copies.current.get(&(order.volume.0, order.logical)) == Some(&order.to);
        let changes: Vec<ChangeV1> = orders
            .iter()
            .filter(wanted)
            .map(|order| ChangeV1::Adopt(order.volume.0, order.logical, order.to))
            .collect();
        for part in changes.chunks(WANTED_MAX) {
            self.commit(part, true)?;
        }
        for order in orders {
            if !self.copies.take(order) {
                self.wipes.ready(order.to, 1);
            }
        }
        Ok(())
    }

    /// An ordered copy could not be made: the map stays as it is and the target will be wiped.
    ///
    /// # Errors
    /// An order that was not given.
    pub fn copy_failed(&mut self, order: CopyOrder) -> Result<(), PoolError> {
        self.copies.check(&order)?;
        self.copies.take(order);
        self.wipes.ready(order.to, 1);
        Ok(())
    }

    /// Unmaps logical extents of a thin volume; they read as zeros when this returns. Returns how many were mapped.
    /// What nobody refers to any more is to be wiped, after [`Pool::grace_over`].
    ///
    /// # Errors
    /// No such volume, a snapshot, or a full volume.
    pub fn release(&mut self, id: VolumeId, logical: Range<u32>) -> Result<u32, PoolError> {
        self.ready()?;
        let volume = self.known(id)?;
        if volume.saved.read_only {
            return Err(PoolError::ReadOnly(id));
        }
        if volume.saved.full {
            return Err(PoolError::KeepsSpace(id));
        }
        let count = logical.end.saturating_sub(logical.start);
        let mapped = volume.map.within(logical.start, count).map(|run| run.count).sum();
        if mapped > 0 {
            self.commit(&[ChangeV1::Unmap(id.0, logical.start, count)], true)?;
        }
        Ok(mapped)
    }
}
