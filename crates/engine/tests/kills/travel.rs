//! A guest goes from one daemon to another with its device, by the migration messages of vfio-user: the same memory, the same queues, the same
//! load. Its disk is copied while both stand still.

use crate::FILE;
use crate::house::House;
use crate::load::Load;
use guest::nvme::{Driver, Options, Sqe};
use guest::vfio_user::{Client, state};
use guest::{Error, PATIENCE};
use std::time::{Duration, Instant};

const EINVAL: u32 = 22;
const NONE: fn(At) -> Option<Side> = |_| None;

/// Where a journey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Stopped,
    HalfRead,
    Read,
    Resuming,
    HalfWritten,
    Written,
    Loaded,
    Running,
}

/// Whose engine is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

fn house() -> House {
    House::start(&[("disk", FILE)], 2)
}

/// A client of the destination; the guest that was there may still be leaving.
pub(crate) fn connect(house: &House) -> Client {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Client::connect(house.socket("disk")) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn copy_disk(from: &House, to: &House) {
    let bytes = std::fs::read(from.path("disk.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&to.drive("disk.img"), &bytes, 0).unwrap();
}

/// Brings the guest over. `kill`: whose engine is killed at which point.
fn travel(driver: &mut Driver, from: &House, to: &House, kill: impl Fn(At) -> Option<Side>) {
    let kill = |at| match kill(at) {
        Some(Side::Source) => _ = from.kill(),
        Some(Side::Destination) => _ = to.kill(),
        None => {}
    };
    let source = driver.client();
    source.set_migration_state(state::STOP_COPY).unwrap();
    kill(At::Stopped);
    let mut bytes = source.migration_read(300).unwrap();
    assert_eq!(bytes.len(), 300);
    kill(At::HalfRead);
    loop {
        let more = source.migration_read(256).unwrap();
        bytes.extend_from_slice(&more);
        if more.len() < 256 {
            break;
        }
    }
    kill(At::Read);
    copy_disk(from, to);
    let mut there = connect(to);
    there.set_migration_state(state::RESUMING).unwrap();
    kill(At::Resuming);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    there.migration_write(first).unwrap();
    kill(At::HalfWritten);
    there.migration_write(second).unwrap();
    kill(At::Written);
    there.set_migration_state(state::STOP).unwrap();
    kill(At::Loaded);
    let source = driver.move_to(there).unwrap();
    driver.client().set_migration_state(state::RUNNING).unwrap();
    kill(At::Running);
    drop(source);
}

#[test]
fn a_guest_goes_to_another_daemon_and_back_under_load_and_nothing_is_lost_or_done_twice() {
    let houses = [house(), house()];
    let mut load = Load::new(houses[0].connect("disk"), 3, 64, 5);
    for journey in 0..6 {
        load.run_for(Duration::from_millis(20));
        travel(load.driver(), &houses[journey % 2], &houses[1 - journey % 2], NONE);
    }
    load.run_until_progress();
    println!("{} operations", load.finish());
    houses.into_iter().for_each(House::stop);
}

#[test]
fn a_guest_arrives_though_the_engine_of_either_side_is_killed_at_any_point_of_its_journey() {
    let points = [
        (At::Stopped, Side::Source),
        (At::HalfRead, Side::Source),
        (At::Read, Side::Source),
        (At::Resuming, Side::Destination),
        (At::HalfWritten, Side::Destination),
        (At::Written, Side::Destination),
        (At::Loaded, Side::Destination),
        (At::Running, Side::Destination),
    ];
    let houses = [house(), house()];
    let mut load = Load::new(houses[0].connect("disk"), 2, 32, 9);
    for (journey, (point, side)) in points.into_iter().enumerate() {
        load.run_for(Duration::from_millis(10));
        let kill = |at| (at == point).then_some(side);
        travel(load.driver(), &houses[journey % 2], &houses[1 - journey % 2], kill);
        load.run_until_progress();
    }
    println!("{} operations", load.finish());
    houses.into_iter().for_each(House::stop);
}

#[test]
fn a_device_that_stands_still_fetches_nothing_and_goes_on_where_it_stood() {
    let house = house();
    let mut driver = house.connect("disk");
    driver.create_queue_pair(1, 64).unwrap();
    let event = driver.request_event().unwrap();
    let buffer = driver.ram().clone().alloc(4096).unwrap();
    for by_engine in [false, true] {
        driver.client().set_migration_state(state::STOP).unwrap();
        let before = ram(&driver);
        let write = Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 8).cdw12(7);
        let cid = driver.place(1, write).unwrap();
        let rung = ram(&driver);
        driver.ring(1).unwrap();
        if by_engine {
            house.kill();
        }
        assert_eq!(driver.client().migration_state().unwrap(), state::STOP);
        // Answered by the same thread that would have to wake the device.
        assert_eq!(driver.read_u32(0x1c).unwrap() & 1, 1, "ready");
        assert!(driver.poll(1).unwrap().is_none());
        assert!(rung == ram(&driver) && before.len() == rung.len(), "memory was written");
        assert!(driver.write_u32(0x14, 0).is_err(), "its registers are not written to");
        driver.client().set_migration_state(state::RUNNING).unwrap();
        driver.wait(1, cid).unwrap().ok().unwrap();
    }
    assert!(driver.poll(0).unwrap().is_none(), "the event request is parked still");
    driver.abort(0, event).unwrap().ok().unwrap();
    drop(driver);
    house.stop();
}

fn ram(driver: &Driver) -> Vec<u8> {
    let mut bytes = vec![0; driver.ram().len()];
    driver.ram().mapping().read(0, &mut bytes);
    bytes
}

#[test]
fn a_state_that_is_damaged_or_of_another_ssd_is_refused_and_a_reset_leads_out() {
    let house = House::start(&[("disk", FILE), ("other", "{ type = \"ram\" }")], 1);
    let mut driver = house.connect("disk");
    driver.client().set_migration_state(state::STOP_COPY).unwrap();
    let good = driver.client().migration_read(1 << 20).unwrap();
    driver.client().set_migration_state(state::RUNNING).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    let cut = good[..good.len() - 1].to_vec();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let twice = [&good[..], &good[..]].concat();
    for (name, bad) in [("disk", cut), ("disk", flipped), ("disk", twice), ("disk", vec![]), ("other", good)]
    {
        let options = Options::default();
        let mut other = if name == "other" { Some(house.connect_with(name, options)) } else { None };
        let client = other.as_mut().unwrap_or(&mut driver).client();
        client.set_migration_state(state::RESUMING).unwrap();
        client.migration_write(&bad).unwrap();
        let refused = client.set_migration_state(state::RUNNING);
        assert!(matches!(refused, Err(Error::Refused { errno: EINVAL, .. })), "{refused:?}");
        assert_eq!(client.migration_state().unwrap(), state::ERROR);
        assert!(client.set_migration_state(state::STOP).is_err());
        client.reset().unwrap();
        assert_eq!(client.migration_state().unwrap(), state::RUNNING);
        let driver = other.as_mut().unwrap_or(&mut driver);
        driver.enable().unwrap();
        driver.create_queue_pair(1, 16).unwrap();
        let buffer = driver.ram().clone().alloc(4096).unwrap();
        driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    }
    drop(driver);
    house.stop();
}

/// The ssd has another owner then: what was accepted here must not be carried out here.
#[test]
fn a_client_that_leaves_a_stopped_device_leaves_nothing_that_is_still_carried_out() {
    let house = house();
    let mut driver = house.connect("disk");
    driver.create_queue_pair(1, 64).unwrap();
    driver.client().set_migration_state(state::STOP).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[0x5a; 4096]).unwrap();
    driver.place(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 0).cdw12(7)).unwrap();
    driver.ring(1).unwrap();
    drop(driver);
    let mut next = house.connect("disk");
    next.create_queue_pair(1, 64).unwrap();
    let buffer = next.ram().clone().alloc_with(&[1; 4096]).unwrap();
    next.read(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    assert_eq!(buffer.to_vec(), [0; 4096]);
    drop(next);
    house.stop();
}
