//! A socket file that clients find.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Clients that may wait for their `accept`.
const BACKLOG: i32 = 16;

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) path: PathBuf,
    /// Device and inode of the file, so that only our own is ever removed.
    identity: (u64, u64),
    /// Another keeper goes on with it: the file stays.
    pub(crate) stays: bool,
}

/// What came of an `accept`.
#[derive(Debug)]
pub(crate) enum Accepted {
    Client(OwnedFd),
    Nobody,
    /// No descriptor or memory is left.
    NoRoom,
}

impl Listener {
    /// Listens at `path`, for this user only (mode 0600); in a set-group-id folder, whose group the file has, for that group too
    /// (0660). A socket file that nobody listens at is replaced.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        remove_stale(&path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        // Before `listen` nobody can connect, so the file is never open to others.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode_in(&path)?))?;
        listen(&socket, BACKLOG)?;
        Self::adopt(Arc::new(socket), path)
    }

    /// A socket that listens at `path` already.
    pub(crate) fn adopt(socket: Arc<OwnedFd>, path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { socket, path, identity, stays: false })
    }

    pub(crate) fn accept(&self) -> Accepted {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Accepted::Client(socket),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => Accepted::NoRoom,
            Err(_) => Accepted::Nobody,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who makes a folder set-group-id says that what is made in it is its group's.
fn mode_in(path: &Path) -> io::Result<u32> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_groups = fs::metadata(folder)?.permissions().mode() & 0o2000 != 0;
    Ok(if is_groups { 0o660 } else { 0o600 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_is_private_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_set_group_id_folder_opens_its_sockets_to_its_group_and_to_nobody_else() {
        let directory = tempfile::tempdir().expect("directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o2750)).expect("set");
        let path = directory.path().join("socket");
        let _listener = Listener::bind(&path).expect("bound");
        let file = fs::metadata(&path).expect("there");
        assert_eq!(file.permissions().mode() & 0o777, 0o660);
        assert_eq!(file.gid(), fs::metadata(directory.path()).expect("there").gid());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).expect("bound"));
        let listener = Listener::bind(&path).expect("the stale file is replaced");
        assert_eq!(Listener::bind(&path).expect_err("somebody listens").kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        fs::write(&path, "precious").expect("written");
        assert_eq!(Listener::bind(&path).expect_err("a file").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }
}
