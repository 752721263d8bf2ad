//! The migration management controller (Base 2.1, 8.1.12): what it asks of the controllers that it manages, and what it remembers.
//!
//! ```text
//!  Migration Send, Receive --> admin::migration --Order, ticket--> Host::manage ... whoever has the controllers
//!                              answers         <--Report, ticket-- Controller::managed
//! ```
//! Whether a controller is suspended is the controller's own state, which outlives processes; nothing of it is kept here. What is kept are bytes on
//! their way: a state that is read in pieces, and one that comes in pieces. A successor knows of neither: the first is taken anew, the
//! second is a Command Sequence Error.
//!
//! Not implemented: user data and host memory tracking (Track Send, Track Receive, Controller Data Queue).

pub mod format;

use std::collections::{BTreeMap, VecDeque};

use spec::nvme::Command;
use state::controller::ControllerV1;

use format::{Parts, Received};

/// Orders at once; more commands wait. One controller has one order at a time.
const JOBS_MAX: usize = 8;
/// States that are read in pieces at once, and states that come in pieces.
const TRANSFERS_MAX: usize = 4;

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
    cntlid: Option<u16>,
}

/// What a job does with the report.
#[derive(Debug)]
pub(crate) enum What {
    /// The page of Identify.
    List,
    /// Nothing.
    Answer,
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

/// What a management controller remembers.
#[derive(Debug, Default)]
pub(crate) struct Management {
    jobs: BTreeMap<u32, Job>,
    next_ticket: u32,
    queued: VecDeque<(u16, Command)>,
    sequences: BTreeMap<u16, Sequence>,
    copies: VecDeque<Copy>,
}

impl Management {
    /// Nothing is asked of anybody.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// A controller level reset: reports that come are for nobody.
    pub(crate) fn reset(&mut self) {
        *self = Self { next_ticket: self.next_ticket, ..Self::default() };
    }

    /// Whether a command for this controller, or for none, would have to wait.
    pub(crate) fn is_busy(&self, cntlid: Option<u16>) -> bool {
        self.jobs.len() >= JOBS_MAX || cntlid.is_some() && self.jobs.values().any(|job| job.cntlid == cntlid)
    }

    pub(crate) fn queue(&mut self, slot: u16, command: Command) {
        self.queued.push_back((slot, command));
    }

    /// What waited; each may have to wait again.
    pub(crate) fn take_queued(&mut self) -> VecDeque<(u16, Command)> {
        core::mem::take(&mut self.queued)
    }

    /// A ticket for an order.
    pub(crate) fn begin(&mut self, job: Job) -> u32 {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.jobs.insert(self.next_ticket, job);
        self.next_ticket
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
