//! A migration management controller (NVMe Base 2.1, 8.1.12) against a real daemon: it suspends, saves, loads and resumes the controllers of other
//! clients, under load, and whoever's engine is killed.

use crate::FILE;
use crate::house::House;
use crate::load::Load;
use crate::travel::{connect, copy_disk};
use guest::nvme::{Completion, Driver, Options, Sqe};
use guest::ram::Buffer;
use guest::vfio_user::{Client, state};
use guest::{Error, PATIENCE};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

pub(crate) const MANAGEMENT: &str = "[management]\nname = \"m\"\nsocket = \"DIR/m.sock\"\n";
/// By which the ssd "disk" is known to the management controller.
pub(crate) const DISK: u32 = 3;
const PIECE: usize = 512;
pub(crate) const INVALID_CONTROLLER: (u8, u8) = (1, 0x1f);
const NOT_SUSPENDED: (u8, u8) = (1, 0x3a);
const SEQUENCE: (u8, u8) = (0, 0x0c);
pub(crate) const INVALID_FIELD: (u8, u8) = (0, 0x02);
const INTERRUPTED: (u8, u8) = (0, 0x21);
const ONLY: u32 = 0b11;

pub(crate) fn house() -> House {
    let disk = format!("{FILE}\ncontroller_id = {DISK}");
    House::start_with(&[("disk", &disk)], 2, MANAGEMENT)
}

/// Whoever manages.
pub(crate) struct Manager(pub(crate) Driver);

impl Manager {
    pub(crate) fn connect(house: &House) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match Client::connect(house.socket("m")) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let options = Options { ram_bytes: 8 << 20, ..Options::default() };
        let mut driver = Driver::attach(client, options).unwrap();
        driver.enable().unwrap();
        Self(driver)
    }

    fn send(&mut self, cdw10: u32, cdw11: u32) -> Completion {
        self.0.admin(Sqe::new(0x41).cdw10(cdw10).cdw11(cdw11)).unwrap()
    }

    pub(crate) fn suspend(&mut self) -> Completion {
        self.send(0, 1 << 16 | DISK)
    }

    pub(crate) fn resume(&mut self) -> Completion {
        self.send(1, DISK)
    }

    /// A piece of the state, and CSUP.
    fn piece(&mut self, offset: usize) -> (Vec<u8>, bool) {
        let buffer = self.0.ram().clone().alloc(PIECE).unwrap();
        let sqe = Sqe::new(0x42).cdw10(1 << 16).cdw11(1 << 16 | DISK).cdw12(offset as u32);
        let sqe = sqe.cdw15(PIECE as u32 / 4 - 1).prp(buffer.iova(), 0);
        let done = self.0.admin(sqe).unwrap().ok().unwrap();
        (buffer.bytes(0, PIECE), done.result == 1)
    }

    fn get(&mut self) -> Vec<u8> {
        let mut bytes = self.piece(0).0;
        let dwords = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().unwrap());
        let len = 48 + 4 * (dwords(16) + dwords(32)) as usize;
        while bytes.len() < len {
            let (piece, suspended) = self.piece(bytes.len());
            assert!(suspended);
            bytes.extend(piece);
        }
        bytes.truncate(len);
        bytes
    }

    fn set_piece(&mut self, seqind: u32, offset: usize, bytes: &[u8]) -> Completion {
        let sqe = Sqe::new(0x41).cdw10(seqind << 16 | 2).cdw11(1 << 24 | 1 << 16 | DISK).cdw12(offset as u32);
        self.0.admin_write(sqe.cdw15(bytes.len() as u32 / 4), bytes).unwrap()
    }

    /// In pieces, with something done before the last but one.
    fn set(&mut self, bytes: &[u8], between: impl Fn()) -> Completion {
        let count = bytes.chunks(PIECE).count();
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            if at + 1 == count {
                between();
            }
            let done = self.set_piece(u32::from(at == 0), at * PIECE, piece);
            if done.status.code() != (0, 0) {
                return done;
            }
        }
        self.set_piece(0b10, bytes.len(), &[])
    }
}

#[track_caller]
pub(crate) fn ok(done: Completion) {
    assert_eq!(done.status.code(), (0, 0));
}

pub(crate) fn small(house: &House) -> Driver {
    let options = Options { ram_bytes: 8 << 20, ..Options::default() };
    house.connect_with("disk", options)
}

