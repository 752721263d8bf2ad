//! What each reactor did, in shared memory that any process of this user may map and read at any time. `--stats PATH` makes
//! PATH a symbolic link to it; it is gone with the daemon.
//!
//! Little-endian 64-bit words: 0 magic `GDWSTAT1`, 1 number of reactors, then eight words a reactor: busy ns (turns that
//! found work), idle ns, commands taken, turns, sleeps, and three reserved. Counters only grow. Each word has one writer.

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
    reserved: [AtomicU64; 3],
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

/// Opens the page for `reactors` reactors and makes `path` a link to it. Only a link that is there is replaced: anything else may
/// be somebody's file.
pub(crate) fn open(path: Option<&Path>, reactors: usize) -> std::io::Result<Vec<Counters>> {
    let page = SharedRegion::<StatsPage>::memfd("godwit-stats")?;
    if let (Some(path), Some(fd)) = (path, page.fd()) {
        if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
            std::fs::remove_file(path)?;
        }
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()), path)?;
    }
    page.reactors.store(reactors as u64, Relaxed);
    page.magic.store(MAGIC, Relaxed);
    let page = Arc::new(page);
    Ok((0..reactors).map(|index| Counters { page: Arc::clone(&page), index }).collect())
}
