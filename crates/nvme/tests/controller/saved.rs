//! A controller's state on its way to another host: the same there as here, or refused with nothing changed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use block::Now;
use nvme::controller::Bar;
use nvme::controller::saved::{Place, Refused, check, is_loaded};
use nvme::crash;
use nvme::profile::GODWIT_1;
use nvme::queue::inspect;
use spec::nvme::registers as reg;
use state::SsdV1;
use state::controller::{ControllerV1, FeatureV1, MAGIC, PostingV1, VERSION, VectorV1, WordV1};
use state::envelope;
use state::ssd::{MarkV1, RangeV1};

use crate::world::{World, command, identity};

const NOW: Now = Now(7_000_000_000);
const FILE: u32 = 1 << 31;

/// A controller in use: queues, features, vectors, a parked event request, and on an I/O queue a command without an answer and an answer that
/// could not be written.
fn used() -> World {
    let mut world = World::ready();
    world.controller.config_write(4, &[6, 4], Now(0), &mut world.host);
    world.controller.config_write(0x52, &[0, 0x80], Now(0), &mut world.host);
    let row = [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0];
    world.controller.bar_write(Bar::Msix, 16, &row, Now(0), &mut world.host);
    for (fid, value) in [(0x08, 0x0102), (0x06, 0), (0x0b, 0xff)] {
        assert!(world.admin(command(0x09, 0, [fid, value])).status.is_success());
    }
    assert!(world.admin(command(0x05, 0, [1 | 31 << 16, 1 << 16 | 3])).status.is_success());
    assert!(world.admin(command(0x01, 0, [1 | 15 << 16, 1 << 16 | 1])).status.is_success());
    world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    let region = &world.region;
    region.sqs[1].head_seq.store(3 << 32 | 3, Relaxed);
    region.sqs[1].reads.store(5, Relaxed);
    region.cqs[1].tail_phase.store(1 << 16 | 1, Relaxed);
    region.slots[1][4].command[0].store(0x0002_0001, Relaxed);
    region.slots[1][4].word.store(2 << 32 | 2 << 16 | 1, Relaxed);
    region.slots[1][9].completion[1].store(0x0003_0001 << 32, Relaxed);
    region.slots[1][9].word.store(1 << 32 | 1 << 8 | 2, Relaxed);
    world.doorbells.store(2, 7);
    world
}

fn other() -> World {
    let mut world = World::ready();
    assert!(world.admin(command(0x05, 0, [2 | 31 << 16, 1])).status.is_success());
    world
}

fn load_into(world: &World, state: &ControllerV1) -> Result<SsdV1, Refused> {
    let (identity, record) = (identity(), world.controller.record());
    let (region, doorbells): (&_, &_) = (&world.region, &world.doorbells);
    let place = Place {
        region,
        doorbells,
        profile: &GODWIT_1,
        identity: &identity,
        record: &record,
        block_bytes: 512,
    };
    check(state, &place, NOW)?.load(FILE, NOW)
}

/// What the controller would be that goes on there.
fn found(world: &mut World, record: SsdV1, state: &ControllerV1) -> ControllerV1 {
    world.host.records.push(record);
    let mut next = world.successor();
    next = next.with_errors(&state.errors);
    next.save(NOW)
}

/// Ours: docs/formats/controller-state.md.
#[test]
fn what_is_loaded_elsewhere_is_what_was_saved_and_survives_its_bytes() {
    let state = used().controller.save(NOW);
    assert_eq!(ControllerV1::from_bytes(&state.to_bytes().expect("short")).expect("readable"), state);
    assert_eq!(state.submission_queues.len(), 2);
    assert_eq!(state.submission_queues[1].slots.len(), 2);
    assert_eq!(state.admin.parked_events.len(), 1);
    let mut there = other();
    let record = load_into(&there, &state).expect("taken");
    assert_eq!(inspect(&there.region), Ok(()));
    assert_eq!(found(&mut there, record, &state), state);
    assert_eq!(there.doorbells.sq_tail(1), 7);
    assert_eq!(there.doorbells.cq_head(2), 0);
}