#[test]
fn a_controller_is_suspended_under_load_and_goes_on() {
    let house = house();
    let mut manager = Manager::connect(&house);
    let mut load = Load::new(small(&house), 3, 64, 5);
    for round in 0..20 {
        load.run_for(Duration::from_millis(5));
        assert!(!manager.piece(0).1, "it runs");
        ok(manager.suspend());
        ok(manager.suspend());
        let before = manager.get();
        load.run_for(Duration::from_millis(2));
        let after = manager.get();
        assert_eq!(before[48..60], after[48..60], "the same queues");
        if round % 3 == 0 {
            // Whoever manages may come and go.
            manager = Manager::connect_after(manager, &house);
            assert!(manager.piece(0).1, "suspended still");
        }
        if round % 4 == 0 {
            house.kill();
            assert!(manager.piece(0).1, "suspended whatever process serves it");
        }
        ok(manager.resume());
        load.run_until_progress();
    }
    println!("{} operations", load.finish());
    house.stop();
}

impl Manager {
    pub(crate) fn connect_after(before: Self, house: &House) -> Self {
        drop(before);
        Self::connect(house)
    }
}

#[test]
fn nothing_of_a_suspended_controller_moves() {
    let house = house();
    let mut manager = Manager::connect(&house);
    let mut driver = small(&house);
    driver.create_queue_pair(1, 64).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[7; 4096]).unwrap();
    ok(manager.suspend());
    let cid = driver.place(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 8).cdw12(7)).unwrap();
    driver.ring(1).unwrap();
    for kill in [false, true] {
        if kill {
            house.kill();
            assert!(manager.piece(0).1);
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(driver.poll(1).unwrap().is_none(), "nothing is fetched");
        assert_eq!(driver.read_u32(0x1c).unwrap() & 1, 1, "its properties are there");
    }
    ok(manager.resume());
    driver.wait(1, cid).unwrap().ok().unwrap();
    house.stop();
}

/// Where a journey is, and whose engine is killed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    Suspended,
    Saved,
    Loading,
    Loaded,
    Resumed,
}

fn travel(driver: &mut Driver, from: &House, to: &House, kill: Option<Kill>) {
    let (mut source, mut destination) = (Manager::connect(from), Manager::connect(to));
    ok(source.suspend());
    if kill == Some(Kill::Suspended) {
        from.kill();
    }
    let bytes = source.get();
    if kill == Some(Kill::Saved) {
        from.kill();
        assert_eq!(source.get().len(), bytes.len(), "it stands still for its successor, too");
    }
    copy_disk(from, to);
    let left = driver.move_to(connect(to)).unwrap();
    let killed = std::cell::Cell::new(false);
    let done = destination.set(&bytes, || {
        if kill == Some(Kill::Loading) {
            killed.set(to.kill().is_some());
        }
    });
    if killed.get() {
        assert_eq!(done.status.code(), SEQUENCE, "what came before is gone with the engine that had it");
        ok(destination.set(&bytes, || ()));
    } else {
        ok(done);
    }
    if kill == Some(Kill::Loaded) {
        to.kill();
        assert!(destination.piece(0).1, "suspended until it is resumed");
    }
    ok(destination.resume());
    if kill == Some(Kill::Resumed) {
        to.kill();
    }
    assert_eq!(destination.resume().status.code(), NOT_SUSPENDED);
    // Its client leaves the source, which is suspended until then: nobody resumes it.
    drop(left);
}

#[test]
fn a_guest_goes_from_one_daemon_to_another_by_their_management_controllers_whoever_is_killed() {
    let houses = [house(), house()];
    let mut load = Load::new(small(&houses[0]), 3, 64, 5);
    let kills = [Kill::Suspended, Kill::Saved, Kill::Loading, Kill::Loaded, Kill::Resumed];
    let points = [None, None].into_iter().chain(kills.map(Some)).chain([None]);
    for (round, point) in points.enumerate() {
        load.run_for(Duration::from_millis(20));
        println!("{point:?}");
        let (here, there) = (&houses[round % 2], &houses[1 - round % 2]);
        travel(load.driver(), here, there, point);
        load.run_until_progress();
    }
    println!("{} operations", load.finish());
    houses.into_iter().for_each(House::stop);
}

