//! Reserved bits are ignored, reserved values are refused (Base 2.1, 1.4.1.6; docs/decisions/0012-reserved.md): every I/O
//! command, every field.

use spec::nvme::nvm::{CopyRange0, DsmRange};
use spec::nvme::prp_sgl::{SglDescriptor, SglType};
use spec::nvme::{Command, NvmOpcode, Status};
use zerocopy::{IntoBytes, transmute};

use crate::world::{DATA, World};

const ALL: u32 = u32::MAX;

/// Every I/O command, with the bits of its dwords that are reserved, or ignored in a namespace without metadata and protection
/// information (NVM 1.1, "Protection Information Field Definition" and the fields of each command).
const COMMANDS: [(NvmOpcode, &[(usize, u32)]); 9] = [
    (NvmOpcode::Flush, &[(6, ALL), (7, ALL), (10, ALL), (11, ALL), (12, ALL), (13, ALL)]),
    // DTYPE is not of Read. Dword 13 has the hints in bits 7:0.
    (NvmOpcode::Read, &[(12, 0x3ff0_0000), (13, 0xffff_ff00)]),
    (NvmOpcode::Write, &[(12, 0x3f00_0000), (13, 0xffff_ff00)]),
    (NvmOpcode::Compare, &[(12, 0x3ff0_0000), (13, ALL)]),
    (NvmOpcode::Verify, &[(6, ALL), (7, ALL), (12, 0x3ff0_0000), (13, ALL)]),
    (NvmOpcode::WriteZeroes, &[(6, ALL), (7, ALL), (12, 0x3d70_0000), (13, ALL)]),
    (NvmOpcode::WriteUncorrectable, &[(6, ALL), (7, ALL), (12, 0xff0f_0000), (13, ALL)]),
    (NvmOpcode::DatasetManagement, &[(10, 0xffff_ff00), (11, !7), (12, ALL), (13, ALL)]),
    (NvmOpcode::Copy, &[(12, 0x3f00_f000), (13, ALL)]),
];
/// Bits of dword 0 between FUSE and PSDT; dwords 2 and 3 and 14 and 15, where tags are; the metadata pointer; and PRP entry 2,
/// which a transfer of one page has no use for.
const COMMON: [(usize, u32); 9] =
    [(0, 0x3c00), (2, ALL), (3, ALL), (4, ALL), (5, ALL), (8, ALL), (9, ALL), (14, ALL), (15, ALL)];

/// A command of this kind that succeeds.
fn sound(world: &mut World, opcode: NvmOpcode) -> Command {
    let mut command = world.command(opcode, 1, 64, 1);
    match opcode {
        NvmOpcode::Compare => world.poke(DATA, &world.drive.disk[64 * 512..65 * 512]),
        NvmOpcode::DatasetManagement => {
            world.poke(DATA, DsmRange { cattr: 0, nlb: 1, slba: 64 }.as_bytes());
            (command.cdw10, command.cdw11, command.cdw12) = (0, 4, 0);
        }
        NvmOpcode::Copy => world.poke(DATA, CopyRange0 { slba: 7, ..Default::default() }.as_bytes()),
        _ => {}
    }
    command
}

/// Base 2.1, 1.4.1.6; NVM 1.1, 3.3.1 to 3.3.8.
#[test]
fn reserved_bits_of_io_commands_change_nothing() {
    for (opcode, ignored) in COMMANDS {
        for bits in [&[][..], &[ignored, &COMMON[..]].concat()[..]] {
            let mut world = World::new();
            let command = sound(&mut world, opcode);
            let mut dwords: [u32; 16] = transmute!(command);
            bits.iter().for_each(|(dword, bits)| dwords[*dword] |= bits);
            assert_eq!(world.run(&transmute!(dwords)), Status::SUCCESS, "{opcode:?}");
        }
    }
}

