//! Statuses: for what the host did wrong, and for what the drive did.

use spec::nvme::Status;

/// A command that ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    /// Byte in bits 7:0 of the field at fault, for the error log; [`NO_FIELD`] when none in particular is.
    pub(crate) field: u16,
    /// First logical block at fault, for the error log.
    pub(crate) lba: u64,
}

/// See [`Refusal::field`].
pub(crate) const NO_FIELD: u16 = 0xffff;

impl Refusal {
    /// The host's fault: the same command would fail again.
    #[inline]
    pub(crate) const fn of(status: Status) -> Self {
        Self { status: status.dnr_set(), field: NO_FIELD, lba: 0 }
    }

    /// As [`Refusal::of`], naming the byte of the command that is wrong.
    #[inline]
    pub(crate) const fn field(status: Status, byte: u8) -> Self {
        Self { status: status.dnr_set(), field: byte as u16, lba: 0 }
    }

    /// Not the host's fault, or not for long: it may try again.
    pub(crate) const fn transient(status: Status) -> Self {
        Self { status, field: NO_FIELD, lba: 0 }
    }

    pub(crate) const fn at(self, lba: u64) -> Self {
        Self { lba, ..self }
    }
}

/// Which way a request that failed went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Data was read from the drive.
    Read,
    /// Data or state of the drive was changed.
    Change,
}

/// The status of a request that the drive failed (NVM 1.1, 3.1; Base 2.1, 4.2.3).
pub(crate) fn drive_fault(fault: block::Fault, access: Access) -> Refusal {
    match (fault, access) {
        // No DNR: the drive may do better the next time.
        (block::Fault::Media, Access::Read) => Refusal::transient(Status::UNRECOVERED_READ_ERROR),
        (block::Fault::Media, Access::Change) => Refusal::transient(Status::WRITE_FAULT),
        // "Capacity Exceeded: the execution of the command has caused the capacity of the namespace to be exceeded."
        (block::Fault::NoSpace, _) => Refusal::transient(Status::CAPACITY_EXCEEDED),
        (block::Fault::Unsupported | block::Fault::OutOfRange, _) => Refusal::of(Status::INTERNAL_ERROR),
        (block::Fault::Memory, _) => Refusal::of(Status::DATA_TRANSFER_ERROR),
        (block::Fault::Gone, _) => Refusal::transient(Status::INTERNAL_ERROR),
    }
}
