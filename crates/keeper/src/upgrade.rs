//! One engine after another, as planned: the new one checks what is saved while the old one serves; the old one pauses and
//! goes; the new one takes over, on probation.
//!
//! ```text
//!  begin --> candidate Checking --Ready--> old one Pausing --it ends--> candidate Starting --Ready--> probation --> done
//!               | refuses, dies, late          | late: killed,               | dies: the old binary again
//!               v                              v its work is replayed        v
//!            nothing has changed            (goes on)                     "rolled back"
//! ```

use crate::keeper::Keeper;
use crate::process::{Binary, Engine, Exit, Stage};
use api::control::Response;
use link::control::{Packet, ToEngine};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An upgrade under way, until its engine serves.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The new engine.
    pub(crate) candidate: u32,
    /// Who asked.
    pub(crate) guest: Option<u32>,
    /// Answer as soon as the new engine serves.
    pub(crate) no_wait: bool,
    /// The ssd that this takes out of quarantine, and why it was there.
    pub(crate) resumes: Option<(u32, String)>,
    /// The program before.
    pub(crate) former: Arc<Binary>,
    /// The candidate has taken over.
    pub(crate) promoted: bool,
}

/// After an upgrade.
#[derive(Debug)]
pub(crate) struct Probation {
    pub(crate) former: Arc<Binary>,
    pub(crate) until: Instant,
    pub(crate) guest: Option<u32>,
}

impl Keeper {
    /// Begins an upgrade, or a handover to a fresh engine of the same program. Errors are for people.
    pub(crate) fn begin_upgrade(
        &mut self,
        binary: Arc<Binary>,
        guest: Option<u32>,
        no_wait: bool,
        resumes: Option<u32>,
        now: Instant,
    ) -> Result<(), String> {
        if self.stopping {
            return Err("the daemon is stopping".to_owned());
        }
        if self.upgrade.is_some() || self.succession.is_some() {
            return Err("another upgrade is under way; wait for it (`godwit status` shows it)".to_owned());
        }
        if self.change.is_some() {
            return Err("a change of the configuration is under way; wait for it and try again".to_owned());
        }
        if self.active().is_none_or(|engine| engine.stage != Stage::Serving) {
            return Err("no engine is serving now, so there is nothing to hand over; try again when `godwit status` says serving".to_owned());
        }
        // A new upgrade says that the last one is good.
        self.end_probation("another upgrade began");
        let resumes = resumes.and_then(|ssd| Some((ssd, self.ssd_mut(ssd)?.quarantined.take()?)));
        let candidate = match self.spawn(&binary, Stage::Checking, now) {
            Ok(candidate) => candidate,
            Err(error) => {
                self.quarantine_again(resumes);
                return Err(format!("{error:#}; nothing has changed"));
            }
        };
        let packets: Vec<_> = self.saved().into_iter().chain(self.deposits()).collect();
        if let Some(engine) = self.engines.get_mut(&candidate) {
            packets.into_iter().for_each(|packet| engine.say(packet));
            engine.say(Packet::new(&ToEngine::Check, Vec::new()));
            engine.flush();
        }
        let former = Arc::clone(&self.binary);
        self.upgrade = Some(Upgrade { candidate, guest, no_wait, resumes, former, promoted: false });
        self.sync_engine();
        Ok(())
    }

    fn quarantine_again(&mut self, resumes: Option<(u32, String)>) {
        if let Some((ssd, why)) = resumes
            && let Some(ssd) = self.ssd_mut(ssd)
        {
            ssd.quarantined = Some(why);
        }
    }

    /// The candidate can read everything: the old engine may go.
    pub(crate) fn checked(&mut self, now: Instant) {
        if let Some(guest) = self.upgrade.as_ref().and_then(|upgrade| upgrade.guest) {
            self.progress(guest, "the new engine can read all saved states; handing over");
        }
        let deadline = now + self.options.limits.pause_time;
        match self.active_mut() {
            Some(engine) => {
                engine.stage = Stage::Pausing;
                engine.deadline = Some(deadline);
                engine.say(Packet::new(&ToEngine::Pause, Vec::new()));
                engine.flush();
            }
            // It crashed meanwhile, and the next one waits to be started: this is the next one.
            None => {
                self.start_at = None;
                self.promote(now);
            }
        }
        self.sync_engine();
    }

