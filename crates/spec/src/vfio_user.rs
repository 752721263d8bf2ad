//! vfio-user messages (QEMU's `docs/interop/vfio-user.rst`) and the structures it takes from `<linux/vfio.h>`.
//!
//! Integers are in host order. Every message is a [`Header`] and then the payload structure; variable parts follow
//! the structure directly. "Request only" structures have an empty reply.

use core::mem::offset_of;

use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a message header.
pub const HEADER_BYTES: usize = 16;
/// Protocol major version.
pub const VERSION_MAJOR: u16 = 0;
/// Protocol minor version.
pub const VERSION_MINOR: u16 = 1;
/// `max_msg_fds` of a peer that does not state it.
pub const MAX_MSG_FDS_DEFAULT: u64 = 1;
/// `max_data_xfer_size` of a peer that does not state it.
pub const MAX_DATA_XFER_BYTES_DEFAULT: u64 = 1 << 20;
/// `max_dma_maps` of a peer that does not state it.
pub const MAX_DMA_MAPS_DEFAULT: u64 = 65_535;
/// `pgsizes` of a peer that does not state it: 4 KiB only.
pub const PGSIZES_DEFAULT: u64 = 4096;

/// Declares flags of a wire field: bits nobody named are kept, so any value can be read and written back.
macro_rules! wire_flags {
    ($(#[$($meta:tt)*])* $name:ident: $repr:ty { $($(#[$($flag_meta:tt)*])* $flag:ident = $value:expr;)* }) => {
        $(#[$($meta)*])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        bitflags! {
            impl $name: $repr {
                $($(#[$($flag_meta)*])* const $flag = $value;)*
                const _ = !0;
            }
        }
    };
}

mod migration;
pub use migration::*;

/// The header of every message (vfio-user.rst, "Header").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct Header {
    /// Message identifier; the reply carries the same.
    pub id: u16,
    /// Command: see [`CommandId`].
    pub command: u16,
    /// Size of the whole message, header included.
    pub size: u32,
    /// Type and attributes.
    pub flags: HeaderFlags,
    /// In a reply with [`HeaderFlags::ERROR`]: an errno value, which may be 0.
    pub errno: u32,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(offset_of!(Header, command) == 2);
const _: () = assert!(offset_of!(Header, size) == 4);
const _: () = assert!(offset_of!(Header, flags) == 8);
const _: () = assert!(offset_of!(Header, errno) == 12);

wire_flags! {
    /// Header flags. Bits 3:0 are the type: [`HeaderFlags::TYPE_MASK`], 0 = command, 1 = reply.
    HeaderFlags: u32 {
        /// Type bit 0: this is a reply.
        REPLY = 1 << 0;
        /// Command: do not reply.
        NO_REPLY = 1 << 4;
        /// Reply: the command failed.
        ERROR = 1 << 5;
    }
}

impl HeaderFlags {
    /// The bits that are the message type.
    pub const TYPE_MASK: u32 = 0xf;

    /// The message type.
    pub const fn message_type(self) -> MessageType {
        MessageType(self.bits() & Self::TYPE_MASK)
    }
}

/// Message type (vfio-user.rst, "Header").
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MessageType {
    /// A command.
    Command = 0,
    /// A reply.
    Reply = 1,
}

/// Command identifiers (vfio-user.rst, "Commands").
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CommandId {
    /// Version negotiation. Client to server.
    Version = 1,
    /// Map a DMA region. Client to server.
    DmaMap = 2,
    /// Unmap a DMA region. Client to server.
    DmaUnmap = 3,
    /// Get device info. Client to server.
    DeviceGetInfo = 4,
    /// Get region info. Client to server.
    DeviceGetRegionInfo = 5,
    /// Get ioeventfds of a region. Client to server.
    DeviceGetRegionIoFds = 6,
    /// Get interrupt info. Client to server.
    DeviceGetIrqInfo = 7,
    /// Set interrupts. Client to server.
    DeviceSetIrqs = 8,
    /// Read from a region. Client to server.
    RegionRead = 9,
    /// Write to a region. Client to server.
    RegionWrite = 10,
    /// Read from client memory. Server to client.
    DmaRead = 11,
    /// Write to client memory. Server to client.
    DmaWrite = 12,
    /// Reset the device. Client to server.
    DeviceReset = 13,
    /// Retired: was DIRTY_PAGES.
    Retired14 = 14,
    /// Several writes to regions. Client to server.
    RegionWriteMulti = 15,
    /// Get, set or probe a device feature. Client to server.
    DeviceFeature = 16,
    /// Read migration data. Client to server.
    MigDataRead = 17,
    /// Write migration data. Client to server.
    MigDataWrite = 18,
}

/// VERSION, both ways: then optional JSON, ended by a NUL (vfio-user.rst, "VFIO_USER_VERSION").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct Version {
    /// Major version: the reply's must be the request's.
    pub major: u16,
    /// Minor version: the reply's is at most the request's.
    pub minor: u16,
}

const _: () = assert!(size_of::<Version>() == 4);

/// DMA_MAP, request only; one fd with it, or none (vfio-user.rst, "VFIO_USER_DMA_MAP").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaMap {
    /// Size of this structure.
    pub argsz: u32,
    /// What the server may do there.
    pub flags: DmaMapFlags,
    /// Offset of the region in the fd.
    pub offset: u64,
    /// DMA address of the region.
    pub address: u64,
    /// Size of the region in bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<DmaMap>() == 32);
const _: () = assert!(offset_of!(DmaMap, offset) == 8);
const _: () = assert!(offset_of!(DmaMap, address) == 16);

wire_flags! {
    /// [`DmaMap::flags`].
    DmaMapFlags: u32 {
        /// The server may read.
        READ = 1 << 0;
        /// The server may write.
        WRITE = 1 << 1;
    }
}

/// DMA_UNMAP, both ways (vfio-user.rst, "VFIO_USER_DMA_UNMAP").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaUnmap {
    /// Request: the largest reply payload expected.
    pub argsz: u32,
    /// Unused in this version: see [`DmaUnmapFlags`] for what `<linux/vfio.h>` and older clients have there.
    pub flags: DmaUnmapFlags,
    /// DMA address of the region.
    pub address: u64,
    /// Size of the region in bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<DmaUnmap>() == 24);
const _: () = assert!(offset_of!(DmaUnmap, address) == 8);

wire_flags! {
    /// [`DmaUnmap::flags`].
    DmaUnmapFlags: u32 {
        /// Get the dirty bitmap with it (of the retired migration version 1).
        GET_DIRTY_BITMAP = 1 << 0;
        /// Unmap everything: address and size are 0.
        ALL = 1 << 1;
    }
}

/// DEVICE_GET_INFO, both ways (vfio-user.rst, "VFIO_USER_DEVICE_GET_INFO").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DeviceInfo {
    /// Request: the largest reply payload expected. Reply: 16.
    pub argsz: u32,
    /// Reply: device attributes.
    pub flags: DeviceFlags,
    /// Reply: number of regions.
    pub num_regions: u32,
    /// Reply: number of interrupt types.
    pub num_irqs: u32,
}

const _: () = assert!(size_of::<DeviceInfo>() == 16);

wire_flags! {
    /// [`DeviceInfo::flags`].
    DeviceFlags: u32 {
        /// DEVICE_RESET is supported.
        RESET = 1 << 0;
        /// A PCI device.
        PCI = 1 << 1;
    }
}

/// Regions of a PCI device (`<linux/vfio.h>`, `VFIO_PCI_*_REGION_INDEX`).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RegionIndex {
    /// BAR 0.
    Bar0 = 0,
    /// BAR 1.
    Bar1 = 1,
    /// BAR 2.
    Bar2 = 2,
    /// BAR 3.
    Bar3 = 3,
    /// BAR 4.
    Bar4 = 4,
    /// BAR 5.
    Bar5 = 5,
    /// Expansion ROM.
    Rom = 6,
    /// Configuration space.
    Config = 7,
    /// VGA.
    Vga = 8,
}

