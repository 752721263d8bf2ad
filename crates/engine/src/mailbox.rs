//! Messages to a reactor, and how they wake it from its sleep.

mod bell;

use bell::Bell;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A queue of messages with many senders and one reader. When the reader ends it closes the box: what lies in it, and all that is sent
/// later, is dropped, so that whoever waits for an answer hears at once that none comes.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    /// `None`: nobody reads any more. Said under the lock, so that no message slips in between the last look and the end.
    queue: Mutex<Option<VecDeque<M>>>,
    bell: Bell,
    wake: OwnedFd,
}

impl<M> Mailbox<M> {
    pub(crate) fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { queue: Mutex::new(Some(VecDeque::new())), bell: Bell::new(), wake })
    }

    /// Never blocks for the reader. Senders are few and each waits for its answer, which bounds the queue.
    pub(crate) fn send(&self, message: M) {
        let refused = match self.queue().as_mut() {
            Some(queue) => {
                queue.push_back(message);
                None
            }
            None => Some(message),
        };
        // Not under the lock: what a message owns may send others.
        drop(refused);
        if self.bell.ring() {
            // Fails only when the counter is full, and then it is readable already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// One load when there is nothing: called in every turn.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.bell.rang()
    }

    /// Takes all messages.
    pub(crate) fn take(&self) -> VecDeque<M> {
        self.bell.silence();
        self.queue().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        let unread = self.queue().take();
        drop(unread);
    }

    fn queue(&self) -> MutexGuard<'_, Option<VecDeque<M>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until a message, one of `others` becomes readable, or the timeout. `None` waits for ever. Whether one of `others` is
    /// readable.
    pub(crate) fn sleep(&self, others: &[BorrowedFd<'_>], timeout_ns: Option<u64>) -> bool {
        let mut ready = false;
        if self.bell.lie_down() {
            let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
            fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
            let timeout = timeout_ns.map(|ns| Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
            });
            // EINTR and the like are a wake-up like any other: the reactor looks at everything again.
            let _ = poll(&mut fds, timeout.as_ref());
            if fds[0].revents().contains(PollFlags::IN) {
                let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
            }
            ready = fds[1..].iter().any(|fd| !fd.revents().is_empty());
        }
        self.bell.get_up();
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_message_wakes_a_reactor_that_sleeps_for_ever() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            std::thread::spawn(move || {
                for i in 0..1000 {
                    mailbox.send(i);
                    if i % 7 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut got = Vec::new();
        while got.len() < 1000 {
            mailbox.sleep(&[], None);
            got.extend(mailbox.take());
        }
        sender.join().unwrap();
        assert!(got.into_iter().eq(0..1000));
    }

    #[test]
    fn who_waits_for_an_answer_hears_that_the_reader_has_ended() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let ask = |mailbox: &Mailbox<_>| {
            let (reply, answer) = std::sync::mpsc::sync_channel::<()>(1);
            mailbox.send(reply);
            answer
        };
        let early = ask(&mailbox);
        let racing = {
            let mailbox = Arc::clone(&mailbox);
            std::thread::spawn(move || (0..1000).for_each(|_| _ = ask(&mailbox).recv()))
        };
        mailbox.close();
        assert!(early.recv().is_err());
        assert!(ask(&mailbox).recv().is_err());
        assert!(mailbox.take().is_empty());
        racing.join().unwrap();
    }
}
