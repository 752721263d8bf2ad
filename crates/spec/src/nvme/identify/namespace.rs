//! Identify Namespace (NVM 1.1, 4.1.5.1; Base 2.1, 5.1.13.2.8) and the NVM command set's own part.

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Namespace features (NVM 1.1, 4.1.5.1: NSFEAT).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nsfeat {
    /// Thin provisioning: NCAP may be less than NSZE, NUSE is tracked.
    pub thinp: bool,
    /// NAWUN, NAWUPF and NACWU apply instead of AWUN, AWUPF and ACWU.
    pub nsabp: bool,
    /// Deallocated or unwritten logical block error is supported (DULBE).
    pub dae: bool,
    /// NGUID and EUI64 are never reused.
    pub uidreuse: bool,
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined (1), with NPDGL and NPDAL (2, 3).
    #[bits(2)]
    pub optperf: u8,
    /// Multiple atomicity mode.
    pub mam: bool,
    /// NPRG, NPRA and NORS are defined.
    pub optrperf: bool,
}

/// Formatted LBA size (NVM 1.1, 4.1.5.1: FLBAS).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flbas {
    /// Format index, lower four bits.
    #[bits(4)]
    pub fidxl: u8,
    /// Metadata is part of an extended LBA.
    pub msetsp: bool,
    /// Format index, upper two bits.
    #[bits(2)]
    pub fidxu: u8,
    #[bits(1)]
    __: u8,
}

/// Namespace multi-path I/O and sharing capabilities (NMIC).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nmic {
    /// May be attached to two or more controllers at once.
    pub shrns: bool,
    /// Dispersed namespace.
    pub disns: bool,
    #[bits(6)]
    __: u8,
}

/// Format progress indicator (FPI).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fpi {
    /// Percentage of the format that remains.
    #[bits(7)]
    pub fpr: u8,
    /// The indicator is supported.
    pub fpii: bool,
}

/// Deallocate logical block features (NVM 1.1, 4.1.5.1: DLFEAT).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dlfeat {
    /// Reads of deallocated blocks: 0 not reported, 1 all 00h, 2 all FFh.
    #[bits(3)]
    pub drb: u8,
    /// The deallocate bit of Write Zeroes is supported.
    pub wzds: bool,
    /// Guard of deallocated blocks is the CRC of their data.
    pub gds: bool,
    #[bits(3)]
    __: u8,
}

/// An LBA format (NVM 1.1, 4.1.5.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaFormat {
    /// Metadata size in bytes.
    pub ms: u16,
    /// LBA data size, a power of two; 0 = not available.
    pub lbads: u8,
    /// Relative performance, bits 1:0: 0 best, 3 degraded.
    pub rp: u8,
}

const _: () = assert!(size_of::<LbaFormat>() == 4);
const _: () = assert!(offset_of!(LbaFormat, lbads) == 2);
const _: () = assert!(offset_of!(LbaFormat, rp) == 3);

