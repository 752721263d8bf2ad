//! The ways from a controller to its queues on this and other reactors. The controller sees all groups as one: a command to
//! all is broadcast, and the acknowledgements are gathered into one.

use crate::crew::Crew;
use crate::interrupts::Table;
use crate::message::{Address, Branching, Message};
use crate::records::Records;
use crate::seat::Seat;
use block::Now;
use memory::MemoryMap;
use nvme::namespace::NamespaceTable;
use nvme::queue::{SqRecord, close_cq, close_sq};
use nvme::sink::{GroupCommand, GroupEvent};
use state::region::{ControllerRegion, QUEUES_MAX};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Acknowledgement ids of the engine's own, which no controller uses.
const PAUSE: u32 = u32::MAX;
const FREEZE: u32 = u32::MAX - 1;
const RESUME: u32 = 0;

/// How long what is at the drive may take to end before a home that is to go to another shared reactor stays where it is. Its guest's next
/// commands wait so long.
const LULL_NS: u64 = 10_000_000;
/// When what could not be moved is tried again: first, and at last.
const AGAIN_NS: u64 = 100_000_000;
const AGAIN_MAX_NS: u64 = 1_000_000_000;

/// See the module.
pub(super) struct Links {
    pub(super) this: Address,
    crew: Arc<Crew>,
    /// This reactor.
    here: usize,
    pub(super) records: Records,
    /// The reactor of each completion queue.
    places: [Option<u8>; QUEUES_MAX],
    /// By reactor: it has a branch, or is this one.
    branched: Vec<bool>,
    pub(super) memory: Arc<MemoryMap>,
    pub(super) namespaces: Arc<NamespaceTable>,
    gathers: Vec<Gather>,
    /// Deletions of queues that no group has answered yet.
    deletions: Vec<GroupCommand>,
    /// Commands for this reactor's own group, run after the controller returns.
    pub(super) local: VecDeque<GroupCommand>,
    moving: Moving,
    goal: Goal,
    /// What it was before it was [`Goal::Away`], if it was to move then.
    goal_before: Option<Goal>,
    /// Queue pairs on their way from one reactor to another.
    transfers: Vec<Transfer>,
    /// Holds that were broadcast and not yet released, for groups that come later.
    holds: Vec<GroupCommand>,
    /// Counts lulls: what is said of an earlier one is not of this one.
    lulls: u32,
    /// Before then nothing leaves a reactor that is off duty: something could not.
    again: Now,
    /// The pause after the next such failure.
    patience_ns: u64,
}

/// A queue pair that its reactor was told to let go.
struct Transfer {
    cqid: u16,
    to: usize,
    /// What was asked of it meanwhile.
    waiting: Vec<GroupCommand>,
    /// This reset has come since: there is nothing to be taken over.
    void: Option<u32>,
}

/// What a home that was moved asks of its new groups again.
#[derive(Default)]
pub(crate) struct HandedOn {
    /// Of queues, and not answered yet.
    deletions: Vec<GroupCommand>,
    /// Acknowledged: of a shutdown that is complete.
    holds: Vec<GroupCommand>,
}

/// Where a home moves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A reactor of its own.
    Private,
    /// Another shared one.
    Shared(usize),
    /// None: to whoever asked for it.
    Away,
}

/// A broadcast that waits for its acknowledgements.
#[derive(Debug)]
struct Gather {
    id: u32,
    left: usize,
    is_hold: bool,
}

/// On the way to another reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moving {
    No,
    Wanted,
    /// It moves if what is at the drive ends soon.
    Lulling {
        left: usize,
        since: Now,
    },
    Pausing {
        left: usize,
    },
    Paused,
    /// Nowhere any more: another process goes on.
    Freezing {
        left: usize,
    },
    Frozen,
}

impl Links {
    /// For a home on the reactor `here`, which has a group already.
    pub(super) fn new(
        (crew, here): (Arc<Crew>, usize),
        records: Records,
        memory: Arc<MemoryMap>,
        namespaces: Arc<NamespaceTable>,
    ) -> Self {
        let mut branched = vec![false; crew.len()];
        branched[here] = true;
        Self {
            this: Arc::clone(crew.address(here)),
            crew,
            here,
            records,
            places: [None; QUEUES_MAX],
            branched,
            memory,
            namespaces,
            gathers: Vec::new(),
            deletions: Vec::new(),
            local: VecDeque::new(),
            moving: Moving::No,
            goal: Goal::Private,
            goal_before: None,
            transfers: Vec::new(),
            holds: Vec::new(),
            lulls: 0,
            again: Now(0),
            patience_ns: AGAIN_NS,
        }
    }

