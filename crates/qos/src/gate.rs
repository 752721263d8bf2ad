//! A seat's way through its ssd's limits: purses filled in slices, so that most requests touch nothing that is shared.

use crate::throttle::{BUCKETS, Class, Throttle, class_of, now_at, ticks};
use block::{Now, Op};
use std::sync::Arc;

/// What a purse holds is returned when it was not spent for so long: another seat of the ssd may want it, and it is no burst. Only who
/// comes again within that time gets more than its need.
const PURSE_NS: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    /// `None`: nothing is limited.
    throttle: Option<Arc<Throttle>>,
    purses: [u64; BUCKETS],
    now: Now,
    /// Nothing goes before: what the purses hold may be spent from then on.
    opens_at: Now,
    /// When the purses are given back.
    expires_at: Now,
    /// A request was refused since the gate was last open.
    refused: bool,
}

impl Gate {
    /// A gate for one seat.
    #[must_use]
    pub fn new(throttle: Arc<Throttle>) -> Self {
        let mut gate = Self {
            throttle: None,
            purses: [0; BUCKETS],
            now: Now(0),
            opens_at: Now(0),
            expires_at: Now(u64::MAX),
            refused: false,
        };
        gate.set(throttle);
        gate
    }

    fn set(&mut self, throttle: Arc<Throttle>) {
        self.throttle = Some(throttle).filter(|throttle| !throttle.limits().is_none());
    }

    /// The limits were changed: what waits asks anew, and what was paid and not spent is given to the new ones.
    pub fn change(&mut self, throttle: Arc<Throttle>) {
        let old = self.throttle.take();
        for (at, purse) in self.purses.iter_mut().enumerate() {
            let ticks = std::mem::take(purse);
            if let (Some(old), Some(new)) = (old.as_ref().and_then(|old| old.bucket(at)), throttle.bucket(at))
            {
                new.give_back(new.converted(old, ticks));
            }
        }
        (self.opens_at, self.expires_at, self.refused) = (Now(0), Now(u64::MAX), false);
        self.set(throttle);
    }

    /// A turn of the seat begins.
    #[inline]
    pub fn turn(&mut self, now: Now) {
        self.now = now;
        if now >= self.expires_at {
            self.expire();
        }
        self.refused &= now < self.opens_at;
    }

    /// When what was refused may go. `None`: nothing was, or it may go now.
    #[inline]
    #[must_use]
    pub fn shut_until(&self) -> Option<Now> {
        (self.refused && self.now < self.opens_at).then_some(self.opens_at)
    }

    /// Lets a request through and takes its price, or refuses it.
    #[inline(always)]
    pub fn admit(&mut self, op: Op, len_bytes: u64) -> bool {
        if self.throttle.is_none() {
            return true;
        }
        self.admit_limited(op, len_bytes)
    }

    #[inline(never)]
    fn admit_limited(&mut self, op: Op, len_bytes: u64) -> bool {
        let Some((class, bytes)) = class_of(op, len_bytes) else { return true };
        if self.now < self.opens_at {
            self.refused = true;
            return false;
        }
        self.pay(class, bytes) || self.fetch(class, bytes) && self.pay(class, bytes)
    }

    /// Pays out of the purses, if all have it.
    #[inline]
    fn pay(&mut self, class: Class, bytes: u64) -> bool {
        let Some(throttle) = &self.throttle else { return true };
        let mut left = self.purses;
        for lane in throttle.lanes(class) {
            let Some(bucket) = throttle.bucket(lane.at) else { continue };
            let cost = bucket.cost(if lane.of_bytes { bytes } else { 1 });
            match left[lane.at].checked_sub(cost) {
                Some(rest) => left[lane.at] = rest,
                None => return false,
            }
        }
        self.purses = left;
        true
    }

    /// Fills the purses for a request. `false`: what they hold now may be spent later only.
    #[cold]
    fn fetch(&mut self, class: Class, bytes: u64) -> bool {
        let Some(throttle) = &self.throttle else { return true };
        let now = ticks(self.now);
        let mut from = now;
        let ahead = self.expires_at != Now(u64::MAX);
        let need = |lane: &crate::throttle::Lane, purse: u64| {
            let bucket = throttle.bucket(lane.at)?;
            let need = bucket.cost(if lane.of_bytes { bytes } else { 1 }).checked_sub(purse)?;
            (need > 0).then_some((bucket, need))
        };
        let lanes = throttle.lanes(class);
        let waits = lanes
            .iter()
            .filter_map(|lane| need(lane, self.purses[lane.at]))
            .any(|(bucket, need)| bucket.is_short_of(now, need));
        for lane in lanes {
            let Some((bucket, need)) = need(lane, self.purses[lane.at]) else { continue };
            let taken = if waits { bucket.reserve(now, need) } else { bucket.take(now, need, ahead) };
            self.purses[lane.at] = self.purses[lane.at].saturating_add(taken.ticks);
            from = from.max(taken.from);
        }
        self.opens_at = now_at(from).max(self.now);
        self.expires_at = Now(self.opens_at.0.saturating_add(PURSE_NS));
        self.refused = from > now;
        !self.refused
    }

    /// A request that was let through found no room at the drive: its price is there for the next that comes.
    #[cold]
    pub fn refund(&mut self, op: Op, len_bytes: u64) {
        let (Some(throttle), Some((class, bytes))) = (&self.throttle, class_of(op, len_bytes)) else {
            return;
        };
        for lane in throttle.lanes(class) {
            let Some(bucket) = throttle.bucket(lane.at) else { continue };
            let cost = bucket.cost(if lane.of_bytes { bytes } else { 1 });
            self.purses[lane.at] = self.purses[lane.at].saturating_add(cost);
        }
        self.expires_at = self.expires_at.min(Now(self.now.0.saturating_add(PURSE_NS)));
    }

    /// A seat that looks late returns less: the bucket may have been full meanwhile.
    #[cold]
    fn expire(&mut self) {
        let late = ticks(Now(self.now.0.saturating_sub(self.expires_at.0)));
        self.expires_at = Now(u64::MAX);
        if let Some(throttle) = &self.throttle {
            for (at, purse) in self.purses.iter_mut().enumerate() {
                if let Some(bucket) = throttle.bucket(at) {
                    bucket.give_back(std::mem::take(purse).saturating_sub(late));
                }
            }
        }
        self.purses = [0; BUCKETS];
    }
}

impl Drop for Gate {
    /// A seat that goes leaves what it did not spend to the others.
    fn drop(&mut self) {
        self.expire();
    }
}
