//! The in-flight region as a whole: its geometry, and the part of it that is a queue's.

use std::sync::Arc;

use memory::{Access, Fault, Iova, MemoryMap, Window};
use spec::vhost_inflight::queue_bytes;

use crate::store::put16;

/// Bytes of a region for either kind of ring.
#[must_use]
pub fn region_bytes(num_queues: u16, queue_size: u16) -> usize {
    queue_bytes(true, queue_size).max(queue_bytes(false, queue_size)) * usize::from(num_queues)
}

/// A queue's part of the in-flight region.
#[derive(Clone, Debug)]
pub struct QueueRegion {
    pub(crate) window: Window,
    pub(crate) desc_num: u16,
}

impl QueueRegion {
    /// The part of `queue` in a region that `map` has at `start`, made for `num_queues` rings of `queue_size` entries.
    ///
    /// # Errors
    /// There is no such part, or it is not mapped.
    pub fn new(
        map: &Arc<MemoryMap>,
        start: Iova,
        geometry: (u16, u16),
        packed: bool,
        queue: u16,
    ) -> Result<Self, Fault> {
        let (num_queues, queue_size) = geometry;
        if queue >= num_queues || queue_size == 0 {
            return Err(Fault::Unmapped);
        }
        let bytes = queue_bytes(packed, queue_size);
        let offset = bytes as u64 * u64::from(queue);
        let at = start.0.checked_add(offset).ok_or(Fault::Unmapped)?;
        Ok(Self { window: Window::new(map, Iova(at), bytes, Access::BOTH)?, desc_num: queue_size })
    }

    /// Forget what it says: the ring begins anew at its base.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn clear(&self) -> Result<(), Fault> {
        put16(&self.window, 8, 0)
    }
}
