//! Plugs a guest into an ssd: a load on its queues, and somebody to talk to it meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};

use super::chat::Partner;
use super::chat::controller::Controller;
use super::chat::disk::Disk;
use super::daemon::{Daemon, Frontend, Ssd};
use super::door::Door;
use super::nvme::{NvmeDoor, Slots};
use crate::load::workload::Random;
use crate::vhost_user::VhostDoor;
use crate::{nvme, vhost_user};

pub(super) const RAM_BYTES: usize = 96 << 20;

/// How a guest drives an ssd.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Queues for the load. The last one is driven by its interrupt, the others are polled.
    pub lanes: u16,
    /// Operations of each.
    pub depth: usize,
    /// Of what is said, and of what a disk's client asks for.
    pub seed: u64,
    /// How long an answer may take.
    pub patience: Duration,
}

/// A guest.
pub struct Plugged {
    /// For the load.
    pub door: Box<dyn Door>,
    /// For the chat.
    pub partner: Box<dyn Partner>,
    /// What the guest is, for people.
    pub what: String,
}

/// Connects to an ssd by its frontend.
///
/// # Errors
/// The driver's.
pub fn plug(daemon: &Daemon, ssd: &Ssd, plan: &Plan) -> Result<Plugged> {
    let plugged = match ssd.frontend {
        Frontend::Nvme { lba } => controller(daemon, ssd, plan, lba),
        Frontend::Disk { packed } => disk(daemon, ssd, plan, packed),
    };
    plugged.with_context(|| format!("connect to {}\n{}", ssd.name, daemon.log_tail()))
}

fn controller(daemon: &Daemon, ssd: &Ssd, plan: &Plan, lba: u32) -> Result<Plugged> {
    let options = nvme::Options { ram_bytes: RAM_BYTES, ..nvme::Options::default() };
    let mut driver = nvme::Driver::connect_with(daemon.socket(&ssd.name), options)?;
    let slots = Slots::new(driver.ram(), plan.lanes, plan.depth)?;
    let door = Box::new(NvmeDoor::new(&mut driver, slots, true)?);
    let partner = Box::new(Controller::new(driver, plan.lanes + 1, plan.seed, plan.patience)?);
    Ok(Plugged { door, partner, what: format!("{}: NVMe, blocks of {lba} bytes", ssd.name) })
}

fn disk(daemon: &Daemon, ssd: &Ssd, plan: &Plan, packed: bool) -> Result<Plugged> {
    let options = client(packed, plan);
    let socket = daemon.socket(&ssd.name);
    let mut door = VhostDoor::connect(&socket, plan.lanes, plan.depth, options)?.with_a_called_lane();
    let driver = door.take_driver().context("a door that has just been made has its driver")?;
    let partner = Box::new(Disk::new(driver, socket, plan.seed, plan.patience)?);
    Ok(Plugged { door: Box::new(door), partner, what: format!("{}: virtio-blk, {options:?}", ssd.name) })
}

/// What a disk's client asks for: the seed says it. Requests in flight always have a region, the client's or else the device's.
pub(super) fn client(packed: bool, plan: &Plan) -> vhost_user::Options {
    let mut random = Random::new(plan.seed ^ 0xD15C);
    let mut coin = || random.below(2) == 0;
    vhost_user::Options {
        packed,
        inflight: coin(),
        kick: coin(),
        event_idx: coin(),
        indirect: coin(),
        mem_slots: coin(),
        // One more for the chat.
        queues: plan.lanes + 1,
        ..vhost_user::Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_some_seeds_every_kind_of_client_comes_and_a_seed_says_which() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..400 {
            let seed = super::super::soak::of_ssd(seed, 3);
            let plan = Plan { lanes: 3, depth: 16, seed, patience: Duration::from_secs(1) };
            let options = client(false, &plan);
            assert_eq!(format!("{options:?}"), format!("{:?}", client(false, &plan)));
            let vhost_user::Options { inflight, kick, event_idx, indirect, mem_slots, .. } = options;
            seen.insert([inflight, kick, event_idx, indirect, mem_slots]);
        }
        assert_eq!(seen.len(), 32);
    }
}
