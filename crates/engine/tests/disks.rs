//! The second door as a client sees it: a whole engine in this process, driven by the user-space guest over vhost-user.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod disk;

use api::config::Config;
use disk::{Checked, FILE, Logged, RAM, kinds, place, read, transfer, wait, write};
use engine::Engine;
use guest::PATIENCE;
use guest::vhost_user::request;
use guest::vhost_user::ring::Piece;
use guest::vhost_user::{Driver, Options};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SET_LOG_FD: u32 = 7;

struct Host {
    engine: Engine,
    directory: TempDir,
}

impl Host {
    fn start(disks: &[(&str, &str)], reactors: usize) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), disks, reactors)
    }

    fn start_in(directory: TempDir, disks: &[(&str, &str)], reactors: usize) -> Self {
        let mut text = format!("[engine]\nreactors = {reactors}\n");
        for (name, backend) in disks {
            text.push_str(&disk::config(name, backend, directory.path()));
        }
        let config = Config::parse(Path::new("test.toml"), &text).unwrap();
        Self { engine: Engine::start(&config, None).unwrap(), directory }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    fn stop(self) -> TempDir {
        self.engine.stop().unwrap();
        self.directory
    }
}

/// Until the daemon ends the session.
fn until_hung_up(client: &Driver) {
    let deadline = Instant::now() + PATIENCE;
    while client.client().ask_number(1).is_ok() {
        assert!(Instant::now() < deadline, "it is still served");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_written_is_read_back_by_every_kind_of_client_on_every_backend_with_data() {
    for (name, backend) in [("ram", RAM), ("file", FILE)] {
        for (seed, options) in (1..).zip(kinds()) {
            // Each begins with a disk of zeros.
            let host = Host::start(&[(name, backend)], 2);
            let mut load = Checked::connect(&host.socket(name), 3, 16, options, seed);
            load.run_for(Duration::from_millis(30));
            load.finish();
            host.stop();
        }
    }
}

#[test]
fn data_outlives_clients_and_the_engine() {
    let host = Host::start(&[("file", FILE)], 1);
    let mut first = connect(&host, "file", Options::default());
    for at in 0..8 {
        write(&mut first, at * 100, at as u8 + 1);
    }
    drop(first);
    let mut second = connect(&host, "file", Options { packed: true, ..Options::default() });
    assert_eq!(read(&mut second, 300), vec![4; 4096]);
    drop(second);
    let host = Host::start_in(host.stop(), &[("file", FILE)], 2);
    let mut third = connect(&host, "file", Options::default());
    for at in 0..8 {
        assert_eq!(read(&mut third, at * 100), vec![at as u8 + 1; 4096]);
    }
    host.stop();
}

#[test]
fn the_serial_number_is_told() {
    let host = Host::start(&[("ram", RAM)], 1);
    let mut driver = connect(&host, "ram", Options::default());
    let (id, status) = transfer(&mut driver, 8, 0, vec![0xA5; 20], true);
    assert_eq!(status, request::OK);
    let serial = api::identity::serial_of_name("ram");
    let mut expected = serial.into_bytes();
    expected.resize(20, 0);
    assert_eq!(id, expected);
    host.stop();
}

/// The kick is the only thing that can wake it, the call the only thing that the driver waits for.
#[test]
fn a_sleeping_disk_is_woken_by_a_kick_and_calls_back() {
    for packed in [false, true] {
        for event_idx in [false, true] {
            let host = Host::start(&[("ram", RAM)], 1);
            let options = Options { kick: true, packed, event_idx, ..Options::default() };
            let mut driver = connect(&host, "ram", options);
            for round in 0..20 {
                // Far beyond the time that a reactor spins.
                std::thread::sleep(Duration::from_millis(5));
                while called(&driver, Duration::ZERO) {}
                driver.queues[0].ring.want_call();
                let (buffer, token) = place(&mut driver, request::OUT, round * 8, vec![7; 4096], false);
                driver.queues[0].publish().unwrap();
                assert!(called(&driver, PATIENCE), "packed {packed} round {round}");
                let used = driver.queues[0].ring.take().expect("called after it was used");
                assert_eq!(used.token, token);
                drop(buffer);
            }
            host.stop();
        }
    }
}

#[test]
fn a_stopped_ring_has_answered_all_that_it_took_and_goes_on_where_it_was() {
    let host = Host::start(&[("file", FILE)], 2);
    for options in kinds().filter(|options| options.kick) {
        let mut driver = connect(&host, "file", options);
        for round in 0..10 {
            let mut out = Vec::new();
            for at in 0..16 {
                out.push(place(&mut driver, request::IN, round * 128 + at * 8, vec![0; 4096], true));
            }
            driver.queues[0].publish().unwrap();
            let base = driver.stop(0).unwrap();
            // What was taken is answered, and nothing more is touched until it goes on.
            let mut answered = 0;
            while driver.queues[0].ring.take().is_some() {
                answered += 1;
            }
            assert!(driver.queues[0].ring.take().is_none());
            driver.go_on(0, base).unwrap();
            driver.queues[0].kick().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while answered < out.len() {
                answered += usize::from(driver.queues[0].ring.take().is_some());
                assert!(Instant::now() < deadline, "{answered} of {}, {options:?}", out.len());
            }
        }
    }
    host.stop();
}

#[test]
fn memory_comes_and_goes_while_rings_run() {
    let host = Host::start(&[("ram", RAM)], 2);
    let options = Options { mem_slots: true, queues: 2, kick: true, ..Options::default() };
    let mut driver = connect(&host, "ram", options);
    for round in 0..50 {
        let (_buffer, _) = place(&mut driver, request::OUT, round * 8, vec![round as u8; 4096], false);
        driver.queues[0].publish().unwrap();
        let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
        let words = [0, extra.iova(), extra.len() as u64, 0x7B00_0000_0000, 0];
        let payload: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        driver.client().tell(37, &payload, &[extra.fd()]).unwrap();
        driver.client().tell(38, &payload, &[]).unwrap();
        wait(&mut driver);
        assert_eq!(read(&mut driver, round * 8), vec![round as u8; 4096]);
    }
    host.stop();
}

#[test]
fn a_client_that_vanishes_leaves_the_disk_to_the_next() {
    let host = Host::start(&[("file", FILE)], 2);
    for round in 0..5_u64 {
        let mut driver = connect(&host, "file", Options { queues: 2, ..Options::default() });
        for before in 0..round {
            assert_eq!(read(&mut driver, before * 8), vec![before as u8 + 1; 4096]);
        }
        write(&mut driver, round * 8, round as u8 + 1);
        // Reads in flight while the client goes.
        for at in 0..64 {
            place(&mut driver, request::IN, at * 8, vec![0; 4096], true);
        }
        driver.queues[0].publish().unwrap();
    }
    host.stop();
}

#[test]
fn a_client_that_shrinks_its_memory_is_hung_up_on_and_harms_nobody() {
    let host = Host::start(&[("bad", RAM), ("good", RAM)], 1);
    let mut good = connect(&host, "good", Options::default());
    let options = Options { mem_slots: true, ..Options::default() };
    let mut bad = connect(&host, "bad", options);
    // A memfd of the driver's own cannot shrink; this one can.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(1 << 20).unwrap();
    let words = [0, 0x80_0000_0000, 1 << 20, 0x7B00_0000_0000, 0_u64];
    let payload: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    bad.client().tell(37, &payload, &[file.as_fd()]).unwrap();
    file.set_len(0).unwrap();
    let own = bad.ram().alloc(4096).unwrap();
    own.write(0, &request::header(request::OUT, 0));
    let pieces = [
        Piece { iova: own.iova(), len: 16, device_writes: false },
        Piece { iova: 0x80_0000_0000, len: 4096, device_writes: false },
        Piece { iova: own.iova() + 64, len: 1, device_writes: true },
    ];
    bad.queues[0].ring.add(&pieces).unwrap();
    bad.queues[0].publish().unwrap();
    until_hung_up(&bad);
    write(&mut good, 0, 1);
    assert_eq!(read(&mut good, 0), vec![1; 4096]);
    drop(bad);
    let mut next = connect(&host, "bad", Options::default());
    write(&mut next, 0, 2);
    assert_eq!(read(&mut next, 0), vec![2; 4096]);
    host.stop();
}

#[test]
fn a_log_that_cannot_be_is_refused_and_the_one_before_stays() {
    let host = Host::start(&[("ram", RAM)], 1);
    let mut driver = connect(&host, "ram", Options::default());
    assert!(disk::set_log_base(&driver, disk::log_file(4096), 4096, 0).is_err(), "not agreed on");
    let log = Logged::arm(&driver);
    let file = disk::log_file(8192);
    for (size, offset) in
        [(0, 0), (8193, 0), (4096, 4097), (4096, u64::MAX), (u64::MAX, 1), (1 << 33, 0), (1, 8192)]
    {
        assert!(disk::set_log_base(&driver, &file, size, offset).is_err(), "{size} at {offset}");
    }
    let large = disk::log_file(1 << 33);
    assert!(disk::set_log_base(&driver, &large, (4 << 30) + 1, 0).is_err(), "for more than any guest has");
    let sealed = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&sealed, 4096).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    assert!(disk::set_log_base(&driver, &sealed, 4096, 0).is_err(), "nobody can write it");
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(disk::set_log_base(&driver, &reader, 4096, 0).is_err(), "no memory");
    log.take_all();
    let (buffer, _) = place(&mut driver, request::IN, 0, vec![0; 4096], true);
    driver.queues[0].publish().unwrap();
    wait(&mut driver);
    assert!(log.has(buffer.iova()));
    host.stop();
}

#[test]
fn who_gives_an_eventfd_with_its_log_hears_of_pages_and_of_nothing_without_a_log() {
    let host = Host::start(&[("ram", RAM)], 1);
    let mut driver = connect(&host, "ram", Options::default());
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let heard = |patience_ms: u64| {
        let timeout = Timespec::try_from(Duration::from_millis(patience_ms)).unwrap();
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)) == Ok(1)
            && rustix::io::read(&event, &mut [0; 8]).is_ok()
    };
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(driver.client().tell(SET_LOG_FD, &[], &[reader.as_fd()]).is_err(), "no eventfd");
    driver.client().tell(SET_LOG_FD, &[], &[event.as_fd()]).unwrap();
    read(&mut driver, 0);
    assert!(!heard(50));
    let log = Logged::arm(&driver);
    log.take_all();
    let (buffer, _) = place(&mut driver, request::IN, 0, vec![0; 4096], true);
    driver.queues[0].publish().unwrap();
    wait(&mut driver);
    assert!(heard(60_000) && log.has(buffer.iova()));
    disk::switch_log(&driver, false);
    while heard(50) {}
    read(&mut driver, 0);
    assert!(!heard(50));
    host.stop();
}