/// Identify Namespace, CNS 00h and 11h (NVM 1.1, 4.1.5.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNamespace {
    /// Namespace size in logical blocks.
    pub nsze: u64,
    /// Namespace capacity in logical blocks.
    pub ncap: u64,
    /// Namespace utilization in logical blocks.
    pub nuse: u64,
    /// Namespace features.
    pub nsfeat: Nsfeat,
    /// Number of LBA formats, 0's based.
    pub nlbaf_z: u8,
    /// Formatted LBA size.
    pub flbas: Flbas,
    /// Metadata capabilities.
    pub mc: u8,
    /// End-to-end data protection capabilities.
    pub dpc: u8,
    /// End-to-end data protection type settings.
    pub dps: u8,
    /// Multi-path and sharing capabilities.
    pub nmic: Nmic,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: Fpi,
    /// Deallocate logical block features.
    pub dlfeat: Dlfeat,
    /// Namespace atomic write unit normal, 0's based.
    pub nawun_z: u16,
    /// Namespace atomic write unit power fail, 0's based.
    pub nawupf_z: u16,
    /// Namespace atomic compare and write unit, 0's based.
    pub nacwu_z: u16,
    /// Namespace atomic boundary size normal, 0's based; 0 = none.
    pub nabsn_z: u16,
    /// Namespace atomic boundary offset.
    pub nabo: u16,
    /// Namespace atomic boundary size power fail, 0's based; 0 = none.
    pub nabspf_z: u16,
    /// Namespace optimal I/O boundary in logical blocks; 0 = none.
    pub noiob: u16,
    /// NVM capacity in bytes.
    pub nvmcap: U128,
    /// Namespace preferred write granularity, 0's based.
    pub npwg_z: u16,
    /// Namespace preferred write alignment, 0's based.
    pub npwa_z: u16,
    /// Namespace preferred deallocate granularity, 0's based.
    pub npdg_z: u16,
    /// Namespace preferred deallocate alignment, 0's based.
    pub npda_z: u16,
    /// Namespace optimal write size, 0's based.
    pub nows_z: u16,
    /// Maximum single source range length of Copy in logical blocks.
    pub mssrl: u16,
    /// Maximum copy length in logical blocks.
    pub mcl: u32,
    /// Maximum source range count of Copy, 0's based.
    pub msrc_z: u8,
    /// Key per I/O status.
    pub kpios: u8,
    /// Number of unique capability LBA formats.
    pub nulbaf: u8,
    /// Reserved.
    pub reserved83: [u8; 1],
    /// Key per I/O data access alignment and granularity.
    pub kpiodaag: u32,
    /// Reserved.
    pub reserved88: [u8; 4],
    /// ANA group identifier.
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set identifier.
    pub nvmsetid: u16,
    /// Endurance group identifier.
    pub endgid: u16,
    /// Namespace globally unique identifier, big-endian.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier, big-endian.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);
