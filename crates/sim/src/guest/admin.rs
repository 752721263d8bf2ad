//! Admin commands: what a driver does to run queues, and what an administrator does meanwhile.

use spec::nvme::{AdminOpcode, Command, Completion, Status};

use super::ram::{EVENT_INDEX, SHADOW, cq_base, sq_base};
use super::{AdminOp, Checked, Cmd, Cq, Guest, HOT_SECTORS, Ns, Op, QUEUES, Sq, violation};
use crate::ledger::Content;

/// Event requests the guest keeps outstanding.
const EVENT_REQUESTS: usize = 2;
/// Bytes of a namespace it makes.
const NEW_BYTES: u64 = 256 << 10;

impl Guest {
    fn outstanding(&self, matches: impl Fn(&AdminOp) -> bool) -> usize {
        self.commands.values().filter(|cmd| cmd.op.admin().is_some_and(&matches)).count()
    }

    fn is_outstanding(&self, matches: impl Fn(&AdminOp) -> bool) -> bool {
        self.outstanding(matches) > 0
    }

    /// Gives one admin command, if there is something to ask.
    pub(crate) fn administer(&mut self) {
        if self.room(0) == 0 || self.outstanding(|op| *op != AdminOp::Event) >= 4 {
            return;
        }
        if self.outstanding(|op| *op == AdminOp::Event) < EVENT_REQUESTS && !self.winding_down {
            return self.ask(AdminOp::Event);
        }
        if let Some(op) = self.needed() {
            return self.ask(op);
        }
        if self.winding_down {
            return;
        }
        if let Some(op) = self.whim() {
            self.ask(op);
        }
    }

    /// What a driver needs: queues.
    fn needed(&mut self) -> Option<AdminOp> {
        if self.winding_down && !self.sanitizing {
            return None;
        }
        if self.sanitizing {
            let busy = self.is_outstanding(|op| matches!(op, AdminOp::Log { .. } | AdminOp::Sanitize));
            return (!busy && self.rng.percent(30)).then_some(AdminOp::Log { lid: 0x81 });
        }
        if !self.queues_set {
            let asked = self.is_outstanding(|op| matches!(op, AdminOp::SetQueues));
            return (!asked).then_some(AdminOp::SetQueues);
        }
        if self.habits.shadow && !self.shadow && self.sqs.len() == 1 {
            let asked = self.is_outstanding(|op| *op == AdminOp::Doorbells);
            return (!asked).then_some(AdminOp::Doorbells);
        }
        let qid = 1 + u16::try_from(self.rng.below(usize::from(QUEUES))).unwrap_or(0);
        let touched = self.is_outstanding(|op| {
            matches!(op, AdminOp::CreateCq(q) | AdminOp::CreateSq(q) | AdminOp::DeleteSq(q) | AdminOp::DeleteCq(q) if *q == qid)
        });
        if touched || !self.rng.percent(40) {
            return None;
        }
        match (self.cqs.contains_key(&qid), self.sqs.contains_key(&qid)) {
            (false, false) => Some(AdminOp::CreateCq(qid)),
            (true, false) => Some(AdminOp::CreateSq(qid)),
            _ => None,
        }
    }

