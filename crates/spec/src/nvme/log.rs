//! Log pages (Base 2.1, 5.1.12).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::status::Status;

/// Log page identifiers (Base 2.1, 5.1.12, figure 202).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lid {
    /// Supported Log Pages: [`SupportedLogPages`].
    SupportedLogPages = 0x00,
    /// Error Information: [`ErrorInformation`], newest first.
    ErrorInformation = 0x01,
    /// SMART / Health Information: [`SmartHealth`].
    SmartHealth = 0x02,
    /// Firmware Slot Information: [`FirmwareSlot`].
    FirmwareSlot = 0x03,
    /// Changed Attached Namespace List: [`ChangedNamespaceList`].
    ChangedNamespaceList = 0x04,
    /// Commands Supported and Effects: [`CommandsSupportedAndEffects`].
    CommandsSupportedAndEffects = 0x05,
    /// Device Self-test: [`DeviceSelfTestLog`].
    DeviceSelfTest = 0x06,
    /// Telemetry Host-Initiated.
    TelemetryHostInitiated = 0x07,
    /// Telemetry Controller-Initiated.
    TelemetryControllerInitiated = 0x08,
    /// Endurance Group Information.
    EnduranceGroupInformation = 0x09,
    /// Predictable Latency Per NVM Set.
    PredictableLatencyPerNvmSet = 0x0a,
    /// Predictable Latency Event Aggregate.
    PredictableLatencyEventAggregate = 0x0b,
    /// Asymmetric Namespace Access.
    AsymmetricNamespaceAccess = 0x0c,
    /// Persistent Event Log.
    PersistentEvent = 0x0d,
    /// LBA Status Information.
    LbaStatusInformation = 0x0e,
    /// Endurance Group Event Aggregate.
    EnduranceGroupEventAggregate = 0x0f,
    /// Media Unit Status.
    MediaUnitStatus = 0x10,
    /// Supported Capacity Configuration List.
    SupportedCapacityConfigurationList = 0x11,
    /// Feature Identifiers Supported and Effects: [`FeatureIdentifiersEffects`].
    FeatureIdentifiersEffects = 0x12,
    /// NVMe-MI Commands Supported and Effects.
    NvmeMiCommandsEffects = 0x13,
    /// Command and Feature Lockdown.
    CommandAndFeatureLockdown = 0x14,
    /// Boot Partition.
    BootPartition = 0x15,
    /// Rotational Media Information.
    RotationalMediaInformation = 0x16,
    /// Dispersed Namespace Participating NVM Subsystems.
    DispersedNamespaceSubsystems = 0x17,
    /// Management Address List.
    ManagementAddressList = 0x18,
    /// Physical Interface Receiver Eye Opening Measurement.
    ReceiverEyeOpeningMeasurement = 0x19,
    /// Reachability Groups.
    ReachabilityGroups = 0x1a,
    /// Reachability Associations.
    ReachabilityAssociations = 0x1b,
    /// Changed Allocated Namespace List.
    ChangedAllocatedNamespaceList = 0x1c,
    /// Reservation Notification.
    ReservationNotification = 0x80,
    /// Sanitize Status: [`SanitizeStatusLog`].
    SanitizeStatus = 0x81,
}

/// LID 00h, Supported Log Pages (Base 2.1, 5.1.12.1.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SupportedLogPages {
    /// One descriptor for each LID.
    pub lids: [LidSupported; 256],
}

const _: () = assert!(size_of::<SupportedLogPages>() == 1024);

/// LID supported and effects (Base 2.1, 5.1.12.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LidSupported {
    /// LID supported.
    pub lsupp: bool,
    /// Index offset supported (OT may be 1).
    pub ios: bool,
    #[bits(14)]
    __: u16,
    /// LID specific parameter.
    pub lidsp: u16,
}

/// LID 01h, one Error Information entry (Base 2.1, 5.1.12.1.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrorInformation {
    /// Error count: a number that only grows over the life of the controller; 0 = no entry.
    pub error_count: u64,
    /// Submission queue identifier, or FFFFh.
    pub sqid: u16,
    /// Command identifier, or FFFFh.
    pub cid: u16,
    /// Status field as posted, phase tag included.
    pub status: Status,
    /// Parameter error location: byte in bits 7:0, bit in 10:8; FFFFh = none.
    pub parameter_error_location: u16,
    /// First LBA with the error.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// Vendor specific information available: a LID, or 0.
    pub vendor_specific: u8,
    /// Transport type: 0 = not reported.
    pub trtype: u8,
    /// Command set indicator of the command.
    pub csi: u8,
    /// Opcode of the command.
    pub opcode: u8,
    /// Command specific information.
    pub command_specific: u64,
    /// Transport type specific information.
    pub transport_specific: u16,
    /// Reserved.
    pub reserved42: [u8; 21],
    /// Log page version: 1 if `csi` and `opcode` are valid.
    pub log_page_version: u8,
}

