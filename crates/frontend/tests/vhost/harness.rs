//! A scripted client, and a device that records what is asked of it and asserts what the session promised.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use frontend::vhost_user::{
    Blk, BlkInfo, ClientFd, Errno, F_RING_PACKED, FdId, HEADER_BYTES, Header, Inflight, Log, Message,
    NewInflight, Outcome, Region, Ring, Session,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL: u64 = 1 << 30;
pub const LOG_ALL: u64 = 1 << 26;
pub const NO_FD: u64 = 1 << 8;

pub const REPLY_ACK: u64 = 1 << 3;
/// MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
pub const ALL_PROTOCOL: u64 = 1 | 2 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;

pub const ENOENT: u64 = 2;
pub const EFAULT: u64 = 14;
pub const EBUSY: u64 = 16;
pub const EINVAL: u64 = 22;
pub const ENOSPC: u64 = 28;
pub const EOPNOTSUPP: u64 = 95;

pub const QUEUES: u16 = 4;
pub const SIZE_MAX: u16 = 256;

/// Where the front-end sees the first region, which the guest sees at 0.
pub const USER: u64 = 0x7F00_0000_0000;
pub const REGION_BYTES: u64 = 1 << 20;

pub fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, bytes).expect("ftruncate");
    fd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")
}

/// Bytes 1 to 8, to see them apart.
pub const CAPACITY: u64 = 0x0807_0605_0403_0201;

/// Records, and panics when the session breaks a promise of [`Blk`].
pub struct Fake {
    pub info: BlkInfo,
    pub calls: Vec<String>,
    pub running: BTreeMap<u16, Ring>,
    pub memory: BTreeMap<u64, u64>,
    /// Where each ring is when it is stopped.
    pub positions: BTreeMap<u16, u32>,
    pub inflight: Option<(u16, u16, bool)>,
    /// Sectors.
    pub capacity: u64,
    pub features: u64,
    pub events: BTreeSet<(&'static str, u16)>,
    /// The next call fails so.
    pub fail: Option<Errno>,
}

impl Fake {
    pub fn new() -> Self {
        let features = VERSION_1 | F_RING_PACKED | 1 << 29 | 1 << 28 | 1 << 12;
        Self {
            info: BlkInfo { features, dirty_log: true, queues_max: QUEUES, queue_size_max: SIZE_MAX },
            calls: Vec::new(),
            running: BTreeMap::new(),
            memory: BTreeMap::new(),
            positions: BTreeMap::new(),
            inflight: None,
            capacity: CAPACITY,
            features: 0,
            events: BTreeSet::new(),
            fail: None,
        }
    }

    fn note(&mut self, call: impl Into<String>) -> Result<(), Errno> {
        match self.fail.take() {
            Some(errno) => Err(errno),
            None => {
                self.calls.push(call.into());
                Ok(())
            }
        }
    }

    #[track_caller]
    fn nothing_runs(&self) {
        assert!(self.running.is_empty(), "changed under running rings {:?}", self.running.keys());
    }

    fn event(&mut self, what: &'static str, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        assert!(queue < QUEUES);
        self.note(format!("{what} {queue} {}", if fd.is_some() { "fd" } else { "none" }))?;
        match fd {
            Some(_) => self.events.insert((what, queue)),
            None => self.events.remove(&(what, queue)),
        };
        Ok(())
    }

    fn holds(&self, address: u64, len: u64) -> bool {
        let mut at = address;
        let end = address.checked_add(len).expect("no wrap");
        while let Some((first, size)) = self.memory.range(..=at).next_back() {
            match first.checked_add(*size) {
                Some(last) if last <= at => return false,
                Some(last) if last < end => at = last,
                _ => return true,
            }
        }
        false
    }

