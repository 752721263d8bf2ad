//! The desired state and the operations, in one SQLite file. Each change is one transaction, durable when it returns.
//!
//! One process has the file at a time: it holds SQLite's exclusive lock for its life.

mod attachment;
mod space;

pub(crate) use attachment::{AttachmentRow, attachment, attachments, put_attachment, remove_attachment};
pub(crate) use space::{
    PoolRow, PoolSpec, SnapshotRow, SnapshotSpec, certificate, certificates, pool, pools, put_certificate,
    put_pool, put_snapshot, remove_pool, remove_snapshot, snapshot, snapshots,
};

use api::config::PROFILE_DEFAULT;
use api::rest::{Change, Flavor, Interface, Limits, Operation, OperationState, Phase};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// Changes that are remembered for those who watch.
const CHANGES_KEPT: i64 = 10_000;
/// Ended operations that are remembered.
const OPERATIONS_KEPT: i64 = 10_000;
/// Certificates that are remembered: much longer than anybody asks.
const CERTIFICATES_KEPT: i64 = 100_000;
/// The layout of the tables; a file with a higher one was written by a later release.
const LAYOUT: i64 = 4;
/// That of a file in which something is encrypted: the tables are those of layout 2, but a release that does not know of keys would
/// forget them, and serve noise.
const LAYOUT_OF_KEYS: i64 = 3;
/// That of a file with a snapshot whose volume is not called after it: a release that does not know would look for another one, and
/// certify that the pool has none.
const LAYOUT_OF_VOLUMES: i64 = 4;

const TABLES: &str = "
    CREATE TABLE ssds (
        name TEXT PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL, phase TEXT NOT NULL,
        operation TEXT, reason TEXT, spec TEXT NOT NULL
    ) STRICT;
    CREATE TABLE pools (
        name TEXT PRIMARY KEY, phase TEXT NOT NULL, operation TEXT, spec TEXT NOT NULL
    ) STRICT;
    CREATE TABLE flavors (name TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
    CREATE TABLE operations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, target TEXT NOT NULL,
        request TEXT NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, message TEXT,
        created_ms INTEGER NOT NULL, finished_ms INTEGER
    ) STRICT;
    CREATE INDEX running ON operations (number) WHERE state = 'running';
    CREATE TABLE changes (
        version INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL, gone INTEGER NOT NULL
    ) STRICT;
";

/// What layout 2 has besides.
const TABLES_2: &str = "
    CREATE TABLE snapshots (
        name TEXT PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, phase TEXT NOT NULL, operation TEXT, reason TEXT, spec TEXT NOT NULL
    ) STRICT;
    CREATE TABLE attachments (ssd TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT;
    CREATE TABLE certificates (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, spec TEXT NOT NULL
    ) STRICT;
";
/// Flavors that a new agent has, and how many slices of 465 GiB each is.
const FLAVORS: [(&str, u16); 4] =
    [("local-1500", 3), ("local-2500", 5), ("local-3500", 7), ("local-4500", 9)];
/// A slice: 975,175,680 blocks of 512 bytes, which is sold as 500 GB.
const SLICE_BYTES: u64 = 465 << 30;
/// What a slice weighs where a drive or a reactor is busy.
const SLICE_WEIGHT: u16 = 100;

/// What is wanted of an ssd. Fields are added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SsdSpec {
    pub(crate) size_bytes: u64,
    pub(crate) interface: Interface,
    /// The device model of an NVMe ssd. `None`: written by an older release, which knew the first only.
    #[serde(default)]
    pub(crate) profile: Option<String>,
    #[serde(default)]
    pub(crate) pool: Option<String>,
    #[serde(default)]
    pub(crate) thin: bool,
    #[serde(default)]
    pub(crate) flavor: Option<String>,
    #[serde(default)]
    pub(crate) limits: Limits,
    /// The volume of its pool that it begins with.
    #[serde(default)]
    pub(crate) source: Option<String>,
    /// It comes, or came, from another host.
    #[serde(default)]
    pub(crate) incoming: bool,
    /// Its serial number, where that does not follow from its identity.
    #[serde(default)]
    pub(crate) serial: Option<String>,
    /// The name of its NVM subsystem, likewise.
    #[serde(default)]
    pub(crate) nqn: Option<String>,
    /// The QMP socket of the QEMU that its guest comes to with it.
    #[serde(default)]
    pub(crate) hypervisor: Option<String>,
    /// A virtio-blk disk in a file has a place for the journal of its migrations. One of an older release has none, and cannot be moved.
    #[serde(default)]
    pub(crate) journal: bool,
    /// Another host took it by force: what was written here after that is only here, and nothing that comes is to replace it.
    #[serde(default)]
    pub(crate) superseded: bool,
    /// Which key it is encrypted with (`keys`); a clone has its source's. `None`: it is not encrypted.
    #[serde(default)]
    pub(crate) key: Option<String>,
}

