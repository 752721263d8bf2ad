//! The daemon under soak: its ssds, its engine process, the command line beside it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Where an ssd keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory.
    Ram,
    /// A file through io_uring, O_DIRECT.
    Uring,
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
    /// Bytes of a block.
    pub lba: u32,
}

impl Ssd {
    /// The data file of one that has one.
    #[must_use]
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.img", self.name))
    }
}

/// A running `godwitd`; dropping it ends it.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    binary: PathBuf,
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
    ) -> Result<Self> {
        let config = folder.join("godwit.toml");
        let control = format!("control = {control:?}\n");
        fs::write(&config, control + &configuration(folder, ssds, reactors))?;
        let log = File::create(folder.join("log"))?;
        let mut command = Command::new(binary);
        // While a keeper is an option of the daemon and not its nature.
        let probe = Command::new(binary).args(["--keeper", "--version"]).output()?;
        command.args(probe.status.success().then_some("--keeper")).arg("--config").arg(&config);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let mut daemon = Daemon { child, folder: folder.to_owned(), binary: binary.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while !ssds.iter().all(|ssd| daemon.socket(&ssd.name).exists()) {
            if let Some(status) = daemon.child.try_wait()? {
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
        self.child.id()
    }

    /// The engine processes: children of the keeper whose first argument is `engine`.
    #[must_use]
    pub fn engines(&self) -> Vec<u32> {
        engines_of(self.pid())
    }

    /// Whether the keeper still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
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
        signal(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(_) => return false,
            }
        }
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
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
    for ssd in ssds {
        let Ssd { name, mebibytes, lba, .. } = ssd;
        let backend = match ssd.backing {
            Backing::Ram => "{ type = \"ram\" }".to_owned(),
            Backing::Uring => format!("{{ type = \"uring\", path = {:?} }}", ssd.file(folder)),
        };
        let (socket, state) = (folder.join(format!("{name}.sock")), folder.join(format!("{name}.state")));
        let _infallible = write!(
            text,
            "\n[[ssd]]\nname = {name:?}\nsize = \"{mebibytes}MiB\"\nlba = {lba}\nsocket = {socket:?}\n\
             state = {state:?}\nbackend = {backend}\n"
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
