//! Admin commands, one test a promise (Base 2.1, 5; NVM 1.1, 4).

use nvme::sink::{DoorbellError, GroupEvent};
use nvme::watch::Watch;
use spec::nvme::identify::{IdentifyController, IdentifyNamespace};
use spec::nvme::log::{CommandsSupportedAndEffects, ErrorInformation, SmartHealth};
use spec::nvme::registers as reg;
use spec::nvme::{Command, Status};
use zerocopy::FromBytes;

use crate::world::{DATA, World, command};

fn create_cq(qid: u16, entries: u32) -> Command {
    let mut create = command(0x05, 0, [(entries - 1) << 16 | u32::from(qid), 0b11]);
    create.prp1 = 0x20_0000 + u64::from(qid) * 0x1_0000;
    create
}

fn create_sq(qid: u16, cqid: u16, entries: u32) -> Command {
    let mut create = command(0x01, 0, [(entries - 1) << 16 | u32::from(qid), u32::from(cqid) << 16 | 1]);
    create.prp1 = 0x30_0000 + u64::from(qid) * 0x1_0000;
    create
}

fn delete(opcode: u8, qid: u16) -> Command {
    command(opcode, 0, [u32::from(qid), 0])
}

fn log(lid: u32, bytes: u32) -> Command {
    command(0x02, 0xffff_ffff, [(bytes / 4 - 1) << 16 | lid, 0])
}

#[track_caller]
fn fails(world: &mut World, command: Command, status: Status) {
    assert_eq!(world.admin(command).status.bare(), status);
}

#[track_caller]
fn succeeds(world: &mut World, command: Command) -> u32 {
    let entry = world.admin(command);
    assert!(entry.status.is_success(), "{:?}", entry.status);
    entry.dw0
}

/// Ours: docs/decisions/0028. What is looked at in the place of a controller says what the controller says.
#[test]
fn a_watch_hears_both_doorbells_of_the_admin_queue() {
    let mut world = World::ready();
    let watch_of = |world: &mut World| {
        world.pump();
        assert!(world.controller.rest());
        let mut watch = Watch::default();
        watch.begin(&world.doorbells);
        world.controller.watch(&mut watch);
        assert_eq!((watch.rang(), world.controller.rang()), (Some(false), false));
        watch
    };
    let watch = watch_of(&mut world);
    world.submit(log(0x02, 512));
    assert_eq!((watch.rang(), world.controller.rang()), (Some(true), true), "a command");
    let watch = watch_of(&mut world);
    assert!(world.reap().is_some());
    assert_eq!((watch.rang(), world.controller.rang()), (Some(true), true), "room in the completion queue");
}

/// Base 2.1, 5.2.1 and 5.2.2; hostile inputs, rows 2 and 3.
#[test]
fn every_wrong_queue_creation_has_its_own_status() {
    let mut world = World::ready();
    let with = |mut c: Command, f: &dyn Fn(&mut Command)| {
        f(&mut c);
        c
    };
    let cq = create_cq(1, 16);
    fails(&mut world, with(cq, &|c| c.cdw10 &= !0xffff), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, with(cq, &|c| c.cdw10 |= 0xffff), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, create_cq(129, 16), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, create_cq(1, 1), Status::INVALID_QUEUE_SIZE);
    fails(&mut world, create_cq(1, 4097), Status::INVALID_QUEUE_SIZE);
    fails(&mut world, with(cq, &|c| c.cdw10 |= 0xffff_0000), Status::INVALID_QUEUE_SIZE);
    fails(&mut world, with(cq, &|c| c.cdw11 = 2), Status::INVALID_FIELD);
    fails(&mut world, with(cq, &|c| c.cdw11 |= 1 << 16), Status::INVALID_INTERRUPT_VECTOR);
    fails(&mut world, with(cq, &|c| c.prp1 += 8), Status::PRP_OFFSET_INVALID);
    fails(&mut world, with(cq, &|c| c.prp1 = 1 << 50), Status::DATA_TRANSFER_ERROR);
    fails(&mut world, with(cq, &|c| c.nsid = 1), Status::INVALID_FIELD);
    succeeds(&mut world, cq);
    fails(&mut world, cq, Status::INVALID_QUEUE_IDENTIFIER);
    let sq = create_sq(1, 1, 16);
    fails(&mut world, create_sq(1, 2, 16), Status::COMPLETION_QUEUE_INVALID);
    fails(&mut world, create_sq(1, 0, 16), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, create_sq(1, 500, 16), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, create_sq(0, 1, 16), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, create_sq(1, 1, 1), Status::INVALID_QUEUE_SIZE);
    fails(&mut world, with(sq, &|c| c.cdw11 &= !1), Status::INVALID_FIELD);
    // NVMSETID means nothing without SQ Associations.
    succeeds(&mut world, with(sq, &|c| c.cdw12 = 7));
    fails(&mut world, sq, Status::INVALID_QUEUE_IDENTIFIER);
    succeeds(&mut world, create_sq(2, 1, 4096));
}

