//! What one reactor counts of one ssd, in the ssd's page (crate `metrics`), which outlives the engine.
//!
//! No clock is read for an I/O: all of a turn happens at the turn's time. So a time is right to about the length of a turn, and the
//! drives that are done at once (`null`, `ram`) take none.

use crate::ssd::Ssd;
use crate::waits::Waits;
use api::config;
use block::{Now, Op, Outcome, Request, Submitted, Token};
use memory::SharedRegion;
use metrics::{Facts, Page, Part, bucket_of};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Queues and commands of a queue at most, as tokens name them: what is beyond is not timed.
const QUEUES_MAX: usize = 1 << 10;
const SLOTS_MAX: usize = 1 << 16;

/// The page of an ssd: the one that an earlier engine left, or a new one. Whether it is new. Serving goes on without one: it is then
/// nobody's but ours.
pub(crate) fn page(config: &config::Ssd, kept: Option<OwnedFd>) -> (Arc<SharedRegion<Page>>, bool) {
    let found = kept
        .and_then(|kept| SharedRegion::from_fd(kept).ok())
        .filter(|page: &SharedRegion<Page>| page.is_sound());
    let is_new = found.is_none();
    let page = found.unwrap_or_else(|| {
        SharedRegion::memfd(&format!("godwit-{}-metrics", config.name)).unwrap_or_else(|error| {
            tracing::warn!(ssd = config.name, %error, "its I/O is counted where nobody can read it");
            SharedRegion::private()
        })
    });
    let device = match &config.backend {
        config::Backend::Uring { path, .. } => path.display().to_string(),
        config::Backend::Pool { pool, .. } => pool.clone(),
        config::Backend::Drive { serial, .. } => serial.clone(),
        config::Backend::Ram => "ram".to_owned(),
        config::Backend::Null => "null".to_owned(),
    };
    let namespaces = config.door == config::Door::VfioUser;
    page.begin(&Facts { serial: config.identity.serial.clone(), device, namespaces });
    (Arc::new(page), is_new)
}

/// See the module.
pub(crate) struct Meter {
    page: Arc<SharedRegion<Page>>,
    lane: usize,
    waits: Waits,
    /// By queue and slot: what is at the drive. Grows with what is in use.
    flights: Vec<Vec<Flight>>,
}

impl Meter {
    /// The lane belongs to this reactor alone.
    pub(crate) fn new(ssd: &Ssd, lane: usize) -> Self {
        ssd.page.open_lane(lane);
        Self { page: Arc::clone(&ssd.page), lane, waits: Waits::default(), flights: Vec::new() }
    }

