//! The faces a virtual machine monitor talks to: sessions over a unix socket, bytes and file descriptors in, calls to a
//! device out.
//!
//! - [`vfio_user`]: the server side of the vfio-user protocol for a PCI device.
//! - [`vhost_user`]: the back-end side of the vhost-user protocol for a block device.
#![forbid(unsafe_code)]

pub mod vfio_user;
pub mod vhost_user;
