//! Namespace management, attachment, format, sanitize (Base 2.1, 5.1.10, 5.1.20 to 5.1.22; 8.1.24).

use spec::nvme::identify::{IdentifyController, IdentifyNamespace};
use spec::nvme::log::SanitizeStatusLog;
use spec::nvme::{Command, Completion, Status};
use zerocopy::FromBytes;

use crate::world::{CAPACITY_BYTES, World, command};

const MIB_PAGES: usize = 256;

fn create(world: &mut World, blocks: u64, change: &dyn Fn(&mut [u8])) -> Completion {
    let mut data = vec![0; 4096];
    data[..8].copy_from_slice(&blocks.to_le_bytes());
    data[8..16].copy_from_slice(&blocks.to_le_bytes());
    change(&mut data);
    world.set_data(&data);
    world.admin(command(0x0d, 0, [0, 0]))
}

fn attach(nsid: u32, detach: bool, world: &World) -> Command {
    world.set_data(&[1, 0, 0, 0]);
    command(0x15, nsid, [u32::from(detach), 0])
}

fn delete(nsid: u32) -> Command {
    command(0x0d, nsid, [1, 0])
}

fn status(world: &mut World, command: Command) -> Status {
    world.admin(command).status.bare()
}

fn unallocated(world: &mut World) -> u128 {
    assert_eq!(status(world, command(0x06, 0, [1, 0])), Status::SUCCESS);
    IdentifyController::read_from_bytes(&world.data(4096)).expect("a page").unvmcap.into()
}

fn nsze(world: &mut World, nsid: u32) -> u64 {
    assert_eq!(status(world, command(0x06, nsid, [0, 0])), Status::SUCCESS);
    IdentifyNamespace::read_from_bytes(&world.data(4096)).expect("a page").nsze
}

fn sanitize_log(world: &mut World) -> SanitizeStatusLog {
    assert_eq!(status(world, command(0x02, 0, [127 << 16 | 0x81, 0])), Status::SUCCESS);
    SanitizeStatusLog::read_from_bytes(&world.data(512)).expect("a page")
}

/// Base 2.1, 5.1.21 and 8.1.15; that others never read it is ours.
#[test]
fn deleted_space_reads_as_zeros_before_anybody_has_it_again() {
    let mut world = World::ready();
    assert!(world.host.drive.iter().all(|page| *page == 1));
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    assert!(world.host.drive.iter().all(|page| *page == 0));
    assert_eq!(unallocated(&mut world), 64 << 20);
    assert!(world.host.table.as_ref().expect("published").get(1).is_none());
    assert!(world.host.records.last().expect("persisted").namespaces.is_empty());
    let noted = world.host.records.iter().any(|record| !record.to_wipe.is_empty());
    assert!(noted, "a crash in the middle of the wipe would have found the range");
    assert_eq!(status(&mut world, delete(1)), Status::INVALID_FIELD);
    assert_eq!(status(&mut world, delete(0xffff_ffff)), Status::SUCCESS);
}

/// Base 2.1, 5.1.21 and 8.1.15: it is deleted when the command says so; that it stays whole otherwise is ours.
#[test]
fn a_deletion_that_cannot_be_recorded_fails_and_leaves_the_namespace_and_its_data() {
    let mut world = World::ready();
    world.host.persist_ok = false;
    for nsid in [1, 0xffff_ffff] {
        assert_eq!(status(&mut world, delete(nsid)), Status::INTERNAL_ERROR);
        assert!(world.host.drive.iter().all(|page| *page == 1));
        assert!(world.host.table.as_ref().is_some_and(|table| table.for_io(1).is_ok()));
        assert_eq!(unallocated(&mut world), 0);
    }
    world.host.persist_ok = true;
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    assert_eq!(world.host.records.last().expect("persisted").to_wipe, []);
    assert_eq!(unallocated(&mut world), 64 << 20);
}

