//! How a copy is steered and watched from outside, while it runs: pace, pause, cancel, progress. And its clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was saved up while nothing was sent may go at once.
const BURST: Duration = Duration::from_millis(20);
/// As a pace: none.
pub const UNLIMITED: u64 = u64::MAX;

/// What one stream has to do.
pub type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Time, as an argument. Whoever makes it up has to know who waits for whom: so the threads of a copy wait for one another by it, too.
pub trait Clock: Sync {
    /// Never falls.
    fn now(&self) -> Duration;

    /// Waits.
    fn sleep(&self, time: Duration);

    /// Waits for so long at most until other threads have done what `look` looks for; whether they have. `look` itself waits as long as it is told.
    fn wait(&self, time: Duration, look: &mut dyn FnMut(Duration) -> bool) -> bool {
        look(time)
    }

    /// Does all of it at once, and returns when all is done.
    fn at_once(&self, works: Vec<Work<'_>>) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = works.into_iter().map(|work| scope.spawn(work)).collect();
            // One that panicked has left no outcome.
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
    }
}

/// The host's own clock.
#[derive(Debug)]
pub struct System(Instant);

impl Default for System {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for System {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Bytes a second.
#[must_use]
pub fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The time that bytes take at so many a second.
pub(crate) fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The pass that is under way; the first is 0.
    pub pass: u32,
    /// Bytes on the wire until now.
    pub bytes_sent: u64,
    /// Bytes of pages that this pass has still to send.
    pub bytes_left: u64,
    /// Bytes of pages a second, in the last pass that was worth measuring, as it was paced.
    pub rate: u64,
    /// The same without what pacing held back.
    pub rate_unpaced: u64,
    /// Bytes of pages a second that were written anew.
    pub dirty_rate: u64,
    /// From a barrier to its answer, flush included.
    pub round_trip: Duration,
    /// How long the source would stand still if it were suspended now.
    pub predicted_stun: Option<Duration>,
}

/// Whether bytes may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    Now,
    In(Duration),
    Paused,
    Cancelled,
}

#[derive(Debug)]
struct Pace {
    bytes_per_s: u64,
    paused: bool,
    /// When what was sent is paid.
    paid: Duration,
}

/// Shared by who steers, who watches, and the threads of a copy.
#[derive(Debug)]
pub struct Control {
    pace: Mutex<Pace>,
    cancelled: AtomicBool,
    hurried: AtomicBool,
    report: Mutex<Progress>,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) pages_sent: AtomicU64,
    pub(crate) pages_left: AtomicU64,
    /// Time that pacing took, of all streams.
    pub(crate) waited_ns: AtomicU64,
}

impl Default for Control {
    fn default() -> Self {
        let pace = Pace { bytes_per_s: UNLIMITED, paused: false, paid: Duration::ZERO };
        Self {
            pace: Mutex::new(pace),
            cancelled: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            report: Mutex::default(),
            bytes_sent: AtomicU64::new(0),
            pages_sent: AtomicU64::new(0),
            pages_left: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }
}

impl Control {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on at most so many bytes a second on the wire. 0 pauses; [`UNLIMITED`] takes the limit away. What went before, at
    /// another pace, is forgiven.
    pub fn set_pace(&self, bytes_per_s: u64) {
        let mut pace = self.pace();
        (pace.bytes_per_s, pace.paid) = (bytes_per_s, Duration::ZERO);
    }

    /// Sends nothing until [`Control::resume`]. Connections are kept.
    pub fn pause(&self) {
        self.pace().paused = true;
    }

    /// Goes on.
    pub fn resume(&self) {
        self.pace().paused = false;
    }

    /// Whether nothing is sent for now, by [`Control::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pace().paused
    }

    /// Gives up, soon. The source keeps all it has. Nothing is sent that is read after this: who lets the source go on calls it first.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// From now on pace and pause do not count: the source stands still.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Relaxed);
    }

    /// The pace in force. 0: paused.
    pub(crate) fn pace_in_force(&self) -> u64 {
        let pace = self.pace();
        if self.hurried.load(Relaxed) {
            UNLIMITED
        } else if pace.paused {
            0
        } else {
            pace.bytes_per_s
        }
    }

    pub(crate) fn admit(&self, now: Duration) -> Go {
        if self.is_cancelled() {
            return Go::Cancelled;
        }
        match self.pace_in_force() {
            0 => Go::Paused,
            UNLIMITED => Go::Now,
            _ => match self.pace().paid.saturating_sub(now) {
                Duration::ZERO => Go::Now,
                wait => Go::In(wait),
            },
        }
    }

    /// These bytes went.
    pub(crate) fn charge(&self, bytes: u64, now: Duration) {
        self.bytes_sent.fetch_add(bytes, Relaxed);
        let rate = self.pace_in_force();
        let mut pace = self.pace();
        let from = pace.paid.max(now.saturating_sub(BURST));
        pace.paid = match rate {
            UNLIMITED => now,
            // It was on its way when the pause began.
            0 => pace.paid,
            rate => from.saturating_add(time_of(bytes, rate)),
        };
    }

    pub(crate) fn report(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let report = *self.report.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_left: self.pages_left.load(Relaxed).saturating_mul(dirty::PAGE_BYTES),
            ..report
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_pace_in_force_and_it_can_change_at_any_time() {
        let (control, second) = (Control::default(), Duration::from_secs(1));
        control.set_pace(1000);
        control.charge(2000, second);
        // Twenty milliseconds were saved up.
        assert_eq!(control.admit(second), Go::In(Duration::from_millis(1980)));
        assert_eq!(control.admit(3 * second), Go::Now);
        control.set_pace(0);
        control.charge(1 << 20, 3 * second);
        assert_eq!(control.admit(3 * second), Go::Paused);
        // A pace that was a mistake is over as soon as it is another.
        control.set_pace(1);
        control.charge(1 << 20, 3 * second);
        assert!(matches!(control.admit(4 * second), Go::In(long) if long > 1000 * second));
        control.set_pace(100);
        assert_eq!(control.admit(4 * second), Go::Now);
        control.charge(100, 10 * second);
        assert_eq!(control.admit(10 * second), Go::In(Duration::from_millis(980)));
        control.pause();
        control.charge(1 << 20, 10 * second);
        control.resume();
        assert_eq!(control.admit(11 * second), Go::Now);
        control.charge(1 << 20, 11 * second);
        control.hurry();
        assert_eq!(control.admit(11 * second), Go::Now);
        control.cancel();
        assert_eq!(control.admit(10 * second), Go::Cancelled);
    }
}
