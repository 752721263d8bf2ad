//! An ssd's place on one reactor: the group of its I/O queues that live here, and this reactor's own door to its drive.
#![expect(unsafe_code, reason = "guest memory is handed to the drive")]
// UNSAFETY: one call (and one empty implementation) of `Backend::submit`, whose promise (the memory stays mapped until the completion) is kept by the
// group and the controller: both hold the `Arc<MemoryMap>` that a request's segments came from until it ended.

use crate::admission::Admission;
use crate::drive::Drive;
use crate::interrupts::Table;
use crate::message::{Address, Branching, Life, Message, News, SsdId};
use crate::meter::Meter;
use crate::ssd::{Power, Ssd};
use crate::watch::{Heard, SeatDoor};
use backend::uring::Rings;
use block::{Backend, Completion, Fault, Limits, Now, Outcome, Request, Submitted};
use crypt::Crypt;
use nvme::group::QueueGroup;
use nvme::namespace::NamespaceTable;
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use nvme::watch::Watch;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Completions taken from a backend in one turn at most: bounds a turn.
pub(crate) const COMPLETIONS_MAX: usize = 256;

/// What a reactor gives to every seat on it.
#[derive(Clone, Copy)]
pub(crate) struct Stand<'a> {
    pub(crate) rings: &'a Rings,
    /// Where it counts in an ssd's page; no other reactor does.
    pub(crate) lane: usize,
}

/// What queues on a reactor share with their controller when that lives there too.
pub(crate) struct Seat {
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) power: Power,
    /// Before the group: the drive is closed, and done with guest memory, before the group lets go of it.
    pub(crate) desk: Desk,
    pub(crate) group: QueueGroup,
    done: Vec<Completion>,
}

/// What a group and a controller act through.
pub(crate) struct Desk {
    pub(crate) backend: SeatDoor,
    pub(crate) interrupts: Table,
    /// What the group reported in this turn.
    pub(crate) reports: VecDeque<GroupEvent>,
    pub(crate) admission: Admission,
    /// INTx is in use and its level may have changed.
    line_news: bool,
    meter: Meter,
}

impl Desk {
    /// Hands a request of the controller or the engine to the drive. The guest's limits are not theirs.
    pub(crate) fn hand_in(&mut self, request: &Request<'_>) -> Submitted {
        if !self.admission.admits_own(request) {
            return Submitted::Full;
        }
        self.submit_admitted(request)
    }

    #[inline]
    fn submit_admitted(&mut self, request: &Request<'_>) -> Submitted {
        // SAFETY: the segments come from a memory map or buffer that the submitting group or controller holds until the
        // request's completion came back through `Seat::turn`; a seat drops its backend before them (field order).
        unsafe { self.backend.submit(request) }
    }

    /// There is something for the controller.
    pub(crate) fn has_news(&self) -> bool {
        self.line_news || !self.reports.is_empty()
    }

    /// Whether the level of INTx must be looked at.
    pub(crate) fn take_line_news(&mut self) -> bool {
        std::mem::take(&mut self.line_news)
    }
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
        let submitted = self.submit_admitted(request);
        if submitted == Submitted::Full {
            self.admission.no_room(request);
        }
        self.meter.submitted(request, submitted);
        submitted
    }

    fn is_drive_idle(&self) -> bool {
        self.backend.at_drive() == 0
    }

    #[inline]
    fn waited_since(&mut self, since: Now) {
        self.meter.waited_since(since);
    }

    fn interrupt(&mut self, vector: u16) {
        self.line_news |= !self.interrupts.raise(vector);
    }

    fn report(&mut self, event: GroupEvent) {
        self.reports.push_back(event);
    }
}

/// What one turn did.
#[derive(Default)]
pub(crate) struct Turn {
    /// Completions and commands.
    pub(crate) work: usize,
    /// Commands taken from I/O queues.
    pub(crate) commands: usize,
    /// Of a whole reactor: some of the work was of ssds whose limits are not reached.
    pub(crate) is_open: bool,
}

impl Seat {
    /// Opens the drive on this thread. Where that fails (no descriptor or locked memory is left) there is a group all the same,
    /// whose I/O fails: everyone who waits for an answer of it gets one.
    pub(crate) fn new(
        ssd: Arc<Ssd>,
        power: Power,
        memory: &Arc<memory::MemoryMap>,
        interrupts: Table,
        namespaces: Arc<NamespaceTable>,
        stand: &Stand<'_>,
    ) -> Self {
        let backend = SeatDoor::of(&ssd, stand.rings, memory);
        let group = QueueGroup::new(power.group_config(&ssd), Arc::clone(memory), namespaces);
        let (meter, admission) = (Meter::new(&ssd, stand.lane), Admission::new(&ssd.terms));
        let reports = VecDeque::new();
        let desk = Desk { backend, interrupts, reports, admission, line_news: false, meter };
        Self { ssd, power, desk, group, done: Vec::with_capacity(COMPLETIONS_MAX) }
    }

