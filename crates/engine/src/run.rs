//! The engine process: told by the keeper what there is, it serves it, until it is killed, replaced or stopped.
//!
//! One thread reads the control link. Whatever may wait (for rings to be idle, drives to open, guests' memory to be mapped) is done
//! on others, because what they wait for may come over that link.

use crate::blame;
use crate::change::Readied;
use crate::clock::{Calibration, Clock};
use crate::duty::Duty;
use crate::keeper::{Keeper, PowerCycle};
use crate::management::{self, Ask, Desk, Trackers};
use crate::meter;
use crate::migration::Migrations;
use crate::passage::Absent;
use crate::passenger::Passengers;
use crate::pool::{Pools, Purpose};
use crate::records::Records;
use crate::serve::{Kept, open_ssd};
use crate::served::{Planned, Served, door_of};
use crate::slot::{Plan, Plug};
use crate::ssd::{Power, Ssd};
use crate::stats::Stats;
use crate::vhost::{self, VhostPlan};
use anyhow::{Context, bail};
use api::config::{Backend, Config};
use api::control::{EngineRequest, Response};
use backend::uring::fence::OldRing;
use link::control::{
    Deposit, Door, Format, Hello, Link, Ready, Received, Refused, Role, Saved, Session, ToEngine, ToKeeper,
    Welcome,
};
use link::frame::Wait;
use memory::SharedRegion;
use nvme::profile::Role as Kind;
use nvme::queue::{self, Left};
use state::region::ControllerRegion;
use state::session::VfioUserV1;
use state::ssd::SsdV1;
use state::vhost_session::VhostUserV1;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the drive may take over what a dead engine left at it. Beyond, its ssds could only corrupt themselves.
const FENCE_PATIENCE: Duration = Duration::from_secs(120);

/// Runs an engine process over the keeper's link. Returns when it is told to stop or has handed over; when the keeper is gone
/// the process exits at once and as it is.
///
/// # Errors
/// What the keeper was told, too: the engine cannot serve.
pub fn run(link: OwnedFd) -> anyhow::Result<()> {
    run_with(link, |_| ())
}

/// As [`run`]; `beside` is called once there is something to be served.
///
/// # Errors
/// As [`run`].
#[doc(hidden)]
pub fn run_with(link: OwnedFd, beside: impl FnOnce(Passengers) + 'static) -> anyhow::Result<()> {
    blame::abort_on_panic();
    let calibration = Calibration::begin();
    if let Err(error) = memory::heir::appoint() {
        tracing::warn!(%error, "no heir: with large guests, the end of this engine will be told late");
    }
    let keeper = Arc::new(Keeper::new(Link::new(link)));
    let (welcome, page) = match receive(&keeper)? {
        (ToEngine::Welcome(welcome), fds) => (welcome, fds.into_iter().next()),
        _ => bail!("the keeper does not begin with a welcome"),
    };
    keeper.speaks(welcome.version);
    let newest = |name: &str, newest| Format { name: name.to_owned(), newest };
    keeper.tell(&ToKeeper::Hello(Hello {
        version: link::VERSION,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        formats: vec![
            newest("controller-region", state::region::LAYOUT_VERSION),
            newest("migration-journal", state::migration::VERSION),
            newest("ssd-record", state::ssd::VERSION),
            newest("vfio-user-session", state::session::VERSION),
            newest("vhost-user-session", state::vhost_session::VERSION),
        ],
    }));
    if let Some(page) = page {
        blame::open(SharedRegion::from_fd(page).context("the page of blame")?);
    }
    let told = Told::default();
    let beside: Box<dyn FnOnce(Passengers)> = Box::new(beside);
    let (keeper_too, beside) = (Arc::clone(&keeper), Some(beside));
    let result = Process { keeper: keeper_too, calibration, welcome, told, house: None, beside }.run();
    if let Err(error) = &result {
        keeper.tell(&ToKeeper::Refused(Refused { reason: format!("{error:#}"), ssd: None }));
    }
    result
}

