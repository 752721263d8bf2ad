//! Pools: drives that many ssds share, each served by one thread that owns the map on the drive.
//!
//! ```text
//!  reactor: volume::Door --own, release--> mailbox --> pool-N: volume::Pool --> records on the drive
//!               ^ entries of the map, announcements <------+  copies, wipes --> extents on the drive
//!  keeper: Pool(request) ------------------------> mailbox --+
//! ```
//! A pool is opened once for all its ssds, before they are. What a dead engine had at the drive has ended by then.

mod along;
mod disk;
mod format;
mod requests;
mod thread;
mod wake;

pub(crate) use wake::here;

use crate::drive::Each;
use crate::keeper::Keeper;
use crate::mailbox::Mailbox;
use crate::migration::house::when_free;
use crate::passage::Store;
use crate::run::{is_busy, patiently};
use anyhow::{Context, bail};
use api::config;
use api::control::{PoolRequest, PoolStatus, Response};
use backend::uring::Rings;
use block::{Backend, Limits};
use disk::PoolDisk;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thread::{Order, Worker};
use volume::door::{Allocator, Door, Gate, Ticket};
use volume::{Entry, HostId, OpenOptions, Pool, VolumeId};

/// How long all pools together may take to say how they are: less than who asks waits for it.
const LIST_PATIENCE: Duration = Duration::from_secs(2);

/// All pools of a configuration.
pub(crate) struct Pools {
    keeper: Option<Arc<Keeper>>,
    /// By name.
    all: Mutex<BTreeMap<String, Result<Arc<Open>, Closed>>>,
}

/// A pool that cannot be had.
#[derive(Clone)]
struct Closed {
    why: String,
    /// Its drive was in use.
    busy: bool,
    config: config::Pool,
}

/// A pool that is open.
pub(crate) struct Open {
    name: String,
    path: PathBuf,
    drive: backend::Drive,
    orders: Orders,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The mailbox of a pool's thread.
#[derive(Clone)]
pub(crate) struct Orders(Arc<Mailbox<Order>>);

/// What an ssd has of a pool.
pub(crate) struct Volume {
    open: Arc<Open>,
    id: VolumeId,
    gate: Arc<Gate>,
    /// All but the capacity.
    limits: Limits,
    thin: bool,
}

/// What an ssd of the configuration wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    name: String,
    size_bytes: u64,
    thin: bool,
    purpose: Purpose,
}

/// What a volume is opened for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Purpose {
    /// To be served: its owner is here.
    #[default]
    Serve,
    /// For blocks that come from another host, by whoever writes them down, and for nobody else.
    Land,
    /// To answer its guest's hypervisor before it is there: its drive comes later, and will be so.
    Await(Limits),
}

impl Pools {
    /// Opens all that the configuration names. One that cannot be had is said so, to the ssds that want it. `kept` is a descriptor of
    /// the pool's drive, if somebody kept one over the last engine's end.
    pub(crate) fn open(
        pools: &[config::Pool],
        mut kept: impl FnMut(&str) -> Option<OwnedFd>,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        let this = Self { keeper, all: Mutex::default() };
        for pool in pools {
            this.add(pool, kept(&pool.name));
        }
        this
    }

    /// Opens one more. One that is open already stays as it is.
    pub(crate) fn add(&self, pool: &config::Pool, kept: Option<OwnedFd>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(all.get(&pool.name), Some(Ok(_))) {
            return;
        }
        let opened = Open::new(pool, kept, self.keeper.clone(), all.len()).map_err(|error| {
            let why = format!("pool \"{}\": {error:#}", pool.name);
            match &self.keeper {
                Some(keeper) => keeper.fault(None, why.clone()),
                None => tracing::error!(why, "a pool cannot be had"),
            }
            Closed { why, busy: is_busy(&error), config: pool.clone() }
        });
        all.insert(pool.name.clone(), opened.map(Arc::new));
    }

    /// Why a pool cannot be had now, and may be in a moment: its drive was in use when the engine began. What a dead engine had there is
    /// let go of when this one serves.
    pub(crate) fn in_use(&self, pool: &str) -> Option<String> {
        match self.all.lock().unwrap_or_else(PoisonError::into_inner).get(pool) {
            Some(Err(closed)) if closed.busy => Some(closed.why.clone()),
            _ => None,
        }
    }

