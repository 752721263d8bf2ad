//! Encrypted ssds: what is on the drive, who has which key, and what is left when they go.

use super::crossing::{export, has_pool, migrate, terms, until_over, until_phase};
use super::real::{Daemon, delete, read, write};
use super::*;
use guest::hosts::Hosts;

/// The keys of an agent beside a daemon.
fn keys(daemon: &Daemon) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(daemon.folder.path().join("keys")).unwrap();
    folder.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// Whether a block that is full of a byte is in a file.
fn holds(path: &Path, byte: u8) -> bool {
    std::fs::read(path).unwrap().chunks(512).any(|block| block == [byte; 512])
}

/// The only file of data of ssds that live in files.
fn data(daemon: &Daemon) -> PathBuf {
    let entries = std::fs::read_dir(daemon.folder.path().join("ssds")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|end| end == "data")).unwrap()
}

#[test]
fn what_is_written_to_an_encrypted_ssd_is_noise_on_its_drive_and_its_key_goes_with_the_last_of_it() {
    let daemon = Daemon::start_with("");
    let agent = daemon.agent();
    has_pool(&agent, &daemon);
    let drive = daemon.folder.path().join("drive.img");
    for (name, pool, encrypted) in
        [("clear", Some("p"), false), ("secret", Some("p"), true), ("file", None, true)]
    {
        let body = json!({"name": name, "size_bytes": 8 << 20, "pool": pool, "encrypted": encrypted});
        agent.done(name, "POST", "/api/v1/ssds", &body);
        let mut guest = daemon.guest(name);
        write(&mut guest, 7, if encrypted { 0xA1 } else { 0xC1 });
        assert_eq!(agent.get(&format!("/api/v1/ssds/{name}"))["encrypted"], encrypted);
    }
    let before = keys(&daemon);
    assert_eq!(before.len(), 2);
    // Nothing that anybody is told or that is kept elsewhere has a key.
    let told =
        agent.get("/api/v1/ssds").to_string() + &daemon.ask("{\"command\":\"status\"}").unwrap().to_string();
    let kept = std::fs::read(daemon.folder.path().join("agent.db-wal")).unwrap();
    for key in &before {
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!told.contains(&digits) && !kept.windows(64).any(|bytes| bytes == key.as_slice()));
    }
    agent.done("snapshot", "POST", "/api/v1/snapshots", &json!({"name": "monday", "ssd": "secret"}));
    agent.kill();
    let daemon = daemon.restart();
    assert!(holds(&drive, 0xC1), "what is in the clear is found");
    assert!(!holds(&drive, 0xA1) && !holds(&data(&daemon), 0xA1), "what is encrypted is not");
    let agent = daemon.agent();
    let is_served = |ssd: &Value| ssd["serving"]["state"] == "serving";
    let begun = Instant::now();
    while !agent.get("/api/v1/ssds")["items"].as_array().unwrap().iter().all(is_served) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    for name in ["secret", "file"] {
        assert_eq!(read(&mut daemon.guest(name), 7), 0xA1);
    }
    assert_eq!(agent.get("/api/v1/snapshots/monday")["encrypted"], true);
    agent.done("clone", "POST", "/api/v1/ssds", &json!({"name": "clone", "from_snapshot": "monday"}));
    assert_eq!(agent.get("/api/v1/ssds/clone")["encrypted"], true);
    assert_eq!(read(&mut daemon.guest("clone"), 7), 0xA1);
    delete(&agent, "of-file", "/api/v1/ssds/file?force=true");
    assert_eq!(keys(&daemon).len(), 1);
    delete(&agent, "of-secret", "/api/v1/ssds/secret?force=true");
    let told = agent.get("/api/v1/certificates/of-secret");
    assert_eq!((&told["key"], &told["key_users"]), (&json!("kept"), &json!(["clone", "monday"])));
    assert_eq!(read(&mut daemon.guest("clone"), 7), 0xA1);
    delete(&agent, "of-monday", "/api/v1/snapshots/monday");
    delete(&agent, "of-clone", "/api/v1/ssds/clone?force=true");
    let told = agent.get("/api/v1/certificates/of-clone");
    assert_eq!((&told["key"], &told["verdict"]), (&json!("destroyed"), &json!("wiped")));
    assert!(keys(&daemon).is_empty());
    delete(&agent, "of-clear", "/api/v1/ssds/clear?force=true");
    assert_eq!(agent.get("/api/v1/certificates/of-clear")["key"], Value::Null);
    daemon.stop();
}

#[test]
fn an_encrypted_ssd_that_moves_has_another_key_at_each_host() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    has_pool(&agent_b, &b);
    let body = json!({"name": "vm", "size_bytes": 16 << 20, "encrypted": true});
    agent_a.done("vm", "POST", "/api/v1/ssds", &body);
    let mut guest = a.guest("vm");
    write(&mut guest, 7, 0xA1);
    let mut body = export(&agent_a, "vm");
    (body["pool"], body["encrypted"]) = (json!("p"), agent_a.get("/api/v1/ssds/vm")["encrypted"].clone());
    agent_b.done("accept", "POST", "/api/v1/ssds", &body);
    migrate(&a, "vm", &hosts.addresses[1], terms());
    until_phase(&agent_b, "vm", "ready");
    until_phase(&agent_a, "vm", "gone");
    until_over(&a);
    drop(guest);
    let mut guest = b.guest("vm");
    assert_eq!(read(&mut guest, 7), 0xA1);
    drop(guest);
    let (of_a, of_b) = (keys(&a), keys(&b));
    assert!(of_a.len() == 1 && of_b.len() == 1 && of_a != of_b);
    assert!(!holds(&b.folder.path().join("drive.img"), 0xA1));
    // What is left there goes with its key, and that of the other host is its own.
    delete(&agent_a, "left", "/api/v1/ssds/vm");
    assert!(keys(&a).is_empty());
    assert_eq!((read(&mut b.guest("vm"), 7), keys(&b)), (0xA1, of_b));
    delete(&agent_b, "all", "/api/v1/ssds/vm?force=true");
    assert_eq!(agent_b.get("/api/v1/certificates/all")["key"], "destroyed");
    assert!(keys(&b).is_empty());
    a.stop();
    b.stop();
}
