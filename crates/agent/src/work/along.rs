//! Snapshots that go and come with their ssd (`docs/decisions/0039-what-goes-along.md`): the pool says which it has, and the records follow.
//!
//! ```text
//!  source:       gone, and the pool has it no more --> its record ends         | it stayed, or was kept: so does its record
//!  destination:  owned -----------------------------> a record of each that came, in the transaction by which the ssd is ready
//! ```
//!
//! A record ends while the one of its ssd is there, which has the same key: so no key is left that nobody would end.

use super::{Step, Work};
use crate::plane::PlaneError;
use crate::store::{self, OperationRow, SnapshotRow, SnapshotSpec, SsdRow, StoreError};
use api::control::VolumeStatus;
use api::identity::uuid_of_text;
use api::rest::{NAME_BYTES_MAX, OperationState, Phase, is_name};
use rusqlite::Connection;
use std::collections::BTreeSet;

/// What a journal says while a migration is not over. Until then a pool neither takes nor deletes snapshots of that ssd.
const UNDER_WAY: [&str; 5] = ["offered", "cancelling", "granted", "incoming", "ready"];

/// How far the migration of a volume is, if one is under way.
pub(crate) fn on_its_way<'a>(volumes: &'a [VolumeStatus], name: &str) -> Option<&'a str> {
    let volume = volumes.iter().find(|volume| volume.name == name)?;
    volume.migration.as_deref().filter(|word| UNDER_WAY.contains(word))
}

/// As [`on_its_way`], of what a snapshot is of. One that stayed when that left is of nothing any more.
pub(crate) fn goes_along<'a>(volumes: &'a [VolumeStatus], snapshot: &str) -> Option<&'a str> {
    let snapshot = volumes.iter().find(|volume| volume.name == snapshot)?;
    on_its_way(volumes, snapshot.parent.as_deref()?)
}

/// Why a snapshot is neither taken nor deleted now.
pub(crate) fn moving(ssd: &str, word: &str) -> String {
    format!("ssd \"{ssd}\" is being moved ({word}), and its snapshots go along")
}

/// And what can be done about it.
pub(crate) const UNTIL_MOVED: &str =
    "wait for the end of that (godwit migration list), or cancel it: godwit migration cancel SSD";

impl Work {
    /// The snapshots of an ssd that its pool has.
    pub(super) fn has_along(&self, ssd: &SsdRow) -> Result<Vec<VolumeStatus>, PlaneError> {
        let Some(pool) = &ssd.spec.pool else { return Ok(Vec::new()) };
        let own = ssd.volume();
        let mut volumes = self.served_pool(pool)?.volumes;
        volumes.retain(|volume| volume.read_only && volume.parent.as_ref() == Some(&own));
        Ok(volumes)
    }

    /// Ends the records of the snapshots that went with an ssd: the pool has wiped them. What it has still is listed still.
    pub(super) fn let_go(&self, ssd: &SsdRow) -> Result<Result<(), PlaneError>, StoreError> {
        let Some(pool) = &ssd.spec.pool else { return Ok(Ok(())) };
        if self.records_of(pool, &ssd.uuid, ssd.spec.key.as_ref())?.is_empty() {
            return Ok(Ok(()));
        }
        let volumes = match self.served_pool(pool) {
            Ok(pool) => pool.volumes,
            Err(error) => return Ok(Err(error)),
        };
        let rows = self.went_with(pool, &volumes, &ssd.uuid, ssd.spec.key.as_ref())?;
        if rows.is_empty() {
            return Ok(Ok(()));
        }
        (self.between)();
        self.book.write(|sqlite| rows.iter().try_for_each(|row| end_record(sqlite, row)))?;
        tracing::info!(ssd = ssd.name, snapshots = rows.len(), "they went along");
        (self.between)();
        Ok(Ok(()))
    }

    /// The records of the snapshots of an ssd that nobody works on.
    fn records_of(
        &self,
        pool: &str,
        ssd_uuid: &str,
        key: Option<&String>,
    ) -> Result<Vec<SnapshotRow>, StoreError> {
        let mut rows = self.book.read(store::snapshots)?;
        rows.retain(|one| {
            // Another key is that of an ssd before this one: it would have nobody to end it.
            let is_its = one.spec.ssd_uuid == ssd_uuid && one.spec.key.as_ref() == key;
            let is_at_rest = one.operation.is_none() && one.phase != Phase::Quarantined;
            is_its && is_at_rest && one.spec.pool == pool
        });
        Ok(rows)
    }

    /// Those of them that its pool has no more.
    pub(super) fn went_with(
        &self,
        pool: &str,
        volumes: &[VolumeStatus],
        ssd_uuid: &str,
        key: Option<&String>,
    ) -> Result<Vec<SnapshotRow>, StoreError> {
        let there: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let mut rows = self.records_of(pool, ssd_uuid, key)?;
        rows.retain(|one| !there.contains(one.volume().as_str()));
        Ok(rows)
    }

