//! Where a door looks for the answer to a release.

use std::sync::atomic::{AtomicU8, Ordering};

/// See the module. Answered once, by the pool's thread.
#[derive(Debug, Default)]
pub struct Ticket(AtomicU8);

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Not yet answered.
    Open,
    /// The extents are given back, durably: they read as zeros.
    Done,
    /// They are as they were.
    Failed,
}

impl Ticket {
    /// Says what became of it; then [`crate::door::Gate::announce`] makes the door look.
    pub fn answer(&self, done: bool) {
        self.0.store(if done { 1 } else { 2 }, Ordering::Release);
    }

    /// What is said.
    #[must_use]
    pub fn answered(&self) -> Answered {
        match self.0.load(Ordering::Acquire) {
            0 => Answered::Open,
            1 => Answered::Done,
            _ => Answered::Failed,
        }
    }
}
