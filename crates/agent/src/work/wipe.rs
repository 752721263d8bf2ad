//! The end of what lived in a pool: deleted, wiped, certified.
//!
//! ```text
//!  remove: the certificate is begun --> its key ends --> the pool deletes it --> wipe: until the pool has nothing left to zero --> certified, end
//!                                                           | refuses                    | something could not be zeroed
//!                                                           `------- quarantined --------'--> certified as that, end: failed
//! ```
//!
//! The pool zeroes what it is given back extent by extent, reads each one back, and keeps those that fail from everybody. It does not
//! say whose they were: so the wipe is over when the pool has nothing left to zero, and what fails meanwhile counts against it.

use super::{Step, Work, along};
use crate::plane::PlaneError;
use crate::store::{self, OperationRow, SnapshotRow, SsdRow, StoreError};
use api::control::{PoolRequest, PoolStatus};
use api::rest::{Certificate, KeyFate, OperationState, Phase, Verdict, WipedKind};
use api::size::Size;

/// As the pool does it (crates/engine/src/pool).
const METHOD: &str = "each extent deallocated or overwritten with zeros, then every byte of it read back as zero, before anybody else \
    can have it; space shared with snapshots or clones stays theirs";

/// As `keys` does it.
const KEY_DESTROYED: &str = "the file with the key of its data overwritten with zeros and removed (what a file system or a drive keeps of \
    old blocks of it is not known)";
const KEY_KEPT: &str = "the key of its data kept, for others that are there were written with it";

/// What is to be no more.
pub(super) struct Doomed {
    kind: WipedKind,
    name: String,
    /// The ssd that it is, or is of.
    of: String,
    uuid: String,
    serial: Option<String>,
    pool: String,
    volume: String,
    size_bytes: u64,
    key: Option<String>,
}

impl Doomed {
    /// `None`: it lives in a file.
    pub(super) fn ssd(ssd: &SsdRow) -> Option<Self> {
        Some(Self {
            kind: WipedKind::Ssd,
            name: ssd.name.clone(),
            of: ssd.name.clone(),
            uuid: ssd.uuid.clone(),
            serial: Some(ssd.serial()),
            pool: ssd.spec.pool.clone()?,
            volume: ssd.volume(),
            size_bytes: ssd.spec.size_bytes,
            key: ssd.spec.key.clone(),
        })
    }

    pub(super) fn snapshot(snapshot: &SnapshotRow) -> Self {
        Self {
            kind: WipedKind::Snapshot,
            name: snapshot.name.clone(),
            of: snapshot.spec.ssd.clone(),
            uuid: snapshot.uuid.clone(),
            serial: None,
            pool: snapshot.spec.pool.clone(),
            volume: snapshot.volume(),
            size_bytes: snapshot.spec.size_bytes,
            key: snapshot.spec.key.clone(),
        }
    }
}

impl Work {
    /// Has the pool delete it.
    pub(super) fn delete_volume(
        &self,
        operation: &OperationRow,
        doomed: &Doomed,
    ) -> Result<Step, StoreError> {
        let pool = match self.served_pool(&doomed.pool) {
            Ok(pool) => pool,
            Err(error) => return Ok(Step::Later(error.to_string())),
        };
        let id = &operation.shown.id;
        let begun = self.book.read(|sqlite| store::certificate(sqlite, id))?;
        let is_there = pool.volumes.iter().any(|volume| volume.name == doomed.volume);
        let is_moving = |pool: &PoolStatus| {
            let word = along::goes_along(&pool.volumes, &doomed.volume)?;
            Some(along::moving(&doomed.of, word)).filter(|_| doomed.kind == WipedKind::Snapshot)
        };
        if begun.is_none() {
            if let Some(why) = is_moving(&pool) {
                let why = format!("{why}: {}", along::UNTIL_MOVED);
                return self.spare_snapshot(operation, &doomed.name, &why);
            }
            self.book.write(|sqlite| {
                let others = store::snapshots(sqlite)?.into_iter();
                let snapshots = others.filter(|one| one.spec.ssd_uuid == doomed.uuid).map(|one| one.name);
                let certificate = self.begin_certificate(id, doomed, &pool, snapshots.collect());
                store::put_certificate(sqlite, &certificate)?;
                if doomed.kind == WipedKind::Snapshot
                    && let Some(mut snapshot) = store::snapshot(sqlite, &doomed.name)?
                {
                    // From here on it is nobody for whom a key would be kept.
                    snapshot.phase = Phase::Deleting;
                    store::put_snapshot(sqlite, &snapshot)?;
                }
                Ok::<_, StoreError>(())
            })?;
            (self.between)();
        }
        // First of all: it is at once, and holds when what comes after it fails.
        if let Some(why) = self.certify_key(id, doomed)? {
            return Ok(Step::Later(why));
        }
        if is_there {
            let request = PoolRequest::Delete { pool: doomed.pool.clone(), volume: doomed.volume.clone() };
            match self.plane.pool(request) {
                Ok(said) => tracing::info!(said, "in a pool"),
                Err(PlaneError::Silent(why)) => return Ok(Step::Later(why)),
                Err(PlaneError::Refused(why)) => {
                    (self.between)();
                    // Its ssd has set out since its certificate was begun.
                    match self.served_pool(&doomed.pool).map(|now| is_moving(&now)) {
                        Ok(None) => {}
                        Ok(Some(why)) => return Ok(Step::Later(why)),
                        Err(error) => return Ok(Step::Later(error.to_string())),
                    }
                    let why = format!("pool \"{}\" does not delete it: {why}", doomed.pool);
                    return self.quarantine(operation, doomed, &pool, &why);
                }
            }
            (self.between)();
        }
        self.write_step(operation, "wipe", None)?;
        Ok(Step::On)
    }

