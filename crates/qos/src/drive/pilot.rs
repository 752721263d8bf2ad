//! How large a drive's window is: small enough that light ssds hear from the drive nearly as soon as without the others.
//!
//! ```text
//!  probe (window at its least): how soon do light ssds hear? --> run for two seconds: later than that by half -> a quarter less
//!    ^                                                            else an eighth more, below the ceiling         |
//!    +------------------------------------------------------------------------------------------------------------+
//! ```
//! Many drives do not slow down bit by bit: a virtual disk out of credit, or an SSD whose write cache is full, answers everybody ten times later at
//! once. Trying again and again where that lies would cost light ssds their slowest hundredth. So two such *falls* within a run (one may be
//! anybody's hiccup) make a ceiling below where they came, which is lifted a little after ten seconds without more, after twice as
//! long when that brings the next.

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
/// So many times later than at best is a fall: one slow request among those of a look is none.
const FALL: u64 = 12;
/// Looks with the window at its least after a fall, before the next probe: what is late already would spoil it.
const REST_LOOKS: u32 = 5;
/// Looks until a ceiling is lifted, first and at most.
const HOLD_LOOKS: u32 = 500;
const HOLD_LOOKS_MAX: u32 = 8 * HOLD_LOOKS;
/// No fall yet.
const NEVER: (u64, u32) = (WINDOW_MAX, RUN_LOOKS);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The window is at its least, and what is at the drive still changes.
    Drain,
    Probe,
    Run,
    /// After a fall.
    Rest,
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
    /// The window stays below.
    ceiling: u64,
    /// Looks until it is lifted, and how many those were at first.
    hold: u32,
    held: u32,
    /// It was lifted, and there was no fall since.
    lifted: bool,
    /// The last fall: the window it came with, and looks since then.
    fallen: (u64, u32),
    /// How late that was, until the next probe.
    fell_ns: Option<u64>,
}

impl Default for Pilot {
    fn default() -> Self {
        let (phase, window) = (Phase::Drain, WINDOW_FIRST);
        Self {
            phase,
            looks: 0,
            window,
            best_ns: None,
            ns: 0,
            ended: 0,
            at_drive: u64::MAX,
            ceiling: WINDOW_MAX,
            hold: 0,
            held: HOLD_LOOKS,
            lifted: false,
            fallen: NEVER,
            fell_ns: None,
        }
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
            Phase::Rest => {
                if self.looks >= REST_LOOKS {
                    self.begin_probe();
                }
            }
        }
        self.lift();
        if self.phase == Phase::Run { self.window } else { WINDOW_MIN }
    }

    fn probe(&mut self, ns: u64, ended: u64) {
        self.gather(ns, ended);
        if self.ended < ENOUGH && self.looks < PROBE_LOOKS {
            return;
        }
        self.best_ns = self.take_mean(1).or(self.best_ns);
        (self.phase, self.looks) = (Phase::Run, 0);
        if let Some((mean_ns, best_ns)) = self.fell_ns.take().zip(self.best_ns)
            && mean_ns <= best_ns.saturating_mul(FALL)
        {
            // The drive is slower by itself: nobody fell.
            (self.ceiling, self.fallen) = (WINDOW_MAX, NEVER);
        }
    }

    fn run(&mut self, ns: u64, ended: u64) {
        self.gather(ns, ended);
        let best_ns = self.best_ns.unwrap_or(u64::MAX);
        match self.take_mean(ENOUGH) {
            Some(mean_ns) if mean_ns > best_ns.saturating_mul(FALL) => return self.fall(mean_ns),
            Some(mean_ns) if mean_ns > best_ns.saturating_add(best_ns / 2) => {
                self.window = (self.window / 4 * 3).max(WINDOW_MIN);
            }
            Some(mean_ns) => {
                self.best_ns = Some(mean_ns.min(best_ns));
                self.window = (self.window + self.window / 8).min(self.ceiling);
            }
            // Too few to say.
            None => {}
        }
        if self.looks >= RUN_LOOKS {
            self.begin_probe();
        }
    }

    fn begin_probe(&mut self) {
        (self.phase, self.looks, self.ns, self.ended) = (Phase::Drain, 0, 0, 0);
        self.at_drive = u64::MAX;
    }

    /// The window may be too large by far.
    fn fall(&mut self, mean_ns: u64) {
        self.fell_ns = Some(mean_ns);
        let (before, since) = std::mem::replace(&mut self.fallen, (self.window, 0));
        if since < RUN_LOOKS {
            self.ceiling = (self.window.min(before) / 4 * 3).max(WINDOW_MIN);
            self.held = if std::mem::take(&mut self.lifted) { self.held * 2 } else { HOLD_LOOKS };
            self.held = self.held.min(HOLD_LOOKS_MAX);
            self.hold = self.held;
        }
        self.window = (self.window / 2).clamp(WINDOW_MIN, self.ceiling);
        (self.phase, self.looks) = (Phase::Rest, 0);
    }

    /// A ceiling that has held for long enough rises; the next rise comes when a run has borne this one out.
    fn lift(&mut self) {
        self.fallen.1 = self.fallen.1.saturating_add(1);
        if self.hold > 0 {
            self.hold -= 1;
        } else if self.ceiling < WINDOW_MAX {
            self.ceiling = (self.ceiling + self.ceiling / 8).min(WINDOW_MAX);
            (self.hold, self.lifted) = (RUN_LOOKS, true);
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

    /// A drive that answers at once up to a depth, and all thirty times later beyond it.
    #[test]
    fn a_drive_that_falls_is_seldom_tried_and_still_used() {
        let cliff: u64 = 700 << 10;
        let (mut pilot, mut window, mut late, mut used) = (Pilot::default(), WINDOW_MAX, 0, 0);
        let looks = 20_000;
        for at in 0..looks {
            let ns = if window > cliff { 3_000_000 } else { 100_000 };
            // The first runs are learning.
            if at >= 1000 {
                late += u64::from(window > cliff);
                used += window;
            }
            window = pilot.look(ns * 28, 28, window);
        }
        assert!(late * 1000 < (looks - 1000) * 5, "{late} of {looks} looks were late");
        assert!(used / (looks - 1000) > cliff / 2, "{} of {cliff} bytes are used", used / (looks - 1000));
    }

    #[test]
    fn a_hiccup_now_and_then_makes_no_ceiling() {
        let (mut pilot, mut window) = (Pilot::default(), WINDOW_MAX);
        for at in 0..5000 {
            let ns = if at % 150 == 149 { 20_000_000 } else { 100_000 };
            window = pilot.look(ns * 28, 28, window);
        }
        assert_eq!(pilot.ceiling, WINDOW_MAX);
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
