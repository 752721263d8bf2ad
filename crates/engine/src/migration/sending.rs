//! A migration's source: drives the machine that says who owns the ssd, and has the blocks copied meanwhile.
//!
//! ```text
//!  inbox: the copy, an operator, time --> commit::Source --> effects: journal, words, freeze, stop, wipe
//!                                             ^-- the answer to each word
//! ```
//! One thread a migration. It says a word and waits for the answer, so the two hosts are never further apart than one word.

use super::along;
use super::blocks::{hold, thaw};
use super::case::Case;
use super::copy::Copy;
use super::guest::{self, Line as GuestLine, PartWord};
use super::journal::Journal;
use super::line::{Heard, Line};
use super::means::{Means, SILENCE};
use super::past::Past;
use crate::passenger::Passenger;
use crate::run::House;
use crate::terms::Hold;
use api::control::{MigrationTerms, Steer};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use transfer::commit::{Record, Source, SourceEffect, SourceEvent, SourceStep, VmWord};

/// What awaits an answer is said again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// How often an operator's word, and the copy's, is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How long the guest may stand still for a destination that does not answer, before the grant.
const STUN_MAX: Duration = Duration::from_secs(5);

/// What a migration from here needs.
pub(super) struct Sending {
    pub(super) house: Arc<House>,
    pub(super) means: Arc<Means>,
    pub(super) case: Arc<Case>,
    pub(super) number: usize,
    pub(super) journal: Journal,
    pub(super) line: Line,
    pub(super) terms: MigrationTerms,
    /// Its snapshots that go along, oldest first.
    pub(super) snapshots: Vec<String>,
    pub(super) steers: Receiver<Steer>,
    /// Of its guest's, if that moves with it.
    pub(super) guest: Option<GuestLine>,
    /// For its copy.
    pub(super) events: Sender<Event>,
    /// What its copy says, and its guest.
    pub(super) inbox: Receiver<Event>,
}

/// What the copy says, and the guest that moves with the ssd.
pub(super) enum Event {
    /// Little is left.
    Close,
    /// The guest stands still, and the rest is on its way.
    Rested,
    /// There will be no copy, or no guest.
    Failed(String),
    /// The guest stands still.
    Held,
    /// Its hypervisor's word after it was let go on.
    Vm(VmWord),
}

/// The copy's thread, and how it is told to go on.
struct Copying {
    go: Sender<()>,
    thread: JoinHandle<()>,
}

/// How far it is, beside what the machine knows.
struct Course {
    copying: Option<Copying>,
    /// Since when the guest stands still for it.
    frozen: Option<Instant>,
    /// The round that the guest was let go on in.
    round: u32,
    /// As the journal has it.
    step: Option<SourceStep>,
    /// The other side knows how it ended.
    closed: bool,
    /// It was said once that the ssd was taken back.
    told: bool,
    /// An operator takes it here, once what the destination said is dealt with.
    forced: bool,
    /// When it was last asked how it is.
    asked: Instant,
}

/// The journal does not take a record: what it says is read back.
struct Unwritten(anyhow::Error);

impl Course {
    fn is_over(&self) -> bool {
        match self.step {
            Some(SourceStep::Cancelled | SourceStep::TakenBackHeard) => true,
            Some(SourceStep::Gone | SourceStep::Superseded) => self.closed,
            // It is owned here, whoever hears of it: another migration may begin, and takes the journal.
            Some(SourceStep::TakenBack) => self.told,
            _ => false,
        }
    }

    /// The copy's thread has ended when this returns, and nothing is noted for it any more.
    fn end_copy(&mut self, case: &Case) {
        if let Some(Copying { go, thread }) = self.copying.take() {
            case.control.cancel();
            drop(go);
            let _ = thread.join();
        }
    }
}

impl Sending {
    /// Drives it to its end.
    pub(super) fn run(mut self, mut source: Source, effects: Vec<SourceEffect>, step: Option<SourceStep>) {
        let asked = Instant::now();
        let mut course = Course {
            copying: None,
            frozen: None,
            round: 0,
            step,
            closed: false,
            told: false,
            forced: false,
            asked,
        };
        let mut todo = VecDeque::from(effects);
        loop {
            while let Some(effect) = todo.pop_front() {
                match self.carry_out(&mut course, effect) {
                    Ok(event) => todo.extend(event.into_iter().flat_map(|event| source.handle(event))),
                    Err(Unwritten(error)) => {
                        self.case.remark(format!("{error:#}"));
                        std::thread::sleep(AGAIN);
                        // As after a crash, the freeze and the copy included.
                        let Some((machine, effects, step)) = self.recover() else { return };
                        course.end_copy(&self.case);
                        (source, todo, course.step) = (machine, effects.into(), Some(step));
                    }
                }
            }
            if course.is_over() {
                return self.finish(&mut course);
            }
            let event = self.next(&mut course);
            todo.extend(event.into_iter().flat_map(|event| source.handle(event)));
        }
    }

