//! What goes wrong: on the wire, at a host, and by an operator.

use nvme::crash;
use transfer::commit::{DestinationEvent, DestinationStep, Record, SourceEvent, SourceStep};

use super::{STEP_NS, World};
use crate::guest::Checked;
use crate::rng::Rng;

/// What goes wrong in a seed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    pub(super) cuts: bool,
    pub(super) crashes: bool,
    power: bool,
    pub(super) cancels: bool,
    /// A host is lost for good.
    losses: bool,
    /// An operator then takes the ssd at the other, where that loses nothing.
    force: bool,
}

impl Trouble {
    pub(super) fn new(seed: u64, rng: &mut Rng) -> Self {
        // Every eighth seed is a crossing with nothing in its way.
        if seed.is_multiple_of(8) {
            return Self::default();
        }
        let power = rng.percent(40);
        Self {
            cuts: rng.percent(60),
            crashes: crash::ENABLED && rng.percent(60),
            power,
            cancels: rng.percent(40),
            losses: power && rng.percent(25),
            force: rng.percent(50),
        }
    }
}

impl World {
    pub(super) fn make_trouble(&mut self) -> Checked {
        if self.calm {
            self.take_by_force();
            return Ok(());
        }
        let Trouble { cuts, power, cancels, .. } = self.trouble;
        // The hypervisor that waits at the other side ends.
        if cancels && self.rng.one_in(2500) {
            self.lose_guest(1 - self.vm.place);
        }
        for at in 0..2 {
            if self.hosts[at].doom_at.take_if(|when| *when <= self.now).is_some() {
                self.cut_power(at)?;
            }
        }
        if cuts {
            match self.rng.below(3000) {
                0..6 => self.wire.cut_one(self.now),
                6..8 => {
                    let until = self.now + self.rng.below(600_000_000) as u64;
                    self.wire.stall_one(until);
                }
                8 => {
                    self.guest.say(|| "*** the network is gone for a while".to_owned());
                    let until = self.now + self.rng.below(500_000_000) as u64;
                    self.wire.cut_all(self.now, until);
                }
                _ => {}
            }
        }
        if power && self.rng.one_in(4000) {
            let at = self.rng.below(2);
            self.cut_power(at)?;
        }
        if cancels && self.rng.one_in(1500) {
            self.cancel();
        }
        Ok(())
    }

    /// Before an effect: its process may end here, or its host lose power, once in so many.
    pub(super) fn point(&mut self, at: usize, once_in: usize) {
        let Trouble { crashes, power, .. } = self.trouble;
        let ends = !self.calm && (crashes || power) && self.rng.one_in(once_in);
        self.dark = ends && power && (!crashes || self.rng.percent(50));
        if ends {
            self.guest.say(|| format!("host {at}: here"));
            crash::arm(1);
        }
        crash::point();
    }

    /// What is likely to be in the way of what follows a record.
    pub(super) fn trouble_after(&mut self, at: usize, record: Record) {
        if self.calm {
            return;
        }
        let Trouble { power, cancels, .. } = self.trouble;
        let granted = matches!(record, Record::Source(record) if record.step == SourceStep::Granted);
        let step = match record {
            Record::Destination(record) => Some(record.step),
            Record::Source(_) => None,
        };
        if cancels && granted && self.rng.one_in(3) {
            self.lose_guest(1 - at);
        }
        if cancels && step == Some(DestinationStep::Ready) && self.rng.one_in(6) {
            self.guest.say(|| format!("an operator cancels at host {at}"));
            if let Some(arriving) = &mut self.process(at).arriving {
                arriving.inbox.push_back(DestinationEvent::Cancel);
            }
        }
        let owned = step == Some(DestinationStep::Owned);
        let steps = self.rng.pick(&[3, 30, 300]).unwrap_or(1);
        if power && self.rng.one_in(if granted || owned { 3 } else { 8 }) {
            let host = if owned { at } else { self.rng.below(2) };
            self.hosts[host].doom_at = Some(self.now + self.rng.below(steps) as u64 * STEP_NS);
        }
    }

    /// The hypervisor that waits at a host ends, and its device with it.
    fn lose_guest(&mut self, at: usize) {
        let is_idle = self.hosts[at].process.as_ref().is_none_or(|process| process.engine.is_none());
        if self.vm.place != at && self.hosts[at].has_memory && is_idle {
            self.guest.say(|| format!("the hypervisor that waits at host {at} ends"));
            self.hosts[at].has_memory = false;
            self.hosts[at].power_off_controller();
        }
    }

    /// An operator knows that a host is lost for good, and takes the ssd at the other, where all that was answered is there.
    fn take_by_force(&mut self) {
        let Some(lost) = (0..2).find(|at| self.hosts[*at].lost).filter(|_| self.trouble.force) else {
            return;
        };
        let (at, lost_owns) = (1 - lost, self.hosts[lost].owns());
        let came_whole = self.hosts[at].has_memory;
        if !self.rng.one_in(2000) {
            return;
        }
        let Some(process) = &mut self.hosts[at].process else { return };
        if let Some(sending) = &mut process.sending
            && sending.step == Some(SourceStep::Granted)
            && !lost_owns
        {
            sending.inbox.push_back(SourceEvent::Force);
            self.forced = true;
        }
        if let Some(arriving) = &mut process.arriving
            && arriving.step == Some(DestinationStep::Ready)
            && came_whole
        {
            arriving.inbox.push_back(DestinationEvent::Force);
            self.forced = true;
        }
    }

    /// An operator gives a migration up, at either side.
    fn cancel(&mut self) {
        let at = self.rng.below(2);
        let Some(process) = &mut self.hosts[at].process else { return };
        self.guest.say(|| format!("an operator cancels at host {at}"));
        match (&mut process.sending, &mut process.arriving) {
            (Some(sending), _) => sending.inbox.push_back(SourceEvent::Cancel),
            (_, Some(arriving)) => arriving.inbox.push_back(DestinationEvent::Cancel),
            _ => {}
        }
    }

    pub(super) fn cut_power(&mut self, at: usize) -> Checked {
        self.guest.say(|| format!("*** host {at} loses power"));
        self.report.power_losses += 1;
        self.die(at)?;
        let off = self.rng.below(3000) as u64 * STEP_NS;
        let other_lost = self.hosts[1 - at].lost;
        let host = &mut self.hosts[at];
        host.outside.disk.power_loss();
        host.power_off_controller();
        host.has_memory = false;
        host.off_until = self.now + off;
        host.lost = self.trouble.losses && self.rng.percent(30) && !other_lost;
        if self.vm.place == at {
            self.vm.running = false;
            self.vm.in_call = false;
        }
        Ok(())
    }
}
