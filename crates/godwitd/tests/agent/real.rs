//! With the daemon itself, and guests' drivers.

use super::*;
use guest::nvme::{Driver, Options};

/// A daemon with an ssd of its own.
pub(super) struct Daemon {
    pub(super) folder: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with("")
    }

    pub(super) fn start_with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "control = \"{}\"\n[[ssd]]\nname = \"own\"\nsize = \"1MiB\"\nsocket = \"{}\"\nbackend = {{ type = \"ram\" }}\n{more}",
            path("control.sock"),
            path("own.sock")
        );
        std::fs::write(folder.path().join("none.toml"), text).unwrap();
        Self::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_godwitd"))
            .args(["--config", &folder.path().join("none.toml").display().to_string()])
            .env("GODWIT_LOG", "warn")
            .spawn()
            .unwrap();
        let daemon = Self { folder, child };
        let begun = Instant::now();
        while daemon.status().is_none_or(|status| status["engine"]["state"] != "serving") {
            assert!(begun.elapsed() < PATIENCE, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn status(&self) -> Option<Value> {
        Some(self.ask("{\"command\":\"status\"}")?["status"].clone())
    }

    /// Its last word to a request.
    pub(super) fn ask(&self, request: &str) -> Option<Value> {
        let mut socket = UnixStream::connect(self.folder.path().join("control.sock")).ok()?;
        socket.write_all(format!("{request}\n").as_bytes()).ok()?;
        let line = BufReader::new(socket).lines().map_while(Result::ok).last()?;
        serde_json::from_str(&line).ok()
    }

    /// Ends with the host, and begins anew.
    pub(super) fn restart(mut self) -> Self {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder)
    }

    pub(super) fn agent(&self) -> Agent {
        Agent::start(self.folder.path())
    }

    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join("sockets").join(name)
    }

    pub(super) fn guest(&self, ssd: &str) -> Driver {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let mut driver = Driver::connect_with(self.socket(&format!("{ssd}.sock")), options).unwrap();
        driver.create_queue_pair(1, 16).unwrap();
        driver
    }

    pub(super) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub(super) fn write(guest: &mut Driver, block: u64, byte: u8) {
    let buffer = guest.ram().clone().alloc_with(&[byte; 512]).unwrap();
    guest.write(1, 1, block, 1, &buffer).unwrap().ok().unwrap();
}

pub(super) fn read(guest: &mut Driver, block: u64) -> u8 {
    let buffer = guest.ram().clone().alloc_with(&[0xEE; 512]).unwrap();
    guest.read(1, 1, block, 1, &buffer).unwrap().ok().unwrap();
    let bytes = buffer.bytes(0, 512);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
    bytes[0]
}

pub(super) fn delete(agent: &Agent, id: &str, path: &str) {
    agent.done(id, "DELETE", path, &Value::Null);
}

