//! Migration Send and Migration Receive (Base 2.1, 5.1.17 and 5.1.16), and what Identify says of them, of a migration management
//! controller. See [`crate::management`].

use spec::nvme::identify::{ControllerList, IDENTIFY_BYTES};
use spec::nvme::migration::{
    CSUP, GetControllerStateCdw11, MigrationReceiveCdw10, MigrationReceiveSelect, MigrationSendCdw10,
    MigrationSendSelect, SequenceIndicator, SetControllerStateCdw11, SuspendCdw11, SuspendType,
};
use spec::nvme::registers::Cc;
use spec::nvme::tracking::TrackedMemoryAttributes;
use spec::nvme::{Command, Status};
use state::controller::ControllerV1;
use zerocopy::{FromZeros, IntoBytes};

use super::{Failure, Outcome, Step, identify, invalid_field, transfer};
use crate::controller::{Controller, Host};
use crate::limits::MDTS_BYTES;
use crate::management::format::{self, Parts, Received};
use crate::management::{Job, Order, Report, Sequence, Trouble, What};

/// What a Get Controller State command asks for.
struct Asked {
    cntlid: u16,
    parts: Parts,
    offset_bytes: u64,
    len_bytes: usize,
}

impl Asked {
    fn of(command: &Command) -> Result<Self, Failure> {
        let fields = GetControllerStateCdw11::from_bits(command.cdw11);
        let csvi = MigrationReceiveCdw10::from_bits(command.cdw10).csvi();
        let parts = parts_of(csvi, 10, fields.csuuidi(), 11)?;
        let offset_bytes = offset_of(command)?;
        let len_bytes = (u64::from(command.cdw15) + 1) * 4;
        match usize::try_from(len_bytes) {
            Ok(len) if len_bytes <= u64::from(MDTS_BYTES) => {
                Ok(Self { cntlid: fields.cntlid(), parts, offset_bytes, len_bytes: len })
            }
            _ => Err(invalid_field(15)),
        }
    }
}

/// Both indices, which count from 1: there is one version, and one UUID.
fn parts_of(csvi: u8, csvi_dword: u16, csuuidi: u8, csuuidi_dword: u16) -> Result<Parts, Failure> {
    match (csvi, csuuidi) {
        (2.., _) => Err(invalid_field(csvi_dword)),
        (_, 2..) => Err(invalid_field(csuuidi_dword)),
        (nvme, vendor) => Ok(Parts { nvme: nvme == 1, vendor: vendor == 1 }),
    }
}

fn offset_of(command: &Command) -> Result<u64, Failure> {
    let offset = u64::from(command.cdw12) | u64::from(command.cdw13) << 32;
    if offset.is_multiple_of(4) { Ok(offset) } else { Err(invalid_field(12)) }
}

/// The controller that a command is about: bits 15:0 of dword 11 in all of them.
pub(super) fn cntlid_of(command: &Command) -> u16 {
    SuspendCdw11::from_bits(command.cdw11).cntlid()
}

impl Controller {
    /// The end of an order of [`Host::manage`].
    pub fn managed(&mut self, ticket: u32, report: Report, now: block::Now, host: &mut impl Host) {
        self.now = now;
        if let Some((cdqid, round)) = self.management.end_round(ticket) {
            self.round_ended(cdqid, round, report, host);
            self.execute_queued(host);
            self.pump_logs(host);
            return self.ring(host);
        }
        // One that is not known went with a reset.
        if let Some(job) = self.management.end(ticket) {
            let Job { slot, command, .. } = job;
            let outcome = self.go_on(job, report, host);
            self.conclude(slot, command, outcome);
            self.execute_queued(host);
            self.pump_logs(host);
        }
        self.ring(host);
    }

    fn execute_queued(&mut self, host: &mut impl Host) {
        for (slot, command) in self.management.take_queued() {
            self.execute(slot, command, host);
        }
    }

    /// Has an order carried out, now or when those before it have been.
    fn order(&mut self, mut job: Job, order: Order, host: &mut impl Host) -> Outcome {
        let cntlid = job.cntlid;
        if self.management.is_busy(cntlid) {
            self.management.queue(job.slot, job.command);
            return Ok(Step::Later);
        }
        job.replayed = self.replaying;
        let ticket = self.management.begin(job);
        host.manage(ticket, cntlid.unwrap_or(0), order);
        Ok(Step::Later)
    }

