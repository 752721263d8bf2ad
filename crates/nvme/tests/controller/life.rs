//! Registers, enable, reset, shutdown (Base 2.1, 3.1.4, 3.5 to 3.7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use block::Now;
use memory::{Access, Iova};
use nvme::sink::{DoorbellError, GroupCommand, GroupEvent};
use spec::nvme::registers as reg;

use crate::world::{ACQ, ASQ, World, command};

/// Base 2.1, 3.1.4.1 and 3.1.4.2.
#[test]
fn cap_and_vs_say_what_the_profile_is() {
    let mut world = World::new();
    let cap = reg::Cap::from_bits(world.read64(reg::CAP));
    assert_eq!((cap.mqes_z(), cap.cqr(), cap.dstrd(), cap.nssrs()), (4095, true, 0, true));
    assert_eq!((cap.mpsmin(), cap.mpsmax(), cap.css()), (0, 0, 0x41));
    assert!(cap.to() > 0);
    assert_eq!(world.read32(reg::VS), 0x0002_0100);
    for none in [reg::CMBLOC, reg::CMBSZ, reg::BPINFO, reg::PMRCAP, reg::NSSD] {
        assert_eq!(world.read32(none), 0);
    }
}

/// Base 2.1, 3.1.4.8 to 3.1.4.10.
#[test]
fn admin_queue_registers_are_readable_while_enabled() {
    let mut world = World::ready();
    assert_eq!(world.read32(reg::AQA), 0x001f_001f);
    assert_eq!(world.read64(reg::ASQ), ASQ);
    assert_eq!(world.read64(reg::ACQ), ACQ);
    world.write64(reg::ASQ, 0x5000);
    assert_eq!(world.read64(reg::ASQ), ASQ, "not changed while enabled");
    assert_eq!(world.read(reg::ASQ + 1, 3), ASQ.to_le_bytes()[1..4]);
}

/// Base 2.1, 3.1.4.5 and 3.5.1; hostile inputs, row 14.
#[test]
fn enabling_with_a_field_out_of_its_range_is_fatal_and_a_reset_mends_it() {
    let wrong = [
        0x0046_0081, // MPS
        0x0046_0801, // AMS
        0x0046_0071, // CSS: admin only
        0x0046_0011, // CSS: reserved
        0x0045_0001, // IOSQES
        0x0036_0001, // IOCQES
        0x0146_0001, // CRIME
    ];
    for cc in wrong {
        let mut world = World::new();
        world.set_queues(32, 32);
        world.write32(reg::CC, cc);
        assert_eq!(world.csts() & 3, 2, "{cc:#x}");
        world.disable();
        assert_eq!(world.csts() & 3, 0);
        world.enable();
        assert_eq!(world.csts() & 3, 1);
    }
}

/// Base 2.1, 3.1.4.8 to 3.1.4.10 and 3.5.1; hostile inputs, row 2.
#[test]
fn an_admin_queue_of_one_entry_unaligned_or_unmapped_is_fatal() {
    let cases = [(0, ASQ, ACQ), (0x1f_0000, ASQ, ACQ), (0x1f_001f, ASQ + 8, ACQ), (0x1f_001f, 1 << 40, ACQ)];
    for (aqa, asq, acq) in cases {
        let mut world = World::new();
        world.write32(reg::AQA, aqa);
        world.write64(reg::ASQ, asq);
        world.write64(reg::ACQ, acq);
        world.write32(reg::CC, 0x0046_0001);
        assert_eq!(world.csts() & 3, 2, "{aqa:#x} {asq:#x}");
    }
}

/// Base 2.1, 3.7.2: RDY says when the reset is over.
#[test]
fn a_reset_ends_when_the_groups_have_ended_and_zeroes_the_doorbells() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    world.host.frozen = true;
    world.write32(reg::CC, 0x0046_0000);
    assert_eq!(world.csts() & 1, 1, "ready until the groups are done");
    assert!(!world.controller.is_quiet());
    world.host.frozen = false;
    world.pump();
    assert_eq!(world.csts() & 1, 0);
    assert!(world.controller.is_quiet());
    assert_eq!((0..8).map(|i| world.doorbells.load(i)).sum::<u32>(), 0);
    assert!(world.reap().is_none(), "the parked request {aer} is dropped, not answered");
    world.enable();
    assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
}

/// Ours: Base 2.1, 3.5.1 forbids the host to do this, and it must not hang for it.
#[test]
fn enabling_again_before_the_reset_has_ended_is_not_lost() {
    let mut world = World::ready();
    world.host.frozen = true;
    world.write32(reg::CC, 0x0046_0000);
    world.write32(reg::CC, 0x0046_0001);
    world.host.frozen = false;
    world.set_queues(32, 32);
    world.pump();
    assert_eq!(world.csts() & 1, 1);
    assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
}

