//! What the controller asks of a group: holds, memory, deletion, reset, pause, shadow doorbells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use block::Now;
use memory::{Access, Iova, MemoryMap};
use nvme::queue::{cq_index, create_cq, create_sq, sq_index};
use nvme::sink::{DoorbellError, GroupCommand, GroupEvent, Scope};
use nvme::watch::Watch;
use spec::nvme::{NvmOpcode, Status};
use zerocopy::IntoBytes;

use crate::world::{DATA, ENTRIES, Mode, World};

fn put_reads(world: &mut World, count: u32, nsid: u32) {
    for i in 0..count {
        let read = world.command(NvmOpcode::Read, nsid, u64::from(i), 1);
        world.put(&read);
    }
    world.ring();
}

/// Ours: docs/decisions/0001.
#[test]
fn a_hold_waits_for_what_runs_and_keeps_the_rest_in_the_ring() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    world.tell(GroupCommand::Hold { scope: Scope::Nsid(1), except: None, id: 7 });
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 0);
    assert!(world.drive.events.is_empty());
    world.deliver();
    assert_eq!(world.drive.events, [GroupEvent::Acknowledged { id: 7 }]);
    assert_eq!(world.turn(), 0);
    world.tell(GroupCommand::Release { id: 7 });
    assert_eq!(world.turn(), 1);
}

/// Ours: docs/decisions/0001.
#[test]
fn a_hold_of_one_namespace_leaves_the_others_alone() {
    let mut world = World::new();
    world.tell(GroupCommand::Hold { scope: Scope::Nsid(2), except: None, id: 7 });
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 1);
    assert_eq!(world.drive.events, [GroupEvent::Acknowledged { id: 7 }]);
}

/// Ours: an unmap is answered when nothing uses the memory any more.
#[test]
fn new_memory_is_adopted_when_the_io_of_the_old_has_ended() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 1, 1);
    world.turn();
    let map = Arc::new(world.map.with(Iova(1 << 40), 4096, Access::BOTH, None).expect("a region"));
    let generation = map.generation();
    world.tell(GroupCommand::Memory { map });
    put_reads(&mut world, 1, 1);
    world.turn();
    assert!(world.drive.events.is_empty());
    let (token, outcome) = world.drive.later.pop_front().expect("the old one");
    world.group.complete(token, outcome, &mut world.drive);
    world.turn();
    assert_eq!(world.drive.events, [GroupEvent::MemoryAdopted { generation }]);
    world.deliver();
    assert_eq!(world.reap().len(), 2);
}

/// Ours: docs/formats/controller-region.md.
#[test]
fn queues_without_memory_wait_and_lose_nothing() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    world.tell(GroupCommand::Memory { map: Arc::new(MemoryMap::empty()) });
    world.deliver();
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 0);
    assert!(world.reap().is_empty());
    let map = Arc::clone(&world.map);
    world.tell(GroupCommand::Memory { map });
    world.turn();
    world.deliver();
    assert_eq!(world.reap().len(), 3);
}

/// Ours: docs/decisions/0003.
#[test]
fn data_in_a_region_without_an_fd_asks_for_a_private_reactor_once() {
    let mut world = World::new();
    let map = Arc::new(world.map.with(Iova(1 << 40), 4096, Access::BOTH, None).expect("a region"));
    world.tell(GroupCommand::Memory { map: Arc::clone(&map) });
    let mut read = world.command(NvmOpcode::Read, 1, 3, 1);
    read.prp1 = 1 << 40;
    world.put(&read);
    world.ring();
    for _ in 0..3 {
        world.turn();
    }
    let asked = world.drive.events.iter().filter(|event| **event == GroupEvent::NeedsRemote).count();
    assert_eq!(asked, 1);
    world.tell(GroupCommand::Pause { id: 5 });
    world.turn();
    assert!(world.drive.events.contains(&GroupEvent::Acknowledged { id: 5 }));
    // The group on the private reactor finds the command in its slot.
    let remote = Arc::new(Far::default());
    world.map = Arc::new(map.with_remote(Arc::clone(&remote) as Arc<dyn memory::Remote>));
    world.succeed();
    let done = world.settle();
    assert_eq!((done.len(), done[0].cid, done[0].status.bare()), (1, read.cid(), Status::SUCCESS));
    assert_eq!(remote.0.lock().expect("sound")[..512], world.drive.disk[3 * 512..4 * 512]);
}

