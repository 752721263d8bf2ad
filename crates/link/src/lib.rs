//! What keeper and engine say to one another, and how: framing over unix sockets with descriptors.
//!
//! ```text
//!  keeper ===== control link (SEQPACKET, one) =====> engine     control::{ToEngine, ToKeeper}
//!         ===== session link (STREAM, one a client) ====>       session::{ToEngine, ToKeeper}
//! ```
//!
//! The bytes are described in `docs/formats/link.md`. Neither side trusts the other's bytes: whatever comes is a message or
//! a [`LinkError`], in bounded memory. [`frame`] and [`outbox`] serve the keeper's client sockets, too.
//!
//! Duties, in one place:
//!
//! | the keeper | the engine |
//! |---|---|
//! | sends each command of a client once to each engine, in order, until it is answered | answers each command it was sent exactly once, in any order; may find that its predecessor carried it out already |
//! | takes an answer whole or not at all: deposit, kept descriptors and reply change together | sends a deposit with every answer that changed what a successor must know |
//! | reads what a dead engine had sent to the end before it starts the next one | says [`control::ToKeeper::PowerOn`] when it is done with a client that left |
//! | holds a duplicate of each io_uring it was told of, and acknowledges it | submits to a ring only after the acknowledgement |
//!
//! Not here: what is in a deposit, a record or a region (crate `state`), and sockets' paths and accepting (crate `keeper`).
#![forbid(unsafe_code)]

pub mod blame;
pub mod control;
pub mod frame;
pub mod outbox;
pub mod session;
mod socket;

use rustix::io::Errno;

/// Version of both links as this build speaks them. A peer of version 1 or newer is understood as far as this one. Version 2: ssds have
/// numbers of their own, and what is served can change. Version 3: an ssd can stand unserved because its owner is elsewhere. Version 4: dead
/// engines' rings go as soon as they have been waited for. Version 5: a change that is given up is let go.
pub const VERSION: u32 = 5;

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed inside a message.
    #[error("the peer closed the link inside a message")]
    Truncated,
    /// A frame's size makes no sense.
    #[error(transparent)]
    Frame(#[from] frame::BadFrame),
    /// The bytes are no message.
    #[error("not a message of this link: {0}")]
    Nonsense(&'static str),
    /// The body of a control message is no message that this build knows.
    #[error("a control message that this build does not understand: {0}")]
    Unknown(String),
    /// The message is longer or has more descriptors than the link carries.
    #[error("the message is too large for the link: {0}")]
    TooLarge(&'static str),
    /// The peer is gone.
    #[error("the peer is gone")]
    Gone,
    /// The socket failed.
    #[error("the link's socket failed: {0}")]
    Io(Errno),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Gone,
            errno => Self::Io(errno),
        }
    }
}
