//! The engine's clock: the only place where time is read on the I/O path.
#![expect(unsafe_code, reason = "reading the time stamp counter is an intrinsic")]
// UNSAFETY: one call of `_rdtsc`, which has no preconditions but the instruction's presence (all x86-64).

use block::Now;

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
        monotonic_ns()
    }
}

/// Both clocks at one moment, as nearly as can be had: a thread that is put aside between the two looks tries again.
fn pair() -> (u64, u64) {
    let look = || {
        let (before, ns, after) = (ticks(), monotonic_ns(), ticks());
        (after.saturating_sub(before), ns, before)
    };
    let best = (0..16).map(|_| look()).min_by_key(|(span, ..)| *span);
    best.map_or((0, 0), |(_, ns, ticks)| (ns, ticks))
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}

/// Converts ticks to nanoseconds of the machine's monotonic clock, so that times an earlier engine left in a controller's
/// shared state mean the same to the next one. Never goes back while the counter does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: u64,
    origin_ns: u64,
    /// Nanoseconds a tick, as a fixed-point number with 32 fractional bits.
    scale: u64,
}

/// The counter is measured against the monotonic clock over a millisecond. A restarted engine, whose guests wait, begins that
/// before it does anything else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calibration {
    start_ns: u64,
    start_ticks: u64,
}

impl Calibration {
    pub(crate) fn begin() -> Self {
        let (start_ns, start_ticks) = pair();
        Self { start_ns, start_ticks }
    }
}

impl Clock {
    /// Waits out the millisecond.
    pub(crate) fn calibrate(Calibration { start_ns, start_ticks }: Calibration) -> Self {
        while monotonic_ns().saturating_sub(start_ns) < 1_000_000 {
            std::hint::spin_loop();
        }
        let (end_ns, end_ticks) = pair();
        let (elapsed_ns, elapsed) = (end_ns - start_ns, end_ticks.saturating_sub(start_ticks).max(1));
        let scale = (u128::from(elapsed_ns) << 32) / u128::from(elapsed);
        Self { origin: start_ticks, origin_ns: start_ns, scale: u64::try_from(scale).unwrap_or(1 << 32) }
    }

    /// The time at `ticks`.
    pub(crate) fn at(self, ticks: u64) -> Now {
        Now(self.origin_ns.saturating_add(self.span_ns(ticks.saturating_sub(self.origin))))
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

    #[test]
    fn the_clock_agrees_with_the_monotonic_clock() {
        let clock = Clock::calibrate(Calibration::begin());
        let (from, from_ticks) = pair();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (to, to_ticks) = pair();
        let ratio = clock.span_ns(to_ticks - from_ticks) as f64 / (to - from) as f64;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}
