//! A guest in user space: a vfio-user client and a polled NVMe driver, a vhost-user client and a polled virtio-blk driver, for
//! tests and benches.
//!
//! - [`vfio_user::Client`] speaks the protocol: correctly through its methods, and anything at all through
//!   [`send_bytes`](vfio_user::Client::send_bytes) and [`send_frame`](vfio_user::Client::send_frame).
//! - [`nvme::Driver`] drives one controller over it: queues, commands, PRPs and SGLs, shadow doorbells, interrupts, or any
//!   64 bytes and any doorbell value.
//! - [`vhost_user::Driver`] is a vhost-user front-end with a polled virtio-blk driver.
//! - [`ram::Ram`] is the guest's memory: a memfd, an IOVA base, and an allocator of pages.
//! - [`load`] is the load generator behind the `bench` binary.
//! - [`hosts::Hosts`] are two hosts that move ssds to one another: their certificates and addresses.
//! - [`relay::Relay`] is a network between two hosts that can be cut, stalled, slowed down and made long.
//! - [`verify`] is the verifying load behind the `soak` binary.
//!
//! What it does *not* do: it trusts the test that uses it (an offset out of range panics), it is no model of a real driver's
//! error recovery, and nothing in the daemon depends on it.

pub mod error;
pub mod hosts;
pub mod load;
pub mod manager;
pub mod mapping;
pub mod nvme;
pub mod ram;
pub mod relay;
pub mod verify;
pub mod vfio_user;
pub mod vhost_user;

pub use error::{Error, Result};

/// What takes longer hangs, whatever it is that a test waits for. It is no measure of how fast anything is: a machine that has ten other
/// things to do does not miss it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
