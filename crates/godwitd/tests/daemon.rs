//! The program itself: how it starts, what it says, how it stops.
#![expect(clippy::unwrap_used, reason = "tests")]

use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn configuration(folder: &Path, size: &str) -> String {
    let path = folder.join("godwit.toml");
    let socket = folder.join("a.sock").display().to_string();
    let control = folder.join("control.sock").display().to_string();
    let text = format!(
        "control = \"{control}\"\n[[ssd]]\nname = \"a\"\nsize = \"{size}\"\nsocket = \"{socket}\"\nbackend = {{ type = \"ram\" }}\n"
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn godwitd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwitd"));
    command.args(arguments).env_remove("GODWIT_LOG").stderr(Stdio::piped());
    command
}

/// Starts the daemon, waits until it serves, and ends it by `signal`.
fn serve_until(signal: Signal, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "64MiB");
    let child = godwitd(&[&["--config", &config], more].concat()).spawn().unwrap();
    let begun = Instant::now();
    while UnixStream::connect(folder.path().join("a.sock")).is_err() {
        assert!(begun.elapsed() < PATIENCE, "it does not serve");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!folder.path().join("a.sock").exists(), "the socket file goes with the daemon");
    output
}

#[test]
fn control_c_and_sigterm_stop_it_cleanly() {
    for signal in [Signal::INT, Signal::TERM] {
        let output = serve_until(signal, &[]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        assert!(log.contains("stopped; all data is durable"), "{log}");
    }
}

#[test]
fn each_line_of_a_json_log_is_an_object_with_time_level_and_message() {
    let output = serve_until(Signal::TERM, &["--log-format", "json"]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["/timestamp", "/level", "/fields/message"] {
            assert!(object.pointer(key).is_some_and(serde_json::Value::is_string), "{key} in {line}");
        }
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "64 parsecs");
    let output = godwitd(&["--config", &config]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("godwit.toml") && text.contains(":4") && text.contains("64 parsecs"), "{text}");
}

#[test]
fn statistics_never_take_the_place_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "64MiB");
    let precious = folder.path().join("precious").display().to_string();
    std::fs::write(&precious, "mine").unwrap();
    let output = godwitd(&["--config", &config, "--stats", &precious]).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
}

#[test]
fn a_state_that_this_build_cannot_serve_whole_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), "64MiB");
    let path = folder.path().join("a.state");
    let namespace = state::ssd::NamespaceV1 {
        nsid: 7,
        reserved_bytes: 1 << 20,
        blocks: 128,
        lba_shift: 13,
        ..state::ssd::NamespaceV1::default()
    };
    let record = state::ssd::SsdV1 {
        capacity_bytes: 64 << 20,
        profile: "godwit-1".to_owned(),
        laid_out: true,
        namespaces: vec![namespace],
        ..state::ssd::SsdV1::default()
    };
    let bytes = record.to_bytes().unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let line = format!("state = \"{}\"\n", path.display());
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &line).unwrap();
    let output = godwitd(&["--config", &config]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("namespace 7"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}