    fn whim(&mut self) -> Option<AdminOp> {
        let deleting = self.is_outstanding(|op| matches!(op, AdminOp::DeleteSq(_) | AdminOp::DeleteCq(_)));
        let queues: Vec<u16> =
            self.sqs.iter().filter(|(q, sq)| **q != 0 && sq.ready).map(|(q, _)| *q).collect();
        match self.rng.below(100) {
            0..6 if !deleting => self.rng.pick(&queues).map(AdminOp::DeleteSq),
            6..10 if !deleting => {
                let empty = |cqid: &u16| *cqid != 0 && !self.sqs.values().any(|sq| sq.cqid == *cqid);
                let idle: Vec<u16> =
                    self.cqs.iter().filter(|(q, cq)| cq.ready && empty(q)).map(|(q, _)| *q).collect();
                let creating = self.is_outstanding(|op| matches!(op, AdminOp::CreateSq(_)));
                self.rng.pick(&idle).filter(|_| !creating).map(AdminOp::DeleteCq)
            }
            10..25 => {
                let running: Vec<(u16, u16)> = self.commands.keys().copied().collect();
                let (sqid, cid) = self.rng.pick(&running)?;
                let event =
                    self.commands.get(&(sqid, cid)).is_some_and(|cmd| cmd.op == Op::Admin(AdminOp::Event));
                // An event request that is aborted tells nobody of what it was for.
                (sqid != 0 || event && self.event_owed.is_none()).then_some(AdminOp::Abort { sqid, cid })
            }
            25..35 => {
                let (fid, value) = match self.rng.below(4) {
                    0 => (0x06, self.rng.below32(2)),
                    1 => (0x0b, 0x100 * self.rng.below32(2)),
                    2 => (0x08, self.rng.below32(0xffff)),
                    _ => (0x04, 300 + self.rng.below32(60)),
                };
                (!self.sets(fid)).then_some(AdminOp::SetFeature { fid, value })
            }
            35..45 => {
                let fids: Vec<u8> = self.features.keys().copied().collect();
                let fid = self.rng.pick(&fids).filter(|fid| !self.sets(*fid))?;
                let expected = self.features.get(&fid).copied()?;
                Some(AdminOp::GetFeature { fid, expected })
            }
            45..48 => Some(AdminOp::Identify),
            48..50 => {
                let attached = self.namespaces.iter().find(|(_, ns)| ns.attached);
                attached.map(|(nsid, _)| AdminOp::LbaStatus { nsid: *nsid })
            }
            50..60 => {
                let lid = self.rng.pick(&[1, 2, 4])?;
                let asked = self.is_outstanding(|op| matches!(op, AdminOp::Log { .. }));
                (!asked).then_some(AdminOp::Log { lid })
            }
            60..62 => Some(AdminOp::SelfTest),
            62..72 if self.habits.manage => self.manage(),
            _ => None,
        }
    }

    fn sets(&self, fid: u8) -> bool {
        self.is_outstanding(|op| matches!(op, AdminOp::SetFeature { fid: f, .. } | AdminOp::GetFeature { fid: f, .. } if *f == fid))
    }

    /// One change of the namespaces, when nobody uses them.
    fn manage(&mut self) -> Option<AdminOp> {
        if self.is_outstanding(AdminOp::changes_namespaces) || self.sanitizing {
            return None;
        }
        let nsids: Vec<u32> = self.namespaces.keys().copied().collect();
        let nsid = self.rng.pick(&nsids).unwrap_or(1);
        let shift = if self.rng.percent(50) { 9 } else { 12 };
        let attached = self.namespaces.get(&nsid).is_some_and(|ns| ns.attached);
        let op = match self.rng.below(8) {
            0 | 1 if attached => AdminOp::Format { nsid, shift },
            2 => AdminOp::Sanitize,
            3 | 4 if !nsids.is_empty() => AdminOp::Attach { nsid, attach: !attached },
            5 if nsids.len() < 4 => AdminOp::Create { shift },
            6 if nsids.len() > 1 => AdminOp::Delete { nsid },
            _ => return None,
        };
        let whole = op == AdminOp::Sanitize;
        let used = |cmd: &Cmd| cmd.op.admin().is_none() && (whole || cmd.nsid == nsid);
        (!self.commands.values().any(used)).then_some(op)
    }

    /// Whether a namespace may be used for I/O now.
    pub(crate) fn is_usable(&self, nsid: u32) -> bool {
        let held = |op: &AdminOp| match op {
            AdminOp::Format { nsid: n, .. }
            | AdminOp::Attach { nsid: n, .. }
            | AdminOp::Delete { nsid: n } => *n == nsid,
            AdminOp::Sanitize => true,
            _ => false,
        };
        !self.sanitizing && !self.is_outstanding(held)
    }