    fn begin_certificate(
        &self,
        id: &str,
        doomed: &Doomed,
        pool: &PoolStatus,
        snapshots: Vec<String>,
    ) -> Certificate {
        let volume = pool.volumes.iter().find(|volume| volume.name == doomed.volume);
        let now_ms = (self.now_ms)();
        let quarantined = pool.quarantined.saturating_mul(pool.extent_bytes);
        Certificate {
            id: id.to_owned(),
            kind: doomed.kind,
            name: doomed.name.clone(),
            uuid: doomed.uuid.clone(),
            serial: doomed.serial.clone(),
            pool: doomed.pool.clone(),
            pool_uuid: pool.uuid.clone(),
            drive: pool.path.display().to_string(),
            volume: doomed.volume.clone(),
            size_bytes: doomed.size_bytes,
            mapped_bytes: volume.map_or(0, |volume| volume.mapped_bytes),
            snapshots,
            method: METHOD.to_owned(),
            key: None,
            key_users: Vec::new(),
            verdict: volume.map_or(Verdict::Absent, |_| Verdict::Wiping),
            quarantined_bytes: [quarantined, quarantined],
            started_ms: now_ms,
            ended_ms: volume.is_none().then_some(now_ms),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Ends the key of what is doomed, and certifies that. Returns why it could not be done.
    fn certify_key(&self, id: &str, doomed: &Doomed) -> Result<Option<String>, StoreError> {
        if doomed.key.is_none() {
            return Ok(None);
        }
        let users = match self.end_key(&doomed.uuid, doomed.key.as_deref())? {
            Ok(users) => users,
            Err(why) => return Ok(Some(why)),
        };
        self.book.write(|sqlite| {
            let Some(mut certificate) = store::certificate(sqlite, id)? else { return Ok(()) };
            let (fate, how) = match users.is_empty() {
                true => (KeyFate::Destroyed, KEY_DESTROYED),
                false => (KeyFate::Kept, KEY_KEPT),
            };
            (certificate.key, certificate.key_users) = (Some(fate), users);
            certificate.method = format!("{how}; {METHOD}");
            store::put_certificate(sqlite, &certificate)
        })?;
        (self.between)();
        Ok(None)
    }

    /// With an ssd that is another host's the pool deletes the snapshots that went with it: they have no more need of its key. Returns why that could not be
    /// destroyed.
    fn end_what_went(
        &self,
        id: &str,
        doomed: &Doomed,
        pool: &PoolStatus,
    ) -> Result<Option<String>, StoreError> {
        let key = doomed.key.as_ref();
        let mut rows = self.went_with(&doomed.pool, &pool.volumes, &doomed.uuid, key)?;
        if rows.is_empty() {
            return Ok(None);
        }
        (self.between)();
        // From here on they are nobody for whom a key would be kept. Their records end when it has ended.
        self.book.write(|sqlite| {
            for row in &mut rows {
                // One whose deletion was asked for meanwhile ends by that.
                if store::snapshot(sqlite, &row.name)?.as_ref() == Some(row) {
                    row.phase = Phase::Deleting;
                    store::put_snapshot(sqlite, row)?;
                }
            }
            Ok::<_, StoreError>(())
        })?;
        (self.between)();
        if let Some(why) = self.certify_key(id, doomed)? {
            return Ok(Some(why));
        }
        self.book.write(|sqlite| rows.iter().try_for_each(|row| along::end_record(sqlite, row)))?;
        (self.between)();
        Ok(None)
    }

    /// Waits until the pool has zeroed all that it was given back.
    pub(super) fn await_wipe(&self, operation: &OperationRow, doomed: &Doomed) -> Result<Step, StoreError> {
        let pool = match self.served_pool(&doomed.pool) {
            Ok(pool) => pool,
            Err(error) => return Ok(Step::Later(error.to_string())),
        };
        if pool.volumes.iter().any(|volume| volume.name == doomed.volume) {
            // An older copy of the drive was put back, say.
            self.write_step(operation, "remove", None)?;
            return Ok(Step::Later(format!("pool \"{}\" has it again", doomed.pool)));
        }
        let id = &operation.shown.id;
        if doomed.kind == WipedKind::Ssd
            && let Some(why) = self.end_what_went(id, doomed, &pool)?
        {
            return Ok(Step::Later(why));
        }
        let Some(mut certificate) = self.book.read(|sqlite| store::certificate(sqlite, id))? else {
            return Err(StoreError::Content(format!("operation {id} has no certificate")));
        };
        if certificate.verdict != Verdict::Absent {
            if pool.wiping > 0 {
                let left = Size { bytes: pool.wiping.saturating_mul(pool.extent_bytes) };
                return Ok(Step::Later(format!("pool \"{}\" has {left} to wipe", doomed.pool)));
            }
            let quarantined = pool.quarantined.saturating_mul(pool.extent_bytes);
            if quarantined > certificate.quarantined_bytes[0] {
                let more = Size { bytes: quarantined - certificate.quarantined_bytes[0] };
                let why = format!(
                    "{more} of pool \"{}\" could not be zeroed meanwhile: they are kept from everybody",
                    doomed.pool
                );
                return self.quarantine(operation, doomed, &pool, &why);
            }
            certificate.verdict = Verdict::Wiped;
            certificate.quarantined_bytes[1] = quarantined;
            certificate.ended_ms = Some((self.now_ms)());
        }
        (self.between)();
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            store::put_certificate(sqlite, &certificate)?;
            match doomed.kind {
                WipedKind::Ssd => store::remove_ssd(sqlite, &doomed.name)?,
                WipedKind::Snapshot => store::remove_snapshot(sqlite, &doomed.name)?,
            }
            store::end(sqlite, operation, OperationState::Done, None, now_ms)
        })?;
        (self.between)();
        Ok(Step::Ended)
    }

