//! The controller state that Migration Receive and Migration Send carry (Base 2.1, 5.1.16.1.1), format version 0, and our vendor specific
//! data in it.
//!
//! ```text
//!  header 48 | NVMe controller state: I/O queues        | vendor specific data (UUID of ours)
//!            | 8 + 24 a submission queue + 24 a completion queue | length u32, ControllerV1 in its envelope, zeros to a dword
//! ```
//! The NVMe part has I/O queues and nothing else: no admin queue, register, feature, event, namespace, or command that was accepted and is
//! not answered. Those are in our part, which has the queues, too. What comes is checked as if a guest had written it; whether it fits the
//! controller is for [`saved::check`](crate::controller::saved::check) to say.

use spec::nvme::migration::{
    ControllerStateHeader, Csattr, IoCompletionQueueAttributes, IoCompletionQueueState,
    IoSubmissionQueueAttributes, IoSubmissionQueueState, NvmeControllerStateHeader,
};
use state::controller::{
    CompletionQueueV1, ControllerError, ControllerV1, STATE_BYTES_MAX, SubmissionQueueV1,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::IO_QUEUES_MAX;

/// Names our vendor specific data: version 8 (RFC 9562), never of anything else.
pub const UUID: [u8; 16] =
    [0x67, 0x6f, 0x64, 0x77, 0x69, 0x74, 0x80, 0x6e, 0x96, 0x6d, 0x65, 0x2d, 0x73, 0x74, 0x61, 0x74];
/// The one version of the NVMe controller state.
pub const VERSION: u16 = 0;
/// Longest controller state: ours, and the queues besides.
pub const BYTES_MAX: usize = STATE_BYTES_MAX + 48 + 16 + 48 * (IO_QUEUES_MAX as usize);

/// Bytes before the vendor's state in its data.
const LENGTH_BYTES: usize = 4;

/// What is in a controller state beside its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The NVMe controller state.
    pub nvme: bool,
    /// Our data.
    pub vendor: bool,
}

/// Why bytes are no controller state, or not one of the parts that were said.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// Shorter than it says.
    #[error("the controller state is cut short")]
    Short,
    /// Another version, a count that cannot be, or sizes that do not match.
    #[error("the controller state makes no sense: {0}")]
    Nonsense(&'static str),
    /// A part is there that has no index, or none is there.
    #[error("the parts of the controller state are not those that the command names")]
    Parts,
    /// The vendor's part.
    #[error("the controller state's vendor specific data: {0}")]
    Vendor(#[from] ControllerError),
}

/// I/O queues, as the NVMe controller state has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Submission queues by ascending identifier.
    pub sqs: Vec<IoSubmissionQueueState>,
    /// Completion queues by ascending identifier.
    pub cqs: Vec<IoCompletionQueueState>,
}

/// A controller state that came.
#[derive(Clone, Debug)]
pub enum Received {
    /// All of a controller of ours.
    Whole(Box<ControllerV1>),
    /// Its I/O queues alone.
    Queues(Queues),
}

impl Queues {
    /// The I/O queues of a controller.
    ///
    /// # Errors
    /// One is not as a host could have made it.
    pub fn of(state: &ControllerV1) -> Result<Self, Wrong> {
        let is_io = |qid: u16| qid != 0;
        let sqs = state.submission_queues.iter().filter(|sq| is_io(sq.sqid)).map(sq_state);
        let cqs = state.completion_queues.iter().filter(|cq| is_io(cq.cqid)).map(cq_state);
        Ok(Self { sqs: sqs.collect::<Result<_, _>>()?, cqs: cqs.collect::<Result<_, _>>()? })
    }

