//! The state of one conversation: each request checked against it, carried out, and answered. Sans-I/O: a message in, at
//! most one reply out.
//!
//! A ring *runs* when all of this is so: SET_VRING_KICK came (after it GET_VRING_BASE did not), it is enabled (or protocol
//! features are not in use), its size and addresses are known, and they lie in memory and in the in-flight region. The
//! messages that make it so may come in any order, also before there is memory. What would disturb running rings stops them first ([`Rings::pause`]) and
//! lets those run again that can ([`Rings::settle`]).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use spec::vhost_user as wire;
use spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, MemoryRegion, ProtocolFeatures};
use zerocopy::{Immutable, IntoBytes};

use super::channel::BackendChannel;
use super::device::{Blk, F_RING_PACKED, Inflight, Log, Region};
use super::frame::{
    self, ClientFd, FdId, Header, InflightShape, Message, Refusal, Request, RequestId, VringEvent,
};
use super::rings::{Rings, Setting};
use super::saved::{Saved, SavedInflight, SavedLog};
use super::table::{Table, TableEntry};

/// The most memory regions of a session, told by GET_MAX_MEM_SLOTS. What libvhost-user tells, and as many slots as KVM has
/// on x86.
pub const MEM_SLOTS_MAX: usize = 509;
/// Names of descriptors that the device makes begin here; the client's never come here.
pub const DEVICE_FDS: FdId = 1 << 31;
/// Where the write-back byte stands in the configuration space (virtio 1.2, 5.2.4).
const WRITEBACK_OFFSET: usize = 32;
/// The capacity stands first (virtio 1.2, 5.2.4).
const CAPACITY_BYTES: usize = 8;

const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS);

/// A whole message to send in one piece.
#[derive(Debug)]
pub struct Reply {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// A descriptor to send with the first byte.
    pub fd: Option<Arc<OwnedFd>>,
}

/// What a message led to.
#[derive(Debug)]
pub struct Outcome {
    /// What to send; `None` when the client wants no reply.
    pub reply: Option<Reply>,
    /// Why the message was not carried out, or not whole.
    pub refused: Option<Refusal>,
    /// The client cannot be told what went wrong, or it cannot go on: send the reply, if any, and hang up.
    pub close: bool,
    /// [`Session::saved`] is another than before.
    pub changed: bool,
    /// Descriptors that the device made, by the names that [`Session::saved`] has for them: to be kept with it.
    pub made: Vec<(FdId, Arc<OwnedFd>)>,
}

/// What the client is told, beside whether it went well.
enum Answer {
    /// Nothing, or the acknowledgement that it asked for.
    Done,
    /// This.
    Payload(Vec<u8>, Option<Arc<OwnedFd>>),
}

type Handled = Result<Answer, Refusal>;

/// The state of one conversation.
#[derive(Debug)]
pub struct Session {
    features: u64,
    protocol_features: ProtocolFeatures,
    status: u8,
    writeback: Option<bool>,
    table: Table,
    rings: Rings,
    inflight: Option<SavedInflight>,
    log: Option<SavedLog>,
    log_event: Option<FdId>,
    backend_channel: Option<(FdId, Arc<BackendChannel>)>,
    /// The capacity that the client has read, in sectors.
    told_sectors: Option<u64>,
    /// The device was reset: our in-flight region must forget all rings before the next message is carried out.
    forget: bool,
    /// Made while the present message is handled.
    made: Vec<(FdId, Arc<OwnedFd>)>,
    /// The device did not do what it must: nothing is sure any more.
    broken: bool,
}

/// Tells a client that its device's configuration has changed.
#[derive(Clone, Debug)]
pub struct Announcer(Arc<BackendChannel>);

impl Announcer {
    /// Does so. Never waits.
    pub fn announce(&self) {
        // One who does not hear of it sees it when it looks.
        let _ = self.0.config_changed();
    }
}

