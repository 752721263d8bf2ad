//! What is counted: each I/O once, in a page that goes on over engines.

use crate::disk::{self, transfer};
use crate::house::House;
use crate::load::Load;
use crate::{FILE, RAM};
use ::metrics::{Op, Part, Snapshot};
use guest::nvme::{Driver, Sqe};
use guest::vhost_user::{self, request};
use std::fs::File;
use std::time::Duration;

/// The page of an ssd, as `godwit` opens it.
fn page(house: &House, name: &str) -> File {
    let status = house.status();
    let ssd = status.ssds.iter().find(|ssd| ssd.name == name).unwrap();
    File::open(ssd.metrics.as_ref().unwrap()).unwrap()
}

fn counts(page: &File, op: Op) -> (u64, u64, u64) {
    let snapshot = Snapshot::read(page).unwrap();
    let counts = snapshot.of(op);
    // Each is in the queue once, and at the drive once.
    assert_eq!(counts.time(Part::Queue).total(), counts.time(Part::Drive).total(), "{op:?}");
    (counts.ios(), counts.bytes, counts.errors)
}

fn some_io(driver: &mut Driver) {
    let buffer = driver.ram().clone().alloc(16384).unwrap();
    for at in 0..5 {
        driver.write(1, 1, at * 8, 8, &buffer).unwrap().ok().unwrap();
    }
    for at in 0..3 {
        driver.read(1, 1, at * 8, 32, &buffer).unwrap().ok().unwrap();
    }
    driver.flush(1, 1).unwrap().ok().unwrap();
}

#[test]
fn each_io_of_a_controller_is_counted_once_with_its_kind_and_size() {
    let house = House::start(&[("ram", RAM), ("file", FILE)], 2);
    for name in ["ram", "file"] {
        let mut driver = house.connect(name);
        driver.create_queue_pair(1, 16).unwrap();
        some_io(&mut driver);
        let page = page(&house, name);
        assert_eq!(counts(&page, Op::Read), (3, 3 * 16384, 0), "{name}");
        assert_eq!(counts(&page, Op::Write), (5, 5 * 4096, 0), "{name}");
        assert_eq!(counts(&page, Op::Other), (1, 0, 0), "{name}");
        // What is refused before the drive is asked is no I/O.
        let buffer = driver.ram().clone().alloc(4096).unwrap();
        assert!(driver.read(1, 1, 1 << 40, 8, &buffer).unwrap().ok().is_err());
        assert_eq!(counts(&page, Op::Read).0, 3, "{name}");
        let facts = Snapshot::read(&page).unwrap().facts;
        assert!(facts.namespaces && facts.device.ends_with(if name == "ram" { "ram" } else { "/disk.img" }));
        assert_eq!(facts.serial, api::identity::serial_of_name(name));
    }
    house.stop();
}

/// Asked for at once, with ten I/Os a second and a burst of one, they wait for their turns; the wait is not the queue's.
#[test]
fn what_a_limit_holds_back_is_told_apart_from_the_queue() {
    let limits = "limits = { iops = 10, iops_burst = 1 }";
    let house = House::start(&[("free", RAM), ("held", &format!("{RAM}\n{limits}"))], 1);
    for name in ["free", "held"] {
        let mut driver = house.connect(name);
        driver.create_queue_pair(1, 16).unwrap();
        // A busy machine lets some find their share there, but not all: it would have to sleep for the tenth of a second before each.
        let buffer = driver.ram().clone().alloc(4096).unwrap();
        let read = Sqe::new(2).nsid(1).prp(buffer.iova(), 0).cdw12(7);
        let reads: Vec<u16> = (0..9).map(|_| driver.place(1, read).unwrap()).collect();
        driver.ring(1).unwrap();
        for cid in reads {
            driver.wait(1, cid).unwrap().ok().unwrap();
        }
        let all = Snapshot::read(&page(&house, name)).unwrap().all();
        let longest_ns = all.time(Part::Throttle).quantile_ns(1.0).unwrap();
        assert!(
            if name == "free" { longest_ns == 0 } else { longest_ns > 10_000_000 },
            "{name}: {longest_ns} ns"
        );
    }
    house.stop();
}

#[test]
fn each_io_of_a_disk_is_counted_once_and_takes_time_at_its_drive() {
    let house = House::start(&[("disk", &format!("virtio-blk on {}", disk::FILE))], 1);
    let mut driver =
        vhost_user::Driver::connect(house.socket("disk"), vhost_user::Options::default()).unwrap();
    for sector in [0, 8, 16] {
        disk::write(&mut driver, sector, 7);
    }
    assert_eq!(disk::read(&mut driver, 8), [7; 4096]);
    let segment = request::segment(0, 8, 0).to_vec();
    assert_eq!(transfer(&mut driver, request::WRITE_ZEROES, 0, segment, false).1, request::OK);
    let page = page(&house, "disk");
    assert_eq!(counts(&page, Op::Write), (3, 3 * 4096, 0));
    assert_eq!(counts(&page, Op::Read), (1, 4096, 0));
    assert_eq!(counts(&page, Op::Other), (1, 4096, 0));
    let slowest = Snapshot::read(&page).unwrap().of(Op::Write).time(Part::Drive).quantile_ns(1.0).unwrap();
    assert!((100..10_000_000_000).contains(&slowest), "{slowest} ns for a write to a file");
    house.stop();
}

#[test]
fn no_counter_goes_back_when_engines_are_killed() {
    let house = House::start(&[("victim", FILE)], 2);
    let mut load = Load::new(house.connect("victim"), 2, 32, 11);
    load.run_for(Duration::from_millis(50));
    // Opened once, and good for all engines to come.
    let page = page(&house, "victim");
    let mut last = Snapshot::read(&page).unwrap();
    for _ in 0..4 {
        house.kill();
        load.run_until_progress();
        load.run_for(Duration::from_millis(20));
        let now = Snapshot::read(&page).unwrap();
        for (op, part) in Op::ALL.iter().flat_map(|op| Part::ALL.map(|part| (*op, part))) {
            let (now, last) = (now.of(op), last.of(op));
            assert!(now.bytes >= last.bytes && now.errors == 0);
            let (now, last) = (now.time(part), last.time(part));
            assert!(now.counts().iter().zip(last.counts()).all(|(now, last)| now >= last), "{op:?} {part:?}");
        }
        assert!(now.all().ios() > last.all().ios(), "the next engine goes on counting");
        last = now;
    }
    let operations = load.finish();
    let ios = Snapshot::read(&page).unwrap().all().ios();
    assert!(ios >= operations, "{ios} of {operations}");
    house.stop();
}