/// Number of regions of a PCI device (`VFIO_PCI_NUM_REGIONS`).
pub const PCI_REGIONS: u32 = 9;

/// DEVICE_GET_REGION_INFO, both ways (vfio-user.rst; `struct vfio_region_info`). Capabilities may follow in a reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct RegionInfo {
    /// Request: the largest reply payload expected. Reply: the size of the whole payload.
    pub argsz: u32,
    /// Reply: region attributes.
    pub flags: RegionFlags,
    /// Which region: see [`RegionIndex`].
    pub index: u32,
    /// Reply: offset of the first capability in the payload, with [`RegionFlags::CAPS`]; else 0.
    pub cap_offset: u32,
    /// Reply: size of the region in bytes; 0 = not there.
    pub size: u64,
    /// Reply: offset of the region in the fd for mmap.
    pub offset: u64,
}

const _: () = assert!(size_of::<RegionInfo>() == 32);
const _: () = assert!(offset_of!(RegionInfo, cap_offset) == 12);
const _: () = assert!(offset_of!(RegionInfo, size) == 16);
const _: () = assert!(offset_of!(RegionInfo, offset) == 24);

wire_flags! {
    /// [`RegionInfo::flags`].
    RegionFlags: u32 {
        /// Readable.
        READ = 1 << 0;
        /// Writable.
        WRITE = 1 << 1;
        /// Can be mapped: an fd comes with the reply.
        MMAP = 1 << 2;
        /// Capabilities follow. Only set it when they are in this very reply (QEMU 11.1).
        CAPS = 1 << 3;
    }
}

