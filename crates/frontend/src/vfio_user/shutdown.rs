//! The handle that stops a listener and its session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// An eventfd that, once triggered, stays readable. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<OwnedFd>);

impl Shutdown {
    /// A handle not yet triggered.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Stops everyone who watches this handle or a clone of it, now and later.
    pub fn trigger(&self) {
        // The only failure is a full counter, and a full counter is readable, too.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// It has been triggered.
    pub fn is_triggered(&self) -> bool {
        let mut fds = [PollFd::new(&*self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
