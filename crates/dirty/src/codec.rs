//! The compact form of a map at rest, for the switch-over (`docs/formats/compact-map.md`).
//!
//! ```text
//!  version (1), pages (varint), then of each block that has marks, in order, the shortest of:
//!   0ggg pppp  pppppppp    skip ggg blocks; one page by name, highest bits first
//!   10gg gccc  names       skip ggg blocks; ccc = 2 to 5 pages by name, 12 bits each
//!   c0                     end
//!   c1 n                   skip n blocks
//!   c2 n                   n blocks, all pages
//!   c3 n  names            n pages by name, rising, 12 bits each
//!   c4 n  first, last ...  n runs, rising, 12 bits each
//!   c5    bits             a bit for each page
//! ```

use crate::block::{BLOCK_PAGES, BLOCK_WORDS, FEW_MAX, Head, Marks, Pages};
use crate::map::{Bits, Map, ones};

const VERSION: u8 = 1;
const END: u8 = 0xc0;
const SKIP: u8 = 0xc1;
const FULL: u8 = 0xc2;
const LIST: u8 = 0xc3;
const RUNS: u8 = 0xc4;
const BITS: u8 = 0xc5;
const FEW: u8 = 0x80;
/// Blocks skipped by an item of names at most.
const GAP_MAX: usize = 7;
/// Bits of a name.
const NAME_BITS: u32 = 12;
const NAME_MASK: u32 = (1 << NAME_BITS) - 1;
/// Runs of a block at most: every second page.
const RUNS_MAX: usize = BLOCK_WORDS * 32;
/// Bytes of the longest item: a token and a block's bits.
const ITEM_MAX: usize = 1 + 10 + BLOCK_WORDS * 8 + 8;

/// What was received is not the compact form of a map of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends too early.
    #[error("the compact map ends before its end mark")]
    Truncated,
    /// Something follows.
    #[error("{0} bytes follow the end mark of the compact map")]
    Trailing(usize),
    /// Another version.
    #[error("the compact map has version {0}; this build reads version {VERSION}")]
    Version(u8),
    /// Of another size.
    #[error("the compact map is of {found} pages, not of {expected}")]
    Size {
        /// What it says.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// No such item, or one that cannot stand here.
    #[error("the compact map has an item of kind {0:#04x} that is not sound")]
    Item(u8),
    /// It names pages that the map does not have.
    #[error("the compact map names block {0}, which is beyond its end")]
    Beyond(u64),
}

/// Makes the compact form. The map is at rest. At most the map's plain bits and one in a hundred more, and 16 bytes.
#[must_use]
pub fn encode(map: &Map) -> Vec<u8> {
    let mut encoder = Encoder {
        out: vec![0; 4 * ITEM_MAX],
        at: 0,
        next: 0,
        full: 0,
        pages: map.pages(),
        runs: Some(Box::new([0; RUNS_MAX])),
    };
    encoder.byte(VERSION);
    encoder.varint(map.pages());
    map.look(|block, marks| encoder.block(block, marks));
    encoder.end_full();
    encoder.byte(END);
    encoder.out.truncate(encoder.at);
    encoder.out
}

