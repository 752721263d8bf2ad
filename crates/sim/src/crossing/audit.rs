//! What must hold at every moment, and at the end.

use state::SsdV1;
use transfer::commit::{DestinationStep, Record, SourceStep};

use super::host::{Arriving, Host, Sending};
use super::{Rest, World};
use crate::disk::SECTOR;
use crate::guest::{Checked, HOT_SECTORS, Life, violation};
use crate::ledger::{Content, Ledger};

impl World {
    /// At every moment.
    pub(super) fn check(&self) -> Checked {
        let [a, b] = &self.hosts;
        if a.serves() && b.serves() {
            return violation!("both hosts serve the ssd");
        }
        if a.journal.owner(a.is_first) && b.journal.owner(b.is_first) && !self.forced {
            return violation!("both hosts own the ssd by what is durable{}", self.describe());
        }
        for (at, host) in self.hosts.iter().enumerate() {
            if host.serves() && !host.journal.owner(host.is_first) {
                return violation!("host {at} serves the ssd and does not own it{}", self.describe());
            }
        }
        Ok(())
    }

    fn is_settled(&self, at: usize) -> bool {
        let host = &self.hosts[at];
        let Some(process) = &host.process else { return host.lost };
        let other_lost = self.hosts[1 - at].lost;
        let sends = process.sending.as_ref().is_none_or(|it| it.is_over() || other_lost && it.is_at_rest());
        // A source that is lost and had not granted is cancelled by an operator here; one that owns again fences it by and by.
        let arrives = process.arriving.as_ref().is_none_or(|it| it.is_over() || other_lost);
        sends && arrives && !host.journal.is_writing() && host.outside.disk.in_flight() == 0
    }

    /// Nothing is under way any more.
    pub(super) fn is_over(&mut self) -> bool {
        let busy = |host: usize| {
            self.actors.list().iter().any(|actor| actor.host == host) && !self.hosts[1 - host].lost
        };
        if !(self.is_settled(0) && self.is_settled(1)) || busy(0) || busy(1) {
            return false;
        }
        let owner = (0..2).find(|at| self.hosts[*at].serves());
        let Some(owner) = owner else { return self.names_a_way_on() };
        let idle = self.guest.owed() == 0 && self.guest.calls.is_empty() && !self.guest.sanitizing;
        let settled = matches!(self.guest.life, Life::Off | Life::Running);
        idle && settled && self.vm.place == owner && self.vm.running && self.guest.event_owed.is_none()
    }

    /// Nobody serves: a host is lost, and the state of what is left is one with a way on (`docs/decisions/0034`).
    fn names_a_way_on(&mut self) -> bool {
        let Some(lost) = (0..2).find(|at| self.hosts[*at].lost) else { return false };
        let left = &self.hosts[1 - lost];
        let named = match left.journal.read() {
            // It is where it is owned, and comes back with that host.
            None => !left.is_first,
            Some((_, Record::Source(record))) => match record.step {
                SourceStep::Gone => true,
                SourceStep::Granted => left.alarms(),
                _ => false,
            },
            Some((_, Record::Destination(record))) => match record.step {
                DestinationStep::Incoming | DestinationStep::Dropped => true,
                DestinationStep::Ready => left.alarms(),
                _ => false,
            },
        };
        if named {
            self.report.named = 1;
        }
        named
    }

    /// At the end.
    pub(super) fn audit(&mut self) -> Checked {
        self.guest.check_quiet()?;
        for at in 0..2 {
            self.audit_emptied(at)?;
        }
        let Some(owner) = (0..2).find(|at| self.hosts[*at].serves()) else { return self.audit_left() };
        let tick = self.guest.now();
        let engine = self.hosts[owner].process.as_ref().and_then(|process| process.engine.as_ref());
        let record = engine.map(|engine| engine.controller.record());
        match record {
            Some(record) => self.audit_data(owner, "the owner", &record, &self.guest.ledger, tick),
            None => Ok(()),
        }
    }

