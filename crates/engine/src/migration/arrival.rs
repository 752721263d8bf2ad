//! A migration's destination: drives the machine that says who owns the ssd, one word of the source at a time, while its blocks land.

use super::along::{check_key, saved, there};
use super::blocks::{Landing, pages_of};
use super::case::Case;
use super::gauge;
use super::guest::{Coming, check_came, run_what_came};
use super::journal::Journal;
use super::listener::Known;
use super::past;
use super::word::{Along, FromDestination, SourceWord, There, to_destination};
use crate::passage::Store;
use crate::records::replace;
use crate::run::House;
use crate::serve::fit_record;
use crate::ssd::Ssd;
use anyhow::{Context, bail, ensure};
use api::config;
use api::control::Steer;
use state::controller::ControllerV1;
use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use transfer::commit::{
    Destination, DestinationEffect, DestinationEvent, DestinationRecord, DestinationStep, Message, Parties,
    Pledge, Record, ToDestination, ToSource,
};
use transfer::frame::Limits;
use transfer::receive::{Arrived, Greeted, Receiver as Pages};
use transfer::tls::Incoming;

/// From the source's word that the rest is on its way to its last page. A source that stands still for it does not wait as long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests to the drive at once.
const PORTS: usize = 4;

/// A connection that brings pages, and its socket once more, for whoever ends it from outside.
pub(super) type Stream = (Greeted<Incoming>, Arc<Socket>);

/// Of such a connection, with its place among those of hosts.
pub(super) struct Socket {
    pub(super) socket: TcpStream,
    pub(super) _known: Known,
}

/// See the module.
pub(super) struct Arrival {
    house: Arc<House>,
    pub(super) case: Arc<Case>,
    migration: u128,
    number: usize,
    config: config::Ssd,
    /// Who comes with it.
    guest: Option<Arc<Coming>>,
    /// How it is at the source, by the first offer that says so.
    along: OnceLock<Along>,
    quay: Arc<Quay>,
    inner: Mutex<Inner>,
}

struct Inner {
    journal: Journal,
    /// `None`: no block was asked to be taken yet.
    machine: Option<Destination>,
    /// The highest epoch of the ssd that is known here, of former migrations, and the journal that says so.
    seen: Option<u64>,
    former: Option<Vec<u8>>,
    /// The journal could not be written, and what it says is not known yet.
    doubtful: bool,
    /// It is over for good: it was given up before it began, or another migration of the ssd has taken its place.
    dead: bool,
    landing: Option<Landed>,
}

/// Where the blocks land, on a thread of its own.
struct Landed {
    ssd: Arc<Ssd>,
    landing: Arc<Landing>,
    quay: Arc<Quay>,
    arrived: Receiver<Arrived>,
    thread: JoinHandle<()>,
}

impl Landed {
    /// Takes no more blocks; the drive is closed when this returns.
    fn end(self) {
        let Self { ssd, landing, quay, thread, .. } = self;
        landing.end();
        quay.close();
        let _ = thread.join();
        drop(landing);
        drop(ssd);
        // Who is emptying a part of it has let go of it then.
        drop(quay.emptier());
    }
}

/// What comes beside the words of the machine. It has locks of its own: a connection may have to come while the machine waits for what it brings.
#[derive(Default)]
struct Quay {
    /// Where connections that bring blocks are taken.
    open: Mutex<Option<Open>>,
    /// Whose word to empty a part was heard last, held while that is done.
    emptier: Mutex<u64>,
}

struct Open {
    streams: Sender<Stream>,
    /// Of those that are served.
    sockets: Vec<Weak<Socket>>,
}

impl Quay {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emptier(&self) -> MutexGuard<'_, u64> {
        self.emptier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// They go there from now on.
    fn open(&self, streams: Sender<Stream>) {
        *self.lock() = Some(Open { streams, sockets: Vec::new() });
    }

    /// `false`: none are taken now.
    fn take(&self, stream: Stream) -> bool {
        self.lock().as_mut().is_some_and(|Open { streams, sockets }| {
            sockets.retain(|socket| socket.strong_count() > 0);
            sockets.push(Arc::downgrade(&stream.1));
            streams.send(stream).is_ok()
        })
    }

