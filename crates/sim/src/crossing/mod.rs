//! The world of a crossing: two hosts, a guest that goes on while its ssd is copied from one to the other and back, and a wire between them.
//!
//! ```text
//!            Guest (driver + auditor), wherever its hypervisor runs it
//!              |                                                |
//!  Host 0: Engine, Disk, journal                    Host 1: Engine, Disk, journal
//!    commit::Source ------------------ words -------------- commit::Destination
//!    Precopy, Streams ========== Wire: frames ============= Receiver
//! ```
//! What is the product's code and what is modelled: README.md.

mod actors;
mod audit;
pub mod broken;
mod destination;
mod ends;
mod host;
mod port;
mod source;
mod trouble;
pub mod watch;
mod wire;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::Now;
use nvme::controller::Bar;
use nvme::crash::{self, Crash};
use nvme::profile::{Identity, IdentityConfig};
use spec::nvme::registers as reg;
use state::SsdV1;
use state::ssd::NamespaceV1;
use transfer::commit::{Destination, DestinationEvent, Message, Record, Source, ToDestination};

use self::actors::Actors;
use self::broken::Broken;
use self::host::{Arriving, Host, Process, Sending};
use self::trouble::Trouble;
use self::watch::Watch;
use self::wire::Wire;
use crate::disk::Manners;
use crate::engine::Engine;
use crate::guest::{Call, Checked, Glimpse, Guest, Habits, Violation, violation};
use crate::ledger::Ledger;
use crate::rng::Rng;
use crate::world::{lived, message};

/// Bytes of each drive: three stripes.
const CAPACITY: usize = 6 << 20;
/// What a step takes.
const STEP_NS: u64 = 100_000;
/// Steps of a seed, before everything that is under way must end.
const STEPS: usize = 9_000;
/// Steps in which it must.
const DRAIN_STEPS: usize = 120_000;
/// Migrations that a seed begins at most.
const MIGRATIONS_MAX: u8 = 4;

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Processes that ended at a point.
    pub crashes: u64,
    /// Points passed.
    pub points: u64,
    /// Times that a host lost power.
    pub power_losses: u64,
    /// Commands answered.
    pub answers: u64,
    /// Connections cut.
    pub cuts: u64,
    /// Migrations begun.
    pub migrations: u64,
    /// Of these, how many made the other host the owner.
    pub crossings: u64,
    /// And how many were given back after the grant.
    pub taken_back: u64,
    /// It ended in a state in which somebody has to do something, which is named.
    pub named: u64,
    /// Of these, those with a copy or an original at the host that is left, which was looked at.
    pub left_audited: u64,
}

/// Where the guest is.
#[derive(Clone, Copy, Debug)]
struct Vm {
    place: usize,
    running: bool,
    /// A register access was made to an engine that did not live to answer it.
    in_call: bool,
}

/// What the guest knew of its data when it stood still, and when that was.
struct Rest {
    ledger: Ledger,
    tick: u64,
}

/// The world.
pub(crate) struct World {
    rng: Rng,
    now: u64,
    time: Arc<AtomicU64>,
    hosts: [Host; 2],
    guest: Guest,
    vm: Vm,
    actors: Actors,
    wire: Wire,
    trouble: Trouble,
    calm: bool,
    /// Percent of steps in which the guest does something.
    pace: usize,
    /// What ends now ends for want of power.
    dark: bool,
    /// An operator has taken the ssd by force.
    forced: bool,
    broken: Option<Broken>,
    migrations: u8,
    /// Those that made the other host the owner, and those that were given back: once each, however often their records are written.
    crossed: BTreeSet<[u8; 16]>,
    taken_back: BTreeSet<[u8; 16]>,
    /// What each migration found when the guest stood still for it.
    rests: BTreeMap<[u8; 16], Rest>,
    /// The epochs that the ssd was served by, and where.
    epochs: Vec<(u64, usize)>,
    report: Report,
}

/// Runs a seed. With `trace`, what happened is printed.
///
/// # Errors
/// The promise that was broken.
pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
    run_with(seed, trace, None)
}

/// As [`run`], with a rule broken on purpose.
///
/// # Errors
/// The promise that was broken.
pub fn run_with(seed: u64, trace: bool, broken: Option<Broken>) -> Result<Report, Violation> {
    let before = crash::passed();
    let mut world = World::new(seed, broken);
    world.guest.trace = trace.then(Vec::new);
    let result = lived(|| world.live());
    for line in world.guest.trace.take().unwrap_or_default() {
        println!("{line}");
    }
    match result {
        Ok(()) => {
            let points = crash::passed().wrapping_sub(before);
            let cuts = world.wire.cuts;
            let (crossings, taken_back) = (world.crossed.len() as u64, world.taken_back.len() as u64);
            let answers = world.guest.answers;
            Ok(Report { points, cuts, answers, crossings, taken_back, ..world.report })
        }
        Err(Violation(what)) => Err(Violation(format!("crossing seed {seed}: {what}"))),
    }
}

