//! Since when the commands of a submission queue wait, as far as looking at its doorbell now and then can tell: each arrived after
//! the last look that did not find it.

use block::Now;

/// Arrivals that are told apart.
const RUNS_MAX: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Oldest first: so many commands, and when they were not there yet. Beyond `len`: nothing.
    runs: [(u32, Now); RUNS_MAX],
    len: usize,
}

impl Arrivals {
    /// So many wait; those that are new came after `since`.
    #[inline]
    pub(super) fn look(&mut self, waiting: u32, since: Now) {
        let known = self.known();
        if waiting == known {
            return;
        }
        if waiting < known {
            // The queue is not what it was.
            self.len = 0;
            return self.look(waiting, since);
        }
        match self.runs.get_mut(self.len) {
            Some(run) => {
                *run = (waiting - known, since);
                self.len += 1;
            }
            // They count as older than they are.
            None => self.runs[RUNS_MAX - 1].0 += waiting - known,
        }
    }

    #[inline]
    fn known(&self) -> u32 {
        self.runs.iter().take(self.len).fold(0, |sum, (count, _)| sum.wrapping_add(*count))
    }

    /// How many have waited since when, `behind` so many others.
    #[inline]
    pub(super) fn behind(&self, mut behind: u32) -> Option<(u32, Now)> {
        for (count, since) in self.runs.iter().take(self.len) {
            match count.checked_sub(behind) {
                None | Some(0) => behind -= count,
                Some(left) => return Some((left, *since)),
            }
        }
        None
    }

    /// So many were taken.
    #[inline]
    pub(super) fn took(&mut self, mut taken: u32) {
        let mut gone = 0;
        for (count, _) in self.runs.iter_mut().take(self.len) {
            if taken < *count {
                *count -= taken;
                break;
            }
            taken -= *count;
            gone += 1;
        }
        if gone > 0 {
            self.runs.copy_within(gone..self.len, 0);
            self.len -= gone;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_waited_since_the_last_look_that_did_not_find_it() {
        let mut arrivals = Arrivals::default();
        arrivals.look(3, Now(10));
        arrivals.look(3, Now(20));
        arrivals.look(5, Now(30));
        assert_eq!(arrivals.behind(0), Some((3, Now(10))));
        assert_eq!(arrivals.behind(2), Some((1, Now(10))));
        assert_eq!(arrivals.behind(3), Some((2, Now(30))));
        assert_eq!(arrivals.behind(5), None);
        arrivals.took(4);
        assert_eq!(arrivals.behind(0), Some((1, Now(30))));
        arrivals.look(2, Now(40));
        assert_eq!(arrivals.behind(1), Some((1, Now(40))));
        arrivals.took(2);
        assert_eq!((arrivals.len, arrivals.behind(0)), (0, None));
    }

    #[test]
    fn what_cannot_be_told_apart_counts_as_older() {
        let mut arrivals = Arrivals::default();
        (1..=20).for_each(|at| arrivals.look(at, Now(u64::from(at))));
        assert_eq!(arrivals.known(), 20);
        assert_eq!(arrivals.behind(19), Some((1, Now(8))));
        arrivals.look(2, Now(50));
        assert_eq!(arrivals.behind(0), Some((2, Now(50))), "the queue was emptied by others");
    }
}
