//! A submission queue: fetch from the guest's ring, accept into a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::{Access, Fault, Iova, MemoryMap, Window};
use spec::nvme::Command;
use state::region::{ControllerRegion, SLOT_ACCEPTED, SLOT_FREE, SLOT_POSTING, SLOTS_MAX, Slot};

use super::completion::CompletionQueue;
use super::record::{SqRecord, count_if_changing};
use super::steps;
use crate::store::publish64;

/// Bytes in an entry (IOSQES = 6).
const ENTRY_BYTES: usize = 64;
/// The accept sequence number in a slot's word.
const SEQ_MASK: u64 = 0xffff_ffff << 32;

/// Holding it is the promise to answer exactly once. Spent by [`CompletionQueue::post`] or
/// [`SubmissionQueue::abandon`]; dropping it is a bug.
#[must_use = "every accepted command is answered or abandoned"]
#[derive(Debug)]
pub struct Accepted {
    pub(super) sqid: u16,
    pub(super) slot: u16,
    pub(super) cid: u16,
    pub(super) seq: u32,
}

impl Accepted {
    /// The command identifier.
    #[must_use]
    pub fn cid(&self) -> u16 {
        self.cid
    }

    /// The slot, unique among the accepted commands of its queue.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The queue it came from.
    #[must_use]
    pub fn sqid(&self) -> u16 {
        self.sqid
    }

    /// Lets go of the permit but leaves the command accepted in the region, for the next owner of its queue.
    pub fn forget(self) {
        self.spend();
    }

    #[inline]
    pub(super) fn spend(self) {
        core::mem::forget(self);
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "an accepted command was neither answered nor abandoned");
    }
}

/// What a doorbell value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// So many entries wait between head and tail.
    Waiting(u32),
    /// A value no queue of this size can have; reported once, the last good one holds (Base 2.1, 5.2.2).
    Invalid,
}

/// One submission queue, owned by one reactor.
#[derive(Debug)]
pub struct SubmissionQueue {
    sqid: u16,
    cqid: u16,
    size: u32,
    head: u32,
    seq: u32,
    tail: u32,
    rejected: u32,
    free_count: u32,
    ring: Option<Window>,
    fault: Option<Fault>,
    base: u64,
    free: Box<[u8; SLOTS_MAX]>,
}

impl SubmissionQueue {
    /// Opens the queue whose record is in the region (see [`create_sq`](super::create_sq)). `None`: there is none.
    ///
    /// Slots that are not free belong to commands a predecessor accepted: see [`conclude`](super::conclude). They stay
    /// taken until [`SubmissionQueue::resume`] and an answer.
    #[must_use]
    pub fn open(region: &ControllerRegion, sqid: u16, map: &Arc<MemoryMap>) -> Option<Self> {
        let record = SqRecord::load(region, sqid)?;
        let mut queue = Self {
            sqid,
            cqid: record.cqid,
            size: record.size,
            head: record.head,
            seq: record.seq,
            tail: record.head,
            rejected: u32::MAX,
            free_count: 0,
            ring: None,
            fault: None,
            base: record.base,
            free: Box::new([0; SLOTS_MAX]),
        };
        for (index, slot) in region.slots.get(usize::from(sqid))?.iter().enumerate().rev() {
            if state_of(slot) == SLOT_FREE {
                queue.give_back(u16::try_from(index).unwrap_or(0));
            }
        }
        queue.adopt(map);
        Some(queue)
    }

    /// Re-makes the view of the ring after a change of the memory map. A ring that is not mapped just waits.
    pub fn adopt(&mut self, map: &Arc<MemoryMap>) {
        let access = Access { read: true, write: false };
        let ring = Window::new(map, Iova(self.base), self.size as usize * ENTRY_BYTES, access);
        self.fault = ring.as_ref().err().copied();
        self.ring = ring.ok();
    }

    /// Why the ring cannot be read now, if it cannot.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The identifier.
    #[must_use]
    pub fn sqid(&self) -> u16 {
        self.sqid
    }

    /// The completion queue its answers go to.
    #[must_use]
    pub fn cqid(&self) -> u16 {
        self.cqid
    }

    /// Next entry to accept.
    #[must_use]
    #[inline]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Slots without a command.
    #[must_use]
    #[inline]
    pub fn free_slots(&self) -> u32 {
        self.free_count
    }