impl Session {
    /// A conversation not yet begun.
    pub fn new(blk: &dyn Blk) -> Self {
        Self {
            features: 0,
            protocol_features: ProtocolFeatures::empty(),
            status: 0,
            writeback: None,
            table: Table::default(),
            rings: Rings::new(blk.info().queues_max),
            inflight: None,
            log: None,
            log_event: None,
            backend_channel: None,
            told_sectors: None,
            forget: false,
            made: Vec::new(),
            broken: false,
        }
    }

    /// Carries out one message and builds its reply.
    pub fn handle(&mut self, message: Message, blk: &mut dyn Blk) -> Outcome {
        let header = message.header;
        let before = self.saved();
        let handled = self.own_inflight(blk).and_then(|()| {
            let request = frame::parse(message)?;
            self.carry_out(request, blk)
        });
        let after = self.saved();
        let (changed, named) = (after != before, after.fd_ids());
        // What this very message replaced is not kept.
        let made = std::mem::take(&mut self.made).into_iter().filter(|(id, _)| named.contains(id)).collect();
        let (reply, refused) = match handled {
            Ok(Answer::Payload(payload, fd)) => (Some(reply(&header, &payload, fd)), None),
            Ok(Answer::Done) => (self.acknowledge(&header, 0), None),
            Err(refusal) => (self.refuse(&header, refusal), Some(refusal)),
        };
        let close = self.broken || refused.is_some() && reply.is_none();
        Outcome { reply, refused, close, changed, made }
    }

    /// What a successor must know.
    pub fn saved(&self) -> Saved {
        Saved {
            features: self.features,
            protocol_features: self.protocol_features.bits(),
            status: self.status,
            writeback: self.writeback,
            regions: self.table.entries().to_vec(),
            vrings: self.rings.saved(),
            inflight: self.inflight,
            log: self.log,
            log_event: self.log_event,
            backend_channel: self.backend_channel.as_ref().map(|(id, _)| *id),
            told_sectors: self.told_sectors,
            forget: self.forget,
        }
    }

    /// Goes on with a predecessor's conversation: the device is told all, and the rings that ran run again.
    ///
    /// An error means that the state does not fit this device (it may have shrunk) or its descriptors: the session cannot be
    /// served.
    pub fn restore(saved: &Saved, fds: Vec<(FdId, OwnedFd)>, blk: &mut dyn Blk) -> Result<Self, Refusal> {
        let mut kept = Kept(fds.into_iter().collect());
        let mut session = Self::new(blk);
        let all = offered(blk);
        if saved.features & !all != 0 || saved.protocol_features & !protocol_features(blk).bits() != 0 {
            return Err(Refusal::new(Errno::OPNOTSUPP, "features in use that this device does not have"));
        }
        if saved.told_sectors.is_some_and(|told| told > sectors(blk)) {
            return Err(Refusal::new(Errno::NOSPC, "the drive is smaller than its client was told"));
        }
        session.told_sectors = saved.told_sectors;
        session.features = saved.features;
        session.protocol_features = ProtocolFeatures::from_bits_retain(saved.protocol_features);
        session.status = saved.status;
        session.forget = saved.forget;
        // A session in which nothing is agreed on has nothing to tell; a reset device is as it was at first.
        if saved.features != 0 {
            blk.set_features(saved.features & !F_PROTOCOL_FEATURES).map_err(device)?;
        }
        if let Some(on) = saved.writeback {
            blk.set_writeback(on).map_err(device)?;
            session.writeback = Some(on);
        }
        let mut regions = Vec::with_capacity(saved.regions.len());
        for entry in &saved.regions {
            let region = MemoryRegion {
                guest_address: entry.guest_address,
                size: entry.size,
                user_address: entry.user_address,
                mmap_offset: entry.mmap_offset,
            };
            session.table.add(TableEntry::checked(&region, entry.fd)?, MEM_SLOTS_MAX)?;
            regions.push((region, ClientFd { id: entry.fd, fd: kept.take(entry.fd)? }));
        }
        if !regions.is_empty() {
            blk.set_memory(regions.into_iter().map(for_device).collect()).map_err(device)?;
        }
        if let Some(log) = saved.log {
            let fd = kept.take(log.fd)?;
            blk.set_log(Log { fd, offset: log.offset, size: log.size }).map_err(device)?;
            session.log = Some(log);
        }
        if let Some(id) = saved.log_event {
            blk.set_log_event(kept.take(id)?).map_err(device)?;
            session.log_event = Some(id);
        }
        if let Some(id) = saved.backend_channel {
            session.backend_channel = Some((id, Arc::new(BackendChannel::new(kept.take(id)?))));
        }
        if let Some(inflight) = saved.inflight {
            let fd = Arc::new(kept.take(inflight.fd)?);
            session.use_inflight(inflight, fd, blk)?;
        }
        session.rings.restore(&saved.vrings, &mut |id| kept.take(id), blk)?;
        session.settle(None, blk)?;
        session.announce(blk);
        Ok(session)
    }

