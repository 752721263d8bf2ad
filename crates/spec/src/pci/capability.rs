//! Capabilities: power management, MSI-X, PCI Express (PCIe Base 6.0, 7.5.2, 7.5.3, 7.7.2).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Capability IDs (PCI Code and ID Assignment, 2).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CapabilityId {
    /// End of the list, or nothing.
    Null = 0x00,
    /// Power management: [`PowerManagement`].
    PowerManagement = 0x01,
    /// Vital product data.
    VitalProductData = 0x03,
    /// MSI.
    Msi = 0x05,
    /// Vendor specific.
    VendorSpecific = 0x09,
    /// PCI Express: [`PciExpress`].
    PciExpress = 0x10,
    /// MSI-X: [`MsixCapability`].
    Msix = 0x11,
    /// Advanced features.
    AdvancedFeatures = 0x13,
}

/// Power management capabilities (PCIe Base 6.0, 7.5.2.1).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmc {
    /// Version: 3.
    #[bits(3)]
    pub version: u8,
    /// PME clock; 0.
    pub pme_clock: bool,
    /// Immediate readiness on return to D0.
    pub immediate_readiness: bool,
    /// Device specific initialization.
    pub dsi: bool,
    /// Auxiliary current.
    #[bits(3)]
    pub aux_current: u8,
    /// D1 is supported.
    pub d1: bool,
    /// D2 is supported.
    pub d2: bool,
    /// States that can signal PME.
    #[bits(5)]
    pub pme_support: u8,
}

/// Power management control and status (PCIe Base 6.0, 7.5.2.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmcsr {
    /// Power state: 0 D0, 3 D3hot.
    #[bits(2)]
    pub power_state: u8,
    #[bits(1)]
    __: u8,
    /// No internal reset on the way from D3hot to D0.
    pub no_soft_reset: bool,
    #[bits(4)]
    __: u8,
    /// PME enable.
    pub pme_enable: bool,
    /// Data select.
    #[bits(4)]
    pub data_select: u8,
    /// Data scale.
    #[bits(2)]
    pub data_scale: u8,
    /// PME status (write 1 to clear).
    pub pme_status: bool,
}

/// The power management capability (PCIe Base 6.0, 7.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerManagement {
    /// Capability ID: 01h.
    pub id: u8,
    /// Offset of the next capability.
    pub next: u8,
    /// Capabilities.
    pub pmc: Pmc,
    /// Control and status.
    pub pmcsr: Pmcsr,
    /// Reserved.
    pub reserved6: [u8; 1],
    /// Data.
    pub data: u8,
}

const _: () = assert!(size_of::<PowerManagement>() == 8);
const _: () = assert!(offset_of!(PowerManagement, next) == 1);
const _: () = assert!(offset_of!(PowerManagement, pmc) == 2);
const _: () = assert!(offset_of!(PowerManagement, pmcsr) == 4);
const _: () = assert!(offset_of!(PowerManagement, data) == 7);

/// MSI-X message control (PCIe Base 6.0, 7.7.2.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsixControl {
    /// Number of table entries, 0's based.
    #[bits(11)]
    pub table_size_z: u16,
    #[bits(3)]
    __: u8,
    /// All vectors are masked.
    pub function_mask: bool,
    /// MSI-X is enabled.
    pub enable: bool,
}

/// MSI-X table or PBA offset and BAR (PCIe Base 6.0, 7.7.2.3 and 7.7.2.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsixOffset {
    /// BAR indicator.
    #[bits(3)]
    pub bir: u8,
    /// Offset in the BAR in units of 8 bytes.
    #[bits(29)]
    pub offset_qwords: u32,
}

/// The MSI-X capability (PCIe Base 6.0, 7.7.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsixCapability {
    /// Capability ID: 11h.
    pub id: u8,
    /// Offset of the next capability.
    pub next: u8,
    /// Message control.
    pub control: MsixControl,
    /// Where the table is.
    pub table: MsixOffset,
    /// Where the pending bit array is.
    pub pba: MsixOffset,
}

