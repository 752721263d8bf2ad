//! Migrations under soak: ssds move between two hosts while their clients write and read, and something goes wrong at a random time.
//!
//! ```text
//!  loads (this thread) <--- orders --- conductor: migrate, fault, what the documents say to do, see who serves
//!      |  ^-- followers: clients that wait at hosts for an ssd
//!      v
//!   host a (godwitd) ======== relay: cut, stalled, slow, far ======== host b (godwitd)
//! ```
//! A client is a program: it is hung up on at one host and connects where the ssd is then, or it waits there from the start. What was out
//! when its device went has happened or never does, and the auditor says which ([`Model::abandon`](super::model::Model::abandon)).
//!
//! What it does *not* do: a host that loses what it had not yet made durable, guests with kernels, force at the destination (which loses, as the
//! documents say, what the source wrote after the freeze).

pub(crate) mod berth;
mod conductor;
mod fault;
pub(crate) mod host;
mod row;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::berth::{Berth, Connection, Errand, Follower, Found as Berthed, TRY};
use self::conductor::{Conductor, Order, Stun, Told};
pub use self::host::Mover;
use self::host::{Host, Plan as HostPlan, free_address, make_keys};
pub use self::row::Row;
use super::daemon::{Backing, Frontend, Ssd};
use super::load::Load;
use super::plug::Plan;
use super::soak::{flip_a_byte, of_ssd};
use crate::load::workload::Random;
use crate::relay::Relay;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Migrations.
    pub count: u64,
    /// Something goes wrong in most of them.
    pub with_faults: bool,
    /// Only this, by its name.
    pub only: Option<String>,
    /// Of everything.
    pub seed: u64,
    /// The daemon.
    pub godwitd: PathBuf,
    /// The command line, for the certificates.
    pub godwit: PathBuf,
    /// Where the run's folder is made; it must take O_DIRECT.
    pub directory: PathBuf,
    /// An operation without an answer for so long is lost, an ssd that nobody serves for so long stranded.
    pub patience: Duration,
    /// How long an ssd's I/O may stand still when it moves.
    pub stun_max: Duration,
    /// Queues of each ssd.
    pub lanes: u16,
    /// Operations of each queue.
    pub depth: usize,
    /// Reactors of the daemons.
    pub reactors: usize,
    /// Of each ssd.
    pub mebibytes: u64,
    /// Flip a byte of each data file at the end, behind the daemons' backs: the run must find them.
    pub sabotage: bool,
    /// Keep the run's folder.
    pub keep: bool,
}

/// What a run found.
pub struct Found {
    /// The line.
    pub row: Row,
    /// The first faults, in words.
    pub faults: Vec<String>,
    /// A line a migration, and the daemons' last words.
    pub log: String,
    /// Where the run's files are, when kept.
    pub folder: Option<PathBuf>,
}

const WARM_UP: Duration = Duration::from_secs(1);
const NAP_MIN: Duration = Duration::from_micros(20);
/// How long a client that is served elsewhere listens whether it is answered where it was.
const WITNESS: Duration = Duration::from_millis(3);
const CONNECT: Duration = Duration::from_secs(20);
/// The first guess.
const USUAL: Duration = Duration::from_secs(1);

/// Both frontends, from and to every sort of place.
fn movers(mebibytes: u64) -> Vec<Mover> {
    let mover = |name: &str, backings: [Backing; 2], frontend| {
        let ssd = Ssd { name: name.to_owned(), mebibytes, backing: backings[0], frontend };
        Mover { ssd, backings }
    };
    let (thin, full) = (Backing::Pool { thin: true }, Backing::Pool { thin: false });
    vec![
        mover("nvme-file", [Backing::Uring, thin], Frontend::Nvme { lba: 512 }),
        mover("nvme-pool", [thin, full], Frontend::Nvme { lba: 4096 }),
        mover("disk-file", [Backing::Uring, Backing::Uring], Frontend::Disk { packed: false }),
        mover("disk-pool", [full, Backing::Uring], Frontend::Disk { packed: true }),
    ]
}

