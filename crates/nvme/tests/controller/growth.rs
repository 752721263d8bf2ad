//! A drive that grows under its ssd (Base 2.1, 3.2.1.1 and 8.1.15 for the capacity, 5.1.2 and 5.1.12.1.5 for what the host is told).

use spec::nvme::identify::{IdentifyController, IdentifyNamespace};
use zerocopy::FromBytes;

use crate::world::{CAPACITY_BYTES, World, command};

const LARGER: u64 = CAPACITY_BYTES + (32 << 20);
/// Namespace attribute changed, log page 04h.
const CHANGED: u32 = 0x0004_0002;

/// NSZE, NCAP and NUSE of a namespace.
fn blocks(world: &mut World, nsid: u32) -> [u64; 3] {
    assert!(world.admin(command(0x06, nsid, [0, 0])).status.is_success());
    let page = IdentifyNamespace::read_from_bytes(&world.data(4096)).expect("a page");
    [page.nsze, page.ncap, page.nuse]
}

/// TNVMCAP and UNVMCAP.
fn capacities(world: &mut World) -> (u128, u128) {
    assert!(world.admin(command(0x06, 0, [1, 0])).status.is_success());
    let page = IdentifyController::read_from_bytes(&world.data(4096)).expect("a page");
    (page.tnvmcap.into(), page.unvmcap.into())
}

/// What the log page of changed namespaces begins with; reading clears it.
fn changed(world: &mut World) -> [u8; 8] {
    assert!(world.admin(command(0x02, 0, [1023 << 16 | 4, 0])).status.is_success());
    world.data(8).try_into().expect("eight bytes")
}

fn ask_for_an_event(world: &mut World) {
    world.submit(command(0x0c, 0, [0, 0]));
    world.pump();
}