    /// The groups there were are gone, paused or killed: the queues they left in the region go on in groups here. Deletions of queues
    /// and holds are only handed on by a seat that was moved: to the group that has the queue now, and to all.
    pub(super) fn resume(&mut self, seat: &Seat, region: &ControllerRegion, handed_on: HandedOn) {
        let HandedOn { deletions, holds } = handed_on;
        self.local.extend(holds.iter().cloned());
        self.holds = holds;
        let exists = |size: &AtomicU32| size.load(Ordering::Acquire) != 0;
        let queues = || (1u16..).zip(1..QUEUES_MAX);
        for (cqid, _) in queues().filter(|(_, at)| exists(&region.cqs[*at].size)) {
            self.send_to_queue(seat, cqid, GroupCommand::CreateCq { cqid });
        }
        // Branches were told when they were made.
        if is_shadowed(region) {
            self.local.push_back(GroupCommand::ShadowDoorbells { enabled: true, id: RESUME });
        }
        for (sqid, _) in queues().filter(|(_, at)| exists(&region.sqs[*at].size)) {
            if let Some(record) = SqRecord::load(region, sqid) {
                self.send_to_queue(seat, record.cqid, GroupCommand::CreateSq { sqid });
            }
        }
        for deletion in deletions {
            match owner_of(region, &deletion) {
                Some(cqid) => self.send_to_queue(seat, cqid, deletion),
                // It is gone: any group says so.
                None => {
                    self.local.push_back(deletion.clone());
                    self.deletions.push(deletion);
                }
            }
        }
    }

    /// To the group that owns a completion queue, or shall own it.
    pub(super) fn send_to_queue(&mut self, seat: &Seat, cqid: u16, command: GroupCommand) {
        if matches!(command, GroupCommand::DeleteSq { .. } | GroupCommand::DeleteCq { .. }) {
            self.deletions.push(command.clone());
        }
        let belongs = matches!(
            command,
            GroupCommand::CreateSq { .. } | GroupCommand::DeleteSq { .. } | GroupCommand::DeleteCq { .. }
        );
        let transfer = self.transfers.iter_mut().find(|it| it.cqid == cqid && it.void.is_none());
        if let Some(transfer) = transfer.filter(|_| belongs) {
            return transfer.waiting.push(command);
        }
        let place = self.place(cqid, &command);
        self.send(seat, place, command);
    }

    /// The reactor of a completion queue. A new one goes where the fewest of this ssd's queues are, home first: ssds spread
    /// by their homes, the queues of one ssd by this.
    fn place(&mut self, cqid: u16, command: &GroupCommand) -> usize {
        let cqid = usize::from(cqid) % QUEUES_MAX;
        if let GroupCommand::CreateCq { .. } = command {
            self.places[cqid] = u8::try_from(self.emptiest()).ok();
        } else if let GroupCommand::DeleteCq { .. } = command {
            let place = self.places[cqid].take();
            return place.map_or(self.here, usize::from);
        }
        self.places[cqid].map_or(self.here, usize::from)
    }

    /// The reactor on duty with the fewest of this ssd's queues.
    fn emptiest(&self) -> usize {
        self.crew.on_duty().min_by_key(|at| (self.queues_on(*at), self.far(*at))).unwrap_or(self.here)
    }

    /// How many reactors lie between.
    fn far(&self, at: usize) -> usize {
        (at + self.crew.len() - self.here) % self.crew.len()
    }

    /// How many of this ssd's completion queues live there.
    pub(super) fn queues_on(&self, reactor: usize) -> usize {
        self.places.iter().flatten().filter(|place| usize::from(**place) == reactor).count()
    }

    fn send(&mut self, seat: &Seat, place: usize, command: GroupCommand) {
        if place == self.here {
            return self.local.push_back(command);
        }
        self.branch(seat, place);
        self.crew.address(place).send(Message::Group(seat.id(), command));
    }

