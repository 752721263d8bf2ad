//! A split ring (virtio 1.2, 2.7) and its in-flight log.

use std::sync::Arc;

use memory::{Access, Hint, Iova, MemoryMap, Window};
use spec::vhost_inflight::{DescStateSplit, VERSION};
use spec::virtio_blk::{DESC_INDIRECT, DESC_NEXT, Descriptor};

use crate::chain::Chain;
use crate::inflight::QueueRegion;
use crate::ring::{RingConfig, Slot};
use crate::sink::Broken;
use crate::store::{put16, put32, put64};

/// Offsets in the in-flight region (`spec::vhost_inflight::QueueRegionSplit`).
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const DESC_NUM: usize = 10;
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_IDX: usize = 14;

    pub(super) fn desc(index: u16) -> usize {
        16 + 16 * usize::from(index)
    }
    pub(super) const NEXT: usize = 6;
    pub(super) const COUNTER: usize = 8;
}

/// Entries whose descriptors are fetched into the cache ahead.
const AHEAD: u16 = 4;

pub(crate) struct Split {
    size: u16,
    event_idx: bool,
    desc: Window,
    avail: Window,
    used: Window,
    /// Where the used ring is logged besides its own place.
    log_address: Option<u64>,
    region: Option<Window>,
    /// The next entry of the available ring to take, and the newest index seen.
    last_avail: u16,
    avail_idx: u16,
    used_idx: u16,
    /// Index of the used ring at the last look at whether a call is wanted.
    called: u16,
    counter: u64,
    last_batch_head: u16,
    /// Heads in flight: a driver that gives one twice is broken.
    taken: Vec<bool>,
    pub(crate) pending: Vec<(Slot, u32)>,
}

struct Windows {
    desc: Window,
    avail: Window,
    used: Window,
}

fn windows(config: &RingConfig, map: &Arc<MemoryMap>) -> Result<Windows, Broken> {
    let size = usize::from(config.size);
    let event = if config.event_idx { 2 } else { 0 };
    Ok(Windows {
        desc: Window::new(map, Iova(config.descriptors), size * 16, Access::READ)?,
        avail: Window::new(map, Iova(config.driver), 4 + size * 2 + event, Access::READ)?,
        used: Window::new(map, Iova(config.device), 4 + size * 8 + event, Access::BOTH)?,
    })
}

