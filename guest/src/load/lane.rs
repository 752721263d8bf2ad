//! The tight loop: one queue pair, a fixed number of commands in flight.
//!
//! Commands are prebuilt, one a slot; a completion sends its slot again to another place. New entries are announced with one
//! doorbell store a batch, and so are consumed completions. The loop reads the time once a batch and the completion queue
//! only at the entry that ends the next batch, so it takes as few cache lines from the engine as a busy guest would.

use std::sync::Arc;
use std::time::Duration;

use super::clock::{Clock, ticks};
use super::engine::Spent;
use super::histogram::Histogram;
use super::workload::{Direction, Places, Workload};
use crate::nvme::{CompletionQueue, Driver, Prp, Sqe, Status, SubmissionQueue, admin, nvm};
use crate::ram::{Buffer, Ram};
use crate::{Error, Result};

/// The namespace a lane works on.
#[derive(Clone, Copy, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes of one.
    pub lba_bytes: usize,
}

impl Namespace {
    /// Asks the controller (NVM 1.1, Figure 114).
    ///
    /// # Errors
    /// Identify's.
    pub fn identify(driver: &mut Driver, nsid: u32) -> Result<Self> {
        let data = driver.identify(0, nsid)?;
        let mut blocks = [0; 8];
        blocks.copy_from_slice(&data[..8]);
        let format = usize::from(data[26] & 0xF);
        let lba_bytes = 1_usize << (data[128 + format * 4 + 2] & 0x1F);
        Ok(Namespace { nsid, blocks: u64::from_le_bytes(blocks), lba_bytes })
    }
}

/// How a lane runs.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The load.
    pub workload: Workload,
    /// Before anything counts.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
    /// Completions taken, and commands announced, at a time; 0 chooses by depth.
    pub batch: usize,
    /// Of the places.
    pub seed: u64,
}

impl Plan {
    pub(crate) fn batch(&self) -> usize {
        let chosen = if self.batch == 0 { self.workload.depth / 8 } else { self.batch };
        chosen.clamp(1, self.workload.depth)
    }

    /// Latency is taken of every command below depth 32, of every eighth from there on.
    pub(crate) fn sample_mask(&self) -> u64 {
        if self.workload.depth < 32 { 0 } else { 7 }
    }
}

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Commands completed in the measured time.
    pub ios: u64,
    /// The measured time.
    pub elapsed_ns: f64,
    /// Latencies in ticks.
    pub latency: Histogram,
    /// Ticks the client had nothing to do: when few, the client is the limit.
    pub waited: u64,
    /// What the engine spent meanwhile.
    pub spent: Spent,
}

impl Outcome {
    /// Commands a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^53")]
    pub fn iops(&self) -> f64 {
        self.ios as f64 * 1e9 / self.elapsed_ns
    }
}

/// A queue pair taken from a driver, with buffers and prebuilt commands.
pub struct Lane {
    ram: Arc<Ram>,
    sq: SubmissionQueue,
    cq: CompletionQueue,
    doorbell_stride: usize,
    slots: Vec<Slot>,
    _buffers: Vec<(Buffer, Prp)>,
    entries: u32,
    tail: u32,
    head: u32,
    blocks_per_place: u64,
    places: u64,
}

struct Slot {
    block: [u64; 8],
    since: u64,
}

/// No completion for so long is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);

/// From here on waiting is the drive's time, not the engine's: let the kernel's threads run on this core.
const PATIENCE: Duration = Duration::from_micros(10);

/// Looks at the completion queue between two looks at the time.
const LOOKS: u32 = 16;

/// Where SLBA stands in a command, in quadwords.
const SLBA_WORD: usize = 5;

