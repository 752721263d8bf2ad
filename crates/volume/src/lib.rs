//! A pool: a drive carved into volumes by extents, with its map on the drive itself.
//!
//! - [`Pool`]: the owner of a pool's layout. Every change is durable when its call returns, and atomic when the power
//!   fails in the middle. It never touches guests' data: it says what is to be copied and zeroed, and is told when
//!   that is done.
//! - [`check()`]: explains every inconsistency of a pool at rest, and repairs what is safe.
//! - [`ExtentMap`]: what reactors read to find a block.
//! - [`Disk`]: the drive as the layout sees it.
//! - [`door::Door`]: the data path, a `block::Backend` over a map.
//! - [`steward::Steward`]: what the pool's one thread does for doors and people, without the thread.
//!
//! The layout is described in `docs/formats/pool.md`, the decisions behind it in `docs/decisions/0016-pool-layout.md`.
//!
//! What this crate does *not* do: it opens no file, starts no thread, reads no clock and makes no random number; it
//! neither shrinks a volume nor a pool, nor grows a pool onto more of its drive; it does not encrypt; and it cannot
//! keep a fenced owner's *data* writes off the drive (its caller's lock on the drive does that on one host).
#![deny(unsafe_code)]

mod ahead;
mod check;
mod disk;
pub mod door;
mod error;
mod extent_map;
mod geometry;
mod header;
mod journal;
mod ledger;
mod load;
mod map_area;
mod pool;
mod records;
mod runs;
pub mod steward;

pub use check::{Finding, Report, Severity, check};
pub use disk::Disk;
pub use error::PoolError;
pub use extent_map::{EXTENTS_MAX, Entry, ExtentMap};
pub use pool::{
    Allocation, CopyOrder, Difference, FormatOptions, HostId, OpenOptions, Pool, PoolInfo, Provisioning,
    VolumeId, VolumeInfo, VolumeSpec, WipeOrder,
};
