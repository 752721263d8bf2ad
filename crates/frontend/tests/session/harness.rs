//! A scripted client and a device that records what is asked of it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use frontend::vfio_user::frame::{LoggedRange, ReportRange};
use frontend::vfio_user::{
    Connection, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqData, IrqInfo, Limits, Logging, Migration,
    MmapArea, RegionInfo, RegionMmap, RemoteMemory, SessionEnd, SetIrqs, Shutdown, State, Transition,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const REGION_INFO: u16 = 5;
pub const REGION_IO_FDS: u16 = 6;
pub const IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const DMA_WRITE: u16 = 12;
pub const RESET: u16 = 13;
pub const WRITE_MULTI: u16 = 15;
pub const FEATURE: u16 = 16;
pub const MIG_READ: u16 = 17;
pub const MIG_WRITE: u16 = 18;

pub const EPERM_LIKE: u32 = 13; // EACCES
pub const ENOENT: u32 = 2;
pub const EEXIST: u32 = 17;
pub const EINVAL: u32 = 22;
pub const ENOTTY: u32 = 25;
pub const ENOSPC: u32 = 28;
pub const EOPNOTSUPP: u32 = 95;
pub const EPROTONOSUPPORT: u32 = 93;

pub const QEMU_JSON: &str = r#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}"#;

pub const NO_REPLY: u32 = 0x10;

/// A write of 8 bytes here makes the device read 8 bytes of client memory at the address written.
pub const ASK_AT: u64 = 0x100;
/// A write here makes the device call fail.
pub const FAIL_AT: u64 = 0x200;
pub const BAR0_BYTES: u64 = 0x4000;

pub type Calls = Arc<Mutex<Vec<String>>>;

pub struct Fake {
    info: DeviceInfo,
    pub calls: Calls,
    bar0: Vec<u8>,
    pub remote: Option<RemoteMemory>,
    /// What a call holds on to.
    pub kept: Vec<OwnedFd>,
    /// It migrates.
    pub machine: Option<Machine>,
}

/// A migration that records what is asked of it.
pub struct Machine {
    pub state: State,
    /// It logs, or does not know how to.
    pub logs: Option<bool>,
    /// This step fails and leaves this state.
    pub fails: Option<(Transition, State)>,
    /// What is read of it.
    pub data: Vec<u8>,
    /// The pages it has written.
    pub pages: Vec<u64>,
    calls: Calls,
}

impl Machine {
    fn note(&self, call: String) {
        self.calls.lock().expect("not poisoned").push(call);
    }
}

impl Migration for Machine {
    fn state(&self) -> State {
        self.state
    }

    fn step(&mut self, step: Transition) -> Result<(), Errno> {
        self.note(format!("{step:?}"));
        if let Some((_, state)) = self.fails.filter(|(fails, _)| *fails == step) {
            self.state = state;
            return Err(Errno::BUSY);
        }
        self.state = step.end();
        Ok(())
    }

    fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Errno> {
        let rest = self.data.split_off(bytes.min(self.data.len()));
        Ok(std::mem::replace(&mut self.data, rest))
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.note(format!("data {data:?}"));
        Ok(())
    }

    fn logging(&mut self) -> Option<&mut dyn Logging> {
        self.logs.is_some().then_some(self as _)
    }
}

impl Logging for Machine {
    fn start(&mut self, ranges: &[LoggedRange]) -> Result<(), Errno> {
        self.note(format!("log {:?}", ranges.iter().map(|r| (r.iova, r.length)).collect::<Vec<_>>()));
        if self.logs.replace(true) == Some(true) { Err(Errno::INVAL) } else { Ok(()) }
    }

    fn stop(&mut self) -> Result<(), Errno> {
        if self.logs.replace(false) == Some(true) { Ok(()) } else { Err(Errno::INVAL) }
    }

    fn report(&mut self, _range: &ReportRange, page: &mut dyn FnMut(u64)) -> Result<(), Errno> {
        self.pages.iter().for_each(|at| page(*at));
        if self.logs == Some(true) { Ok(()) } else { Err(Errno::INVAL) }
    }
}

pub fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, bytes).expect("ftruncate");
    fd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")
}

