//! What follows from an engine's end: when the next one starts, and which ssd is not given to it. Pure.

use crate::limits::Limits;
use link::blame::Verdict;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The pause before the next engine.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An engine ended. `served`: how long it lived after it was ready, if it ever was.
    pub(crate) fn pause(&mut self, served: Option<Duration>, limits: &Limits) -> Duration {
        if served.is_some_and(|served| served >= limits.short_life) {
            self.failures = 0;
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures <= limits.backoff_after {
            return Duration::ZERO;
        }
        let doublings = (self.failures - limits.backoff_after - 1).min(20);
        limits.backoff_first.saturating_mul(1 << doublings).min(limits.backoff_max)
    }

    /// Engines in a row that served nothing.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// Who was in hand in the last crashes.
#[derive(Debug, Default)]
pub(crate) struct Blame {
    crashes: VecDeque<(Instant, Verdict)>,
}

/// The most crashes remembered.
const CRASHES_MAX: usize = 64;
/// With no thread that said it failed, more crashes are needed before anyone is quarantined.
const UNSURE_FACTOR: usize = 2;

impl Blame {
    /// An engine crashed: whom to quarantine, if anyone is to be.
    pub(crate) fn crashed(&mut self, now: Instant, verdict: Verdict, limits: &Limits) -> Option<u32> {
        self.crashes.retain(|(at, _)| now.saturating_duration_since(*at) < limits.blame_time);
        if self.crashes.len() == CRASHES_MAX {
            self.crashes.pop_front();
        }
        self.crashes.push_back((now, verdict));
        let certain = self.worst(|verdict| &verdict.certain, limits.blame_crashes);
        certain.or_else(|| {
            let unsure = |verdict: &Verdict| verdict.certain.is_empty();
            if self.crashes.iter().filter(|(_, verdict)| unsure(verdict)).count()
                < limits.blame_crashes.saturating_mul(UNSURE_FACTOR)
            {
                return None;
            }
            self.worst(|verdict| &verdict.possible, limits.blame_crashes.saturating_mul(UNSURE_FACTOR))
        })
    }

    /// Crashes with this ssd in hand.
    pub(crate) fn count(&self, ssd: u32) -> usize {
        let in_hand = |verdict: &Verdict| match verdict.certain.is_empty() {
            true => verdict.possible.contains(&ssd),
            false => verdict.certain.contains(&ssd),
        };
        self.crashes.iter().filter(|(_, verdict)| in_hand(verdict)).count()
    }

    /// What this ssd did is forgotten: it was quarantined, or released.
    pub(crate) fn forget(&mut self, ssd: u32) {
        for (_, verdict) in &mut self.crashes {
            verdict.certain.retain(|other| *other != ssd);
            verdict.possible.retain(|other| *other != ssd);
        }
        self.crashes.retain(|(_, verdict)| !verdict.certain.is_empty() || !verdict.possible.is_empty());
    }

    fn worst(&self, list: impl Fn(&Verdict) -> &Vec<u32>, least: usize) -> Option<u32> {
        let (_, newest) = self.crashes.back()?;
        let count =
            |ssd: u32| self.crashes.iter().filter(|(_, verdict)| list(verdict).contains(&ssd)).count();
        let worst = list(newest).iter().copied().max_by_key(|ssd| count(*ssd))?;
        (count(worst) >= least).then_some(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certain(ssd: u32) -> Verdict {
        Verdict { certain: vec![ssd], possible: vec![0, ssd] }
    }

    #[test]
    fn an_engine_that_served_is_replaced_at_once_and_a_crash_loop_backs_off() {
        let limits = Limits::default();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(Some(Duration::from_secs(1)), &limits), Duration::ZERO);
        let pauses: Vec<_> = (0..14).map(|_| backoff.pause(None, &limits).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000]);
        assert_eq!(backoff.failures(), 14);
        assert_eq!(backoff.pause(Some(Duration::from_millis(99)), &limits).as_millis(), 5000);
        assert_eq!(backoff.pause(Some(Duration::from_millis(100)), &limits), Duration::ZERO);
        assert_eq!(backoff.pause(None, &limits), Duration::ZERO);
    }

    #[test]
    fn three_crashes_in_the_same_hands_are_one_too_many() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut blame = Blame::default();
        assert_eq!(blame.crashed(now, certain(7), &limits), None);
        assert_eq!(blame.crashed(now, certain(3), &limits), None);
        assert_eq!(blame.crashed(now, certain(7), &limits), None);
        assert_eq!(blame.crashed(now, certain(3), &limits), None);
        assert_eq!((blame.count(7), blame.count(3), blame.count(0)), (2, 2, 0));
        assert_eq!(blame.crashed(now, certain(7), &limits), Some(7));
        blame.forget(7);
        assert_eq!(blame.crashed(now, certain(3), &limits), Some(3));
    }

    #[test]
    fn crashes_long_ago_do_not_count() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut blame = Blame::default();
        for minute in 0..10 {
            let at = now + Duration::from_secs(minute * 60);
            assert_eq!(blame.crashed(at, certain(1), &limits), None);
        }
    }

    #[test]
    fn where_no_thread_said_it_failed_more_crashes_are_needed() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut blame = Blame::default();
        let unsure = |other: u32| Verdict { certain: vec![], possible: vec![other, 5] };
        for crash in 0..5 {
            assert_eq!(blame.crashed(now, unsure(crash + 10), &limits), None, "crash {crash}");
        }
        assert_eq!(blame.crashed(now, unsure(30), &limits), Some(5));
    }
}
