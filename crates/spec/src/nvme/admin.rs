//! Fields of the admin commands that are not about queues or features (Base 2.1, 5.1 and 5.2).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Get Log Page, command dword 10 (Base 2.1, 5.1.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLogPageCdw10 {
    /// Log page identifier: see [`Lid`](super::log::Lid).
    pub lid: u8,
    /// Log specific parameter.
    #[bits(7)]
    pub lsp: u8,
    /// Retain asynchronous event.
    pub rae: bool,
    /// Number of dwords, 0's based, lower 16 bits (NUMDL).
    pub numdl_z: u16,
}

/// Get Log Page, command dword 11 (Base 2.1, 5.1.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLogPageCdw11 {
    /// Number of dwords, 0's based, upper 16 bits (NUMDU).
    pub numdu_z: u16,
    /// Log specific identifier.
    pub lsi: u16,
}

/// Get Log Page, command dword 14 (Base 2.1, 5.1.12). Dwords 12 and 13 are the log page offset.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLogPageCdw14 {
    /// UUID index.
    #[bits(7)]
    pub uidx: u8,
    #[bits(16)]
    __: u16,
    /// Offset type: the offset is an index into a list instead of bytes.
    pub ot: bool,
    /// Command set identifier.
    pub csi: u8,
}

/// The number of dwords, 0's based, of a Get Log Page command: at most `u32::MAX`, so do not add 1 in 32 bits.
pub const fn numd_z(cdw10: GetLogPageCdw10, cdw11: GetLogPageCdw11) -> u32 {
    cdw10.numdl_z() as u32 | (cdw11.numdu_z() as u32) << 16
}

/// Identify, command dword 10 (Base 2.1, 5.1.13).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyCdw10 {
    /// Controller or namespace structure: see [`Cns`](super::identify::Cns).
    pub cns: u8,
    __: u8,
    /// Controller identifier.
    pub cntid: u16,
}

/// Identify, command dword 11 (Base 2.1, 5.1.13).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyCdw11 {
    /// CNS specific identifier.
    pub cnssid: u16,
    __: u8,
    /// Command set identifier: see [`Csi`](super::identify::Csi).
    pub csi: u8,
}

/// Command dword 14 of Identify, Get Features and Set Features: the UUID index.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UuidIndexCdw14 {
    /// UUID index: 0 = none.
    #[bits(7)]
    pub uidx: u8,
    #[bits(25)]
    __: u32,
}

/// Abort, command dword 10 (Base 2.1, 5.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AbortCdw10 {
    /// Submission queue identifier of the command to abort.
    pub sqid: u16,
    /// Command identifier of the command to abort.
    pub cid: u16,
}

/// Abort, completion dword 0: set when the command was not aborted (Base 2.1, 5.1.1).
pub const ABORT_NOT_ABORTED: u32 = 1;

/// Asynchronous Event Request, completion dword 0 (Base 2.1, 5.1.2, figure 152).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AsyncEventDw0 {
    /// Event type: see [`AsyncEventType`].
    #[bits(3)]
    pub event_type: u8,
    #[bits(5)]
    __: u8,
    /// Event information: see [`event_info`], by type.
    pub event_info: u8,
    /// Log page to read, which clears the event.
    pub lid: u8,
    __: u8,
}

/// Asynchronous event type (Base 2.1, 5.1.2).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AsyncEventType {
    /// Error status.
    Error = 0,
    /// SMART / health status.
    SmartHealth = 1,
    /// Notice.
    Notice = 2,
    /// Immediate.
    Immediate = 3,
    /// One shot.
    OneShot = 4,
    /// I/O command specific status.
    IoCommandSpecific = 6,
    /// Vendor specific.
    VendorSpecific = 7,
}