/// Runs it all.
///
/// # Errors
/// The run could not be made. What goes wrong later is in what it found.
pub fn run(settings: &Settings) -> Result<Found> {
    let folder = tempfile::Builder::new().prefix("godwit-moves").tempdir_in(&settings.directory)?;
    let movers = movers(settings.mebibytes);
    let keys = folder.path().join("keys");
    make_keys(&settings.godwit, &keys, &[])?;
    let start = |number: usize| {
        let plan = HostPlan {
            number,
            folder: folder.path().join(["a", "b"][number]),
            godwitd: settings.godwitd.clone(),
            keys: keys.clone(),
            movers: movers.clone(),
            reactors: settings.reactors,
        };
        let listen = free_address(Ipv4Addr::LOCALHOST.into())?;
        Host::start(plan, listen, Relay::new(listen)?)
    };
    let mut hosts = [start(0)?, start(1)?];
    let epoch = Instant::now();
    let now = || u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let plans: Vec<Plan> = (1..=movers.len() as u64)
        .map(|number| {
            let Settings { lanes, depth, patience, .. } = *settings;
            Plan { lanes, depth, seed: of_ssd(settings.seed, number) ^ 0x55, patience }
        })
        .collect();
    let (found, berths) = channel();
    let mut guests = Vec::new();
    for (number, (mover, plan)) in movers.iter().zip(&plans).enumerate() {
        let seed = of_ssd(settings.seed, number as u64 + 1);
        guests.push(Guest::new(number, mover, plan, &hosts, seed, now(), found.clone())?);
    }
    let name = if settings.with_faults { "migrations-faults" } else { "migrations" }.to_owned();
    let row = Row { name, seed: settings.seed, ..Row::default() };
    let mut run =
        Run { row, guests, hosts: &hosts, berths, faults: Vec::new(), over: AtomicBool::new(false) };
    let told = run.go(settings, &movers, &plans, epoch, &now);
    run.row.seconds = epoch.elapsed().as_secs_f64();
    let (mut row, mut faults) = run.end();
    for host in &mut hosts {
        if !host.stop() {
            row.tally.errors += 1;
            faults.push(format!("host {} did not stop with status 0", host.name));
        }
    }
    let logs: Vec<String> = hosts.iter().map(Host::log_tail).collect();
    let log = told.join("\n") + "\n" + &logs.join("\n");
    drop(hosts);
    let folder = settings.keep.then(|| folder.keep());
    Ok(Found { row, faults, log, folder })
}

/// One ssd's client.
struct Guest {
    number: usize,
    ssd: Ssd,
    plan: Plan,
    sockets: [PathBuf; 2],
    load: Load,
    /// Where it is, and by which connection. `None`: on its way.
    at: Option<(usize, Connection)>,
    /// Where it was last.
    last: usize,
    since: Instant,
    follower: Option<(u64, Follower)>,
    found: Sender<Berthed>,
    errands: u64,
    /// When it was answered last where it was before, until it is answered where it is now.
    moved_at_ns: Option<u64>,
    stun: Stun,
    whole: Option<Whole>,
    rests: Option<Sender<()>>,
}

/// All of it is to be read, at this host.
struct Whole {
    host: usize,
    is_sweeping: bool,
    done: Sender<Stun>,
}

impl Guest {
    fn new(
        number: usize,
        mover: &Mover,
        plan: &Plan,
        hosts: &[Host; 2],
        seed: u64,
        now_ns: u64,
        found: Sender<Berthed>,
    ) -> Result<Self> {
        let ssd = mover.ssd.clone();
        let sockets = hosts.each_ref().map(|host| host.socket(&ssd.name));
        let berth = Berth::connect(&sockets[0], &ssd, plan, CONNECT);
        let (door, line) =
            berth.with_context(|| format!("connect to {}\n{}", ssd.name, hosts[0].log_tail()))?.split();
        let load = Load::new(&ssd.name, number as u64 + 1, door, seed, now_ns);
        Ok(Guest {
            number,
            ssd,
            plan: *plan,
            sockets,
            load,
            at: Some((0, line)),
            last: 0,
            since: Instant::now(),
            follower: None,
            found,
            errands: 0,
            moved_at_ns: None,
            stun: None,
            whole: None,
            rests: None,
        })
    }

    /// Has somebody wait at a host, or at both.
    fn send_out(&mut self, first: usize, asks_both: bool) -> Result<()> {
        self.errands += 1;
        let host = |host: usize| (host, self.sockets[host].clone());
        let errand = Errand {
            guest: self.number,
            number: self.errands,
            ssd: self.ssd.clone(),
            plan: self.plan,
            hosts: [host(first), host(1 - first)],
            asks_both,
            patience: TRY,
        };
        self.follower = Some((self.errands, Follower::start(errand, self.found.clone())?));
        Ok(())
    }

