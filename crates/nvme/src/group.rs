//! All I/O queue pairs of one ssd on one reactor.
//!
//! ```text
//!  poll:     doorbell -> fetch -> (held? fused?) -> accept -> Executor::start -> answered at once | parked in `live`
//!  complete: token -> live -> answered | next step
//!  flush:    one interrupt for each completion queue that got entries; drains that have come to an end are reported
//! ```
//!
//! Duties of the caller: one reactor thread; `poll` (or `poll_shut`) and `flush` in every turn, and some twenty turns without work before it sleeps (a
//! host with shadow doorbells is asked to ring again only then); each token that was `Queued` comes back through
//! `complete` once, until the group acknowledged `Reset` or `Pause`.

mod arrivals;
mod commands;
mod drain;
mod fused;
mod live;
mod ticket;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Limits, Now, Outcome, Token};
use memory::{DoorbellPage, Fault, MemoryMap, SharedRegion};
use spec::nvme::{Command, Status};
use state::region::{ControllerRegion, QUEUES_MAX};

use crate::io::fault::{Access, Refusal};
use crate::io::{Begun, Executor, Kind, Quick, Started, ended};
use crate::namespace::NamespaceTable;
use crate::queue::{
    Accepted, Answer, CompletionQueue, Doorbells, Look, SubmissionQueue, count_change, cq_index, free_slot,
    sq_index,
};
use crate::sink::{DoorbellError, ErrorRecord, GroupEvent, Sink};
use crate::watch::{Bell, Watch};
use arrivals::Arrivals;
use drain::Drains;
use live::{Live, Partner, Slots, State};
use ticket::Tickets;

/// Commands taken from one queue in one poll.
const BATCH: u32 = 32;
/// Entries fetched into the cache ahead of the one that is read.
const AHEAD: u32 = 8;
/// Looks at an idle queue before the host is asked to ring again.
const IDLE_LOOKS: u32 = 16;
/// Errors reported in a burst, and one more for each interval after it.
const ERRORS_BURST: u32 = 64;
const ERROR_INTERVAL_NS: u64 = 1_000_000;

/// What a group is made of.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The controller's region.
    pub region: Arc<SharedRegion<ControllerRegion>>,
    /// Its doorbell page.
    pub doorbells: Arc<SharedRegion<DoorbellPage>>,
    /// This reactor's backend.
    pub limits: Limits,
    /// Most bytes of data in a command.
    pub mdts_bytes: u32,
}

/// A submission queue and what runs of it.
struct Sq {
    queue: SubmissionQueue,
    live: Slots,
    arrivals: Arrivals,
    /// Looks since something was there.
    idle: u32,
    deleting: bool,
    /// On its way to another group: nothing more is fetched here.
    yielding: bool,
    /// Dropped by a reset; kept until its backend I/O has ended.
    dead: bool,
}

/// See the module.
pub struct QueueGroup {
    region: Arc<SharedRegion<ControllerRegion>>,
    page: Arc<SharedRegion<DoorbellPage>>,
    bells: Doorbells,
    io: Executor,
    sqs: Vec<Option<Box<Sq>>>,
    cqs: Vec<Option<Box<CompletionQueue>>>,
    /// Identifiers of the queues there are.
    active_sqs: Vec<u16>,
    active_cqs: Vec<u16>,
    /// Commands that begin, or go on, in the next poll.
    retries: VecDeque<(u16, u16)>,
    tickets: Tickets,
    drains: Drains,
    /// Requests at the backend.
    at_backend: usize,
    /// When the doorbells were last looked at.
    looked: Now,
    /// The time of this turn.
    now: Now,
    /// While the group rests: the doorbells of its submission queues, and what they said.
    resting: Vec<Bell>,
    /// The backend had no room in this poll: nothing more is fetched.
    full: bool,
    /// Entries were posted since the last flush.
    posted: bool,
    /// A completion queue has entries that its client did not take.
    late: bool,
    errors: Budget,
    /// `NeedsRemote` was said for this map.
    asked_remote: bool,
}

/// A bound on how fast errors are told.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Now,
}

