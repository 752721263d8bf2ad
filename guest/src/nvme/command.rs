//! Submission and completion queue entries (Base 2.1, 4.1 and 4.2).

use std::fmt;

use super::data::SglDescriptor;
use crate::{Error, Result};

/// Admin opcodes (Base 2.1, Figure 89).
pub mod admin {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const DELETE_IO_SQ: u8 = 0x00;
    pub const CREATE_IO_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_IO_CQ: u8 = 0x04;
    pub const CREATE_IO_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0A;
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0D;
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    pub const DEVICE_SELF_TEST: u8 = 0x14;
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
    pub const FORMAT_NVM: u8 = 0x80;
    pub const SANITIZE: u8 = 0x84;
    pub const GET_LBA_STATUS: u8 = 0x86;
}

/// I/O opcodes (NVM 1.1, Figure 20).
pub mod nvm {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const VERIFY: u8 = 0x0C;
    pub const COPY: u8 = 0x19;
}

/// Feature identifiers (Base 2.1, Figure 393).
pub mod feature {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    pub const INTERRUPT_VECTOR_CONFIG: u8 = 0x09;
    pub const WRITE_ATOMICITY: u8 = 0x0A;
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0B;
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    pub const HOST_BEHAVIOR: u8 = 0x16;
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// Any 64 bytes, with names for the common fields. `Sqe::from([u8; 64])` takes them as they are.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sqe(pub [u32; 16]);

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sqe({:08x?})", self.0)
    }
}

impl From<[u8; 64]> for Sqe {
    fn from(bytes: [u8; 64]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let mut sqe = Sqe::default();
        for (dword, word) in sqe.0.iter_mut().zip(words) {
            *dword = u32::from_le_bytes(*word);
        }
        sqe
    }
}

impl Sqe {
    /// A command of all zeros but the opcode.
    #[must_use]
    pub fn new(opcode: u8) -> Self {
        Sqe::default().dword(0, u32::from(opcode))
    }

    /// Sets one of the sixteen dwords.
    #[must_use]
    pub fn dword(mut self, index: usize, value: u32) -> Self {
        self.0[index] = value;
        self
    }

    /// Sets two dwords, the low one first.
    #[must_use]
    pub fn qword(self, index: usize, value: u64) -> Self {
        let [low, high] = split(value);
        self.dword(index, low).dword(index + 1, high)
    }

    /// Sets the command identifier. [`Driver::submit`](super::Driver::submit) chooses its own.
    #[must_use]
    pub fn cid(self, cid: u16) -> Self {
        let dword0 = self.0[0] & 0xFFFF | u32::from(cid) << 16;
        self.dword(0, dword0)
    }

    /// Sets the FUSE field (01b first, 10b second).
    #[must_use]
    pub fn fuse(self, fuse: u8) -> Self {
        let dword0 = self.0[0] & !0x300 | (u32::from(fuse) & 3) << 8;
        self.dword(0, dword0)
    }

    /// Sets the namespace.
    #[must_use]
    pub fn nsid(self, nsid: u32) -> Self {
        self.dword(1, nsid)
    }

    /// Sets the metadata pointer.
    #[must_use]
    pub fn mptr(self, mptr: u64) -> Self {
        self.qword(4, mptr)
    }

    /// Sets PRP1 and PRP2 (PSDT = 0).
    #[must_use]
    pub fn prp(self, prp1: u64, prp2: u64) -> Self {
        let dword0 = self.0[0] & !0xC000;
        self.dword(0, dword0).qword(6, prp1).qword(8, prp2)
    }

    /// Sets SGL1 (PSDT = 01b).
    #[must_use]
    pub fn sgl(self, descriptor: SglDescriptor) -> Self {
        let dword0 = self.0[0] & !0xC000 | 0x4000;
        let (low, high) = descriptor.words();
        self.dword(0, dword0).qword(6, low).qword(8, high)
    }

    /// Sets command dword 10.
    #[must_use]
    pub fn cdw10(self, value: u32) -> Self {
        self.dword(10, value)
    }

    /// Sets command dword 11.
    #[must_use]
    pub fn cdw11(self, value: u32) -> Self {
        self.dword(11, value)
    }

    /// Sets command dword 12.
    #[must_use]
    pub fn cdw12(self, value: u32) -> Self {
        self.dword(12, value)
    }

    /// Sets command dword 13.
    #[must_use]
    pub fn cdw13(self, value: u32) -> Self {
        self.dword(13, value)
    }

    /// Sets command dword 14.
    #[must_use]
    pub fn cdw14(self, value: u32) -> Self {
        self.dword(14, value)
    }

    /// Sets command dword 15.
    #[must_use]
    pub fn cdw15(self, value: u32) -> Self {
        self.dword(15, value)
    }

