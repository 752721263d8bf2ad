//! The ways from a controller to its queues on this and other reactors. The controller sees all groups as one: a command to
//! all is broadcast, and the acknowledgements are gathered into one.

use crate::interrupts::Table;
use crate::message::{Address, Branching, Message};
use crate::records::Records;
use crate::seat::Seat;
use memory::MemoryMap;
use nvme::namespace::NamespaceTable;
use nvme::queue::SqRecord;
use nvme::sink::{GroupCommand, GroupEvent};
use state::region::{ControllerRegion, QUEUES_MAX};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Acknowledgement ids of the engine's own, which no controller uses.
const PAUSE: u32 = u32::MAX;
const RESUME: u32 = 0;

/// See the module.
pub(super) struct Links {
    pub(super) this: Address,
    /// Reactors that queues may be placed on, this one first.
    reactors: Vec<Address>,
    pub(super) records: Records,
    /// Where each completion queue lives: index into `reactors`.
    places: [Option<u8>; QUEUES_MAX],
    /// Which of `reactors` have a branch; the first is this seat and always true.
    branched: Vec<bool>,
    pub(super) memory: Arc<MemoryMap>,
    pub(super) namespaces: Arc<NamespaceTable>,
    gathers: Vec<Gather>,
    /// Deletions of queues that no group has answered yet.
    deletions: Vec<GroupCommand>,
    /// Commands for this reactor's own group, run after the controller returns.
    pub(super) local: VecDeque<GroupCommand>,
    moving: Moving,
}

/// A broadcast that waits for its acknowledgements.
#[derive(Debug)]
struct Gather {
    id: u32,
    left: usize,
    is_hold: bool,
}

/// On the way to a private reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moving {
    No,
    Wanted,
    Pausing { left: usize },
    Paused,
}

impl Links {
    /// `reactors` begins with the home itself, which has a group already.
    pub(super) fn new(
        reactors: Vec<Address>,
        records: Records,
        memory: Arc<MemoryMap>,
        namespaces: Arc<NamespaceTable>,
    ) -> Self {
        let mut branched = vec![false; reactors.len()];
        branched[0] = true;
        Self {
            this: Arc::clone(&reactors[0]),
            reactors,
            records,
            places: [None; QUEUES_MAX],
            branched,
            memory,
            namespaces,
            gathers: Vec::new(),
            deletions: Vec::new(),
            local: VecDeque::new(),
            moving: Moving::No,
        }
    }

