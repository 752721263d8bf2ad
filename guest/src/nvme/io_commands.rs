//! I/O commands with names. All of them wait; the status is in the completion.

use super::command::{Completion, Sqe, nvm};
use super::data::{Prp, Sgl, SglDescriptor};
use super::driver::Driver;
use crate::Result;
use crate::ram::Buffer;

impl Driver {
    /// Read of one-based `blocks` into a buffer, by PRPs.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn read(
        &mut self,
        qid: u16,
        nsid: u32,
        slba: u64,
        blocks: u32,
        buffer: &Buffer,
    ) -> Result<Completion> {
        self.transfer(qid, Sqe::new(nvm::READ).nsid(nsid).blocks(slba, nlb_z(blocks)), buffer)
    }

    /// Write of one-based `blocks` from a buffer, by PRPs.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn write(
        &mut self,
        qid: u16,
        nsid: u32,
        slba: u64,
        blocks: u32,
        buffer: &Buffer,
    ) -> Result<Completion> {
        self.transfer(qid, Sqe::new(nvm::WRITE).nsid(nsid).blocks(slba, nlb_z(blocks)), buffer)
    }

    /// Compare of one-based `blocks` with a buffer, by PRPs.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn compare(
        &mut self,
        qid: u16,
        nsid: u32,
        slba: u64,
        blocks: u32,
        buffer: &Buffer,
    ) -> Result<Completion> {
        self.transfer(qid, Sqe::new(nvm::COMPARE).nsid(nsid).blocks(slba, nlb_z(blocks)), buffer)
    }

    /// Any command whose data is the whole buffer, by PRPs.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn transfer(&mut self, qid: u16, sqe: Sqe, buffer: &Buffer) -> Result<Completion> {
        let prp = Prp::new(&self.ram, buffer.iova(), buffer.len())?;
        self.io(qid, sqe.prp(prp.prp1, prp.prp2))
    }

    /// Any command whose data is described by SGL descriptors, in segments of at most `per_segment` of them.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn transfer_sgl(
        &mut self,
        qid: u16,
        sqe: Sqe,
        data: &[SglDescriptor],
        per_segment: usize,
    ) -> Result<Completion> {
        let sgl = Sgl::new(&self.ram, data, per_segment)?;
        self.io(qid, sqe.sgl(sgl.first))
    }

    /// Flush.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn flush(&mut self, qid: u16, nsid: u32) -> Result<Completion> {
        self.io(qid, Sqe::new(nvm::FLUSH).nsid(nsid))
    }

    /// Write Zeroes, with the Deallocate bit if asked.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn write_zeroes(
        &mut self,
        qid: u16,
        nsid: u32,
        slba: u64,
        blocks: u32,
        deac: bool,
    ) -> Result<Completion> {
        let sqe = Sqe::new(nvm::WRITE_ZEROES).nsid(nsid).blocks(slba, nlb_z(blocks));
        let dword12 = sqe.0[12] | u32::from(deac) << 25;
        self.io(qid, sqe.cdw12(dword12))
    }

    /// Dataset Management, Deallocate, over `(slba, blocks)` ranges.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn deallocate(&mut self, qid: u16, nsid: u32, ranges: &[(u64, u32)]) -> Result<Completion> {
        let mut bytes = Vec::with_capacity(ranges.len() * 16);
        for (slba, blocks) in ranges {
            bytes.extend_from_slice(&0_u32.to_le_bytes());
            bytes.extend_from_slice(&blocks.to_le_bytes());
            bytes.extend_from_slice(&slba.to_le_bytes());
        }
        let buffer = self.ram.alloc_with(&bytes)?;
        let nr_z = u32::try_from(ranges.len()).expect("a command has at most 256 ranges").saturating_sub(1);
        self.transfer(qid, Sqe::new(nvm::DATASET_MANAGEMENT).nsid(nsid).cdw10(nr_z).cdw11(4), &buffer)
    }

    /// Verify.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn verify(&mut self, qid: u16, nsid: u32, slba: u64, blocks: u32) -> Result<Completion> {
        self.io(qid, Sqe::new(nvm::VERIFY).nsid(nsid).blocks(slba, nlb_z(blocks)))
    }

    /// Write Uncorrectable.
    ///
    /// # Errors
    /// [`Driver::io`]'s.
    pub fn write_uncorrectable(&mut self, qid: u16, nsid: u32, slba: u64, blocks: u32) -> Result<Completion> {
        self.io(qid, Sqe::new(nvm::WRITE_UNCORRECTABLE).nsid(nsid).blocks(slba, nlb_z(blocks)))
    }
}

/// The zero-based count of one-based `blocks`.
fn nlb_z(blocks: u32) -> u16 {
    u16::try_from(blocks - 1).expect("1 to 65,536 blocks")
}