/// Ours: what a destination checks before the state comes is what it finds in the state then.
#[test]
fn what_is_said_of_a_running_controller_is_what_its_state_is_of() {
    let mut world = used();
    assert_eq!(world.controller.outline(), world.controller.save(NOW).outline());
    let before = world.controller.outline().capacity_bytes;
    world.controller.grow(before + (32 << 20), NOW, &mut world.host);
    world.pump();
    assert_eq!(world.controller.outline().capacity_bytes, before + (32 << 20));
    assert_eq!(world.controller.outline(), world.controller.save(NOW).outline());
}

/// Ours: the message that asked for it comes again to the next engine, which first looks whether the region is sound.
#[test]
fn a_load_that_ends_before_any_of_its_stores_leaves_a_sound_region_and_is_done_again() {
    let state = used().controller.save(NOW);
    let mut lives = 0;
    loop {
        let mut there = other();
        crash::arm(lives);
        let ended = catch_unwind(AssertUnwindSafe(|| load_into(&there, &state).is_ok()));
        crash::arm(u64::MAX);
        assert_eq!(inspect(&there.region), Ok(()), "after {lives} stores");
        assert_eq!(
            is_loaded(&there.region, FILE),
            ended.is_ok(),
            "after {lives} stores: said with the last one"
        );
        let record = load_into(&there, &state).expect("taken");
        assert_eq!(found(&mut there, record, &state), state, "after {lives} stores");
        if ended.is_ok() {
            break;
        }
        // Those of the scratch region, and most of the doorbells, are alike.
        lives += 37;
    }
    assert!(lives > 3000, "{lives}");
}

type Change = fn(&mut ControllerV1);

/// Each is refused, whatever else is good.
const CHANGES: [(&str, Change); 54] = [
    ("profile", |s| s.record.profile = "godwit-2".into()),
    ("capacity", |s| s.record.capacity_bytes += 4096),
    ("serial", |s| s.identity.serial[0] ^= 1),
    ("nqn", |s| s.identity.nqn.push('x')),
    ("uuid", |s| s.identity.uuid[0] ^= 1),
    ("eui64", |s| s.identity.eui64[0] ^= 1),
    ("nguid", |s| s.identity.nguid[0] ^= 1),
    ("a namespace outside", |s| s.record.namespaces[0].start_bytes = u64::MAX),
    ("a namespace twice", |s| s.record.namespaces.push(s.record.namespaces[0].clone())),
    ("block size", |s| s.record.namespaces[0].lba_shift = 63),
    ("sanitizing", |s| s.record.sanitize.status = 2),
    ("not laid out", |s| s.record.laid_out = false),
    ("csts", |s| s.registers.csts |= 1 << 31),
    ("aqa", |s| s.registers.aqa = u32::MAX),
    ("asq", |s| s.registers.asq = 1),
    ("cc", |s| s.registers.cc |= 1 << 7),
    ("ready without admin queue", |s| _ = s.submission_queues.remove(0)),
    ("another vendor", |s| s.config[0].value ^= 1),
    ("config beyond", |s| s.config.push(WordV1 { offset: 4096, value: 1 })),
    ("config unaligned", |s| s.config.push(WordV1 { offset: 4093, value: 1 })),
    ("vector", |s| s.vectors.push(VectorV1 { vector: 129, ..VectorV1::default() })),
    ("feature", |s| s.admin.features.push(FeatureV1 { fid: 0xff, value: 0 })),
    ("queues granted", |s| s.admin.features.push(FeatureV1 { fid: 7, value: u32::MAX })),
    ("parked events", |s| s.admin.parked_events = vec![1; 17]),
    ("pending events", |s| s.admin.pending_events = vec![u32::MAX]),
    ("shadow doorbells", |s| s.admin.shadow_doorbells = 4097),
    ("one shadow page", |s| s.admin.shadow_doorbells = 4096),
    ("cq twice", |s| s.completion_queues.push(s.completion_queues[0])),
    ("cq of size 1", |s| s.completion_queues[1].size = 1),
    ("cq too long", |s| s.completion_queues[1].size = 4097),
    ("cq tail", |s| s.completion_queues[1].tail = 32),
    ("cq vector", |s| s.completion_queues[1].vector = Some(129)),
    ("sq id", |s| s.submission_queues[1].sqid = 129),
    ("sq head", |s| s.submission_queues[1].head = 16),
    ("sq without cq", |s| s.submission_queues[1].cqid = 9),
    ("an I/O queue on the admin queue", |s| s.submission_queues[1].cqid = 0),
    ("slot position", |s| s.submission_queues[1].slots[0].position = 16),
    ("slot of the future", |s| s.submission_queues[1].slots[0].seq = 3),
    ("a wipe of a namespace", |s| s.record.to_wipe = ranges(&[(0, 1)])),
    ("wipes of the same place", |s| left(s, &[(4, 2), (1, 2), (5, 1)])),
    ("a wipe of nothing", |s| left(s, &[(4, 0)])),
    ("a wipe beyond the end", |s| left(s, &[(63, 2)])),
    ("a wipe that wraps", |s| left(s, &[(63, u64::MAX >> 20)])),
    ("a wipe that begins anywhere", |s| {
        left(s, &[(1, 1)]);
        s.record.to_wipe[0].start_bytes += 4096;
    }),
    ("a wipe that ends anywhere", |s| {
        left(s, &[(1, 1)]);
        s.record.to_wipe[0].len_bytes -= 512;
    }),
    ("marks too many", |s| marked(s, &(0..1025).map(|at| (2 * at, 1)).collect::<Vec<_>>())),
    ("marks outside", |s| marked(s, &[(u64::MAX, 1)])),
    ("marks of the same block", |s| marked(s, &[(7, 2), (8, 1)])),
    ("a mark of nothing", |s| marked(s, &[(7, 0)])),
    ("a feature twice", |s| s.admin.features.push(s.admin.features[0])),
    ("a vector twice", |s| s.vectors.push(s.vectors[0])),
    ("a queue counted twice", |s| s.counters.push(s.counters[0])),
    ("coalescing twice", |s| s.admin.coalescing_disabled = vec![1, 1]),
    ("queues of a disabled controller", |s| {
        s.registers.csts = 0;
        s.admin.parked_events.clear();
    }),
];

