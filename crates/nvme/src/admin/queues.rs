//! I/O queue creation and deletion (Base 2.1, 5.2.1 to 5.2.4) and Doorbell Buffer Config (5.2.5).

use std::sync::atomic::Ordering;

use memory::{Access, Iova, Window};
use spec::nvme::feature::{Fid, NumberOfQueues};
use spec::nvme::queue::{CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, DeleteQueueCdw10};
use spec::nvme::{Command, Status};

use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::{Controller, Deleting, Host, Wait};
use crate::limits::PAGE_BYTES;
use crate::queue::{self, Answer, CqRecord, SqRecord};
use crate::sink::GroupCommand;
use crate::store::{publish64, put_doorbell};

impl Controller {
    pub(super) fn create_cq(&mut self, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = CreateQueueCdw10::from_bits(command.cdw10);
        let flags = CreateCqCdw11::from_bits(command.cdw11);
        let (cqid, size) = (fields.qid(), u32::from(fields.qsize_z()) + 1);
        if cqid == 0 || u32::from(cqid) > self.queues_granted().1 {
            return Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40));
        }
        if let Some(there) = CqRecord::load(&self.region, cqid) {
            // A successor executes again what its predecessor may have done but not answered.
            let same = self.replaying && there.base == command.prp1 && there.size == size;
            return if same {
                Ok(Step::Done(0))
            } else {
                Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40))
            };
        }
        if self.is_deleting(true, cqid) {
            return Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40));
        }
        self.check_ring(command, size, self.cc().iocqes() == 4, flags.pc())?;
        if !self.vector_exists(flags.iv()) {
            return Err(Failure::Status(Status::INVALID_INTERRUPT_VECTOR, 46));
        }
        self.check_mapped(command.prp1, size, 16, false)?;
        put_doorbell(&self.doorbells, queue::cq_index(cqid), 0);
        queue::create_cq(&self.region, cqid, command.prp1, size, flags.ien().then_some(flags.iv()));
        host.to_queue(cqid, GroupCommand::CreateCq { cqid });
        Ok(Step::Done(0))
    }

    pub(super) fn create_sq(&mut self, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = CreateQueueCdw10::from_bits(command.cdw10);
        let flags = CreateSqCdw11::from_bits(command.cdw11);
        let (sqid, cqid, size) = (fields.qid(), flags.cqid(), u32::from(fields.qsize_z()) + 1);
        if sqid == 0 || u32::from(sqid) > self.queues_granted().0 {
            return Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40));
        }
        if let Some(there) = SqRecord::load(&self.region, sqid) {
            let same =
                self.replaying && there.base == command.prp1 && there.size == size && there.cqid == cqid;
            return if same {
                Ok(Step::Done(0))
            } else {
                Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40))
            };
        }
        if self.is_deleting(false, sqid) {
            return Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40));
        }
        if cqid == 0 || u32::from(cqid) > self.queues_granted().1 {
            return Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 46));
        }
        if CqRecord::load(&self.region, cqid).is_none() || self.is_deleting(true, cqid) {
            return Err(Failure::Status(Status::COMPLETION_QUEUE_INVALID, 46));
        }
        self.check_ring(command, size, self.cc().iosqes() == 6, flags.pc())?;
        // NVMSETID in dword 12 means nothing without SQ Associations.
        self.check_mapped(command.prp1, size, 64, true)?;
        put_doorbell(&self.doorbells, queue::sq_index(sqid), 0);
        queue::create_sq(&self.region, sqid, command.prp1, size, cqid);
        host.to_queue(cqid, GroupCommand::CreateSq { sqid });
        Ok(Step::Done(0))
    }

    /// Size, entry size, contiguity (CAP.CQR) and alignment of a queue.
    fn check_ring(&self, command: &Command, size: u32, sized: bool, pc: bool) -> Result<(), Failure> {
        if size < 2 || size > u32::from(self.profile.mqes_z) + 1 || !sized {
            return Err(Failure::Status(Status::INVALID_QUEUE_SIZE, 42));
        }
        if !pc {
            return Err(invalid_field(11));
        }
        if !command.prp1.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Failure::Status(Status::PRP_OFFSET_INVALID, 24));
        }
        Ok(())
    }

    /// The ring must be guest memory; one in a region without fd moves the ssd first.
    fn check_mapped(&self, base: u64, size: u32, entry: u32, read: bool) -> Result<(), Failure> {
        let len = usize::try_from(size * entry).unwrap_or(usize::MAX);
        let access = Access { read, write: !read };
        Window::new(&self.map, Iova(base), len, access).map(drop).map_err(transfer::failure)
    }

    /// Vectors: all of MSI-X, or the one of the pin.
    fn vector_exists(&self, vector: u16) -> bool {
        if self.msix_enabled() { vector < self.profile.vectors } else { vector == 0 }
    }

    pub(super) fn delete_sq(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let sqid = DeleteQueueCdw10::from_bits(command.cdw10).qid();
        let record =
            SqRecord::load(&self.region, sqid).filter(|_| sqid != 0 && !self.is_deleting(false, sqid));
        let Some(record) = record else { return self.not_there(false, sqid) };
        self.deleting.push(Deleting { completion_queue: false, qid: sqid, slot });
        host.to_queue(record.cqid, GroupCommand::DeleteSq { sqid });
        Ok(Step::Later)
    }

    pub(super) fn delete_cq(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let cqid = DeleteQueueCdw10::from_bits(command.cdw10).qid();
        if cqid == 0 || CqRecord::load(&self.region, cqid).is_none() || self.is_deleting(true, cqid) {
            return self.not_there(true, cqid);
        }
        let used = (1..=self.profile.io_queues)
            .any(|sqid| SqRecord::load(&self.region, sqid).is_some_and(|record| record.cqid == cqid));
        if used {
            return Err(Failure::Status(Status::INVALID_QUEUE_DELETION, 40));
        }
        self.deleting.push(Deleting { completion_queue: true, qid: cqid, slot });
        host.to_queue(cqid, GroupCommand::DeleteCq { cqid });
        Ok(Step::Later)
    }

    fn not_there(&self, completion_queue: bool, qid: u16) -> Outcome {
        let done_before = self.replaying && qid != 0 && !self.is_deleting(completion_queue, qid);
        if done_before && qid <= self.profile.io_queues {
            return Ok(Step::Done(0));
        }
        Err(Failure::Status(Status::INVALID_QUEUE_IDENTIFIER, 40))
    }

    fn is_deleting(&self, completion_queue: bool, qid: u16) -> bool {
        self.deleting.iter().any(|d| d.completion_queue == completion_queue && d.qid == qid)
    }

    /// The group has let go of a queue.
    pub(crate) fn queue_deleted(&mut self, completion_queue: bool, qid: u16) {
        let at = self.deleting.iter().position(|d| d.completion_queue == completion_queue && d.qid == qid);
        if let Some(at) = at {
            let slot = self.deleting.remove(at).slot;
            self.answer(slot, Answer::of(Status::SUCCESS));
        }
    }

    /// Submission and completion queues the host may create.
    pub(super) fn queues_granted(&self) -> (u32, u32) {
        let granted = NumberOfQueues::from_bits(self.feature(Fid::NumberOfQueues));
        (u32::from(granted.nsq_z()) + 1, u32::from(granted.ncq_z()) + 1)
    }

    /// Any I/O queue exists.
    pub(super) fn has_io_queues(&self) -> bool {
        self.region.cqs.iter().skip(1).any(|cq| cq.size.load(Ordering::Acquire) != 0)
    }

    pub(super) fn doorbell_buffer_config(
        &mut self,
        slot: u16,
        command: &Command,
        host: &mut impl Host,
    ) -> Outcome {
        let pages = [
            (command.prp1, Access { read: true, write: false }),
            (command.prp2, Access { read: false, write: true }),
        ];
        for ((base, access), dword) in pages.into_iter().zip([6, 8]) {
            if base == 0 || !base.is_multiple_of(PAGE_BYTES as u64) {
                return Err(invalid_field(dword));
            }
            if let Err(fault) = Window::new(&self.map, Iova(base), PAGE_BYTES, access) {
                return match transfer::failure(fault) {
                    Failure::Remote => Err(Failure::Remote),
                    Failure::Status(..) => Err(invalid_field(dword)),
                };
            }
        }
        publish64(&self.region.admin.shadow_doorbells, command.prp1);
        publish64(&self.region.admin.event_indices, command.prp2);
        let id = self.next_id(Wait::DoorbellBuffer(slot));
        host.to_all(GroupCommand::ShadowDoorbells { enabled: true, id });
        Ok(Step::Later)
    }
}
