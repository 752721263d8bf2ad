//! A packed ring (virtio 1.2, 2.8) and its in-flight log.

use std::sync::Arc;

use memory::{Access, Hint, Iova, MemoryMap, Window};
use spec::vhost_inflight::{DescStatePacked, QueueRegionPacked, VERSION};
use spec::virtio_blk::{DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, PackedDescriptor};

use crate::chain::Chain;
use crate::inflight::QueueRegion;
use crate::ring::{RingConfig, Slot};
use crate::sink::Broken;
use crate::split::need_event;
use crate::store::{put16, put32, put64};

/// Offsets in the in-flight region (`spec::vhost_inflight::QueueRegionPacked`).
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const DESC_NUM: usize = 10;
    pub(super) const FREE_HEAD: usize = 12;
    /// `used_idx`, `old_used_idx` and both wrap counters.
    pub(super) const POSITIONS: usize = 16;

    pub(super) fn desc(index: u16) -> usize {
        32 + 32 * usize::from(index)
    }
    pub(super) const NEXT: usize = 2;
    pub(super) const LAST: usize = 4;
    pub(super) const COUNTER: usize = 8;
    pub(super) const ID: usize = 16;
    pub(super) const ADDR: usize = 24;
}

/// A place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    fn from_bits(bits: u16) -> Self {
        Self { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    #[inline]
    fn after(self, count: u16, size: u16) -> Self {
        let index = self.index.wrapping_add(count);
        if index >= size { Self { index: index - size, wrap: !self.wrap } } else { Self { index, ..self } }
    }

    #[inline]
    fn is_available(self, flags: u16) -> bool {
        (flags & DESC_AVAIL != 0) == self.wrap && (flags & DESC_USED != 0) != self.wrap
    }

    fn available(self) -> u16 {
        if self.wrap { DESC_AVAIL } else { DESC_USED }
    }

    #[inline]
    fn used(self) -> u16 {
        if self.wrap { DESC_AVAIL | DESC_USED } else { 0 }
    }
}

/// What is kept of an entry of the log, besides what the region has: a region may lie.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    next: u16,
    last: u16,
    num: u16,
    /// The buffer id. Of heads only.
    id: u16,
}

/// The copies of descriptors when there is no region to keep them in.
type Copies = Vec<(u64, u32, u16)>;

pub(crate) struct Packed {
    size: u16,
    event_idx: bool,
    ring: Window,
    driver: Window,
    device: Window,
    /// Where the event suppression is logged besides its own place.
    log_address: Option<u64>,
    region: Option<Window>,
    avail: Position,
    used: Position,
    called: Position,
    /// Descriptors taken and not given back.
    held: u16,
    entries: Vec<Entry>,
    copies: Copies,
    free_head: u16,
    counter: u64,
    pub(crate) pending: Vec<(Slot, u32)>,
}