/// By MiB: first, and how many.
fn ranges(of: &[(u64, u64)]) -> Vec<RangeV1> {
    of.iter().map(|(at, count)| RangeV1 { start_bytes: at << 20, len_bytes: count << 20 }).collect()
}

/// Every namespace was deleted, and these are still to be wiped.
fn left(state: &mut ControllerV1, of: &[(u64, u64)]) {
    state.record.namespaces.clear();
    state.record.to_wipe = ranges(of);
}

fn marked(state: &mut ControllerV1, runs: &[(u64, u64)]) {
    let mark = |(start_block, blocks): &(u64, u64)| MarkV1 { start_block: *start_block, blocks: *blocks };
    state.record.namespaces[0].marks = runs.iter().map(mark).collect();
}

/// Ours: docs/formats/controller-state.md, "What a reader checks".
#[test]
fn a_state_with_anything_wrong_is_refused_and_nothing_is_changed() {
    let good = used().controller.save(NOW);
    let there = other();
    let before = there.controller.save(NOW);
    for (what, change) in CHANGES {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(load_into(&there, &bad).is_err(), "{what}");
        assert!(there.controller.save(NOW) == before, "{what} has changed something");
    }
    let mut bad = good.clone();
    let slots = &mut bad.submission_queues[1].slots;
    slots[0].posting = Some(PostingV1 { phase: true, entry: [0; 16] });
    slots[0].position = 32;
    assert!(load_into(&there, &bad).is_err(), "position of an answer");
    let mut bad = good.clone();
    (bad.registers.csts, bad.completion_queues, bad.submission_queues) = (0, vec![], vec![]);
    assert!(load_into(&there, &bad).is_err(), "event requests of a disabled controller");
    // More commands than there are entries for their answers.
    let mut bad = good.clone();
    bad.completion_queues[1] = state::controller::CompletionQueueV1 { size: 2, ..bad.completion_queues[1] };
    assert!(load_into(&there, &bad).is_err(), "no entries");
    let text = |error: Refused| error.to_string();
    let mut of_another = good;
    of_another.identity.serial = *b"TEST-2              ";
    assert_eq!(
        text(load_into(&there, &of_another).expect_err("refused")),
        "the state is of another ssd: its serial number is \"TEST-2\", this one's is \"TEST-1\""
    );
}

/// Ours: what deletions leave is in their order; marks touch each other, and end with their namespace.
#[test]
fn a_record_with_all_that_a_controller_may_write_is_taken() {
    let good = used().controller.save(NOW);
    let mut state = good.clone();
    left(&mut state, &[(40, 24), (1, 2), (3, 1)]);
    // The capacity ended here before the ssd grew.
    state.record.to_wipe[1].len_bytes -= 4096;
    load_into(&other(), &state).expect("taken");
    let mut state = good;
    let end = state.record.namespaces[0].blocks;
    marked(&mut state, &[(0, 1), (1, 2), (end - 1, 1)]);
    load_into(&other(), &state).expect("taken");
}