#[test]
fn what_cannot_be_done_has_its_status() {
    let more = format!("{MANAGEMENT}\n");
    let ssds = [
        ("disk", format!("{FILE}\ncontroller_id = {DISK}")),
        ("other", "{ type = \"ram\" }\ncontroller_id = 4".to_owned()),
    ];
    let ssds: Vec<(&str, &str)> = ssds.iter().map(|(name, backend)| (*name, backend.as_str())).collect();
    let house = House::start_with(&ssds, 1, &more);
    let mut manager = Manager::connect(&house);
    // Nobody has it: there is no device.
    assert_eq!(manager.suspend().status.code(), INVALID_CONTROLLER);
    let mut driver = small(&house);
    driver.create_queue_pair(1, 64).unwrap();
    assert_eq!(manager.resume().status.code(), NOT_SUSPENDED);
    for cntlid in [0, 1, 0xffff] {
        assert_eq!(manager.send(0, 1 << 16 | cntlid).status.code(), INVALID_CONTROLLER);
    }
    // Who is known.
    let list = manager.0.identify(0x13, 0).unwrap();
    assert_eq!(list[..8], [3, 0, 0, 0, 3, 0, 4, 0]);
    ok(manager.suspend());
    let bytes = manager.get();
    // With I/O queues; at work; of another ssd.
    assert_eq!(manager.set(&bytes, || ()).status.code(), INVALID_FIELD);
    ok(manager.resume());
    assert_eq!(manager.set_piece(ONLY, 0, &bytes).status.code(), INVALID_CONTROLLER);
    let mut other = house.connect("other");
    let cdw11 = 1 << 24 | 1 << 16 | 4;
    let set = Sqe::new(0x41).cdw10(ONLY << 16 | 2).cdw11(cdw11).cdw15(bytes.len() as u32 / 4);
    assert_eq!(manager.0.admin_write(set, &bytes).unwrap().status.code(), INVALID_CONTROLLER);
    other.disable().unwrap();
    assert_eq!(manager.0.admin_write(set, &bytes).unwrap().status.code(), INVALID_FIELD);
    other.enable().unwrap();
    // Its client stopped it; and it is resumed by whom it was suspended.
    driver.client().set_migration_state(state::STOP).unwrap();
    assert_eq!(manager.suspend().status.code(), INTERRUPTED);
    driver.client().set_migration_state(state::RUNNING).unwrap();
    house.tell("halt", "disk", b"").unwrap();
    assert_eq!(manager.suspend().status.code(), INTERRUPTED);
    assert_eq!(manager.resume().status.code(), NOT_SUSPENDED);
    house.tell("run", "disk", b"").unwrap();
    ok(manager.suspend());
    for order in ["halt", "save", "run"] {
        let refused = house.tell(order, "disk", b"").unwrap_err();
        assert!(refused.contains("has suspended the device"), "{refused}");
    }
    let refused = driver.client().set_migration_state(state::STOP);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    ok(manager.resume());
    // Nobody manages by an ssd's own controller.
    assert_eq!(driver.admin(Sqe::new(0x41).cdw11(1 << 16 | DISK)).unwrap().status.code(), (0, 1));
    drop((driver, other));
    house.stop();
}

/// 8.1.12: a controller level reset of the controller ends its suspension.
#[test]
fn a_client_that_resets_its_suspended_controller_has_it_back_empty() {
    let house = house();
    let mut manager = Manager::connect(&house);
    let mut driver = small(&house);
    for function in [false, true] {
        driver.create_queue_pair(1, 64).unwrap();
        let buffer = driver.ram().clone().alloc_with(&[9; 4096]).unwrap();
        ok(manager.suspend());
        driver.place(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 8).cdw12(7)).unwrap();
        driver.ring(1).unwrap();
        // Who waited for it to go on would be refused.
        if function {
            driver.client().reset().unwrap();
            driver
                .client()
                .region_write(guest::vfio_user::region::CONFIG, 4, &0x0406_u16.to_le_bytes())
                .unwrap();
        } else {
            driver.disable().unwrap();
        }
        assert_eq!(manager.resume().status.code(), NOT_SUSPENDED);
        driver.enable().unwrap();
        driver.create_queue_pair(1, 64).unwrap();
        driver.read(1, 1, 8, 8, &buffer).unwrap().ok().unwrap();
        assert!(buffer.bytes(0, 4096).iter().all(|byte| *byte == 0), "it was not written");
        driver.disable().unwrap();
        driver.enable().unwrap();
    }
    drop(driver);
    house.stop();
}

