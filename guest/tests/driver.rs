//! The client and the driver against a toy controller of their own.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test's own bug may panic")]

use std::time::Duration;

use guest::load::clock::Clock;
use guest::load::engine::Spent;
use guest::load::lane::{Lane, Plan};
use guest::load::workload::{Direction, Workload};
use guest::nvme::{Driver, Options, Sqe, nvm};
use guest::vfio_user::Client;

mod toy;
use toy::Toy;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from(index * 7 % 253).unwrap()).collect()
}

fn write_then_read(driver: &mut Driver) {
    driver.create_queue_pair(1, 8).unwrap();
    let ram = driver.ram().clone();
    let bytes = pattern(5 * 4096);
    let source = ram.alloc_with(&bytes).unwrap();
    let target = ram.alloc(bytes.len()).unwrap();
    for round in 0..20 {
        driver.write(1, 1, round, 40, &source).unwrap().ok().unwrap();
        target.fill(0);
        driver.read(1, 1, round, 40, &target).unwrap().ok().unwrap();
        assert_eq!(target.to_vec(), bytes);
    }
}

#[test]
fn what_is_written_is_read_back_over_shared_memory() {
    let toy = Toy::start();
    let mut driver = Driver::connect(&toy.path).unwrap();
    write_then_read(&mut driver);
    driver.delete_queue_pair(1).unwrap();
    assert!(driver.sq(1).is_none() && driver.cq(1).is_none());
    drop(driver);
    toy.join();
}

#[test]
fn a_server_without_an_fd_is_answered_over_the_socket() {
    let toy = Toy::start();
    let options = Options { share_ram: false, ram_bytes: 1 << 20, ..Options::default() };
    let mut driver = Driver::connect_with(&toy.path, options).unwrap();
    write_then_read(&mut driver);
    assert!(driver.client().dma_served() > 20);
    drop(driver);
    toy.join();
}

#[test]
fn a_status_is_handed_on_and_the_queue_goes_on() {
    let toy = Toy::start();
    let mut driver = Driver::connect(&toy.path).unwrap();
    driver.create_queue_pair(2, 4).unwrap();
    let buffer = driver.ram().alloc(512).unwrap();
    let done = driver.read(2, 1, 1 << 30, 1, &buffer).unwrap();
    assert_eq!(done.status.code(), (0, 0x80));
    assert!(done.status.dnr());
    assert!(driver.read(2, 1, 0, 1, &buffer).unwrap().ok().is_ok());
    assert_eq!(driver.client().reset().unwrap_err().errno(), Some(95));
}

#[test]
fn completions_come_to_whoever_waits_for_them_in_any_order() {
    let toy = Toy::start();
    let mut driver = Driver::connect(&toy.path).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    driver.create_sq(2, 1, 16).unwrap();
    let buffer = driver.ram().alloc(512).unwrap();
    let sqe = Sqe::new(nvm::READ).nsid(1).prp(buffer.iova(), 0).blocks(0, 0);
    let cids: Vec<u16> = (0..5).map(|_| driver.submit(1, sqe).unwrap()).collect();
    let other = driver.submit(2, sqe).unwrap();
    assert_eq!(driver.wait(2, other).unwrap().sqid, 2);
    for cid in cids.into_iter().rev() {
        assert_eq!(driver.wait(1, cid).unwrap().cid, cid);
    }
    assert_eq!(driver.poll(1).unwrap(), None);
}

#[test]
fn a_completion_nobody_waited_for_survives_the_deletion_of_its_queue() {
    let toy = Toy::start();
    let mut driver = Driver::connect(&toy.path).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    let buffer = driver.ram().alloc(512).unwrap();
    let cid = driver.submit(1, Sqe::new(nvm::READ).nsid(1).prp(buffer.iova(), 0)).unwrap();
    let deadline = std::time::Instant::now() + guest::PATIENCE;
    // The phase of the first entry.
    while driver.cq(1).unwrap().ring().load_u64(8) >> 48 & 1 == 0 {
        assert!(std::time::Instant::now() < deadline);
    }
    driver.delete_sq(1).unwrap();
    assert_eq!(driver.poll(1).unwrap().unwrap().cid, cid);
    assert_eq!(driver.poll(1).unwrap(), None);
}

#[test]
fn a_controller_is_enabled_twice() {
    let toy = Toy::start();
    let client = Client::connect(&toy.path).unwrap();
    assert_eq!(client.version().unwrap().capability("max_msg_fds").unwrap(), 8);
    let mut driver = Driver::attach(client, Options::default()).unwrap();
    assert_eq!(driver.queue_entries_max(), 4096);
    for _ in 0..2 {
        driver.enable().unwrap();
        assert_eq!(driver.identify(1, 0).unwrap().len(), 4096);
    }
}

#[test]
fn a_lane_keeps_its_depth_and_loses_nothing() {
    let toy = Toy::start();
    let mut driver = Driver::connect(&toy.path).unwrap();
    let clock = Clock::calibrate();
    for (depth, batch) in [(1, 0), (7, 3), (32, 0), (128, 128)] {
        let workload = Workload::random(Direction::Read, depth);
        let mut lane = Lane::new(&mut driver, 1, &workload).unwrap();
        let time = Duration::from_millis(20);
        let plan = Plan { workload, warm_up: time, measured: time, batch, seed: 3 };
        let outcome = lane.run(&driver, &clock, &plan, Spent::default).unwrap();
        assert!(outcome.ios >= 1 && outcome.latency.count() >= 1, "{depth}: {}", outcome.iops());
        lane.close(&mut driver).unwrap();
    }
}