    /// A turn begins: what it finds came after the turn before.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now) {
        self.waits.turn(now);
    }

    /// No turn was due until now, and nothing had come at this time.
    pub(crate) fn looked_at(&mut self, at: Now) {
        self.waits.looked_at(at);
    }

    /// What is handed in from now on was not there yet at `since`.
    #[inline]
    pub(crate) fn waited_since(&mut self, since: Now) {
        self.waits.since(since);
    }

    /// A request may not go now: a limit is reached, or others are to have their part.
    #[cold]
    pub(crate) fn refused(&mut self) {
        self.waits.refused();
    }

    /// The turn ends. `shut`: it looked at no queue.
    #[inline]
    pub(crate) fn end(&mut self, shut: bool) {
        self.waits.end(shut);
    }

    /// A request was handed to the drive.
    #[inline]
    pub(crate) fn submitted(&mut self, request: &Request<'_>, submitted: Submitted) {
        if submitted == Submitted::Full {
            return;
        }
        let op = op_of(request.op);
        let class = self.page.lane(self.lane).class(op);
        let wait = self.waits.gone();
        class.time(Part::Queue, bucket_of(wait.queue_ns));
        if wait.throttle_ns > 0 {
            class.time(Part::Throttle, bucket_of(wait.throttle_ns));
        }
        match submitted {
            Submitted::Ended(outcome) => {
                class.time(Part::Drive, 0);
                class.moved(request.range.len_bytes);
                if outcome != Outcome::Done {
                    class.failed();
                }
            }
            _ => self.depart(request.token, Flight::new(op, request.range.len_bytes, self.waits.now())),
        }
    }

    #[inline]
    fn depart(&mut self, token: Token, flight: Flight) {
        let (queue, slot) = place(token);
        match self.flights.get_mut(queue).and_then(|queue| queue.get_mut(slot)) {
            Some(place) => *place = flight,
            None => self.grow(queue, slot, flight),
        }
    }

    /// Seldom: the number of slots doubles.
    #[cold]
    fn grow(&mut self, queue: usize, slot: usize, flight: Flight) {
        if queue >= QUEUES_MAX || slot >= SLOTS_MAX {
            return;
        }
        if self.flights.len() <= queue {
            self.flights.resize_with(queue + 1, Vec::new);
        }
        let slots = &mut self.flights[queue];
        slots.resize((slot + 1).next_power_of_two(), Flight::NONE);
        slots[slot] = flight;
    }

    /// A request of a queue came back.
    #[inline]
    pub(crate) fn ended(&mut self, token: Token, outcome: Outcome) {
        let (queue, slot) = place(token);
        let Some(flight) = self.flights.get_mut(queue).and_then(|queue| queue.get_mut(slot)) else { return };
        let flight = std::mem::replace(flight, Flight::NONE);
        let Some(op) = flight.op() else { return };
        let class = self.page.lane(self.lane).class(op);
        class.time(Part::Drive, bucket_of(flight.age_ns(self.waits.now())));
        class.moved(flight.bytes());
        if outcome != Outcome::Done {
            class.failed();
        }
    }
}

/// Queue and slot, as both device models name their commands.
#[inline]
fn place(token: Token) -> (usize, usize) {
    (usize::try_from(token.0 >> 16).unwrap_or(usize::MAX), (token.0 & 0xffff) as usize)
}

#[inline]
fn op_of(op: Op) -> metrics::Op {
    match op {
        Op::Read => metrics::Op::Read,
        Op::Write { .. } => metrics::Op::Write,
        _ => metrics::Op::Other,
    }
}

/// A request at the drive, in one word: when it went (36 bits of 64 ns: an hour), its 512-byte sectors (26 bits), what it is (2).
#[derive(Clone, Copy)]
struct Flight(u64);

impl Flight {
    const NONE: Self = Self(0);
    const SECTORS_MAX: u64 = (1 << 26) - 1;

    #[inline]
    fn new(op: metrics::Op, bytes: u64, now: Now) -> Self {
        Self((now.0 >> 6) << 28 | (bytes >> 9).min(Self::SECTORS_MAX) << 2 | (op as u64 + 1))
    }

    #[inline]
    fn op(self) -> Option<metrics::Op> {
        match self.0 & 3 {
            0 => None,
            1 => Some(metrics::Op::Read),
            2 => Some(metrics::Op::Write),
            _ => Some(metrics::Op::Other),
        }
    }

    #[inline]
    fn bytes(self) -> u64 {
        (self.0 >> 2 & Self::SECTORS_MAX) << 9
    }

    #[inline]
    fn age_ns(self, now: Now) -> u64 {
        ((now.0 >> 6).wrapping_sub(self.0 >> 28) & ((1 << 36) - 1)) << 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_knows_what_it_is_and_how_long_it_was_under_way() {
        for op in metrics::Op::ALL {
            for start in [0, 1 << 20, (1 << 42) - 64, u64::MAX >> 1] {
                let flight = Flight::new(op, 131_072, Now(start));
                assert_eq!((flight.op(), flight.bytes()), (Some(op), 131_072));
                let age = flight.age_ns(Now(start + 100_000));
                assert!((99_936..=100_064).contains(&age), "{age}");
            }
        }
        assert_eq!(Flight::NONE.op(), None);
        assert_eq!(Flight::new(metrics::Op::Other, u64::MAX, Now(5)).op(), Some(metrics::Op::Other));
    }
}