    /// It is not known to be wiped: it is served no more, and a person must look.
    fn quarantine(
        &self,
        operation: &OperationRow,
        doomed: &Doomed,
        pool: &PoolStatus,
        why: &str,
    ) -> Result<Step, StoreError> {
        let now_ms = (self.now_ms)();
        let quarantined = pool.quarantined.saturating_mul(pool.extent_bytes);
        self.book.write(|sqlite| {
            if let Some(mut certificate) = store::certificate(sqlite, &operation.shown.id)? {
                certificate.verdict = Verdict::Quarantined;
                certificate.quarantined_bytes[1] = quarantined;
                certificate.ended_ms = Some(now_ms);
                store::put_certificate(sqlite, &certificate)?;
            }
            match doomed.kind {
                WipedKind::Ssd => {
                    if let Some(mut ssd) = store::ssd(sqlite, &doomed.name)? {
                        (ssd.phase, ssd.operation) = (Phase::Quarantined, None);
                        ssd.reason = Some(why.to_owned());
                        store::put_ssd(sqlite, &ssd)?;
                    }
                }
                WipedKind::Snapshot => {
                    if let Some(mut snapshot) = store::snapshot(sqlite, &doomed.name)? {
                        (snapshot.phase, snapshot.operation) = (Phase::Quarantined, None);
                        snapshot.reason = Some(why.to_owned());
                        store::put_snapshot(sqlite, &snapshot)?;
                    }
                }
            }
            store::end(sqlite, operation, OperationState::Failed, Some(why), now_ms)
        })?;
        (self.between)();
        Ok(Step::Ended)
    }
}
