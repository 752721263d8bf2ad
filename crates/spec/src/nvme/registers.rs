//! Controller properties in BAR0 and the doorbells (Base 2.1, 3.1.4; PCIe Transport 1.1, 3.1).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controller Capabilities, 64 bits.
pub const CAP: u64 = 0x00;
/// Version, 32 bits.
pub const VS: u64 = 0x08;
/// Interrupt Mask Set, 32 bits.
pub const INTMS: u64 = 0x0c;
/// Interrupt Mask Clear, 32 bits.
pub const INTMC: u64 = 0x10;
/// Controller Configuration, 32 bits.
pub const CC: u64 = 0x14;
/// Controller Status, 32 bits.
pub const CSTS: u64 = 0x1c;
/// NVM Subsystem Reset, 32 bits.
pub const NSSR: u64 = 0x20;
/// Admin Queue Attributes, 32 bits.
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub const ACQ: u64 = 0x30;
/// Controller Memory Buffer Location, 32 bits.
pub const CMBLOC: u64 = 0x38;
/// Controller Memory Buffer Size, 32 bits.
pub const CMBSZ: u64 = 0x3c;
/// Boot Partition Information, 32 bits.
pub const BPINFO: u64 = 0x40;
/// Boot Partition Read Select, 32 bits.
pub const BPRSEL: u64 = 0x44;
/// Boot Partition Memory Buffer Location, 64 bits.
pub const BPMBL: u64 = 0x48;
/// Controller Memory Buffer Memory Space Control, 64 bits.
pub const CMBMSC: u64 = 0x50;
/// Controller Memory Buffer Status, 32 bits.
pub const CMBSTS: u64 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size, 32 bits.
pub const CMBEBS: u64 = 0x5c;
/// Controller Memory Buffer Sustained Write Throughput, 32 bits.
pub const CMBSWTP: u64 = 0x60;
/// NVM Subsystem Shutdown, 32 bits.
pub const NSSD: u64 = 0x64;
/// Controller Ready Timeouts, 32 bits.
pub const CRTO: u64 = 0x68;
/// Persistent Memory Region Capabilities, 32 bits.
pub const PMRCAP: u64 = 0xe00;
/// Persistent Memory Region Control, 32 bits.
pub const PMRCTL: u64 = 0xe04;
/// Persistent Memory Region Status, 32 bits.
pub const PMRSTS: u64 = 0xe08;
/// Persistent Memory Region Elasticity Buffer Size, 32 bits.
pub const PMREBS: u64 = 0xe0c;
/// Persistent Memory Region Sustained Write Throughput, 32 bits.
pub const PMRSWTP: u64 = 0xe10;
/// Persistent Memory Region Memory Space Control Lower, 32 bits.
pub const PMRMSCL: u64 = 0xe14;
/// Persistent Memory Region Memory Space Control Upper, 32 bits.
pub const PMRMSCU: u64 = 0xe18;
/// First byte of the doorbells (PCIe Transport 1.1, 3.1.2).
pub const DOORBELLS: u64 = 0x1000;

/// "NVMe": the value that, written to NSSR, resets the subsystem (Base 2.1, 3.1.4.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;
/// "Nrml": the value that, written to NSSD, starts a normal subsystem shutdown (Base 2.1, 3.1.4.20).
pub const NSSD_NORMAL: u32 = 0x4e72_6d6c;
/// "Abrt": the value that, written to NSSD, starts an abrupt subsystem shutdown.
pub const NSSD_ABRUPT: u32 = 0x4162_7274;

/// BAR0 offset of the tail doorbell of submission queue `qid` (PCIe Transport 1.1, 3.1.2.1).
pub const fn sq_tail_doorbell(qid: u16, dstrd: u8) -> u64 {
    DOORBELLS + (2 * qid as u64) * doorbell_stride_bytes(dstrd)
}

/// BAR0 offset of the head doorbell of completion queue `qid` (PCIe Transport 1.1, 3.1.2.2).
pub const fn cq_head_doorbell(qid: u16, dstrd: u8) -> u64 {
    DOORBELLS + (2 * qid as u64 + 1) * doorbell_stride_bytes(dstrd)
}

/// Bytes from one doorbell to the next: `4 << DSTRD`. DSTRD is a four-bit field; higher bits are ignored.
pub const fn doorbell_stride_bytes(dstrd: u8) -> u64 {
    4 << (dstrd & 0xf)
}

