//! DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE to checked requests (vfio-user.rst, "Device Features"; the order of the checks is
//! that of Linux's VFIO_DEVICE_FEATURE: flags, feature, method, sizes).

use rustix::io::Errno;
use spec::vfio_user as wire;
use spec::vfio_user::{DeviceFeatureFlags as Flags, FeatureIndex, MigState};
use zerocopy::FromBytes;

use super::frame::{DATA_BYTES_MAX, Request, room, take};
use super::migration::State;

/// The grain of DMA logging, and the least that a bit of a report may stand for.
pub const PAGE_BYTES: u64 = 4096;
/// The longest bitmap of a report: also what we announce as `max_bitmap_size`.
pub const BITMAP_BYTES_MAX: usize = DATA_BYTES_MAX;
/// Bytes before a feature's data.
pub(super) const HEAD_BYTES: usize = size_of::<wire::DeviceFeature>();

/// A DEVICE_FEATURE with sound flags and sizes.
#[derive(Debug)]
pub struct FeatureRequest<'a> {
    /// What is asked.
    pub ask: Ask,
    /// The request's payload, which some replies repeat.
    pub payload: &'a [u8],
}

/// What is asked of a feature.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// Is this feature there, with the methods that were named? They are those the feature has.
    Probe(FeatureIndex),
    /// Which migration states are there?
    MigrationFlags,
    /// In which state is the device?
    State,
    /// Bring it to this state.
    SetState(State),
    /// Log what the device writes.
    StartLogging(Vec<LoggedRange>),
    /// Log no more.
    StopLogging,
    /// What was written?
    Report(ReportRange),
}

impl Ask {
    /// The feature it is of.
    pub fn feature(&self) -> FeatureIndex {
        match self {
            Self::Probe(feature) => *feature,
            Self::MigrationFlags => FeatureIndex::Migration,
            Self::State | Self::SetState(_) => FeatureIndex::MigDeviceState,
            Self::StartLogging(_) => FeatureIndex::DmaLoggingStart,
            Self::StopLogging => FeatureIndex::DmaLoggingStop,
            Self::Report(_) => FeatureIndex::DmaLoggingReport,
        }
    }
}

/// A run of client memory: it has at least one byte, and its last byte has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// The range of a report. It begins at a page, its last byte has an address, and its bitmap is at most [`BITMAP_BYTES_MAX`] long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportRange {
    /// First address.
    pub iova: u64,
    /// Bytes, at least one.
    pub length: u64,
    /// Bytes that a bit stands for: a power of two, at least [`PAGE_BYTES`].
    pub page_bytes: u64,
    /// Words of 64 bits in the bitmap.
    pub words: usize,
}

/// The methods a feature has; `None`: there is no such feature.
fn methods(feature: FeatureIndex) -> Option<Flags> {
    match feature {
        FeatureIndex::Migration | FeatureIndex::DmaLoggingReport => Some(Flags::GET),
        FeatureIndex::MigDeviceState => Some(Flags::GET | Flags::SET),
        FeatureIndex::DmaLoggingStart | FeatureIndex::DmaLoggingStop => Some(Flags::SET),
        _ => None,
    }
}

pub(super) fn feature(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (wire::DeviceFeature { argsz, flags }, data) = take(payload)?;
    room::<wire::DeviceFeature>(argsz)?;
    let (get, set, probe) =
        (flags.contains(Flags::GET), flags.contains(Flags::SET), flags.contains(Flags::PROBE));
    let known = Flags::GET.bits() | Flags::SET.bits() | Flags::PROBE.bits() | Flags::FEATURE_MASK;
    if flags.bits() & !known != 0 || get && set && !probe {
        return Err(Errno::INVAL);
    }
    let has = methods(flags.feature()).ok_or(Errno::NOTTY)?;
    let asked = flags.intersection(Flags::GET | Flags::SET);
    if !has.contains(asked) || asked.is_empty() && !probe {
        return Err(Errno::INVAL);
    }
    let ask = if probe { Ask::Probe(flags.feature()) } else { method(flags.feature(), set, data)? };
    let request = FeatureRequest { ask, payload };
    // The reply has as much room as the client says, and every reply but an error is whole.
    let fits = usize::try_from(argsz).is_ok_and(|argsz| argsz >= request.reply_bytes());
    if fits { Ok(Request::DeviceFeature(request)) } else { Err(Errno::INVAL) }
}

