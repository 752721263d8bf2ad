//! Admin commands (Base 2.1, 5; NVM 1.1, 4): one file a family, one answer a command.

mod events;
mod features;
mod format;
mod identify;
pub(crate) mod lba_status;
mod log;
mod memory;
mod migration;
mod namespaces;
pub(crate) mod queue;
mod queues;
mod sanitize;
pub(crate) mod self_test;
mod tracking;
mod transfer;

use spec::nvme::{AdminOpcode, Command, Fuse, Psdt, Status};

use crate::controller::{Controller, Host};
use crate::namespace::SubsystemGate;
use crate::profile::Role;
use crate::queue::Answer;
pub(crate) use features::is_stored_feature;
use queue::with_dnr;

/// How a command goes on.
pub(crate) enum Step {
    /// It succeeded; dword 0 of the completion.
    Done(u32),
    /// Its answer comes later: somebody holds its slot.
    Later,
    /// It must wait for the work under way, and is executed from the start then.
    Defer,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its status, and where the fault is: byte in bits 7:0 and bit in 10:8 of the command, FFFFh for nowhere.
    Status(Status, u16),
    /// Its data lies in a region that only a private reactor reaches.
    Remote,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status, 0xffff)
    }
}

/// Invalid Field in Command, at this dword of the command.
pub(crate) fn invalid_field(dword: u16) -> Failure {
    Failure::Status(Status::INVALID_FIELD, dword * 4)
}

pub(crate) type Outcome = Result<Step, Failure>;

/// The commands that an I/O controller implements: this list is also log page 05h.
const SUPPORTED: [AdminOpcode; 18] = [
    AdminOpcode::DeleteIoSubmissionQueue,
    AdminOpcode::CreateIoSubmissionQueue,
    AdminOpcode::GetLogPage,
    AdminOpcode::DeleteIoCompletionQueue,
    AdminOpcode::CreateIoCompletionQueue,
    AdminOpcode::Identify,
    AdminOpcode::Abort,
    AdminOpcode::SetFeatures,
    AdminOpcode::GetFeatures,
    AdminOpcode::AsyncEventRequest,
    AdminOpcode::NamespaceManagement,
    AdminOpcode::DeviceSelfTest,
    AdminOpcode::NamespaceAttachment,
    AdminOpcode::KeepAlive,
    AdminOpcode::DoorbellBufferConfig,
    AdminOpcode::FormatNvm,
    AdminOpcode::Sanitize,
    AdminOpcode::GetLbaStatus,
];

/// As [`SUPPORTED`], of a migration management controller.
const SUPPORTED_BY_MANAGEMENT: [AdminOpcode; 12] = [
    AdminOpcode::GetLogPage,
    AdminOpcode::Identify,
    AdminOpcode::Abort,
    AdminOpcode::SetFeatures,
    AdminOpcode::GetFeatures,
    AdminOpcode::AsyncEventRequest,
    AdminOpcode::KeepAlive,
    AdminOpcode::TrackSend,
    AdminOpcode::TrackReceive,
    AdminOpcode::MigrationSend,
    AdminOpcode::MigrationReceive,
    AdminOpcode::ControllerDataQueue,
];

/// What a controller of this role implements.
fn supported(role: Role) -> &'static [AdminOpcode] {
    match role {
        Role::Io => &SUPPORTED,
        Role::Management => &SUPPORTED_BY_MANAGEMENT,
    }
}

impl Controller {
    /// Executes an accepted command; every path ends in exactly one answer, now or later.
    pub(crate) fn execute(&mut self, slot: u16, command: Command, host: &mut impl Host) {
        let outcome = self.dispatch(slot, &command, host);
        self.conclude(slot, command, outcome);
    }

    /// What becomes of a command that went so far.
    fn conclude(&mut self, slot: u16, command: Command, outcome: Outcome) {
        match outcome {
            Ok(Step::Done(dw0)) => self.answer(slot, Answer { dw0, dw1: 0, status: Status::SUCCESS }),
            Ok(Step::Later) => {}
            Ok(Step::Defer) => self.work.defer(slot, command),
            Err(Failure::Status(status, location)) => {
                self.fail(slot, &command, Answer::of(status), location);
            }
            Err(Failure::Remote) => {
                self.needs_remote = true;
                if let Some(queue) = &mut self.queue {
                    queue.stall(slot, command);
                }
            }
        }
    }

    /// A command failed; the error log says so, too.
    fn fail(&mut self, slot: u16, command: &Command, answer: Answer, location: u16) {
        let status = with_dnr(answer.status);
        let logged = self.note_error(0, command.cid(), status.with_more(true), 0, command.nsid, location);
        self.answer(slot, Answer { status: status.with_more(logged), ..answer });
    }

