//! Split and packed rings over memory that the driver scribbles on at any time, with an in-flight region that holds anything: no
//! panic, no endless loop, no request outside the drive or outside the guest's memory, and every request's end is taken.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use block::{Fault, Limits, Op, Outcome, Request, Submitted, Token};
use godwit_fuzz::edge::Edge;
use godwit_fuzz::guest::{self, Place};
use libfuzzer_sys::fuzz_target;
use memory::{Iova, MemoryMap};
use spec::vhost_inflight::queue_bytes;
use spec::virtio_blk as blk;
use virtio::config::Device;
use virtio::group::VirtQueueGroup;
use virtio::inflight::QueueRegion;
use virtio::ring::RingConfig;
use virtio::sink::{Event, Sink};

const CAPACITY_BYTES: u64 = 64 << 20;
const QUEUES: u16 = 2;
/// Rings where a sound driver puts them, a page each; the in-flight region's pages after them.
const DESC: u64 = guest::RINGS;
const DRIVER: u64 = guest::RINGS + 0x2000;
const DEVICE: u64 = guest::RINGS + 0x4000;
const INFLIGHT: u64 = guest::RINGS + 0x8000;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: u8,
    packed: bool,
    event_idx: bool,
    indirect: bool,
    read_only: bool,
    inflight: bool,
    log: bool,
    size: Size,
    base: Edge,
    rings: Option<[Place; 3]>,
    steps: Vec<Action>,
}

#[derive(Arbitrary, Debug)]
enum Size {
    Power(u8),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Action {
    /// A descriptor, nearly sound.
    Descriptor {
        table: Table,
        at: u8,
        place: Place,
        len: Len,
        flags: u8,
        next: u8,
        wrap: bool,
    },
    /// The available ring, by which split heads are given.
    Available {
        at: u8,
        head: u8,
        index: u8,
    },
    /// A request's header.
    Header {
        place: Place,
        kind: u8,
        sector: Edge,
    },
    /// A word anywhere, rings and in-flight region included.
    Ring {
        offset: u16,
        word: Edge,
    },
    Poke {
        place: Place,
        word: Edge,
    },
    Poll,
    Flush,
    Arm,
    Complete {
        at: u8,
        fault: Option<u8>,
    },
    Mood(u8),
    Memory(u8),
    Stop {
        queue: u8,
    },
    Start {
        queue: u8,
    },
    Writeback(bool),
    /// A field of a queue's in-flight region, which the device finds nearly as it left it.
    Region {
        queue: u8,
        entry: u8,
        field: u8,
        value: u16,
    },
    /// The whole in-flight region, with or without the heads of the queues.
    Scribble {
        seed: u64,
        heads: bool,
    },
    /// The process dies; another one goes on with the guest's memory and the region.
    Crash,
}

#[derive(Arbitrary, Debug)]
enum Table {
    Ring,
    Indirect(u8),
}

#[derive(Arbitrary, Debug)]
enum Len {
    Header,
    Status,
    Block(u8),
    Any(Edge),
}

struct Engine {
    map: Arc<MemoryMap>,
    /// Maps under which requests at the drive may have begun.
    older: Vec<Arc<MemoryMap>>,
    held: Vec<Token>,
    mood: u8,
    read_only: bool,
}

impl Engine {
    fn allows(&self, addr: usize, len: usize, write: bool) -> bool {
        let old = self.older.iter().any(|map| guest::allows(map, addr, len, write));
        old || guest::allows(&self.map, addr, len, write)
    }
}

impl Sink for Engine {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        let end = request.range.end_bytes().expect("no wrap");
        assert!(end <= CAPACITY_BYTES, "outside the drive");
        assert!(!self.held.contains(&request.token), "two requests of one");
        let len: u64 = request.data.iter().map(|segment| segment.len() as u64).sum();
        let changes = !matches!(request.op, Op::Read | Op::Flush);
        assert!(!(self.read_only && changes), "a read-only drive is changed");
        if matches!(request.op, Op::Read | Op::Write { .. }) {
            assert_eq!(len, request.range.len_bytes, "segments of another length");
        } else {
            assert!(request.data.is_empty());
        }
        for segment in request.data {
            let addr = segment.addr().addr();
            if guest::owns(addr) {
                assert!(self.allows(addr, segment.len(), request.op == Op::Read), "memory that is not given");
            }
        }
        match self.mood % 4 {
            0 => return Submitted::Full,
            1 => return Submitted::Ended(Outcome::Done),
            2 => return Submitted::Ended(Outcome::Failed(Fault::Media)),
            _ => {}
        }
        self.held.push(request.token);
        Submitted::Queued
    }

