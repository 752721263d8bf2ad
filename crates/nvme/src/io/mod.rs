//! I/O commands of the NVM command set (NVM 1.1, 3.3): parsed, and carried out on the backend.
//!
//! Read and Write whose data is host memory, Flush, and Write Zeroes are one backend request with no state of their own. All
//! else is a [`Job`](job::Job). Not here: protection information, directives, reservations, Copy formats 1 to 4,
//! Cancel, I/O Management.

mod buffer;
pub(crate) mod fault;
pub(crate) mod job;
mod parse;

use std::sync::Arc;

use block::{Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::MemoryMap;
use spec::nvme::nvm::{CopyRange0, DsmRange};
use spec::nvme::{Command, NvmOpcode, Status};
use zerocopy::FromBytes;

use crate::data::{self, Direction, Pieces, PrpList, Refused, Segments, Visit};
use crate::limits::{MCL, MSSRL};
use crate::namespace::{BlockRange, Namespace, NamespaceTable};
use crate::sink::Sink;
use buffer::Buffers;
use fault::{Access, NO_FIELD, Refusal, drive_fault};
use job::{Job, Next, Want, Work};
use parse::{Io, parse};

/// Steps of a job that may end at once before other commands get their turn.
const STEPS_A_TURN: u32 = 16;

/// For the counters of log page 02h (Base 2.1, 5.1.12.1.3): NVM 1.1, 1.4.2 says which commands count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read and Compare: a host read command, and its data units.
    Read,
    /// Write: a host write command, and its data units.
    Write,
    /// Verify: data units read, but no host read command.
    Verify,
    /// Copy: a host read command and a host write command, and data units written.
    Copy,
    /// Write Zeroes: in no counter of the host's, but it changes data.
    Zeroes,
    #[default]
    Other,
}

impl Kind {
    /// Data may be other than before, even when the command failed.
    pub(crate) const fn changes_data(self) -> bool {
        matches!(self, Self::Write | Self::Copy | Self::Zeroes)
    }
}

/// How a command began, or went on.
pub(crate) enum Begun {
    /// Over.
    Ended(Result<(), Refusal>),
    /// One request is at the backend.
    AtBackend,
    /// The backend has no room now; nothing happened since the last step.
    Full,
    /// Goes on in the next poll: its turn is over, or no buffer is free.
    Yielded,
    /// Waits for the ssd's record to be persisted.
    Persisting,
    /// Needs memory that only a private reactor reaches.
    NeedsRemote,
}

/// A command that became a job, or did not.
pub(crate) struct Started {
    pub(crate) begun: Begun,
    pub(crate) kind: Kind,
    pub(crate) sectors: u32,
    pub(crate) job: Option<Box<Job>>,
}

/// How a command began, with the frequent cases in two registers.
pub(crate) enum Quick {
    /// Over, with success.
    Done { kind: Kind, sectors: u32 },
    /// One request is at the backend, and nothing comes after it.
    AtBackend { kind: Kind, sectors: u32 },
    /// Anything else.
    Rare(Box<Started>),
}

impl Quick {
    pub(crate) fn into_started(self) -> Started {
        match self {
            Self::Done { kind, sectors } => Started { begun: Begun::Ended(Ok(())), kind, sectors, job: None },
            Self::AtBackend { kind, sectors } => {
                Started { begun: Begun::AtBackend, kind, sectors, job: None }
            }
            Self::Rare(started) => *started,
        }
    }
}

impl From<Started> for Quick {
    #[cold]
    fn from(started: Started) -> Self {
        Self::Rare(Box::new(started))
    }
}

impl Started {
    #[inline]
    fn plain(begun: Begun) -> Self {
        Self { begun, kind: Kind::Other, sectors: 0, job: None }
    }
}

/// Carries out commands. Owns everything they share on one reactor.
pub(crate) struct Executor {
    pub(crate) map: Arc<MemoryMap>,
    /// The map has a log of what is written: known here, so that a command without one looks nowhere else.
    logged: bool,
    pub(crate) table: Arc<NamespaceTable>,
    limits: Limits,
    mdts_bytes: u32,
    /// The write cache is off: every write is on stable media before it is answered (Base 2.1, 5.1.25.1.4).
    pub(crate) write_through: bool,
    segments: Segments,
    list: PrpList,
    buffers: Buffers,
}

