//! Commands of several steps: at most one backend request each at a time.

use std::sync::Arc;

use block::{Op, Outcome, Range};
use memory::{MemoryMap, Segment};
use spec::nvme::Status;

use super::buffer::{BUFFER_BYTES, Buffers};
use super::fault::{Access, Refusal, drive_fault};
use crate::data::Pieces;
use crate::namespace::{BlockRange, Namespace};

/// What the steps are.
#[derive(Debug)]
pub(crate) enum Work {
    /// Drive to buffer to guest.
    Read { pieces: Pieces },
    /// Guest to buffer to drive.
    Write { pieces: Pieces, fua: bool },
    /// Drive to buffer, and that compared with guest memory.
    Compare { pieces: Pieces },
    /// Drive to buffer.
    Verify,
    /// Drive to buffer to drive, source after source. `read` bytes of the step are in the buffer, to be written.
    Copy { sources: Vec<BlockRange>, index: usize, at_bytes: u64, read: usize, fua: bool },
    /// One request without data for each run.
    Each { runs: Vec<BlockRange>, index: usize, op: Op },
    /// Nothing on the drive: the marks are set.
    Mark,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Job {
    work: Work,
    namespace: Arc<Namespace>,
    /// What is read or written: for Copy, the destination.
    blocks: BlockRange,
    done_bytes: u64,
    step_bytes: usize,
    buffer: Vec<u8>,
    /// The drive's cache is flushed before the first step.
    commit: bool,
    /// Which clearings of marks the record that is waited for will know of (see [`crate::marks::Marks::unsettled`]).
    clearings: Option<u64>,
}

/// What a job wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Its next request submitted.
    Request,
    /// The record persisted.
    Persist,
    /// Its answer posted.
    End(Result<(), Refusal>),
}

/// A request of a job, or why there is none now.
pub(crate) enum Want {
    Submit { op: Op, range: Range, data: Option<Segment> },
    Buffer,
    Refuse(Refusal),
}

impl Job {
    pub(crate) fn new(work: Work, namespace: Arc<Namespace>, blocks: BlockRange) -> Self {
        let buffer = Vec::new();
        Self { work, namespace, blocks, done_bytes: 0, step_bytes: 0, buffer, commit: false, clearings: None }
    }

    /// Whatever was written before is on stable media before anything is read (FUA of commands that read).
    pub(crate) fn commit_first(&mut self) {
        self.commit = true;
    }

    /// What to do first.
    pub(crate) fn begin(&mut self) -> Next {
        match &self.work {
            Work::Mark => match self.namespace.marks.mark(self.blocks) {
                // Also when they were set already: that may not be stable yet.
                Ok(_) => Next::Persist,
                Err(_) => Next::End(Err(Refusal::of(Status::INSUFFICIENT_RESOURCES))),
            },
            Work::Each { runs, .. } if runs.is_empty() => Next::End(Ok(())),
            _ => Next::Request,
        }
    }

    /// The record that was waited for is on stable media.
    pub(crate) fn persisted(&self) {
        if let Some(clearings) = self.clearings {
            self.namespace.marks.settle(clearings);
        }
    }

    /// Lets go of the buffer.
    pub(crate) fn retire(self, buffers: &mut Buffers) {
        buffers.give(self.buffer);
    }

    /// The request of the current step. May be asked again when the backend had no room.
    pub(crate) fn want(&mut self, map: &MemoryMap, buffers: &mut Buffers) -> Want {
        if self.commit {
            return Want::Submit { op: Op::Flush, range: Range { start_bytes: 0, len_bytes: 0 }, data: None };
        }
        if let Work::Each { runs, index, op } = &self.work {
            let Some(&run) = runs.get(*index) else {
                return Want::Refuse(Refusal::of(Status::INTERNAL_ERROR));
            };
            return Want::Submit { op: *op, range: self.namespace.bytes_of(run), data: None };
        }
        if self.buffer.is_empty() {
            let Some(buffer) = buffers.take() else { return Want::Buffer };
            self.buffer = buffer;
        }
        let whole = self.namespace.bytes_of(self.blocks);
        let step = step_bytes(whole.len_bytes - self.done_bytes);
        let here = Range { start_bytes: whole.start_bytes + self.done_bytes, len_bytes: step as u64 };
        let (op, range) = match &mut self.work {
            Work::Read { .. } | Work::Compare { .. } | Work::Verify => (Op::Read, here),
            Work::Write { pieces, fua } => {
                let at = usize::try_from(self.done_bytes).unwrap_or(usize::MAX);
                let Some(data) = self.buffer.get_mut(..step) else { return Want::Buffer };
                if pieces.read(map, at, data).is_err() {
                    return Want::Refuse(Refusal::of(Status::DATA_TRANSFER_ERROR));
                }
                (Op::Write { fua: *fua }, here)
            }
            Work::Copy { sources, index, at_bytes, read, fua } => match (*read, sources.get(*index)) {
                (0, Some(&source)) => {
                    let source = self.namespace.bytes_of(source);
                    let len = step_bytes(source.len_bytes - *at_bytes);
                    (Op::Read, Range { start_bytes: source.start_bytes + *at_bytes, len_bytes: len as u64 })
                }
                (read, _) => (Op::Write { fua: *fua }, Range { len_bytes: read as u64, ..here }),
            },
            Work::Each { .. } | Work::Mark => return Want::Refuse(Refusal::of(Status::INTERNAL_ERROR)),
        };
        self.step_bytes = usize::try_from(range.len_bytes).unwrap_or(0).min(self.buffer.len());
        let data = self.buffer.get_mut(..self.step_bytes).map(Segment::of);
        Want::Submit { op, range, data }
    }

