//! User data migration queues against Base 2.1: 5.1.4 (Controller Data Queue), 5.1.27 (Track Send), 5.1.25.1.23 (feature 21h), 5.1.2 (one-shot
//! events), 8.1.6; NVM 1.2, 5.3.1 (entries).

use memory::Iova;
use nvme::management::Change;
use spec::nvme::{Command, Status};

use crate::management::{House, house, resume, suspend};
use crate::world::{DATA, World, command};

const RING: u64 = 0x40_0000;
const FIRST: u8 = 1;
const STOPPED: u8 = 2;
const SUSPENDED: u8 = 3;
const RANGE: u8 = 0;
const NAMESPACE: u8 = 1;
const NOTHING: u8 = 2;

/// With slots of 32 bytes; contiguous.
fn create(cntlid: u16, slots: u32) -> Command {
    let mut create = command(0x45, 0, [0, u32::from(cntlid) << 16 | 1]);
    (create.prp1, create.cdw12) = (RING, slots * 8);
    create
}

fn delete(cdqid: u32) -> Command {
    command(0x45, 0, [1, cdqid])
}

fn track(cdqid: u32, starts: bool) -> Command {
    command(0x3d, 0, [u32::from(starts) << 16, cdqid])
}

fn set_head(cdqid: u32, head: u32) -> Command {
    Command { cdw12: head, ..command(0x09, 0, [0x21, cdqid]) }
}

/// What the host sees of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    phase: bool,
    esa: u8,
    lbacir: u8,
    nsid: u32,
    slba: u64,
    nlb_z: u32,
}

fn slot(house: &House, at: u32) -> Seen {
    let mut bytes = [0; 32];
    house.manager.map.read_bytes(Iova(RING + u64::from(at) * 32), &mut bytes).expect("mapped");
    assert_eq!(bytes[16..31], [0; 15]);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    Seen {
        phase: bytes[31] & 1 == 1,
        esa: bytes[31] >> 1 & 7,
        lbacir: bytes[31] >> 6,
        nsid: word(0),
        nlb_z: word(4),
        slba: u64::from(word(8)) | u64::from(word(12)) << 32,
    }
}

fn seen(phase: bool, esa: u8, lbacir: u8) -> Seen {
    Seen { phase, esa, lbacir, nsid: u32::from(lbacir != NOTHING), slba: 0, nlb_z: 0 }
}

fn range(phase: bool, slba: u64, nlb_z: u32) -> Seen {
    Seen { slba, nlb_z, ..seen(phase, 0, RANGE) }
}

fn clear(house: &House) {
    house.manager.map.write_bytes(Iova(RING), &[0; 8192]).expect("mapped");
}

impl House {
    /// The controller's guest writes, and the time goes by in which it is asked.
    fn writes(&mut self, cntlid: u16, blocks: impl IntoIterator<Item = u64>) {
        let managed = self.managed.get_mut(&cntlid).expect("there");
        if managed.tracked {
            managed.changed.extend(blocks.into_iter().map(|slba| Change::Blocks { nsid: 1, slba, nlb_z: 7 }));
        }
        self.wait();
    }

    fn wait(&mut self) {
        for _ in 0..3 {
            self.manager.now += 5_000_000;
            self.settle();
        }
    }
}

fn logged(slots: u32) -> House {
    let mut house = house(vec![World::ready()]);
    clear(&house);
    assert_eq!(house.succeeds(create(1, slots)), 1);
    house.succeeds(track(1, true));
    house.wait();
    house
}

