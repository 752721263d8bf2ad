//! Who drives the destination's machine: what the engine does for its effects (`engine/src/migration/arrival.rs`), one at a time. And who hears the words.

use block::Now;
use nvme::controller::saved::{Place, check};
use nvme::profile::GODWIT_2;
use state::controller::ControllerV1;
use transfer::commit::{
    Destination, DestinationEffect, DestinationEvent, DestinationRecord, DestinationStep, Message, Pledge,
    Record, SourceEvent, SourceStep, ToDestination, ToSource, fence,
};
use transfer::frame::Limits;

use super::actors::Role;
use super::broken::Broken;
use super::ends::land;
use super::host::{Arriving, Sending};
use super::source::AGAIN_NS;
use super::wire::Word;
use super::{CAPACITY, World};
use crate::guest::{Checked, violation};

/// From the seal to the end of the streams' own threads.
const PATIENCE_NS: u64 = 500_000_000;

impl World {
    /// A word that has come to a host.
    pub(super) fn hear(&mut self, at: usize) -> Checked {
        let Some(word) = self.wire.hear(at, self.now) else { return Ok(()) };
        match word {
            Word::ToSource(message) => self.hear_source(at, message),
            Word::ToDestination(message) => self.hear_destination(at, message),
        }
        Ok(())
    }

    fn hear_source(&mut self, at: usize, message: Message<ToSource>) {
        if let Some(sending) = &mut self.process(at).sending
            && sending.machine.pledge() == message.pledge
        {
            return sending.inbox.push_back(SourceEvent::Message(message));
        }
        let held = match self.hosts[at].journal.read() {
            _ if !self.hosts[at].owns() => return,
            None => return,
            Some((_, Record::Source(record))) => record.held,
            Some((_, Record::Destination(record))) => record.pledge.epoch,
        };
        if let Some(message) = fence(held, message) {
            self.wire.say(1 - at, Word::ToDestination(message), self.now);
        }
    }

    fn hear_destination(&mut self, at: usize, message: Message<ToDestination>) {
        let has_memory = self.hosts[at].has_memory;
        let Message { pledge, word } = message;
        if let Some(arriving) = &mut self.process(at).arriving
            && arriving.machine.pledge() == pledge
        {
            let is_grant = matches!(word, ToDestination::Grant { .. });
            // Its memory is still whole at the source, which gets it back.
            let event = if is_grant && arriving.step == Some(DestinationStep::Ready) && !has_memory {
                DestinationEvent::Cancel
            } else {
                DestinationEvent::Message(message)
            };
            return arriving.inbox.push_back(event);
        }
        let seen = self.seen(at);
        match word {
            ToDestination::Open { round } => self.begin_arrival(at, pledge, round, seen),
            // It is of none that ever began here, and will not.
            ToDestination::Cancel if seen.is_none_or(|seen| pledge.epoch > seen) => {
                let message = Message { pledge, word: ToSource::Dropped };
                self.wire.say(1 - at, Word::ToSource(message), self.now);
            }
            _ => {}
        }
    }

    /// The highest epoch of the ssd that is known here.
    fn seen(&self, at: usize) -> Option<u64> {
        Some(match self.hosts[at].journal.read()?.1 {
            Record::Source(record) if record.step == SourceStep::Gone => record.pledge.epoch,
            Record::Source(record) => record.held,
            Record::Destination(record) => record.pledge.epoch,
        })
    }

    fn begin_arrival(&mut self, at: usize, pledge: Pledge, round: u32, seen: Option<u64>) {
        if self.hosts[at].owns() || self.hosts[at].journal.is_writing() {
            return;
        }
        let process = self.process(at);
        let free = process.sending.as_ref().is_none_or(Sending::is_over)
            && process.arriving.as_ref().is_none_or(|it| it.todo.is_empty() && it.inbox.is_empty());
        if !free {
            return;
        }
        let Ok((machine, effects)) = Destination::begin(pledge, round, seen) else { return };
        self.point(at, 40);
        let process = self.process(at);
        process.sending = None;
        process.arriving = Some(Arriving::new(machine, effects, None));
        self.make_room(at, pledge.migration);
    }

    /// Where blocks land: its space reads as zeros.
    pub(super) fn make_room(&mut self, at: usize, migration: [u8; 16]) {
        self.end_landing(at);
        if self.broken != Some(Broken::NotEmptied) {
            self.hosts[at].wipe();
        }
        self.hosts[at].has_memory = false;
        let pages = CAPACITY as u64 / dirty::PAGE_BYTES;
        self.actors.spawn(at, Role::Landing, move || land(migration, Limits::default(), pages));
    }

    fn end_landing(&mut self, at: usize) {
        let ended = self.actors.kill(at, Some(Role::Landing));
        assert!(ended.is_ok(), "a thread panics: {ended:?}");
        self.wire.close_all(1, self.now);
    }

