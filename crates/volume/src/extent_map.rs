//! What reactors read to find a guest's block on the drive.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros as _;

/// Top bit of an entry: more than one volume refers to the extent, so copy it before it is written.
const SHARED: u32 = 1 << 31;

/// Most physical extents of a pool: an entry has 31 bits for a number that begins at one.
pub const EXTENTS_MAX: u32 = (1 << 31) - 2;

/// What a logical extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nowhere: reads as zeros; a write asks for an extent first.
    Unmapped,
    /// Here, and nobody else's.
    Mapped {
        /// Number of the extent on the drive.
        physical: u32,
    },
    /// Here, and others read it too: it is read in place, and copied before it is written.
    Shared {
        /// Number of the extent on the drive.
        physical: u32,
    },
}

impl Entry {
    fn encode(self) -> u32 {
        let one_based = |physical: u32| {
            assert!(physical <= EXTENTS_MAX, "extent {physical} is beyond what a map can name");
            physical + 1
        };
        match self {
            Self::Unmapped => 0,
            Self::Mapped { physical } => one_based(physical),
            Self::Shared { physical } => one_based(physical) | SHARED,
        }
    }

    #[inline]
    fn decode(word: u32) -> Self {
        match (word & !SHARED).checked_sub(1) {
            None => Self::Unmapped,
            Some(physical) if word & SHARED != 0 => Self::Shared { physical },
            Some(physical) => Self::Mapped { physical },
        }
    }
}

/// The map of one volume: for each logical extent one word. Reactors read it, the pool's thread alone writes it, and
/// it writes an entry only after the change is durable on the drive.
///
/// The size is fixed for its life. A volume that grows gets a new map ([`crate::Pool::map`]); the old one is kept true
/// for its own range as long as anyone holds it.
#[derive(Debug)]
pub struct ExtentMap {
    entries: Box<[AtomicU32]>,
    size_bytes: u64,
    data_offset_bytes: u64,
    extent_shift: u32,
    generation: AtomicU64,
}

impl ExtentMap {
    /// A map of a volume of `size_bytes` without any extent yet.
    ///
    /// `None`: the extent size is no power of two, or there would be more extents than a map can name or hold.
    #[must_use]
    pub fn new(size_bytes: u64, extent_bytes: u64, data_offset_bytes: u64) -> Option<Self> {
        if !extent_bytes.is_power_of_two() {
            return None;
        }
        let count = u32::try_from(size_bytes.div_ceil(extent_bytes)).ok().filter(|c| *c <= EXTENTS_MAX)?;
        // Zeroed by the kernel when it is touched: a map of a thin volume of terabytes costs nothing at first.
        let entries = <[AtomicU32]>::new_box_zeroed_with_elems(usize::try_from(count).ok()?).ok()?;
        let extent_shift = extent_bytes.trailing_zeros();
        Some(Self { entries, size_bytes, data_offset_bytes, extent_shift, generation: AtomicU64::new(0) })
    }

