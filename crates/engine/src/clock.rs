//! The engine's clock: the only place where time is read on the I/O path.
#![expect(unsafe_code, reason = "reading the time stamp counter is an intrinsic")]
// UNSAFETY: one call of `_rdtsc`, which has no preconditions but the instruction's presence (all x86-64).

use block::Now;
use std::time::Instant;

/// Raw ticks of the fastest steady counter: TSC on x86-64 (a turn of a reactor costs one read, about 8 ns), else the
/// monotonic clock.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC exists on every x86-64 CPU; where a kernel forbids it in user mode (PR_SET_TSC), nothing of ours does.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static ORIGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Converts ticks to nanoseconds since the clock was made. Never goes back while the counter does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: u64,
    /// Nanoseconds a tick, as a fixed-point number with 32 fractional bits.
    scale: u64,
}

impl Clock {
    /// Measures the counter against the monotonic clock for a few milliseconds.
    pub(crate) fn calibrate() -> Self {
        let (start, start_ticks) = (Instant::now(), ticks());
        while start.elapsed().as_millis() < 10 {
            std::thread::yield_now();
        }
        let (elapsed, elapsed_ticks) = (start.elapsed(), ticks().saturating_sub(start_ticks).max(1));
        let scale = (elapsed.as_nanos() << 32) / u128::from(elapsed_ticks);
        Self { origin: start_ticks, scale: u64::try_from(scale).unwrap_or(1 << 32) }
    }

    /// The time at `ticks`.
    pub(crate) fn at(self, ticks: u64) -> Now {
        Now(self.span_ns(ticks.saturating_sub(self.origin)))
    }

    /// A number of ticks as nanoseconds.
    pub(crate) fn span_ns(self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * u128::from(self.scale)) >> 32;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_clock_agrees_with_the_monotonic_clock() {
        let clock = Clock::calibrate();
        let (from, from_ticks) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(20));
        let (span, span_ticks) = (from.elapsed(), ticks() - from_ticks);
        let ratio = clock.span_ns(span_ticks) as f64 / span.as_nanos() as f64;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}
