//! Where a door looks for the answer to a release.

use std::sync::atomic::{AtomicU8, Ordering};

/// See the module. Answered once, by the pool's thread.
#[derive(Debug)]
pub struct Ticket {
    answer: AtomicU8,
    /// How large the volume was for whoever asks: its last extent, cut short by its end, is whole to them.
    size_bytes: u64,
}

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Not yet answered.
    Open,
    /// The extents are given back, durably: they read as zeros.
    Done,
    /// They are as they were.
    Failed,
    /// They are as they were: the volume has grown, and the last of them may be whole no more. Ask again.
    Outdated,
}

impl Ticket {
    /// For a release from a volume of this size.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { answer: AtomicU8::new(0), size_bytes }
    }

    /// Whether a release of the extents before `end` takes more from a volume of `size_bytes` than was known when it was asked for.
    #[must_use]
    pub fn is_outdated(&self, end: u32, extent_bytes: u64, size_bytes: u64) -> bool {
        size_bytes > self.size_bytes && u64::from(end).saturating_mul(extent_bytes) > self.size_bytes
    }

    /// Says what became of it; then [`crate::door::Gate::announce`] makes the door look.
    pub fn answer(&self, done: bool) {
        self.answer.store(if done { 1 } else { 2 }, Ordering::Release);
    }

    /// As [`Ticket::answer`], for one that [`Ticket::is_outdated`]. The gate has the new map.
    pub fn refuse_outdated(&self) {
        self.answer.store(3, Ordering::Release);
    }

    /// What is said.
    #[must_use]
    pub fn answered(&self) -> Answered {
        match self.answer.load(Ordering::Acquire) {
            0 => Answered::Open,
            1 => Answered::Done,
            3 => Answered::Outdated,
            _ => Answered::Failed,
        }
    }
}