    fn ask(&mut self, op: AdminOp) {
        let Some(cid) = (0..64).find(|cid| !self.commands.contains_key(&(0, *cid))) else { return };
        let Some(buffer) = self.take_buffer() else { return };
        let mut command = Command::default();
        let mut data = vec![0; 4096];
        let opcode = self.admin_command(&op, &mut command, &mut data);
        self.put(buffer, &data);
        if command.prp1 == 0 {
            (command.prp1, command.prp2) = self.prps(buffer, 4096);
        }
        command.cdw0 = command.cdw0.with_opcode(opcode.0).with_cid(cid);
        if let AdminOp::Abort { sqid, cid } = op
            && let Some(cmd) = self.commands.get_mut(&(sqid, cid))
        {
            cmd.abort_asked = true;
        }
        let begun = self.now();
        if op.changes_namespaces() {
            self.namespaces_changed = begun;
        }
        match op {
            AdminOp::DeleteSq(qid) => {
                if let Some(sq) = self.sqs.get_mut(&qid) {
                    sq.deleting = true;
                }
            }
            AdminOp::Log { lid: 4 } => self.event_owed = None,
            AdminOp::SetFeature { fid: 0x0b, .. } => self.event_owed = None,
            _ => {}
        }
        self.say(|| format!("guest: admin cid {cid} #{begun} {op:?}"));
        let cmd = Cmd {
            key: begun,
            op: Op::Admin(op),
            nsid: 0,
            first: 0,
            count: 0,
            begun,
            buffer: Some(buffer),
            fused: None,
            abort_asked: false,
        };
        self.push(0, &command, cmd);
    }

