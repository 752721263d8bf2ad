//! The changes since the map was written, one record each, in the order they were made.
//!
//! A record is durable before its change is told to anyone, and the next is written only then. So what a crash can
//! tear is the last one alone; a record that is not whole though a later one is, was whole once and is damaged.

use state::pool::{ChangeV1, HeaderV1, RECORD_MAGIC, RecordV1, VERSION_PLAIN};

use crate::geometry::{BLOCK, BLOCK_BYTES, Geometry};
use crate::ledger::{Effects, Ledger};
use crate::load::unseen_passage;
use crate::records::{self, Found};
use crate::{Disk, PoolError};

/// Where a journal goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Number of the last change.
    pub(crate) seq: u64,
    /// Its checksum.
    pub(crate) chain: u32,
    /// Epoch of the opening that wrote it.
    pub(crate) epoch: u64,
    /// Bytes of the journal that are used.
    pub(crate) used_bytes: u64,
}

/// Which records of which area hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) at: u64,
    pub(crate) len_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) version: u32,
    pub(crate) epoch: u64,
    pub(crate) fence_epoch: u64,
    pub(crate) fence_seq: u64,
    pub(crate) until_seq: u64,
    pub(crate) start: Tail,
}

impl Span {
    /// The journal that a header names.
    pub(crate) fn of(geometry: &Geometry, header: &HeaderV1) -> Self {
        Self {
            at: geometry.journal_at(header.slot),
            len_bytes: geometry.journal_bytes,
            capacity_bytes: geometry.map_capacity_bytes(),
            uuid: header.uuid,
            generation: header.map_generation,
            version: header.layout(),
            epoch: header.epoch,
            fence_epoch: header.fence_epoch,
            fence_seq: header.fence_seq,
            until_seq: u64::MAX,
            start: Tail {
                seq: header.map_seq,
                chain: header.map_chain,
                epoch: header.map_epoch,
                used_bytes: 0,
            },
        }
    }

    /// A record that an owner wrote after it was fenced off: it never happened.
    fn fenced(&self, record: &RecordV1) -> bool {
        record.seq > self.fence_seq && record.epoch < self.fence_epoch
    }
}

/// A record as it is written, and its checksum.
pub(crate) fn seal(
    header: &HeaderV1,
    tail: &Tail,
    changes: &[ChangeV1],
) -> Result<(Vec<u8>, u32), PoolError> {
    let record = RecordV1 {
        uuid: header.uuid,
        map_generation: header.map_generation,
        seq: tail.seq + 1,
        epoch: header.epoch,
        chain: tail.chain,
        changes: changes.to_vec(),
    };
    records::seal(RECORD_MAGIC, header.layout(), &record)
}

/// Makes the changes of a journal. Returns where it goes on.
pub(crate) fn replay(disk: &dyn Disk, span: &Span, ledger: &mut Ledger) -> Result<Tail, PoolError> {
    let mut tail = span.start;
    let end = span.at + span.len_bytes;
    while tail.seq < span.until_seq {
        let read = records::read::<RecordV1>(disk, RECORD_MAGIC, span.at + tail.used_bytes, end)?;
        if let Err(state::pool::PoolRecordError::Fields(why)) = &read
            && tail.used_bytes < span.len_bytes
            && whole_but_strange(disk, span.at + tail.used_bytes, end)
        {
            return Err(PoolError::Damaged(format!("change {} of the journal: {why}", tail.seq + 1)));
        }
        let next = read.ok().filter(|found| {
            let record = &found.value;
            record.uuid == span.uuid
                && record.map_generation == span.generation
                && record.seq == tail.seq + 1
                && record.chain == tail.chain
                && !span.fenced(record)
        });
        let Some(Found { value: record, chain, version, span_bytes }) = next else {
            none_later(disk, span, &tail)?;
            return Ok(tail);
        };
        if record.epoch < tail.epoch || record.epoch > span.epoch {
            return Err(PoolError::Damaged(format!(
                "change {} is of epoch {}, between {} and {}",
                record.seq, record.epoch, tail.epoch, span.epoch
            )));
        }
        if version != span.version {
            return Err(PoolError::Damaged(format!(
                "change {} has version {version}, its pool {}",
                record.seq, span.version
            )));
        }
        for change in &record.changes {
            if let (ChangeV1::Passage(id, _), VERSION_PLAIN) = (change, span.version) {
                return Err(PoolError::Damaged(unseen_passage(*id)));
            }
            if ledger.map_bytes() + ledger.growth_bytes(change) > span.capacity_bytes {
                return Err(PoolError::Damaged(format!("change {} makes the map too large", record.seq)));
            }
            ledger.apply(change, &mut Effects::default()).map_err(|why| {
                PoolError::Damaged(format!("change {} of the journal cannot be: {why}", record.seq))
            })?;
        }
        let used_bytes = tail.used_bytes + span_bytes;
        tail = Tail { seq: record.seq, chain, epoch: record.epoch, used_bytes };
    }
    Ok(tail)
}

/// Whether a record there has a good checksum, though its fields say nothing.
fn whole_but_strange(disk: &dyn Disk, at: u64, end: u64) -> bool {
    matches!(records::read::<Opaque>(disk, RECORD_MAGIC, at, end), Ok(Ok(_)))
}

/// The body of any record.
struct Opaque;

impl<'b> minicbor::Decode<'b, ()> for Opaque {
    fn decode(_: &mut minicbor::Decoder<'b>, (): &mut ()) -> Result<Self, minicbor::decode::Error> {
        Ok(Self)
    }
}

/// Nothing whole follows the place where the journal seems to end.
fn none_later(disk: &dyn Disk, span: &Span, tail: &Tail) -> Result<(), PoolError> {
    let end = span.at + span.len_bytes;
    let mut window = vec![0_u8; 64 * BLOCK];
    let mut at = span.at + tail.used_bytes + BLOCK_BYTES;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(window.len()).min(window.len());
        let part = window.get_mut(..len).unwrap_or_default();
        disk.read_at(at, part).map_err(|source| PoolError::Drive { doing: "reading its journal", source })?;
        for (place, block) in (0_u64..).zip(part.chunks(BLOCK)) {
            if block.get(..8) != Some(&RECORD_MAGIC[..]) {
                continue;
            }
            let Ok(found) = records::read::<RecordV1>(disk, RECORD_MAGIC, at + place * BLOCK_BYTES, end)?
            else {
                continue;
            };
            let record = found.value;
            let ours = record.uuid == span.uuid && record.map_generation == span.generation;
            if ours && record.seq > tail.seq && !span.fenced(&record) {
                return Err(PoolError::Damaged(format!(
                    "change {} of the journal is lost or damaged, though change {} after it is whole",
                    tail.seq + 1,
                    record.seq
                )));
            }
        }
        at += len as u64;
    }
    Ok(())
}
