//! One keeper after another, with the real engine and a guest's driver: by re-exec, and under a service manager.
#![expect(clippy::unwrap_used, reason = "tests")]

use guest::manager::Manager;
use guest::nvme::{Driver, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with an ssd in memory, alone or under a service manager.
struct House {
    folder: TempDir,
    manager: Option<Manager>,
    child: Child,
}

impl House {
    fn start(managed: bool) -> Self {
        Self::start_on(managed, "{ type = \"ram\" }", "")
    }

    /// On another drive, and with more in the configuration; `DIR` stands for the folder.
    fn start_on(managed: bool, backend: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "control = \"{}\"\n[[ssd]]\nname = \"a\"\nsize = \"16MiB\"\nsocket = \"{}\"\nstate = \"{}\"\n\
             backend = {backend}\n{more}",
            at("control"),
            at("a.sock"),
            at("a.state")
        );
        let text = text.replace("DIR", &folder.path().display().to_string());
        std::fs::write(folder.path().join("godwit.toml"), text).unwrap();
        let manager = managed.then(|| Manager::new(folder.path()).unwrap());
        let child = spawn(folder.path(), manager.as_ref());
        let house = Self { folder, manager, child };
        house.serving();
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn restart(&mut self) {
        self.child = spawn(self.folder.path(), self.manager.as_ref());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last word to a request; `None`: nobody listens (yet).
    fn ask(&self, request: &Value) -> Option<Value> {
        let mut socket = UnixStream::connect(self.path("control")).ok()?;
        socket.write_all(format!("{request}\n").as_bytes()).ok()?;
        let line = BufReader::new(socket).lines().map_while(Result::ok).last()?;
        serde_json::from_str(&line).ok()
    }

    fn status(&self) -> Option<Value> {
        Some(self.ask(&json!({"command": "status"}))?["status"].clone())
    }

    /// Waits for an engine that serves.
    fn serving(&self) -> Value {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.status().filter(|status| status["engine"]["state"] == "serving") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has the ssd's size be another, in the file and by `apply`.
    fn resize(&self, from: &str, to: &str) {
        let file = self.path("godwit.toml");
        let text = std::fs::read_to_string(&file).unwrap().replace(from, to);
        std::fs::write(&file, &text).unwrap();
        let answer = self.ask(&json!({"command": "apply", "config": text})).unwrap();
        assert!(answer["done"].is_string(), "{answer}");
    }

    fn driver(&self) -> Driver {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let mut driver = Driver::connect_with(self.path("a.sock"), options).unwrap();
        driver.create_queue_pair(1, 16).unwrap();
        driver
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, manager: Option<&Manager>) -> Child {
    let program = Path::new(env!("CARGO_BIN_EXE_godwitd"));
    let prepare = |command: &mut Command| {
        command.arg("--config").arg(folder.join("godwit.toml")).env("GODWIT_LOG", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::null());
    };
    match manager {
        Some(manager) => manager.spawn(program, prepare).unwrap(),
        None => {
            let mut command = Command::new(program);
            prepare(&mut command);
            command.spawn().unwrap()
        }
    }
}

/// Writes a block, reads all that were written so far.
fn use_drive(driver: &mut Driver, round: u8) {
    let buffer = driver.ram().clone().alloc_with(&[round; 512]).unwrap();
    driver.write(1, 1, u64::from(round), 1, &buffer).unwrap().ok().unwrap();
    for block in 0..=round {
        driver.read(1, 1, u64::from(block), 1, &buffer).unwrap().ok().unwrap();
        assert_eq!(buffer.bytes(0, 512), [block; 512], "block {block}, round {round}");
    }
    driver.identify(0, 1).unwrap();
    // Messages, too, not only shared memory.
    let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
    let client = driver.client();
    client.dma_map(extra.iova(), extra.len() as u64, Some((extra.fd().as_fd(), 0))).unwrap();
    client.dma_unmap(extra.iova(), extra.len() as u64).unwrap();
}

#[test]
fn the_daemon_replaces_its_keeper_and_stops_in_good_order_afterwards() {
    let mut house = House::start(false);
    let mut driver = house.driver();
    let first = house.serving();
    for round in 0..5 {
        use_drive(&mut driver, round);
        let answer = house.ask(&json!({"command": "upgrade", "keeper": true})).unwrap();
        assert!(answer["done"].as_str().unwrap().contains("1 sessions"), "{answer}");
    }
    use_drive(&mut driver, 5);
    let last = house.serving();
    assert_eq!((&last["pid"], &last["engine"]["pid"]), (&first["pid"], &first["engine"]["pid"]));
    assert_eq!((&last["keeper_generation"], &last["engine"]["generation"]), (&json!(6), &json!(1)));
    let name = std::fs::read_to_string(format!("/proc/{}/comm", last["pid"])).unwrap();
    assert_eq!(name.trim(), "godwitd");
    let refused = house.ask(&json!({"command": "upgrade", "keeper": true, "binary": "/bin/true"})).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("nothing has changed"), "{refused}");
    // The engine can be replaced by a keeper that did not start it, and killed.
    let upgraded = house.ask(&json!({"command": "upgrade", "no_wait": true})).unwrap();
    assert!(upgraded["done"].is_string(), "{upgraded}");
    use_drive(&mut driver, 6);
    drop(driver);
    house.signal(Signal::TERM);
    assert!(house.end().success());
    assert!(!house.path("a.sock").exists() && !house.path("control").exists());
}

#[test]
fn a_stop_that_comes_while_the_keeper_is_replaced_is_not_lost() {
    for delay_us in (0..40_000).step_by(2000) {
        let mut house = House::start(false);
        let mut socket = UnixStream::connect(house.path("control")).unwrap();
        socket.write_all(b"{\"command\":\"upgrade\",\"keeper\":true}\n").unwrap();
        std::thread::sleep(Duration::from_micros(delay_us));
        house.signal(Signal::TERM);
        assert!(house.end().success(), "{delay_us} µs");
    }
}

#[test]
fn a_guest_goes_on_when_its_keeper_is_killed_under_a_service_manager() {
    let mut house = House::start(true);
    let mut driver = house.driver();
    for round in 0..5 {
        use_drive(&mut driver, round);
        house.signal(Signal::KILL);
        house.end();
        house.restart();
    }
    use_drive(&mut driver, 5);
    assert_eq!(house.serving()["keeper_generation"], 6);
    assert_eq!(house.manager.as_ref().unwrap().wrong(), Vec::<String>::new());
}

#[test]
fn an_ssd_that_has_grown_is_as_large_under_every_next_keeper() {
    for managed in [false, true] {
        let mut house = House::start_on(managed, "{ type = \"ram\" }", "");
        let mut driver = house.driver();
        use_drive(&mut driver, 0);
        let (mut from, mut old_end) = ("16MiB", 16 << 11);
        for (round, (to, end)) in (1..).zip([("24MiB", 24 << 11), ("40MiB", 40 << 11)]) {
            house.resize(from, to);
            let buffer = driver.ram().clone().alloc_with(&[round; 512]).unwrap();
            // The new size comes a moment later.
            let begun = Instant::now();
            while driver.write(1, 1, end - 1, 1, &buffer).unwrap().ok().is_err() {
                assert!(begun.elapsed() < PATIENCE, "it does not grow to {to}");
            }
            if managed {
                house.signal(Signal::KILL);
                house.end();
                house.restart();
            } else {
                let answer = house.ask(&json!({"command": "upgrade", "keeper": true})).unwrap();
                assert!(answer["done"].is_string(), "{answer}");
            }
            use_drive(&mut driver, round);
            driver.read(1, 1, end - 1, 1, &buffer).unwrap().ok().unwrap();
            assert_eq!(buffer.bytes(0, 512), [round; 512], "the last block, {to}");
            driver.read(1, 1, old_end, 1, &buffer).unwrap().ok().unwrap();
            assert_eq!(buffer.bytes(0, 512), [0; 512], "the first new block, {to}");
            assert!(driver.read(1, 1, end, 1, &buffer).unwrap().ok().is_err(), "beyond the end, {to}");
            // The engine it then starts is told the same.
            let engine = house.serving()["engine"]["pid"].as_i64().unwrap();
            kill_process(Pid::from_raw(i32::try_from(engine).unwrap()).unwrap(), Signal::KILL).unwrap();
            driver.read(1, 1, end - 1, 1, &buffer).unwrap().ok().unwrap();
            assert_eq!(buffer.bytes(0, 512), [round; 512], "the last block, after the engine, {to}");
            (from, old_end) = (to, end);
        }
    }
}

/// The lock of a drive belongs to its open file, and a dead engine's ring, which the keeper holds, has that open.
#[test]
fn an_engine_killed_after_its_keeper_was_leaves_its_files_to_the_next() {
    let file = |name: &str| format!("{{ type = \"uring\", path = \"DIR/{name}.img\", direct = false }}");
    let disk = format!(
        "[[ssd]]\nname = \"b\"\nsize = \"16MiB\"\nvhost_socket = \"DIR/b.sock\"\nbackend = {}\n",
        file("b")
    );
    let mut house = House::start_on(true, &file("a"), &disk);
    let mut driver = house.driver();
    let options = guest::vhost_user::Options { mem_slots: true, ..Default::default() };
    let mut disk = guest::vhost_user::Driver::connect(house.path("b.sock"), options).unwrap();
    disk.set_timeout(PATIENCE);
    let config = disk.read_config().unwrap();
    for round in 0..6 {
        use_drive(&mut driver, round);
        if round % 3 == 0 {
            house.signal(Signal::KILL);
            house.end();
            house.restart();
            house.serving();
        } else {
            let engine = house.serving()["engine"]["pid"].as_i64().unwrap();
            let engine = Pid::from_raw(i32::try_from(engine).unwrap()).unwrap();
            kill_process(engine, Signal::KILL).unwrap();
        }
        assert_eq!(disk.read_config().unwrap(), config);
    }
    use_drive(&mut driver, 6);
}

#[test]
fn a_restart_keeps_the_guest_and_a_stop_gives_everything_back() {
    let mut house = House::start(true);
    let mut driver = house.driver();
    for round in 0..3 {
        use_drive(&mut driver, round);
        house.signal(Signal::USR2);
        assert!(house.end().success());
        assert!(house.path("a.sock").exists(), "clients that come meanwhile wait");
        house.restart();
    }
    use_drive(&mut driver, 3);
    let status = house.serving();
    assert!(status["restarts"].as_array().unwrap().iter().all(|end| end["planned"] == true), "{status}");
    drop(driver);
    house.signal(Signal::TERM);
    assert!(house.end().success());
    assert_eq!(house.manager.as_ref().unwrap().names(), Vec::<String>::new());
    // The next one begins afresh.
    house.restart();
    assert_eq!(house.serving()["keeper_generation"], 1);
    use_drive(&mut house.driver(), 0);
}
