//! virtio 1.2: rings (2.7, 2.8) and the block device (5.2).

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most segments of a request are in the configuration (VIRTIO_BLK_F_SEG_MAX).
pub const F_SEG_MAX: u64 = 1 << 2;
/// The device is read-only (VIRTIO_BLK_F_RO).
pub const F_RO: u64 = 1 << 5;
/// The block size is in the configuration (VIRTIO_BLK_F_BLK_SIZE).
pub const F_BLK_SIZE: u64 = 1 << 6;
/// FLUSH (VIRTIO_BLK_F_FLUSH).
pub const F_FLUSH: u64 = 1 << 9;
/// Alignment is in the configuration (VIRTIO_BLK_F_TOPOLOGY).
pub const F_TOPOLOGY: u64 = 1 << 10;
/// The cache mode can be changed (VIRTIO_BLK_F_CONFIG_WCE).
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// Several queues (VIRTIO_BLK_F_MQ).
pub const F_MQ: u64 = 1 << 12;
/// DISCARD (VIRTIO_BLK_F_DISCARD).
pub const F_DISCARD: u64 = 1 << 13;
/// WRITE_ZEROES (VIRTIO_BLK_F_WRITE_ZEROES).
pub const F_WRITE_ZEROES: u64 = 1 << 14;
/// Any message framing, of legacy drivers (VIRTIO_F_ANY_LAYOUT). VERSION_1 implies it.
pub const F_ANY_LAYOUT: u64 = 1 << 27;
/// Indirect descriptors (VIRTIO_F_INDIRECT_DESC).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Event indexes (VIRTIO_F_EVENT_IDX).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device (VIRTIO_F_VERSION_1).
pub const F_VERSION_1: u64 = 1 << 32;
/// Packed rings (VIRTIO_F_RING_PACKED).
pub const F_RING_PACKED: u64 = 1 << 34;

/// Read (VIRTIO_BLK_T_IN).
pub const T_IN: u32 = 0;
/// Write.
pub const T_OUT: u32 = 1;
/// Flush.
pub const T_FLUSH: u32 = 4;
/// The serial number.
pub const T_GET_ID: u32 = 8;
/// Discard.
pub const T_DISCARD: u32 = 11;
/// Write zeroes.
pub const T_WRITE_ZEROES: u32 = 13;

/// Done (VIRTIO_BLK_S_OK).
pub const S_OK: u8 = 0;
/// An error of device or driver.
pub const S_IOERR: u8 = 1;
/// Not supported.
pub const S_UNSUPP: u8 = 2;

/// Bytes of a sector, whatever the block size is.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a serial number.
pub const ID_BYTES: usize = 20;

/// More of this chain follows (VIRTQ_DESC_F_NEXT).
pub const DESC_NEXT: u16 = 1;
/// The device writes it (VIRTQ_DESC_F_WRITE).
pub const DESC_WRITE: u16 = 2;
/// A table of descriptors (VIRTQ_DESC_F_INDIRECT).
pub const DESC_INDIRECT: u16 = 4;
/// Packed: the driver's wrap counter (VIRTQ_DESC_F_AVAIL).
pub const DESC_AVAIL: u16 = 1 << 7;
/// Packed: the device's wrap counter (VIRTQ_DESC_F_USED).
pub const DESC_USED: u16 = 1 << 15;

/// A descriptor of a split ring (2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Descriptor {
    /// Where.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// See [`DESC_NEXT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// A descriptor of a packed ring (2.8.13).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PackedDescriptor {
    /// Where.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// See [`DESC_NEXT`].
    pub flags: u16,
}

/// The start of a request (5.2.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RequestHeader {
    /// See [`T_IN`].
    pub kind: u32,
    /// Nothing.
    pub reserved: u32,
    /// First sector.
    pub sector: u64,
}

/// The data of DISCARD and WRITE_ZEROES.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DiscardWriteZeroes {
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub num_sectors: u32,
    /// Bit 0: unmap.
    pub flags: u32,
}

/// The configuration space (5.2.4), up to the write-zeroes limits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "the specification's names")]
pub struct Config {
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
    pub blk_size: u32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    pub min_io_size: u16,
    pub opt_io_size: u32,
    pub writeback: u8,
    pub unused0: u8,
    pub num_queues: u16,
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
    pub unused1: [u8; 3],
    pub max_secure_erase_sectors: u32,
}

const _: () = assert!(size_of::<Descriptor>() == 16 && size_of::<PackedDescriptor>() == 16);
const _: () = assert!(size_of::<RequestHeader>() == 16 && size_of::<DiscardWriteZeroes>() == 16);
const _: () = assert!(size_of::<Config>() == 64 && offset_of!(Config, writeback) == 32);
