//! `godwitd agent`: killed at any moment, and asked what no client should ask.
#![expect(clippy::unwrap_used, reason = "tests")]

mod crossing;
mod keys;
mod moves;
mod real;
mod tls;

use api::config::{Backend, Config};
use api::control::{Response, SsdStatus, Status, Timeline};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Agents that are killed.
const ROUNDS: u32 = 96;

/// How often each data file was made, what is served now, and what moves.
#[derive(Default)]
struct Served {
    ssds: BTreeMap<String, PathBuf>,
    made: BTreeMap<PathBuf, u32>,
    moves: Vec<Timeline>,
    asked: u32,
}

/// A daemon's double at a control socket.
fn daemon(path: &Path) -> Arc<Mutex<Served>> {
    let served: Arc<Mutex<Served>> = Arc::default();
    let listener = UnixListener::bind(path).unwrap();
    let shared = Arc::clone(&served);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            // An agent that is killed leaves a half of a talk.
            let _its_end = answer(&socket.unwrap(), &shared);
        }
    });
    served
}

fn answer(socket: &UnixStream, served: &Mutex<Served>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    let Ok(request) = serde_json::from_str::<Value>(&line) else { return Ok(()) };
    let mut served = served.lock().unwrap();
    let response = match request["command"].as_str() {
        Some("status") => {
            let ssd = |name: &String| SsdStatus {
                name: name.clone(),
                state: "serving".to_owned(),
                ..SsdStatus::default()
            };
            let ssds = served.ssds.keys().map(ssd).collect();
            Response::Status(Box::new(Status { ssds, ..Status::default() }))
        }
        Some("engine") => {
            served.asked += 1;
            moves::answer(&served.moves, &request)
        }
        Some("apply") => apply(&mut served, request["config"].as_str().unwrap()),
        _ => Response::Error("what?".to_owned()),
    };
    drop(served);
    let mut socket = socket;
    socket.write_all(format!("{}\n", serde_json::to_string(&response).unwrap()).as_bytes())
}

fn apply(served: &mut Served, text: &str) -> Response {
    let config = match Config::parse(Path::new("applied"), text) {
        Ok(config) => config,
        Err(error) => return Response::Error(error.to_string()),
    };
    served.ssds.clear();
    for ssd in &config.ssds {
        let Backend::Uring { path, .. } = &ssd.backend else { return Response::Error("no file".to_owned()) };
        if !path.exists() {
            std::fs::write(path, "").unwrap();
            *served.made.entry(path.clone()).or_default() += 1;
        }
        served.ssds.insert(ssd.name.clone(), path.clone());
    }
    Response::Done("done".to_owned())
}

