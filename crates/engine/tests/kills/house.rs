//! A keeper on a thread of this process, with engines in processes of their own.

use api::control::{Request, Response, Status};
use guest::PATIENCE;
use guest::nvme::{Driver, Options};
use keeper::{Binary, EngineCommand, Keeper, Limits};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a test of a busy debug build allows for the shortest of all pauses.
pub(crate) const KILLED: Duration = Duration::from_millis(500);
const PID_FILE: &str = "GODWIT_TEST_ENGINE_PID";

/// What the test `engine_process` does when it is started as one.
pub(crate) fn be_an_engine() {
    let Some(path) = std::env::var_os(PID_FILE) else { return };
    log();
    let temporary = Path::new(&path).with_extension("new");
    std::fs::write(&temporary, std::process::id().to_string()).unwrap();
    std::fs::rename(&temporary, &path).unwrap();
    let link = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let beside = aside(Path::new(&path));
    engine::run_with(link, move |passengers| crate::aside::listen(&beside, passengers)).unwrap();
    std::process::exit(0);
}

/// Where the engine with that file of its process number can be spoken to.
fn aside(pid_file: &Path) -> PathBuf {
    pid_file.with_extension("aside")
}

/// To the standard error output, by the variable GODWIT_LOG.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GODWIT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// See the module.
pub(crate) struct House {
    keeper: Option<JoinHandle<anyhow::Result<()>>>,
    stop: OwnedFd,
    directory: TempDir,
    reactors: usize,
    killed: Mutex<Option<Pid>>,
}

fn config_text(directory: &Path, ssds: &[(&str, &str)], reactors: usize) -> String {
    let dir = directory.display().to_string();
    let mut text = format!("control = \"{dir}/control\"\n[engine]\nreactors = {reactors}\n");
    if ssds.iter().any(|(_, backend)| backend.contains("pool")) {
        text.push_str(&format!("[[pool]]\nname = \"p\"\npath = \"{dir}/pool.img\"\nsize = \"256MiB\"\n"));
    }
    for (name, backend) in ssds {
        if let Some(backend) = backend.strip_prefix("virtio-blk on ") {
            text.push_str(&crate::disk::config(name, backend, directory));
            continue;
        }
        text.push_str(&format!(
            "[[ssd]]\nname = \"{name}\"\nsize = \"64MiB\"\nsocket = \"{dir}/{name}.sock\"\n\
             state = \"{dir}/{name}.state\"\nbackend = {}\n",
            backend.replace("DIR", &dir)
        ));
    }
    text
}

/// Of each reactor, by the page of statistics in a folder: the ssds that have something there, and queue pairs.
pub(crate) fn reactors(directory: &Path) -> Vec<(u64, u64)> {
    let page = std::fs::read(directory.join("stats")).unwrap_or_default();
    let word = |at: usize| {
        let bytes = page.get(at * 8..at * 8 + 8);
        bytes.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    };
    (0..word(1) as usize).map(|reactor| (word(2 + reactor * 8 + 5), word(2 + reactor * 8 + 6))).collect()
}

impl House {
    /// `ssds`: names and backends, where `DIR` stands for the directory.
    pub(crate) fn start(ssds: &[(&str, &str)], reactors: usize) -> Self {
        Self::start_with(ssds, reactors, "")
    }

    /// With more in its configuration, where `DIR` stands for the directory, too.
    pub(crate) fn start_with(ssds: &[(&str, &str)], reactors: usize, more: &str) -> Self {
        log();
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let more = more.replace("DIR", &directory.path().display().to_string());
        let text = config_text(directory.path(), ssds, reactors) + &more;
        Self::start_in(directory, text, reactors)
    }

    /// The daemon ends, and another is started with that configuration and what lies there.
    pub(crate) fn restart(mut self, text: String) -> Self {
        self.end();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::start_in(directory, text, self.reactors)
    }

