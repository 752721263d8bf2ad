//! Snapshots that move with their ssd: what the threads of a migration ask the pool's thread for.

use super::thread::{Order, Stewarded};
use super::{Volume, random};
use anyhow::Context;
use std::ops::Range;
use volume::VolumeId;

/// A part of an ssd that lies elsewhere on the drive than it did in another state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) bytes: Range<u64>,
    /// It may be other than zeros.
    pub(crate) mapped: bool,
}

impl Volume {
    fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Stewarded, VolumeId) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let id = self.id;
        self.open.order(|reply| {
            Order::With(Box::new(move |steward| {
                let _nobody_waits = reply.send(act(steward, id));
            }))
        })
    }

    /// One of its snapshots, for doors that read. As long as somebody has it, it cannot be deleted.
    ///
    /// # Errors
    /// It has none of that name.
    pub(crate) fn snapshot(&self, name: &str) -> anyhow::Result<Self> {
        let name = name.to_owned();
        let gate = self.with(move |steward, id| {
            let snapshot = named(steward, id, &name)?;
            Ok(steward.look(snapshot)?)
        })?;
        Ok(Self { open: self.open.clone(), id: gate.volume(), gate, limits: self.limits, thin: self.thin })
    }

    /// Where it, or one of its snapshots, is other than a snapshot before, ascending. `before`: none, for all that there is; `after`: none, for itself.
    ///
    /// # Errors
    /// It has none of that name.
    pub(crate) fn changes(&self, before: Option<&str>, after: Option<&str>) -> anyhow::Result<Vec<Change>> {
        let (before, after) = (before.map(str::to_owned), after.map(str::to_owned));
        self.with(move |steward, id| {
            let before = before.map(|name| named(steward, id, &name)).transpose()?;
            let after = after.map_or(Ok(id), |name| named(steward, id, &name))?;
            let pool = steward.pool();
            let extent_bytes = pool.info().extent_bytes;
            let size = |id| pool.volume(id).map_or(0, |info| info.size_bytes);
            let (size_bytes, whole_bytes) = (size(after), size(id));
            let change = |it: volume::Difference| {
                let (start, count) = (u64::from(it.first) * extent_bytes, u64::from(it.count));
                // A snapshot of before the ssd grew ends earlier.
                let end_bytes = if it.mapped { size_bytes } else { whole_bytes };
                let end = (start + count * extent_bytes).min(end_bytes);
                Change { bytes: start..end, mapped: it.mapped }
            };
            let all = pool.differences(before, after)?.into_iter().map(change);
            Ok(all.filter(|change| !change.bytes.is_empty()).collect())
        })
    }

    /// See [`volume::Pool::keep_come`].
    ///
    /// # Errors
    /// The same.
    pub(crate) fn keep_come(&self, name: &str, migration: [u8; 16]) -> anyhow::Result<()> {
        let (name, uuid) = (name.to_owned(), random()?);
        self.with(move |steward, id| Ok(steward.keep_come(id, &name, uuid, migration)?))
    }

    /// See [`volume::Pool::mark_went`].
    ///
    /// # Errors
    /// The same.
    pub(crate) fn mark_went(&self, name: &str, migration: [u8; 16]) -> anyhow::Result<()> {
        let name = name.to_owned();
        self.with(move |steward, id| Ok(steward.mark_went(id, &name, migration)?))
    }
}

fn named(steward: &Stewarded, id: VolumeId, name: &str) -> anyhow::Result<VolumeId> {
    let found = steward.pool().find(name).filter(|found| steward.pool().snapshots_of(id).contains(found));
    found.with_context(|| format!("its snapshot \"{name}\" is not there any more"))
}