    /// Opens those that were in use, as soon as they are not; says which are open now.
    pub(crate) fn look_again(&self) -> Vec<String> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |closed: Closed| closed.busy.then_some(closed.config);
        let busy: Vec<_> = all.values().filter_map(|open| busy(open.as_ref().err()?.clone())).collect();
        let count = all.len();
        drop(all);
        let mut names = Vec::new();
        for pool in busy {
            match when_free(|| Open::new(&pool, None, self.keeper.clone(), count)) {
                Ok(open) => {
                    let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.insert(pool.name.clone(), Ok(Arc::new(open)));
                    names.push(pool.name);
                }
                Err(error) => {
                    tracing::warn!(pool = pool.name, error = format!("{error:#}"), "still in use");
                }
            }
        }
        names
    }

    /// It is open, or known not to be had.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// As [`Pools::add`], and says why it cannot be had.
    ///
    /// # Errors
    /// It cannot be opened. Nothing is known of it then.
    pub(crate) fn add_or_refuse(&self, pool: &config::Pool) -> anyhow::Result<()> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = Open::new(pool, None, self.keeper.clone(), all.len());
        let opened = opened.with_context(|| format!("pool \"{}\"", pool.name))?;
        all.insert(pool.name.clone(), Ok(Arc::new(opened)));
        Ok(())
    }

    /// Closes one that nobody uses.
    pub(crate) fn give_up(&self, name: &str) {
        let open = self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(Ok(open)) = open {
            open.rest();
        }
    }

    /// Closes all but these, and gives them up: any host may open them. Their ssds have left before.
    pub(crate) fn keep_only(&self, names: &[String]) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let going: Vec<String> = all.keys().filter(|name| !names.contains(name)).cloned().collect();
        let going: Vec<_> = going.into_iter().filter_map(|name| all.remove_entry(&name)).collect();
        drop(all);
        for (name, open) in going {
            let Ok(open) = open else { continue };
            if let Ok(Response::Error(why)) = open.ask(PoolRequest::Export { pool: name.clone() }) {
                tracing::warn!(pool = name, why, "closed, but not given up");
            }
            open.rest();
        }
    }

    /// The volume of an ssd; made if the pool does not have it.
    ///
    /// # Errors
    /// The pool cannot be had, or has no space for it.
    pub(crate) fn volume(
        &self,
        ssd: &config::Ssd,
        pool: &str,
        thin: bool,
        purpose: Purpose,
    ) -> anyhow::Result<Volume> {
        let open = self.get(pool)?;
        let wish = wish(ssd, thin, purpose)?;
        let (gate, thin) = open.order(|reply| Order::Volume(wish, reply))?;
        let mut limits = open.drive.limits();
        limits.discard |= thin;
        Ok(Volume { id: gate.volume(), open, gate, limits, thin })
    }

    /// Makes the volume of an ssd that is to come.
    ///
    /// # Errors
    /// The pool cannot be had, or has no space for it.
    pub(crate) fn reserve(&self, ssd: &config::Ssd, pool: &str, thin: bool) -> anyhow::Result<()> {
        let wish = wish(ssd, thin, Purpose::Land)?;
        self.get(pool)?.order(|reply| Order::Reserve(wish, reply))
    }

    /// Gives back the space of an ssd that is another host's now, or did not come; its volume stays, and says so.
    ///
    /// # Errors
    /// The pool cannot be had, or the ssd's owner is here.
    pub(crate) fn vacate(&self, ssd: &config::Ssd, pool: &str) -> anyhow::Result<()> {
        self.get(pool)?.order(|reply| Order::Vacate(ssd.volume().to_owned(), reply))
    }

    /// Where the journal of an ssd's migrations lies. `None`: the pool cannot be had, nor can the ssd.
    pub(crate) fn passage(&self, ssd: &config::Ssd, pool: &str) -> Option<Arc<dyn Store>> {
        let open = Arc::downgrade(&self.get(pool).ok()?);
        Some(Arc::new(Journal { open, pool: pool.to_owned(), volume: ssd.volume().to_owned() }))
    }

    fn get(&self, pool: &str) -> anyhow::Result<Arc<Open>> {
        match self.all.lock().unwrap_or_else(PoisonError::into_inner).get(pool) {
            Some(Ok(open)) => Ok(Arc::clone(open)),
            Some(Err(closed)) => bail!("{}", closed.why),
            None => {
                bail!("there is no pool \"{pool}\" in the configuration; `godwit volume list` shows them")
            }
        }
    }

    /// Answers what somebody asked the keeper. May wait for a pool's thread.
    pub(crate) fn ask(&self, request: PoolRequest) -> Response {
        let result = match requests::pool_of(&request) {
            None if matches!(request, PoolRequest::List) => Ok(Response::Pool(self.list())),
            None => format::create(&request).map(Response::Done),
            Some(pool) => match (&request, self.closed(pool)) {
                (PoolRequest::Check { repair, .. }, Some(closed)) => self.check_closed(&closed, *repair),
                _ => self.get(pool).and_then(|open| open.ask(request.clone())),
            },
        };
        result.unwrap_or_else(|error| Response::Error(format!("{error:#}")))
    }

    /// A pool of the configuration that cannot be had, or one at a path that is nobody's here.
    fn closed(&self, pool: &str) -> Option<Closed> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(pool) {
            Some(Err(closed)) => Some(closed.clone()),
            None if pool.starts_with('/') => {
                let config =
                    config::Pool { name: pool.to_owned(), path: pool.into(), size_bytes: None, direct: true };
                Some(Closed { why: String::new(), busy: false, config })
            }
            _ => None,
        }
    }

    /// Looks at a pool that is not open, and mends it if that is wanted and safe; one of the configuration is opened then.
    fn check_closed(&self, closed: &Closed, repair: bool) -> anyhow::Result<Response> {
        let (sound, text) = requests::check_path(&closed.config.path, repair)?;
        if !sound {
            return Ok(Response::Error(text));
        }
        if repair && !closed.why.is_empty() {
            self.add(&closed.config, None);
            self.get(&closed.config.name)?;
        }
        Ok(Response::Done(text))
    }

    /// Those that do not answer soon are in it, and say so.
    fn list(&self) -> Vec<PoolStatus> {
        let end = Instant::now() + LIST_PATIENCE;
        let all: Vec<_> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().map(|(name, open)| (name.clone(), open.clone())).collect()
        };
        let status = |(name, open): (String, Result<Arc<Open>, Closed>)| {
            let failed = |state: String| PoolStatus { name: name.clone(), state, ..PoolStatus::default() };
            match open.map(|open| open.ask_until(PoolRequest::List, Some(end))) {
                Ok(Ok(Response::Pool(mut one))) => one.pop().unwrap_or_default(),
                Ok(Ok(_)) => failed("its thread says something else".to_owned()),
                Ok(Err(error)) => failed(format!("{error:#}")),
                Err(closed) => failed(closed.why),
            }
        };
        all.into_iter().map(status).collect()
    }

    /// From now on nothing of any pool changes. What is parked stays so: it belongs to a successor.
    pub(crate) fn rest(&self) {
        let all = std::mem::take(&mut *self.all.lock().unwrap_or_else(PoisonError::into_inner));
        all.into_values().flatten().for_each(|open| open.rest());
    }

    /// Before a stop: what waits for space fails instead, so that everybody can end.
    pub(crate) fn refuse_parked(&self) {
        for open in self.all.lock().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            open.orders.0.send(Order::RefuseParked);
        }
    }
}

