//! What the doors of one volume and its pool's thread share beside the map: who still uses what the map said, and whether it changed.
//!
//! ```text
//!  door (reactor)                               pool's thread
//!  idle: oldest = generation (swap, SeqCst)     entry = other
//!  load entry                                   -------- SeqCst fence --------
//!  I/O at the extent                            generation += 1
//!  ended: oldest = that of the oldest left      wait until every oldest >= generation, or is IDLE
//! ```
//! Either the door's load sees the new entry, or the pool's thread sees the door's `oldest`. So when the wait is over, nothing at the
//! drive was translated by the old entry, and the extent may be wiped, or what it holds be taken for unchangeable.

use crate::{ExtentMap, VolumeId};
use block::Fault;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Nothing of this door's is at the drive.
const IDLE: u64 = u64::MAX;

/// Calls whoever turns a door, so that it looks again. Never blocks.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// One volume's map and its doors. Held by each of its doors and by its pool's thread.
pub struct Gate {
    volume: VolumeId,
    /// Another one when the volume has grown. Doors have theirs at hand.
    map: Mutex<Arc<ExtentMap>>,
    /// Of the newest map.
    size_bytes: AtomicU64,
    /// Grows when the pool's thread has changed entries whose users it waits for.
    generation: AtomicU64,
    /// Grows when a parked request may be able to go on.
    changes: AtomicU64,
    /// No more I/O: the pool is not ours any more, or the volume is gone.
    closed: AtomicBool,
    /// What would park fails.
    refuses: AtomicBool,
    /// Extents that could not be made a door's own: writes to them fail.
    refused: Mutex<BTreeSet<u32>>,
    doors: Mutex<Vec<Arc<Presence>>>,
}

/// What one door tells of itself. A line of the cache of its own: each I/O of an idle door writes to it.
#[repr(align(64))]
struct Presence {
    oldest: AtomicU64,
    wake: Waker,
}

impl Gate {
    /// For a volume that is about to be served.
    #[must_use]
    pub fn new(volume: VolumeId, map: Arc<ExtentMap>) -> Arc<Gate> {
        Arc::new(Gate {
            volume,
            size_bytes: AtomicU64::new(map.size_bytes()),
            map: Mutex::new(map),
            generation: AtomicU64::new(1),
            changes: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            refused: Mutex::default(),
            doors: Mutex::default(),
        })
    }

    /// Whose doors these are.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What they translate by.
    #[must_use]
    pub fn map(&self) -> Arc<ExtentMap> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How large the volume is now.
    #[inline]
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The volume has grown: doors take the new map when they next look, at the latest for a request beyond the old one's end.
    pub fn replace_map(&self, map: Arc<ExtentMap>) {
        let size_bytes = map.size_bytes();
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = map;
        self.size_bytes.store(size_bytes, Ordering::Release);
        self.announce();
    }

    /// Entries have changed: whoever is parked looks again.
    pub fn announce(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        for door in self.doors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            (door.wake)();
        }
    }

    /// Begins to wait for the users of what entries said before: called by the pool's thread after it changed them, and not before
    /// the last wait [`Gate::is_over`].
    pub fn begin_grace(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Nothing at the drive was translated before the wait began that returned `generation`.
    #[must_use]
    pub fn is_over(&self, generation: u64) -> bool {
        fence(Ordering::SeqCst);
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.iter().all(|door| door.oldest.load(Ordering::SeqCst) >= generation)
    }

    /// From now on every request fails with `Gone`, and so do those that are parked.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.announce();
    }

    /// An extent cannot be copied: writes to it fail, parked ones too.
    pub fn refuse(&self, extent: u32) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(extent);
        self.announce();
    }

    /// From now on nothing parks: what would have to, fails.
    pub fn refuse_parked(&self) {
        self.refuses.store(true, Ordering::Release);
        self.announce();
    }

    /// How a request ends that would park for this extent.
    pub(super) fn refusal(&self, extent: u64) -> Option<Fault> {
        if self.refuses.load(Ordering::Acquire) {
            return Some(Fault::NoSpace);
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        u32::try_from(extent).is_ok_and(|extent| refused.contains(&extent)).then_some(Fault::Media)
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn enter(self: &Arc<Self>, wake: Waker) -> Pass {
        let presence = Arc::new(Presence { oldest: AtomicU64::new(IDLE), wake });
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&presence));
        Pass { gate: Arc::clone(self), presence, counts: [0; 2], since: [0; 2] }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("volume", &self.volume).finish_non_exhaustive()
    }
}

/// One door's use of a gate: counts what it has at the drive, by the generation of its translation. Two are enough: a wait begins only
/// when the last one is over, and a late start under an older number is counted with the older.
pub(super) struct Pass {
    gate: Arc<Gate>,
    presence: Arc<Presence>,
    /// At the drive, by the parity of the generation.
    counts: [u32; 2],
    /// The oldest generation that is counted there.
    since: [u64; 2],
}

/// A translation that was begun, and is ended exactly once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(u8);

impl Pass {
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Before entries are loaded.
    #[inline]
    pub(super) fn begin(&mut self) -> Stamp {
        let generation = self.gate.generation.load(Ordering::Acquire);
        if self.counts == [0; 2] {
            // A locked instruction: the entry is not loaded before this is seen. See the module.
            self.presence.oldest.swap(generation, Ordering::SeqCst);
        }
        let parity = usize::from(generation & 1 != 0);
        if self.counts[parity] == 0 {
            self.since[parity] = generation;
        }
        self.counts[parity] += 1;
        Stamp(u8::from(parity != 0))
    }

    /// After what was translated has ended.
    #[inline]
    pub(super) fn end(&mut self, stamp: Stamp) {
        let parity = usize::from(stamp.0 != 0);
        self.counts[parity] = self.counts[parity].saturating_sub(1);
        if self.counts[parity] == 0 {
            let other = 1 - parity;
            let oldest = if self.counts[other] == 0 { IDLE } else { self.since[other] };
            self.presence.oldest.store(oldest, Ordering::Release);
        }
    }
}

impl Drop for Pass {
    /// The door's backend was dropped before, so nothing of it is at the drive.
    fn drop(&mut self) {
        self.presence.oldest.store(IDLE, Ordering::Release);
        let mut doors = self.gate.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|door| !Arc::ptr_eq(door, &self.presence));
    }
}
