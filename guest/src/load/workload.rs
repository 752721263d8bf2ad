//! What is asked of the ssd.

use std::fmt;

/// Where the next command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere, uniformly.
    Random,
    /// Behind the last one, wrapping.
    Sequential,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the ssd.
    Read,
    /// To the ssd.
    Write,
}

/// One steady load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Where.
    pub pattern: Pattern,
    /// Which way.
    pub direction: Direction,
    /// Bytes a command.
    pub block_bytes: usize,
    /// Commands in flight.
    pub depth: usize,
}

impl Workload {
    /// 4 KiB at random.
    #[must_use]
    pub fn random(direction: Direction, depth: usize) -> Self {
        Workload { pattern: Pattern::Random, direction, block_bytes: 4096, depth }
    }

    /// 128 KiB in order.
    #[must_use]
    pub fn sequential(direction: Direction, depth: usize) -> Self {
        Workload { pattern: Pattern::Sequential, direction, block_bytes: 128 << 10, depth }
    }

    /// fio's word for pattern and direction.
    #[must_use]
    pub fn fio_rw(&self) -> &'static str {
        match (self.pattern, self.direction) {
            (Pattern::Random, Direction::Read) => "randread",
            (Pattern::Random, Direction::Write) => "randwrite",
            (Pattern::Sequential, Direction::Read) => "read",
            (Pattern::Sequential, Direction::Write) => "write",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}k-qd{}", self.fio_rw(), self.block_bytes >> 10, self.depth)
    }
}

/// A small fast generator (xorshift64*): the same places in every run with the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed; zero is replaced.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed.max(1))
    }

    /// Uniform below `bound` (at most 2^32).
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (high * bound) >> 32
    }
}

/// The places of successive commands, in units of the workload's block.
#[derive(Clone, Debug)]
pub struct Places {
    pattern: Pattern,
    random: Random,
    next: u64,
    count: u64,
}

impl Places {
    /// `count` places, at most 2^32.
    #[must_use]
    pub fn new(pattern: Pattern, count: u64, seed: u64) -> Self {
        Places { pattern, random: Random::new(seed), next: 0, count: count.min(1 << 32) }
    }

    /// The next place.
    #[inline]
    pub fn take(&mut self) -> u64 {
        match self.pattern {
            Pattern::Random => self.random.below(self.count),
            Pattern::Sequential => {
                let place = self.next;
                self.next = if place + 1 == self.count { 0 } else { place + 1 };
                place
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_as_in_the_tables() {
        assert_eq!(Workload::random(Direction::Read, 128).to_string(), "randread-4k-qd128");
        assert_eq!(Workload::sequential(Direction::Write, 8).to_string(), "write-128k-qd8");
    }

    #[test]
    fn random_places_stay_inside_and_reach_both_ends() {
        let mut places = Places::new(Pattern::Random, 10, 7);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[usize::try_from(places.take()).unwrap()] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn sequential_places_wrap() {
        let mut places = Places::new(Pattern::Sequential, 3, 7);
        assert_eq!([places.take(), places.take(), places.take(), places.take()], [0, 1, 2, 0]);
    }
}
