//! Wishes about pools and what is in them.

use super::{Terms, Wish, check_size};
use crate::refusal::Refusal;
use crate::store::{self, PoolRow, PoolSpec, SnapshotRow, SnapshotSpec};
use api::rest::{Phase, PoolCreate, SIZE_UNIT_BYTES, SnapshotCreate, SsdCreate, is_name};
use rusqlite::Connection;
use std::path::Path;

/// Most pools: a host has no more drives.
const POOLS_MAX: usize = 256;
/// Most snapshots.
const SNAPSHOTS_MAX: usize = 10_000;
/// Longest path of a drive.
const PATH_BYTES_MAX: usize = 1024;

/// What an ssd begins with.
pub(super) struct Source {
    pub(super) pool: String,
    pub(super) volume: String,
    pub(super) size_bytes: u64,
    pub(super) key: Option<String>,
}

pub(super) fn create(sqlite: &Connection, body: &PoolCreate, terms: &Terms) -> Result<Wish, Refusal> {
    if !is_name(&body.name) {
        return Err(Refusal::bad_name("a pool's name", &body.name));
    }
    if let Some(known) = store::pool(sqlite, &body.name)? {
        let text = format!("there is a pool \"{}\" ({})", body.name, known.phase.word());
        return Err(Refusal::conflict(text, "take another name, or let that one go first"));
    }
    check_path(&body.path)?;
    let pools = store::pools(sqlite)?;
    if pools.len() >= POOLS_MAX {
        return Err(Refusal::conflict(format!("there are {POOLS_MAX} pools"), "let some go"));
    }
    if let Some(other) = pools.iter().find(|other| other.spec.path == body.path) {
        let text = format!("{} carries pool \"{}\" already", body.path, other.name);
        return Err(Refusal::conflict(text, "a pool has a drive of its own: name another drive"));
    }
    check_numbers(body)?;
    let uuid = terms.uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let spec = PoolSpec {
        path: body.path.clone(),
        uuid: (!body.import).then_some(uuid),
        size_bytes: body.size_bytes,
        extent_bytes: body.extent_bytes,
    };
    let force_destroy_data = body.force_destroy_data.clone();
    Ok(Wish::PoolCreate { name: body.name.clone(), spec, force_destroy_data })
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let fits = path.len() <= PATH_BYTES_MAX && Path::new(path).is_absolute();
    if !fits || path.chars().any(char::is_control) {
        let shown: String = path.chars().take(80).collect();
        return Err(Refusal::bad(
            format!("{shown:?} is no path of a drive"),
            "write it from / on, such as /dev/nvme0n1; godwit drive list shows them",
        ));
    }
    Ok(())
}

fn check_numbers(body: &PoolCreate) -> Result<(), Refusal> {
    if let Some(size_bytes) = body.size_bytes {
        check_size(size_bytes)?;
    }
    let extents = SIZE_UNIT_BYTES..=1 << 30;
    if body.extent_bytes.is_some_and(|bytes| !bytes.is_power_of_two() || !extents.contains(&bytes)) {
        let text = "an extent cannot be of this size".to_owned();
        return Err(Refusal::bad(text, "give a power of two from 1MiB to 1GiB, or leave it out"));
    }
    let makes = body.size_bytes.or(body.extent_bytes).is_some() || body.force_destroy_data.is_some();
    if body.import && makes {
        let text = "a pool that is imported stays as it is".to_owned();
        return Err(Refusal::bad(text, "leave size, extent and force_destroy_data out, or do not import"));
    }
    Ok(())
}

pub(super) fn delete(sqlite: &Connection, name: &str) -> Result<Wish, Refusal> {
    free(sqlite, name)?;
    let inside = |pool: Option<&str>| pool == Some(name);
    let ssds = store::ssds(sqlite)?.into_iter().filter(|ssd| inside(ssd.spec.pool.as_deref()));
    let snapshots = store::snapshots(sqlite)?.into_iter().filter(|one| inside(Some(&one.spec.pool)));
    let names: Vec<String> = ssds.map(|ssd| ssd.name).chain(snapshots.map(|one| one.name)).collect();
    if !names.is_empty() {
        let (some, more) = (names.get(..names.len().min(5)).unwrap_or_default(), names.len() > 5);
        let text = format!(
            "pool \"{name}\" has ssds or snapshots: {}{}",
            some.join(", "),
            if more { ", ..." } else { "" }
        );
        return Err(Refusal::conflict(text, "delete them first"));
    }
    Ok(Wish::PoolDelete { name: name.to_owned() })
}

/// A pool on which no operation works.
fn free(sqlite: &Connection, name: &str) -> Result<PoolRow, Refusal> {
    let pool = store::pool(sqlite, name)?.ok_or_else(|| Refusal::missing("pool", name))?;
    match &pool.operation {
        None => Ok(pool),
        Some(operation) => {
            let text = format!("operation {operation} works on pool \"{name}\"");
            Err(Refusal::conflict(text, "wait for it: godwit operation show ID --wait"))
        }
    }
}

