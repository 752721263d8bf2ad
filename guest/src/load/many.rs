//! The same load on few ssds and on many: what looking at all those queues costs.
//!
//! Reads of 4 KiB come at a steady pace, each to any of all the queues there are, one at a time on a queue and four at a time in all. So with
//! one ssd as with 256 a command comes alone: what differs is only how many queues it may come by. On `null` that is all there is to see; on files it
//! is what a guest sees of it.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;

use super::clock::{Clock, ticks};
use super::engine::{Backing, Engine, Spent, Ssd};
use super::footprint::Resident;
use super::histogram::Histogram;
use super::report::{Report, median};
use super::suite::{Settings, write_file};
use super::workload::Random;
use crate::nvme::{Driver, Sqe, nvm};
use crate::ram::Buffer;

const SSDS: [usize; 4] = [1, 16, 64, 256];
const QUEUES: u16 = 4;
const RAM_BYTES: usize = 1 << 20;
/// Of each ssd, and so much of it is read: 4 KiB times that.
const MEBIBYTES: u64 = 4;
const READS: u64 = MEBIBYTES << 8;
/// Longer than that without a completion is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run gave.
struct Got {
    spent: Spent,
    done: u64,
    /// In ticks, from when a read was due.
    latency: Histogram,
}

/// What the ssds keep their data in.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Reads a second.
    pace: u64,
    files: bool,
}

const KINDS: [Kind; 2] = [
    Kind { name: "many", pace: 200_000, files: false },
    Kind { name: "many-files", pace: 20_000, files: true },
];

/// Each number of ssds by itself, without drives and on files.
///
/// # Errors
/// The engine's or a driver's, or the files'.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    KINDS.iter().try_for_each(|kind| measure_kind(settings, *kind, report))
}

fn measure_kind(settings: &Settings, kind: Kind, report: &mut Report) -> Result<()> {
    let name = |count: usize| format!("vfio-user/{}/{count}-ssds", kind.name);
    if !SSDS.iter().any(|count| settings.wants(&name(*count))) {
        return Ok(());
    }
    let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&settings.directory)?;
    let mut alone = None;
    // What the others are compared with is measured whatever is wanted.
    for count in SSDS.into_iter().filter(|count| *count == 1 || settings.wants(&name(*count))) {
        let ssds = (0..count).map(|index| ssd(kind, directory.path(), index)).collect::<Result<Vec<_>>>()?;
        let engine = Engine::start(&settings.godwitd, settings.engine_cpu, &ssds)?;
        let mut guests = Guests::connect(&engine, &ssds)?;
        let got = (0..settings.runs)
            .map(|run| guests.run(settings, kind.pace, run as u64, || engine.spent()))
            .collect::<Result<Vec<_>>>()?;
        let busy: Vec<_> = got.iter().map(|got| each(got.spent.busy_ns, got.done)).collect();
        let first = *alone.get_or_insert(median(&busy));
        let name = name(count);
        report.add(&name, "engine_busy_ns_per_io", "ns", &busy);
        report.add(
            &name,
            "ratio_to_1_ssd",
            "ratio",
            &busy.iter().map(|busy| busy / first).collect::<Vec<_>>(),
        );
        let quantile = |per_mille| {
            got.iter().map(|got| settings.clock.ns(got.latency.quantile(per_mille))).collect::<Vec<_>>()
        };
        report.add(&name, "p50_ns", "ns", &quantile(500));
        report.add(&name, "p99_ns", "ns", &quantile(990));
        report.add(&name, "rss_bytes", "bytes", &[float(Resident::of(engine.pid())?.total())]);
        report.add(&name, "threads", "1", &[float(threads(engine.pid())?)]);
        eprint!("{}", Report { records: report.records[report.records.len() - 6..].to_vec() }.table());
    }
    Ok(())
}

fn ssd(kind: Kind, directory: &Path, index: usize) -> Result<Ssd> {
    let backing = if kind.files {
        let file = directory.join(format!("{index}.img"));
        if !file.exists() {
            write_file(&file, MEBIBYTES)?;
        }
        Backing::Uring(file)
    } else {
        Backing::Null
    };
    Ok(Ssd { name: format!("many{index}"), mebibytes: MEBIBYTES, backing, disk: false })
}

