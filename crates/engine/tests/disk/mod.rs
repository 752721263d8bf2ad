//! A verifying load on a virtio-blk disk, and the configuration of one.

#![allow(dead_code, reason = "each test binary uses its own part")]

use guest::verify::load::Load;
use guest::vhost_user::{Options, VhostDoor};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const RAM: &str = "{ type = \"ram\" }";
pub(crate) const FILE: &str = "{ type = \"uring\", path = \"DIR/disk.img\", direct = false }";
/// Longer without any answer is a hang.
const HANG: Duration = Duration::from_secs(20);

/// A disk's part of a configuration; `DIR` stands for the directory.
pub(crate) fn config(name: &str, backend: &str, directory: &Path) -> String {
    let dir = directory.display().to_string();
    let backend = backend.replace("DIR", &dir);
    format!(
        "[[ssd]]\nname = \"{name}\"\nsize = \"64MiB\"\nvhost_socket = \"{dir}/{name}.sock\"\nbackend = {backend}\n"
    )
}

/// Every kind of client there is: split and packed, with and without a region of its own, kicked and polled.
pub(crate) fn kinds() -> impl Iterator<Item = Options> {
    (0..16_u32).map(|bits| {
        let bit = |at: u32| bits >> at & 1 == 1;
        Options {
            packed: bit(0),
            inflight: bit(1),
            kick: bit(2),
            event_idx: bit(3),
            indirect: bits % 3 != 0,
            mem_slots: bits % 5 < 2,
            ..Options::default()
        }
    })
}

/// A load and its clock.
pub(crate) struct Checked {
    load: Load,
    start: Instant,
    last: Instant,
    answers: u64,
}

impl Checked {
    /// The one before may still be leaving: a client that comes too early is turned away and tries again.
    pub(crate) fn connect(socket: &Path, lanes: u16, depth: usize, options: Options, seed: u64) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        let door = loop {
            match VhostDoor::connect(socket, lanes, depth, options) {
                Ok(door) => break door,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let start = Instant::now();
        let load = Load::new("disk", seed, Box::new(door), seed, 0);
        Self { load, start, last: start, answers: 0 }
    }

    /// Answers came.
    pub(crate) fn turn(&mut self) -> bool {
        let start = self.start;
        let now = move || u64::try_from(start.elapsed().as_nanos()).unwrap();
        let answers = self.load.turn(&now).unwrap();
        self.answers += answers as u64;
        if answers > 0 {
            self.last = Instant::now();
        } else {
            assert!(self.last.elapsed() < HANG, "no answer");
            std::thread::yield_now();
        }
        let auditor = &self.load.auditor;
        assert!(auditor.tally().is_clean(), "{:?} {:?}", auditor.tally(), auditor.faults());
        answers > 0
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn();
        }
    }

    /// The longest time without an answer, until three thousand came.
    pub(crate) fn run_until_progress(&mut self) -> Duration {
        let until = self.answers + 3000;
        let mut longest = Duration::ZERO;
        while self.answers < until {
            let last = self.last;
            if self.turn() {
                longest = longest.max(self.last - last);
            }
        }
        longest
    }

    /// Waits for all that is out, then reads every block.
    pub(crate) fn finish(&mut self) -> u64 {
        for phase in [Load::drain, Load::sweep] {
            phase(&mut self.load);
            while !self.load.is_done() {
                self.turn();
            }
        }
        self.answers
    }
}