    /// Takes no more, and ends those there are.
    fn close(&self) {
        let Some(Open { sockets, .. }) = self.lock().take() else { return };
        // A source that has nothing more to say on a new connection keeps silent on it, and its guest would stand still as long as that may last.
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            let _gone_already = socket.socket.shutdown(Shutdown::Both);
        }
    }
}

/// What an arrival begins with.
pub(super) struct Expected {
    pub(super) migration: u128,
    pub(super) number: usize,
    pub(super) config: config::Ssd,
    pub(super) store: Arc<dyn Store>,
    pub(super) parties: Parties,
    /// Of this migration, if it is known here already.
    pub(super) record: Option<DestinationRecord>,
    /// The highest epoch of the ssd that is known here, and the journal that says so.
    pub(super) seen: Option<u64>,
    pub(super) former: Option<Vec<u8>>,
    /// Its guest, if that comes with it.
    pub(super) guest: Option<Arc<Coming>>,
}

impl Arrival {
    pub(super) fn new(house: &Arc<House>, expected: Expected) -> Arc<Self> {
        let Expected { migration, number, config, store, parties, record, seen, former, guest } = expected;
        // An engine before this one may not have lived to let its guest run.
        let is_owned = record.is_some_and(|record| record.step == DestinationStep::Owned) && !parties.closed;
        let this = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            // On a thread of its own: it may write, and wait for streams to end.
            let steer = move |steer| {
                if let Some(this) = this.upgrade() {
                    let _ =
                        std::thread::Builder::new().name("steer".to_owned()).spawn(move || this.steer(steer));
                }
            };
            let size_bytes = config.size_bytes.unwrap_or_default();
            let case = Arc::new(Case::new(&config.name, &parties.peer, true, size_bytes, Box::new(steer)));
            let is_closed = parties.closed;
            let journal =
                Journal::new(store, parties, migration.to_be_bytes(), record.map(Record::Destination));
            let mut inner =
                Inner { journal, machine: None, seen, former, doubtful: false, dead: false, landing: None };
            let mut effects = VecDeque::new();
            if let Some(record) = record {
                let (machine, begun) = Destination::recover(record);
                (inner.machine, effects) = (Some(machine), begun.into());
                if is_closed {
                    let message = Message { pledge: record.pledge, word: ToDestination::Closed };
                    inner.handle(DestinationEvent::Message(message));
                }
                show(&case, record.step);
            }
            // What it says to nobody is said again when it is asked.
            effects.retain(|effect| {
                !matches!(effect, DestinationEffect::Send(_) | DestinationEffect::Serve { .. })
            });
            let this = Self {
                house: Arc::clone(house),
                case,
                migration,
                number,
                config,
                guest,
                along: OnceLock::new(),
                quay: Arc::default(),
                inner: Mutex::new(inner),
            };
            let mut inner = this.lock();
            if let Err(error) = this.carry_out(&mut inner, effects) {
                this.case.remark(format!("{error:#}"));
            }
            drop(inner);
            this
        });
        if is_owned {
            // On a thread of its own: nobody waits here for a hypervisor.
            let late = Arc::clone(&this);
            let run = move || {
                if let Err(error) = late.let_guest_run() {
                    late.case.remark(format!("{error:#}"));
                }
            };
            let _ = std::thread::Builder::new().name("guest".to_owned()).spawn(run);
        }
        this
    }

    pub(super) fn migration(&self) -> u128 {
        self.migration
    }

    pub(super) fn comes_with(&self, guest: &Arc<Coming>) -> bool {
        self.guest.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, guest))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An offer of it, and how it will be here.
    pub(super) fn offered(&self, along: &Along) -> There {
        let _said_before = self.along.set(along.clone());
        there(&self.config, along)
    }

    /// A word of the source's, with the limits that the ssd has there by now, and what is to be answered.
    pub(super) fn hear(
        &self,
        epoch: u64,
        word: SourceWord,
        limits: Option<config::Limits>,
    ) -> FromDestination {
        let mut inner = self.lock();
        if let Some(limits) = limits {
            inner.bring(&limits);
        }
        let answered = self.answer(&mut inner, to_destination(self.migration, epoch, word));
        answered_by(answered)
    }

    /// Where the migration is, for a source that asks.
    pub(super) fn say_again(&self) -> FromDestination {
        let mut inner = self.lock();
        let answered = self.check(&mut inner).and_then(|()| match inner.machine {
            Some(_) => self.tell(&mut inner, DestinationEvent::Retry),
            None => Ok(None),
        });
        answered_by(answered)
    }

    fn answer(
        &self,
        inner: &mut Inner,
        message: Message<ToDestination>,
    ) -> anyhow::Result<Option<Message<ToSource>>> {
        // Whatever was promised elsewhere: nothing will come of it here.
        let dropped = Ok(Some(Message { pledge: message.pledge, word: ToSource::Dropped }));
        if inner.dead {
            return dropped;
        }
        self.check(inner)?;
        if let ToDestination::Grant { .. } = message.word
            && matches!(inner.journal.last(), Some(Record::Destination(record)) if record.step == DestinationStep::Ready)
            && let Err(error) = self.check_guest(inner)
        {
            // Its memory is still whole at the source, which gets it back.
            self.case.remark(format!("{error:#}"));
            return self.tell(inner, DestinationEvent::Cancel);
        }
        match (&inner.machine, message.word) {
            (Some(_), _) => self.tell(inner, DestinationEvent::Message(message)),
            (None, ToDestination::Open { round }) => self.begin(inner, message.pledge, round),
            (None, _) => {
                inner.dead = true;
                self.case.end("dropped");
                dropped
            }
        }
    }

    /// Nothing is said by a journal that is not known.
    fn check(&self, inner: &mut Inner) -> anyhow::Result<()> {
        if inner.doubtful {
            inner.read_back()?;
        }
        let Err(error) = self.make_room(inner) else { return Ok(()) };
        self.case.remark(format!("{error:#}"));
        self.tell(inner, DestinationEvent::Cancel).map(drop)
    }

    /// Parts of it that are about to be written anew. `speaker`: who says it, of whom a later one has a higher number.
    ///
    /// A source whose connection broke says it again by another, and sends what comes there once it was answered. What is left of the first must not come after that:
    /// one is done after the other, and none that was overtaken.
    pub(super) fn empty(&self, speaker: u64, parts: &[(u64, u64)]) -> FromDestination {
        // Not held on to: who ends the landing meanwhile has the machine, and waits for the emptier.
        let landing = self.landing(&mut self.lock()).map(|(landing, _)| Arc::downgrade(&landing));
        let mut emptier = self.quay.emptier();
        let emptied = past::check_parts(parts).and_then(|()| {
            ensure!(speaker >= *emptier, "a newer connection has said so");
            *emptier = speaker;
            let landing = landing?.upgrade().context("no blocks of it are taken here any more")?;
            parts
                .iter()
                .try_for_each(|&(start, end)| landing.empty(start..end))
                .context("it cannot be emptied")
        });
        answered_by(emptied.map(|()| None))
    }

    /// What has come is one of its snapshots.
    pub(super) fn keep(&self, name: &str) -> FromDestination {
        let mut inner = self.lock();
        let kept = self.landing(&mut inner).and_then(|(_, ssd)| {
            let is_told =
                self.along.get().is_some_and(|along| along.snapshots.iter().any(|told| told == name));
            ensure!(is_told, "the offer has no snapshot \"{name}\"");
            let volume = ssd.drive.volume().context("it is in no pool here")?;
            volume.keep_come(name, self.migration.to_be_bytes())
        });
        answered_by(kept.map(|()| None))
    }

    /// Where blocks of it land now.
    fn landing(&self, inner: &mut Inner) -> anyhow::Result<(Arc<Landing>, Arc<Ssd>)> {
        self.check(inner)?;
        let takes = matches!(inner.journal.last(), Some(Record::Destination(record)) if record.step == DestinationStep::Incoming);
        let landed = inner.landing.as_ref().filter(|_| takes && !inner.dead);
        let landed = landed.context("no blocks of it are taken here now")?;
        Ok((Arc::clone(&landed.landing), Arc::clone(&landed.ssd)))
    }

    /// Another migration of the ssd takes this one's place.
    ///
    /// # Errors
    /// It is not over.
    pub(super) fn give_way(&self) -> anyhow::Result<()> {
        let mut inner = self.lock();
        ensure!(!inner.doubtful, "its journal cannot be read or written: see `godwit migration list`");
        if let Some(Record::Destination(record)) = inner.journal.last()
            && matches!(record.step, DestinationStep::Incoming | DestinationStep::Ready)
        {
            super::over(inner.journal.parties(), &record)?;
        }
        inner.end_landing();
        inner.dead = true;
        self.case.end("dropped");
        Ok(())
    }

    /// A connection that brings blocks. `false`: none are taken now.
    pub(super) fn take(&self, stream: Stream) -> bool {
        self.quay.take(stream)
    }

    fn steer(&self, steer: Steer) {
        let event = match steer {
            Steer::Cancel => DestinationEvent::Cancel,
            Steer::Force => DestinationEvent::Force,
            Steer::Pause | Steer::Resume | Steer::Bandwidth(_) => return,
        };
        let mut inner = self.lock();
        let done = match (&inner.machine, inner.doubtful) {
            (Some(_), _) => self.tell(&mut inner, event).map(drop),
            (None, true) => self.check(&mut inner).and_then(|()| self.tell(&mut inner, event)).map(drop),
            (None, false) => {
                inner.dead = true;
                self.case.end("dropped");
                Ok(())
            }
        };
        if let Err(error) = done {
            self.case.remark(format!("{error:#}"));
        }
    }

    fn begin(
        &self,
        inner: &mut Inner,
        pledge: Pledge,
        round: u32,
    ) -> anyhow::Result<Option<Message<ToSource>>> {
        let (machine, effects) =
            Destination::begin(pledge, round, inner.seen).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        let turn = self.house.turn_of(self.number);
        let mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What was looked at when it was offered is as it was: nobody has come or gone since.
        ensure!(
            inner.journal.store().read()? == inner.former && self.house.ssd(self.number).is_none(),
            "the ssd has been moved since this was offered: offer it again"
        );
        self.house.forget_former(self.number);
        // Room first: a source hears at once that there is none, and nothing is on record.
        inner.end_landing();
        inner.landing = Some(self.land()?);
        inner.machine = Some(machine);
        let answer = self.carry_out(inner, effects.into());
        drop(mine);
        answer
    }

    fn tell(&self, inner: &mut Inner, event: DestinationEvent) -> anyhow::Result<Option<Message<ToSource>>> {
        let effects = inner.handle(event);
        self.carry_out(inner, effects.into())
    }

    /// Carries out all that follows; returns what is to be answered.
    fn carry_out(
        &self,
        inner: &mut Inner,
        mut effects: VecDeque<DestinationEffect>,
    ) -> anyhow::Result<Option<Message<ToSource>>> {
        let mut answer = None;
        while let Some(effect) = effects.pop_front() {
            match effect {
                DestinationEffect::Write(record) => {
                    inner.write(record)?;
                    show(&self.case, record.step);
                    self.house.say_standing(self.number);
                    effects.extend(inner.handle(DestinationEvent::Written));
                }
                DestinationEffect::Send(message) => answer = Some(message),
                DestinationEffect::Settle { round } => {
                    let event = match self.settle(inner) {
                        Ok(()) => DestinationEvent::Settled { round },
                        Err(error) => {
                            self.case.remark(format!("{error:#}"));
                            DestinationEvent::Cancel
                        }
                    };
                    effects.extend(inner.handle(event));
                }
                DestinationEffect::Serve { .. } => {
                    let turn = self.house.turn_of(self.number);
                    let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    inner.end_landing();
                    let served = self.house.arrive(self.number);
                    let served = served.context("it is owned here, and cannot be served");
                    if let Err(error) = served.and_then(|()| self.let_guest_run()) {
                        let why = format!("{error:#}");
                        self.case.remark(why.clone());
                        self.house.keeper.fault(Some(self.number), why);
                    } else if let Some(ssd) = self.house.ssd(self.number) {
                        gauge::watch(&self.case, &ssd, 0);
                    }
                }
                DestinationEffect::Stop => self.house.depart(self.number),
                DestinationEffect::Wipe => self.drop_it(inner),
                DestinationEffect::Refuse(refusal) => _ = self.case.remark(refusal.to_string()),
                DestinationEffect::Raise(alarm) => {
                    let text = alarm.to_string();
                    if self.case.remark(text.clone()) {
                        self.house.keeper.fault(Some(self.number), text);
                    }
                }
            }
        }
        inner.note_closed()?;
        Ok(answer)
    }

    /// Nothing of it is used any more. It is wiped on a thread of its own: the source may wait for the answer, and its guest with it.
    fn drop_it(&self, inner: &mut Inner) {
        if let Some(guest) = &self.guest {
            guest.give_up();
        }
        inner.end_landing();
        // A controller that was loaded is nobody's.
        if self.house.passenger(self.number).is_some_and(|it| it.stands_still()) {
            self.house.end_wait_of(self.number);
        }
        let (house, case, number) = (Arc::clone(&self.house), Arc::clone(&self.case), self.number);
        let (store, migration) = (Arc::clone(inner.journal.store()), self.migration.to_be_bytes());
        let wipe = move || {
            if let Err(error) = house.wipe(number, store.as_ref(), migration) {
                case.remark(format!(
                    "what came of it is not wiped: {error:#}; restart the engine to try again"
                ));
            }
            // For the next try, by a hypervisor that was started anew.
            house.await_guest(number);
        };
        if let Err(error) = std::thread::Builder::new().name("wipe".to_owned()).spawn(wipe) {
            self.case.remark(format!(
                "what came of it is not wiped: no thread is left: {error}; restart the engine to try again"
            ));
        }
    }

    /// Whether the guest that goes with the ssd is here.
    fn check_guest(&self, inner: &Inner) -> anyhow::Result<()> {
        match (&self.guest, &inner.journal.parties().hypervisor) {
            (Some(guest), _) => guest.check_whole(),
            (None, Some(path)) => check_came(Path::new(path)),
            (None, None) => Ok(()),
        }
    }

    /// The ssd is served here: so may its guest be, if this was what it waited for.
    fn let_guest_run(&self) -> anyhow::Result<()> {
        match (&self.guest, &self.config.hypervisor) {
            (Some(guest), _) => guest.owned(&self.house, &self.config.name),
            // Its memory may have come while an engine before this one was here.
            (None, Some(path)) => run_what_came(&self.house, path),
            (None, None) => Ok(()),
        }
    }

    /// Where blocks land, for a machine that takes them and has no place since its engine began.
    fn make_room(&self, inner: &mut Inner) -> anyhow::Result<()> {
        let takes = matches!(inner.journal.last(), Some(Record::Destination(record)) if record.step == DestinationStep::Incoming);
        if takes && inner.machine.is_some() && inner.landing.is_none() {
            inner.landing = Some(self.land()?);
        }
        Ok(())
    }

    fn land(&self) -> anyhow::Result<Landed> {
        // The daemon may have been started with another configuration since it was offered.
        self.along.get().map_or(Ok(()), |along| check_key(&self.config, along))?;
        let ssd = self.house.open_beside(self.number, &self.config)?;
        let pages = pages_of(&ssd).context("its size is no multiple of 4 KiB: nothing can be moved there")?;
        let landing = Landing::new(&ssd, pages, PORTS).context("its space cannot be made empty")?;
        let landing = Arc::new(landing);
        let lands = Arc::clone(&landing);
        let (streams, coming) = channel();
        let (done, arrived) = channel();
        let migration = self.migration.to_be_bytes();
        let receive = move || receive(migration, &lands, pages, &coming, &done);
        let thread = std::thread::Builder::new().name("landing".to_owned()).spawn(receive)?;
        let quay = Arc::clone(&self.quay);
        quay.open(streams);
        Ok(Landed { ssd, landing, quay, arrived, thread })
    }

    /// All that came is durable, its record too, and can be served here.
    fn settle(&self, inner: &Inner) -> anyhow::Result<()> {
        let landed = inner
            .landing
            .as_ref()
            .context("the engine was restarted in between: nothing of the copy is known any more")?;
        let Arrived { missing, state } = landed
            .arrived
            .recv_timeout(PATIENCE)
            .context("not all of it has come, though the source says so")?;
        ensure!(missing.count() == 0, "the source keeps back pages: this build fetches none later");
        let state = match (&self.guest, self.house.passenger(self.number)) {
            (Some(_), Some(passenger)) => {
                let controller = ControllerV1::from_bytes(&state).context("the state of its controller")?;
                passenger.load(&state).context("its controller cannot take the state that came")?;
                controller.record.to_bytes()?
            }
            _ => state,
        };
        match (&self.config.state, state.is_empty()) {
            (Some(path), false) => {
                let record = fit_record(&landed.ssd, &state)?;
                replace(path, &record).with_context(|| format!("{} cannot be written", path.display()))
            }
            (Some(path), true) => remove(path),
            (None, false) => bail!("it has a record, and no `state` here: give it one in the configuration"),
            (None, true) => Ok(()),
        }
    }
}