#[track_caller]
fn refused(opcode: NvmOpcode, what: &str, values: impl IntoIterator<Item = u32>, set: fn(&mut Command, u32)) {
    let mut world = World::new();
    for value in values {
        let mut command = sound(&mut world, opcode);
        set(&mut command, value);
        let status = world.run(&command);
        assert_eq!((status.bare(), status.dnr()), (Status::INVALID_FIELD, true), "{opcode:?} {what} {value}");
        assert!(world.drive.requests.is_empty(), "{opcode:?} {what} {value}: nothing was done");
    }
}

/// Base 2.1, 4.1.1 and 1.4.1.6: FUSE and PSDT, also of commands that move no data.
#[test]
fn reserved_values_of_dword_0_are_refused_in_every_io_command() {
    for (opcode, _) in COMMANDS {
        refused(opcode, "FUSE", [3], |command, _| command.cdw0.set_fuse(3));
        // 10b: a metadata pointer that is an SGL, which SGLS does not offer.
        refused(opcode, "PSDT", [2, 3], |command, value| command.cdw0.set_psdt(value as u8));
    }
}

/// NVM 1.1, 3.3.1 to 3.3.8; Base 2.1, 1.4.1.6. CETYPE needs Key Per I/O, DTYPE directives, NSZ its bit of ONCS, and only
/// descriptor format 0 is in CDFS.
#[test]
fn every_reserved_value_in_an_io_command_is_an_invalid_field() {
    use NvmOpcode as Op;
    for opcode in [Op::Read, Op::Write, Op::Compare, Op::Verify, Op::WriteZeroes, Op::Copy] {
        refused(opcode, "CETYPE", 1..16, |command, value| command.cdw12 |= value << 16);
    }
    for opcode in [Op::Write, Op::WriteUncorrectable, Op::Copy] {
        refused(opcode, "DTYPE", 1..16, |command, value| command.cdw12 |= value << 20);
    }
    for opcode in [Op::Read, Op::Write] {
        refused(opcode, "DSM access frequency", 9..16, |command, value| command.cdw13 |= value);
    }
    refused(Op::WriteZeroes, "NSZ", [1], |command, _| command.cdw12 |= 1 << 23);
    refused(Op::Copy, "DESFMT", 1..16, |command, value| command.cdw12 |= value << 8);
}

/// Base 2.1, 4.3.2 and 1.4.1.6: descriptor types and sub types, in the entry and in a segment, of commands that read and of
/// commands that write.
#[test]
fn every_reserved_sgl_descriptor_is_refused() {
    let list = DATA + 0x8000;
    let mut world = World::new();
    for opcode in [NvmOpcode::Read, NvmOpcode::Write] {
        for (kind, sub_type) in (0..16_u8).flat_map(|kind| (0..16_u8).map(move |sub_type| (kind, sub_type))) {
            let sound = matches!(SglType(kind), SglType::DataBlock | SglType::BitBucket) && sub_type == 0;
            if sound || (matches!(SglType(kind), SglType::Segment | SglType::LastSegment) && sub_type == 0) {
                continue;
            }
            let odd: SglDescriptor = transmute!([DATA, 512 | u64::from(kind << 4 | sub_type) << 56]);
            let rest = SglDescriptor::new(SglType::DataBlock, DATA, 512);
            world.poke(list, [odd, rest].as_bytes());
            for first in [odd, SglDescriptor::new(SglType::LastSegment, list, 32)] {
                let mut command = world.command(opcode, 1, 64, 1);
                command.cdw0.set_psdt(1);
                command.set_sgl1(first);
                let status = world.run(&command).bare();
                assert_eq!(status, Status::SGL_DESCRIPTOR_TYPE_INVALID, "{opcode:?} {kind:x} {sub_type:x}");
            }
        }
    }
}

/// Base 2.1, 4.2.3.1; NVM 1.1, 3.2: what is not implemented or reserved is one error.
#[test]
fn every_other_opcode_is_an_invalid_opcode() {
    let mut world = World::new();
    for opcode in (0..=255).filter(|opcode| COMMANDS.iter().all(|(known, _)| known.0 != *opcode)) {
        let command = world.command(NvmOpcode(opcode), 1, 0, 1);
        assert_eq!(world.run(&command).bare(), Status::INVALID_OPCODE, "{opcode:#x}");
    }
}
