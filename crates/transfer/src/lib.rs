//! Moves *sources of pages* to another host while they are written: an ssd's blocks, a guest's memory.
//!
//! ```text
//!   source --arm, harvest--> copy ----------> streams ===== frames =====> receive --> sink
//!          <------read------ (what is to     (window, pace, acks,        (verify, write,
//!                             be sent)        what is not answered yet)   acknowledge)
//! ```
//! [`copy::Precopy`] makes pass after pass until little enough is left, and says so; the caller suspends the source and sends the rest
//! ([`copy::Precopy::last`]). A connection that breaks is replaced, and nothing starts over. [`receive::Receiver`] is the other side. Who owns
//! the ssd afterwards is [`commit`]'s.
//!
//! Plain threads over anything that reads and writes: no async, no socket, no clock of its own. A socket needs timeouts in both directions: they are
//! what bounds a peer that says nothing.
//!
//! What this crate does *not* do: it does not suspend or slow a source, does not fetch missing
//! pages after the switch-over, and a receiver that was restarted starts anew.
#![forbid(unsafe_code)]

pub mod commit;
mod compression;
pub mod control;
pub mod copy;
pub mod frame;
pub mod receive;
pub mod source;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wire;
