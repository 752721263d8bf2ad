//! What a device that stands still, and a state that is loaded, are to those who come in the middle: engines that end, records that cannot be
//! written, changes of the configuration.

use crate::house::House;
use crate::travel::connect;
use crate::{FILE, RAM};
use ::state::controller::ControllerV1;
use ::state::region::ControllerRegion;
use guest::nvme::{Driver, Options, Sqe};
use guest::vfio_user::{Client, state};
use guest::{Error, PATIENCE};
use memory::SharedRegion;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

/// The regions of all ssds named "disk" that this process keeps.
fn regions() -> Vec<SharedRegion<ControllerRegion>> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let of = |entry: std::fs::DirEntry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        let is_one = link.to_string_lossy().contains("godwit-disk-state");
        let file =
            is_one.then(|| std::fs::File::options().read(true).write(true).open(entry.path()).ok())??;
        SharedRegion::from_fd(OwnedFd::from(file)).ok()
    };
    entries.filter_map(of).collect()
}

fn loaded(region: &SharedRegion<ControllerRegion>) -> u32 {
    region.header.loaded_file.load(Acquire)
}

/// A region into which a state was loaded since these were told.
fn wait_for_load<'a>(
    regions: &'a [SharedRegion<ControllerRegion>],
    before: &[u32],
) -> &'a SharedRegion<ControllerRegion> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((region, _)) = regions.iter().zip(before).find(|(region, was)| loaded(region) != **was) {
            return region;
        }
        assert!(Instant::now() < deadline, "nothing is loaded");
        std::hint::spin_loop();
    }
}

fn fused(driver: &mut Driver, old: u8, new: u8) -> [u16; 2] {
    let old = driver.ram().clone().alloc_with(&[old; 512]).unwrap();
    let new = driver.ram().clone().alloc_with(&[new; 512]).unwrap();
    let compare = Sqe::new(5).fuse(1).nsid(1).prp(old.iova(), 0);
    let write = Sqe::new(1).fuse(2).nsid(1).prp(new.iova(), 0);
    [compare, write].map(|sqe| driver.place(1, sqe).unwrap())
}

/// Brings the guest's device over in one message to RUNNING, whose engine is killed when the state is loaded, and when the device has run.
fn arrive(driver: &mut Driver, to: &House, ran: bool) {
    let source = driver.client();
    source.set_migration_state(state::STOP_COPY).unwrap();
    let bytes = source.migration_read(1 << 20).unwrap();
    let tail = ControllerV1::from_bytes(&bytes).unwrap().completion_queues[1].tail;
    let mut there = connect(to);
    there.set_migration_state(state::RESUMING).unwrap();
    there.migration_write(&bytes).unwrap();
    let source = driver.move_to(there).unwrap();
    let regions = regions();
    // Before the thread begins: it may be late, and the state there by then.
    let before: Vec<u32> = regions.iter().map(loaded).collect();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let region = wait_for_load(&regions, &before);
            let deadline = Instant::now() + Duration::from_millis(20);
            // Both answers are written: a second execution would find another block than the first.
            let answered = || region.cqs[1].tail_phase.load(Acquire) & 0xffff == (tail + 2) % 16;
            while ran && !answered() && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            to.kill();
        });
        driver.client().set_migration_state(state::RUNNING).unwrap();
        killer.join().unwrap();
    });
    drop(source);
}

#[test]
fn a_state_is_loaded_once_though_the_engine_is_killed_before_it_says_so() {
    let ssds = [("disk", RAM)];
    let houses = [House::start(&ssds, 2), House::start(&ssds, 2)];
    let mut driver = houses[0].connect("disk");
    driver.create_queue_pair(1, 16).unwrap();
    for journey in 0..12_u8 {
        let to = &houses[usize::from(journey + 1) % 2];
        driver.client().set_migration_state(state::STOP).unwrap();
        {
            // The ssd there has the block as it is here.
            let mut other = to.connect("disk");
            other.create_queue_pair(1, 16).unwrap();
            let block = other.ram().clone().alloc_with(&[journey; 512]).unwrap();
            other.write(1, 1, 0, 1, &block).unwrap().ok().unwrap();
        }
        let cids = fused(&mut driver, journey, journey + 1);
        driver.ring(1).unwrap();
        arrive(&mut driver, to, journey % 3 != 0);
        for cid in cids {
            let done = driver.wait(1, cid).unwrap();
            assert!(done.ok().is_ok(), "journey {journey}: {:?}", done.status);
        }
        let block = driver.ram().clone().alloc(512).unwrap();
        driver.read(1, 1, 0, 1, &block).unwrap().ok().unwrap();
        assert_eq!(block.to_vec(), [journey + 1; 512]);
    }
    drop(driver);
    houses.into_iter().for_each(House::stop);
}

