//! Moving ssds between hosts: begun, watched and steered.

mod timeline;

use crate::daemon;
use anyhow::{Context, bail};
use api::config::Config;
use api::control::{EngineRequest, MigrationStatus, MigrationTerms, Request, Response, Steer};
use api::size::Size;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a migration is looked at that somebody waits for.
const LOOK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Migrate {
    /// The ssd. The other host has it in its configuration, with `incoming = true`.
    #[arg(required_unless_present = "vm", conflicts_with = "vm")]
    ssd: Option<String>,
    /// A guest, by the QMP socket of its QEMU, with all of its ssds. At the other host a QEMU waits for it (`-S -incoming defer`), whose QMP socket is the
    /// `hypervisor` of each of the ssds in the configuration there.
    #[arg(long, value_name = "QMP-SOCKET")]
    vm: Option<PathBuf>,
    /// The other host and the port that its `[migration]` listens at; HOST is a name in its certificate.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Ask the other host whether it could be moved, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Bytes a second on the wire at most, such as 200MiB.
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<Size>,
    /// How long its guest's I/O may stand still, such as 10ms.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = micros)]
    max_stun: u64,
    /// How long the guest's reads and writes may take meanwhile, beside what they took before: such as 1.5x. The copy is slowed until 99 of 100 keep to it.
    #[arg(long, value_name = "FACTOR", value_parser = permille)]
    guest_latency_budget: Option<u32>,
    /// Connections side by side.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: u16,
    /// Keep what is left of it here, marked as stale, instead of wiping it.
    #[arg(long)]
    keep_source: bool,
    /// Move it also when it is encrypted here and would lie in the clear at the other host, or when nobody can say.
    #[arg(long)]
    allow_unencrypted: bool,
    /// Return at once, and not when it has moved.
    #[arg(long)]
    no_wait: bool,
}

#[derive(clap::Subcommand)]
pub(crate) enum MigrationCommand {
    /// List the migrations that this host takes part in, and those that ended last.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how one goes, until it is over.
    Watch {
        /// The ssd.
        ssd: String,
    },
    /// Show how a guest's I/O went during the last migration: I/Os a second, about each 10 ms, for the last two minutes of it.
    Timeline {
        /// The ssd.
        ssd: String,
        /// Draw it into a file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Draw it together with what the other host printed with this command. The two hosts' clocks must agree.
        #[arg(long, value_name = "FILE", requires = "svg")]
        with: Option<PathBuf>,
    },
    /// Copy nothing for now; the guest goes on.
    Pause {
        /// The ssd.
        ssd: String,
    },
    /// Copy on.
    Resume {
        /// The ssd.
        ssd: String,
    },
    /// Change how many bytes a second go over the wire at most.
    Bandwidth {
        /// The ssd.
        ssd: String,
        /// Such as 200MiB; 0: as many as can.
        size: Size,
    },
    /// End it: the ssd stays where it is, and what was copied is wiped.
    Cancel {
        /// The ssd.
        ssd: String,
    },
    /// Take the ssd here, though the other host has not said its word. You answer for it that the other host does not serve it, now or later.
    Force {
        /// The ssd.
        ssd: String,
        /// Really do it.
        #[arg(long)]
        yes: bool,
    },
}