/// Adds the marks of a compact form to a map of the same size that nobody else has. Whatever the bytes are, this ends soon and takes no memory
/// but the map's.
///
/// # Errors
/// [`Damage`]; some marks may have been added.
pub fn decode(bytes: &[u8], map: &mut Map) -> Result<(), Damage> {
    let mut input = Input { rest: bytes };
    let version = input.byte()?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let (found, expected) = (input.varint()?, map.pages());
    if found != expected {
        return Err(Damage::Size { found, expected });
    }
    let mut block = 0;
    loop {
        let token = input.byte()?;
        match token {
            0..END => {
                let (count, gap, names) = input.few(token)?;
                block += gap;
                map.put(place(block, map)?, few(token, count, names, left(block, map))?);
            }
            END if input.rest.is_empty() => return Ok(()),
            END => return Err(Damage::Trailing(input.rest.len())),
            SKIP => {
                block = block.checked_add(input.varint()?).ok_or(Damage::Beyond(u64::MAX))?;
                continue;
            }
            FULL => {
                let count = input.varint()?;
                let end = block.checked_add(count).ok_or(Damage::Beyond(u64::MAX))?;
                if end.checked_mul(BLOCK_PAGES).is_none_or(|end| end > expected) {
                    return Err(Damage::Beyond(end));
                }
                map.mark(block * BLOCK_PAGES, count * BLOCK_PAGES);
                block = end;
                continue;
            }
            LIST | RUNS | BITS => {
                let (at, end) = (place(block, map)?, left(block, map));
                let bits = map.open(at).ok_or(Damage::Beyond(block))?;
                input.many(token, end, bits)?;
            }
            _ => return Err(Damage::Item(token)),
        }
        block += 1;
    }
}

/// A block of the map.
#[inline]
fn place(block: u64, map: &Map) -> Result<usize, Damage> {
    if left(block, map) == 0 {
        return Err(Damage::Beyond(block));
    }
    usize::try_from(block).map_err(|_| Damage::Beyond(block))
}

/// Pages that the map has in a block.
#[inline]
fn left(block: u64, map: &Map) -> u32 {
    map.pages().saturating_sub(block.saturating_mul(BLOCK_PAGES)).min(BLOCK_PAGES) as u32
}

/// One to five names below `end`, no two the same.
#[inline]
fn few(token: u8, count: u32, names: u64, end: u32) -> Result<Head, Damage> {
    let head = Head::unpacked(count.min(FEW_MAX), names);
    let is_below = u64::from(end) == BLOCK_PAGES || (0..count.min(FEW_MAX)).all(|at| head.page(at) < end);
    let sound = (1..=FEW_MAX).contains(&count) && is_below && head.is_distinct();
    if sound { Ok(head) } else { Err(Damage::Item(token)) }
}

struct Encoder {
    /// Longer than what is written, by an item at least.
    out: Vec<u8>,
    at: usize,
    /// The block after the last that was written.
    next: usize,
    /// Blocks before that which are full and not written yet.
    full: u64,
    pages: u64,
    /// The runs of a block of many pages; kept for its memory.
    runs: Option<Box<[u32; RUNS_MAX]>>,
}

impl Encoder {
    #[inline]
    fn block(&mut self, block: usize, marks: Marks<'_>) {
        if self.out.len() - self.at < 2 * ITEM_MAX {
            self.out.resize(self.out.len() * 2, 0);
        }
        match marks {
            Marks::Few(Pages(head)) => self.few(block, head),
            Marks::Many(bits) => self.many(block, bits),
        }
        self.next = block + 1;
    }

    #[inline]
    fn few(&mut self, block: usize, head: Head) {
        if self.full > 0 {
            self.end_full();
        }
        let count = head.few().unwrap_or(0);
        let gap = match block - self.next {
            gap if gap <= GAP_MAX => gap,
            _ => {
                self.skip(block);
                0
            }
        };
        let (gap, names) = (gap as u64, head.packed());
        // Byte by byte the lowest first, so the token stands before the names. No branch: the count cannot be guessed.
        let one = gap << 4 | names >> 8 | (names & 0xff) << 8;
        let token = u64::from(FEW) | gap << 3 | u64::from(count);
        let is_one = count == 1;
        self.put(if is_one { one } else { token | names << 8 }, 8);
        // The last four bits of five names; what comes next overwrites the rest.
        self.put(names >> 56, 1);
        self.at -= 9;
        self.at += 1 + names_bytes(count) - usize::from(is_one);
    }

