//! What either host keeps of a migration: the journal by which an ssd's ownership passes (`docs/formats/migration-journal.md`).
//!
//! One record on each side, replaced as a whole before each step. Fields are tagged: added, never renumbered or reused. What a reader of version 1
//! would misunderstand if it skipped it needs version 2.

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of a record.
pub const MAGIC: [u8; 8] = *b"GODWTMIG";
/// Version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Longest name of the other host.
pub const PEER_BYTES_MAX: usize = 255;
/// Longest body: more than any build of this version writes.
const BODY_BYTES_MAX: usize = 4096;
/// Longest record that can be read, with its envelope.
pub const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 64;

/// One side's record of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct MigrationV1 {
    /// Identity of the ssd.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub ssd: [u8; 16],
    /// Name of the other host.
    #[n(1)]
    pub peer: String,
    /// Identity of the migration, random.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub migration: [u8; 16],
    /// The epoch that it passes on.
    #[n(3)]
    pub epoch: u64,
    /// The last round that was opened.
    #[n(4)]
    pub round: u32,
    /// At the source: how far it is.
    #[n(5)]
    pub source: Option<SourceV1>,
    /// At the destination: how far it is.
    #[n(6)]
    pub destination: Option<DestinationV1>,
    /// At the source: what is left there is not wiped when the ssd has gone.
    #[n(7)]
    pub keep: Option<bool>,
    /// The other side knows how it ended.
    #[n(8)]
    pub closed: Option<bool>,
    /// At the source: what was left there is wiped.
    #[n(9)]
    pub wiped: Option<bool>,
    /// The QMP socket here of the hypervisor whose guest moves with the ssd. `None`: it moves without one.
    #[n(10)]
    pub hypervisor: Option<String>,
    /// The limits that the ssd came to this host with, or comes with. `None`: of a build that did not say, or it never came from elsewhere.
    #[n(11)]
    pub limits: Option<LimitsV1>,
}

/// How much an ssd may do, as it came from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct LimitsV1 {
    /// Its share, relative to the others'.
    #[n(0)]
    pub weight: u16,
    /// I/Os of all kinds.
    #[n(1)]
    pub iops: Option<RateV1>,
    /// Reads.
    #[n(2)]
    pub read_iops: Option<RateV1>,
    /// Writes.
    #[n(3)]
    pub write_iops: Option<RateV1>,
    /// Bytes read and written.
    #[n(4)]
    pub bandwidth: Option<RateV1>,
    /// Bytes read.
    #[n(5)]
    pub read_bandwidth: Option<RateV1>,
    /// Bytes written.
    #[n(6)]
    pub write_bandwidth: Option<RateV1>,
}

/// So much a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct RateV1 {
    /// I/Os, or bytes.
    #[n(0)]
    pub per_second: u64,
    /// What may come at once after a pause.
    #[n(1)]
    pub burst: Option<u64>,
}

/// How far the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SourceV1 {
    /// The epoch that the ssd is owned by here, while it is.
    #[n(0)]
    pub held: u64,
    /// The step.
    #[n(1)]
    pub step: SourceStepV1,
}

/// A step of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(index_only)]
pub enum SourceStepV1 {
    /// Owner; a destination may be copying.
    #[n(0)]
    Offered,
    /// Not the owner any more.
    #[n(1)]
    Granted,
    /// The destination is the owner.
    #[n(2)]
    Gone,
    /// Owner; the destination has yet to drop its copy.
    #[n(3)]
    Cancelling,
    /// Owner, and the destination knows.
    #[n(4)]
    Cancelled,
    /// Owner by the epoch after the pledged one; the destination has yet to hear of it.
    #[n(5)]
    TakenBack,
    /// The same, and the destination knows.
    #[n(6)]
    TakenBackHeard,
    /// The destination was taken by force.
    #[n(7)]
    Superseded,
}

/// How far the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct DestinationV1 {
    /// The step.
    #[n(0)]
    pub step: DestinationStepV1,
    /// Superseded: the source's epoch.
    #[n(1)]
    pub fenced_by: Option<u64>,
}

/// A step of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(index_only)]
pub enum DestinationStepV1 {
    /// Takes blocks.
    #[n(0)]
    Incoming,
    /// Has all of the round.
    #[n(1)]
    Ready,
    /// Owner, granted.
    #[n(2)]
    Owned,
    /// Owner, by force.
    #[n(3)]
    Forced,
    /// Never the owner by this migration.
    #[n(4)]
    Dropped,
    /// The source was taken by force.
    #[n(5)]
    Superseded,
}

/// Why bytes are no record of a migration.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The envelope says so.
    #[error("journal of a migration: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("journal of a migration: its fields cannot be read: {0}")]
    Body(String),
    /// The fields contradict each other, so nobody can say who owns the ssd by them.
    #[error(
        "journal of a migration: {0}: no build wrote this; do not start the ssd before it is known which host owns it"
    )]
    Contradiction(&'static str),
}

