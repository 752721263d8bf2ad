//! Who owns a volume while it moves between hosts: the journal of its migrations, kept with it, and what may be done by it.
//!
//! The journal is the step and the state of the volume at once: one store, and by it the volume may be opened or not. Decision 0034 says why, and
//! `docs/formats/migration-journal.md` what each step means.

use state::migration::MigrationV1;
use state::pool::{ChangeV1, VolumeV1};

use super::{Pool, VolumeId};
use crate::PoolError;

impl Pool {
    /// The journal of a volume's migrations. `None`: it was never moved.
    ///
    /// # Errors
    /// No such volume.
    pub fn passage(&self, id: VolumeId) -> Result<Option<&[u8]>, PoolError> {
        Ok(self.known(id)?.saved.passage.as_deref())
    }

    /// Replaces the journal, durably. A step by which the volume is owned here raises its epoch to that of the step, in the same store.
    ///
    /// # Errors
    /// No such volume, a snapshot, no journal that could be read again, or the step is of an epoch that the volume is beyond.
    pub fn set_passage(&mut self, id: VolumeId, bytes: &[u8]) -> Result<(), PoolError> {
        let saved = &self.known(id)?.saved;
        if saved.read_only {
            return Err(PoolError::ReadOnly(id));
        }
        let record = MigrationV1::from_bytes(bytes).map_err(|error| PoolError::Invalid(error.to_string()))?;
        let mut changes = vec![ChangeV1::Passage(id.0, bytes.to_vec())];
        let found = saved.epoch;
        let stale = |expected| Err(PoolError::VolumeEpoch { volume: id, expected, found });
        match (record.owned_here(), &record.source) {
            (Some(epoch), _) if epoch < found => return stale(epoch),
            (Some(epoch), _) if epoch > found => changes.push(ChangeV1::Epoch(id.0, epoch)),
            // It lets go of what it owned, by the epoch that it owned it by.
            (None, Some(source)) if source.held < found => return stale(source.held),
            // It is to come, by an epoch that the volume has not seen.
            (None, None) if !record.is_over() && record.epoch <= found => return stale(record.epoch),
            _ => {}
        }
        changes.extend(self.released(id, &record));
        self.commit(&changes, true)
    }

    /// Whether the volume's owner is here: else nobody may open it.
    ///
    /// # Errors
    /// It is not, or nobody can say.
    pub fn may_serve(&self, id: VolumeId) -> Result<(), PoolError> {
        let saved = &self.known(id)?.saved;
        match record_of(saved)? {
            None => Ok(()),
            Some(record) => match record.owned_here() {
                Some(epoch) if epoch <= saved.epoch => Ok(()),
                Some(epoch) => {
                    Err(refusal(id, format!("it is owned by epoch {epoch}, and has {}", saved.epoch)))
                }
                None => Err(away(id, &record)),
            },
        }
    }

    /// Whether blocks from another host may be written to the volume: it is not owned here, and whoever owns it does not count on what it has.
    ///
    /// # Errors
    /// They may not.
    pub fn may_land(&self, id: VolumeId) -> Result<(), PoolError> {
        let Some(record) = record_of(&self.known(id)?.saved)? else { return Ok(()) };
        let is_incoming = record.step() == "incoming";
        if record.owned_here().is_some() {
            return Err(refusal(id, "its owner is here".to_owned()));
        }
        if record.is_over() || is_incoming { Ok(()) } else { Err(away(id, &record)) }
    }

    /// Gives back all extents of a volume that is another host's now, or was never whole, and of its snapshots that went or came with it: they are wiped
    /// before anybody gets them. The volume stays, and says whose it is.
    ///
    /// # Errors
    /// It is owned here, or its migration is not over.
    pub fn vacate(&mut self, id: VolumeId) -> Result<(), PoolError> {
        let saved = &self.known(id)?.saved;
        let record = record_of(saved)?.filter(|record| record.is_over() && record.owned_here().is_none());
        let Some(record) = record else {
            return Err(refusal(id, "it is not another host's: what it has is not given back".to_owned()));
        };
        let extents = self.ledger.logical_extents(saved.size_bytes).unwrap_or(u32::MAX);
        let mut changes = vec![ChangeV1::Unmap(id.0, 0, extents)];
        changes.extend(self.left_behind(id, record.migration));
        self.commit(&changes, true)
    }

    /// A full volume that was vacated has all its extents again.
    ///
    /// # Errors
    /// There is no space.
    pub(crate) fn refill(&mut self, id: VolumeId) -> Result<(), PoolError> {
        let volume = self.known(id)?;
        if !volume.saved.full || volume.map.total() > 0 {
            return Ok(());
        }
        let extents = self.ledger.logical_extents(volume.saved.size_bytes).unwrap_or(u32::MAX);
        let changes = self.fill(id.0, 0, extents)?;
        self.commit(&changes, false)
    }

    /// What a migration may still ask for is not deleted under it.
    pub(super) fn may_delete(&self, id: VolumeId) -> Result<(), PoolError> {
        self.may_lose(id)?;
        match record_of(&self.known(id)?.saved)? {
            Some(record) if !record.is_over() => {
                let what = format!("its migration is not over ({}): cancel it, or let it end", record.step());
                Err(refusal(id, what))
            }
            _ => Ok(()),
        }
    }

    /// What has come in part is nobody's past, and what has gone is nothing: its extents are given back, or are about to be.
    pub(super) fn may_derive(&self, id: VolumeId) -> Result<(), PoolError> {
        self.may_begin_with(id)?;
        match record_of(&self.known(id)?.saved)? {
            Some(record) if matches!(record.step(), "incoming" | "dropped") => {
                Err(refusal(id, format!("it is {}: what is here of it is not whole", record.step())))
            }
            Some(record) if record.step() == "gone" && record.keep != Some(true) => {
                let what = format!("it is at another host ({:?}): nothing of it is left here", record.peer);
                Err(refusal(id, what))
            }
            _ => Ok(()),
        }
    }
}

/// What a volume's journal says.
pub(crate) fn record_of(saved: &VolumeV1) -> Result<Option<MigrationV1>, PoolError> {
    let Some(bytes) = &saved.passage else { return Ok(None) };
    let why = |error| refusal(VolumeId(saved.id), format!("nobody can say who owns it: {error}"));
    MigrationV1::from_bytes(bytes).map(Some).map_err(why)
}

fn away(id: VolumeId, record: &MigrationV1) -> PoolError {
    refusal(id, format!("its owner is not here: it is {} (the other host: {:?})", record.step(), record.peer))
}

pub(super) fn refusal(volume: VolumeId, why: String) -> PoolError {
    PoolError::Passage { volume, why }
}
