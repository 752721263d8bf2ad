//! `bench`: measures `godwitd` with a load generator of its own. See `docs/performance.md`.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use guest::load::clock::{Clock, pin};
use guest::load::quiet::others_percent;
use guest::load::report::Report;
use guest::load::suite::{self, Settings};

/// Measures godwitd: one reactor, one client thread, a core for each.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run only the benches whose name contains this text.
    #[arg(long)]
    only: Option<String>,
    /// Also write one JSON object a line to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Two short runs of each: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Runs of each bench; the median counts.
    #[arg(long)]
    runs: Option<usize>,
    /// Measured seconds of a run.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds before that.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Completions taken and commands announced at a time; 0 = an eighth of the depth.
    #[arg(long, default_value_t = 0)]
    batch: usize,
    /// Core of the engine's reactor.
    #[arg(long, default_value_t = 0)]
    engine_cpu: usize,
    /// Core of the load generator.
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Where the file of the uring benches is made; it must take O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// Size of that file and of the RAM disk, MiB.
    #[arg(long, default_value_t = 1024)]
    disk: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (runs, seconds, warm_up) = if arguments.quick { (2, 0.5, 0.2) } else { (5, 2.0, 0.5) };
    let settings = Settings {
        godwitd: godwitd()?,
        only: arguments.only,
        quick: arguments.quick,
        runs: arguments.runs.unwrap_or(runs).max(1),
        measured: Duration::try_from_secs_f64(arguments.seconds.unwrap_or(seconds))?,
        warm_up: Duration::try_from_secs_f64(arguments.warm_up.unwrap_or(warm_up))?,
        batch: arguments.batch,
        engine_cpu: arguments.engine_cpu,
        directory: arguments.directory,
        disk_mebibytes: arguments.disk,
        clock: Clock::calibrate(),
    };
    let others = others_percent().context("/proc/stat")?;
    pin(arguments.client_cpu).context("the client's core")?;
    let mut report = Report::default();
    let outcome = suite::run(&settings, &mut report);
    print!("{}", report.table());
    println!("Medians of the runs of each bench; engine on core {}.", settings.engine_cpu);
    if others > 5.0 {
        println!(
            "WARNING: other work used {others:.0} % of the machine at the start: these figures are no claim."
        );
    }
    println!("No peer beside fio: SPDK has no Debian package and is not built here.");
    if let Some(path) = arguments.json {
        let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
        for record in &report.records {
            writeln!(file, "{}", record.json())?;
        }
    }
    outcome
}

/// `GODWITD`, or the daemon built beside this program.
fn godwitd() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GODWITD") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("godwitd");
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --release -p godwitd", path.display());
    Ok(path)
}
