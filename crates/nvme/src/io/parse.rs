//! From a private copy of a submission queue entry to a checked command: all doubt about its fields ends here.
//!
//! Reserved bits are not looked at; reserved and unsupported *values* of defined fields are refused (Base 2.1, 1.4.1.6;
//! `docs/decisions/0012-reserved.md`). PRINFO and STC are ignored: no namespace has protection information or storage tags
//! (NVM 1.1, "Protection Information Field Definition": "this bit shall be ignored").

use spec::nvme::nvm::{
    ACCESS_FREQUENCY_MAX, CopyCdw12, CopyDescriptorFormat, DsmCdw10, DsmCdw11, ReadWriteCdw12,
    ReadWriteCdw13, WriteUncorrectableCdw12, WriteZeroesCdw12,
};
use spec::nvme::{Command, NSID_BROADCAST, NvmOpcode, Psdt, Status};

use super::fault::Refusal;
use crate::limits::MSRC_Z;
use crate::namespace::{BlockRange, Namespace, NamespaceTable};

/// A checked command. Blocks lie in the namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io<'a> {
    Read { namespace: &'a Namespace, blocks: BlockRange, fua: bool },
    Write { namespace: &'a Namespace, blocks: BlockRange, fua: bool },
    Compare { namespace: &'a Namespace, blocks: BlockRange, fua: bool },
    Verify { namespace: &'a Namespace, blocks: BlockRange, fua: bool },
    WriteZeroes { namespace: &'a Namespace, blocks: BlockRange, deallocate: bool, fua: bool },
    WriteUncorrectable { namespace: &'a Namespace, blocks: BlockRange },
    Deallocate { namespace: &'a Namespace, ranges: usize, deallocate: bool },
    Copy { namespace: &'a Namespace, sdlba: u64, ranges: usize, fua: bool },
    Flush,
}

/// Bytes of fields in the entry, for the error log's parameter location.
const BYTE_OPCODE: u8 = 0;
const BYTE_NSID: u8 = 4;
const BYTE_CDW10: u8 = 40;
const BYTE_CDW12: u8 = 48;
const BYTE_CDW13: u8 = 52;
/// Where PSDT is.
const BYTE_PSDT: u8 = 1;

#[inline]
pub(crate) fn parse<'a>(
    command: &Command,
    table: &'a NamespaceTable,
    mdts_bytes: u32,
) -> Result<Io<'a>, Refusal> {
    match command.nvm_opcode() {
        NvmOpcode::Read => {
            let (namespace, blocks) = transfer(command, table, mdts_bytes)?;
            check_hint(command)?;
            Ok(Io::Read { namespace, blocks, fua: ReadWriteCdw12::from_bits(command.cdw12).fua() })
        }
        NvmOpcode::Write => {
            let cdw12 = ReadWriteCdw12::from_bits(command.cdw12);
            if cdw12.dtype() != 0 {
                return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12 + 2));
            }
            let (namespace, blocks) = transfer(command, table, mdts_bytes)?;
            check_hint(command)?;
            Ok(Io::Write { namespace, blocks, fua: cdw12.fua() })
        }
        _ => parse_rare(command, table, mdts_bytes),
    }
}

#[inline(never)]
fn parse_rare<'a>(command: &Command, table: &'a NamespaceTable, mdts_bytes: u32) -> Result<Io<'a>, Refusal> {
    let io = match command.nvm_opcode() {
        NvmOpcode::Flush => {
            // Base 2.1, 7.2: FFFFFFFFh flushes every attached namespace (VWC bits 2:1 = 11b).
            if command.nsid != NSID_BROADCAST {
                table.attached(command.nsid).map_err(refused_nsid)?;
            }
            Ok(Io::Flush)
        }
        NvmOpcode::Compare => {
            let (namespace, blocks) = transfer(command, table, mdts_bytes)?;
            Ok(Io::Compare { namespace, blocks, fua: ReadWriteCdw12::from_bits(command.cdw12).fua() })
        }
        NvmOpcode::Verify => {
            let (namespace, blocks) = transfer(command, table, u32::MAX)?;
            Ok(Io::Verify { namespace, blocks, fua: ReadWriteCdw12::from_bits(command.cdw12).fua() })
        }
        NvmOpcode::WriteZeroes => write_zeroes(command, table),
        NvmOpcode::WriteUncorrectable => {
            let cdw12 = WriteUncorrectableCdw12::from_bits(command.cdw12);
            if cdw12.dtype() != 0 {
                return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12 + 2));
            }
            let namespace = table.for_io(command.nsid).map_err(refused_nsid)?;
            let blocks = in_range(namespace, command.slba(), cdw12.nlb_z())?;
            Ok(Io::WriteUncorrectable { namespace, blocks })
        }
        NvmOpcode::DatasetManagement => {
            let namespace = table.for_io(command.nsid).map_err(refused_nsid)?;
            let ranges = usize::from(DsmCdw10::from_bits(command.cdw10).nr_z()) + 1;
            Ok(Io::Deallocate { namespace, ranges, deallocate: DsmCdw11::from_bits(command.cdw11).ad() })
        }
        NvmOpcode::Copy => copy(command, table),
        _ => Err(Refusal::field(Status::INVALID_OPCODE, BYTE_OPCODE)),
    }?;
    // Also of commands that move no data, whose data pointer nobody walks.
    match Psdt(command.cdw0.psdt()) {
        Psdt::Prp | Psdt::SglMptrContiguous => Ok(io),
        _ => Err(Refusal::field(Status::INVALID_FIELD, BYTE_PSDT)),
    }
}

