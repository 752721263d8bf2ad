//! What is kept of a client's session: all that a successor process needs to go on with it where its predecessor was killed.
//!
//! Deposited with the keeper together with each answer that changed it (`docs/formats/link.md`). Descriptors stand here by
//! their ids in the session; the keeper has the descriptors themselves. Fields are tagged: added, never renumbered or reused; one
//! that is added later has `#[cbor(default)]`.

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of a vfio-user session's deposit.
pub const MAGIC: [u8; 8] = *b"GODWTVFU";
/// The newest version this build reads. Version 2: the device is not running. Version 3: what it writes is logged. All others are written as
/// version 1, which a build from before can go on from; from these it must not, since it would let the device run, or write without a mark.
pub const VERSION: u32 = 3;
/// More maps than any client may have.
const MAPS_MAX: usize = 65_536;
/// More ranges than any log may have.
const LOGGED_MAX: usize = 1024;
/// More vectors than any device has.
const VECTORS_MAX: usize = 2048;

/// A vfio-user session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VfioUserV1 {
    /// What was agreed on; `None`: nothing yet.
    #[n(0)]
    pub negotiated: Option<NegotiatedV1>,
    /// The memory the client mapped, by ascending address.
    #[n(1)]
    #[cbor(default)]
    pub maps: Vec<DmaMapV1>,
    /// Id of the eventfd of INTx.
    #[n(2)]
    pub intx: Option<u32>,
    /// The client masked INTx.
    #[n(3)]
    #[cbor(default)]
    pub intx_masked: bool,
    /// MSI-X by vector: id of the eventfd + 1, or 0. Empty: MSI-X is off.
    #[n(4)]
    #[cbor(default)]
    pub msix: Vec<u32>,
    /// The migration state, unless it is RUNNING. Since version 2.
    #[n(5)]
    #[cbor(default)]
    pub migration: Option<MigrationV1>,
    /// Descriptors that the device has made in this session. `None`: none yet.
    #[n(6)]
    #[cbor(default)]
    pub made: Option<u32>,
    /// What the device writes into memory is logged. Since version 3.
    #[n(7)]
    #[cbor(default)]
    pub logging: Option<LoggingV1>,
    /// The migration state is PRE_COPY, and this was or is to be read. A build that does not know of it says RUNNING, and the client's next read is
    /// refused: one try to migrate fails, which is less than an upgrade that is.
    #[n(8)]
    #[cbor(default)]
    pub ahead: Option<AheadV1>,
}

/// What can be read of a device that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct AheadV1 {
    /// Id of the file with it.
    #[n(0)]
    pub fd: u32,
    /// Bytes in it.
    #[n(1)]
    pub len_bytes: u64,
    /// Bytes of them that were read.
    #[n(2)]
    pub read_bytes: u64,
}

/// A log of the pages that the device writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct LoggingV1 {
    /// Id of the file with the marks.
    #[n(0)]
    pub fd: u32,
    /// What is logged, in the order of their marks in the file. They lie apart.
    #[n(1)]
    pub ranges: Vec<LoggedRangeV1>,
}

/// Pages in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct LoggedRangeV1 {
    /// First address.
    #[n(0)]
    pub iova: u64,
    /// Bytes.
    #[n(1)]
    pub size: u64,
}

/// A device that is not running. Its region, and this, are all there is of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct MigrationV1 {
    /// As `enum vfio_device_mig_state` has it: 0 ERROR, 1 STOP, 3 STOP_COPY, 4 RESUMING.
    #[n(0)]
    pub state: u32,
    /// Id of the file with the state that is read or written.
    #[n(1)]
    pub fd: Option<u32>,
    /// Bytes of the state in it.
    #[n(2)]
    pub len_bytes: u64,
    /// Bytes of them that were read.
    #[n(3)]
    pub read_bytes: u64,
}

/// What the version exchange came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct NegotiatedV1 {
    /// The client takes a descriptor with a reply.
    #[n(0)]
    pub client_takes_fds: bool,
    /// The most data of one DMA_READ or DMA_WRITE.
    #[n(1)]
    pub data_bytes_max: u64,
    /// REGION_WRITE_MULTI may come.
    #[n(2)]
    pub write_multiple: bool,
}

/// Memory that the client mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct DmaMapV1 {
    /// First address, as the device names it.
    #[n(0)]
    pub iova: u64,
    /// Bytes.
    #[n(1)]
    pub size: u64,
    /// The device may read it.
    #[n(2)]
    pub read: bool,
    /// The device may write it.
    #[n(3)]
    pub write: bool,
    /// Id of the file; `None`: reachable by messages only.
    #[n(4)]
    pub fd: Option<u32>,
    /// Where in the file.
    #[n(5)]
    #[cbor(default)]
    pub offset: u64,
}

/// Why bytes are no session.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The envelope says so.
    #[error("deposit of a session: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("deposit of a session: its fields cannot be read: {0}")]
    Body(String),
}

impl VfioUserV1 {
    /// The bytes of a deposit.
    ///
    /// # Errors
    /// [`SessionError`] when it is longer than an envelope may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SessionError> {
        let body = minicbor::to_vec(self).map_err(|error| SessionError::Body(error.to_string()))?;
        let version = match (&self.logging, &self.migration) {
            (Some(_), _) => VERSION,
            (None, Some(_)) => 2,
            (None, None) => 1,
        };
        Ok(envelope::seal(MAGIC, version, &body)?)
    }

    /// The session in the bytes of a deposit.
    ///
    /// # Errors
    /// [`SessionError`] names what is wrong: cut short, damaged, foreign, or written by a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SessionError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        let session: Self = minicbor::decode(body).map_err(|error| SessionError::Body(error.to_string()))?;
        let logged = session.logging.as_ref().map_or(0, |logging| logging.ranges.len());
        if session.maps.len() > MAPS_MAX || session.msix.len() > VECTORS_MAX || logged > LOGGED_MAX {
            return Err(SessionError::Body(
                "more maps, vectors or logged ranges than any session has".to_owned(),
            ));
        }
        Ok(session)
    }

    /// Ids of all descriptors it refers to, each once.
    #[must_use]
    pub fn descriptors(&self) -> Vec<u32> {
        let files = self.maps.iter().filter_map(|map| map.fd);
        let vectors = self.msix.iter().filter_map(|id| id.checked_sub(1));
        let state = self.migration.and_then(|migration| migration.fd);
        let log = self.logging.as_ref().map(|logging| logging.fd);
        let ahead = self.ahead.map(|ahead| ahead.fd);
        let device = state.into_iter().chain(log).chain(ahead);
        let mut ids: Vec<u32> = files.chain(self.intx).chain(vectors).chain(device).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
