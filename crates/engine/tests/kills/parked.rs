//! Handovers while writes wait for space in their pool.

use super::disk;
use super::disks::connect_to;
use super::house::House;
use api::control::{PoolRequest, PoolStatus, Request, Response};
use guest::PATIENCE;
use guest::nvme::{Driver, Sqe};
use guest::ram::Buffer;
use guest::vhost_user::Options;
use guest::vhost_user::request;
use std::time::Instant;

const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const FULL: &str = "{ type = \"pool\", pool = \"p\" }";
const KEY: &str = "encryption = { key_command = [\"/bin/sh\", \"-c\", \"printf %0128d 1\"] }";
/// An extent in blocks of 512 bytes.
const EXTENT: u64 = 2048;

fn pool(house: &House) -> PoolStatus {
    match house.ask(&Request::Pool(PoolRequest::List)) {
        Response::Pool(mut pools) => pools.pop().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Until writes to so many extents wait for space.
fn until_waiting(house: &House, extents: u64) {
    let deadline = Instant::now() + PATIENCE;
    while pool(house).waiting != extents {
        assert!(Instant::now() < deadline, "{:?}", pool(house));
    }
}

/// An ssd's guest, and its writes that are not answered.
struct Waiting {
    driver: Driver,
    writes: Vec<(u16, u16, u64, Buffer)>,
}

impl Waiting {
    fn new(house: &House, name: &str, pairs: u16) -> Self {
        let mut driver = house.connect(name);
        (1..=pairs).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
        Self { driver, writes: Vec::new() }
    }

    /// Writes 8 KiB of a byte.
    fn write(&mut self, qid: u16, slba: u64, byte: u8) {
        let buffer = self.driver.ram().clone().alloc_with(&[byte; 8192]).unwrap();
        let (prp1, prp2) = (buffer.iova(), buffer.iova() + 4096);
        let sqe = Sqe::new(1).nsid(1).prp(prp1, prp2).qword(10, slba).cdw12(15);
        let cid = self.driver.submit(qid, sqe).unwrap();
        self.writes.push((qid, cid, slba, buffer));
    }

    fn read(&mut self, slba: u64) -> Vec<u8> {
        let buffer = self.driver.ram().clone().alloc_with(&[0xEE; 8192]).unwrap();
        self.driver.read(1, 1, slba, 16, &buffer).unwrap().ok().unwrap();
        buffer.bytes(0, 8192)
    }

    fn nothing_is_answered(&mut self) {
        for (qid, ..) in &self.writes {
            assert!(self.driver.poll(*qid).unwrap().is_none(), "answered without space");
        }
    }

    /// Every write is answered, once, and is there.
    fn finish(mut self) {
        for (qid, cid, slba, buffer) in std::mem::take(&mut self.writes) {
            self.driver.wait(qid, cid).unwrap().ok().unwrap();
            assert_eq!(self.read(slba), buffer.bytes(0, 8192), "at {slba}");
            assert!(self.driver.poll(qid).unwrap().is_none(), "answered twice");
        }
    }
}

#[test]
fn a_handover_waits_for_no_write_that_waits_for_space_and_the_next_engine_does_them_once() {
    let (sealed, disk) = (format!("{THIN}\n{KEY}"), format!("virtio-blk on {THIN}"));
    let big = [("a", FULL), ("b", FULL), ("c", FULL), ("filler", THIN)];
    let small = [("plain", THIN), ("sealed", &sealed[..]), ("disk", &disk[..])];
    let house = House::start(&[&big[..], &small[..]].concat(), 2);
    let (mut filler, mut plain, mut sealed) = (
        Waiting::new(&house, "filler", 1),
        Waiting::new(&house, "plain", 3),
        Waiting::new(&house, "sealed", 1),
    );
    // With a region of its own, and without.
    let options = Options { inflight: false, ..Options::default() };
    let mut disk = connect_to(&house, "disk", options);
    // The first half of a write that waits for the other.
    plain.write(1, EXTENT - 16, 1);
    let (_, cid, ..) = plain.writes.pop().unwrap();
    plain.driver.wait(1, cid).unwrap().ok().unwrap();
    let mut extents = 0..64;
    while pool(&house).free > 0 {
        let buffer = filler.driver.ram().clone().alloc_with(&[9; 4096]).unwrap();
        let slba = extents.next().unwrap() * EXTENT;
        filler.driver.write(1, 1, slba, 8, &buffer).unwrap().ok().unwrap();
    }
    plain.write(1, EXTENT - 8, 2);
    // Of queues on both reactors.
    (2..=3).for_each(|qid| plain.write(qid, u64::from(qid) * 10 * EXTENT, qid as u8 + 1));
    sealed.write(1, 5 * EXTENT, 7);
    let (data, token) = disk::place(&mut disk, request::OUT, 3 * EXTENT, vec![8; 4096], false);
    disk.queues[0].publish().unwrap();
    until_waiting(&house, 5);
    for handover in 1..=2 {
        let upgrade = Request::Upgrade { binary: None, keeper: false, no_wait: true };
        let answer = house.ask(&upgrade);
        assert!(matches!(answer, Response::Done(_)), "{answer:?}");
        let restarts = house.status().restarts;
        assert_eq!(restarts.len(), handover);
        for restart in &restarts {
            assert!(restart.planned && restart.replayed == 5, "{restart:?}");
        }
        until_waiting(&house, 5);
        plain.nothing_is_answered();
        sealed.nothing_is_answered();
        assert!(disk.queues[0].ring.take().is_none());
    }
    filler.driver.deallocate(1, 1, &[(0, 30 * EXTENT as u32)]).unwrap().ok().unwrap();
    disk::wait(&mut disk);
    assert_eq!(data.bytes(4096 + 64, 1), [request::OK], "{token}");
    assert_eq!(disk::read(&mut disk, 3 * EXTENT), [8; 4096]);
    plain.finish();
    sealed.finish();
    drop((filler, disk));
    house.stop();
}
