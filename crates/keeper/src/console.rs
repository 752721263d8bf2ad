//! The control socket: `godwit` asks, in JSON lines (`api::control`).

use crate::change::How;
use crate::keeper::Keeper;
use crate::listener::{Accepted, Listener};
use crate::poller::{Poller, Token};
use crate::process::{Binary, Stage};
use crate::restore::Found;
use anyhow::Context;
use api::control::{DEFAULT_SOCKET, EngineStatus, LINE_BYTES_MAX, Request, Response, SsdStatus, Status};
use link::control::{Packet, ToEngine};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// People who ask at once.
const GUESTS_MAX: usize = 16;
/// How long a question may take to arrive, and an answer to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that waits to be read.
const ANSWER_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Console {
    listener: Option<Listener>,
    guests: BTreeMap<u32, Guest>,
    next: u32,
    /// Guests whose questions the engine has.
    asked_of_engine: BTreeSet<u32>,
}

/// Somebody who asks.
#[derive(Debug)]
struct Guest {
    socket: OwnedFd,
    question: Vec<u8>,
    asked: bool,
    answer: Vec<u8>,
    /// The answer is complete: it goes when all is sent.
    done: bool,
    /// By when the question must be here, or the answer read.
    by: Option<Instant>,
}

impl Console {
    /// Listens where the configuration says. Without it the daemon also works where the default place cannot be had.
    pub(crate) fn bind(path: Option<&Path>, found: Option<&Found>) -> anyhow::Result<Self> {
        let kept = found.and_then(|found| found.console(path.unwrap_or(Path::new(DEFAULT_SOCKET))));
        let listener = match path {
            _ if kept.is_some() => kept,
            Some(path) => Some(Listener::bind(path).with_context(|| {
                let path = path.display();
                format!("cannot listen at control = \"{path}\": is the directory there and writable, and no other godwitd using it?")
            })?),
            None => Listener::bind(Path::new(DEFAULT_SOCKET))
                .inspect_err(|error| tracing::warn!(%error, "no control socket at {DEFAULT_SOCKET}: `control = PATH` in the configuration puts it elsewhere"))
                .ok(),
        };
        Ok(Self::new(listener))
    }

    pub(crate) fn new(listener: Option<Listener>) -> Self {
        Self { listener, guests: BTreeMap::new(), next: 0, asked_of_engine: BTreeSet::new() }
    }

    /// Another keeper goes on with the socket.
    pub(crate) fn stays(&mut self) {
        self.listener.iter_mut().for_each(|listener| listener.stays = true);
    }

    pub(crate) fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// Somebody besides these asks.
    pub(crate) fn others(&self, known: [Option<u32>; 2]) -> bool {
        self.guests.keys().any(|guest| !known.contains(&Some(*guest)))
    }

