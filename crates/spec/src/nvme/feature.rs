//! Features (Base 2.1, 5.1.25; NVM 1.1, 4.1.3).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Feature identifiers (Base 2.1, 5.1.25, figure 386; NVM 1.1, 4.1.3).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fid {
    /// Arbitration.
    Arbitration = 0x01,
    /// Power Management.
    PowerManagement = 0x02,
    /// LBA Range Type.
    LbaRangeType = 0x03,
    /// Temperature Threshold.
    TemperatureThreshold = 0x04,
    /// Error Recovery.
    ErrorRecovery = 0x05,
    /// Volatile Write Cache.
    VolatileWriteCache = 0x06,
    /// Number of Queues.
    NumberOfQueues = 0x07,
    /// Interrupt Coalescing.
    InterruptCoalescing = 0x08,
    /// Interrupt Vector Configuration.
    InterruptVectorConfiguration = 0x09,
    /// Write Atomicity Normal.
    WriteAtomicityNormal = 0x0a,
    /// Asynchronous Event Configuration.
    AsyncEventConfiguration = 0x0b,
    /// Autonomous Power State Transition.
    AutonomousPowerStateTransition = 0x0c,
    /// Host Memory Buffer.
    HostMemoryBuffer = 0x0d,
    /// Timestamp.
    Timestamp = 0x0e,
    /// Keep Alive Timer.
    KeepAliveTimer = 0x0f,
    /// Host Controlled Thermal Management.
    HostControlledThermalManagement = 0x10,
    /// Non-Operational Power State Config.
    NonOperationalPowerStateConfig = 0x11,
    /// Read Recovery Level Config.
    ReadRecoveryLevelConfig = 0x12,
    /// Predictable Latency Mode Config.
    PredictableLatencyModeConfig = 0x13,
    /// Predictable Latency Mode Window.
    PredictableLatencyModeWindow = 0x14,
    /// LBA Status Information Attributes.
    LbaStatusInformationAttributes = 0x15,
    /// Host Behavior Support.
    HostBehaviorSupport = 0x16,
    /// Sanitize Config.
    SanitizeConfig = 0x17,
    /// Endurance Group Event Configuration.
    EnduranceGroupEventConfiguration = 0x18,
    /// I/O Command Set Profile.
    IoCommandSetProfile = 0x19,
    /// Spinup Control.
    SpinupControl = 0x1a,
    /// Power Loss Signaling Config.
    PowerLossSignalingConfig = 0x1b,
    /// Performance Characteristics.
    PerformanceCharacteristics = 0x1c,
    /// Flexible Data Placement.
    FlexibleDataPlacement = 0x1d,
    /// Flexible Data Placement Events.
    FlexibleDataPlacementEvents = 0x1e,
    /// Namespace Admin Label.
    NamespaceAdminLabel = 0x1f,
    /// Controller Data Queue.
    ControllerDataQueue = 0x21,
    /// Enhanced Controller Metadata.
    EnhancedControllerMetadata = 0x7d,
    /// Controller Metadata.
    ControllerMetadata = 0x7e,
    /// Namespace Metadata.
    NamespaceMetadata = 0x7f,
    /// Software Progress Marker.
    SoftwareProgressMarker = 0x80,
    /// Host Identifier.
    HostIdentifier = 0x81,
    /// Reservation Notification Mask.
    ReservationNotificationMask = 0x82,
    /// Reservation Persistence.
    ReservationPersistence = 0x83,
    /// Namespace Write Protection Config.
    NamespaceWriteProtectionConfig = 0x84,
    /// Boot Partition Write Protection Config.
    BootPartitionWriteProtectionConfig = 0x85,
}

/// Get Features, command dword 10 (Base 2.1, 5.1.11).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetFeaturesCdw10 {
    /// Feature identifier: see [`Fid`].
    pub fid: u8,
    /// Which value: see [`Select`].
    #[bits(3)]
    pub sel: u8,
    #[bits(21)]
    __: u32,
}

/// Get Features: which value (Base 2.1, 5.1.11: SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Select {
    /// Current.
    Current = 0,
    /// Default.
    Default = 1,
    /// Saved.
    Saved = 2,
    /// Supported capabilities: see [`FeatureCapabilities`].
    SupportedCapabilities = 3,
}

/// Get Features with [`Select::SupportedCapabilities`], completion dword 0 (Base 2.1, 5.1.11).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureCapabilities {
    /// Saveable.
    pub saveable: bool,
    /// Namespace specific.
    pub ns_specific: bool,
    /// Changeable.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Set Features, command dword 10 (Base 2.1, 5.1.25).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetFeaturesCdw10 {
    /// Feature identifier: see [`Fid`].
    pub fid: u8,
    #[bits(23)]
    __: u32,
    /// Save the value through resets and power cycles.
    pub sv: bool,
}

/// Feature 01h, Arbitration (Base 2.1, 5.1.25.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Arbitration {
    /// Arbitration burst, a power of two; 7 = no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// Low priority weight, 0's based.
    pub lpw_z: u8,
    /// Medium priority weight, 0's based.
    pub mpw_z: u8,
    /// High priority weight, 0's based.
    pub hpw_z: u8,
}

