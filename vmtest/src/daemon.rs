//! `godwitd` beside a guest: configured, started, stopped, killed and started again.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Guests take all processors.
const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const LOG_TAIL_LINES: usize = 40;
/// The control socket in the daemon's folder.
const CONTROL: &str = "control.sock";
/// What else its configuration says, if that is there: `[migration]`, for instance.
pub const MORE: &str = "more.toml";
/// The file of its pool there.
pub const POOL: &str = "pool.img";

/// What an ssd keeps its data in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A sparse file by io_uring.
    Uring,
    /// Anonymous memory.
    Ram,
    /// Nothing: writes are dropped and reads are zeros.
    Null,
    /// Extents of the daemon's one pool, given as they are written.
    Thin,
    /// The same, given at the start.
    Full,
    /// It is no ssd, but the controller that manages those with a `controller_id`.
    Management,
}

/// One ssd of the daemon's configuration. Its files lie in the daemon's folder.
#[derive(Debug, Clone)]
pub struct Ssd {
    /// The ssd's name.
    pub name: String,
    /// Its capacity.
    pub size_mib: u64,
    /// Where its data lives.
    pub backend: Backend,
    /// The data file, if it is not `NAME.img` in the daemon's folder. It must exist.
    pub file: Option<PathBuf>,
    /// It is a virtio-blk disk over vhost-user instead of NVMe over vfio-user.
    pub disk: bool,
    /// It is the whole of its file, however long that is.
    pub whole: bool,
    /// I/Os a second that it is held to.
    pub iops: Option<u32>,
    /// It comes from another host.
    pub incoming: bool,
    /// The QMP socket of the QEMU that its guest comes to, in the daemon's folder.
    pub hypervisor: Option<String>,
    /// What the management controller calls it.
    pub controller_id: Option<u16>,
    /// Its device model, if the configuration says one.
    pub profile: Option<String>,
}

impl Ssd {
    /// An ssd on a sparse file.
    pub fn new(name: &str, size_mib: u64) -> Ssd {
        Ssd {
            name: name.to_owned(),
            size_mib,
            backend: Backend::Uring,
            file: None,
            disk: false,
            whole: false,
            iops: None,
            incoming: false,
            hypervisor: None,
            controller_id: None,
            profile: None,
        }
    }

    /// The daemon's management controller.
    pub fn management(name: &str) -> Ssd {
        Ssd::new(name, 1).on(Backend::Management)
    }

    /// The same, managed by this identifier.
    #[must_use]
    pub fn managed_as(mut self, controller_id: u16) -> Ssd {
        self.controller_id = Some(controller_id);
        self
    }

    /// The same, of another device model.
    #[must_use]
    pub fn of_profile(mut self, profile: &str) -> Ssd {
        self.profile = Some(profile.to_owned());
        self
    }

    /// The same on another backend.
    #[must_use]
    pub fn on(mut self, backend: Backend) -> Ssd {
        self.backend = backend;
        self
    }

    /// The same as a virtio-blk disk.
    #[must_use]
    pub fn as_disk(mut self) -> Ssd {
        self.disk = true;
        self
    }

    /// The same, which may move with its guest, whose QEMU here has this QMP socket in the daemon's folder.
    #[must_use]
    pub fn with_guest_at(mut self, socket: &str) -> Ssd {
        self.hypervisor = Some(socket.to_owned());
        self
    }

    /// The same, which is another host's yet.
    #[must_use]
    pub fn incoming(mut self) -> Ssd {
        self.incoming = true;
        self
    }

    /// The same without a size: the whole of its file.
    #[must_use]
    pub fn as_whole_file(mut self) -> Ssd {
        self.whole = true;
        self
    }

    /// The same with another capacity.
    #[must_use]
    pub fn sized(mut self, size_mib: u64) -> Ssd {
        self.size_mib = size_mib;
        self
    }

    /// The same, held to so many I/Os a second.
    #[must_use]
    pub fn limited(mut self, iops: u32) -> Ssd {
        self.iops = Some(iops);
        self
    }

    fn data(&self, folder: &Path) -> PathBuf {
        self.file.clone().unwrap_or_else(|| folder.join(format!("{}.img", self.name)))
    }