/// Controller Capabilities (Base 2.1, 3.1.4.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cap {
    /// Maximum queue entries supported, 0's based (MQES).
    pub mqes_z: u16,
    /// Contiguous queues required.
    pub cqr: bool,
    /// Weighted round robin with urgent priority class is supported (AMS bit 0).
    pub ams_wrr: bool,
    /// Vendor specific arbitration is supported (AMS bit 1).
    pub ams_vendor: bool,
    #[bits(5)]
    __: u8,
    /// Timeout for RDY to follow EN, in 500 ms units (TO).
    pub to: u8,
    /// Doorbell stride: `4 << DSTRD` bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM subsystem reset supported.
    pub nssrs: bool,
    /// Command sets supported: bit 0 NVM, bit 6 one or more by CNS 1Ch, bit 7 no I/O command set.
    pub css: u8,
    /// Boot partitions supported.
    pub bps: bool,
    /// Controller power scope.
    #[bits(2)]
    pub cps: u8,
    /// Memory page size minimum: `4096 << MPSMIN` bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory page size maximum: `4096 << MPSMAX` bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent memory region supported.
    pub pmrs: bool,
    /// Controller memory buffer supported.
    pub cmbs: bool,
    /// NVM subsystem shutdown supported.
    pub nsss: bool,
    /// Controller ready with media supported (CRMS bit 0).
    pub crwms: bool,
    /// Controller ready independent of media supported (CRMS bit 1).
    pub crims: bool,
    /// NVM subsystem shutdown enhancements supported.
    pub nsses: bool,
    #[bits(2)]
    __: u8,
}

/// [`Cap::css`]: NVM command set supported (NCSS).
pub const CAP_CSS_NVM: u8 = 1 << 0;
/// [`Cap::css`]: one or more I/O command sets, listed by CNS 1Ch (IOCSS).
pub const CAP_CSS_IOCSS: u8 = 1 << 6;
/// [`Cap::css`]: no I/O command set (NOIOCSS).
pub const CAP_CSS_NONE: u8 = 1 << 7;

/// Version (Base 2.1, 3.1.4.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vs {
    /// Tertiary version number (TER).
    pub ter: u8,
    /// Minor version number (MNR).
    pub mnr: u8,
    /// Major version number (MJR).
    pub mjr: u16,
}

impl Vs {
    /// NVM Express 2.1.
    pub const V2_1: Self = Self::new().with_mjr(2).with_mnr(1);
    /// NVM Express 1.4.
    pub const V1_4: Self = Self::new().with_mjr(1).with_mnr(4);
}

/// Controller Configuration (Base 2.1, 3.1.4.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cc {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O command set selected: see [`CommandSetSelected`].
    #[bits(3)]
    pub css: u8,
    /// Memory page size: `4096 << MPS` bytes.
    #[bits(4)]
    pub mps: u8,
    /// Arbitration mechanism selected: 0 round robin, 1 weighted round robin, 7 vendor specific.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown notification: see [`ShutdownNotification`].
    #[bits(2)]
    pub shn: u8,
    /// I/O submission queue entry size, as a power of two.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O completion queue entry size, as a power of two.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller ready independent of media enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// CC.CSS (Base 2.1, 3.1.4.5).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CommandSetSelected {
    /// The NVM command set.
    Nvm = 0,
    /// All supported I/O command sets.
    All = 6,
    /// Admin command set only.
    AdminOnly = 7,
}

/// CC.SHN (Base 2.1, 3.1.4.5).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ShutdownNotification {
    /// No notification; no effect.
    None = 0,
    /// Normal shutdown.
    Normal = 1,
    /// Abrupt shutdown.
    Abrupt = 2,
}

/// Controller Status (Base 2.1, 3.1.4.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Csts {
    /// Ready.
    pub rdy: bool,
    /// Controller fatal status.
    pub cfs: bool,
    /// Shutdown status: see [`ShutdownStatus`].
    #[bits(2)]
    pub shst: u8,
    /// NVM subsystem reset occurred (write 1 to clear).
    pub nssro: bool,
    /// Processing paused.
    pub pp: bool,
    /// Shutdown type: `shst` reports a subsystem shutdown.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// CSTS.SHST (Base 2.1, 3.1.4.6).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ShutdownStatus {
    /// Normal operation.
    Normal = 0,
    /// Shutdown processing is going on.
    Occurring = 1,
    /// Shutdown processing has ended.
    Complete = 2,
}

/// Admin Queue Attributes (Base 2.1, 3.1.4.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Aqa {
    /// Admin submission queue size, 0's based.
    #[bits(12)]
    pub asqs_z: u16,
    #[bits(4)]
    __: u8,
    /// Admin completion queue size, 0's based.
    #[bits(12)]
    pub acqs_z: u16,
    #[bits(4)]
    __: u8,
}

/// Controller Ready Timeouts (Base 2.1, 3.1.4.21), in 500 ms units.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Crto {
    /// Controller ready with media timeout.
    pub crwmt: u16,
    /// Controller ready independent of media timeout.
    pub crimt: u16,
}
