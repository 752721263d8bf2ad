//! Shadow doorbells (Base 2.1, 5.2.5 and Annex B.5).

use std::sync::atomic::{Ordering, fence};

use crate::ram::Buffer;

/// The two pages of Doorbell Buffer Config.
#[derive(Debug)]
pub(super) struct Shadow {
    pub(super) doorbells: Buffer,
    pub(super) event_idx: Buffer,
}

impl Shadow {
    /// Publishes a doorbell value at `index` (2y for tails, 2y + 1 for heads) and says whether the register must be
    /// written too.
    pub(super) fn publish(&self, index: usize, value: u32) -> bool {
        let old = self.doorbells.load_u32(index * 4);
        self.doorbells.store_u32(index * 4, value);
        // The store above must be seen before EventIdx is read: the device does the two in the other order.
        fence(Ordering::SeqCst);
        needs_ring(self.event_idx.load_u32(index * 4), value, old)
    }
}

/// True when a doorbell going from `old` to `new` passes `event_idx`, all modulo 2^16 (as Linux does it).
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "arithmetic modulo 2^16 on purpose")]
pub fn needs_ring(event_idx: u32, new: u32, old: u32) -> bool {
    let (event_idx, new, old) = (event_idx as u16, new as u16, old as u16);
    new.wrapping_sub(event_idx).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_written_when_event_idx_is_passed() {
        assert!(needs_ring(0, 1, 0));
        assert!(needs_ring(5, 8, 3));
        assert!(!needs_ring(2, 8, 3));
        assert!(!needs_ring(8, 8, 3));
        assert!(needs_ring(15, 0, 15));
    }
}
