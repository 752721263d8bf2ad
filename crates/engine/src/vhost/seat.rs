//! A disk's place on one reactor: the group of its rings that live here, and this reactor's own door to its drive.
#![expect(unsafe_code, reason = "guest memory is handed to the drive")]
// UNSAFETY: one call of `Backend::submit`, whose promise (the memory stays mapped until the completion) is kept by the group: it
// holds the `Arc<MemoryMap>` that a request's segments came from until it ended.

use super::kicks::Kicks;
use super::{Done, Events, Order, Setting};
use crate::admission::Admission;
use crate::interrupts::Eventfd;
use crate::message::SsdId;
use crate::meter::Meter;
use crate::seat::{COMPLETIONS_MAX, Stand, Turn, wake_fd};
use crate::ssd::Ssd;
use crate::watch::{Heard, SeatDoor};
use backend::uring::Rings;
use block::{Backend, Completion, Now, Op, Outcome, Range, Request, Submitted, Token};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use virtio::config::Device;
use virtio::group::{QUEUES_MAX, VirtQueueGroup};
use virtio::ring::RingConfig;
use virtio::sink::{Event, Sink};

/// How long requests of a ring that is to go to another reactor may take to end. The guest's next ones wait so long.
const YIELD_NS: u64 = 10_000_000;

/// Of a flush that the session asked for; no ring's token has the top bit.
const FLUSH: Token = Token(1 << 63);

/// See the module.
pub(crate) struct VhostSeat {
    ssd: Arc<Ssd>,
    /// Before the group: the drive is closed, and done with guest memory, before the group lets go of it.
    desk: Desk,
    group: VirtQueueGroup,
    /// `None`: no descriptor was left, and rings with kicks are looked at like those without.
    kicks: Option<Kicks>,
    stops: Vec<(u16, SyncSender<Done>)>,
    yields: Vec<Yield>,
    pause: Option<SyncSender<Done>>,
    flush: Option<Flush>,
    done: Vec<Completion>,
    map: Arc<memory::MemoryMap>,
    /// While there is a log: told of what was marked.
    log_event: Option<Arc<Eventfd>>,
    /// Until the client was hung up on.
    hang_up: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// A ring on its way to another reactor.
struct Yield {
    queue: u16,
    until: Now,
    reply: SyncSender<Done>,
}

struct Flush {
    reply: SyncSender<Done>,
    submitted: bool,
}

/// What the group acts through.
struct Desk {
    backend: SeatDoor,
    /// By queue.
    events: Vec<Events>,
    /// By queue: what it has done, in requests of 16 KiB.
    done: Vec<u64>,
    /// What the group reported in this turn.
    reports: Vec<Event>,
    meter: Meter,
    admission: Admission,
}

impl Sink for Desk {
    #[inline]
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if !self.admission.admits(request) {
            if self.admission.is_holding() {
                self.meter.refused();
            }
            return Submitted::Full;
        }
        // SAFETY: the segments come from a memory map that the group holds until the request's completion came back through
        // `VhostSeat::turn`; a seat drops its backend before its group (field order).
        let submitted = unsafe { self.backend.submit(request) };
        if submitted == Submitted::Full {
            self.admission.no_room(request);
        }
        if request.token != FLUSH {
            self.meter.submitted(request, submitted);
            let queue = usize::try_from(request.token.0 >> 16).unwrap_or(usize::MAX);
            if let Some(done) = self.done.get_mut(queue) {
                *done = done.wrapping_add(1 + (request.range.len_bytes >> 14));
            }
        }
        submitted
    }

    #[inline]
    fn call(&mut self, queue: u16) {
        if let Some(call) = self.events.get(usize::from(queue)).and_then(|events| events.call.as_ref()) {
            call.signal();
        }
    }

    fn report(&mut self, event: Event) {
        self.reports.push(event);
    }
}

