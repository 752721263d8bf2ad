//! Pools and what is in them.
//!
//! ```text
//!  pool-create      format (not of an import) --> serve: apply with it --> it is ready, end
//!                      | refused: end, failed        | refused: undo as ssd-create, but the drive stays formatted
//!  pool-delete      apply without it: the daemon gives it up -----------> it is no more, end
//!  snapshot-create  the pool has it, or makes it ------------------------> it is ready, end
//! ```
//!
//! What is made in a pool has a name that only this wish has (its identity is in it): if it is there, it is this one's.

use super::{Step, Work};
use crate::plane::{How, PlaneError};
use crate::render;
use crate::store::{self, OperationRow, PoolRow, PoolSpec, SnapshotSpec, SsdRow, SsdSpec, StoreError};
use api::control::{PoolRequest, PoolStatus, Status};
use api::rest::{OperationState, Phase};
use std::path::PathBuf;

impl Work {
    /// Makes the drive a pool. A drive that carries this very pool is left as it is.
    pub(super) fn format(
        &self,
        operation: &OperationRow,
        name: &str,
        spec: &PoolSpec,
        force_destroy_data: Option<&String>,
    ) -> Result<Step, StoreError> {
        if let Some(uuid) = &spec.uuid {
            let request = PoolRequest::Create {
                name: name.to_owned(),
                path: PathBuf::from(&spec.path),
                size_bytes: spec.size_bytes,
                extent_bytes: spec.extent_bytes,
                force_destroy_data: force_destroy_data.cloned(),
                uuid: Some(uuid.clone()),
            };
            match self.plane.pool(request) {
                Ok(said) => tracing::info!(said, "a pool"),
                Err(PlaneError::Silent(why)) => return Ok(Step::Later(why)),
                Err(PlaneError::Refused(why)) => {
                    (self.between)();
                    let now_ms = (self.now_ms)();
                    self.book.write(|sqlite| {
                        store::remove_pool(sqlite, name)?;
                        store::end(sqlite, operation, OperationState::Failed, Some(&why), now_ms)
                    })?;
                    return Ok(Step::Ended);
                }
            }
        }
        (self.between)();
        self.write_step(operation, "serve", None)?;
        Ok(Step::On)
    }

    /// Has the volume of a new ssd begin with what another one contains.
    pub(super) fn derive(
        &self,
        operation: &OperationRow,
        spec: &SsdSpec,
        volume: String,
    ) -> Result<Step, StoreError> {
        if let (Some(pool), Some(source)) = (&spec.pool, &spec.source) {
            let request =
                PoolRequest::Clone { pool: pool.clone(), volume: source.clone(), name: volume.clone() };
            let said = self.ensure(pool, &volume, request).and_then(|()| self.is_whole(pool, source));
            if let Some(step) = self.unless_done(operation, said)? {
                return Ok(step);
            }
        }
        (self.between)();
        self.write_step(operation, "serve", None)?;
        Ok(Step::On)
    }