/// Base 2.1, 5.1.20, 5.1.21, 8.1.15; the notice: 5.1.2 and 5.1.12.1.5.
#[test]
fn namespaces_are_created_attached_detached_and_counted() {
    let mut world = World::ready();
    assert_eq!(create(&mut world, 100, &|_| ()).status.bare(), Status::NAMESPACE_INSUFFICIENT_CAPACITY);
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    for nsid in 1..=32 {
        let entry = create(&mut world, 100, &|_| ());
        assert!(entry.status.is_success());
        assert_eq!(entry.dw0, nsid);
    }
    assert_eq!(create(&mut world, 100, &|_| ()).status.bare(), Status::NAMESPACE_IDENTIFIER_UNAVAILABLE);
    assert_eq!(unallocated(&mut world), 32 << 20, "1 MiB each");
    assert_eq!(nsze(&mut world, 5), 0, "not attached: inactive");
    world.submit(command(0x0c, 0, [0, 0]));
    assert_eq!(status(&mut world, command(0x09, 0, [0x0b, 0x100])), Status::SUCCESS);
    let list = attach(5, false, &world);
    let cid = world.submit(list);
    world.pump();
    let entries = [world.reap(), world.reap()].map(|e| e.expect("an entry"));
    assert_eq!((entries[0].cid, entries[0].status.bare()), (cid, Status::SUCCESS));
    assert_eq!(entries[1].dw0, 0x0004_0002, "namespace attribute changed");
    assert_eq!(status(&mut world, command(0x02, 0, [1023 << 16 | 4, 0])), Status::SUCCESS);
    assert_eq!(world.data(12), [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0], "1 was deleted, 5 attached");
    assert_eq!(status(&mut world, command(0x02, 0, [1023 << 16 | 4, 0])), Status::SUCCESS);
    assert_eq!(world.data(8), [0; 8], "read is cleared");
    assert_eq!(nsze(&mut world, 5), 100);
    let again = attach(5, false, &world);
    assert_eq!(status(&mut world, again), Status::NAMESPACE_ALREADY_ATTACHED);
    let other = attach(6, true, &world);
    assert_eq!(status(&mut world, other), Status::NAMESPACE_NOT_ATTACHED);
    world.set_data(&[1, 0, 7, 0]);
    assert_eq!(status(&mut world, command(0x15, 6, [0, 0])), Status::CONTROLLER_LIST_INVALID);
    world.set_data(&[0xff, 0xff, 0, 0]);
    assert_eq!(status(&mut world, command(0x15, 6, [0, 0])), Status::CONTROLLER_LIST_INVALID);
    assert_eq!(status(&mut world, command(0x15, 0, [0, 0])), Status::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(status(&mut world, command(0x15, 6, [2, 0])), Status::INVALID_FIELD);
    let detach = attach(5, true, &world);
    assert_eq!(status(&mut world, detach), Status::SUCCESS);
    assert_eq!(nsze(&mut world, 5), 0);
}

/// Base 2.1, 5.1.21; NVM 1.1, 4.1.6.
#[test]
fn a_namespace_that_cannot_be_is_refused_with_its_status() {
    let mut world = World::ready();
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    type Case<'a> = (&'a dyn Fn(&mut [u8]), Status);
    let cases: [Case<'_>; 7] = [
        (&|d| d[..16].fill(0), Status::INVALID_FIELD),
        (&|d| d[8] = 50, Status::THIN_PROVISIONING_NOT_SUPPORTED),
        (&|d| d[9] = 1, Status::INVALID_FIELD),
        (&|d| d[26] = 2, Status::INVALID_FORMAT),
        (&|d| d[29] = 1, Status::INVALID_FORMAT),
        (&|d| d[30] = 2, Status::INVALID_FIELD),
        (&|d| d[..16].fill(0xff), Status::NAMESPACE_INSUFFICIENT_CAPACITY),
    ];
    for (change, expected) in cases {
        assert_eq!(create(&mut world, 100, change).status.bare(), expected);
    }
    // ANAGRPID and NVMSETID belong to what this controller has not, and are ignored.
    assert!(create(&mut world, 100, &|d| (d[92], d[100]) = (1, 1)).status.is_success());
    assert_eq!(status(&mut world, command(0x0d, 0, [2, 0])), Status::INVALID_FIELD);
    assert_eq!(status(&mut world, command(0x0d, 0, [0, 2 << 24])), Status::IO_COMMAND_SET_NOT_SUPPORTED);
}

