//! Capability bits of Identify Controller (Base 2.1, 5.1.13.2.1, figure 313).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controller multi-path I/O and namespace sharing capabilities (CMIC).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmic {
    /// The subsystem may have more than one port.
    pub mps: bool,
    /// The subsystem may have more than one controller.
    pub mcs: bool,
    /// The controller belongs to an SR-IOV virtual function.
    pub ft: bool,
    /// Asymmetric namespace access reporting.
    pub anars: bool,
    #[bits(4)]
    __: u8,
}

/// Optional asynchronous events supported (OAES).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oaes {
    __: u8,
    /// Attached namespace attribute notices.
    pub nsan: bool,
    /// Firmware activation notices.
    pub fan: bool,
    #[bits(1)]
    __: u8,
    /// Asymmetric namespace access change notices.
    pub anacn: bool,
    /// Predictable latency event aggregate log change notices.
    pub plealcn: bool,
    /// LBA status information alert notices.
    pub lsian: bool,
    /// Endurance group event aggregate log change notices.
    pub egealpcn: bool,
    /// Normal NVM subsystem shutdown event.
    pub nnss: bool,
    /// Temperature threshold hysteresis recovery event.
    pub tthr: bool,
    /// Reachability groups change notices.
    pub rgcns: bool,
    #[bits(1)]
    __: u8,
    /// Allocated namespace attribute notices.
    pub ansan: bool,
    #[bits(12)]
    __: u16,
}

/// Controller attributes (CTRATT).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ctratt {
    /// 128-bit host identifier.
    pub hids: bool,
    /// Non-operational power state permissive mode.
    pub nopspm: bool,
    /// NVM sets.
    pub nsets: bool,
    /// Read recovery levels.
    pub rrlvls: bool,
    /// Endurance groups.
    pub egs: bool,
    /// Predictable latency mode.
    pub plm: bool,
    /// Traffic based keep alive.
    pub tbkas: bool,
    /// Namespace granularity.
    pub ng: bool,
    /// Submission queue associations.
    pub sqa: bool,
    /// UUID list (CNS 17h).
    pub ulist: bool,
    /// Multi-domain subsystem.
    pub mds: bool,
    /// Fixed capacity management.
    pub fcm: bool,
    /// Variable capacity management.
    pub vcm: bool,
    /// Delete endurance group.
    pub deg: bool,
    /// Delete NVM set.
    pub dnvms: bool,
    /// Extended LBA formats.
    pub elbas: bool,
    /// MDTS and size limits exclude metadata.
    pub mem: bool,
    /// Host memory buffer restriction on non-operational power states.
    pub hmbr: bool,
    /// Reservations and host identifier interaction.
    pub rhii: bool,
    /// Flexible data placement.
    pub fdps: bool,
    #[bits(12)]
    __: u16,
}

/// Optional admin command support (OACS).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oacs {
    /// Security Send and Receive.
    pub ssrs: bool,
    /// Format NVM.
    pub fnvms: bool,
    /// Firmware Commit and Firmware Image Download.
    pub fwds: bool,
    /// Namespace Management and Attachment.
    pub nms: bool,
    /// Device Self-test.
    pub dsts: bool,
    /// Directives.
    pub dirs: bool,
    /// NVMe-MI Send and Receive.
    pub nsrs: bool,
    /// Virtualization Management.
    pub vms: bool,
    /// Doorbell Buffer Config.
    pub dbcs: bool,
    /// Get LBA Status (actions 10h and 11h).
    pub glss: bool,
    /// Command and feature lockdown.
    pub cfls: bool,
    /// Host managed live migration.
    pub hmlms: bool,
    #[bits(4)]
    __: u8,
}

/// Firmware updates (FRMW).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frmw {
    /// Slot 1 is read only.
    pub ffsro: bool,
    /// Number of firmware slots, 1 to 7.
    #[bits(3)]
    pub nofs: u8,
    /// Activation without a reset.
    pub fawr: bool,
    /// Overlapping firmware update commands are detected.
    pub smud: bool,
    #[bits(2)]
    __: u8,
}

