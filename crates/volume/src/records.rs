//! Sealed records in whole blocks: how map chunks and journal records are read and written.

use minicbor::{Decode, Encode};
use state::envelope::{HEADER_BYTES, record_bytes};
use state::pool::{self, PoolRecordError};

use crate::geometry::{BLOCK, BLOCK_BYTES};
use crate::{Disk, PoolError};

/// Most bytes of a chunk or a record, its envelope included.
pub(crate) const RECORD_BYTES_MAX: u64 = 64 << 10;

/// A record that was read.
pub(crate) struct Found<T> {
    pub(crate) value: T,
    pub(crate) chain: u32,
    pub(crate) version: u32,
    /// Blocks it takes, in bytes.
    pub(crate) span_bytes: u64,
}

/// A record as it is written: whole blocks, and its checksum.
pub(crate) fn seal<T: Encode<()>>(
    magic: [u8; 8],
    version: u32,
    value: &T,
) -> Result<(Vec<u8>, u32), PoolError> {
    let (mut bytes, chain) =
        pool::seal(magic, version, value).map_err(|error| PoolError::Invalid(error.to_string()))?;
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    Ok((bytes, chain))
}

/// The record at a place, which ends before `end`. `Ok(Err(why))`: there is none that is whole.
pub(crate) fn read<T: for<'b> Decode<'b, ()>>(
    disk: &dyn Disk,
    magic: [u8; 8],
    at: u64,
    end: u64,
) -> Result<Result<Found<T>, PoolRecordError>, PoolError> {
    let fail = |source| PoolError::Drive { doing: "reading its map", source };
    let short = |why: &str| Ok(Err(PoolRecordError::Fields(why.to_owned())));
    if at.saturating_add(BLOCK_BYTES) > end {
        return short("its area is at its end");
    }
    let mut bytes = vec![0_u8; BLOCK];
    disk.read_at(at, &mut bytes).map_err(fail)?;
    if bytes.get(..8) != Some(&magic[..]) {
        return Ok(Err(state::envelope::open(magic, pool::VERSION, &bytes).err().map_or_else(
            || PoolRecordError::Fields("no record is there".to_owned()),
            PoolRecordError::Envelope,
        )));
    }
    let len = match record_bytes(bytes.get(..HEADER_BYTES).unwrap_or_default()) {
        Ok(len) if len as u64 <= RECORD_BYTES_MAX => len,
        Ok(_) => return short("it is longer than any record"),
        Err(error) => return Ok(Err(error.into())),
    };
    let span_bytes = (len as u64).next_multiple_of(BLOCK_BYTES);
    if at.saturating_add(span_bytes) > end {
        return short("it ends beyond its area");
    }
    if len > bytes.len() {
        let head = bytes.len();
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        let rest = bytes.get_mut(head..).unwrap_or_default();
        disk.read_at(at + BLOCK_BYTES, rest).map_err(fail)?;
    }
    let sealed = bytes.get(..len).unwrap_or_default();
    Ok(pool::open(magic, sealed).map(|(value, chain, version)| Found { value, chain, version, span_bytes }))
}