    fn write(&self, bytes: &mut Vec<u8>) -> Result<(), Wrong> {
        let count = |len: usize| u16::try_from(len).map_err(|_| Wrong::Nonsense("too many queues"));
        let (niosq, niocq) = (count(self.sqs.len())?, count(self.cqs.len())?);
        let header = NvmeControllerStateHeader { ver: VERSION, niosq, niocq, reserved6: [0; 2] };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.sqs.as_bytes());
        bytes.extend_from_slice(self.cqs.as_bytes());
        Ok(())
    }

    fn read(bytes: &[u8]) -> Result<Self, Wrong> {
        let (header, rest) = NvmeControllerStateHeader::read_from_prefix(bytes).map_err(|_| Wrong::Short)?;
        if header.ver != VERSION || header.niosq > IO_QUEUES_MAX || header.niocq > IO_QUEUES_MAX {
            return Err(Wrong::Nonsense("version or number of queues of the NVMe controller state"));
        }
        let (sqs, rest) = read_many::<IoSubmissionQueueState>(rest, header.niosq)?;
        let (cqs, rest) = read_many::<IoCompletionQueueState>(rest, header.niocq)?;
        let rises = |ids: &[u16]| ids.first() != Some(&0) && ids.windows(2).all(|two| two[0] < two[1]);
        let (sq_ids, cq_ids): (Vec<_>, Vec<_>) =
            (sqs.iter().map(|sq| sq.qid).collect(), cqs.iter().map(|cq| cq.qid).collect());
        if !rest.is_empty() || !rises(&sq_ids) || !rises(&cq_ids) {
            return Err(Wrong::Nonsense("size of the NVMe controller state, or order of its queues"));
        }
        let contiguous = sqs.iter().all(|sq| sq.attributes.pc()) && cqs.iter().all(|cq| cq.attributes.pc());
        if contiguous { Ok(Self { sqs, cqs }) } else { Err(Wrong::Nonsense("a queue in pieces")) }
    }

    /// A controller with these I/O queues, which had none.
    #[must_use]
    pub fn put_into(&self, mut state: ControllerV1) -> ControllerV1 {
        state.completion_queues.extend(self.cqs.iter().map(completion_queue));
        state.submission_queues.extend(self.sqs.iter().map(submission_queue));
        state
    }
}

/// The first `count` of what is there.
fn read_many<T: FromBytes + Immutable + KnownLayout>(
    bytes: &[u8],
    count: u16,
) -> Result<(Vec<T>, &[u8]), Wrong> {
    let len = usize::from(count) * size_of::<T>();
    let (mut these, rest) = bytes.split_at_checked(len).ok_or(Wrong::Short)?;
    let mut all = Vec::with_capacity(usize::from(count));
    while let Ok((one, after)) = T::read_from_prefix(these) {
        all.push(one);
        these = after;
    }
    Ok((all, rest))
}

/// Positions and sizes of a queue fit its fields: it has at most 65536 entries.
fn narrow(value: u32) -> Result<u16, Wrong> {
    u16::try_from(value).map_err(|_| Wrong::Nonsense("a queue that is too long"))
}

fn sq_state(sq: &SubmissionQueueV1) -> Result<IoSubmissionQueueState, Wrong> {
    Ok(IoSubmissionQueueState {
        prp1: sq.base,
        qsize_z: narrow(sq.size.saturating_sub(1))?,
        qid: sq.sqid,
        cqid: sq.cqid,
        attributes: IoSubmissionQueueAttributes::new().with_pc(true),
        head: narrow(sq.head)?,
        // What the doorbell says is as the guest wrote it.
        tail: narrow(if sq.doorbell < sq.size { sq.doorbell } else { sq.head })?,
        reserved20: [0; 4],
    })
}

fn cq_state(cq: &CompletionQueueV1) -> Result<IoCompletionQueueState, Wrong> {
    // Slot 0 has the tag of this lap, unless the lap has yet to begin.
    let s0pt = if cq.tail == 0 { !cq.phase } else { cq.phase };
    let attributes = IoCompletionQueueAttributes::new()
        .with_pc(true)
        .with_ien(cq.vector.is_some())
        .with_s0pt(s0pt)
        .with_iv(cq.vector.unwrap_or(0));
    Ok(IoCompletionQueueState {
        prp1: cq.base,
        qsize_z: narrow(cq.size.saturating_sub(1))?,
        qid: cq.cqid,
        head: narrow(if cq.doorbell < cq.size { cq.doorbell } else { cq.head })?,
        tail: narrow(cq.tail)?,
        attributes,
        reserved20: [0; 4],
    })
}

fn submission_queue(sq: &IoSubmissionQueueState) -> SubmissionQueueV1 {
    SubmissionQueueV1 {
        sqid: sq.qid,
        base: sq.prp1,
        size: u32::from(sq.qsize_z) + 1,
        cqid: sq.cqid,
        head: sq.head.into(),
        seq: 0,
        doorbell: sq.tail.into(),
        slots: Vec::new(),
    }
}