impl VhostSeat {
    /// Opens the drive on this thread.
    pub(crate) fn new(ssd: Arc<Ssd>, device: Arc<Device>, setting: Setting, stand: &Stand<'_>) -> Self {
        let backend = SeatDoor::of(&ssd, stand.rings, &setting.map);
        let mut group = VirtQueueGroup::new(device, Arc::clone(&setting.map));
        group.set_features(setting.features);
        group.set_writeback(setting.writeback);
        let events = vec![Events::default(); usize::from(QUEUES_MAX)];
        let kicks = Kicks::new(QUEUES_MAX).inspect_err(
            |error| tracing::warn!(ssd = ssd.name, %error, "idle rings are polled: no descriptor left"),
        );
        let (meter, admission) = (Meter::new(&ssd, stand.lane), Admission::new(&ssd.terms));
        Self {
            ssd,
            desk: Desk {
                backend,
                events,
                done: vec![0; usize::from(QUEUES_MAX)],
                reports: Vec::new(),
                admission,
                meter,
            },
            group,
            kicks: kicks.ok(),
            stops: Vec::new(),
            yields: Vec::new(),
            pause: None,
            flush: None,
            done: Vec::with_capacity(COMPLETIONS_MAX),
            log_event: setting.log_event.filter(|_| setting.map.log().is_some()),
            map: setting.map,
            hang_up: Some(setting.hang_up),
        }
    }

    pub(crate) fn id(&self) -> SsdId {
        self.ssd.id
    }

