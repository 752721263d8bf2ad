//! What a session acts on: the disk as its client set it up. Calls of the session become orders to the seats, and wait for them.

use super::{Done, Events, Order, Setting};
use crate::crew::Crew;
use crate::data_key::DataKey;
use crate::drive::Drive;
use crate::interrupts::Eventfd;
use crate::keeper::Keeper;
use crate::message::{Message, SsdId};
use crate::meter;
use crate::migration::limits_that_came;
use crate::pool::Pools;
use crate::serve::{Kept, backend_config};
use crate::session::{map_errno, mapping_errno};
use crate::ssd::Ssd;
use crate::terms::{Hold, Terms};
use crate::watch::Watch;
use anyhow::{Context, ensure};
use api::config;
use frontend::vhost_user::{Blk, BlkInfo, Errno, Inflight, Log, NewInflight, Region, Ring};
use memory::{Access, Iova, Mapping, MemoryMap, WriteLog};
use nvme::profile::{Identity, IdentityConfig, Profile};
use rustix::fs::{MemfdFlags, SealFlags};
use spec::vhost_user::F_LOG_ALL;
use spec::virtio_blk as blk;
use state::vhost_session::VhostUserV1;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use virtio::config::{Capacity, Device};
use virtio::inflight::{QueueRegion, region_bytes};
use virtio::ring::RingConfig;

/// Rings a client may have: one for each processor of a large guest.
const QUEUES_MAX: u16 = 64;
/// Entries of a ring: the most that QEMU gives.
const QUEUE_SIZE_MAX: u16 = 1024;

/// Bytes of a client's log: enough for 128 TiB of guest addresses.
const LOG_BYTES_MAX: u64 = 4 << 30;

/// When a ring that could not leave its reactor is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Opens the drive of an ssd whose door is vhost-user.
pub(crate) fn open_ssd(
    at: usize,
    config: &config::Ssd,
    kept: Kept,
    keeper: Option<Arc<Keeper>>,
    pools: &Pools,
) -> anyhow::Result<Arc<Ssd>> {
    let data_key = DataKey::open(config, kept.key)?;
    let drive = Drive::open(config, kept.drive, kept.purpose, pools)?;
    let serial = &config.identity.serial;
    let identity = Identity::new(&IdentityConfig { serial, ..IdentityConfig::default() })?;
    let profile =
        Profile::by_name(&config.profile).with_context(|| format!("no profile \"{}\"", config.profile))?;
    let name = config.name.clone();
    let page = kept.page.unwrap_or_else(|| meter::page(config, None).0);
    Ok(Arc::new(Ssd {
        id: SsdId(at),
        name,
        drive,
        data_key,
        profile,
        identity,
        state: None,
        page,
        keeper,
        terms: Terms::new(config, limits_that_came(config, pools)),
        watch: Watch::default(),
        management: OnceLock::new(),
        written: crate::written::Written::default(),
        is_surveyed: std::sync::atomic::AtomicBool::new(false),
        map_failed: crate::trouble::Trouble::default(),
    }))
}

/// Refuses a drive that has become smaller than its client was told. A larger one is announced when the session goes on.
///
/// `kept` is the drive's descriptor; without one there is no looking while another engine holds the drive.
pub(crate) fn check_size(config: &config::Ssd, kept: OwnedFd, session: &VhostUserV1) -> anyhow::Result<()> {
    let bytes = match (&config.backend, config.size_bytes) {
        // Its pool is another engine's now, and volumes do not shrink.
        (config::Backend::Pool { .. }, Some(bytes)) => bytes,
        _ => backend::Drive::take_over(&backend_config(config)?, Some(kept))?.limits().capacity_bytes,
    };
    let told = session.told_sectors.map_or(0, |sectors| sectors.saturating_mul(blk::SECTOR_BYTES));
    ensure!(
        told <= bytes,
        "its drive has {bytes} bytes, and its client was told {told}: give the drive back its size"
    );
    Ok(())
}

