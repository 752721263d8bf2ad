//! The records of a pool on its drive: headers, map chunks and journal records.
//!
//! `docs/formats/pool.md` says where they lie and in which order they are written. Each is sealed in an
//! [`crate::envelope`] of its own. Fields are tagged: added, never renumbered or reused.

use minicbor::{CborLen, Decode, Encode};

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of a header, and so of a pool's drive.
pub const HEADER_MAGIC: [u8; 8] = *b"GODWPOOL";
/// First eight bytes of a drive while a pool is made of it.
pub const HALF_MADE_MAGIC: [u8; 8] = *b"GODWHALF";
/// First eight bytes of a map chunk.
pub const CHUNK_MAGIC: [u8; 8] = *b"GODWTPMP";
/// First eight bytes of a journal record.
pub const RECORD_MAGIC: [u8; 8] = *b"GODWTPJL";
/// Version of a pool in which no volume has a passage.
pub const VERSION_PLAIN: u32 = 1;
/// Version of a pool in which some volume has a passage: a reader that skipped it would open what is owned elsewhere. The newest this build
/// reads. Headers, pieces and records of one map have one version.
pub const VERSION: u32 = 2;

/// One of the two headers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct HeaderV1 {
    /// Identity of the pool.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// Name of the pool, for people.
    #[n(1)]
    pub name: String,
    /// Counts the headers written; of two, the higher holds.
    #[n(2)]
    pub generation: u64,
    /// Size of an extent.
    #[n(3)]
    pub extent_bytes: u64,
    /// Number of extents.
    #[n(4)]
    pub extents: u32,
    /// Where extent 0 begins.
    #[n(5)]
    pub data_offset_bytes: u64,
    /// Size of each of the two map areas.
    #[n(6)]
    pub map_bytes: u64,
    /// Size of each of the two journals.
    #[n(7)]
    pub journal_bytes: u64,
    /// Which of the two map areas and journals hold: 0 or 1.
    #[n(8)]
    pub slot: u8,
    /// Generation of the map there.
    #[n(9)]
    pub map_generation: u64,
    /// Number of the last change that is in that map.
    #[n(10)]
    pub map_seq: u64,
    /// Epoch of the opening that wrote that map.
    #[n(11)]
    pub map_epoch: u64,
    /// Checksum of the map's last chunk: what the journal's first record is chained to.
    #[n(12)]
    pub map_chain: u32,
    /// The map before this one and its journal lead to this one, so either can stand in for it.
    #[n(13)]
    pub map_follows: bool,
    /// Counts the openings.
    #[n(14)]
    pub epoch: u64,
    /// Random, of the opening.
    #[n(15)]
    pub nonce: u64,
    /// Changes numbered above `fence_seq` hold only from this epoch on.
    #[n(16)]
    pub fence_epoch: u64,
    /// See `fence_epoch`.
    #[n(17)]
    pub fence_seq: u64,
    /// The host that has it. `None`: exported.
    #[n(18)]
    #[cbor(with = "minicbor::bytes")]
    pub owner: Option<[u8; 16]>,
    /// Version of the layout, as in the envelope. `None`: [`VERSION_PLAIN`].
    #[n(19)]
    pub version: Option<u32>,
}

impl HeaderV1 {
    /// Version of the layout.
    #[must_use]
    pub fn layout(&self) -> u32 {
        self.version.unwrap_or(VERSION_PLAIN)
    }
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct VolumeV1 {
    /// Number, from 1, never used twice.
    #[n(0)]
    pub id: u64,
    /// Name.
    #[n(1)]
    pub name: String,
    /// Identity.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// Size.
    #[n(3)]
    pub size_bytes: u64,
    /// Has all its extents from the start.
    #[n(4)]
    pub full: bool,
    /// Never written: a snapshot.
    #[n(5)]
    pub read_only: bool,
    /// What it was derived from.
    #[n(6)]
    pub parent: Option<u64>,
    /// The volume at the root of all it was derived from; itself if it was not.
    #[n(7)]
    pub family: u64,
    /// Ownership epoch.
    #[n(8)]
    pub epoch: u64,
    /// Its user's.
    #[n(9)]
    #[cbor(with = "minicbor::bytes")]
    pub attributes: Vec<u8>,
    /// Since version 2: the journal of its migrations, a [`crate::migration`] record.
    #[n(10)]
    #[cbor(with = "minicbor::bytes")]
    pub passage: Option<Vec<u8>>,
}

/// A run of a volume's map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
pub struct RunV1 {
    /// First logical extent.
    #[n(0)]
    pub logical: u32,
    /// How many.
    #[n(1)]
    pub count: u32,
    /// First physical extent.
    #[n(2)]
    pub physical: u32,
}

/// Some runs of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
pub struct VolumeRunsV1 {
    /// The volume.
    #[n(0)]
    pub volume: u64,
    /// Its runs, ascending.
    #[n(1)]
    pub runs: Vec<RunV1>,
}

/// Physical extents that must not be handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
pub struct UnfitV1 {
    /// The first.
    #[n(0)]
    pub first: u32,
    /// How many.
    #[n(1)]
    pub count: u32,
    /// Its wipe failed; otherwise they wait for it.
    #[n(2)]
    pub quarantined: bool,
}

/// A piece of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ChunkV1 {
    /// Identity of the pool.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// Generation of the map.
    #[n(1)]
    pub map_generation: u64,
    /// Which piece, from 0.
    #[n(2)]
    pub index: u64,
    /// Checksum of the piece before; 0 in the first.
    #[n(3)]
    pub chain: u32,
    /// Nothing follows.
    #[n(4)]
    pub last: bool,
    /// Number of the last change in the map.
    #[n(5)]
    pub seq: u64,
    /// Epoch of the opening that wrote it.
    #[n(6)]
    pub epoch: u64,
    /// Number of the next volume.
    #[n(7)]
    pub next_volume: u64,
    /// Volumes, ascending over all pieces.
    #[n(8)]
    #[cbor(default)]
    pub volumes: Vec<VolumeV1>,
    /// Runs, ascending over all pieces. Their volume stands in this piece or an earlier one.
    #[n(9)]
    #[cbor(default)]
    pub runs: Vec<VolumeRunsV1>,
    /// Extents to be wiped, and those whose wipe failed.
    #[n(10)]
    #[cbor(default)]
    pub unfit: Vec<UnfitV1>,
}

