//! The door of an NVMe controller: queue pairs run by polling, one of them by its interrupt.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::door::{Answer, Door, Kind, Op, Shape, Tag};
use crate::load::lane::Namespace;
use crate::mapping::Mapping;
use crate::nvme::{
    Completion, CompletionQueue, Driver, SglDescriptor, Sqe, Status, SubmissionQueue, nvm, reg,
};
use crate::ram::{Buffer, PAGE_BYTES, Ram};
use crate::vfio_user::{Client, region};
use crate::{Error, Result};

/// The longest transfer of a load.
const TRANSFER_BYTES_MAX: usize = 256 << 10;
/// Bytes watched on either side of the data.
const AROUND: usize = 64;
/// What a buffer is full of before a read.
const POISON: u8 = 0xA5;
/// Identify Namespace, DLFEAT bits 2:0 = 001b: deallocated blocks read as zeros (NVM 1.1, Figure 114).
const DLFEAT_AT: usize = 33;
/// Identify Controller, MDTS (Base 2.1, Figure 312).
const MDTS_AT: usize = 77;

/// Queue pairs of one controller. The driver they were made with keeps the connection and the admin queue.
pub struct NvmeDoor {
    ram: Arc<Ram>,
    bells: Mapping,
    shape: Shape,
    nsid: u32,
    pairs: Vec<Pair>,
    complaints: VecDeque<String>,
}

struct Pair {
    sq: SubmissionQueue,
    cq: CompletionQueue,
    /// Positions count on; a ring's slot is the rest of a division by its entries.
    tail: u64,
    sq_head: u64,
    cq_head: u64,
    tail_bell: usize,
    head_bell: usize,
    next_cid: u16,
    slots: Vec<Slot>,
    free: VecDeque<usize>,
    flights: HashMap<u16, Flight>,
    answered: Option<Flight>,
    /// Signals completions; the ring is not looked at before. `None` = polled.
    interrupt: Option<OwnedFd>,
    awake: bool,
}

/// A buffer, and a page with its list of PRPs (first half) and SGL descriptors (second half).
struct Slot {
    data: Buffer,
    list: Buffer,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    slot: usize,
    position: u64,
    offset: usize,
    bytes: usize,
}

impl NvmeDoor {
    /// Creates a queue pair for each lane, from queue 1 on. With `interrupts` the last one is driven by MSI-X vector 1.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn new(driver: &mut Driver, slots: Slots, interrupts: bool) -> Result<Self> {
        let Slots { lanes, depth, mut of_lanes } = slots;
        let namespace = Namespace::identify(driver, 1)?;
        if driver.identify(0, 1)?[DLFEAT_AT] & 7 != 1 {
            return Err(Error::Protocol("deallocated blocks do not read as zeros".into()));
        }
        let mdts = driver.identify(1, 0)?[MDTS_AT];
        let device_max = if mdts == 0 { usize::MAX } else { PAGE_BYTES << mdts.min(20) };
        let bytes_max = TRANSFER_BYTES_MAX.min(device_max);
        let info = driver.client().region_info(region::BAR0)?;
        let (bells, start) = Client::map_area(&info, reg::DOORBELLS)?
            .ok_or_else(|| Error::Protocol("no doorbell page".into()))?;
        let base = usize::try_from(reg::DOORBELLS - start).expect("the page's own offset");
        if interrupts {
            driver.enable_msix(2)?;
        }
        let mut vectors = driver.take_vectors();
        let ram = Arc::clone(driver.ram());
        let mut pairs = Vec::new();
        for qid in 1..=lanes {
            let interrupt = if qid == lanes { vectors.pop() } else { None };
            // Queues of odd sizes, so that they wrap often and nowhere together.
            let entries = u32::try_from(depth).expect("a small depth") + u32::from(qid);
            driver.create_cq(qid, entries + 1, interrupt.is_some().then_some(1))?;
            driver.create_sq(qid, qid, entries)?;
            let (sq, cq) = driver.take_queue_pair(qid).ok_or(Error::NoQueue(qid))?;
            let bell = |index: usize| base + index * (4 << driver.doorbell_stride());
            let (tail_bell, head_bell) = (bell(usize::from(qid) * 2), bell(usize::from(qid) * 2 + 1));
            let slots = of_lanes.pop().unwrap_or_default();
            pairs.push(Pair::new((sq, cq), (tail_bell, head_bell), slots, interrupt));
        }
        let shape = Shape {
            blocks: namespace.blocks,
            block_bytes: namespace.lba_bytes,
            transfer_blocks_max: u32::try_from(bytes_max / namespace.lba_bytes).expect("small"),
            lanes: usize::from(lanes),
            depth,
        };
        Ok(NvmeDoor { ram, bells, shape, nsid: namespace.nsid, pairs, complaints: VecDeque::new() })
    }
}