/// What Read, Write, Compare and Verify share.
#[inline]
fn transfer<'a>(
    command: &Command,
    table: &'a NamespaceTable,
    mdts_bytes: u32,
) -> Result<(&'a Namespace, BlockRange), Refusal> {
    let namespace = table.for_io(command.nsid).map_err(refused_nsid)?;
    let cdw12 = ReadWriteCdw12::from_bits(command.cdw12);
    if cdw12.cetype() != 0 {
        return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12 + 2));
    }
    let bytes = (u64::from(cdw12.nlb_z()) + 1) << namespace.format.shift();
    if bytes > u64::from(mdts_bytes) {
        return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12));
    }
    Ok((namespace, in_range(namespace, command.slba(), cdw12.nlb_z())?))
}

fn write_zeroes<'a>(command: &Command, table: &'a NamespaceTable) -> Result<Io<'a>, Refusal> {
    let namespace = table.for_io(command.nsid).map_err(refused_nsid)?;
    let cdw12 = WriteZeroesCdw12::from_bits(command.cdw12);
    // NSZ needs ONCS support for it, which Identify does not report.
    if cdw12.cetype() != 0 || cdw12.nsz() {
        return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12 + 2));
    }
    let blocks = in_range(namespace, command.slba(), cdw12.nlb_z())?;
    Ok(Io::WriteZeroes { namespace, blocks, deallocate: cdw12.deac(), fua: cdw12.fua() })
}

fn copy<'a>(command: &Command, table: &'a NamespaceTable) -> Result<Io<'a>, Refusal> {
    let namespace = table.for_io(command.nsid).map_err(refused_nsid)?;
    let cdw12 = CopyCdw12::from_bits(command.cdw12);
    // Format 1 is for 32-bit and 64-bit guards: "Invalid Namespace or Format"-like mismatches are Invalid Field here,
    // because only format 0 is reported in CDFS (NVM 1.1, 3.3.2).
    if CopyDescriptorFormat(cdw12.desfmt()) != CopyDescriptorFormat::Format0
        || cdw12.dtype() != 0
        || cdw12.cetype() != 0
    {
        return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW12 + 1));
    }
    if cdw12.nr_z() > MSRC_Z {
        return Err(Refusal::field(Status::COMMAND_SIZE_LIMIT_EXCEEDED, BYTE_CDW12));
    }
    let ranges = usize::from(cdw12.nr_z()) + 1;
    Ok(Io::Copy { namespace, sdlba: command.slba(), ranges, fua: cdw12.fua() })
}

/// The access frequency is a hint, but a reserved one is an error all the same.
#[inline]
fn check_hint(command: &Command) -> Result<(), Refusal> {
    if ReadWriteCdw13::from_bits(command.cdw13).access_frequency() > ACCESS_FREQUENCY_MAX {
        return Err(Refusal::field(Status::INVALID_FIELD, BYTE_CDW13));
    }
    Ok(())
}

#[inline]
fn in_range(namespace: &Namespace, slba: u64, nlb_z: u16) -> Result<BlockRange, Refusal> {
    namespace.blocks_at(slba, nlb_z).ok_or_else(
        #[cold]
        || Refusal::field(Status::LBA_OUT_OF_RANGE, BYTE_CDW10).at(slba),
    )
}

/// An operation that is going on (sanitize, format) may end: no DNR then.
#[cold]
fn refused_nsid(status: Status) -> Refusal {
    if status == Status::SANITIZE_IN_PROGRESS || status == Status::FORMAT_IN_PROGRESS {
        return Refusal::transient(status);
    }
    Refusal::field(status, BYTE_NSID)
}