    /// Commands accepted and unanswered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        SLOTS_MAX - self.free_count as usize
    }

    /// Takes note of the tail doorbell's value.
    #[inline]
    pub fn look(&mut self, tail: u32) -> Look {
        if tail == self.tail {
            return Look::Waiting(self.waiting());
        }
        if tail >= self.size {
            if self.rejected == tail {
                return Look::Waiting(self.waiting());
            }
            self.rejected = tail;
            return Look::Invalid;
        }
        self.tail = tail;
        Look::Waiting(self.waiting())
    }

    /// Entries between head and the last good tail. Zero while the ring is not mapped.
    #[must_use]
    #[inline]
    pub fn waiting(&self) -> u32 {
        if self.ring.is_none() {
            return 0;
        }
        if self.tail >= self.head { self.tail - self.head } else { self.tail + self.size - self.head }
    }

    /// Nothing waits, and `tail` says nothing that [`SubmissionQueue::look`] was not told.
    #[must_use]
    pub fn is_idle_at(&self, tail: u32) -> bool {
        self.waiting() == 0 && (tail == self.tail || tail == self.rejected)
    }

    /// Starts to fetch the entry `ahead` of the head into the cache.
    #[inline]
    pub fn prefetch(&self, ahead: u32) {
        if let Some(ring) = &self.ring {
            ring.prefetch(self.position(ahead) as usize * ENTRY_BYTES);
        }
    }

    /// Copies the entry `ahead` of the head, once, into private memory. It is the caller's to accept or to leave.
    /// Only for `ahead` < [`SubmissionQueue::waiting`].
    #[inline]
    pub fn fetch(&mut self, ahead: u32) -> Option<Command> {
        let mut command = Command::default();
        self.fetch_into(ahead, &mut command).then_some(command)
    }

    /// As [`SubmissionQueue::fetch`], to where the copy is wanted. Whether it could be had.
    #[inline]
    pub fn fetch_into(&mut self, ahead: u32, command: &mut Command) -> bool {
        let Some(ring) = &self.ring else { return false };
        match ring.read_into(self.position(ahead) as usize * ENTRY_BYTES, command) {
            Ok(()) => true,
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
        }
    }

    /// Accepts the entry at the head, of which `command` is the private copy, if a slot and a completion queue entry
    /// can be had for it. ACCEPT of the protocol: copy, then slot word, then head.
    #[inline]
    pub fn accept(
        &mut self,
        region: &ControllerRegion,
        cq: &mut CompletionQueue,
        command: &Command,
    ) -> Option<Accepted> {
        let (accepted, head) = self.take_slot(region, cq, command)?;
        self.publish_head(region, head);
        Some(accepted)
    }

    /// Accepts the two entries of a fused pair as one: the head passes both in one store, so that a successor finds both or
    /// neither.
    pub fn accept_pair(
        &mut self,
        region: &ControllerRegion,
        cq: &mut CompletionQueue,
        [first, second]: [&Command; 2],
    ) -> Option<[Accepted; 2]> {
        if self.free_count < 2 || cq.room() < 2 {
            return None;
        }
        let (first, _) = self.take_slot(region, cq, first)?;
        let Some((second, head)) = self.take_slot(region, cq, second) else {
            // There was room for two.
            self.abandon(region, first);
            return None;
        };
        self.publish_head(region, head);
        Some([first, second])
    }

    #[inline(always)]
    fn publish_head(&self, region: &ControllerRegion, head: u64) {
        if let Some(record) = region.sqs.get(usize::from(self.sqid)) {
            steps::advance(&record.head_seq, head);
        }
    }

    /// The first two steps of ACCEPT: copy and slot word. Also what the third must say, while it is in registers: read together from two
    /// fields just written one by one, it would wait for the stores.
    #[inline(always)]
    fn take_slot(
        &mut self,
        region: &ControllerRegion,
        cq: &mut CompletionQueue,
        command: &Command,
    ) -> Option<(Accepted, u64)> {
        let queue = usize::from(self.sqid);
        let count = self.free_count.checked_sub(1)?;
        let slot = u16::from(*self.free.get(count as usize)?);
        let place = region.slots.get(queue)?.get(usize::from(slot))?;
        if !cq.reserve() {
            return None;
        }
        self.free_count = count;
        let words: &[u64; 8] = zerocopy::transmute_ref!(command);
        let seq = self.seq;
        let says = slot_word(seq, self.head, SLOT_ACCEPTED);
        steps::copy_then(place.command.iter().zip(words.iter().copied()), &place.word, says);
        let (head, next) = (self.position(1), seq.wrapping_add(1));
        (self.head, self.seq) = (head, next);
        Some((Accepted { sqid: self.sqid, slot, cid: command.cid(), seq }, head_seq(head, next)))
    }

    /// The private copy in the slot of an accepted command.
    #[must_use]
    pub fn command(&self, region: &ControllerRegion, slot: u16) -> Option<Command> {
        Some(command_in(region.slots.get(usize::from(self.sqid))?.get(usize::from(slot))?))
    }

    /// Remembers for a successor how far the command in a slot has come. Before the slot's next use it is void.
    pub fn set_progress(&self, region: &ControllerRegion, slot: u16, progress: u32) {
        if let Some(place) = self.place(region, slot) {
            let seq = place.word.load(Ordering::Relaxed) & SEQ_MASK;
            publish64(&place.progress[0], seq | u64::from(progress));
        }
    }

    /// How far the command in a slot has come; 0 is nothing.
    #[must_use]
    pub fn progress(&self, region: &ControllerRegion, slot: u16) -> u32 {
        let Some(place) = self.place(region, slot) else { return 0 };
        let progress = place.progress[0].load(Ordering::Acquire);
        if (progress ^ place.word.load(Ordering::Relaxed)) & SEQ_MASK != 0 {
            return 0;
        }
        u32::try_from(progress & !SEQ_MASK).unwrap_or(0)
    }

    fn place<'a>(&self, region: &'a ControllerRegion, slot: u16) -> Option<&'a Slot> {
        region.slots.get(usize::from(self.sqid))?.get(usize::from(slot))
    }

    /// Takes up a command that a predecessor accepted ([`conclude`](super::conclude) found it). Its completion queue entry is
    /// reserved again (for I/O queues since the completion queue was opened). `None`: not an accepted command.
    pub fn resume(
        &mut self,
        region: &ControllerRegion,
        cq: &mut CompletionQueue,
        slot: u16,
    ) -> Option<(Command, Accepted)> {
        let place = region.slots.get(usize::from(self.sqid))?.get(usize::from(slot))?;
        if state_of(place) != SLOT_ACCEPTED {
            return None;
        }
        if self.sqid == 0 {
            cq.owe();
        }
        let command = command_in(place);
        let seq = seq_of(place.word.load(Ordering::Acquire));
        Some((command, Accepted { sqid: self.sqid, slot, cid: command.cid(), seq }))
    }

    /// Gives a command up without an answer: the queue goes away (reset, deletion).
    pub fn abandon(&mut self, region: &ControllerRegion, accepted: Accepted) {
        count_if_changing(region, self.sqid, accepted.slot);
        self.release(region, accepted.slot);
        accepted.spend();
    }

    /// RETIRE of the protocol: the slot is free.
    #[inline]
    pub(super) fn retire(&mut self, place: &Slot, slot: u16) {
        steps::retire(&place.word, SLOT_FREE);
        self.give_back(slot);
    }

    /// As [`SubmissionQueue::retire`], by index. For entries that were written later than posted.
    pub fn release(&mut self, region: &ControllerRegion, slot: u16) {
        if let Some(place) = region.slots.get(usize::from(self.sqid)).and_then(|s| s.get(usize::from(slot))) {
            self.retire(place, slot);
        }
    }

    #[inline]
    fn give_back(&mut self, slot: u16) {
        let [low, _] = slot.to_le_bytes();
        if let Some(place) = self.free.get_mut(self.free_count as usize) {
            *place = low;
            self.free_count += 1;
        }
    }

    #[inline]
    fn position(&self, ahead: u32) -> u32 {
        let position = self.head + ahead;
        if position >= self.size { position - self.size } else { position }
    }
}

/// The word of a slot (see [`Slot`]).
#[inline]
pub(crate) fn slot_word(seq: u32, position: u32, state: u64) -> u64 {
    u64::from(seq) << 32 | u64::from(position & 0xffff) << 16 | state
}

pub(crate) fn seq_of(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(0)
}

pub(crate) fn position_of(word: u64) -> u32 {
    u32::try_from(word >> 16 & 0xffff).unwrap_or(0)
}

/// The state of a slot; anything that is no state counts as free.
pub(crate) fn state_of(slot: &Slot) -> u64 {
    match slot.word.load(Ordering::Acquire) & 3 {
        SLOT_ACCEPTED => SLOT_ACCEPTED,
        SLOT_POSTING => SLOT_POSTING,
        _ => SLOT_FREE,
    }
}

pub(super) fn command_in(slot: &Slot) -> Command {
    let words: [u64; 8] = core::array::from_fn(|i| slot.command[i].load(Ordering::Relaxed));
    zerocopy::transmute!(words)
}

/// The head word of a submission queue's record.
#[inline]
pub(super) fn head_seq(head: u32, seq: u32) -> u64 {
    u64::from(head) | u64::from(seq) << 32
}
