//! Makes up operations from a seed, sends them, and lets the auditor judge what comes back.

use std::ops::Range;
use std::time::Duration;

use super::auditor::Auditor;
use super::door::{Door, Kind, Op, Shape};
use super::gaps::Gaps;
use super::model::Model;
use crate::Result;
use crate::load::workload::Random;

/// Blocks at the end of an ssd that commands fight over.
const CONTESTED_BLOCKS: u64 = 512;
/// Blocks at its start that get more than their share, so that they change often.
const HOT_BLOCKS: u64 = 4096;
/// Tries to find a place where nothing overlaps.
const TRIES: usize = 8;

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everything, mixed.
    Mixed,
    /// Nothing new.
    Draining,
    /// Reads every block once, from here on.
    Sweep(u64),
}

/// The load of one ssd.
pub struct Load {
    door: Box<dyn Door>,
    /// Judges it.
    pub auditor: Auditor,
    /// The times without a completion.
    pub gaps: Gaps,
    shape: Shape,
    lanes: Vec<Lane>,
    random: Random,
    phase: Phase,
    scratch: Vec<u8>,
}

struct Lane {
    outstanding: usize,
    /// How many to keep outstanding, for how many operations to come.
    depth: usize,
    left: u64,
}

impl Load {
    /// Over a device full of zeros.
    #[must_use]
    pub fn new(name: &str, ssd: u64, door: Box<dyn Door>, seed: u64, now_ns: u64) -> Self {
        let shape = door.shape();
        let contested = shape.blocks - CONTESTED_BLOCKS.min(shape.blocks / 2)..shape.blocks;
        let model = Model::new(ssd, shape.blocks, shape.block_bytes, contested);
        let lanes = (0..shape.lanes).map(|_| Lane { outstanding: 0, depth: shape.depth, left: 0 }).collect();
        let scratch = vec![0; shape.transfer_blocks_max as usize * shape.block_bytes];
        Load {
            door,
            auditor: Auditor::new(name, model),
            gaps: Gaps::new(now_ns),
            shape,
            lanes,
            random: Random::new(seed),
            phase: Phase::Mixed,
            scratch,
        }
    }

    /// Takes what was answered and sends anew; says how many answers came.
    ///
    /// # Errors
    /// The device is gone.
    pub fn turn(&mut self, now: &dyn Fn() -> u64) -> Result<usize> {
        if self.is_done() {
            self.gaps.idle(now());
        }
        let mut answers = 0;
        for lane in 0..self.lanes.len() {
            let taken = self.take(lane, now)?;
            let sent = self.send(lane, now)?;
            if taken + sent > 0 {
                self.door.ring(lane)?;
            }
            answers += taken;
        }
        while let Some(complaint) = self.door.complaint() {
            self.auditor.error(&complaint);
        }
        Ok(answers)
    }

    /// Takes what was answered and sends nothing; says how many answers came.
    ///
    /// # Errors
    /// The device is gone.
    pub fn listen(&mut self, now: &dyn Fn() -> u64) -> Result<usize> {
        (0..self.lanes.len()).map(|lane| self.take(lane, now)).sum()
    }

    /// Goes on by another door to the same device, elsewhere. What was out will not be answered: it has happened, or it never does.
    ///
    /// # Errors
    /// It is another device.
    pub fn move_to(&mut self, door: Box<dyn Door>) -> Result<()> {
        if door.shape() != self.shape {
            let what = format!("{:?} there, {:?} here", door.shape(), self.shape);
            return Err(crate::Error::Protocol(what));
        }
        self.auditor.abandon();
        self.door = door;
        self.lanes.iter_mut().for_each(|lane| lane.outstanding = 0);
        if let Phase::Sweep(_) = self.phase {
            self.phase = Phase::Sweep(0);
        }
        Ok(())
    }

    /// Sends nothing more.
    pub fn drain(&mut self) {
        self.phase = Phase::Draining;
    }

    /// Sends everything again.
    pub fn go_on(&mut self) {
        self.phase = Phase::Mixed;
    }

    /// Reads every block once.
    pub fn sweep(&mut self) {
        self.phase = Phase::Sweep(0);
    }

