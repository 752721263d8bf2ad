//! The back-end side of vhost-user (QEMU's `docs/interop/vhost-user.rst`, cited as "vhost-user.rst") for a block device.
//!
//! ```text
//!  socket or keeper --header, payload, fds--> Session --frame::parse--> Request --> Blk (the engine's)
//!     ^                                          |      (all doubt ends here)
//!     +---------- at most one reply -------------+----> saved(): what a successor must know
//! ```
//!
//! [`Session`] is sans-I/O: over a plain socket [`serve()`] feeds it, with a keeper whoever has the session link. It keeps
//! what the client said of each ring, starts a ring when all it needs has been said (in any order), and stops rings around
//! whatever they must not see change. Ring addresses, which the front-end names in its own address space, leave here as
//! the guest's.
//!
//! Failures: a client that asked for acknowledgements (REPLY_ACK) is told and goes on; any other message that cannot be
//! carried out ends the session, as there is no way to tell.
//!
//! Not implemented: vIOMMU (IOTLB messages), post-copy, in-band notifications, host notifiers, GET_VRING_BASE that leaves
//! requests in flight, rings of another endianness, device state over a descriptor, shared objects.

mod channel;
pub mod device;
pub mod frame;
mod rings;
mod saved;
mod serve;
mod session;
mod table;

pub use device::{Blk, BlkInfo, Errno, F_RING_PACKED, Inflight, Log, NewInflight, Region, Ring};
pub use frame::{
    BrokenStream, ClientFd, FDS_MAX, FdId, HEADER_BYTES, Header, Message, PAYLOAD_BYTES_MAX, Refusal,
};
pub use saved::{Saved, SavedAddr, SavedInflight, SavedLog, SavedVring};
pub use serve::{EndReason, Limits, SessionEnd, serve};
pub use session::{Announcer, DEVICE_FDS, MEM_SLOTS_MAX, Outcome, Reply, Session};
pub use table::TableEntry;
