//! Volumes as wholes: create, delete, grow, snapshot, clone.

use std::sync::Arc;

use state::pool::{ChangeV1, RunV1, VolumeV1};

use super::{Pool, Provisioning, VolumeId, VolumeSpec};
use crate::ledger::{ATTRIBUTES_BYTES_MAX, Refs, SIZE_UNIT_BYTES, VOLUMES_MAX, Volume, check_name};
use crate::{Entry, ExtentMap, PoolError};

impl Pool {
    /// The map that reactors read; kept true as long as anyone holds it. After a [`Pool::grow`] ask again.
    ///
    /// # Errors
    /// No such volume, or the pool is stopped.
    pub fn map(&mut self, id: VolumeId) -> Result<Arc<ExtentMap>, PoolError> {
        self.ready()?;
        let volume = self.known(id)?;
        let size_bytes = volume.saved.size_bytes;
        let maps = self.maps.get(&id.0).into_iter().flatten();
        if let Some(map) =
            maps.filter_map(std::sync::Weak::upgrade).find(|map| map.size_bytes() == size_bytes)
        {
            return Ok(map);
        }
        let geometry = &self.geometry;
        let map = ExtentMap::new(size_bytes, geometry.extent_bytes, geometry.data_offset_bytes)
            .ok_or_else(|| PoolError::Invalid(format!("there is no memory for the map of volume {id}")))?;
        for run in volume.map.iter() {
            for part in self.ledger.used.within(run.value.0, run.count) {
                let logical = run.first + (part.first - run.value.0);
                let (physical, own) = (part.first, part.value == Refs(1));
                let entry = if own { Entry::Mapped { physical } } else { Entry::Shared { physical } };
                map.set_run(logical, part.count, entry);
            }
        }
        let map = Arc::new(map);
        self.maps.entry(id.0).or_default().push(Arc::downgrade(&map));
        Ok(map)
    }

    /// A new volume. A full one has all its extents when this returns.
    ///
    /// # Errors
    /// The name is taken or cannot be, the size cannot be, or there is no space.
    pub fn create(&mut self, spec: &VolumeSpec) -> Result<VolumeId, PoolError> {
        self.accept_name(&spec.name)?;
        let extents = self.fit_size(spec.size_bytes)?;
        fit_attributes(&spec.attributes)?;
        let id = self.ledger.next_volume;
        let full = spec.provisioning == Provisioning::Full;
        let mut changes = vec![ChangeV1::Create(VolumeV1 {
            id,
            name: spec.name.clone(),
            uuid: spec.uuid,
            size_bytes: spec.size_bytes,
            full,
            read_only: false,
            parent: None,
            family: id,
            epoch: 0,
            attributes: spec.attributes.clone(),
            passage: None,
        })];
        if full {
            changes.extend(self.fill(id, 0, extents)?);
        }
        self.commit(&changes, false)?;
        Ok(VolumeId(id))
    }

    /// Removes a volume, and those of its snapshots that went or came with it if it is another host's. Extents that no other refers to are to be wiped, after
    /// [`Pool::grace_over`].
    ///
    /// # Errors
    /// No such volume, or its migration is not over.
    pub fn delete(&mut self, id: VolumeId) -> Result<(), PoolError> {
        self.may_delete(id)?;
        let mut changes = self.left_by(id)?;
        changes.push(ChangeV1::Delete(id.0));
        self.commit(&changes, true)
    }

    /// Makes a volume larger. Maps handed out before stay true for the old size.
    ///
    /// # Errors
    /// No such volume, a snapshot, a smaller or unfit size, or no space for a full one.
    pub fn grow(&mut self, id: VolumeId, size_bytes: u64) -> Result<(), PoolError> {
        let changes = self.growth(id, size_bytes)?;
        self.commit(&changes, false)
    }

    /// Whether [`Pool::grow`] would have the space and the room in its map now. Changes nothing.
    ///
    /// # Errors
    /// As [`Pool::grow`].
    pub fn can_grow(&self, id: VolumeId, size_bytes: u64) -> Result<(), PoolError> {
        let changes = self.growth(id, size_bytes)?;
        self.check_room(&changes, false)
    }

    fn growth(&self, id: VolumeId, size_bytes: u64) -> Result<Vec<ChangeV1>, PoolError> {
        let volume = self.known(id)?;
        if volume.saved.read_only {
            return Err(PoolError::ReadOnly(id));
        }
        let (old_bytes, full) = (volume.saved.size_bytes, volume.saved.full);
        if size_bytes < old_bytes {
            return Err(PoolError::Invalid(format!(
                "volume {id} has {old_bytes} bytes and cannot shrink to {size_bytes}"
            )));
        }
        let extents = self.fit_size(size_bytes)?;
        let had = self.fit_size(old_bytes)?;
        let mut changes = vec![ChangeV1::Grow(id.0, size_bytes)];
        if full {
            changes.extend(self.fill(id.0, had, extents - had)?);
        }
        Ok(changes)
    }

