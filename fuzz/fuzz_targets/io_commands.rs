//! A queue group under a host that writes any entries, lists and doorbells in any order, and a drive that answers in any order
//! and fails. What must hold is in `godwit_fuzz::group`.
#![no_main]

use arbitrary::Arbitrary;
use block::{Fault, Outcome};
use godwit_fuzz::edge::Edge;
use godwit_fuzz::group::{Bench, CQS, Mood, SQS};
use godwit_fuzz::guest::{self, Place};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: u8,
    /// Size and, rarely, an odd place.
    cqs: [(u8, Option<Odd>); CQS as usize],
    sqs: [(u8, u8, Option<Odd>); SQS as usize],
    steps: Vec<Step>,
}

/// One in eight is odd, else the ring has its own pages.
#[derive(Arbitrary, Debug)]
struct Odd {
    luck: u8,
    base: Edge,
    size: u16,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Submit { sq: u8, entry: Entry, times: u8 },
    Fused { sq: u8, first: Entry, second: Entry, alike: bool },
    List { at: Place, entries: Vec<Place> },
    Sgl { at: Place, descriptors: Vec<(Place, Edge, u8)> },
    Ranges { at: Place, ranges: Vec<(Edge, Edge)> },
    Poke { at: Place, words: Vec<Edge> },
    Ring { sq: u8 },
    Wild { index: u8, value: Edge },
    Turn { time: u16 },
    Poll,
    Flush,
    Moods(Vec<u8>),
    Complete { which: u8, outcome: u8 },
    Token(u64),
    Consume { cq: u8, count: u8 },
    Memory(u8),
    Hold(Option<u8>),
    Home { ok: bool },
    Table(u8),
    Abort { sq: u8, cid: u8 },
    DeleteSq(u8),
    DeleteCq(u8),
    CreateSq { sq: u8, cq: u8, size: u8 },
    CreateCq { cq: u8, size: u8 },
    Reset,
    Shadow { enabled: bool, wild: Option<(Place, Place)> },
    Move,
    WriteCache(bool),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Entry {
    opcode: u8,
    flags: u8,
    cid: u8,
    nsid: u8,
    slba: Lba,
    nlb: u8,
    far: bool,
    prp1: Place,
    prp2: Place,
    /// SGL1 in place of the PRPs: length and type.
    sgl: Option<(u16, u8)>,
    dwords: Option<[Edge; 4]>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Lba {
    Small(u8),
    Any(Edge),
}

fn entry(e: &Entry, fuse: u32) -> [u8; 64] {
    const OPCODES: [u8; 12] = [0x00, 0x01, 0x02, 0x02, 0x01, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19, 0x0d];
    let opcode = if e.opcode < 0xf0 { OPCODES[usize::from(e.opcode) % 12] } else { e.opcode };
    let nsid = match e.nsid % 16 {
        0..=3 => 1,
        4..=6 => 2,
        7 => 3,
        8..=10 => 32,
        11 => 5,
        12 => 0,
        13 => u32::MAX,
        14 => 33,
        _ => u32::MAX - 1,
    };
    let mut dwords = [0_u32; 16];
    let psdt = if e.sgl.is_some() { 1 } else { u32::from(e.flags >> 6) & u32::from(e.flags >> 4) };
    let odd_fuse = if e.flags & 0xf == 0xf { u32::from(e.flags >> 4) & 3 } else { fuse };
    dwords[0] = u32::from(opcode) | odd_fuse << 8 | psdt << 14 | u32::from(e.cid) << 16;
    dwords[1] = nsid;
    let [low, high] =
        |value: u64| -> [u32; 2] { [(value & 0xffff_ffff) as u32, (value >> 32) as u32] }(e.prp1.address());
    (dwords[6], dwords[7]) = (low, high);
    match e.sgl {
        Some((length, kind)) => {
            const KINDS: [u8; 6] = [0x00, 0x20, 0x30, 0x10, 0x00, 0x30];
            let kind = if kind < 0xe0 { KINDS[usize::from(kind) % 6] } else { kind };
            dwords[8] =
                if kind & 0xf0 >= 0x20 { u32::from(length & 0xff) * 16 } else { u32::from(length) * 512 };
            dwords[9] = u32::from(kind) << 24;
        }
        None => {
            let prp2 = e.prp2.address();
            (dwords[8], dwords[9]) = ((prp2 & 0xffff_ffff) as u32, (prp2 >> 32) as u32);
        }
    }
    let slba = match e.slba {
        Lba::Small(small) => u64::from(small),
        Lba::Any(edge) => edge.0,
    };
    (dwords[10], dwords[11]) = ((slba & 0xffff_ffff) as u32, (slba >> 32) as u32);
    dwords[12] = u32::from(e.nlb) * if e.far { 257 } else { 1 };
    if let Some(odd) = e.dwords {
        for (at, edge) in odd.iter().enumerate() {
            dwords[12 + at] = edge.u32();
        }
    }
    if opcode == 0x09 {
        // Number of ranges, and the deallocate attribute.
        dwords[10] = u32::from(e.nlb);
        dwords[11] = 4 | (slba & 0x8) as u32;
    }
    if opcode == 0x19 && e.dwords.is_none() {
        dwords[12] = u32::from(e.nlb % 130);
    }
    let mut bytes = [0; 64];
    for (to, dword) in bytes.chunks_exact_mut(4).zip(dwords) {
        to.copy_from_slice(&dword.to_le_bytes());
    }
    bytes
}

fn fault(byte: u8) -> Fault {
    [Fault::Media, Fault::NoSpace, Fault::Unsupported, Fault::OutOfRange, Fault::Memory, Fault::Gone]
        [usize::from(byte) % 6]
}

fn sq_of(byte: u8) -> u16 {
    u16::from(byte) % SQS + 1
}

fn cq_of(byte: u8) -> u16 {
    u16::from(byte) % CQS + 1
}

fn cq_size(byte: u8) -> u32 {
    2 + u32::from(byte) * 2
}

fn setup(bench: &mut Bench, input: &Input) {
    for (cqid, (size, odd)) in (1..).zip(&input.cqs) {
        match odd.as_ref().filter(|odd| odd.luck > 0xe0) {
            Some(odd) => bench.create_cq(cqid, u32::from(odd.size), Some(guest::clean(odd.base.0) & !0xfff)),
            None => bench.create_cq(cqid, cq_size(*size), None),
        }
    }
    for (sqid, (cq, size, odd)) in (1..).zip(&input.sqs) {
        match odd.as_ref().filter(|odd| odd.luck > 0xe0) {
            Some(odd) => bench.create_sq(
                sqid,
                cq_of(*cq),
                u32::from(odd.size),
                Some(guest::clean(odd.base.0) & !0xfff),
            ),
            None => bench.create_sq(sqid, cq_of(*cq), 2 + u32::from(size % 126), None),
        }
    }
}

fn words(bytes: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
}

fn poke(at: Place, bytes: &[u8]) {
    guest::poke(at.address() & !7, bytes);
}

fn step(bench: &mut Bench, step: Step) {
    match step {
        Step::Submit { sq, entry: e, times } => {
            for _ in 0..=times % 70 {
                if !bench.enqueue(sq_of(sq), &entry(&e, 0)) {
                    break;
                }
            }
            bench.ring_sq(sq_of(sq));
        }
        Step::Fused { sq, mut first, mut second, alike } => {
            if alike {
                (first.opcode, second.opcode) = (5, 1);
                (second.nsid, second.slba, second.nlb, second.far) =
                    (first.nsid, first.slba, first.nlb, first.far);
                (first.dwords, second.dwords) = (None, None);
            }
            if bench.enqueue(sq_of(sq), &entry(&first, 1)) {
                bench.enqueue(sq_of(sq), &entry(&second, 2));
            }
            bench.ring_sq(sq_of(sq));
        }
        Step::List { at, entries } => {
            let mut bytes = Vec::new();
            entries.iter().for_each(|entry| words(&mut bytes, &[entry.address()]));
            poke(at, &bytes);
        }
        Step::Sgl { at, descriptors } => {
            let mut bytes = Vec::new();
            for (place, length, kind) in descriptors {
                let kind = if kind < 0xe0 { kind % 4 << 4 } else { kind };
                let length = if kind >= 0x20 { length.0 & 0xff0 } else { length.0 & 0xffff_fe00 };
                words(&mut bytes, &[place.address(), length & 0xffff_ffff | u64::from(kind) << 56]);
            }
            poke(at, &bytes);
        }
        Step::Ranges { at, ranges } => {
            // Dataset Management: attributes and length, LBA. Copy: reserved, LBA, length, reserved.
            let mut bytes = Vec::new();
            ranges.iter().for_each(|(slba, nlb)| words(&mut bytes, &[nlb.0 << 32 & 0xff_0000_0000, slba.0]));
            poke(at, &bytes);
        }
        Step::Poke { at, words: values } => {
            let mut bytes = Vec::new();
            values.iter().for_each(|edge| words(&mut bytes, &[guest::clean(edge.0)]));
            poke(at, &bytes);
        }
        Step::Ring { sq } => bench.ring_sq(sq_of(sq)),
        Step::Wild { index, value } => bench.wild_bell(index, value.u32()),
        Step::Turn { time } => {
            bench.poll(u64::from(time) * 1000);
            bench.flush();
        }
        Step::Poll => bench.poll(1),
        Step::Flush => bench.flush(),
        Step::Moods(moods) => bench.world.moods.extend(moods.into_iter().map(|mood| match mood % 8 {
            0..=3 => Mood::Queue,
            4 => Mood::Full,
            5 | 6 => Mood::Done,
            _ => Mood::Fail(fault(mood >> 3)),
        })),
        Step::Complete { which, outcome } => {
            let outcome = if outcome < 0xd0 { Outcome::Done } else { Outcome::Failed(fault(outcome)) };
            bench.complete(usize::from(which), outcome);
        }
        Step::Token(token) => bench.unknown_token(token),
        Step::Consume { cq, count } => bench.consume(cq_of(cq), u32::from(count)),
        Step::Memory(shape) => bench.memory(shape),
        Step::Hold(nsid) => bench.hold(nsid.map(u32::from)),
        Step::Home { ok } => bench.home(ok),
        Step::Table(kind) => bench.change_table(kind),
        Step::Abort { sq, cid } => bench.abort(sq_of(sq), u16::from(cid)),
        Step::DeleteSq(sq) => bench.delete_sq(sq_of(sq)),
        Step::DeleteCq(cq) => bench.delete_cq(cq_of(cq)),
        Step::CreateSq { sq, cq, size } => {
            bench.create_sq(sq_of(sq), cq_of(cq), 2 + u32::from(size % 126), None)
        }
        Step::CreateCq { cq, size } => bench.create_cq(cq_of(cq), cq_size(size), None),
        Step::Reset => bench.reset(),
        Step::Shadow { enabled, wild } => {
            bench
                .shadow(enabled, wild.map(|(values, events)| (values.address() & !3, events.address() & !3)));
        }
        Step::Move => bench.move_group(),
        Step::WriteCache(on) => bench.write_cache(on),
    }
}

fuzz_target!(|input: Input| {
    let mut bench = Bench::new(input.shape & !32);
    setup(&mut bench, &input);
    for one in input.steps {
        step(&mut bench, one);
    }
    bench.end();
});
