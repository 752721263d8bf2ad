//! The world of a pool: its steward, doors on reactors, guests, and a drive; killed or without power before any effect.
//!
//! ```text
//!  Guests (drivers + auditor) --requests--> Door --requests--> Disk
//!                                            | mail              ^ records, copies, wipes
//!                                            v                   |
//!                                         Steward { Pool } ------+   between its stores the reactors go on
//! ```
//! What is modelled and what is not: README.md.

mod guests;
mod owners;
mod process;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use volume::door::{Allocator, Ticket};
use volume::steward::{Next, Settling, Steward};
use volume::{
    Entry, FormatOptions, HostId, OpenOptions, Pool, PoolError, Provisioning, VolumeId, VolumeSpec,
};

use self::guests::{EXTENT_SECTORS, Face, Guests};
use self::owners::{Owners, Standing};
use self::process::{Died, Drive, Outside, is_blank};
use crate::disk::{Disk, Manners, SECTOR};
use crate::guest::{Checked, Violation};
use crate::ledger::Content;
use crate::rng::Rng;

/// Steps of a seed, before all that is outstanding must end.
const STEPS: usize = 3000;
/// Steps in which it must.
const DRAIN_STEPS: usize = 20_000;
const EXTENT_BYTES: u64 = EXTENT_SECTORS * SECTOR as u64;
/// What the layout needs before the first extent of a small pool.
const LAYOUT_BYTES: u64 = 10 << 20;
const HOST: HostId = HostId([7; 16]);

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Ends of the process, or of the power, before an effect.
    pub crashes: u64,
    /// Effects.
    pub points: u64,
    /// Answers that guests got.
    pub answers: u64,
    /// Volumes that were made, snapshots and clones too.
    pub volumes: u64,
    /// Steps of volumes' migrations.
    pub steps: u64,
}

/// What doors ask.
#[derive(Debug)]
enum Mail {
    Own(VolumeId, u32),
    Release(VolumeId, (u32, u32), Arc<Ticket>),
}

#[derive(Default)]
struct Mailbox(Mutex<Vec<Mail>>);

impl Mailbox {
    fn put(&self, mail: Mail) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
    }
}

impl Allocator for Mailbox {
    fn own(&self, volume: VolumeId, extent: u32) {
        self.put(Mail::Own(volume, extent));
    }

    fn release(&self, volume: VolumeId, extents: (u32, u32), ticket: Arc<Ticket>) {
        self.put(Mail::Release(volume, extents, ticket));
    }
}

/// What the pool was asked and has not answered: whether it happened is seen after the crash.
#[derive(Clone, Debug)]
enum Asked {
    Create(Face),
    Delete(u32),
    Grow(u32, u64),
    Derive { from: u32, since: u64, face: Face },
    Step(u32, Standing),
    Vacate(u32),
}

struct World {
    outside: Rc<Outside>,
    steward: Option<Steward<Drive>>,
    mailbox: Arc<Mailbox>,
    rng: Rng,
    asked: Option<Asked>,
    owners: Owners,
    /// A snapshot or clone that is made and not yet answered.
    settling: Option<Settling>,
    /// Number of the next volume.
    next: u32,
    nonce: u64,
    report: Report,
    trace: bool,
}

