//! What a pool refuses, and why.

use std::io;

use thiserror::Error;

use crate::VolumeId;
use crate::pool::HostId;

/// Why an operation was refused or failed. Unless it is said otherwise, nothing has changed.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The drive failed. What was being written may or may not be there: the pool takes no more changes until it is
    /// opened anew.
    #[error("the drive failed while {doing}: {source}; open the pool again to go on")]
    Drive {
        /// What was being done.
        doing: &'static str,
        /// What the drive said.
        source: io::Error,
    },
    /// An earlier failure left it open what is on the drive.
    #[error("an earlier failure of the drive stopped this pool: open it again to go on")]
    Stopped,
    /// Somebody else has opened the pool since. Whether the last change is there is for them to know.
    #[error("the pool was opened by another (epoch {theirs} after ours, {ours}): this one is fenced off")]
    Fenced {
        /// Epoch of this opening.
        ours: u64,
        /// Epoch on the drive.
        theirs: u64,
    },
    /// There is no pool on the drive.
    #[error("there is no Godwit pool on this drive")]
    NoPool,
    /// There is one already.
    #[error("the drive already carries pool {name:?}: ask for it to be overwritten to lose all its data")]
    Exists {
        /// Its name.
        name: String,
    },
    /// The pool belongs to another host, which has not exported it.
    #[error("the pool belongs to host {owner}: export it there, or take it over if that host is surely dead")]
    ForeignHost {
        /// The host.
        owner: HostId,
    },
    /// Written by a newer build.
    #[error("the pool has layout version {found}, this build reads up to {newest}: use a newer build")]
    Newer {
        /// Version on the drive.
        found: u32,
        /// Newest this build reads.
        newest: u32,
    },
    /// What is on the drive contradicts itself.
    #[error("the pool is damaged: {0}; `check` explains it and says what can be repaired")]
    Damaged(String),
    /// The drive cannot carry such a pool.
    #[error("the drive cannot carry this pool: {0}")]
    Geometry(String),
    /// A name, size or argument that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// No such volume.
    #[error("there is no volume {0} in this pool")]
    NoVolume(VolumeId),
    /// The name is taken.
    #[error("a volume named {0:?} exists already")]
    NameTaken(String),
    /// Not enough free extents.
    #[error(
        "the pool has {free} free extents, {wanted} are needed ({wiping} more are being wiped): delete something, \
         or choose thin provisioning"
    )]
    NoSpace {
        /// Extents needed.
        wanted: u64,
        /// Extents free now.
        free: u64,
        /// Extents that will be free when they are wiped.
        wiping: u64,
    },
    /// The map would not fit its area on the drive any more.
    #[error("the pool's map is too fragmented for its area on the drive: delete snapshots or clones")]
    MapFull,
    /// A snapshot is read only.
    #[error("volume {0} is a snapshot and read only: clone it to write")]
    ReadOnly(VolumeId),
    /// A full volume keeps its extents until it is deleted.
    #[error("volume {0} is fully allocated and keeps its space: zero it instead")]
    KeepsSpace(VolumeId),
    /// Somebody else owns the volume by now.
    #[error("volume {volume} has ownership epoch {found}, not {expected}: another owner has taken it")]
    VolumeEpoch {
        /// The volume.
        volume: VolumeId,
        /// Epoch the caller holds.
        expected: u64,
        /// Epoch on the drive.
        found: u64,
    },
    /// Somebody has the volume open.
    #[error("volume {0} is open")]
    Open(VolumeId),
    /// The volume is another host's, or on its way.
    #[error("volume {volume}: {why}")]
    Passage {
        /// The volume.
        volume: VolumeId,
        /// What its journal says.
        why: String,
    },
    /// Not an order that was handed out, or not any more.
    #[error("this order is not outstanding: {0}")]
    StaleOrder(String),
}