    fn insert(&mut self, region: Region) {
        assert!(region.size > 0 && region.guest_address.checked_add(region.size - 1).is_some());
        assert!(region.offset.checked_add(region.size).is_some());
        let last = region.guest_address + (region.size - 1);
        let below = self.memory.range(..=last).next_back();
        assert!(below.is_none_or(|(at, size)| at + (size - 1) < region.guest_address), "overlap");
        self.memory.insert(region.guest_address, region.size);
    }
}

impl Blk for Fake {
    fn info(&self) -> &BlkInfo {
        &self.info
    }

    fn config(&self) -> Vec<u8> {
        self.capacity.to_le_bytes().into_iter().chain(9..97).collect()
    }

    fn set_writeback(&mut self, on: bool) -> Result<(), Errno> {
        self.note(format!("writeback {on}"))
    }

    fn set_features(&mut self, features: u64) -> Result<(), Errno> {
        self.nothing_runs();
        assert_eq!(features & !(self.info.features | LOG_ALL), 0, "features that were not offered");
        self.note(format!("features {features:#x}"))?;
        self.features = features;
        Ok(())
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), Errno> {
        self.nothing_runs();
        self.note(format!("memory of {}", regions.len()))?;
        self.memory.clear();
        regions.into_iter().for_each(|region| self.insert(region));
        Ok(())
    }

    fn add_memory(&mut self, region: Region) -> Result<(), Errno> {
        self.nothing_runs();
        self.note(format!("add {:#x}+{:#x} at {:#x}", region.guest_address, region.size, region.offset))?;
        self.insert(region);
        Ok(())
    }

    fn remove_memory(&mut self, guest_address: u64, size: u64) -> Result<(), Errno> {
        self.nothing_runs();
        assert_eq!(self.memory.get(&guest_address), Some(&size), "removed what is not there");
        self.note(format!("remove {guest_address:#x}+{size:#x}"))?;
        self.memory.remove(&guest_address);
        Ok(())
    }

    fn set_kick(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        self.event("kick", queue, fd)
    }

    fn set_call(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        self.event("call", queue, fd)
    }

    fn set_err(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        self.event("err", queue, fd)
    }

    fn new_inflight(&mut self, num_queues: u16, queue_size: u16) -> Result<NewInflight, Errno> {
        assert!((1..=QUEUES).contains(&num_queues) && (1..=SIZE_MAX).contains(&queue_size));
        self.note(format!("new inflight {num_queues} x {queue_size}"))?;
        let size = u64::from(num_queues) * (64 + 32 * u64::from(queue_size));
        Ok(NewInflight { fd: Arc::new(memfd(size)), size })
    }

    fn set_inflight(&mut self, inflight: Inflight) -> Result<(), Errno> {
        self.nothing_runs();
        assert!(inflight.size > 0 && inflight.offset.checked_add(inflight.size).is_some());
        let Inflight { num_queues, queue_size, own, .. } = inflight;
        self.note(format!("inflight {num_queues} x {queue_size}{}", if own { " own" } else { "" }))?;
        self.inflight = Some((num_queues, queue_size, own));
        Ok(())
    }

    fn clear_inflight(&mut self, queue: u16) -> Result<(), Errno> {
        assert!(!self.running.contains_key(&queue), "forgot the requests of a running ring");
        assert!(self.inflight.is_some_and(|(_, _, own)| own), "cleared the client's region");
        self.note(format!("clear {queue}"))
    }

    fn set_log(&mut self, log: Log) -> Result<(), Errno> {
        self.nothing_runs();
        assert!(log.offset.checked_add(log.size).is_some());
        self.note(format!("log {:#x}+{:#x}", log.offset, log.size))
    }

    fn set_log_event(&mut self, _fd: OwnedFd) -> Result<(), Errno> {
        self.note("log event")
    }

