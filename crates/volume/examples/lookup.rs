//! What the way through a volume's map costs: nanoseconds of a lookup, and those that a door adds to an I/O in all, at random places
//! of maps that fit in a processor's cache and of one that does not. `cargo run --release -p volume --example lookup`.
#![expect(unsafe_code, reason = "requests without memory are handed to a door")]
// UNSAFETY: the backend here touches no memory.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use block::{Backend, Completion, Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use volume::door::{Allocator, Door, Gate, Ticket};
use volume::{Entry, ExtentMap, VolumeId};

const DEPTH: usize = 32;
/// Short, so that the best of many was not interrupted on a busy machine.
const ROUNDS: u64 = 6_400;
const REPEATS: usize = 500;

/// Takes all and ends all, and does nothing.
struct Hollow(Vec<Completion>, u64);

impl Backend for Hollow {
    fn limits(&self) -> Limits {
        Limits { capacity_bytes: u64::MAX >> 1, block_bytes: 512, segments_max: 64, discard: true }
    }

    #[inline(never)]
    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.1 ^= black_box(request.range.start_bytes);
        self.0.push((request.token, Outcome::Done));
        Submitted::Queued
    }

    fn kick(&mut self) {}

    #[inline(never)]
    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.0);
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

struct Nobody;

impl Allocator for Nobody {
    fn own(&self, _: VolumeId, _: u32) {}
    fn release(&self, _: VolumeId, _: (u32, u32), _: Arc<Ticket>) {}
}

/// Nanoseconds an I/O.
fn measure(backend: &mut dyn Backend, size_bytes: u64) -> f64 {
    let mut byte = [0_u8; 4096];
    let data = [Segment::of(&mut byte)];
    let mut done = Vec::with_capacity(DEPTH * 2);
    let mut chance = 88_172_645_463_325_252_u64;
    let mut best = f64::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        for _ in 0..ROUNDS / DEPTH as u64 {
            for token in 0..DEPTH as u64 {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                let range = Range { start_bytes: chance % (size_bytes / 4096) * 4096, len_bytes: 4096 };
                let request = Request { token: Token(token), op: Op::Read, range, data: &data };
                // SAFETY: no memory is touched.
                unsafe { backend.submit(&request) };
            }
            backend.poll(&mut done);
            assert_eq!(done.len(), DEPTH);
            done.clear();
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / ROUNDS as f64);
    }
    best
}

/// Nanoseconds of the map alone: from a byte of the volume to one of the drive.
fn look_up(map: &ExtentMap, size_bytes: u64) -> f64 {
    let (mut chance, mut best) = (88_172_645_463_325_252_u64, f64::MAX);
    for _ in 0..REPEATS {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            chance = chance.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            let (logical, offset) = map.locate((chance >> 8) % size_bytes).unwrap();
            let (Entry::Mapped { physical } | Entry::Shared { physical }) = map.entry(logical) else {
                continue;
            };
            black_box(map.drive_offset(physical) + offset);
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / ROUNDS as f64);
    }
    best
}

fn main() {
    let bare = |size| measure(&mut Hollow(Vec::with_capacity(DEPTH), 0), size);
    for (what, extents, extent_bytes, contiguous) in [
        ("full, 1 TiB in extents of 64 MiB", 16 << 10, 64 << 20, true),
        ("thin, 1 TiB in extents of 64 MiB", 16 << 10, 64 << 20, false),
        ("thin, 8 TiB in extents of 1 MiB", 8 << 20, 1 << 20, false),
    ] {
        let size = extents * extent_bytes;
        let map = Arc::new(ExtentMap::new(size, extent_bytes, 1 << 20).unwrap());
        for logical in 0..u32::try_from(extents).unwrap() {
            // Scattered as a thin volume's are, by a number that is odd.
            let scattered = logical.wrapping_mul(0x9E37_79B1) & (u32::try_from(extents).unwrap() - 1);
            map.set(logical, Entry::Mapped { physical: if contiguous { logical } else { scattered } });
        }
        let alone = look_up(&map, size);
        let gate = Gate::new(VolumeId(1), map);
        let hollow = Box::new(Hollow(Vec::with_capacity(DEPTH), 0));
        let mut door = Door::new(hollow, &gate, Arc::new(Nobody), !contiguous, Arc::new(|| {}));
        let (with, without) = (measure(&mut door, size), bare(size));
        println!(
            "lookup {what}: {alone:.1} ns; the door in all: {:.1} ns an I/O (with {with:.1}, without {without:.1})",
            with - without
        );
    }
}