impl Split {
    pub(crate) fn open(config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(Self, Vec<Slot>), Broken> {
        let size = config.size;
        if !size.is_power_of_two() || config.inflight.as_ref().is_some_and(|region| region.desc_num < size) {
            return Err(Broken::Size);
        }
        let Windows { desc, avail, used } = windows(config, map)?;
        let used_idx = used.load_u16(2)?;
        #[expect(clippy::cast_possible_truncation, reason = "a split ring's base has 16 bits")]
        let base = config.base as u16;
        let mut ring = Self {
            size,
            event_idx: config.event_idx,
            desc,
            avail,
            used,
            log_address: config.log_elsewhere(),
            region: config.inflight.as_ref().map(|region| region.window.clone()),
            last_avail: base,
            avail_idx: base,
            used_idx,
            called: used_idx,
            counter: 0,
            last_batch_head: 0,
            taken: vec![false; usize::from(size)],
            pending: Vec::with_capacity(usize::from(size)),
        };
        let again = match &config.inflight {
            Some(region) => ring.recover(region)?,
            None => Vec::new(),
        };
        Ok((ring, again))
    }

    pub(crate) fn remap(&mut self, config: &RingConfig, map: &Arc<MemoryMap>) -> Result<(), Broken> {
        let Windows { desc, avail, used } = windows(config, map)?;
        (self.desc, self.avail, self.used) = (desc, avail, used);
        Ok(())
    }

    /// "When reconnecting". Nothing in the region is believed before it was compared with the ring.
    fn recover(&mut self, part: &QueueRegion) -> Result<Vec<Slot>, Broken> {
        let region = &part.window;
        let version = region.load_u16(at::VERSION)?;
        if version == 0 {
            for index in 0..part.desc_num {
                put32(region, at::desc(index), 0)?;
            }
            put64(region, 0, 0)?;
            put16(region, at::DESC_NUM, part.desc_num)?;
            put16(region, at::LAST_BATCH_HEAD, 0)?;
            put16(region, at::USED_IDX, self.used_idx)?;
            put16(region, at::VERSION, VERSION)?;
            return Ok(Vec::new());
        }
        if version != VERSION || region.load_u16(at::DESC_NUM)? != part.desc_num {
            return Err(Broken::Region);
        }
        self.last_batch_head = region.load_u16(at::LAST_BATCH_HEAD)?;
        let mut found = Vec::new();
        for index in 0..part.desc_num {
            let state: DescStateSplit = region.read(at::desc(index))?;
            if state.inflight != 0 {
                found.push((state.counter, index));
            }
        }
        let batch = self.used_idx.wrapping_sub(region.load_u16(at::USED_IDX)?);
        // A driver that began its ring anew, with nothing in flight, has any index.
        if batch != 0 && !found.is_empty() {
            self.forget_batch(region, batch, part.desc_num, &mut found)?;
        }
        put16(region, at::USED_IDX, self.used_idx)?;
        found.sort_unstable();
        for &(_, head) in &found {
            *self.taken.get_mut(usize::from(head)).ok_or(Broken::Region)? = true;
        }
        let in_flight = u16::try_from(found.len()).map_err(|_| Broken::Region)?;
        self.counter = found.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        self.last_avail = self.used_idx.wrapping_add(in_flight);
        self.avail_idx = self.last_avail;
        Ok(found.into_iter().map(|(_, head)| head).collect())
    }

    /// The last batch was given to the driver, but may still say that it is in flight.
    fn forget_batch(
        &self,
        region: &Window,
        batch: u16,
        desc_num: u16,
        found: &mut Vec<(u64, u16)>,
    ) -> Result<(), Broken> {
        if batch > self.size {
            return Err(Broken::Region);
        }
        let mut ended = vec![false; usize::from(desc_num)];
        let mut head = self.last_batch_head;
        for _ in 0..batch {
            let ended = ended.get_mut(usize::from(head)).ok_or(Broken::Region)?;
            if core::mem::replace(ended, true) {
                return Err(Broken::Region);
            }
            put32(region, at::desc(head), 0)?;
            head = region.load_u16(at::desc(head) + at::NEXT)?;
        }
        found.retain(|(_, head)| !ended.get(usize::from(*head)).copied().unwrap_or(false));
        Ok(())
    }

    #[inline]
    fn ring_offset(&self, index: u16, bytes: usize) -> usize {
        4 + usize::from(index & (self.size - 1)) * bytes
    }

    /// As [`Self::has_more`], and takes note of nothing.
    #[inline]
    pub(crate) fn waits(&self) -> Result<bool, Broken> {
        Ok(self.avail.load_u16(2)? != self.last_avail)
    }

    #[inline]
    pub(crate) fn has_more(&mut self) -> Result<bool, Broken> {
        if self.last_avail == self.avail_idx {
            self.avail_idx = self.avail.load_u16(2)?;
            if self.avail_idx.wrapping_sub(self.last_avail) > self.size {
                self.avail_idx = self.last_avail;
                return Err(Broken::Index);
            }
        }
        Ok(self.last_avail != self.avail_idx)
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
        let head = self.avail.load_u16(self.ring_offset(self.last_avail, 2))?;
        if self.avail_idx.wrapping_sub(self.last_avail) > AHEAD {
            // Only a hint: the entry is read again, and checked, when it is taken.
            let ahead = self.avail.load_u16(self.ring_offset(self.last_avail.wrapping_add(AHEAD), 2))?;
            self.desc.prefetch(usize::from(ahead) * 16);
            if let Some(region) = &self.region {
                region.prefetch(at::desc(ahead));
            }
        }
        if head >= self.size || self.taken.get(usize::from(head)).copied().unwrap_or(true) {
            return Err(Broken::Head);
        }
        self.walk(map, hint, head, chain)?;
        if let Some(region) = &self.region {
            put64(region, at::desc(head) + at::COUNTER, self.counter)?;
            self.counter = self.counter.wrapping_add(1);
            put32(region, at::desc(head), 1)?;
        }
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = true;
        }
        self.last_avail = self.last_avail.wrapping_add(1);
        Ok(Some(head))
    }

