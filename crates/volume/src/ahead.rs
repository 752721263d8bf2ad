//! Extents for a write that will come: who writes in order has the next ones before they are asked for.
//!
//! A write to a new extent waits for a record on the drive. For writes in order that would be a wait at each extent, and the drive stands
//! still meanwhile. So each time a volume asks for just the extent where its last answer ended, it is given twice as many beyond it as
//! the time before. They are extents like others: they read as zeros, count as used, and go back by a discard.

use std::collections::BTreeMap;

use crate::VolumeId;

/// Most that one answer is ahead.
const AHEAD_BYTES: u64 = 16 << 20;
/// No more than this part of what is free: a nearly full pool gives what is asked for, and nothing else.
const FREE_PART: u64 = 16;

/// Where a volume's last answer ended.
#[derive(Clone, Copy, Debug)]
struct Stream {
    next: u32,
    window: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    streams: BTreeMap<VolumeId, Stream>,
}

impl Ahead {
    /// What to give beside what is `wanted` (in order), in a pool with this much free. `is_open`: there is such an extent, and it is not mapped yet.
    pub(crate) fn beside(
        &mut self,
        wanted: &[(VolumeId, u32)],
        extent_bytes: u64,
        free_extents: u64,
        is_open: impl Fn(VolumeId, u32) -> bool,
    ) -> Vec<(VolumeId, u32)> {
        let most = (AHEAD_BYTES / extent_bytes).min(free_extents / FREE_PART);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let mut beside = Vec::new();
        for run in wanted.chunk_by(|(volume, extent), next| *next == (*volume, extent + 1)) {
            let (Some(&(volume, first)), Some(&(_, last))) = (run.first(), run.last()) else { continue };
            // It asked before it saw an answer; or this is a copy, of which none is made ahead.
            if !is_open(volume, last) {
                continue;
            }
            let before = self.streams.get(&volume).filter(|stream| (first..=last).contains(&stream.next));
            let window = before.map_or(0, |stream| (stream.window * 2).max(1)).min(most);
            let mut next = last.saturating_add(1);
            let end = next.saturating_add(window);
            while next < end && is_open(volume, next) && wanted.binary_search(&(volume, next)).is_err() {
                beside.push((volume, next));
                next += 1;
            }
            self.streams.insert(volume, Stream { next, window });
        }
        beside
    }

    /// A volume is gone.
    pub(crate) fn forget(&mut self, volume: VolumeId) {
        self.streams.remove(&volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VolumeId = VolumeId(1);
    const B: VolumeId = VolumeId(2);
    const MIB: u64 = 1 << 20;

    fn given(ahead: &mut Ahead, wanted: &[(VolumeId, u32)]) -> Vec<u32> {
        ahead
            .beside(wanted, MIB, 1 << 20, |_, extent| extent < 1000)
            .iter()
            .map(|(_, extent)| *extent)
            .collect()
    }

    #[test]
    fn who_writes_in_order_is_given_twice_as_many_each_time_up_to_a_bound() {
        let (mut ahead, mut next, mut counts) = (Ahead::default(), 7, Vec::new());
        for _ in 0..7 {
            let beside = given(&mut ahead, &[(A, next)]);
            for extent in &beside {
                next += 1;
                assert_eq!(*extent, next);
            }
            counts.push(beside.len());
            next += 1;
        }
        assert_eq!(counts, [0, 1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn several_at_once_are_in_order_too_and_nobody_else_is_disturbed() {
        let mut ahead = Ahead::default();
        assert!(given(&mut ahead, &[(A, 0), (A, 1), (B, 500)]).is_empty());
        assert_eq!(given(&mut ahead, &[(A, 2), (A, 3), (B, 9)]), [4]);
        assert_eq!(given(&mut ahead, &[(A, 5)]), [6, 7]);
    }

    #[test]
    fn a_question_that_crossed_an_answer_changes_nothing() {
        let mut ahead = Ahead::default();
        for extent in [0, 1, 3] {
            given(&mut ahead, &[(A, extent)]);
        }
        assert!(ahead.beside(&[(A, 4)], MIB, 1 << 20, |_, extent| extent > 5).is_empty());
        assert_eq!(given(&mut ahead, &[(A, 6)]), [7, 8, 9, 10]);
    }

    #[test]
    fn who_writes_here_and_there_is_given_what_is_asked_for() {
        let mut ahead = Ahead::default();
        for extent in [3, 900, 17, 16, 4, 300] {
            assert!(given(&mut ahead, &[(A, extent)]).is_empty(), "{extent}");
        }
    }

    #[test]
    fn nothing_beyond_the_end_or_over_what_is_mapped_is_given() {
        let mut ahead = Ahead::default();
        given(&mut ahead, &[(A, 997)]);
        assert_eq!(given(&mut ahead, &[(A, 998)]), [999]);
        let mut ahead = Ahead::default();
        given(&mut ahead, &[(A, 0)]);
        let is_open = |_, extent| extent != 3;
        assert_eq!(ahead.beside(&[(A, 1)], MIB, 1 << 20, is_open), [(A, 2)]);
        assert!(ahead.beside(&[(A, 3)], MIB, 1 << 20, is_open).is_empty());
    }

    #[test]
    fn large_extents_and_nearly_full_pools_give_nothing_ahead() {
        for (extent_bytes, free) in [(1 << 30, 1 << 20), (MIB, 15)] {
            let mut ahead = Ahead::default();
            for extent in 0..5 {
                assert!(ahead.beside(&[(A, extent)], extent_bytes, free, |_, _| true).is_empty());
            }
        }
    }

    #[test]
    fn a_volume_that_is_gone_leaves_nothing() {
        let mut ahead = Ahead::default();
        given(&mut ahead, &[(A, 0)]);
        ahead.forget(A);
        assert!(given(&mut ahead, &[(A, 1)]).is_empty());
    }
}
