//! `godwit`: the command line for people.
#![forbid(unsafe_code)]

use api::config::Config;
use api::control::Request;
use api::size::Size;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

mod agent;
mod attachment;
mod daemon;
mod drive;
mod hypervisor;
mod migration;
mod observe;
mod output;
mod pool;
mod qmp;
mod tls;
mod top;

/// Virtual NVMe SSDs for virtual machines.
#[derive(Parser)]
#[command(version, name = "godwit")]
struct Arguments {
    /// The configuration of the daemon.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/godwit/godwit.toml",
        env = "GODWIT_CONFIG",
        global = true
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Give an ssd to a guest: print what its hypervisor needs, or plug it into a running QEMU.
    Attach(attachment::Attach),
    /// Take an ssd out of a running QEMU.
    Detach(attachment::Detach),
    /// The same as `attach --qemu`: NVMe needs QEMU 10.1 or later.
    QemuArgs {
        /// The ssd.
        name: String,
        /// The guest's memory. It must be shared with the daemon, so these arguments define it.
        #[arg(long, value_name = "SIZE", default_value = "4GiB")]
        memory: Size,
        /// Only the device: the guest has shared memory already (a second ssd, or memory of your own definition).
        #[arg(long)]
        device_only: bool,
    },
    /// Show how the daemon, its engine and its ssds are.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print what was counted and timed of each ssd, as text that Prometheus reads (node_exporter's textfile collector, for one).
    Metrics,
    /// Show what each ssd does now: I/Os and megabytes a second, and how long I/Os wait in their queues, are held back by limits, and
    /// take at the drive.
    Top {
        /// How often to look, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        every: f64,
        /// Print so many times, each after the time to look, and end; without a terminal: once.
        #[arg(long, value_name = "COUNT")]
        rounds: Option<u32>,
        /// Print once and end: the same as `--rounds 1`.
        #[arg(long, conflicts_with = "rounds")]
        once: bool,
    },
    /// Replace the running engine with another program, with I/O in flight. If the new one fails within its probation,
    /// the old one runs again.
    Upgrade {
        /// The new program. Without it: the file the running one was started from, as it is now.
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// Replace the keeper, which outlives engines, instead of the engine.
        #[arg(long)]
        keeper: bool,
        /// Return when the new one serves, not when its probation is over.
        #[arg(long)]
        no_wait: bool,
    },
    /// Move an ssd, its data and its ownership, to another host while it is used. Its client here loses it at the end, and finds it there.
    Migrate(migration::Migrate),
    /// Make certificates for hosts that move ssds between them.
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Show and steer migrations.
    #[command(subcommand)]
    Migration(migration::MigrationCommand),
    /// Serve what a configuration says now, in place of what the daemon serves: ssds come, go and grow, and all others are not
    /// disturbed. Done whole or not at all.
    Apply {
        /// The configuration. Without it: the daemon's own file, as it is now.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Remove ssds whose clients are connected, too: their guests lose the device.
        #[arg(long)]
        force: bool,
    },
    /// Make, show, change and delete ssds, through the agent.
    #[command(subcommand)]
    Ssd(SsdCommand),
    /// The drives of this host. Needs no daemon and no configuration.
    #[command(subcommand)]
    Drive(drive::DriveCommand),
    /// Named sizes and limits.
    #[command(subcommand)]
    Flavor(agent::FlavorCommand),
    /// What the agent does, and has done.
    #[command(subcommand)]
    Operation(agent::OperationCommand),
    /// Print what a shell needs to complete commands of `godwit`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    Man {
        /// The folder for them.
        folder: PathBuf,
    },
    /// Pools: drives that several ssds share, through the agent.
    #[command(subcommand)]
    Pool(agent::PoolCommand),
    /// What ssds in pools contained at a moment, through the agent.
    #[command(subcommand)]
    Snapshot(agent::SnapshotCommand),
    /// What was deleted from pools, and how it was wiped.
    #[command(subcommand)]
    Certificate(agent::CertificateCommand),
    /// Which ssd is promised to which guest.
    #[command(subcommand)]
    Attachment(agent::AttachmentCommand),
    /// Pools and what is in them, by the daemon itself: for hosts without an agent. What an agent keeps is not told of it.
    #[command(subcommand)]
    Volume(pool::VolumeCommand),
}

