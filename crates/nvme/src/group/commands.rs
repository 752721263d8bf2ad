//! What the controller tells a group.

use std::sync::Arc;

use memory::MemoryMap;
use spec::nvme::{Fuse, Status};

use super::arrivals::Arrivals;
use super::live::{Live, Partner, Slots, State};
use super::ticket::command_of;
use super::{QueueGroup, Sq, write_unwritten};
use crate::io::Kind;
use crate::io::fault::Refusal;
use crate::queue::{Accepted, CompletionQueue, SqRecord, SubmissionQueue, conclude, count_if_changing};
use crate::sink::{GroupCommand, GroupEvent, Sink};

impl QueueGroup {
    /// Carries out a command of the controller. What it waits for is reported by a later `flush`.
    pub fn command(&mut self, command: GroupCommand, sink: &mut impl Sink) {
        match command {
            GroupCommand::CreateCq { cqid } => self.create_cq(cqid, sink),
            GroupCommand::CreateSq { sqid } => self.create_sq(sqid, sink),
            GroupCommand::DeleteSq { sqid } => self.delete_sq(sqid, sink),
            GroupCommand::DeleteCq { cqid } => {
                self.drop_cq(cqid);
                sink.report(GroupEvent::CqDeleted { cqid });
            }
            GroupCommand::Yield { cqid } => self.yield_pair(cqid, sink),
            GroupCommand::Memory { map } => self.adopt(map, sink),
            GroupCommand::Namespaces { table, id } => {
                self.io.table = table;
                sink.report(GroupEvent::Acknowledged { id });
            }
            // The asking pair is not running by itself, so that it needs no exception.
            GroupCommand::Hold { scope, except: _, id } => self.drains.hold(scope, id),
            GroupCommand::Release { id } => self.drains.release(id),
            GroupCommand::Abort { sqid, cid, id } => {
                let aborted = self.abort(sqid, cid, sink);
                sink.report(GroupEvent::AbortResult { id, aborted });
            }
            GroupCommand::ShadowDoorbells { enabled, id } => {
                self.bells.set_shadow(enabled, &self.region, &self.io.map);
                for sq in self.sqs.iter_mut().flatten() {
                    sq.idle = 0;
                }
                let fault = self.bells.fault();
                self.ask_for(fault, sink);
                sink.report(GroupEvent::Acknowledged { id });
            }
            GroupCommand::Reset { id } => self.reset(id, sink),
            GroupCommand::Lull { id } => self.drains.lull(id),
            GroupCommand::EndLull => self.drains.end_lull(),
            GroupCommand::Pause { id } => {
                self.give_up_tickets(sink);
                self.drains.pause(id);
            }
            GroupCommand::Freeze { id } => {
                self.give_up_tickets(sink);
                self.drains.freeze(id);
            }
            GroupCommand::Granted { ticket } => self.granted(ticket, sink),
            GroupCommand::Persisted { ticket, ok } => self.persisted(ticket, ok, sink),
        }
    }

    fn create_cq(&mut self, cqid: u16, sink: &mut impl Sink) {
        let Some(place) = self.cqs.get_mut(usize::from(cqid)).filter(|place| place.is_none()) else { return };
        let Some(mut cq) = CompletionQueue::open(&self.region, cqid, &self.io.map) else { return };
        let fault = cq.fault();
        // What a predecessor had begun to post comes first, of every submission queue.
        for sqid in (0..).zip(&self.region.sqs).skip(1).map(|(sqid, _)| sqid) {
            let posts_here = |record: SqRecord| record.cqid == cqid;
            if SqRecord::load(&self.region, sqid).is_some_and(posts_here)
                && let Some(found) = conclude(&self.region, sqid)
            {
                found.write_posts(&self.region, sqid, &mut cq);
            }
        }
        *place = Some(Box::new(cq));
        self.active_cqs.push(cqid);
        // Entries of a predecessor that the host was perhaps not told of.
        self.posted = true;
        self.ask_for(fault, sink);
    }

