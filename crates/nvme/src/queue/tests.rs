//! The permit, the rings' arithmetic, and the store order: the world ends after each store in turn, and what a successor
//! concludes is compared with what the host saw.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{Access, Iova, Mapping, MemoryMap, SharedRegion};
use spec::nvme::{Command, Completion, Status};
use state::region::ControllerRegion;
use zerocopy::IntoBytes;

use super::*;
use crate::crash;

const SQ: u64 = 0;
const CQ: u64 = 0x1000;
const ENTRIES: u32 = 4;

type Ram = [AtomicU64; 1024];

struct Host {
    map: Arc<MemoryMap>,
    region: SharedRegion<ControllerRegion>,
}

fn host() -> Host {
    let ram = SharedRegion::<Ram>::memfd("ram").expect("a memfd");
    let fd = ram.fd().expect("has one").try_clone_to_owned().expect("an fd");
    let mapping = Mapping::new(fd, 0, 8192, Access::BOTH).expect("mapped");
    let map = MemoryMap::empty().with(Iova(0), 8192, Access::BOTH, Some((mapping, 0))).expect("a region");
    let region = SharedRegion::private();
    create_cq(&region, 1, CQ, ENTRIES, None);
    create_sq(&region, 1, SQ, ENTRIES, 1);
    Host { map: Arc::new(map), region }
}

impl Host {
    fn open(&self) -> (SubmissionQueue, CompletionQueue) {
        let cq = CompletionQueue::open(&self.region, 1, &self.map).expect("a record");
        (SubmissionQueue::open(&self.region, 1, &self.map).expect("a record"), cq)
    }

    fn put(&self, position: u32, cid: u16) {
        let mut command = Command::default();
        command.cdw0 = command.cdw0.with_cid(cid);
        self.map.write_bytes(Iova(SQ + u64::from(position) * 64), command.as_bytes()).expect("mapped");
    }

    fn entry(&self, position: u32) -> Completion {
        let dwords: [u32; 4] = self.map.read(Iova(CQ + u64::from(position) * 16)).expect("mapped");
        Completion::from_dwords(dwords)
    }
}

fn accept_one(host: &Host, sq: &mut SubmissionQueue, cq: &mut CompletionQueue) -> Accepted {
    let command = sq.fetch(0).expect("mapped");
    sq.accept(&host.region, cq, &command).expect("room")
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "neither answered nor abandoned")]
fn a_permit_that_is_dropped_is_a_bug() {
    let host = host();
    let (mut sq, mut cq) = host.open();
    sq.look(1);
    drop(accept_one(&host, &mut sq, &mut cq));
}

#[test]
fn the_phase_turns_when_the_completion_queue_wraps() {
    let host = host();
    let (mut sq, mut cq) = host.open();
    for i in 0..9_u16 {
        let position = u32::from(i) % ENTRIES;
        host.put(position, 100 + i);
        assert_eq!(sq.look((position + 1) % ENTRIES), Look::Waiting(1));
        let accepted = accept_one(&host, &mut sq, &mut cq);
        cq.post(&host.region, &mut sq, accepted, Answer::of(Status::SUCCESS));
        let entry = host.entry(position);
        assert_eq!((entry.cid, entry.sqid, u32::from(entry.sqhd)), (100 + i, 1, (position + 1) % ENTRIES));
        assert_eq!(entry.status.phase(), (u32::from(i) / ENTRIES).is_multiple_of(2));
        assert!(cq.look(&host.region, (position + 1) % ENTRIES));
    }
}

#[test]
fn a_head_beyond_the_tail_or_the_queue_is_refused_and_told_once() {
    let host = host();
    let (_sq, mut cq) = host.open();
    for head in [1, ENTRIES, u32::MAX] {
        assert!(!cq.look(&host.region, head));
        assert!(cq.look(&host.region, head), "told once");
        assert_eq!(cq.room(), ENTRIES - 1);
    }
}