/// Set when the engine pauses for another: from then on no seat is taken, because it would not hear of the pause.
pub(super) type Frozen = Arc<Mutex<bool>>;

/// The in-flight region in use.
struct Flights {
    map: Arc<MemoryMap>,
    /// Rings, and entries of each.
    geometry: (u16, u16),
    own: bool,
}

impl Flights {
    fn new(inflight: &Inflight) -> Result<Self, Errno> {
        let fd = inflight.fd.try_clone().map_err(|_| Errno::MFILE)?;
        let map = one_mapping(fd, inflight.offset, inflight.size)?;
        Ok(Self { map, geometry: (inflight.num_queues, inflight.queue_size), own: inflight.own })
    }

    /// In our own region each ring has room for either kind, so that one can forget what the other kind left, whatever is known
    /// of the client's wishes. A client's has the layout of the specification.
    fn of_queue(&self, packed: bool, queue: u16) -> Result<QueueRegion, Errno> {
        let (rings, entries) = self.geometry;
        let region = if !self.own {
            QueueRegion::new(&self.map, Iova(0), self.geometry, packed, queue)
        } else if queue < rings {
            let start = region_bytes(1, entries) as u64 * u64::from(queue);
            QueueRegion::new(&self.map, Iova(start), (1, entries), packed, 0)
        } else {
            return Err(Errno::INVAL);
        };
        region.map_err(|_| Errno::INVAL)
    }
}

/// A ring that the client has set going.
#[derive(Clone)]
struct Running {
    /// Its reactor. `None`: it could not go on when it was moved, and makes no sense.
    place: Option<usize>,
    ring: Ring,
}

/// See the module.
pub(crate) struct Disk {
    ssd: Arc<Ssd>,
    device: Arc<Device>,
    info: BlkInfo,
    crew: Arc<Crew>,
    /// By reactor: it has a seat.
    seated: Vec<bool>,
    setting: Setting,
    /// Where the client wants written pages marked while it has the feature on.
    log: Option<Arc<WriteLog>>,
    flights: Option<Flights>,
    /// By queue.
    events: Vec<Events>,
    running: BTreeMap<u16, Running>,
    frozen: Frozen,
    /// Requests that a predecessor had taken and not answered.
    replayed: u64,
    /// Before then no ring leaves its reactor because of who is on duty: one could not.
    again: Option<Instant>,
}

impl Disk {
    pub(crate) fn new(ssd: Arc<Ssd>, crew: Arc<Crew>) -> Self {
        let capacity = Capacity::new(ssd.limits().capacity_bytes);
        Self::of(ssd, crew, capacity)
    }

    fn of(ssd: Arc<Ssd>, crew: Arc<Crew>, capacity: Capacity) -> Self {
        let device = Arc::new(Device {
            capacity,
            read_only: false,
            serial: padded_with_zeros(ssd.identity.serial),
            num_queues: QUEUES_MAX,
            limits: ssd.limits(),
        });
        let info = BlkInfo {
            features: device.features(),
            dirty_log: true,
            queues_max: QUEUES_MAX,
            queue_size_max: QUEUE_SIZE_MAX,
        };
        let setting = Setting {
            map: Arc::new(MemoryMap::empty()),
            features: 0,
            writeback: true,
            log_event: None,
            hang_up: Arc::new(|| {}),
        };
        Self {
            seated: vec![false; crew.len()],
            events: vec![Events::default(); usize::from(QUEUES_MAX)],
            ssd,
            device,
            info,
            crew,
            setting,
            log: None,
            flights: None,
            running: BTreeMap::new(),
            frozen: Frozen::default(),
            replayed: 0,
            again: None,
        }
    }

    pub(super) fn frozen(&self) -> Frozen {
        Arc::clone(&self.frozen)
    }

    /// How large the disk is, for whoever makes it grow.
    pub(super) fn capacity(&self) -> Capacity {
        self.device.capacity.clone()
    }

    /// Requests executed again since the last call.
    pub(crate) fn take_replayed(&mut self) -> u64 {
        std::mem::take(&mut self.replayed)
    }