impl FeatureRequest<'_> {
    /// The length of the reply's payload.
    fn reply_bytes(&self) -> usize {
        match &self.ask {
            Ask::MigrationFlags => HEAD_BYTES + size_of::<u64>(),
            Ask::State => HEAD_BYTES + size_of::<wire::MigDeviceState>(),
            Ask::Report(range) => HEAD_BYTES + size_of::<wire::DmaLoggingReport>() + range.words * 8,
            _ => self.payload.len(),
        }
    }
}

fn method(feature: FeatureIndex, set: bool, data: &[u8]) -> Result<Ask, Errno> {
    match feature {
        FeatureIndex::Migration => Ok(Ask::MigrationFlags),
        FeatureIndex::MigDeviceState if set => {
            let (wire::MigDeviceState { device_state, .. }, _) = take(data)?;
            State::of(MigState(device_state)).map(Ask::SetState).ok_or(Errno::INVAL)
        }
        FeatureIndex::MigDeviceState => Ok(Ask::State),
        FeatureIndex::DmaLoggingStart => start(data),
        FeatureIndex::DmaLoggingStop => Ok(Ask::StopLogging),
        FeatureIndex::DmaLoggingReport => report(data),
        _ => Err(Errno::NOTTY),
    }
}

fn start(data: &[u8]) -> Result<Ask, Errno> {
    let (wire::DmaLoggingControl { page_size, num_ranges, .. }, mut rest) = take(data)?;
    // The payload is bounded, so the count is, before anything is set aside for it.
    let count = usize::try_from(num_ranges).map_err(|_| Errno::INVAL)?;
    if count.checked_mul(size_of::<wire::DmaLoggingRange>()) != Some(rest.len())
        || !page_size.is_power_of_two()
    {
        return Err(Errno::INVAL);
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let one: wire::DmaLoggingRange;
        (one, rest) = take(rest)?;
        let wire::DmaLoggingRange { iova, length } = one;
        last_of(iova, length)?;
        ranges.push(LoggedRange { iova, length });
    }
    Ok(Ask::StartLogging(ranges))
}

fn report(data: &[u8]) -> Result<Ask, Errno> {
    let (wire::DmaLoggingReport { iova, length, page_size }, _) = take(data)?;
    last_of(iova, length)?;
    if page_size < PAGE_BYTES || !page_size.is_power_of_two() || !iova.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::INVAL);
    }
    let words = usize::try_from(length.div_ceil(page_size).div_ceil(64)).map_err(|_| Errno::INVAL)?;
    if words > BITMAP_BYTES_MAX / 8 {
        return Err(Errno::INVAL);
    }
    Ok(Ask::Report(ReportRange { iova, length, page_bytes: page_size, words }))
}

/// The last address of a run, if it has one.
fn last_of(iova: u64, length: u64) -> Result<u64, Errno> {
    length.checked_sub(1).and_then(|more| iova.checked_add(more)).ok_or(Errno::INVAL)
}

/// The reply has room for all that is asked for: a reply that is shorter means that there is no more.
pub(super) fn read(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let wire::MigData { argsz, size } = wire::MigData::read_from_bytes(payload).map_err(|_| Errno::INVAL)?;
    let (argsz, bytes) = (usize::try_from(argsz), usize::try_from(size).map_err(|_| Errno::INVAL)?);
    let fits = argsz.is_ok_and(|argsz| argsz >= size_of::<wire::MigData>().saturating_add(bytes));
    if fits && bytes <= DATA_BYTES_MAX { Ok(Request::MigDataRead { bytes }) } else { Err(Errno::INVAL) }
}

pub(super) fn write(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (wire::MigData { argsz, size }, data) = take(payload)?;
    room::<wire::MigData>(argsz)?;
    let whole = usize::try_from(size) == Ok(data.len()) && data.len() <= DATA_BYTES_MAX;
    if whole { Ok(Request::MigDataWrite { data }) } else { Err(Errno::INVAL) }
}