    fn order_for(
        &mut self,
        slot: u16,
        command: &Command,
        what: What,
        order: Order,
        host: &mut impl Host,
    ) -> Outcome {
        self.order_about(slot, command, cntlid_of(command), what, order, host)
    }

    /// As [`Controller::order_for`], of a command that names its controller elsewhere.
    pub(super) fn order_about(
        &mut self,
        slot: u16,
        command: &Command,
        cntlid: u16,
        what: What,
        order: Order,
        host: &mut impl Host,
    ) -> Outcome {
        self.order(Job::new(slot, *command, Some(cntlid), what), order, host)
    }

    /// Controllers of the subsystem from an identifier on (Base 2.1, 5.1.13.2.14, CNS 13h).
    pub(super) fn list_controllers(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        self.order(Job::new(slot, *command, None, What::List), Order::List, host)
    }

    pub(super) fn migration_send(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let cntlid = cntlid_of(command);
        match MigrationSendSelect(MigrationSendCdw10::from_bits(command.cdw10).sel()) {
            MigrationSendSelect::Suspend => {
                let fields = SuspendCdw11::from_bits(command.cdw11);
                match SuspendType(fields.stype()) {
                    SuspendType::Notification => {
                        self.order_for(slot, command, What::Answer, Order::Look, host)
                    }
                    SuspendType::Suspend => {
                        let what = What::Suspend(fields.dudmq());
                        self.order_for(slot, command, what, Order::Suspend, host)
                    }
                    _ => Err(invalid_field(11)),
                }
            }
            MigrationSendSelect::Resume if self.management.sequence(cntlid).is_some() => {
                Err(Status::COMMAND_SEQUENCE_ERROR.into())
            }
            MigrationSendSelect::Resume => self.order_for(slot, command, What::Resume, Order::Resume, host),
            MigrationSendSelect::SetControllerState => self.set_controller_state(slot, command, host),
            _ => Err(invalid_field(10)),
        }
    }

    pub(super) fn migration_receive(
        &mut self,
        slot: u16,
        command: &Command,
        host: &mut impl Host,
    ) -> Outcome {
        if MigrationReceiveSelect(MigrationReceiveCdw10::from_bits(command.cdw10).sel())
            != MigrationReceiveSelect::GetControllerState
        {
            return Err(invalid_field(10));
        }
        let asked = Asked::of(command)?;
        if asked.offset_bytes != 0 && self.management.copy(asked.cntlid, asked.parts).is_some() {
            return self.order_for(slot, command, What::Piece, Order::Look, host);
        }
        self.order_for(slot, command, What::Get, Order::Save, host)
    }

    /// A piece of a state, or all of it (Base 2.1, 5.1.17.1.3).
    fn set_controller_state(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let seqind = SequenceIndicator(MigrationSendCdw10::from_bits(command.cdw10).seqind());
        let parts = sent_parts(command)?;
        offset_of(command)?;
        if command.cdw15 == 0 && seqind != SequenceIndicator::Last {
            return Err(invalid_field(15));
        }
        let cntlid = cntlid_of(command);
        if matches!(seqind, SequenceIndicator::First | SequenceIndicator::Only) {
            return self.order_for(slot, command, What::Begin, Order::Look, host);
        }
        match self.management.sequence(cntlid) {
            None => return Err(Status::COMMAND_SEQUENCE_ERROR.into()),
            Some(sequence) if sequence.parts != parts => return Err(invalid_field(11)),
            Some(_) => {}
        }
        if self.management.is_busy(Some(cntlid)) {
            self.management.queue(slot, *command);
            return Ok(Step::Later);
        }
        self.take_piece(command)?;
        if seqind == SequenceIndicator::Last { self.commit(slot, command, host) } else { Ok(Step::Done(0)) }
    }

