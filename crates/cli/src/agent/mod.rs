//! What people ask of the agent: nouns and verbs.

mod client;
mod columns;
mod incoming;
mod pool;
mod remote;

pub(crate) use pool::{
    AttachmentCommand, CertificateCommand, PoolCommand, SnapshotCommand, attachment, certificate, pool,
    snapshot,
};

use crate::output::Output;
use anyhow::bail;
use api::rest::{Flavor, Interface, Limits, List, Operation, OperationState, Ssd, SsdChange, SsdCreate};
use api::size::Size;
use clap::{Args, Subcommand, ValueEnum};
use client::{Client, Submitted, Terms};
use hyper::Method;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

/// Where the agent is, and how its answers are shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Reach {
    /// Where the agent listens: a socket's path, or https://HOST:PORT. Default: the variable GODWIT_AGENT, else
    /// /run/godwit/agent.sock.
    #[arg(long, value_name = "PATH|URL", env = "GODWIT_AGENT")]
    agent: Option<String>,
    #[command(flatten)]
    tls: TlsArguments,
    /// How the answer looks.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Who asks an agent over https, and whom he believes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TlsArguments {
    /// For https: your certificate, PEM.
    #[arg(long, value_name = "FILE", env = "GODWIT_CERT")]
    cert: Option<PathBuf>,
    /// For https: its private key, PEM.
    #[arg(long, value_name = "FILE", env = "GODWIT_KEY")]
    key: Option<PathBuf>,
    /// For https: who signed the agent's certificate, PEM.
    #[arg(long, value_name = "FILE", env = "GODWIT_CA")]
    ca: Option<PathBuf>,
}

/// How a change is made.
#[derive(Args, Clone, Debug)]
pub(crate) struct How {
    #[command(flatten)]
    reach: Reach,
    /// Return when it is done, not when the agent has taken it on.
    #[arg(long)]
    wait: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// The operation's id: the same again is the same operation.
    #[arg(long, value_name = "ID")]
    operation: Option<String>,
}

/// What an ssd may use.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitArguments {
    /// Reads and writes a second.
    #[arg(long, value_name = "COUNT")]
    iops: Option<u64>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "COUNT", requires = "iops")]
    iops_burst: Option<u64>,
    /// Reads a second.
    #[arg(long, value_name = "COUNT")]
    read_iops: Option<u64>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "COUNT", requires = "read_iops")]
    read_iops_burst: Option<u64>,
    /// Writes a second.
    #[arg(long, value_name = "COUNT")]
    write_iops: Option<u64>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "COUNT", requires = "write_iops")]
    write_iops_burst: Option<u64>,
    /// Bytes a second, read and written, such as 500MiB.
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<Size>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "SIZE", requires = "bandwidth")]
    bandwidth_burst: Option<Size>,
    /// Bytes read a second.
    #[arg(long, value_name = "SIZE")]
    read_bandwidth: Option<Size>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "SIZE", requires = "read_bandwidth")]
    read_bandwidth_burst: Option<Size>,
    /// Bytes written a second.
    #[arg(long, value_name = "SIZE")]
    write_bandwidth: Option<Size>,
    /// What may come at once after a pause.
    #[arg(long, value_name = "SIZE", requires = "write_bandwidth")]
    write_bandwidth_burst: Option<Size>,
    /// Its share of a busy drive and reactor, beside those of others: 1 to 10000.
    #[arg(long)]
    weight: Option<u16>,
}

impl LimitArguments {
    fn limits(&self) -> Limits {
        let bytes = |size: Option<Size>| size.map(|size| size.bytes);
        Limits {
            iops: self.iops,
            iops_burst: self.iops_burst,
            read_iops: self.read_iops,
            read_iops_burst: self.read_iops_burst,
            write_iops: self.write_iops,
            write_iops_burst: self.write_iops_burst,
            bandwidth: bytes(self.bandwidth),
            bandwidth_burst: bytes(self.bandwidth_burst),
            read_bandwidth: bytes(self.read_bandwidth),
            read_bandwidth_burst: bytes(self.read_bandwidth_burst),
            write_bandwidth: bytes(self.write_bandwidth),
            write_bandwidth_burst: bytes(self.write_bandwidth_burst),
            weight: self.weight,
        }
    }

