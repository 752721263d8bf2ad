//! Fields of the NVM command set's I/O commands (NVM 1.1, 3.3) and of Get LBA Status (NVM 1.1, 4.2.1).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read, Write, Compare and Verify, command dword 12 (NVM 1.1, 3.3.1, 3.3.4, 3.3.5, 3.3.6).
///
/// Verify has no DTYPE or CETYPE; Read and Compare no DTYPE.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadWriteCdw12 {
    /// Number of logical blocks, 0's based.
    pub nlb_z: u16,
    /// Command extension type.
    #[bits(4)]
    pub cetype: u8,
    /// Directive type (Write).
    #[bits(4)]
    pub dtype: u8,
    /// Storage tag check.
    pub stc: bool,
    #[bits(1)]
    __: u8,
    /// Protection information: bit 3 PRACT, bits 2:0 PRCHK (see [`PRINFO_PRACT`]).
    #[bits(4)]
    pub prinfo: u8,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub lr: bool,
}

/// PRINFO: protection information action (NVM 1.1, 3.3).
pub const PRINFO_PRACT: u8 = 1 << 3;
/// PRINFO: check the guard field.
pub const PRINFO_PRCHK_GUARD: u8 = 1 << 2;
/// PRINFO: check the application tag.
pub const PRINFO_PRCHK_APPLICATION_TAG: u8 = 1 << 1;
/// PRINFO: check the reference tag.
pub const PRINFO_PRCHK_REFERENCE_TAG: u8 = 1 << 0;

/// Read and Write, command dword 13 (NVM 1.1, 3.3.4 and 3.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadWriteCdw13 {
    /// DSM: access frequency.
    #[bits(4)]
    pub access_frequency: u8,
    /// DSM: access latency.
    #[bits(2)]
    pub access_latency: u8,
    /// DSM: part of a sequential read or write.
    pub sequential: bool,
    /// DSM: the data is not compressible.
    pub incompressible: bool,
    __: u8,
    /// Directive specific (Write).
    pub dspec: u16,
}

/// The greatest access frequency that has a meaning (1000b: overwritten soon); the values above are reserved (NVM 1.1, 3.3.6).
pub const ACCESS_FREQUENCY_MAX: u8 = 8;

/// Write Zeroes, command dword 12 (NVM 1.1, 3.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WriteZeroesCdw12 {
    /// Number of logical blocks, 0's based.
    pub nlb_z: u16,
    /// Command extension type.
    #[bits(4)]
    pub cetype: u8,
    #[bits(3)]
    __: u8,
    /// Namespace zeroes: zero the whole namespace.
    pub nsz: bool,
    /// Storage tag check.
    pub stc: bool,
    /// Deallocate.
    pub deac: bool,
    /// Protection information.
    #[bits(4)]
    pub prinfo: u8,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub lr: bool,
}

/// Write Uncorrectable, command dword 12 (NVM 1.1, 3.3.7).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WriteUncorrectableCdw12 {
    /// Number of logical blocks, 0's based.
    pub nlb_z: u16,
    #[bits(4)]
    __: u8,
    /// Directive type.
    #[bits(4)]
    pub dtype: u8,
    __: u8,
}

/// Dataset Management, command dword 10 (NVM 1.1, 3.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DsmCdw10 {
    /// Number of ranges, 0's based.
    pub nr_z: u8,
    #[bits(24)]
    __: u32,
}

/// Dataset Management, command dword 11 (NVM 1.1, 3.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DsmCdw11 {
    /// Attribute: integral dataset for read.
    pub idr: bool,
    /// Attribute: integral dataset for write.
    pub idw: bool,
    /// Attribute: deallocate.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// Ranges a Dataset Management command can carry.
pub const DSM_RANGES_MAX: usize = 256;

/// A Dataset Management range (NVM 1.1, 3.3.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DsmRange {
    /// Context attributes.
    pub cattr: u32,
    /// Length in logical blocks. Not 0's based: 0 is an empty range.
    pub nlb: u32,
    /// Starting LBA.
    pub slba: u64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);
const _: () = assert!(offset_of!(DsmRange, slba) == 8);

/// Copy, command dword 12 (NVM 1.1, 3.3.2). Dwords 10 and 11 are the starting destination LBA.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyCdw12 {
    /// Number of source ranges, 0's based.
    pub nr_z: u8,
    /// Descriptor format: see [`CopyDescriptorFormat`].
    #[bits(4)]
    pub desfmt: u8,
    /// Protection information of the reads.
    #[bits(4)]
    pub prinfor: u8,
    /// Command extension type.
    #[bits(4)]
    pub cetype: u8,
    /// Directive type.
    #[bits(4)]
    pub dtype: u8,
    /// Storage tag check of the writes.
    pub stcw: bool,
    /// Storage tag check of the reads.
    pub stcr: bool,
    /// Protection information of the writes.
    #[bits(4)]
    pub prinfow: u8,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub lr: bool,
}

