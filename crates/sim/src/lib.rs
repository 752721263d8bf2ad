//! The seeded world: a model guest, a model drive and the engine's logic, with the process killed between any two stores or
//! effects, and power cut at any time. One seed is one run, and replays exactly.
//!
//! ```text
//!  Guest (driver + auditor) --rings, doorbells, registers--> Engine { Controller, QueueGroups } --requests--> Disk
//!     ^ what every sector may hold: Ledger                     ^ dies at any point of nvme::crash, is replaced
//! ```
//! A second world, [`pool`], is a pool's: many volumes on one drive, whose bytes must stay apart. A third, [`crossing`], has two hosts and a wire:
//! the ssd moves between them with its guest.
//!
//! What is modelled and what is not: README.md.

pub mod crossing;
pub mod disk;
pub mod engine;
pub mod guest;
pub mod ledger;
pub mod pool;
pub mod rng;
pub mod world;

pub use world::{Report, run};
