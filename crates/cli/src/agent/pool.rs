//! Pools, snapshots, certificates and attachments, through the agent.

use super::columns;
use super::{How, Reach, confirm, part, show, submit};
use anyhow::bail;
use api::rest::{
    Attachment, AttachmentCreate, Certificate, List, Pool, PoolCheck, PoolCreate, Snapshot, SnapshotCreate,
};
use api::size::Size;
use clap::Subcommand;
use hyper::Method;
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a drive a pool, and serve it. One that is taken is refused.
    Create {
        /// The pool's name.
        name: String,
        /// The block device, or a file in its place.
        path: PathBuf,
        /// Make a file of this size, where there is nothing yet.
        #[arg(long, value_name = "SIZE")]
        size: Option<Size>,
        /// Size of an extent, 1MiB to 1GiB. Without it: by the drive's size.
        #[arg(long, value_name = "SIZE")]
        extent: Option<Size>,
        /// The drive is taken, and all on it may be lost: its serial number, as `godwit drive list` shows it.
        #[arg(long, value_name = "SERIAL")]
        force_destroy_data: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Serve the pool that is on a drive already, such as one from another host.
    Import {
        /// The pool's name.
        name: String,
        /// The block device or file.
        path: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Show all pools.
    #[command(visible_alias = "ls")]
    List(Reach),
    /// Show one pool.
    Show {
        /// The pool.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Look for inconsistencies of a pool while it is served. Changes nothing.
    Check {
        /// The pool.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Let a pool go: its drive is served no more, and any host may import it. Nothing on it is erased; one with ssds is refused.
    Delete {
        /// The pool.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep what an ssd contains now, unchangeable. `godwit ssd create NAME --from-snapshot` begins with it.
    Create {
        /// The snapshot's name.
        name: String,
        /// The ssd, which is in a pool.
        #[arg(long)]
        ssd: String,
        #[command(flatten)]
        how: How,
    },
    /// Show all snapshots.
    #[command(visible_alias = "ls")]
    List(Reach),
    /// Show one snapshot.
    Show {
        /// The snapshot.
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Delete a snapshot, and wipe what was its alone.
    #[command(visible_alias = "rm")]
    Delete {
        /// The snapshot.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Subcommand)]
pub(crate) enum CertificateCommand {
    /// Show what was deleted from pools, and whether it is wiped.
    #[command(visible_alias = "ls")]
    List {
        /// How many, the newest.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show all of one certificate.
    Show {
        /// The operation that deleted.
        id: String,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Subcommand)]
pub(crate) enum AttachmentCommand {
    /// Promise an ssd to a guest: it can then neither be deleted nor promised to another.
    Create {
        /// The ssd.
        ssd: String,
        /// The guest, as whoever runs guests calls it.
        #[arg(long)]
        guest: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show which ssd is which guest's.
    #[command(visible_alias = "ls")]
    List(Reach),
    /// Take the promise back. A guest that is connected stays so.
    #[command(visible_alias = "rm")]
    Delete {
        /// The ssd.
        ssd: String,
        #[command(flatten)]
        reach: Reach,
    },
}

/// Does what is asked about a pool.
pub(crate) fn pool(command: &PoolCommand) -> anyhow::Result<()> {
    match command {
        PoolCommand::Create { name, path, size, extent, force_destroy_data, how } => {
            let wish = PoolCreate {
                name: name.clone(),
                path: std::path::absolute(path)?.display().to_string(),
                size_bytes: size.map(|size| size.bytes),
                extent_bytes: extent.map(|size| size.bytes),
                force_destroy_data: force_destroy_data.clone(),
                import: false,
            };
            submit(&Method::POST, "pools", Some(&wish), None, how)
        }
        PoolCommand::Import { name, path, how } => {
            let path = std::path::absolute(path)?.display().to_string();
            let wish = PoolCreate { name: name.clone(), path, import: true, ..PoolCreate::default() };
            submit(&Method::POST, "pools", Some(&wish), None, how)
        }
        PoolCommand::List(reach) => {
            let list: List<Pool> = reach.client()?.get("pools")?;
            show(&columns::list(&list.items, &columns::POOL, reach.output)?)
        }
        PoolCommand::Show { name, reach } => {
            let pool: Pool = reach.client()?.get(&format!("pools/{}", part(name)))?;
            show(&columns::one(&pool, &columns::POOL, reach.output)?)
        }
        PoolCommand::Check { name, reach } => {
            let check: PoolCheck = reach.client()?.get(&format!("pools/{}/check", part(name)))?;
            match check.sound {
                true => show(&(check.text + "\n")),
                false => bail!("{}", check.text),
            }
        }
        PoolCommand::Delete { name, yes, how } => {
            if !how.dry_run && !yes {
                confirm(&format!("Let pool \"{name}\" go? Nothing on its drive is erased."))?;
            }
            submit(&Method::DELETE, &format!("pools/{}", part(name)), None::<&()>, None, how)
        }
    }
}

/// Does what is asked about a snapshot.
pub(crate) fn snapshot(command: &SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create { name, ssd, how } => {
            let wish = SnapshotCreate { name: name.clone(), ssd: ssd.clone() };
            submit(&Method::POST, "snapshots", Some(&wish), None, how)
        }
        SnapshotCommand::List(reach) => {
            let list: List<Snapshot> = reach.client()?.get("snapshots")?;
            show(&columns::list(&list.items, &columns::SNAPSHOT, reach.output)?)
        }
        SnapshotCommand::Show { name, reach } => {
            let snapshot: Snapshot = reach.client()?.get(&format!("snapshots/{}", part(name)))?;
            show(&columns::one(&snapshot, &columns::SNAPSHOT, reach.output)?)
        }
        SnapshotCommand::Delete { name, yes, how } => {
            if !how.dry_run && !yes {
                confirm(&format!("Delete snapshot \"{name}\" and its data?"))?;
            }
            submit(&Method::DELETE, &format!("snapshots/{}", part(name)), None::<&()>, None, how)
        }
    }
}

/// Does what is asked about a certificate.
pub(crate) fn certificate(command: &CertificateCommand) -> anyhow::Result<()> {
    match command {
        CertificateCommand::List { limit, reach } => {
            let list: List<Certificate> = reach.client()?.get(&format!("certificates?limit={limit}"))?;
            show(&columns::list(&list.items, &columns::CERTIFICATE, reach.output)?)
        }
        CertificateCommand::Show { id, reach } => {
            let certificate: Certificate = reach.client()?.get(&format!("certificates/{}", part(id)))?;
            show(&columns::one(&certificate, &columns::CERTIFICATE, reach.output)?)
        }
    }
}

/// Does what is asked about an attachment.
pub(crate) fn attachment(command: &AttachmentCommand) -> anyhow::Result<()> {
    match command {
        AttachmentCommand::Create { ssd, guest, reach } => {
            let wish = AttachmentCreate { ssd: ssd.clone(), guest: guest.clone() };
            reach.client()?.change(Method::POST, "attachments", Some(&wish))?;
            eprintln!("ssd \"{ssd}\" is guest \"{guest}\"'s");
            Ok(())
        }
        AttachmentCommand::List(reach) => {
            let list: List<Attachment> = reach.client()?.get("attachments")?;
            show(&columns::list(&list.items, &columns::ATTACHMENT, reach.output)?)
        }
        AttachmentCommand::Delete { ssd, reach } => {
            let path = format!("attachments/{}", part(ssd));
            reach.client()?.change(Method::DELETE, &path, None::<&()>)?;
            eprintln!("ssd \"{ssd}\" is nobody's");
            Ok(())
        }
    }
}