    fn to_toml(&self, folder: &Path) -> String {
        let Ssd { name, size_mib, .. } = self;
        let backend = match self.backend {
            Backend::Uring => format!("{{ type = \"uring\", path = \"{}\" }}", self.data(folder).display()),
            Backend::Ram => "{ type = \"ram\" }".to_owned(),
            Backend::Null => "{ type = \"null\" }".to_owned(),
            Backend::Thin => "{ type = \"pool\", pool = \"p\", thin = true }".to_owned(),
            Backend::Full => "{ type = \"pool\", pool = \"p\" }".to_owned(),
            Backend::Management => {
                return format!(
                    "[management]\nname = \"{name}\"\nsocket = \"{}/{name}.sock\"\n",
                    folder.display()
                );
            }
        };
        let limits = self.iops.map_or(String::new(), |iops| format!("[ssd.limits]\niops = {iops}\n"));
        let folder = folder.display();
        let door = if self.disk {
            format!("vhost_socket = \"{folder}/{name}.sock\"")
        } else {
            format!("socket = \"{folder}/{name}.sock\"\nstate = \"{folder}/{name}.state\"")
        };
        let size = if self.whole { String::new() } else { format!("size = \"{size_mib}MiB\"\n") };
        let mut moves = String::new();
        if let Some(hypervisor) = &self.hypervisor {
            moves = format!("hypervisor = \"{folder}/{hypervisor}\"\n");
            if self.disk && matches!(self.backend, Backend::Uring) {
                moves += &format!("journal = \"{folder}/{name}.migration\"\n");
            }
        }
        if self.incoming {
            moves += "incoming = true\n";
        }
        if let Some(id) = self.controller_id {
            moves += &format!("controller_id = {id}\n");
        }
        if let Some(profile) = &self.profile {
            moves += &format!("profile = \"{profile}\"\n");
        }
        format!("[[ssd]]\nname = \"{name}\"\n{size}{door}\nbackend = {backend}\n{moves}{limits}\n")
    }
}

/// A running daemon. Dropping it sends SIGTERM and waits.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    sockets: Vec<PathBuf>,
    binary: PathBuf,
}

impl Daemon {
    /// [`Daemon::start_binary`] with the daemon of `GODWITD`, else with the one Cargo built beside this program.
    pub fn start(folder: &Path, ssds: &[Ssd]) -> Result<Daemon> {
        Daemon::start_binary(&binary()?, folder, ssds)
    }

    /// Writes a configuration into `folder`, creates missing data files and starts the daemon; returns when every socket
    /// is there.
    pub fn start_binary(binary: &Path, folder: &Path, ssds: &[Ssd]) -> Result<Daemon> {
        configure(folder, ssds)?;
        for ssd in ssds.iter().filter(|ssd| ssd.backend == Backend::Uring) {
            let data = ssd.data(folder);
            if !data.exists() {
                let file = File::create(&data).with_context(|| format!("create {}", data.display()))?;
                file.set_len(ssd.size_mib << 20).with_context(|| format!("size {}", data.display()))?;
            }
        }
        let sockets = ssds.iter().map(|ssd| folder.join(format!("{}.sock", ssd.name))).collect();
        let child = spawn(binary, folder)?;
        let mut daemon = Daemon { child, folder: folder.to_owned(), sockets, binary: binary.to_owned() };
        daemon.wait_sockets()?;
        Ok(daemon)
    }

    /// Has the running daemon serve these ssds instead; what `godwit apply` said.
    pub fn apply(&mut self, ssds: &[Ssd]) -> Result<String> {
        configure(&self.folder, ssds)?;
        let said = self.tool(&["apply"])?;
        self.sockets = ssds.iter().map(|ssd| self.socket(&ssd.name)).collect();
        Ok(said)
    }