    /// Those that are given; the flavor's, when none is.
    fn given(&self) -> Option<Limits> {
        Some(self.limits()).filter(|limits| !limits.is_empty())
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum InterfaceName {
    /// An NVMe controller.
    #[default]
    Nvme,
    /// A virtio-blk disk.
    VirtioBlk,
}

#[derive(Subcommand)]
pub(crate) enum SsdCommand {
    /// Make an ssd.
    Create {
        /// Its name.
        name: String,
        /// Its size, such as 100GiB. May be left out with a flavor.
        #[arg(long, value_name = "SIZE")]
        size: Option<Size>,
        /// Size and limits by name; `godwit flavor list` shows them.
        #[arg(long, value_name = "NAME")]
        flavor: Option<String>,
        /// What the guest sees.
        #[arg(long, value_enum, default_value_t)]
        interface: InterfaceName,
        /// The device model of an NVMe ssd, such as godwit-2. Without it: godwit-1, which every release can serve.
        #[arg(long, value_name = "PROFILE")]
        profile: Option<String>,
        /// The pool to take it from. Without it: a file.
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Take space in the pool when it is written, not now.
        #[arg(long)]
        thin: bool,
        /// Encrypt it at rest, with a key of its own that the agent makes and destroys. What it begins with decides for a clone.
        #[arg(long)]
        encrypted: bool,
        /// Begin with what this snapshot contains.
        #[arg(long, value_name = "SNAPSHOT", conflicts_with = "from_ssd")]
        from_snapshot: Option<String>,
        /// Begin with what this ssd contains now.
        #[arg(long, value_name = "SSD")]
        from_ssd: Option<String>,
        #[command(flatten)]
        limits: Box<LimitArguments>,
        #[command(flatten)]
        how: How,
    },
    /// Show all ssds.
    #[command(visible_alias = "ls")]
    List(Reach),
    /// Show one ssd.
    Show {
        /// The ssd.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Print what another host's agent has to know of an ssd that is to go there: give it to `godwit ssd accept`.
    Export {
        /// The ssd.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make a place for an ssd that comes from another host, as `godwit ssd export` printed it there. It is not served until `godwit migrate` has brought it.
    Accept {
        /// What was printed. Without it, or with -: the standard input.
        file: Option<PathBuf>,
        #[command(flatten)]
        here: incoming::Here,
        #[command(flatten)]
        how: How,
    },
    /// Delete an ssd and its data; of one that is at another host, what is left here.
    #[command(visible_alias = "rm")]
    Delete {
        /// The ssd.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Also while a guest uses it: that guest loses its device.
        #[arg(long)]
        force: bool,
        /// Only if nobody has changed it since it was shown with this generation.
        #[arg(long, value_name = "GENERATION")]
        if_match: Option<u64>,
        #[command(flatten)]
        how: How,
    },
    /// Make an ssd larger, while guests use it.
    Resize {
        /// The ssd.
        name: String,
        /// Its new size.
        #[arg(long, value_name = "SIZE")]
        size: Size,
        /// Only if nobody has changed it since it was shown with this generation.
        #[arg(long, value_name = "GENERATION")]
        if_match: Option<u64>,
        #[command(flatten)]
        how: How,
    },
    /// Say which QEMU here an ssd's guest comes to with it (`godwit migrate --vm`), also while the ssd is at another host.
    Await {
        /// The ssd.
        name: String,
        /// The QMP socket of that QEMU (-S -incoming defer).
        #[arg(long, value_name = "QMP-SOCKET", required_unless_present = "none", conflicts_with = "none")]
        hypervisor: Option<PathBuf>,
        /// It comes without its guest.
        #[arg(long)]
        none: bool,
        /// Only if nobody has changed it since it was shown with this generation.
        #[arg(long, value_name = "GENERATION")]
        if_match: Option<u64>,
        #[command(flatten)]
        how: How,
    },
    /// Limit an ssd anew, while guests use it. What is not given is not limited any more.
    Limit {
        /// The ssd.
        name: String,
        #[command(flatten)]
        limits: Box<LimitArguments>,
        /// Only if nobody has changed it since it was shown with this generation.
        #[arg(long, value_name = "GENERATION")]
        if_match: Option<u64>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Subcommand)]
pub(crate) enum FlavorCommand {
    /// Show all flavors.
    #[command(visible_alias = "ls")]
    List(Reach),
    /// Show one flavor.
    Show {
        /// The flavor.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make a flavor.
    Create {
        /// Its name.
        name: String,
        /// Size of its ssds.
        #[arg(long, value_name = "SIZE")]
        size: Size,
        #[command(flatten)]
        limits: Box<LimitArguments>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Delete a flavor. Ssds made by it stay as they are.
    #[command(visible_alias = "rm")]
    Delete {
        /// The flavor.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Subcommand)]
pub(crate) enum OperationCommand {
    /// Show the newest operations.
    #[command(visible_alias = "ls")]
    List {
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show one operation.
    Show {
        /// Its id.
        id: String,
        /// Return when it has ended.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

/// Does what is asked about an ssd.
pub(crate) fn ssd(command: &SsdCommand) -> anyhow::Result<()> {
    match command {
        SsdCommand::Create {
            name,
            size,
            flavor,
            interface,
            profile,
            pool,
            thin,
            encrypted,
            from_snapshot,
            from_ssd,
            limits,
            how,
        } => {
            let wish = SsdCreate {
                name: name.clone(),
                size_bytes: size.map(|size| size.bytes),
                flavor: flavor.clone(),
                interface: match interface {
                    InterfaceName::Nvme => Interface::Nvme,
                    InterfaceName::VirtioBlk => Interface::VirtioBlk,
                },
                profile: profile.clone(),
                pool: pool.clone(),
                thin: thin.then_some(true),
                encrypted: encrypted.then_some(true),
                limits: limits.given(),
                from_snapshot: from_snapshot.clone(),
                from_ssd: from_ssd.clone(),
                incoming: None,
                hypervisor: None,
            };
            submit(&Method::POST, "ssds", Some(&wish), None, how)
        }
        SsdCommand::List(reach) => {
            let list: List<Ssd> = reach.client()?.get("ssds")?;
            show(&columns::list(&list.items, &columns::SSD, reach.output)?)
        }
        SsdCommand::Show { name, reach } => {
            let ssd: Ssd = reach.client()?.get(&format!("ssds/{}", part(name)))?;
            show(&columns::one(&ssd, &columns::SSD, reach.output)?)
        }
        SsdCommand::Export { name, reach } => incoming::export(name, reach),
        SsdCommand::Accept { file, here, how } => incoming::accept(file.as_deref(), here, how),
        SsdCommand::Delete { name, yes, force, if_match, how } => {
            if !how.dry_run && !yes {
                confirm(&format!("Delete ssd \"{name}\" and all its data?"))?;
            }
            let force = if *force { "?force=true" } else { "" };
            submit(&Method::DELETE, &format!("ssds/{}{force}", part(name)), None::<&()>, *if_match, how)
        }
        SsdCommand::Resize { name, size, if_match, how } => {
            let wish = SsdChange { size_bytes: Some(size.bytes), ..SsdChange::default() };
            submit(&Method::PATCH, &format!("ssds/{}", part(name)), Some(&wish), *if_match, how)
        }
        SsdCommand::Await { name, hypervisor, none: _, if_match, how } => {
            let path = hypervisor.as_ref().map_or(String::new(), |path| path.display().to_string());
            let wish = SsdChange { hypervisor: Some(path), ..SsdChange::default() };
            submit(&Method::PATCH, &format!("ssds/{}", part(name)), Some(&wish), *if_match, how)
        }
        SsdCommand::Limit { name, limits, if_match, how } => {
            let wish = SsdChange { limits: Some(limits.limits()), ..SsdChange::default() };
            submit(&Method::PATCH, &format!("ssds/{}", part(name)), Some(&wish), *if_match, how)
        }
    }
}

/// Does what is asked about a flavor.
pub(crate) fn flavor(command: &FlavorCommand) -> anyhow::Result<()> {
    match command {
        FlavorCommand::List(reach) => {
            let list: List<Flavor> = reach.client()?.get("flavors")?;
            show(&columns::list(&list.items, &columns::FLAVOR, reach.output)?)
        }
        FlavorCommand::Show { name, reach } => {
            let flavor: Flavor = reach.client()?.get(&format!("flavors/{}", part(name)))?;
            show(&columns::one(&flavor, &columns::FLAVOR, reach.output)?)
        }
        FlavorCommand::Create { name, size, limits, reach } => {
            let flavor = Flavor { name: name.clone(), size_bytes: size.bytes, limits: limits.limits() };
            reach.client()?.change(Method::POST, "flavors", Some(&flavor))?;
            show(&columns::one(&flavor, &columns::FLAVOR, reach.output)?)
        }
        FlavorCommand::Delete { name, reach } => {
            reach.client()?.change(Method::DELETE, &format!("flavors/{}", part(name)), None::<&()>)?;
            eprintln!("flavor \"{name}\" is no more");
            Ok(())
        }
    }
}

/// Does what is asked about an operation.
pub(crate) fn operation(command: &OperationCommand) -> anyhow::Result<()> {
    match command {
        OperationCommand::List { limit, reach } => {
            let list: List<Operation> = reach.client()?.get(&format!("operations?limit={limit}"))?;
            show(&columns::list(&list.items, &columns::OPERATION, reach.output)?)
        }
        OperationCommand::Show { id, wait, reach } => {
            let client = reach.client()?;
            let operation = match wait {
                true => client.wait(&part(id), &mut progress())?,
                false => client.get(&format!("operations/{}", part(id)))?,
            };
            show(&columns::one(&operation, &columns::OPERATION, reach.output)?)
        }
    }
}

/// An ssd that the agent of this host keeps, if there is one.
pub(crate) fn kept(name: &str) -> anyhow::Result<Ssd> {
    let place = std::env::var("GODWIT_AGENT").ok().filter(|place| !place.starts_with("https://"));
    Client::new(place.as_deref(), &TlsArguments::default())?.get(&format!("ssds/{}", part(name)))
}

impl Reach {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.agent.as_deref(), &self.tls)
    }
}

fn submit(
    method: &Method,
    path: &str,
    body: Option<&impl serde::Serialize>,
    if_match: Option<u64>,
    how: &How,
) -> anyhow::Result<()> {
    let client = how.reach.client()?;
    let terms = Terms { operation: how.operation.clone(), if_match, dry_run: how.dry_run };
    let operation = match client.submit(method, path, body, &terms)? {
        Submitted::Plan(plan) => return show(&(plan.plan + "\n")),
        Submitted::Operation(operation) if how.wait => client.wait(&operation.id, &mut progress())?,
        Submitted::Operation(operation) => operation,
    };
    match how.reach.output {
        Output::Table | Output::Wide => eprintln!("{}", in_words(&operation)),
        other => show(&columns::one(&operation, &columns::OPERATION, other)?)?,
    }
    if operation.state == OperationState::Failed {
        bail!("it was not done, and nothing is left of it: {}", operation.message.unwrap_or_default());
    }
    Ok(())
}

fn in_words(operation: &Operation) -> String {
    let Operation { id, kind, target, .. } = operation;
    match operation.state {
        OperationState::Running => {
            format!("{kind} {target}: taken on; `godwit operation show {id} --wait` waits for it")
        }
        state => format!("{kind} {target}: {}", state.word()),
    }
}

/// Says each new step to the standard error.
fn progress() -> impl FnMut(&Operation) {
    let mut said = None;
    move |operation| {
        let now = (operation.step.clone(), operation.message.clone());
        let tells = operation.step != "begin" || operation.message.is_some();
        if operation.state == OperationState::Running && tells && said.as_ref() != Some(&now) {
            let why = operation.message.as_ref().map_or(String::new(), |why| format!(": {why}"));
            eprintln!("{} {}: {}{why}", operation.kind, operation.target, operation.step);
        }
        said = Some(now);
    }
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} There is nobody to ask.\n  next: give --yes");
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

/// A name as one part of a path: what is no name is the agent's to refuse.
fn part(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// To the standard output; somebody who reads no further is not an error.
fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
