//! Whose turn it is, told to the keeper through shared memory: one relaxed store when a thread turns to another ssd.

use link::blame::{FIRST_OTHER, LINES, Page};
use memory::SharedRegion;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

static PAGE: OnceLock<Arc<SharedRegion<Page>>> = OnceLock::new();

thread_local! {
    static LINE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Uses this page from now on. Once in a process.
pub(crate) fn open(page: SharedRegion<Page>) {
    let _ = PAGE.set(Arc::new(page));
}

/// One thread's line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    page: Option<Arc<SharedRegion<Page>>>,
    at: usize,
}

impl Line {
    /// The line of a shared reactor: taken by its own thread.
    pub(crate) fn of_reactor(index: usize) -> Self {
        Self::take(index.min(FIRST_OTHER - 1))
    }

    /// A line for the present thread, which is no shared reactor.
    pub(crate) fn of_other() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self::take(FIRST_OTHER + NEXT.fetch_add(1, Ordering::Relaxed) % (LINES - FIRST_OTHER))
    }

    fn take(at: usize) -> Self {
        LINE.set(Some(at));
        Self { page: PAGE.get().cloned(), at }
    }

    /// From now on this thread works for this ssd, or for none.
    #[inline]
    pub(crate) fn turn_to(&self, ssd: Option<usize>) {
        if let Some(page) = &self.page {
            page.lines[self.at].turn_to(ssd.and_then(|ssd| u32::try_from(ssd).ok()));
        }
    }
}

/// A thread that panics takes the process with it, and says that it was the one: a reactor that is gone while the others go on
/// would serve its guests never again.
pub(crate) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        tracing::error!(%panic, "the engine fails");
        if let (Some(page), Some(at)) = (PAGE.get(), LINE.try_with(Cell::get).ok().flatten()) {
            page.lines[at].crashed();
        }
        std::process::abort();
    }));
}
