//! The unix socket and the TCP port, and how long and how many may hold them.

use crate::tls;
use anyhow::{Context, bail};
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Connections at once, of those who may ask.
const CONNECTIONS_MAX: usize = 128;
/// Connections over TCP at once of those who have not shown yet that they may.
const HANDSHAKES_MAX: usize = 512;
/// How long they may take for it, and then wait until another leaves.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors, say).
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Who asks has shown a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverTls;

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

    /// Answers, here and over TCP, until `stop`.
    pub(crate) async fn serve(
        self,
        router: Router,
        over_tcp: Option<tls::Listener>,
        stop: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let by_socket = router.clone();
        let local = async {
            let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            loop {
                let Ok(room) = Arc::clone(&free).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let router = by_socket.clone();
                        tokio::spawn(async move {
                            answer(stream, router).await;
                            drop(room);
                        });
                    }
                    Err(error) => wait_after(&error).await,
                }
            }
        };
        let remote = async {
            match over_tcp {
                Some(over_tcp) => serve_tcp(over_tcp, router).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = local => Ok(()),
            failed = remote => failed,
            _ = stop => Ok(()),
        }
    }
}

/// Its connections are counted by themselves: whoever fills them does not keep those on the host out. So are those that have shown no
/// certificate: whoever says nothing keeps nobody out who has one.
async fn serve_tcp(over_tcp: tls::Listener, router: Router) -> anyhow::Result<()> {
    let tls::Listener { listener, acceptor } = over_tcp;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = router.layer(Extension(OverTls));
    let (free, strangers) = (Semaphore::new(CONNECTIONS_MAX), Semaphore::new(HANDSHAKES_MAX));
    let (free, strangers) = (Arc::new(free), Arc::new(strangers));
    loop {
        let stranger = Arc::clone(&strangers).acquire_owned().await?;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, router, free) = (acceptor.clone(), router.clone(), Arc::clone(&free));
                tokio::spawn(async move {
                    let _slower_without = stream.set_nodelay(true);
                    let known = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await;
                    let stream = match known {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => return tracing::info!(%peer, %error, "refused"),
                        Err(_) => return tracing::info!(%peer, "refused: it took too long to say who it is"),
                    };
                    let room = tokio::time::timeout(HANDSHAKE_PATIENCE, free.acquire_owned()).await;
                    let Ok(Ok(room)) = room else {
                        return tracing::info!(%peer, "refused: {CONNECTIONS_MAX} others are served");
                    };
                    drop(stranger);
                    answer(stream, router).await;
                    drop(room);
                });
            }
            Err(error) => wait_after(&error).await,
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn wait_after(error: &std::io::Error) {
    tracing::warn!(%error, "cannot accept");
    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}
