//! Bytes and file descriptors to checked requests, in one place: whatever leaves here has sound sizes, counts and flags.
//!
//! What a frame says of the *device* (does the region exist, is the range inside it) is checked by
//! [`super::Session`], which knows the device. Sans-I/O: [`parse`] takes any bytes and any descriptors.
//!
//! Size rules, as libvfio-user keeps them: a request with an `argsz` field may be longer than its structure (SPDK pads
//! GET_REGION_INFO to 4080 bytes), the others are exact.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::device::{Access, DmaMap, DmaUnmap, IrqAction};

/// Bytes of the header every message begins with.
pub const HEADER_BYTES: usize = 16;
/// The most data one message carries; also what we announce as `max_data_xfer_size`.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// The longest message taken: header, the fields of a region write or DMA reply, data.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 16 + DATA_BYTES_MAX;
/// The most descriptors a message may carry; also what we announce as `max_msg_fds`.
pub const FDS_MAX: usize = 16;
/// The longest version data (the JSON text) taken.
pub const VERSION_DATA_BYTES_MAX: usize = 16 << 10;

const TYPE_MASK: u32 = 0xF;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// Command numbers (vfio-user.rst, "Commands").
pub mod command {
    #![expect(missing_docs, reason = "the names are the protocol's own")]
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

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
    pub command: u16,
    /// Bytes that follow the header, at most [`MESSAGE_BYTES_MAX`] - [`HEADER_BYTES`].
    pub payload_bytes: usize,
    /// The flags as they came.
    pub flags: u32,
    /// The errno of an error reply.
    pub errno: u32,
}

impl Header {
    /// Reads a header; an error means that the next message cannot be found.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BrokenStream> {
        let mut fields = Fields(bytes);
        // The five reads are within 16 bytes; the default is never used.
        let (id, command) = (fields.u16().unwrap_or(0), fields.u16().unwrap_or(0));
        let size = fields.u32().unwrap_or(0);
        let (flags, errno) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
        let message_bytes = usize::try_from(size).map_err(|_| BrokenStream::TooLong(size))?;
        if message_bytes > MESSAGE_BYTES_MAX {
            return Err(BrokenStream::TooLong(size));
        }
        let payload_bytes = message_bytes.checked_sub(HEADER_BYTES).ok_or(BrokenStream::TooShort(size))?;
        Ok(Self { id, command, payload_bytes, flags, errno })
    }

    /// It answers one of our own commands.
    pub fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_REPLY
    }

    /// It is a reply that reports a failure.
    pub fn is_error(&self) -> bool {
        self.flags & ERROR != 0
    }

    /// The sender wants no reply.
    pub fn no_reply(&self) -> bool {
        !self.is_reply() && self.flags & NO_REPLY != 0
    }
}

/// The 16 bytes before the payload of a message we send.
pub(crate) struct OutgoingHeader {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) payload_bytes: usize,
    pub(crate) kind: Outgoing,
}

/// What a message we send is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Command,
    Reply,
    Error(Errno),
}

impl OutgoingHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (flags, errno) = match self.kind {
            Outgoing::Command => (0, 0),
            Outgoing::Reply => (TYPE_REPLY, 0),
            Outgoing::Error(errno) => (TYPE_REPLY | ERROR, errno.raw_os_error().unsigned_abs()),
        };
        // Nothing we build comes near 4 GiB: region reads and DMA writes are cut at DATA_BYTES_MAX.
        let size = u32::try_from(HEADER_BYTES + self.payload_bytes).unwrap_or(u32::MAX);
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&self.id.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_le_bytes());
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::to_le_bytes(flags));
        bytes[12..16].copy_from_slice(&errno.to_le_bytes());
        bytes
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
    DeviceFeature {
        /// Feature index and method bits as they came.
        flags: u32,
    },
    /// Read migration data.
    MigDataRead,
    /// Write migration data.
    MigDataWrite,
    /// A command this server does not know, or one that only a server sends.
    Unknown(u16),
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
    Eventfd(Vec<OwnedFd>),
}

