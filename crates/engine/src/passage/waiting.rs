//! An ssd that is not here yet, whose guest's hypervisor is answered all the same.
//!
//! A QEMU that a guest is to come to (`-S -incoming defer`) asks its devices what they are before it takes any of the guest's memory, and would hang
//! on one that says nothing. So where the configuration names that QEMU (`hypervisor`) the ssd has its device already, by the configuration:
//! frozen, and with no drive behind it. When the ssd is owned here its drive is put behind the device, and the device thaws.

use super::{Away, Passage, Standing};
use crate::drive::Drive;
use crate::migration::blocks::{hold, thaw};
use crate::migration::house::when_free;
use crate::pool::Purpose;
use crate::run::House;
use crate::served::Served;
use crate::ssd::Ssd;
use crate::terms::Hold;
use anyhow::Context;
use api::config;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};

impl House {
    /// Tells the keeper why an ssd is not served. Clients of one whose guest may come are let in, and wait.
    pub(crate) fn say_away(&self, number: usize, config: &config::Ssd, away: &Away) {
        let mut standing = away.standing();
        standing.holds |= awaits(config, away) && self.is_awaited(number);
        let lets_go = !standing.holds;
        self.keeper.stands(number, Some(standing));
        if lets_go {
            // So does the keeper, of its memory and its client: a device that began to wait over what it does not have would never be reached.
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let absent = slots.absent.get_mut(&number);
            let former = absent.map(|absent| (absent.found.take(), absent.client.take()));
            drop((slots, former));
        }
    }

    pub(super) fn is_awaited(&self, number: usize) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.absent.get(&number).is_some_and(|absent| absent.waiting.is_some())
    }

    /// Whether the device that waits is all that is to be served but for its drive. A controller is that when its state has come with its guest;
    /// else the record that came is not its.
    pub(super) fn waits_for_drive(&self, number: usize) -> bool {
        let passenger = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            match slots.absent.get(&number).and_then(|absent| absent.waiting.as_ref()) {
                Some(waiting) => waiting.passenger(),
                None => return false,
            }
        };
        passenger.is_none_or(|passenger| passenger.stands_still())
    }

    pub(crate) fn end_wait_of(&self, number: usize) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = slots.absent.get_mut(&number).and_then(|absent| absent.waiting.take());
        drop(slots);
        self.end_wait(waiting.into_iter().collect());
    }

    /// The device of an ssd that waits, if there is one.
    pub(crate) fn awaited(&self, number: usize) -> Option<Arc<Ssd>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(slots.absent.get(&number)?.waiting.as_ref()?.ssd()))
    }

    /// The same for all that are not here.
    pub(crate) fn await_guests(&self) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let absent: Vec<usize> = slots.absent.keys().copied().collect();
        drop(slots);
        absent.into_iter().for_each(|number| self.await_guest(number));
    }

    /// Devices that wait, and whose configuration names no hypervisor any more, end.
    pub(crate) fn await_no_more(&self) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |absent: &super::Absent| absent.waiting.is_some() && absent.config.hypervisor.is_none();
        let idle = slots.absent.iter().filter(|(_, absent)| is_idle(absent));
        let idle: Vec<usize> = idle.map(|(number, _)| *number).collect();
        drop(slots);
        for number in idle {
            self.end_wait_of(number);
            self.say_standing(number);
        }
    }

    /// Answers the clients of an ssd that is not here from now on, if its guest may come with it.
    pub(crate) fn await_guest(&self, number: usize) {
        let (Some(config), Ok(pools)) = (self.absent_config(number), self.pools()) else { return };
        let Standing::Away(away) = Passage::of(&config, pools).standing() else { return };
        if !awaits(&config, &away) || self.is_awaited(number) {
            return;
        }
        if let Err(error) = self.begin_to_wait(number, &config, &away) {
            let why = format!("a hypervisor that its guest is to come to would not be answered: {error:#}");
            tracing::warn!(ssd = config.name, why);
        }
    }

    fn begin_to_wait(&self, number: usize, config: &config::Ssd, away: &Away) -> anyhow::Result<()> {
        // Closed again: until it has come it is the migration's. Whoever emptied it, or an engine that is gone, may not have let go of it yet.
        let limits = when_free(|| Ok(Drive::open(config, None, Purpose::Land, self.pools()?)?.limits()))?;
        let purpose = Purpose::Await(limits);
        let (found, client) = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let absent = slots.absent.get_mut(&number).context("it has come")?;
            (absent.found.take(), absent.client.take())
        };
        // From now on its clients are let in.
        let standing = link::control::Standing { holds: true, ..away.standing() };
        self.keeper.stands(number, Some(standing));
        let (of_found, client) = if found.is_some() { (client, None) } else { (None, client) };
        let planned = self.plan(number, config, found, of_found, purpose)?;
        planned.ssd().terms.set_hold(Hold::Frozen);
        let (ready, readies) = channel();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut served = Some(planned.start(ready)?);
        if let Some(absent) = slots.absent.get_mut(&number) {
            // The configuration may say by now that no guest comes, and another may have been here before.
            if absent.config.hypervisor.is_some() && absent.waiting.is_none() {
                absent.waiting = served.take();
            }
            // One that was held until now, or came meanwhile.
            if let Some(client) = absent.client.take().or(client) {
                absent.plug(client);
            }
        }
        drop(slots);
        if let Some(unwanted) = served {
            self.end_wait(vec![unwanted]);
            self.say_standing(number);
            return Ok(());
        }
        readies.recv().context("its thread ended")?.map(drop)
    }

    /// An ssd that is owned here now, and whose device waits: it has its drive, and thaws.
    pub(super) fn put_behind(&self, number: usize, config: &config::Ssd) -> anyhow::Result<()> {
        let ssd = self.awaited(number).context("its device does not wait any more")?;
        let drive = when_free(|| Drive::open(config, None, Purpose::Serve, self.pools()?))?;
        ssd.drive.come(drive)?;
        self.hold_to_what_came(number, config)?;
        // Before its I/O begins, for an engine that comes after this one.
        self.give(number, &ssd, true, false)?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = slots.absent.remove(&number).and_then(|absent| absent.waiting);
        slots.open.insert(number, waiting.context("its device does not wait any more")?);
        drop(slots);
        self.keeper.stands(number, None);
        thaw(&ssd, self.duty.crew());
        tracing::info!(ssd = ssd.name, "it has come: served from now on");
        Ok(())
    }

    /// Devices that wait end with the engine: nothing of theirs is to be made durable.
    pub(crate) fn end_waits(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting: Vec<_> = slots.absent.values_mut().filter_map(|absent| absent.waiting.take()).collect();
        drop(slots);
        self.end_wait(waiting);
    }

    pub(crate) fn end_wait(&self, waiting: Vec<Served>) {
        for served in &waiting {
            let ssd = served.ssd();
            ssd.watch.close();
            hold(ssd, Hold::Closed, self.duty.crew());
            served.stop();
        }
        for served in waiting {
            if let Err(error) = served.join() {
                tracing::info!(error = format!("{error:#}"), "a device that waited has ended");
            }
        }
    }

    pub(crate) fn absent_config(&self, number: usize) -> Option<config::Ssd> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.absent.get(&number).map(|absent| absent.config.clone())
    }
}

/// Whether the guest of an ssd may come here: with it, or with it once more.
fn awaits(config: &config::Ssd, away: &Away) -> bool {
    config.hypervisor.is_some() && matches!(away.word, "incoming" | "ready" | "gone" | "dropped")
}
