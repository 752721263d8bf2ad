//! The migration management controller (Base 2.1, 8.1.12): what it asks of the controllers that it manages, and what it remembers.
//!
//! ```text
//!  Migration Send, Receive --> admin::migration --Order, ticket--> Host::manage ... whoever has the controllers
//!                              answers         <--Report, ticket-- Controller::managed
//! ```
//! Whether a controller is suspended is the controller's own state, which outlives processes; nothing of it is kept here. What is kept are bytes on
//! their way: a state that is read in pieces, and one that comes in pieces. A successor knows of neither: the first is taken anew, the
//! second is a Command Sequence Error. The queues in which changes are logged are in the region ([`log`]). Which memory of a controller's host is tracked
//! is known with the controller, too; here only whose last report the host has had, and a successor takes it that none was.

pub mod format;
pub(crate) mod log;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use block::Now;
use spec::nvme::Command;
use state::controller::ControllerV1;

use format::{Parts, Received};

/// Orders at once; more commands wait. One controller has one order at a time.
const JOBS_MAX: usize = 8;
/// States that are read in pieces at once, and states that come in pieces.
const TRANSFERS_MAX: usize = 4;

/// Memory of a controller's host that is to be tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its grain, as a power of two of 4 KiB.
    pub granularity: u8,
    /// Address and bytes of each range: of whole grains, and not empty. As the host gave them: some may have pages in common.
    pub ranges: Vec<(u64, u64)>,
}

/// What is asked of whoever has the controllers, by controller identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Say which there are: [`Report::Controllers`]. The identifier means nothing.
    List,
    /// Say how it stands: [`Report::Standing`].
    Look,
    /// Suspend it. One that is suspended stays so.
    Suspend,
    /// Have it go on.
    Resume,
    /// Say its state: [`Report::State`].
    Save,
    /// It is suspended from now on, in this state. It is suspended already, or disabled.
    Load(Box<ControllerV1>),
    /// From the report on, what is written to its drive is noted; or not any more. [`Report::Standing`].
    Track(bool),
    /// Say what was written since this was said: [`Report::Changes`].
    Harvest {
        /// So many changes at most; the others are said later.
        most: u32,
        /// Say that all of each namespace may have changed.
        whole: bool,
    },
    /// From the report on, what it writes into this memory of its host is noted.
    TrackMemory(Memory),
    /// Not any more; one of which nothing is noted is as it is to be.
    EndMemory,
    /// Of no controller any more, and nothing of what is written to their drives. The identifier means nothing. An order to track memory that was given
    /// before is not begun after this.
    EndAll,
    /// Say what it has written there since this was said: [`Report::Memory`].
    HarvestMemory {
        /// So many runs at most; the others are said later.
        most: u32,
        /// What was said last has arrived; otherwise it is said again.
        heard: bool,
    },
}

/// What changed of a controller's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blocks.
    Blocks {
        /// The namespace.
        nsid: u32,
        /// The first of them.
        slba: u64,
        /// How many, 0's based.
        nlb_z: u32,
    },
    /// All of a namespace.
    Namespace(u32),
    /// Nothing: it is said how the log goes on.
    Nothing,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It is done.
    Done,
    /// The identifiers there are, ascending.
    Controllers(Vec<u16>),
    /// How it stands.
    Standing {
        /// It is suspended.
        suspended: bool,
        /// CC.EN is 1.
        enabled: bool,
    },
    /// Its state, and whether it was suspended meanwhile.
    State {
        /// What it is.
        state: Box<ControllerV1>,
        /// It cannot have changed since.
        suspended: bool,
    },
    /// What was written.
    Changes {
        /// By namespace and block.
        changes: Vec<Change>,
        /// There is more.
        more: bool,
    },
    /// What was written into its host's memory.
    Memory {
        /// The grain, as it was asked for.
        granularity: u8,
        /// First address, and how many grains.
        runs: Vec<(u64, u32)>,
        /// There is more.
        more: bool,
        /// It was suspended from before they were looked for.
        suspended: bool,
    },
    /// It is not done.
    Failed(Trouble),
}

