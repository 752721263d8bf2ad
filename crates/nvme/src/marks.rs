//! Runs of logical blocks that Write Uncorrectable marked (NVM 1.1, 3.3.7): reading one fails until it is written again.
//!
//! Nearly no namespace has any, so the question on the I/O path is one load of a counter; only where there are marks is a
//! lock taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use state::ssd::MarkV1;

use crate::limits::MARKS_MAX;
use crate::namespace::BlockRange;

/// More runs than [`MARKS_MAX`] would be needed. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarksFull;

/// Disjoint, non-adjacent runs of marked blocks.
#[derive(Debug, Default)]
pub struct Marks {
    /// Number of runs, and [`UNSETTLED`]: 0 is the fast way past the lock.
    runs: AtomicUsize,
    map: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    /// First block to one past the last.
    map: BTreeMap<u64, u64>,
    /// Times that marks were cleared.
    cleared: u64,
    /// Of those, how many a record on stable media knows of.
    settled: u64,
}

/// In [`Marks::runs`]: marks were cleared, and a crash would bring them back.
const UNSETTLED: usize = 1 << (usize::BITS - 1);

impl Marks {
    /// Whether no block is marked, and none would be after a crash. One load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Acquire pairs with the Release in `publish`: whoever sees a run counted finds it under the lock.
        self.runs.load(Ordering::Acquire) == 0
    }

    /// The first marked block of the run, if any.
    #[inline]
    #[must_use]
    pub fn first_in(&self, blocks: BlockRange) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        self.first_between(blocks.start(), blocks.end())
    }

    /// Marks a run. `Ok(true)` when that changed anything.
    ///
    /// # Errors
    /// [`MarksFull`] when there would be too many runs.
    pub fn mark(&self, blocks: BlockRange) -> Result<bool, MarksFull> {
        let mut runs = self.lock();
        let map = &mut runs.map;
        let (mut start, mut end) = (blocks.start(), blocks.end());
        if map.range(..=start).next_back().is_some_and(|(_, e)| *e >= end) {
            return Ok(false);
        }
        // Neighbours and overlaps melt into one run.
        let touched: Vec<(u64, u64)> = runs_touching(map, start, end, true);
        if touched.is_empty() && map.len() >= MARKS_MAX {
            return Err(MarksFull);
        }
        for (s, e) in touched {
            map.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        map.insert(start, end);
        self.publish(&runs);
        Ok(true)
    }

    /// Clears the marks of a run that was written (or deallocated). `Ok(true)` when that changed anything.
    ///
    /// # Errors
    /// [`MarksFull`] when cutting a run in two would make too many.
    #[inline]
    pub fn clear(&self, blocks: BlockRange) -> Result<bool, MarksFull> {
        if self.is_empty() {
            return Ok(false);
        }
        self.clear_between(blocks.start(), blocks.end())
    }

    /// Clears all marks (format, sanitize).
    pub fn clear_all(&self) {
        let mut runs = self.lock();
        *runs = Runs::default();
        self.publish(&runs);
    }

    /// Marks were cleared and are still on record: whoever changes blocks now has to have a record persisted before the answer,
    /// since a crash would put the old marks over the new data. The number goes to [`Marks::settle`] then.
    #[must_use]
    pub fn unsettled(&self) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let runs = self.lock();
        (runs.cleared != runs.settled).then_some(runs.cleared)
    }

    /// A record that was made after this many clearings is on stable media.
    pub fn settle(&self, cleared: u64) {
        let mut runs = self.lock();
        runs.settled = runs.settled.max(cleared.min(runs.cleared));
        self.publish(&runs);
    }

    /// The runs that lie in `start..end`, cut to it, at most `max` of them, as (first block, number of blocks).
    #[must_use]
    pub fn runs_between(&self, start: u64, end: u64, max: usize) -> Vec<(u64, u64)> {
        let map = &self.lock().map;
        let cut = |(s, e): (u64, u64)| (s.max(start), e.min(end) - s.max(start));
        runs_touching(map, start, end, false).into_iter().take(max).map(cut).collect()
    }

    /// The marks at rest.
    #[must_use]
    pub fn record(&self) -> Vec<MarkV1> {
        self.lock().map.iter().map(|(s, e)| MarkV1 { start_block: *s, blocks: e - s }).collect()
    }

    /// The marks of a record; runs outside `blocks`, overlapping or beyond the limit are left out.
    #[must_use]
    pub fn from_record(record: &[MarkV1], blocks: u64) -> Self {
        let mut map = BTreeMap::new();
        let mut last_end = 0;
        for mark in record.iter().take(MARKS_MAX) {
            let Some(end) = mark.start_block.checked_add(mark.blocks) else { continue };
            if mark.blocks > 0 && end <= blocks && (mark.start_block >= last_end) {
                map.insert(mark.start_block, end);
                last_end = end;
            }
        }
        Self { runs: AtomicUsize::new(map.len()), map: Mutex::new(Runs { map, ..Runs::default() }) }
    }

    fn first_between(&self, start: u64, end: u64) -> Option<u64> {
        let map = &self.lock().map;
        runs_touching(map, start, end, false).first().map(|(s, _)| (*s).max(start))
    }

    fn clear_between(&self, start: u64, end: u64) -> Result<bool, MarksFull> {
        let mut runs = self.lock();
        let map = &mut runs.map;
        let touched = runs_touching(map, start, end, false);
        let cuts = touched.iter().any(|(s, e)| *s < start && *e > end);
        if cuts && map.len() >= MARKS_MAX {
            return Err(MarksFull);
        }
        for (s, e) in &touched {
            map.remove(s);
            if *s < start {
                map.insert(*s, start);
            }
            if *e > end {
                map.insert(end, *e);
            }
        }
        runs.cleared += u64::from(!touched.is_empty());
        self.publish(&runs);
        Ok(!touched.is_empty())
    }

    fn publish(&self, runs: &Runs) {
        let unsettled = if runs.cleared == runs.settled { 0 } else { UNSETTLED };
        self.runs.store(runs.map.len() | unsettled, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        // Every change of the map is complete when a panic could come: a poisoned lock guards sound data.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs that overlap `start..end` or, when asked, are adjacent to it.
fn runs_touching(map: &BTreeMap<u64, u64>, start: u64, end: u64, adjacent: bool) -> Vec<(u64, u64)> {
    let touches = |s: u64, e: u64| if adjacent { s <= end && e >= start } else { s < end && e > start };
    let before = map.range(..start).next_back().map(|(s, e)| (*s, *e)).filter(|(s, e)| touches(*s, *e));
    let within = map.range(start..).map(|(s, e)| (*s, *e)).take_while(|(s, e)| touches(*s, *e));
    before.into_iter().chain(within).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{Gate, LbaFormat, Namespace};
    use std::sync::Arc;

    fn run(slba: u64, count: u32) -> BlockRange {
        let ns = Namespace {
            nsid: 1,
            start_bytes: 0,
            reserved_bytes: 1 << 30,
            blocks: 1 << 20,
            format: LbaFormat::B512,
            attached: true,
            shared: false,
            eui64: [0; 8],
            nguid: [0; 16],
            uuid: [0; 16],
            gate: Gate::Open,
            marks: Arc::default(),
        };
        ns.run_at(slba, count).expect("inside")
    }

    #[test]
    fn marked_blocks_are_found_until_they_are_written_again() {
        let marks = Marks::default();
        assert!(marks.is_empty());
        assert_eq!(marks.mark(run(10, 5)), Ok(true));
        assert_eq!(marks.mark(run(11, 2)), Ok(false));
        assert_eq!(marks.first_in(run(0, 10)), None);
        assert_eq!(marks.first_in(run(0, 11)), Some(10));
        assert_eq!(marks.first_in(run(14, 1)), Some(14));
        assert_eq!(marks.first_in(run(15, 1)), None);
        assert_eq!(marks.clear(run(12, 1)), Ok(true));
        assert_eq!(marks.runs_between(0, 100, 9), vec![(10, 2), (13, 2)]);
        assert_eq!(marks.unsettled(), Some(1));
        assert_eq!(marks.clear(run(0, 100)), Ok(true));
        assert_eq!((marks.first_in(run(0, 100)), marks.is_empty()), (None, false), "on record still");
        marks.settle(1);
        assert_eq!(
            marks.unsettled(),
            Some(2),
            "the record of the first clearing knows nothing of the second"
        );
        marks.settle(2);
        assert!(marks.is_empty());
        assert_eq!(marks.clear(run(0, 100)), Ok(false));
        assert!(marks.is_empty());
    }

    #[test]
    fn neighbouring_runs_melt_into_one() {
        let marks = Marks::default();
        for start in [0, 4, 2] {
            assert_eq!(marks.mark(run(start, 2)), Ok(true));
        }
        assert_eq!(marks.record(), vec![MarkV1 { start_block: 0, blocks: 6 }]);
    }

    #[test]
    fn the_number_of_runs_is_bounded() {
        let marks = Marks::default();
        for i in 0..MARKS_MAX as u64 {
            assert_eq!(marks.mark(run(i * 4, 2)), Ok(true));
        }
        assert_eq!(marks.mark(run(MARKS_MAX as u64 * 4, 1)), Err(MarksFull));
        assert_eq!(marks.mark(run(2, 1)), Ok(true), "melting into a run needs no new one");
    }

    #[test]
    fn marks_come_back_from_their_record() {
        let marks = Marks::default();
        assert_eq!(marks.mark(run(3, 4)), Ok(true));
        let back = Marks::from_record(&marks.record(), 1 << 20);
        assert_eq!(back.record(), marks.record());
        assert!(Marks::from_record(&marks.record(), 6).is_empty());
        let wild = MarkV1 { start_block: u64::MAX, blocks: 2 };
        assert!(Marks::from_record(&[wild], u64::MAX).is_empty());
    }
}
