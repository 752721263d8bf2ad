//! The daemon under test: starting it, and what it spends.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::clock;
use crate::mapping::Mapping;
use crate::nvme::{Driver, Options};
use crate::verify::daemon::engines_of;

/// Where an ssd of a bench keeps its data.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Nowhere.
    Null,
    /// Memory of the daemon.
    Ram,
    /// A file through io_uring, O_DIRECT.
    Uring(PathBuf),
    /// Extents of the pool "p".
    Pool {
        /// Each when it is first written.
        thin: bool,
    },
    /// Another of these, encrypted under the key in this file.
    Encrypted(Box<Backing>, PathBuf),
}

impl Backing {
    /// As the configuration says it, and the file of its key.
    fn describe(&self) -> (String, Option<&Path>) {
        match self {
            Backing::Null => ("{ type = \"null\" }".to_owned(), None),
            Backing::Ram => ("{ type = \"ram\" }".to_owned(), None),
            Backing::Uring(path) => (format!("{{ type = \"uring\", path = {path:?} }}"), None),
            Backing::Pool { thin } => (format!("{{ type = \"pool\", pool = \"p\", thin = {thin} }}"), None),
            Backing::Encrypted(under, key) => (under.describe().0, Some(key)),
        }
    }
}

/// One ssd of the generated configuration.
#[derive(Clone, Debug)]
pub struct Ssd {
    /// Its name, also its socket's.
    pub name: String,
    /// Its capacity.
    pub mebibytes: u64,
    /// Its data.
    pub backing: Backing,
    /// It is a virtio-blk disk over vhost-user.
    pub disk: bool,
}

/// What the engine has spent since it started, or between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Turns that found work, by the engine's own count.
    pub busy_ns: u64,
    /// CPU time of all its threads.
    pub cpu_ns: u64,
    /// Commands by its own count.
    pub commands: u64,
}

impl Spent {
    /// The difference.
    #[must_use]
    pub fn since(&self, before: &Spent) -> Spent {
        Spent {
            busy_ns: self.busy_ns.saturating_sub(before.busy_ns),
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            commands: self.commands.saturating_sub(before.commands),
        }
    }
}

/// A running `godwitd`; dropping it stops it.
pub struct Engine {
    /// The keeper: what is measured is its child.
    child: Child,
    pid: u32,
    directory: tempfile::TempDir,
    stats: Stats,
}

impl Engine {
    /// Starts `binary` with one reactor on `cpu` and waits for its sockets.
    ///
    /// # Errors
    /// It does not start, or does not listen within ten seconds.
    pub fn start(binary: &Path, cpu: usize, ssds: &[Ssd]) -> Result<Self> {
        Self::start_with(binary, cpu, ssds, "")
    }

    /// The same with `more` lines in the configuration's part of the engine.
    ///
    /// # Errors
    /// It does not start, or does not listen within ten seconds.
    pub fn start_with(binary: &Path, cpu: usize, ssds: &[Ssd], more: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir()?;
        let config = directory.path().join("godwit.toml");
        fs::write(&config, configuration(directory.path(), cpu, ssds, more))?;
        let stats = directory.path().join("stats");
        let log = directory.path().join("log");
        let mut command = Command::new(binary);
        command.arg("--config").arg(&config).arg("--stats").arg(&stats);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        let mut child = clock::unpinned(|| command.spawn())?
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let sockets: Vec<_> = ssds.iter().map(|ssd| socket(directory.path(), &ssd.name)).collect();
        let (stats, pid) = match wait_for(&mut child, &stats, &sockets) {
            Ok(found) => found,
            Err(error) => {
                stop(&mut child);
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(error.context(format!("{} said:\n{said}", binary.display())));
            }
        };
        Ok(Engine { child, pid, directory, stats })
    }

    /// A driver on one of the ssds.
    ///
    /// # Errors
    /// The driver's.
    pub fn connect(&self, name: &str, ram_bytes: usize) -> Result<Driver> {
        let options = Options { ram_bytes, ..Options::default() };
        Ok(Driver::connect_with(self.socket(name), options)?)
    }

