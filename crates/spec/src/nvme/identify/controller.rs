//! Identify Controller (Base 2.1, 5.1.13.2.1, figure 313) and its NVM command set part (NVM 1.1, 4.1.5.4).

use core::mem::offset_of;

use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capabilities::{Cmic, Ctratt, Fna, Frmw, Lpa, Oacs, Oaes, Oncs, Sanicap, Sgls, Trattr, Vwc};
use crate::nvme::registers::Vs;

/// Identify Controller, CNS 01h (Base 2.1, 5.1.13.2.1, figure 313).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyController {
    /// PCI vendor ID.
    pub vid: u16,
    /// PCI subsystem vendor ID.
    pub ssvid: u16,
    /// Serial number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Model number, ASCII, padded with spaces.
    pub mn: [u8; 40],
    /// Firmware revision, ASCII, padded with spaces.
    pub fr: [u8; 8],
    /// Recommended arbitration burst, a power of two.
    pub rab: u8,
    /// IEEE OUI, least significant byte first.
    pub ieee: [u8; 3],
    /// Multi-path and sharing capabilities.
    pub cmic: Cmic,
    /// Maximum data transfer size: `2^MDTS` memory pages of CAP.MPSMIN; 0 = no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: u16,
    /// Version, as the VS property.
    pub ver: Vs,
    /// RTD3 resume latency in µs.
    pub rtd3r: u32,
    /// RTD3 entry latency in µs.
    pub rtd3e: u32,
    /// Optional asynchronous events supported.
    pub oaes: Oaes,
    /// Controller attributes.
    pub ctratt: Ctratt,
    /// Read recovery levels supported.
    pub rrls: u16,
    /// Boot partition capabilities.
    pub bpcap: u8,
    /// Reserved.
    pub reserved103: [u8; 1],
    /// NVM subsystem shutdown latency in µs.
    pub nssl: u32,
    /// Reserved.
    pub reserved108: [u8; 2],
    /// Power loss signaling information.
    pub plsi: u8,
    /// Controller type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    /// FRU GUID.
    pub fguid: [u8; 16],
    /// Command retry delay time 1 in 100 ms units.
    pub crdt1: u16,
    /// Command retry delay time 2 in 100 ms units.
    pub crdt2: u16,
    /// Command retry delay time 3 in 100 ms units.
    pub crdt3: u16,
    /// Controller reachability capabilities.
    pub crcap: u8,
    /// Reserved.
    pub reserved135: [u8; 118],
    /// NVM subsystem report.
    pub nvmsr: u8,
    /// VPD write cycle information.
    pub vwci: u8,
    /// Management endpoint capabilities.
    pub mec: u8,
    /// Optional admin command support.
    pub oacs: Oacs,
    /// Abort command limit, 0's based.
    pub acl_z: u8,
    /// Asynchronous event request limit, 0's based.
    pub aerl_z: u8,
    /// Firmware updates.
    pub frmw: Frmw,
    /// Log page attributes.
    pub lpa: Lpa,
    /// Error log page entries, 0's based.
    pub elpe_z: u8,
    /// Number of power states supported, 0's based.
    pub npss_z: u8,
    /// Admin vendor specific command configuration.
    pub avscc: u8,
    /// Autonomous power state transition attributes.
    pub apsta: u8,
    /// Warning composite temperature threshold in kelvins.
    pub wctemp: u16,
    /// Critical composite temperature threshold in kelvins.
    pub cctemp: u16,
    /// Maximum time for firmware activation in 100 ms units.
    pub mtfa: u16,
    /// Host memory buffer preferred size in 4 KiB units.
    pub hmpre: u32,
    /// Host memory buffer minimum size in 4 KiB units.
    pub hmmin: u32,
    /// Total NVM capacity in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM capacity in bytes.
    pub unvmcap: U128,
    /// Replay protected memory block support.
    pub rpmbs: u32,
    /// Extended device self-test time in minutes.
    pub edstt: u16,
    /// Device self-test options: bit 0 one at a time for the subsystem.
    pub dsto: u8,
    /// Firmware update granularity in 4 KiB units.
    pub fwug: u8,
    /// Keep alive granularity in 100 ms units; 0 = no keep alive.
    pub kas: u16,
    /// Host controlled thermal management attributes.
    pub hctma: u16,
    /// Minimum thermal management temperature in kelvins.
    pub mntmt: u16,
    /// Maximum thermal management temperature in kelvins.
    pub mxtmt: u16,
    /// Sanitize capabilities.
    pub sanicap: Sanicap,
    /// Host memory buffer minimum descriptor entry size in 4 KiB units.
    pub hmminds: u32,
    /// Host memory maximum descriptor entries.
    pub hmmaxd: u16,
    /// NVM set identifier maximum.
    pub nsetidmax: u16,
    /// Endurance group identifier maximum.
    pub endgidmax: u16,
    /// ANA transition time in seconds.
    pub anatt: u8,
    /// ANA capabilities.
    pub anacap: u8,
    /// ANA group identifier maximum.
    pub anagrpmax: u32,
    /// Number of ANA group identifiers.
    pub nanagrpid: u32,
    /// Persistent event log size in 64 KiB units.
    pub pels: u32,
    /// Domain identifier (DID).
    pub domid: u16,
    /// Key per I/O capabilities.
    pub kpioc: u8,
    /// Reserved.
    pub reserved359: [u8; 1],
    /// Maximum processing time for firmware activation without reset in 100 ms units.
    pub mptfawr: u16,
    /// Reserved.
    pub reserved362: [u8; 6],
    /// Maximum endurance group capacity in bytes.
    pub megcap: U128,
    /// Temperature threshold hysteresis attributes: bits 2:0 the maximum in kelvins.
    pub tmpthha: u8,
    /// Reserved.
    pub reserved385: [u8; 1],
    /// Command quiesce time in ms.
    pub cqt: u16,
    /// Reserved.
    pub reserved388: [u8; 124],
    /// Submission queue entry size, powers of two: bits 3:0 required, 7:4 maximum.
    pub sqes: u8,
    /// Completion queue entry size, powers of two: bits 3:0 required, 7:4 maximum.
    pub cqes: u8,
    /// Maximum outstanding commands per queue; 0 = not reported.
    pub maxcmd: u16,
    /// Number of namespaces: the largest valid NSID.
    pub nn: u32,
    /// Optional NVM command support.
    pub oncs: Oncs,
    /// Fused operation support: bit 0 Compare and Write.
    pub fuses: u16,
    /// Format NVM attributes.
    pub fna: Fna,
    /// Volatile write cache.
    pub vwc: Vwc,
    /// Atomic write unit normal in logical blocks, 0's based.
    pub awun_z: u16,
    /// Atomic write unit power fail in logical blocks, 0's based.
    pub awupf_z: u16,
    /// I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// Namespace write protection capabilities.
    pub nwpc: u8,
    /// Atomic compare and write unit in logical blocks, 0's based.
    pub acwu_z: u16,
    /// Copy descriptor formats supported, one bit each.
    pub cdfs: u16,
    /// SGL support.
    pub sgls: Sgls,
    /// Maximum number of allowed namespaces; 0 = NN.
    pub mnan: u32,
    /// Maximum domain namespace attachments.
    pub maxdna: U128,
    /// Maximum I/O controller namespace attachments.
    pub maxcna: u32,
    /// Optimal aggregated queue depth.
    pub oaqd: u32,
    /// Recommended host-initiated refresh interval.
    pub rhiri: u8,
    /// Host-initiated refresh time.
    pub hirt: u8,
    /// Controller maximum memory range tracking descriptors.
    pub cmmrtd: u16,
    /// NVM subsystem maximum memory range tracking descriptors.
    pub nmmrtd: u16,
    /// Minimum memory range tracking granularity: `2^n` times 4 KiB.
    pub minmrtg: u8,
    /// Maximum memory range tracking granularity: `2^n` times 4 KiB.
    pub maxmrtg: u8,
    /// Tracking attributes.
    pub trattr: Trattr,
    /// Reserved.
    pub reserved577: [u8; 1],
    /// Maximum controller user data migration queues.
    pub mcudmq: u16,
    /// Maximum NVM subsystem user data migration queues.
    pub mnsudmq: u16,
    /// Maximum CDQ memory ranges.
    pub mcmr: u16,
    /// NVM subsystem maximum CDQ memory ranges.
    pub nmcmr: u16,
    /// Maximum controller data queue PRP count.
    pub mcdqpc: u16,
    /// Reserved.
    pub reserved588: [u8; 180],
    /// NVM subsystem NQN, UTF-8, NUL-terminated.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// Fields of NVMe over Fabrics.
    pub fabrics: [u8; 256],
    /// Power state descriptors.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == 4096);
