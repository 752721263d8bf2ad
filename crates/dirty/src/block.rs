//! A block: 4096 pages, and the words that name those of them that are marked.
//!
//! ```text
//!  63    62  60 59                                                  0
//! +-------+-----+----------+----------+----------+---------+----------+
//! | below |  5  | page 4   | page 3   | page 2   | page 1  | page 0   |   head of a block: up to five pages by 12 bits
//! +-------+-----+---------++--------+-+------+---+----+----+---+------+
//! | below |  6  |  (zero) | page 5  | page 4 | page 3 | page 2 | ...  |   part of a block, 512 pages: up to six by 9 bits
//! +-------+-----+---------+---------+--------+--------+--------+------+
//! ```
//! "Below": there may be more, in the parts below a head, in the bits below a part. Names stand in the order they were marked.

use crate::map::ones;

/// Pages in a block.
pub const BLOCK_PAGES: u64 = 4096;
/// Words of a block's bits.
pub(crate) const BLOCK_WORDS: usize = 64;
/// Parts of a block.
pub(crate) const BLOCK_PARTS: usize = 8;
/// Pages of a part.
pub(crate) const PART_PAGES: u32 = 512;
/// Words of a part's bits: a cache line.
pub(crate) const PART_WORDS: usize = BLOCK_WORDS / BLOCK_PARTS;

/// The word of a block.
pub(crate) type Head = Names<12>;
/// The word of a part.
pub(crate) type Part = Names<9>;

const COUNT_SHIFT: u32 = 60;
const COUNT_MASK: u64 = 7;
const NAMES_MASK: u64 = (1 << COUNT_SHIFT) - 1;

/// A word of names, of so many bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names<const WIDTH: u32>(pub(crate) u64);

impl<const WIDTH: u32> Names<WIDTH> {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const BELOW: Self = Self(1 << 63);
    /// Pages it can name.
    pub(crate) const MAX: u32 = COUNT_SHIFT / WIDTH;

    const PAGE_MASK: u64 = (1 << WIDTH) - 1;
    /// The lowest bit of each name.
    const ONES: u64 = ((1 << (Self::MAX * WIDTH)) - 1) / Self::PAGE_MASK;
    /// The highest.
    const TOPS: u64 = Self::ONES << (WIDTH - 1);

    #[inline]
    pub(crate) fn of(word: u64) -> Self {
        Self(word)
    }

    /// The bits of so many names.
    const NAMED: [u64; 8] = {
        let (mut named, mut count) = ([0; 8], 0);
        while count < 8 {
            let names = if count < Self::MAX { count } else { Self::MAX };
            named[count as usize] = (1 << (names * WIDTH)) - 1;
            count += 1;
        }
        named
    };

    /// Pages it names.
    #[inline]
    pub(crate) fn count(self) -> u32 {
        (self.0 >> COUNT_SHIFT & COUNT_MASK) as u32
    }

    #[inline]
    pub(crate) fn is_below(self) -> bool {
        self.0 >= Self::BELOW.0
    }

    /// Whether it names this page. All names are compared at once: a name that is equal leaves zero, and subtracting one from zero borrows.
    #[inline]
    pub(crate) fn names(self, page: u32) -> bool {
        let differs = (self.0 & NAMES_MASK) ^ (u64::from(page) * Self::ONES);
        let named = Self::NAMED[self.count() as usize & 7];
        differs.wrapping_sub(Self::ONES) & !differs & Self::TOPS & named != 0
    }

    /// With these pages named too; `None`: it has no room for all.
    #[inline]
    pub(crate) fn with(self, first: u32, pages: u32) -> Option<Self> {
        if pages > Self::MAX {
            return None;
        }
        let mut word = self;
        for page in first..first.saturating_add(pages) {
            if word.names(page) {
                continue;
            }
            let count = word.count();
            if count == Self::MAX {
                return None;
            }
            word.0 = (word.0 | u64::from(page) << (count * WIDTH)) + (1 << COUNT_SHIFT);
        }
        Some(word)
    }

    /// The pages it names.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a name is short")]
    pub(crate) fn pages(self) -> impl Iterator<Item = u32> {
        (0..self.count()).map(move |at| (self.0 >> (at * WIDTH) & Self::PAGE_MASK) as u32)
    }

    /// Only the names, as they are written.
    #[inline]
    pub(crate) fn packed(self) -> u64 {
        self.0 & NAMES_MASK
    }

    /// How many bits those are.
    #[inline]
    pub(crate) fn packed_bits(self) -> u32 {
        self.count() * WIDTH
    }