/// Memory at the other end of a socket, whether the client refuses writes, and how many it refused.
struct Far(std::sync::Mutex<[u8; 4096]>, AtomicBool, AtomicU32);

impl Default for Far {
    fn default() -> Self {
        Self(std::sync::Mutex::new([0; 4096]), AtomicBool::new(false), AtomicU32::new(0))
    }
}

impl memory::Remote for Far {
    fn read(&self, iova: Iova, dst: &mut [u8]) -> Result<(), memory::Fault> {
        let at = (iova.0 - (1 << 40)) as usize;
        dst.copy_from_slice(&self.0.lock().expect("sound")[at..at + dst.len()]);
        Ok(())
    }
    fn write(&self, iova: Iova, src: &[u8]) -> Result<(), memory::Fault> {
        if self.1.load(Ordering::Relaxed) {
            self.2.fetch_add(1, Ordering::Relaxed);
            return Err(memory::Fault::Unmapped);
        }
        let at = (iova.0 - (1 << 40)) as usize;
        self.0.lock().expect("sound")[at..at + src.len()].copy_from_slice(src);
        Ok(())
    }
}

/// Ours: docs/formats/controller-region.md.
#[test]
fn answers_that_a_client_does_not_take_are_tried_again_without_a_new_map() {
    const SECOND_SQ: u64 = 0x3_0000;
    let mut world = World::new();
    let far = Arc::new(Far::default());
    let map = world.map.with(Iova(1 << 40), 4096, Access::BOTH, None).expect("a region");
    let map = Arc::new(map.with_remote(Arc::clone(&far) as Arc<dyn memory::Remote>));
    world.tell(GroupCommand::Memory { map });
    create_cq(&world.region, 2, 1 << 40, ENTRIES, Some(4));
    create_sq(&world.region, 2, SECOND_SQ, ENTRIES, 2);
    world.tell(GroupCommand::CreateCq { cqid: 2 });
    world.tell(GroupCommand::CreateSq { sqid: 2 });
    world.turn();
    for i in 0..3 {
        let read = world.command(NvmOpcode::Read, 1, i, 1);
        world.poke(SECOND_SQ + i * 64, read.as_bytes());
    }
    far.1.store(true, Ordering::Relaxed);
    world.page.store(sq_index(2), 3);
    let mut turn = |now: u64| {
        world.group.poll(Now(now), &mut world.drive);
        world.group.flush(&mut world.drive);
    };
    let phases = || (0..3).filter(|i| far.0.lock().expect("sound")[i * 16 + 14] & 1 == 1).count();
    (0..100).for_each(|_| turn(0));
    assert_eq!(phases(), 0);
    assert!(far.2.load(Ordering::Relaxed) <= 2, "a client that refuses is asked again and again");
    turn(1_000_000);
    far.1.store(false, Ordering::Relaxed);
    turn(1_500_000);
    assert_eq!(phases(), 0, "asked again too soon");
    turn(2_000_000);
    assert_eq!(phases(), 3);
    assert!(!world.drive.interrupts.contains(&3) && world.drive.interrupts.contains(&4));
    let busy = |slot: &&state::region::Slot| slot.word.load(Ordering::Relaxed) & 3 != 0;
    assert_eq!(world.region.slots[2].iter().filter(busy).count(), 0);
    assert!(world.group.rest(), "nothing is late any more");
}

/// Base 2.1, 5.2.4.
#[test]
fn a_deleted_queue_answers_what_it_accepted_and_is_gone() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    put_reads(&mut world, 1, 1);
    world.tell(GroupCommand::DeleteSq { sqid: 1 });
    world.turn();
    assert!(world.drive.events.is_empty());
    world.deliver();
    assert_eq!(world.drive.events, [GroupEvent::SqDeleted { sqid: 1 }]);
    assert_eq!(world.reap().len(), 2);
    assert_eq!(world.region.sqs[1].size.load(Ordering::Relaxed), 0);
    world.tell(GroupCommand::DeleteCq { cqid: 1 });
    assert!(world.group.is_empty());
}

