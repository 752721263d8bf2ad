//! Namespace Management (Base 2.1, 5.1.21; NVM 1.1, 4.1.6) and Namespace Attachment (5.1.20).

use std::sync::Arc;

use spec::nvme::admin::{
    NamespaceAttachmentSelect, NamespaceManagementCdw11, NamespaceManagementCreate,
    NamespaceManagementSelect, NamespaceSelectCdw10,
};
use spec::nvme::identify::{ControllerList, Csi, Flbas, IDENTIFY_BYTES};
use spec::nvme::{Command, NSID_BROADCAST, Status};
use zerocopy::FromBytes;

use super::identify::CNTLID;
use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::{Controller, Host};
use crate::limits::NAMESPACES_MAX;
use crate::namespace::{Gate, LbaFormat, Marks, Namespace};
use crate::work::Task;

/// NMIC: a dispersed namespace, which there is none of here. The bits above are reserved.
const NMIC_DISPERSED: u8 = 1 << 1;
/// DPS: type and place of protection information. The bits above are reserved.
const DPS_DEFINED: u8 = 0xf;

impl Controller {
    pub(super) fn namespace_management(
        &mut self,
        slot: u16,
        command: &Command,
        host: &mut impl Host,
    ) -> Outcome {
        let select = NamespaceManagementSelect(NamespaceSelectCdw10::from_bits(command.cdw10).sel());
        match select {
            NamespaceManagementSelect::Create => self.create_namespace(slot, command, host),
            NamespaceManagementSelect::Delete => self.delete_namespaces(slot, command, host),
            _ => Err(invalid_field(10)),
        }
    }

