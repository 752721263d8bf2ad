//! A client's message that was carried out and not answered comes again to the next process (docs/decisions/0008-redelivery.md):
//! every kind of write is ended before each of its stores in turn, and done again. One that was answered does not come again,
//! and is finished by the successor alone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use spec::nvme::registers as reg;

use self::world::World;
use crate::controller::Bar;
use crate::crash;

#[path = "../../tests/controller/world.rs"]
#[expect(dead_code, clippy::cast_possible_truncation, reason = "the other half of the tests uses the rest")]
mod world;

/// All that the client can see of the device.
fn visible(world: &mut World) -> Vec<u8> {
    let mut seen = world.read(0, 0x1400);
    let mut more = vec![0; 4096];
    world.controller.config_read(0, &mut more);
    seen.extend_from_slice(&more);
    more.resize(8192, 0);
    world.controller.bar_read(Bar::Msix, 0, &mut more);
    seen.extend_from_slice(&more);
    seen
}

fn config(world: &mut World, offset: u16, data: &[u8]) {
    world.controller.config_write(offset, data, block::Now(0), &mut world.host);
}

fn msix(world: &mut World, offset: u64, data: &[u8]) {
    world.controller.bar_write(Bar::Msix, offset, data, block::Now(0), &mut world.host);
}

/// A device in use: queues, features, configuration space and vectors are not as after power-on.
fn used() -> World {
    let mut world = World::ready();
    config(&mut world, 4, &[6, 4]);
    config(&mut world, 0x10, &[0, 0, 0, 0xfe]);
    config(&mut world, 0x52, &[0, 0x80]);
    msix(&mut world, 0, &[0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0]);
    assert!(world.admin(world::command(0x09, 0, [8, 0x0102])).status.is_success());
    world
}

fn disabled() -> World {
    let mut world = used();
    world.disable();
    world.set_queues(16, 16);
    world
}

fn reset_by_subsystem() -> World {
    let mut world = used();
    world.write32(reg::NSSR, reg::NSSR_RESET);
    world.pump();
    world
}

type Write = fn(&mut World);
type Case = (&'static str, fn() -> World, Write);

/// Each kind of write that a client can send, with the device before it.
const WRITES: [Case; 20] = [
    ("CC.EN = 1", disabled, |w| w.write32(reg::CC, 0x0046_0001)),
    ("CC.EN = 1, wrongly", disabled, |w| w.write32(reg::CC, 0x0046_0081)),
    ("CC.EN = 0", used, |w| w.write32(reg::CC, 0x0046_0000)),
    ("CC.SHN, normal", used, |w| w.write32(reg::CC, 0x0046_4001)),
    ("CC.SHN, abrupt", used, |w| w.write32(reg::CC, 0x0046_8001)),
    ("NSSR", used, |w| w.write32(reg::NSSR, reg::NSSR_RESET)),
    ("CSTS.NSSRO", reset_by_subsystem, |w| w.write32(reg::CSTS, 1 << 4)),
    ("INTMS", World::ready, |w| w.write32(reg::INTMS, 5)),
    ("INTMC", World::ready, |w| w.write32(reg::INTMC, 4)),
    ("AQA", disabled, |w| w.write32(reg::AQA, 0x0007_0007)),
    ("ASQ", disabled, |w| w.write64(reg::ASQ, 0x5_0000)),
    ("ACQ", disabled, |w| w.write64(reg::ACQ, 0x6_0000)),
    ("a doorbell of a queue", used, |w| w.write32(0x1004, 1)),
    ("command register", used, |w| config(w, 4, &[2, 0])),
    ("a BAR, for its size", used, |w| config(w, 0x10, &[0xff; 8])),
    ("MSI-X off", used, |w| config(w, 0x52, &[0, 0])),
    ("function level reset", used, |w| config(w, 0x69, &[0x80])),
    ("D3hot", used, |w| config(w, 0x44, &[3])),
    ("an MSI-X entry", used, |w| msix(w, 16, &[0xaa; 16])),
    ("DEVICE_RESET", used, |w| w.controller.reset(block::Now(0), &mut w.host)),
];

/// Writes, and lets the world turn until nothing moves. What was reached when the process ended at this point, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Unanswered,
    Answered,
    End,
}

