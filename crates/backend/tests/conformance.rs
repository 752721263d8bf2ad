//! The promises of `block::Backend`, kept by every backend alike.
//!
//! `GODWIT_TEST_DEVICE=/dev/loop0 cargo test -p backend -- --test-threads=1` tests that block device too, and erases its
//! first 4 MiB.
#![expect(unsafe_code, reason = "Backend::submit is an unsafe method")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
// UNSAFETY: `Bed` owns the memory of its requests and drives each to its end before that memory is touched or freed.

use backend::{Config, Drive, faulty, uring};
use block::{Backend, Completion, Fault, Op, Outcome, Range, Request, Submitted, Token};
use memory::{Access, Hint, Iova, Mapping, MemoryMap, Segment};
use proptest::prelude::*;
use std::collections::HashMap;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::Arc;

const SIZE: u64 = 4 << 20;
const WRITE: Op = Op::Write { fua: false };
const ZERO: Op = Op::WriteZeroes { deallocate: false, fua: false };
const ZERO_GIVE_BACK: Op = Op::WriteZeroes { deallocate: true, fua: true };

/// A door and the memory of its requests.
struct Bed {
    door: Box<dyn Backend>,
    /// What came back, by token.
    ended: HashMap<u64, Outcome>,
    done: Vec<Completion>,
    next: u64,
}

impl Bed {
    fn new(drive: &Drive) -> Bed {
        let done = Vec::with_capacity(16);
        Bed { door: drive.door(&uring::Rings::new(None)).unwrap(), ended: HashMap::new(), done, next: 0 }
    }

    /// Submits until it is taken. The memory must live until `drain`.
    fn start(&mut self, op: Op, start_bytes: u64, len_bytes: u64, data: &[Segment]) -> u64 {
        self.next += 1;
        let token = self.next;
        let range = Range { start_bytes, len_bytes };
        let request = Request { token: Token(token), op, range, data };
        loop {
            // SAFETY: see the module.
            match unsafe { self.door.submit(&request) } {
                Submitted::Queued => break,
                Submitted::Ended(outcome) => {
                    assert!(self.ended.insert(token, outcome).is_none());
                    break;
                }
                Submitted::Full => {
                    self.door.kick();
                    self.poll();
                }
            }
        }
        token
    }

    fn poll(&mut self) {
        self.door.poll(&mut self.done);
        for (token, outcome) in self.done.drain(..) {
            assert!(self.ended.insert(token.0, outcome).is_none(), "a token came back twice");
        }
    }

    fn drain(&mut self) {
        self.door.kick();
        while self.door.in_flight() > 0 {
            self.poll();
        }
        self.poll();
    }

    fn run(&mut self, op: Op, start: u64, len: u64, data: &[Segment]) -> Outcome {
        let token = self.start(op, start, len, data);
        self.drain();
        self.ended.remove(&token).unwrap()
    }

    fn write(&mut self, start: u64, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let outcome = self.run(WRITE, start, bytes.len() as u64, &[Segment::of(&mut bytes)]);
        assert_eq!(outcome, Outcome::Done);
    }

    fn read(&mut self, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        let outcome = self.run(Op::Read, start, len as u64, &[Segment::of(&mut bytes)]);
        assert_eq!(outcome, Outcome::Done);
        bytes
    }
}