impl SsdSpec {
    /// The device model, if it is an NVMe ssd.
    pub(crate) fn profile(&self) -> Option<String> {
        let nvme = self.interface == Interface::Nvme;
        nvme.then(|| self.profile.clone().unwrap_or_else(|| PROFILE_DEFAULT.to_owned()))
    }

    /// Its key is made for it: that of a clone was made for another.
    pub(crate) fn makes_key(&self) -> Option<&str> {
        self.key.as_deref().filter(|_| self.source.is_none())
    }

    /// What it is as soon as the daemon has it.
    pub(crate) fn begins(&self) -> Phase {
        if self.incoming { Phase::Incoming } else { Phase::Ready }
    }
}

/// An ssd as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SsdRow {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) generation: u64,
    pub(crate) phase: Phase,
    pub(crate) operation: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) spec: SsdSpec,
}

impl SsdRow {
    /// What it is called in its pool. The name is of this ssd alone, so that a later one of its name never sees its data.
    pub(crate) fn volume(&self) -> String {
        format!("{}.{}", self.name, self.uuid)
    }

    /// Its serial number: of this one alone, also when another had its name.
    pub(crate) fn serial(&self) -> String {
        self.spec.serial.clone().unwrap_or_else(|| {
            let digits: String = self.uuid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
            format!("GW{}", digits.to_uppercase())
        })
    }

    /// Its owner is, as far as is known, another host: it is not served here.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.phase, Phase::Incoming | Phase::Gone)
    }
}

/// An operation as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct OperationRow {
    pub(crate) number: i64,
    pub(crate) shown: Operation,
    /// The wish, to the letter: the same id with another wish is refused.
    pub(crate) request: String,
}

/// The file could not be read or written, or says what cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the state file holds what cannot be ({0}); restore it from a copy")]
    Content(String),
}

/// The file.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        use anyhow::{Context, bail};
        let connection = Connection::open(path)
            .with_context(|| format!("{}: cannot be opened: is its directory there?", path.display()))?;
        let store = Self { connection };
        let layout = store.prepare().with_context(|| {
            let path = path.display();
            format!("{path}: cannot be used: does another agent run with it, or is it no state file?")
        })?;
        if layout > LAYOUT {
            bail!(
                "{}: written by a later release (layout {layout}, this one knows {LAYOUT}); run that release",
                path.display()
            );
        }
        Ok(store)
    }

    fn prepare(&self) -> rusqlite::Result<i64> {
        let sqlite = &self.connection;
        sqlite.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        sqlite.pragma_update(None, "journal_mode", "WAL")?;
        sqlite.pragma_update(None, "synchronous", "FULL")?;
        let transaction = Transaction::new_unchecked(sqlite, TransactionBehavior::Exclusive)?;
        let layout: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if layout == 0 {
            transaction.execute_batch(TABLES)?;
            for (name, slices) in FLAVORS {
                let limits = Limits { weight: Some(slices * SLICE_WEIGHT), ..Limits::default() };
                let size_bytes = u64::from(slices) * SLICE_BYTES;
                put_flavor(&transaction, &Flavor { name: name.to_owned(), size_bytes, limits })?;
            }
        }
        if layout < 2 {
            transaction.execute_batch(TABLES_2)?;
            transaction.pragma_update(None, "user_version", 2)?;
        }
        transaction.commit()?;
        Ok(layout)
    }

    /// All that `change` does, or nothing.
    pub(crate) fn write<T, E: From<StoreError>>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(StoreError::from)?;
        let result = change(&transaction)?;
        forget(&transaction).map_err(StoreError::from)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(result)
    }

    /// For questions.
    pub(crate) fn read(&self) -> &Connection {
        &self.connection
    }
}

/// Keeps releases away that do not know of what is written down.
fn at_least(sqlite: &Connection, layout: i64) -> rusqlite::Result<()> {
    let now: i64 = sqlite.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if now < layout { sqlite.pragma_update(None, "user_version", layout) } else { Ok(()) }
}

