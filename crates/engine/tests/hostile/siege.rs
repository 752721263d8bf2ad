//! An attacked ssd, a neighbour that checks every byte, and the search for what an attack left behind.

use crate::host::{Host, pattern, read, write};
use guest::PATIENCE;
use guest::nvme::{Driver, Options, Sqe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the process holds is counted: one siege at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Longest that one of the neighbour's rounds may take. It is far above what fairness gives it, because the machine that
/// runs the tests is shared, too; and below what it takes to give up on a client.
const ROUND_MAX: Duration = Duration::from_secs(20);
/// Rounds in which the neighbour has seen the attack, or the quiet after it.
const ROUNDS_MIN: u64 = 10;

/// See the module.
pub(crate) struct Siege {
    host: Option<Host>,
    neighbour: Option<Neighbour>,
    baseline: Holdings,
    _turn: MutexGuard<'static, ()>,
}

impl Siege {
    /// The attacked ssd is `victim`, on this backend. What the attack holds is gone when it returns.
    pub(crate) fn run(backend: &str, reactors: usize, attack: impl FnOnce(&Self)) {
        let siege = Self::begin(backend, reactors);
        attack(&siege);
        siege.end();
    }

    fn begin(backend: &str, reactors: usize) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::start(&[("victim", backend), ("neighbour", crate::host::RAM)], reactors);
        let neighbour = Neighbour::start(host.connect("neighbour"));
        // One client comes and goes, so that what is made once is made: a ring a reactor.
        let before = Holdings::now();
        let mut first = Self::client(&host);
        (1..=3).for_each(|qid| first.create_queue_pair(qid, 16).unwrap());
        drop(first);
        let deadline = Instant::now() + PATIENCE;
        let baseline = loop {
            let now = Holdings::now();
            if now.threads <= before.threads && now.guest_mappings <= before.guest_mappings {
                break now;
            }
            assert!(Instant::now() < deadline, "{now:?}, before {before:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        Self { host: Some(host), neighbour: Some(neighbour), baseline, _turn: turn }
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    pub(crate) fn connect(&self) -> Driver {
        Self::client(self.host())
    }

    fn client(host: &Host) -> Driver {
        let ram_bytes = 16 << 20;
        host.connect_with("victim", Options { ram_bytes, ..Options::default() })
    }

    fn end(mut self) {
        self.next_client_is_served();
        let deadline = Instant::now() + PATIENCE;
        while !Holdings::now().is_within(&self.baseline) {
            let now = Holdings::now();
            assert!(Instant::now() < deadline, "left behind: {now:?}, before {:?}", self.baseline);
            std::thread::sleep(Duration::from_millis(10));
        }
        self.neighbour.take().unwrap().stop();
        let start = Instant::now();
        self.host.take().unwrap().stop();
        assert!(start.elapsed() < PATIENCE, "stopping took {:?}", start.elapsed());
    }

    fn next_client_is_served(&self) {
        let mut next = self.connect();
        for qid in 1..=4 {
            next.create_queue_pair(qid, 16).unwrap();
            write(&mut next, qid, 1024, &pattern(u64::from(qid), 8192));
            assert_eq!(read(&mut next, qid, 1024, 8192), pattern(u64::from(qid), 8192));
        }
    }
}

/// Of a test that failed: nothing goes on behind the next one.
impl Drop for Siege {
    fn drop(&mut self) {
        if let Some(neighbour) = self.neighbour.take() {
            neighbour.stop.store(true, Ordering::Relaxed);
            let _ = neighbour.thread.join();
        }
        self.host.take().map(Host::stop);
    }
}

/// A guest that does nothing wrong.
struct Neighbour {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Neighbour {
    fn start(mut driver: Driver) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counter) = (Arc::clone(&stop), Arc::clone(&rounds));
        // A queue pair on each reactor.
        for qid in 1..=3 {
            driver.create_queue_pair(qid, 16).unwrap();
        }
        let thread = std::thread::spawn(move || {
            for round in 0.. {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (qid, other) = ((round % 3 + 1) as u16, ((round + 1) % 3 + 1) as u16);
                let (slba, bytes) = (round * 7 % 1000 * 16, pattern(round, 8192));
                let start = Instant::now();
                write(&mut driver, qid, slba, &bytes);
                assert!(read(&mut driver, other, slba, 8192) == bytes, "round {round}");
                assert!(start.elapsed() < ROUND_MAX, "round {round} took {:?}", start.elapsed());
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { stop, rounds, thread }
    }

    fn stop(self) {
        let deadline = Instant::now() + PATIENCE;
        while self.rounds.load(Ordering::Relaxed) <= ROUNDS_MIN && !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "{:?} rounds", self.rounds);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the neighbour was disturbed");
    }
}

/// What the process holds.
#[derive(Debug)]
struct Holdings {
    fds: usize,
    threads: usize,
    guest_mappings: usize,
}

impl Holdings {
    fn now() -> Self {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let name =
            |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        // The kernel's own workers of a ring come and go.
        let threads = tasks.filter(|task| !name(task).starts_with("iou-")).count();
        let maps = std::fs::read_to_string(Path::new("/proc/self/maps")).unwrap();
        let guest_mappings = maps.lines().filter(|line| line.contains("guest-ram")).count();
        Self { fds, threads, guest_mappings }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.fds <= other.fds && self.threads <= other.threads && self.guest_mappings <= other.guest_mappings
    }
}

/// Chance that is the same in each run.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}

/// A 4 KiB read (or write) of `slba` to (from) `iova`.
pub(crate) fn page_io(opcode: u8, iova: u64, slba: u64) -> Sqe {
    Sqe::new(opcode).nsid(1).prp(iova, 0).qword(10, slba).cdw12(7)
}

/// Raw creation of a queue pair whose rings lie anywhere.
pub(crate) fn create_rings(driver: &mut Driver, qid: u16, depth: u32, sq: u64, cq: u64) -> guest::Result<()> {
    let size = (depth - 1) << 16 | u32::from(qid);
    driver.admin(Sqe::new(5).prp(cq, 0).cdw10(size).cdw11(1))?.ok()?;
    driver.admin(Sqe::new(1).prp(sq, 0).cdw10(size).cdw11(u32::from(qid) << 16 | 1))?.ok()?;
    Ok(())
}
