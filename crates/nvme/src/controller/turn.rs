//! One turn: admin doorbell, timers, work under way. And where events, completions and interrupts come together.

use block::{Now, Outcome, Token};
use spec::nvme::Status;

use super::{Controller, Host, PersistWish, Wait};
use crate::admin::queue::{AdminQueue, Next};
use crate::queue::{Answer, Unanswered, cq_index, sq_index};
use crate::sink::GroupEvent;
use crate::watch::{Bell, Watch};

/// Admin commands taken in one turn.
const BATCH_MAX: usize = 16;
/// The count of media errors is recorded no more often.
const MEDIA_ERRORS_EVERY_NS: u64 = 1_000_000_000;

impl Controller {
    /// Takes admin commands and moves on what has to move. Cheap when there is nothing to do. Returns commands taken.
    pub fn poll(&mut self, now: Now, host: &mut impl Host) -> usize {
        self.now = now;
        if self.is_still() {
            return 0;
        }
        self.resume_if_due(host);
        if let Some(queue) = &mut self.queue {
            queue.write_late(&self.region, now);
        }
        self.expire_keep_alive();
        if self.flush_is_due() {
            self.flush_for_shutdown(host);
        }
        self.pump_backend(host);
        self.pump_logs(host);
        self.begin_surveys(host);
        let mut taken = 0;
        while taken < BATCH_MAX && self.takes_commands() {
            let Some(queue) = &mut self.queue else { break };
            match queue.next(&self.region, &self.doorbells) {
                Next::Nothing => break,
                Next::InvalidDoorbell => self.doorbell_error(0, crate::sink::DoorbellError::Value),
                Next::Command(slot, command) => {
                    taken += 1;
                    self.execute(slot, command, host);
                }
            }
        }
        self.ring(host);
        taken
    }

    /// Nothing in this turn could have an effect: two loads and a few compares.
    fn is_still(&mut self) -> bool {
        let head = self.doorbells.cq_head(0);
        let rang = self.rang_with(head);
        self.cq_head_seen = head;
        !rang && !self.is_due()
    }

    /// Whether the controller has nothing to do but to wait for its doorbells or its [`Controller::deadline`]. If so, it needs no turn
    /// until [`Controller::rang`], or a call.
    pub fn rest(&self) -> bool {
        // What has come since the last turn's look is left for the next to find.
        !self.rang() && !self.is_due()
    }

    fn is_due(&self) -> bool {
        self.deadline().is_some_and(|at| at <= self.now)
    }

    /// Whether a doorbell of the admin queue changed since the controller rests: two loads.
    #[inline]
    #[must_use]
    pub fn rang(&self) -> bool {
        self.rang_with(self.doorbells.cq_head(0))
    }

    /// Adds what a controller that rests waits for.
    pub fn watch(&self, watch: &mut Watch) {
        watch.register(Bell { index: cq_index(0), value: self.cq_head_seen });
        // Without a free slot no tail is news.
        if let Some(tail) = self.queue.as_ref().and_then(AdminQueue::awaited_tail) {
            watch.register(Bell { index: sq_index(0), value: tail });
        }
    }

    /// As [`Controller::rang`], for a head that was read already.
    #[inline]
    fn rang_with(&self, cq_head: u32) -> bool {
        cq_head != self.cq_head_seen
            || self.queue.as_ref().is_some_and(|queue| queue.has_work(self.doorbells.sq_tail(0)))
    }