/// Ours: a controller may be stopped in any state of its life in which it is quiet; a reset ends first.
#[test]
fn a_controller_in_any_state_of_its_life_saves_what_is_taken_and_is_the_same_there() {
    type Live = fn(&mut World);
    let lives: [(&str, Live); 8] = [
        ("powered on", |_| {}),
        ("ready", World::enable),
        ("disabled again", |world| {
            world.enable();
            world.submit(command(0x0c, 0, [0, 0]));
            world.pump();
            world.disable();
        }),
        ("shut down", |world| {
            world.enable();
            world.write32(reg::CC, 0x0046_4001);
            world.pump();
        }),
        ("shut down and disabled", |world| {
            world.enable();
            world.write32(reg::CC, 0x0046_4001);
            world.pump();
            world.disable();
        }),
        ("not enabled: no queues", |world| world.write32(reg::CC, 0x0046_0001)),
        ("failed: its admin queue is gone", |world| {
            world.enable();
            world.region.sqs[0].base.store(1 << 40, Relaxed);
            world.succeed();
        }),
        ("reset as a subsystem", |world| {
            world.enable();
            world.write32(reg::NSSR, 0x4e56_4d65);
            assert!(!world.controller.is_quiet(), "being reset: it is not stopped now");
            world.pump();
        }),
    ];
    for (what, live) in lives {
        let mut world = World::new();
        live(&mut world);
        world.pump();
        assert!(world.controller.is_quiet(), "{what}");
        let state = world.controller.save(NOW);
        let mut there = other();
        let record = load_into(&there, &state).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(found(&mut there, record, &state), state, "{what}");
    }
}

/// Ours: what a predecessor left half done is not seen by a state; it is finished before.
#[test]
fn a_controller_taken_over_is_quiet_only_when_it_has_gone_on() {
    let mut world = World::ready();
    world.controller.abandon();
    assert!(!world.successor().is_quiet());
    world.succeed();
    assert!(world.controller.is_quiet());
    assert_eq!(world.csts(), 0);
}

/// Ours: hostile inputs, row 21: whatever a client writes that can be read at all.
#[test]
fn a_state_with_any_bytes_changed_is_refused_or_makes_a_controller_that_can_be_reset() {
    let good = used().controller.save(NOW).to_bytes().expect("short");
    let (_, body) = envelope::open(MAGIC, VERSION, &good).expect("our own");
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) as usize % end
    };
    let (mut read, mut taken) = (0, 0);
    for _ in 0..3000 {
        let mut body = body.to_vec();
        for _ in 0..=below(3) {
            let at = below(body.len());
            body[at] = [0, 0xff, body[at] ^ 1 << below(8), body[at].wrapping_add(1)][below(4)];
        }
        let bytes = envelope::seal(MAGIC, VERSION, &body).expect("short");
        let Ok(state) = ControllerV1::from_bytes(&bytes) else { continue };
        read += 1;
        let mut there = World::ready();
        let Ok(record) = load_into(&there, &state) else { continue };
        taken += 1;
        assert_eq!(inspect(&there.region), Ok(()));
        there.host.records.push(record);
        there.succeed();
        there.controller.reset(NOW, &mut there.host);
        there.pump();
        there.enable();
        assert_eq!(there.csts() & 3, 1, "{state:?}");
    }
    assert!(read > 300 && taken > 100, "{read} {taken}");
}

/// Base 2.1, 3.1.4.5: as a function level reset, by whoever goes on.
#[test]
fn an_abandoned_controller_has_no_queues_and_its_reset_is_finished_by_the_next() {
    let mut world = used();
    world.controller.abandon();
    assert_eq!(inspect(&world.region), Ok(()));
    assert!(world.region.slots.iter().flatten().all(|slot| slot.word.load(Relaxed) & 3 == 0));
    world.succeed();
    world.pump();
    assert_eq!(world.read32(reg::CC), 0);
    assert_eq!(world.csts(), 0);
    world.enable();
    assert_eq!(world.csts() & 3, 1);
}
