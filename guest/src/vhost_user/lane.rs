//! The tight loop: one ring, a fixed number of requests in flight. What [`crate::load::lane`] is for NVMe.
//!
//! Headers, statuses and indirect tables are prepared, one a slot; a completion sends its slot again to another place. The
//! loop reads the time and shows its requests to the device once a batch.

use std::sync::Arc;
use std::time::Duration;

use super::driver::Driver;
use super::request::{self, SECTOR_BYTES};
use super::ring::Piece;
use crate::load::clock::{Clock, ticks};
use crate::load::engine::Spent;
use crate::load::lane::{Outcome, Plan};
use crate::load::workload::{Direction, Places, Workload};
use crate::ram::{Buffer, PAGE_BYTES, Ram};
use crate::{Error, Result};

/// No completion for so long is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);
/// From here on waiting is the drive's time, not the engine's.
const PATIENCE: Duration = Duration::from_micros(10);
/// Looks at the ring between two looks at the time.
const LOOKS: u32 = 16;
/// A slot's own place in a page of slots: header, status, and an indirect table.
const OWN_BYTES: usize = 128;
const STATUS_AT: usize = 16;
const TABLE_AT: usize = 32;
/// Descriptors of a request that are not in a table of its own.
const PIECES: u16 = 3;

/// One ring of a driver with buffers and prepared requests.
pub struct Lane {
    queue: usize,
    ram: Arc<Ram>,
    own: Buffer,
    slots: Vec<Slot>,
    /// By token: the slot.
    by_token: Vec<usize>,
    sectors_per_place: u64,
    places: u64,
    indirect: bool,
}

struct Slot {
    pieces: [Piece; 3],
    since: u64,
    _data: Buffer,
}