/// The head of a region capability (`struct vfio_info_cap_header`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct CapHeader {
    /// Capability: see [`RegionCapId`].
    pub id: u16,
    /// Version of the capability.
    pub version: u16,
    /// Offset of the next capability in the payload; 0 = last.
    pub next: u32,
}

const _: () = assert!(size_of::<CapHeader>() == 8);

/// Region capabilities (`VFIO_REGION_INFO_CAP_*`).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RegionCapId {
    /// Only parts can be mapped: [`SparseMmapCap`].
    SparseMmap = 1,
    /// Device specific region type.
    Type = 2,
    /// The MSI-X table may be mapped.
    MsixMappable = 3,
}

/// The sparse mmap capability, version 1; `nr_areas` times [`SparseMmapArea`] follow
/// (`struct vfio_region_info_cap_sparse_mmap`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct SparseMmapCap {
    /// Id 1, version 1.
    pub header: CapHeader,
    /// Number of areas.
    pub nr_areas: u32,
    /// Reserved.
    pub reserved: u32,
}

const _: () = assert!(size_of::<SparseMmapCap>() == 16);

/// A part of a region that can be mapped (`struct vfio_region_sparse_mmap_area`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct SparseMmapArea {
    /// Offset in the region; in the fd it is at [`RegionInfo::offset`] plus this.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<SparseMmapArea>() == 16);

/// DEVICE_GET_REGION_IO_FDS, both ways; `count` times [`SubRegionIoFd`] follow in the reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct RegionIoFds {
    /// Request: the largest reply payload expected. Reply: the size of the whole payload.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Reply: number of sub-regions.
    pub count: u32,
}

const _: () = assert!(size_of::<RegionIoFds>() == 16);

/// A sub-region with an fd to signal accesses (vfio-user.rst, "Sub-Region IO FD info format").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct SubRegionIoFd {
    /// Offset in the region.
    pub offset: u64,
    /// Size; 0 = any access size.
    pub size: u64,
    /// Index among the fds of the reply.
    pub fd_index: u32,
    /// 0 = ioeventfd, 1 = ioregionfd.
    pub io_type: u32,
    /// Flags of KVM_IOEVENTFD, or of ioregionfd.
    pub flags: u32,
    /// Padding.
    pub padding: u32,
    /// Datamatch of an ioeventfd, or user data of an ioregionfd.
    pub datamatch: u64,
}

const _: () = assert!(size_of::<SubRegionIoFd>() == 40);
const _: () = assert!(offset_of!(SubRegionIoFd, datamatch) == 32);

/// Interrupt types of a PCI device (`<linux/vfio.h>`, `VFIO_PCI_*_IRQ_INDEX`).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum IrqIndex {
    /// INTx.
    Intx = 0,
    /// MSI.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// Error.
    Err = 3,
    /// Request to give the device back.
    Req = 4,
}