const _: () = assert!(offset_of!(IdentifyController, ssvid) == 2);
const _: () = assert!(offset_of!(IdentifyController, sn) == 4);
const _: () = assert!(offset_of!(IdentifyController, mn) == 24);
const _: () = assert!(offset_of!(IdentifyController, fr) == 64);
const _: () = assert!(offset_of!(IdentifyController, rab) == 72);
const _: () = assert!(offset_of!(IdentifyController, ieee) == 73);
const _: () = assert!(offset_of!(IdentifyController, cmic) == 76);
const _: () = assert!(offset_of!(IdentifyController, mdts) == 77);
const _: () = assert!(offset_of!(IdentifyController, cntlid) == 78);
const _: () = assert!(offset_of!(IdentifyController, ver) == 80);
const _: () = assert!(offset_of!(IdentifyController, rtd3r) == 84);
const _: () = assert!(offset_of!(IdentifyController, rtd3e) == 88);
const _: () = assert!(offset_of!(IdentifyController, oaes) == 92);
const _: () = assert!(offset_of!(IdentifyController, ctratt) == 96);
const _: () = assert!(offset_of!(IdentifyController, rrls) == 100);
const _: () = assert!(offset_of!(IdentifyController, bpcap) == 102);
const _: () = assert!(offset_of!(IdentifyController, nssl) == 104);
const _: () = assert!(offset_of!(IdentifyController, plsi) == 110);
const _: () = assert!(offset_of!(IdentifyController, cntrltype) == 111);
const _: () = assert!(offset_of!(IdentifyController, fguid) == 112);
const _: () = assert!(offset_of!(IdentifyController, crdt1) == 128);
const _: () = assert!(offset_of!(IdentifyController, crdt2) == 130);
const _: () = assert!(offset_of!(IdentifyController, crdt3) == 132);
const _: () = assert!(offset_of!(IdentifyController, crcap) == 134);
const _: () = assert!(offset_of!(IdentifyController, nvmsr) == 253);
const _: () = assert!(offset_of!(IdentifyController, vwci) == 254);
const _: () = assert!(offset_of!(IdentifyController, mec) == 255);
const _: () = assert!(offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(offset_of!(IdentifyController, acl_z) == 258);
const _: () = assert!(offset_of!(IdentifyController, aerl_z) == 259);
const _: () = assert!(offset_of!(IdentifyController, frmw) == 260);
const _: () = assert!(offset_of!(IdentifyController, lpa) == 261);
const _: () = assert!(offset_of!(IdentifyController, elpe_z) == 262);
const _: () = assert!(offset_of!(IdentifyController, npss_z) == 263);
const _: () = assert!(offset_of!(IdentifyController, avscc) == 264);
const _: () = assert!(offset_of!(IdentifyController, apsta) == 265);
const _: () = assert!(offset_of!(IdentifyController, wctemp) == 266);
const _: () = assert!(offset_of!(IdentifyController, cctemp) == 268);
const _: () = assert!(offset_of!(IdentifyController, mtfa) == 270);
const _: () = assert!(offset_of!(IdentifyController, hmpre) == 272);
const _: () = assert!(offset_of!(IdentifyController, hmmin) == 276);
const _: () = assert!(offset_of!(IdentifyController, tnvmcap) == 280);
const _: () = assert!(offset_of!(IdentifyController, unvmcap) == 296);
const _: () = assert!(offset_of!(IdentifyController, rpmbs) == 312);
const _: () = assert!(offset_of!(IdentifyController, edstt) == 316);
const _: () = assert!(offset_of!(IdentifyController, dsto) == 318);
const _: () = assert!(offset_of!(IdentifyController, fwug) == 319);
const _: () = assert!(offset_of!(IdentifyController, kas) == 320);
const _: () = assert!(offset_of!(IdentifyController, hctma) == 322);
const _: () = assert!(offset_of!(IdentifyController, mntmt) == 324);
const _: () = assert!(offset_of!(IdentifyController, mxtmt) == 326);
const _: () = assert!(offset_of!(IdentifyController, sanicap) == 328);
const _: () = assert!(offset_of!(IdentifyController, hmminds) == 332);
const _: () = assert!(offset_of!(IdentifyController, hmmaxd) == 336);
const _: () = assert!(offset_of!(IdentifyController, nsetidmax) == 338);
const _: () = assert!(offset_of!(IdentifyController, endgidmax) == 340);
const _: () = assert!(offset_of!(IdentifyController, anatt) == 342);
const _: () = assert!(offset_of!(IdentifyController, anacap) == 343);
const _: () = assert!(offset_of!(IdentifyController, anagrpmax) == 344);
const _: () = assert!(offset_of!(IdentifyController, nanagrpid) == 348);
const _: () = assert!(offset_of!(IdentifyController, pels) == 352);
const _: () = assert!(offset_of!(IdentifyController, domid) == 356);
const _: () = assert!(offset_of!(IdentifyController, kpioc) == 358);
const _: () = assert!(offset_of!(IdentifyController, mptfawr) == 360);
const _: () = assert!(offset_of!(IdentifyController, megcap) == 368);
const _: () = assert!(offset_of!(IdentifyController, tmpthha) == 384);
const _: () = assert!(offset_of!(IdentifyController, cqt) == 386);
const _: () = assert!(offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(offset_of!(IdentifyController, cqes) == 513);
const _: () = assert!(offset_of!(IdentifyController, maxcmd) == 514);
const _: () = assert!(offset_of!(IdentifyController, nn) == 516);
const _: () = assert!(offset_of!(IdentifyController, oncs) == 520);
const _: () = assert!(offset_of!(IdentifyController, fuses) == 522);
const _: () = assert!(offset_of!(IdentifyController, fna) == 524);
const _: () = assert!(offset_of!(IdentifyController, vwc) == 525);
const _: () = assert!(offset_of!(IdentifyController, awun_z) == 526);
const _: () = assert!(offset_of!(IdentifyController, awupf_z) == 528);
const _: () = assert!(offset_of!(IdentifyController, icsvscc) == 530);
const _: () = assert!(offset_of!(IdentifyController, nwpc) == 531);
const _: () = assert!(offset_of!(IdentifyController, acwu_z) == 532);
const _: () = assert!(offset_of!(IdentifyController, cdfs) == 534);
const _: () = assert!(offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(offset_of!(IdentifyController, mnan) == 540);
const _: () = assert!(offset_of!(IdentifyController, maxdna) == 544);
const _: () = assert!(offset_of!(IdentifyController, maxcna) == 560);
const _: () = assert!(offset_of!(IdentifyController, oaqd) == 564);
const _: () = assert!(offset_of!(IdentifyController, rhiri) == 568);
const _: () = assert!(offset_of!(IdentifyController, hirt) == 569);
const _: () = assert!(offset_of!(IdentifyController, cmmrtd) == 570);
const _: () = assert!(offset_of!(IdentifyController, nmmrtd) == 572);
const _: () = assert!(offset_of!(IdentifyController, minmrtg) == 574);
const _: () = assert!(offset_of!(IdentifyController, maxmrtg) == 575);
const _: () = assert!(offset_of!(IdentifyController, trattr) == 576);
const _: () = assert!(offset_of!(IdentifyController, mcudmq) == 578);
const _: () = assert!(offset_of!(IdentifyController, mnsudmq) == 580);
const _: () = assert!(offset_of!(IdentifyController, mcmr) == 582);
const _: () = assert!(offset_of!(IdentifyController, nmcmr) == 584);
const _: () = assert!(offset_of!(IdentifyController, mcdqpc) == 586);
const _: () = assert!(offset_of!(IdentifyController, subnqn) == 768);
const _: () = assert!(offset_of!(IdentifyController, fabrics) == 1792);
const _: () = assert!(offset_of!(IdentifyController, psd) == 2048);
const _: () = assert!(offset_of!(IdentifyController, vs) == 3072);

/// A power state descriptor (Base 2.1, 5.1.13.2.1, figure 314).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerState {
    /// Maximum power, in 0.01 W, or 0.0001 W with MXPS.
    pub mp: u16,
    /// Reserved.
    pub reserved2: [u8; 1],
    /// Bit 0 MXPS, bit 1 NOPS (non-operational).
    pub attributes: u8,
    /// Entry latency in µs.
    pub enlat: u32,
    /// Exit latency in µs.
    pub exlat: u32,
    /// Relative read throughput.
    pub rrt: u8,
    /// Relative read latency.
    pub rrl: u8,
    /// Relative write throughput.
    pub rwt: u8,
    /// Relative write latency.
    pub rwl: u8,
    /// Idle power.
    pub idlp: u16,
    /// Idle power scale, bits 7:6.
    pub ips: u8,
    /// Reserved.
    pub reserved19: [u8; 1],
    /// Active power.
    pub actp: u16,
    /// Active power workload in bits 2:0, scale in bits 7:6.
    pub apws: u8,
    /// Reserved.
    pub reserved23: [u8; 9],
}

const _: () = assert!(size_of::<PowerState>() == 32);
const _: () = assert!(offset_of!(PowerState, attributes) == 3);
const _: () = assert!(offset_of!(PowerState, enlat) == 4);
const _: () = assert!(offset_of!(PowerState, exlat) == 8);
const _: () = assert!(offset_of!(PowerState, rrt) == 12);
const _: () = assert!(offset_of!(PowerState, rrl) == 13);
const _: () = assert!(offset_of!(PowerState, rwt) == 14);
const _: () = assert!(offset_of!(PowerState, rwl) == 15);
const _: () = assert!(offset_of!(PowerState, idlp) == 16);
const _: () = assert!(offset_of!(PowerState, ips) == 18);
const _: () = assert!(offset_of!(PowerState, actp) == 20);
const _: () = assert!(offset_of!(PowerState, apws) == 22);

/// AOCS: Reporting Allocated LBA Supported, Get LBA Status with action 02h (NVM 1.1, 4.1.5.4).
pub const AOCS_RALBAS: u16 = 1 << 0;

/// NVM command set Identify Controller, CNS 06h, CSI 00h (NVM 1.1, 4.1.5.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdentifyControllerNvm {
    /// Verify size limit, as MDTS.
    pub vsl: u8,
    /// Write Zeroes size limit, as MDTS.
    pub wzsl: u8,
    /// Write Uncorrectable size limit, as MDTS.
    pub wusl: u8,
    /// Dataset Management ranges limit; 0 = not reported.
    pub dmrl: u8,
    /// Dataset Management range size limit in logical blocks.
    pub dmrsl: u32,
    /// Dataset Management size limit in logical blocks.
    pub dmsl: u64,
    /// Key per I/O capabilities.
    pub kpiocap: u8,
    /// Write Zeroes with deallocate size limit, as MDTS.
    pub wzdsl: u8,
    /// Admin optional command support: see [`AOCS_RALBAS`].
    pub aocs: u16,
    /// Version of the NVM command set specification, as VS.
    pub ver: u32,
    /// LBA migration queue format.
    pub lbamqf: u8,
    /// Reserved.
    pub reserved25: [u8; 4071],
}

const _: () = assert!(size_of::<IdentifyControllerNvm>() == 4096);
const _: () = assert!(offset_of!(IdentifyControllerNvm, wzsl) == 1);
const _: () = assert!(offset_of!(IdentifyControllerNvm, wusl) == 2);
const _: () = assert!(offset_of!(IdentifyControllerNvm, dmrl) == 3);
const _: () = assert!(offset_of!(IdentifyControllerNvm, dmrsl) == 4);
const _: () = assert!(offset_of!(IdentifyControllerNvm, dmsl) == 8);
const _: () = assert!(offset_of!(IdentifyControllerNvm, kpiocap) == 16);
const _: () = assert!(offset_of!(IdentifyControllerNvm, wzdsl) == 17);
const _: () = assert!(offset_of!(IdentifyControllerNvm, aocs) == 18);
const _: () = assert!(offset_of!(IdentifyControllerNvm, ver) == 20);
const _: () = assert!(offset_of!(IdentifyControllerNvm, lbamqf) == 24);
