//! What is kept of a vhost-user client's session: all that a successor process needs to go on with it where its predecessor
//! was killed.
//!
//! Deposited with the keeper together with each answer that changed it. Descriptors stand here by their ids in the session;
//! the keeper has the descriptors themselves. Requests in flight are not here: they are in the in-flight region, whose
//! descriptor is. Fields are tagged: added, never renumbered or reused; one that is added later has `#[cbor(default)]`.

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of a vhost-user session's deposit.
pub const MAGIC: [u8; 8] = *b"GODWTVHU";
/// Version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// More regions than any session has.
const REGIONS_MAX: usize = 4096;
/// More rings than the protocol can name.
const VRINGS_MAX: usize = 256;

/// A vhost-user session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VhostUserV1 {
    /// Features in use, those of vhost-user too.
    #[n(0)]
    pub features: u64,
    /// Protocol features in use.
    #[n(1)]
    pub protocol_features: u64,
    /// The device status, as the client set it.
    #[n(2)]
    #[cbor(default)]
    pub status: u8,
    /// The write-back byte, if the client set it.
    #[n(3)]
    pub writeback: Option<bool>,
    /// The memory table.
    #[n(4)]
    #[cbor(default)]
    pub regions: Vec<RegionV1>,
    /// The rings, by index.
    #[n(5)]
    #[cbor(default)]
    pub vrings: Vec<VringV1>,
    /// The region for requests in flight.
    #[n(6)]
    pub inflight: Option<InflightV1>,
    /// The dirty log.
    #[n(7)]
    pub log: Option<AreaV1>,
    /// Id of the eventfd for changes of the log.
    #[n(8)]
    pub log_event: Option<u32>,
    /// Id of the socket for our own requests.
    #[n(9)]
    pub backend_channel: Option<u32>,
    /// The device was reset, and our own in-flight region has yet to forget all rings.
    #[n(10)]
    #[cbor(default)]
    pub forget: bool,
    /// The capacity that the client has read, in sectors of 512 bytes. Builds before this field told nobody of growth.
    #[n(11)]
    pub told_sectors: Option<u64>,
}

/// A memory region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct RegionV1 {
    /// Where the guest sees it.
    #[n(0)]
    pub guest_address: u64,
    /// Bytes.
    #[n(1)]
    pub size: u64,
    /// Where the front-end sees it.
    #[n(2)]
    pub user_address: u64,
    /// Where it starts in its file.
    #[n(3)]
    pub mmap_offset: u64,
    /// Id of its file.
    #[n(4)]
    pub fd: u32,
}

/// A ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VringV1 {
    /// Entries; 0: not yet said.
    #[n(0)]
    pub num: u32,
    /// Addresses, if said.
    #[n(1)]
    pub addr: Option<VringAddrV1>,
    /// Where it goes on, unless the in-flight region says otherwise.
    #[n(2)]
    #[cbor(default)]
    pub base: u32,
    /// The client started it.
    #[n(3)]
    #[cbor(default)]
    pub started: bool,
    /// The client enabled it.
    #[n(4)]
    #[cbor(default)]
    pub enabled: bool,
    /// Id of the eventfd that tells of new buffers.
    #[n(5)]
    pub kick: Option<u32>,
    /// Id of the eventfd that tells of used buffers.
    #[n(6)]
    pub call: Option<u32>,
    /// Id of the eventfd that tells of errors.
    #[n(7)]
    pub err: Option<u32>,
}

/// The addresses of a ring, as the front-end sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VringAddrV1 {
    /// Descriptor table or packed ring.
    #[n(0)]
    pub descriptor: u64,
    /// Used ring or the device's event suppression.
    #[n(1)]
    pub used: u64,
    /// Available ring or the driver's event suppression.
    #[n(2)]
    pub available: u64,
    /// Where the log has the used ring, if its writes are logged.
    #[n(3)]
    pub log: Option<u64>,
}

/// The region for requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct InflightV1 {
    /// Where it is.
    #[n(0)]
    pub area: AreaV1,
    /// Rings it has room for.
    #[n(1)]
    pub num_queues: u16,
    /// Entries of each.
    #[n(2)]
    pub queue_size: u16,
    /// Made by the engine, not brought by the client.
    #[n(3)]
    pub own: bool,
}

/// Part of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct AreaV1 {
    /// Id of the file.
    #[n(0)]
    pub fd: u32,
    /// First byte.
    #[n(1)]
    pub offset: u64,
    /// Bytes.
    #[n(2)]
    pub size: u64,
}

/// Why bytes are no session.
#[derive(Debug, Error)]
pub enum VhostSessionError {
    /// The envelope says so.
    #[error("deposit of a vhost-user session: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("deposit of a vhost-user session: its fields cannot be read: {0}")]
    Body(String),
}

impl VhostUserV1 {
    /// The bytes of a deposit.
    ///
    /// # Errors
    /// [`VhostSessionError`] when it is longer than an envelope may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, VhostSessionError> {
        let body = minicbor::to_vec(self).map_err(|error| VhostSessionError::Body(error.to_string()))?;
        Ok(envelope::seal(MAGIC, VERSION, &body)?)
    }

    /// The session in the bytes of a deposit.
    ///
    /// # Errors
    /// [`VhostSessionError`] names what is wrong: cut short, damaged, foreign, or written by a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VhostSessionError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        let session: Self =
            minicbor::decode(body).map_err(|error| VhostSessionError::Body(error.to_string()))?;
        if session.regions.len() > REGIONS_MAX || session.vrings.len() > VRINGS_MAX {
            return Err(VhostSessionError::Body("more regions or rings than any session has".to_owned()));
        }
        Ok(session)
    }
}
