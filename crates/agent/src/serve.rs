//! The unix socket, and how long and how many may hold it.

use anyhow::{Context, bail};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections at once.
const CONNECTIONS_MAX: usize = 128;
/// How long the head of a request may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors, say).
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A socket in the file system; its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, for those whom `mode` lets. The file has its mode before it has its name.
    pub(crate) fn bind(path: &Path, mode: u32) -> anyhow::Result<Self> {
        let place = path.display();
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("somebody listens at {place} already: another agent? give this one a --socket of its own");
        }
        if let Ok(kind) = std::fs::symlink_metadata(path).map(|found| found.file_type())
            && !std::os::unix::fs::FileTypeExt::is_socket(&kind)
        {
            bail!("{place} is there and no socket; it is left as it is: give the agent another --socket");
        }
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        let _not_there = std::fs::remove_file(&new);
        let bound = UnixListener::bind(&new)
            .and_then(|listener| {
                std::fs::set_permissions(&new, Permissions::from_mode(mode))?;
                std::fs::rename(&new, path)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .inspect_err(|_| _ = std::fs::remove_file(&new));
        let listener = bound.with_context(|| {
            format!("cannot listen at {place}: is its directory there and writable, and the path short?")
        })?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers, until `stop`.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accept = async {
            loop {
                let Ok(room) = Arc::clone(&free).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let service = TowerToHyperService::new(router.clone());
                        tokio::spawn(async move {
                            let connection = hyper::server::conn::http1::Builder::new()
                                .timer(TokioTimer::new())
                                .header_read_timeout(HEAD_PATIENCE)
                                .serve_connection(TokioIo::new(stream), service);
                            if let Err(error) = connection.await {
                                tracing::debug!(%error, "a connection ended");
                            }
                            drop(room);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stop => {}
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}
