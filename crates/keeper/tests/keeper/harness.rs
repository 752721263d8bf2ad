//! A keeper on a thread, with engines of the double's kind.

use crate::client::Client;
use crate::double::{ENGINE, HABITS};
use api::control::{Request, Response, Status};
use guest::PATIENCE;
use keeper::{Binary, EngineCommand, Keeper, Limits, Options};
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One keeper at a time in a process: a child of another one would inherit its link.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Running {
    pub house: House,
    stop: UnixStream,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    _alone: MutexGuard<'static, ()>,
}

/// Patient with clients, as the tests' own threads may be late.
pub fn limits() -> Limits {
    let (probation, short_life) = (Duration::from_millis(300), Duration::ZERO);
    Limits {
        frame_time: PATIENCE,
        send_time: PATIENCE,
        pause_time: PATIENCE,
        probation,
        short_life,
        ..Limits::default()
    }
}

/// Of a daemon, but for the time that clients and engines have.
pub fn patient() -> Limits {
    Limits { frame_time: PATIENCE, send_time: PATIENCE, pause_time: PATIENCE, ..Limits::default() }
}

/// For clients that are late on purpose.
pub fn impatient() -> Limits {
    let soon = Duration::from_millis(300);
    Limits { frame_time: soon, send_time: soon, ..limits() }
}

impl Running {
    pub fn start(habits: &str) -> Self {
        Self::start_with(habits, limits())
    }

    pub fn start_with(habits: &str, limits: Limits) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let house = House { directory: tempfile::tempdir().expect("directory") };
        let keeper = Keeper::new(options(&house.config_text(), habits, limits)).expect("a keeper");
        let (stop, stopped) = UnixStream::pair().expect("pair");
        let thread = std::thread::spawn(move || keeper.run(&stopped));
        Self { house, stop, thread: Some(thread), _alone: alone }
    }

    /// Asks for an orderly stop and waits for it.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.ask_to_stop();
        self.end()
    }

    pub fn ask_to_stop(&self) {
        (&self.stop).write_all(b"x").expect("written");
    }

    /// Waits for the keeper's end.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.thread.take().expect("once").join().expect("no panic")
    }

    /// Kills the engine that serves, as the kernel does when memory is short.
    pub fn kill(&self) -> u64 {
        let status = self.serving();
        let pid = i32::try_from(status.engine.pid.expect("a process")).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        self.wait("succeeded", |now| {
            now.engine.state == "serving" && now.engine.generation > status.engine.generation
        });
        status.engine.generation
    }
}

impl Deref for Running {
    type Target = House;
    fn deref(&self) -> &House {
        &self.house
    }
}

/// Where a keeper's sockets are.
pub struct House {
    pub directory: tempfile::TempDir,
}

impl House {
    /// Two ssds.
    pub fn config_text(&self) -> String {
        self.config_of(&["a", "b"])
    }

    /// These ssds.
    pub fn config_of(&self, names: &[&str]) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let mut text = format!("control = \"{}\"\n", at("control"));
        for name in names {
            text += &format!(
                "[[ssd]]\nname = \"{name}\"\nsize = \"1MiB\"\nsocket = \"{}\"\nbackend = {{ type = \"null\" }}\n",
                at(name)
            );
        }
        text
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn client(&self, ssd: &str) -> Client {
        Client::connect(&self.path(ssd))
    }

    pub fn ask(&self, request: &Request) -> Response {
        let mut last = None;
        for line in BufReader::new(self.question(request)).lines() {
            let response = serde_json::from_str(&line.expect("a line")).expect("a response");
            if !matches!(response, Response::Progress(_)) {
                return response;
            }
            last = Some(response);
        }
        panic!("no last word after {last:?}");
    }

    pub fn question(&self, request: &Request) -> UnixStream {
        let mut socket = UnixStream::connect(self.path("control")).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
            .write_all(format!("{}\n", serde_json::to_string(request).expect("JSON")).as_bytes())
            .expect("sent");
        socket
    }

    pub fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the status is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "not {what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn serving(&self) -> Status {
        self.wait("serving", |status| status.engine.state == "serving")
    }
}

pub fn options(config_text: &str, habits: &str, limits: Limits) -> Options {
    Options {
        config_path: "test.toml".into(),
        config_text: config_text.to_owned(),
        engine: command(habits),
        stats: None,
        limits,
        notify: keeper::Notify::default(),
        again: None,
        leave: None,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = (&self.stop).write_all(b"x");
            let _ = thread.join();
        }
    }
}

/// Starts this test program as an engine.
pub fn command(habits: &str) -> EngineCommand {
    let own = std::env::current_exe().expect("a path");
    EngineCommand {
        binary: Arc::new(Binary::open(&own).expect("a program")),
        arguments: ["--exact", "double::engine_double", "--nocapture", "--test-threads=1"]
            .map(String::from)
            .to_vec(),
        environment: vec![(ENGINE.into(), "1".into()), (HABITS.into(), habits.into())],
    }
}

/// Another program: this test program under a name that gives it other habits.
pub fn program(directory: &Path, habits: &str) -> PathBuf {
    let path = directory.join(format!("habits-{habits}"));
    std::os::unix::fs::symlink(std::env::current_exe().expect("a path"), &path).expect("linked");
    path
}