struct Agent {
    folder: PathBuf,
    child: Child,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: &Path, more: &[String]) -> Self {
        let path = |name: &str| folder.join(name).display().to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_godwitd"))
            .args(["agent", "--state", &path("agent.db"), "--socket", &path("agent.sock")])
            .args(["--control", &path("control.sock"), "--config", &path("none.toml")])
            .args(["--ssds", &path("ssds"), "--sockets", &path("sockets")])
            .args(more)
            .env("GODWIT_LOG", "warn")
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let agent = Self { folder: folder.to_owned(), child };
        let begun = Instant::now();
        while agent.ask("GET", "/api/v1/flavors", &[], None).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(2));
        }
        agent
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> std::io::Result<(u16, String)> {
        let body = body.unwrap_or_default();
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{more}\r\n{body}",
            body.len()
        );
        self.raw(text.as_bytes())
    }

    fn raw(&self, bytes: &[u8]) -> std::io::Result<(u16, String)> {
        let mut socket = UnixStream::connect(self.folder.join("agent.sock"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Refused early, it is closed early: what counts is the answer.
        let _sent = socket.write_all(bytes);
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        match (status, read) {
            (Some(status), _) => Ok((status, body.to_owned())),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(std::io::Error::other("no answer")),
        }
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, &[], None).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Asks for a change, and waits for its end.
    fn change(&self, id: &str, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.ask(method, path, &[("idempotency-key", id)], Some(&body)).unwrap();
        assert_eq!(status, 202, "{answer}");
        loop {
            let operation = self.get(&format!("/api/v1/operations/{id}?wait_s=30"));
            if operation["state"] != "running" {
                return operation;
            }
        }
    }

    fn done(&self, id: &str, method: &str, path: &str, body: &Value) {
        let operation = self.change(id, method, path, body);
        assert_eq!(operation["state"], "done", "{operation}");
    }

    fn kill(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn operations_are_done_exactly_once_whenever_the_agent_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let served = daemon(&folder.path().join("control.sock"));
    let mut seed = 4;
    let (mut agent, mut kills) = (Agent::start(folder.path()), 0);
    for round in 0..ROUNDS {
        // Each name is made, and deleted two rounds later; every request is sent until it is answered.
        let name = format!("vm{}", round % 4);
        let (method, path, body) = match (round / 4).is_multiple_of(2) {
            true => {
                ("POST", "/api/v1/ssds".to_owned(), json!({"name": name, "size_bytes": 1 << 20}).to_string())
            }
            false => ("DELETE", format!("/api/v1/ssds/{name}"), String::new()),
        };
        let id = format!("round-{round}");
        let ask = |agent: &Agent| agent.ask(method, &path, &[("idempotency-key", &id)], Some(&body));
        let fall = Duration::from_micros(next(&mut seed) % 12_000);
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&agent));
            std::thread::sleep(fall);
            kill_process(Pid::from_child(&agent.child), Signal::KILL).unwrap();
            asked.join().unwrap()
        });
        kills += 1;
        agent.child.wait().unwrap();
        agent = Agent::start(folder.path());
        if answer.is_err() {
            let (status, body) = ask(&agent).unwrap();
            assert_eq!(status, 202, "{body}");
        }
        let operation = agent.get(&format!("/api/v1/operations/{id}?wait_s=30"));
        assert_eq!(operation["state"], "done", "{operation}");
        // The same again is the same.
        let (status, again) = ask(&agent).unwrap();
        assert_eq!((status, serde_json::from_str::<Value>(&again).unwrap()), (202, operation));
    }
    let list = agent.get("/api/v1/operations?limit=1000");
    assert_eq!(list["items"].as_array().unwrap().len(), ROUNDS as usize);
    assert_eq!(agent.get("/api/v1/ssds")["items"], json!([]));
    let served = served.lock().unwrap();
    assert!(served.ssds.is_empty());
    assert_eq!(std::fs::read_dir(folder.path().join("ssds")).unwrap().count(), 0);
    assert!(
        served.made.len() == ROUNDS as usize / 2 && served.made.values().all(|made| *made == 1),
        "{:?}",
        served.made
    );
    assert_eq!(kills, ROUNDS);
}