/// The next message. Does not return when the keeper is gone.
fn receive(keeper: &Keeper) -> anyhow::Result<(ToEngine, Vec<OwnedFd>)> {
    match keeper.link().receive(Wait::Block)? {
        Received::Message(message, fds) => Ok((message, fds)),
        Received::Later => bail!("the control link does not wait"),
        Received::Closed => {
            tracing::warn!("the keeper is gone; so am I");
            std::process::exit(0);
        }
    }
}

/// What the keeper said so far.
#[derive(Default)]
struct Told {
    saved: BTreeMap<usize, (Saved, Vec<OwnedFd>)>,
    sessions: Vec<(Session, OwnedFd)>,
    deposits: Vec<Deposit>,
    /// Descriptor numbers of the keeper's.
    rings: Vec<u32>,
}

struct Process {
    keeper: Arc<Keeper>,
    calibration: Calibration,
    welcome: Welcome,
    told: Told,
    house: Option<Arc<House>>,
    beside: Option<Box<dyn FnOnce(Passengers)>>,
}

impl Process {
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            match receive(&self.keeper)? {
                (ToEngine::Saved(saved), fds) => {
                    _ = self.told.saved.insert(index(saved.ssd), (saved, fds));
                }
                (ToEngine::Rings { numbers }, _) => self.told.rings.extend(numbers),
                (ToEngine::Session(session), fds) => {
                    self.told.sessions.extend(fds.into_iter().next().map(|link| (session, link)));
                }
                (ToEngine::Deposit(deposit), _) => self.told.deposits.push(deposit),
                (ToEngine::Check, _) => {
                    self.check()?;
                    self.told = Told::default();
                    // Guests need not wait for this when the other engine has paused.
                    self.house(&self.config()?)?;
                    self.keeper.tell(&ToKeeper::Ready(Ready::default()));
                }
                (ToEngine::Start, _) => return self.serve(),
                (ToEngine::Stop | ToEngine::Pause, _) => return Ok(()),
                (ToEngine::RingKept { number, kept }, _) => self.keeper.ring_kept(number, kept),
                (ToEngine::Welcome(_), _) => bail!("a second welcome"),
                (ToEngine::Prepare(_) | ToEngine::Commit { .. } | ToEngine::Forget { .. }, _) => {
                    bail!("a change before there is anything to change")
                }
                (ToEngine::Pool { id, .. }, _) => self.keeper.pool_answered(id, &not_serving()),
            }
        }
    }

    fn config(&self) -> anyhow::Result<Config> {
        let config = Config::parse(Path::new(&self.welcome.config_path), &self.welcome.config)?;
        let same = config.ssds.len() == self.welcome.ssds.len()
            && config.ssds.iter().zip(&self.welcome.ssds).all(|(ssd, slot)| ssd.name == slot.name);
        if !same {
            bail!("the keeper's ssds are not those of the configuration");
        }
        crate::identities::check_distinct(&config)?;
        Ok(config)
    }

    /// The ssd of that number.
    fn config_of<'a>(&self, config: &'a Config, ssd: usize) -> Option<&'a api::config::Ssd> {
        numbered(&self.welcome.ssds)
            .zip(&config.ssds)
            .find(|((number, _), _)| *number == ssd)
            .map(|(_, ssd)| ssd)
    }

    /// Reads all that is saved, and changes nothing.
    fn check(&mut self) -> anyhow::Result<()> {
        let config = self.config()?;
        let saved = std::mem::take(&mut self.told.saved);
        let door = |ssd: usize| self.config_of(&config, ssd).map(door_of);
        let mut drives = BTreeMap::new();
        for (ssd, (saved, fds)) in saved {
            let name = self.name(ssd);
            let check = || {
                // A disk has no controller and no record.
                if door(ssd) == Some(Door::VHOST_USER) {
                    drives.insert(ssd, Parts::new(&saved, fds).0.remove(&Role::DRIVE));
                    return anyhow::Ok(());
                }
                let region = Parts::new(&saved, fds).region()?;
                queue::inspect_header(&region)?;
                saved.record.as_deref().map(SsdV1::from_bytes).transpose()?;
                anyhow::Ok(())
            };
            check().with_context(|| format!("ssd \"{name}\""))?;
        }
        for deposit in &self.told.deposits {
            let name = self.name(index(deposit.ssd));
            let context = || format!("ssd \"{name}\"");
            match deposit.door {
                other if Some(other) != door(index(deposit.ssd)) => {
                    bail!("ssd \"{name}\" has a client of a kind that this engine does not serve")
                }
                Door::VHOST_USER => {
                    let session = VhostUserV1::from_bytes(&deposit.bytes).with_context(context)?;
                    let at = index(deposit.ssd);
                    let drive = drives.remove(&at).flatten();
                    if let Some((config, drive)) = self.config_of(&config, at).zip(drive) {
                        vhost::check_size(config, drive, &session).with_context(context)?;
                    }
                }
                _ => _ = VfioUserV1::from_bytes(&deposit.bytes).with_context(context)?,
            }
        }
        Ok(())
    }

    fn name(&self, ssd: usize) -> &str {
        numbered(&self.welcome.ssds).find(|(number, _)| *number == ssd).map_or("?", |(_, slot)| &slot.name)
    }

    /// The house: reactors that sleep, with their rings made, and nobody to serve yet.
    fn house(&mut self, config: &Config) -> anyhow::Result<Arc<House>> {
        if let Some(house) = &self.house {
            return Ok(Arc::clone(house));
        }
        let stats = self.welcome.stats.as_ref().map(PathBuf::from);
        let clock = Clock::calibrate(self.calibration);
        let house = Arc::new(House::start(config, stats, clock, Arc::clone(&self.keeper))?);
        let orders = house.management.1.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(orders) = orders {
            let house = Arc::clone(&house);
            let serve = move || management::serve(&house, &orders);
            std::thread::Builder::new().name("management".to_owned()).spawn(serve)?;
        }
        if let Some(beside) = self.beside.take() {
            beside(Passengers::of(Arc::clone(&house)));
        }
        Ok(Arc::clone(self.house.insert(house)))
    }

    fn serve(mut self) -> anyhow::Result<()> {
        let config = self.config()?;
        let house = self.house(&config)?;
        let told = std::mem::take(&mut self.told);
        let start = {
            let (house, welcome) = (Arc::clone(&house), self.welcome.clone());
            move || {
                let keeper = Arc::clone(&house.keeper);
                match house.open_all(&config, &welcome, told) {
                    Ok(ready) => {
                        keeper.tell(&ToKeeper::Ready(ready));
                        house.open_migrations(&config);
                    }
                    Err(error) => {
                        let reason = format!("{error:#}");
                        tracing::error!(reason, "the engine cannot serve");
                        keeper.tell(&ToKeeper::Refused(Refused { reason, ssd: None }));
                        std::process::exit(1);
                    }
                }
            }
        };
        let mut starter = Some(std::thread::Builder::new().name("starter".to_owned()).spawn(start)?);
        let balanced = Arc::clone(&house);
        std::thread::Builder::new().name("balance".to_owned()).spawn(move || balanced.keep_balance())?;
        loop {
            match receive(&self.keeper)? {
                (ToEngine::RingKept { number, kept }, _) => self.keeper.ring_kept(number, kept),
                (ToEngine::Session(session), fds) => {
                    if let Some(link) = fds.into_iter().next() {
                        house.plug(&session, link);
                    }
                }
                (ToEngine::Prepare(change), _) => {
                    let (house, path) = (Arc::clone(&house), self.welcome.config_path.clone());
                    let prepare = move || house.prepare(&path, &change);
                    std::thread::Builder::new().name("change".to_owned()).spawn(prepare)?;
                }
                (ToEngine::Commit { change }, _) => {
                    let house = Arc::clone(&house);
                    std::thread::Builder::new()
                        .name("change".to_owned())
                        .spawn(move || house.commit(change))?;
                }
                (ToEngine::Forget { change }, _) => {
                    let house = Arc::clone(&house);
                    let forget = move || house.forget_change(change);
                    std::thread::Builder::new().name("change".to_owned()).spawn(forget)?;
                }
                (ToEngine::Pool { id, request }, _) => {
                    // It may wait for a pool's thread, and for I/O.
                    let house = Arc::clone(&house);
                    std::thread::Builder::new()
                        .name("asked".to_owned())
                        .spawn(move || house.keeper.pool_answered(id, &house.ask(&request)))?;
                }
                (ToEngine::Pause, _) => {
                    let (house, starter) = (Arc::clone(&house), starter.take());
                    std::thread::Builder::new().name("pause".to_owned()).spawn(move || {
                        starter.map(JoinHandle::join);
                        house.pause();
                    })?;
                }
                (ToEngine::Stop, _) => {
                    let (house, starter) = (Arc::clone(&house), starter.take());
                    std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
                        starter.map(JoinHandle::join);
                        house.stop();
                    })?;
                }
                _ => bail!("the keeper sends what an engine at work does not expect"),
            }
        }
    }
}

