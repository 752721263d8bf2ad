//! Bytes and file descriptors to checked requests, in one place: whatever leaves here has sound sizes, counts and flags.
//!
//! What a frame says of the *session* (is there such a ring, does the region overlap another) is checked by
//! [`super::Session`]. Sans-I/O: [`parse`] takes any bytes and any descriptors.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use spec::vhost_user as wire;
use spec::vhost_user::{CONFIG_BYTES_MAX, HeaderFlags, MemoryRegion, ProtocolFeatures, VringAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

pub use spec::vhost_user::{HEADER_BYTES, RequestId};

/// The longest payload taken; the longest that is needed is that of a configuration space.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
/// The most descriptors beside a message: one for each region of a memory table.
pub const FDS_MAX: usize = wire::TABLE_REGIONS_MAX;

/// Names a descriptor in a session. The keeper numbers the client's from 0; without a keeper the transport does.
pub type FdId = u32;

/// Why the stream can no longer be followed; the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenStream {
    /// A payload longer than any that the protocol needs.
    #[error("a message with {0} bytes of payload is longer than any that the protocol needs")]
    TooLong(u32),
}

/// Why a message is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{why} ({errno})")]
pub struct Refusal {
    /// As a number.
    pub errno: Errno,
    /// In words, for the log.
    pub why: &'static str,
}

impl Refusal {
    pub(crate) const fn new(errno: Errno, why: &'static str) -> Self {
        Self { errno, why }
    }
}

const fn invalid(why: &'static str) -> Refusal {
    Refusal::new(Errno::INVAL, why)
}

/// A message's header: its size is sound, so the stream can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked, perhaps unknown.
    pub request: RequestId,
    /// The flags as they came.
    pub flags: HeaderFlags,
    /// Bytes that follow the header, at most [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes: usize,
}

impl Header {
    /// Reads a header; an error means that the next message cannot be found.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BrokenStream> {
        let wire::Header { request, flags, size } = transmute!(*bytes);
        let payload_bytes = usize::try_from(size).map_err(|_| BrokenStream::TooLong(size))?;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(BrokenStream::TooLong(size));
        }
        Ok(Self { request: RequestId(request), flags, payload_bytes })
    }

    /// The sender wants to know how it went, if that was agreed on.
    pub fn needs_reply(&self) -> bool {
        self.flags.contains(HeaderFlags::NEED_REPLY)
    }

    /// It speaks this version of the protocol.
    pub fn is_this_version(&self) -> bool {
        self.flags.intersection(HeaderFlags::VERSION_MASK).bits() == wire::VERSION
    }
}

/// A descriptor of the client.
#[derive(Debug)]
pub struct ClientFd {
    /// Its name in the session.
    pub id: FdId,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// A message as it came: its header is sound, the rest is not yet looked at.
#[derive(Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: Vec<u8>,
    /// Its descriptors, in order.
    pub fds: Vec<ClientFd>,
    /// More descriptors came than a message may carry; the surplus is closed.
    pub surplus_fds: bool,
}

/// Inflight description: sizes are not yet checked against the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightShape {
    /// Bytes.
    pub mmap_size: u64,
    /// First byte in the file.
    pub mmap_offset: u64,
    /// Rings.
    pub num_queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// The length of the message, which the reply has too.
    pub wire_bytes: usize,
}

/// A sound message of the client.
#[derive(Debug)]
pub enum Request {
    /// What can the device and vhost do?
    GetFeatures,
    /// Use these of it.
    SetFeatures(u64),
    /// What can the protocol do?
    GetProtocolFeatures,
    /// Use these of it.
    SetProtocolFeatures(ProtocolFeatures),
    /// The session starts.
    SetOwner,
    /// Disable all rings.
    ResetOwner,
    /// Reset the device.
    ResetDevice,
    /// All memory at once.
    SetMemTable(Vec<(MemoryRegion, ClientFd)>),
    /// One more region.
    AddMemReg(MemoryRegion, ClientFd),
    /// One region less.
    RemMemReg(MemoryRegion),
    /// How many regions at most?
    GetMaxMemSlots,
    /// Entries of a ring.
    SetVringNum {
        /// Which.
        index: u32,
        /// How many.
        num: u32,
    },
    /// Addresses of a ring.
    SetVringAddr(VringAddr),
    /// Where a ring goes on.
    SetVringBase {
        /// Which.
        index: u32,
        /// Where; two indexes and wrap counters for a packed ring.
        base: u32,
    },
    /// Stop a ring.
    GetVringBase {
        /// Which.
        index: u32,
    },
    /// An eventfd of a ring, or none from now on.
    SetVringFd {
        /// What for.
        event: VringEvent,
        /// Which ring.
        index: u32,
        /// The eventfd.
        fd: Option<ClientFd>,
    },
    /// Enable or disable a ring.
    SetVringEnable {
        /// Which.
        index: u32,
        /// Enable.
        on: bool,
    },
    /// How many rings at most?
    GetQueueNum,
    /// Read the configuration space.
    GetConfig {
        /// First byte.
        offset: usize,
        /// Bytes; all lie in the first [`CONFIG_BYTES_MAX`].
        size: usize,
    },
    /// Write the configuration space.
    SetConfig {
        /// First byte.
        offset: usize,
        /// The bytes; all lie in the first [`CONFIG_BYTES_MAX`].
        data: Vec<u8>,
    },
    /// A socket for our own requests.
    SetBackendReqFd(ClientFd),
    /// A new in-flight region, please.
    GetInflightFd(InflightShape),
    /// Use this in-flight region.
    SetInflightFd(InflightShape, ClientFd),
    /// Log dirty pages here.
    SetLogBase(wire::Log, ClientFd),
    /// Tell of changes of the log.
    SetLogFd(ClientFd),
    /// The device status.
    SetStatus(u8),
    /// The device status?
    GetStatus,
}

