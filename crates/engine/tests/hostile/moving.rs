//! An ssd with queues on several reactors that moves to a reactor of its own, because some memory has no descriptor.

use crate::host::{FILE, pattern, write};
use crate::siege::{Chance, Siege, page_io};
use guest::PATIENCE;
use guest::nvme::{Driver, Sqe, reg};
use guest::ram::Ram;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FAR: u64 = 0xb0_0000_0000;

/// A driver with near memory for its rings, and far memory that only messages reach.
fn connect(siege: &Siege) -> (Driver, Arc<Ram>) {
    let mut driver = siege.connect();
    let far = Ram::new(1 << 20, FAR).unwrap();
    driver.client().set_dma_memory(far.clone());
    driver.client().dma_map(FAR, 1 << 20, None).unwrap();
    (driver, far)
}

/// Waits for `count` completions of any queue and answers the engine's questions meanwhile.
fn collect(driver: &mut Driver, queues: RangeInclusive<u16>, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut ended = 0;
    while ended < count {
        for qid in queues.clone() {
            while let Some(done) = driver.poll(qid).unwrap() {
                done.ok().unwrap();
                ended += 1;
            }
        }
        driver.client().serve_dma(Duration::ZERO).unwrap();
        assert!(Instant::now() < deadline, "{ended} of {count}");
    }
}

#[test]
fn it_takes_its_queues_shadow_doorbells_and_io_in_flight_along() {
    Siege::run(FILE, 3, |siege| {
        for shadow in [false, true] {
            let (mut driver, far) = connect(siege);
            (1..=6).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
            write(&mut driver, 1, 0, &pattern(5, 4096));
            if shadow {
                driver.enable_shadow_doorbells().unwrap();
            }
            let near = driver.ram().clone().alloc(4096).unwrap();
            for qid in 1..=6 {
                for at in 0..30 {
                    let iova = if qid == 4 && at == 15 { FAR } else { near.iova() };
                    driver.place(qid, page_io(2, iova, 0)).unwrap();
                }
                driver.ring(qid).unwrap();
            }
            collect(&mut driver, 1..=6, 180);
            let mut bytes = vec![0; 4096];
            far.mapping().read(0, &mut bytes);
            assert!(bytes == pattern(5, 4096));
            assert!(driver.client().dma_served() > 0);
            // Everything goes on: rings, admin commands, deletion, new queues.
            for qid in 1..=6 {
                (0..10).for_each(|_| _ = driver.place(qid, page_io(1, FAR, 8)).unwrap());
                driver.ring(qid).unwrap();
            }
            collect(&mut driver, 1..=6, 60);
            (1..=6).for_each(|qid| driver.delete_queue_pair(qid).unwrap());
            driver.create_queue_pair(2, 16).unwrap();
            drop((driver, far));
        }
    });
}

#[test]
fn resets_and_deletions_on_its_way_end_as_anywhere_else() {
    Siege::run(FILE, 3, |siege| {
        let mut chance = Chance(20);
        for round in 0..24 {
            let (mut driver, far) = connect(siege);
            (1..=6).for_each(|qid| driver.create_queue_pair(qid, 64).unwrap());
            let near = driver.ram().clone().alloc(4096).unwrap();
            for qid in 1..=6 {
                for at in 0..40 {
                    driver.place(qid, page_io(2, if at == 20 { FAR } else { near.iova() }, at * 8)).unwrap();
                }
                driver.ring(qid).unwrap();
            }
            std::thread::sleep(Duration::from_micros(chance.below(300)));
            match round % 4 {
                0 => {
                    (1..=6).for_each(|qid| _ = driver.submit(0, Sqe::new(0).cdw10(qid)).unwrap());
                    collect(&mut driver, 0..=0, 6);
                }
                1 => driver.write_u32(reg::CC, 0).unwrap(),
                2 => driver.client().reset().unwrap(),
                _ => {
                    drop((driver, far));
                    continue;
                }
            }
            driver.client().serve_dma(Duration::ZERO).unwrap();
            driver
                .client()
                .region_write(guest::vfio_user::region::CONFIG, 4, &0x0406_u16.to_le_bytes())
                .unwrap();
            driver.enable().unwrap();
            driver.set_queue_count(128).unwrap();
            // The old queues are gone: their identifiers are free, and nothing of theirs is answered.
            (1..=6).for_each(|qid| driver.create_queue_pair(qid, 16).unwrap());
            (1..=6).for_each(|qid| _ = driver.submit(qid, page_io(2, FAR + 4096, 0)).unwrap());
            collect(&mut driver, 1..=6, 6);
            drop((driver, far));
        }
    });
}