impl Budget {
    fn refill(&mut self, now: Now) {
        let due = now.0.saturating_sub(self.refilled.0) / ERROR_INTERVAL_NS;
        if due > 0 {
            self.left = self.left.saturating_add(u32::try_from(due).unwrap_or(u32::MAX)).min(ERRORS_BURST);
            self.refilled = now;
        }
    }

    fn take(&mut self) -> bool {
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

/// The token of a command's request. Bit 63 is the controller's.
#[inline]
fn token_of(sqid: u16, slot: u16) -> Token {
    Token(u64::from(sqid) << 16 | u64::from(slot))
}

fn command_of(token: Token) -> Option<(u16, u16)> {
    let slot = u16::try_from(token.0 & 0xffff).ok()?;
    Some((u16::try_from(token.0 >> 16).ok()?, slot))
}

impl QueueGroup {
    /// A group without queues.
    #[must_use]
    pub fn new(config: GroupConfig, memory: Arc<MemoryMap>, namespaces: Arc<NamespaceTable>) -> Self {
        Self {
            region: config.region,
            page: config.doorbells,
            bells: Doorbells::default(),
            io: Executor::new(config.limits, config.mdts_bytes, memory, namespaces),
            sqs: (0..QUEUES_MAX).map(|_| None).collect(),
            cqs: (0..QUEUES_MAX).map(|_| None).collect(),
            active_sqs: Vec::with_capacity(QUEUES_MAX),
            active_cqs: Vec::with_capacity(QUEUES_MAX),
            retries: VecDeque::new(),
            tickets: Tickets::default(),
            drains: Drains::default(),
            at_backend: 0,
            looked: Now(0),
            now: Now(0),
            resting: Vec::new(),
            full: false,
            posted: false,
            late: false,
            errors: Budget { left: ERRORS_BURST, refilled: Now(0) },
            asked_remote: false,
        }
    }

    /// Requests at the backend. At 0 the group may be dropped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.at_backend
    }

    /// Queues are waited for that are being deleted or reset: what only waits for space need not be ([`QueueGroup::is_unwanted`]).
    #[inline]
    #[must_use]
    pub fn is_clearing(&self) -> bool {
        self.at_backend > 0
            && self.drains.is_watching()
            && self.sqs.iter().flatten().any(|sq| sq.deleting || sq.dead)
    }

    /// Whether this request is of a queue that is being deleted or reset: it may as well fail, so that the host need not wait for it.
    #[must_use]
    pub fn is_unwanted(&self, token: Token) -> bool {
        let sq = command_of(token).and_then(|(sqid, _)| self.sqs.get(usize::from(sqid))?.as_ref());
        sq.is_some_and(|sq| sq.deleting || sq.dead)
    }

    /// Completion queues, each with its submission queues.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.active_cqs.len()
    }

