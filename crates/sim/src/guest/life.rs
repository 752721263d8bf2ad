//! Enable, reset, shutdown, and what a power cut does to a guest.

use std::collections::BTreeSet;

use nvme::namespace::NamespaceTable;
use spec::nvme::registers as reg;

use super::ram::{cq_base, sq_base};
use super::{AdminOp, Call, Checked, Cq, Guest, HOT_SECTORS, Life, Ns, Sq, violation};
use crate::ledger::{Content, End};

const CC_ON: u32 = 0x0046_0001;
const CC_SHUTDOWN: u32 = 0x0046_4001;
const ADMIN_SQ: u32 = 12;
const ADMIN_CQ: u32 = 9;

/// What the guest sees of the controller between its calls.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse<'a> {
    /// Controller status.
    pub csts: u32,
    /// The controller does nothing in the background.
    pub quiet: bool,
    /// The namespaces as they are (a driver would identify them).
    pub table: &'a NamespaceTable,
}

impl Guest {
    /// One step of the driver. `glimpse`: nobody answers register reads while the engine is away.
    pub fn step(
        &mut self,
        glimpse: Option<Glimpse<'_>>,
        interrupts: &mut [bool],
        page: &memory::DoorbellPage,
    ) -> Checked {
        self.tick += 1;
        match self.life {
            Life::Running | Life::ShuttingDown => self.run(interrupts, page)?,
            _ => {}
        }
        match glimpse {
            Some(glimpse) if self.calls.is_empty() => self.look(glimpse),
            _ => Ok(()),
        }
    }

    fn run(&mut self, interrupts: &mut [bool], page: &memory::DoorbellPage) -> Checked {
        for (vector, line) in (0..).zip(interrupts.iter_mut()) {
            if *line && self.rng.percent(if self.winding_down { 100 } else { 60 }) {
                *line = false;
                self.reap_vector(vector)?;
            }
        }
        if self.life == Life::ShuttingDown {
            return Ok(());
        }
        if !self.winding_down && self.rng.one_in(12) {
            // A driver that polls.
            let cqids: Vec<u16> = self.cqs.keys().copied().collect();
            if let Some(cqid) = self.rng.pick(&cqids) {
                self.reap(cqid)?;
            }
        }
        if self.rng.percent(30) {
            self.administer();
        }
        if !self.winding_down {
            for _ in 0..self.rng.below(4) {
                self.io();
            }
        }
        if self.winding_down || self.rng.percent(70) {
            self.ring(page);
        }
        Ok(())
    }

    fn look(&mut self, glimpse: Glimpse<'_>) -> Checked {
        let (ready, fatal) = (glimpse.csts & 1 == 1, glimpse.csts & 2 != 0);
        if fatal && !self.habits.faults {
            return violation!("the controller says it is dead: CSTS {:#x}", glimpse.csts);
        }
        if fatal && matches!(self.life, Life::Running | Life::ShuttingDown | Life::Enabling) {
            // The drive failed at the wrong moment: a driver resets.
            self.life = Life::Disabling;
            self.calls.push_back(Call::Bar(reg::CC, 0));
            return Ok(());
        }
        match self.life {
            Life::Off if glimpse.quiet && !ready && !self.winding_down => {
                self.rescan(glimpse.table);
                self.enable();
            }
            Life::Enabling if ready => self.life = Life::Running,
            Life::Disabling if !ready => self.disabled()?,
            Life::ShuttingDown if glimpse.csts >> 2 & 3 == 2 => {
                // All that was answered is safe now.
                let now = self.now();
                self.ledger.flushed(None, now);
                self.life = Life::Disabling;
                self.calls.push_back(Call::Bar(reg::CC, 0));
            }
            Life::Running if self.habits.resets && !self.winding_down && self.rng.one_in(400) => self.leave(),
            _ => {}
        }
        Ok(())
    }