/// Turns a command message into a request; an error is what the reply says. `fds` not needed are closed.
pub fn parse<'a>(header: &Header, payload: &'a [u8], fds: Vec<OwnedFd>) -> Result<Request<'a>, Errno> {
    if header.flags & !NO_REPLY != 0 || payload.len() != header.payload_bytes {
        return Err(Errno::INVAL);
    }
    check_fd_count(header.command, fds.len())?;
    let mut fields = Fields(payload);
    match header.command {
        command::VERSION => version(fields),
        command::DMA_MAP => dma_map(fields, fds),
        command::DMA_UNMAP => dma_unmap(payload),
        command::DEVICE_GET_INFO => argsz(&mut fields, 16, 16).map(|_| Request::DeviceGetInfo),
        command::DEVICE_GET_REGION_INFO => region_info(fields),
        command::DEVICE_GET_REGION_IO_FDS => {
            argsz(&mut fields, 16, 16)?;
            let _flags = fields.u32()?;
            Ok(Request::RegionIoFds { index: fields.u32()? })
        }
        command::DEVICE_GET_IRQ_INFO => {
            argsz(&mut fields, 16, 16)?;
            let _flags = fields.u32()?;
            Ok(Request::IrqInfo { index: fields.u32()? })
        }
        command::DEVICE_SET_IRQS => set_irqs(fields, fds),
        command::REGION_READ => {
            let range = region_range(&mut fields, DATA_BYTES_MAX)?;
            fields.end()?;
            Ok(Request::RegionRead(range))
        }
        command::REGION_WRITE => {
            let range = region_range(&mut fields, DATA_BYTES_MAX)?;
            let count = usize::try_from(range.count).map_err(|_| Errno::INVAL)?;
            let data = fields.bytes(count)?;
            fields.end()?;
            Ok(Request::RegionWrite { range, data })
        }
        command::REGION_WRITE_MULTI => region_write_multi(fields),
        command::DEVICE_RESET => fields.end().map(|()| Request::Reset),
        command::DEVICE_FEATURE => {
            argsz(&mut fields, 8, 8)?;
            Ok(Request::DeviceFeature { flags: fields.u32()? })
        }
        command::MIG_DATA_READ => argsz(&mut fields, 8, 8).map(|_| Request::MigDataRead),
        command::MIG_DATA_WRITE => argsz(&mut fields, 8, 8).map(|_| Request::MigDataWrite),
        unknown => Ok(Request::Unknown(unknown)),
    }
}

fn check_fd_count(command: u16, count: usize) -> Result<(), Errno> {
    let most = match command {
        // SPDK's driver sends the region's descriptor with its unmap, too.
        command::DMA_MAP | command::DMA_UNMAP => 1,
        command::DEVICE_SET_IRQS => FDS_MAX,
        _ => 0,
    };
    if count > most { Err(Errno::INVAL) } else { Ok(()) }
}

/// Checks that the structure is there whole and that `argsz`, its first field, is at least `least`.
fn argsz(fields: &mut Fields<'_>, structure_bytes: usize, least: u32) -> Result<u32, Errno> {
    if fields.0.len() < structure_bytes {
        return Err(Errno::INVAL);
    }
    let argsz = fields.u32()?;
    if argsz < least { Err(Errno::INVAL) } else { Ok(argsz) }
}

