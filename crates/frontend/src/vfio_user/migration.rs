//! The states of migration and the ways between them (vfio-user.rst, `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`; Linux's migration
//! protocol v2), and what a device does for it.
//!
//! ```text
//!  PRE_COPY -------> STOP_COPY     MIG_DATA_READ, in both: one stream
//!     |                  |
//!  RUNNING -- STOP ------+
//!                        +---- RESUMING      MIG_DATA_WRITE    any -- a transition that failed for good --> ERROR -- reset --> RUNNING
//! ```
//! Not implemented: the peer-to-peer states, which are not part of vfio-user.

use rustix::io::Errno;
use spec::vfio_user as wire;
use spec::vfio_user::{FeatureIndex, MigState, MigrationFlags};
use zerocopy::IntoBytes;

use super::device::Device;
use super::feature::{Ask, FeatureRequest, HEAD_BYTES, LoggedRange, PAGE_BYTES, ReportRange};
use super::frame::Header;
use super::session::Reply;

/// A migration state that a device here can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// A transition failed, and no other state could be kept. Only a reset leads out of it.
    Error,
    /// The device changes neither its own state nor anything else.
    Stop,
    /// It runs.
    #[default]
    Running,
    /// As `Stop`, and its state can be read.
    StopCopy,
    /// As `Stop`, and it takes a state.
    Resuming,
    /// It runs, and what can be said ahead of its state can be read.
    PreCopy,
}

impl State {
    /// As the wire says it; `None`: not one of ours.
    pub fn of(state: MigState) -> Option<Self> {
        match state {
            MigState::Error => Some(Self::Error),
            MigState::Stop => Some(Self::Stop),
            MigState::Running => Some(Self::Running),
            MigState::StopCopy => Some(Self::StopCopy),
            MigState::Resuming => Some(Self::Resuming),
            MigState::PreCopy => Some(Self::PreCopy),
            _ => None,
        }
    }

    /// For the wire.
    pub fn to_wire(self) -> MigState {
        match self {
            Self::Error => MigState::Error,
            Self::Stop => MigState::Stop,
            Self::Running => MigState::Running,
            Self::StopCopy => MigState::StopCopy,
            Self::Resuming => MigState::Resuming,
            Self::PreCopy => MigState::PreCopy,
        }
    }
}

/// One step between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// RUNNING to STOP: nothing more of the guest's begins, what is under way ends, and then the device changes nothing any more.
    Stop,
    /// STOP to RUNNING.
    Run,
    /// STOP to STOP_COPY: the state can be read.
    Save,
    /// STOP_COPY to STOP: what was not read is dropped.
    EndSave,
    /// STOP to RESUMING: the device awaits a state.
    Load,
    /// RESUMING to STOP: the state that was written becomes the device's, or is refused.
    EndLoad,
    /// RUNNING to PRE_COPY: what can be said ahead of the state can be read.
    BeginPreCopy,
    /// PRE_COPY to RUNNING: what was not read is dropped.
    EndPreCopy,
    /// PRE_COPY to STOP_COPY: as [`Transition::Stop`] and [`Transition::Save`]. What was not read stays to be read, and the state follows it.
    StopCopy,
}

impl Transition {
    /// The first step from one state to another; `None`: there is no way (`vfio_mig_get_next_state` of Linux).
    fn first(from: State, to: State) -> Option<Self> {
        match (from, to) {
            (State::Error, _) | (_, State::Error) | (State::StopCopy, State::PreCopy) => None,
            (State::PreCopy, State::StopCopy) => Some(Self::StopCopy),
            (State::PreCopy, _) => Some(Self::EndPreCopy),
            (State::Running, State::PreCopy) => Some(Self::BeginPreCopy),
            (State::Running, _) => Some(Self::Stop),
            (State::StopCopy, _) => Some(Self::EndSave),
            (State::Resuming, _) => Some(Self::EndLoad),
            (State::Stop, State::Running | State::PreCopy) => Some(Self::Run),
            (State::Stop, State::StopCopy) => Some(Self::Save),
            (State::Stop, State::Resuming) => Some(Self::Load),
            (State::Stop, State::Stop) => None,
        }
    }

