//! Bytes on the wire: NVMe, PCI configuration space, vfio-user and vhost-user.
//!
//! Layouts, numbers and names, taken word for word from the specifications; no behaviour. Everything that has a
//! layout is `repr(C)`, has no padding, and carries compile-time assertions of its size and of the offsets that
//! matter. Values that a peer may choose freely are open enums: an unknown one is a value, not an error.
//!
//! - [`nvme`]: NVM Express Base 2.1, NVM Command Set 1.1, PCIe Transport 1.1.
//! - [`pci`]: PCI Express Base (type 0 header, power management, MSI-X, PCIe capability).
//! - [`vfio_user`]: QEMU's `docs/interop/vfio-user.rst` and the structures it borrows from `<linux/vfio.h>`.
//! - [`virtio_blk`]: virtio 1.2, the block device and both kinds of rings; [`vhost_inflight`]: its requests in flight.
//! - [`vhost_user`]: QEMU's `docs/interop/vhost-user.rst`, for a block device.
//!
//! Conventions:
//! - Fields that hold "number minus one" end in `_z`.
//! - In a bitfield, `with_x` and `set_x` panic on a value wider than the field (they are for values we choose);
//!   reading never panics. Reserved bits are kept and can be seen with `into_bits`.
//! - The host is little-endian, so plain integers are the wire format.
//!
//! Not here: metadata and protection information beyond their field positions, zoned and key-value command sets,
//! fabrics commands, reservations, directives.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(not(target_endian = "little"))]
compile_error!("spec uses plain integers as the wire format and so needs a little-endian host");

pub mod nvme;

pub mod pci;
pub mod vfio_user;
pub mod vhost_inflight;
pub mod vhost_user;
pub mod virtio_blk;
