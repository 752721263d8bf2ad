//! A client is told of the pages that its device has written: it stores what is there already (`docs/decisions/0035`).
//!
//! ```text
//!  marks --> runs of pages --> stores of a few bytes --batch--> keeper --> client, which answers a batch's last one --> marks cleared
//!                                              so many batches are under way at once
//! ```
//! A mark goes when the client has the page: whatever ends before that, an engine too, costs none.

use super::{Whose, is_covered, mapped};
use crate::ssd::Ssd;
use frontend::vfio_user::{Receipt, RemoteMemory, Store};
use memory::{Iova, LOG_PAGE_BYTES, MemoryMap, WriteLog};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;

/// Stores of one batch. More at once are not quicker (0035).
const BATCH_STORES: usize = 512;
/// Batches under way at most: the client has work while we wait for its answer, and what waits for it in the keeper is short.
const BATCHES: usize = 3;

/// Has the client take each page for written that was written since it was last taken, and forgets it: a store of one byte of it, by the client, of
/// what is there. Returns how many. Nobody may write into the guest meanwhile.
///
/// # Errors
/// As [`super::take`], or what the client answers: then some pages may have been told, and are told again.
pub(crate) fn touch(ssd: &Ssd, memory: &MemoryMap, client: &RemoteMemory) -> Result<u64, Errno> {
    let log = match &ssd.written.state().whose {
        Whose::Engines(armed) => Arc::clone(&armed.log),
        _ => return Err(Errno::INVAL),
    };
    let regions: Vec<_> = mapped(memory).collect();
    if !regions.iter().all(is_covered) {
        return Err(Errno::TOOBIG);
    }
    let mut touches =
        Touches { log: &log, memory, client, batch: Batch::default(), sent: VecDeque::new(), done: 0 };
    for (iova, len) in regions {
        let mut runs = Vec::new();
        // Regions need not begin with a page.
        log.runs(iova, len, &mut |first, pages| runs.push(Run { at: first.max(iova), first, pages }));
        runs.into_iter().try_for_each(|run| touches.touch(run))?;
    }
    touches.finish()?;
    // What was read of it since are zeros.
    if memory.is_poisoned() { Err(Errno::IO) } else { Ok(touches.done) }
}

/// Pages in a row, and an address in the first.
#[derive(Clone, Copy)]
struct Run {
    at: Iova,
    first: Iova,
    pages: u64,
}

/// What goes to the client together.
#[derive(Default)]
struct Batch {
    stores: Vec<Store>,
    /// First address and pages.
    pages: Vec<(Iova, u64)>,
}

/// Pages on their way to the client.
struct Touches<'a> {
    log: &'a WriteLog,
    memory: &'a MemoryMap,
    client: &'a RemoteMemory,
    batch: Batch,
    /// The client has not answered for them yet.
    sent: VecDeque<(Vec<(Iova, u64)>, Receipt<'a>)>,
    done: u64,
}

impl Touches<'_> {
    /// Two pages by a message: the last byte of one and the first of the next.
    fn touch(&mut self, run: Run) -> Result<(), Errno> {
        for page in (0..run.pages).step_by(2) {
            let first = Iova(run.first.0 + page * LOG_PAGE_BYTES);
            if page + 1 < run.pages {
                self.store(first, 2, Iova(first.0 + LOG_PAGE_BYTES - 1), &mut [0; 2])?;
            } else {
                self.store(first, 1, run.at.max(first), &mut [0; 1])?;
            }
        }
        Ok(())
    }

    /// A store at `at`, which lies in so many pages from `first` on.
    fn store(&mut self, first: Iova, pages: u64, at: Iova, bytes: &mut [u8]) -> Result<(), Errno> {
        self.memory.read_bytes(at, bytes).map_err(|_| Errno::FAULT)?;
        self.batch.stores.push(Store { iova: at.0, bytes: bytes.to_vec() });
        self.batch.pages.push((first, pages));
        if self.batch.stores.len() < BATCH_STORES { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> Result<(), Errno> {
        if self.sent.len() >= BATCHES {
            self.hear()?;
        }
        let Batch { stores, pages } = std::mem::take(&mut self.batch);
        self.sent.push_back((pages, self.client.touch(&stores)?));
        Ok(())
    }

    /// The client has all of the oldest batch.
    fn hear(&mut self) -> Result<(), Errno> {
        let Some((pages, receipt)) = self.sent.pop_front() else { return Ok(()) };
        receipt.wait()?;
        for (first, count) in pages {
            self.log.take(first, count * LOG_PAGE_BYTES, &mut |_| {});
            self.done += count;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Errno> {
        if !self.batch.stores.is_empty() {
            self.send()?;
        }
        while !self.sent.is_empty() {
            self.hear()?;
        }
        Ok(())
    }
}