    fn enable(&mut self) {
        self.quiet_rings.clear();
        (self.sqs, self.cqs) = Default::default();
        for qid in 0..=super::QUEUES {
            self.poke(cq_base(qid), &[0; 4096]);
            self.poke(sq_base(qid), &[0; 4096]);
        }
        let (sq, cq) = (sq_base(0), cq_base(0));
        self.sqs.insert(
            0,
            Sq { base: sq, size: ADMIN_SQ, cqid: 0, tail: 0, rung: 0, head: 0, deleting: false, ready: true },
        );
        self.cqs.insert(
            0,
            Cq { base: cq, size: ADMIN_CQ, vector: 0, head: 0, rung: 0, phase: true, ready: true },
        );
        (self.shadow, self.queues_set, self.masked) = (false, false, [false; 8]);
        self.features.clear();
        self.features.extend([(0x06, 1), (0x0b, 0)]);
        self.write_through_since = u64::MAX;
        self.event_owed = None;
        let low = |value: u64| u32::try_from(value).unwrap_or(0);
        self.calls.extend([
            Call::Config(0x04, 0x6),
            Call::Config(0x50, 1 << 31),
            Call::Bar(reg::AQA, (ADMIN_CQ - 1) << 16 | (ADMIN_SQ - 1)),
            Call::Bar(reg::ASQ, low(sq)),
            Call::Bar(reg::ASQ + 4, 0),
            Call::Bar(reg::ACQ, low(cq)),
            Call::Bar(reg::ACQ + 4, 0),
            Call::Bar(reg::CC, CC_ON),
        ]);
        self.life = Life::Enabling;
    }

    /// Resets of each kind, and shutdowns.
    fn leave(&mut self) {
        let call = match self.rng.below(5) {
            0 | 1 => Call::Bar(reg::CC, 0),
            2 => Call::Bar(reg::NSSR, reg::NSSR_RESET),
            3 => Call::Config(0x68, 1 << 15),
            _ => {
                self.life = Life::ShuttingDown;
                return self.calls.push_back(Call::Bar(reg::CC, CC_SHUTDOWN));
            }
        };
        self.say(|| format!("guest: resets by {call:?}"));
        self.life = Life::Disabling;
        self.calls.push_back(call);
    }

    /// The controller is disabled: nothing it had is owed any more, and nothing may still come.
    fn disabled(&mut self) -> Checked {
        self.say(|| "guest: the controller is disabled".to_owned());
        self.note_unfinished();
        let all: BTreeSet<u16> = self.sqs.keys().copied().collect();
        self.forget(&all);
        for (cqid, cq) in std::mem::take(&mut self.cqs) {
            self.poke(cq.base, &[0; 4096]);
            self.quiet_rings.push((cqid, cq.base));
        }
        self.sqs.clear();
        self.life = Life::Off;
        Ok(())
    }

    /// Rings that must stay as the guest left them: the controller is off.
    pub fn check_quiet(&self) -> Checked {
        for (cqid, base) in &self.quiet_rings {
            if self.peek(*base, 4096).iter().any(|byte| *byte != 0) {
                return violation!("completion queue {cqid} was written after the controller was disabled");
            }
        }
        Ok(())
    }

    /// What a change of namespaces that was cut short leaves unknown.
    fn note_unfinished(&mut self) {
        let ops: Vec<AdminOp> = self.commands.values().filter_map(|cmd| cmd.op.admin().cloned()).collect();
        let now = self.now();
        for op in ops {
            match op {
                AdminOp::Format { nsid, .. } => self.ledger.reset(nsid, HOT_SECTORS, Content::Anything, now),
                AdminOp::Sanitize => self.all_unknown(),
                _ => {}
            }
        }
        if std::mem::take(&mut self.sanitizing) {
            self.all_unknown();
        }
    }

    fn all_unknown(&mut self) {
        let now = self.now();
        let nsids: Vec<u32> = self.namespaces.keys().copied().collect();
        for nsid in nsids {
            self.ledger.reset(nsid, HOT_SECTORS, Content::Anything, now);
        }
    }

    fn rescan(&mut self, table: &NamespaceTable) {
        let known: Vec<u32> = self.namespaces.keys().copied().collect();
        self.namespaces = table
            .iter()
            .map(|ns| (ns.nsid, Ns { shift: ns.format.shift(), blocks: ns.blocks, attached: ns.attached }))
            .collect();
        let now = self.now();
        for nsid in self.namespaces.keys().copied().filter(|nsid| !known.contains(nsid)) {
            self.ledger.reset(nsid, HOT_SECTORS, Content::Zero, now);
        }
        self.namespaces_changed = now;
    }

    /// The machine lost power.
    pub fn power_loss(&mut self) {
        self.power_was_cut = true;
        self.note_unfinished();
        let now = self.now();
        for cmd in std::mem::take(&mut self.commands).into_values() {
            self.ledger.end(cmd.key, now, End::Unknown, 0);
            if let Some(buffer) = cmd.buffer {
                self.give_buffer(buffer);
            }
        }
        self.ledger.power_loss(now);
        (self.sqs, self.cqs) = Default::default();
        self.calls.clear();
        self.compared.clear();
        self.consumed.clear();
        self.quiet_rings.clear();
        self.last_error_count = 0;
        self.event_owed = None;
        self.life = Life::Off;
    }
}
