//! PCI Express configuration space of an endpoint.

pub mod capability;
pub mod header;

pub use capability::{
    CapabilityId, MSIX_ENTRY_MASKED, MsixCapability, MsixControl, MsixEntry, MsixOffset, PciExpress, Pmc,
    Pmcsr, PowerManagement,
};
pub use header::{Command, DeviceStatus, Header};

/// Bytes of PCI compatible configuration space.
pub const CONFIG_SPACE_BYTES: usize = 256;
/// Bytes of PCI Express configuration space; extended capabilities start at 256, where a zero dword means none.
pub const EXTENDED_CONFIG_SPACE_BYTES: usize = 4096;
/// The lowest place a capability may have.
pub const CAPABILITIES_START: u8 = 0x40;
