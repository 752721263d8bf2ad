//! Another configuration while all goes on: ssds come, go and grow, and the others are not disturbed.
//!
//! ```text
//!  asked --> plan, sockets bound --> Prepare --Prepared--> committed: the keeper's configuration --Commit--> Changed --> answered
//!      | cannot        | cannot         | refused, late (*)    | the engine dies                    | the engine dies
//!      v               v                v                      v                                    v
//!          nothing has changed                       asked again of the next one        the next one has it from the start
//! ```
//!
//! (*) An engine that is ready after that is told to forget it: it would hold its ssds for nothing.
//!
//! The one moment of a change is the keeper's own: before it the old configuration counts, after it the new one, whoever dies. All
//! that can fail comes before. Nothing is half done: an ssd is known by a number that no other ever has, so what an engine says of
//! one that is gone concerns nobody.

use crate::keeper::Keeper;
use crate::poller::Token;
use crate::process::Stage;
use crate::session::EndReason;
use crate::ssd::Ssd;
use api::change::Plan;
use api::config::Config;
use api::control::Response;
use link::control::{Change, Packet, Prepared, ToEngine};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Engines that may die while they make ready for a change before it is given up.
const ATTEMPTS_MAX: u32 = 3;
/// How long the engine may take for either half.
const CHANGE_TIME: Duration = Duration::from_secs(30);
/// The first version of the link that has changes.
const LINK_VERSION: u32 = 2;
/// The first one in which they can be forgotten.
const FORGET_VERSION: u32 = 5;

/// What goes with the text of a configuration.
#[derive(Debug, Default)]
pub(crate) struct How {
    /// Where it came from.
    pub(crate) path: Option<PathBuf>,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
}

/// A change under way.
#[derive(Debug)]
pub(crate) struct Changing {
    /// Counts them, so that an answer to a former one is not taken for this one's.
    number: u64,
    guest: Option<u32>,
    text: String,
    config: Config,
    plan: Plan,
    /// The ssds that come, with their sockets.
    added: BTreeMap<u32, Ssd>,
    removed: Vec<u32>,
    grown: Vec<u32>,
    committed: bool,
    /// Engines that were asked.
    attempts: u32,
    by: Instant,
    /// The ssds that went, until the engine has taken leave of them: it needs the ends of their links as long.
    pub(crate) leaving: Vec<Ssd>,
    /// What the engine said of the ssds that came or grew.
    faults: Vec<String>,
}

impl Keeper {
    /// Begins to serve another configuration. Errors are for people; nothing has changed then.
    pub(crate) fn begin_change(
        &mut self,
        text: String,
        how: &How,
        guest: u32,
        now: Instant,
    ) -> Result<(), String> {
        let from = how.path.as_deref().unwrap_or(Path::new("the new configuration"));
        let config = Config::parse(from, &text).map_err(|error| format!("{error}\nnothing has changed"))?;
        let old = Config::parse(self.config_path(), &self.options.config_text)
            .map_err(|error| format!("the configuration that is served cannot be read: {error}"))?;
        let plan =
            Plan::between(&old, &config).map_err(|refused| format!("{refused}\nnothing has changed"))?;
        if !how.force {
            self.check_clients(&plan)?;
        }
        if how.dry_run || plan.is_empty() {
            if !how.dry_run {
                self.adopt(text, &config);
            }
            let what = if plan.is_empty() { "nothing to change".to_owned() } else { plan.to_string() };
            self.answer(Some(guest), Response::Done(what));
            return Ok(());
        }
        self.may_change()?;
        let change = self.changing(text, config, plan, guest, now)?;
        self.progress(guest, &change.plan.to_string());
        self.change = Some(change);
        self.change_goes_on(now);
        Ok(())
    }

    fn may_change(&self) -> Result<(), String> {
        if self.stopping || self.leaving {
            return Err("the daemon is stopping".to_owned());
        }
        if self.upgrade.is_some() || self.succession.is_some() {
            return Err("an upgrade is under way; wait for it (`godwit status` shows it)".to_owned());
        }
        if self.change.is_some() {
            return Err("another change is under way; wait for it and try again".to_owned());
        }
        Ok(())
    }

