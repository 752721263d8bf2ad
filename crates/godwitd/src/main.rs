//! The daemon: reads the configuration, serves the ssds until SIGINT or SIGTERM, then makes all durable and stops.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves virtual NVMe SSDs to virtual machines over vfio-user.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/godwit/godwit.toml")]
    config: PathBuf,
    /// Read and check the configuration, then exit.
    #[arg(long)]
    check: bool,
    /// How log lines look. What is logged is set by the variable GODWIT_LOG, such as "debug" or "engine=trace".
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Make PATH a link to a page of live counters of the reactors.
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwitd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = api::config::Config::load(&arguments.config)?;
    if arguments.check {
        println!("{}: good, {} ssds", arguments.config.display(), config.ssds.len());
        return Ok(());
    }
    // Before any thread starts: the signal handlers' wake-up must find this one.
    let signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]);
    let mut signals = signals.context("cannot wait for signals")?;
    let engine = engine::Engine::start(&config, arguments.stats)?;
    let signal = signals.forever().next();
    tracing::info!(signal, "stopping");
    engine.stop()?;
    tracing::info!("stopped; all data is durable");
    Ok(())
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GODWIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