pub(crate) fn index(ssd: u32) -> usize {
    usize::try_from(ssd).unwrap_or(usize::MAX)
}

/// The ssds with their numbers. A keeper that gives none means their places.
fn numbered(slots: &[link::control::Slot]) -> impl Iterator<Item = (usize, &link::control::Slot)> {
    slots.iter().enumerate().map(|(place, slot)| (slot.number.map_or(place, index), slot))
}

/// The descriptors of an ssd, by their roles.
#[derive(Default)]
struct Parts(BTreeMap<Role, OwnedFd>);

impl Parts {
    fn new(saved: &Saved, fds: Vec<OwnedFd>) -> Self {
        Self(saved.roles.iter().copied().zip(fds).collect())
    }

    fn region(&mut self) -> anyhow::Result<SharedRegion<ControllerRegion>> {
        let fd = self.0.remove(&Role::REGION).context("its controller's shared state is missing")?;
        SharedRegion::from_fd(fd).context("its controller's shared state cannot be mapped")
    }
}

/// Everything that serves.
pub(crate) struct House {
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) clock: Clock,
    pub(crate) duty: Duty,
    pub(crate) records: Mutex<Option<(Records, JoinHandle<()>)>>,
    pub(crate) slots: Mutex<Slots>,
    /// A change that is prepared. Held while one is prepared or carried out: the house does not end in the middle of it.
    pub(crate) readied: Mutex<Option<Readied>>,
    /// Once nothing of a dead engine is at the drives.
    pools: OnceLock<Arc<Pools>>,
    /// Those that are served and those that are not, as the configuration has them.
    pub(crate) configs: Mutex<Vec<api::config::Ssd>>,
    pub(crate) migrations: OnceLock<Migrations>,
    /// See [`House::turn_of`].
    pub(crate) turns: Mutex<BTreeMap<usize, Arc<Mutex<()>>>>,
    /// What is written to drives of controllers that are logged.
    pub(crate) trackers: Trackers,
    /// Where management controllers have their orders done; who does them, until it has begun.
    management: (Desk, Mutex<Option<Receiver<Ask>>>),
    stats_path: Option<PathBuf>,
}