/// Base 2.1, 5.1.10 (FNA = 0); NVM 1.1, 4.1.2.
#[test]
fn a_format_touches_its_namespace_and_no_other() {
    let mut world = World::ready();
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    world.host.drive.fill(1);
    for _ in 0..3 {
        let nsid = create(&mut world, 2048 * 4, &|_| ()).dw0;
        let list = attach(nsid, false, &world);
        assert_eq!(status(&mut world, list), Status::SUCCESS);
    }
    assert_eq!(status(&mut world, command(0x80, 2, [1, 0])), Status::SUCCESS);
    assert_eq!(nsze(&mut world, 2), 1024);
    assert_eq!(nsze(&mut world, 1), 8192);
    let zeros: Vec<bool> = world.host.drive.iter().map(|page| *page == 0).collect();
    assert!(zeros[4 * MIB_PAGES..8 * MIB_PAGES].iter().all(|zero| *zero));
    assert!(!zeros[..4 * MIB_PAGES].contains(&true) && !zeros[8 * MIB_PAGES..].contains(&true));
    for (nsid, cdw10, expected) in [
        (2, 2, Status::INVALID_FORMAT),
        // MSET is ignored with formats without metadata.
        (2, 1 << 4, Status::SUCCESS),
        (2, 1 << 5, Status::INVALID_FORMAT),
        (2, 2 << 9, Status::INVALID_FIELD),
        (0, 0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (33, 0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (9, 0, Status::INVALID_FIELD),
    ] {
        assert_eq!(status(&mut world, command(0x80, nsid, [cdw10, 0])), expected);
    }
    assert_eq!(status(&mut world, command(0x80, 0xffff_ffff, [0, 0])), Status::SUCCESS);
    assert_eq!(nsze(&mut world, 2), 8192);
}

/// Base 2.1, 5.1.10: Format in Progress.
#[test]
fn while_a_format_goes_on_its_namespace_says_so() {
    let mut world = World::ready();
    world.host.full = true;
    let cid = world.submit(command(0x80, 1, [0, 0]));
    world.pump();
    assert!(world.reap().is_none());
    let table = world.host.table.clone().expect("published");
    assert_eq!(table.for_io(1).err(), Some(Status::FORMAT_IN_PROGRESS));
    assert_eq!(status(&mut world, command(0x80, 1, [0, 0])), Status::FORMAT_IN_PROGRESS);
    world.host.full = false;
    world.pump();
    assert_eq!(world.reap().expect("the format").cid, cid);
    assert!(world.host.table.clone().expect("published").for_io(1).is_ok());
}

/// Base 2.1, 3.7.2 and 5.1.10.
#[test]
fn a_reset_takes_away_the_reply_and_not_the_format() {
    let mut world = World::ready();
    world.host.full = true;
    world.submit(command(0x80, 1, [1, 0]));
    world.submit(delete(1));
    world.pump();
    world.disable();
    world.host.full = false;
    world.pump();
    world.enable();
    assert_eq!(nsze(&mut world, 1), 16384);
    assert!(world.host.drive.iter().all(|page| *page == 0));
}

/// Base 2.1, 3.7.2 and 5.1.10.
#[test]
fn a_reset_while_a_namespace_is_being_held_does_not_stop_the_work() {
    let mut world = World::ready();
    world.host.frozen = true;
    world.submit(command(0x80, 1, [1, 0]));
    world.pump();
    assert!(!world.controller.is_quiet() && !world.controller.is_resetting());
    world.disable();
    world.host.frozen = false;
    world.pump();
    assert!(world.controller.is_quiet());
    world.enable();
    assert_eq!(nsze(&mut world, 1), 16384);
    assert!(world.host.table.clone().expect("published").for_io(1).is_ok());
}

/// Base 2.1, 3.4.2: no other command in between.
#[test]
fn a_fused_pair_gets_its_namespace_for_itself_and_a_format_waits_for_it() {
    use nvme::sink::{GroupCommand, GroupEvent};
    let mut world = World::ready();
    world.event(GroupEvent::WantExclusive { ticket: 9, nsid: 1, sqid: 1 });
    world.event(GroupEvent::WantExclusive { ticket: 10, nsid: 1, sqid: 2 });
    let granted = |world: &World| {
        let tickets = world.host.commands.iter().filter_map(|command| match command {
            GroupCommand::Granted { ticket } => Some(*ticket),
            _ => None,
        });
        tickets.collect::<Vec<_>>()
    };
    assert_eq!(granted(&world), [9]);
    world.submit(command(0x80, 1, [0, 0]));
    world.pump();
    assert!(world.reap().is_none(), "the format waits");
    world.event(GroupEvent::ExclusiveDone { ticket: 9 });
    assert!(world.reap().expect("the format").status.is_success());
    assert_eq!(granted(&world), [9, 10]);
    world.event(GroupEvent::ExclusiveDone { ticket: 10 });
    let holds = world.host.commands.iter().filter(|c| matches!(c, GroupCommand::Hold { .. })).count();
    let releases = world.host.commands.iter().filter(|c| matches!(c, GroupCommand::Release { .. })).count();
    assert_eq!(holds, releases);
}

/// Base 2.1, 5.1.22, 8.1.24 and 5.1.12.1.33.
#[test]
fn a_block_erase_goes_on_in_the_background_and_ends_with_an_event() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
    world.host.full = true;
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    let table = world.host.table.clone().expect("published");
    assert_eq!(table.for_io(1).err(), Some(Status::SANITIZE_IN_PROGRESS));
    for refused in [command(0x84, 0, [2, 0]), command(0x80, 1, [0, 0]), delete(1), command(0x14, 1, [1, 0])] {
        assert_eq!(status(&mut world, refused), Status::SANITIZE_IN_PROGRESS);
    }
    let log = sanitize_log(&mut world);
    // SSI tells of media verification only, which there is none of.
    assert_eq!((log.sstat.sos(), log.ssi.sans(), log.scdw10), (2, 0, 2));
    world.host.full = false;
    world.pump();
    assert_eq!(world.reap().expect("an event").cid, aer);
    let log = sanitize_log(&mut world);
    assert_eq!((log.sprog, log.sstat.sos(), log.ssi.sans()), (0xffff, 1, 0));
    assert!(world.host.drive.iter().all(|page| *page == 0));
    assert!(world.host.table.clone().expect("published").for_io(1).is_ok());
}

/// Base 2.1, 5.1.22: the command ends with success when the operation has begun; that one begins on record only is ours.
#[test]
fn a_sanitize_whose_start_cannot_be_recorded_fails_and_erases_nothing() {
    let mut world = World::ready();
    let aer = world.submit(command(0x0c, 0, [0, 0]));
    world.host.persist_ok = false;
    let before = sanitize_log(&mut world);
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::INTERNAL_ERROR);
    assert!(world.host.drive.iter().all(|page| *page == 1));
    let log = sanitize_log(&mut world);
    assert_eq!(zerocopy::IntoBytes::as_bytes(&log), zerocopy::IntoBytes::as_bytes(&before));
    assert!(world.host.table.as_ref().is_some_and(|table| table.for_io(1).is_ok()));
    assert_eq!(world.host.records.last().expect("tried").sanitize.status, 0, "what holds is written again");
    assert!(world.controller.is_quiet() && world.reap().is_none(), "nothing has ended: no event");
    world.host.persist_ok = true;
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    world.pump();
    assert_eq!(world.reap().expect("an event").cid, aer);
    assert!(world.host.drive.iter().all(|page| *page == 0));
}