    /// Whether nothing is outstanding and nothing will be sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let sent = match self.phase {
            Phase::Mixed => false,
            Phase::Draining => true,
            Phase::Sweep(next) => next >= self.shape.blocks,
        };
        sent && self.auditor.outstanding() == 0
    }

    /// Counts what is outstanding for too long as lost.
    pub fn give_up(&mut self, now_ns: u64, patience: Duration) {
        self.auditor.give_up(now_ns, patience);
    }

    fn take(&mut self, lane: usize, now: &dyn Fn() -> u64) -> Result<usize> {
        let mut taken = 0;
        while let Some(answer) = self.door.poll(lane)? {
            self.gaps.completion(now());
            taken += 1;
            let Some(expected) = self.auditor.answered(lane, answer) else { continue };
            self.lanes[lane].outstanding -= 1;
            let bytes = expected.data_blocks() * self.shape.block_bytes;
            let data = &mut self.scratch[..bytes];
            let untouched = bytes == 0 || self.door.data(lane, answer.tag, data);
            self.auditor.judge(lane, &expected, data, untouched);
        }
        Ok(taken)
    }

    fn send(&mut self, lane: usize, now: &dyn Fn() -> u64) -> Result<usize> {
        let mut sent = 0;
        while self.lanes[lane].outstanding < self.depth(lane) {
            let Some(claim) = self.next_claim() else { break };
            let writes = matches!(claim.op.kind, Kind::Write { .. });
            let bytes = if writes { claim.op.blocks as usize * self.shape.block_bytes } else { 0 };
            self.auditor.model.fill(&claim, &mut self.scratch[..bytes]);
            let tag = self.door.submit(lane, &claim.op, &self.scratch[..bytes])?;
            self.auditor.submitted(lane, tag, claim, now());
            self.lanes[lane].outstanding += 1;
            sent += 1;
        }
        Ok(sent)
    }

    /// How deep the lane goes now: another depth every so often.
    fn depth(&mut self, lane: usize) -> usize {
        let lane = &mut self.lanes[lane];
        if lane.left == 0 {
            lane.left = 200 + self.random.below(2000);
            let deepest = self.shape.depth as u64;
            let depth = if self.random.below(3) == 0 { deepest } else { 1 + self.random.below(deepest) };
            lane.depth = usize::try_from(depth).unwrap_or(1);
        }
        lane.left -= 1;
        lane.depth
    }

    fn next_claim(&mut self) -> Option<super::model::Claim> {
        match self.phase {
            Phase::Draining => None,
            Phase::Mixed => (0..TRIES).find_map(|_| {
                let op = self.make_up();
                self.auditor.model.claim(op)
            }),
            Phase::Sweep(next) => {
                let left = self.shape.blocks.saturating_sub(next);
                let blocks = u32::try_from(left.min(self.shape.transfer_blocks_max.into())).ok()?;
                if blocks == 0 {
                    return None;
                }
                self.phase = Phase::Sweep(next + u64::from(blocks));
                self.auditor.model.claim(Op { kind: Kind::Read, start: next, blocks })
            }
        }
    }

    fn make_up(&mut self) -> Op {
        let kind = match self.random.below(100) {
            0..48 => Kind::Read,
            48..72 => Kind::Write { fua: false },
            72..84 => Kind::Write { fua: true },
            84..88 => return Op { kind: Kind::Flush, start: 0, blocks: 0 },
            88..93 => Kind::Deallocate,
            93..97 => Kind::WriteZeroes { deallocate: false },
            _ => Kind::WriteZeroes { deallocate: true },
        };
        let (zone, longest) = self.zone();
        let blocks = self.length().min(longest).min(zone.end - zone.start);
        let mut start = zone.start + self.random.below(zone.end - zone.start - blocks + 1);
        if self.random.below(2) == 0 {
            // As file systems do.
            let grain = (4096 / self.shape.block_bytes as u64).max(1);
            start = (start / grain * grain).max(zone.start);
        }
        Op { kind, start, blocks: u32::try_from(blocks).unwrap_or(1) }
    }

    /// Where, and how long at most.
    fn zone(&mut self) -> (Range<u64>, u64) {
        let blocks = self.shape.blocks;
        let quiet = blocks - CONTESTED_BLOCKS.min(blocks / 2);
        match self.random.below(10) {
            0 => (quiet..blocks, 16),
            1..5 => (0..HOT_BLOCKS.min(quiet), u64::from(self.shape.transfer_blocks_max)),
            _ => (0..quiet, u64::from(self.shape.transfer_blocks_max)),
        }
    }

    fn length(&mut self) -> u64 {
        let page = (4096 / self.shape.block_bytes as u64).max(1);
        match self.random.below(32) {
            0..8 => 1,
            8..20 => page,
            20..25 => 1 + self.random.below(2 * page),
            25..30 => 1 + self.random.below(8 * page),
            30 => 1 + self.random.below(u64::from(self.shape.transfer_blocks_max)),
            _ => u64::from(self.shape.transfer_blocks_max),
        }
    }
}
