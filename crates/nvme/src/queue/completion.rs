//! A completion queue: entries are reserved when a command is accepted and written when it is answered.

use std::collections::VecDeque;
use std::sync::Arc;

use block::Now;
use memory::{Access, Fault, Iova, MemoryMap, Window};
use spec::nvme::{Completion, Status};
use state::region::{ControllerRegion, SLOT_ACCEPTED, SLOT_POSTING};

use super::record::{CqRecord, SqRecord};
use super::steps;
use super::submission::{Accepted, SubmissionQueue, slot_word, state_of};
use crate::store::{put_completion, put32};

/// Bytes in an entry (IOCQES = 4).
const ENTRY_BYTES: usize = 16;
/// Between two attempts at an entry that the client's memory did not take.
const AGAIN_NS: u64 = 1_000_000;
/// Where the phase to post with stands in a slot's word.
pub(crate) const WORD_PHASE: u64 = 1 << 8;

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Dword 0 of the completion.
    pub dw0: u32,
    /// Dword 1.
    pub dw1: u32,
    /// Status; its phase tag is ignored.
    pub status: Status,
}

impl Answer {
    /// An answer of this status with no result.
    #[must_use]
    pub const fn of(status: Status) -> Self {
        Self { dw0: 0, dw1: 0, status }
    }
}

/// A completion whose queue memory was not mapped when it was due, or whose client did not take it. Its slot stays POSTING.
#[derive(Clone, Copy, Debug)]
pub struct Unwritten {
    /// The submission queue the slot belongs to.
    pub sqid: u16,
    /// The slot.
    pub slot: u16,
    /// The submission queue went away meanwhile: there is no slot to release.
    pub orphan: bool,
    position: u32,
    bits: u128,
}

/// One completion queue, owned by one reactor.
#[derive(Debug)]
pub struct CompletionQueue {
    cqid: u16,
    size: u32,
    tail: u32,
    phase: bool,
    /// Entries neither posted-and-unread nor reserved.
    room: u32,
    /// Entries that are set aside and are not there yet.
    debt: u32,
    head: u32,
    rejected: u32,
    posted: bool,
    vector: Option<u16>,
    ring: Option<Window>,
    fault: Option<Fault>,
    base: u64,
    backlog: VecDeque<Unwritten>,
    /// When the oldest of them is tried again.
    again_at: Now,
}

impl CompletionQueue {
    /// Opens the queue whose record is in the region (see [`create_cq`](super::create_cq)). `None`: there is none.
    #[must_use]
    pub fn open(region: &ControllerRegion, cqid: u16, map: &Arc<MemoryMap>) -> Option<Self> {
        let record = CqRecord::load(region, cqid)?;
        let mut queue = Self {
            cqid,
            size: record.size,
            tail: record.tail,
            phase: record.phase,
            room: record.size - 1,
            debt: 0,
            head: record.head,
            rejected: u32::MAX,
            posted: false,
            vector: record.vector,
            ring: None,
            fault: None,
            base: record.base,
            backlog: VecDeque::new(),
            again_at: Now(0),
        };
        // Entries that a predecessor set aside stay set aside, whichever of the submission queues is opened first.
        queue.room = queue.room.saturating_sub(queue.unread()).saturating_sub(set_aside(region, cqid));
        // Perhaps nobody told the host of these: one interrupt too many is harmless, one too few is a hang.
        queue.posted = queue.unread() > 0;
        queue.adopt(map);
        Some(queue)
    }

    /// Re-makes the view of the ring after a change of the memory map. A ring that is not mapped just waits: see
    /// [`CompletionQueue::next_unwritten`].
    pub fn adopt(&mut self, map: &Arc<MemoryMap>) {
        let access = Access { read: false, write: true };
        let ring = Window::new(map, Iova(self.base), self.size as usize * ENTRY_BYTES, access);
        self.fault = ring.as_ref().err().copied();
        self.ring = ring.ok();
    }

    /// Why the ring cannot be written now, if it cannot.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The identifier.
    #[must_use]
    pub fn cqid(&self) -> u16 {
        self.cqid
    }

