//! The state of one conversation: version first, then each request checked against the device and carried out.
//! Sans-I/O: a message in, at most one reply out.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use spec::vfio_user as wire;
use spec::vfio_user::{IrqInfoFlags, RegionFlags};
use zerocopy::IntoBytes;

use super::capabilities::{self, Negotiated};
use super::device::{ClientFd, Device, DmaMap, DmaUnmap, IrqAction, IrqData, MmapArea, RegionInfo, SetIrqs};
use super::frame::{
    self, HEADER_BYTES, Header, Outgoing, OutgoingHeader, RegionRange, Request, SetIrqsData, SetIrqsRequest,
    SmallWrite,
};
use super::migration;

/// What one client may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most DMA maps at a time. Announced, and refused with `ENOSPC` beyond. Each costs the process a mapping (of
    /// the 65,530 Linux gives it by default), which it shares with the other clients.
    pub dma_maps_max: usize,
    /// How long a frame may take from its first byte to its last.
    pub frame_time: Duration,
    /// How long a reply, or a command of ours, may wait for room in the socket.
    pub send_time: Duration,
    /// How long a [`super::RemoteMemory`] call may take in all.
    pub remote_time: Duration,
    /// The most log lines about the client's faults; those beyond are counted.
    pub log_lines_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { dma_maps_max: 4096, frame_time: five, send_time: five, remote_time: five, log_lines_max: 20 }
    }
}

/// A whole message to send in one piece.
#[derive(Debug)]
pub struct Reply {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// A descriptor to send with the first byte.
    pub fd: Option<Arc<OwnedFd>>,
}

impl Reply {
    /// A reply whose payload is filled in later.
    fn with_room(header: &Header, payload_bytes: usize) -> Self {
        let head =
            OutgoingHeader { id: header.id, command: header.command, payload_bytes, kind: Outgoing::Reply };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload_bytes);
        bytes.extend_from_slice(&head.encode());
        Self { bytes, fd: None }
    }

    pub(super) fn new(header: &Header, payload: &[u8]) -> Self {
        let mut reply = Self::with_room(header, payload.len());
        reply.bytes.extend_from_slice(payload);
        reply
    }

    /// An error reply: the header alone (vfio-user.rst, "Header").
    fn error(header: &Header, errno: Errno) -> Self {
        let kind = Outgoing::Error(errno);
        let head = OutgoingHeader { id: header.id, command: header.command, payload_bytes: 0, kind };
        Self { bytes: head.encode().to_vec(), fd: None }
    }
}

/// What a message led to.
#[derive(Debug)]
pub struct Outcome {
    /// What to send; `None` when the client wanted no reply.
    pub reply: Option<Reply>,
    /// Why the command failed, for the log.
    pub refused: Option<Errno>,
    /// The client speaks another protocol: send the reply and hang up.
    pub close: bool,
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Session {
    dma_maps_max: usize,
    negotiated: Option<Negotiated>,
    /// First address to last address, both inclusive.
    maps: BTreeMap<u64, u64>,
}

impl Session {
    /// A conversation not yet begun.
    pub fn new(limits: &Limits) -> Self {
        Self { dma_maps_max: limits.dma_maps_max, negotiated: None, maps: BTreeMap::new() }
    }

    /// A conversation that a predecessor of this process began: what was agreed on, and the DMA maps (address, length) there
    /// are.
    pub fn resumed(
        limits: &Limits,
        negotiated: Option<Negotiated>,
        maps: impl IntoIterator<Item = (u64, u64)>,
    ) -> Self {
        let last = |(first, size): (u64, u64)| Some((first, first.checked_add(size.checked_sub(1)?)?));
        let maps = maps.into_iter().filter_map(last).collect();
        Self { dma_maps_max: limits.dma_maps_max, negotiated, maps }
    }

    /// What was agreed on; `None` before the client's first message.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// The most data of one DMA_READ or DMA_WRITE; `None` before the version is agreed on.
    pub fn dma_data_bytes_max(&self) -> Option<usize> {
        self.negotiated.map(|negotiated| negotiated.data_bytes_max)
    }

