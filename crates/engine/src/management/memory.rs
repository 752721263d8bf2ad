//! Memory of controllers' hosts that a management controller tracks: the log of written pages of each ([`crate::written`]), by its order.

use super::passenger_of;
use crate::passenger::Passenger;
use crate::run::House;
use crate::written::managed::{self, Arming};
use nvme::limits::MEMORY_RANGES_MAX;
use nvme::management::{Memory, Order, Report, Trouble};
use std::sync::Arc;

/// `era`: as it was when the order came.
pub(super) fn track(house: &House, cntlid: u16, memory: &Memory, era: u64) -> Report {
    begin(house, cntlid, memory, era).map_or_else(Report::Failed, |()| Report::Done)
}

fn begin(house: &House, cntlid: u16, memory: &Memory, era: u64) -> Result<(), Trouble> {
    let passenger = passenger_of(house, cntlid).ok_or(Trouble::NoController)?;
    if is_suspended(&passenger)? {
        return Err(Trouble::Suspended);
    }
    let ssd = passenger.ssd();
    let arming = {
        let ended = house.trackers.lock_era();
        if *ended != era {
            // Whoever asked has been reset.
            return Err(Trouble::Failed);
        }
        let all = house.passengers();
        let others = all.iter().map(Passenger::ssd).filter(|other| !Arc::ptr_eq(other, ssd));
        let others: usize = others.map(|other| other.written.tracked_ranges()).sum();
        if others + memory.ranges.len() > usize::from(MEMORY_RANGES_MAX) {
            return Err(Trouble::TooMany);
        }
        Arming::new(ssd, memory)?
    };
    arming.begin(ssd, passenger.home())
}

fn is_suspended(passenger: &Passenger) -> Result<bool, Trouble> {
    match passenger.manage(Order::Look) {
        Report::Standing { suspended, .. } => Ok(suspended),
        Report::Failed(trouble) => Err(trouble),
        _ => Err(Trouble::Failed),
    }
}

/// One that has no client is not suspended.
pub(super) fn end(house: &House, cntlid: u16) -> Report {
    let Some(passenger) = passenger_of(house, cntlid) else { return Report::Failed(Trouble::NoController) };
    if is_suspended(&passenger) == Ok(true) {
        return Report::Failed(Trouble::Suspended);
    }
    managed::end(passenger.ssd(), passenger.home());
    Report::Done
}

/// No memory is tracked any more, and none that was asked for before. Those that are to [`let_go`].
pub(super) fn end_all(house: &House) -> Vec<Passenger> {
    let mut ended = house.trackers.lock_era();
    *ended += 1;
    house.passengers().into_iter().filter(|passenger| passenger.ssd().written.disarm_managed()).collect()
}

pub(super) fn let_go(ended: &[Passenger]) {
    ended.iter().for_each(|passenger| managed::let_go(passenger.ssd(), passenger.home()));
}

pub(super) fn harvest(house: &House, cntlid: u16, most: u32, heard: bool) -> Report {
    let Some(passenger) = passenger_of(house, cntlid) else { return Report::Failed(Trouble::NoController) };
    // From before the marks are looked for: what it wrote before it was suspended is marked then.
    let suspended = match is_suspended(&passenger) {
        Ok(suspended) => suspended,
        Err(trouble) => return Report::Failed(trouble),
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    match passenger.ssd().written.harvest(most, heard) {
        None => Report::Failed(Trouble::NoController),
        Some(Ok(harvest)) => {
            let managed::Harvest { granularity, runs, more } = harvest;
            Report::Memory { granularity, runs, more, suspended }
        }
        Some(Err(error)) => {
            tracing::error!(ssd = passenger.ssd().name, %error, "what it wrote cannot be told");
            Report::Failed(Trouble::Failed)
        }
    }
}