    /// The active engine is gone: a candidate that is ready goes on.
    pub(crate) fn promote(&mut self, now: Instant) -> bool {
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| !upgrade.promoted) else { return false };
        let candidate = upgrade.candidate;
        if self.engines.get(&candidate).is_none_or(|engine| engine.stage != Stage::Checked) {
            self.fail_upgrade(
                "the running engine ended before the new one was ready; it is replaced by the same program",
                now,
            );
            return false;
        }
        upgrade.promoted = true;
        let resumed = upgrade.resumes.as_ref().map(|(ssd, _)| *ssd);
        self.active = Some(candidate);
        if let Some(engine) = self.active() {
            self.binary = Arc::clone(&engine.binary);
        }
        if let Some(ssd) = resumed {
            self.blame.forget(ssd);
        }
        self.hand_over();
        true
    }

    /// The candidate ended, or must: nothing has changed.
    fn fail_upgrade(&mut self, why: &str, _now: Instant) {
        let Some(upgrade) = self.upgrade.take() else { return };
        if let Some(engine) = self.engines.get_mut(&upgrade.candidate) {
            engine.expel("its upgrade failed".to_owned());
        }
        tracing::error!(why, "the upgrade failed");
        self.quarantine_again(upgrade.resumes);
        self.answer(upgrade.guest, Response::Error(format!("the upgrade failed: {why}")));
    }

    /// An engine that did not serve has ended.
    pub(crate) fn candidate_ended(&mut self, engine: &Engine, exit: Exit, now: Instant) {
        if self.upgrade.as_ref().is_none_or(|upgrade| upgrade.candidate != engine.generation) {
            return;
        }
        let why = crate::engines::reason(engine, exit, false);
        let path = engine.binary.path.display();
        self.fail_upgrade(
            &format!("the engine of {path}: {why}; the running one goes on, nothing has changed"),
            now,
        );
        // The old one may be pausing already: it ends, and the same program takes over.
    }

    /// The active engine serves: if it is an upgrade's, its probation begins.
    pub(crate) fn upgraded(&mut self, blackout: Option<Duration>, now: Instant) {
        let Some(upgrade) = self.upgrade.take_if(|upgrade| upgrade.promoted) else { return };
        let blackout_us = blackout.map_or(0, |blackout| blackout.as_micros());
        let text = format!("engine {} serves after {blackout_us} µs", upgrade.candidate);
        let until = now + self.options.limits.probation;
        let mut probation = Probation { former: upgrade.former, until, guest: upgrade.guest };
        if upgrade.no_wait || upgrade.resumes.is_some() {
            self.answer(probation.guest.take(), Response::Done(text));
        } else if let Some(guest) = probation.guest {
            self.progress(
                guest,
                &format!("{text}; on probation for {} s", self.options.limits.probation.as_secs_f32()),
            );
        }
        self.probation = Some(probation);
    }

    pub(crate) fn probation_over(&mut self, now: Instant) {
        if self.probation.as_ref().is_some_and(|probation| probation.until <= now) {
            self.end_probation("it is over");
        }
    }

    fn end_probation(&mut self, why: &str) {
        let Some(probation) = self.probation.take() else { return };
        tracing::info!(why, generation = self.active, "the upgrade's probation ended well");
        let text = format!("upgraded to engine {}", self.active.unwrap_or(0));
        self.answer(probation.guest, Response::Done(text));
    }

    /// The active engine failed. If it is new, the program before it runs again.
    pub(crate) fn roll_back(&mut self) {
        let promoted = self.upgrade.take_if(|upgrade| upgrade.promoted);
        let from_upgrade = promoted.map(|upgrade| (upgrade.former, upgrade.guest));
        let from_probation = self.probation.take().map(|probation| (probation.former, probation.guest));
        let Some((former, guest)) = from_upgrade.or(from_probation) else { return };
        let reason = self.last_end.as_ref().map_or("", |(reason, _, _)| reason.as_str());
        let text = format!(
            "the upgrade was rolled back: the new engine ended ({reason}), {} runs again",
            former.path.display()
        );
        tracing::error!("{text}");
        self.binary = former;
        self.answer(guest, Response::Error(text));
    }
}
