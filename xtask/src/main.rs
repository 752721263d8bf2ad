//! The project's own commands: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod bench;
mod deb;
mod demo;
mod fuzz;
mod lint;
mod run;
mod sim;
mod soak;
mod test;
mod tool;

use std::process::ExitCode;

use clap::Parser;

/// What can be done with this checkout.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Check format, clippy, the crate policy, unsafe islands, file lengths and licences
    Lint,
    /// Run everything that must pass: the lint, unit and property tests, guest tests
    Test,
    /// Boot a stock guest on a Godwit SSD and show what it does
    Demo {
        /// One part of it only.
        #[arg(long)]
        only: Option<demo::Part>,
    },
    /// Build a Debian package of release programs, and print where it is
    Deb {
        /// Of debug programs instead, installed into a root of its own, run there, removed, and thrown away
        #[arg(long)]
        check: bool,
    },
    /// Build (once) the guest image that demo and guest tests use, and print where it is
    Image,
    /// Run fuzz targets
    Fuzz {
        /// One of fuzz/fuzz_targets; all, one after the other, if not given
        target: Option<String>,
        /// How long each target runs
        #[arg(default_value_t = 60)]
        seconds: u32,
    },
    /// Run the seeded world: `--seed N` replays one run, `--for 10m` searches
    #[command(disable_help_flag = true)]
    Sim {
        /// Such as `--seed 7`, `--for 10m`, `--all`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure; every argument goes to the bench itself (try --help)
    #[command(disable_help_flag = true)]
    Bench {
        /// Such as `--only TEXT` and `--json FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kill, upgrade or re-execute the daemon, or move ssds between two, under a load that verifies; every argument goes to the soak itself
    #[command(disable_help_flag = true)]
    Soak {
        /// `calm`, `kills`, `upgrades`, `keeper`, `migrations` or `guests`, then such as `--count N`, `--json FILE`, `--seed N`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Lint => lint::command(),
        Command::Test => test::command(),
        Command::Demo { only } => demo::command(only),
        Command::Deb { check: false } => deb::command(),
        Command::Deb { check: true } => deb::check(),
        Command::Image => vmtest::image::Image::ensure().map(|image| println!("{}", image.root().display())),
        Command::Fuzz { target, seconds } => fuzz::command(target.as_deref(), seconds),
        Command::Sim { arguments } => sim::command(&arguments),
        Command::Bench { arguments } => bench::command(&arguments),
        Command::Soak { arguments } => soak::command(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