/// Base 2.1, 5.1.2 and 5.1.12.1.5: the notice and the log page. That this namespace grows is ours.
#[test]
fn a_namespace_that_has_all_of_a_drive_grows_with_it_and_its_host_is_told_once() {
    let mut world = World::ready();
    // The notice is what Set Features, Asynchronous Event Configuration turns on.
    assert!(world.admin(command(0x09, 0, [0x0b, 0x100])).status.is_success());
    ask_for_an_event(&mut world);
    assert_eq!(blocks(&mut world, 1), [CAPACITY_BYTES / 512; 3]);
    world.grow(LARGER);
    world.pump();
    assert_eq!(world.reap().expect("an event").dw0, CHANGED);
    assert_eq!(changed(&mut world), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(blocks(&mut world, 1), [LARGER / 512; 3]);
    assert_eq!(capacities(&mut world), (u128::from(LARGER), 0));
    let record = world.host.records.last().expect("persisted");
    assert_eq!((record.capacity_bytes, record.namespaces[0].blocks), (LARGER, LARGER / 512));
    let published = world.host.table.as_ref().and_then(|table| table.get(1)).expect("there");
    assert!(published.run_at(LARGER / 512 - 1, 1).is_some());
    ask_for_an_event(&mut world);
    world.grow(LARGER);
    world.grow(CAPACITY_BYTES);
    world.pump();
    assert!(world.reap().is_none(), "nothing has changed");
    assert_eq!(blocks(&mut world, 1), [LARGER / 512; 3]);
}

/// Base 2.1, 8.1.15: UNVMCAP is what can be given to namespaces.
#[test]
fn a_host_that_has_laid_out_the_ssd_itself_gets_unallocated_capacity() {
    let mut world = World::ready();
    assert!(world.admin(command(0x09, 0, [0x0b, 0x100])).status.is_success());
    assert!(world.admin(command(0x0d, 1, [1, 0])).status.is_success());
    for _ in 0..2 {
        let mut page = vec![0; 4096];
        page[..8].copy_from_slice(&2048_u64.to_le_bytes());
        page[8..16].copy_from_slice(&2048_u64.to_le_bytes());
        world.set_data(&page);
        assert!(world.admin(command(0x0d, 0, [0, 0])).status.is_success());
    }
    world.set_data(&[1, 0, 0, 0]);
    assert!(world.admin(command(0x15, 1, [0, 0])).status.is_success());
    changed(&mut world);
    ask_for_an_event(&mut world);
    world.grow(LARGER);
    world.pump();
    assert!(world.reap().is_none(), "no namespace has changed");
    assert_eq!(blocks(&mut world, 1), [2048; 3]);
    assert_eq!(capacities(&mut world), (u128::from(LARGER), u128::from(LARGER - (2 << 20))));
}

/// Base 2.1, 3.2.1.1: what Identify says of a capacity holds. The record is ours.
#[test]
fn a_growth_that_cannot_be_recorded_is_none_and_the_next_one_is_tried() {
    let mut world = World::ready();
    world.host.persist_ok = false;
    world.grow(LARGER);
    world.pump();
    assert_eq!(blocks(&mut world, 1), [CAPACITY_BYTES / 512; 3]);
    assert_eq!(capacities(&mut world), (u128::from(CAPACITY_BYTES), 0));
    world.host.persist_ok = true;
    world.grow(LARGER);
    world.pump();
    assert_eq!(blocks(&mut world, 1), [LARGER / 512; 3]);
}

/// Base 2.1, 3.2.1.1: a block below NSZE is accepted. So a size that some queue would still refuse blocks of is told to nobody.
#[test]
fn an_identify_waits_until_all_queues_know_the_new_size() {
    let mut world = World::ready();
    world.grow(LARGER);
    world.host.frozen = true;
    world.submit(command(0x06, 1, [0, 0]));
    world.pump();
    assert!(world.reap().is_none(), "the record is not stable yet");
    world.host.frozen = false;
    world.pump();
    assert!(world.reap().expect("an answer").status.is_success());
    let page = IdentifyNamespace::read_from_bytes(&world.data(4096)).expect("a page");
    assert_eq!(page.nsze, LARGER / 512);
}

/// Base 2.1, 8.1.24: a sanitize reaches all there is.
#[test]
fn a_growth_waits_for_a_sanitize_that_is_under_way() {
    let mut world = World::ready();
    world.host.full = true;
    assert!(world.admin(command(0x84, 0, [2, 0])).status.is_success(), "block erase");
    world.grow(LARGER);
    world.pump();
    assert_eq!(capacities(&mut world), (u128::from(CAPACITY_BYTES), 0));
    world.host.full = false;
    world.pump();
    assert_eq!(blocks(&mut world, 1), [LARGER / 512; 3]);
    assert!(world.host.drive.iter().all(|page| *page == 0));
}

/// Base 2.1, 5.1.2 and 5.1.12.1.5: the notice is not lost. The successor is ours.
#[test]
fn a_growth_cut_at_any_step_is_finished_by_the_successor_and_the_host_hears_of_it() {
    for (answers, record_is_stable) in
        [(None, false), (Some(0), false), (Some(0), true), (Some(1), true), (Some(2), true)]
    {
        let mut world = World::ready();
        assert!(world.admin(command(0x09, 0, [0x0b, 0x100])).status.is_success());
        ask_for_an_event(&mut world);
        match answers {
            // The drive grew, and the process ended before anybody said so to the controller.
            None => world.capacity_bytes = LARGER,
            Some(answers) => {
                world.grow(LARGER);
                (0..answers).for_each(|_| assert!(world.deliver(), "step {answers}"));
                if !record_is_stable {
                    world.host.records.pop();
                }
            }
        }
        world.succeed();
        let event = world.reap().expect("an event");
        assert_eq!(event.dw0, CHANGED, "{answers:?}, {record_is_stable}");
        assert_eq!(blocks(&mut world, 1), [LARGER / 512; 3], "{answers:?}, {record_is_stable}");
        assert_eq!(changed(&mut world), [1, 0, 0, 0, 0, 0, 0, 0]);
        ask_for_an_event(&mut world);
        world.succeed();
        assert!(world.reap().is_none(), "once is enough: {answers:?}, {record_is_stable}");
        let record = world.host.records.last().expect("persisted");
        assert_eq!((record.capacity_bytes, record.namespaces[0].blocks), (LARGER, LARGER / 512));
    }
}
