//! The submission queue entry (Base 2.1, 4.1.1, figures 91 and 92).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::opcode::{AdminOpcode, NvmOpcode};
use super::prp_sgl::SglDescriptor;

/// Bytes in a submission queue entry of the admin queue and of the NVM command set.
pub const COMMAND_BYTES: usize = 64;

/// A submission queue entry (Base 2.1, 4.1.1, figure 92).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct Command {
    /// Opcode, fused operation, PSDT and command identifier.
    pub cdw0: Cdw0,
    /// Namespace identifier.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// Data pointer, low half: PRP entry 1, or the first eight bytes of SGL entry 1.
    pub prp1: u64,
    /// Data pointer, high half: PRP entry 2, or the last eight bytes of SGL entry 1.
    pub prp2: u64,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

const _: () = assert!(size_of::<Command>() == COMMAND_BYTES);
const _: () = assert!(offset_of!(Command, nsid) == 4);
const _: () = assert!(offset_of!(Command, mptr) == 16);
const _: () = assert!(offset_of!(Command, prp1) == 24);
const _: () = assert!(offset_of!(Command, prp2) == 32);
const _: () = assert!(offset_of!(Command, cdw10) == 40);
const _: () = assert!(offset_of!(Command, cdw15) == 60);

impl Command {
    /// The command identifier.
    pub const fn cid(&self) -> u16 {
        self.cdw0.cid()
    }

    /// The opcode, read as an admin command's.
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.cdw0.opcode())
    }

    /// The opcode, read as an NVM command's.
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode(self.cdw0.opcode())
    }

    /// Starting LBA: dwords 10 and 11 of Read, Write and their kin (NVM 1.1, 3.3).
    pub const fn slba(&self) -> u64 {
        self.cdw10 as u64 | (self.cdw11 as u64) << 32
    }

    /// Sets dwords 10 and 11 to a starting LBA.
    pub const fn set_slba(&mut self, slba: u64) {
        [self.cdw10, self.cdw11] = split(slba);
    }

    /// The data pointer, read as SGL entry 1.
    pub fn sgl1(&self) -> SglDescriptor {
        zerocopy::transmute!([self.prp1, self.prp2])
    }

    /// Sets the data pointer to an SGL descriptor. PSDT is the caller's.
    pub fn set_sgl1(&mut self, descriptor: SglDescriptor) {
        [self.prp1, self.prp2] = zerocopy::transmute!(descriptor);
    }
}

/// Low and high half of a 64-bit value, as two command dwords carry it.
const fn split(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// Command dword 0 (Base 2.1, 4.1.1, figure 91).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cdw0 {
    /// Opcode: see [`AdminOpcode`] and [`NvmOpcode`].
    pub opcode: u8,
    /// Fused operation: see [`Fuse`].
    #[bits(2)]
    pub fuse: u8,
    #[bits(4)]
    __: u8,
    /// PRP or SGL for data transfer: see [`Psdt`].
    #[bits(2)]
    pub psdt: u8,
    /// Command identifier.
    pub cid: u16,
}

/// Fused operation (Base 2.1, 4.1.1, figure 91: FUSE).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fuse {
    /// A command of its own.
    Normal = 0,
    /// First command of a fused operation.
    First = 1,
    /// Second command of a fused operation.
    Second = 2,
}

/// PRP or SGL for data transfer (Base 2.1, 4.1.1, figure 91: PSDT).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Psdt {
    /// PRPs.
    Prp = 0,
    /// SGLs; MPTR is the address of one contiguous buffer.
    SglMptrContiguous = 1,
    /// SGLs; MPTR is the address of an SGL segment of one descriptor.
    SglMptrSegment = 2,
}
