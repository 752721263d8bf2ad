//! What reactors, sessions and the record keeper say to each other.

use crate::home::HandedOn;
use crate::interrupts::Table;
use crate::mailbox::Mailbox;
use crate::reactor::Options;
use crate::ssd::{Power, Ssd};
use crate::vhost::Order;
use crate::watch::Heard;
use memory::{MemoryMap, Remote};
use nvme::controller::Controller;
use nvme::host::{AllocationList, Bar, Unsurveyed};
use nvme::management::Report;
use nvme::namespace::NamespaceTable;
use nvme::sink::{GroupCommand, GroupEvent};
use rustix::io::Errno;
use state::controller::{ControllerV1, OutlineV1};
use state::ssd::SsdV1;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};

/// A reactor's address.
pub(crate) type Address = Arc<Mailbox<Message>>;

/// Names an ssd in messages: the number that the keeper gave it, or without a keeper its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SsdId(pub(crate) usize);

/// One power cycle of an ssd. What is said of an earlier one is not for the present controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) ssd: SsdId,
    pub(crate) number: u64,
}

/// To a reactor. A message for an ssd that has no seat there, or for a reactor that has ended, is dropped; a call is then answered ENODEV.
pub(crate) enum Message {
    /// Take the ssd's controller: this reactor is its home now.
    Settle(Box<Settlement>),
    /// From home: make a place for a group of the ssd.
    Branch(Box<Branching>),
    /// From home: give the place up; its group is drained.
    Leave(SsdId),
    /// From the session: do this and answer.
    Call(SsdId, Call, SyncSender<Answer>),
    /// From home to a branch.
    Group(SsdId, GroupCommand),
    /// From home to a branch: new eventfds.
    Interrupts(SsdId, Table),
    /// From a branch to home.
    News(Life, News),
    /// From the record keeper to home.
    Persisted(Life, bool),
    /// To the home of a management controller: what became of an order, by its ticket.
    Managed(Life, u32, Box<Report>),
    /// To the home of a controller that looked at its drive's map: what it found, by its ticket.
    Surveyed(Life, u32, Result<AllocationList, Unsurveyed>),
    /// The ssd's limits were changed.
    Limits(SsdId),
    /// Its writes are noted from now on, or not any more; it is frozen, or thawed. Heard when what was at the drive has ended.
    Watch(SsdId, Heard),
    /// The reactors on duty have changed: queue pairs and homes go where they belong. May be said any number of times.
    Muster,
    /// To home: this queue pair goes to that reactor, if it can now.
    Shift(SsdId, u16, usize),
    /// Say which queue pairs and rings there are to be moved, and what each has done.
    Pairs(Sender<Vec<Pair>>),
    /// Run like this from now on.
    Options(Box<Options>),
    /// To a disk's seat. It has one here only after [`Order::Sit`].
    Vhost(SsdId, Order),
    /// Something outside the reactor has changed that a door waits for.
    Look,
    /// End the thread. Comes when no ssd is left.
    Stop,
}

impl Message {
    /// Whom it concerns.
    pub(crate) fn ssd(&self) -> Option<SsdId> {
        match self {
            Self::Settle(plan) => Some(plan.ssd.id),
            Self::Branch(plan) => Some(plan.ssd.id),
            Self::Leave(id)
            | Self::Limits(id)
            | Self::Watch(id, _)
            | Self::Shift(id, ..)
            | Self::Call(id, ..)
            | Self::Group(id, _)
            | Self::Interrupts(id, _) => Some(*id),
            Self::Vhost(id, _) => Some(*id),
            Self::News(life, _)
            | Self::Persisted(life, _)
            | Self::Managed(life, ..)
            | Self::Surveyed(life, ..) => Some(life.ssd),
            Self::Look | Self::Stop | Self::Muster | Self::Pairs(_) | Self::Options(_) => None,
        }
    }
}

