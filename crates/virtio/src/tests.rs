//! A driver of our own against the group, on both rings: the world ends after each store in turn; random rounds; hostile rings.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block::{Limits, Outcome, Request, Submitted, Token};
use memory::{Access, Iova, Mapping, MemoryMap, SharedRegion, WriteLog};
use proptest::prelude::*;
use spec::virtio_blk as blk;

use crate::config::Device;
use crate::crash;
use crate::group::VirtQueueGroup;
use crate::inflight::{QueueRegion, region_bytes};
use crate::ring::RingConfig;
use crate::sink::{Broken, Event, Sink};

type Ram = [AtomicU64; 8192];
const RAM_BYTES: u64 = 65536;
const DESC: u64 = 0;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const REQUESTS: u64 = 0x8000;

/// A drive that keeps what it is asked and ends it when told, or at once.
#[derive(Default)]
struct Engine {
    at_once: bool,
    held: Vec<Token>,
    /// Start of each request, in the order of submission.
    starts: Vec<u64>,
    calls: u32,
    events: Vec<Event>,
}

impl Sink for Engine {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.starts.push(request.range.start_bytes);
        if self.at_once {
            return Submitted::Ended(Outcome::Done);
        }
        self.held.push(request.token);
        Submitted::Queued
    }
    fn call(&mut self, _queue: u16) {
        self.calls += 1;
    }
    fn report(&mut self, event: Event) {
        self.events.push(event);
    }
}

fn mapping(bytes: u64) -> Arc<Mapping> {
    let ram = SharedRegion::<Ram>::memfd("ram").expect("a memfd");
    let fd = ram.fd().expect("has one").try_clone_to_owned().expect("an fd");
    Mapping::new(fd, 0, bytes, Access::BOTH).expect("mapped")
}

fn mapped(bytes: u64) -> Arc<MemoryMap> {
    let memory = Some((mapping(bytes), 0));
    Arc::new(MemoryMap::empty().with(Iova(0), bytes, Access::BOTH, memory).expect("a region"))
}

/// What outlives the device: the guest with its driver, and the in-flight region.
struct World {
    map: Arc<MemoryMap>,
    region: Arc<MemoryMap>,
    packed: bool,
    size: u16,
    avail: u16,
    used: u16,
    avail_wrap: bool,
    used_wrap: bool,
    free: Vec<u16>,
    /// By head (split) or id (packed): number of the request, descriptors in the ring.
    out: Vec<Option<(u64, Vec<u16>)>>,
    answered: Vec<u64>,
    given: u64,
}

/// Shape of a request: how the header is cut, how the data is, and whether the table is indirect.
#[derive(Clone, Copy, Debug)]
struct Shape {
    cut: u8,
    pieces: u8,
    indirect: bool,
}

