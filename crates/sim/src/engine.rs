//! The engine's part between a controller and its queue groups, small: reactors, messages between them, records, and taking
//! over from a predecessor that ended anywhere.
//!
//! What is private to the process is in [`Engine`] and goes with it; what the keeper and the kernel hold is in [`Outside`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{Now, Outcome, Range, Request, Submitted, Token};
use memory::{DoorbellPage, MemoryMap, SharedRegion};
use nvme::controller::{AllocationQuery, Controller, ControllerConfig, Host, Survey};
use nvme::crash;
use nvme::group::{GroupConfig, QueueGroup};
use nvme::limits::MDTS_BYTES;
use nvme::management::Order;
use nvme::namespace::NamespaceTable;
use nvme::profile::{GODWIT_2, Identity};
use nvme::queue::conclude;
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use state::SsdV1;
use state::region::{ControllerRegion, QUEUES_MAX};

use crate::crossing::watch::Watch;
use crate::disk::{Disk, SECTOR};
use crate::rng::Rng;

/// The home's door to the drive; groups have their index.
pub const HOME: usize = 100;
/// Acknowledgement ids of the engine's own.
const PAUSE: u32 = u32::MAX;
const RESUME: u32 = 0;

/// What outlives the engine.
pub struct Outside {
    /// The controller's region.
    pub region: Arc<SharedRegion<ControllerRegion>>,
    /// Its doorbells.
    pub doorbells: Arc<SharedRegion<DoorbellPage>>,
    /// The drive.
    pub disk: Disk,
    /// The record as it is on stable storage.
    pub record: SsdV1,
    /// The record that is being written.
    pub writing: Option<SsdV1>,
    /// Interrupts that were raised and not taken, by vector.
    pub interrupts: Vec<bool>,
    /// What the device can reach now.
    pub map: Arc<MemoryMap>,
    /// The ssd's identity.
    pub identity: Identity,
    /// What is noted at the doors to the drive, while the ssd is copied elsewhere.
    pub watch: Option<Watch>,
}

#[derive(Debug)]
struct Gather {
    id: u32,
    left: usize,
    is_hold: bool,
}

/// On the way to other reactors, or to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// Not.
    No,
    /// As soon as nothing is half done.
    Wanted,
    /// Groups still drain.
    Pausing(usize),
    /// All have drained.
    Paused,
}

/// What a process knows of its groups.
struct Links {
    places: Vec<Option<usize>>,
    gathers: Vec<Gather>,
    deletions: Vec<GroupCommand>,
    table: Arc<NamespaceTable>,
    to_group: Vec<VecDeque<GroupCommand>>,
    moving: Moving,
    /// Once all have drained it stands still, until it is let go on.
    halted: bool,
    /// A look at the drive's map that nobody has taken yet.
    survey: Option<(u32, AllocationQuery)>,
    rng: Rng,
}

/// One process.
pub struct Engine {
    /// The controller.
    pub controller: Controller,
    groups: Vec<QueueGroup>,
    to_home: Vec<VecDeque<GroupEvent>>,
    links: Links,
}

struct Errand<'a> {
    links: &'a mut Links,
    outside: &'a mut Outside,
}

impl Host for Errand<'_> {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        crash::point();
        self.outside.submit(HOME, request)
    }

    fn interrupt(&mut self, vector: u16) {
        crash::point();
        self.outside.raise(vector);
    }

    fn to_queue(&mut self, cqid: u16, command: GroupCommand) {
        crash::point();
        if matches!(command, GroupCommand::DeleteSq { .. } | GroupCommand::DeleteCq { .. }) {
            self.links.deletions.push(command.clone());
        }
        let groups = self.links.to_group.len();
        let cqid = usize::from(cqid) % QUEUES_MAX;
        if matches!(command, GroupCommand::CreateCq { .. }) {
            self.links.places[cqid] = Some(self.links.rng.below(groups));
        }
        let place = self.links.places[cqid].unwrap_or(0);
        self.links.to_group[place].push_back(command);
    }

    fn to_all(&mut self, command: GroupCommand) {
        crash::point();
        self.links.broadcast(&command);
    }

    fn persist(&mut self, record: SsdV1) {
        crash::point();
        assert!(self.outside.writing.is_none(), "one record is written at a time");
        self.outside.writing = Some(record);
    }

    fn manage(&mut self, _ticket: u32, _cntlid: u16, _order: Order) {
        unreachable!("an I/O controller manages nobody");
    }

    fn survey(&mut self, ticket: u32, query: AllocationQuery) {
        crash::point();
        assert!(self.links.survey.is_none(), "one look at a time");
        self.links.survey = Some((ticket, query));
    }

    fn namespaces(&mut self, table: &Arc<NamespaceTable>) {
        self.links.table = Arc::clone(table);
    }
}