/// A queue pair, or a ring, and what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) ssd: SsdId,
    /// Completion queue, or ring.
    pub(crate) queue: u16,
    /// Its reactor.
    pub(crate) at: usize,
    /// So far, in requests of 16 KiB.
    pub(crate) done: u64,
    /// It is a ring of a disk: the disk's session moves it, and not its home.
    pub(crate) ring: bool,
}

/// What a branch tells home.
pub(crate) enum News {
    /// What its group reported.
    Group(GroupEvent),
    /// It uses the new eventfds.
    InterruptsTaken,
    /// Its queues may have changed the level of INTx.
    Line,
}

/// What a session asks of its ssd's home.
pub(crate) enum Call {
    /// Read configuration space.
    ConfigRead { offset: u16, len: usize },
    /// Write configuration space.
    ConfigWrite { offset: u16, data: Vec<u8> },
    /// Read a BAR.
    BarRead { bar: Bar, offset: u64, len: usize },
    /// Write a BAR.
    BarWrite { bar: Bar, offset: u64, data: Vec<u8> },
    /// Adopt this memory map; answered when no I/O uses an older one.
    Memory { map: Arc<MemoryMap>, client: Arc<dyn Client> },
    /// Adopt the memory map there is once more, with or without a log (crate::written); answered as [`Call::Memory`]. Not the session's: EAGAIN
    /// while a call of the session waits for something, or when one comes.
    Log,
    /// Use these eventfds; answered when every reactor does.
    Interrupts(Table),
    /// Mask or unmask INTx.
    MaskIntx(bool),
    /// Function level reset; answered when all is quiet.
    Reset,
    /// The drive has so many bytes now.
    Grow(u64),
    /// Say the controller's state, though it may change at once.
    Save,
    /// Say what the controller's state would be of.
    Outline,
    /// Make all that was written durable.
    Flush,
    /// Begin nothing more and keep everything in the region, for another process; answered when nothing is at the drive.
    Pause,
    /// Stand still and give the ssd up, to whoever asks: answered when the guest's queues rest, with [`Answer::Settlement`].
    Halt,
    /// Never mind the [`Call::Halt`] that was not answered.
    GoOn,
    /// Cut the power: give the ssd up and answer with its record. Comes when all is quiet and no memory is mapped.
    PowerOff,
}

/// The client whose memory it is, as its ssd's home sees it.
pub(crate) trait Client: Remote {
    /// Ends the session.
    fn hang_up(&self);
}

/// The answer to a [`Call`].
pub(crate) enum Answer {
    /// Done.
    Done,
    /// Done; what was read.
    Bytes(Vec<u8>),
    /// The ssd, which stands still.
    Settlement(Box<Settlement>),
    /// The controller's state.
    State(Box<ControllerV1>),
    /// What the controller's state would be of.
    Outline(Box<OutlineV1>),
    /// The ssd's record at power off.
    Record(Box<SsdV1>),
    /// Refused.
    Failed(Errno),
}

/// A controller on its way to its home.
pub(crate) struct Settlement {
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) power: Power,
    pub(crate) controller: Controller,
    pub(crate) memory: Arc<MemoryMap>,
    pub(crate) interrupts: Table,
    pub(crate) namespaces: Arc<NamespaceTable>,
    /// When the ssd comes with a running guest and the queues it has (from another reactor, or of a process that was killed):
    /// what has to be asked of its groups again.
    pub(crate) resume: Option<HandedOn>,
    /// The client, if it is known already.
    pub(crate) client: Option<Arc<dyn Client>>,
    /// Set on a private reactor: memory without a descriptor may be reached from here.
    pub(crate) private: bool,
}

/// A group on its way to a reactor that is not its home.
pub(crate) struct Branching {
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) power: Power,
    pub(crate) memory: Arc<MemoryMap>,
    pub(crate) interrupts: Table,
    pub(crate) namespaces: Arc<NamespaceTable>,
    pub(crate) home: Address,
}