    /// Where it leads.
    pub fn end(self) -> State {
        match self {
            Self::Stop | Self::EndSave | Self::EndLoad => State::Stop,
            Self::Run | Self::EndPreCopy => State::Running,
            Self::Save | Self::StopCopy => State::StopCopy,
            Self::Load => State::Resuming,
            Self::BeginPreCopy => State::PreCopy,
        }
    }
}

/// The steps from one state to another: the shortest way, with STOP_COPY, RESUMING and PRE_COPY only at its ends.
///
/// # Errors
/// EINVAL: ERROR is no goal, and only a reset leads out of it; no way leads from STOP_COPY to PRE_COPY.
pub fn steps(from: State, to: State) -> Result<Vec<Transition>, Errno> {
    let (mut at, mut steps) = (from, Vec::new());
    if from == State::Error || to == State::Error {
        return Err(Errno::INVAL);
    }
    while at != to {
        let step = Transition::first(at, to).ok_or(Errno::INVAL)?;
        at = step.end();
        steps.push(step);
    }
    Ok(steps)
}

/// A device that can be migrated.
///
/// The session's duty: a step is taken only from the state where it begins; data is read only in PRE_COPY and STOP_COPY and written only in RESUMING,
/// and at most [`super::frame::DATA_BYTES_MAX`] bytes at a time. The device's duty: a step that succeeds ends in its state, one that fails
/// leaves the state as it was, or ERROR; a reset ends in RUNNING.
pub trait Migration {
    /// The state it is in.
    fn state(&self) -> State;
    /// Takes one step; done when it returns.
    fn step(&mut self, step: Transition) -> Result<(), Errno>;
    /// The next bytes of the stream; fewer than asked for: these are the last, in PRE_COPY of those there are as yet.
    fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Errno>;
    /// The next bytes of a state.
    fn write(&mut self, data: &[u8]) -> Result<(), Errno>;
    /// How it logs what it writes into client memory; `None`: it does not.
    fn logging(&mut self) -> Option<&mut dyn Logging> {
        None
    }
}

/// A log of the pages of client memory that a device has written, of [`PAGE_BYTES`] each. It is independent of the migration state.
pub trait Logging {
    /// Every write that is acknowledged after this returned is in the log: those into these ranges, or into all of memory when there are
    /// none. EINVAL: it is started already.
    fn start(&mut self, ranges: &[LoggedRange]) -> Result<(), Errno>;
    /// Ends it, and forgets what was logged. EINVAL: it was not started.
    fn stop(&mut self) -> Result<(), Errno>;
    /// Calls `page` with the address of each page in the range that was written since it was last reported, and forgets it. Pages that were
    /// not written may be among them. EINVAL: it was not started.
    fn report(&mut self, range: &ReportRange, page: &mut dyn FnMut(u64)) -> Result<(), Errno>;
}

fn migration(device: &mut dyn Device) -> Result<&mut dyn Migration, Errno> {
    // VFIO's answer to a feature it does not have (`<linux/vfio.h>`, VFIO_DEVICE_FEATURE).
    device.migration().ok_or(Errno::NOTTY)
}

fn logging(device: &mut dyn Device) -> Result<&mut dyn Logging, Errno> {
    migration(device)?.logging().ok_or(Errno::NOTTY)
}

