//! A perfect drive in memory, and the faults it can be told to make.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::door::{Answer, Door, Kind, Op, Shape, Tag};
use crate::Result;

/// A fault, made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A bit of a block changes by itself.
    Rot,
    /// A write is answered and not done.
    DroppedWrite,
    /// A write lands one block further.
    Misplaced,
    /// The last block of a write of several does not arrive.
    Torn,
    /// A write that was answered is done again later.
    LateAgain,
    /// An answer comes twice.
    Repeated,
    /// An answer does not come.
    Lost,
    /// A command fails.
    Failed,
    /// A read is answered with what the buffer held.
    Unread,
    /// A read changes bytes behind its data.
    Overrun,
    /// A deallocation leaves the data.
    Undiscarded,
}

pub(super) struct Fake {
    shape: Shape,
    disk: Vec<u8>,
    lanes: Vec<VecDeque<(Tag, Op, Vec<u8>)>>,
    next: Tag,
    answered: Option<(Op, Vec<u8>)>,
    again: Option<(Op, Vec<u8>, u32)>,
    twice: Option<Answer>,
    overrun: bool,
    /// To be made at the next chance.
    pub(super) fault: Rc<RefCell<Option<Fault>>>,
}

impl Fake {
    pub(super) fn new(lanes: usize, depth: usize) -> Self {
        let shape = Shape { blocks: 2048, block_bytes: 512, transfer_blocks_max: 64, lanes, depth };
        Fake {
            disk: vec![0; 2048 * 512],
            lanes: vec![VecDeque::new(); lanes],
            shape,
            next: 0,
            answered: None,
            again: None,
            twice: None,
            overrun: false,
            fault: Rc::default(),
        }
    }

    fn chance(&self, fault: Fault) -> bool {
        let mut wanted = self.fault.borrow_mut();
        let hit = *wanted == Some(fault);
        if hit {
            *wanted = None;
        }
        hit
    }

    fn bytes(&mut self, op: &Op) -> &mut [u8] {
        let start = usize::try_from(op.start).unwrap() * 512;
        &mut self.disk[start..start + op.blocks as usize * 512]
    }

    fn execute(&mut self, op: &Op, data: &[u8]) {
        match op.kind {
            Kind::Write { .. } => {
                if self.chance(Fault::DroppedWrite) {
                    return;
                }
                let mut place = *op;
                if op.start > 0 && self.chance(Fault::Misplaced) {
                    place.start -= 1;
                }
                let torn = op.blocks > 1 && self.chance(Fault::Torn);
                let len = data.len() - if torn { 512 } else { 0 };
                self.bytes(&place)[..len].copy_from_slice(&data[..len]);
                if self.again.is_none() && self.chance(Fault::LateAgain) {
                    self.again = Some((*op, data.to_vec(), 400));
                }
            }
            Kind::Deallocate | Kind::WriteZeroes { .. } if !self.chance(Fault::Undiscarded) => {
                self.bytes(op).fill(0);
            }
            _ => {}
        }
    }
}

impl Door for Fake {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn submit(&mut self, lane: usize, op: &Op, data: &[u8]) -> Result<Tag> {
        self.next += 1;
        self.lanes[lane].push_back((self.next, *op, data.to_vec()));
        Ok(self.next)
    }

    fn ring(&mut self, _lane: usize) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, lane: usize) -> Result<Option<Answer>> {
        if self.chance(Fault::Rot) {
            // In the hot part, in the middle of a block that something was written to.
            let at = self.disk.iter().position(|byte| *byte != 0).unwrap_or(0);
            self.disk[at + 30] ^= 4;
        }
        if let Some((op, data, left)) = self.again.take() {
            if left == 0 {
                self.bytes(&op).copy_from_slice(&data);
            } else {
                self.again = Some((op, data, left - 1));
            }
        }
        if let Some(answer) = self.twice.take() {
            return Ok(Some(answer));
        }
        let Some((tag, op, data)) = self.lanes[lane].pop_front() else { return Ok(None) };
        if self.chance(Fault::Lost) {
            return Ok(None);
        }
        self.execute(&op, &data);
        let failure = self.chance(Fault::Failed).then_some(0x286);
        let answer = Answer { tag, failure };
        self.twice = self.chance(Fault::Repeated).then_some(answer);
        let mut read = Vec::new();
        if op.kind == Kind::Read {
            read = self.bytes(&op).to_vec();
            if self.chance(Fault::Unread) {
                read.fill(0xA5);
            }
            self.overrun = self.chance(Fault::Overrun);
        }
        self.answered = Some((op, read));
        Ok(Some(answer))
    }

    fn data(&mut self, _lane: usize, _tag: Tag, target: &mut [u8]) -> bool {
        target.copy_from_slice(&self.answered.as_ref().unwrap().1);
        !std::mem::take(&mut self.overrun)
    }

    fn complaint(&mut self) -> Option<String> {
        None
    }
}
