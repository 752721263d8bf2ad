//! An ssd's blocks as what a copy reads and what it arrives in.

use super::ports::Ports;
use crate::crew::Crew;
use crate::drive::Drive;
use crate::message::Message;
use crate::ssd::Ssd;
use crate::terms::Hold;
use anyhow::{Context, ensure};
use block::Range;
use dirty::{Map, PAGE_BYTES};
use std::io;
use std::ops::Range as Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use transfer::source::{Content, Run, Sink, Source};

/// How long what is at the drive may take to end. A guest's own patience with its drive is longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Made zero by one request.
const ZERO_BYTES: u64 = 1 << 30;
/// The same of a landing that may be ended meanwhile, which waits for no more than this.
const EMPTIED_BYTES: u64 = 64 << 20;
/// Read by one request to see that it is empty.
const VERIFIED_BYTES: usize = 1 << 20;

/// Pages of an ssd. `None`: it has a size that is no whole number of them.
pub(crate) fn pages_of(ssd: &Ssd) -> Option<u64> {
    let bytes = ssd.limits().capacity_bytes;
    bytes.is_multiple_of(PAGE_BYTES).then_some(bytes / PAGE_BYTES)
}

/// An ssd that is served, and copied meanwhile. Dropped, its writes are not noted any more.
pub(crate) struct Blocks {
    ssd: Arc<Ssd>,
    crew: Arc<Crew>,
    map: Arc<Map>,
    ports: Ports,
    streams: usize,
    layer: Mutex<Layer>,
}

/// What is read now: the ssd, or what it was.
#[derive(Default)]
struct Layer {
    /// A snapshot.
    past: Option<Arc<Ports>>,
    /// What it has elsewhere than the one before, and was not asked for yet. `None`: all that there is.
    differs: Option<Vec<Bytes<u64>>>,
}

impl Blocks {
    /// # Errors
    /// No thread or memory is left.
    pub(crate) fn new(ssd: &Arc<Ssd>, crew: &Arc<Crew>, pages: u64, streams: usize) -> io::Result<Self> {
        let map = Arc::new(Map::new(pages).map_err(io::Error::other)?);
        let (ssd, crew, ports) = (Arc::clone(ssd), Arc::clone(crew), Ports::open(ssd, streams)?);
        Ok(Self { ssd, crew, map, ports, streams, layer: Mutex::default() })
    }

    fn layer(&self) -> MutexGuard<'_, Layer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a snapshot from here on, or the ssd again, and of it only what is not as in a snapshot before. Returns where that is, and where it is zeros by now.
    ///
    /// # Errors
    /// There is no such snapshot, or no thread is left.
    pub(crate) fn turn_to(
        &self,
        before: Option<&str>,
        snapshot: Option<&str>,
    ) -> anyhow::Result<Vec<Bytes<u64>>> {
        let volume = self.ssd.drive.volume().context("its drive is no pool's")?;
        let past = snapshot.map(|name| {
            let drive = Drive::Pooled(volume.snapshot(name)?);
            anyhow::Ok(Arc::new(Ports::open_to(&self.ssd, Some(drive), self.streams)?))
        });
        let past = past.transpose()?;
        // Of the ssd: what is written from before this on is noted.
        let changes = volume.changes(before, snapshot)?;
        let mapped = changes.iter().filter(|change| change.mapped);
        let differs = Some(mapped.map(|change| change.bytes.clone()).collect());
        *self.layer() = Layer { past, differs };
        Ok(changes.into_iter().map(|change| change.bytes).collect())
    }

    /// The other host has a snapshot.
    ///
    /// # Errors
    /// That cannot be written down.
    pub(crate) fn went(&self, snapshot: &str, migration: [u8; 16]) -> anyhow::Result<()> {
        self.ssd.drive.volume().context("its drive is no pool's")?.mark_went(snapshot, migration)
    }

    /// Lets nothing of the guest's begin any more, and returns when nothing is at the drive and all is noted.
    ///
    /// # Errors
    /// It takes too long; then the guest goes on.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.ssd.terms.set_hold(Hold::Frozen);
        tell(&self.ssd, &self.crew).inspect_err(|_| thaw(&self.ssd, &self.crew))
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.ssd.watch.set(None);
        let _ = tell(&self.ssd, &self.crew);
    }
}

/// The guest goes on.
pub(crate) fn thaw(ssd: &Ssd, crew: &Crew) {
    hold(ssd, Hold::Open, crew);
}

/// Tells all seats what is so from now on, of their watch too, and waits for none.
pub(crate) fn hold(ssd: &Ssd, hold: Hold, crew: &Crew) {
    ssd.terms.set_hold(hold);
    let (heard, _) = channel();
    crew.tell_all(|| Message::Watch(ssd.id, heard.clone()));
}

/// Tells all seats what has changed, and waits until what was at the drive before they heard it has ended.
///
/// # Errors
/// It does not end in time.
pub(crate) fn tell(ssd: &Ssd, crew: &Crew) -> io::Result<()> {
    let (heard, all) = channel();
    crew.tell_all(|| Message::Watch(ssd.id, heard.clone()));
    drop(heard);
    match all.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "its drive does not end what it has begun (or writes wait for space in its pool); migrate it when it does",
        )),
    }
}

