//! The records of queues in the shared region: made and ended here only.

use std::sync::atomic::Ordering;

use spec::nvme::NvmOpcode;
use state::controller::{CompletionQueueV1, SubmissionQueueV1};
use state::region::{ControllerRegion, SLOT_ACCEPTED, SLOT_FREE, Slot};

use super::submission::{command_in, head_seq, seq_of, state_of};
use crate::store::{publish32, publish64, put32, put64};

/// What the region says of a submission queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqRecord {
    /// Guest address of entry 0.
    pub base: u64,
    /// Entries.
    pub size: u32,
    /// Completion queue.
    pub cqid: u16,
    /// Next entry to accept.
    pub head: u32,
    /// Its accept sequence number.
    pub seq: u32,
}

/// What the region says of a completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CqRecord {
    /// Guest address of entry 0.
    pub base: u64,
    /// Entries.
    pub size: u32,
    /// Next position to post at.
    pub tail: u32,
    /// Phase tag to post with.
    pub phase: bool,
    /// Head as last taken from the doorbell.
    pub head: u32,
    /// Interrupt vector when interrupts are enabled.
    pub vector: Option<u16>,
}

/// Most entries a record may name: positions have 16 bits.
const SIZE_MAX: u32 = 1 << 16;

impl SqRecord {
    /// The record, if the queue exists and the record is sound.
    #[must_use]
    pub fn load(region: &ControllerRegion, sqid: u16) -> Option<Self> {
        let record = region.sqs.get(usize::from(sqid))?;
        let size = record.size.load(Ordering::Acquire);
        let word = record.head_seq.load(Ordering::Acquire);
        let head = u32::try_from(word & 0xffff_ffff).ok()?;
        let [cqid, _]: [u16; 2] = zerocopy::transmute!(record.cqid.load(Ordering::Relaxed));
        let base = record.base.load(Ordering::Relaxed);
        (2..=SIZE_MAX).contains(&size).then_some(())?;
        (head < size).then_some(Self { base, size, cqid, head, seq: seq_of(word) })
    }
}

impl CqRecord {
    /// The record, if the queue exists and the record is sound.
    #[must_use]
    pub fn load(region: &ControllerRegion, cqid: u16) -> Option<Self> {
        let record = region.cqs.get(usize::from(cqid))?;
        let size = record.size.load(Ordering::Acquire);
        let word = record.tail_phase.load(Ordering::Acquire);
        let (tail, phase) = (word & 0xffff, word >> 16 & 1 == 1);
        let head = record.head.load(Ordering::Relaxed);
        let interrupt = record.interrupt.load(Ordering::Relaxed);
        let [_, vector]: [u16; 2] = zerocopy::transmute!(interrupt);
        let vector = (interrupt & 1 == 1).then_some(vector);
        let base = record.base.load(Ordering::Relaxed);
        (2..=SIZE_MAX).contains(&size).then_some(())?;
        (tail < size && head < size).then_some(Self { base, size, tail, phase, head, vector })
    }
}

/// Writes the record of a new, empty completion queue; its size last. The caller has checked everything the host chose and
/// zeroed the doorbells. Then [`CompletionQueue::open`](super::CompletionQueue::open) it, or send
/// [`GroupCommand::CreateCq`](crate::sink::GroupCommand) to its group.
pub fn create_cq(region: &ControllerRegion, cqid: u16, base: u64, size: u32, vector: Option<u16>) {
    let Some(record) = region.cqs.get(usize::from(cqid)) else { return };
    put64(&record.base, base);
    put32(&record.interrupt, vector.map_or(0, |vector| u32::from(vector) << 16 | 1));
    put32(&record.tail_phase, 1 << 16);
    put32(&record.head, 0);
    publish32(&record.size, size);
}

