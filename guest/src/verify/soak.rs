//! A run: the daemon, a load on each ssd, a chat with each device, and the events.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::chat::{self, Heard, Partner};
use super::daemon::{Backing, Daemon, Frontend, Ssd};
use super::events::{Events, Kind, Progress};
use super::load::Load;
use super::plug::{Plan, Plugged, plug};
use super::report::Row;
use crate::load::workload::Random;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What happens.
    pub kind: Kind,
    /// How often.
    pub count: u64,
    /// Of everything.
    pub seed: u64,
    /// The daemon.
    pub godwitd: PathBuf,
    /// Another daemon to upgrade to; a copy of the same one if there is none.
    pub other: Option<PathBuf>,
    /// Where the run's folder is made; it must take O_DIRECT.
    pub directory: PathBuf,
    /// An operation without an answer for so long is lost.
    pub patience: Duration,
    /// Queues of each ssd.
    pub lanes: u16,
    /// Operations of each queue.
    pub depth: usize,
    /// Reactors of the daemon.
    pub reactors: usize,
    /// All ssds in one pool, half of them thin.
    pub pool: bool,
    /// Flip a byte of each data file once, behind the daemon's back: the run must find them.
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
    /// The daemon's last words.
    pub log: String,
    /// Where the run's files are, when kept.
    pub folder: Option<PathBuf>,
}

/// Windows without events, before them.
const CALM_WINDOWS: u64 = 20;
const CALM_WINDOW: Duration = Duration::from_millis(100);
const WARM_UP_NS: u64 = 500_000_000;
/// Every so often all guests let their queues run empty and do nothing, so that an engine, also a new one, sleeps and is woken.
const REST_EVERY_NS: u64 = 250_000_000;
const REST_NS: u64 = 6_000_000;
/// A turn is followed by a nap as long as itself, and not shorter than this: two processors have to carry the guests and the daemon,
/// and where the guests took all of one, a pause would be the scheduler's and not the daemon's.
const NAP_MIN: Duration = Duration::from_micros(20);
/// The load itself was not run for so long.
const OWN_PAUSE_NS: u64 = 5_000_000;

/// Both frontends, each over memory and over a file. More would only starve one another on a machine of two cores.
fn ssds(pool: bool) -> Vec<Ssd> {
    let backing = |own, thin| if pool { Backing::Pool { thin } } else { own };
    let ssd = |name: &str, backing, frontend| Ssd { name: name.to_owned(), mebibytes: 64, backing, frontend };
    vec![
        ssd("nvme-ram", backing(Backing::Ram, true), Frontend::Nvme { lba: 512 }),
        ssd("nvme-file", backing(Backing::Uring, false), Frontend::Nvme { lba: 4096 }),
        ssd("disk-file", backing(Backing::Uring, true), Frontend::Disk { packed: false }),
        ssd("disk-ram", backing(Backing::Ram, false), Frontend::Disk { packed: true }),
    ]
}

/// Runs it all.
///
/// # Errors
/// The run could not be made: no daemon, no connection at the start. What goes wrong later is in what it found.
pub fn run(settings: &Settings) -> Result<Found> {
    let folder = tempfile::Builder::new().prefix("godwit-soak").tempdir_in(&settings.directory)?;
    let ssds = ssds(settings.pool);
    let control = folder.path().join("control.sock");
    let managed = matches!(settings.kind, Kind::Restarts | Kind::Mixed);
    let mut daemon =
        Daemon::start(&settings.godwitd, folder.path(), &ssds, settings.reactors, &control, managed)?;
    let epoch = Instant::now();
    let now = || u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (mut guests, mut talks) = (Vec::new(), Vec::new());
    for (number, ssd) in (1..).zip(&ssds) {
        let seed = of_ssd(settings.seed, number);
        let Settings { lanes, depth, patience, .. } = *settings;
        let plan = Plan { lanes, depth, seed: seed ^ 0x55, patience };
        let Plugged { door, partner, what } = plug(&daemon, ssd, &plan)?;
        let load = Load::new(&ssd.name, number, door, seed, now());
        guests.push(Guest { load, is_disk: matches!(ssd.frontend, Frontend::Disk { .. }), what });
        talks.push((partner, Random::new(seed ^ 0xAA)));
    }
    let events = Events {
        kind: settings.kind,
        keeper: daemon.process(),
        binaries: binaries(settings, &daemon)?,
        control,
        random: Random::new(settings.seed ^ 0xE7E7),
        crash_at: Instant::now(),
    };
    let name = settings.kind.name().to_owned();
    let mut run = Run {
        row: Row { name, seed: settings.seed, ..Row::default() },
        guests,
        faults: Vec::new(),
        gone: false,
        patience: settings.patience,
        breath: Breath::Working { until_ns: REST_EVERY_NS },
        last_turn_ns: now(),
    };
    let files = ssds.iter().filter(|_| settings.sabotage).filter_map(|ssd| ssd.file(folder.path())).collect();
    run.go(events, talks, settings.count, files, &now);
    run.row.seconds = epoch.elapsed().as_secs_f64();
    run.end(&mut daemon);
    let log = daemon.log_tail();
    drop(daemon);
    let folder = settings.keep.then(|| folder.keep());
    Ok(Found { row: run.row, faults: run.faults, log, folder })
}

