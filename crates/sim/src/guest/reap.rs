//! Completions: taken on interrupts, and held against what was promised.

use std::collections::BTreeSet;

use spec::nvme::{Completion, Status};
use zerocopy::FromBytes;

use super::{AdminOp, Checked, Cmd, Guest, Op, violation};
use crate::disk::SECTOR;
use crate::ledger::{Content, End};

impl Guest {
    /// Takes what completion queues of these vectors have.
    pub(crate) fn reap_vector(&mut self, vector: u16) -> Checked {
        let cqids: Vec<u16> =
            self.cqs.iter().filter(|(_, cq)| cq.vector == vector).map(|(cqid, _)| *cqid).collect();
        cqids.into_iter().try_for_each(|cqid| self.reap(cqid).map(drop))
    }

    /// Takes what a completion queue has; how many.
    pub(crate) fn reap(&mut self, cqid: u16) -> Result<usize, super::Violation> {
        let mut taken = 0;
        while let Some(cq) = self.cqs.get(&cqid) {
            let bytes = self.peek(cq.base + u64::from(cq.head) * 16, 16);
            let Ok(entry) = Completion::read_from_bytes(&bytes) else { return Ok(taken) };
            if entry.status.phase() != cq.phase {
                return Ok(taken);
            }
            if let Some(cq) = self.cqs.get_mut(&cqid) {
                cq.head += 1;
                if cq.head == cq.size {
                    (cq.head, cq.phase) = (0, !cq.phase);
                }
            }
            taken += 1;
            self.answers += 1;
            self.take(cqid, entry)?;
        }
        Ok(taken)
    }

    fn take(&mut self, cqid: u16, entry: Completion) -> Checked {
        let (sqid, cid, status) = (entry.sqid, entry.cid, entry.status.with_phase(false));
        self.say(|| {
            format!("guest: cq {cqid}: sq {sqid} cid {cid} {:#06x} dw0 {:#x}", status.code(), entry.dw0)
        });
        let Some(sq) = self.sqs.get_mut(&sqid).filter(|sq| sq.cqid == cqid) else {
            return violation!(
                "a completion in queue {cqid} names submission queue {sqid}, which has none there"
            );
        };
        let head = u32::from(entry.sqhd);
        let ahead = (head + sq.size - sq.head) % sq.size;
        if head >= sq.size || ahead > (sq.rung + sq.size - sq.head) % sq.size {
            return violation!(
                "submission queue {sqid} went from head {} to {head}, tail {}",
                sq.head,
                sq.rung
            );
        }
        sq.head = head;
        let Some(cmd) = self.commands.remove(&(sqid, cid)) else {
            return violation!("queue {sqid} answers command {cid}, which nobody asked: twice, or another's");
        };
        let now = self.now();
        let checked = match &cmd.op {
            Op::Admin(op) => self.admin_ended(op, &cmd, entry, now),
            _ => self.io_ended(sqid, cid, &cmd, status, now),
        };
        if let Some(buffer) = cmd.buffer {
            self.give_buffer(buffer);
        }
        checked
    }

    fn io_ended(&mut self, sqid: u16, cid: u16, cmd: &Cmd, status: Status, now: u64) -> Checked {
        let oldest = self.oldest().min(cmd.begun);
        if !status.is_success() && !self.may_fail(sqid, cmd, status) {
            let sectors: Vec<String> =
                (cmd.first..cmd.first + cmd.count).map(|s| self.ledger.describe(cmd.nsid, s)).collect();
            return violation!(
                "#{} {:?} ended with {:#06x}: no reason for it{}",
                cmd.key,
                cmd.op,
                status.code(),
                sectors.concat()
            );
        }
        let durable = match cmd.op {
            Op::Write { fua } | Op::Zeroes { fua } | Op::Copy { fua, .. } => {
                fua || self.is_write_through(cmd)
            }
            Op::Uncorrectable => true,
            _ => false,
        };
        let end = match (status.is_success(), durable) {
            (true, true) => End::Durable,
            (true, false) => End::Done,
            (false, _) if status.bare() == Status::ABORTED_FAILED_FUSED => End::Nothing,
            (false, _) => End::Unknown,
        };
        if cmd.op.writes() {
            self.ledger.end(cmd.key, now, end, oldest);
        }
        match (&cmd.op, status.is_success()) {
            (Op::Read, true) => self.check_read(cmd),
            (Op::Verify, true) => self.check_readable(cmd),
            (Op::Flush, true) => {
                self.ledger.flushed(None, cmd.begun);
                Ok(())
            }
            (Op::Compare { expected }, success) => {
                self.check_compare(sqid, cid, cmd, expected, success, status)
            }
            (Op::Write { .. }, true) if cmd.fused.is_some() => self.check_fused_write(sqid, cid, cmd),
            _ => Ok(()),
        }
    }

    /// The volatile write cache was off all the time.
    fn is_write_through(&self, cmd: &Cmd) -> bool {
        let setting = |cmd: &Cmd| matches!(cmd.op.admin(), Some(AdminOp::SetFeature { fid: 6, .. }));
        self.features.get(&6) == Some(&0)
            && self.write_through_since < cmd.begun
            && !self.commands.values().any(setting)
    }

    fn check_read(&mut self, cmd: &Cmd) -> Checked {
        let Some(buffer) = cmd.buffer else { return Ok(()) };
        let bytes = self.get(buffer, usize::try_from(cmd.count).unwrap_or(0) * SECTOR);
        for (sector, bytes) in (cmd.first..).zip(bytes.chunks_exact(SECTOR)) {
            let found = Content::read(bytes);
            let allowed = found.is_some_and(|c| self.ledger.is_allowed(cmd.nsid, sector, c, cmd.begun));
            if !allowed {
                return violation!(
                    "#{} read {found:?} from sector {sector} of namespace {} (begun {}): {:02x?}{}",
                    cmd.key,
                    cmd.nsid,
                    cmd.begun,
                    &bytes[..16],
                    self.ledger.describe(cmd.nsid, sector)
                );
            }
            if let Some(content) = found {
                self.ledger.decide(cmd.nsid, sector, content);
            }
        }
        Ok(())
    }

