//! Any bytes in a controller's shared region, as a successor may find them: queues open or do not, nothing panics or loops,
//! and each slot is concluded at most once.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use godwit_fuzz::{edge::Edge, guest, region};
use libfuzzer_sys::fuzz_target;
use nvme::queue::{CompletionQueue, SubmissionQueue, conclude};
use state::region::ControllerRegion;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: u8,
    cqs: Vec<Cq>,
    sqs: Vec<Sq>,
    tails: Vec<Edge>,
}

#[derive(Arbitrary, Debug)]
struct Cq {
    base: Edge,
    size: Edge,
    tail: Edge,
    head: Edge,
    interrupt: Edge,
}

#[derive(Arbitrary, Debug)]
struct Sq {
    base: Edge,
    size: Edge,
    head: Edge,
    seq: Edge,
    cqid: u8,
    slots: Vec<Slot>,
}

#[derive(Arbitrary, Debug)]
struct Slot {
    at: u8,
    word: SlotWord,
    completion: [u64; 2],
}

#[derive(Arbitrary, Debug)]
enum SlotWord {
    Any(u64),
    Near { seq: u8, position: u8, state: u8, phase: bool },
}

const QUEUES: usize = 5;

fn fill(region: &ControllerRegion, input: &Input) {
    for (record, cq) in region.cqs.iter().zip(input.cqs.iter().take(QUEUES)) {
        record.base.store(cq.base.0, Ordering::Relaxed);
        record.size.store(cq.size.u32(), Ordering::Relaxed);
        record.tail_phase.store(cq.tail.u32(), Ordering::Relaxed);
        record.head.store(cq.head.u32(), Ordering::Relaxed);
        record.interrupt.store(cq.interrupt.u32(), Ordering::Relaxed);
    }
    for (qid, sq) in input.sqs.iter().take(QUEUES).enumerate() {
        let record = &region.sqs[qid];
        record.reads.store(1, Ordering::Relaxed);
        record.base.store(sq.base.0, Ordering::Relaxed);
        record.size.store(sq.size.u32(), Ordering::Relaxed);
        record.head_seq.store(u64::from(sq.head.u32()) | sq.seq.0 << 32, Ordering::Relaxed);
        record.cqid.store(u32::from(sq.cqid) % 7, Ordering::Relaxed);
        for slot in &sq.slots {
            let word = match slot.word {
                SlotWord::Any(word) => word,
                SlotWord::Near { seq, position, state, phase } => {
                    let seq = sq.seq.0.wrapping_add(u64::from(seq)).wrapping_sub(4);
                    let position = u64::from(sq.head.u16().wrapping_add(u16::from(position)).wrapping_sub(4));
                    seq << 32 | position << 16 | u64::from(phase) << 8 | u64::from(state & 3)
                }
            };
            let place = &region.slots[qid][usize::from(slot.at)];
            place.word.store(word, Ordering::Relaxed);
            place.completion[0].store(slot.completion[0], Ordering::Relaxed);
            place.completion[1].store(slot.completion[1], Ordering::Relaxed);
        }
    }
}

fuzz_target!(|input: Input| {
    let region = region::fresh();
    guest::clear();
    let map = guest::map(input.shape);
    fill(&region, &input);
    recover(&region, &map, &input.tails);
});

fn recover(region: &ControllerRegion, map: &Arc<memory::MemoryMap>, tails: &[Edge]) {
    let found: Vec<_> = (0..6_u16).map(|sqid| (sqid, conclude(region, sqid))).collect();
    for (sqid, found) in &found {
        if let Some(found) = found {
            assert!(found.unanswered.len() <= 256);
            let mut slots: Vec<u16> = found.unanswered.iter().map(|one| one.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), found.unanswered.len(), "a slot concluded twice");
            found.settle(region, *sqid);
        }
    }
    let mut cqs: Vec<_> = (0..6_u16).map(|cqid| CompletionQueue::open(region, cqid, map)).collect();
    for (sqid, found) in &found {
        let Some(found) = found else { continue };
        let Some(mut sq) = SubmissionQueue::open(region, *sqid, map) else { continue };
        let Some(Some(cq)) = cqs.get_mut(usize::from(sq.cqid())) else { continue };
        found.finish_posts(region, &mut sq, cq);
        for one in &found.unanswered {
            if let Some((command, accepted)) = sq.resume(region, cq, one.slot) {
                assert_eq!(command.cid(), accepted.cid());
                let answer = nvme::queue::Answer::of(spec::nvme::Status::SUCCESS);
                cq.post(region, &mut sq, accepted, answer);
            }
        }
        for tail in tails.iter().take(16) {
            let _ = sq.look(tail.u32());
            let _ = cq.look(region, tail.u32());
            assert!(cq.room() < 1 << 16);
            for _ in 0..sq.waiting().min(4) {
                let Some(command) = sq.fetch(0) else { break };
                let Some(accepted) = sq.accept(region, cq, &command) else { break };
                let answer = nvme::queue::Answer::of(spec::nvme::Status::SUCCESS);
                cq.post(region, &mut sq, accepted, answer);
            }
        }
        for _ in 0..300 {
            if cq.next_unwritten().is_none() {
                break;
            }
        }
    }
}