/// Base 2.1, 8.1.24.3.5: what a failure forbids, it forbids until a sanitize succeeds or the failure is left.
#[test]
fn a_sanitize_that_could_not_begin_leaves_the_failure_of_the_one_before() {
    let mut world = World::ready();
    world.host.fault = Some(block::Fault::Media);
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    world.pump();
    (world.host.fault, world.host.persist_ok) = (None, false);
    assert_eq!(status(&mut world, command(0x84, 0, [3 | 1 << 4, 9])), Status::INTERNAL_ERROR);
    let log = sanitize_log(&mut world);
    assert_eq!((log.sstat.sos(), log.scdw10), (3, 2));
    let table = world.host.table.clone().expect("published");
    assert_eq!(table.for_io(1).err(), Some(Status::SANITIZE_FAILED));
}

/// Base 2.1, 8.1.24: it goes on until it is done; the record has said so since an earlier life.
#[test]
fn a_sanitize_that_had_begun_goes_on_although_its_record_cannot_be_written_now() {
    let mut world = World::ready();
    world.host.full = true;
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    world.host.persist_ok = false;
    world.succeed();
    (world.host.full, world.host.persist_ok) = (false, true);
    world.pump();
    assert!(world.host.drive.iter().all(|page| *page == 0));
    assert_eq!(sanitize_log(&mut world).sstat.sos(), 1);
}