/// Copy source range descriptor format (NVM 1.1, 3.3.2).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CopyDescriptorFormat {
    /// This namespace, 16-bit guard: [`CopyRange0`].
    Format0 = 0,
    /// This namespace, 32-bit or 64-bit guard: [`CopyRange1`].
    Format1 = 1,
    /// Any namespace, 16-bit guard: [`CopyRange0`] with `snsid` and `sopt`.
    Format2 = 2,
    /// Any namespace, 32-bit or 64-bit guard: [`CopyRange1`] with `snsid` and `sopt`.
    Format3 = 3,
    /// Any namespace, no protection information.
    Format4 = 4,
}

/// Copy source range, descriptor formats 0 and 2 (NVM 1.1, 3.3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct CopyRange0 {
    /// Source namespace (format 2); reserved in format 0.
    pub snsid: u32,
    /// Reserved.
    pub reserved4: u32,
    /// Starting LBA.
    pub slba: u64,
    /// Number of logical blocks, 0's based.
    pub nlb_z: u16,
    /// Command extension type, in bits 3:0.
    pub cetype: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Command extension value.
    pub cev: u16,
    /// Source options (format 2); reserved in format 0.
    pub sopt: u16,
    /// Expected logical block reference tag or storage tag.
    pub elbrt: u32,
    /// Expected logical block application tag.
    pub elbat: u16,
    /// Expected logical block application tag mask.
    pub elbatm: u16,
}

const _: () = assert!(size_of::<CopyRange0>() == 32);
const _: () = assert!(offset_of!(CopyRange0, slba) == 8);
const _: () = assert!(offset_of!(CopyRange0, nlb_z) == 16);
const _: () = assert!(offset_of!(CopyRange0, elbrt) == 24);

/// Copy source range, descriptor formats 1 and 3 (NVM 1.1, 3.3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct CopyRange1 {
    /// Source namespace (format 3); reserved in format 1.
    pub snsid: u32,
    /// Reserved.
    pub reserved4: u32,
    /// Starting LBA.
    pub slba: u64,
    /// Number of logical blocks, 0's based.
    pub nlb_z: u16,
    /// Command extension type, in bits 3:0.
    pub cetype: u8,
    /// Reserved.
    pub reserved19: u8,
    /// Command extension value.
    pub cev: u16,
    /// Source options (format 3); reserved in format 1.
    pub sopt: u16,
    /// Reserved.
    pub reserved24: [u8; 2],
    /// Expected logical block tags.
    pub elbt: [u8; 10],
    /// Expected logical block application tag.
    pub elbat: u16,
    /// Expected logical block application tag mask.
    pub elbatm: u16,
}

const _: () = assert!(size_of::<CopyRange1>() == 40);
const _: () = assert!(offset_of!(CopyRange1, nlb_z) == 16);
const _: () = assert!(offset_of!(CopyRange1, elbt) == 26);
const _: () = assert!(offset_of!(CopyRange1, elbat) == 36);

/// Get LBA Status, command dword 13 (NVM 1.1, 4.2.1). Dwords 10 and 11 are SLBA, dword 12 is MNDW (0's based).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLbaStatusCdw13 {
    /// Range length in logical blocks; 0 = to the end of the namespace.
    pub rl: u16,
    __: u8,
    /// Action type: see [`LbaStatusAction`].
    pub atype: u8,
}

/// Get LBA Status: action type (NVM 1.1, 4.2.1).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LbaStatusAction {
    /// Return allocated LBAs.
    Allocated = 0x02,
    /// Scan, and return untracked and tracked potentially unrecoverable LBAs.
    ScanAndReturn = 0x10,
    /// Return tracked potentially unrecoverable LBAs.
    Tracked = 0x11,
}

/// The head of Get LBA Status's answer; entries follow (NVM 1.1, 4.2.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct LbaStatusHeader {
    /// Number of LBA status descriptors.
    pub nlsd: u32,
    /// Completion condition: see [`LbaStatusCompletion`].
    pub cmpc: u8,
    /// Reserved.
    pub reserved5: [u8; 3],
}

const _: () = assert!(size_of::<LbaStatusHeader>() == 8);

/// Why Get LBA Status ended (NVM 1.1, 4.2.1: CMPC).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LbaStatusCompletion {
    /// No indication.
    None = 0,
    /// The buffer or the time ended before the range did.
    Incomplete = 1,
    /// The whole range was looked at.
    Complete = 2,
}

/// An LBA status descriptor (NVM 1.1, 4.2.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct LbaStatusDescriptor {
    /// Descriptor starting LBA.
    pub dslba: u64,
    /// Number of logical blocks, 0's based.
    pub nlb_z: u32,
    /// Reserved.
    pub reserved12: u8,
    /// Status: bits 2:0 (see [`LBA_STATUS_ALLOCATED`]).
    pub stas: u8,
    /// Reserved.
    pub reserved14: [u8; 2],
}

const _: () = assert!(size_of::<LbaStatusDescriptor>() == 16);
const _: () = assert!(offset_of!(LbaStatusDescriptor, stas) == 13);

/// LBA status: the blocks may not be readable (actions 10h and 11h).
pub const LBA_STATUS_POTENTIALLY_UNRECOVERABLE: u8 = 0b001;
/// LBA status: the last write of each block was a Write Uncorrectable (actions 10h and 11h).
pub const LBA_STATUS_WRITTEN_UNCORRECTABLE: u8 = 0b011;
/// LBA status: the blocks are allocated (action 02h).
pub const LBA_STATUS_ALLOCATED: u8 = 0b010;
