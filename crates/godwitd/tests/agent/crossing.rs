//! Ssds go from one host to another and back: two daemons, and an agent beside each.

use super::real::{Daemon, delete, read, write};
use super::*;
use api::control::{EngineRequest, MigrationTerms, Request};
use guest::hosts::Hosts;
use guest::vfio_user::Client;

pub(super) fn terms() -> MigrationTerms {
    // A debug build on a busy machine.
    MigrationTerms { max_stun_us: 2_000_000, ..MigrationTerms::default() }
}

/// Begins to move an ssd, as soon as both engines take that.
pub(super) fn migrate(daemon: &Daemon, ssd: &str, to: &str, terms: MigrationTerms) {
    let request = EngineRequest::Migrate { ssd: ssd.to_owned(), to: to.to_owned(), terms, dry_run: false };
    let request = serde_json::to_string(&Request::Engine(request)).unwrap();
    let begun = Instant::now();
    loop {
        let answer = daemon.ask(&request).unwrap();
        let Some(why) = answer["error"].as_str() else { return };
        let early = ["ask again", "cannot speak", "does not serve yet"].iter().any(|word| why.contains(word));
        assert!(early && begun.elapsed() < PATIENCE, "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until none of a host's migrations is under way.
pub(super) fn until_over(daemon: &Daemon) {
    let request = serde_json::to_string(&Request::Engine(EngineRequest::Migrations)).unwrap();
    let begun = Instant::now();
    loop {
        let answer = daemon.ask(&request).unwrap();
        if answer["migrations"].as_array().unwrap().iter().all(|one| one["over"] == true) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until(agent: &Agent, ssd: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let shown = agent.get(&format!("/api/v1/ssds/{ssd}"));
        if is(&shown) {
            return shown;
        }
        assert!(begun.elapsed() < PATIENCE, "{shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn until_phase(agent: &Agent, ssd: &str, phase: &str) {
    until(agent, ssd, |shown| shown["phase"] == phase);
}

/// What `godwit ssd export` prints.
pub(super) fn export(agent: &Agent, ssd: &str) -> Value {
    let shown = agent.get(&format!("/api/v1/ssds/{ssd}"));
    json!({
        "name": shown["name"], "size_bytes": shown["size_bytes"], "interface": shown["interface"],
        "profile": shown["profile"], "incoming": {"uuid": shown["uuid"], "serial": shown["serial"]},
    })
}

pub(super) fn has_pool(agent: &Agent, daemon: &Daemon) {
    let drive = daemon.folder.path().join("drive.img").display().to_string();
    agent.done(
        "pool",
        "POST",
        "/api/v1/pools",
        &json!({"name": "p", "path": drive, "size_bytes": 128 << 20}),
    );
}

fn volumes(daemon: &Daemon) -> Value {
    daemon.ask("{\"command\":\"pool\",\"operation\":\"list\"}").unwrap()["pool"][0]["volumes"].clone()
}

#[test]
fn an_ssd_goes_from_agent_to_agent_and_back_and_one_of_the_two_serves_it_whoever_is_killed() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    has_pool(&agent_b, &b);
    agent_a.done("vm", "POST", "/api/v1/ssds", &json!({"name": "vm", "size_bytes": 16 << 20}));
    let mut guest = a.guest("vm");
    write(&mut guest, 7, 0xA1);
    let mut body = export(&agent_a, "vm");
    (body["pool"], body["thin"]) = (json!("p"), json!(true));
    agent_b.done("accept", "POST", "/api/v1/ssds", &body);
    let shown = agent_b.get("/api/v1/ssds/vm");
    assert_eq!((&shown["phase"], &shown["serving"]["state"]), (&json!("incoming"), &json!("incoming")));
    let promised = |agent: &Agent| agent.get("/api/v1/pools/p")["promised_bytes"].clone();
    assert_eq!(promised(&agent_b), 16 << 20);
    // Neither agent sees it happen.
    agent_a.kill();
    agent_b.kill();
    migrate(&a, "vm", &hosts.addresses[1], terms());
    drop(guest);
    let begun = Instant::now();
    let mut guest = loop {
        // Its client is turned away here and waits there, from some moment on.
        let served = b.ask("{\"command\":\"status\"}").unwrap();
        let ssds = served["status"]["ssds"].as_array().unwrap().clone();
        if ssds.iter().any(|ssd| ssd["name"] == "vm" && ssd["state"] == "serving") {
            break b.guest("vm");
        }
        assert!(begun.elapsed() < PATIENCE, "{ssds:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(read(&mut guest, 7), 0xA1);
    // A daemon that is started anew has its own file, in which there is none of the agent's ssds.
    until_over(&a);
    let a = a.restart();
    let (agent_a, agent_b) = (a.agent(), b.agent());
    until_phase(&agent_a, "vm", "gone");
    until_phase(&agent_b, "vm", "ready");
    let gone = until(&agent_a, "vm", |shown| shown["serving"]["state"] == "gone");
    assert!(gone["generation"].as_u64() > Some(1), "{gone}");
    let (status, refused) =
        agent_a.ask("PATCH", "/api/v1/ssds/vm", &[], Some("{\"size_bytes\": 33554432}")).unwrap();
    assert_eq!(status, 409, "{refused}");
    assert_eq!(read(&mut guest, 7), 0xA1, "it is served on beside agents that begin");
    write(&mut guest, 8, 0xB2);
    drop(guest);
    // Back, while the agent there is down.
    agent_a.kill();
    migrate(&b, "vm", &hosts.addresses[0], terms());
    until_phase(&agent_b, "vm", "gone");
    assert_eq!(promised(&agent_b), 0);
    let agent_a = a.agent();
    until_phase(&agent_a, "vm", "ready");
    let mut guest = a.guest("vm");
    assert_eq!((read(&mut guest, 7), read(&mut guest, 8)), (0xA1, 0xB2));
    // What is left there goes, and no more than that.
    delete(&agent_b, "left", "/api/v1/ssds/vm");
    assert_eq!(agent_b.get("/api/v1/certificates/left")["verdict"], "wiped");
    assert_eq!(volumes(&b), json!([]));
    assert_eq!(read(&mut guest, 8), 0xB2);
    drop(guest);
    delete(&agent_a, "all", "/api/v1/ssds/vm?force=true");
    assert_eq!(std::fs::read_dir(a.folder.path().join("ssds")).unwrap().count(), 0);
    a.stop();
    b.stop();
}

#[test]
fn a_disk_in_a_file_goes_to_another_agents_pool_and_what_is_kept_of_it_stays_until_it_is_deleted() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    has_pool(&agent_b, &b);
    let body = json!({"name": "disk", "size_bytes": 8 << 20, "interface": "virtio-blk"});
    agent_a.done("disk", "POST", "/api/v1/ssds", &body);
    let mut body = export(&agent_a, "disk");
    body["pool"] = json!("p");
    // More than there is.
    let mut large = body.clone();
    large["size_bytes"] = json!(1_u64 << 30);
    let refused = agent_b.change("large", "POST", "/api/v1/ssds", &large);
    assert!(refused["message"].as_str().unwrap().contains("no room"), "{refused}");
    assert_eq!(volumes(&b), json!([]));
    agent_b.done("accept", "POST", "/api/v1/ssds", &body);
    migrate(&a, "disk", &hosts.addresses[1], MigrationTerms { keep_source: true, ..terms() });
    until_phase(&agent_b, "disk", "ready");
    until_phase(&agent_a, "disk", "gone");
    assert!(UnixStream::connect(b.socket("disk.vhost")).is_ok());
    // Whoever counts on it here is told where it is.
    let reason = agent_a.get("/api/v1/ssds/disk")["serving"]["reason"].to_string();
    assert!(reason.contains(&hosts.addresses[1]), "{reason}");
    delete(&agent_a, "left", "/api/v1/ssds/disk");
    assert_eq!(std::fs::read_dir(a.folder.path().join("ssds")).unwrap().count(), 0);
    delete(&agent_b, "all", "/api/v1/ssds/disk");
    assert_eq!(volumes(&b), json!([]));
    a.stop();
    b.stop();
}

#[test]
fn an_ssd_that_is_on_its_way_is_deleted_on_neither_side() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    agent_a.done("vm", "POST", "/api/v1/ssds", &json!({"name": "vm", "size_bytes": 16 << 20}));
    let mut guest = a.guest("vm");
    (0..1024).for_each(|block| write(&mut guest, block * 8, 0xA1));
    agent_b.done("accept", "POST", "/api/v1/ssds", &export(&agent_a, "vm"));
    let ask = |method: &str, path: &str, body: &str| {
        agent_a.ask(method, &format!("/api/v1/migrations{path}"), &[], Some(body)).unwrap()
    };
    // 4 MiB in half a minute.
    let body =
        json!({"ssd": "vm", "to": hosts.addresses[1], "max_stun_us": 2_000_000, "bandwidth": 128 << 10});
    let body = body.to_string();
    let begun = Instant::now();
    loop {
        let (status, answer) = ask("POST", "", &body);
        // One that was not answered may have begun.
        let listed = agent_a.get("/api/v1/migrations")["items"].to_string().contains("\"over\":false");
        if status == 202 || listed {
            break;
        }
        assert!(begun.elapsed() < PATIENCE && matches!(status, 409 | 503), "{status} {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (status, again) = ask("POST", "", &body);
    assert!(status == 409 && again.contains("already"), "{status} {again}");
    let (status, refused) = ask("POST", "", &json!({"vm": "qmp.sock", "to": hosts.addresses[1]}).to_string());
    assert!(status == 400 && refused.contains("QMP socket"), "{status} {refused}");
    // It stays paused, so that it is under way for as long as this takes.
    for steer in ["pause", "resume", "pause"] {
        assert_eq!(ask("POST", &format!("/vm/{steer}"), "").0, 200, "{steer}");
    }
    for (agent, id) in [(&agent_a, "a"), (&agent_b, "b")] {
        let refused = agent.change(id, "DELETE", "/api/v1/ssds/vm?force=true", &Value::Null);
        assert_eq!(refused["state"], "failed", "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("being moved"), "{refused}");
    }
    // Given up, it is here; and it goes when it is asked for anew.
    assert_eq!(ask("DELETE", "/vm", "").0, 200);
    until_over(&a);
    assert_eq!(read(&mut guest, 8), 0xA1);
    migrate(&a, "vm", &hosts.addresses[1], terms());
    until_phase(&agent_b, "vm", "ready");
    until_phase(&agent_a, "vm", "gone");
    drop(guest);
    let mut guest = b.guest("vm");
    assert!((0..1024).all(|block| read(&mut guest, block * 8) == 0xA1));
    drop(guest);
    a.stop();
    b.stop();
}

fn snapshots(agent: &Agent) -> Vec<(String, String)> {
    let shown = agent.get("/api/v1/snapshots");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    shown["items"].as_array().unwrap().iter().map(|one| (text(&one["name"]), text(&one["volume"]))).collect()
}

/// Begins to move an ssd through its agent, and holds it on its way.
fn hold_on_its_way(agent: &Agent, ssd: &str, to: &str) {
    let body = json!({"ssd": ssd, "to": to, "max_stun_us": 2_000_000, "bandwidth": 64 << 10}).to_string();
    let begun = Instant::now();
    loop {
        let (status, answer) = agent.ask("POST", "/api/v1/migrations", &[], Some(&body)).unwrap();
        let listed = agent.get("/api/v1/migrations")["items"].to_string().contains("\"over\":false");
        if status == 202 || listed {
            break;
        }
        assert!(begun.elapsed() < PATIENCE && matches!(status, 409 | 503), "{status} {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(agent.ask("POST", &format!("/api/v1/migrations/{ssd}/pause"), &[], Some("")).unwrap().0, 200);
}

#[test]
fn snapshots_go_from_agent_to_agent_with_their_ssd_and_each_agent_lists_what_is_there() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    has_pool(&agent_a, &a);
    has_pool(&agent_b, &b);
    let snapshot = |agent: &Agent, id: &str, name: &str, ssd: &str| {
        agent.done(id, "POST", "/api/v1/snapshots", &json!({"name": name, "ssd": ssd}));
    };
    let body = json!({"name": "vm", "size_bytes": 8 << 20, "pool": "p", "thin": true});
    agent_a.done("vm", "POST", "/api/v1/ssds", &body);
    let mut guest = a.guest("vm");
    (0..1024).for_each(|block| write(&mut guest, block * 8, 0xA1));
    snapshot(&agent_a, "s1", "monday", "vm");
    write(&mut guest, 8, 0xB2);
    snapshot(&agent_a, "s2", "tuesday", "vm");
    write(&mut guest, 8, 0xC3);
    // The other host has a snapshot of this name.
    agent_b.done(
        "other",
        "POST",
        "/api/v1/ssds",
        &json!({"name": "other", "size_bytes": 1 << 20, "pool": "p"}),
    );
    snapshot(&agent_b, "s3", "monday", "other");
    let mut body = export(&agent_a, "vm");
    (body["pool"], body["thin"]) = (json!("p"), json!(true));
    agent_b.done("accept", "POST", "/api/v1/ssds", &body);
    let before = snapshots(&agent_a);
    hold_on_its_way(&agent_a, "vm", &hosts.addresses[1]);
    let refused = |method: &str, path: &str, body: Value| {
        let (status, answer) = agent_a.ask(method, path, &[], Some(&body.to_string())).unwrap();
        let told = ["being moved", "godwit migration cancel"].iter().all(|word| answer.contains(word));
        assert!(status == 409 && told, "{method} {path}: {status} {answer}");
    };
    refused("DELETE", "/api/v1/snapshots/monday", Value::Null);
    refused("POST", "/api/v1/snapshots", json!({"name": "wednesday", "ssd": "vm"}));
    refused("POST", "/api/v1/ssds", json!({"name": "clone", "from_snapshot": "monday"}));
    // What was asked before is what it was.
    snapshot(&agent_a, "s1", "monday", "vm");
    assert_eq!(agent_a.ask("DELETE", "/api/v1/migrations/vm", &[], Some("")).unwrap().0, 200);
    until_over(&a);
    assert_eq!(snapshots(&agent_a), before);
    drop(guest);
    migrate(&a, "vm", &hosts.addresses[1], terms());
    until_phase(&agent_a, "vm", "gone");
    until_phase(&agent_b, "vm", "ready");
    let begun = Instant::now();
    while !snapshots(&agent_a).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", snapshots(&agent_a));
        std::thread::sleep(Duration::from_millis(20));
    }
    let shown = snapshots(&agent_b);
    let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["monday", "monday-2", "tuesday"]);
    assert_eq!(shown[1..], [("monday-2".to_owned(), before[0].1.clone()), before[1].clone()]);
    delete(&agent_b, "tuesday", "/api/v1/snapshots/tuesday");
    assert_eq!(agent_b.get("/api/v1/certificates/tuesday")["verdict"], "wiped");
    agent_b.done("clone", "POST", "/api/v1/ssds", &json!({"name": "clone", "from_snapshot": "monday-2"}));
    assert_eq!(read(&mut b.guest("clone"), 8), 0xA1);
    assert_eq!(read(&mut b.guest("vm"), 8), 0xC3);
    // What is kept, and what has a clone, is at both.
    until_over(&b);
    agent_a.kill();
    migrate(&b, "vm", &hosts.addresses[0], MigrationTerms { keep_source: true, ..terms() });
    until_phase(&agent_b, "vm", "gone");
    let agent_a = a.agent();
    until_phase(&agent_a, "vm", "ready");
    until_over(&b);
    assert_eq!(read(&mut a.guest("vm"), 8), 0xC3);
    assert_eq!(snapshots(&agent_b), shown[..2]);
    // By the name that it has in the pools.
    assert_eq!(snapshots(&agent_a), before[..1]);
    delete(&agent_b, "kept", "/api/v1/snapshots/monday-2");
    assert_eq!(agent_b.get("/api/v1/certificates/kept")["verdict"], "wiped");
    a.stop();
    b.stop();
}

/// Whether a hypervisor at the socket of an ssd hears anything.
fn is_answered(daemon: &Daemon, ssd: &str) -> bool {
    let Ok(mut client) = Client::connect_raw(daemon.socket(&format!("{ssd}.sock"))) else { return false };
    client.set_timeout(Duration::from_millis(300));
    client.greet().is_ok()
}

fn until_answered(daemon: &Daemon, ssd: &str, answered: bool) {
    let begun = Instant::now();
    while is_answered(daemon, ssd) != answered {
        assert!(begun.elapsed() < PATIENCE, "{answered} does not become so");
    }
}

/// It goes and comes back though a copy of it was kept, and neither agent is asked to delete or accept it anew.
#[test]
fn where_its_guest_comes_to_is_said_on_either_host_while_an_ssd_goes_there_and_back() {
    let hosts = Hosts::new();
    let [a, b] = hosts.sections.each_ref().map(|section| Daemon::start_with(section));
    let (agent_a, agent_b) = (a.agent(), b.agent());
    agent_a.done("vm", "POST", "/api/v1/ssds", &json!({"name": "vm", "size_bytes": 16 << 20}));
    let comes_to = |agent: &Agent, id: &str, qmp: &str| {
        agent.done(id, "PATCH", "/api/v1/ssds/vm", &json!({"hypervisor": qmp}));
    };
    let mut guest = a.guest("vm");
    write(&mut guest, 7, 0xA1);
    agent_b.done("accept", "POST", "/api/v1/ssds", &export(&agent_a, "vm"));
    assert!(!is_answered(&b, "vm"));
    comes_to(&agent_b, "b1", "/run/vm/one.qmp");
    until_answered(&b, "vm", true);
    assert_eq!(agent_b.get("/api/v1/ssds/vm")["hypervisor"], "/run/vm/one.qmp");
    agent_b.kill();
    migrate(&a, "vm", &hosts.addresses[1], MigrationTerms { keep_source: true, ..terms() });
    until_phase(&agent_a, "vm", "gone");
    drop(guest);
    let agent_b = b.agent();
    until_phase(&agent_b, "vm", "ready");
    let mut guest = b.guest("vm");
    assert_eq!(read(&mut guest, 7), 0xA1);
    write(&mut guest, 8, 0xB2);
    drop(guest);
    // Another QEMU waits for it where it was.
    assert!(!is_answered(&a, "vm"));
    let generation = agent_a.get("/api/v1/ssds/vm")["generation"].as_u64().unwrap();
    let stale = format!("\"{}\"", generation - 1);
    let body = json!({"hypervisor": "/run/vm/two.qmp"}).to_string();
    let (status, _) = agent_a.ask("PATCH", "/api/v1/ssds/vm", &[("if-match", &*stale)], Some(&body)).unwrap();
    assert_eq!(status, 412);
    comes_to(&agent_a, "a1", "/run/vm/two.qmp");
    until_answered(&a, "vm", true);
    comes_to(&agent_a, "a2", "");
    until_answered(&a, "vm", false);
    comes_to(&agent_a, "a3", "/run/vm/three.qmp");
    until_answered(&a, "vm", true);
    until_over(&a);
    migrate(&b, "vm", &hosts.addresses[0], terms());
    until_phase(&agent_b, "vm", "gone");
    until_phase(&agent_a, "vm", "ready");
    let mut guest = a.guest("vm");
    assert_eq!((read(&mut guest, 7), read(&mut guest, 8)), (0xA1, 0xB2));
    drop(guest);
    // What is said survives the daemon, which has none of it in its own file.
    until_over(&b);
    comes_to(&agent_b, "b2", "/run/vm/four.qmp");
    let b = b.restart();
    until_answered(&b, "vm", true);
    a.stop();
    b.stop();
}
