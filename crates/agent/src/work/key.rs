//! Keys of encrypted ssds: made before the daemon hears of the ssd, destroyed when the last that has it goes.
//!
//! Snapshots and clones have their source's key, for they share its extents. What is being deleted, or is quarantined, is nobody for whom a
//! key would be kept: of two that are deleted at once, the second one ends it.

use super::{Step, Work};
use crate::keys;
use crate::plane::PlaneError;
use crate::store::{self, OperationRow, SsdSpec, StoreError};
use api::rest::Phase;

/// Its data is to be read by nobody any more.
fn is_doomed(phase: Phase) -> bool {
    matches!(phase, Phase::Deleting | Phase::Quarantined)
}

impl Work {
    /// Makes the key of a new ssd, if it has one of its own. Never made later: that of an ssd with data would be another one.
    pub(super) fn begin_key(&self, operation: &OperationRow, spec: &SsdSpec) -> Result<Step, StoreError> {
        if let Some(id) = spec.makes_key() {
            (self.between)();
            let made = keys::make(&self.place, id, &*self.between).map_err(|error| {
                let folder = self.place.keys.display();
                PlaneError::Refused(format!("its key cannot be made in {folder}: {error}"))
            });
            if let Some(step) = self.unless_done(operation, made)? {
                return Ok(step);
            }
            (self.between)();
        }
        self.write_step(operation, "serve", None)?;
        Ok(Step::On)
    }

    /// Destroys the key of what is to be no more, unless others have it: who they are. Or why it cannot be destroyed.
    pub(super) fn end_key(
        &self,
        uuid: &str,
        key: Option<&str>,
    ) -> Result<Result<Vec<String>, String>, StoreError> {
        let Some(id) = key else { return Ok(Ok(Vec::new())) };
        let users: Vec<String> = self.book.read(|sqlite| {
            let ssds =
                store::ssds(sqlite)?.into_iter().map(|ssd| (ssd.name, ssd.uuid, ssd.phase, ssd.spec.key));
            let snapshots = store::snapshots(sqlite)?
                .into_iter()
                .map(|one| (one.name, one.uuid, one.phase, one.spec.key));
            let others = ssds.chain(snapshots).filter(|(_, other, phase, key)| {
                other != uuid && !is_doomed(*phase) && key.as_deref() == Some(id)
            });
            Ok::<_, StoreError>(others.map(|(name, ..)| name).collect())
        })?;
        if users.is_empty() {
            (self.between)();
            if let Err(error) = keys::destroy(&self.place, id) {
                let folder = self.place.keys.display();
                return Ok(Err(format!("its key in {folder} cannot be destroyed: {error}")));
            }
            (self.between)();
        }
        Ok(Ok(users))
    }
}
