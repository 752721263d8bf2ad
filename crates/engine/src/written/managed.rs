//! The log of written pages of a controller whose host's memory a management controller tracks (NVMe Base 2.1, 5.1.26 and 5.1.27.1.2): which ranges of it
//! are told, at which grain, and what was told last.
//!
//! ```text
//!  marks --harvest: told first, then cleared--> report --> the host
//!    ^                 |
//!    +---- told <------+    heard: the last report has arrived, and is forgotten. Otherwise it is marked once more
//! ```
//! All of it is in the file that the keeper has. So a successor knows the ranges and the marks, and its management controller, which has heard of
//! no report, says the last one again.

use super::{
    ARMED as MOVERS, Armed, COVERED_BYTES, LOG_BYTES, LogFile, MARK_WORDS, MARKS_AT, Whose, Written,
};
use super::{adopt_anew, begin};
use crate::message::Address;
use crate::session::mapping_errno;
use crate::ssd::Ssd;
use memory::{Access, Iova, LOG_PAGE_BYTES, Mapping, SharedRegion, WriteLog};
use nvme::management::{Memory, Trouble};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// In the file's first word.
pub(super) const ARMED: u64 = 2;
const _: () = assert!(ARMED != MOVERS);

/// Ranges of one controller: those that the file's first page has room for.
pub(crate) const RANGES_MAX: usize = 255;
const TOLD_AT: u64 = MARKS_AT + LOG_BYTES;

/// A log, and what was told of it last.
#[derive(zerocopy::FromBytes)]
#[repr(C, align(4096))]
struct TrackedFile {
    log: LogFile,
    told: [AtomicU64; MARK_WORDS],
}

const _: () = assert!(size_of::<TrackedFile>() as u64 == TOLD_AT + LOG_BYTES);

/// See the module.
pub(crate) struct Tracking {
    granularity: u8,
    /// By address and apart from each other.
    ranges: Vec<(u64, u64)>,
    /// As many as the host named.
    count: u16,
    fd: OwnedFd,
    told: WriteLog,
    /// Where the next harvest begins: one that has not room for all goes on where the last one ended. One harvest at a time.
    next: Mutex<u64>,
}

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Harvest {
    pub(crate) granularity: u8,
    /// First address, and grains.
    pub(crate) runs: Vec<(u64, u32)>,
    pub(crate) more: bool,
}

/// Runs of grains as they are found.
struct Grains {
    shift: u32,
    most: usize,
    runs: Vec<(u64, u64)>,
    more: bool,
}

impl Grains {
    fn add(&mut self, at: Iova, pages: u64) {
        let end = (at.0 + (pages * LOG_PAGE_BYTES - 1)) >> self.shift;
        let first = at.0 >> self.shift;
        let is_full = self.runs.len() >= self.most;
        match self.runs.last_mut() {
            // The same grain may have several runs of pages.
            Some((start, len)) if *start <= first && first <= *start + *len => {
                *len = (*len).max(end + 1 - *start);
            }
            _ if is_full => self.more = true,
            _ => self.runs.push((first, end + 1 - first)),
        }
    }
}

/// Ascending, and those that touch or have pages in common as one.
fn merged(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut all: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (at, len) in sorted {
        match all.last_mut() {
            Some((start, whole)) if at - *start <= *whole => {
                *whole = (*whole).max((at - *start).saturating_add(len));
            }
            _ => all.push((at, len)),
        }
    }
    all
}

/// Whether all pages of a range are, at least in part, in one of these regions, which have no bytes in common.
fn is_within(range: (u64, u64), regions: &[(Iova, u64)]) -> bool {
    let page = |at: u64| at / LOG_PAGE_BYTES;
    let (mut next, last) = (page(range.0), page(range.0 + (range.1 - 1)));
    let mut regions: Vec<_> = regions.iter().filter(|(_, len)| *len > 0).collect();
    regions.sort_unstable_by_key(|(iova, _)| iova.0);
    for (iova, len) in regions {
        let (first, end) = (page(iova.0), page(iova.0.saturating_add(len - 1)));
        if first <= next && next <= end {
            if end >= last {
                return true;
            }
            next = end + 1;
        }
    }
    false
}

