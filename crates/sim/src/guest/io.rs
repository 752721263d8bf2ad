//! I/O commands, and the rings.

use spec::nvme::nvm::{CopyRange0, DsmRange};
use spec::nvme::{Command, NSID_BROADCAST, NvmOpcode};
use zerocopy::IntoBytes;

use super::ram::SHADOW;
use super::{AdminOp, Cmd, Guest, HOT_SECTORS, Op};
use crate::disk::SECTOR;
use crate::ledger::Content;

/// A command being made.
struct Draft {
    op: Op,
    nsid: u32,
    lba: u64,
    blocks: u64,
    shift: u8,
}

impl Draft {
    fn first(&self) -> u64 {
        self.lba << (self.shift - 9)
    }

    fn count(&self) -> u64 {
        self.blocks << (self.shift - 9)
    }
}

impl Guest {
    /// Puts one command, or a fused pair, on some queue.
    pub(crate) fn io(&mut self) {
        let ready: Vec<u16> = self
            .sqs
            .iter()
            .filter(|(sqid, sq)| **sqid != 0 && sq.ready && !sq.deleting)
            .map(|(sqid, _)| *sqid)
            .collect();
        let Some(sqid) = self.rng.pick(&ready) else { return };
        let Some(draft) = self.draft() else { return };
        if matches!(draft.op, Op::Compare { .. }) && self.rng.percent(50) {
            return self.fused(sqid, draft);
        }
        if self.room(sqid) >= 1 {
            self.submit(sqid, draft, 0, None);
        }
    }

    fn draft(&mut self) -> Option<Draft> {
        let usable: Vec<(u32, u8)> = self
            .namespaces
            .iter()
            .filter(|(_, ns)| ns.attached)
            .map(|(nsid, ns)| (*nsid, ns.shift))
            .collect();
        let usable: Vec<(u32, u8)> = usable.into_iter().filter(|(nsid, _)| self.is_usable(*nsid)).collect();
        let (nsid, shift) = self.rng.pick(&usable)?;
        let most = HOT_SECTORS >> (shift - 9);
        let blocks = if shift == 9 { 1 + self.rng.below(8) as u64 } else { 1 + self.rng.below(3) as u64 };
        let lba = self.rng.below(usize::try_from(most - blocks).unwrap_or(1)) as u64;
        let fua = self.rng.percent(20);
        let op = match self.rng.below(100) {
            0..30 => Op::Read,
            30..64 => Op::Write { fua },
            64..70 => Op::Flush,
            70..75 => Op::Zeroes { fua },
            75..79 => Op::Deallocate,
            79..89 => Op::Compare { expected: Vec::new() },
            89..91 => Op::Verify,
            91..96 => Op::Copy { from: 0, fua },
            _ => Op::Uncorrectable,
        };
        let mut draft = Draft { op, nsid, lba, blocks, shift };
        if !self.may_touch(nsid, draft.first(), draft.count(), draft.op.writes()) {
            return None;
        }
        let range = draft.first()..draft.first() + draft.count();
        if let Op::Compare { .. } = draft.op {
            let wrong = self.rng.percent(15);
            let mut expected = Vec::new();
            for sector in range {
                let known = self.ledger.possible(nsid, sector, u64::MAX);
                let content = self.rng.pick(&known).filter(|_| !wrong);
                expected.push(match content {
                    Some(content @ (Content::Zero | Content::Stamp(..))) => content,
                    _ => Content::Stamp(u64::MAX, sector),
                });
            }
            draft.op = Op::Compare { expected };
        } else if let Op::Copy { fua, .. } = draft.op {
            let from = self.rng.below(usize::try_from(most - blocks).unwrap_or(1)) as u64;
            let source = from << (shift - 9)..(from + blocks) << (shift - 9);
            let plain = |sector| {
                matches!(self.ledger.certain(nsid, sector), Some(Content::Zero | Content::Stamp(..)))
            };
            if from.abs_diff(lba) < blocks
                || !source.clone().all(plain)
                || !self.may_touch(nsid, source.start, source.end - source.start, false)
                || self.is_written(nsid, source.start, source.end - source.start)
            {
                return None;
            }
            draft.op = Op::Copy { from: source.start, fua };
        }
        Some(draft)
    }

    /// Whether the guest's habits let it touch these sectors now.
    fn may_touch(&self, nsid: u32, first: u64, count: u64, writes: bool) -> bool {
        let meets = |start: u64, len: u64| start < first + count && first < start + len;
        self.commands.values().filter(|cmd| cmd.nsid == nsid).all(|cmd| {
            // What is copied must stay as it is: the ledger would not know what arrived.
            let pinned = matches!(cmd.op, Op::Copy { from, .. } if meets(from, cmd.count));
            let busy = meets(cmd.first, cmd.count) && (cmd.op.writes() || writes);
            !(writes && pinned) && (self.habits.overlap || !busy)
        })
    }

