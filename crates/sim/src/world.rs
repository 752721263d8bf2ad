//! The world of one seed: a guest, a drive, and one process after another that serves them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::Now;
use memory::{Access, DoorbellPage, Hint, Iova, Mapping, MemoryMap, SharedRegion};
use nvme::controller::Bar;
use nvme::crash::{self, Crash};
use nvme::profile::{Identity, IdentityConfig};
use spec::nvme::registers as reg;
use state::SsdV1;
use state::region::ControllerRegion;
use state::ssd::NamespaceV1;

use crate::disk::{Disk, Manners};
use crate::engine::{Engine, Outside};
use crate::guest::{Call, Glimpse, Guest, Habits, Life, RAM_BYTES, Violation};
use crate::rng::Rng;

/// Bytes of the drive.
const CAPACITY: usize = 4 << 20;
/// Steps of a seed, before everything outstanding must end.
const STEPS: usize = 4000;
/// Steps after that in which engines still end, at most.
const STORM_STEPS: usize = 2000;
/// Steps in which it must.
const DRAIN_STEPS: usize = 40_000;

type Ram = [AtomicU64; (RAM_BYTES / 8) as usize];

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Processes that ended at a point.
    pub crashes: u64,
    /// Points passed.
    pub points: u64,
    /// Times power was cut.
    pub power_losses: u64,
    /// Commands answered.
    pub answers: u64,
}

/// The world.
pub struct World {
    rng: Rng,
    now: u64,
    outside: Outside,
    engine: Option<Engine>,
    guest: Guest,
    report: Report,
    /// No process ends any more.
    calm: bool,
    drained: usize,
    faults: bool,
}

/// Runs a seed. With `trace`, what happened is printed.
///
/// # Errors
/// The promise that was broken.
pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
    let before = crash::passed();
    let mut world = World::new(seed);
    world.guest.trace = trace.then(Vec::new);
    let result = lived(|| world.live());
    world.print();
    match result {
        Ok(()) => {
            let points = crash::passed().wrapping_sub(before);
            Ok(Report { points, answers: world.guest.answers, ..world.report })
        }
        Err(Violation(what)) => Err(Violation(format!("seed {seed}: {what}"))),
    }
}

/// What a world's life came to; a panic is a broken promise, too. No process ends at a point any more.
pub(crate) fn lived<T>(live: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    let result = catch_unwind(AssertUnwindSafe(live));
    crash::arm(u64::MAX);
    result.unwrap_or_else(|panic| Err(Violation(format!("a panic: {}", message(&*panic)))))
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".to_owned())
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
    vec![of(1, 0, 9), of(2, 1, 12)]
}