impl World {
    fn new(packed: bool, size: u16) -> Self {
        Self {
            map: mapped(RAM_BYTES),
            region: mapped(RAM_BYTES),
            packed,
            size,
            avail: 0,
            used: 0,
            avail_wrap: true,
            used_wrap: true,
            free: (0..size).rev().collect(),
            out: vec![None; usize::from(size)],
            answered: Vec::new(),
            given: 0,
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.map.write_bytes(Iova(at), bytes).expect("mapped");
    }

    fn u16(&self, at: u64) -> u16 {
        self.map.read::<[u8; 2]>(Iova(at)).map(u16::from_le_bytes).expect("mapped")
    }

    fn config(&self) -> RingConfig {
        assert!(region_bytes(1, self.size) <= 65536);
        let part = QueueRegion::new(&self.region, Iova(0), (1, self.size), self.packed, 0).expect("a part");
        RingConfig {
            size: self.size,
            packed: self.packed,
            event_idx: false,
            descriptors: DESC,
            driver: DRIVER,
            device: DEVICE,
            base: if self.packed { 0x8000_8000 } else { 0 },
            log_address: Some(DEVICE),
            inflight: Some(part),
        }
    }

    fn group(&self) -> VirtQueueGroup {
        let limits = Limits { capacity_bytes: 1 << 30, block_bytes: 512, segments_max: 64, discard: true };
        let device = Device {
            capacity: crate::config::Capacity::new(1 << 30),
            read_only: false,
            serial: *b"12345678901234567890",
            num_queues: 1,
            limits,
        };
        let mut group = VirtQueueGroup::new(Arc::new(device), Arc::clone(&self.map));
        group.set_features(blk::F_INDIRECT_DESC | blk::F_VERSION_1 | blk::F_FLUSH);
        group
    }

    /// A read of 512 bytes at the block that is its number. `false`: no room in the ring.
    fn give(&mut self, shape: Shape) -> bool {
        let number = self.given;
        let at = REQUESTS + number % 32 * 0x400;
        let mut header = [0; 16];
        header[8..].copy_from_slice(&number.to_le_bytes());
        self.put(at, &header);
        self.put(at + 0x300, &[0xff]);
        let cut = u64::from(shape.cut % 16);
        let mut pieces = vec![(at, cut, false), (at + cut, 16 - cut, false)];
        if cut == 0 {
            pieces.remove(0);
        }
        let count = u64::from(shape.pieces % 3) + 1;
        let each = 512 / count;
        for piece in 0..count {
            let len = if piece + 1 == count { 512 - each * piece } else { each };
            pieces.push((at + 0x80 + each * piece, len, true));
        }
        pieces.push((at + 0x300, 1, true));
        if shape.indirect {
            let table = TABLES + number % 32 * 0x80;
            for (index, &(addr, len, write)) in (0..).zip(&pieces) {
                let more = index + 1 < pieces.len();
                let flags = u16::from(more && !self.packed) | u16::from(write) << 1;
                let next = u16::try_from(index + 1).expect("small");
                self.entry(table + index as u64 * 16, addr, len, flags, next);
            }
            pieces = vec![(table, pieces.len() as u64 * 16, false)];
        }
        if self.free.len() < pieces.len() {
            return false;
        }
        self.given += 1;
        let slots: Vec<u16> = pieces.iter().map(|_| self.free.pop().expect("room")).collect();
        let indirect = u16::from(shape.indirect) << 2;
        if self.packed {
            self.give_packed(number, &pieces, slots, indirect);
        } else {
            for (index, &(addr, len, write)) in pieces.iter().enumerate() {
                let next = slots.get(index + 1).copied();
                let flags = u16::from(next.is_some()) | u16::from(write) << 1 | indirect;
                self.entry(DESC + u64::from(slots[index]) * 16, addr, len, flags, next.unwrap_or(0));
            }
            let head = slots[0];
            self.put(DRIVER + 4 + u64::from(self.avail % self.size) * 2, &head.to_le_bytes());
            self.avail = self.avail.wrapping_add(1);
            self.put(DRIVER + 2, &self.avail.to_le_bytes());
            self.out[usize::from(head)] = Some((number, slots));
        }
        true
    }

    fn entry(&self, at: u64, addr: u64, len: u64, flags: u16, next: u16) {
        let (mut bytes, len) = ([0; 16], u32::try_from(len).expect("small"));
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        let (a, b) = if self.packed { (next, flags) } else { (flags, next) };
        bytes[12..14].copy_from_slice(&a.to_le_bytes());
        bytes[14..].copy_from_slice(&b.to_le_bytes());
        self.put(at, &bytes);
    }

    fn give_packed(&mut self, number: u64, pieces: &[(u64, u64, bool)], slots: Vec<u16>, indirect: u16) {
        let id = slots[0];
        let mut first = None;
        for (index, &(addr, len, write)) in pieces.iter().enumerate() {
            let wrap = if self.avail_wrap { blk::DESC_AVAIL } else { blk::DESC_USED };
            let more = index + 1 < pieces.len();
            let flags = u16::from(more) | u16::from(write) << 1 | indirect | wrap;
            let at = DESC + u64::from(self.avail) * 16;
            // The head's flags last.
            let hidden = if index == 0 { flags ^ (blk::DESC_AVAIL | blk::DESC_USED) } else { flags };
            first = first.or(Some((at, flags)));
            let hidden = if index == 0 { self.u16(at + 14) & 0x8080 | hidden & 7 } else { hidden };
            self.entry(at, addr, len, hidden, id);
            self.avail += 1;
            if self.avail == self.size {
                (self.avail, self.avail_wrap) = (0, !self.avail_wrap);
            }
        }
        let (at, flags) = first.expect("a piece");
        self.put(at + 14, &flags.to_le_bytes());
        self.out[usize::from(id)] = Some((number, slots));
    }

    /// Takes what is used.
    fn reap(&mut self) {
        loop {
            let id = if self.packed {
                let at = DESC + u64::from(self.used) * 16;
                let flags = self.u16(at + 14);
                let both = [flags & blk::DESC_AVAIL != 0, flags & blk::DESC_USED != 0];
                if both != [self.used_wrap; 2] {
                    return;
                }
                self.u16(at + 12)
            } else {
                if self.u16(DEVICE + 2) == self.used {
                    return;
                }
                self.u16(DEVICE + 4 + u64::from(self.used % self.size) * 8)
            };
            let (number, slots) =
                self.out[usize::from(id)].take().expect("answered once, and only what was given");
            if self.packed {
                self.used += u16::try_from(slots.len()).expect("small");
                if self.used >= self.size {
                    (self.used, self.used_wrap) = (self.used - self.size, !self.used_wrap);
                }
            } else {
                self.used = self.used.wrapping_add(1);
            }
            let status: u8 = self.map.read(Iova(REQUESTS + number % 32 * 0x400 + 0x300)).expect("mapped");
            assert_eq!(status, blk::S_OK);
            self.free.extend(slots);
            self.answered.push(number);
        }
    }
}

const PLAIN: Shape = Shape { cut: 0, pieces: 0, indirect: false };
const TABLE: Shape = Shape { cut: 5, pieces: 2, indirect: true };

fn turn(group: &mut VirtQueueGroup, engine: &mut Engine) {
    group.poll(engine);
    group.flush(engine);
}

fn finish(group: &mut VirtQueueGroup, engine: &mut Engine, which: usize) {
    let token = engine.held.remove(which);
    group.complete(token, Outcome::Done, engine);
}

/// Rounds that overtake each other, in batches of several answers, around the end of the ring.
fn scenario(world: &mut World, engine: &mut Engine) {
    let mut group = world.group();
    group.start(0, world.config()).expect("sound");
    for round in 0..5 {
        // What the driver does is not the device's process: it does not die.
        let lives = crash::arm(u64::MAX);
        world.reap();
        world.give(if round % 2 == 0 { PLAIN } else { TABLE });
        world.give(if round % 2 == 0 { TABLE } else { PLAIN });
        crash::arm(lives);
        turn(&mut group, engine);
        if engine.held.len() > 2 {
            let last = engine.held.len() - 1;
            finish(&mut group, engine, last);
            finish(&mut group, engine, 1);
            group.flush(engine);
        }
    }
    while !engine.held.is_empty() {
        finish(&mut group, engine, 0);
    }
    group.flush(engine);
}

fn every_store(packed: bool) {
    for lives in 1.. {
        let mut world = World::new(packed, 8);
        let mut engine = Engine::default();
        crash::arm(lives);
        let survived = catch_unwind(AssertUnwindSafe(|| scenario(&mut world, &mut engine))).is_ok();
        crash::arm(u64::MAX);
        // The successor dies once too, some stores later, before the one that ends the work.
        for second in [lives % 23 + 1, u64::MAX] {
            let mut engine = Engine::default();
            crash::arm(second);
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let mut group = world.group();
                group.start(0, world.config()).expect("the region is sound");
                for _ in 0..6 {
                    turn(&mut group, &mut engine);
                    while let Some(last) = engine.held.len().checked_sub(1) {
                        finish(&mut group, &mut engine, last);
                    }
                    group.flush(&mut engine);
                }
            }));
            crash::arm(u64::MAX);
            assert!(engine.events.is_empty(), "after {lives} stores: {:?}", engine.events);
        }
        world.reap();
        world.answered.sort_unstable();
        assert_eq!(world.answered, (0..world.given).collect::<Vec<_>>(), "after {lives} stores");
        if survived {
            assert!(lives > 100, "the scenario has that many stores");
            return;
        }
    }
}

