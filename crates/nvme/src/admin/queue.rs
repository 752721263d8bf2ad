//! The admin queue pair: commands in, permits held until they are answered, events parked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use block::Now;
use memory::{DoorbellPage, Fault, MemoryMap};
use spec::nvme::{Command, Status};
use state::region::ControllerRegion;

use crate::queue::{Accepted, Answer, CompletionQueue, Look, SubmissionQueue, Unanswered, conclude};

/// What the submission queue has.
pub(crate) enum Next {
    /// No command that can be taken now.
    Nothing,
    /// The doorbell holds a value that cannot be.
    InvalidDoorbell,
    /// A command, accepted in this slot.
    Command(u16, Command),
}

/// The admin submission and completion queue.
#[derive(Debug)]
pub(crate) struct AdminQueue {
    sq: SubmissionQueue,
    cq: CompletionQueue,
    permits: BTreeMap<u16, Accepted>,
    /// Asynchronous Event Requests, by slot, oldest first. They hold no completion queue entry: a small queue would be
    /// full of them.
    parked: VecDeque<u16>,
    /// Commands that wait for guest memory.
    stalled: Vec<(u16, Command)>,
}

impl AdminQueue {
    /// Opens the queue pair whose records are in the region.
    pub(crate) fn open(region: &ControllerRegion, map: &Arc<MemoryMap>) -> Option<Self> {
        let (sq, cq) = (SubmissionQueue::open(region, 0, map)?, CompletionQueue::open(region, 0, map)?);
        Some(Self { sq, cq, permits: BTreeMap::new(), parked: VecDeque::new(), stalled: Vec::new() })
    }

    /// Opens the queue pair a predecessor left, and says what it had accepted and not answered.
    pub(crate) fn take_over(
        region: &ControllerRegion,
        map: &Arc<MemoryMap>,
    ) -> Option<(Self, Vec<Unanswered>)> {
        let found = conclude(region, 0)?;
        found.settle(region, 0);
        let mut queue = Self::open(region, map)?;
        found.finish_posts(region, &mut queue.sq, &mut queue.cq);
        Some((queue, found.unanswered))
    }

    /// Both rings can be reached, here or on a private reactor.
    pub(crate) fn is_reachable(&self) -> bool {
        let fits = |fault: Option<Fault>| fault.is_none_or(|f| f == Fault::Remote);
        fits(self.sq.fault()) && fits(self.cq.fault())
    }

    /// A ring lies in a region without fd that this map does not reach.
    pub(crate) fn is_remote(&self) -> bool {
        self.sq.fault() == Some(Fault::Remote) || self.cq.fault() == Some(Fault::Remote)
    }

    pub(crate) fn adopt(&mut self, region: &ControllerRegion, map: &Arc<MemoryMap>) {
        self.sq.adopt(map);
        self.cq.adopt(map);
        self.write_unwritten(region);
    }

    fn write_unwritten(&mut self, region: &ControllerRegion) {
        while let Some(late) = self.cq.next_unwritten() {
            self.sq.release(region, late.slot);
        }
    }

    /// When [`Self::write_late`] is due, if ever.
    pub(crate) fn late_at(&self) -> Option<Now> {
        self.cq.late_at()
    }

    /// Tries the answers again that the client did not take.
    pub(crate) fn write_late(&mut self, region: &ControllerRegion, now: Now) {
        if self.cq.late_at().is_some_and(|at| at <= now) {
            self.write_unwritten(region);
            self.cq.put_off(now);
        }
    }

    /// Whether the doorbell says there is something to fetch.
    pub(crate) fn has_work(&self, tail: u32) -> bool {
        tail != self.sq.head() && self.sq.free_slots() > 0
    }

    /// The tail at which there is nothing to fetch; any other is work. `None`: no tail is, for want of a free slot.
    pub(crate) fn awaited_tail(&self) -> Option<u32> {
        (self.sq.free_slots() > 0).then(|| self.sq.head())
    }

    /// Takes the next command, if there is one, a slot for it, and an entry for its completion.
    pub(crate) fn next(&mut self, region: &ControllerRegion, doorbells: &DoorbellPage) -> Next {
        if self.sq.look(doorbells.sq_tail(0)) == Look::Invalid {
            return Next::InvalidDoorbell;
        }
        if self.sq.waiting() == 0 {
            return Next::Nothing;
        }
        if self.cq.room() == 0 && !self.cq.look(region, doorbells.cq_head(0)) {
            return Next::InvalidDoorbell;
        }
        if self.cq.room() == 0 {
            return Next::Nothing;
        }
        let Some(command) = self.sq.fetch(0) else { return Next::Nothing };
        let Some(permit) = self.sq.accept(region, &mut self.cq, &command) else { return Next::Nothing };
        let slot = permit.slot();
        self.permits.insert(slot, permit);
        Next::Command(slot, command)
    }

