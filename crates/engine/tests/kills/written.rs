//! The log of the pages that a controller writes: who copies the guest by it has every byte, whoever is killed in between.

use crate::house::House;
use crate::load::Load;
use crate::travel::{connect, copy_disk};
use crate::{FILE, RAM};
use guest::Error;
use guest::mapping::Mapping;
use guest::nvme::{Driver, Options, Sqe};
use guest::ram::Ram;
use guest::vfio_user::{Client, state};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const INVAL: u32 = 22;
const TOO_BIG: u32 = 7;

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> u32 {
    match result {
        Err(Error::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

fn all_of(ram: &Ram) -> (u64, u64) {
    (ram.iova(), ram.len() as u64)
}

/// A guest of 8 MiB, whose memory is looked at as a whole.
fn small(house: &House) -> Driver {
    let options = Options { ram_bytes: 8 << 20, ..Options::default() };
    house.connect_with("disk", options)
}

fn arm(driver: &mut Driver) {
    let whole = all_of(driver.ram());
    driver.client().start_dma_logging(PAGE, &[whole]).unwrap();
}

fn report(driver: &mut Driver) -> Vec<u64> {
    let (iova, len) = all_of(driver.ram());
    driver.client().report_dma_logging(iova, len, PAGE).unwrap()
}

fn bytes_of(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; ram.len()];
    ram.mapping().read(0, &mut bytes);
    bytes
}

/// The pages that differ, by address.
fn changed(ram: &Ram, before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let pages = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize));
    let differ = (0..).zip(pages).filter(|(_, (before, after))| before != after);
    differ.map(|(page, _)| ram.iova() + page * PAGE).collect()
}

