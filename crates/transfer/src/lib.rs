//! Moves *sources of pages* to another host while they are written: an ssd's blocks, a guest's memory.
//!
//! Plain threads over anything that reads and writes: no async, no socket of its own, no clock of its own.
#![forbid(unsafe_code)]

pub mod commit;
pub mod frame;
pub mod source;
pub mod wire;
