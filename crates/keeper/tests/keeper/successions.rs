//! One keeper after another in one process: keepers here are processes, this test program started again.

use crate::client::Client;
use crate::double::frame;
use crate::harness::{House, options, patient};
use api::control::{Request, Response, Status};
use guest::PATIENCE;
use keeper::{Again, Keeper, Options};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The configuration, in a process that is to be a keeper.
const CONFIG: &str = "KEEPER_CONFIG";
/// The engine's habits.
const HABITS: &str = "KEEPER_HABITS";

fn keeper_options() -> Option<Options> {
    let text = std::env::var(CONFIG).ok()?;
    let habits = std::env::var(HABITS).unwrap_or_default();
    let arguments = |test: &str| ["--exact", test, "--nocapture", "--test-threads=1"].map(Into::into).into();
    let again = Again {
        program: std::env::current_exe().expect("a path"),
        resume: arguments("successions::keeper_resumed"),
        check: arguments("successions::keeper_check"),
    };
    Some(Options { again: Some(again), ..options(&text, &habits, patient()) })
}

fn run(keeper: Keeper) {
    let (_stop, stopped) = UnixStream::pair().expect("pair");
    keeper.run(&stopped).expect("never ends");
}

/// Not a test: the first keeper's `main`.
#[test]
fn keeper_process() {
    if let Some(options) = keeper_options() {
        run(Keeper::new(options).expect("a keeper"));
    }
}

/// Not a test: a later keeper's `main`.
#[test]
fn keeper_resumed() {
    if let Some(options) = keeper_options() {
        run(Keeper::resume(options).expect("a keeper"));
    }
}

/// Not a test: the check of a program that is to be a keeper.
#[test]
fn keeper_check() {
    if std::env::var(CONFIG).is_err() {
        return;
    }
    keeper::check().expect("readable");
    let name = PathBuf::from(std::env::args_os().next().expect("a name"));
    if name.ends_with("spoils-itself") {
        std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o000)).expect("set");
    }
}

/// A keeper's process.
struct Process {
    house: House,
    child: Child,
}

impl Process {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(habits: &str) -> Self {
        let house = House { directory: tempfile::tempdir().expect("directory") };
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "successions::keeper_process", "--nocapture", "--test-threads=1"])
            .env(CONFIG, house.config_text())
            .env(HABITS, habits)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let process = Self { house, child };
        let begun = Instant::now();
        while UnixStream::connect(process.path("control")).is_err() {
            assert!(begun.elapsed() < PATIENCE, "no keeper");
            std::thread::sleep(Duration::from_millis(5));
        }
        process.serving();
        process
    }

    fn succeed(&self) -> Status {
        let before = self.status();
        let answer = self.ask(&request(None));
        assert!(matches!(&answer, Response::Done(_)), "{answer:?}");
        let status = self.serving();
        assert_eq!(status.keeper_generation, before.keeper_generation + 1);
        assert_eq!((status.pid, status.engine.pid), (before.pid, before.engine.pid), "the same processes");
        assert_eq!((status.engine.generation, status.engine.crashes), (1, 0));
        status
    }
}

