//! Split and packed rings, the driver's side (virtio 1.2, 2.7 and 2.8).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Result;
use crate::ram::{Buffer, Ram};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
pub(super) const AVAIL: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;
/// Of a split ring's flags: the other side needs no notification. Of a packed ring's event suppression: none at all.
const NO_NOTIFICATION: u16 = 1;

/// A run of memory of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub iova: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub device_writes: bool,
}

/// A request that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// As [`Ring::add`] named it; or anything, if the device is wrong.
    pub token: u32,
    /// Bytes that the device says it wrote.
    pub written: u32,
    /// It was outstanding.
    pub expected: bool,
}

/// A ring.
pub enum Ring {
    /// Descriptor table, available ring and used ring.
    Split(Split),
    /// One ring of descriptors.
    Packed(Packed),
}

impl Ring {
    /// A ring of `size` entries.
    ///
    /// # Errors
    /// Guest RAM is used up.
    pub fn new(ram: &Arc<Ram>, size: u16, packed: bool, event_idx: bool) -> Result<Self> {
        Ok(if packed {
            Ring::Packed(Packed::new(ram, size)?)
        } else {
            Ring::Split(Split::new(ram, size, event_idx)?)
        })
    }

    /// Addresses of the descriptors, of the driver's and of the device's part.
    #[must_use]
    pub fn places(&self) -> [u64; 3] {
        match self {
            Ring::Split(ring) => [ring.table.iova(), ring.avail.iova(), ring.used.iova()],
            Ring::Packed(ring) => [ring.ring.iova(), ring.driver.iova(), ring.device.iova()],
        }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        match self {
            Ring::Split(ring) => ring.size,
            Ring::Packed(ring) => ring.size,
        }
    }

    /// Asks for a call with the next buffer that is used. With the event index once; without it for good.
    pub fn want_call(&self) {
        match self {
            Ring::Split(ring) => {
                ring.avail.store_u16(0, 0);
                ring.avail.store_u16(4 + 2 * usize::from(ring.size), ring.head);
            }
            Ring::Packed(ring) => ring.driver.store_u16(2, 0),
        }
        // The device looks after it has used a buffer, and we look for one after this (2.7.7, 2.8.7).
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Where the device goes on, by what is in memory: all that is used has been taken.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => u32::from(ring.used_index()),
            Ring::Packed(ring) => {
                let place = u32::from(ring.head) | u32::from(ring.head_wrap) << 15;
                place | place << 16
            }
        }
    }

    /// Places a request; `None`: there is no room. The device may see it from [`Ring::publish`] on.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u32> {
        self.place(pieces.len(), |at| describe(pieces, at))
    }

    /// Places a request whose descriptors are in `table`.
    pub fn add_indirect(&mut self, pieces: &[Piece], table: &Buffer, table_at: usize) -> Option<u32> {
        for (index, piece) in pieces.iter().enumerate() {
            let at = table_at + index * 16;
            let flags = direction(piece);
            let linked = matches!(self, Ring::Split(_)) && index + 1 < pieces.len();
            let next = if linked { u64::try_from(index + 1).unwrap_or(0) << 48 } else { 0 };
            let flags = if linked { flags | NEXT } else { flags };
            table.store_u64(at, piece.iova);
            match self {
                Ring::Split(_) => {
                    table.store_u64(at + 8, u64::from(piece.len) | u64::from(flags) << 32 | next);
                }
                // Id and flags are swapped, and only the direction counts (2.8.7).
                Ring::Packed(_) => table.store_u64(at + 8, u64::from(piece.len) | u64::from(flags) << 48),
            }
        }
        let len = u32::try_from(pieces.len() * 16).expect("few pieces");
        let iova = table.iova() + table_at as u64;
        self.place(1, |_| (Piece { iova, len, device_writes: false }, INDIRECT))
    }

    fn place(&mut self, count: usize, what: impl Fn(usize) -> (Piece, u16)) -> Option<u32> {
        match self {
            Ring::Split(ring) => ring.place(count, what),
            Ring::Packed(ring) => ring.place(count, what),
        }
    }

    /// Shows the device all that was added; whether it wants to be told.
    pub fn publish(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// The next request given back.
    pub fn take(&mut self) -> Option<Used> {
        match self {
            Ring::Split(ring) => ring.take(),
            Ring::Packed(ring) => ring.take(),
        }
    }

    /// True when at least `ahead` requests of `each` descriptors wait to be taken.
    #[inline]
    #[must_use]
    pub fn is_ready(&self, ahead: u16, each: u16) -> bool {
        match self {
            Ring::Split(ring) => ring.used_index().wrapping_sub(ring.head) >= ahead,
            Ring::Packed(ring) => ring.is_used((ahead - 1) * each),
        }
    }
}