impl Links {
    fn broadcast(&mut self, command: &GroupCommand) {
        match command {
            GroupCommand::Reset { .. } => {
                self.gathers.retain(|gather| !gather.is_hold);
                self.deletions.clear();
                if matches!(self.moving, Moving::Pausing(_) | Moving::Paused) {
                    self.moving = Moving::Wanted;
                }
            }
            GroupCommand::Release { id } => self.gathers.retain(|gather| gather.id != *id),
            _ => {}
        }
        if let Some(id) = command.acknowledged_by().filter(|id| *id != PAUSE) {
            let is_hold = matches!(command, GroupCommand::Hold { .. });
            self.gathers.push(Gather { id, left: self.to_group.len(), is_hold });
        }
        self.to_group.iter_mut().for_each(|queue| queue.push_back(command.clone()));
    }

    fn gather(&mut self, event: GroupEvent) -> Option<GroupEvent> {
        match event {
            GroupEvent::Acknowledged { id: PAUSE } => {
                if let Moving::Pausing(left) = self.moving {
                    self.moving = if left <= 1 { Moving::Paused } else { Moving::Pausing(left - 1) };
                }
                return None;
            }
            GroupEvent::Acknowledged { id } => {
                let at = self.gathers.iter().position(|gather| gather.id == id)?;
                self.gathers[at].left -= 1;
                if self.gathers[at].left > 0 {
                    return None;
                }
                self.gathers.swap_remove(at);
            }
            GroupEvent::SqDeleted { sqid } => self
                .deletions
                .retain(|it| !matches!(it, GroupCommand::DeleteSq { sqid: its } if *its == sqid)),
            GroupEvent::CqDeleted { cqid } => self
                .deletions
                .retain(|it| !matches!(it, GroupCommand::DeleteCq { cqid: its } if *its == cqid)),
            _ => {}
        }
        Some(event)
    }
}

struct Desk<'a> {
    door: usize,
    reports: &'a mut VecDeque<GroupEvent>,
    outside: &'a mut Outside,
}

impl Sink for Desk<'_> {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        crash::point();
        self.outside.submit(self.door, request)
    }

    fn interrupt(&mut self, vector: u16) {
        crash::point();
        self.outside.raise(vector);
    }

    fn report(&mut self, event: GroupEvent) {
        crash::point();
        self.reports.push_back(event);
    }
}

/// Sectors that are not all zeros.
fn survey(disk: &Disk, range: Range, runs_max: usize) -> Survey {
    let end_bytes = range.end_bytes().unwrap_or(range.start_bytes);
    let mut runs: Vec<Range> = Vec::new();
    for start_bytes in (range.start_bytes..end_bytes).step_by(SECTOR) {
        if disk.look(start_bytes, SECTOR as u64).iter().all(|byte| *byte == 0) {
            continue;
        }
        if runs.len() == runs_max {
            return Survey { runs, end_bytes: start_bytes };
        }
        runs.push(Range { start_bytes, len_bytes: SECTOR as u64 });
    }
    Survey { runs, end_bytes }
}

impl Outside {
    /// The controller over what is there.
    pub(crate) fn controller(&self, now: Now) -> Controller {
        let limits = self.disk.limits();
        let config = ControllerConfig {
            region: Arc::clone(&self.region),
            doorbells: Arc::clone(&self.doorbells),
            profile: GODWIT_2,
            identity: self.identity.clone(),
            capacity_bytes: limits.capacity_bytes,
            limits,
        };
        Controller::new(config, &self.record, now)
    }

    fn submit(&mut self, door: usize, request: &Request<'_>) -> Submitted {
        let submitted = self.disk.submit(door, request);
        if let Some(watch) = &mut self.watch {
            watch.submitted(door, request, submitted);
        }
        submitted
    }

    fn reap(&mut self, door: usize) -> Option<(Token, Outcome)> {
        let ended = self.disk.reap(door)?;
        if let Some(watch) = &mut self.watch {
            watch.ended(door, ended.0);
        }
        Some(ended)
    }

    fn raise(&mut self, vector: u16) {
        if let Some(line) = self.interrupts.get_mut(usize::from(vector)) {
            *line = true;
        }
    }

    /// The write of a record ends: old or new, nothing between.
    pub fn settle_record(&mut self, written: bool) {
        if let Some(record) = self.writing.take().filter(|_| written) {
            self.record = record;
        }
    }
}