/// Why an order is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such controller, or nobody has it.
    NoController,
    /// It is not suspended.
    NotSuspended,
    /// It is neither suspended nor disabled.
    AtWork,
    /// It does not come to rest in time, or its host has it stand still itself: to be tried again.
    Busy,
    /// The state is not one of this controller.
    Refused,
    /// It is suspended.
    Suspended,
    /// Its host's memory is tracked already, and whether it is this memory.
    Tracked {
        /// By the same granularity and ranges.
        same: bool,
    },
    /// Its host has no memory there.
    NotMemory,
    /// Together with those of other controllers they are more than [`MEMORY_RANGES_MAX`](crate::limits::MEMORY_RANGES_MAX).
    TooMany,
    /// So many ranges could be tracked, at any granularity.
    NoRoom {
        /// None, while somebody else logs what it writes.
        ranges: u32,
    },
    /// Something of this host's has failed.
    Failed,
}

/// A command that waits for a report.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) slot: u16,
    pub(crate) command: Command,
    pub(crate) what: What,
    /// A predecessor had begun it.
    pub(crate) replayed: bool,
    /// `None`: of no controller.
    pub(crate) cntlid: Option<u16>,
}

/// What a job does with the report.
#[derive(Debug)]
pub(crate) enum What {
    /// The page of Identify.
    List,
    /// Nothing.
    Answer,
    /// A suspend, and whether the queue of the controller's changes goes.
    Suspend(bool),
    /// Makes a queue for the controller's changes.
    CreateQueue,
    /// Changes are logged from now on.
    StartLogging,
    /// A resume.
    Resume,
    /// A piece of a state that is at hand.
    Piece,
    /// The first piece of a state, which is asked for.
    Get,
    /// The first piece of a state that comes.
    Begin,
    /// A state that came whole, for the controller whose state is asked for.
    Fit(Received, Parts),
    /// Its host's memory is tracked from now on.
    TrackMemory,
    /// What was written there.
    HarvestMemory,
}

/// A state that comes in pieces.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) parts: Parts,
    pub(crate) bytes: Vec<u8>,
}

/// A state that is read in pieces.
#[derive(Debug)]
struct Copy {
    cntlid: u16,
    parts: Parts,
    bytes: Vec<u8>,
}

/// What is asked of a controller that is logged, and by no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To note its writes, for a successor.
    Arm,
    /// What has changed, or only that all may have.
    Harvest {
        /// That all may have.
        whole: bool,
    },
}

/// What a management controller remembers.
#[derive(Debug, Default)]
pub(crate) struct Management {
    jobs: BTreeMap<u32, Job>,
    next_ticket: u32,
    queued: VecDeque<(u16, Command)>,
    sequences: BTreeMap<u16, Sequence>,
    copies: VecDeque<Copy>,
    /// Rounds by their tickets: data queue and controller.
    rounds: BTreeMap<u32, (u16, u16, Round)>,
    /// Suspend commands that end with the deletion of a queue, when all is posted.
    deletions: BTreeMap<u16, u16>,
    /// Data queues whose controllers' writes are not noted for this process yet.
    pub(crate) unarmed: BTreeSet<u16>,
    /// When controllers that are logged are asked again.
    pub(crate) harvest_at: Now,
    /// Controllers of which the host has had the last report of its memory.
    pub(crate) heard: BTreeSet<u16>,
}