#[test]
fn a_slot_of_a_full_queue_is_not_given_twice() {
    let host = host();
    let (mut sq, mut cq) = host.open();
    sq.look(3);
    let all: Vec<Accepted> = (0..3).map(|_| accept_one(&host, &mut sq, &mut cq)).collect();
    let command = sq.fetch(0).expect("mapped");
    assert!(sq.accept(&host.region, &mut cq, &command).is_none(), "no completion queue entry is left");
    let mut slots: Vec<u16> = all.iter().map(Accepted::slot).collect();
    slots.dedup();
    assert_eq!(slots.len(), 3);
    all.into_iter().for_each(|accepted| sq.abandon(&host.region, accepted));
}

/// Three commands; the second is answered before the first. Returns which answers were given to `post`.
fn scenario(host: &Host) {
    let (mut sq, mut cq) = host.open();
    sq.look(3);
    let first = accept_one(host, &mut sq, &mut cq);
    let second = accept_one(host, &mut sq, &mut cq);
    cq.post(&host.region, &mut sq, second, Answer::of(Status::SUCCESS));
    let third = accept_one(host, &mut sq, &mut cq);
    cq.post(&host.region, &mut sq, third, Answer::of(Status::SUCCESS));
    cq.post(&host.region, &mut sq, first, Answer::of(Status::SUCCESS));
}

#[test]
fn after_any_store_a_successor_answers_everything_once_and_nothing_twice() {
    let mut stores = 0;
    loop {
        let host = host();
        for i in 0..3 {
            host.put(u32::from(i), 100 + i);
        }
        crash::arm(stores + 1);
        let survived = catch_unwind(AssertUnwindSafe(|| scenario(&host))).is_ok();
        crash::arm(u64::MAX);
        // What the host had seen when the process died must still be so in the end.
        let seen: Vec<Completion> = (0..3).map(|i| host.entry(i)).take_while(|e| e.status.phase()).collect();

        let found = conclude(&host.region, 1).expect("a queue");
        found.settle(&host.region, 1);
        let (mut sq, mut cq) = host.open();
        found.finish_posts(&host.region, &mut sq, &mut cq);
        for unanswered in &found.unanswered {
            let (command, accepted) = sq.resume(&host.region, &mut cq, unanswered.slot).expect("accepted");
            assert_eq!(command.cid(), 100 + u16::try_from(unanswered.seq).expect("small"), "an untorn copy");
            cq.post(&host.region, &mut sq, accepted, Answer::of(Status::SUCCESS));
        }
        sq.look(3);
        while sq.waiting() > 0 {
            let accepted = accept_one(&host, &mut sq, &mut cq);
            cq.post(&host.region, &mut sq, accepted, Answer::of(Status::SUCCESS));
        }
        let all: Vec<Completion> = (0..4).map(|i| host.entry(i)).take_while(|e| e.status.phase()).collect();
        assert_eq!(&all[..seen.len()], &seen[..], "after {stores} stores");
        let mut cids: Vec<u16> = all.iter().map(|entry| entry.cid).collect();
        cids.sort_unstable();
        assert_eq!(cids, [100, 101, 102], "after {stores} stores");
        assert_eq!(sq.in_flight(), 0, "after {stores} stores");
        if survived {
            assert!(stores > 40, "the scenario has that many stores");
            return;
        }
        stores += 1;
    }
}

#[test]
fn a_successor_executes_in_the_order_of_acceptance_whatever_the_slots() {
    let host = host();
    for i in 0..3 {
        host.put(u32::from(i), 100 + i);
    }
    host.region.sqs[1].head_seq.store(0xffff_fffe << 32, Ordering::Relaxed);
    let (mut sq, mut cq) = host.open();
    sq.look(3);
    for _ in 0..3 {
        accept_one(&host, &mut sq, &mut cq).forget();
    }
    let found = conclude(&host.region, 1).expect("a queue");
    let cids: Vec<u16> = found.unanswered.iter().map(|unanswered| unanswered.command.cid()).collect();
    assert_eq!(cids, [100, 101, 102], "sequence numbers wrap between the second and the third");
    assert_eq!((found.head, found.seq), (3, 1));
}