    /// A little of everything; `false`: its ssd is nowhere for too long.
    fn turn(&mut self, now: &dyn Fn() -> u64) -> Result<bool> {
        let Some((_, line)) = &mut self.at else {
            return Ok(self.since.elapsed() < self.plan.patience * 2);
        };
        if line.is_hung_up() {
            self.load.listen(now)?;
            self.moved_at_ns.get_or_insert(self.load.gaps.last_ns());
            (self.at, self.since) = (None, Instant::now());
            match &self.follower {
                Some((_, follower)) => follower.ask_both(),
                None => self.send_out(1 - self.last, true)?,
            }
            return Ok(true);
        }
        let answers = self.load.turn(now)?;
        if answers > 0
            && let Some(since_ns) = self.moved_at_ns.take()
        {
            self.stun = Some(now().saturating_sub(since_ns));
        }
        self.load.give_up(now(), self.plan.patience);
        self.read_whole();
        if let Some(done) = self.rests.take_if(|_| self.load.is_done()) {
            let _nobody_waits = done.send(());
        }
        Ok(true)
    }

    fn read_whole(&mut self) {
        let Some(whole) = &mut self.whole else { return };
        if self.last != whole.host || !self.load.is_done() {
            return;
        }
        if !whole.is_sweeping {
            whole.is_sweeping = true;
            self.load.sweep();
        } else if let Some(whole) = self.whole.take() {
            let _nobody_waits = whole.done.send(self.stun.take());
            self.load.go_on();
        }
    }

    /// Goes on where its ssd was found. How often it was answered where it was although it is served elsewhere.
    fn berth(&mut self, found: Berthed, now: &dyn Fn() -> u64) -> Result<u64> {
        if self.follower.as_ref().is_none_or(|(number, _)| *number != found.number) {
            return Ok(0);
        }
        self.follower = None;
        let mut doubles = 0;
        if let Some((host, _)) = self.at.as_ref().filter(|(host, _)| *host != found.host) {
            self.load.listen(now)?;
            let (_at, before) = (host, self.load.auditor.outstanding_data());
            self.moved_at_ns.get_or_insert(self.load.gaps.last_ns());
            let end = Instant::now() + WITNESS;
            while Instant::now() < end {
                self.load.listen(now)?;
            }
            doubles = (before - self.load.auditor.outstanding_data()) as u64;
        }
        let (door, line) = found.berth.split();
        self.load.move_to(door)?;
        (self.at, self.last) = (Some((found.host, line)), found.host);
        Ok(doubles)
    }
}

struct Run<'a> {
    row: Row,
    guests: Vec<Guest>,
    hosts: &'a [Host; 2],
    berths: Receiver<Berthed>,
    faults: Vec<String>,
    /// No use going on.
    over: AtomicBool,
}