impl Tracking {
    /// Writes down what is tracked, in a new file.
    fn new(file: &SharedRegion<LogFile>, memory: &Memory) -> Result<Self, Errno> {
        let ranges = merged(&memory.ranges);
        let counts = [memory.ranges.len(), ranges.len()].map(|len| u16::try_from(len).unwrap_or(u16::MAX));
        let [count, kept] = counts.map(u64::from);
        let words = ranges.iter().flat_map(|(at, len)| [*at, *len]);
        let words = [u64::from(memory.granularity) | count << 16 | kept << 32].into_iter().chain(words);
        file.tracked.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
        Self::over(file, memory.granularity, counts[0], ranges)
    }

    /// As a predecessor wrote it down.
    pub(super) fn found(file: &SharedRegion<LogFile>) -> Result<Self, Errno> {
        let words: Vec<u64> = file.tracked.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let (head, words) = words.split_first().ok_or(Errno::INVAL)?;
        let [granularity, _, count, _, kept, ..] = head.to_le_bytes();
        let ranges = words.chunks_exact(2).take(kept.into()).map(|pair| (pair[0], pair[1])).collect();
        Self::over(file, granularity, count.into(), ranges)
    }

    fn over(
        file: &SharedRegion<LogFile>,
        granularity: u8,
        count: u16,
        ranges: Vec<(u64, u64)>,
    ) -> Result<Self, Errno> {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let fd = file.fd().ok_or(Errno::BADF)?.try_clone_to_owned().map_err(errno)?;
        // It is large enough, and stays so.
        SharedRegion::<TrackedFile>::from_fd(fd.try_clone().map_err(errno)?).map_err(errno)?;
        let told = Mapping::new(fd.try_clone().map_err(errno)?, TOLD_AT, LOG_BYTES, Access::BOTH);
        let told = told.map_err(|error| mapping_errno(&error))?;
        let told = WriteLog::of_ranges(told, &[(Iova(0), COVERED_BYTES)]).map_err(|_| Errno::INVAL)?;
        Ok(Self { granularity, ranges, count, fd, told, next: Mutex::default() })
    }

    fn is_of(&self, memory: &Memory) -> bool {
        self.granularity == memory.granularity && self.ranges == merged(&memory.ranges)
    }

    /// What was told last has arrived, or is to be told again.
    fn settle(&self, marks: &WriteLog, heard: bool) -> Result<(), Errno> {
        if heard {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            return fallocate(&self.fd, flags, TOLD_AT, LOG_BYTES);
        }
        for (at, len) in &self.ranges {
            self.told.take(Iova(*at), *len, &mut |page| marks.mark(page, 1));
        }
        Ok(())
    }

    fn harvest(&self, marks: &WriteLog, most: usize, heard: bool) -> Result<Harvest, Errno> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(marks, heard)?;
        let shift = LOG_PAGE_BYTES.trailing_zeros() + u32::from(self.granularity);
        let mut grains = Grains { shift, most, runs: Vec::new(), more: false };
        for (from, to) in [(*next, u64::MAX), (0, *next)] {
            for (at, len) in &self.ranges {
                let (first, end) = ((*at).max(from), (at + len).min(to));
                marks.runs(Iova(first), end.saturating_sub(first), &mut |at, pages| grains.add(at, pages));
            }
        }
        let Grains { runs, more, .. } = grains;
        for (first, grains) in &runs {
            marks.take(Iova(first << shift), grains << shift, &mut |page| self.told.mark(page, 1));
        }
        *next = runs.last().filter(|_| more).map_or(0, |(first, grains)| (first + grains) << shift);
        let runs = runs.into_iter().map(|(first, grains)| {
            // The log is not as long.
            (first << shift, u32::try_from(grains).unwrap_or(u32::MAX))
        });
        Ok(Harvest { granularity: self.granularity, runs: runs.collect(), more })
    }
}