    /// The drive's completions, then the guest's new requests, then one call a ring. `crowded`: other ssds are at work on this reactor.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now, crowded: bool) -> Turn {
        let mut turn = Turn::default();
        self.desk.meter.turn(now);
        // The client waits for the end of what was taken from a ring that it stops.
        self.desk.admission.wind_up(!self.stops.is_empty());
        if self.desk.backend.in_flight() > 0 {
            self.desk.backend.poll(&mut self.done);
            turn.work = self.done.len();
        }
        self.desk.admission.begin(now, crowded, self.desk.backend.in_flight(), turn.work);
        if turn.work > 0 {
            for (token, outcome) in self.done.drain(..) {
                if token == FLUSH {
                    flushed(&mut self.flush, outcome);
                } else {
                    self.desk.meter.ended(token, outcome);
                    self.group.complete(token, outcome, &mut self.desk);
                }
            }
        }
        let shut = self.shut_until().is_some();
        if !shut {
            turn.commands = self.group.poll(&mut self.desk);
        }
        turn.work += turn.commands;
        self.finish();
        if turn.work > 0
            && let Some(event) = &self.log_event
        {
            event.signal();
        }
        if !self.yields.is_empty() {
            self.give_up_late(now);
        }
        self.desk.admission.end(self.desk.backend.in_flight());
        self.desk.meter.end(shut);
        turn
    }

    /// Makes answers visible, and reports what waited for an end.
    #[inline]
    fn finish(&mut self) {
        self.group.flush(&mut self.desk);
        if self.flush.is_some() {
            self.submit_flush();
        }
        if !self.desk.reports.is_empty() {
            self.tell();
        }
        // What waits for space is left to the next engine, by the in-flight regions: there is no way back from this pause.
        if self.pause.is_some() && self.desk.backend.at_drive() == 0 {
            self.paused();
        }
    }

    /// The rings served here, and what each has done.
    pub(crate) fn rings(&self) -> impl Iterator<Item = (u16, u64)> {
        let done = |queue: u16| self.desk.done.get(usize::from(queue)).copied().unwrap_or(0);
        self.group.queues().iter().map(move |queue| (*queue, done(*queue)))
    }

    /// Hands what the turn submitted to the drive.
    #[inline]
    pub(crate) fn kick(&mut self) {
        self.desk.backend.kick();
    }

    #[cold]
    fn tell(&mut self) {
        for event in std::mem::take(&mut self.desk.reports) {
            match event {
                Event::Stopped { queue, base } => {
                    if let Some(at) = self.stops.iter().position(|(stopping, _)| *stopping == queue) {
                        let (_, reply) = self.stops.swap_remove(at);
                        self.forget(queue);
                        let _ = reply.send(Ok(base));
                    } else if let Some(at) = self.yields.iter().position(|it| it.queue == queue) {
                        let Yield { reply, .. } = self.yields.swap_remove(at);
                        self.forget(queue);
                        let _ = reply.send(Ok(base));
                    }
                }
                Event::Broken { queue, why } => {
                    tracing::warn!(ssd = self.ssd.name, queue, %why, "a ring makes no sense and is not served until it starts anew");
                    if let Some(err) = &self.desk.events[usize::from(queue) % usize::from(QUEUES_MAX)].err {
                        err.signal();
                    }
                }
                Event::MemoryAdopted { .. } | Event::Paused => {}
            }
        }
    }

    /// Rings whose requests take long to end are served as before.
    #[cold]
    fn give_up_late(&mut self, now: Now) {
        let Self { yields, group, .. } = self;
        for Yield { queue, reply, .. } in yields.extract_if(.., |it| it.until <= now) {
            group.go_on(queue);
            let _ = reply.send(Err(Errno::AGAIN));
        }
    }

    /// When that is due.
    pub(crate) fn deadline(&self) -> Option<Now> {
        self.yields.iter().map(|it| it.until).min()
    }

    /// Nothing of the client's is held for a ring that does not run.
    fn forget(&mut self, queue: u16) {
        if let Some(events) = self.desk.events.get_mut(usize::from(queue)) {
            *events = Events::default();
        }
        if let Some(kicks) = &mut self.kicks {
            let _ = kicks.set(queue, None);
        }
    }

    fn paused(&mut self) {
        if let Some(reply) = self.pause.take() {
            let _ = reply.send(Ok(0));
        }
    }

    fn submit_flush(&mut self) {
        let Some(flush) = self.flush.as_mut().filter(|flush| !flush.submitted) else { return };
        let range = Range { start_bytes: 0, len_bytes: 0 };
        match self.desk.submit(&Request { token: FLUSH, op: Op::Flush, range, data: &[] }) {
            Submitted::Queued => flush.submitted = true,
            Submitted::Full => {}
            Submitted::Ended(outcome) => flushed(&mut self.flush, outcome),
        }
    }

    /// Does what the session orders. `false`: the seat is given up.
    pub(crate) fn obey(&mut self, order: Order, now: Now) -> bool {
        match order {
            Order::Sit(_) => {}
            Order::Adopt(setting, reply) => _ = reply.send(self.adopt(*setting)),
            Order::Start(queue, config, events, reply) => {
                _ = reply.send(self.start(queue, *config, events));
            }
            Order::Events(queue, events, reply) => _ = reply.send(self.set_events(queue, events).map(|()| 0)),
            // What waits at the gate ends here no more: it is for the ssd's owner elsewhere.
            Order::Stop(_, reply) if self.desk.admission.is_closed() => _ = reply.send(Err(Errno::NODEV)),
            Order::Stop(queue, reply) => {
                if self.group.stop(queue) {
                    self.stops.push((queue, reply));
                } else {
                    let _ = reply.send(Err(Errno::INVAL));
                }
            }
            Order::Yield(queue, reply) => {
                if self.group.stop(queue) {
                    let until = Now(now.0.saturating_add(YIELD_NS));
                    self.yields.push(Yield { queue, until, reply });
                } else {
                    let _ = reply.send(Err(Errno::INVAL));
                }
            }
            Order::Flush(reply) => self.flush = Some(Flush { reply, submitted: false }),
            Order::Pause(reply) => {
                self.group.pause();
                self.pause = Some(reply);
            }
            Order::Leave(reply) => {
                let _ = reply.send(Ok(0));
                return false;
            }
        }
        self.finish();
        true
    }

    fn adopt(&mut self, setting: Setting) -> Done {
        // No ring runs, so no I/O uses the older map.
        self.group.set_memory(Arc::clone(&setting.map), &mut self.desk);
        self.group.set_features(setting.features);
        self.group.set_writeback(setting.writeback);
        self.group.flush(&mut self.desk);
        self.desk.backend.memory_changed(&setting.map);
        self.log_event = setting.log_event.filter(|_| setting.map.log().is_some());
        self.map = setting.map;
        Ok(0)
    }

    /// Ends the session of a client that took away the file behind its memory, or its log. What was read of it since are zeros. Called now and
    /// then.
    pub(crate) fn check_client(&mut self) {
        if self.map.is_poisoned()
            && let Some(hang_up) = self.hang_up.take()
        {
            tracing::warn!(
                ssd = self.ssd.name,
                "the client shrank the file behind its memory or its log: hung up"
            );
            hang_up();
        }
    }

    fn start(&mut self, queue: u16, config: RingConfig, events: Events) -> Done {
        self.set_events(queue, events)?;
        match self.group.start(queue, config) {
            Ok(again) => Ok(u32::try_from(again).unwrap_or(u32::MAX)),
            Err(why) => {
                tracing::warn!(ssd = self.ssd.name, queue, %why, "a ring cannot be served");
                self.forget(queue);
                Err(Errno::INVAL)
            }
        }
    }

    fn set_events(&mut self, queue: u16, events: Events) -> Result<(), Errno> {
        if let Some(kicks) = &mut self.kicks {
            kicks.set(queue, events.kick.clone())?;
        }
        *self.desk.events.get_mut(usize::from(queue)).ok_or(Errno::INVAL)? = events;
        Ok(())
    }

    /// Something of this disk is in flight on this reactor.
    pub(crate) fn is_busy(&self) -> bool {
        self.desk.backend.in_flight() > 0 || self.group.in_flight() > 0
    }

    /// Its limits are reached: nothing of it begins before then.
    pub(crate) fn shut_until(&self) -> Option<Now> {
        self.desk.admission.shut_until()
    }

    /// The disk is watched from now on, or not any more, or frozen, or thawed.
    pub(crate) fn heed(&mut self, rings: &Rings, heard: Heard) {
        self.desk.admission.change();
        if self.desk.admission.is_closed() {
            for (_, reply) in self.stops.drain(..) {
                let _ = reply.send(Err(Errno::NODEV));
            }
        }
        self.desk.backend.heed(&self.ssd, rings, &self.map, heard);
    }

    /// Its limits were changed.
    pub(crate) fn limits_changed(&mut self) {
        self.desk.admission.change();
    }

    /// Whether only a driver or an order can bring it something to do: it needs no turn until [`VhostSeat::rang`].
    pub(crate) fn rest(&self) -> bool {
        let waits =
            self.pause.is_some() || self.flush.is_some() || !self.stops.is_empty() || !self.yields.is_empty();
        !waits && self.desk.reports.is_empty() && self.desk.backend.in_flight() == 0 && self.group.rest()
    }

    /// Whether a driver made something available since it rests.
    #[inline]
    pub(crate) fn rang(&self) -> bool {
        self.group.rang()
    }

    /// It rested, and nothing had come at this time.
    pub(crate) fn looked_at(&mut self, at: Now) {
        self.desk.meter.looked_at(at);
    }

    /// Before a sleep: asks the drivers to kick. `false`: there is something to do.
    pub(crate) fn arm(&mut self) -> bool {
        self.shut_until().is_some() || self.group.is_empty() || self.group.arm(&mut self.desk)
    }

    /// After a sleep.
    pub(crate) fn woken(&self) {
        if let Some(kicks) = self.kicks.as_ref().filter(|_| !self.group.is_empty()) {
            kicks.take();
        }
    }

    /// Nothing but looking tells that there is something to do: a ring without a kick, or a drive without a descriptor.
    pub(crate) fn is_polled(&self) -> bool {
        let blind = |queue: &u16| {
            self.desk.events.get(usize::from(*queue)).is_none_or(|events| events.kick.is_none())
        };
        let unkicked = match &self.kicks {
            Some(_) => self.group.queues().iter().any(blind),
            None => !self.group.is_empty(),
        };
        unkicked || self.is_busy() && self.drive_fd().is_none()
    }

    fn drive_fd(&self) -> Option<BorrowedFd<'_>> {
        wake_fd(&self.desk.backend)
    }

    /// What wakes a sleeping reactor.
    pub(crate) fn wake_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let kicks = self.kicks.as_ref().filter(|_| !self.group.is_empty());
        kicks.map(AsFd::as_fd).into_iter().chain(self.drive_fd())
    }
}

fn flushed(flush: &mut Option<Flush>, outcome: Outcome) {
    if let Some(flush) = flush.take() {
        let _ = flush.reply.send(match outcome {
            Outcome::Done => Ok(0),
            Outcome::Failed(_) => Err(Errno::IO),
        });
    }
}