    pub(crate) fn again(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        slot: Slot,
        chain: &mut Chain,
    ) -> Result<(), Broken> {
        self.walk(map, hint, slot, chain)
    }

    #[inline]
    fn walk(&self, map: &MemoryMap, hint: &mut Hint, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        chain.clear();
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(Broken::Chain);
            }
            let desc: Descriptor = self.desc.read(usize::from(index) * 16)?;
            if desc.flags & DESC_INDIRECT != 0 {
                if desc.flags & DESC_NEXT != 0 {
                    return Err(Broken::Indirect);
                }
                return chain.split_table(map, hint, desc.addr, desc.len);
            }
            chain.push(desc.addr, desc.len, desc.flags)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(Broken::Chain)
    }

    /// "When supplying used buffers to the driver". The batch becomes visible by one store, of `idx`.
    #[inline]
    pub(crate) fn publish(&mut self) -> Result<bool, Broken> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let mut idx = self.used_idx;
        for &(head, len) in &self.pending {
            let offset = self.ring_offset(idx, 8);
            put64(&self.used, offset, u64::from(len) << 32 | u64::from(head))?;
            self.mark_elsewhere(offset, 8);
            if let Some(region) = &self.region {
                put16(region, at::desc(head) + at::NEXT, self.last_batch_head)?;
                put16(region, at::LAST_BATCH_HEAD, head)?;
                self.last_batch_head = head;
            }
            idx = idx.wrapping_add(1);
        }
        put16(&self.used, 2, idx)?;
        self.mark_elsewhere(0, 4);
        for &(head, _) in &self.pending {
            if let Some(region) = &self.region {
                put32(region, at::desc(head), 0)?;
            }
            if let Some(taken) = self.taken.get_mut(usize::from(head)) {
                *taken = false;
            }
        }
        if let Some(region) = &self.region {
            put16(region, at::USED_IDX, idx)?;
        }
        self.used_idx = idx;
        self.pending.clear();
        Ok(true)
    }

    /// virtio 1.2, 2.7.7 and 2.7.10.
    #[inline]
    pub(crate) fn wants_call(&mut self) -> Result<bool, Broken> {
        if !self.event_idx {
            return Ok(self.avail.load_u16(0)? & 1 == 0);
        }
        let event = self.avail.load_u16(4 + usize::from(self.size) * 2)?;
        let (old, new) = (core::mem::replace(&mut self.called, self.used_idx), self.used_idx);
        Ok(need_event(event, new, old))
    }

    pub(crate) fn want_kicks(&mut self, wanted: bool) -> Result<(), Broken> {
        let (offset, value) = if self.event_idx {
            // Without the wish the old value stays: it is passed once, and then no more.
            if !wanted {
                return Ok(());
            }
            (4 + usize::from(self.size) * 8, self.last_avail)
        } else {
            (0, u16::from(!wanted))
        };
        put16(&self.used, offset, value)?;
        self.mark_elsewhere(offset, 2);
        Ok(())
    }

    pub(crate) fn mark_all(&self) {
        self.used.mark(0, self.used.len());
        self.mark_elsewhere(0, self.used.len());
    }

    #[inline]
    fn mark_elsewhere(&self, offset: usize, len: usize) {
        if let Some(at) = self.log_address {
            self.used.map().mark(Iova(at.saturating_add(offset as u64)), len as u64);
        }
    }

    pub(crate) fn base(&self) -> u32 {
        u32::from(self.last_avail)
    }
}

/// virtio 1.2, 2.7.10.1: `event` lies in `old..new`.
#[inline]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
