//! The memory table: which regions there are, and the way from the front-end's addresses to the guest's.

use rustix::io::Errno;
use spec::vhost_user::MemoryRegion;

use super::frame::{FdId, Refusal};

/// A region that the device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Bytes, at least one; no range wraps.
    pub size: u64,
    /// Where the front-end sees it.
    pub user_address: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
    /// Its file.
    pub fd: FdId,
}

impl TableEntry {
    pub(crate) fn checked(region: &MemoryRegion, fd: FdId) -> Result<Self, Refusal> {
        let MemoryRegion { guest_address, size, user_address, mmap_offset } = *region;
        let more = size.checked_sub(1).ok_or(Refusal::new(Errno::INVAL, "a region of no bytes"))?;
        let sound =
            [guest_address, user_address, mmap_offset].iter().all(|at| at.checked_add(more).is_some());
        // The end in the file must have a number too.
        if !sound || mmap_offset.checked_add(size).is_none() {
            return Err(Refusal::new(Errno::INVAL, "a region that wraps"));
        }
        Ok(Self { guest_address, size, user_address, mmap_offset, fd })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |mine: u64, other_at: u64| {
            // Last bytes do not wrap (see `checked`).
            mine <= other_at.saturating_add(other.size - 1) && other_at <= mine.saturating_add(self.size - 1)
        };
        meet(self.guest_address, other.guest_address) || meet(self.user_address, other.user_address)
    }
}

/// The regions of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    entries: Vec<TableEntry>,
}

impl Table {
    pub(crate) fn entries(&self) -> &[TableEntry] {
        &self.entries
    }

    /// The table with one more region.
    pub(crate) fn add(&mut self, entry: TableEntry, slots_max: usize) -> Result<(), Refusal> {
        if self.entries.len() >= slots_max {
            return Err(Refusal::new(Errno::NOSPC, "more memory regions than there are slots"));
        }
        if self.entries.iter().any(|other| other.overlaps(&entry)) {
            return Err(Refusal::new(Errno::EXIST, "a memory region that overlaps another"));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Where the region stands that has this guest address, user address and size (REM_MEM_REG).
    pub(crate) fn find(&self, region: &MemoryRegion) -> Option<usize> {
        let same = |entry: &TableEntry| {
            (entry.guest_address, entry.user_address, entry.size)
                == (region.guest_address, region.user_address, region.size)
        };
        self.entries.iter().position(same)
    }

    pub(crate) fn remove(&mut self, at: usize) {
        if at < self.entries.len() {
            self.entries.remove(at);
        }
    }

    /// The guest address of `len` bytes at a user address, when they are one run in both spaces.
    pub(crate) fn guest_address(&self, user_address: u64, len: u64) -> Option<u64> {
        let first = self.one(user_address)?;
        let more = len.checked_sub(1)?;
        let mut done_at = user_address;
        let last = user_address.checked_add(more)?;
        // Regions may be small (a hugepage each): walk over all that the run touches.
        while let Some(entry) = self.holder(done_at) {
            let guest = entry.guest_address.checked_add(done_at.checked_sub(entry.user_address)?)?;
            if guest.checked_sub(first)? != done_at - user_address {
                return None;
            }
            let entry_last = entry.user_address.checked_add(entry.size - 1)?;
            if entry_last >= last {
                return Some(first);
            }
            done_at = entry_last.checked_add(1)?;
        }
        None
    }

    fn holder(&self, user_address: u64) -> Option<&TableEntry> {
        let inside = |entry: &&TableEntry| {
            user_address.checked_sub(entry.user_address).is_some_and(|into| into < entry.size)
        };
        self.entries.iter().find(inside)
    }

    fn one(&self, user_address: u64) -> Option<u64> {
        let entry = self.holder(user_address)?;
        entry.guest_address.checked_add(user_address - entry.user_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest_address: u64, size: u64, user_address: u64) -> MemoryRegion {
        MemoryRegion { guest_address, size, user_address, mmap_offset: 0 }
    }

    fn table(regions: &[MemoryRegion]) -> Table {
        let mut table = Table::default();
        for region in regions {
            let entry = TableEntry::checked(region, 0).expect("sound");
            table.add(entry, 8).expect("apart from the others");
        }
        table
    }

    #[test]
    fn a_region_that_is_empty_or_wraps_anywhere_is_refused() {
        for bad in [region(0, 0, 0), region(u64::MAX, 2, 0), region(0, 2, u64::MAX)] {
            assert!(TableEntry::checked(&bad, 0).is_err(), "{bad:?}");
        }
        let offset = MemoryRegion { mmap_offset: u64::MAX, ..region(0, 1, 0) };
        assert!(TableEntry::checked(&offset, 0).is_err());
        assert!(TableEntry::checked(&region(u64::MAX, 1, u64::MAX), 0).is_ok());
    }

    #[test]
    fn regions_may_touch_but_not_overlap_in_either_address_space() {
        let mut regions = table(&[region(0x1000, 0x1000, 0x7000)]);
        let mut add = |bad: MemoryRegion| regions.add(TableEntry::checked(&bad, 0).expect("sound"), 3);
        assert_eq!(add(region(0x1FFF, 1, 0x1_0000)).unwrap_err().errno, Errno::EXIST);
        assert_eq!(add(region(0x8000, 0x1000, 0x6001)).unwrap_err().errno, Errno::EXIST);
        assert!(add(region(0x2000, 0x1000, 0x8000)).is_ok());
        assert!(add(region(0, 0x1000, 0x6000)).is_ok());
        assert_eq!(add(region(0x9000, 1, 0x9000)).unwrap_err().errno, Errno::NOSPC);
    }

    #[test]
    fn a_run_is_translated_only_where_both_spaces_are_in_one_piece() {
        let table = table(&[
            region(0x1_0000, 0x1000, 0x7000),
            region(0x1_1000, 0x1000, 0x8000),
            region(0x5_0000, 0x1000, 0x9000),
        ]);
        assert_eq!(table.guest_address(0x7010, 0x10), Some(0x1_0010));
        assert_eq!(table.guest_address(0x7FF0, 0x20), Some(0x1_0FF0), "over a seam that both spaces share");
        assert_eq!(table.guest_address(0x8FF0, 0x10), Some(0x1_1FF0));
        assert_eq!(table.guest_address(0x8FF0, 0x11), None, "over a seam where the guest's addresses jump");
        assert_eq!(table.guest_address(0x9FFF, 2), None, "past the end");
        assert_eq!(table.guest_address(0x6FFF, 1), None);
        assert_eq!(table.guest_address(u64::MAX, 2), None);
    }
}