/// `10ms`, `500us` or `2s`.
fn micros(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no time; write for example 10ms, 500us or 2s");
    let digits = text.find(|byte: char| !byte.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// `1.5x`, in thousandths: three decimals at most.
fn permille(text: &str) -> Result<u32, String> {
    let wrong = || format!("\"{text}\" is no budget; write a factor from 1 to 1000, such as 1.5x");
    let factor = text.strip_suffix('x').ok_or_else(wrong)?;
    let (whole, part) = factor.split_once('.').unwrap_or((factor, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 3 {
        return Err(wrong());
    }
    let permille = format!("{whole}{part:0<3}").parse().map_err(|_| wrong())?;
    if (1_000..=1_000_000).contains(&permille) { Ok(permille) } else { Err(wrong()) }
}

pub(crate) fn migrate(config: &Config, migrate: &Migrate) -> anyhow::Result<String> {
    let Migrate { ssd, vm, to, dry_run, bandwidth, max_stun, streams, keep_source, no_wait, .. } = migrate;
    let terms = MigrationTerms {
        bandwidth: bandwidth.map_or(0, |size| size.bytes),
        max_stun_us: *max_stun,
        streams: *streams,
        keep_source: *keep_source,
        latency_budget_permille: migrate.guest_latency_budget.unwrap_or(0),
        allow_unencrypted: migrate.allow_unencrypted,
    };
    let (to, dry_run) = (to.clone(), *dry_run);
    let vm = vm.as_ref().map(std::path::absolute).transpose().context("the QMP socket")?;
    let request = match (ssd, &vm) {
        (_, Some(qmp)) => EngineRequest::MigrateGuest { qmp: qmp.clone(), to, terms, dry_run },
        (Some(ssd), None) => EngineRequest::Migrate { ssd: ssd.clone(), to, terms, dry_run },
        (None, None) => bail!("name an ssd, or a guest by --vm"),
    };
    let begun = daemon::ask(config, &Request::Engine(request))? + "\n";
    if dry_run || *no_wait {
        return Ok(begun);
    }
    eprint!("{begun}");
    match (ssd, vm) {
        (_, Some(qmp)) => watch_guest(config, &qmp),
        (ssd, None) => watch(config, ssd.as_deref().unwrap_or_default()),
    }
}

pub(crate) fn run(config: &Config, command: &MigrationCommand) -> anyhow::Result<String> {
    let (ssd, steer) = match command {
        MigrationCommand::List { json } => {
            let list = list(config)?;
            return if *json { Ok(serde_json::to_string_pretty(&list)? + "\n") } else { Ok(in_words(&list)) };
        }
        MigrationCommand::Watch { ssd } => return watch(config, ssd),
        MigrationCommand::Timeline { ssd, svg, with } => {
            return timeline::run(config, ssd, svg.as_deref(), with.as_deref());
        }
        MigrationCommand::Pause { ssd } => (ssd, Steer::Pause),
        MigrationCommand::Resume { ssd } => (ssd, Steer::Resume),
        MigrationCommand::Bandwidth { ssd, size } => (ssd, Steer::Bandwidth(size.bytes)),
        MigrationCommand::Cancel { ssd } => (ssd, Steer::Cancel),
        MigrationCommand::Force { ssd, yes } => {
            if !yes {
                bail!(
                    "two hosts that serve one ssd destroy it, and what the other wrote last is lost: only if it is off for good, or its \
                     Godwit is; add --yes to do it"
                );
            }
            (ssd, Steer::Force)
        }
    };
    let request = EngineRequest::Steer { ssd: ssd.clone(), steer };
    Ok(daemon::ask(config, &Request::Engine(request))? + "\n")
}

/// All of a guest's ssds, one after the other: they end together.
fn watch_guest(config: &Config, qmp: &Path) -> anyhow::Result<String> {
    let begun = list(config)?;
    let ssds: Vec<_> = begun.iter().filter(|migration| migration.guest.as_deref() == Some(qmp)).collect();
    if ssds.is_empty() {
        bail!("nothing is known of it any more: the engine was restarted; see `godwit status`");
    }
    Ok(ssds.into_iter().map(|ssd| watch(config, &ssd.ssd)).collect::<anyhow::Result<Vec<_>>>()?.concat())
}

fn list(config: &Config) -> anyhow::Result<Vec<MigrationStatus>> {
    match daemon::exchange(config, &Request::Engine(EngineRequest::Migrations))? {
        Response::Migrations(list) => Ok(list),
        other => bail!("the daemon answered something else: {other:?}"),
    }
}

/// Until it is over; an error if the ssd has not moved.
fn watch(config: &Config, ssd: &str) -> anyhow::Result<String> {
    let mut said = String::new();
    loop {
        let list = list(config)?;
        let Some(migration) = list.iter().find(|migration| migration.ssd == ssd) else {
            bail!(
                "ssd \"{ssd}\" is not being moved (an engine that was restarted forgets those that are over: see `godwit status`)"
            );
        };
        let line = line(migration);
        if migration.over {
            clear(&said);
            if matches!(migration.state.as_str(), "moved" | "arrived") {
                return Ok(line + "\n");
            }
            bail!("{line}");
        }
        show(&line, &mut said);
        std::thread::sleep(LOOK);
    }
}

/// One line that changes on a terminal; a line a change of state elsewhere.
fn show(line: &str, said: &mut String) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
        said.clone_from(&line.to_owned());
    } else if line.split(',').next() != said.split(',').next() {
        eprintln!("{line}");
        said.clone_from(&line.to_owned());
    }
}

fn clear(said: &str) {
    if !said.is_empty() && std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn in_words(list: &[MigrationStatus]) -> String {
    if list.is_empty() {
        return "no ssd is being moved\n".to_owned();
    }
    list.iter().map(|migration| line(migration) + "\n").collect()
}

fn line(migration: &MigrationStatus) -> String {
    let MigrationStatus { ssd, peer, incoming, state, reason, over, .. } = migration;
    let way = if *incoming { "from" } else { "to" };
    let mut text = format!("ssd \"{ssd}\" {way} {peer}: {state}");
    let mib = |bytes: u64| bytes >> 20;
    let millis = |nanos: u64| format!("{}.{:01} ms", nanos / 1_000_000, nanos / 100_000 % 10);
    let _infallible = if *over {
        let sent =
            if *incoming { String::new() } else { format!(", {} MiB sent", mib(migration.sent_bytes)) };
        let stun =
            migration.stun_ns.map_or(String::new(), |stun| format!(", I/O stood still for {}", millis(stun)));
        write!(text, " after {:.1} s{sent}{stun}", migration.elapsed_ms as f64 / 1000.0)
    } else if *incoming {
        write!(text, ", {} MiB in all", mib(migration.size_bytes))
    } else {
        let stun = migration
            .predicted_stun_ns
            .map_or(String::new(), |stun| format!(", it would stand still for {}", millis(stun)));
        // The first pass is measured when it ends.
        let so_far = migration.sent_bytes.saturating_mul(1000).checked_div(migration.elapsed_ms).unwrap_or(0);
        let rate = if migration.rate == 0 { so_far } else { migration.rate };
        let left = match (migration.left_bytes, rate) {
            (0, _) | (_, 0) => String::new(),
            (left, rate) => format!(" (about {} s)", left / rate),
        };
        write!(
            text,
            ", pass {}, {} MiB sent at {} MiB/s, {} MiB left{left}, written anew at {} MiB/s{stun}{}",
            migration.pass + 1,
            mib(migration.sent_bytes),
            mib(rate),
            mib(migration.left_bytes),
            mib(migration.dirty_rate),
            latency(migration)
        )
    };
    if let Some(reason) = reason {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

/// How slow the guest's I/O is.
fn latency(migration: &MigrationStatus) -> String {
    let millis = |nanos: u64| format!("{:.2} ms", nanos as f64 / 1e6);
    match (migration.p99_ns, migration.p99_before_ns) {
        (Some(now), Some(before)) => format!(", p99 {} ({} before)", millis(now), millis(before)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(["10ms", "500us", "2s"].map(micros), [Ok(10_000), Ok(500), Ok(2_000_000)]);
        for wrong in ["", "10", "ms", "10m", "-1ms", "99999999999999999999s"] {
            assert!(micros(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_budget_is_a_factor() {
        assert_eq!(
            ["1.5x", "1x", "1000x", "1.125x"].map(permille),
            [Ok(1500), Ok(1000), Ok(1_000_000), Ok(1125)]
        );
        for wrong in ["", "x", "1.5", "0.9x", "1001x", "1.2345x", "+1x", "infx", "-2x", "99999999999x"] {
            assert!(permille(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_migration_is_told_by_what_an_operator_asks() {
        let going = MigrationStatus {
            ssd: "db".to_owned(),
            peer: "b:8010".to_owned(),
            state: "copying".to_owned(),
            rate: 100 << 20,
            left_bytes: 1000 << 20,
            sent_bytes: 5 << 20,
            predicted_stun_ns: Some(4_200_000),
            p99_ns: Some(450_000),
            p99_before_ns: Some(300_000),
            ..MigrationStatus::default()
        };
        let text = line(&going);
        assert_eq!(
            text,
            "ssd \"db\" to b:8010: copying, pass 1, 5 MiB sent at 100 MiB/s, 1000 MiB left (about 10 s), written anew at 0 MiB/s, it would \
             stand still for 4.2 ms, p99 0.45 ms (0.30 ms before)"
        );
        let moved = MigrationStatus {
            state: "moved".to_owned(),
            over: true,
            elapsed_ms: 1500,
            stun_ns: Some(6_000_000),
            reason: Some("why".to_owned()),
            ..going
        };
        assert_eq!(
            line(&moved),
            "ssd \"db\" to b:8010: moved after 1.5 s, 5 MiB sent, I/O stood still for 6.0 ms: why"
        );
        assert_eq!(in_words(&[]), "no ssd is being moved\n");
    }
}
