//! The keeper's state, and its loop.

use crate::change::Changing;
use crate::console::Console;
use crate::crash::{Backoff, Blame};
use crate::history::History;
use crate::limits::Limits;
use crate::notify::Notify;
use crate::poller::{Poller, Token};
use crate::process::{Binary, Engine, EngineCommand};
use crate::reexec::{Again, Succession};
use crate::restore::{self, Found, Orphan};
use crate::ssd::Ssd;
use crate::store::Store;
use crate::upgrade::{Probation, Upgrade};
use anyhow::Context;
use api::config::Config;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a keeper needs to know.
#[derive(Debug)]
pub struct Options {
    /// Where the configuration is.
    pub config_path: PathBuf,
    /// Its text.
    pub config_text: String,
    /// How engines are started.
    pub engine: EngineCommand,
    /// Where the engine's counters are to be found.
    pub stats: Option<PathBuf>,
    /// How patient the keeper is.
    pub limits: Limits,
    /// Who started us.
    pub notify: Notify,
    /// How this program is executed anew; `None`: the keeper cannot replace itself.
    pub again: Option<Again>,
    /// Becomes readable when this process is to end, and another keeper to go on.
    pub leave: Option<OwnedFd>,
}

/// See the crate.
#[derive(Debug)]
pub struct Keeper {
    pub(crate) options: Options,
    pub(crate) poller: Poller,
    pub(crate) console: Console,
    /// By the number that each was given, once.
    pub(crate) ssds: BTreeMap<u32, Ssd>,
    /// The number of the next new ssd. None is given twice.
    pub(crate) next_ssd: u32,
    /// Counts the changes.
    pub(crate) last_change: u64,
    /// A change of what is served, under way.
    pub(crate) change: Option<Changing>,
    /// What the file said that this daemon began with, whatever was applied since.
    pub(crate) file_text: String,
    pub(crate) next_session: u64,
    /// By generation: the one that serves, and perhaps its successor.
    pub(crate) engines: BTreeMap<u32, Engine>,
    pub(crate) active: Option<u32>,
    pub(crate) last_generation: u32,
    /// The program of the next engine.
    pub(crate) binary: Arc<Binary>,
    /// io_urings of dead engines that no successor has waited for yet.
    pub(crate) old_rings: Vec<Arc<OwnedFd>>,
    /// How the last engine ended, for its successor.
    pub(crate) last_end: Option<(String, Instant, bool)>,
    pub(crate) backoff: Backoff,
    pub(crate) blame: Blame,
    pub(crate) history: History,
    /// When the next engine starts.
    pub(crate) start_at: Option<Instant>,
    /// When to look at the listening sockets again: there was no descriptor left.
    pub(crate) listen_at: Option<Instant>,
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) probation: Option<Probation>,
    /// Counts the keepers of these sessions, from 1.
    pub(crate) generation: u64,
    /// A keeper to come.
    pub(crate) succession: Option<Succession>,
    /// Where all this is kept for a keeper after this one.
    pub(crate) store: Option<Store>,
    /// The engine of the keeper before, until it is gone.
    pub(crate) orphan: Option<Orphan>,
    /// This process is to end, and another keeper goes on.
    pub(crate) leaving: bool,
    /// Some engine of ours has served.
    pub(crate) has_served: bool,
    pub(crate) stopping: bool,
    pub(crate) outcome: Option<anyhow::Result<()>>,
}