/// Every drive that keeps data, by name.
fn drives(dir: &Path) -> Vec<(&'static str, Config)> {
    let file = |name: &str| {
        let size_bytes = Some(SIZE);
        uring::Config { size_bytes, ..uring::Config::new(dir.join(name)) }
    };
    let shm = format!("/dev/shm/godwit-conformance-{}-{:?}", std::process::id(), std::thread::current().id());
    let slow = faulty::Plan {
        seed: 7,
        delay: 500_000,
        delay_polls_max: 5,
        reorder: true,
        full: 100_000,
        full_submits_max: 3,
        ..faulty::Plan::default()
    };
    let mut drives = vec![
        ("ram", Config::Ram { size_bytes: SIZE }),
        ("direct file", Config::Uring(file("direct"))),
        ("cached file", Config::Uring(uring::Config { direct: uring::Direct::Never, ..file("cached") })),
        ("shallow file", Config::Uring(uring::Config { depth: 2, ..file("shallow") })),
        ("registered file", Config::Uring(uring::Config { register_buffers: true, ..file("registered") })),
        ("tmpfs", Config::Uring(uring::Config { path: shm.into(), ..file("") })),
        (
            "slow ram",
            Config::Faulty { inner: Box::new(Config::Ram { size_bytes: SIZE }), plan: slow.clone() },
        ),
        ("slow file", Config::Faulty { inner: Box::new(Config::Uring(file("slow"))), plan: slow }),
    ];
    if let Some(path) = std::env::var_os("GODWIT_TEST_DEVICE") {
        let device = uring::Config { size_bytes: Some(SIZE), ..uring::Config::new(path) };
        drives.push(("block device", Config::Uring(device)));
    }
    drives
}

/// Runs a promise on every drive.
fn on_each(promise: impl Fn(&mut Bed)) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, config) in drives(dir.path()) {
        eprintln!("on {name}");
        let drive = Drive::open(&config).unwrap();
        let mut bed = Bed::new(&drive);
        if name == "block device" {
            assert_eq!(bed.run(ZERO, 0, SIZE, &[]), Outcome::Done);
        }
        promise(&mut bed);
        if name == "tmpfs" {
            remove(config);
        }
    }
}

fn remove(config: Config) {
    if let Config::Uring(config) = config {
        let _ = std::fs::remove_file(config.path);
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed ^ u8::try_from(at * 7 % 251).unwrap()).collect()
}

#[test]
fn what_is_written_is_read_and_what_never_was_is_zeros() {
    on_each(|bed| {
        assert!(bed.read(0, 8192).iter().all(|byte| *byte == 0));
        for (start, len) in [(0, 4096), (512 * 1024, 1 << 20), (SIZE - 4096, 4096), (8192, 131_072)] {
            let bytes = pattern(len, 3);
            bed.write(start, &bytes);
            assert!(bed.read(start, len) == bytes);
        }
    });
}

#[test]
fn data_may_lie_anywhere_in_memory_in_pieces_of_any_length() {
    on_each(|bed| {
        let bytes = pattern(300 * 1024, 9);
        let mut memory = vec![0; 310 * 1024];
        let mut pieces = vec![];
        let (mut at, mut left) = (3, bytes.as_slice());
        for length in [1, 511, 4096, 7, 100_000, 12, 65_536, 3, 9000, usize::MAX] {
            let (now, later) = left.split_at(length.min(left.len()));
            memory[at..at + now.len()].copy_from_slice(now);
            pieces.push((at, now.len()));
            (at, left) = (at + now.len() + 5, later);
        }
        let whole = Segment::of(&mut memory);
        let segments: Vec<Segment> =
            pieces.iter().map(|(at, len)| whole.split_at(*at).1.split_at(*len).0).collect();
        assert_eq!(bed.run(WRITE, 4096, bytes.len() as u64, &segments), Outcome::Done);
        assert!(bed.read(4096, bytes.len()) == bytes);
        memory.fill(0);
        assert_eq!(bed.run(Op::Read, 4096, bytes.len() as u64, &segments), Outcome::Done);
        for ((at, len), from) in pieces.iter().zip(segments.iter().scan(0, |sum, segment| {
            *sum += segment.len();
            Some(*sum - segment.len())
        })) {
            assert!(memory[*at..at + len] == bytes[from..from + len]);
        }
        assert_eq!(memory[..3], [0; 3], "nothing beside the pieces is touched");
    });
}