#[test]
fn a_log_is_armed_reported_and_stopped_as_the_protocol_says() {
    for share_ram in [true, false] {
        let house = House::start(&[("disk", FILE)], 2);
        let options = Options { share_ram, ..Options::default() };
        let mut driver = house.connect_with("disk", options);
        driver.create_queue_pair(1, 64).unwrap();
        let (iova, len) = all_of(driver.ram());
        let client = driver.client();
        assert_eq!(refused(client.stop_dma_logging()), INVAL);
        assert_eq!(refused(client.report_dma_logging(iova, PAGE, PAGE)), INVAL);
        for (ranges, errno) in [
            (vec![(iova + 1, PAGE)], INVAL),
            (vec![(iova, 100)], INVAL),
            (vec![(iova, 0)], INVAL),
            (vec![(u64::MAX - 4095, 2 * PAGE)], INVAL),
            (vec![(iova, 2 * PAGE), (iova + PAGE, PAGE)], INVAL),
            (vec![(0, 1 << 60)], TOO_BIG),
            ((0..1025).map(|at| (at * PAGE, PAGE)).collect(), TOO_BIG),
        ] {
            assert_eq!(refused(client.start_dma_logging(PAGE, &ranges)), errno, "{:x?}", ranges[0]);
        }
        assert_eq!(refused(client.start_dma_logging(3000, &[(iova, len)])), INVAL);
        // Two ranges with a hole, in any order; the grain is ours.
        let (half, end) = (iova + len / 2, iova + len);
        let grain =
            client.start_dma_logging(1 << 21, &[(half + PAGE, end - half - PAGE), (iova, len / 2)]).unwrap();
        assert_eq!(grain, PAGE);
        assert_eq!(refused(client.start_dma_logging(PAGE, &[(iova, len)])), INVAL);
        for (at, len, page) in
            [(iova, 0, PAGE), (iova + 1, PAGE, PAGE), (iova, PAGE, 512), (iova, PAGE, 6000)]
        {
            assert_eq!(refused(client.report_dma_logging(at, len, page)), INVAL);
        }
        assert_eq!(refused(client.report_dma_logging(0, 1 << 60, PAGE)), INVAL, "a bitmap of its own size");
        assert_eq!(client.report_dma_logging(iova, len, PAGE).unwrap(), [0; 0]);

        let buffer = driver.ram().clone().alloc(3 * PAGE as usize).unwrap();
        let cq = driver.cq(1).unwrap().ring().iova();
        driver.read(1, 1, 0, 24, &buffer).unwrap().ok().unwrap();
        let at = buffer.iova();
        let mut expected = BTreeSet::from([at, at + PAGE, at + 2 * PAGE, cq]);
        // Of a part, and with larger pages, and then of the rest.
        assert_eq!(driver.client().report_dma_logging(at + PAGE, 1, PAGE).unwrap(), [at + PAGE]);
        expected.remove(&(at + PAGE));
        let large = 1 << 24;
        let found = driver.client().report_dma_logging(at & !(large - 1), 1, large).unwrap();
        assert_eq!(found, [0; 0], "only what is in the range");
        assert_eq!(BTreeSet::from_iter(report(&mut driver)), expected);
        assert_eq!(report(&mut driver), [0; 0]);
        driver.read(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
        let found = driver.client().report_dma_logging(iova & !(large - 1), len, large).unwrap();
        assert!(found.contains(&(at & !(large - 1))), "{found:x?}");
        // Writes are none of the device's, but for their answers.
        report(&mut driver);
        driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
        assert_eq!(report(&mut driver), [cq]);
        driver.client().stop_dma_logging().unwrap();
        driver.read(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
        assert_eq!(refused(driver.client().report_dma_logging(iova, len, PAGE)), INVAL);
        // None named is all there are, and what comes is in it.
        driver.client().start_dma_logging(PAGE, &[]).unwrap();
        assert_eq!(report(&mut driver), [0; 0]);
        let more = Ram::new(1 << 20, 1 << 40).unwrap();
        let fd = more.fd();
        driver.client().dma_map(more.iova(), more.len() as u64, Some((fd, 0))).unwrap();
        assert_eq!(refused(driver.client().dma_map(1 << 50, 1 << 20, Some((fd, 0)))), TOO_BIG);
        let sqe = Sqe::new(2).nsid(1).prp(more.iova(), 0).cdw12(7);
        driver.io(1, sqe).unwrap().ok().unwrap();
        assert_eq!(driver.client().report_dma_logging(more.iova(), 1 << 20, PAGE).unwrap(), [more.iova()]);
        driver.client().stop_dma_logging().unwrap();
        drop(driver);
        house.stop();
    }
}

/// Reads through lists and several queues, identify and log pages, and with shadow doorbells the event indices.
fn all_that_a_device_writes(driver: &mut Driver, buffers: &guest::ram::Buffer) -> Vec<(u16, u16)> {
    let mut out = Vec::new();
    let list = |first: u64| -> Vec<u8> { (1..32).flat_map(|at| (first + at * PAGE).to_le_bytes()).collect() };
    for qid in 1..=4_u16 {
        let first = buffers.iova() + u64::from(qid - 1) * 32 * PAGE;
        let lists = (buffers.len() / PAGE as usize - usize::from(qid)) * PAGE as usize;
        buffers.write(lists, &list(first));
        let sqe =
            Sqe::new(2).nsid(1).prp(first, buffers.iova() + lists as u64).qword(10, u64::from(qid) * 256);
        out.push((qid, driver.place(qid, sqe.cdw12(255)).unwrap()));
    }
    let page = buffers.iova() + 200 * PAGE;
    out.push((0, driver.place(0, Sqe::new(6).prp(page + 8, page + PAGE).cdw10(1)).unwrap()));
    out.push((0, driver.place(0, Sqe::new(2).prp(page + 2 * PAGE, 0).cdw10(2 | 127 << 16)).unwrap()));
    out
}

#[test]
fn every_page_that_a_controller_writes_is_in_its_log_whoever_dies_in_between() {
    for (backend, shadow) in [(FILE, false), (FILE, true), (RAM, false), (RAM, true)] {
        let house = House::start(&[("disk", backend)], 2);
        let mut driver = small(&house);
        (1..=4).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
        if shadow {
            driver.enable_shadow_doorbells().unwrap();
        }
        let buffers = driver.ram().clone().alloc(256 * PAGE as usize).unwrap();
        for qid in 1..=4 {
            let data = driver.ram().clone().alloc_with(&vec![qid as u8; 32 * PAGE as usize]).unwrap();
            driver.write(qid, 1, u64::from(qid) * 256, 256, &data).unwrap().ok().unwrap();
        }
        arm(&mut driver);
        for round in 0..16_u64 {
            report(&mut driver);
            buffers.write(0, &vec![0x5a; 200 * PAGE as usize]);
            let out = all_that_a_device_writes(&mut driver, &buffers);
            let before = bytes_of(driver.ram());
            (0..=4).for_each(|qid| driver.ring(qid).unwrap());
            let mut pages = BTreeSet::new();
            if round % 4 != 0 {
                std::thread::sleep(Duration::from_micros(round * 40));
                if round % 2 == 0 {
                    pages.extend(report(&mut driver));
                }
                house.kill();
            }
            for (qid, cid) in out {
                driver.wait(qid, cid).unwrap().ok().unwrap();
            }
            // Idle: the device writes its last word of where it is.
            std::thread::sleep(Duration::from_millis(1));
            driver.client().set_migration_state(state::STOP).unwrap();
            let after = bytes_of(driver.ram());
            pages.extend(report(&mut driver));
            let missing: Vec<u64> =
                changed(driver.ram(), &before, &after).difference(&pages).copied().collect();
            let of = |at: &u64| at.wrapping_sub(buffers.iova()) / PAGE;
            let rung = driver.shadow_pages().map(|(doorbells, _)| doorbells);
            let missing: Vec<_> = missing.into_iter().filter(|at| Some(*at) != rung).collect();
            assert!(
                missing.is_empty(),
                "{:?} in round {round} on {backend}",
                missing.iter().map(of).collect::<Vec<_>>()
            );
            driver.client().set_migration_state(state::RUNNING).unwrap();
        }
        drop(driver);
        house.stop();
    }
}

/// What a hypervisor has of the guest's memory at the other side.
struct Copy {
    bytes: Vec<u8>,
    ram: Arc<Ram>,
}

impl Copy {
    fn begin(driver: &Driver) -> Self {
        Self { bytes: bytes_of(driver.ram()), ram: driver.ram().clone() }
    }

    fn take(&mut self, offset: usize, len: usize) {
        self.ram.mapping().read(offset, &mut self.bytes[offset..offset + len]);
    }

    /// What the processors have written, and what the device says that it has.
    fn pass(&mut self, load: &mut Load) -> usize {
        let written = load.take_written();
        let pages = report(load.driver());
        for (offset, len) in written {
            self.take(offset, len);
        }
        for at in &pages {
            self.take((at - self.ram.iova()) as usize, PAGE as usize);
        }
        pages.len()
    }

    /// The guest goes on with the copy.
    fn become_memory(self) {
        let now = bytes_of(&self.ram);
        let differ = changed(&self.ram, &self.bytes, &now);
        assert!(differ.is_empty(), "pages that were not copied: {differ:x?}");
        self.ram.mapping().fill(0, self.ram.len(), 0xee);
        self.ram.mapping().write(0, &self.bytes);
    }
}

/// Where the source's engine is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Never,
    Armed,
    BeforeReport,
    InReport(u64),
    /// Marks were cleared, and the answer that says so may not have gone.
    Told,
    AfterReport,
    Stopping(u64),
    Stopped,
    BeforeLastReport,
}

fn killed_after<T>(house: &House, micros: u64, ask: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_micros(micros));
            house.kill();
        });
        ask()
    })
}

