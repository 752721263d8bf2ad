//! What the world answers the product's threads.

use std::io::ErrorKind;
use std::sync::Arc;

use block::Now;
use dirty::PAGE_BYTES;
use nvme::crash;
use transfer::commit::{DestinationEvent, SourceEvent};

use super::actors::{ActorId, Ask, Reply, Role};
use super::broken::Broken;
use super::host::Host;
use super::{CAPACITY, Rest, World};
use crate::guest::{Checked, Violation, violation};

/// What comes of an ask.
enum Answer {
    Now(Reply),
    /// It is asked again.
    Later(Ask),
}

fn as_asked<T>(done: Option<Result<T, ErrorKind>>, ask: Ask, reply: impl FnOnce(T) -> Reply) -> Answer {
    match done {
        Some(Ok(done)) => Answer::Now(reply(done)),
        Some(Err(kind)) => Answer::Now(Reply::Failed(kind)),
        None => Answer::Later(ask),
    }
}

impl World {
    /// Lets one actor go on, whichever, if it can.
    pub(super) fn actor_step(&mut self) -> Checked {
        let ids: Vec<ActorId> = self.actors.list().iter().map(|actor| actor.id).collect();
        let Some(id) = self.rng.pick(&ids) else { return Ok(()) };
        loop {
            let Some(actor) = self.actors.get(id) else { return Ok(()) };
            let (host, role, since) = (actor.host, actor.role, actor.since);
            let answer = match self.actors.take(id) {
                None => Some(Answer::Now(Reply::Go)),
                Some(ask) => self.in_host(host, |world| world.answer(id, (host, role), ask, since))?,
            };
            match answer {
                // Its process has ended, and it with it.
                None => return Ok(()),
                Some(Answer::Later(ask)) => {
                    self.actors.put_back(id, ask);
                    return Ok(());
                }
                Some(Answer::Now(reply)) => {
                    if let Err(why) = self.actors.resume(id, reply, self.now) {
                        return violation!("a thread of host {host} panics: {why}");
                    }
                }
            }
            // What is done under a lock of the receiver's is done at once.
            let next = self.actors.get(id).and_then(|actor| actor.pending.as_ref());
            if !matches!(next, Some(Ask::Write { .. } | Ask::Zero { .. } | Ask::Flush)) {
                return Ok(());
            }
        }
    }

    fn answer(
        &mut self,
        id: ActorId,
        (at, role): (usize, Role),
        ask: Ask,
        since: u64,
    ) -> Result<Answer, Violation> {
        let now = self.now;
        Ok(match ask {
            Ask::Arm | Ask::Near | Ask::Rested | Ask::Failed(_) => return self.answer_copy(at, ask),
            Ask::Allocated => Answer::Now(Reply::Runs(self.allocated(at))),
            Ask::Read { start_bytes, len_bytes } => {
                Answer::Now(Reply::Bytes(self.hosts[at].outside.disk.look(start_bytes, len_bytes).to_vec()))
            }
            Ask::Write { .. } | Ask::Zero { .. } | Ask::Flush => self.land(at, &ask),
            Ask::Connect { stream } => {
                crash::point();
                Answer::Now(match self.wire.connect(stream, now) {
                    Some(end) => Reply::Connected(end),
                    None => Reply::Failed(ErrorKind::ConnectionRefused),
                })
            }
            Ask::Accept => match self.wire.accept() {
                Some(end) => {
                    crash::point();
                    let stream = self.wire.stream_of(end);
                    self.guest.say(|| format!("host {at} takes a connection of stream {stream}"));
                    Answer::Now(Reply::Accepted(end, self.actors.port(at, role, Some(id))))
                }
                None => Answer::Later(Ask::Accept),
            },
            Ask::Send(end, bytes) => {
                crash::point();
                let done = self.wire.send(end, &bytes, now, since);
                as_asked(done, Ask::Send(end, bytes), Reply::Count)
            }
            Ask::Receive(end, max) => {
                as_asked(self.wire.receive(end, max, now, since), Ask::Receive(end, max), Reply::Bytes)
            }
            Ask::Close(end) => {
                self.wire.close(end, now);
                Answer::Now(Reply::Go)
            }
            Ask::Sleep { nanos } if now < since.saturating_add(nanos) => Answer::Later(Ask::Sleep { nanos }),
            Ask::Spawn(count) => {
                let ports = (0..count).map(|_| self.actors.port(at, role, Some(id))).collect();
                Answer::Now(Reply::Ports(ports))
            }
            Ask::Join if self.actors.has_children(id) => Answer::Later(Ask::Join),
            Ask::Arrived(arrived) => {
                if let Some(arriving) = &mut self.process(at).arriving {
                    arriving.arrived = Some(arrived);
                }
                Answer::Now(Reply::Go)
            }
            Ask::Yield | Ask::Sleep { .. } | Ask::Join | Ask::Ended | Ask::Panicked(_) => {
                Answer::Now(Reply::Go)
            }
        })
    }

