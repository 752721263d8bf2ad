//! Random entries over random memory: no panic, one answer each, nothing outside (the drive of the tests asserts that).

use std::collections::HashMap;

use block::Fault;
use nvme::sink::GroupCommand;
use spec::nvme::{Command, NvmOpcode};
use zerocopy::FromBytes;

use crate::world::{DATA, ENTRIES, Mode, World};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn address(random: &mut Random) -> u64 {
    let page = DATA + random.below(64) * 4096;
    match random.below(12) {
        0 => random.next(),
        1 => page + random.below(4096),
        2 => 0,
        3 => page + 4096 - 8 * random.below(4),
        _ => page,
    }
}

fn command(random: &mut Random, cid: u16) -> Command {
    let words: [u64; 8] = core::array::from_fn(|_| random.next());
    let mut command = Command::read_from_bytes(zerocopy::IntoBytes::as_bytes(&words)).expect("64 bytes");
    let opcodes = [0, 1, 2, 2, 2, 4, 5, 8, 9, 12, 25, 0x7e];
    if !random.one_in(20) {
        command.cdw0 = spec::nvme::Cdw0::new();
        command.cdw0.set_opcode(opcodes[random.below(12) as usize]);
        if random.one_in(4) {
            command.cdw0.set_psdt(1);
            let kind = [0, 0, 1, 2, 3, 4][random.below(6) as usize] << 4;
            let len = [0, 16, 512, 4096, random.next() & 0xffff, 64][random.below(6) as usize];
            command.prp2 = len | kind << 56;
        } else {
            command.prp2 = address(random);
        }
        if random.one_in(8) {
            command.cdw0.set_fuse(1 + random.below(2) as u8);
        }
        command.prp1 = address(random);
        command.nsid = 1 + random.below(3) as u32;
        command.cdw11 = if random.one_in(10) {
            command.cdw11
        } else {
            4 * u32::from(command.nvm_opcode() == NvmOpcode::DatasetManagement)
        };
        command.cdw10 = if random.one_in(10) { command.cdw10 } else { random.below(4096) as u32 };
        command.cdw12 = if random.one_in(10) { command.cdw12 } else { random.below(300) as u32 };
    }
    command.cdw0.set_cid(cid);
    command
}

fn scribble(world: &World, random: &mut Random) {
    for _ in 0..16 {
        let word = if random.one_in(3) { random.next() } else { address(random) };
        let at = DATA + random.below(64) * 4096 + random.below(512) * 8;
        world.poke(at, &word.to_le_bytes());
    }
}

/// Base 2.1, 3.4: one completion a command; hostile inputs, rows 1, 6, 8, 10 and 13.
#[test]
fn every_random_command_is_answered_exactly_once_and_reaches_nothing_outside() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut world = World::with_segments(if seed % 3 == 0 { 3 } else { 257 });
        let mut waiting: HashMap<u16, u32> = HashMap::new();
        let mut cid = 0_u16;
        for _ in 0..400 {
            scribble(&world, &mut random);
            world.drive.mode = [Mode::AtOnce, Mode::Later, Mode::Later, Mode::Full][random.below(4) as usize];
            world.drive.fault = random.one_in(10).then_some(Fault::Media);
            let room = (ENTRIES as usize - 1).saturating_sub(waiting.len()) as u64;
            for _ in 0..random.below(room + 1) {
                cid = cid.wrapping_add(1);
                let command = command(&mut random, cid);
                world.put(&command);
                waiting.insert(cid, 1);
            }
            world.ring();
            world.turn();
            if random.one_in(20) {
                world.tell(GroupCommand::Lull { id: 2 });
                world.turn();
                if random.one_in(2) {
                    world.deliver();
                }
                if random.one_in(2) {
                    world.tell(GroupCommand::EndLull);
                }
            }
            if random.one_in(30) {
                world.drive.mode = Mode::AtOnce;
                world.tell(GroupCommand::Pause { id: 1 });
                world.deliver();
                world.turn();
                assert_eq!(world.group.in_flight(), 0);
                world.succeed();
            }
            if random.one_in(2) {
                world.drive.mode = Mode::AtOnce;
                world.tell(GroupCommand::EndLull);
                for completion in world.settle() {
                    assert_eq!(waiting.remove(&completion.cid), Some(1), "answered twice, or never asked");
                }
            }
        }
        world.drive.mode = Mode::AtOnce;
        world.drive.fault = None;
        world.tell(GroupCommand::EndLull);
        for _ in 0..20 {
            for completion in world.settle() {
                assert_eq!(waiting.remove(&completion.cid), Some(1), "answered twice, or never asked");
            }
        }
        assert!(waiting.is_empty(), "seed {seed}: {waiting:?} never answered");
        assert_eq!(world.group.in_flight(), 0);
    }
}
