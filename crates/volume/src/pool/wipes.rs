//! What nobody has and is not zero yet.

use std::collections::{BTreeMap, VecDeque};

use state::pool::ChangeV1;

use super::{Pool, WipeOrder};
use crate::PoolError;
use crate::ledger::{Ledger, Mark, Unfit};
use crate::runs::{Run, Runs};

/// The wipes to come. What they are of is in the ledger; this says which may begin.
#[derive(Debug, Default)]
pub(super) struct Wipes {
    ready: Runs<Mark>,
    /// Taken away by change `.0`; I/O to them may still be under way.
    held: VecDeque<(u64, Vec<Run<Mark>>)>,
    /// First extent to count, of orders that are not answered.
    ordered: BTreeMap<u32, u32>,
    grace: u64,
}

impl Wipes {
    /// After an opening nothing is under way: all may begin.
    pub(super) fn of(ledger: &Ledger) -> Self {
        let mut wipes = Self::default();
        for run in ledger.unfit.iter().filter(|run| run.value == Unfit::Wiping) {
            wipes.ready(run.first, run.count);
        }
        wipes
    }

    pub(super) fn ready(&mut self, first: u32, count: u32) {
        self.ready.insert(Run { first, count, value: Mark });
    }

    pub(super) fn hold(&mut self, dropped: Vec<Run<Mark>>) {
        self.grace += 1;
        self.held.push_back((self.grace, dropped));
    }

    fn check(&self, order: WipeOrder) -> Result<(), PoolError> {
        match self.ordered.get(&order.first) {
            Some(count) if *count == order.count => Ok(()),
            _ => Err(PoolError::StaleOrder(format!("{order:?}"))),
        }
    }
}

impl Pool {
    /// The number of the newest change that took extents away or shared them ([`Pool::delete`], [`Pool::release`],
    /// [`Pool::copied`], [`Pool::snapshot`], [`Pool::clone_volume`]). I/O that looked its extents up before that change may still be under way.
    #[must_use]
    pub fn grace(&self) -> u64 {
        self.wipes.grace
    }

    /// No I/O is under way any more that looked an extent up before change `grace`: what was taken away up to then
    /// may be wiped.
    pub fn grace_over(&mut self, grace: u64) {
        while let Some((number, runs)) = self.wipes.held.pop_front() {
            if number > grace {
                self.wipes.held.push_front((number, runs));
                return;
            }
            for run in runs {
                self.wipes.ready(run.first, run.count);
            }
        }
    }

    /// Extents to be zeroed and verified, at most `extents_max`; each is ordered once until it is answered.
    pub fn next_wipe(&mut self, extents_max: u32) -> Option<WipeOrder> {
        if self.stopped || extents_max == 0 {
            return None;
        }
        let run = self.wipes.ready.iter().next()?;
        let order = WipeOrder { first: run.first, count: run.count.min(extents_max) };
        self.wipes.ready.remove(order.first, order.count);
        self.wipes.ordered.insert(order.first, order.count);
        Some(order)
    }

    /// They read as zeros (writes finished and verified; the pool flushes): they are free when this returns.
    ///
    /// # Errors
    /// Not an order that is outstanding.
    pub fn wiped(&mut self, order: WipeOrder) -> Result<(), PoolError> {
        self.wipes.check(order)?;
        // The zeros are durable before anybody may get the extent.
        self.settle_data()?;
        self.commit(&[ChangeV1::Wiped(order.first, order.count)], true)?;
        self.wipes.ordered.remove(&order.first);
        Ok(())
    }

    /// They could not be zeroed or verified: quarantined, never to be used.
    ///
    /// # Errors
    /// Not an order that is outstanding.
    pub fn wipe_failed(&mut self, order: WipeOrder) -> Result<(), PoolError> {
        self.wipes.check(order)?;
        self.commit(&[ChangeV1::Quarantine(order.first, order.count)], true)?;
        self.wipes.ordered.remove(&order.first);
        Ok(())
    }

    /// Has quarantined extents wiped once more. Returns how many.
    ///
    /// # Errors
    /// The drive fails.
    pub fn retry_quarantined(&mut self) -> Result<u64, PoolError> {
        let runs: Vec<Run<Unfit>> =
            self.ledger.unfit.iter().filter(|run| run.value == Unfit::Quarantined).collect();
        let changes: Vec<ChangeV1> = runs.iter().map(|run| ChangeV1::Retry(run.first, run.count)).collect();
        self.commit(&changes, true)?;
        for run in &runs {
            self.wipes.ready(run.first, run.count);
        }
        Ok(runs.iter().map(|run| u64::from(run.count)).sum())
    }
}
