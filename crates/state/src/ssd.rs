//! The record of one ssd that outlives a daemon restart.
//!
//! Written by the engine to the ssd's state file (write a temporary, sync, rename) whenever the controller asks. Fields
//! are tagged: added, never renumbered or reused. A field added later has `#[cbor(default)]`, so that an older
//! record is read with the meaning "not known yet".

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of the file.
pub const MAGIC: [u8; 8] = *b"GODWTSSD";
/// Version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SsdV1 {
    /// Size of the flat space the namespaces lie in.
    #[n(0)]
    pub capacity_bytes: u64,
    /// Name of the profile, such as "godwit-1".
    #[n(1)]
    pub profile: String,
    /// Whether the initial namespace was laid out once. A guest may delete it; it does not come back.
    #[n(2)]
    #[cbor(default)]
    pub laid_out: bool,
    /// The namespaces that exist, by ascending identifier.
    #[n(3)]
    #[cbor(default)]
    pub namespaces: Vec<NamespaceV1>,
    /// Ranges of deleted namespaces (or of an interrupted format) that must read as zeros before anyone uses them again.
    #[n(4)]
    #[cbor(default)]
    pub to_wipe: Vec<RangeV1>,
    /// The most recent sanitize operation.
    #[n(5)]
    #[cbor(default)]
    pub sanitize: SanitizeV1,
    /// Totals for the SMART log.
    #[n(6)]
    #[cbor(default)]
    pub totals: TotalsV1,
    /// The guest shut the controller down and has not enabled it since.
    #[n(7)]
    #[cbor(default)]
    pub clean: bool,
    /// Results of device self-tests, newest first.
    #[n(8)]
    #[cbor(default)]
    pub self_tests: Vec<SelfTestV1>,
    /// Namespaces ever created; seeds their identities, so that none is ever used twice.
    #[n(9)]
    #[cbor(default)]
    pub created: u64,
    /// What tells the key of its data from any other. Since 0.2. `None`: its data is not encrypted.
    #[n(10)]
    #[cbor(default, with = "minicbor::bytes")]
    pub key_check: Option<[u8; 16]>,
}

/// A namespace at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct NamespaceV1 {
    /// Namespace identifier, from 1.
    #[n(0)]
    pub nsid: u32,
    /// First byte on the backend.
    #[n(1)]
    pub start_bytes: u64,
    /// Bytes reserved on the backend (a multiple of 1 MiB, or up to the end); a format may use less.
    #[n(2)]
    pub reserved_bytes: u64,
    /// Size in logical blocks.
    #[n(3)]
    pub blocks: u64,
    /// Logical block size as a power of two: 9 or 12.
    #[n(4)]
    pub lba_shift: u8,
    /// Attached to the controller.
    #[n(5)]
    pub attached: bool,
    /// IEEE extended unique identifier, big-endian as Identify reports it.
    #[n(6)]
    #[cbor(with = "minicbor::bytes")]
    pub eui64: [u8; 8],
    /// Namespace globally unique identifier.
    #[n(7)]
    #[cbor(with = "minicbor::bytes")]
    pub nguid: [u8; 16],
    /// Universally unique identifier.
    #[n(8)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// Runs of logical blocks marked by Write Uncorrectable.
    #[n(9)]
    #[cbor(default)]
    pub marks: Vec<MarkV1>,
    /// May be attached to several controllers (NMIC bit 0).
    #[n(10)]
    #[cbor(default)]
    pub shared: bool,
}

/// A run of bytes on the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct RangeV1 {
    /// First byte.
    #[n(0)]
    pub start_bytes: u64,
    /// Length.
    #[n(1)]
    pub len_bytes: u64,
}

/// A run of logical blocks that read as uncorrectable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct MarkV1 {
    /// First block.
    #[n(0)]
    pub start_block: u64,
    /// Number of blocks.
    #[n(1)]
    pub blocks: u64,
}