impl Inner {
    fn end_landing(&mut self) {
        if let Some(landed) = self.landing.take() {
            landed.end();
        }
    }

    fn handle(&mut self, event: DestinationEvent) -> Vec<DestinationEffect> {
        self.machine.as_mut().map_or_else(Vec::new, |machine| machine.handle(event))
    }

    /// What the ssd is held to when it comes. Once it is owned here that is this host's affair.
    fn bring(&mut self, limits: &config::Limits) {
        let comes = match self.journal.last() {
            None => true,
            Some(Record::Destination(record)) => {
                matches!(record.step, DestinationStep::Incoming | DestinationStep::Ready)
            }
            Some(Record::Source(_)) => false,
        };
        if comes {
            self.journal.bring(saved(&limits.within_bounds()));
        }
    }

    fn write(&mut self, record: DestinationRecord) -> anyhow::Result<()> {
        self.journal.write(Record::Destination(record)).inspect_err(|_| {
            // As a crash would be: the machine goes on from what is there, once that is known.
            (self.machine, self.doubtful) = (None, true);
            let _ = self.read_back();
        })
    }

    fn read_back(&mut self) -> anyhow::Result<()> {
        let there = self.journal.read_back()?;
        self.doubtful = false;
        self.machine = match there {
            Some(Record::Destination(record)) => Some(Destination::recover(record).0),
            _ => None,
        };
        if self.machine.is_none() {
            self.end_landing();
        }
        Ok(())
    }