#[test]
fn two_hundred_and_fifty_seven_pages_scattered_in_memory_are_one_request() {
    on_each(|bed| {
        let mut memory = vec![0_u8; 600 * 4096];
        for (page, bytes) in (0_u32..).zip(memory.chunks_mut(4096)) {
            bytes.fill(u8::try_from(page % 256).unwrap());
        }
        let skip = memory.as_ptr().align_offset(4096);
        let whole = Segment::of(&mut memory[skip..]);
        let pages: Vec<Segment> =
            (0..256).map(|n| whole.split_at((n * 2 + 1) * 4096).1.split_at(4096).0).collect();
        assert_eq!(bed.run(WRITE, 0, 1 << 20, &pages), Outcome::Done);
        let back = bed.read(0, 1 << 20);
        for (n, page) in back.chunks(4096).enumerate() {
            let at = skip + (n * 2 + 1) * 4096;
            assert!(page == &memory[at..at + 4096]);
        }
    });
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeros_and_their_neighbours_stay() {
    on_each(|bed| {
        for op in [ZERO, ZERO_GIVE_BACK, Op::Discard, Op::WriteZeroes { deallocate: false, fua: true }] {
            for (start, len) in [(512_u64, 512_u64), (4096, 4096), (4608, 1 << 20), (512 * 3, 200 * 1024)] {
                let bytes = pattern(2 << 20, 5);
                bed.write(0, &bytes);
                assert_eq!(bed.run(op, start, len, &[]), Outcome::Done, "{op:?}");
                let back = bed.read(0, 2 << 20);
                let (from, to) = (usize::try_from(start).unwrap(), usize::try_from(start + len).unwrap());
                assert!(back[..from] == bytes[..from], "{op:?} {start} {len}");
                assert!(back[from..to].iter().all(|byte| *byte == 0), "{op:?} {start} {len}");
                assert!(back[to..] == bytes[to..], "{op:?} {start} {len}");
            }
        }
    });
}

#[test]
fn a_flush_and_a_forced_write_complete() {
    on_each(|bed| {
        bed.write(0, &pattern(4096, 1));
        assert_eq!(bed.run(Op::Flush, 0, 0, &[]), Outcome::Done);
        let mut bytes = pattern(12_288, 2);
        let data = [Segment::of(&mut bytes)];
        assert_eq!(bed.run(Op::Write { fua: true }, 8192, 12_288, &data), Outcome::Done);
        assert_eq!(bed.read(8192, 12_288), pattern(12_288, 2));
    });
}

#[test]
fn what_lies_outside_or_does_not_add_up_is_refused_and_touches_nothing() {
    on_each(|bed| {
        let mut bytes = vec![1; 8192];
        let data = [Segment::of(&mut bytes)];
        let out = Outcome::Failed(Fault::OutOfRange);
        for start in [SIZE - 4096, SIZE, SIZE + 8192, u64::MAX - 511, u64::MAX - 8191] {
            for op in [Op::Read, WRITE, ZERO, Op::Discard] {
                assert_eq!(bed.run(op, start, 8192, &data), out);
            }
        }
        assert_eq!(bed.run(WRITE, 1, 8192, &data), out);
        assert_eq!(bed.run(Op::Discard, 0, 511, &[]), out);
        assert_eq!(bed.run(Op::Discard, 0, u64::MAX - 511, &[]), out);
        assert_eq!(bed.run(WRITE, 0, 4096, &data), Outcome::Failed(Fault::Memory));
        assert_eq!(bed.run(Op::Read, 0, 16_384, &data), Outcome::Failed(Fault::Memory));
        assert_eq!(bed.run(Op::Read, 0, 8192, &[]), Outcome::Failed(Fault::Memory));
        assert_eq!(bed.run(Op::Discard, 4096, 0, &[]), Outcome::Done);
        assert!(bed.read(SIZE - 8192, 8192).iter().all(|byte| *byte == 0));
        assert_eq!(bytes, vec![1; 8192]);
    });
}

#[test]
fn of_many_requests_in_flight_each_ends_once_with_its_own_data() {
    on_each(|bed| {
        let mut memory: Vec<Vec<u8>> = (0..900_u16).map(|n| n.to_le_bytes().repeat(2048)).collect();
        for (n, bytes) in (0..).zip(&mut memory) {
            bed.start(WRITE, n * 4096, 4096, &[Segment::of(bytes)]);
        }
        bed.drain();
        assert_eq!(bed.ended.len(), 900);
        memory.iter_mut().for_each(|bytes| bytes.fill(0));
        for (n, bytes) in (0..).zip(&mut memory) {
            bed.start(Op::Read, n * 4096, 4096, &[Segment::of(bytes)]);
        }
        bed.drain();
        assert_eq!(bed.ended.len(), 1800);
        assert!(bed.ended.values().all(|outcome| *outcome == Outcome::Done));
        assert!((0..900_u16).zip(&memory).all(|(n, bytes)| *bytes == n.to_le_bytes().repeat(2048)));
    });
}

#[test]
fn a_door_dropped_with_requests_in_flight_leaves_no_write_behind() {
    on_each(|bed| {
        let mut memory = vec![vec![1_u8; 65_536]; 32];
        for (n, bytes) in (0..).zip(&mut memory) {
            bed.start(Op::Read, n * 65_536, 65_536, &[Segment::of(bytes)]);
        }
        bed.door.kick();
        let null = Drive::open(&Config::Null { size_bytes: 4096 }).unwrap();
        bed.door = null.door(&uring::Rings::new(None)).unwrap();
        memory.iter_mut().for_each(|bytes| bytes.fill(7));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(memory.iter().flatten().all(|byte| *byte == 7));
    });
}

#[test]
fn two_doors_on_two_threads_see_one_drive() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, config) in drives(dir.path()) {
        let drive = Drive::open(&config).unwrap();
        std::thread::scope(|scope| {
            for n in 0..2_u8 {
                let drive = &drive;
                scope.spawn(move || {
                    let mut bed = Bed::new(drive);
                    for block in 0..64 {
                        bed.write((block * 2 + u64::from(n)) * 4096, &pattern(4096, n));
                    }
                });
            }
        });
        let mut bed = Bed::new(&drive);
        for block in 0..128_u8 {
            assert_eq!(bed.read(u64::from(block) * 4096, 4096), pattern(4096, block % 2), "{name}");
        }
        if name == "tmpfs" {
            remove(config);
        }
    }
}