    /// Where the ssd is not any more, nothing of it is.
    fn audit_emptied(&self, at: usize) -> Checked {
        let host = &self.hosts[at];
        let is_done = host.process.as_ref().is_some_and(|process| {
            let gone = |it: &&Sending| it.is_over() && it.step == Some(SourceStep::Gone);
            let dropped = |it: &&Arriving| it.is_over() && it.step == Some(DestinationStep::Dropped);
            process.sending.as_ref().filter(gone).is_some()
                || process.arriving.as_ref().filter(dropped).is_some()
        });
        let len = host.outside.disk.limits().capacity_bytes;
        if is_done && host.outside.disk.look(0, len).iter().any(|byte| *byte != 0) {
            return violation!("something of the ssd is left where it is not any more");
        }
        Ok(())
    }

    /// Nobody serves: a host is lost, and at the other an operator may have to say who goes on. What it would go on with is what the guest left
    /// when it stood still: a whole copy, or the original.
    fn audit_left(&mut self) -> Checked {
        let Some(left) = (0..2).find(|at| !self.hosts[*at].lost) else { return Ok(()) };
        let host = &self.hosts[left];
        let (migration, who, may_be_undone) = match host.journal.read() {
            // What was not flushed may be gone with its power.
            Some((_, Record::Source(record))) if record.step == SourceStep::Granted => {
                (record.pledge.migration, "the source that has granted", !host.has_memory)
            }
            Some((_, Record::Destination(record))) if record.step == DestinationStep::Ready => {
                (record.pledge.migration, "the destination that is ready", false)
            }
            _ => return Ok(()),
        };
        let Some(Rest { mut ledger, tick }) = self.rests.remove(&migration) else {
            return violation!("{who} has no copy of a guest that stood still{}", self.describe());
        };
        if may_be_undone {
            ledger.power_loss(tick + 1);
        }
        self.report.left_audited = 1;
        self.audit_data(left, who, &self.hosts[left].outside.record, &ledger, tick + 2)
    }

    /// Every sector that the guest ever used has what one history explains.
    fn audit_data(&self, at: usize, who: &str, record: &SsdV1, ledger: &Ledger, tick: u64) -> Checked {
        let host = &self.hosts[at];
        for ns in &record.namespaces {
            for sector in 0..HOT_SECTORS {
                let start = ns.start_bytes + sector * SECTOR as u64;
                let found = Content::read(host.outside.disk.look(start, SECTOR as u64));
                let possible = ledger.possible(ns.nsid, sector, tick);
                let unknown = possible.iter().any(|it| matches!(it, Content::Bad | Content::Anything));
                if !unknown && !found.is_some_and(|it| possible.contains(&it)) {
                    return violation!(
                        "sector {sector} of namespace {} has {found:?} at {who}, host {at}{}",
                        ns.nsid,
                        ledger.describe(ns.nsid, sector)
                    );
                }
            }
        }
        Ok(())
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let host = |at: usize| {
            let host = &self.hosts[at];
            let process = host.process.as_ref();
            let sending = process.and_then(|process| process.sending.as_ref());
            let sending = sending.map(|it| {
                format!(
                    "{:?} todo {:?} inbox {:?} ending {} near {:?}",
                    it.machine,
                    it.todo,
                    it.inbox,
                    it.ending,
                    it.copying.as_ref().map(|copying| (copying.near, copying.rested))
                )
            });
            let arriving = process.and_then(|process| process.arriving.as_ref());
            let arriving =
                arriving.map(|it| format!("{:?} todo {:?} inbox {:?}", it.machine, it.todo, it.inbox));
            let engine = process.and_then(|process| process.engine.as_ref()).map(|engine| engine.describe());
            format!(
                "\n  host {at}: lives {} frozen {:?} memory {} lost {} journal {:?}\n    {sending:?}\n    {arriving:?}\n    {engine:?} at the drive {}",
                process.is_some(),
                process.map(|process| process.frozen),
                host.has_memory,
                host.lost,
                host.journal.read().map(|(_, record)| record),
                host.outside.disk.in_flight()
            )
        };
        let actors: Vec<String> = self
            .actors
            .list()
            .iter()
            .map(|actor| {
                format!("\n  actor {} of host {} {:?}: {}", actor.id, actor.host, actor.role, actor.wants())
            })
            .collect();
        format!(
            "\n  {:?} owes {}{}{}{}\n{}",
            self.vm,
            self.guest.owed(),
            host(0),
            host(1),
            actors.concat(),
            self.guest.describe()
        )
    }
}

impl Host {
    fn alarms(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.sending.as_ref().is_some_and(|it| it.alarmed)
                || process.arriving.as_ref().is_some_and(|it| it.alarmed)
        })
    }
}