    /// A client comes; `hang_up` ends its session from any thread.
    pub(crate) fn enter(&mut self, hang_up: impl Fn() + Send + Sync + 'static) {
        self.setting.hang_up = Arc::new(hang_up);
    }

    /// The client is gone: nothing of it is touched when this returns, and the disk is as before it came.
    pub(crate) fn leave(&mut self) {
        // Owned elsewhere: what waits here can only fail, and a guest that is hung up on is not to be told of an error before.
        let is_closed = self.ssd.terms.hold() == Hold::Closed;
        for (queue, running) in std::mem::take(&mut self.running) {
            if let Some(place) = running.place.filter(|_| !is_closed) {
                let _ = self.ask(place, |reply| Order::Stop(queue, reply));
            }
        }
        for place in 0..self.crew.len() {
            if std::mem::take(&mut self.seated[place]) {
                let _ = self.ask(place, Order::Leave);
            }
        }
        let frozen = Arc::clone(&self.frozen);
        let capacity = self.capacity();
        *self = Self::of(Arc::clone(&self.ssd), Arc::clone(&self.crew), capacity);
        self.frozen = frozen;
    }

    /// Makes all that was written durable.
    pub(crate) fn flush(&mut self) -> Done {
        let home = self.crew.deal(self.ssd.id.0);
        self.sit(home);
        self.ask(home, Order::Flush)
    }

    /// The reactors on duty have changed: rings leave those that are not, and those that are get the same number each.
    pub(crate) fn muster(&mut self) {
        for queue in self.running.keys().copied().collect::<Vec<_>>() {
            if self.again.is_some_and(|at| Instant::now() < at) {
                return;
            }
            let count = |at: usize| self.running.values().filter(|running| running.place == Some(at)).count();
            let Some(at) = self.running.get(&queue).and_then(|running| running.place) else { continue };
            let Some(to) = self.crew.on_duty().min_by_key(|to| count(*to)) else { return };
            if !self.crew.is_on_duty(at) || count(at) > count(to) + 1 {
                self.shift(queue, to);
            }
        }
        for place in 0..self.crew.len() {
            let used = self.running.values().any(|running| running.place == Some(place));
            if !used && !self.crew.is_on_duty(place) && std::mem::take(&mut self.seated[place]) {
                let _ = self.ask(place, Order::Leave);
            }
        }
    }

    /// Moves a ring to another reactor: it is stopped on the one, which answers all that it took, and started on the other. Where that takes
    /// long it stays.
    pub(crate) fn shift(&mut self, queue: u16, to: usize) {
        let Some(Running { place: Some(from), ring }) = self.running.get(&queue).cloned() else { return };
        if from == to || !self.crew.is_on_duty(to) {
            return;
        }
        let Ok(base) = self.ask(from, |reply| Order::Yield(queue, reply)) else {
            self.again = Some(Instant::now() + AGAIN);
            return;
        };
        let ring = Ring { base, ..ring };
        // Where the other cannot have it (no descriptor is left), it stays.
        let place = [to, from].into_iter().find(|place| self.start_on(*place, queue, &ring).is_ok());
        self.running.insert(queue, Running { place, ring });
    }

    fn start_on(&mut self, place: usize, queue: u16, ring: &Ring) -> Result<(), Errno> {
        let flights = self.flights.as_ref().ok_or(Errno::INVAL)?;
        let config = RingConfig {
            size: ring.size,
            packed: ring.packed,
            event_idx: self.setting.features & blk::F_EVENT_IDX != 0,
            descriptors: ring.descriptors,
            driver: ring.driver,
            device: ring.device,
            base: ring.base,
            log_address: ring.log_address,
            inflight: Some(flights.of_queue(ring.packed, queue)?),
        };
        let events = self.events.get(usize::from(queue)).cloned().ok_or(Errno::INVAL)?;
        self.sit(place);
        let again = self.ask(place, |reply| Order::Start(queue, Box::new(config), events, reply))?;
        self.replayed += u64::from(again);
        Ok(())
    }

