//! An ssd's home: the reactor that owns its controller, and the controller's links to its queues on other reactors.
//!
//! ```text
//!  session --Call--> Home { controller, seat (its group here) } --GroupCommand--> Branch { seat } on other reactors
//!          <-Answer-                                            <-----News------
//! ```

mod freezing;
mod leaving;
mod links;
mod waiting;

use crate::crew::Crew;
use crate::interrupts::Table;
use crate::management;
use crate::message::{Answer, Call, Client, News, Settlement};
use crate::records::Records;
use crate::seat::{Seat, Stand, Turn};
use crate::survey::Ask;
use backend::uring::Rings;
use block::{Backend, Now, Request, Submitted};
use freezing::Freezing;
use leaving::Leaving;
use links::Links;
pub(crate) use links::{Goal, HandedOn};
use memory::MemoryMap;
use nvme::controller::Controller;
use nvme::host::{AllocationList, AllocationQuery, Host, Unsurveyed};
use nvme::management::{Order, Report};
use nvme::namespace::NamespaceTable;
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use nvme::watch::Watch;
use rustix::io::Errno;
use state::ssd::SsdV1;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use waiting::{FLUSH, Waiting};

/// See the module.
pub(crate) struct Home {
    pub(crate) seat: Seat,
    pub(crate) controller: Controller,
    links: Links,
    waiting: Waiting,
    private: bool,
    client: Option<Arc<dyn Client>>,
    freezing: Freezing,
    leaving: Leaving,
}

/// What becomes of a home after a call.
pub(crate) enum Next {
    /// It stays.
    Stay,
    /// The power is off: drop it.
    Gone,
}

/// The controller's view of the engine while it runs.
struct Errand<'a> {
    seat: &'a mut Seat,
    links: &'a mut Links,
}

impl Host for Errand<'_> {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.seat.desk.hand_in(request)
    }

    fn interrupt(&mut self, vector: u16) {
        self.seat.desk.interrupt(vector);
    }

    fn to_queue(&mut self, cqid: u16, command: GroupCommand) {
        self.links.send_to_queue(self.seat, cqid, command);
    }

    fn to_all(&mut self, command: GroupCommand) {
        self.links.broadcast(self.seat, &command);
    }

    fn persist(&mut self, record: SsdV1) {
        self.links.records.keep(&self.seat.ssd, self.seat.life(), record, &self.links.this);
    }

    fn manage(&mut self, ticket: u32, cntlid: u16, order: Order) {
        let (life, home) = (self.seat.life(), Arc::clone(&self.links.this));
        management::ask(
            self.seat.ssd.management.get(),
            management::Ask { ticket, cntlid, order, life, home },
        );
    }

    fn survey(&mut self, ticket: u32, query: AllocationQuery) {
        let (ssd, life, home) = (Arc::clone(&self.seat.ssd), self.seat.life(), Arc::clone(&self.links.this));
        self.links.records.survey(Ask { ticket, query, ssd, life, home });
    }

    fn namespaces(&mut self, table: &Arc<NamespaceTable>) {
        self.links.namespaces = Arc::clone(table);
    }
}

impl Home {
    /// Opens the drive on this thread and, for a moved ssd, goes on with the queues that exist.
    pub(crate) fn new(
        plan: Settlement,
        reactors: (Arc<Crew>, usize),
        records: Records,
        stand: &Stand<'_>,
        now: Now,
    ) -> Self {
        let Settlement { ssd, power, controller, memory, interrupts, namespaces, resume, client, private } =
            plan;
        let memory = ssd.written.on(memory);
        let seat = Seat::new(ssd, power, &memory, interrupts, Arc::clone(&namespaces), stand);
        let links = Links::new(reactors, records, memory, namespaces);
        // Its drive may have grown while it was on its way here.
        let capacity_bytes = seat.ssd.limits().capacity_bytes;
        let mut home = Self {
            seat,
            controller,
            links,
            waiting: Waiting::Nothing,
            private,
            client,
            freezing: Freezing::default(),
            leaving: Leaving::default(),
        };
        if let Some(handed_on) = resume {
            let Self { seat, controller, links, .. } = &mut home;
            // The queues first: what the controller asks of them comes after.
            let region = Arc::clone(&seat.power.region);
            links.resume(seat, &region, handed_on);
            let memory = Arc::clone(&links.memory);
            controller.memory(memory, now, &mut Errand { seat, links });
            home.settle(now);
        }
        let Self { seat, controller, links, .. } = &mut home;
        controller.grow(capacity_bytes, now, &mut Errand { seat, links });
        home
    }

