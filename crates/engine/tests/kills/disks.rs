//! The same for virtio-blk disks: rings go on, requests in flight are executed again, and the client's socket never closes.

use super::disk::{self, Checked, Logged, WHOLE, kinds, place, read, wait, write};
use super::house::House;
use super::{FILE, RAM};
use guest::PATIENCE;
use guest::mapping::Mapping;
use guest::vhost_user::client::request;
use guest::vhost_user::request::IN;
use guest::vhost_user::{Driver, Options};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const SET_BACKEND_REQ_FD: u32 = 21;

fn killed_under_load(backend: &str, options: Options, seed: u64, kills: u64) {
    let house = House::start(&[("victim", &format!("virtio-blk on {backend}"))], 2);
    let mut load = Checked::connect(&house.socket("victim"), 3, 16, options, seed);
    let mut longest = Vec::new();
    for kill in 0..kills {
        load.run_for(Duration::from_micros(20_000 + (seed ^ kill).wrapping_mul(7919) % 60_000));
        house.kill();
        longest.push(load.run_until_progress());
    }
    let answers = load.finish();
    longest.sort_unstable();
    println!(
        "{kills} kills, {answers} answers; pause: half below {:?}, longest {:?}; {options:?}",
        longest[longest.len() / 2],
        longest.last().unwrap()
    );
    drop(load);
    house.stop();
}

#[test]
fn an_engine_killed_under_load_on_a_ram_disk_costs_no_request_and_no_byte() {
    for (seed, options) in (1..).zip(kinds()) {
        killed_under_load(RAM, options, seed, 5);
    }
}

#[test]
fn an_engine_killed_under_load_on_a_disks_file_costs_no_request_and_no_byte() {
    for (seed, options) in (100..).zip(kinds()) {
        killed_under_load(FILE, options, seed, 5);
    }
}

#[test]
fn an_engine_killed_while_a_disk_is_held_at_its_limits_costs_no_request_and_no_byte() {
    for (seed, options) in (200..).zip(kinds().step_by(9)) {
        killed_under_load(&format!("{RAM}\n{}", disk::LIMITS), options, seed, 2);
    }
}

#[test]
fn messages_and_rings_go_on_over_kills() {
    let house = House::start(&[("victim", &format!("virtio-blk on {RAM}"))], 2);
    let options = Options { queues: 4, mem_slots: true, kick: true, inflight: true, ..Options::default() };
    let driver = Driver::connect(house.socket("victim"), options).unwrap();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(60));
                house.kill();
            }
        });
        let mut round = 0_u16;
        while !killer.is_finished() {
            round += 1;
            let base = driver.stop(round % 4).unwrap();
            driver.go_on(round % 4, base).unwrap();
            let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
            let words = [0, extra.iova(), extra.len() as u64, 0x7B00_0000_0000, 0];
            let payload: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            driver.client().tell(37, &payload, &[extra.fd()]).unwrap();
            driver.client().tell(38, &payload, &[]).unwrap();
        }
        killer.join().unwrap();
        println!("{round} rounds");
    });
    // An engine answers again: a stop that meets one just killed says, rightly, that it could not make all durable.
    driver.stop(0).unwrap();
    drop(driver);
    house.stop();
}

#[test]
fn a_disks_client_that_leaves_while_the_engine_is_dead_frees_the_disk() {
    let house = House::start(&[("victim", &format!("virtio-blk on {FILE}"))], 1);
    for round in 0..4 {
        let options = Options { packed: round % 2 == 0, ..Options::default() };
        let driver = connect(&house, options);
        house.kill();
        drop(driver);
    }
    // A stop that meets an engine just killed says, rightly, that it could not make all durable.
    drop(connect(&house, Options::default()));
    house.stop();
}

