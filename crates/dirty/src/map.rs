//! The map itself: marking and harvesting side by side.
//!
//! Each level is marked from below and harvested from above. A marker that finds its bit set goes on to look whether the level above says so too; a
//! harvester clears a level before it looks at the one below. So in whatever order they meet, one of them sees the other:
//!
//! ```text
//!  marker:    word |= page      head: many, new?  if not: say so    region?  if not: say so
//!  harvester: region := 0       head := many                        word := 0, taken
//! ```

use crate::PAGES_MAX;
use crate::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence, in_order, own, zeros,
};
use crate::block::{BLOCK_PAGES, BLOCK_WORDS, FEW_MAX, Head, Marks, Pages};

/// Blocks of a region.
const REGION_BLOCKS: usize = 64;
/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// There is no memory, or no address space, for a map of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no memory to trace {pages} pages: at most {PAGES_MAX} can be, and each takes an eighth of a byte of address space"
)]
pub struct NoMemory {
    /// What was asked for.
    pub pages: u64,
}

/// Orders what this thread wrote before into memory before the marks that follow: a mark that finds its page marked already stores
/// nothing, and the data could still be on its way when a harvester takes that earlier mark and copies.
#[inline]
pub fn settle() {
    fence(SeqCst);
}

/// See the module and the crate.
#[derive(Debug)]
pub struct Map {
    pages: u64,
    regions: Box<[AtomicU64]>,
    heads: Box<[AtomicU64]>,
    words: Box<[AtomicU64]>,
}

