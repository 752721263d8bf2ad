//! A page in which an engine's threads say whose turn it is, so that the keeper knows whom a crash concerns.
//!
//! The keeper makes it (a sealed memfd, new for each engine) and sends it with [`crate::control::Welcome`]. Each thread of
//! the engine has a line. One relaxed store when a thread turns to another ssd is all it costs.

use core::sync::atomic::{AtomicU32, Ordering};
use zerocopy::FromBytes;

/// Lines of a page: reactors count from 0, other threads (sessions, private reactors) from [`FIRST_OTHER`] round robin.
pub const LINES: usize = 128;
/// The first line that is no shared reactor's.
pub const FIRST_OTHER: usize = 64;
/// Bytes of a page.
pub const PAGE_BYTES: usize = LINES * 64;

/// The page, as an engine maps it.
#[derive(FromBytes)]
#[repr(C)]
pub struct Page {
    /// One for each thread.
    pub lines: [Line; LINES],
}

/// What one thread is at. A line of its own, so that no two threads share a cache line.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Line {
    in_hand: AtomicU32,
    crashed: AtomicU32,
    reserved: [AtomicU32; 14],
}

impl Line {
    /// From now on this thread works for the ssd with this number (of [`crate::control::Slot`]), or for none.
    #[inline]
    pub fn turn_to(&self, ssd: Option<u32>) {
        self.in_hand.store(ssd.map_or(0, |ssd| ssd.saturating_add(1)), Ordering::Relaxed);
    }

    /// This thread is the one that fails (panic hook, signal handler: async-signal-safe).
    #[inline]
    pub fn crashed(&self) {
        self.crashed.store(1, Ordering::Relaxed);
    }
}

/// Who was in whose hands when the engine ended, read from the bytes of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// In the hands of the thread that failed.
    pub certain: Vec<u32>,
    /// In the hands of any thread.
    pub possible: Vec<u32>,
}

/// Reads a dead engine's page; any bytes are a verdict. Numbers that are not `is_known` are ignored.
#[must_use]
pub fn verdict(page: &[u8], is_known: impl Fn(u32) -> bool) -> Verdict {
    let mut verdict = Verdict::default();
    for line in page.chunks_exact(64).take(LINES) {
        let word = |at: usize| {
            line.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let Some(ssd) = word(0).checked_sub(1).filter(|ssd| is_known(*ssd)) else { continue };
        let lists = [Some(&mut verdict.possible), (word(4) != 0).then_some(&mut verdict.certain)];
        for list in lists.into_iter().flatten().filter(|list| !list.contains(&ssd)) {
            list.push(ssd);
        }
    }
    verdict
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);