#[derive(Default)]
pub(crate) struct Slots {
    /// By number.
    pub(crate) open: BTreeMap<usize, Served>,
    /// Those whose owner is not here, by number.
    pub(crate) absent: BTreeMap<usize, Absent>,
    /// Clients that came before their ssd was open.
    early: Vec<(usize, Plug)>,
    started: bool,
}

impl House {
    fn start(
        config: &Config,
        stats_path: Option<PathBuf>,
        clock: Clock,
        keeper: Arc<Keeper>,
    ) -> anyhow::Result<Self> {
        let stats = Stats::open(stats_path.as_deref()).context("cannot make the statistics page")?;
        let (records, record_thread) = Records::start()?;
        let duty = Duty::new(stats, records.clone(), Some(Arc::clone(&keeper)), clock)?;
        duty.call_up(&config.engine)?;
        let (desk, orders) = channel();
        Ok(Self {
            keeper,
            clock,
            duty,
            records: Mutex::new(Some((records, record_thread))),
            slots: Mutex::default(),
            readied: Mutex::default(),
            pools: OnceLock::new(),
            configs: Mutex::new(config.ssds.clone()),
            migrations: OnceLock::new(),
            turns: Mutex::default(),
            trackers: Trackers::default(),
            management: (desk, Mutex::new(Some(orders))),
            stats_path,
        })
    }

