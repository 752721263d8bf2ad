//! Limits as a guest feels them: a whole engine in this process, driven by the user-space guests over their sockets.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod disk;

use api::config::{Config, Limits, Rate};
use engine::Engine;
use guest::PATIENCE;
use guest::nvme::{Driver, Options, Sqe};
use guest::vhost_user;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One test at a time: they measure rates and CPU time.
static TURN: Mutex<()> = Mutex::new(());

struct Host {
    engine: Engine,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Host {
    /// Ssds in memory: names, doors and limits.
    fn start(ssds: &[(&str, &str, &str)], reactors: usize) -> Self {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        let mut text = format!("[engine]\nreactors = {reactors}\n");
        for (name, door, limits) in ssds {
            let socket = directory.path().join(format!("{name}.sock"));
            text.push_str(&format!(
                "[[ssd]]\nname = \"{name}\"\nsize = \"64MiB\"\n{door} = {socket:?}\n\
                 backend = {{ type = \"ram\" }}\n[ssd.limits]\n{limits}\n"
            ));
        }
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        Self { engine: Engine::start(&config, None).unwrap(), directory, _turn }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    fn connect(&self, name: &str, pairs: u16) -> Nvme {
        let mut driver = Driver::connect_with(self.socket(name), Options::default()).unwrap();
        for qid in 1..=pairs {
            driver.create_queue_pair(qid, 64).unwrap();
        }
        let buffer = driver.ram().clone().alloc(1 << 20).unwrap();
        Nvme { driver, buffer, pairs, out: vec![0; usize::from(pairs)], done: 0 }
    }
}

/// A guest that always wants more.
struct Nvme {
    driver: Driver,
    buffer: guest::ram::Buffer,
    pairs: u16,
    out: Vec<u32>,
    done: u64,
}

const READ: u8 = 2;
const WRITE: u8 = 1;

impl Nvme {
    fn turn(&mut self, opcode: u8, blocks: u32, depth: u32) {
        for qid in 1..=self.pairs {
            let out = &mut self.out[usize::from(qid) - 1];
            while self.driver.poll(qid).unwrap().is_some() {
                *out -= 1;
                self.done += 1;
            }
            let mut placed = false;
            while *out < depth {
                let sqe = Sqe::new(opcode).nsid(1).prp(self.buffer.iova(), 0).qword(10, 0).cdw12(blocks - 1);
                self.driver.place(qid, sqe).unwrap();
                *out += 1;
                placed = true;
            }
            if placed {
                self.driver.ring(qid).unwrap();
            }
        }
    }

    /// How many end within a time.
    fn run_for(&mut self, time: Duration, opcode: u8, blocks: u32, depth: u32) -> u64 {
        let (start, before) = (Instant::now(), self.done);
        while start.elapsed() < time {
            self.turn(opcode, blocks, depth);
            std::thread::sleep(Duration::from_micros(200));
        }
        self.done - before
    }

    fn run_until(&mut self, done: u64, opcode: u8) {
        let deadline = Instant::now() + PATIENCE;
        while self.done < done {
            self.turn(opcode, 8, 8);
            assert!(Instant::now() < deadline, "{} of {done}", self.done);
        }
    }
}

/// What a limit lets through since `start`, however long that was.
fn allowed(per_second: u64, start: Instant) -> u64 {
    per_second * start.elapsed().as_millis() as u64 / 1000 + 1
}

/// Not more than the limit allows, and not nothing; how much less is the machine's and the guest's own lateness. The exact rate is tested in crate `qos`.
fn assert_near(done: u64, expected: u64) {
    assert!(done <= expected * 102 / 100 + 2, "{done} of {expected}");
    assert!(done > 0, "{done} of {expected}");
}

#[test]
fn a_guest_is_held_to_its_limit_whatever_its_queues_and_reactors() {
    for (reactors, pairs) in [(1, 1), (2, 4)] {
        let host = Host::start(&[("a", "socket", "iops = 2000")], reactors);
        let mut guest = host.connect("a", pairs);
        let start = Instant::now();
        let done = guest.run_for(Duration::from_millis(1000), READ, 8, 32);
        assert_near(done, 2000 * start.elapsed().as_millis() as u64 / 1000 + 20);
    }
}

#[test]
fn bandwidth_is_limited_and_a_burst_goes_first() {
    let host =
        Host::start(&[("a", "socket", "write_bandwidth = \"1MiB\"\nwrite_bandwidth_burst = \"40MiB\"")], 1);
    let mut guest = host.connect("a", 1);
    let start = Instant::now();
    // 4 KiB at a time: within PRP1. Without a burst it would take forty seconds.
    while guest.done < 40 << 8 {
        guest.turn(WRITE, 8, 32);
        assert!(
            start.elapsed() < Duration::from_secs(35),
            "40 MiB at once, but {} of them came",
            guest.done >> 8
        );
    }
    guest.run_for(Duration::from_millis(700), WRITE, 8, 32);
    let allowed = (40 << 8) + 256 * start.elapsed().as_millis() as u64 / 1000;
    assert!(guest.done <= allowed + 1, "{} of {allowed}", guest.done);
    // Reads are not writes.
    assert!(guest.run_for(Duration::from_millis(300), READ, 8, 32) > 0);
}

#[test]
fn limits_change_while_a_guest_waits_for_them() {
    let host = Host::start(&[("a", "socket", "iops = 10")], 2);
    let mut guest = host.connect("a", 2);
    let start = Instant::now();
    guest.run_for(Duration::from_millis(300), READ, 8, 8);
    assert!(guest.done <= allowed(10, start) + 1, "{}", guest.done);
    let iops = |per_second| Limits { iops: Some(Rate { per_second, burst: None }), ..Limits::default() };
    assert!(host.engine.set_limits("a", &iops(3000)));
    let (start, before) = (Instant::now(), guest.done);
    // More than ten a second give until a test is given up.
    guest.run_until(before + 1200, READ);
    let done = guest.done - before;
    assert!(done <= allowed(3000, start) + 100, "{done}");
    assert!(host.engine.set_limits("a", &Limits::default()));
    // Nothing limits it any more.
    guest.run_until(guest.done + 20_000, READ);
    assert!(host.engine.set_limits("a", &iops(100)));
    guest.run_for(Duration::from_millis(50), READ, 8, 8);
    let (start, before) = (Instant::now(), guest.done);
    guest.run_until(before + 20, READ);
    let done = guest.done - before;
    assert!(done <= allowed(100, start) + 10, "{done}");
    assert!(!host.engine.set_limits("b", &iops(1)));
}

#[test]
fn an_ssd_at_its_limit_neither_holds_another_nor_keeps_the_reactor_awake() {
    let host = Host::start(&[("held", "socket", "iops = 10"), ("free", "socket", "")], 1);
    let mut held = host.connect("held", 1);
    held.run_for(Duration::from_millis(50), READ, 8, 32);
    {
        let mut free = host.connect("free", 1);
        let start = Instant::now();
        // With the other's limit it would take 200 seconds.
        while free.done < 2000 {
            free.turn(READ, 8, 1);
            assert!(start.elapsed() < PATIENCE, "{}", free.done);
        }
    }
    // The thread's own CPU time: the machine may be busy.
    let (start, before) = (Instant::now(), reactors_cpu());
    held.run_for(Duration::from_millis(600), READ, 8, 32);
    let (spent, of) = (reactors_cpu() - before, start.elapsed());
    assert!(spent < of / 5, "{spent:?} of {of:?}, to wait");
}

/// CPU time of the reactor: the newest thread of that name. Those of tests before may not have ended.
fn reactors_cpu() -> Duration {
    let mut newest = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let ns = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let id: u64 = task.file_name().to_str().unwrap().parse().unwrap();
        if name.trim() == "reactor-0" {
            newest = newest.max((id, ns.split(' ').next().unwrap().parse().unwrap()));
        }
    }
    Duration::from_nanos(newest.1)
}

#[test]
fn a_guest_that_leaves_or_resets_while_it_is_held_does_not_wait_for_its_limit() {
    let host = Host::start(&[("a", "socket", "iops = 10")], 1);
    let start = Instant::now();
    for _ in 0..3 {
        let mut guest = loop {
            match Driver::connect_with(host.socket("a"), Options::default()) {
                Ok(driver) => break driver,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        (1..=6).for_each(|qid| guest.create_queue_pair(qid, 64).unwrap());
        let buffer = guest.ram().clone().alloc(4096).unwrap();
        // They would take 36 seconds.
        for at in 0..360 {
            let sqe = Sqe::new(READ).nsid(1).prp(buffer.iova(), 0).qword(10, 0).cdw12(7);
            guest.place(at % 6 + 1, sqe).unwrap();
        }
        (1..=6).for_each(|qid| guest.ring(qid).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        (1..=6).for_each(|qid| guest.delete_queue_pair(qid).unwrap());
        guest.create_queue_pair(1, 64).unwrap();
    }
    host.engine.stop().unwrap();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_virtio_disk_is_held_to_its_limit_and_a_ring_that_stops_is_not() {
    let host = Host::start(&[("d", "vhost_socket", "iops = 500")], 1);
    let options = vhost_user::Options { kick: true, ..vhost_user::Options::default() };
    let mut driver = vhost_user::Driver::connect(host.socket("d"), options).unwrap();
    let (start, mut done, mut buffers) = (Instant::now(), 0_u64, VecDeque::new());
    while start.elapsed() < Duration::from_millis(800) {
        while driver.queues[0].ring.take().is_some() {
            done += 1;
            buffers.pop_front();
        }
        while buffers.len() < 40 {
            buffers.push_back(disk::place(&mut driver, vhost_user::request::IN, 0, vec![0; 4096], true));
        }
        driver.queues[0].publish().unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
    assert_near(done, 500 * start.elapsed().as_millis() as u64 / 1000 + 5);
    // At one a second what was taken from the ring would take long.
    let iops = Some(Rate { per_second: 1, burst: None });
    assert!(host.engine.set_limits("d", &Limits { iops, ..Limits::default() }));
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    driver.stop(0).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    drop(driver);
    host.engine.stop().unwrap();
}