/// The region is the client's to write: what it says is believed only as far as it hangs together.
#[test]
fn a_client_that_wrote_nonsense_into_its_in_flight_region_loses_its_session_and_not_the_disk() {
    let house = House::start(&[("victim", &format!("virtio-blk on {RAM}"))], 1);
    let driver = connect(&house, Options { inflight: true, kick: true, ..Options::default() });
    let region = driver.inflight_region().unwrap();
    let map = Mapping::new(region, 0, 4096, true).unwrap();
    map.fill(0, 4096, 0xA5);
    house.kill();
    wait_for_hang_up(&driver);
    drop(driver);
    let mut load = Checked::connect(&house.socket("victim"), 2, 8, Options::default(), 5);
    load.run_for(Duration::from_millis(100));
    load.finish();
    drop(load);
    house.stop();
}

/// Near misses: a region as the engine left it with requests in flight, but for a few words.
#[test]
fn an_in_flight_region_that_its_client_changed_at_will_never_brings_an_engine_down_or_touches_another_disk() {
    let mut seed = 41_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let house = House::start(
        &[("victim", &format!("virtio-blk on {RAM}")), ("other", &format!("virtio-blk on {FILE}"))],
        1,
    );
    let mut load = Checked::connect(&house.socket("other"), 1, 8, Options::default(), 5);
    for round in 0..16 {
        let packed = round % 2 == 0;
        let mut driver = connect(&house, Options { inflight: true, packed, ..Options::default() });
        let region = Mapping::new(driver.inflight_region().unwrap(), 0, 4096, true).unwrap();
        for at in 0..64 {
            place(&mut driver, IN, at * 8, vec![0; 4096], true);
        }
        driver.queues[0].publish().unwrap();
        let killed = house.kill();
        for _ in 0..=random() % 6 {
            // The head of the queue's region, or an entry.
            let offset = if random() % 2 == 0 { random() % 48 } else { random() % 4094 };
            let value = [0, 1, 7, 255, 256, 0xFFFF, random() as u16][random() as usize % 7];
            region.store_u16(offset as usize / 2 * 2, value);
        }
        if round % 4 == 1 {
            // A batch that begins nowhere, with one request in flight (split: last_batch_head, used_idx, entry 0).
            region.store_u16(12, 0xFFFF);
            region.store_u16(14, region.load_u16(14).wrapping_sub(1));
            region.store_u16(16, 1);
        }
        // Served or hung up on, but by one engine.
        while house.pid() == killed {
            load.turn();
        }
        let successor = house.pid();
        let _either = driver.client().ask_number(1);
        drop(driver);
        connect(&house, Options::default());
        load.run_for(Duration::from_millis(20));
        assert_eq!(house.pid(), successor, "round {round}");
    }
    load.finish();
    drop(load);
    house.stop();
}

/// The pages in which the device answers: the used ring, or the packed ring.
fn answers_of(driver: &Driver) -> (u64, Vec<u8>) {
    let [descriptors, _, used] = driver.queues[0].ring.places();
    let start = if driver.options().packed { descriptors } else { used };
    let mut bytes = vec![0; 4096];
    driver.ram().mapping().read((start - driver.ram().iova()) as usize, &mut bytes);
    (start, bytes)
}

#[test]
fn every_page_that_the_device_writes_is_in_the_dirty_log_whoever_dies_in_between() {
    for kind in 0..4 {
        let (packed, inflight) = (kind & 1 == 1, kind & 2 == 2);
        let house = House::start(&[("victim", &format!("virtio-blk on {FILE}"))], 1);
        let mut driver = connect(&house, Options { packed, inflight, ..Options::default() });
        for at in 0..64 {
            write(&mut driver, at * 8, 0x11);
        }
        let log = Logged::arm(&driver);
        for round in 0..8_u64 {
            log.take_all();
            let reads: Vec<_> =
                (0..64).map(|at| place(&mut driver, IN, at * 8, vec![0; 4096], true).0).collect();
            let (ring, before) = answers_of(&driver);
            driver.queues[0].publish().unwrap();
            if round % 4 != 0 {
                std::thread::sleep(Duration::from_micros(round * 150));
                house.kill();
            }
            reads.iter().for_each(|_| wait(&mut driver));
            for buffer in &reads {
                assert!(buffer.to_vec()[..4096] == [0x11; 4096]);
                let (data, status) = (log.has(buffer.iova()), log.has(buffer.iova() + 4096));
                assert!(data && status, "data {data}, status {status}, round {round} of {kind}");
            }
            // Page by page, as a migration looks.
            let after = answers_of(&driver).1;
            for at in (0..4096).filter(|at| before[*at] != after[*at]) {
                assert!(log.has(ring + at as u64), "byte {at} of the ring, round {round} of {kind}");
            }
        }
        disk::switch_log(&driver, false);
        log.take_all();
        read(&mut driver, 0);
        assert!(log.is_empty(), "the log is off");
        drop(driver);
        house.stop();
    }
}

