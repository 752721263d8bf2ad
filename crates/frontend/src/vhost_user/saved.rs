//! What a successor must know of a session, with descriptors by their names. A plain copy of the session's state: how it is
//! written down is crate `state`'s affair (`vhost_session`).

use super::frame::FdId;
use super::table::TableEntry;

/// The state of one conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Features in use, those of vhost-user too.
    pub features: u64,
    /// Protocol features in use.
    pub protocol_features: u64,
    /// The device status, as the client set it.
    pub status: u8,
    /// The write-back byte, if the client set it.
    pub writeback: Option<bool>,
    /// The memory table.
    pub regions: Vec<TableEntry>,
    /// The rings, by index.
    pub vrings: Vec<SavedVring>,
    /// The region for requests in flight.
    pub inflight: Option<SavedInflight>,
    /// The dirty log.
    pub log: Option<SavedLog>,
    /// The eventfd for changes of the log.
    pub log_event: Option<FdId>,
    /// The socket for our own requests.
    pub backend_channel: Option<FdId>,
    /// The capacity that the client has read, in sectors of 512 bytes.
    pub told_sectors: Option<u64>,
    /// The device was reset, and the device's own in-flight region has yet to forget all rings.
    pub forget: bool,
}

/// A ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SavedVring {
    /// Entries; 0: not yet said.
    pub num: u32,
    /// Addresses, if said.
    pub addr: Option<SavedAddr>,
    /// Where it goes on.
    pub base: u32,
    /// SET_VRING_KICK came, and no GET_VRING_BASE since.
    pub started: bool,
    /// SET_VRING_ENABLE 1 came.
    pub enabled: bool,
    /// Its eventfds.
    pub kick: Option<FdId>,
    /// See [`SavedVring::kick`].
    pub call: Option<FdId>,
    /// See [`SavedVring::kick`].
    pub err: Option<FdId>,
}

/// The addresses of a ring, as the front-end sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SavedAddr {
    /// Descriptor table or packed ring.
    pub descriptor: u64,
    /// Used ring or the device's event suppression.
    pub used: u64,
    /// Available ring or the driver's event suppression.
    pub available: u64,
    /// Where the log has the used ring, if its writes are logged.
    pub log: Option<u64>,
}

/// The region for requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedInflight {
    /// Its memory.
    pub fd: FdId,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Rings.
    pub num_queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Made by the device for itself.
    pub own: bool,
}

/// The dirty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedLog {
    /// Its memory.
    pub fd: FdId,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl Saved {
    /// All descriptors a successor needs, each once.
    pub fn fd_ids(&self) -> Vec<FdId> {
        let of_rings = self.vrings.iter().flat_map(|vring| [vring.kick, vring.call, vring.err]);
        let others = [
            self.inflight.map(|inflight| inflight.fd),
            self.log.map(|log| log.fd),
            self.log_event,
            self.backend_channel,
        ];
        let regions = self.regions.iter().map(|region| Some(region.fd));
        regions.chain(of_rings).chain(others).flatten().collect()
    }
}