/// Base 2.1, 8.1.24: neither reset nor power cycle ends it.
#[test]
fn an_interrupted_sanitize_goes_on_after_a_restart() {
    let mut world = World::ready();
    world.host.full = true;
    assert_eq!(status(&mut world, command(0x84, 0, [3 | 2 << 4 | 1 << 9, 0xdead_beef])), Status::SUCCESS);
    let record = world.host.records.last().cloned().expect("on record");
    assert_eq!(record.sanitize.status, 2);
    let mut restarted = World::with_record(&record);
    assert!(restarted.host.drive.iter().all(|page| *page == 2), "overwritten, and not deallocated (NDAS)");
    restarted.enable();
    let log = sanitize_log(&mut restarted);
    assert_eq!((log.sstat.sos(), log.sstat.opc()), (1, 2));
    assert_eq!(restarted.host.records.last().expect("on record").sanitize.status, 1);
}

/// Base 2.1, 8.1.24, and ours: a new namespace reads as zeros.
#[test]
fn a_namespace_created_where_a_sanitize_left_its_pattern_reads_as_zeros() {
    let mut world = World::ready();
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    assert_eq!(status(&mut world, command(0x84, 0, [3 | 1 << 4 | 1 << 9, 7])), Status::SUCCESS);
    assert!(world.host.drive.iter().all(|page| *page == 2));
    assert!(create(&mut world, 2048, &|_| ()).status.is_success());
    assert!(world.host.drive[..MIB_PAGES].iter().all(|page| *page == 0));
    assert!(world.host.drive[MIB_PAGES..].iter().all(|page| *page == 2));
}

/// Base 2.1, 5.1.22 and 8.1.24 (AUSE).
#[test]
fn a_failed_sanitize_stays_restricted_until_it_may_be_left() {
    for (ause, left) in [(0, Status::SANITIZE_FAILED), (1 << 3, Status::SUCCESS)] {
        let mut world = World::ready();
        world.host.fault = Some(block::Fault::Media);
        assert_eq!(status(&mut world, command(0x84, 0, [2 | ause, 0])), Status::SUCCESS);
        world.pump();
        world.host.fault = None;
        assert_eq!(sanitize_log(&mut world).sstat.sos(), 3);
        // Admin commands that are not permitted say In Progress also after the failure (Base 2.1, 5).
        assert_eq!(status(&mut world, command(0x80, 1, [0, 0])), Status::SANITIZE_IN_PROGRESS);
        assert_eq!(status(&mut world, command(0x84, 0, [1, 0])), left);
        assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
        world.pump();
        assert_eq!(sanitize_log(&mut world).sstat.sos(), 1);
        assert!(world.host.table.clone().expect("published").for_io(1).is_ok());
    }
    let mut world = World::ready();
    for wrong in [0, 4, 5, 6, 7, 2 | 1 << 10] {
        assert_eq!(status(&mut world, command(0x84, 0, [wrong, 0])), Status::INVALID_FIELD);
    }
}

/// Base 2.1, 8.1.24; that a record was lost is ours.
#[test]
fn a_sanitize_whose_end_cannot_be_recorded_has_failed_and_can_be_asked_for_again() {
    let mut world = World::ready();
    world.host.full = true;
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    (world.host.full, world.host.persist_ok) = (false, false);
    world.pump();
    world.host.persist_ok = true;
    assert_eq!(sanitize_log(&mut world).sstat.sos(), 3);
    assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
    world.pump();
    assert_eq!(sanitize_log(&mut world).sstat.sos(), 1);
    assert!(world.host.table.clone().expect("published").for_io(1).is_ok());
}

/// Base 2.1, 8.1.15: they persist; identifiers are unique (5.1.13.2.3).
#[test]
fn namespaces_come_back_from_the_record_and_keep_their_identity() {
    let mut world = World::ready();
    assert_eq!(status(&mut world, delete(1)), Status::SUCCESS);
    assert_eq!(create(&mut world, 4096, &|_| ()).dw0, 1);
    let list = attach(1, false, &world);
    assert_eq!(status(&mut world, list), Status::SUCCESS);
    let before = world.controller.namespaces().get(1).expect("there").uuid;
    let record = world.host.records.last().cloned().expect("on record");
    let mut restarted = World::with_record(&record);
    restarted.enable();
    assert_eq!(nsze(&mut restarted, 1), 4096);
    assert_eq!(restarted.controller.namespaces().get(1).expect("there").uuid, before);
    assert_ne!(before, World::new().controller.namespaces().get(1).expect("there").uuid, "never used twice");
}