impl Fake {
    pub fn new() -> Self {
        let plain = |size| RegionInfo { size, readable: true, writable: true, mmap: None };
        let mut regions = vec![RegionInfo::default(); 9];
        let areas = vec![MmapArea { offset: 0x1000, size: 0x1000 }];
        let mmap = RegionMmap { fd: Arc::new(memfd(BAR0_BYTES)), offset: 0, areas };
        regions[0] = RegionInfo { mmap: Some(mmap), ..plain(BAR0_BYTES) };
        regions[4] = plain(0x2000);
        regions[6] = RegionInfo { writable: false, ..plain(0x800) };
        regions[7] = plain(4096);
        let irq = IrqInfo { count: 1, eventfd: true, ..IrqInfo::default() };
        let irqs = vec![
            IrqInfo { maskable: true, automasked: true, ..irq },
            IrqInfo { count: 0, ..irq },
            IrqInfo { count: 129, noresize: true, ..irq },
            irq,
            irq,
        ];
        let info = DeviceInfo { resettable: true, regions, irqs };
        let bar0 = vec![0; usize::try_from(BAR0_BYTES).expect("small")];
        Self { info, calls: Calls::default(), bar0, remote: None, kept: Vec::new(), machine: None }
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("not poisoned").push(call);
    }

    /// It migrates, and is in this state.
    pub fn migrates(&mut self, state: State) -> &mut Machine {
        let calls = Arc::clone(&self.calls);
        self.machine.insert(Machine {
            state,
            logs: Some(false),
            fails: None,
            data: vec![],
            pages: vec![],
            calls,
        })
    }
}

impl Device for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.note(format!("read {region} {offset:#x}+{}", data.len()));
        let at = usize::try_from(offset).expect("in bounds");
        if region == 0 {
            data.copy_from_slice(&self.bar0[at..at + data.len()]);
        } else {
            data.fill(0xA5);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.note(format!("write {region} {offset:#x}+{}", data.len()));
        if region != 0 {
            return Ok(());
        }
        if offset == FAIL_AT {
            return Err(Errno::IO);
        }
        let at = usize::try_from(offset).expect("in bounds");
        self.bar0[at..at + data.len()].copy_from_slice(data);
        if offset == ASK_AT
            && let Ok(iova) = data.try_into().map(u64::from_le_bytes)
        {
            let mut memory = [0; 8];
            self.remote.as_ref().expect("a remote").read(iova, &mut memory)?;
            self.bar0[at + 8..at + 16].copy_from_slice(&memory);
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        let access =
            format!("{}{}", if map.access.read { "r" } else { "" }, if map.access.write { "w" } else { "" });
        let backing = map.backing.as_ref().map(|(_, offset)| *offset);
        self.note(format!("map {:#x}+{:#x} {access} {backing:x?}", map.iova, map.size));
        self.kept.extend(map.backing.map(|(fd, _)| fd.fd));
        Ok(())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno> {
        self.note(match unmap {
            DmaUnmap::Range { iova, size } => format!("unmap {iova:#x}+{size:#x}"),
            DmaUnmap::All => "unmap all".into(),
        });
        Ok(())
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Result<(), Errno> {
        let data = match &set.data {
            IrqData::None => "none".to_string(),
            IrqData::Bool(bools) => format!("{bools:?}"),
            IrqData::Eventfd(fds) => format!("{} of {} fds", fds.iter().flatten().count(), fds.len()),
        };
        self.note(format!("irqs {} {}+{} {:?} {data}", set.index, set.start, set.count, set.action));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.note("reset".into());
        self.machine.iter_mut().for_each(|machine| machine.state = State::Running);
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        self.machine.as_mut().map(|machine| machine as _)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub errno: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.flags == 1 && self.errno == 0
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }

    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.payload[at..at + 8].try_into().expect("8 bytes"))
    }

    #[track_caller]
    pub fn expect_error(&self, errno: u32) {
        assert_eq!((self.flags, self.errno), (0x21, errno), "command {}", self.command);
        assert!(self.payload.is_empty(), "an error reply is the header alone");
    }
}

pub struct Client {
    pub stream: UnixStream,
    next_id: u16,
}

pub fn header(id: u16, command: u16, size: u32, flags: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&command.to_le_bytes());
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

pub fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).expect("small");
    let mut bytes = header(id, command, size, flags);
    bytes.extend_from_slice(payload);
    bytes
}