fn until_point(world: &mut World, write: Write, lives: u64) -> Reached {
    let mut reached = Reached::Unanswered;
    crash::arm(lives);
    let _ = catch_unwind(AssertUnwindSafe(|| {
        write(world);
        reached = Reached::Answered;
        world.pump();
        reached = Reached::End;
    }));
    crash::arm(u64::MAX);
    reached
}

/// Ours: docs/decisions/0008-redelivery.md. Ended before any store of its own, and done again by the next process, a write leaves
/// the device as if it had been done once.
#[test]
fn a_write_that_comes_again_after_any_store_ends_as_if_it_had_come_once() {
    for (name, before, write) in WRITES {
        let mut whole = before();
        let passed = crash::passed();
        assert_eq!(until_point(&mut whole, write, u64::MAX), Reached::End);
        let points = crash::passed() - passed;
        assert!(points > 0, "{name}: no store at all");
        let expected = visible(&mut whole);
        // A reset stores a thousand words one like the other: of those, some.
        for lives in (1..=points).filter(|at| *at < 100 || *at + 50 > points || at.is_multiple_of(11)) {
            let mut world = before();
            match until_point(&mut world, write, lives) {
                Reached::End => panic!("{name}: no end at point {lives}"),
                Reached::Answered => world.succeed(),
                Reached::Unanswered => {
                    world.succeed();
                    write(&mut world);
                    world.pump();
                }
            }
            let seen = visible(&mut world);
            let differs = seen.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{name}, ended at point {lives}");
            assert_eq!(world.region.registers.reset_count.load(std::sync::atomic::Ordering::Relaxed) % 2, 0);
        }
    }
}

/// Ours: docs/decisions/0008-redelivery.md. Also when the whole of it was done and only the answer is missing.
#[test]
fn a_write_that_was_done_whole_and_comes_again_changes_nothing() {
    for (name, before, write) in WRITES {
        let mut world = before();
        write(&mut world);
        world.pump();
        let expected = visible(&mut world);
        for _ in 0..2 {
            world.succeed();
            assert!(visible(&mut world) == expected, "{name}: the next process sees it");
            write(&mut world);
            world.pump();
            assert!(visible(&mut world) == expected, "{name}: again");
        }
    }
}

/// Ours: docs/formats/ssd-record.md. Base 2.1, 5.1.12.1.3: the counters of the SMART log are kept over power cycles.
#[test]
fn a_power_cycle_is_counted_once_wherever_the_process_that_began_it_ends() {
    let counters = state::ssd::CountersV1 { reads: 5, writes: 7, ..Default::default() };
    let mut record = World::ready().controller.record();
    record.totals.live = counters;
    record.totals.error_log_entries = 9;
    let after = |world: &World| world.controller.record().totals;
    let region = || memory::SharedRegion::<state::region::ControllerRegion>::private();
    let expected = after(&World::with_record(&record));
    assert_eq!((expected.base.writes, expected.live.writes), (7, 0));
    assert_eq!((expected.power_cycles, expected.unsafe_shutdowns, expected.error_log_entries), (2, 1, 9));
    let passed = crash::passed();
    let mut world = World::with_record(&record);
    let points = crash::passed() - passed;
    assert!(points > 0);
    // The last time it ends with all done but the record.
    for lives in 1..=points + 1 {
        world.region = std::sync::Arc::new(region());
        // No record was written: the next process has the old one.
        world.host.records = vec![record.clone()];
        crash::arm(lives);
        let ended = catch_unwind(AssertUnwindSafe(|| world.succeed())).is_err();
        crash::arm(u64::MAX);
        assert_eq!(ended, lives <= points, "point {lives}");
        world.host.records = vec![record.clone()];
        world.succeed();
        assert_eq!(after(&world), expected, "ended at point {lives}");
        // Known by its record now.
        world.succeed();
        assert_eq!(after(&world), expected, "ended at point {lives}, and again");
    }
}