#[test]
fn ssds_come_are_limited_and_go_beside_the_daemons_own_and_a_guest_works_on_while_the_agent_is_dead() {
    let daemon = Daemon::start();
    let agent = daemon.agent();
    for (name, interface) in [("vm1", "nvme"), ("vm2", "virtio-blk")] {
        let body = json!({"name": name, "size_bytes": 64 << 20, "interface": interface});
        agent.done(name, "POST", "/api/v1/ssds", &body);
    }
    let ssds = agent.get("/api/v1/ssds");
    let all = ssds["items"].as_array().unwrap();
    assert!(all.len() == 2 && all.iter().all(|ssd| ssd["serving"]["state"] == "serving"), "{ssds}");
    assert!(UnixStream::connect(daemon.socket("vm2.vhost")).is_ok());
    agent.done("limit", "PATCH", "/api/v1/ssds/vm1", &json!({"limits": {"iops": 5000}}));
    let limited = daemon.status().unwrap();
    let limits = limited["ssds"].as_array().unwrap().iter().find(|ssd| ssd["name"] == "vm1").unwrap();
    assert!(limits["limits"].to_string().contains("5000"), "{limits}");
    let mut guest = daemon.guest("vm1");
    write(&mut guest, 7, 1);
    // Killed in the middle of something: it is asked for, and whether it was begun is not known.
    let body = json!({"name": "vm3", "size_bytes": 1 << 20}).to_string();
    let asked = agent.ask("POST", "/api/v1/ssds", &[("idempotency-key", "vm3")], Some(&body));
    agent.kill();
    assert_eq!(asked.unwrap().0, 202);
    let before = daemon.status().unwrap()["engine"]["pid"].clone();
    write(&mut guest, 8, 2);
    assert_eq!((read(&mut guest, 7), read(&mut guest, 8)), (1, 2));
    let agent = daemon.agent();
    agent.done("vm3", "POST", "/api/v1/ssds", &serde_json::from_str(&body).unwrap());
    assert_eq!((read(&mut guest, 7), read(&mut guest, 8)), (1, 2));
    assert_eq!(daemon.status().unwrap()["engine"]["pid"], before, "the engine ran on");
    let refused = agent.change("no", "DELETE", "/api/v1/ssds/vm1", &Value::Null);
    assert_eq!(refused["state"], "failed", "its guest is there: {refused}");
    drop(guest);
    delete(&agent, "gone-1", "/api/v1/ssds/vm1?force=true");
    delete(&agent, "gone-2", "/api/v1/ssds/vm2");
    delete(&agent, "gone-3", "/api/v1/ssds/vm3");
    assert!(UnixStream::connect(daemon.socket("vm1.sock")).is_err());
    assert_eq!(std::fs::read_dir(daemon.folder.path().join("ssds")).unwrap().count(), 0);
    assert!(UnixStream::connect(daemon.folder.path().join("own.sock")).is_ok(), "its own is served on");
    daemon.stop();
}

#[test]
fn what_guests_do_is_told_as_it_was_counted_and_in_prometheus_text() {
    let daemon = Daemon::start();
    let agent = daemon.agent();
    agent.done("1", "POST", "/api/v1/ssds", &json!({"name": "vm1", "size_bytes": 1 << 20}));
    let first = agent.get("/api/v1/stats?ssd=vm1");
    let mut guest = daemon.guest("vm1");
    (0..10).for_each(|block| write(&mut guest, block, 1));
    let again = format!("/api/v1/stats?ssd=vm1&every_ms=100&after_ms={}", first["clock_ms"]);
    let second = agent.get(&again);
    let passed = second["clock_ms"].as_u64().unwrap() - first["clock_ms"].as_u64().unwrap();
    assert!(passed >= 100, "{passed}");
    let told = |stats: &Value, what: &str| stats["ssds"][0]["write"][what].as_u64().unwrap();
    assert_eq!(told(&second, "ios") - told(&first, "ios"), 10, "{second}");
    assert_eq!(told(&second, "bytes") - told(&first, "bytes"), 5120);
    let drive = second["ssds"][0]["write"]["drive"].as_array().unwrap();
    assert_eq!(drive.iter().map(|pair| pair[1].as_u64().unwrap()).sum::<u64>(), told(&second, "ios"));
    let (status, text) = agent.ask("GET", "/metrics", &[], None).unwrap();
    assert_eq!(status, 200);
    let line = text.lines().find(|line| {
        line.starts_with("godwit_ssd_ios_total") && line.contains("\"vm1\"") && line.contains("op=\"write\"")
    });
    assert!(line.is_some_and(|line| line.ends_with(" 10")), "{text}");
    let (status, _) = agent.ask("GET", "/api/v1/stats?ssd=none", &[], None).unwrap();
    assert_eq!(status, 404);
    drop(guest);
    daemon.stop();
}

