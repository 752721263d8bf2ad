//! Physical region pages (Base 2.1, 4.3.1). The memory page is 4 KiB: CC.MPS can be nothing else.

use memory::{Iova, MemoryMap};
use spec::nvme::Status;
use zerocopy::IntoBytes;

use super::{Refused, Visit};
use crate::limits::PAGE_BYTES;

const ENTRY_BYTES: usize = 8;
const LIST_ENTRIES: usize = PAGE_BYTES / ENTRY_BYTES;
const OFFSET_MASK: u64 = PAGE_BYTES as u64 - 1;

/// Private memory for one page of a PRP list.
#[derive(Debug)]
pub struct PrpList(Box<[u64; LIST_ENTRIES]>);

impl Default for PrpList {
    fn default() -> Self {
        Self(Box::new([0; LIST_ENTRIES]))
    }
}

#[inline]
fn offset_of(entry: u64) -> usize {
    // Masked to twelve bits.
    usize::try_from(entry & OFFSET_MASK).unwrap_or(0)
}

#[inline]
pub(super) fn walk(
    prp1: u64,
    prp2: u64,
    len_bytes: usize,
    map: &MemoryMap,
    list: &mut PrpList,
    visit: &mut impl Visit,
) -> Result<(), Refused> {
    if prp1 == 0 {
        return Err(Status::INVALID_FIELD.into());
    }
    if prp1 & 3 != 0 {
        return Err(Status::PRP_OFFSET_INVALID.into());
    }
    let first = len_bytes.min(PAGE_BYTES - offset_of(prp1));
    visit.memory(map, prp1, first)?;
    let rest = len_bytes - first;
    if rest == 0 {
        return Ok(());
    }
    if prp2 == 0 {
        return Err(Status::INVALID_FIELD.into());
    }
    if rest <= PAGE_BYTES {
        if prp2 & OFFSET_MASK != 0 {
            return Err(Status::PRP_OFFSET_INVALID.into());
        }
        return visit.memory(map, prp2, rest);
    }
    walk_list(prp2, rest, map, list, visit)
}

/// The list may start in the middle of a page, at a qword; the lists it is chained to start pages. The last entry of a page
/// is the pointer to the next list when more entries are needed than the page has left. Each turn of the loop either
/// ends the walk or takes at least one data entry, except a first page with room for only the chain pointer.
fn walk_list(
    mut pointer: u64,
    mut rest: usize,
    map: &MemoryMap,
    list: &mut PrpList,
    visit: &mut impl Visit,
) -> Result<(), Refused> {
    if pointer & 7 != 0 {
        return Err(Status::PRP_OFFSET_INVALID.into());
    }
    loop {
        let needed = rest.div_ceil(PAGE_BYTES);
        let there = (PAGE_BYTES - offset_of(pointer)) / ENTRY_BYTES;
        let (count, chained) = if needed > there { (there, true) } else { (needed, false) };
        let Some(entries) = list.0.get_mut(..count) else { return Err(Status::INTERNAL_ERROR.into()) };
        map.read_bytes(Iova(pointer), entries.as_mut_bytes())?;
        let (chain, pages) = if chained { entries.split_last_mut().unzip() } else { (None, Some(entries)) };
        for &mut page in pages.into_iter().flatten() {
            check_page(page)?;
            let len = rest.min(PAGE_BYTES);
            visit.memory(map, page, len)?;
            rest -= len;
        }
        let Some(&mut next) = chain else { return Ok(()) };
        check_page(next)?;
        pointer = next;
    }
}

#[inline]
fn check_page(entry: u64) -> Result<(), Refused> {
    if entry == 0 {
        return Err(Status::INVALID_FIELD.into());
    }
    if entry & OFFSET_MASK != 0 {
        return Err(Status::PRP_OFFSET_INVALID.into());
    }
    Ok(())
}
