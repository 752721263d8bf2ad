//! One socket file, one client at a time.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::*;
use frontend::vfio_user::{Connection, EndReason, Limits, Listener, SessionEnd, Shutdown};

pub struct Server {
    shutdown: Shutdown,
    ends: Arc<Mutex<Vec<SessionEnd>>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// One device for all clients at `path`, one after the other.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, Duration::ZERO)
    }

    /// The device takes this long to let go of a client that left.
    pub fn start_with(path: &Path, farewell: Duration) -> Self {
        let listener = Listener::bind(path).expect("bound");
        let shutdown = Shutdown::new().expect("eventfd");
        let ends: Arc<Mutex<Vec<SessionEnd>>> = Arc::default();
        let (theirs, stop) = (Arc::clone(&ends), shutdown.clone());
        let thread = std::thread::spawn(move || {
            let mut device = Fake::new();
            let mut serve = |connection: Connection| {
                device.remote = Some(connection.remote_memory());
                let end = connection.serve(&mut device);
                std::thread::sleep(farewell);
                device.kept.clear();
                theirs.lock().expect("not poisoned").push(end);
            };
            listener.run(Limits::default(), &stop, &mut serve).expect("ran");
        });
        Self { shutdown, ends, thread }
    }

    pub fn stop(self) -> Vec<SessionEnd> {
        self.shutdown.trigger();
        self.thread.join().expect("no panic");
        std::mem::take(&mut self.ends.lock().expect("not poisoned"))
    }
}

pub fn connect(path: &Path) -> Client {
    Client::new(UnixStream::connect(path).expect("connected"))
}

#[test]
fn a_second_client_is_turned_away_while_the_first_is_served() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let server = Server::start(&path);
    let mut first = connect(&path);
    first.negotiate();
    for _ in 0..3 {
        assert!(connect(&path).receive().is_none());
    }
    assert!(first.call(RESET, &[]).is_ok());
    drop(first);
    let mut next = connect(&path);
    next.negotiate();
    drop(next);
    assert_eq!(server.stop().len(), 2);
}

#[test]
fn a_client_that_comes_right_after_the_last_one_left_is_served_however_long_the_farewell_takes() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let server = Server::start_with(&path, Duration::from_millis(20));
    for _ in 0..20 {
        let mut client = connect(&path);
        client.negotiate();
        assert!(
            client.call(DMA_MAP, &dma_map(3, 0, 0x1000, 0x1000)).is_ok(),
            "nothing is left of the last client"
        );
    }
    let ends = server.stop();
    assert!(ends.iter().all(|end| end.refused == 0));
    assert!(ends.len() >= 19);
}

#[test]
fn deeply_nested_version_data_does_not_overflow_the_small_stack_of_the_worker() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let server = Server::start(&path);
    let nest = |open: &str, close: &str| format!("{}1{}", open.repeat(2000), close.repeat(2000));
    for inner in [nest("[", "]"), nest("{\"a\":", "}")] {
        for json in [
            format!("{{\"x\":{inner}}}"),
            format!("{{\"capabilities\":{{\"x\":{inner}}}}}"),
            format!("{{\"capabilities\":{inner}}}"),
            format!("{{\"capabilities\":{{\"pgsizes\":{inner}}}}}"),
            inner,
        ] {
            let mut client = connect(&path);
            client.call(VERSION, &version(&json));
        }
    }
    let mut client = connect(&path);
    client.negotiate();
    server.stop();
}

#[test]
fn the_socket_is_private_and_goes_with_its_listener() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let listener = Listener::bind(&path).expect("bound");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(!path.exists());
    let listener = Listener::bind_with_mode(&path, 0o660).expect("bound");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
    // A file that has taken the name since then is not ours to remove.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "other").expect("written");
    drop(listener);
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    let listener = Listener::bind(&path).expect("the stale file is replaced");
    let error = Listener::bind(&path).expect_err("somebody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    std::fs::write(&path, "precious").expect("written");
    let error = Listener::bind(&path).expect_err("a file is in the way");
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    let long = directory.path().join("x".repeat(200));
    assert!(Listener::bind(long).is_err());
}

#[test]
fn shutdown_stops_a_listener_with_and_without_a_client() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    assert!(Server::start(&path).stop().is_empty());
    let server = Server::start(&path);
    let mut client = connect(&path);
    client.negotiate();
    let ends = server.stop();
    assert_eq!(ends[0].reason, EndReason::Shutdown);
    assert!(client.receive().is_none());
}
