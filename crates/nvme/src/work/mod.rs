//! Work that takes time and concerns namespaces: format, sanitize, creation, deletion, attachment, wiping. One at a time.
//!
//! Each task walks a fixed plan of steps (`Task::plan`); a step ends with an answer of the groups, the backend or the record's writer:
//!
//! ```text
//!  Hold    groups begin no command in scope and end those begun      -> Acknowledged
//!  Gate    groups get the table that refuses I/O; the hold is released -> Acknowledged
//!  Record  the state so far is made stable                            -> persisted
//!  Reply   the command is answered, the work goes on
//!  Wipe    ranges are erased on the backend                           -> completions
//!  Commit  the result is made stable                                  -> persisted
//!  Publish groups get the resulting table                             -> Acknowledged
//! ```
//! A controller reset takes away the reply, not the work. Commands that need the work to end are deferred: they are
//! executed, with all checks, when it has.
//!
//! The same holds serve commands that need a namespace for themselves (fused Compare and Write): one hold at a time.

pub(crate) mod wipe;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spec::nvme::{Command, Status};
use state::ssd::SanitizeV1;

use crate::controller::{Controller, Host, PersistWish, Wait};
use crate::namespace::{Gate, LbaFormat, Marks, Namespace, NamespaceTable, SubsystemGate};
use crate::queue::Answer;
use crate::sink::{GroupCommand, Scope};
use wipe::{Erase, Wiper};

