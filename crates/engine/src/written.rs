//! What an ssd's controller writes into its guest, logged for this engine itself: QEMU up to 11.1 copies a guest with a vfio-user device and asks
//! nobody what the device has written. Who moves such a guest has it told. Or for a management controller, whose host asks ([`managed`]).
//!
//! ```text
//!  arm: a log, kept by the keeper --> every map that the ssd's home adopts has it --> take, again and again --> disarm
//! ```
//! One at a time: a client that asked for a log of its own ([`crate::session`]) keeps these out, and the other way round. Armed, it outlives
//! sessions and engines. A device that stands still writes nothing; its next home adopts its map with the log.

pub(crate) mod managed;
mod touch;

pub(crate) use touch::touch;

use crate::keeper::PowerCycle;
use crate::message::{Address, Call};
use crate::session::{call_home, mapping_errno};
use crate::ssd::Ssd;
use link::control::Role;
use managed::Tracking;
use memory::{Access, Iova, Mapping, MemoryMap, SharedRegion, WriteLog};
use rustix::io::Errno;
use rustix::thread::Timespec;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All memory below 2 TiB.
const COVERED_BYTES: u64 = 1 << 41;
const LOG_BYTES: u64 = COVERED_BYTES / memory::LOG_PAGE_BYTES / 8;
const ARMED: u64 = 1;
/// How often a home is asked that has no time now.
const TRIES: u32 = 3000;

/// The file: a word that says whether the log is armed and for whom, what a management controller tracks, and a page further the marks. Sparse.
#[derive(zerocopy::FromBytes)]
#[repr(C, align(4096))]
struct LogFile {
    armed: AtomicU64,
    tracked: [AtomicU64; 511],
    marks: [AtomicU64; MARK_WORDS],
}

/// Of the file.
const MARK_WORDS: usize = 1 << 23;
const MARKS_AT: u64 = 4096;
const _: () = assert!(size_of::<LogFile>() as u64 == MARKS_AT + LOG_BYTES);

/// A log that is armed.
struct Armed {
    file: SharedRegion<LogFile>,
    log: Arc<WriteLog>,
}

impl Armed {
    fn over(file: SharedRegion<LogFile>) -> Result<Self, Errno> {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let fd = file.fd().ok_or(Errno::BADF)?.try_clone_to_owned().map_err(errno)?;
        let mapping =
            Mapping::new(fd, MARKS_AT, LOG_BYTES, Access::BOTH).map_err(|error| mapping_errno(&error))?;
        let log = WriteLog::of_ranges(mapping, &[(Iova(0), COVERED_BYTES)]).map_err(|_| Errno::INVAL)?;
        Ok(Self { file, log: Arc::new(log) })
    }
}

#[derive(Default)]
enum Whose {
    #[default]
    Nobodys,
    Clients,
    Engines(Armed),
    Managers(Armed, Arc<Tracking>),
}

impl Whose {
    /// A log of this engine, for whomever.
    fn armed(&self) -> Option<&Armed> {
        match self {
            Self::Engines(armed) | Self::Managers(armed, _) => Some(armed),
            Self::Nobodys | Self::Clients => None,
        }
    }
}

#[derive(Default)]
struct State {
    whose: Whose,
    /// What the ssd's home has of its guest's memory.
    memory: Vec<(Iova, u64)>,
    /// And all that it reaches, by its client, too.
    reached: Vec<(Iova, u64)>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Written {
    state: Mutex<State>,
}

impl Written {
    /// As a predecessor left it.
    pub(crate) fn restore(&self, file: OwnedFd) {
        let Ok(file) = SharedRegion::<LogFile>::from_fd(file) else { return };
        let whose = match file.armed.load(Ordering::Acquire) {
            ARMED => Armed::over(file).map(Whose::Engines),
            managed::ARMED => Tracking::found(&file)
                .and_then(|tracking| Ok(Whose::Managers(Armed::over(file)?, Arc::new(tracking)))),
            _ => return,
        };
        match whose {
            Ok(whose) => self.state().whose = whose,
            Err(error) => tracing::error!(%error, "a log of written pages is lost"),
        }
    }

    /// A client begins to log on its own.
    ///
    /// # Errors
    /// EBUSY: this engine has a log.
    pub(crate) fn begin_clients(&self) -> Result<(), Errno> {
        let mut state = self.state();
        match state.whose {
            Whose::Engines(_) | Whose::Managers(..) => return Err(Errno::BUSY),
            Whose::Nobodys | Whose::Clients => state.whose = Whose::Clients,
        }
        Ok(())
    }

    /// It logs no more.
    pub(crate) fn end_clients(&self) {
        let mut state = self.state();
        if matches!(state.whose, Whose::Clients) {
            state.whose = Whose::Nobodys;
        }
    }

