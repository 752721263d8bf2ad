//! Compare and Write as one (Base 2.1, 3.4.2; NVM 1.1, 2.1.5): adjacent entries of one queue, the same blocks, and
//! nobody else in the namespace from the compare's first read to the write's end.
//!
//! ```text
//!  Compare: Grant --Granted--> Retry/Backend ... ended: success -> the Write begins; else the Write is aborted
//!  Write:   Partner --------------------------------------------> Retry/Backend ... ended -> ExclusiveDone
//! ```

use spec::nvme::{Command, Fuse, NvmOpcode, Status};

use super::QueueGroup;
use super::live::{Live, Partner, State};
use super::ticket::command_of;
use crate::data::Refused;
use crate::io::Kind;
use crate::io::fault::{NO_FIELD, Refusal};
use crate::queue::Accepted;
use crate::sink::{GroupEvent, Sink};

/// Progress of a Write in a slot: its Compare has succeeded.
pub(super) const COMPARED: u32 = 1;

impl QueueGroup {
    /// Takes a command whose FUSE field is not 0, `available` entries from it on being there. `false`: nothing was taken.
    #[inline(never)]
    pub(super) fn fused(
        &mut self,
        sqid: u16,
        command: &Command,
        available: u32,
        sink: &mut impl Sink,
    ) -> bool {
        match Fuse(command.cdw0.fuse()) {
            Fuse::First => {}
            Fuse::Second => return self.refuse(sqid, command, Status::ABORTED_MISSING_FUSED, sink),
            _ => return self.refuse(sqid, command, Status::INVALID_FIELD, sink),
        }
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return false };
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.queue.cqid())) else { return false };
        // Both halves come with one doorbell write (Base 2.1, 3.4.2): a first half that is the last entry has no second.
        let second = if available >= 2 { sq.queue.fetch(1) } else { None };
        let Some(second) = second.filter(|second| Fuse(second.cdw0.fuse()) == Fuse::Second) else {
            return self.refuse(sqid, command, Status::ABORTED_MISSING_FUSED, sink);
        };
        if cq.capacity() < 2 {
            // A pair needs two entries for its answers: with this queue it would wait for ever.
            return self.refuse(sqid, command, Status::ABORTED_FAILED_FUSED, sink);
        }
        if self.drains.holds(second.nsid) {
            return false;
        }
        let Some([compare, write]) = sq.queue.accept_pair(&self.region, cq, [command, &second]) else {
            return false;
        };
        self.pair(compare, command, write, &second, sink);
        true
    }

    /// Begins an accepted pair.
    pub(super) fn pair(
        &mut self,
        compare: Accepted,
        first: &Command,
        write: Accepted,
        second: &Command,
        sink: &mut impl Sink,
    ) {
        let opcodes = (first.nvm_opcode(), second.nvm_opcode());
        // NLB is bits 15:0 of dword 12.
        let range = |command: &Command| (command.nsid, command.slba(), command.cdw12 & 0xffff);
        if opcodes != (NvmOpcode::Compare, NvmOpcode::Write) || range(first) != range(second) {
            self.answer_refused(compare, first.nsid, Status::INVALID_FIELD, sink);
            self.answer_refused(write, second.nsid, Status::INVALID_FIELD, sink);
            return;
        }
        // A pair is checked whole before it asks for the namespace; its steps are planned when it has it, because the
        // namespace may be another one by then.
        let faults = (self.fault_of(first), self.fault_of(second));
        match faults {
            (None, None) => {}
            (Some(status), _) => {
                self.answer_refused(compare, first.nsid, status, sink);
                return self.answer_refused(write, second.nsid, Status::ABORTED_FAILED_FUSED, sink);
            }
            (None, Some(status)) => {
                self.answer_refused(compare, first.nsid, Status::ABORTED_FAILED_FUSED, sink);
                return self.answer_refused(write, second.nsid, status, sink);
            }
        }
        let (sqid, slot, nsid) = (compare.sqid(), compare.slot(), first.nsid);
        let write_slot = write.slot();
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else {
            compare.forget();
            return write.forget();
        };
        let mut park = |accepted, state, partner| {
            let (kind, epoch) = (Kind::Other, self.drains.epoch());
            sq.live.park(Live {
                accepted,
                state,
                kind,
                epoch,
                nsid,
                sectors: 0,
                partner: Some(partner),
                job: None,
            });
        };
        // Of the Write: the Compare's slot is free for the next command as soon as that is answered, while this pair still has the namespace.
        let ticket = self.tickets.next(sqid, write_slot);
        park(compare, State::Grant, Partner::Write(write_slot));
        park(write, State::Partner, Partner::Compare(slot, ticket));
        sink.report(GroupEvent::WantExclusive { ticket, nsid, sqid });
    }

    /// Why a half cannot run, as far as can be known now.
    fn fault_of(&mut self, command: &Command) -> Option<Status> {
        match self.io.job_of(command) {
            Ok(_) | Err(Refused::Remote) => None,
            Err(Refused::Status(status)) => Some(status),
            Err(Refused::Scattered) => Some(Status::INTERNAL_ERROR),
        }
    }

    /// The namespace is held everywhere: the pair that asked runs, if it is still there.
    pub(super) fn granted(&mut self, ticket: u32, sink: &mut impl Sink) {
        let (sqid, write) = command_of(ticket);
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let slot = match sq.live.get_mut(write).and_then(|live| live.partner) {
            Some(Partner::Compare(slot, asked)) if asked == ticket => slot,
            _ => return,
        };
        let Some(live) = sq.live.get_mut(slot).filter(|live| live.state == State::Grant) else { return };
        live.state = State::Retry;
        self.go_on_or_wait(sqid, slot, sink);
    }

    /// One half of a pair was answered.
    pub(super) fn half_ended(
        &mut self,
        sqid: u16,
        slot: u16,
        partner: Partner,
        result: Result<(), Refusal>,
        sink: &mut impl Sink,
    ) {
        match (partner, result) {
            (Partner::Write(write), Ok(())) => {
                let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
                let Some(live) = sq.live.get_mut(write) else { return };
                live.state = State::Retry;
                self.go_on_or_wait(sqid, write, sink);
            }
            (Partner::Write(write), Err(_)) => {
                self.finish(sqid, write, Err(Refusal::of(Status::ABORTED_FAILED_FUSED)), sink);
            }
            (Partner::Compare(compare, ticket), _) => {
                debug_assert_ne!(compare, slot);
                sink.report(GroupEvent::ExclusiveDone { ticket });
            }
        }
    }

    fn go_on_or_wait(&mut self, sqid: u16, slot: u16, sink: &mut impl Sink) {
        if self.drains.is_quieted() {
            self.retries.push_back((sqid, slot));
        } else {
            self.go_on(sqid, slot, sink);
        }
    }

    /// Takes a command only to refuse it.
    fn refuse(&mut self, sqid: u16, command: &Command, status: Status, sink: &mut impl Sink) -> bool {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return false };
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.queue.cqid())) else { return false };
        let Some(accepted) = sq.queue.accept(&self.region, cq, command) else { return false };
        self.answer_refused(accepted, command.nsid, status, sink);
        true
    }

    pub(super) fn answer_refused(
        &mut self,
        accepted: Accepted,
        nsid: u32,
        status: Status,
        sink: &mut impl Sink,
    ) {
        let refusal = Refusal { status: status.dnr_set(), field: NO_FIELD, lba: 0 };
        self.answer(accepted, nsid, Kind::Other, 0, Err(refusal), sink);
    }
}
