//! The NVMe controller: registers, admin commands, queues, PRP and SGL, namespaces (NVM Express Base 2.1, NVM Command Set 1.1).
//!
//! Pure: no I/O, clock or thread. A [`Controller`](controller) lives on its ssd's home reactor; a [`QueueGroup`](group) holds the
//! I/O queue pairs of one ssd on one reactor. All that a successor process needs is in one
//! [`ControllerRegion`](state::region::ControllerRegion).
#![forbid(unsafe_code)]

// The unit tests share their world with the integration tests, which see this crate from outside.
#[cfg(test)]
extern crate self as nvme;

pub use memory::crash;

mod admin;
pub mod controller;
pub mod data;
pub mod group;
pub mod host;
mod io;
pub mod limits;
pub mod management;
pub mod marks;
pub mod namespace;
mod order;
pub mod pci;
pub mod profile;
pub mod queue;
pub mod sink;
mod store;
pub mod watch;
mod work;
