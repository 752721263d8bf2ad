//! What people ask of a pool.

use super::disk::PoolDisk;
use super::thread::{Answer, Worker};
use anyhow::{Context, bail, ensure};
use api::control::{PoolRequest, PoolStatus, Response, VolumeStatus};
use rustix::fs::OFlags;
use state::migration::MigrationV1;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::Path;
use volume::{Provisioning, Report, Severity, VolumeId};

/// The open pool that a request is for.
pub(super) fn pool_of(request: &PoolRequest) -> Option<&str> {
    match request {
        PoolRequest::List | PoolRequest::Create { .. } => None,
        PoolRequest::Check { pool, .. }
        | PoolRequest::Delete { pool, .. }
        | PoolRequest::Snapshot { pool, .. }
        | PoolRequest::Clone { pool, .. }
        | PoolRequest::Grow { pool, .. }
        | PoolRequest::Export { pool } => Some(pool),
    }
}

/// How far a volume's migration is.
fn step_of(passage: &[u8]) -> String {
    MigrationV1::from_bytes(passage).map_or("doubtful", |record| record.step()).to_owned()
}

/// What a look at a pool found; whether it is sound.
fn in_words(name: &str, report: &Report) -> (bool, String) {
    let sound = report.is_sound();
    let mut text = format!("pool {name} is {}sound", if sound { "" } else { "not " });
    for finding in &report.findings {
        let _infallible = write!(text, "\n{finding}");
    }
    if report.findings.iter().any(|one| one.severity == Severity::Repairable && !one.repaired) {
        text.push_str("\n`godwit pool check --repair` mends what is repairable, if nothing is damaged");
    }
    (sound, text)
}

/// Looks at a pool that is not open, and mends it if that is wanted and safe.
pub(super) fn check_path(path: &Path, repair: bool) -> anyhow::Result<(bool, String)> {
    let exclusive = if super::is_device(path) { OFlags::EXCL } else { OFlags::empty() };
    let flags = i32::try_from(exclusive.bits()).unwrap_or(0);
    let file = drive::source::open(path, OpenOptions::new().read(true).write(true), flags);
    let file = file.with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        bail!("{} is in use: whoever serves it can check it", path.display());
    }
    let len_bytes = super::format::drive_len(&file)?;
    let options = repair.then(super::options).transpose()?;
    let report = volume::check(&PoolDisk::new(file.into(), len_bytes), options.as_ref())
        .with_context(|| path.display().to_string())?;
    Ok(in_words(&format!("on {}", path.display()), &report))
}

impl Worker {
    pub(super) fn answer(&mut self, request: PoolRequest) -> anyhow::Result<Answer> {
        let response = match request {
            PoolRequest::List => Response::Pool(vec![self.status()]),
            PoolRequest::Delete { volume, .. } => {
                let id = self.find(&volume)?;
                let is_snapshot = self.steward.pool().volume(id).is_some_and(|info| info.read_only);
                ensure!(
                    !is_snapshot || self.steward.gate(id).is_none(),
                    "snapshot \"{volume}\" is being read for another host: wait for its ssd, its migration is not over"
                );
                ensure!(
                    self.steward.gate(id).is_none(),
                    "ssd \"{volume}\" is served; take it out of the configuration first"
                );
                self.steward.delete(id)?;
                Response::Done(format!(
                    "\"{volume}\" is deleted; its extents are wiped before anybody gets them"
                ))
            }
            PoolRequest::Snapshot { volume, name, .. } => {
                let id = self.find(&volume)?;
                let (_, settling) = self.steward.snapshot(id, &name, super::random()?)?;
                let text = format!("\"{name}\" keeps what \"{volume}\" contains");
                return Ok(Answer::Settled(settling, text));
            }
            PoolRequest::Clone { volume, name, .. } => {
                let id = self.find(&volume)?;
                let (_, settling) = self.steward.clone_volume(id, &name, super::random()?)?;
                let text = format!("\"{name}\" begins with what \"{volume}\" contains");
                return Ok(Answer::Settled(settling, text));
            }
            PoolRequest::Grow { volume, size_bytes, .. } => {
                let id = self.find(&volume)?;
                ensure!(
                    self.steward.gate(id).is_none(),
                    "ssd \"{volume}\" is served; write its new size in the configuration and `godwit apply`"
                );
                self.steward.grow(id, size_bytes)?;
                Response::Done(format!("\"{volume}\" has {size_bytes} bytes"))
            }
            PoolRequest::Check { .. } => self.check()?,
            PoolRequest::Export { pool } => Response::Error(format!(
                "ssds of \"{pool}\" are served; take them out of the configuration first"
            )),
            PoolRequest::Create { .. } => Response::Error("there is a pool already".to_owned()),
        };
        Ok(Answer::Now(response))
    }

    /// Only this thread changes the records, and it does not while it looks.
    fn check(&self) -> anyhow::Result<Response> {
        let report = volume::check(&**self.steward.medium(), None)?;
        let (sound, mut text) = in_words(&format!("\"{}\"", self.name), &report);
        for volume in self.steward.pool().volumes() {
            if !volume.read_only && self.steward.gate(volume.id).is_none() {
                let _infallible = write!(
                    text,
                    "\nnote: \"{0}\" ({1} bytes) is served by no ssd: one of that name in the configuration has it, and `godwit pool \
                     delete {2} {0} --yes` removes it with its data. A change that was refused may have left it",
                    volume.name, volume.size_bytes, self.name
                );
            }
        }
        Ok(if sound { Response::Done(text) } else { Response::Error(text) })
    }

    /// Gives the pool up, and ends its thread.
    pub(super) fn export(self) -> anyhow::Result<Response> {
        let name = self.name.clone();
        self.steward.export()?;
        Ok(Response::Done(format!("pool \"{name}\" is nobody's now: any host may open it")))
    }

    pub(super) fn find(&self, volume: &str) -> anyhow::Result<VolumeId> {
        self.steward.pool().find(volume).with_context(|| {
            let names: Vec<String> =
                self.steward.pool().volumes().into_iter().map(|volume| volume.name).collect();
            format!("pool \"{}\" has no \"{volume}\"; it has: {}", self.name, names.join(", "))
        })
    }

    fn status(&self) -> PoolStatus {
        let info = self.steward.pool().info();
        let volumes = self.steward.pool().volumes();
        let name_of = |id: VolumeId| volumes.iter().find(|volume| volume.id == id).map(|it| it.name.clone());
        let volume = |volume: volume::VolumeInfo| VolumeStatus {
            parent: volume.parent.and_then(&name_of),
            served: self.steward.gate(volume.id).is_some(),
            name: volume.name,
            size_bytes: volume.size_bytes,
            mapped_bytes: volume.mapped_extents.saturating_mul(info.extent_bytes),
            thin: volume.provisioning == Provisioning::Thin,
            read_only: volume.read_only,
            epoch: volume.epoch,
            migration: volume.passage.map(|bytes| step_of(&bytes)),
        };
        PoolStatus {
            name: self.name.clone(),
            path: std::path::PathBuf::new(),
            state: self.steward.broken().unwrap_or("serving").to_owned(),
            uuid: info.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            epoch: info.epoch,
            extent_bytes: info.extent_bytes,
            extents: info.extents,
            free: info.free,
            used: info.used,
            wiping: info.wiping,
            quarantined: info.quarantined,
            waiting: self.steward.waiting() as u64,
            volumes: volumes.iter().cloned().map(volume).collect(),
        }
    }
}