/// As QEMU does it: two rings with kicks, and whoever serves them sleeps.
#[test]
fn a_ring_goes_on_when_a_log_is_armed_and_disarmed_whoever_sleeps() {
    let host = Host::start(&[("ram", RAM)], 1);
    for options in kinds().filter(|options| options.kick) {
        let mut driver = connect(&host, "ram", Options { queues: 2, ..options });
        for round in 0..4 {
            read(&mut driver, 0);
            std::thread::sleep(Duration::from_millis(20 * (round % 2)));
            let log = Logged::arm(&driver);
            log.take_all();
            read(&mut driver, 0);
            std::thread::sleep(Duration::from_millis(20 * (round % 2)));
            read(&mut driver, 0);
            assert!(!log.is_empty());
            disk::switch_log(&driver, false);
        }
    }
    host.stop();
}

/// QEMU replaces it when its guest's memory grows. What is under way meanwhile is in one of the two.
#[test]
fn a_log_that_is_replaced_under_io_loses_no_page() {
    let host = Host::start(&[("file", FILE)], 2);
    for packed in [false, true] {
        let options = Options { packed, ..Options::default() };
        let mut driver = connect(&host, "file", options);
        let mut log = Logged::arm(&driver);
        for _ in 0..20 {
            log.take_all();
            let reads: Vec<_> =
                (0..64).map(|at| place(&mut driver, request::IN, at * 8, vec![1; 4096], true).0).collect();
            driver.queues[0].publish().unwrap();
            let old = std::mem::replace(&mut log, Logged::set(&driver));
            reads.iter().for_each(|_| wait(&mut driver));
            let either = |iova| old.has(iova) || log.has(iova);
            assert!(reads.iter().all(|buffer| either(buffer.iova()) && either(buffer.iova() + 4096)));
            old.take_all();
            read(&mut driver, 0);
            assert!(old.is_empty(), "the one before is let go of");
        }
    }
    host.stop();
}

