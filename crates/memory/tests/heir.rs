//! The end of a process with an heir is told while its memory is still mapped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMORY_BYTES: usize = 64 << 20;
const PAGE_BYTES: usize = 4096;

/// The process that is killed.
#[test]
#[ignore = "a process of the test below"]
fn victim() {
    if std::env::var_os("GODWIT_VICTIM").is_none() {
        return;
    }
    memory::heir::appoint().unwrap();
    let mut memory = vec![0_u8; MEMORY_BYTES];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    println!("ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    black_box(&memory);
}

/// Ends the victim if the test fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A field of `/proc/PID/stat`, counted from the state on.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next()
}

fn resident_bytes(pid: u32) -> usize {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE_BYTES
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn the_end_of_a_process_is_told_and_its_descriptors_close_before_its_memory_is_unmapped() {
    let mut victim = Victim(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env("GODWIT_VICTIM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = String::new();
    let mut output = victim.0.stdout.take().unwrap();
    while !said.contains("ready") {
        let mut bytes = [0; 256];
        let len = output.read(&mut bytes).unwrap();
        assert!(len > 0, "the victim ended: {said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    let heirs: Vec<u32> = fs::read_dir(format!("/proc/{}/task", victim.0.id()))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
        .collect();
    let [heir] = heirs[..] else { panic!("not one heir: {heirs:?}") };
    wait_until("the heir is ready", || {
        fs::read_dir(format!("/proc/{heir}/fd")).is_ok_and(|fds| fds.count() == 1)
    });

    // An heir that can do nothing: all that is seen now was told without it.
    signal(heir, "-STOP");
    wait_until("the heir stands still", || state(heir) == Some('T'));
    victim.0.kill().unwrap();
    assert_eq!(victim.0.wait().unwrap().signal(), Some(9));
    output.read_to_string(&mut said).unwrap();
    assert!(resident_bytes(heir) > MEMORY_BYTES);

    signal(heir, "-CONT");
    wait_until("the heir has gone", || state(heir).is_none_or(|state| state == 'Z'));
}