    fn start(&mut self, queue: u16, ring: Ring) -> Result<(), Errno> {
        let size = u64::from(ring.size);
        assert!((1..=SIZE_MAX).contains(&ring.size) && (ring.packed || ring.size.is_power_of_two()));
        assert_eq!(ring.packed, self.features & F_RING_PACKED != 0);
        let (driver, device) = if ring.packed { (4, 4) } else { (6 + 2 * size, 6 + 8 * size) };
        assert!(self.holds(ring.descriptors, 16 * size) && ring.descriptors.is_multiple_of(16));
        assert!(
            self.holds(ring.driver, driver) && ring.driver.is_multiple_of(if ring.packed { 4 } else { 2 })
        );
        assert!(self.holds(ring.device, device) && ring.device.is_multiple_of(4));
        let (queues, entries, _) = self.inflight.expect("an in-flight region before the first start");
        assert!(queue < queues && ring.size <= entries);
        assert!(!self.running.contains_key(&queue), "started twice");
        self.note(format!("start {queue} at {:#x}", ring.base))?;
        self.positions.insert(queue, ring.base);
        self.running.insert(queue, ring);
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> Result<u32, Errno> {
        assert!(self.running.contains_key(&queue), "stopped what does not run");
        self.note(format!("stop {queue}"))?;
        self.running.remove(&queue);
        Ok(self.positions.get(&queue).copied().unwrap_or(0))
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.nothing_runs();
        self.features = 0;
        self.note("reset")
    }
}

/// A message with the header's flags as a front-end sets them.
pub fn message(request: u32, needs_reply: bool, payload: &[u8], fds: Vec<ClientFd>) -> Message {
    raw(request, if needs_reply { 9 } else { 1 }, payload, fds)
}

pub fn raw(request: u32, flags: u32, payload: &[u8], fds: Vec<ClientFd>) -> Message {
    let size = u32::try_from(payload.len()).expect("short");
    let header = Header::parse(&header(request, flags, size)).expect("sound");
    Message { header, payload: payload.to_vec(), fds, surplus_fds: false }
}

pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    u32s(&[request, flags, size]).try_into().expect("12 bytes")
}

pub fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn u64s(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Guest address, size, user address, offset.
pub type RegionWords = [u64; 4];

pub const FIRST: RegionWords = [0, REGION_BYTES, USER, 0];

pub fn table(regions: &[RegionWords]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("few");
    let words: Vec<u64> = regions.iter().flatten().copied().collect();
    [u32s(&[count, 0]), u64s(&words)].concat()
}

pub fn single(region: RegionWords) -> Vec<u8> {
    [u64s(&[0]), u64s(&region)].concat()
}

/// Index, flags, descriptor, used, available, log.
pub fn addr(index: u32, flags: u32, descriptor: u64, used: u64, available: u64) -> Vec<u8> {
    [u32s(&[index, flags]), u64s(&[descriptor, used, available, 0x5000])].concat()
}

/// The addresses of a ring that has a stretch of the first region for itself.
pub fn good_addr(index: u32) -> Vec<u8> {
    let base = USER + u64::from(index) * 0x1_0000;
    addr(index, 0, base, base + 0x8000, base + 0x4000)
}

pub struct Client {
    pub session: Session,
    pub blk: Fake,
    pub next_fd: FdId,
    /// What a keeper would hold, by name.
    pub held: BTreeMap<FdId, OwnedFd>,
}

impl Client {
    pub fn new() -> Self {
        let blk = Fake::new();
        Self { session: Session::new(&blk), blk, next_fd: 0, held: BTreeMap::new() }
    }

    /// Features and protocol features are agreed on.
    pub fn negotiated() -> Self {
        let mut client = Self::new();
        client.tell(SET_PROTOCOL_FEATURES, &u64s(&[ALL_PROTOCOL]), vec![]);
        client.tell(SET_FEATURES, &u64s(&[VERSION_1 | PROTOCOL]), vec![]);
        client
    }

    /// And one ring runs.
    pub fn running() -> Self {
        let mut client = Self::negotiated();
        client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
        client.start_ring(0);
        client
    }

    pub fn start_ring(&mut self, index: u32) {
        self.tell(SET_VRING_NUM, &u32s(&[index, 64]), vec![]);
        self.tell(SET_VRING_BASE, &u32s(&[index, 0]), vec![]);
        self.tell(SET_VRING_ADDR, &good_addr(index), vec![]);
        self.tell(SET_VRING_KICK, &u64s(&[index.into()]), vec![event()]);
        self.tell(SET_VRING_CALL, &u64s(&[index.into()]), vec![event()]);
        self.tell(SET_VRING_ENABLE, &u32s(&[index, 1]), vec![]);
        assert!(self.blk.running.contains_key(&u16::try_from(index).expect("small")));
    }

    fn name(&mut self, fds: Vec<OwnedFd>) -> Vec<ClientFd> {
        let mut named = Vec::new();
        for fd in fds {
            self.held.insert(self.next_fd, fd.try_clone().expect("dup"));
            named.push(ClientFd { id: self.next_fd, fd });
            self.next_fd += 1;
        }
        named
    }

    pub fn send(&mut self, request: u32, needs_reply: bool, payload: &[u8], fds: Vec<OwnedFd>) -> Outcome {
        let fds = self.name(fds);
        self.give(message(request, needs_reply, payload, fds))
    }

    pub fn give(&mut self, message: Message) -> Outcome {
        let mut outcome = self.session.handle(message, &mut self.blk);
        for (id, fd) in outcome.made.drain(..) {
            self.held.insert(id, fd.try_clone().expect("dup"));
        }
        outcome
    }

    /// Sends, and expects success.
    #[track_caller]
    pub fn tell(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) {
        let outcome = self.send(request, true, payload, fds);
        assert_eq!(outcome.refused, None, "message {request}");
        assert!(!outcome.close);
    }

    /// Sends, and expects an acknowledgement that says no.
    #[track_caller]
    pub fn refused(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> u64 {
        let outcome = self.send(request, true, payload, fds);
        assert!(outcome.refused.is_some(), "message {request} was taken");
        assert!(!outcome.close, "message {request} ended the session");
        let code = u64_of(&payload_of(&outcome));
        assert_ne!(code, 0);
        code
    }

    /// Sends, and expects an answer.
    #[track_caller]
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        let outcome = self.send(request, false, payload, vec![]);
        assert_eq!(outcome.refused, None);
        payload_of(&outcome)
    }

    pub fn calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.blk.calls)
    }