#[test]
fn a_queue_that_is_created_anew_knows_no_progress_of_the_old_ones_commands() {
    let host = host();
    for life in ["first", "second"] {
        let (mut sq, mut cq) = host.open();
        sq.look(1);
        let accepted = accept_one(&host, &mut sq, &mut cq);
        let slot = accepted.slot();
        assert_eq!(sq.progress(&host.region, slot), 0, "the {life} queue's first command, in the same slot");
        sq.set_progress(&host.region, slot, 1);
        cq.post(&host.region, &mut sq, accepted, Answer::of(Status::SUCCESS));
        close_sq(&host.region, 1);
        close_cq(&host.region, 1);
        create_cq(&host.region, 1, CQ, ENTRIES, None);
        create_sq(&host.region, 1, SQ, ENTRIES, 1);
    }
}

#[test]
fn an_unsound_record_opens_no_queue() {
    let host = host();
    let record = &host.region.sqs[1];
    for (size, head) in [(0, 0), (1, 0), (4, 4), (1 << 17, 0), (4, u64::from(u32::MAX))] {
        record.size.store(size, Ordering::Relaxed);
        record.head_seq.store(head, Ordering::Relaxed);
        assert!(SubmissionQueue::open(&host.region, 1, &host.map).is_none());
        assert!(conclude(&host.region, 1).is_none());
    }
    assert!(SubmissionQueue::open(&host.region, u16::MAX, &host.map).is_none());
    assert!(CompletionQueue::open(&host.region, u16::MAX, &host.map).is_none());
}

/// Base 2.1, annex B.5; hostile-inputs row 5. Host and controller meet at every round: the controller goes idle while the host
/// stores a tail. Whoever comes second must notice the other.
#[test]
fn no_wake_up_is_lost_between_going_idle_and_a_shadow_doorbell() {
    use std::sync::atomic::{AtomicU32, fence};
    const ROUNDS: u32 = 3000;
    let ram = SharedRegion::<[AtomicU32; 2048]>::memfd("shadow").expect("a memfd");
    let fd = ram.fd().expect("has one").try_clone_to_owned().expect("an fd");
    let mapping = Mapping::new(fd, 0, 8192, Access::BOTH).expect("mapped");
    let map = MemoryMap::empty().with(Iova(0), 8192, Access::BOTH, Some((mapping, 0))).expect("a region");
    let region = SharedRegion::<ControllerRegion>::private();
    region.admin.event_indices.store(4096, Ordering::Relaxed);
    let page = SharedRegion::<memory::DoorbellPage>::private();
    let mut bells = Doorbells::default();
    bells.set_shadow(true, &region, &Arc::new(map));
    let index = sq_index(1);
    let (begun, rung) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                while begun.load(Ordering::Acquire) <= round {
                    std::thread::yield_now();
                }
                ram[index].store(round + 1, Ordering::Release);
                fence(Ordering::SeqCst);
                // From `round` to `round + 1`: past EventIdx exactly when that is `round`.
                if ram[1024 + index].load(Ordering::Acquire) == round {
                    rung.store(round + 1, Ordering::Release);
                }
            }
        });
        for round in 0..ROUNDS {
            begun.store(round + 1, Ordering::Release);
            if bells.announce(&page, index, round) == round {
                let asleep = std::time::Instant::now();
                while rung.load(Ordering::Acquire) != round + 1 {
                    assert!(asleep.elapsed().as_secs() < 20, "nobody rang in round {round}");
                    std::thread::yield_now();
                }
            }
            while bells.value(&page, index) != round + 1 {
                std::thread::yield_now();
            }
        }
    });
}