/// Base 2.1, 5.1.4.1 and 5.1.4.2.
#[test]
fn a_data_queue_is_made_and_deleted_with_the_status_of_the_specification() {
    let mut house = house((0..6).map(|_| World::ready()).collect());
    let with = |f: &dyn Fn(&mut Command)| {
        let mut command = create(1, 16);
        f(&mut command);
        command
    };
    house.fails(with(&|c| c.cdw12 += 1), Status::INVALID_FIELD);
    house.fails(with(&|c| c.cdw12 = 8), Status::INVALID_FIELD);
    house.fails(with(&|c| c.cdw12 = 0), Status::INVALID_FIELD);
    house.fails(with(&|c| c.cdw12 = 8 << 17), Status::INVALID_FIELD);
    house.fails(with(&|c| c.cdw10 = 1 << 16), Status::INVALID_FIELD);
    house.fails(with(&|c| c.cdw10 = 2), Status::INVALID_FIELD);
    house.fails(with(&|c| c.prp1 += 8), Status::PRP_OFFSET_INVALID);
    house.fails(with(&|c| c.prp1 = 1 << 50), Status::INVALID_FIELD);
    house.fails(create(9, 16), Status::INVALID_CONTROLLER_IDENTIFIER);
    house.fails(create(0, 16), Status::INVALID_CONTROLLER_IDENTIFIER);
    for cntlid in 1..=4 {
        assert_eq!(house.succeeds(create(cntlid, 16)), u32::from(cntlid));
    }
    house.fails(create(2, 16), Status::INVALID_FIELD);
    house.fails(create(5, 16), Status::NOT_ENOUGH_RESOURCES);
    house.succeeds(delete(2));
    house.fails(delete(2), Status::INVALID_CONTROLLER_DATA_QUEUE);
    house.fails(delete(0), Status::INVALID_CONTROLLER_DATA_QUEUE);
    assert_eq!(house.succeeds(create(5, 16)), 2);
    // A reset of the management controller ends them.
    house.manager.disable();
    house.manager.enable();
    house.fails(delete(1), Status::INVALID_CONTROLLER_DATA_QUEUE);
}

/// Base 2.1, 5.1.4.1: PC 0. A page that is not aligned is refused wherever it stands in the list.
#[test]
fn a_data_queue_may_be_in_pieces() {
    let mut house = house(vec![World::ready()]);
    clear(&house);
    let pages = [RING + 4096, RING, RING + 0x5000];
    let list: Vec<u8> = pages.iter().flat_map(|page: &u64| page.to_le_bytes()).collect();
    house.manager.set_data(&list);
    let mut create = create(1, 3 * 128);
    (create.prp1, create.cdw11) = (DATA, 1 << 16);
    house.succeeds(create);
    house.succeeds(track(1, true));
    house.writes(1, 0..200);
    assert_eq!(slot(&house, 128), seen(true, FIRST, NOTHING), "the first page is the second of the ring");
    assert_eq!(slot(&house, 129), range(true, 0, 7));
    assert_eq!(slot(&house, 0), range(true, 127, 7));
    house.succeeds(delete(1));
    house.manager.set_data(&[pages[0].to_le_bytes(), (pages[1] + 8).to_le_bytes()].concat());
    house.fails(create, Status::PRP_OFFSET_INVALID);
}

/// NVM 1.2, 5.3.1; Base 2.1, 5.1.27.1.1.
#[test]
fn what_is_written_while_it_is_logged_is_in_the_queue() {
    let mut house = logged(16);
    assert_eq!(slot(&house, 0), seen(true, FIRST, NOTHING));
    house.writes(1, [64, 8]);
    assert_eq!((slot(&house, 1), slot(&house, 2)), (range(true, 64, 7), range(true, 8, 7)));
    assert!(!slot(&house, 3).phase);
    house.fails(track(1, true), Status::INVALID_CONTROLLER_DATA_QUEUE);
    house.managed.get_mut(&1).expect("there").changed = vec![Change::Blocks { nsid: 1, slba: 16, nlb_z: 7 }];
    house.succeeds(track(1, false));
    house.wait();
    assert_eq!(slot(&house, 3), range(true, 16, 7), "it was written before the log was stopped");
    assert_eq!(slot(&house, 4), seen(true, STOPPED, NOTHING));
    assert!(!house.managed[&1].tracked);
    house.writes(1, [24]);
    assert!(!slot(&house, 5).phase);
    house.fails(track(2, true), Status::INVALID_CONTROLLER_DATA_QUEUE);
    house.fails(command(0x3d, 0, [2, 1]), Status::INVALID_FIELD);
    house.fails(command(0x3d, 0, [2 << 16, 1]), Status::INVALID_FIELD);
}