    fn many(&mut self, block: usize, bits: &[u64; BLOCK_WORDS]) {
        if bits.iter().all(|word| *word == u64::MAX) {
            if block > self.next {
                self.end_full();
                self.skip(block);
            }
            self.full += 1;
            return;
        }
        self.end_full();
        let Some(mut found) = self.runs.take() else { return };
        let (pages, runs) = runs_of(bits, &mut found);
        self.many_of(block, bits, pages, found.get(..runs).unwrap_or(&[]));
        self.runs = Some(found);
    }

    /// A block of so many pages in so many runs, each packed as it is written.
    fn many_of(&mut self, block: usize, bits: &[u64; BLOCK_WORDS], pages: u32, found: &[u32]) {
        let runs = u32::try_from(found.len()).unwrap_or(u32::MAX);
        if pages <= FEW_MAX {
            let head = pages_of(bits).fold(Head::NONE, |head, page| head.with(page, 1).unwrap_or(head));
            return self.few(block, head);
        }
        self.skip(block);
        let plain = self.pages.saturating_sub(block as u64 * BLOCK_PAGES).min(BLOCK_PAGES).div_ceil(8);
        if u64::from(pages.min(runs * 2) * 3 / 2) + 3 >= plain {
            self.byte(BITS);
            bits.iter().for_each(|word| self.put(*word, 8));
            // The last block may be shorter.
            self.at -= BLOCK_WORDS * 8 - usize::try_from(plain).unwrap_or(BLOCK_WORDS * 8);
        } else if runs * 2 < pages {
            self.byte(RUNS);
            self.varint(runs.into());
            found.iter().for_each(|run| self.put((*run).into(), 3));
        } else {
            self.byte(LIST);
            self.varint(pages.into());
            if runs == pages {
                self.names(found.iter().map(|run| run & NAME_MASK));
            } else {
                self.names(found.iter().flat_map(|run| (run & NAME_MASK)..=(run >> NAME_BITS)));
            }
        }
    }

    /// Packs names: two in three bytes.
    #[inline]
    fn names(&mut self, mut names: impl Iterator<Item = u32>) {
        while let Some(first) = names.next() {
            let Some(second) = names.next() else { return self.put(first.into(), 2) };
            self.put((first | second << NAME_BITS).into(), 3);
        }
    }

    fn skip(&mut self, block: usize) {
        if block > self.next {
            self.byte(SKIP);
            self.varint((block - self.next) as u64);
            self.next = block;
        }
    }

    fn end_full(&mut self) {
        let full = std::mem::take(&mut self.full);
        if full > 0 {
            self.byte(FULL);
            self.varint(full);
        }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.put(byte.into(), 1);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.put(value, 1);
    }

    /// The lowest bytes of a word: eight are stored, so many count.
    #[inline]
    fn put(&mut self, word: u64, bytes: usize) {
        if let Some(place) = self.out.get_mut(self.at..self.at + 8) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        self.at += bytes;
    }
}

/// Bytes of so many names.
#[inline]
fn names_bytes(count: u32) -> usize {
    (count as usize * 3).div_ceil(2)
}

/// Finds the runs of a block's bits, each packed as it is written: how many pages, how many runs. Runs that go on in the next word are one.
fn runs_of(bits: &[u64; BLOCK_WORDS], found: &mut [u32; RUNS_MAX]) -> (u32, usize) {
    let marked = (0..).zip(bits).fold(0, |marked, (at, word)| marked | u64::from(*word != 0) << at);
    let (mut pages, mut runs) = (0, 0_usize);
    // Nothing touches the first run.
    let (mut first, mut next) = (0, u32::MAX);
    for (base, word) in ones(marked).filter_map(|at| Some((u32::try_from(at * 64).ok()?, bits.get(at)?))) {
        let mut rest = *word;
        while rest != 0 {
            // Adding its lowest bit carries through the lowest run and leaves those above it.
            let above = rest & rest.wrapping_add(rest & rest.wrapping_neg());
            let start = base + rest.trailing_zeros();
            let end = base + 64 - (rest ^ above).leading_zeros();
            let goes_on = start == next;
            first = if goes_on { first } else { start };
            runs += usize::from(!goes_on);
            if let Some(place) = found.get_mut(runs.wrapping_sub(1)) {
                *place = first | (end - 1) << NAME_BITS;
            }
            (pages, next, rest) = (pages + end - start, end, above);
        }
    }
    (pages, runs)
}