    /// A piece comes to those before it: over them, or after them without a gap.
    fn take_piece(&mut self, command: &Command) -> Result<(), Failure> {
        let offset = usize::try_from(offset_of(command)?).map_err(|_| invalid_field(12))?;
        let len = u64::from(command.cdw15) * 4;
        let len = usize::try_from(len).ok().filter(|_| len <= u64::from(MDTS_BYTES));
        let len = len.ok_or_else(|| invalid_field(15))?;
        let end = offset.checked_add(len).filter(|end| *end <= format::BYTES_MAX);
        let end = end.ok_or_else(|| invalid_field(12))?;
        let data = if len == 0 { Vec::new() } else { transfer::from_host(&self.map, command, len)? };
        let Some(sequence) = self.management.sequence(cntlid_of(command)) else {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        };
        if offset > sequence.bytes.len() {
            return Err(invalid_field(12));
        }
        sequence.bytes.resize(end.max(sequence.bytes.len()), 0);
        sequence.bytes.iter_mut().skip(offset).zip(data).for_each(|(place, byte)| *place = byte);
        Ok(())
    }

    /// All pieces are there. Whatever becomes of them, the next sequence begins anew.
    fn commit(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let sequence = self.management.end_sequence(cntlid_of(command));
        let Sequence { parts, bytes } = sequence.ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let received = format::read(&bytes, parts).map_err(|error| {
            tracing::debug!(%error, "a controller state is refused");
            Failure::from(Status::INVALID_FIELD)
        })?;
        self.order_for(slot, command, What::Fit(received, parts), Order::Save, host)
    }

    /// The command of a job goes on with what it waited for.
    fn go_on(&mut self, job: Job, report: Report, host: &mut impl Host) -> Outcome {
        let Job { slot, command, what, replayed, cntlid } = job;
        let cntlid = cntlid.unwrap_or_else(|| cntlid_of(&command));
        match (what, report) {
            // A predecessor had resumed it, and did not live to say so.
            (What::Resume, Report::Failed(Trouble::NotSuspended)) if replayed => {
                self.log_resumed(cntlid);
                Ok(Step::Done(0))
            }
            (What::TrackMemory, report) => self.memory_is_tracked(slot, &command, &report, replayed),
            (_, Report::Failed(trouble)) => {
                self.management.drop_copies(cntlid);
                Err(failure(trouble))
            }
            (What::List, Report::Controllers(all)) => self.list(&command, &all),
            (What::Answer, _) => {
                self.management.drop_copies(cntlid);
                Ok(Step::Done(0))
            }
            (What::Resume, _) => {
                self.management.drop_copies(cntlid);
                self.log_resumed(cntlid);
                Ok(Step::Done(0))
            }
            (What::Suspend(delete), _) => {
                self.management.drop_copies(cntlid);
                self.log_suspended(slot, cntlid, delete, host)
            }
            (What::CreateQueue, Report::Standing { .. }) => self.create_queue(&command, replayed),
            (What::StartLogging, Report::Standing { suspended, .. }) => {
                self.start_logging(&command, suspended, host)
            }
            (What::HarvestMemory, Report::Memory { granularity, runs, more, suspended }) => {
                let attributes = TrackedMemoryAttributes::new().with_mtr(more).with_susp(suspended);
                self.send_memory(&command, granularity, &runs, attributes)
            }
            (What::Piece, Report::Standing { suspended, .. }) => {
                let asked = Asked::of(&command)?;
                match self.management.copy(cntlid, asked.parts).filter(|_| suspended) {
                    Some(bytes) => self.send_piece(&command, &asked, bytes, true),
                    None => self.order_for(slot, &command, What::Get, Order::Save, host),
                }
            }
            (What::Get, Report::State { state, suspended }) => self.send_state(&command, &state, suspended),
            (What::Begin, Report::Standing { suspended, enabled }) => {
                if enabled && !suspended {
                    return Err(failure(Trouble::AtWork));
                }
                self.begin_state(slot, &command, host)
            }
            (What::Fit(received, parts), Report::State { state, suspended }) => {
                let fitted = fit(received, parts, *state, suspended)?;
                self.management.drop_copies(cntlid);
                self.order_for(slot, &command, What::Answer, Order::Load(Box::new(fitted)), host)
            }
            _ => Err(Status::INTERNAL_ERROR.into()),
        }
    }

    fn begin_state(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let sequence = Sequence { parts: sent_parts(command)?, bytes: Vec::new() };
        if !self.management.begin_sequence(cntlid_of(command), sequence) {
            return Err(Status::NOT_ENOUGH_RESOURCES.into());
        }
        if let Err(failure) = self.take_piece(command) {
            self.management.end_sequence(cntlid_of(command));
            return Err(failure);
        }
        let seqind = SequenceIndicator(MigrationSendCdw10::from_bits(command.cdw10).seqind());
        if seqind == SequenceIndicator::Only { self.commit(slot, command, host) } else { Ok(Step::Done(0)) }
    }