fn windows(config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(Window, Window, Window), Broken> {
    let bytes = usize::from(config.size) * 16;
    Ok((
        Window::new(map, Iova(config.descriptors), bytes, Access::BOTH)?,
        Window::new(map, Iova(config.driver), 4, Access::READ)?,
        Window::new(map, Iova(config.device), 4, Access::WRITE)?,
    ))
}

impl Packed {
    pub(crate) fn open(config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(Self, Vec<Slot>), Broken> {
        let size = config.size;
        let entries = config.inflight.as_ref().map_or(size, |region| region.desc_num);
        let bits = |shift: u32| u16::try_from(config.base >> shift & 0xffff).unwrap_or(0);
        let (avail, used) = (Position::from_bits(bits(0)), Position::from_bits(bits(16)));
        if size == 0 || size > 1 << 15 || entries < size || avail.index >= size || used.index >= size {
            return Err(Broken::Size);
        }
        let (ring, driver, device) = windows(config, map)?;
        let mut ring = Self {
            size,
            event_idx: config.event_idx,
            ring,
            driver,
            device,
            log_address: config.log_elsewhere(),
            region: config.inflight.as_ref().map(|region| region.window.clone()),
            avail,
            used,
            called: used,
            held: 0,
            entries: (0..entries).map(|index| Entry { next: index + 1, ..Entry::default() }).collect(),
            copies: vec![(0, 0, 0); usize::from(entries)],
            free_head: 0,
            counter: 0,
            pending: Vec::with_capacity(usize::from(size)),
        };
        let again = match &config.inflight {
            Some(region) => ring.recover(region)?,
            None => Vec::new(),
        };
        ring.called = ring.used;
        Ok((ring, again))
    }

    pub(crate) fn remap(&mut self, config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(), Broken> {
        (self.ring, self.driver, self.device) = windows(config, map)?;
        Ok(())
    }

    fn initialise(&self, part: &QueueRegion) -> Result<(), Broken> {
        let region = &part.window;
        for index in 0..part.desc_num {
            put32(region, at::desc(index), u32::from(index + 1) << 16)?;
        }
        put64(region, 0, 0)?;
        put16(region, at::DESC_NUM, part.desc_num)?;
        self.put_free_heads(region, 0)?;
        self.put_positions(region, self.used, self.used)?;
        put16(region, at::VERSION, VERSION)?;
        Ok(())
    }

    /// "When reconnecting". Nothing in the region is believed before it was compared with the rest and with the ring.
    fn recover(&mut self, part: &QueueRegion) -> Result<Vec<Slot>, Broken> {
        let region = &part.window;
        let head: QueueRegionPacked = region.read(0)?;
        if head.version == 0 {
            self.initialise(part)?;
            return Ok(Vec::new());
        }
        let wraps = head.used_wrap_counter <= 1 && head.old_used_wrap_counter <= 1;
        if head.version != VERSION || head.desc_num != part.desc_num || !wraps {
            return Err(Broken::Region);
        }
        let new = Position { index: head.used_idx, wrap: head.used_wrap_counter == 1 };
        let old = Position { index: head.old_used_idx, wrap: head.old_used_wrap_counter == 1 };
        if new.index >= self.size || old.index >= self.size {
            return Err(Broken::Region);
        }
        (self.used, self.free_head) = (old, head.old_free_head);
        if new != old {
            let flags = self.ring.load_u16(usize::from(old.index) * 16 + 14)?;
            if !old.is_available(flags) {
                (self.used, self.free_head) = (new, head.free_head);
            }
        }
        let again = self.collect(region, part.desc_num)?;
        self.settle(region)?;
        self.restore_flags()?;
        Ok(again)
    }

    /// Walks the free list, then every list in flight. Each entry is in exactly one of them, or the region is corrupt.
    fn collect(&mut self, region: &Window, desc_num: u16) -> Result<Vec<Slot>, Broken> {
        let mut states = Vec::with_capacity(usize::from(desc_num));
        for index in 0..desc_num {
            states.push(region.read::<DescStatePacked>(at::desc(index))?);
        }
        let mut seen = vec![false; usize::from(desc_num)];
        let mut visit = |index: u16| match seen.get_mut(usize::from(index)) {
            Some(seen) if !*seen => {
                *seen = true;
                Ok(())
            }
            _ => Err(Broken::Region),
        };
        for (entry, state) in self.entries.iter_mut().zip(&states) {
            entry.next = state.next;
        }
        let mut left = desc_num;
        let mut free = self.free_head;
        let mut heads: Vec<bool> = states.iter().map(|state| state.inflight != 0).collect();
        while free < desc_num {
            visit(free)?;
            left -= 1;
            if let Some(head) = heads.get_mut(usize::from(free)) {
                *head = false;
            }
            free = states.get(usize::from(free)).map_or(desc_num, |state| state.next);
        }
        let mut found = Vec::new();
        for (index, (state, is_head)) in (0..).zip(states.iter().zip(&heads)) {
            if !is_head {
                continue;
            }
            if state.num == 0 || state.num > left {
                return Err(Broken::Region);
            }
            left -= state.num;
            let (mut at, mut last) = (index, index);
            for _ in 0..state.num {
                visit(at)?;
                last = at;
                at = states.get(usize::from(at)).map_or(desc_num, |state| state.next);
            }
            if last != state.last {
                return Err(Broken::Region);
            }
            let id = states.get(usize::from(last)).map_or(0, |state| state.id);
            if let Some(entry) = self.entries.get_mut(usize::from(index)) {
                (entry.last, entry.num, entry.id) = (last, state.num, id);
            }
            self.held = self.held.saturating_add(state.num);
            found.push((state.counter, index));
        }
        if left != 0 || self.held > self.size {
            return Err(Broken::Region);
        }
        for (index, (state, is_head)) in (0..).zip(states.iter().zip(&heads)) {
            if state.inflight != 0 && !is_head {
                put16(region, at::desc(index), 0)?;
            }
        }
        found.sort_unstable();
        self.counter = found.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        self.avail = self.used.after(self.held, self.size);
        Ok(found.into_iter().map(|(_, slot)| slot).collect())
    }

    /// Both halves of the header as they are now. A crash between the stores changes nothing: the half that was chosen is
    /// chosen again until the positions, all of them one store, are the same.
    fn settle(&self, region: &Window) -> Result<(), Broken> {
        self.put_free_heads(region, self.free_head)?;
        self.put_positions(region, self.used, self.used)
    }

    /// `free_head` and `old_free_head` in one store.
    #[inline]
    fn put_free_heads(&self, region: &Window, head: u16) -> Result<(), Broken> {
        Ok(put32(region, at::FREE_HEAD, u32::from(head) << 16 | u32::from(head))?)
    }

    /// `used_idx`, `old_used_idx` and both wrap counters in one store: an index beside the wrap counter of another would be
    /// taken for a place that never was.
    #[inline]
    fn put_positions(&self, region: &Window, new: Position, old: Position) -> Result<(), Broken> {
        let indexes = u64::from(new.index) | u64::from(old.index) << 16;
        let wraps = u64::from(new.wrap) << 32 | u64::from(old.wrap) << 40;
        Ok(put64(region, at::POSITIONS, indexes | wraps)?)
    }

    /// A batch of which only later entries were written: the driver, led there by shorter answers, must not take them for used.
    fn restore_flags(&self) -> Result<(), Broken> {
        let mut position = self.used;
        for _ in 0..self.held {
            put16(&self.ring, usize::from(position.index) * 16 + 14, position.available())?;
            position = position.after(1, self.size);
        }
        Ok(())
    }

    /// As [`Self::has_more`].
    #[inline]
    pub(crate) fn waits(&self) -> Result<bool, Broken> {
        if self.held >= self.size {
            return Ok(false);
        }
        let flags = self.ring.load_u16(usize::from(self.avail.index) * 16 + 14)?;
        Ok(self.avail.is_available(flags))
    }

    #[inline]
    pub(crate) fn has_more(&mut self) -> Result<bool, Broken> {
        self.waits()
    }

    #[inline]
    pub(crate) fn take(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        chain: &mut Chain,
    ) -> Result<Option<Slot>, Broken> {
        if !self.has_more()? {
            return Ok(None);
        }
        self.ring.prefetch(usize::from(self.avail.after(4, self.size).index) * 16);
        chain.clear();
        let head = self.free_head;
        let (mut entry, mut num, mut position) = (head, 0, self.avail);
        let (last, id) = loop {
            if self.held.saturating_add(num) >= self.size {
                return Err(Broken::Chain);
            }
            let desc: PackedDescriptor = self.ring.read(usize::from(position.index) * 16)?;
            self.log(entry, num == 0, head, &desc)?;
            num += 1;
            let this = (entry, desc.id);
            entry = self.entries.get(usize::from(entry)).ok_or(Broken::Region)?.next;
            position = position.after(1, self.size);
            let more = desc.flags & DESC_NEXT != 0;
            if desc.flags & DESC_INDIRECT != 0 {
                if more {
                    return Err(Broken::Indirect);
                }
                chain.packed_table(map, hint, desc.addr, desc.len)?;
            } else {
                chain.push(desc.addr, desc.len, desc.flags)?;
            }
            if !more {
                break this;
            }
        };
        if let Some(region) = &self.region {
            put32(region, at::desc(head) + at::LAST, u32::from(num) << 16 | u32::from(last))?;
            // From here on the list is in flight.
            self.put_free_heads(region, entry)?;
            self.counter = self.counter.wrapping_add(1);
        }
        let state = self.entries.get_mut(usize::from(head)).ok_or(Broken::Region)?;
        (state.last, state.num, state.id) = (last, num, id);
        (self.avail, self.free_head) = (position, entry);
        self.held += num;
        Ok(Some(head))
    }

    /// Copies a descriptor to its entry: the ring's own may be overwritten by answers before this one is answered.
    #[inline]
    fn log(&mut self, entry: u16, first: bool, head: u16, desc: &PackedDescriptor) -> Result<(), Broken> {
        let Some(region) = &self.region else {
            let copy = self.copies.get_mut(usize::from(entry)).ok_or(Broken::Region)?;
            *copy = (desc.addr, desc.len, desc.flags);
            return Ok(());
        };
        let offset = at::desc(entry);
        if first {
            put64(region, at::desc(head) + at::COUNTER, self.counter)?;
            // Counts only when the list is out of the free list.
            put16(region, at::desc(head), 1)?;
        } else {
            put16(region, offset, 0)?;
        }
        let word = u64::from(desc.len) << 32 | u64::from(desc.flags) << 16 | u64::from(desc.id);
        put64(region, offset + at::ID, word)?;
        put64(region, offset + at::ADDR, desc.addr)?;
        Ok(())
    }

    pub(crate) fn again(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        slot: Slot,
        chain: &mut Chain,
    ) -> Result<(), Broken> {
        chain.clear();
        let Entry { num, .. } = *self.entries.get(usize::from(slot)).ok_or(Broken::Region)?;
        let mut index = slot;
        for left in (0..num).rev() {
            let next = self.entries.get(usize::from(index)).ok_or(Broken::Region)?.next;
            let (addr, len, flags) = match &self.region {
                Some(region) => {
                    let state: DescStatePacked = region.read(at::desc(index))?;
                    (state.addr, state.len, state.flags)
                }
                None => *self.copies.get(usize::from(index)).ok_or(Broken::Region)?,
            };
            if (flags & DESC_NEXT != 0) != (left > 0) {
                return Err(Broken::Region);
            }
            if flags & DESC_INDIRECT != 0 {
                chain.packed_table(map, hint, addr, len)?;
            } else {
                chain.push(addr, len, flags)?;
            }
            index = next;
        }
        Ok(())
    }

    /// "When supplying used buffers to the driver". The batch becomes visible by one store, of its first entry's flags.
    #[inline]
    pub(crate) fn publish(&mut self) -> Result<bool, Broken> {
        let Some(&(first, first_len)) = self.pending.first() else { return Ok(false) };
        let begin = self.used;
        let (mut end, mut freed) = (begin, 0);
        for &(slot, _) in &self.pending {
            let Entry { last, num, .. } = *self.entries.get(usize::from(slot)).ok_or(Broken::Region)?;
            if let Some(region) = &self.region {
                put16(region, at::desc(last) + at::NEXT, self.free_head)?;
                put16(region, at::FREE_HEAD, slot)?;
            }
            self.entries.get_mut(usize::from(last)).ok_or(Broken::Region)?.next = self.free_head;
            self.free_head = slot;
            (end, freed) = (end.after(num, self.size), freed + num);
        }
        if let Some(region) = &self.region {
            self.put_positions(region, end, begin)?;
        }
        let mut position = begin.after(self.num(first), self.size);
        for &(slot, len) in self.pending.iter().skip(1) {
            let offset = usize::from(position.index) * 16;
            let flags = used_flags(position, len);
            put32(&self.ring, offset + 8, len)?;
            put32(&self.ring, offset + 12, u32::from(flags) << 16 | u32::from(self.id(slot)))?;
            position = position.after(self.num(slot), self.size);
        }
        let offset = usize::from(begin.index) * 16;
        put32(&self.ring, offset + 8, first_len)?;
        put16(&self.ring, offset + 12, self.id(first))?;
        put16(&self.ring, offset + 14, used_flags(begin, first_len))?;
        self.used = end;
        self.held = self.held.saturating_sub(freed);
        if let Some(region) = &self.region {
            for &(slot, _) in &self.pending {
                put16(region, at::desc(slot), 0)?;
            }
            self.put_free_heads(region, self.free_head)?;
            self.put_positions(region, end, end)?;
        }
        self.pending.clear();
        Ok(true)
    }

    #[inline]
    fn num(&self, slot: Slot) -> u16 {
        self.entries.get(usize::from(slot)).map_or(1, |entry| entry.num)
    }

    #[inline]
    fn id(&self, slot: Slot) -> u16 {
        self.entries.get(usize::from(slot)).map_or(0, |entry| entry.id)
    }

    /// virtio 1.2, 2.8.10.
    #[inline]
    pub(crate) fn wants_call(&mut self) -> Result<bool, Broken> {
        const DISABLE: u16 = 1;
        const DESC: u16 = 2;
        let old = core::mem::replace(&mut self.called, self.used);
        let word = self.driver.load_u32(0)?;
        #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
        let (event, flags) = (Position::from_bits(word as u16), (word >> 16) as u16 & 3);
        if flags != DESC || !self.event_idx {
            return Ok(flags != DISABLE);
        }
        // Both as distances from a common turn of the ring.
        let turn = |position: Position| {
            let back = if position.wrap == self.used.wrap { 0 } else { self.size };
            position.index.wrapping_sub(back)
        };
        Ok(need_event(turn(event), self.used.index, turn(old)))
    }

    pub(crate) fn want_kicks(&mut self, wanted: bool) -> Result<(), Broken> {
        // ENABLE or DISABLE; the index does not matter then.
        put32(&self.device, 0, u32::from(!wanted) << 16)?;
        if let Some(at) = self.log_address {
            self.device.map().mark(Iova(at), 4);
        }
        Ok(())
    }

    /// All but the event suppression, which every start writes.
    pub(crate) fn mark_all(&self) {
        self.ring.mark(0, self.ring.len());
    }

    pub(crate) fn base(&self) -> u32 {
        u32::from(self.used.bits()) << 16 | u32::from(self.avail.bits())
    }
}

/// WRITE says that `len` counts (2.8.6).
#[inline]
fn used_flags(position: Position, len: u32) -> u16 {
    position.used() | if len > 0 { DESC_WRITE } else { 0 }
}
