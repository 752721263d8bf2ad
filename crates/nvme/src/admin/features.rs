//! Get Features and Set Features (Base 2.1, 5.1.11 and 5.1.25; NVM 1.1, 4.1.3). No feature is saveable.

use std::sync::atomic::Ordering;

use spec::nvme::feature::{
    Arbitration, AsyncEventConfig, ErrorRecovery, FeatureCapabilities, Fid, GetFeaturesCdw10,
    HostBehaviorSupport, HostIdentifierCdw11, InterruptVectorConfig, NumberOfQueues, PowerManagement, Select,
    SetFeaturesCdw10, TemperatureThreshold, Timestamp, TimestampAttributes,
};
use spec::nvme::log::CriticalWarning;
use spec::nvme::{Command, NSID_BROADCAST, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::Controller;
use crate::limits::{IO_QUEUES_MAX, NAMESPACES_MAX};
use crate::profile::Role;
use crate::store::{change64, publish32, publish64};

/// The composite temperature, in kelvins: a virtual drive is always at 30 degrees.
pub(super) const TEMPERATURE_K: u16 = 303;
/// Warning and critical composite temperature thresholds.
pub(super) const WARNING_K: u16 = 343;
pub(super) const CRITICAL_K: u16 = 358;
/// The workload hints with a meaning end here (Base 2.1, 8.1.17.3).
const WORKLOAD_HINT_MAX: u8 = 2;
/// Bits of Arbitration that mean nothing, and are not remembered.
const ARBITRATION_RESERVED: u32 = 0xf8;
/// Where the under temperature threshold is kept: a feature identifier of the vendor's, which none can set.
const UNDER_THRESHOLD: u8 = 0xc0;

/// The features that an I/O controller implements: this list is also log page 12h.
const SUPPORTED: [Fid; 15] = [
    Fid::Arbitration,
    Fid::PowerManagement,
    Fid::TemperatureThreshold,
    Fid::ErrorRecovery,
    Fid::VolatileWriteCache,
    Fid::NumberOfQueues,
    Fid::InterruptCoalescing,
    Fid::InterruptVectorConfiguration,
    Fid::WriteAtomicityNormal,
    Fid::AsyncEventConfiguration,
    Fid::Timestamp,
    Fid::KeepAliveTimer,
    Fid::HostBehaviorSupport,
    Fid::IoCommandSetProfile,
    Fid::HostIdentifier,
];

/// As [`SUPPORTED`], of a migration management controller.
const SUPPORTED_BY_MANAGEMENT: [Fid; 7] = [
    Fid::PowerManagement,
    Fid::TemperatureThreshold,
    Fid::AsyncEventConfiguration,
    Fid::Timestamp,
    Fid::KeepAliveTimer,
    Fid::ControllerDataQueue,
    Fid::HostIdentifier,
];

/// What a controller of this role implements.
pub(super) fn supported(role: Role) -> &'static [Fid] {
    match role {
        Role::Io => &SUPPORTED,
        Role::Management => &SUPPORTED_BY_MANAGEMENT,
    }
}

/// Error Recovery is the one feature with a value for each namespace.
pub(super) fn is_namespace_specific(fid: Fid) -> bool {
    fid == Fid::ErrorRecovery
}

/// Whether a feature of one dword may have been set to this.
pub(crate) fn is_stored_feature(fid: u8, value: u32) -> bool {
    let queues = NumberOfQueues::from_bits(value);
    match Fid(fid) {
        Fid::NumberOfQueues => queues.nsq_z() < IO_QUEUES_MAX && queues.ncq_z() < IO_QUEUES_MAX,
        fid => fid.0 == UNDER_THRESHOLD || SUPPORTED.contains(&fid),
    }
}

fn is_changeable(fid: Fid) -> bool {
    fid != Fid::IoCommandSetProfile
}

impl Controller {
    /// The current value of a feature of one dword.
    pub(crate) fn feature(&self, fid: Fid) -> u32 {
        self.stored(fid.0).unwrap_or_else(|| self.default_of(fid))
    }

    fn stored(&self, fid: u8) -> Option<u32> {
        let admin = &self.region.admin;
        let set =
            admin.features_set.get(usize::from(fid / 64))?.load(Ordering::Acquire) >> (fid % 64) & 1 == 1;
        set.then(|| admin.features.get(usize::from(fid)).map(|word| word.load(Ordering::Acquire))).flatten()
    }

