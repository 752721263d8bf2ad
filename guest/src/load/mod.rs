//! The load generator behind the `bench` binary.
//!
//! One thread, pinned, polls one queue pair with prebuilt commands, so that the engine and not the client is the limit.
//! [`lane`] is the tight loop, [`engine`] starts the daemon and reads what it spent, [`fio`] is the raw peer, [`suite`] the
//! list of benches, [`report`] what comes out.
//!
//! What it does *not* do: more than one client thread, mixed reads and writes, or any check of the data (the tests do).

pub mod clock;
pub mod copy;
pub mod disks;
pub mod engine;
pub mod fio;
pub mod floor;
pub mod footprint;
pub mod histogram;
pub mod idle;
pub mod isolation;
pub mod lane;
pub mod many;
pub mod moves;
pub mod pools;
pub mod quiet;
pub mod report;
pub mod space;
pub mod suite;
pub mod workload;
