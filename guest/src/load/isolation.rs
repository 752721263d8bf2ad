//! One greedy ssd and seven modest ones on one reactor and one disk, with isolation and without.
//!
//! The greedy guest keeps 128 writes of 128 KiB in flight. A modest one reads 4 KiB at a fixed pace, whatever became of the reads
//! before: a read's time counts from when it was due.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::engine::{Backing, Engine, Ssd};
use super::histogram::Histogram;
use super::report::{Report, median};
use super::suite::{Settings, write_file};
use super::workload::Random;
use crate::nvme::{Driver, Prp, Sqe, nvm};
use crate::ram::Buffer;

const MODEST: usize = 7;
/// Reads of a modest guest a second.
const PACE: u64 = 200;
const GREEDY_DEPTH: usize = 128;
const GREEDY_BYTES: usize = 128 << 10;
const MODEST_DEPTH: usize = 32;
const MODEST_BYTES: usize = 4096;
/// Longer than that without a completion is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a guest got.
#[derive(Default)]
struct Got {
    latency: Histogram,
    /// Commands that were due.
    due: u64,
    done: u64,
}

impl Got {
    fn share(&self) -> f64 {
        float(self.done) / float(self.due.max(1))
    }

    fn p99_ns(&self) -> f64 {
        float(self.latency.quantile(990))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and times of a bench are far below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

/// Runs both, in turn.
///
/// # Errors
/// The engine's or a driver's.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let names = [true, false].map(|on| {
        let word = if on { "on" } else { "off" };
        (on, format!("vfio-user/isolation/{word}"))
    });
    if !names.iter().any(|(_, name)| settings.wants(name)) {
        return Ok(());
    }
    let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&settings.directory)?;
    let mebibytes = (settings.disk_mebibytes / 16).max(16);
    let ssds: Vec<Ssd> = (0..=MODEST)
        .map(|index| {
            let path = directory.path().join(format!("{index}.img"));
            write_file(&path, mebibytes)?;
            Ok(Ssd { name: format!("ssd{index}"), mebibytes, backing: Backing::Uring(path), disk: false })
        })
        .collect::<Result<_>>()?;
    for (isolation, name) in names.iter().filter(|(_, name)| settings.wants(name)) {
        let engine = Engine::start_with(
            &settings.godwitd,
            settings.engine_cpu,
            &ssds,
            &format!("isolation = {isolation}"),
        )?;
        one(settings, report, name, &engine, &ssds)?;
    }
    Ok(())
}

fn one(settings: &Settings, report: &mut Report, name: &str, engine: &Engine, ssds: &[Ssd]) -> Result<()> {
    let mut guests = Vec::new();
    for (index, ssd) in ssds.iter().enumerate() {
        guests.push(Guest::new(engine.socket(&ssd.name).as_path(), index < MODEST, index as u64 + 1)?);
    }
    let (mut shares, mut alone, mut beside, mut ratios, mut written) =
        (vec![], vec![], vec![], vec![], vec![]);
    // Long enough for two looks at how the drive is without the greedy one.
    let (warm_up, time) = (settings.warm_up.max(Duration::from_secs(1)), settings.measured * 2);
    for _ in 0..settings.runs {
        // Each modest guest by itself, and the middle of those.
        let mut own = Vec::new();
        for modest in guests.iter_mut().take(MODEST).step_by(3) {
            own.push(run(std::slice::from_mut(modest), warm_up / 4, time / 3)?[0].p99_ns());
        }
        let got = run(&mut guests, warm_up, time)?;
        let (modest, greedy) = got.split_at(MODEST);
        let p99: Vec<f64> = modest.iter().map(Got::p99_ns).collect();
        alone.push(median(&own));
        beside.push(median(&p99));
        ratios.push(median(&p99) / median(&own));
        shares.push(modest.iter().map(Got::share).fold(f64::MAX, f64::min));
        written.push(float(greedy[0].done * GREEDY_BYTES as u64) / time.as_secs_f64());
    }
    report.add(name, "least_share_of_its_pace", "ratio", &shares);
    report.add(name, "p99_alone_ns", "ns", &alone);
    report.add(name, "p99_beside_greedy_ns", "ns", &beside);
    report.add(name, "p99_ratio", "ratio", &ratios);
    report.add(name, "greedy_bytes", "bytes", &written);
    eprint!("{}", Report { records: report.records[report.records.len() - 5..].to_vec() }.table());
    Ok(())
}

