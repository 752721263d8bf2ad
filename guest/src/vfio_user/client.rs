//! The blocking client.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::dma::{self, DmaMemory};
use super::frame::{Fields, Frame, Header, Payload, command};
use super::info::{DeviceInfo, IrqInfo, RegionInfo, Version, set_irqs};
use super::socket;
use crate::mapping::Mapping;
use crate::{Error, Result};

/// One write of a REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug)]
pub struct RegionWrite {
    /// The region's index.
    pub region: u32,
    /// From its start.
    pub offset: u64,
    /// Little endian, `count` bytes of it count.
    pub value: u64,
    /// Up to 8.
    pub count: u32,
}

/// One connection to a vfio-user server. One request at a time; the server's own requests are answered while waiting.
pub struct Client {
    stream: UnixStream,
    next_id: u16,
    timeout: Duration,
    memory: Option<Arc<dyn DmaMemory>>,
    version: Option<Version>,
    dma_served: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and negotiates version 0.1 with the capabilities QEMU 11 sends.
    ///
    /// # Errors
    /// No server, or one that refuses.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let mut client = Self::connect_raw(path)?;
        client.greet()?;
        Ok(client)
    }

    /// Negotiates version 0.1 with the capabilities QEMU 11 sends.
    ///
    /// # Errors
    /// As [`Client::negotiate`].
    pub fn greet(&mut self) -> Result<()> {
        let capabilities = json!({"capabilities": {
            "pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1_048_576,
            "migration": {"max_bitmap_size": 268_435_456, "pgsize": 4096}, "write_multiple": true,
        }});
        self.negotiate(0, 1, Some(&capabilities)).map(drop)
    }

    /// Connects and says nothing.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect_raw(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::from_stream(UnixStream::connect(path)?))
    }

    /// Speaks over a stream that is connected already.
    #[must_use]
    pub fn from_stream(stream: UnixStream) -> Self {
        let timeout = crate::PATIENCE;
        Client { stream, next_id: 0, timeout, memory: None, version: None, dma_served: 0 }
    }

    /// How long a reply may take before [`Error::Timeout`].
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Where DMA_READ and DMA_WRITE are answered from.
    pub fn set_dma_memory(&mut self, memory: Arc<dyn DmaMemory>) {
        self.memory = Some(memory);
    }

    /// How many DMA_READ and DMA_WRITE requests were answered.
    #[must_use]
    pub fn dma_served(&self) -> u64 {
        self.dma_served
    }

    /// What the server answered to VERSION.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// The socket itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// VERSION, with any numbers and data.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn negotiate(&mut self, major: u16, minor: u16, data: Option<&Value>) -> Result<Version> {
        let mut payload = Payload::default().u16(major).u16(minor);
        if let Some(data) = data {
            payload = payload.bytes(data.to_string().as_bytes()).bytes(&[0]);
        }
        let version = Version::parse(&self.request(command::VERSION, &payload.0, &[])?.payload)?;
        self.version = Some(version.clone());
        Ok(version)
    }

    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn device_info(&mut self) -> Result<DeviceInfo> {
        let payload = Payload::default().u32(16).u32(0).u32(0).u32(0).0;
        DeviceInfo::parse(&self.request(command::DEVICE_GET_INFO, &payload, &[])?.payload)
    }

    /// DEVICE_GET_REGION_INFO with room for 4,064 bytes of answer.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn region_info(&mut self, index: u32) -> Result<RegionInfo> {
        self.region_info_sized(index, 4064)
    }

    /// DEVICE_GET_REGION_INFO with an argsz of one's own.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn region_info_sized(&mut self, index: u32, argsz: u32) -> Result<RegionInfo> {
        let payload = Payload::default().u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0).0;
        let reply = self.request(command::DEVICE_GET_REGION_INFO, &payload, &[])?;
        RegionInfo::parse(&reply.payload, reply.fds)
    }

    /// DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo> {
        let payload = Payload::default().u32(16).u32(0).u32(index).u32(0).0;
        IrqInfo::parse(&self.request(command::DEVICE_GET_IRQ_INFO, &payload, &[])?.payload)
    }

    /// Maps the sparse area of `info` that holds `offset`, or the whole region when it names none. Returns the mapping and
    /// the region offset it starts at; `None` when the area is not mappable.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map_area(info: &RegionInfo, offset: u64) -> Result<Option<(Mapping, u64)>> {
        let (true, Some(fd)) = (info.flags & RegionInfo::MMAP != 0, info.fds.first()) else {
            return Ok(None);
        };
        let whole = super::SparseArea { offset: 0, size: info.size };
        let areas = if info.areas.is_empty() { std::slice::from_ref(&whole) } else { &info.areas };
        let found =
            areas.iter().find(|area| offset.checked_sub(area.offset).is_some_and(|at| at < area.size));
        let Some(area) = found else { return Ok(None) };
        let len = usize::try_from(area.size).map_err(|error| Error::Protocol(error.to_string()))?;
        let at =
            info.offset.checked_add(area.offset).ok_or_else(|| Error::Protocol("offset wraps".into()))?;
        Ok(Some((Mapping::new(fd, at, len, true)?, area.offset)))
    }

    /// REGION_READ of `target.len()` bytes.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn region_read(&mut self, region: u32, offset: u64, target: &mut [u8]) -> Result<()> {
        let payload = Payload::default().u64(offset).u32(region).u32(count_of(target.len())).0;
        let reply = self.request(command::REGION_READ, &payload, &[])?;
        let fields = Fields(&reply.payload);
        let (count, data) = (fields.u32(12)? as usize, &reply.payload[16..]);
        if count != target.len() || data.len() != target.len() {
            return Err(Error::Protocol(format!("read {count} ({}) of {} bytes", data.len(), target.len())));
        }
        target.copy_from_slice(data);
        Ok(())
    }

    /// REGION_READ of a little-endian number of 1 to 8 bytes.
    ///
    /// # Errors
    /// As [`Client::region_read`].
    pub fn read_number(&mut self, region: u32, offset: u64, bytes: usize) -> Result<u64> {
        let mut value = [0; 8];
        self.region_read(region, offset, &mut value[..bytes])?;
        Ok(u64::from_le_bytes(value))
    }

    /// REGION_WRITE.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn region_write(&mut self, region: u32, offset: u64, source: &[u8]) -> Result<()> {
        let payload = Payload::default().u64(offset).u32(region).u32(count_of(source.len())).bytes(source).0;
        let reply = self.request(command::REGION_WRITE, &payload, &[])?;
        let count = Fields(&reply.payload).u32(12)? as usize;
        if count != source.len() {
            return Err(Error::Protocol(format!("wrote {count} of {} bytes", source.len())));
        }
        Ok(())
    }

    /// REGION_WRITE_MULTI.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn region_write_multi(&mut self, writes: &[RegionWrite]) -> Result<()> {
        let start = Payload::default().u64(writes.len() as u64);
        let payload = writes.iter().fold(start, |payload, write| {
            payload.u64(write.offset).u32(write.region).u32(write.count).u64(write.value)
        });
        self.request(command::REGION_WRITE_MULTI, &payload.0, &[]).map(drop)
    }

    /// DMA_MAP, readable and writeable. Without an fd the server must ask ([`Client::set_dma_memory`]).
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn dma_map(&mut self, iova: u64, len: u64, fd: Option<(BorrowedFd<'_>, u64)>) -> Result<()> {
        self.dma_map_flags(iova, len, 3, fd)
    }

    /// DMA_MAP with flags of one's own (bit 0: the device may read, bit 1: it may write).
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn dma_map_flags(
        &mut self,
        iova: u64,
        len: u64,
        flags: u32,
        fd: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<()> {
        let offset = fd.map_or(0, |(_, offset)| offset);
        let payload = Payload::default().u32(32).u32(flags).u64(offset).u64(iova).u64(len).0;
        let fds: Vec<_> = fd.iter().map(|(fd, _)| *fd).collect();
        self.request(command::DMA_MAP, &payload, &fds).map(drop)
    }

    /// DMA_UNMAP.
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn dma_unmap(&mut self, iova: u64, len: u64) -> Result<()> {
        let payload = Payload::default().u32(24).u32(0).u64(iova).u64(len).0;
        self.request(command::DMA_UNMAP, &payload, &[]).map(drop)
    }

    /// DEVICE_SET_IRQS, every field free (flags: [`set_irqs`]).
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let argsz = count_of(20 + data.len());
        let payload = Payload::default().u32(argsz).u32(flags).u32(index).u32(start).u32(count).bytes(data).0;
        self.request(command::DEVICE_SET_IRQS, &payload, fds).map(drop)
    }

    /// Gives interrupts `start..` of `index` an eventfd each; with none, takes them all back.
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn set_irq_eventfds(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let data = if fds.is_empty() { set_irqs::DATA_NONE } else { set_irqs::DATA_EVENTFD };
        self.set_irqs(index, data | set_irqs::ACTION_TRIGGER, start, count_of(fds.len()), &[], fds)
    }

    /// DEVICE_RESET.
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn reset(&mut self) -> Result<()> {
        self.request(command::DEVICE_RESET, &[], &[]).map(drop)
    }

    /// Sends a well-formed command and waits for its reply.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply to something else.
    pub fn request(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Frame> {
        let id = self.send_command(command, payload, fds)?;
        self.wait_reply(id, command)
    }

    /// Sends a well-formed command, does not wait, and returns its message id.
    ///
    /// # Errors
    /// The transport's.
    pub fn send_command(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<u16> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.send_frame(Header::command(id, command, payload.len()), payload, fds)?;
        Ok(id)
    }

    /// Waits for the reply to one command, answering the server's requests meanwhile.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply to something else.
    pub fn wait_reply(&mut self, id: u16, command: u16) -> Result<Frame> {
        loop {
            let frame = self.recv_frame()?;
            if !frame.header.is_reply() {
                self.answer(&frame)?;
                continue;
            }
            if frame.header.id != id || frame.header.command != command {
                return Err(Error::Protocol(format!(
                    "waited for {command} (id {id}), got {:?}",
                    frame.header
                )));
            }
            if frame.header.is_error() {
                return Err(Error::Refused { command, errno: frame.header.errno });
            }
            return Ok(frame);
        }
    }

    /// Sends a header as it is, right or wrong, with a payload behind it.
    ///
    /// # Errors
    /// The transport's.
    pub fn send_frame(&mut self, header: Header, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// The transport's.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        socket::send(&self.stream, bytes, fds)
    }

    /// Receives the next message, whatever it is.
    ///
    /// # Errors
    /// The transport's, or [`Error::Timeout`].
    pub fn recv_frame(&mut self) -> Result<Frame> {
        socket::recv(&self.stream, self.timeout)
    }

    /// Answers the server's requests until none has come for `timeout`; says how many it answered.
    ///
    /// # Errors
    /// The transport's, or a message that is no request.
    pub fn serve_dma(&mut self, timeout: Duration) -> Result<usize> {
        let mut served = 0;
        while socket::readable(self.stream.as_fd(), timeout)? {
            let frame = self.recv_frame()?;
            if frame.header.is_reply() {
                return Err(Error::Protocol(format!("a reply to nothing: {:?}", frame.header)));
            }
            self.answer(&frame)?;
            served += 1;
        }
        Ok(served)
    }

    /// Whether the server has closed the connection, as far as can be seen without reading.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        socket::hung_up(&self.stream)
    }

    /// True when the server has closed the connection within `timeout`; its requests are answered meanwhile.
    pub fn is_closed(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match socket::readable(self.stream.as_fd(), rest) {
                Ok(true) => {}
                Ok(false) | Err(_) => return false,
            }
            match self.recv_frame() {
                Ok(frame) if !frame.header.is_reply() => drop(self.answer(&frame)),
                Ok(_) => {}
                Err(Error::Timeout(_)) => return false,
                Err(_) => return true,
            }
        }
    }

    fn answer(&mut self, request: &Frame) -> Result<()> {
        let reply = dma::answer(request, self.memory.as_deref())?;
        self.dma_served += 1;
        if request.header.wants_no_reply() { Ok(()) } else { self.send_bytes(&reply, &[]) }
    }
}

fn count_of(len: usize) -> u32 {
    u32::try_from(len).expect("a count fits in 32 bits")
}