impl Run<'_> {
    /// Returns a line a migration.
    fn go(
        &mut self,
        settings: &Settings,
        movers: &[Mover],
        plans: &[Plan],
        epoch: Instant,
        now: &dyn Fn() -> u64,
    ) -> Vec<String> {
        let (orders, heard) = channel();
        let over = std::mem::take(&mut self.over);
        let hosts = self.hosts;
        self.work(&over, now, &heard, |run| run.guests.iter().all(|guest| guest.since.elapsed() > WARM_UP));
        let (ended, told) = std::thread::scope(|scope| {
            let (over, orders) = (&over, orders);
            let conduct = scope.spawn(move || {
                let mut conductor = Conductor {
                    hosts,
                    movers,
                    plans,
                    owners: vec![0; movers.len()],
                    random: Random::new(settings.seed ^ 0xE7E7),
                    with_faults: settings.with_faults,
                    only: settings.only.as_deref(),
                    patience: settings.patience,
                    stun_max: settings.stun_max,
                    orders,
                    over,
                    epoch,
                    usual: USUAL,
                    told: Told::default(),
                };
                let ended = conductor.run(settings.count);
                (ended.map(|()| conductor.owners), conductor.told)
            });
            self.work(over, now, &heard, |_| conduct.is_finished());
            conduct
                .join()
                .unwrap_or_else(|_| (Err(anyhow::anyhow!("the conductor panicked")), Told::default()))
        });
        match ended {
            Ok(owners) => self.finish(settings, movers, &owners, &over, now, &heard),
            Err(error) => self.error(&format!("{error:#}")),
        }
        self.note(told)
    }

    /// Runs the loads until `end`.
    fn work(
        &mut self,
        over: &AtomicBool,
        now: &dyn Fn() -> u64,
        orders: &Receiver<Order>,
        end: impl Fn(&Self) -> bool,
    ) {
        while !end(self) {
            let start_ns = now();
            orders.try_iter().for_each(|order| self.obey(order));
            let berths: Vec<Berthed> = self.berths.try_iter().collect();
            for found in berths {
                match self.guests[found.guest].berth(found, now) {
                    Ok(doubles) => self.row.double_owners += doubles,
                    Err(error) => self.error(&error.to_string()),
                }
            }
            for at in 0..self.guests.len() {
                let guest = &mut self.guests[at];
                let name = guest.ssd.name.clone();
                let before = guest.load.auditor.tally();
                let turned = guest.turn(now);
                let after = guest.load.auditor.tally();
                if after.errors + after.wrong_bytes > before.errors + before.wrong_bytes {
                    self.faults
                        .push(format!("{name}: the next faults are of {:.3} s", start_ns as f64 / 1e9));
                }
                let is_well = after.lost == 0;
                match turned {
                    Ok(true) if is_well => continue,
                    Ok(true) => {}
                    Ok(false) => self.error(&format!("{name}: no host serves it")),
                    Err(error) => self.error(&format!("{name}: {error}")),
                }
                over.store(true, Ordering::Relaxed);
                // Whoever waits for it need not.
                self.guests[at].whole = None;
            }
            std::thread::sleep(Duration::from_nanos(now() - start_ns).max(NAP_MIN));
        }
    }

    fn obey(&mut self, order: Order) {
        let done = match order {
            Order::Follow { guest, to, early } => {
                let guest = &mut self.guests[guest];
                (guest.stun, guest.moved_at_ns) = (None, None);
                if early { guest.send_out(to, false) } else { Ok(()) }
            }
            Order::Where { guest, at } => {
                let place = self.guests[guest].at.as_ref().map(|(host, _)| *host);
                let _nobody_waits = at.send(place);
                Ok(())
            }
            Order::Rest { host, rest, done } => {
                for guest in self.guests.iter_mut().filter(|guest| guest.last == host) {
                    if rest {
                        guest.load.drain();
                        guest.rests = Some(done.clone());
                    } else {
                        guest.load.go_on();
                    }
                }
                Ok(())
            }
            Order::Whole { guest, host, whole } => {
                let guest = &mut self.guests[guest];
                // Nobody need wait elsewhere any more, if it is here.
                if guest.at.as_ref().is_some_and(|(at, _)| *at == host) {
                    guest.follower = None;
                }
                guest.load.drain();
                guest.whole = Some(Whole { host, is_sweeping: false, done: whole });
                Ok(())
            }
        };
        if let Err(error) = done {
            self.error(&format!("{error:#}"));
        }
    }

    /// Reads all of every ssd once more, and finds what was changed behind the daemons' backs if that is asked for.
    fn finish(
        &mut self,
        settings: &Settings,
        movers: &[Mover],
        owners: &[usize],
        over: &AtomicBool,
        now: &dyn Fn() -> u64,
        heard: &Receiver<Order>,
    ) {
        self.guests.iter_mut().for_each(|guest| guest.load.drain());
        let is_done = |run: &Self| {
            over.load(Ordering::Relaxed)
                || run.guests.iter().all(|guest| guest.at.is_some() && guest.load.is_done())
        };
        self.work(over, now, heard, is_done);
        for (mover, owner) in movers.iter().zip(owners).filter(|_| settings.sabotage) {
            let Some(file) = self.hosts[*owner].file(mover) else { continue };
            if let Err(error) = flip_a_byte(&file) {
                self.error(&format!("sabotage: {error}"));
            }
        }
        self.guests.iter_mut().for_each(|guest| guest.load.sweep());
        self.work(over, now, heard, is_done);
    }

    fn note(&mut self, told: Told) -> Vec<String> {
        let Told { events, moved, double_owners, stranded, helped, .. } = told;
        let row = &mut self.row;
        (row.events, row.moved, row.stranded, row.helped) = (events, moved, stranded, helped);
        row.double_owners += double_owners;
        told.stuns.iter().for_each(|stun| row.stuns.record(*stun));
        told.stuns_in_faults.iter().for_each(|stun| row.stuns_in_faults.record(*stun));
        told.engine_stuns.iter().for_each(|stun| row.engine_stuns.record(*stun));
        row.faults = told.faults;
        told.rounds
    }

    fn end(mut self) -> (Row, Vec<String>) {
        for guest in &self.guests {
            let auditor = &guest.load.auditor;
            self.row.tally = self.row.tally.plus(auditor.tally());
            self.row.abandoned += auditor.abandoned();
            self.faults.extend(auditor.faults().iter().cloned());
        }
        (self.row, self.faults)
    }

    fn error(&mut self, what: &str) {
        self.row.tally.errors += 1;
        if self.faults.len() < 40 {
            self.faults.push(what.to_owned());
        }
    }
}
