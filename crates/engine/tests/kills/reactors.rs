//! Reactors come and go, and queue pairs move from one to another, under guests that verify what they read.

use super::disk::{Checked, kinds, place};
use super::house::{House, reactors};
use super::load::Load;
use super::{FILE, RAM};
use api::config::Config;
use api::control::{PoolRequest, PoolStatus, Request, Response};
use engine::Engine;
use guest::PATIENCE;
use guest::nvme::{Driver, Options, Sqe};
use guest::vhost_user::request;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many reactors serve, one after the other.
const COUNTS: [usize; 7] = [2, 1, 3, 2, 4, 1, 2];

/// A number that is not always the same.
fn odd(seed: u64, at: usize) -> u64 {
    (seed + at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
}

/// Has other reactors serve, again and again.
fn call_up(house: &House, ssds: &[(&str, &str)], seed: u64, kills: bool) {
    for (at, count) in COUNTS.into_iter().enumerate() {
        std::thread::sleep(Duration::from_micros(10_000 + odd(seed, at) % 60_000));
        house.call_up(ssds, count).unwrap();
        if kills {
            std::thread::sleep(Duration::from_micros(odd(seed + 1, at) % 4_000));
            house.kill();
        }
    }
}

/// Waits until who is off duty has nothing any more, and returns what the others have.
fn settled(house: &House, on_duty: usize) -> Vec<(u64, u64)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut reactors = house.reactors();
        let rest = reactors.split_off(on_duty.min(reactors.len()));
        if reactors.len() == on_duty && rest.iter().all(|(seats, _)| *seats == 0) {
            return reactors;
        }
        assert!(Instant::now() < deadline, "{reactors:?}, and off duty {rest:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn come_and_go(backend: &str, seed: u64, kills: bool) {
    let ssds = [("victim", backend), ("quiet", RAM)];
    let house = House::start(&ssds, 1);
    let quiet = house.connect("quiet");
    let mut load = Load::new(house.connect("victim"), 4, 64, seed);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| call_up(&house, &ssds, seed, kills));
        while !other.is_finished() {
            load.run_for(Duration::from_millis(5));
        }
        other.join().unwrap();
    });
    load.run_for(Duration::from_millis(50));
    let pairs = |house: &House| settled(house, 2).iter().map(|(_, pairs)| *pairs).collect::<Vec<_>>();
    let deadline = Instant::now() + PATIENCE;
    while pairs(&house) != [2, 2] {
        load.run_for(Duration::from_millis(5));
        assert!(Instant::now() < deadline, "{:?}", house.reactors());
    }
    house.call_up(&ssds, 1).unwrap();
    while settled(&house, 1) != [(2, 4)] {
        load.run_for(Duration::from_millis(5));
        assert!(Instant::now() < deadline, "{:?}", house.reactors());
    }
    load.finish();
    drop(quiet);
    house.stop();
}

#[test]
fn reactors_come_and_go_under_load_and_cost_no_command_and_no_byte() {
    come_and_go(RAM, 11, false);
    come_and_go(FILE, 12, false);
}

#[test]
fn an_engine_killed_while_queue_pairs_move_costs_no_command_and_no_byte() {
    come_and_go(RAM, 13, true);
    come_and_go(FILE, 14, true);
}

#[test]
fn reactors_come_and_go_under_a_disks_load_and_cost_no_request_and_no_byte() {
    for (seed, options) in (300..).zip(kinds().step_by(5)) {
        let backend = format!("virtio-blk on {RAM}");
        let ssds = [("victim", backend.as_str())];
        let house = House::start(&ssds, 1);
        let mut load = Checked::connect(&house.socket("victim"), 3, 16, options, seed);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| call_up(&house, &ssds, seed, seed % 2 == 0));
            while !other.is_finished() {
                load.run_for(Duration::from_millis(5));
            }
            other.join().unwrap();
        });
        load.run_for(Duration::from_millis(50));
        let deadline = Instant::now() + PATIENCE;
        while !settled(&house, 2).iter().all(|(_, rings)| *rings > 0) {
            load.run_for(Duration::from_millis(5));
            assert!(Instant::now() < deadline, "{:?}", house.reactors());
        }
        load.finish();
        drop(load);
        house.stop();
    }
}

fn engine(directory: &Path, backend: &str, reactors: usize) -> (Engine, Driver) {
    let dir = directory.display().to_string();
    let text = format!(
        "[engine]\nreactors = {reactors}\n[[ssd]]\nname = \"a\"\nsize = \"64MiB\"\nsocket = \"{dir}/a.sock\"\nbackend = {}\n",
        backend.replace("DIR", &dir)
    );
    let config = Config::parse(Path::new("test.toml"), &text).unwrap();
    let engine = Engine::start(&config, Some(directory.join("stats"))).unwrap();
    let options = Options::default();
    let driver = Driver::connect_with(directory.join("a.sock"), options).unwrap();
    (engine, driver)
}

