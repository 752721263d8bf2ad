//! Who drives the source's machine: what the engine does for its effects (`engine/src/migration/sending.rs`), one at a time.

use std::sync::Arc;
use std::time::Duration;

use dirty::{Map, PAGE_BYTES};
use memory::Iova;
use transfer::commit::{
    Former, Message, Record, Source, SourceEffect, SourceEvent, SourceRecord, SourceStep, ToDestination,
    VmWord,
};
use transfer::control::Control;
use transfer::copy::Options;
use transfer::frame::{Limits, Plan};

use super::actors::{Ask, Role, ask};
use super::broken::Broken;
use super::ends::{Blocks, Time, copy};
use super::host::{Copying, Host, Sending};
use super::wire::Word;
use super::{CAPACITY, MIGRATIONS_MAX, World};
use crate::guest::{Checked, RAM_BYTES, violation};

/// What awaits an answer is said again so often.
pub(super) const AGAIN_NS: u64 = 30_000_000;
/// How long the guest stands still for a destination.
const STUN_NS: u64 = 900_000_000;

impl World {
    /// Begins to move the ssd to the other host, if it can be.
    pub(super) fn begin_migration(&mut self) {
        if self.calm || self.migrations >= MIGRATIONS_MAX || !self.rng.one_in(300) {
            return;
        }
        let Some(at) = (0..2).find(|at| self.hosts[*at].serves()) else { return };
        let guest_here = self.vm.place == at && self.vm.running;
        if !guest_here || self.hosts[at].journal.is_writing() || self.actors.any(at, Role::Copy) {
            return;
        }
        let read = self.hosts[at].journal.read().map(|(_, record)| record);
        let number = self.migrations + 1;
        let process = self.process(at);
        let idle = process.sending.as_ref().is_none_or(Sending::is_over)
            && process.arriving.as_ref().is_none_or(|it| it.is_over() && it.machine.is_closed());
        if !idle {
            return;
        }
        let (held, former) = match (&read, &process.arriving) {
            (Some(Record::Source(record)), _) => (record.held, Some(Former::From(record))),
            (Some(Record::Destination(record)), Some(arriving)) => {
                (record.pledge.epoch, Some(Former::To(&arriving.machine)))
            }
            (Some(Record::Destination(_)), None) => return,
            (None, _) => (1, None),
        };
        let Ok((machine, effects)) = Source::begin([number; 16], held, former) else { return };
        self.migrations = number;
        self.report.migrations += 1;
        self.guest.say(|| format!(">>> migration {number}: from host {at}"));
        let process = self.process(at);
        process.arriving = None;
        process.sending = Some(Sending::new(machine, effects, None));
    }

    /// One effect, or one event, or nothing.
    pub(super) fn sending_turn(&mut self, at: usize) -> Checked {
        let copies = self.actors.any(at, Role::Copy);
        let Host { process, outside, .. } = &mut self.hosts[at];
        let Some(sending) = process.as_mut().and_then(|process| process.sending.as_mut()) else {
            return Ok(());
        };
        if sending.ending {
            if copies {
                return Ok(());
            }
            (sending.ending, sending.copying) = (false, None);
            if let Some(watch) = &mut outside.watch {
                watch.set(None);
            }
            self.wire.close_all(0, self.now);
            return Ok(());
        }
        if let Some(effect) = sending.todo.pop_front() {
            self.guest.say(|| format!("host {at}: {effect:?}"));
            return self.send_effect(at, effect);
        }
        if let Some(event) = sending.inbox.pop_front() {
            let effects = sending.machine.handle(event);
            self.guest.say(|| format!("host {at}: hears {event:?}"));
            sending.todo.extend(effects);
            return Ok(());
        }
        self.sending_waits(at)
    }