/// Log page attributes (LPA).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lpa {
    /// SMART log for each namespace.
    pub smarts: bool,
    /// Commands Supported and Effects log.
    pub cses: bool,
    /// Extended data: NUMDU, LPOL and LPOU.
    pub lpeds: bool,
    /// Telemetry logs and notices.
    pub ts: bool,
    /// Persistent event log.
    pub pes: bool,
    /// LIDs 00h, 05h, 12h and 13h all supported.
    pub mlps: bool,
    /// Telemetry data area 4.
    pub da4s: bool,
    #[bits(1)]
    __: u8,
}

/// Optional NVM command support (ONCS).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oncs {
    /// Compare.
    pub nvmcmps: bool,
    /// Write Uncorrectable.
    pub nvmwusv: bool,
    /// Dataset Management.
    pub nvmdsmsv: bool,
    /// Write Zeroes.
    pub nvmwzsv: bool,
    /// Save in Set Features, Select in Get Features.
    pub ssfs: bool,
    /// Reservations.
    pub reservs: bool,
    /// Timestamp.
    pub tss: bool,
    /// Verify.
    pub nvmvfys: bool,
    /// Copy.
    pub nvmcpys: bool,
    /// A Copy command of one range is atomic as a Write is.
    pub nvmcsa: bool,
    /// All copies are fast.
    pub nvmafc: bool,
    /// WZDSL also limits Write Zeroes with DEAC.
    pub maxwzd: bool,
    /// Namespace zeroes (NSZ) in Write Zeroes.
    pub nszs: bool,
    #[bits(3)]
    __: u8,
}

/// Format NVM attributes (FNA).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fna {
    /// A format applies to all namespaces.
    pub fns: bool,
    /// A secure erase applies to all namespaces.
    pub sens: bool,
    /// Cryptographic erase.
    pub cryes: bool,
    /// NSID FFFFFFFFh is NOT supported.
    pub fnvmbs: bool,
    #[bits(4)]
    __: u8,
}

/// Volatile write cache (VWC).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwc {
    /// There is one.
    pub vwcp: bool,
    /// Flush with NSID FFFFFFFFh: 0 not said, 2 refused, 3 flushes all.
    #[bits(2)]
    pub fb: u8,
    #[bits(5)]
    __: u8,
}

/// Sanitize capabilities (SANICAP).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sanicap {
    /// Crypto erase.
    pub ces: bool,
    /// Block erase.
    pub bes: bool,
    /// Overwrite.
    pub ows: bool,
    /// Media verification state.
    pub vers: bool,
    #[bits(25)]
    __: u32,
    /// No-deallocate inhibited.
    pub ndi: bool,
    /// Media changed after a sanitize with no-deallocate: 0 not said, 1 no, 2 yes.
    #[bits(2)]
    pub nodmmas: u8,
}

/// SGL support (SGLS).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sgls {
    /// 0 none, 1 with no alignment need, 2 dword aligned and granular.
    #[bits(2)]
    pub sgls: u8,
    /// Keyed SGL data block descriptor.
    pub ksdbs: bool,
    #[bits(5)]
    __: u8,
    /// SGL descriptor threshold: recommended maximum, 0 = not reported.
    pub sdt: u8,
    /// Bit bucket descriptor.
    pub sbbds: bool,
    /// MPTR may be a byte aligned contiguous buffer (PSDT 01b).
    pub bamds: bool,
    /// SGL longer than the data is accepted.
    pub sldtls: bool,
    /// MPTR as an SGL segment (PSDT 10b).
    pub mds: bool,
    /// Address as an offset.
    pub aos: bool,
    /// Transport SGL data block descriptor.
    pub tsdbd: bool,
    #[bits(10)]
    __: u16,
}

/// Tracking attributes (TRATTR).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Trattr {
    /// Track host memory changes.
    pub thmcs: bool,
    /// Track user data changes.
    pub tudcs: bool,
    /// Range lengths must be powers of two.
    pub mrtll: bool,
    #[bits(5)]
    __: u8,
}