/// Runs a seed.
///
/// # Errors
/// A promise was broken: which, and what was seen.
pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
    let mut world = World::new(seed, trace);
    let result = catch_unwind(AssertUnwindSafe(|| world.live()));
    world.outside.arm(u64::MAX);
    let result = result.unwrap_or_else(|panic| Err(Violation(format!("a panic: {}", message(&*panic)))));
    match result {
        Ok(()) => {
            let (points, answers) = (world.outside.points.get(), world.outside.guests.borrow().answers);
            Ok(Report { points, answers, ..world.report })
        }
        Err(Violation(what)) => Err(Violation(format!("pool seed {seed}: {what}"))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".to_owned())
}

fn broken<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x706f_6f6c);
        // Some are large enough that extents are given ahead.
        let extents = 6 + u64::from(rng.below32(8)) + if rng.one_in(4) { 32 } else { 0 };
        let capacity = usize::try_from(LAYOUT_BYTES + extents * EXTENT_BYTES).unwrap_or(0);
        let manners = Manners { at_once: rng.below(40), full: rng.below(10), faults: 2, discard: true };
        let mut disk = Disk::new(capacity, manners, (0, 0), Rng::new(rng.word()));
        let used = rng.one_in(4);
        if used {
            fill(&mut disk, extents);
        }
        let mut guests = Guests::new(Rng::new(rng.word()));
        guests.trace = trace;
        let outside = Outside::new(disk, guests, Rng::new(rng.word()));
        let options = FormatOptions {
            uuid: [1; 16],
            name: "tank".to_owned(),
            host: HOST,
            extent_bytes: Some(EXTENT_BYTES),
            zeroed: !used,
            overwrite: false,
        };
        let formatted = Pool::format(&Drive, &options);
        assert!(formatted.is_ok(), "{formatted:?}");
        Self {
            outside,
            steward: None,
            mailbox: Arc::default(),
            rng,
            asked: None,
            owners: Owners::default(),
            settling: None,
            next: 1,
            nonce: 1,
            report: Report::default(),
            trace,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    fn live(&mut self) -> Checked {
        self.rise()?;
        for _ in 0..STEPS {
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            match step {
                Ok(checked) => checked?,
                Err(panic) if panic.is::<Died>() => self.fall()?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            self.verdict()?;
        }
        self.outside.arm(u64::MAX);
        self.end()
    }

    fn verdict(&self) -> Checked {
        match &self.outside.guests.borrow().violation {
            Some(what) => broken(what.clone()),
            None => Ok(()),
        }
    }

    /// The process ended, or the host with it; another takes over.
    fn fall(&mut self) -> Checked {
        self.report.crashes += 1;
        let at_answer = self.outside.guests.borrow_mut().tick();
        // What a snapshot under way may contain is settled before it is forgotten what was durable. Its record covers what was
        // answered before it was asked for; one whose record is not known to be durable is as its source is after the crash.
        if let Some(Asked::Derive { from, since, .. }) = self.asked {
            let ledger = &mut self.outside.guests.borrow_mut().ledger;
            match self.settling {
                Some(_) => ledger.derive(from, self.next, since, at_answer),
                None => ledger.share(from, self.next),
            }
        }
        self.outside.guests.borrow_mut().deriving = None;
        self.steward = None;
        self.settling = None;
        self.mailbox = Arc::default();
        self.outside.guests.borrow_mut().orphan();
        let power = self.rng.percent(50);
        self.say(|| format!("-- {} while {:?}", if power { "power lost" } else { "killed" }, self.asked));
        self.outside.disk.borrow_mut().orphan();
        self.lose(power);
        self.rise()
    }

    fn lose(&mut self, power: bool) {
        if power {
            self.outside.disk.borrow_mut().power_loss();
            self.outside.guests.borrow_mut().power_loss();
        } else {
            self.outside.disk.borrow_mut().fence();
        }
    }

    /// Opens the pool, however often it takes.
    fn rise(&mut self) -> Checked {
        loop {
            let fuse = if self.rng.one_in(6) { self.rng.below(9) } else { usize::MAX };
            self.outside.arm(u64::try_from(fuse).unwrap_or(u64::MAX));
            self.nonce += 1;
            let options = OpenOptions { host: HOST, nonce: self.nonce, take_over: false };
            match catch_unwind(AssertUnwindSafe(|| Pool::open(Box::new(Drive), &options))) {
                Ok(Ok(pool)) => {
                    self.outside.arm(u64::MAX);
                    self.reconcile(&pool)?;
                    self.steward = Some(Steward::new(pool, Drive));
                    break;
                }
                Ok(Err(error)) => return broken(format!("the pool does not open: {error}")),
                Err(panic) if panic.is::<Died>() => {
                    self.report.crashes += 1;
                    let power = self.rng.percent(50);
                    self.lose(power);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let fuse = if self.rng.one_in(3) { self.rng.below(12) } else { self.rng.below(90) };
        self.outside.arm(u64::try_from(fuse).unwrap_or(u64::MAX));
        Ok(())
    }

    /// What is there after a crash is what was there before, and what was asked for or not.
    fn reconcile(&mut self, pool: &Pool) -> Checked {
        let (asked, infos) = (self.asked.take(), pool.volumes());
        let mut guests = self.outside.guests.borrow_mut();
        for info in &infos {
            let id = u32::try_from(info.id.0).unwrap_or(u32::MAX);
            let sectors = info.size_bytes / SECTOR as u64;
            match (guests.volumes.get_mut(&id), &asked) {
                (Some(face), _) if face.sectors == sectors => {}
                (Some(face), Some(Asked::Grow(grown, to))) if *grown == id && *to == sectors => {
                    face.sectors = sectors;
                }
                (None, Some(Asked::Create(face) | Asked::Derive { face, .. })) if id == self.next => {
                    guests.volumes.insert(id, *face);
                    self.next += 1;
                    self.report.volumes += 1;
                }
                (had, asked) => {
                    return broken(format!("after a crash there is {info:?}, had {had:?}, asked {asked:?}"));
                }
            }
            self.owners.reconcile(id, info, pool, asked.as_ref())?;
            if matches!(asked, Some(Asked::Vacate(left)) if left == id) && info.mapped_extents == 0 {
                let at = guests.tick();
                guests.ledger.reset(id, 0, Content::Zero, at);
            }
        }
        let there = |id: u32| infos.iter().any(|info| info.id.0 == u64::from(id));
        let gone: Vec<u32> = guests.volumes.keys().copied().filter(|id| !there(*id)).collect();
        match (gone.as_slice(), &asked) {
            ([], _) => {}
            ([one], Some(Asked::Delete(id))) if one == id => {
                guests.volumes.remove(one);
                self.owners.forget(*one);
            }
            (gone, asked) => return broken(format!("volumes {gone:?} are lost; asked {asked:?}")),
        }
        let next = self.next;
        if !guests.volumes.contains_key(&next) {
            // It did not happen; the number is free for another.
            guests.ledger.reset(next, 0, Content::Zero, 0);
        }
        Ok(())
    }

    fn step(&mut self) -> Checked {
        match self.rng.below(100) {
            0..=59 => {
                let outside = Rc::clone(&self.outside);
                outside.guests.borrow_mut().turn(&outside.disk);
            }
            60..=84 => _ = self.turn(),
            85..=93 => self.administer()?,
            _ => self.serve_some(),
        }
        self.serve_left_over();
        Ok(())
    }

    /// A turn of the pool's thread.
    fn turn(&mut self) -> Next {
        let mail = std::mem::take(&mut *self.mailbox.0.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(steward) = &mut self.steward else { return Next::Rest };
        for mail in mail {
            if self.trace {
                println!("{mail:?}");
            }
            match mail {
                Mail::Own(volume, extent) => steward.own(volume, extent),
                Mail::Release(volume, extents, ticket) => {
                    steward.release(volume, extents, &ticket);
                }
            }
        }
        let next = steward.turn();
        if self.trace {
            println!("a turn of the steward: {:?}", steward.pool().info());
        }
        for news in steward.take_news() {
            if self.trace {
                println!("{news:?}");
            }
        }
        if let Some(settling) = self.settling
            && steward.is_settled(settling)
            && let Some(Asked::Derive { from, since, face }) = self.asked.take()
        {
            self.settling = None;
            let mut guests = self.outside.guests.borrow_mut();
            let at = guests.tick();
            guests.deriving = None;
            guests.ledger.derive(from, self.next, since, at);
            guests.volumes.insert(self.next, face);
            self.next += 1;
            self.report.volumes += 1;
        }
        next
    }

    /// Somebody asks something of the pool.
    fn administer(&mut self) -> Checked {
        if self.settling.is_some() {
            return Ok(());
        }
        let volumes: Vec<u32> = self.outside.guests.borrow().volumes.keys().copied().collect();
        let any = self.rng.pick(&volumes);
        let result = match (self.rng.below(17), any) {
            (0..=2, _) | (_, None) => self.create(),
            (3..=5, Some(id)) => self.delete(id),
            (6, Some(id)) => self.grow(id),
            (7..=9, Some(id)) => self.derive(id),
            (12..=15, Some(id)) => self.pass(id),
            (16, Some(id)) => self.vacate(id),
            _ => self.steward.as_mut().map_or(Ok(()), |steward| steward.retry_quarantined().map(|_| ())),
        };
        if let Some(steward) = &mut self.steward {
            steward.look_again();
        }
        self.say(|| format!("asked {:?}, next {}: {result:?}", self.asked, self.next));
        match result {
            Ok(()) => Ok(()),
            Err(
                PoolError::NoSpace { .. }
                | PoolError::ReadOnly(_)
                | PoolError::Invalid(_)
                | PoolError::NameTaken(_)
                | PoolError::Passage { .. }
                | PoolError::Open(_),
            ) => {
                self.asked = None;
                self.outside.guests.borrow_mut().deriving = None;
                Ok(())
            }
            Err(error) => broken(format!("{:?}: {error}", self.asked)),
        }
    }

    fn create(&mut self) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let extents =
            1 + u64::from(if self.rng.one_in(4) { self.rng.below32(12) } else { self.rng.below32(4) });
        let cut = if self.rng.one_in(3) { 8 * (1 + u64::from(self.rng.below32(200))) } else { 0 };
        let face =
            Face { sectors: extents * EXTENT_SECTORS - cut, thin: !self.rng.one_in(3), read_only: false };
        self.asked = Some(Asked::Create(face));
        let id = steward.create(&VolumeSpec {
            name: format!("v{}", self.next),
            uuid: [2; 16],
            size_bytes: face.sectors * SECTOR as u64,
            provisioning: if face.thin { Provisioning::Thin } else { Provisioning::Full },
            attributes: Vec::new(),
        })?;
        assert_eq!(id.0, u64::from(self.next));
        self.asked = None;
        self.outside.guests.borrow_mut().volumes.insert(self.next, face);
        self.next += 1;
        self.report.volumes += 1;
        Ok(())
    }

    fn delete(&mut self, id: u32) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        if !self.outside.guests.borrow_mut().leave(id) {
            return Ok(());
        }
        self.asked = Some(Asked::Delete(id));
        steward.delete(VolumeId(u64::from(id)))?;
        self.asked = None;
        self.owners.forget(id);
        self.outside.guests.borrow_mut().volumes.remove(&id);
        Ok(())
    }

    fn grow(&mut self, id: u32) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let Some(face) = self.outside.guests.borrow().volumes.get(&id).copied() else { return Ok(()) };
        let sectors = (face.sectors + 8 * u64::from(self.rng.below32(300))).min(6 * EXTENT_SECTORS);
        self.asked = Some(Asked::Grow(id, sectors));
        steward.grow(VolumeId(u64::from(id)), sectors * SECTOR as u64)?;
        self.asked = None;
        if let Some(face) = self.outside.guests.borrow_mut().volumes.get_mut(&id) {
            face.sectors = sectors;
        }
        Ok(())
    }

    fn derive(&mut self, from: u32) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let Some(face) = self.outside.guests.borrow().volumes.get(&from).copied() else { return Ok(()) };
        let face = Face { thin: true, read_only: self.rng.percent(50), ..face };
        let since = self.outside.guests.borrow_mut().tick();
        self.asked = Some(Asked::Derive { from, since, face });
        self.outside.guests.borrow_mut().deriving = Some(since);
        let (name, source) = (format!("v{}", self.next), VolumeId(u64::from(from)));
        let (id, settling) = match face.read_only {
            true => steward.snapshot(source, &name, [3; 16])?,
            false => steward.clone_volume(source, &name, [3; 16])?,
        };
        assert_eq!(id.0, u64::from(self.next));
        self.settling = Some(settling);
        Ok(())
    }

    /// A reactor begins to serve a volume.
    fn serve_some(&mut self) {
        let volumes: Vec<u32> = self.outside.guests.borrow().volumes.keys().copied().collect();
        if let Some(id) = self.rng.pick(&volumes)
            && self.outside.guests.borrow().seats_of(id) < 2
        {
            self.serve(id);
        }
    }

    fn serve_left_over(&mut self) {
        let left = self.outside.guests.borrow().left_over();
        for id in left {
            if self.outside.guests.borrow().seats_of(id) == 0 {
                self.serve(id);
            }
        }
        self.outside.guests.borrow_mut().submit_again();
    }

    fn serve(&mut self, id: u32) {
        let Some(steward) = &mut self.steward else { return };
        if let Ok(gate) = steward.serve(VolumeId(u64::from(id))) {
            if self.owners.is_away(id) {
                let what = format!("volume {id} is opened, and its owner is elsewhere");
                self.outside.guests.borrow_mut().violation.get_or_insert(what);
            }
            let allocator = Arc::clone(&self.mailbox) as Arc<dyn Allocator>;
            self.outside.guests.borrow_mut().sit(id, &gate, allocator);
        }
    }

    /// All that is outstanding ends; then every byte of the pool is looked at.
    fn end(&mut self) -> Checked {
        self.outside.calm();
        self.outside.guests.borrow_mut().quiet = true;
        for step in 0..DRAIN_STEPS {
            let next = self.turn();
            self.serve_left_over();
            let outside = Rc::clone(&self.outside);
            outside.guests.borrow_mut().turn(&outside.disk);
            self.verdict()?;
            if step == DRAIN_STEPS / 4
                && let Some(steward) = &mut self.steward
            {
                // What is left waits for space.
                steward.refuse_parked();
            }
            let nothing = self.outside.guests.borrow().outstanding() == 0 && self.settling.is_none();
            if nothing && next == Next::Rest {
                return self.audit();
            }
        }
        let left = self.outside.guests.borrow().outstanding();
        broken(format!("{left} commands are never answered, or the pool's thread never rests"))
    }

    fn audit(&mut self) -> Checked {
        self.bring_home()?;
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let infos = steward.pool().volumes();
        for info in &infos {
            let gate = steward.serve(info.id).map_err(|error| Violation(error.to_string()))?;
            let map = gate.map();
            let zeros = vec![0; usize::try_from(EXTENT_BYTES).unwrap_or(0)];
            for extent in 0..map.extents() {
                let disk = self.outside.disk.borrow();
                let bytes = match map.entry(extent) {
                    Entry::Unmapped => &zeros,
                    Entry::Mapped { physical } | Entry::Shared { physical } => {
                        disk.look(map.drive_offset(physical), EXTENT_BYTES)
                    }
                };
                self.outside.guests.borrow_mut().audit(info.id, extent, bytes);
            }
        }
        self.verdict()?;
        self.probe()
    }

    /// Whoever gets what is free reads zeros.
    fn probe(&mut self) -> Checked {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let free = steward.pool().info().free;
        if free == 0 {
            return Ok(());
        }
        let spec = VolumeSpec {
            name: "probe".to_owned(),
            uuid: [9; 16],
            size_bytes: free * EXTENT_BYTES,
            provisioning: Provisioning::Full,
            attributes: Vec::new(),
        };
        let map = steward.create(&spec).and_then(|id| steward.serve(id)).map(|gate| gate.map());
        let map = map.map_err(|error| Violation(format!("what is free cannot be had: {error}")))?;
        for extent in 0..map.extents() {
            let Entry::Mapped { physical } = map.entry(extent) else {
                return broken("a new full volume has an extent that is not its own");
            };
            let disk = self.outside.disk.borrow();
            if !is_blank(disk.look(map.drive_offset(physical), EXTENT_BYTES)) {
                return broken(format!("extent {physical} is free, and a former owner's data are in it"));
            }
        }
        Ok(())
    }
}

/// A drive that somebody had before.
fn fill(disk: &mut Disk, extents: u64) {
    let mut sector = [0; SECTOR];
    for extent in 0..extents {
        for at in (0..EXTENT_SECTORS).filter(|at| guests::is_hot(*at)) {
            Content::Stamp(u64::MAX - extent, at).fill(&mut sector);
            let place = LAYOUT_BYTES + extent * EXTENT_BYTES + at * SECTOR as u64;
            disk.write_now(place, SECTOR as u64, Some(&sector));
        }
    }
    disk.flush_now();
}
