//! The map itself: marking and harvesting side by side.
//!
//! Each level is marked from below and harvested from above. A marker that finds its bit set goes on to look whether the level above says so too; a
//! harvester clears a level before it looks at the one below. So in whatever order they meet, one of them sees the other:
//!
//! ```text
//!  marker:    word |= page      part: below?  if not: say so    head: below?  if not: say so    region?  if not: say so
//!  harvester: region := 0       head := 0, taken                part := 0, taken                word := 0, taken
//! ```
//! A page goes where the first word has room for its name: a head, a part, and else it is a bit. It may stand in two of them after a harvest,
//! and is one page.

use crate::PAGES_MAX;
use crate::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence, in_order, own, zeros,
};
use crate::block::{
    BLOCK_PAGES, BLOCK_PARTS, BLOCK_WORDS, Bits, Few, Head, Marks, Names, PART_PAGES, PART_WORDS, Part,
    spread,
};

/// Blocks of a region.
pub(crate) const REGION_BLOCKS: usize = 64;

/// There is no memory, or no address space, for a map of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no memory to trace {pages} pages: at most {PAGES_MAX} can be, and each takes a sixth of a byte of address space"
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
    parts: Box<[AtomicU64]>,
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
            parts: of(blocks * BLOCK_PARTS)?,
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
        if pages == 1 && first < self.pages {
            self.mark_in(place_of(first), (first % BLOCK_PAGES) as u32, 1);
        } else {
            self.mark_run(first, pages);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "pages of a block")]
    fn mark_run(&self, first: u64, pages: u64) {
        let end = first.saturating_add(pages).min(self.pages);
        let mut at = first;
        while at < end {
            let within = at % BLOCK_PAGES;
            let count = (BLOCK_PAGES - within).min(end - at);
            self.mark_in(place_of(at), within as u32, count as u32);
            at += count;
        }
    }

    #[inline]
    fn mark_in(&self, block: usize, first: u32, pages: u32) {
        let Some(head) = self.heads.get(block) else { return };
        if !Head::add(head, first, pages) {
            if pages == 1 {
                self.mark_in_part(block, first / PART_PAGES, first % PART_PAGES, 1);
            } else {
                self.mark_in_parts(block, first, pages);
            }
            in_order();
            Head::say_below(head);
        }
        in_order();
        self.announce(block);
    }

    /// Marks what a block's head has no room for.
    fn mark_in_parts(&self, block: usize, first: u32, pages: u32) {
        let (mut at, end) = (first, first + pages);
        while at < end {
            let within = at % PART_PAGES;
            let count = (PART_PAGES - within).min(end - at);
            self.mark_in_part(block, at / PART_PAGES, within, count);
            at += count;
        }
    }

    #[inline]
    fn mark_in_part(&self, block: usize, at: u32, first: u32, pages: u32) {
        let Some(part) = self.parts.get(block * BLOCK_PARTS + at as usize) else { return };
        if !Part::add(part, first, pages) {
            self.set(block, at * PART_PAGES + first, pages);
            in_order();
            Part::say_below(part);
        }
    }

    /// Sets bits of a block.
    #[inline]
    fn set(&self, block: usize, first: u32, pages: u32) {
        for (at, mask) in masks(first, first + pages) {
            if let Some(word) = self.words.get(block * BLOCK_WORDS + at)
                && word.load(SeqCst) & mask != mask
            {
                word.fetch_or(mask, SeqCst);
            }
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
        if word.load(SeqCst) == 0 {
            return;
        }
        let head = Head::of(word.swap(0, SeqCst));
        if !head.is_below() {
            // Before `each` reads any data: the other half of a marker's `settle`.
            settle();
            return each(block, Marks::Few(Few(head)));
        }
        let mut bits = [0; BLOCK_WORDS];
        spread(head.pages(), 0, &mut bits);
        in_order();
        for (base, part, words) in self.parts_of(block) {
            if part.load(SeqCst) == 0 {
                continue;
            }
            let part = Part::of(part.swap(0, SeqCst));
            spread(part.pages(), base, &mut bits);
            if part.is_below() {
                in_order();
                for (word, bits) in words.iter().zip(bits.iter_mut().skip(base as usize / 64)) {
                    if word.load(SeqCst) != 0 {
                        *bits |= word.swap(0, SeqCst);
                    }
                }
            }
        }
        // As there.
        settle();
        if bits.iter().any(|bits| *bits != 0) {
            each(block, Marks::Many(&bits));
        }
    }

    /// The parts of a block: the first page of each, its word, and the words of its bits.
    fn parts_of(&self, block: usize) -> impl Iterator<Item = (u32, &AtomicU64, &[AtomicU64])> {
        let parts = self.parts.get(block * BLOCK_PARTS..).unwrap_or(&[]).iter();
        let words = self.words.get(block * BLOCK_WORDS..).unwrap_or(&[]).chunks(PART_WORDS);
        (0..)
            .step_by(PART_PAGES as usize)
            .zip(parts.zip(words).take(BLOCK_PARTS))
            .map(|(base, (part, words))| (base, part, words))
    }

    /// Calls `each` as [`Map::take`] does, and leaves the marks. What is marked meanwhile may be left out: for a map at rest.
    pub fn look(&self, mut each: impl FnMut(usize, Marks<'_>)) {
        for region in self.announced() {
            for at in ones(region.marked) {
                let (block, head) = (region.first + at, region.head(at));
                if !head.is_below() {
                    each(block, Marks::Few(Few(head)));
                    continue;
                }
                let bits = self.bits(block, head);
                if bits.iter().any(|bits| *bits != 0) {
                    each(block, Marks::Many(&bits));
                }
            }
        }
    }

    /// The regions that say there is something, in order.
    pub(crate) fn announced(&self) -> impl Iterator<Item = Region<'_>> {
        let words = self.regions.iter().enumerate();
        words.flat_map(move |(at, word)| {
            ones(word.load(SeqCst)).map(move |region| self.region(at * 64 + region))
        })
    }

    /// Which blocks have marks, as bits, so that no branch is to be guessed for each.
    fn region(&self, number: usize) -> Region<'_> {
        let blocks = self.blocks_of(number);
        let first = blocks.start;
        let heads = self.heads.get(blocks).unwrap_or(&[]);
        let (mut marked, mut any) = (0, 0);
        // By eight, so that no place is to be worked out for each.
        for (eight, words) in heads.chunks(8).enumerate() {
            let (some, all) = said(words);
            marked |= some << (8 * eight);
            any |= all;
        }
        let has_more = Head::of(any).is_below();
        let more = |at: &usize| heads.get(*at).is_some_and(|head| Head::of(head.load(SeqCst)).is_below());
        let below = if has_more { ones(marked).filter(more).fold(0, |below, at| below | 1 << at) } else { 0 };
        Region { number, first, heads, marked, below }
    }

    /// The words of a block's parts.
    #[inline]
    pub(crate) fn parts(&self, block: usize) -> [Part; BLOCK_PARTS] {
        let parts =
            self.parts.get(block * BLOCK_PARTS..).and_then(|parts| parts.first_chunk::<BLOCK_PARTS>());
        parts.map_or([Part::NONE; BLOCK_PARTS], |parts| {
            parts.each_ref().map(|part| Part::of(part.load(SeqCst)))
        })
    }

    /// All marks of a block with this head.
    pub(crate) fn bits(&self, block: usize, head: Head) -> Bits {
        let mut bits = [0; BLOCK_WORDS];
        spread(head.pages(), 0, &mut bits);
        for (base, part, words) in self.parts_of(block) {
            let part = Part::of(part.load(SeqCst));
            spread(part.pages(), base, &mut bits);
            if part.is_below() {
                let bits = bits.iter_mut().skip(base as usize / 64);
                words.iter().zip(bits).for_each(|(word, bits)| *bits |= word.load(SeqCst));
            }
        }
        bits
    }

    /// Reads a word of the cache line of each of these blocks' parts, all at once: one by one each would be waited for.
    pub(crate) fn fetch_parts(&self, first: usize, blocks: u64) {
        let mut all = 0;
        for at in ones(blocks) {
            all |= self.parts.get((first + at) * BLOCK_PARTS).map_or(0, |word| word.load(Relaxed));
        }
        std::hint::black_box(all);
    }

    /// The same for their bits.
    pub(crate) fn fetch_bits(&self, first: usize, blocks: u64) {
        let mut all = 0;
        for at in ones(blocks) {
            for (_, part, words) in self.parts_of(first + at) {
                if Part::of(part.load(Relaxed)).is_below() {
                    all |= words.first().map_or(0, |word| word.load(Relaxed));
                }
            }
        }
        std::hint::black_box(all);
    }

    /// Marked pages. For a map at rest.
    #[must_use]
    pub fn count(&self) -> u64 {
        let mut count = 0;
        self.look(|_, marks| count += u64::from(marks.count()));
        count
    }

    /// Adds what a head says of a block, all of whose pages are in the map; what lies below it and its region's bit are the caller's. Nobody else
    /// has the map, so plain stores do.
    #[inline]
    pub(crate) fn put(&mut self, block: usize, head: Head) {
        let Some(word) = self.heads.get_mut(block) else { return };
        if !Head::put(word, head) {
            self.put_pages(block, head.pages());
        }
    }

    /// Adds what the part of a block says whose first page is `base`. As above.
    #[inline]
    pub(crate) fn put_part(&mut self, block: usize, base: u32, part: Part) {
        let Some(word) = self.parts.get_mut(block * BLOCK_PARTS + (base / PART_PAGES) as usize) else {
            return;
        };
        if !Part::put(word, part) {
            self.put_pages(block, part.pages().map(|page| base + page));
        }
    }

    /// Adds what all parts of a block say. As above.
    #[inline]
    pub(crate) fn put_parts(&mut self, block: usize, parts: &[Part; BLOCK_PARTS]) {
        let words = self.parts.get_mut(block * BLOCK_PARTS..);
        let Some(words) = words.and_then(|words| words.first_chunk_mut::<BLOCK_PARTS>()) else { return };
        if words.iter_mut().fold(0, |all, word| all | own(word, |word| *word)) == 0 {
            words.iter_mut().zip(parts).for_each(|(word, part)| own(word, |word| *word = part.0));
            return;
        }
        for (base, part) in (0..).step_by(PART_PAGES as usize).zip(parts) {
            self.put_part(block, base, *part);
        }
    }

    #[cold]
    fn put_pages(&mut self, block: usize, pages: impl Iterator<Item = u32>) {
        pages.for_each(|page| self.mark_in(block, page, 1));
    }

    /// A block's bits, for some to be set. As above.
    pub(crate) fn open(&mut self, block: usize) -> Option<Open<'_>> {
        own(self.heads.get_mut(block)?, |head| *head |= Head::BELOW.0);
        let parts = self.parts.get_mut(block * BLOCK_PARTS..)?.first_chunk_mut()?;
        let words = self.words.get_mut(block * BLOCK_WORDS..)?.first_chunk_mut()?;
        Some(Open { parts, words })
    }

    /// Says that there is something in a region. As above.
    pub(crate) fn put_region(&mut self, region: usize) {
        if let Some(word) = self.regions.get_mut(region / 64) {
            own(word, |word| *word |= 1 << (region % 64));
        }
    }
}

