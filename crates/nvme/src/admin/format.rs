//! Format NVM (Base 2.1, 5.1.10). Its scope, and that of its erase, is one namespace (FNA = 0), or each attached one.

use spec::nvme::admin::{FormatCdw10, SecureErase};
use spec::nvme::{Command, NSID_BROADCAST, Status};

use super::{Failure, Outcome, Step, invalid_field};
use crate::controller::{Controller, Host};
use crate::namespace::{Gate, LbaFormat};
use crate::work::Task;

impl Controller {
    pub(super) fn format_nvm(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = FormatCdw10::from_bits(command.cdw10);
        // LBAFU counts only with extended formats enabled, which Host Behavior Support refuses here.
        // MSET is ignored with formats that have no metadata (NVM 1.1, 4.1.2).
        let format = LbaFormat::from_index(fields.lbafl())
            .filter(|format| fields.pi() == 0 && format.block_bytes() >= self.block_bytes);
        let format = format.ok_or(Failure::Status(Status::INVALID_FORMAT, 40))?;
        // Both kinds erase: the range is zeroed whichever was asked for.
        match SecureErase(fields.ses()) {
            SecureErase::None | SecureErase::UserData => {}
            _ => return Err(invalid_field(10)),
        }
        let nsids: Vec<u32> = if command.nsid == NSID_BROADCAST {
            self.table.iter().filter(|ns| ns.attached).map(|ns| ns.nsid).collect()
        } else {
            vec![self.table.attached(command.nsid).map_err(|status| Failure::Status(status, 4))?.nsid]
        };
        for namespace in nsids.iter().filter_map(|nsid| self.table.get(*nsid)) {
            if namespace.gate == Gate::Formatting {
                return Err(Status::FORMAT_IN_PROGRESS.into());
            }
            if (namespace.blocks << namespace.format.shift()) < u64::from(format.block_bytes()) {
                return Err(Failure::Status(Status::INVALID_FORMAT, 40));
            }
        }
        if !self.work.is_idle() {
            return Ok(Step::Defer);
        }
        if nsids.is_empty() {
            return Ok(Step::Done(0));
        }
        self.abort_self_test(4, host);
        self.start_work(Task::Format { nsids, format }, Some(slot), 0, host);
        Ok(Step::Later)
    }
}