impl Management {
    /// Nothing is asked of anybody.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.rounds.is_empty() && self.deletions.is_empty()
    }

    /// A controller level reset: reports that come are for nobody.
    pub(crate) fn reset(&mut self) {
        *self = Self { next_ticket: self.next_ticket, ..Self::default() };
    }

    /// Whether a command for this controller, or for none, would have to wait.
    pub(crate) fn is_busy(&self, cntlid: Option<u16>) -> bool {
        let is_asked = || {
            self.jobs.values().any(|job| job.cntlid == cntlid)
                || self.rounds.values().any(|(_, other, _)| Some(*other) == cntlid)
        };
        self.jobs.len() >= JOBS_MAX || cntlid.is_some() && is_asked()
    }

    pub(crate) fn queue(&mut self, slot: u16, command: Command) {
        self.queued.push_back((slot, command));
    }

    /// What waited; each may have to wait again.
    pub(crate) fn take_queued(&mut self) -> VecDeque<(u16, Command)> {
        core::mem::take(&mut self.queued)
    }

    /// For an order whose report nobody waits for.
    pub(crate) fn ticket(&mut self) -> u32 {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.next_ticket
    }

    /// A ticket for an order.
    pub(crate) fn begin(&mut self, job: Job) -> u32 {
        let ticket = self.ticket();
        self.jobs.insert(ticket, job);
        ticket
    }

    /// A ticket for an order that no command has given.
    pub(crate) fn begin_round(&mut self, cdqid: u16, cntlid: u16, round: Round) -> u32 {
        let ticket = self.ticket();
        self.rounds.insert(ticket, (cdqid, cntlid, round));
        ticket
    }

    pub(crate) fn end_round(&mut self, ticket: u32) -> Option<(u16, Round)> {
        self.rounds.remove(&ticket).map(|(cdqid, _, round)| (cdqid, round))
    }

    /// The queue is gone: what is said of its controller is for nobody.
    pub(crate) fn forget_queue(&mut self, cdqid: u16) {
        self.unarmed.remove(&cdqid);
        self.rounds.retain(|_, (other, ..)| *other != cdqid);
    }

    pub(crate) fn delete_when_posted(&mut self, cdqid: u16, slot: u16) {
        self.deletions.insert(cdqid, slot);
    }

    pub(crate) fn is_to_delete(&self, cdqid: u16) -> bool {
        self.deletions.contains_key(&cdqid)
    }

    pub(crate) fn deletion_of(&mut self, cdqid: u16) -> Option<u16> {
        self.deletions.remove(&cdqid)
    }

    pub(crate) fn end(&mut self, ticket: u32) -> Option<Job> {
        self.jobs.remove(&ticket)
    }

    /// The state that comes for a controller.
    pub(crate) fn sequence(&mut self, cntlid: u16) -> Option<&mut Sequence> {
        self.sequences.get_mut(&cntlid)
    }

    /// Begins one, or begins it anew. `false`: there are as many as there can be.
    pub(crate) fn begin_sequence(&mut self, cntlid: u16, sequence: Sequence) -> bool {
        let room = self.sequences.len() < TRANSFERS_MAX || self.sequences.contains_key(&cntlid);
        if room {
            self.sequences.insert(cntlid, sequence);
        }
        room
    }

    pub(crate) fn end_sequence(&mut self, cntlid: u16) -> Option<Sequence> {
        self.sequences.remove(&cntlid)
    }

    /// The state of a suspended controller, of which pieces were read.
    pub(crate) fn copy(&self, cntlid: u16, parts: Parts) -> Option<&[u8]> {
        let copy = self.copies.iter().find(|copy| copy.cntlid == cntlid && copy.parts == parts)?;
        Some(&copy.bytes)
    }

    pub(crate) fn keep_copy(&mut self, cntlid: u16, parts: Parts, bytes: Vec<u8>) {
        self.copies.retain(|copy| copy.cntlid != cntlid || copy.parts != parts);
        self.copies.truncate(TRANSFERS_MAX - 1);
        self.copies.push_front(Copy { cntlid, parts, bytes });
    }

    /// The controller may be another by now.
    pub(crate) fn drop_copies(&mut self, cntlid: u16) {
        self.copies.retain(|copy| copy.cntlid != cntlid);
    }
}

impl Job {
    pub(crate) fn new(slot: u16, command: Command, cntlid: Option<u16>, what: What) -> Self {
        Self { slot, command, what, replayed: false, cntlid }
    }
}
