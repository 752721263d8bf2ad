//! Rows 3 to 9 and 11: what a guest can do.

use crate::host::{FILE, RAM};
use crate::siege::{Chance, Siege, create_rings, page_io};
use guest::PATIENCE;
use guest::nvme::{Driver, Sqe, reg};
use guest::ram::Ram;
use guest::vfio_user::region;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const READ: u8 = 2;
const WRITE: u8 = 1;

fn queues(driver: &mut Driver, count: u16, depth: u32) {
    (1..=count).for_each(|qid| driver.create_queue_pair(qid, depth).unwrap());
}

/// Everything answered or dropped, and every queue gone.
fn restart(driver: &mut Driver) {
    driver.enable().unwrap();
    driver.set_queue_count(128).unwrap();
}

#[test]
fn row_4_any_value_in_any_doorbell_harms_only_its_writer() {
    Siege::run(RAM, 3, |siege| {
        let mut driver = siege.connect();
        let mut chance = Chance(4);
        for _ in 0..20 {
            queues(&mut driver, 6, 64);
            for _ in 0..2000 {
                let value = [chance.below(70), chance.next()][chance.below(2) as usize] as u32;
                driver.write_doorbell(chance.below(1024) as usize, value).unwrap();
            }
            for len in 1..=8 {
                let (at, bytes) = (0x1000 + chance.below(4080), chance.next().to_le_bytes());
                driver.client().region_write(region::BAR0, at, &bytes[..len]).unwrap();
            }
            restart(&mut driver);
        }
    });
}

#[test]
fn row_5_a_completion_queue_that_is_never_acknowledged_holds_up_nothing_but_itself() {
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        let ram = Arc::clone(driver.ram());
        let data = ram.alloc(4096).unwrap();
        for qid in 1..=6 {
            let (sq, cq) = (ram.alloc(64 * 64).unwrap(), ram.alloc(4 * 16).unwrap());
            driver.admin(Sqe::new(5).prp(cq.iova(), 0).cdw10(3 << 16 | qid).cdw11(1)).unwrap().ok().unwrap();
            let create = Sqe::new(1).prp(sq.iova(), 0).cdw10(63 << 16 | qid).cdw11(qid << 16 | 1);
            driver.admin(create).unwrap().ok().unwrap();
            for at in 0..60_u32 {
                let block = page_io(READ, data.iova(), 0).cid(at as u16).to_block();
                let words = block.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
                sq.write(at as usize * 64, &words);
            }
            driver.write_doorbell(qid as usize * 2, 60).unwrap();
            let posted = || (0..4).filter(|at| cq.load_u64(at * 16 + 8) >> 48 & 1 == 1).count();
            let deadline = Instant::now() + PATIENCE;
            while posted() < 3 {
                assert!(Instant::now() < deadline);
            }
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(posted(), 3, "one entry of a ring of 4 stays free");
            if qid % 2 == 0 {
                driver.admin(Sqe::new(0).cdw10(qid)).unwrap().ok().unwrap();
                driver.admin(Sqe::new(4).cdw10(qid)).unwrap().ok().unwrap();
            }
        }
        restart(&mut driver);
    });
}

#[test]
fn row_7_shadow_doorbells_come_twice_under_io_and_lose_their_memory() {
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        queues(&mut driver, 3, 64);
        let data = driver.ram().clone().alloc(4096).unwrap();
        let submit = |driver: &mut Driver| {
            (1..=3).for_each(|qid| {
                (0..20).for_each(|at| _ = driver.place(qid, page_io(READ, data.iova(), at * 8)));
                driver.ring(qid).unwrap();
            });
        };
        let collect = |driver: &mut Driver| {
            (1..=3).for_each(|qid| {
                (0..20).for_each(|_| _ = driver.wait_any(qid, PATIENCE).unwrap().ok().unwrap());
            });
        };
        for _ in 0..10 {
            submit(&mut driver);
            driver.enable_shadow_doorbells().unwrap();
            collect(&mut driver);
            submit(&mut driver);
            collect(&mut driver);
        }
        let dbbuf = |prp1, prp2| Sqe::new(0x7c).prp(prp1, prp2);
        for (prp1, prp2) in [(0, 0), (1 << 50, 1 << 51), (data.iova() + 4, data.iova()), (u64::MAX, u64::MAX)]
        {
            let _ = driver.admin(dbbuf(prp1, prp2)).unwrap();
        }
        let extra = Ram::new(8192, 0x90_0000_0000).unwrap();
        for _ in 0..20 {
            driver.client().dma_map(extra.iova(), 8192, Some((extra.fd(), 0))).unwrap();
            driver.admin(dbbuf(extra.iova(), extra.iova() + 4096)).unwrap().ok().unwrap();
            submit(&mut driver);
            driver.client().dma_unmap(extra.iova(), 8192).unwrap();
            (0..8).for_each(|index| extra.mapping().store_u32(index * 4, u32::MAX));
        }
        restart(&mut driver);
    });
}

