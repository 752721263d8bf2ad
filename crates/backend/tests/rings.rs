//! Doors of one thread share a ring: none meets another's results, and none is held up by another's end.
#![expect(unsafe_code, reason = "Backend::submit is an unsafe method")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
// UNSAFETY: each door is drained or dropped before the memory of its requests is touched or freed.

use backend::uring::Rings;
use backend::{Config, Drive, RingHolder, uring};
use block::{Backend, Completion, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: u64 = 1 << 20;
const BLOCK: usize = 4096;

#[derive(Default)]
struct Count {
    opened: AtomicUsize,
    closing: AtomicUsize,
}

impl RingHolder for Count {
    fn opened(&self, _ring: BorrowedFd<'_>) -> std::io::Result<()> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn closing(&self, _ring: BorrowedFd<'_>) {
        self.closing.fetch_add(1, Ordering::Relaxed);
    }
}

fn config(path: &Path) -> uring::Config {
    let (size_bytes, direct) = (Some(SIZE), uring::Direct::Auto);
    uring::Config { size_bytes, direct, ..uring::Config::new(path) }
}

fn drive(folder: &Path, name: &str) -> Drive {
    Drive::open(&Config::Uring(config(&folder.join(name)))).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn start(door: &mut dyn Backend, token: u64, op: Op, buffer: &mut [u8]) {
    let range = Range { start_bytes: token * BLOCK as u64 % SIZE, len_bytes: BLOCK as u64 };
    let data = [Segment::of(buffer)];
    // SAFETY: see the module.
    let submitted = unsafe { door.submit(&Request { token: Token(token), op, range, data: &data }) };
    assert!(matches!(submitted, Submitted::Queued));
}

fn poll_until_empty(door: &mut dyn Backend) -> Vec<Completion> {
    let (mut all, mut done) = (Vec::new(), Vec::with_capacity(4));
    while door.in_flight() > 0 {
        door.poll(&mut done);
        all.append(&mut done);
    }
    all
}

#[test]
fn doors_of_one_ring_get_their_own_results_and_all_of_them() {
    let (folder, count) = (folder(), Arc::new(Count::default()));
    let rings = Rings::new(Some(Arc::clone(&count) as Arc<dyn RingHolder>));
    let drives: Vec<Drive> = ["a", "b", "c"].iter().map(|name| drive(folder.path(), name)).collect();
    let mut doors: Vec<_> = drives.iter().map(|drive| drive.door(&rings).unwrap()).collect();
    let mut buffers: Vec<Vec<u8>> = (0_u8..96).map(|n| vec![n; BLOCK]).collect();
    for (n, buffer) in (0..).zip(&mut buffers) {
        start(doors[n % 3].as_mut(), n as u64, Op::Write { fua: false }, buffer);
    }
    // One call hands in what all have submitted.
    doors[0].kick();
    for (at, door) in doors.iter_mut().enumerate() {
        let mut tokens: Vec<u64> = poll_until_empty(door.as_mut())
            .into_iter()
            .map(|(token, outcome)| {
                assert_eq!(outcome, Outcome::Done);
                token.0
            })
            .collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq((0..96).filter(|n| n % 3 == at as u64)));
    }
    assert!(!rings.is_ready());
    // Each wrote to its own file.
    for (n, name) in ["a", "b", "c"].iter().enumerate() {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        for block in 0..96 {
            let expected = if block % 3 == n { u8::try_from(block).unwrap() } else { 0 };
            assert!(bytes[block * BLOCK..][..BLOCK].iter().all(|byte| *byte == expected), "{name} {block}");
        }
    }
    assert_eq!(count.opened.load(Ordering::Relaxed), 1);
    drop((doors, rings));
    assert_eq!(count.closing.load(Ordering::Relaxed), 1);
}

#[test]
fn results_that_another_door_met_are_ready_though_the_descriptor_is_not() {
    let folder = folder();
    let rings = Rings::new(None);
    let (one, other) = (drive(folder.path(), "a"), drive(folder.path(), "b"));
    let (mut one, mut other) = (one.door(&rings).unwrap(), other.door(&rings).unwrap());
    let (mut first, mut second) = (vec![1; BLOCK], vec![2; BLOCK]);
    start(one.as_mut(), 0, Op::Write { fua: false }, &mut first);
    start(other.as_mut(), 0, Op::Write { fua: false }, &mut second);
    one.kick();
    let mut done = Vec::with_capacity(4);
    while !rings.is_ready() {
        one.poll(&mut done);
        if one.in_flight() == 0 {
            // So that it looks again.
            start(one.as_mut(), 1, Op::Write { fua: false }, &mut first);
            one.kick();
        }
    }
    done.clear();
    other.poll(&mut done);
    assert_eq!(done, [(Token(0), Outcome::Done)]);
    // The other's poll may have met what this one started last.
    poll_until_empty(one.as_mut());
    assert!(!rings.is_ready());
}

#[test]
fn a_door_closed_under_load_frees_its_file_and_takes_nothing_from_its_neighbour() {
    let folder = folder();
    let rings = Rings::new(None);
    let stays = drive(folder.path(), "stays");
    let mut stays = stays.door(&rings).unwrap();
    let mut kept: Vec<Vec<u8>> = (0..32).map(|_| vec![7; BLOCK]).collect();
    for round in 0..20 {
        let goes = drive(folder.path(), "goes");
        let mut door = goes.door(&rings).unwrap();
        let mut lost: Vec<Vec<u8>> = (0..32).map(|_| vec![9; BLOCK]).collect();
        for (n, (kept, lost)) in (0..).zip(kept.iter_mut().zip(&mut lost)) {
            start(stays.as_mut(), n, Op::Write { fua: false }, kept);
            start(door.as_mut(), n, Op::Write { fua: false }, lost);
        }
        if round % 2 == 0 {
            door.kick();
        }
        // The next round opens the file again, which its lock would refuse.
        drop((door, goes));
        let ended = poll_until_empty(stays.as_mut());
        assert_eq!(ended.len(), 32);
        assert!(ended.iter().all(|(_, outcome)| *outcome == Outcome::Done));
    }
}

#[test]
fn a_door_that_finds_no_room_gets_another_ring_and_a_closed_one_makes_room() {
    let (folder, count) = (folder(), Arc::new(Count::default()));
    let rings = Rings::new(Some(Arc::clone(&count) as Arc<dyn RingHolder>));
    let deep = uring::Config { depth: 4096, ..config(&folder.path().join("deep")) };
    let deep = Drive::open(&Config::Uring(deep)).unwrap();
    let opened = || count.opened.load(Ordering::Relaxed);
    let mut doors: Vec<_> = (0..4).map(|_| deep.door(&rings).unwrap()).collect();
    assert_eq!(opened(), 1);
    doors.push(deep.door(&rings).unwrap());
    assert_eq!(opened(), 2);
    doors.remove(0);
    doors.push(deep.door(&rings).unwrap());
    assert_eq!(opened(), 2);
}

#[test]
fn more_than_the_submission_ring_holds_is_handed_in_on_the_way() {
    let folder = folder();
    let deep = uring::Config { depth: 4096, ..config(&folder.path().join("deep")) };
    let deep = Drive::open(&Config::Uring(deep)).unwrap();
    let mut door = deep.door(&Rings::new(None)).unwrap();
    // Aligned: there are only so many bounce buffers.
    let mut memory = vec![3; 2049 * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    for (n, buffer) in (0..2048).zip(memory[aligned..].chunks_mut(BLOCK)) {
        start(door.as_mut(), n, Op::Read, buffer);
    }
    door.kick();
    assert_eq!(poll_until_empty(door.as_mut()).len(), 2048);
}
