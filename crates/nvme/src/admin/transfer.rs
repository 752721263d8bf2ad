//! Data of admin commands: PRPs only, as PCIe demands (Base 2.1, 4.1.1: PSDT; 4.3.1), whole, through private memory.

use memory::{Fault, Iova, MemoryMap};
use spec::nvme::{Command, Status};

use super::Failure;
use crate::limits::{MDTS_BYTES, PAGE_BYTES};

/// Entries of a PRP list page.
const LIST_ENTRIES: usize = PAGE_BYTES / 8;

/// Reads the host's data.
pub(crate) fn from_host(map: &MemoryMap, command: &Command, len: usize) -> Result<Vec<u8>, Failure> {
    let mut data = vec![0; len];
    let mut rest = &mut data[..];
    for (at, len) in pieces(map, command, len)? {
        let (piece, tail) = rest.split_at_mut(len.min(rest.len()));
        map.read_bytes(at, piece).map_err(failure)?;
        rest = tail;
    }
    Ok(data)
}

/// Writes data to the host.
pub(crate) fn to_host(map: &MemoryMap, command: &Command, data: &[u8]) -> Result<(), Failure> {
    let mut rest = data;
    for (at, len) in pieces(map, command, data.len())? {
        let (piece, tail) = rest.split_at(len.min(rest.len()));
        crate::crash::point();
        map.write_bytes(at, piece).map_err(failure)?;
        rest = tail;
    }
    Ok(())
}

pub(crate) fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Remote => Failure::Remote,
        _ => Failure::Status(Status::DATA_TRANSFER_ERROR, 0xffff),
    }
}

/// The runs of guest memory, each within a page, that PRP1 and PRP2 name. Each list entry is read once.
fn pieces(map: &MemoryMap, command: &Command, len: usize) -> Result<Vec<(Iova, usize)>, Failure> {
    let (prp1, prp2) = (command.prp1, command.prp2);
    if len > MDTS_BYTES as usize {
        return Err(Status::INVALID_FIELD.into());
    }
    let offset = usize::try_from(prp1 % PAGE_BYTES as u64).unwrap_or(0);
    if !offset.is_multiple_of(4) {
        return Err(Failure::Status(Status::PRP_OFFSET_INVALID, 24));
    }
    let first = len.min(PAGE_BYTES - offset);
    let mut out = vec![(Iova(prp1), first)];
    let mut left = len - first;
    if left == 0 {
        return Ok(out);
    }
    if left <= PAGE_BYTES {
        out.push((page(prp2)?, left));
        return Ok(out);
    }
    if !prp2.is_multiple_of(8) {
        return Err(Failure::Status(Status::PRP_OFFSET_INVALID, 32));
    }
    let mut list = prp2;
    // Bounded: every list page but the first begins at its first entry, so it names 511 pages or all that is left.
    loop {
        let start = usize::try_from(list % PAGE_BYTES as u64).unwrap_or(0) / 8;
        let there = LIST_ENTRIES - start;
        let needed = left.div_ceil(PAGE_BYTES);
        let chained = needed > there;
        let count = if chained { there - 1 } else { needed };
        let mut entries = vec![0; (count + usize::from(chained)) * 8];
        map.read_bytes(Iova(list), &mut entries).map_err(failure)?;
        let mut values = entries.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_le_bytes));
        for entry in values.by_ref().take(count) {
            let run = left.min(PAGE_BYTES);
            out.push((page(entry)?, run));
            left -= run;
        }
        match values.next() {
            Some(next) => list = page(next)?.0,
            None => return Ok(out),
        }
    }
}

/// An entry that must name a whole page.
fn page(entry: u64) -> Result<Iova, Failure> {
    if entry.is_multiple_of(PAGE_BYTES as u64) {
        Ok(Iova(entry))
    } else {
        Err(Failure::Status(Status::PRP_OFFSET_INVALID, 32))
    }
}