impl Keeper {
    /// Binds all sockets.
    ///
    /// # Errors
    /// The configuration is wrong, or a socket cannot be had: what to do about it.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let kept = options.notify.store().map(|_| restore::find(restore::passed())).transpose()?.flatten();
        let file_text = options.config_text.clone();
        let mut options = options;
        if let Some(text) = kept.as_ref().and_then(|found| found.changed_text(&file_text)) {
            options.config_text = text;
        }
        let config = Config::parse(&options.config_path, &options.config_text)?;
        let mut ssds = BTreeMap::new();
        for (number, ssd) in (0..).zip(&config.ssds) {
            let known = kept.as_ref().and_then(|found: &Found| found.listener(&ssd.name, &ssd.socket));
            let listener = match known {
                Some(listener) => listener,
                None => Ssd::listen(ssd)?,
            };
            ssds.insert(number, Ssd::new(ssd, listener));
        }
        let console = Console::bind(config.control.as_deref(), kept.as_ref())?;
        let mut keeper = Self::assemble(options, ssds, console)?;
        keeper.file_text = file_text;
        keeper.settle(kept)?;
        Ok(keeper)
    }

    pub(crate) fn assemble(
        options: Options,
        ssds: BTreeMap<u32, Ssd>,
        console: Console,
    ) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let config = Config::parse(&options.config_path, &options.config_text)?;
        let mut keeper = Self {
            poller: Poller::new().context("cannot watch sockets")?,
            console,
            next_ssd: ssds.keys().next_back().map_or(0, |number| number.saturating_add(1)),
            ssds,
            last_change: 0,
            change: None,
            file_text: options.config_text.clone(),
            next_session: 1,
            engines: BTreeMap::new(),
            active: None,
            last_generation: 0,
            binary: Arc::clone(&options.engine.binary),
            old_rings: Vec::new(),
            last_end: None,
            backoff: Backoff::default(),
            blame: Blame::default(),
            history: History::default(),
            start_at: Some(Instant::now()),
            listen_at: None,
            upgrade: None,
            probation: None,
            generation: 1,
            succession: None,
            store: None,
            orphan: None,
            leaving: false,
            has_served: false,
            stopping: false,
            outcome: None,
            options,
        };
        keeper.set_places(&config);
        Ok(keeper)
    }

    /// Serves until somebody writes to `stop` (a second time: at once), then makes all durable.
    ///
    /// # Errors
    /// The first engine refused to serve; data could not be made durable; the keeper itself cannot go on.
    pub fn run(mut self, stop: impl AsFd) -> anyhow::Result<()> {
        self.poller.set(Token::Stop, &stop, (true, false));
        if let Some(leave) = &self.options.leave {
            self.poller.set(Token::Leave, leave, (true, false));
        }
        self.console.watch(&mut self.poller);
        self.sync_all();
        self.sync_engine();
        // A keeper before this one may have held them back until now.
        crate::island::hold_stop_signals(false);
        loop {
            let now = Instant::now();
            self.tick(now);
            self.succeed_keeper(now, &stop);
            if let Some(outcome) = self.outcome.take() {
                self.empty_store();
                return outcome;
            }
            let wait = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            // Rounded up: a deadline looked at too early is looked at twice.
            let tokens = self.poller.wait(wait.map(|wait| wait + Duration::from_micros(100)))?;
            let now = Instant::now();
            // What clients and people say changes nothing beyond their own sessions.
            let changes =
                |token: &Token| !matches!(token, Token::Client(_) | Token::Link(_) | Token::Guest(_));
            let changed = tokens.iter().any(changes);
            for token in tokens {
                self.dispatch(token, now, &stop);
            }
            if changed {
                self.save();
            }
        }
    }

    fn dispatch(&mut self, token: Token, now: Instant, stop: &impl AsFd) {
        match token {
            Token::Stop => {
                let mut bytes = [0; 64];
                let _ = rustix::io::read(stop, &mut bytes);
                self.stop(now);
            }
            Token::Leave => {
                let mut bytes = [0; 64];
                let _ = self.options.leave.as_ref().map(|leave| rustix::io::read(leave, &mut bytes));
                self.leave(now);
            }
            Token::Console => self.console.accept(&mut self.poller, now),
            Token::Guest(number) => self.guest_ready(number, now),
            Token::Listener(ssd) => self.client_waits(ssd, now),
            Token::Client(ssd) => self.client_ready(ssd, now),
            Token::Link(ssd) => self.link_ready(ssd, now),
            Token::Control(generation) => self.engine_speaks(generation, now),
            Token::Process(generation) => self.engine_ended(generation, now),
            Token::Checker => self.checker_ended(now),
            Token::Orphan => self.orphan_ended(now),
        }
    }

    /// What is due.
    fn tick(&mut self, now: Instant) {
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_at = None;
            self.sync_all();
        }
        for ssd in self.numbers() {
            let late = self.session(ssd).and_then(|session| session.deadline()).is_some_and(|at| at <= now);
            if late {
                let limits = self.options.limits.clone();
                if let Some(session) = self.session_mut(ssd) {
                    session.look_at_clock(now, &limits);
                }
                self.pump(ssd, now);
            }
        }
        self.engines_late(now);
        self.orphan_late(now);
        self.probation_over(now);
        self.change_late(now);
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            self.start_next(now);
        }
        self.console.look_at_clock(&mut self.poller, now);
        self.options.notify.look_at_clock(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.ssds.values().filter_map(|ssd| ssd.session.as_ref()?.deadline());
        let engines = self.engines.values().filter_map(|engine| engine.deadline);
        let probation = self.probation.as_ref().map(|probation| probation.until);
        let notify = self.options.notify.deadline();
        let succession = self.succession_deadline(Instant::now());
        let (orphan, change) = (self.orphan_deadline(), self.change_deadline());
        let here = [self.start_at, self.listen_at, self.console.deadline()];
        let once = here.into_iter().chain([probation, notify, succession, orphan, change]);
        sessions.chain(engines).chain(once.flatten()).min()
    }

    /// The path of the configuration.
    pub(crate) fn config_path(&self) -> &Path {
        &self.options.config_path
    }

    /// The numbers of all ssds.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.ssds.keys().copied().collect()
    }

    /// The number of the ssd of that name.
    pub(crate) fn number_of(&self, name: &str) -> Option<u32> {
        self.ssds.iter().find(|(_, ssd)| ssd.name == name).map(|(number, _)| *number)
    }

    /// The ssds in the order of the configuration.
    pub(crate) fn in_order(&self) -> Vec<(u32, &Ssd)> {
        let mut all: Vec<_> = self.ssds.iter().map(|(number, ssd)| (*number, ssd)).collect();
        all.sort_by_key(|(number, ssd)| (ssd.place, *number));
        all
    }

    pub(crate) fn ssd_mut(&mut self, ssd: u32) -> Option<&mut Ssd> {
        self.ssds.get_mut(&ssd)
    }

    pub(crate) fn ssd(&self, ssd: u32) -> Option<&Ssd> {
        self.ssds.get(&ssd)
    }

    pub(crate) fn session(&self, ssd: u32) -> Option<&crate::session::Session> {
        self.ssd(ssd)?.session.as_ref()
    }

    pub(crate) fn session_mut(&mut self, ssd: u32) -> Option<&mut crate::session::Session> {
        self.ssd_mut(ssd)?.session.as_mut()
    }

    pub(crate) fn active(&self) -> Option<&Engine> {
        self.engines.get(&self.active?)
    }

    pub(crate) fn active_mut(&mut self) -> Option<&mut Engine> {
        self.engines.get_mut(&self.active?)
    }
}

/// Descriptors are what a keeper consists of.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
