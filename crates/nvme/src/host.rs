//! What the controller asks of the engine around it.

use std::sync::Arc;

pub use crate::admin::lba_status::{AllocationList, AllocationQuery};
use crate::management::Order;
use crate::namespace::NamespaceTable;
use crate::sink::GroupCommand;

/// A memory region of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// BAR0: controller registers and doorbells.
    Registers,
    /// BAR4: MSI-X table and pending bits.
    Msix,
}

/// What was found in a range of the drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Runs of bytes, ascending and apart, that may be other than never written.
    pub runs: Vec<block::Range>,
    /// The byte up to which was looked.
    pub end_bytes: u64,
}

/// Why there is no [`Survey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsurveyed {
    /// Not now: to be tried again.
    Busy,
    /// The drive's map cannot be read.
    Failed,
}

/// The engine, as the controller sees it. No method calls back into the controller; answers come later.
pub trait Host {
    /// Starts a request on the home reactor's backend. Tokens have bit 63 set; the answer is
    /// [`Controller::complete`](crate::controller::Controller::complete). The buffers named stay alive inside the controller
    /// until then: drop the backend before the controller.
    fn submit(&mut self, request: &block::Request<'_>) -> block::Submitted;
    /// Raises an interrupt vector (MSI-X), or re-evaluates the INTx level.
    fn interrupt(&mut self, vector: u16);
    /// To the group that owns, or on [`GroupCommand::CreateCq`] shall own, this completion queue.
    fn to_queue(&mut self, cqid: u16, command: GroupCommand);
    /// To every group of the ssd. Answers arrive aggregated, as one event.
    fn to_all(&mut self, command: GroupCommand);
    /// Writes the record to stable storage, asynchronously; answered by
    /// [`Controller::persisted`](crate::controller::Controller::persisted). At most one is outstanding.
    fn persist(&mut self, record: state::SsdV1);
    /// Has something done to the controller of that identifier. Answered by
    /// [`Controller::managed`](crate::controller::Controller::managed), once, or never if the process ends. Only a controller of
    /// [`Role::Management`](crate::profile::Role::Management) asks.
    fn manage(&mut self, ticket: u32, cntlid: u16, order: Order);
    /// Looks which of the range of the drive has been written, and ends after as many runs as the query says. What was written before this is said is
    /// found. Answered by [`Controller::surveyed`](crate::controller::Controller::surveyed) with the list that the query makes of it
    /// ([`AllocationQuery::list`], which takes a while, too), once, or never if the process ends. At most one is outstanding.
    fn survey(&mut self, ticket: u32, query: AllocationQuery);
    /// The table that groups made from now on start with.
    fn namespaces(&mut self, table: &Arc<NamespaceTable>);
}