impl Engine {
    /// A process that goes on with what is there: a fresh region, a predecessor's, or half of one.
    pub fn start(outside: &mut Outside, groups: usize, mut rng: Rng, now: Now) -> Self {
        outside.disk.fence();
        for sqid in 1..129 {
            if let Some(found) = conclude(&outside.region, sqid) {
                found.settle(&outside.region, sqid);
            }
        }
        let controller = outside.controller(now);
        let table = Arc::clone(controller.namespaces());
        let links = Links {
            places: vec![None; QUEUES_MAX],
            gathers: Vec::new(),
            deletions: Vec::new(),
            table,
            to_group: vec![VecDeque::new(); groups],
            survey: None,
            moving: if rng.one_in(6) { Moving::Wanted } else { Moving::No },
            halted: false,
            rng,
        };
        let mut engine = Self { controller, groups: Vec::new(), to_home: Vec::new(), links };
        engine.make_groups(groups, outside);
        engine.reopen(outside);
        let Self { controller, links, .. } = &mut engine;
        let map = Arc::clone(&outside.map);
        controller.memory(map, now, &mut Errand { links, outside });
        engine
    }

    fn make_groups(&mut self, groups: usize, outside: &Outside) {
        self.to_home = vec![VecDeque::new(); groups];
        self.links.to_group = vec![VecDeque::new(); groups];
        let make = |_| {
            let config = GroupConfig {
                region: Arc::clone(&outside.region),
                doorbells: Arc::clone(&outside.doorbells),
                limits: outside.disk.limits(),
                mdts_bytes: MDTS_BYTES,
            };
            QueueGroup::new(config, Arc::clone(&outside.map), Arc::clone(&self.links.table))
        };
        self.groups = (0..groups).map(make).collect();
    }

    /// Gives the queues that the region names to groups.
    fn reopen(&mut self, outside: &Outside) {
        let exists = |size: &AtomicU32| size.load(Ordering::Acquire) != 0;
        let links = &mut self.links;
        if outside.region.admin.shadow_doorbells.load(Ordering::Acquire) != 0 {
            let command = GroupCommand::ShadowDoorbells { enabled: true, id: RESUME };
            links.to_group.iter_mut().for_each(|queue| queue.push_back(command.clone()));
        }
        for (cqid, _) in (0_u16..).zip(&outside.region.cqs).skip(1).filter(|(_, cq)| exists(&cq.size)) {
            let place = links.rng.below(self.groups.len());
            links.places[usize::from(cqid)] = Some(place);
            links.to_group[place].push_back(GroupCommand::CreateCq { cqid });
        }
        for (sqid, sq) in (0_u16..).zip(&outside.region.sqs).skip(1).filter(|(_, sq)| exists(&sq.size)) {
            let cqid = sq.cqid.load(Ordering::Relaxed) & 0xffff;
            let place = usize::try_from(cqid).ok().and_then(|cqid| *links.places.get(cqid)?).unwrap_or(0);
            links.to_group[place].push_back(GroupCommand::CreateSq { sqid });
        }
    }

    /// A write to BAR0.
    pub fn bar_write(&mut self, offset: u64, data: &[u8], now: Now, outside: &mut Outside) {
        let Self { controller, links, .. } = self;
        let mut errand = Errand { links, outside };
        controller.bar_write(nvme::controller::Bar::Registers, offset, data, now, &mut errand);
    }

    /// A write to configuration space.
    pub fn config_write(&mut self, offset: u16, data: &[u8], now: Now, outside: &mut Outside) {
        let Self { controller, links, .. } = self;
        controller.config_write(offset, data, now, &mut Errand { links, outside });
    }

    /// Guest memory changed.
    pub fn memory(&mut self, now: Now, outside: &mut Outside) {
        let map = Arc::clone(&outside.map);
        let Self { controller, links, .. } = self;
        controller.memory(Arc::clone(&map), now, &mut Errand { links, outside });
        self.links.broadcast(&GroupCommand::Memory { map });
    }

    /// Groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// A turn of the home reactor: its completions, a message, the record's end, the admin doorbell.
    pub fn home_turn(&mut self, now: Now, record_ok: bool, outside: &mut Outside) {
        let Self { controller, links, to_home, .. } = self;
        let mut errand = Errand { links, outside };
        if let Some((token, outcome)) = errand.outside.reap(HOME) {
            controller.complete(token, outcome, now, &mut errand);
        }
        let from = errand.links.rng.below(to_home.len());
        if let Some(event) = to_home[from].pop_front().and_then(|event| errand.links.gather(event)) {
            match event {
                GroupEvent::MemoryAdopted { .. } | GroupEvent::NeedsRemote => {}
                event => controller.event(event, now, &mut errand),
            }
        }
        if errand.outside.writing.is_some() && errand.links.rng.percent(40) {
            errand.outside.settle_record(record_ok);
            controller.persisted(record_ok, now, &mut errand);
        }
        let looks = errand.links.survey.is_some() && errand.links.rng.percent(40);
        if let Some((ticket, query)) = errand.links.survey.take_if(|_| looks) {
            let found = survey(&errand.outside.disk, query.range(), query.runs_max());
            controller.surveyed(ticket, Ok(query.list(&found)), now, &mut errand);
        }
        // A shutdown that found the drive full must go on, or the move would wait for it for ever; it takes no commands.
        let pausing = matches!(errand.links.moving, Moving::Pausing(_) | Moving::Paused);
        if !pausing || controller.is_resetting() {
            controller.poll(now, &mut errand);
        }
        self.consider_moving(outside);
    }