    /// Opens a queue. Commands that a predecessor accepted and did not answer begin again, from their private copies.
    fn create_sq(&mut self, sqid: u16, sink: &mut impl Sink) {
        let Some(place) = self.sqs.get_mut(usize::from(sqid)).filter(|place| place.is_none()) else { return };
        let Some(queue) = SubmissionQueue::open(&self.region, sqid, &self.io.map) else { return };
        let fault = queue.fault();
        let mut sq = Box::new(Sq {
            queue,
            live: Slots::default(),
            arrivals: Arrivals::default(),
            idle: 0,
            deleting: false,
            yielding: false,
            dead: false,
        });
        let conclusion = conclude(&self.region, sqid);
        let mut fused = Vec::new();
        if let (Some(found), Some(Some(cq))) = (conclusion, self.cqs.get_mut(usize::from(sq.queue.cqid()))) {
            for unanswered in &found.unanswered {
                let Some((command, accepted)) = sq.queue.resume(&self.region, cq, unanswered.slot) else {
                    continue;
                };
                // A predecessor may have begun it, however it ends now.
                count_if_changing(&self.region, sqid, accepted.slot());
                if command.cdw0.fuse() != 0 {
                    fused.push((command, accepted));
                    continue;
                }
                self.retries.push_back((sqid, accepted.slot()));
                let (state, epoch, nsid) = (State::Retry, self.drains.epoch(), command.nsid);
                sq.live.park(Live {
                    accepted,
                    state,
                    kind: Kind::Other,
                    epoch,
                    nsid,
                    sectors: 0,
                    partner: None,
                    job: None,
                });
            }
        }
        *place = Some(sq);
        self.active_sqs.push(sqid);
        let mut fused = fused.into_iter().peekable();
        while let Some((first, compare)) = fused.next() {
            let second = fused.next_if(|(second, _)| {
                Fuse(first.cdw0.fuse()) == Fuse::First && Fuse(second.cdw0.fuse()) == Fuse::Second
            });
            match second {
                Some((second, write)) => self.pair(compare, &first, write, &second, sink),
                // Its Compare was answered with success: the Write is due, and may be done again.
                None if self.is_compared(sqid, &compare) => {
                    let (epoch, nsid) = (self.drains.epoch(), first.nsid);
                    self.retries.push_back((sqid, compare.slot()));
                    let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return compare.forget() };
                    let (state, kind) = (State::Retry, Kind::Other);
                    sq.live.park(Live {
                        accepted: compare,
                        state,
                        kind,
                        epoch,
                        nsid,
                        sectors: 0,
                        partner: None,
                        job: None,
                    });
                }
                None if Fuse(first.cdw0.fuse()) == Fuse::First => {
                    self.answer_refused(compare, first.nsid, Status::ABORTED_MISSING_FUSED, sink);
                }
                None => self.answer_refused(compare, first.nsid, Status::ABORTED_FAILED_FUSED, sink),
            }
        }
        self.ask_for(fault, sink);
    }

    fn is_compared(&self, sqid: u16, accepted: &Accepted) -> bool {
        let sq = self.sqs.get(usize::from(sqid)).and_then(Option::as_ref);
        sq.is_some_and(|sq| sq.queue.progress(&self.region, accepted.slot()) == super::fused::COMPARED)
    }

    /// Base 2.1, 5.2.4: what has not begun is aborted; what runs is waited for and answered.
    fn delete_sq(&mut self, sqid: u16, sink: &mut impl Sink) {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else {
            return sink.report(GroupEvent::SqDeleted { sqid });
        };
        sq.deleting = true;
        let waits = |live: &&Live| {
            live.state == State::Grant
                || live.state == State::Retry && live.job.is_none() && live.partner.is_none()
        };
        let waiting: Vec<u16> = sq.live.iter().filter(waits).map(|live| live.accepted.slot()).collect();
        for slot in waiting {
            self.finish(sqid, slot, Err(Refusal::transient(Status::ABORTED_SQ_DELETION)), sink);
        }
        self.drains.watch();
    }

    /// Nothing more is fetched of what goes to another group.
    fn yield_pair(&mut self, cqid: u16, sink: &mut impl Sink) {
        if !self.active_cqs.contains(&cqid) {
            return sink.report(GroupEvent::Yielded { cqid, kept: true });
        }
        self.set_yielding(cqid, true);
        self.drains.yield_pair(cqid, self.now);
    }

    fn adopt(&mut self, map: Arc<MemoryMap>, sink: &mut impl Sink) {
        let old = self.io.adopt(Arc::clone(&map));
        self.drains.retire_map(old, map.generation());
        self.asked_remote = false;
        self.bells.adopt(&self.region, &map);
        let mut fault = self.bells.fault();
        for sq in self.sqs.iter_mut().flatten() {
            sq.queue.adopt(&map);
            fault = fault.or(sq.queue.fault().filter(|fault| *fault == memory::Fault::Remote));
        }
        for cq in self.cqs.iter_mut().flatten() {
            cq.adopt(&map);
            fault = fault.or(cq.fault().filter(|fault| *fault == memory::Fault::Remote));
            self.posted |= write_unwritten(&self.region, cq, &mut self.sqs);
            self.late |= cq.late_at().is_some();
        }
        self.ask_for(fault, sink);
    }

    /// Aborts a command that has not begun (Base 2.1, 5.1.1).
    fn abort(&mut self, sqid: u16, cid: u16, sink: &mut impl Sink) -> bool {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return false };
        let waits = |live: &&Live| {
            live.accepted.cid() == cid
                && live.state == State::Retry
                && live.job.is_none()
                && live.partner.is_none()
        };
        let Some(slot) = sq.live.iter().find(waits).map(|live| live.accepted.slot()) else { return false };
        self.finish(sqid, slot, Err(Refusal::transient(Status::ABORT_REQUESTED)), sink);
        true
    }

    fn persisted(&mut self, ticket: u32, ok: bool, sink: &mut impl Sink) {
        let (sqid, slot) = command_of(ticket);
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let asked = State::Persisting { ticket };
        let Some(live) = sq.live.get_mut(slot).filter(|live| live.state == asked) else { return };
        if sq.dead {
            return;
        }
        let result = if ok { Ok(()) } else { Err(Refusal::transient(Status::INTERNAL_ERROR)) };
        debug_assert!(live.job.is_some());
        if let Some(job) = live.job.as_ref().filter(|_| ok) {
            job.persisted();
        }
        self.finish(sqid, slot, result, sink);
    }

    /// Drops every queue at once; only I/O at the backend is remembered.
    fn reset(&mut self, id: u32, sink: &mut impl Sink) {
        self.give_up_tickets(sink);
        self.bells.set_shadow(false, &self.region, &self.io.map);
        self.retries.clear();
        for cqid in core::mem::take(&mut self.active_cqs) {
            self.drop_cq(cqid);
        }
        for sq in self.sqs.iter_mut().flatten() {
            sq.dead = true;
            (sq.deleting, sq.yielding) = (false, false);
        }
        self.drains.reset(id);
        self.posted = false;
    }

    /// Exclusivity that was asked for, or is had, is given back: nobody here goes on with it.
    fn give_up_tickets(&mut self, sink: &mut impl Sink) {
        for sq in self.sqs.iter().flatten() {
            for live in sq.live.iter() {
                // Said once for a pair, by its Write.
                let Some(Partner::Compare(_, ticket)) = live.partner else { continue };
                sink.report(GroupEvent::ExclusiveDone { ticket });
            }
        }
    }
}