/// Little-endian words one after the other.
pub fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn u64s(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn range(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [u64s(&[offset]), u32s(&[region, count])].concat()
}

pub fn dma_map(flags: u32, offset: u64, iova: u64, size: u64) -> Vec<u8> {
    [u32s(&[32, flags]), u64s(&[offset, iova, size])].concat()
}

pub fn dma_unmap(flags: u32, iova: u64, size: u64) -> Vec<u8> {
    [u32s(&[24, flags]), u64s(&[iova, size])].concat()
}

pub fn version(json: &str) -> Vec<u8> {
    let mut payload = vec![0, 0, 1, 0];
    payload.extend_from_slice(json.as_bytes());
    payload.push(0);
    payload
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        Self { stream, next_id: 100 }
    }

    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.try_send(bytes, fds).expect("sent");
    }

    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
        let mut rest = bytes;
        let mut fds = fds;
        while !rest.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            }
            let sent = sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?;
            rest = &rest[sent..];
            fds = &[];
        }
        Ok(())
    }

    /// The next message, whole; `None` when the server has hung up.
    pub fn receive(&self) -> Option<Answer> {
        let mut head = [0; 16];
        let mut fds = Vec::new();
        if !self.fill(&mut head, &mut fds) {
            return None;
        }
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let mut payload = vec![0; usize::try_from(word(4)).expect("small") - 16];
        assert!(self.fill(&mut payload, &mut fds), "hung up inside a message");
        let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        Some(Answer { id: half(0), command: half(2), flags: word(8), errno: word(12), payload, fds })
    }

    fn fill(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let iov = &mut [IoSliceMut::new(&mut buffer[filled..])];
            let received = match recvmsg(&self.stream, iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received.bytes,
                Err(Errno::CONNRESET) => 0,
                Err(errno) => panic!("no answer: {errno}"),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    fds.extend(more);
                }
            }
            if received == 0 {
                return false;
            }
            filled += received;
        }
        true
    }

    /// Sends a command and takes the next message, which must be its reply.
    #[track_caller]
    pub fn call_with(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&message(id, command, 0, payload), fds);
        let answer = self.receive().expect("a reply");
        assert_eq!((answer.id, answer.command, answer.flags & 0xF), (id, command, 1));
        answer
    }

    #[track_caller]
    pub fn call(&mut self, command: u16, payload: &[u8]) -> Answer {
        self.call_with(command, payload, &[])
    }

    #[track_caller]
    pub fn negotiate(&mut self) -> Answer {
        let answer = self.call(VERSION, &version(QEMU_JSON));
        assert!(answer.is_ok());
        answer
    }
}

pub struct Running {
    pub client: Client,
    pub calls: Calls,
    pub shutdown: Shutdown,
    pub remote: RemoteMemory,
    session: JoinHandle<SessionEnd>,
}

impl Running {
    /// A session at the other end of a socket pair.
    pub fn start_with(limits: Limits) -> Self {
        Self::start_device(limits, |_| {})
    }

    /// As [`Running::start_with`], of a device that was prepared.
    pub fn start_device(limits: Limits, prepare: impl FnOnce(&mut Fake)) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let shutdown = Shutdown::new().expect("eventfd");
        let connection = Connection::new(theirs, limits, &shutdown);
        let mut device = Fake::new();
        prepare(&mut device);
        let calls = Arc::clone(&device.calls);
        let remote = connection.remote_memory();
        device.remote = Some(remote.clone());
        let session = std::thread::spawn(move || connection.serve(&mut device));
        Self { client: Client::new(ours), calls, shutdown, remote, session }
    }

    pub fn start() -> Self {
        Self::start_with(Limits::default())
    }

    /// A session whose version is agreed on.
    pub fn negotiated() -> Self {
        let mut running = Self::start();
        running.client.negotiate();
        running
    }

    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("not poisoned"))
    }

    /// The client leaves.
    pub fn leave(self) -> SessionEnd {
        drop(self.client);
        self.session.join().expect("no panic")
    }

    /// The session ends by itself while the client neither leaves nor reads.
    pub fn ended(self) -> SessionEnd {
        self.session.join().expect("no panic")
    }

    /// The session ends by itself, and the client sees the socket close.
    pub fn ends(self) -> SessionEnd {
        let end = self.session.join().expect("no panic");
        while self.client.receive().is_some() {}
        end
    }
}

pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