/// Base 2.1, 3.7.2.
#[test]
fn a_reset_answers_nothing_more_and_waits_for_the_drive() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 3, 1);
    world.turn();
    world.tell(GroupCommand::Reset { id: 9 });
    world.turn();
    assert!(world.drive.events.is_empty());
    world.deliver();
    assert_eq!(world.drive.events, [GroupEvent::Acknowledged { id: 9 }]);
    assert!(world.reap().is_empty());
    assert!(world.group.is_empty());
    assert_eq!(world.group.in_flight(), 0);
}

/// Ours: docs/formats/controller-region.md.
#[test]
fn another_group_goes_on_where_a_paused_one_stopped() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 3, 1);
    world.turn();
    world.tell(GroupCommand::Pause { id: 2 });
    put_reads(&mut world, 2, 1);
    world.turn();
    world.deliver();
    assert!(world.drive.events.contains(&GroupEvent::Acknowledged { id: 2 }));
    world.succeed();
    world.turn();
    world.deliver();
    assert_eq!(world.reap().len(), 5);
}

/// Ours: docs/decisions/0017.
#[test]
fn a_freeze_does_not_wait_for_what_waits_for_space_and_the_next_group_begins_it_again() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 3, 1);
    world.turn();
    let said = |world: &World, id| world.drive.events.contains(&GroupEvent::Acknowledged { id });
    // A pause waits for all: its group and the next one are in one process.
    for (stop, id) in [(GroupCommand::Pause { id: 1 }, 1), (GroupCommand::Freeze { id: 2 }, 2)] {
        world.drive.idle = id == 1;
        world.tell(stop);
        world.turn();
        assert!(!said(&world, id), "{id}");
    }
    world.deliver_one();
    world.drive.idle = true;
    world.turn();
    assert!(said(&world, 2) && !said(&world, 1));
    assert_eq!((world.group.in_flight(), world.reap().len()), (2, 1), "what was left has no answer");
    world.succeed();
    world.drive.later.clear();
    world.turn();
    assert_eq!(world.drive.later.len(), 2, "begun again");
    world.deliver();
    assert_eq!(world.reap().len(), 2, "each answered once");
    // A reset waits for all, too: the guest may take its memory away then.
    put_reads(&mut world, 1, 1);
    world.turn();
    assert!(!world.group.is_clearing());
    world.tell(GroupCommand::Reset { id: 3 });
    world.turn();
    assert!(!said(&world, 3) && world.group.is_clearing());
    assert!(world.group.is_unwanted(world.drive.later[0].0));
    world.deliver();
    world.turn();
    assert!(said(&world, 3) && !world.group.is_clearing());
}

/// Base 2.1, 5.2.4. Ours: docs/decisions/0017.
#[test]
fn what_waits_for_space_in_a_queue_that_is_deleted_is_given_up_and_aborted() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    assert!(!world.group.is_clearing() && !world.group.is_unwanted(world.drive.later[0].0));
    world.tell(GroupCommand::DeleteSq { sqid: 1 });
    world.turn();
    assert!(world.group.is_clearing());
    assert!(world.drive.later.iter().all(|(token, _)| world.group.is_unwanted(*token)));
    world.drive.later[0].1 = block::Outcome::Failed(block::Fault::NoSpace);
    world.deliver();
    world.turn();
    let mut said: Vec<_> = world.reap().iter().map(|done| done.status.bare()).collect();
    said.sort_by_key(|status| *status != Status::SUCCESS);
    assert_eq!(said, [Status::SUCCESS, Status::ABORTED_SQ_DELETION]);
    assert!(world.drive.events.contains(&GroupEvent::SqDeleted { sqid: 1 }));
}

