//! Who owns the ssd: the steps by which its ownership passes from a source to a destination, as two pure state machines.
//!
//! ```text
//!  source (owns epoch N)                                destination (shall own epoch N+1)
//!  journal: offered, round 1
//!        ── Open 1 ─────────────────────────────────────▶ journal: incoming, round 1
//!        ◀───────────────────────────────────── Opened 1 ──
//!  copies while the guest writes   ═══ blocks of round 1 ═══▶
//!  freezes: I/O queues, nothing fails
//!        ── Seal 1 (beside the last blocks) ────────────▶ waits for them, makes all durable
//!                                                         journal: ready, round 1
//!        ◀────────────────────────────────────── Ready 1 ──   stopped, and asks, until it hears
//!  the hypervisor may go on; it says `completed`
//!  journal: GRANTED    <- the one atomic step. Until it is written every failure thaws the source.
//!        ── Grant 1 ────────────────────────────────────▶ journal: owned
//!                                                         serves, and the guest runs
//!        ◀──────────────────────────────────────── Owned ──
//!  journal: gone; wipes
//!        ── Closed ─────────────────────────────────────▶
//! ```
//!
//! No I/O, no clock, no thread: events in, [`effects`](SourceEffect) out. Whoever drives a machine owes it this:
//!
//! - Effects are carried out in their order. `Write` is the last of its step: the record replaces the one before, durably, and only then
//!   [`SourceEvent::Written`] is said. If it cannot be written the machine is dropped, as if it had crashed: what the journal says is read
//!   back and [`Source::recover`] goes on. The same for the destination.
//! - The record is where the engine sees it before it opens the ssd. An engine that starts anew serves nothing that the machine
//!   did not tell it to serve.
//! - Messages may be lost, repeated and reordered. They are those of the peer that proved who it is; a peer that lies harms the ssd
//!   that it is given, and no other.
//! - A frozen ssd queues I/O and fails none. A lost connection is not an event: it is told as `Expired` if the source is frozen, and is nothing
//!   otherwise.
//!
//! What is not here: the copying itself, the choice of the moment, and the hypervisor's own protocol.

mod destination;
#[cfg(test)]
mod model;
mod rules;
mod saved;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;

pub use destination::{Destination, DestinationEffect, DestinationEvent, DestinationRecord, DestinationStep};
pub use rules::{Rule, Rules};
pub use saved::{Parties, Record};
pub use source::{Former, Source, SourceEffect, SourceEvent, SourceRecord, SourceStep, VmWord, fence};

/// What a migration is about: its own random identity, and the epoch that it passes on.
///
/// A number above the source's epoch is pledged once: to this destination. The source never offers it again, so two owners never
/// have the same epoch, whatever is forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pledge {
    /// Random, of this migration.
    pub migration: [u8; 16],
    /// What the destination will own the ssd by.
    pub epoch: u64,
}

/// A message of one party to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message<W> {
    /// Of which migration.
    pub pledge: Pledge,
    /// What it says.
    pub word: W,
}

/// What the source says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToDestination {
    /// Blocks of this round will come: what was ready before is not any more.
    Open {
        /// Counts freezes.
        round: u32,
    },
    /// The source is frozen, and the last blocks of the round are on their way: before this, or beside it.
    Seal {
        /// Of this round.
        round: u32,
    },
    /// The ssd is yours.
    Grant {
        /// The round that you are ready with.
        round: u32,
    },
    /// It stays mine: drop your copy.
    Cancel,
    /// I know how it ended; there is nothing more to say.
    Closed,
    /// It is owned by a later epoch than yours.
    Fenced {
        /// That epoch.
        epoch: u64,
    },
}

/// What the destination says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToSource {
    /// Blocks of this round are taken.
    Opened {
        /// The round.
        round: u32,
    },
    /// All of the round is durable here, and the ssd is served as soon as it is granted.
    Ready {
        /// The round.
        round: u32,
    },
    /// I own it.
    Owned,
    /// I do not own it, and never shall by this migration.
    Dropped,
}