    fn is_written(&self, nsid: u32, first: u64, count: u64) -> bool {
        let meets = |cmd: &Cmd| cmd.first < first + count && first < cmd.first + cmd.count;
        self.commands.values().any(|cmd| cmd.nsid == nsid && cmd.op.writes() && meets(cmd))
    }

    /// Compare and Write as one.
    fn fused(&mut self, sqid: u16, compare: Draft) {
        let Draft { nsid, lba, blocks, shift, .. } = compare;
        // A pair needs two entries for its answers.
        let entries = self.sqs.get(&sqid).and_then(|sq| self.cqs.get(&sq.cqid)).map_or(0, |cq| cq.size);
        if entries < 3 || self.room(sqid) < 2 || !self.may_touch(nsid, compare.first(), compare.count(), true)
        {
            return;
        }
        let Some((first, second)) = self.free_cids(sqid) else { return };
        let write = Draft { op: Op::Write { fua: false }, nsid, lba, blocks, shift };
        if self.buffers.len() < 2 {
            return;
        }
        self.submit(sqid, compare, first, Some((second, false)));
        self.submit(sqid, write, second, Some((first, true)));
    }

    fn free_cids(&self, sqid: u16) -> Option<(u16, u16)> {
        let mut free = (0..64).filter(|cid| !self.commands.contains_key(&(sqid, *cid)));
        Some((free.next()?, free.next()?))
    }

    /// Entries that can be put.
    pub(crate) fn room(&self, sqid: u16) -> u32 {
        let Some(sq) = self.sqs.get(&sqid) else { return 0 };
        (sq.head + sq.size - sq.tail - 1) % sq.size
    }

    fn submit(&mut self, sqid: u16, draft: Draft, cid: u16, fused: Option<(u16, bool)>) {
        let (first, count) = (draft.first(), draft.count());
        let Draft { op, nsid, lba, blocks, .. } = draft;
        let Some(buffer) = self.take_buffer() else { return };
        let len = usize::try_from(count).unwrap_or(0) * SECTOR;
        let mut command = Command { nsid, ..Command::default() };
        let nlb_z = u32::try_from(blocks - 1).unwrap_or(0);
        (command.cdw10, command.cdw12) = (u32::try_from(lba).unwrap_or(0), nlb_z);
        let opcode = self.fill(&mut command, &op, first, count, buffer, (lba, blocks));
        let cid = if fused.is_some() { cid } else { self.free_cids(sqid).map_or(0, |(cid, _)| cid) };
        let fuse = fused.map_or(0, |(_, is_write)| if is_write { 2 } else { 1 });
        command.cdw0 = command.cdw0.with_opcode(opcode.0).with_cid(cid).with_fuse(fuse);
        if !matches!(op, Op::Flush | Op::Deallocate | Op::Copy { .. }) {
            (command.prp1, command.prp2) = self.prps(buffer, len);
        }
        let begun = self.now();
        let key = begun;
        let (content, stamp) = (op.clone(), self.stamp);
        if op == Op::Uncorrectable {
            self.ever_bad.extend((first..first + count).map(|sector| (nsid, sector)));
        }
        if op.writes() {
            let sources: Vec<Content> = match op {
                Op::Copy { from, .. } => (from..from + count)
                    .map(|sector| self.ledger.certain(nsid, sector).unwrap_or(Content::Anything))
                    .collect(),
                _ => Vec::new(),
            };
            for (sector, content) in (first..).zip(&sources) {
                self.consumed.remove(&(nsid, sector, content.key()));
            }
            self.ledger.begin(key, nsid, first..first + count, begun, |sector| match content {
                Op::Write { .. } => Content::Stamp(stamp, sector),
                Op::Uncorrectable => Content::Bad,
                Op::Copy { .. } => usize::try_from(sector - first)
                    .ok()
                    .and_then(|at| sources.get(at).copied())
                    .unwrap_or(Content::Anything),
                _ => Content::Zero,
            });
        }
        self.say(|| format!("guest: sq {sqid} cid {cid} #{key} {op:?} ns {nsid} {first}+{count} {fused:?}"));
        let cmd = Cmd { key, op, nsid, first, count, begun, buffer: Some(buffer), fused, abort_asked: false };
        self.push(sqid, &command, cmd);
    }