/// A guest with one queue pair.
struct Guest {
    driver: Driver,
    modest: bool,
    bytes: usize,
    buffers: Vec<(Buffer, Prp)>,
    free: Vec<usize>,
    /// By command identifier: its buffer, and when it was due.
    out: std::collections::HashMap<u16, (usize, Instant)>,
    random: Random,
    next: u64,
    places: u64,
    due: Instant,
}

impl Guest {
    fn new(socket: &Path, modest: bool, seed: u64) -> Result<Self> {
        let (depth, bytes) = if modest { (MODEST_DEPTH, MODEST_BYTES) } else { (GREEDY_DEPTH, GREEDY_BYTES) };
        let options = crate::nvme::Options {
            ram_bytes: (depth * (bytes + 8192)).next_multiple_of(1 << 20) + (2 << 20),
            ..Default::default()
        };
        let mut driver = Driver::connect_with(socket, options)?;
        driver.create_queue_pair(1, 256)?;
        let namespace = super::lane::Namespace::identify(&mut driver, 1)?;
        let mut buffers = Vec::new();
        for _ in 0..depth {
            let buffer = driver.ram().alloc(bytes)?;
            let prp = Prp::new(driver.ram(), buffer.iova(), bytes)?;
            buffers.push((buffer, prp));
        }
        let places = namespace.blocks * namespace.lba_bytes as u64 / bytes as u64;
        let (free, out) = ((0..depth).collect(), std::collections::HashMap::new());
        let (random, due) = (Random::new(seed * 7919), Instant::now());
        Ok(Self { driver, modest, bytes, buffers, free, out, random, next: 0, places, due })
    }

    fn take(&mut self, got: &mut Got) -> Result<()> {
        while let Some(done) = self.driver.poll(1)? {
            let Some((buffer, due)) = self.out.remove(&done.cid) else { bail!("unknown cid {}", done.cid) };
            done.ok()?;
            got.done += 1;
            got.latency.record(u64::try_from(due.elapsed().as_nanos())?);
            self.free.push(buffer);
        }
        Ok(())
    }

    fn send(&mut self, now: Instant, got: &mut Got) -> Result<()> {
        let mut placed = false;
        while (!self.modest || self.due <= now)
            && let Some(buffer) = self.free.pop()
        {
            let due = if self.modest { self.due } else { now };
            self.due += Duration::from_nanos(1_000_000_000 / PACE);
            got.due += 1;
            let prp = &self.buffers[buffer].1;
            self.next =
                if self.modest { self.random.below(self.places) } else { (self.next + 1) % self.places };
            let blocks = self.bytes / 512;
            let opcode = if self.modest { nvm::READ } else { nvm::WRITE };
            let sqe = Sqe::new(opcode).nsid(1).prp(prp.prp1, prp.prp2);
            let cid =
                self.driver.place(1, sqe.blocks(self.next * blocks as u64, u16::try_from(blocks - 1)?))?;
            self.out.insert(cid, (buffer, due));
            placed = true;
        }
        if placed {
            self.driver.ring(1)?;
        }
        Ok(())
    }
}

/// All guests at once.
fn run(guests: &mut [Guest], warm_up: Duration, time: Duration) -> Result<Vec<Got>> {
    let begin = Instant::now();
    let mut got: Vec<Got> = guests.iter().map(|_| Got::default()).collect();
    let count = u32::try_from(guests.len())?;
    for (at, guest) in (0..).zip(guests.iter_mut()) {
        // Not all at the same moment.
        guest.due = begin + Duration::from_nanos(1_000_000_000 / PACE) * at / count;
    }
    let mut warm = false;
    while begin.elapsed() < warm_up + time {
        if !warm && begin.elapsed() >= warm_up {
            warm = true;
            got = guests.iter().map(|_| Got::default()).collect();
        }
        for (guest, got) in guests.iter_mut().zip(&mut got) {
            guest.take(got)?;
            guest.send(Instant::now(), got)?;
        }
        std::thread::yield_now();
    }
    let end = Instant::now();
    let mut rest = Got::default();
    while guests.iter().any(|guest| !guest.out.is_empty()) {
        for guest in guests.iter_mut() {
            guest.take(&mut rest)?;
        }
        anyhow::ensure!(end.elapsed() < PATIENCE, "commands do not end");
        std::thread::yield_now();
    }
    for (guest, got) in guests.iter().zip(&mut got).filter(|(guest, _)| guest.modest) {
        // What was due, whether there was room for it or not.
        let late = end.saturating_duration_since(guest.due).as_nanos() * u128::from(PACE) / 1_000_000_000;
        got.due += u64::try_from(late)?;
    }
    Ok(got)
}