    fn admin_command(&mut self, op: &AdminOp, command: &mut Command, data: &mut [u8]) -> AdminOpcode {
        match op {
            AdminOp::CreateCq(qid) => {
                let size = 2 + self.rng.below32(14);
                let vector = self.rng.below32(5);
                let base = cq_base(*qid);
                self.poke(base, &[0; 4096]);
                let vector16 = u16::try_from(vector).unwrap_or(0);
                let cq = Cq { base, size, vector: vector16, head: 0, rung: 0, phase: true, ready: false };
                self.cqs.insert(*qid, cq);
                self.reset_doorbell(2 * u64::from(*qid) + 1);
                command.prp1 = base;
                (command.cdw10, command.cdw11) = (u32::from(*qid) | (size - 1) << 16, 0b11 | vector << 16);
                AdminOpcode::CreateIoCompletionQueue
            }
            AdminOp::CreateSq(qid) => {
                let ready: Vec<u16> =
                    self.cqs.iter().filter(|(q, cq)| **q != 0 && cq.ready).map(|(q, _)| *q).collect();
                let deleted = |q: &u16| self.is_outstanding(|op| *op == AdminOp::DeleteCq(*q));
                let shared: Vec<u16> = ready.into_iter().filter(|q| !deleted(q)).collect();
                let cqid = self.rng.pick(&shared).filter(|_| self.rng.percent(40)).unwrap_or(*qid);
                let size = 2 + self.rng.below32(30);
                let base = sq_base(*qid);
                let sq = Sq { base, size, cqid, tail: 0, rung: 0, head: 0, deleting: false, ready: false };
                self.sqs.insert(*qid, sq);
                self.reset_doorbell(2 * u64::from(*qid));
                command.prp1 = base;
                (command.cdw10, command.cdw11) =
                    (u32::from(*qid) | (size - 1) << 16, 1 | u32::from(cqid) << 16);
                AdminOpcode::CreateIoSubmissionQueue
            }
            AdminOp::DeleteSq(qid) => {
                command.cdw10 = u32::from(*qid);
                AdminOpcode::DeleteIoSubmissionQueue
            }
            AdminOp::DeleteCq(qid) => {
                if let Some(cq) = self.cqs.get_mut(qid) {
                    cq.ready = false;
                }
                command.cdw10 = u32::from(*qid);
                AdminOpcode::DeleteIoCompletionQueue
            }
            AdminOp::Abort { sqid, cid } => {
                command.cdw10 = u32::from(*sqid) | u32::from(*cid) << 16;
                AdminOpcode::Abort
            }
            AdminOp::Event => AdminOpcode::AsyncEventRequest,
            AdminOp::SetFeature { fid, value } => {
                (command.cdw10, command.cdw11) = (u32::from(*fid), *value);
                AdminOpcode::SetFeatures
            }
            AdminOp::GetFeature { fid, .. } => {
                command.cdw10 = u32::from(*fid);
                AdminOpcode::GetFeatures
            }
            AdminOp::SetQueues => {
                let most = u32::from(QUEUES) - 1;
                (command.cdw10, command.cdw11) = (7, most | most << 16);
                AdminOpcode::SetFeatures
            }
            AdminOp::Identify => {
                command.cdw10 = 1;
                AdminOpcode::Identify
            }
            AdminOp::LbaStatus { nsid } => {
                // Action 02h over all of it, in a page.
                (command.nsid, command.cdw12, command.cdw13) = (*nsid, 1023, 0x0200_0000);
                AdminOpcode::GetLbaStatus
            }
            AdminOp::SelfTest => {
                (command.cdw10, command.nsid) = (1, u32::MAX);
                AdminOpcode::DeviceSelfTest
            }
            AdminOp::Log { lid } => {
                command.cdw10 = u32::from(*lid) | (512 / 4 - 1) << 16;
                AdminOpcode::GetLogPage
            }
            AdminOp::Doorbells => {
                self.poke(SHADOW, &[0; 4096]);
                self.poke(EVENT_INDEX, &[0; 4096]);
                (command.prp1, command.prp2) = (SHADOW, EVENT_INDEX);
                AdminOpcode::DoorbellBufferConfig
            }
            AdminOp::Format { nsid, shift } => {
                (command.nsid, command.cdw10) = (*nsid, u32::from(*shift == 12));
                AdminOpcode::FormatNvm
            }
            AdminOp::Sanitize => {
                // Block erase; a failure may be left.
                command.cdw10 = 2 | 1 << 3;
                AdminOpcode::Sanitize
            }
            AdminOp::Attach { nsid, attach } => {
                (command.nsid, command.cdw10) = (*nsid, u32::from(!attach));
                // A list of one controller: ours, which is 0.
                data[0] = 1;
                AdminOpcode::NamespaceAttachment
            }
            AdminOp::Create { shift } => {
                let blocks = NEW_BYTES >> shift;
                data[..8].copy_from_slice(&blocks.to_le_bytes());
                data[8..16].copy_from_slice(&blocks.to_le_bytes());
                data[26] = u8::from(*shift == 12);
                AdminOpcode::NamespaceManagement
            }
            AdminOp::Delete { nsid } => {
                (command.nsid, command.cdw10) = (*nsid, 1);
                AdminOpcode::NamespaceManagement
            }
        }
    }

    /// A driver clears what a former queue left in the shadow.
    fn reset_doorbell(&mut self, index: u64) {
        if self.shadow {
            self.poke(SHADOW + index * 4, &[0; 4]);
            self.poke(EVENT_INDEX + index * 4, &[0; 4]);
        }
    }

