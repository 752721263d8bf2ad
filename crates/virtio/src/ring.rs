//! A ring of either kind.

use std::sync::Arc;

use memory::{Hint, MemoryMap};

use crate::chain::Chain;
use crate::inflight::QueueRegion;
use crate::packed::Packed;
use crate::sink::Broken;
use crate::split::Split;

/// Where a ring is and how it is used. Addresses are the guest's.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Entries.
    pub size: u16,
    /// RING_PACKED.
    pub packed: bool,
    /// EVENT_IDX.
    pub event_idx: bool,
    /// Descriptor table or packed ring.
    pub descriptors: u64,
    /// Available ring or driver's event suppression.
    pub driver: u64,
    /// Used ring or device's event suppression.
    pub device: u64,
    /// Where to go on (SET_VRING_BASE), unless `inflight` knows.
    pub base: u32,
    /// Where the used ring, or the device's event suppression, is logged too. What the device stores is logged where it stores it in any
    /// case; the two differ only behind a vIOMMU, or by a client's mistake.
    pub log_address: Option<u64>,
    /// The queue's part of the in-flight region; without it no successor can go on.
    pub inflight: Option<QueueRegion>,
}

impl RingConfig {
    /// Where marks of the used ring go besides its own place.
    pub(crate) fn log_elsewhere(&self) -> Option<u64> {
        self.log_address.filter(|at| *at != self.device)
    }
}

/// A chain that was taken: its slot.
pub(crate) type Slot = u16;

pub(crate) enum Ring {
    Split(Split),
    Packed(Packed),
}

/// The same call on either kind.
macro_rules! each {
    ($ring:expr, $name:ident => $call:expr) => {
        match $ring {
            Ring::Split($name) => $call,
            Ring::Packed($name) => $call,
        }
    };
}

impl Ring {
    /// The ring, and the slots to begin again, in order.
    pub(crate) fn open(config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(Self, Vec<Slot>), Broken> {
        if config.packed {
            Packed::open(config, map).map(|(ring, again)| (Self::Packed(ring), again))
        } else {
            Split::open(config, map).map(|(ring, again)| (Self::Split(ring), again))
        }
    }

    /// The same ring in another map.
    pub(crate) fn remap(&mut self, config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(), Broken> {
        each!(self, ring => ring.remap(config, map))
    }

    /// Takes the next chain, if there is one, and logs it as in flight.
    #[inline]
    pub(crate) fn take(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        chain: &mut Chain,
    ) -> Result<Option<Slot>, Broken> {
        each!(self, ring => ring.take(map, hint, chain))
    }

    /// Something may be there to take.
    #[inline]
    pub(crate) fn has_more(&mut self) -> Result<bool, Broken> {
        each!(self, ring => ring.has_more())
    }

    /// Whether something is there to take, or the ring makes no sense. Changes nothing.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        each!(self, ring => ring.waits()).unwrap_or(true)
    }

    /// The chain of a slot in flight, from its beginning.
    pub(crate) fn again(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        slot: Slot,
        chain: &mut Chain,
    ) -> Result<(), Broken> {
        each!(self, ring => ring.again(map, hint, slot, chain))
    }

    /// Answers a slot at the next [`Ring::publish`].
    #[inline]
    pub(crate) fn answer(&mut self, slot: Slot, len: u32) {
        each!(self, ring => ring.pending.push((slot, len)));
    }

    /// Gives all answers to the driver. Whether there were any.
    #[inline]
    pub(crate) fn publish(&mut self) -> Result<bool, Broken> {
        each!(self, ring => ring.publish())
    }

    /// Whether the driver wants to hear of what was published since the last time. After a SeqCst fence.
    #[inline]
    pub(crate) fn wants_call(&mut self) -> Result<bool, Broken> {
        each!(self, ring => ring.wants_call())
    }

    /// Asks the driver to kick, or not to. The caller fences and looks again after asking.
    pub(crate) fn want_kicks(&mut self, wanted: bool) -> Result<(), Broken> {
        each!(self, ring => ring.want_kicks(wanted))
    }

    /// Marks all that the device may ever have written of the ring, if there is a log.
    pub(crate) fn mark_all(&self) {
        each!(self, ring => ring.mark_all());
    }

    /// GET_VRING_BASE.
    pub(crate) fn base(&self) -> u32 {
        each!(self, ring => ring.base())
    }
}