impl Executor {
    pub(crate) fn new(
        limits: Limits,
        mdts_bytes: u32,
        map: Arc<MemoryMap>,
        table: Arc<NamespaceTable>,
    ) -> Self {
        Self {
            logged: map.log().is_some(),
            map,
            table,
            limits,
            mdts_bytes,
            write_through: false,
            segments: Segments::new(limits.segments_max),
            list: PrpList::default(),
            buffers: Buffers::default(),
        }
    }

    /// Begins a command.
    #[inline]
    pub(crate) fn start(&mut self, token: Token, command: &Command, sink: &mut impl Sink) -> Quick {
        let (namespace, blocks, direction, fua) = match parse(command, &self.table, self.mdts_bytes) {
            // A flush comes before it.
            Ok(Io::Read { fua: true, .. }) if !self.write_through => {
                return self.start_rare(token, command, sink).into();
            }
            Ok(Io::Read { namespace, blocks, .. }) => (namespace, blocks, Direction::ToHost, false),
            Ok(Io::Write { namespace, blocks, fua }) => (namespace, blocks, Direction::FromHost, fua),
            Ok(_) => return self.start_rare(token, command, sink).into(),
            Err(refusal) => return Started::plain(Begun::Ended(Err(refusal))).into(),
        };
        let range = namespace.bytes_of(blocks);
        let Ok(len_bytes) = usize::try_from(range.len_bytes) else {
            return Started::plain(Begun::Ended(Err(Refusal::of(Status::INTERNAL_ERROR)))).into();
        };
        if !namespace.marks.is_empty() {
            return self.start_marked(token, command, sink).into();
        }
        self.segments.clear(direction);
        let walked = data::walk(command, len_bytes, direction, &self.map, &mut self.list, &mut self.segments);
        if let Err(refused) = walked {
            return self.start_refused(token, command, refused, sink).into();
        }
        let (op, kind) = match direction {
            Direction::ToHost => (Op::Read, Kind::Read),
            Direction::FromHost => (Op::Write { fua: fua | self.write_through }, Kind::Write),
        };
        let sectors = sectors_of(range);
        let request = Request { token, op, range, data: self.segments.as_slice() };
        let submitted = sink.submit(&request);
        if self.logged && matches!(submitted, Submitted::Ended(_)) && kind == Kind::Read {
            self.mark_read(command, len_bytes);
        }
        match submitted {
            Submitted::Ended(Outcome::Done) => Quick::Done { kind, sectors },
            Submitted::Queued => Quick::AtBackend { kind, sectors },
            Submitted::Full => Started { begun: Begun::Full, kind, sectors, job: None }.into(),
            Submitted::Ended(Outcome::Failed(fault)) => {
                let access = if kind == Kind::Read { Access::Read } else { Access::Change };
                let begun = Begun::Ended(Err(drive_fault(fault, access).at(blocks.start())));
                Started { begun, kind, sectors, job: None }.into()
            }
        }
    }

    /// What is carried out from now on uses this map. Returns the one before.
    pub(crate) fn adopt(&mut self, map: Arc<MemoryMap>) -> Arc<MemoryMap> {
        self.logged = map.log().is_some();
        core::mem::replace(&mut self.map, map)
    }

    /// Whether a Read that went straight into guest memory is to be marked when it has ended ([`Executor::mark_read`]).
    #[inline]
    pub(crate) fn is_logged(&self) -> bool {
        self.logged
    }

    /// Marks what the drive has stored for a Read, however that ended: before its answer, so that the host reads no page that has no mark.
    /// The data pointer is walked again: a host that changes a list while its command is out has marks on the pages that it says now.
    #[cold]
    pub(crate) fn mark_read(&mut self, command: &Command, len_bytes: usize) {
        let map = Arc::clone(&self.map);
        // What cannot be walked any more was taken away by its owner.
        let _ = data::walk(command, len_bytes, Direction::ToHost, &map, &mut self.list, &mut Marked);
    }