    /// Carries out one command message and builds its reply.
    pub fn handle(
        &mut self,
        header: &Header,
        payload: &[u8],
        fds: Vec<ClientFd>,
        device: &mut dyn Device,
    ) -> Outcome {
        let result =
            frame::parse(header, payload, fds).and_then(|request| self.carry_out(header, request, device));
        match result {
            Ok(reply) => {
                Outcome { reply: (!header.no_reply()).then_some(reply), refused: None, close: false }
            }
            Err(errno) => self.refuse(header, errno),
        }
    }

    /// Answers a command with an error without looking at it.
    pub fn refuse(&self, header: &Header, errno: Errno) -> Outcome {
        let reply = (!header.no_reply()).then(|| Reply::error(header, errno));
        Outcome {
            reply,
            refused: Some(errno),
            close: errno == Errno::PROTONOSUPPORT && self.negotiated.is_none(),
        }
    }

    fn carry_out(
        &mut self,
        header: &Header,
        request: Request<'_>,
        device: &mut dyn Device,
    ) -> Result<Reply, Errno> {
        if let Request::Version { major, minor, data } = request {
            return self.version(header, (major, minor), data, device);
        }
        let negotiated = self.negotiated.ok_or(Errno::INVAL)?;
        match request {
            Request::Version { .. } => Err(Errno::INVAL),
            Request::DmaMap(map) => self.dma_map(header, map, device),
            Request::DmaUnmap { unmap, entry } => self.dma_unmap(header, unmap, entry, device),
            Request::DeviceGetInfo => Ok(device_info(header, device)),
            Request::RegionInfo { index, argsz } => {
                region_info(header, index, argsz, negotiated.client_takes_fds, device)
            }
            Request::RegionIoFds { index } => {
                region(device, index)?;
                let none = wire::RegionIoFds {
                    argsz: size_of_u32::<wire::RegionIoFds>(),
                    index,
                    ..Default::default()
                };
                Ok(Reply::new(header, none.as_bytes()))
            }
            Request::IrqInfo { index } => irq_info(header, index, device),
            Request::SetIrqs(set) => set_irqs(header, set, device),
            Request::RegionRead(range) => region_read(header, range, device),
            Request::RegionWrite { range, data } => {
                check_access(device, &range, false)?;
                write(device, &range, data)?;
                Ok(Reply::new(header, access(&range).as_bytes()))
            }
            Request::RegionWriteMulti(_) if !negotiated.write_multiple => Err(Errno::OPNOTSUPP),
            Request::RegionWriteMulti(writes) => region_write_multi(header, &writes, device),
            Request::Reset if !device.info().resettable => Err(Errno::OPNOTSUPP),
            Request::Reset => device.reset().map(|()| Reply::new(header, &[])),
            Request::DeviceFeature(feature) => migration::feature(header, &feature, device),
            Request::MigDataRead { bytes } => migration::data_read(header, bytes, device),
            Request::MigDataWrite { data } => migration::data_write(header, data, device),
            Request::Unknown(_) => Err(Errno::OPNOTSUPP),
        }
    }

    fn version(
        &mut self,
        header: &Header,
        (major, minor): (u16, u16),
        data: &[u8],
        device: &mut dyn Device,
    ) -> Result<Reply, Errno> {
        if self.negotiated.is_some() {
            return Err(Errno::INVAL);
        }
        let logs = device.migration().map(|migration| migration.logging().is_some());
        let (negotiated, payload) = capabilities::negotiate((major, minor), data, self.dma_maps_max, logs)?;
        self.negotiated = Some(negotiated);
        Ok(Reply::new(header, &payload))
    }

    fn dma_map(&mut self, header: &Header, map: DmaMap, device: &mut dyn Device) -> Result<Reply, Errno> {
        let first = map.iova;
        // The parser refused a size of 0 and a wrap.
        let last = map.size.checked_sub(1).and_then(|more| first.checked_add(more)).ok_or(Errno::INVAL)?;
        let below = self.maps.range(..=last).next_back();
        if below.is_some_and(|(_, &its_last)| its_last >= first) {
            return Err(Errno::EXIST);
        }
        if self.maps.len() >= self.dma_maps_max {
            return Err(Errno::NOSPC);
        }
        device.dma_map(map)?;
        self.maps.insert(first, last);
        Ok(Reply::new(header, &[]))
    }