const _: () = assert!(offset_of!(IdentifyNamespace, ncap) == 8);
const _: () = assert!(offset_of!(IdentifyNamespace, nuse) == 16);
const _: () = assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
const _: () = assert!(offset_of!(IdentifyNamespace, nlbaf_z) == 25);
const _: () = assert!(offset_of!(IdentifyNamespace, flbas) == 26);
const _: () = assert!(offset_of!(IdentifyNamespace, mc) == 27);
const _: () = assert!(offset_of!(IdentifyNamespace, dpc) == 28);
const _: () = assert!(offset_of!(IdentifyNamespace, dps) == 29);
const _: () = assert!(offset_of!(IdentifyNamespace, nmic) == 30);
const _: () = assert!(offset_of!(IdentifyNamespace, rescap) == 31);
const _: () = assert!(offset_of!(IdentifyNamespace, fpi) == 32);
const _: () = assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
const _: () = assert!(offset_of!(IdentifyNamespace, nawun_z) == 34);
const _: () = assert!(offset_of!(IdentifyNamespace, nawupf_z) == 36);
const _: () = assert!(offset_of!(IdentifyNamespace, nacwu_z) == 38);
const _: () = assert!(offset_of!(IdentifyNamespace, nabsn_z) == 40);
const _: () = assert!(offset_of!(IdentifyNamespace, nabo) == 42);
const _: () = assert!(offset_of!(IdentifyNamespace, nabspf_z) == 44);
const _: () = assert!(offset_of!(IdentifyNamespace, noiob) == 46);
const _: () = assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
const _: () = assert!(offset_of!(IdentifyNamespace, npwg_z) == 64);
const _: () = assert!(offset_of!(IdentifyNamespace, npwa_z) == 66);
const _: () = assert!(offset_of!(IdentifyNamespace, npdg_z) == 68);
const _: () = assert!(offset_of!(IdentifyNamespace, npda_z) == 70);
const _: () = assert!(offset_of!(IdentifyNamespace, nows_z) == 72);
const _: () = assert!(offset_of!(IdentifyNamespace, mssrl) == 74);
const _: () = assert!(offset_of!(IdentifyNamespace, mcl) == 76);
const _: () = assert!(offset_of!(IdentifyNamespace, msrc_z) == 80);
const _: () = assert!(offset_of!(IdentifyNamespace, kpios) == 81);
const _: () = assert!(offset_of!(IdentifyNamespace, nulbaf) == 82);
const _: () = assert!(offset_of!(IdentifyNamespace, kpiodaag) == 84);
const _: () = assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
const _: () = assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
const _: () = assert!(offset_of!(IdentifyNamespace, nvmsetid) == 100);
const _: () = assert!(offset_of!(IdentifyNamespace, endgid) == 102);
const _: () = assert!(offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(offset_of!(IdentifyNamespace, eui64) == 120);
const _: () = assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
const _: () = assert!(offset_of!(IdentifyNamespace, vs) == 384);

/// NVM command set Identify Namespace, CNS 05h, CSI 00h (NVM 1.1, 4.1.5.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNamespaceNvm {
    /// Logical block storage tag mask.
    pub lbstm: u64,
    /// Protection information capabilities.
    pub pic: u8,
    /// Protection information format attribute.
    pub pifa: u8,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// Extended LBA formats: bits 6:0 storage tag size, 8:7 protection information format.
    pub elbaf: [u32; 64],
    /// Namespace preferred deallocate granularity large.
    pub npdgl: u32,
    /// Namespace preferred read granularity.
    pub nprg: u32,
    /// Namespace preferred read alignment.
    pub npra: u32,
    /// Namespace optimal read size.
    pub nors: u32,
    /// Namespace preferred deallocate alignment large.
    pub npdal: u32,
    /// LBA format placement shard size.
    pub lbapss: u32,
    /// Tracked LBA allocation granularity in logical blocks.
    pub tlbaag: u32,
    /// Reserved.
    pub reserved296: [u8; 3800],
}

const _: () = assert!(size_of::<IdentifyNamespaceNvm>() == 4096);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, pic) == 8);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, pifa) == 9);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, elbaf) == 12);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, npdgl) == 268);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, nprg) == 272);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, npra) == 276);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, nors) == 280);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, npdal) == 284);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, lbapss) == 288);
const _: () = assert!(offset_of!(IdentifyNamespaceNvm, tlbaag) == 292);

/// I/O command set independent Identify Namespace, CNS 08h (Base 2.1, 5.1.13.2.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyNamespaceIndependent {
    /// Namespace features: bit 3 UIDREUSE, bit 4 RMEDIA (rotational), bit 5 VWCNP (no volatile write cache here).
    pub nsfeat: u8,
    /// Multi-path and sharing capabilities.
    pub nmic: Nmic,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: Fpi,
    /// ANA group identifier.
    pub anagrpid: u32,
    /// Namespace attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Reserved.
    pub reserved9: [u8; 1],
    /// NVM set identifier.
    pub nvmsetid: u16,
    /// Endurance group identifier.
    pub endgid: u16,
    /// Namespace status: bit 0 NRDY, ready.
    pub nstat: u8,
    /// Key per I/O status.
    pub kpios: u8,
    /// Maximum key tag.
    pub maxkt: u16,
    /// Reserved.
    pub reserved18: [u8; 2],
    /// Reachability group identifier.
    pub rgrpid: u32,
    /// Reserved.
    pub reserved24: [u8; 4072],
}

const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == 4096);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nmic) == 1);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, rescap) == 2);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, fpi) == 3);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, anagrpid) == 4);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nsattr) == 8);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nvmsetid) == 10);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, endgid) == 12);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nstat) == 14);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, kpios) == 15);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, maxkt) == 16);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, rgrpid) == 20);