    /// Read or Write in a namespace that has marked blocks somewhere, or had until just now.
    #[cold]
    fn start_marked(&mut self, token: Token, command: &Command, sink: &mut impl Sink) -> Started {
        self.start_job(token, command, sink)
    }

    #[cold]
    fn start_refused(
        &mut self,
        token: Token,
        command: &Command,
        refused: Refused,
        sink: &mut impl Sink,
    ) -> Started {
        match refused {
            Refused::Status(status) => Started::plain(Begun::Ended(Err(refusal(status)))),
            Refused::Remote => Started::plain(Begun::NeedsRemote),
            Refused::Scattered => self.start_job(token, command, sink),
        }
    }

    /// All but Read and Write.
    #[inline(never)]
    fn start_rare(&mut self, token: Token, command: &Command, sink: &mut impl Sink) -> Started {
        if command.nvm_opcode() == NvmOpcode::Flush {
            let request =
                Request { token, op: Op::Flush, range: Range { start_bytes: 0, len_bytes: 0 }, data: &[] };
            return Started::plain(match sink.submit(&request) {
                Submitted::Ended(outcome) => Begun::Ended(ended(outcome, Access::Change)),
                Submitted::Queued => Begun::AtBackend,
                Submitted::Full => Begun::Full,
            });
        }
        self.start_job(token, command, sink)
    }

    fn start_job(&mut self, token: Token, command: &Command, sink: &mut impl Sink) -> Started {
        match self.job_of(command) {
            Ok((mut job, kind, sectors)) => {
                let next = job.begin();
                let begun = self.advance(&mut job, next, token, sink);
                Started { begun, kind, sectors, job: Some(job) }
            }
            Err(Refused::Remote) => Started::plain(Begun::NeedsRemote),
            Err(Refused::Scattered) => Started::plain(Begun::Ended(Err(Refusal::of(Status::INTERNAL_ERROR)))),
            Err(Refused::Status(status)) => Started::plain(Begun::Ended(Err(refusal(status)))),
        }
    }

    /// The job of a command that needs one, not begun. Also for the halves of a fused pair.
    pub(crate) fn job_of(&mut self, command: &Command) -> Result<(Box<Job>, Kind, u32), Refused> {
        let table = Arc::clone(&self.table);
        let io =
            parse(command, &table, self.mdts_bytes).map_err(|refusal| Refused::Status(refusal.status))?;
        let owned = |namespace: &Namespace| table.get(namespace.nsid).cloned().ok_or(Refused::Scattered);
        // What is read must be on stable media, and come from there (NVM 1.1, 3.3.1, 3.3.4 and 3.3.5).
        let commit = match io {
            Io::Read { fua, .. } | Io::Compare { fua, .. } | Io::Verify { fua, .. } => {
                fua && !self.write_through
            }
            _ => false,
        };
        let (work, namespace, blocks, kind) = match io {
            Io::Read { namespace, blocks, .. } => {
                check_marks(namespace, blocks)?;
                let pieces = self.pieces_of(command, namespace, blocks, Direction::ToHost)?;
                (Work::Read { pieces }, namespace, blocks, Kind::Read)
            }
            Io::Write { namespace, blocks, fua } => {
                let pieces = self.pieces_of(command, namespace, blocks, Direction::FromHost)?;
                let fua = fua | self.write_through | outlives_marks(namespace, blocks);
                (Work::Write { pieces, fua }, namespace, blocks, Kind::Write)
            }
            Io::Compare { namespace, blocks, .. } => {
                check_marks(namespace, blocks)?;
                let pieces = self.pieces_of(command, namespace, blocks, Direction::FromHost)?;
                (Work::Compare { pieces }, namespace, blocks, Kind::Read)
            }
            Io::Verify { namespace, blocks, .. } => {
                check_marks(namespace, blocks)?;
                (Work::Verify, namespace, blocks, Kind::Verify)
            }
            Io::WriteZeroes { namespace, blocks, deallocate, fua } => {
                let fua = fua | self.write_through | outlives_marks(namespace, blocks);
                let op = Op::WriteZeroes { deallocate, fua };
                (Work::Each { runs: vec![blocks], index: 0, op }, namespace, blocks, Kind::Zeroes)
            }
            Io::WriteUncorrectable { namespace, blocks } => (Work::Mark, namespace, blocks, Kind::Other),
            Io::Deallocate { namespace, ranges, deallocate } => {
                let (runs, first) = self.dataset(command, namespace, ranges, deallocate)?;
                let marked = runs.iter().any(|run| outlives_marks(namespace, *run));
                let op = self.deallocate_op(marked);
                (Work::Each { runs, index: 0, op }, namespace, first, Kind::Other)
            }
            Io::Copy { namespace, sdlba, ranges, fua } => {
                let (sources, destination) = self.sources(command, namespace, sdlba, ranges)?;
                let fua = fua | self.write_through | outlives_marks(namespace, destination);
                let work = Work::Copy { sources, index: 0, at_bytes: 0, read: 0, fua };
                (work, namespace, destination, Kind::Copy)
            }
            Io::Flush => return Err(Status::INTERNAL_ERROR.into()),
        };
        let sectors = sectors_of(namespace.bytes_of(blocks));
        let mut job = Box::new(Job::new(work, owned(namespace)?, blocks));
        if commit {
            job.commit_first();
        }
        Ok((job, kind, sectors))
    }