    fn create_namespace(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        if command.nsid != 0 {
            return Err(invalid_field(1));
        }
        if NamespaceManagementCdw11::from_bits(command.cdw11).csi() != Csi::Nvm.0 {
            return Err(Failure::Status(Status::IO_COMMAND_SET_NOT_SUPPORTED, 47));
        }
        let data = transfer::from_host(&self.map, command, IDENTIFY_BYTES)?;
        let wanted = NamespaceManagementCreate::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        let format = checked_format(&wanted, self.block_bytes)?;
        if let Some(nsid) = self.created_before(slot) {
            return Ok(Step::Done(nsid));
        }
        if !self.work.is_idle() {
            return Ok(Step::Defer);
        }
        let nsid = (1..=NAMESPACES_MAX).find(|nsid| self.table.get(*nsid).is_none());
        let nsid = nsid.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE)?;
        let bytes = wanted.nsze.checked_mul(u64::from(format.block_bytes()));
        let range =
            bytes.and_then(|bytes| self.first_fit(bytes)).ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        let ids = self.identity.namespace_ids(self.created);
        self.created = self.created.saturating_add(1);
        self.note_creation(slot);
        let namespace = Box::new(Namespace {
            nsid,
            start_bytes: range.start_bytes,
            reserved_bytes: range.len_bytes,
            blocks: wanted.nsze,
            format,
            attached: false,
            shared: wanted.nmic & 1 == 1,
            eui64: ids.eui64,
            nguid: ids.nguid,
            uuid: ids.uuid,
            gate: Gate::Open,
            marks: Arc::new(Marks::default()),
        });
        let wipe = self.free_space_is_patterned();
        self.start_work(Task::Create { namespace, wipe }, Some(slot), nsid, host);
        Ok(Step::Later)
    }

    /// A successor must not create again what was recorded and not answered: the slot says which creation it is.
    fn note_creation(&self, slot: u16) {
        if let (Some(queue), Ok(number)) = (&self.queue, u32::try_from(self.created)) {
            queue.set_progress(&self.region, slot, number);
        }
    }

    /// The namespace a predecessor created for the command in this slot, if it got that far.
    fn created_before(&self, slot: u16) -> Option<u32> {
        let queue = self.queue.as_ref().filter(|_| self.replaying)?;
        let index = u64::from(queue.progress(&self.region, slot)).checked_sub(1)?;
        let uuid = self.identity.namespace_ids(index).uuid;
        self.table.iter().find(|ns| ns.uuid == uuid).map(|ns| ns.nsid)
    }

    fn delete_namespaces(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let single = (1..=NAMESPACES_MAX).contains(&command.nsid);
        if self.replaying && single && self.table.get(command.nsid).is_none() {
            // A predecessor deleted it, or it never was: gone it is.
            self.namespace_changed(command.nsid);
            return Ok(Step::Done(0));
        }
        if !self.work.is_idle() {
            return Ok(Step::Defer);
        }
        let nsids = if command.nsid == NSID_BROADCAST {
            self.table.iter().map(|ns| ns.nsid).collect()
        } else {
            vec![self.allocated(command.nsid)?.nsid]
        };
        if nsids.is_empty() {
            return Ok(Step::Done(0));
        }
        self.abort_self_test(3, host);
        self.start_work(Task::Delete { nsids }, Some(slot), 0, host);
        Ok(Step::Later)
    }

    pub(super) fn namespace_attachment(
        &mut self,
        slot: u16,
        command: &Command,
        host: &mut impl Host,
    ) -> Outcome {
        let select = NamespaceAttachmentSelect(NamespaceSelectCdw10::from_bits(command.cdw10).sel());
        if select != NamespaceAttachmentSelect::Attach && select != NamespaceAttachmentSelect::Detach {
            return Err(invalid_field(10));
        }
        if command.nsid == NSID_BROADCAST {
            return Err(invalid_field(1));
        }
        let nsid = self.allocated(command.nsid)?.nsid;
        let data = transfer::from_host(&self.map, command, IDENTIFY_BYTES)?;
        let list = ControllerList::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        if list.count != 1 || list.cntlids[0] != CNTLID {
            return Err(Status::CONTROLLER_LIST_INVALID.into());
        }
        let attaches = select == NamespaceAttachmentSelect::Attach;
        if self.replaying && self.allocated(nsid)?.attached == attaches {
            // As it should be: perhaps a predecessor did it, and had neither answered nor told.
            self.namespace_changed(nsid);
            return Ok(Step::Done(0));
        }
        if !self.work.is_idle() {
            return Ok(Step::Defer);
        }
        let attached = self.allocated(nsid)?.attached;
        let task = match (select, attached) {
            (NamespaceAttachmentSelect::Attach, true) => {
                return Err(Status::NAMESPACE_ALREADY_ATTACHED.into());
            }
            (NamespaceAttachmentSelect::Attach, false) => Task::Attach { nsid },
            (_, false) => return Err(Status::NAMESPACE_NOT_ATTACHED.into()),
            (_, true) => Task::Detach { nsid },
        };
        self.start_work(task, Some(slot), 0, host);
        Ok(Step::Later)
    }

    /// A namespace that exists, attached or not.
    fn allocated(&self, nsid: u32) -> Result<&Namespace, Failure> {
        if nsid == 0 || nsid > NAMESPACES_MAX {
            return Err(Failure::Status(Status::INVALID_NAMESPACE_OR_FORMAT, 4));
        }
        self.table.get(nsid).map(|ns| &**ns).ok_or(invalid_field(1))
    }
}

/// The host-specified fields of a namespace to create (NVM 1.1, 4.1.6), on a drive with blocks of `block_bytes`.
fn checked_format(wanted: &NamespaceManagementCreate, block_bytes: u32) -> Result<LbaFormat, Failure> {
    let flbas = Flbas::from_bits(wanted.flbas);
    let format = LbaFormat::from_index(flbas.fidxl() | flbas.fidxu() << 4)
        .filter(|format| wanted.dps & DPS_DEFINED == 0 && format.block_bytes() >= block_bytes);
    let format = format.ok_or(Status::INVALID_FORMAT)?;
    if wanted.nsze == 0 || wanted.ncap > wanted.nsze {
        return Err(Status::INVALID_FIELD.into());
    }
    if wanted.ncap < wanted.nsze {
        return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED.into());
    }
    // ANAGRPID, NVMSETID, ENDGID and NPHNDLS are ignored by a controller without what they belong to.
    if wanted.nmic & NMIC_DISPERSED != 0 || wanted.lbstm != 0 {
        return Err(Status::INVALID_FIELD.into());
    }
    Ok(format)
}
