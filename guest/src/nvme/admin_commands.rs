//! Admin commands with names.

use super::command::{Completion, Sqe, admin, feature};
use super::data::Prp;
use super::driver::Driver;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::shadow::Shadow;
use crate::Result;
use crate::ram::PAGE_BYTES;

impl Driver {
    /// Identify: 4,096 bytes for a CNS and a namespace.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>> {
        self.admin_read(Sqe::new(admin::IDENTIFY).nsid(nsid).cdw10(cns.into()), PAGE_BYTES)
    }

    /// Get Log Page: `len` bytes (a multiple of 4) from `offset`.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn log_page(&mut self, lid: u8, nsid: u32, offset: u64, len: usize) -> Result<Vec<u8>> {
        let numd_z = u32::try_from(len / 4).expect("a log page fits").saturating_sub(1);
        let sqe = Sqe::new(admin::GET_LOG_PAGE)
            .nsid(nsid)
            .cdw10(numd_z << 16 | u32::from(lid))
            .cdw11(numd_z >> 16)
            .qword(12, offset);
        self.admin_read(sqe, len)
    }

    /// Runs an admin command that returns `len` bytes.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn admin_read(&mut self, sqe: Sqe, len: usize) -> Result<Vec<u8>> {
        let buffer = self.ram.alloc(len)?;
        let prp = Prp::new(&self.ram, buffer.iova(), len)?;
        self.admin(sqe.prp(prp.prp1, prp.prp2))?.ok()?;
        Ok(buffer.to_vec())
    }

    /// Runs an admin command that is given bytes.
    ///
    /// # Errors
    /// [`Driver::admin`]'s; the status is in the completion.
    pub fn admin_write(&mut self, sqe: Sqe, bytes: &[u8]) -> Result<Completion> {
        let buffer = self.ram.alloc_with(bytes)?;
        let prp = Prp::new(&self.ram, buffer.iova(), bytes.len())?;
        self.admin(sqe.prp(prp.prp1, prp.prp2))
    }

    /// Get Features, current value; the completion's `result` has it.
    ///
    /// # Errors
    /// [`Driver::admin`]'s; the status is in the completion.
    pub fn get_features(&mut self, fid: u8, cdw11: u32) -> Result<Completion> {
        self.admin(Sqe::new(admin::GET_FEATURES).cdw10(fid.into()).cdw11(cdw11))
    }

    /// Set Features.
    ///
    /// # Errors
    /// [`Driver::admin`]'s; the status is in the completion.
    pub fn set_features(&mut self, fid: u8, cdw11: u32) -> Result<Completion> {
        self.admin(Sqe::new(admin::SET_FEATURES).cdw10(fid.into()).cdw11(cdw11))
    }

    /// Asks for `count` I/O submission and completion queues; returns how many of each there are.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn set_queue_count(&mut self, count: u16) -> Result<(u32, u32)> {
        let wanted_z = u32::from(count.saturating_sub(1));
        let done = self.set_features(feature::NUMBER_OF_QUEUES, wanted_z << 16 | wanted_z)?.ok()?;
        Ok(((done.result & 0xFFFF) + 1, (done.result >> 16) + 1))
    }

    /// Creates completion queue and submission queue `qid` of `depth` entries, no interrupt.
    ///
    /// # Errors
    /// The commands' status, or [`Driver::admin`]'s.
    pub fn create_queue_pair(&mut self, qid: u16, depth: u32) -> Result<()> {
        self.create_cq(qid, depth, None)?;
        self.create_sq(qid, qid, depth)
    }

    /// Creates a completion queue, with an interrupt vector if one is given.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn create_cq(&mut self, cqid: u16, depth: u32, vector: Option<u16>) -> Result<()> {
        let cq = CompletionQueue::new(&self.ram, cqid, depth)?;
        let interrupt = vector.map_or(0, |vector| u32::from(vector) << 16 | 2);
        let sqe = Sqe::new(admin::CREATE_IO_CQ)
            .prp(cq.ring().iova(), 0)
            .cdw10((depth - 1) << 16 | u32::from(cqid))
            .cdw11(interrupt | 1);
        self.admin(sqe)?.ok()?;
        self.cqs.insert(cqid, cq);
        Ok(())
    }

    /// Creates a submission queue on a completion queue that exists.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn create_sq(&mut self, sqid: u16, cqid: u16, depth: u32) -> Result<()> {
        let sq = SubmissionQueue::new(&self.ram, sqid, cqid, depth)?;
        let sqe = Sqe::new(admin::CREATE_IO_SQ)
            .prp(sq.ring().iova(), 0)
            .cdw10((depth - 1) << 16 | u32::from(sqid))
            .cdw11(u32::from(cqid) << 16 | 1);
        self.admin(sqe)?.ok()?;
        self.sqs.insert(sqid, sq);
        Ok(())
    }

    /// Deletes a submission queue.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn delete_sq(&mut self, sqid: u16) -> Result<()> {
        self.admin(Sqe::new(admin::DELETE_IO_SQ).cdw10(sqid.into()))?.ok()?;
        // Commands aborted by the deletion are in the completion queue already (Base 2.1, 5.2.4); they stay to be polled.
        if let Some(cqid) = self.sqs.get(&sqid).map(|sq| sq.cqid) {
            while let Some(completion) = self.poll_ring(cqid)? {
                self.stash.push_back(completion);
            }
        }
        self.sqs.remove(&sqid);
        Ok(())
    }

    /// Deletes a completion queue.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn delete_cq(&mut self, cqid: u16) -> Result<()> {
        self.admin(Sqe::new(admin::DELETE_IO_CQ).cdw10(cqid.into()))?.ok()?;
        self.cqs.remove(&cqid);
        Ok(())
    }

    /// Deletes a queue pair, submission queue first.
    ///
    /// # Errors
    /// The commands' status, or [`Driver::admin`]'s.
    pub fn delete_queue_pair(&mut self, qid: u16) -> Result<()> {
        self.delete_sq(qid)?;
        self.delete_cq(qid)
    }

    /// Doorbell Buffer Config: I/O doorbells go through shadow memory from now on.
    ///
    /// # Errors
    /// The command's status, or [`Driver::admin`]'s.
    pub fn enable_shadow_doorbells(&mut self) -> Result<()> {
        let shadow =
            Shadow { doorbells: self.ram.alloc(PAGE_BYTES)?, event_idx: self.ram.alloc(PAGE_BYTES)? };
        for (sqid, sq) in &self.sqs {
            shadow.doorbells.store_u32(usize::from(*sqid) * 8, sq.tail);
        }
        for (cqid, cq) in &self.cqs {
            shadow.doorbells.store_u32(usize::from(*cqid) * 8 + 4, cq.head);
        }
        let sqe =
            Sqe::new(admin::DOORBELL_BUFFER_CONFIG).prp(shadow.doorbells.iova(), shadow.event_idx.iova());
        self.admin(sqe)?.ok()?;
        self.shadow = Some(shadow);
        Ok(())
    }

    /// The pages of shadow doorbells and of event indices, by their addresses.
    #[must_use]
    pub fn shadow_pages(&self) -> Option<(u64, u64)> {
        self.shadow.as_ref().map(|shadow| (shadow.doorbells.iova(), shadow.event_idx.iova()))
    }

    /// Posts an Asynchronous Event Request; wait for it with [`Driver::wait`] on queue 0.
    ///
    /// # Errors
    /// [`Driver::submit`]'s.
    pub fn request_event(&mut self) -> Result<u16> {
        self.submit(0, Sqe::new(admin::ASYNC_EVENT_REQUEST))
    }

    /// Abort; bit 0 of the result is clear when the command was aborted.
    ///
    /// # Errors
    /// [`Driver::admin`]'s; the status is in the completion.
    pub fn abort(&mut self, sqid: u16, cid: u16) -> Result<Completion> {
        self.admin(Sqe::new(admin::ABORT).cdw10(u32::from(cid) << 16 | u32::from(sqid)))
    }
}