    fn dma_unmap(
        &mut self,
        header: &Header,
        unmap: DmaUnmap,
        entry: &[u8],
        device: &mut dyn Device,
    ) -> Result<Reply, Errno> {
        match unmap {
            DmaUnmap::All => {
                device.dma_unmap(unmap)?;
                self.maps.clear();
            }
            DmaUnmap::Range { iova, size } => {
                let last = size.checked_sub(1).and_then(|more| iova.checked_add(more));
                if last.is_none() || self.maps.get(&iova).copied() != last {
                    return Err(Errno::NOENT);
                }
                device.dma_unmap(unmap)?;
                self.maps.remove(&iova);
            }
        }
        Ok(Reply::new(header, entry))
    }
}

fn device_info(header: &Header, device: &dyn Device) -> Reply {
    let info = device.info();
    let mut flags = wire::DeviceFlags::PCI;
    flags.set(wire::DeviceFlags::RESET, info.resettable);
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let (num_regions, num_irqs) = (count(info.regions.len()), count(info.irqs.len()));
    let argsz = size_of_u32::<wire::DeviceInfo>();
    Reply::new(header, wire::DeviceInfo { argsz, flags, num_regions, num_irqs }.as_bytes())
}

fn region(device: &dyn Device, index: u32) -> Result<&RegionInfo, Errno> {
    usize::try_from(index).ok().and_then(|index| device.info().regions.get(index)).ok_or(Errno::INVAL)
}

/// The structure, and its capability when the client has room for it. When it has not, `argsz` says what to ask for and
/// `FLAG_CAPS` stays clear: QEMU 11.1 refuses a set flag with a `cap_offset` of 0.
fn region_info(
    header: &Header,
    index: u32,
    argsz: u32,
    client_takes_fds: bool,
    device: &dyn Device,
) -> Result<Reply, Errno> {
    let info = region(device, index)?;
    let mmap = info.mmap.as_ref().filter(|_| client_takes_fds && info.size > 0);
    let areas = mmap.map_or(&[][..], |mmap| &mmap.areas);
    let nr_areas = u32::try_from(areas.len()).map_err(|_| Errno::INVAL)?;
    let structure_bytes = size_of_u32::<wire::RegionInfo>();
    let caps_bytes = match nr_areas {
        0 => 0,
        _ => size_of_u32::<wire::SparseMmapCap>() + size_of_u32::<wire::SparseMmapArea>() * nr_areas,
    };
    let full_bytes = structure_bytes + caps_bytes;
    let with_caps = caps_bytes > 0 && argsz >= full_bytes;
    let mut flags = RegionFlags::empty();
    flags.set(RegionFlags::READ, info.readable);
    flags.set(RegionFlags::WRITE, info.writable);
    flags.set(RegionFlags::MMAP, mmap.is_some());
    flags.set(RegionFlags::CAPS, with_caps);
    let cap_offset = if with_caps { structure_bytes } else { 0 };
    let offset = mmap.map_or(0, |mmap| mmap.offset);
    let structure = wire::RegionInfo { argsz: full_bytes, flags, index, cap_offset, size: info.size, offset };
    let mut payload = structure.as_bytes().to_vec();
    if with_caps {
        let head = wire::CapHeader { id: wire::RegionCapId::SparseMmap.0, version: 1, next: 0 };
        let cap = wire::SparseMmapCap { header: head, nr_areas, reserved: 0 };
        payload.extend_from_slice(cap.as_bytes());
        for &MmapArea { offset, size } in areas {
            payload.extend_from_slice(wire::SparseMmapArea { offset, size }.as_bytes());
        }
    }
    let mut reply = Reply::new(header, &payload);
    reply.fd = mmap.map(|mmap| Arc::clone(&mmap.fd));
    Ok(reply)
}

fn irq_info(header: &Header, index: u32, device: &dyn Device) -> Result<Reply, Errno> {
    let irq = usize::try_from(index).ok().and_then(|at| device.info().irqs.get(at)).ok_or(Errno::INVAL)?;
    let mut flags = IrqInfoFlags::empty();
    flags.set(IrqInfoFlags::EVENTFD, irq.eventfd);
    flags.set(IrqInfoFlags::MASKABLE, irq.maskable);
    flags.set(IrqInfoFlags::AUTOMASKED, irq.automasked);
    flags.set(IrqInfoFlags::NORESIZE, irq.noresize);
    let argsz = size_of_u32::<wire::IrqInfo>();
    Ok(Reply::new(header, wire::IrqInfo { argsz, flags, index, count: irq.count }.as_bytes()))
}

fn set_irqs(header: &Header, set: SetIrqsRequest<'_>, device: &mut dyn Device) -> Result<Reply, Errno> {
    let SetIrqsRequest { index, start, count, action, data } = set;
    let irq = usize::try_from(index).ok().and_then(|at| device.info().irqs.get(at)).ok_or(Errno::INVAL)?;
    if start.checked_add(count).is_none_or(|end| end > irq.count) {
        return Err(Errno::INVAL);
    }
    if action != IrqAction::Trigger && !irq.maskable {
        return Err(Errno::INVAL);
    }
    // The count is at most the device's own, so this is what bounds the lists below.
    let wanted = usize::try_from(count).map_err(|_| Errno::INVAL)?;
    let data = match data {
        SetIrqsData::None => IrqData::None,
        SetIrqsData::Bool(bytes) => IrqData::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
        SetIrqsData::Eventfd(_) if !irq.eventfd => return Err(Errno::INVAL),
        SetIrqsData::Eventfd(fds) if fds.is_empty() => {
            IrqData::Eventfd(std::iter::repeat_with(|| None).take(wanted).collect())
        }
        SetIrqsData::Eventfd(fds) => IrqData::Eventfd(fds.into_iter().map(Some).collect()),
    };
    device.set_irqs(SetIrqs { index, start, count, action, data })?;
    Ok(Reply::new(header, &[]))
}

fn check_access(device: &dyn Device, range: &RegionRange, read: bool) -> Result<(), Errno> {
    let info = region(device, range.region)?;
    let end = range.offset.checked_add(u64::from(range.count)).ok_or(Errno::INVAL)?;
    if info.size == 0 || end > info.size {
        return Err(Errno::INVAL);
    }
    let allowed = if read { info.readable } else { info.writable };
    if allowed { Ok(()) } else { Err(Errno::ACCESS) }
}

fn write(device: &mut dyn Device, range: &RegionRange, data: &[u8]) -> Result<(), Errno> {
    if data.is_empty() { Ok(()) } else { device.region_write(range.region, range.offset, data) }
}

fn access(range: &RegionRange) -> wire::RegionAccess {
    wire::RegionAccess { offset: range.offset, region: range.region, count: range.count }
}

fn region_read(header: &Header, range: RegionRange, device: &mut dyn Device) -> Result<Reply, Errno> {
    check_access(device, &range, true)?;
    // At most DATA_BYTES_MAX (the parser) and at most the region's size.
    let count = usize::try_from(range.count).map_err(|_| Errno::INVAL)?;
    let mut reply = Reply::with_room(header, size_of::<wire::RegionAccess>() + count);
    reply.bytes.extend_from_slice(access(&range).as_bytes());
    let data_at = reply.bytes.len();
    reply.bytes.resize(data_at + count, 0);
    if let Some(data) = reply.bytes.get_mut(data_at..).filter(|data| !data.is_empty()) {
        device.region_read(range.region, range.offset, data)?;
    }
    Ok(reply)
}

/// Nothing is written unless every write lies inside its region.
fn region_write_multi(
    header: &Header,
    writes: &[SmallWrite],
    device: &mut dyn Device,
) -> Result<Reply, Errno> {
    for small in writes {
        check_access(device, &small.range, false)?;
    }
    let key = |range: &RegionRange| (range.region, range.offset, range.count);
    let last: HashMap<_, _> = writes.iter().enumerate().map(|(at, small)| (key(&small.range), at)).collect();
    for (at, small) in writes.iter().enumerate() {
        let superseded = device.last_write_counts(small.range.region, small.range.offset)
            && last.get(&key(&small.range)).is_some_and(|last| *last > at);
        if !superseded {
            write(device, &small.range, small.bytes())?;
        }
    }
    Ok(Reply::new(header, wire::RegionWriteMulti { wr_cnt: writes.len() as u64 }.as_bytes()))
}

/// Wire structures have a few dozen bytes.
const fn size_of_u32<T>() -> u32 {
    assert!(size_of::<T>() < 4096);
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let bytes = size_of::<T>() as u32;
    bytes
}
