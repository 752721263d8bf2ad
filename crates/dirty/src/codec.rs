//! The compact form of a map at rest, for the switch-over (`docs/formats/compact-map.md`).
//!
//! ```text
//!  version (2), pages (varint), then regions of 64 blocks, in order:
//!   varint 4n      end (n is 0)
//!   varint 4n + 1  skip n regions; of the next, in columns:
//!                    which blocks have marks: one byte for which of eight bytes are not zero, those bytes
//!                    of each such block four bits: how many names, and 8 if its parts follow; 0: another form follows
//!                    the names, 12 bits each
//!                    of each such block that says so, in order, what follows:
//!                      parts  of eight parts four bits each: how many names; the names, 9 bits each
//!                      c2     all pages
//!                      c3 n   n pages by name, rising, 12 bits each
//!                      c4 n   n runs, rising, first and last by 12 bits each
//!                      c5     a bit for each page
//!   varint 4n + 2  skip n regions; varint: so many regions with all their pages
//! ```
//! In columns, since what comes next cannot be guessed: each column is written and read without a branch for it.

use crate::block::{BLOCK_PAGES, BLOCK_PARTS, BLOCK_WORDS, Bits, Head, PART_PAGES, Part};
use crate::map::{Map, Open, REGION_BLOCKS, Region, ones};

const VERSION: u8 = 2;
/// Kinds of what a region begins with: its lowest bits.
const END: u64 = 0;
const COLUMNS: u64 = 1;
const ALL: u64 = 2;
const KIND_BITS: u32 = 2;
/// Other forms of a block.
const FULL: u8 = 0xc2;
const LIST: u8 = 0xc3;
const RUNS: u8 = 0xc4;
const BITS: u8 = 0xc5;
/// Bits of a name.
const NAME_BITS: u32 = 12;
/// Bits of a name in a part.
const PART_NAME_BITS: u32 = PART_PAGES.ilog2();
const NAME_MASK: u32 = (1 << NAME_BITS) - 1;
/// Runs of a block at most: every second page.
const RUNS_MAX: usize = BLOCK_WORDS * 32;
/// Bytes of a region at most: its columns, and of each block its bits or what is shorter; and what is stored beyond the last.
const REGION_MAX: usize = 64 + REGION_BLOCKS * (1 + 8 + 1 + BLOCK_WORDS * 8) + 64;

/// What was received is not the compact form of a map of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends too early.
    #[error("the compact map ends before its end")]
    Truncated,
    /// Something follows.
    #[error("{0} bytes follow the end of the compact map")]
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

/// Makes the compact form. The map is at rest. At most the map's plain bits and one in a hundred more, and 32 bytes.
#[must_use]
pub fn encode(map: &Map) -> Vec<u8> {
    let mut encoder = Encoder {
        out: Vec::new(),
        buffer: vec![0; REGION_MAX],
        at: 0,
        next: 0,
        full: 0,
        map,
        runs: vec![0; RUNS_MAX],
    };
    encoder.byte(VERSION);
    encoder.varint(map.pages());
    map.announced().filter(|region| region.marked != 0).for_each(|region| encoder.region(&region));
    encoder.end_full();
    encoder.varint(END);
    encoder.flush();
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
    let mut region = 0_usize;
    loop {
        let begin = input.varint()?;
        let (kind, gap) = (begin & ((1 << KIND_BITS) - 1), begin >> KIND_BITS);
        let skipped = usize::try_from(gap).ok();
        region = skipped.and_then(|gap| region.checked_add(gap)).ok_or(Damage::Beyond(u64::MAX))?;
        match kind {
            END if gap == 0 && input.rest.is_empty() => return Ok(()),
            END if gap == 0 => return Err(Damage::Trailing(input.rest.len())),
            COLUMNS => {
                input.columns(map, region)?;
                region += 1;
            }
            ALL => {
                let regions = input.varint()?;
                if regions == 0 {
                    return Err(Damage::Item(u8::try_from(begin).unwrap_or(u8::MAX)));
                }
                for _ in 0..regions {
                    fill(map, region)?;
                    region += 1;
                }
            }
            _ => return Err(Damage::Item(u8::try_from(begin).unwrap_or(u8::MAX))),
        }
    }
}

/// The blocks of a region, which has some: the first, and how many.
fn blocks_of(map: &Map, region: usize) -> Result<(usize, usize), Damage> {
    let beyond = Damage::Beyond((region as u64).saturating_mul(REGION_BLOCKS as u64));
    let first = region.checked_mul(REGION_BLOCKS).ok_or(beyond)?;
    let all = usize::try_from(map.pages().div_ceil(BLOCK_PAGES)).map_err(|_| beyond)?;
    let blocks = all.saturating_sub(first).min(REGION_BLOCKS);
    if blocks > 0 { Ok((first, blocks)) } else { Err(beyond) }
}