impl Open {
    fn new(
        pool: &config::Pool,
        kept: Option<OwnedFd>,
        keeper: Option<Arc<Keeper>>,
        number: usize,
    ) -> anyhow::Result<Self> {
        // Not even a format that was cut short has left anything there.
        let is_blank = match std::fs::metadata(&pool.path) {
            Ok(there) => there.is_file() && there.blocks() == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        // Taken over or not: the requests of an engine that a keeper before ours left may hold the lock for a moment.
        let open = |kept| open_drive(&pool.path, pool.size_bytes, pool.direct, kept);
        let drive = patiently(keeper.is_some() && kept.is_some(), kept, open)?;
        let fd = drive.descriptor()?.context("a drive without a descriptor")?;
        let disk = Arc::new(PoolDisk::new(fd, drive.limits().capacity_bytes));
        if is_blank && pool.size_bytes.is_some() {
            format::format(&disk, format::Wish { zeroed: true, ..format::Wish::new(&pool.name) })?;
        }
        let opened = Pool::open(Box::new(Arc::clone(&disk)), &options()?);
        let opened = opened.with_context(|| {
            let path = pool.path.display();
            format!("{path}; `godwit volume format` makes a drive a pool")
        })?;
        let orders = Orders(Arc::new(Mailbox::new()?));
        let worker = Worker::new(pool, opened, disk, Arc::clone(&orders.0), keeper);
        let thread =
            std::thread::Builder::new().name(format!("pool-{number}")).spawn(move || worker.run())?;
        let (name, path, thread) = (pool.name.clone(), pool.path.clone(), Mutex::new(Some(thread)));
        Ok(Self { name, path, drive, orders, thread })
    }

    /// Ends its thread.
    fn rest(&self) {
        self.orders.0.send(Order::Rest);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }

    /// Has the pool's thread do something, and waits for it.
    fn order<T>(&self, order: impl FnOnce(SyncSender<anyhow::Result<T>>) -> Order) -> anyhow::Result<T> {
        let (reply, answer) = sync_channel(1);
        self.orders.0.send(order(reply));
        let done = answer.recv().context("its pool's thread has ended")?;
        done.with_context(|| format!("pool \"{}\"", self.name))
    }

    fn ask(&self, request: PoolRequest) -> anyhow::Result<Response> {
        self.ask_until(request, None)
    }

    fn ask_until(&self, request: PoolRequest, end: Option<Instant>) -> anyhow::Result<Response> {
        let (reply, answer): (SyncSender<Response>, _) = sync_channel(1);
        self.orders.0.send(Order::Request(request, reply));
        let resting = || format!("pool \"{}\" is resting", self.name);
        let mut response = match end {
            None => answer.recv().with_context(resting)?,
            Some(end) => match answer.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(response) => response,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "pool \"{}\" does not answer now: its thread is at work, or its drive hangs",
                        self.name
                    )
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{}", resting()),
            },
        };
        if let Response::Pool(pools) = &mut response {
            pools.iter_mut().for_each(|pool| pool.path.clone_from(&self.path));
        }
        Ok(response)
    }
}

