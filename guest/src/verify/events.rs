//! What happens to the daemon during a soak.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::daemon::{Process, engines_of, signal};
use crate::load::workload::Random;

/// Which events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing happens; the windows are counted all the same.
    Calm,
    /// The engine is killed at a random moment.
    Kills,
    /// The engine is replaced by another binary and back.
    Upgrades,
    /// The keeper executes itself anew.
    Keeper,
    /// The keeper is killed, and started again by a service manager that kept its descriptors.
    Restarts,
    /// Any of these, and engines killed in the middle of an upgrade or while the keeper is replaced.
    Mixed,
}

impl Kind {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Calm => "calm",
            Kind::Kills => "kills",
            Kind::Upgrades => "upgrades",
            Kind::Keeper => "keeper",
            Kind::Restarts => "restarts",
            Kind::Mixed => "mixed",
        }
    }
}

/// Makes events.
pub struct Events {
    /// Which.
    pub kind: Kind,
    /// The keeper's process.
    pub keeper: Arc<Process>,
    /// Binaries of the daemon to go to, one after the other.
    pub binaries: Vec<PathBuf>,
    /// Where the keeper listens for requests.
    pub control: PathBuf,
    /// Of the moments.
    pub random: Random,
    /// When an engine may be made to crash by itself again, so to speak.
    pub crash_at: Instant,
}

/// How the events and the load tell each other where they are.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events begun: raised the moment before each.
    pub begun: AtomicU64,
    /// Exchanges with devices under way.
    pub talking: AtomicU64,
    /// Events that met one.
    pub met: AtomicU64,
    /// The load ends.
    pub stop: AtomicBool,
}

impl Progress {
    /// The moment before an event.
    fn begin(&self) {
        let met = self.talking.load(Ordering::Relaxed) > 0;
        self.met.fetch_add(met.into(), Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Release);
    }
}

/// An engine must be back by then, a request be answered.
const BACK_BY: Duration = Duration::from_secs(30);
/// How long to wait for somebody to say something.
const MESSAGE_BY: Duration = Duration::from_millis(20);
/// Between two ends that look like the engine's own fault: more of them in a minute and an ssd is quarantined, rightly.
const CRASHES_APART: Duration = Duration::from_secs(15);

impl Events {
    /// Makes `count` events with random pauses between them.
    ///
    /// # Errors
    /// The daemon does not come back, or refuses.
    pub fn run(mut self, count: u64, progress: &Progress) -> Result<()> {
        self.pause(100);
        for number in 0..count {
            if progress.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.await_a_message(progress);
            self.happen(number, progress).with_context(|| format!("event {}", number + 1))?;
            self.pause(60);
        }
        Ok(())
    }

    /// From `least` to 200 ms more.
    fn pause(&mut self, least_ms: u64) {
        std::thread::sleep(Duration::from_micros(least_ms * 1000 + self.random.below(200_000)));
    }

    /// Every other event meets a message on its way: most take less time than there is between them.
    fn await_a_message(&mut self, progress: &Progress) {
        if self.random.below(2) == 0 {
            return;
        }
        let deadline = Instant::now() + MESSAGE_BY;
        while progress.talking.load(Ordering::Relaxed) == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let late = Instant::now() + Duration::from_micros(self.random.below(300));
        while Instant::now() < late {
            std::hint::spin_loop();
        }
    }

    fn happen(&mut self, number: u64, progress: &Progress) -> Result<()> {
        let all = [Kind::Kills, Kind::Upgrades, Kind::Keeper, Kind::Restarts];
        let any = all[usize::try_from(self.random.below(4))?];
        let kind = if self.kind == Kind::Mixed { any } else { self.kind };
        let request = match kind {
            Kind::Calm | Kind::Mixed => {
                progress.begin();
                return Ok(());
            }
            Kind::Kills => return self.kill(progress),
            Kind::Restarts => {
                let engine = self.engine(None)?;
                progress.begin();
                self.keeper.kill_and_restart()?;
                return self.engine(Some(engine)).map(|_| ());
            }
            Kind::Upgrades => {
                let count = self.binaries.len().max(1);
                let binary = self.binaries.get(usize::try_from(number)? % count);
                json!({"command": "upgrade", "binary": binary, "no_wait": true})
            }
            Kind::Keeper => json!({"command": "upgrade", "keeper": true, "no_wait": true}),
        };
        if self.kind == Kind::Mixed {
            return self.disturbed(&request, progress);
        }
        progress.begin();
        match self.ask(&request)? {
            None => Ok(()),
            Some(refusal) => bail!("{request} was refused: {refusal}"),
        }
    }

    /// A request, with an engine that dies in the middle of it. The request may fail, the guests not.
    fn disturbed(&mut self, request: &Value, progress: &Progress) -> Result<()> {
        let victim = self.engine(None)?;
        let delay = Duration::from_micros(self.random.below(40_000));
        progress.begin();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(delay);
                signal(victim, Signal::KILL)
            });
            self.ask(request)
        })?;
        self.engine(Some(victim)).map(|_| ())
    }

    fn kill(&mut self, progress: &Progress) -> Result<()> {
        let engine = self.engine(None)?;
        let how = if Instant::now() < self.crash_at {
            Signal::KILL
        } else {
            self.crash_at = Instant::now() + CRASHES_APART;
            // Not SIGSEGV: Rust's own handler takes one that is sent for the end of a stack, and goes on.
            if self.random.below(2) == 0 { Signal::ABORT } else { Signal::ILL }
        };
        progress.begin();
        ensure!(signal(engine, how), "engine {engine} is gone already");
        let mut next = self.engine(Some(engine))?;
        while self.random.below(8) == 0 {
            // Another one while the new engine still finds its feet: part of the same event.
            std::thread::sleep(Duration::from_micros(self.random.below(15_000)));
            signal(next, Signal::KILL);
            next = self.engine(Some(next))?;
        }
        Ok(())
    }

    /// The engine, once there is one other than `old`.
    fn engine(&self, old: Option<u32>) -> Result<u32> {
        let deadline = Instant::now() + BACK_BY;
        loop {
            let keeper = self.keeper.pid();
            if let Some(pid) = engines_of(keeper).into_iter().find(|pid| Some(*pid) != old) {
                return Ok(pid);
            }
            if Instant::now() > deadline {
                bail!("process {keeper} has no engine for {BACK_BY:?}");
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// A request on the control socket (`crates/api/src/control.rs`: a line of JSON, answered by lines). What it says if it fails.
    fn ask(&self, request: &Value) -> Result<Option<Value>> {
        let mut socket =
            UnixStream::connect(&self.control).with_context(|| self.control.display().to_string())?;
        socket.set_read_timeout(Some(BACK_BY))?;
        socket.write_all(format!("{request}\n").as_bytes())?;
        for line in BufReader::new(socket).lines() {
            let answer: Value = serde_json::from_str(&line?)?;
            if let Some(error) = answer.get("error") {
                return Ok(Some(error.clone()));
            }
            if answer.get("done").is_some() {
                return Ok(None);
            }
        }
        bail!("{request} had no answer")
    }
}
