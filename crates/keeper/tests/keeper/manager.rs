//! A keeper under a service manager (its double), which can be killed and started again.

use crate::harness::{House, options, patient};
use guest::PATIENCE;
use keeper::{Keeper, Notify, Options};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

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
    Some(Options { notify, again: Some(again), ..options(&text, &habits, patient()) })
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

pub struct Manager {
    house: House,
    habits: String,
    double: guest::manager::Manager,
    child: Child,
}

impl Manager {
    pub fn start(habits: &str) -> Self {
        let house = House { directory: tempfile::tempdir().expect("directory") };
        let double = guest::manager::Manager::new(house.directory.path()).expect("a manager");
        let child = spawn(&house, habits, &double);
        let manager = Self { house, habits: habits.to_owned(), double, child };
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
        self.child = spawn(&self.house, &self.habits, &self.double);
    }

    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Waits until someone answers again, and serves.
    pub fn back(&self) -> api::control::Status {
        let begun = Instant::now();
        while UnixStream::connect(self.path("control")).is_err() {
            assert!(begun.elapsed() < PATIENCE, "no keeper");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.serving()
    }

    pub fn names(&self) -> Vec<String> {
        self.double.names()
    }

    pub fn ready(&self) -> u32 {
        self.double.ready()
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
        if !std::thread::panicking() {
            assert_eq!(self.double.wrong(), Vec::<String>::new());
        }
    }
}

fn spawn(house: &House, habits: &str, double: &guest::manager::Manager) -> Child {
    let own = std::env::current_exe().expect("a path");
    let child = double.spawn(&own, |command| {
        command.args(["--exact", "manager::keeper_process", "--nocapture", "--test-threads=1"]);
        command.env(CONFIG, house.config_text()).env(HABITS, habits);
        // The check of a program that is to be the next keeper asks for this one.
        command.env("KEEPER_CONFIG", house.config_text());
        command.stdin(Stdio::null()).stdout(Stdio::null());
    });
    child.expect("started")
}
