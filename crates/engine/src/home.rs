//! An ssd's home: the reactor that owns its controller, and the controller's links to its queues on other reactors.
//!
//! ```text
//!  session --Call--> Home { controller, seat (its group here) } --GroupCommand--> Branch { seat } on other reactors
//!          <-Answer-                                            <-----News------
//! ```
//! The controller sees all groups as one: a command to all is broadcast, and the acknowledgements are gathered into one.

use crate::interrupts::Table;
use crate::message::{Address, Answer, Branching, Call, Client, Message, News, Settlement};
use crate::records::Records;
use crate::seat::{Desk, Seat, Turn};
use block::{Now, Op, Outcome, Range, Request, Submitted, Token};
use memory::MemoryMap;
use nvme::controller::Controller;
use nvme::host::Host;
use nvme::namespace::NamespaceTable;
use nvme::queue::Watch;
use nvme::sink::{GroupCommand, GroupEvent};
use rustix::io::Errno;
use state::region::QUEUES_MAX;
use state::ssd::SsdV1;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// The engine's own flush. Distinct from every token of a group (top bit clear) and of a controller (which numbers its
/// tokens from the top bit up).
const FLUSH: Token = Token(u64::MAX);

/// See the module.
pub(crate) struct Home {
    pub(crate) seat: Seat,
    pub(crate) controller: Controller,
    links: Links,
    waiting: Waiting,
    private: bool,
    client: Option<Arc<dyn Client>>,
}

/// What a home does next, as its reactor sees it.
pub(crate) enum Next {
    /// Stay.
    Stay,
    /// All queues are paused: move to a private reactor.
    Move,
    /// The power is off: drop the home.
    Gone,
}

/// The ways from the controller to its queues.
struct Links {
    this: Address,
    /// Reactors that queues may be placed on, this one first.
    reactors: Vec<Address>,
    records: Records,
    /// Where each completion queue lives: index into `reactors`.
    places: [Option<u8>; QUEUES_MAX],
    /// Which of `reactors` have a branch; the first is this seat and always true.
    branched: Vec<bool>,
    memory: Arc<MemoryMap>,
    namespaces: Arc<NamespaceTable>,
    gathers: Vec<Gather>,
    /// Commands for this reactor's own group, run after the controller returns.
    local: VecDeque<GroupCommand>,
    moving: Option<Moving>,
}

/// A broadcast that waits for its acknowledgements.
struct Gather {
    id: u32,
    left: usize,
}

/// On the way to a private reactor.
enum Moving {
    Wanted,
    Pausing { left: usize },
    Paused,
}

/// Acknowledgement ids of the engine's own: above all of the controller's.
const PAUSE: u32 = u32::MAX;

/// The one call of the session that waits for something.
enum Waiting {
    Nothing,
    Memory { generation: u64, left: usize, reply: SyncSender<Answer> },
    Interrupts { left: usize, reply: SyncSender<Answer> },
    Quiet { reply: SyncSender<Answer> },
    Flush { submitted: bool, reply: SyncSender<Answer> },
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
        self.seat.desk.interrupts.raise(vector);
    }

    fn to_queue(&mut self, cqid: u16, command: GroupCommand) {
        let place = self.links.place(cqid, &command);
        self.links.send(self.seat, place, command);
    }

    fn to_all(&mut self, command: GroupCommand) {
        self.links.broadcast(self.seat, &command);
    }

    fn persist(&mut self, record: SsdV1) {
        self.links.records.keep(&self.seat.ssd, record, &self.links.this);
    }

    fn namespaces(&mut self, table: &Arc<NamespaceTable>) {
        self.links.namespaces = Arc::clone(table);
    }
}

impl Links {
    /// The reactor of a completion queue. A new one goes where the fewest of this ssd's queues are, home first: ssds spread
    /// by their homes, the queues of one ssd by this.
    fn place(&mut self, cqid: u16, command: &GroupCommand) -> usize {
        let cqid = usize::from(cqid) % QUEUES_MAX;
        if let GroupCommand::CreateCq { .. } = command {
            let count = self.reactors.len();
            let load =
                |at: usize| self.places.iter().flatten().filter(|place| usize::from(**place) == at).count();
            let place = (0..count).min_by_key(|at| load(*at)).unwrap_or(0);
            self.places[cqid] = u8::try_from(place).ok();
        }
        self.places[cqid].map_or(0, usize::from)
    }

