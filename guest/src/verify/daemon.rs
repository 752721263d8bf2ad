//! The daemon under soak: its ssds, its engine process, the command line beside it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::manager::Manager;

/// Where an ssd keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory.
    Ram,
    /// A file through io_uring, O_DIRECT.
    Uring,
    /// Extents of a pool in such a file, which all ssds of this kind share.
    Pool {
        /// Given when they are first written.
        thin: bool,
    },
}

/// How a client reaches an ssd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// An NVMe controller over vfio-user.
    Nvme {
        /// Bytes of a block.
        lba: u32,
    },
    /// A virtio-blk disk over vhost-user.
    Disk {
        /// What the client drives it with: packed rings, or split ones.
        packed: bool,
    },
}

/// One ssd.
#[derive(Clone, Debug)]
pub struct Ssd {
    /// Its name.
    pub name: String,
    /// Its capacity.
    pub mebibytes: u64,
    /// Its data.
    pub backing: Backing,
    /// Its clients.
    pub frontend: Frontend,
}

impl Ssd {
    /// The data file, if it has one of its own.
    #[must_use]
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        (self.backing == Backing::Uring).then(|| folder.join(format!("{}.img", self.name)))
    }
}

/// A running `godwitd`; dropping it ends it.
pub struct Daemon {
    process: Arc<Process>,
    folder: PathBuf,
    binary: PathBuf,
}

/// The daemon's process, which is another one after each restart.
pub struct Process {
    child: Mutex<Child>,
    binary: PathBuf,
    config: PathBuf,
    log: File,
    /// Who starts it again, and keeps its descriptors meanwhile.
    manager: Option<Manager>,
}

impl Process {
    /// The keeper's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL to the keeper; then the service manager starts the next one.
    ///
    /// # Errors
    /// There is no service manager; nothing can be started.
    pub fn kill_and_restart(&self) -> Result<()> {
        let manager = self.manager.as_ref().context("no service manager")?;
        let mut child = self.child();
        child.kill()?;
        child.wait()?;
        *child = start(manager, &self.binary, &self.config, &self.log)?;
        Ok(())
    }

    /// The host goes off: SIGKILL to the keeper and its engine, and nobody keeps their descriptors. [`Process::start_again`] ends that.
    ///
    /// # Errors
    /// There is no such process.
    pub fn go_off(&self) -> Result<()> {
        let mut child = self.child();
        let engines = engines_of(child.id());
        child.kill()?;
        child.wait()?;
        engines.into_iter().for_each(|engine| _ = signal(engine, Signal::KILL));
        if let Some(manager) = &self.manager {
            manager.forget();
        }
        Ok(())
    }

    /// The host is back.
    ///
    /// # Errors
    /// There is no service manager; nothing can be started.
    pub fn start_again(&self) -> Result<()> {
        let manager = self.manager.as_ref().context("no service manager")?;
        *self.child() = start(manager, &self.binary, &self.config, &self.log)?;
        Ok(())
    }
}

fn start(manager: &Manager, binary: &Path, config: &Path, log: &File) -> Result<Child> {
    let (out, error) = (log.try_clone()?, log.try_clone()?);
    let prepare = |command: &mut Command| arguments(command, config, out, error);
    manager.spawn(binary, prepare).with_context(|| format!("cannot start {}", binary.display()))
}

