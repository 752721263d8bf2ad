//! What is written to the drives of controllers that a management controller logs: a map for each, in which all doors of its ssd note, beside that
//! of a copy to another host ([`crate::watch`]).

use super::passenger_of;
use crate::migration::{pages_of, tell};
use crate::run::House;
use crate::ssd::Ssd;
use dirty::{Map, PAGE_BYTES};
use nvme::management::{Change, Order, Report, Trouble};
use state::ssd::NamespaceV1;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Blocks that one change names at most.
const BLOCKS_MAX: u64 = 1 << 31;

/// The maps, by what the management controller calls their controllers.
#[derive(Default)]
pub(crate) struct Trackers {
    maps: Mutex<BTreeMap<u16, Arc<Tracker>>>,
    /// How often the tracking of all memory ([`super::memory`]) was ended. Held while some is begun or ended.
    era: Mutex<u64>,
}

struct Tracker {
    ssd: Arc<Ssd>,
    map: Arc<Map>,
    /// One harvest at a time.
    turn: Mutex<()>,
}

impl Trackers {
    fn maps(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Tracker>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, cntlid: u16) -> Option<Arc<Tracker>> {
        self.maps().get(&cntlid).map(Arc::clone)
    }

    pub(super) fn lock_era(&self) -> MutexGuard<'_, u64> {
        self.era.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn era(&self) -> u64 {
        *self.lock_era()
    }

    /// Nothing was written to the drive of a controller that is tracked.
    pub(super) fn is_clean(&self, cntlid: u16) -> bool {
        self.of(cntlid).is_some_and(|tracker| tracker.map.count() == 0)
    }
}

/// Notes what is written from now on, in place of what was noted before; or nothing more. `era`: as it was when the order came.
pub(super) fn track(house: &Arc<House>, cntlid: u16, on: bool, era: u64) -> Report {
    let Some(passenger) = passenger_of(house, cntlid) else {
        stop(house, cntlid);
        return Report::Failed(Trouble::NoController);
    };
    let ssd = passenger.ssd();
    if !on {
        // It is forgotten already; this is for those that write.
        let _ = tell(ssd, house.duty.crew());
        return Report::Done;
    }
    let Some(map) = pages_of(ssd).and_then(|pages| Map::new(pages).ok()).map(Arc::new) else {
        tracing::error!(
            ssd = ssd.name,
            "its writes cannot be logged: no memory, or a size that is no multiple of 4 KiB"
        );
        return Report::Failed(Trouble::Failed);
    };
    let tracker = Arc::new(Tracker { ssd: Arc::clone(ssd), map, turn: Mutex::default() });
    {
        let ended = house.trackers.lock_era();
        if *ended != era {
            // Whoever asked has been reset.
            return Report::Failed(Trouble::Failed);
        }
        ssd.watch.track(Some(Arc::clone(&tracker.map)));
        house.trackers.maps().insert(cntlid, Arc::clone(&tracker));
    }
    if let Err(error) = tell(ssd, house.duty.crew()) {
        tracing::warn!(ssd = ssd.name, %error, "its writes are not logged yet");
        let ended = house.trackers.lock_era();
        // It may be another life's by now.
        if *ended == era {
            forget(house, cntlid);
        }
        return Report::Failed(Trouble::Busy);
    }
    match passenger.manage(Order::Look) {
        // Without a client it is disabled.
        Report::Failed(Trouble::NoController) => Report::Standing { suspended: false, enabled: false },
        report => report,
    }
}

/// Its map is not to be written to any more. Done at once, whatever its reactors do.
pub(super) fn forget(house: &House, cntlid: u16) {
    let tracker = house.trackers.maps().remove(&cntlid);
    if let Some(tracker) = tracker {
        tracker.ssd.watch.track(None);
    }
}

/// Nor any other. Those that are to be told by [`let_go`].
pub(super) fn forget_all(house: &House) -> Vec<Arc<Ssd>> {
    let all = std::mem::take(&mut *house.trackers.maps());
    let ssds: Vec<_> = all.into_values().map(|tracker| Arc::clone(&tracker.ssd)).collect();
    ssds.iter().for_each(|ssd| ssd.watch.track(None));
    ssds
}

pub(super) fn let_go(house: &House, ssds: &[Arc<Ssd>]) {
    // Who writes and does not hear it notes for nobody.
    ssds.iter().for_each(|ssd| _ = tell(ssd, house.duty.crew()));
}

fn stop(house: &House, cntlid: u16) {
    let tracker = house.trackers.of(cntlid);
    forget(house, cntlid);
    if let Some(tracker) = tracker {
        let _ = tell(&tracker.ssd, house.duty.crew());
    }
}

