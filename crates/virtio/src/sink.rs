//! What a group asks of the engine.

use thiserror::Error;

/// The engine, as a group sees it. No method calls back into the group.
pub trait Sink {
    /// Starts a request on this reactor's backend; its end comes back through
    /// [`VirtQueueGroup::complete`](crate::group::VirtQueueGroup::complete) unless it ended at once. `Full`: the group tries
    /// again in its next poll. The memory named by the request stays mapped as long as the group has it in flight.
    fn submit(&mut self, request: &block::Request<'_>) -> block::Submitted;
    /// Tells the driver of used buffers (the queue's call eventfd).
    fn call(&mut self, queue: u16);
    /// Without loss. Each event answers a command, or is said once for each start of a queue.
    fn report(&mut self, event: Event);
}

/// From a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The queue's ring makes no sense. It is not looked at until it is started again: DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2),
    /// the queue's err eventfd. Its requests at the drive still come back to `complete`.
    Broken {
        /// Queue.
        queue: u16,
        /// What is wrong.
        why: Broken,
    },
    /// The queue is stopped and everything taken from it is answered (unless it was broken).
    Stopped {
        /// Queue.
        queue: u16,
        /// Where it goes on (GET_VRING_BASE).
        base: u32,
    },
    /// No I/O uses an older map.
    MemoryAdopted {
        /// `MemoryMap::generation`.
        generation: u64,
    },
    /// No I/O is at the backend; nothing is stored any more.
    Paused,
}

/// Why a ring cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// The ring or the in-flight region cannot be reached.
    #[error("memory of the ring: {0}")]
    Memory(#[from] memory::Fault),
    /// Zero, not a power of two (split), or more than the group or the in-flight region has room for.
    #[error("ring size")]
    Size,
    /// The available index is further ahead than the ring has entries.
    #[error("available index jumped")]
    Index,
    /// A head beyond the table, or one that is in flight already.
    #[error("bad head")]
    Head,
    /// A descriptor that leads out of its table, or into a circle.
    #[error("descriptor chain leaves its table or does not end")]
    Chain,
    /// An indirect table in an indirect table, not offered, or of a wrong length.
    #[error("bad indirect table")]
    Indirect,
    /// A descriptor to read after one to write.
    #[error("descriptors out of order")]
    Order,
    /// No room for the header, or none for the status: there is no way to answer.
    #[error("no header or no status byte")]
    Header,
    /// The in-flight region contradicts itself or the ring.
    #[error("corrupt in-flight region")]
    Region,
}