fn direction(piece: &Piece) -> u16 {
    if piece.device_writes { WRITE } else { 0 }
}

fn describe(pieces: &[Piece], at: usize) -> (Piece, u16) {
    let piece = pieces[at];
    let more = if at + 1 < pieces.len() { NEXT } else { 0 };
    (piece, direction(&piece) | more)
}

/// A split ring.
pub struct Split {
    size: u16,
    table: Buffer,
    avail: Buffer,
    used: Buffer,
    event_idx: bool,
    free: VecDeque<u16>,
    /// By descriptor: the next of its chain.
    links: Vec<Option<u16>>,
    /// By head: it is outstanding.
    outstanding: Vec<bool>,
    tail: u16,
    published: u16,
    head: u16,
}

impl Split {
    fn new(ram: &Arc<Ram>, size: u16, event_idx: bool) -> Result<Self> {
        assert!(size.is_power_of_two(), "a split ring of {size} entries");
        let entries = usize::from(size);
        let ring = Split {
            size,
            table: ram.alloc(16 * entries)?,
            avail: ram.alloc(6 + 2 * entries)?,
            used: ram.alloc(6 + 8 * entries)?,
            event_idx,
            free: (0..size).collect(),
            links: vec![None; entries],
            outstanding: vec![false; entries],
            tail: 0,
            published: 0,
            head: 0,
        };
        // Flags: we poll. With the event index they mean nothing, and an index that is never reached says the same.
        ring.avail.store_u16(0, NO_NOTIFICATION);
        ring.avail.store_u16(4 + 2 * entries, u16::MAX);
        Ok(ring)
    }

    fn used_index(&self) -> u16 {
        self.used.load_u16(2)
    }

    fn place(&mut self, count: usize, what: impl Fn(usize) -> (Piece, u16)) -> Option<u32> {
        if self.free.len() < count {
            return None;
        }
        let head = *self.free.front()?;
        for index in 0..count {
            let at = self.free.pop_front()?;
            let next = (index + 1 < count).then(|| self.free.front().copied()).flatten();
            let (piece, flags) = what(index);
            let word = u64::from(piece.len) | u64::from(flags) << 32 | u64::from(next.unwrap_or(0)) << 48;
            self.table.store_u64(usize::from(at) * 16, piece.iova);
            self.table.store_u64(usize::from(at) * 16 + 8, word);
            self.links[usize::from(at)] = next;
        }
        self.outstanding[usize::from(head)] = true;
        self.avail.store_u16(4 + 2 * usize::from(self.tail & (self.size - 1)), head);
        self.tail = self.tail.wrapping_add(1);
        Some(head.into())
    }

    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.tail);
        if old == new {
            return false;
        }
        self.avail.store_u16(2, new);
        self.published = new;
        // The device's wish is read after the index is visible (2.7.10).
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.event_idx {
            let event = self.used.load_u16(4 + 8 * usize::from(self.size));
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        self.used.load_u16(0) & NO_NOTIFICATION == 0
    }

    fn take(&mut self) -> Option<Used> {
        if self.used_index() == self.head {
            return None;
        }
        let at = 4 + 8 * usize::from(self.head & (self.size - 1));
        let (token, written) = (self.used.load_u32(at), self.used.load_u32(at + 4));
        self.head = self.head.wrapping_add(1);
        let head = u16::try_from(token).ok().filter(|head| *head < self.size);
        let expected = head.is_some_and(|head| std::mem::take(&mut self.outstanding[usize::from(head)]));
        let mut link = head.filter(|_| expected);
        while let Some(at) = link {
            link = self.links[usize::from(at)].take();
            self.free.push_back(at);
        }
        Some(Used { token, written, expected })
    }
}