impl MigrationV1 {
    /// The bytes of the record.
    ///
    /// # Errors
    /// [`MigrationError`] when its fields contradict each other: what could not be read again is not written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MigrationError> {
        self.check()?;
        let body = minicbor::to_vec(self).map_err(|error| MigrationError::Body(error.to_string()))?;
        Ok(envelope::seal(MAGIC, VERSION, &body)?)
    }

    /// The record in bytes.
    ///
    /// # Errors
    /// [`MigrationError`] names what is wrong: cut short, damaged, foreign, written by a newer build, or a contradiction.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MigrationError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        if body.len() > BODY_BYTES_MAX {
            return Err(MigrationError::Body("longer than any record".to_owned()));
        }
        let mut decoder = minicbor::Decoder::new(body);
        let record: Self = decoder.decode().map_err(|error| MigrationError::Body(error.to_string()))?;
        if decoder.position() != body.len() {
            return Err(MigrationError::Body("something follows its fields".to_owned()));
        }
        record.check()?;
        Ok(record)
    }

    /// The epoch by which the ssd is owned by who has this record; `None`: it may not be opened there.
    #[must_use]
    pub fn owned_here(&self) -> Option<u64> {
        use DestinationStepV1 as Destination;
        use SourceStepV1 as Source;
        match (&self.source, &self.destination) {
            (Some(SourceV1 { held, step }), None) => match step {
                Source::Offered
                | Source::Cancelling
                | Source::Cancelled
                | Source::TakenBack
                | Source::TakenBackHeard => Some(*held),
                Source::Granted | Source::Gone | Source::Superseded => None,
            },
            (None, Some(DestinationV1 { step, .. })) => match step {
                Destination::Owned | Destination::Forced => Some(self.epoch),
                Destination::Incoming
                | Destination::Ready
                | Destination::Dropped
                | Destination::Superseded => None,
            },
            _ => None,
        }
    }

    /// Nothing of the migration is to come: another one may replace it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        use DestinationStepV1 as Destination;
        use SourceStepV1 as Source;
        match (&self.source, &self.destination) {
            (Some(source), _) => {
                !matches!(source.step, Source::Offered | Source::Granted | Source::Cancelling)
            }
            (None, Some(destination)) => {
                !matches!(destination.step, Destination::Incoming | Destination::Ready)
            }
            (None, None) => false,
        }
    }

    /// It is over, and this side has still to tell the other, or to wipe what is left.
    #[must_use]
    pub fn owes_word(&self) -> bool {
        let is_set = |mark: Option<bool>| mark.unwrap_or(false);
        match self.source.map(|source| source.step) {
            Some(SourceStepV1::Gone) => !is_set(self.closed) || !is_set(self.wiped) && !is_set(self.keep),
            Some(SourceStepV1::Superseded) => !is_set(self.closed),
            _ => false,
        }
    }

    /// What its step is called.
    #[must_use]
    pub fn step(&self) -> &'static str {
        match (&self.source, &self.destination) {
            (Some(source), _) => match source.step {
                SourceStepV1::Offered => "offered",
                SourceStepV1::Granted => "granted",
                SourceStepV1::Gone => "gone",
                SourceStepV1::Cancelling => "cancelling",
                SourceStepV1::Cancelled => "cancelled",
                SourceStepV1::TakenBack | SourceStepV1::TakenBackHeard => "taken back",
                SourceStepV1::Superseded => "superseded",
            },
            (None, Some(destination)) => match destination.step {
                DestinationStepV1::Incoming => "incoming",
                DestinationStepV1::Ready => "ready",
                DestinationStepV1::Owned => "owned",
                DestinationStepV1::Forced => "forced",
                DestinationStepV1::Dropped => "dropped",
                DestinationStepV1::Superseded => "superseded",
            },
            (None, None) => "none",
        }
    }

    fn check(&self) -> Result<(), MigrationError> {
        let fail = |what| Err(MigrationError::Contradiction(what));
        if self.peer.is_empty() || self.peer.len() > PEER_BYTES_MAX || self.peer.chars().any(char::is_control)
        {
            return fail("the other host has no name, or one that no host has");
        }
        // 0 was never pledged, and the one after the pledge must be there for force.
        if self.epoch == 0 || self.epoch == u64::MAX {
            return fail("its epoch cannot have been pledged");
        }
        if self.round == 0 {
            return fail("it has no round");
        }
        match (&self.source, &self.destination) {
            (Some(source), None) => self.check_source(source),
            (None, Some(destination)) => self.check_destination(destination),
            _ => fail("it is not of exactly one side"),
        }
    }

    fn check_source(&self, source: &SourceV1) -> Result<(), MigrationError> {
        let taken_back = matches!(source.step, SourceStepV1::TakenBack | SourceStepV1::TakenBackHeard);
        if taken_back && Some(source.held) != self.epoch.checked_add(1) {
            return Err(MigrationError::Contradiction(
                "taken back by another epoch than the one after the pledged",
            ));
        }
        if !taken_back && source.held >= self.epoch {
            return Err(MigrationError::Contradiction(
                "the pledged epoch is not above the one it was owned by",
            ));
        }
        Ok(())
    }

    fn check_destination(&self, destination: &DestinationV1) -> Result<(), MigrationError> {
        let is_sound = match (destination.step, destination.fenced_by) {
            (DestinationStepV1::Superseded, Some(epoch)) => epoch > self.epoch,
            (DestinationStepV1::Superseded, None) | (_, Some(_)) => false,
            (_, None) => true,
        };
        let why = "fenced by no epoch, by one that is not above its own, or not fenced at all";
        if is_sound { Ok(()) } else { Err(MigrationError::Contradiction(why)) }
    }
}
