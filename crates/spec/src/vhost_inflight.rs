//! The region for requests in flight (vhost-user.rst, "Inflight I/O tracking").

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of an initialised queue region. Zero is uninitialised.
pub const VERSION: u16 = 1;
/// Queue regions begin at multiples of this (as QEMU's and DPDK's back-ends have them).
pub const QUEUE_ALIGN_BYTES: usize = 64;

/// State of a descriptor of a split ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DescStateSplit {
    /// In flight. Of heads only.
    pub inflight: u8,
    /// Nothing.
    pub padding: [u8; 5],
    /// The next of the last batch of used descriptors.
    pub next: u16,
    /// Order of fetching. Of heads only.
    pub counter: u64,
}

/// The start of a split ring's region; [`DescStateSplit`]s follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QueueRegionSplit {
    /// None yet.
    pub features: u64,
    /// See [`VERSION`].
    pub version: u16,
    /// Descriptors.
    pub desc_num: u16,
    /// The last of the last batch of used descriptors.
    pub last_batch_head: u16,
    /// `idx` of the used ring.
    pub used_idx: u16,
}

/// State of a descriptor of a packed ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DescStatePacked {
    /// In flight. Of heads only.
    pub inflight: u8,
    /// Nothing.
    pub padding: u8,
    /// The next free entry, or the next of the list.
    pub next: u16,
    /// The last entry of the list. Of heads only.
    pub last: u16,
    /// Length of the list. Of heads only.
    pub num: u16,
    /// Order of fetching. Of heads only.
    pub counter: u64,
    /// Buffer id.
    pub id: u16,
    /// Descriptor flags.
    pub flags: u16,
    /// Buffer length.
    pub len: u32,
    /// Buffer address.
    pub addr: u64,
}

/// The start of a packed ring's region; [`DescStatePacked`]s follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QueueRegionPacked {
    /// None yet.
    pub features: u64,
    /// See [`VERSION`].
    pub version: u16,
    /// Descriptors.
    pub desc_num: u16,
    /// First of the free entries.
    pub free_head: u16,
    /// The same at the last commit.
    pub old_free_head: u16,
    /// Where the next used descriptor goes.
    pub used_idx: u16,
    /// The same at the last commit.
    pub old_used_idx: u16,
    /// The device's wrap counter.
    pub used_wrap_counter: u8,
    /// The same at the last commit.
    pub old_used_wrap_counter: u8,
    /// Nothing: seven bytes by name, three by the compiler.
    pub padding: [u8; 10],
}

const _: () = assert!(size_of::<DescStateSplit>() == 16 && offset_of!(DescStateSplit, next) == 6);
const _: () = assert!(size_of::<QueueRegionSplit>() == 16 && offset_of!(QueueRegionSplit, used_idx) == 14);
const _: () = assert!(size_of::<DescStatePacked>() == 32 && offset_of!(DescStatePacked, addr) == 24);
const _: () =
    assert!(size_of::<QueueRegionPacked>() == 32 && offset_of!(QueueRegionPacked, used_wrap_counter) == 20);

/// Bytes from one queue's region to the next.
#[must_use]
pub const fn queue_bytes(packed: bool, queue_size: u16) -> usize {
    let size = queue_size as usize;
    let bytes = if packed { 32 + 32 * size } else { 16 + 16 * size };
    bytes.next_multiple_of(QUEUE_ALIGN_BYTES)
}
