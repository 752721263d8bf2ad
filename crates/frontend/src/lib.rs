//! The faces a virtual machine monitor talks to: sessions over a unix socket, bytes and file descriptors in, calls to a
//! device out.
//!
//! - [`vfio_user`]: the server side of the vfio-user protocol for a PCI device.
//!
//! Not here yet: vhost-user.
#![forbid(unsafe_code)]

pub mod vfio_user;