    pub(crate) fn admin_ended(&mut self, op: &AdminOp, cmd: &Cmd, entry: Completion, now: u64) -> Checked {
        let status = entry.status.bare();
        if status != Status::SUCCESS {
            return self.admin_failed(op, cmd, status);
        }
        match op {
            AdminOp::CreateCq(qid) => self.cqs.get_mut(qid).into_iter().for_each(|cq| cq.ready = true),
            AdminOp::CreateSq(qid) => self.sqs.get_mut(qid).into_iter().for_each(|sq| sq.ready = true),
            AdminOp::DeleteSq(qid) => {
                // What was posted before is still there to be taken.
                let cqid = self.sqs.get(qid).map_or(0, |sq| sq.cqid);
                self.reap(cqid)?;
                self.forget(&[*qid].into());
                self.sqs.remove(qid);
            }
            AdminOp::DeleteCq(qid) => drop(self.cqs.remove(qid)),
            AdminOp::SetQueues => self.queues_set = true,
            AdminOp::Doorbells => self.shadow = true,
            AdminOp::SetFeature { fid, value } => {
                if *fid == 6 && *value == 0 && self.features.get(&6) != Some(&0) {
                    self.write_through_since = now;
                }
                self.features.insert(*fid, *value);
            }
            AdminOp::GetFeature { fid, expected } if entry.dw0 != *expected => {
                return violation!("feature {fid:#x} is {:#x}, and was set to {expected:#x}", entry.dw0);
            }
            AdminOp::Event => return self.event(entry.dw0),
            AdminOp::Log { lid } => return self.log_read(*lid, cmd, now),
            AdminOp::LbaStatus { nsid } => return self.list_read(*nsid, cmd),
            op if op.changes_namespaces() => self.namespaces_ended(op, entry, now),
            _ => {}
        }
        Ok(())
    }

    fn namespaces_ended(&mut self, op: &AdminOp, entry: Completion, now: u64) {
        self.namespaces_changed = now;
        match op {
            AdminOp::Format { nsid, shift } => {
                if let Some(ns) = self.namespaces.get_mut(nsid) {
                    ns.blocks = ns.blocks << ns.shift >> shift;
                    ns.shift = *shift;
                }
                self.ledger.reset(*nsid, HOT_SECTORS, Content::Zero, now);
            }
            AdminOp::Sanitize => self.sanitizing = true,
            AdminOp::Attach { nsid, attach } => {
                if let Some(ns) = self.namespaces.get_mut(nsid) {
                    ns.attached = *attach;
                }
                let told = self.features.get(&0x0b).is_some_and(|value| value & 0x100 != 0);
                let settled = !self.is_outstanding(|op| {
                    matches!(
                        op,
                        AdminOp::Log { lid: 4 }
                            | AdminOp::Abort { sqid: 0, .. }
                            | AdminOp::SetFeature { fid: 0x0b, .. }
                    )
                });
                if told && settled && !self.masked[2] && self.is_outstanding(|op| *op == AdminOp::Event) {
                    self.event_owed = Some(now);
                }
            }
            AdminOp::Create { shift } => {
                let blocks = NEW_BYTES >> shift;
                self.namespaces.insert(entry.dw0, Ns { shift: *shift, blocks, attached: false });
                self.ledger.reset(entry.dw0, HOT_SECTORS, Content::Zero, now);
            }
            AdminOp::Delete { nsid } => {
                self.namespaces.remove(nsid);
                self.ledger.reset(*nsid, 0, Content::Zero, now);
            }
            _ => {}
        }
    }

    fn event(&mut self, dw0: u32) -> Checked {
        let kind = usize::try_from(dw0 & 7).unwrap_or(0);
        if self.masked[kind] {
            return violation!("an event of type {kind} ({dw0:#x}) came again before its log page was read");
        }
        if kind == 2 {
            self.event_owed = None;
        }
        self.masked[kind] = true;
        Ok(())
    }

    /// The namespaces may have been others meanwhile.
    fn were_changed_since(&self, begun: u64) -> bool {
        self.namespaces_changed >= begun
            || self.sanitizing
            || self.is_outstanding(AdminOp::changes_namespaces)
    }

