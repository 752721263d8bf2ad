//! How large a drive's window is: small enough that light ssds hear from the drive nearly as soon as without the others.
//!
//! ```text
//!  probe (window at its least): how soon do light ssds hear? --> run for two seconds: later than that by half -> a quarter less
//!    ^                                                            else an eighth more                           |
//!    +------------------------------------------------------------------------------------------------------------+
//! ```

/// Between two looks.
pub(super) const INTERVAL_NS: u64 = 20_000_000;
/// The least window.
pub(super) const WINDOW_MIN: u64 = 128 << 10;
/// The most: beyond it a drive is no faster.
pub(super) const WINDOW_MAX: u64 = 16 << 20;
/// Before anything is known.
const WINDOW_FIRST: u64 = 1 << 20;
/// Looks of a run.
const RUN_LOOKS: u32 = 100;
/// Looks of a probe at most, once what was at the drive before has drained.
const PROBE_LOOKS: u32 = 8;
/// Looks that a drive has for that at most.
const DRAIN_LOOKS: u32 = 50;
/// Ends that make a mean.
const ENOUGH: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The window is at its least, and what is at the drive still changes.
    Drain,
    Probe,
    Run,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pilot {
    phase: Phase,
    looks: u32,
    window: u64,
    /// How soon light ssds hear with the window at its least.
    best_ns: Option<u64>,
    ns: u64,
    ended: u64,
    /// At the drive at the last look.
    at_drive: u64,
}

impl Default for Pilot {
    fn default() -> Self {
        let (phase, window) = (Phase::Drain, WINDOW_FIRST);
        Self { phase, looks: 0, window, best_ns: None, ns: 0, ended: 0, at_drive: u64::MAX }
    }
}

impl Pilot {
    /// What light ssds had since the last look: requests times time, and ends; and what all have at the drive. Returns the window.
    pub(super) fn look(&mut self, ns: u64, ended: u64, at_drive: u64) -> u64 {
        self.looks += 1;
        let before = std::mem::replace(&mut self.at_drive, at_drive);
        match self.phase {
            Phase::Drain => {
                let steady = at_drive.abs_diff(before) <= before / 8;
                if steady || self.looks >= DRAIN_LOOKS {
                    (self.phase, self.looks) = (Phase::Probe, 0);
                }
            }
            Phase::Probe => self.probe(ns, ended),
            Phase::Run => self.run(ns, ended),
        }
        if self.phase == Phase::Run { self.window } else { WINDOW_MIN }
    }

    fn probe(&mut self, ns: u64, ended: u64) {
        self.gather(ns, ended);
        if self.ended < ENOUGH && self.looks < PROBE_LOOKS {
            return;
        }
        self.best_ns = self.take_mean(1).or(self.best_ns);
        (self.phase, self.looks) = (Phase::Run, 0);
    }

    fn run(&mut self, ns: u64, ended: u64) {
        self.gather(ns, ended);
        let best_ns = self.best_ns.unwrap_or(u64::MAX);
        match self.take_mean(ENOUGH) {
            Some(mean_ns) if mean_ns > best_ns.saturating_add(best_ns / 2) => {
                self.window = (self.window / 4 * 3).max(WINDOW_MIN);
            }
            Some(mean_ns) => {
                self.best_ns = Some(mean_ns.min(best_ns));
                self.window = (self.window + self.window / 8).min(WINDOW_MAX);
            }
            // Too few to say.
            None => {}
        }
        if self.looks >= RUN_LOOKS {
            (self.phase, self.looks, self.ns, self.ended) = (Phase::Drain, 0, 0, 0);
            self.at_drive = u64::MAX;
        }
    }

    fn gather(&mut self, ns: u64, ended: u64) {
        self.ns = self.ns.saturating_add(ns);
        self.ended = self.ended.saturating_add(ended);
    }

    fn take_mean(&mut self, enough: u64) -> Option<u64> {
        if self.ended < enough {
            return None;
        }
        Some(std::mem::take(&mut self.ns) / std::mem::take(&mut self.ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Light requests take `base_ns` and the time a drive of that speed needs for the window.
    fn settled(base_ns: u64, bytes_per_us: u64) -> u64 {
        let mut pilot = Pilot::default();
        let mut window = WINDOW_MAX;
        for _ in 0..2000 {
            let ns = base_ns + window * 1000 / bytes_per_us;
            window = pilot.look(ns * 50, 50, window);
        }
        pilot.window
    }

    #[test]
    fn the_window_keeps_light_ssds_within_half_more_of_their_best_time() {
        for (base_ns, bytes_per_us) in [(80_000, 3000), (200_000, 1000), (1_000_000, 200), (100_000, 50)] {
            let window = settled(base_ns, bytes_per_us);
            let best = base_ns + WINDOW_MIN * 1000 / bytes_per_us;
            let ns = base_ns + window * 1000 / bytes_per_us;
            assert!(ns <= best * 7 / 4, "{base_ns} {bytes_per_us}: {window}");
            assert!(window == WINDOW_MIN || ns >= best * 9 / 8, "{base_ns} {bytes_per_us}: {window} wastes");
        }
    }

    #[test]
    fn a_slower_drive_is_learnt_within_a_run() {
        let mut pilot = Pilot::default();
        let mut window = WINDOW_MAX;
        let mut run = |pilot: &mut Pilot, base_ns: u64, looks: u32| {
            for _ in 0..looks {
                window = pilot.look((base_ns + window) * 50, 50, window);
            }
        };
        run(&mut pilot, 100_000, 300);
        let before = pilot.window;
        run(&mut pilot, 2_000_000, 300);
        assert!(pilot.window > before, "what is slow by itself is no reason to hold others back");
    }
}