    pub(crate) fn socket(&self, guest: u32) -> Option<BorrowedFd<'_>> {
        self.guests.get(&guest).map(|guest| guest.socket.as_fd())
    }

    pub(crate) fn each_descriptor<'a>(&'a self, tell: &mut dyn FnMut(BorrowedFd<'a>)) {
        self.listener.iter().for_each(|listener| tell(listener.as_fd()));
        self.guests.values().for_each(|guest| tell(guest.socket.as_fd()));
    }

    /// Somebody who asked an earlier keeper, and waits for the answer.
    pub(crate) fn adopt(&mut self, poller: &mut Poller, socket: OwnedFd) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        poller.set(Token::Guest(number), &socket, (true, false));
        let guest =
            Guest { socket, question: Vec::new(), asked: true, answer: Vec::new(), done: false, by: None };
        self.guests.insert(number, guest);
        number
    }

    pub(crate) fn watch(&self, poller: &mut Poller) {
        if let Some(listener) = &self.listener {
            poller.set(Token::Console, listener, (self.guests.len() < GUESTS_MAX, false));
        }
    }

    pub(crate) fn accept(&mut self, poller: &mut Poller, now: Instant) {
        let Some(listener) = &self.listener else { return };
        if let Accepted::Client(socket) = listener.accept() {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            poller.set(Token::Guest(number), &socket, (true, false));
            let by = Some(now + PATIENCE);
            let guest =
                Guest { socket, question: Vec::new(), asked: false, answer: Vec::new(), done: false, by };
            self.guests.insert(number, guest);
        }
        self.watch(poller);
    }

    fn remove(&mut self, poller: &mut Poller, number: u32) {
        self.guests.remove(&number);
        self.asked_of_engine.remove(&number);
        poller.closed(Token::Guest(number));
        self.watch(poller);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.guests.values().filter_map(|guest| guest.by).min()
    }

    pub(crate) fn look_at_clock(&mut self, poller: &mut Poller, now: Instant) {
        let late: Vec<u32> = self
            .guests
            .iter()
            .filter(|(_, guest)| guest.by.is_some_and(|by| by <= now))
            .map(|(number, _)| *number)
            .collect();
        late.into_iter().for_each(|number| self.remove(poller, number));
    }

    /// The question, once it is here; `None` and false: it will never come.
    fn read(&mut self, number: u32) -> (Option<Vec<u8>>, bool) {
        let Some(guest) = self.guests.get_mut(&number) else { return (None, false) };
        let mut buffer = [0; 4096];
        loop {
            match rustix::net::recv(&guest.socket, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return (None, false),
                // Whoever speaks after the question is not listened to.
                Ok(_) if guest.asked => {}
                Ok((count, _)) => {
                    guest.question.extend_from_slice(buffer.get(..count).unwrap_or(&[]));
                    if let Some(end) = guest.question.iter().position(|byte| *byte == b'\n') {
                        guest.asked = true;
                        guest.by = None;
                        guest.question.truncate(end);
                        return (Some(std::mem::take(&mut guest.question)), true);
                    }
                    if guest.question.len() > LINE_BYTES_MAX {
                        return (None, false);
                    }
                }
                Err(Errno::AGAIN) => return (None, true),
                Err(Errno::INTR) => {}
                Err(_) => return (None, false),
            }
        }
    }

    fn say(&mut self, poller: &mut Poller, number: u32, response: &Response, done: bool, now: Instant) {
        let Some(guest) = self.guests.get_mut(&number) else { return };
        if guest.answer.len() < ANSWER_BYTES_MAX {
            guest.answer.extend(serde_json::to_vec(response).unwrap_or_default());
            guest.answer.push(b'\n');
        }
        guest.done |= done;
        self.flush(poller, number, now);
    }

    fn flush(&mut self, poller: &mut Poller, number: u32, now: Instant) {
        let Some(guest) = self.guests.get_mut(&number) else { return };
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        while !guest.answer.is_empty() {
            match rustix::net::send(&guest.socket, &guest.answer, flags) {
                Ok(count) => drop(guest.answer.drain(..count.min(guest.answer.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    guest.by.get_or_insert(now + PATIENCE);
                    poller.set(Token::Guest(number), &guest.socket, (true, true));
                    return;
                }
                Err(_) => return self.remove(poller, number),
            }
        }
        if guest.asked {
            guest.by = None;
        }
        if guest.done {
            return self.remove(poller, number);
        }
        poller.set(Token::Guest(number), &guest.socket, (true, false));
    }
}

/// Where another process opens what this one has open.
fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()
}

impl Keeper {
    pub(crate) fn guest_ready(&mut self, number: u32, now: Instant) {
        let (question, stays) = self.console.read(number);
        if !stays {
            return self.console.remove(&mut self.poller, number);
        }
        if let Some(question) = question {
            match serde_json::from_slice(&question) {
                Ok(request) => self.asked(number, request, now),
                Err(error) => {
                    let text = format!(
                        "this daemon does not understand the request ({error}); is `godwit` of another release?"
                    );
                    self.answer(Some(number), Response::Error(text));
                }
            }
        }
        self.console.flush(&mut self.poller, number, now);
    }

    fn asked(&mut self, guest: u32, request: Request, now: Instant) {
        let result = match request {
            Request::Status => {
                let status = Box::new(self.status(now));
                return self.answer(Some(guest), Response::Status(status));
            }
            Request::Upgrade { binary, keeper: true, .. } => self.begin_succession(binary, Some(guest), now),
            Request::Upgrade { binary, keeper: false, no_wait } => {
                let path = binary.unwrap_or_else(|| self.binary.path.clone());
                let opened = Binary::open(&path).map_err(|error| format!("{error:#}; nothing has changed"));
                opened
                    .and_then(|binary| self.begin_upgrade(Arc::new(binary), Some(guest), no_wait, None, now))
            }
            Request::Resume { ssd } => self.release(&ssd, guest, now),
            Request::Apply { config, path, dry_run, force } => {
                let how = How { path, dry_run, force };
                self.begin_change(config, &how, guest, now)
            }
            Request::Pool(request) => self.relay_to_engine(serde_json::to_string(&request), guest),
            Request::Engine(request) => self.relay_to_engine(serde_json::to_string(&request), guest),
        };
        if let Err(text) = result {
            self.answer(Some(guest), Response::Error(text));
        }
    }

    /// Hands a question to the engine, which answers with the guest's number.
    fn relay_to_engine(&mut self, request: serde_json::Result<String>, guest: u32) -> Result<(), String> {
        let request = request.map_err(|error| error.to_string())?;
        let engine = self.active_mut().filter(|engine| engine.stage == Stage::Serving);
        let Some(engine) = engine else {
            return Err("no engine serves now: `godwit status` shows why; ask again when one does".to_owned());
        };
        engine.say(Packet::new(&ToEngine::Pool { id: guest, request }, Vec::new()));
        engine.flush();
        self.console.asked_of_engine.insert(guest);
        self.sync_engine();
        Ok(())
    }

