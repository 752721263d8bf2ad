//! Pools, snapshots in them, and the certificates of what was deleted from them.

use super::{LAYOUT_OF_VOLUMES, StoreError, at_least, json, note, to_json, word};
use api::rest::{Certificate, Phase};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// What is wanted of a pool. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolSpec {
    pub(crate) path: String,
    /// Its identity, as hexadecimal digits. `None`: it was there before.
    #[serde(default)]
    pub(crate) uuid: Option<String>,
    #[serde(default)]
    pub(crate) size_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) extent_bytes: Option<u64>,
}

/// A pool as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolRow {
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) operation: Option<String>,
    pub(crate) spec: PoolSpec,
}

/// What a snapshot is of. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotSpec {
    pub(crate) ssd: String,
    pub(crate) ssd_uuid: String,
    pub(crate) pool: String,
    /// The volume that it is of.
    pub(crate) source: String,
    pub(crate) size_bytes: u64,
    pub(crate) created_ms: u64,
    /// Its ssd's key.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// What it is called in the pool, where that does not follow from its name and identity: it came with its ssd.
    #[serde(default)]
    pub(crate) volume: Option<String>,
}

/// A snapshot as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) phase: Phase,
    pub(crate) operation: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) spec: SnapshotSpec,
}

impl SnapshotRow {
    /// What it is called in the pool.
    pub(crate) fn volume(&self) -> String {
        self.spec.volume.clone().unwrap_or_else(|| format!("{}.{}", self.name, self.uuid))
    }
}

fn pool_of(row: &Row<'_>) -> rusqlite::Result<PoolRow> {
    Ok(PoolRow {
        name: row.get("name")?,
        phase: word(&row.get::<_, String>("phase")?)?,
        operation: row.get("operation")?,
        spec: json(&row.get::<_, String>("spec")?)?,
    })
}

pub(crate) fn pool(sqlite: &Connection, name: &str) -> Result<Option<PoolRow>, StoreError> {
    Ok(sqlite.query_row("SELECT * FROM pools WHERE name = ?1", [name], pool_of).optional()?)
}

pub(crate) fn pools(sqlite: &Connection) -> Result<Vec<PoolRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT * FROM pools ORDER BY name")?;
    Ok(query.query_map([], pool_of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_pool(sqlite: &Connection, pool: &PoolRow) -> Result<(), StoreError> {
    sqlite.execute(
        "INSERT INTO pools (name, phase, operation, spec) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE SET phase = ?2, operation = ?3, spec = ?4",
        params![pool.name, pool.phase.word(), pool.operation, to_json(&pool.spec)?],
    )?;
    Ok(note(sqlite, "pool", &pool.name, false)?)
}

pub(crate) fn remove_pool(sqlite: &Connection, name: &str) -> Result<(), StoreError> {
    sqlite.execute("DELETE FROM pools WHERE name = ?1", [name])?;
    Ok(note(sqlite, "pool", name, true)?)
}

fn snapshot_of(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    Ok(SnapshotRow {
        name: row.get("name")?,
        uuid: row.get("uuid")?,
        phase: word(&row.get::<_, String>("phase")?)?,
        operation: row.get("operation")?,
        reason: row.get("reason")?,
        spec: json(&row.get::<_, String>("spec")?)?,
    })
}

pub(crate) fn snapshot(sqlite: &Connection, name: &str) -> Result<Option<SnapshotRow>, StoreError> {
    Ok(sqlite.query_row("SELECT * FROM snapshots WHERE name = ?1", [name], snapshot_of).optional()?)
}

pub(crate) fn snapshots(sqlite: &Connection) -> Result<Vec<SnapshotRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT * FROM snapshots ORDER BY name")?;
    Ok(query.query_map([], snapshot_of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_snapshot(sqlite: &Connection, snapshot: &SnapshotRow) -> Result<(), StoreError> {
    if snapshot.spec.volume.is_some() {
        at_least(sqlite, LAYOUT_OF_VOLUMES)?;
    }
    sqlite.execute(
        "INSERT INTO snapshots (name, uuid, phase, operation, reason, spec) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (name) DO UPDATE SET uuid = ?2, phase = ?3, operation = ?4, reason = ?5, spec = ?6",
        params![
            snapshot.name,
            snapshot.uuid,
            snapshot.phase.word(),
            snapshot.operation,
            snapshot.reason,
            to_json(&snapshot.spec)?
        ],
    )?;
    Ok(note(sqlite, "snapshot", &snapshot.name, false)?)
}

pub(crate) fn remove_snapshot(sqlite: &Connection, name: &str) -> Result<(), StoreError> {
    sqlite.execute("DELETE FROM snapshots WHERE name = ?1", [name])?;
    Ok(note(sqlite, "snapshot", name, true)?)
}

fn certificate_of(row: &Row<'_>) -> rusqlite::Result<Certificate> {
    json(&row.get::<_, String>("spec")?)
}

pub(crate) fn certificate(sqlite: &Connection, id: &str) -> Result<Option<Certificate>, StoreError> {
    Ok(sqlite.query_row("SELECT spec FROM certificates WHERE id = ?1", [id], certificate_of).optional()?)
}

/// The newest, newest first.
pub(crate) fn certificates(sqlite: &Connection, count: u32) -> Result<Vec<Certificate>, StoreError> {
    let mut query = sqlite.prepare("SELECT spec FROM certificates ORDER BY number DESC LIMIT ?1")?;
    Ok(query.query_map([count], certificate_of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_certificate(sqlite: &Connection, certificate: &Certificate) -> Result<(), StoreError> {
    sqlite.execute(
        "INSERT INTO certificates (id, spec) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET spec = ?2",
        params![certificate.id, to_json(certificate)?],
    )?;
    Ok(note(sqlite, "certificate", &certificate.id, false)?)
}