/// Base 2.1, 8.1.6: one slot is always free; the phase tag is inverted in each lap. Ours: a slow host is waited for, and no change is lost.
#[test]
fn a_queue_that_has_no_room_is_waited_for() {
    let mut house = logged(4);
    house.writes(1, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(!slot(&house, 3).phase, "one is free");
    let (mut head, mut phase, mut found) = (0, true, Vec::new());
    for _ in 0..40 {
        while slot(&house, head).phase == phase {
            found.push(slot(&house, head).slba);
            head += 1;
            if head == 4 {
                (head, phase) = (0, !phase);
            }
        }
        house.succeeds(set_head(1, head));
        house.wait();
    }
    assert_eq!(found, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    house.fails(set_head(1, 4), Status::INVALID_FIELD);
    house.fails(set_head(1, (head + 1) % 4), Status::INVALID_FIELD);
    house.fails(set_head(2, 0), Status::INVALID_CONTROLLER_DATA_QUEUE);
}

/// Base 2.1, 5.1.25.1.23, 5.1.2: told once, with the queue in dword 1; and the 512 bytes of Get Features.
#[test]
fn the_host_is_told_when_the_tail_comes_to_its_trigger() {
    let mut house = logged(16);
    let request = house.manager.submit(command(0x0c, 0, [0, 0]));
    let mut trigger = set_head(1, 1);
    (trigger.cdw11, trigger.cdw13) = (1 << 31 | 1, 3);
    house.succeeds(trigger);
    assert_eq!(house.succeeds(command(0x0a, 0, [0x21, 1])), 1 << 31 | 1);
    let page = house.manager.data(512);
    assert_eq!((&page[..8], &page[8..]), (&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 504][..]));
    house.writes(1, [8, 16]);
    assert!(house.manager.reap().is_none(), "two entries");
    house.writes(1, [24]);
    let told = house.manager.reap().expect("an event");
    assert_eq!((told.cid, told.dw0, told.dw1), (request, 4, 1));
    assert_eq!(house.succeeds(command(0x0a, 0, [0x21, 1])), 1);
    // The next is not masked by it, and a Set that comes in time takes it back.
    (trigger.cdw12, trigger.cdw13) = (4, 4);
    house.succeeds(trigger);
    house.writes(1, [32]);
    house.succeeds(set_head(1, 5));
    let request = house.manager.submit(command(0x0c, 0, [0, 0]));
    house.wait();
    assert!(house.manager.reap().is_none(), "it was taken back");
    (trigger.cdw12, trigger.cdw13) = (5, 5);
    house.succeeds(trigger);
    house.writes(1, [40]);
    assert_eq!(house.manager.reap().expect("an event").cid, request);
    trigger.cdw13 = 16;
    house.fails(trigger, Status::INVALID_FIELD);
}

/// Base 2.1, 8.1.12.1: all that was written before a suspend, then that it is suspended, and after a resume a first entry again.
#[test]
fn a_suspend_posts_what_is_left_and_then_that_it_is_the_last() {
    let mut house = logged(16);
    let managed = house.managed.get_mut(&1).expect("there");
    managed.changed = vec![Change::Blocks { nsid: 1, slba: 8, nlb_z: 0 }];
    house.succeeds(suspend(1));
    house.wait();
    assert_eq!(slot(&house, 1), range(true, 8, 0));
    assert_eq!(slot(&house, 2), seen(true, SUSPENDED, NOTHING));
    house.fails(track(2, true), Status::INVALID_CONTROLLER_DATA_QUEUE);
    house.succeeds(resume(1));
    house.writes(1, [16]);
    assert_eq!((slot(&house, 3), slot(&house, 4)), (seen(true, FIRST, NOTHING), range(true, 16, 7)));
    // DUDMQ: the queue is gone when the command is answered.
    house.managed.get_mut(&1).expect("there").changed = vec![Change::Blocks { nsid: 1, slba: 9, nlb_z: 0 }];
    house.succeeds(command(0x41, 0, [0, 1 << 31 | 1 << 16 | 1]));
    assert_eq!((slot(&house, 5), slot(&house, 6)), (range(true, 9, 0), seen(true, SUSPENDED, NOTHING)));
    house.fails(delete(1), Status::INVALID_CONTROLLER_DATA_QUEUE);
    assert!(!house.managed[&1].tracked);
    // A suspended controller is not logged.
    house.succeeds(create(1, 16));
    house.fails(track(1, true), Status::CONTROLLER_SUSPENDED);
}

/// Ours: what a dead engine had noted is lost, and said to be all (docs/decisions/0038).
#[test]
fn a_successor_says_that_all_changed() {
    let mut house = logged(64);
    house.writes(1, [8]);
    let managed = house.managed.get_mut(&1).expect("there");
    (managed.changed, managed.tracked) = (vec![Change::Blocks { nsid: 1, slba: 64, nlb_z: 0 }], false);
    house.manager.succeed();
    house.wait();
    assert_eq!(slot(&house, 2), seen(true, 0, NAMESPACE));
    house.writes(1, [16]);
    assert_eq!(slot(&house, 3), range(true, 16, 7));
    // Also before it says that the controller is suspended, by a command that was not answered.
    house.managed.get_mut(&1).expect("there").tracked = false;
    house.manager.submit(suspend(1));
    house.manager.controller.poll(block::Now(house.manager.now), &mut house.manager.host);
    house.manager.host.orders.clear();
    house.manager.succeed();
    house.wait();
    assert_eq!(
        (slot(&house, 4), slot(&house, 5)),
        (seen(true, 0, NAMESPACE), seen(true, SUSPENDED, NOTHING))
    );
    // One that was suspended, and is still, has nothing to say.
    house.managed.get_mut(&1).expect("there").tracked = false;
    house.manager.succeed();
    house.wait();
    assert!(!slot(&house, 6).phase);
}

/// Ours: an entry that a dead engine had begun to post is posted as it was, once.
#[test]
fn a_post_that_ends_before_any_of_its_stores_is_ended_by_a_successor() {
    let mut lives = 0;
    loop {
        let mut house = logged(64);
        house.managed.get_mut(&1).expect("there").changed =
            vec![Change::Blocks { nsid: 1, slba: 8, nlb_z: 0 }];
        house.manager.now += 5_000_000;
        house.manager.pump();
        let (ticket, cntlid, order) = house.manager.host.orders.pop_front().expect("it is asked");
        let report = house.carry_out(cntlid, order);
        let now = block::Now(house.manager.now);
        nvme::crash::arm(lives);
        let manager = &mut house.manager;
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            manager.controller.managed(ticket, report, now, &mut manager.host);
        }));
        nvme::crash::arm(u64::MAX);
        house.managed.get_mut(&1).expect("there").tracked = false;
        house.manager.succeed();
        house.wait();
        let entries: Vec<Seen> = (1..4).map(|at| slot(&house, at)).filter(|entry| entry.phase).collect();
        let all = seen(true, 0, NAMESPACE);
        assert!(entries == [all] || entries == [range(true, 8, 0), all], "after {lives} stores: {entries:?}");
        if ended.is_ok() {
            break;
        }
        lives += 1;
    }
    assert!(lives > 3, "{lives}");
}
