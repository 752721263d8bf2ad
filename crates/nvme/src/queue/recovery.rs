//! What a region says to who finds it: a new group after a pause, or a successor after a crash.

use std::sync::atomic::Ordering;

use spec::nvme::Command;
use state::region::{ControllerRegion, SLOT_ACCEPTED, SLOT_POSTING};

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
    /// Slots whose completion was being posted: slot, position, phase, dwords without phase tag.
    posting: Vec<(u16, u32, bool, [u32; 4])>,
}

/// Reads a submission queue's record and slots. `None`: the queue does not exist or the record is unsound.
///
/// The last accept may have reached its slot and not the head: a slot ACCEPTED with the head's own sequence number and
/// position says so, and the head is one further.
#[must_use]
pub fn conclude(region: &ControllerRegion, sqid: u16) -> Option<Conclusion> {
    let record = SqRecord::load(region, sqid)?;
    let mut found =
        Conclusion { head: record.head, seq: record.seq, unanswered: Vec::new(), posting: Vec::new() };
    for (slot, place) in (0..).zip(region.slots.get(usize::from(sqid))?) {
        let word = place.word.load(Ordering::Acquire);
        match state_of(place) {
            SLOT_ACCEPTED => {
                let seq = seq_of(word);
                if seq == record.seq && position_of(word) == record.head {
                    found.head = if record.head + 1 == record.size { 0 } else { record.head + 1 };
                    found.seq = seq.wrapping_add(1);
                }
                found.unanswered.push(Unanswered { slot, seq, command: command_in(place) });
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
    let next = found.seq;
    // The oldest is furthest behind the next number, whatever wrapped.
    found.unanswered.sort_by_key(|command| core::cmp::Reverse(next.wrapping_sub(command.seq)));
    Some(found)
}

impl Conclusion {
    /// Brings the records of the submission queue and its completion queue to a state of rest, before either is opened:
    /// the head past the last accept, the tail past the last post that had begun.
    pub fn settle(&self, region: &ControllerRegion, sqid: u16) {
        let Some(record) = region.sqs.get(usize::from(sqid)) else { return };
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

    /// Writes the completions that had begun to be posted, again. The host sees the same bytes at the same place. All
    /// queues of the completion queue are settled and opened before the first call.
    pub fn finish_posts(
        &self,
        region: &ControllerRegion,
        sq: &mut SubmissionQueue,
        cq: &mut CompletionQueue,
    ) {
        for &(slot, position, phase, mut dwords) in &self.posting {
            dwords[3] |= u32::from(phase) << 16;
            if cq.rewrite(sq.sqid(), slot, position, dwords) {
                sq.release(region, slot);
            }
        }
    }
}
