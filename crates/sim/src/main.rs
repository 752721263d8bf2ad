//! `cargo xtask sim`: one seed with its trace, or as many as fit in a time.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

/// Replay a seed, or search.
#[derive(Parser)]
struct Arguments {
    /// Run this seed and print what happens
    #[arg(long)]
    seed: Option<u64>,
    /// Search for so long, such as 30s, 10m or 1h
    #[arg(long = "for", value_parser = duration, default_value = "1m")]
    time: Duration,
    /// The first seed of a search; by the clock if not given
    #[arg(long)]
    from: Option<u64>,
    /// Go on after a failing seed
    #[arg(long)]
    all: bool,
    /// The world of a pool instead of a controller's
    #[arg(long, conflicts_with = "crossing")]
    pool: bool,
    /// The world of two hosts and a wire
    #[arg(long)]
    crossing: bool,
}

/// Which world.
#[derive(Clone, Copy)]
enum World {
    Controller,
    Pool,
    Crossing,
}

impl World {
    /// The word by which it is asked for.
    fn word(self) -> &'static str {
        match self {
            Self::Controller => "",
            Self::Pool => "--pool ",
            Self::Crossing => "--crossing ",
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write 30s, 10m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write 30s, 10m or 1h".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nvme::crash::ENABLED {
        eprintln!(
            "no crash points are compiled in: build with --features crash-points (cargo xtask sim does)"
        );
        return ExitCode::FAILURE;
    }
    let world = match (arguments.pool, arguments.crossing) {
        (true, _) => World::Pool,
        (_, true) => World::Crossing,
        _ => World::Controller,
    };
    match arguments.seed {
        Some(seed) => replay(seed, world),
        None => search(&arguments, world),
    }
}

/// What came of a seed, in words, and how often something ended.
fn run(seed: u64, world: World, trace: bool) -> Result<(String, u64), String> {
    let told = |report: &dyn std::fmt::Debug, crashes| (format!("{report:?}"), crashes);
    let result = match world {
        World::Controller => sim::run(seed, trace).map(|report| told(&report, report.crashes)),
        World::Pool => sim::pool::run(seed, trace).map(|report| told(&report, report.crashes)),
        World::Crossing => sim::crossing::run(seed, trace).map(|report| told(&report, report.crashes)),
    };
    result.map_err(|violation| violation.0)
}

fn replay(seed: u64, world: World) -> ExitCode {
    match run(seed, world, true) {
        Ok((report, _)) => {
            println!("seed {seed}: {report}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
    }
}

fn search(arguments: &Arguments, world: World) -> ExitCode {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = arguments.from.unwrap_or_else(|| since_epoch.map_or(0, |time| time.as_secs() << 20));
    let begun = Instant::now();
    let (mut seeds, mut crashes, mut failed) = (0_u64, 0_u64, 0_u64);
    while begun.elapsed() < arguments.time {
        let seed = first.wrapping_add(seeds);
        seeds += 1;
        match run(seed, world, false) {
            Ok((_, more)) => crashes += more,
            Err(violation) => {
                failed += 1;
                println!("{violation}\nreplay: cargo xtask sim {}--seed {seed}", world.word());
                if !arguments.all {
                    break;
                }
            }
        }
    }
    println!("{seeds} seeds, {crashes} crash points, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