    fn send_effect(&mut self, at: usize, effect: SourceEffect) -> Checked {
        self.point(at, 40);
        let now = self.now;
        match effect {
            SourceEffect::Write(record) => self.write_source(at, record),
            SourceEffect::Send(message) => self.wire.say(1 - at, Word::ToDestination(message), now),
            SourceEffect::Copy { round } => self.start_copy(at, round),
            SourceEffect::Freeze => {
                let halts = self.broken != Some(Broken::NotHalted);
                let process = self.process(at);
                process.frozen = true;
                if let Some(engine) = process.engine.as_mut().filter(|_| halts) {
                    engine.halt();
                }
                if let Some(sending) = &mut process.sending {
                    sending.frozen_at = Some(now);
                }
            }
            SourceEffect::ContinueVm { round } => {
                if let Some(sending) = &mut self.process(at).sending {
                    sending.went_on = Some((round, now));
                }
            }
            SourceEffect::Thaw { epoch } => return self.thaw(at, epoch),
            SourceEffect::Stop => {
                let process = self.process(at);
                process.engine = None;
                self.end_copy(at);
                self.hosts[at].outside.disk.orphan();
                self.hosts[at].power_off_controller();
                if self.vm.place != at {
                    self.hosts[at].has_memory = false;
                }
            }
            SourceEffect::Wipe => self.hosts[at].wipe(),
            SourceEffect::Refuse(_) => {}
            SourceEffect::Raise(_) => {
                if let Some(sending) = &mut self.process(at).sending {
                    sending.alarmed = true;
                }
            }
        }
        Ok(())
    }

    fn write_source(&mut self, at: usize, record: SourceRecord) {
        if self.broken == Some(Broken::GrantBeforeJournal) && record.step == SourceStep::Granted {
            let word = ToDestination::Grant { round: record.round };
            let message = Message { pledge: record.pledge, word };
            self.wire.say(1 - at, Word::ToDestination(message), self.now);
        }
        let lies = self.broken == Some(Broken::RecordNotDurable);
        self.hosts[at].journal.begin(Record::Source(record), false, lies);
        if let Some(sending) = &mut self.process(at).sending {
            sending.step = Some(record.step);
            sending.alarmed = false;
        }
        match record.step {
            SourceStep::Gone => _ = self.crossed.insert(record.pledge.migration),
            SourceStep::TakenBack | SourceStep::TakenBackHeard => {
                self.taken_back.insert(record.pledge.migration);
            }
            _ => {}
        }
        if lies {
            self.written(at);
        }
    }

    /// The guest goes on here; what was copied for it is worth nothing.
    fn thaw(&mut self, at: usize, epoch: u64) -> Checked {
        self.note_epoch(at, epoch)?;
        let process = self.process(at);
        process.frozen = false;
        if let Some(sending) = &mut process.sending {
            (sending.frozen_at, sending.went_on) = (None, None);
        }
        match &mut process.engine {
            Some(engine) => engine.go_on(),
            None => self.start_engine(at),
        }
        self.end_copy(at);
        self.let_guest_run(at)
    }

    /// The copy is given up; the machine goes on when it has ended.
    fn end_copy(&mut self, at: usize) {
        if let Some(sending) = &mut self.process(at).sending
            && let Some(copying) = &sending.copying
        {
            copying.control.cancel();
            sending.ending = true;
        }
    }

    fn start_copy(&mut self, at: usize, round: u32) {
        let options = self.copy_options();
        let broken = self.broken;
        let clock = Time(Arc::clone(&self.time));
        let process = self.process(at);
        let serves = process.engine.is_some() && !process.frozen;
        let Some(sending) = &mut process.sending else { return };
        // A copy whose last pass has begun cannot be opened again, nor one whose engine was killed.
        let fresh = round == 1 && sending.copying.is_none() && serves;
        let pages = CAPACITY as u64 / PAGE_BYTES;
        let Some(map) = Map::new(pages).ok().filter(|_| fresh).map(Arc::new) else {
            return sending.inbox.push_back(SourceEvent::Cancel);
        };
        let options = Options { migration: sending.machine.pledge().migration, ..options };
        let blocks = Blocks { map: Arc::clone(&map), broken, closing: Arc::default() };
        let control: Arc<Control> = Arc::default();
        sending.copying =
            Some(Copying { control: Arc::clone(&control), map, era: None, near: false, rested: false });
        let plan =
            Plan { pages, name: "ssd".to_owned(), profile: "godwit-2".to_owned(), settings: Vec::new() };
        self.actors.spawn(at, Role::Copy, move || {
            if let Err(error) = copy(plan, &blocks, &clock, &control, options) {
                ask(Ask::Failed(error.to_string()));
            }
        });
    }