#[test]
fn a_log_that_is_too_short_for_its_guest_has_what_it_has_room_for() {
    let host = Host::start(&[("ram", RAM)], 1);
    let mut driver = connect(&host, "ram", Options::default());
    disk::agree_on_log(&driver);
    // At an odd place of its file, a single byte: the guest's memory begins beyond.
    let file = disk::log_file(4096);
    disk::set_log_base(&driver, &file, 1, 4095).unwrap();
    disk::switch_log(&driver, true);
    assert!(driver.ram().iova() >= 8 << 12);
    for at in 0..8 {
        write(&mut driver, at * 8, 3);
        assert_eq!(read(&mut driver, at * 8), vec![3; 4096]);
    }
    host.stop();
}

#[test]
fn a_client_that_shrinks_its_log_is_hung_up_on_and_harms_nobody() {
    let host = Host::start(&[("bad", RAM), ("good", RAM)], 1);
    let mut good = connect(&host, "good", Options::default());
    let mut bad = connect(&host, "bad", Options::default());
    disk::agree_on_log(&bad);
    let file = disk::log_file(1 << 20);
    disk::set_log_base(&bad, &file, 1 << 20, 0).unwrap();
    disk::switch_log(&bad, true);
    rustix::fs::ftruncate(&file, 0).unwrap();
    write(&mut bad, 0, 1);
    until_hung_up(&bad);
    write(&mut good, 0, 1);
    assert_eq!(read(&mut good, 0), vec![1; 4096]);
    drop(bad);
    let mut next = connect(&host, "bad", Options::default());
    assert_eq!(read(&mut next, 0), vec![1; 4096]);
    host.stop();
}

