//! A verifying load on a virtio-blk disk, and the configuration of one.

#![allow(dead_code, reason = "each test binary uses its own part")]

use guest::PATIENCE;
use guest::mapping::Mapping;
use guest::ram::Buffer;
use guest::verify::load::Load;
use guest::vhost_user::client::request as message;
use guest::vhost_user::request::{self, SECTOR_BYTES};
use guest::vhost_user::ring::Piece;
use guest::vhost_user::{Driver, Options, VhostDoor};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const RAM: &str = "{ type = \"ram\" }";
pub(crate) const FILE: &str = "{ type = \"uring\", path = \"DIR/disk.img\", direct = false }";
/// The whole of a file, however long that is.
pub(crate) const WHOLE: &str = "{ type = \"uring\", path = \"DIR/whole.img\", direct = false }";
/// After a backend: limits that are reached at once.
pub(crate) const LIMITS: &str = "[ssd.limits]\niops = 20000\nwrite_bandwidth = \"40MiB\"\n";
/// Longer without any answer is a hang.
const HANG: Duration = PATIENCE;

/// A disk's part of a configuration; `DIR` stands for the directory.
pub(crate) fn config(name: &str, backend: &str, directory: &Path) -> String {
    let dir = directory.display().to_string();
    let backend = backend.replace("DIR", &dir);
    let whole = directory.join("whole.img");
    let size = if backend.contains("whole.img") { "" } else { "size = \"64MiB\"\n" };
    if size.is_empty() && !whole.exists() {
        std::fs::File::create(whole).unwrap().set_len(64 << 20).unwrap();
    }
    format!("[[ssd]]\nname = \"{name}\"\n{size}vhost_socket = \"{dir}/{name}.sock\"\nbackend = {backend}\n")
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
        let deadline = Instant::now() + PATIENCE;
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

/// Puts a request on the first ring, not yet shown to the device: its data, and the token it is answered by.
pub(crate) fn place(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    data: Vec<u8>,
    device_writes: bool,
) -> (Buffer, u32) {
    // Data, then header and status in a page of their own.
    let room = data.len().next_multiple_of(4096);
    let buffer = driver.ram().alloc(room + 4096).unwrap();
    buffer.write(0, &data);
    buffer.write(room, &request::header(kind, sector));
    buffer.write(room + 64, &[request::UNANSWERED]);
    let iova = buffer.iova();
    let pieces = [
        Piece { iova: iova + room as u64, len: 16, device_writes: false },
        Piece { iova, len: data.len() as u32, device_writes },
        Piece { iova: iova + room as u64 + 64, len: 1, device_writes: true },
    ];
    let token = driver.queues[0].ring.add(&pieces).unwrap();
    (buffer, token)
}

/// Until one request of the first ring is answered.
pub(crate) fn wait(driver: &mut Driver) {
    let deadline = Instant::now() + PATIENCE;
    while driver.queues[0].ring.take().is_none() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// A request from beginning to end: its data then, and its status.
pub(crate) fn transfer(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    data: Vec<u8>,
    device_writes: bool,
) -> (Vec<u8>, u8) {
    let len = data.len();
    let (buffer, _) = place(driver, kind, sector, data, device_writes);
    driver.queues[0].publish().unwrap();
    wait(driver);
    (buffer.bytes(0, len), buffer.bytes(len.next_multiple_of(4096) + 64, 1)[0])
}

/// Writes 4 KiB of a byte.
pub(crate) fn write(driver: &mut Driver, sector: u64, byte: u8) {
    assert_eq!(SECTOR_BYTES, 512);
    assert_eq!(transfer(driver, request::OUT, sector, vec![byte; 4096], false).1, request::OK);
}

/// Reads 4 KiB.
pub(crate) fn read(driver: &mut Driver, sector: u64) -> Vec<u8> {
    let (data, status) = transfer(driver, request::IN, sector, vec![0; 4096], true);
    assert_eq!(status, request::OK);
    data
}

const SET_LOG_BASE: u32 = 6;
const LOG_ALL: u64 = 1 << 26;

/// A file for a log of written pages.
pub(crate) fn log_file(bytes: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd
}

/// Agrees on logs in shared memory (LOG_SHMFD).
pub(crate) fn agree_on_log(driver: &Driver) {
    let inflight = if driver.options().inflight { 1 << 12 } else { 0 };
    // MQ, LOG_SHMFD, REPLY_ACK, CONFIG.
    let features = 0x20B_u64 | inflight;
    driver.client().tell(message::SET_PROTOCOL_FEATURES, &features.to_le_bytes(), &[]).unwrap();
}

/// Where written pages are to be marked from now on.
pub(crate) fn set_log_base(driver: &Driver, fd: impl AsFd, size: u64, offset: u64) -> guest::Result<()> {
    let area: Vec<u8> = [size, offset].into_iter().flat_map(u64::to_le_bytes).collect();
    driver.client().tell(SET_LOG_BASE, &area, &[fd.as_fd()])
}

/// Marks them, or no longer.
pub(crate) fn switch_log(driver: &Driver, on: bool) {
    let features = driver.features() | if on { LOG_ALL } else { 0 };
    driver.client().tell(message::SET_FEATURES, &features.to_le_bytes(), &[]).unwrap();
}

/// The log of written pages of a client that is about to move its guest.
pub(crate) struct Logged {
    map: Mapping,
    bytes: usize,
}

impl Logged {
    /// As QEMU turns it on, under rings that run.
    pub(crate) fn arm(driver: &Driver) -> Self {
        agree_on_log(driver);
        let log = Self::set(driver);
        switch_log(driver, true);
        let [descriptors, available, used] = driver.queues[0].ring.places();
        let user = |iova| driver.user_address(iova);
        // Ring 0, with the flag that its used ring is logged too.
        let words = [1 << 32, user(descriptors), user(used), user(available), used];
        let payload: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        driver.client().tell(message::SET_VRING_ADDR, &payload, &[]).unwrap();
        log
    }

    /// A new one, in the place of the one before.
    pub(crate) fn set(driver: &Driver) -> Self {
        let fd = log_file(4096);
        set_log_base(driver, &fd, 4096, 0).unwrap();
        Self { map: Mapping::new(fd, 0, 4096, true).unwrap(), bytes: 4096 }
    }

    pub(crate) fn has(&self, iova: u64) -> bool {
        let (mut byte, page) = ([0], iova >> 12);
        self.map.read(page as usize / 8, &mut byte);
        byte[0] >> (page % 8) & 1 == 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        let mut bytes = vec![0; self.bytes];
        self.map.read(0, &mut bytes);
        bytes.iter().all(|byte| *byte == 0)
    }

    pub(crate) fn take_all(&self) {
        self.map.fill(0, self.bytes, 0);
    }
}
