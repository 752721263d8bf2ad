//! The door of a virtio-blk device for a verifying load.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::client::Client;
use super::driver::{Config, Driver, Options, Queue};
use super::request::{self, SECTOR_BYTES};
use super::ring::{Piece, Used};
use crate::ram::{Buffer, PAGE_BYTES, Ram};
use crate::verify::door::{Answer, Door, Kind, Op, Shape, Tag};
use crate::{Error, Result};

const TRANSFER_BYTES_MAX: usize = 256 << 10;
/// Bytes watched on either side of the data.
const AROUND: usize = 64;
/// What a buffer is full of before a read.
const POISON: u8 = 0xA5;
/// Where things stand in a request's own page.
const STATUS_AT: usize = 64;
const SEGMENTS_AT: usize = 128;
const TABLE_AT: usize = 512;
/// Descriptors of a request at most: header, three pieces of data, status.
const PIECES_MAX: u16 = 5;

/// Rings of one device.
pub struct VhostDoor {
    /// The connection, unless somebody else holds it.
    driver: Option<Driver>,
    ram: Arc<Ram>,
    indirect: bool,
    seg_max: u32,
    discard_seg_max: u32,
    shape: Shape,
    lanes: Vec<Lane>,
    complaints: VecDeque<String>,
}

struct Lane {
    queue: Queue,
    slots: Vec<Slot>,
    free: VecDeque<usize>,
    flights: HashMap<u32, Flight>,
    answered: Option<Flight>,
    position: u64,
    /// The ring is not looked at before its call comes.
    called: bool,
    awake: bool,
}

/// A buffer, and a page for header, status, segments and an indirect table.
struct Slot {
    data: Buffer,
    own: Buffer,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    slot: usize,
    offset: usize,
    bytes: usize,
    /// What the device must say it wrote.
    written: u32,
}

impl VhostDoor {
    /// Connects and drives the first `lanes` rings, which are as large as `depth` needs. There are more if the options ask for more.
    ///
    /// # Errors
    /// The driver's.
    pub fn connect(
        path: impl AsRef<std::path::Path>,
        lanes: u16,
        depth: usize,
        options: Options,
    ) -> Result<Self> {
        Self::start(Client::connect(path)?, lanes, depth, options)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn start(client: Client, lanes: u16, depth: usize, mut options: Options) -> Result<Self> {
        let depth_entries = u16::try_from(depth).expect("a small depth") * PIECES_MAX;
        options.queues = options.queues.max(lanes);
        // A packed ring need not be a power of two: an odd size wraps at odd places.
        options.queue_size =
            if options.packed { depth_entries + 1 } else { depth_entries.next_power_of_two() };
        let slot_bytes = TRANSFER_BYTES_MAX + 4 * PAGE_BYTES;
        options.ram_bytes = (usize::from(lanes) * depth * slot_bytes + (4 << 20)).max(options.ram_bytes);
        Self::new(Driver::start(client, options)?, lanes, depth)
    }

    /// Takes the first `lanes` rings of a driver, which are empty.
    ///
    /// # Errors
    /// Guest RAM is used up.
    pub fn new(mut driver: Driver, lanes: u16, depth: usize) -> Result<Self> {
        let queues = driver.queues.drain(..usize::from(lanes)).collect();
        let (config, indirect) = (*driver.config(), driver.options().indirect);
        let door = Self::over(queues, &Arc::clone(driver.ram()), &config, indirect, depth)?;
        Ok(VhostDoor { driver: Some(driver), ..door })
    }

    fn over(
        queues: Vec<Queue>,
        ram: &Arc<Ram>,
        config: &Config,
        indirect: bool,
        depth: usize,
    ) -> Result<Self> {
        let block_bytes = usize::try_from(config.block_bytes).expect("small");
        let sectors_per_block = (config.block_bytes / 512).max(1);
        let limits = [config.discard_sectors_max, config.write_zeroes_sectors_max];
        let limit = limits.iter().map(|sectors| sectors / sectors_per_block).min().unwrap_or(0);
        let transfer_blocks_max =
            u32::try_from(TRANSFER_BYTES_MAX / block_bytes).expect("small").min(limit.max(1));
        let lanes = queues.into_iter().map(|queue| Lane::new(queue, ram, depth));
        let lanes = lanes.collect::<Result<Vec<_>>>()?;
        let shape = Shape {
            blocks: config.sectors / u64::from(sectors_per_block),
            block_bytes,
            transfer_blocks_max,
            lanes: lanes.len(),
            depth,
        };
        let &Config { seg_max, discard_seg_max, .. } = config;
        let (driver, ram, complaints) = (None, Arc::clone(ram), VecDeque::new());
        Ok(VhostDoor { driver, ram, indirect, seg_max, discard_seg_max, shape, lanes, complaints })
    }

    /// Waits for calls on the last lane, instead of looking at its ring: a call that does not come is an answer lost.
    #[must_use]
    pub fn with_a_called_lane(mut self) -> Self {
        if let Some(lane) = self.lanes.last_mut() {
            lane.called = true;
            lane.queue.ring.want_call();
        }
        self
    }

    /// The connection, for talking over it while the rings are busy; `None` once it was taken.
    pub fn take_driver(&mut self) -> Option<Driver> {
        self.driver.take()
    }
}

impl Lane {
    fn new(queue: Queue, ram: &Arc<Ram>, depth: usize) -> Result<Self> {
        Ok(Lane {
            queue,
            slots: (0..depth).map(|_| Slot::new(ram)).collect::<Result<Vec<_>>>()?,
            free: (0..depth).collect(),
            flights: HashMap::new(),
            answered: None,
            position: 0,
            called: false,
            awake: false,
        })
    }