    /// A snapshot that its ssd takes along is not deleted, and is what it was.
    pub(super) fn spare_snapshot(
        &self,
        operation: &OperationRow,
        name: &str,
        why: &str,
    ) -> Result<Step, StoreError> {
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            if let Some(mut snapshot) = store::snapshot(sqlite, name)? {
                snapshot.operation = None;
                store::put_snapshot(sqlite, &snapshot)?;
            }
            store::end(sqlite, operation, OperationState::Failed, Some(why), now_ms)
        })?;
        (self.between)();
        Ok(Step::Ended)
    }
}

/// Ends the record of a snapshot that went.
pub(super) fn end_record(sqlite: &Connection, row: &SnapshotRow) -> Result<(), StoreError> {
    // Somebody may have asked for its deletion meanwhile: that finds nothing, and says so.
    match store::snapshot(sqlite, &row.name)?.as_ref() == Some(row) {
        true => store::remove_snapshot(sqlite, &row.name),
        false => Ok(()),
    }
}

/// Writes down the snapshots that came with an ssd. Those that are known stayed here when it left.
pub(super) fn take_in(
    sqlite: &Connection,
    ssd: &SsdRow,
    came: &[VolumeStatus],
    now_ms: u64,
    new_uuid: fn() -> String,
) -> Result<(), StoreError> {
    let Some(pool) = &ssd.spec.pool else { return Ok(()) };
    let known = store::snapshots(sqlite)?;
    let volumes: BTreeSet<String> =
        known.iter().filter(|one| one.spec.pool == *pool).map(SnapshotRow::volume).collect();
    let mut names: BTreeSet<String> = known.iter().map(|one| one.name.clone()).collect();
    let mut uuids: BTreeSet<String> = known.into_iter().map(|one| one.uuid).collect();
    // By another's identity it would be no user of the key that they share: see `end_key`.
    uuids.extend(store::ssds(sqlite)?.into_iter().map(|one| one.uuid));
    for volume in came.iter().filter(|volume| !volumes.contains(&volume.name)) {
        let (its_name, its_uuid) = called(&volume.name);
        let name = free_name(&its_name, &names);
        let uuid = its_uuid.filter(|uuid| !uuids.contains(uuid)).unwrap_or_else(new_uuid);
        let spec = SnapshotSpec {
            ssd: ssd.name.clone(),
            ssd_uuid: ssd.uuid.clone(),
            pool: pool.clone(),
            source: ssd.volume(),
            size_bytes: volume.size_bytes,
            created_ms: now_ms,
            // What came was enciphered here, through its ssd.
            key: ssd.spec.key.clone(),
            volume: Some(volume.name.clone()).filter(|volume| *volume != format!("{name}.{uuid}")),
        };
        names.insert(name.clone());
        uuids.insert(uuid.clone());
        let (phase, operation, reason) = (Phase::Ready, None, None);
        store::put_snapshot(sqlite, &SnapshotRow { name, uuid, phase, operation, reason, spec })?;
    }
    Ok(())
}

/// The name and the identity that a snapshot had at the other host's agent, by what it is called in a pool. Without an agent there it has a name only, of
/// whatever letters.
fn called(volume: &str) -> (String, Option<String>) {
    if let Some((name, uuid)) = volume.rsplit_once('.')
        && is_name(name)
        && uuid_of_text(uuid).is_some()
    {
        return (name.to_owned(), Some(uuid.to_lowercase()));
    }
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = volume.trim_start_matches('.').chars().map(fit).take(NAME_BYTES_MAX).collect();
    (if name.is_empty() { "snapshot".to_owned() } else { name }, None)
}

/// A name as near to one as is free: nobody can be asked for another, and an ssd is not to stay away for it.
fn free_name(name: &str, taken: &BTreeSet<String>) -> String {
    let numbered = |number: u64| {
        let end = format!("-{number}");
        let begin: String = name.chars().take(NAME_BYTES_MAX - end.len()).collect();
        begin + &end
    };
    let mut tries = std::iter::once(name.to_owned()).chain((2..).map(numbered));
    tries.find(|one| !taken.contains(one)).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

    #[test]
    fn a_snapshot_is_called_as_it_was_where_it_came_from_if_that_can_be_a_name() {
        let own = |name: &str| (name.to_owned(), Some(UUID.to_owned()));
        assert_eq!(called(&format!("a.b.{UUID}")), own("a.b"));
        assert_eq!(called(&format!("a.{}", UUID.to_uppercase())), own("a"));
        for (volume, name) in
            [("monday", "monday"), ("before the upgrade é", "before-the-upgrade--"), ("..", "snapshot")]
        {
            assert_eq!(called(volume), (name.to_owned(), None));
        }
        let long = "x".repeat(200);
        assert!(is_name(&called(&long).0) && is_name(&called(&format!(".{UUID}")).0));
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number_and_stays_a_name() {
        let long = "x".repeat(NAME_BYTES_MAX);
        let mut taken = BTreeSet::new();
        for expected in ["a", "a-2", "a-3"] {
            assert_eq!(free_name("a", &taken), expected);
            taken.insert(expected.to_owned());
        }
        taken.insert(long.clone());
        let next = free_name(&long, &taken);
        assert!(is_name(&next) && next.ends_with("x-2") && next.len() == NAME_BYTES_MAX);
    }
}