/// Why something that was asked for is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A record is being written.
    Busy,
    /// A message of another migration.
    Stranger,
    /// The ssd is granted.
    Granted,
    /// The destination cannot take what is not whole.
    NotWhole,
    /// This side owns it: nothing needs force.
    Owner,
    /// The other side owns it.
    OwnedElsewhere,
    /// The migration has ended.
    Over,
    /// The destination of the migration before has yet to say that it has dropped its copy.
    Unheard,
    /// The source of the migration before, which brought the ssd here, has yet to hear of it.
    Unclosed,
    /// The epoch is not above one that was seen here.
    Stale {
        /// That one.
        seen: u64,
    },
    /// There is no epoch or round after this one.
    Exhausted,
    /// Not now.
    NotNow,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the journal of the migration is being written: ask again"),
            Self::Stranger => {
                f.write_str("the message is of another migration than the one under way: nothing was changed")
            }
            Self::Granted => f.write_str(
                "the ssd was granted to the destination, and cannot be cancelled here: let the two hosts talk, or cancel at the \
                 destination, or, only if the destination is lost for good, take it here by force",
            ),
            Self::NotWhole => f.write_str(
                "the copy here is not whole, so it cannot be taken, by force neither: start the source's host",
            ),
            Self::Owner => f.write_str("the ssd is owned here: nothing needs force; cancel the migration to end it"),
            Self::OwnedElsewhere => {
                f.write_str("the ssd is owned by the other host: migrate it back instead, or open the copy as a new ssd")
            }
            Self::Over => f.write_str("the migration has ended: start another"),
            Self::Unheard => f.write_str(
                "the migration before has not ended: its destination might still take the ssd. Let the two hosts talk, or, only if that \
                 destination is lost for good, take the ssd here by force",
            ),
            Self::Unclosed => f.write_str(
                "the migration that brought the ssd here has not ended: its source has not heard of it, and could be taken by force. Let the two \
                 hosts talk; if that source is lost for good, copy the data to a new ssd and move that",
            ),
            Self::Stale { seen } => write!(
                f,
                "epoch {seen} of this ssd was seen here already: the migration is an old one; start another at the owner"
            ),
            Self::Exhausted => {
                f.write_str("the ssd has no epoch or round left to count to: copy its data to a new ssd")
            }
            Self::NotNow => f.write_str("the migration is not at this step: see its state"),
        }
    }
}

/// What an operator must know, for as long as it is so. It is said again with each `Retry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// At the source: granted, and no word of the destination yet. Both may be stopped.
    AwaitsDestination,
    /// At the destination: ready, and no word of the source yet. Both may be stopped.
    AwaitsSource,
    /// At either: the other side has a later epoch, by force. What was written here after it is only here.
    Superseded {
        /// That epoch.
        epoch: u64,
    },
}

impl fmt::Display for Alarm {
    /// What has happened and the way on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AwaitsDestination => f.write_str(
                "the ssd is stopped here: it was granted to the destination, which has not answered. Let the two hosts talk and it goes on by \
                 itself. To have it back: cancel at the destination. Only if the destination is lost for good, or is known to be off: \
                 take it here by force; nothing acknowledged here is lost, and the destination's copy is fenced off",
            ),
            Self::AwaitsSource => f.write_str(
                "the ssd is stopped here: all of it has come, and the source has not yet granted it. Let the two hosts talk and it goes on by itself. To \
                 give it up: cancel here. Only if the source is lost for good, or is known to be off: take it here by force; what was written \
                 at the source after this copy was made is lost, and the source is fenced off",
            ),
            Self::Superseded { epoch } => write!(
                f,
                "the ssd was taken at the other host by force (epoch {epoch}), and is stopped here. What was written here meanwhile is only here: \
                 open this copy as a new ssd to save it, or delete it"
            ),
        }
    }
}