#[derive(Subcommand)]
enum SsdCommand {
    /// Take an ssd out of quarantine: an engine serves it again.
    Resume {
        /// The ssd.
        name: String,
    },
    #[command(flatten)]
    Agent(Box<agent::SsdCommand>),
}

/// A span that a person would wait.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.1 to 3600".to_owned()) }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Drive(command) => {
            print!("{}", drive::run(command)?);
            return Ok(());
        }
        Command::Tls(command) => {
            print!("{}", tls::run(command)?);
            return Ok(());
        }
        Command::Ssd(SsdCommand::Agent(command)) => return agent::ssd(command),
        Command::Apply { file, dry_run, force } => {
            println!("{}", daemon::apply(file.as_ref().unwrap_or(&arguments.config), *dry_run, *force)?);
            return Ok(());
        }
        Command::Flavor(command) => return agent::flavor(command),
        Command::Operation(command) => return agent::operation(command),
        Command::Pool(command) => return agent::pool(command),
        Command::Snapshot(command) => return agent::snapshot(command),
        Command::Certificate(command) => return agent::certificate(command),
        Command::Attachment(command) => return agent::attachment(command),
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "godwit", &mut std::io::stdout());
            return Ok(());
        }
        Command::Man { folder } => return Ok(clap_mangen::generate_to(Arguments::command(), folder)?),
        _ => {}
    }
    let config = Config::load(&arguments.config)?;
    match &arguments.command {
        Command::Attach(attach) => {
            println!("{}", attachment::attach(&config, &arguments.config, attach)?);
        }
        Command::Detach(detach) => println!("{}", attachment::detach(detach)?),
        Command::QemuArgs { name, memory, device_only } => {
            let memory = (!device_only).then_some(*memory);
            println!("{}", attachment::qemu_arguments(&config, &arguments.config, name, memory)?);
        }
        Command::Status { json } => print!("{}", daemon::status(&config, *json)?),
        Command::Metrics => print!("{}", observe::text(&daemon::state(&config)?)),
        Command::Top { every, rounds, once } => {
            top::run(&config, Duration::from_secs_f64(*every), if *once { Some(1) } else { *rounds })?;
        }
        Command::Upgrade { binary, keeper, no_wait } => {
            let binary = binary.as_deref().map(std::path::absolute).transpose()?;
            let request = Request::Upgrade { binary, keeper: *keeper, no_wait: *no_wait };
            println!("{}", daemon::ask(&config, &request)?);
        }
        Command::Migrate(migrate) => print!("{}", migration::migrate(&config, migrate)?),
        Command::Migration(command) => print!("{}", migration::run(&config, command)?),
        // Done above: what is wrong with its file, the daemon says.
        Command::Apply { .. } => {}
        Command::Volume(command) => print!("{}", pool::run(&config, command)?),
        Command::Ssd(SsdCommand::Resume { name }) => {
            println!("{}", daemon::ask(&config, &Request::Resume { ssd: name.clone() })?);
        }
        // Done above: they need no configuration.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_no_contradictions_and_every_one_is_explained() {
        let command = Arguments::command();
        command.clone().debug_assert();
        let mut waiting = vec![command];
        while let Some(command) = waiting.pop() {
            assert!(command.get_about().is_some(), "`{}` is not explained", command.get_name());
            waiting.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn shells_and_manual_pages_know_the_nouns_and_the_verbs() {
        let mut text = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Arguments::command(), "godwit", &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("godwit__subcmd__ssd__subcmd__create") || text.contains("godwit__ssd__create"),
            "{text}"
        );
    }
}