    /// The rest of a command, and its data.
    fn fill(
        &mut self,
        command: &mut Command,
        op: &Op,
        first: u64,
        count: u64,
        buffer: super::ram::Buffer,
        (lba, blocks): (u64, u64),
    ) -> NvmOpcode {
        const FUA: u32 = 1 << 30;
        const DEAC: u32 = 1 << 25;
        let nlb = u32::try_from(blocks).unwrap_or(1);
        match op {
            Op::Read => NvmOpcode::Read,
            Op::Write { fua } => {
                self.stamp += 1;
                let stamp = self.stamp;
                self.put_contents(buffer, (first..first + count).map(|s| Content::Stamp(stamp, s)));
                command.cdw12 |= if *fua { FUA } else { 0 };
                NvmOpcode::Write
            }
            Op::Flush => {
                if self.rng.percent(20) {
                    command.nsid = NSID_BROADCAST;
                }
                (command.cdw10, command.cdw12) = (0, 0);
                NvmOpcode::Flush
            }
            Op::Zeroes { fua } => {
                command.cdw12 |= if *fua { FUA } else { 0 } | if self.rng.percent(50) { DEAC } else { 0 };
                NvmOpcode::WriteZeroes
            }
            Op::Deallocate => {
                let range = DsmRange { cattr: 0, nlb, slba: lba };
                self.put(buffer, range.as_bytes());
                (command.prp1, command.prp2) = self.prps(buffer, 16);
                (command.cdw10, command.cdw11, command.cdw12) = (0, 1 << 2, 0);
                NvmOpcode::DatasetManagement
            }
            Op::Compare { expected } => {
                self.put_contents(buffer, expected.iter().copied());
                NvmOpcode::Compare
            }
            Op::Verify => NvmOpcode::Verify,
            Op::Copy { from, fua } => {
                let shift = blocks_shift(count, blocks);
                let range = CopyRange0 {
                    slba: *from >> shift,
                    nlb_z: u16::try_from(blocks - 1).unwrap_or(0),
                    ..CopyRange0::default()
                };
                self.put(buffer, range.as_bytes());
                (command.prp1, command.prp2) = self.prps(buffer, size_of::<CopyRange0>());
                // One range, format 0.
                command.cdw12 = if *fua { FUA } else { 0 };
                NvmOpcode::Copy
            }
            Op::Uncorrectable | Op::Admin(_) => NvmOpcode::WriteUncorrectable,
        }
    }

    fn put_contents(&self, buffer: super::ram::Buffer, contents: impl Iterator<Item = Content>) {
        let mut bytes = Vec::new();
        for content in contents {
            let at = bytes.len();
            bytes.resize(at + SECTOR, 0);
            content.fill(&mut bytes[at..]);
        }
        self.put(buffer, &bytes);
    }

    /// Puts an entry into a ring; the doorbell is for later.
    pub(crate) fn push(&mut self, sqid: u16, command: &Command, mut cmd: Cmd) {
        // An Abort on its way may find this command instead of the one it was meant for.
        let abort = AdminOp::Abort { sqid, cid: command.cid() };
        cmd.abort_asked |= self.commands.values().any(|other| other.op.admin() == Some(&abort));
        let Some(sq) = self.sqs.get_mut(&sqid) else { return };
        let at = sq.base + u64::from(sq.tail) * 64;
        sq.tail = (sq.tail + 1) % sq.size;
        self.poke(at, command.as_bytes());
        let former = self.commands.insert((sqid, command.cid()), cmd);
        assert!(former.is_none(), "the guest's identifiers are unique");
    }

    /// Rings every doorbell that is due, on shadow pages where they are in use.
    pub(crate) fn ring(&mut self, page: &memory::DoorbellPage) {
        let mut rings = Vec::new();
        for (sqid, sq) in self.sqs.iter_mut().filter(|(_, sq)| sq.rung != sq.tail) {
            sq.rung = sq.tail;
            rings.push((*sqid, 2 * usize::from(*sqid), sq.tail));
        }
        for (cqid, cq) in self.cqs.iter_mut().filter(|(_, cq)| cq.rung != cq.head) {
            cq.rung = cq.head;
            rings.push((*cqid, 2 * usize::from(*cqid) + 1, cq.head));
        }
        for (qid, index, value) in rings {
            if self.shadow && qid != 0 {
                self.poke(SHADOW + index as u64 * 4, &value.to_le_bytes());
            } else {
                page.store(index, value);
            }
        }
    }
}

fn blocks_shift(count: u64, blocks: u64) -> u32 {
    (count / blocks).trailing_zeros()
}

impl Op {
    pub(crate) fn writes(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Zeroes { .. }
                | Self::Deallocate
                | Self::Copy { .. }
                | Self::Uncorrectable
        )
    }

    pub(crate) fn admin(&self) -> Option<&AdminOp> {
        match self {
            Self::Admin(op) => Some(op),
            _ => None,
        }
    }
}