    pub(super) fn snapshot(
        &self,
        operation: &OperationRow,
        name: &str,
        uuid: &str,
        spec: &SnapshotSpec,
    ) -> Result<Step, StoreError> {
        let volume = format!("{name}.{uuid}");
        let request = PoolRequest::Snapshot {
            pool: spec.pool.clone(),
            volume: spec.source.clone(),
            name: volume.clone(),
        };
        let said = self.ensure(&spec.pool, &volume, request);
        let made = match said.and_then(|()| self.is_whole(&spec.pool, &spec.source)) {
            Err(PlaneError::Silent(why)) => return Ok(Step::Later(why)),
            Ok(()) => Ok(()),
            Err(PlaneError::Refused(why)) => {
                (self.between)();
                // The pool may have made it all the same, and nobody would know of it. If it is there when this is tried again, it is good.
                if let Err(error) = self.forget_volume(&spec.pool, &volume) {
                    return Ok(Step::Later(format!("{why}; then: {error}")));
                }
                Err(why)
            }
        };
        (self.between)();
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            if let Some(mut ssd) = store::ssd(sqlite, &spec.ssd)?
                && ssd.operation.as_ref() == Some(&operation.shown.id)
            {
                ssd.operation = None;
                store::put_ssd(sqlite, &ssd)?;
            }
            if let Err(why) = &made {
                store::remove_snapshot(sqlite, name)?;
                return store::end(sqlite, operation, OperationState::Failed, Some(why), now_ms);
            }
            if let Some(mut snapshot) = store::snapshot(sqlite, name)? {
                (snapshot.phase, snapshot.operation) = (Phase::Ready, None);
                store::put_snapshot(sqlite, &snapshot)?;
            }
            store::end(sqlite, operation, OperationState::Done, None, now_ms)
        })?;
        (self.between)();
        Ok(Step::Ended)
    }

    /// A daemon was started anew, and refuses what is wanted as a whole: a drive may have died. What does not need it is served all
    /// the same, and nothing that is served is taken away.
    pub(super) fn settle_in_parts(&self, status: &Status) -> Result<(), StoreError> {
        let Ok(base) = self.base.text() else { return Ok(()) };
        let (all_pools, all) =
            self.book.read(|sqlite| Ok::<_, StoreError>((store::pools(sqlite)?, store::ssds(sqlite)?)))?;
        let open: Vec<String> =
            self.plane.pools().unwrap_or_default().into_iter().map(|one| one.name).collect();
        let is_served = |ssd: &SsdRow| status.ssds.iter().any(|served| served.name == ssd.name);
        let needed = |pool: &PoolRow| {
            all.iter().any(|ssd| ssd.spec.pool.as_ref() == Some(&pool.name) && is_served(ssd))
        };
        let mut pools: Vec<PoolRow> =
            all_pools.iter().filter(|pool| open.contains(&pool.name) || needed(pool)).cloned().collect();
        let mut ssds: Vec<SsdRow> = all.iter().filter(|ssd| is_served(ssd)).cloned().collect();
        for part in std::iter::once(None).chain(all_pools.iter().map(Some)) {
            let (mut more_pools, mut more) = (pools.clone(), ssds.clone());
            more_pools.extend(part.filter(|part| !pools.contains(part)).cloned());
            let name = part.map(|part| &part.name);
            more.extend(all.iter().filter(|ssd| ssd.spec.pool.as_ref() == name && !is_served(ssd)).cloned());
            let Ok(text) = render::configuration(&base, &self.place, &more_pools, &more) else { continue };
            match self.plane.apply(&text, How::default()) {
                Ok(_) => (pools, ssds) = (more_pools, more),
                Err(error) => tracing::warn!(pool = name, %error, "a part is not served"),
            }
        }
        Ok(())
    }

    /// Has a volume be there. Its name is of this wish alone.
    fn ensure(&self, pool: &str, volume: &str, request: PoolRequest) -> Result<(), PlaneError> {
        if self.served_pool(pool)?.volumes.iter().any(|there| there.name == volume) {
            return Ok(());
        }
        self.plane.pool(request).map(|said| tracing::info!(said, "in a pool"))
    }

    /// A pool that can be worked with.
    pub(super) fn served_pool(&self, name: &str) -> Result<PoolStatus, PlaneError> {
        let pool = self.plane.pools()?.into_iter().find(|pool| pool.name == name);
        match pool {
            Some(pool) if pool.state == "serving" => Ok(pool),
            Some(pool) => Err(PlaneError::Silent(format!("pool \"{name}\": {}", pool.state))),
            None => Err(PlaneError::Silent(format!("the daemon does not have pool \"{name}\""))),
        }
    }

    /// Takes back what a creation that failed may have made in its pool. Nobody has written to it.
    pub(super) fn forget_volume(&self, pool: &str, volume: &str) -> Result<(), PlaneError> {
        if !self.served_pool(pool)?.volumes.iter().any(|there| there.name == volume) {
            return Ok(());
        }
        let request = PoolRequest::Delete { pool: pool.to_owned(), volume: volume.to_owned() };
        self.plane.pool(request).map(drop)
    }
}
