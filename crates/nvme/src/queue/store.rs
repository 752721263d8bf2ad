//! The stores of the protocol, each in one named place.
//!
//! In tests a thread has fuel: each store burns one unit, and with none left stores have no effect. What is in memory then is
//! what a process killed at that instruction would leave.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use memory::{Fault, Window};

#[cfg(test)]
fn alive() -> bool {
    fuel::burn()
}

#[cfg(not(test))]
#[inline(always)]
const fn alive() -> bool {
    true
}

/// A store that a later [`publish64`] makes visible.
#[inline(always)]
pub(super) fn put64(word: &AtomicU64, value: u64) {
    if alive() {
        word.store(value, Ordering::Relaxed);
    }
}

/// As [`put64`].
#[inline(always)]
pub(super) fn put32(word: &AtomicU32, value: u32) {
    if alive() {
        word.store(value, Ordering::Relaxed);
    }
}

/// A step of the protocol: everything stored before is visible to who sees this value, and nothing stored after is before.
///
/// Release alone would let later plain stores move up before it: the next command's completion into a slot that still
/// says POSTING, say. The fence costs no instruction on x86 and a store barrier elsewhere.
#[inline(always)]
pub(super) fn publish64(word: &AtomicU64, value: u64) {
    if alive() {
        word.store(value, Ordering::Release);
        fence(Ordering::Release);
    }
}

/// As [`publish64`].
#[inline(always)]
pub(super) fn publish32(word: &AtomicU32, value: u32) {
    if alive() {
        word.store(value, Ordering::Release);
        fence(Ordering::Release);
    }
}

/// A completion queue entry: dwords 0 to 2, then dword 3 with the phase tag (Base 2.1, 4.2.1).
#[cfg(not(test))]
#[inline(always)]
pub(super) fn put_completion(ring: &Window, offset: usize, dwords: [u32; 4]) -> Result<(), Fault> {
    ring.write_completion(offset, dwords)
}

/// The same in two steps that a test can come between.
#[cfg(test)]
pub(super) fn put_completion(ring: &Window, offset: usize, dwords: [u32; 4]) -> Result<(), Fault> {
    let head: [u8; 12] = zerocopy::transmute!([dwords[0], dwords[1], dwords[2]]);
    if alive() {
        ring.write(offset, &head)?;
    }
    if alive() {
        ring.store_u32(offset + 12, dwords[3])?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod fuel {
    use std::cell::Cell;

    thread_local! {
        static FUEL: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// This many stores take effect from now on; `u64::MAX` is no limit.
    pub(crate) fn set(stores: u64) {
        FUEL.set(stores);
    }

    /// What is left.
    pub(crate) fn left() -> u64 {
        FUEL.get()
    }

    pub(super) fn burn() -> bool {
        let left = FUEL.get();
        if left != u64::MAX && left > 0 {
            FUEL.set(left - 1);
        }
        left > 0
    }
}