/// Asynchronous event information, by type (Base 2.1, 5.1.2, figures 153 to 157).
pub mod event_info {
    /// Error: write to an invalid doorbell register.
    pub const ERROR_INVALID_DOORBELL_REGISTER: u8 = 0x00;
    /// Error: invalid doorbell write value.
    pub const ERROR_INVALID_DOORBELL_VALUE: u8 = 0x01;
    /// Error: diagnostic failure.
    pub const ERROR_DIAGNOSTIC_FAILURE: u8 = 0x02;
    /// Error: persistent internal error.
    pub const ERROR_PERSISTENT_INTERNAL: u8 = 0x03;
    /// Error: transient internal error.
    pub const ERROR_TRANSIENT_INTERNAL: u8 = 0x04;
    /// Error: firmware image load error.
    pub const ERROR_FIRMWARE_IMAGE_LOAD: u8 = 0x05;
    /// SMART / health: NVM subsystem reliability.
    pub const SMART_RELIABILITY: u8 = 0x00;
    /// SMART / health: temperature threshold.
    pub const SMART_TEMPERATURE: u8 = 0x01;
    /// SMART / health: spare below threshold.
    pub const SMART_SPARE: u8 = 0x02;
    /// Notice: attached namespace attribute changed; read LID 04h.
    pub const NOTICE_NAMESPACE_ATTRIBUTE_CHANGED: u8 = 0x00;
    /// Notice: firmware activation starting; read LID 03h.
    pub const NOTICE_FIRMWARE_ACTIVATION_STARTING: u8 = 0x01;
    /// Notice: telemetry log changed.
    pub const NOTICE_TELEMETRY_LOG_CHANGED: u8 = 0x02;
    /// Notice: asymmetric namespace access change.
    pub const NOTICE_ANA_CHANGE: u8 = 0x03;
    /// Notice: predictable latency event aggregate log change.
    pub const NOTICE_PREDICTABLE_LATENCY_CHANGE: u8 = 0x04;
    /// Notice: LBA status information alert.
    pub const NOTICE_LBA_STATUS_INFORMATION_ALERT: u8 = 0x05;
    /// Notice: endurance group event aggregate log change.
    pub const NOTICE_ENDURANCE_GROUP_CHANGE: u8 = 0x06;
    /// One shot: the tail pointer of a controller data queue came to its trigger.
    pub const ONE_SHOT_CDQ_TAIL_POINTER: u8 = 0x00;
    /// One shot: a controller data queue became full.
    pub const ONE_SHOT_CDQ_FULL_ERROR: u8 = 0x01;
    /// Immediate: normal NVM subsystem shutdown.
    pub const IMMEDIATE_NORMAL_SUBSYSTEM_SHUTDOWN: u8 = 0x00;
    /// I/O command specific: reservation log page available.
    pub const IO_RESERVATION_LOG_AVAILABLE: u8 = 0x00;
    /// I/O command specific: sanitize operation completed; read LID 81h.
    pub const IO_SANITIZE_COMPLETED: u8 = 0x01;
    /// I/O command specific: sanitize operation completed with unexpected deallocation.
    pub const IO_SANITIZE_COMPLETED_UNEXPECTED_DEALLOCATION: u8 = 0x02;
    /// I/O command specific: sanitize operation entered the media verification state.
    pub const IO_SANITIZE_MEDIA_VERIFICATION: u8 = 0x03;
}

/// Format NVM, command dword 10 (Base 2.1, 5.1.10).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FormatCdw10 {
    /// LBA format index, lower four bits.
    #[bits(4)]
    pub lbafl: u8,
    /// Metadata settings: metadata is part of an extended LBA.
    pub mset: bool,
    /// Protection information type, 0 = none.
    #[bits(3)]
    pub pi: u8,
    /// Protection information location.
    pub pil: bool,
    /// Secure erase settings: see [`SecureErase`].
    #[bits(3)]
    pub ses: u8,
    /// LBA format index, upper two bits.
    #[bits(2)]
    pub lbafu: u8,
    #[bits(18)]
    __: u32,
}

impl FormatCdw10 {
    /// The LBA format index, 0 to 63, if the host enabled extended formats; else use `lbafl`.
    pub const fn lbaf(self) -> u8 {
        self.lbafl() | self.lbafu() << 4
    }
}

/// Format NVM: secure erase settings (Base 2.1, 5.1.10).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SecureErase {
    /// No secure erase operation requested.
    None = 0,
    /// User data erase.
    UserData = 1,
    /// Cryptographic erase.
    Cryptographic = 2,
}

/// Sanitize, command dword 10 (Base 2.1, 5.1.22). Dword 11 is the overwrite pattern.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeCdw10 {
    /// Sanitize action: see [`SanitizeAction`].
    #[bits(3)]
    pub sanact: u8,
    /// Allow unrestricted sanitize exit.
    pub ause: bool,
    /// Overwrite pass count; 0 = 16.
    #[bits(4)]
    pub owpass: u8,
    /// Overwrite invert pattern between passes.
    pub oipbp: bool,
    /// No-deallocate after sanitize.
    pub ndas: bool,
    /// Enter media verification state.
    pub emvs: bool,
    #[bits(21)]
    __: u32,
}