#[test]
fn row_8_data_at_addresses_that_are_no_memory_is_an_error_of_that_command() {
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        // BAR0 and BAR4 have addresses, which are no memory for the device itself (DMA re-entrancy).
        for (bar, address) in [(0x10, 0xc000_0004_u64), (0x20, 0xc010_0004)] {
            driver.client().region_write(region::CONFIG, bar, &address.to_le_bytes()).unwrap();
        }
        queues(&mut driver, 3, 64);
        let doorbells = [0xc000_1000, 0xc000_0000, 0xc010_0000, 0xc010_1000];
        let nowhere = [0, 4096, !4095, 1 << 63, 0x1_0000_0000 + (16 << 20)];
        for (at, iova) in doorbells.into_iter().chain(nowhere).enumerate() {
            for opcode in [READ, WRITE] {
                let done = driver.io((at % 3 + 1) as u16, page_io(opcode, iova, 0)).unwrap();
                assert!(done.ok().is_err(), "{opcode} at {iova:#x}");
            }
        }
    });
}

#[test]
fn row_8_the_doorbell_page_as_guest_memory_for_data_and_rings() {
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        queues(&mut driver, 3, 64);
        let info = driver.client().region_info(region::BAR0).unwrap();
        let at = 0xa0_0000_0000;
        let page = info.fds[0].as_fd();
        let mapped = [0, 0x1000].map(|offset| driver.client().dma_map(at, 4096, Some((page, offset))));
        assert!(mapped.iter().any(Result::is_ok), "a client may pass what it was given");
        for round in 0..200 {
            let _ = driver.place((round % 3 + 1) as u16, page_io([READ, WRITE][round % 2], at, 0));
            let _ = driver.ring((round % 3 + 1) as u16);
        }
        let _ = create_rings(&mut driver, 9, 16, at, at + 1024);
        for value in 0..64 {
            driver.write_doorbell(18, value % 16).unwrap();
        }
        restart(&mut driver);
    });
}