    pub(crate) fn id(&self) -> SsdId {
        self.ssd.id
    }

    pub(crate) fn life(&self) -> Life {
        Life { ssd: self.ssd.id, number: self.power.number }
    }

    /// The drive's completions, then the guest's new commands, then one interrupt a queue. Completions of the controller's own requests go to `controllers`.
    /// `crowded`: other ssds are at work on this reactor.
    #[inline]
    pub(crate) fn turn(
        &mut self,
        now: Now,
        crowded: bool,
        mut controllers: impl FnMut(&mut Desk, Completion),
    ) -> Turn {
        let mut turn = Turn::default();
        self.desk.meter.turn(now);
        if self.group.is_clearing() {
            let Self { desk, group, .. } = self;
            desk.backend.give_up_waiting(&|token| !is_controllers(token) && group.is_unwanted(token));
        }
        if self.desk.backend.in_flight() > 0 {
            self.desk.backend.poll(&mut self.done);
            turn.work = self.done.len();
        }
        self.desk.admission.begin(now, crowded, self.desk.backend.in_flight(), turn.work);
        if turn.work > 0 {
            for (token, outcome) in self.done.drain(..) {
                if is_controllers(token) {
                    controllers(&mut self.desk, (token, outcome));
                } else {
                    self.desk.meter.ended(token, outcome);
                    self.group.complete(token, outcome, &mut self.desk);
                }
            }
        }
        let shut = self.is_shut();
        if shut {
            self.group.poll_shut(now);
        } else {
            turn.commands = self.group.poll(now, &mut self.desk);
        }
        turn.work += turn.commands;
        // In every turn: commands of an earlier one may have gone on, and drains ended, without new ones.
        self.group.flush(&mut self.desk);
        self.desk.admission.end(self.desk.backend.in_flight());
        self.desk.meter.end(shut);
        turn
    }

    /// The ssd is watched from now on, or not any more, or frozen, or thawed.
    pub(crate) fn heed(&mut self, rings: &Rings, memory: &Arc<memory::MemoryMap>, heard: Heard) {
        self.desk.admission.change();
        self.desk.backend.heed(&self.ssd, rings, memory, heard);
    }

    /// Hands what the turn submitted to the drive.
    #[inline]
    pub(crate) fn kick(&mut self) {
        self.desk.backend.kick();
    }

    /// Passes a command to the group, and what it concerns to the backend.
    pub(crate) fn command(&mut self, command: GroupCommand) {
        self.group.command(command, &mut self.desk);
        self.group.flush(&mut self.desk);
    }

    /// Registered guest memory follows the map. Called when no I/O of the former map is in flight.
    pub(crate) fn memory_adopted(&mut self, map: &Arc<memory::MemoryMap>) {
        self.desk.backend.memory_changed(map);
    }

    /// Its limits are reached: nothing of it begins before then.
    pub(crate) fn shut_until(&self) -> Option<Now> {
        self.desk.admission.shut_until()
    }

    #[inline]
    fn is_shut(&self) -> bool {
        self.shut_until().is_some()
    }

    /// Something of this ssd is in flight on this reactor.
    pub(crate) fn is_busy(&self) -> bool {
        self.desk.backend.in_flight() > 0 || self.group.in_flight() > 0
    }

    /// Whether only a doorbell or a message can bring it something to do: it needs no turn until [`Seat::rang`].
    #[inline]
    pub(crate) fn rest(&mut self) -> bool {
        self.desk.backend.in_flight() == 0 && !self.desk.has_news() && self.group.rest()
    }

    /// Whether the guest rang since it rests.
    #[inline]
    pub(crate) fn rang(&self) -> bool {
        self.group.rang()
    }

    /// It rested, and nothing had rung at this time.
    pub(crate) fn looked_at(&mut self, at: Now) {
        self.desk.meter.looked_at(at);
        self.group.looked_at(at);
    }

    /// What wakes a sleeping reactor when the drive is done.
    pub(crate) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        wake_fd(&self.desk.backend)
    }
}