pub(crate) fn guest_memory() -> (Arc<MemoryMap>, (usize, usize)) {
    let made = SharedRegion::<Ram>::memfd("sim").and_then(|ram| {
        let fd = ram.fd().map(|fd| fd.try_clone_to_owned());
        fd.unwrap_or_else(|| Err(std::io::Error::other("private memory")))
    });
    let mapping = made.map(|fd| Mapping::new(fd, 0, RAM_BYTES, Access::BOTH));
    let Ok(Ok(mapping)) = mapping else { panic!("no memory for a guest") };
    let map = MemoryMap::empty().with(Iova(0), RAM_BYTES, Access::BOTH, Some((mapping, 0)));
    let map = Arc::new(map.unwrap_or_default());
    let len = usize::try_from(RAM_BYTES).unwrap_or(0);
    let whole = map.segment(&mut Hint::default(), Iova(0), len, Access::BOTH);
    let start = whole.map_or(0, |segment| segment.addr().addr());
    (map, (start, len))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let faults = rng.percent(15);
        let habits = Habits {
            overlap: rng.percent(50),
            faults,
            shadow: rng.percent(40),
            manage: !faults && rng.percent(60),
            resets: rng.percent(70),
        };
        let manners = Manners {
            at_once: rng.pick(&[0, 30, 90]).unwrap_or(0),
            full: rng.pick(&[0, 0, 10]).unwrap_or(0),
            faults: if faults { 20 } else { 0 },
            discard: rng.percent(70),
        };
        let (ram, place) = guest_memory();
        let record = SsdV1 {
            capacity_bytes: CAPACITY as u64,
            profile: "godwit-2".to_owned(),
            laid_out: true,
            namespaces: namespaces(),
            created: 2,
            ..SsdV1::default()
        };
        let config = IdentityConfig { serial: "SIM-1", ..IdentityConfig::default() };
        let Ok(identity) = Identity::new(&config) else { panic!("a serial number") };
        let outside = Outside {
            region: Arc::new(SharedRegion::<ControllerRegion>::private()),
            doorbells: Arc::new(SharedRegion::<DoorbellPage>::private()),
            disk: Disk::new(CAPACITY, manners, place, Rng::new(rng.word())),
            record,
            writing: None,
            interrupts: vec![false; 129],
            map: Arc::clone(&ram),
            identity,
            watch: None,
        };
        let shapes: Vec<(u32, u8, u64)> =
            namespaces().iter().map(|ns| (ns.nsid, ns.lba_shift, ns.blocks)).collect();
        let guest = Guest::new(Rng::new(rng.word()), habits, ram, &shapes);
        Self {
            rng,
            now: 1,
            outside,
            engine: None,
            guest,
            report: Report::default(),
            calm: !crash::ENABLED,
            drained: 0,
            faults,
        }
    }

    fn live(&mut self) -> Result<(), Violation> {
        for _ in 0..STEPS {
            self.step()?;
            if self.guest.habits.resets && self.rng.one_in(1500) {
                self.power_loss();
            }
        }
        self.outside.disk.calm();
        self.guest.wind_down();
        // Engines go on to end for a while: with nothing new to come, whatever is not told now is never told.
        let storm = self.rng.below(STORM_STEPS);
        for drained in 0..DRAIN_STEPS {
            self.drained = drained;
            if drained == storm {
                self.calm = true;
                crash::arm(u64::MAX);
            }
            self.step()?;
            if self.is_over() {
                return self.audit();
            }
        }
        let engine = self.engine.as_ref().map_or_else(String::new, Engine::describe);
        Err(Violation(format!(
            "{} commands are never answered, or nobody is told\n{}\n  {engine}\n  at the drive {}, interrupts {:?}",
            self.guest.owed(),
            self.guest.describe(),
            self.outside.disk.in_flight(),
            self.outside.interrupts.iter().position(|line| *line),
        )))
    }

    fn is_over(&self) -> bool {
        let idle = self.guest.owed() == 0 && self.guest.calls.is_empty() && !self.guest.sanitizing;
        let settled = matches!(self.guest.life, Life::Off | Life::Running);
        idle && settled
            && self.engine.is_some()
            && self.outside.disk.in_flight() == 0
            && (self.guest.event_owed.is_none() || self.drained > DRAIN_STEPS / 2)
    }

    fn audit(&mut self) -> Result<(), Violation> {
        self.guest.check_quiet()?;
        if let Some(since) = self.guest.event_owed {
            return Err(Violation(format!("nobody told of the namespace that changed at {since}")));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.now += 1000;
        if self.engine.is_none() {
            if self.calm || self.rng.one_in(3) {
                self.take_over()?;
            } else if self.rng.percent(30) {
                self.outside.disk.step();
            }
        } else if self.rng.percent(60) {
            self.engine_step()?;
        }
        if self.rng.percent(25) {
            self.outside.disk.step();
        }
        if self.rng.percent(40) {
            self.guest_step()?;
        }
        Ok(())
    }

    fn guest_step(&mut self) -> Result<(), Violation> {
        let Self { engine, guest, outside, .. } = self;
        let table = engine.as_ref().map(|engine| Arc::clone(engine.controller.namespaces()));
        let glimpse = engine.as_mut().zip(table.as_ref()).map(|(engine, table)| {
            let mut csts = [0; 4];
            engine.controller.bar_read(Bar::Registers, reg::CSTS, &mut csts);
            Glimpse { csts: u32::from_le_bytes(csts), quiet: engine.controller.is_quiet(), table }
        });
        if guest.life == Life::Off {
            guest.check_quiet()?;
        }
        guest.step(glimpse, &mut outside.interrupts, &outside.doorbells)?;
        self.make_call()
    }

    /// The guest's register access reaches the engine; without an answer the next engine gets it again.
    fn make_call(&mut self) -> Result<(), Violation> {
        let Some(call) = self.guest.next_call().filter(|_| self.engine.is_some()) else { return Ok(()) };
        let now = Now(self.now);
        let lived = self.in_engine(move |engine, outside| {
            match call {
                Call::Bar(offset, value) => engine.bar_write(offset, &value.to_le_bytes(), now, outside),
                Call::Config(offset, value) => {
                    engine.config_write(offset, &value.to_le_bytes(), now, outside);
                }
            }
            // The reply.
            crash::point();
        })?;
        if lived {
            self.guest.say(|| format!("call: {call:?}"));
            self.guest.call_answered();
        }
        Ok(())
    }

    fn engine_step(&mut self) -> Result<(), Violation> {
        let now = Now(self.now);
        let groups = self.engine.as_ref().map_or(1, Engine::groups);
        let at = self.rng.below(groups);
        let record_ok = !(self.faults && self.rng.one_in(20) && !self.calm);
        match self.rng.below(10) {
            0..4 => self.in_engine(|engine, outside| engine.group_turn(at, now, outside)),
            4..7 => self.in_engine(|engine, outside| engine.deliver(at, outside)),
            _ => self.in_engine(|engine, outside| engine.home_turn(now, record_ok, outside)),
        }
        .map(drop)
    }

    /// Something runs in the engine's process; whether that lived through it.
    fn in_engine(&mut self, what: impl FnOnce(&mut Engine, &mut Outside)) -> Result<bool, Violation> {
        let Some(mut engine) = self.engine.take() else { return Ok(false) };
        let result = catch_unwind(AssertUnwindSafe(|| what(&mut engine, &mut self.outside)));
        match result {
            Ok(()) => {
                self.engine = Some(engine);
                Ok(true)
            }
            Err(end) => {
                self.ended(&*end)?;
                drop(engine);
                Ok(false)
            }
        }
    }

    fn ended(&mut self, end: &(dyn Any + Send)) -> Result<(), Violation> {
        if !end.is::<Crash>() {
            return Err(Violation(format!("the engine panics: {}", message(end))));
        }
        let point = crash::passed();
        self.guest.say(|| format!("--- the engine ends at point {point}"));
        self.report.crashes += 1;
        self.outside.disk.orphan();
        let written = self.rng.percent(50);
        self.outside.settle_record(written);
        Ok(())
    }

    fn take_over(&mut self) -> Result<(), Violation> {
        // Powering on and enabling are thousands of stores of zeros: some lives must be long enough to get past them.
        let ready = self.outside.region.registers.csts.load(Ordering::Relaxed) & 1 == 1;
        let lives = match self.rng.below(if ready { 40 } else { 3 }) {
            0 => 1 + self.rng.below(12_000),
            1 | 2 => 1 + self.rng.below(2500),
            3..7 => 1 + self.rng.below(300),
            7..16 => 1 + self.rng.below(100),
            _ => 1 + self.rng.below(24),
        };
        crash::arm(if self.calm { u64::MAX } else { lives as u64 });
        let (groups, rng, now) = (1 + self.rng.below(3), Rng::new(self.rng.word()), Now(self.now));
        let outside = &mut self.outside;
        match catch_unwind(AssertUnwindSafe(|| Engine::start(outside, groups, rng, now))) {
            Ok(engine) => {
                self.guest.say(|| format!("+++ an engine of {groups} groups takes over"));
                self.engine = Some(engine);
                Ok(())
            }
            Err(end) => self.ended(&*end),
        }
    }

    fn power_loss(&mut self) {
        self.guest.say(|| "*** power is cut".to_owned());
        self.report.power_losses += 1;
        crash::arm(u64::MAX);
        self.outside.disk.power_loss();
        self.engine = None;
        let written = self.rng.percent(50);
        self.outside.settle_record(written);
        self.outside.region = Arc::new(SharedRegion::private());
        self.outside.doorbells = Arc::new(SharedRegion::private());
        self.outside.interrupts.fill(false);
        self.guest.power_loss();
    }

    fn print(&mut self) {
        for line in self.guest.trace.take().unwrap_or_default() {
            println!("{line}");
        }
    }
}