/// Feature 02h, Power Management (Base 2.1, 5.1.25.1.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerManagement {
    /// Power state.
    #[bits(5)]
    pub ps: u8,
    /// Workload hint.
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Feature 04h, Temperature Threshold (Base 2.1, 5.1.25.1.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TemperatureThreshold {
    /// Temperature threshold in kelvins.
    pub tmpth: u16,
    /// Threshold temperature select: 0 composite, 1 to 8 a sensor, Fh all (set only).
    #[bits(4)]
    pub tmpsel: u8,
    /// Threshold type select: 0 over, 1 under.
    #[bits(2)]
    pub thsel: u8,
    /// Temperature threshold hysteresis in kelvins.
    #[bits(3)]
    pub tmpthh: u8,
    #[bits(7)]
    __: u8,
}

/// Feature 05h, Error Recovery (NVM 1.1, 4.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ErrorRecovery {
    /// Time limited error recovery in 100 ms units; 0 = no limit.
    pub tler: u16,
    /// Deallocated or unwritten logical block error enable.
    pub dulbe: bool,
    #[bits(15)]
    __: u16,
}

/// Feature 06h, Volatile Write Cache (Base 2.1, 5.1.25.1.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VolatileWriteCache {
    /// Volatile write cache enable.
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Feature 07h, Number of Queues (Base 2.1, 5.1.25.2.1): requested in command dword 11, allocated in completion
/// dword 0.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NumberOfQueues {
    /// Number of I/O submission queues, 0's based (NSQR, NSQA). FFFFh is invalid.
    pub nsq_z: u16,
    /// Number of I/O completion queues, 0's based (NCQR, NCQA). FFFFh is invalid.
    pub ncq_z: u16,
}

/// Feature 08h, Interrupt Coalescing (Base 2.1, 5.1.25.2.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptCoalescing {
    /// Aggregation threshold in completion queue entries, 0's based.
    pub thr_z: u8,
    /// Aggregation time in 100 µs units; 0 = none.
    pub time: u8,
    __: u16,
}

/// Feature 09h, Interrupt Vector Configuration (Base 2.1, 5.1.25.2.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptVectorConfig {
    /// Interrupt vector.
    pub iv: u16,
    /// Coalescing disable.
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Feature 0Ah, Write Atomicity Normal (NVM 1.1, 4.1.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WriteAtomicity {
    /// Disable normal: only AWUPF is promised, not AWUN.
    pub dn: bool,
    #[bits(31)]
    __: u32,
}

/// Feature 0Bh, Asynchronous Event Configuration (Base 2.1, 5.1.25.1.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AsyncEventConfig {
    /// SMART / health critical warnings to report: bits as in the SMART log's critical warning.
    pub smart: u8,
    /// Attached namespace attribute notices.
    pub nan: bool,
    /// Firmware activation notices.
    pub fan: bool,
    /// Telemetry log notices.
    pub tln: bool,
    /// Asymmetric namespace access change notices.
    pub anacn: bool,
    /// Predictable latency event aggregate log change notices.
    pub plealcn: bool,
    /// LBA status information notices.
    pub lbasin: bool,
    /// Endurance group event aggregate log change notices.
    pub egealcn: bool,
    /// Normal NVM subsystem shutdown.
    pub nnss: bool,
    /// Bits 31:16: notices of later revisions and of other command sets.
    pub others: u16,
}

/// Feature 0Eh, Timestamp: the data structure (Base 2.1, 5.1.25.1.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01 00:00 UTC, or since the last controller level reset: 48 bits, little-endian.
    pub timestamp: [u8; 6],
    /// Attributes: ignored on Set.
    pub attributes: TimestampAttributes,
    /// Reserved.
    pub reserved7: u8,
}

const _: () = assert!(size_of::<Timestamp>() == 8);

impl Timestamp {
    /// The timestamp in milliseconds.
    pub const fn milliseconds(&self) -> u64 {
        let [a, b, c, d, e, f] = self.timestamp;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// A timestamp of the low 48 bits of `milliseconds`.
    pub const fn new(milliseconds: u64, attributes: TimestampAttributes) -> Self {
        let [a, b, c, d, e, f, _, _] = milliseconds.to_le_bytes();
        Self { timestamp: [a, b, c, d, e, f], attributes, reserved7: 0 }
    }
}

/// Timestamp attributes (Base 2.1, 5.1.25.1.7).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimestampAttributes {
    /// Counting may have stopped at times since the timestamp was set.
    pub synch: bool,
    /// Timestamp origin: 0 cleared by a controller level reset, 1 set by the host.
    #[bits(3)]
    pub origin: u8,
    #[bits(4)]
    __: u8,
}

/// Feature 16h, Host Behavior Support: the data structure (Base 2.1, 5.1.25.1.14).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HostBehaviorSupport {
    /// Advanced command retry enable: 1 = the host understands CRD.
    pub acre: u8,
    /// Extended telemetry data area 4 supported.
    pub etdas: u8,
    /// LBA format extension enable: 1 = more than 16 formats, LBAFU in Format.
    pub lbafee: u8,
    /// Host dispersed namespace support.
    pub hdisns: u8,
    /// Copy descriptor formats 2, 3 and 4 enable, one bit each.
    pub cdfe: u16,
    /// Reserved.
    pub reserved6: [u8; 506],
}

const _: () = assert!(size_of::<HostBehaviorSupport>() == 512);
const _: () = assert!(core::mem::offset_of!(HostBehaviorSupport, cdfe) == 4);

/// Feature 81h, Host Identifier, command dword 11 (Base 2.1, 5.1.25.1.28).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HostIdentifierCdw11 {
    /// Enable extended host identifier: the data is 16 bytes instead of 8.
    pub exhid: bool,
    #[bits(31)]
    __: u32,
}
