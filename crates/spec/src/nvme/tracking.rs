//! Tracking what a migratable controller changes (Base 2.1, 5.1.4 Controller Data Queue, 5.1.26 Track Receive, 5.1.27 Track Send, 8.1.6; NVM 1.2,
//! 5.3): command fields, the entries of a user data migration queue, and the structures of host memory that is tracked.

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controller Data Queue: what is done (Base 2.1, 5.1.4, SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataQueueSelect {
    /// Create.
    Create = 0,
    /// Delete.
    Delete = 1,
}

/// Controller Data Queue, command dword 10 (Base 2.1, 5.1.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DataQueueCdw10 {
    /// Select: see [`DataQueueSelect`].
    pub sel: u8,
    __: u8,
    /// Create: queue type. See [`QT_USER_DATA_MIGRATION`].
    pub qt: u8,
    __: u8,
}

/// Queue type: user data migration queue.
pub const QT_USER_DATA_MIGRATION: u8 = 0;

/// Controller Data Queue Create, command dword 11 (Base 2.1, 5.1.4.1.1). Dword 12 is the size in dwords.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DataQueueCreateCdw11 {
    /// Physically contiguous: PRP entry 1 is the queue, not a list of its pages.
    pub pc: bool,
    #[bits(15)]
    __: u16,
    /// Of a user data migration queue: the controller whose changes it logs (CQS).
    pub cntlid: u16,
}

/// Dword 11 with a controller data queue's identifier: Controller Data Queue Delete, and Track Send Log User Data Changes.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DataQueueCdw11 {
    /// Identifier.
    pub cdqid: u16,
    __: u16,
}

/// Track Send: what is tracked (Base 2.1, 5.1.27, SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TrackSendSelect {
    /// Log User Data Changes.
    LogUserDataChanges = 0,
    /// Track Memory Changes.
    TrackMemoryChanges = 1,
}

/// Track Send, command dword 10 (Base 2.1, 5.1.27).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackSendCdw10 {
    /// Select: see [`TrackSendSelect`].
    pub sel: u8,
    __: u8,
    /// Log User Data Changes: 0 stops, 1 starts (LACT).
    #[bits(4)]
    pub lact: u8,
    #[bits(12)]
    __: u16,
}

/// Track Send Track Memory Changes, command dword 10 (Base 2.1, 5.1.27.1.2). Dword 11 names the controller.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackMemoryCdw10 {
    /// Select: see [`TrackSendSelect`].
    pub sel: u8,
    __: u8,
    /// Starts; 0 stops (TACT).
    pub tact: bool,
    #[bits(15)]
    __: u16,
}

/// Track Memory Changes: what a host sends to start, before its ranges (Base 2.1, 5.1.27.1.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackMemoryHeader {
    /// Version: 0.
    pub ver: u8,
    /// Reserved.
    pub reserved1: [u8; 2],
    /// Requested granularity: `2^n` times 4 KiB.
    pub rmrtg: u8,
    /// Ranges that follow.
    pub rnmrtd: U32,
}

const _: () = assert!(size_of::<TrackMemoryHeader>() == 8);

/// A memory range tracking descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryRangeDescriptor {
    /// First address, a multiple of the granularity.
    pub saddr: U64,
    /// Length, in units of the granularity.
    pub len: U32,
}

const _: () = assert!(size_of::<MemoryRangeDescriptor>() == 12);

/// Track Receive: what is asked for (Base 2.1, 5.1.26, SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TrackReceiveSelect {
    /// Tracked Memory Changes.
    TrackedMemoryChanges = 0,
}

/// Track Receive, command dword 10 (Base 2.1, 5.1.26). Dword 11 names the controller, dword 12 has the number of dwords, 0's based.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackReceiveCdw10 {
    /// Select: see [`TrackReceiveSelect`].
    pub sel: u8,
    #[bits(24)]
    __: u32,
}

/// Tracked Memory Changes: what a host gets, before its descriptors (Base 2.1, 5.1.26.1.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackedMemoryHeader {
    /// Version: 0.
    pub ver: u8,
    /// Attributes.
    pub attrb: TrackedMemoryAttributes,
    /// The controller that is tracked.
    pub cntlid: u16,
    /// Descriptors that follow.
    pub ntmcd: u32,
    /// Granularity of their lengths: `2^n` times 4 KiB.
    pub rpmpg: u16,
    /// Reserved.
    pub reserved10: [u8; 6],
}

const _: () = assert!(size_of::<TrackedMemoryHeader>() == 16);

/// Attributes of a [`TrackedMemoryHeader`].
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackedMemoryAttributes {
    /// There is more to report.
    pub mtr: bool,
    /// The controller was suspended meanwhile.
    pub susp: bool,
    #[bits(6)]
    __: u8,
}

/// A tracked memory changed descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackedMemoryDescriptor {
    /// First address, a multiple of the granularity.
    pub saddr: u64,
    /// Length, in units of the granularity.
    pub len: u32,
    /// Reserved.
    pub reserved12: [u8; 4],
}

const _: () = assert!(size_of::<TrackedMemoryDescriptor>() == 16);

/// Feature 21h, Controller Data Queue: dword 11 (Base 2.1, 5.1.25.1.23). Dword 12 is the head pointer, dword 13 the tail pointer trigger.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DataQueueFeatureCdw11 {
    /// The queue.
    pub cdqid: u16,
    #[bits(15)]
    __: u16,
    /// Enable the tail pointer trigger.
    pub etpt: bool,
}

/// Get Features of feature 21h: what is transferred.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DataQueueFeature {
    /// Head pointer.
    pub hp: u32,
    /// Tail pointer trigger, or 0.
    pub tpt: u32,
    /// Reserved.
    pub reserved8: [u8; 504],
}

const _: () = assert!(size_of::<DataQueueFeature>() == 512);

/// An entry of a user data migration queue of the NVM command set, type 0 (NVM 1.2, 5.3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaMigrationEntry {
    /// Namespace.
    pub nsid: u32,
    /// Blocks, 0's based.
    pub nlb_z: u32,
    /// First block.
    pub slba: u64,
    /// Reserved.
    pub reserved16: [u8; 15],
    /// Attributes; the phase tag is in here, so that this byte is written last.
    pub lbamqa: Lbamqa,
}

const _: () = assert!(size_of::<LbaMigrationEntry>() == 32);
const _: () = assert!(offset_of!(LbaMigrationEntry, lbamqa) == 31);

/// Attributes of a [`LbaMigrationEntry`].
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lbamqa {
    /// Phase tag (CDQP): 1 in the first lap.
    pub cdqp: bool,
    /// Where the entry stands: see [`EntrySequence`].
    #[bits(3)]
    pub esa: u8,
    #[bits(1)]
    __: u8,
    /// The blocks were deallocated.
    pub dlba: bool,
    /// What blocks are meant: see [`ChangeInformation`].
    #[bits(2)]
    pub lbacir: u8,
}

/// Entry sequence attribute (ESA).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntrySequence {
    /// Neither first nor last.
    Middle = 0,
    /// First since logging was started, or since the controller was resumed.
    First = 1,
    /// Last: logging was stopped.
    Stopped = 2,
    /// Last: the controller is suspended.
    Suspended = 3,
    /// Last: the queue became full.
    Full = 7,
}

/// What blocks an entry is about (LBACIR).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChangeInformation {
    /// Those it names.
    Range = 0,
    /// All of the namespace.
    Namespace = 1,
    /// None.
    Nothing = 2,
}