/// Marks all pages of a region.
fn fill(map: &mut Map, region: usize) -> Result<(), Damage> {
    let (first, blocks) = blocks_of(map, region)?;
    map.put_region(region);
    for block in first..first + blocks {
        let end = left(block, map);
        map.open(block).ok_or(Damage::Beyond(block as u64))?.set(0, end - 1);
    }
    Ok(())
}

/// Pages that the map has in a block.
#[inline]
fn left(block: usize, map: &Map) -> u32 {
    map.pages().saturating_sub((block as u64).saturating_mul(BLOCK_PAGES)).min(BLOCK_PAGES) as u32
}

struct Encoder<'a> {
    out: Vec<u8>,
    /// The region that comes behind that. It has room for any, so that there is none to be made for each of its stores.
    buffer: Vec<u8>,
    at: usize,
    /// The region after the last that was written.
    next: usize,
    /// Regions before that which are full and not counted yet.
    full: u64,
    map: &'a Map,
    /// The runs of a block of many pages; kept for its memory.
    runs: Vec<u32>,
}

impl Encoder<'_> {
    fn region(&mut self, region: &Region<'_>) {
        self.flush();
        let gap = (region.number - self.next) as u64;
        self.next = region.number + 1;
        let is_full = region.below == u64::MAX
            && ones(region.below)
                .all(|at| self.map.bits(region.first + at, region.head(at)) == [u64::MAX; BLOCK_WORDS]);
        if is_full {
            if gap > 0 || self.full == 0 {
                self.end_full();
                self.varint(gap << KIND_BITS | ALL);
            }
            self.full += 1;
            return;
        }
        self.end_full();
        self.varint(gap << KIND_BITS | COLUMNS);
        self.mask(region.marked);
        self.map.fetch_parts(region.first, region.below);
        let others = self.others(region);
        self.heads(region, others);
        self.map.fetch_bits(region.first, others);
        for at in ones(region.below) {
            if others >> at & 1 == 0 {
                self.parts(&self.map.parts(region.first + at));
            } else {
                self.other(region.first + at, region.head(at));
            }
        }
    }

    /// The blocks of a region with marks below their parts too.
    fn others(&self, region: &Region<'_>) -> u64 {
        ones(region.below).fold(0, |others, at| {
            let all = self.map.parts(region.first + at).iter().fold(0, |all, part| all | part.0);
            others | u64::from(Part::of(all).is_below()) << at
        })
    }

    /// Which blocks have marks.
    fn mask(&mut self, mask: u64) {
        let (present, mut at) = (self.at, self.at + 1);
        let mut which = 0_u8;
        for (place, byte) in mask.to_le_bytes().into_iter().enumerate() {
            self.at = at;
            self.byte(byte);
            at += usize::from(byte != 0);
            which |= u8::from(byte != 0) << place;
        }
        self.at = at;
        if let Some(place) = self.buffer.get_mut(present) {
            *place = which;
        }
    }

    /// What the heads say.
    fn heads(&mut self, region: &Region<'_>, others: u64) {
        let mut nibbles = [0_u8; REGION_BLOCKS];
        let count = region.marked.count_ones() as usize;
        let (counts, rest) = self.buffer.split_at_mut(self.at + count.div_ceil(2));
        let mut names = Packer::new(rest);
        for (at, nibble) in ones(region.marked).zip(&mut nibbles) {
            // All of a head or nothing of it, without a branch.
            let head = Head::of(region.head(at).0 & (others >> at & 1).wrapping_sub(1));
            *nibble = head.nibble();
            names.push(head.packed(), head.packed_bits());
        }
        let bytes = names.end();
        for (place, pair) in counts.iter_mut().skip(self.at).zip(nibbles.as_chunks().0) {
            let [low, high]: [u8; 2] = *pair;
            *place = low | high << 4;
        }
        self.at = counts.len() + bytes;
    }

    /// The parts of a block.
    #[inline]
    fn parts(&mut self, parts: &[Part; BLOCK_PARTS]) {
        let counts =
            (0..).step_by(4).zip(parts).fold(0, |all, (at, part)| all | u32::from(part.nibble()) << at);
        self.put(counts.into(), BLOCK_PARTS / 2);
        if let Some(bits) = bits_of_few(counts) {
            let all = parts
                .iter()
                .fold((0, 0), |(all, at), part| (all | part.packed() << at, at + part.packed_bits()));
            return self.put(all.0, bits.div_ceil(8) as usize);
        }
        let mut names = Packer::new(self.buffer.get_mut(self.at..).unwrap_or(&mut []));
        parts.iter().for_each(|part| names.push(part.packed(), part.packed_bits()));
        self.at += names.end();
    }

    /// A block of many pages, in the shortest of the other forms.
    fn other(&mut self, block: usize, head: Head) {
        let bits = self.map.bits(block, head);
        if bits == [u64::MAX; BLOCK_WORDS] {
            return self.byte(FULL);
        }
        let mut found = std::mem::take(&mut self.runs);
        let (pages, runs) = runs_of(&bits, &mut found);
        self.many(block, &bits, pages, found.get(..runs).unwrap_or(&[]));
        self.runs = found;
    }

    /// A block of so many pages in so many runs, each packed as it is written.
    fn many(&mut self, block: usize, bits: &Bits, pages: u32, found: &[u32]) {
        let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let plain = left(block, self.map).div_ceil(8);
        if pages.min(count * 2) * 3 / 2 + 3 >= plain {
            self.byte(BITS);
            bits.iter().for_each(|word| self.put(*word, 8));
            // The last block may be shorter.
            self.at -= BLOCK_WORDS * 8 - plain as usize;
            return;
        }
        if count * 2 < pages {
            self.byte(RUNS);
            self.varint(count.into());
            found.iter().for_each(|run| self.put((*run).into(), 3));
        } else {
            self.byte(LIST);
            self.varint(pages.into());
            if count == pages {
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

    fn flush(&mut self) {
        self.out.extend_from_slice(self.buffer.get(..self.at).unwrap_or(&[]));
        self.at = 0;
    }

    /// Counts the full regions that were held back.
    fn end_full(&mut self) {
        let full = std::mem::take(&mut self.full);
        if full > 0 {
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
        put(&mut self.buffer, self.at, word);
        self.at += bytes;
    }
}

/// Puts bits behind bits.
struct Packer<'a> {
    out: &'a mut [u8],
    at: usize,
    /// Bits that fill no byte yet: fewer than eight.
    rest: u64,
    bits: u32,
}

impl<'a> Packer<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, rest: 0, bits: 0 }
    }

    /// At most 57 bits, or 60 where all that is pushed is a multiple of four.
    #[inline]
    fn push(&mut self, word: u64, bits: u32) {
        let all = self.rest | word << self.bits;
        put(self.out, self.at, all);
        let (bytes, left) = ((self.bits + bits) / 8, (self.bits + bits) % 8);
        self.at += bytes as usize;
        // In two steps: it may be all of it.
        self.rest = all >> (bytes * 4) >> (bytes * 4);
        self.bits = left;
    }

    /// The bytes it took.
    #[inline]
    fn end(self) -> usize {
        self.at + usize::from(self.bits > 0)
    }
}