    /// No queues.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.active_sqs.is_empty() && self.active_cqs.is_empty()
    }

    /// Whether the group has nothing to do but to wait for doorbells. If so, it needs no turn until [`QueueGroup::rang`], or a command.
    pub fn rest(&mut self) -> bool {
        self.resting.clear();
        if self.at_backend > 0
            || self.posted
            || self.late
            || !self.retries.is_empty()
            || self.drains.is_watching()
        {
            return false;
        }
        let shadowed = self.bells.is_shadowed();
        for sqid in &self.active_sqs {
            let Some(Some(sq)) = self.sqs.get(usize::from(*sqid)) else { continue };
            let index = sq_index(*sqid);
            let value = self.bells.value(&self.page, index);
            // A host that is asked to ring is asked before anyone stops looking.
            if !sq.queue.is_idle_at(value) || shadowed && sq.idle < IDLE_LOOKS {
                return false;
            }
            self.resting.push(Bell { index, value });
        }
        true
    }

    /// Whether a doorbell changed since the group rests: one load for each submission queue.
    #[inline]
    #[must_use]
    pub fn rang(&self) -> bool {
        self.resting.iter().any(|bell| self.bells.value(&self.page, bell.index) != bell.value)
    }

    /// Adds what a group that rests waits for.
    pub fn watch(&self, watch: &mut Watch) {
        watch.queues(self.bells.shadow(), &self.resting);
    }

    /// The group rested, and nothing had rung at this time.
    pub fn looked_at(&mut self, at: Now) {
        self.looked = at;
    }

    /// One look at each submission queue. Returns the number of commands taken.
    pub fn poll(&mut self, now: Now, sink: &mut impl Sink) -> usize {
        self.poll_shut(now);
        if self.active_sqs.is_empty() {
            return 0;
        }
        self.errors.refill(now);
        self.full = false;
        self.io.write_through = is_write_through(&self.region);
        if !self.retries.is_empty() {
            self.retry(sink);
        }
        if self.drains.is_quieted() {
            return 0;
        }
        let since = core::mem::replace(&mut self.looked, now);
        let mut taken = 0;
        for index in 0..self.active_sqs.len() {
            if self.full {
                break;
            }
            let Some(&sqid) = self.active_sqs.get(index) else { break };
            let here = self.serve(sqid, since, sink);
            if here > 0
                && let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid))
            {
                sq.arrivals.took(here);
                taken += here as usize;
            }
        }
        taken
    }

    /// In the place of [`QueueGroup::poll`] while the ssd's limits let nothing begin: only entries that a client did not take are
    /// tried again.
    pub fn poll_shut(&mut self, now: Now) {
        self.now = now;
        if self.late && !self.drains.is_stopped() {
            self.write_late(now);
        }
    }

    /// Fetches and begins a batch of one queue. Longer than the house likes: the borrows of both queues are held over the whole
    /// loop, so that no entry pays for finding them again.
    #[inline]
    fn serve(&mut self, sqid: u16, since: Now, sink: &mut impl Sink) -> u32 {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return 0 };
        let tail = self.bells.value(&self.page, sq_index(sqid));
        let waiting = match sq.queue.look(tail) {
            Look::Waiting(0) => return self.idle(sqid),
            Look::Waiting(waiting) => waiting,
            Look::Invalid => {
                self.tell_doorbell(sqid, sink);
                return 0;
            }
        };
        if sq.deleting || sq.yielding {
            return 0;
        }
        sq.idle = 0;
        sq.arrivals.look(waiting, since);
        for ahead in 0..AHEAD.min(waiting) {
            sq.queue.prefetch(ahead);
        }
        let cqid = sq.queue.cqid();
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(cqid)) else { return 0 };
        let batch = waiting.min(BATCH).min(sq.queue.free_slots());
        if cq.room() < batch
            && !cq.look(&self.region, self.bells.value(&self.page, cq_index(cqid)))
            && self.errors.take()
        {
            sink.report(GroupEvent::InvalidDoorbell { qid: cqid, kind: DoorbellError::Value });
        }
        let batch = batch.min(cq.room());
        let region: &ControllerRegion = &self.region;
        let (mut taken, mut timed) = (0, 0);
        let mut command = Command::default();
        while taken < batch {
            if taken == timed {
                timed = tell_waited(&sq.arrivals, taken, sink);
            }
            if !sq.queue.fetch_into(0, &mut command) {
                break;
            }
            if taken + AHEAD < waiting {
                sq.queue.prefetch(AHEAD);
            }
            if self.drains.holds(command.nsid) {
                break;
            }
            if command.cdw0.fuse() != 0 {
                taken += 1;
                if !self.fused(sqid, &command, waiting - taken + 1, sink) {
                    taken -= 1;
                }
                // The borrow of the queues ended: the rest waits for the next look.
                return taken;
            }
            let Some(accepted) = sq.queue.accept(region, cq, &command) else { break };
            taken += 1;
            match self.io.start(token_of(sqid, accepted.slot()), &command, sink) {
                Quick::Done { kind, sectors } => {
                    count(region, sqid, kind, sectors);
                    cq.post(region, &mut sq.queue, accepted, Answer::of(Status::SUCCESS));
                    self.posted = true;
                }
                Quick::AtBackend { kind, sectors } => {
                    self.at_backend += 1;
                    let (state, epoch, nsid) = (State::Backend, self.drains.epoch(), command.nsid);
                    sq.live.park(Live {
                        accepted,
                        state,
                        kind,
                        epoch,
                        nsid,
                        sectors,
                        partner: None,
                        job: None,
                    });
                }
                Quick::Rare(started) => {
                    // The borrow of the queues ended: the rest waits for the next look.
                    self.began(accepted, &command, *started, sink);
                    return taken;
                }
            }
        }
        taken
    }

    /// A doorbell value no queue can have. Within the budget of errors: a host can find any number of them.
    #[cold]
    fn tell_doorbell(&mut self, qid: u16, sink: &mut impl Sink) {
        if self.errors.take() {
            sink.report(GroupEvent::InvalidDoorbell { qid, kind: DoorbellError::Value });
        }
    }

    /// An idle look. With shadow doorbells the host is asked to ring, after a while: while it is busy that would only cost.
    #[inline]
    fn idle(&mut self, sqid: u16) -> u32 {
        if !self.bells.is_shadowed() {
            return 0;
        }
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return 0 };
        sq.idle = sq.idle.saturating_add(1);
        if sq.idle == IDLE_LOOKS {
            // What it returns is looked at again by the next poll in any case: nothing sleeps between.
            let seen = self.bells.announce(&self.page, sq_index(sqid), sq.queue.head());
            if seen != sq.queue.head() {
                sq.idle = 0;
            }
        }
        0
    }

    /// What a command's beginning led to, in all the rarer cases.
    #[inline(never)]
    fn began(&mut self, accepted: Accepted, command: &Command, started: Started, sink: &mut impl Sink) {
        let (sqid, slot) = (accepted.sqid(), accepted.slot());
        let Started { begun, kind, sectors, job } = started;
        let live = Live {
            accepted,
            state: State::Retry,
            kind,
            epoch: self.drains.epoch(),
            nsid: command.nsid,
            sectors,
            partner: None,
            job,
        };
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return live.accepted.forget() };
        sq.live.park(live);
        self.went_on(sqid, slot, begun, sink);
    }

    /// A parked command took a step.
    fn went_on(&mut self, sqid: u16, slot: u16, begun: Begun, sink: &mut impl Sink) {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let Some(live) = sq.live.get_mut(slot) else { return };
        match begun {
            Begun::Ended(result) => self.finish(sqid, slot, result, sink),
            Begun::AtBackend => {
                live.state = State::Backend;
                live.epoch = self.drains.epoch();
                self.at_backend += 1;
            }
            Begun::Full | Begun::Yielded => {
                live.state = State::Retry;
                self.full |= matches!(begun, Begun::Full);
                self.retries.push_back((sqid, slot));
            }
            Begun::Persisting => {
                let ticket = self.tickets.next(sqid, slot);
                live.state = State::Persisting { ticket };
                sink.report(GroupEvent::WantPersist { ticket });
            }
            Begun::NeedsRemote => {
                live.state = State::Retry;
                self.retries.push_back((sqid, slot));
                self.ask_remote(sink);
            }
        }
    }

    /// Commands that found no room, or whose turn was over, try again; each once.
    #[inline(never)]
    fn retry(&mut self, sink: &mut impl Sink) {
        if self.drains.is_quieted() {
            return;
        }
        for _ in 0..self.retries.len() {
            let Some((sqid, slot)) = self.retries.pop_front() else { return };
            self.go_on(sqid, slot, sink);
        }
    }

    /// Begins a parked command again, or goes on with its job.
    fn go_on(&mut self, sqid: u16, slot: u16, sink: &mut impl Sink) {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let Some(live) = sq.live.get_mut(slot) else { return };
        if live.state != State::Retry {
            return;
        }
        let token = token_of(sqid, slot);
        let begun = if let Some(job) = &mut live.job {
            self.io.advance(job, crate::io::job::Next::Request, token, sink)
        } else {
            let Some(command) = sq.queue.command(&self.region, slot) else { return };
            let started = self.io.start(token, &command, sink).into_started();
            (live.kind, live.sectors, live.job) = (started.kind, started.sectors, started.job);
            started.begun
        };
        self.went_on(sqid, slot, begun, sink);
    }

    /// A request ended.
    pub fn complete(&mut self, token: Token, outcome: Outcome, sink: &mut impl Sink) {
        let Some((sqid, slot)) = command_of(token) else { return };
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let Some(live) = sq.live.get_mut(slot).filter(|live| live.state == State::Backend) else { return };
        self.at_backend -= 1;
        if live.job.is_some()
            || live.partner.is_some()
            || sq.dead
            || outcome != Outcome::Done
            || self.drains.is_stopped()
            || self.io.is_logged()
        {
            return self.complete_rare(sqid, slot, outcome, sink);
        }
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.queue.cqid())) else { return };
        let Some(live) = sq.live.take(slot) else { return };
        let region: &ControllerRegion = &self.region;
        count(region, sqid, live.kind, live.sectors);
        cq.post(region, &mut sq.queue, live.accepted, Answer::of(Status::SUCCESS));
        self.posted = true;
    }

    #[inline(never)]
    fn complete_rare(&mut self, sqid: u16, slot: u16, outcome: Outcome, sink: &mut impl Sink) {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let Some(live) = sq.live.get_mut(slot) else { return };
        if self.io.is_logged()
            && live.kind == Kind::Read
            && live.job.is_none()
            && let Some(command) = sq.queue.command(&self.region, slot)
        {
            self.io.mark_read(&command, bytes_of(live.sectors));
        }
        if sq.dead {
            live.state = State::Retry;
            return;
        }
        let access = if live.kind == Kind::Read { Access::Read } else { Access::Change };
        let begun = match &mut live.job {
            // Given up for the deletion, or as well as.
            None if sq.deleting && outcome == Outcome::Failed(block::Fault::NoSpace) => {
                Begun::Ended(Err(Refusal::transient(Status::ABORTED_SQ_DELETION)))
            }
            None => Begun::Ended(
                ended(outcome, access).map_err(|refusal| refusal.at(lba_of(&sq.queue, &self.region, slot))),
            ),
            // While the group pauses, the next step belongs to its successor.
            Some(_) if self.drains.is_stopped() => {
                live.state = State::Retry;
                return;
            }
            Some(job) => self.io.resume(job, outcome, token_of(sqid, slot), sink),
        };
        self.went_on(sqid, slot, begun, sink);
    }

    /// Answers a parked command.
    fn finish(&mut self, sqid: u16, slot: u16, result: Result<(), Refusal>, sink: &mut impl Sink) {
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return };
        let Some(live) = sq.live.take(slot) else { return };
        if let Some(job) = live.job {
            self.io.retire(*job);
        }
        if let (Some(Partner::Write(write)), Ok(())) = (live.partner, result) {
            // A successor that finds the Write alone must know whether the Compare had succeeded.
            sq.queue.set_progress(&self.region, write, fused::COMPARED);
        }
        self.answer(live.accepted, live.nsid, live.kind, live.sectors, result, sink);
        if let Some(partner) = live.partner {
            self.half_ended(sqid, slot, partner, result, sink);
        }
    }

    /// Posts the answer of a command; an error is told to the error log while the budget lasts.
    fn answer(
        &mut self,
        accepted: Accepted,
        nsid: u32,
        kind: Kind,
        sectors: u32,
        result: Result<(), Refusal>,
        sink: &mut impl Sink,
    ) {
        let (sqid, cid) = (accepted.sqid(), accepted.cid());
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return accepted.forget() };
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(sq.queue.cqid())) else {
            return sq.queue.abandon(&self.region, accepted);
        };
        let status = match result {
            Ok(()) => {
                count(&self.region, sqid, kind, sectors);
                Status::SUCCESS
            }
            Err(refusal) => {
                if kind.changes_data() {
                    count_change(&self.region, sqid);
                }
                let more = self.errors.take();
                let status = refusal.status.with_more(more);
                if more {
                    let (lba, parameter_location) = (refusal.lba, refusal.field);
                    sink.report(GroupEvent::Error(ErrorRecord {
                        sqid,
                        cid,
                        status,
                        lba,
                        nsid,
                        parameter_location,
                    }));
                }
                status
            }
        };
        cq.post(&self.region, &mut sq.queue, accepted, Answer::of(status));
        self.posted = true;
    }

    /// The end of a turn: one interrupt for each completion queue that got entries.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if core::mem::take(&mut self.posted) {
            for &cqid in &self.active_cqs {
                let Some(Some(cq)) = self.cqs.get_mut(usize::from(cqid)) else { continue };
                self.late |= cq.late_at().is_some();
                if cq.take_posted()
                    && let Some(vector) = cq.vector()
                {
                    sink.interrupt(vector);
                }
            }
        }
        if self.drains.is_watching() {
            self.check_drains(sink);
        }
    }

    /// Tries the entries again that a client did not take.
    #[cold]
    fn write_late(&mut self, now: Now) {
        self.late = false;
        for cq in self.cqs.iter_mut().flatten() {
            if cq.late_at().is_some_and(|at| at <= now) {
                self.posted |= write_unwritten(&self.region, cq, &mut self.sqs);
                cq.put_off(now);
            }
            self.late |= cq.late_at().is_some();
        }
    }

    /// Something lies in a region without an fd: said once for each memory map.
    fn ask_remote(&mut self, sink: &mut impl Sink) {
        if !self.asked_remote && !self.io.map.is_remote_reachable() {
            self.asked_remote = true;
            sink.report(GroupEvent::NeedsRemote);
        }
    }

    /// As [`QueueGroup::ask_remote`], if this is the fault of a ring.
    fn ask_for(&mut self, fault: Option<Fault>, sink: &mut impl Sink) {
        if fault == Some(Fault::Remote) {
            self.ask_remote(sink);
        }
    }
}