    /// Takes up a command a predecessor accepted.
    pub(crate) fn resume(&mut self, region: &ControllerRegion, slot: u16) -> Option<Command> {
        let (command, permit) = self.sq.resume(region, &mut self.cq, slot)?;
        self.permits.insert(slot, permit);
        Some(command)
    }

    /// How far the command in a slot has come, for a successor.
    pub(crate) fn set_progress(&self, region: &ControllerRegion, slot: u16, progress: u32) {
        self.sq.set_progress(region, slot, progress);
    }

    /// What [`Self::set_progress`] said, perhaps a predecessor's.
    pub(crate) fn progress(&self, region: &ControllerRegion, slot: u16) -> u32 {
        self.sq.progress(region, slot)
    }

    /// Answers a command. An answer to a slot that holds none is dropped: its command went with a reset.
    pub(crate) fn answer(&mut self, region: &ControllerRegion, slot: u16, answer: Answer) {
        if let Some(permit) = self.permits.remove(&slot) {
            self.cq.post(region, &mut self.sq, permit, answer);
        }
    }

    /// Command identifier of an accepted command.
    pub(crate) fn cid(&self, slot: u16) -> Option<u16> {
        self.permits.get(&slot).map(Accepted::cid)
    }

    /// The slots of the commands with this identifier.
    pub(crate) fn slot_of(&self, cid: u16) -> Option<u16> {
        self.permits.iter().find(|(_, permit)| permit.cid() == cid).map(|(slot, _)| *slot)
    }

    pub(crate) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Command identifiers of the parked requests, oldest first.
    pub(crate) fn parked_cids(&self) -> impl Iterator<Item = u16> + '_ {
        self.parked.iter().filter_map(|slot| self.cid(*slot))
    }

    /// An event request waits for an event, without a completion queue entry.
    pub(crate) fn park(&mut self, slot: u16) {
        self.cq.unreserve();
        self.parked.push_back(slot);
    }

    /// Answers the oldest parked request, or one in particular, if there is one and an entry for it.
    pub(crate) fn unpark(
        &mut self,
        region: &ControllerRegion,
        doorbells: &DoorbellPage,
        slot: Option<u16>,
        answer: Answer,
    ) -> bool {
        let Some(slot) = slot.or_else(|| self.parked.front().copied()) else { return false };
        let Some(at) = self.parked.iter().position(|parked| *parked == slot) else { return false };
        if self.cq.room() == 0 {
            self.cq.look(region, doorbells.cq_head(0));
        }
        if !self.cq.reserve() {
            return false;
        }
        self.parked.remove(at);
        self.answer(region, slot, answer);
        true
    }

    /// A command waits for guest memory to change.
    pub(crate) fn stall(&mut self, slot: u16, command: Command) {
        self.stalled.push((slot, command));
    }

    pub(crate) fn take_stalled(&mut self) -> Vec<(u16, Command)> {
        core::mem::take(&mut self.stalled)
    }

    /// The vector to raise, if entries were posted.
    pub(crate) fn take_interrupt(&mut self) -> Option<u16> {
        self.cq.take_posted().then(|| self.cq.vector()).flatten()
    }

    /// The queue goes away with everything in it.
    pub(crate) fn abandon_all(&mut self, region: &ControllerRegion) {
        for permit in core::mem::take(&mut self.permits).into_values() {
            self.sq.abandon(region, permit);
        }
    }

    /// Nothing more is done with the queue, but a successor finds it as it is.
    pub(crate) fn leave(&mut self) {
        for permit in core::mem::take(&mut self.permits).into_values() {
            permit.forget();
        }
    }
}

impl Drop for AdminQueue {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What an answer's status is worth repeating: the host should try these again (Base 2.1, 4.2.3, DNR).
pub(crate) fn with_dnr(status: Status) -> Status {
    let again = [
        Status::SUCCESS,
        Status::FORMAT_IN_PROGRESS,
        Status::SANITIZE_IN_PROGRESS,
        Status::INTERNAL_ERROR,
        Status::ABORT_REQUESTED,
        Status::ABORT_COMMAND_LIMIT_EXCEEDED,
        Status::SELF_TEST_IN_PROGRESS,
        Status::NAMESPACE_NOT_READY,
        Status::COMMAND_INTERRUPTED,
        Status::NOT_ENOUGH_RESOURCES,
    ];
    if again.contains(&status.bare()) { status } else { status.dnr_set() }
}