impl Written {
    /// Memory that is tracked, as the host named it: so many ranges.
    pub(crate) fn tracked_ranges(&self) -> usize {
        match &self.state().whose {
            Whose::Managers(_, tracking) => tracking.count.into(),
            _ => 0,
        }
    }

    /// The log is for a management controller, and is to [`begin`] with this file.
    fn arm_managed(&self, name: &str, memory: &Memory) -> Result<OwnedFd, Trouble> {
        let mut state = self.state();
        match &state.whose {
            Whose::Nobodys => {}
            Whose::Managers(_, tracking) => return Err(Trouble::Tracked { same: tracking.is_of(memory) }),
            Whose::Clients | Whose::Engines(_) => return Err(Trouble::NoRoom { ranges: 0 }),
        }
        if !memory.ranges.iter().all(|range| is_within(*range, &state.reached)) {
            return Err(Trouble::NotMemory);
        }
        let covered = memory.ranges.iter().filter(|(at, len)| at + (len - 1) < COVERED_BYTES).count();
        if covered.min(RANGES_MAX) < memory.ranges.len() {
            let ranges = u32::try_from(covered.min(RANGES_MAX)).unwrap_or(0);
            return Err(Trouble::NoRoom { ranges });
        }
        let make = || -> anyhow::Result<(Whose, OwnedFd)> {
            let file = SharedRegion::<TrackedFile>::memfd(&format!("godwit-{name}-written"))?;
            let fd = file.fd().ok_or(Errno::BADF)?.try_clone_to_owned()?;
            let file = SharedRegion::<LogFile>::from_fd(fd.try_clone()?)?;
            let tracking = Tracking::new(&file, memory)?;
            file.armed.store(ARMED, Ordering::Release);
            Ok((Whose::Managers(Armed::over(file)?, Arc::new(tracking)), fd))
        };
        let (whose, fd) = make().map_err(|error| {
            tracing::error!(ssd = name, error = format!("{error:#}"), "its host's memory cannot be tracked");
            Trouble::Failed
        })?;
        state.whose = whose;
        Ok(fd)
    }

    /// It is tracked no more, when its home has adopted its memory anew. `false`: it was not.
    pub(crate) fn disarm_managed(&self) -> bool {
        let mut state = self.state();
        let Whose::Managers(armed, _) = &state.whose else { return false };
        armed.file.armed.store(0, Ordering::Release);
        state.whose = Whose::Nobodys;
        true
    }

    /// What was written of what is tracked. `None`: nothing is.
    pub(crate) fn harvest(&self, most: usize, heard: bool) -> Option<Result<Harvest, Errno>> {
        let (marks, tracking) = match &self.state().whose {
            Whose::Managers(armed, tracking) => (Arc::clone(&armed.log), Arc::clone(tracking)),
            _ => return None,
        };
        Some(tracking.harvest(&marks, most, heard))
    }
}

/// What an ssd's host's memory is to be tracked in, which takes effect with [`Arming::begin`].
pub(crate) struct Arming(OwnedFd);

impl Arming {
    /// # Errors
    /// It is logged already; the memory is not there, or is more than can be tracked.
    pub(crate) fn new(ssd: &Ssd, memory: &Memory) -> Result<Self, Trouble> {
        ssd.written.arm_managed(&ssd.name, memory).map(Self)
    }

    /// Every write into it that is answered after this returned is told.
    ///
    /// # Errors
    /// The home has no time, or the keeper does not have it.
    pub(crate) fn begin(self, ssd: &Ssd, home: &Address) -> Result<(), Trouble> {
        begin(ssd, home, Some(self.0)).map_err(|error| {
            tracing::warn!(
                ssd = ssd.name,
                error = format!("{error:#}"),
                "its host's memory is not tracked yet"
            );
            end(ssd, home);
            Trouble::Busy
        })
    }
}