/// Asks, and kills the engine as soon as the second half of the log, what was told, is another.
fn killed_when_told<T>(house: &House, ask: impl FnOnce() -> T) -> T {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let is_log = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().contains("godwit-written"))
    };
    let map = |entry: std::fs::DirEntry| {
        let file = std::fs::File::open(entry.path()).ok()?;
        let half = file.metadata().ok()?.len() / 2;
        Mapping::new(&file, half, half as usize, false).ok()
    };
    let logs: Vec<Mapping> = files.filter(is_log).filter_map(map).collect();
    assert!(!logs.is_empty());
    let read = || logs.iter().flat_map(|log| (0..32).map(|at| log.load_u64(at * 8))).collect::<Vec<u64>>();
    let before = read();
    std::thread::scope(|scope| {
        let (ready, begun) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let deadline = Instant::now() + Duration::from_millis(50);
            let is_told = || {
                let now = read();
                now != before && now.iter().any(|word| *word != 0)
            };
            ready.send(()).unwrap();
            while !is_told() && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            house.kill();
        });
        begun.recv().unwrap();
        ask()
    })
}

/// Brings the guest over with its memory. Pages that the device had written.
fn travel(load: &mut Load, from: &House, to: &House, kill: At) -> usize {
    let is = |at: At| kill == at;
    let kill_if = |at: At| {
        if is(at) {
            from.kill();
        }
    };
    arm(load.driver());
    kill_if(At::Armed);
    let mut copy = Copy::begin(load.driver());
    let mut pages = 0;
    for pass in 0..6 {
        load.run_for(Duration::from_millis(3));
        if pass == 3 {
            kill_if(At::BeforeReport);
        }
        pages += copy.pass(load);
        if pass == 3 {
            kill_if(At::AfterReport);
        }
    }
    load.run_for(Duration::from_millis(2));
    let client = load.driver().client();
    match kill {
        At::Stopping(micros) => killed_after(from, micros, || client.set_migration_state(state::STOP_COPY)),
        _ => client.set_migration_state(state::STOP_COPY),
    }
    .unwrap();
    kill_if(At::Stopped);
    let bytes = client.migration_read(1 << 20).unwrap();
    kill_if(At::BeforeLastReport);
    // Nothing marks again what this one loses.
    pages += match kill {
        At::InReport(micros) => killed_after(from, micros, || copy.pass(load)),
        At::Told => killed_when_told(from, || copy.pass(load)),
        _ => copy.pass(load),
    };
    copy.become_memory();
    copy_disk(from, to);
    let mut there: Client = connect(to);
    there.set_migration_state(state::RESUMING).unwrap();
    there.migration_write(&bytes).unwrap();
    let source = load.driver().move_to(there).unwrap();
    load.driver().client().set_migration_state(state::RUNNING).unwrap();
    drop(source);
    pages
}

#[test]
fn a_guest_whose_memory_is_copied_by_the_log_misses_no_byte_whoever_is_killed_on_the_way() {
    let ssds = [("disk", FILE)];
    let houses = [House::start(&ssds, 2), House::start(&ssds, 2)];
    let mut load = Load::new(small(&houses[0]), 3, 96, 21);
    let in_reports = [0, 60, 120].map(At::InReport).into_iter().chain([At::Told; 6]);
    let stopping = [0, 100, 300].map(At::Stopping);
    let others = [At::Never, At::Armed, At::BeforeReport, At::AfterReport, At::Stopped, At::BeforeLastReport];
    let points: Vec<At> = others.into_iter().chain(in_reports).chain(stopping).collect();
    let mut pages = 0;
    for (journey, point) in points.into_iter().enumerate() {
        load.run_for(Duration::from_millis(5));
        println!("{point:?}");
        pages += travel(&mut load, &houses[journey % 2], &houses[1 - journey % 2], point);
        load.run_until_progress();
    }
    println!("{} operations, {pages} pages", load.finish());
    houses.into_iter().for_each(House::stop);
}