#[test]
fn queue_pairs_that_move_at_any_moment_lose_and_repeat_no_command() {
    for (seed, backend) in [(21, RAM), (22, FILE)] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (engine, driver) = engine(directory.path(), backend, 3);
        let mut load = Load::new(driver, 4, 64, seed);
        let mut seen = std::collections::BTreeSet::new();
        for at in 0..300 {
            let queue = u16::try_from(odd(seed, at) % 4 + 1).unwrap();
            engine.move_queue_pair("a", queue, usize::try_from(odd(seed + 5, at) % 3).unwrap());
            load.run_for(Duration::from_micros(odd(seed + 9, at) % 2_000));
            let spread: Vec<u64> = reactors(directory.path()).iter().map(|(_, pairs)| *pairs).collect();
            seen.insert(spread);
        }
        assert!(seen.len() > 3, "they did not move: {seen:?}");
        load.finish();
        engine.stop().unwrap();
    }
}

#[test]
fn queues_that_are_deleted_made_and_reset_while_they_move_answer_as_ever() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (engine, mut driver) = engine(directory.path(), RAM, 3);
    let buffer = driver.ram().clone().alloc_with(&[7; 512]).unwrap();
    for round in 0..60_usize {
        for qid in 1..=3 {
            driver.create_queue_pair(qid, 16).unwrap();
        }
        for at in 0..4 {
            let queue = u16::try_from(odd(1, round * 4 + at) % 3 + 1).unwrap();
            let write = Sqe::new(1).nsid(1).prp(buffer.iova(), 0).cdw12(0);
            driver.submit(queue, write).unwrap();
            engine.move_queue_pair("a", queue, usize::try_from(odd(2, round * 4 + at) % 3).unwrap());
            driver.wait_any(queue, PATIENCE).unwrap().ok().unwrap();
            engine.move_queue_pair("a", queue, usize::try_from(odd(3, round * 4 + at) % 3).unwrap());
        }
        if round % 3 == 0 {
            driver.enable().unwrap();
            driver.set_queue_count(16).unwrap();
        } else {
            (1..=3).for_each(|qid| driver.delete_queue_pair(qid).unwrap());
        }
    }
    drop(driver);
    engine.stop().unwrap();
}

const FULL: &str = "{ type = \"pool\", pool = \"p\" }";
const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
/// An extent in blocks of 512 bytes.
const EXTENT: u64 = 2048;

fn pool(house: &House) -> PoolStatus {
    match house.ask(&Request::Pool(PoolRequest::List)) {
        Response::Pool(mut pools) => pools.pop().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Begins to write a block, and to read one.
fn begin(driver: &mut Driver, queue: u16, opcode: u8, block: u64) -> u16 {
    let buffer = driver.ram().clone().alloc_with(&[7; 512]).unwrap();
    driver.submit(queue, Sqe::new(opcode).nsid(1).prp(buffer.iova(), 0).qword(10, block).cdw12(0)).unwrap()
}

/// Reads the first block again and again, on both queues.
fn read_for(driver: &mut Driver, disk: &mut guest::vhost_user::Driver, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for queue in [1, 2] {
            let read = begin(driver, queue, 2, 0);
            driver.wait(queue, read).unwrap().ok().unwrap();
        }
        assert_eq!(super::disk::read(disk, 0), [5; 4096]);
    }
}

#[test]
fn who_waits_for_space_keeps_its_reactor_and_goes_on_and_leaves_when_there_is_some() {
    let disk = format!("virtio-blk on {THIN}");
    // Those with odd numbers have their homes on the second reactor.
    let ssds = [("a", FULL), ("nvme", THIN), ("b", FULL), ("disk", &disk), ("c", FULL), ("fill", THIN)];
    let house = House::start(&ssds, 2);
    let (mut nvme, mut fill) = (house.connect("nvme"), house.connect("fill"));
    let mut disk = guest::vhost_user::Driver::connect(house.socket("disk"), Default::default()).unwrap();
    (1..=2).for_each(|queue| nvme.create_queue_pair(queue, 16).unwrap());
    fill.create_queue_pair(1, 16).unwrap();
    super::disk::write(&mut disk, 0, 5);
    let first = begin(&mut nvme, 1, 1, 0);
    nvme.wait(1, first).unwrap().ok().unwrap();
    let mut extent = 0;
    while pool(&house).free > 0 {
        let write = begin(&mut fill, 1, 1, extent * EXTENT);
        fill.wait(1, write).unwrap().ok().unwrap();
        extent += 1;
    }
    let parked = begin(&mut nvme, 1, 1, 9 * EXTENT);
    let _parked = place(&mut disk, request::OUT, 9 * EXTENT, vec![6; 4096], false);
    disk.queues[0].publish().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pool(&house).waiting < 2 {
        assert!(Instant::now() < deadline);
    }
    house.call_up(&ssds, 1).unwrap();
    read_for(&mut nvme, &mut disk, Duration::from_millis(500));
    assert!(house.reactors()[1].0 >= 2, "who waits has its seat still: {:?}", house.reactors());
    fill.deallocate(1, 1, &[(0, 8 * EXTENT as u32)]).unwrap().ok().unwrap();
    nvme.wait(1, parked).unwrap().ok().unwrap();
    super::disk::wait(&mut disk);
    settled(&house, 1);
    read_for(&mut nvme, &mut disk, Duration::from_millis(1));
    assert_eq!(super::disk::read(&mut disk, 9 * EXTENT), [6; 4096]);
    house.stop();
}