/// Base 2.1, 3.6 and 3.1.4.6 (SHST).
#[test]
fn a_shutdown_drains_flushes_records_and_then_reports() {
    for shn in [1 << 14, 2 << 14] {
        let mut world = World::ready();
        world.write32(reg::CC, 0x0046_0001 | shn);
        assert_eq!(world.csts() >> 2 & 3, 1);
        world.pump();
        assert_eq!(world.csts() >> 2 & 3, 2);
        assert!(world.host.ops.contains(&block::Op::Flush));
        assert!(world.host.records.last().expect("persisted").clean);
        world.submit(command(0x18, 0, [0, 0]));
        world.pump();
        assert!(world.reap().is_none(), "no command is taken after a shutdown");
        world.disable();
        assert_eq!(world.csts() >> 2 & 3, 0);
        world.enable();
        assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
        assert!(!world.host.records.last().expect("persisted").clean);
        let released =
            world.host.commands.iter().filter(|c| matches!(c, GroupCommand::Release { .. })).count();
        let held = world.host.commands.iter().filter(|c| matches!(c, GroupCommand::Hold { .. })).count();
        assert_eq!(released, held, "no queue made later is still held");
    }
}

/// Base 2.1, 3.7.1, 3.1.4.7 and 3.1.4.6 (NSSRO).
#[test]
fn a_subsystem_reset_clears_every_property_and_says_so() {
    let mut world = World::ready();
    world.write32(reg::NSSR, 0x1234);
    assert_eq!(world.csts() & 1, 1);
    world.write32(reg::NSSR, reg::NSSR_RESET);
    world.pump();
    assert_eq!(world.csts(), 1 << 4, "NSSRO");
    assert_eq!((world.read32(reg::CC), world.read32(reg::AQA), world.read64(reg::ASQ)), (0, 0, 0));
    world.write32(reg::CSTS, 1 << 4);
    assert_eq!(world.csts(), 0);
}

/// Base 2.1, 3.7.2: a function level reset is a Controller Level Reset.
#[test]
fn a_function_level_reset_disables_the_controller_and_resets_configuration_space() {
    let mut world = World::ready();
    let now = block::Now(0);
    world.controller.config_write(4, &[6, 4], now, &mut world.host);
    world.controller.config_write(0x69, &[0x80], now, &mut world.host);
    world.pump();
    let mut command_register = [0; 2];
    world.controller.config_read(4, &mut command_register);
    assert_eq!(command_register, [0, 0]);
    assert_eq!((world.read32(reg::CC), world.csts()), (0, 0));
    world.enable();
    assert_eq!(world.csts() & 3, 1);
}

/// PCIe 1.1, 3.1: an access of another size or alignment has undefined results, and does no harm; hostile inputs, row 14.
#[test]
fn registers_survive_every_size_and_alignment_of_access() {
    let mut world = World::ready();
    for offset in (0..0x60).chain(0xdf8..0xe20).chain(0xff0..0x1020).chain(0x3ff0..0x4010) {
        for len in 1..=8 {
            let whole = world.read(offset, len);
            for (at, byte) in whole.iter().enumerate() {
                assert_eq!(world.read(offset + at as u64, 1)[0], *byte);
            }
            for value in [0, 0xff, 0x55] {
                world.write(offset, &vec![value; len]);
            }
            world.pump();
        }
    }
    world.controller.bar_read(nvme::controller::Bar::Msix, u64::MAX - 2, &mut [0; 8]);
    world.read(u64::MAX - 3, 8);
    world.write(u64::MAX - 3, &[0; 8]);
    world.write32(reg::CC, 0);
    world.pump();
    world.enable();
    assert_eq!(world.csts() & 3, 1);
}

/// PCIe 1.1, 3.5; Base 2.1, 3.1.4.3 and 3.1.4.4.
#[test]
fn the_interrupt_line_follows_the_completion_queue_and_the_mask() {
    let mut world = World::ready();
    assert!(!world.controller.intx_pending());
    world.submit(command(0x18, 0, [0, 0]));
    world.pump();
    assert!(world.controller.intx_pending());
    assert!(world.host.interrupts.contains(&0));
    world.write32(reg::INTMS, 1);
    assert!(!world.controller.intx_pending());
    assert_eq!(world.read32(reg::INTMC), 1);
    world.write32(reg::INTMC, 1);
    assert!(world.controller.intx_pending());
    world.reap();
    assert!(!world.controller.intx_pending());
}

