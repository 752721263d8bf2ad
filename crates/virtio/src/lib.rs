//! virtio-blk (virtio 1.2, 5.2): split and packed rings, requests, and the log of requests in flight.
//!
//! Pure: time in, effects out through [`sink::Sink`]. [`group::VirtQueueGroup`] holds all rings of one device on one reactor.
//!
//! ```text
//!  poll:     ring -> chain -> in-flight log -> request -> Sink::submit -> answered at once | parked
//!  complete: token -> parked -> answered
//!  flush:    answers -> used ring and in-flight log, once a batch -> one call a queue
//! ```
//!
//! The stores of the in-flight log stand between those of the ring, so that after the process was killed before any of them a
//! successor answers every request exactly once (`docs/formats/virtio-inflight.md`). All of them go through module `store`.
//!
//! Not here: messages and sockets (crate `frontend`), device status, secure erase, zones, legacy (big-endian) devices.
//! DISCARD and WRITE_ZEROES take one segment a request, as the configuration space says. Remote memory is reached for rings
//! and headers, not for data.
#![forbid(unsafe_code)]

pub use memory::crash;

mod chain;
pub mod config;
pub mod group;
pub mod inflight;
mod order;
mod packed;
mod request;
pub mod ring;
pub mod sink;
mod split;
mod store;

#[cfg(test)]
mod tests;
