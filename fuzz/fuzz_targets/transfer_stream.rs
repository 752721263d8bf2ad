//! What two hosts say to each other in a migration: frames with good checksums that say anything, and bytes that are none, to the side that
//! receives and to the side that sends. Whatever comes, nothing outside the plan is written, and what is read is written back as the same.
#![no_main]

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::time::Duration;

use arbitrary::Arbitrary;
use dirty::Map;
use godwit_fuzz::edge::Edge;
use libfuzzer_sys::fuzz_target;
use transfer::control::{Clock, Control};
use transfer::copy::{Options, Precopy};
use transfer::frame::{FEATURES, Frame, HEAD_BYTES, Head, Hello, Limits, Plan, Scope, Welcome};
use transfer::receive::Receiver;
use transfer::source::{Content, Run, Sink, Source};

const PAGES: u64 = 5000;
const MIGRATION: [u8; 16] = [3; 16];

#[derive(Arbitrary, Debug)]
enum Input {
    /// One frame's body.
    Body { kind: u8, body: Vec<u8> },
    /// Any bytes as frames.
    Bytes(Vec<u8>),
    /// To who receives, after a hello and a plan if these are said to be sound.
    ToReceiver { hello: bool, plan: bool, frames: Vec<Said>, again: Vec<Said>, cut: Option<u16> },
    /// To who sends, after a welcome if that is said to be sound.
    ToSender { welcome: bool, frames: Vec<Said>, cut: Option<u16> },
}

#[derive(Arbitrary, Debug)]
enum Said {
    Any { kind: u8, body: Vec<u8> },
    Data { first: Edge, pages: u8, encoding: u8, bytes: Vec<u8>, byte: u8, fill: bool },
    Barrier { id: u8, flush: bool },
    Ack { id: u8, flush: bool },
    End { pass: u8, last: bool },
    Part { state: bool, last: bool, bytes: Vec<u8> },
    Pace(Edge),
}

impl Said {
    fn parts(&self) -> (u8, Vec<u8>) {
        let two = |one: u64, flag: bool| [one.to_le_bytes(), u64::from(flag).to_le_bytes()].concat();
        match self {
            Self::Any { kind, body } => (*kind, body.clone()),
            Self::Data { first, pages, encoding, bytes, byte, fill } => {
                let plain = vec![*byte; usize::from(*pages % 9) * 4096];
                let payload = if *fill { &plain } else { bytes };
                let check = if encoding % 4 < 2 { crc32c::crc32c(payload) } else { 0 };
                let mut body = (first.0 % (PAGES + 9)).to_le_bytes().to_vec();
                body.extend(u32::from(pages % 9).to_le_bytes());
                body.extend([encoding % 5, 0, 0, 0]);
                body.extend(check.to_le_bytes());
                body.extend(payload);
                (4, body)
            }
            Self::Barrier { id, flush } => (7, two((*id).into(), *flush)),
            Self::Ack { id, flush } => (8, two((*id).into(), *flush)),
            Self::End { pass, last } => (10, vec![*pass, 0, 0, 0, u8::from(*last), 0, 0, 0]),
            Self::Part { state, last, bytes } => {
                (if *state { 6 } else { 5 }, [&[u8::from(*last), 0, 0, 0], &bytes[..]].concat())
            }
            Self::Pace(rate) => (9, rate.0.to_le_bytes().to_vec()),
        }
    }
}

/// A frame with good checksums.
fn sealed(kind: u8, sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut head = vec![kind, 0, 0, 0];
    head.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend(sequence.to_le_bytes());
    let checked = if kind == 4 { &body[..body.len().min(20)] } else { body };
    head.extend(crc32c::crc32c(checked).to_le_bytes());
    head.extend(crc32c::crc32c(&head).to_le_bytes());
    head.extend(body);
    head
}

/// Everything was said already; then nothing comes any more.
struct Told(Cursor<Vec<u8>>);

impl Read for Told {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
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

fn told(first: &[Frame<'_>], said: &[Said], cut: Option<u16>) -> Told {
    let mut bytes = Vec::new();
    let mut sequence = 0;
    for frame in first {
        let mut out = Vec::new();
        let tail = frame.encode(sequence, &mut out).expect("small");
        bytes.extend(out);
        bytes.extend(tail);
        sequence += 1;
    }
    for said in said {
        let (kind, body) = said.parts();
        bytes.extend(sealed(kind, sequence, &body));
        sequence += 1;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.into());
    }
    Told(Cursor::new(bytes))
}

struct Bounded;

impl Sink for Bounded {
    fn write(&self, run: Run, bytes: &[u8]) -> io::Result<()> {
        assert!(run.end() <= PAGES && bytes.len() as u64 == run.bytes());
        Ok(())
    }

