//! Which pages changed: of guest memory or of an ssd's blocks, in grains of 4 KiB ("pages" in both cases).
//!
//! ```text
//!  regions  one bit for 1 GiB    anything marked there since the last harvest?
//!     |
//!  heads    one word for 16 MiB  up to five pages by name, and whether there are more below
//!     |
//!  parts    one word for 2 MiB   up to six pages by name, and whether there are more below
//!     |
//!  words    one bit for 4 KiB
//! ```
//! A fresh [`Map`] is four stretches of memory that nobody has touched yet: the kernel hands pages of zeros in where marks land, so to arm an ssd of
//! 64 TiB costs no more than one of 1 GiB, and what is never written is never looked at. The grain starts at 1 GiB and splits where writes land.
//!
//! Threads mark ([`Map::mark`]) while another harvests ([`Map::take`]): each mark is in this harvest or in the next. At the
//! switch-over, when nobody marks any more, [`codec`] makes a compact form of what is left.
//!
//! Duties of the caller: who does not trace holds no map, and pays nothing. A mark comes *after* the data was written, and before the
//! write is acknowledged to anybody; between data that this processor wrote and its mark stands a full fence ([`settle`]), one for
//! many marks.
//!
//! What this crate does *not* do: it knows no time, no transfer, no LBAs; it does not trace what a vCPU writes (the hypervisor's log
//! is added page by page); and a map may name a page that did not change, where marks met a harvest, but never leaves one out.
#![forbid(unsafe_code)]

mod atomic;
mod block;
pub mod codec;
mod map;
#[cfg(all(test, loom))]
mod models;

pub use block::{BLOCK_PAGES, Few, Marks};
pub use map::{Map, NoMemory, settle};

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// The most pages a map has: 64 TiB.
pub const PAGES_MAX: u64 = (64 << 40) / PAGE_BYTES;
