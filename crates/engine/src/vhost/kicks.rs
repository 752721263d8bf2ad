//! The drivers' kicks, for a reactor that sleeps.
//!
//! Eventfds of clients are watched edge-triggered: a driver that kicks without need costs one look and no loop, and nothing here
//! ever waits for a client's descriptor. What is in them is read all the same, because a client that takes a ring back takes what
//! is left in its eventfd for a kick.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Eventfds looked at after a sleep; the others wake the reactor again.
const EVENTS_MAX: usize = 32;

/// See the module.
pub(super) struct Kicks {
    epoll: OwnedFd,
    /// By queue.
    fds: Vec<Option<Arc<OwnedFd>>>,
}

impl Kicks {
    pub(super) fn new(queues: u16) -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, fds: vec![None; usize::from(queues)] })
    }

    /// Watches this eventfd for the queue and the one before no more. One that has been signalled counts at once.
    pub(super) fn set(&mut self, queue: u16, fd: Option<Arc<OwnedFd>>) -> Result<(), Errno> {
        let place = self.fds.get_mut(usize::from(queue)).ok_or(Errno::INVAL)?;
        if let Some(old) = place.take() {
            let _ = epoll::delete(&self.epoll, &*old);
            read(&old);
        }
        if let Some(new) = &fd {
            let data = EventData::new_u64(u64::from(queue));
            match epoll::add(&self.epoll, &**new, data, EventFlags::IN | EventFlags::ET) {
                // Two queues with one eventfd: whichever was first looks for both, as every wake-up does.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        *place = fd;
        Ok(())
    }

    /// Takes the kicks that came.
    pub(super) fn take(&self) {
        let mut events =
            [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut events, Some(&now)).unwrap_or(0);
        for event in events.iter().take(count) {
            let queue = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if let Some(Some(fd)) = self.fds.get(queue) {
                read(fd);
            }
        }
    }
}

impl AsFd for Kicks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Empties an eventfd without waiting, also one that blocks. Where the kernel cannot do that, it stays full, which does no harm here.
fn read(fd: &OwnedFd) {
    let mut value = [0; 8];
    // As read(2): an offset of -1.
    let _ = preadv2(fd, &mut [IoSliceMut::new(&mut value)], u64::MAX, ReadWriteFlags::NOWAIT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    fn ready(fd: &impl AsFd) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    #[test]
    fn a_kick_of_a_blocking_eventfd_wakes_once_and_is_taken_without_waiting() {
        let mut kicks = Kicks::new(4).unwrap();
        let fd = Arc::new(eventfd(0, EventfdFlags::empty()).unwrap());
        rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
        kicks.set(3, Some(Arc::clone(&fd))).unwrap();
        assert!(ready(&kicks), "what came before counts");
        for _ in 0..3 {
            kicks.take();
            assert!(!ready(&kicks) && !ready(&*fd));
            rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
            assert!(ready(&kicks));
        }
        kicks.set(3, None).unwrap();
        assert!(!ready(&kicks) && !ready(&*fd), "whoever takes the ring back finds no kick");
        assert!(kicks.set(4, None).is_err());
    }
}