    /// What the engine says to a question about pools.
    pub(crate) fn pool_answered(&mut self, guest: u32, response: &str) {
        if self.console.asked_of_engine.remove(&guest) {
            let response = serde_json::from_str(response).unwrap_or_else(|error| {
                Response::Error(format!("the engine's answer makes no sense: {error}"))
            });
            self.answer(Some(guest), response);
        }
    }

    /// The engine that was asked has ended.
    pub(crate) fn pool_questions_lost(&mut self) {
        for guest in std::mem::take(&mut self.console.asked_of_engine) {
            let text = "the engine ended before it answered: look with `godwit volume list`, or `godwit migration list`, whether it is done";
            self.answer(Some(guest), Response::Error(text.to_owned()));
        }
    }

    /// Takes an ssd out of quarantine, by a handover to a fresh engine that has it.
    fn release(&mut self, name: &str, guest: u32, now: Instant) -> Result<(), String> {
        let number = self.number_of(name);
        let Some((number, ssd)) = number.and_then(|number| Some((number, self.ssds.get_mut(&number)?)))
        else {
            let names: Vec<&str> = self.in_order().into_iter().map(|(_, ssd)| ssd.name.as_str()).collect();
            return Err(format!("there is no ssd \"{name}\"; there are: {}", names.join(", ")));
        };
        if ssd.quarantined.is_none() {
            return Err(format!("ssd \"{name}\" is not quarantined"));
        }
        if self.active.is_none() && self.upgrade.is_none() {
            // Whoever starts next has it.
            ssd.quarantined = None;
            self.answer(Some(guest), Response::Done(format!("ssd \"{name}\" goes to the next engine")));
            return Ok(());
        }
        let binary = Arc::clone(&self.binary);
        self.begin_upgrade(binary, Some(guest), true, Some(number), now)
    }

    pub(crate) fn progress(&mut self, guest: u32, text: &str) {
        let response = Response::Progress(text.to_owned());
        self.console.say(&mut self.poller, guest, &response, false, Instant::now());
    }

    /// The last word to whoever asked.
    pub(crate) fn answer(&mut self, guest: Option<u32>, response: Response) {
        if let Some(guest) = guest {
            self.console.say(&mut self.poller, guest, &response, true, Instant::now());
        }
    }

    fn status(&self, now: Instant) -> Status {
        let ssd_status = |(number, ssd): (u32, &crate::ssd::Ssd)| {
            let attached = ssd.session.as_ref().is_none_or(|session| session.link.is_some());
            let serving = self.active().is_some_and(|engine| engine.stage == Stage::Serving) && attached;
            let state = match (&ssd.quarantined, &ssd.standing) {
                (Some(_), _) => "quarantined",
                (None, Some(standing)) => &standing.word,
                (None, None) if serving => "serving",
                (None, None) => "parked",
            };
            let standing = ssd.standing.as_ref().map(|standing| standing.why.clone());
            SsdStatus {
                name: ssd.name.clone(),
                state: state.to_owned(),
                reason: ssd.quarantined.clone().or(standing).or_else(|| ssd.fault.clone()),
                client: ssd.session.as_ref().is_some_and(|session| session.client.is_some()),
                unanswered: ssd.session.as_ref().map_or(0, |session| session.unanswered.len() as u64),
                crashes: self.blame.count(number) as u64,
                metrics: ssd.memory.get(&link::control::Role::METRICS).map(|page| path_of(page.as_fd())),
                limits: ssd.limits,
            }
        };
        Status {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            keeper_generation: self.generation,
            engine: self.engine_status(now),
            ssds: self.in_order().into_iter().map(ssd_status).collect(),
            reactors: Vec::new(),
            restarts: self.history.restarts(),
        }
    }

    fn engine_status(&self, now: Instant) -> EngineStatus {
        let engine = self.active();
        let state = match engine.map(|engine| engine.stage) {
            None => "down",
            Some(Stage::Checking | Stage::Checked | Stage::Starting) => "starting",
            Some(Stage::Serving) => "serving",
            Some(Stage::Pausing) => "pausing",
            Some(Stage::Stopping) => "stopping",
        };
        let since = engine
            .and_then(|engine| engine.ready_at)
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        EngineStatus {
            generation: u64::from(self.active.unwrap_or(self.last_generation)),
            state: state.to_owned(),
            pid: engine.and_then(|engine| u32::try_from(engine.pid).ok()),
            release: engine
                .and_then(|engine| engine.hello.as_ref())
                .map_or(String::new(), |hello| hello.release.clone()),
            binary: engine.map_or_else(|| self.binary.path.clone(), |engine| engine.binary.path.clone()),
            serving_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            crashes: self.history.crashes,
            handovers: self.history.handovers,
            on_probation: self.probation.is_some(),
        }
    }
}