/// What an eventfd of a ring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VringEvent {
    /// The driver made buffers available.
    Kick,
    /// The device used buffers.
    Call,
    /// The device cannot go on.
    Err,
}

/// Turns a message into a request. `fds` not needed are closed.
pub fn parse(message: Message) -> Result<Request, Refusal> {
    let Message { header, payload, fds, surplus_fds } = message;
    let known = HeaderFlags::VERSION_MASK | HeaderFlags::NEED_REPLY;
    if !header.is_this_version() {
        return Err(invalid("another version of the protocol"));
    }
    if !known.contains(header.flags) {
        return Err(invalid("flags that a front-end does not set"));
    }
    if surplus_fds || payload.len() != header.payload_bytes {
        return Err(invalid("more descriptors, or other bytes, than a message may have"));
    }
    match header.request {
        RequestId::SetMemTable => mem_table(&payload, fds),
        RequestId::AddMemReg => {
            let single: wire::SingleMemoryRegion = whole(&payload)?;
            Ok(Request::AddMemReg(single.region, one_fd(fds)?))
        }
        // "The back-end MAY accept messages with one file descriptor" (REM_MEM_REG): QEMU once sent it.
        RequestId::RemMemReg if fds.len() <= 1 => {
            let single: wire::SingleMemoryRegion = whole(&payload)?;
            Ok(Request::RemMemReg(single.region))
        }
        RequestId::SetVringKick => vring_fd(VringEvent::Kick, &payload, fds),
        RequestId::SetVringCall => vring_fd(VringEvent::Call, &payload, fds),
        RequestId::SetVringErr => vring_fd(VringEvent::Err, &payload, fds),
        RequestId::SetLogBase => Ok(Request::SetLogBase(whole(&payload)?, one_fd(fds)?)),
        RequestId::SetLogFd => empty(&payload).and_then(|()| Ok(Request::SetLogFd(one_fd(fds)?))),
        RequestId::SetBackendReqFd => {
            empty(&payload).and_then(|()| Ok(Request::SetBackendReqFd(one_fd(fds)?)))
        }
        RequestId::SetInflightFd => Ok(Request::SetInflightFd(inflight(&payload)?, one_fd(fds)?)),
        _ if !fds.is_empty() => Err(invalid("descriptors beside a message that takes none")),
        request => without_fds(request, &payload),
    }
}

fn without_fds(request: RequestId, payload: &[u8]) -> Result<Request, Refusal> {
    let state = || whole::<wire::VringState>(payload);
    let only = |request: Request| empty(payload).map(|()| request);
    match request {
        RequestId::GetFeatures => only(Request::GetFeatures),
        RequestId::SetFeatures => Ok(Request::SetFeatures(whole(payload)?)),
        RequestId::GetProtocolFeatures => only(Request::GetProtocolFeatures),
        RequestId::SetProtocolFeatures => Ok(Request::SetProtocolFeatures(whole(payload)?)),
        RequestId::SetOwner => only(Request::SetOwner),
        RequestId::ResetOwner => only(Request::ResetOwner),
        RequestId::ResetDevice => only(Request::ResetDevice),
        RequestId::GetMaxMemSlots => only(Request::GetMaxMemSlots),
        RequestId::GetQueueNum => only(Request::GetQueueNum),
        RequestId::SetVringNum => state().map(|it| Request::SetVringNum { index: it.index, num: it.num }),
        RequestId::SetVringBase => state().map(|it| Request::SetVringBase { index: it.index, base: it.num }),
        RequestId::GetVringBase => state().map(|it| Request::GetVringBase { index: it.index }),
        RequestId::SetVringEnable => match state()? {
            wire::VringState { index, num: num @ 0..=1 } => {
                Ok(Request::SetVringEnable { index, on: num == 1 })
            }
            _ => Err(invalid("a ring is enabled (1) or disabled (0)")),
        },
        RequestId::SetVringAddr => {
            let addr: VringAddr = whole(payload)?;
            if addr.flags & !VringAddr::LOG != 0 {
                return Err(invalid("unknown flags of a ring's addresses"));
            }
            Ok(Request::SetVringAddr(addr))
        }
        RequestId::GetConfig => {
            let (offset, size, data) = config(payload)?;
            if !data.is_empty() && data.len() != size {
                return Err(invalid("a configuration request with other bytes than it says"));
            }
            Ok(Request::GetConfig { offset, size })
        }
        RequestId::SetConfig => {
            let (offset, size, data) = config(payload)?;
            if data.len() != size {
                return Err(invalid("a configuration write with other bytes than it says"));
            }
            Ok(Request::SetConfig { offset, data: data.to_vec() })
        }
        RequestId::GetInflightFd => Ok(Request::GetInflightFd(inflight(payload)?)),
        RequestId::SetStatus => {
            let status: u64 = whole(payload)?;
            let status = u8::try_from(status).map_err(|_| invalid("a device status has 8 bits"))?;
            Ok(Request::SetStatus(status))
        }
        RequestId::GetStatus => only(Request::GetStatus),
        _ => Err(Refusal::new(Errno::OPNOTSUPP, "a message that this back-end does not know")),
    }
}