    /// The request of the current step has ended.
    pub(crate) fn done(&mut self, outcome: Outcome, map: &MemoryMap) -> Next {
        if core::mem::take(&mut self.commit) {
            return match outcome {
                Outcome::Done => Next::Request,
                Outcome::Failed(fault) => Next::End(Err(drive_fault(fault, Access::Change))),
            };
        }
        if let Outcome::Failed(fault) = outcome {
            return self.end(Err(drive_fault(fault, self.access()).at(self.lba())));
        }
        let lba = self.lba();
        let at = usize::try_from(self.done_bytes).unwrap_or(usize::MAX);
        let Some(data) = self.buffer.get(..self.step_bytes) else {
            return Next::End(Err(Refusal::of(Status::INTERNAL_ERROR)));
        };
        match &mut self.work {
            Work::Read { pieces } => {
                if pieces.write(map, at, data).is_err() {
                    return Next::End(Err(Refusal::of(Status::DATA_TRANSFER_ERROR)));
                }
            }
            Work::Compare { pieces } => match is_equal(pieces, map, at, data) {
                Some(true) => {}
                Some(false) => return Next::End(Err(Refusal::of(Status::COMPARE_FAILURE).at(lba))),
                None => return Next::End(Err(Refusal::of(Status::DATA_TRANSFER_ERROR))),
            },
            Work::Copy { sources, index, at_bytes, read, .. } => {
                if *read == 0 {
                    *read = self.step_bytes;
                    return Next::Request;
                }
                *at_bytes += self.step_bytes as u64;
                *read = 0;
                let source_bytes =
                    sources.get(*index).map_or(0, |&source| self.namespace.bytes_of(source).len_bytes);
                if *at_bytes >= source_bytes {
                    *index += 1;
                    *at_bytes = 0;
                }
            }
            Work::Each { runs, index, .. } => {
                *index += 1;
                return if *index < runs.len() { Next::Request } else { self.end(Ok(())) };
            }
            Work::Write { .. } | Work::Verify | Work::Mark => {}
        }
        self.done_bytes += self.step_bytes as u64;
        if self.done_bytes < self.namespace.bytes_of(self.blocks).len_bytes {
            Next::Request
        } else {
            self.end(Ok(()))
        }
    }

    /// Every block was written that was to be, and is on stable media: its marks go. What was begun without marks in its way is
    /// not durable for their sake: marks found now were set meanwhile, and count as set after it. Where marks went and the record
    /// does not know yet, it must, whoever cleared them: after a crash they would be back, over the data of this command.
    fn end(&mut self, result: Result<(), Refusal>) -> Next {
        if result.is_err() || self.namespace.marks.is_empty() {
            return Next::End(result);
        }
        let marks = &self.namespace.marks;
        let cleared = match &self.work {
            Work::Write { fua: true, .. } | Work::Copy { fua: true, .. } => marks.clear(self.blocks),
            Work::Each { runs, op: Op::WriteZeroes { fua: true, .. }, .. } => {
                runs.iter().try_fold(false, |any, &run| Ok(marks.clear(run)? | any))
            }
            Work::Write { .. } | Work::Copy { .. } | Work::Each { .. } => Ok(false),
            Work::Read { .. } | Work::Compare { .. } | Work::Verify | Work::Mark => return Next::End(Ok(())),
        };
        if cleared.is_err() {
            return Next::End(Err(Refusal::of(Status::INSUFFICIENT_RESOURCES)));
        }
        self.clearings = marks.unsettled();
        if self.clearings.is_some() { Next::Persist } else { Next::End(Ok(())) }
    }

    fn access(&self) -> Access {
        match &self.work {
            Work::Read { .. } | Work::Compare { .. } | Work::Verify => Access::Read,
            Work::Copy { read: 0, .. } => Access::Read,
            Work::Write { .. } | Work::Copy { .. } | Work::Each { .. } | Work::Mark => Access::Change,
        }
    }

    /// First block of the current step.
    fn lba(&self) -> u64 {
        let shift = self.namespace.format.shift();
        match &self.work {
            Work::Copy { sources, index, at_bytes, read: 0, .. } => {
                sources.get(*index).map_or(0, |source| source.start() + (*at_bytes >> shift))
            }
            Work::Each { runs, index, .. } => runs.get(*index).map_or(0, |run| run.start()),
            _ => self.blocks.start() + (self.done_bytes >> shift),
        }
    }
}

fn step_bytes(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES)
}

/// Guest memory, read once, against the drive's bytes. `None`: it could not be read.
fn is_equal(pieces: &Pieces, map: &MemoryMap, at: usize, data: &[u8]) -> Option<bool> {
    let mut chunk = [0; 4096];
    let mut done = 0;
    for expected in data.chunks(chunk.len()) {
        let got = chunk.get_mut(..expected.len())?;
        pieces.read(map, at + done, got).ok()?;
        if got != expected {
            return Some(false);
        }
        done += expected.len();
    }
    Some(true)
}