impl Source for Blocks {
    fn pages(&self) -> u64 {
        self.map.pages()
    }

    fn arm(&self) -> io::Result<()> {
        self.ssd.watch.set(Some(Arc::clone(&self.map)));
        tell(&self.ssd, &self.crew)
    }

    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        if let Some(differs) = &mut self.layer().differs {
            differs.drain(..).for_each(|bytes| each(bytes.start / PAGE_BYTES, pages_in(&bytes)));
            return Ok(());
        }
        let end_bytes = self.pages() * PAGE_BYTES;
        self.ssd.drive.allocated(end_bytes, &mut |start, end| {
            let (first, end) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
            each(first, end.saturating_sub(first));
        })
    }

    fn harvest(&self, into: &Map) -> io::Result<()> {
        let mut layer = self.layer();
        for bytes in layer.differs.iter_mut().flat_map(|differs| differs.drain(..)) {
            into.mark(bytes.start / PAGE_BYTES, pages_in(&bytes));
        }
        // What is written to the ssd meanwhile is not sent as a snapshot's, and waits.
        if layer.past.is_some() {
            return Ok(());
        }
        drop(layer);
        self.map.take(|block, marks| {
            let base = block as u64 * dirty::BLOCK_PAGES;
            marks.runs(|first, pages| into.mark(base + u64::from(first), pages.into()));
        });
        Ok(())
    }

    fn read(&self, run: Run, out: &mut [u8]) -> io::Result<Content> {
        let past = self.layer().past.clone();
        past.as_deref().unwrap_or(&self.ports).read(run.first() * PAGE_BYTES, out).map(|()| Content::Bytes)
    }
}

fn pages_in(bytes: &Bytes<u64>) -> u64 {
    (bytes.end - bytes.start).div_ceil(PAGE_BYTES)
}

fn pieces(bytes: Bytes<u64>, most: u64) -> impl Iterator<Item = Range> {
    let Bytes { start, end } = bytes;
    let step = usize::try_from(most).unwrap_or(usize::MAX);
    (start..end).step_by(step).map(move |at| Range { start_bytes: at, len_bytes: most.min(end - at) })
}

/// An ssd that nobody serves, and that a copy arrives in.
pub(crate) struct Landing {
    ports: Ports,
    pages: u64,
    ends: AtomicBool,
}

impl Landing {
    /// Its space reads as zeros when this returns.
    ///
    /// # Errors
    /// The drive's; or no thread is left.
    pub(crate) fn new(ssd: &Arc<Ssd>, pages: u64, streams: usize) -> io::Result<Self> {
        let this = Self { ports: Ports::open(ssd, streams)?, pages, ends: AtomicBool::new(false) };
        this.clear()?;
        Ok(this)
    }

    /// Nothing of what arrived can be read any more.
    ///
    /// # Errors
    /// The drive's.
    pub(crate) fn clear(&self) -> io::Result<()> {
        pieces(0..self.pages * PAGE_BYTES, ZERO_BYTES).try_for_each(|piece| self.ports.zero(piece))?;
        self.ports.flush()
    }

    /// What is being made empty stops soon, with an error.
    pub(crate) fn end(&self) {
        self.ends.store(true, Ordering::Release);
    }

    /// A part of it reads as zeros when this returns.
    ///
    /// # Errors
    /// The drive's, or it is not a part of it, or it ends.
    pub(crate) fn empty(&self, bytes: Bytes<u64>) -> io::Result<()> {
        let is_part = |at: u64| at.is_multiple_of(PAGE_BYTES) && at <= self.pages * PAGE_BYTES;
        if !is_part(bytes.start) || !is_part(bytes.end) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        pieces(bytes, EMPTIED_BYTES).try_for_each(|piece| match self.ends.load(Ordering::Acquire) {
            true => Err(io::Error::other("no blocks of it are taken here any more")),
            false => self.ports.zero(piece),
        })
    }

    /// Reads all that the drive may have, which is nothing.
    ///
    /// # Errors
    /// The drive's; or something is there.
    pub(crate) fn verify_empty(&self, ssd: &Ssd) -> anyhow::Result<()> {
        let mut runs = Vec::new();
        ssd.drive.allocated(self.pages * PAGE_BYTES, &mut |start, end| runs.push(start..end))?;
        let mut bytes = vec![0; VERIFIED_BYTES];
        for run in runs {
            for start in run.clone().step_by(VERIFIED_BYTES) {
                let len = usize::try_from(run.end - start).unwrap_or(VERIFIED_BYTES).min(VERIFIED_BYTES);
                let part = &mut bytes[..len];
                self.ports.read(start, part)?;
                ensure!(part.iter().all(|byte| *byte == 0), "its drive still has something at byte {start}");
            }
        }
        Ok(())
    }
}

impl Sink for Landing {
    fn write(&self, run: Run, bytes: &[u8]) -> io::Result<()> {
        self.ports.write(run.first() * PAGE_BYTES, bytes)
    }

    /// Zeros that were written and space that was never used are the same to whoever reads them.
    fn zero(&self, run: Run, _hole: bool) -> io::Result<()> {
        self.ports.zero(Range { start_bytes: run.first() * PAGE_BYTES, len_bytes: run.bytes() })
    }

    fn flush(&self) -> io::Result<()> {
        self.ports.flush()
    }
}