#[test]
fn row_9_commands_that_change_while_they_are_fetched_are_one_or_the_other() {
    Siege::run(RAM, 2, |siege| {
        let mut driver = siege.connect();
        queues(&mut driver, 2, 64);
        let ram = Arc::clone(driver.ram());
        let (data, list) = (ram.alloc(1 << 20).unwrap(), ram.alloc(4096).unwrap());
        // A page that no command names: whatever is mixed, it stays as it is.
        let canary = ram.alloc(4096).unwrap();
        canary.fill(0xc5);
        let rings: Vec<usize> = (1..=2).map(|qid| driver.sq(qid).unwrap().ring().offset()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, base, table) = (Arc::clone(&stop), data.iova(), list.offset());
        let list_iova = list.iova();
        let mutator = std::thread::spawn(move || {
            let mut chance = Chance(9);
            let mapping = ram.mapping();
            while !ends.load(Ordering::Relaxed) {
                let entry = rings[chance.below(2) as usize] + chance.below(64) as usize * 64;
                let opcode = [READ, WRITE, 5, 8, 9, 0, 0x19, 0x0c][chance.below(8) as usize];
                let prp2 = [0, list_iova, 1 << 60, base + 4096][chance.below(4) as usize];
                mapping.store_u64(entry, u64::from(opcode) | chance.below(4) << 8 | 1 << 32);
                mapping.store_u64(entry + 24, base + chance.below(200) * 4096);
                mapping.store_u64(entry + 32, prp2);
                mapping.store_u64(entry + 40, chance.below(1 << 17));
                mapping.store_u64(entry + 48, chance.below(300));
                mapping.store_u64(
                    table + chance.below(512) as usize * 8,
                    [base + 8192, 1 << 59, 0][chance.below(3) as usize],
                );
            }
        });
        let start = Instant::now();
        let (mut tails, mut done) = ([0_u32; 2], 0_u64);
        while done <= 1000 || start.elapsed() < Duration::from_millis(1200) {
            assert!(start.elapsed() < PATIENCE, "{done}");
            for (tail, qid) in tails.iter_mut().zip(1_u16..) {
                // A ring of 64 with 32 of them outstanding.
                *tail = (*tail + 16) % 64;
                driver.write_doorbell(usize::from(qid) * 2, *tail).unwrap();
                for _ in 0..16 {
                    done += u64::from(driver.wait_any(qid, PATIENCE).is_ok());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        mutator.join().unwrap();
        assert!(canary.to_vec().iter().all(|byte| *byte == 0xc5));
    });
}

#[test]
fn row_11_storms_of_abort_deletion_reset_and_shutdown_with_io_in_flight() {
    const KINDS: u64 = 7;
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        let mut chance = Chance(11);
        let devctl = driver.find_capability(0x10).unwrap().unwrap() + 8;
        let end = Instant::now() + Duration::from_secs(3);
        // Each kind once, however long that takes, and then any.
        for round in 0.. {
            if round >= KINDS && Instant::now() > end {
                break;
            }
            queues(&mut driver, 6, 128);
            let data = driver.ram().clone().alloc(1 << 20).unwrap();
            let pages = chance.below(100);
            for qid in 1..=6 {
                for at in 0..pages {
                    let _ = driver.place(qid, page_io(READ, data.iova() + at % 256 * 4096, at * 8)).unwrap();
                }
                driver.ring(qid).unwrap();
            }
            match if round < KINDS { round } else { chance.below(KINDS) } {
                0 => (0..32).for_each(|cid| _ = driver.abort(chance.below(7) as u16 + 1, cid).unwrap()),
                1 => (1..=6).for_each(|qid| {
                    // Out of order, and twice.
                    let _ = driver.admin(Sqe::new(4).cdw10(qid)).unwrap();
                    let deletions =
                        [0, 0, 4].map(|opcode| driver.submit(0, Sqe::new(opcode).cdw10(qid)).unwrap());
                    deletions.into_iter().for_each(|cid| _ = driver.wait(0, cid).unwrap());
                }),
                2 => (0..10).for_each(|_| {
                    driver.write_u32(reg::CC, 0).unwrap();
                    driver.write_u32(reg::CC, 0x46_0001).unwrap();
                }),
                3 => driver.client().region_write(region::CONFIG, devctl, &0x8000_u16.to_le_bytes()).unwrap(),
                4 => driver.client().reset().unwrap(),
                5 => driver.shutdown(chance.below(2) == 0).unwrap(),
                _ => driver.write_u32(reg::NSSR, 0x4e56_4d65).unwrap(),
            }
            // After a function level reset the device is off the bus until it is told to be on it.
            driver.client().region_write(region::CONFIG, 4, &0x0406_u16.to_le_bytes()).unwrap();
            restart(&mut driver);
        }
    });
}

#[test]
fn row_11_a_client_that_goes_in_the_middle_of_a_reset_format_or_sanitize() {
    Siege::run(FILE, 3, |siege| {
        for round in 0..8_u32 {
            let mut driver = siege.connect();
            queues(&mut driver, 4, 64);
            let data = driver.ram().clone().alloc(4096).unwrap();
            for qid in 1..=4 {
                (0..60).for_each(|at| _ = driver.place(qid, page_io(READ, data.iova(), at * 8)).unwrap());
                driver.ring(qid).unwrap();
            }
            match round % 4 {
                0 => _ = driver.submit(0, Sqe::new(0x80).nsid(1)).unwrap(),
                1 => _ = driver.submit(0, Sqe::new(0x84).cdw10(2)).unwrap(),
                2 => driver.write_u32(reg::CC, 0).unwrap(),
                _ => driver.write_u32(reg::CC, 0x46_4001).unwrap(),
            }
            drop(driver);
        }
        // A sanitize outlives its client; I/O is served when it has ended.
        let mut driver = siege.connect();
        let deadline = Instant::now() + PATIENCE;
        driver.create_queue_pair(1, 16).unwrap();
        let data = driver.ram().clone().alloc(4096).unwrap();
        while driver.io(1, page_io(READ, data.iova(), 0)).unwrap().ok().is_err() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_flood_of_large_commands_leaves_the_neighbour_its_turns() {
    Siege::run(RAM, 1, |siege| {
        let mut driver = siege.connect();
        queues(&mut driver, 32, 64);
        let ram = Arc::clone(driver.ram());
        let data = ram.alloc(1 << 20).unwrap();
        let list = guest::nvme::Prp::new(&ram, data.iova(), 1 << 20).unwrap();
        let deadline = Instant::now() + Duration::from_millis(800);
        while Instant::now() < deadline {
            for qid in 1..=32 {
                let sqe = || Sqe::new(WRITE).nsid(1).prp(list.prp1, list.prp2).qword(10, 0).cdw12(2047);
                while driver.place(qid, sqe()).is_ok() {}
                driver.ring(qid).unwrap();
            }
            for qid in 1..=32 {
                while driver.poll(qid).unwrap().is_some() {}
            }
        }
    });
}
