//! The longest time without a completion.

/// Watches the completions of one ssd.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    last_ns: u64,
    longest_ns: u64,
}

impl Gaps {
    /// From now on.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Gaps { last_ns: now_ns, longest_ns: 0 }
    }

    /// When something was completed last, or nobody waited.
    #[must_use]
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Something was completed.
    pub fn completion(&mut self, now_ns: u64) {
        self.longest_ns = self.longest_ns.max(now_ns.saturating_sub(self.last_ns));
        self.last_ns = now_ns;
    }

    /// Nobody waits for anything.
    pub fn idle(&mut self, now_ns: u64) {
        self.last_ns = now_ns;
    }

    /// The longest gap of the window that ends now, one that is still open included, and a new window. A gap that reaches
    /// over the border counts in both, whole: it is as long as it is.
    pub fn take(&mut self, now_ns: u64) -> u64 {
        let longest = self.longest_ns.max(now_ns.saturating_sub(self.last_ns));
        self.longest_ns = 0;
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_of_each_window_counts_and_an_open_one_too() {
        let mut gaps = Gaps::new(0);
        [10, 30, 35].iter().for_each(|now| gaps.completion(*now));
        assert_eq!(gaps.take(40), 20);
        assert_eq!(gaps.take(50), 15, "nothing came since 35");
        gaps.completion(60);
        assert_eq!(gaps.take(60), 25, "the gap that began before the window");
        gaps.completion(61);
        assert_eq!(gaps.take(61), 1);
    }

    #[test]
    fn a_rest_is_no_gap() {
        let mut gaps = Gaps::new(0);
        gaps.completion(10);
        gaps.idle(500);
        assert_eq!(gaps.take(505), 10);
        gaps.completion(520);
        assert_eq!(gaps.take(520), 20);
    }
}