fn forget(sqlite: &Connection) -> rusqlite::Result<()> {
    sqlite.execute(
        "DELETE FROM changes WHERE version <= (SELECT MAX(version) FROM changes) - ?1",
        [CHANGES_KEPT],
    )?;
    sqlite.execute(
        "DELETE FROM operations WHERE state <> 'running' AND number <= (SELECT MAX(number) FROM operations) - ?1",
        [OPERATIONS_KEPT],
    )?;
    sqlite.execute(
        "DELETE FROM certificates WHERE number <= (SELECT MAX(number) FROM certificates) - ?1",
        [CERTIFICATES_KEPT],
    )?;
    Ok(())
}

fn json<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// A word of an enum, as JSON has it.
fn word<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    json(&format!("\"{text}\""))
}

fn note(sqlite: &Connection, kind: &str, name: &str, gone: bool) -> rusqlite::Result<()> {
    sqlite.execute(
        "INSERT INTO changes (kind, name, gone) VALUES (?1, ?2, ?3)",
        params![kind, name, i64::from(gone)],
    )?;
    Ok(())
}

fn ssd_of(row: &Row<'_>) -> rusqlite::Result<SsdRow> {
    Ok(SsdRow {
        name: row.get("name")?,
        uuid: row.get("uuid")?,
        generation: row.get::<_, i64>("generation")?.unsigned_abs(),
        phase: word(&row.get::<_, String>("phase")?)?,
        operation: row.get("operation")?,
        reason: row.get("reason")?,
        spec: json(&row.get::<_, String>("spec")?)?,
    })
}

pub(crate) fn ssd(sqlite: &Connection, name: &str) -> Result<Option<SsdRow>, StoreError> {
    Ok(sqlite.query_row("SELECT * FROM ssds WHERE name = ?1", [name], ssd_of).optional()?)
}

