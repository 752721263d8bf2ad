//! `soak`: a verifying load on `godwitd`, over both frontends, while its processes die and are replaced. See `guest::verify`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use guest::verify::events::Kind;
use guest::verify::migrations;
use guest::verify::soak::{Settings, run};

/// Runs a load that checks every byte and every completion while things happen to godwitd.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What happens.
    what: What,
    /// How often.
    #[arg(long)]
    count: Option<u64>,
    /// Also append one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Replays the operations of an earlier run, and what its disks' clients asked for.
    #[arg(long)]
    seed: Option<u64>,
    /// The daemon to upgrade to and back from; a copy of the same one if not given.
    #[arg(long)]
    other: Option<PathBuf>,
    /// Where the data files are made; it must take O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    directory: PathBuf,
    /// Queues of each ssd: NVMe queue pairs, virtio rings. The last one is driven by its interrupt.
    #[arg(long, default_value_t = 3)]
    lanes: u16,
    /// Operations at once of each queue, at most.
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Reactors of the daemon.
    #[arg(long, default_value_t = 1)]
    reactors: usize,
    /// With migrations: in most of them something goes wrong at a random time.
    #[arg(long)]
    faults: bool,
    /// With --faults: only this one, such as `engine`, `keeper`, `host`, `cut`; an ssd that cannot have it moves without.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// With migrations: how large each ssd is.
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
    /// With migrations: how many milliseconds an ssd may stand still; one that is copied slower than it is written never moves.
    #[arg(long, default_value_t = 100)]
    max_stun: u64,
    /// Put all ssds in one pool (whatever their names say), half of them thin.
    #[arg(long)]
    pool: bool,
    /// An operation without an answer for so many seconds is lost.
    #[arg(long, default_value_t = 30)]
    patience: u64,
    /// Flip a byte of each data file: the run must find them.
    #[arg(long)]
    sabotage: bool,
    /// Keep the run's folder.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Nothing: the row must be zero, the gaps are the machine's own.
    Calm,
    /// The engine is killed at random moments.
    Kills,
    /// The engine is replaced by another binary and back.
    Upgrades,
    /// The keeper executes itself anew.
    Keeper,
    /// The keeper is killed; a service manager kept its descriptors and starts it again.
    Restarts,
    /// All of these, with engines that die in the middle of it.
    Mixed,
    /// Ssds are moved between two hosts.
    Migrations,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let kind = match arguments.what {
        What::Migrations => return move_ssds(arguments),
        What::Calm => Kind::Calm,
        What::Kills => Kind::Kills,
        What::Upgrades => Kind::Upgrades,
        What::Keeper => Kind::Keeper,
        What::Restarts => Kind::Restarts,
        What::Mixed => Kind::Mixed,
    };
    let count = arguments.count.unwrap_or(match kind {
        Kind::Calm => 20,
        Kind::Kills => 1000,
        Kind::Upgrades => 200,
        Kind::Keeper | Kind::Restarts | Kind::Mixed => 100,
    });
    let settings = Settings {
        kind,
        count,
        seed: arguments.seed.unwrap_or_else(any_seed),
        godwitd: program("GODWITD", "godwitd")?,
        other: arguments.other,
        directory: arguments.directory,
        patience: Duration::from_secs(arguments.patience),
        lanes: arguments.lanes.clamp(1, 60),
        depth: arguments.depth.clamp(1, 1000),
        reactors: arguments.reactors,
        pool: arguments.pool,
        sabotage: arguments.sabotage,
        keep: arguments.keep,
    };
    let found = run(&settings)?;
    println!("{}", found.row.line());
    found.faults.iter().for_each(|fault| println!("  {fault}"));
    if let Some(folder) = &found.folder {
        println!("the run's files: {}", folder.display());
    }
    note(arguments.json.as_deref(), &found.row.json())?;
    if found.row.tally.is_clean() && found.row.events == count {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", found.log);
    Ok(ExitCode::FAILURE)
}

fn move_ssds(arguments: Arguments) -> Result<ExitCode> {
    let count = arguments.count.unwrap_or(500);
    let settings = migrations::Settings {
        count,
        with_faults: arguments.faults || arguments.only.is_some(),
        only: arguments.only,
        seed: arguments.seed.unwrap_or_else(any_seed),
        godwitd: program("GODWITD", "godwitd")?,
        godwit: program("GODWIT", "godwit")?,
        directory: arguments.directory,
        patience: Duration::from_secs(arguments.patience),
        stun_max: Duration::from_millis(arguments.max_stun),
        lanes: arguments.lanes.clamp(1, 60),
        depth: arguments.depth.clamp(1, 1000),
        reactors: arguments.reactors,
        mebibytes: arguments.mebibytes.max(8),
        sabotage: arguments.sabotage,
        keep: arguments.keep,
    };
    let found = migrations::run(&settings)?;
    println!("{}", found.row.line());
    found.faults.iter().for_each(|fault| println!("  {fault}"));
    if let Some(folder) = &found.folder {
        println!("the run's files: {}\n{}", folder.display(), found.log);
    }
    note(arguments.json.as_deref(), &found.row.json())?;
    if found.row.is_clean() && found.row.events == count {
        return Ok(ExitCode::SUCCESS);
    }
    if found.folder.is_none() {
        println!("{}", found.log);
    }
    Ok(ExitCode::FAILURE)
}

/// A line more in a file.
fn note(path: Option<&Path>, row: &serde_json::Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let file = std::fs::File::options().create(true).append(true).open(path);
    Ok(writeln!(file.with_context(|| path.display().to_string())?, "{row}")?)
}

/// Small enough to be read in JSON by anything.
fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() << 20 & 0xFFFF_FFFF_FFFF | u64::from(since.subsec_micros())
}

/// A program by its variable, or the one built beside this one.
fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.exists(), "{} is missing: build it, or set {variable}", path.display());
    Ok(path)
}
