//! Interrupts on their way to the guest: the client's eventfds.
//!
//! A [`Table`] is an immutable snapshot of the eventfds; a SET_IRQS makes a new one, and the session waits until each
//! reactor has taken it. What must outlive a table (an interrupt that found no eventfd) is in [`Shared`].

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// MSI-X vectors at most; see `state::region::QUEUES_MAX`.
pub(crate) const VECTORS_MAX: usize = state::region::QUEUES_MAX;

/// An eventfd of the client. It shares the open file with us, so that it may be full, and blocking.
#[derive(Debug)]
pub(crate) struct Eventfd {
    fd: OwnedFd,
    may_block: bool,
}

impl Eventfd {
    /// `None` for anything but an eventfd: a full pipe would stop the reactor that writes to it.
    pub(crate) fn checked(fd: OwnedFd) -> Option<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let may_block = !rustix::fs::fcntl_getfl(&fd).ok()?.contains(OFlags::NONBLOCK);
        (link.as_os_str() == "anon_inode:[eventfd]").then_some(Self { fd, may_block })
    }

    /// Where it is full already, the client has been told already. (A client that fills a blocking one just between the look
    /// and the write, or makes it blocking later, can still stop the reactor until it reads: not solved here.)
    pub(crate) fn signal(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if self.may_block && !matches!(poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&now)), Ok(1))
        {
            return;
        }
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

/// What outlives a table.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Vectors that fired while they had no eventfd: a bit each.
    unsent: [AtomicU64; VECTORS_MAX.div_ceil(64)],
    /// INTx was sent and not yet unmasked by the client (level-triggered: masked automatically).
    intx_masked: AtomicBool,
    /// Home has been asked to look at the level of INTx and has not yet looked.
    line_news: AtomicBool,
}

/// The eventfds as last set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// MSI-X by vector.
    msix: Vec<Option<Arc<Eventfd>>>,
    intx: Option<Arc<Eventfd>>,
    shared: Arc<Shared>,
}

impl Table {
    /// Raises an interrupt of vector `vector` as MSI-X. False when the client uses INTx: then the level counts, which only the
    /// controller knows.
    #[must_use]
    pub(crate) fn raise(&self, vector: u16) -> bool {
        if self.msix.is_empty() {
            return self.intx.is_none();
        }
        let vector = usize::from(vector);
        match self.msix.get(vector) {
            Some(Some(fd)) => fd.signal(),
            Some(None) => {
                self.shared.unsent[vector / 64].fetch_or(1 << (vector % 64), SeqCst);
            }
            None => {}
        }
        true
    }

    /// True for the first branch that has news of the level since home looked.
    pub(crate) fn is_first_line_news(&self) -> bool {
        !self.shared.line_news.swap(true, SeqCst)
    }

    /// Home looks now.
    pub(crate) fn line_news_taken(&self) {
        self.shared.line_news.store(false, SeqCst);
    }

    /// Raises INTx unless it is masked. Then it stays masked until the client unmasks it.
    pub(crate) fn raise_intx(&self) {
        if let Some(fd) = &self.intx
            && !self.shared.intx_masked.swap(true, SeqCst)
        {
            fd.signal();
        }
    }

    /// True when interrupts go out as INTx.
    pub(crate) fn uses_intx(&self) -> bool {
        self.msix.is_empty() && self.intx.is_some()
    }

    /// The client masks or unmasks INTx. After an unmask the caller raises it again if it is still pending.
    pub(crate) fn mask_intx(&self, masked: bool) {
        self.shared.intx_masked.store(masked, SeqCst);
    }

    /// The table with the INTx eventfd replaced.
    pub(crate) fn with_intx(&self, fd: Option<Eventfd>) -> Self {
        self.shared.intx_masked.store(false, SeqCst);
        Self { intx: fd.map(Arc::new), ..self.clone() }
    }

    /// The table with the eventfds of the vectors from `start` on replaced; vectors beyond the table are dropped.
    pub(crate) fn with_msix(&self, start: usize, fds: Vec<Option<Eventfd>>) -> Self {
        let mut table = self.clone();
        let end = start.saturating_add(fds.len()).min(VECTORS_MAX);
        if table.msix.len() < end {
            table.msix.resize(end, None);
        }
        for (slot, fd) in table.msix.iter_mut().skip(start).zip(fds) {
            *slot = fd.map(Arc::new);
        }
        table
    }

    /// The table with MSI-X off.
    pub(crate) fn without_msix(&self) -> Self {
        for word in &self.shared.unsent {
            word.store(0, SeqCst);
        }
        Self { msix: Vec::new(), ..self.clone() }
    }

    /// Sends what fired while a vector had no eventfd and now has one. Called when every reactor has this table.
    pub(crate) fn send_unsent(&self) {
        for (vector, fd) in self.msix.iter().enumerate() {
            let bit = 1 << (vector % 64);
            if let Some(fd) = fd
                && self.shared.unsent[vector / 64].fetch_and(!bit, SeqCst) & bit != 0
            {
                fd.signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn fired(fd: &OwnedFd) -> bool {
        rustix::io::read(fd, &mut [0; 8]).is_ok()
    }

    fn pair() -> (OwnedFd, Eventfd) {
        let ours = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let theirs = ours.try_clone().unwrap();
        (ours, Eventfd::checked(theirs).unwrap())
    }

    #[test]
    fn only_an_eventfd_is_written_to_and_never_waited_for() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(Eventfd::checked(writer).is_none());
        let full = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        Eventfd::checked(full).unwrap().signal();
    }

    #[test]
    fn an_interrupt_that_found_no_eventfd_is_sent_when_one_comes() {
        let (ours, theirs) = pair();
        let masked = Table::default().with_msix(0, vec![None, None]);
        assert!(masked.raise(1));
        let open = masked.with_msix(1, vec![Some(theirs)]);
        open.send_unsent();
        assert!(fired(&ours));
        open.send_unsent();
        assert!(!fired(&ours));
    }

    #[test]
    fn intx_fires_once_until_it_is_unmasked() {
        let (ours, theirs) = pair();
        let table = Table::default().with_intx(Some(theirs));
        assert!(!table.raise(0), "by its level");
        table.raise_intx();
        table.raise_intx();
        assert!(fired(&ours));
        table.raise_intx();
        assert!(!fired(&ours));
        table.mask_intx(false);
        table.raise_intx();
        assert!(fired(&ours));
    }

    #[test]
    fn a_vector_beyond_the_table_is_ignored() {
        let table = Table::default().with_msix(0, vec![None]);
        assert!(table.raise(u16::MAX));
        assert!(table.with_msix(usize::MAX, vec![None]).msix.len() <= VECTORS_MAX);
    }
}
