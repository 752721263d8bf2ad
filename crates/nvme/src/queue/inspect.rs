//! Whether a region found in shared memory may be believed, and bringing it to rest before anyone opens its queues.

use std::sync::atomic::Ordering;

use spec::nvme::registers::Csts;
use state::region::{ControllerRegion, LAYOUT_VERSION, MAGIC, SLOT_ACCEPTED, SLOT_POSTING, Slot};

use super::record::{CqRecord, SqRecord};
use super::recovery::conclude;
use super::submission::{position_of, state_of};

/// Why a region is not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsound {
    /// Not a region, or one that was never initialised.
    #[error("the controller's shared state has no valid beginning")]
    Magic,
    /// Another layout.
    #[error("the controller's shared state has layout {found}, this build knows {LAYOUT_VERSION}")]
    Layout {
        /// What the region says.
        found: u32,
    },
    /// Another size.
    #[error("the controller's shared state says it is {found} bytes long")]
    Size {
        /// What the region says.
        found: u64,
    },
    /// A submission queue's record.
    #[error("the record of submission queue {0} makes no sense")]
    SubmissionQueue(u16),
    /// A completion queue's record.
    #[error("the record of completion queue {0} makes no sense")]
    CompletionQueue(u16),
    /// An in-flight slot.
    #[error("slot {slot} of submission queue {sqid} makes no sense")]
    Slot {
        /// Its queue.
        sqid: u16,
        /// Its index.
        slot: u16,
    },
}

/// Magic, layout and size: whether this build can read the region at all. Changes nothing; the region may be in use.
///
/// # Errors
/// [`Unsound`].
pub fn inspect_header(region: &ControllerRegion) -> Result<(), Unsound> {
    let header = &region.header;
    if header.magic.load(Ordering::Acquire) != MAGIC {
        return Err(Unsound::Magic);
    }
    match header.layout_version.load(Ordering::Relaxed) {
        LAYOUT_VERSION => {}
        found => return Err(Unsound::Layout { found }),
    }
    match header.size_bytes.load(Ordering::Relaxed) {
        found if found == size_of::<ControllerRegion>() as u64 => Ok(()),
        found => Err(Unsound::Size { found }),
    }
}

/// Whether a region whose writer is dead can be gone on with: what the order of its stores makes impossible is not there.
///
/// # Errors
/// [`Unsound`].
pub fn inspect(region: &ControllerRegion) -> Result<(), Unsound> {
    inspect_header(region)?;
    let ready = Csts::from_bits(region.registers.csts.load(Ordering::Acquire)).rdy();
    // A reset closes queues one by one.
    let resetting = region.registers.reset_count.load(Ordering::Acquire) % 2 == 1;
    for (qid, cq) in (0_u16..).zip(&region.cqs) {
        let exists = cq.size.load(Ordering::Acquire) != 0;
        if exists && CqRecord::load(region, qid).is_none() || !exists && qid == 0 && ready && !resetting {
            return Err(Unsound::CompletionQueue(qid));
        }
    }
    for (sqid, sq) in (0_u16..).zip(&region.sqs) {
        let exists = sq.size.load(Ordering::Acquire) != 0;
        match SqRecord::load(region, sqid) {
            Some(record) => {
                let cq = CqRecord::load(region, record.cqid);
                if !resetting && cq.is_none() || (sqid == 0) != (record.cqid == 0) {
                    return Err(Unsound::SubmissionQueue(sqid));
                }
                inspect_slots(region, sqid, record.size, cq.map_or(u32::MAX, |cq| cq.size))?;
            }
            None if exists || sqid == 0 && ready && !resetting => return Err(Unsound::SubmissionQueue(sqid)),
            None => {}
        }
    }
    Ok(())
}

fn inspect_slots(region: &ControllerRegion, sqid: u16, sq_size: u32, cq_size: u32) -> Result<(), Unsound> {
    let Some(slots) = region.slots.get(usize::from(sqid)) else { return Ok(()) };
    for (slot, place) in (0_u16..).zip(slots) {
        let position = position_of(place.word.load(Ordering::Acquire));
        let sound = match state_of(place) {
            SLOT_ACCEPTED => position < sq_size,
            SLOT_POSTING => position < cq_size,
            _ => true,
        };
        if !sound {
            return Err(Unsound::Slot { sqid, slot });
        }
    }
    Ok(())
}

/// What a dead predecessor left in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Commands accepted and not answered: they are executed again.
    pub unanswered: u64,
    /// Completions that were being posted: they are posted again.
    pub posting: u64,
}

/// Brings every I/O queue's record to a state of rest ([`super::Conclusion::settle`]), before any queue is opened. What is done
/// once may be done again.
pub fn settle_region(region: &ControllerRegion) -> Left {
    let mut left = Left::default();
    for (sqid, slots) in (0_u16..).zip(&region.slots) {
        let Some(found) = conclude(region, sqid) else { continue };
        left.unanswered += found.unanswered.len() as u64;
        let posting = |slot: &&Slot| state_of(slot) == SLOT_POSTING;
        left.posting += slots.iter().filter(posting).count() as u64;
        found.settle(region, sqid);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{create_cq, create_sq};
    use memory::SharedRegion;

    fn sound() -> SharedRegion<ControllerRegion> {
        let region = SharedRegion::<ControllerRegion>::private();
        region.header.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
        region.header.size_bytes.store(size_of::<ControllerRegion>() as u64, Ordering::Relaxed);
        region.header.magic.store(MAGIC, Ordering::Release);
        create_cq(&region, 1, 0, 16, Some(1));
        create_sq(&region, 1, 0, 16, 1);
        assert_eq!(inspect(&region), Ok(()));
        region
    }

    #[test]
    fn a_region_without_its_beginning_is_never_believed() {
        assert_eq!(inspect(&SharedRegion::private()), Err(Unsound::Magic));
        let region = sound();
        region.header.layout_version.store(LAYOUT_VERSION + 1, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::Layout { found: LAYOUT_VERSION + 1 }));
        let region = sound();
        region.header.size_bytes.store(7, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::Size { found: 7 }));
    }

    #[test]
    fn records_that_the_order_of_stores_makes_impossible_are_never_believed() {
        let region = sound();
        region.sqs[1].head_seq.store(16, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::SubmissionQueue(1)));
        let region = sound();
        region.cqs[1].size.store(0, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::SubmissionQueue(1)));
        // A reset closes queues in any order.
        region.registers.reset_count.store(1, Ordering::Relaxed);
        assert_eq!(inspect(&region), Ok(()));
        let region = sound();
        region.cqs[1].tail_phase.store(99, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::CompletionQueue(1)));
        let region = sound();
        region.slots[1][3].word.store(16 << 16 | SLOT_ACCEPTED, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::Slot { sqid: 1, slot: 3 }));
        let region = sound();
        region.registers.csts.store(1, Ordering::Relaxed);
        assert_eq!(inspect(&region), Err(Unsound::CompletionQueue(0)));
    }
}