/// The memory that a door's commands use: made beforehand where the time that a door takes is looked at.
pub(crate) struct Slots {
    lanes: u16,
    depth: usize,
    of_lanes: Vec<Vec<Slot>>,
}

impl Slots {
    /// For `depth` commands at once on each of `lanes` queue pairs.
    ///
    /// # Errors
    /// [`Error::OutOfRam`].
    pub(crate) fn new(ram: &Arc<Ram>, lanes: u16, depth: usize) -> Result<Self> {
        let lane = |_| (0..depth).map(|_| Slot::new(ram, TRANSFER_BYTES_MAX)).collect();
        Ok(Self { lanes, depth, of_lanes: (0..lanes).map(lane).collect::<Result<_>>()? })
    }
}

impl Slot {
    fn new(ram: &Arc<Ram>, bytes_max: usize) -> Result<Self> {
        // A page before, one behind.
        let data = ram.alloc(bytes_max + 2 * PAGE_BYTES)?;
        let list = ram.alloc(PAGE_BYTES)?;
        for entry in 0..(data.len() / PAGE_BYTES - 1).min(PAGE_BYTES / 16) {
            list.store_u64(entry * 8, data.iova() + ((entry + 1) * PAGE_BYTES) as u64);
        }
        Ok(Slot { data, list })
    }

    /// Where the data of the command at `position` begins: at a page, at a block, or at any dword.
    fn offset(position: u64) -> usize {
        match position % 8 {
            0..4 => PAGE_BYTES,
            4..6 => PAGE_BYTES - 512,
            6 => PAGE_BYTES - 1536,
            _ => PAGE_BYTES - 4 * usize::try_from(17 + position % 500).unwrap_or(17),
        }
    }

    /// Points a command at the data, by PRPs or by an SGL.
    fn describe(&self, sqe: Sqe, flight: Flight) -> Sqe {
        let Flight { offset, bytes, position, .. } = flight;
        let iova = self.data.iova() + offset as u64;
        let length = |bytes: usize| u32::try_from(bytes).expect("at most 256 KiB");
        match position % 6 {
            4 => sqe.sgl(SglDescriptor::data_block(iova, length(bytes))),
            5 if bytes >= 512 => {
                let cut = (bytes / 3) & !3;
                let at = PAGE_BYTES / 2;
                let parts = [(iova, cut), (iova + cut as u64, bytes - cut)];
                for (index, (iova, bytes)) in parts.into_iter().enumerate() {
                    self.list.write(at + index * 16, &SglDescriptor::data_block(iova, length(bytes)).0);
                }
                sqe.sgl(SglDescriptor::last_segment(self.list.iova() + at as u64, 32))
            }
            _ => {
                let page = |at: usize| at / PAGE_BYTES;
                let first = page(offset);
                let further = page(offset + bytes - 1) - first;
                let prp2 = match further {
                    0 => 0,
                    1 => self.data.iova() + ((first + 1) * PAGE_BYTES) as u64,
                    _ => self.list.iova() + (first * 8) as u64,
                };
                sqe.prp(iova, prp2)
            }
        }
    }
}