    /// One that is ready to open ssds, and has none.
    #[cfg(test)]
    pub(crate) fn for_test(config: &Config, keeper: Link) -> Self {
        let keeper = Arc::new(Keeper::new(keeper));
        keeper.speaks(link::VERSION);
        let clock = Clock::calibrate(Calibration::begin());
        let pools = Pools::open(&config.pools, |_| None, Some(Arc::clone(&keeper)));
        let house = Self::start(config, None, clock, keeper).expect("a house");
        house.pools.get_or_init(|| Arc::new(pools));
        house
    }

    /// All that is served at the start is there.
    pub(crate) fn has_started(&self) -> bool {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).started
    }

    /// Waits for what a dead engine had at the drives, then takes over or powers on every ssd.
    fn open_all(&self, config: &Config, welcome: &Welcome, told: Told) -> anyhow::Result<Ready> {
        let fenced = fence(told.rings)?;
        self.keeper.fenced();
        let Told { mut saved, sessions, .. } = told;
        self.pools.get_or_init(|| Arc::new(self.open_pools(config, welcome, &saved)));
        let mut links: BTreeMap<usize, (Session, OwnedFd)> =
            sessions.into_iter().map(|(session, link)| (index(session.ssd), (session, link))).collect();
        let (ready, readies) = channel();
        let mut open = BTreeMap::new();
        for (config, (at, slot)) in config.ssds.iter().zip(numbered(&welcome.ssds)) {
            if slot.parked {
                continue;
            }
            let client = links.remove(&at).map(|(session, link)| Plug { session: session.session, link });
            let found = saved.remove(&at);
            if slot.saved && found.is_none() {
                self.keeper.fault(Some(at), "what was saved of it did not come: it is not served".to_owned());
                continue;
            }
            if let Some(away) = self.away(config)? {
                self.stay_away(at, Absent { found, client, config: config.clone(), waiting: None }, &away);
                continue;
            }
            self.keeper.stands(at, None);
            let was_found = found.is_some();
            let planned = self.plan(at, config, found, client, Purpose::Serve);
            match planned
                .and_then(|planned| Ok(planned.start(ready.clone())?))
                .with_context(|| format!("ssd \"{}\"", slot.name))
            {
                Ok(slot) => _ = open.insert(at, slot),
                // Nothing was lost yet where nothing was there: as a whole, like a configuration that is wrong.
                Err(error) if !was_found && !welcome.has_served => return Err(error),
                Err(error) => self.keeper.fault(Some(at), format!("it cannot be served: {error:#}")),
            }
        }
        drop(ready);
        let mut answer = Ready { fenced, ..Ready::default() };
        for result in readies {
            match result {
                Ok(Left { unanswered, posting }) => {
                    answer.replayed += unanswered;
                    answer.reposted += posting;
                }
                Err(error) => self.keeper.fault(None, format!("{error:#}")),
            }
        }
        tracing::info!(
            generation = welcome.generation,
            ssds = open.len(),
            reactors = config.engine.reactors,
            replayed = answer.replayed,
            reposted = answer.reposted,
            fenced,
            "serving"
        );
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.open = open;
        slots.started = true;
        for (at, plug) in std::mem::take(&mut slots.early) {
            if let Some(slot) = slots.open.get(&at) {
                slot.plug(plug);
            } else if let Some(absent) = slots.absent.get_mut(&at) {
                absent.plug(plug);
            }
        }
        Ok(answer)
    }

    /// Under the locks that the last engine had, where the keeper holds them with the descriptors of the pools' ssds.
    fn open_pools(
        &self,
        config: &Config,
        welcome: &Welcome,
        saved: &BTreeMap<usize, (Saved, Vec<OwnedFd>)>,
    ) -> Pools {
        let kept = |name: &str| {
            let of_pool =
                |ssd: &api::config::Ssd| matches!(&ssd.backend, Backend::Pool { pool, .. } if pool == name);
            let ssds = config.ssds.iter().zip(numbered(&welcome.ssds)).filter(|(ssd, _)| of_pool(ssd));
            ssds.filter_map(|(_, (at, _))| saved.get(&at)).find_map(|(saved, fds)| {
                let drive = saved.roles.iter().zip(fds).find(|(role, _)| **role == Role::DRIVE);
                drive.and_then(|(_, fd)| fd.try_clone().ok())
            })
        };
        Pools::open(&config.pools, kept, Some(Arc::clone(&self.keeper)))
    }

    pub(crate) fn pools(&self) -> anyhow::Result<&Arc<Pools>> {
        self.pools.get().context("the pools are not open yet")
    }

    /// Answers a question about pools, or about this process.
    fn ask(self: &Arc<Self>, request: &str) -> Response {
        if let Ok(request) = serde_json::from_str::<EngineRequest>(request) {
            return self.answer(request);
        }
        match (serde_json::from_str(request), self.pools.get()) {
            (Ok(request), Some(pools)) => pools.ask(request),
            (Err(error), _) => Response::Error(format!(
                "this engine does not understand the request ({error}); is `godwit` of another release?"
            )),
            (_, None) => not_serving(),
        }
    }

    /// Opens an ssd, new or a predecessor's, and serves nothing yet.
    pub(crate) fn plan(
        &self,
        at: usize,
        config: &api::config::Ssd,
        found: Option<(Saved, Vec<OwnedFd>)>,
        client: Option<Plug>,
        purpose: Purpose,
    ) -> anyhow::Result<Planned> {
        Ok(match config.door {
            api::config::Door::VhostUser => {
                Planned::Vhost(self.plan_disk(at, config, found, client, purpose)?)
            }
            api::config::Door::VfioUser => {
                Planned::Nvme(Box::new(self.plan_controller(at, config, found, client, purpose)?))
            }
        })
    }

    fn plan_controller(
        &self,
        at: usize,
        config: &api::config::Ssd,
        found: Option<(Saved, Vec<OwnedFd>)>,
        client: Option<Plug>,
        purpose: Purpose,
    ) -> anyhow::Result<Plan> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let records = records.as_ref().map(|(records, _)| records.clone()).context("stopped already")?;
        let (mut page, mut is_new, mut log) = (None, false, None);
        let (found, kept) = match found {
            None => (None, Kept::default()),
            Some((saved, fds)) => {
                let Parts(mut parts) = Parts::new(&saved, fds);
                let mut part = |role| parts.remove(&role);
                let (drive, key) = (part(Role::DRIVE), part(Role::KEY));
                let (Some(region), Some(doorbells)) = (part(Role::REGION), part(Role::DOORBELLS)) else {
                    bail!("its controller's shared state is missing");
                };
                let power = Power::found(region, doorbells).context("its shared state cannot be mapped")?;
                queue::inspect(&power.region)?;
                let (counted, anew) = meter::page(config, part(Role::METRICS));
                (page, is_new, log) = (Some(counted), anew, part(Role::WRITTEN));
                (Some(power), Kept { drive, key, record: saved.record, ..Kept::default() })
            }
        };
        let Kept { drive, key, record, .. } = kept;
        let lost = found.is_some() && drive.is_none();
        let (ssd, record) = patiently(found.is_some(), drive, |drive| {
            let key = key.as_ref().map(OwnedFd::try_clone).transpose()?;
            let page = page.clone();
            let kept = Kept { drive, key, record: record.clone(), page, purpose };
            open_ssd(at, config, kept, Some(Arc::clone(&self.keeper)), self.pools()?)
        })?;
        if let Some(log) = log {
            ssd.written.restore(log);
            if config.controller_id.is_none() {
                // It is not managed any more.
                ssd.written.disarm_managed();
            }
        }
        if ssd.profile.role == Kind::Management {
            ssd.management.get_or_init(|| self.management.0.clone());
        }
        self.give(at, &ssd, lost, is_new)?;
        let home = self.duty.home_of(at);
        let (keeper, clock) = (Arc::clone(&self.keeper), self.clock);
        Ok(Plan { ssd, record, keeper, found, client, home, records, clock })
    }

    /// The keeper has the doors from the same configuration: what its clients speak needs no second look.
    fn plan_disk(
        &self,
        at: usize,
        config: &api::config::Ssd,
        found: Option<(Saved, Vec<OwnedFd>)>,
        client: Option<Plug>,
        purpose: Purpose,
    ) -> anyhow::Result<VhostPlan> {
        let was_found = found.is_some();
        let mut parts = found.map(|(saved, fds)| Parts::new(&saved, fds).0).unwrap_or_default();
        let (drive, key) = (parts.remove(&Role::DRIVE), parts.remove(&Role::KEY));
        let lost = was_found && drive.is_none();
        let (page, is_new) = meter::page(config, parts.remove(&Role::METRICS));
        let keeper = Arc::clone(&self.keeper);
        let ssd = patiently(was_found, drive, |drive| {
            let key = key.as_ref().map(OwnedFd::try_clone).transpose()?;
            let page = Some(Arc::clone(&page));
            let kept = Kept { drive, key, record: None, page, purpose };
            vhost::open_ssd(at, config, kept, Some(Arc::clone(&keeper)), self.pools()?)
        })?;
        self.give(at, &ssd, lost, was_found && is_new)?;
        let crew = Arc::clone(self.duty.crew());
        Ok(VhostPlan { ssd, keeper, found: was_found, client, crew })
    }

    /// Gives the keeper what it does not have of an ssd that was found: its drive, because a keeper before it died, and the page that
    /// counts, because an engine before this one had none. Before the drive gets a ring: a ring that the keeper holds for a dead
    /// engine holds the drive's open file, too, and with it a lock that no successor could take without this descriptor.
    pub(crate) fn give(&self, at: usize, ssd: &Ssd, drive: bool, page: bool) -> anyhow::Result<()> {
        let drive = if drive { ssd.drive_parts()? } else { Vec::new() };
        let page = if page { ssd.page_part()? } else { None };
        let parts: Vec<_> = drive.into_iter().chain(page).collect();
        if parts.is_empty() {
            return Ok(());
        }
        Ok(self.keeper.power_on(at, PowerCycle { ended: None, parts, record: None })?)
    }

    fn plug(&self, session: &Session, link: OwnedFd) {
        let plug = Plug { session: session.session, link };
        let at = index(session.ssd);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(absent) = slots.absent.get_mut(&at) {
            return absent.plug(plug);
        }
        match slots.open.get(&at) {
            Some(slot) => slot.plug(plug),
            None if !slots.started => slots.early.push((at, plug)),
            None => tracing::warn!(ssd = at, "a client of an ssd that is not served"),
        }
    }

    /// Everything comes to rest; then this process ends.
    fn pause(&self) {
        let _no_change = self.give_up_change();
        // What waits for a pool from now on waits for the next engine.
        self.pools.get().into_iter().for_each(|pools| pools.rest());
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            let waiting = slots.absent.values().filter_map(|absent| absent.waiting.as_ref());
            for slot in slots.open.values().chain(waiting) {
                scope.spawn(|| slot.pause());
            }
        });
        if let Some((records, thread)) = self.records.lock().unwrap_or_else(PoisonError::into_inner).take() {
            records.finish(thread);
        }
        self.keeper.tell(&ToKeeper::Paused);
        tracing::info!("paused; another engine goes on");
        std::process::exit(0);
    }

    /// All sessions end, all becomes durable; then this process ends.
    fn stop(&self) {
        let _no_change = self.give_up_change();
        self.pools.get().into_iter().for_each(|pools| pools.refuse_parked());
        self.end_waits();
        let open = std::mem::take(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner).open);
        open.values().for_each(|served| self.end(served));
        let results: Vec<_> = open.into_values().map(Served::join).collect();
        self.duty.dismiss();
        self.pools.get().into_iter().for_each(|pools| pools.rest());
        if let Some((records, thread)) = self.records.lock().unwrap_or_else(PoisonError::into_inner).take() {
            records.finish(thread);
        }
        if let Some(path) = &self.stats_path {
            let _ = std::fs::remove_file(path);
        }
        let mut code = 0;
        for error in results.into_iter().filter_map(Result::err) {
            self.keeper.fault(None, format!("{error:#}"));
            code = 1;
        }
        std::process::exit(code);
    }
}