    /// All but the names, in four bits: how many there are, and 8 if there are marks below.
    #[inline]
    pub(crate) fn nibble(self) -> u8 {
        (self.0 >> COUNT_SHIFT) as u8
    }

    /// From a nibble and names as they were written, and whatever follows them. A nibble that counts more names than there is room for gives
    /// one that [`Names::is_sound`] refuses.
    #[inline]
    pub(crate) fn unpacked(nibble: u8, names: u64) -> Self {
        let named = Self::NAMED[usize::from(nibble & 7)];
        Self(u64::from(nibble) << COUNT_SHIFT | names & named)
    }

    /// Whether its count can be.
    #[inline]
    pub(crate) fn is_sound(self) -> bool {
        self.count() <= Self::MAX
    }
}

/// What is marked in a block.
#[derive(Clone, Copy, Debug)]
pub enum Marks<'a> {
    /// One to five pages.
    Few(Few),
    /// A bit for each page, the lowest first. Some are set.
    Many(&'a [u64; BLOCK_WORDS]),
}

/// A few pages of a block.
#[derive(Clone, Copy, Debug)]
pub struct Few(pub(crate) Head);

/// A block's bits.
pub(crate) type Bits = [u64; BLOCK_WORDS];

/// Adds pages to a block's bits, of which the first is `base`.
#[inline]
pub(crate) fn spread(pages: impl Iterator<Item = u32>, base: u32, bits: &mut Bits) {
    for page in pages.map(|page| base + page) {
        if let Some(word) = bits.get_mut((page / 64) as usize) {
            *word |= 1 << (page % 64);
        }
    }
}

impl Marks<'_> {
    /// Marked pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            // A page that came from another host may be named twice.
            Self::Few(Few(head)) => {
                head.pages().fold(Head::NONE, |head, page| head.with(page, 1).unwrap_or(head)).count()
            }
            Self::Many(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// Calls `each` with the runs of marked pages, from the block's first page on: first page and length. Runs do not touch and come in order.
    pub fn runs(&self, mut each: impl FnMut(u32, u32)) {
        let mut bits = [0; BLOCK_WORDS];
        let words = match self {
            Self::Many(words) => *words,
            Self::Few(Few(head)) => {
                spread(head.pages(), 0, &mut bits);
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

    fn each_once<const WIDTH: u32>(sets: &[&[u32]]) {
        for pages in sets {
            let mut word = Names::<WIDTH>::NONE;
            for (at, &page) in pages.iter().enumerate() {
                assert!(!word.names(page), "{page}");
                word = word.with(page, 1).expect("room");
                assert_eq!(word.with(page, 1), Some(word), "once");
                assert_eq!(word.pages().collect::<Vec<_>>(), pages[..=at]);
            }
            assert_eq!(word.count(), Names::<WIDTH>::MAX);
            let below = Names::<WIDTH>(word.0 | Names::<WIDTH>::BELOW.0);
            for page in 0..1 << WIDTH {
                assert_eq!(word.names(page), pages.contains(&page), "{page} of {pages:?}");
                assert_eq!(below.names(page), word.names(page));
                assert_eq!(word.with(page, 1).is_some(), pages.contains(&page));
            }
            assert_eq!(Names::unpacked(word.nibble(), u64::MAX << word.packed_bits() | word.packed()), word);
            assert_eq!(Names::unpacked(below.nibble(), below.packed()), below);
            assert!(below.is_below() && !word.is_below() && below.is_sound());
        }
        assert!(!Names::<WIDTH>::unpacked(7, u64::MAX).is_sound());
        assert_eq!(Names::<WIDTH>::NONE.with(0, Names::<WIDTH>::MAX + 1), None);
    }

    #[test]
    fn a_word_names_as_many_pages_as_it_has_room_for_each_once_and_no_others() {
        each_once::<12>(&[&[0, 1, 2, 3, 4], &[4095, 0, 2048, 17, 4094], &[7, 4095, 5, 3, 0]]);
        each_once::<9>(&[&[0, 1, 2, 3, 4, 5], &[511, 0, 256, 17, 510, 1], &[7, 511, 5, 3, 0, 4]]);
    }

    #[test]
    fn a_page_that_is_named_twice_is_counted_once() {
        let marks = Marks::Few(Few(Head::unpacked(3, 0x005_007_005)));
        assert_eq!(marks.count(), 2);
        let mut runs = Vec::new();
        marks.runs(|first, len| runs.push((first, len)));
        assert_eq!(runs, [(5, 1), (7, 1)]);
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
        Marks::Few(Few(few)).runs(|first, len| runs.push((first, len)));
        assert_eq!(runs, [(7, 3)]);
    }
}