#[test]
fn a_sleeper_on_the_wake_fd_wakes_when_there_is_something_to_poll() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let config = uring::Config { size_bytes: Some(SIZE), ..uring::Config::new(dir.path().join("file")) };
    let drive = Drive::open(&Config::Uring(config)).unwrap();
    let mut bed = Bed::new(&drive);
    let mut bytes = vec![1; 4096];
    for block in 0..100 {
        let token = bed.start(WRITE, block * 4096, 4096, &[Segment::of(&mut bytes)]);
        bed.door.kick();
        while !bed.ended.contains_key(&token) {
            let mut poll = libc::pollfd { fd: bed.door.wake_fd().unwrap(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd of ours.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 5000) }, 1, "slept on");
            bed.poll();
        }
    }
}

/// A guest's memory of `len` bytes: its file and its map.
fn guest(len: u64) -> (std::fs::File, Arc<MemoryMap>) {
    // SAFETY: a NUL-terminated name; the result is a new descriptor.
    let file =
        unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    let mapping = Mapping::new(file.try_clone().unwrap().into(), 0, len, Access::BOTH).unwrap();
    let map = MemoryMap::empty().with(Iova(0), len, Access::BOTH, Some((mapping, 0))).unwrap();
    (file, Arc::new(map))
}

#[test]
fn registered_memory_comes_and_goes_and_the_data_is_right() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let config = uring::Config { size_bytes: Some(SIZE), ..uring::Config::new(dir.path().join("file")) };
    let config = uring::Config { register_buffers: true, ..config };
    let mut bed = Bed::new(&Drive::open(&Config::Uring(config)).unwrap());
    for round in 0..20_u8 {
        let (_file, map) = guest(1 << 20);
        bed.door.memory_changed(&map);
        map.write_bytes(Iova(0), &pattern(1 << 19, round)).unwrap();
        let mut hint = Hint::default();
        let mut segment = |at, len| [map.segment(&mut hint, Iova(at), len, Access::BOTH).unwrap()];
        assert_eq!(bed.run(WRITE, 4096, 1 << 19, &segment(0, 1 << 19)), Outcome::Done);
        assert_eq!(bed.run(Op::Read, 4096, 4096, &segment(1 << 19, 4096)), Outcome::Done);
        assert_eq!(map.read::<[u8; 16]>(Iova(1 << 19)), Ok(pattern(16, round).try_into().unwrap()));
        assert_eq!(bed.read(4096, 1 << 19), pattern(1 << 19, round));
        if round % 3 == 0 {
            bed.door.memory_changed(&Arc::new(MemoryMap::empty()));
        }
    }
}

