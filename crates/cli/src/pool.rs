//! `godwit volume`: what is in the daemon's pools, and what can be done with it on a host without an agent.

use crate::daemon;
use anyhow::{Context, bail};
use api::config::Config;
use api::control::{PoolRequest, PoolStatus, Request, Response};
use api::size::Size;
use clap::Subcommand;
use std::fmt::Write as _;
use std::path::PathBuf;

/// About pools and what is in them, by the daemon itself.
#[derive(Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a file or block device a pool, which the configuration can name then. One that is taken is refused.
    Format {
        /// The pool's name.
        name: String,
        /// The file or block device.
        path: PathBuf,
        /// Make the file, or extend it, to this size.
        #[arg(long)]
        size: Option<Size>,
        /// Size of an extent, 1MiB to 1GiB. Without it: by the drive's size.
        #[arg(long)]
        extent: Option<Size>,
        /// The drive is taken, and all on it may be lost: its serial number, as `godwit drive list` shows it.
        #[arg(long, value_name = "SERIAL")]
        force_destroy_data: Option<String>,
    },
    /// Show the pools and what is in them.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look for inconsistencies, and volumes that no ssd has.
    Check {
        /// The pool; or, for one that is not in the configuration, its drive's path.
        pool: String,
        /// Put right what is safe: a header from the other, a map from the one before it. Nothing is guessed.
        #[arg(long)]
        repair: bool,
    },
    /// Delete an ssd's data, or a snapshot. Its extents are wiped before anybody else gets them.
    Delete {
        /// The pool.
        pool: String,
        /// The ssd or snapshot; an ssd must be out of the configuration.
        volume: String,
        /// Do not ask: it cannot be undone.
        #[arg(long)]
        yes: bool,
    },
    /// Make an ssd's volume larger.
    Grow {
        /// The pool.
        pool: String,
        /// The ssd.
        volume: String,
        /// Its size then.
        size: Size,
    },
    /// Keep what an ssd contains now, unchangeable.
    Snapshot {
        /// The pool.
        pool: String,
        /// The ssd.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Make a volume that begins with what an ssd or snapshot contains now. An ssd of its name in the configuration has
    /// it.
    Clone {
        /// The pool.
        pool: String,
        /// The ssd or snapshot.
        volume: String,
        /// The clone's name.
        name: String,
    },
    /// Give a pool up, so that another host may open it.
    Export {
        /// The pool.
        pool: String,
    },
}

pub(crate) fn run(config: &Config, command: &VolumeCommand) -> anyhow::Result<String> {
    let request = match command {
        VolumeCommand::List { json } => return list(config, *json),
        VolumeCommand::Format { name, path, size, extent, force_destroy_data } => PoolRequest::Create {
            name: name.clone(),
            path: std::path::absolute(path)?,
            size_bytes: size.map(|size| size.bytes),
            extent_bytes: extent.map(|size| size.bytes),
            force_destroy_data: force_destroy_data.clone(),
            uuid: None,
        },
        VolumeCommand::Check { pool, repair } => PoolRequest::Check { pool: pool.clone(), repair: *repair },
        VolumeCommand::Delete { pool, volume, yes } => {
            if !yes {
                bail!("this destroys the data of \"{volume}\" for good; add --yes to do it");
            }
            PoolRequest::Delete { pool: pool.clone(), volume: volume.clone() }
        }
        VolumeCommand::Grow { pool, volume, size } => {
            PoolRequest::Grow { pool: pool.clone(), volume: volume.clone(), size_bytes: size.bytes }
        }
        VolumeCommand::Snapshot { pool, volume, name } => {
            PoolRequest::Snapshot { pool: pool.clone(), volume: volume.clone(), name: name.clone() }
        }
        VolumeCommand::Clone { pool, volume, name } => {
            PoolRequest::Clone { pool: pool.clone(), volume: volume.clone(), name: name.clone() }
        }
        VolumeCommand::Export { pool } => PoolRequest::Export { pool: pool.clone() },
    };
    ask(config, request)
}

fn ask(config: &Config, request: PoolRequest) -> anyhow::Result<String> {
    Ok(daemon::ask(config, &Request::Pool(request))? + "\n")
}

fn pools(config: &Config) -> anyhow::Result<Vec<PoolStatus>> {
    match daemon::exchange(config, &Request::Pool(PoolRequest::List))? {
        Response::Pool(pools) => Ok(pools),
        other => bail!("the daemon answered something else: {other:?}"),
    }
}

fn list(config: &Config, json: bool) -> anyhow::Result<String> {
    let pools = pools(config)?;
    if json {
        return Ok(serde_json::to_string_pretty(&pools).context("the answer as JSON")? + "\n");
    }
    Ok(in_words(&pools))
}

fn in_words(pools: &[PoolStatus]) -> String {
    let mut text = String::new();
    if pools.is_empty() {
        text.push_str(
            "no pools; `godwit volume format NAME PATH` makes one, [[pool]] in the configuration serves it\n",
        );
    }
    for pool in pools {
        let bytes = |extents: u64| size(extents.saturating_mul(pool.extent_bytes));
        let _infallible = writeln!(
            text,
            "pool  {}  {}, {}: {} of {} free, {} used, {} being wiped, extents of {}",
            pool.name,
            pool.state,
            pool.path.display(),
            bytes(pool.free),
            bytes(pool.extents),
            bytes(pool.used),
            bytes(pool.wiping),
            size(pool.extent_bytes),
        );
        if pool.quarantined > 0 {
            let _infallible =
                writeln!(text, "      {} could not be wiped: quarantined", bytes(pool.quarantined));
        }
        if pool.waiting > 0 {
            let _infallible = writeln!(text, "      FULL: writes to {} extents wait for space", pool.waiting);
        }
        for volume in &pool.volumes {
            let kind = match (volume.read_only, volume.thin) {
                (true, _) => "snapshot",
                (false, true) => "thin",
                (false, false) => "full",
            };
            let served = if volume.served { ", served" } else { "" };
            let moved = volume.migration.as_ref().map_or(String::new(), |step| format!(", {step}"));
            let _infallible = writeln!(
                text,
                "      {}  {} {kind}, {} mapped{moved}{served}",
                volume.name,
                size(volume.size_bytes),
                size(volume.mapped_bytes)
            );
        }
    }
    text
}

/// Binary units, exact where they are whole.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = units.into_iter().find(|(_, shift)| bytes >> shift > 0);
    let Some((unit, shift)) = fitting else { return format!("{bytes} B") };
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    match rest {
        0 => format!("{whole} {unit}"),
        _ => format!("{whole}.{} {unit}", (rest >> (shift - 10)) * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::control::VolumeStatus;

    #[test]
    fn a_list_says_what_is_free_and_what_waits() {
        let volume =
            VolumeStatus { name: "a".to_owned(), size_bytes: 3 << 29, thin: true, ..VolumeStatus::default() };
        let pool = PoolStatus {
            name: "p".to_owned(),
            extent_bytes: 1 << 20,
            extents: 1024,
            free: 10,
            waiting: 3,
            volumes: vec![volume],
            ..PoolStatus::default()
        };
        let text = in_words(&[pool]);
        for part in ["10 MiB of 1 GiB free", "writes to 3 extents wait", "a  1.5 GiB thin"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
