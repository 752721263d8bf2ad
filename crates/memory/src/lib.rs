//! Guest memory: regions, translation, volatile access. The first unsafe island.
//!
//! ```text
//!  client's fd --mmap--> Mapping (Arc) --+
//!  client's fd --mmap--> Mapping (Arc) --+--> MemoryMap (immutable snapshot, Arc) --> segment(iova, len) -> Segment
//!  no fd ------------------> Remote -----+
//! ```
//!
//! A map or unmap by the client builds a new [`MemoryMap`]; holders of the old one keep its memory mapped until they let
//! go. The guest and the client write this memory at any time: no reference to its bytes is ever made, every access is a
//! copy of volatile reads or writes into private memory.
//!
//! A map may have a [`WriteLog`], in which what the device stores is marked page by page, for who copies the guest while it runs.
//!
//! Not done here: no vIOMMU, no sockets (a remote region is reached through
//! [`Remote`], which the owner of the socket implements).

pub mod crash;
mod doorbells;
pub mod heir;
mod log;
mod map;
mod mapping;
mod segment;
mod shared;
pub mod sigbus;
mod window;

pub use doorbells::DoorbellPage;
pub use log::{LOG_PAGE_BYTES, LOG_RANGES_MAX, LogError, WriteLog};
pub use map::{Access, Fault, Hint, Iova, MapError, MemoryMap, REGIONS_MAX, Reach, Region, Remote};
pub use mapping::{Mapping, MappingError};
pub use segment::{Segment, prefetch};
pub use shared::{Held, SharedRegion};
pub use window::Window;