#[test]
fn a_state_whose_record_cannot_be_written_changes_nothing() {
    let ssds = [("disk", FILE)];
    let houses = [House::start(&ssds, 1), House::start(&ssds, 1)];
    let mut driver = houses[0].connect("disk");
    driver.create_queue_pair(1, 16).unwrap();
    driver.client().set_migration_state(state::STOP_COPY).unwrap();
    let bytes = driver.client().migration_read(1 << 20).unwrap();
    let record = houses[1].path("disk.state");
    let block = houses[1].path("disk.state.new");
    for killed in [false, true] {
        let mut there = connect(&houses[1]);
        let before = registers(&mut there);
        // Who was here before may still have a record on its way.
        while std::fs::create_dir(&block).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let kept = std::fs::read(&record).unwrap();
        there.set_migration_state(state::RESUMING).unwrap();
        there.migration_write(&bytes).unwrap();
        let refused = there.set_migration_state(state::RUNNING);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        assert_eq!(there.migration_state().unwrap(), state::ERROR);
        assert_eq!(registers(&mut there), before, "a region that was loaded");
        assert_eq!(std::fs::read(&record).unwrap(), kept);
        std::fs::remove_dir(&block).unwrap();
        if killed {
            houses[1].kill();
        }
        assert_eq!(there.migration_state().unwrap(), state::ERROR);
        assert_eq!(registers(&mut there), before, "a region that was loaded");
        there.reset().unwrap();
        let mut other = Driver::attach(there, Options::default()).unwrap();
        other.enable().unwrap();
        other.create_queue_pair(1, 16).unwrap();
    }
    driver.client().set_migration_state(state::RUNNING).unwrap();
    drop(driver);
    houses.into_iter().for_each(House::stop);
}

/// CC, CSTS and AQA, and the admin queue's addresses.
fn registers(client: &mut Client) -> Vec<u8> {
    let mut bytes = vec![0; 0x24];
    client.region_read(0, 0x14, &mut bytes).unwrap();
    bytes
}

/// Threads of the engine.
fn private_reactors(house: &House) -> usize {
    let tasks = format!("/proc/{}/task", house.pid().unwrap().as_raw_nonzero());
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names = std::fs::read_dir(tasks).unwrap().filter_map(|task| name(task.ok()?));
    names.filter(|name| name.starts_with("private-")).count()
}

/// Its last home was a reactor of its own, which ended with it.
#[test]
fn a_device_that_stands_still_keeps_nobody_waiting_for_the_reactor_that_it_had() {
    let ssds = [("disk", FILE)];
    let house = House::start(&ssds, 2);
    let options = Options { share_ram: false, ..Options::default() };
    let mut driver = house.connect_with("disk", options);
    driver.create_queue_pair(1, 16).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[7; 4096]).unwrap();
    driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    // It has nothing to do when it is to stop.
    std::thread::sleep(Duration::from_millis(20));
    for mib in [96, 128] {
        assert_eq!(private_reactors(&house), 1);
        driver.client().set_migration_state(state::STOP).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while private_reactors(&house) > 0 {
            assert!(Instant::now() < deadline, "a reactor without an ssd goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::scope(|scope| {
            let said = scope.spawn(|| house.apply_text(house.config(&ssds, mib)));
            let deadline = Instant::now() + PATIENCE;
            while !said.is_finished() {
                assert!(Instant::now() < deadline, "the growth waits for a reactor that is gone");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(said.join().unwrap().unwrap(), "done");
        });
        driver.client().set_migration_state(state::RUNNING).unwrap();
        driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
        let identify = driver.identify(0, 1).unwrap();
        assert_eq!(u64::from_le_bytes(identify[..8].try_into().unwrap()), mib * 2048);
    }
    drop(driver);
    house.stop();
}
