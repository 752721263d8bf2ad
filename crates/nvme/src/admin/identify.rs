//! Identify (Base 2.1, 5.1.13; NVM 1.1, 4.1.5). Every capability said here is one that is implemented, and every one that
//! is implemented is said here.

use spec::nvme::admin::{IdentifyCdw10, IdentifyCdw11};
use spec::nvme::identify::capabilities::{
    Cmic, Ctratt, Frmw, Lpa, Oacs, Oaes, Oncs, Sanicap, Sgls, Trattr, Vwc,
};
use spec::nvme::identify::{
    AOCS_RALBAS, Cns, ControllerList, Csi, Dlfeat, Flbas, Fpi, IDENTIFY_BYTES, IdentifyController,
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, LbaFormat,
    NamespaceIdDescriptorHeader, NamespaceList, Nidt, Nmic, Nsfeat,
};
use spec::nvme::{Command, NSID_BROADCAST, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::features::{CRITICAL_K, WARNING_K};
use super::{Failure, Outcome, Step, invalid_field, migration, transfer};
use crate::controller::Controller;
use crate::limits::{self, NAMESPACES_MAX, PAGE_BYTES};
use crate::management::log::{DATA_QUEUES_MAX, PAGES_MAX};
use crate::namespace::{self, Gate, Namespace};
use crate::profile::{OUI, Role};

/// The one controller of the subsystem.
pub(super) const CNTLID: u16 = 0;

impl Controller {
    pub(super) fn identify(&mut self, command: &Command) -> Outcome {
        if self.work.is_growing() {
            // Blocks that a queue would still refuse are not told of.
            return Ok(Step::Defer);
        }
        let page = self.identify_page(command)?;
        debug_assert_eq!(page.len(), IDENTIFY_BYTES);
        transfer::to_host(&self.map, command, &page)?;
        Ok(Step::Done(0))
    }

    fn identify_page(&self, command: &Command) -> Result<Vec<u8>, Failure> {
        let fields = IdentifyCdw10::from_bits(command.cdw10);
        let (cns, cntid, nsid) = (Cns(fields.cns()), fields.cntid(), command.nsid);
        let csi = || match Csi(IdentifyCdw11::from_bits(command.cdw11).csi()) {
            Csi::Nvm => Ok(()),
            _ => Err(invalid_field(11)),
        };
        let active = |ns: &Namespace| ns.attached;
        let any = |_: &Namespace| true;
        match cns {
            Cns::Namespace => {
                self.with_namespace(nsid, active, true, |ns| self.namespace(ns).as_bytes().to_vec())
            }
            Cns::AllocatedNamespace => {
                self.with_namespace(nsid, any, false, |ns| self.namespace(ns).as_bytes().to_vec())
            }
            Cns::NamespaceCommandSet => {
                csi()?;
                self.with_namespace(nsid, active, true, |_| namespace_nvm())
            }
            Cns::AllocatedNamespaceCommandSet => {
                csi()?;
                self.with_namespace(nsid, any, false, |_| namespace_nvm())
            }
            Cns::NamespaceIndependent => self.with_namespace(nsid, active, false, independent),
            Cns::AllocatedNamespaceIndependent => self.with_namespace(nsid, any, false, independent),
            Cns::Controller => Ok(self.controller().as_bytes().to_vec()),
            Cns::ControllerCommandSet => {
                csi()?;
                Ok(self.controller_nvm().as_bytes().to_vec())
            }
            Cns::ActiveNamespaceList => self.namespace_list(nsid, active),
            Cns::AllocatedNamespaceList => self.namespace_list(nsid, any),
            Cns::ActiveNamespaceListCommandSet => {
                csi()?;
                self.namespace_list(nsid, active)
            }
            Cns::AllocatedNamespaceListCommandSet => {
                csi()?;
                self.namespace_list(nsid, any)
            }
            Cns::NamespaceIdDescriptors => self.descriptors(nsid),
            Cns::NamespaceAttachedControllerList => {
                let attached = self.with_namespace(nsid, any, false, |ns| vec![u8::from(ns.attached)])?;
                Ok(controller_list(cntid, attached.first() == Some(&1)))
            }
            Cns::ControllerList => Ok(controller_list(cntid, true)),
            Cns::SupportedControllerStateFormats if self.is_management() => Ok(migration::formats()),
            Cns::IoCommandSet => {
                if cntid != 0xffff && cntid != CNTLID {
                    return Err(invalid_field(10));
                }
                let mut page = vec![0; IDENTIFY_BYTES];
                // Combination 0: the NVM command set.
                page[0] = 1;
                Ok(page)
            }
            _ => Err(invalid_field(10)),
        }
    }

    /// A page about one namespace. One that is valid but not there is all zeros (Base 2.1, 5.1.13.2.1). The broadcast value asks
    /// for what is common to all namespaces, where that is defined.
    fn with_namespace(
        &self,
        nsid: u32,
        wanted: impl Fn(&Namespace) -> bool,
        common: bool,
        page: impl Fn(&Namespace) -> Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        if nsid == NSID_BROADCAST && common {
            return Ok(page(&common_namespace()));
        }
        if nsid == 0 || nsid > NAMESPACES_MAX {
            return Err(Failure::Status(Status::INVALID_NAMESPACE_OR_FORMAT, 4));
        }
        let found = self.table.get(nsid).filter(|ns| wanted(ns));
        Ok(found.map_or_else(|| vec![0; IDENTIFY_BYTES], |ns| page(ns)))
    }

    /// Identifiers above `nsid` (Base 2.1, 5.1.13.2.2).
    fn namespace_list(&self, nsid: u32, wanted: impl Fn(&Namespace) -> bool) -> Result<Vec<u8>, Failure> {
        if nsid >= NSID_BROADCAST - 1 {
            return Err(Failure::Status(Status::INVALID_NAMESPACE_OR_FORMAT, 4));
        }
        let mut list = NamespaceList::new_zeroed();
        let above = self.table.iter().filter(|ns| ns.nsid > nsid && wanted(ns));
        list.nsids.iter_mut().zip(above).for_each(|(place, ns)| *place = ns.nsid);
        Ok(list.as_bytes().to_vec())
    }

    /// Namespace identification descriptors (Base 2.1, 5.1.13.2.3).
    fn descriptors(&self, nsid: u32) -> Result<Vec<u8>, Failure> {
        let namespace = self.table.attached(nsid);
        let namespace = namespace.map_err(|_| Failure::Status(Status::INVALID_NAMESPACE_OR_FORMAT, 4))?;
        let mut page = Vec::with_capacity(IDENTIFY_BYTES);
        let mut add = |nidt: Nidt, id: &[u8]| {
            let nidl = u8::try_from(id.len()).unwrap_or(0);
            page.extend_from_slice(
                NamespaceIdDescriptorHeader { nidt: nidt.0, nidl, reserved2: [0; 2] }.as_bytes(),
            );
            page.extend_from_slice(id);
        };
        add(Nidt::Eui64, &namespace.eui64);
        add(Nidt::Nguid, &namespace.nguid);
        add(Nidt::Uuid, &namespace.uuid);
        add(Nidt::Csi, &[Csi::Nvm.0]);
        page.resize(IDENTIFY_BYTES, 0);
        Ok(page)
    }

    pub(super) fn is_management(&self) -> bool {
        self.profile.role == Role::Management
    }

    /// Identify is to say which controllers there are, and only others know.
    pub(super) fn asks_for_controllers(&self, command: &Command) -> bool {
        self.is_management() && Cns(IdentifyCdw10::from_bits(command.cdw10).cns()) == Cns::ControllerList
    }

    fn controller(&self) -> IdentifyController {
        match self.profile.role {
            Role::Io => self.io_controller(),
            Role::Management => self.management_controller(),
        }
    }

    /// An administrative controller, in a subsystem of more than one (Base 2.1, 3.1.3.3 and 8.1.12). Host memory buffers there are
    /// none in such a subsystem.
    fn management_controller(&self) -> IdentifyController {
        let mut page = IdentifyController::new_zeroed();
        self.describe_model(&mut page);
        page.cmic = Cmic::new().with_mcs(true);
        page.mdts = self.profile.mdts;
        page.cntlid = CNTLID;
        page.ver = self.profile.version;
        page.ctratt = Ctratt::new().with_hids(true);
        page.cntrltype = 3;
        page.nvmsr = 1;
        page.oacs = Oacs::new().with_hmlms(true);
        (page.acl_z, page.aerl_z, page.elpe_z) = (limits::ACL_Z, limits::AERL_Z, limits::ELPE_Z);
        page.frmw = Frmw::new().with_ffsro(true).with_nofs(1);
        page.lpa = Lpa::new().with_cses(true).with_lpeds(true);
        (page.wctemp, page.cctemp) = (WARNING_K, CRITICAL_K);
        page.kas = limits::KAS;
        (page.sqes, page.cqes) = (0x66, 0x44);
        page.oncs = Oncs::new().with_tss(true);
        page.trattr = Trattr::new().with_thmcs(true).with_tudcs(true);
        (page.cmmrtd, page.nmmrtd) = (limits::MEMORY_RANGES_MAX, limits::MEMORY_RANGES_MAX);
        page.maxmrtg = limits::MEMORY_GRANULARITY_MAX;
        (page.mcudmq, page.mnsudmq) = (DATA_QUEUES_MAX, DATA_QUEUES_MAX);
        page.mcdqpc = PAGES_MAX;
        page.psd[0].mp = 2500;
        page
    }

    fn io_controller(&self) -> IdentifyController {
        let mut page = IdentifyController::new_zeroed();
        self.describe_model(&mut page);
        page.mdts = self.profile.mdts;
        page.cntlid = CNTLID;
        page.ver = self.profile.version;
        (page.rtd3r, page.rtd3e) = (10_000_000, 10_000_000);
        page.oaes = Oaes::new().with_nsan(true);
        page.ctratt = Ctratt::new().with_hids(true);
        page.cntrltype = 1;
        page.nvmsr = 1;
        page.oacs =
            Oacs::new().with_fnvms(true).with_nms(true).with_dsts(true).with_dbcs(true).with_glss(true);
        (page.acl_z, page.aerl_z, page.elpe_z) = (limits::ACL_Z, limits::AERL_Z, limits::ELPE_Z);
        page.frmw = Frmw::new().with_ffsro(true).with_nofs(1);
        page.lpa = Lpa::new().with_cses(true).with_lpeds(true);
        (page.wctemp, page.cctemp) = (WARNING_K, CRITICAL_K);
        page.tnvmcap = u128::from(self.capacity_bytes).into();
        page.unvmcap = u128::from(self.unallocated_bytes()).into();
        (page.edstt, page.dsto) = (2, 1);
        page.kas = limits::KAS;
        page.sanicap = Sanicap::new().with_bes(true).with_ows(true).with_nodmmas(1);
        (page.sqes, page.cqes) = (0x66, 0x44);
        page.maxcmd = self.profile.mqes_z.saturating_add(1);
        (page.nn, page.mnan) = (NAMESPACES_MAX, NAMESPACES_MAX);
        page.oncs = Oncs::new()
            .with_nvmcmps(true)
            .with_nvmwusv(true)
            .with_nvmdsmsv(true)
            .with_nvmwzsv(true)
            .with_ssfs(true)
            .with_tss(true)
            .with_nvmvfys(true)
            .with_nvmcpys(true);
        page.fuses = 1;
        // FNA 0: a format and its erase touch one namespace; the broadcast value formats all.
        page.vwc = Vwc::new().with_vwcp(true).with_fb(3);
        page.cdfs = limits::CDFS;
        page.sgls = Sgls::new().with_sgls(1).with_sbbds(true);
        // One power state of 25 W.
        page.psd[0].mp = 2500;
        page
    }

    fn controller_nvm(&self) -> IdentifyControllerNvm {
        let mut page = IdentifyControllerNvm::new_zeroed();
        page.dmrl = limits::DMRL;
        page.aocs = u16::from(self.profile.tells_allocated) * AOCS_RALBAS;
        page.ver = 0x0001_0100;
        page
    }

    fn describe_model(&self, page: &mut IdentifyController) {
        let profile = &self.profile;
        (page.vid, page.ssvid) = (profile.vendor_id, profile.subsystem_vendor_id);
        page.sn = self.identity.serial;
        page.mn = padded(profile.model);
        page.fr = padded(profile.firmware);
        page.ieee = [OUI[2], OUI[1], OUI[0]];
        let nqn = self.identity.nqn.as_bytes();
        let len = nqn.len().min(223);
        page.subnqn[..len].copy_from_slice(&nqn[..len]);
    }

    fn namespace(&self, ns: &Namespace) -> IdentifyNamespace {
        let mut page = IdentifyNamespace::new_zeroed();
        (page.nsze, page.ncap, page.nuse) = (ns.blocks, ns.blocks, ns.blocks);
        page.nsfeat = Nsfeat::new().with_uidreuse(true).with_optperf(1);
        page.nlbaf_z = u8::try_from(namespace::LbaFormat::ALL.len() - 1).unwrap_or(0);
        page.flbas = Flbas::new().with_fidxl(ns.format.index());
        page.nmic = Nmic::new().with_shrns(ns.shared);
        page.fpi = self.format_progress(ns);
        page.dlfeat = Dlfeat::new().with_drb(1).with_wzds(true);
        page.nvmcap = u128::from(ns.reserved_bytes).into();
        // Pages are what the host file or drive likes best.
        let page_blocks_z = u16::try_from(PAGE_BYTES >> ns.format.shift()).unwrap_or(1).max(1) - 1;
        (page.npwg_z, page.npwa_z, page.npdg_z, page.npda_z) =
            (page_blocks_z, page_blocks_z, page_blocks_z, page_blocks_z);
        page.nows_z = page_blocks_z;
        (page.mssrl, page.mcl, page.msrc_z) = (limits::MSSRL, limits::MCL, limits::MSRC_Z);
        (page.nguid, page.eui64) = (ns.nguid, ns.eui64);
        for (place, format) in page.lbaf.iter_mut().zip(namespace::LbaFormat::ALL) {
            // Relative performance: best with pages.
            let rp = if format == namespace::LbaFormat::B4096 { 0 } else { 1 };
            // An LBADS of 0 says that the format is not available: the drive's own blocks are larger.
            let lbads = if format.block_bytes() >= self.block_bytes { format.shift() } else { 0 };
            *place = LbaFormat { ms: 0, lbads, rp };
        }
        page
    }

    fn format_progress(&self, ns: &Namespace) -> Fpi {
        let done = self.wiper.as_ref().map_or(0, |wiper| u32::from(wiper.fraction()));
        let remaining = u8::try_from(100 - done * 100 / 65536).unwrap_or(100);
        match ns.gate {
            Gate::Open => Fpi::new().with_fpii(true),
            Gate::Formatting => Fpi::new().with_fpii(true).with_fpr(remaining),
        }
    }
}

/// What is common to all namespaces: capabilities without identity or size.
fn common_namespace() -> Namespace {
    Namespace {
        nsid: NSID_BROADCAST,
        start_bytes: 0,
        reserved_bytes: 0,
        blocks: 0,
        format: namespace::LbaFormat::B512,
        attached: false,
        shared: false,
        eui64: [0; 8],
        nguid: [0; 16],
        uuid: [0; 16],
        gate: Gate::Open,
        marks: std::sync::Arc::default(),
    }
}

/// TLBAAG is not reported: what is allocated is tracked by the drive, and another host's may do so in other units.
fn namespace_nvm() -> Vec<u8> {
    IdentifyNamespaceNvm::new_zeroed().as_bytes().to_vec()
}

fn independent(ns: &Namespace) -> Vec<u8> {
    let mut page = IdentifyNamespaceIndependent::new_zeroed();
    page.nsfeat = 1 << 3;
    page.nmic = Nmic::new().with_shrns(ns.shared);
    page.fpi = Fpi::new().with_fpii(true);
    page.nstat = u8::from(ns.gate == Gate::Open);
    page.as_bytes().to_vec()
}

/// Controllers from `from` upwards.
fn controller_list(from: u16, there: bool) -> Vec<u8> {
    let mut list = ControllerList::new_zeroed();
    if there && (from..).contains(&CNTLID) {
        list.count = 1;
        list.cntlids[0] = CNTLID;
    }
    list.as_bytes().to_vec()
}

/// ASCII text, padded with spaces.
pub(super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    field
}