    /// The next request given back, if one may look.
    fn take(&mut self) -> Option<Used> {
        if !self.called {
            return self.queue.ring.take();
        }
        if !self.awake {
            self.awake = rustix::io::read(self.queue.call(), &mut [0_u8; 8]).is_ok();
            if !self.awake {
                return None;
            }
        }
        let ring = &mut self.queue.ring;
        let used = ring.take().or_else(|| {
            // What is used after this is called for; what came before is seen by looking again.
            ring.want_call();
            ring.take()
        });
        self.awake = used.is_some();
        used
    }
}

impl Slot {
    fn new(ram: &Arc<Ram>) -> Result<Self> {
        // A page before, one behind.
        let data = ram.alloc(TRANSFER_BYTES_MAX + 2 * PAGE_BYTES)?;
        Ok(Slot { data, own: ram.alloc(PAGE_BYTES)? })
    }

    /// Where the data of the request at `position` begins: at a page, at a sector, or anywhere.
    fn offset(position: u64) -> usize {
        match position % 8 {
            0..4 => PAGE_BYTES,
            4..6 => PAGE_BYTES - 512,
            6 => PAGE_BYTES - 1536,
            _ => PAGE_BYTES - usize::try_from(17 + position % 2000).unwrap_or(17),
        }
    }

    /// All runs of memory of a request: header, what `middle` says, status.
    fn pieces(&self, middle: &[Piece]) -> Vec<Piece> {
        let own = |at: usize, len: u32, device_writes| Piece {
            iova: self.own.iova() + at as u64,
            len,
            device_writes,
        };
        let mut pieces = vec![own(0, 16, false)];
        pieces.extend_from_slice(middle);
        pieces.push(own(STATUS_AT, 1, true));
        pieces
    }

