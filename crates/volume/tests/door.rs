//! The data path over a map that changes underneath, against a model of the volume's bytes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]
#![expect(unsafe_code, reason = "buffers of the test's own are handed to a door")]
// UNSAFETY: every buffer given to `submit` lives in the test until its completion came.

use block::{Backend, Completion, Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use volume::door::{Allocator, Answered, Door, Gate, Ticket};
use volume::{Entry, ExtentMap, VolumeId};

const EXTENT: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const DATA: u64 = 1 << 20;
const PHYSICAL: u64 = 16;

type Queue = VecDeque<(Token, Op, Range, Vec<Segment>)>;
type Released = ((u32, u32), Arc<Ticket>);

/// A drive whose requests end when they are told to.
struct Slow {
    bytes: Rc<RefCell<Vec<u8>>>,
    queue: Rc<RefCell<Queue>>,
    ready: Rc<RefCell<Vec<Completion>>>,
    in_flight: usize,
    room: usize,
}

impl Backend for Slow {
    fn limits(&self) -> Limits {
        Limits {
            capacity_bytes: self.bytes.borrow().len() as u64,
            block_bytes: 512,
            segments_max: 64,
            discard: true,
        }
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if self.in_flight >= self.room {
            return Submitted::Full;
        }
        self.in_flight += 1;
        self.queue.borrow_mut().push_back((request.token, request.op, request.range, request.data.to_vec()));
        Submitted::Queued
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ready = self.ready.borrow_mut();
        while done.len() < done.capacity() {
            let Some(one) = ready.pop() else { break };
            self.in_flight -= 1;
            done.push(one);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

/// Ends the request at `at` of the drive's queue.
fn end(bytes: &RefCell<Vec<u8>>, queue: &RefCell<Queue>, at: usize) -> Completion {
    let (token, op, range, data) = queue.borrow_mut().remove(at).unwrap();
    let mut bytes = bytes.borrow_mut();
    let (mut from, until) = (range.start_bytes as usize, (range.start_bytes + range.len_bytes) as usize);
    match op {
        Op::WriteZeroes { .. } | Op::Discard => bytes[from..until].fill(0),
        _ => {
            for segment in data {
                let here = &mut bytes[from..from + segment.len()];
                // SAFETY: the test's buffers live until the completion.
                unsafe { if op == Op::Read { segment.copy_from(here) } else { segment.copy_to(here) } };
                from += segment.len();
            }
        }
    }
    (token, Outcome::Done)
}

#[derive(Default)]
struct Asked {
    own: Mutex<Vec<u32>>,
    release: Mutex<Vec<Released>>,
}

impl Allocator for Asked {
    fn own(&self, _volume: VolumeId, extent: u32) {
        self.own.lock().unwrap().push(extent);
    }

    fn release(&self, _volume: VolumeId, extents: (u32, u32), ticket: Arc<Ticket>) {
        self.release.lock().unwrap().push((extents, ticket));
    }
}

/// A door, its drive, and what stands in for the pool's thread.
struct World {
    door: Door<Slow>,
    gate: Arc<Gate>,
    asked: Arc<Asked>,
    bytes: Rc<RefCell<Vec<u8>>>,
    queue: Rc<RefCell<Queue>>,
    ready: Rc<RefCell<Vec<Completion>>>,
    done: Vec<Completion>,
}

impl World {
    fn new(extents: u64, gives_back: bool, room: usize) -> Self {
        Self::sized(extents * EXTENT, gives_back, room)
    }

    fn sized(size_bytes: u64, gives_back: bool, room: usize) -> Self {
        let map = Arc::new(ExtentMap::new(size_bytes, EXTENT, DATA).unwrap());
        let gate = Gate::new(VolumeId(1), map);
        let asked = Arc::new(Asked::default());
        let bytes = Rc::new(RefCell::new(vec![0; (DATA + PHYSICAL * EXTENT) as usize]));
        let (queue, ready) = (Rc::default(), Rc::default());
        let lower = Slow {
            bytes: Rc::clone(&bytes),
            queue: Rc::clone(&queue),
            ready: Rc::clone(&ready),
            in_flight: 0,
            room,
        };
        let allocator = Arc::clone(&asked) as Arc<dyn Allocator>;
        let door = Door::new(Box::new(lower), &gate, allocator, gives_back, Arc::new(|| {}));
        Self { door, gate, asked, bytes, queue, ready, done: Vec::with_capacity(64) }
    }

    fn submit(&mut self, token: u64, op: Op, start: u64, memory: &mut [u8]) -> Submitted {
        let whole = Segment::of(memory);
        // In pieces, so that cuts of extents do not meet cuts of memory.
        let (a, rest) = whole.split_at(memory.len() / 3);
        let (b, c) = rest.split_at(memory.len() / 2);
        let range = Range { start_bytes: start, len_bytes: memory.len() as u64 };
        let data: &[Segment] = if matches!(op, Op::Read | Op::Write { .. }) { &[a, b, c] } else { &[] };
        // SAFETY: see the module.
        unsafe { self.door.submit(&Request { token: Token(token), op, range, data }) }
    }

    fn end(&mut self, at: usize) {
        let ended = end(&self.bytes, &self.queue, at);
        self.ready.borrow_mut().push(ended);
    }

    fn end_all(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        loop {
            while !self.queue.borrow().is_empty() {
                self.end(0);
            }
            self.door.poll(&mut self.done);
            all.append(&mut self.done);
            if self.queue.borrow().is_empty() && self.ready.borrow().is_empty() {
                return all;
            }
        }
    }

    fn set(&self, logical: u32, entry: Entry) {
        self.gate.map().set(logical, entry);
        self.gate.announce();
    }
}

const WRITE: Op = Op::Write { fua: false };
const TRIM: Op = Op::WriteZeroes { deallocate: true, fua: false };

#[test]
fn an_unmapped_extent_reads_as_zeros_without_the_drive() {
    let mut world = World::new(4, true, 64);
    world.bytes.borrow_mut().fill(0xEE);
    let mut memory = vec![7; 3 * 4096];
    assert_eq!(world.submit(1, Op::Read, EXTENT - 4096, &mut memory), Submitted::Ended(Outcome::Done));
    assert!(memory.iter().all(|byte| *byte == 0) && world.queue.borrow().is_empty());
}

#[test]
fn a_write_to_an_unmapped_extent_waits_for_the_extent_and_others_do_not() {
    let mut world = World::new(4, true, 64);
    world.set(2, Entry::Mapped { physical: 5 });
    let (mut parked, mut other) = (vec![1; 8192], vec![2; 4096]);
    assert_eq!(world.submit(1, WRITE, EXTENT - 4096, &mut parked), Submitted::Queued);
    assert_eq!(*world.asked.own.lock().unwrap(), [0, 1], "both at once, for one journal write");
    assert_eq!(world.submit(2, WRITE, 2 * EXTENT, &mut other), Submitted::Queued);
    assert_eq!(world.end_all(), [(Token(2), Outcome::Done)]);
    assert_eq!((world.door.in_flight(), world.door.at_drive()), (1, 0));
    world.set(0, Entry::Mapped { physical: 0 });
    world.set(1, Entry::Shared { physical: 9 });
    assert_eq!(world.door.at_drive(), 1, "by the next poll it is there");
    assert_eq!(world.end_all(), [], "one piece went, the other would change what others read");
    assert_eq!((world.door.in_flight(), world.door.at_drive()), (1, 0));
    world.set(1, Entry::Mapped { physical: 1 });
    assert_eq!(world.end_all(), [(Token(1), Outcome::Done)]);
    let at = (DATA + EXTENT - 4096) as usize;
    assert!(
        world.bytes.borrow()[at..at + 8192].iter().all(|byte| *byte == 1),
        "neighbours on the drive, too"
    );
    assert_eq!(world.door.in_flight(), 0);
}

#[test]
fn what_waits_for_space_and_is_not_wanted_any_more_fails_when_its_pieces_have_come_back() {
    let mut world = World::new(4, true, 64);
    world.set(0, Entry::Mapped { physical: 5 });
    world.set(3, Entry::Mapped { physical: 6 });
    let (mut half, mut whole, mut kept) = (vec![1; 8192], vec![2; 4096], vec![3; 4096]);
    assert_eq!(world.submit(1, WRITE, EXTENT - 4096, &mut half), Submitted::Queued);
    assert_eq!(world.submit(2, WRITE, EXTENT, &mut whole), Submitted::Queued);
    assert_eq!(world.submit(3, WRITE, 2 * EXTENT, &mut kept), Submitted::Queued);
    assert_eq!(world.submit(4, TRIM, 3 * EXTENT, &mut vec![0; EXTENT as usize]), Submitted::Queued);
    world.door.give_up_waiting(&|token| token != Token(3));
    let failed = |token| (Token(token), Outcome::Failed(Fault::NoSpace));
    let mut done = Vec::with_capacity(8);
    world.door.poll(&mut done);
    assert_eq!(done, [failed(2)], "one has a piece at the drive, one is wanted, one is a release");
    assert_eq!(world.end_all(), [failed(1)]);
    assert_eq!((world.door.in_flight(), world.door.at_drive()), (2, 0));
    // The space comes: nothing is written for what was given up.
    world.set(1, Entry::Mapped { physical: 1 });
    world.set(2, Entry::Mapped { physical: 2 });
    assert_eq!(world.end_all(), [(Token(3), Outcome::Done)]);
    let at = (DATA + EXTENT) as usize;
    assert!(world.bytes.borrow()[at..at + 4096].iter().all(|byte| *byte != 2), "given up");
}

#[test]
fn no_grace_is_over_while_a_request_by_the_old_map_is_at_the_drive() {
    let mut world = World::new(4, true, 64);
    world.set(0, Entry::Mapped { physical: 3 });
    let (mut first, mut second, mut third) = (vec![1; 4096], vec![2; 4096], vec![3; 4096]);
    let _ = world.submit(1, WRITE, 0, &mut first);
    world.set(0, Entry::Mapped { physical: 4 });
    let one = world.gate.begin_grace();
    let _ = world.submit(2, WRITE, 0, &mut second);
    assert!(!world.gate.is_over(one));
    world.end(1);
    world.door.poll(&mut world.done);
    assert!(!world.gate.is_over(one), "the newer ended, the older did not");
    world.end(0);
    world.door.poll(&mut world.done);
    assert!(world.gate.is_over(one));
    let _ = world.submit(3, WRITE, 0, &mut third);
    assert!(world.gate.is_over(one));
    let two = world.gate.begin_grace();
    assert!(!world.gate.is_over(two));
    world.end_all();
    assert!(world.gate.is_over(two));
}

#[test]
fn whole_extents_are_given_back_and_the_rest_is_zeroed() {
    let mut world = World::new(4, true, 64);
    world.bytes.borrow_mut().fill(0xEE);
    for logical in 0..4 {
        world.set(logical, Entry::Mapped { physical: logical + 2 });
    }
    let mut memory = vec![0; (2 * EXTENT + 8192) as usize];
    assert_eq!(world.submit(1, TRIM, EXTENT - 4096, &mut memory), Submitted::Queued);
    assert_eq!(world.end_all(), []);
    let (extents, ticket) = world.asked.release.lock().unwrap().pop().unwrap();
    assert_eq!(extents, (1, 3));
    assert_eq!(ticket.answered(), Answered::Open);
    world.set(1, Entry::Unmapped);
    world.set(2, Entry::Unmapped);
    ticket.answer(true);
    world.gate.announce();
    assert_eq!(world.end_all(), [(Token(1), Outcome::Done)]);
    let mut back = vec![9; 4 * EXTENT as usize];
    assert_eq!(world.submit(2, Op::Read, 0, &mut back), Submitted::Queued);
    world.end_all();
    let zeros = EXTENT as usize - 4096..3 * EXTENT as usize + 4096;
    assert!(back[zeros.clone()].iter().all(|byte| *byte == 0));
    assert!(back[..zeros.start].iter().chain(&back[zeros.end..]).all(|byte| *byte == 0xEE));
}

/// The last extent of the volume is cut short by its end: whole to a door that knows no more, and not whole when the volume has grown.
#[test]
fn a_discard_that_was_asked_for_before_a_growth_takes_nothing_of_what_came_with_it() {
    let mut world = World::sized(4 * EXTENT - 8192, true, 64);
    world.bytes.borrow_mut().fill(0xEE);
    (0..4).for_each(|logical| world.set(logical, Entry::Mapped { physical: logical + 2 }));
    let mut memory = vec![0; (2 * EXTENT - 8192) as usize];
    assert_eq!(world.submit(1, TRIM, 2 * EXTENT, &mut memory), Submitted::Queued);
    let (extents, ticket) = world.asked.release.lock().unwrap().pop().unwrap();
    assert_eq!(extents, (2, 4));
    assert!(!ticket.is_outdated(extents.1, EXTENT, 4 * EXTENT - 8192));
    // It grows, and another door writes into what is new.
    let larger = Arc::new(ExtentMap::new(5 * EXTENT, EXTENT, DATA).unwrap());
    (0..4).for_each(|logical| larger.set(logical, Entry::Mapped { physical: logical + 2 }));
    world.gate.replace_map(larger);
    assert!(ticket.is_outdated(extents.1, EXTENT, 5 * EXTENT));
    assert!(!ticket.is_outdated(3, EXTENT, 5 * EXTENT), "what was whole is whole");
    ticket.refuse_outdated();
    world.gate.announce();
    assert_eq!(world.end_all(), []);
    let (extents, ticket) = world.asked.release.lock().unwrap().pop().unwrap();
    assert_eq!(extents, (2, 3), "only what is whole now");
    world.set(2, Entry::Unmapped);
    ticket.answer(true);
    world.gate.announce();
    assert_eq!(world.end_all(), [(Token(1), Outcome::Done)]);
    let mut back = vec![9; 5 * EXTENT as usize];
    assert_eq!(world.submit(2, Op::Read, 0, &mut back), Submitted::Queued);
    world.end_all();
    let (end, new) = (4 * EXTENT as usize - 8192, 4 * EXTENT as usize);
    assert!(back[2 * EXTENT as usize..end].iter().all(|byte| *byte == 0));
    assert!(back[end..new].iter().all(|byte| *byte == 0xEE), "what is new was not asked for");
    assert!(back[new..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_closed_gate_ends_all_and_a_refusing_one_ends_what_would_wait() {
    let mut world = World::new(4, true, 64);
    let (mut a, mut b) = (vec![1; 4096], vec![1; 4096]);
    assert_eq!(world.submit(1, WRITE, 0, &mut a), Submitted::Queued);
    world.gate.refuse_parked();
    assert_eq!(world.end_all(), [(Token(1), Outcome::Failed(Fault::NoSpace))]);
    assert_eq!(world.submit(2, Op::Read, 0, &mut b), Submitted::Ended(Outcome::Done));
    world.gate.close();
    assert_eq!(world.submit(3, Op::Read, 0, &mut b), Submitted::Ended(Outcome::Failed(Fault::Gone)));
    let beyond = world.submit(4, Op::Read, 4 * EXTENT, &mut b);
    assert!(matches!(beyond, Submitted::Ended(Outcome::Failed(_))));
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One request at a time for the bytes; entries that move, are shared and are taken away underneath, with drives of little room.
#[test]
fn a_volume_reads_as_a_flat_disk_whatever_its_map_does() {
    for seed in 1..=24_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut world = World::new(4, seed % 3 != 0, 1 + random.below(3) as usize);
        let mut model = vec![0_u8; 4 * EXTENT as usize];
        let mut free: Vec<u32> = (0..PHYSICAL as u32).collect();
        for step in 0..120 {
            let start = random.below(4 * EXTENT / BLOCK - 1) * BLOCK;
            let most = if random.below(3) == 0 { 600 } else { 8 };
            let blocks = 1 + random.below(most);
            let len = (blocks * BLOCK).min(4 * EXTENT - start) as usize;
            let at = start as usize;
            let mut memory = vec![step as u8 | 1; len];
            let op =
                [Op::Read, WRITE, WRITE, TRIM, Op::Discard, Op::WriteZeroes { deallocate: false, fua: true }]
                    [random.below(6) as usize];
            match op {
                Op::Read => {}
                Op::Write { .. } => model[at..at + len].fill(step as u8 | 1),
                _ => model[at..at + len].fill(0),
            }
            let submitted = world.submit(step, op, start, &mut memory);
            let mut ended = matches!(submitted, Submitted::Ended(Outcome::Done));
            assert!(ended || submitted == Submitted::Queued, "{op:?}: {submitted:?}");
            for _ in 0..100 {
                if ended {
                    break;
                }
                ended = world.end_all().contains(&(Token(step), Outcome::Done));
                serve(&world, &mut free);
            }
            assert!(ended, "seed {seed} step {step}: {op:?} does not end");
            assert_eq!(world.door.in_flight(), 0);
            if op == Op::Read {
                assert!(memory == model[at..at + len], "seed {seed} step {step}");
            }
            // Somebody takes a snapshot now and then.
            if random.below(4) == 0 {
                let logical = random.below(4) as u32;
                if let Entry::Mapped { physical } = world.gate.map().entry(logical) {
                    world.set(logical, Entry::Shared { physical });
                }
            }
        }
    }
}

/// As a pool's thread would: copies what is shared, zeroes what is new and what is given back.
fn serve(world: &World, free: &mut Vec<u32>) {
    let map = world.gate.map();
    let place =
        |physical: u32| map.drive_offset(physical) as usize..(map.drive_offset(physical) + EXTENT) as usize;
    for logical in std::mem::take(&mut *world.asked.own.lock().unwrap()) {
        let mut bytes = world.bytes.borrow_mut();
        match map.entry(logical) {
            Entry::Mapped { .. } => {}
            Entry::Unmapped => {
                let physical = free.pop().unwrap();
                bytes[place(physical)].fill(0);
                map.set(logical, Entry::Mapped { physical });
            }
            Entry::Shared { physical: from } => {
                let physical = free.pop().unwrap();
                bytes.copy_within(place(from), place(physical).start);
                map.set(logical, Entry::Mapped { physical });
                bytes[place(from)].fill(0xDD);
                free.insert(0, from);
            }
        }
    }
    for ((first, until), ticket) in std::mem::take(&mut *world.asked.release.lock().unwrap()) {
        for logical in first..until {
            if let Entry::Mapped { physical } | Entry::Shared { physical } = map.entry(logical) {
                map.set(logical, Entry::Unmapped);
                world.bytes.borrow_mut()[place(physical)].fill(0xDD);
                free.insert(0, physical);
            }
        }
        ticket.answer(true);
    }
    world.gate.announce();
}