    fn send(&mut self, seat: &Seat, place: usize, command: GroupCommand) {
        if place == 0 {
            return self.local.push_back(command);
        }
        if !self.branched[place] {
            self.branched[place] = true;
            let branching = Branching {
                ssd: Arc::clone(&seat.ssd),
                power: seat.power.clone(),
                memory: Arc::clone(&self.memory),
                interrupts: seat.desk.interrupts.clone(),
                namespaces: Arc::clone(&self.namespaces),
                home: Arc::clone(&self.this),
            };
            self.reactors[place].send(Message::Branch(Box::new(branching)));
        }
        self.reactors[place].send(Message::Group(seat.id(), command));
    }

    /// To every group there is; returns how many.
    fn broadcast(&mut self, seat: &Seat, command: &GroupCommand) -> usize {
        let places: Vec<usize> = (0..self.reactors.len()).filter(|at| self.branched[*at]).collect();
        for &place in &places {
            self.send(seat, place, command.clone());
        }
        if let Some(id) = command.acknowledged_by()
            && id != PAUSE
        {
            self.gathers.push(Gather { id, left: places.len() });
        }
        places.len()
    }

    /// Counts one group's acknowledgement; true when it was the last.
    fn gathered(&mut self, id: u32) -> bool {
        if id == PAUSE {
            if let Some(Moving::Pausing { left }) = &mut self.moving {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.moving = Some(Moving::Paused);
                }
            }
            return false;
        }
        let Some(at) = self.gathers.iter().position(|gather| gather.id == id) else { return true };
        self.gathers[at].left = self.gathers[at].left.saturating_sub(1);
        if self.gathers[at].left > 0 {
            return false;
        }
        self.gathers.swap_remove(at);
        true
    }

    /// Ends all branches. Their groups are drained.
    fn cut(&mut self, seat: &Seat) {
        for (reactor, branched) in self.reactors.iter().zip(&mut self.branched).skip(1) {
            if std::mem::take(branched) {
                reactor.send(Message::Leave(seat.id()));
            }
        }
    }
}

impl Home {
    /// Opens the drive on this thread and, for a moved ssd, goes on with the queues that exist.
    pub(crate) fn new(
        plan: Settlement,
        reactors: Vec<Address>,
        records: Records,
        now: Now,
    ) -> std::io::Result<Self> {
        let Settlement { ssd, power, controller, memory, interrupts, namespaces, resume, private } = plan;
        let seat = Seat::new(ssd, power, &memory, interrupts, Arc::clone(&namespaces))?;
        let mut branched = vec![false; reactors.len()];
        branched[0] = true;
        let links = Links {
            this: Arc::clone(&reactors[0]),
            reactors,
            records,
            places: [None; QUEUES_MAX],
            branched,
            memory,
            namespaces,
            gathers: Vec::new(),
            local: VecDeque::new(),
            moving: None,
        };
        let mut home = Self { seat, controller, links, waiting: Waiting::Nothing, private, client: None };
        if resume {
            home.resume_queues(now);
        }
        Ok(home)
    }

    /// The groups it had are gone; the queues they left in the region go on here.
    fn resume_queues(&mut self, now: Now) {
        let Self { seat, controller, links, .. } = self;
        let memory = Arc::clone(&links.memory);
        controller.memory(memory, now, &mut Errand { seat, links });
        let region = Arc::clone(&self.seat.power.region);
        let exists =
            |size: &std::sync::atomic::AtomicU32| size.load(std::sync::atomic::Ordering::Acquire) != 0;
        let queues = || (1u16..).zip(1..QUEUES_MAX);
        for (cqid, at) in queues().filter(|(_, at)| exists(&region.cqs[*at].size)) {
            self.links.places[at] = Some(0);
            self.links.local.push_back(GroupCommand::CreateCq { cqid });
        }
        for (sqid, _) in queues().filter(|(_, at)| exists(&region.sqs[*at].size)) {
            self.links.local.push_back(GroupCommand::CreateSq { sqid });
        }
    }

