//! What a hypervisor needs to give an ssd to a guest, as text to be pasted.

use api::config::{DEVICE_PREFIX, Door, Ssd};
use api::size::Size;
use std::path::PathBuf;

mod cloud;
mod libvirt;
mod qemu;

/// How an ssd's device is called.
pub(crate) fn id(name: &str) -> String {
    format!("{DEVICE_PREFIX}{name}")
}

/// An ssd as a guest's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Names it to the hypervisor; `godwit detach` finds it by this.
    pub(crate) id: String,
    pub(crate) door: Door,
    /// An absolute path.
    pub(crate) socket: PathBuf,
}

impl Device {
    pub(crate) fn new(ssd: &Ssd) -> std::io::Result<Self> {
        let socket = std::path::absolute(&ssd.socket)?;
        Ok(Self { id: id(&ssd.name), door: ssd.door, socket })
    }

    /// The ssd's.
    fn name(&self) -> &str {
        self.id.strip_prefix(DEVICE_PREFIX).unwrap_or(&self.id)
    }

    fn path(&self) -> String {
        self.socket.display().to_string()
    }
}

/// For whom the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hypervisor {
    Qemu,
    /// With the NVMe controller that QEMU emulates, over a virtio-blk disk.
    QemuNvme,
    Libvirt,
    Cloud,
}

/// The text. With `memory`, the guest's memory is defined too, as memory that the daemon can map: without that every transfer of
/// an NVMe ssd would have to cross the socket, and a virtio-blk disk would not work at all.
pub(crate) fn text(to: Hypervisor, device: &Device, memory: Option<Size>, bus: Option<&str>) -> String {
    match to {
        Hypervisor::Qemu => qemu::arguments(device, memory, bus),
        Hypervisor::QemuNvme => qemu::emulated(device, memory, bus),
        Hypervisor::Libvirt => libvirt::xml(device, memory),
        Hypervisor::Cloud => cloud::arguments(device, memory),
    }
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
pub(crate) fn device(door: Door, socket: &str) -> Device {
    Device { id: "godwit-a".to_owned(), door, socket: socket.into() }
}