const _: () = assert!(size_of::<MsixCapability>() == 12);
const _: () = assert!(offset_of!(MsixCapability, next) == 1);
const _: () = assert!(offset_of!(MsixCapability, control) == 2);
const _: () = assert!(offset_of!(MsixCapability, table) == 4);
const _: () = assert!(offset_of!(MsixCapability, pba) == 8);

impl MsixOffset {
    /// The place `offset` bytes (a multiple of 8) into BAR `bir`; lower bits of the offset are dropped.
    pub const fn at(bir: u8, offset: u32) -> Self {
        Self::from_bits(offset & !0b111 | (bir & 0b111) as u32)
    }

    /// Offset in the BAR in bytes.
    pub const fn offset(self) -> u32 {
        self.into_bits() & !0b111
    }
}

/// An MSI-X table entry (PCIe Base 6.0, 7.7.2.5 to 7.7.2.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsixEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control: see [`MSIX_ENTRY_MASKED`].
    pub control: u32,
}

const _: () = assert!(size_of::<MsixEntry>() == 16);
const _: () = assert!(offset_of!(MsixEntry, data) == 8);
const _: () = assert!(offset_of!(MsixEntry, control) == 12);

/// [`MsixEntry::control`]: the vector is masked. Set after reset.
pub const MSIX_ENTRY_MASKED: u32 = 1 << 0;

/// PCI Express capabilities register (PCIe Base 6.0, 7.5.3.2).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExpressCapabilities {
    /// Version: 2.
    #[bits(4)]
    pub version: u8,
    /// Device or port type: 0 endpoint, 9 root complex integrated endpoint.
    #[bits(4)]
    pub port_type: u8,
    /// Slot implemented.
    pub slot: bool,
    /// Interrupt message number.
    #[bits(5)]
    pub interrupt_message: u8,
    #[bits(2)]
    __: u8,
}

/// Device capabilities (PCIe Base 6.0, 7.5.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceCapabilities {
    /// Max payload size supported: `128 << n` bytes.
    #[bits(3)]
    pub max_payload: u8,
    /// Phantom functions supported.
    #[bits(2)]
    pub phantom_functions: u8,
    /// Extended tag supported.
    pub extended_tag: bool,
    /// L0s acceptable latency.
    #[bits(3)]
    pub l0s_latency: u8,
    /// L1 acceptable latency.
    #[bits(3)]
    pub l1_latency: u8,
    #[bits(3)]
    __: u8,
    /// Role-based error reporting; 1.
    pub role_based_errors: bool,
    #[bits(2)]
    __: u8,
    /// Captured slot power limit value.
    pub slot_power_value: u8,
    /// Captured slot power limit scale.
    #[bits(2)]
    pub slot_power_scale: u8,
    /// Function level reset.
    pub flr: bool,
    #[bits(3)]
    __: u8,
}

/// Device control (PCIe Base 6.0, 7.5.3.4).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceControl {
    /// Correctable error reporting enable.
    pub correctable: bool,
    /// Non-fatal error reporting enable.
    pub non_fatal: bool,
    /// Fatal error reporting enable.
    pub fatal: bool,
    /// Unsupported request reporting enable.
    pub unsupported_request: bool,
    /// Relaxed ordering enable.
    pub relaxed_ordering: bool,
    /// Max payload size.
    #[bits(3)]
    pub max_payload: u8,
    /// Extended tag enable.
    pub extended_tag: bool,
    /// Phantom functions enable.
    pub phantom_functions: bool,
    /// Auxiliary power enable.
    pub aux_power: bool,
    /// No snoop enable.
    pub no_snoop: bool,
    /// Max read request size.
    #[bits(3)]
    pub max_read_request: u8,
    /// Write 1: function level reset. Reads 0.
    pub initiate_flr: bool,
}

/// Link capabilities (PCIe Base 6.0, 7.5.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LinkCapabilities {
    /// Max link speed: 1 is 2.5, 2 is 5, 3 is 8, 4 is 16 GT/s.
    #[bits(4)]
    pub max_speed: u8,
    /// Maximum link width in lanes.
    #[bits(6)]
    pub max_width: u8,
    /// ASPM support.
    #[bits(2)]
    pub aspm: u8,
    /// L0s exit latency.
    #[bits(3)]
    pub l0s_exit_latency: u8,
    /// L1 exit latency.
    #[bits(3)]
    pub l1_exit_latency: u8,
    /// Clock power management.
    pub clock_pm: bool,
    #[bits(3)]
    __: u8,
    /// ASPM optionality compliance; 1.
    pub aspm_optionality: bool,
    #[bits(1)]
    __: u8,
    /// Port number.
    pub port: u8,
}