    /// One turn of the reactor.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now) -> Turn {
        let Self { seat, controller, links, waiting, .. } = self;
        let mut own = Vec::new();
        let mut turn = seat.turn(now, |_, completion| own.push(completion));
        for (token, outcome) in own {
            if token == FLUSH {
                finish_flush(waiting, outcome);
            } else {
                controller.complete(token, outcome, now, &mut Errand { seat, links });
            }
        }
        turn.work += controller.poll(now, &mut Errand { seat, links });
        if turn.work > 0 || self.has_errands() {
            self.settle(now);
        }
        turn
    }

    fn has_errands(&self) -> bool {
        !self.seat.desk.reports.is_empty()
            || !self.links.local.is_empty()
            || self.links.moving.is_some()
            || !matches!(self.waiting, Waiting::Nothing)
    }

    /// Carries commands to the local group and its reports to the controller until neither has any, then answers the
    /// session's call if what it waits for has come.
    fn settle(&mut self, now: Now) {
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
        self.answer();
        self.consider_moving();
    }

    fn group_event(&mut self, event: GroupEvent, now: Now) {
        match event {
            GroupEvent::MemoryAdopted { generation } => self.memory_adopted(generation),
            GroupEvent::NeedsRemote => self.want_private(),
            GroupEvent::Acknowledged { id } if !self.links.gathered(id) => {}
            event => {
                let Self { seat, controller, links, .. } = self;
                controller.event(event, now, &mut Errand { seat, links });
            }
        }
    }

    fn memory_adopted(&mut self, adopted: u64) {
        if let Waiting::Memory { generation, left, .. } = &mut self.waiting
            && *generation == adopted
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let map = Arc::clone(&self.links.memory);
                self.seat.memory_adopted(&map);
            }
        }
    }

    /// News from a branch.
    pub(crate) fn news(&mut self, news: News, now: Now) {
        match news {
            News::Group(event) => self.group_event(event, now),
            News::InterruptsTaken => {
                if let Waiting::Interrupts { left, .. } = &mut self.waiting {
                    *left = left.saturating_sub(1);
                }
            }
        }
        self.settle(now);
    }

    /// The record keeper wrote the ssd's record, or could not.
    pub(crate) fn persisted(&mut self, ok: bool, now: Now) {
        let Self { seat, controller, links, .. } = self;
        controller.persisted(ok, now, &mut Errand { seat, links });
        self.settle(now);
    }

    /// Does what the session asks. One call at a time: a session waits for its answer.
    pub(crate) fn call(&mut self, call: Call, reply: SyncSender<Answer>, now: Now) -> Next {
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
            Call::MaskIntx(masked) => {
                seat.desk.interrupts.mask_intx(masked);
                Answer::Done
            }
            Call::Reset => {
                controller.reset(now, &mut errand);
                self.waiting = Waiting::Quiet { reply };
                return self.end_call(now);
            }
            Call::Memory { map, client } => {
                self.adopt_memory(map, client, reply, now);
                return self.end_call(now);
            }
            Call::Interrupts(table) => {
                self.adopt_interrupts(table, reply);
                return self.end_call(now);
            }
            Call::Flush => {
                self.waiting = Waiting::Flush { submitted: false, reply };
                return self.end_call(now);
            }
            Call::PowerOff => {
                links.cut(seat);
                let _ = reply.send(Answer::Record(Box::new(controller.record())));
                return Next::Gone;
            }
        };
        self.settle(now);
        self.refresh_intx();
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
        self.links.memory = Arc::clone(&map);
        let Self { seat, controller, links, .. } = self;
        controller.memory(Arc::clone(&map), now, &mut Errand { seat, links });
        let generation = map.generation();
        let left = links.broadcast(seat, &GroupCommand::Memory { map });
        self.waiting = Waiting::Memory { generation, left, reply };
    }

    fn adopt_interrupts(&mut self, table: Table, reply: SyncSender<Answer>) {
        self.seat.desk.interrupts = table.clone();
        let mut left = 0;
        for (reactor, branched) in self.links.reactors.iter().zip(&self.links.branched).skip(1) {
            if *branched {
                reactor.send(Message::Interrupts(self.seat.id(), table.clone()));
                left += 1;
            }
        }
        self.waiting = Waiting::Interrupts { left, reply };
    }

    /// Level-triggered: what became pending or unmasked by the last register access fires now.
    fn refresh_intx(&self) {
        let interrupts = &self.seat.desk.interrupts;
        if interrupts.uses_intx() && self.controller.intx_pending() {
            interrupts.raise_intx();
        }
    }

    /// Answers the call that waits, if what it waits for has come.
    fn answer(&mut self) {
        let done = match &mut self.waiting {
            Waiting::Nothing => false,
            Waiting::Memory { left, .. } | Waiting::Interrupts { left, .. } => *left == 0,
            Waiting::Quiet { .. } => !self.controller.is_resetting(),
            Waiting::Flush { submitted: true, .. } => false,
            Waiting::Flush { submitted, .. } => match submit_flush(&mut self.seat.desk) {
                Submitted::Ended(outcome) => return finish_flush(&mut self.waiting, outcome),
                taken => {
                    *submitted = taken == Submitted::Queued;
                    false
                }
            },
        };
        if !done {
            return;
        }
        match std::mem::replace(&mut self.waiting, Waiting::Nothing) {
            Waiting::Interrupts { reply, .. } => {
                self.seat.desk.interrupts.send_unsent();
                let _ = reply.send(Answer::Done);
            }
            Waiting::Memory { reply, .. } | Waiting::Quiet { reply } => {
                let _ = reply.send(Answer::Done);
            }
            other => self.waiting = other,
        }
    }

    /// The guest's queues or data lie where only the socket reaches: this ssd needs a reactor of its own.
    fn want_private(&mut self) {
        if !self.private && self.links.moving.is_none() && self.client.is_some() {
            self.links.moving = Some(Moving::Wanted);
        }
    }

    /// Begins to move once no call of the session is half done.
    fn consider_moving(&mut self) {
        if self.controller.needs_remote() {
            self.want_private();
        }
        let ready = matches!(self.waiting, Waiting::Nothing) && self.controller.is_quiet();
        if ready && matches!(self.links.moving, Some(Moving::Wanted)) {
            let left = self.links.broadcast(&self.seat, &GroupCommand::Pause { id: PAUSE });
            self.links.moving = Some(Moving::Pausing { left });
        }
    }

    /// What the reactor is to do with this home.
    pub(crate) fn next(&self) -> Next {
        let idle = matches!(self.waiting, Waiting::Nothing);
        if idle && matches!(self.links.moving, Some(Moving::Paused)) { Next::Move } else { Next::Stay }
    }

    /// Packs up: every group is paused and drained.
    pub(crate) fn pack(mut self) -> Settlement {
        self.links.cut(&self.seat);
        let Self { seat, controller, links, client, .. } = self;
        let memory = match client {
            Some(client) => Arc::new(links.memory.with_remote(client)),
            None => links.memory,
        };
        Settlement {
            ssd: seat.ssd,
            power: seat.power,
            controller,
            memory,
            interrupts: seat.desk.interrupts,
            namespaces: links.namespaces,
            resume: true,
            private: true,
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

    /// When there is nothing to do but to wait for doorbells, mail, or a timer: adds a watch for each doorbell.
    pub(crate) fn watch(&mut self, watches: &mut Vec<Watch>) -> bool {
        !self.has_errands() && self.controller.watch(watches) && self.seat.group.watch(watches)
    }

    /// When the next timer of the controller is due.
    pub(crate) fn deadline(&self) -> Option<Now> {
        self.controller.deadline()
    }
}

fn submit_flush(desk: &mut Desk) -> Submitted {
    let range = Range { start_bytes: 0, len_bytes: 0 };
    let flush = Request { token: FLUSH, op: Op::Flush, range, data: &[] };
    let submitted = desk.hand_in(&flush);
    desk.backend.kick();
    submitted
}

fn finish_flush(waiting: &mut Waiting, outcome: Outcome) {
    if let Waiting::Flush { reply, .. } = std::mem::replace(waiting, Waiting::Nothing) {
        let answer = if outcome == Outcome::Done { Answer::Done } else { Answer::Failed(Errno::IO) };
        let _ = reply.send(answer);
    }
}