impl Pair {
    fn new(
        (sq, cq): (SubmissionQueue, CompletionQueue),
        (tail_bell, head_bell): (usize, usize),
        slots: Vec<Slot>,
        interrupt: Option<OwnedFd>,
    ) -> Self {
        Pair {
            sq,
            cq,
            tail: 0,
            sq_head: 0,
            cq_head: 0,
            tail_bell,
            head_bell,
            next_cid: 0,
            free: (0..slots.len()).collect(),
            slots,
            flights: HashMap::new(),
            answered: None,
            interrupt,
            awake: false,
        }
    }

    fn new_cid(&mut self) -> u16 {
        // FFFFh belongs to no command (Base 2.1, Figure 206).
        while self.next_cid == u16::MAX || self.flights.contains_key(&self.next_cid) {
            self.next_cid = self.next_cid.wrapping_add(1);
        }
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        cid
    }

    /// The completion at a position, once its phase says that it is there.
    fn completion(&self, position: u64) -> Option<Completion> {
        let entries = u64::from(self.cq.depth);
        let at = usize::try_from(position % entries).expect("a small ring") * 16;
        let high = self.cq.ring().load_u64(at + 8);
        let (completion, phase) = Completion::from_words(self.cq.ring().load_u64(at), high);
        (phase == (position / entries).is_multiple_of(2)).then_some(completion)
    }

    /// Whether to look at the ring at all.
    fn is_awake(&mut self) -> bool {
        if let (Some(fd), false) = (&self.interrupt, self.awake) {
            self.awake = rustix::io::read(fd, &mut [0_u8; 8]).is_ok();
            return self.awake;
        }
        true
    }

    /// Holds a completion against what is outstanding; says what is wrong with it.
    fn examine(&mut self, done: &Completion) -> Option<String> {
        let entries = u64::from(self.sq.depth);
        let (qid, sqhd) = (self.sq.id, u64::from(done.sqhd));
        if done.sqid != qid {
            return Some(format!("queue {qid}: a completion of queue {}", done.sqid));
        }
        let head = self.sq_head + (sqhd + entries - self.sq_head % entries) % entries;
        if sqhd >= entries || head > self.tail {
            let (old, tail) = (self.sq_head % entries, self.tail % entries);
            return Some(format!("queue {qid}: sqhd jumps from {old} to {sqhd}, the tail is at {tail}"));
        }
        self.sq_head = head;
        let flight = self.flights.get(&done.cid)?;
        (flight.position >= head)
            .then(|| format!("queue {qid}: cid {} was completed before it was fetched", done.cid))
    }
}

