//! The log of pages that the device wrote: a bit for each 4 KiB page of the guest, in memory that outlives this process.
//!
//! ```text
//!  device --store--> guest page --mark--> bit of the page --(used index, completion, interrupt)--> the guest hears of it
//!  who copies the guest: bit taken --> page read
//! ```
//!
//! A log hangs on a [`MemoryMap`](crate::MemoryMap): all stores through that map and its windows are marked there, after the store. What a drive
//! stores on its own (the segments of a request) is marked by whoever gets the drive's completion, by
//! [`MemoryMap::mark`](crate::MemoryMap::mark), before it answers the command.
//!
//! **Who is killed in between.** A store and its mark are two steps, and the process may end between them; with a drive there are many
//! instructions between. Nothing is lost as long as two things hold, and both are the device's duty:
//! - What was stored for a command that is not answered is stored again by the successor, which executes the command again, and is marked then. So a
//!   command's marks come before its answer.
//! - The answer itself (used ring, completion queue, event index) is visible to the guest before it is marked, and is not stored again. So
//!   whoever takes up a queue marks all of the queue that a predecessor may have stored, before it does anything else.
//!
//! In both cases the mark may come late, yet it comes before the device says that it has stopped; and no page is final before that.
//!
//! **Whoever takes marks** clears a bit first and reads the page then. A store between the two is in what is read, a later one has a mark again.
#![expect(unsafe_code, reason = "atomic access to bits that others set and clear")]
// UNSAFETY: every byte touched lies inside `mapping`, which a log holds as long as it lives; offsets are checked against its length.

use crate::{Iova, Mapping, segment};
use std::sync::Arc;

/// Bytes of guest memory for each bit: the grain of vhost's log, and the smallest of vfio's.
pub const LOG_PAGE_BYTES: u64 = 4096;
const PAGE_SHIFT: u32 = LOG_PAGE_BYTES.trailing_zeros();
/// Ranges of one log. QEMU asks for at most three of a vfio device; others may ask for each of their regions.
pub const LOG_RANGES_MAX: usize = 1024;

/// Why there cannot be such a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No range, or more than [`LOG_RANGES_MAX`].
    #[error("a log of no ranges or of more than {LOG_RANGES_MAX}")]
    Ranges,
    /// Of no bytes, not of whole pages, or past the end of the address space.
    #[error("the range at {:#x} is empty, not of whole pages, or wraps", .0.0)]
    Range(Iova),
    /// Two ranges share a page.
    #[error("overlaps the range at {:#x}", .0.0)]
    Overlap(Iova),
    /// The memory has fewer bits than the ranges have pages.
    #[error("{0} bytes of log do not fit their memory")]
    TooSmall(u64),
    /// The memory cannot be written.
    #[error("the memory of the log cannot be written")]
    ReadOnly,
}

/// Pages in a row, and where their bits begin.
#[derive(Clone, Copy, Debug)]
struct Range {
    first_page: u64,
    pages: u64,
    first_byte: usize,
}

impl Range {
    fn end_page(&self) -> u64 {
        self.first_page + self.pages // checked when it was made
    }
}

/// See the module.
#[derive(Debug)]
pub struct WriteLog {
    mapping: Arc<Mapping>,
    /// By address, apart from each other.
    ranges: Vec<Range>,
}

impl WriteLog {
    /// A log of all pages from address 0 on, as far as the memory has bits: page *n* is bit *n* mod 8 of byte *n* / 8 (vhost-user.rst,
    /// "Migration"). What lies beyond is not logged: who made the memory sized it for the guest's.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`].
    pub fn flat(mapping: Arc<Mapping>) -> Result<WriteLog, LogError> {
        let pages = (mapping.len() as u64).saturating_mul(8).min(u64::MAX >> PAGE_SHIFT);
        Self::with_ranges(mapping, vec![Range { first_page: 0, pages, first_byte: 0 }])
    }