/// The most recent sanitize operation: what log page 81h needs, and how far it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SanitizeV1 {
    /// Sanitize operation status (Base 2.1, figure 291): 0 never, 1 done, 2 in progress, 3 failed, 4 done though
    /// deallocated unasked.
    #[n(0)]
    pub status: u8,
    /// Command dword 10 of the Sanitize command.
    #[n(1)]
    pub cdw10: u32,
    /// Overwrite pattern (command dword 11).
    #[n(2)]
    pub pattern: u32,
    /// Overwrite passes completed.
    #[n(3)]
    pub passes_done: u8,
    /// Bytes of the current pass completed.
    #[n(4)]
    pub done_bytes: u64,
    /// It ended with success; no other has begun since.
    #[n(5)]
    pub erased: bool,
    /// Its failure was left by Exit Failure Mode: the status stays, the restrictions ended.
    #[n(6)]
    #[cbor(default)]
    pub left: bool,
    /// Commands that changed data, by the counters when it ended: while no more are, the data is globally erased.
    /// `u64::MAX`: not known.
    #[n(7)]
    #[cbor(default)]
    pub writes_at_end: u64,
}

/// Totals for the SMART log (Base 2.1, 5.1.12.1.3), each split in what earlier regions counted (`base`) and what the live region
/// counted when the record was written (`live`): a successor that goes on with the same region counts `live` anew,
/// one that starts a fresh region adds it to `base`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct TotalsV1 {
    /// Times an ssd was opened with a fresh region.
    #[n(0)]
    pub power_cycles: u64,
    /// Of those, times the guest had not shut it down before.
    #[n(1)]
    pub unsafe_shutdowns: u64,
    /// Seconds the controller was there.
    #[n(2)]
    pub power_on_seconds: u64,
    /// Errors of the medium.
    #[n(3)]
    pub media_errors: u64,
    /// Error log entries ever made.
    #[n(4)]
    pub error_log_entries: u64,
    /// Counted by earlier regions.
    #[n(5)]
    pub base: CountersV1,
    /// Counted by the live region.
    #[n(6)]
    pub live: CountersV1,
}

/// Commands and data of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct CountersV1 {
    /// Read commands.
    #[n(0)]
    pub reads: u64,
    /// Write commands.
    #[n(1)]
    pub writes: u64,
    /// Units of 512 bytes read.
    #[n(2)]
    pub read_sectors: u64,
    /// Units of 512 bytes written.
    #[n(3)]
    pub write_sectors: u64,
    /// Commands that may have changed data and are not among `writes`. Since the first builds: 0.
    #[n(4)]
    #[cbor(default)]
    pub other_changes: u64,
}

/// A device self-test that ended (Base 2.1, 5.1.12.1.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct SelfTestV1 {
    /// Self-test code: 1 short, 2 extended.
    #[n(0)]
    pub code: u8,
    /// Result: 0 passed, 1 aborted by a command, 2 by a reset, 3 by namespace removal, 4 by format, 6 unknown failure,
    /// 7 a segment failed, 9 by sanitize.
    #[n(1)]
    pub result: u8,
    /// First segment that failed; 0 = none.
    #[n(2)]
    pub segment: u8,
    /// Power-on hours when it ended.
    #[n(3)]
    pub power_on_hours: u64,
    /// Namespace tested; `0xffff_ffff` for all, 0 for the controller alone.
    #[n(4)]
    pub nsid: u32,
    /// First block that could not be read.
    #[n(5)]
    pub failing_lba: Option<u64>,
}

/// Why bytes are not the record of an ssd.
#[derive(Debug, Error)]
pub enum SsdError {
    /// The envelope says so.
    #[error("state file of the ssd: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("state file of the ssd: its fields cannot be read: {0}")]
    Body(String),
}

impl SsdV1 {
    /// The bytes of a state file.
    ///
    /// # Errors
    /// [`SsdError`] when the record is longer than an envelope may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SsdError> {
        let body = minicbor::to_vec(self).map_err(|e| SsdError::Body(e.to_string()))?;
        Ok(envelope::seal(MAGIC, VERSION, &body)?)
    }

    /// The record in the bytes of a state file.
    ///
    /// # Errors
    /// [`SsdError`] names what is wrong: cut short, damaged, foreign, or written by a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SsdError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        minicbor::decode(body).map_err(|e| SsdError::Body(e.to_string()))
    }
}