/// The pages of a block's bits, rising.
fn pages_of(bits: &[u64; BLOCK_WORDS]) -> impl Iterator<Item = u32> {
    (0..).step_by(64).zip(bits).flat_map(|(base, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            let at = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(base + at)
        })
    })
}

struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Damage::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Damage> {
        let (&byte, rest) = self.rest.split_first().ok_or(Damage::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damage::Beyond(u64::MAX))
    }

    /// What follows the token of an item of a few names: how many, blocks to skip, and the names, or more bits than that. Both kinds are worked
    /// out and one is chosen: which kind comes next cannot be guessed, and a branch would be.
    #[inline]
    fn few(&mut self, token: u8) -> Result<(u32, u64, u64), Damage> {
        let word = match self.rest.first_chunk() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => self.rest.iter().rev().fold(0, |names, byte| names << 8 | u64::from(*byte)),
        };
        let is_one = token < FEW;
        let one = u64::from(token & 15) << 8 | word & 0xff;
        let count = if is_one { 1 } else { u32::from(token & 7) };
        let gap = if is_one { token >> 4 } else { token >> 3 & 7 };
        let bytes = names_bytes(count.min(FEW_MAX)) - usize::from(is_one);
        self.rest = self.rest.get(bytes..).ok_or(Damage::Truncated)?;
        Ok((count, gap.into(), if is_one { one } else { word }))
    }

    /// The item of a block that has `end` pages, into its bits.
    fn many(&mut self, token: u8, end: u32, mut bits: Bits<'_>) -> Result<(), Damage> {
        let damage = Damage::Item(token);
        let mut from = 0;
        match token {
            BITS => {
                let plain = self.take(end.div_ceil(8) as usize)?;
                // Only a block's last byte has bits to spare.
                if !end.is_multiple_of(8) && plain.last().is_some_and(|last| last >> (end % 8) != 0) {
                    return Err(damage);
                }
                for (at, bytes) in plain.chunks(8).enumerate() {
                    bits.or(at, bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
                }
            }
            LIST => {
                let count = self.count(token)?;
                let mut add = |page: u32| {
                    let is_sound = page >= from && page < end;
                    if is_sound {
                        bits.or((page / 64) as usize, 1 << (page % 64));
                        from = page + 1;
                    }
                    is_sound.then_some(()).ok_or(damage)
                };
                let names = self.take(names_bytes(count))?;
                let (pairs, odd) = names.as_chunks::<3>();
                for pair in pairs {
                    let (first, second) = two(*pair);
                    add(first)?;
                    add(second)?;
                }
                if let [low, high] = odd {
                    add(two([*low, *high, 0]).0)?;
                }
            }
            _ => {
                let count = self.count(token)?;
                for run in self.take(names_bytes(2 * count))?.as_chunks::<3>().0 {
                    let (first, last) = two(*run);
                    if first < from || last < first || last >= end {
                        return Err(damage);
                    }
                    bits.set(first, last);
                    from = last + 1;
                }
            }
        }
        Ok(())
    }

    /// Names or runs of one block.
    fn count(&mut self, token: u8) -> Result<u32, Damage> {
        let count = self.varint()?;
        u32::try_from(count).ok().filter(|count| *count <= 4096).ok_or(Damage::Item(token))
    }
}

/// Two packed names.
#[inline]
fn two([low, middle, high]: [u8; 3]) -> (u32, u32) {
    let both = u32::from_le_bytes([low, middle, high, 0]);
    (both & 0xfff, both >> 12)
}