fn namespaces() -> Vec<NamespaceV1> {
    let of = |nsid: u32, start: u64, shift: u8| NamespaceV1 {
        nsid,
        start_bytes: start << 20,
        reserved_bytes: 1 << 20,
        blocks: (1 << 20) >> shift,
        lba_shift: shift,
        attached: true,
        uuid: [u8::try_from(nsid).unwrap_or(0); 16],
        ..NamespaceV1::default()
    };
    // One in each stripe, so that each stream has something to carry.
    vec![of(1, 0, 9), of(2, 2, 12), of(3, 5, 9)]
}

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut rng = Rng::new(seed ^ 0x6372_6f73_7369_6e67);
        let habits = Habits {
            overlap: rng.percent(50),
            faults: false,
            shadow: rng.percent(40),
            manage: rng.percent(20),
            resets: rng.percent(30),
        };
        let manners = Manners {
            at_once: rng.pick(&[0, 30, 90]).unwrap_or(0),
            full: rng.pick(&[0, 0, 10]).unwrap_or(0),
            faults: 0,
            discard: rng.percent(70),
        };
        let trouble = Trouble::new(seed, &mut rng);
        let record = SsdV1 {
            capacity_bytes: CAPACITY as u64,
            profile: "godwit-2".to_owned(),
            laid_out: true,
            namespaces: namespaces(),
            created: 3,
            ..SsdV1::default()
        };
        let config = IdentityConfig { serial: "SIM-1", ..IdentityConfig::default() };
        let Ok(identity) = Identity::new(&config) else { panic!("a serial number") };
        let early = broken == Some(Broken::MarkEarly);
        let mut host = |is_first| {
            let watch = Watch::new(early);
            Host::new(is_first, CAPACITY, manners, &record, &identity, Rng::new(rng.word()), watch)
        };
        let hosts = [host(true), host(false)];
        let shapes: Vec<(u32, u8, u64)> =
            namespaces().iter().map(|ns| (ns.nsid, ns.lba_shift, ns.blocks)).collect();
        let guest = Guest::new(Rng::new(rng.word()), habits, Arc::clone(&hosts[0].ram), &shapes);
        let mut wire = Wire::new(Rng::new(rng.word()));
        wire.repeats = trouble.cuts;
        let pace = rng.pick(&[40, 40, 10, 3]).unwrap_or(40);
        Self {
            rng,
            now: 1,
            time: Arc::default(),
            hosts,
            guest,
            vm: Vm { place: 0, running: true, in_call: false },
            actors: Actors::default(),
            wire,
            trouble,
            calm: false,
            pace,
            dark: false,
            forced: false,
            broken,
            migrations: 0,
            crossed: BTreeSet::new(),
            taken_back: BTreeSet::new(),
            rests: BTreeMap::new(),
            epochs: Vec::new(),
            report: Report::default(),
        }
    }

    fn live(&mut self) -> Checked {
        for _ in 0..STEPS {
            self.step()?;
        }
        self.calm = true;
        self.wire.repeats = false;
        for host in &mut self.hosts {
            host.outside.disk.calm();
            host.fuel = u64::MAX;
        }
        self.guest.wind_down();
        for _ in 0..DRAIN_STEPS {
            self.step()?;
            if self.is_over() {
                return self.audit();
            }
        }
        violation!("it never ends{}", self.describe())
    }

    fn step(&mut self) -> Checked {
        self.now += STEP_NS;
        self.time.store(self.now, Ordering::Relaxed);
        self.make_trouble()?;
        for at in 0..2 {
            self.host_step(at)?;
        }
        if self.vm.running && self.rng.percent(if self.calm { 40 } else { self.pace }) {
            self.guest_step()?;
        }
        for _ in 0..self.rng.below(4) {
            self.actor_step()?;
        }
        self.begin_migration();
        self.check()
    }

    fn host_step(&mut self, at: usize) -> Checked {
        if self.hosts[at].process.is_none() {
            self.hosts[at].doom_at = None;
            self.wire.deafen(at);
            let host = &self.hosts[at];
            let may = !host.lost && self.now >= host.off_until;
            if may && (self.calm || self.rng.one_in(40)) {
                self.start(at)?;
            } else if self.rng.percent(30) {
                self.hosts[at].outside.disk.step();
            }
            return Ok(());
        }
        if self.rng.percent(60) {
            self.engine_step(at)?;
        }
        if self.rng.percent(25) {
            self.hosts[at].outside.disk.step();
        }
        let slow = self.broken == Some(Broken::RecordNotDurable);
        if if slow { self.rng.one_in(200) } else { self.rng.percent(30) } {
            self.in_host(at, |world| world.end_write(at))?;
        }
        if self.rng.percent(60) {
            self.in_host(at, |world| world.hear(at))?;
        }
        if self.rng.percent(60) {
            self.turn(at)?;
        }
        Ok(())
    }

    /// One thing that the machine of a host does.
    fn turn(&mut self, at: usize) -> Checked {
        if self.hosts[at].journal.is_writing() && self.broken != Some(Broken::RecordNotDurable) {
            return Ok(());
        }
        let process = self.hosts[at].process.as_ref();
        if process.is_some_and(|process| process.sending.is_some()) {
            self.in_host(at, |world| world.sending_turn(at)).map(drop)
        } else {
            self.in_host(at, |world| world.arriving_turn(at)).map(drop)
        }
    }

    /// Something runs in a host's process; `None`: that ended meanwhile.
    fn in_host<T>(
        &mut self,
        at: usize,
        what: impl FnOnce(&mut Self) -> Result<T, Violation>,
    ) -> Result<Option<T>, Violation> {
        if self.hosts[at].process.is_none() {
            return Ok(None);
        }
        crash::arm(self.hosts[at].fuel);
        let result = catch_unwind(AssertUnwindSafe(|| what(self)));
        self.hosts[at].fuel = crash::arm(u64::MAX);
        match result {
            Ok(done) => done.map(Some),
            Err(end) => self.ended(at, &*end).map(|()| None),
        }
    }

    fn ended(&mut self, at: usize, end: &(dyn Any + Send)) -> Checked {
        if !end.is::<Crash>() {
            return violation!("host {at} panics: {}", message(end));
        }
        if std::mem::take(&mut self.dark) {
            return self.cut_power(at);
        }
        self.report.crashes += 1;
        self.guest.say(|| format!("--- the engine of host {at} ends"));
        self.die(at)
    }

    fn die(&mut self, at: usize) -> Checked {
        if let Err(why) = self.actors.kill(at, None) {
            return violation!("host {at} panics: {why}");
        }
        let process = self.hosts[at].process.take();
        let (sends, arrives) = process
            .as_ref()
            .map_or((false, false), |process| (process.sending.is_some(), process.arriving.is_some()));
        if sends {
            self.wire.close_all(0, self.now);
        }
        if arrives {
            self.wire.close_all(1, self.now);
        }
        let written = [self.rng.percent(50), self.rng.percent(50)];
        let host = &mut self.hosts[at];
        host.outside.disk.orphan();
        host.outside.settle_record(written[0]);
        host.journal.settle(written[1]);
        host.journal.is_note = false;
        if let Some(watch) = &mut host.outside.watch {
            watch.forget();
        }
        drop(process);
        Ok(())
    }

    /// A process that goes on with what is there.
    fn start(&mut self, at: usize) -> Checked {
        let lives = self.rng.pick(&[100, 2000, 20_000, 60_000, 200_000]).unwrap_or(1);
        let crashes = self.trouble.crashes && !self.calm;
        self.hosts[at].fuel = if crashes { 1 + self.rng.below(lives) as u64 } else { u64::MAX };
        self.hosts[at].process = Some(Process::default());
        self.guest.say(|| format!("+++ an engine at host {at}"));
        self.in_host(at, |world| world.open(at)).map(drop)
    }

    /// What a process begins with: what its journal says.
    fn open(&mut self, at: usize) -> Checked {
        if self.hosts[at].owns() {
            self.start_engine(at);
            self.let_guest_run(at)?;
        }
        let Some((parties, record)) = self.hosts[at].journal.read() else { return Ok(()) };
        match record {
            Record::Source(record) => {
                let (machine, effects) = Source::recover(record);
                let sending = Sending::new(machine, effects, Some(record.step));
                self.process(at).sending = Some(sending);
            }
            Record::Destination(record) => {
                let (mut machine, effects) = Destination::recover(record);
                if parties.closed {
                    let message = Message { pledge: record.pledge, word: ToDestination::Closed };
                    machine.handle(DestinationEvent::Message(message));
                }
                let mut arriving = Arriving::new(machine, effects, Some(record.step));
                arriving.noted = parties.closed;
                self.process(at).arriving = Some(arriving);
                if record.step == transfer::commit::DestinationStep::Incoming {
                    self.make_room(at, record.pledge.migration);
                }
            }
        }
        Ok(())
    }

    /// # Panics
    /// It has ended: nothing of it runs then.
    fn process(&mut self, at: usize) -> &mut Process {
        match &mut self.hosts[at].process {
            Some(process) => process,
            None => panic!("a process that has ended does something"),
        }
    }

    fn start_engine(&mut self, at: usize) {
        let (groups, rng) = (1 + self.rng.below(3), Rng::new(self.rng.word()));
        let engine = Engine::start(&mut self.hosts[at].outside, groups, rng, Now(self.now));
        self.process(at).engine = Some(engine);
    }

    /// The guest goes on here, if it does not: with its memory, or by a boot if that is lost.
    fn let_guest_run(&mut self, at: usize) -> Checked {
        if self.vm.place == at && self.vm.running && self.hosts[at].has_memory {
            return Ok(());
        }
        self.guest.ram = Arc::clone(&self.hosts[at].ram);
        if self.hosts[at].has_memory {
            self.guest.say(|| format!("the guest goes on at host {at}"));
        } else {
            self.guest.say(|| format!("the guest boots at host {at}"));
            self.guest.power_loss();
            self.hosts[at].outside.interrupts.fill(false);
            self.vm.in_call = false;
        }
        self.hosts[at].has_memory = true;
        self.hosts[1 - at].has_memory = false;
        (self.vm.place, self.vm.running) = (at, true);
        Ok(())
    }

    fn note_epoch(&mut self, at: usize, epoch: u64) -> Checked {
        if let Some((_, other)) = self.epochs.iter().find(|(e, other)| *e == epoch && *other != at) {
            return violation!("hosts {other} and {at} both own the ssd by epoch {epoch}");
        }
        if !self.epochs.contains(&(epoch, at)) {
            self.epochs.push((epoch, at));
        }
        Ok(())
    }

    fn guest_step(&mut self) -> Checked {
        let place = self.vm.place;
        let serves = self.hosts[place].serves();
        let Host { outside, process, .. } = &mut self.hosts[place];
        let engine = process.as_mut().and_then(|process| process.engine.as_mut()).filter(|_| serves);
        let table = engine.as_ref().map(|engine| Arc::clone(engine.controller.namespaces()));
        let glimpse = engine.zip(table.as_ref()).map(|(engine, table)| {
            let mut csts = [0; 4];
            engine.controller.bar_read(Bar::Registers, reg::CSTS, &mut csts);
            Glimpse { csts: u32::from_le_bytes(csts), quiet: engine.controller.is_quiet(), table }
        });
        self.guest.step(glimpse, &mut outside.interrupts, &outside.doorbells)?;
        self.make_call(place, serves)
    }

    /// The guest's register access reaches the engine; without an answer the next engine gets it again.
    fn make_call(&mut self, place: usize, serves: bool) -> Checked {
        let Some(call) = self.guest.next_call().filter(|_| serves) else { return Ok(()) };
        let now = Now(self.now);
        self.vm.in_call = true;
        let lived = self.in_host(place, |world| {
            let Host { outside, process, .. } = &mut world.hosts[place];
            if let Some(engine) = process.as_mut().and_then(|process| process.engine.as_mut()) {
                match call {
                    Call::Bar(offset, value) => engine.bar_write(offset, &value.to_le_bytes(), now, outside),
                    Call::Config(offset, value) => {
                        engine.config_write(offset, &value.to_le_bytes(), now, outside);
                    }
                }
            }
            // The reply.
            crash::point();
            Ok(())
        })?;
        if lived.is_some() {
            self.vm.in_call = false;
            self.guest.call_answered();
        }
        Ok(())
    }

    fn engine_step(&mut self, at: usize) -> Checked {
        let now = Now(self.now);
        let (what, pick) = (self.rng.below(10), self.rng.below(64));
        self.in_host(at, |world| {
            let Host { outside, process, .. } = &mut world.hosts[at];
            if let Some(engine) = process.as_mut().and_then(|process| process.engine.as_mut()) {
                let group = pick % engine.groups();
                match what {
                    0..4 => engine.group_turn(group, now, outside),
                    4..7 => engine.deliver(group, outside),
                    _ => engine.home_turn(now, true, outside),
                }
            }
            Ok(())
        })
        .map(drop)
    }
}