    fn consider_moving(&mut self, outside: &mut Outside) {
        let links = &mut self.links;
        if !self.controller.is_quiet() {
            return;
        }
        if links.moving == Moving::Wanted && links.gathers.is_empty() {
            let left = links.to_group.len();
            links.broadcast(&GroupCommand::Pause { id: PAUSE });
            links.moving = Moving::Pausing(left);
        }
        let silent =
            self.to_home.iter().all(VecDeque::is_empty) && links.to_group.iter().all(VecDeque::is_empty);
        if links.moving == Moving::Paused && links.gathers.is_empty() && silent && !links.halted {
            assert!(self.groups.iter().all(|group| group.in_flight() == 0), "a paused group has drained");
            links.moving = Moving::No;
            let groups = 1 + links.rng.below(3);
            self.make_groups(groups, outside);
            self.reopen(outside);
            for command in self.links.deletions.clone() {
                let place = match command {
                    GroupCommand::DeleteCq { cqid } => self.links.places[usize::from(cqid)],
                    GroupCommand::DeleteSq { sqid } => {
                        let cqid =
                            outside.region.sqs[usize::from(sqid)].cqid.load(Ordering::Relaxed) & 0xffff;
                        usize::try_from(cqid).ok().and_then(|cqid| *self.links.places.get(cqid)?)
                    }
                    _ => None,
                };
                self.links.to_group[place.unwrap_or(0)].push_back(command);
            }
        }
    }

    /// It comes to stand still: nothing of the guest's begins any more, what is at the drive ends, and the rest stays where it is.
    pub fn halt(&mut self) {
        self.links.halted = true;
        if self.links.moving == Moving::No {
            self.links.moving = Moving::Wanted;
        }
    }

    /// It goes on.
    pub fn go_on(&mut self) {
        self.links.halted = false;
    }

    /// Whether it stands still: nothing changes any more, neither the drive nor the guest's memory nor the region.
    #[must_use]
    pub fn stands_still(&self, outside: &Outside) -> bool {
        let links = &self.links;
        let silent =
            self.to_home.iter().all(VecDeque::is_empty) && links.to_group.iter().all(VecDeque::is_empty);
        let rests = links.moving == Moving::Paused && links.gathers.is_empty() && self.controller.is_quiet();
        links.halted && silent && rests && outside.writing.is_none() && outside.disk.in_flight() == 0
    }

    /// A turn of the reactor of one group, as `Seat::turn`.
    pub fn group_turn(&mut self, at: usize, now: Now, outside: &mut Outside) {
        let (Some(group), Some(reports)) = (self.groups.get_mut(at), self.to_home.get_mut(at)) else {
            return;
        };
        let mut desk = Desk { door: at, reports, outside };
        while let Some((token, outcome)) = desk.outside.reap(at) {
            group.complete(token, outcome, &mut desk);
        }
        group.poll(now, &mut desk);
        group.flush(&mut desk);
    }

    /// A message to a group.
    pub fn deliver(&mut self, at: usize, outside: &mut Outside) {
        let (Some(group), Some(reports)) = (self.groups.get_mut(at), self.to_home.get_mut(at)) else {
            return;
        };
        let mut desk = Desk { door: at, reports, outside };
        if let Some(command) = self.links.to_group[at].pop_front() {
            group.command(command, &mut desk);
            group.flush(&mut desk);
        }
    }

    /// For people: what it waits for.
    #[must_use]
    pub fn describe(&self) -> String {
        let in_flight: Vec<usize> = self.groups.iter().map(QueueGroup::in_flight).collect();
        format!(
            "moving {:?}, gathers {:?}, to groups {:?}, to home {:?}, in flight {in_flight:?}, quiet {}, resetting {}",
            self.links.moving,
            self.links.gathers,
            self.links.to_group,
            self.to_home,
            self.controller.is_quiet(),
            self.controller.is_resetting()
        )
    }
}