#[test]
fn memory_taken_away_under_a_request_fails_it_or_ends_it_and_harms_nobody() {
    on_each(|bed| {
        let (file, map) = guest(1 << 20);
        bed.write(0, &pattern(1 << 20, 1));
        let data = [map.segment(&mut Hint::default(), Iova(0), 1 << 20, Access::BOTH).unwrap()];
        file.set_len(4096).unwrap();
        let read = bed.run(Op::Read, 0, 1 << 20, &data);
        assert!(matches!(read, Outcome::Done | Outcome::Failed(Fault::Memory)), "{read:?}");
        assert_eq!(bed.read(0, 1 << 20), pattern(1 << 20, 1));
    });
}

#[test]
fn a_file_cut_short_under_us_fails_reads_and_never_hangs() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let config = uring::Config { size_bytes: Some(SIZE), ..uring::Config::new(&path) };
    let mut bed = Bed::new(&Drive::open(&Config::Uring(config)).unwrap());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let mut bytes = vec![0; 65_536];
    let data = [Segment::of(&mut bytes)];
    assert_eq!(bed.run(Op::Read, 0, 65_536, &data), Outcome::Failed(Fault::Media));
    assert_eq!(bed.run(Op::Read, SIZE - 65_536, 65_536, &data), Outcome::Failed(Fault::Media));
}

#[test]
fn the_null_drive_ends_everything_at_once_and_touches_nothing() {
    let mut bed = Bed::new(&Drive::open(&Config::Null { size_bytes: SIZE }).unwrap());
    assert_eq!(bed.read(0, 4096), [0xEE; 4096]);
    assert_eq!(bed.run(Op::Discard, SIZE, 512, &[]), Outcome::Failed(Fault::OutOfRange));
    assert_eq!(bed.door.in_flight(), 0);
}

#[test]
fn a_drive_that_cannot_be_opened_says_what_and_where_and_what_to_do() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let says = |config: &Config| Drive::open(config).unwrap_err().to_string();
    let file = uring::Config::new(dir.path().join("file"));
    let uring = |config: &uring::Config| Config::Uring(config.clone());
    let missing = says(&uring(&file));
    assert!(missing.contains("/file: cannot open it: ") && missing.contains("give a size"), "{missing}");
    assert!(says(&Config::Ram { size_bytes: 5000 }).contains("multiple of 4096"));
    assert!(says(&Config::Null { size_bytes: 0 }).contains("at least one"));
    let sized = uring::Config { size_bytes: Some(SIZE), ..file.clone() };
    let open = Drive::open(&uring(&sized)).unwrap();
    assert!(says(&uring(&sized)).contains("in use"));
    drop(open);
    assert_eq!(Drive::open(&uring(&file)).unwrap().limits().capacity_bytes, SIZE);
    assert!(says(&uring(&uring::Config { depth: 0, ..sized })).contains("1 to 4096"));
    assert!(says(&uring(&uring::Config::new(dir.path()))).contains("neither a file nor a block device"));
    let plan = faulty::Plan { full: 1_000_000, ..faulty::Plan::default() };
    let inner = Box::new(Config::Null { size_bytes: SIZE });
    assert!(says(&Config::Faulty { inner, plan }).contains("full must stay below"));
}