fn version(mut fields: Fields<'_>) -> Result<Request<'_>, Errno> {
    let (major, minor) = (fields.u16()?, fields.u16()?);
    if fields.0.len() > VERSION_DATA_BYTES_MAX {
        return Err(Errno::INVAL);
    }
    // A client that forgets the NUL means the same.
    let end = fields.0.iter().position(|&byte| byte == 0).unwrap_or(fields.0.len());
    Ok(Request::Version { major, minor, data: fields.bytes(end)? })
}

fn dma_map(mut fields: Fields<'_>, fds: Vec<OwnedFd>) -> Result<Request<'_>, Errno> {
    argsz(&mut fields, 32, 32)?;
    let flags = fields.u32()?;
    let (offset, iova, size) = (fields.u64()?, fields.u64()?, fields.u64()?);
    if flags & !0b11 != 0 || size == 0 {
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
    let access = Access { read: flags & 1 != 0, write: flags & 2 != 0 };
    Ok(Request::DmaMap(DmaMap { iova, size, access, backing }))
}

/// `VFIO_DMA_UNMAP_FLAG_ALL` of `<linux/vfio.h>`; QEMU sends it, vfio-user.rst calls the flags unused.
const UNMAP_ALL: u32 = 1 << 1;

fn dma_unmap(payload: &[u8]) -> Result<Request<'_>, Errno> {
    let mut fields = Fields(payload);
    argsz(&mut fields, 24, 24)?;
    let flags = fields.u32()?;
    let (iova, size) = (fields.u64()?, fields.u64()?);
    let unmap = match flags {
        0 if size > 0 => DmaUnmap::Range { iova, size },
        UNMAP_ALL if iova == 0 && size == 0 => DmaUnmap::All,
        _ => return Err(Errno::INVAL),
    };
    Ok(Request::DmaUnmap { unmap, entry: Fields(payload).bytes(24)? })
}

fn region_info(mut fields: Fields<'_>) -> Result<Request<'_>, Errno> {
    let argsz = argsz(&mut fields, 32, 32)?;
    let _flags = fields.u32()?;
    Ok(Request::RegionInfo { index: fields.u32()?, argsz })
}

fn set_irqs(mut fields: Fields<'_>, fds: Vec<OwnedFd>) -> Result<Request<'_>, Errno> {
    let argsz = argsz(&mut fields, 20, 20)?;
    let flags = fields.u32()?;
    let (index, start, count) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let action = match flags >> 3 {
        0b001 => IrqAction::Mask,
        0b010 => IrqAction::Unmask,
        0b100 => IrqAction::Trigger,
        _ => return Err(Errno::INVAL),
    };
    let wanted = usize::try_from(count).map_err(|_| Errno::INVAL)?;
    if flags & 0b111 != 0b100 && !fds.is_empty() {
        return Err(Errno::INVAL);
    }
    let data = match flags & 0b111 {
        0b001 => SetIrqsData::None,
        0b010 => {
            if u64::from(argsz) < 20 + u64::from(count) {
                return Err(Errno::INVAL);
            }
            SetIrqsData::Bool(fields.bytes(wanted)?)
        }
        0b100 if fds.is_empty() || fds.len() == wanted => SetIrqsData::Eventfd(fds),
        _ => return Err(Errno::INVAL),
    };
    let disable_all = start == 0 && action == IrqAction::Trigger && matches!(data, SetIrqsData::None);
    if count == 0 && !disable_all {
        return Err(Errno::INVAL);
    }
    Ok(Request::SetIrqs(SetIrqsRequest { index, start, count, action, data }))
}

fn region_range(fields: &mut Fields<'_>, count_max: usize) -> Result<RegionRange, Errno> {
    let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
    if usize::try_from(count).map_or(true, |count| count > count_max) {
        return Err(Errno::INVAL);
    }
    Ok(RegionRange { offset, region, count })
}

fn region_write_multi(mut fields: Fields<'_>) -> Result<Request<'_>, Errno> {
    let count = usize::try_from(fields.u64()?).map_err(|_| Errno::INVAL)?;
    // The payload is bounded, so the count is, before anything is set aside for it.
    if count.checked_mul(24) != Some(fields.0.len()) {
        return Err(Errno::INVAL);
    }
    let mut writes = Vec::with_capacity(count);
    for _ in 0..count {
        let range = region_range(&mut fields, 8)?;
        writes.push(SmallWrite { range, data: fields.u64()?.to_le_bytes() });
    }
    Ok(Request::RegionWriteMulti(writes))
}

/// Takes little-endian fields off the front; a message that ends too early is `EINVAL`.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (first, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(first)
    }

    fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}