    /// Runs `godwit` with the daemon's configuration; what it said.
    pub fn tool(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(self.binary.with_file_name("godwit"));
        command.arg("--config").arg(self.folder.join("godwit.toml")).args(words);
        let output = command.output().context("run godwit")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "godwit {words:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The socket of an ssd.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    /// What the daemon logged so far, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Where the daemon's log is.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("godwitd.log")
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the daemon still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the daemon to stop and fails if it does not end soon, or not with status 0.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look after godwitd")? {
            ensure!(status.success(), "godwitd ended with {status}\n{}", self.log_tail());
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("send SIGTERM to godwitd")?;
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("wait for godwitd")? {
                ensure!(status.success(), "after SIGTERM, godwitd ended with {status}\n{}", self.log_tail());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        bail!("godwitd did not stop within {STOP_PATIENCE:?} of SIGTERM\n{}", self.log_tail())
    }

    /// Kills the engine, which the keeper must replace; returns when the next one is there.
    pub fn kill_engine(&mut self) -> Result<()> {
        let old = self.engine(None)?;
        kill_process(Pid::from_raw(old).context("an engine's process id")?, Signal::KILL)
            .context("kill the engine")?;
        self.engine(Some(old)).map(drop)
    }

    /// Hands over to a fresh engine of the same program; returns when it serves. An engine that has just been started is waited for.
    pub fn upgrade(&self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let said = self.ask("{\"command\":\"upgrade\",\"no_wait\":true}\n")?;
            if said.contains("\"done\"") {
                return Ok(());
            }
            let too_early = said.contains("no engine is serving now") && Instant::now() < deadline;
            ensure!(too_early, "the upgrade was refused: {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A request over the control socket, and all that is answered.
    fn ask(&self, request: &str) -> Result<String> {
        let mut socket = UnixStream::connect(self.folder.join(CONTROL)).context("the control socket")?;
        socket.set_read_timeout(Some(START_PATIENCE)).context("set the control socket's timeout")?;
        socket.write_all(request.as_bytes()).context("send a request")?;
        let mut said = String::new();
        socket.read_to_string(&mut said).context("wait for the answer")?;
        Ok(said)
    }

    /// The engine's process: the keeper's child, once there is one other than `old`.
    fn engine(&self, old: Option<i32>) -> Result<i32> {
        let (keeper, deadline) = (self.pid(), Instant::now() + START_PATIENCE);
        loop {
            let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
            let is_engine = |pid: &i32| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split(|byte| *byte == 0).nth(1) == Some(b"engine") && Some(*pid) != old
            };
            let text = children.unwrap_or_default();
            if let Some(pid) = text.split_whitespace().filter_map(|word| word.parse().ok()).find(is_engine) {
                return Ok(pid);
            }
            ensure!(Instant::now() < deadline, "there is no engine\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills the keeper, which nobody starts again: the engine goes with it.
    pub fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts a stopped or killed daemon again with the same configuration and files.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.child = spawn(&self.binary, &self.folder)?;
        self.wait_sockets()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "godwitd's log ends with:\n{}",
            lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
        )
    }

    fn wait_sockets(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while !self.sockets.iter().all(|socket| is_listening(self.pid(), socket)) {
            if let Some(status) = self.child.try_wait().context("look after godwitd")? {
                bail!("godwitd ended at its start with {status}\n{}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "godwitd opens no socket\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop()
            && !std::thread::panicking()
        {
            eprintln!("{error:#}");
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// Writes the configuration. A pool that is there stays.
fn configure(folder: &Path, ssds: &[Ssd]) -> Result<()> {
    let mut text = format!("control = \"{}\"\n\n", folder.join(CONTROL).display());
    let pool = folder.join(POOL);
    let pooled = |ssd: &Ssd| matches!(ssd.backend, Backend::Thin | Backend::Full);
    if pool.exists() || ssds.iter().any(pooled) {
        let pool = pool.display();
        text.push_str(&format!("[[pool]]\nname = \"p\"\npath = \"{pool}\"\nsize = \"256MiB\"\n\n"));
    }
    text.extend(ssds.iter().map(|ssd| ssd.to_toml(folder)));
    text += &fs::read_to_string(folder.join(MORE)).unwrap_or_default();
    fs::write(folder.join("godwit.toml"), text).context("write the daemon's configuration")
}

/// Whether anybody listens at a socket in this process's network namespace. A socket left by a killed daemon is a file too, so the kernel's table is what
/// counts; and what is bound there may not be listened at yet.
pub fn is_listening(process: u32, socket: &Path) -> bool {
    /// `__SO_ACCEPTCON`.
    const LISTENS: u32 = 1 << 16;
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap_or_default();
    let path = socket.to_string_lossy();
    // Number, references, protocol, flags, type, state, inode, path.
    let flags = |line: &str| u32::from_str_radix(line.split_whitespace().nth(3)?, 16).ok();
    table.lines().any(|line| line.ends_with(&*path) && flags(line).is_some_and(|flags| flags & LISTENS != 0))
}

fn spawn(binary: &Path, folder: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("godwitd.log"))
        .context("open godwitd's log")?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(folder.join("godwit.toml"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {}", binary.display()))
}

/// `GODWITD`, else the one Cargo built beside this program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GODWITD") {
        return Ok(PathBuf::from(path));
    }
    let here = std::env::current_exe().context("find this program")?;
    let found =
        here.ancestors().skip(1).take(2).map(|folder| folder.join("godwitd")).find(|path| path.is_file());
    found.context(
        "no godwitd: run `cargo build -p godwitd`, or set GODWITD to its path, or use `cargo xtask test`",
    )
}

/// The command line tool, beside the daemon.
pub fn tool() -> Result<PathBuf> {
    let path = binary()?.with_file_name("godwit");
    ensure!(path.is_file(), "no {}: run `cargo build -p cli`, or use `cargo xtask test`", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::{Backend, Ssd};
    use std::path::Path;

    #[test]
    fn an_ssd_becomes_a_table_of_the_configuration() {
        let toml = Ssd::new("a", 64).on(Backend::Ram).to_toml(Path::new("/t"));
        assert!(toml.contains("socket = \"/t/a.sock\""));
        assert!(toml.contains("size = \"64MiB\""));
        assert!(toml.contains("backend = { type = \"ram\" }"));
    }
}