    /// The machine as the journal has it, once that can be known. `None`: it has not begun.
    fn recover(&mut self) -> Option<(Source, Vec<SourceEffect>, SourceStep)> {
        loop {
            match self.journal.read_back() {
                Ok(Some(Record::Source(record))) => {
                    let (source, effects) = guest::recover(&self.house, self.journal.parties(), record);
                    return Some((source, effects, record.step));
                }
                Ok(_) => {
                    self.case.end("failed");
                    return None;
                }
                Err(error) => {
                    let why =
                        format!("nobody can say who owns it until its journal can be written: {error:#}");
                    if self.case.remark(why.clone()) {
                        self.house.keeper.fault(Some(self.number), why);
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }

    /// What the machine hears next.
    fn next(&mut self, course: &mut Course) -> Option<SourceEvent> {
        match self.steers.try_recv() {
            // With a guest all of its ssds are, and its hypervisor's migration.
            Ok(Steer::Cancel) => match &self.guest {
                Some(guest) if course.step == Some(SourceStep::Offered) => {
                    guest.say(PartWord::Cancel);
                    return None;
                }
                _ => return Some(SourceEvent::Cancel),
            },
            Ok(Steer::Force) if course.step == Some(SourceStep::Granted) => {
                // What can be known is asked once more before: a destination that says that it has dropped it, or owns it, leaves nothing to force.
                course.forced = true;
                self.line.set_patience(STUN_MAX);
                let heard = self.line.ping();
                return self.hear(course, heard);
            }
            Ok(Steer::Force) => return Some(SourceEvent::Force),
            _ => {}
        }
        if std::mem::take(&mut course.forced) {
            self.warn_of_force(course);
            return Some(SourceEvent::Force);
        }
        match self.inbox.recv_timeout(LOOK) {
            Ok(Event::Close) => match &self.guest {
                None => Some(SourceEvent::SwitchOver),
                Some(guest) => {
                    guest.say(PartWord::Near);
                    None
                }
            },
            Ok(Event::Held) => Some(SourceEvent::SwitchOver),
            Ok(Event::Vm(word)) => Some(SourceEvent::Vm { round: course.round, word }),
            Ok(Event::Rested) => Some(SourceEvent::Frozen),
            // The destination said that it has all of it, and closes the streams perhaps before they have heard.
            Ok(Event::Failed(_)) if course.step != Some(SourceStep::Offered) => None,
            Ok(Event::Failed(why)) => {
                self.case.remark(why);
                Some(SourceEvent::Cancel)
            }
            Err(_)
                if self.guest.is_none()
                    && course.frozen.is_some_and(|since| since.elapsed() > STUN_MAX)
                    && course.step == Some(SourceStep::Offered) =>
            {
                self.case.remark("the destination did not take the rest while the guest stood still: the guest goes on here");
                Some(SourceEvent::Cancel)
            }
            Err(_) if course.asked.elapsed() < AGAIN => None,
            Err(_) => {
                course.asked = Instant::now();
                // While nothing awaits an answer: whether the destination has given up, or has heard how it ended.
                let is_idle = course.copying.is_some() && course.frozen.is_none();
                if is_idle || matches!(course.step, Some(SourceStep::Gone | SourceStep::Superseded)) {
                    let heard = self.line.ping();
                    return self.hear(course, heard);
                }
                Some(SourceEvent::Retry)
            }
        }
    }

    fn warn_of_force(&self, course: &Course) {
        if course.step != Some(SourceStep::Granted) {
            return;
        }
        let peer = &self.case.peer;
        let guest =
            if self.journal.parties().hypervisor.is_some() { ", and its guest runs twice" } else { "" };
        let why = format!(
            "taken here by an operator's force: {peer} did not say whether it has it. If it is served there by now, it is used twice{guest}, until the two \
             hosts have talked: end that there at once. What was written there is in its copy only"
        );
        self.case.remark(why.clone());
        self.house.keeper.fault(Some(self.number), why);
    }

    fn hear(&self, course: &mut Course, heard: io::Result<Heard>) -> Option<SourceEvent> {
        match heard {
            Ok(Heard::Step(message)) => return Some(SourceEvent::Message(message)),
            // It has nothing to say to the last word there is.
            Ok(Heard::Noted) => {
                course.closed = matches!(course.step, Some(SourceStep::Gone | SourceStep::Superseded))
            }
            Ok(Heard::No(why)) => {
                self.case.remark(why);
                // It takes nothing: that ends what has not begun.
                let is_opening = course.step == Some(SourceStep::Offered) && course.copying.is_none();
                return is_opening.then_some(SourceEvent::Cancel);
            }
            Err(error) => _ = self.case.remark(format!("{} does not answer: {error}", self.case.peer)),
        }
        None
    }

    /// One effect, and what the machine hears of it.
    fn carry_out(
        &mut self,
        course: &mut Course,
        effect: SourceEffect,
    ) -> Result<Option<SourceEvent>, Unwritten> {
        Ok(match effect {
            SourceEffect::Write(record) => {
                self.journal.write(Record::Source(record)).map_err(Unwritten)?;
                self.arrived_at(course, record.step);
                Some(SourceEvent::Written)
            }
            SourceEffect::Send(message) => {
                // The guest does not stand still for as long as a network may be silent.
                self.line.set_patience(if course.frozen.is_some() { STUN_MAX } else { SILENCE });
                let heard = self.line.say(message, self.house.limits_of(self.number));
                course.told |= course.step == Some(SourceStep::TakenBack);
                self.hear(course, heard)
            }
            SourceEffect::Copy { round } => self.start_copy(course, round),
            SourceEffect::Freeze => {
                if let Some(copying) = &course.copying {
                    self.case.show("switching over");
                    course.frozen = Some(Instant::now());
                    if let Some(Err(error)) = self.passenger().map(|passenger| passenger.halt()) {
                        self.case.remark(format!("its controller does not stop for its guest: {error:#}"));
                        return Ok(Some(SourceEvent::Cancel));
                    }
                    let _ = copying.go.send(());
                } else if let Some(ssd) = self.house.ssd(self.number) {
                    // Its guest stands still since before this engine began.
                    hold(&ssd, Hold::Frozen, self.house.duty.crew());
                }
                None
            }
            SourceEffect::ContinueVm { round } => match &self.guest {
                // No hypervisor moves its guest: whoever uses it here is hung up on.
                None => Some(SourceEvent::Vm { round, word: VmWord::Completed }),
                Some(guest) => {
                    course.round = round;
                    guest.say(PartWord::Ready);
                    None
                }
            },
            SourceEffect::Thaw { .. } => {
                self.thaw(course);
                None
            }
            SourceEffect::Stop => {
                self.house.depart(self.number);
                course.end_copy(&self.case);
                None
            }
            SourceEffect::Wipe => {
                self.wipe();
                None
            }
            SourceEffect::Refuse(refusal) => {
                self.case.remark(refusal.to_string());
                None
            }
            SourceEffect::Raise(alarm) => {
                let text = alarm.to_string();
                if self.case.remark(text.clone()) {
                    self.house.keeper.fault(Some(self.number), text);
                }
                None
            }
        })
    }

    fn arrived_at(&self, course: &mut Course, step: SourceStep) {
        course.step = Some(step);
        if step == SourceStep::Gone
            && let Some(since) = course.frozen.take()
        {
            self.case.stood_still(since.elapsed());
        }
        self.house.say_standing(self.number);
        self.case.show(match step {
            SourceStep::Offered => "copying",
            SourceStep::Granted => "granted",
            SourceStep::Gone => "moved",
            SourceStep::Cancelling => "cancelling",
            SourceStep::Cancelled => "cancelled",
            SourceStep::TakenBack | SourceStep::TakenBackHeard => "taken back",
            SourceStep::Superseded => "superseded",
        });
    }

    /// The guest goes on here; what was copied for it is worth nothing.
    fn thaw(&self, course: &mut Course) {
        course.frozen = None;
        self.call_back();
        if let Some(ssd) = self.house.ssd(self.number) {
            if let Some(passenger) = self.passenger() {
                // A byte that its hypervisor stores late, of pages it was told of, is an old one.
                if let Err(error) = passenger.barrier() {
                    self.case.remark(format!(
                        "its hypervisor may not have stored all that it was told: {error:#}"
                    ));
                }
                if let Err(error) = passenger.run() {
                    self.case.remark(format!("its controller does not go on: {error:#}"));
                }
            }
            if course.copying.is_some() {
                // First: what the guest writes from here on must not make the round whole over there, of which an operator may take it by force.
                self.case.control.cancel();
            }
            thaw(&ssd, self.house.duty.crew());
            course.end_copy(&self.case);
            // The copy may have heard only now that it was to freeze.
            thaw(&ssd, self.house.duty.crew());
        } else if let Err(error) = self.house.arrive(self.number) {
            self.case.remark(format!("{error:#}"));
        }
    }

    /// A guest whose move an engine before this one began may stand still in its hypervisor.
    fn call_back(&self) {
        let Some(path) = self.journal.parties().hypervisor.clone().filter(|_| self.guest.is_none()) else {
            return;
        };
        let (house, number, case) = (Arc::clone(&self.house), self.number, Arc::clone(&self.case));
        let call = move || {
            if let Err(error) = guest::call_back(&house, Path::new(&path)) {
                let why = format!("{error:#}");
                case.remark(why.clone());
                house.keeper.fault(Some(number), why);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("guest".to_owned()).spawn(call) {
            self.case.remark(format!("its guest may stand still: no thread is left: {error}"));
        }
    }

    /// Its controller, if that goes with its guest.
    fn passenger(&self) -> Option<Passenger> {
        self.guest.as_ref().and_then(|_| self.house.passenger(self.number))
    }

    fn start_copy(&mut self, course: &mut Course, round: u32) -> Option<SourceEvent> {
        let ssd = self.house.ssd(self.number).filter(|_| round == 1 && course.copying.is_none());
        // A copy whose last pass has begun cannot be opened again (0032), nor one whose engine was killed: start another migration.
        let Some(ssd) = ssd else {
            self.case.remark("its copy was interrupted: start the migration anew");
            return Some(SourceEvent::Cancel);
        };
        let (go, gone) = channel();
        let table = self.guest.as_mut().and_then(|guest| guest.table.take());
        let controller = self.passenger().zip(table);
        let snapshots = std::mem::take(&mut self.snapshots);
        let past = (!snapshots.is_empty()).then(|| Past { snapshots, line: self.line.another() });
        let copy = Copy {
            ssd,
            crew: Arc::clone(self.house.duty.crew()),
            clock: self.house.clock,
            records: self.house.records(),
            means: Arc::clone(&self.means),
            case: Arc::clone(&self.case),
            migration: self.line.migration(),
            terms: self.terms,
            past,
            controller,
            events: self.events.clone(),
            go: gone,
        };
        match std::thread::Builder::new().name("copy".to_owned()).spawn(move || copy.run()) {
            Ok(thread) => course.copying = Some(Copying { go, thread }),
            Err(error) => _ = self.events.send(Event::Failed(format!("no thread for its copy: {error}"))),
        }
        None
    }

    /// Nothing of a former owner is left here. Done again after a crash; a copy that is to be kept stays, marked by its journal.
    fn wipe(&mut self) {
        let parties = self.journal.parties();
        if parties.keep || parties.wiped {
            return;
        }
        let migration = self.line.migration();
        let wiped = self.house.wipe(self.number, self.journal.store().as_ref(), migration);
        match wiped.and_then(|()| self.journal.note(|parties| parties.wiped = true)) {
            Ok(()) => {
                tracing::info!(ssd = self.case.ssd, "what was left of it here is wiped");
                self.tell_of_what_stays();
            }
            Err(error) => {
                let why = format!(
                    "it has moved, and what is left of it here is not wiped: {error:#}; restart the engine to try again"
                );
                self.case.remark(why.clone());
                self.house.keeper.fault(Some(self.number), why);
            }
        }
    }

    /// Its snapshots that the other host does not have, or that somebody made a clone of.
    fn tell_of_what_stays(&self) {
        let config = self.house.config(&self.case.ssd);
        let pools = self.house.pools();
        let Some(config) = config else { return };
        let stay = pools.map_or_else(|_| Vec::new(), |pools| along::snapshots(&config, pools));
        if !stay.is_empty() {
            self.case.remark(along::that_stay(&stay));
        }
    }

    /// The hypervisor of a guest that has gone with all of its ssds, for one whose move an engine before this one began.
    fn end_hypervisor(&self, course: &Course) {
        let path = self.journal.parties().hypervisor.as_deref().map(Path::new);
        if let Some(path) = path.filter(|_| self.guest.is_none() && course.step == Some(SourceStep::Gone))
            && let Err(error) = guest::end_what_left(&self.house, path)
        {
            self.case.remark(format!("its guest has gone, and its hypervisor here has not ended: {error:#}"));
        }
    }

    fn finish(&mut self, course: &mut Course) {
        course.end_copy(&self.case);
        // An engine that starts anew need not say it again.
        if course.closed
            && let Err(error) = self.journal.note(|parties| parties.closed = true)
        {
            tracing::warn!(ssd = self.case.ssd, error = format!("{error:#}"), "its journal");
        }
        if let Some(guest) = &mut self.guest {
            guest.moved = course.step == Some(SourceStep::Gone);
        }
        // It may come back, with its guest.
        self.house.await_guest(self.number);
        self.end_hypervisor(course);
        self.case.end(match course.step {
            Some(SourceStep::Gone) => "moved",
            Some(SourceStep::Superseded) => "superseded",
            Some(SourceStep::TakenBack | SourceStep::TakenBackHeard) => "taken back",
            _ => "cancelled",
        });
    }
}
