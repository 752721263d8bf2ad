//! Controller Data Queue, Track Send Log User Data Changes and feature 21h (Base 2.1, 5.1.4, 5.1.27 and 5.1.25.1.23) of a migration
//! management controller. See [`crate::management`].
//!
//! What changed stays a map with whoever has the controllers, and is asked for when there is room for it in the queue: changes to the same blocks
//! become one entry, and a queue whose host is slow does not become full.

use block::Now;
use memory::{Access, Fault, Iova, MemoryMap, Window};
use spec::nvme::admin::{AsyncEventType, event_info};
use spec::nvme::tracking::{
    DataQueueCdw10, DataQueueCdw11, DataQueueCreateCdw11, DataQueueFeature, DataQueueFeatureCdw11,
    DataQueueSelect, EntrySequence, QT_USER_DATA_MIGRATION, TrackSendCdw10, TrackSendSelect,
};
use spec::nvme::{Command, Status};
use zerocopy::IntoBytes;

use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::{Controller, Host};
use crate::limits::{NAMESPACES_MAX, PAGE_BYTES};
use crate::management::log::{
    self, DataQueue, ENTRY_BYTES, FRESH, LOGGING, LOST, STOPPING, SUSPENDED, SUSPENDING,
};
use crate::management::{Change, Order, Report, Round, Trouble, What};
use crate::queue::Answer;

/// How often a controller is asked what has changed.
const PERIOD_NS: u64 = 5_000_000;

fn cdqid_of(command: &Command) -> u16 {
    DataQueueCdw11::from_bits(command.cdw11).cdqid()
}

