//! Namespaces of the model: what Namespace Management and Attachment make of them (Base 2.1, 5.1.20 and 5.1.21).

use super::{State, bytes_of};
use crate::nvme::Request;
use spec::nvme::admin::{
    NamespaceAttachmentSelect, NamespaceManagementCreate, NamespaceManagementSelect, NamespaceSelectCdw10,
};
use spec::nvme::identify::{CONTROLLER_LIST_MAX, Cns, ControllerList, IdentifyNamespace};
use spec::nvme::{NSID_BROADCAST, Status};
use std::collections::BTreeSet;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Formats of the drive: metadata, data as a power of two, relative performance.
const FORMATS: [(u16, u8, u8); 4] = [(0, 9, 2), (8, 9, 3), (0, 12, 0), (0, 12, 1)];
/// The other controller of the subsystem: there, and nobody asks it.
const OTHER_CONTROLLER: u16 = 7;

/// A namespace.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) data: Vec<u8>,
    pub(super) controllers: BTreeSet<u16>,
    format: u8,
    shared: bool,
    eui64: [u8; 8],
}

impl Stored {
    pub(super) fn new(data: Vec<u8>, controller: Option<u16>) -> Stored {
        let controllers = controller.into_iter().collect();
        Stored { data, controllers, format: 0, shared: false, eui64: [0; 8] }
    }

    pub(super) fn identify(&self) -> Vec<u8> {
        let mut namespace = common();
        let (_, shift, _) = FORMATS.get(usize::from(self.format)).copied().unwrap_or(FORMATS[0]);
        namespace.nsze = bytes_of(self.data.len()) >> shift;
        namespace.ncap = namespace.nsze;
        namespace.flbas.set_fidxl(self.format);
        namespace.nmic.set_shrns(self.shared);
        namespace.eui64 = self.eui64;
        namespace.as_bytes().to_vec()
    }
}

/// What is the same for all namespaces.
fn common() -> Box<IdentifyNamespace> {
    let mut namespace = Box::new(IdentifyNamespace::new_zeroed());
    namespace.nlbaf_z = u8::try_from(FORMATS.len() - 1).unwrap_or(0);
    for (to, (ms, lbads, rp)) in namespace.lbaf.iter_mut().zip(FORMATS) {
        (to.ms, to.lbads, to.rp) = (ms, lbads, rp);
    }
    namespace
}

impl State {
    pub(super) fn left(&self) -> u64 {
        let used = self.namespaces.values().map(|stored| self.takes_up(bytes_of(stored.data.len()))).sum();
        self.settings.total_bytes.saturating_sub(used)
    }