impl Map {
    /// A map without marks.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(pages: u64) -> Result<Self, NoMemory> {
        let no_memory = NoMemory { pages };
        if pages > PAGES_MAX {
            return Err(no_memory);
        }
        let blocks = usize::try_from(pages.div_ceil(BLOCK_PAGES)).map_err(|_| no_memory)?;
        let of = |count: usize| zeros(count).ok_or(no_memory);
        Ok(Self {
            pages,
            regions: of(blocks.div_ceil(REGION_BLOCKS).div_ceil(64))?,
            heads: of(blocks)?,
            words: of(blocks * BLOCK_WORDS)?,
        })
    }

    /// Pages it has.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Marks pages, after they were written. What lies beyond the map is left out. Any thread, any time; never waits.
    #[inline]
    pub fn mark(&self, first: u64, pages: u64) {
        let end = first.saturating_add(pages).min(self.pages);
        let mut at = first;
        while at < end {
            let (block, within) = (at / BLOCK_PAGES, at % BLOCK_PAGES);
            let count = (BLOCK_PAGES - within).min(end - at);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "blocks of the largest map, pages of a block"
            )]
            self.mark_in(block as usize, within as u32, count as u32);
            at += count;
        }
    }

    #[inline]
    fn mark_in(&self, block: usize, first: u32, pages: u32) {
        let Some(word) = self.heads.get(block) else { return };
        let head = Head(word.load(SeqCst));
        if !(pages == 1 && head.names(first)) {
            self.mark_anew(block, word, head, first, pages);
        }
        in_order();
        self.announce(block);
    }

    fn mark_anew(&self, block: usize, word: &AtomicU64, mut head: Head, first: u32, pages: u32) {
        loop {
            let few = if pages <= FEW_MAX { head.with(first, pages) } else { None };
            let next = few.unwrap_or_else(|| {
                self.set(block, first, pages);
                for page in Pages(head).iter() {
                    self.set(block, page, 1);
                }
                Head::MANY_NEW
            });
            in_order();
            // Also when a harvester has made it another meanwhile: then this was for nothing.
            let before = if next == head {
                word.load(SeqCst)
            } else {
                match word.compare_exchange(head.0, next.0, SeqCst, SeqCst) {
                    Ok(_) => return,
                    Err(found) => found,
                }
            };
            if before == next.0 {
                return;
            }
            head = Head(before);
        }
    }

    /// Sets bits of a block.
    #[inline]
    fn set(&self, block: usize, first: u32, pages: u32) {
        let (mut at, end) = (first, first + pages);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            if let Some(word) = self.words.get(block * BLOCK_WORDS + (at / 64) as usize)
                && word.load(SeqCst) & mask != mask
            {
                word.fetch_or(mask, SeqCst);
            }
            at += count;
        }
    }

    /// Says that there is something in a block's region.
    #[inline]
    fn announce(&self, block: usize) {
        let (word, bit) = (block / REGION_BLOCKS / 64, 1 << (block / REGION_BLOCKS % 64));
        if let Some(word) = self.regions.get(word)
            && word.load(SeqCst) & bit == 0
        {
            word.fetch_or(bit, SeqCst);
        }
    }

    /// Harvests: calls `each` with the number of each block that has marks, in order, and takes them out. One thread at a time; others may mark
    /// meanwhile: what they mark is in this harvest or in the next. Data is to be read after its mark was taken.
    pub fn take(&self, mut each: impl FnMut(usize, Marks<'_>)) {
        for (at, word) in self.regions.iter().enumerate() {
            if word.load(SeqCst) == 0 {
                continue;
            }
            let regions = word.swap(0, SeqCst);
            in_order();
            for region in ones(regions) {
                self.blocks_of(at * 64 + region).for_each(|block| self.take_block(block, &mut each));
            }
        }
    }

    fn blocks_of(&self, region: usize) -> std::ops::Range<usize> {
        region * REGION_BLOCKS..((region + 1) * REGION_BLOCKS).min(self.heads.len())
    }

    fn take_block(&self, block: usize, each: &mut impl FnMut(usize, Marks<'_>)) {
        let Some(word) = self.heads.get(block) else { return };
        let mut head = Head(word.load(SeqCst));
        while head != Head::NONE && !head.is_many() {
            match word.compare_exchange(head.0, 0, SeqCst, SeqCst) {
                Ok(_) => {
                    // Before `each` reads any data: the other half of a marker's `settle`.
                    settle();
                    return each(block, Marks::Few(Pages(head)));
                }
                Err(found) => head = Head(found),
            }
        }
        if head == Head::NONE {
            return;
        }
        word.fetch_and(Head::MANY.0, SeqCst);
        in_order();
        let mut bits = [0; BLOCK_WORDS];
        for (word, bits) in self.words_of(block).zip(&mut bits) {
            if word.load(SeqCst) != 0 {
                *bits = word.swap(0, SeqCst);
            }
        }
        // As there.
        settle();
        // Few will be named again, if nobody marks here just now. Who does then finds it gone, and starts anew.
        let _ = word.compare_exchange(Head::MANY.0, 0, SeqCst, SeqCst);
        if bits.iter().any(|bits| *bits != 0) {
            each(block, Marks::Many(&bits));
        }
    }

    fn words_of(&self, block: usize) -> impl Iterator<Item = &AtomicU64> {
        let from = block * BLOCK_WORDS;
        self.words.get(from..from + BLOCK_WORDS).unwrap_or(&[]).iter()
    }

    /// Calls `each` as [`Map::take`] does, and leaves the marks. What is marked meanwhile may be left out: for a map at rest.
    pub fn look(&self, mut each: impl FnMut(usize, Marks<'_>)) {
        for (at, word) in self.regions.iter().enumerate() {
            for region in ones(word.load(SeqCst)) {
                self.look_in(at * 64 + region, &mut each);
            }
        }
    }

    /// First which blocks have marks, as bits, so that no branch is to be guessed for each; then those.
    fn look_in(&self, region: usize, each: &mut impl FnMut(usize, Marks<'_>)) {
        let blocks = self.blocks_of(region);
        let Some(heads) = self.heads.get(blocks.clone()) else { return };
        let (mut marked, mut many) = (0, 0);
        for (at, head) in heads.iter().map(|word| Head(word.load(SeqCst))).enumerate() {
            marked |= u64::from(head != Head::NONE) << at;
            many |= u64::from(head.is_many()) << at;
        }
        self.fetch(blocks.start, many);
        for (at, word) in ones(marked).filter_map(|at| heads.get(at).map(|word| (at, word))) {
            self.look_at(blocks.start + at, Head(word.load(SeqCst)), each);
        }
    }

    /// Reads a word of each cache line of these blocks of a region, all at once: one by one each would be waited for.
    fn fetch(&self, start: usize, many: u64) {
        let mut all = 0;
        for at in ones(many) {
            for line in self.words_of(start + at).step_by(LINE_WORDS) {
                all |= line.load(Relaxed);
            }
        }
        std::hint::black_box(all);
    }

    #[inline]
    fn look_at(&self, block: usize, head: Head, each: &mut impl FnMut(usize, Marks<'_>)) {
        if !head.is_many() {
            return each(block, Marks::Few(Pages(head)));
        }
        let mut bits = [0; BLOCK_WORDS];
        self.words_of(block).zip(&mut bits).for_each(|(word, bits)| *bits = word.load(SeqCst));
        if bits.iter().any(|bits| *bits != 0) {
            each(block, Marks::Many(&bits));
        }
    }

    /// Marked pages. For a map at rest.
    #[must_use]
    pub fn count(&self) -> u64 {
        let mut count = 0;
        self.look(|_, marks| count += u64::from(marks.count()));
        count
    }

    /// Adds a few pages of a block, all of which are in the map. Nobody else has the map, so plain stores do.
    #[inline]
    pub(crate) fn put(&mut self, block: usize, few: Head) {
        let Some(word) = self.heads.get_mut(block) else { return };
        let is_first = own(word, |word| {
            let is_first = *word == 0;
            if is_first {
                *word = few.0;
            }
            is_first
        });
        if is_first {
            return self.put_region(block);
        }
        let base = block as u64 * BLOCK_PAGES;
        Pages(few).iter().for_each(|page| self.mark(base + u64::from(page), 1));
    }

    /// A block that is to have many pages, for its bits to be set. As above.
    pub(crate) fn open(&mut self, block: usize) -> Option<Bits<'_>> {
        self.put_region(block);
        let head = own(self.heads.get_mut(block)?, |word| Head(std::mem::replace(word, Head::MANY_NEW.0)));
        let words = self.words.get_mut(block * BLOCK_WORDS..)?.first_chunk_mut()?;
        let mut bits = Bits { words };
        Pages(head).iter().for_each(|page| bits.set(page, page));
        Some(bits)
    }

    #[inline]
    fn put_region(&mut self, block: usize) {
        let bit = 1 << (block / REGION_BLOCKS % 64);
        if let Some(word) = self.regions.get_mut(block / REGION_BLOCKS / 64) {
            own(word, |word| *word |= bit);
        }
    }
}

/// The bits of a block of a map that nobody else has.
pub(crate) struct Bits<'a> {
    words: &'a mut [AtomicU64; BLOCK_WORDS],
}

impl Bits<'_> {
    /// Adds a run of pages, which lies in the block.
    #[inline]
    pub(crate) fn set(&mut self, first: u32, last: u32) {
        let (mut at, end) = (first, last + 1);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            self.or((at / 64) as usize, (u64::MAX >> (64 - count)) << (at % 64));
            at += count;
        }
    }

    /// Adds pages of one word.
    #[inline]
    pub(crate) fn or(&mut self, at: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(at) {
            own(word, |word| *word |= bits);
        }
    }
}

/// The places of the bits that are set, lowest first.
#[inline]
pub(crate) fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(at)
    })
}

const _: () = assert!(BLOCK_PAGES == 64 * BLOCK_WORDS as u64);
