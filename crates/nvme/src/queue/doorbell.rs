//! Where doorbell values come from: the doorbell page, or the host's shadow page once Doorbell Buffer Config named one
//! (Base 2.1, 5.2.5 and annex B.5).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::{Access, DoorbellPage, Fault, Iova, MemoryMap, Window};
use state::region::ControllerRegion;

use crate::order::meet;

/// Bytes of the shadow and of the EventIdx page (CC.MPS = 4 KiB).
const PAGE_BYTES: usize = 4096;

/// Index of a submission queue's tail in a doorbell page (DSTRD = 0).
#[must_use]
#[inline]
pub fn sq_index(sqid: u16) -> usize {
    usize::from(sqid) * 2
}

/// Index of a completion queue's head.
#[must_use]
#[inline]
pub fn cq_index(cqid: u16) -> usize {
    usize::from(cqid) * 2 + 1
}

#[derive(Debug)]
struct Shadow {
    values: Window,
    events: Window,
}

/// The source of doorbell values. The admin queue never uses the shadow: pass its queues' values by
/// [`Doorbells::register`].
#[derive(Debug, Default)]
pub struct Doorbells {
    shadow: Option<Shadow>,
    /// The host gave us pages, mapped now or not: the registers no longer count.
    enabled: bool,
    fault: Option<Fault>,
}

impl Doorbells {
    /// The shadow pages that the region names are used from now on, or no longer.
    pub fn set_shadow(&mut self, enabled: bool, region: &ControllerRegion, map: &Arc<MemoryMap>) {
        self.enabled = enabled;
        self.adopt(region, map);
    }

    /// Re-makes the views of the pages after a change of the memory map.
    pub fn adopt(&mut self, region: &ControllerRegion, map: &Arc<MemoryMap>) {
        self.shadow = None;
        self.fault = None;
        if !self.enabled {
            return;
        }
        let read = Access { read: true, write: false };
        let write = Access { read: false, write: true };
        let values = Iova(region.admin.shadow_doorbells.load(Ordering::Acquire));
        let events = Iova(region.admin.event_indices.load(Ordering::Acquire));
        let pages = Window::new(map, values, PAGE_BYTES, read)
            .and_then(|values| Ok(Shadow { values, events: Window::new(map, events, PAGE_BYTES, write)? }));
        self.fault = pages.as_ref().err().copied();
        self.shadow = pages.ok();
        if let Some(shadow) = &self.shadow {
            // What a predecessor has stored there and not marked, if there is a log.
            shadow.events.mark(0, PAGE_BYTES);
        }
    }

    /// Why the shadow pages cannot be reached, if they cannot.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Whether the host's rings may go to the shadow page only.
    #[must_use]
    #[inline]
    pub fn is_shadowed(&self) -> bool {
        self.shadow.is_some()
    }

    /// The host's shadow page, if there is one: what is watched of I/O queues then.
    pub(crate) fn shadow(&self) -> Option<&Window> {
        self.shadow.as_ref().map(|shadow| &shadow.values)
    }

    /// The value at an index. While the shadow pages are not mapped, the register's.
    #[must_use]
    #[inline]
    pub fn value(&self, page: &DoorbellPage, index: usize) -> u32 {
        match &self.shadow {
            None => Self::register(page, index),
            Some(shadow) => shadow.values.load_u32(index * 4).unwrap_or_else(|_| Self::register(page, index)),
        }
    }

    /// The register's value at an index.
    #[must_use]
    #[inline]
    pub fn register(page: &DoorbellPage, index: usize) -> u32 {
        page.load(index)
    }

    /// Going idle on a queue: asks the host to ring for anything past `value`, then looks again. What comes back is what
    /// the shadow page holds after the host could have seen the wish: if it is not `value`, the queue is not idle.
    ///
    /// The host stores its value, fences, and loads EventIdx; we store EventIdx, fence, and load its value. One of
    /// the two sees the other's store.
    #[must_use]
    pub fn announce(&self, page: &DoorbellPage, index: usize, value: u32) -> u32 {
        let Some(shadow) = &self.shadow else { return Self::register(page, index) };
        crate::crash::point();
        // A page that went away waits for the next memory map; there is nobody to tell.
        let tell = || {
            let _ = shadow.events.store_u32(index * 4, value);
        };
        meet(tell, || self.value(page, index))
    }
}
