//! How a guest's I/O goes while its ssd moves, from what its reactors count (crate `metrics`): the time line that an operator sees, how slow it is now
//! beside before, and how much the copy may send for that.
//!
//! ```text
//!  reactors --count--> page of metrics --100 times a second--> gauge --> time line, p99
//!                                                                `--> pace of the copy, if the guest has a budget
//! ```
//! No reactor takes part: a thread of the migration looks.

use super::case::Case;
use crate::ssd::Ssd;
use api::control::{Timeline, TimelineMark, TimelinePoint};
use metrics::{Histogram, Op, Part, Snapshot};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use transfer::control::{UNLIMITED, per_second};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(10);
/// Points of a time line at most: the last two minutes. A switch-over is among them; an hour's copy need not be.
const POINTS_MAX: usize = 12_000;
const MARKS_MAX: usize = 100;
/// It is looked at for so long after its migration is over.
const AFTER: Duration = Duration::from_secs(3);
/// How long a guest that has a budget is looked at before its copy begins.
const BEFORE: Duration = Duration::from_secs(1);
/// From one judgement to the next, and how many I/Os that takes: of fewer nobody can say what one in a hundred takes, and a longer time is waited for.
const JUDGE: Duration = Duration::from_millis(250);
const IOS_MIN: u64 = 200;
const JUDGE_MAX: Duration = Duration::from_secs(2);
/// Shorter times are not told apart: a budget of half as much again of nothing is nothing.
const FLOOR_NS: u64 = 50_000;
/// A copy is slowed to no less, bytes a second: it must come to an end.
const SLOWEST: u64 = 4 << 20;

/// See the module. What is seen of one ssd in one migration.
pub(super) struct Gauge {
    began: Instant,
    began_unix_ms: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    points: VecDeque<TimelinePoint>,
    marks: VecDeque<TimelineMark>,
    /// What one in a hundred I/Os took at least before the copy began, and lately, ns.
    before_ns: Option<u64>,
    now_ns: Option<u64>,
    /// The copy has begun.
    copying: bool,
}

impl Default for Gauge {
    fn default() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_unix_ms: millis(unix), seen: Mutex::default() }
    }
}

impl Gauge {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What is done from now on.
    pub(super) fn mark(&self, state: &str) {
        let mark = TimelineMark { at_us: self.at_us(), state: state.to_owned() };
        push(&mut self.seen().marks, mark, MARKS_MAX);
    }

    /// What one in a hundred I/Os took at least before the copy and lately, ns.
    pub(super) fn p99_ns(&self) -> (Option<u64>, Option<u64>) {
        let seen = self.seen();
        (seen.before_ns, seen.now_ns)
    }

    pub(super) fn timeline(&self, ssd: &str) -> Timeline {
        let seen = self.seen();
        Timeline {
            ssd: ssd.to_owned(),
            began_unix_ms: self.began_unix_ms,
            points: seen.points.iter().copied().collect(),
            marks: seen.marks.iter().cloned().collect(),
        }
    }

    /// Returns when the copy may begin: a guest with a budget is looked at for a second before.
    pub(super) fn copy_begins(&self, has_budget: bool) {
        if has_budget {
            std::thread::sleep(BEFORE.saturating_sub(self.began.elapsed()));
        }
        self.seen().copying = true;
    }
}

/// Looks at an ssd until some seconds after its migration is over, and holds the copy to the guest's budget: `budget_permille` of what its I/O took before; 0
/// is none. An ssd whose counts nobody can read, or for which no thread is left, is moved without.
pub(super) fn watch(case: &Arc<Case>, ssd: &Ssd, budget_permille: u32) {
    let page = ssd.page.fd().and_then(|page| page.try_clone_to_owned().ok());
    let Some(page) = page.map(File::from) else { return };
    let case = Arc::clone(case);
    let look = move || Look { case, page, budget_permille }.run();
    if let Err(error) = std::thread::Builder::new().name("gauge".to_owned()).spawn(look) {
        tracing::warn!(ssd = ssd.name, %error, "nobody looks how its guest is");
    }
}

struct Look {
    case: Arc<Case>,
    page: File,
    budget_permille: u32,
}

impl Look {
    fn run(self) {
        let gauge = &self.case.gauge;
        let Ok(first) = Snapshot::read(&self.page) else { return };
        let mut judged = (Instant::now(), first.clone());
        let mut sent = 0;
        let mut pacer = Pacer::default();
        let mut over = None;
        while over.is_none_or(|since: Instant| since.elapsed() < AFTER) {
            let Ok(now) = Snapshot::read(&self.page) else { return };
            let point = TimelinePoint { at_us: gauge.at_us(), ios: now.all().ios() };
            push(&mut gauge.seen().points, point, POINTS_MAX);
            let took = judged.0.elapsed();
            if let Some(p99) = judge(&judged.1, &now, took) {
                let whole_sent = self.case.control.progress().bytes_sent;
                let rate = per_second(whole_sent.saturating_sub(sent), took);
                (judged, sent) = ((Instant::now(), now.clone()), whole_sent);
                if let Some(before) = self.learn(p99, &first)
                    && self.budget_permille != 0
                {
                    let most = before.max(FLOOR_NS).saturating_mul(u64::from(self.budget_permille)) / 1000;
                    self.case.set_guest_pace(pacer.judge(p99 > most, rate));
                }
            }
            over = over.or_else(|| self.case.is_over().then(Instant::now));
            std::thread::sleep(LOOK);
        }
    }

