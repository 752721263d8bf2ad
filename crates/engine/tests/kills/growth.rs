//! Ssds grow under their guests, whoever is killed in the middle of it; and pools come.

use super::disk;
use super::disks::{sectors, with_channel};
use super::house::House;
use super::load::Load;
use super::{FILE, RAM};
use api::control::{PoolRequest, Request, Response};
use guest::PATIENCE;
use guest::nvme::{Driver, Sqe};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const FULL: &str = "{ type = \"pool\", pool = \"p\" }";
const OTHER: &str = "{ type = \"uring\", path = \"DIR/other.img\", direct = false }";
const BLOCKS_OF_MIB: u64 = 2048;

/// Asks for the event of a changed namespace.
fn listen(driver: &mut Driver) -> u16 {
    driver.set_features(0x0b, 0x100).unwrap().ok().unwrap();
    driver.submit(0, Sqe::new(0x0c)).unwrap()
}

/// Waits for that event, and reads what has changed.
fn hear(driver: &mut Driver, cid: u16) {
    let event = driver.wait(0, cid).unwrap().ok().unwrap();
    assert_eq!(event.result, 0x0004_0002, "namespace attribute changed");
    assert_eq!(driver.log_page(4, 0, 0, 4096).unwrap()[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
}

/// Size and capacity of the one namespace, and of the ssd.
fn mib(driver: &mut Driver) -> u64 {
    let page = driver.identify(0, 1).unwrap();
    let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!((word(0), word(8)), (word(0), word(0)));
    let controller = driver.identify(1, 0).unwrap();
    assert_eq!(u64::from_le_bytes(controller[280..288].try_into().unwrap()), word(0) * 512, "TNVMCAP");
    word(0) / BLOCKS_OF_MIB
}

fn write(driver: &mut Driver, slba: u64, byte: u8) {
    let buffer = driver.ram().clone().alloc_with(&[byte; 4096]).unwrap();
    driver.write(1, 1, slba, 8, &buffer).unwrap().ok().unwrap();
}

fn read(driver: &mut Driver, slba: u64) -> Vec<u8> {
    let buffer = driver.ram().clone().alloc_with(&[0xEE; 4096]).unwrap();
    driver.read(1, 1, slba, 8, &buffer).unwrap().ok().unwrap();
    buffer.bytes(0, 4096)
}

fn grown_under_its_guest(backend: &str) {
    let ssds = [("victim", backend)];
    let house = House::start(&ssds, 2);
    let mut driver = house.connect("victim");
    (1..=3).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
    let old_end = 64 * BLOCKS_OF_MIB;
    write(&mut driver, old_end - 8, 1);
    let asked = listen(&mut driver);
    let pid = house.pid();
    assert_eq!(mib(&mut driver), 64);
    let said = house.apply_text(house.config(&ssds, 96)).unwrap();
    assert_eq!(said, "done");
    hear(&mut driver, asked);
    assert_eq!(mib(&mut driver), 96);
    let end = 96 * BLOCKS_OF_MIB;
    assert_eq!(read(&mut driver, old_end), [0; 4096]);
    write(&mut driver, end - 8, 2);
    // By queues that have not been used since.
    for qid in [2, 3] {
        let buffer = driver.ram().clone().alloc_with(&[0; 4096]).unwrap();
        driver.read(qid, 1, end - 8, 8, &buffer).unwrap().ok().unwrap();
        assert_eq!(buffer.bytes(0, 4096), [2; 4096]);
    }
    let buffer = driver.ram().clone().alloc_with(&[0; 4096]).unwrap();
    let beyond = driver.read(1, 1, end - 7, 8, &buffer).unwrap();
    assert_eq!(beyond.status.code(), (0, 0x80), "LBA Out of Range");
    let refused = house.apply_text(house.config(&ssds, 95)).unwrap_err();
    assert!(refused.contains("cannot shrink") && refused.contains("96MiB"), "{refused}");
    assert_eq!(house.pid(), pid, "one engine did all of it");
    house.kill();
    assert_eq!((read(&mut driver, old_end - 8), read(&mut driver, end - 8)), (vec![1; 4096], vec![2; 4096]));
    assert_eq!(mib(&mut driver), 96);
    drop(driver);
    house.stop();
}

#[test]
fn a_guest_hears_that_its_ssd_has_grown_and_uses_it_to_its_end_whatever_carries_it() {
    grown_under_its_guest(RAM);
    grown_under_its_guest(FILE);
    grown_under_its_guest(THIN);
    grown_under_its_guest(FULL);
    let key = "encryption = { key_command = [\"/bin/sh\", \"-c\", \"printf %0128d 1\"] }";
    grown_under_its_guest(&format!("{FILE}\n{key}"));
    grown_under_its_guest(&format!("{THIN}\n{key}"));
}

#[test]
fn an_ssd_grows_without_a_guest_and_the_next_one_finds_it_so() {
    let ssds = [("nvme", FILE), ("disk", &format!("virtio-blk on {OTHER}")[..])];
    let house = House::start(&ssds, 1);
    drop(house.connect("nvme"));
    house.apply_text(house.config(&ssds, 80)).unwrap();
    assert_eq!(mib(&mut house.connect("nvme")), 80);
    let (driver, channel) = with_channel(&house, "disk");
    assert_eq!(sectors(&driver), 80 * BLOCKS_OF_MIB);
    drop((driver, channel));
    house.stop();
}

/// Until the disk's client sees this size. It is told by the channel, perhaps more than once.
fn hear_disk(driver: &guest::vhost_user::Driver, channel: &mut UnixStream, mib: u64) {
    let mut said = [0; 12];
    while {
        channel.read_exact(&mut said).unwrap();
        assert_eq!(said, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "the configuration has changed");
        sectors(driver) != mib * BLOCKS_OF_MIB
    } {}
}

#[test]
fn a_disks_client_hears_that_it_has_grown_and_uses_it_to_its_end() {
    for backend in [RAM, OTHER, THIN, FULL] {
        let backend = format!("virtio-blk on {backend}");
        let ssds = [("disk", &backend[..])];
        let house = House::start(&ssds, 2);
        let (mut driver, mut channel) = with_channel(&house, "disk");
        assert_eq!(sectors(&driver), 64 * BLOCKS_OF_MIB);
        disk::write(&mut driver, 8, 1);
        house.apply_text(house.config(&ssds, 96)).unwrap();
        hear_disk(&driver, &mut channel, 96);
        let last = 96 * BLOCKS_OF_MIB - 8;
        disk::write(&mut driver, last, 2);
        house.kill();
        assert_eq!(
            (disk::read(&mut driver, 8), disk::read(&mut driver, last)),
            (vec![1; 4096], vec![2; 4096])
        );
        drop(driver);
        house.stop();
    }
}

#[test]
fn an_engine_killed_at_any_moment_of_a_growth_leaves_all_of_it_to_the_next() {
    let disk = format!("virtio-blk on {OTHER}");
    let ssds = [("victim", RAM), ("file", FILE), ("thin", THIN), ("full", FULL), ("disk", &disk[..])];
    let house = House::start(&ssds, 2);
    let mut load = Load::new(house.connect("victim"), 3, 64, 21);
    let mut guests: Vec<Driver> = ["file", "thin", "full"].map(|name| house.connect(name)).into();
    guests.iter_mut().for_each(|driver| driver.create_queue_pair(1, 64).unwrap());
    let (mut disk, mut channel) = with_channel(&house, "disk");
    assert_eq!(sectors(&disk), 64 * BLOCKS_OF_MIB);
    for round in 0..12_u64 {
        let to = 65 + round;
        let last = to * BLOCKS_OF_MIB - 8;
        let asked: Vec<u16> = guests.iter_mut().map(listen).collect();
        let after = Duration::from_micros(round * 500);
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| house.apply_text(house.config(&ssds, to)).unwrap());
            let begun = Instant::now();
            let mut killed = false;
            while !applied.is_finished() || !killed {
                load.run_for(Duration::from_micros(300));
                if !killed && begun.elapsed() >= after {
                    killed = true;
                    house.kill();
                }
            }
            applied.join().unwrap();
        });
        load.run_until_progress();
        for (driver, asked) in guests.iter_mut().zip(asked) {
            hear(driver, asked);
            assert_eq!(mib(driver), to, "round {round}");
            assert_eq!(read(driver, last), [0; 4096], "round {round}");
            write(driver, last, round as u8 + 1);
            let before = if round == 0 { 0 } else { round as u8 };
            assert_eq!(read(driver, last - BLOCKS_OF_MIB), [before; 4096], "round {round}");
        }
        hear_disk(&disk, &mut channel, to);
        disk::write(&mut disk, last, round as u8 + 1);
    }
    load.finish();
    drop((guests, disk));
    house.stop();
}

