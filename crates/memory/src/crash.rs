//! Where a simulated process can end: before each store into shared memory and before each effect.
//!
//! With the feature `crash-points` a thread can be given so many points to live: at the last one
//! [`point`] unwinds with [`Crash`], past everything that a killed process would not do any more. Whoever runs the
//! device catches it, drops what was private to the "process" and goes on with what it shared. Without the feature every function
//! here is empty, and no instruction is left of it.

/// Whether points are compiled in.
pub const ENABLED: bool = cfg!(feature = "crash-points");

/// What the unwinding carries: not a bug, the end of a simulated process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash;

/// This thread dies at the `lives`th point from now; `u64::MAX` is never. Returns what was left of the former life.
#[cfg(feature = "crash-points")]
pub fn arm(lives: u64) -> u64 {
    fuel::FUEL.replace(lives)
}

/// No points are compiled in.
#[cfg(not(feature = "crash-points"))]
pub fn arm(_lives: u64) -> u64 {
    u64::MAX
}

/// Points this thread has passed, ever.
#[cfg(feature = "crash-points")]
#[must_use]
pub fn passed() -> u64 {
    fuel::PASSED.get()
}

/// No points are compiled in.
#[cfg(not(feature = "crash-points"))]
#[must_use]
pub fn passed() -> u64 {
    0
}

/// The process may end here, before what follows.
#[cfg(feature = "crash-points")]
#[inline]
pub fn point() {
    let left = fuel::FUEL.get();
    fuel::PASSED.set(fuel::PASSED.get().wrapping_add(1));
    if left == u64::MAX {
        return;
    }
    fuel::FUEL.set(left.saturating_sub(1));
    if left <= 1 {
        // What runs while unwinding is not the process any more: it must not die again.
        fuel::FUEL.set(u64::MAX);
        std::panic::resume_unwind(Box::new(Crash));
    }
}

/// No points are compiled in.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub const fn point() {}

#[cfg(feature = "crash-points")]
mod fuel {
    use std::cell::Cell;

    thread_local! {
        pub(super) static FUEL: Cell<u64> = const { Cell::new(u64::MAX) };
        pub(super) static PASSED: Cell<u64> = const { Cell::new(0) };
    }
}