impl Lane {
    /// Creates queue pair `qid` and everything the load needs.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(driver: &mut Driver, qid: u16, workload: &Workload) -> Result<Self> {
        let namespace = Namespace::identify(driver, 1)?;
        let entries = u32::try_from((workload.depth * 2).next_power_of_two().max(64)).expect("a small depth");
        driver.create_queue_pair(qid, entries)?;
        let (sq, cq) = driver.take_queue_pair(qid).ok_or(Error::NoQueue(qid))?;
        let ram = Arc::clone(driver.ram());
        let blocks = workload.block_bytes / namespace.lba_bytes;
        let opcode = if workload.direction == Direction::Read { nvm::READ } else { nvm::WRITE };
        let nlb_z = u16::try_from(blocks - 1).expect("blocks of a load are small");
        let (mut slots, mut buffers) = (Vec::new(), Vec::new());
        for cid in 0..u16::try_from(workload.depth).expect("a small depth") {
            let buffer = ram.alloc(workload.block_bytes)?;
            buffer.fill(0x5A);
            let prp = Prp::new(&ram, buffer.iova(), workload.block_bytes)?;
            let sqe = Sqe::new(opcode).cid(cid).nsid(namespace.nsid).prp(prp.prp1, prp.prp2).blocks(0, nlb_z);
            slots.push(Slot { block: sqe.to_block(), since: 0 });
            buffers.push((buffer, prp));
        }
        Ok(Lane {
            ram,
            sq,
            cq,
            doorbell_stride: 4 << driver.doorbell_stride(),
            slots,
            _buffers: buffers,
            entries,
            tail: 0,
            head: 0,
            blocks_per_place: blocks as u64,
            places: namespace.blocks / blocks as u64,
        })
    }

    /// Deletes the queue pair.
    ///
    /// # Errors
    /// The driver's.
    pub fn close(self, driver: &mut Driver) -> Result<()> {
        driver.admin(Sqe::new(admin::DELETE_IO_SQ).cdw10(self.sq.id.into()))?.ok()?;
        driver.admin(Sqe::new(admin::DELETE_IO_CQ).cdw10(self.cq.id.into()))?.ok()?;
        Ok(())
    }

    /// Runs a plan; `spent` reads the engine's counters at the start and at the end of the measured time.
    ///
    /// # Errors
    /// A failed command, or no completion for ten seconds.
    pub fn run(
        &mut self,
        driver: &Driver,
        clock: &Clock,
        plan: &Plan,
        mut spent: impl FnMut() -> Spent,
    ) -> Result<Outcome> {
        let (page, base) =
            driver.doorbell_page().ok_or_else(|| Error::Protocol("no doorbell page".into()))?;
        let bells = Bells {
            limits: Limits { patience: clock.ticks(PATIENCE), timeout: clock.ticks(TIMEOUT) },
            page,
            tail: base + usize::from(self.sq.id) * 2 * self.doorbell_stride,
            head: base + (usize::from(self.cq.id) * 2 + 1) * self.doorbell_stride,
        };
        let ram = Arc::clone(&self.ram);
        let mut places = Places::new(plan.workload.pattern, self.places, plan.seed);
        let mut outcome = Outcome::default();
        let begin = ticks();
        for cid in 0..self.slots.len() {
            self.send(&ram, cid, begin, &mut places);
        }
        bells.ring_tail(self.tail & (self.entries - 1));
        self.turns(&ram, &bells, plan, clock.ticks(plan.warm_up), &mut places, &mut outcome)?;
        outcome = Outcome::default();
        let (before, start) = (spent(), ticks());
        self.turns(&ram, &bells, plan, clock.ticks(plan.measured), &mut places, &mut outcome)?;
        outcome.elapsed_ns = clock.ns(ticks() - start);
        outcome.spent = spent().since(&before);
        self.drain(&ram, &bells)?;
        Ok(outcome)
    }

    /// The loop itself, for `length` ticks.
    fn turns(
        &mut self,
        ram: &Ram,
        bells: &Bells<'_>,
        plan: &Plan,
        length: u64,
        places: &mut Places,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let batch = u32::try_from(plan.batch()).expect("a small depth");
        let (mask, sample_mask) = (self.entries - 1, plan.sample_mask());
        let begin = ticks();
        loop {
            let (now, waited) = self.wait_for(ram, batch, &bells.limits)?;
            outcome.waited += waited;
            while let Some((cid, status)) = self.take(ram) {
                if status != Status::SUCCESS {
                    return Err(Error::Status(status));
                }
                let slot =
                    self.slots.get(cid).ok_or_else(|| Error::Protocol(format!("unknown cid {cid}")))?;
                if outcome.ios & sample_mask == 0 {
                    outcome.latency.record(now.saturating_sub(slot.since));
                }
                outcome.ios += 1;
                self.send(ram, cid, now, places);
            }
            bells.ring_tail(self.tail & mask);
            bells.ring_head(self.head & mask);
            if now - begin >= length {
                return Ok(());
            }
        }
    }

    /// Spins until the `ahead`-th completion from here is there; the time it was seen, and how long that took.
    #[inline]
    fn wait_for(&self, ram: &Ram, ahead: u32, limits: &Limits) -> Result<(u64, u64)> {
        let last = self.head.wrapping_add(ahead - 1);
        if self.completion_at(ram, last).is_some() {
            return Ok((ticks(), 0));
        }
        let begin = ticks();
        // No `pause`: it would cost 50 ns of latency.
        while !(0..LOOKS).any(|_| self.completion_at(ram, last).is_some()) {
            let waited = ticks() - begin;
            if waited > limits.timeout {
                return Err(Error::Timeout(TIMEOUT));
            }
            if waited > limits.patience {
                std::thread::yield_now();
            }
        }
        let now = ticks();
        Ok((now, now - begin))
    }

    /// The upper quadword of the completion at a free-running position, once it is posted.
    #[inline]
    fn completion_at(&self, ram: &Ram, position: u32) -> Option<u64> {
        let at = self.cq.ring().offset() + (position & (self.entries - 1)) as usize * 16;
        let high = ram.mapping().load_u64(at + 8);
        let expected = position & self.entries == 0;
        ((high >> 48 & 1 == 1) == expected).then_some(high)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of a quadword")]
    fn take(&mut self, ram: &Ram) -> Option<(usize, Status)> {
        let high = self.completion_at(ram, self.head)?;
        self.head = self.head.wrapping_add(1);
        Some((usize::from((high >> 32) as u16), Status((high >> 49) as u16)))
    }

    #[inline]
    fn send(&mut self, ram: &Ram, cid: usize, now: u64, places: &mut Places) {
        let slot = &mut self.slots[cid];
        slot.block[SLBA_WORD] = places.take() * self.blocks_per_place;
        slot.since = now;
        let at = self.sq.ring().offset() + (self.tail & (self.entries - 1)) as usize * 64;
        ram.mapping().store_block(at, &slot.block);
        self.tail = self.tail.wrapping_add(1);
    }

    fn drain(&mut self, ram: &Ram, bells: &Bells<'_>) -> Result<()> {
        for _ in 0..self.slots.len() {
            self.wait_for(ram, 1, &bells.limits)?;
            self.take(ram);
        }
        bells.ring_head(self.head & (self.entries - 1));
        Ok(())
    }
}

/// How long to wait, in ticks.
struct Limits {
    patience: u64,
    timeout: u64,
}

/// The pair's two doorbells, and how long to wait after ringing.
struct Bells<'a> {
    limits: Limits,
    page: &'a crate::mapping::Mapping,
    tail: usize,
    head: usize,
}

impl Bells<'_> {
    #[inline]
    fn ring_tail(&self, value: u32) {
        self.page.store_u32(self.tail, value);
    }

    #[inline]
    fn ring_head(&self, value: u32) {
        self.page.store_u32(self.head, value);
    }
}