const SLOTS: usize = 256;

/// A host that keeps a copy of the ssd up to date by its user data migration queue.
struct Follower {
    ring: Buffer,
    head: usize,
    phase: bool,
    copy: Vec<u8>,
    /// How often all of the namespace was said to have changed.
    lost: usize,
}

impl Follower {
    fn start(manager: &mut Manager, house: &House) -> Self {
        let ring = manager.0.ram().clone().alloc_with(&[0; SLOTS * 32]).unwrap();
        let create = Sqe::new(0x45).cdw11(DISK << 16 | 1).cdw12(SLOTS as u32 * 8).prp(ring.iova(), 0);
        assert_eq!(manager.0.admin(create).unwrap().ok().unwrap().result, 1);
        ok(manager.0.admin(Sqe::new(0x3d).cdw10(1 << 16).cdw11(1)).unwrap());
        let copy = std::fs::read(house.path("disk.img")).unwrap();
        Self { ring, head: 0, phase: true, copy, lost: 0 }
    }

    /// Brings the copy up to date; the last entry's place in its log, if there was one.
    fn follow(&mut self, manager: &mut Manager, house: &House) -> Option<u8> {
        let disk = std::fs::File::open(house.path("disk.img")).unwrap();
        let mut last = None;
        loop {
            let entry = self.ring.bytes(self.head * 32, 32);
            if (entry[31] & 1 == 1) != self.phase {
                break;
            }
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            let (start, len) = match entry[31] >> 6 {
                0 => (word(8) as usize * 512, (word(4) as usize + 1) * 512),
                1 => (0, self.copy.len()),
                _ => (0, 0),
            };
            self.lost += usize::from(entry[31] >> 6 == 1);
            disk.read_exact_at(&mut self.copy[start..start + len], start as u64).unwrap();
            last = Some(entry[31] >> 1 & 7);
            self.head += 1;
            if self.head == SLOTS {
                (self.head, self.phase) = (0, !self.phase);
            }
        }
        let set = Sqe::new(0x09).cdw10(0x21).cdw11(1).cdw12(self.head as u32);
        ok(manager.0.admin(set).unwrap());
        last
    }
}

/// 8.1.12.1: the copy of a host that follows the log is the ssd when the controller is suspended, whoever is killed on the way.
#[test]
fn a_copy_that_follows_the_log_of_changes_is_the_ssd_when_its_controller_is_suspended() {
    let house = house();
    let mut manager = Manager::connect(&house);
    let mut load = Load::new(small(&house), 3, 64, 7);
    load.run_for(Duration::from_millis(50));
    let mut follower = Follower::start(&mut manager, &house);
    for round in 0..6 {
        for _ in 0..20 {
            load.run_for(Duration::from_millis(5));
            follower.follow(&mut manager, &house);
        }
        let kills = round % 3 == 1;
        if kills {
            house.kill();
            load.run_for(Duration::from_millis(20));
        }
        ok(manager.suspend());
        if round % 3 == 2 {
            house.kill();
        }
        let deadline = Instant::now() + PATIENCE;
        while follower.follow(&mut manager, &house) != Some(3) {
            assert!(Instant::now() < deadline, "no last entry");
            std::thread::sleep(Duration::from_millis(1));
        }
        let disk = std::fs::read(house.path("disk.img")).unwrap();
        let differs = follower.copy.iter().zip(&disk).position(|(ours, theirs)| ours != theirs);
        assert!(differs.is_none() && follower.copy.len() == disk.len(), "byte {differs:?} in round {round}");
        assert!(!kills || follower.lost > 0, "an engine that was killed knows nothing of before");
        ok(manager.resume());
        load.run_until_progress();
    }
    ok(manager.0.admin(Sqe::new(0x3d).cdw11(1)).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while follower.follow(&mut manager, &house) != Some(2) {
        assert!(Instant::now() < deadline, "no last entry");
    }
    assert!(follower.lost < 8, "changes are said by blocks, but after a kill: {}", follower.lost);
    println!("{} operations", load.finish());
    house.stop();
}
