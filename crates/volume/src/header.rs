//! The two headers: who has the pool, and which map holds.

use state::envelope::EnvelopeError;
use state::pool::{HALF_MADE_MAGIC, HEADER_MAGIC, HeaderV1, PoolRecordError, VERSION, open, seal};

use crate::geometry::{BLOCK, BLOCK_BYTES, HEADERS_AT};
use crate::{Disk, PoolError};

/// What became of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// Whole.
    Whole(Box<HeaderV1>),
    /// Something else is there.
    Absent,
    /// A header of a newer build.
    Newer(u32),
    /// A header once, or unreadable: why.
    Bad(String),
}

/// Both headers as they are.
pub(crate) fn read(disk: &dyn Disk) -> [Copy; 2] {
    HEADERS_AT.map(|at| read_copy(disk, at))
}

fn read_copy(disk: &dyn Disk, at: u64) -> Copy {
    let mut block = [0_u8; BLOCK];
    if let Err(error) = disk.read_at(at, &mut block) {
        return Copy::Bad(format!("it cannot be read: {error}"));
    }
    let len = state::envelope::record_bytes(&block).unwrap_or(block.len()).min(block.len());
    match open::<HeaderV1>(HEADER_MAGIC, &block[..len]) {
        Ok((header, _, version)) if header.layout() == version => Copy::Whole(Box::new(header)),
        Ok((header, _, version)) => {
            Copy::Bad(format!("it says version {} and is sealed as version {version}", header.layout()))
        }
        Err(PoolRecordError::Envelope(EnvelopeError::Magic { .. })) => Copy::Absent,
        Err(PoolRecordError::Envelope(EnvelopeError::Newer { found, .. })) => Copy::Newer(found),
        Err(error) => Copy::Bad(error.to_string()),
    }
}

/// The header that holds.
pub(crate) fn newest(copies: &[Copy; 2]) -> Result<HeaderV1, PoolError> {
    match copies {
        [Copy::Newer(found), _] | [_, Copy::Newer(found)] => {
            Err(PoolError::Newer { found: *found, newest: VERSION })
        }
        [Copy::Whole(first), Copy::Whole(second)] if first.uuid != second.uuid => {
            Err(PoolError::Damaged("its two headers are of different pools".to_owned()))
        }
        // Two openings at one moment may each have written one: both then hold to the first, so one of them wins.
        [Copy::Whole(first), Copy::Whole(second)] if second.generation > first.generation => {
            Ok((**second).clone())
        }
        [Copy::Whole(first), _] => Ok((**first).clone()),
        [_, Copy::Whole(second)] => Ok((**second).clone()),
        [Copy::Bad(why), _] | [_, Copy::Bad(why)] => {
            Err(PoolError::Damaged(format!("neither of its headers is whole: {why}")))
        }
        [Copy::Absent, Copy::Absent] => Err(PoolError::NoPool),
    }
}

/// Writes both, one durable before the other is touched: at every moment one is whole.
pub(crate) fn write(disk: &dyn Disk, header: &HeaderV1) -> Result<(), PoolError> {
    let block = block_of(header)?;
    HEADERS_AT.into_iter().try_for_each(|at| write_copy(disk, at, &block))
}

fn write_copy(disk: &dyn Disk, at: u64, block: &[u8]) -> Result<(), PoolError> {
    disk.write_at(at, block).map_err(|source| PoolError::Drive { doing: "writing its header", source })?;
    disk.flush().map_err(|source| PoolError::Drive { doing: "making its header durable", source })
}

/// A header as it stands on the drive.
pub(crate) fn block_of(header: &HeaderV1) -> Result<Vec<u8>, PoolError> {
    let (mut block, _) =
        seal(HEADER_MAGIC, header.layout(), header).map_err(|error| PoolError::Invalid(error.to_string()))?;
    if block.len() as u64 > BLOCK_BYTES {
        return Err(PoolError::Invalid("the header does not fit its block".to_owned()));
    }
    block.resize(BLOCK, 0);
    Ok(block)
}

/// As [`write`] over the mark of [`erase`], which goes last: until there is a whole header it says what this is.
pub(crate) fn write_first(disk: &dyn Disk, header: &HeaderV1) -> Result<(), PoolError> {
    let block = block_of(header)?;
    HEADERS_AT.into_iter().rev().try_for_each(|at| write_copy(disk, at, &block))
}

/// Takes both away, durably, and says in the place of the first that a pool is being made.
pub(crate) fn erase(disk: &dyn Disk) -> Result<(), PoolError> {
    let doing = "erasing old headers";
    let mut mark = [0_u8; BLOCK];
    mark[..HALF_MADE_MAGIC.len()].copy_from_slice(&HALF_MADE_MAGIC);
    for (at, block) in HEADERS_AT.into_iter().zip([mark, [0; BLOCK]]) {
        disk.write_at(at, &block).map_err(|source| PoolError::Drive { doing, source })?;
        disk.flush().map_err(|source| PoolError::Drive { doing, source })?;
    }
    Ok(())
}