/// Link status (PCIe Base 6.0, 7.5.3.8).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LinkStatus {
    /// Current link speed.
    #[bits(4)]
    pub speed: u8,
    /// Negotiated link width.
    #[bits(6)]
    pub width: u8,
    #[bits(2)]
    __: u8,
    /// Slot clock configuration.
    pub slot_clock: bool,
    #[bits(3)]
    __: u8,
}

/// The PCI Express capability, version 2 (PCIe Base 6.0, 7.5.3). An endpoint's slot and root registers are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciExpress {
    /// Capability ID: 10h.
    pub id: u8,
    /// Offset of the next capability.
    pub next: u8,
    /// Capabilities.
    pub capabilities: ExpressCapabilities,
    /// Device capabilities.
    pub device_capabilities: DeviceCapabilities,
    /// Device control.
    pub device_control: DeviceControl,
    /// Device status: see [`DEVICE_STATUS_TRANSACTIONS_PENDING`].
    pub device_status: u16,
    /// Link capabilities.
    pub link_capabilities: LinkCapabilities,
    /// Link control.
    pub link_control: u16,
    /// Link status.
    pub link_status: LinkStatus,
    /// Slot capabilities, control and status.
    pub slot: [u8; 8],
    /// Root control, capabilities and status.
    pub root: [u8; 8],
    /// Device capabilities 2: see [`DEVICE_CAPABILITIES2_TIMEOUT_DISABLE`].
    pub device_capabilities2: u32,
    /// Device control 2.
    pub device_control2: u16,
    /// Device status 2.
    pub device_status2: u16,
    /// Link capabilities 2: bits 7:1 are the supported speeds.
    pub link_capabilities2: u32,
    /// Link control 2: bits 3:0 are the target speed.
    pub link_control2: u16,
    /// Link status 2.
    pub link_status2: u16,
    /// Slot capabilities, control and status 2.
    pub slot2: [u8; 8],
}

const _: () = assert!(size_of::<PciExpress>() == 60);
const _: () = assert!(offset_of!(PciExpress, next) == 1);
const _: () = assert!(offset_of!(PciExpress, capabilities) == 2);
const _: () = assert!(offset_of!(PciExpress, device_capabilities) == 4);
const _: () = assert!(offset_of!(PciExpress, device_control) == 8);
const _: () = assert!(offset_of!(PciExpress, device_status) == 10);
const _: () = assert!(offset_of!(PciExpress, link_capabilities) == 12);
const _: () = assert!(offset_of!(PciExpress, link_control) == 16);
const _: () = assert!(offset_of!(PciExpress, link_status) == 18);
const _: () = assert!(offset_of!(PciExpress, slot) == 20);
const _: () = assert!(offset_of!(PciExpress, root) == 28);
const _: () = assert!(offset_of!(PciExpress, device_capabilities2) == 36);
const _: () = assert!(offset_of!(PciExpress, device_control2) == 40);
const _: () = assert!(offset_of!(PciExpress, device_status2) == 42);
const _: () = assert!(offset_of!(PciExpress, link_capabilities2) == 44);
const _: () = assert!(offset_of!(PciExpress, link_control2) == 48);
const _: () = assert!(offset_of!(PciExpress, link_status2) == 50);
const _: () = assert!(offset_of!(PciExpress, slot2) == 52);

/// [`PciExpress::device_status`]: non-posted requests of the function are outstanding.
pub const DEVICE_STATUS_TRANSACTIONS_PENDING: u16 = 1 << 5;
/// [`PciExpress::device_capabilities2`]: the completion timeout can be disabled; mandatory for an endpoint.
pub const DEVICE_CAPABILITIES2_TIMEOUT_DISABLE: u32 = 1 << 4;