    fn check_readable(&mut self, cmd: &Cmd) -> Checked {
        for sector in cmd.first..cmd.first + cmd.count {
            if self.ledger.possible(cmd.nsid, sector, cmd.begun) == [Content::Bad] {
                return violation!("#{} verified sector {sector}, which is uncorrectable", cmd.key);
            }
        }
        Ok(())
    }

    fn check_compare(
        &mut self,
        sqid: u16,
        cid: u16,
        cmd: &Cmd,
        expected: &[Content],
        success: bool,
        status: Status,
    ) -> Checked {
        let sectors = || (cmd.first..).zip(expected);
        if success {
            for (sector, content) in sectors() {
                if !self.ledger.is_allowed(cmd.nsid, sector, *content, cmd.begun) {
                    return violation!(
                        "#{} found {content:?} in sector {sector}, which cannot be{}",
                        cmd.key,
                        self.ledger.describe(cmd.nsid, sector)
                    );
                }
            }
            if let Some((write, false)) = cmd.fused {
                let certain = sectors().filter(|(s, c)| self.ledger_held(cmd, *s, **c)).map(|(s, c)| (s, *c));
                let certain = certain.collect();
                self.compared.insert((sqid, write), certain);
            }
            return Ok(());
        }
        let differs = |sector: u64, content: Content| {
            self.ledger.possible(cmd.nsid, sector, cmd.begun).iter().any(|other| *other != content)
        };
        if status.bare() == Status::COMPARE_FAILURE && !sectors().any(|(s, c)| differs(s, *c)) {
            return violation!("#{} found a difference where there can be none", cmd.key);
        }
        let _ = cid;
        Ok(())
    }

    /// Nothing else but the command's own pair touched the sector since it was certain to hold this.
    fn ledger_held(&self, cmd: &Cmd, sector: u64, content: Content) -> bool {
        let others = self.commands.values().any(|other| {
            other.nsid == cmd.nsid
                && other.op.writes()
                && other.fused.is_none()
                && (other.first..other.first + other.count).contains(&sector)
        });
        !others && matches!(content, Content::Stamp(..)) && self.ledger.is_settled(cmd.nsid, sector, content)
    }

    fn check_fused_write(&mut self, sqid: u16, cid: u16, cmd: &Cmd) -> Checked {
        let Some(compared) = self.compared.remove(&(sqid, cid)) else {
            return violation!("#{} of a fused pair succeeded, and its compare had not", cmd.key);
        };
        for (sector, content) in compared {
            if !self.consumed.insert((cmd.nsid, sector, content.key())) {
                return violation!(
                    "#{}: two compare-and-writes both replaced {content:?} in sector {sector}{}",
                    cmd.key,
                    self.ledger.describe(cmd.nsid, sector)
                );
            }
        }
        Ok(())
    }

    /// Whether what happened is a reason for this status.
    fn may_fail(&self, sqid: u16, cmd: &Cmd, status: Status) -> bool {
        let changing =
            self.commands.values().any(|other| other.op.admin().is_some_and(AdminOp::changes_namespaces));
        if changing || self.sanitizing || self.namespaces_changed > cmd.begun {
            return true;
        }
        let deleting = self.sqs.get(&sqid).is_some_and(|sq| sq.deleting);
        let bad = || {
            let sources = match cmd.op {
                Op::Copy { from, .. } => from..from + cmd.count,
                _ => 0..0,
            };
            (cmd.first..cmd.first + cmd.count).chain(sources).any(|sector| {
                let possible = self.ledger.possible(cmd.nsid, sector, cmd.begun);
                possible.iter().any(|c| matches!(c, Content::Bad | Content::Anything))
            })
        };
        match status.bare() {
            Status::ABORT_REQUESTED => cmd.abort_asked,
            Status::ABORTED_SQ_DELETION => deleting,
            Status::COMPARE_FAILURE => matches!(cmd.op, Op::Compare { .. }),
            Status::ABORTED_FAILED_FUSED => cmd.fused.is_some(),
            Status::UNRECOVERED_READ_ERROR => {
                // Known, see README.md: a mark whose removal was not recorded when a second write was answered comes
                // back after a power cut.
                let returned = || {
                    self.power_was_cut
                        && (cmd.first..cmd.first + cmd.count)
                            .any(|sector| self.ever_bad.contains(&(cmd.nsid, sector)))
                };
                let reads = !matches!(cmd.op, Op::Write { .. });
                self.habits.faults || reads && (bad() || returned())
            }
            Status::WRITE_FAULT | Status::INTERNAL_ERROR => self.habits.faults,
            _ => false,
        }
    }

    /// Every outstanding command of these queues is as good as lost: the queues are gone.
    pub(crate) fn forget(&mut self, sqids: &BTreeSet<u16>) {
        let gone: Vec<(u16, u16)> =
            self.commands.keys().filter(|(sqid, _)| sqids.contains(sqid)).copied().collect();
        let now = self.now();
        for place in gone {
            self.compared.remove(&place);
            if let Some(cmd) = self.commands.remove(&place) {
                self.ledger.end(cmd.key, now, End::Unknown, 0);
                if let Some(buffer) = cmd.buffer {
                    self.give_buffer(buffer);
                }
            }
        }
    }
}