/// Base 2.1, 5.2.1 to 5.2.4 and 5.1.25.2.1: every queue pair that is granted can be made, deep ones too, and made again.
#[test]
fn all_queue_pairs_that_are_granted_can_be_created_and_deleted() {
    let mut world = World::ready();
    assert_eq!(succeeds(&mut world, command(0x09, 0, [7, 0xfffe_fffe])), 0x007f_007f);
    for _ in 0..2 {
        for qid in 1..=128 {
            let mut cq = create_cq(qid, 4096);
            let mut sq = create_sq(qid, qid, if qid % 2 == 0 { 4096 } else { 2 });
            (cq.prp1, sq.prp1) = (0x20_0000, 0x30_0000);
            succeeds(&mut world, cq);
            succeeds(&mut world, sq);
        }
        fails(&mut world, create_cq(129, 16), Status::INVALID_QUEUE_IDENTIFIER);
        for qid in 1..=128 {
            succeeds(&mut world, delete(0x00, qid));
            succeeds(&mut world, delete(0x04, qid));
        }
    }
}

/// Base 2.1, 5.2.3 and 5.2.4; hostile inputs, row 3.
#[test]
fn a_completion_queue_outlives_its_submission_queues() {
    let mut world = World::ready();
    succeeds(&mut world, create_cq(1, 16));
    succeeds(&mut world, create_sq(1, 1, 16));
    fails(&mut world, delete(0x04, 1), Status::INVALID_QUEUE_DELETION);
    fails(&mut world, delete(0x00, 0), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, delete(0x00, 2), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, delete(0x04, 0), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, delete(0x04, 0xffff), Status::INVALID_QUEUE_IDENTIFIER);
    succeeds(&mut world, delete(0x00, 1));
    fails(&mut world, delete(0x00, 1), Status::INVALID_QUEUE_IDENTIFIER);
    succeeds(&mut world, delete(0x04, 1));
}