/// A client with a channel for the back-end's own requests, as QEMU has.
pub(super) fn with_channel(house: &House, name: &str) -> (Driver, UnixStream) {
    let driver = connect_to(house, name, Options::default());
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    // MQ, REPLY_ACK, BACKEND_REQ, CONFIG.
    driver.client().tell(request::SET_PROTOCOL_FEATURES, &0x229_u64.to_le_bytes(), &[]).unwrap();
    driver.client().tell(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]).unwrap();
    (driver, ours)
}

pub(super) fn sectors(driver: &Driver) -> u64 {
    let asked: Vec<u8> = [0, 60, 0_u32].into_iter().flat_map(u32::to_le_bytes).chain([0; 60]).collect();
    let (answer, _) = driver.client().ask(request::GET_CONFIG, &asked).unwrap();
    u64::from_le_bytes(answer[12..20].try_into().unwrap())
}

#[test]
fn a_drive_that_grew_before_the_engine_died_is_announced_and_used_to_its_end() {
    let house = House::start(&[("victim", &format!("virtio-blk on {WHOLE}"))], 2);
    let (mut driver, mut channel) = with_channel(&house, "victim");
    assert_eq!(sectors(&driver), 64 << 11);
    write(&mut driver, 8, 1);
    house.drive("whole.img").set_len(96 << 20).unwrap();
    house.kill();
    let mut said = [0; 12];
    channel.read_exact(&mut said).unwrap();
    assert_eq!(said, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "the configuration has changed");
    assert_eq!(sectors(&driver), 96 << 11);
    let last = (96 << 11) - 8;
    write(&mut driver, last, 7);
    assert_eq!((read(&mut driver, 8), read(&mut driver, last)), (vec![1; 4096], vec![7; 4096]));
    // Its client has looked: the next engine says nothing.
    house.kill();
    assert_eq!(read(&mut driver, last), vec![7; 4096]);
    channel.set_nonblocking(true).unwrap();
    assert!(channel.read(&mut said).is_err());
    drop(driver);
    house.stop();
}

#[test]
fn a_client_whose_drive_shrank_before_the_engine_died_loses_its_session_and_not_the_disk() {
    let house = House::start(&[("victim", &format!("virtio-blk on {WHOLE}"))], 1);
    let driver = connect(&house, Options::default());
    assert_eq!(sectors(&driver), 64 << 11);
    house.drive("whole.img").set_len(32 << 20).unwrap();
    house.kill();
    wait_for_hang_up(&driver);
    drop(driver);
    let mut driver = connect(&house, Options::default());
    assert_eq!(sectors(&driver), 32 << 11);
    write(&mut driver, 8, 1);
    drop(driver);
    house.stop();
}

/// Until the device has ended this client's session.
fn wait_for_hang_up(driver: &Driver) {
    let deadline = Instant::now() + PATIENCE;
    while driver.client().ask_number(1).is_ok() {
        assert!(Instant::now() < deadline, "it is still served");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn connect(house: &House, options: Options) -> Driver {
    connect_to(house, "victim", options)
}

/// Whoever was there before may still be leaving.
pub(crate) fn connect_to(house: &House, name: &str, options: Options) -> Driver {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Driver::connect(house.socket(name), options) {
            Ok(driver) => return driver,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