    fn call(&mut self, queue: u16) {
        assert!(queue < QUEUES);
    }

    fn report(&mut self, _event: Event) {}
}

struct World<'a> {
    input: &'a Input,
    group: VirtQueueGroup,
    engine: Engine,
}

fn size(input: &Input) -> u16 {
    match input.size {
        Size::Power(bits) => 1 << (bits % 8),
        Size::Any(size) => size % 300,
    }
}

impl<'a> World<'a> {
    fn new(input: &'a Input) -> Self {
        let map = guest::map(input.shape & !32);
        let engine = Engine {
            map: Arc::clone(&map),
            older: Vec::new(),
            held: Vec::new(),
            mood: 3,
            read_only: input.read_only,
        };
        let group = group(input, &map);
        let mut world = Self { input, group, engine };
        (0..QUEUES).for_each(|queue| world.start(queue));
        world
    }

    fn config(&self, queue: u16) -> Option<RingConfig> {
        let input = self.input;
        let size = size(input);
        let at = |base: u64| base + u64::from(queue) * 0x1000;
        let places = input.rings.as_ref().map_or([at(DESC), at(DRIVER), at(DEVICE)], |places| {
            // The second ring stays where a sound driver puts it.
            if queue == 0 { places.map(Place::address) } else { [at(DESC), at(DRIVER), at(DEVICE)] }
        });
        // The region is memory of the device's own: the map that always has it.
        let own = guest::map(0);
        let part = || QueueRegion::new(&own, Iova(INFLIGHT), (QUEUES, size.max(1)), input.packed, queue).ok();
        Some(RingConfig {
            size,
            packed: input.packed,
            event_idx: input.event_idx,
            descriptors: places[0],
            driver: places[1],
            device: places[2],
            base: input.base.u32(),
            log_address: input.log.then_some(places[2]),
            inflight: if input.inflight { Some(part()?) } else { None },
        })
    }

    fn start(&mut self, queue: u16) {
        if let Some(config) = self.config(queue) {
            let _ = self.group.start(queue, config);
        }
    }

    /// The process is gone, and its I/O has ended.
    fn crash(&mut self) {
        self.engine.held.clear();
        self.engine.older.clear();
        self.group = group(self.input, &self.engine.map);
        (0..QUEUES).for_each(|queue| self.start(queue));
    }

