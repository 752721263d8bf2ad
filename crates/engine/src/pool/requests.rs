//! What people ask of a pool.

use super::thread::Worker;
use anyhow::{Context, ensure};
use api::control::{PoolRequest, PoolStatus, Response, VolumeStatus};
use volume::{Provisioning, VolumeId};

/// The open pool that a request is for.
pub(super) fn pool_of(request: &PoolRequest) -> Option<&str> {
    match request {
        PoolRequest::List | PoolRequest::Create { .. } => None,
        PoolRequest::Check { pool }
        | PoolRequest::Delete { pool, .. }
        | PoolRequest::Snapshot { pool, .. }
        | PoolRequest::Clone { pool, .. }
        | PoolRequest::Grow { pool, .. }
        | PoolRequest::Export { pool } => Some(pool),
    }
}

impl Worker {
    pub(super) fn answer(&mut self, request: PoolRequest) -> anyhow::Result<Response> {
        Ok(match request {
            PoolRequest::List => Response::Pool(vec![self.status()]),
            PoolRequest::Delete { volume, .. } => {
                let id = self.find(&volume)?;
                ensure!(
                    self.gate(id).is_none(),
                    "ssd \"{volume}\" is served; take it out of the configuration first"
                );
                self.pool.delete(id)?;
                Response::Done(format!(
                    "\"{volume}\" is deleted; its extents are wiped before anybody gets them"
                ))
            }
            PoolRequest::Snapshot { volume, name, .. } => {
                let id = self.find(&volume)?;
                self.pool.snapshot(id, &name, super::random()?)?;
                self.quiesce(id);
                Response::Done(format!("\"{name}\" keeps what \"{volume}\" contains"))
            }
            PoolRequest::Clone { volume, name, .. } => {
                let id = self.find(&volume)?;
                self.pool.clone_volume(id, &name, super::random()?)?;
                self.quiesce(id);
                Response::Done(format!("\"{name}\" begins with what \"{volume}\" contains"))
            }
            PoolRequest::Grow { volume, size_bytes, .. } => {
                let id = self.find(&volume)?;
                ensure!(
                    self.gate(id).is_none(),
                    "ssd \"{volume}\" is served; write its new size in the configuration and `godwit apply`"
                );
                self.pool.grow(id, size_bytes)?;
                Response::Done(format!("\"{volume}\" has {size_bytes} bytes"))
            }
            PoolRequest::Check { .. } => self.check()?,
            PoolRequest::Export { pool } => Response::Error(format!(
                "ssds of \"{pool}\" are served; take them out of the configuration first"
            )),
            PoolRequest::Create { .. } => Response::Error("there is a pool already".to_owned()),
        })
    }

    /// Only this thread changes the records, and it does not while it looks.
    fn check(&self) -> anyhow::Result<Response> {
        let report = volume::check(&*self.disk, None)?;
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let text = findings.join("\n");
        Ok(match report.is_sound() {
            true if text.is_empty() => Response::Done(format!("pool \"{}\" is sound", self.name)),
            true => Response::Done(format!("pool \"{}\" is sound\n{text}", self.name)),
            false => Response::Error(format!("pool \"{}\" is not sound\n{text}", self.name)),
        })
    }

    /// Gives the pool up, and ends its thread.
    pub(super) fn export(self) -> anyhow::Result<Response> {
        let name = self.name.clone();
        self.pool.export()?;
        Ok(Response::Done(format!("pool \"{name}\" is nobody's now: any host may open it")))
    }

    pub(super) fn is_served(&self) -> bool {
        self.status().volumes.iter().any(|volume| volume.served)
    }

    fn find(&self, volume: &str) -> anyhow::Result<VolumeId> {
        self.pool.find(volume).with_context(|| {
            let names: Vec<String> = self.pool.volumes().into_iter().map(|volume| volume.name).collect();
            format!("pool \"{}\" has no \"{volume}\"; it has: {}", self.name, names.join(", "))
        })
    }

    fn status(&self) -> PoolStatus {
        let info = self.pool.info();
        let volume = |volume: volume::VolumeInfo| VolumeStatus {
            served: self.gate(volume.id).is_some(),
            name: volume.name,
            size_bytes: volume.size_bytes,
            mapped_bytes: volume.mapped_extents.saturating_mul(info.extent_bytes),
            thin: volume.provisioning == Provisioning::Thin,
            read_only: volume.read_only,
            epoch: volume.epoch,
        };
        PoolStatus {
            name: self.name.clone(),
            path: std::path::PathBuf::new(),
            state: self.broken.clone().unwrap_or_else(|| "serving".to_owned()),
            uuid: info.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            epoch: info.epoch,
            extent_bytes: info.extent_bytes,
            extents: info.extents,
            free: info.free,
            used: info.used,
            wiping: info.wiping,
            quarantined: info.quarantined,
            waiting: self.wanted.len() as u64,
            volumes: self.pool.volumes().into_iter().map(volume).collect(),
        }
    }
}
