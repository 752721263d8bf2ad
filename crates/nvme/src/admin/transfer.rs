//! Data of admin commands: PRPs only, as PCIe demands (Base 2.1, 4.1.1: PSDT; the dispatcher checks it), whole, through
//! private memory.

use memory::{Fault, MemoryMap};
use spec::nvme::{Command, Status};

use super::Failure;
use crate::data::{self, Refused};
use crate::limits::MDTS_BYTES;

/// Bytes of PRP1 and PRP2 in a command, for the error log.
const PRP1: u16 = 24;
const PRP2: u16 = 32;

/// Reads the host's data.
pub(crate) fn from_host(map: &MemoryMap, command: &Command, len: usize) -> Result<Vec<u8>, Failure> {
    check_len(len)?;
    data::gather(command, len, map).map_err(|refused| not_reached(command, refused))
}

/// Writes data to the host.
pub(crate) fn to_host(map: &MemoryMap, command: &Command, data: &[u8]) -> Result<(), Failure> {
    check_len(data.len())?;
    data::scatter(command, data, map).map_err(|refused| not_reached(command, refused))
}

pub(crate) fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Remote => Failure::Remote,
        _ => Failure::Status(Status::DATA_TRANSFER_ERROR, 0xffff),
    }
}

fn check_len(len: usize) -> Result<(), Failure> {
    if len > MDTS_BYTES as usize { Err(Status::INVALID_FIELD.into()) } else { Ok(()) }
}

/// Why the data pointer does not reach the data, and which PRP is to blame if one is.
fn not_reached(command: &Command, refused: Refused) -> Failure {
    let status = match refused {
        Refused::Remote => return Failure::Remote,
        Refused::Status(status) => status.bare(),
        Refused::Scattered => Status::INTERNAL_ERROR,
    };
    match status {
        Status::PRP_OFFSET_INVALID | Status::INVALID_FIELD => {
            let first = command.prp1 == 0 || command.prp1 & 3 != 0;
            Failure::Status(status, if first { PRP1 } else { PRP2 })
        }
        _ => Failure::Status(status, 0xffff),
    }
}
