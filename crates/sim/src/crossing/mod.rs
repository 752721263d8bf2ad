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
pub mod watch;
mod wire;

use std::any::Any;
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
use self::watch::Watch;
use self::wire::Wire;
use crate::disk::Manners;
use crate::engine::Engine;
use crate::guest::{Call, Checked, Glimpse, Guest, Habits, Violation, violation};
use crate::rng::Rng;
use crate::world::message;

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
}

/// What goes wrong in a seed.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    cuts: bool,
    crashes: bool,
    power: bool,
    cancels: bool,
    /// A host is lost for good.
    losses: bool,
    /// An operator then takes the ssd at the other, where that loses nothing.
    force: bool,
}

/// Where the guest is.
#[derive(Clone, Copy, Debug)]
struct Vm {
    place: usize,
    running: bool,
    /// A register access was made to an engine that did not live to answer it.
    in_call: bool,
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
    let result = catch_unwind(AssertUnwindSafe(|| world.live()));
    crash::arm(u64::MAX);
    let result = result.unwrap_or_else(|panic| Err(Violation(format!("a panic: {}", message(&*panic)))));
    for line in world.guest.trace.take().unwrap_or_default() {
        println!("{line}");
    }
    match result {
        Ok(()) => {
            let points = crash::passed().wrapping_sub(before);
            let cuts = world.wire.cuts;
            Ok(Report { points, cuts, answers: world.guest.answers, ..world.report })
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
        // Every eighth seed is a crossing with nothing in its way.
        let trouble = if seed.is_multiple_of(8) {
            Trouble::default()
        } else {
            let power = rng.percent(40);
            Trouble {
                cuts: rng.percent(60),
                crashes: crash::ENABLED && rng.percent(60),
                power,
                cancels: rng.percent(40),
                losses: power && rng.percent(25),
                force: rng.percent(50),
            }
        };
        let record = SsdV1 {
            capacity_bytes: CAPACITY as u64,
            profile: "godwit-1".to_owned(),
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

    fn make_trouble(&mut self) -> Checked {
        if self.calm {
            self.take_by_force();
            return Ok(());
        }
        let Trouble { cuts, power, cancels, .. } = self.trouble;
        // The hypervisor that waits at the other side ends.
        if cancels && self.rng.one_in(2500) {
            self.lose_guest(1 - self.vm.place);
        }
        for at in 0..2 {
            if self.hosts[at].doom_at.take_if(|when| *when <= self.now).is_some() {
                self.cut_power(at)?;
            }
        }
        if cuts {
            match self.rng.below(3000) {
                0..6 => self.wire.cut_one(self.now),
                6..8 => {
                    let until = self.now + self.rng.below(600_000_000) as u64;
                    self.wire.stall_one(until);
                }
                8 => {
                    self.guest.say(|| "*** the network is gone for a while".to_owned());
                    let until = self.now + self.rng.below(500_000_000) as u64;
                    self.wire.cut_all(self.now, until);
                }
                _ => {}
            }
        }
        if power && self.rng.one_in(4000) {
            let at = self.rng.below(2);
            self.cut_power(at)?;
        }
        if cancels && self.rng.one_in(1500) {
            self.cancel();
        }
        Ok(())
    }

    /// Before an effect: its process may end here, or its host lose power, once in so many.
    fn point(&mut self, at: usize, once_in: usize) {
        let Trouble { crashes, power, .. } = self.trouble;
        let ends = !self.calm && (crashes || power) && self.rng.one_in(once_in);
        self.dark = ends && power && (!crashes || self.rng.percent(50));
        if ends {
            self.guest.say(|| format!("host {at}: here"));
            crash::arm(1);
        }
        crash::point();
    }

    /// What is likely to be in the way of what follows a record.
    fn trouble_after(&mut self, at: usize, record: Record) {
        use transfer::commit::{DestinationStep, SourceStep};
        if self.calm {
            return;
        }
        let Trouble { power, cancels, .. } = self.trouble;
        let granted = matches!(record, Record::Source(record) if record.step == SourceStep::Granted);
        let step = match record {
            Record::Destination(record) => Some(record.step),
            Record::Source(_) => None,
        };
        if cancels && granted && self.rng.one_in(3) {
            self.lose_guest(1 - at);
        }
        if cancels && step == Some(DestinationStep::Ready) && self.rng.one_in(6) {
            self.guest.say(|| format!("an operator cancels at host {at}"));
            if let Some(arriving) = &mut self.process(at).arriving {
                arriving.inbox.push_back(DestinationEvent::Cancel);
            }
        }
        let owned = step == Some(DestinationStep::Owned);
        let steps = self.rng.pick(&[3, 30, 300]).unwrap_or(1);
        if power && self.rng.one_in(if granted || owned { 3 } else { 8 }) {
            let host = if owned { at } else { self.rng.below(2) };
            self.hosts[host].doom_at = Some(self.now + self.rng.below(steps) as u64 * STEP_NS);
        }
    }

    /// The hypervisor that waits at a host ends, and its device with it.
    fn lose_guest(&mut self, at: usize) {
        let is_idle = self.hosts[at].process.as_ref().is_none_or(|process| process.engine.is_none());
        if self.vm.place != at && self.hosts[at].has_memory && is_idle {
            self.guest.say(|| format!("the hypervisor that waits at host {at} ends"));
            self.hosts[at].has_memory = false;
            self.hosts[at].power_off_controller();
        }
    }

    /// An operator knows that a host is lost for good, and takes the ssd at the other, where all that was answered is there.
    fn take_by_force(&mut self) {
        let Some(lost) = (0..2).find(|at| self.hosts[*at].lost).filter(|_| self.trouble.force) else {
            return;
        };
        let (at, lost_owns) = (1 - lost, self.hosts[lost].owns());
        let came_whole = self.hosts[at].has_memory;
        if !self.rng.one_in(2000) {
            return;
        }
        let Some(process) = &mut self.hosts[at].process else { return };
        if let Some(sending) = &mut process.sending
            && sending.step == Some(transfer::commit::SourceStep::Granted)
            && !lost_owns
        {
            sending.inbox.push_back(transfer::commit::SourceEvent::Force);
            self.forced = true;
        }
        if let Some(arriving) = &mut process.arriving
            && arriving.step == Some(transfer::commit::DestinationStep::Ready)
            && came_whole
        {
            arriving.inbox.push_back(DestinationEvent::Force);
            self.forced = true;
        }
    }

    /// An operator gives a migration up, at either side.
    fn cancel(&mut self) {
        let at = self.rng.below(2);
        let Some(process) = &mut self.hosts[at].process else { return };
        self.guest.say(|| format!("an operator cancels at host {at}"));
        match (&mut process.sending, &mut process.arriving) {
            (Some(sending), _) => sending.inbox.push_back(transfer::commit::SourceEvent::Cancel),
            (_, Some(arriving)) => arriving.inbox.push_back(DestinationEvent::Cancel),
            _ => {}
        }
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

    fn cut_power(&mut self, at: usize) -> Checked {
        self.guest.say(|| format!("*** host {at} loses power"));
        self.report.power_losses += 1;
        self.die(at)?;
        let off = self.rng.below(3000) as u64 * STEP_NS;
        let other_lost = self.hosts[1 - at].lost;
        let host = &mut self.hosts[at];
        host.outside.disk.power_loss();
        host.power_off_controller();
        host.has_memory = false;
        host.off_until = self.now + off;
        host.lost = self.trouble.losses && self.rng.percent(30) && !other_lost;
        if self.vm.place == at {
            self.vm.running = false;
            self.vm.in_call = false;
        }
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
