//! The door against a small disk: what a disk may do wrong is counted as what it is.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::ring::Ring;
use super::super::toy::Toy;
use super::*;
use crate::verify::auditor::Tally;
use crate::verify::load::Load;

/// What goes wrong, once, in the middle of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ForgottenWrite,
    AnsweredTwice,
    NeverAnswered,
    NotCalled,
    WrongLength,
    Failed,
    UndiscardedBlocks,
}

const SECTORS: usize = 4096;
const LANES: u16 = 3;

/// A disk in memory behind rings.
struct ToyDisk {
    /// With what signals a call.
    toys: Vec<(Toy, Arc<OwnedFd>)>,
    ram: Arc<Ram>,
    data: Vec<u8>,
    fault: Option<Fault>,
}

impl ToyDisk {
    /// Takes what is available in every ring, and gives it back last things first.
    fn turn(&mut self) {
        for at in 0..self.toys.len() {
            self.toys[at].0.take();
            let mut any = false;
            while !self.toys[at].0.chains.is_empty() {
                let which = self.toys[at].0.chains.len() - 1;
                let (head, count, pieces) = self.toys[at].0.chains[which].clone();
                if self.chance(Fault::NeverAnswered) {
                    self.toys[at].0.chains.remove(which);
                    continue;
                }
                let written = self.execute(&pieces);
                let written = if self.chance(Fault::WrongLength) { written + 1 } else { written };
                self.toys[at].0.give(which, written);
                if self.chance(Fault::AnsweredTwice) {
                    self.toys[at].0.chains.push_back((head, count, pieces));
                    self.toys[at].0.give(which, written);
                }
                any = true;
            }
            let silent = any && at + 1 == self.toys.len() && self.chance(Fault::NotCalled);
            if any && !silent {
                rustix::io::write(&self.toys[at].1, &1_u64.to_ne_bytes()).unwrap();
            }
        }
    }

    fn chance(&mut self, fault: Fault) -> bool {
        let hit = self.fault == Some(fault);
        if hit {
            self.fault = None;
        }
        hit
    }

    /// Does a request; says how many bytes of memory it wrote.
    fn execute(&mut self, pieces: &[Piece]) -> u32 {
        let (header, status) = (self.bytes(&pieces[0]), *pieces.last().unwrap());
        let kind = u32::from_le_bytes(*header.first_chunk().unwrap());
        let sector = u64::from_le_bytes(*header[8..].first_chunk().unwrap());
        let mut written = 1;
        let mut at = usize::try_from(sector).unwrap() * SECTOR_BYTES;
        let forgotten = kind == request::OUT && self.chance(Fault::ForgottenWrite);
        for piece in &pieces[1..pieces.len() - 1] {
            let bytes = self.bytes(piece);
            match kind {
                request::IN => {
                    self.put(piece.iova, &self.data[at..at + bytes.len()]);
                    written += piece.len;
                }
                request::OUT if !forgotten => self.data[at..at + bytes.len()].copy_from_slice(&bytes),
                request::DISCARD | request::WRITE_ZEROES => {
                    bytes.chunks_exact(16).for_each(|segment| self.zero(segment));
                }
                _ => {}
            }
            at += bytes.len();
        }
        let failed = self.chance(Fault::Failed);
        self.put(status.iova, &[u8::from(failed)]);
        written
    }

    fn zero(&mut self, segment: &[u8]) {
        let start = u64::from_le_bytes(*segment.first_chunk().unwrap());
        let count = u32::from_le_bytes(*segment[8..].first_chunk().unwrap());
        let at = usize::try_from(start).unwrap() * SECTOR_BYTES;
        let range = at..at + count as usize * SECTOR_BYTES;
        // Zeros over zeros hide it.
        let worth = self.data[range.clone()].iter().any(|byte| *byte != 0);
        if !(worth && self.chance(Fault::UndiscardedBlocks)) {
            self.data[range].fill(0);
        }
    }

    fn bytes(&self, piece: &Piece) -> Vec<u8> {
        let mut bytes = vec![0; piece.len as usize];
        self.ram.mapping().read(self.ram.offset_of(piece.iova, bytes.len()).unwrap(), &mut bytes);
        bytes
    }

    fn put(&self, iova: u64, bytes: &[u8]) {
        self.ram.mapping().write(self.ram.offset_of(iova, bytes.len()).unwrap(), bytes);
    }
}

fn parts(packed: bool, indirect: bool) -> (ToyDisk, VhostDoor) {
    let ram = Ram::new(8 << 20, 0x10_0000).unwrap();
    let (mut queues, mut toys) = (Vec::new(), Vec::new());
    for index in 0..LANES {
        let ring = Ring::new(&ram, if packed { 41 } else { 64 }, packed, false).unwrap();
        let queue = Queue::new(ring, index, false).unwrap();
        toys.push((Toy::new(&ram, &queue.ring), Arc::clone(&queue.call)));
        queues.push(queue);
    }
    let config = Config {
        sectors: SECTORS as u64,
        seg_max: 8,
        block_bytes: 512,
        num_queues: LANES,
        discard_sectors_max: 128,
        discard_seg_max: 4,
        write_zeroes_sectors_max: 128,
    };
    let door = VhostDoor::over(queues, &ram, &config, indirect, 8).unwrap().with_a_called_lane();
    (ToyDisk { toys, ram, data: vec![0; SECTORS * SECTOR_BYTES], fault: None }, door)
}