    fn dispatch(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let opcode = command.admin_opcode();
        if !supported(self.profile.role).contains(&opcode) {
            return Err(Failure::Status(Status::INVALID_OPCODE, 0));
        }
        if Fuse(command.cdw0.fuse()) != Fuse::Normal || Psdt(command.cdw0.psdt()) != Psdt::Prp {
            return Err(Failure::Status(Status::INVALID_FIELD, 1));
        }
        if command.nsid != 0 && !uses_nsid(opcode) {
            return Err(invalid_field(1));
        }
        self.check_sanitize(opcode, command)?;
        match opcode {
            AdminOpcode::DeleteIoSubmissionQueue => self.delete_sq(slot, command, host),
            AdminOpcode::CreateIoSubmissionQueue => self.create_sq(command, host),
            AdminOpcode::GetLogPage => self.get_log_page(command),
            AdminOpcode::DeleteIoCompletionQueue => self.delete_cq(slot, command, host),
            AdminOpcode::CreateIoCompletionQueue => self.create_cq(command, host),
            AdminOpcode::Identify if self.asks_for_controllers(command) => {
                self.list_controllers(slot, command, host)
            }
            AdminOpcode::Identify => self.identify(command),
            AdminOpcode::TrackSend => self.track_send(slot, command, host),
            AdminOpcode::TrackReceive => self.track_receive(slot, command, host),
            AdminOpcode::ControllerDataQueue => self.controller_data_queue(slot, command, host),
            AdminOpcode::MigrationSend => self.migration_send(slot, command, host),
            AdminOpcode::MigrationReceive => self.migration_receive(slot, command, host),
            AdminOpcode::Abort => self.abort(slot, command, host),
            AdminOpcode::SetFeatures => self.set_features(command),
            AdminOpcode::GetFeatures => self.get_features(command),
            AdminOpcode::AsyncEventRequest => self.async_event_request(slot),
            AdminOpcode::NamespaceManagement => self.namespace_management(slot, command, host),
            AdminOpcode::DeviceSelfTest => self.device_self_test(command, host),
            AdminOpcode::NamespaceAttachment => self.namespace_attachment(slot, command, host),
            AdminOpcode::KeepAlive => self.keep_alive(),
            AdminOpcode::DoorbellBufferConfig => self.doorbell_buffer_config(slot, command, host),
            AdminOpcode::FormatNvm => self.format_nvm(slot, command, host),
            AdminOpcode::Sanitize => self.sanitize_command(slot, command, host),
            AdminOpcode::GetLbaStatus => self.get_lba_status(slot, command, host),
            _ => Err(Failure::Status(Status::INVALID_OPCODE, 0)),
        }
    }

    /// Commands that may be processed while a sanitize goes on or has failed (Base 2.1, 5 and 8.1.24.4): whatever is not
    /// named is answered Sanitize In Progress, also after the failure. Only I/O commands are told Sanitize Failed.
    fn check_sanitize(&self, opcode: AdminOpcode, command: &Command) -> Result<(), Failure> {
        let gate = self.table.gate();
        let permitted = match opcode {
            AdminOpcode::NamespaceManagement
            | AdminOpcode::NamespaceAttachment
            | AdminOpcode::DeviceSelfTest
            | AdminOpcode::DoorbellBufferConfig
            | AdminOpcode::FormatNvm
            | AdminOpcode::GetLbaStatus => false,
            AdminOpcode::GetLogPage => log::is_permitted_in_sanitize(command),
            AdminOpcode::Sanitize => gate == SubsystemGate::SanitizeFailed || self.replaying,
            _ => true,
        };
        if gate == SubsystemGate::Open || permitted {
            return Ok(());
        }
        Err(Status::SANITIZE_IN_PROGRESS.into())
    }

    /// Answers a command.
    pub(crate) fn answer(&mut self, slot: u16, answer: Answer) {
        if let Some(queue) = &mut self.queue {
            queue.answer(&self.region, slot, answer);
        }
    }
}

/// Whether the command has a namespace identifier (Base 2.1, figure 90).
fn uses_nsid(opcode: AdminOpcode) -> bool {
    matches!(
        opcode,
        AdminOpcode::GetLogPage
            | AdminOpcode::Identify
            | AdminOpcode::SetFeatures
            | AdminOpcode::GetFeatures
            | AdminOpcode::NamespaceManagement
            | AdminOpcode::DeviceSelfTest
            | AdminOpcode::NamespaceAttachment
            | AdminOpcode::FormatNvm
            | AdminOpcode::GetLbaStatus
    )
}