    /// Tells of a device that has grown since the client looked, again and again until it looks.
    pub fn announce(&self, blk: &dyn Blk) {
        if let Some(announcer) = self.announcer()
            && self.told_sectors.is_some_and(|told| told != sectors(blk))
        {
            announcer.announce();
        }
    }

    /// What tells the client of a change, from any thread, if it wants to hear of one now.
    #[must_use]
    pub fn announcer(&self) -> Option<Announcer> {
        let agreed =
            self.protocol_features.contains(ProtocolFeatures::CONFIG | ProtocolFeatures::BACKEND_REQ);
        self.backend_channel.as_ref().filter(|_| agreed).map(|(_, channel)| Announcer(Arc::clone(channel)))
    }

    /// The rings that run, for whoever ends the session.
    pub fn running(&self) -> Vec<u16> {
        self.rings.running()
    }

    fn carry_out(&mut self, request: Request, blk: &mut dyn Blk) -> Handled {
        match request {
            Request::GetFeatures => number(offered(blk)),
            Request::SetFeatures(features) => self.set_features(features, blk),
            Request::GetProtocolFeatures => number(protocol_features(blk).bits()),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features, blk),
            Request::SetOwner => Ok(Answer::Done),
            Request::ResetOwner => self.reset_owner(blk),
            Request::ResetDevice => self.reset(blk),
            Request::SetMemTable(regions) => self.set_memory(regions, blk),
            Request::AddMemReg(region, fd) => self.add_memory(region, fd, blk),
            Request::RemMemReg(region) => self.remove_memory(&region, blk),
            Request::GetMaxMemSlots => number(MEM_SLOTS_MAX as u64),
            Request::SetVringNum { index, num } => self.set_num(index, num, blk),
            Request::SetVringAddr(addr) => self.set_addr(&addr, blk),
            Request::SetVringBase { index, base } => self.set_base(index, base, blk),
            Request::GetVringBase { index } => self.get_base(index, blk),
            Request::SetVringFd { event, index, fd } => self.set_fd(event, index, fd, blk),
            Request::SetVringEnable { index, on } => self.enable(index, on, blk),
            Request::GetQueueNum => number(u64::from(blk.info().queues_max)),
            Request::GetConfig { offset, size } => {
                if offset == 0 && size >= CAPACITY_BYTES {
                    self.told_sectors = Some(sectors(blk));
                }
                get_config(offset, size, blk)
            }
            Request::SetConfig { offset, data } => self.set_config(offset, &data, blk),
            Request::SetBackendReqFd(fd) => {
                self.backend_channel = Some((fd.id, Arc::new(BackendChannel::new(fd.fd))));
                Ok(Answer::Done)
            }
            Request::GetInflightFd(shape) => self.get_inflight(&shape, blk),
            Request::SetInflightFd(shape, fd) => self.set_inflight(&shape, fd, blk),
            Request::SetLogBase(log, fd) => self.set_log(&log, fd, blk),
            Request::SetLogFd(fd) => self.set_log_event(fd, blk),
            Request::SetStatus(0) => self.reset(blk),
            Request::SetStatus(status) => {
                self.status = status;
                Ok(Answer::Done)
            }
            Request::GetStatus => number(u64::from(self.status)),
        }
    }

    /// Rings need a region for requests in flight from their first request on, whether or not the client brings one. Ours is
    /// made, and kept, before any ring can run.
    fn own_inflight(&mut self, blk: &mut dyn Blk) -> Result<(), Refusal> {
        if std::mem::take(&mut self.forget) {
            self.forget_all(blk)?;
        }
        if self.inflight.is_some() {
            return Ok(());
        }
        let (num_queues, queue_size) = (blk.info().queues_max, blk.info().queue_size_max);
        let new = blk.new_inflight(num_queues, queue_size).map_err(device)?;
        let inflight =
            SavedInflight { fd: DEVICE_FDS, offset: 0, size: new.size, num_queues, queue_size, own: true };
        self.use_inflight(inflight, Arc::clone(&new.fd), blk)?;
        self.made.push((DEVICE_FDS, new.fd));
        Ok(())
    }

    /// Not part of the reset itself: until its answer is in, a successor would start the rings as they were, and must find
    /// what was in flight. The next message alone cannot start a ring, so this can be done twice.
    fn forget_all(&mut self, blk: &mut dyn Blk) -> Result<(), Refusal> {
        let own = self.inflight.is_some_and(|inflight| inflight.own);
        let queues = if own { blk.info().queues_max } else { 0 };
        (0..queues).try_for_each(|queue| blk.clear_inflight(queue)).map_err(|errno| {
            self.forget = true;
            device(errno)
        })
    }

    fn use_inflight(
        &mut self,
        inflight: SavedInflight,
        fd: Arc<OwnedFd>,
        blk: &mut dyn Blk,
    ) -> Result<(), Refusal> {
        let SavedInflight { fd: _, offset, size, num_queues, queue_size, own } = inflight;
        blk.set_inflight(Inflight { fd, offset, size, num_queues, queue_size, own }).map_err(device)?;
        self.inflight = Some(inflight);
        Ok(())
    }

    fn set_features(&mut self, features: u64, blk: &mut dyn Blk) -> Handled {
        if features & !offered(blk) != 0 {
            return Err(invalid("features that were not offered"));
        }
        if features == self.features {
            return Ok(Answer::Done);
        }
        self.pause_all(blk)?;
        let set = blk.set_features(features & !F_PROTOCOL_FEATURES).map_err(device);
        if set.is_ok() {
            self.features = features;
        }
        let settled = self.settle(None, blk);
        set.and(settled)
    }

    fn set_protocol_features(&mut self, features: ProtocolFeatures, blk: &dyn Blk) -> Handled {
        if !protocol_features(blk).contains(features) {
            return Err(invalid("protocol features that were not offered"));
        }
        self.protocol_features = features;
        Ok(Answer::Done)
    }

    fn reset_owner(&mut self, blk: &mut dyn Blk) -> Handled {
        self.pause_all(blk)?;
        self.rings.disable();
        self.settle(None, blk)
    }

    fn reset(&mut self, blk: &mut dyn Blk) -> Handled {
        self.pause_all(blk)?;
        self.rings.reset(blk)?;
        blk.reset().map_err(device)?;
        self.forget = true;
        self.features = 0;
        self.status = 0;
        self.writeback = None;
        Ok(Answer::Done)
    }

    fn set_memory(&mut self, regions: Vec<(MemoryRegion, ClientFd)>, blk: &mut dyn Blk) -> Handled {
        let mut table = Table::default();
        for (region, fd) in &regions {
            table.add(TableEntry::checked(region, fd.id)?, MEM_SLOTS_MAX)?;
        }
        self.pause_all(blk)?;
        let set = blk.set_memory(regions.into_iter().map(for_device).collect()).map_err(device);
        if set.is_ok() {
            self.table = table;
        }
        let settled = self.settle(None, blk);
        set.and(settled)
    }

    fn add_memory(&mut self, region: MemoryRegion, fd: ClientFd, blk: &mut dyn Blk) -> Handled {
        let mut table = self.table.clone();
        table.add(TableEntry::checked(&region, fd.id)?, MEM_SLOTS_MAX)?;
        self.pause_all(blk)?;
        let added = blk.add_memory(for_device((region, fd))).map_err(device);
        if added.is_ok() {
            self.table = table;
        }
        let settled = self.settle(None, blk);
        added.and(settled)
    }

    fn remove_memory(&mut self, region: &MemoryRegion, blk: &mut dyn Blk) -> Handled {
        let nothing = Refusal::new(Errno::NOENT, "no memory region is there to be removed");
        let at = self.table.find(region).ok_or(nothing)?;
        self.pause_all(blk)?;
        let removed = blk.remove_memory(region.guest_address, region.size).map_err(device);
        if removed.is_ok() {
            self.table.remove(at);
        }
        let settled = self.settle(None, blk);
        removed.and(settled)
    }

    fn set_num(&mut self, index: u32, num: u32, blk: &mut dyn Blk) -> Handled {
        self.rings.set_num(index, num, blk.info().queue_size_max)?;
        self.settle(Some(index), blk)
    }

    fn set_addr(&mut self, addr: &wire::VringAddr, blk: &mut dyn Blk) -> Handled {
        self.rings.check(addr.index)?;
        self.pause(addr.index, blk)?;
        self.rings.set_addr(addr)?;
        self.settle(Some(addr.index), blk)
    }

    fn set_base(&mut self, index: u32, base: u32, blk: &mut dyn Blk) -> Handled {
        let queue = self.rings.set_base(index, base)?;
        if self.inflight.is_some_and(|inflight| inflight.own) {
            blk.clear_inflight(queue).map_err(device)?;
        }
        self.settle(Some(index), blk)
    }

    fn get_base(&mut self, index: u32, blk: &mut dyn Blk) -> Handled {
        self.rings.check(index)?;
        self.pause(index, blk)?;
        let num = self.rings.halt(index, blk)?;
        payload(&wire::VringState { index, num })
    }

    fn set_fd(&mut self, event: VringEvent, index: u32, fd: Option<ClientFd>, blk: &mut dyn Blk) -> Handled {
        let (id, fd) = fd.map(|fd| (fd.id, fd.fd)).unzip();
        self.rings.set_fd(event, index, id, fd, blk)?;
        if event == VringEvent::Kick { self.settle(Some(index), blk) } else { Ok(Answer::Done) }
    }

    fn enable(&mut self, index: u32, on: bool, blk: &mut dyn Blk) -> Handled {
        if !on {
            self.rings.check(index)?;
            self.pause(index, blk)?;
        }
        self.rings.enable(index, on)?;
        self.settle(Some(index), blk)
    }

    fn set_config(&mut self, offset: usize, data: &[u8], blk: &mut dyn Blk) -> Handled {
        // "Back-ends MUST NOT accept SET_CONFIG for read-only configuration space fields": all but this one are.
        match (offset, data) {
            (WRITEBACK_OFFSET, &[value @ 0..=1]) => {
                blk.set_writeback(value == 1).map_err(device)?;
                self.writeback = Some(value == 1);
                Ok(Answer::Done)
            }
            _ => Err(invalid("a write to a read-only field of the configuration space")),
        }
    }

    fn get_inflight(&mut self, shape: &InflightShape, blk: &mut dyn Blk) -> Handled {
        check_shape(shape, blk)?;
        let new = blk.new_inflight(shape.num_queues, shape.queue_size).map_err(device)?;
        let (num_queues, queue_size) = (shape.num_queues, shape.queue_size);
        let answer =
            wire::Inflight { mmap_size: new.size, mmap_offset: 0, num_queues, queue_size, padding: 0 };
        let bytes = answer.as_bytes();
        Ok(Answer::Payload(bytes.get(..shape.wire_bytes).unwrap_or(bytes).to_vec(), Some(new.fd)))
    }

    fn set_inflight(&mut self, shape: &InflightShape, fd: ClientFd, blk: &mut dyn Blk) -> Handled {
        check_shape(shape, blk)?;
        let InflightShape { mmap_size: size, mmap_offset: offset, num_queues, queue_size, .. } = *shape;
        if size == 0 || offset.checked_add(size).is_none() {
            return Err(invalid("an in-flight region that is empty or wraps"));
        }
        // What is in flight is written down in one region, from the first request of a ring to its last.
        if !self.rings.running().is_empty() {
            return Err(Refusal::new(Errno::BUSY, "an in-flight region under rings that run"));
        }
        let inflight = SavedInflight { fd: fd.id, offset, size, num_queues, queue_size, own: false };
        self.use_inflight(inflight, Arc::new(fd.fd), blk)?;
        self.settle(None, blk)
    }

    fn set_log(&mut self, log: &wire::Log, fd: ClientFd, blk: &mut dyn Blk) -> Handled {
        if !self.protocol_features.contains(ProtocolFeatures::LOG_SHMFD) {
            return Err(Refusal::new(Errno::OPNOTSUPP, "a dirty log that was not agreed on"));
        }
        if log.size == 0 || log.offset.checked_add(log.size).is_none() {
            return Err(invalid("a dirty log that is empty or wraps"));
        }
        self.pause_all(blk)?;
        let set = blk.set_log(Log { fd: fd.fd, offset: log.offset, size: log.size }).map_err(device);
        if set.is_ok() {
            self.log = Some(SavedLog { fd: fd.id, offset: log.offset, size: log.size });
        }
        let settled = self.settle(None, blk);
        set.and(settled)?;
        // QEMU waits for an answer here whether or not it asked for one ("Communication").
        number(0)
    }

    fn set_log_event(&mut self, fd: ClientFd, blk: &mut dyn Blk) -> Handled {
        self.pause_all(blk)?;
        let set = blk.set_log_event(fd.fd).map_err(device);
        if set.is_ok() {
            self.log_event = Some(fd.id);
        }
        let settled = self.settle(None, blk);
        set.and(settled)
    }

    fn pause(&mut self, index: u32, blk: &mut dyn Blk) -> Result<(), Refusal> {
        let paused = self.rings.pause(index, blk);
        self.broken |= paused.is_err();
        paused
    }

    fn pause_all(&mut self, blk: &mut dyn Blk) -> Result<(), Refusal> {
        (0..u32::from(blk.info().queues_max)).try_for_each(|index| self.pause(index, blk))
    }

    fn settle(&mut self, about: Option<u32>, blk: &mut dyn Blk) -> Handled {
        let setting = Setting {
            enabled_by_default: self.features & F_PROTOCOL_FEATURES == 0,
            packed: self.features & F_RING_PACKED != 0,
            room: self.inflight.map_or((0, 0), |inflight| (inflight.num_queues, inflight.queue_size)),
            table: &self.table,
        };
        self.rings.settle(about, &setting, blk).map(|()| Answer::Done)
    }

    /// An explicit "it went so", if the client asked for it and that was agreed on.
    fn acknowledge(&self, header: &Header, code: u64) -> Option<Reply> {
        let agreed = self.protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        (agreed && header.needs_reply()).then(|| reply(header, code.as_bytes(), None))
    }

    fn refuse(&self, header: &Header, refusal: Refusal) -> Option<Reply> {
        match header.request {
            _ if !header.is_this_version() => None,
            // "Uses zero length of payload to indicate an error" (GET_CONFIG).
            RequestId::GetConfig => Some(reply(header, &[], None)),
            // What else has an answer of its own has no form for a failure.
            RequestId::GetFeatures
            | RequestId::GetProtocolFeatures
            | RequestId::GetVringBase
            | RequestId::GetQueueNum
            | RequestId::GetInflightFd
            | RequestId::GetMaxMemSlots
            | RequestId::GetStatus => None,
            _ => self.acknowledge(header, u64::from(refusal.errno.raw_os_error().unsigned_abs())),
        }
    }
}

