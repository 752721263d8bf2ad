//! One request on its way through the ring: which step is next, and what a result means.

use super::arena::BOUNCE_BYTES;
use super::target::Target;
use block::{Fault, Op, Outcome, Request, Token};
use core::ffi::c_int;
use memory::Segment;

/// Most bytes asked of the kernel in one step.
pub(crate) const STEP_MAX_BYTES: u64 = 1 << 30;
/// Most zeros written in one step.
pub(crate) const ZEROS_BYTES: u64 = 256 * 1024;
/// `EINTR`, `EAGAIN` and results of no progress in a row, before a request fails.
const RETRIES_MAX: u8 = 100;

/// The step a request is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Data moves.
    Transfer,
    /// `fallocate` with this mode makes the range zero.
    Allocate(c_int),
    /// Zeros are written, for files that cannot do either of the above.
    Fill,
    /// `fdatasync`.
    Sync,
}

/// What to do after a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Submit again: the rest, or the next stage.
    Again,
    /// Tell the submitter.
    End(Outcome),
}

pub(crate) const PUNCH: c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
pub(crate) const ZERO_RANGE: c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A slot's contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) token: Token,
    pub(crate) op: Op,
    pub(crate) stage: Stage,
    /// Where the rest begins.
    pub(crate) at: u64,
    /// How much of it there is.
    pub(crate) left: u64,
    /// Bytes asked for in the step under way.
    pub(crate) asked: u64,
    /// The only segment, when `segments` is 1; else the list of the slot has them.
    pub(crate) only: Segment,
    pub(crate) segments: usize,
    /// The first segment not yet finished.
    pub(crate) first: usize,
    pub(crate) bounce: Option<usize>,
    retries: u8,
}

impl InFlight {
    pub(crate) fn new(request: &Request<'_>) -> InFlight {
        let stage = match request.op {
            Op::Read | Op::Write { .. } => Stage::Transfer,
            Op::Flush => Stage::Sync,
            Op::Discard | Op::WriteZeroes { deallocate: true, .. } => Stage::Allocate(PUNCH),
            Op::WriteZeroes { deallocate: false, .. } => Stage::Allocate(ZERO_RANGE),
        };
        InFlight {
            token: request.token,
            op: request.op,
            stage,
            at: request.range.start_bytes,
            left: request.range.len_bytes,
            asked: 0,
            only: request.data.first().copied().unwrap_or_default(),
            segments: request.data.len(),
            first: 0,
            bounce: None,
            retries: 0,
        }
    }

    pub(crate) fn is_fua(&self) -> bool {
        matches!(self.op, Op::Write { fua: true } | Op::WriteZeroes { fua: true, .. })
    }

    /// The segments not yet finished.
    pub(crate) fn rest<'a>(&'a mut self, list: &'a mut [Segment]) -> &'a mut [Segment] {
        if self.segments == 1 {
            core::slice::from_mut(&mut self.only)
        } else {
            list.get_mut(self.first..self.segments).unwrap_or_default()
        }
    }

    /// How much the next step asks for.
    pub(crate) fn step(&self) -> u64 {
        match (self.stage, self.bounce) {
            (Stage::Transfer, Some(_)) => self.left.min(BOUNCE_BYTES as u64),
            (Stage::Fill, _) => self.left.min(ZEROS_BYTES),
            (Stage::Transfer, None) => self.left.min(STEP_MAX_BYTES),
            (Stage::Allocate(_) | Stage::Sync, _) => self.left,
        }
    }

    /// `bytes` of the data have been moved.
    pub(crate) fn advance(&mut self, bytes: u64, list: &mut [Segment]) {
        self.at += bytes;
        self.left -= bytes;
        let mut bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut finished = 0;
        for segment in self.rest(list) {
            let (moved, rest) = segment.split_at(bytes);
            bytes -= moved.len();
            *segment = rest;
            if !rest.is_empty() {
                break;
            }
            finished += 1;
        }
        self.first += finished;
    }

    /// A step ended with an errno.
    pub(crate) fn failed(&mut self, errno: c_int, target: &Target) -> Next {
        match errno {
            libc::EINTR | libc::EAGAIN => self.retry(),
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY => self.otherwise(target),
            errno => Next::End(Outcome::Failed(fault_of(errno))),
        }
    }

    /// The step made no progress: once more, but not for ever.
    pub(crate) fn retry(&mut self) -> Next {
        self.retries += 1;
        if self.retries < RETRIES_MAX { Next::Again } else { Next::End(Outcome::Failed(Fault::Media)) }
    }

    /// The file cannot do this step: the next best way to the same end.
    fn otherwise(&mut self, target: &Target) -> Next {
        let may_write = matches!(self.op, Op::WriteZeroes { .. }) || !target.is_block_device;
        match self.stage {
            Stage::Allocate(PUNCH) if may_write => self.stage = Stage::Allocate(ZERO_RANGE),
            Stage::Allocate(_) if may_write => self.stage = Stage::Fill,
            Stage::Transfer | Stage::Fill => return Next::End(Outcome::Failed(Fault::Media)),
            Stage::Allocate(_) | Stage::Sync => return Next::End(Outcome::Failed(Fault::Unsupported)),
        }
        Next::Again
    }

    /// All bytes of the range are done.
    pub(crate) fn finished(&mut self) -> Next {
        // Writes of data carry RWF_DSYNC themselves; fallocate cannot.
        if self.is_fua() && matches!(self.stage, Stage::Allocate(_)) {
            self.stage = Stage::Sync;
            return Next::Again;
        }
        Next::End(Outcome::Done)
    }

    /// Progress was made.
    pub(crate) fn progressed(&mut self) {
        self.retries = 0;
    }
}

fn fault_of(errno: c_int) -> Fault {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Fault::NoSpace,
        libc::EFAULT => Fault::Memory,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ENOMEDIUM | libc::EBADF => Fault::Gone,
        libc::EROFS | libc::EPERM => Fault::Unsupported,
        _ => Fault::Media,
    }
}