/// Ends it, if it was tracked.
pub(crate) fn end(ssd: &Ssd, home: &Address) {
    if ssd.written.disarm_managed() {
        let_go(ssd, home);
    }
}

/// The home adopts its memory without a log; if it has no time, it does with its next.
pub(crate) fn let_go(ssd: &Ssd, home: &Address) {
    if let Err(error) = adopt_anew(home, ssd) {
        tracing::warn!(ssd = ssd.name, %error, "what it writes is logged on for a while");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::MemoryMap;

    const PAGE: u64 = LOG_PAGE_BYTES;

    /// Memory of 1 GiB from 1 MiB on.
    fn guest() -> (Written, OwnedFd, Arc<MemoryMap>) {
        tracked(&Memory { granularity: 0, ranges: vec![(1 << 20, 1 << 30)] })
    }

    fn map() -> Arc<MemoryMap> {
        let map = MemoryMap::empty().with(Iova(1 << 20), 1 << 30, Access::BOTH, None);
        Arc::new(map.expect("a region"))
    }

    fn tracked(memory: &Memory) -> (Written, OwnedFd, Arc<MemoryMap>) {
        let written = Written::default();
        let map = written.on(map());
        let fd = written.arm_managed("test", memory).expect("nobody's");
        let map = written.on(map);
        (written, fd, map)
    }

    fn harvest(written: &Written, most: usize, heard: bool) -> Harvest {
        written.harvest(most, heard).expect("tracked").expect("a file of its own")
    }

    fn page(at: u64) -> u64 {
        (1 << 20) + at * PAGE
    }

    #[test]
    fn what_was_written_is_told_once_when_it_was_heard_and_again_when_not() {
        let (written, fd, map) = guest();
        map.mark(Iova(page(3)), 2 * PAGE);
        map.mark(Iova(page(9) + 5), 1);
        map.mark(Iova(0), PAGE);
        let runs = vec![(page(3), 2), (page(9), 1)];
        assert_eq!(harvest(&written, 9, true), Harvest { granularity: 0, runs: runs.clone(), more: false });
        assert_eq!(harvest(&written, 9, false).runs, runs);
        map.mark(Iova(page(9)), 1);
        assert_eq!(harvest(&written, 9, true).runs, [(page(9), 1)]);
        // A successor has heard of nothing, and knows what is tracked.
        let next = Written::default();
        next.restore(fd.try_clone().expect("a descriptor"));
        assert_eq!(next.tracked_ranges(), 1);
        next.on(Arc::clone(&map)).mark(Iova(page(11)), 1);
        assert_eq!(harvest(&next, 9, false).runs, [(page(9), 1), (page(11), 1)]);
        assert_eq!(harvest(&next, 9, true).runs, []);
        // And one of an engine that was told to end it does not.
        assert!(next.disarm_managed() && !next.disarm_managed());
        let last = Written::default();
        last.restore(fd);
        assert!(last.harvest(9, true).is_none() && last.on(map).log().is_none());
    }

    #[test]
    fn a_report_without_room_for_all_goes_on_where_the_last_one_ended() {
        let (written, _fd, map) = guest();
        let write = |at: u64| map.mark(Iova(page(at)), 1);
        [1, 3, 5, 7].into_iter().for_each(write);
        assert_eq!(harvest(&written, 2, true).runs, [(page(1), 1), (page(3), 1)]);
        // These are written all the time, and the others come to be told all the same.
        [1, 3].into_iter().for_each(write);
        let second = harvest(&written, 2, true);
        assert_eq!((second.runs, second.more), (vec![(page(5), 1), (page(7), 1)], true));
        let third = harvest(&written, 2, true);
        assert_eq!((third.runs, third.more), (vec![(page(1), 1), (page(3), 1)], false));
        assert_eq!(harvest(&written, 2, true).runs, []);
    }

    #[test]
    fn a_coarse_grain_is_told_whole_and_once() {
        let ranges = vec![(1 << 21, 4 << 21), (3 << 21, 4 << 21)];
        let (written, _fd, map) = tracked(&Memory { granularity: 9, ranges });
        assert_eq!(written.tracked_ranges(), 2, "as they were named");
        let grain = |at: u64| at << 21;
        map.mark(Iova(grain(2) + PAGE), 1);
        map.mark(Iova(grain(2) + 9 * PAGE), 1);
        map.mark(Iova(grain(3) - 1), 2);
        map.mark(Iova(grain(6) + PAGE), 1);
        map.mark(Iova(grain(7)), 1);
        assert_eq!(harvest(&written, 9, true).runs, [(grain(2), 2), (grain(6), 1)]);
        map.mark(Iova(grain(2)), 1);
        map.mark(Iova(grain(4)), 1);
        let first = harvest(&written, 1, true);
        assert_eq!((first.runs, first.more), (vec![(grain(2), 1)], true));
        assert_eq!(harvest(&written, 1, true).runs, [(grain(4), 1)]);
        assert_eq!(harvest(&written, 1, true).runs, []);
    }

    #[test]
    fn what_cannot_be_tracked_is_refused_and_says_why() {
        let refused = |written: &Written, ranges: Vec<(u64, u64)>| {
            written.arm_managed("test", &Memory { granularity: 0, ranges }).expect_err("refused")
        };
        let written = Written::default();
        let whole = (1 << 20, 1 << 30);
        assert_eq!(refused(&written, vec![whole]), Trouble::NotMemory, "there is no client");
        let high = MemoryMap::empty().with(Iova(COVERED_BYTES - PAGE), 1 << 20, Access::BOTH, None);
        written.on(Arc::new(high.expect("a region")));
        let straddles = (COVERED_BYTES - PAGE, 2 * PAGE);
        assert_eq!(refused(&written, vec![straddles]), Trouble::NoRoom { ranges: 0 });
        written.on(map());
        assert_eq!(refused(&written, vec![(0, 2 << 20)]), Trouble::NotMemory);
        assert_eq!(refused(&written, vec![(1 << 20, (1 << 30) + PAGE)]), Trouble::NotMemory);
        let many: Vec<_> = (0..256).map(|at| (page(2 * at), PAGE)).collect();
        assert_eq!(refused(&written, many), Trouble::NoRoom { ranges: 255 });
        written.begin_clients().expect("nobody's");
        assert_eq!(refused(&written, vec![whole]), Trouble::NoRoom { ranges: 0 });
        written.end_clients();
        let (written, _fd, _map) = guest();
        assert_eq!(written.begin_clients(), Err(Errno::BUSY));
        let halves = vec![(1 << 20, 1 << 29), ((1 << 20) + (1 << 29), 1 << 29)];
        assert_eq!(refused(&written, halves), Trouble::Tracked { same: true });
        assert_eq!(refused(&written, vec![(1 << 20, PAGE)]), Trouble::Tracked { same: false });
    }

    #[test]
    fn ranges_that_touch_are_one_up_to_the_last_address() {
        let half = 1 << 63;
        assert_eq!(merged(&[(half, half), (0, PAGE), (PAGE, half - PAGE)]), [(0, u64::MAX)]);
        assert_eq!(
            merged(&[(8 * PAGE, PAGE), (0, 4 * PAGE), (PAGE, PAGE)]),
            [(0, 4 * PAGE), (8 * PAGE, PAGE)]
        );
    }

    #[test]
    fn memory_in_several_pieces_is_memory() {
        let regions = [(Iova(3 * PAGE), PAGE), (Iova(0), 2 * PAGE + 5), (Iova(4 * PAGE), 9 * PAGE)];
        assert!(is_within((0, 13 * PAGE), &regions));
        assert!(!is_within((0, 14 * PAGE), &regions));
        assert!(!is_within((0, 4 * PAGE), &[regions[0], (Iova(0), 2 * PAGE)]));
    }
}