fn threads(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/task");
    Ok(std::fs::read_dir(&path).context(path)?.count() as u64)
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes of a bench are far below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

fn each(total: u64, ios: u64) -> f64 {
    float(total) / float(ios.max(1))
}

struct Guests {
    drivers: Vec<(Driver, Buffer)>,
    /// Reads under way: whose, on which queue, due when.
    out: Vec<(usize, u16, u64)>,
    /// By guest and queue: one is under way there.
    taken: Vec<bool>,
}

impl Guests {
    fn connect(engine: &Engine, ssds: &[Ssd]) -> Result<Self> {
        let drivers = ssds.iter().map(|ssd| {
            let mut driver = engine.connect(&ssd.name, RAM_BYTES)?;
            let buffer = driver.ram().alloc(4096)?;
            for qid in 1..=QUEUES {
                driver.create_queue_pair(qid, 64)?;
                // So that its memory is there.
                for slba in 0..64 {
                    driver.read(qid, 1, slba, 8, &buffer)?.ok()?;
                }
            }
            Ok((driver, buffer))
        });
        let drivers = drivers.collect::<Result<Vec<_>>>()?;
        let taken = vec![false; drivers.len() * usize::from(QUEUES)];
        Ok(Self { drivers, out: Vec::new(), taken })
    }

    fn run(&mut self, settings: &Settings, pace: u64, run: u64, spent: impl Fn() -> Spent) -> Result<Got> {
        let clock: &Clock = &settings.clock;
        let mut random = Random::new(0x5EED + run);
        let step = clock.ticks(Duration::from_secs(1)) / pace;
        let (mut due, mut done, mut latency) = (ticks(), 0, Histogram::default());
        let (mut before, mut measures) = (spent(), false);
        let mut end = ticks() + clock.ticks(settings.warm_up);
        loop {
            let now = ticks();
            if now >= end && measures {
                break;
            }
            if now >= end {
                (measures, done, latency) = (true, 0, Histogram::default());
                (before, end) = (spent(), now + clock.ticks(settings.measured));
            }
            if now >= due {
                self.send(due, &mut random)?;
                // A client that was put aside does not make up for it.
                due = (due + step).max(now.saturating_sub(step));
            }
            self.take(clock, |ticks| {
                done += 1;
                latency.record(ticks);
            })?;
        }
        let spent = spent().since(&before);
        while !self.out.is_empty() {
            self.take(clock, |_| {})?;
        }
        Ok(Got { spent, done, latency })
    }

    fn send(&mut self, due: u64, random: &mut Random) -> Result<()> {
        // As many as one ssd has queues: when the engine is put aside, no more pile up before many ssds than before one.
        if self.out.len() >= usize::from(QUEUES) {
            return Ok(());
        }
        let at = usize::try_from(random.below(self.taken.len() as u64))?;
        if std::mem::replace(&mut self.taken[at], true) {
            // One at a time: the next one will go elsewhere.
            return Ok(());
        }
        let (guest, qid) = (at / usize::from(QUEUES), u16::try_from(at % usize::from(QUEUES))? + 1);
        let (driver, buffer) = &mut self.drivers[guest];
        driver.submit(
            qid,
            Sqe::new(nvm::READ).nsid(1).prp(buffer.iova(), 0).blocks(random.below(READS) * 8, 7),
        )?;
        self.out.push((guest, qid, due));
        Ok(())
    }

    fn take(&mut self, clock: &Clock, mut done: impl FnMut(u64)) -> Result<()> {
        let mut at = 0;
        while let Some(&(guest, qid, due)) = self.out.get(at) {
            let now = ticks();
            match self.drivers[guest].0.poll(qid)? {
                Some(completion) => {
                    completion.ok()?;
                    done(now.saturating_sub(due));
                    self.taken[guest * usize::from(QUEUES) + usize::from(qid) - 1] = false;
                    self.out.swap_remove(at);
                }
                None => {
                    ensure!(now.saturating_sub(due) < clock.ticks(PATIENCE), "a command does not end");
                    at += 1;
                }
            }
        }
        Ok(())
    }
}