impl Deref for Process {
    type Target = House;
    fn deref(&self) -> &House {
        &self.house
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(binary: Option<&Path>) -> Request {
    Request::Upgrade { binary: binary.map(Path::to_owned), keeper: true, no_wait: false }
}

#[test]
fn twenty_keepers_after_one_another_lose_and_repeat_no_command() {
    let process = Process::start();
    let enough = AtomicBool::new(false);
    let load = |mut client: Client| {
        let mut count = 0;
        while !enough.load(Ordering::Relaxed) {
            // Several at once, so that some are always on their way.
            for _ in 0..8 {
                client.send("count");
            }
            for _ in 0..8 {
                count += 1;
                assert_eq!(client.receive().expect("a reply").text, format!("count 1 {count}"));
            }
        }
        count
    };
    std::thread::scope(|scope| {
        let clients = ["a", "b"].map(|ssd| process.client(ssd));
        let loads = clients.map(|client| scope.spawn(|| load(client)));
        for _ in 0..20 {
            process.succeed();
        }
        enough.store(true, Ordering::Relaxed);
        for load in loads {
            println!("{} commands", load.join().expect("no fault"));
        }
    });
}

#[test]
fn a_reply_that_is_half_written_is_written_to_its_end_by_the_next_keeper() {
    let process = Process::start();
    let mut client = process.client("a");
    let ids: Vec<u16> = (0..3).map(|_| client.send("big")).collect();
    process.wait("answered", |status| status.ssds[0].unanswered == 0);
    process.succeed();
    process.succeed();
    for id in ids {
        let reply = client.receive().expect("a reply");
        assert_eq!((reply.id, reply.text.len()), (id, 1 << 20));
        assert!(reply.text.bytes().all(|byte| byte == b'x'));
    }
    assert_eq!(client.call("count"), "count 1 1");
}

#[test]
fn a_command_that_is_half_read_keeps_its_descriptors() {
    let process = Process::start();
    let mut client = process.client("a");
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("eventfd");
    let bytes = frame(9, 9, 0, b"keep 0");
    client.raw(&bytes[..5], &[eventfd.as_fd()]);
    std::thread::sleep(Duration::from_millis(50));
    process.succeed();
    client.raw(&bytes[5..18], &[]);
    std::thread::sleep(Duration::from_millis(50));
    process.succeed();
    client.raw(&bytes[18..], &[]);
    assert_eq!(client.receive().expect("a reply").text, "keep 1 1");
    process.succeed();
    assert_eq!(client.call("ring"), "ring 1");
    let mut rung = [0; 8];
    rustix::io::read(&eventfd, &mut rung).expect("rung");
}

#[test]
fn what_the_engine_keeps_and_asks_survives_the_keeper_and_then_the_engine() {
    let process = Process::start();
    let mut client = process.client("a");
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("eventfd");
    client.send_with("keep", 0, &[eventfd.as_fd()]);
    assert_eq!(client.receive().expect("a reply").text, "keep 1 1");
    // The engine's own request is on its way while keepers change.
    client.send("ask");
    let asked = client.receive().expect("a request");
    process.succeed();
    client.raw(&frame(asked.id, 11, 1, b"the answer"), &[]);
    assert_eq!(client.receive().expect("a reply").text, "the answer");
    process.succeed();
    // The engine is still the keeper's child: its end is seen and survived.
    assert_eq!(client.call("kill 1"), "kill 2 1");
    assert_eq!(client.call("ring"), "ring 1");
    let status = process.serving();
    assert_eq!((status.engine.generation, status.engine.crashes, status.keeper_generation), (2, 1, 3));
    assert_eq!(status.restarts[0].reason, "killed by SIGKILL");
}

#[test]
fn clients_come_and_go_at_every_keeper() {
    let process = Process::start();
    for round in 0..5 {
        let mut client = process.client("a");
        assert_eq!(client.call("count"), "count 1 1", "round {round}");
        process.succeed();
        assert_eq!(client.call("count"), "count 1 2", "round {round}");
    }
}

#[test]
fn a_program_that_cannot_read_the_state_or_cannot_be_executed_changes_nothing() {
    let process = Process::start();
    let mut client = process.client("a");
    client.call("count");
    let own = std::env::current_exe().expect("a path");
    let copy = |name: &str| {
        let path = process.path(name);
        std::fs::copy(&own, &path).expect("copied");
        path
    };
    let no_program = process.path("text");
    std::fs::write(&no_program, "#!/nowhere\n").expect("written");
    std::fs::set_permissions(&no_program, std::fs::Permissions::from_mode(0o755)).expect("set");
    for (program, why) in [
        (PathBuf::from("/nowhere"), "/nowhere"),
        (PathBuf::from("/bin/false"), "cannot take over"),
        // Ends well, and has understood nothing.
        (PathBuf::from("/bin/true"), "cannot take over"),
        (no_program, "cannot start"),
        (copy("spoils-itself"), "cannot be executed"),
    ] {
        let answer = process.ask(&request(Some(&program)));
        let told = |text: &str| text.contains(why) && text.contains("nothing has changed");
        assert!(matches!(&answer, Response::Error(text) if told(text)), "{program:?}: {answer:?}");
    }
    assert_eq!(client.call("count"), "count 1 2");
    let status = process.serving();
    assert_eq!((status.keeper_generation, status.engine.generation), (1, 1));
    process.succeed();
}

#[test]
fn a_keeper_is_not_replaced_while_its_engine_is() {
    // It does not pause before it is killed.
    let process = Process::start_with("never-pause@1");
    let mut client = process.client("a");
    client.call("count");
    let engine = process.serving().engine.pid.expect("a process");
    let upgrade = Request::Upgrade { binary: None, keeper: false, no_wait: true };
    let waiting = process.question(&upgrade);
    let answer = process.ask(&request(None));
    let refused = |text: &str| text.contains("under way") || text.contains("no engine is serving");
    assert!(matches!(&answer, Response::Error(text) if refused(text)), "{answer:?}");
    drop(waiting);
    let engine = rustix::process::Pid::from_raw(i32::try_from(engine).expect("a pid")).expect("a pid");
    rustix::process::kill_process(engine, rustix::process::Signal::KILL).expect("killed");
    // Of whichever generation: the next may have been at its check.
    assert!(client.call("count").ends_with(" 2"));
}

#[test]
fn an_upgrades_probation_goes_on_in_the_next_keeper() {
    let process = Process::start();
    let upgrade = Request::Upgrade { binary: None, keeper: false, no_wait: true };
    let begun = Instant::now();
    // It takes five seconds, which a busy machine needs to ask about it.
    let goes_on = |status: &Status| status.engine.on_probation || begun.elapsed() > Duration::from_secs(5);
    assert!(matches!(process.ask(&upgrade), Response::Done(_)));
    assert!(goes_on(&process.status()));
    assert!(matches!(process.ask(&request(None)), Response::Done(_)));
    let status = process.status();
    assert_eq!((status.keeper_generation, status.engine.generation, status.engine.handovers), (2, 2, 1));
    assert!(goes_on(&status));
    process.wait("over", |status| !status.engine.on_probation);
}
