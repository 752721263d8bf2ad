//! Bytes and file descriptors to checked requests, in one place: whatever leaves here has sound sizes, counts and flags.
//!
//! What a frame says of the *device* (does the region exist, is the range inside it) is checked by
//! [`super::Session`], which knows the device. Sans-I/O: [`parse`] takes any bytes and any descriptors.
//!
//! Size rules, as libvfio-user keeps them: a request with an `argsz` field may be longer than its structure (SPDK pads
//! GET_REGION_INFO to 4080 bytes), the others are exact.

use rustix::io::Errno;
use spec::vfio_user as wire;
use spec::vfio_user::{HeaderFlags, IrqSetFlags, MessageType};
use zerocopy::{FromBytes, Immutable, KnownLayout, transmute};

use super::device::{Access, ClientFd, DmaMap, DmaUnmap, IrqAction};
use super::feature;

pub use super::feature::{Ask, BITMAP_BYTES_MAX, FeatureRequest, LoggedRange, PAGE_BYTES, ReportRange};
pub use spec::vfio_user::{CommandId, HEADER_BYTES};

/// The most data one message carries; also what we announce as `max_data_xfer_size`.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// The longest message taken: header, the fields of a region write or DMA reply, data.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 16 + DATA_BYTES_MAX;
/// The most descriptors a message may carry; also what we announce as `max_msg_fds`.
pub const FDS_MAX: usize = 16;
/// The longest version data (the JSON text) taken.
pub const VERSION_DATA_BYTES_MAX: usize = 16 << 10;

/// Why the stream can no longer be followed; the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenStream {
    /// A message shorter than its header.
    #[error("a message of {0} bytes is shorter than its header")]
    TooShort(u32),
    /// A message longer than any that the protocol needs.
    #[error("a message of {0} bytes is longer than any that was agreed on")]
    TooLong(u32),
}

/// A message's header: its size is sound, so the stream can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's own number of the message, echoed in the reply.
    pub id: u16,
    /// The command, perhaps unknown.
    pub command: CommandId,
    /// Bytes that follow the header, at most [`MESSAGE_BYTES_MAX`] - [`HEADER_BYTES`].
    pub payload_bytes: usize,
    /// The flags as they came.
    pub flags: HeaderFlags,
    /// The errno of an error reply.
    pub errno: u32,
}

impl Header {
    /// Reads a header; an error means that the next message cannot be found.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BrokenStream> {
        let wire::Header { id, command, size, flags, errno } = transmute!(*bytes);
        let message_bytes = usize::try_from(size).map_err(|_| BrokenStream::TooLong(size))?;
        if message_bytes > MESSAGE_BYTES_MAX {
            return Err(BrokenStream::TooLong(size));
        }
        let payload_bytes = message_bytes.checked_sub(HEADER_BYTES).ok_or(BrokenStream::TooShort(size))?;
        Ok(Self { id, command: CommandId(command), payload_bytes, flags, errno })
    }

    /// It answers one of our own commands.
    pub fn is_reply(&self) -> bool {
        self.flags.message_type() == MessageType::Reply
    }

    /// It is a reply that reports a failure.
    pub fn is_error(&self) -> bool {
        self.flags.contains(HeaderFlags::ERROR)
    }

    /// The sender wants no reply.
    pub fn no_reply(&self) -> bool {
        !self.is_reply() && self.flags.contains(HeaderFlags::NO_REPLY)
    }
}

/// The 16 bytes before the payload of a message we send.
pub(crate) struct OutgoingHeader {
    pub(crate) id: u16,
    pub(crate) command: CommandId,
    pub(crate) payload_bytes: usize,
    pub(crate) kind: Outgoing,
}

/// What a message we send is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Command,
    /// A command that wants no reply.
    Notice,
    Reply,
    Error(Errno),
}

impl OutgoingHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (flags, errno) = match self.kind {
            Outgoing::Command => (HeaderFlags::empty(), 0),
            Outgoing::Notice => (HeaderFlags::NO_REPLY, 0),
            Outgoing::Reply => (HeaderFlags::REPLY, 0),
            Outgoing::Error(errno) => {
                (HeaderFlags::REPLY | HeaderFlags::ERROR, errno.raw_os_error().unsigned_abs())
            }
        };
        // Nothing we build comes near 4 GiB: region reads and DMA writes are cut at DATA_BYTES_MAX.
        let size = u32::try_from(HEADER_BYTES + self.payload_bytes).unwrap_or(u32::MAX);
        transmute!(wire::Header { id: self.id, command: self.command.0, size, flags, errno })
    }
}