const _: () = assert!(size_of::<ErrorInformation>() == 64);
const _: () = assert!(offset_of!(ErrorInformation, parameter_error_location) == 14);
const _: () = assert!(offset_of!(ErrorInformation, nsid) == 24);
const _: () = assert!(offset_of!(ErrorInformation, command_specific) == 32);
const _: () = assert!(offset_of!(ErrorInformation, transport_specific) == 40);
const _: () = assert!(offset_of!(ErrorInformation, log_page_version) == 63);

/// Critical warnings of the SMART log and of Asynchronous Event Configuration (Base 2.1, 5.1.12.1.3).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// Available spare below the threshold.
    pub spare: bool,
    /// A temperature is beyond its threshold.
    pub temperature: bool,
    /// NVM subsystem reliability degraded.
    pub degraded: bool,
    /// All media is read only.
    pub read_only: bool,
    /// Volatile memory backup failed.
    pub backup_failed: bool,
    /// Persistent memory region read only or unreliable.
    pub pmr: bool,
    #[bits(2)]
    __: u8,
}

/// LID 02h, SMART / Health Information (Base 2.1, 5.1.12.1.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SmartHealth {
    /// Critical warnings.
    pub critical_warning: CriticalWarning,
    /// Composite temperature in kelvins, little-endian.
    pub temperature: [u8; 2],
    /// Available spare in percent.
    pub available_spare: u8,
    /// Available spare threshold in percent.
    pub available_spare_threshold: u8,
    /// Percentage used; may exceed 100.
    pub percentage_used: u8,
    /// Endurance group critical warning summary.
    pub endurance_group_critical_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data units read: thousands of 512-byte units, rounded up.
    pub data_units_read: U128,
    /// Data units written: thousands of 512-byte units, rounded up.
    pub data_units_written: U128,
    /// Host read commands.
    pub host_read_commands: U128,
    /// Host write commands.
    pub host_write_commands: U128,
    /// Controller busy time in minutes.
    pub controller_busy_time: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Power on hours.
    pub power_on_hours: U128,
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and data integrity errors.
    pub media_errors: U128,
    /// Number of error information log entries over the life of the controller.
    pub error_log_entries: U128,
    /// Warning composite temperature time in minutes.
    pub warning_temperature_time: u32,
    /// Critical composite temperature time in minutes.
    pub critical_temperature_time: u32,
    /// Temperature sensors in kelvins; 0 = not there.
    pub temperature_sensors: [u16; 8],
    /// Thermal management temperature transition counts 1 and 2.
    pub thermal_transitions: [u32; 2],
    /// Total time for thermal management temperatures 1 and 2, in seconds.
    pub thermal_times: [u32; 2],
    /// Reserved.
    pub reserved232: [u8; 280],
}

const _: () = assert!(size_of::<SmartHealth>() == 512);
const _: () = assert!(offset_of!(SmartHealth, temperature) == 1);
const _: () = assert!(offset_of!(SmartHealth, data_units_read) == 32);
const _: () = assert!(offset_of!(SmartHealth, media_errors) == 160);
const _: () = assert!(offset_of!(SmartHealth, error_log_entries) == 176);
const _: () = assert!(offset_of!(SmartHealth, warning_temperature_time) == 192);
const _: () = assert!(offset_of!(SmartHealth, temperature_sensors) == 200);
const _: () = assert!(offset_of!(SmartHealth, thermal_times) == 224);

/// LID 03h, Firmware Slot Information (Base 2.1, 5.1.12.1.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FirmwareSlot {
    /// Active firmware info: bits 2:0 the active slot, bits 6:4 the slot active after the next reset (0 = same).
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware revision in slots 1 to 7, ASCII; zeros = empty.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlot>() == 512);
const _: () = assert!(offset_of!(FirmwareSlot, frs) == 8);

