//! A block: 4096 pages, and the word that says which of them are marked.
//!
//! ```text
//!  63   60 59                                                  0
//! +-------+----------+----------+----------+---------+----------+
//! | count | page 4   | page 3   | page 2   | page 1  | page 0   |   count 0 to 5: those pages, in the order they were marked
//! +-------+----------+----------+----------+---------+----------+
//! |  14   |                        0                            |   many, none of them since the last harvest
//! |  15   |                        0                            |   many
//! +-------+-----------------------------------------------------+
//! ```

use crate::map::ones;

/// Pages in a block.
pub const BLOCK_PAGES: u64 = 4096;
/// Words of a block's bits.
pub(crate) const BLOCK_WORDS: usize = 64;
/// Pages that a head can name.
pub(crate) const FEW_MAX: u32 = 5;

const PAGE_BITS: u32 = 12;
const PAGE_MASK: u64 = BLOCK_PAGES - 1;
const COUNT_SHIFT: u32 = 60;
const NAMES_MASK: u64 = (1 << COUNT_SHIFT) - 1;
/// The lowest bit of each name.
const ONES: u64 = 0x001_001_001_001_001;
/// The highest.
const TOPS: u64 = ONES << (PAGE_BITS - 1);

/// The word of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head(pub(crate) u64);

impl Head {
    pub(crate) const NONE: Self = Self(0);
    /// Many pages, all of which were harvested.
    pub(crate) const MANY: Self = Self(14 << COUNT_SHIFT);
    /// Many pages.
    pub(crate) const MANY_NEW: Self = Self(15 << COUNT_SHIFT);

    /// The pages it names; `None`: many.
    #[inline]
    pub(crate) fn few(self) -> Option<u32> {
        let count = self.0 >> COUNT_SHIFT;
        (count <= u64::from(FEW_MAX)).then_some(count as u32)
    }

    #[inline]
    pub(crate) fn is_many(self) -> bool {
        self.0 >= Self::MANY.0
    }

    /// Whether it names this page. All names are compared at once: a name that is equal leaves zero, and subtracting one from zero borrows.
    #[inline]
    pub(crate) fn names(self, page: u32) -> bool {
        let Some(count) = self.few() else { return false };
        let differs = (self.0 & NAMES_MASK) ^ (u64::from(page) * ONES);
        let named = (1 << (count * PAGE_BITS)) - 1;
        differs.wrapping_sub(ONES) & !differs & TOPS & named != 0
    }

    /// Whether no two of its names are the same: each is compared with those one to four places on, all at once.
    #[inline]
    pub(crate) fn is_distinct(self) -> bool {
        let count = self.few().unwrap_or(0);
        let mut equal = 0;
        for apart in 1..FEW_MAX {
            let differs = self.packed() ^ (self.packed() >> (apart * PAGE_BITS));
            let named = (1 << (count.saturating_sub(apart) * PAGE_BITS)) - 1;
            equal |= differs.wrapping_sub(ONES) & !differs & TOPS & named;
        }
        equal == 0
    }

    /// With these pages named too; `None`: it has no room for all.
    #[inline]
    pub(crate) fn with(self, first: u32, pages: u32) -> Option<Self> {
        let mut head = self;
        for page in first..first.saturating_add(pages) {
            if head.names(page) {
                continue;
            }
            let count = head.few().filter(|count| *count < FEW_MAX)?;
            head.0 = (head.0 | u64::from(page) << (count * PAGE_BITS)) + (1 << COUNT_SHIFT);
        }
        Some(head)
    }

    /// The page with this place among those it names.
    #[inline]
    pub(crate) fn page(self, at: u32) -> u32 {
        ((self.0 >> (at * PAGE_BITS)) & PAGE_MASK) as u32
    }

    /// Only the names, as they are written.
    #[inline]
    pub(crate) fn packed(self) -> u64 {
        self.0 & NAMES_MASK
    }

    /// From names as they were written.
    #[inline]
    pub(crate) fn unpacked(count: u32, names: u64) -> Self {
        Self(u64::from(count) << COUNT_SHIFT | names & ((1 << (count * PAGE_BITS)) - 1))
    }
}

/// What is marked in a block.
#[derive(Clone, Copy, Debug)]
pub enum Marks<'a> {
    /// One to five pages.
    Few(Pages),
    /// A bit for each page, the lowest first. Some are set.
    Many(&'a [u64; BLOCK_WORDS]),
}

