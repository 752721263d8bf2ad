//! A model of an NVMe drive: honest by default, and able to be as odd as drives are, for tests of everything above [`Admin`].
//!
//! It keeps its namespaces in memory, answers Identify, Get Log Page, Format NVM, Sanitize, Namespace Management and Attachment, and
//! takes reads and writes through [`Namespace`]. Not modelled: queues, features, metadata, time (a sanitize advances with each look at
//! its log page).

mod management;

use self::management::Stored;
use super::{Admin, AdminError, Data, Request};
use crate::source::Source;
use crate::wipe::{Medium, Zeroing};
use spec::nvme::admin::{FormatCdw10, GetLogPageCdw10, IdentifyCdw10, SanitizeCdw10};
use spec::nvme::identify::capabilities::{Fna, Oacs, Sanicap};
use spec::nvme::identify::{Cns, IdentifyController, NamespaceList};
use spec::nvme::log::{Lid, SanitizeOutcome, SanitizeStatus, SanitizeStatusLog, SmartHealth};
use spec::nvme::{AdminOpcode, NSID_BROADCAST, Status};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromZeros, IntoBytes};

/// What a sanitize comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SanitizeFault {
    /// It erases.
    #[default]
    None,
    /// It fails, and the drive gives nothing out until another succeeds.
    Fails,
    /// It says that it erased, and did not.
    Lies,
    /// It never ends.
    Hangs,
}

/// What is wrong with the drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A format says that it erased, and did not.
    pub format_lies: bool,
    /// A format leaves what lies behind this byte.
    pub format_stops_at: Option<usize>,
    /// A format answers this.
    pub format_status: Option<Status>,
    /// What crypto erases leave reads as noise, not zeros: what honest drives may do, too.
    pub crypto_leaves_noise: bool,
    /// What a sanitize comes to, by its action (1 to 4).
    pub sanitize: [SanitizeFault; 5],
    /// Write Zeroes and Deallocate say that they did, and did not.
    pub zeroing_lies: bool,
    /// Write Zeroes is not possible.
    pub zeroing_fails: bool,
    /// Deallocated blocks read as they did.
    pub deallocate_keeps: bool,
    /// Writes to this byte are dropped.
    pub stuck_byte: Option<u64>,
    /// Reads of this byte fail.
    pub unreadable_byte: Option<u64>,
}

/// A drive as it is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Serial number.
    pub serial: String,
    /// FNA.
    pub fna: Fna,
    /// OACS.
    pub oacs: Oacs,
    /// SANICAP.
    pub sanicap: Sanicap,
    /// NN.
    pub nn: u32,
    /// TNVMCAP.
    pub total_bytes: u64,
    /// UNVMCAP, if it is not what is left.
    pub unallocated_bytes: Option<u64>,
    /// CNTLID of the controller that answers; it has all namespaces of [`Model::new`].
    pub cntlid: u16,
    /// What namespaces take up is a multiple of this, and the drive says so. 0: of a block, and it says nothing.
    pub granularity_bytes: u64,
    /// Namespaces attached to a controller at once, at most.
    pub attached_max: usize,
    /// Namespaces get an EUI-64.
    pub names: bool,
    /// Looks until a sanitize ends.
    pub sanitize_polls: u16,
    /// What is wrong.
    pub faults: Faults,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            serial: "MODEL0001".to_owned(),
            fna: Fna::new().with_cryes(true),
            oacs: Oacs::new().with_fnvms(true).with_nms(true),
            sanicap: Sanicap::new().with_ces(true).with_bes(true).with_ows(true),
            nn: 16,
            total_bytes: 8 << 20,
            unallocated_bytes: None,
            cntlid: 1,
            granularity_bytes: 0,
            attached_max: 16,
            names: true,
            sanitize_polls: 3,
            faults: Faults::default(),
        }
    }
}

#[derive(Debug)]
struct Sanitizing {
    outcome: SanitizeOutcome,
    cdw10: u32,
    polls_left: u16,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    namespaces: BTreeMap<u32, Stored>,
    made: u64,
    sanitizing: Sanitizing,
    seen: Vec<AdminOpcode>,
    noise: u64,
}

/// A drive. Clones are the same drive.
#[derive(Clone, Debug)]
pub struct Model(Arc<Mutex<State>>);