impl<const WIDTH: u32> Names<WIDTH> {
    /// Names pages in a word that others change too. `false`: it has no room for all.
    #[inline]
    fn add(word: &AtomicU64, first: u32, pages: u32) -> bool {
        let mut found = Self(word.load(SeqCst));
        while let Some(next) = found.with(first, pages) {
            if next == found {
                return true;
            }
            match word.compare_exchange(found.0, next.0, SeqCst, SeqCst) {
                Ok(_) => return true,
                Err(other) => found = Self(other),
            }
        }
        false
    }

    /// Says that there are marks below, which were made already.
    #[inline]
    fn say_below(word: &AtomicU64) {
        if !Self(word.load(SeqCst)).is_below() {
            word.fetch_or(Self::BELOW.0, SeqCst);
        }
    }

    /// Adds names to a word that nobody else has. `false`: it has some already, and they are still to be added.
    #[inline]
    fn put(word: &mut AtomicU64, names: Self) -> bool {
        own(word, |word| {
            let is_free = *word & !Self::BELOW.0 == 0;
            if is_free {
                *word |= names.0;
            } else {
                *word |= names.0 & Self::BELOW.0;
            }
            is_free
        })
    }
}

/// What the heads of a region say.
pub(crate) struct Region<'a> {
    /// Its place among all regions.
    pub(crate) number: usize,
    /// Its first block.
    pub(crate) first: usize,
    heads: &'a [AtomicU64],
    /// Blocks with marks, the lowest bit first.
    pub(crate) marked: u64,
    /// Those of them with marks below their heads.
    pub(crate) below: u64,
}