/// A packed ring.
pub struct Packed {
    size: u16,
    ring: Buffer,
    driver: Buffer,
    device: Buffer,
    free_ids: VecDeque<u16>,
    free: u16,
    /// By id: descriptors of the request, 0 = not outstanding.
    counts: Vec<u16>,
    tail: u16,
    tail_wrap: bool,
    head: u16,
    head_wrap: bool,
    /// Id and flags of the first descriptors of requests not yet shown, and where they stand.
    hidden: VecDeque<(u16, u32)>,
}

impl Packed {
    fn new(ram: &Arc<Ram>, size: u16) -> Result<Self> {
        let entries = usize::from(size);
        let ring = Packed {
            size,
            ring: ram.alloc(16 * entries)?,
            driver: ram.alloc(4)?,
            device: ram.alloc(4)?,
            free_ids: (0..size).collect(),
            free: size,
            counts: vec![0; entries],
            tail: 0,
            tail_wrap: true,
            head: 0,
            head_wrap: true,
            hidden: VecDeque::with_capacity(entries),
        };
        ring.driver.store_u16(2, NO_NOTIFICATION);
        Ok(ring)
    }

    fn place(&mut self, count: usize, what: impl Fn(usize) -> (Piece, u16)) -> Option<u32> {
        let count = u16::try_from(count).ok().filter(|count| *count <= self.free)?;
        let id = self.free_ids.pop_front()?;
        for index in 0..count {
            let (piece, flags) = what(usize::from(index));
            let flags = flags | if self.tail_wrap { AVAIL } else { USED };
            let at = usize::from(self.tail) * 16;
            self.ring.store_u64(at, piece.iova);
            self.ring.store_u32(at + 8, piece.len);
            let word = u32::from(id) | u32::from(flags) << 16;
            if index == 0 {
                self.hidden.push_back((self.tail, word));
            } else {
                self.ring.store_u32(at + 12, word);
            }
            self.tail += 1;
            if self.tail == self.size {
                self.tail = 0;
                self.tail_wrap = !self.tail_wrap;
            }
        }
        self.free -= count;
        self.counts[usize::from(id)] = count;
        Some(id.into())
    }

    fn publish(&mut self) -> bool {
        if self.hidden.is_empty() {
            return false;
        }
        while let Some((at, word)) = self.hidden.pop_front() {
            self.ring.store_u32(usize::from(at) * 16 + 12, word);
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // Also when the device named a position: a kick too many does no harm.
        self.device.load_u16(2) & 3 != NO_NOTIFICATION
    }

    fn is_used(&self, ahead: u16) -> bool {
        let at = self.head + ahead;
        let (at, wrap) =
            if at >= self.size { (at - self.size, !self.head_wrap) } else { (at, self.head_wrap) };
        let [_, flags] = halves(self.ring.load_u32(usize::from(at) * 16 + 12));
        (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap
    }

    fn take(&mut self) -> Option<Used> {
        if !self.is_used(0) {
            return None;
        }
        let at = usize::from(self.head) * 16;
        let [id, _] = halves(self.ring.load_u32(at + 12));
        let written = self.ring.load_u32(at + 8);
        let count = self.counts.get_mut(usize::from(id)).map_or(0, std::mem::take);
        // A wrong id leaves the place of the next entry unknown: go on with the next descriptor.
        self.head += count.max(1);
        if self.head >= self.size {
            self.head -= self.size;
            self.head_wrap = !self.head_wrap;
        }
        self.free += count;
        if count > 0 {
            self.free_ids.push_back(id);
        }
        Some(Used { token: id.into(), written, expected: count > 0 })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