/// Base 2.1, 5.1.13.2.1.
#[test]
fn identify_controller_says_what_is_implemented() {
    let mut world = World::ready();
    succeeds(&mut world, command(0x06, 0, [1, 0]));
    let page = IdentifyController::read_from_bytes(&world.data(4096)).expect("a page");
    assert_eq!((page.vid, page.cntrltype, page.sqes, page.cqes, page.mdts), (0x676f, 1, 0x66, 0x44, 8));
    assert_eq!(page.ver.into_bits(), world.read32(reg::VS));
    assert_eq!(&page.sn, b"TEST-1              ");
    assert!(page.subnqn.starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!((page.nn, page.fuses, page.vwc.vwcp()), (32, 1, true));
    assert_eq!(u128::from(page.tnvmcap), u128::from(crate::world::CAPACITY_BYTES));
    assert_eq!(u128::from(page.unvmcap), 0);
    succeeds(&mut world, log(5, 4096));
    let effects = CommandsSupportedAndEffects::read_from_bytes(&world.data(4096)).expect("a page");
    let oacs = page.oacs;
    let claimed = [(0x80, oacs.fnvms()), (0x0d, oacs.nms()), (0x14, oacs.dsts()), (0x7c, oacs.dbcs())];
    for (opcode, said) in
        claimed.into_iter().chain([(0x10, oacs.fwds()), (0x81, oacs.ssrs()), (0x19, oacs.dirs())])
    {
        assert_eq!(effects.acs[opcode].csupp(), said, "{opcode:#x}");
    }
}

/// Base 2.1, 5.1.12.1.6 and 4.2.3.1; hostile inputs, row 13.
#[test]
fn commands_supported_and_effects_lists_exactly_what_is_not_an_invalid_opcode() {
    let mut world = World::ready();
    succeeds(&mut world, log(5, 4096));
    let effects = CommandsSupportedAndEffects::read_from_bytes(&world.data(4096)).expect("a page");
    for opcode in 0..=255_u8 {
        let mut any = command(opcode, 0, [0xffff_ffff, 0xffff_ffff]);
        any.cdw0.set_fuse(1);
        let status = world.admin(any).status;
        assert!(status.dnr());
        let expected = if effects.acs[usize::from(opcode)].csupp() {
            Status::INVALID_FIELD
        } else {
            Status::INVALID_OPCODE
        };
        assert_eq!(status.bare(), expected, "{opcode:#x}");
    }
}

/// Base 2.1, 5.1.13 and 3.2.1; NVM 1.1, 4.1.5; hostile inputs, rows 6 and 12.
#[test]
fn identify_tells_invalid_inactive_and_unsupported_apart() {
    let mut world = World::ready();
    succeeds(&mut world, command(0x06, 1, [0, 0]));
    let ns = IdentifyNamespace::read_from_bytes(&world.data(4096)).expect("a page");
    assert_eq!(
        (ns.nsze, ns.ncap, ns.nlbaf_z, ns.lbaf[0].lbads, ns.lbaf[1].lbads),
        (131_072, 131_072, 1, 9, 12)
    );
    assert!(ns.eui64 != [0; 8] && ns.nguid != [0; 16]);
    succeeds(&mut world, command(0x06, 2, [0, 0]));
    assert_eq!(world.data(4096), vec![0; 4096], "inactive: zeros");
    for nsid in [0, 33, 0xffff_fffe] {
        fails(&mut world, command(0x06, nsid, [0, 0]), Status::INVALID_NAMESPACE_OR_FORMAT);
    }
    succeeds(&mut world, command(0x06, 0xffff_ffff, [0, 0]));
    for cns in [2, 7, 0x10] {
        succeeds(&mut world, command(0x06, 0, [cns, 0]));
        assert_eq!(world.data(8), [1, 0, 0, 0, 0, 0, 0, 0]);
        succeeds(&mut world, command(0x06, 1, [cns, 0]));
        assert_eq!(world.data(4), [0; 4]);
        fails(&mut world, command(0x06, 0xffff_ffff, [cns, 0]), Status::INVALID_NAMESPACE_OR_FORMAT);
    }
    succeeds(&mut world, command(0x06, 1, [3, 0]));
    let ids = world.data(64);
    assert_eq!(
        (ids[0], ids[1], ids[12], ids[13], ids[32], ids[33], ids[52], ids[53]),
        (1, 8, 2, 16, 3, 16, 4, 1)
    );
    fails(&mut world, command(0x06, 2, [3, 0]), Status::INVALID_NAMESPACE_OR_FORMAT);
    for cns in [5, 6, 8, 0x11, 0x12, 0x13, 0x1c] {
        succeeds(&mut world, command(0x06, 1, [if cns == 0x1c { 0xffff_001c } else { cns }, 0]));
    }
    fails(&mut world, command(0x06, 1, [5, 2 << 24]), Status::INVALID_FIELD);
    for cns in [4, 9, 0x14, 0x15, 0x17, 0x20, 0x21, 0xff] {
        fails(&mut world, command(0x06, 1, [cns, 0]), Status::INVALID_FIELD);
    }
}

/// Base 2.1, 4.3.1; hostile inputs, row 8.
#[test]
fn data_pointers_are_checked_and_may_cross_a_page() {
    let mut world = World::ready();
    let mut identify = command(0x06, 0, [1, 0]);
    identify.prp1 = DATA + 0x800;
    identify.prp2 = DATA + 0x3000;
    succeeds(&mut world, identify);
    let data = world.data(0x3800);
    assert_eq!(data[0x800], 0x6f);
    assert_eq!(data[0x3000..0x3004], [196, 9, 0, 0], "byte 2048: the first power state, 25 W");
    for (prp1, prp2, status, location) in [
        (DATA + 0x802, DATA, Status::PRP_OFFSET_INVALID, 24),
        (DATA + 0x800, DATA + 8, Status::PRP_OFFSET_INVALID, 32),
        (0, DATA, Status::INVALID_FIELD, 24),
        (DATA + 0x800, 0, Status::INVALID_FIELD, 32),
        (1 << 60, 0, Status::DATA_TRANSFER_ERROR, 0xffff),
        (DATA + 0x800, 1 << 60, Status::DATA_TRANSFER_ERROR, 0xffff),
        (u64::MAX - 3, 0, Status::DATA_TRANSFER_ERROR, 0xffff),
    ] {
        (identify.prp1, identify.prp2) = (prp1, prp2);
        fails(&mut world, identify, status);
        succeeds(&mut world, log(1, 64));
        let entry = ErrorInformation::read_from_bytes(&world.data(64)).expect("an entry");
        assert_eq!(entry.parameter_error_location, location, "{prp1:#x} {prp2:#x}");
    }
    let mut sgl = command(0x06, 0, [1, 0]);
    sgl.cdw0.set_psdt(1);
    fails(&mut world, sgl, Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.12; hostile inputs, row 12.
#[test]
fn log_pages_refuse_what_the_section_names() {
    let mut world = World::ready();
    for lid in [0, 1, 2, 3, 4, 5, 6, 0x12, 0x81] {
        succeeds(&mut world, log(lid, 512));
    }
    for lid in [7, 9, 0xd, 0x13, 0x70, 0x80, 0xc0] {
        fails(&mut world, log(lid, 512), Status::INVALID_LOG_PAGE);
    }
    let mut page = log(2, 4096);
    succeeds(&mut world, page);
    assert_eq!(world.data(4096)[512..], [0; 3584], "past the end there are zeros");
    page.cdw12 = 3;
    fails(&mut world, page, Status::INVALID_FIELD);
    page.cdw12 = 516;
    fails(&mut world, page, Status::INVALID_FIELD);
    (page.cdw12, page.cdw13) = (0, 1);
    fails(&mut world, page, Status::INVALID_FIELD);
    (page.cdw13, page.cdw11) = (0, 0xffff);
    fails(&mut world, page, Status::INVALID_FIELD);
    (page.cdw11, page.cdw14) = (0, 1 << 23);
    fails(&mut world, page, Status::INVALID_FIELD);
    (page.cdw14, page.nsid) = (0, 1);
    fails(&mut world, page, Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.12.1.2 and 4.2.3: the entry, and the More bit that points to it.
#[test]
fn a_failed_command_is_in_the_error_log_and_says_more() {
    let mut world = World::ready();
    let entry = world.admin(command(0x06, 0, [0xff, 0]));
    assert!(entry.status.more());
    succeeds(&mut world, log(1, 4096));
    let first = ErrorInformation::read_from_bytes(&world.data(64)).expect("an entry");
    assert_eq!((first.error_count, first.sqid, first.cid), (1, 0, entry.cid));
    assert_eq!((first.status.bare(), first.parameter_error_location), (Status::INVALID_FIELD, 40));
}

/// Base 2.1, 5.1.25 and 5.1.11.
#[test]
fn features_can_be_set_got_and_asked_for_their_default_and_capabilities() {
    let mut world = World::ready();
    for (fid, value) in [(1, 5), (6, 0), (8, 0x1234), (0x0a, 1), (0x0b, 0x101)] {
        let default = succeeds(&mut world, command(0x0a, 0, [fid | 1 << 8, 0]));
        succeeds(&mut world, command(0x09, 0, [fid, value]));
        assert_eq!(succeeds(&mut world, command(0x0a, 0, [fid, 0])), value, "{fid:#x}");
        assert_eq!(succeeds(&mut world, command(0x0a, 0, [fid | 1 << 8, 0])), default);
        assert_eq!(succeeds(&mut world, command(0x0a, 0, [fid | 2 << 8, 0])), default);
        assert_eq!(succeeds(&mut world, command(0x0a, 0, [fid | 3 << 8, 0])), 4);
        fails(&mut world, command(0x0a, 0, [fid | 4 << 8, 0]), Status::INVALID_FIELD);
        fails(&mut world, command(0x09, 0, [fid | 1 << 31, value]), Status::FEATURE_NOT_SAVEABLE);
        fails(&mut world, command(0x09, 1, [fid, value]), Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    }
    for fid in [0, 3, 0x0c, 0x0d, 0x10, 0x11, 0x17, 0x21, 0x80, 0x84, 0xc0] {
        fails(&mut world, command(0x0a, 0, [fid, 0]), Status::INVALID_FIELD);
        fails(&mut world, command(0x09, 0, [fid, 0]), Status::INVALID_FIELD);
    }
    fails(&mut world, command(0x09, 1, [5, 1 << 16]), Status::INVALID_FIELD);
    fails(&mut world, command(0x09, 0, [2, 1]), Status::INVALID_FIELD);
    world.disable();
    world.enable();
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [6, 0])), 1, "a reset brings the default back");
}

/// Base 2.1, 5.1.25.2.1; hostile inputs, row 2.
#[test]
fn the_number_of_queues_is_settled_before_the_first_queue() {
    let mut world = World::ready();
    fails(&mut world, command(0x09, 0, [7, 0x0000_ffff]), Status::INVALID_FIELD);
    fails(&mut world, command(0x09, 0, [7, 0xffff_0000]), Status::INVALID_FIELD);
    assert_eq!(succeeds(&mut world, command(0x09, 0, [7, 0xfffe_fffe])), 0x007f_007f);
    assert_eq!(succeeds(&mut world, command(0x09, 0, [7, 0x0001_0001])), 0x0001_0001);
    succeeds(&mut world, create_cq(2, 16));
    fails(&mut world, create_cq(3, 16), Status::INVALID_QUEUE_IDENTIFIER);
    fails(&mut world, command(0x09, 0, [7, 0]), Status::COMMAND_SEQUENCE_ERROR);
}

/// Base 2.1, 5.1.25.1.28 and 5.1.25.1.7.
#[test]
fn host_identifier_and_timestamp_are_what_the_host_gave() {
    let mut world = World::ready();
    let id: Vec<u8> = (1..=16).collect();
    world.set_data(&id);
    succeeds(&mut world, command(0x09, 0, [0x81, 1]));
    world.set_data(&[0; 16]);
    succeeds(&mut world, command(0x0a, 0, [0x81, 1]));
    assert_eq!(world.data(16), id);
    world.set_data(&[1, 2, 3, 4, 5, 0, 0, 0]);
    succeeds(&mut world, command(0x09, 0, [0x0e, 0]));
    world.now = 3_000_000;
    succeeds(&mut world, command(0x0a, 0, [0x0e, 0]));
    assert_eq!(world.data(8), [4, 2, 3, 4, 5, 0, 2, 0], "three milliseconds on, set by the host");
}

/// Base 2.1, 5.1.2; RAE: 5.1.12.
#[test]
fn events_are_parked_posted_once_and_masked_until_their_log_is_read() {
    let mut world = World::ready();
    let first = world.submit(command(0x0c, 0, [0, 0]));
    let second = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    let wrong = GroupEvent::InvalidDoorbell { qid: 7, kind: DoorbellError::Value };
    world.event(wrong);
    world.event(wrong);
    let event = world.reap().expect("an event");
    assert_eq!((event.cid, event.dw0), (first, 0x0001_0100));
    assert!(world.reap().is_none(), "masked");
    let mut read = log(1, 64);
    read.cdw10 |= 1 << 15;
    succeeds(&mut world, read);
    world.event(wrong);
    assert!(world.reap().is_none(), "RAE keeps it masked");
    succeeds(&mut world, log(1, 64));
    world.event(wrong);
    assert_eq!(world.reap().expect("an event").cid, second);
}

/// Base 2.1, 5.1.2: Asynchronous Event Request Limit Exceeded.
#[test]
fn one_event_request_too_many_is_told_so_and_the_others_stay() {
    let mut world = World::ready();
    for _ in 0..16 {
        world.submit(command(0x0c, 0, [0, 0]));
    }
    world.pump();
    assert!(world.reap().is_none());
    fails(&mut world, command(0x0c, 0, [0, 0]), Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
}

/// Base 2.1, 5.1.1; hostile inputs, row 11.
#[test]
fn abort_is_best_effort_and_reaches_a_parked_request() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    let abort = world.submit(command(0x08, 0, [u32::from(aer) << 16, 0]));
    world.pump();
    let entries = [world.reap(), world.reap()].map(|e| e.expect("an entry"));
    assert_eq!((entries[0].cid, entries[0].status.bare()), (aer, Status::ABORT_REQUESTED));
    assert_eq!((entries[1].cid, entries[1].dw0), (abort, 0));
    assert_eq!(succeeds(&mut world, command(0x08, 0, [0x1234_0000, 0])), 1);
    fails(&mut world, command(0x08, 0, [9, 0]), Status::INVALID_FIELD);
    succeeds(&mut world, create_cq(1, 16));
    succeeds(&mut world, create_sq(1, 1, 16));
    assert_eq!(succeeds(&mut world, command(0x08, 0, [1, 0])), 1);
    world.host.frozen = true;
    for _ in 0..5 {
        world.submit(command(0x08, 0, [1, 0]));
    }
    world.pump();
    assert_eq!(world.reap().expect("the fifth").status.bare(), Status::ABORT_COMMAND_LIMIT_EXCEEDED);
    world.host.frozen = false;
    world.pump();
    assert_eq!((0..9).filter_map(|_| world.reap()).count(), 4);
}

/// Base 2.1, 5.1.25.1.3 and 5.1.2.
#[test]
fn a_temperature_threshold_crossed_is_a_warning_and_an_event() {
    let mut world = World::ready();
    world.submit(command(0x0c, 0, [0, 0]));
    succeeds(&mut world, command(0x09, 0, [0x0b, 0xff]));
    succeeds(&mut world, command(0x09, 0, [0x04, 400]));
    assert!(world.reap().is_none());
    world.submit(command(0x09, 0, [0x04, 300]));
    world.pump();
    let events: Vec<_> = [world.reap(), world.reap()].into_iter().flatten().map(|e| e.dw0).collect();
    assert!(events.contains(&0x0002_0101), "{events:x?}");
    succeeds(&mut world, log(2, 512));
    let smart = SmartHealth::read_from_bytes(&world.data(512)).expect("a page");
    assert!(smart.critical_warning.temperature());
    fails(&mut world, command(0x09, 0, [0x04, 3 << 16]), Status::INVALID_FIELD);
    fails(&mut world, command(0x0a, 0, [0x04, 2 << 20]), Status::INVALID_FIELD);
}

/// Base 2.1, 5.2.5; hostile inputs, row 7.
#[test]
fn doorbell_buffers_are_two_mapped_aligned_pages() {
    let mut world = World::ready();
    let mut config = command(0x7c, 0, [0, 0]);
    config.prp2 = DATA + 0x1000;
    succeeds(&mut world, config);
    succeeds(&mut world, config);
    for (prp1, prp2) in
        [(0, DATA), (DATA, 0), (DATA + 8, DATA), (DATA, DATA + 8), (1 << 50, DATA), (DATA, 1 << 50)]
    {
        (config.prp1, config.prp2) = (prp1, prp2);
        fails(&mut world, config, Status::INVALID_FIELD);
    }
}

/// Base 2.1, 5.1.5, 8.1.7 and 5.1.12.1.7.
#[test]
fn a_self_test_reads_the_drive_and_leaves_its_result() {
    let mut world = World::ready();
    succeeds(&mut world, command(0x14, 1, [1, 0]));
    assert!(world.host.ops.contains(&block::Op::Read));
    succeeds(&mut world, log(6, 564));
    assert_eq!((world.data(5)[0], world.data(5)[4]), (0, 0x10));
    world.host.fault = Some(block::Fault::Media);
    succeeds(&mut world, command(0x14, 0xffff_ffff, [2, 0]));
    world.pump();
    succeeds(&mut world, log(6, 564));
    assert_eq!(world.data(5)[4], 0x27);
    world.host.fault = None;
    world.host.frozen = true;
    world.submit(command(0x14, 1, [2, 0]));
    world.submit(command(0x14, 1, [1, 0]));
    world.submit(command(0x14, 1, [0xf, 0]));
    world.pump();
    let statuses = [world.reap(), world.reap(), world.reap()].map(|e| e.expect("an entry").status.bare());
    assert_eq!(statuses, [Status::SUCCESS, Status::SELF_TEST_IN_PROGRESS, Status::SUCCESS]);
    world.host.frozen = false;
    world.pump();
    fails(&mut world, command(0x14, 1, [3, 0]), Status::INVALID_FIELD);
    fails(&mut world, command(0x14, 33, [1, 0]), Status::INVALID_NAMESPACE_OR_FORMAT);
}

/// Base 2.1, 5.1.2.1; PCIe 1.1, 3.1.2; hostile inputs, row 4.
#[test]
fn doorbell_values_out_of_range_are_told_and_do_no_harm() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    let good = world.doorbells.load(0);
    world.write32(0x1000, 4000);
    world.pump();
    assert_eq!(world.reap().expect("an event").cid, aer);
    world.write32(0x1000, good);
    world.write32(0x1008, 3);
    world.write(0x1001, &[1, 2, 3]);
    world.write64(0x1ff8, u64::MAX);
    succeeds(&mut world, command(0x18, 0, [0, 0]));
}

/// Base 2.1, 5.1.12.1.4: one slot, read only, with the revision that Identify Controller shows (5.1.13.2.1).
#[test]
fn the_firmware_slot_log_has_the_revision_that_identify_shows() {
    let mut world = World::ready();
    succeeds(&mut world, command(0x06, 0, [1, 0]));
    let page = IdentifyController::read_from_bytes(&world.data(4096)).expect("a page");
    assert_eq!((page.frmw.nofs(), page.frmw.ffsro()), (1, true));
    succeeds(&mut world, log(3, 512));
    let slots = world.data(512);
    assert_eq!((slots[0], &slots[8..16]), (1, &page.fr[..]));
    assert_eq!(slots[16..64], [0; 48], "no other slot");
}

/// Base 2.1, 5.1.12.1.1 and 5.1.12.1.18: the lists are what can be read, no more and no less.
#[test]
fn supported_log_pages_and_features_are_exactly_those_that_are_not_refused() {
    let mut world = World::ready();
    succeeds(&mut world, log(0, 1024));
    let pages = world.data(1024);
    for lid in 0..=255 {
        let status = world.admin(log(lid, 64)).status.bare();
        let listed = pages[lid as usize * 4] & 1 == 1;
        assert_eq!(status, if listed { Status::SUCCESS } else { Status::INVALID_LOG_PAGE }, "{lid:#x}");
    }
    succeeds(&mut world, log(0x12, 1024));
    let features = world.data(1024);
    for fid in 0..=255 {
        let listed = features[fid as usize * 4] & 1 == 1;
        let status = world.admin(command(0x0a, 1, [fid | 3 << 8, 0])).status.bare();
        assert_eq!(status, if listed { Status::SUCCESS } else { Status::INVALID_FIELD }, "{fid:#x}");
    }
    // 5.1.12.1.6: the I/O commands, which the queue groups refuse by (see the other half of these tests).
    succeeds(&mut world, log(5, 4096));
    let effects = CommandsSupportedAndEffects::read_from_bytes(&world.data(4096)).expect("a page");
    let listed = (0..=255_u8).filter(|opcode| effects.iocs[usize::from(*opcode)].csupp());
    assert!(listed.eq([0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19]));
}

/// Base 2.1, 5.1.12.1.3; NVM 1.1, 1.4.2: data units are thousands of 512 bytes, rounded up; counters never go back.
#[test]
fn smart_counts_what_every_queue_did_and_keeps_it_over_deletion_and_reset() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut world = World::ready();
    let smart = |world: &mut World| {
        succeeds(world, log(2, 512));
        SmartHealth::read_from_bytes(&world.data(512)).expect("a page")
    };
    for (qid, reads) in [(1, 7), (2, 5)] {
        succeeds(&mut world, create_cq(qid, 16));
        succeeds(&mut world, create_sq(qid, qid, 16));
        let counters = &world.region.sqs[usize::from(qid)];
        counters.reads.store(reads, Relaxed);
        counters.read_sectors.store(1000 * reads + 1, Relaxed);
        counters.writes.store(1, Relaxed);
        counters.write_sectors.store(1, Relaxed);
    }
    let counted = |page: &SmartHealth| {
        let units = (u128::from(page.data_units_read), u128::from(page.data_units_written));
        (units, u128::from(page.host_read_commands), u128::from(page.host_write_commands))
    };
    assert_eq!(counted(&smart(&mut world)), ((13, 1), 12, 2));
    succeeds(&mut world, delete(0x00, 1));
    assert_eq!(counted(&smart(&mut world)), ((13, 1), 12, 2));
    world.disable();
    world.enable();
    let page = smart(&mut world);
    assert_eq!(counted(&page), ((13, 1), 12, 2));
    assert_eq!((page.available_spare, page.percentage_used), (100, 0));
    fails(&mut world, command(0x06, 0, [0xff, 0]), Status::INVALID_FIELD);
    assert_eq!(u128::from(smart(&mut world).error_log_entries), 1);
}

/// Base 2.1, 5.1.25.2.2 and 5.1.25.2.3.
#[test]
fn each_interrupt_vector_has_its_own_coalescing_setting() {
    let mut world = World::ready();
    succeeds(&mut world, command(0x09, 0, [8, 0x0a_07]));
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [8, 0])), 0x0a_07);
    succeeds(&mut world, command(0x09, 0, [9, 1 << 16 | 128]));
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [9, 128])), 1 << 16 | 128);
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [9, 127])), 127);
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [9 | 1 << 8, 128])), 128, "the default");
    fails(&mut world, command(0x0a, 0, [9, 129]), Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.25.1.14, 5.1.25.1.17 and 5.1.25.1.4: what the host said of itself, the command sets, the write cache.
#[test]
fn host_behavior_command_set_profile_and_write_cache_are_kept_until_a_reset() {
    let mut world = World::ready();
    let mut behavior = [0; 512];
    behavior[0] = 1;
    world.set_data(&behavior);
    succeeds(&mut world, command(0x09, 0, [0x16, 0]));
    succeeds(&mut world, command(0x09, 0, [0x19, 0]));
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [0x19 | 3 << 8, 0])), 0, "not changeable");
    succeeds(&mut world, command(0x09, 0, [6, 0]));
    world.set_data(&[0xaa; 512]);
    succeeds(&mut world, command(0x0a, 0, [0x16, 0]));
    assert_eq!(world.data(512), behavior);
    world.disable();
    world.enable();
    succeeds(&mut world, command(0x0a, 0, [0x16, 0]));
    assert_eq!(world.data(512), [0; 512]);
    assert_eq!(succeeds(&mut world, command(0x0a, 0, [6, 0])), 1);
}