    /// A read-only volume with the content `id` has now. When this returns, both maps say `Shared`; writes that were
    /// under way before are in the snapshot or not, as they happen to land, until the caller's grace is over. No copy
    /// of an extent may begin before that.
    ///
    /// # Errors
    /// No such volume, the name is taken, or what the volume has is not whole or is on its way to another host.
    pub fn snapshot(&mut self, id: VolumeId, name: &str, uuid: [u8; 16]) -> Result<VolumeId, PoolError> {
        self.may_snapshot(id)?;
        self.derive(id, name, uuid, true)
    }

    /// A thin volume that begins with the content `id` has now. As for [`Pool::snapshot`].
    ///
    /// # Errors
    /// No such volume, the name is taken, or what the volume has is not whole.
    pub fn clone_volume(&mut self, id: VolumeId, name: &str, uuid: [u8; 16]) -> Result<VolumeId, PoolError> {
        self.derive(id, name, uuid, false)
    }

    /// Takes ownership of a volume: its epoch rises by one, durably, if it still is `expected`. Returns the new one.
    ///
    /// # Errors
    /// No such volume, or another owner was faster.
    pub fn advance_epoch(&mut self, id: VolumeId, expected: u64) -> Result<u64, PoolError> {
        let found = self.known(id)?.saved.epoch;
        let stale = PoolError::VolumeEpoch { volume: id, expected, found };
        let next = found.checked_add(1).filter(|_| found == expected).ok_or(stale)?;
        self.commit(&[ChangeV1::Epoch(id.0, next)], true)?;
        Ok(next)
    }

    /// Replaces what is kept with a volume for its user.
    ///
    /// # Errors
    /// No such volume, or more than 1024 bytes.
    pub fn set_attributes(&mut self, id: VolumeId, attributes: &[u8]) -> Result<(), PoolError> {
        self.known(id)?;
        fit_attributes(attributes)?;
        self.commit(&[ChangeV1::Attributes(id.0, attributes.to_vec())], false)
    }

    fn derive(
        &mut self,
        source: VolumeId,
        name: &str,
        uuid: [u8; 16],
        read_only: bool,
    ) -> Result<VolumeId, PoolError> {
        self.may_derive(source)?;
        let attributes = self.attributes_of(source)?;
        self.derive_as(source, name, uuid, read_only, attributes)
    }

    pub(super) fn derive_as(
        &mut self,
        source: VolumeId,
        name: &str,
        uuid: [u8; 16],
        read_only: bool,
        attributes: Vec<u8>,
    ) -> Result<VolumeId, PoolError> {
        self.accept_name(name)?;
        let from = &self.known(source)?.saved;
        let id = self.ledger.next_volume;
        let saved = VolumeV1 {
            id,
            name: name.to_owned(),
            uuid,
            size_bytes: from.size_bytes,
            full: false,
            read_only,
            parent: Some(source.0),
            family: from.family,
            epoch: 0,
            attributes,
            // A new volume, of its own identity: whoever owns the source.
            passage: None,
        };
        self.commit(&[ChangeV1::Derive(source.0, saved)], false)?;
        Ok(VolumeId(id))
    }

    /// Free extents for `count` logical ones from `logical` on.
    pub(super) fn fill(&self, volume: u64, logical: u32, count: u32) -> Result<Vec<ChangeV1>, PoolError> {
        if u64::from(count) > self.ledger.free.total() {
            let info = self.info();
            return Err(PoolError::NoSpace {
                wanted: u64::from(count),
                free: info.free,
                wiping: info.wiping,
            });
        }
        let (mut done, mut changes) = (0, Vec::new());
        for run in self.ledger.free.iter_round(self.cursor) {
            let part = run.count.min(count - done);
            if part == 0 {
                break;
            }
            let run = RunV1 { logical: logical + done, count: part, physical: run.first };
            changes.push(ChangeV1::Map(volume, run));
            done += part;
        }
        Ok(changes)
    }

    pub(super) fn known(&self, id: VolumeId) -> Result<&Volume, PoolError> {
        self.ledger.volumes.get(&id.0).ok_or(PoolError::NoVolume(id))
    }

    fn accept_name(&self, name: &str) -> Result<(), PoolError> {
        check_name(name).map_err(PoolError::Invalid)?;
        if self.ledger.volumes.len() >= VOLUMES_MAX {
            return Err(PoolError::Invalid(format!(
                "the pool has {VOLUMES_MAX} volumes, more there cannot be"
            )));
        }
        match self.ledger.named(name) {
            Some(_) => Err(PoolError::NameTaken(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Logical extents of a size that can be.
    fn fit_size(&self, size_bytes: u64) -> Result<u32, PoolError> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(SIZE_UNIT_BYTES) {
            return Err(PoolError::Invalid(format!(
                "a volume of {size_bytes} bytes cannot be: choose a multiple of {SIZE_UNIT_BYTES}"
            )));
        }
        self.ledger.logical_extents(size_bytes).ok_or_else(|| {
            PoolError::Invalid(format!("{size_bytes} bytes are more extents than a map can name"))
        })
    }
}

fn fit_attributes(attributes: &[u8]) -> Result<(), PoolError> {
    let len = attributes.len();
    if len > ATTRIBUTES_BYTES_MAX {
        return Err(PoolError::Invalid(format!(
            "{len} bytes of attributes, the most is {ATTRIBUTES_BYTES_MAX}"
        )));
    }
    Ok(())
}