    fn store(&self, fid: u8, value: u32) {
        let admin = &self.region.admin;
        if let (Some(word), Some(set)) =
            (admin.features.get(usize::from(fid)), admin.features_set.get(usize::from(fid / 64)))
        {
            publish32(word, value);
            change64(set, |bits| bits | 1 << (fid % 64));
        }
    }

    fn default_of(&self, fid: Fid) -> u32 {
        match fid {
            Fid::Arbitration => Arbitration::new().with_ab(7).into_bits(),
            Fid::TemperatureThreshold => u32::from(WARNING_K),
            Fid::VolatileWriteCache => 1,
            Fid::NumberOfQueues => {
                let most = self.profile.io_queues.saturating_sub(1);
                NumberOfQueues::new().with_nsq_z(most).with_ncq_z(most).into_bits()
            }
            _ => 0,
        }
    }

    pub(super) fn get_features(&mut self, command: &Command) -> Outcome {
        let fields = GetFeaturesCdw10::from_bits(command.cdw10);
        let fid = self.checked(Fid(fields.fid()))?;
        let select = Select(fields.sel());
        if select == Select::SupportedCapabilities {
            let capabilities = FeatureCapabilities::new()
                .with_ns_specific(is_namespace_specific(fid))
                .with_changeable(is_changeable(fid));
            return Ok(Step::Done(capabilities.into_bits()));
        }
        let current = match select {
            Select::Current => true,
            // What cannot be saved has its default as saved value (Base 2.1, 5.1.11).
            Select::Default | Select::Saved => false,
            _ => return Err(invalid_field(10)),
        };
        if is_namespace_specific(fid) {
            self.check_feature_namespace(command.nsid)?;
        }
        let value = |fid| if current { self.feature(fid) } else { self.default_of(fid) };
        match fid {
            Fid::ControllerDataQueue => self.get_data_queue(command, current),
            Fid::TemperatureThreshold => self.get_temperature(command.cdw11, current),
            Fid::InterruptVectorConfiguration => self.get_vector_config(command.cdw11, current),
            Fid::Timestamp => {
                let stamp = if current { self.timestamp() } else { Timestamp::default() };
                transfer::to_host(&self.map, command, stamp.as_bytes())?;
                Ok(Step::Done(0))
            }
            Fid::HostIdentifier => {
                let extended = HostIdentifierCdw11::from_bits(command.cdw11).exhid();
                let [low, high] = &self.region.admin.host_identifier;
                let words = [low.load(Ordering::Acquire), high.load(Ordering::Acquire)]
                    .map(|w| if current { w } else { 0 });
                let len = if extended { 16 } else { 8 };
                transfer::to_host(&self.map, command, &words.as_bytes()[..len])?;
                Ok(Step::Done(0))
            }
            Fid::HostBehaviorSupport => {
                let mut data = HostBehaviorSupport::new_zeroed();
                let bits = if current { self.region.admin.host_behavior.load(Ordering::Acquire) } else { 0 };
                data.acre = u8::from(bits & 1 == 1);
                transfer::to_host(&self.map, command, data.as_bytes())?;
                Ok(Step::Done(0))
            }
            _ => Ok(Step::Done(value(fid))),
        }
    }

