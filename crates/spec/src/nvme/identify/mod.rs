//! Identify data structures (Base 2.1, 5.1.13; NVM 1.1, 4.1.5).

use core::mem::offset_of;

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod capabilities;
mod controller;
mod namespace;

pub use controller::{AOCS_RALBAS, IdentifyController, IdentifyControllerNvm, PowerState};
pub use namespace::{
    Dlfeat, Flbas, Fpi, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, LbaFormat,
    Nmic, Nsfeat,
};

/// Bytes in every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// Controller or namespace structure (Base 2.1, 5.1.13.1, figure 310).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cns {
    /// Identify Namespace of an active NSID: [`IdentifyNamespace`].
    Namespace = 0x00,
    /// Identify Controller: [`IdentifyController`].
    Controller = 0x01,
    /// Active namespace ID list: [`NamespaceList`].
    ActiveNamespaceList = 0x02,
    /// Namespace identification descriptor list: [`NamespaceIdDescriptorHeader`].
    NamespaceIdDescriptors = 0x03,
    /// NVM set list.
    NvmSetList = 0x04,
    /// I/O command set specific Identify Namespace: [`IdentifyNamespaceNvm`].
    NamespaceCommandSet = 0x05,
    /// I/O command set specific Identify Controller: [`IdentifyControllerNvm`].
    ControllerCommandSet = 0x06,
    /// I/O command set specific active namespace ID list: [`NamespaceList`].
    ActiveNamespaceListCommandSet = 0x07,
    /// I/O command set independent Identify Namespace: [`IdentifyNamespaceIndependent`].
    NamespaceIndependent = 0x08,
    /// Identify Namespace for a user data format.
    NamespaceUserDataFormat = 0x09,
    /// I/O command set specific Identify Namespace for a user data format.
    NamespaceCommandSetUserDataFormat = 0x0a,
    /// Allocated namespace ID list: [`NamespaceList`].
    AllocatedNamespaceList = 0x10,
    /// Identify Namespace of an allocated NSID: [`IdentifyNamespace`].
    AllocatedNamespace = 0x11,
    /// Controllers a namespace is attached to: [`ControllerList`].
    NamespaceAttachedControllerList = 0x12,
    /// Controllers of the subsystem: [`ControllerList`].
    ControllerList = 0x13,
    /// Primary controller capabilities.
    PrimaryControllerCapabilities = 0x14,
    /// Secondary controller list.
    SecondaryControllerList = 0x15,
    /// Namespace granularity list.
    NamespaceGranularityList = 0x16,
    /// UUID list: [`UuidList`].
    UuidList = 0x17,
    /// Domain list.
    DomainList = 0x18,
    /// Endurance group list.
    EnduranceGroupList = 0x19,
    /// I/O command set specific allocated namespace ID list.
    AllocatedNamespaceListCommandSet = 0x1a,
    /// I/O command set specific Identify Namespace of an allocated NSID.
    AllocatedNamespaceCommandSet = 0x1b,
    /// Identify I/O Command Set: 512 combinations of 64 bits.
    IoCommandSet = 0x1c,
    /// Underlying namespace list.
    UnderlyingNamespaceList = 0x1d,
    /// Ports list.
    PortsList = 0x1e,
    /// I/O command set independent Identify Namespace of an allocated NSID.
    AllocatedNamespaceIndependent = 0x1f,
    /// Supported controller state formats.
    SupportedControllerStateFormats = 0x20,
}

/// Command set identifier (Base 2.1, 5.1.13.1, figure 311).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Csi {
    /// NVM command set.
    Nvm = 0x00,
    /// Key value command set.
    KeyValue = 0x01,
    /// Zoned namespace command set.
    Zoned = 0x02,
    /// Subsystem local memory command set.
    SubsystemLocalMemory = 0x03,
    /// Computational programs command set.
    ComputationalPrograms = 0x04,
}

/// A list of namespaces, ascending, zero-filled (Base 2.1, 4.4.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceList {
    /// The namespaces.
    pub nsids: [u32; 1024],
}

const _: () = assert!(size_of::<NamespaceList>() == IDENTIFY_BYTES);

/// Identifiers a [`ControllerList`] can hold.
pub const CONTROLLER_LIST_MAX: usize = 2047;

/// A list of controllers, ascending (Base 2.1, 4.4.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControllerList {
    /// Number of identifiers, at most [`CONTROLLER_LIST_MAX`].
    pub count: u16,
    /// Controller identifiers.
    pub cntlids: [u16; CONTROLLER_LIST_MAX],
}

const _: () = assert!(size_of::<ControllerList>() == IDENTIFY_BYTES);

/// The head of a namespace identification descriptor; `nidl` bytes of identifier follow, then the next descriptor. A
/// descriptor with `nidl` 0 ends the list (Base 2.1, 5.1.13.2.3, figure 316).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct NamespaceIdDescriptorHeader {
    /// Namespace identifier type: see [`Nidt`].
    pub nidt: u8,
    /// Namespace identifier length in bytes.
    pub nidl: u8,
    /// Reserved.
    pub reserved2: [u8; 2],
}

const _: () = assert!(size_of::<NamespaceIdDescriptorHeader>() == 4);

/// Namespace identifier type (Base 2.1, 5.1.13.2.3, figure 316).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Nidt {
    /// EUI64, 8 bytes.
    Eui64 = 0x1,
    /// NGUID, 16 bytes.
    Nguid = 0x2,
    /// UUID, 16 bytes, big-endian as in RFC 9562.
    Uuid = 0x3,
    /// Command set identifier, 1 byte.
    Csi = 0x4,
}

/// UUID list, CNS 17h (Base 2.1, 5.1.13.2.14).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UuidList {
    /// Reserved.
    pub reserved0: [u8; 32],
    /// UUIDs 1 to 127; an all-zero one ends the list.
    pub entries: [UuidListEntry; 127],
}

const _: () = assert!(size_of::<UuidList>() == IDENTIFY_BYTES);

/// An entry of the UUID list (Base 2.1, 5.1.13.2.14).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct UuidListEntry {
    /// Bits 1:0: 0 no association, 1 the PCI vendor ID's vendor, 2 the subsystem vendor ID's vendor.
    pub association: u8,
    /// Reserved.
    pub reserved1: [u8; 15],
    /// The UUID, big-endian.
    pub uuid: [u8; 16],
}

const _: () = assert!(size_of::<UuidListEntry>() == 32);
const _: () = assert!(offset_of!(UuidListEntry, uuid) == 16);
