//! What goes through the door comes back, and what is on the drive is noise.
#![expect(unsafe_code, reason = "submits requests over vectors of these tests")]
// UNSAFETY: every vector outlives the door's request.

use backend::uring::Rings;
use backend::{Config, Drive, faulty};
use block::{Backend, Fault, Op, Outcome, Range, Request, Submitted, Token};
use crypt::{Crypt, Key};
use memory::Segment;

const SIZE: u64 = 8 << 20;

fn key(seed: u8) -> Key {
    let bytes: Vec<u8> = (0..64).map(|at| seed.wrapping_mul(31).wrapping_add(at)).collect();
    Key::new(bytes.try_into().expect("64 bytes")).expect("two halves")
}

fn ram() -> Drive {
    Drive::open(&Config::Ram { size_bytes: SIZE }).expect("memory")
}

fn open(drive: &Drive) -> Box<dyn Backend> {
    drive.door(&Rings::new(None)).expect("a door")
}

fn crypt(drive: &Drive, seed: u8) -> Crypt {
    Crypt::new(open(drive), &key(seed)).expect("memory")
}

fn run(door: &mut dyn Backend, op: Op, start_bytes: u64, data: &mut [u8], pieces: usize) -> Outcome {
    let len_bytes = data.len() as u64;
    let data: Vec<Segment> = data.chunks_mut(pieces).map(Segment::of).collect();
    let request = Request { token: Token(7), op, range: Range { start_bytes, len_bytes }, data: &data };
    let mut done = Vec::with_capacity(4);
    loop {
        // SAFETY: the data outlives this function.
        match unsafe { door.submit(&request) } {
            Submitted::Ended(outcome) => return outcome,
            Submitted::Queued => break,
            Submitted::Full => {}
        }
    }
    door.kick();
    while done.is_empty() {
        door.poll(&mut done);
    }
    assert_eq!((done.len(), done[0].0, door.in_flight()), (1, Token(7), 0));
    done[0].1
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 251) % 255).expect("small") ^ seed).collect()
}

#[test]
fn what_is_written_is_read_and_is_not_what_lies_on_the_drive() {
    let drive = ram();
    let (mut door, mut plain) = (crypt(&drive, 1), open(&drive));
    // Shorter and longer than a piece; segments of any length, also across sectors.
    for (start, len, pieces) in
        [(0, 512, 512), (4096, 4096, 300), (1 << 20, 1 << 20, 4096), (65_536, 66_048, 777)]
    {
        let written = noise(len, 3);
        assert_eq!(
            run(&mut door, Op::Write { fua: true }, start, &mut written.clone(), pieces),
            Outcome::Done
        );
        let mut read = vec![0; len];
        assert_eq!(run(&mut door, Op::Read, start, &mut read, pieces), Outcome::Done);
        assert!(read == written, "{len} bytes at {start}");
        let mut raw = vec![0; len];
        assert_eq!(run(&mut *plain, Op::Read, start, &mut raw, len), Outcome::Done);
        let same = raw.iter().zip(&written).filter(|(raw, written)| raw == written).count();
        assert!(same < len / 64, "{same} bytes of {len} lie in the clear");
    }
}

#[test]
fn without_the_key_the_data_is_noise() {
    let drive = ram();
    let written = noise(4096, 9);
    run(&mut crypt(&drive, 1), Op::Write { fua: false }, 0, &mut written.clone(), 4096);
    let mut read = vec![0; 4096];
    run(&mut crypt(&drive, 2), Op::Read, 0, &mut read, 4096);
    assert_ne!(read, written);
    run(&mut crypt(&drive, 1), Op::Read, 0, &mut read, 4096);
    assert_eq!(read, written, "another door with the same key reads it");
}