    /// The groups there were are gone, paused or killed: the queues they left in the region go on in groups here. Deletions of queues
    /// are only handed on by a seat that was moved, which has one group.
    pub(super) fn resume(&mut self, seat: &Seat, region: &ControllerRegion, deletions: Vec<GroupCommand>) {
        let exists = |size: &AtomicU32| size.load(Ordering::Acquire) != 0;
        let queues = || (1u16..).zip(1..QUEUES_MAX);
        for (cqid, _) in queues().filter(|(_, at)| exists(&region.cqs[*at].size)) {
            self.send_to_queue(seat, cqid, GroupCommand::CreateCq { cqid });
        }
        if region.admin.shadow_doorbells.load(Ordering::Acquire) != 0 {
            let shadow = GroupCommand::ShadowDoorbells { enabled: true, id: RESUME };
            (0..self.reactors.len())
                .filter(|place| self.branched[*place])
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|place| self.send(seat, place, shadow.clone()));
        }
        for (sqid, _) in queues().filter(|(_, at)| exists(&region.sqs[*at].size)) {
            if let Some(record) = SqRecord::load(region, sqid) {
                self.send_to_queue(seat, record.cqid, GroupCommand::CreateSq { sqid });
            }
        }
        self.local.extend(deletions.iter().cloned());
        self.deletions = deletions;
    }

    /// To the group that owns a completion queue, or shall own it.
    pub(super) fn send_to_queue(&mut self, seat: &Seat, cqid: u16, command: GroupCommand) {
        if matches!(command, GroupCommand::DeleteSq { .. } | GroupCommand::DeleteCq { .. }) {
            self.deletions.push(command.clone());
        }
        let place = self.place(cqid, &command);
        self.send(seat, place, command);
    }

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
    pub(super) fn broadcast(&mut self, seat: &Seat, command: &GroupCommand) -> usize {
        self.supersede(command);
        let places: Vec<usize> = (0..self.reactors.len()).filter(|at| self.branched[*at]).collect();
        for &place in &places {
            self.send(seat, place, command.clone());
        }
        if let Some(id) = command.acknowledged_by()
            && id != PAUSE
        {
            let is_hold = matches!(command, GroupCommand::Hold { .. });
            self.gathers.push(Gather { id, left: places.len(), is_hold });
        }
        places.len()
    }

    /// Takes note of what groups forget when this command reaches them: they will not acknowledge it any more.
    fn supersede(&mut self, command: &GroupCommand) {
        match command {
            GroupCommand::Reset { .. } => {
                self.gathers.retain(|gather| !gather.is_hold);
                self.deletions.clear();
                // It ends a pause, too. What a group may still say of that pause comes before it acknowledges the reset.
                if self.is_pausing() {
                    self.moving = Moving::Wanted;
                }
            }
            GroupCommand::Release { id } => self.gathers.retain(|gather| gather.id != *id),
            _ => {}
        }
    }

    /// The new eventfds to every branch; returns how many.
    pub(super) fn send_interrupts(&self, seat: &Seat, table: &Table) -> usize {
        let branches = || self.reactors.iter().zip(&self.branched).skip(1).filter(|(_, branched)| **branched);
        branches().for_each(|(reactor, _)| reactor.send(Message::Interrupts(seat.id(), table.clone())));
        branches().count()
    }

    /// Takes what a group says. What comes out is for the controller.
    pub(super) fn gather(&mut self, event: GroupEvent) -> Option<GroupEvent> {
        match event {
            GroupEvent::Acknowledged { id } => self.acknowledged(id).then_some(event),
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
        let Some(at) = self.gathers.iter().position(|gather| gather.id == id) else { return false };
        self.gathers[at].left = self.gathers[at].left.saturating_sub(1);
        if self.gathers[at].left > 0 {
            return false;
        }
        self.gathers.swap_remove(at);
        true
    }

    /// The ssd needs a reactor of its own.
    pub(super) fn want_to_move(&mut self) {
        if self.moving == Moving::No {
            self.moving = Moving::Wanted;
        }
    }

    /// Begins to move, if that is wanted: every group ends what it began.
    pub(super) fn pause(&mut self, seat: &Seat) {
        if self.moving == Moving::Wanted && self.gathers.is_empty() {
            let left = self.broadcast(seat, &GroupCommand::Pause { id: PAUSE });
            self.moving = Moving::Pausing { left };
        }
    }

    /// Every group ends what it began, whatever else is under way.
    pub(super) fn freeze(&mut self, seat: &Seat) {
        if !self.is_pausing() {
            let left = self.broadcast(seat, &GroupCommand::Pause { id: PAUSE });
            self.moving = Moving::Pausing { left };
        }
    }

    /// Every group has.
    pub(super) fn is_frozen(&self) -> bool {
        self.moving == Moving::Paused
    }

    /// The groups are pausing or paused: nothing new may be asked of them that a successor would not hear of.
    pub(super) fn is_pausing(&self) -> bool {
        matches!(self.moving, Moving::Pausing { .. } | Moving::Paused)
    }

    pub(super) fn is_moving(&self) -> bool {
        self.moving != Moving::No
    }

    pub(super) fn is_paused(&self) -> bool {
        self.moving == Moving::Paused && self.gathers.is_empty()
    }

    /// What the next home has to ask again.
    pub(super) fn take_deletions(&mut self) -> Vec<GroupCommand> {
        std::mem::take(&mut self.deletions)
    }

    /// Ends all branches. Their groups are drained.
    pub(super) fn cut(&mut self, seat: &Seat) {
        for (reactor, branched) in self.reactors.iter().zip(&mut self.branched).skip(1) {
            if std::mem::take(branched) {
                reactor.send(Message::Leave(seat.id()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Mailbox;

    fn links() -> Links {
        let (records, _) = Records::start().unwrap();
        let addresses = (0..3).map(|_| Arc::new(Mailbox::new().unwrap())).collect();
        Links::new(addresses, records, Arc::new(MemoryMap::empty()), Arc::new(NamespaceTable::default()))
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
}