/// Says since when the next commands of a queue have waited; returns the number of commands taken at which it must be said again.
#[inline]
fn tell_waited(arrivals: &Arrivals, taken: u32, sink: &mut impl Sink) -> u32 {
    let Some((count, since)) = arrivals.behind(taken) else { return u32::MAX };
    sink.waited_since(since);
    taken.saturating_add(count)
}

impl Drop for QueueGroup {
    /// The region keeps the accepted commands for who comes next.
    fn drop(&mut self) {
        for sq in self.sqs.iter_mut().flatten() {
            sq.live.take_all().for_each(|live| live.accepted.forget());
        }
    }
}

/// Writes what can be written of what a completion queue could not write when it was due. Whether anything was.
fn write_unwritten(region: &ControllerRegion, cq: &mut CompletionQueue, sqs: &mut [Option<Box<Sq>>]) -> bool {
    let mut any = false;
    while let Some(written) = cq.next_unwritten() {
        any = true;
        match sqs.get_mut(usize::from(written.sqid)) {
            _ if written.orphan => {}
            Some(Some(sq)) => sq.queue.release(region, written.slot),
            // Not opened yet.
            _ => free_slot(region, written.sqid, written.slot),
        }
    }
    any
}

/// Starting LBA of an accepted command.
fn lba_of(queue: &SubmissionQueue, region: &ControllerRegion, slot: u16) -> u64 {
    queue.command(region, slot).map_or(0, |command| command.slba())
}