/// Base 2.1, 5.1.1.
#[test]
fn a_command_that_has_not_begun_can_be_aborted() {
    let mut world = World::new();
    world.drive.mode = Mode::Full;
    put_reads(&mut world, 1, 1);
    world.turn();
    world.tell(GroupCommand::Abort { sqid: 1, cid: 101, id: 4 });
    world.tell(GroupCommand::Abort { sqid: 1, cid: 999, id: 5 });
    let results = |event: &&GroupEvent| matches!(event, GroupEvent::AbortResult { .. });
    let told: Vec<_> = world.drive.events.iter().filter(results).copied().collect();
    let [yes, no] = [(4, true), (5, false)].map(|(id, aborted)| GroupEvent::AbortResult { id, aborted });
    assert_eq!(told, [yes, no]);
    assert_eq!(world.reap()[0].status.bare(), Status::ABORT_REQUESTED);
}

/// Base 2.1, 5.1.2.1; hostile inputs, rows 4 and 5.
#[test]
fn an_invalid_doorbell_value_is_told_once_and_ignored() {
    let mut world = World::new();
    world.page.store(sq_index(1), ENTRIES);
    for _ in 0..5 {
        assert_eq!(world.turn(), 0);
    }
    let told = GroupEvent::InvalidDoorbell { qid: 1, kind: DoorbellError::Value };
    assert_eq!(world.drive.events, [told]);
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 1);
}

/// Base 2.1, 3.3: a full queue takes no entry; hostile inputs, row 5.
#[test]
fn a_full_completion_queue_stops_fetching_until_the_host_takes_entries() {
    let mut world = World::new();
    let mut taken = 0;
    for _ in 0..3 {
        put_reads(&mut world, 10, 1);
        for _ in 0..5 {
            taken += world.turn();
        }
    }
    assert_eq!(taken, 15, "one less than the queue has entries");
    world.page.store(cq_index(1), 4);
    for _ in 0..5 {
        taken += world.turn();
    }
    assert_eq!(taken, 19);
}

/// Base 2.1, 5.2.5 and annex B.5.
#[test]
fn shadow_doorbells_replace_the_registers_and_event_indices_are_published_when_idle() {
    let mut world = World::new();
    world.region.admin.shadow_doorbells.store(0x3_0000, Ordering::Relaxed);
    world.region.admin.event_indices.store(0x3_1000, Ordering::Relaxed);
    world.tell(GroupCommand::ShadowDoorbells { enabled: true, id: 1 });
    let read = world.command(NvmOpcode::Read, 1, 0, 1);
    world.put(&read);
    assert_eq!(world.turn(), 0);
    world.poke(0x3_0000 + 8, &world.tail.to_le_bytes());
    assert_eq!(world.turn(), 1);
    for _ in 0..40 {
        world.turn();
    }
    assert_eq!(world.memory(0x3_1000 + 8, 4), 1_u32.to_le_bytes());
    assert_eq!(world.memory(0x3_1000, 4), [0; 4], "the admin queue is not shadowed");
}

/// Ours: docs/decisions/0028. What is looked at in the place of a group says what the group says.
#[test]
fn a_watch_hears_the_doorbells_of_a_group_at_rest() {
    let mut world = World::new();
    let mut watch = Watch::default();
    assert_eq!(watch.rang(), None, "it watches nothing");
    for _ in 0..2 {
        world.turn();
        assert!(world.group.rest());
        watch.begin(&world.page);
        world.group.watch(&mut watch);
        assert_eq!((watch.rang(), world.group.rang()), (Some(false), false));
        put_reads(&mut world, 1, 1);
        assert_eq!((watch.rang(), world.group.rang()), (Some(true), true));
        assert_eq!(world.turn(), 1);
        world.reap();
    }
    watch.clear();
    assert_eq!(watch.rang(), None);
}