    /// Goes on with a job until it waits for something or has had its turn.
    pub(crate) fn advance(
        &mut self,
        job: &mut Job,
        mut next: Next,
        token: Token,
        sink: &mut impl Sink,
    ) -> Begun {
        for _ in 0..STEPS_A_TURN {
            match next {
                Next::End(result) => return Begun::Ended(result),
                Next::Persist => return Begun::Persisting,
                Next::Request => {}
            }
            let (op, range, data) = match job.want(&self.map, &mut self.buffers) {
                Want::Submit { op, range, data } => (op, range, data),
                Want::Buffer => return Begun::Yielded,
                Want::Refuse(refusal) => return Begun::Ended(Err(refusal)),
            };
            match sink.submit(&Request { token, op, range, data: data.as_slice() }) {
                Submitted::Queued => return Begun::AtBackend,
                Submitted::Full => return Begun::Full,
                Submitted::Ended(outcome) => next = job.done(outcome, &self.map),
            }
        }
        match next {
            Next::End(result) => Begun::Ended(result),
            Next::Persist => Begun::Persisting,
            Next::Request => Begun::Yielded,
        }
    }

    /// Goes on after a request ended.
    pub(crate) fn resume(
        &mut self,
        job: &mut Job,
        outcome: Outcome,
        token: Token,
        sink: &mut impl Sink,
    ) -> Begun {
        let next = job.done(outcome, &self.map);
        self.advance(job, next, token, sink)
    }

    /// A job is over.
    pub(crate) fn retire(&mut self, job: Job) {
        job.retire(&mut self.buffers);
    }

    /// Deallocated blocks read as zeros (DLFEAT 001b): where the backend cannot discard, they are written so.
    fn deallocate_op(&self, marked: bool) -> Op {
        if self.limits.discard && !marked {
            Op::Discard
        } else {
            Op::WriteZeroes { deallocate: true, fua: self.write_through | marked }
        }
    }

    fn pieces_of(
        &mut self,
        command: &Command,
        namespace: &Namespace,
        blocks: BlockRange,
        direction: Direction,
    ) -> Result<Pieces, Refused> {
        let len =
            usize::try_from(namespace.bytes_of(blocks).len_bytes).map_err(|_| Status::INTERNAL_ERROR)?;
        let mut reached = Reached { pieces: Pieces::default(), direction };
        data::walk(command, len, direction, &self.map, &mut self.list, &mut reached)?;
        Ok(reached.pieces)
    }