    /// Runs of blocks of the namespace, ascending and apart; among them is what held something all the time.
    fn list_read(&self, nsid: u32, cmd: &Cmd) -> Checked {
        let Some(buffer) = cmd.buffer else { return Ok(()) };
        let page = self.get(buffer, 4096);
        let word = |at: usize| {
            page.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
        };
        let (count, condition) = (word(0) & 0xffff_ffff, word(0) >> 32);
        if count > 255 {
            return violation!("#{} tells {count} runs in a page", cmd.key);
        }
        let Some(ns) = self.namespaces.get(&nsid).filter(|_| !self.were_changed_since(cmd.begun)) else {
            return Ok(());
        };
        let mut told = Vec::new();
        let mut behind = None;
        for at in (8..).step_by(16).take(usize::try_from(count).unwrap_or(0)) {
            let (start, end) = (word(at), word(at) + (word(at + 8) & 0xffff_ffff) + 1);
            if end > ns.blocks || behind.is_some_and(|behind| start <= behind) {
                return violation!("#{} of {count} runs one is {start} to {end}, after {behind:?}", cmd.key);
            }
            behind = Some(end);
            told.push(start << (ns.shift - 9)..end << (ns.shift - 9));
        }
        let left_out = (0..HOT_SECTORS).find(|sector| {
            let possible = self.ledger.possible(nsid, *sector, cmd.begun);
            let empty = possible.iter().any(|it| matches!(it, Content::Zero | Content::Anything));
            !empty && !told.iter().any(|run| run.contains(sector))
        });
        match left_out {
            // All that the guest uses has room in a page.
            _ if condition != 2 => violation!("#{} is not whole: {condition}, {count} runs", cmd.key),
            Some(sector) => violation!(
                "#{} does not tell sector {sector} of namespace {nsid}{}",
                cmd.key,
                self.ledger.describe(nsid, sector)
            ),
            None => Ok(()),
        }
    }

    fn log_read(&mut self, lid: u8, cmd: &Cmd, now: u64) -> Checked {
        let Some(buffer) = cmd.buffer else { return Ok(()) };
        let page = self.get(buffer, 512);
        match lid {
            1 => {
                self.masked[0] = false;
                let count = page[..8].try_into().map_or(0, u64::from_le_bytes);
                if count != 0 && count < self.last_error_count {
                    return violation!("the error count went from {} to {count}", self.last_error_count);
                }
                self.last_error_count = self.last_error_count.max(count);
            }
            2 => self.masked[1] = false,
            4 => self.masked[2] = false,
            0x81 => {
                self.masked[6] = false;
                match page[2] & 7 {
                    1 => {
                        self.sanitizing = false;
                        self.namespaces_changed = now;
                        let nsids: Vec<u32> = self.namespaces.keys().copied().collect();
                        for nsid in nsids {
                            self.ledger.reset(nsid, HOT_SECTORS, Content::Zero, now);
                        }
                    }
                    2 => {}
                    other => return violation!("sanitize status {other}"),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn admin_failed(&mut self, op: &AdminOp, cmd: &Cmd, status: Status) -> Checked {
        let allowed = match op {
            AdminOp::Event => status == Status::ABORT_REQUESTED && cmd.abort_asked,
            AdminOp::SelfTest => {
                matches!(status, Status::SELF_TEST_IN_PROGRESS | Status::SANITIZE_IN_PROGRESS)
            }
            // Or the namespace has gone by then.
            AdminOp::LbaStatus { .. } => {
                self.were_changed_since(cmd.begun)
                    && matches!(status, Status::INVALID_FIELD | Status::SANITIZE_IN_PROGRESS)
            }
            // The queue may have gone meanwhile.
            AdminOp::Abort { .. } => true,
            // Asked for at the same time as a sanitize.
            AdminOp::Doorbells => status == Status::SANITIZE_IN_PROGRESS,
            AdminOp::Create { .. } => status == Status::NAMESPACE_INSUFFICIENT_CAPACITY,
            _ => false,
        };
        if !allowed {
            return violation!("#{} {op:?} ended with {:#06x}: no reason for it", cmd.key, status.code());
        }
        Ok(())
    }
}