    /// When the next turn is due at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        if self.resume || self.flush_is_due() || self.backend_wants_room() || self.surveys.is_due() {
            return Some(self.now);
        }
        let late = self.queue.as_ref().and_then(AdminQueue::late_at);
        late.into_iter().chain(self.keep_alive_deadline()).chain(self.logs_at()).min()
    }

    /// Interrupts for what was posted, and parked events for what happened.
    pub(crate) fn ring(&mut self, host: &mut impl Host) {
        self.deliver_events();
        if let Some(vector) = self.queue.as_mut().and_then(AdminQueue::take_interrupt) {
            host.interrupt(vector);
        }
    }

    pub(super) fn handle(&mut self, event: GroupEvent, host: &mut impl Host) {
        match event {
            GroupEvent::SqDeleted { sqid } => self.queue_deleted(false, sqid),
            GroupEvent::CqDeleted { cqid } => self.queue_deleted(true, cqid),
            // The engine's own.
            GroupEvent::MemoryAdopted { .. } | GroupEvent::Yielded { .. } | GroupEvent::Lulled { .. } => {}
            GroupEvent::Acknowledged { id } => self.acknowledged(id, host),
            GroupEvent::AbortResult { id, aborted } => {
                if let Some(Wait::Abort(slot)) = self.waits.remove(&id) {
                    self.answer(slot, Answer { dw0: u32::from(!aborted), dw1: 0, status: Status::SUCCESS });
                }
            }
            GroupEvent::Error(e) => {
                if e.status.sct() == spec::nvme::StatusCodeType::Media.0 {
                    self.media_error(host);
                }
                self.note_error(e.sqid, e.cid, e.status, e.lba, e.nsid, e.parameter_location);
            }
            GroupEvent::InvalidDoorbell { qid, kind } => self.doorbell_error(qid, kind),
            GroupEvent::WantExclusive { ticket, nsid, sqid } => self.want_exclusive(ticket, nsid, sqid, host),
            GroupEvent::ExclusiveDone { ticket } => self.exclusive_done(ticket, host),
            GroupEvent::WantPersist { ticket } => self.persist(PersistWish::Ticket(ticket), host),
            GroupEvent::NeedsRemote => self.needs_remote = true,
        }
    }

    /// The drive failed a request, or a block was unreadable. Recorded at once, but at most every second: a crash loses no more.
    pub(crate) fn media_error(&mut self, host: &mut impl Host) {
        self.totals.media_errors = self.totals.media_errors.saturating_add(1);
        let due = self
            .media_errors_recorded_at
            .is_none_or(|at| self.now.0 >= at.0.saturating_add(MEDIA_ERRORS_EVERY_NS));
        if due {
            self.media_errors_recorded_at = Some(self.now);
            self.persist(PersistWish::Nobody, host);
        }
    }

    fn acknowledged(&mut self, id: u32, host: &mut impl Host) {
        match self.waits.remove(&id) {
            Some(Wait::Reset) => self.reset_acknowledged(host),
            Some(Wait::Shutdown) => self.flush_for_shutdown(host),
            Some(Wait::Work) => self.work_acknowledged(id, host),
            Some(Wait::DoorbellBuffer(slot)) => self.answer(slot, Answer::of(Status::SUCCESS)),
            Some(Wait::Abort(_)) | None => {}
        }
    }

    pub(super) fn backend_ended(&mut self, token: Token, outcome: Outcome, host: &mut impl Host) {
        if !self.shutdown_flush_ended(token, outcome, host) && !self.wipe_ended(token, outcome, host) {
            self.self_test_ended(token, outcome, host);
        }
    }

    /// Goes on with backend requests that found no room.
    fn pump_backend(&mut self, host: &mut impl Host) {
        self.pump_wipe(host);
        self.pump_self_test(host);
    }

    fn backend_wants_room(&self) -> bool {
        self.wiper.as_ref().is_some_and(crate::work::wipe::Wiper::wants_room)
            || self.self_test.as_ref().is_some_and(crate::admin::self_test::SelfTest::wants_room)
    }

    pub(super) fn note_remote(&mut self) {
        self.needs_remote |= self.queue.as_ref().is_some_and(AdminQueue::is_remote);
    }

    /// Executes commands that a predecessor accepted, again, in their order.
    pub(super) fn replay(&mut self, unanswered: Vec<Unanswered>, host: &mut impl Host) {
        let Some(queue) = &mut self.queue else { return };
        // All have their completion queue entries back before any is executed: an event request that is answered at once must
        // not take the entry of a command behind it.
        let resumed = |slot| Some((slot, queue.resume(&self.region, slot)?));
        let commands: Vec<_> = unanswered.iter().map(|found| found.slot).filter_map(resumed).collect();
        self.replaying = true;
        for (slot, command) in commands {
            self.execute(slot, command, host);
        }
        self.replaying = false;
    }

    /// Executes commands that waited for memory.
    pub(super) fn retry_stalled(&mut self, host: &mut impl Host) {
        let Some(queue) = &mut self.queue else { return };
        for (slot, command) in queue.take_stalled() {
            self.execute(slot, command, host);
        }
    }
}
