//! Hostile guests and hostile clients against a whole engine (the rows of the list of hostile inputs are named by number).
//!
//! Each test is a [`siege::Siege`]: one ssd is attacked, another on the same reactors writes, reads back and compares all
//! the while. Afterwards the next client of the attacked socket is served, the neighbour has seen no error and no wrong
//! byte, and the process holds no descriptor, thread or guest memory more than before.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

#[path = "../host/mod.rs"]
mod host;

mod guest_attacks;
mod interrupts;
mod memory_attacks;
mod moving;
mod siege;
mod socket_attacks;
