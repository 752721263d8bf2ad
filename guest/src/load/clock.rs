//! Time in the loop: the time stamp counter, and a thread that stays on its core.
#![expect(unsafe_code, reason = "the intrinsic that reads the time stamp counter")]
// UNSAFETY: `_rdtsc` has no precondition on x86-64; nothing else here is unsafe.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Result;

/// The time stamp counter now; nanoseconds on machines without one.
#[inline]
#[must_use]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user space execute it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
    }
}

/// How long a tick is.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ns_per_tick: f64,
}

impl Clock {
    /// Measures the counter against the monotonic clock for 50 ms.
    #[must_use]
    pub fn calibrate() -> Self {
        let (instant, start) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(50));
        let (elapsed, passed) = (instant.elapsed(), ticks() - start);
        #[expect(clippy::cast_precision_loss, reason = "a ratio; 53 bits are plenty")]
        let ns_per_tick = elapsed.as_nanos() as f64 / passed as f64;
        Clock { ns_per_tick }
    }

    /// Nanoseconds of a number of ticks.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "tick counts of a bench are far below 2^53")]
    pub fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }

    /// Ticks of a duration.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive count below 2^64"
    )]
    pub fn ticks(&self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * 1e9 / self.ns_per_tick) as u64
    }
}

/// Keeps the calling thread on one core.
///
/// # Errors
/// No such core.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs `start` free of [`pin`], so that a process it starts does not inherit the core.
///
/// # Errors
/// The affinity cannot be read or set.
pub fn unpinned<T>(start: impl FnOnce() -> T) -> Result<T> {
    let pinned = sched_getaffinity(None)?;
    let mut every = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| every.set(cpu));
    sched_setaffinity(None, &every)?;
    let started = start();
    sched_setaffinity(None, &pinned)?;
    Ok(started)
}