fn completion_queue(cq: &IoCompletionQueueState) -> CompletionQueueV1 {
    let IoCompletionQueueState { attributes, .. } = *cq;
    CompletionQueueV1 {
        cqid: cq.qid,
        base: cq.prp1,
        size: u32::from(cq.qsize_z) + 1,
        vector: attributes.ien().then_some(attributes.iv()),
        tail: cq.tail.into(),
        phase: attributes.s0pt() != (cq.tail == 0),
        head: cq.head.into(),
        doorbell: cq.head.into(),
    }
}

/// Commands of I/O queues that were accepted and are not answered: the NVMe part alone would lose them.
#[must_use]
pub fn has_unanswered(state: &ControllerV1) -> bool {
    state.submission_queues.iter().any(|sq| sq.sqid != 0 && !sq.slots.is_empty())
}

/// The bytes of a controller's state.
///
/// # Errors
/// It has what no controller can have.
pub fn write(state: &ControllerV1, suspended: bool, parts: Parts) -> Result<Vec<u8>, Wrong> {
    let mut nvme = Vec::new();
    if parts.nvme {
        Queues::of(state)?.write(&mut nvme)?;
    }
    let mut vendor = Vec::new();
    if parts.vendor {
        let body = state.to_bytes()?;
        let len = u32::try_from(body.len()).map_err(|_| Wrong::Nonsense("too long"))?;
        vendor.extend_from_slice(&len.to_le_bytes());
        vendor.extend_from_slice(&body);
        vendor.resize(vendor.len().next_multiple_of(4), 0);
    }
    let dwords = |part: &[u8]| u128::try_from(part.len() / 4).unwrap_or(0).into();
    let header = ControllerStateHeader {
        ver: 0,
        csattr: Csattr::new().with_csup(suspended),
        reserved3: [0; 13],
        nvmecss: dwords(&nvme),
        vss: dwords(&vendor),
    };
    Ok([header.as_bytes(), &nvme, &vendor].concat())
}

/// The controller state in bytes that came from a host, with the parts that the command has indices for. What is longer than it says may
/// end in anything.
///
/// # Errors
/// [`Wrong`] says what.
pub fn read(bytes: &[u8], parts: Parts) -> Result<Received, Wrong> {
    let (header, rest) = ControllerStateHeader::read_from_prefix(bytes).map_err(|_| Wrong::Short)?;
    if header.ver != 0 {
        return Err(Wrong::Nonsense("another version"));
    }
    let len = |dwords: u128| {
        let bytes = usize::try_from(dwords).ok().and_then(|dwords| dwords.checked_mul(4));
        bytes.filter(|bytes| *bytes <= rest.len()).ok_or(Wrong::Short)
    };
    let (nvme, vendor) = (len(header.nvmecss.get())?, len(header.vss.get())?);
    let has = Parts { nvme: nvme != 0, vendor: vendor != 0 };
    if (has.nvme && !parts.nvme) || (has.vendor && !parts.vendor) || !(has.nvme || has.vendor) {
        return Err(Wrong::Parts);
    }
    let (nvme, rest) = rest.split_at(nvme);
    let vendor = rest.get(..vendor).ok_or(Wrong::Short)?;
    let queues = has.nvme.then(|| Queues::read(nvme)).transpose()?;
    let whole = has.vendor.then(|| read_vendor(vendor)).transpose()?;
    match (queues, whole) {
        (Some(queues), Some(whole)) if Queues::of(&whole)? != queues => {
            Err(Wrong::Nonsense("its two parts have other queues"))
        }
        (_, Some(whole)) => Ok(Received::Whole(Box::new(whole))),
        (Some(queues), None) => Ok(Received::Queues(queues)),
        (None, None) => Err(Wrong::Parts),
    }
}

fn read_vendor(bytes: &[u8]) -> Result<ControllerV1, Wrong> {
    let (len, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(Wrong::Short)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Wrong::Short)?;
    let body = rest.get(..len).filter(|_| len <= STATE_BYTES_MAX).ok_or(Wrong::Short)?;
    Ok(ControllerV1::from_bytes(body)?)
}
