//! `godwit attach` and `godwit detach`: an ssd as a guest's device.

use crate::agent;
use crate::daemon;
use crate::hypervisor::{self, Device, Hypervisor, text};
use crate::qmp::{self, Monitor};
use anyhow::ensure;
use api::config::{Config, Door};
use api::rest::Interface;
use api::size::Size;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of a name of QEMU's, in bytes.
const NODE_NAME_MAX: usize = 31;

/// What `attach` takes.
#[derive(Args)]
pub(crate) struct Attach {
    /// The ssd.
    name: String,
    #[command(flatten)]
    way: Way,
    /// The guest's memory. It must be shared with the daemon, so what is printed defines it.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", conflicts_with = "qmp")]
    memory: Size,
    /// Print the device alone: the guest has shared memory already (a second ssd, or memory of your own definition).
    #[arg(long, conflicts_with = "qmp")]
    device_only: bool,
    /// The bus to plug into, such as the id of a pcie-root-port. Without it: one that is free, for a running guest.
    #[arg(long, value_name = "ID", conflicts_with_all = ["libvirt", "cloud_hypervisor"])]
    bus: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Way {
    /// Print arguments of QEMU.
    #[arg(long)]
    qemu: bool,
    /// Print arguments of QEMU for the NVMe controller that it emulates, over a virtio-blk disk by its block driver: slower, and all of its state is QEMU's.
    #[arg(long)]
    qemu_nvme: bool,
    /// Print elements of a libvirt domain.
    #[arg(long)]
    libvirt: bool,
    /// Print arguments of Cloud Hypervisor.
    #[arg(long)]
    cloud_hypervisor: bool,
    /// Plug it into the running QEMU that serves a QMP monitor here.
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,
}

/// What `detach` takes.
#[derive(Args)]
pub(crate) struct Detach {
    /// The ssd.
    name: String,
    /// The QMP monitor of the running QEMU.
    #[arg(long, value_name = "PATH")]
    qmp: PathBuf,
    /// How long the guest may take to let it go, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Unplug an NVMe ssd although QEMU up to 11.1 aborts when one is unplugged: yours has the fix.
    #[arg(long)]
    even_if_qemu_aborts: bool,
}

/// Prints, or plugs and says where.
pub(crate) fn attach(config: &Config, file: &Path, arguments: &Attach) -> anyhow::Result<String> {
    let Attach { name, way, memory, device_only, bus } = arguments;
    let device = find(config, file, name)?;
    let Some(path) = &way.qmp else {
        let to = match way {
            Way { libvirt: true, .. } => Hypervisor::Libvirt,
            Way { cloud_hypervisor: true, .. } => Hypervisor::Cloud,
            Way { qemu_nvme: true, .. } => {
                check_node(&device, name)?;
                Hypervisor::QemuNvme
            }
            _ => Hypervisor::Qemu,
        };
        return Ok(text(to, &device, (!device_only).then_some(*memory), bus.as_deref()));
    };
    // QEMU would say no more than that it could not connect.
    daemon::check_free(config, name)?;
    let mut monitor = Monitor::connect(path)?;
    let said = qmp::attach(&mut monitor, &device, bus.as_deref())?;
    Ok(format!("{name}: {said}"))
}

/// Whether an ssd can be a block node of QEMU's.
fn check_node(device: &Device, name: &str) -> anyhow::Result<()> {
    ensure!(
        device.door == Door::VhostUser,
        "ssd \"{name}\" is an NVMe controller itself: say --qemu, or make it a disk (`vhost_socket` instead of `socket`) for QEMU's own controller"
    );
    ensure!(
        device.id.len() <= NODE_NAME_MAX,
        "QEMU's block nodes have names of at most {NODE_NAME_MAX} characters, and \"{}\" is longer: give the ssd a shorter name",
        device.id
    );
    Ok(())
}

/// Unplugs and waits. The ssd need not be in the configuration any more.
pub(crate) fn detach(arguments: &Detach) -> anyhow::Result<String> {
    let Detach { name, qmp: path, wait, even_if_qemu_aborts } = arguments;
    let mut monitor = Monitor::connect(path)?;
    let id = hypervisor::id(name);
    let said = qmp::detach(&mut monitor, &id, Duration::from_secs(*wait), *even_if_qemu_aborts)?;
    Ok(format!("{name}: {said}"))
}

/// QEMU's arguments, as `qemu-args` prints them.
pub(crate) fn qemu_arguments(
    config: &Config,
    file: &Path,
    name: &str,
    memory: Option<Size>,
) -> anyhow::Result<String> {
    Ok(text(Hypervisor::Qemu, &find(config, file, name)?, memory, None))
}

/// An ssd of the configuration, or one that the agent of this host keeps.
fn find(config: &Config, file: &Path, name: &str) -> anyhow::Result<Device> {
    if let Some(ssd) = config.ssd(name) {
        return Ok(Device::new(ssd)?);
    }
    let ssd = agent::kept(name).map_err(|error| {
        let names: Vec<&str> = config.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
        let names = names.join(", ");
        error.context(format!("{} has no ssd \"{name}\" (it has: {names}); the agent", file.display()))
    })?;
    let door = match ssd.interface {
        Interface::Nvme => Door::VfioUser,
        Interface::VirtioBlk => Door::VhostUser,
    };
    Ok(Device { id: hypervisor::id(&ssd.name), door, socket: ssd.socket.into() })
}