/// Sanitize progress is recorded at least this often.
const RECORD_EVERY_BYTES: u64 = 4 << 30;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Task {
    /// Format NVM of these namespaces.
    Format { nsids: Vec<u32>, format: LbaFormat },
    /// Namespace deletion.
    Delete { nsids: Vec<u32> },
    /// Controller detach.
    Detach { nsid: u32 },
    /// Controller attach.
    Attach { nsid: u32 },
    /// Namespace creation. Free space reads as zeros, unless a sanitize left its pattern there: then `wipe`.
    Create { namespace: Box<Namespace>, wipe: bool },
    /// What an earlier life left to be wiped.
    Leftovers,
    /// The ssd has more room; a namespace that had all there was gets it.
    Grow { from_bytes: u64, to_bytes: u64, nsid: Option<u32> },
    /// The sanitize operation in the record. `before`: what was there in its place, until it is on record itself.
    Sanitize { before: Option<SanitizeV1> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Hold,
    Gate,
    Record,
    Reply,
    Wipe,
    Commit,
    Publish,
}

impl Task {
    const fn plan(&self) -> &'static [Step] {
        match self {
            Self::Format { .. } => &[Step::Hold, Step::Gate, Step::Wipe, Step::Commit, Step::Publish],
            // On record before anybody sees it: a namespace that is not gone for good is not gone.
            Self::Delete { .. } => &[Step::Hold, Step::Record, Step::Gate, Step::Wipe, Step::Commit],
            Self::Detach { .. } => &[Step::Hold, Step::Commit, Step::Publish],
            Self::Create { wipe: true, .. } => &[Step::Wipe, Step::Commit, Step::Publish],
            Self::Attach { .. } | Self::Create { .. } | Self::Grow { .. } => &[Step::Commit, Step::Publish],
            Self::Leftovers => &[Step::Wipe, Step::Commit],
            // Refused before it is on record: else what the host tries meanwhile would wait for its end.
            Self::Sanitize { .. } => {
                &[Step::Hold, Step::Gate, Step::Record, Step::Reply, Step::Wipe, Step::Commit, Step::Publish]
            }
        }
    }

    fn scope(&self) -> Scope {
        match self {
            Self::Detach { nsid } | Self::Attach { nsid } => Scope::Nsid(*nsid),
            Self::Format { nsids, .. } | Self::Delete { nsids } if nsids.len() == 1 => Scope::Nsid(nsids[0]),
            _ => Scope::All,
        }
    }

    /// Namespaces whose change the host is told of.
    fn changed(&self) -> Vec<u32> {
        match self {
            Self::Format { nsids, .. } | Self::Delete { nsids } => nsids.clone(),
            Self::Detach { nsid } | Self::Attach { nsid } => vec![*nsid],
            Self::Grow { nsid, .. } => nsid.iter().copied().collect(),
            Self::Create { .. } | Self::Leftovers | Self::Sanitize { .. } => Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Job {
    task: Task,
    /// Slot of the command to answer, and dword 0 of the answer.
    reply: Option<u16>,
    dw0: u32,
    at: usize,
    hold: Option<u32>,
    failed: bool,
    /// Was attached when it began: only then does the host see a change.
    seen: Vec<u32>,
}

#[derive(Debug)]
struct Exclusive {
    ticket: u32,
    sqid: u16,
    hold: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Work {
    job: Option<Job>,
    pending: Option<NamespaceTable>,
    deferred: VecDeque<(u16, Command)>,
    exclusive: Option<Exclusive>,
    exclusives: VecDeque<(u32, u32, u16)>,
    recorded_bytes: u64,
}

impl Work {
    /// No job.
    pub(crate) fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// The ssd is about to be larger, which not all of it knows yet.
    pub(crate) fn is_growing(&self) -> bool {
        matches!(self.job, Some(Job { task: Task::Grow { .. }, .. }))
    }

    /// A sanitize operation is not over.
    pub(crate) fn is_sanitizing(&self) -> bool {
        matches!(self.job, Some(Job { task: Task::Sanitize { .. }, .. }))
    }

    /// A command waits until the job ends.
    pub(crate) fn defer(&mut self, slot: u16, command: Command) {
        self.deferred.push_back((slot, command));
    }

    /// The admin queue is gone: nobody is owed an answer.
    pub(crate) fn forget_replies(&mut self) {
        self.deferred.clear();
        if let Some(job) = &mut self.job {
            job.reply = None;
        }
    }

    /// The table a record written now must hold, when it is not the live one.
    pub(crate) fn table_to_record(&self) -> Option<&NamespaceTable> {
        self.pending.as_ref()
    }

    fn step(&self) -> Option<Step> {
        let job = self.job.as_ref()?;
        job.task.plan().get(job.at).copied()
    }
}

impl Controller {
    /// Starts a task. The caller has checked that there is none.
    pub(crate) fn start_work(&mut self, task: Task, reply: Option<u16>, dw0: u32, host: &mut impl Host) {
        debug_assert!(self.work.is_idle());
        let attached = |nsid: &u32| self.table.get(*nsid).is_some_and(|ns| ns.attached);
        let attaching = matches!(task, Task::Attach { .. });
        let seen = task.changed().into_iter().filter(|nsid| attaching || attached(nsid)).collect();
        self.work.job = Some(Job { task, reply, dw0, at: 0, hold: None, failed: false, seen });
        self.enter(host);
    }

    /// Goes on with what the record says was not finished.
    pub(crate) fn resume_work(&mut self, host: &mut impl Host) {
        host.namespaces(&self.table);
        self.persist(PersistWish::Nobody, host);
        if self.table.gate() == SubsystemGate::Sanitizing {
            self.start_work(Task::Sanitize { before: None }, None, 0, host);
        } else if !self.to_wipe.is_empty() {
            self.start_work(Task::Leftovers, None, 0, host);
        }
    }

    /// Gives the ssd the room that its drive has, unless something else is under way: then that ends first.
    ///
    /// A namespace that has all of the capacity, and so is the only one, grows with it. What a host has laid out in another way stays
    /// as it is, and the room is unallocated capacity (UNVMCAP), the host's to give to namespaces.
    pub(crate) fn grow_if_due(&mut self, host: &mut impl Host) {
        let (from_bytes, to_bytes) = (self.capacity_bytes, self.room_bytes);
        if to_bytes <= from_bytes || !self.work.is_idle() {
            return;
        }
        let has_all = |ns: &&Arc<Namespace>| {
            ns.reserved_bytes == from_bytes && ns.blocks == from_bytes >> ns.format.shift()
        };
        let only = self.table.iter().find(has_all).map(|ns| (ns.nsid, ns.attached));
        if let Some((nsid, true)) = only {
            self.note_change(nsid);
        }
        let nsid = only.map(|(nsid, _)| nsid);
        tracing::info!(from_bytes, to_bytes, nsid, "the ssd grows");
        self.start_work(Task::Grow { from_bytes, to_bytes, nsid }, None, 0, host);
    }

    fn next_step(&mut self, host: &mut impl Host) {
        if let Some(job) = &mut self.work.job {
            job.at += 1;
        }
        self.enter(host);
    }

    fn enter(&mut self, host: &mut impl Host) {
        match self.work.step() {
            None => self.finish(host),
            Some(Step::Hold) => self.hold(host),
            Some(Step::Gate) => {
                if let Some(table) = self.gated_table() {
                    self.table = Arc::new(table);
                }
                self.publish(host);
            }
            Some(Step::Record) => {
                self.note_wipes();
                self.work.pending = self.gated_table();
                self.persist(PersistWish::Work, host);
            }
            Some(Step::Reply) => {
                if let Some(slot) = self.work.job.as_mut().and_then(|job| job.reply.take()) {
                    self.answer(slot, Answer::of(Status::SUCCESS));
                }
                self.next_step(host);
            }
            Some(Step::Wipe) => {
                self.wiper = Some(self.new_wiper());
                self.pump_wipe(host);
            }
            Some(Step::Commit) => {
                self.conclude_task();
                self.work.pending = self.final_table();
                self.persist(PersistWish::Work, host);
            }
            Some(Step::Publish) => self.publish(host),
        }
    }

    fn hold(&mut self, host: &mut impl Host) {
        // One hold at a time: an exclusive command under way ends first, and comes back here.
        if self.work.exclusive.is_some() {
            return;
        }
        let id = self.next_id(Wait::Work);
        if let Some(job) = &mut self.work.job {
            job.hold = Some(id);
            host.to_all(GroupCommand::Hold { scope: job.task.scope(), except: None, id });
        }
    }

    fn publish(&mut self, host: &mut impl Host) {
        host.namespaces(&self.table);
        let id = self.next_id(Wait::Work);
        host.to_all(GroupCommand::Namespaces { table: Arc::clone(&self.table), id });
    }

    pub(crate) fn work_acknowledged(&mut self, id: u32, host: &mut impl Host) {
        if let Some(exclusive) = self.work.exclusive.as_ref().filter(|e| e.hold == id) {
            if !self.takes_commands() {
                // A shutdown has drained without this pair: what it wrote would not be flushed.
                return;
            }
            let cqid = self
                .region
                .sqs
                .get(usize::from(exclusive.sqid))
                .map_or(0, |sq| sq.cqid.load(Ordering::Relaxed));
            let cqid = u16::try_from(cqid & 0xffff).unwrap_or(0);
            return host.to_queue(cqid, GroupCommand::Granted { ticket: exclusive.ticket });
        }
        if matches!(self.work.step(), Some(Step::Gate | Step::Publish)) {
            self.release(host);
        }
        self.next_step(host);
    }

    fn release(&mut self, host: &mut impl Host) {
        if let Some(id) = self.work.job.as_mut().and_then(|job| job.hold.take()) {
            host.to_all(GroupCommand::Release { id });
        }
        self.next_exclusive(host);
    }

    pub(crate) fn work_persisted(&mut self, ok: bool, host: &mut impl Host) {
        if !matches!(self.work.step(), Some(Step::Record | Step::Commit)) {
            return;
        }
        if !ok {
            tracing::error!("the ssd's record could not be made stable");
            // What is to say again that it has begun harms nothing by its loss.
            let resumes = matches!(self.work.job, Some(Job { task: Task::Sanitize { before: None }, .. }))
                && self.work.step() == Some(Step::Record);
            self.work.job.as_mut().into_iter().for_each(|job| job.failed |= !resumes);
        }
        let pending = self.work.pending.take();
        let table = match self.work.step() {
            Some(Step::Commit) if !ok => Some(self.table_without_record()),
            Some(Step::Record) if !ok => self.abandon_start(host),
            _ => pending,
        };
        if let Some(Job { task: Task::Sanitize { before }, .. }) = self.work.job.as_mut().filter(|_| ok) {
            *before = None;
        }
        if let Some(table) = table {
            self.table = Arc::new(table);
        }
        self.next_step(host);
    }

    pub(crate) fn work_wiped(&mut self, ok: bool, host: &mut impl Host) {
        if !ok {
            self.work.job.as_mut().into_iter().for_each(|job| job.failed = true);
        }
        if self.work.step() == Some(Step::Wipe) {
            self.next_step(host);
        }
    }

    /// The table while the work goes on.
    fn gated_table(&self) -> Option<NamespaceTable> {
        let job = self.work.job.as_ref()?;
        let mut table = NamespaceTable::clone(&self.table);
        match &job.task {
            Task::Format { nsids, .. } => {
                for nsid in nsids {
                    let namespace =
                        table.get(*nsid).map(|ns| Namespace { gate: Gate::Formatting, ..(**ns).clone() });
                    table = namespace.map_or_else(|| table.clone(), |ns| table.with(ns));
                }
            }
            Task::Delete { nsids } => nsids.iter().for_each(|nsid| table = table.without(*nsid)),
            Task::Sanitize { .. } => table = table.gated(SubsystemGate::Sanitizing),
            _ => {}
        }
        Some(table)
    }

    /// The table when the work is done and cannot be recorded. A sanitize whose end is not on record has failed: a restart
    /// would do it again, and until then the host may.
    fn table_without_record(&mut self) -> NamespaceTable {
        let table = self.ungated_table();
        if !self.work.job.as_ref().is_some_and(|job| matches!(job.task, Task::Sanitize { .. })) {
            return table;
        }
        self.conclude_sanitize(true);
        table.gated(SubsystemGate::SanitizeFailed)
    }

    /// The table with every gate of a format opened again.
    fn ungated_table(&self) -> NamespaceTable {
        let open = |ns: &Arc<Namespace>| Namespace { gate: Gate::Open, ..(**ns).clone() };
        NamespaceTable::new(self.table.iter().map(open)).gated(self.table.gate())
    }

    /// What a deletion frees is to be wiped, from the moment the namespaces are gone.
    fn note_wipes(&mut self) {
        let Some(Job { task: Task::Delete { nsids }, .. }) = &self.work.job else { return };
        self.to_wipe.extend(nsids.iter().filter_map(|nsid| self.table.get(*nsid)).map(|ns| ns.reserved()));
    }

    /// What is not on record has not begun: all is as it was before. The table that says so, unless the live one does.
    ///
    /// The write may have failed after the file was in its place: another says what holds.
    fn abandon_start(&mut self, host: &mut impl Host) -> Option<NamespaceTable> {
        let job = self.work.job.as_mut()?;
        let end = job.task.plan().len();
        let table = match &mut job.task {
            Task::Delete { nsids } => {
                let noted = nsids.iter().filter(|nsid| self.table.get(**nsid).is_some()).count();
                self.to_wipe.truncate(self.to_wipe.len().saturating_sub(noted));
                job.at = end;
                None
            }
            Task::Sanitize { before } => {
                // One that an earlier life had put on record has begun, and goes on.
                self.sanitize = (*before)?;
                // The step after this one: the groups get the table as it was.
                job.at = end.saturating_sub(2);
                let gate = SubsystemGate::of(&self.sanitize);
                Some(NamespaceTable::clone(&self.table).gated(gate))
            }
            _ => return None,
        };
        self.persist(PersistWish::Nobody, host);
        table
    }

    fn new_wiper(&self) -> Wiper {
        let zeros = Erase::Zeros { deallocate: true };
        match self.work.job.as_ref().map(|job| &job.task) {
            Some(Task::Format { nsids, .. }) => {
                let ranges = nsids.iter().filter_map(|nsid| self.table.get(*nsid)).map(|ns| ns.reserved());
                Wiper::new(ranges.collect(), zeros)
            }
            Some(Task::Sanitize { .. }) => {
                let whole = block::Range { start_bytes: 0, len_bytes: self.capacity_bytes };
                Wiper::new(vec![whole], self.sanitize_erase())
                    .resumed(self.sanitize.passes_done, self.sanitize.done_bytes)
            }
            Some(Task::Create { namespace, .. }) => Wiper::new(vec![namespace.reserved()], zeros),
            _ => Wiper::new(self.to_wipe.clone(), zeros),
        }
    }

    /// What the end of the wipe means for the state beside the table.
    fn conclude_task(&mut self) {
        let Some(job) = &self.work.job else { return };
        match &job.task {
            Task::Grow { to_bytes, .. } => self.capacity_bytes = *to_bytes,
            Task::Delete { .. } | Task::Leftovers if !job.failed => self.to_wipe.clear(),
            Task::Sanitize { .. } => {
                let failed = job.failed;
                self.conclude_sanitize(failed);
            }
            _ => {}
        }
    }

    /// The table when all went well.
    fn final_table(&self) -> Option<NamespaceTable> {
        let job = self.work.job.as_ref()?;
        let table = self.ungated_table();
        let changed = |nsid: u32, change: &dyn Fn(Namespace) -> Namespace| {
            table.get(nsid).map_or_else(|| table.clone(), |ns| table.with(change((**ns).clone())))
        };
        Some(match &job.task {
            Task::Format { nsids, format } if !job.failed => {
                nsids.iter().filter_map(|nsid| table.get(*nsid)).fold(table.clone(), |all, ns| {
                    let blocks = ns.reserved_bytes.min(ns.blocks << ns.format.shift()) >> format.shift();
                    all.with(Namespace {
                        format: *format,
                        blocks,
                        marks: Arc::new(Marks::default()),
                        ..(**ns).clone()
                    })
                })
            }
            Task::Grow { to_bytes, nsid: Some(nsid), .. } => changed(*nsid, &|ns| {
                let reserved_bytes = to_bytes.saturating_sub(ns.start_bytes);
                Namespace { reserved_bytes, blocks: reserved_bytes >> ns.format.shift(), ..ns }
            }),
            Task::Attach { nsid } => changed(*nsid, &|ns| Namespace { attached: true, ..ns }),
            Task::Detach { nsid } => changed(*nsid, &|ns| Namespace { attached: false, ..ns }),
            Task::Create { namespace, .. } if !job.failed => table.with((**namespace).clone()),
            Task::Sanitize { .. } if job.failed => table.gated(SubsystemGate::SanitizeFailed),
            Task::Sanitize { .. } => table.gated(SubsystemGate::Open),
            _ => table,
        })
    }

    fn finish(&mut self, host: &mut impl Host) {
        self.release(host);
        let Some(job) = self.work.job.take() else { return };
        let status = match &job.task {
            // Gone, whatever became of the wipe: its space stays closed until a later one succeeds.
            Task::Delete { nsids } if nsids.iter().all(|nsid| self.table.get(*nsid).is_none()) => {
                Status::SUCCESS
            }
            _ if job.failed => Status::INTERNAL_ERROR,
            _ => Status::SUCCESS,
        };
        if let Task::Grow { from_bytes, .. } = job.task
            && job.failed
        {
            // Not on record, and so not so: the next power cycle tries again.
            (self.capacity_bytes, self.room_bytes) = (from_bytes, from_bytes);
        }
        if let Some(slot) = job.reply {
            self.answer(slot, Answer { dw0: job.dw0, dw1: 0, status });
        }
        // A format that failed has changed its namespaces all the same.
        let changed = status == Status::SUCCESS || matches!(job.task, Task::Format { .. });
        for nsid in job.seen.into_iter().filter(|_| changed) {
            self.namespace_changed(nsid);
        }
        if matches!(job.task, Task::Sanitize { before: None }) {
            self.sanitize_completed();
        }
        for _ in 0..self.work.deferred.len() {
            if !self.work.is_idle() {
                break;
            }
            if let Some((slot, command)) = self.work.deferred.pop_front() {
                self.execute(slot, command, host);
            }
        }
        self.grow_if_due(host);
    }

    pub(crate) fn note_sanitize_progress(&mut self, host: &mut impl Host) {
        if !self.work.is_sanitizing() {
            return;
        }
        let Some(wiper) = &self.wiper else { return };
        let (passes_done, done_bytes) = wiper.progress();
        let moved = done_bytes.abs_diff(self.work.recorded_bytes) >= RECORD_EVERY_BYTES;
        let passed = passes_done != self.sanitize.passes_done;
        (self.sanitize.passes_done, self.sanitize.done_bytes) = (passes_done, done_bytes);
        if moved || passed {
            self.work.recorded_bytes = done_bytes;
            self.persist(PersistWish::Nobody, host);
        }
    }

    // ---- commands that need a namespace for themselves -------------------------------------------------------------

    pub(crate) fn want_exclusive(&mut self, ticket: u32, nsid: u32, sqid: u16, host: &mut impl Host) {
        self.work.exclusives.push_back((ticket, nsid, sqid));
        self.next_exclusive(host);
    }

    pub(crate) fn exclusive_done(&mut self, ticket: u32, host: &mut impl Host) {
        self.work.exclusives.retain(|(waiting, ..)| *waiting != ticket);
        if self.work.exclusive.as_ref().is_some_and(|e| e.ticket == ticket) {
            if let Some(exclusive) = self.work.exclusive.take() {
                self.waits.remove(&exclusive.hold);
                host.to_all(GroupCommand::Release { id: exclusive.hold });
            }
            let job_waits = self.work.step() == Some(Step::Hold)
                && self.work.job.as_ref().is_some_and(|j| j.hold.is_none());
            if job_waits {
                self.hold(host);
            } else {
                self.next_exclusive(host);
            }
        }
    }

    fn next_exclusive(&mut self, host: &mut impl Host) {
        let held = self.work.job.as_ref().is_some_and(|job| job.hold.is_some())
            || self.work.step() == Some(Step::Hold);
        if held || self.work.exclusive.is_some() || !self.takes_commands() {
            return;
        }
        if let Some((ticket, nsid, sqid)) = self.work.exclusives.pop_front() {
            let hold = self.next_id(Wait::Work);
            self.work.exclusive = Some(Exclusive { ticket, sqid, hold });
            host.to_all(GroupCommand::Hold { scope: Scope::Nsid(nsid), except: Some(sqid), id: hold });
        }
    }

    /// A reset took the queues away, and with them whoever wanted something for itself.
    pub(crate) fn drop_exclusives(&mut self, host: &mut impl Host) {
        self.work.exclusives.clear();
        // Groups forget their holds at a reset: the end of the reset stands for the acknowledgement.
        if let Some(id) = self.hold_awaited() {
            self.waits.remove(&id);
        }
        if let Some(exclusive) = self.work.exclusive.take() {
            self.waits.remove(&exclusive.hold);
            host.to_all(GroupCommand::Release { id: exclusive.hold });
        }
    }

    fn hold_awaited(&self) -> Option<u32> {
        let job = self.work.job.as_ref().filter(|_| self.work.step() == Some(Step::Hold))?;
        job.hold
    }

    /// Every group has dropped its queues and ended their I/O: whatever was to be held is.
    pub(crate) fn work_after_reset(&mut self, host: &mut impl Host) {
        if self.work.step() == Some(Step::Hold) {
            self.next_step(host);
        }
    }
}