/// A namespace of a model, for reading and writing.
#[derive(Clone, Debug)]
pub struct Namespace {
    model: Model,
    nsid: u32,
}

impl Model {
    /// A drive with attached namespaces of these sizes, numbered from 1.
    #[must_use]
    pub fn new(settings: Settings, sizes: &[usize]) -> Model {
        let stored = |&size: &usize| Stored::new(vec![0; size], Some(settings.cntlid));
        let namespaces = (1..).zip(sizes.iter().map(stored)).collect();
        let sanitizing = Sanitizing { outcome: SanitizeOutcome::Never, cdw10: 0, polls_left: 0 };
        Model(Arc::new(Mutex::new(State {
            settings,
            namespaces,
            made: 0,
            sanitizing,
            seen: Vec::new(),
            noise: 1,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its namespace of this number.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Namespace {
        Namespace { model: self.clone(), nsid }
    }

    /// Makes other things wrong with it.
    pub fn set_faults(&self, faults: Faults) {
        self.state().settings.faults = faults;
    }

    /// Sets it up anew; its data stay.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.state().settings);
    }

    /// The commands it was given that change anything.
    #[must_use]
    pub fn changes(&self) -> Vec<AdminOpcode> {
        let asks = [AdminOpcode::Identify, AdminOpcode::GetLogPage];
        self.state().seen.iter().copied().filter(|opcode| !asks.contains(opcode)).collect()
    }

    /// All bytes of a namespace.
    #[must_use]
    pub fn bytes(&self, nsid: u32) -> Vec<u8> {
        self.state().namespaces.get(&nsid).map(|stored| stored.data.clone()).unwrap_or_default()
    }
}

fn bytes_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

impl State {
    fn identify(&self, request: &Request) -> Result<Vec<u8>, Status> {
        let list = |wanted: &dyn Fn(&Stored) -> bool| {
            let mut list = NamespaceList::new_zeroed();
            let nsids = self.namespaces.iter().filter(|(_, stored)| wanted(stored));
            for (slot, (&nsid, _)) in list.nsids.iter_mut().zip(nsids) {
                *slot = nsid;
            }
            list.as_bytes().to_vec()
        };
        let own = self.settings.cntlid;
        let cns = Cns(IdentifyCdw10::from_bits(request.cdw10_15[0]).cns());
        match cns {
            Cns::Controller => Ok(self.controller().as_bytes().to_vec()),
            Cns::ActiveNamespaceList => Ok(list(&|stored| stored.controllers.contains(&own))),
            Cns::Namespace if request.nsid != NSID_BROADCAST => match self.namespaces.get(&request.nsid) {
                Some(stored) if stored.controllers.contains(&own) => Ok(stored.identify()),
                // Inactive: all zeros. (Base 2.1, 3.2.1.4)
                Some(_) => Ok(vec![0; 4096]),
                None if (1..=self.settings.nn).contains(&request.nsid) => Ok(vec![0; 4096]),
                None => Err(Status::INVALID_NAMESPACE_OR_FORMAT),
            },
            _ if self.settings.oacs.nms() => self.identify_for_management(cns, request.nsid, list(&|_| true)),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn controller(&self) -> Box<IdentifyController> {
        let mut identify = Box::new(IdentifyController::new_zeroed());
        identify.sn.fill(b' ');
        for (to, from) in identify.sn.iter_mut().zip(self.settings.serial.bytes()) {
            *to = from;
        }
        identify.mn = *b"Godwit model of a drive                 ";
        identify.fr = *b"1       ";
        identify.fna = self.settings.fna;
        identify.oacs = self.settings.oacs;
        identify.sanicap = self.settings.sanicap;
        identify.nn = self.settings.nn;
        identify.cntlid = self.settings.cntlid;
        identify.ctratt.set_ng(self.settings.granularity_bytes > 0);
        identify.tnvmcap = u128::from(self.settings.total_bytes).into();
        let left = self.settings.unallocated_bytes.unwrap_or_else(|| self.left());
        identify.unvmcap = u128::from(left).into();
        identify
    }

    fn log(&mut self, request: &Request) -> Result<Vec<u8>, Status> {
        match Lid(GetLogPageCdw10::from_bits(request.cdw10_15[0]).lid()) {
            Lid::SmartHealth => {
                let mut log = SmartHealth::new_zeroed();
                log.available_spare = 100;
                log.percentage_used = 3;
                log.temperature = 300_u16.to_le_bytes();
                Ok(log.as_bytes().to_vec())
            }
            Lid::SanitizeStatus => {
                self.sanitize_on();
                let mut log = SanitizeStatusLog::new_zeroed();
                log.sstat = SanitizeStatus::new().with_sos(self.sanitizing.outcome.0);
                log.scdw10 = self.sanitizing.cdw10;
                log.sprog = match self.sanitizing.outcome {
                    SanitizeOutcome::InProgress => {
                        let total = u32::from(self.settings.sanitize_polls).max(1);
                        let done = total.saturating_sub(u32::from(self.sanitizing.polls_left));
                        u16::try_from(done * 65535 / total).unwrap_or(0)
                    }
                    _ => u16::MAX,
                };
                Ok(log.as_bytes().to_vec())
            }
            _ => Err(Status::INVALID_LOG_PAGE),
        }
    }

    /// A sanitize advances with each look.
    fn sanitize_on(&mut self) {
        if self.sanitizing.outcome != SanitizeOutcome::InProgress {
            return;
        }
        let fields = SanitizeCdw10::from_bits(self.sanitizing.cdw10);
        let fault =
            self.settings.faults.sanitize.get(usize::from(fields.sanact())).copied().unwrap_or_default();
        if fault == SanitizeFault::Hangs {
            return;
        }
        if let Some(left) = self.sanitizing.polls_left.checked_sub(1) {
            self.sanitizing.polls_left = left;
            return;
        }
        self.sanitizing.outcome = match fault {
            SanitizeFault::Fails => SanitizeOutcome::Failed,
            _ => SanitizeOutcome::Completed,
        };
        if fault == SanitizeFault::None {
            let crypto = fields.sanact() == 4;
            let nsids: Vec<u32> = self.namespaces.keys().copied().collect();
            nsids.iter().for_each(|&nsid| self.erase(nsid, crypto, usize::MAX));
        }
    }

    fn erase(&mut self, nsid: u32, crypto: bool, end: usize) {
        let noisy = crypto && self.settings.faults.crypto_leaves_noise;
        let Some(stored) = self.namespaces.get_mut(&nsid) else { return };
        for byte in stored.data.iter_mut().take(end) {
            self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let [.., high] = self.noise.to_le_bytes();
            *byte = if noisy { high } else { 0 };
        }
    }

    fn format(&mut self, request: &Request) -> Result<u32, Status> {
        let fields = FormatCdw10::from_bits(request.cdw10_15[0]);
        if let Some(status) = self.settings.faults.format_status {
            return Err(status);
        }
        if !self.settings.oacs.fnvms() {
            return Err(Status::INVALID_OPCODE);
        }
        let crypto = fields.ses() == 2;
        if fields.ses() > 2 || (crypto && !self.settings.fna.cryes()) {
            return Err(Status::INVALID_FIELD);
        }
        let for_all = self.settings.fna.fns() || (fields.ses() > 0 && self.settings.fna.sens());
        let is_broadcast = request.nsid == NSID_BROADCAST;
        if !is_broadcast && !self.namespaces.contains_key(&request.nsid) {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT);
        }
        let nsids: Vec<u32> = self.namespaces.keys().copied().collect();
        for nsid in nsids.into_iter().filter(|&nsid| for_all || is_broadcast || nsid == request.nsid) {
            if !self.settings.faults.format_lies && fields.ses() > 0 {
                self.erase(nsid, crypto, self.settings.faults.format_stops_at.unwrap_or(usize::MAX));
            }
        }
        Ok(0)
    }

    fn sanitize(&mut self, request: &Request) -> Result<u32, Status> {
        if self.sanitizing.outcome == SanitizeOutcome::InProgress {
            return Err(Status::SANITIZE_IN_PROGRESS);
        }
        let has = self.settings.sanicap;
        match SanitizeCdw10::from_bits(request.cdw10_15[0]).sanact() {
            2 if has.bes() => {}
            3 if has.ows() => {}
            4 if has.ces() => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        self.sanitizing = Sanitizing {
            outcome: SanitizeOutcome::InProgress,
            cdw10: request.cdw10_15[0],
            polls_left: self.settings.sanitize_polls,
        };
        Ok(0)
    }

    /// Nothing but questions and sanitizes while one goes on, or after one failed.
    fn gate(&self) -> Option<Status> {
        match self.sanitizing.outcome {
            SanitizeOutcome::InProgress => Some(Status::SANITIZE_IN_PROGRESS),
            SanitizeOutcome::Failed => Some(Status::SANITIZE_FAILED),
            _ => None,
        }
    }
}

impl Admin for Model {
    fn submit(&mut self, request: &Request, data: Data<'_>) -> Result<u32, AdminError> {
        let mut state = self.state();
        let opcode = request.opcode;
        state.seen.push(opcode);
        let allowed =
            matches!(opcode, AdminOpcode::Identify | AdminOpcode::GetLogPage | AdminOpcode::Sanitize);
        let refused = |status: Status| AdminError::Status { opcode, status: status.dnr_set() };
        if let Some(status) = state.gate().filter(|_| !allowed) {
            return Err(refused(status));
        }
        let answer = match opcode {
            AdminOpcode::Identify => state.identify(request),
            AdminOpcode::GetLogPage => state.log(request),
            AdminOpcode::FormatNvm => return state.format(request).map_err(refused),
            AdminOpcode::Sanitize => return state.sanitize(request).map_err(refused),
            AdminOpcode::NamespaceAttachment => {
                let bytes = if let Data::Out(bytes) = data { bytes } else { &[] };
                return state.attach(request, bytes).map_err(refused);
            }
            AdminOpcode::NamespaceManagement => {
                let bytes = if let Data::Out(bytes) = data { bytes } else { &[] };
                return state.manage(request, bytes).map_err(refused);
            }
            _ => Err(Status::INVALID_OPCODE),
        };
        let answer = answer.map_err(refused)?;
        if let Data::In(into) = data {
            for (to, from) in into.iter_mut().zip(answer) {
                *to = from;
            }
        }
        Ok(0)
    }
}

impl Namespace {
    /// Calls `with` with the bytes of a range and the faults, if the drive gives any out.
    fn range<T>(
        &self,
        offset: u64,
        len: u64,
        with: impl FnOnce(&mut [u8], &Faults) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.model.state();
        if let Some(status) = state.gate() {
            return Err(io::Error::other(format!("status {:#x}", status.code())));
        }
        let faults = state.settings.faults.clone();
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let own = state.settings.cntlid;
        let stored = state.namespaces.get_mut(&self.nsid).filter(|stored| stored.controllers.contains(&own));
        let data = &mut stored.ok_or_else(outside)?.data;
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or_else(outside)?;
        with(data.get_mut(start..end).ok_or_else(outside)?, &faults)
    }
}

impl Source for Namespace {
    fn len_bytes(&self) -> u64 {
        self.model.state().namespaces.get(&self.nsid).map_or(0, |stored| bytes_of(stored.data.len()))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let len = bytes_of(into.len());
        self.range(offset, len, |data, faults| {
            if faults.unreadable_byte.is_some_and(|byte| (offset..offset + len).contains(&byte)) {
                return Err(io::Error::other("unrecovered read error"));
            }
            into.copy_from_slice(data);
            Ok(())
        })
    }
}

impl Medium for Namespace {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.range(offset, bytes_of(bytes.len()), |data, faults| {
            for (at, (to, from)) in (offset..).zip(data.iter_mut().zip(bytes)) {
                if faults.stuck_byte != Some(at) {
                    *to = *from;
                }
            }
            Ok(())
        })
    }

    fn zero(&self, offset: u64, len: u64, how: Zeroing) -> io::Result<()> {
        self.range(offset, len, |data, faults| {
            if faults.zeroing_fails && how == Zeroing::WriteZeroes {
                return Err(io::Error::other("invalid opcode"));
            }
            let keeps = faults.deallocate_keeps && how == Zeroing::Deallocate;
            for (at, byte) in (offset..).zip(data) {
                if !faults.zeroing_lies && !keeps && faults.stuck_byte != Some(at) {
                    *byte = 0;
                }
            }
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.range(0, 0, |_, _| Ok(()))
    }
}