/// Memory that was there while its pages were marked, and is not any more.
#[test]
fn memory_that_goes_while_a_log_is_armed_leaves_its_marks_and_the_disk() {
    let host = Host::start(&[("ram", RAM)], 2);
    let options = Options { mem_slots: true, ..Options::default() };
    let mut driver = connect(&host, "ram", options);
    let log = Logged::arm(&driver);
    let extra = guest::ram::Ram::new(1 << 20, 0x700_0000).unwrap();
    for round in 0..8 {
        driver.add_memory(&extra).unwrap();
        log.take_all();
        let own = driver.ram().alloc(4096).unwrap();
        own.write(0, &request::header(request::IN, 0));
        let pieces = [
            Piece { iova: own.iova(), len: 16, device_writes: false },
            Piece { iova: extra.iova() + 4096, len: 8192, device_writes: true },
            Piece { iova: own.iova() + 64, len: 1, device_writes: true },
        ];
        driver.queues[0].ring.add(&pieces).unwrap();
        driver.queues[0].publish().unwrap();
        if round % 2 == 0 {
            wait(&mut driver);
        }
        driver.remove_memory(&extra).unwrap();
        if round % 2 == 1 {
            wait(&mut driver);
        }
        // It may have been taken only when the memory was gone.
        let is_done = own.bytes(64, 1)[0] == request::OK;
        assert!(is_done || round % 2 == 1);
        let marked = |page: u64| log.has(extra.iova() + page * 4096);
        assert!(!marked(0) && marked(1) == is_done && marked(2) == is_done && !marked(3));
    }
    host.stop();
}

#[test]
fn a_ring_that_makes_no_sense_is_left_alone_and_the_others_go_on() {
    let host = Host::start(&[("ram", RAM)], 2);
    let options = Options { queues: 2, kick: true, ..Options::default() };
    let mut driver = connect(&host, "ram", options);
    // The available index of ring 1 jumps beyond the ring.
    let [_, available, _] = driver.queues[1].ring.places();
    let offset = usize::try_from(available - driver.ram().iova()).unwrap();
    driver.ram().mapping().store_u16(offset + 2, 0x7FFF);
    driver.queues[1].kick().unwrap();
    for at in 0..20 {
        write(&mut driver, at * 8, at as u8);
        assert_eq!(read(&mut driver, at * 8), vec![at as u8; 4096]);
    }
    driver.stop(1).unwrap();
    host.stop();
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused() {
    let host = Host::start(&[("ram", RAM)], 1);
    let mut driver = connect(&host, "ram", Options::default());
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    for message in [12, 13, 14] {
        assert!(driver.client().tell(message, &0_u64.to_le_bytes(), &[reader.as_fd()]).is_err(), "{message}");
    }
    write(&mut driver, 0, 9);
    host.stop();
}

/// The one before may still be leaving.
fn connect(host: &Host, name: &str, options: Options) -> Driver {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Driver::connect(host.socket(name), options) {
            Ok(driver) => return driver,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn called(driver: &Driver, patience: Duration) -> bool {
    let call = driver.queues[0].call();
    let timeout = Timespec::try_from(patience).unwrap();
    matches!(poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&timeout)), Ok(1))
        && rustix::io::read(call, &mut [0; 8]).is_ok()
}
