//! The source of a guest: has its QEMU copy its memory when little is left of its ssds' blocks, and holds it where they pass.

use super::memory::Tunnel;
use super::{QMP_PATIENCE, call_back, vectors_of};
use crate::migration::case::Case;
use crate::migration::means::Means;
use crate::migration::sending::Event;
use crate::migration::word::Guest;
use crate::passenger::Passenger;
use crate::run::House;
use anyhow::{Context, anyhow, bail, ensure};
use api::control::MigrationTerms;
use hypervisor::{Device, Source, SourceWord, Terms};
use state::controller::VectorV1;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};
use transfer::commit::VmWord;

/// How often the hypervisor is listened to, and the ssds' migrations.
const LOOK: Duration = Duration::from_millis(20);
/// How often the hypervisor is asked how far its copy is.
const ASK: Duration = Duration::from_secs(1);
/// While the guest stands still.
const LOOK_CLOSELY: Duration = Duration::from_micros(500);
/// How long the guest may stand still for its ssds.
const STUN_MAX: Duration = Duration::from_secs(6);

/// How an ssd's migration speaks with its guest's.
pub(in crate::migration) struct Line {
    /// The hypervisor's socket.
    pub(in crate::migration) path: PathBuf,
    pub(in crate::migration) part: usize,
    pub(in crate::migration) words: Sender<(usize, PartWord)>,
    /// Its MSI-X table, said once while the guest stands still. `None`: it was taken.
    pub(in crate::migration) table: Option<Receiver<Vec<VectorV1>>>,
    /// The ssd is the other host's; said when this is dropped.
    pub(in crate::migration) moved: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.say(PartWord::Over { moved: self.moved });
    }
}

impl Line {
    pub(in crate::migration) fn say(&self, word: PartWord) {
        // A guest's thread that has ended has told all its parts.
        let _ = self.words.send((self.part, word));
    }
}

/// What an ssd's migration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::migration) enum PartWord {
    /// Little is left to copy.
    Near,
    /// The destination has all of it, durably.
    Ready,
    /// An operator ends it.
    Cancel,
    /// It is over.
    Over { moved: bool },
}

/// An ssd of the guest's.
pub(in crate::migration) struct Part {
    pub(in crate::migration) case: Arc<Case>,
    pub(in crate::migration) events: Sender<Event>,
    /// As its hypervisor has it.
    pub(in crate::migration) device: Device,
    pub(in crate::migration) number: usize,
    pub(in crate::migration) table: Sender<Vec<VectorV1>>,
}

/// See the module.
pub(in crate::migration) struct Leaving {
    pub(in crate::migration) house: Arc<House>,
    pub(in crate::migration) means: Arc<Means>,
    pub(in crate::migration) to: String,
    pub(in crate::migration) guest: Guest,
    pub(in crate::migration) qemu: Source,
    /// Its socket.
    pub(in crate::migration) path: PathBuf,
    pub(in crate::migration) terms: MigrationTerms,
    pub(in crate::migration) parts: Vec<Part>,
    pub(in crate::migration) words: Receiver<(usize, PartWord)>,
}

/// How far its ssds are.
struct Course {
    near: Vec<bool>,
    ready: Vec<bool>,
    over: Vec<Option<bool>>,
    /// An operator has ended it.
    cancelled: bool,
}

impl Course {
    fn hear(&mut self, (part, word): (usize, PartWord)) {
        match word {
            PartWord::Near => self.near[part] = true,
            PartWord::Ready => self.ready[part] = true,
            PartWord::Cancel => self.cancelled = true,
            PartWord::Over { moved } => self.over[part] = Some(moved),
        }
    }

    /// # Errors
    /// It will not come to its end.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.cancelled, "it was cancelled");
        ensure!(self.over.iter().all(Option::is_none), "one of its ssds does not move");
        Ok(())
    }
}