    fn zero(&self, run: Run, _: bool) -> io::Result<()> {
        assert!(run.end() <= PAGES);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Bounded {
    fn pages(&self) -> u64 {
        PAGES
    }

    fn arm(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        each(0, 40);
        Ok(())
    }

    fn harvest(&self, into: &Map) -> io::Result<()> {
        into.mark(4, 1);
        Ok(())
    }

    fn read(&self, _: Run, out: &mut [u8]) -> io::Result<Content> {
        out.fill(1);
        Ok(Content::Bytes)
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) {}
}

fn limits() -> Limits {
    Limits { window_bytes: 64 << 10, data_pages: 8 }
}

fn plan() -> Plan {
    Plan { pages: PAGES, name: "n".to_owned(), profile: "p".to_owned(), settings: Vec::new() }
}

fn hello(attempt: u32) -> Frame<'static> {
    let (version_min, version_max, features, migration) = (1, 1, FEATURES, MIGRATION);
    let (stream, streams, limits) = (0, 1, limits());
    Frame::Hello(Hello { version_min, version_max, features, migration, stream, streams, attempt, limits })
}

/// Reads one frame; what is read is written back as the same.
fn read(bytes: &[u8]) {
    let scope = Scope { pages: PAGES, stream: 0, streams: 1, data_pages: 8 };
    let Some((head, rest)) = bytes.split_first_chunk() else { return };
    let Ok(head) = Head::parse(head, 0) else { return };
    let Some(body) = rest.get(..head.bytes()) else { return };
    let Ok(frame) = head.body(body, Some(&scope)) else { return };
    if let Frame::Data(data) = &frame {
        let _ = data.plain(&mut Vec::new());
    }
    let mut out = Vec::new();
    let tail = frame.encode(0, &mut out).expect("what was read is not too large");
    let out = [&out[..], tail].concat();
    let again = Head::parse(out[..HEAD_BYTES].try_into().expect("a head"), 0).expect("sound");
    assert_eq!(again.body(&out[HEAD_BYTES..], Some(&scope)), Ok(frame));
}

fuzz_target!(|input: Input| {
    match input {
        Input::Body { kind, mut body } => {
            if (1..3).contains(&kind) {
                body.splice(0..0, *b"GODWITMV");
            }
            read(&sealed(kind, 0, &body));
        }
        Input::Bytes(bytes) => {
            read(&bytes);
            let receiver = Receiver::new(MIGRATION, limits(), &Bounded, &|_| Ok(()));
            assert!(receiver.serve(Told(Cursor::new(bytes))).is_err());
        }
        Input::ToReceiver { hello: is_sound, plan: has_plan, frames, again, cut } => {
            let receiver = Receiver::new(MIGRATION, limits(), &Bounded, &|plan| {
                if plan.pages == PAGES { Ok(()) } else { Err("another size".to_owned()) }
            });
            for (attempt, frames) in [(1, &frames), (2, &again)] {
                let first = [hello(attempt), Frame::Plan(plan())];
                let count = usize::from(is_sound) + usize::from(is_sound && has_plan);
                let served = receiver.serve(told(&first[..count], frames, cut));
                if let Some(arrived) = receiver.arrived() {
                    assert!(arrived.missing.pages() == PAGES && (served.is_ok() || attempt == 2));
                }
            }
        }
        Input::ToSender { welcome, frames, cut } => {
            let connect = |_| {
                let first = [Frame::Welcome(Welcome {
                    version: 1,
                    features: FEATURES,
                    durable: 0,
                    limits: limits(),
                })];
                Ok(told(&first[..usize::from(welcome)], &frames, cut))
            };
            let control = Control::default();
            let options = Options {
                migration: MIGRATION,
                streams: 1,
                limits: limits(),
                attempts_max: 1,
                ..Options::default()
            };
            let mut precopy =
                Precopy::new(plan(), &Bounded, &connect, &Still, &control, options).expect("sound options");
            if precopy.round().is_ok() {
                let _ = precopy.last(&Map::new(PAGES).expect("small"), b"state");
            }
        }
    }
});
