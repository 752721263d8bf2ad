//! Who sees whom first: a sender with mail, or a reactor about to sleep.
//!
//! ```text
//!  sender                                reactor
//!  push message; pending = true          sleeping = true
//!  -------- SeqCst fence --------        -------- SeqCst fence --------
//!  sleeping? then wake it                pending? then do not sleep
//! ```
//! One of the two sees the other's store, so mail is never left behind by a sleeping reactor.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// See the module.
#[derive(Debug)]
pub(super) struct Bell {
    pending: AtomicBool,
    sleeping: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { pending: AtomicBool::new(false), sleeping: AtomicBool::new(false) }
    }

    /// Called after the message is in the queue. True when the reactor sleeps, or is about to, and must be woken.
    pub(super) fn ring(&self) -> bool {
        self.pending.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed)
    }

    /// There is mail. One load.
    #[inline]
    pub(super) fn rang(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Called before the queue is emptied.
    pub(super) fn silence(&self) {
        self.pending.store(false, Ordering::Relaxed);
    }

    /// The reactor lies down. True when it may sleep: whoever rings from now on will wake it.
    pub(super) fn lie_down(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.rang()
    }

    /// The reactor is up.
    pub(super) fn get_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::Bell;
    use loom::sync::Arc;

    #[test]
    fn a_reactor_that_falls_asleep_is_woken_by_mail_it_has_not_seen() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            let sender = {
                let bell = Arc::clone(&bell);
                loom::thread::spawn(move || bell.ring())
            };
            let sleeps = bell.lie_down();
            let wakes = sender.join().unwrap();
            assert!(!sleeps || wakes, "asleep with mail in the box");
        });
    }

    #[test]
    fn mail_that_comes_while_the_box_is_emptied_is_seen_now_or_at_the_next_look() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            let queue = Arc::new(loom::sync::Mutex::new(0));
            let sender = {
                let (bell, queue) = (Arc::clone(&bell), Arc::clone(&queue));
                loom::thread::spawn(move || {
                    *queue.lock().unwrap() += 1;
                    bell.ring();
                })
            };
            bell.silence();
            let taken = std::mem::take(&mut *queue.lock().unwrap());
            sender.join().unwrap();
            assert!(taken == 1 || bell.rang());
        });
    }
}