    /// Size of the volume.
    #[inline]
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of an extent: a power of two.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        1 << self.extent_shift
    }

    /// Logical extents, the last of which may reach beyond the volume's size.
    #[must_use]
    pub fn extents(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(EXTENTS_MAX)
    }

    /// The logical extent that a byte of the volume lies in, and how far into it.
    ///
    /// `None`: the byte is not the volume's.
    #[must_use]
    pub fn locate(&self, offset_bytes: u64) -> Option<(u32, u64)> {
        if offset_bytes >= self.size_bytes {
            return None;
        }
        let logical = u32::try_from(offset_bytes >> self.extent_shift).ok()?;
        Some((logical, offset_bytes & (self.extent_bytes() - 1)))
    }

    /// Where a logical extent is. One beyond the end is unmapped.
    #[inline]
    #[must_use]
    pub fn entry(&self, logical: u32) -> Entry {
        // Acquire: who sees an entry also sees that the drive's extent was made ready (zeroed, copied) before it.
        self.entries
            .get(logical as usize)
            .map_or(Entry::Unmapped, |word| Entry::decode(word.load(Ordering::Acquire)))
    }

    /// Where on the drive a physical extent begins.
    #[inline]
    #[must_use]
    pub fn drive_offset(&self, physical: u32) -> u64 {
        self.data_offset_bytes + (u64::from(physical) << self.extent_shift)
    }

    /// Changes an entry; one beyond the end is ignored. For the pool's thread alone, after the change is durable.
    pub fn set(&self, logical: u32, entry: Entry) {
        if let Some(word) = self.entries.get(logical as usize) {
            word.store(entry.encode(), Ordering::Release);
        }
    }

    /// Changes `count` entries from `logical` on, as [`ExtentMap::set`] does: `entry` is the first, the physical numbers
    /// of the others follow it.
    pub fn set_run(&self, logical: u32, count: u32, entry: Entry) {
        let first = logical as usize;
        let end = first.saturating_add(count as usize).min(self.entries.len());
        let (mut word, step) = (entry.encode(), u32::from(entry != Entry::Unmapped));
        for place in self.entries.get(first..end).unwrap_or_default() {
            place.store(word, Ordering::Release);
            word = word.wrapping_add(step);
        }
    }

    /// Counts the changes that took an extent away. A reactor publishes the value it read *before* it looked an entry
    /// up, until that request has ended; what was taken away before a value that all have passed is in nobody's hands.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Begins the next generation, after entries were changed, and says which it is. For the pool's thread alone.
    pub fn advance_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_new_map_reads_as_unmapped_everywhere_and_beyond() {
        let map = ExtentMap::new(10 * MIB + 1, MIB, 4 * MIB).expect("small");
        assert_eq!(map.extents(), 11);
        for logical in [0, 10, 11, u32::MAX] {
            assert_eq!(map.entry(logical), Entry::Unmapped);
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_set_up_to_the_last_physical_extent() {
        let map = ExtentMap::new(4 * MIB, MIB, 0).expect("small");
        for physical in [0, 1, 77, EXTENTS_MAX] {
            for entry in [Entry::Mapped { physical }, Entry::Shared { physical }, Entry::Unmapped] {
                map.set(2, entry);
                assert_eq!(map.entry(2), entry);
                assert_eq!((map.entry(1), map.entry(3)), (Entry::Unmapped, Entry::Unmapped));
            }
        }
    }

    #[test]
    fn a_run_is_its_entries_one_by_one_and_ends_with_the_map() {
        let map = ExtentMap::new(8 * MIB, MIB, 0).expect("small");
        map.set_run(5, 9, Entry::Shared { physical: 70 });
        map.set_run(1, 2, Entry::Mapped { physical: 3 });
        map.set_run(6, 1, Entry::Unmapped);
        let physical: Vec<Entry> = (0..8).map(|at| map.entry(at)).collect();
        let (own, shared) = (|physical| Entry::Mapped { physical }, |physical| Entry::Shared { physical });
        let none = Entry::Unmapped;
        assert_eq!(physical, [none, own(3), own(4), none, none, shared(70), none, shared(72)]);
        map.set_run(9, 1, Entry::Mapped { physical: 1 });
    }

    #[test]
    fn a_byte_is_found_in_its_extent_and_none_beyond_the_end() {
        let map = ExtentMap::new(3 * MIB + 512, MIB, 8 * MIB).expect("small");
        assert_eq!(map.locate(0), Some((0, 0)));
        assert_eq!(map.locate(MIB - 1), Some((0, MIB - 1)));
        assert_eq!(map.locate(3 * MIB + 511), Some((3, 511)));
        assert_eq!(map.locate(3 * MIB + 512), None);
        assert_eq!(map.locate(u64::MAX), None);
        assert_eq!(map.drive_offset(5), 13 * MIB);
    }

    #[test]
    fn a_map_that_cannot_name_its_extents_is_refused() {
        assert!(ExtentMap::new(MIB, 3 << 19, 0).is_none());
        assert!(ExtentMap::new(MIB, 0, 0).is_none());
        assert!(ExtentMap::new(u64::MAX, MIB, 0).is_none());
    }
}