    fn takes_up(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.settings.granularity_bytes.max(1))
    }

    /// What only a drive with namespace management is asked.
    pub(super) fn identify_for_management(
        &self,
        cns: Cns,
        nsid: u32,
        allocated: Vec<u8>,
    ) -> Result<Vec<u8>, Status> {
        let stored = || self.namespaces.get(&nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT);
        match cns {
            Cns::Namespace => Ok(common().as_bytes().to_vec()),
            Cns::AllocatedNamespaceList => Ok(allocated),
            Cns::AllocatedNamespace => Ok(stored()?.identify()),
            Cns::NamespaceAttachedControllerList => {
                let mut controllers = ControllerList::new_zeroed();
                for (slot, cntlid) in controllers.cntlids.iter_mut().zip(&stored()?.controllers) {
                    *slot = *cntlid;
                    controllers.count += 1;
                }
                Ok(controllers.as_bytes().to_vec())
            }
            Cns::NamespaceGranularityList if self.settings.granularity_bytes > 0 => {
                let mut bytes = vec![0; 4096];
                // One descriptor, for all formats.
                for at in [32, 40] {
                    let word = self.settings.granularity_bytes.to_le_bytes();
                    bytes.get_mut(at..at + 8).into_iter().for_each(|to| to.copy_from_slice(&word));
                }
                Ok(bytes)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    pub(super) fn manage(&mut self, request: &Request, data: &[u8]) -> Result<u32, Status> {
        if !self.settings.oacs.nms() {
            return Err(Status::INVALID_OPCODE);
        }
        let sel = NamespaceSelectCdw10::from_bits(request.cdw10_15[0]).sel();
        match NamespaceManagementSelect(sel) {
            NamespaceManagementSelect::Create => self.create(data),
            NamespaceManagementSelect::Delete if request.nsid == NSID_BROADCAST => {
                self.namespaces.clear();
                Ok(0)
            }
            NamespaceManagementSelect::Delete => {
                let gone = self.namespaces.remove(&request.nsid);
                gone.map(|_| 0).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn create(&mut self, data: &[u8]) -> Result<u32, Status> {
        let fields =
            NamespaceManagementCreate::read_from_bytes(data).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let format = (fields.flbas & 0xf) | (fields.flbas >> 5 & 3) << 4;
        let (ms, shift, _) = *FORMATS.get(usize::from(format)).ok_or(Status::INVALID_FORMAT)?;
        if fields.ncap > fields.nsze || fields.nsze == 0 || (ms == 0 && fields.dps != 0) {
            return Err(Status::INVALID_FIELD);
        }
        if fields.ncap < fields.nsze {
            return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED);
        }
        let bytes = fields.nsze.checked_mul(1 << shift);
        let bytes = bytes.filter(|&bytes| bytes <= self.left() && self.takes_up(bytes) <= self.left());
        let size = usize::try_from(bytes.ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?);
        let size = size.map_err(|_| Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        let free = (1..=self.settings.nn).find(|nsid| !self.namespaces.contains_key(nsid));
        let nsid = free.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE)?;
        self.made += 1;
        // What the flash held before is still there: an honest drive may show it.
        let mut stored = Stored::new(vec![0xEE; size], None);
        stored.format = format;
        stored.shared = fields.nmic & 1 == 1;
        if self.settings.names {
            stored.eui64 = self.made.to_be_bytes();
        }
        self.namespaces.insert(nsid, stored);
        Ok(nsid)
    }

    pub(super) fn attach(&mut self, request: &Request, data: &[u8]) -> Result<u32, Status> {
        if !self.settings.oacs.nms() {
            return Err(Status::INVALID_OPCODE);
        }
        let list = ControllerList::read_from_bytes(data).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let count = usize::from(list.count);
        let cntlids = list.cntlids.get(..count).filter(|_| (1..=CONTROLLER_LIST_MAX).contains(&count));
        let cntlids = cntlids.ok_or(Status::CONTROLLER_LIST_INVALID)?;
        let there = [self.settings.cntlid, OTHER_CONTROLLER];
        let ascending = cntlids.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || cntlids.iter().any(|cntlid| !there.contains(cntlid)) {
            return Err(Status::CONTROLLER_LIST_INVALID);
        }
        let most = self.settings.attached_max;
        let has = |cntlid: u16| {
            self.namespaces.values().filter(|stored| stored.controllers.contains(&cntlid)).count()
        };
        let full = cntlids.iter().any(|cntlid| has(*cntlid) >= most);
        let stored = self.namespaces.get_mut(&request.nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT)?;
        let sel = NamespaceSelectCdw10::from_bits(request.cdw10_15[0]).sel();
        match NamespaceAttachmentSelect(sel) {
            NamespaceAttachmentSelect::Attach => {
                if cntlids.iter().any(|cntlid| stored.controllers.contains(cntlid)) {
                    return Err(Status::NAMESPACE_ALREADY_ATTACHED);
                }
                if !stored.shared && stored.controllers.len() + count > 1 {
                    return Err(Status::NAMESPACE_IS_PRIVATE);
                }
                if full {
                    return Err(Status::NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED);
                }
                stored.controllers.extend(cntlids);
            }
            NamespaceAttachmentSelect::Detach => {
                if cntlids.iter().any(|cntlid| !stored.controllers.contains(cntlid)) {
                    return Err(Status::NAMESPACE_NOT_ATTACHED);
                }
                stored.controllers.retain(|cntlid| !cntlids.contains(cntlid));
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}
