//! The socket file of a device: one client at a time, the next one when it has left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::channel::Channel;
use super::serve::{Connection, STACK_BYTES};
use super::session::Limits;
use super::shutdown::Shutdown;

/// Clients that may wait for their `accept`.
const BACKLOG: i32 = 16;
/// How long to pause when the process has no descriptor left to accept with.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A listening socket file; removed when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, so that only our own is ever removed.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`, for this user only (mode 0600). A socket file that nobody listens at is replaced.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_with_mode(path, 0o600)
    }

    /// Listens at `path` with these permission bits.
    pub fn bind_with_mode(path: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        remove_stale(&path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        // Before `listen` nobody can connect, so the file is never open to others.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        let metadata = fs::symlink_metadata(&path)?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, path, identity: (metadata.dev(), metadata.ino()) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a client of any protocol; `None` when `shutdown` is triggered.
    pub fn next(&self, shutdown: &Shutdown) -> io::Result<Option<UnixStream>> {
        loop {
            match wait(&[self.socket.as_fd(), shutdown.as_fd()])? {
                Ready::Second => return Ok(None),
                Ready::First => {}
            }
            if let Some(stream) = self.accept(shutdown)? {
                return Ok(Some(stream));
            }
        }
    }

    /// Hands each client to `client`, one after the other, until `shutdown` is triggered.
    ///
    /// `client` runs on a thread of its own and is expected to call [`Connection::serve`] and return. Meanwhile any
    /// other client is turned away; one that comes when the first has already hung up waits until its session is over.
    pub fn run(
        &self,
        limits: Limits,
        shutdown: &Shutdown,
        client: &mut (dyn FnMut(Connection) + Send),
    ) -> io::Result<()> {
        loop {
            match wait(&[self.socket.as_fd(), shutdown.as_fd()])? {
                Ready::Second => return Ok(()),
                Ready::First => {}
            }
            let Some(stream) = self.accept(shutdown)? else { continue };
            let connection = Connection::new(stream, limits, shutdown);
            tracing::info!(path = %self.path.display(), "vfio-user client connected");
            if let Err(error) = self.serve_one(connection, shutdown, client) {
                tracing::error!(path = %self.path.display(), %error, "a vfio-user client cannot be served");
                let _ = poll(&mut [PollFd::new(shutdown, PollFlags::IN)], Some(&ACCEPT_PAUSE));
            }
        }
    }

    fn serve_one(
        &self,
        connection: Connection,
        shutdown: &Shutdown,
        client: &mut (dyn FnMut(Connection) + Send),
    ) -> io::Result<()> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC)?;
        let channel = connection.channel();
        thread::scope(|scope| {
            let ended = &ended;
            let worker = thread::Builder::new().name("vfu-worker".into()).stack_size(STACK_BYTES);
            let worker = worker.spawn_scoped(scope, move || {
                let _tell = TellOnDrop(ended);
                client(connection);
            })?;
            let turned_away = self.turn_away_others(ended, &*channel, shutdown);
            if worker.join().is_err() {
                tracing::error!(path = %self.path.display(), "a vfio-user session panicked");
            }
            turned_away
        })
    }

    /// Returns when the present session has ended, or nobody needs to be turned away any more.
    fn turn_away_others(
        &self,
        ended: &OwnedFd,
        present: &dyn Channel,
        shutdown: &Shutdown,
    ) -> io::Result<()> {
        let mut count = 0u64;
        loop {
            match wait(&[self.socket.as_fd(), ended.as_fd()])? {
                Ready::Second => return Ok(()),
                // The present client left before this one came: it may wait for its turn.
                Ready::First if present.peer_hung_up() || shutdown.is_triggered() => return Ok(()),
                Ready::First => {
                    if self.accept(shutdown)?.is_some() {
                        count += 1;
                        // The 1st, 2nd, 4th, 8th...: whoever tries in a loop does not fill the log.
                        if count.is_power_of_two() {
                            tracing::warn!(
                                path = %self.path.display(), count,
                                "another vfio-user client was turned away: the device is in use"
                            );
                        }
                    }
                }
            }
        }
    }

    /// `None` when there is nobody after all, or no descriptor to accept with.
    fn accept(&self, shutdown: &Shutdown) -> io::Result<Option<UnixStream>> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(stream) => Ok(Some(UnixStream::from(stream))),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                tracing::error!(path = %self.path.display(), "no descriptor or memory left to accept a client");
                let _ = poll(&mut [PollFd::new(shutdown, PollFlags::IN)], Some(&ACCEPT_PAUSE));
                Ok(None)
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens at; anything else in the way is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens at this path")),
    }
}

enum Ready {
    First,
    Second,
}

/// Waits for one of two descriptors to become readable; the second goes first.
fn wait(fds: &[std::os::fd::BorrowedFd<'_>; 2]) -> io::Result<Ready> {
    loop {
        let mut fds = [PollFd::new(&fds[0], PollFlags::IN), PollFd::new(&fds[1], PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(Ready::Second),
            Ok(_) => return Ok(Ready::First),
        }
    }
}

struct TellOnDrop<'a>(&'a OwnedFd);

impl Drop for TellOnDrop<'_> {
    fn drop(&mut self) {
        let _ = rustix::io::write(self.0, &1u64.to_ne_bytes());
    }
}