/// A sound command of the client.
#[derive(Debug)]
pub enum Request<'a> {
    /// The first message: a protocol version and, perhaps, capabilities as JSON text without its NUL.
    Version {
        /// Proposed major version.
        major: u16,
        /// Proposed minor version.
        minor: u16,
        /// The JSON text; empty when the client sent none.
        data: &'a [u8],
    },
    /// Memory becomes reachable.
    DmaMap(DmaMap),
    /// Memory goes.
    DmaUnmap {
        /// What goes.
        unmap: DmaUnmap,
        /// The 24 bytes of the request, which the reply repeats.
        entry: &'a [u8],
    },
    /// What is the device?
    DeviceGetInfo,
    /// What is the region?
    RegionInfo {
        /// Its index.
        index: u32,
        /// The longest reply payload the client takes, at least 32.
        argsz: u32,
    },
    /// Which descriptors reach the region?
    RegionIoFds {
        /// Its index.
        index: u32,
    },
    /// What is the interrupt?
    IrqInfo {
        /// Its index.
        index: u32,
    },
    /// Configure or fire interrupts.
    SetIrqs(SetIrqsRequest<'a>),
    /// Read a region.
    RegionRead(RegionRange),
    /// Write a region.
    RegionWrite {
        /// Where.
        range: RegionRange,
        /// As many bytes as the range has.
        data: &'a [u8],
    },
    /// Write small pieces, in order.
    RegionWriteMulti(Vec<SmallWrite>),
    /// Reset the device.
    Reset,
    /// Get, set or probe a feature.
    DeviceFeature(FeatureRequest<'a>),
    /// Read migration data.
    MigDataRead {
        /// At most [`DATA_BYTES_MAX`]; the client has room for them.
        bytes: usize,
    },
    /// Write migration data.
    MigDataWrite {
        /// At most [`DATA_BYTES_MAX`] bytes.
        data: &'a [u8],
    },
    /// A command this server does not know, or one that only a server sends.
    Unknown(CommandId),
}

/// Part of a region, not yet checked against the device; at most [`DATA_BYTES_MAX`] long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionRange {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// The region's index.
    pub region: u32,
    /// How many bytes.
    pub count: u32,
}

/// One write of REGION_WRITE_MULTI: at most 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmallWrite {
    /// Where; `count` is at most 8.
    pub range: RegionRange,
    /// The bytes; those after `count` mean nothing.
    pub data: [u8; 8],
}

impl SmallWrite {
    /// The bytes to write.
    pub fn bytes(&self) -> &[u8] {
        let count = usize::try_from(self.range.count).unwrap_or(0);
        self.data.get(..count).unwrap_or(&[])
    }
}

/// A SET_IRQS with sound flags, not yet checked against the device.
#[derive(Debug)]
pub struct SetIrqsRequest<'a> {
    /// Which kind of interrupt.
    pub index: u32,
    /// The first one meant.
    pub start: u32,
    /// How many are meant.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what.
    pub data: SetIrqsData<'a>,
}

/// What came with a SET_IRQS.
#[derive(Debug)]
pub enum SetIrqsData<'a> {
    /// Nothing.
    None,
    /// `count` booleans.
    Bool(&'a [u8]),
    /// `count` eventfds, or none at all to take away those in use.
    Eventfd(Vec<ClientFd>),
}