fn all(of: &[bool]) -> bool {
    of.iter().all(|one| *one)
}

impl Leaving {
    /// Drives it to its end.
    pub(in crate::migration) fn run(mut self) {
        let parts = self.parts.len();
        let (near, ready, over) = (vec![false; parts], vec![false; parts], vec![None; parts]);
        let mut course = Course { near, ready, over, cancelled: false };
        let left = self.leave(&mut course);
        let Self { house, qemu, path, parts, words, guest, .. } = self;
        // Nothing is granted yet: where the guest goes on does not depend on what the other host says to that.
        let mut back = None;
        if let Err(error) = &left {
            let why = format!("{error:#}");
            tracing::warn!(ssds = ?guest.ssds, why, "a guest does not move");
            for part in &parts {
                part.case.control.resume();
                let _ = part.events.send(Event::Failed(why.clone()));
                if let Some(passenger) = house.passenger(part.number) {
                    // A byte that the hypervisor stores late, of pages it was told of, is an old one.
                    let _ = passenger.barrier();
                }
            }
            drop(qemu);
            back = Some(call_back(&house, &path));
        } else {
            drop(qemu);
        }
        while course.over.iter().any(Option::is_none) {
            let Ok(word) = words.recv() else { break };
            course.hear(word);
        }
        for passenger in parts.iter().filter_map(|part| house.passenger(part.number)) {
            let _ = passenger.end_log();
        }
        let moved = course.over.iter().filter(|over| **over == Some(true)).count();
        let ended = match back {
            Some(back) => back,
            // It runs at the destination; here it could only be run by mistake.
            None if moved == parts.len() => {
                Source::connect(&path, QMP_PATIENCE).and_then(|mut qemu| qemu.quit()).map_err(Into::into)
            }
            None if moved == 0 => call_back(&house, &path),
            None => Err(anyhow!(
                "some of its guest's ssds have moved, and others have not: the guest runs nowhere. See `godwit migration list` on both hosts; where they are \"ready\", `godwit migration force` takes them"
            )),
        };
        if let Err(error) = ended {
            let text = format!("{error:#}");
            for part in &parts {
                part.case.remark(text.clone());
                if moved < parts.len() {
                    house.keeper.fault(Some(part.number), text.clone());
                }
            }
        }
    }

    fn tell(&self, event: impl Fn() -> Event) {
        // One that has ended has said so.
        self.parts.iter().for_each(|part| _ = part.events.send(event()));
    }

    fn show(&self, state: &'static str) {
        self.parts.iter().for_each(|part| part.case.show(state));
    }

    fn leave(&mut self, course: &mut Course) -> anyhow::Result<()> {
        while !all(&course.near) {
            self.listen(course, LOOK)?;
        }
        let (tunnel, theirs) = Tunnel::open(&self.means, &self.to, &self.guest)?;
        let terms = Terms {
            bandwidth_bytes_s: self.terms.bandwidth,
            downtime_limit_ms: (self.terms.max_stun_us / 1000).max(1),
        };
        for passenger in self.passengers() {
            // One that a killed engine left armed has no end that is known.
            let _ = passenger.end_log();
            passenger.log_written().context("what its controller writes cannot be logged")?;
        }
        self.qemu.begin(theirs, &terms)?;
        self.show("copying memory");
        self.wait_for_qemu(course, &tunnel, &SourceWord::PreSwitchover, None)?;
        // The guest stands still: what is said now is waited for in its time.
        let since = Instant::now();
        let deadline = since + STUN_MAX;
        self.hold()?;
        let read_us = since.elapsed().as_micros();
        while !all(&course.ready) {
            self.listen(course, LOOK_CLOSELY)?;
            if Instant::now() > deadline {
                bail!("its ssds were not ready while it stood still: it goes on here");
            }
        }
        let ready_us = since.elapsed().as_micros();
        // All of its devices stand still: what they wrote is the hypervisor's to copy now.
        let mut pages = 0;
        for passenger in self.passengers() {
            pages +=
                passenger.touch_written().context("its hypervisor is not told what its controller wrote")?;
        }
        let told_us = since.elapsed().as_micros();
        self.qemu.go_on()?;
        self.wait_for_qemu(course, &tunnel, &SourceWord::Completed, Some(deadline))?;
        let left_us = since.elapsed().as_micros();
        tracing::info!(
            ssds = ?self.guest.ssds, read_us, ready_us, pages, told_us, left_us,
            "a guest that stands still has left: its interrupts were read, its ssds ready, its hypervisor told of pages"
        );
        drop(tunnel);
        self.tell(|| Event::Vm(VmWord::Completed));
        Ok(())
    }