/// Ours: docs/formats/controller-region.md.
#[test]
fn a_successor_goes_on_with_the_region_it_finds() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
    world.succeed();
    assert_eq!(world.csts() & 3, 1);
    assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
    // The request parked in the predecessor is answered by the successor.
    world
        .event(nvme::sink::GroupEvent::InvalidDoorbell { qid: 3, kind: nvme::sink::DoorbellError::Register });
    let event = world.reap().expect("an event");
    assert_eq!((event.cid, event.dw0), (aer, 0x0001_0000));
}

/// Base 2.1, 3.9 and 5.1.14.
#[test]
fn an_expired_keep_alive_timer_is_fatal() {
    let mut world = World::ready();
    assert!(world.admin(command(0x09, 0, [0x0f, 1500])).status.is_success());
    assert_eq!(world.controller.deadline(), Some(block::Now(2_000_000_000)), "rounded to the granularity");
    world.now = 1_900_000_000;
    assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
    world.now = 3_800_000_000;
    world.pump();
    assert_eq!(world.csts() & 2, 0);
    world.now = 3_900_000_001;
    world.pump();
    assert_eq!(world.csts() & 2, 2);
}

/// Base 2.1, 3.1.4.8 (two entries are a queue) and 5.1.2 (a request has no timeout).
#[test]
fn a_parked_event_request_leaves_room_in_the_smallest_queue() {
    let mut world = World::new();
    world.set_queues(2, 2);
    world.write32(reg::CC, 0x0046_0001);
    world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    for _ in 0..5 {
        assert!(world.admin(command(0x18, 0, [0, 0])).status.is_success());
    }
}

/// Base 2.1, 3.3.1.2.2: no entry goes to a completion queue that is full. An event request holds no entry, the command behind it
/// does: a successor must not give that one away.
#[test]
fn a_successor_leaves_the_only_completion_queue_entry_to_the_command_that_had_it() {
    let mut world = World::new();
    world.entries = 2;
    world.enable();
    let event = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    world.host.frozen = true;
    let format = world.submit(command(0x80, 1, [0, 0]));
    world.pump();
    world.event(GroupEvent::InvalidDoorbell { qid: 1, kind: DoorbellError::Value });
    assert!(world.reap().is_none(), "the format has the entry");
    world.host.frozen = false;
    world.succeed();
    for cid in [format, event] {
        assert_eq!(world.reap().expect("an answer").cid, cid);
        world.pump();
    }
    assert!(world.reap().is_none());
}

/// A client without descriptors: whether it takes what is written, and the last entry it took.
#[derive(Default)]
struct Fussy(AtomicBool, AtomicU32);

impl memory::Remote for Fussy {
    fn read(&self, _: Iova, _: &mut [u8]) -> Result<(), memory::Fault> {
        Err(memory::Fault::Unmapped)
    }

    fn write(&self, _: Iova, src: &[u8]) -> Result<(), memory::Fault> {
        if !self.0.load(Ordering::Relaxed) {
            return Err(memory::Fault::Unmapped);
        }
        // Dword 3 ends the entry.
        let last = src.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        self.1.store(last, Ordering::Relaxed);
        Ok(())
    }
}

/// Ours: docs/formats/controller-region.md.
#[test]
fn an_admin_answer_that_the_client_does_not_take_is_tried_again() {
    let mut world = World::new();
    let client = Arc::new(Fussy::default());
    let map = world.map.with(Iova(1 << 40), 4096, Access::BOTH, None).expect("a region");
    let map = Arc::new(map.with_remote(Arc::clone(&client) as Arc<dyn memory::Remote>));
    world.controller.memory(map, Now(0), &mut world.host);
    world.set_queues(32, 32);
    world.write64(reg::ACQ, 1 << 40);
    world.write32(reg::CC, 0x0046_0001);
    world.pump();
    assert_eq!(world.csts() & 3, 1);
    let cid = world.submit(command(0x06, 0, [1, 0]));
    world.pump();
    assert_eq!(client.1.load(Ordering::Relaxed), 0);
    assert_eq!(world.controller.deadline(), Some(Now(1_000_000)), "nobody rings for what is late");
    client.0.store(true, Ordering::Relaxed);
    world.now = 1_000_000;
    world.host.interrupts.clear();
    world.pump();
    assert_eq!(client.1.load(Ordering::Relaxed), 1 << 16 | u32::from(cid), "success, with the first phase");
    assert_eq!((world.host.interrupts.len(), world.controller.deadline()), (1, None));
}