/// A few pages of a block.
#[derive(Clone, Copy, Debug)]
pub struct Pages(pub(crate) Head);

impl Pages {
    /// In the order they were marked, each once, from the block's first page on.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..self.0.few().unwrap_or(0)).map(move |at| self.0.page(at))
    }
}

impl Marks<'_> {
    /// Marked pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Few(pages) => pages.0.few().unwrap_or(0),
            Self::Many(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// Calls `each` with the runs of marked pages, from the block's first page on: first page and length. Runs do not touch and come in order.
    pub fn runs(&self, mut each: impl FnMut(u32, u32)) {
        let mut bits = [0; BLOCK_WORDS];
        let words = match self {
            Self::Many(words) => *words,
            Self::Few(pages) => {
                for page in pages.iter() {
                    bits[(page / 64) as usize] |= 1 << (page % 64);
                }
                &bits
            }
        };
        let mut open: Option<(u32, u32)> = None;
        // Most words of a block are empty, and which is hard to guess.
        let marked = (0..64).zip(words).fold(0, |marked, (at, word)| marked | u64::from(*word != 0) << at);
        for at in ones(marked) {
            #[expect(clippy::cast_possible_truncation, reason = "a place among 64 words")]
            let base = at as u32 * 64;
            let word = words.get(at).copied().unwrap_or(0);
            let mut rest = word;
            while rest != 0 {
                let start = rest.trailing_zeros();
                let len = (rest >> start).trailing_ones();
                rest &= u64::MAX.checked_shl(start + len).unwrap_or(0);
                match &mut open {
                    Some((first, run)) if *first + *run == base + start => *run += len,
                    _ => {
                        if let Some((first, run)) = open.replace((base + start, len)) {
                            each(first, run);
                        }
                    }
                }
            }
        }
        if let Some((first, run)) = open {
            each(first, run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_names_five_pages_each_once_and_no_others() {
        for pages in [[0, 1, 2, 3, 4], [4095, 0, 2048, 17, 4094], [7, 4095, 5, 3, 0]] {
            let mut head = Head::NONE;
            for (at, &page) in (0..).zip(&pages) {
                assert!(!head.names(page), "{page}");
                head = head.with(page, 1).expect("room");
                assert_eq!(head.with(page, 1), Some(head), "once");
                assert_eq!((head.few(), head.page(at)), (Some(at + 1), page));
            }
            for page in 0..4096 {
                assert_eq!(head.names(page), pages.contains(&page), "{page} of {pages:?}");
                assert_eq!(head.with(page, 1).is_some(), pages.contains(&page));
            }
            assert_eq!(Head::unpacked(5, head.packed()), head);
        }
        assert!(!Head::MANY.names(0) && Head::MANY_NEW.is_many() && Head::MANY_NEW.with(0, 1).is_none());
    }

    #[test]
    fn two_names_that_are_the_same_are_seen_wherever_they_stand() {
        for count in 0..=FEW_MAX {
            let names: u64 = (0..count).map(|at| u64::from(at * 800 + 1) << (at * PAGE_BITS)).sum();
            assert!(Head::unpacked(count, names).is_distinct(), "{count}");
            for (one, other) in (0..count).flat_map(|one| (0..one).map(move |other| (one, other))) {
                let name = (names >> (other * PAGE_BITS)) & PAGE_MASK;
                let same = names & !(PAGE_MASK << (one * PAGE_BITS)) | name << (one * PAGE_BITS);
                assert!(!Head::unpacked(count, same).is_distinct(), "{one} as {other} of {count}");
            }
        }
    }

    #[test]
    fn runs_that_touch_are_one_and_come_in_order() {
        let mut words = [0; BLOCK_WORDS];
        (words[0], words[1], words[2], words[63]) = (1 << 63 | 0b110, u64::MAX, 1, 1 << 63);
        let mut runs = Vec::new();
        Marks::Many(&words).runs(|first, len| runs.push((first, len)));
        assert_eq!(runs, [(1, 2), (63, 66), (4095, 1)]);
        let few = Head::NONE.with(9, 1).and_then(|head| head.with(7, 2)).expect("room");
        runs.clear();
        Marks::Few(Pages(few)).runs(|first, len| runs.push((first, len)));
        assert_eq!(runs, [(7, 3)]);
    }
}
