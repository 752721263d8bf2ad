//! The page a guest rings its doorbells in, with no exit.
//!
//! The page lies at the same offset in its memfd as in BAR0, as sparse-mmap clients compute it; what is before it in the
//! memfd (where BAR0 has its trapped registers) is never used.

use core::sync::atomic::{AtomicU32, Ordering};
use zerocopy::FromBytes;

/// BAR0 0x1000..0x1FFF with DSTRD 0 (Base 2.1, 3.1.4.1): word 2y is the tail doorbell of submission queue y, word
/// 2y + 1 the head doorbell of completion queue y. Little-endian, as the guest stores them.
#[derive(FromBytes)]
#[repr(C, align(4096))]
pub struct DoorbellPage {
    _registers: [AtomicU32; 1024],
    words: [AtomicU32; 1024],
}

impl DoorbellPage {
    /// Submission queue tail as the guest stored it. A queue beyond the page reads 0.
    #[inline]
    #[must_use]
    pub fn sq_tail(&self, sqid: u16) -> u32 {
        self.load(2 * usize::from(sqid))
    }

    /// Completion queue head as the guest stored it. A queue beyond the page reads 0.
    #[inline]
    #[must_use]
    pub fn cq_head(&self, cqid: u16) -> u32 {
        self.load(2 * usize::from(cqid) + 1)
    }

    /// Stores word `index`; one beyond the page is ignored.
    #[inline]
    pub fn store(&self, index: usize, value: u32) {
        if let Some(word) = self.words.get(index) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Word `index`, with acquire ordering: what the guest wrote before ringing is visible after this.
    #[inline]
    #[must_use]
    pub fn load(&self, index: usize) -> u32 {
        self.words.get(index).map_or(0, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    /// Asks the processor to bring the line of word `index` near. One beyond the page: nothing.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        if let Some(word) = self.words.get(index) {
            crate::prefetch(word);
        }
    }
}
