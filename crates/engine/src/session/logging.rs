//! The log of the pages that the device writes, for a client that copies the guest (vfio-user.rst, DMA logging; `<linux/vfio.h>`,
//! `VFIO_DEVICE_FEATURE_DMA_LOGGING_START` and its like).
//!
//! ```text
//!  every reactor --store, mark--> marks --report: told first, then cleared--> the answer
//!                                   ^                |
//!                                   +--- told <------+     a successor of this process: what the last answer said
//! ```
//! Both halves are in one file that the keeper has with the session. A report may be cut off by the end of this process and be asked for again: its
//! successor cannot know whether the last one was answered, so it marks all of it once more. In one process the next request means that the
//! last was answered, and what it said is forgotten.

use super::migration::{errno, next_made};
use super::{Wire, mapping_errno};
use frontend::vfio_user::{Errno, LoggedRange, Logging, MadeFd, ReportRange};
use memory::{Access, Iova, LogError, Mapping, MemoryMap, WriteLog};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use state::session::{LoggedRangeV1, LoggingV1};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The longest log: 2 TiB of memory. Its file has twice as much.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// What is logged for a client that names no ranges. Memory beyond it is refused then.
const WHOLE: LoggedRange = LoggedRange { iova: 0, length: LOG_BYTES_MAX * 8 * memory::LOG_PAGE_BYTES };

/// See the module.
pub(super) struct Log {
    saved: LoggingV1,
    fd: Arc<OwnedFd>,
    marks: Arc<WriteLog>,
    told: WriteLog,
    /// Bytes of each half.
    half_bytes: u64,
    /// The keeper does not have the file yet.
    is_new: bool,
}

fn refused(error: &LogError) -> Errno {
    match error {
        LogError::Ranges | LogError::TooSmall(_) => Errno::TOOBIG,
        _ => Errno::INVAL,
    }
}

fn half_bytes(ranges: &[(Iova, u64)]) -> Result<u64, Errno> {
    let bytes = WriteLog::bytes_of(ranges).map_err(|error| refused(&error))?;
    if bytes > LOG_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    // Mapped by itself.
    Ok(bytes.next_multiple_of(memory::LOG_PAGE_BYTES))
}

impl Log {
    fn new(id: u32, ranges: &[LoggedRange]) -> Result<Self, Errno> {
        let ranges = if ranges.is_empty() { &[WHOLE] } else { ranges };
        let ranges =
            ranges.iter().map(|range| LoggedRangeV1 { iova: range.iova, size: range.length }).collect();
        let saved = LoggingV1 { fd: id, ranges };
        let half_bytes = half_bytes(&of(&saved))?;
        let fd = memfd_create("godwit-written", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, 2 * half_bytes)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::over(saved, fd, true)
    }

    fn over(saved: LoggingV1, fd: OwnedFd, is_new: bool) -> Result<Self, Errno> {
        let ranges = of(&saved);
        let half_bytes = half_bytes(&ranges)?;
        let half = |offset: u64| {
            let fd = fd.try_clone().map_err(|error| errno(&error))?;
            let mapping = Mapping::new(fd, offset, half_bytes, Access::BOTH);
            WriteLog::of_ranges(mapping.map_err(|error| mapping_errno(&error))?, &ranges)
                .map_err(|error| refused(&error))
        };
        let (marks, told) = (Arc::new(half(0)?), half(half_bytes)?);
        Ok(Self { saved, fd: Arc::new(fd), marks, told, half_bytes, is_new })
    }

    /// Goes on with the log of a predecessor.
    pub(super) fn restore(saved: LoggingV1, fd: OwnedFd) -> Result<Self, Errno> {
        let log = Self::over(saved, fd, false)?;
        // Marked before it is forgotten: this process may end here, too.
        for (iova, len) in of(&log.saved) {
            log.told.take(iova, len, &mut |page| log.marks.mark(page, 1));
        }
        Ok(log)
    }

    /// The memory, logged.
    pub(super) fn on(&self, map: &MemoryMap) -> MemoryMap {
        map.with_log(Some(Arc::clone(&self.marks)))
    }

    /// The descriptor that the keeper does not have yet.
    pub(super) fn take_made(&mut self) -> Option<MadeFd> {
        std::mem::take(&mut self.is_new).then(|| MadeFd { id: self.saved.fd, fd: Arc::clone(&self.fd) })
    }

