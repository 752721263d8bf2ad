//! What is said to engines, and what they say.

use crate::keeper::Keeper;
use crate::process::{Engine, Stage};
use link::LinkError;
use link::control::{
    Deposit, Packet, PowerOn, Predecessor, Ready, Role, Standing, ToEngine, ToKeeper, Welcome,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Messages of one engine before others have their turn.
const MESSAGES_A_TURN: usize = 64;
/// io_urings an engine may have.
const RINGS_MAX: usize = 1024;

impl Keeper {
    /// The first message to an engine.
    pub(crate) fn welcome(&self, engine: &Engine) -> Result<Packet, LinkError> {
        let predecessor = self.last_end.as_ref().map(|(reason, at, paused)| Predecessor {
            reason: reason.clone(),
            ended_ns: monotonic_ns(*at),
            paused: *paused,
        });
        let welcome = Welcome {
            version: link::VERSION,
            generation: u64::from(engine.generation),
            config_path: self.config_path().display().to_string(),
            config: self.options.config_text.clone(),
            ssds: self.in_order().into_iter().map(|(number, ssd)| ssd.slot(number)).collect(),
            has_served: self.has_served,
            stats: self.options.stats.as_ref().map(|path| path.display().to_string()),
            predecessor,
        };
        Packet::new(&ToEngine::Welcome(welcome), vec![Arc::clone(&engine.blame)])
    }

    /// What is kept of the ssds.
    pub(crate) fn saved(&self) -> Vec<Result<Packet, LinkError>> {
        let given = self.ssds.iter().filter(|(_, ssd)| ssd.is_powered() && ssd.is_given());
        given.map(|(number, ssd)| ssd.saved(*number, self.blame.count(*number))).collect()
    }

    /// What was deposited for clients, for a check.
    pub(crate) fn deposits(&self) -> Vec<Result<Packet, LinkError>> {
        let deposit = |(number, ssd): (&u32, &crate::ssd::Ssd)| {
            let bytes = ssd.session.as_ref()?.deposit.as_ref()?.to_vec();
            let deposit = Deposit { ssd: *number, door: ssd.protocol.door, bytes };
            ssd.is_given().then(|| Packet::new(&ToEngine::Deposit(deposit), Vec::new()))
        };
        self.ssds.iter().filter_map(deposit).collect()
    }

    /// The dead engines' io_urings.
    pub(crate) fn rings(&self) -> Vec<Result<Packet, LinkError>> {
        if self.old_rings.is_empty() {
            return Vec::new();
        }
        let numbers = self.old_rings.iter().filter_map(|ring| u32::try_from(ring.as_raw_fd()).ok()).collect();
        vec![Packet::new(&ToEngine::Rings { numbers }, Vec::new())]
    }

    /// An engine's control link has something.
    pub(crate) fn engine_speaks(&mut self, generation: u32, now: Instant) {
        self.hear(generation, now, MESSAGES_A_TURN);
        if let Some(engine) = self.engines.get_mut(&generation) {
            engine.flush();
            // Its process ends soon, or it is out of its mind: either way it cannot go on without us.
            if engine.link_is_closed() && engine.deadline.is_none() {
                engine.deadline = Some(now + CLOSED_GRACE);
            }
        }
        self.sync_engine();
    }

    /// Takes what an engine said, at most so many messages.
    pub(crate) fn hear(&mut self, generation: u32, now: Instant, most: usize) {
        for _ in 0..most {
            let Some(engine) = self.engines.get_mut(&generation) else { return };
            let Some((message, fds)) = engine.hear() else { return };
            self.heard(generation, message, fds, now);
        }
    }

    fn heard(&mut self, generation: u32, message: ToKeeper, fds: Vec<OwnedFd>, now: Instant) {
        match message {
            ToKeeper::Ready(ready) => self.engine_ready(generation, &ready, now),
            ToKeeper::PowerOn(power) if self.active == Some(generation) => self.power_on(power, fds),
            ToKeeper::Record { ssd, record } if self.active == Some(generation) => {
                if let Some(ssd) = self.ssd_mut(ssd) {
                    ssd.record = Some(record);
                }
            }
            ToKeeper::Hello(hello) => {
                let placed = (0_u32..).zip(self.in_order()).all(|(place, (number, _))| place == number);
                let moved = self.ssds.values().find(|ssd| ssd.standing.is_some());
                let moved = moved.filter(|_| hello.version < 3).map(|ssd| ssd.name.clone());
                if let Some(engine) = self.engines.get_mut(&generation) {
                    if let Some(name) = moved {
                        engine.expel(format!(
                            "its release would serve ssd \"{name}\", whose owner is not here; use a newer one"
                        ));
                    }
                    // Engines of version 1 take ssds' numbers for their places.
                    if hello.version < 2 && !placed {
                        engine.expel(
                            "its release cannot serve what was changed while the daemon ran; use a newer one"
                                .to_owned(),
                        );
                    }
                    engine.hello = Some(hello);
                }
            }
            ToKeeper::Fault { ssd, why } => {
                let name = ssd.and_then(|ssd| self.ssd(ssd)).map(|ssd| ssd.name.clone());
                tracing::error!(generation, ssd = name, why, "the engine reports a fault");
                if let Some(number) = ssd {
                    self.change_faulty(number, &why);
                }
                if let Some(ssd) = ssd.and_then(|ssd| self.ssd_mut(ssd)) {
                    ssd.fault = Some(why);
                }
            }
            ToKeeper::Standing { ssd, standing } if self.active == Some(generation) => {
                self.stands(ssd, standing);
            }
            // They hold the drives' locks, which the engine wants now.
            ToKeeper::Fenced if self.active == Some(generation) => self.old_rings.clear(),
            ToKeeper::PoolAnswered { id, response } => self.pool_answered(id, &response),
            ToKeeper::PowerOn(_) | ToKeeper::Record { .. } | ToKeeper::Standing { .. } => {
                if let Some(engine) = self.engines.get_mut(&generation) {
                    engine.expel("it changes ssds that it does not serve".to_owned());
                }
            }
            ToKeeper::Prepared(prepared) if self.active == Some(generation) => self.prepared(&prepared),
            ToKeeper::Changed { change } if self.active == Some(generation) => self.changed(change),
            message => {
                if let Some(engine) = self.engines.get_mut(&generation) {
                    hear_of_itself(engine, message);
                }
            }
        }
    }

    /// Whether an ssd is served here at all.
    fn stands(&mut self, number: u32, standing: Option<Standing>) {
        let Some(ssd) = self.ssd_mut(number).filter(|ssd| ssd.standing != standing) else { return };
        let said =
            |of: &Option<Standing>| of.as_ref().map(|Standing { word, why, .. }| (word.clone(), why.clone()));
        // Not again when only its clients are let in now, or not any more.
        if said(&ssd.standing) != said(&standing) {
            match &standing {
                Some(Standing { word, why, .. }) => {
                    tracing::warn!(ssd = ssd.name, word, why, "not served here");
                }
                None => tracing::info!(ssd = ssd.name, "its owner is here"),
            }
        }
        let is_over = standing.as_ref().is_some_and(|standing| !standing.holds);
        if is_over {
            // The life it had here is over; its drive is whoever's comes next.
            ssd.memory.clear();
            ssd.record = None;
        }
        ssd.standing = standing;
        if is_over {
            // With what its client left undone, which the next life's engine would do otherwise.
            self.explained(number);
            self.end_session(number);
        }
        self.sync(number);
    }

    /// Why an engine closed a client's link is known.
    fn explained(&mut self, number: u32) {
        if let Some(engine) = self.active_mut()
            && engine.lost_session.is_some_and(|(lost, _)| lost == number)
        {
            engine.lost_session = None;
        }
    }

    /// The one atomic step of a power cycle.
    fn power_on(&mut self, power: PowerOn, fds: Vec<OwnedFd>) {
        let PowerOn { ssd: number, ended, roles, record } = power;
        if self.is_former(number) {
            // An engine takes leave of an ssd that is served no more.
            return;
        }
        let broken = roles.len() != fds.len() || !self.ssd(number).is_some_and(crate::ssd::Ssd::is_given);
        if broken {
            if let Some(engine) = self.active_mut() {
                engine
                    .expel(format!("it powers on ssd {number} without its memory, or one it does not have"));
            }
            return;
        }
        let Some(ssd) = self.ssd_mut(number) else { return };
        let memory: BTreeMap<Role, Arc<OwnedFd>> =
            roles.into_iter().zip(fds.into_iter().map(Arc::new)).collect();
        ssd.memory.extend(memory);
        if record.is_some() {
            ssd.record = record;
        }
        let over = ended.is_some() && ssd.session.as_ref().map(|session| session.id) == ended;
        self.explained(number);
        if over {
            self.end_session(number);
        }
        self.sync(number);
    }

    fn engine_ready(&mut self, generation: u32, ready: &Ready, now: Instant) {
        let Some(engine) = self.engines.get_mut(&generation) else { return };
        match engine.stage {
            Stage::Starting => {
                engine.stage = Stage::Serving;
                engine.deadline = None;
                engine.ready_at = Some(now);
                self.serving(ready, now);
            }
            Stage::Checking => {
                engine.stage = Stage::Checked;
                engine.deadline = None;
                self.checked(now);
            }
            // It was asked to end while it began: the two crossed.
            Stage::Pausing | Stage::Stopping => {}
            Stage::Checked | Stage::Serving => engine.expel("it is ready, but was not asked".to_owned()),
        }
    }
}

/// What concerns nobody else.
fn hear_of_itself(engine: &mut Engine, message: ToKeeper) {
    match message {
        ToKeeper::Refused(refused) => {
            tracing::error!(
                generation = engine.generation,
                reason = refused.reason,
                "the engine refuses to serve"
            );
            engine.refused = Some((refused.reason, refused.ssd));
            engine.deadline = engine.deadline.map(|deadline| deadline.min(Instant::now() + CLOSED_GRACE));
        }
        ToKeeper::Ring { number } => {
            let result = match engine.rings.len() {
                RINGS_MAX.. => Err(std::io::Error::other("too many io_urings")),
                _ => engine.keep_ring(number),
            };
            if let Err(error) = &result {
                tracing::error!(%error, "an io_uring of the engine cannot be held: a crash of it will not be fenced");
            }
            engine.say(Packet::new(&ToEngine::RingKept { number, kept: result.is_ok() }, Vec::new()));
        }
        ToKeeper::RingGone { number } => _ = engine.rings.remove(&number),
        ToKeeper::Paused => engine.paused = true,
        _ => {}
    }
}

/// How long an engine without a link may live.
const CLOSED_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// A moment on CLOCK_MONOTONIC, which all processes share.
pub(crate) fn monotonic_ns(at: Instant) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now_ns =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    now_ns.saturating_sub(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
