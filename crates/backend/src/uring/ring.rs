//! The rings of one thread, shared by all doors that were opened there.
//!
//! ```text
//!  door on lane 0 --entries--+                               +--results--> lane 0
//!  door on lane 1 --entries--+--> one io_uring, one enter ---+--results--> lane 1
//!  door on lane 2 --entries--+                               +--results--> lane 2
//! ```
//!
//! One system call serves every ssd of a reactor, and a successor has one ring a reactor to wait for. It also shortens a killed
//! engine's end: the kernel goes back and forth between the rings of a dying thread, and each costs it a wait.
#![expect(unsafe_code, reason = "io_uring: the kernel reads and writes memory that is named in the entries")]
// UNSAFETY: what an entry names is the promise of the door that pushed it (see the module above), which gives up its lane
// only when the kernel holds no entry of it.

use crate::RingHolder;
use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, Submitter};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// Entries that wait for the next system call.
const ENTRIES: u32 = 512;
/// Requests that the doors of a ring may have in the kernel together: as many as its completion ring has entries, so that
/// it cannot overflow. A door that has no room gets another ring.
const ROOM: u32 = 16_384;
/// Doors of a ring, and files in its table.
const LANES_MAX: usize = 1024;
/// Buffers in its table: as many as the kernel allows.
const BUFFERS_MAX: u16 = 16_384;

/// The rings of one thread. They stay on it, and live as long as it or the last door.
pub struct Rings {
    holder: Option<Arc<dyn RingHolder>>,
    open: RefCell<Vec<Rc<Ring>>>,
}

impl Rings {
    /// None yet: a ring is made with the first door that needs it. `holder` is told of each.
    #[must_use]
    pub fn new(holder: Option<Arc<dyn RingHolder>>) -> Rings {
        Rings { holder, open: RefCell::default() }
    }

    /// There is something to poll for of which [`wake_fd`](block::Backend::wake_fd) says nothing, so do not sleep on it now: a door
    /// polled and met results of others, or the kernel did not take all entries.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let ready = |ring: &Rc<Ring>| {
            let shared = ring.shared.borrow();
            shared.unread > 0 || shared.must_enter
        };
        self.open.borrow().iter().any(ready)
    }

    /// Makes the first ring before a door asks for it: that takes most of a millisecond, for which guests would wait.
    ///
    /// # Errors
    /// As for a door.
    pub fn prepare(&self) -> io::Result<()> {
        let mut open = self.open.borrow_mut();
        if open.is_empty() {
            open.push(Rc::new(Ring::new(self.holder.clone())?));
        }
        Ok(())
    }

    /// A place for a door with at most `depth` requests in the kernel, and its file.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or has no memory for it; the holder refuses the ring.
    pub(super) fn lane(&self, depth: u16, file: RawFd) -> io::Result<Lane> {
        let mut open = self.open.borrow_mut();
        if let Some(lane) = open.iter().find_map(|ring| ring.lane(depth, file)) {
            return lane;
        }
        let ring = Rc::new(Ring::new(self.holder.clone())?);
        open.push(Rc::clone(&ring));
        ring.lane(depth, file).unwrap_or_else(|| Err(io::ErrorKind::QuotaExceeded.into()))
    }
}

impl core::fmt::Debug for Rings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rings").field("open", &self.open.borrow().len()).finish_non_exhaustive()
    }
}

/// One ring.
struct Ring {
    shared: RefCell<Shared>,
    /// Who has a duplicate.
    holder: Option<Arc<dyn RingHolder>>,
}

struct Shared {
    io: IoUring,
    /// Entries in the submission ring that the kernel has not taken.
    waiting: u32,
    /// The last enter left entries: the next poll has to enter. Entries that wait for their first enter are no reason.
    must_enter: bool,
    /// Results by lane. `None`: a free lane.
    lanes: Vec<Option<VecDeque<(u32, i32)>>>,
    /// Results on all lanes.
    unread: usize,
    room: u32,
    /// Free entries of the table of buffers. `None`: the kernel has no table.
    buffers: Option<Vec<u16>>,
}

impl Ring {
    fn new(holder: Option<Arc<dyn RingHolder>>) -> io::Result<Ring> {
        let io = open()?;
        io.submitter().register_files(&[-1; LANES_MAX])?;
        if let Some(holder) = &holder {
            // SAFETY: the descriptor is the ring's, which outlives the borrow.
            holder.opened(unsafe { BorrowedFd::borrow_raw(io.as_raw_fd()) })?;
        }
        let shared = Shared {
            io,
            waiting: 0,
            must_enter: false,
            lanes: Vec::new(),
            unread: 0,
            room: ROOM,
            buffers: None,
        };
        Ok(Ring { shared: RefCell::new(shared), holder })
    }

    /// `None`: it is full.
    fn lane(self: &Rc<Self>, depth: u16, file: RawFd) -> Option<io::Result<Lane>> {
        let mut shared = self.shared.borrow_mut();
        let free = shared.lanes.iter().position(Option::is_none).unwrap_or(shared.lanes.len());
        if free >= LANES_MAX || shared.room < u32::from(depth) {
            return None;
        }
        let index = u32::try_from(free).ok()?;
        if let Err(error) = shared.io.submitter().register_files_update(index, &[file]) {
            return Some(Err(error));
        }
        if free == shared.lanes.len() {
            shared.lanes.push(None);
        }
        shared.lanes[free] = Some(VecDeque::with_capacity(usize::from(depth)));
        shared.room -= u32::from(depth);
        Some(Ok(Lane { ring: Rc::clone(self), index, depth }))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Some(holder) = self.holder.take() {
            // SAFETY: the descriptor is the ring's, which outlives the borrow.
            holder.closing(unsafe { BorrowedFd::borrow_raw(self.shared.get_mut().io.as_raw_fd()) });
        }
    }
}