#[test]
fn a_pool_gives_ssds_snapshots_and_clones_and_what_is_deleted_is_wiped_and_certified() {
    let daemon = Daemon::start();
    let agent = daemon.agent();
    let drive = daemon.folder.path().join("drive.img");
    let pool = json!({"name": "p", "path": drive.display().to_string(), "size_bytes": 128 << 20});
    agent.done("pool", "POST", "/api/v1/pools", &pool);
    let shown = agent.get("/api/v1/pools/p");
    assert_eq!(
        (&shown["phase"], &shown["serving"]["state"]),
        (&json!("ready"), &json!("serving")),
        "{shown}"
    );
    let free = shown["serving"]["free_bytes"].as_u64().unwrap();
    let body = json!({"name": "a", "size_bytes": 16 << 20, "pool": "p", "thin": true});
    agent.done("a", "POST", "/api/v1/ssds", &body);
    let mut guest = daemon.guest("a");
    write(&mut guest, 9, 0xA1);
    agent.done("snap", "POST", "/api/v1/snapshots", &json!({"name": "s", "ssd": "a"}));
    write(&mut guest, 9, 0xA2);
    agent.done("b", "POST", "/api/v1/ssds", &json!({"name": "b", "from_snapshot": "s"}));
    let mut clone = daemon.guest("b");
    assert_eq!((read(&mut guest, 9), read(&mut clone, 9)), (0xA2, 0xA1));
    agent.kill();
    write(&mut clone, 10, 0xB1);
    let agent = daemon.agent();
    assert_eq!(read(&mut clone, 10), 0xB1);
    assert!(agent.get("/api/v1/pools/p/check")["sound"].as_bool().unwrap());
    let full = json!({"name": "large", "size_bytes": 1_u64 << 30, "pool": "p"});
    let failed = agent.change("large", "POST", "/api/v1/ssds", &full);
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["message"].as_str().unwrap().contains("free extents"), "{failed}");
    drop((guest, clone));
    for (id, path) in [("x-a", "ssds/a"), ("x-b", "ssds/b"), ("x-s", "snapshots/s")] {
        // A client's leave is seen a moment after it left.
        let force = if path.starts_with("ssds") { "?force=true" } else { "" };
        delete(&agent, id, &format!("/api/v1/{path}{force}"));
        let certificate = agent.get(&format!("/api/v1/certificates/{id}"));
        assert_eq!(certificate["verdict"], "wiped", "{certificate}");
        assert!(certificate["ended_ms"].is_u64() && certificate["pool_uuid"] == shown["serving"]["uuid"]);
    }
    assert_eq!(agent.get("/api/v1/certificates")["items"].as_array().unwrap().len(), 3);
    let after = agent.get("/api/v1/pools/p");
    assert_eq!(after["serving"]["free_bytes"].as_u64().unwrap(), free, "{after}");
    // Let go, it can be served again, but not be made anew without its path repeated.
    delete(&agent, "go", "/api/v1/pools/p");
    let (status, refused) = agent.ask("POST", "/api/v1/pools", &[], Some(&pool.to_string())).unwrap();
    assert!(status == 409 && refused.contains("drive-taken"), "{refused}");
    let import = json!({"name": "q", "path": drive.display().to_string(), "import": true});
    agent.done("import", "POST", "/api/v1/pools", &import);
    assert_eq!(agent.get("/api/v1/pools/q")["serving"]["uuid"], shown["serving"]["uuid"]);
    daemon.stop();
}

#[test]
fn an_attached_ssd_is_one_guests_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let _served = daemon(&folder.path().join("control.sock"));
    let agent = Agent::start(folder.path());
    agent.done("1", "POST", "/api/v1/ssds", &json!({"name": "a", "size_bytes": 1 << 20}));
    let attach = |guest: &str| {
        let body = json!({"ssd": "a", "guest": guest}).to_string();
        agent.ask("POST", "/api/v1/attachments", &[], Some(&body)).unwrap().0
    };
    assert_eq!((attach("vm1"), attach("vm1"), attach("vm2"), attach("../x")), (201, 201, 409, 400));
    let list = agent.get("/api/v1/attachments");
    assert_eq!(list["items"][0]["guest"], "vm1", "{list}");
    assert_eq!(agent.ask("DELETE", "/api/v1/ssds/a", &[], None).unwrap().0, 409);
    assert_eq!(agent.ask("DELETE", "/api/v1/attachments/a", &[], None).unwrap().0, 204);
    delete(&agent, "2", "/api/v1/ssds/a");
    assert_eq!(attach("vm1"), 404);
}