pub(crate) fn ssds(sqlite: &Connection) -> Result<Vec<SsdRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT * FROM ssds ORDER BY name")?;
    Ok(query.query_map([], ssd_of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_ssd(sqlite: &Connection, ssd: &SsdRow) -> Result<(), StoreError> {
    if ssd.spec.key.is_some() {
        at_least(sqlite, LAYOUT_OF_KEYS)?;
    }
    sqlite.execute(
        "INSERT INTO ssds (name, uuid, generation, phase, operation, reason, spec) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (name) DO UPDATE SET uuid = ?2, generation = ?3, phase = ?4, operation = ?5, reason = ?6, spec = ?7",
        params![
            ssd.name,
            ssd.uuid,
            ssd.generation.cast_signed(),
            ssd.phase.word(),
            ssd.operation,
            ssd.reason,
            to_json(&ssd.spec)?
        ],
    )?;
    Ok(note(sqlite, "ssd", &ssd.name, false)?)
}

pub(crate) fn remove_ssd(sqlite: &Connection, name: &str) -> Result<(), StoreError> {
    sqlite.execute("DELETE FROM ssds WHERE name = ?1", [name])?;
    Ok(note(sqlite, "ssd", name, true)?)
}

pub(crate) fn flavor(sqlite: &Connection, name: &str) -> Result<Option<Flavor>, StoreError> {
    let of = |row: &Row<'_>| json(&row.get::<_, String>(0)?);
    Ok(sqlite.query_row("SELECT spec FROM flavors WHERE name = ?1", [name], of).optional()?)
}

pub(crate) fn flavors(sqlite: &Connection) -> Result<Vec<Flavor>, StoreError> {
    let mut query = sqlite.prepare("SELECT spec FROM flavors ORDER BY name")?;
    let of = |row: &Row<'_>| json(&row.get::<_, String>(0)?);
    Ok(query.query_map([], of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_flavor(sqlite: &Connection, flavor: &Flavor) -> rusqlite::Result<()> {
    sqlite.execute(
        "INSERT INTO flavors (name, spec) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET spec = ?2",
        params![flavor.name, to_json(flavor)?],
    )?;
    note(sqlite, "flavor", &flavor.name, false)
}

pub(crate) fn remove_flavor(sqlite: &Connection, name: &str) -> Result<(), StoreError> {
    sqlite.execute("DELETE FROM flavors WHERE name = ?1", [name])?;
    Ok(note(sqlite, "flavor", name, true)?)
}

fn operation_of(row: &Row<'_>) -> rusqlite::Result<OperationRow> {
    let shown = Operation {
        id: row.get("id")?,
        kind: row.get("kind")?,
        target: row.get("target")?,
        state: word(&row.get::<_, String>("state")?)?,
        step: row.get("step")?,
        message: row.get("message")?,
        created_ms: row.get::<_, i64>("created_ms")?.unsigned_abs(),
        finished_ms: row.get::<_, Option<i64>>("finished_ms")?.map(i64::unsigned_abs),
    };
    Ok(OperationRow { number: row.get("number")?, shown, request: row.get("request")? })
}

pub(crate) fn operation(sqlite: &Connection, id: &str) -> Result<Option<OperationRow>, StoreError> {
    Ok(sqlite.query_row("SELECT * FROM operations WHERE id = ?1", [id], operation_of).optional()?)
}

/// The newest, newest first.
pub(crate) fn operations(sqlite: &Connection, count: u32) -> Result<Vec<OperationRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT * FROM operations ORDER BY number DESC LIMIT ?1")?;
    Ok(query.query_map([count], operation_of)?.collect::<Result<_, _>>()?)
}

/// Those that the agent works on, oldest first.
pub(crate) fn running(sqlite: &Connection) -> Result<Vec<OperationRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT * FROM operations WHERE state = 'running' ORDER BY number")?;
    Ok(query.query_map([], operation_of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn add_operation(sqlite: &Connection, shown: &Operation, request: &str) -> Result<(), StoreError> {
    sqlite.execute(
        "INSERT INTO operations (id, kind, target, request, state, step, message, created_ms, finished_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            shown.id,
            shown.kind,
            shown.target,
            request,
            shown.state.word(),
            shown.step,
            shown.message,
            shown.created_ms.cast_signed(),
            shown.finished_ms.map(u64::cast_signed)
        ],
    )?;
    Ok(note(sqlite, "operation", &shown.id, false)?)
}

/// Writes down where a running operation is. One that has ended stays as it ended.
pub(crate) fn step(
    sqlite: &Connection,
    number: i64,
    id: &str,
    step: &str,
    message: Option<&str>,
) -> Result<(), StoreError> {
    let changed = sqlite.execute(
        "UPDATE operations SET step = ?2, message = ?3
         WHERE number = ?1 AND state = 'running' AND (step <> ?2 OR message IS NOT ?3)",
        params![number, step, message],
    )?;
    if changed == 1 {
        note(sqlite, "operation", id, false)?;
    }
    Ok(())
}

/// Ends an operation.
pub(crate) fn end(
    sqlite: &Connection,
    operation: &OperationRow,
    state: OperationState,
    message: Option<&str>,
    now_ms: u64,
) -> Result<(), StoreError> {
    let changed = sqlite.execute(
        "UPDATE operations SET state = ?2, step = 'end', message = ?3, finished_ms = ?4
         WHERE number = ?1 AND state = 'running'",
        params![operation.number, state.word(), message, now_ms.cast_signed()],
    )?;
    match changed {
        1 => Ok(note(sqlite, "operation", &operation.shown.id, false)?),
        _ => Err(StoreError::Content(format!("operation {} ends twice", operation.shown.id))),
    }
}

pub(crate) fn version(sqlite: &Connection) -> Result<u64, StoreError> {
    let newest: Option<i64> = sqlite.query_row("SELECT MAX(version) FROM changes", [], |row| row.get(0))?;
    Ok(newest.unwrap_or(0).unsigned_abs())
}

/// The changes after a version, and whether some are forgotten.
pub(crate) fn changes(
    sqlite: &Connection,
    after: u64,
    count: u32,
) -> Result<(Vec<Change>, bool), StoreError> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let oldest: Option<i64> = sqlite.query_row("SELECT MIN(version) FROM changes", [], |row| row.get(0))?;
    let newest = version(sqlite)?;
    let lost = oldest.is_some_and(|oldest| after.saturating_add(1) < oldest) || after.unsigned_abs() > newest;
    let mut query = sqlite.prepare("SELECT * FROM changes WHERE version > ?1 ORDER BY version LIMIT ?2")?;
    let of = |row: &Row<'_>| {
        Ok(Change {
            version: row.get::<_, i64>("version")?.unsigned_abs(),
            kind: row.get("kind")?,
            name: row.get("name")?,
            gone: row.get::<_, i64>("gone")? != 0,
        })
    };
    Ok((query.query_map(params![after, count], of)?.collect::<Result<_, _>>()?, lost))
}