    /// Whether this memory may be mapped: a log of all memory has an end.
    pub(super) fn covers(&self, iova: u64, size: u64) -> bool {
        let whole = LoggedRangeV1 { iova: WHOLE.iova, size: WHOLE.length };
        self.saved.ranges != [whole] || iova.checked_add(size).is_some_and(|end| end <= WHOLE.length)
    }

    fn report(&self, range: &ReportRange, page: &mut dyn FnMut(u64)) -> Result<(), Errno> {
        // All of it was in an answer that has arrived.
        fallocate(
            &self.fd,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            self.half_bytes,
            self.half_bytes,
        )?;
        self.marks.take(Iova(range.iova), range.length, &mut |at| {
            self.told.mark(at, 1);
            page(at.0);
        });
        Ok(())
    }
}

fn of(saved: &LoggingV1) -> Vec<(Iova, u64)> {
    saved.ranges.iter().map(|range| (Iova(range.iova), range.size)).collect()
}

impl Logging for Wire {
    fn start(&mut self, ranges: &[LoggedRange]) -> Result<(), Errno> {
        if self.log.is_some() {
            return Err(Errno::INVAL);
        }
        let log = Log::new(next_made(&mut self.saved.made), ranges)?;
        if !self.map.regions().all(|region| log.covers(region.iova().0, region.len())) {
            return Err(Errno::TOOBIG);
        }
        self.ssd.written.begin_clients()?;
        // When this returns no I/O uses the memory without a log, so all that is answered from now on is marked.
        let adopted = self.adopt(log.on(&self.map));
        adopted.inspect_err(|_| self.ssd.written.end_clients())?;
        self.saved.logging = Some(log.saved.clone());
        self.log = Some(log);
        self.changed = true;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Errno> {
        if self.log.is_none() {
            return Err(Errno::INVAL);
        }
        self.adopt(self.map.with_log(None))?;
        self.ssd.written.end_clients();
        (self.log, self.saved.logging, self.changed) = (None, None, true);
        Ok(())
    }

    fn report(&mut self, range: &ReportRange, page: &mut dyn FnMut(u64)) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::INVAL)?.report(range, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const RANGE: ReportRange = ReportRange { iova: 0, length: 64 * PAGE, page_bytes: PAGE, words: 1 };

    fn report(log: &Log) -> Vec<u64> {
        let mut pages = Vec::new();
        log.report(&RANGE, &mut |at| pages.push(at / PAGE)).expect("a file of its own");
        pages
    }

    fn successor(log: &Log) -> Log {
        let fd = log.fd.try_clone().expect("a descriptor");
        Log::restore(log.saved.clone(), fd).expect("as it was made")
    }

    #[test]
    fn a_report_that_may_not_have_arrived_is_in_the_next_ones_of_a_successor() {
        let log = Log::new(7, &[LoggedRange { iova: 0, length: 64 * PAGE }]).expect("small");
        log.marks.mark(Iova(3 * PAGE), 2 * PAGE);
        assert_eq!(report(&log), [3, 4]);
        assert_eq!(report(&log), [0; 0], "asked again by who had the answer");
        log.marks.mark(Iova(9 * PAGE), 1);
        assert_eq!(report(&log), [9]);
        let next = successor(&log);
        next.marks.mark(Iova(11 * PAGE), 1);
        assert_eq!(report(&next), [9, 11]);
        assert_eq!(report(&next), [0; 0]);
    }

    #[test]
    fn a_successor_that_ends_while_it_takes_over_loses_no_mark() {
        let log = Log::new(7, &[LoggedRange { iova: 0, length: 64 * PAGE }]).expect("small");
        log.marks.mark(Iova(0), 8 * PAGE);
        assert_eq!(report(&log).len(), 8);
        let again = successor(&successor(&log));
        assert_eq!(report(&again).len(), 8);
    }

    #[test]
    fn a_log_has_a_largest_size_and_its_file_cannot_shrink() {
        let of = |length| Log::new(7, &[LoggedRange { iova: 0, length }]).map(|log| log.half_bytes);
        assert_eq!(of(WHOLE.length), Ok(LOG_BYTES_MAX));
        assert_eq!(of(WHOLE.length + PAGE), Err(Errno::TOOBIG));
        let log = Log::new(7, &[]).expect("sparse");
        assert!(log.covers(0, WHOLE.length) && !log.covers(PAGE, WHOLE.length));
        assert!(!log.covers(u64::MAX, 2));
        assert!(ftruncate(&log.fd, 0).is_err());
    }
}