    fn sit(&mut self, place: usize) {
        if std::mem::replace(&mut self.seated[place], true) {
            return;
        }
        let plan = (Arc::clone(&self.ssd), Arc::clone(&self.device), self.setting.clone());
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        if *frozen {
            drop(frozen);
            // The process ends soon; what the client asked for is done by the next one.
            loop {
                std::thread::park();
            }
        }
        self.send(place, Order::Sit(Box::new(plan)));
    }

    fn send(&self, place: usize, order: Order) {
        self.crew.address(place).send(Message::Vhost(self.ssd.id, order));
    }

    fn ask(&self, place: usize, order: impl FnOnce(std::sync::mpsc::SyncSender<Done>) -> Order) -> Done {
        let (reply, answer) = sync_channel(1);
        self.send(place, order(reply));
        answer.recv().unwrap_or(Err(Errno::NODEV))
    }

    /// Changes what all rings share.
    fn set(&mut self, change: impl FnOnce(&mut Setting)) -> Result<(), Errno> {
        change(&mut self.setting);
        for place in (0..self.crew.len()).filter(|place| self.seated[*place]) {
            self.ask(place, |reply| Order::Adopt(Box::new(self.setting.clone()), reply))?;
        }
        Ok(())
    }

    fn set_event(&mut self, queue: u16, change: impl FnOnce(&mut Events)) -> Result<(), Errno> {
        let events = self.events.get_mut(usize::from(queue)).ok_or(Errno::INVAL)?;
        change(events);
        let events = events.clone();
        if let Some(place) = self.running.get(&queue).and_then(|running| running.place) {
            self.ask(place, |reply| Order::Events(queue, events, reply))?;
        }
        Ok(())
    }

    /// Arms or disarms the log of written pages as the features say. No ring runs: all I/O of the next is begun under it.
    fn set_with_log(&mut self, features: u64, change: impl FnOnce(&mut Setting)) -> Result<(), Errno> {
        let log = self.log.clone().filter(|_| features & F_LOG_ALL != 0);
        self.set(|setting| {
            setting.map = Arc::new(setting.map.with_log(log));
            change(setting);
        })
    }

    fn with_region(map: &MemoryMap, region: Region) -> Result<MemoryMap, Errno> {
        let Region { guest_address, size, fd, offset } = region;
        let mapping = Mapping::new(fd, offset, size, Access::BOTH).map_err(|error| mapping_errno(&error))?;
        map.with(Iova(guest_address), size, Access::BOTH, Some((mapping, 0)))
            .map_err(|error| map_errno(&error))
    }
}

impl Blk for Disk {
    fn info(&self) -> &BlkInfo {
        &self.info
    }

    fn config(&self) -> Vec<u8> {
        self.device.config(self.setting.writeback).to_vec()
    }

    fn set_writeback(&mut self, on: bool) -> Result<(), Errno> {
        self.set(|setting| setting.writeback = on)
    }

    fn set_features(&mut self, features: u64) -> Result<(), Errno> {
        self.set_with_log(features, |setting| setting.features = features)
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), Errno> {
        let map = regions
            .into_iter()
            .try_fold(self.setting.map.cleared(), |map, region| Self::with_region(&map, region))?;
        self.set(|setting| setting.map = Arc::new(map))
    }

    fn add_memory(&mut self, region: Region) -> Result<(), Errno> {
        let map = Self::with_region(&self.setting.map, region)?;
        self.set(|setting| setting.map = Arc::new(map))
    }

    fn remove_memory(&mut self, guest_address: u64, size: u64) -> Result<(), Errno> {
        let map = self.setting.map.without(Iova(guest_address), size).map_err(|error| map_errno(&error))?;
        self.set(|setting| setting.map = Arc::new(map))
    }