    fn send_state(&mut self, command: &Command, state: &ControllerV1, suspended: bool) -> Outcome {
        let asked = Asked::of(command)?;
        if asked.parts.nvme && !asked.parts.vendor && format::has_unanswered(state) {
            return Err(invalid_field(11));
        }
        let bytes = format::write(state, suspended, asked.parts).map_err(|error| {
            tracing::error!(%error, "a controller's state cannot be written");
            Failure::from(Status::INTERNAL_ERROR)
        })?;
        let outcome = self.send_piece(command, &asked, &bytes, suspended);
        if suspended {
            self.management.keep_copy(asked.cntlid, asked.parts, bytes);
        }
        outcome
    }

    /// Past the end there are zeros.
    fn send_piece(&self, command: &Command, asked: &Asked, bytes: &[u8], suspended: bool) -> Outcome {
        let from = usize::try_from(asked.offset_bytes).ok().filter(|from| *from < bytes.len());
        let rest = from.and_then(|from| bytes.get(from..)).ok_or_else(|| invalid_field(12))?;
        let mut data = rest.get(..asked.len_bytes).unwrap_or(rest).to_vec();
        data.resize(asked.len_bytes, 0);
        transfer::to_host(&self.map, command, &data)?;
        Ok(Step::Done(if suspended { CSUP } else { 0 }))
    }

    fn list(&self, command: &Command, all: &[u16]) -> Outcome {
        let from = spec::nvme::admin::IdentifyCdw10::from_bits(command.cdw10).cntid();
        let mut list = ControllerList::new_zeroed();
        let all = core::iter::once(identify::CNTLID).chain(all.iter().copied());
        for (place, cntlid) in list.cntlids.iter_mut().zip(all.filter(|cntlid| *cntlid >= from)) {
            *place = cntlid;
            list.count += 1;
        }
        transfer::to_host(&self.map, command, list.as_bytes())?;
        Ok(Step::Done(0))
    }
}

/// The parts that a Set Controller State command names: one at least.
fn sent_parts(command: &Command) -> Result<Parts, Failure> {
    let fields = SetControllerStateCdw11::from_bits(command.cdw11);
    let parts = parts_of(fields.csvi(), 11, fields.csuuidi(), 11)?;
    if parts.nvme || parts.vendor { Ok(parts) } else { Err(invalid_field(11)) }
}

/// The state that a controller gets, which has `target` now.
fn fit(
    received: Received,
    parts: Parts,
    target: ControllerV1,
    suspended: bool,
) -> Result<ControllerV1, Failure> {
    if Cc::from_bits(target.registers.cc).en() && !suspended {
        return Err(failure(Trouble::AtWork));
    }
    let has_io_queues = target.completion_queues.iter().any(|cq| cq.cqid != 0);
    if parts.nvme && has_io_queues {
        return Err(Status::INVALID_FIELD.into());
    }
    Ok(match received {
        Received::Whole(state) => *state,
        Received::Queues(queues) => queues.put_into(target),
    })
}

pub(super) fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::NoController | Trouble::AtWork | Trouble::Tracked { .. } => {
            Failure::Status(Status::INVALID_CONTROLLER_IDENTIFIER, 44)
        }
        Trouble::NotSuspended => Status::CONTROLLER_NOT_SUSPENDED.into(),
        Trouble::Suspended => Status::CONTROLLER_SUSPENDED.into(),
        Trouble::Busy => Status::COMMAND_INTERRUPTED.into(),
        Trouble::Refused | Trouble::NotMemory | Trouble::TooMany => Status::INVALID_FIELD.into(),
        Trouble::NoRoom { .. } => Status::NOT_ENOUGH_RESOURCES.into(),
        Trouble::Failed => Status::INTERNAL_ERROR.into(),
    }
}

/// Supported Controller State Formats (Base 2.1, 5.1.13.2.20, CNS 20h): one version, and one UUID.
pub(super) fn formats() -> Vec<u8> {
    let mut page = vec![1, 1];
    page.extend_from_slice(&format::VERSION.to_le_bytes());
    page.extend_from_slice(&format::UUID);
    page.resize(IDENTIFY_BYTES, 0);
    page
}
