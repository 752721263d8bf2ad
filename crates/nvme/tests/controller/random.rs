//! Anything a guest may send (hostile inputs, rows 2 to 7 and 11 to 14): no panic, and one completion a command.

use std::collections::HashSet;

use nvme::profile::GODWIT_2;
use nvme::sink::{DoorbellError, GroupEvent};
use spec::nvme::Command;
use spec::nvme::registers as reg;
use state::SsdV1;

use crate::world::{DATA, RAM_BYTES, World};

/// More by `GODWIT_SEEDS`.
pub(crate) fn seeds() -> u64 {
    std::env::var("GODWIT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Small, at an end, or anything.
    fn field(&mut self) -> u32 {
        match self.below(6) {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << self.below(32),
            3 => self.next() as u32,
            _ => self.below(40) as u32,
        }
    }

    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => u64::MAX - self.below(9000),
            2 => RAM_BYTES - self.below(9000),
            3 => DATA + self.below(9000),
            _ => DATA + self.below(64) * 4096,
        }
    }

    fn command(&mut self) -> Command {
        let known = [0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc, 0xd, 0x14, 0x15, 0x18, 0x7c, 0x80, 0x84, 0x86];
        let opcode = if self.below(10) == 0 {
            self.next() as u8
        } else {
            known[self.below(known.len() as u64) as usize]
        };
        let mut command = Command {
            nsid: if self.below(2) == 0 { 0 } else { self.field() },
            prp1: self.address(),
            prp2: self.address(),
            cdw10: self.field(),
            cdw11: self.field(),
            cdw12: if self.below(2) == 0 { 0 } else { self.field() },
            cdw13: if self.below(2) == 0 { 0 } else { self.field() },
            cdw14: if self.below(4) > 0 { 0 } else { self.field() },
            ..Command::default()
        };
        command.cdw0.set_opcode(opcode);
        if opcode == 0x86 && self.below(4) > 0 {
            command.cdw13 = command.cdw13 & 0xffff | [0x02, 0x10, 0x11][self.below(3) as usize] << 24;
        }
        if self.below(30) == 0 {
            command.cdw0.set_fuse(self.below(4) as u8);
            command.cdw0.set_psdt(self.below(4) as u8);
        }
        command
    }
}

/// Random data where commands look for theirs: structures with plausible and wild fields.
fn scatter(world: &World, dice: &mut Dice) {
    let mut page = vec![0; 4096];
    for _ in 0..dice.below(12) {
        let at = dice.below(512) as usize;
        page[at] = dice.next() as u8;
    }
    if dice.below(2) == 0 {
        page[..16].fill(0);
        (page[0], page[8]) = (1, 1);
    }
    world.map.write_bytes(memory::Iova(DATA + dice.below(64) * 4096), &page).expect("mapped");
}

/// Base 2.1, 3.4: one completion a command; hostile inputs, rows 2 to 7 and 11 to 13.
#[test]
fn random_admin_commands_are_each_answered_exactly_once() {
    for seed in 0..seeds() {
        let mut dice = Dice(seed);
        let mut world = World::of(&GODWIT_2, &SsdV1::default());
        world.enable();
        (world.host.at_once, world.host.full) = (dice.below(2) == 0, false);
        let mut owed = HashSet::new();
        for _ in 0..300 {
            scatter(&world, &mut dice);
            let command = dice.command();
            let cid = world.submit(command);
            owed.insert(cid);
            if dice.below(20) == 0 {
                world.host.fault = (dice.below(3) == 0).then_some(block::Fault::Media);
                world.host.persist_ok = dice.below(4) != 0;
            }
            world.host.full = dice.below(20) == 0;
            world.pump();
            world.host.full = false;
            world.pump();
            while let Some(entry) = world.reap() {
                assert!(owed.remove(&entry.cid), "seed {seed}: {} answered twice", entry.cid);
            }
        }
        assert!(owed.len() <= 16, "seed {seed}: only event requests stay, {owed:?}");
        assert!(world.controller.is_quiet(), "seed {seed}");
    }
}

/// Base 2.1, 3.7.2: a reset mends everything; hostile inputs, rows 11 and 14.
#[test]
fn random_events_resets_and_register_writes_leave_a_controller_that_can_be_enabled() {
    for seed in 0..seeds() {
        let mut dice = Dice(seed + 1_000_000);
        let mut world = World::of(&GODWIT_2, &SsdV1::default());
        world.enable();
        for _ in 0..200 {
            match dice.below(14) {
                0 => {
                    world.write32(reg::CC, 0x0046_0000 | dice.below(2) as u32 | (dice.below(4) as u32) << 14)
                }
                1 => world.write32(reg::CC, dice.next() as u32),
                2 => {
                    let len = 1 + dice.below(8) as usize;
                    let data: Vec<u8> = (0..len).map(|_| dice.next() as u8).collect();
                    let offset = dice.below(0x1100);
                    world.write(offset, &data);
                    world.read(dice.below(0x4100), len);
                }
                3 => world.write32(reg::NSSR, reg::NSSR_RESET),
                4 => {
                    let bytes = dice.next().to_le_bytes();
                    let at = dice.below(0x110) as u16;
                    world.controller.config_write(
                        at,
                        &bytes[..1 + dice.below(8) as usize],
                        block::Now(world.now),
                        &mut world.host,
                    );
                }
                5 => world.event(GroupEvent::InvalidDoorbell {
                    qid: dice.next() as u16,
                    kind: DoorbellError::Value,
                }),
                6 => world.event(GroupEvent::WantExclusive {
                    ticket: dice.below(4) as u32,
                    nsid: 1,
                    sqid: dice.next() as u16,
                }),
                7 => world.event(GroupEvent::ExclusiveDone { ticket: dice.below(4) as u32 }),
                8 => world.event(GroupEvent::Acknowledged { id: dice.below(50) as u32 }),
                9 => world.event(GroupEvent::SqDeleted { sqid: dice.below(4) as u16 }),
                10 => world.event(GroupEvent::WantPersist { ticket: 1 }),
                11 => {
                    world.now += dice.below(1 << 32);
                    world.succeed();
                }
                12 => {
                    world.host.frozen = !world.host.frozen;
                    world.pump();
                }
                _ => {
                    let command = dice.command();
                    world.submit(command);
                    world.pump();
                }
            }
        }
        world.host.frozen = false;
        // Awake again, exclusive commands done, reset: whatever happened, this must work.
        let now = block::Now(world.now);
        world.controller.config_write(0x44, &[0], now, &mut world.host);
        (0..4).for_each(|ticket| world.event(GroupEvent::ExclusiveDone { ticket }));
        world.controller.reset(now, &mut world.host);
        world.pump();
        assert_eq!(world.csts() & 0xf, 0, "seed {seed}");
        world.entries = crate::world::ENTRIES;
        world.enable();
        assert_eq!(world.csts() & 3, 1, "seed {seed}");
        let keep_alive = crate::world::command(0x18, 0, [0, 0]);
        assert!(world.admin(keep_alive).status.is_success(), "seed {seed}");
    }
}
