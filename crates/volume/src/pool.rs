//! The owner of a pool's layout, and what it can be asked.

mod along;
mod commit;
mod extents;
mod opening;
mod passage;
mod volumes;
mod wipes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Weak;

use state::pool::HeaderV1;

pub use self::along::Difference;
use self::extents::Copies;
pub(crate) use self::extents::WANTED_MAX;
pub(crate) use self::opening::{accept, claim, may_have};
pub(crate) use self::passage::record_of;
use self::wipes::Wipes;
use crate::geometry::Geometry;
use crate::journal::Tail;
use crate::ledger::{Ledger, Unfit};
use crate::{Disk, ExtentMap, PoolError};

/// A volume's number in its pool. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u64);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A host's identity, such as its machine id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostId(pub [u8; 16]);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// When a volume gets its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// When they are first written.
    Thin,
    /// When it is created.
    Full,
}

/// What a new volume is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// 1 to 128 bytes without control characters; unique in the pool.
    pub name: String,
    /// Identity that goes with it to another host.
    pub uuid: [u8; 16],
    /// A multiple of 4096.
    pub size_bytes: u64,
    /// When it gets its extents.
    pub provisioning: Provisioning,
    /// Kept with the volume for its user, at most 1024 bytes; the pool does not look at it.
    pub attributes: Vec<u8>,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size.
    pub size_bytes: u64,
    /// When it gets its extents.
    pub provisioning: Provisioning,
    /// A snapshot: never written.
    pub read_only: bool,
    /// What it was a snapshot or clone of; that one may be gone.
    pub parent: Option<VolumeId>,
    /// Its ownership epoch.
    pub epoch: u64,
    /// As in [`VolumeSpec`].
    pub attributes: Vec<u8>,
    /// Extents it refers to, shared ones included.
    pub mapped_extents: u64,
    /// The journal of its migrations, if it was ever moved.
    pub passage: Option<Vec<u8>>,
}

/// What a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its name.
    pub name: String,
    /// The host that has it.
    pub owner: Option<HostId>,
    /// How often it was opened.
    pub epoch: u64,
    /// Size of an extent.
    pub extent_bytes: u64,
    /// Where the first extent begins on the drive.
    pub data_offset_bytes: u64,
    /// Extents there are.
    pub extents: u64,
    /// Extents that read as zeros and are nobody's.
    pub free: u64,
    /// Extents that volumes refer to.
    pub used: u64,
    /// Extents that are to be zeroed before anybody gets them.
    pub wiping: u64,
    /// Extents whose wipe failed.
    pub quarantined: u64,
}

/// How a drive becomes a pool.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Identity of the pool: random, never used before.
    pub uuid: [u8; 16],
    /// Its name, for people.
    pub name: String,
    /// The host that will own it.
    pub host: HostId,
    /// A power of two from 1 MiB to 1 GiB; `None` chooses by the drive's size.
    pub extent_bytes: Option<u64>,
    /// The drive is known to read as zeros (a new sparse file, a drive just sanitized). Otherwise every extent is
    /// wiped before its first use.
    pub zeroed: bool,
    /// Destroy a pool that is already there.
    pub overwrite: bool,
}

/// How a pool is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The host that opens it.
    pub host: HostId,
    /// Random: tells two openings at the same time apart.
    pub nonce: u64,
    /// Take it though it belongs to another host, which must be surely dead.
    pub take_over: bool,
}

/// What came of one wish for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The map has it, and it may be written.
    Mapped {
        /// The extent.
        physical: u32,
    },
    /// Others read it: copy it as told (no flush is needed), then call [`Pool::copied`].
    Copy(CopyOrder),
    /// A copy ordered before is still under way.
    Copying,
    /// No extent is free. The map is as it was; ask again when there is space.
    NoSpace,
}

/// One extent to be copied before it is written. Both numbers are of physical extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyOrder {
    /// Whose.
    pub volume: VolumeId,
    /// Which of its logical extents.
    pub logical: u32,
    /// From here.
    pub from: u32,
    /// To there.
    pub to: u32,
}

/// Extents to be zeroed and read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WipeOrder {
    /// The first physical extent.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The owner of a pool's layout. For one thread; what other threads need is in the [`ExtentMap`]s.
pub struct Pool {
    disk: Box<dyn Disk + Send>,
    header: HeaderV1,
    geometry: Geometry,
    ledger: Ledger,
    tail: Tail,
    /// What is on the drive is not known any more.
    stopped: bool,
    maps: BTreeMap<u64, Vec<Weak<ExtentMap>>>,
    /// Where the search for free extents begins.
    cursor: u32,
    copies: Copies,
    wipes: Wipes,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("header", &self.header)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// What the pool is, now.
    #[must_use]
    pub fn info(&self) -> PoolInfo {
        info_of(&self.header, &self.ledger)
    }

    /// The volumes, by ascending number.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.ledger.volumes.values().map(volume_info).collect()
    }

    /// One volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<VolumeInfo> {
        self.ledger.volumes.get(&id.0).map(volume_info)
    }

    /// The volume of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VolumeId> {
        self.ledger.named(name).map(VolumeId)
    }

    /// Where a physical extent begins on the drive.
    #[must_use]
    pub fn drive_offset(&self, physical: u32) -> u64 {
        self.geometry.extent_at(physical)
    }
}

/// What a header and a ledger say of a pool.
pub(crate) fn info_of(header: &HeaderV1, ledger: &Ledger) -> PoolInfo {
    let unfit = |which: Unfit| -> u64 {
        ledger.unfit.iter().filter(|run| run.value == which).map(|run| u64::from(run.count)).sum()
    };
    PoolInfo {
        uuid: header.uuid,
        name: header.name.clone(),
        owner: header.owner.map(HostId),
        epoch: header.epoch,
        extent_bytes: header.extent_bytes,
        data_offset_bytes: header.data_offset_bytes,
        extents: u64::from(header.extents),
        free: ledger.free.total(),
        used: ledger.used.total(),
        wiping: unfit(Unfit::Wiping),
        quarantined: unfit(Unfit::Quarantined),
    }
}

fn volume_info(volume: &crate::ledger::Volume) -> VolumeInfo {
    let saved = &volume.saved;
    VolumeInfo {
        id: VolumeId(saved.id),
        name: saved.name.clone(),
        uuid: saved.uuid,
        size_bytes: saved.size_bytes,
        provisioning: if saved.full { Provisioning::Full } else { Provisioning::Thin },
        read_only: saved.read_only,
        parent: saved.parent.map(VolumeId),
        epoch: saved.epoch,
        attributes: saved.attributes.clone(),
        mapped_extents: volume.map.total(),
        passage: saved.passage.clone(),
    }
}