    /// Sees to it that there is a group there, which hears of all that is broadcast from now on.
    fn branch(&mut self, seat: &Seat, place: usize) {
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
            self.crew.address(place).send(Message::Branch(Box::new(branching)));
            if is_shadowed(&seat.power.region) {
                let shadow = GroupCommand::ShadowDoorbells { enabled: true, id: RESUME };
                self.crew.address(place).send(Message::Group(seat.id(), shadow));
            }
            for hold in &self.holds {
                // Who still waits for it waits for this group, too.
                let awaited = self.gathers.iter_mut().filter(|it| hold.acknowledged_by() == Some(it.id));
                awaited.for_each(|gather| gather.left += 1);
                self.crew.address(place).send(Message::Group(seat.id(), hold.clone()));
            }
            if let Moving::Lulling { left, .. } = &mut self.moving {
                *left += 1;
                let lull = GroupCommand::Lull { id: self.lulls };
                self.crew.address(place).send(Message::Group(seat.id(), lull));
            }
        }
    }

    /// To every group there is; returns how many.
    pub(super) fn broadcast(&mut self, seat: &Seat, command: &GroupCommand) -> usize {
        self.supersede(command);
        let places: Vec<usize> = (0..self.crew.len()).filter(|at| self.branched[*at]).collect();
        for &place in &places {
            self.send(seat, place, command.clone());
        }
        if let Some(id) = command.acknowledged_by()
            && id != PAUSE
            && id != FREEZE
        {
            let is_hold = matches!(command, GroupCommand::Hold { .. });
            self.gathers.push(Gather { id, left: places.len(), is_hold });
        }
        places.len()
    }

    /// Takes note of what groups forget when this command reaches them: they will not acknowledge it any more.
    fn supersede(&mut self, command: &GroupCommand) {
        match command {
            GroupCommand::Reset { id } => {
                self.gathers.retain(|gather| !gather.is_hold);
                self.deletions.clear();
                self.holds.clear();
                self.places = [None; QUEUES_MAX];
                for transfer in &mut self.transfers {
                    (transfer.void, transfer.waiting) = (Some(*id), Vec::new());
                }
                // It ends a pause and a lull, too. What a group may still say of that pause comes before it acknowledges the reset.
                if self.is_moving() {
                    self.moving = Moving::Wanted;
                }
            }
            GroupCommand::Hold { .. } => self.holds.push(command.clone()),
            GroupCommand::Release { id } => {
                self.gathers.retain(|gather| gather.id != *id);
                self.holds.retain(|hold| hold.acknowledged_by() != Some(*id));
            }
            _ => {}
        }
    }

    /// The new eventfds to every branch; returns how many.
    pub(super) fn send_interrupts(&self, seat: &Seat, table: &Table) -> usize {
        let branches: Vec<usize> = self.branches().collect();
        for place in &branches {
            self.crew.address(*place).send(Message::Interrupts(seat.id(), table.clone()));
        }
        branches.len()
    }

    fn branches(&self) -> impl Iterator<Item = usize> {
        (0..self.crew.len()).filter(|at| *at != self.here && self.branched[*at])
    }

    /// Takes what a group says. What comes out is for the controller.
    pub(super) fn gather(&mut self, event: GroupEvent) -> Option<GroupEvent> {
        match event {
            GroupEvent::Acknowledged { id } => self.acknowledged(id).then_some(event),
            GroupEvent::Lulled { id } => {
                if let Moving::Lulling { left, .. } = &mut self.moving
                    && id == self.lulls
                {
                    *left = left.saturating_sub(1);
                }
                None
            }
            GroupEvent::SqDeleted { sqid } => {
                self.deletions
                    .retain(|it| !matches!(it, GroupCommand::DeleteSq { sqid: its } if *its == sqid));
                Some(event)
            }
            GroupEvent::CqDeleted { cqid } => {
                self.deletions
                    .retain(|it| !matches!(it, GroupCommand::DeleteCq { cqid: its } if *its == cqid));
                Some(event)
            }
            _ => Some(event),
        }
    }

    /// Counts one group's acknowledgement; true when it was the last. One that nobody waits for is of a hold given up.
    fn acknowledged(&mut self, id: u32) -> bool {
        if let Moving::Pausing { left } = &mut self.moving
            && id == PAUSE
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.moving = Moving::Paused;
            }
            return false;
        }
        if let Moving::Freezing { left } = &mut self.moving
            && id == FREEZE
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.moving = Moving::Frozen;
            }
            return false;
        }
        let Some(at) = self.gathers.iter().position(|gather| gather.id == id) else { return false };
        self.gathers[at].left = self.gathers[at].left.saturating_sub(1);
        if self.gathers[at].left > 0 {
            return false;
        }
        self.gathers.swap_remove(at);
        // All groups have said what there was to say before it.
        self.transfers.retain(|transfer| transfer.void != Some(id));
        true
    }

    /// The ssd needs a reactor of its own, or another one.
    pub(super) fn want_to_move(&mut self, goal: Goal) {
        if self.goal == Goal::Away && self.moving != Moving::No {
            // Who takes it up again is told where it is to be.
            self.goal_before = Some(goal);
        } else if self.moving == Moving::No || goal == Goal::Private {
            self.goal = goal;
        }
        if self.moving == Moving::No {
            self.moving = Moving::Wanted;
        }
    }

    pub(super) fn goal(&self) -> Goal {
        self.goal
    }

    /// The ssd is asked for.
    pub(super) fn want_away(&mut self) {
        self.goal_before = (self.moving != Moving::No).then_some(self.goal);
        self.goal = Goal::Away;
        if self.moving == Moving::No {
            self.moving = Moving::Wanted;
        }
    }

    /// It is no longer asked for. Groups that pause already go on when the home has moved: to where it is.
    pub(super) fn stay(&mut self, seat: &Seat, here: Goal) {
        match self.goal_before.take() {
            Some(goal) => self.goal = goal,
            None if self.moving == Moving::Wanted => (self.moving, self.goal) = (Moving::No, Goal::Private),
            None if matches!(self.moving, Moving::Lulling { .. }) => {
                self.broadcast(seat, &GroupCommand::EndLull);
                (self.moving, self.goal) = (Moving::No, Goal::Private);
            }
            None => self.goal = here,
        }
    }

    /// The groups that have paused say so once more: what was sent to them before is done then.
    pub(super) fn pause_again(&mut self, seat: &Seat) {
        if self.moving == Moving::Paused {
            let left = self.broadcast(seat, &GroupCommand::Pause { id: PAUSE });
            self.moving = Moving::Pausing { left };
        }
    }

    /// Moves on towards another reactor, if that is wanted and nothing else is under way. Who must leave waits for what every group began,
    /// however long that takes; who may as well stay does so if it takes long.
    pub(super) fn go(&mut self, seat: &Seat, now: Now) {
        match self.moving {
            Moving::Wanted if !self.gathers.is_empty() || !self.transfers.is_empty() => {}
            Moving::Wanted if self.goal != Goal::Private => {
                self.lulls = self.lulls.wrapping_add(1);
                let left = self.broadcast(seat, &GroupCommand::Lull { id: self.lulls });
                self.moving = Moving::Lulling { left, since: now };
            }
            Moving::Lulling { left, .. } if left > 0 && self.goal != Goal::Private => {}
            Moving::Wanted | Moving::Lulling { .. } => {
                let left = self.broadcast(seat, &GroupCommand::Pause { id: PAUSE });
                self.moving = Moving::Pausing { left };
            }
            Moving::No
            | Moving::Pausing { .. }
            | Moving::Paused
            | Moving::Freezing { .. }
            | Moving::Frozen => {}
        }
    }

    /// Goes on as before if what is at the drive took too long to end.
    pub(super) fn give_up_late(&mut self, seat: &Seat, now: Now) {
        if self.lull_ends().is_some_and(|at| at <= now) {
            self.broadcast(seat, &GroupCommand::EndLull);
            self.moving = Moving::No;
            self.put_off(now);
        }
    }

    /// When it is given up. Who was asked for the ssd is told when it takes too long.
    pub(super) fn lull_ends(&self) -> Option<Now> {
        let Moving::Lulling { since, .. } = self.moving else { return None };
        (self.goal != Goal::Away).then_some(Now(since.0.saturating_add(LULL_NS)))
    }

    fn put_off(&mut self, now: Now) {
        self.again = Now(now.0.saturating_add(self.patience_ns));
        self.patience_ns = self.patience_ns.saturating_mul(2).min(AGAIN_MAX_NS);
    }

    /// Whether what is on reactors that are off duty may try to leave them.
    pub(super) fn may_leave(&self, now: Now) -> bool {
        now >= self.again
    }

    /// Every group ends what the drive has of it, whatever else is under way: also one that pauses already, which would wait for more.
    pub(super) fn freeze(&mut self, seat: &Seat) {
        if !matches!(self.moving, Moving::Freezing { .. } | Moving::Frozen) {
            let left = self.broadcast(seat, &GroupCommand::Freeze { id: FREEZE });
            self.moving = Moving::Freezing { left };
        }
    }

    /// Its reactor.
    pub(super) fn here(&self) -> usize {
        self.here
    }

    /// Every group has.
    pub(super) fn is_frozen(&self) -> bool {
        self.moving == Moving::Frozen
    }

    /// The groups are pausing or paused: nothing new may be asked of them that a successor would not hear of.
    pub(super) fn is_pausing(&self) -> bool {
        matches!(
            self.moving,
            Moving::Pausing { .. } | Moving::Paused | Moving::Freezing { .. } | Moving::Frozen
        )
    }

    pub(super) fn is_moving(&self) -> bool {
        self.moving != Moving::No
    }

    pub(super) fn is_paused(&self) -> bool {
        self.moving == Moving::Paused && self.gathers.is_empty()
    }

    /// What the next home has to ask again.
    pub(super) fn hand_on(&mut self) -> HandedOn {
        HandedOn { deletions: std::mem::take(&mut self.deletions), holds: std::mem::take(&mut self.holds) }
    }

    /// Ends all branches. Their groups are drained.
    pub(super) fn cut(&mut self, seat: &Seat) {
        for place in self.branches().collect::<Vec<_>>() {
            self.branched[place] = false;
            self.crew.address(place).send(Message::Leave(seat.id()));
        }
    }

    /// Begins to move a queue pair to another reactor. `false`: not now.
    pub(super) fn transfer(&mut self, seat: &Seat, cqid: u16, to: usize) -> bool {
        let from = self.places.get(usize::from(cqid)).copied().flatten().map(usize::from);
        let Some(from) = from.filter(|from| *from != to) else { return false };
        let busy = self.is_moving()
            || !self.holds.is_empty()
            || !self.deletions.is_empty()
            || self.transfers.iter().any(|transfer| transfer.cqid == cqid);
        if busy || !self.crew.is_on_duty(to) {
            return false;
        }
        // Now: a hold that comes while the queue is under way is for who shall have it, too.
        self.branch(seat, to);
        self.transfers.push(Transfer { cqid, to, waiting: Vec::new(), void: None });
        self.send(seat, from, GroupCommand::Yield { cqid });
        true
    }

    /// A queue pair was let go, or is kept: what was asked of it meanwhile goes to who has it now.
    pub(super) fn yielded(&mut self, seat: &Seat, cqid: u16, kept: bool, now: Now) {
        let Some(at) = self.transfers.iter().position(|transfer| transfer.cqid == cqid) else { return };
        let Transfer { to, waiting, void, .. } = self.transfers.swap_remove(at);
        let region = &seat.power.region;
        let sqids = || {
            let of = |sqid: &u16| SqRecord::load(region, *sqid).is_some_and(|record| record.cqid == cqid);
            (1u16..).zip(1..QUEUES_MAX).map(|(sqid, _)| sqid).filter(of)
        };
        if void.is_some() {
            // No group has it, so none closes it for the reset, which has not been answered yet.
            if !kept {
                sqids().for_each(|sqid| close_sq(region, sqid));
                close_cq(region, cqid);
            }
            return;
        }
        if kept {
            self.put_off(now);
        } else {
            self.patience_ns = AGAIN_NS;
            self.places[usize::from(cqid) % QUEUES_MAX] = u8::try_from(to).ok();
            self.send(seat, to, GroupCommand::CreateCq { cqid });
            // Those that were made meanwhile are among what waits.
            let new = |sqid: u16| {
                waiting.iter().any(|it| matches!(it, GroupCommand::CreateSq { sqid: its } if *its == sqid))
            };
            for sqid in sqids().filter(|sqid| !new(*sqid)) {
                self.send(seat, to, GroupCommand::CreateSq { sqid });
            }
        }
        for command in waiting {
            let place = self.place(cqid, &command);
            self.send(seat, place, command);
        }
    }

    /// Queue pairs leave reactors that are off duty, those on duty get the same number each, and empty branches that are off duty end.
    pub(super) fn muster(&mut self, seat: &Seat) {
        for at in self.branches().filter(|at| !self.crew.is_on_duty(*at)).collect::<Vec<_>>() {
            let expected = !self.gathers.is_empty() || !self.transfers.is_empty() || self.is_moving();
            if self.queues_on(at) == 0 && !expected {
                self.branched[at] = false;
                self.crew.address(at).send(Message::Leave(seat.id()));
            }
        }
        for cqid in (1u16..).zip(1..QUEUES_MAX).map(|(cqid, _)| cqid) {
            let Some(at) = self.places[usize::from(cqid)].map(usize::from) else { continue };
            // Those under way count where they will be.
            let mut counts = vec![0; self.crew.len()];
            for (queue, place) in (0u16..).zip(&self.places) {
                let goes = self.transfers.iter().find(|transfer| transfer.cqid == queue);
                let Some(place) = goes.map(|it| it.to).or(place.map(usize::from)) else { continue };
                counts[place] += 1;
            }
            let Some(to) = self.crew.on_duty().min_by_key(|at| (counts[*at], self.far(*at))) else { return };
            if !self.crew.is_on_duty(at) || counts[at] > counts[to] + 1 {
                self.transfer(seat, cqid, to);
            }
        }
    }

    /// The queue pairs there are, each with its reactor and what it has done so far, in requests of 16 KiB.
    pub(super) fn pairs(&self, region: &ControllerRegion) -> Vec<(u16, usize, u64)> {
        let mut pairs: Vec<_> = (0u16..)
            .zip(&self.places)
            .filter_map(|(cqid, place)| Some((cqid, usize::from((*place)?), 0)))
            .collect();
        for (sqid, record) in (0u16..).zip(&region.sqs).skip(1) {
            let Some(found) = SqRecord::load(region, sqid) else { continue };
            let count = |word: &AtomicU64| word.load(Ordering::Relaxed);
            let sectors = count(&record.read_sectors).wrapping_add(count(&record.write_sectors));
            let commands = count(&record.reads).wrapping_add(count(&record.writes));
            if let Some((.., done)) = pairs.iter_mut().find(|(cqid, ..)| *cqid == found.cqid) {
                *done = commands.wrapping_add(sectors >> 5).wrapping_add(*done);
            }
        }
        pairs
    }
}

