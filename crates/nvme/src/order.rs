//! The two orders that this crate argues with, over any atomics, so that loom can go through what they promise.
//!
//! - [`publish`] and [`copy_then`]: stores of one writer that a successor, or the host, must see in this order
//!   (`docs/formats/controller-region.md`).
//! - [`meet`]: two sides that each tell something and then look for what the other told. One of them sees it.

#[cfg(loom)]
use loom::sync::atomic as cells;

#[cfg(not(loom))]
use core::sync::atomic as cells;

use cells::fence;
use core::sync::atomic::Ordering;

/// A word in shared memory, of the real atomics or of loom's.
pub(crate) trait Word {
    /// What it holds.
    type Value;
    /// Stores it.
    fn put(&self, value: Self::Value, order: Ordering);
}

macro_rules! words {
    ($($atomic:path => $value:ty),*) => {$(
        impl Word for $atomic {
            type Value = $value;
            #[inline(always)]
            fn put(&self, value: $value, order: Ordering) {
                self.store(value, order);
            }
        }
    )*};
}

words!(core::sync::atomic::AtomicU32 => u32, core::sync::atomic::AtomicU64 => u64);
#[cfg(loom)]
words!(loom::sync::atomic::AtomicU64 => u64);

/// A step of a protocol: everything stored before is visible to who sees this value, and nothing stored after is before.
///
/// Release alone would let later plain stores move up before it: the next command's completion into a slot that still
/// says POSTING, say. The fence costs no instruction on x86 and a store barrier elsewhere.
#[inline(always)]
pub(crate) fn publish<W: Word>(word: &W, value: W::Value) {
    word.put(value, Ordering::Release);
    fence(Ordering::Release);
}

/// Tells, and then looks: who tells and looks the same way round on the other side, and was not seen here, sees this.
#[inline(always)]
pub(crate) fn meet<T>(tell: impl FnOnce(), look: impl FnOnce() -> T) -> T {
    tell();
    fence(Ordering::SeqCst);
    look()
}

#[cfg(all(test, loom))]
mod models;
