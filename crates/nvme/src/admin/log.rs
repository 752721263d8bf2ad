//! Get Log Page (Base 2.1, 5.1.12).

use std::sync::atomic::Ordering;

use spec::nvme::admin::{GetLogPageCdw10, GetLogPageCdw11, GetLogPageCdw14, numd_z};
use spec::nvme::identify::Csi;
use spec::nvme::log::{
    ChangedNamespaceList, CommandEffects, CommandsSupportedAndEffects, ErrorInformation, FeatureEffects,
    FeatureIdentifiersEffects, FirmwareSlot, Lid, LidSupported, SCOPE_CONTROLLER, SCOPE_NAMESPACE,
    SCOPE_SUBSYSTEM, SmartHealth, SupportedLogPages,
};
use spec::nvme::registers::CommandSetSelected;
use spec::nvme::{AdminOpcode, Command, NSID_BROADCAST, NvmOpcode, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::features::{self, TEMPERATURE_K};
use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::Controller;
use crate::limits::{ELPE_Z, MDTS_BYTES, NAMESPACES_MAX};
use crate::namespace::SubsystemGate;
use crate::profile::Role;

/// The log pages there are.
const SUPPORTED: [Lid; 9] = [
    Lid::SupportedLogPages,
    Lid::ErrorInformation,
    Lid::SmartHealth,
    Lid::FirmwareSlot,
    Lid::ChangedNamespaceList,
    Lid::CommandsSupportedAndEffects,
    Lid::DeviceSelfTest,
    Lid::FeatureIdentifiersEffects,
    Lid::SanitizeStatus,
];

/// The I/O commands there are, and whether they change data.
const IO_COMMANDS: [(NvmOpcode, bool); 9] = [
    (NvmOpcode::Flush, false),
    (NvmOpcode::Write, true),
    (NvmOpcode::Read, false),
    (NvmOpcode::WriteUncorrectable, true),
    (NvmOpcode::Compare, false),
    (NvmOpcode::WriteZeroes, true),
    (NvmOpcode::DatasetManagement, true),
    (NvmOpcode::Verify, false),
    (NvmOpcode::Copy, true),
];

impl Controller {
    pub(super) fn get_log_page(&mut self, command: &Command) -> Outcome {
        let fields = GetLogPageCdw10::from_bits(command.cdw10);
        let lid = Lid(fields.lid());
        if !SUPPORTED.contains(&lid) {
            return Err(Failure::Status(Status::INVALID_LOG_PAGE, 40));
        }
        // No log page here is one of a namespace (LPA.SMARTS = 0).
        if command.nsid != 0 && command.nsid != NSID_BROADCAST {
            return Err(invalid_field(1));
        }
        let last = GetLogPageCdw14::from_bits(command.cdw14);
        // CSI counts for some log pages, and only when all command sets were selected.
        let uses_csi = matches!(
            lid,
            Lid::SupportedLogPages | Lid::CommandsSupportedAndEffects | Lid::FeatureIdentifiersEffects
        ) && CommandSetSelected(self.cc().css()) == CommandSetSelected::All;
        if last.ot() || (uses_csi && last.csi() != Csi::Nvm.0) {
            return Err(invalid_field(14));
        }
        let numd = u64::from(numd_z(fields, GetLogPageCdw11::from_bits(command.cdw11))) + 1;
        if numd * 4 > u64::from(MDTS_BYTES) {
            return Err(invalid_field(10));
        }
        let offset = u64::from(command.cdw12) | u64::from(command.cdw13) << 32;
        let page = self.log_page(lid);
        if !offset.is_multiple_of(4) || offset > page.len() as u64 {
            return Err(invalid_field(12));
        }
        // Past the end of the page there are zeros.
        let mut data = vec![0; usize::try_from(numd * 4).unwrap_or(0)];
        let rest = page.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
        transfer::to_host(&self.map, command, &data)?;
        if !fields.rae() {
            if lid == Lid::ChangedNamespaceList {
                crate::store::publish64(&self.region.admin.changed_namespaces, 0);
            }
            self.log_was_read(lid);
        }
        Ok(Step::Done(0))
    }

    fn log_page(&self, lid: Lid) -> Vec<u8> {
        match lid {
            Lid::SupportedLogPages => supported_log_pages().as_bytes().to_vec(),
            Lid::ErrorInformation => self.error_log(),
            Lid::SmartHealth => self.smart().as_bytes().to_vec(),
            Lid::FirmwareSlot => {
                let mut page = FirmwareSlot::new_zeroed();
                page.afi = 1;
                page.frs[0] = super::identify::padded(self.profile.firmware);
                page.as_bytes().to_vec()
            }
            Lid::ChangedNamespaceList => self.changed_namespaces().as_bytes().to_vec(),
            Lid::CommandsSupportedAndEffects => command_effects(self.profile.role).as_bytes().to_vec(),
            Lid::DeviceSelfTest => self.self_test_log().as_bytes().to_vec(),
            Lid::FeatureIdentifiersEffects => feature_effects(self.profile.role).as_bytes().to_vec(),
            Lid::SanitizeStatus => self.sanitize_log().as_bytes().to_vec(),
            _ => Vec::new(),
        }
    }

    /// While a sanitize goes on or has failed, no entry names a block (Base 2.1, 5).
    fn error_log(&self) -> Vec<u8> {
        let mut entries: Vec<ErrorInformation> = self.errors.iter().copied().collect();
        if self.table.gate() != SubsystemGate::Open {
            entries.iter_mut().for_each(|entry| entry.lba = 0);
        }
        let mut page = entries.as_bytes().to_vec();
        page.resize((usize::from(ELPE_Z) + 1) * 64, 0);
        page
    }

    fn changed_namespaces(&self) -> ChangedNamespaceList {
        let mut page = ChangedNamespaceList::new_zeroed();
        let bits = self.region.admin.changed_namespaces.load(Ordering::Acquire);
        let changed = (1..=NAMESPACES_MAX).filter(|nsid| bits >> (nsid - 1) & 1 == 1);
        page.nsids.iter_mut().zip(changed).for_each(|(place, nsid)| *place = nsid);
        page
    }

    /// Live counters over those of earlier lives.
    fn smart(&self) -> SmartHealth {
        let totals = self.totals_now();
        let sum = |a: u64, b: u64| u128::from(a) + u128::from(b);
        let thousands = |a: u64, b: u64| sum(a, b).div_ceil(1000).into();
        SmartHealth {
            critical_warning: self.critical_warning(),
            temperature: TEMPERATURE_K.to_le_bytes(),
            available_spare: 100,
            available_spare_threshold: 10,
            data_units_read: thousands(totals.base.read_sectors, totals.live.read_sectors),
            data_units_written: thousands(totals.base.write_sectors, totals.live.write_sectors),
            host_read_commands: sum(totals.base.reads, totals.live.reads).into(),
            host_write_commands: sum(totals.base.writes, totals.live.writes).into(),
            power_cycles: u128::from(totals.power_cycles).into(),
            power_on_hours: u128::from(totals.power_on_seconds / 3600).into(),
            unsafe_shutdowns: u128::from(totals.unsafe_shutdowns).into(),
            media_errors: u128::from(totals.media_errors).into(),
            error_log_entries: u128::from(self.region.admin.error_count.load(Ordering::Acquire)).into(),
            ..SmartHealth::new_zeroed()
        }
    }
}

/// The log pages that may be read while a sanitize goes on or has failed (Base 2.1, 5). What is unknown gets its own status.
pub(super) fn is_permitted_in_sanitize(command: &Command) -> bool {
    let lid = Lid(GetLogPageCdw10::from_bits(command.cdw10).lid());
    let permitted = [Lid::ErrorInformation, Lid::SmartHealth, Lid::ChangedNamespaceList, Lid::SanitizeStatus];
    permitted.contains(&lid) || !SUPPORTED.contains(&lid)
}

fn supported_log_pages() -> SupportedLogPages {
    let mut page = SupportedLogPages::new_zeroed();
    for lid in SUPPORTED {
        page.lids[usize::from(lid.0)] = LidSupported::new().with_lsupp(true);
    }
    page
}

fn command_effects(role: Role) -> CommandsSupportedAndEffects {
    let mut page = CommandsSupportedAndEffects::new_zeroed();
    let plain = CommandEffects::new().with_csupp(true);
    for opcode in super::supported(role).iter().copied() {
        page.acs[usize::from(opcode.0)] = match opcode {
            AdminOpcode::FormatNvm => {
                plain.with_lbcc(true).with_ncc(true).with_cse(1).with_csp(SCOPE_NAMESPACE)
            }
            AdminOpcode::Sanitize => plain.with_lbcc(true).with_cse(2).with_csp(SCOPE_SUBSYSTEM),
            AdminOpcode::NamespaceManagement | AdminOpcode::NamespaceAttachment => {
                plain.with_nic(true).with_csp(SCOPE_SUBSYSTEM)
            }
            AdminOpcode::GetLbaStatus => plain.with_csp(SCOPE_NAMESPACE),
            AdminOpcode::TrackSend
            | AdminOpcode::TrackReceive
            | AdminOpcode::MigrationSend
            | AdminOpcode::MigrationReceive => plain.with_csp(SCOPE_SUBSYSTEM),
            _ => plain.with_csp(SCOPE_CONTROLLER),
        };
    }
    let io_commands = if role == Role::Io { &IO_COMMANDS[..] } else { &[] };
    for (opcode, changes) in io_commands.iter().copied() {
        page.iocs[usize::from(opcode.0)] = plain.with_lbcc(changes).with_csp(SCOPE_NAMESPACE);
    }
    page
}

fn feature_effects(role: Role) -> FeatureIdentifiersEffects {
    let mut page = FeatureIdentifiersEffects::new_zeroed();
    for fid in features::supported(role).iter().copied() {
        let scope = if features::is_namespace_specific(fid) { SCOPE_NAMESPACE } else { SCOPE_CONTROLLER };
        page.fids[usize::from(fid.0)] = FeatureEffects::new().with_fsupp(true).with_fsp(scope);
    }
    page
}