impl Door for NvmeDoor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn submit(&mut self, lane: usize, op: &Op, data: &[u8]) -> Result<Tag> {
        let block_bytes = self.shape.block_bytes;
        let pair = &mut self.pairs[lane];
        let slot = pair.free.pop_front().ok_or(Error::QueueFull(pair.sq.id))?;
        let mut flight = Flight { slot, position: pair.tail, offset: 0, bytes: 0 };
        let buffers = &pair.slots[slot];
        let nlb_z = u16::try_from(op.blocks.saturating_sub(1)).expect("at most 65,536 blocks");
        let sqe = match op.kind {
            Kind::Flush => Sqe::new(nvm::FLUSH),
            Kind::Read | Kind::Write { .. } => {
                flight.offset = Slot::offset(pair.tail);
                flight.bytes = op.blocks as usize * block_bytes;
                let (around, whole) = (flight.offset - AROUND, flight.bytes + 2 * AROUND);
                self.ram.mapping().fill(buffers.data.offset() + around, whole, POISON);
                buffers.data.write(flight.offset, data);
                let opcode = if op.kind == Kind::Read { nvm::READ } else { nvm::WRITE };
                let sqe = buffers.describe(Sqe::new(opcode).blocks(op.start, nlb_z), flight);
                if op.kind == (Kind::Write { fua: true }) { sqe.fua() } else { sqe }
            }
            Kind::WriteZeroes { deallocate } => {
                let sqe = Sqe::new(nvm::WRITE_ZEROES).blocks(op.start, nlb_z);
                let dword12 = sqe.0[12] | u32::from(deallocate) << 25;
                sqe.cdw12(dword12)
            }
            Kind::Deallocate => {
                let ranges = ranges(op);
                for (index, (start, blocks)) in ranges.iter().enumerate() {
                    buffers.list.store_u64(PAGE_BYTES / 2 + index * 16, u64::from(*blocks) << 32);
                    buffers.list.store_u64(PAGE_BYTES / 2 + index * 16 + 8, *start);
                }
                let nr_z = u32::try_from(ranges.len() - 1).expect("three ranges at most");
                let list = buffers.list.iova() + (PAGE_BYTES / 2) as u64;
                Sqe::new(nvm::DATASET_MANAGEMENT).prp(list, 0).cdw10(nr_z).cdw11(4)
            }
        };
        let cid = pair.new_cid();
        let at = usize::try_from(pair.tail % u64::from(pair.sq.depth)).expect("a small ring") * 64;
        let block = sqe.nsid(self.nsid).cid(cid).to_block();
        self.ram.mapping().store_block(pair.sq.ring().offset() + at, &block);
        pair.tail += 1;
        pair.flights.insert(cid, flight);
        Ok(cid.into())
    }

    fn ring(&mut self, lane: usize) -> Result<()> {
        let pair = &self.pairs[lane];
        let place = |position: u64, entries: u32| {
            u32::try_from(position % u64::from(entries)).expect("less than the entries")
        };
        self.bells.store_u32(pair.tail_bell, place(pair.tail, pair.sq.depth));
        self.bells.store_u32(pair.head_bell, place(pair.cq_head, pair.cq.depth));
        Ok(())
    }

    fn poll(&mut self, lane: usize) -> Result<Option<Answer>> {
        let pair = &mut self.pairs[lane];
        if !pair.is_awake() {
            return Ok(None);
        }
        let Some(done) = pair.completion(pair.cq_head) else {
            pair.awake = false;
            // Entries are posted in order: a later one is never there without this one.
            if pair.completion(pair.cq_head + 1).is_some() && pair.completion(pair.cq_head).is_none() {
                let (qid, at) = (pair.sq.id, pair.cq_head);
                self.complaints.push_back(format!("queue {qid}: an entry after {at} has a wrong phase"));
            }
            return Ok(None);
        };
        pair.cq_head += 1;
        self.complaints.extend(pair.examine(&done));
        pair.answered = pair.flights.remove(&done.cid);
        pair.free.extend(pair.answered.map(|flight| flight.slot));
        let failure = (done.status != Status::SUCCESS).then_some(u32::from(done.status.0));
        Ok(Some(Answer { tag: done.cid.into(), failure }))
    }

    fn data(&mut self, lane: usize, _tag: Tag, target: &mut [u8]) -> bool {
        let pair = &self.pairs[lane];
        let Some(flight) = pair.answered else { return false };
        let data = &pair.slots[flight.slot].data;
        data.read(flight.offset, target);
        let (before, behind) = (flight.offset - AROUND, flight.offset + flight.bytes);
        [before, behind].iter().all(|at| data.bytes(*at, AROUND).iter().all(|byte| *byte == POISON))
    }

    fn complaint(&mut self) -> Option<String> {
        self.complaints.pop_front()
    }
}