#[test]
fn a_faulty_drive_fails_by_plan_and_alike_for_the_same_seed() {
    let rule = |on, when, how, fault| faulty::Rule { on, when, how, fault };
    let plan = faulty::Plan {
        seed: 42,
        rules: vec![
            rule(faulty::On::Write, faulty::When::Nth(2), faulty::How::Short, Fault::NoSpace),
            rule(faulty::On::Flush, faulty::When::Every(1), faulty::How::Refused, Fault::Gone),
            rule(faulty::On::Read, faulty::When::Chance(300_000), faulty::How::DoneAndDenied, Fault::Media),
        ],
        ..faulty::Plan::default()
    };
    let run = || {
        let inner = Box::new(Config::Ram { size_bytes: SIZE });
        let mut bed = Bed::new(&Drive::open(&Config::Faulty { inner, plan: plan.clone() }).unwrap());
        bed.write(0, &[1; 4096]);
        let mut bytes = vec![2; 4096];
        let data = [Segment::of(&mut bytes)];
        assert_eq!(bed.run(WRITE, 0, 4096, &data), Outcome::Failed(Fault::NoSpace));
        assert_eq!(bed.run(Op::Flush, 0, 0, &[]), Outcome::Failed(Fault::Gone));
        let reads: Vec<Outcome> = (0..100).map(|_| bed.run(Op::Read, 0, 4096, &data)).collect();
        assert_eq!((bytes[0], bytes[2047], bytes[2048], bytes[4095]), (2, 2, 1, 1), "half of it landed");
        reads
    };
    let reads = run();
    assert_eq!(reads, run());
    assert!(reads.contains(&Outcome::Done) && reads.contains(&Outcome::Failed(Fault::Media)));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, usize),
    Read(u64, u64, usize),
    Zero(u64, u64),
    GiveBack(u64, u64),
    Discard(u64, u64),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0_u64..256;
    let step = prop_oneof![
        4 => (at.clone(), 1_u64..64, 0_usize..9).prop_map(|(at, len, skew)| Step::Write(at, len, skew)),
        3 => (at.clone(), 1_u64..64, 0_usize..9).prop_map(|(at, len, skew)| Step::Read(at, len, skew)),
        1 => (at.clone(), 1_u64..256).prop_map(|(at, len)| Step::Zero(at, len)),
        1 => (at.clone(), 1_u64..256).prop_map(|(at, len)| Step::GiveBack(at, len)),
        1 => (at, 1_u64..256).prop_map(|(at, len)| Step::Discard(at, len)),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..60)
}

/// In blocks of 512 bytes, over the first 160 KiB or so; `skew` misaligns the memory.
fn agrees_with_the_model(bed: &mut Bed, steps: &[Step]) {
    let mut model = vec![0_u8; 512 * 600];
    let range = |at: u64, len: u64| {
        let from = usize::try_from(at * 512).unwrap();
        from..from + usize::try_from(len * 512).unwrap()
    };
    for (n, step) in steps.iter().enumerate() {
        match *step {
            Step::Write(at, len, skew) => {
                let range = range(at, len);
                let mut bytes = pattern(range.len() + skew, u8::try_from(n).unwrap());
                model[range.clone()].copy_from_slice(&bytes[skew..]);
                let (head, tail) = Segment::of(&mut bytes[skew..]).split_at(range.len() / 3);
                assert_eq!(bed.run(WRITE, at * 512, len * 512, &[head, tail]), Outcome::Done);
            }
            Step::Read(at, len, skew) => {
                let range = range(at, len);
                let mut bytes = vec![0xEE; range.len() + skew];
                let data = [Segment::of(&mut bytes[skew..])];
                assert_eq!(bed.run(Op::Read, at * 512, len * 512, &data), Outcome::Done);
                assert!(bytes[skew..] == model[range], "step {n}");
            }
            Step::Zero(at, len) | Step::GiveBack(at, len) | Step::Discard(at, len) => {
                model[range(at, len)].fill(0);
                let op = match step {
                    Step::Zero(..) => ZERO,
                    Step::GiveBack(..) => ZERO_GIVE_BACK,
                    _ => Op::Discard,
                };
                assert_eq!(bed.run(op, at * 512, len * 512, &[]), Outcome::Done);
            }
            Step::Flush => assert_eq!(bed.run(Op::Flush, 0, 0, &[]), Outcome::Done),
        }
    }
    assert!(bed.read(0, model.len()) == model);
}