/// The host gave pages for its doorbells.
fn is_shadowed(region: &ControllerRegion) -> bool {
    region.admin.shadow_doorbells.load(Ordering::Acquire) != 0
}

/// The completion queue of what is to be deleted. `None`: the region does not have it.
fn owner_of(region: &ControllerRegion, deletion: &GroupCommand) -> Option<u16> {
    match deletion {
        GroupCommand::DeleteSq { sqid, .. } => SqRecord::load(region, *sqid).map(|record| record.cqid),
        GroupCommand::DeleteCq { cqid, .. } => Some(*cqid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn links() -> Links {
        let (records, _) = Records::start().unwrap();
        let crew = Crew::new().unwrap();
        crew.call_up(3);
        Links::new((crew, 0), records, Arc::new(MemoryMap::empty()), Arc::new(NamespaceTable::default()))
    }

    fn gather(id: u32, left: usize, is_hold: bool) -> Gather {
        Gather { id, left, is_hold }
    }

    #[test]
    fn the_last_acknowledgement_counts_and_a_stray_one_does_not() {
        let mut links = links();
        links.gathers.push(gather(7, 2, false));
        let heard: Vec<bool> = [7, 8, 7, 7].map(|id| links.acknowledged(id)).into();
        assert_eq!(heard, [false, false, true, false]);
    }

    #[test]
    fn nobody_waits_for_a_hold_that_a_reset_or_its_release_ended() {
        let mut links = links();
        links.gathers.extend([gather(1, 3, true), gather(2, 3, true), gather(3, 1, false)]);
        links.supersede(&GroupCommand::Release { id: 1 });
        links.supersede(&GroupCommand::Reset { id: 4 });
        assert!(links.gathers.iter().map(|gather| gather.id).eq([3]));
    }

    #[test]
    fn a_reset_ends_a_pause_and_what_is_still_said_of_it_is_nothing() {
        let mut links = links();
        links.moving = Moving::Pausing { left: 1 };
        links.supersede(&GroupCommand::Reset { id: 4 });
        assert!(!links.acknowledged(PAUSE));
        assert_eq!(links.moving, Moving::Wanted);
    }

    #[test]
    fn a_home_that_pauses_freezes_when_every_group_says_so_anew() {
        let (mut links, seat) = (links(), crate::seat::tests::seat());
        links.send_to_queue(&seat, 1, GroupCommand::CreateCq { cqid: 1 });
        links.send_to_queue(&seat, 2, GroupCommand::CreateCq { cqid: 2 });
        links.moving = Moving::Pausing { left: 2 };
        (0..2).for_each(|_| links.freeze(&seat));
        assert!(!links.acknowledged(PAUSE), "of the pause before");
        assert!(!links.acknowledged(PAUSE) && !links.is_frozen());
        assert!(!links.acknowledged(FREEZE) && !links.is_frozen() && links.is_pausing());
        assert!(!links.acknowledged(FREEZE) && links.is_frozen() && links.is_pausing());
    }

    fn hold(id: u32) -> GroupCommand {
        GroupCommand::Hold { scope: nvme::sink::Scope::All, except: None, id }
    }

    /// What a reactor was told, in its order.
    fn told(links: &Links, place: usize) -> Vec<&'static str> {
        let name = |message: Message| match message {
            Message::Branch(_) => "branch",
            Message::Group(_, GroupCommand::Hold { .. }) => "hold",
            Message::Group(_, GroupCommand::Lull { .. }) => "lull",
            Message::Group(_, GroupCommand::CreateCq { .. }) => "create",
            _ => "else",
        };
        links.crew.address(place).take().into_iter().map(name).collect()
    }

    #[test]
    fn a_group_that_comes_while_a_hold_lasts_hears_of_it_and_is_waited_for() {
        let (mut links, seat) = (links(), crate::seat::tests::seat());
        links.broadcast(&seat, &hold(7));
        (1..=2).for_each(|cqid| links.send_to_queue(&seat, cqid, GroupCommand::CreateCq { cqid }));
        assert_eq!(told(&links, 1), ["branch", "hold", "create"]);
        assert_eq!([(); 2].map(|()| links.acknowledged(7)), [false, true]);
        // One that comes later is told, and nobody waits for it.
        links.send_to_queue(&seat, 3, GroupCommand::CreateCq { cqid: 3 });
        assert_eq!(told(&links, 2), ["branch", "hold", "create"]);
        assert!(!links.acknowledged(7));
    }

    #[test]
    fn a_home_that_moves_after_a_shutdown_takes_its_hold_along() {
        let (mut former, seat) = (links(), crate::seat::tests::seat());
        former.broadcast(&seat, &hold(7));
        former.broadcast(&seat, &hold(8));
        former.supersede(&GroupCommand::Release { id: 8 });
        let mut links = links();
        links.resume(&seat, &seat.power.region, former.hand_on());
        assert!(matches!(links.local.pop_front(), Some(GroupCommand::Hold { id: 7, .. })));
        assert!(links.local.is_empty());
        (1..=2).for_each(|cqid| links.send_to_queue(&seat, cqid, GroupCommand::CreateCq { cqid }));
        assert_eq!(told(&links, 1), ["branch", "hold", "create"]);
    }

    #[test]
    fn a_home_goes_only_when_every_drive_is_empty_and_gives_up_after_a_while() {
        let (mut links, seat) = (links(), crate::seat::tests::seat());
        links.want_to_move(Goal::Shared(1));
        links.go(&seat, Now(0));
        links.send_to_queue(&seat, 1, GroupCommand::CreateCq { cqid: 1 });
        links.send_to_queue(&seat, 2, GroupCommand::CreateCq { cqid: 2 });
        assert_eq!(told(&links, 1), ["branch", "lull", "create"], "of who comes meanwhile, too");
        let lulled = |links: &mut Links, id| assert!(links.gather(GroupEvent::Lulled { id }).is_none());
        lulled(&mut links, 1);
        links.go(&seat, Now(LULL_NS - 1));
        links.give_up_late(&seat, Now(LULL_NS - 1));
        assert!(links.is_moving() && !links.is_pausing());
        links.give_up_late(&seat, Now(LULL_NS));
        assert!(!links.is_moving() && !links.may_leave(Now(LULL_NS)));
        // What is still said of the first is not of the second.
        links.want_to_move(Goal::Shared(1));
        links.go(&seat, Now(LULL_NS));
        [1, 1, 2].into_iter().for_each(|id| lulled(&mut links, id));
        links.go(&seat, Now(LULL_NS));
        assert!(!links.is_pausing());
        lulled(&mut links, 2);
        links.go(&seat, Now(LULL_NS));
        assert!(links.is_pausing());
    }
}