/// The payload as exactly one structure.
fn whole<T: FromBytes + Immutable + KnownLayout>(payload: &[u8]) -> Result<T, Refusal> {
    T::read_from_bytes(payload).map_err(|_| invalid("the payload has another size than its message"))
}

fn empty(payload: &[u8]) -> Result<(), Refusal> {
    if payload.is_empty() { Ok(()) } else { Err(invalid("a payload where there is none")) }
}

fn one_fd(fds: Vec<ClientFd>) -> Result<ClientFd, Refusal> {
    let [fd] = <[ClientFd; 1]>::try_from(fds).map_err(|_| invalid("exactly one descriptor belongs here"))?;
    Ok(fd)
}

/// A table may be longer than its regions (a client may send the C structure whole), and then the rest means nothing.
fn mem_table(payload: &[u8], fds: Vec<ClientFd>) -> Result<Request, Refusal> {
    let short = || invalid("a memory table shorter than it says");
    let (table, rest) = wire::MemoryTable::read_from_prefix(payload).map_err(|_| short())?;
    let count = usize::try_from(table.num_regions).unwrap_or(usize::MAX);
    if count > wire::TABLE_REGIONS_MAX {
        return Err(invalid("more regions than a memory table has"));
    }
    if fds.len() != count {
        return Err(invalid("a memory table has a descriptor for each region"));
    }
    let mut regions = Vec::with_capacity(count);
    let mut rest = rest;
    for fd in fds {
        let region: MemoryRegion;
        (region, rest) = MemoryRegion::read_from_prefix(rest).map_err(|_| short())?;
        regions.push((region, fd));
    }
    Ok(Request::SetMemTable(regions))
}

fn vring_fd(event: VringEvent, payload: &[u8], mut fds: Vec<ClientFd>) -> Result<Request, Refusal> {
    let word: u64 = whole(payload)?;
    if word & !(wire::VRING_INDEX_MASK | wire::VRING_NO_FD) != 0 {
        return Err(invalid("unknown bits beside a ring's index"));
    }
    let wanted = usize::from(word & wire::VRING_NO_FD == 0);
    if fds.len() != wanted {
        return Err(invalid("an eventfd, or the flag that there is none"));
    }
    let index = u32::try_from(word & wire::VRING_INDEX_MASK).unwrap_or(u32::MAX);
    Ok(Request::SetVringFd { event, index, fd: fds.pop() })
}

/// Offset, size and what follows; the range lies in the configuration space.
fn config(payload: &[u8]) -> Result<(usize, usize, &[u8]), Refusal> {
    let (config, data) = wire::Config::read_from_prefix(payload)
        .map_err(|_| invalid("a configuration message shorter than its fields"))?;
    let place = |word: u32| usize::try_from(word).ok().filter(|place| *place <= CONFIG_BYTES_MAX);
    let (offset, size) = place(config.offset)
        .zip(place(config.size))
        .filter(|(offset, size)| offset + size <= CONFIG_BYTES_MAX)
        .ok_or(invalid("outside of the configuration space"))?;
    Ok((offset, size, data))
}

/// Both lengths are in use: see [`wire::Inflight`].
fn inflight(payload: &[u8]) -> Result<InflightShape, Refusal> {
    let wire_bytes = payload.len();
    if wire_bytes != wire::Inflight::PACKED_BYTES && wire_bytes != size_of::<wire::Inflight>() {
        return Err(invalid("the payload has another size than its message"));
    }
    let mut padded = wire::Inflight::default();
    for (to, from) in padded.as_mut_bytes().iter_mut().zip(payload) {
        *to = *from;
    }
    let wire::Inflight { mmap_size, mmap_offset, num_queues, queue_size, padding: _ } = padded;
    Ok(InflightShape { mmap_size, mmap_offset, num_queues, queue_size, wire_bytes })
}