/// Carries out a DEVICE_FEATURE.
pub(super) fn feature(
    header: &Header,
    request: &FeatureRequest<'_>,
    device: &mut dyn Device,
) -> Result<Reply, Errno> {
    let is_logging = !matches!(request.ask.feature(), FeatureIndex::Migration | FeatureIndex::MigDeviceState);
    if is_logging {
        logging(device)?;
    }
    let migration = migration(device)?;
    match &request.ask {
        // The reply to a probe and to a set is the request (vfio-user.rst, "VFIO_USER_DEVICE_FEATURE").
        Ask::Probe(_) => Ok(Reply::new(header, request.payload)),
        Ask::MigrationFlags => {
            let flags = MigrationFlags::STOP_COPY.bits() | MigrationFlags::PRE_COPY.bits();
            got(header, request, flags.as_bytes())
        }
        Ask::State => {
            let device_state = migration.state().to_wire().0;
            got(header, request, wire::MigDeviceState { device_state, data_fd: -1 }.as_bytes())
        }
        Ask::SetState(to) => {
            for step in steps(migration.state(), *to)? {
                migration.step(step)?;
            }
            Ok(Reply::new(header, request.payload))
        }
        Ask::StartLogging(ranges) => {
            logging(device)?.start(ranges)?;
            let mut payload = request.payload.to_vec();
            // The grain there is, whatever was wished for.
            if let Some(page_size) = payload.get_mut(HEAD_BYTES..HEAD_BYTES + size_of::<u64>()) {
                page_size.copy_from_slice(PAGE_BYTES.as_bytes());
            }
            Ok(Reply::new(header, &payload))
        }
        Ask::StopLogging => {
            logging(device)?.stop()?;
            Ok(Reply::new(header, request.payload))
        }
        Ask::Report(range) => {
            let bitmap = bitmap(range, logging(device)?)?;
            let report = wire::DmaLoggingReport {
                iova: range.iova,
                length: range.length,
                page_size: range.page_bytes,
            };
            got(header, request, &[report.as_bytes(), bitmap.as_bytes()].concat())
        }
    }
}

/// The pages that were written, one bit for `page_bytes`.
fn bitmap(range: &ReportRange, logging: &mut dyn Logging) -> Result<Vec<u64>, Errno> {
    let mut words = vec![0_u64; range.words];
    logging.report(range, &mut |iova| {
        let bit =
            iova.checked_sub(range.iova).filter(|at| *at < range.length).map(|at| at / range.page_bytes);
        let word = bit.and_then(|bit| words.get_mut(usize::try_from(bit / 64).ok()?));
        if let (Some(word), Some(bit)) = (word, bit) {
            *word |= 1 << (bit % 64);
        }
    })?;
    Ok(words)
}

/// The reply to a get: the head with the length of all, and the data.
fn got(header: &Header, request: &FeatureRequest<'_>, data: &[u8]) -> Result<Reply, Errno> {
    let mut payload = request.payload.get(..HEAD_BYTES).ok_or(Errno::INVAL)?.to_vec();
    let argsz = u32::try_from(HEAD_BYTES + data.len()).map_err(|_| Errno::INVAL)?;
    if let Some(first) = payload.get_mut(..4) {
        first.copy_from_slice(argsz.as_bytes());
    }
    payload.extend_from_slice(data);
    Ok(Reply::new(header, &payload))
}

/// Carries out a MIG_DATA_READ.
pub(super) fn data_read(header: &Header, bytes: usize, device: &mut dyn Device) -> Result<Reply, Errno> {
    let migration = device.migration().ok_or(Errno::OPNOTSUPP)?;
    if !matches!(migration.state(), State::StopCopy | State::PreCopy) {
        return Err(Errno::INVAL);
    }
    let data = migration.read(bytes)?;
    let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    let head_bytes = u32::try_from(size_of::<wire::MigData>()).map_err(|_| Errno::INVAL)?;
    let head = wire::MigData { argsz: size.saturating_add(head_bytes), size };
    Ok(Reply::new(header, &[head.as_bytes(), &data].concat()))
}

/// Carries out a MIG_DATA_WRITE.
pub(super) fn data_write(header: &Header, data: &[u8], device: &mut dyn Device) -> Result<Reply, Errno> {
    let migration = device.migration().ok_or(Errno::OPNOTSUPP)?;
    if migration.state() != State::Resuming {
        return Err(Errno::INVAL);
    }
    migration.write(data)?;
    Ok(Reply::new(header, &[]))
}