    /// The interrupt vector, when interrupts are enabled.
    #[must_use]
    pub fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// Entries that can be reserved now without a look at the head doorbell.
    #[must_use]
    #[inline]
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Entries that can be outstanding at once.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.size - 1
    }

    /// Whether entries were posted since the last call: the interrupt is due.
    #[inline]
    pub fn take_posted(&mut self) -> bool {
        core::mem::take(&mut self.posted)
    }

    /// Takes note of the head doorbell's value. `false`: no queue in this state can have it; ignored, and told once.
    pub fn look(&mut self, region: &ControllerRegion, head: u32) -> bool {
        if head == self.head {
            return true;
        }
        let taken = self.distance(self.head, head);
        if head >= self.size || taken > self.unread() {
            return core::mem::replace(&mut self.rejected, head) == head;
        }
        self.head = head;
        let paid = self.debt.min(taken);
        self.debt -= paid;
        self.room += taken - paid;
        if let Some(record) = region.cqs.get(usize::from(self.cqid)) {
            put32(&record.head, head);
        }
        true
    }

    /// Sets one entry aside. Each reservation is spent by one post.
    #[inline]
    pub(crate) fn reserve(&mut self) -> bool {
        match self.room.checked_sub(1) {
            Some(room) => {
                self.room = room;
                true
            }
            None => false,
        }
    }

    /// Sets one entry aside for a command that a predecessor accepted, now or as soon as there is room: it had one, or
    /// gives it back at once as a parked event request does.
    pub(super) fn owe(&mut self) {
        if !self.reserve() {
            self.debt += 1;
        }
    }

    /// Gives back the entry of a command that was abandoned.
    pub fn unreserve(&mut self) {
        if self.debt > 0 {
            self.debt -= 1;
            return;
        }
        self.room = (self.room + 1).min(self.size - 1 - self.unread());
    }

    /// Answers a command. POST of the protocol: answer and slot word, entry in guest memory with the phase tag last, tail, and
    /// the slot is free. The window marks the entry's page where the map has a log; a process that ends before it has leaves the slot
    /// POSTING, and its successor writes the entry again and marks it.
    #[inline]
    pub fn post(
        &mut self,
        region: &ControllerRegion,
        sq: &mut SubmissionQueue,
        accepted: Accepted,
        answer: Answer,
    ) {
        debug_assert_eq!(sq.sqid(), accepted.sqid);
        let (queue, slot) = (usize::from(accepted.sqid), accepted.slot);
        let place = region.slots.get(queue).and_then(|slots| slots.get(usize::from(slot)));
        let (Some(place), Some(record)) = (place, region.cqs.get(usize::from(self.cqid))) else {
            debug_assert!(false, "queue identifiers are checked when queues are opened");
            return accepted.spend();
        };
        let [sqhd, _] = halves(sq.head());
        let entry = Completion {
            dw0: answer.dw0,
            dw1: answer.dw1,
            sqhd,
            sqid: accepted.sqid,
            cid: accepted.cid,
            status: answer.status.with_phase(false),
        };
        let words: [u64; 2] = zerocopy::transmute!(entry);
        let phase = if self.phase { WORD_PHASE } else { 0 };
        let says = slot_word(accepted.seq, self.tail, SLOT_POSTING) | phase;
        steps::copy_then(place.completion.iter().zip(words), &place.word, says);
        accepted.spend();

        let bits = entry.bits() | Completion::phase_bit(self.phase);
        let position = self.tail;
        let written = self.backlog.is_empty() && self.write(position, bits);
        self.tail += 1;
        if self.tail == self.size {
            self.tail = 0;
            self.phase = !self.phase;
        }
        steps::advance(&record.tail_phase, self.tail | u32::from(self.phase) << 16);
        if written {
            self.posted = true;
            sq.retire(place, slot);
        } else {
            self.backlog.push_back(Unwritten { sqid: sq.sqid(), slot, orphan: false, position, bits });
        }
    }

    /// Writes the oldest entry that could not be written when it was due, and returns it so that its slot can be released.
    /// `None`: there is none, or the ring is still not mapped, or the client still does not take it.
    pub fn next_unwritten(&mut self) -> Option<Unwritten> {
        let next = *self.backlog.front()?;
        if !self.write(next.position, next.bits) {
            return None;
        }
        self.posted = true;
        self.backlog.pop_front()
    }

    /// When [`CompletionQueue::next_unwritten`] is due. Memory without a descriptor takes an entry by a message, which the client
    /// may refuse or leave without an answer for once: nobody but us tries again. `None`: nothing is late, or it waits for a map.
    #[must_use]
    #[inline]
    pub fn late_at(&self) -> Option<Now> {
        (!self.backlog.is_empty() && self.ring.is_some()).then_some(self.again_at)
    }

    /// All was tried that could be: what is still late waits a while.
    pub fn put_off(&mut self, now: Now) {
        self.again_at = Now(now.0.saturating_add(AGAIN_NS));
    }

    /// A submission queue goes away. Its entries keep their places in the queue and are still written when they can be: a
    /// host that shares the queue would wait at a hole for ever.
    pub fn forget(&mut self, sqid: u16) {
        for unwritten in self.backlog.iter_mut().filter(|unwritten| unwritten.sqid == sqid) {
            unwritten.orphan = true;
        }
    }

    /// Finishes a post that a predecessor began: the entry is written (again) at the position it was meant for.
    pub(super) fn rewrite(&mut self, sqid: u16, slot: u16, position: u32, bits: u128) -> bool {
        if self.backlog.is_empty() && self.write(position, bits) {
            self.posted = true;
            return true;
        }
        self.backlog.push_back(Unwritten { sqid, slot, orphan: false, position, bits });
        false
    }

    #[inline]
    fn write(&mut self, position: u32, bits: u128) -> bool {
        let Some(ring) = &self.ring else { return false };
        match put_completion(ring, position as usize * ENTRY_BYTES, bits) {
            Ok(()) => true,
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
        }
    }

    fn unread(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.size - from }
    }
}

/// Commands of a predecessor whose answers go to an I/O completion queue. The admin queue has one submission queue, which
/// takes its commands up before it takes new ones.
fn set_aside(region: &ControllerRegion, cqid: u16) -> u32 {
    if cqid == 0 {
        return 0;
    }
    let mut count = 0;
    for (sqid, slots) in (0..).zip(&region.slots) {
        if SqRecord::load(region, sqid).is_some_and(|record| record.cqid == cqid) {
            count += slots.iter().map(|slot| u32::from(state_of(slot) == SLOT_ACCEPTED)).sum::<u32>();
        }
    }
    count
}

#[inline]
fn halves(value: u32) -> [u16; 2] {
    zerocopy::transmute!(value)
}