    fn step(&mut self, action: &Action) {
        let Self { input, group, engine } = self;
        match action {
            Action::Descriptor { table, at, place, len, flags, next, wrap } => {
                let len = match len {
                    Len::Header => 16,
                    Len::Status => 1,
                    Len::Block(blocks) => u32::from(*blocks) * 512,
                    Len::Any(edge) => edge.u32(),
                };
                let at = u64::from(*at) % u64::from(size(input).max(1));
                let base = match table {
                    Table::Ring => DESC + at * 16,
                    Table::Indirect(page) => (u64::from(*page) % 48) * 4096 + (at % 16) * 16,
                };
                let [address, length] = [place.address(), u64::from(len)];
                let flags = u64::from(flags & 7) | if *wrap { 1 << 7 } else { 1 << 15 };
                // Split: flags, next. Packed: id, flags.
                let (low, high) =
                    if input.packed { (u64::from(*next), flags) } else { (flags & 7, u64::from(*next)) };
                guest::poke(base, &address.to_le_bytes());
                guest::poke(base + 8, &(length | low << 32 | high << 48).to_le_bytes());
            }
            Action::Available { at, head, index } => {
                let at = u64::from(*at) % u64::from(size(input).max(1));
                guest::poke(DRIVER + 4 + at * 2, &u16::from(*head).to_le_bytes());
                guest::poke(DRIVER + 2, &u16::from(*index).to_le_bytes());
            }
            Action::Header { place, kind, sector } => {
                let kinds = [0, 1, 4, 8, 11, 13, 14, 99];
                let kind: u64 = kinds[usize::from(*kind) % kinds.len()];
                guest::poke(place.address(), &kind.to_le_bytes());
                guest::poke(place.address().saturating_add(8), &sector.0.to_le_bytes());
            }
            Action::Ring { offset, word } => {
                guest::poke(DESC + u64::from(*offset) % 0x1e000, &word.0.to_le_bytes());
            }
            Action::Poke { place, word } => guest::poke(place.address(), &word.0.to_le_bytes()),
            Action::Poll => {
                let taken = group.poll(engine);
                assert!(taken <= 2 * 32, "a turn without bounds");
            }
            Action::Flush => group.flush(engine),
            Action::Arm => _ = group.arm(engine),
            Action::Complete { at, fault } => {
                if !engine.held.is_empty() {
                    let token = engine.held.swap_remove(usize::from(*at) % engine.held.len());
                    let outcome = fault.map_or(Outcome::Done, |_| Outcome::Failed(Fault::Media));
                    group.complete(token, outcome, engine);
                }
            }
            Action::Mood(mood) => engine.mood = *mood,
            Action::Memory(shape) => {
                let map = guest::map(*shape);
                engine.older.push(std::mem::replace(&mut engine.map, Arc::clone(&map)));
                group.set_memory(map, engine);
            }
            Action::Stop { queue } => _ = group.stop(u16::from(*queue) % QUEUES),
            Action::Start { queue } => self.start(u16::from(*queue) % QUEUES),
            Action::Writeback(on) => group.set_writeback(*on),
            Action::Region { queue, entry, field, value } => {
                let entries = size(input).max(1);
                let part = queue_bytes(input.packed, entries) as u64 * u64::from(u16::from(*queue) % QUEUES);
                // Entry 0 stands after the head, which is as long as one or two.
                let at = u64::from(*entry) % (u64::from(entries) + 2) * 16 + u64::from(*field % 8) * 2;
                guest::poke(INFLIGHT + part + at, &value.to_le_bytes());
            }
            Action::Scribble { seed, heads } => {
                let part = queue_bytes(input.packed, size(input).max(1)) as u64;
                let mut word = *seed;
                for at in (0..part * u64::from(QUEUES)).step_by(8) {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if *heads || at % part >= 32 {
                        guest::poke(INFLIGHT + at, &(word ^ word >> 33).to_le_bytes());
                    }
                }
            }
            Action::Crash => self.crash(),
        }
    }
}

fn group(input: &Input, map: &Arc<MemoryMap>) -> VirtQueueGroup {
    let limits = Limits { capacity_bytes: CAPACITY_BYTES, block_bytes: 512, segments_max: 64, discard: true };
    let device = Device {
        capacity: virtio::config::Capacity::new(CAPACITY_BYTES),
        read_only: input.read_only,
        serial: *b"fuzz                ",
        num_queues: QUEUES,
        limits,
    };
    let mut features = device.features() & !blk::F_INDIRECT_DESC;
    if input.indirect {
        features |= blk::F_INDIRECT_DESC;
    }
    let log = input.log.then(guest::log);
    let mut group = VirtQueueGroup::new(Arc::new(device), Arc::new(map.with_log(log)));
    group.set_features(features);
    group
}

fuzz_target!(|input: Input| {
    guest::clear();
    let before = guest::read_only_bytes();
    let mut world = World::new(&input);
    for action in input.steps.iter().take(96) {
        world.step(action);
    }
    // The drive takes and ends everything: nothing stays at it.
    world.engine.mood = 1;
    (0..QUEUES).for_each(|queue| _ = world.group.stop(queue));
    for _ in 0..16 {
        world.group.poll(&mut world.engine);
        for token in std::mem::take(&mut world.engine.held) {
            world.group.complete(token, Outcome::Done, &mut world.engine);
        }
        world.group.flush(&mut world.engine);
    }
    assert_eq!(world.group.in_flight(), 0, "a request whose end was not taken");
    let poked =
        input.steps.iter().any(|action| matches!(action, Action::Poke { .. } | Action::Header { .. }));
    assert!(poked || guest::read_only_bytes() == before, "memory that may only be read was written");
});