    fn set_kick(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        // Looked at as an eventfd, and then watched and read.
        let fd = fd.map(|fd| {
            let shared = fd.try_clone().map_err(|_| Errno::MFILE)?;
            Eventfd::checked(fd).map(|_| Arc::new(shared)).ok_or(Errno::INVAL)
        });
        let kick = fd.transpose()?;
        self.set_event(queue, |events| events.kick = kick)
    }

    fn set_call(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let call = eventfd(fd)?;
        self.set_event(queue, |events| events.call = call)
    }

    fn set_err(&mut self, queue: u16, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let err = eventfd(fd)?;
        self.set_event(queue, |events| events.err = err)
    }

    fn new_inflight(&mut self, num_queues: u16, queue_size: u16) -> Result<NewInflight, Errno> {
        let size = region_bytes(num_queues, queue_size) as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(format!("godwit-{}-inflight", self.ssd.name), flags)?;
        rustix::fs::ftruncate(&fd, size)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(NewInflight { fd: Arc::new(fd), size })
    }

    fn set_inflight(&mut self, inflight: Inflight) -> Result<(), Errno> {
        self.flights = Some(Flights::new(&inflight)?);
        Ok(())
    }

    fn clear_inflight(&mut self, queue: u16) -> Result<(), Errno> {
        let flights = self.flights.as_ref().filter(|flights| flights.own).ok_or(Errno::INVAL)?;
        // The version stands at one place in both kinds.
        flights.of_queue(false, queue)?.clear().map_err(|_| Errno::IO)
    }

    fn set_log(&mut self, log: Log) -> Result<(), Errno> {
        let Log { fd, offset, size } = log;
        if size > LOG_BYTES_MAX {
            return Err(Errno::FBIG);
        }
        let mapping = Mapping::new(fd, offset, size, Access::BOTH).map_err(|error| mapping_errno(&error))?;
        self.log = Some(Arc::new(WriteLog::flat(mapping).map_err(|_| Errno::INVAL)?));
        self.set_with_log(self.setting.features, |_| {})
    }

    fn set_log_event(&mut self, fd: OwnedFd) -> Result<(), Errno> {
        let log_event = eventfd(Some(fd))?;
        self.set(|setting| setting.log_event = log_event)
    }

    fn start(&mut self, queue: u16, ring: Ring) -> Result<(), Errno> {
        // Disks spread by their numbers, the rings of one by theirs.
        let place = self.crew.deal(self.ssd.id.0.wrapping_add(usize::from(queue)));
        self.start_on(place, queue, &ring)?;
        self.running.insert(queue, Running { place: Some(place), ring });
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> Result<u32, Errno> {
        let running = self.running.get(&queue).ok_or(Errno::INVAL)?;
        let base = match running.place {
            Some(place) => self.ask(place, |reply| Order::Stop(queue, reply))?,
            None => running.ring.base,
        };
        self.running.remove(&queue);
        Ok(base)
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.set_with_log(0, |setting| (setting.features, setting.writeback) = (0, true))
    }
}

/// A file as memory at 0.
fn one_mapping(fd: OwnedFd, offset: u64, size: u64) -> Result<Arc<MemoryMap>, Errno> {
    let mapping = Mapping::new(fd, offset, size, Access::BOTH).map_err(|error| mapping_errno(&error))?;
    let map = MemoryMap::empty().with(Iova(0), size, Access::BOTH, Some((mapping, 0)));
    map.map(Arc::new).map_err(|error| map_errno(&error))
}

fn eventfd(fd: Option<OwnedFd>) -> Result<Option<Arc<Eventfd>>, Errno> {
    fd.map(|fd| Eventfd::checked(fd).map(Arc::new).ok_or(Errno::INVAL)).transpose()
}

/// NVMe pads with spaces, virtio with zeros (virtio 1.2, 5.2.6.1).
fn padded_with_zeros(mut serial: [u8; blk::ID_BYTES]) -> [u8; blk::ID_BYTES] {
    for byte in serial.iter_mut().rev().take_while(|byte| **byte == b' ') {
        *byte = 0;
    }
    serial
}