    pub(super) fn set_features(&mut self, command: &Command) -> Outcome {
        let fields = SetFeaturesCdw10::from_bits(command.cdw10);
        let fid = self.checked(Fid(fields.fid()))?;
        if fields.sv() {
            return Err(Failure::Status(Status::FEATURE_NOT_SAVEABLE, 43));
        }
        if is_namespace_specific(fid) {
            if command.nsid != NSID_BROADCAST {
                self.check_feature_namespace(command.nsid)?;
            }
        } else if command.nsid != 0 && command.nsid != NSID_BROADCAST {
            return Err(Failure::Status(Status::FEATURE_NOT_NAMESPACE_SPECIFIC, 4));
        }
        match fid {
            Fid::NumberOfQueues => return self.set_number_of_queues(command.cdw11),
            Fid::ControllerDataQueue => self.set_data_queue(command)?,
            Fid::TemperatureThreshold => self.set_temperature(command.cdw11)?,
            Fid::InterruptVectorConfiguration => self.set_vector_config(command.cdw11)?,
            Fid::Timestamp => self.set_timestamp(command)?,
            Fid::HostIdentifier => self.set_host_identifier(command)?,
            Fid::HostBehaviorSupport => self.set_host_behavior(command)?,
            Fid::IoCommandSetProfile if command.cdw11 & 0x1ff != 0 => {
                return Err(Failure::Status(Status::IO_COMMAND_SET_COMBINATION_REJECTED, 44));
            }
            Fid::KeepAliveTimer => self.set_keep_alive(command.cdw11),
            // Power states above NPSS, and workload hints that are reserved (Base 2.1, 8.1.17.3).
            Fid::PowerManagement
                if PowerManagement::from_bits(command.cdw11).ps() != 0
                    || PowerManagement::from_bits(command.cdw11).wh() > WORKLOAD_HINT_MAX =>
            {
                return Err(invalid_field(11));
            }
            Fid::ErrorRecovery if ErrorRecovery::from_bits(command.cdw11).dulbe() => {
                return Err(invalid_field(11));
            }
            Fid::VolatileWriteCache | Fid::WriteAtomicityNormal => self.store(fid.0, command.cdw11 & 1),
            // "If Endurance Groups are not supported and this bit is set to '1', then the Set Features command shall be aborted".
            Fid::AsyncEventConfiguration if AsyncEventConfig::from_bits(command.cdw11).egealcn() => {
                return Err(invalid_field(11));
            }
            // The notices that OAES offers, and the SMART warnings. Others may be asked for, and never come (5.1.25.1.5).
            Fid::AsyncEventConfiguration => {
                self.store(fid.0, command.cdw11 & 0x1ff);
                self.warn(self.critical_warning());
            }
            Fid::InterruptCoalescing => self.store(fid.0, command.cdw11 & 0xffff),
            Fid::PowerManagement => self.store(fid.0, command.cdw11 & 0xff),
            Fid::Arbitration => self.store(fid.0, command.cdw11 & !ARBITRATION_RESERVED),
            Fid::ErrorRecovery => self.store(fid.0, command.cdw11 & 0xffff),
            _ => self.store(fid.0, command.cdw11),
        }
        Ok(Step::Done(0))
    }

    fn check_feature_namespace(&self, nsid: u32) -> Result<(), Failure> {
        if nsid == 0 || nsid > NAMESPACES_MAX {
            return Err(Failure::Status(Status::INVALID_NAMESPACE_OR_FORMAT, 4));
        }
        self.table.attached(nsid).map(drop).map_err(|status| Failure::Status(status, 4))
    }

    /// Base 2.1, 5.1.25.2.1: at any time before the first I/O queue.
    fn set_number_of_queues(&mut self, cdw11: u32) -> Outcome {
        let asked = NumberOfQueues::from_bits(cdw11);
        if asked.nsq_z() == 0xffff || asked.ncq_z() == 0xffff {
            return Err(invalid_field(11));
        }
        if self.has_io_queues() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        let most = self.profile.io_queues.saturating_sub(1);
        let granted = NumberOfQueues::new()
            .with_nsq_z(asked.nsq_z().min(most))
            .with_ncq_z(asked.ncq_z().min(most))
            .into_bits();
        self.store(Fid::NumberOfQueues.0, granted);
        Ok(Step::Done(granted))
    }

    fn get_temperature(&self, cdw11: u32, current: bool) -> Outcome {
        let fields = TemperatureThreshold::from_bits(cdw11);
        if fields.tmpsel() != 0 || fields.thsel() > 1 {
            return Err(invalid_field(11));
        }
        let under = fields.thsel() == 1;
        let stored =
            if under { self.stored(UNDER_THRESHOLD) } else { self.stored(Fid::TemperatureThreshold.0) };
        let default = if under { 0 } else { u32::from(WARNING_K) };
        Ok(Step::Done(stored.filter(|_| current).unwrap_or(default)))
    }

    fn set_temperature(&mut self, cdw11: u32) -> Result<(), Failure> {
        let fields = TemperatureThreshold::from_bits(cdw11);
        if !matches!(fields.tmpsel(), 0 | 0xf) || fields.thsel() > 1 || fields.tmpthh() != 0 {
            return Err(invalid_field(11));
        }
        let place = if fields.thsel() == 1 { UNDER_THRESHOLD } else { Fid::TemperatureThreshold.0 };
        self.store(place, u32::from(fields.tmpth()));
        self.warn(self.critical_warning());
        Ok(())
    }

    /// The composite temperature against its thresholds, and the state of the medium.
    pub(super) fn critical_warning(&self) -> CriticalWarning {
        let over = self.feature(Fid::TemperatureThreshold);
        let under = self.stored(UNDER_THRESHOLD).unwrap_or(0);
        let now = u32::from(TEMPERATURE_K);
        CriticalWarning::new().with_temperature(now >= over || now <= under)
    }