#[test]
fn a_growth_that_cannot_be_is_refused_before_anything_of_it_is_done() {
    let ssds = [("file", FILE), ("full", FULL)];
    let house = House::start(&ssds, 1);
    let (mut file, mut full) = (house.connect("file"), house.connect("full"));
    // There is no room for it in a pool of 256 MiB.
    let refused = house.apply_text(house.config(&ssds, 300)).unwrap_err();
    assert!(refused.contains("ssd \"full\"") && refused.ends_with("nothing has changed"), "{refused}");
    assert_eq!(std::fs::metadata(house.path("disk.img")).unwrap().len(), 64 << 20);
    assert_eq!((mib(&mut file), mib(&mut full)), (64, 64));
    house.apply_text(house.config(&ssds, 128)).unwrap();
    assert_eq!((mib(&mut file), mib(&mut full)), (128, 128));
    drop((file, full));
    house.stop();
}

fn pools(house: &House) -> Vec<String> {
    match house.ask(&Request::Pool(PoolRequest::List)) {
        Response::Pool(pools) => {
            pools.into_iter().map(|pool| format!("{}: {}", pool.name, pool.state)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pool_that_is_the_only_change_is_open_at_once_and_one_that_cannot_be_is_refused() {
    let ssds = [("victim", RAM)];
    let house = House::start(&ssds, 1);
    let pool = |path: &str| {
        let path = house.path(path);
        let pool = format!("[[pool]]\nname = \"q\"\npath = \"{}\"\nsize = \"128MiB\"\n", path.display());
        house.config(&ssds, 64).replacen("[[ssd]]", &format!("{pool}[[ssd]]"), 1)
    };
    let refused = house.apply_text(pool("missing/q.img")).unwrap_err();
    assert!(refused.contains("pool \"q\"") && refused.ends_with("nothing has changed"), "{refused}");
    let unfit = format!(
        "{}[[ssd]]\nname = \"x\"\nsocket = \"/x\"\nsize = \"1MiB\"\nbackend = {{ type = \"uring\", path = \"/\" }}\n",
        pool("q.img")
    );
    house.apply_text(unfit).unwrap_err();
    assert!(!house.path("q.img").exists() && pools(&house).is_empty(), "{:?}", pools(&house));
    house.apply_text(pool("q.img")).unwrap();
    assert_eq!(pools(&house), ["q: serving"]);
    house.kill();
    let deadline = Instant::now() + PATIENCE;
    while pools_of_the_next(&house).is_none() {
        assert!(Instant::now() < deadline, "no engine answers");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(pools(&house), ["q: serving"]);
    house.stop();
}

/// `None`: it does not answer yet.
fn pools_of_the_next(house: &House) -> Option<()> {
    matches!(house.ask(&Request::Pool(PoolRequest::List)), Response::Pool(_)).then_some(())
}