impl Controller {
    pub(super) fn controller_data_queue(
        &mut self,
        slot: u16,
        command: &Command,
        host: &mut impl Host,
    ) -> Outcome {
        let fields = DataQueueCdw10::from_bits(command.cdw10);
        match DataQueueSelect(fields.sel()) {
            DataQueueSelect::Create if fields.qt() != QT_USER_DATA_MIGRATION => Err(invalid_field(10)),
            DataQueueSelect::Create => {
                self.entries_of(command)?;
                let cntlid = DataQueueCreateCdw11::from_bits(command.cdw11).cntlid();
                self.order_about(slot, command, cntlid, What::CreateQueue, Order::Look, host)
            }
            DataQueueSelect::Delete => match DataQueue::load(&self.region, cdqid_of(command)) {
                Some(queue) => {
                    self.delete_queue(queue, host);
                    Ok(Step::Done(0))
                }
                None if self.replaying => Ok(Step::Done(0)),
                None => Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into()),
            },
            _ => Err(invalid_field(10)),
        }
    }

    /// The entries of the queue that a command creates, whose memory is all there.
    fn entries_of(&self, command: &Command) -> Result<u32, Failure> {
        let entries = command.cdw12 / (ENTRY_BYTES / 4);
        if !command.cdw12.is_multiple_of(ENTRY_BYTES / 4) || !DataQueue::fits(entries) {
            return Err(invalid_field(12));
        }
        let offset = |prp: u64| match prp.is_multiple_of(PAGE_BYTES as u64) {
            true => Ok(()),
            false => Err(Failure::Status(Status::PRP_OFFSET_INVALID, 24)),
        };
        let bytes = usize::try_from(entries * ENTRY_BYTES).unwrap_or(usize::MAX);
        if DataQueueCreateCdw11::from_bits(command.cdw11).pc() {
            offset(command.prp1)?;
            check_memory(&self.map, command.prp1, bytes)?;
            return Ok(entries);
        }
        let mut list = vec![0; bytes.div_ceil(PAGE_BYTES) * 8];
        self.map.read_bytes(Iova(command.prp1), &mut list).map_err(not_memory)?;
        offset(command.prp1)?;
        for prp in list.chunks_exact(8) {
            let prp = prp.first_chunk().map_or(0, |prp| u64::from_le_bytes(*prp));
            offset(prp)?;
            check_memory(&self.map, prp, PAGE_BYTES)?;
        }
        Ok(entries)
    }

    /// The controller is there.
    pub(super) fn create_queue(&mut self, command: &Command, replayed: bool) -> Outcome {
        let entries = self.entries_of(command)?;
        let fields = DataQueueCreateCdw11::from_bits(command.cdw11);
        if let Some(queue) = DataQueue::all(&self.region).find(|queue| queue.cntlid == fields.cntlid()) {
            // A predecessor had made it, and did not live to say so.
            return if replayed { Ok(Step::Done(queue.cdqid.into())) } else { Err(invalid_field(11)) };
        }
        let made = DataQueue::create(&self.region, fields.cntlid(), command.prp1, entries, fields.pc());
        let cdqid = made.ok_or(Status::NOT_ENOUGH_RESOURCES)?;
        Ok(Step::Done(cdqid.into()))
    }

    pub(super) fn delete_queue(&mut self, queue: DataQueue, host: &mut impl Host) {
        DataQueue::close(&self.region, queue.cdqid);
        self.management.forget_queue(queue.cdqid);
        if queue.is(LOGGING) {
            self.stop_tracking(queue.cntlid, host);
        }
        if let Some(slot) = self.management.deletion_of(queue.cdqid) {
            self.answer(slot, Answer::of(Status::SUCCESS));
        }
    }

    /// Nobody waits for it.
    fn stop_tracking(&mut self, cntlid: u16, host: &mut impl Host) {
        let ticket = self.management.ticket();
        host.manage(ticket, cntlid, Order::Track(false));
    }

    pub(super) fn track_send(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = TrackSendCdw10::from_bits(command.cdw10);
        match TrackSendSelect(fields.sel()) {
            TrackSendSelect::LogUserDataChanges if fields.lact() <= 1 => {}
            TrackSendSelect::TrackMemoryChanges => return self.track_memory(slot, command, host),
            _ => return Err(invalid_field(10)),
        }
        let Some(mut queue) = DataQueue::load(&self.region, cdqid_of(command)) else {
            return Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into());
        };
        let starts = fields.lact() == 1;
        match (starts, queue.is(LOGGING)) {
            (true, true) if self.replaying => Ok(Step::Done(0)),
            (true, true) => Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into()),
            (true, false) if queue.room() < 2 => Err(Status::CONTROLLER_DATA_QUEUE_FULL.into()),
            (true, false) => {
                let cntlid = queue.cntlid;
                self.order_about(slot, command, cntlid, What::StartLogging, Order::Track(true), host)
            }
            (false, is_logging) => {
                if is_logging {
                    queue.set(&self.region, STOPPING, 0);
                    self.management.harvest_at = self.now;
                }
                Ok(Step::Done(0))
            }
        }
    }

    /// What is written from now on is in the map.
    pub(super) fn start_logging(
        &mut self,
        command: &Command,
        suspended: bool,
        host: &mut impl Host,
    ) -> Outcome {
        let Some(mut queue) = DataQueue::load(&self.region, cdqid_of(command)) else {
            return Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into());
        };
        if suspended {
            self.stop_tracking(queue.cntlid, host);
            return Err(Status::CONTROLLER_SUSPENDED.into());
        }
        queue.set(&self.region, LOGGING | FRESH, STOPPING | SUSPENDING | SUSPENDED | LOST);
        self.management.harvest_at = self.now;
        Ok(Step::Done(0))
    }

    /// A controller is suspended: what it wrote before is posted, and then that it is. `delete`: its queue goes then, and the command is answered.
    pub(super) fn log_suspended(
        &mut self,
        slot: u16,
        cntlid: u16,
        delete: bool,
        host: &mut impl Host,
    ) -> Outcome {
        let Some(mut queue) = DataQueue::all(&self.region).find(|queue| queue.cntlid == cntlid) else {
            return Ok(Step::Done(0));
        };
        let logs = queue.is(LOGGING) && !queue.is(STOPPING);
        if logs && !queue.is(SUSPENDED) {
            queue.set(&self.region, SUSPENDING, 0);
            self.management.harvest_at = self.now;
        }
        if !delete {
            return Ok(Step::Done(0));
        }
        if !logs || queue.is(SUSPENDED) {
            self.delete_queue(queue, host);
            return Ok(Step::Done(0));
        }
        self.management.delete_when_posted(queue.cdqid, slot);
        Ok(Step::Later)
    }

    /// A controller goes on.
    pub(super) fn log_resumed(&mut self, cntlid: u16) {
        for mut queue in DataQueue::all(&self.region).filter(|queue| queue.cntlid == cntlid) {
            if queue.is(LOGGING) {
                queue.set(&self.region, FRESH, SUSPENDING | SUSPENDED);
                self.management.harvest_at = self.now;
            }
        }
    }

    /// A predecessor's queues: what it had not posted is lost.
    pub(crate) fn resume_logs(&mut self, host: &mut impl Host) {
        for queue in DataQueue::all(&self.region).filter(|queue| queue.is(LOGGING)) {
            self.management.unarmed.insert(queue.cdqid);
        }
        self.pump_logs(host);
    }

    /// A controller level reset ends all queues (Base 2.1, 8.1.6), and all tracking of memory (8.1.12).
    pub(crate) fn end_logs(&mut self, host: &mut impl Host) {
        if !self.is_management() {
            return;
        }
        let all: Vec<_> = DataQueue::all(&self.region).collect();
        all.into_iter().for_each(|queue| self.delete_queue(queue, host));
        // Nobody waits for it.
        let ticket = self.management.ticket();
        host.manage(ticket, 0, Order::EndAll);
    }

    /// When the controllers are to be asked again.
    pub(crate) fn logs_at(&self) -> Option<Now> {
        let is_logging = self.is_management() && DataQueue::all(&self.region).any(|queue| queue.is(LOGGING));
        is_logging.then_some(self.management.harvest_at)
    }

    /// Asks each controller that is logged what has changed, if there is room for it.
    pub(crate) fn pump_logs(&mut self, host: &mut impl Host) {
        if self.logs_at().is_none_or(|at| at > self.now) {
            return;
        }
        self.management.harvest_at = Now(self.now.0.saturating_add(PERIOD_NS));
        let all: Vec<_> = DataQueue::all(&self.region).filter(|queue| queue.is(LOGGING)).collect();
        for mut queue in all {
            if self.management.is_busy(Some(queue.cntlid)) {
                continue;
            }
            if self.management.unarmed.contains(&queue.cdqid) {
                let ticket = self.management.begin_round(queue.cdqid, queue.cntlid, Round::Arm);
                host.manage(ticket, queue.cntlid, Order::Track(true));
            } else if self.is_writable(&mut queue) && has_room(&queue) {
                let whole = queue.is(LOST);
                let ticket = self.management.begin_round(queue.cdqid, queue.cntlid, Round::Harvest { whole });
                host.manage(ticket, queue.cntlid, Order::Harvest { most: queue.room() - 1, whole });
            }
        }
    }

    /// Nothing that was begun is left.
    fn is_writable(&mut self, queue: &mut DataQueue) -> bool {
        let settled = queue.settle(&self.region, &self.map);
        self.needs_remote |= settled == Err(Fault::Remote);
        settled.is_ok()
    }

    /// The end of a round.
    pub(super) fn round_ended(&mut self, cdqid: u16, round: Round, report: Report, host: &mut impl Host) {
        let Some(mut queue) = DataQueue::load(&self.region, cdqid).filter(|queue| queue.is(LOGGING)) else {
            return;
        };
        match (round, report) {
            (Round::Arm, Report::Standing { suspended, .. }) => {
                self.management.unarmed.remove(&cdqid);
                if !(suspended && queue.is(SUSPENDED)) {
                    queue.set(&self.region, LOST, 0);
                }
                self.management.harvest_at = self.now;
            }
            (Round::Harvest { whole }, Report::Changes { changes, more }) => {
                self.post_changes(&mut queue, &changes, whole, more, host);
            }
            // There is nothing of it that could change any more.
            (Round::Harvest { whole }, Report::Failed(Trouble::NoController)) => {
                self.post_changes(&mut queue, &[], whole, false, host);
            }
            _ => {}
        }
    }

    fn post_changes(
        &mut self,
        queue: &mut DataQueue,
        changes: &[Change],
        whole: bool,
        more: bool,
        host: &mut impl Host,
    ) {
        if queue.is(SUSPENDED) && !changes.is_empty() {
            // It was reset, and runs.
            queue.set(&self.region, FRESH, SUSPENDED);
        }
        if queue.is(FRESH) && self.post(queue, Change::Nothing, EntrySequence::First) {
            queue.set(&self.region, 0, FRESH);
        }
        let posted = changes.iter().all(|change| self.post(queue, *change, EntrySequence::Middle));
        if !posted {
            return queue.set(&self.region, LOST, 0);
        }
        if whole && !more {
            queue.set(&self.region, 0, LOST);
        }
        if more || whole {
            self.management.harvest_at = self.now;
        } else if queue.is(STOPPING) && self.post(queue, Change::Nothing, EntrySequence::Stopped) {
            queue.set(&self.region, 0, LOGGING | STOPPING | SUSPENDING | SUSPENDED);
            self.stop_tracking(queue.cntlid, host);
        } else if queue.is(SUSPENDING) && self.post(queue, Change::Nothing, EntrySequence::Suspended) {
            queue.set(&self.region, SUSPENDED, SUSPENDING);
            if self.management.is_to_delete(queue.cdqid) {
                self.delete_queue(*queue, host);
            }
        }
    }

    /// Whether it is in the queue.
    fn post(&mut self, queue: &mut DataQueue, change: Change, esa: EntrySequence) -> bool {
        if queue.room() == 0 || !self.is_writable(queue) {
            return false;
        }
        match queue.post(&self.region, &self.map, log::entry(change, esa)) {
            Ok(slot) => {
                if queue.trigger == Some(slot) {
                    queue.set_trigger(&self.region, None);
                    self.raise_for(
                        AsyncEventType::OneShot,
                        event_info::ONE_SHOT_CDQ_TAIL_POINTER,
                        queue.cdqid,
                    );
                }
                true
            }
            Err(fault) => {
                self.needs_remote |= fault == Fault::Remote;
                // It is posted when it can be.
                true
            }
        }
    }

    pub(super) fn set_data_queue(&mut self, command: &Command) -> Result<(), Failure> {
        let fields = DataQueueFeatureCdw11::from_bits(command.cdw11);
        let Some(mut queue) = DataQueue::load(&self.region, fields.cdqid()) else {
            return Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into());
        };
        if fields.etpt() && command.cdw13 >= queue.entries {
            return Err(invalid_field(13));
        }
        if !queue.set_head(&self.region, command.cdw12) {
            return Err(invalid_field(12));
        }
        queue.set_trigger(&self.region, fields.etpt().then_some(command.cdw13));
        self.drop_event_for(AsyncEventType::OneShot, event_info::ONE_SHOT_CDQ_TAIL_POINTER, queue.cdqid);
        // There may be room now.
        self.management.harvest_at = self.now;
        Ok(())
    }

    pub(super) fn get_data_queue(&self, command: &Command, current: bool) -> Outcome {
        let cdqid = DataQueueFeatureCdw11::from_bits(command.cdw11).cdqid();
        let Some(queue) = DataQueue::load(&self.region, cdqid) else {
            return Err(Status::INVALID_CONTROLLER_DATA_QUEUE.into());
        };
        let trigger = queue.trigger.filter(|_| current);
        let page = DataQueueFeature {
            hp: if current { queue.head } else { 0 },
            tpt: trigger.unwrap_or(0),
            reserved8: [0; 504],
        };
        transfer::to_host(&self.map, command, page.as_bytes())?;
        let dw0 = DataQueueFeatureCdw11::new().with_cdqid(cdqid).with_etpt(trigger.is_some());
        Ok(Step::Done(dw0.into_bits()))
    }
}

/// For a change and a marker; for all namespaces, if they are to be said.
fn has_room(queue: &DataQueue) -> bool {
    queue.room() >= 2 && (!queue.is(LOST) || queue.used() == 0 || queue.room() > NAMESPACES_MAX)
}

fn check_memory(map: &std::sync::Arc<MemoryMap>, base: u64, bytes: usize) -> Result<(), Failure> {
    Window::new(map, Iova(base), bytes, Access { read: false, write: true }).map(drop).map_err(not_memory)
}

fn not_memory(fault: Fault) -> Failure {
    match fault {
        Fault::Remote => Failure::Remote,
        _ => Failure::Status(Status::INVALID_FIELD, 24),
    }
}