/// LID 04h, Changed Attached Namespace List (Base 2.1, 5.1.12.1.5): ascending, zero-filled; if there are more, the
/// first entry is FFFFFFFFh and the rest zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChangedNamespaceList {
    /// The namespaces.
    pub nsids: [u32; 1024],
}

const _: () = assert!(size_of::<ChangedNamespaceList>() == 4096);

/// LID 05h, Commands Supported and Effects (Base 2.1, 5.1.12.1.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandsSupportedAndEffects {
    /// Admin commands, by opcode.
    pub acs: [CommandEffects; 256],
    /// I/O commands, by opcode.
    pub iocs: [CommandEffects; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

const _: () = assert!(size_of::<CommandsSupportedAndEffects>() == 4096);
const _: () = assert!(offset_of!(CommandsSupportedAndEffects, iocs) == 1024);

/// Commands supported and effects of one command (Base 2.1, 5.1.12.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffects {
    /// Command supported.
    pub csupp: bool,
    /// Logical block content change.
    pub lbcc: bool,
    /// Namespace capability change.
    pub ncc: bool,
    /// Namespace inventory change.
    pub nic: bool,
    /// Controller capability change.
    pub ccc: bool,
    #[bits(11)]
    __: u16,
    /// Command submission and execution: 0 no limit, 1 one per namespace, 2 one at all.
    #[bits(3)]
    pub cse: u8,
    /// UUID selection supported.
    pub uss: bool,
    /// Command scope: bit 0 namespace, 1 controller, 2 NVM set, 3 endurance group, 4 domain, 5 subsystem.
    #[bits(12)]
    pub csp: u16,
}

/// LID 06h, Device Self-test (Base 2.1, 5.1.12.1.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceSelfTestLog {
    /// Current operation in bits 3:0: 0 none, else the code of the command that started it.
    pub current_operation: u8,
    /// Current completion in bits 6:0, in percent.
    pub current_completion: u8,
    /// Reserved.
    pub reserved2: [u8; 2],
    /// The results, newest first.
    pub results: [SelfTestResult; 20],
}

const _: () = assert!(size_of::<DeviceSelfTestLog>() == 564);
const _: () = assert!(offset_of!(DeviceSelfTestLog, results) == 4);

/// A device self-test result (Base 2.1, 5.1.12.1.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SelfTestResult {
    /// Result in bits 3:0 (see [`SelfTestOutcome`]), code in bits 7:4.
    pub status: u8,
    /// Segment of the first failure.
    pub segment: u8,
    /// Valid diagnostic information: bit 0 NSID, 1 failing LBA, 2 SCT, 3 SC.
    pub valid: u8,
    /// Reserved.
    pub reserved3: u8,
    /// Power on hours at the end of the test.
    pub power_on_hours: U64,
    /// Namespace of the failure.
    pub nsid: u32,
    /// Failing LBA.
    pub failing_lba: U64,
    /// Status code type, bits 2:0.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
    /// Vendor specific.
    pub vendor_specific: u16,
}

const _: () = assert!(size_of::<SelfTestResult>() == 28);
const _: () = assert!(offset_of!(SelfTestResult, power_on_hours) == 4);
const _: () = assert!(offset_of!(SelfTestResult, nsid) == 12);
const _: () = assert!(offset_of!(SelfTestResult, failing_lba) == 16);
const _: () = assert!(offset_of!(SelfTestResult, sct) == 24);

/// Device self-test result (Base 2.1, 5.1.12.1.7).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SelfTestOutcome {
    /// Completed without error.
    Passed = 0x0,
    /// Aborted by a Device Self-test command.
    AbortedByCommand = 0x1,
    /// Aborted by a controller level reset.
    AbortedByReset = 0x2,
    /// Aborted because a namespace was removed.
    AbortedByNamespaceRemoval = 0x3,
    /// Aborted by a Format NVM command.
    AbortedByFormat = 0x4,
    /// Fatal error, test not completed.
    FatalError = 0x5,
    /// Failed, segment unknown.
    FailedUnknownSegment = 0x6,
    /// Failed, segment known.
    FailedSegment = 0x7,
    /// Aborted for an unknown reason.
    AbortedUnknown = 0x8,
    /// Aborted by a sanitize operation.
    AbortedBySanitize = 0x9,
    /// Entry not used.
    NotUsed = 0xf,
}

