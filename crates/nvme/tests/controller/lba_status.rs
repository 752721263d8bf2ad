//! Get LBA Status with action 02h, which blocks are allocated (NVM 1.1, 4.2.1.1.1).

use nvme::controller::Unsurveyed;
use nvme::profile::GODWIT_2;
use spec::nvme::{Command, Status};
use state::SsdV1;

use crate::random::Dice;
use crate::world::{CAPACITY_BYTES, World, command};

const BLOCKS: u64 = CAPACITY_BYTES / 512;
const COMPLETE: u8 = 2;
const INCOMPLETE: u8 = 1;

/// An enabled controller that tells what is allocated, and this is.
fn world(written: &[(u64, u64)]) -> World {
    let mut world = World::of(&GODWIT_2, &SsdV1::default());
    world.host.written = written.to_vec();
    world.enable();
    world
}

/// Of namespace 1, with room for so many descriptors.
fn get(slba: u64, rl: u16, room: u32) -> Command {
    let mut get = command(0x86, 1, [slba as u32, (slba >> 32) as u32]);
    (get.cdw12, get.cdw13) = (1 + 4 * room, 0x0200_0000 | u32::from(rl));
    get
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The list, as first blocks and ends, and its completion condition.
fn told(world: &World, room: u32) -> (Vec<(u64, u64)>, u8) {
    let list = world.data(8 + 16 * room as usize);
    assert_eq!(list[5..8], [0; 3]);
    let count = le(&list[..4]) as usize;
    let entry = |bytes: &[u8]| {
        assert_eq!((bytes[12], bytes[13], bytes[14], bytes[15]), (0, 0b010, 0, 0), "allocated");
        (le(&bytes[..8]), le(&bytes[..8]) + le(&bytes[8..12]) + 1)
    };
    let runs = list[8..].chunks_exact(16).take(count).map(entry).collect();
    assert!(list[8 + 16 * count..].iter().all(|byte| *byte == 0), "zeros after the last");
    (runs, list[4])
}

fn ask(world: &mut World, slba: u64, rl: u16, room: u32) -> (Vec<(u64, u64)>, u8) {
    world.set_data(&vec![0xee; 8 + 16 * room as usize]);
    let status = world.admin(get(slba, rl, room)).status;
    assert!(status.is_success(), "{status:?}");
    told(world, room)
}

/// NVM 1.1, 4.2.1 (RL 0 is the rest of the namespace) and 4.2.1.2 (CMPC).
#[test]
fn allocated_blocks_are_told_from_the_first_that_is_asked_for_to_the_last() {
    let mut world = world(&[(4096, 8192), (1 << 20, 2 << 20), (CAPACITY_BYTES - 512, CAPACITY_BYTES)]);
    let all = vec![(8, 16), (2048, 4096), (BLOCKS - 1, BLOCKS)];
    assert_eq!(ask(&mut world, 0, 0, 4), (all.clone(), COMPLETE));
    assert_eq!(ask(&mut world, 0, 0, 3), (all.clone(), COMPLETE), "and not one more");
    assert_eq!(ask(&mut world, 0, 0, 2), (all[..2].to_vec(), INCOMPLETE));
    assert_eq!(ask(&mut world, 10, 2, 4), (vec![(10, 12)], COMPLETE));
    assert_eq!(ask(&mut world, 15, 3000, 4), (vec![(15, 16), (2048, 3015)], COMPLETE));
    assert_eq!(ask(&mut world, 16, 2032, 4), (vec![], COMPLETE));
    assert_eq!(ask(&mut world, BLOCKS - 1, 1, 4), (vec![(BLOCKS - 1, BLOCKS)], COMPLETE));
    // No room for any: NLSD 0, and it is said that there is more, or nothing.
    assert_eq!(ask(&mut world, 0, 0, 0), (vec![], INCOMPLETE));
    assert_eq!(ask(&mut world, 16, 8, 0), (vec![], COMPLETE));
    // Nothing is looked for outside of what was asked.
    let look = world.host.looks[4];
    assert_eq!((look.start_bytes, look.len_bytes), (15 * 512, 3000 * 512));
}

/// NVM 1.1, 4.2.1.2: the fewest descriptors. A drive keeps its map in units of its own; a block of which anything is allocated, is.
#[test]
fn parts_of_blocks_are_blocks_and_neighbours_are_one_run() {
    let mut world = world(&[(100, 200), (300, 1100), (1600, 2048), (2048, 2049), (9000, 9001)]);
    assert_eq!(ask(&mut world, 0, 0, 8), (vec![(0, 5), (17, 18)], COMPLETE));
}

/// NVM 1.1, 2.1.1: Write Uncorrectable allocates. A copy without them would read as zeros what is to fail.
#[test]
fn blocks_marked_uncorrectable_are_allocated_wherever_they_lie() {
    let mut world = world(&[(4096, 8192)]);
    let ns = world.controller.namespaces().get(1).cloned().expect("there");
    for slba in [0, 16, 100, 200] {
        ns.marks.mark(ns.run_at(slba, 4).expect("inside")).expect("room");
    }
    assert_eq!(ask(&mut world, 0, 0, 8), (vec![(0, 4), (8, 20), (100, 104), (200, 204)], COMPLETE));
    assert_eq!(ask(&mut world, 102, 90, 8), (vec![(102, 104)], COMPLETE));
    let (runs, condition) = ask(&mut world, 0, 0, 2);
    assert_eq!((runs, condition), (vec![(0, 4), (8, 20)], INCOMPLETE));
}

/// NVM 1.1, 4.2.1; Base 2.1, 3.2.1.
#[test]
fn fields_that_cannot_be_are_refused_by_name() {
    let mut world = world(&[]);
    let status = |world: &mut World, get: Command| world.admin(get).status.bare();
    assert_eq!(status(&mut world, get(BLOCKS, 0, 1)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(status(&mut world, get(BLOCKS - 1, 2, 1)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(status(&mut world, get(u64::MAX, 0xffff, 1)), Status::LBA_OUT_OF_RANGE);
    // As much as MDTS, and a dword more.
    let mut long = get(0, 0, 1);
    long.cdw12 = (1 << 18) - 1;
    long.prp1 = 0x10_0000;
    long.prp2 = 0x30_0000;
    let list: Vec<u8> = (1..256_u64).flat_map(|page| (0x10_0000 + page * 4096).to_le_bytes()).collect();
    world.map.write_bytes(memory::Iova(0x30_0000), &list).expect("mapped");
    assert_eq!(status(&mut world, long), Status::SUCCESS);
    for mndw in [1 << 18, u32::MAX] {
        long.cdw12 = mndw;
        assert_eq!(status(&mut world, long), Status::INVALID_FIELD, "{mndw:#x}");
    }
    for (nsid, expected) in [
        (0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (33, Status::INVALID_NAMESPACE_OR_FORMAT),
        (u32::MAX, Status::INVALID_NAMESPACE_OR_FORMAT),
        (2, Status::INVALID_FIELD),
    ] {
        assert_eq!(status(&mut world, Command { nsid, ..get(0, 0, 1) }), expected, "{nsid:#x}");
    }
    assert_eq!(status(&mut world, Command { prp1: 0x10_0001, ..get(0, 0, 1) }), Status::PRP_OFFSET_INVALID);
    let looks = world.host.looks.len();
    let reserved = Command { cdw14: u32::MAX, cdw15: u32::MAX, ..get(0, 0, 1) };
    assert_eq!(
        status(&mut world, Command { cdw13: reserved.cdw13 | 0xff_0000, ..reserved }),
        Status::SUCCESS
    );
    assert_eq!(world.host.looks.len(), looks + 1);
}

/// Base 2.1, 8.1.24.4: not among the commands that are processed then.
#[test]
fn during_a_sanitize_nothing_is_told() {
    let mut world = world(&[]);
    world.host.full = true;
    assert_eq!(world.admin(command(0x84, 0, [2, 0])).status.bare(), Status::SUCCESS);
    assert_eq!(world.admin(get(0, 0, 1)).status.bare(), Status::SANITIZE_IN_PROGRESS);
    assert!(world.host.looks.is_empty());
}

/// Base 2.1, 4.2.3.1: Command Interrupted is to be tried again.
#[test]
fn a_map_that_cannot_be_read_now_is_asked_for_again_by_the_host() {
    let mut world = world(&[]);
    for (why, status, dnr) in [
        (Unsurveyed::Busy, Status::COMMAND_INTERRUPTED, false),
        (Unsurveyed::Failed, Status::INTERNAL_ERROR, false),
    ] {
        world.host.unsurveyed = Some(why);
        let got = world.admin(get(0, 0, 1)).status;
        assert_eq!((got.bare(), got.dnr()), (status, dnr));
    }
    world.host.unsurveyed = None;
    assert_eq!(ask(&mut world, 0, 0, 1), (vec![], COMPLETE));
}

/// Ours: docs/decisions/0041-profiles.md.
#[test]
fn one_look_is_taken_at_a_time_and_all_else_goes_on_meanwhile() {
    let mut world = world(&[(0, 512)]);
    world.host.frozen = true;
    let asked: Vec<u16> = (0..17).map(|_| world.submit(get(0, 0, 1))).collect();
    let identify = world.submit(command(0x06, 0, [1, 0]));
    world.pump();
    world.pump();
    assert_eq!(world.host.looks.len(), 1);
    assert!(!world.controller.is_quiet(), "it is not given away meanwhile");
    // One looks, fifteen wait; the next is told to come again.
    let entry = world.reap().expect("refused at once");
    assert_eq!((entry.cid, entry.status.bare()), (asked[16], Status::COMMAND_INTERRUPTED));
    assert_eq!(world.reap().expect("another command").cid, identify);
    assert!(world.reap().is_none());
    world.host.frozen = false;
    world.pump();
    for cid in &asked[..16] {
        let entry = world.reap().expect("answered, in order");
        assert_eq!((entry.cid, entry.status.bare()), (*cid, Status::SUCCESS));
    }
    assert_eq!(world.host.looks.len(), 16);
    assert!(world.controller.is_quiet());
}

/// Ours: docs/decisions/0041-profiles.md. Else a host that always has two of them under way could never be moved.
#[test]
fn between_two_looks_a_controller_can_be_made_to_stand_still() {
    let mut world = world(&[(0, 512)]);
    world.host.frozen = true;
    (0..3).for_each(|_| _ = world.submit(get(0, 0, 1)));
    for looks in 1..=3 {
        world.pump();
        assert_eq!((world.host.looks.len(), world.controller.is_quiet()), (looks, false));
        assert!(world.deliver());
        assert_eq!((world.host.looks.len(), world.controller.is_quiet()), (looks, true));
    }
    assert!((0..3).all(|_| world.reap().is_some()));
}

/// Base 2.1, 3.7.2; and ours: docs/decisions/0008-redelivery.md.
#[test]
fn a_reset_ends_a_look_and_a_successor_takes_it_again() {
    let mut world = world(&[(0, 512)]);
    world.host.frozen = true;
    world.submit(get(0, 0, 1));
    world.pump();
    let cid = world.submit(get(0, 1, 1));
    world.pump();
    // The process is killed before the map has answered.
    world.host.frozen = false;
    world.succeed();
    assert_eq!(world.host.looks.len(), 3);
    assert!(world.reap().expect("the first").status.is_success());
    assert_eq!(world.reap().expect("the second").cid, cid);
    world.host.frozen = true;
    world.submit(get(0, 0, 1));
    world.submit(get(0, 0, 1));
    world.pump();
    world.host.frozen = false;
    world.disable();
    world.enable();
    assert!(world.reap().is_none(), "what was asked before the reset is not answered");
    assert_eq!(ask(&mut world, 0, 0, 1), (vec![(0, 1)], COMPLETE));
}

/// Ours: docs/decisions/0041-profiles.md. A look may take long, and a host resets its controller as often as it likes.
#[test]
fn a_host_that_resets_its_controller_over_and_over_has_one_look_at_a_time() {
    let mut world = world(&[(0, 512)]);
    world.host.frozen = true;
    world.submit(get(0, 0, 1));
    world.pump();
    let look = world.host.take_answer().expect("it was taken");
    world.host.frozen = false;
    let mut last = 0;
    for _ in 0..5 {
        world.disable();
        world.enable();
        last = world.submit(get(0, 0, 1));
        world.pump();
        assert!(world.reap().is_none());
    }
    assert_eq!(world.host.looks.len(), 1);
    assert!(!world.controller.is_quiet());
    world.host.put_answer(look);
    world.pump();
    assert_eq!(world.host.looks.len(), 2);
    assert_eq!(world.reap().expect("of this life").cid, last);
    assert!(world.reap().is_none() && world.controller.is_quiet());
}

/// Ours: the answer to an old question is not one about another namespace's blocks.
#[test]
fn a_namespace_that_is_another_by_then_is_looked_at_again() {
    let mut world = world(&[(0, 512), (2 << 20, 3 << 20)]);
    world.host.frozen = true;
    let cid = world.submit(get(0, 0, 4));
    world.pump();
    // Deleted, while the look is under way.
    let look = world.host.take_answer().expect("it was taken");
    world.host.frozen = false;
    assert_eq!(world.admin(command(0x0d, 1, [1, 0])).status.bare(), Status::SUCCESS);
    world.host.put_answer(look);
    world.pump();
    let entry = world.reap().expect("answered");
    assert_eq!((entry.cid, entry.status.bare()), (cid, Status::INVALID_FIELD), "it is not there any more");
}

/// Ours: nor about blocks of another size. The whole namespace lies where it lay.
#[test]
fn a_namespace_that_has_other_blocks_by_then_is_looked_at_again() {
    let mut world = world(&[(0, 8192)]);
    world.host.frozen = true;
    let cid = world.submit(get(0, 0, 4));
    world.pump();
    let look = world.host.take_answer().expect("it was taken");
    world.host.frozen = false;
    assert_eq!(world.admin(command(0x80, 1, [1, 0])).status.bare(), Status::SUCCESS);
    world.host.put_answer(look);
    world.pump();
    let entry = world.reap().expect("answered");
    assert_eq!((entry.cid, entry.status.bare(), world.host.looks.len()), (cid, Status::SUCCESS, 2));
    assert_eq!(world.host.looks[0], world.host.looks[1]);
    assert_eq!(told(&world, 4), (vec![(0, 2)], COMPLETE));
}

/// NVM 1.1, 4.2.1.1.1. Whatever is allocated and marked: what is told in pages of any size is exactly that.
#[test]
fn pages_of_any_size_add_up_to_what_is_allocated() {
    for seed in 0..crate::random::seeds() {
        let mut dice = Dice(seed);
        let mut written = Vec::new();
        let (mut at, step) = (0, 1 + dice.below(1 << 20));
        loop {
            let start = at + dice.below(step);
            let end = start + 1 + dice.below(step);
            if end > CAPACITY_BYTES || written.len() > 300 {
                break;
            }
            written.push((start, end));
            at = end + dice.below(2) * dice.below(step) + 1;
        }
        let mut model = vec![false; BLOCKS as usize];
        for (start, end) in &written {
            model[(start / 512) as usize..end.div_ceil(512) as usize].fill(true);
        }
        let mut world = world(&written);
        let ns = world.controller.namespaces().get(1).cloned().expect("there");
        for _ in 0..dice.below(20) {
            let run = ns.run_at(dice.below(BLOCKS - 300), 1 + dice.below(300) as u32).expect("inside");
            ns.marks.mark(run).expect("room");
            model[run.start() as usize..run.end() as usize].fill(true);
        }
        for _ in 0..4 {
            let first = dice.below(BLOCKS);
            let rl = if dice.below(2) == 0 { 0 } else { (1 + dice.below(BLOCKS - first)).min(0xffff) as u16 };
            let end = if rl == 0 { BLOCKS } else { first + u64::from(rl) };
            let room = 1 + dice.below(200) as u32;
            let (mut at, mut found) = (first, vec![false; BLOCKS as usize]);
            for turn in 0.. {
                assert!(turn < 100_000, "seed {seed}: it goes on for ever");
                let rest = u16::try_from(end - at).unwrap_or(0);
                let (runs, condition) = ask(&mut world, at, if rl == 0 { 0 } else { rest }, room);
                let ascending = runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
                let inside = runs.iter().all(|(start, stop)| at <= *start && start < stop && *stop <= end);
                assert!(ascending && inside, "seed {seed}: {runs:?} of {at} to {end}");
                runs.iter().for_each(|(start, stop)| found[*start as usize..*stop as usize].fill(true));
                if condition == COMPLETE {
                    break;
                }
                at = runs.last().expect("room for one").1;
            }
            let range = first as usize..end as usize;
            assert!(found[range.clone()] == model[range], "seed {seed}: {first} to {end}");
        }
    }
}
