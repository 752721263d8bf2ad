//! A guest goes from one daemon to another with its device, by the migration messages of vfio-user: the same memory, the same queues, the same
//! load. Its disk is copied while both stand still.

use crate::FILE;
use crate::house::House;
use crate::load::Load;
use ::state::controller::ControllerV1;
use guest::nvme::{Driver, Options, Sqe};
use guest::vfio_user::{Client, state};
use guest::{Error, PATIENCE};
use std::time::{Duration, Instant};

const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const NONE: fn(At) -> Option<Side> = |_| None;

/// Where a journey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Outlined,
    Foretold,
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

/// Brings the guest over. `ahead`: the destination hears of what it is to take while the guest runs. `kill`: whose engine is killed at which point.
fn travel(driver: &mut Driver, from: &House, to: &House, ahead: bool, kill: impl Fn(At) -> Option<Side>) {
    let kill = |at| match kill(at) {
        Some(Side::Source) => _ = from.kill(),
        Some(Side::Destination) => _ = to.kill(),
        None => {}
    };
    let source = driver.client();
    let mut there = None;
    if ahead {
        source.set_migration_state(state::PRE_COPY).unwrap();
        // Some of it is read when the device stands still.
        let outline = source.migration_read(60).unwrap();
        assert_eq!(outline.len(), 60);
        kill(At::Outlined);
        assert_eq!(source.migration_state().unwrap(), state::PRE_COPY);
        let client = there.insert(connect(to));
        client.set_migration_state(state::RESUMING).unwrap();
        client.migration_write(&outline).unwrap();
        kill(At::Foretold);
    }
    source.set_migration_state(state::STOP_COPY).unwrap();
    kill(At::Stopped);
    let mut bytes = source.migration_read(300).unwrap();
    assert_eq!(bytes.len(), 300);
    kill(At::HalfRead);
    bytes.extend_from_slice(&read_all(source));
    kill(At::Read);
    copy_disk(from, to);
    let mut there = there.unwrap_or_else(|| {
        let mut client = connect(to);
        client.set_migration_state(state::RESUMING).unwrap();
        client
    });
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

/// What can be read yet.
fn read_all(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = client.migration_read(256).unwrap();
        bytes.extend_from_slice(&more);
        if more.len() < 256 {
            return bytes;
        }
    }
}

#[test]
fn a_guest_goes_to_another_daemon_and_back_under_load_and_nothing_is_lost_or_done_twice() {
    let houses = [house(), house()];
    let mut load = Load::new(houses[0].connect("disk"), 3, 64, 5);
    for journey in 0..6 {
        load.run_for(Duration::from_millis(20));
        let ahead = journey >= 3;
        travel(load.driver(), &houses[journey % 2], &houses[1 - journey % 2], ahead, NONE);
    }
    load.run_until_progress();
    println!("{} operations", load.finish());
    houses.into_iter().for_each(House::stop);
}

#[test]
fn a_guest_arrives_though_the_engine_of_either_side_is_killed_at_any_point_of_its_journey() {
    let points = [
        (At::Outlined, Side::Source),
        (At::Foretold, Side::Source),
        (At::Foretold, Side::Destination),
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
        let ahead = journey % 2 == 0 || matches!(point, At::Outlined | At::Foretold);
        travel(load.driver(), &houses[journey % 2], &houses[1 - journey % 2], ahead, kill);
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

#[test]
fn in_pre_copy_a_device_runs_and_says_of_which_ssd_its_state_will_be() {
    let house = House::start(&[("disk", FILE), ("other", "{ type = \"ram\" }")], 1);
    let mut driver = house.connect("disk");
    driver.create_queue_pair(1, 16).unwrap();
    let buffer = driver.ram().clone().alloc(4096).unwrap();
    driver.client().set_migration_state(state::PRE_COPY).unwrap();
    let outline = read_all(driver.client());
    assert_eq!(read_all(driver.client()), [0; 0], "no more can be said yet");
    driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    // As often as a client likes.
    driver.client().set_migration_state(state::RUNNING).unwrap();
    assert!(driver.client().migration_read(8).is_err(), "a device that runs has nothing to read");
    driver.client().set_migration_state(state::PRE_COPY).unwrap();
    assert_eq!(read_all(driver.client()), outline);
    driver.client().set_migration_state(state::STOP_COPY).unwrap();
    let rest = read_all(driver.client());
    assert!(driver.client().set_migration_state(state::PRE_COPY).is_err(), "Linux knows no such way");
    // It takes its own, in pieces of any size.
    driver.client().set_migration_state(state::RESUMING).unwrap();
    for byte in &outline {
        driver.client().migration_write(&[*byte]).unwrap();
    }
    driver.client().migration_write(&rest).unwrap();
    driver.client().set_migration_state(state::RUNNING).unwrap();
    driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    // Another hears of it at once, and what is refused was not taken.
    let mut other = house.connect_with("other", Options::default());
    other.client().set_migration_state(state::RESUMING).unwrap();
    let (first, last) = outline.split_at(outline.len() - 1);
    let mut damaged = outline.clone();
    damaged[outline.len() - 1] ^= 1;
    other.client().migration_write(first).unwrap();
    let whole = [last, &rest].concat();
    for bad in [last, &damaged[first.len()..], &whole[..]] {
        let refused = other.client().migration_write(bad);
        assert!(matches!(refused, Err(Error::Refused { errno: EINVAL, .. })), "{refused:?}");
        assert_eq!(other.client().migration_state().unwrap(), state::RESUMING);
    }
    assert!(other.client().set_migration_state(state::STOP).is_err(), "an outline is no state");
    assert_eq!(other.client().migration_state().unwrap(), state::ERROR);
    driver.client().set_migration_state(state::PRE_COPY).unwrap();
    driver.client().reset().unwrap();
    assert_eq!(driver.client().migration_state().unwrap(), state::RUNNING);
    drop((driver, other));
    house.stop();
}

/// Nothing says whether the device stood still already, or what it was deposited as: the message comes again to the next engine.
#[test]
fn an_engine_that_is_killed_while_it_stops_a_device_in_pre_copy_costs_no_byte_of_its_state() {
    let house = house();
    let mut load = Load::new(house.connect("disk"), 2, 32, 3);
    for round in 0..16_u64 {
        load.run_for(Duration::from_millis(5));
        let client = load.driver().client();
        client.set_migration_state(state::PRE_COPY).unwrap();
        let mut bytes = client.migration_read(60).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(200 * round));
                house.kill();
            });
            client.set_migration_state(state::STOP_COPY).unwrap();
        });
        bytes.extend_from_slice(&read_all(client));
        assert!(ControllerV1::from_stream(&bytes).is_ok(), "round {round}");
        // Its own, to go on from.
        client.set_migration_state(state::RESUMING).unwrap();
        client.migration_write(&bytes).unwrap();
        client.set_migration_state(state::RUNNING).unwrap();
        load.run_until_progress();
    }
    println!("{} operations", load.finish());
    house.stop();
}