/// Descriptors by name, each given away once.
struct Kept(BTreeMap<FdId, OwnedFd>);

impl Kept {
    fn take(&mut self, id: FdId) -> Result<OwnedFd, Refusal> {
        self.0.remove(&id).ok_or(Refusal::new(Errno::BADF, "a descriptor of the saved session is missing"))
    }
}

const fn invalid(why: &'static str) -> Refusal {
    Refusal::new(Errno::INVAL, why)
}

pub(super) fn device(errno: Errno) -> Refusal {
    Refusal::new(errno, "the device refused it")
}

fn offered(blk: &dyn Blk) -> u64 {
    let info = blk.info();
    info.features | F_PROTOCOL_FEATURES | if info.dirty_log { F_LOG_ALL } else { 0 }
}

fn protocol_features(blk: &dyn Blk) -> ProtocolFeatures {
    let log = if blk.info().dirty_log { ProtocolFeatures::LOG_SHMFD } else { ProtocolFeatures::empty() };
    PROTOCOL_FEATURES | log
}

fn for_device((region, fd): (MemoryRegion, ClientFd)) -> Region {
    let MemoryRegion { guest_address, size, user_address: _, mmap_offset } = region;
    Region { guest_address, size, fd: fd.fd, offset: mmap_offset }
}

