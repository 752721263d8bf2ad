//! The state of an NVMe controller at rest, as it goes to another host (`docs/formats/controller-state.md`).
//!
//! It says in fields what the [region](crate::region) of a stopped controller says in words, and with it the record of the ssd. Fields are
//! tagged: added, never renumbered or reused; one that is added later has `#[cbor(default)]`.

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};
use crate::ssd::{CountersV1, SsdV1};

/// First eight bytes of a controller's state.
pub const MAGIC: [u8; 8] = *b"GODWTCTL";
/// Version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Longest state that is taken: all slots of all queues in use, and every mark that there may be.
pub const STATE_BYTES_MAX: usize = 8 << 20;
/// First eight bytes of an outline.
pub const OUTLINE_MAGIC: [u8; 8] = *b"GODWTOUT";
/// Version of outlines that this build writes, and the newest it reads.
pub const OUTLINE_VERSION: u32 = 1;
/// Longest outline that is taken.
pub const OUTLINE_BYTES_MAX: usize = 64 << 10;

/// A controller that stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ControllerV1 {
    /// Which ssd it is of.
    #[n(0)]
    pub identity: IdentityV1,
    /// The ssd's record: profile, capacity, namespaces, totals.
    #[n(1)]
    pub record: SsdV1,
    /// Properties that hold state.
    #[n(2)]
    pub registers: RegistersV1,
    /// The words of configuration space that are not zero, by ascending offset.
    #[n(3)]
    pub config: Vec<WordV1>,
    /// The rows of the MSI-X table that are not as after a reset, by ascending vector.
    #[n(4)]
    pub vectors: Vec<VectorV1>,
    /// What admin commands have set.
    #[n(5)]
    pub admin: AdminV1,
    /// The completion queues there are, by ascending identifier; 0 is the admin completion queue.
    #[n(6)]
    pub completion_queues: Vec<CompletionQueueV1>,
    /// The submission queues there are, by ascending identifier; 0 is the admin submission queue.
    #[n(7)]
    pub submission_queues: Vec<SubmissionQueueV1>,
    /// What submission queues have counted since power-on, also those that are gone.
    #[n(8)]
    #[cbor(default)]
    pub counters: Vec<QueueCountersV1>,
    /// The error log, newest first.
    #[n(9)]
    #[cbor(default)]
    pub errors: Vec<ErrorV1>,
}

/// What tells an ssd from every other, beside profile and capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct IdentityV1 {
    /// Serial number, padded with spaces.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub serial: [u8; 20],
    /// NVM subsystem NVMe qualified name.
    #[n(1)]
    pub nqn: String,
    /// UUID of the first namespace, from which others are derived.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// EUI-64 of the first namespace.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub eui64: [u8; 8],
    /// NGUID of the first namespace.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub nguid: [u8; 16],
}

/// What a state will be of, said while the controller runs: whoever is to take the state can refuse it before anything stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct OutlineV1 {
    /// Which ssd it is of.
    #[n(0)]
    pub identity: IdentityV1,
    /// Its profile's name.
    #[n(1)]
    pub profile: String,
    /// Bytes of the ssd.
    #[n(2)]
    pub capacity_bytes: u64,
}

/// With what a stream begins that may have an outline before its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begins {
    /// Too little has come to say.
    NotYet,
    /// No outline.
    Otherwise,
    /// An outline; what follows begins at this byte.
    Outline(OutlineV1, usize),
}

/// Properties that hold state (Base 2.1, 3.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct RegistersV1 {
    /// Controller Configuration.
    #[n(0)]
    pub cc: u32,
    /// Controller Status.
    #[n(1)]
    pub csts: u32,
    /// Admin Queue Attributes.
    #[n(2)]
    pub aqa: u32,
    /// Interrupt mask.
    #[n(3)]
    pub interrupt_mask: u32,
    /// Admin Submission Queue Base Address.
    #[n(4)]
    pub asq: u64,
    /// Admin Completion Queue Base Address.
    #[n(5)]
    pub acq: u64,
}

/// A word of configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct WordV1 {
    /// Where, in bytes; a multiple of 4.
    #[n(0)]
    pub offset: u16,
    /// Little-endian.
    #[n(1)]
    pub value: u32,
}

