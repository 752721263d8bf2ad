//! A disk without a keeper: its socket, and its clients one after the other. Another client waits until the first has left.

use super::disk::{Disk, open_ssd};
use crate::crew::Crew;
use crate::pool::Pools;
use crate::serve::{Kept, Server};
use crate::ssd::Ssd;
use anyhow::Context;
use api::config;
use frontend::vfio_user::{Listener, Shutdown};
use frontend::vhost_user::{Limits, serve};
use std::sync::Arc;

/// A disk whose drive was found good.
pub(crate) struct Opened {
    ssd: Arc<Ssd>,
    listener: Listener,
}

/// Opens a disk and binds its socket.
pub(crate) fn open(at: usize, config: &config::Ssd, pools: &Pools) -> anyhow::Result<Opened> {
    let ssd = open_ssd(at, config, Kept::default(), None, pools)?;
    let path = config.socket.display();
    let listener = Listener::bind(&config.socket).with_context(|| {
        format!(
            "cannot listen at {path}: is the directory there and writable, and no other godwitd serving it?"
        )
    })?;
    Ok(Opened { ssd, listener })
}

impl Opened {
    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        &self.ssd
    }
}

/// Starts the disk's thread.
pub(crate) fn start(opened: Opened, crew: Arc<Crew>) -> anyhow::Result<Server> {
    let shutdown = Shutdown::new()?;
    let ends = shutdown.clone();
    let name = format!("ssd-{}", opened.ssd.id.0);
    let thread = std::thread::Builder::new().name(name).stack_size(256 << 10).spawn(move || {
        let Opened { ssd, listener } = opened;
        let name = ssd.name.clone();
        let mut disk = Disk::new(ssd, crew);
        while let Some(client) = listener.next(&ends)? {
            tracing::info!(ssd = name, "vhost-user client connected");
            if let Ok(stream) = client.try_clone() {
                disk.enter(move || _ = stream.shutdown(std::net::Shutdown::Both));
            }
            serve(client, &mut disk, &Limits::default(), &ends);
            disk.leave();
        }
        let flushed = disk.flush();
        disk.leave();
        flushed
            .map(drop)
            .context("its data cannot be made durable")
            .with_context(|| format!("ssd \"{name}\""))
    })?;
    Ok(Server { shutdown, thread })
}
