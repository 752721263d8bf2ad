//! What each reactor did, in shared memory that any process of this user may map and read at any time. `--stats PATH` makes
//! PATH a symbolic link to it; it is gone with the daemon.
//!
//! Little-endian 64-bit words: 0 magic `GDWSTAT1`, 1 number of reactors, then eight words a reactor: busy ns (turns that
//! found work), idle ns, commands taken, turns, sleeps, and how things are: seats (ssds that have something there), queue pairs, and 1 if
//! it is on duty. Counters only grow. Each word has one writer.

use memory::SharedRegion;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zerocopy::FromBytes;

const MAGIC: u64 = u64::from_le_bytes(*b"GDWSTAT1");

/// The page.
#[derive(FromBytes)]
#[repr(C)]
pub struct StatsPage {
    magic: AtomicU64,
    reactors: AtomicU64,
    of: [ReactorStats; api::config::REACTORS_MAX],
}

/// One reactor's counters.
#[derive(FromBytes)]
#[repr(C)]
pub struct ReactorStats {
    /// Time in turns that found work.
    pub busy_ns: AtomicU64,
    /// Time in turns that found none, asleep or awake.
    pub idle_ns: AtomicU64,
    /// Commands taken from I/O submission queues.
    pub commands: AtomicU64,
    /// Turns.
    pub turns: AtomicU64,
    /// Times it went to sleep.
    pub sleeps: AtomicU64,
    /// Ssds that have something there.
    pub seats: AtomicU64,
    /// Queue pairs and rings.
    pub pairs: AtomicU64,
    /// It is on duty.
    pub on_duty: AtomicU64,
}

/// One reactor's handle on the page.
#[derive(Clone)]
pub(crate) struct Counters {
    page: Arc<SharedRegion<StatsPage>>,
    index: usize,
}

impl Counters {
    pub(crate) fn get(&self) -> &ReactorStats {
        &self.page.of[self.index]
    }
}

/// Adds to a counter that has one writer: a plain store, no locked instruction.
#[inline]
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(value), Relaxed);
}

/// The page, as its owner has it.
pub(crate) struct Stats {
    page: Arc<SharedRegion<StatsPage>>,
}

impl Stats {
    /// Makes the page, and `path` a link to it. Only a link that is there is replaced: anything else may be somebody's file.
    pub(crate) fn open(path: Option<&Path>) -> std::io::Result<Self> {
        let page = SharedRegion::<StatsPage>::memfd("godwit-stats")?;
        if let (Some(path), Some(fd)) = (path, page.fd()) {
            if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
                std::fs::remove_file(path)?;
            }
            std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()), path)?;
        }
        page.magic.store(MAGIC, Relaxed);
        Ok(Self { page: Arc::new(page) })
    }

    /// For a reactor's thread, which is counted among the reactors from now on.
    pub(crate) fn counters(&self, index: usize) -> Counters {
        self.page.reactors.fetch_max(index as u64 + 1, Relaxed);
        Counters { page: Arc::clone(&self.page), index }
    }

    /// What a reactor counts.
    pub(crate) fn of(&self, index: usize) -> Option<&ReactorStats> {
        self.page.of.get(index)
    }
}
