//! A look at an idle queue that costs one load, for a reactor that has nothing else to do.

use std::sync::Arc;

use memory::{DoorbellPage, SharedRegion, Window};

/// A doorbell, and the value it had when its queue was idle. Valid until the queue, the memory map or the shadow doorbells
/// change: the owner makes a new one after every turn that did anything.
#[derive(Debug)]
pub struct Watch {
    source: Source,
    index: usize,
    seen: u32,
}

#[derive(Debug)]
enum Source {
    Register(Arc<SharedRegion<DoorbellPage>>),
    Shadow(Window),
}

impl Watch {
    /// Watches a word of the doorbell page.
    #[must_use]
    pub fn register(page: &Arc<SharedRegion<DoorbellPage>>, index: usize, seen: u32) -> Self {
        Self { source: Source::Register(Arc::clone(page)), index, seen }
    }

    /// Watches a word of the shadow doorbell page.
    #[must_use]
    pub fn shadow(page: Window, index: usize, seen: u32) -> Self {
        Self { source: Source::Shadow(page), index, seen }
    }

    /// Whether the host rang since. A shadow page that went away counts as a ring: a whole turn finds out more.
    #[inline]
    #[must_use]
    pub fn rang(&self) -> bool {
        let value = match &self.source {
            Source::Register(page) => Some(page.load(self.index)),
            Source::Shadow(page) => page.load_u32(self.index * 4).ok(),
        };
        value != Some(self.seen)
    }
}