fn check_shape(shape: &InflightShape, blk: &dyn Blk) -> Result<(), Refusal> {
    let info = blk.info();
    if shape.num_queues == 0 || shape.num_queues > info.queues_max {
        return Err(invalid("an in-flight region for no rings, or for more than there are"));
    }
    if shape.queue_size == 0 || shape.queue_size > info.queue_size_max {
        return Err(invalid("an in-flight region for rings of no entries, or of too many"));
    }
    Ok(())
}

/// The device's capacity.
fn sectors(blk: &dyn Blk) -> u64 {
    blk.config().first_chunk::<CAPACITY_BYTES>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// "Back-end's payload size MUST match the front-end's request" (GET_CONFIG), also beyond the device's own fields.
fn get_config(offset: usize, size: usize, blk: &dyn Blk) -> Handled {
    let config = blk.config();
    let field = |word: usize| u32::try_from(word).map_err(|_| invalid("configuration space"));
    let head = wire::Config { offset: field(offset)?, size: field(size)?, flags: 0 };
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend((offset..offset + size).map(|at| config.get(at).copied().unwrap_or(0)));
    Ok(Answer::Payload(bytes, None))
}

fn number(value: u64) -> Handled {
    payload(&value)
}

fn payload(value: &(impl IntoBytes + Immutable)) -> Handled {
    Ok(Answer::Payload(value.as_bytes().to_vec(), None))
}

fn reply(header: &Header, payload: &[u8], fd: Option<Arc<OwnedFd>>) -> Reply {
    let flags = wire::HeaderFlags(wire::VERSION) | wire::HeaderFlags::REPLY;
    // Nothing we build comes near 4 GiB.
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let head = wire::Header { request: header.request.0, flags, size };
    Reply { bytes: [head.as_bytes(), payload].concat(), fd }
}
