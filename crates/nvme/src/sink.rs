//! What a queue group asks of the engine, and the messages between it and its controller.

use std::sync::Arc;

use memory::MemoryMap;
use spec::nvme::Status;

use crate::namespace::NamespaceTable;

/// The engine, as a queue group sees it. No method calls back into the group.
pub trait Sink {
    /// Starts a request on this reactor's backend; its end comes back through
    /// [`QueueGroup::complete`](crate::group::QueueGroup::complete) unless it ended at once. [`block::Submitted::Full`]: the
    /// group keeps the command and tries again in its next poll.
    ///
    /// The memory named by the request stays mapped until the group reported
    /// [`GroupEvent::MemoryAdopted`] for a newer map; buffers of the group's own live as long as the group, which is dropped
    /// only after the backend or when [`QueueGroup::in_flight`](crate::group::QueueGroup::in_flight) is 0.
    fn submit(&mut self, request: &block::Request<'_>) -> block::Submitted;
    /// Whether the drive is at work on nothing of this reactor's for this ssd: what was submitted and has not ended waits for something
    /// else, such as space, and may be left to whoever is next. A backend that knows no such waiting need not say so.
    fn is_drive_idle(&self) -> bool {
        false
    }
    /// What is submitted from now on was not there yet at `since`. Said before the first of a run of commands; for measuring only.
    fn waited_since(&mut self, _since: block::Now) {}
    /// Raises an interrupt vector.
    fn interrupt(&mut self, vector: u16);
    /// To the controller, without loss. Bounded in rate by the group, but not per call.
    fn report(&mut self, event: GroupEvent);
}

/// What a hold covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every namespace.
    All,
    /// One namespace.
    Nsid(u32),
}

impl Scope {
    /// Whether a command to this namespace is covered. A broadcast (Flush) touches every namespace.
    #[inline]
    #[must_use]
    pub fn covers(self, nsid: u32) -> bool {
        match self {
            Self::All => true,
            Self::Nsid(held) => held == nsid || nsid == spec::nvme::NSID_BROADCAST,
        }
    }
}

/// From the controller to a group.
#[derive(Clone, Debug)]
pub enum GroupCommand {
    /// Own this completion queue; its record is in the region.
    CreateCq {
        /// Completion queue.
        cqid: u16,
    },
    /// Serve this submission queue; its record is in the region and its completion queue is here.
    CreateSq {
        /// Submission queue.
        sqid: u16,
    },
    /// Stop fetching, answer what is accepted, and let go: [`GroupEvent::SqDeleted`]. What waits for space may be aborted
    /// ([`QueueGroup::is_unwanted`](crate::group::QueueGroup::is_unwanted)).
    DeleteSq {
        /// Submission queue.
        sqid: u16,
    },
    /// Let go of an empty completion queue: [`GroupEvent::CqDeleted`]. Its submission queues are deleted before.
    DeleteCq {
        /// Completion queue.
        cqid: u16,
    },
    /// Let go of this completion queue and its submission queues, which stay in the region for another group: fetch nothing more of
    /// them, and report [`GroupEvent::Yielded`] when what was accepted has ended. If that takes long, go on as before and say so.
    Yield {
        /// Completion queue.
        cqid: u16,
    },
    /// Use this memory from now on; [`GroupEvent::MemoryAdopted`] when all I/O begun under older maps has ended.
    Memory {
        /// The map.
        map: Arc<MemoryMap>,
    },
    /// Use these namespaces for commands begun from now on; acknowledged at once.
    Namespaces {
        /// The table.
        table: Arc<NamespaceTable>,
        /// Acknowledged with.
        id: u32,
    },
    /// Begin no command in scope; acknowledged when none is running. Commands that wait for exclusivity do not count.
    Hold {
        /// What is held.
        scope: Scope,
        /// The submission queue whose fused pair asked: nothing of it is running by itself.
        except: Option<u16>,
        /// Acknowledged with, and released by.
        id: u32,
    },
    /// Ends a hold.
    Release {
        /// The hold's.
        id: u32,
    },
    /// Abort a command if it has not begun: [`GroupEvent::AbortResult`].
    Abort {
        /// Submission queue.
        sqid: u16,
        /// Command identifier.
        cid: u16,
        /// Answered with.
        id: u32,
    },
    /// Shadow doorbells at the addresses in the region, or none; acknowledged at once.
    ShadowDoorbells {
        /// Use them.
        enabled: bool,
        /// Acknowledged with.
        id: u32,
    },
    /// Drop every queue, post nothing more; acknowledged when no backend I/O is in flight.
    Reset {
        /// Acknowledged with.
        id: u32,
    },
    /// Begin no command for a while; [`GroupEvent::Lulled`] when nothing is at the backend. [`GroupCommand::EndLull`], a pause or a
    /// reset ends it.
    Lull {
        /// Reported with.
        id: u32,
    },
    /// Go on as before a lull.
    EndLull,
    /// Begin nothing, wait for backend I/O, keep the queues in the region for another group; acknowledged then. Accepted
    /// commands that have not ended are found there by the next group.
    Pause {
        /// Acknowledged with.
        id: u32,
    },
    /// As a pause, for a group of another process: acknowledged also while requests wait at the backend for something else than the drive
    /// ([`Sink::is_drive_idle`]). They may end later, here as well as there; so the next group begins only when this process is gone.
    Freeze {
        /// Acknowledged with.
        id: u32,
    },
    /// The exclusivity asked for by [`GroupEvent::WantExclusive`] holds.
    Granted {
        /// The ticket.
        ticket: u32,
    },
    /// The record asked for by [`GroupEvent::WantPersist`] is stable, or could not be made so.
    Persisted {
        /// The ticket.
        ticket: u32,
        /// It is stable.
        ok: bool,
    },
}