    /// Takes note of what one in a hundred took lately. Returns what it took before the copy, once that has begun.
    fn learn(&self, p99: u64, first: &Snapshot) -> Option<u64> {
        let mut seen = self.case.gauge.seen();
        seen.now_ns = Some(p99);
        if !seen.copying {
            seen.before_ns = Some(p99);
            return None;
        }
        // Where nothing was seen in time, what was counted ever since the ssd is served.
        seen.before_ns = seen.before_ns.or_else(|| judge(&Snapshot::default(), first, JUDGE_MAX));
        seen.before_ns
    }
}

/// What one in a hundred of the reads and writes from one look to another took at least, ns: in a queue here, and at the drive. What a limit held back is not
/// the copy's. The two parts are measured apart, so it is no less than what it is. `None`: too few.
fn judge(before: &Snapshot, now: &Snapshot, took: Duration) -> Option<u64> {
    if took < JUDGE {
        return None;
    }
    let ios = now.since(before);
    let mut both = ios.of(Op::Read).clone();
    both.merge(ios.of(Op::Write));
    let enough = if took < JUDGE_MAX { IOS_MIN } else { IOS_MIN / 10 };
    let p99 = |times: Histogram| times.quantile_ns(0.99).unwrap_or(0);
    (both.ios() >= enough).then(|| p99(both.time(Part::Queue)) + p99(both.time(Part::Drive)))
}

/// How many bytes a second the copy may send: less while the guest is over its budget, then more again until that does not hold it back any more.
struct Pacer {
    pace: u64,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { pace: UNLIMITED }
    }
}

impl Pacer {
    /// `rate`: what it sent lately, bytes a second.
    fn judge(&mut self, is_over: bool, rate: u64) -> u64 {
        self.pace = if is_over {
            // What sends nothing is not what the guest suffers from.
            if rate == 0 { self.pace } else { (self.pace.min(rate) / 4 * 3).max(SLOWEST) }
        } else if self.pace / 4 > rate.max(SLOWEST) {
            UNLIMITED
        } else {
            self.pace.saturating_add(self.pace / 8)
        };
        self.pace
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_slowed_while_its_guest_suffers_and_let_go_when_that_is_over() {
        let mut pacer = Pacer::default();
        assert_eq!(pacer.judge(false, 100 << 20), UNLIMITED, "nobody suffers");
        assert_eq!(pacer.judge(true, 0), UNLIMITED, "not from the copy");
        let mut rate = 100 << 20;
        for _ in 0..100 {
            let pace = pacer.judge(true, rate);
            assert!(pace < rate || pace == SLOWEST, "{pace}");
            rate = pace;
        }
        assert_eq!(rate, SLOWEST, "it goes on");
        for _ in 0..100 {
            let pace = pacer.judge(false, rate);
            assert!(pace >= rate);
            // The link takes no more.
            rate = pace.min(200 << 20);
        }
        assert_eq!(pacer.pace, UNLIMITED);
    }

    #[test]
    fn what_one_in_a_hundred_takes_is_told_of_enough_ios_and_leaves_out_what_a_limit_held_back() {
        let (none, mut ios) = (Snapshot::default(), Snapshot::default());
        for at in 0..IOS_MIN {
            let slow = if at % 50 == 0 { 8_000_000 } else { 100_000 };
            assert_eq!(judge(&none, &ios, JUDGE), None, "{at}");
            ios.record(Op::Read, 4096, [1000, 50_000_000, slow]);
        }
        let p99 = judge(&none, &ios, JUDGE).unwrap();
        assert!((7_000_000..9_000_000).contains(&p99), "{p99}");
        assert_eq!(judge(&none, &ios, JUDGE / 2), None, "too soon");
        ios.record(Op::Other, 0, [0, 0, 1 << 40]);
        assert_eq!(judge(&none, &ios, JUDGE), Some(p99), "flushes are not the guest's latency");
    }

    #[test]
    fn a_time_line_keeps_its_end() {
        let gauge = Gauge::default();
        for ios in 0..POINTS_MAX as u64 + 5 {
            push(&mut gauge.seen().points, TimelinePoint { at_us: ios, ios }, POINTS_MAX);
        }
        gauge.mark("copying");
        let line = gauge.timeline("a");
        assert_eq!((line.points.len(), line.points[0].ios), (POINTS_MAX, 5));
        assert_eq!((line.ssd.as_str(), line.marks[0].state.as_str()), ("a", "copying"));
    }
}