#[test]
fn a_drive_grows_under_its_open_doors_and_keeps_what_it_has() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, config) in drives(dir.path()).into_iter().filter(|(name, _)| *name != "block device") {
        eprintln!("on {name}");
        let drive = Drive::open(&config).unwrap();
        let (mut one, mut other) = (Bed::new(&drive), Bed::new(&drive));
        one.write(SIZE - 4096, &[1; 4096]);
        other.write(0, &[3; 4096]);
        let mut bytes = [0; 4096];
        let beyond = one.run(Op::Read, SIZE, 4096, &[Segment::of(&mut bytes)]);
        assert_eq!(beyond, Outcome::Failed(Fault::OutOfRange));
        drive.make_room(2 * SIZE).unwrap();
        assert_eq!(drive.limits().capacity_bytes, SIZE, "nobody sees the room");
        // Requests that are under way, of a burst.
        let mut memory = vec![0xEE; 64 << 10];
        let tokens: Vec<u64> = (0..16)
            .map(|at: usize| {
                let piece = Segment::of(&mut memory[at * 4096..(at + 1) * 4096]);
                other.start(Op::Read, 0, 4096, &[piece])
            })
            .collect();
        drive.grow(2 * SIZE).unwrap();
        assert_eq!(
            [drive.limits(), one.door.limits(), other.door.limits()].map(|l| l.capacity_bytes),
            [2 * SIZE; 3]
        );
        other.write(2 * SIZE - 4096, &[2; 4096]);
        assert!(tokens.iter().all(|token| other.ended.remove(token) == Some(Outcome::Done)));
        assert!(memory.iter().all(|byte| *byte == 3));
        assert_eq!(one.read(SIZE, 4096), [0; 4096]);
        assert_eq!(
            (one.read(2 * SIZE - 4096, 4096), one.read(SIZE - 4096, 4096)),
            (vec![2; 4096], vec![1; 4096])
        );
        assert!(drive.make_room(2 * SIZE + 1).is_err());
        if name == "tmpfs" {
            remove(config);
        }
    }
    let null = Drive::open(&Config::Null { size_bytes: SIZE }).unwrap();
    assert!(null.make_room(2 * SIZE).is_err_and(|error| error.to_string().contains("restart godwitd")));
}

#[test]
fn a_successor_has_the_memory_of_a_ram_drive_as_long_as_it_is_to_be() {
    let drive = Drive::open(&Config::Ram { size_bytes: SIZE }).unwrap();
    Bed::new(&drive).write(4096, &[7; 4096]);
    let kept = || drive.descriptor().unwrap();
    // Its predecessor ended before it made the memory longer, or after.
    for _ in 0..2 {
        let next = Drive::take_over(&Config::Ram { size_bytes: 2 * SIZE }, kept()).unwrap();
        let mut bed = Bed::new(&next);
        assert_eq!((bed.read(4096, 4096), bed.read(2 * SIZE - 4096, 4096)), (vec![7; 4096], vec![0; 4096]));
    }
    assert!(Drive::take_over(&Config::Ram { size_bytes: SIZE }, kept()).is_err(), "it does not shrink");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_sequence_of_requests_leaves_the_bytes_a_plain_array_would_hold(steps in steps()) {
        on_each(|bed| agrees_with_the_model(bed, &steps));
    }
}