/// Turns a command message into a request; an error is what the reply says. `fds` not needed are closed.
pub fn parse<'a>(header: &Header, payload: &'a [u8], fds: Vec<ClientFd>) -> Result<Request<'a>, Errno> {
    if !HeaderFlags::NO_REPLY.contains(header.flags) || payload.len() != header.payload_bytes {
        return Err(Errno::INVAL);
    }
    check_fd_count(header.command, fds.len())?;
    match header.command {
        CommandId::Version => version(payload),
        CommandId::DmaMap => dma_map(payload, fds),
        CommandId::DmaUnmap => dma_unmap(payload),
        CommandId::DeviceGetInfo => {
            let (info, _) = take::<wire::DeviceInfo>(payload)?;
            room::<wire::DeviceInfo>(info.argsz)?;
            Ok(Request::DeviceGetInfo)
        }
        CommandId::DeviceGetRegionInfo => {
            let (info, _) = take::<wire::RegionInfo>(payload)?;
            room::<wire::RegionInfo>(info.argsz)?;
            Ok(Request::RegionInfo { index: info.index, argsz: info.argsz })
        }
        CommandId::DeviceGetRegionIoFds => {
            let (info, _) = take::<wire::RegionIoFds>(payload)?;
            room::<wire::RegionIoFds>(info.argsz)?;
            Ok(Request::RegionIoFds { index: info.index })
        }
        CommandId::DeviceGetIrqInfo => {
            let (info, _) = take::<wire::IrqInfo>(payload)?;
            room::<wire::IrqInfo>(info.argsz)?;
            Ok(Request::IrqInfo { index: info.index })
        }
        CommandId::DeviceSetIrqs => set_irqs(payload, fds),
        CommandId::RegionRead => {
            let (access, rest) = take::<wire::RegionAccess>(payload)?;
            nothing(rest)?;
            Ok(Request::RegionRead(region_range(access, DATA_BYTES_MAX)?))
        }
        CommandId::RegionWrite => {
            let (access, data) = take::<wire::RegionAccess>(payload)?;
            let range = region_range(access, DATA_BYTES_MAX)?;
            if usize::try_from(range.count) != Ok(data.len()) {
                return Err(Errno::INVAL);
            }
            Ok(Request::RegionWrite { range, data })
        }
        CommandId::RegionWriteMulti => region_write_multi(payload),
        CommandId::DeviceReset => nothing(payload).map(|()| Request::Reset),
        CommandId::DeviceFeature => feature::feature(payload),
        CommandId::MigDataRead => feature::read(payload),
        CommandId::MigDataWrite => feature::write(payload),
        unknown => Ok(Request::Unknown(unknown)),
    }
}

fn check_fd_count(command: CommandId, count: usize) -> Result<(), Errno> {
    let most = match command {
        // SPDK's driver sends the region's descriptor with its unmap, too.
        CommandId::DmaMap | CommandId::DmaUnmap => 1,
        CommandId::DeviceSetIrqs => FDS_MAX,
        _ => 0,
    };
    if count > most { Err(Errno::INVAL) } else { Ok(()) }
}

/// The structure at the front and what follows it.
pub(super) fn take<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::INVAL)
}

/// The `argsz` of a request is at least its structure's size (vfio-user.rst, "Message sizes").
pub(super) fn room<T>(argsz: u32) -> Result<(), Errno> {
    if usize::try_from(argsz).is_ok_and(|argsz| argsz >= size_of::<T>()) { Ok(()) } else { Err(Errno::INVAL) }
}

fn nothing(rest: &[u8]) -> Result<(), Errno> {
    if rest.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
}

fn version(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (wire::Version { major, minor }, data) = take(payload)?;
    if data.len() > VERSION_DATA_BYTES_MAX {
        return Err(Errno::INVAL);
    }
    // A client that forgets the NUL means the same.
    let data = data.split(|&byte| byte == 0).next().unwrap_or(&[]);
    Ok(Request::Version { major, minor, data })
}

fn dma_map(payload: &[u8], fds: Vec<ClientFd>) -> Result<Request<'_>, Errno> {
    let (wire::DmaMap { argsz, flags, offset, address: iova, size }, _) = take(payload)?;
    room::<wire::DmaMap>(argsz)?;
    let known = wire::DmaMapFlags::READ | wire::DmaMapFlags::WRITE;
    if !known.contains(flags) || size == 0 {
        return Err(Errno::INVAL);
    }
    // The last byte must have an address; the end itself may be 2^64.
    iova.checked_add(size - 1).ok_or(Errno::INVAL)?;
    let backing = match fds.into_iter().next() {
        Some(fd) => {
            let end = offset.checked_add(size).ok_or(Errno::INVAL)?;
            i64::try_from(end).map_err(|_| Errno::INVAL)?;
            Some((fd, offset))
        }
        None => None,
    };
    let (read, write) = (flags.contains(wire::DmaMapFlags::READ), flags.contains(wire::DmaMapFlags::WRITE));
    Ok(Request::DmaMap(DmaMap { iova, size, access: Access { read, write }, backing }))
}