/// Base 2.1, 5.2.5: I/O queues ring in the shadow page. Ours: docs/decisions/0028.
#[test]
fn a_watch_hears_the_shadow_page_and_lets_go_of_it() {
    let mut world = World::new();
    world.region.admin.shadow_doorbells.store(0x3_0000, Ordering::Relaxed);
    world.region.admin.event_indices.store(0x3_1000, Ordering::Relaxed);
    world.tell(GroupCommand::ShadowDoorbells { enabled: true, id: 1 });
    let mut rests = || {
        world.turn();
        world.group.rest()
    };
    assert!((0..100).any(|_| rests()), "it asks its host to ring before it rests");
    let holders = Arc::strong_count(&world.map);
    let mut watch = Watch::default();
    watch.begin(&world.page);
    world.group.watch(&mut watch);
    world.page.store(sq_index(1), 1);
    assert_eq!((watch.rang(), world.group.rang()), (Some(false), false), "that is not where it rings");
    world.poke(0x3_0000 + 8, &1_u32.to_le_bytes());
    assert_eq!((watch.rang(), world.group.rang()), (Some(true), true));
    watch.clear();
    assert_eq!(Arc::strong_count(&world.map), holders, "an unmap would wait for it");
}

/// Ours: hostile inputs, row 10.
#[test]
fn no_more_commands_are_accepted_than_there_are_slots_and_all_end() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 15, 1);
    for _ in 0..4 {
        world.turn();
    }
    assert_eq!(world.group.in_flight(), 15);
    world.deliver();
    assert_eq!(world.reap().len(), 15);
    assert_eq!(world.memory(DATA, 512), world.drive.disk[14 * 512..15 * 512]);
}

/// Ours: hostile inputs, row 4: what is told of wrong doorbells is bounded, whatever the host makes up.
#[test]
fn a_host_that_rings_nonsense_for_ever_is_told_of_at_a_bounded_rate() {
    let mut world = World::new();
    for i in 0..1000 {
        world.page.store(sq_index(1), ENTRIES + i % 7);
        world.turn();
    }
    assert!(world.drive.events.len() <= 64);
}

/// Ours: a reset in the middle of commands that hold buffers gives the buffers back.
#[test]
fn buffers_survive_any_number_of_resets() {
    let mut world = World::new();
    for id in 0..20 {
        world.drive.mode = Mode::Later;
        let verify = world.command(NvmOpcode::Verify, 1, 0, 256);
        world.put(&verify);
        world.ring();
        assert_eq!(world.turn(), 1, "reset {id}");
        world.tell(GroupCommand::Reset { id });
        world.deliver();
        assert_eq!(world.drive.events, [GroupEvent::Acknowledged { id }]);
        world.drive.events.clear();
        world.renew();
    }
    world.drive.mode = Mode::AtOnce;
    let verify = world.command(NvmOpcode::Verify, 1, 0, 256);
    assert_eq!(world.run(&verify), Status::SUCCESS);
}

/// Ours: a long command takes turns with others on the same reactor.
#[test]
fn a_command_of_many_steps_does_not_keep_others_from_starting() {
    let mut world = World::new();
    let verify = world.command(NvmOpcode::Verify, 1, 0, 4096);
    world.put(&verify);
    put_reads(&mut world, 1, 1);
    for _ in 0..2 {
        world.turn();
    }
    let order: Vec<u16> = world.reap().iter().map(|completion| completion.cid).collect();
    assert!(order.contains(&(verify.cid() + 1)));
}

/// Base 2.1, 3.4.2: as the controller does it, with a hold around each pair, and other commands before, between and after.
#[test]
fn fused_pairs_under_holds_run_one_after_the_other_and_nothing_hangs() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    for _ in 0..2 {
        let compare = world.command(NvmOpcode::Compare, 1, 1, 1);
        let write = world.command(NvmOpcode::Write, 1, 1, 1);
        for (mut half, fuse) in [(compare, 1), (write, 2)] {
            half.cdw0.set_fuse(fuse);
            world.put(&half);
        }
        put_reads(&mut world, 1, 1);
    }
    world.poke(DATA, &world.drive.disk[512..1024]);
    let (mut wanted, mut held) = (std::collections::VecDeque::new(), None);
    let mut answers = 0;
    for _ in 0..200 {
        world.turn();
        world.deliver();
        for event in core::mem::take(&mut world.drive.events) {
            match event {
                GroupEvent::WantExclusive { ticket, .. } => wanted.push_back(ticket),
                GroupEvent::Acknowledged { id } => world.tell(GroupCommand::Granted { ticket: id }),
                GroupEvent::ExclusiveDone { ticket } => {
                    assert_eq!(held.take(), Some(ticket));
                    world.tell(GroupCommand::Release { id: ticket });
                }
                _ => {}
            }
        }
        if held.is_none()
            && let Some(ticket) = wanted.pop_front()
        {
            held = Some(ticket);
            world.tell(GroupCommand::Hold { scope: Scope::Nsid(1), except: Some(1), id: ticket });
        }
        answers += world.reap().len();
    }
    assert_eq!((answers, held), (8, None));
}

