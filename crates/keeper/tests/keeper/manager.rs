//! A service manager's double: it listens at a NOTIFY_SOCKET, keeps the descriptors it is given, and starts the keeper again with
//! them when it has died, as systemd does.

use crate::harness::{House, options};
use keeper::{Keeper, Limits, Notify, Options};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The configuration, in a process that is to be a keeper.
const CONFIG: &str = "STORED_KEEPER_CONFIG";
/// The engine's habits.
const HABITS: &str = "STORED_KEEPER_HABITS";

fn keeper_options() -> Option<Options> {
    let text = std::env::var(CONFIG).ok()?;
    let habits = std::env::var(HABITS).unwrap_or_default();
    let arguments = |test: &str| ["--exact", test, "--nocapture", "--test-threads=1"].map(Into::into).into();
    let again = keeper::Again {
        program: std::env::current_exe().expect("a path"),
        resume: arguments("manager::keeper_resumed"),
        check: arguments("successions::keeper_check"),
    };
    let notify = Notify::from_environment();
    Some(Options { notify, again: Some(again), ..options(&text, &habits, Limits::default()) })
}

fn run(keeper: Keeper) {
    let (_stop, stopped) = UnixStream::pair().expect("pair");
    keeper.run(&stopped).expect("never ends");
}

/// Not a test: a keeper's `main`.
#[test]
fn keeper_process() {
    if let Some(options) = keeper_options() {
        run(Keeper::new(options).expect("a keeper"));
    }
}

/// Not a test: the `main` of a keeper after a re-exec.
#[test]
fn keeper_resumed() {
    if let Some(options) = keeper_options() {
        run(Keeper::resume(options).expect("a keeper"));
    }
}

/// What was given to the manager.
#[derive(Default)]
struct Shelf {
    fds: Vec<(String, OwnedFd)>,
    ready: u32,
}

pub struct Manager {
    house: House,
    habits: String,
    socket: Arc<UnixDatagram>,
    shelf: Arc<Mutex<Shelf>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

impl Manager {
    pub fn start(habits: &str) -> Self {
        let house = House { directory: tempfile::tempdir().expect("directory") };
        let socket = Arc::new(UnixDatagram::bind(house.path("notify")).expect("bound"));
        let (shelf, stop) = (Arc::new(Mutex::new(Shelf::default())), Arc::new(AtomicBool::new(false)));
        let reader = {
            let (socket, shelf, stop) = (Arc::clone(&socket), Arc::clone(&shelf), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    drain(&socket, &shelf);
                    std::thread::sleep(Duration::from_micros(200));
                }
            })
        };
        let child = spawn(&house, habits, &shelf);
        let habits = habits.to_owned();
        let manager = Self { house, habits, socket, shelf, stop, reader: Some(reader), child };
        manager.back();
        manager
    }

    /// SIGKILL to the keeper, and nothing else.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("dead");
    }

    /// Starts the keeper again, with what was kept.
    pub fn restart(&mut self) {
        // Messages are read before the dead are looked at.
        drain(&self.socket, &self.shelf);
        self.child = spawn(&self.house, &self.habits, &self.shelf);
    }

    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Waits until someone answers again, and serves.
    pub fn back(&self) -> api::control::Status {
        let mut tries = 0;
        while UnixStream::connect(self.path("control")).is_err() {
            tries += 1;
            assert!(tries < 4000, "no keeper");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.serving()
    }

    pub fn names(&self) -> Vec<String> {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = shelf.fds.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    pub fn ready(&self) -> u32 {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).ready
    }
}

impl Deref for Manager {
    type Target = House;
    fn deref(&self) -> &House {
        &self.house
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Takes all messages there are.
fn drain(socket: &UnixDatagram, shelf: &Mutex<Shelf>) {
    let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let Ok(got) = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) else {
            return;
        };
        let text = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = fds.flatten().collect();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if text.lines().any(|line| line == "FDSTORE=1") {
            assert!(text.contains("FDPOLL=0"), "what has hung up would be dropped: {text}");
            shelf.fds.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
            assert!(shelf.fds.len() <= 8, "more than FileDescriptorStoreMax asks for");
        } else if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
            shelf.fds.retain(|(other, _)| *other != name);
        }
        shelf.ready += u32::from(text.lines().any(|line| line == "READY=1"));
    }
}

/// Starts a keeper with what is kept as descriptors 3 and on. A shell puts them there.
fn spawn(house: &House, habits: &str, shelf: &Mutex<Shelf>) -> Child {
    let shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    // High enough to be in nobody's way.
    let high: Vec<OwnedFd> =
        shelf.fds.iter().map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, 100).expect("room")).collect();
    let inherit = |flags| high.iter().for_each(|fd| rustix::io::fcntl_setfd(fd, flags).expect("set"));
    let moves: String =
        (3..).zip(&high).map(|(to, fd)| format!(" {to}<&{0} {0}<&-", fd.as_raw_fd())).collect();
    let names: Vec<&str> = shelf.fds.iter().map(|(name, _)| name.as_str()).collect();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("export LISTEN_PID=$$; exec \"$@\" {moves}"), "bash"]);
    command.arg(std::env::current_exe().expect("a path"));
    command.args(["--exact", "manager::keeper_process", "--nocapture", "--test-threads=1"]);
    command.env(CONFIG, house.config_text()).env(HABITS, habits);
    command.env("KEEPER_CONFIG", house.config_text());
    command.env("NOTIFY_SOCKET", house.path("notify")).env("FDSTORE", "8");
    command.env("LISTEN_FDS", high.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    inherit(FdFlags::empty());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    inherit(FdFlags::CLOEXEC);
    child.expect("started")
}
