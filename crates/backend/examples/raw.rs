//! A backend's own speed, without a controller: `raw PATH [read|write] BLOCK_BYTES DEPTH SECONDS [registered]`.
//!
//! Random blocks over the whole file, which must exist; `ram` and `null` in the place of the path measure those. The
//! figures stand beside those of `fio --ioengine=io_uring --direct=1` on the same file.
#![expect(unsafe_code, reason = "Backend::submit is an unsafe method")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for measuring")]
// UNSAFETY: the buffers live until the door is dropped.

use backend::{Config, Drive, uring};
use block::{Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::time::{Duration, Instant};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next();
    let usage = "raw PATH|ram|null read|write BLOCK_BYTES DEPTH SECONDS [registered]";
    let path = next().expect(usage);
    let op = if next().expect(usage) == "write" { Op::Write { fua: false } } else { Op::Read };
    let block: usize = next().expect(usage).parse().expect(usage);
    let depth: usize = next().expect(usage).parse().expect(usage);
    let seconds: u64 = next().expect(usage).parse().expect(usage);
    let register_buffers = next().is_some();
    let config = match path.as_str() {
        "ram" => Config::Ram { size_bytes: 1 << 30 },
        "null" => Config::Null { size_bytes: 1 << 30 },
        path => Config::Uring(uring::Config { register_buffers, ..uring::Config::new(path) }),
    };
    let drive = Drive::open(&config).unwrap();
    let (map, buffers) = guest(block, depth);
    let mut door = drive.door(&uring::Rings::new(None)).unwrap();
    door.memory_changed(&map);
    if path == "ram" {
        fill(&mut *door);
    }
    let blocks = door.limits().capacity_bytes / block as u64;
    let mut random = 88_172_645_463_325_252_u64;
    let mut began = vec![Instant::now(); depth];
    let mut latencies: Vec<u32> = Vec::with_capacity(1 << 24);
    let mut free: Vec<usize> = (0..depth).collect();
    let mut done = Vec::with_capacity(depth);
    let start = Instant::now();
    let mut ended = 0_u64;
    while start.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..64 {
            while let Some(slot) = free.pop() {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let range = Range { start_bytes: random % blocks * block as u64, len_bytes: block as u64 };
                let data = &buffers[slot..=slot];
                let request = Request { token: Token(slot as u64), op, range, data };
                began[slot] = Instant::now();
                // SAFETY: see the top.
                match unsafe { door.submit(&request) } {
                    Submitted::Queued => {}
                    Submitted::Ended(outcome) => {
                        assert_eq!(outcome, Outcome::Done);
                        ended += 1;
                        free.push(slot);
                        if ended.is_multiple_of(64) {
                            break;
                        }
                    }
                    Submitted::Full => unreachable!("the ring is deeper than the depth"),
                }
            }
            door.kick();
            door.poll(&mut done);
            for (token, outcome) in done.drain(..) {
                assert_eq!(outcome, Outcome::Done);
                let slot = usize::try_from(token.0).unwrap();
                let ns = u32::try_from(began[slot].elapsed().as_nanos()).unwrap_or(u32::MAX);
                if latencies.len() < latencies.capacity() {
                    latencies.push(ns);
                }
                free.push(slot);
                ended += 1;
            }
        }
    }
    let elapsed = start.elapsed();
    drop(door);
    latencies.sort_unstable();
    let at = |part: usize| latencies.get(latencies.len() * part / 1000).copied().unwrap_or(0);
    let mean = latencies.iter().map(|ns| u64::from(*ns)).sum::<u64>() / (latencies.len() as u64).max(1);
    let iops = u128::from(ended) * 1_000_000 / elapsed.as_micros();
    println!("{path} {op:?} {block} B depth {depth}: {iops} IOPS, {} ns each,", 1_000_000_000 / iops.max(1));
    println!("  latency mean {mean} ns, p50 {} ns, p99 {} ns", at(500), at(990));
}

/// Writes all of a drive that ends requests at once, so that no page of it is new to what follows.
fn fill(door: &mut dyn block::Backend) {
    let mut bytes = vec![1; 1 << 20];
    for start_bytes in (0..door.limits().capacity_bytes).step_by(1 << 20) {
        let range = Range { start_bytes, len_bytes: 1 << 20 };
        let data = &[Segment::of(&mut bytes)];
        let request = Request { token: Token(0), op: Op::Write { fua: false }, range, data };
        // SAFETY: it ends before `bytes` does.
        assert_eq!(unsafe { door.submit(&request) }, Submitted::Ended(Outcome::Done));
    }
}

/// A guest's memory: a memfd through a real map.
fn guest(block: usize, depth: usize) -> (std::sync::Arc<memory::MemoryMap>, Vec<Segment>) {
    use memory::{Access, Hint, Iova, Mapping, MemoryMap};
    use std::os::fd::FromRawFd;
    let len = (block * depth) as u64;
    // SAFETY: a NUL-terminated name; the result is a new descriptor.
    let file =
        unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    let mapping = Mapping::new(file.into(), 0, len, Access::BOTH).unwrap();
    let map = MemoryMap::empty().with(Iova(0), len, Access::BOTH, Some((mapping, 0))).unwrap();
    map.write_bytes(Iova(0), &vec![0xA5; block * depth]).unwrap();
    let segment =
        |n: usize| map.segment(&mut Hint::default(), Iova((n * block) as u64), block, Access::BOTH).unwrap();
    let segments = (0..depth).map(segment).collect();
    (std::sync::Arc::new(map), segments)
}