    /// The data in one to three pieces.
    fn data(&self, flight: &Flight, device_writes: bool, position: u64, seg_max: u32) -> Vec<Piece> {
        let iova = self.data.iova() + flight.offset as u64;
        let parts = 1 + usize::try_from(position % 3).unwrap_or(0);
        let parts = parts.min(usize::try_from(seg_max).unwrap_or(1));
        // Any cut will do; pieces need not be sectors.
        let each = flight.bytes / parts;
        let piece = |part: usize| {
            let begin = part * each;
            let end = if part + 1 == parts { flight.bytes } else { begin + each };
            let len = u32::try_from(end - begin).expect("at most 256 KiB");
            Piece { iova: iova + begin as u64, len, device_writes }
        };
        (0..parts).map(piece).collect()
    }
}

impl Door for VhostDoor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn submit(&mut self, lane: usize, op: &Op, data: &[u8]) -> Result<Tag> {
        let block_bytes = self.shape.block_bytes;
        let VhostDoor { indirect, seg_max, discard_seg_max, .. } = *self;
        let sector = |block: u64| block * (block_bytes / SECTOR_BYTES) as u64;
        let at = &mut self.lanes[lane];
        let full = || Error::QueueFull(u16::try_from(lane).unwrap_or(u16::MAX));
        let slot = at.free.pop_front().ok_or_else(full)?;
        let mut flight = Flight { slot, offset: 0, bytes: 0, written: 1 };
        let own = &at.slots[slot];
        let middle = match op.kind {
            Kind::Flush => {
                own.own.write(0, &request::header(request::FLUSH, 0));
                Vec::new()
            }
            Kind::Read | Kind::Write { .. } => {
                flight.offset = Slot::offset(at.position);
                flight.bytes = op.blocks as usize * block_bytes;
                let (around, whole) = (flight.offset - AROUND, flight.bytes + 2 * AROUND);
                self.ram.mapping().fill(own.data.offset() + around, whole, POISON);
                own.data.write(flight.offset, data);
                let read = op.kind == Kind::Read;
                flight.written = if read { 1 + u32::try_from(flight.bytes).expect("small") } else { 1 };
                let kind = if read { request::IN } else { request::OUT };
                own.own.write(0, &request::header(kind, sector(op.start)));
                own.data(&flight, read, at.position, seg_max)
            }
            Kind::Deallocate | Kind::WriteZeroes { .. } => {
                // The specification leaves discarded sectors undefined (5.2.6); Godwit's read as zeros.
                let (kind, flags) = match op.kind {
                    Kind::Deallocate => (request::DISCARD, 0),
                    Kind::WriteZeroes { deallocate: true } => (request::WRITE_ZEROES, request::UNMAP),
                    _ => (request::WRITE_ZEROES, 0),
                };
                own.own.write(0, &request::header(kind, 0));
                let segments = segments(op, if kind == request::DISCARD { discard_seg_max } else { 1 });
                for (index, (start, blocks)) in segments.iter().enumerate() {
                    let sectors = u32::try_from(sector(*blocks)).expect("at most 256 KiB");
                    own.own
                        .write(SEGMENTS_AT + index * 16, &request::segment(sector(*start), sectors, flags));
                }
                let iova = own.own.iova() + SEGMENTS_AT as u64;
                let len = u32::try_from(segments.len() * 16).expect("two at most");
                vec![Piece { iova, len, device_writes: false }]
            }
        };
        own.own.write(STATUS_AT, &[request::UNANSWERED]);
        let pieces = own.pieces(&middle);
        let ring = &mut at.queue.ring;
        let token = if indirect && at.position % 4 != 1 {
            ring.add_indirect(&pieces, &own.own, TABLE_AT)
        } else {
            ring.add(&pieces)
        };
        let token = token.ok_or_else(full)?;
        at.position += 1;
        at.flights.insert(token, flight);
        Ok(token)
    }

    fn ring(&mut self, lane: usize) -> Result<()> {
        self.lanes[lane].queue.publish()
    }

    fn poll(&mut self, lane: usize) -> Result<Option<Answer>> {
        let at = &mut self.lanes[lane];
        let Some(used) = at.take() else { return Ok(None) };
        at.answered = at.flights.remove(&used.token).filter(|_| used.expected);
        let Some(flight) = at.answered else {
            return Ok(Some(Answer { tag: used.token, failure: None }));
        };
        at.free.push_back(flight.slot);
        let mut status = [0];
        at.slots[flight.slot].own.read(STATUS_AT, &mut status);
        if used.written != flight.written && status[0] == request::OK {
            let what = format!("lane {lane}: {} bytes written, not {}", used.written, flight.written);
            self.complaints.push_back(what);
        }
        let failure = (status[0] != request::OK).then_some(u32::from(status[0]));
        Ok(Some(Answer { tag: used.token, failure }))
    }

    fn data(&mut self, lane: usize, _tag: Tag, target: &mut [u8]) -> bool {
        let at = &self.lanes[lane];
        let Some(flight) = at.answered else { return false };
        let data = &at.slots[flight.slot].data;
        data.read(flight.offset, target);
        let (before, behind) = (flight.offset - AROUND, flight.offset + flight.bytes);
        [before, behind].iter().all(|at| data.bytes(*at, AROUND).iter().all(|byte| *byte == POISON))
    }

    fn complaint(&mut self) -> Option<String> {
        self.complaints.pop_front()
    }
}

/// A discard in one or two segments, so that lists of them are seen.
fn segments(op: &Op, segments_max: u32) -> Vec<(u64, u64)> {
    let half = u64::from(op.blocks / 2);
    if segments_max < 2 || half == 0 || op.start.is_multiple_of(2) {
        return vec![(op.start, op.blocks.into())];
    }
    vec![(op.start + half, u64::from(op.blocks) - half), (op.start, half)]
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