/// Opens a drive; if it is taken over, as soon as it is free: the lock of a drive that the keeper has no descriptor of (a keeper
/// died with its engine) is held by the requests that the engine left there.
pub(crate) fn patiently<T>(
    taken_over: bool,
    mut drive: Option<OwnedFd>,
    open: impl Fn(Option<OwnedFd>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match open(drive.take()) {
            Err(error) if taken_over && is_busy(&error) && start.elapsed() < FENCE_PATIENCE => {
                tracing::warn!(error = format!("{error:#}"), "waiting for the last engine's I/O to end");
            }
            result => return result,
        }
    }
}

fn not_serving() -> Response {
    Response::Error("the engine does not serve yet: ask again in a moment".to_owned())
}

pub(crate) fn is_busy(error: &anyhow::Error) -> bool {
    let busy = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ResourceBusy;
    matches!(error.downcast_ref(), Some(backend::Error::Path { error, .. }) if busy(error))
        || matches!(error.downcast_ref(), Some(volume::PoolError::Open(_)))
}

/// Waits until nothing of a dead engine is at the drives; returns how many requests were.
fn fence(rings: Vec<u32>) -> anyhow::Result<u64> {
    let keeper = rustix::process::getppid().context("the keeper is gone")?.as_raw_nonzero().get();
    let mut fenced = 0;
    for number in rings {
        let ring = OldRing::new(u32::try_from(keeper)?, i32::try_from(number)?)
            .context("a ring of the last engine cannot be looked at in the keeper")?;
        let ended = ring.wait(FENCE_PATIENCE).context("the last engine's I/O does not end")?;
        fenced += u64::from(ended);
    }
    Ok(fenced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_drive_that_is_taken_over_is_waited_for_and_any_other_is_refused_at_once() {
        let busy = || {
            let (path, error) = (PathBuf::from("/disk"), std::io::ErrorKind::ResourceBusy.into());
            backend::Error::Path { path, what: "it is in use", error, advice: "stop whoever uses it" }
        };
        let attempts = Cell::new(0);
        let open = |drive: Option<OwnedFd>| {
            assert_eq!(drive.is_some(), attempts.get() == 0, "what was kept is tried first, and once");
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 { Err(busy().into()) } else { Ok(()) }
        };
        let kept = || Some(std::fs::File::open("/dev/null").expect("there").into());
        assert!(patiently(true, kept(), open).is_ok());
        attempts.set(0);
        assert!(patiently(false, kept(), open).is_err());
        assert_eq!(attempts.get(), 1);
        assert!(patiently(true, None, |_| anyhow::Ok(())).is_ok());
        let other = patiently::<()>(true, None, |_| bail!("it is not there"));
        assert!(other.is_err());
    }
}