impl Volume {
    pub(crate) fn limits(&self) -> Limits {
        Limits { capacity_bytes: self.gate.size_bytes(), ..self.limits }
    }

    /// Whether it could grow to this size now.
    pub(crate) fn can_grow(&self, size_bytes: u64) -> anyhow::Result<()> {
        self.open.order(|reply| Order::CanGrow(self.id, size_bytes, reply))
    }

    /// Grows it, durably. Its doors know when this returns.
    pub(crate) fn grow(&self, size_bytes: u64) -> anyhow::Result<()> {
        self.open.order(|reply| Order::Grow(self.id, size_bytes, reply))
    }

    pub(crate) fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.open.drive.descriptor()
    }

    /// Calls `each` with what lies in these bytes of each run that has extents, until it has enough.
    pub(crate) fn allocated_in(&self, bytes: Range<u64>, each: Each<'_>) {
        let map = self.gate.map();
        let end_bytes = bytes.end.min(map.size_bytes());
        let start_of = |extent: u32| (u64::from(extent) * map.extent_bytes()).clamp(bytes.start, end_bytes);
        let Some((first, _)) = map.locate(bytes.start).filter(|_| !bytes.is_empty()) else { return };
        let behind = u32::try_from(end_bytes.div_ceil(map.extent_bytes())).unwrap_or(map.extents());
        let mut extents = (first..behind).peekable();
        while let Some(first) = extents.find(|extent| map.entry(*extent) != Entry::Unmapped) {
            let mut end = first + 1;
            while extents.next_if(|extent| map.entry(*extent) != Entry::Unmapped).is_some() {
                end += 1;
            }
            if each(start_of(first), start_of(end)).is_break() {
                return;
            }
        }
    }

    /// A door for this thread, which must be a reactor's.
    pub(crate) fn door(&self, rings: &Rings) -> io::Result<Box<dyn Backend>> {
        let lower = self.open.drive.door(rings)?;
        let allocator = Arc::new(self.open.orders.clone());
        Ok(Box::new(Door::new(lower, &self.gate, allocator, self.thin, wake::waker())))
    }
}