/// LID 12h, Feature Identifiers Supported and Effects (Base 2.1, 5.1.12.1.18).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureIdentifiersEffects {
    /// One descriptor for each FID.
    pub fids: [FeatureEffects; 256],
}

const _: () = assert!(size_of::<FeatureIdentifiersEffects>() == 1024);

/// FID supported and effects (Base 2.1, 5.1.12.1.18).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureEffects {
    /// FID supported.
    pub fsupp: bool,
    /// User data content change.
    pub udcc: bool,
    /// Namespace capability change.
    pub ncc: bool,
    /// Namespace inventory change.
    pub nic: bool,
    /// Controller capability change.
    pub ccc: bool,
    #[bits(14)]
    __: u16,
    /// UUID selection supported.
    pub uss: bool,
    /// Scope: bit 0 namespace, 1 controller, 2 NVM set, 3 endurance group, 4 domain, 5 subsystem, 6 CDQ.
    #[bits(12)]
    pub fsp: u16,
}

/// [`CommandEffects::csp`] and [`FeatureEffects::fsp`]: scope is a namespace.
pub const SCOPE_NAMESPACE: u16 = 1 << 0;
/// [`CommandEffects::csp`] and [`FeatureEffects::fsp`]: scope is a controller.
pub const SCOPE_CONTROLLER: u16 = 1 << 1;
/// [`CommandEffects::csp`] and [`FeatureEffects::fsp`]: scope is the NVM subsystem.
pub const SCOPE_SUBSYSTEM: u16 = 1 << 5;

/// LID 81h, Sanitize Status (Base 2.1, 5.1.12.1.33). Times are in seconds; FFFFFFFFh = not reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeStatusLog {
    /// Sanitize progress: the numerator of a fraction of 65536; FFFFh when none is going on.
    pub sprog: u16,
    /// Sanitize status.
    pub sstat: SanitizeStatus,
    /// Command dword 10 of the Sanitize command that started it.
    pub scdw10: u32,
    /// Estimated time for overwrite.
    pub eto: u32,
    /// Estimated time for block erase.
    pub etbe: u32,
    /// Estimated time for crypto erase.
    pub etce: u32,
    /// Estimated time for overwrite with no-deallocate media modification.
    pub etodmm: u32,
    /// Estimated time for block erase with no-deallocate media modification.
    pub etbenmm: u32,
    /// Estimated time for crypto erase with no-deallocate media modification.
    pub etcenmm: u32,
    /// Estimated time for post-verification deallocation.
    pub etpvds: u32,
    /// Sanitize state information.
    pub ssi: SanitizeStateInformation,
    /// Reserved.
    pub reserved37: [u8; 475],
}

const _: () = assert!(size_of::<SanitizeStatusLog>() == 512);
const _: () = assert!(offset_of!(SanitizeStatusLog, sstat) == 2);
const _: () = assert!(offset_of!(SanitizeStatusLog, scdw10) == 4);
const _: () = assert!(offset_of!(SanitizeStatusLog, etpvds) == 32);
const _: () = assert!(offset_of!(SanitizeStatusLog, ssi) == 36);

/// Sanitize status (Base 2.1, 5.1.12.1.33: SSTAT).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeStatus {
    /// Status of the most recent operation: see [`SanitizeOutcome`].
    #[bits(3)]
    pub sos: u8,
    /// Overwrite passes completed.
    #[bits(5)]
    pub opc: u8,
    /// Global data erased: nothing written since the last sanitize, or ever.
    pub gde: bool,
    /// Media verification cancelled.
    pub mvcncld: bool,
    #[bits(6)]
    __: u8,
}

/// Status of the most recent sanitize operation (Base 2.1, 5.1.12.1.33: SOS).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SanitizeOutcome {
    /// Never sanitized.
    Never = 0,
    /// Completed without error.
    Completed = 1,
    /// In progress.
    InProgress = 2,
    /// Failed.
    Failed = 3,
    /// Completed, but deallocated although no-deallocate was asked for.
    CompletedUnexpectedDeallocation = 4,
}

/// Sanitize state information (Base 2.1, 5.1.12.1.33: SSI).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeStateInformation {
    /// Sanitize state: 0 idle, 1 restricted processing, 2 restricted failure, 3 unrestricted processing, 4 unrestricted
    /// failure, 5 media verification, 6 post-verification deallocation.
    #[bits(4)]
    pub sans: u8,
    /// The state in which a failed operation failed.
    #[bits(4)]
    pub fails: u8,
}
