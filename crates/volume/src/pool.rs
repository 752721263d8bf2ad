//! The owner of a pool's layout, and what it can be asked.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
    /// Identity of the pool: random.
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
    /// Others read it: copy it as told, flush is not needed, then call [`Pool::copied`].
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

/// The owner of a pool's layout.
pub struct Pool {
    disk: Box<dyn Disk + Send>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Makes a drive a pool without volumes. Whatever was on it is lost.
    ///
    /// # Errors
    /// The drive is too small, carries a pool already, or fails.
    pub fn format(disk: &dyn Disk, options: &FormatOptions) -> Result<(), PoolError> {
        let _ = (disk, options);
        Err(PoolError::NoPool)
    }

    /// Opens the pool on a drive and fences off whoever had it open before.
    ///
    /// # Errors
    /// There is none, it is damaged, of a newer version, or another host's.
    pub fn open(disk: Box<dyn Disk + Send>, options: &OpenOptions) -> Result<Self, PoolError> {
        let _ = (disk, options);
        Err(PoolError::NoPool)
    }

    /// What the pool is, now.
    #[must_use]
    pub fn info(&self) -> PoolInfo {
        let _ = self.disk.len_bytes();
        PoolInfo {
            uuid: [0; 16],
            name: String::new(),
            owner: None,
            epoch: 0,
            extent_bytes: 0,
            data_offset_bytes: 0,
            extents: 0,
            free: 0,
            used: 0,
            wiping: 0,
            quarantined: 0,
        }
    }

