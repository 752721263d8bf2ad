//! What a controller and its queues wait for while they rest, side by side.
//!
//! A reactor with hundreds of idle guests looks at each of them again and again, and nearly always in vain. To ask a controller and its group
//! costs the way to the doorbells: half a dozen lines, and as many pages, that no cache holds. A [`Watch`] has copies of what is compared and the
//! addresses of what it is compared with, so a look is one load for each doorbell, and [`Watch::prefetch`] sends for those of the next ones.

use std::sync::Arc;

use memory::{DoorbellPage, Held, SharedRegion, Window};

/// A doorbell, and its value when there was nothing to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bell {
    pub(crate) index: usize,
    pub(crate) value: u32,
}

/// Doorbells of which any change is work for whoever rests. It holds the guest's memory if its shadow page is watched: [`Watch::clear`] it with
/// the first call to those it watches for.
#[derive(Default)]
pub struct Watch {
    /// `None`: it watches nothing.
    page: Option<Held<DoorbellPage>>,
    shadow: Option<Window>,
    /// Of `page`.
    registers: Vec<Bell>,
    /// Of `shadow`; none without it.
    shadowed: Vec<Bell>,
}

impl Watch {
    /// Watches this page and no other, and nothing of it yet.
    pub fn begin(&mut self, page: &Arc<SharedRegion<DoorbellPage>>) {
        self.clear();
        self.page = Some(Held::new(page));
    }

    /// Watches nothing any more, and holds nothing of the guest. Its own memory is kept for the next time.
    pub fn clear(&mut self) {
        self.page = None;
        self.shadow = None;
        self.registers.clear();
        self.shadowed.clear();
    }

    pub(crate) fn register(&mut self, bell: Bell) {
        self.registers.push(bell);
    }

    /// I/O queues, whose doorbells are in the shadow page if there is one.
    pub(crate) fn queues(&mut self, shadow: Option<&Window>, bells: &[Bell]) {
        self.shadow = shadow.cloned();
        let to = if shadow.is_some() { &mut self.shadowed } else { &mut self.registers };
        to.extend_from_slice(bells);
    }

    /// Whether a doorbell changed: one load for each. `None`: it watches nothing.
    #[inline]
    #[must_use]
    pub fn rang(&self) -> Option<bool> {
        let page = self.page.as_ref()?;
        let register = |bell: &Bell| page.load(bell.index) != bell.value;
        let shadowed = |shadow: &Window| {
            let value =
                |bell: &Bell| shadow.load_u32(bell.index * 4).unwrap_or_else(|_| page.load(bell.index));
            self.shadowed.iter().any(|bell| value(bell) != bell.value)
        };
        Some(self.registers.iter().any(register) || self.shadow.as_ref().is_some_and(shadowed))
    }

    /// Asks the processor for what [`Watch::rang`] will load.
    #[inline]
    pub fn prefetch(&self) {
        if let Some(page) = &self.page {
            memory::prefetch(self.registers.as_ptr());
            page.prefetch(0);
        }
        if let Some(shadow) = &self.shadow {
            memory::prefetch(self.shadowed.as_ptr());
            shadow.prefetch(0);
        }
    }
}
