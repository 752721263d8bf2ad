//! The words of a map, and how they are ordered.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words of zeros that take no memory until they are written. `None`: there is not even address space.
#[cfg(not(loom))]
pub(crate) fn zeros(count: usize) -> Option<Box<[AtomicU64]>> {
    zerocopy::FromZeros::new_box_zeroed_with_elems(count).ok()
}

#[cfg(loom)]
pub(crate) fn zeros(count: usize) -> Option<Box<[AtomicU64]>> {
    Some((0..count).map(|_| AtomicU64::new(0)).collect())
}

/// Between an access to one word and an access to another that must not change places. Both are `SeqCst`, which says so already; the model
/// checker knows that order by fences only.
#[inline]
pub(crate) fn in_order() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Changes a word that nobody else has: no lock, no order.
#[cfg(not(loom))]
#[inline]
pub(crate) fn own<R>(word: &mut AtomicU64, change: impl FnOnce(&mut u64) -> R) -> R {
    change(word.get_mut())
}

#[cfg(loom)]
pub(crate) fn own<R>(word: &mut AtomicU64, change: impl FnOnce(&mut u64) -> R) -> R {
    word.with_mut(change)
}
