//! A token bucket in one word that all reactors share.
//!
//! ```text
//!        now                full_at
//!  -------|---------------------|------> time         level = depth - (full_at - now)
//!         |<----- depth --------------->|
//! ```
//! The word is the time at which the bucket will be full if nobody takes anything (the theoretical arrival time of GCRA, ITU-T
//! I.371). Whoever takes more than is there is told when it will be: what was taken is its own from then on, so nobody is
//! overtaken for ever, and a taker that comes late to its time loses nothing as long as it is no later than the depth.

use crate::limits::{BURST_NS, Rate};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ticks a nanosecond: costs are counted more finely than time, so that a byte of a fast drive is more than nothing.
pub(crate) const TICKS: u64 = 16;
/// Fractional bits of `scale`.
const FRACTION: u32 = 28;
/// The dearest request: some weeks.
const COST_MAX: u64 = 1 << 56;
/// What a taker gets ahead of its need while it is there: one shared store for many requests.
const SLICE_TICKS: u64 = 100_000 * TICKS;
/// A slice is this part of the depth at most.
const SLICE_PART: u64 = 8;

/// See the module. Times and costs are in ticks.
#[derive(Debug)]
pub struct Bucket {
    /// Ticks a token, a fixed-point number.
    scale: u64,
    depth: u64,
    slice: u64,
    full_at: AtomicU64,
}

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) ticks: u64,
    /// It may be spent from then on.
    pub(crate) from: u64,
}

impl Bucket {
    /// A full bucket. Takers want `grain` tokens and more at a time.
    pub(crate) fn new(rate: Rate, grain: u64) -> Self {
        let per_second = rate.per_second.max(1);
        let second = (TICKS * 1_000_000_000) << FRACTION;
        let mut bucket =
            Self { scale: (second / per_second).max(1), depth: 0, slice: 0, full_at: AtomicU64::new(0) };
        let least = bucket.cost(1);
        bucket.depth = match rate.burst {
            Some(burst) => bucket.cost(burst).max(least),
            None => (BURST_NS * TICKS).max(least),
        };
        let slice = SLICE_TICKS.min(bucket.depth / SLICE_PART);
        bucket.slice = if slice < bucket.cost(grain) { 0 } else { slice };
        bucket
    }

    /// The bucket that replaces `old`: it holds as many tokens, no more than it has room for, and what was owed is owed.
    pub(crate) fn after(old: &Self, rate: Rate, grain: u64, now: u64) -> Self {
        let bucket = Self::new(rate, grain);
        let missing = old.full_at.load(Relaxed).saturating_sub(now);
        let full_at = if missing <= old.depth {
            let level = bucket.converted(old, old.depth - missing);
            now.saturating_add(bucket.depth.saturating_sub(level))
        } else {
            let debt = bucket.converted(old, missing - old.depth);
            now.saturating_add(bucket.depth).saturating_add(debt)
        };
        bucket.full_at.store(full_at, Relaxed);
        bucket
    }

    /// Ticks of `old` as ticks of this bucket: as many tokens.
    pub(crate) fn converted(&self, old: &Self, ticks: u64) -> u64 {
        let converted = u128::from(ticks) * u128::from(self.scale) / u128::from(old.scale.max(1));
        u64::try_from(converted).unwrap_or(COST_MAX).min(COST_MAX)
    }

    /// What a number of tokens costs.
    #[inline]
    pub(crate) fn cost(&self, tokens: u64) -> u64 {
        let cost = (u128::from(tokens) * u128::from(self.scale)) >> FRACTION;
        u64::try_from(cost).unwrap_or(COST_MAX).min(COST_MAX)
    }

    /// Takes `need`, and with `ahead` a slice more if it is all there now. What is dearer than a full bucket may go when the bucket is full, and
    /// leaves a debt.
    pub(crate) fn take(&self, now: u64, need: u64, ahead: bool) -> Taken {
        let slice = if ahead { self.slice } else { 0 };
        let mut taken = Taken { ticks: 0, from: 0 };
        let take = |full_at: u64| {
            let base = full_at.max(now);
            let room = now.saturating_add(self.depth).saturating_sub(base);
            let all = need.saturating_add(slice);
            let ticks = if room >= all { all } else { need };
            let from = base.saturating_add(need.min(self.depth)).saturating_sub(self.depth);
            taken = Taken { ticks, from };
            Some(base.saturating_add(ticks))
        };
        // The closure always has an answer.
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, take);
        taken
    }

    /// As [`Bucket::take`] for a taker that will have to wait in any case: a slice more, and it waits that much longer, so that it wakes once for
    /// many requests.
    pub(crate) fn reserve(&self, now: u64, need: u64) -> Taken {
        let all = need.saturating_add(self.slice);
        let before =
            self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.max(now).saturating_add(all)));
        let base = before.unwrap_or(now).max(now);
        let from = base.saturating_add(all.min(self.depth)).saturating_sub(self.depth);
        Taken { ticks: all, from }
    }

    /// Whether `need` must be waited for.
    pub(crate) fn is_short_of(&self, now: u64, need: u64) -> bool {
        let base = self.full_at.load(Relaxed).max(now);
        base.saturating_add(need.min(self.depth)).saturating_sub(self.depth) > now
    }

    /// Returns what was not spent.
    pub(crate) fn give_back(&self, ticks: u64) {
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(ticks)));
    }
}