/// Stores eight bytes.
#[inline]
fn put(out: &mut [u8], at: usize, word: u64) {
    if let Some(place) = out.get_mut(at..).and_then(|out| out.first_chunk_mut()) {
        *place = word.to_le_bytes();
    }
}

/// Bytes of so many names.
#[inline]
fn names_bytes(count: u32) -> usize {
    (count as usize * 3).div_ceil(2)
}

/// Finds the runs of a block's bits, each packed as it is written: how many pages, how many runs. Runs that go on in the next word are one.
fn runs_of(bits: &Bits, found: &mut [u32]) -> (u32, usize) {
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

    /// Which blocks have marks.
    fn mask(&mut self) -> Result<u64, Damage> {
        let which = self.byte()?;
        ones(which.into()).try_fold(0, |mask, at| Ok(mask | u64::from(self.byte()?) << (8 * at)))
    }

    /// A region in columns.
    fn columns(&mut self, map: &mut Map, region: usize) -> Result<(), Damage> {
        let (first, blocks) = blocks_of(map, region)?;
        let mask = self.mask()?;
        if blocks < REGION_BLOCKS && mask >> blocks != 0 {
            return Err(Damage::Beyond((first + blocks) as u64));
        }
        map.put_region(region);
        let counts = self.take((mask.count_ones() as usize).div_ceil(2))?;
        let nibble = |count: usize| counts.get(count / 2).map_or(0, |both| both >> (count % 2 * 4) & 15);
        // Those of which more follows, and those of which all does.
        let (mut more, mut others) = (0, 0);
        // Only the map's last block may be shorter.
        let is_whole = u64::from(left(first + blocks - 1, map)) == BLOCK_PAGES;
        let mut names = Unpacker { bytes: self.rest, at: 0 };
        for (count, at) in ones(mask).enumerate() {
            let nibble = nibble(count);
            let head = Head::unpacked(nibble, names.look());
            let block = first + at;
            if !head.is_sound() || !is_whole && is_beyond(head.pages(), left(block, map)) {
                return Err(Damage::Item(nibble));
            }
            names.at += head.packed_bits() as usize;
            // Seldom at all where few are marked, often where many are.
            if !(1..8).contains(&nibble) {
                more |= 1 << at;
                others |= u64::from(nibble == 0) << at;
            }
            map.put(block, head);
        }
        self.take(names.bytes_read())?;
        map.fetch_parts(first, more);
        for at in ones(more) {
            if others >> at & 1 == 0 { self.parts(map, first + at)? } else { self.other(map, first + at)? }
        }
        Ok(())
    }

    /// The parts of a block.
    fn parts(&mut self, map: &mut Map, block: usize) -> Result<(), Damage> {
        let end = left(block, map);
        let is_whole = u64::from(end) == BLOCK_PAGES;
        let counts = self.take(BLOCK_PARTS / 2)?;
        let mut names = Unpacker { bytes: self.rest, at: 0 };
        let all = counts.first_chunk().map_or(u32::MAX, |counts| u32::from_le_bytes(*counts));
        if is_whole && let Some(bits) = bits_of_few(all) {
            self.take(bits.div_ceil(8) as usize)?;
            map.put_parts(block, &few_parts(all, names.look()));
            return Ok(());
        }
        for (at, base) in (0..BLOCK_PARTS).zip((0..).step_by(PART_PAGES as usize)) {
            let nibble = counts.get(at / 2).map_or(0, |both| both >> (at % 2 * 4) & 15);
            let part = Part::unpacked(nibble, names.look());
            let is_beyond = !is_whole && is_beyond(part.pages().map(|page| base + page), end);
            if is_beyond || !part.is_sound() || part.is_below() {
                return Err(Damage::Item(nibble));
            }
            names.at += part.packed_bits() as usize;
            map.put_part(block, base, part);
        }
        self.take(names.bytes_read())?;
        Ok(())
    }

    /// Another form of a block.
    fn other(&mut self, map: &mut Map, block: usize) -> Result<(), Damage> {
        let (form, end) = (self.byte()?, left(block, map));
        let mut bits = map.open(block).ok_or(Damage::Beyond(block as u64))?;
        if form == FULL {
            bits.set(0, end - 1);
            return Ok(());
        }
        self.many(form, end, bits)
    }

    /// The form of a block that has `end` pages, into its bits.
    fn many(&mut self, token: u8, end: u32, mut bits: Open<'_>) -> Result<(), Damage> {
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
            RUNS => {
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
            _ => return Err(damage),
        }
        Ok(())
    }

    /// Names or runs of one block.
    fn count(&mut self, token: u8) -> Result<u32, Damage> {
        let count = self.varint()?;
        u32::try_from(count).ok().filter(|count| *count <= 4096).ok_or(Damage::Item(token))
    }
}