    fn start_in(directory: TempDir, text: String, reactors: usize) -> Self {
        let (stopped, stop) = rustix::pipe::pipe().unwrap();
        let stats = directory.path().join("stats");
        let pid_file = directory.path().join("pid").display().to_string();
        let options = keeper::Options {
            config_path: PathBuf::from("test.toml"),
            config_text: text,
            engine: EngineCommand {
                binary: Arc::new(Binary::open(&std::env::current_exe().unwrap()).unwrap()),
                arguments: ["--exact", "engine_process", "--ignored", "--nocapture"].map(String::from).into(),
                environment: vec![(PID_FILE.to_owned(), pid_file)],
            },
            stats: Some(stats),
            limits: Limits { blame_crashes: usize::MAX, short_life: Duration::ZERO, ..Limits::default() },
            notify: keeper::Notify::default(),
            again: None,
            leave: None,
        };
        let keeper = Keeper::new(options).unwrap();
        let keeper = std::thread::spawn(move || keeper.run(stopped));
        Self { keeper: Some(keeper), stop, directory, reactors, killed: Mutex::new(None) }
    }

    /// Has the keeper serve these instead. Whether it is done, and what was said.
    pub(crate) fn apply(&self, ssds: &[(&str, &str)]) -> Result<String, String> {
        self.apply_text(config_text(self.directory.path(), ssds, self.reactors))
    }

    /// Has these served by so many reactors.
    pub(crate) fn call_up(&self, ssds: &[(&str, &str)], reactors: usize) -> Result<String, String> {
        self.apply_text(config_text(self.directory.path(), ssds, reactors))
    }

    /// Of each reactor of the engine there is: the ssds that have something there, and queue pairs. Empty while there is none.
    pub(crate) fn reactors(&self) -> Vec<(u64, u64)> {
        reactors(self.directory.path())
    }

    /// The configuration of these, each of so many MiB. They begin with 64.
    pub(crate) fn config(&self, ssds: &[(&str, &str)], mib: u64) -> String {
        let text = config_text(self.directory.path(), ssds, self.reactors);
        text.replace("size = \"64MiB\"", &format!("size = \"{mib}MiB\""))
    }

    pub(crate) fn apply_text(&self, config: String) -> Result<String, String> {
        match self.ask(&Request::Apply { config, path: None, dry_run: false, force: false }) {
            Response::Done(text) => Ok(text),
            Response::Error(text) => Err(text),
            other => panic!("{other:?}"),
        }
    }

    /// What the keeper says last.
    pub(crate) fn ask(&self, request: &Request) -> Response {
        let mut socket = UnixStream::connect(self.directory.path().join("control")).unwrap();
        socket.write_all(format!("{}\n", serde_json::to_string(request).unwrap()).as_bytes()).unwrap();
        let mut answers =
            BufReader::new(socket).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        answers.find(|answer| !matches!(answer, Response::Progress(_))).expect("a last word")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn connect(&self, name: &str) -> Driver {
        self.connect_with(name, Options::default())
    }

    /// The one before may still be leaving: a client that comes too early is turned away and tries again.
    pub(crate) fn connect_with(&self, name: &str, options: Options) -> Driver {
        let socket = self.directory.path().join(format!("{name}.sock"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Driver::connect_with(&socket, options) {
                Ok(driver) => return driver,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the keeper says.
    pub(crate) fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    /// A drive's file, to be changed under the engine.
    pub(crate) fn drive(&self, name: &str) -> std::fs::File {
        std::fs::File::options().write(true).open(self.directory.path().join(name)).unwrap()
    }

    /// Speaks to the engine there is, past its keeper, as a migration in it would: see [`crate::aside`].
    pub(crate) fn tell(&self, what: &str, name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
        crate::aside::tell(&aside(&self.path("pid")), what, name, bytes)
    }

    /// The newest engine.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.directory.path().join("pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// SIGKILL to the engine there is, which is returned. One that was killed already and is not replaced yet is left alone.
    pub(crate) fn kill(&self) -> Option<Pid> {
        let pid = self.pid()?;
        let _ = kill_process(pid, Signal::KILL);
        *self.killed.lock().unwrap() = Some(pid);
        Some(pid)
    }

    /// An engine that was killed is replaced first: with a dead one the keeper cannot make anything durable, and says so.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let killed = self.killed.lock().unwrap().take();
        let deadline = Instant::now() + PATIENCE;
        while killed.is_some() && killed == self.pid() {
            assert!(Instant::now() < deadline, "the engine that was killed is not replaced");
            std::thread::sleep(Duration::from_millis(1));
        }
        rustix::io::write(&self.stop, &[1]).unwrap();
        self.keeper.take().unwrap().join().unwrap().unwrap();
    }
}

/// Of a test that failed: no engine stays behind.
impl Drop for House {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            let _ = rustix::io::write(&self.stop, &[1, 1]);
            std::thread::sleep(Duration::from_millis(50));
            self.kill();
        }
    }
}
