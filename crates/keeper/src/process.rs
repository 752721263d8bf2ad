//! An engine process: started, watched, spoken to.

use anyhow::Context;
use link::LinkError;
use link::blame;
use link::control::{Hello, Link, Packet, Received, ToKeeper};
use link::frame::Wait;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// A program, held open: it can be started again when its file was replaced or removed.
#[derive(Debug)]
pub struct Binary {
    pub(crate) file: Arc<OwnedFd>,
    /// Where it was found, for people and for `godwit upgrade` without `--binary`.
    pub path: PathBuf,
}

impl Binary {
    /// Opens a program.
    ///
    /// # Errors
    /// It is not there, or is no file that can be executed.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open the program {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        let executable = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o111 != 0;
        anyhow::ensure!(metadata.is_file() && executable, "{} is no program that can be run", path.display());
        Ok(Self { file: Arc::new(file.into()), path: path.to_owned() })
    }
}

/// How an engine is started.
#[derive(Clone, Debug)]
pub struct EngineCommand {
    /// The program of the first engine, and of each until an upgrade.
    pub binary: Arc<Binary>,
    /// Its arguments. Its standard input is the control link.
    pub arguments: Vec<String>,
    /// Variables added to its environment.
    pub environment: Vec<(String, String)>,
}

/// Where an engine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Looks at copies of what is saved, while another one serves.
    Checking,
    /// Can read all of it, and waits to begin.
    Checked,
    /// Takes everything up.
    Starting,
    Serving,
    /// Lets its I/O end, for the next one to go on.
    Pausing,
    /// Makes all durable and ends for good.
    Stopping,
}

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) generation: u32,
    pub(crate) pid: i32,
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) link: Link,
    pub(crate) outbox: VecDeque<Packet>,
    /// Its io_urings by its own descriptor numbers.
    pub(crate) rings: BTreeMap<u32, Arc<OwnedFd>>,
    pub(crate) blame: Arc<OwnedFd>,
    pub(crate) binary: Arc<Binary>,
    pub(crate) hello: Option<Hello>,
    pub(crate) stage: Stage,
    /// By when the stage must be over.
    pub(crate) deadline: Option<Instant>,
    pub(crate) ready_at: Option<Instant>,
    /// Why we killed it, if we did.
    pub(crate) expelled: Option<String>,
    /// Why it refuses to serve, and the ssd it is about.
    pub(crate) refused: Option<(String, Option<u32>)>,
    /// It said that nothing is in flight any more.
    pub(crate) paused: bool,
    /// It closed the link of this ssd's client; by when it must have said why.
    pub(crate) lost_session: Option<(u32, Instant)>,
}

impl Engine {
    pub(crate) fn spawn(
        command: &EngineCommand,
        binary: &Arc<Binary>,
        generation: u32,
        stage: Stage,
    ) -> anyhow::Result<Self> {
        let (ours, theirs) = Link::pair().context("cannot make a link for the engine")?;
        let mut process = Command::new(format!("/proc/self/fd/{}", binary.file.as_raw_fd()));
        process.arg0(&binary.path).args(&command.arguments).stdin(Stdio::from(theirs.into_fd()));
        process.envs(command.environment.iter().map(|(name, value)| (name, value)));
        // A group of its own: Ctrl-C is for the keeper, which stops the engine in good order.
        process.process_group(0);
        let child = process.spawn();
        // It holds the engine's end of the link: the link must end when the engine does.
        drop(process);
        let child = child.with_context(|| format!("cannot start the engine {}", binary.path.display()))?;
        let pid = Pid::from_child(&child);
        let pidfd =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the engine")?;
        let blame = Arc::new(blame_page()?);
        let pid = pid.as_raw_nonzero().get();
        Ok(Self::with(generation, stage, (pid, Arc::new(pidfd)), ours, blame, Arc::clone(binary)))
    }

    /// One that has said nothing, and was told nothing.
    pub(crate) fn with(
        generation: u32,
        stage: Stage,
        (pid, pidfd): (i32, Arc<OwnedFd>),
        link: Link,
        blame: Arc<OwnedFd>,
        binary: Arc<Binary>,
    ) -> Self {
        Self {
            generation,
            pid,
            pidfd,
            link,
            outbox: VecDeque::new(),
            rings: BTreeMap::new(),
            blame,
            binary,
            hello: None,
            stage,
            deadline: None,
            ready_at: None,
            expelled: None,
            refused: None,
            paused: false,
            lost_session: None,
        }
    }