/// The seed of one ssd.
pub(super) fn of_ssd(seed: u64, number: u64) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(number)
}

/// The binaries that upgrades go to: another one and back.
fn binaries(settings: &Settings, daemon: &Daemon) -> Result<Vec<PathBuf>> {
    if !matches!(settings.kind, Kind::Upgrades | Kind::Mixed) {
        return Ok(Vec::new());
    }
    let other = match &settings.other {
        Some(other) => other.clone(),
        None => {
            let copy = daemon.folder().join("godwitd-copy");
            std::fs::copy(daemon.binary(), &copy)?;
            copy
        }
    };
    Ok(vec![other, daemon.binary().to_owned()])
}

/// One ssd's.
struct Guest {
    load: Load,
    is_disk: bool,
    what: String,
}

/// Who talks, and when.
type Talk = (Box<dyn Partner>, Random);

struct Run {
    row: Row,
    guests: Vec<Guest>,
    faults: Vec<String>,
    /// The device is gone: no use going on.
    gone: bool,
    patience: Duration,
    breath: Breath,
    last_turn_ns: u64,
}

/// Guests work and rest.
#[derive(Clone, Copy)]
enum Breath {
    Working {
        until_ns: u64,
    },
    Draining,
    Resting {
        until_ns: u64,
    },
    /// The run ends: the loads themselves say when.
    Last,
}

/// Of any ssd, and of those that are disks.
#[derive(Clone, Copy, Default)]
struct Longest {
    any: u64,
    disks: u64,
}

