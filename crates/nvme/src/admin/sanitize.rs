//! Sanitize (Base 2.1, 5.1.22 and 8.1.24): block erase and overwrite of the whole ssd, in the background.
//!
//! The command ends when the operation has begun and is on record; a restart goes on where the record says.

use spec::nvme::admin::{SanitizeAction, SanitizeCdw10};
use spec::nvme::log::{SanitizeOutcome, SanitizeStatus, SanitizeStatusLog};
use spec::nvme::{Command, Status};
use state::ssd::{CountersV1, SanitizeV1};
use zerocopy::FromZeros;

use super::{Outcome, Step, invalid_field};
use crate::controller::{Controller, Host, PersistWish};
use crate::namespace::{NamespaceTable, SubsystemGate};
use crate::queue;
use crate::work::Task;
use crate::work::wipe::Erase;

/// A time that is not reported.
const NOT_REPORTED: u32 = u32::MAX;

impl Controller {
    pub(super) fn sanitize_command(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = SanitizeCdw10::from_bits(command.cdw10);
        let last = SanitizeCdw10::from_bits(self.sanitize.cdw10);
        let failed = self.table.gate() == SubsystemGate::SanitizeFailed;
        match SanitizeAction(fields.sanact()) {
            SanitizeAction::ExitFailureMode => {
                // A restricted failure ends only by a sanitize that succeeds.
                if failed && !last.ause() {
                    return Err(Status::SANITIZE_FAILED.into());
                }
                if failed {
                    self.exit_failure_mode(host);
                }
                return Ok(Step::Done(0));
            }
            SanitizeAction::BlockErase | SanitizeAction::Overwrite if !fields.emvs() => {}
            _ => return Err(invalid_field(10)),
        }
        if failed && !last.ause() && fields.ause() {
            return Err(Status::SANITIZE_FAILED.into());
        }
        if self.table.gate() == SubsystemGate::Sanitizing {
            // A predecessor had begun it, and had not answered (see `check_sanitize`).
            return Ok(Step::Done(0));
        }
        if !self.work.is_idle() {
            return Ok(Step::Defer);
        }
        self.abort_self_test(9, host);
        let before = Some(self.sanitize);
        self.sanitize = SanitizeV1 {
            status: SanitizeOutcome::InProgress.0,
            cdw10: command.cdw10,
            pattern: command.cdw11,
            passes_done: 0,
            done_bytes: 0,
            ..SanitizeV1::default()
        };
        self.start_work(Task::Sanitize { before }, Some(slot), 0, host);
        Ok(Step::Later)
    }

    /// The status of the operation stays "failed"; the restrictions end (Base 2.1, 8.1.24.3.5).
    fn exit_failure_mode(&mut self, host: &mut impl Host) {
        self.table = std::sync::Arc::new(NamespaceTable::clone(&self.table).gated(SubsystemGate::Open));
        self.sanitize.left = true;
        host.namespaces(&self.table);
        let id = self.next_id(crate::controller::Wait::Work);
        self.waits.remove(&id);
        host.to_all(crate::sink::GroupCommand::Namespaces { table: std::sync::Arc::clone(&self.table), id });
        self.persist(PersistWish::Nobody, host);
    }

    /// How the operation on record erases.
    pub(crate) fn sanitize_erase(&self) -> Erase {
        let fields = SanitizeCdw10::from_bits(self.sanitize.cdw10);
        let deallocate = !fields.ndas();
        if SanitizeAction(fields.sanact()) != SanitizeAction::Overwrite {
            return Erase::Zeros { deallocate };
        }
        let passes = if fields.owpass() == 0 { 16 } else { fields.owpass() };
        Erase::Pattern { pattern: self.sanitize.pattern, passes, invert: fields.oipbp(), deallocate }
    }

    /// An overwrite without deallocation was the last to touch free space.
    pub(super) fn free_space_is_patterned(&self) -> bool {
        let never = self.sanitize.status == SanitizeOutcome::Never.0;
        !never && matches!(self.sanitize_erase(), Erase::Pattern { deallocate: false, .. })
    }

    /// The operation has ended.
    pub(crate) fn conclude_sanitize(&mut self, failed: bool) {
        self.sanitize.status = if failed { SanitizeOutcome::Failed.0 } else { SanitizeOutcome::Completed.0 };
        self.sanitize.done_bytes = 0;
        self.sanitize.erased = !failed;
        self.sanitize.writes_at_end = self.changes_ever();
        if !failed {
            if let Erase::Pattern { passes, .. } = self.sanitize_erase() {
                self.sanitize.passes_done = passes;
            }
            self.table.iter().for_each(|namespace| namespace.marks.clear_all());
            self.to_wipe.clear();
        }
    }

    /// Commands over all lives that changed data or may have.
    fn changes_ever(&self) -> u64 {
        let totals = self.totals_now();
        let of = |counters: &CountersV1| counters.writes.saturating_add(counters.other_changes);
        of(&totals.base).saturating_add(of(&totals.live))
    }

    /// Nothing was written since the last sanitize that succeeded, or ever; nothing that may be at the drive now, nothing
    /// that failed or was abandoned there. Commands are counted before their slots are free: the slots come first.
    fn is_globally_erased(&self) -> bool {
        let never = self.sanitize.status == SanitizeOutcome::Never.0;
        (never || self.sanitize.erased)
            && !queue::is_changing_data(&self.region)
            && self.changes_ever() == self.sanitize.writes_at_end
    }

    pub(super) fn sanitize_log(&self) -> SanitizeStatusLog {
        let fields = SanitizeCdw10::from_bits(self.sanitize.cdw10);
        let sprog = match self.table.gate() {
            SubsystemGate::Sanitizing => self.wiper.as_ref().map_or(0, |wiper| wiper.fraction()),
            SubsystemGate::SanitizeFailed | SubsystemGate::Open => 0xffff,
        };
        // It has ended for the host when it is on record and the groups serve I/O again, not before.
        let sos =
            if self.work.is_sanitizing() { SanitizeOutcome::InProgress.0 } else { self.sanitize.status };
        let passes = SanitizeAction(fields.sanact()) == SanitizeAction::Overwrite;
        let opc = if passes { self.sanitize.passes_done.min(16) } else { 0 };
        SanitizeStatusLog {
            sprog,
            sstat: SanitizeStatus::new().with_sos(sos & 7).with_opc(opc).with_gde(self.is_globally_erased()),
            scdw10: self.sanitize.cdw10,
            eto: NOT_REPORTED,
            etbe: NOT_REPORTED,
            etce: NOT_REPORTED,
            etodmm: NOT_REPORTED,
            etbenmm: NOT_REPORTED,
            etcenmm: NOT_REPORTED,
            etpvds: NOT_REPORTED,
            // The states in SSI are reported only with the media verification state (SANICAP.VERS).
            ..SanitizeStatusLog::new_zeroed()
        }
    }
}