impl Lane {
    /// Everything the load needs on ring `queue`, which must be empty and have room for three descriptors a request.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(driver: &Driver, queue: usize, workload: &Workload) -> Result<Self> {
        let ram = Arc::clone(driver.ram());
        let own = ram.alloc(workload.depth * OWN_BYTES)?;
        let read = workload.direction == Direction::Read;
        let kind = if read { request::IN } else { request::OUT };
        let mut slots = Vec::new();
        for index in 0..workload.depth {
            let data = ram.alloc(workload.block_bytes.max(PAGE_BYTES))?;
            data.fill(0x5A);
            let at = index * OWN_BYTES;
            own.write(at, &request::header(kind, 0));
            let iova = own.iova() + at as u64;
            let len = u32::try_from(workload.block_bytes).expect("blocks of a load are small");
            let pieces = [
                Piece { iova, len: 16, device_writes: false },
                Piece { iova: data.iova(), len, device_writes: read },
                Piece { iova: iova + STATUS_AT as u64, len: 1, device_writes: true },
            ];
            slots.push(Slot { pieces, since: 0, _data: data });
        }
        let sectors_per_place = (workload.block_bytes / SECTOR_BYTES) as u64;
        let size = usize::from(driver.queues[queue].ring.size());
        Ok(Lane {
            queue,
            ram,
            own,
            slots,
            by_token: vec![0; size],
            sectors_per_place,
            places: driver.config().sectors / sectors_per_place,
            indirect: driver.options().indirect,
        })
    }

    /// Runs a plan; `spent` reads the engine's counters at the start and at the end of the measured time.
    ///
    /// # Errors
    /// A failed request, or no completion for ten seconds.
    pub fn run(
        &mut self,
        driver: &mut Driver,
        clock: &Clock,
        plan: &Plan,
        mut spent: impl FnMut() -> Spent,
    ) -> Result<Outcome> {
        let mut places = Places::new(plan.workload.pattern, self.places, plan.seed);
        let mut outcome = Outcome::default();
        let begin = ticks();
        for slot in 0..self.slots.len() {
            self.send(driver, slot, begin, &mut places)?;
        }
        driver.queues[self.queue].publish()?;
        let limits = [clock.ticks(PATIENCE), clock.ticks(TIMEOUT)];
        self.turns(driver, limits, plan, clock.ticks(plan.warm_up), &mut places, &mut outcome)?;
        outcome = Outcome::default();
        let (before, start) = (spent(), ticks());
        self.turns(driver, limits, plan, clock.ticks(plan.measured), &mut places, &mut outcome)?;
        outcome.elapsed_ns = clock.ns(ticks() - start);
        outcome.spent = spent().since(&before);
        for _ in 0..self.slots.len() {
            self.wait_for(driver, 1, limits)?;
            self.take(driver)?;
        }
        Ok(outcome)
    }

    /// The loop itself, for `length` ticks.
    fn turns(
        &mut self,
        driver: &mut Driver,
        limits: [u64; 2],
        plan: &Plan,
        length: u64,
        places: &mut Places,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let batch = u16::try_from(plan.batch()).expect("a small depth");
        let sample_mask = plan.sample_mask();
        let begin = ticks();
        loop {
            let (now, waited) = self.wait_for(driver, batch, limits)?;
            outcome.waited += waited;
            while let Some(slot) = self.take(driver)? {
                if outcome.ios & sample_mask == 0 {
                    outcome.latency.record(now.saturating_sub(self.slots[slot].since));
                }
                outcome.ios += 1;
                self.send(driver, slot, now, places)?;
            }
            driver.queues[self.queue].publish()?;
            if now - begin >= length {
                return Ok(());
            }
        }
    }

    /// Spins until `ahead` requests have been given back; the time that was seen, and how long it took.
    #[inline]
    fn wait_for(&self, driver: &Driver, ahead: u16, [patience, timeout]: [u64; 2]) -> Result<(u64, u64)> {
        let each = if self.indirect { 1 } else { PIECES };
        let ring = &driver.queues[self.queue].ring;
        if ring.is_ready(ahead, each) {
            return Ok((ticks(), 0));
        }
        let begin = ticks();
        while !(0..LOOKS).any(|_| ring.is_ready(ahead, each)) {
            let waited = ticks() - begin;
            if waited > timeout {
                return Err(Error::Timeout(TIMEOUT));
            }
            if waited > patience {
                std::thread::yield_now();
            }
        }
        let now = ticks();
        Ok((now, now - begin))
    }

    #[inline]
    fn take(&mut self, driver: &mut Driver) -> Result<Option<usize>> {
        let Some(used) = driver.queues[self.queue].ring.take() else { return Ok(None) };
        let token = usize::try_from(used.token).unwrap_or(usize::MAX);
        let slot = self.by_token.get(token).copied().filter(|_| used.expected);
        let slot = slot.ok_or_else(|| Error::Protocol(format!("unknown buffer {token}")))?;
        // One byte of a line that the device has just written.
        let word = self.ram.mapping().load_u32(self.own.offset() + slot * OWN_BYTES + STATUS_AT);
        if word & 0xFF != u32::from(request::OK) {
            return Err(Error::Protocol(format!("a request failed with status {}", word & 0xFF)));
        }
        Ok(Some(slot))
    }

    #[inline]
    fn send(&mut self, driver: &mut Driver, slot: usize, now: u64, places: &mut Places) -> Result<()> {
        let at = slot * OWN_BYTES;
        self.ram.mapping().store_u64(self.own.offset() + at + 8, places.take() * self.sectors_per_place);
        self.ram.mapping().store_u32(self.own.offset() + at + STATUS_AT, u32::from(request::UNANSWERED));
        let one = &mut self.slots[slot];
        one.since = now;
        let ring = &mut driver.queues[self.queue].ring;
        let token = if self.indirect {
            ring.add_indirect(&one.pieces, &self.own, at + TABLE_AT)
        } else {
            ring.add(&one.pieces)
        };
        let full = || Error::QueueFull(u16::try_from(self.queue).unwrap_or(u16::MAX));
        self.by_token[usize::try_from(token.ok_or_else(full)?).unwrap_or(usize::MAX)] = slot;
        Ok(())
    }
}