/// Writes the record of a new, empty submission queue, as [`create_cq`]. Its slots are free again. The counters stay.
pub fn create_sq(region: &ControllerRegion, sqid: u16, base: u64, size: u32, cqid: u16) {
    let queue = usize::from(sqid);
    let (Some(record), Some(slots)) = (region.sqs.get(queue), region.slots.get(queue)) else { return };
    for slot in slots {
        if slot.word.load(Ordering::Relaxed) != SLOT_FREE {
            put64(&slot.word, SLOT_FREE);
        }
        // Sequence numbers begin anew: what was noted under the old ones must not seem to match.
        if slot.progress[0].load(Ordering::Relaxed) != 0 {
            put64(&slot.progress[0], 0);
        }
    }
    put64(&record.base, base);
    put32(&record.cqid, u32::from(cqid));
    publish64(&record.head_seq, head_seq(0, 0));
    publish32(&record.size, size);
}

/// Writes the record of a completion queue that was saved; its size last.
pub(crate) fn restore_cq(region: &ControllerRegion, saved: &CompletionQueueV1) {
    let Some(record) = region.cqs.get(usize::from(saved.cqid)) else { return };
    put64(&record.base, saved.base);
    put32(&record.interrupt, saved.vector.map_or(0, |vector| u32::from(vector) << 16 | 1));
    put32(&record.tail_phase, saved.tail | u32::from(saved.phase) << 16);
    put32(&record.head, saved.head);
    publish32(&record.size, saved.size);
}

/// Writes the record of a submission queue that was saved, whose slots are there already; its size last.
pub(crate) fn restore_sq(region: &ControllerRegion, saved: &SubmissionQueueV1) {
    let Some(record) = region.sqs.get(usize::from(saved.sqid)) else { return };
    put64(&record.base, saved.base);
    put32(&record.cqid, u32::from(saved.cqid));
    publish64(&record.head_seq, head_seq(saved.head, saved.seq));
    publish32(&record.size, saved.size);
}

/// The completion queue is no more.
pub fn close_cq(region: &ControllerRegion, cqid: u16) {
    if let Some(record) = region.cqs.get(usize::from(cqid)) {
        publish32(&record.size, 0);
    }
}

/// Commands of this queue that may have changed data and are not counted as writes: one more.
pub(crate) fn count_change(region: &ControllerRegion, sqid: u16) {
    if let Some(record) = region.sqs.get(usize::from(sqid)) {
        put64(&record.other_changes, record.other_changes.load(Ordering::Relaxed).wrapping_add(1));
    }
}

/// The command in this slot has no answer, and changes data of namespaces when it is executed.
fn may_change_data(sqid: u16, slot: &Slot) -> bool {
    let changes = |opcode| matches!(opcode, NvmOpcode::Write | NvmOpcode::WriteZeroes | NvmOpcode::Copy);
    sqid != 0 && state_of(slot) == SLOT_ACCEPTED && changes(command_in(slot).nvm_opcode())
}

/// Counts such a command, for it will not be counted as a write.
pub(crate) fn count_if_changing(region: &ControllerRegion, sqid: u16, slot: u16) {
    let place = region.slots.get(usize::from(sqid)).and_then(|slots| slots.get(usize::from(slot)));
    if place.is_some_and(|place| may_change_data(sqid, place)) {
        count_change(region, sqid);
    }
}

/// Some I/O queue has such a command.
pub(crate) fn is_changing_data(region: &ControllerRegion) -> bool {
    let queues = (0..).zip(&region.sqs).zip(&region.slots);
    let mut open = queues.filter(|((_, record), _)| record.size.load(Ordering::Acquire) != 0);
    open.any(|((sqid, _), slots)| slots.iter().any(|slot| may_change_data(sqid, slot)))
}

/// The submission queue is no more; size first, then the slots, so that nobody finds commands of half a queue. What was not
/// answered may have been carried out: it is counted before it is forgotten.
pub fn close_sq(region: &ControllerRegion, sqid: u16) {
    let queue = usize::from(sqid);
    let (Some(record), Some(slots)) = (region.sqs.get(queue), region.slots.get(queue)) else { return };
    publish32(&record.size, 0);
    for slot in slots {
        if may_change_data(sqid, slot) {
            count_change(region, sqid);
        }
        if slot.word.load(Ordering::Relaxed) != SLOT_FREE {
            publish64(&slot.word, SLOT_FREE);
        }
    }
}