impl GroupCommand {
    /// The id that [`GroupEvent::Acknowledged`] answers this command with, if it does.
    #[must_use]
    pub fn acknowledged_by(&self) -> Option<u32> {
        match self {
            Self::Namespaces { id, .. }
            | Self::Hold { id, .. }
            | Self::ShadowDoorbells { id, .. }
            | Self::Reset { id }
            | Self::Pause { id }
            | Self::Freeze { id } => Some(*id),
            _ => None,
        }
    }
}

/// What the error log must hold of a failed command (Base 2.1, 5.1.12.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// Submission queue.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status as posted.
    pub status: Status,
    /// First logical block that failed, or 0.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// Byte in bits 7:0 and bit in bits 10:8 of the field at fault; FFFFh when none in particular is.
    pub parameter_location: u16,
}

/// What is wrong with a doorbell (Base 2.1, 5.1.2.1, error status events).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellError {
    /// The queue does not exist: Write to Invalid Doorbell Register.
    Register,
    /// A value the queue cannot have: Invalid Doorbell Write Value.
    Value,
}

/// From a group to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// The submission queue is gone, its record closed.
    SqDeleted {
        /// Submission queue.
        sqid: u16,
    },
    /// The completion queue is gone, its record closed.
    CqDeleted {
        /// Completion queue.
        cqid: u16,
    },
    /// The answer to [`GroupCommand::Yield`]. A reset that comes before it takes its place.
    Yielded {
        /// Completion queue.
        cqid: u16,
        /// It is here still: commands of it take long to end.
        kept: bool,
    },
    /// The answer to [`GroupCommand::Lull`]: nothing is at the backend, and nothing comes there until the lull ends.
    Lulled {
        /// As in the command.
        id: u32,
    },
    /// No I/O uses an older map.
    MemoryAdopted {
        /// [`MemoryMap::generation`].
        generation: u64,
    },
    /// The command with this identifier is carried out.
    Acknowledged {
        /// As in the command.
        id: u32,
    },
    /// Whether the command was aborted: then it was answered with Command Abort Requested.
    AbortResult {
        /// As in the command.
        id: u32,
        /// It was.
        aborted: bool,
    },
    /// For the error log. Limited in rate; the status of the command has its More bit set exactly when this was sent.
    Error(ErrorRecord),
    /// A doorbell error, told once for each wrong value.
    InvalidDoorbell {
        /// Queue.
        qid: u16,
        /// What is wrong.
        kind: DoorbellError,
    },
    /// A command of `sqid` must run alone in a namespace: hold it everywhere, then [`GroupCommand::Granted`].
    WantExclusive {
        /// Of this command alone, also when its slot is another's already.
        ticket: u32,
        /// Namespace.
        nsid: u32,
        /// Submission queue of the asking command.
        sqid: u16,
    },
    /// The exclusive command ended, or gave up before it was granted.
    ExclusiveDone {
        /// The ticket.
        ticket: u32,
    },
    /// Marks changed: persist the ssd's record, then [`GroupCommand::Persisted`].
    WantPersist {
        /// Unique among the ssd's outstanding tickets.
        ticket: u32,
    },
    /// A queue or data lies in a region without fd: move the ssd to a private reactor. Told once for each memory map.
    NeedsRemote,
}