    /// The volumes, by ascending number.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        Vec::new()
    }

    /// One volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<VolumeInfo> {
        self.volumes().into_iter().find(|volume| volume.id == id)
    }

    /// The volume of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VolumeId> {
        self.volumes().into_iter().find(|volume| volume.name == name).map(|volume| volume.id)
    }

    /// Where a physical extent begins on the drive.
    #[must_use]
    pub fn drive_offset(&self, physical: u32) -> u64 {
        u64::from(physical)
    }

    /// The map that reactors read; kept true as long as anyone holds it. After a [`Pool::grow`] ask again.
    ///
    /// # Errors
    /// No such volume.
    pub fn map(&mut self, id: VolumeId) -> Result<Arc<ExtentMap>, PoolError> {
        Err(PoolError::NoVolume(id))
    }

    /// A new volume. A full one has all its extents when this returns.
    ///
    /// # Errors
    /// The name is taken or cannot be, the size cannot be, or there is no space.
    pub fn create(&mut self, spec: &VolumeSpec) -> Result<VolumeId, PoolError> {
        Err(PoolError::NameTaken(spec.name.clone()))
    }

    /// Removes a volume. Extents that no other refers to are to be wiped, after [`Pool::grace_over`].
    ///
    /// # Errors
    /// No such volume.
    pub fn delete(&mut self, id: VolumeId) -> Result<(), PoolError> {
        Err(PoolError::NoVolume(id))
    }

    /// Makes a volume larger. Maps handed out before stay true for the old size.
    ///
    /// # Errors
    /// No such volume, a smaller or unfit size, or no space for a full one.
    pub fn grow(&mut self, id: VolumeId, size_bytes: u64) -> Result<(), PoolError> {
        let _ = size_bytes;
        Err(PoolError::NoVolume(id))
    }

    /// A read-only volume with the content `id` has now. When this returns, both maps say `Shared`; writes that were
    /// under way before are in the snapshot or not, as they happen to land, until the caller's grace is over. No copy
    /// of an extent may begin before that.
    ///
    /// # Errors
    /// No such volume, or the name is taken.
    pub fn snapshot(&mut self, id: VolumeId, name: &str, uuid: [u8; 16]) -> Result<VolumeId, PoolError> {
        let _ = (name, uuid);
        Err(PoolError::NoVolume(id))
    }

    /// A thin volume that begins with the content `id` has now. As for [`Pool::snapshot`].
    ///
    /// # Errors
    /// No such volume, or the name is taken.
    pub fn clone_volume(&mut self, id: VolumeId, name: &str, uuid: [u8; 16]) -> Result<VolumeId, PoolError> {
        let _ = (name, uuid);
        Err(PoolError::NoVolume(id))
    }

    /// Gives volumes extents to write into: one journal write for all of them. The answers come in the order asked.
    ///
    /// # Errors
    /// No such volume or extent, or a snapshot; then nothing was given.
    pub fn allocate(&mut self, wanted: &[(VolumeId, u32)]) -> Result<Vec<Allocation>, PoolError> {
        wanted.first().map_or(Ok(Vec::new()), |(id, _)| Err(PoolError::NoVolume(*id)))
    }

    /// The ordered copies were made (writes finished; the pool flushes): the maps point at them when this returns. An
    /// order whose extent was released or deleted meanwhile is dropped; its copy will be wiped.
    ///
    /// # Errors
    /// An order that was not given.
    pub fn copied(&mut self, orders: &[CopyOrder]) -> Result<(), PoolError> {
        orders.first().map_or(Ok(()), |order| Err(PoolError::StaleOrder(format!("{order:?}"))))
    }

    /// An ordered copy could not be made: the map stays as it is and the target will be wiped.
    ///
    /// # Errors
    /// An order that was not given.
    pub fn copy_failed(&mut self, order: CopyOrder) -> Result<(), PoolError> {
        Err(PoolError::StaleOrder(format!("{order:?}")))
    }

    /// Unmaps logical extents of a thin volume; they read as zeros when this returns. Returns how many were mapped.
    /// What nobody refers to any more is to be wiped, after [`Pool::grace_over`].
    ///
    /// # Errors
    /// No such volume, a snapshot, or a full volume.
    pub fn release(&mut self, id: VolumeId, logical: Range<u32>) -> Result<u32, PoolError> {
        let _ = logical;
        Err(PoolError::NoVolume(id))
    }

    /// The number of the newest change that took extents away ([`Pool::delete`], [`Pool::release`],
    /// [`Pool::copied`]). I/O that looked its extents up before that change may still be under way.
    #[must_use]
    pub fn grace(&self) -> u64 {
        0
    }

    /// No I/O is under way any more that looked an extent up before change `grace`: what was taken away up to then
    /// may be wiped.
    pub fn grace_over(&mut self, grace: u64) {
        let _ = grace;
    }

    /// Extents to be zeroed and verified, at most `extents_max`; each is ordered once until it is answered.
    pub fn next_wipe(&mut self, extents_max: u32) -> Option<WipeOrder> {
        let _ = extents_max;
        None
    }

    /// They read as zeros (writes finished and verified; the pool flushes): they are free when this returns.
    ///
    /// # Errors
    /// Not an order that is outstanding.
    pub fn wiped(&mut self, order: WipeOrder) -> Result<(), PoolError> {
        Err(PoolError::StaleOrder(format!("{order:?}")))
    }

    /// They could not be zeroed or verified: quarantined, never to be used.
    ///
    /// # Errors
    /// Not an order that is outstanding.
    pub fn wipe_failed(&mut self, order: WipeOrder) -> Result<(), PoolError> {
        Err(PoolError::StaleOrder(format!("{order:?}")))
    }

    /// Has quarantined extents wiped once more. Returns how many.
    ///
    /// # Errors
    /// The drive fails.
    pub fn retry_quarantined(&mut self) -> Result<u64, PoolError> {
        Ok(0)
    }

    /// Takes ownership of a volume: its epoch rises by one, durably, if it still is `expected`. Returns the new one.
    ///
    /// # Errors
    /// No such volume, or another owner was faster.
    pub fn advance_epoch(&mut self, id: VolumeId, expected: u64) -> Result<u64, PoolError> {
        let _ = expected;
        Err(PoolError::NoVolume(id))
    }

    /// Replaces what is kept with a volume for its user.
    ///
    /// # Errors
    /// No such volume, or more than 1024 bytes.
    pub fn set_attributes(&mut self, id: VolumeId, attributes: &[u8]) -> Result<(), PoolError> {
        let _ = attributes;
        Err(PoolError::NoVolume(id))
    }

    /// Gives the pool up: any host may open it afterwards.
    ///
    /// # Errors
    /// The drive fails.
    pub fn export(self) -> Result<(), PoolError> {
        Err(PoolError::Stopped)
    }
}
