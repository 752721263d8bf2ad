//! One ssd's limits in force, shared by its seats on all reactors.

use crate::bucket::{Bucket, TICKS};
use crate::limits::Limits;
use block::{Now, Op};

/// Limits there are at most.
pub(crate) const BUCKETS: usize = 6;
/// The smallest usual request.
const GRAIN_BYTES: u64 = 4096;

/// What a request is, to its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
}

/// A bucket that a class pays into, by its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    pub(crate) at: usize,
    /// It counts bytes, not requests.
    pub(crate) of_bytes: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Throttle {
    limits: Limits,
    buckets: [Option<Bucket>; BUCKETS],
    lanes: [Vec<Lane>; 2],
}

/// Ticks at a time.
#[inline]
pub(crate) fn ticks(now: Now) -> u64 {
    now.0.saturating_mul(TICKS)
}

/// The first nanosecond at or after a tick.
#[inline]
pub(crate) fn now_at(ticks: u64) -> Now {
    Now(ticks.div_ceil(TICKS))
}

/// The class of an operation, and the bytes of its range that count. `None`: not limited.
#[inline]
pub(crate) fn class_of(op: Op, len_bytes: u64) -> Option<(Class, u64)> {
    match op {
        Op::Read => Some((Class::Read, len_bytes)),
        // Many drives write the zeros.
        Op::Write { .. } | Op::WriteZeroes { .. } => Some((Class::Write, len_bytes)),
        Op::Discard => Some((Class::Write, 0)),
        Op::Flush => None,
    }
}

impl Throttle {
    /// Limits that nothing was spent of.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::made(limits, |_, rate, grain| Bucket::new(rate, grain))
    }

    /// The limits that follow these: what is left of a limit that stays is left, what was owed is owed.
    #[must_use]
    pub fn changed(&self, limits: Limits, now: Now) -> Self {
        Self::made(limits, |at, rate, grain| match &self.buckets[at] {
            Some(old) => Bucket::after(old, rate, grain, ticks(now)),
            None => Bucket::new(rate, grain),
        })
    }

    fn made(limits: Limits, bucket: impl Fn(usize, crate::Rate, u64) -> Bucket) -> Self {
        let Limits { iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth } = limits;
        let rates = [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth];
        let grain = |at: usize| if at < 3 { 1 } else { GRAIN_BYTES };
        let lanes = |used: [usize; 4]| {
            let set = used.into_iter().filter(|at| rates[*at].is_some());
            set.map(|at| Lane { at, of_bytes: at >= 3 }).collect()
        };
        Self {
            limits,
            lanes: [lanes([0, 1, 3, 4]), lanes([0, 2, 3, 5])],
            buckets: std::array::from_fn(|at| rates[at].map(|rate| bucket(at, rate, grain(at)))),
        }
    }

    /// As they are written down.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    #[inline]
    pub(crate) fn lanes(&self, class: Class) -> &[Lane] {
        match class {
            Class::Read => &self.lanes[0],
            Class::Write => &self.lanes[1],
        }
    }

    #[inline]
    pub(crate) fn bucket(&self, at: usize) -> Option<&Bucket> {
        self.buckets.get(at)?.as_ref()
    }
}
