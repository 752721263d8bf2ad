//! Stores into memory that a successor reads: each is a point where a simulated process can end (see [`crash`]).
//!
//! Nothing else in this crate stores into the region, the doorbell page or a completion queue.
//!
//! [`crash`]: crate::crash

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memory::{DoorbellPage, Fault, Window};

use crate::crash;
use crate::order::publish;

/// A store that a later [`publish64`] makes visible.
#[inline(always)]
pub(crate) fn put64(word: &AtomicU64, value: u64) {
    crash::point();
    word.store(value, Ordering::Relaxed);
}

/// As [`put64`].
#[inline(always)]
pub(crate) fn put32(word: &AtomicU32, value: u32) {
    crash::point();
    word.store(value, Ordering::Relaxed);
}

/// A step of the protocol: see [`publish`].
#[inline(always)]
pub(crate) fn publish64(word: &AtomicU64, value: u64) {
    crash::point();
    publish(word, value);
}

/// As [`publish64`].
#[inline(always)]
pub(crate) fn publish32(word: &AtomicU32, value: u32) {
    crash::point();
    publish(word, value);
}

/// Sets and clears bits of a word that only this reactor writes, in one store.
pub(crate) fn change32(word: &AtomicU32, change: impl FnOnce(u32) -> u32) {
    publish32(word, change(word.load(Ordering::Acquire)));
}

/// As [`change32`]. Returns the new value.
pub(crate) fn change64(word: &AtomicU64, change: impl FnOnce(u64) -> u64) -> u64 {
    let value = change(word.load(Ordering::Acquire));
    publish64(word, value);
    value
}

/// A word of the doorbell page.
pub(crate) fn put_doorbell(page: &DoorbellPage, index: usize, value: u32) {
    crash::point();
    page.store(index, value);
}

/// A completion queue entry: dwords 0 to 2, then dword 3 with the phase tag (Base 2.1, 4.2.1).
#[cfg(not(any(test, feature = "crash-points")))]
#[inline(always)]
pub(crate) fn put_completion(ring: &Window, offset: usize, entry: u128) -> Result<(), Fault> {
    ring.write_completion(offset, entry)
}

/// The same in two steps that an end can come between.
#[cfg(any(test, feature = "crash-points"))]
pub(crate) fn put_completion(ring: &Window, offset: usize, entry: u128) -> Result<(), Fault> {
    let bytes: [u8; 16] = entry.to_le_bytes();
    let (head, last): ([u8; 12], [u8; 4]) = zerocopy::transmute!(bytes);
    crash::point();
    ring.write(offset, &head)?;
    crash::point();
    ring.store_u32(offset + 12, u32::from_le_bytes(last))
}