#[test]
fn hostile_requests_are_refused_with_a_reason_and_the_agent_serves_on() {
    let folder = tempfile::tempdir().unwrap();
    let _served = daemon(&folder.path().join("control.sock"));
    let agent = Agent::start(folder.path());
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(100_000));
    let cases: &[(&str, &str, &str, u16)] = &[
        ("POST", "/api/v1/ssds", &large, 413),
        ("POST", "/api/v1/ssds", "{", 400),
        ("POST", "/api/v1/ssds", "", 400),
        ("POST", "/api/v1/ssds", "[[[[[[[[", 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":1048576,"sise":1}"#, 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":"1GiB"}"#, 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":-1}"#, 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":1e30}"#, 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":1}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":0}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":18446744073709551615}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"../../etc/x","size_bytes":1048576}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"a\u0000","size_bytes":1048576}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"a"}"#, 400),
        ("POST", "/api/v1/ssds", r#"{"name":"a","flavor":"../x"}"#, 404),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":1048576,"limits":{"iop":100}}"#, 422),
        ("POST", "/api/v1/ssds", r#"{"name":"a","size_bytes":1048576,"limits":{"iops":1}}"#, 400),
        ("POST", "/api/v1/flavors", r#"{"name":"a","size_bytes":1048576,"limits":{"weight":0}}"#, 400),
        ("POST", "/api/v1/ssds?dry_run=perhaps", r#"{"name":"a","size_bytes":1048576}"#, 400),
        ("POST", "/api/v1/ssds?force=true", r#"{"name":"a","size_bytes":1048576}"#, 400),
        ("GET", "/api/v1/ssds/..%2f..%2fetc%2fpasswd", "", 400),
        ("GET", "/api/v1/ssds/%ff", "", 400),
        ("GET", "/api/v1/ssds/none", "", 404),
        ("DELETE", "/api/v1/ssds/none", "", 404),
        ("DELETE", "/api/v1/ssds", "", 405),
        ("POST", "/api/v1/migrations", "{}", 422),
        ("POST", "/api/v1/migrations", r#"{"to":"b:1"}"#, 400),
        ("POST", "/api/v1/migrations", r#"{"to":"b:1","ssd":"a","vm":"/q"}"#, 400),
        ("POST", "/api/v1/migrations", r#"{"to":"b:1","ssd":"../x"}"#, 400),
        ("POST", "/api/v1/migrations", r#"{"to":"b:1","ssd":"a","stremas":1}"#, 422),
        ("POST", "/api/v1/migrations", r#"{"to":"b:1","ssd":"a"}"#, 409),
        ("DELETE", "/api/v1/migrations/..%2fx", "", 400),
        ("POST", "/api/v1/migrations/none/pause", "", 409),
        ("GET", "/api/v1/migrations/none/timeline", "", 404),
        ("GET", "/api/v1/migrations/..%2fx/timeline", "", 400),
        ("GET", "/api/v1/operations?limit=99999999999", "", 400),
        ("GET", "/api/v1/../../etc/passwd", "", 404),
        ("GET", "/nothing", "", 404),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = agent.ask(method, path, &[], Some(body)).unwrap();
        let short: String = body.chars().take(60).collect();
        assert_eq!(status, *expected, "{method} {path} {short}: {answer}");
        let problem: Value = serde_json::from_str(&answer).unwrap();
        assert!(problem["message"].is_string() && problem["next_step"].is_string(), "{answer}");
    }
    let body = r#"{"name":"a","size_bytes":1048576}"#;
    for (header, value, expected) in [
        ("idempotency-key", "../x", 400),
        ("idempotency-key", "", 400),
        ("if-match", "yes", 400),
        ("origin", "http://evil.example", 403),
        ("sec-fetch-site", "cross-site", 403),
    ] {
        let (status, answer) = agent.ask("POST", "/api/v1/ssds", &[(header, value)], Some(body)).unwrap();
        assert_eq!(status, expected, "{header}: {value}: {answer}");
    }
    for bytes in [&b"\xff\xff\xff\xff\r\n\r\n"[..], b"GET / HTTP/9\r\n\r\n", &[b'A'; 1 << 20]] {
        let answer = agent.raw(bytes);
        assert!(answer.is_err() || answer.is_ok_and(|(status, _)| (400..500).contains(&status)));
    }
    assert_eq!(agent.get("/api/v1/ssds")["items"], json!([]));
}

#[test]
fn of_many_who_make_the_same_ssd_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let _served = daemon(&folder.path().join("control.sock"));
    let agent = Agent::start(folder.path());
    let body = r#"{"name":"a","size_bytes":1048576}"#;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| agent.ask("POST", "/api/v1/ssds", &[], Some(body)).unwrap().0))
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 202 | 409)), "{statuses:?}");
}

#[test]
fn a_watcher_hears_of_what_others_do_and_the_page_names_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let _served = daemon(&folder.path().join("control.sock"));
    let agent = Agent::start(folder.path());
    let version = agent.get("/api/v1/host")["version"].as_u64().unwrap();
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| agent.get(&format!("/api/v1/watch?wait_s=30&after={version}")));
        std::thread::sleep(Duration::from_millis(50));
        let (status, _) =
            agent.ask("POST", "/api/v1/ssds", &[], Some(r#"{"name":"a","size_bytes":1048576}"#)).unwrap();
        assert_eq!(status, 202);
        let heard = heard.join().unwrap();
        assert_eq!(heard["changes"][0]["kind"], "ssd", "{heard}");
        assert_eq!(heard["changes"][0]["name"], "a", "{heard}");
    });
    let (status, page) = agent.ask("GET", "/", &[], None).unwrap();
    assert!(status == 200 && page.contains("<html") && !page.contains("://"), "{page}");
    agent.kill();
}
