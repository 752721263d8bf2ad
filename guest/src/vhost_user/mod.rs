//! A vhost-user front-end and a polled virtio-blk driver.
//!
//! - [`Client`] speaks the protocol: correctly through its methods, and anything at all through
//!   [`send_bytes`](Client::send_bytes).
//! - [`Driver`] connects, agrees on features, shares its memory and sets up the rings; it can do all of it again over
//!   another connection, as QEMU does when a back-end comes back.
//! - [`ring`] are split and packed rings, [`request`] the requests of a block device.
//! - [`VhostDoor`] is the device for a verifying load, [`lane`] the tight loop of the bench.
//!
//! It polls: no call eventfd is read, and the kick eventfd is used only when asked for.

pub mod client;
mod door;
mod driver;
pub mod lane;
pub mod request;
pub mod ring;
#[cfg(test)]
mod toy;

pub use client::Client;
pub use door::VhostDoor;
pub use driver::{Config, Driver, Options, Queue, feature, protocol};
