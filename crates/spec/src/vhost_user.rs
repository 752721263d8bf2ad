//! vhost-user messages (QEMU's `docs/interop/vhost-user.rst`), as far as a block device needs them.
//!
//! Integers are in host order. Every message is a [`Header`] and then the payload structure. The layout of the in-flight
//! region is not here: it is no message.

use core::mem::offset_of;

use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a message header.
pub const HEADER_BYTES: usize = 12;
/// The protocol version, in the lowest two bits of the header's flags.
pub const VERSION: u32 = 1;
/// The most regions, and so descriptors, of one SET_MEM_TABLE ("Memory regions description": region0 to region7).
pub const TABLE_REGIONS_MAX: usize = 8;
/// The longest configuration space of GET_CONFIG and SET_CONFIG (QEMU: `VHOST_USER_MAX_CONFIG_SIZE`).
pub const CONFIG_BYTES_MAX: usize = 256;
/// Feature bit 26: dirty pages are logged (VHOST_F_LOG_ALL).
pub const F_LOG_ALL: u64 = 1 << 26;
/// Feature bit 30: the back-end has protocol features (VHOST_USER_F_PROTOCOL_FEATURES).
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Bytes of guest memory for each bit of the dirty log (VHOST_LOG_PAGE).
pub const LOG_PAGE_BYTES: u64 = 0x1000;
/// The lowest bits of the `u64` of SET_VRING_KICK, CALL and ERR: the ring's index.
pub const VRING_INDEX_MASK: u64 = 0xFF;
/// The bit of the `u64` of SET_VRING_KICK, CALL and ERR that says that no descriptor is beside it.
pub const VRING_NO_FD: u64 = 1 << 8;

/// The header of every message (vhost-user.rst, "Header").
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// What is asked: see [`RequestId`].
    pub request: u32,
    /// Version and attributes.
    pub flags: HeaderFlags,
    /// Size of the payload.
    pub size: u32,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// Flags of a header. Bits nobody named are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct HeaderFlags(pub u32);

bitflags! {
    impl HeaderFlags: u32 {
        /// The version's two bits.
        const VERSION_MASK = 3;
        /// A reply.
        const REPLY = 1 << 2;
        /// The sender wants to know how it went (with REPLY_ACK).
        const NEED_REPLY = 1 << 3;
        const _ = !0;
    }
}

/// Requests of a front-end (vhost-user.rst, "Front-end message types"). Those of other devices are not named.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// Features of the device and of vhost.
    GetFeatures = 1,
    /// Those that are used.
    SetFeatures = 2,
    /// The session starts.
    SetOwner = 3,
    /// Deprecated: disable all rings.
    ResetOwner = 4,
    /// All memory regions at once.
    SetMemTable = 5,
    /// Where dirty pages are logged.
    SetLogBase = 6,
    /// An eventfd for changes of the log.
    SetLogFd = 7,
    /// Size of a ring.
    SetVringNum = 8,
    /// Addresses of a ring.
    SetVringAddr = 9,
    /// Where a ring goes on.
    SetVringBase = 10,
    /// Stop a ring and say where it was.
    GetVringBase = 11,
    /// The eventfd that tells of new buffers; starts the ring.
    SetVringKick = 12,
    /// The eventfd that tells of used buffers.
    SetVringCall = 13,
    /// The eventfd that tells of errors.
    SetVringErr = 14,
    /// Features of the protocol.
    GetProtocolFeatures = 15,
    /// Those that are used.
    SetProtocolFeatures = 16,
    /// The most rings.
    GetQueueNum = 17,
    /// Enable or disable a ring.
    SetVringEnable = 18,
    /// A socket for requests of the back-end.
    SetBackendReqFd = 21,
    /// Read the configuration space.
    GetConfig = 24,
    /// Write it.
    SetConfig = 25,
    /// A new region for requests in flight.
    GetInflightFd = 31,
    /// The region to use.
    SetInflightFd = 32,
    /// Disable all rings and reset the device.
    ResetDevice = 34,
    /// The most memory regions.
    GetMaxMemSlots = 36,
    /// One more memory region.
    AddMemReg = 37,
    /// One memory region less.
    RemMemReg = 38,
    /// The device status of the virtio specification.
    SetStatus = 39,
    /// The same.
    GetStatus = 40,
}

/// Requests of a back-end (vhost-user.rst, "Back-end message types").
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendRequestId {
    /// The configuration space has changed.
    ConfigChange = 2,
}

/// Protocol features (vhost-user.rst, "Protocol features"). Bits nobody named are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ProtocolFeatures(pub u64);

bitflags! {
    impl ProtocolFeatures: u64 {
        /// Several queues.
        const MQ = 1 << 0;
        /// SET_LOG_BASE carries a descriptor.
        const LOG_SHMFD = 1 << 1;
        /// Every message is answered if its sender wants it.
        const REPLY_ACK = 1 << 3;
        /// Requests of the back-end.
        const BACKEND_REQ = 1 << 5;
        /// GET_CONFIG, SET_CONFIG and the message that the configuration has changed.
        const CONFIG = 1 << 9;
        /// Descriptors beside requests of the back-end.
        const BACKEND_SEND_FD = 1 << 10;
        /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// Kicks and calls as messages.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// ADD_MEM_REG, REM_MEM_REG, GET_MAX_MEM_SLOTS.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// SET_STATUS and GET_STATUS.
        const STATUS = 1 << 16;
        const _ = !0;
    }
}

/// "A vring state description".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VringState {
    /// Which ring.
    pub index: u32,
    /// A number.
    pub num: u32,
}

/// "A vring address description". Ring addresses are user addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VringAddr {
    /// Which ring.
    pub index: u32,
    /// See [`VringAddr::LOG`].
    pub flags: u32,
    /// The descriptor table, or the packed ring.
    pub descriptor: u64,
    /// The used ring, or the device's event suppression structure.
    pub used: u64,
    /// The available ring, or the driver's event suppression structure.
    pub available: u64,
    /// Guest address of the used ring, for the log.
    pub log: u64,
}

impl VringAddr {
    /// Flag: writes to the used ring are logged (VHOST_VRING_F_LOG).
    pub const LOG: u32 = 1;
}

const _: () = assert!(size_of::<VringAddr>() == 40 && offset_of!(VringAddr, available) == 24);

/// The start of "Memory regions description"; [`MemoryRegion`]s follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryTable {
    /// How many follow.
    pub num_regions: u32,
    /// Nothing.
    pub padding: u32,
}

/// A memory region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryRegion {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front-end sees it.
    pub user_address: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
}

const _: () = assert!(size_of::<MemoryRegion>() == 32);

/// "Single memory region description".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SingleMemoryRegion {
    /// Nothing.
    pub padding: u64,
    /// The region.
    pub region: MemoryRegion,
}

/// "Log description".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Log {
    /// Bytes.
    pub size: u64,
    /// Where it starts in its file.
    pub offset: u64,
}

/// "Virtio device config space"; the contents follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Why: 0 = the guest writes, 1 = live migration.
    pub flags: u32,
}

/// "Inflight description". QEMU and DPDK send it with the four bytes of padding that a C compiler adds; without them it is
/// [`Inflight::PACKED_BYTES`] long.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Inflight {
    /// Bytes of the region.
    pub mmap_size: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
    /// Rings it has room for.
    pub num_queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Nothing.
    pub padding: u32,
}

impl Inflight {
    /// Its length by the letter of the specification.
    pub const PACKED_BYTES: usize = offset_of!(Inflight, padding);
}

const _: () = assert!(size_of::<Inflight>() == 24 && Inflight::PACKED_BYTES == 20);