/// vfio-user.rst calls the flags unused, QEMU sends `VFIO_DMA_UNMAP_FLAG_ALL` of `<linux/vfio.h>`.
fn dma_unmap(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (wire::DmaUnmap { argsz, flags, address: iova, size }, _) = take(payload)?;
    room::<wire::DmaUnmap>(argsz)?;
    let unmap = if flags.is_empty() && size > 0 {
        DmaUnmap::Range { iova, size }
    } else if flags == wire::DmaUnmapFlags::ALL && iova == 0 && size == 0 {
        DmaUnmap::All
    } else {
        return Err(Errno::INVAL);
    };
    let entry = payload.get(..size_of::<wire::DmaUnmap>()).ok_or(Errno::INVAL)?;
    Ok(Request::DmaUnmap { unmap, entry })
}

fn set_irqs(payload: &[u8], fds: Vec<ClientFd>) -> Result<Request<'_>, Errno> {
    let (wire::IrqSet { argsz, flags, index, start, count }, bools) = take(payload)?;
    room::<wire::IrqSet>(argsz)?;
    let kind = flags.intersection(IrqSetFlags::DATA_MASK);
    let action = flags.difference(IrqSetFlags::DATA_MASK);
    let action = if action == IrqSetFlags::ACTION_MASK {
        IrqAction::Mask
    } else if action == IrqSetFlags::ACTION_UNMASK {
        IrqAction::Unmask
    } else if action == IrqSetFlags::ACTION_TRIGGER {
        IrqAction::Trigger
    } else {
        return Err(Errno::INVAL);
    };
    let wanted = usize::try_from(count).map_err(|_| Errno::INVAL)?;
    if kind != IrqSetFlags::DATA_EVENTFD && !fds.is_empty() {
        return Err(Errno::INVAL);
    }
    let data = if kind == IrqSetFlags::DATA_NONE {
        SetIrqsData::None
    } else if kind == IrqSetFlags::DATA_BOOL {
        let argsz = u64::from(argsz);
        if argsz < size_of::<wire::IrqSet>() as u64 + u64::from(count) {
            return Err(Errno::INVAL);
        }
        SetIrqsData::Bool(bools.get(..wanted).ok_or(Errno::INVAL)?)
    } else if kind == IrqSetFlags::DATA_EVENTFD && (fds.is_empty() || fds.len() == wanted) {
        SetIrqsData::Eventfd(fds)
    } else {
        return Err(Errno::INVAL);
    };
    let disable_all = start == 0 && action == IrqAction::Trigger && matches!(data, SetIrqsData::None);
    if count == 0 && !disable_all {
        return Err(Errno::INVAL);
    }
    Ok(Request::SetIrqs(SetIrqsRequest { index, start, count, action, data }))
}

fn region_range(access: wire::RegionAccess, count_max: usize) -> Result<RegionRange, Errno> {
    let wire::RegionAccess { offset, region, count } = access;
    if usize::try_from(count).map_or(true, |count| count > count_max) {
        return Err(Errno::INVAL);
    }
    Ok(RegionRange { offset, region, count })
}

fn region_write_multi(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let (wire::RegionWriteMulti { wr_cnt }, mut rest) = take(payload)?;
    // The payload is bounded, so the count is, before anything is set aside for it.
    let count = usize::try_from(wr_cnt).map_err(|_| Errno::INVAL)?;
    if count.checked_mul(size_of::<wire::RegionWriteOne>()) != Some(rest.len()) {
        return Err(Errno::INVAL);
    }
    let mut writes = Vec::with_capacity(count);
    for _ in 0..count {
        let one: wire::RegionWriteOne;
        (one, rest) = take(rest)?;
        let access = wire::RegionAccess { offset: one.offset, region: one.region, count: one.count };
        writes.push(SmallWrite { range: region_range(access, one.data.len())?, data: one.data });
    }
    Ok(Request::RegionWriteMulti(writes))
}
