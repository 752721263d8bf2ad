//! Commands that did not end at once.

use state::region::SLOTS_MAX;

use crate::io::Kind;
use crate::io::job::Job;
use crate::queue::Accepted;

/// What a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its request, at the backend.
    Backend,
    /// The next poll.
    Retry,
    /// [`Granted`](crate::sink::GroupCommand::Granted).
    Grant,
    /// The first half of its fused pair.
    Partner,
    /// [`Persisted`](crate::sink::GroupCommand::Persisted).
    Persisting {
        /// By which it asked.
        ticket: u32,
    },
}

impl State {
    /// Whether it keeps a hold from being acknowledged.
    pub(super) fn is_running(self) -> bool {
        matches!(self, Self::Backend | Self::Retry | Self::Persisting { .. })
    }
}

/// A half of a fused pair knows the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partner {
    /// This is the Compare; the Write is in that slot.
    Write(u16),
    /// This is the Write; the Compare was in that slot, and the pair asked for its namespace by this ticket.
    Compare(u16, u32),
}

/// A parked command.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) accepted: Accepted,
    pub(super) state: State,
    pub(super) kind: Kind,
    /// The memory map its request was made under.
    pub(super) epoch: u32,
    pub(super) nsid: u32,
    pub(super) sectors: u32,
    pub(super) partner: Option<Partner>,
    pub(super) job: Option<Box<Job>>,
}

/// The parked commands of a queue, by slot.
#[derive(Debug)]
pub(super) struct Slots(Vec<Option<Live>>);

impl Default for Slots {
    fn default() -> Self {
        Self((0..SLOTS_MAX).map(|_| None).collect())
    }
}

impl Slots {
    #[inline]
    pub(super) fn park(&mut self, live: Live) {
        match self.0.get_mut(usize::from(live.accepted.slot())) {
            Some(place) => *place = Some(live),
            None => live.accepted.forget(),
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Live> {
        self.0.get_mut(usize::from(slot))?.as_mut()
    }

    #[inline]
    pub(super) fn take(&mut self, slot: u16) -> Option<Live> {
        self.0.get_mut(usize::from(slot))?.take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Live> {
        self.0.iter().flatten()
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Live> {
        self.0.iter_mut().filter_map(Option::take)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}