impl Shared {
    /// Gives the kernel what waits, and lets it finish what it has deferred to this thread.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: the entries name memory as stated at the top of the module; no signal mask is passed.
        let taken = unsafe { self.io.submitter().enter::<libc::sigset_t>(self.waiting, want, flags, None) };
        if let Ok(taken) = taken {
            self.waiting = self.waiting.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        }
        // After EINTR, or EAGAIN and EBUSY for want of kernel memory, what waits still waits.
        self.must_enter = self.waiting > 0;
        taken.map(drop)
    }

    fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the entry names memory as stated at the top of the module.
        let pushed = unsafe { self.io.submission().push(entry) }.is_ok();
        self.waiting += u32::from(pushed);
        pushed
    }

    /// Has the kernel deferred work to this thread?
    fn wants_enter(&mut self) -> bool {
        let queue = self.io.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Enters the kernel if it has to be, and lays each result on its lane.
    fn turn(&mut self) {
        if self.must_enter || self.io.completion().is_empty() && self.wants_enter() {
            // An error leaves `must_enter`, and the next turn tries again.
            let _ = self.enter(0);
        }
        for entry in self.io.completion() {
            let (lane, slot) = places(entry.user_data());
            if let Some(Some(results)) = self.lanes.get_mut(lane) {
                results.push_back((slot, entry.result()));
                self.unread += 1;
            }
        }
    }
}

/// A door's place at a ring. Given up with no entry in the kernel.
pub(super) struct Lane {
    ring: Rc<Ring>,
    index: u32,
    depth: u16,
}

impl Lane {
    /// The file's place in the ring's table.
    pub(super) fn file(&self) -> io_uring::types::Fixed {
        io_uring::types::Fixed(self.index)
    }

    /// Queues the entry of a slot for the next enter. `false`: there is no room, and the kernel takes nothing now.
    #[must_use]
    pub(super) fn push(&self, slot: u32, entry: Entry) -> bool {
        let entry = entry.user_data(u64::from(self.index) << 32 | u64::from(slot));
        let mut shared = self.ring.shared.borrow_mut();
        shared.push(&entry) || shared.enter(0).is_ok() && shared.push(&entry)
    }

    /// Gives the kernel what waits, of all lanes.
    pub(super) fn kick(&self) {
        let mut shared = self.ring.shared.borrow_mut();
        if shared.waiting > 0 {
            // An error leaves `must_enter`, and the next turn tries again.
            let _ = shared.enter(0);
        }
    }

    /// Fetches results, for all lanes.
    pub(super) fn turn(&self) {
        self.ring.shared.borrow_mut().turn();
    }

    /// Waits for a result of any lane.
    ///
    /// # Errors
    /// As `io_uring_enter`.
    pub(super) fn wait(&self) -> io::Result<()> {
        self.ring.shared.borrow_mut().enter(1)
    }

    /// The next result: its slot, and what the kernel said.
    pub(super) fn result(&self) -> Option<(u32, i32)> {
        let mut shared = self.ring.shared.borrow_mut();
        let result = shared.lanes.get_mut(self.index as usize)?.as_mut()?.pop_front()?;
        shared.unread -= 1;
        Some(result)
    }

    /// The descriptor that becomes readable with a result of any lane.
    pub(super) fn wake_fd(&self) -> RawFd {
        self.ring.shared.borrow().io.as_raw_fd()
    }

    /// Makes the table of buffers, if there is none.
    ///
    /// # Errors
    /// The kernel takes none.
    pub(super) fn prepare_buffers(&self) -> io::Result<()> {
        let mut shared = self.ring.shared.borrow_mut();
        if shared.buffers.is_none() {
            shared.io.submitter().register_buffers_sparse(u32::from(BUFFERS_MAX))?;
            shared.buffers = Some((0..BUFFERS_MAX).rev().collect());
        }
        Ok(())
    }

    /// Does something with the table of buffers and its free entries. `None`: there is no table.
    pub(super) fn with_buffers<T>(&self, act: impl FnOnce(&Submitter<'_>, &mut Vec<u16>) -> T) -> Option<T> {
        let shared = &mut *self.ring.shared.borrow_mut();
        let free = shared.buffers.as_mut()?;
        Some(act(&shared.io.submitter(), free))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut shared = self.ring.shared.borrow_mut();
        // The ring lives on; the file, and with it its lock, shall be free now.
        if let Err(error) = shared.io.submitter().register_files_update(self.index, &[-1]) {
            tracing::warn!(%error, "a drive stays open until its reactor ends");
        }
        let lane = shared.lanes.get_mut(self.index as usize).and_then(Option::take);
        shared.unread -= lane.map_or(0, |results| results.len());
        shared.room += u32::from(self.depth);
    }
}

/// Lane and slot.
fn places(user_data: u64) -> (usize, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let slot = user_data as u32;
    (usize::try_from(user_data >> 32).unwrap_or(usize::MAX), slot)
}

/// The best kind of ring this kernel has.
///
/// Not `DEFER_TASKRUN`: nobody asleep on the descriptor of such a ring is woken (seen on Linux 6.18), and it was no
/// faster here.
fn open() -> io::Result<IoUring> {
    let plain = || {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(ROOM).dontfork();
        builder
    };
    let cooperative = || {
        let mut builder = plain();
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        builder
    };
    match cooperative().setup_single_issuer().build(ENTRIES) {
        // Before Linux 6.0, and before 5.19.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            cooperative().build(ENTRIES).or_else(|_| plain().build(ENTRIES))
        }
        other => other,
    }
}