impl Run {
    fn go(
        &mut self,
        events: Events,
        talks: Vec<Talk>,
        count: u64,
        sabotage: Vec<PathBuf>,
        now: &dyn Fn() -> u64,
    ) {
        let (progress, quiet) = (Progress::default(), AtomicBool::new(false));
        let heard = std::thread::scope(|scope| {
            let (quiet, talking) = (&quiet, &progress.talking);
            let talk = |(mut partner, random): Talk| {
                scope.spawn(move || chat::run(&mut *partner, random, talking, quiet))
            };
            let talks: Vec<_> = talks.into_iter().map(talk).collect();
            // The first touch of every page is no window.
            self.work(now, || now() > WARM_UP_NS);
            _ = self.window(now());
            for _ in 0..CALM_WINDOWS {
                let end = Instant::now() + CALM_WINDOW;
                self.work(now, || Instant::now() > end);
                let gap = self.window(now());
                self.row.calm.record(gap.any);
            }
            let made = scope.spawn(|| events.run(count, &progress));
            let mut begun = 0;
            while !made.is_finished() && !self.gone {
                self.work(now, || progress.begun.load(Ordering::Acquire) != begun || made.is_finished());
                let gap = self.window(now());
                // The window of an event reaches to the next one.
                if begun > 0 {
                    self.row.blackouts.record(gap.any);
                    self.row.disk_blackouts.record(gap.disks);
                }
                begun = progress.begun.load(Ordering::Acquire);
                self.row.events = begun;
            }
            self.row.met_messages = progress.met.load(Ordering::Relaxed);
            progress.stop.store(true, Ordering::Relaxed);
            match made.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.error(&format!("{error:#}")),
                Err(_) => self.error("the events ended with a panic"),
            }
            self.last_window(now);
            self.finish(sabotage, now);
            quiet.store(true, Ordering::Relaxed);
            talks.into_iter().map(|talk| talk.join().unwrap_or_default()).collect::<Vec<Heard>>()
        });
        for (number, heard) in heard.into_iter().enumerate() {
            let name = self.guests[number].load.auditor.name().to_owned();
            self.row.messages += heard.exchanges;
            let longest = u64::try_from(heard.longest.0.as_nanos()).unwrap_or(u64::MAX);
            if longest > self.row.message_max_ns {
                self.row.message_max_ns = longest;
                self.row.message_max_of = format!("{name}, topic {}", heard.longest.1);
            }
            heard.faults.iter().for_each(|fault| self.error(&format!("chat with {name}: {fault}")));
        }
    }

    fn is_done(&self) -> bool {
        self.guests.iter().all(|guest| guest.load.is_done())
    }

    fn breathe(&mut self, now_ns: u64) {
        self.breath = match self.breath {
            Breath::Working { until_ns } if now_ns > until_ns => {
                self.guests.iter_mut().for_each(|guest| guest.load.drain());
                Breath::Draining
            }
            Breath::Draining if self.is_done() => Breath::Resting { until_ns: now_ns + REST_NS },
            Breath::Resting { until_ns } if now_ns > until_ns => {
                self.guests.iter_mut().for_each(|guest| guest.load.go_on());
                Breath::Working { until_ns: now_ns + REST_EVERY_NS }
            }
            as_before => as_before,
        };
    }

    /// Runs the loads until `end`, or until their last breath.
    fn work(&mut self, now: &dyn Fn() -> u64, end: impl Fn() -> bool) {
        let over = |run: &Self| run.gone || matches!(run.breath, Breath::Last) && run.is_done();
        while !end() && !over(self) {
            let start_ns = now();
            self.breathe(start_ns);
            if start_ns - self.last_turn_ns > OWN_PAUSE_NS {
                self.row.own_pauses += 1;
            }
            for Guest { load, .. } in &mut self.guests {
                if let Err(error) = load.turn(now) {
                    load.auditor.error(&error.to_string());
                    self.gone = true;
                }
                load.give_up(start_ns, self.patience);
                self.gone |= load.auditor.tally().lost > 0;
            }
            self.last_turn_ns = now();
            std::thread::sleep(Duration::from_nanos(self.last_turn_ns - start_ns).max(NAP_MIN));
        }
    }

    /// The longest gaps of the window that ends.
    fn window(&mut self, now_ns: u64) -> Longest {
        let mut longest = Longest::default();
        for Guest { load, is_disk, .. } in &mut self.guests {
            let gap = load.gaps.take(now_ns);
            longest.any = longest.any.max(gap);
            longest.disks = longest.disks.max(if *is_disk { gap } else { 0 });
        }
        longest
    }

    fn last_window(&mut self, now: &dyn Fn() -> u64) {
        let end = Instant::now() + CALM_WINDOW;
        self.work(now, || Instant::now() > end);
        let _of_the_end = self.window(now());
    }

    /// Lets everything be answered, then reads every block.
    fn finish(&mut self, sabotage: Vec<PathBuf>, now: &dyn Fn() -> u64) {
        self.breath = Breath::Last;
        self.guests.iter_mut().for_each(|guest| guest.load.drain());
        self.work(now, || false);
        for file in sabotage {
            if let Err(error) = flip_a_byte(&file) {
                self.error(&format!("sabotage: {error}"));
            }
        }
        self.guests.iter_mut().for_each(|guest| guest.load.sweep());
        self.work(now, || false);
    }

    fn end(&mut self, daemon: &mut Daemon) {
        if !daemon.is_alive() {
            self.error("the daemon is gone");
        } else if !daemon.stop() {
            self.error("the daemon did not stop with status 0");
        }
        for Guest { load, is_disk, what } in &self.guests {
            let tally = load.auditor.tally();
            self.row.tally = self.row.tally.plus(tally);
            self.row.disk_operations += if *is_disk { tally.answered } else { 0 };
            if !tally.is_clean() {
                self.faults.push(what.clone());
            }
            self.faults.extend(load.auditor.faults().iter().cloned());
        }
    }

    fn error(&mut self, what: &str) {
        self.row.tally.errors += 1;
        self.faults.push(what.to_owned());
    }
}

/// Changes one byte of the file's middle.
pub(super) fn flip_a_byte(file: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(file)?;
    let (mut byte, at) = ([0], file.metadata()?.len() / 2 + 100);
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 0x40;
    file.write_all_at(&byte, at)?;
    file.sync_all()
}
