//! Interrupts on their way to the guest: the client's eventfds.
//!
//! A [`Table`] is an immutable snapshot of the eventfds; a SET_IRQS makes a new one, and the session waits until each
//! reactor has taken it. What must outlive a table (an interrupt that found no eventfd) is in [`Shared`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// MSI-X vectors at most; see `state::region::QUEUES_MAX`.
pub(crate) const VECTORS_MAX: usize = state::region::QUEUES_MAX;

/// What outlives a table.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Vectors that fired while they had no eventfd: a bit each.
    unsent: [AtomicU64; VECTORS_MAX.div_ceil(64)],
    /// INTx was sent and not yet unmasked by the client (level-triggered: masked automatically).
    intx_masked: AtomicBool,
}

/// The eventfds as last set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// MSI-X by vector.
    msix: Vec<Option<Arc<OwnedFd>>>,
    intx: Option<Arc<OwnedFd>>,
    shared: Arc<Shared>,
}

impl Table {
    /// Raises an interrupt of vector `vector`, as MSI-X when the client enabled that, else as INTx.
    pub(crate) fn raise(&self, vector: u16) {
        if self.msix.is_empty() {
            return self.raise_intx();
        }
        let vector = usize::from(vector);
        match self.msix.get(vector) {
            Some(Some(fd)) => signal(fd.as_fd()),
            Some(None) => {
                self.shared.unsent[vector / 64].fetch_or(1 << (vector % 64), SeqCst);
            }
            None => {}
        }
    }

    /// Raises INTx unless it is masked. Then it stays masked until the client unmasks it.
    pub(crate) fn raise_intx(&self) {
        if let Some(fd) = &self.intx
            && !self.shared.intx_masked.swap(true, SeqCst)
        {
            signal(fd.as_fd());
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
    pub(crate) fn with_intx(&self, fd: Option<OwnedFd>) -> Self {
        self.shared.intx_masked.store(false, SeqCst);
        Self { intx: fd.map(Arc::new), ..self.clone() }
    }

    /// The table with the eventfds of the vectors from `start` on replaced; vectors beyond the table are dropped.
    pub(crate) fn with_msix(&self, start: usize, fds: Vec<Option<OwnedFd>>) -> Self {
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
                signal(fd.as_fd());
            }
        }
    }
}

/// Fails only when the counter is full, and then the client has been told already.
fn signal(fd: BorrowedFd<'_>) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn fired(fd: &OwnedFd) -> bool {
        rustix::io::read(fd, &mut [0; 8]).is_ok()
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let ours = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let theirs = ours.try_clone().unwrap();
        (ours, theirs)
    }

    #[test]
    fn an_interrupt_that_found_no_eventfd_is_sent_when_one_comes() {
        let (ours, theirs) = pair();
        let masked = Table::default().with_msix(0, vec![None, None]);
        masked.raise(1);
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
        table.raise(0);
        table.raise(0);
        assert!(fired(&ours));
        table.raise(0);
        assert!(!fired(&ours));
        table.mask_intx(false);
        table.raise(0);
        assert!(fired(&ours));
    }

    #[test]
    fn a_vector_beyond_the_table_is_ignored() {
        let table = Table::default().with_msix(0, vec![None]);
        table.raise(u16::MAX);
        assert!(table.with_msix(usize::MAX, vec![None]).msix.len() <= VECTORS_MAX);
    }
}
