//! The list of benches.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::clock::Clock;
use super::copy::Copier;
use super::engine::{Backing, Engine, Ssd};
use super::fio::{self, Raw};
use super::lane::{Lane, Outcome, Plan};
use super::report::{Report, median};
use super::workload::{Direction, Workload};
use super::{footprint, idle};
use crate::nvme::Driver;

/// How everything is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon.
    pub godwitd: PathBuf,
    /// Only benches whose name contains this.
    pub only: Option<String>,
    /// Short runs.
    pub quick: bool,
    /// Runs of each bench.
    pub runs: usize,
    /// Measured time of a run.
    pub measured: Duration,
    /// Time before it.
    pub warm_up: Duration,
    /// See [`Plan::batch`].
    pub batch: usize,
    /// Core of the engine's reactor, and of fio.
    pub engine_cpu: usize,
    /// Where the file of the uring benches is made.
    pub directory: PathBuf,
    /// Its size, and that of the RAM disk.
    pub disk_mebibytes: u64,
    /// The time stamp counter.
    pub clock: Clock,
}

impl Settings {
    /// True when `--only` lets this bench through.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    pub(super) fn plan(&self, workload: Workload, run: usize) -> Plan {
        let seed = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(run as u64 + 1);
        Plan { workload, warm_up: self.warm_up, measured: self.measured, batch: self.batch, seed }
    }

    /// As [`Self::plan`]; fio, beside which a drive is measured, replaces each command when it ends.
    pub(super) fn plan_beside_fio(&self, workload: Workload, run: usize) -> Plan {
        Plan { batch: self.batch.max(1), ..self.plan(workload, run) }
    }

    pub(super) fn wanted(
        &self,
        backing: &str,
        loads: impl Iterator<Item = Workload>,
    ) -> Vec<(String, Workload)> {
        self.wanted_at("vfio-user", backing, loads)
    }

    /// The benches of a door that `--only` lets through.
    pub(super) fn wanted_at(
        &self,
        door: &str,
        backing: &str,
        loads: impl Iterator<Item = Workload>,
    ) -> Vec<(String, Workload)> {
        loads
            .map(|load| (format!("{door}/{backing}/{load}"), load))
            .filter(|(name, _)| self.wants(name))
            .collect()
    }
}

/// Room for 128 buffers of 128 KiB and the rings.
pub(super) const GUEST_RAM_BYTES: usize = 48 << 20;
const DEPTHS: [usize; 3] = [1, 32, 128];
const DIRECTIONS: [Direction; 2] = [Direction::Read, Direction::Write];

pub(super) fn random_loads() -> impl Iterator<Item = Workload> {
    DIRECTIONS.into_iter().flat_map(|direction| DEPTHS.map(|depth| Workload::random(direction, depth)))
}

fn sequential_loads() -> impl Iterator<Item = Workload> {
    DIRECTIONS
        .into_iter()
        .flat_map(|direction| [1, 8, 32].map(|depth| Workload::sequential(direction, depth)))
}

/// Runs all that is wanted.
///
/// # Errors
/// The first bench that cannot be run.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    null(settings, report).context("null")?;
    ram(settings, report).context("ram")?;
    uring(settings, report).context("uring")?;
    super::disks::run(settings, report).context("vhost-user")?;
    footprint::measure(settings, report).context("memory")?;
    idle::measure(settings, report).context("idle")?;
    super::many::measure(settings, report).context("many")?;
    super::pools::measure(settings, report).context("pool")?;
    super::isolation::measure(settings, report).context("isolation")?;
    super::moves::measure(settings, report).context("migration")
}

fn null(settings: &Settings, report: &mut Report) -> Result<()> {
    let loads = settings.wanted("null", random_loads());
    if loads.is_empty() {
        return Ok(());
    }
    let (engine, mut driver) = serve(settings, Backing::Null)?;
    for (name, load) in loads {
        let outcomes = (0..settings.runs)
            .map(|run| one(settings, &engine, &mut driver, &settings.plan(load, run)))
            .collect::<Result<Vec<_>>>()?;
        summarise(settings, report, &name, &outcomes);
    }
    Ok(())
}

/// A RAM disk, with the null engine and the bare copy in turn, for the ratio to that.
fn ram(settings: &Settings, report: &mut Report) -> Result<()> {
    let loads = settings.wanted("ram", random_loads());
    if loads.is_empty() {
        return Ok(());
    }
    let (engine, mut driver) = serve(settings, Backing::Ram)?;
    fill(&mut driver, settings)?;
    let (null_engine, mut null_driver) = serve(settings, Backing::Null)?;
    let disk_bytes = usize::try_from(settings.disk_mebibytes << 20)?;
    for (name, load) in loads {
        let mut copier = Copier::new(disk_bytes, load.depth)?;
        let (mut outcomes, mut copies, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..settings.runs {
            let plan = settings.plan(load, run);
            let outcome = one(settings, &engine, &mut driver, &plan)?;
            let null = one(settings, &null_engine, &mut null_driver, &plan)?;
            let copy = copier.ns_per_copy(load.direction, settings.measured / 2);
            ratios.push(busy(&outcome) / (copy + busy(&null)));
            copies.push(copy);
            outcomes.push(outcome);
        }
        summarise(settings, report, &name, &outcomes);
        report.add(&name, "copy_ns", "ns", &copies);
        report.add(&name, "ratio_to_copy_and_null", "ratio", &ratios);
    }
    Ok(())
}

/// A file, with fio on the same file in turn.
fn uring(settings: &Settings, report: &mut Report) -> Result<()> {
    let loads = settings.wanted("uring", random_loads().chain(sequential_loads()));
    if loads.is_empty() {
        return Ok(());
    }
    fio::ensure_installed()?;
    let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&settings.directory)?;
    let file = directory.path().join("disk.img");
    write_file(&file, settings.disk_mebibytes)?;
    let (engine, mut driver) = serve(settings, Backing::Uring(file.clone()))?;
    for (name, load) in loads {
        let (mut outcomes, mut raws) = (Vec::new(), Vec::new());
        for run in 0..settings.runs {
            outcomes.push(one(settings, &engine, &mut driver, &settings.plan_beside_fio(load, run))?);
            let size_bytes = settings.disk_mebibytes << 20;
            let (warm_up, time) = (settings.warm_up, settings.measured);
            raws.push(fio::run(&file, size_bytes, &load, settings.engine_cpu, warm_up, time)?);
        }
        summarise(settings, report, &name, &outcomes);
        compare(settings, report, &name, &load, &outcomes, &raws);
    }
    Ok(())
}

