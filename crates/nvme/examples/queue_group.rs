//! Nanoseconds per I/O of a `QueueGroup` alone: one queue pair, a sink that ends every request at once, the host's side played
//! by the same thread and timed apart.
//!
//! `cargo run --release -p nvme --example queue_group [-- DEPTH [ROUNDS]]`
#![expect(clippy::unwrap_used, reason = "a measurement: what cannot be set up cannot be measured")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use block::{Limits, Now, Outcome, Request, Submitted};
use memory::{Access, DoorbellPage, Iova, Mapping, MemoryMap, SharedRegion, Window};
use nvme::group::{GroupConfig, QueueGroup};
use nvme::limits::MDTS_BYTES;
use nvme::namespace::{Gate, LbaFormat, Namespace, NamespaceTable};
use nvme::queue::{cq_index, create_cq, create_sq, sq_index};
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use spec::nvme::{Command, NvmOpcode};
use state::region::ControllerRegion;
use zerocopy::IntoBytes;

const ENTRIES: u32 = 1024;
const SQ: u64 = 0x10_0000;
const CQ: u64 = 0x20_0000;
const DATA: u64 = 0x100_0000;
const BLOCKS: u64 = 1 << 20;

type Ram = [AtomicU64; 4 << 20];

#[derive(Default)]
struct Null {
    submitted: u64,
    interrupts: u64,
}

impl Sink for Null {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.submitted += request.data.len() as u64;
        Submitted::Ended(Outcome::Done)
    }
    fn interrupt(&mut self, _vector: u16) {
        self.interrupts += 1;
    }
    fn report(&mut self, event: GroupEvent) {
        panic!("{event:?}");
    }
}

struct Bench {
    group: QueueGroup,
    page: Arc<SharedRegion<DoorbellPage>>,
    ring: Window,
    tail: u32,
    head: u32,
    cid: u16,
}

fn bench() -> Bench {
    let ram = SharedRegion::<Ram>::memfd("bench").unwrap();
    let fd = ram.fd().unwrap().try_clone_to_owned().unwrap();
    let len = size_of::<Ram>() as u64;
    let mapping = Mapping::new(fd, 0, len, Access::BOTH).unwrap();
    let map = Arc::new(MemoryMap::empty().with(Iova(0), len, Access::BOTH, Some((mapping, 0))).unwrap());
    let region = Arc::new(SharedRegion::<ControllerRegion>::memfd("region").unwrap());
    let page = Arc::new(SharedRegion::<DoorbellPage>::memfd("doorbells").unwrap());
    let namespace = Namespace {
        nsid: 1,
        start_bytes: 0,
        reserved_bytes: BLOCKS << 12,
        blocks: BLOCKS,
        format: LbaFormat::B4096,
        attached: true,
        shared: false,
        eui64: [0; 8],
        nguid: [0; 16],
        uuid: [0; 16],
        gate: Gate::Open,
        marks: Arc::default(),
    };
    let limits = Limits { capacity_bytes: BLOCKS << 12, block_bytes: 4096, segments_max: 257, discard: true };
    create_cq(&region, 1, CQ, ENTRIES, Some(1));
    create_sq(&region, 1, SQ, ENTRIES, 1);
    let config = GroupConfig { region, doorbells: Arc::clone(&page), limits, mdts_bytes: MDTS_BYTES };
    let mut group = QueueGroup::new(config, Arc::clone(&map), Arc::new(NamespaceTable::new([namespace])));
    let mut sink = Null::default();
    group.command(GroupCommand::CreateCq { cqid: 1 }, &mut sink);
    group.command(GroupCommand::CreateSq { sqid: 1 }, &mut sink);
    let ring = Window::new(&map, Iova(SQ), ENTRIES as usize * 64, Access::WRITE).unwrap();
    Bench { group, page, ring, tail: 0, head: 0, cid: 0 }
}

impl Bench {
    fn submit(&mut self, depth: u32) {
        for _ in 0..depth {
            let mut command = Command::default();
            let write = self.cid & 1 == 1;
            let opcode = if write { NvmOpcode::Write } else { NvmOpcode::Read };
            command.cdw0 = command.cdw0.with_opcode(opcode.0).with_cid(self.cid);
            command.nsid = 1;
            command.prp1 = DATA + (u64::from(self.cid) & 0xff) * 4096;
            command.set_slba(u64::from(self.cid) * 7919 % BLOCKS);
            self.ring.write(self.tail as usize * 64, command.as_bytes()).unwrap();
            self.tail = (self.tail + 1) % ENTRIES;
            self.cid = self.cid.wrapping_add(1);
        }
        self.page.store(sq_index(1), self.tail);
    }
}

fn main() {
    let number = |at, or| std::env::args().nth(at).map_or(or, |arg| arg.parse().unwrap());
    let (depth, rounds) = (number(1, 128), number(2, 20_000));
    let mut bench = bench();
    let mut sink = Null::default();
    let mut busy = Duration::ZERO;
    let mut runs = Vec::new();
    for _ in 0..5 {
        for _ in 0..rounds {
            bench.submit(depth);
            let begin = Instant::now();
            let mut taken = 0;
            while taken < depth as usize {
                taken += bench.group.poll(Now(0), &mut sink);
                bench.group.flush(&mut sink);
            }
            busy += begin.elapsed();
            bench.head = (bench.head + depth) % ENTRIES;
            bench.page.store(cq_index(1), bench.head);
        }
        runs.push(busy.as_secs_f64() * 1e9 / f64::from(rounds) / f64::from(depth));
        busy = Duration::ZERO;
    }
    runs.sort_by(f64::total_cmp);
    let (median, least) = (runs[runs.len() / 2], runs[0]);
    println!(
        "depth {depth}: {median:.1} ns per I/O (median of 5), {least:.1} least; {} segments",
        sink.submitted
    );
}