/// One change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
pub enum ChangeV1 {
    /// A volume without extents.
    #[n(0)]
    Create(#[n(0)] VolumeV1),
    /// A volume is gone; what no other refers to is to be wiped.
    #[n(1)]
    Delete(#[n(0)] u64),
    /// A volume has a new, larger size.
    #[n(2)]
    Grow(#[n(0)] u64, #[n(1)] u64),
    /// Free extents become a volume's.
    #[n(3)]
    Map(#[n(0)] u64, #[n(1)] RunV1),
    /// Logical extents (first, count) of a volume are unmapped where they are mapped.
    #[n(4)]
    Unmap(#[n(0)] u64, #[n(1)] u32, #[n(2)] u32),
    /// A new volume with the map that another (the first) has now.
    #[n(5)]
    Derive(#[n(0)] u64, #[n(1)] VolumeV1),
    /// Free extents (first, count) are to be wiped: a copy is about to be written there.
    #[n(6)]
    Reserve(#[n(0)] u32, #[n(1)] u32),
    /// A volume's logical extent (the second) moves to a reserved physical one (the third).
    #[n(7)]
    Adopt(#[n(0)] u64, #[n(1)] u32, #[n(2)] u32),
    /// Extents (first, count) read as zeros: free.
    #[n(8)]
    Wiped(#[n(0)] u32, #[n(1)] u32),
    /// The wipe of extents (first, count) failed.
    #[n(9)]
    Quarantine(#[n(0)] u32, #[n(1)] u32),
    /// Quarantined extents (first, count) are to be wiped again.
    #[n(10)]
    Retry(#[n(0)] u32, #[n(1)] u32),
    /// A volume's ownership epoch.
    #[n(11)]
    Epoch(#[n(0)] u64, #[n(1)] u64),
    /// A volume's attributes.
    #[n(12)]
    Attributes(
        #[n(0)] u64,
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
    ),
    /// Since version 2: the journal of a volume's migrations.
    #[n(13)]
    Passage(
        #[n(0)] u64,
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
    ),
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct RecordV1 {
    /// Identity of the pool.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub uuid: [u8; 16],
    /// Generation of the map it changes.
    #[n(1)]
    pub map_generation: u64,
    /// Its number, one above that of the record (or map) before.
    #[n(2)]
    pub seq: u64,
    /// Epoch of the opening that wrote it.
    #[n(3)]
    pub epoch: u64,
    /// Checksum of the record before, or of the map's last chunk.
    #[n(4)]
    pub chain: u32,
    /// What changes, in this order.
    #[n(5)]
    pub changes: Vec<ChangeV1>,
}

/// Why bytes are not such a record.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolRecordError {
    /// Not whole, or not of the kind.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Whole, but it says nothing this build understands.
    #[error("the record is whole, but its fields are not understood: {0}")]
    Fields(String),
}

/// A record sealed for the drive, with its checksum: what the next one is chained to.
///
/// # Errors
/// It is longer than any record.
pub fn seal<T: Encode<()>>(
    magic: [u8; 8],
    version: u32,
    value: &T,
) -> Result<(Vec<u8>, u32), PoolRecordError> {
    let body = minicbor::to_vec(value).map_err(|error| PoolRecordError::Fields(error.to_string()))?;
    let sealed = envelope::seal(magic, version, &body)?;
    let chain = chain_of(&sealed);
    Ok((sealed, chain))
}

/// What a record on the drive says, with its checksum and the version that stands outside it.
///
/// # Errors
/// See [`PoolRecordError`].
pub fn open<'b, T: Decode<'b, ()>>(
    magic: [u8; 8],
    bytes: &'b [u8],
) -> Result<(T, u32, u32), PoolRecordError> {
    let (version, body) = envelope::open(magic, VERSION, bytes)?;
    let value = minicbor::decode(body).map_err(|error| PoolRecordError::Fields(error.to_string()))?;
    Ok((value, chain_of(bytes), version))
}

/// The checksum in a sealed record's envelope.
fn chain_of(sealed: &[u8]) -> u32 {
    sealed.get(16..20).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}