    /// One turn of the reactor.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now, crowded: bool) -> Turn {
        let Self { seat, controller, links, waiting, .. } = self;
        let mut own = Vec::new();
        let mut turn = seat.turn(now, crowded, |_, completion| own.push(completion));
        for (token, outcome) in own {
            if self.freezing.is_wanted() {
                // What it was part of is done again by who comes next.
            } else if token == FLUSH {
                waiting.flushed(outcome);
            } else {
                controller.complete(token, outcome, now, &mut Errand { seat, links });
            }
        }
        // What a command puts on record while the ssd is frozen would not go with it.
        if !links.is_pausing() && !self.freezing.is_wanted() && !seat.desk.admission.is_frozen() {
            turn.work += controller.poll(now, &mut Errand { seat, links });
        }
        if turn.work > 0 || self.has_errands() {
            self.settle(now);
        }
        turn
    }

    fn has_errands(&self) -> bool {
        self.seat.desk.has_news()
            || !self.links.local.is_empty()
            || self.links.is_moving()
            || self.freezing.is_wanted()
            || !self.waiting.is_nothing()
    }

    /// Carries commands to the local group and its reports to the controller until neither has any, then answers the
    /// session's call if what it waits for has come.
    fn settle(&mut self, now: Now) {
        if self.freezing.is_wanted() {
            return self.freeze();
        }
        loop {
            if let Some(command) = self.links.local.pop_front() {
                self.seat.command(command);
            } else if let Some(event) = self.seat.desk.reports.pop_front() {
                self.group_event(event, now);
            } else {
                break;
            }
        }
        self.seat.desk.backend.kick();
        self.waiting.flush(&mut self.seat.desk);
        let interrupts = matches!(self.waiting, Waiting::Interrupts { .. });
        if self.waiting.answer(self.controller.is_resetting()) && interrupts {
            self.seat.desk.interrupts.send_unsent();
            self.refresh_line();
        }
        if self.seat.desk.take_line_news() {
            self.refresh_line();
        }
        self.consider_moving(now);
    }

    fn group_event(&mut self, event: GroupEvent, now: Now) {
        match event {
            GroupEvent::MemoryAdopted { generation } => {
                if self.waiting.adopted(generation) {
                    let map = Arc::clone(&self.links.memory);
                    self.seat.memory_adopted(&map);
                }
            }
            GroupEvent::NeedsRemote => self.want_private(),
            GroupEvent::Yielded { cqid, kept } => self.links.yielded(&self.seat, cqid, kept, now),
            event => {
                let Self { seat, controller, links, .. } = self;
                if let Some(event) = links.gather(event) {
                    controller.event(event, now, &mut Errand { seat, links });
                }
            }
        }
    }

    /// News from a branch.
    pub(crate) fn news(&mut self, news: News, now: Now) {
        match news {
            News::Group(event) if self.freezing.is_wanted() => self.frozen_event(event),
            News::Group(event) => self.group_event(event, now),
            News::InterruptsTaken => self.waiting.interrupts_taken(),
            News::Line => {
                self.seat.desk.interrupts.line_news_taken();
                self.refresh_line();
            }
        }
        self.settle(now);
    }

    /// The record keeper wrote the ssd's record, or could not.
    pub(crate) fn persisted(&mut self, ok: bool, now: Now) {
        if self.freezing.is_wanted() {
            return;
        }
        let Self { seat, controller, links, .. } = self;
        controller.persisted(ok, now, &mut Errand { seat, links });
        self.leaving.note_record();
        self.settle(now);
    }

    /// What became of an order of a management controller's.
    pub(crate) fn managed(&mut self, ticket: u32, report: Report, now: Now) {
        if self.freezing.is_wanted() {
            return;
        }
        let Self { seat, controller, links, .. } = self;
        controller.managed(ticket, report, now, &mut Errand { seat, links });
        self.settle(now);
    }

    /// What was found in the drive's map.
    pub(crate) fn surveyed(&mut self, ticket: u32, found: Result<AllocationList, Unsurveyed>, now: Now) {
        if self.freezing.is_wanted() {
            return;
        }
        let Self { seat, controller, links, .. } = self;
        controller.surveyed(ticket, found, now, &mut Errand { seat, links });
        self.settle(now);
    }

    /// Does what the session asks. One call at a time: a session waits for its answer.
    pub(crate) fn call(&mut self, call: Call, reply: SyncSender<Answer>, now: Now) -> Next {
        if self.freezing.is_wanted() {
            self.freezing.leave_unanswered(reply);
            return Next::Stay;
        }
        let Self { seat, controller, links, .. } = self;
        let mut errand = Errand { seat, links };
        // The session is gone when an answer cannot be sent; nothing is owed to it then.
        let answer = match call {
            Call::ConfigRead { offset, len } => {
                let mut data = vec![0; len];
                controller.config_read(offset, &mut data);
                Answer::Bytes(data)
            }
            Call::ConfigWrite { offset, data } => {
                controller.config_write(offset, &data, now, &mut errand);
                Answer::Done
            }
            Call::BarRead { bar, offset, len } => {
                let mut data = vec![0; len];
                controller.bar_read(bar, offset, &mut data);
                Answer::Bytes(data)
            }
            Call::BarWrite { bar, offset, data } => {
                controller.bar_write(bar, offset, &data, now, &mut errand);
                Answer::Done
            }
            Call::Save => Answer::State(Box::new(controller.save(now))),
            Call::Outline => Answer::Outline(Box::new(controller.outline())),
            Call::Grow(capacity_bytes) => {
                controller.grow(capacity_bytes, now, &mut errand);
                Answer::Done
            }
            Call::MaskIntx(masked) => {
                seat.desk.interrupts.mask_intx(masked);
                Answer::Done
            }
            Call::Reset => {
                controller.reset(now, &mut errand);
                self.waiting.turn_to(Waiting::Quiet { reply });
                return self.end_call(now);
            }
            Call::Memory { map, client } => {
                self.adopt_memory(map, client, reply, now);
                return self.end_call(now);
            }
            Call::Log => {
                self.log_memory(reply, now);
                return self.end_call(now);
            }
            Call::Interrupts(table) => {
                self.adopt_interrupts(table, reply);
                return self.end_call(now);
            }
            Call::Flush => {
                self.waiting.turn_to(Waiting::Flush { submitted: false, reply });
                return self.end_call(now);
            }
            Call::Pause => {
                self.freezing.want(reply);
                self.freeze();
                return Next::Stay;
            }
            Call::Halt => {
                self.leave(reply);
                return self.end_call(now);
            }
            Call::GoOn => {
                self.stay();
                Answer::Done
            }
            Call::PowerOff => {
                links.cut(seat);
                let _ = reply.send(Answer::Record(Box::new(controller.record())));
                return Next::Gone;
            }
        };
        self.settle(now);
        self.refresh_line();
        let _ = reply.send(answer);
        Next::Stay
    }

    fn end_call(&mut self, now: Now) -> Next {
        self.settle(now);
        Next::Stay
    }

    fn adopt_memory(
        &mut self,
        map: Arc<MemoryMap>,
        client: Arc<dyn Client>,
        reply: SyncSender<Answer>,
        now: Now,
    ) {
        let map = if self.private { Arc::new(map.with_remote(Arc::clone(&client) as _)) } else { map };
        self.client = Some(client);
        let map = self.seat.ssd.written.on(map);
        self.use_memory(map, reply, now);
    }

    /// The log of the memory is another now.
    fn log_memory(&mut self, reply: SyncSender<Answer>, now: Now) {
        if !self.waiting.is_nothing() {
            let _ = reply.send(Answer::Failed(Errno::AGAIN));
            return;
        }
        let map = self.seat.ssd.written.on(Arc::clone(&self.links.memory));
        if Arc::ptr_eq(&map, &self.links.memory) {
            let _ = reply.send(Answer::Done);
        } else {
            self.use_memory(map, reply, now);
        }
    }

    fn use_memory(&mut self, map: Arc<MemoryMap>, reply: SyncSender<Answer>, now: Now) {
        self.links.memory = Arc::clone(&map);
        let Self { seat, controller, links, .. } = self;
        controller.memory(Arc::clone(&map), now, &mut Errand { seat, links });
        let generation = map.generation();
        let left = links.broadcast(seat, &GroupCommand::Memory { map });
        self.waiting.turn_to(Waiting::Memory { generation, left, reply });
    }

    fn adopt_interrupts(&mut self, table: Table, reply: SyncSender<Answer>) {
        self.seat.desk.interrupts = table.clone();
        let left = self.links.send_interrupts(&self.seat, &table);
        self.waiting.turn_to(Waiting::Interrupts { left, reply });
    }

    /// INTx is a level: it is sent while it is asserted, once for each time the client unmasks it.
    fn refresh_line(&self) {
        let interrupts = &self.seat.desk.interrupts;
        if interrupts.uses_intx() && self.controller.intx_pending() {
            interrupts.raise_intx();
        }
    }

    /// The guest's queues or data lie where only the socket reaches: this ssd needs a reactor of its own.
    fn want_private(&mut self) {
        if !self.private && self.client.is_some() {
            self.links.want_to_move(Goal::Private);
        }
    }

    /// Queue pairs leave reactors that are off duty, and so does the home. Said again until nothing of it is there.
    pub(crate) fn muster(&mut self, crew: &Crew, here: usize, now: Now) {
        if self.private || self.freezing.is_wanted() {
            return;
        }
        let may_leave = self.links.may_leave(now);
        if self.controller.is_quiet() && may_leave {
            self.links.muster(&self.seat);
        }
        if !crew.is_on_duty(here) && !self.links.is_moving() && may_leave {
            self.links.want_to_move(Goal::Shared(crew.deal(self.seat.id().0)));
        }
        self.settle(now);
    }

    /// As [`Seat::heed`].
    pub(crate) fn heed(&mut self, rings: &Rings, heard: crate::watch::Heard) {
        self.seat.heed(rings, &self.links.memory, heard);
    }

    /// Moves a queue pair to another reactor, if that can be done now.
    pub(crate) fn shift(&mut self, cqid: u16, to: usize, now: Now) {
        if !self.private && !self.freezing.is_wanted() && self.controller.is_quiet() {
            self.links.transfer(&self.seat, cqid, to);
            self.settle(now);
        }
    }

    /// Its queue pairs, each with its reactor and what it has done so far.
    pub(crate) fn pairs(&self) -> Vec<(u16, usize, u64)> {
        self.links.pairs(&self.seat.power.region)
    }

    /// Where it moves to.
    pub(crate) fn goal(&self) -> Goal {
        self.links.goal()
    }

    /// Begins to move once no call of the session is half done, and the guest still wants something.
    fn consider_moving(&mut self, now: Now) {
        if self.controller.needs_remote() {
            self.want_private();
        }
        self.pause_before_leaving();
        let wanted = self.seat.power.is_enabled() || self.links.goal() != Goal::Private;
        if self.waiting.is_nothing() && self.controller.is_quiet() && wanted {
            self.links.go(&self.seat, now);
        }
        self.links.give_up_late(&self.seat, now);
    }

    /// The home is to be given to another reactor now: every group is paused and drained.
    pub(crate) fn moves(&self) -> bool {
        !self.freezing.is_wanted()
            && self.links.is_paused()
            && self.waiting.is_nothing()
            && self.controller.is_quiet()
            && self.may_leave()
    }

    /// Packs up.
    pub(crate) fn pack(mut self) -> Settlement {
        self.links.cut(&self.seat);
        let private = self.goal() == Goal::Private;
        let Self { seat, controller, mut links, client, .. } = self;
        let resume = Some(links.hand_on());
        let self_client = client.clone();
        let memory = match client {
            Some(client) if private => Arc::new(links.memory.with_remote(client)),
            _ => links.memory,
        };
        Settlement {
            ssd: seat.ssd,
            power: seat.power,
            controller,
            memory,
            interrupts: seat.desk.interrupts,
            namespaces: links.namespaces,
            resume,
            client: self_client,
            private,
        }
    }

    /// Ends the session of a client that took away the file behind its memory. What was read of it since are zeros.
    /// Called now and then.
    pub(crate) fn check_client(&mut self) {
        if self.links.memory.is_poisoned()
            && let Some(client) = self.client.take()
        {
            tracing::warn!(ssd = self.seat.ssd.name, "the client shrank the file behind its memory: hung up");
            client.hang_up();
        }
    }

    /// Whether there is nothing to do but to wait for doorbells, mail, or a timer.
    #[inline]
    pub(crate) fn rest(&mut self) -> bool {
        !self.has_errands() && self.seat.rest() && self.controller.rest()
    }

    /// Whether the guest rang since it rests.
    #[inline]
    pub(crate) fn rang(&self) -> bool {
        self.seat.rang() || self.controller.rang()
    }

    /// What it waits for while it rests.
    pub(crate) fn watch(&self, watch: &mut Watch) {
        watch.begin(&self.seat.power.doorbells);
        self.controller.watch(watch);
        self.seat.group.watch(watch);
    }

    /// When the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Now> {
        self.controller.deadline().into_iter().chain(self.links.lull_ends()).min()
    }
}