    /// Runs of pages that have something.
    fn allocated(&self, at: usize) -> Vec<(u64, u64)> {
        let disk = &self.hosts[at].outside.disk;
        let pages = CAPACITY as u64 / PAGE_BYTES;
        let is_used = |page: &u64| disk.look(page * PAGE_BYTES, PAGE_BYTES).iter().any(|byte| *byte != 0);
        (0..pages).filter(is_used).map(|page| (page, 1)).collect()
    }

    fn land(&mut self, at: usize, ask: &Ask) -> Answer {
        self.point(at, 1500);
        let disk = &mut self.hosts[at].outside.disk;
        match ask {
            Ask::Write { start_bytes, bytes } => {
                disk.write_now(*start_bytes, bytes.len() as u64, Some(bytes))
            }
            Ask::Zero { start_bytes, len_bytes } => disk.write_now(*start_bytes, *len_bytes, None),
            _ if self.broken == Some(Broken::NotFlushed) => {}
            _ => disk.flush_now(),
        }
        Answer::Now(Reply::Go)
    }

    /// What a copy needs of who drives it.
    fn answer_copy(&mut self, at: usize, ask: Ask) -> Result<Answer, Violation> {
        self.point(at, 60);
        let now = Now(self.now);
        let not_halted = self.broken == Some(Broken::NotHalted);
        let Host { outside, process, .. } = &mut self.hosts[at];
        let Some(process) = process else { return Ok(Answer::Now(Reply::Dead)) };
        let Some(sending) = &mut process.sending else {
            return Ok(Answer::Now(Reply::Failed(ErrorKind::Other)));
        };
        let given_up = sending.ending;
        let Some(copying) = sending.copying.as_mut().filter(|_| !given_up) else {
            return Ok(Answer::Now(Reply::Failed(ErrorKind::Other)));
        };
        Ok(match ask {
            Ask::Arm => {
                let Some(watch) = &mut outside.watch else { return Ok(Answer::Later(ask)) };
                let map = Arc::clone(&copying.map);
                let era = *copying.era.get_or_insert_with(|| watch.set(Some(map)));
                if watch.has_ended(era) { Answer::Now(Reply::Go) } else { Answer::Later(ask) }
            }
            Ask::Near => {
                if !copying.near && self.vm.running && !self.vm.in_call && self.vm.place == at {
                    copying.near = true;
                    // The hypervisor holds the guest.
                    self.vm.running = false;
                    sending.inbox.push_back(SourceEvent::SwitchOver);
                    return Ok(Answer::Later(ask));
                }
                let Some(engine) = process.engine.as_ref().filter(|_| process.frozen) else {
                    return Ok(Answer::Later(ask));
                };
                if !engine.stands_still(outside) && !not_halted {
                    return Ok(Answer::Later(ask));
                }
                let Ok(state) = engine.controller.save(now).to_bytes() else {
                    return violation!("the state of a controller cannot be saved");
                };
                let rest = Rest { ledger: self.guest.ledger.clone(), tick: self.guest.tick };
                self.rests.insert(sending.machine.pledge().migration, rest);
                Answer::Now(Reply::State(state))
            }
            Ask::Rested => {
                copying.rested = true;
                sending.inbox.push_back(SourceEvent::Frozen);
                Answer::Now(Reply::Go)
            }
            Ask::Failed(why) => {
                self.guest.say(|| format!("host {at}: no copy: {why}"));
                sending.inbox.push_back(SourceEvent::Cancel);
                Answer::Now(Reply::Go)
            }
            _ => Answer::Now(Reply::Go),
        })
    }

    /// The write of a journal ends, by chance now.
    pub(super) fn end_write(&mut self, at: usize) -> Checked {
        let journal = &mut self.hosts[at].journal;
        let is_note = std::mem::take(&mut journal.is_note);
        if !journal.settle(true) {
            journal.is_note = false;
            return Ok(());
        }
        let durable = journal.read().map(|(_, record)| record);
        self.guest.say(|| format!("host {at}: on record: {durable:?}"));
        if let Some(record) = durable {
            self.trouble_after(at, record);
        }
        if !is_note {
            self.point(at, 30);
            self.written(at);
        }
        Ok(())
    }

    /// A machine hears that its record is durable.
    pub(super) fn written(&mut self, at: usize) {
        let process = self.process(at);
        if let Some(sending) = &mut process.sending {
            let effects = sending.machine.handle(SourceEvent::Written);
            sending.todo.extend(effects);
        } else if let Some(arriving) = &mut process.arriving {
            let effects = arriving.machine.handle(DestinationEvent::Written);
            arriving.todo.extend(effects);
        }
    }
}