/// The journal of an ssd's migrations, kept with its volume.
struct Journal {
    open: Weak<Open>,
    pool: String,
    volume: String,
}

impl Journal {
    fn open(&self) -> anyhow::Result<Arc<Open>> {
        self.open.upgrade().with_context(|| format!("pool \"{}\" is closed", self.pool))
    }
}

impl Store for Journal {
    fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        self.open()?.order(|reply| Order::Passage(self.volume.clone(), reply))
    }

    fn replace(&self, record: &[u8]) -> anyhow::Result<()> {
        self.open()?.order(|reply| Order::SetPassage(self.volume.clone(), record.to_vec(), reply))
    }

    fn place(&self) -> String {
        format!("volume \"{}\" of pool \"{}\"", self.volume, self.pool)
    }
}

fn wish(ssd: &config::Ssd, thin: bool, purpose: Purpose) -> anyhow::Result<Wish> {
    let size_bytes = ssd.size_bytes.context("no size")?;
    Ok(Wish { name: ssd.volume().to_owned(), size_bytes, thin, purpose })
}

impl Allocator for Orders {
    fn own(&self, volume: VolumeId, extent: u32) {
        self.0.send(Order::Own(volume, extent));
    }

    fn release(&self, volume: VolumeId, extents: (u32, u32), ticket: Arc<Ticket>) {
        self.0.send(Order::Release(volume, extents, ticket));
    }
}

fn open_drive(
    path: &Path,
    size_bytes: Option<u64>,
    direct: bool,
    kept: Option<OwnedFd>,
) -> anyhow::Result<backend::Drive> {
    let mut uring = backend::uring::Config::new(path);
    uring.size_bytes = size_bytes.filter(|_| !is_device(path));
    if !direct {
        uring.direct = backend::uring::Direct::Never;
    }
    Ok(backend::Drive::take_over(&backend::Config::Uring(uring), kept)?)
}

fn options() -> anyhow::Result<OpenOptions> {
    Ok(OpenOptions { host: host()?, nonce: u64::from_le_bytes(random()?), take_over: false })
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device())
}

/// Who this host is: its machine id.
fn host() -> anyhow::Result<HostId> {
    let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = u128::from_str_radix(text.trim(), 16).ok().filter(|id| *id != 0);
    if let Some(id) = id {
        return Ok(HostId(id.to_be_bytes()));
    }
    // A container without one: its name must do.
    let name = rustix::system::uname().nodename().to_bytes().to_vec();
    let mut id = [0; 16];
    for (at, byte) in name.iter().enumerate() {
        id[at % 16] ^= byte;
    }
    id[15] |= 1;
    Ok(HostId(id))
}

pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_does_not_answer_is_listed_as_such_and_keeps_nobody_waiting_for_long() {
        let open = Open {
            name: "p".to_owned(),
            path: PathBuf::from("/drive"),
            drive: backend::Drive::open(&backend::Config::Ram { size_bytes: 1 << 20 }).unwrap(),
            orders: Orders(Arc::new(Mailbox::new().unwrap())),
            // Its drive hangs, and with it its thread.
            thread: Mutex::new(None),
        };
        let all = BTreeMap::from([("p".to_owned(), Ok(Arc::new(open)))]);
        let pools = Pools { keeper: None, all: Mutex::new(all) };
        let Response::Pool(listed) = pools.ask(PoolRequest::List) else { panic!("no list") };
        assert_eq!(listed.len(), 1);
        assert!(listed[0].name == "p" && listed[0].state.contains("does not answer"), "{listed:?}");
    }
}