impl Region<'_> {
    /// The head of the block in this place.
    #[inline]
    pub(crate) fn head(&self, at: usize) -> Head {
        self.heads.get(at).map_or(Head::NONE, |word| Head::of(word.load(SeqCst)))
    }
}

/// The bits of a block of a map that nobody else has.
pub(crate) struct Open<'a> {
    parts: &'a mut [AtomicU64; BLOCK_PARTS],
    words: &'a mut [AtomicU64; BLOCK_WORDS],
}

impl Open<'_> {
    /// Adds a run of pages, which lies in the block.
    #[inline]
    pub(crate) fn set(&mut self, first: u32, last: u32) {
        masks(first, last + 1).for_each(|(at, mask)| self.or(at, mask));
    }

    /// Adds pages of one word.
    #[inline]
    pub(crate) fn or(&mut self, at: usize, bits: u64) {
        if let (Some(part), Some(word)) = (self.parts.get_mut(at / PART_WORDS), self.words.get_mut(at)) {
            own(part, |part| *part |= Part::BELOW.0);
            own(word, |word| *word |= bits);
        }
    }
}

/// Which of eight words say something, and all bits of any.
#[inline]
fn said(words: &[AtomicU64]) -> (u64, u64) {
    let add = |(some, any): (u64, u64), word: &AtomicU64| {
        let word = word.load(SeqCst);
        (some << 1 | u64::from(word != 0), any | word)
    };
    match words.first_chunk::<8>() {
        Some(words) => words.iter().rev().fold((0, 0), add),
        None => words.iter().rev().fold((0, 0), add),
    }
}

/// The block of a page of some map.
#[inline]
fn place_of(page: u64) -> usize {
    (page / BLOCK_PAGES) as usize
}

/// The words of a block in which a run has pages, and its bits there.
#[inline]
fn masks(first: u32, end: u32) -> impl Iterator<Item = (usize, u64)> {
    let mut at = first;
    std::iter::from_fn(move || {
        let count = (64 - at % 64).min(end.checked_sub(at).filter(|left| *left > 0)?);
        let mask = (u64::MAX >> (64 - count)) << (at % 64);
        let word = (at / 64) as usize;
        at += count;
        Some((word, mask))
    })
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

const _: () = assert!(BLOCK_PAGES == 64 * BLOCK_WORDS as u64 && PART_PAGES as usize == 64 * PART_WORDS);