    /// Queues a message.
    pub(crate) fn say(&mut self, packet: Result<Packet, LinkError>) {
        match packet {
            Ok(packet) => self.outbox.push_back(packet),
            Err(error) => self.expel(format!("a message for it cannot be made: {error}")),
        }
    }

    /// Sends what waits, as far as there is room. That the engine is gone shows elsewhere.
    pub(crate) fn flush(&mut self) {
        while let Some(packet) = self.outbox.front() {
            match self.link.send_packet(packet, Wait::Never) {
                Ok(true) => _ = self.outbox.pop_front(),
                Ok(false) => return,
                Err(LinkError::Gone) => return self.outbox.clear(),
                Err(error) => return self.expel(format!("the link to it failed: {error}")),
            }
        }
    }

    /// The next message, if there is one now.
    pub(crate) fn hear(&mut self) -> Option<(ToKeeper, Vec<OwnedFd>)> {
        match self.link.receive(Wait::Never) {
            Ok(Received::Message(message, fds)) => Some((message, fds)),
            Ok(Received::Later | Received::Closed) => None,
            Err(error) => {
                self.expel(format!("it sent what no engine sends: {error}"));
                None
            }
        }
    }

    /// Its end of the link is closed, or its process is gone.
    pub(crate) fn link_is_closed(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.link, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Kills it: it is broken, or too late. One that is ending already needs no killing: what it left undone since then is no
    /// fault of its own. Where processors are scarce, a dying thread may wait seconds for the kernel's work on its rings.
    pub(crate) fn expel(&mut self, why: String) {
        if self.expelled.is_none() && is_ending(self.pid) {
            tracing::warn!(generation = self.generation, pid = self.pid, why, "the engine is ending");
            return;
        }
        if self.expelled.is_none() {
            tracing::error!(generation = self.generation, pid = self.pid, why, "killing the engine");
            self.expelled = Some(why);
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// How it ended; `None`: it lives.
    pub(crate) fn reap(&self) -> Option<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => None,
            Ok(Some(status)) => {
                Some(Exit { status: status.exit_status(), signal: status.terminating_signal() })
            }
            // Not our child (any more): it is gone all the same.
            Err(_) => Some(Exit { status: None, signal: None }),
        }
    }

    /// Keeps a duplicate of one of its io_urings.
    pub(crate) fn keep_ring(&mut self, number: u32) -> io::Result<()> {
        let raw = i32::try_from(number).map_err(io::Error::other)?;
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let ring = rustix::process::pidfd_getfd(&self.pidfd, raw, flags)?;
        self.rings.insert(number, Arc::new(ring));
        Ok(())
    }

    /// Whom its threads had in hand.
    pub(crate) fn verdict(&self, is_known: impl Fn(u32) -> bool) -> blame::Verdict {
        let mut page = vec![0; blame::PAGE_BYTES];
        match rustix::io::pread(&self.blame, &mut page, 0) {
            Ok(_) => blame::verdict(&page, is_known),
            Err(_) => blame::Verdict::default(),
        }
    }
}

/// proc_pid_stat(5): the state of the first thread, and its flags, of which PF_EXITING is 4. One that nobody reaped stays there.
fn is_ending(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before may have any character.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & 4 != 0) || matches!(fields.first(), Some(&("Z" | "X")))
}

fn blame_page() -> io::Result<OwnedFd> {
    let page = rustix::fs::memfd_create("godwit-blame", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&page, blame::PAGE_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&page, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(page)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl Exit {
    /// In good order.
    pub(crate) fn is_clean(self) -> bool {
        self.status == Some(0)
    }

    /// Somebody outside killed it: nothing it had in hand is to blame.
    pub(crate) fn is_from_outside(self) -> bool {
        let outside = [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
        self.signal.is_some_and(|signal| outside.iter().any(|other| other.as_raw() == signal))
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.signal, self.status) {
            (Some(signal), _) => match signal_name(signal) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
            (None, Some(status)) => write!(f, "exited with status {status}"),
            (None, None) => f.write_str("gone"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (Signal::KILL, "SIGKILL"),
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::BUS, "SIGBUS"),
        (Signal::ILL, "SIGILL"),
        (Signal::FPE, "SIGFPE"),
    ];
    names.iter().find(|(number, _)| number.as_raw() == signal).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_killed_is_ending_and_one_that_runs_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let pid = i32::try_from(child.id()).expect("a process id");
        assert!(!is_ending(pid));
        child.kill().expect("killed");
        let begun = Instant::now();
        while !is_ending(pid) {
            assert!(begun.elapsed().as_secs() < 30, "it is not seen to end");
            std::thread::yield_now();
        }
        child.wait().expect("ended");
    }
}
