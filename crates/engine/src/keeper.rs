//! The keeper, as this process sees it: who holds what a successor needs.

use api::control::Response;
use backend::RingHolder;
use link::control::{Link, Packet, PowerOn, Role, Standing, ToKeeper};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// The engine's end of the control link, for any thread to send.
#[derive(Debug)]
pub(crate) struct Keeper {
    link: Link,
    /// Rings that are not acknowledged yet, by descriptor.
    rings: Mutex<HashMap<u32, SyncSender<bool>>>,
    version: AtomicU32,
}

/// The version of the link from which on keepers know of ssds whose owner is elsewhere.
const STANDING_SINCE: u32 = 3;
/// And from which on they are told that rings need not be held any more.
const FENCED_SINCE: u32 = 4;

impl Keeper {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, rings: Mutex::default(), version: AtomicU32::new(0) }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Sends a message. When the keeper is gone, so is this process, soon: nobody needs to hear of the failure.
    pub(crate) fn tell(&self, message: &ToKeeper) {
        if let Err(error) = self.link.send(message, &[]) {
            tracing::error!(%error, "the keeper does not take a message");
        }
    }

    /// Whether an ssd's owner is here. A keeper that has no word for it hears of what is not served as of a fault.
    pub(crate) fn stands(&self, ssd: usize, standing: Option<Standing>) {
        let Ok(number) = u32::try_from(ssd) else { return };
        match standing {
            standing if self.version.load(Ordering::Relaxed) >= STANDING_SINCE => {
                self.tell(&ToKeeper::Standing { ssd: number, standing });
            }
            Some(Standing { word, why, .. }) => self.fault(Some(ssd), format!("{word}: {why}")),
            None => {}
        }
    }

    /// All that dead engines' rings took has ended.
    pub(crate) fn fenced(&self) {
        if self.version.load(Ordering::Relaxed) >= FENCED_SINCE {
            self.tell(&ToKeeper::Fenced);
        }
    }

    /// Which version of the link it speaks.
    pub(crate) fn speaks(&self, version: u32) {
        self.version.store(version, Ordering::Relaxed);
    }

    /// Something an operator must know of.
    pub(crate) fn fault(&self, ssd: Option<usize>, why: String) {
        tracing::error!(ssd, why);
        self.tell(&ToKeeper::Fault { ssd: ssd.and_then(|ssd| u32::try_from(ssd).ok()), why });
    }

    /// The atomic step of a power cycle. All that a successor needs of the new cycle goes with it.
    ///
    /// # Errors
    /// The keeper did not take it.
    pub(crate) fn power_on(&self, ssd: usize, power: PowerCycle) -> io::Result<()> {
        let (roles, fds) = power.parts.into_iter().map(|(role, fd)| (role, Arc::new(fd))).unzip();
        let ssd = u32::try_from(ssd).map_err(io::Error::other)?;
        let message = ToKeeper::PowerOn(PowerOn { ssd, ended: power.ended, roles, record: power.record });
        let packet = Packet::new(&message, fds).map_err(io::Error::other)?;
        self.link.send_packet(&packet, link::frame::Wait::Block).map_err(io::Error::other).map(drop)
    }

    /// What came of a question about pools.
    pub(crate) fn pool_answered(&self, id: u32, response: &Response) {
        let response = serde_json::to_string(response).unwrap_or_default();
        self.tell(&ToKeeper::PoolAnswered { id, response });
    }

    /// The keeper has a ring, or cannot have it.
    pub(crate) fn ring_kept(&self, number: u32, kept: bool) {
        let waiter = self.rings.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(waiter) = waiter {
            let _ = waiter.try_send(kept);
        }
    }
}

/// A power cycle that begins.
#[derive(Debug, Default)]
pub(crate) struct PowerCycle {
    /// The session that ended with the one before.
    pub(crate) ended: Option<u64>,
    pub(crate) parts: Vec<(Role, OwnedFd)>,
    pub(crate) record: Option<Vec<u8>>,
}

impl RingHolder for Keeper {
    fn opened(&self, ring: BorrowedFd<'_>) -> io::Result<()> {
        let number = u32::try_from(ring.as_raw_fd()).map_err(io::Error::other)?;
        let (waiter, kept) = sync_channel(1);
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).insert(number, waiter);
        self.link.send(&ToKeeper::Ring { number }, &[]).map_err(io::Error::other)?;
        match kept.recv() {
            Ok(true) => Ok(()),
            // What a killed engine had at the drive could not be waited for: better no I/O than that.
            _ => Err(Errno::PERM.into()),
        }
    }

    fn closing(&self, ring: BorrowedFd<'_>) {
        if let Ok(number) = u32::try_from(ring.as_raw_fd()) {
            self.tell(&ToKeeper::RingGone { number });
        }
    }
}