/// A row of the MSI-X table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VectorV1 {
    /// Its index.
    #[n(0)]
    pub vector: u16,
    /// Message address.
    #[n(1)]
    pub address: u64,
    /// Message data.
    #[n(2)]
    pub data: u32,
    /// Its mask bit.
    #[n(3)]
    pub masked: bool,
}

/// What admin commands have set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct AdminV1 {
    /// Features of one dword that are not at their default.
    #[n(0)]
    #[cbor(default)]
    pub features: Vec<FeatureV1>,
    /// Vectors without interrupt coalescing.
    #[n(1)]
    #[cbor(default)]
    pub coalescing_disabled: Vec<u16>,
    /// Host identifier.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub host_identifier: [u8; 16],
    /// Timestamp in milliseconds when the controller stopped; bit 63: the host has set it.
    #[n(3)]
    pub timestamp_ms: u64,
    /// Command identifiers of Asynchronous Event Requests that are parked, oldest first.
    #[n(4)]
    #[cbor(default)]
    pub parked_events: Vec<u16>,
    /// Events that were not reported, oldest first: dword 0 of the completion.
    #[n(5)]
    #[cbor(default)]
    pub pending_events: Vec<u32>,
    /// Event types that are masked until their log page is read: a bit a type.
    #[n(6)]
    pub masked_event_types: u32,
    /// Host behaviour support: bit 0 ACRE.
    #[n(7)]
    pub host_behavior: u32,
    /// Shadow doorbell page, or 0.
    #[n(8)]
    pub shadow_doorbells: u64,
    /// EventIdx page, or 0.
    #[n(9)]
    pub event_indices: u64,
    /// Changed namespaces not yet read through log page 04h: a bit an nsid.
    #[n(10)]
    pub changed_namespaces: u64,
    /// Errors reported so far.
    #[n(11)]
    pub error_count: u64,
}

/// A feature's current value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct FeatureV1 {
    /// Feature identifier.
    #[n(0)]
    pub fid: u8,
    /// Command dword 11 as it was set.
    #[n(1)]
    pub value: u32,
}

/// A completion queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct CompletionQueueV1 {
    /// Identifier.
    #[n(0)]
    pub cqid: u16,
    /// Guest address of entry 0.
    #[n(1)]
    pub base: u64,
    /// Entries.
    #[n(2)]
    pub size: u32,
    /// Interrupt vector when interrupts are enabled.
    #[n(3)]
    pub vector: Option<u16>,
    /// Next position to post at.
    #[n(4)]
    pub tail: u32,
    /// Phase tag to post with.
    #[n(5)]
    pub phase: bool,
    /// Head as last taken from the doorbell.
    #[n(6)]
    pub head: u32,
    /// The head doorbell register.
    #[n(7)]
    pub doorbell: u32,
}

/// A submission queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SubmissionQueueV1 {
    /// Identifier.
    #[n(0)]
    pub sqid: u16,
    /// Guest address of entry 0.
    #[n(1)]
    pub base: u64,
    /// Entries.
    #[n(2)]
    pub size: u32,
    /// Completion queue.
    #[n(3)]
    pub cqid: u16,
    /// Next entry to accept.
    #[n(4)]
    pub head: u32,
    /// Its accept sequence number.
    #[n(5)]
    pub seq: u32,
    /// The tail doorbell register.
    #[n(6)]
    pub doorbell: u32,
    /// Commands that were accepted and are not answered, by ascending slot.
    #[n(7)]
    #[cbor(default)]
    pub slots: Vec<SlotV1>,
}

/// A command that was accepted and is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SlotV1 {
    /// Its slot.
    #[n(0)]
    pub slot: u16,
    /// Its accept sequence number.
    #[n(1)]
    pub seq: u32,
    /// Where it stood in the submission queue, or where its completion stands in the completion queue.
    #[n(2)]
    pub position: u32,
    /// The private copy of its submission queue entry.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub command: [u8; 64],
    /// Its completion is decided and not written.
    #[n(4)]
    pub posting: Option<PostingV1>,
    /// How far a command of several steps has come (`docs/formats/controller-region.md`, "Progress").
    #[n(5)]
    #[cbor(default)]
    pub progress: u64,
}