/// Sanitize action (Base 2.1, 5.1.22).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SanitizeAction {
    /// Exit failure mode.
    ExitFailureMode = 1,
    /// Start a block erase.
    BlockErase = 2,
    /// Start an overwrite.
    Overwrite = 3,
    /// Start a crypto erase.
    CryptoErase = 4,
    /// Exit media verification state.
    ExitMediaVerification = 5,
}

/// Namespace Management and Namespace Attachment, command dword 10 (Base 2.1, 5.1.20 and 5.1.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceSelectCdw10 {
    /// Select: see [`NamespaceManagementSelect`] and [`NamespaceAttachmentSelect`].
    #[bits(4)]
    pub sel: u8,
    #[bits(28)]
    __: u32,
}

/// Namespace Management, command dword 11 (Base 2.1, 5.1.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceManagementCdw11 {
    #[bits(24)]
    __: u32,
    /// Command set identifier: see [`Csi`](super::identify::Csi).
    pub csi: u8,
}

/// Namespace Management: select (Base 2.1, 5.1.21).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NamespaceManagementSelect {
    /// Create.
    Create = 0,
    /// Delete.
    Delete = 1,
}

/// Namespace Attachment: select (Base 2.1, 5.1.20).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NamespaceAttachmentSelect {
    /// Controller attach.
    Attach = 0,
    /// Controller detach.
    Detach = 1,
}

/// Namespace Management Create: the host-specified fields (NVM 1.1, 4.1.6; Base 2.1, 5.1.21).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceManagementCreate {
    /// Namespace size in logical blocks.
    pub nsze: u64,
    /// Namespace capacity in logical blocks.
    pub ncap: u64,
    /// Reserved.
    pub reserved16: [u8; 10],
    /// Formatted LBA size: as in Identify Namespace.
    pub flbas: u8,
    /// Reserved.
    pub reserved27: [u8; 2],
    /// End-to-end data protection type settings.
    pub dps: u8,
    /// Namespace multi-path I/O and sharing capabilities.
    pub nmic: u8,
    /// Reserved.
    pub reserved31: [u8; 61],
    /// ANA group identifier.
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 4],
    /// NVM set identifier.
    pub nvmsetid: u16,
    /// Endurance group identifier.
    pub endgid: u16,
    /// Reserved.
    pub reserved104: [u8; 280],
    /// Logical block storage tag mask.
    pub lbstm: u64,
    /// Number of placement handles.
    pub nphndls: u16,
    /// Reserved.
    pub reserved394: [u8; 118],
    /// Placement handle list.
    pub placement_handles: [u16; 128],
    /// Reserved; the last 1024 bytes are vendor specific.
    pub reserved768: [u8; 3328],
}

const _: () = assert!(size_of::<NamespaceManagementCreate>() == 4096);
const _: () = assert!(offset_of!(NamespaceManagementCreate, flbas) == 26);
const _: () = assert!(offset_of!(NamespaceManagementCreate, dps) == 29);
const _: () = assert!(offset_of!(NamespaceManagementCreate, anagrpid) == 92);
const _: () = assert!(offset_of!(NamespaceManagementCreate, nvmsetid) == 100);
const _: () = assert!(offset_of!(NamespaceManagementCreate, endgid) == 102);
const _: () = assert!(offset_of!(NamespaceManagementCreate, lbstm) == 384);
const _: () = assert!(offset_of!(NamespaceManagementCreate, placement_handles) == 512);

/// Device Self-test, command dword 10 (Base 2.1, 5.1.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceSelfTestCdw10 {
    /// Self-test code: see [`SelfTestCode`].
    #[bits(4)]
    pub stc: u8,
    #[bits(28)]
    __: u32,
}

/// Device self-test code (Base 2.1, 5.1.5).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SelfTestCode {
    /// Start a short device self-test.
    Short = 0x1,
    /// Start an extended device self-test.
    Extended = 0x2,
    /// Start a host-initiated refresh.
    HostInitiatedRefresh = 0x3,
    /// Vendor specific.
    VendorSpecific = 0xe,
    /// Abort the device self-test in progress.
    Abort = 0xf,
}

/// Doorbell Buffer Config (Base 2.1, 5.2.5): bytes of the shadow doorbell buffer (PRP1) and of the EventIdx buffer
/// (PRP2), with the smallest memory page. Both have the layout of the doorbells themselves.
pub const DOORBELL_BUFFER_BYTES: usize = 4096;

/// Keep Alive (Base 2.1, 5.1.14) has no fields; the timeout is feature 0Fh, in these units: milliseconds.
pub const KEEP_ALIVE_TIMEOUT_UNIT_NS: u64 = 1_000_000;