/// What becomes readable when something of a drive ends. `None`: nothing is in flight, or only polling tells.
pub(crate) fn wake_fd(backend: &dyn Backend) -> Option<BorrowedFd<'_>> {
    let fd = backend.wake_fd().filter(|_| backend.in_flight() > 0)?;
    // SAFETY: the descriptor belongs to the backend, which lives as long as the borrow.
    Some(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A door to the drive on this thread, or one behind which all I/O fails.
pub(crate) fn open_door(ssd: &Ssd, rings: &Rings) -> Box<dyn Backend> {
    door_to(ssd, &ssd.drive, rings)
}

/// As [`open_door`], to a drive that has what this ssd had at another time.
pub(crate) fn door_to(ssd: &Ssd, drive: &Drive, rings: &Rings) -> Box<dyn Backend> {
    if !drive.is_there() {
        return Box::new(ClosedDoor(ssd.limits()));
    }
    let plain = drive.door(rings).unwrap_or_else(|error| {
        tracing::error!(ssd = ssd.name, %error, "the drive cannot be opened on a reactor: I/O on it fails");
        Box::new(ClosedDoor(ssd.limits()))
    });
    let Some(key) = &ssd.data_key else { return plain };
    match Crypt::new(plain, key.key()) {
        Some(door) => Box::new(door),
        None => {
            tracing::error!(ssd = ssd.name, "no memory for its cipher: I/O on it fails");
            Box::new(ClosedDoor(ssd.limits()))
        }
    }
}

/// In the place of a drive that could not be opened on this reactor, or has not come yet.
struct ClosedDoor(Limits);

impl Backend for ClosedDoor {
    fn limits(&self) -> Limits {
        self.0
    }

    unsafe fn submit(&mut self, _request: &Request<'_>) -> Submitted {
        Submitted::Ended(Outcome::Failed(Fault::Gone))
    }

    fn kick(&mut self) {}

    fn poll(&mut self, _done: &mut Vec<Completion>) {}

    fn in_flight(&self) -> usize {
        0
    }
}

/// A controller's tokens have the top bit set (crate `nvme`).
fn is_controllers(token: block::Token) -> bool {
    token.0 >> 63 != 0
}

/// An ssd's place on a reactor that is not its home.
pub(crate) struct Branch {
    pub(crate) seat: Seat,
    home: Address,
    pub(crate) memory: Arc<memory::MemoryMap>,
}

impl Branch {
    pub(crate) fn new(plan: Branching, stand: &Stand<'_>) -> Self {
        let Branching { ssd, power, memory, interrupts, namespaces, home } = plan;
        let seat = Seat::new(ssd, power, &memory, interrupts, namespaces, stand);
        Self { seat, home, memory }
    }

    pub(crate) fn turn(&mut self, now: Now, crowded: bool) -> Turn {
        let turn = self.seat.turn(now, crowded, |_, _| {});
        self.tell_home();
        turn
    }

    pub(crate) fn command(&mut self, command: GroupCommand) {
        if let GroupCommand::Memory { map } = &command {
            self.memory = Arc::clone(map);
        }
        self.seat.command(command);
        self.tell_home();
    }

    /// What it waits for while it rests.
    pub(crate) fn watch(&self, watch: &mut Watch) {
        watch.begin(&self.seat.power.doorbells);
        self.seat.group.watch(watch);
    }

    pub(crate) fn interrupts(&mut self, table: Table) {
        self.seat.desk.interrupts = table;
        self.home.send(Message::News(self.seat.life(), News::InterruptsTaken));
    }

    fn tell_home(&mut self) {
        while let Some(event) = self.seat.desk.reports.pop_front() {
            if matches!(event, GroupEvent::MemoryAdopted { .. }) {
                let map = Arc::clone(&self.memory);
                self.seat.memory_adopted(&map);
            }
            self.home.send(Message::News(self.seat.life(), News::Group(event)));
        }
        if self.seat.desk.take_line_news() && self.seat.desk.interrupts.is_first_line_news() {
            self.home.send(Message::News(self.seat.life(), News::Line));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use backend::{Config, Drive};
    use memory::MemoryMap;
    use nvme::profile::{Identity, IdentityConfig, Profile};

    /// An ssd on a drive of its own.
    pub(crate) fn ssd(config: &Config) -> Arc<Ssd> {
        Arc::new(Ssd {
            id: SsdId(0),
            name: "test".to_owned(),
            drive: crate::drive::Drive::Own(Drive::open(config).unwrap()),
            data_key: None,
            profile: Profile::ALL[0].clone(),
            identity: Identity::new(&IdentityConfig { serial: "GW0", ..IdentityConfig::default() }).unwrap(),
            state: None,
            page: Arc::new(memory::SharedRegion::private()),
            keeper: None,
            terms: crate::terms::Terms::unlimited(),
            watch: crate::watch::Watch::default(),
            management: std::sync::OnceLock::new(),
            written: crate::written::Written::default(),
            is_surveyed: std::sync::atomic::AtomicBool::new(false),
            map_failed: crate::trouble::Trouble::default(),
        })
    }

    /// A seat that nobody serves.
    pub(crate) fn seat() -> Seat {
        let power = Power::on("test").unwrap();
        let stand = Stand { rings: &Rings::new(None), lane: 0 };
        let memory = Arc::new(MemoryMap::empty());
        let ssd = ssd(&Config::Ram { size_bytes: 1 << 20 });
        Seat::new(ssd, power, &memory, Table::default(), Arc::new(NamespaceTable::default()), &stand)
    }
}
