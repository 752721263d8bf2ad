//! Nanoseconds per 4 KiB I/O of a `VirtQueueGroup` alone: one ring, a sink that ends every request at once, the driver's side
//! played by the same thread and timed apart.
//!
//! `cargo run --release -p virtio --example virt_queue_group [-- DEPTH [ROUNDS]]`
#![expect(clippy::unwrap_used, reason = "a measurement: what cannot be set up cannot be measured")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use block::{Limits, Outcome, Request, Submitted};
use memory::{Access, Iova, Mapping, MemoryMap, SharedRegion, Window};
use spec::virtio_blk as blk;
use virtio::config::Device;
use virtio::group::VirtQueueGroup;
use virtio::inflight::QueueRegion;
use virtio::ring::RingConfig;
use virtio::sink::{Event, Sink};
use zerocopy::IntoBytes;

const SIZE: u16 = 512;
const DRIVER: u64 = 0x10_0000;
const DEVICE: u64 = 0x20_0000;
const HEADERS: u64 = 0x30_0000;
const DATA: u64 = 0x100_0000;

type Ram = [AtomicU64; 4 << 20];
type Region = [AtomicU64; 4096];

#[derive(Default)]
struct Null(u64);

impl Sink for Null {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.0 += request.data.len() as u64;
        Submitted::Ended(Outcome::Done)
    }
    fn call(&mut self, _queue: u16) {}
    fn report(&mut self, event: Event) {
        panic!("{event:?}");
    }
}

fn mapped<T: zerocopy::FromBytes + Sync>() -> Arc<MemoryMap> {
    let ram = SharedRegion::<T>::memfd("bench").unwrap();
    let fd = ram.fd().unwrap().try_clone_to_owned().unwrap();
    let len = size_of::<T>() as u64;
    let mapping = Mapping::new(fd, 0, len, Access::BOTH).unwrap();
    Arc::new(MemoryMap::empty().with(Iova(0), len, Access::BOTH, Some((mapping, 0))).unwrap())
}

/// The driver: `SIZE / 4` chains of three descriptors, or as many indirect tables where packed.
struct Driver {
    map: Arc<MemoryMap>,
    packed: bool,
    ring: Window,
    avail: Window,
    at: u16,
    wrap: bool,
    count: u64,
}

impl Driver {
    fn descriptors(&self, slot: u16) -> [(u64, u32, u16); 3] {
        let slot = u64::from(slot);
        let header = HEADERS + slot * 64;
        [(header, 16, 0), (DATA + slot * 4096, 4096, 2), (header + 32, 1, 2)]
    }

    fn submit(&mut self, depth: u16) {
        for index in 0..depth {
            let slot = index % (SIZE / 4);
            let header =
                blk::RequestHeader { kind: blk::T_IN, reserved: 0, sector: self.count * 8 % (1 << 20) };
            self.map.write_bytes(Iova(HEADERS + u64::from(slot) * 64), header.as_bytes()).unwrap();
            self.count += 1;
            if self.packed { self.put_packed(slot) } else { self.put_split(slot) }
        }
        if !self.packed {
            self.avail.store_u16(2, self.at).unwrap();
        }
    }

    fn put_split(&mut self, slot: u16) {
        for (index, (addr, len, flags)) in (0..).zip(self.descriptors(slot)) {
            let next = slot * 3 + index + 1;
            let flags = flags | u16::from(index < 2);
            let desc = blk::Descriptor { addr, len, flags, next };
            self.ring.write(usize::from(next - 1) * 16, desc.as_bytes()).unwrap();
        }
        self.avail.store_u16(4 + usize::from(self.at % SIZE) * 2, slot * 3).unwrap();
        self.at = self.at.wrapping_add(1);
    }

    fn put_packed(&mut self, slot: u16) {
        for (index, (addr, len, flags)) in self.descriptors(slot).into_iter().enumerate() {
            let wrap = if self.wrap { blk::DESC_AVAIL } else { blk::DESC_USED };
            let desc =
                blk::PackedDescriptor { addr, len, id: slot, flags: flags | u16::from(index < 2) | wrap };
            self.ring.write(usize::from(self.at) * 16, desc.as_bytes()).unwrap();
            self.at += 1;
            if self.at == SIZE {
                (self.at, self.wrap) = (0, !self.wrap);
            }
        }
    }
}

fn measure(packed: bool, depth: u16, rounds: u32) {
    let (map, region) = (mapped::<Ram>(), mapped::<Region>());
    let limits = Limits { capacity_bytes: 1 << 32, block_bytes: 512, segments_max: 128, discard: true };
    let device = Device {
        capacity: virtio::config::Capacity::new(1 << 32),
        read_only: false,
        serial: [0; 20],
        num_queues: 1,
        limits,
    };
    let mut group = VirtQueueGroup::new(Arc::new(device), Arc::clone(&map));
    let inflight = QueueRegion::new(&region, Iova(0), (1, SIZE), packed, 0).unwrap();
    let config = RingConfig {
        size: SIZE,
        packed,
        event_idx: false,
        descriptors: 0,
        driver: DRIVER,
        device: DEVICE,
        base: if packed { 0x8000_8000 } else { 0 },
        log_address: None,
        inflight: Some(inflight),
    };
    group.start(0, config).unwrap();
    let ring = Window::new(&map, Iova(0), usize::from(SIZE) * 16, Access::WRITE).unwrap();
    let avail = Window::new(&map, Iova(DRIVER), 4096, Access::WRITE).unwrap();
    let mut driver = Driver { map, packed, ring, avail, at: 0, wrap: true, count: 0 };
    let (mut sink, mut runs) = (Null::default(), Vec::new());
    for _ in 0..5 {
        let mut busy = Duration::ZERO;
        for _ in 0..rounds {
            driver.submit(depth);
            let begin = Instant::now();
            let mut taken = 0;
            while taken < usize::from(depth) {
                taken += group.poll(&mut sink);
                group.flush(&mut sink);
            }
            busy += begin.elapsed();
        }
        runs.push(busy.as_secs_f64() * 1e9 / f64::from(rounds) / f64::from(depth));
    }
    runs.sort_by(f64::total_cmp);
    let kind = if packed { "packed" } else { "split" };
    println!(
        "{kind}, depth {depth}: {:.1} ns per I/O (median of 5), {:.1} least; {} segments",
        runs[2], runs[0], sink.0
    );
}

fn main() {
    let number = |at, or| std::env::args().nth(at).map_or(or, |arg| arg.parse().unwrap());
    let (depth, rounds) = (number(1, 128).min(128), number(2, 10_000));
    for packed in [false, true] {
        measure(packed, u16::try_from(depth).unwrap(), rounds);
    }
}