#[test]
fn a_split_ring_answers_everything_once_after_the_world_ended_at_any_store() {
    every_store(false);
}

#[test]
fn a_packed_ring_answers_everything_once_after_the_world_ended_at_any_store() {
    every_store(true);
}

#[test]
fn a_successor_begins_again_in_the_order_of_fetching() {
    for packed in [false, true] {
        let mut world = World::new(packed, 16);
        let mut engine = Engine::default();
        let mut group = world.group();
        group.start(0, world.config()).expect("sound");
        (0..3).for_each(|_| assert!(world.give(PLAIN)));
        turn(&mut group, &mut engine);
        finish(&mut group, &mut engine, 1);
        group.flush(&mut engine);
        world.reap();
        assert!(world.give(TABLE));
        turn(&mut group, &mut engine);
        drop(group);
        let mut engine = Engine::default();
        let mut group = world.group();
        group.start(0, world.config()).expect("sound");
        turn(&mut group, &mut engine);
        assert_eq!(engine.starts, [0, 2 * 512, 3 * 512], "packed: {packed}");
        assert_eq!(engine.calls, 1, "a call of the dead process may be lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_whatever_its_shape(
        packed: bool,
        at_once: bool,
        log2 in 3_u32..7,
        less in 0_u16..3,
        steps in prop::collection::vec((0_u8..4, any::<u8>(), any::<u8>(), any::<bool>()), 1..120),
    ) {
        let size = (1 << log2) - if packed { less } else { 0 };
        let mut world = World::new(packed, size);
        let mut engine = Engine { at_once, ..Engine::default() };
        let mut group = world.group();
        group.start(0, world.config()).expect("sound");
        for (what, cut, pieces, indirect) in steps {
            match what {
                0 | 1 => {
                    // A request's memory is used again by the 32nd after it.
                    let oldest = world.out.iter().flatten().map(|(number, _)| *number).min();
                    if oldest.is_none_or(|oldest| world.given < oldest + 32) {
                        world.give(Shape { cut, pieces, indirect });
                    }
                }
                2 => turn(&mut group, &mut engine),
                _ => {
                    if !engine.held.is_empty() {
                        let which = usize::from(cut) % engine.held.len();
                        finish(&mut group, &mut engine, which);
                    }
                    world.reap();
                }
            }
        }
        for _ in 0..8 {
            turn(&mut group, &mut engine);
            while !engine.held.is_empty() {
                finish(&mut group, &mut engine, 0);
            }
        }
        group.flush(&mut engine);
        world.reap();
        world.answered.sort_unstable();
        prop_assert_eq!(&world.answered, &(0..world.given).collect::<Vec<_>>());
        prop_assert!(engine.events.is_empty());
    }

    #[test]
    fn no_bytes_in_a_region_or_ring_do_harm(
        packed: bool,
        region in prop::collection::vec(any::<u8>(), 0..300),
        ring in prop::collection::vec(any::<u8>(), 0..200),
        sound_header: bool,
    ) {
        let mut world = World::new(packed, 8);
        world.give(PLAIN);
        world.region.write_bytes(Iova(0), &region).expect("mapped");
        if sound_header {
            world.region.write_bytes(Iova(8), &[1, 0, 8, 0]).expect("mapped");
        }
        world.put(DESC, &ring);
        let mut engine = Engine::default();
        let mut group = world.group();
        if group.start(0, world.config()).is_ok() {
            for _ in 0..4 {
                turn(&mut group, &mut engine);
                while !engine.held.is_empty() {
                    finish(&mut group, &mut engine, 0);
                }
                group.flush(&mut engine);
            }
        }
    }
}

/// What a ring with this change of its first descriptors is broken by.
fn broken_by(packed: bool, change: impl FnOnce(&mut World)) -> Vec<Event> {
    let mut world = World::new(packed, 8);
    assert!(world.give(PLAIN));
    change(&mut world);
    let mut engine = Engine { at_once: true, ..Engine::default() };
    let mut group = world.group();
    group.start(0, world.config()).expect("sound");
    turn(&mut group, &mut engine);
    turn(&mut group, &mut engine);
    engine.events
}

#[test]
fn a_hostile_ring_stops_its_queue_and_is_told_once() {
    let told = |why| vec![Event::Broken { queue: 0, why }];
    let jump = |world: &mut World| world.put(DRIVER + 2, &9_u16.to_le_bytes());
    assert_eq!(broken_by(false, jump), told(Broken::Index));
    let head = |world: &mut World| world.put(DRIVER + 4, &8_u16.to_le_bytes());
    assert_eq!(broken_by(false, head), told(Broken::Head));
    let circle = |world: &mut World| world.entry(DESC, REQUESTS, 1, blk::DESC_NEXT, 0);
    assert_eq!(broken_by(false, circle), told(Broken::Chain));
    let circle = |world: &mut World| {
        world.entry(TABLES, REQUESTS, 1, blk::DESC_NEXT, 0);
        world.entry(DESC, TABLES, 16, blk::DESC_INDIRECT, 0);
    };
    assert_eq!(broken_by(false, circle), told(Broken::Chain));
    let nested = |world: &mut World| {
        world.entry(TABLES, TABLES, 16, blk::DESC_INDIRECT, 0);
        world.entry(DESC, TABLES, 16, blk::DESC_INDIRECT, 0);
    };
    assert_eq!(broken_by(false, nested), told(Broken::Indirect));
    let alone = |world: &mut World| world.entry(DESC, REQUESTS, 16, 0, 0);
    assert_eq!(broken_by(false, alone), told(Broken::Header));
    let endless = |world: &mut World| {
        (0..8).for_each(|slot| world.entry(slot * 16, REQUESTS, 1, blk::DESC_NEXT | blk::DESC_AVAIL, 0));
    };
    assert_eq!(broken_by(true, endless), told(Broken::Chain));
}

#[test]
fn an_unknown_type_and_data_out_of_reach_are_answered_with_a_status() {
    for (kind, sector, status) in
        [(77_u32, 0_u64, blk::S_UNSUPP), (0, 1 << 40, blk::S_IOERR), (1, 0, blk::S_IOERR)]
    {
        let mut world = World::new(false, 8);
        assert!(world.give(PLAIN));
        world.put(REQUESTS, &kind.to_le_bytes());
        world.put(REQUESTS + 8, &sector.to_le_bytes());
        let mut engine = Engine { at_once: true, ..Engine::default() };
        let mut group = world.group();
        group.start(0, world.config()).expect("sound");
        turn(&mut group, &mut engine);
        assert_eq!(world.map.read::<u8>(Iova(REQUESTS + 0x300)).expect("mapped"), status, "type {kind}");
        assert_eq!((world.u16(DEVICE + 2), engine.events.len()), (1, 0));
    }
}

/// A log of the pages of the guest.
fn arm(group: &mut VirtQueueGroup, world: &World, engine: &mut Engine) -> Arc<WriteLog> {
    let log = Arc::new(WriteLog::flat(mapping(4096)).expect("writable"));
    group.set_memory(Arc::new(world.map.with_log(Some(Arc::clone(&log)))), engine);
    log
}

fn marked(log: &WriteLog) -> Vec<u64> {
    let mut pages = Vec::new();
    log.take(Iova(0), u64::MAX, &mut |page| pages.push(page.0));
    pages
}

#[test]
fn an_armed_log_has_the_pages_of_data_status_and_ring_and_no_others() {
    let mut world = World::new(false, 8);
    assert!(world.give(PLAIN));
    let mut engine = Engine::default();
    let mut group = world.group();
    let log = arm(&mut group, &world, &mut engine);
    group.start(0, world.config()).expect("sound");
    turn(&mut group, &mut engine);
    finish(&mut group, &mut engine, 0);
    group.flush(&mut engine);
    assert_eq!(marked(&log), [DEVICE, REQUESTS]);
}

/// The mark of a store comes after it: whoever dies in between leaves it to the next one.
#[test]
fn a_successor_marks_what_its_predecessor_may_have_written_to_the_ring_without_a_mark() {
    let mut world = World::new(true, 8);
    assert!(world.give(PLAIN));
    let mut engine = Engine::default();
    let mut group = world.group();
    group.start(0, world.config()).expect("sound");
    turn(&mut group, &mut engine);
    finish(&mut group, &mut engine, 0);
    group.flush(&mut engine);
    let mut group = world.group();
    let log = arm(&mut group, &world, &mut engine);
    group.start(0, world.config()).expect("sound");
    assert_eq!(marked(&log), [DESC, DEVICE]);
}

/// A queue that was told to stop with one request under way, and another that has come since.
fn stopped_with_one_under_way(packed: bool) -> (World, VirtQueueGroup, Engine) {
    let mut world = World::new(packed, 8);
    let mut engine = Engine::default();
    let mut group = world.group();
    group.start(0, world.config()).expect("sound");
    assert!(world.give(PLAIN));
    turn(&mut group, &mut engine);
    assert!(group.stop(0));
    assert!(world.give(PLAIN));
    turn(&mut group, &mut engine);
    (world, group, engine)
}

#[test]
fn a_queue_whose_stop_is_given_up_goes_on_with_what_has_come_meanwhile() {
    let (_world, mut group, mut engine) = stopped_with_one_under_way(false);
    assert_eq!(engine.starts, [0]);
    assert!(group.go_on(0));
    assert!(!group.rest());
    turn(&mut group, &mut engine);
    assert_eq!(engine.starts.len(), 2);
    finish(&mut group, &mut engine, 0);
    group.flush(&mut engine);
    assert!(engine.events.is_empty(), "it did not stop");
    assert!(!group.go_on(1), "there is no such queue");
}

#[test]
fn a_stopped_queue_answers_what_it_took_and_says_where_it_goes_on() {
    for (packed, base) in [(false, 1), (true, 0x8003_8003)] {
        let (_world, mut group, mut engine) = stopped_with_one_under_way(packed);
        assert!(engine.events.is_empty());
        finish(&mut group, &mut engine, 0);
        group.flush(&mut engine);
        assert_eq!(engine.events, [Event::Stopped { queue: 0, base }]);
        assert_eq!(engine.starts, [0], "nothing more was taken");
    }
}