    /// A log of these ranges, whose bits follow one another in this order, each range from a byte of its own on.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn of_ranges(mapping: Arc<Mapping>, ranges: &[(Iova, u64)]) -> Result<WriteLog, LogError> {
        if WriteLog::bytes_of(ranges)? > mapping.len() as u64 {
            return Err(LogError::TooSmall(WriteLog::bytes_of(ranges)?));
        }
        let mut first_byte = 0;
        let mut sorted: Vec<Range> = Vec::with_capacity(ranges.len());
        for &(iova, len) in ranges {
            let pages = len >> PAGE_SHIFT;
            sorted.push(Range { first_page: iova.0 >> PAGE_SHIFT, pages, first_byte });
            // Fits: the sum is at most the mapping's length.
            first_byte += usize::try_from(pages.div_ceil(8)).map_err(|_| LogError::Range(iova))?;
        }
        sorted.sort_unstable_by_key(|range| range.first_page);
        let overlap = sorted.windows(2).find(|pair| pair[0].end_page() > pair[1].first_page);
        if let Some(pair) = overlap {
            return Err(LogError::Overlap(Iova(pair[1].first_page << PAGE_SHIFT)));
        }
        Self::with_ranges(mapping, sorted)
    }

    fn with_ranges(mapping: Arc<Mapping>, ranges: Vec<Range>) -> Result<WriteLog, LogError> {
        if !mapping.access().write {
            return Err(LogError::ReadOnly);
        }
        Ok(WriteLog { mapping, ranges })
    }

    /// Bytes of memory that a log of these ranges needs.
    ///
    /// # Errors
    /// [`LogError::Ranges`], [`LogError::Range`].
    pub fn bytes_of(ranges: &[(Iova, u64)]) -> Result<u64, LogError> {
        if ranges.is_empty() || ranges.len() > LOG_RANGES_MAX {
            return Err(LogError::Ranges);
        }
        ranges.iter().try_fold(0_u64, |sum, &(iova, len)| {
            let whole = len > 0 && (iova.0 | len).is_multiple_of(LOG_PAGE_BYTES);
            // The last byte has an address.
            let inside = len.checked_sub(1).and_then(|more| iova.0.checked_add(more)).is_some();
            let pages = len >> PAGE_SHIFT;
            sum.checked_add(pages.div_ceil(8)).filter(|_| whole && inside).ok_or(LogError::Range(iova))
        })
    }

    /// Was the file behind the log shrunk? Then what is marked goes nowhere.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }

    /// The memory it is in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Marks the pages of what was stored. Pages outside of the log are ignored. Others may mark at the same time.
    pub fn mark(&self, iova: Iova, len: u64) {
        self.bytes(iova, len, &mut |byte, bits, _| {
            // SAFETY: `bytes` gives addresses inside the mapping, which is writable (checked when the log was made).
            unsafe { segment::or_u8(byte, bits) };
        });
    }

    /// Clears the marks of these pages and says which there were, by their addresses, ascending within each range. A page is told
    /// *before* its mark is cleared: what `marked` keeps where a successor finds it is not lost with this process. Each page may be read when this has returned.
    pub fn take(&self, iova: Iova, len: u64, marked: &mut impl FnMut(Iova)) {
        self.bytes(iova, len, &mut |byte, bits, first_page| {
            // SAFETY: as in `mark`.
            let set = unsafe { segment::load_u8(byte) } & bits;
            runs_of(set, &mut |first, pages| {
                (first..first + pages).for_each(|bit| marked(Iova((first_page + bit) << PAGE_SHIFT)));
            });
            if set != 0 {
                // SAFETY: as above.
                unsafe { segment::and_u8(byte, !set) };
            }
        });
    }

    /// Which of these pages are marked, as runs of pages in a row: the address of a run's first page, and how many. The marks stay.
    pub fn runs(&self, iova: Iova, len: u64, run: &mut impl FnMut(Iova, u64)) {
        let mut open = (0, 0);
        let mut end = |(first, pages): (u64, u64)| {
            if pages > 0 {
                run(Iova(first << PAGE_SHIFT), pages);
            }
        };
        self.bytes(iova, len, &mut |byte, bits, first_page| {
            // SAFETY: as in `mark`.
            let set = unsafe { segment::load_u8(byte) } & bits;
            runs_of(set, &mut |first, pages| {
                if first_page + first == open.0 + open.1 {
                    open.1 += pages;
                } else {
                    end(std::mem::replace(&mut open, (first_page + first, pages)));
                }
            });
        });
        end(open);
    }

    /// The bytes that hold the bits of a range: address, which of the byte's bits, and the page of its lowest bit.
    #[inline]
    fn bytes(&self, iova: Iova, len: u64, visit: &mut impl FnMut(*mut u8, u8, u64)) {
        let Some(more) = len.checked_sub(1) else { return };
        let (first, last) = (iova.0 >> PAGE_SHIFT, iova.0.saturating_add(more) >> PAGE_SHIFT);
        let from = self.ranges.partition_point(|range| range.end_page() <= first);
        for range in self.ranges.get(from..).unwrap_or(&[]) {
            if range.first_page > last {
                return;
            }
            let mut page = first.max(range.first_page) - range.first_page;
            let end = last.min(range.end_page() - 1) - range.first_page;
            while page <= end {
                let (bit, in_byte) = (page & 7, (end - page).min(7 - (page & 7)));
                let bits = (0xff_u8 >> (7 - in_byte)) << bit;
                let Some(byte) = self.byte(range.first_byte, page >> 3) else { return };
                visit(byte, bits, range.first_page + (page - bit));
                page += in_byte + 1;
            }
        }
    }

    #[inline]
    fn byte(&self, first_byte: usize, offset: u64) -> Option<*mut u8> {
        let at =
            usize::try_from(offset).ok()?.checked_add(first_byte).filter(|at| *at < self.mapping.len())?;
        Some(core::ptr::with_exposed_provenance_mut(self.mapping.host() + at))
    }
}

/// Runs of bits that are set: the first bit's number, and how many.
fn runs_of(set: u8, run: &mut impl FnMut(u64, u64)) {
    let mut left = set;
    while left != 0 {
        let first = left.trailing_zeros();
        let bits = (left >> first).trailing_ones();
        run(first.into(), bits.into());
        left &= u8::MAX.checked_shl(first + bits).unwrap_or(0);
    }
}