pub(super) fn compare(
    settings: &Settings,
    report: &mut Report,
    name: &str,
    load: &Workload,
    outcomes: &[Outcome],
    raws: &[Raw],
) {
    let pairs = || outcomes.iter().zip(raws);
    let raw_iops: Vec<_> = raws.iter().map(|raw| raw.iops).collect();
    // The disk drifts: medians of either side, measured in turn, are steadier than single pairs.
    let ratio = median(&outcomes.iter().map(Outcome::iops).collect::<Vec<_>>()) / median(&raw_iops);
    report.add(name, "raw_iops", "1/s", &raw_iops);
    report.add(name, "raw_p99_ns", "ns", &raws.iter().map(|raw| raw.p99_ns).collect::<Vec<_>>());
    report.add(name, "ratio_to_raw", "ratio", &vec![ratio; raws.len()]);
    if load.depth == 1 {
        let added: Vec<_> = pairs()
            .map(|(outcome, raw)| settings.clock.ns(1) * outcome.latency.mean() - raw.mean_ns)
            .collect();
        report.add(name, "added_latency_ns", "ns", &added);
        let added: Vec<_> = pairs()
            .map(|(outcome, raw)| settings.clock.ns(outcome.latency.quantile(500)) - raw.p50_ns)
            .collect();
        report.add(name, "added_p50_ns", "ns", &added);
    }
}

fn serve(settings: &Settings, backing: Backing) -> Result<(Engine, Driver)> {
    let ssd = Ssd { name: "bench".into(), mebibytes: settings.disk_mebibytes, backing, disk: false };
    let engine = Engine::start(&settings.godwitd, settings.engine_cpu, std::slice::from_ref(&ssd))?;
    let driver = engine.connect(&ssd.name, GUEST_RAM_BYTES)?;
    Ok((engine, driver))
}

fn one(settings: &Settings, engine: &Engine, driver: &mut Driver, plan: &Plan) -> Result<Outcome> {
    let mut lane = Lane::new(driver, 1, &plan.workload)?;
    let outcome = lane.run(driver, &settings.clock, plan, || engine.spent());
    lane.close(driver)?;
    Ok(outcome?)
}

/// Writes every block once, so that no first touch is measured.
fn fill(driver: &mut Driver, settings: &Settings) -> Result<()> {
    driver.create_queue_pair(1, 64)?;
    let namespace = super::lane::Namespace::identify(driver, 1)?;
    let buffer = driver.ram().alloc(128 << 10)?;
    buffer.fill(0x5A);
    let blocks = u32::try_from(buffer.len() / namespace.lba_bytes)?;
    for slba in (0..settings.disk_mebibytes * 8).map(|index| index * u64::from(blocks)) {
        driver.write(1, 1, slba, blocks, &buffer)?.ok()?;
    }
    Ok(driver.delete_queue_pair(1)?)
}

/// A file whose every block is written: no holes and no unwritten extents.
pub(super) fn write_file(path: &Path, mebibytes: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let block: Vec<u8> =
        (0..1_u32 << 20).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for _ in 0..mebibytes {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^53")]
fn each(total: u64, ios: u64) -> f64 {
    total as f64 / ios.max(1) as f64
}

pub(super) fn busy(outcome: &Outcome) -> f64 {
    each(outcome.spent.busy_ns, outcome.ios)
}

pub(super) fn summarise(settings: &Settings, report: &mut Report, name: &str, outcomes: &[Outcome]) {
    let mut add = |metric, unit, value: &dyn Fn(&Outcome) -> f64| {
        report.add(name, metric, unit, &outcomes.iter().map(value).collect::<Vec<_>>());
    };
    let clock = settings.clock;
    add("iops", "1/s", &Outcome::iops);
    add("mean_ns", "ns", &|outcome| outcome.latency.mean() * clock.ns(1));
    add("p50_ns", "ns", &|outcome| clock.ns(outcome.latency.quantile(500)));
    add("p99_ns", "ns", &|outcome| clock.ns(outcome.latency.quantile(990)));
    add("p999_ns", "ns", &|outcome| clock.ns(outcome.latency.quantile(999)));
    add("engine_busy_ns_per_io", "ns", &busy);
    add("engine_cpu_ns_per_io", "ns", &|outcome| each(outcome.spent.cpu_ns, outcome.ios));
    add("client_busy_percent", "percent", &|outcome| {
        100.0 - clock.ns(outcome.waited) / outcome.elapsed_ns * 100.0
    });
    if let Some(last) = report.records.len().checked_sub(8).map(|from| &report.records[from..]) {
        let line = Report { records: last.to_vec() }.table();
        eprint!("{line}");
    }
}