    /// The memory as the ssd's home is to use it.
    pub(crate) fn on(&self, map: Arc<MemoryMap>) -> Arc<MemoryMap> {
        let mut state = self.state();
        state.memory = mapped(&map).collect();
        state.reached = map.regions().map(|region| (region.iova(), region.len())).collect();
        match (&state.whose, state.whose.armed()) {
            (_, Some(armed)) if map.log().is_none_or(|log| !Arc::ptr_eq(log, &armed.log)) => {
                Arc::new(map.with_log(Some(Arc::clone(&armed.log))))
            }
            (Whose::Nobodys, _) if map.log().is_some() => Arc::new(map.with_log(None)),
            _ => map,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every write into guest memory that is answered after this returned is logged.
///
/// # Errors
/// EBUSY: it is logged already, for this engine or its client, or the home has no time. What making or keeping a log comes to.
pub(crate) fn arm(ssd: &Ssd, home: &Address) -> anyhow::Result<()> {
    let file = SharedRegion::<LogFile>::memfd(&format!("godwit-{}-written", ssd.name))?;
    file.armed.store(ARMED, Ordering::Release);
    let fd = file.fd().map(|fd| fd.try_clone_to_owned()).transpose()?;
    {
        let mut state = ssd.written.state();
        let logged = matches!(state.whose, Whose::Managers(..));
        let busy = || anyhow::Error::from(Errno::BUSY);
        anyhow::ensure!(!logged, busy().context("a migration management controller tracks what it writes"));
        anyhow::ensure!(matches!(state.whose, Whose::Nobodys), busy());
        state.whose = Whose::Engines(Armed::over(file)?);
    }
    let armed = begin(ssd, home, fd);
    if armed.is_err() {
        let _ = disarm(ssd, home);
    }
    armed
}

/// What has been armed takes effect.
fn begin(ssd: &Ssd, home: &Address, file: Option<OwnedFd>) -> anyhow::Result<()> {
    // A successor finds it with the ssd, before anything is written.
    if let (Some(keeper), Some(file)) = (&ssd.keeper, file) {
        let parts = vec![(Role::WRITTEN, file)];
        keeper.power_on(ssd.id.0, PowerCycle { ended: None, parts, record: None })?;
    }
    Ok(adopt_anew(home, ssd)?)
}

/// Says which pages were written since they were last taken, by their addresses, and forgets them: each when `page` is done with it. Copy them after that.
///
/// # Errors
/// EINVAL: it is not armed. E2BIG: the guest has memory beyond 2 TiB, of which nothing is known.
pub(crate) fn take(ssd: &Ssd, page: &mut impl FnMut(u64)) -> Result<(), Errno> {
    let (log, memory) = {
        let state = ssd.written.state();
        let Whose::Engines(armed) = &state.whose else { return Err(Errno::INVAL) };
        (Arc::clone(&armed.log), state.memory.clone())
    };
    if !memory.iter().all(is_covered) {
        return Err(Errno::TOOBIG);
    }
    for (iova, len) in memory {
        log.take(iova, len, &mut |at| page(at.0));
    }
    Ok(())
}

fn mapped(map: &MemoryMap) -> impl Iterator<Item = (Iova, u64)> {
    map.regions().filter(|region| !region.is_remote()).map(|region| (region.iova(), region.len()))
}

fn is_covered((iova, len): &(Iova, u64)) -> bool {
    iova.0.checked_add(*len).is_some_and(|end| end <= COVERED_BYTES)
}

/// Ends it.
///
/// # Errors
/// EINVAL: it was not armed. EBUSY: the home has no time, and adopts its memory without a log when it has some.
pub(crate) fn disarm(ssd: &Ssd, home: &Address) -> Result<(), Errno> {
    {
        let mut state = ssd.written.state();
        let Whose::Engines(armed) = &state.whose else { return Err(Errno::INVAL) };
        armed.file.armed.store(0, Ordering::Release);
        state.whose = Whose::Nobodys;
    }
    adopt_anew(home, ssd)
}

/// The home adopts its memory once more, as it is to be used now; done when no I/O uses it as it was.
fn adopt_anew(home: &Address, ssd: &Ssd) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match call_home(home, ssd, Call::Log) {
            Err(Errno::AGAIN) => {}
            // Nobody is at home: the device stands still, or has no power.
            Ok(_) | Err(Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
    }
    Err(Errno::BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(file: &SharedRegion<LogFile>) -> Written {
        let written = Written::default();
        written.restore(file.fd().expect("a memfd").try_clone_to_owned().expect("a descriptor"));
        written
    }

    #[test]
    fn a_log_that_a_predecessor_armed_goes_on_and_one_that_it_disarmed_does_not() {
        let file = SharedRegion::<LogFile>::memfd("test").expect("a memfd");
        let map = Arc::new(MemoryMap::empty());
        assert!(logged(&file).on(Arc::clone(&map)).log().is_none());
        file.armed.store(ARMED, Ordering::Release);
        let before = logged(&file).on(Arc::clone(&map));
        before.mark(Iova(3 * 4096), 4096);
        let written = logged(&file);
        assert_eq!(written.begin_clients(), Err(Errno::BUSY));
        let after = written.on(before);
        let log = after.log().expect("it is armed");
        let mut pages = Vec::new();
        log.take(Iova(0), 1 << 20, &mut |page| pages.push(page.0));
        assert_eq!(pages, [3 * 4096]);
        // As it was settled with, and no other generation.
        let again = written.on(Arc::clone(&after));
        assert!(Arc::ptr_eq(&again, &after));
    }

    #[test]
    fn a_clients_log_keeps_an_engines_out() {
        let written = Written::default();
        written.begin_clients().expect("nobody's");
        written.begin_clients().expect("of the same client, by a message that came again");
        let file = SharedRegion::<LogFile>::memfd("test").expect("a memfd");
        let armed = Armed::over(file).expect("mapped");
        let map = Arc::new(MemoryMap::empty().with_log(Some(armed.log)));
        assert!(Arc::ptr_eq(&written.on(Arc::clone(&map)), &map));
        written.end_clients();
        assert!(written.on(map).log().is_none());
    }
}
