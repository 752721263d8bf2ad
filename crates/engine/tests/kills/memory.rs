//! Memory of a guest that a management controller tracks (NVMe Base 2.1, 5.1.26 and 5.1.27.1.2), against a real daemon: who copies the guest by its reports
//! has every byte, whoever is killed in between.

use crate::house::House;
use crate::load::Load;
use crate::management::{DISK, INVALID_CONTROLLER, INVALID_FIELD, Manager, house, ok, small};
use guest::nvme::{Completion, Sqe};
use guest::ram::Ram;
use guest::{Error, PATIENCE};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const BUSY: u32 = 16;
const SUSPENDED: (u8, u8) = (1, 0x39);
const NO_RESOURCES: (u8, u8) = (1, 0x38);
/// Few, so that there is more to report.
const ROOM: usize = 48;

impl Manager {
    fn track_memory(&mut self, granularity: u8, ranges: &[(u64, usize)]) -> Completion {
        let mut data = vec![0, 0, 0, granularity];
        data.extend((ranges.len() as u32).to_le_bytes());
        for (iova, len) in ranges {
            data.extend(iova.to_le_bytes());
            data.extend(((len / PAGE) as u32 >> granularity).to_le_bytes());
        }
        self.0.admin_write(Sqe::new(0x3d).cdw10(1 << 16 | 1).cdw11(DISK), &data).unwrap()
    }

    fn end_memory(&mut self) -> Completion {
        self.0.admin(Sqe::new(0x3d).cdw10(1).cdw11(DISK)).unwrap()
    }

    fn receive(&mut self) -> Result<Told, (u8, u8)> {
        let len = 16 + 16 * ROOM;
        let buffer = self.0.ram().clone().alloc(len).unwrap();
        let sqe = Sqe::new(0x3e).cdw11(DISK).cdw12(len as u32 / 4 - 1).prp(buffer.iova(), 0);
        let done = self.0.admin(sqe).unwrap();
        if done.status.code() != (0, 0) {
            return Err(done.status.code());
        }
        let bytes = buffer.bytes(0, len);
        let count = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        assert_eq!((bytes[0], &bytes[2..4]), (0, &[DISK as u8, 0][..]));
        let grain = PAGE << bytes[8];
        let run = |bytes: &[u8]| {
            let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize * grain;
            (u64::from_le_bytes(bytes[..8].try_into().unwrap()), len)
        };
        let runs = bytes[16..].chunks(16).take(count).map(run).collect();
        Ok(Told { more: bytes[1] & 1 == 1, suspended: bytes[1] & 2 == 2, runs })
    }
}

#[derive(Debug)]
struct Told {
    more: bool,
    suspended: bool,
    runs: Vec<(u64, usize)>,
}

fn bytes_of(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; ram.len()];
    ram.mapping().read(0, &mut bytes);
    bytes
}

/// What an operator has of the guest's memory.
struct Copy {
    bytes: Vec<u8>,
    ram: Arc<Ram>,
    pages: usize,
}

impl Copy {
    fn begin(load: &mut Load) -> Self {
        let ram = load.driver().ram().clone();
        Self { bytes: bytes_of(&ram), ram, pages: 0 }
    }

    fn take(&mut self, offset: usize, len: usize) {
        self.ram.mapping().read(offset, &mut self.bytes[offset..offset + len]);
    }

    /// What the processors have written, and what one report says. Whether it is all, of a controller that is suspended.
    fn pass(&mut self, manager: &mut Manager, load: &mut Load) -> bool {
        let written = load.take_written();
        let told = manager.receive().unwrap();
        assert!(!told.more || !told.runs.is_empty());
        written.into_iter().for_each(|(offset, len)| self.take(offset, len));
        for (iova, len) in told.runs {
            self.take((iova - self.ram.iova()) as usize, len);
            self.pages += len / PAGE;
        }
        told.suspended && !told.more
    }

    fn check(&self, round: usize) {
        let now = bytes_of(&self.ram);
        let differ = self.bytes.chunks(PAGE).zip(now.chunks(PAGE)).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differ, None, "a page that was not copied, in round {round}");
    }
}

fn killed_after(house: &House, micros: u64, ask: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_micros(micros));
            house.kill();
        });
        ask();
    });
}

