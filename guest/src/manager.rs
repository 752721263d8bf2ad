//! A service manager's double: it listens at a NOTIFY_SOCKET, keeps the descriptors it is given (FDSTORE), and starts a daemon
//! with them (LISTEN_FDS), as systemd does.
//!
//! Not here: that it restarts a daemon by itself, looks at the watchdog, or tells the main process from others.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// As many as the double keeps (FileDescriptorStoreMax).
const ROOM: usize = 8;
/// Descriptors on their way to a daemon are numbered from here, where they are in nobody's way.
const HIGH: i32 = 200;

/// See the module.
pub struct Manager {
    path: PathBuf,
    desk: Arc<Desk>,
    reader: Option<JoinHandle<()>>,
}

/// What its thread sees.
struct Desk {
    socket: UnixDatagram,
    shelf: Mutex<Shelf>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Shelf {
    fds: Vec<(String, OwnedFd)>,
    ready: u32,
    /// What it was told and does not understand, or should not have been told.
    wrong: Vec<String>,
}

impl Manager {
    /// Listens in a folder.
    ///
    /// # Errors
    /// It cannot.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join("notify");
        let desk = Desk {
            socket: UnixDatagram::bind(&path)?,
            shelf: Mutex::default(),
            stop: AtomicBool::new(false),
        };
        let desk = Arc::new(desk);
        let theirs = Arc::clone(&desk);
        let read = move || {
            while !theirs.stop.load(Ordering::Relaxed) {
                theirs.wait();
                theirs.drain();
            }
        };
        let reader = Some(std::thread::Builder::new().name("manager".to_owned()).spawn(read)?);
        Ok(Self { path, desk, reader })
    }

    /// Starts a daemon with what is kept as descriptors 3 and on. A shell puts them there. A file that may not grow further (RLIMIT_FSIZE) is an error
    /// for it, and not its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, program: &Path, prepare: impl FnOnce(&mut Command)) -> io::Result<Child> {
        // As systemd does: messages first, then the dead.
        self.desk.drain();
        let shelf = self.desk.lock();
        let high: Vec<OwnedFd> = shelf
            .fds
            .iter()
            .map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, HIGH))
            .collect::<Result<_, _>>()?;
        let moves: String =
            (3..).zip(&high).map(|(to, fd)| format!(" {to}<&{0} {0}<&-", fd.as_raw_fd())).collect();
        let names: Vec<&str> = shelf.fds.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!("trap '' XFSZ; export LISTEN_PID=$$; exec \"$@\" {moves}"), "bash"])
            .arg(program);
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", ROOM.to_string());
        command.env("LISTEN_FDS", high.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        prepare(&mut command);
        let inherit = |flags| high.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, flags));
        inherit(FdFlags::empty())?;
        let child = command.spawn();
        inherit(FdFlags::CLOEXEC)?;
        child
    }

    /// Forgets what it keeps, as when the host goes off.
    pub fn forget(&self) {
        self.desk.drain();
        self.desk.lock().fds.clear();
    }

    /// What the kept descriptors are called, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.desk.drain();
        let mut names: Vec<String> = self.desk.lock().fds.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// How often a daemon was ready.
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.desk.drain();
        self.desk.lock().ready
    }

    /// What it was told and should not have been.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.desk.lock().wrong.clone()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.desk.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Desk {
    /// Until somebody says something, or for a moment.
    fn wait(&self) {
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&moment));
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all messages there are.
    fn drain(&self) {
        let mut shelf = self.lock();
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
            let Ok(got) = got else { return };
            let text = String::from_utf8_lossy(bytes.get(..got.bytes).unwrap_or(&[])).into_owned();
            let fds = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            shelf.take(&text, fds.flatten().collect());
        }
    }
}

impl Shelf {
    fn take(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let has = |wanted: &str| text.lines().any(|line| line == wanted);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if has("FDSTORE=1") {
            // Without FDPOLL=0 systemd drops what has nobody at its other end.
            if !has("FDPOLL=0") || fds.len() != 1 || self.fds.len() >= ROOM {
                self.wrong.push(text.to_owned());
            }
            self.fds.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        } else if has("FDSTOREREMOVE=1") {
            self.fds.retain(|(other, _)| *other != name);
        }
        self.ready += u32::from(has("READY=1"));
    }
}