/// Where a new ssd lives, and what it begins with.
pub(super) fn home(
    sqlite: &Connection,
    body: &SsdCreate,
) -> Result<(Option<String>, Option<Source>), Refusal> {
    let source = match (&body.from_snapshot, &body.from_ssd) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            let text = "an ssd begins with a snapshot or with another ssd, not with both".to_owned();
            return Err(Refusal::bad(text, "leave from_ssd or from_snapshot out"));
        }
        (Some(name), None) => Some(of_snapshot(sqlite, name)?),
        (None, Some(name)) => Some(of_ssd(sqlite, name)?),
    };
    let pool = body.pool.clone().or_else(|| source.as_ref().map(|source| source.pool.clone()));
    if let Some(name) = &pool {
        let pool = free(sqlite, name)?;
        if pool.phase != Phase::Ready {
            let text = format!("pool \"{name}\" is {}", pool.phase.word());
            return Err(Refusal::conflict(text, "wait until it is ready"));
        }
    }
    if let (Some(source), Some(pool)) = (&source, &pool)
        && source.pool != *pool
    {
        let text = format!("what it is to begin with is in pool \"{}\", not in \"{pool}\"", source.pool);
        return Err(Refusal::conflict(text, "leave the pool out: a clone shares space with its source"));
    }
    Ok((pool, source))
}

fn of_snapshot(sqlite: &Connection, name: &str) -> Result<Source, Refusal> {
    let snapshot = free_snapshot(sqlite, name)?;
    if snapshot.phase != Phase::Ready {
        let text = format!("snapshot \"{name}\" is {}", snapshot.phase.word());
        return Err(Refusal::conflict(text, "take another one"));
    }
    let volume = snapshot.volume();
    let (pool, key) = (snapshot.spec.pool, snapshot.spec.key);
    Ok(Source { volume, pool, size_bytes: snapshot.spec.size_bytes, key })
}

/// Which key a new ssd has. What it begins with was written with that one's, and is not written anew.
pub(super) fn key(
    body: &SsdCreate,
    source: Option<&Source>,
    terms: &Terms,
) -> Result<Option<String>, Refusal> {
    let Some(source) = source else {
        // Also of one that comes from another host: the key of its identity may be here still, with snapshots that stayed.
        return Ok((body.encrypted == Some(true)).then(|| terms.uuid.clone()));
    };
    match (body.encrypted, &source.key) {
        (Some(true), None) => {
            let text = "what it is to begin with is not encrypted, and a clone shares its space".to_owned();
            Err(Refusal::conflict(text, "make an encrypted ssd, and copy the data in the guest"))
        }
        (Some(false), Some(_)) => {
            let text = "what it is to begin with is encrypted, and a clone shares its space".to_owned();
            Err(Refusal::conflict(text, "leave `encrypted` out: a clone has its source's key"))
        }
        (_, key) => Ok(key.clone()),
    }
}

fn of_ssd(sqlite: &Connection, name: &str) -> Result<Source, Refusal> {
    let terms = Terms { id: String::new(), if_match: None, now_ms: 0, uuid: String::new() };
    let ssd = super::free_ssd(sqlite, name, &terms)?;
    let volume = ssd.volume();
    match ssd.spec.pool {
        Some(pool) if ssd.phase == Phase::Ready => {
            Ok(Source { volume, pool, size_bytes: ssd.spec.size_bytes, key: ssd.spec.key })
        }
        Some(_) => {
            let text = format!("ssd \"{name}\" is {}", ssd.phase.word());
            Err(Refusal::conflict(text, "only what is ready can be copied"))
        }
        None => Err(in_a_file(name)),
    }
}

fn in_a_file(name: &str) -> Refusal {
    Refusal::conflict(
        format!("ssd \"{name}\" lives in a file, and files have no snapshots and clones"),
        "make ssds in a pool: godwit ssd create NAME --pool POOL",
    )
}

pub(super) fn create_snapshot(
    sqlite: &Connection,
    body: &SnapshotCreate,
    terms: &Terms,
) -> Result<Wish, Refusal> {
    if !is_name(&body.name) {
        return Err(Refusal::bad_name("a snapshot's name", &body.name));
    }
    if let Some(known) = store::snapshot(sqlite, &body.name)? {
        let text = format!("there is a snapshot \"{}\" of ssd \"{}\"", body.name, known.spec.ssd);
        return Err(Refusal::conflict(text, "take another name, or delete that one first"));
    }
    if store::snapshots(sqlite)?.len() >= SNAPSHOTS_MAX {
        return Err(Refusal::conflict(format!("there are {SNAPSHOTS_MAX} snapshots"), "delete some"));
    }
    let ssd = super::free_ssd(sqlite, &body.ssd, terms)?;
    let source = ssd.volume();
    let Some(pool) = ssd.spec.pool else { return Err(in_a_file(&body.ssd)) };
    if ssd.phase != Phase::Ready {
        let text = format!("ssd \"{}\" is {}", body.ssd, ssd.phase.word());
        return Err(Refusal::conflict(text, "only what is ready can be kept"));
    }
    let spec = SnapshotSpec {
        ssd: ssd.name,
        ssd_uuid: ssd.uuid,
        pool,
        source,
        size_bytes: ssd.spec.size_bytes,
        created_ms: terms.now_ms,
        key: ssd.spec.key,
        volume: None,
    };
    Ok(Wish::SnapshotCreate { name: body.name.clone(), uuid: terms.uuid.clone(), spec })
}

pub(super) fn delete_snapshot(sqlite: &Connection, name: &str) -> Result<Wish, Refusal> {
    free_snapshot(sqlite, name)?;
    Ok(Wish::SnapshotDelete { name: name.to_owned() })
}

/// A snapshot on which no operation works.
fn free_snapshot(sqlite: &Connection, name: &str) -> Result<SnapshotRow, Refusal> {
    let snapshot = store::snapshot(sqlite, name)?.ok_or_else(|| Refusal::missing("snapshot", name))?;
    match &snapshot.operation {
        None => Ok(snapshot),
        Some(operation) => {
            let text = format!("operation {operation} works on snapshot \"{name}\"");
            Err(Refusal::conflict(text, "wait for it: godwit operation show ID --wait"))
        }
    }
}