    /// Its controllers, of which the hypervisor carries nothing. Not kept: one that has moved closes its drive.
    fn passengers(&self) -> Vec<Passenger> {
        self.parts.iter().filter_map(|part| self.house.passenger(part.number)).collect()
    }

    /// The guest stands still: so may its ssds. Their last blocks go while their hypervisor is asked.
    fn hold(&mut self) -> anyhow::Result<()> {
        for part in &self.parts {
            // A copy that an operator paused would not end.
            part.case.control.resume();
            let _ = part.events.send(Event::Held);
        }
        for part in &self.parts {
            if let Some(passenger) = self.house.passenger(part.number) {
                let vectors = self.qemu.vectors(&part.device, &*passenger.config()?)?;
                let _ = part.table.send(vectors_of(&vectors));
            }
        }
        Ok(())
    }

    /// Takes what its ssds' migrations say.
    fn listen(&mut self, course: &mut Course, patience: Duration) -> anyhow::Result<()> {
        match self.words.recv_timeout(patience) {
            Ok(word) => course.hear(word),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("its ssds' migrations have ended"),
        }
        course.check()
    }

    /// That its hypervisor holds the guest back, if it does: whoever looks must know why it is slow.
    fn tell_of_holding_back(&mut self) {
        // A hypervisor that cannot be asked is heard of soon enough.
        let Ok(progress) = self.qemu.progress() else { return };
        let percent = progress.held_back_percent;
        if percent > 0 {
            let text = format!(
                "its guest writes memory faster than it is copied: until it moves its processors are held back by {percent} %"
            );
            self.parts.iter().for_each(|part| _ = part.case.remark(text.clone()));
        }
    }

    /// Until QEMU says this word.
    fn wait_for_qemu(
        &mut self,
        course: &mut Course,
        tunnel: &Tunnel,
        wanted: &SourceWord,
        deadline: Option<Instant>,
    ) -> anyhow::Result<()> {
        let patience = if deadline.is_some() { LOOK_CLOSELY } else { LOOK };
        let mut asked = Instant::now();
        loop {
            for part in &self.parts {
                part.case.memory_bytes.store(tunnel.carried.load(Relaxed), Relaxed);
            }
            match self.qemu.next(patience)? {
                Some(word) if word == *wanted => return Ok(()),
                Some(SourceWord::Failed { why }) => bail!("its hypervisor's migration failed: {why}"),
                Some(SourceWord::Cancelled) => bail!("its hypervisor's migration was cancelled"),
                Some(SourceWord::Ended) => bail!("the guest has ended"),
                Some(SourceWord::Completed) => bail!("its hypervisor did not wait for its ssds"),
                // Never while the guest stands still, or has just said that it will.
                None if deadline.is_none() && asked.elapsed() >= ASK => {
                    self.tell_of_holding_back();
                    asked = Instant::now();
                }
                Some(_) | None => {}
            }
            loop {
                match self.words.try_recv() {
                    Ok(word) => course.hear(word),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => bail!("its ssds' migrations have ended"),
                }
            }
            course.check()?;
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                bail!("its hypervisor takes too long while the guest stands still");
            }
        }
    }
}
