//! What a block device gives to the session and gets from it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

#[cfg(doc)]
use spec::vhost_user as wire;

pub use rustix::io::Errno;

/// Feature bit 34: packed rings (virtio 1.2, 6). The one feature of the device that the session must understand.
pub const F_RING_PACKED: u64 = 1 << 34;
/// The most entries of any ring (virtio 1.2, 2.7 and 2.8).
pub const RING_ENTRIES_MAX: u16 = 32_768;

/// The device behind a session: the engine implements it.
///
/// The session's duty:
/// - Calls of one session come one at a time, in the order of the client's messages.
/// - Memory, features, in-flight region and log change only while no ring runs: the session stops those that run and
///   starts them again. Of a running ring only the eventfds change.
/// - A ring starts only with sound sizes and alignments, with all its addresses in the memory given, after
///   [`Blk::set_inflight`], and lies in that region. Queue indexes are below [`BlkInfo::queues_max`].
/// - Nothing is undone after an error: it is the client's to notice (by the reply, or by the end of the session).
///
/// The device's duty:
/// - A call may block, and must end within the time a client waits.
/// - An error means that nothing changed.
/// - Nothing of a session is told twice, but after a crash a successor is told what the dead process may already have
///   been told, from [`super::Session::restore`] and from commands that are delivered again.
/// - When a session ends, the device hears nothing: whoever ran the session stops all rings, drops memory and eventfds.
pub trait Blk {
    /// What the client may know of the device. Must not change during a session.
    fn info(&self) -> &BlkInfo;
    /// The configuration space (virtio 1.2, 5.2.4): the capacity and what follows it, at most 256 bytes; the rest reads as zeros.
    fn config(&self) -> Vec<u8>;
    /// The write-back byte of the configuration space (virtio 1.2, 5.2.5).
    fn set_writeback(&mut self, on: bool) -> Result<(), Errno>;
    /// The features in use, a subset of [`BlkInfo::features`], perhaps with [`wire::F_LOG_ALL`].
    fn set_features(&mut self, features: u64) -> Result<(), Errno>;
    /// From now on the guest's memory is this, and nothing of what it was before is touched any more.
    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), Errno>;
    /// This too. It overlaps none of the others.
    fn add_memory(&mut self, region: Region) -> Result<(), Errno>;
    /// Exactly one earlier region goes. The device returns only once nothing touches it any more.
    fn remove_memory(&mut self, guest_address: u64, size: u64) -> Result<(), Errno>;
    /// The eventfd by which the driver tells of new buffers; `None`: look at the ring. May be no eventfd at all.
    fn set_kick(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno>;
    /// The eventfd to tell the driver of used buffers with; `None`: it looks at the ring. May be no eventfd at all.
    fn set_call(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno>;
    /// The eventfd to tell the front-end with that a ring cannot go on. May be no eventfd at all.
    fn set_err(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno>;
    /// Memory of zeros for the requests in flight of `num_queues` rings of at most `queue_size` entries each, split or
    /// packed (which of them may not be known yet). Not used before it comes back by [`Blk::set_inflight`].
    fn new_inflight(&mut self, num_queues: u16, queue_size: u16) -> Result<NewInflight, Errno>;
    /// Where requests in flight are written down from now on. May be shorter than it says, shrink, or contain anything.
    fn set_inflight(&mut self, inflight: Inflight) -> Result<(), Errno>;
    /// Forget what the region says of a ring that does not run: it begins anew at its base. Only of a region of our own;
    /// one that the client brought is left as it is.
    fn clear_inflight(&mut self, queue: u16) -> Result<(), Errno>;
    /// Where pages that the device wrote are logged while [`wire::F_LOG_ALL`] is on. May be shorter than it says, or shrink.
    fn set_log(&mut self, log: Log) -> Result<(), Errno>;
    /// An eventfd to tell of changes of the log. May be no eventfd at all.
    fn set_log_event(&mut self, fd: OwnedFd) -> Result<(), Errno>;
    /// The ring runs. If the in-flight region knows of this ring, the device goes on from what it and the ring itself say
    /// (it may have been running in a process that crashed); otherwise from [`Ring::base`].
    fn start(&mut self, queue: u16, ring: Ring) -> Result<(), Errno>;
    /// The ring stops: the device takes nothing more, answers what it took, and returns where the ring is. Then nothing
    /// touches the ring any more. An error ends the session.
    fn stop(&mut self, queue: u16) -> Result<u32, Errno>;
    /// The device is as it was at first: no features, write-back as it was. No ring runs.
    fn reset(&mut self) -> Result<(), Errno>;
}

/// What the client may know of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkInfo {
    /// Feature bits of the device and its rings. The session adds those of vhost-user.
    pub features: u64,
    /// It logs dirty pages.
    pub dirty_log: bool,
    /// The most rings, at most 256.
    pub queues_max: u16,
    /// The most entries of a ring, a power of two.
    pub queue_size_max: u16,
}

/// Guest memory: `size > 0`, nothing wraps, no overlap with another of this session.
#[derive(Debug)]
pub struct Region {
    /// Its first address, as the guest names it.
    pub guest_address: u64,
    /// Its length in bytes.
    pub size: u64,
    /// The file. It may be shorter, may shrink later, or be no file at all.
    pub fd: OwnedFd,
    /// The first byte in the file; `offset + size` does not wrap.
    pub offset: u64,
}

/// A ring that can run. Addresses are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Entries: at most [`BlkInfo::queue_size_max`], at least 1, a power of two unless packed.
    pub size: u16,
    /// Packed ([`F_RING_PACKED`] is in use).
    pub packed: bool,
    /// The descriptor table or the packed ring: 16 bytes each, aligned to 16.
    pub descriptors: u64,
    /// The available ring (6 + 2 x size bytes, aligned to 2), or the driver's event suppression (4 bytes, aligned to 4).
    pub driver: u64,
    /// The used ring (6 + 8 x size bytes, aligned to 4), or the device's event suppression (4 bytes, aligned to 4).
    pub device: u64,
    /// Where to go on: the index in the available ring; for a packed ring bits 0 to 15 are the available and bits 16 to
    /// 31 the used position, each with its wrap counter in the highest bit.
    pub base: u32,
    /// Writes to the used ring are logged as if it were at this address.
    pub log_address: Option<u64>,
}

/// Memory made for requests in flight.
#[derive(Debug)]
pub struct NewInflight {
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// Its length.
    pub size: u64,
}

/// Where requests in flight are written down.
#[derive(Debug)]
pub struct Inflight {
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes; `offset + size` does not wrap.
    pub size: u64,
    /// Rings it has room for: at least 1, at most [`BlkInfo::queues_max`].
    pub num_queues: u16,
    /// Entries it has for each: at least 1; a ring that runs has at most as many.
    pub queue_size: u16,
    /// Made by this device for itself, and never seen by the client.
    pub own: bool,
}

/// The dirty log.
#[derive(Debug)]
pub struct Log {
    /// The memory.
    pub fd: OwnedFd,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes; `offset + size` does not wrap.
    pub size: u64,
}
