//! A drive that several ssds share: how much of each may be at it at a time.
//!
//! A drive serves what it has in proportion to what each has there, more or less, and makes a small request wait for all the large
//! ones before it. So while several ssds are at work, what is at the drive together is held to a *window*, and each ssd's part of
//! it to its weight. An ssd alone is held to nothing; what others leave of the window may be used.
//!
//! ```text
//!  Drive { weights at work, bytes at the drive, window } <-- Party of an ssd <-- Member on each reactor
//! ```
//! The window follows from what it is for: light ssds (those within their part) should hear from the drive nearly as soon as without the
//! others. Now and then the window is shut to its least for a moment, to learn how soon that is ([`pilot`]). No clock or thread: a
//! member's turn moves it on. Times of single requests are not taken: requests at the drive times time, divided by those that
//! ended, is their mean (Little).

mod pilot;

use crate::limits::Weight;
use block::Now;
use pilot::{INTERVAL_NS, Pilot, WINDOW_MAX};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Every ssd may have that much at the drive, and one request of any size.
const FLOOR_BYTES: u64 = 64 << 10;
/// A seat that had nothing at the drive for so long is not at work.
const IDLE_NS: u64 = 10_000_000;

/// See the module.
#[derive(Debug)]
pub struct Drive {
    parties: AtomicU32,
    /// Of those at work.
    weight: AtomicU64,
    at_drive: AtomicU64,
    window: AtomicU64,
    /// Of light members: requests times time, and requests that ended.
    light_ns: AtomicU64,
    light_ended: AtomicU64,
    next_look: AtomicU64,
    pilot: Mutex<Pilot>,
}

impl Default for Drive {
    fn default() -> Self {
        Self {
            parties: AtomicU32::new(0),
            weight: AtomicU64::new(0),
            at_drive: AtomicU64::new(0),
            window: AtomicU64::new(WINDOW_MAX),
            light_ns: AtomicU64::new(0),
            light_ended: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
            pilot: Mutex::new(Pilot::default()),
        }
    }
}

impl Drive {
    /// What all ssds may have at the drive together while several are at work, bytes.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.window.load(Relaxed)
    }

    fn look(&self, now: Now) {
        let due = self.next_look.load(Relaxed);
        if now.0 < due {
            return;
        }
        // Whoever has the lock looks.
        let Ok(mut pilot) = self.pilot.try_lock() else { return };
        self.next_look.store(now.0.saturating_add(INTERVAL_NS), Relaxed);
        let (ns, ended) = (self.light_ns.swap(0, Relaxed), self.light_ended.swap(0, Relaxed));
        self.window.store(pilot.look(ns, ended, self.at_drive.load(Relaxed)), Relaxed);
    }
}

/// An ssd, on all reactors.
#[derive(Debug)]
pub struct Party {
    drive: Arc<Drive>,
    at_drive: AtomicU64,
    weight: AtomicU64,
    /// Seats at work, and the weight they are counted with.
    at_work: Mutex<(u32, u64)>,
}

impl Party {
    /// An ssd that shares the drive.
    #[must_use]
    pub fn new(drive: Arc<Drive>, weight: Weight) -> Self {
        drive.parties.fetch_add(1, Relaxed);
        let weight = AtomicU64::new(u64::from(weight.get()));
        Self { drive, at_drive: AtomicU64::new(0), weight, at_work: Mutex::new((0, 0)) }
    }

    /// Changes its weight.
    pub fn set_weight(&self, weight: Weight) {
        self.weight.store(u64::from(weight.get()), Relaxed);
        self.count(|seats| seats);
    }

    /// Its weight.
    #[must_use]
    pub fn weight(&self) -> Weight {
        u16::try_from(self.weight.load(Relaxed)).ok().and_then(Weight::new).unwrap_or_default()
    }

    /// The drive.
    #[must_use]
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// Changes the number of its seats at work, and with it the drive's sum of weights.
    fn count(&self, change: impl Fn(u32) -> u32) {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        let seats = change(at_work.0);
        let weight = if seats > 0 { self.weight.load(Relaxed) } else { 0 };
        add(&self.drive.weight, weight.wrapping_sub(at_work.1));
        *at_work = (seats, weight);
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.drive.parties.fetch_sub(1, Relaxed);
        self.count(|_| 0);
    }
}