    /// The runs of a Dataset Management command. Deallocate is all there is to do; other attributes are hints.
    fn dataset(
        &mut self,
        command: &Command,
        namespace: &Namespace,
        ranges: usize,
        deallocate: bool,
    ) -> Result<(Vec<BlockRange>, BlockRange), Refused> {
        let data = data::gather(command, ranges * size_of::<DsmRange>(), &self.map)?;
        let mut runs = Vec::with_capacity(ranges);
        for range in data.chunks_exact(size_of::<DsmRange>()) {
            let Ok(range) = DsmRange::read_from_bytes(range) else { continue };
            if range.slba > namespace.blocks || u64::from(range.nlb) > namespace.blocks - range.slba {
                return Err(Status::LBA_OUT_OF_RANGE.into());
            }
            runs.extend(namespace.run_at(range.slba, range.nlb));
        }
        let first = namespace.run_at(0, 1).ok_or(Status::LBA_OUT_OF_RANGE)?;
        if !deallocate {
            runs.clear();
        }
        Ok((runs, first))
    }

    /// The sources and the destination of a Copy command, disjoint (NVM 1.1, 3.3.2).
    fn sources(
        &mut self,
        command: &Command,
        namespace: &Namespace,
        sdlba: u64,
        ranges: usize,
    ) -> Result<(Vec<BlockRange>, BlockRange), Refused> {
        let data = data::gather(command, ranges * size_of::<CopyRange0>(), &self.map)?;
        let mut sources = Vec::with_capacity(ranges);
        let mut total: u32 = 0;
        for range in data.chunks_exact(size_of::<CopyRange0>()) {
            let Ok(range) = CopyRange0::read_from_bytes(range) else { continue };
            let count = u32::from(range.nlb_z) + 1;
            total = total.saturating_add(count);
            if count > u32::from(MSSRL) || total > MCL {
                return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.into());
            }
            let source = namespace.run_at(range.slba, count).ok_or(Status::LBA_OUT_OF_RANGE)?;
            check_marks(namespace, source)?;
            sources.push(source);
        }
        let destination = namespace.run_at(sdlba, total).ok_or(Status::LBA_OUT_OF_RANGE)?;
        // Overlap would make the result depend on the order of the steps, and a second run of them wrong.
        let overlaps = |s: &BlockRange| s.start() < destination.end() && destination.start() < s.end();
        if sources.iter().any(overlaps) {
            return Err(Status::OVERLAPPING_IO_RANGE.into());
        }
        Ok((sources, destination))
    }
}

/// Pieces that are known to be reachable when they are found, so that a command fails or moves before it began.
struct Reached {
    pieces: Pieces,
    direction: Direction,
}

impl Visit for Reached {
    fn memory(&mut self, map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused> {
        let mut hint = memory::Hint::default();
        let found =
            map.segments(&mut hint, memory::Iova(address), len_bytes, self.direction.access(), &mut |_| {});
        match found {
            Err(memory::Fault::Remote) if map.is_remote_reachable() => {}
            found => found?,
        }
        self.pieces.memory(map, address, len_bytes)
    }

    fn bucket(&mut self, len_bytes: usize) -> Result<(), Refused> {
        self.pieces.bucket(len_bytes)
    }
}

/// Marks memory as written.
struct Marked;

impl Visit for Marked {
    fn memory(&mut self, map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused> {
        map.mark(memory::Iova(address), len_bytes as u64);
        Ok(())
    }

    fn bucket(&mut self, _len_bytes: usize) -> Result<(), Refused> {
        Ok(())
    }
}

/// A marked block cannot be read (NVM 1.1, 3.3.7).
fn check_marks(namespace: &Namespace, blocks: BlockRange) -> Result<(), Refused> {
    match namespace.marks.first_in(blocks) {
        None => Ok(()),
        Some(_) => Err(Status::UNRECOVERED_READ_ERROR.into()),
    }
}

/// The marks of what is changed go from the record, which is stable: then the new data must be, too. Else a power cut would
/// bring back the data from before the mark.
fn outlives_marks(namespace: &Namespace, blocks: BlockRange) -> bool {
    namespace.marks.first_in(blocks).is_some()
}

#[inline]
fn sectors_of(range: Range) -> u32 {
    u32::try_from(range.len_bytes >> 9).unwrap_or(u32::MAX)
}

/// What the end of a request without further steps means.
#[inline]
pub(crate) fn ended(outcome: Outcome, access: Access) -> Result<(), Refusal> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Failed(fault) => Err(drive_fault(fault, access)),
    }
}

fn refusal(status: Status) -> Refusal {
    Refusal { status, field: NO_FIELD, lba: 0 }
}
