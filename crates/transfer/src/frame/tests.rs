use std::io::{self, Cursor, Read, Write};

use super::*;
use crate::wire::{Fault, Wire};
use proptest::prelude::*;

const SCOPE: Scope = Scope { pages: 3 * STRIPE_PAGES, stream: 1, streams: 2, data_pages: 16 };

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 3,
        features: FEATURES,
        migration: [7; 16],
        stream: 1,
        streams: 2,
        attempt: 1,
        limits: Limits::default(),
    }
}

fn run(first: u64, pages: u32) -> Run {
    Run::checked(first, pages, SCOPE.pages).expect("inside")
}

fn raw(bytes: &[u8]) -> Frame<'_> {
    let run = run(STRIPE_PAGES, u32::try_from(bytes.len() / PAGE).expect("small"));
    Frame::Data(Data { run, payload: Payload::Raw(bytes), check: crc32c::crc32c(bytes) })
}

/// One of each, with and without what it may carry.
fn frames(visit: impl Fn(&Frame<'_>)) {
    let plain: Vec<u8> = (0..2 * PAGE).map(|at| u8::try_from(at / 64 % 251).expect("small")).collect();
    let packed = lz4_flex::block::compress(&plain);
    let (lz4, wide) = (run(STRIPE_PAGES + 5, 2), run(STRIPE_PAGES, 4096));
    visit(&Frame::Hello(hello()));
    let (version, durable, limits) = (1, 9, Limits::default());
    visit(&Frame::Welcome(Welcome { version, features: FEATURE_LZ4, durable, limits }));
    let (name, profile) = ("vol-ä".to_owned(), "godwit-1".to_owned());
    visit(&Frame::Plan(Plan { pages: PAGES_MAX, name, profile, settings: vec![1, 2, 3] }));
    visit(&raw(&plain));
    let check = crc32c::crc32c(&plain);
    visit(&Frame::Data(Data { run: lz4, payload: Payload::Lz4(&packed), check }));
    visit(&Frame::Data(Data { run: wide, payload: Payload::Zeros, check: 0 }));
    visit(&Frame::Data(Data { run: wide, payload: Payload::Hole, check: 0 }));
    visit(&Frame::Map(Part { last: false, bytes: b"map" }));
    visit(&Frame::State(Part { last: true, bytes: b"" }));
    visit(&Frame::Barrier(Barrier { id: 1 << 40, flush: true }));
    visit(&Frame::Ack(Barrier { id: 3, flush: false }));
    visit(&Frame::Pace(u64::MAX));
    visit(&Frame::End(End { pass: 7, last: true }));
    visit(&Frame::Cancel(Cancel { reason: Reason::Other(99), text: "no space".to_owned() }));
}

fn bytes(frame: &Frame<'_>, sequence: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let tail = frame.encode(sequence, &mut out).expect("not too large");
    [&out[..], tail].concat()
}

/// What a reader makes of bytes: a frame whose pages are sound, or an error.
fn read(bytes: &[u8], sequence: u64, visit: impl FnOnce(&Frame<'_>)) -> Result<(), Option<Damage>> {
    let (head, body) = bytes.split_first_chunk().ok_or(None)?;
    let head = Head::parse(head, sequence).map_err(Some)?;
    let (body, _) = body.split_at_checked(head.bytes()).ok_or(None)?;
    let frame = head.body(body, Some(&SCOPE)).map_err(Some)?;
    if let Frame::Data(data) = &frame {
        data.plain(&mut Vec::new()).map_err(Some)?;
    }
    visit(&frame);
    Ok(())
}

#[test]
fn what_is_written_is_read_as_the_same() {
    frames(|frame| {
        read(&bytes(frame, 5), 5, |found| assert_eq!(found, frame)).expect("sound");
    });
}

#[test]
fn a_frame_cut_anywhere_is_no_frame() {
    frames(|frame| {
        let all = bytes(frame, 0);
        for len in 0..all.len() {
            assert_eq!(read(&all[..len], 0, |_| ()), Err(None), "{frame:?} cut at {len}");
        }
    });
}

/// LZ4 can say the same in two ways. All else has one form.
fn alike(one: &Frame<'_>, other: &Frame<'_>) -> bool {
    let (Frame::Data(one), Frame::Data(other)) = (one, other) else { return false };
    let packed = matches!((one.payload, other.payload), (Payload::Lz4(_), Payload::Lz4(_)));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    packed && one.run == other.run && one.plain(&mut first) == other.plain(&mut second)
}

#[test]
fn no_bit_of_a_frame_can_flip_unnoticed() {
    frames(|frame| {
        let all = bytes(frame, 0);
        for at in 0..all.len() {
            for bit in 0..8 {
                let mut all = all.clone();
                all[at] ^= 1 << bit;
                match read(&all, 0, |found| assert!(alike(found, frame), "byte {at} of {frame:?}")) {
                    Ok(()) | Err(Some(_)) => {}
                    Err(None) => panic!("byte {at} of {frame:?} cut"),
                }
            }
            if at > 4200 {
                break; // the rest is more of the same pages
            }
        }
    });
}

#[test]
fn a_repeated_or_left_out_frame_is_named() {
    let all = bytes(&Frame::Pace(0), 4);
    for expected in [3, 5, u64::MAX] {
        assert_eq!(read(&all, expected, |_| ()), Err(Some(Damage::Sequence { found: 4, expected })));
    }
}

/// A frame with fields of any value and good checksums.
fn sealed(kind: u8, sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut head = vec![kind, 0, 0, 0];
    head.extend(u32::try_from(body.len()).expect("small").to_le_bytes());
    head.extend(sequence.to_le_bytes());
    let checked = if kind == Kind::Data as u8 { &body[..body.len().min(DATA_BYTES)] } else { body };
    head.extend(crc32c::crc32c(checked).to_le_bytes());
    head.extend(crc32c::crc32c(&head).to_le_bytes());
    head.extend(body);
    head
}

fn data_fields(first: u64, pages: u32, encoding: u8, check: u32, bytes: usize) -> Vec<u8> {
    let mut body = first.to_le_bytes().to_vec();
    body.extend(pages.to_le_bytes());
    body.extend([encoding, 0, 0, 0]);
    body.extend(check.to_le_bytes());
    body.resize(body.len() + bytes, 0);
    sealed(Kind::Data as u8, 0, &body)
}

#[test]
fn pages_outside_the_plan_or_of_another_stream_are_refused_whatever_their_checksum_says() {
    let outside = |first, pages| Damage::Outside { first, pages, total: SCOPE.pages };
    let stripe = |first| Damage::Stripe { first, stream: 1 };
    let wrong = |field| Damage::Field { kind: Kind::Data, field };
    let end = SCOPE.pages;
    for (first, pages, encoding, check, len, damage) in [
        (end, 1, 2, 0, 0, outside(end, 1)),
        (end - 1, 2, 2, 0, 0, outside(end - 1, 2)),
        (u64::MAX, u32::MAX, 2, 0, 0, outside(u64::MAX, u32::MAX)),
        (STRIPE_PAGES, 0, 2, 0, 0, outside(STRIPE_PAGES, 0)),
        (0, 1, 2, 0, 0, stripe(0)),
        (2 * STRIPE_PAGES - 1, 2, 3, 0, 0, stripe(2 * STRIPE_PAGES - 1)),
        (STRIPE_PAGES, 17, 0, 0, 17 * PAGE, wrong("length")),
        (STRIPE_PAGES, 2, 0, 0, PAGE, wrong("length")),
        (STRIPE_PAGES, 1, 1, 0, PAGE, wrong("length")),
        (STRIPE_PAGES, 1, 2, 0, 1, wrong("length")),
        (STRIPE_PAGES, 1, 3, 1, 0, wrong("length")),
        (STRIPE_PAGES, 1, 4, 0, 0, wrong("encoding")),
        (STRIPE_PAGES, 1, 1, 0, 9, Damage::Pages { first: STRIPE_PAGES, pages: 1 }),
    ] {
        let all = data_fields(first, pages, encoding, check, len);
        let found = read(&all, 0, |frame| panic!("{frame:?}"));
        assert_eq!(found, Err(Some(damage)), "{first} {pages} {encoding}");
    }
}

#[test]
fn sizes_and_fields_out_of_their_bounds_are_refused_before_memory_is_taken() {
    let oversized = sealed(Kind::State as u8, 0, &vec![0; 5 + PART_BYTES_MAX]);
    assert!(matches!(read(&oversized, 0, |_| ()), Err(Some(Damage::Size { kind: Kind::State, .. }))));
    assert_eq!(read(&sealed(12, 0, &[]), 0, |_| ()), Err(Some(Damage::Kind(12))));
    let mut plan = 0_u64.to_le_bytes().to_vec();
    plan.extend([0; 8]);
    let size = Damage::Field { kind: Kind::Plan, field: "size" };
    assert_eq!(read(&sealed(3, 0, &plan), 0, |_| ()), Err(Some(size)));
    let long = Plan { pages: 1, name: "n".repeat(256), profile: String::new(), settings: Vec::new() };
    assert!(Frame::Plan(long).encode(0, &mut Vec::new()).is_err());
}

#[test]
fn another_version_is_told_by_its_numbers_whatever_follows_them() {
    let mut body = MAGIC.to_vec();
    body.extend([9, 0, 12, 0]);
    body.resize(200, 0xee);
    let found = read(&sealed(1, 0, &body), 0, |_| ());
    assert_eq!(found, Err(Some(Damage::Version { min: 9, max: 12 })));
    let mut later = bytes(&Frame::Hello(hello()), 0)[HEAD_BYTES..].to_vec();
    later.extend([1, 2, 3]);
    read(&sealed(1, 0, &later), 0, |found| assert_eq!(*found, Frame::Hello(hello()))).expect("understood");
}

/// A connection whose other side said everything already.
struct Told(Cursor<Vec<u8>>);

impl Read for Told {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn told(frames: &[Frame<'_>]) -> Wire<Told> {
    let said = (0..).zip(frames).flat_map(|(at, frame)| bytes(frame, at)).collect();
    Wire::receiver(Told(Cursor::new(said)))
}

#[test]
fn what_comes_before_its_time_is_refused() {
    let plan = Plan { pages: 9, name: String::new(), profile: String::new(), settings: Vec::new() };
    let early = told(&[Frame::Plan(plan.clone())]).receive().map(|_| ());
    assert!(matches!(early, Err(Fault::Damage(Damage::Order(Kind::Plan)))), "{early:?}");
    let page = [1; PAGE];
    let mut wire = told(&[Frame::Hello(hello()), raw(&page)]);
    wire.receive().expect("a hello");
    assert!(matches!(wire.receive(), Err(Fault::Damage(Damage::Order(Kind::Data)))));
    for answer in [Frame::Ack(Barrier { id: 1, flush: false }), Frame::Hello(hello())] {
        let mut wire = told(&[Frame::Hello(hello()), Frame::Plan(plan.clone()), answer.clone()]);
        wire.receive().expect("a hello");
        wire.receive().expect("a plan");
        assert!(matches!(wire.receive(), Err(Fault::Damage(Damage::Order(kind))) if kind == answer.kind()));
    }
}

#[test]
fn an_end_inside_a_frame_is_told_from_one_between_two() {
    let all = bytes(&Frame::Hello(hello()), 0);
    for len in 1..all.len() {
        let torn = Wire::receiver(Told(Cursor::new(all[..len].to_vec()))).receive().map(|_| ());
        assert!(matches!(torn, Err(Fault::Torn)), "{len}: {torn:?}");
    }
    let mut wire = told(&[Frame::Hello(hello())]);
    wire.receive().expect("a hello");
    assert!(matches!(wire.receive(), Err(Fault::Closed)));
}

proptest! {
    #[test]
    fn no_body_with_a_good_checksum_does_harm(
        kind in 0_u8..13,
        body in prop::collection::vec(any::<u8>(), 0..80),
        prefix in any::<bool>(),
    ) {
        let mut all = body;
        if prefix && (1..3).contains(&kind) {
            all.splice(0..0, MAGIC);
        }
        // What is read can be written, and is read as the same.
        let _ = read(&sealed(kind, 0, &all), 0, |frame| {
            read(&bytes(frame, 0), 0, |again| assert_eq!(again, frame)).expect("sound");
        });
    }
}