/// A pair on blocks that hold what it compares, up to what it asks the controller.
fn ask_for_a_pair(world: &mut World) -> u32 {
    for (opcode, fuse) in [(NvmOpcode::Compare, 1), (NvmOpcode::Write, 2)] {
        let mut half = world.command(opcode, 1, 1, 1);
        half.cdw0.set_fuse(fuse);
        world.put(&half);
    }
    world.ring();
    world.turn();
    match core::mem::take(&mut world.drive.events)[..] {
        [GroupEvent::WantExclusive { ticket, .. }] => ticket,
        ref events => panic!("{events:?}"),
    }
}

/// Base 2.1, 3.4.2: the slot of a Compare is free as soon as that is answered, while its pair still has the namespace.
#[test]
fn a_pair_that_comes_between_the_halves_of_another_is_granted_in_its_turn() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    world.poke(DATA, &world.drive.disk[512..1024]);
    let first = ask_for_a_pair(&mut world);
    world.tell(GroupCommand::Granted { ticket: first });
    world.deliver_one();
    assert_eq!(world.reap().len(), 1, "the Compare is answered, the Write is at the drive");
    let second = ask_for_a_pair(&mut world);
    assert_ne!(second, first, "the end of one is not taken for that of the other");
    world.deliver_one();
    let ended = core::mem::take(&mut world.drive.events);
    assert!(matches!(ended[..], [GroupEvent::ExclusiveDone { ticket }] if ticket == first), "{ended:?}");
    world.tell(GroupCommand::Granted { ticket: second });
    world.deliver();
    assert_eq!(world.reap().len(), 3);
}

/// Ours: what a pair was granted that is not there any more is not for the next one in its slots: the controller has not kept the namespace free for that.
#[test]
fn what_is_granted_to_a_pair_before_a_reset_is_not_had_by_the_next_one() {
    let mut world = World::new();
    world.poke(DATA, &world.drive.disk[512..1024]);
    let first = ask_for_a_pair(&mut world);
    world.tell(GroupCommand::Reset { id: 9 });
    world.turn();
    let ended = core::mem::take(&mut world.drive.events);
    assert_eq!(ended, [GroupEvent::ExclusiveDone { ticket: first }, GroupEvent::Acknowledged { id: 9 }]);
    world.renew();
    let second = ask_for_a_pair(&mut world);
    world.tell(GroupCommand::Granted { ticket: first });
    world.turn();
    assert!(world.drive.requests.is_empty() && world.reap().is_empty(), "it runs beside others");
    world.tell(GroupCommand::Granted { ticket: second });
    let answers = world.reap();
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.status.is_success()), "{answers:?}");
}

/// NVM 1.1, 3.3.7: a record that was under way over a reset has nothing of what came after it.
#[test]
fn a_record_that_a_command_before_a_reset_waited_for_is_not_the_next_ones() {
    let mut world = World::new();
    let ask = |world: &mut World, block| {
        let mark = world.command(NvmOpcode::WriteUncorrectable, 1, block, 1);
        world.put(&mark);
        world.ring();
        world.turn();
        match core::mem::take(&mut world.drive.events)[..] {
            [GroupEvent::WantPersist { ticket }] => ticket,
            ref events => panic!("{events:?}"),
        }
    };
    let first = ask(&mut world, 8);
    world.tell(GroupCommand::Reset { id: 9 });
    world.turn();
    assert_eq!(core::mem::take(&mut world.drive.events), [GroupEvent::Acknowledged { id: 9 }]);
    world.renew();
    let second = ask(&mut world, 16);
    world.tell(GroupCommand::Persisted { ticket: first, ok: true });
    assert!(world.reap().is_empty(), "its mark is on no record yet");
    world.tell(GroupCommand::Persisted { ticket: second, ok: true });
    assert_eq!(world.reap().len(), 1);
}