    /// Sets SLBA (dwords 10 and 11) and the zero-based NLB (dword 12, bits 15:0) of an I/O command.
    #[must_use]
    pub fn blocks(self, slba: u64, nlb_z: u16) -> Self {
        let dword12 = self.0[12] & 0xFFFF_0000 | u32::from(nlb_z);
        self.qword(10, slba).dword(12, dword12)
    }

    /// Sets Force Unit Access (dword 12, bit 30).
    #[must_use]
    pub fn fua(self) -> Self {
        let dword12 = self.0[12] | 1 << 30;
        self.dword(12, dword12)
    }

    /// As eight quadwords, for the ring.
    #[must_use]
    pub fn to_block(self) -> [u64; 8] {
        let mut block = [0; 8];
        let (pairs, _) = self.0.as_chunks::<2>();
        for (word, [low, high]) in block.iter_mut().zip(pairs) {
            *word = u64::from(*low) | u64::from(*high) << 32;
        }
        block
    }
}

/// Low and high dword.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a quadword")]
pub(crate) fn split(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The status field of a completion without its phase tag (Base 2.1, 4.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(pub u16);

impl Status {
    /// Generic command status 00h.
    pub const SUCCESS: Status = Status(0);

    /// Status code.
    #[must_use]
    pub fn sc(self) -> u8 {
        (self.0 & 0xFF).to_le_bytes()[0]
    }

    /// Status code type.
    #[must_use]
    pub fn sct(self) -> u8 {
        (self.0 >> 8 & 7).to_le_bytes()[0]
    }

    /// Command retry delay.
    #[must_use]
    pub fn crd(self) -> u8 {
        (self.0 >> 11 & 3).to_le_bytes()[0]
    }

    /// More: the error log has an entry.
    #[must_use]
    pub fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Do not retry.
    #[must_use]
    pub fn dnr(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// Status code type and status code, such as `(1, 0x01)` for Invalid Queue Identifier.
    #[must_use]
    pub fn code(self) -> (u8, u8) {
        (self.sct(), self.sc())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dnr, more) = (if self.dnr() { " DNR" } else { "" }, if self.more() { " M" } else { "" });
        write!(f, "SCT {:x}h SC {:02x}h{dnr}{more}", self.sct(), self.sc())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Completion {
    /// Dword 0: the command's result.
    pub result: u32,
    /// Dword 1.
    pub dword1: u32,
    /// Submission queue head.
    pub sqhd: u16,
    /// Submission queue.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status without the phase.
    pub status: Status,
}

impl Completion {
    /// From the two quadwords of an entry: the completion and its phase.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields of a quadword")]
    pub fn from_words(low: u64, high: u64) -> (Self, bool) {
        let [result, dword1] = split(low);
        let status_and_phase = (high >> 48) as u16;
        let completion = Completion {
            result,
            dword1,
            sqhd: high as u16,
            sqid: (high >> 16) as u16,
            cid: (high >> 32) as u16,
            status: Status(status_and_phase >> 1),
        };
        (completion, status_and_phase & 1 != 0)
    }

    /// The completion itself when it succeeded.
    ///
    /// # Errors
    /// [`Error::Status`] otherwise.
    pub fn ok(self) -> Result<Self> {
        if self.status == Status::SUCCESS { Ok(self) } else { Err(Error::Status(self.status)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_command_stand_where_the_specification_says() {
        let sqe = Sqe::new(nvm::WRITE).cid(0xABCD).nsid(1).prp(0x1000, 0x2000).blocks(0x1_0000_0002, 7).fua();
        assert_eq!(sqe.0[0], 0xABCD_0001);
        assert_eq!(sqe.0[1], 1);
        assert_eq!(sqe.0[6..10], [0x1000, 0, 0x2000, 0]);
        assert_eq!(sqe.0[10..13], [2, 1, 0x4000_0007]);
        assert_eq!(sqe.to_block()[3], 0x1000);
    }

    #[test]
    fn an_sgl_command_says_so_in_psdt() {
        let sqe = Sqe::new(nvm::READ).sgl(SglDescriptor::data_block(0x5000, 512));
        assert_eq!(sqe.0[0] >> 14 & 3, 1);
        assert_eq!(sqe.prp(0, 0).0[0] >> 14 & 3, 0);
    }

    #[test]
    fn raw_bytes_reach_the_ring_unchanged() {
        let bytes: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let block = Sqe::from(bytes).to_block();
        let back: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(back, bytes);
    }

    #[test]
    fn a_completion_is_read_field_by_field() {
        let high = 0x8005_u64 << 48 | 0x1234_u64 << 32 | 3 << 16 | 9;
        let (completion, phase) = Completion::from_words(0xAAAA_BBBB_CCCC_DDDD, high);
        assert!(phase);
        assert_eq!((completion.result, completion.dword1), (0xCCCC_DDDD, 0xAAAA_BBBB));
        assert_eq!((completion.sqhd, completion.sqid, completion.cid), (9, 3, 0x1234));
        assert!(completion.status.dnr());
        assert_eq!(completion.status.code(), (0, 2));
    }
}
