//! The second door: a virtio-blk disk over vhost-user, served by the same reactors on the same drives.
//!
//! ```text
//!  client --socket or keeper--> frontend::vhost_user::Session --Blk--> Disk (the session's thread)
//!                                                                       |  Order, each answered
//!  guest --rings, guest RAM (shared memory), kicks--> reactors: VhostSeat { virtio::VirtQueueGroup } --> block::Backend
//! ```
//!
//! The session is the single owner of all that a client said. Rings are dealt out to the reactors in turn, and may be moved, between two
//! of the session's messages; a reactor has a seat only while it has had a ring of the present session. Memory, features and logs change only while no ring runs, so that seats
//! are told of them in between and never have to wait.
//!
//! What a successor needs is in two places: the in-flight region (what was taken and not answered), and the session's deposit
//! with the keeper (all else). There is no controller, no region of our own and no record.

mod disk;
mod kicks;
mod saved;
mod seat;
mod serve;
mod slot;
#[cfg(test)]
mod tests;

pub(crate) use disk::{Disk, check_size, open_ssd};
pub(crate) use seat::VhostSeat;
pub(crate) use serve::{Opened, open, start};
pub(crate) use slot::{VhostPlan, VhostSlot};

use crate::interrupts::Eventfd;
use crate::ssd::Ssd;
use memory::MemoryMap;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use virtio::config::Device;
use virtio::ring::RingConfig;

/// What all rings of a session share.
#[derive(Clone)]
pub(crate) struct Setting {
    /// With the log of written pages, while it is armed.
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) features: u64,
    pub(crate) writeback: bool,
    /// Told of pages that were marked.
    pub(crate) log_event: Option<Arc<Eventfd>>,
    /// Ends the session of a client that took away the file behind its memory.
    pub(crate) hang_up: Arc<dyn Fn() + Send + Sync>,
}

/// The eventfds of a ring.
#[derive(Clone, Default)]
pub(crate) struct Events {
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<Arc<Eventfd>>,
    pub(crate) err: Option<Arc<Eventfd>>,
}

/// To a seat. A seat that is not there, or goes, drops the answer's sender.
pub(crate) enum Order {
    /// Take a seat, if there is none. Not answered.
    Sit(Box<(Arc<Ssd>, Arc<Device>, Setting)>),
    /// Use this from now on. No ring runs.
    Adopt(Box<Setting>, SyncSender<Done>),
    /// Serve a ring.
    Start(u16, Box<RingConfig>, Events, SyncSender<Done>),
    /// Use these eventfds.
    Events(u16, Events, SyncSender<Done>),
    /// Serve a ring no longer; answered when all that was taken from it is answered.
    Stop(u16, SyncSender<Done>),
    /// As a stop, for another reactor: what takes long to end, or is held by the ssd's limits, is not waited for. The ring is served as before
    /// then, and the answer is EAGAIN.
    Yield(u16, SyncSender<Done>),
    /// Make what was written durable.
    Flush(SyncSender<Done>),
    /// Begin nothing more, for another process; answered when nothing is at the drive.
    Pause(SyncSender<Done>),
    /// Give the seat up. No ring runs.
    Leave(SyncSender<Done>),
}

/// The answer to an [`Order`]: a ring's position after `Stop`, the requests executed again after `Start`, else 0.
pub(crate) type Done = Result<u32, Errno>;