    /// The source knows how it ended: an engine that starts anew is to know that.
    fn note_closed(&mut self) -> anyhow::Result<()> {
        if self.machine.as_ref().is_some_and(Destination::is_closed) {
            self.journal.note(|parties| parties.closed = true)?;
        }
        Ok(())
    }
}

fn answered_by(answered: anyhow::Result<Option<Message<ToSource>>>) -> FromDestination {
    match answered {
        Ok(answer) => answer.map_or(FromDestination::Noted, FromDestination::step),
        Err(error) => FromDestination::No { why: format!("{error:#}") },
    }
}

fn show(case: &Case, step: DestinationStep) {
    match step {
        DestinationStep::Incoming => case.show("incoming"),
        DestinationStep::Ready => case.show("ready"),
        DestinationStep::Owned => case.end("arrived"),
        DestinationStep::Forced => case.end("forced"),
        DestinationStep::Dropped => case.end("dropped"),
        DestinationStep::Superseded { .. } => case.end("superseded"),
    }
}

/// A state of an earlier life of the ssd here is not its any more.
fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("{} is of an earlier time, and cannot be removed", path.display())),
        _ => Ok(()),
    }
}

/// Serves each stream on a thread of its own, until no more can come.
fn receive(
    migration: [u8; 16],
    landing: &Landing,
    pages: u64,
    streams: &Receiver<Stream>,
    done: &Sender<Arrived>,
) {
    let accept = |plan: &transfer::frame::Plan| {
        if plan.pages == pages {
            Ok(())
        } else {
            Err(format!("it has {pages} pages here and {} at the source", plan.pages))
        }
    };
    let pages = Pages::new(migration, Limits::default(), landing, &accept);
    std::thread::scope(|scope| {
        for (stream, socket) in streams {
            let (pages, done) = (&pages, done.clone());
            scope.spawn(move || {
                // Closed when it is served, and not before.
                let _socket = socket;
                if let Err(fault) = pages.serve(stream) {
                    tracing::info!(%fault, "a stream of a migration has ended");
                }
                if let Some(arrived) = pages.arrived() {
                    let _ = done.send(arrived);
                }
            });
        }
        pages.cancel();
    });
}
