//! Ranges of numbers with a value each, kept as few and long as can be.

use std::collections::BTreeMap;

/// A value at the start of a run, from which those of the whole run follow.
pub(crate) trait Step: Copy + PartialEq {
    /// The value `by` places further on in the same run.
    fn step(self, by: u32) -> Self;
}

/// `count` numbers from `first` on, and the value at `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run<V> {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) value: V,
}

impl<V> Run<V> {
    /// One past the last.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// Disjoint runs. Neighbours that continue each other are one, so that the same contents have one form only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs<V> {
    by_first: BTreeMap<u32, (u32, V)>,
    total: u64,
}

impl<V> Default for Runs<V> {
    fn default() -> Self {
        Self { by_first: BTreeMap::new(), total: 0 }
    }
}

impl<V: Step> Runs<V> {
    /// Numbers in all runs.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many runs there are.
    pub(crate) fn len(&self) -> u64 {
        self.by_first.len() as u64
    }

    /// All runs, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run<V>> + '_ {
        self.by_first.iter().map(|(&first, &(count, value))| Run { first, count, value })
    }

    /// Runs that begin at `from` or later, then those before it.
    pub(crate) fn iter_round(&self, from: u32) -> impl Iterator<Item = Run<V>> + '_ {
        let run = |(&first, &(count, value)): (&u32, &(u32, V))| Run { first, count, value };
        self.by_first.range(from..).map(run).chain(self.by_first.range(..from).map(run))
    }

    /// The parts of runs that lie in `count` numbers from `first` on, ascending.
    pub(crate) fn within(&self, first: u32, count: u32) -> impl Iterator<Item = Run<V>> + '_ {
        let end = u64::from(first) + u64::from(count);
        let before = self.by_first.range(..first).next_back();
        let last = u32::try_from(end.saturating_sub(1)).unwrap_or(u32::MAX);
        let inside = (count > 0).then(|| self.by_first.range(first..=last));
        before.into_iter().filter(move |_| count > 0).chain(inside.into_iter().flatten()).filter_map(
            move |(&start, &(len, value))| clip(Run { first: start, count: len, value }, first, end),
        )
    }

    /// The value at a number.
    pub(crate) fn get(&self, at: u32) -> Option<V> {
        self.within(at, 1).next().map(|run| run.value)
    }

    /// Whether every one of `count` numbers from `first` on has a value.
    pub(crate) fn covers(&self, first: u32, count: u32) -> bool {
        self.within(first, count).map(|run| u64::from(run.count)).sum::<u64>() == u64::from(count)
    }

    /// Adds a run where there is none; `false` (and nothing done) when part of it has a value, or it is empty or ends
    /// beyond the last number.
    pub(crate) fn insert(&mut self, run: Run<V>) -> bool {
        if run.count == 0
            || run.end() > u64::from(u32::MAX)
            || self.within(run.first, run.count).next().is_some()
        {
            return false;
        }
        self.total += u64::from(run.count);
        let mut joined = run;
        if let Some((&first, &(count, value))) = self.by_first.range(..run.first).next_back()
            && first + count == run.first
            && value.step(count) == run.value
        {
            joined = Run { first, count: count + run.count, value };
        }
        if let Some(&(count, value)) = self.by_first.get(&(run.first + run.count))
            && run.value.step(run.count) == value
        {
            self.by_first.remove(&(run.first + run.count));
            joined.count += count;
        }
        self.by_first.insert(joined.first, (joined.count, joined.value));
        true
    }

    /// Takes out what lies in `count` numbers from `first` on, and says what it was.
    pub(crate) fn remove(&mut self, first: u32, count: u32) -> Vec<Run<V>> {
        let taken: Vec<Run<V>> = self.within(first, count).collect();
        for part in &taken {
            self.total -= u64::from(part.count);
            let Some((&start, &(len, value))) = self.by_first.range(..=part.first).next_back() else {
                continue;
            };
            self.by_first.remove(&start);
            let head = part.first - start;
            if head > 0 {
                self.by_first.insert(start, (head, value));
            }
            let tail = len - head - part.count;
            if tail > 0 {
                let at = part.first + part.count;
                self.by_first.insert(at, (tail, value.step(head + part.count)));
            }
        }
        taken
    }
}

/// The part of a run from `first` to before `end`.
fn clip<V: Step>(run: Run<V>, first: u32, end: u64) -> Option<Run<V>> {
    let skip = first.saturating_sub(run.first);
    let stop = run.end().min(end);
    let start = run.first + skip.min(run.count);
    let count = u32::try_from(stop.checked_sub(u64::from(start))?).ok()?;
    (count > 0 && skip < run.count).then(|| Run { first: start, count, value: run.value.step(skip) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Rising(u32);

    impl Step for Rising {
        fn step(self, by: u32) -> Self {
            Self(self.0 + by)
        }
    }

    #[test]
    fn runs_say_what_an_array_would_say_and_have_one_form() {
        let mut seed = 7_u32;
        let mut chance = move |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % below
        };
        let (mut runs, mut array) = (Runs::default(), [None; 64]);
        for _ in 0..20_000 {
            let first = chance(64);
            let count = chance(12).min(64 - first);
            let span = first as usize..(first + count) as usize;
            if chance(2) == 0 {
                let value = Rising(first + 100 * chance(2));
                let fits = count > 0 && array[span.clone()].iter().all(Option::is_none);
                assert_eq!(runs.insert(Run { first, count, value }), fits);
                if fits {
                    for (by, slot) in array[span].iter_mut().enumerate() {
                        *slot = Some(value.0 + u32::try_from(by).expect("small"));
                    }
                }
            } else {
                let gone: u32 = runs.remove(first, count).iter().map(|run| run.count).sum();
                assert_eq!(gone as usize, array[span.clone()].iter().flatten().count());
                array[span].fill(None);
            }
            assert_eq!(runs.total(), array.iter().flatten().count() as u64);
            for (at, want) in (0..).zip(array) {
                assert_eq!(runs.get(at).map(|value| value.0), want);
            }
            let list: Vec<_> = runs.iter().collect();
            for pair in list.windows(2) {
                let touch = pair[0].end() == u64::from(pair[1].first);
                assert!(
                    !touch || pair[0].value.step(pair[0].count) != pair[1].value,
                    "two runs that are one"
                );
            }
        }
    }

    #[test]
    fn the_last_numbers_do_not_wrap() {
        let mut runs = Runs::default();
        assert!(!runs.insert(Run { first: u32::MAX, count: 2, value: Rising(0) }));
        assert!(!runs.insert(Run { first: 0, count: 0, value: Rising(0) }));
        assert!(runs.insert(Run { first: u32::MAX - 3, count: 2, value: Rising(0) }));
        assert_eq!(runs.within(0, u32::MAX).count(), 1);
        assert!(runs.covers(u32::MAX - 3, 2));
        assert!(!runs.covers(u32::MAX - 3, 3));
    }
}
