//! An ssd that is served for a keeper, whatever its door.

use crate::passenger::Passenger;
use crate::slot::{Plan, Plug, Slot};
use crate::ssd::Ssd;
use crate::vhost::{Disk, VhostPlan, VhostSlot};
use link::control::Door;
use nvme::queue::Left;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

/// An ssd that is open, and not served yet.
pub(crate) enum Planned {
    /// An NVMe controller.
    Nvme(Box<Plan>),
    /// A virtio-blk disk.
    Vhost(VhostPlan),
}

impl Planned {
    /// Begins to serve it; `ready` hears when it is served, or why it is not.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(self, ready: Sender<anyhow::Result<Left>>) -> std::io::Result<Served> {
        Ok(match self {
            Self::Nvme(plan) => Served::Nvme(Slot::start(*plan, ready)?),
            Self::Vhost(plan) => Served::Vhost(VhostSlot::start(plan, ready)?),
        })
    }

    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        match self {
            Self::Nvme(plan) => &plan.ssd,
            Self::Vhost(plan) => &plan.ssd,
        }
    }
}

/// See the module.
pub(crate) enum Served {
    /// An NVMe controller.
    Nvme(Slot),
    /// A virtio-blk disk.
    Vhost(VhostSlot),
}

impl Served {
    pub(crate) fn plug(&self, plug: Plug) {
        match self {
            Self::Nvme(slot) => slot.plug(plug),
            Self::Vhost(slot) => slot.plug(plug),
        }
    }

    /// What tells its guest that the drive has so many bytes now. A guest whose memory is reached by its client alone may take its time
    /// to hear it: to be called where nobody waits, under no lock.
    pub(crate) fn announcement(&self, capacity_bytes: u64) -> Box<dyn FnOnce()> {
        match self {
            Self::Nvme(slot) => Box::new(slot.announcement(capacity_bytes)),
            Self::Vhost(slot) => Box::new(slot.announcement(capacity_bytes)),
        }
    }

    /// Its device, for whoever moves its guest, if it is a controller.
    pub(crate) fn passenger(&self) -> Option<Passenger> {
        match self {
            Self::Nvme(slot) => Some(slot.passenger()),
            Self::Vhost(_) => None,
        }
    }

    /// Its disk, if it is one.
    pub(crate) fn disk(&self) -> Option<Arc<Mutex<Disk>>> {
        match self {
            Self::Nvme(_) => None,
            Self::Vhost(slot) => Some(slot.disk()),
        }
    }

    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        match self {
            Self::Nvme(slot) => slot.ssd(),
            Self::Vhost(slot) => slot.ssd(),
        }
    }

    pub(crate) fn pause(&self) {
        match self {
            Self::Nvme(slot) => slot.pause(),
            Self::Vhost(slot) => slot.pause(),
        }
    }

    pub(crate) fn stop(&self) {
        match self {
            Self::Nvme(slot) => slot.stop(),
            Self::Vhost(slot) => slot.stop(),
        }
    }

    pub(crate) fn join(self) -> anyhow::Result<()> {
        match self {
            Self::Nvme(slot) => slot.join(),
            Self::Vhost(slot) => slot.join(),
        }
    }
}

/// What the clients of an ssd speak.
pub(crate) fn door_of(config: &api::config::Ssd) -> Door {
    match config.door {
        api::config::Door::VfioUser => Door::VFIO_USER,
        api::config::Door::VhostUser => Door::VHOST_USER,
    }
}
