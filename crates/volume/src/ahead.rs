//! Extents for a write that will come: who writes in order has the next ones before they are asked for.
//!
//! A write to a new extent waits for a record on the drive. For writes in order that would be a wait at each extent, and the drive stands
//! still meanwhile. So a volume that asks for just the extent where its last answer ended is given some beyond it too: half as much as came
//! in order before it. They are extents like others: they read as zeros, count as used, and go back by a discard.

use std::collections::BTreeMap;

use crate::VolumeId;

/// Most that one answer is ahead.
const AHEAD_BYTES: u64 = 16 << 20;
/// And this part of what came in order before: writes that end, or go elsewhere, leave no more than that unused.
const WRITTEN_PART: u32 = 2;
/// No more than this part of what is free: a nearly full pool gives what is asked for, and nothing else.
const FREE_PART: u64 = 16;

/// What a volume was given in order until now.
#[derive(Clone, Copy, Debug)]
struct Stream {
    begin: u32,
    next: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    streams: BTreeMap<VolumeId, Stream>,
}

impl Ahead {
    /// What to give beside what is `wanted` (in order), `room` at most, in a pool with this much free. `is_open`: there is such an extent, and it is not mapped yet.
    pub(crate) fn beside(
        &mut self,
        wanted: &[(VolumeId, u32)],
        room: usize,
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
            let begin = before.map_or(first, |stream| stream.begin);
            let window = (first.saturating_sub(begin) / WRITTEN_PART).min(most);
            let mut next = last.saturating_add(1);
            let end = next.saturating_add(window);
            while next < end
                && beside.len() < room
                && is_open(volume, next)
                && wanted.binary_search(&(volume, next)).is_err()
            {
                beside.push((volume, next));
                next += 1;
            }
            self.streams.insert(volume, Stream { begin, next });
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
    const ROOM: usize = 100;

    fn given(ahead: &mut Ahead, wanted: &[(VolumeId, u32)]) -> Vec<u32> {
        let beside = ahead.beside(wanted, ROOM, MIB, 1 << 20, |_, extent| extent < 1000);
        beside.iter().map(|(_, extent)| *extent).collect()
    }

    /// A volume that was given these in order, one by one.
    fn in_order(extents: std::ops::Range<u32>) -> Ahead {
        let mut ahead = Ahead::default();
        ahead.streams.insert(A, Stream { begin: extents.start, next: extents.end });
        ahead
    }

    #[test]
    fn who_writes_in_order_is_given_half_of_that_ahead_up_to_a_bound() {
        let (mut ahead, mut next, mut asked) = (Ahead::default(), 7, 0);
        while next < 900 {
            let beside = given(&mut ahead, &[(A, next)]);
            assert_eq!(beside.len() as u64, u64::from((next - 7) / 2).min(16), "{next}");
            for extent in &beside {
                next += 1;
                assert_eq!(*extent, next);
            }
            (next, asked) = (next + 1, asked + 1);
        }
        assert!(asked < 65, "{asked} records for 900 extents");
    }

    #[test]
    fn several_at_once_are_in_order_too_and_nobody_else_is_disturbed() {
        let mut ahead = Ahead::default();
        assert!(given(&mut ahead, &[(A, 0), (A, 1), (B, 500)]).is_empty());
        assert_eq!(given(&mut ahead, &[(A, 2), (A, 3), (A, 4), (A, 5), (B, 9)]), [6]);
        assert_eq!(given(&mut ahead, &[(A, 7), (A, 8)]), [9, 10, 11]);
        assert_eq!(given(&mut ahead, &[(A, 12)]), [13, 14, 15, 16, 17, 18]);
    }

    #[test]
    fn a_question_that_crossed_an_answer_changes_nothing() {
        let mut ahead = in_order(0..9);
        assert!(ahead.beside(&[(A, 6)], ROOM, MIB, 1 << 20, |_, extent| extent > 8).is_empty());
        assert_eq!(given(&mut ahead, &[(A, 9)]), [10, 11, 12, 13]);
    }

    #[test]
    fn an_answer_without_room_leaves_its_volume_in_order() {
        let mut ahead = in_order(0..9);
        assert_eq!(ahead.beside(&[(A, 9)], 1, MIB, 1 << 20, |_, _| true), [(A, 10)]);
        assert_eq!(given(&mut ahead, &[(A, 11)]), [12, 13, 14, 15, 16]);
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
        let mut ahead = in_order(900..998);
        assert_eq!(given(&mut ahead, &[(A, 998)]), [999]);
        let mut ahead = in_order(0..64);
        let is_open = |_, extent| extent != 66;
        assert_eq!(ahead.beside(&[(A, 64)], ROOM, MIB, 1 << 20, is_open), [(A, 65)]);
        assert!(ahead.beside(&[(A, 66)], ROOM, MIB, 1 << 20, is_open).is_empty());
    }

    #[test]
    fn large_extents_and_nearly_full_pools_give_nothing_ahead() {
        for (extent_bytes, free) in [(1 << 30, 1 << 20), (MIB, 15)] {
            let mut ahead = in_order(0..100);
            for extent in 100..105 {
                assert!(ahead.beside(&[(A, extent)], ROOM, extent_bytes, free, |_, _| true).is_empty());
            }
        }
    }

    #[test]
    fn a_volume_that_is_gone_leaves_nothing() {
        let mut ahead = in_order(0..100);
        ahead.forget(A);
        assert!(given(&mut ahead, &[(A, 100)]).is_empty());
    }
}