    /// What a successor makes of it.
    pub fn successor(&self) -> Result<Client, frontend::vhost_user::Refusal> {
        self.successor_with(Fake::new())
    }

    /// On a device that is another than it was.
    pub fn successor_with(&self, mut blk: Fake) -> Result<Client, frontend::vhost_user::Refusal> {
        let saved = self.session.saved();
        let keep = saved.fd_ids();
        let dup = |id: &FdId| Some((*id, self.held.get(id)?.try_clone().expect("dup")));
        let fds: Vec<_> = keep.iter().filter_map(dup).collect();
        let held = fds.iter().map(|(id, fd)| (*id, fd.try_clone().expect("dup"))).collect();
        let session = Session::restore(&saved, fds, &mut blk)?;
        Ok(Client { session, blk, next_fd: self.next_fd, held })
    }
}

#[track_caller]
pub fn payload_of(outcome: &Outcome) -> Vec<u8> {
    let bytes = &outcome.reply.as_ref().expect("a reply").bytes;
    let words: Vec<u32> =
        bytes[..12].as_chunks().0.iter().map(|word: &[u8; 4]| u32::from_le_bytes(*word)).collect();
    assert_eq!(words[1], 5, "version 1, a reply");
    assert_eq!(words[2] as usize, bytes.len() - HEADER_BYTES, "the size that the header says");
    bytes[HEADER_BYTES..].to_vec()
}

#[track_caller]
pub fn u64_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload.try_into().expect("8 bytes"))
}
