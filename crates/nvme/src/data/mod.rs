//! The data pointer of a command: PRPs and SGLs (Base 2.1, 4.3) to checked memory.
//!
//! A walk reads each PRP list page and SGL descriptor once into private memory, checks the copy, and hands what it describes
//! to a [`Visit`]: [`Segments`] translates to host memory for the backend, [`Pieces`] keeps guest addresses for transfers
//! through a buffer (remote regions, compares, admin commands).
//!
//! Not here: metadata, keyed and transport SGLs, the controller memory buffer.

mod pieces;
mod prp;
mod segments;
mod sgl;

use memory::{Access, Fault, MemoryMap};
use spec::nvme::{Command, Psdt, Status};

pub use pieces::Pieces;
pub use prp::PrpList;
pub use segments::Segments;

/// Descriptors of one SGL, segment descriptors included, that are looked at. Bounds a walk with zero-length descriptors.
pub const SGL_DESCRIPTORS_MAX: usize = 1024;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host: the device reads guest memory.
    FromHost,
    /// To the host: the device writes guest memory.
    ToHost,
}

impl Direction {
    /// The rights the guest memory must give the device.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::FromHost => Access::READ,
            Self::ToHost => Access::WRITE,
        }
    }
}

/// Why a data pointer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The host's fault: answer with this.
    Status(Status),
    /// It names memory without an fd, and this map may not ask for it.
    Remote,
    /// Sound, but not a list of host memory that fits: it must go through a buffer.
    Scattered,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Remote => Self::Remote,
            // Base 2.1, 4.2.3.1: "Data Transfer Error: transferring the data or metadata associated with a command had an error".
            Fault::Unmapped | Fault::Denied | Fault::Poisoned => {
                Self::Status(Status::DATA_TRANSFER_ERROR.dnr_set())
            }
        }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Status(status.dnr_set())
    }
}

/// Takes what a walk finds, in order.
pub trait Visit {
    /// A run of guest memory; never empty.
    ///
    /// # Errors
    /// [`Refused`] ends the walk.
    fn memory(&mut self, map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused>;
    /// So many bytes of a read that the host does not want (SGL Bit Bucket).
    ///
    /// # Errors
    /// [`Refused`] ends the walk.
    fn bucket(&mut self, len_bytes: usize) -> Result<(), Refused>;
}

/// Walks the data pointer of an I/O command over exactly `len_bytes` bytes.
///
/// # Errors
/// [`Refused`]; what was visited before is to be disregarded.
#[inline]
pub fn walk(
    command: &Command,
    len_bytes: usize,
    direction: Direction,
    map: &MemoryMap,
    list: &mut PrpList,
    visit: &mut impl Visit,
) -> Result<(), Refused> {
    match Psdt(command.cdw0.psdt()) {
        Psdt::Prp => prp::walk(command.prp1, command.prp2, len_bytes, map, list, visit),
        Psdt::SglMptrContiguous => sgl::walk(command.sgl1(), len_bytes, direction, map, visit),
        // MPTR as an SGL needs SGLS bit 19, which Identify does not set; 11b is reserved.
        _ => Err(Status::INVALID_FIELD.into()),
    }
}

/// The whole data of a command to private memory. For commands off the hot path; `len_bytes` is bounded by the caller.
///
/// # Errors
/// [`Refused`].
pub fn gather(command: &Command, len_bytes: usize, map: &MemoryMap) -> Result<Vec<u8>, Refused> {
    let mut pieces = Pieces::default();
    walk(command, len_bytes, Direction::FromHost, map, &mut PrpList::default(), &mut pieces)?;
    let mut data = vec![0; len_bytes];
    pieces.read(map, 0, &mut data)?;
    Ok(data)
}

/// Private memory to the whole data of a command, as [`gather`].
///
/// # Errors
/// [`Refused`]; a part may have been stored then.
pub fn scatter(command: &Command, data: &[u8], map: &MemoryMap) -> Result<(), Refused> {
    let mut pieces = Pieces::default();
    walk(command, data.len(), Direction::ToHost, map, &mut PrpList::default(), &mut pieces)?;
    Ok(pieces.write(map, 0, data)?)
}
