//! What a region says to who finds it: a new group after a pause, or a successor after a crash.

use std::sync::atomic::Ordering;

use spec::nvme::{Command, Completion, Fuse};
use state::region::{ControllerRegion, SLOT_ACCEPTED, SLOT_FREE, SLOT_POSTING};

use super::completion::{CompletionQueue, WORD_PHASE};
use super::record::{CqRecord, SqRecord};
use super::submission::{SubmissionQueue, command_in, head_seq, position_of, seq_of, state_of};
use crate::store::publish64;

/// A command that was accepted and has no answer yet.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    /// Its slot.
    pub slot: u16,
    /// Its accept sequence number: the order in which the host gave them.
    pub seq: u32,
    /// The private copy.
    pub command: Command,
}

/// What is concluded of one submission queue.
#[derive(Clone, Debug)]
pub struct Conclusion {
    /// Next entry to accept, and its sequence number.
    pub head: u32,
    /// See `head`.
    pub seq: u32,
    /// To be executed (again), in the order they were accepted.
    pub unanswered: Vec<Unanswered>,
    /// Slots whose completion was being posted: slot, position, phase, entry without phase tag.
    posting: Vec<(u16, u32, bool, u128)>,
    /// The first half of a fused pair whose second half was not accepted: the head is before it, so neither was.
    half: Option<u16>,
}

/// Reads a submission queue's record and slots. `None`: the queue does not exist or the record is unsound.
///
/// The last accept may have reached its slot and not the head: a slot ACCEPTED with the head's own sequence number and
/// position says so, and the head is one further. A fused pair is accepted whole or not at all: its halves are two slots.
#[must_use]
pub fn conclude(region: &ControllerRegion, sqid: u16) -> Option<Conclusion> {
    let record = SqRecord::load(region, sqid)?;
    let mut found = Conclusion {
        head: record.head,
        seq: record.seq,
        unanswered: Vec::new(),
        posting: Vec::new(),
        half: None,
    };
    let next_of = |position: u32| if position + 1 == record.size { 0 } else { position + 1 };
    // The newest accepts, in slots and not yet under the head.
    let (mut newest, mut second) = (None, false);
    for (slot, place) in (0..).zip(region.slots.get(usize::from(sqid))?) {
        let word = place.word.load(Ordering::Acquire);
        match state_of(place) {
            SLOT_ACCEPTED => {
                let seq = seq_of(word);
                let command = command_in(place);
                if seq == record.seq && position_of(word) == record.head {
                    newest = Some((slot, Fuse(command.cdw0.fuse())));
                }
                second |= seq == record.seq.wrapping_add(1) && position_of(word) == next_of(record.head);
                found.unanswered.push(Unanswered { slot, seq, command });
            }
            SLOT_POSTING => {
                let entry = [
                    place.completion[0].load(Ordering::Relaxed),
                    place.completion[1].load(Ordering::Relaxed),
                ];
                found.posting.push((
                    slot,
                    position_of(word),
                    word & WORD_PHASE != 0,
                    zerocopy::transmute!(entry),
                ));
            }
            _ => {}
        }
    }
    match newest {
        Some((slot, Fuse::First)) if !second => {
            found.half = Some(slot);
            found.unanswered.retain(|unanswered| unanswered.slot != slot);
        }
        Some((_, fuse)) => {
            found.head = next_of(found.head);
            found.seq = found.seq.wrapping_add(1);
            if fuse == Fuse::First {
                found.head = next_of(found.head);
                found.seq = found.seq.wrapping_add(1);
            }
        }
        None => {}
    }
    let next = found.seq;
    // The oldest is furthest behind the next number, whatever wrapped.
    found.unanswered.sort_by_key(|command| core::cmp::Reverse(next.wrapping_sub(command.seq)));
    Some(found)
}

/// RETIRE of the protocol, for a slot whose queue is not open here.
pub fn free_slot(region: &ControllerRegion, sqid: u16, slot: u16) {
    let slots = region.slots.get(usize::from(sqid));
    if let Some(place) = slots.and_then(|slots| slots.get(usize::from(slot))) {
        publish64(&place.word, SLOT_FREE);
    }
}

impl Conclusion {
    /// Brings the records of the submission queue and its completion queue to a state of rest, before either is opened:
    /// the head past the last accept, the tail past the last post that had begun.
    pub fn settle(&self, region: &ControllerRegion, sqid: u16) {
        let Some(record) = region.sqs.get(usize::from(sqid)) else { return };
        if let Some(slot) = self.half {
            free_slot(region, sqid, slot);
        }
        publish64(&record.head_seq, head_seq(self.head, self.seq));
        let [cqid, _]: [u16; 2] = zerocopy::transmute!(record.cqid.load(Ordering::Relaxed));
        let (Some(cq), Some(record)) = (CqRecord::load(region, cqid), region.cqs.get(usize::from(cqid)))
        else {
            return;
        };
        // At most one post can stand between its slot word and the tail: one writer, one post at a time.
        if self.posting.iter().any(|&(_, position, phase, _)| position == cq.tail && phase == cq.phase) {
            let (tail, phase) = if cq.tail + 1 == cq.size { (0, !cq.phase) } else { (cq.tail + 1, cq.phase) };
            crate::store::publish32(&record.tail_phase, tail | u32::from(phase) << 16);
        }
    }

    /// As [`Conclusion::finish_posts`], when the completion queue is opened and the submission queue is not yet: before anything
    /// new is posted, because the place of an entry the host has taken is soon another's.
    pub fn write_posts(&self, region: &ControllerRegion, sqid: u16, cq: &mut CompletionQueue) {
        for &(slot, position, phase, bits) in &self.posting {
            let bits = bits | Completion::phase_bit(phase);
            if cq.rewrite(sqid, slot, position, bits) {
                free_slot(region, sqid, slot);
            }
        }
    }

    /// Writes the completions that had begun to be posted, again. The host sees the same bytes at the same place. All
    /// queues of the completion queue are settled before the first call, and nothing was posted since.
    pub fn finish_posts(
        &self,
        region: &ControllerRegion,
        sq: &mut SubmissionQueue,
        cq: &mut CompletionQueue,
    ) {
        for &(slot, position, phase, bits) in &self.posting {
            let bits = bits | Completion::phase_bit(phase);
            if cq.rewrite(sq.sqid(), slot, position, bits) {
                sq.release(region, slot);
            }
        }
    }
}