fn bytes_of(sectors: u32) -> usize {
    usize::try_from(u64::from(sectors) << 9).unwrap_or(usize::MAX)
}

/// Volatile Write Cache (feature 06h) is set, and its WCE bit is clear.
fn is_write_through(region: &ControllerRegion) -> bool {
    const FEATURE: usize = 0x06;
    let set = region.admin.features_set[0].load(Ordering::Relaxed) >> FEATURE & 1 == 1;
    set && region.admin.features[FEATURE].load(Ordering::Relaxed) & 1 == 0
}

/// Adds to the counters of log page 02h. This reactor is their only writer: no read-modify-write is needed.
#[inline]
fn count(region: &ControllerRegion, sqid: u16, kind: Kind, sectors: u32) {
    let Some(record) = region.sqs.get(usize::from(sqid)) else { return };
    let (commands, units) = match kind {
        Kind::Read => (&record.reads, &record.read_sectors),
        Kind::Write => (&record.writes, &record.write_sectors),
        Kind::Verify => return add(&record.read_sectors, u64::from(sectors)),
        Kind::Copy => {
            add(&record.reads, 1);
            (&record.writes, &record.write_sectors)
        }
        Kind::Zeroes => return count_change(region, sqid),
        Kind::Other => return,
    };
    add(commands, 1);
    add(units, u64::from(sectors));
}

#[inline]
fn add(counter: &AtomicU64, by: u64) {
    crate::store::put64(counter, counter.load(Ordering::Relaxed).wrapping_add(by));
}