#[test]
fn a_device_in_pre_copy_that_the_engine_itself_holds_is_busy_and_stays_in_pre_copy() {
    let house = house();
    let mut driver = house.connect("disk");
    driver.create_queue_pair(1, 16).unwrap();
    let buffer = driver.ram().clone().alloc(4096).unwrap();
    let busy = |client: &mut Client, there: u32, here: u32| {
        let refused = client.set_migration_state(there);
        assert!(matches!(refused, Err(Error::Refused { errno: EBUSY, .. })), "{refused:?}");
        assert_eq!(client.migration_state().unwrap(), here);
    };
    for by_kill in [false, true] {
        house.tell("halt", "disk", b"").unwrap();
        busy(driver.client(), state::PRE_COPY, state::RUNNING);
        house.tell("run", "disk", b"").unwrap();
        driver.client().set_migration_state(state::PRE_COPY).unwrap();
        let mut bytes = driver.client().migration_read(20).unwrap();
        house.tell("halt", "disk", b"").unwrap();
        let held = house.tell("save", "disk", b"").unwrap();
        for there in [state::STOP_COPY, state::RUNNING] {
            busy(driver.client(), there, state::PRE_COPY);
        }
        bytes.extend_from_slice(&read_all(driver.client()));
        if by_kill {
            // A successor knows nothing of the order.
            house.kill();
        } else {
            house.tell("run", "disk", b"").unwrap();
        }
        driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
        assert_eq!(driver.client().migration_state().unwrap(), state::PRE_COPY);
        driver.client().set_migration_state(state::STOP_COPY).unwrap();
        bytes.extend_from_slice(&read_all(driver.client()));
        let (came, held) =
            (ControllerV1::from_stream(&bytes).unwrap(), ControllerV1::from_bytes(&held).unwrap());
        assert_eq!(came.outline(), held.outline());
        for order in ["halt", "run"] {
            let refused = house.tell(order, "disk", b"").unwrap_err();
            assert!(refused.contains("its client has stopped"), "{refused}");
        }
        driver.client().set_migration_state(state::RUNNING).unwrap();
        driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    }
    drop(driver);
    house.stop();
}

/// What the outline promised is not what comes: the state is checked as ever, and the guest goes on where it is.
#[test]
fn a_state_of_an_ssd_that_has_grown_since_its_outline_is_refused_until_the_other_has_grown_too() {
    let houses = [house(), house()];
    let grow = |house: &House| house.apply_text(house.config(&[("disk", FILE)], 96)).unwrap();
    let mut driver = houses[0].connect("disk");
    driver.create_queue_pair(1, 16).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[9; 4096]).unwrap();
    driver.client().set_migration_state(state::PRE_COPY).unwrap();
    let outline = read_all(driver.client());
    let mut there = connect(&houses[1]);
    there.set_migration_state(state::RESUMING).unwrap();
    there.migration_write(&outline).unwrap();
    grow(&houses[0]);
    driver.client().set_migration_state(state::STOP_COPY).unwrap();
    there.migration_write(&read_all(driver.client())).unwrap();
    let refused = there.set_migration_state(state::STOP);
    assert!(matches!(refused, Err(Error::Refused { errno: EINVAL, .. })), "{refused:?}");
    assert_eq!(there.migration_state().unwrap(), state::ERROR);
    drop(there);
    driver.client().set_migration_state(state::RUNNING).unwrap();
    let last = 96 * 2048 - 8;
    driver.write(1, 1, last, 8, &buffer).unwrap().ok().unwrap();
    grow(&houses[1]);
    travel(&mut driver, &houses[0], &houses[1], true, NONE);
    let back = driver.ram().clone().alloc(4096).unwrap();
    driver.read(1, 1, last, 8, &back).unwrap().ok().unwrap();
    assert_eq!(back.to_vec(), [9; 4096]);
    drop(driver);
    houses.into_iter().for_each(House::stop);
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