/// Base 2.1, 3.3: entries come in the order of positions; docs/formats/controller-region.md.
#[test]
fn answers_of_a_deleted_queue_leave_no_hole_in_a_completion_queue_that_was_unmapped() {
    let mut world = World::new();
    nvme::queue::create_sq(&world.region, 2, 0x8_0000, ENTRIES, 1);
    world.tell(GroupCommand::CreateSq { sqid: 2 });
    put_reads(&mut world, 1, 1);
    // The completion queue is gone when the answers are due: its own pages cannot be written.
    let mapped = Arc::clone(&world.map);
    world.drive.mode = Mode::Later;
    let other = world.command(NvmOpcode::Read, 1, 0, 1);
    mapped.write_bytes(Iova(0x8_0000), zerocopy::IntoBytes::as_bytes(&other)).expect("mapped");
    world.page.store(sq_index(2), 1);
    world.turn();
    world.tell(GroupCommand::Memory { map: Arc::new(MemoryMap::empty()) });
    world.deliver();
    world.tell(GroupCommand::DeleteSq { sqid: 2 });
    world.turn();
    assert!(world.drive.events.contains(&GroupEvent::SqDeleted { sqid: 2 }));
    assert!(world.reap().is_empty());
    world.tell(GroupCommand::Memory { map: mapped });
    world.turn();
    assert_eq!(world.reap().len(), 2, "both answers, the one of the deleted queue too");
}

/// Base 2.1, 5.1.12.1.33 (GDE): what may be on the drive counts as a change, though no host was told of its success.
#[test]
fn writes_that_failed_or_were_abandoned_are_counted_as_changes() {
    let mut world = World::new();
    let changes = |world: &World| {
        let counters = &world.region.sqs[1];
        (counters.writes.load(Ordering::Relaxed), counters.other_changes.load(Ordering::Relaxed))
    };
    let beyond = world.command(NvmOpcode::Write, 1, u64::MAX / 2, 1);
    assert_eq!(world.run(&beyond).bare(), Status::LBA_OUT_OF_RANGE);
    let read = world.command(NvmOpcode::Read, 1, 0, 1);
    assert_eq!(world.run(&read), Status::SUCCESS);
    assert_eq!(changes(&world), (0, 0), "nothing reached the drive");
    let zeroes = world.command(NvmOpcode::WriteZeroes, 1, 0, 1);
    assert_eq!(world.run(&zeroes), Status::SUCCESS);
    let write = world.command(NvmOpcode::Write, 1, 0, 1);
    assert_eq!(world.run(&write), Status::SUCCESS);
    assert_eq!(changes(&world), (1, 1));
    for mode in [Mode::AtOnce, Mode::Later] {
        (world.drive.fault, world.drive.mode) = (Some(block::Fault::Media), mode);
        let write = world.command(NvmOpcode::Write, 1, 0, 1);
        assert_eq!(world.run(&write).bare(), Status::WRITE_FAULT);
    }
    world.drive.fault = None;
    assert_eq!(changes(&world), (1, 3));
    // At the drive when the process ends, and again when the controller is reset.
    let write = world.command(NvmOpcode::Write, 1, 0, 1);
    world.put(&write);
    world.ring();
    world.turn();
    world.drive.later.clear();
    world.succeed();
    assert_eq!(changes(&world), (1, 4));
    world.turn();
    world.tell(GroupCommand::Reset { id: 9 });
    world.deliver();
    world.turn();
    assert_eq!(changes(&world), (1, 5));
}

/// Base 2.1, 5.1.12.1.33 (GDE), as above: also where no group had its queues when they went.
#[test]
fn commands_that_go_with_their_queue_are_counted_as_changes() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    for opcode in [NvmOpcode::Write, NvmOpcode::Read, NvmOpcode::Flush] {
        let command = world.command(opcode, 1, 0, 1);
        world.put(&command);
    }
    world.ring();
    world.turn();
    nvme::queue::close_sq(&world.region, 1);
    assert_eq!(world.region.sqs[1].other_changes.load(Ordering::Relaxed), 1);
}