    fn get_vector_config(&self, cdw11: u32, current: bool) -> Outcome {
        let fields = InterruptVectorConfig::from_bits(cdw11);
        let vector = fields.iv();
        if vector >= self.profile.vectors {
            return Err(invalid_field(11));
        }
        let words = &self.region.admin.vector_coalescing_disabled;
        let bits = words.get(usize::from(vector / 64)).map_or(0, |w| w.load(Ordering::Acquire));
        let disabled = current && bits >> (vector % 64) & 1 == 1;
        Ok(Step::Done(InterruptVectorConfig::new().with_iv(vector).with_cd(disabled).into_bits()))
    }

    fn set_vector_config(&mut self, cdw11: u32) -> Result<(), Failure> {
        let fields = InterruptVectorConfig::from_bits(cdw11);
        let vector = fields.iv();
        if vector >= self.profile.vectors {
            return Err(invalid_field(11));
        }
        if let Some(word) = self.region.admin.vector_coalescing_disabled.get(usize::from(vector / 64)) {
            let bit = 1 << (vector % 64);
            change64(word, |bits| if fields.cd() { bits | bit } else { bits & !bit });
        }
        Ok(())
    }

    /// As [`Controller::timestamp`], for a controller that goes on elsewhere: bit 63 says that the host set it.
    pub(crate) fn timestamp_at(&self, now: block::Now) -> u64 {
        let [set_ms, at_ns] = &self.region.admin.timestamp;
        let (raw, at_ns) = (set_ms.load(Ordering::Acquire), at_ns.load(Ordering::Acquire));
        let since_ms = now.0.saturating_sub(at_ns) / 1_000_000;
        (raw & !(1 << 63)).wrapping_add(since_ms) & 0xffff_ffff_ffff | raw & 1 << 63
    }

    /// Milliseconds as set, and the time since.
    pub(super) fn timestamp(&self) -> Timestamp {
        let raw = self.timestamp_at(self.now);
        let origin = u8::from(raw >> 63 == 1);
        Timestamp::new(raw & !(1 << 63), TimestampAttributes::new().with_origin(origin))
    }

    fn set_timestamp(&mut self, command: &Command) -> Result<(), Failure> {
        let data = transfer::from_host(&self.map, command, size_of::<Timestamp>())?;
        let stamp = Timestamp::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        let [set_ms, at_ns] = &self.region.admin.timestamp;
        publish64(at_ns, self.now.0);
        publish64(set_ms, stamp.milliseconds() | 1 << 63);
        Ok(())
    }

    fn set_host_identifier(&mut self, command: &Command) -> Result<(), Failure> {
        let extended = HostIdentifierCdw11::from_bits(command.cdw11).exhid();
        let data = transfer::from_host(&self.map, command, if extended { 16 } else { 8 })?;
        let word =
            |at: usize| data.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        publish64(&self.region.admin.host_identifier[0], word(0));
        publish64(&self.region.admin.host_identifier[1], word(8));
        Ok(())
    }

    fn set_host_behavior(&mut self, command: &Command) -> Result<(), Failure> {
        let data = transfer::from_host(&self.map, command, size_of::<HostBehaviorSupport>())?;
        let behavior = HostBehaviorSupport::read_from_bytes(&data).map_err(|_| Status::INTERNAL_ERROR)?;
        // What is not supported here (extended formats, dispersed namespaces, other copy formats) must not be enabled.
        let plain = behavior.acre <= 1 && behavior.etdas == 0 && behavior.lbafee == 0 && behavior.hdisns == 0;
        if !plain || behavior.cdfe != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        publish32(&self.region.admin.host_behavior, u32::from(behavior.acre));
        Ok(())
    }

    /// Rounded up to the granularity (KAS); 0 stops the timer.
    fn set_keep_alive(&mut self, timeout_ms: u32) {
        let granularity = u32::from(crate::limits::KAS) * 100;
        let rounded = timeout_ms.checked_next_multiple_of(granularity).unwrap_or(u32::MAX);
        publish64(&self.region.admin.keep_alive_ns, self.now.0);
        self.store(Fid::KeepAliveTimer.0, rounded);
    }

    /// Without a UUID List (CTRATT) dword 14 specifies no UUID index: it is reserved.
    fn checked(&self, fid: Fid) -> Result<Fid, Failure> {
        if !supported(self.profile.role).contains(&fid) {
            return Err(invalid_field(10));
        }
        Ok(fid)
    }
}
