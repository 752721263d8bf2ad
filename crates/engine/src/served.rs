//! An ssd that is served for a keeper, whatever its door.

use crate::slot::{Plug, Slot};
use crate::vhost::VhostSlot;
use link::control::Door;

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