/// NVM 1.1, 4.2.1.
#[test]
fn marked_blocks_are_what_get_lba_status_returns() {
    let mut world = World::ready();
    let ns = world.controller.namespaces().get(1).cloned().expect("there");
    for slba in [10, 20, 30] {
        ns.marks.mark(ns.run_at(slba, 2).expect("inside")).expect("room");
    }
    let mut get = command(0x86, 1, [0, 0]);
    (get.cdw12, get.cdw13) = (9, 0x1000_0000);
    assert_eq!(status(&mut world, get), Status::SUCCESS);
    let page = world.data(40);
    assert_eq!((page[0], page[4], page[8], page[16], page[24]), (2, 1, 10, 1, 20));
    get.cdw13 = 0x0200_0000;
    assert_eq!(status(&mut world, get), Status::INVALID_FIELD);
    (get.cdw10, get.cdw11, get.cdw13) = (u32::MAX, u32::MAX, 0x1000_0002);
    assert_eq!(status(&mut world, get), Status::LBA_OUT_OF_RANGE);
}

/// Ours: docs/formats/ssd-record.md.
#[test]
fn nothing_of_a_record_is_wiped_under_a_namespace_that_is_there() {
    let record = World::ready().controller.record();
    let inside = |start_bytes, len_bytes| state::ssd::RangeV1 { start_bytes, len_bytes };
    let to_wipe = vec![inside(0, 1 << 20), inside(CAPACITY_BYTES - 4096, 4096), inside(u64::MAX, 2)];
    let mut world = World::with_record(&state::SsdV1 { to_wipe, ..record });
    world.enable();
    assert!(world.host.drive.iter().all(|page| *page == 1), "no block of the namespace was touched");
    assert!(world.controller.record().to_wipe.is_empty());
}

/// Base 2.1, 5.1.12.1.33 (GDE): set only while no user data has been written since the sanitize, or ever.
#[test]
fn nothing_is_called_globally_erased_that_may_have_been_written() {
    use std::sync::atomic::Ordering::Relaxed;
    let gde = |world: &mut World| sanitize_log(world).sstat.gde();
    let erased = || {
        let mut world = World::ready();
        world.region.sqs[1].writes.store(3, Relaxed);
        assert!(!gde(&mut world));
        assert_eq!(status(&mut world, command(0x84, 0, [2, 0])), Status::SUCCESS);
        world.pump();
        assert!(gde(&mut world));
        world
    };
    let mut world = erased();
    world.region.sqs[1].other_changes.store(1, Relaxed);
    assert!(!gde(&mut world), "a write that failed or was abandoned");
    // A write that a group has begun, by the region's words.
    let mut world = erased();
    nvme::queue::create_cq(&world.region, 1, 0, 16, None);
    nvme::queue::create_sq(&world.region, 1, 0, 16, 1);
    let region = std::sync::Arc::clone(&world.region);
    let slot = &region.slots[1][5];
    for (opcode, expected) in [(0x01, false), (0x08, false), (0x19, false), (0x02, true), (0x00, true)] {
        slot.command[0].store(opcode, Relaxed);
        slot.word.store(state::region::SLOT_ACCEPTED, Relaxed);
        assert_eq!(gde(&mut world), expected, "opcode {opcode:#x} at the drive");
    }
    nvme::queue::close_sq(&world.region, 1);
    assert!(gde(&mut world));
    // Shut down, and powered on again.
    let mut world = erased();
    world.write32(spec::nvme::registers::CC, 0x0046_4001);
    world.pump();
    let record = world.host.records.last().cloned().expect("on record");
    assert!(record.clean);
    let mut again = World::with_record(&record);
    again.enable();
    assert!(gde(&mut again));
    // The power went: what was written after the last record is not in it.
    let record = again.host.records.last().cloned().expect("on record");
    assert!(!record.clean);
    let mut again = World::with_record(&record);
    again.enable();
    assert!(!gde(&mut again));
}
