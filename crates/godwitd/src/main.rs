//! The daemon: the keeper, and in processes of its own the engine. It serves the ssds of a configuration until SIGINT or SIGTERM,
//! then makes all durable and stops.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use keeper::{Again, Binary, EngineCommand, Keeper, Limits, Notify, Options};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Serves virtual NVMe SSDs to virtual machines over vfio-user.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/godwit/godwit.toml", global = true)]
    config: PathBuf,
    /// Read and check the configuration, then exit.
    #[arg(long)]
    check: bool,
    /// How log lines look. What is logged is set by the variable GODWIT_LOG, such as "debug" or "engine=trace".
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// Make PATH a link to a page of live counters of the reactors.
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
    /// Go on from the keeper that executed this program: its state is on the standard input. Not for people.
    #[arg(long, hide = true)]
    resume: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves for a keeper, which starts it. Not for people.
    #[command(hide = true)]
    Engine {
        /// The descriptor of the link to the keeper: 0, its standard input.
        #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..=0))]
        link: i32,
    },
    /// Says whether this program could go on from a keeper's state, which is on the standard input. Not for people.
    #[command(hide = true)]
    KeeperCheck,
    /// The control plane: keeps what is wanted, serves REST, and has the daemon serve it.
    Agent(Box<AgentArguments>),
}

#[derive(clap::Args)]
struct AgentArguments {
    /// Where the desired state is kept.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/godwit/agent.db")]
    state: PathBuf,
    /// Where the agent listens.
    #[arg(long, value_name = "PATH", default_value = api::rest::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Who may ask: the permissions of the socket, in octal.
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode_of)]
    socket_mode: u32,
    /// Serve over TCP, too, for clients with a certificate, such as 192.0.2.1:8443.
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["certificate", "key", "client_ca"])]
    listen: Option<std::net::SocketAddr>,
    /// For --listen: the agent's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "listen")]
    certificate: Option<PathBuf>,
    /// For --listen: its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "listen")]
    key: Option<PathBuf>,
    /// For --listen: who signs the certificates of those who may ask, PEM.
    #[arg(long, value_name = "FILE", requires = "listen")]
    client_ca: Option<PathBuf>,
    /// Where the daemon listens for `godwit`.
    #[arg(long, value_name = "PATH", default_value = api::control::DEFAULT_SOCKET)]
    control: PathBuf,
    /// Where ssds that live in files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/godwit/ssds")]
    ssds: PathBuf,
    /// Where the keys of encrypted ssds are kept. Without it: `keys` beside the state file.
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// Where the sockets of ssds are made.
    #[arg(long, value_name = "FOLDER", default_value = "/run/godwit")]
    sockets: PathBuf,
}

fn mode_of(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode & !0o777 == 0 => Ok(mode),
        _ => Err("permissions are three octal digits, such as 660".to_owned()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    let (name, result) = match arguments.command {
        Some(Command::Agent(agent)) => ("godwitd agent", run_agent(*agent, arguments.config)),
        Some(Command::Engine { link: _ }) => ("godwitd engine", run_engine()),
        Some(Command::KeeperCheck) => ("godwitd keeper-check", keeper::check()),
        None => ("godwitd", run_keeper(arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The link is the standard input, which no other child of the keeper can inherit by mistake.
fn run_engine() -> anyhow::Result<()> {
    let link =
        std::io::stdin().as_fd().try_clone_to_owned().context("there is no link on the standard input")?;
    engine::run(link)
}

fn run_agent(arguments: AgentArguments, config: PathBuf) -> anyhow::Result<()> {
    let stop = signals(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).with_context(|| format!("{}: what path is this?", path.display()))
    };
    let tls = match (arguments.listen, arguments.certificate, arguments.key, arguments.client_ca) {
        (Some(listen), Some(certificate), Some(key), Some(client_ca)) => {
            Some(agent::Tls { listen, certificate, key, client_ca })
        }
        _ => None,
    };
    let beside = arguments.state.with_file_name("keys");
    let keys = arguments.keys.unwrap_or(beside);
    let options = agent::Options {
        state: absolute(arguments.state)?,
        socket: absolute(arguments.socket)?,
        mode: arguments.socket_mode,
        tls,
        control: absolute(arguments.control)?,
        place: agent::Place {
            ssds: absolute(arguments.ssds)?,
            sockets: absolute(arguments.sockets)?,
            keys: absolute(keys)?,
        },
        base: absolute(config)?,
    };
    agent::run(options, stop)
}

fn run_keeper(arguments: Arguments) -> anyhow::Result<()> {
    // A keeper that goes on has the text with its state: the sockets and the engine are of that one.
    let config_text = match arguments.resume {
        true => String::new(),
        false => std::fs::read_to_string(&arguments.config)
            .with_context(|| format!("{}: cannot be read", arguments.config.display()))?,
    };
    if arguments.check {
        let config = api::config::Config::parse(&arguments.config, &config_text)?;
        println!("{}: good, {} ssds", arguments.config.display(), config.ssds.len());
        return Ok(());
    }
    let stop = signals(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    let leave = signals(&[signal_hook::consts::SIGUSR2])?;
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let format = match arguments.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let resume: Vec<OsString> = ["--resume", "--log-format", format].map(Into::into).into();
    let options = Options {
        config_path: arguments.config,
        config_text,
        engine: EngineCommand {
            binary: Arc::new(Binary::open(&own)?),
            arguments: ["engine", "--link", "0", "--log-format", format].map(str::to_owned).to_vec(),
            environment: Vec::new(),
        },
        stats: arguments.stats.map(std::path::absolute).transpose()?,
        limits: Limits::default(),
        notify: Notify::from_environment(),
        leave: Some(leave),
        again: Some(Again { program: own, resume, check: vec!["keeper-check".into()] }),
    };
    let keeper = if arguments.resume { Keeper::resume(options)? } else { Keeper::new(options)? };
    keeper.run(stop)
}

/// Becomes readable with each of these signals.
fn signals(which: &[i32]) -> anyhow::Result<OwnedFd> {
    let (read, write) = UnixStream::pair().context("cannot wait for signals")?;
    for signal in which {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)
            .context("cannot wait for signals")?;
    }
    Ok(read.into())
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