/// Adds what may be the two's complement of a difference.
fn add(to: &AtomicU64, difference: u64) {
    to.fetch_add(difference, Relaxed);
}

/// A seat of an ssd at a drive.
#[derive(Debug)]
pub struct Member {
    party: Arc<Party>,
    /// At the drive since the last turn.
    count: u64,
    /// Mean cost of a request.
    cost: u64,
    /// What the party and the drive were told.
    told: u64,
    last: Now,
    worked: Now,
    at_work: bool,
    /// Something was refused in the last turn.
    held: bool,
    /// Not yet told.
    ns: u64,
    ended: u64,
}

impl Member {
    /// A seat without requests.
    #[must_use]
    pub fn new(party: Arc<Party>) -> Self {
        let (last, worked) = (Now(0), Now(0));
        Self { party, count: 0, cost: 0, told: 0, last, worked, at_work: false, held: false, ns: 0, ended: 0 }
    }

    /// Its ssd's weight.
    #[inline]
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.party.weight()
    }

    /// A turn begins: `ended` requests came back, `in_flight` are still there. Returns the cost of what may be handed in; the
    /// last request may exceed it.
    #[inline]
    pub fn turn(&mut self, now: Now, in_flight: usize, ended: usize) -> i64 {
        if self.party.drive.parties.load(Relaxed) < 2 && !self.at_work {
            return i64::MAX;
        }
        self.turn_shared(now, in_flight, ended)
    }

    fn turn_shared(&mut self, now: Now, in_flight: usize, ended: usize) -> i64 {
        let span_ns = now.0.saturating_sub(self.last.0);
        self.last = now;
        self.ns = self.ns.saturating_add(self.count.saturating_mul(span_ns));
        self.ended += ended as u64;
        self.count = in_flight as u64;
        if in_flight + ended > 0 || self.held {
            self.worked = now;
            if !self.at_work {
                (self.at_work, self.ns, self.ended) = (true, 0, 0);
                self.party.count(|seats| seats.saturating_add(1));
            }
        } else if self.at_work && now.0.saturating_sub(self.worked.0) >= IDLE_NS {
            self.at_work = false;
            self.party.count(|seats| seats.saturating_sub(1));
        }
        self.tell();
        let drive = &self.party.drive;
        let own = self.party.weight.load(Relaxed);
        let all = drive.weight.load(Relaxed).max(1);
        if all <= own {
            // Alone.
            (self.ns, self.ended) = (0, 0);
            return i64::MAX;
        }
        drive.look(now);
        let window = drive.window.load(Relaxed);
        let part = (window.saturating_mul(own) / all).max(FLOOR_BYTES);
        let at_drive = self.party.at_drive.load(Relaxed);
        if self.ended > 0 {
            if !self.held && at_drive <= part {
                drive.light_ns.fetch_add(self.ns, Relaxed);
                drive.light_ended.fetch_add(self.ended, Relaxed);
            }
            (self.ns, self.ended) = (0, 0);
        }
        let left = part.saturating_sub(at_drive).max(window.saturating_sub(drive.at_drive.load(Relaxed)));
        // Nobody is kept from all.
        i64::try_from(left).unwrap_or(i64::MAX).max(i64::from(in_flight == 0))
    }

    /// The turn ends: requests of that cost were handed in, `in_flight` are at the drive now, and one was `held` back for
    /// want of more.
    #[inline]
    pub fn end(&mut self, cost: i64, in_flight: usize, held: bool) {
        let before = std::mem::replace(&mut self.count, in_flight as u64);
        self.held = held;
        if let Some(more) = self.count.checked_sub(before).filter(|more| *more > 0) {
            let mean = u64::try_from(cost).unwrap_or(0) / more;
            self.cost = if self.cost == 0 { mean } else { (self.cost * 3 + mean) / 4 };
            self.tell();
        }
    }

    fn tell(&mut self) {
        let at_drive = if self.at_work { self.count.saturating_mul(self.cost) } else { 0 };
        let difference = at_drive.wrapping_sub(std::mem::replace(&mut self.told, at_drive));
        if difference != 0 {
            add(&self.party.at_drive, difference);
            add(&self.party.drive.at_drive, difference);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.count = 0;
        self.tell();
        if self.at_work {
            self.party.count(|seats| seats.saturating_sub(1));
        }
    }
}