    /// A client that is there has to be thought of.
    fn check_clients(&self, plan: &Plan) -> Result<(), String> {
        let has_client = |name: &&String| {
            let session = self.number_of(name).and_then(|number| self.session(number));
            session.is_some_and(|session| !session.is_leaving())
        };
        let used: Vec<String> =
            plan.removed.iter().filter(has_client).map(|name| format!("\"{name}\"")).collect();
        if used.is_empty() {
            return Ok(());
        }
        Err(format!(
            "a client is connected to {}, which would lose its device: unplug it from the guest first, or say `--force`; nothing has \
             changed",
            used.join(", ")
        ))
    }

    /// All that this process has to do for a change before it is one.
    fn changing(
        &mut self,
        text: String,
        config: Config,
        plan: Plan,
        guest: u32,
        now: Instant,
    ) -> Result<Changing, String> {
        let mut added = BTreeMap::new();
        for ssd in plan.added.iter().filter_map(|name| config.ssd(name)) {
            let listener = Ssd::listen(ssd).map_err(|error| format!("{error:#}; nothing has changed"))?;
            let number = self.next_ssd;
            // Not the last one, either: a page of blame counts from 1.
            let next = number.checked_add(1).filter(|next| *next < u32::MAX);
            self.next_ssd = next.ok_or("four thousand million ssds came and went: restart godwitd")?;
            added.insert(number, Ssd::new(ssd, listener));
        }
        let numbers = |names: &mut dyn Iterator<Item = &String>| {
            names.filter_map(|name| self.number_of(name)).collect()
        };
        let removed = numbers(&mut plan.removed.iter());
        let grown = numbers(&mut plan.grown.iter().map(|grown| &grown.name));
        self.last_change += 1;
        Ok(Changing {
            number: self.last_change,
            guest: Some(guest),
            text,
            config,
            plan,
            added,
            removed,
            grown,
            committed: false,
            attempts: 0,
            by: now + CHANGE_TIME,
            leaving: Vec::new(),
            faults: Vec::new(),
        })
    }

    /// An engine serves: a change that waits is asked of it, and one that was committed is done, because it began with it.
    pub(crate) fn change_goes_on(&mut self, now: Instant) {
        let Some(change) = &mut self.change else { return };
        if change.committed {
            let number = change.number;
            return self.changed(number);
        }
        let Some(engine) = self.active.and_then(|active| self.engines.get_mut(&active)) else { return };
        if engine.stage != Stage::Serving {
            return;
        }
        if engine.hello.as_ref().is_none_or(|hello| hello.version < LINK_VERSION) {
            return self
                .fail_change("the running engine is of a release that cannot; `godwit upgrade` it first");
        }
        if change.attempts == ATTEMPTS_MAX {
            return self.fail_change("engine after engine ended while it made ready; see the log for why");
        }
        change.attempts += 1;
        change.by = now + CHANGE_TIME;
        let message = Change {
            change: change.number,
            config: change.text.clone(),
            added: change.added.iter().map(|(number, ssd)| ssd.slot(*number)).collect(),
            removed: change.removed.clone(),
            grown: change.grown.clone(),
        };
        engine.say(Packet::new(&ToEngine::Prepare(message), Vec::new()));
        engine.flush();
        self.sync_engine();
    }

    /// The engine is ready for a change, or refuses it.
    pub(crate) fn prepared(&mut self, prepared: &Prepared) {
        let ours =
            self.change.as_ref().is_some_and(|change| change.number == prepared.change && !change.committed);
        match &prepared.refused {
            None if !ours => self.forget_change(prepared.change),
            _ if !ours => {}
            Some(why) => self.fail_change(why),
            None => self.commit(),
        }
    }

    /// It comes too late. An engine of an earlier release has it until the next change.
    fn forget_change(&mut self, change: u64) {
        let knows = |hello: &link::control::Hello| hello.version >= FORGET_VERSION;
        if let Some(engine) = self.active_mut()
            && engine.hello.as_ref().is_some_and(knows)
        {
            engine.say(Packet::new(&ToEngine::Forget { change }, Vec::new()));
            engine.flush();
        }
    }

    /// The one moment: from here on the new configuration is what every engine serves.
    fn commit(&mut self) {
        let Some(mut change) = self.change.take() else { return };
        for number in &change.removed {
            change.leaving.extend(self.let_go(*number));
        }
        let came: Vec<u32> = change.added.keys().copied().collect();
        self.ssds.append(&mut change.added);
        self.adopt(change.text.clone(), &change.config);
        change.committed = true;
        change.by = Instant::now() + CHANGE_TIME;
        let number = change.number;
        tracing::info!(change = %change.plan.to_string().replace('\n', ", "), "the configuration changes");
        self.change = Some(change);
        if let Some(engine) = self.active_mut() {
            engine.say(Packet::new(&ToEngine::Commit { change: number }, Vec::new()));
            engine.flush();
        }
        self.sync_engine();
        came.into_iter().for_each(|number| self.sync(number));
    }