/// Number of interrupt types of a PCI device (`VFIO_PCI_NUM_IRQS`).
pub const PCI_IRQS: u32 = 5;

/// DEVICE_GET_IRQ_INFO, both ways (vfio-user.rst; `struct vfio_irq_info`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct IrqInfo {
    /// Request: the largest reply payload expected. Reply: 16.
    pub argsz: u32,
    /// Reply: attributes.
    pub flags: IrqInfoFlags,
    /// Which type: see [`IrqIndex`].
    pub index: u32,
    /// Reply: number of interrupts of the type.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqInfo>() == 16);

wire_flags! {
    /// [`IrqInfo::flags`].
    IrqInfoFlags: u32 {
        /// Can be signalled by eventfd.
        EVENTFD = 1 << 0;
        /// Can be masked and unmasked.
        MASKABLE = 1 << 1;
        /// Masks itself when triggered.
        AUTOMASKED = 1 << 2;
        /// The set cannot grow without being disabled first.
        NORESIZE = 1 << 3;
    }
}

/// DEVICE_SET_IRQS, request only; booleans (one byte each) may follow, or fds come with it
/// (vfio-user.rst; `struct vfio_irq_set`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct IrqSet {
    /// Size of the payload, data included.
    pub argsz: u32,
    /// Kind of data and action.
    pub flags: IrqSetFlags,
    /// Which type: see [`IrqIndex`].
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// Number of interrupts; 0 with DATA_NONE disables the type.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqSet>() == 20);
const _: () = assert!(offset_of!(IrqSet, count) == 16);

wire_flags! {
    /// [`IrqSet::flags`]: exactly one of each kind.
    IrqSetFlags: u32 {
        /// No data.
        DATA_NONE = 1 << 0;
        /// One byte, 0 or 1, for each interrupt.
        DATA_BOOL = 1 << 1;
        /// One eventfd for each interrupt; none at all takes them away.
        DATA_EVENTFD = 1 << 2;
        /// Mask.
        ACTION_MASK = 1 << 3;
        /// Unmask.
        ACTION_UNMASK = 1 << 4;
        /// Trigger.
        ACTION_TRIGGER = 1 << 5;
    }
}

impl IrqSetFlags {
    /// The bits that say what the data is.
    pub const DATA_MASK: Self = Self::from_bits_retain(0b00_0111);
    /// The bits that say what to do.
    pub const ACTION_MASK_BITS: Self = Self::from_bits_retain(0b11_1000);
}

/// REGION_READ and REGION_WRITE, both ways; the data follows in a read's reply and a write's request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct RegionAccess {
    /// Offset in the region.
    pub offset: u64,
    /// Which region: see [`RegionIndex`].
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

const _: () = assert!(size_of::<RegionAccess>() == 16);
const _: () = assert!(offset_of!(RegionAccess, count) == 12);

/// DMA_READ and DMA_WRITE, both ways; the data follows in a read's reply and a write's request.
///
/// The text gives the reply to DMA_WRITE a 32-bit count; QEMU 11.1 sends 64 bits, and on a little-endian host the low
/// half is the same. Accept both sizes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaAccess {
    /// DMA address.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}

const _: () = assert!(size_of::<DmaAccess>() == 16);

/// REGION_WRITE_MULTI, both ways; in the request `wr_cnt` times [`RegionWriteOne`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct RegionWriteMulti {
    /// Number of writes asked for, or completed.
    pub wr_cnt: u64,
}

const _: () = assert!(size_of::<RegionWriteMulti>() == 8);

/// One write of REGION_WRITE_MULTI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct RegionWriteOne {
    /// Offset in the region.
    pub offset: u64,
    /// Which region: see [`RegionIndex`].
    pub region: u32,
    /// Bytes of data that count, at most 8.
    pub count: u32,
    /// The data.
    pub data: [u8; 8],
}

const _: () = assert!(size_of::<RegionWriteOne>() == 24);
const _: () = assert!(offset_of!(RegionWriteOne, data) == 16);