    fn copy_options(&mut self) -> Options {
        let streams = self.rng.pick(&[1, 2, 3]).unwrap_or(1);
        let window_bytes = self.rng.pick(&[Limits::WINDOW_BYTES_MIN, 256 << 10, 64 << 20]).unwrap_or(1 << 20);
        let data_pages = self.rng.pick(&[1, 5, 64]).unwrap_or(1);
        Options {
            streams,
            limits: Limits { window_bytes, data_pages },
            compress: self.rng.percent(50),
            flush_bytes: self.rng.pick(&[1, 64 << 10, 256 << 20]).unwrap_or(1),
            stun_max: Duration::from_millis(self.rng.pick(&[20, 100, 1000]).unwrap_or(20)),
            attempts_max: 3,
            retry: Duration::from_millis(10),
            patience: Duration::from_secs(2),
            ..Options::default()
        }
    }

    /// Nothing is to be done: time goes by.
    fn sending_waits(&mut self, at: usize) -> Checked {
        let now = self.now;
        let (pick, impatient) = (self.rng.below(100), self.trouble.cancels && !self.calm);
        let peer_lost = self.hosts[1 - at].lost;
        let peer_has_power = self.hosts[1 - at].process.is_some() || self.hosts[1 - at].off_until <= now;
        let serve_anyway = self.broken == Some(Broken::ServeAfterGrant);
        let process = self.process(at);
        let Some(sending) = &mut process.sending else { return Ok(()) };
        let offered = sending.step == Some(SourceStep::Offered);
        if let Some((round, _)) = sending.went_on.take_if(|(_, since)| now > *since + 5_000_000) {
            // The hypervisor at the other side has to be there.
            let fails = impatient && pick < 20 || !peer_has_power || peer_lost;
            let word = if fails { VmWord::Resumed } else { VmWord::Completed };
            sending.inbox.push_back(SourceEvent::Vm { round, word });
            if word == VmWord::Completed {
                return self.carry_memory(at);
            }
            return Ok(());
        }
        if now < sending.asked_at + AGAIN_NS {
            return Ok(());
        }
        sending.asked_at = now;
        let too_long = sending.frozen_at.is_some_and(|since| now > since + STUN_NS);
        if offered && (too_long || peer_lost) {
            let event = if pick < 50 || peer_lost { SourceEvent::Cancel } else { SourceEvent::Expired };
            sending.inbox.push_back(event);
        } else {
            sending.inbox.push_back(SourceEvent::Retry);
        }
        if serve_anyway && sending.step == Some(SourceStep::Granted) {
            process.frozen = false;
            if let Some(engine) = &mut process.engine {
                engine.go_on();
            }
        }
        Ok(())
    }

    /// The hypervisor has moved the guest's memory, and what its processors have not taken yet.
    fn carry_memory(&mut self, at: usize) -> Checked {
        if self.vm.place != at || self.vm.running || !self.hosts[at].has_memory {
            return violation!("the guest's memory is moved, and it does not stand still{}", self.describe());
        }
        let mut bytes = vec![0; usize::try_from(RAM_BYTES).unwrap_or(0)];
        let read = self.hosts[at].ram.read_bytes(Iova(0), &mut bytes);
        let written = self.hosts[1 - at].ram.write_bytes(Iova(0), &bytes);
        assert!(read.is_ok() && written.is_ok(), "guest memory is there");
        self.hosts[1 - at].outside.interrupts = self.hosts[at].outside.interrupts.clone();
        self.hosts[1 - at].has_memory = true;
        Ok(())
    }
}