/// 8.1.12.1: a copy of the guest's memory by Track Receive is that memory when the controller is suspended and has no more to report.
#[test]
fn a_guest_whose_memory_is_copied_by_track_receive_misses_no_byte_whoever_is_killed_on_the_way() {
    let house = house();
    let mut manager = Manager::connect(&house);
    let mut load = Load::new(small(&house), 3, 96, 33);
    load.run_for(Duration::from_millis(50));
    for round in 0..16 {
        let (iova, len) = (load.driver().ram().iova(), load.driver().ram().len());
        // In halves, the other way round; some rounds at a coarser grain.
        let ranges = [(iova + len as u64 / 2, len / 2), (iova, len / 2)];
        ok(manager.track_memory(if round % 4 == 3 { 2 } else { 0 }, &ranges));
        let mut copy = Copy::begin(&mut load);
        for pass in 0..6 {
            load.run_for(Duration::from_millis(3));
            let at = u64::try_from(round / 5).unwrap() * 150;
            match (round % 5, pass) {
                (1, 3) => _ = house.kill(),
                (2, 3) => killed_after(&house, at, || _ = copy.pass(&mut manager, &mut load)),
                _ => {}
            }
            copy.pass(&mut manager, &mut load);
            if (round % 5, pass) == (3, 3) {
                house.kill();
            }
        }
        load.run_for(Duration::from_millis(2));
        ok(manager.suspend());
        if round % 5 == 4 {
            house.kill();
        }
        if round % 5 == 2 {
            killed_after(&house, 300, || _ = copy.pass(&mut manager, &mut load));
        }
        while !copy.pass(&mut manager, &mut load) {}
        copy.check(round);
        assert!(copy.pages > 0, "it has written nothing");
        assert_eq!(manager.receive().unwrap().runs, [], "nothing more comes");
        assert_eq!(manager.end_memory().status.code(), SUSPENDED);
        assert_eq!(manager.track_memory(0, &ranges).status.code(), SUSPENDED);
        ok(manager.resume());
        load.run_until_progress();
        ok(manager.end_memory());
        assert_eq!(manager.receive().unwrap_err(), INVALID_CONTROLLER);
    }
    println!("{} operations", load.finish());
    house.stop();
}

/// One log at a time: a client's own, that of whoever moves the guest, and this.
#[test]
fn memory_is_tracked_for_one_at_a_time_and_only_memory() {
    let house = house();
    let mut manager = Manager::connect(&house);
    assert_eq!(manager.receive().unwrap_err(), INVALID_CONTROLLER);
    let mut driver = small(&house);
    let (iova, len) = (driver.ram().iova(), driver.ram().len());
    let whole = [(iova, len)];
    for ranges in [&[(iova, len + PAGE)][..], &[(iova, PAGE), (1 << 45, PAGE)]] {
        assert_eq!(manager.track_memory(0, ranges).status.code(), INVALID_FIELD);
    }
    let many = vec![(iova, PAGE); 256];
    let refused = manager.track_memory(0, &many);
    assert_eq!((refused.status.code(), refused.result), (NO_RESOURCES, 0));
    ok(manager.track_memory(0, &many[..255]));
    ok(manager.end_memory());

    driver.client().start_dma_logging(PAGE as u64, &[(iova, len as u64)]).unwrap();
    assert_eq!(manager.track_memory(0, &whole).status.code(), NO_RESOURCES);
    driver.client().stop_dma_logging().unwrap();
    house.tell("log", "disk", b"").unwrap();
    assert_eq!(manager.track_memory(0, &whole).status.code(), NO_RESOURCES);
    assert_eq!(manager.receive().unwrap_err(), INVALID_CONTROLLER);
    ok(manager.end_memory());
    house.tell("end", "disk", b"").unwrap();

    let refused_log = |driver: &mut guest::nvme::Driver| match driver
        .client()
        .start_dma_logging(PAGE as u64, &[(iova, len as u64)])
    {
        Err(Error::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    };
    ok(manager.track_memory(0, &whole));
    assert_eq!(manager.track_memory(0, &whole).status.code(), INVALID_CONTROLLER);
    for kill in [false, true] {
        if kill {
            house.kill();
        }
        assert_eq!(refused_log(&mut driver), BUSY);
        let why = loop {
            match house.tell("log", "disk", b"").unwrap_err() {
                why if why == "killed" => {}
                why => break why,
            }
        };
        assert!(why.contains("management controller tracks"), "{why}");
    }
    // Who manages is reset, and then somebody else may log.
    let mut manager = Manager::connect_after(manager, &house);
    assert_eq!(manager.receive().unwrap_err(), INVALID_CONTROLLER);
    driver.client().start_dma_logging(PAGE as u64, &[(iova, len as u64)]).unwrap();
    driver.client().stop_dma_logging().unwrap();
    ok(manager.track_memory(0, &whole));
    // Its client goes, and another has other memory: that is for the operator to know.
    drop(driver);
    // The engine hears of it by its keeper, in a moment.
    let until = Instant::now() + PATIENCE;
    loop {
        match manager.receive() {
            Err(INVALID_CONTROLLER) => break,
            // Or interrupted, in the middle of it.
            other => assert!(Instant::now() < until, "{other:?}"),
        }
    }
    ok(manager.end_memory());
    house.stop();
}