/// Whether a block that has `end` pages does not have all of these.
#[cold]
fn is_beyond(mut pages: impl Iterator<Item = u32>, end: u32) -> bool {
    pages.any(|page| page >= end)
}

/// Takes bits from behind bits.
struct Unpacker<'a> {
    bytes: &'a [u8],
    /// Bits that were taken.
    at: usize,
}

impl Unpacker<'_> {
    /// The bits that come next, at least 57, or 60 where all that is taken is a multiple of four; zeros behind the end.
    #[inline]
    fn look(&self) -> u64 {
        let rest = self.bytes.get(self.at / 8..).unwrap_or(&[]);
        let word = match rest.first_chunk() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        word >> (self.at % 8)
    }

    fn bytes_read(&self) -> usize {
        self.at.div_ceil(8)
    }
}

/// The bits of the names of a block's parts, given the counts of all, where one word holds them: then they are packed and unpacked by shifts alone,
/// without a store or a load for each. At one page in a thousand nearly every block with parts is so. `None`: more names, or a count that
/// cannot be.
#[inline]
fn bits_of_few(counts: u32) -> Option<u32> {
    let pairs = (counts & 0x0707_0707) + (counts >> 4 & 0x0707_0707);
    let names = pairs.wrapping_mul(0x0101_0101) >> 24;
    // So none of them counts more than a part has room for.
    (counts & 0x8888_8888 == 0 && names <= Part::MAX).then_some(names * PART_NAME_BITS)
}

/// Parts with these counts, all of whose names are in this word.
#[inline]
fn few_parts(counts: u32, mut names: u64) -> [Part; BLOCK_PARTS] {
    let mut nibbles = counts;
    [(); BLOCK_PARTS].map(|()| {
        let part = Part::unpacked((nibbles & 15) as u8, names);
        nibbles >>= 4;
        names >>= part.packed_bits();
        part
    })
}

/// Two packed names.
#[inline]
fn two([low, middle, high]: [u8; 3]) -> (u32, u32) {
    let both = u32::from_le_bytes([low, middle, high, 0]);
    (both & 0xfff, both >> 12)
}