    /// An ssd is served no more; its client loses its device.
    fn let_go(&mut self, number: u32) -> Option<Ssd> {
        let mut ssd = self.ssds.remove(&number)?;
        for token in [Token::Listener, Token::Client, Token::Link] {
            self.poller.closed(token(number));
        }
        self.blame.forget(number);
        if let Some(engine) = self.active_mut() {
            engine.lost_session.take_if(|(lost, _)| *lost == number);
        }
        if let Some(session) = &mut ssd.session {
            session.end_client(EndReason::HangUp);
            if let Some(client) = session.client.take() {
                // Duplicates may be kept for a keeper after this one.
                let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
            }
            session.desk = None;
        }
        Some(ssd)
    }

    /// This is the configuration now.
    fn adopt(&mut self, text: String, config: &Config) {
        self.options.config_text = text;
        self.set_places(config);
        self.save();
    }

    /// The ssds' places in the configuration.
    pub(crate) fn set_places(&mut self, config: &Config) {
        let places: HashMap<&str, usize> =
            config.ssds.iter().enumerate().map(|(place, ssd)| (ssd.name.as_str(), place)).collect();
        for ssd in self.ssds.values_mut() {
            ssd.place = places.get(ssd.name.as_str()).copied().unwrap_or(usize::MAX);
            ssd.limits = config.ssd(&ssd.name).map(|config| config.limits).unwrap_or_default();
        }
    }

    /// Something is wrong with an ssd that came, or grew, with the change under way.
    pub(crate) fn change_faulty(&mut self, number: u32, why: &str) {
        let Some(name) = self.ssd(number).map(|ssd| ssd.name.clone()) else { return };
        let concerns = |change: &&mut Changing| {
            let plan = &change.plan;
            change.committed
                && (plan.added.contains(&name) || plan.grown.iter().any(|grown| grown.name == name))
        };
        if let Some(change) = self.change.as_mut().filter(concerns) {
            change.faults.push(format!("ssd \"{name}\": {why}"));
        }
    }

    /// All of a change is carried out.
    pub(crate) fn changed(&mut self, number: u64) {
        let ours = |change: &mut Changing| change.number == number && change.committed;
        let Some(change) = self.change.take_if(ours) else { return };
        let Changing { guest, faults, leaving, .. } = change;
        // The socket's file of an ssd, and its drive's lock, go with the last of what was kept of it.
        drop(leaving);
        self.save();
        let text = match &faults[..] {
            [] => Response::Done("done".to_owned()),
            faults => Response::Error(format!(
                "the configuration is served, but not all of it: {}; `godwit status` shows it",
                faults.join("; ")
            )),
        };
        self.answer(guest, text);
    }

    /// Before its moment: nothing has changed.
    fn fail_change(&mut self, why: &str) {
        let Some(change) = self.change.take() else { return };
        tracing::error!(why, "the configuration does not change");
        self.answer(change.guest, Response::Error(format!("{why}; nothing has changed")));
    }

    /// The daemon stops: before a change's moment it never was, after it all of it is stopped, too.
    pub(crate) fn end_change(&mut self) {
        match &self.change {
            Some(change) if change.committed => {
                let number = change.number;
                self.changed(number);
            }
            _ => self.fail_change("the daemon is stopping"),
        }
    }

    pub(crate) fn change_late(&mut self, now: Instant) {
        let Some(change) = &self.change else { return };
        if change.by > now {
            return;
        }
        if !change.committed {
            return self.fail_change("the engine takes too long to make ready");
        }
        let text = "the configuration is served, but the engine takes long over what was removed; its drives may be in use for \
                    longer";
        let guest = change.guest;
        self.answer(guest, Response::Error(text.to_owned()));
        self.change = None;
    }

    pub(crate) fn change_deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.by)
    }

    /// There was an ssd of this number.
    pub(crate) fn is_former(&self, number: u32) -> bool {
        number < self.next_ssd && !self.ssds.contains_key(&number)
    }
}