#[test]
fn what_was_never_written_or_was_zeroed_reads_as_zeros() {
    let drive = ram();
    let mut door = crypt(&drive, 1);
    let mut read = vec![1; 8192];
    run(&mut door, Op::Read, 0, &mut read, 8192);
    assert!(read.iter().all(|byte| *byte == 0));
    run(&mut door, Op::Write { fua: false }, 0, &mut noise(8192, 1), 8192);
    let range = Range { start_bytes: 512, len_bytes: 4096 };
    let op = Op::WriteZeroes { deallocate: true, fua: false };
    // SAFETY: no data.
    let submitted = unsafe { door.submit(&Request { token: Token(1), op, range, data: &[] }) };
    assert_eq!(submitted, Submitted::Ended(Outcome::Done));
    run(&mut door, Op::Read, 0, &mut read, 8192);
    assert!(read[512..4608].iter().all(|byte| *byte == 0));
    assert!(read[..512] == noise(8192, 1)[..512] && read[4608..] == noise(8192, 1)[4608..]);
}

#[test]
fn a_drive_that_is_slow_full_and_out_of_order_loses_and_repeats_nothing() {
    let inner = Box::new(Config::Ram { size_bytes: SIZE });
    let plan = faulty::Plan {
        seed: 5,
        delay: 700_000,
        delay_polls_max: 5,
        reorder: true,
        full: 300_000,
        full_submits_max: 3,
        ..faulty::Plan::default()
    };
    let drive = Drive::open(&Config::Faulty { inner, plan }).expect("memory");
    let mut door = crypt(&drive, 1);
    let lens: Vec<usize> = (0..40_u8).map(|n| usize::from(n % 7 + 1) * 24_576).collect();
    let mut starts = Vec::new();
    let mut at = 0;
    for len in &lens {
        starts.push(at as u64);
        at += len;
    }
    for op in [Op::Write { fua: false }, Op::Read] {
        let mut data: Vec<Vec<u8>> =
            lens.iter().map(|len| if op == Op::Read { vec![0; *len] } else { noise(*len, 0) }).collect();
        let segments: Vec<[Segment; 1]> = data.iter_mut().map(|data| [Segment::of(data)]).collect();
        let (mut ended, mut sent) = (vec![0; lens.len()], 0);
        let mut done = Vec::with_capacity(8);
        while ended.iter().sum::<usize>() < lens.len() {
            while sent < lens.len() {
                let range = Range { start_bytes: starts[sent], len_bytes: lens[sent] as u64 };
                let request = Request { token: Token(sent as u64), op, range, data: &segments[sent] };
                // SAFETY: the vectors live until all have ended.
                match unsafe { door.submit(&request) } {
                    Submitted::Full => break,
                    Submitted::Queued => {}
                    Submitted::Ended(outcome) => {
                        assert_eq!(outcome, Outcome::Done);
                        ended[sent] += 1;
                    }
                }
                sent += 1;
            }
            door.kick();
            door.poll(&mut done);
            for (Token(token), outcome) in done.drain(..) {
                assert_eq!(outcome, Outcome::Done);
                ended[usize::try_from(token).expect("small")] += 1;
            }
        }
        assert!(ended.iter().all(|count| *count == 1) && door.in_flight() == 0);
        for (data, len) in data.iter().zip(&lens) {
            assert!(*data == noise(*len, 0), "{op:?}");
        }
    }
}

#[test]
fn a_failure_of_the_drive_is_the_requests_own() {
    let inner = Box::new(Config::Ram { size_bytes: SIZE });
    let rule = faulty::Rule {
        on: faulty::On::Write,
        when: faulty::When::Nth(3),
        how: faulty::How::Refused,
        fault: Fault::NoSpace,
    };
    let plan = faulty::Plan { rules: vec![rule], ..faulty::Plan::default() };
    let drive = Drive::open(&Config::Faulty { inner, plan }).expect("memory");
    let mut door = crypt(&drive, 1);
    let write = |door: &mut Crypt| run(door, Op::Write { fua: false }, 0, &mut noise(256 << 10, 0), 4096);
    assert_eq!(write(&mut door), Outcome::Failed(Fault::NoSpace), "its third piece");
    assert_eq!(write(&mut door), Outcome::Done);
    let beyond = run(&mut door, Op::Read, SIZE, &mut [0; 512], 512);
    assert_eq!(beyond, Outcome::Failed(Fault::OutOfRange));
}