/// A run in whose middle something goes wrong.
fn run(packed: bool, indirect: bool, seed: u64, fault: Option<Fault>) -> (Tally, Vec<String>) {
    let (mut disk, door) = parts(packed, indirect);
    let mut load = Load::new("toy", 9, Box::new(door), seed, 0);
    let clock = std::cell::Cell::new(0_u64);
    let now = || {
        clock.set(clock.get() + 1);
        clock.get()
    };
    let turns = |load: &mut Load, disk: &mut ToyDisk| {
        for _ in 0..300 {
            load.turn(&now).unwrap();
            disk.turn();
        }
    };
    turns(&mut load, &mut disk);
    disk.fault = fault;
    turns(&mut load, &mut disk);
    assert!(disk.fault.is_none(), "{fault:?} was never made");
    // Where a ring's other side lost its place nothing more can be said.
    if fault != Some(Fault::AnsweredTwice) {
        load.drain();
        turns(&mut load, &mut disk);
        load.sweep();
        turns(&mut load, &mut disk);
        load.give_up(u64::MAX, Duration::from_secs(1));
        assert!(load.is_done());
    }
    (load.auditor.tally(), load.auditor.faults().to_vec())
}

fn kinds() -> impl Iterator<Item = (bool, bool)> {
    (0..4).map(|bits| (bits & 1 != 0, bits & 2 != 0))
}

#[test]
fn a_perfect_disk_has_the_zero_row_with_every_kind_of_ring() {
    for (packed, indirect) in kinds() {
        for seed in 1..3 {
            let (tally, faults) = run(packed, indirect, seed, None);
            assert!(tally.is_clean() && tally.answered > 1000, "{tally:?} {faults:?}");
        }
    }
}

#[test]
fn a_forgotten_write_and_a_forgotten_discard_are_wrong_bytes() {
    for (packed, indirect) in kinds() {
        for fault in [Fault::ForgottenWrite, Fault::UndiscardedBlocks] {
            // Not in every run: what was forgotten may be overwritten before anybody looks.
            let seen = (1..4).filter(|seed| run(packed, indirect, *seed, Some(fault)).0.wrong_bytes > 0);
            assert!(seen.count() > 0, "{fault:?}");
        }
    }
}

#[test]
fn a_descriptor_answered_twice_is_a_repetition() {
    for (packed, indirect) in kinds() {
        let (tally, faults) = run(packed, indirect, 3, Some(Fault::AnsweredTwice));
        assert!(tally.repeated > 0, "{tally:?} {faults:?}");
    }
}

#[test]
fn a_request_without_an_answer_is_lost_and_one_whose_call_is_missing_too() {
    for (packed, indirect) in kinds() {
        for fault in [Fault::NeverAnswered, Fault::NotCalled] {
            let (tally, faults) = run(packed, indirect, 3, Some(fault));
            assert!(tally.lost > 0, "{fault:?} {tally:?} {faults:?}");
            assert_eq!((tally.repeated, tally.wrong_bytes), (0, 0), "{faults:?}");
        }
    }
}

#[test]
fn a_failed_request_and_a_wrong_length_are_errors() {
    for (packed, indirect) in kinds() {
        for fault in [Fault::Failed, Fault::WrongLength] {
            let (tally, faults) = run(packed, indirect, 3, Some(fault));
            let others = (tally.lost, tally.repeated, tally.wrong_bytes);
            assert_eq!((tally.errors, others), (1, (0, 0, 0)), "{fault:?} {faults:?}");
        }
    }
}

#[test]
fn the_segments_of_a_discard_are_all_its_blocks_once() {
    for (start, blocks, most) in [(1, 1, 8), (1, 2, 8), (1, 3, 8), (7, 100, 1), (8, 9, 8)] {
        let op = Op { kind: Kind::Deallocate, start, blocks };
        let segments = segments(&op, most);
        let mut all: Vec<u64> = segments.iter().flat_map(|(start, len)| *start..*start + *len).collect();
        all.sort_unstable();
        assert_eq!(all, op.range().collect::<Vec<_>>());
        assert!(segments.len() <= usize::try_from(most).unwrap_or(1));
    }
}

#[test]
fn every_place_of_the_data_leaves_room_around_it() {
    for position in 0..10_000 {
        let offset = Slot::offset(position);
        assert!((AROUND..=PAGE_BYTES).contains(&offset), "{position}");
    }
}