/// Ours: docs/decisions/0028.
#[test]
fn a_queue_pair_is_let_go_when_what_was_accepted_has_ended_and_another_group_goes_on() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    world.tell(GroupCommand::Yield { cqid: 1 });
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 0, "nothing more is fetched here");
    assert!(world.drive.events.is_empty());
    world.deliver();
    assert_eq!(world.drive.events, [GroupEvent::Yielded { cqid: 1, kept: false }]);
    assert!(world.group.is_empty());
    assert_eq!(world.reap().len(), 2);
    assert_eq!(world.turn(), 0);
    // The other group may as well be this one.
    world.tell(GroupCommand::CreateCq { cqid: 1 });
    world.tell(GroupCommand::CreateSq { sqid: 1 });
    assert_eq!(world.turn(), 1);
    world.deliver();
    assert_eq!(world.reap().len(), 1);
}

/// Ours: docs/decisions/0028.
#[test]
fn a_queue_pair_whose_commands_take_long_stays_and_goes_on() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 1, 1);
    world.turn();
    world.tell(GroupCommand::Yield { cqid: 1 });
    put_reads(&mut world, 1, 1);
    assert_eq!(world.group.poll(Now(9_000_000), &mut world.drive), 0);
    world.group.flush(&mut world.drive);
    assert!(world.drive.events.is_empty());
    world.group.poll(Now(11_000_000), &mut world.drive);
    world.group.flush(&mut world.drive);
    assert_eq!(world.drive.events, [GroupEvent::Yielded { cqid: 1, kept: true }]);
    assert_eq!(world.turn(), 1);
    world.deliver();
    assert_eq!(world.reap().len(), 2);
    world.drive.events.clear();
    world.tell(GroupCommand::Yield { cqid: 9 });
    assert_eq!(world.drive.events, [GroupEvent::Yielded { cqid: 9, kept: true }], "it was never here");
}

/// Ours: docs/decisions/0028.
#[test]
fn a_reset_takes_the_place_of_the_answer_to_a_yield() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 1, 1);
    world.turn();
    world.tell(GroupCommand::Yield { cqid: 1 });
    world.tell(GroupCommand::Reset { id: 3 });
    world.turn();
    world.deliver();
    world.turn();
    assert_eq!(world.drive.events, [GroupEvent::Acknowledged { id: 3 }]);
    assert_eq!(world.region.sqs[1].size.load(Ordering::Relaxed), 0);
}

/// Ours: docs/decisions/0028.
#[test]
fn a_lull_begins_nothing_says_when_the_drive_is_empty_and_ends_as_if_it_had_not_been() {
    let mut world = World::new();
    world.drive.mode = Mode::Later;
    put_reads(&mut world, 2, 1);
    world.turn();
    world.tell(GroupCommand::Lull { id: 8 });
    put_reads(&mut world, 1, 1);
    assert_eq!(world.turn(), 0, "nothing begins");
    assert!(world.drive.events.is_empty(), "two are at the drive");
    world.deliver();
    assert_eq!(world.drive.events, [GroupEvent::Lulled { id: 8 }]);
    assert_eq!((world.turn(), world.reap().len()), (0, 2));
    assert!(!world.group.rest(), "it is not forgotten");
    assert_eq!(world.drive.events.len(), 1, "said once");
    world.tell(GroupCommand::EndLull);
    assert_eq!(world.turn(), 1);
    world.deliver();
    assert_eq!(world.reap().len(), 1);
    // What found no room before waits for the end, too, and a reset or a pause is one.
    world.drive.mode = Mode::Full;
    put_reads(&mut world, 1, 1);
    world.turn();
    world.drive.mode = Mode::AtOnce;
    world.tell(GroupCommand::Lull { id: 9 });
    world.turn();
    assert!(world.reap().is_empty());
    world.tell(GroupCommand::Pause { id: 10 });
    world.turn();
    assert_eq!(world.drive.events[1..], [GroupEvent::Lulled { id: 9 }, GroupEvent::Acknowledged { id: 10 }]);
    world.succeed();
    assert_eq!(world.settle().len(), 1);
}
