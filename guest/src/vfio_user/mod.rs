//! The client's side of vfio-user (QEMU, `docs/interop/vfio-user.rst`).

mod client;
mod dma;
mod frame;
mod info;
mod migration;
mod socket;

pub use client::{Client, RegionWrite};
pub use dma::DmaMemory;
pub use frame::{Frame, HEADER_BYTES, Header, command};
pub use info::{DeviceInfo, IrqInfo, RegionInfo, SparseArea, Version, irq, region, set_irqs};
pub use migration::state;
pub(crate) use socket::hung_up;