fn arguments(command: &mut Command, config: &Path, out: File, error: File) {
    command.arg("--config").arg(config);
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(out).stderr(error);
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    /// Starts `binary` in `folder` and waits for every socket.
    ///
    /// # Errors
    /// It does not start or does not listen.
    pub fn start(
        binary: &Path,
        folder: &Path,
        ssds: &[Ssd],
        reactors: usize,
        control: &Path,
        managed: bool,
    ) -> Result<Self> {
        let text = format!("control = {control:?}\n") + &configuration(folder, ssds, reactors);
        let sockets: Vec<PathBuf> =
            ssds.iter().map(|ssd| folder.join(format!("{}.sock", ssd.name))).collect();
        Self::start_with(binary, folder, &text, &sockets, managed)
    }

    /// Starts `binary` in `folder` with a configuration and waits for sockets.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(
        binary: &Path,
        folder: &Path,
        text: &str,
        sockets: &[PathBuf],
        managed: bool,
    ) -> Result<Self> {
        let config = folder.join("godwit.toml");
        fs::write(&config, text)?;
        let log = File::create(folder.join("log"))?;
        let manager = managed.then(|| Manager::new(folder)).transpose()?;
        let child = match &manager {
            Some(manager) => start(manager, binary, &config, &log)?,
            None => {
                let mut command = Command::new(binary);
                arguments(&mut command, &config, log.try_clone()?, log.try_clone()?);
                command.spawn().with_context(|| format!("cannot start {}", binary.display()))?
            }
        };
        let child = Mutex::new(child);
        let process = Arc::new(Process { child, binary: binary.to_owned(), config, log, manager });
        let daemon = Daemon { process, folder: folder.to_owned(), binary: binary.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while !sockets.iter().all(|socket| socket.exists()) {
            if let Some(status) = daemon.process.child().try_wait()? {
                bail!("{} ended at once: {status}\n{}", binary.display(), daemon.log_tail());
            }
            ensure!(Instant::now() < deadline, "no sockets after {PATIENCE:?}\n{}", daemon.log_tail());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Where an ssd listens.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    /// The program it was started from.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The keeper's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its process, for who may kill it.
    #[must_use]
    pub fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process)
    }

    /// As [`Daemon::process`].
    #[must_use]
    pub fn process_ref(&self) -> &Process {
        &self.process
    }

    /// The engine processes: children of the keeper whose first argument is `engine`.
    #[must_use]
    pub fn engines(&self) -> Vec<u32> {
        engines_of(self.pid())
    }

    /// Whether the keeper still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.child().try_wait(), Ok(None))
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log =
            String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        format!("the daemon's log ends with:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// Asks it to end; true when it did, with status 0.
    pub fn stop(&mut self) -> bool {
        let mut child = self.process.child();
        signal(child.id(), Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(_) => return false,
            }
        }
        let _gone_already = child.kill();
        let _status = child.wait();
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_alive() {
            self.stop();
        }
    }
}

/// The engine processes of a keeper.
#[must_use]
pub fn engines_of(keeper: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    let is_engine = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"engine")
    };
    children.split_whitespace().filter_map(|word| word.parse().ok()).filter(is_engine).collect()
}

/// Signals a process; false when it is gone.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn configuration(folder: &Path, ssds: &[Ssd], reactors: usize) -> String {
    let mut text = format!("[engine]\nreactors = {reactors}\n");
    if ssds.iter().any(|ssd| matches!(ssd.backing, Backing::Pool { .. })) {
        let path = folder.join("pool.img");
        let _infallible = write!(text, "\n[[pool]]\nname = \"p\"\npath = {path:?}\nsize = \"512MiB\"\n");
    }
    for ssd in ssds {
        let Ssd { name, mebibytes, .. } = ssd;
        let backend = match (ssd.backing, ssd.file(folder)) {
            (Backing::Pool { thin }, _) => format!("{{ type = \"pool\", pool = \"p\", thin = {thin} }}"),
            (_, None) => "{ type = \"ram\" }".to_owned(),
            (_, Some(file)) => format!("{{ type = \"uring\", path = {file:?} }}"),
        };
        let (socket, state) = (folder.join(format!("{name}.sock")), folder.join(format!("{name}.state")));
        let frontend = match ssd.frontend {
            Frontend::Nvme { lba } => format!("socket = {socket:?}\nlba = {lba}\nstate = {state:?}"),
            Frontend::Disk { .. } => format!("vhost_socket = {socket:?}"),
        };
        let _infallible = write!(
            text,
            "\n[[ssd]]\nname = {name:?}\nsize = \"{mebibytes}MiB\"\n{frontend}\nbackend = {backend}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_engines_has_none() {
        assert!(engines_of(std::process::id()).is_empty());
        assert!(engines_of(u32::MAX).is_empty());
    }
}
