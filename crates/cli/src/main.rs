//! `godwit`: the command line for people.
#![forbid(unsafe_code)]

use anyhow::Context;
use api::config::Config;
use api::size::Size;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

mod qemu;

/// Virtual NVMe SSDs for virtual machines.
#[derive(Parser)]
#[command(version, name = "godwit")]
struct Arguments {
    /// The configuration of the daemon.
    #[arg(long, value_name = "FILE", default_value = "/etc/godwit/godwit.toml", global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the QEMU (10.1 or later) arguments that give an ssd to a guest.
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
    let config = Config::load(&arguments.config)?;
    match &arguments.command {
        Command::QemuArgs { name, memory, device_only } => {
            let ssd = config.ssd(name).with_context(|| {
                let names: Vec<&str> = config.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
                format!("{} has no ssd \"{name}\"; it has: {}", arguments.config.display(), names.join(", "))
            })?;
            let socket = std::path::absolute(&ssd.socket)?;
            println!("{}", qemu::arguments(&socket, (!device_only).then_some(*memory)));
        }
    }
    Ok(())
}
