//! Pools, what is kept in them, and what became of what was deleted.

use super::Phase;
use serde::{Deserialize, Serialize};

/// A drive, or a file in its place, that carries ssds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The drive.
    pub path: String,
    /// What ssds in it may hold, as wanted.
    pub promised_bytes: u64,
    /// How many ssds live in it.
    pub ssds: u64,
    /// How many snapshots live in it.
    pub snapshots: u64,
    /// The operation that works on it.
    pub operation: Option<String>,
    /// Where it is in its life.
    pub phase: Phase,
    /// How the daemon says it is.
    pub serving: PoolServing,
}

/// How the daemon says a pool is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PoolServing {
    /// `serving`, or what is wrong with it; `unknown` when the daemon does not answer; `absent` when it does not have it.
    pub state: String,
    /// Its identity, in hexadecimal digits.
    pub uuid: String,
    /// Size of an extent: space is given in these.
    pub extent_bytes: u64,
    /// Space in all.
    pub size_bytes: u64,
    /// Nobody's.
    pub free_bytes: u64,
    /// Ssds' and snapshots'.
    pub used_bytes: u64,
    /// Given up, and not zeroed yet.
    pub wiping_bytes: u64,
    /// Could not be zeroed: nobody gets it.
    pub quarantined_bytes: u64,
    /// Writes to this many extents wait for space.
    pub waiting: u64,
}

/// The wish for a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PoolCreate {
    /// Its name.
    pub name: String,
    /// The drive, as an absolute path.
    pub path: String,
    /// Make a file of this size, where there is nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Size of an extent, a power of two from 1 MiB to 1 GiB. Left out: by the drive's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent_bytes: Option<u64>,
    /// Also when the drive is taken, and all on it may be lost: its serial number (a file: its path), repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_destroy_data: Option<String>,
    /// Serve the pool that is on the drive already, as it is.
    #[serde(default)]
    pub import: bool,
}

/// What `check` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PoolCheck {
    /// Nothing is wrong.
    pub sound: bool,
    /// What was found, for people.
    pub text: String,
}

/// What an ssd contained at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// The ssd that it is of. There may be another one of that name by now.
    pub ssd: String,
    /// The pool that it is in.
    pub pool: String,
    /// What it is called there.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// It is encrypted at rest, by its ssd's key.
    #[serde(default)]
    pub encrypted: bool,
    /// When it was asked for, ms since 1970. Of one that came from another host with its ssd: when that was seen here.
    pub created_ms: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// The operation that works on it.
    pub operation: Option<String>,
    /// Why it is as it is, when that is not well.
    pub reason: Option<String>,
}

/// The wish for a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Its name.
    pub name: String,
    /// The ssd, which is in a pool.
    pub ssd: String,
}

/// What was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WipedKind {
    /// An ssd.
    Ssd,
    /// A snapshot.
    Snapshot,
}

/// What became of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is under way.
    Wiping,
    /// All space that was its alone reads as zeros: it was read back.
    Wiped,
    /// Some space of the pool could not be zeroed while this one was deleted. It is kept from everybody.
    Quarantined,
    /// The pool did not have it any more when the agent came to delete it: somebody else had deleted it, and nothing is known.
    Absent,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wiping => "wiping",
            Self::Wiped => "wiped",
            Self::Quarantined => "quarantined",
            Self::Absent => "absent",
        }
    }
}

/// What became of the key of what was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KeyFate {
    /// Its file was overwritten and removed: this agent has no copy.
    Destroyed,
    /// Snapshots or clones that are there still have the same key. It is destroyed with the last of them.
    Kept,
}

impl KeyFate {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Destroyed => "destroyed",
            Self::Kept => "kept",
        }
    }
}

/// What was wiped, how, when, and with what result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Certificate {
    /// The operation that deleted it.
    pub id: String,
    /// What it was.
    pub kind: WipedKind,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// The serial number that guests knew; none of a snapshot.
    pub serial: Option<String>,
    /// The pool it was in.
    pub pool: String,
    /// The pool's identity.
    pub pool_uuid: String,
    /// The pool's drive.
    pub drive: String,
    /// What it was called in the pool.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// Space that it had, what it shared with others included.
    pub mapped_bytes: u64,
    /// Snapshots of it, made by this agent, that were there: what they share with it stays until they are deleted.
    pub snapshots: Vec<String>,
    /// How.
    pub method: String,
    /// Its key. `None`: it was not encrypted, or its wipe has not come to the key.
    #[serde(default)]
    pub key: Option<KeyFate>,
    /// Who has the same key, when it was kept.
    #[serde(default)]
    pub key_users: Vec<String>,
    /// The result.
    pub verdict: Verdict,
    /// Space of the pool that could not be zeroed, before and after.
    pub quarantined_bytes: [u64; 2],
    /// When it was begun, ms since 1970.
    pub started_ms: u64,
    /// When all of it was done, ms since 1970.
    pub ended_ms: Option<u64>,
    /// The agent's release.
    pub release: String,
}
