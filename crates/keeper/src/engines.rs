//! Engines: started, replaced when they die, stopped.

use crate::keeper::Keeper;
use crate::poller::Token;
use crate::process::{Engine, Exit, Stage};
use anyhow::anyhow;
use link::control::{Packet, Ready, ToEngine};
use std::sync::Arc;
use std::time::Instant;

impl Keeper {
    /// Starts an engine and tells it what there is; in [`Stage::Starting`] it takes everything up.
    pub(crate) fn spawn(
        &mut self,
        binary: &Arc<crate::process::Binary>,
        stage: Stage,
        now: Instant,
    ) -> anyhow::Result<u32> {
        let generation = self.last_generation.wrapping_add(1);
        let mut engine = Engine::spawn(&self.options.engine, binary, generation, stage)?;
        self.last_generation = generation;
        engine.deadline = Some(now + self.options.limits.start_time);
        tracing::info!(generation, pid = engine.pid, binary = %binary.path.display(), "engine started");
        engine.say(self.welcome(&engine));
        self.poller.set(Token::Process(generation), &engine.pidfd, (true, false));
        self.engines.insert(generation, engine);
        Ok(generation)
    }

    /// Starts the next engine, to serve.
    pub(crate) fn start_next(&mut self, now: Instant) {
        if self.stopping || self.active.is_some() {
            return;
        }
        let binary = Arc::clone(&self.binary);
        match self.spawn(&binary, Stage::Starting, now) {
            Ok(generation) => {
                self.active = Some(generation);
                self.hand_over();
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "no engine can be started");
                if !self.has_served && self.backoff.failures() == 0 {
                    self.outcome = Some(Err(error));
                }
                self.start_at = Some(now + self.backoff.pause(None, &self.options.limits));
            }
        }
    }

    /// Gives the active engine everything, and lets it begin.
    pub(crate) fn hand_over(&mut self) {
        // A keeper after this one must know whom to wait for.
        self.save();
        let packets: Vec<_> = self.saved().into_iter().chain(self.rings()).collect();
        let Some(engine) = self.active_mut() else { return };
        packets.into_iter().for_each(|packet| engine.say(packet));
        let with_session: Vec<u32> =
            self.numbers().into_iter().filter(|ssd| self.session(*ssd).is_some()).collect();
        with_session.iter().for_each(|ssd| self.attach(*ssd));
        let deadline = Instant::now() + self.options.limits.start_time;
        if let Some(engine) = self.active_mut() {
            engine.stage = Stage::Starting;
            engine.deadline = Some(deadline);
            engine.say(Packet::new(&ToEngine::Start, Vec::new()));
            engine.flush();
        }
        with_session.iter().for_each(|ssd| self.pump(*ssd, Instant::now()));
        self.sync_engine();
    }

    /// Tells the poller what engines' links are worth looking at for.
    pub(crate) fn sync_engine(&mut self) {
        for engine in self.engines.values() {
            // A closed link would wake us without end; the process's end is what counts then.
            let input = !engine.link_is_closed();
            let interest = (input, input && !engine.outbox.is_empty());
            self.poller.set(Token::Control(engine.generation), &engine.link, interest);
        }
    }

    /// The active engine serves all.
    pub(crate) fn serving(&mut self, ready: &Ready, now: Instant) {
        self.options.notify.say("READY=1");
        self.has_served = true;
        self.old_rings.clear();
        let blackout = self.history.serving(now, ready);
        let generation = self.active;
        let blackout_us = blackout.map(|blackout| u64::try_from(blackout.as_micros()).unwrap_or(u64::MAX));
        tracing::info!(generation, blackout_us, replayed = ready.replayed, fenced = ready.fenced, "serving");
        // Clients that came while it started.
        for number in self.numbers() {
            if self.session(number).is_some_and(|session| session.link.is_none()) {
                self.attach(number);
                self.pump(number, now);
            }
        }
        self.upgraded(blackout, now);
        self.sync_all();
        self.change_goes_on(now);
    }

    /// An engine's process has ended.
    pub(crate) fn engine_ended(&mut self, generation: u32, now: Instant) {
        let Some(exit) = self.engines.get(&generation).and_then(Engine::reap) else { return };
        // All it had said counts, on every link.
        self.hear(generation, now, usize::MAX);
        let Some(engine) = self.engines.remove(&generation) else { return };
        self.poller.closed(Token::Control(generation));
        self.poller.closed(Token::Process(generation));
        if self.active != Some(generation) {
            return self.candidate_ended(&engine, exit, now);
        }
        self.active = None;
        self.pool_questions_lost();
        for number in self.numbers() {
            if let Some(session) = self.session_mut(number) {
                session.detach();
                self.poller.closed(Token::Link(number));
                self.pump(number, now);
            }
        }
        self.old_rings.extend(engine.rings.values().cloned());
        if engine.stage == Stage::Stopping {
            return self.stopped(&engine, exit);
        }
        if self.leaving {
            self.history.ended(now, generation, "its keeper was asked to restart".to_owned(), true);
            return self.left();
        }
        let planned = engine.stage == Stage::Pausing && engine.paused && exit.is_clean();
        let reason = reason(&engine, exit, planned);
        if planned {
            tracing::info!(generation, pid = engine.pid, "the engine handed over");
        } else {
            tracing::error!(generation, pid = engine.pid, reason, "the engine ended");
        }
        self.history.ended(now, generation, reason.clone(), planned);
        self.last_end = Some((reason, now, planned));
        if self.stopping {
            self.outcome =
                Some(Err(anyhow!("the engine ended while it was to stop; what was not flushed may be lost")));
            return;
        }
        self.succeed(&engine, exit, planned, now);
    }

    /// Who goes on after the active engine.
    fn succeed(&mut self, ended: &Engine, exit: Exit, planned: bool, now: Instant) {
        if !planned {
            if !self.has_served
                && let Some((refused, _)) = &ended.refused
            {
                self.outcome = Some(Err(anyhow!("{refused}")));
                return;
            }
            self.blame(ended, exit, now);
            self.roll_back();
        }
        if self.promote(now) {
            return;
        }
        let served = ended.ready_at.map(|ready_at| now.saturating_duration_since(ready_at));
        let pause = if planned {
            std::time::Duration::ZERO
        } else {
            self.backoff.pause(served, &self.options.limits)
        };
        if pause.is_zero() {
            return self.start_next(now);
        }
        let failures = self.backoff.failures();
        tracing::warn!(
            failures,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "waiting before the next engine"
        );
        self.start_at = Some(now + pause);
    }

    /// Quarantines the ssd that engines die of, if one is known.
    fn blame(&mut self, ended: &Engine, exit: Exit, now: Instant) {
        if let Some((why, Some(ssd))) = &ended.refused {
            return self.quarantine(*ssd, format!("the engine cannot take it up: {why}"));
        }
        if (exit.is_from_outside() && ended.expelled.is_none()) || ended.refused.is_some() {
            return;
        }
        let verdict = ended.verdict(|number| self.ssds.contains_key(&number));
        if verdict.possible.is_empty() {
            return;
        }
        if let Some(ssd) = self.blame.crashed(now, verdict, &self.options.limits) {
            let crashes = self.blame.count(ssd);
            self.quarantine(
                ssd,
                format!(
                    "{crashes} engines crashed with it in hand, the last: {}",
                    reason(ended, exit, false)
                ),
            );
        }
    }

    /// From now on no engine is given this ssd; its clients' messages and doorbells wait.
    pub(crate) fn quarantine(&mut self, number: u32, why: String) {
        self.blame.forget(number);
        let Some(ssd) = self.ssd_mut(number) else { return };
        tracing::error!(
            ssd = ssd.name,
            why,
            "quarantined: its I/O waits, the others are served; `godwit ssd resume {}` releases it",
            ssd.name
        );
        ssd.quarantined = Some(why);
    }

    /// Engines that took too long.
    pub(crate) fn engines_late(&mut self, now: Instant) {
        for engine in self.engines.values_mut() {
            if let Some((ssd, by)) = engine.lost_session
                && by <= now
            {
                engine.lost_session = None;
                engine.expel(format!("it closed the session of ssd {ssd} without a word"));
            }
            if engine.deadline.is_some_and(|deadline| deadline <= now) {
                engine.deadline = None;
                let doing = match engine.stage {
                    Stage::Checking | Stage::Checked => "to check what is saved",
                    Stage::Starting => "to start",
                    Stage::Serving => "to go after its link had closed",
                    Stage::Pausing => "to pause",
                    Stage::Stopping => "to stop",
                };
                engine.expel(format!("it took too long {doing}"));
            }
        }
    }

    /// Somebody asked us to stop: all is made durable first. Asked twice, we stop at once.
    pub(crate) fn stop(&mut self, now: Instant) {
        if self.stopping {
            for engine in self.engines.values_mut() {
                engine.expel("the daemon was told twice to stop".to_owned());
            }
            self.outcome = Some(Err(anyhow!("stopped at once; what was not flushed may be lost")));
            return;
        }
        tracing::info!("stopping");
        self.options.notify.say("STOPPING=1");
        self.stopping = true;
        self.end_change();
        self.start_at = None;
        self.sync_all();
        let active = self.active;
        for (generation, engine) in &mut self.engines {
            if Some(*generation) != active {
                engine.expel("the daemon stops".to_owned());
            }
        }
        let (deadline, has_served) = (now + self.options.limits.stop_time, self.has_served);
        match self.active_mut() {
            Some(engine) => {
                engine.stage = Stage::Stopping;
                engine.deadline = Some(deadline);
                engine.say(Packet::new(&ToEngine::Stop, Vec::new()));
                engine.flush();
            }
            None if has_served => {
                self.outcome = Some(Err(anyhow!(
                    "stopped while no engine was running; what was not flushed may be lost"
                )));
            }
            None => self.outcome = Some(Ok(())),
        }
        self.sync_engine();
    }

    fn stopped(&mut self, engine: &Engine, exit: Exit) {
        self.outcome = Some(if exit.is_clean() {
            tracing::info!("stopped; all data is durable");
            Ok(())
        } else {
            Err(anyhow!("the engine could not make all data durable: {}", reason(engine, exit, false)))
        });
    }
}

/// Why an engine ended, in words.
pub(crate) fn reason(engine: &Engine, exit: Exit, planned: bool) -> String {
    match (&engine.refused, &engine.expelled) {
        _ if planned => "handed over".to_owned(),
        (Some((refused, _)), _) => format!("refused to serve: {refused}"),
        (None, Some(why)) => format!("killed: {why}"),
        (None, None) => exit.to_string(),
    }
}