    /// One effect, or one event, or nothing.
    pub(super) fn arriving_turn(&mut self, at: usize) -> Checked {
        let now = self.now;
        let Some(arriving) = &mut self.process(at).arriving else { return Ok(()) };
        if arriving.settling.is_some() {
            return self.settle(at);
        }
        if let Some(effect) = arriving.todo.pop_front() {
            self.guest.say(|| format!("host {at}: {effect:?}"));
            return self.arrive_effect(at, effect);
        }
        if let Some(event) = arriving.inbox.pop_front() {
            let effects = arriving.machine.handle(event);
            arriving.todo.extend(effects);
            if arriving.machine.is_closed() && !arriving.noted {
                self.note_closed(at);
            }
            self.guest.say(|| format!("host {at}: hears {event:?}"));
            return Ok(());
        }
        if now >= arriving.asked_at + AGAIN_NS {
            arriving.asked_at = now;
            arriving.inbox.push_back(DestinationEvent::Retry);
        }
        Ok(())
    }

    /// The source knows how it ended: an engine that starts anew is to know that.
    fn note_closed(&mut self, at: usize) {
        let Some((_, record)) = self.hosts[at].journal.read() else { return };
        if let Some(arriving) = &mut self.process(at).arriving {
            arriving.noted = true;
        }
        self.hosts[at].journal.begin(record, true, true);
    }

    fn arrive_effect(&mut self, at: usize, effect: DestinationEffect) -> Checked {
        self.point(at, 40);
        let now = self.now;
        match effect {
            DestinationEffect::Write(record) => self.write_destination(at, record),
            DestinationEffect::Send(message) => {
                let ready = matches!(message.word, ToSource::Ready { .. });
                self.wire.say(1 - at, Word::ToSource(message), now);
                if ready && self.broken == Some(Broken::ServeBeforeGrant) {
                    return self.serve(at, message.pledge.epoch);
                }
            }
            DestinationEffect::Settle { round } => {
                if let Some(arriving) = &mut self.process(at).arriving {
                    arriving.settling = Some((round, now));
                }
            }
            DestinationEffect::Serve { epoch } => return self.serve(at, epoch),
            DestinationEffect::Stop => self.process(at).engine = None,
            DestinationEffect::Wipe => {
                self.end_landing(at);
                if self.broken != Some(Broken::NotEmptied) {
                    self.hosts[at].wipe();
                }
                self.hosts[at].power_off_controller();
                self.hosts[at].has_memory = false;
            }
            DestinationEffect::Refuse(_) => {}
            DestinationEffect::Raise(_) => {
                if let Some(arriving) = &mut self.process(at).arriving {
                    arriving.alarmed = true;
                }
            }
        }
        Ok(())
    }

    fn write_destination(&mut self, at: usize, record: DestinationRecord) {
        let lies = self.broken == Some(Broken::RecordNotDurable);
        self.hosts[at].journal.begin(Record::Destination(record), false, lies);
        if let Some(arriving) = &mut self.process(at).arriving {
            arriving.step = Some(record.step);
            arriving.alarmed = false;
        }
        if lies {
            self.written(at);
        }
    }

    fn serve(&mut self, at: usize, epoch: u64) -> Checked {
        self.note_epoch(at, epoch)?;
        self.end_landing(at);
        self.process(at).frozen = false;
        if self.process(at).engine.is_none() {
            self.start_engine(at);
        }
        self.let_guest_run(at)
    }

    /// What came is durable, its record too, and can be served here.
    fn settle(&mut self, at: usize) -> Checked {
        let now = self.now;
        let Some(arriving) = &mut self.process(at).arriving else { return Ok(()) };
        let Some((round, since)) = arriving.settling else { return Ok(()) };
        let Some(arrived) = arriving.arrived.take() else {
            if now > since + PATIENCE_NS {
                arriving.settling = None;
                arriving.inbox.push_front(DestinationEvent::Cancel);
            }
            return Ok(());
        };
        arriving.settling = None;
        arriving.inbox.push_front(DestinationEvent::Settled { round });
        if arrived.missing.count() != 0 {
            return violation!("pages are missing that nobody will fetch");
        }
        self.load(at, &arrived.state)
    }

    fn load(&mut self, at: usize, state: &[u8]) -> Checked {
        self.point(at, 40);
        let now = Now(self.now);
        let Ok(state) = ControllerV1::from_bytes(state) else {
            return violation!("a controller's state that cannot be read");
        };
        let host = &mut self.hosts[at];
        host.power_off_controller();
        let outside = &mut host.outside;
        drop(outside.controller(now));
        let place = Place {
            region: &outside.region,
            doorbells: &outside.doorbells,
            profile: &GODWIT_2,
            identity: &outside.identity,
            record: &outside.record.clone(),
            block_bytes: outside.disk.limits().block_bytes,
        };
        let checked = match check(&state, &place, now) {
            Ok(checked) => checked,
            Err(refused) => return violation!("a controller's state is refused: {refused}"),
        };
        outside.record = checked.record().clone();
        nvme::crash::point();
        if self.broken != Some(Broken::StateLeftOut)
            && let Err(refused) = checked.load(1, now)
        {
            return violation!("a controller's state cannot be loaded: {refused}");
        }
        Ok(())
    }
}