    /// Where an ssd listens.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        socket(self.directory.path(), name)
    }

    /// What it has spent so far.
    #[must_use]
    pub fn spent(&self) -> Spent {
        let (busy_ns, commands) = self.stats.totals();
        Spent { busy_ns, commands, cpu_ns: cpu_ns(self.pid) }
    }

    /// The engine's process, which does all I/O: the keeper beside it is not in the figures.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The keeper's process.
    #[must_use]
    pub fn keeper_pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

fn configuration(directory: &Path, cpu: usize, ssds: &[Ssd], more: &str) -> String {
    let control = directory.join("control.sock");
    let mut text = format!("control = {control:?}\n\n[engine]\nreactors = 1\ncpus = [{cpu}]\n{more}\n");
    for ssd in ssds {
        let (backend, key) = ssd.backing.describe();
        let socket = socket(directory, &ssd.name);
        let door = if ssd.disk { "vhost_socket" } else { "socket" };
        let (name, size) = (&ssd.name, ssd.mebibytes);
        let _infallible = write!(
            text,
            "\n[[ssd]]\nname = {name:?}\nsize = \"{size}MiB\"\n{door} = {socket:?}\nbackend = {backend}\n"
        );
        if let Some(key) = key {
            let _infallible = writeln!(text, "encryption = {{ key_file = {key:?} }}");
        }
    }
    text
}

fn wait_for(child: &mut Child, stats: &Path, sockets: &[PathBuf]) -> Result<(Stats, u32)> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if sockets.iter().all(|socket| socket.exists())
            && let Some(engine) = engines_of(child.id()).first()
            && let Ok(stats) = Stats::open(stats)
        {
            return Ok((stats, *engine));
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once: {status}");
        }
        ensure!(Instant::now() < deadline, "no sockets and statistics after 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks it to end, and makes it end when it has not in five seconds.
fn stop(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _gone_already = kill_process(pid, Signal::TERM);
    }
    for _ in 0..500 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _gone_already = child.kill();
    let _status = child.wait();
}

/// CPU time of every thread of a process (`schedstat`, first number).
#[must_use]
pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_task = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(of_task).sum()
}

/// The engine's statistics file (`crates/engine/src/stats.rs`): words 0 magic and 1 number of reactors, then eight words a
/// reactor of which the first three are busy ns, idle ns and commands.
struct Stats {
    page: Mapping,
    reactors: usize,
}

const MAGIC: u64 = u64::from_le_bytes(*b"GDWSTAT1");

impl Stats {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len())?;
        ensure!(len >= 80, "a statistics file of {len} bytes");
        let page = Mapping::new(&file, 0, len, false)?;
        ensure!(page.load_u64(0) == MAGIC, "the statistics file has magic {:#x}", page.load_u64(0));
        let reactors = usize::try_from(page.load_u64(8))?;
        ensure!(reactors >= 1 && 16 + reactors * 64 <= len, "{reactors} reactors in {len} bytes");
        Ok(Stats { page, reactors })
    }

    fn totals(&self) -> (u64, u64) {
        let word = |reactor: usize, index: usize| self.page.load_u64(16 + reactor * 64 + index * 8);
        let sum = |index| (0..self.reactors).map(|reactor| word(reactor, index)).sum();
        (sum(0), sum(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_ssd() {
        let ssds = [
            Ssd { name: "a".into(), mebibytes: 64, backing: Backing::Null, disk: false },
            Ssd { name: "b".into(), mebibytes: 128, backing: Backing::Uring("/x/y.img".into()), disk: true },
        ];
        let text = configuration(Path::new("/run/t"), 0, &ssds, "");
        assert!(text.contains("name = \"a\"\nsize = \"64MiB\"\nsocket = \"/run/t/a.sock\""));
        assert!(text.contains("{ type = \"uring\", path = \"/x/y.img\" }"));
        assert!(text.contains("vhost_socket = \"/run/t/b.sock\""));
    }

    #[test]
    fn statistics_of_several_reactors_are_added() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut words = vec![MAGIC, 2];
        for reactor in [10, 100] {
            words.extend([reactor, 0, reactor + 1, 0, 0, 0, 0, 0]);
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| u64::to_le_bytes(*word)).collect();
        fs::write(file.path(), bytes).unwrap();
        assert_eq!(Stats::open(file.path()).unwrap().totals(), (110, 112));
    }

    #[test]
    fn this_process_has_used_some_cpu() {
        assert!(cpu_ns(std::process::id()) > 0);
    }
}