/// What was written since it was last said.
pub(super) fn harvest(house: &Arc<House>, cntlid: u16, most: u32, whole: bool) -> Report {
    let Some(passenger) = passenger_of(house, cntlid) else {
        stop(house, cntlid);
        return Report::Failed(Trouble::NoController);
    };
    let Some(tracker) =
        house.trackers.of(cntlid).filter(|tracker| Arc::ptr_eq(&tracker.ssd, passenger.ssd()))
    else {
        return Report::Failed(Trouble::Failed);
    };
    let Some(state) = passenger.peek() else { return Report::Failed(Trouble::Busy) };
    let namespaces = state.record.namespaces;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let _turn = tracker.turn.lock().unwrap_or_else(PoisonError::into_inner);
    if whole {
        let all = namespaces.iter().map(|namespace| Change::Namespace(namespace.nsid));
        let changes: Vec<Change> = all.take(most).collect();
        let more = changes.len() < namespaces.len();
        return Report::Changes { changes, more };
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    tracker.map.take(|block, marks| {
        let base = block as u64 * dirty::BLOCK_PAGES;
        marks.runs(|first, pages| match runs.last_mut() {
            Some((start, len)) if *start + *len == base + u64::from(first) => *len += u64::from(pages),
            _ => runs.push((base + u64::from(first), pages.into())),
        });
    });
    let (mut changes, mut more) = (Vec::new(), false);
    for (first, pages) in runs {
        for namespace in &namespaces {
            let (start, end) = (first * PAGE_BYTES, (first + pages) * PAGE_BYTES);
            more |= !add(&mut changes, most, &tracker.map, namespace, start, end);
        }
    }
    Report::Changes { changes, more }
}

/// The blocks of a namespace in a run of bytes. What there is no room for is marked again: `false`.
fn add(
    changes: &mut Vec<Change>,
    most: usize,
    map: &Map,
    namespace: &NamespaceV1,
    start: u64,
    end: u64,
) -> bool {
    let shift = namespace.lba_shift;
    let limit = namespace.start_bytes.saturating_add(namespace.blocks << shift);
    let (start, end) = (start.max(namespace.start_bytes), end.min(limit));
    let (mut slba, past) = match start < end {
        true => {
            ((start - namespace.start_bytes) >> shift, (end - namespace.start_bytes).div_ceil(1 << shift))
        }
        false => return true,
    };
    while slba < past {
        if changes.len() >= most {
            let from = (namespace.start_bytes + (slba << shift)) / PAGE_BYTES;
            map.mark(from, end.div_ceil(PAGE_BYTES) - from);
            return false;
        }
        let blocks = (past - slba).min(BLOCKS_MAX);
        let nlb_z = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
        changes.push(Change::Blocks { nsid: namespace.nsid, slba, nlb_z });
        slba += blocks;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(nsid: u32, start_bytes: u64, blocks: u64, lba_shift: u8) -> NamespaceV1 {
        NamespaceV1 {
            nsid,
            start_bytes,
            reserved_bytes: blocks << lba_shift,
            blocks,
            lba_shift,
            ..NamespaceV1::default()
        }
    }

    #[test]
    fn bytes_are_said_as_blocks_of_the_namespaces_they_are_in_and_the_rest_stays_marked() {
        let map = Map::new(1 << 20).unwrap();
        let (one, two) = (namespace(1, 0, 256, 12), namespace(7, 1 << 20, 100, 9));
        let mut changes = Vec::new();
        for namespace in [&one, &two] {
            assert!(add(&mut changes, 9, &map, namespace, (1 << 20) - 8192, (1 << 20) + 4096));
        }
        let blocks = |nsid, slba, nlb_z| Change::Blocks { nsid, slba, nlb_z };
        assert_eq!(changes, [blocks(1, 254, 1), blocks(7, 0, 7)]);
        // Past the end of a namespace there is none of its blocks.
        changes.clear();
        assert!(add(&mut changes, 9, &map, &two, (1 << 20) + 12 * 4096, 2 << 20));
        assert_eq!(changes, [blocks(7, 96, 3)]);
        assert!(add(&mut changes, 9, &map, &one, 4 << 20, 5 << 20));
        assert_eq!((changes.len(), map.count()), (1, 0));
        assert!(!add(&mut changes, 1, &map, &one, 8192, 4 * 4096));
        assert_eq!((changes.len(), map.count()), (1, 2));
    }

    #[test]
    fn a_run_that_is_too_long_for_one_entry_is_said_in_several() {
        let map = Map::new(1 << 30).unwrap();
        let huge = namespace(1, 0, 3 << 31, 9);
        let mut changes = Vec::new();
        assert!(!add(&mut changes, 2, &map, &huge, 0, 3 << 40));
        let blocks = |slba| Change::Blocks { nsid: 1, slba, nlb_z: u32::MAX >> 1 };
        assert_eq!(changes, [blocks(0), blocks(1 << 31)]);
        assert_eq!(map.count(), 1 << 28);
    }
}