/// A deallocation in up to three ranges, so that lists of them are seen.
fn ranges(op: &Op) -> Vec<(u64, u32)> {
    let third = op.blocks / 3;
    if third == 0 || op.start.is_multiple_of(2) {
        return vec![(op.start, op.blocks)];
    }
    let (second, last) = (op.start + u64::from(third), op.start + 2 * u64::from(third));
    // Not in order: nothing says they must be.
    vec![(last, op.blocks - 2 * third), (op.start, third), (second, third)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A door over memory alone, with a queue of four entries: the test is the controller.
    fn door() -> NvmeDoor {
        let ram = Ram::new(4 << 20, 0).unwrap();
        let rings = (SubmissionQueue::new(&ram, 1, 1, 4).unwrap(), CompletionQueue::new(&ram, 1, 5).unwrap());
        let slots = (0..3).map(|_| Slot::new(&ram, 4096).unwrap()).collect();
        let bells = Mapping::new(ram.alloc(4096).map(|_| ram.fd()).unwrap(), 0, 4096, true).unwrap();
        let pairs = vec![Pair::new(rings, (0, 4), slots, None)];
        let shape = Shape { blocks: 64, block_bytes: 512, transfer_blocks_max: 8, lanes: 1, depth: 3 };
        NvmeDoor { ram, bells, shape, nsid: 1, pairs, complaints: VecDeque::new() }
    }

    fn submit(door: &mut NvmeDoor) -> Tag {
        door.submit(0, &Op { kind: Kind::Flush, start: 0, blocks: 0 }, &[]).unwrap()
    }

    /// Posts an entry at a place of the first lap.
    fn post(door: &NvmeDoor, place: usize, cid: Tag, sqid: u64, sqhd: u64) {
        let high = 1 << 48 | u64::from(cid) << 32 | sqid << 16 | sqhd;
        door.pairs[0].cq.ring().store_u64(place * 16 + 8, high);
    }

    #[test]
    fn a_good_completion_is_an_answer_without_a_complaint() {
        let mut door = door();
        let (first, second) = (submit(&mut door), submit(&mut door));
        post(&door, 0, second, 1, 2);
        post(&door, 1, first, 1, 2);
        assert_eq!(door.poll(0).unwrap(), Some(Answer { tag: second, failure: None }));
        assert_eq!(door.poll(0).unwrap(), Some(Answer { tag: first, failure: None }));
        assert_eq!((door.poll(0).unwrap(), door.complaint()), (None, None));
    }

    #[test]
    fn heads_that_jump_strange_queues_and_commands_not_fetched_are_complaints() {
        for (sqid, sqhd, word) in [(1, 3, "jumps"), (1, 9, "jumps"), (2, 1, "queue 2"), (1, 0, "fetched")] {
            let mut door = door();
            let (first, _) = (submit(&mut door), submit(&mut door));
            post(&door, 0, first, sqid, sqhd);
            assert!(door.poll(0).unwrap().is_some());
            let complaint = door.complaint().unwrap();
            assert!(complaint.contains(word), "{complaint}");
        }
        // Backwards: the first completion has told of head 2.
        let mut door = door();
        let (first, second) = (submit(&mut door), submit(&mut door));
        post(&door, 0, second, 1, 2);
        post(&door, 1, first, 1, 1);
        assert!(door.poll(0).unwrap().is_some() && door.complaint().is_none());
        assert!(door.poll(0).unwrap().is_some() && door.complaint().unwrap().contains("jumps"));
    }

    #[test]
    fn an_entry_behind_one_that_is_not_there_is_a_complaint() {
        let mut door = door();
        let first = submit(&mut door);
        post(&door, 1, first, 1, 1);
        assert_eq!(door.poll(0).unwrap(), None);
        assert!(door.complaint().unwrap().contains("phase"));
    }

    #[test]
    fn a_tag_comes_again_only_after_all_others() {
        let mut door = door();
        for number in 0..70_000_usize {
            let tag = submit(&mut door);
            assert_eq!(tag, u32::try_from(number % 65_535).unwrap());
            let pair = &mut door.pairs[0];
            pair.flights.clear();
            pair.free = (0..3).collect();
        }
    }

    #[test]
    fn the_ranges_of_a_deallocation_are_all_its_blocks_once() {
        for (start, blocks) in [(1, 1), (1, 2), (1, 3), (7, 100), (8, 9)] {
            let op = Op { kind: Kind::Deallocate, start, blocks };
            let mut all: Vec<u64> =
                ranges(&op).iter().flat_map(|(start, blocks)| *start..*start + u64::from(*blocks)).collect();
            all.sort_unstable();
            assert_eq!(all, op.range().collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_place_of_the_data_leaves_room_around_it() {
        for position in 0..10_000 {
            let offset = Slot::offset(position);
            assert!(offset >= AROUND && offset.is_multiple_of(4) && offset <= PAGE_BYTES, "{position}");
        }
    }
}