/// A completion that is decided and not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct PostingV1 {
    /// Phase tag to post with.
    #[n(0)]
    pub phase: bool,
    /// The entry without its phase tag.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub entry: [u8; 16],
}

/// What a submission queue has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct QueueCountersV1 {
    /// Its identifier.
    #[n(0)]
    pub sqid: u16,
    /// What it counted.
    #[n(1)]
    pub counters: CountersV1,
}

/// An entry of the error log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ErrorV1 {
    /// As log page 01h has it (Base 2.1, 5.1.12.1.2).
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub entry: [u8; 64],
}

/// Why bytes are no controller's state.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// The envelope says so.
    #[error("state of a controller: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("state of a controller: its fields cannot be read: {0}")]
    Body(String),
}

impl ControllerV1 {
    /// The bytes that go to another host.
    ///
    /// # Errors
    /// [`ControllerError`] when they are more than [`STATE_BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ControllerError> {
        let body = minicbor::to_vec(self).map_err(|error| ControllerError::Body(error.to_string()))?;
        let bytes = envelope::seal(MAGIC, VERSION, &body)?;
        if bytes.len() > STATE_BYTES_MAX {
            return Err(EnvelopeError::TooLong { len_bytes: bytes.len() }.into());
        }
        Ok(bytes)
    }

    /// The state in bytes that came from anywhere.
    ///
    /// # Errors
    /// [`ControllerError`] names what is wrong: cut short, damaged, foreign, or written by a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ControllerError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        minicbor::decode(body).map_err(|error| ControllerError::Body(error.to_string()))
    }

    /// The state in a stream that may have an outline before it.
    ///
    /// # Errors
    /// As [`ControllerV1::from_bytes`], of either.
    pub fn from_stream(bytes: &[u8]) -> Result<Self, ControllerError> {
        match OutlineV1::at_head(bytes)? {
            Begins::Outline(_, at) => Self::from_bytes(bytes.get(at..).unwrap_or_default()),
            Begins::NotYet | Begins::Otherwise => Self::from_bytes(bytes),
        }
    }

    /// What is said of it beforehand.
    #[must_use]
    pub fn outline(&self) -> OutlineV1 {
        OutlineV1 {
            identity: self.identity.clone(),
            profile: self.record.profile.clone(),
            capacity_bytes: self.record.capacity_bytes,
        }
    }
}

impl OutlineV1 {
    /// The bytes that go ahead of a state.
    ///
    /// # Errors
    /// [`ControllerError`] when they are more than [`OUTLINE_BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ControllerError> {
        let body = minicbor::to_vec(self).map_err(|error| ControllerError::Body(error.to_string()))?;
        let bytes = envelope::seal(OUTLINE_MAGIC, OUTLINE_VERSION, &body)?;
        if bytes.len() > OUTLINE_BYTES_MAX {
            return Err(EnvelopeError::TooLong { len_bytes: bytes.len() }.into());
        }
        Ok(bytes)
    }

    /// Looks for an outline where a stream begins, of which at least the first [`OUTLINE_BYTES_MAX`] bytes that have come are given.
    ///
    /// # Errors
    /// [`ControllerError`] names what is wrong with one that is there: damaged, too long, or written by a newer build.
    pub fn at_head(bytes: &[u8]) -> Result<Begins, ControllerError> {
        let magic = bytes.get(..OUTLINE_MAGIC.len()).unwrap_or(bytes);
        if !OUTLINE_MAGIC.starts_with(magic) {
            return Ok(Begins::Otherwise);
        }
        if bytes.len() < envelope::HEADER_BYTES {
            return Ok(Begins::NotYet);
        }
        let len_bytes = envelope::record_bytes(bytes)?;
        if len_bytes > OUTLINE_BYTES_MAX {
            return Err(EnvelopeError::TooLong { len_bytes }.into());
        }
        let Some(record) = bytes.get(..len_bytes) else { return Ok(Begins::NotYet) };
        let (_version, body) = envelope::open(OUTLINE_MAGIC, OUTLINE_VERSION, record)?;
        let outline = minicbor::decode(body).map_err(|error| ControllerError::Body(error.to_string()))?;
        Ok(Begins::Outline(outline, len_bytes))
    }
}
