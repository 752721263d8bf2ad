//! A guest that moves with its ssds: its memory and processors by its hypervisor's own migration (QEMU's), which both hosts' engines drive by QMP
//! (`docs/decisions/0037-guests.md`).
//!
//! ```text
//!  leaving (source, a thread a guest)                         coming (destination)
//!    QMP: migrate fd: --- socket --> memory ==== TLS ====> memory --- socket --> QMP: migrate-incoming fd:
//!    words with its ssds' migrations: near, held, ready, completed, over        asked before each grant, and to run the guest when all are owned
//! ```
//! Nothing of it is on record: what a killed engine must know is said by the ssds' journals and by QEMU itself.

mod coming;
mod leaving;
mod left;
mod memory;

pub(super) use coming::{Coming, check_came, run_what_came};
pub(super) use leaving::{Leaving, Line, Part, PartWord};
pub(super) use left::{end_what_left, recover};
pub(super) use memory::arrive;

use crate::passenger::Passenger;
use crate::run::House;
use crate::terms::Hold;
use anyhow::{Context, bail, ensure};
use api::config::{self, DEVICE_PREFIX, Door};
use hypervisor::{CONFIG_BYTES, Destination, Device, Interface, PciState, Server, Source, SourceNow, Vector};
use nvme::pci::MSIX_CAP;
use state::controller::{ControllerV1, VectorV1};
use std::path::Path;
use std::time::{Duration, Instant};

/// For QEMU's answer to one question. It answers nothing while it stops a guest's devices, for instance.
const QMP_PATIENCE: Duration = Duration::from_secs(10);
/// For a guest that is called back to run.
const CALL_BACK: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);

/// The QEMU at a QMP socket, and those of its devices that are ssds served here, by their names.
///
/// # Errors
/// Its guest cannot be moved, and why.
pub(super) fn ssds_of(house: &House, qmp: &Path) -> anyhow::Result<(Source, Vec<(String, Device)>)> {
    let mut qemu = Source::connect(qmp, QMP_PATIENCE)?;
    qemu.check()?;
    let mut ssds = Vec::new();
    for device in qemu.devices()? {
        let Some(config) = ssd_of(house, &device.server) else {
            bail!(
                "its device at {} is not served by this godwitd: only a guest all of whose disks come along can be moved{}",
                device.server,
                naming(&device)
            );
        };
        check_size(house, &config, &device)?;
        // What a hypervisor leaves behind of a controller is carried here.
        if let Some(problem) = device.problem.as_ref().filter(|_| config.door == Door::VhostUser) {
            bail!("ssd \"{}\": {problem}", config.name);
        }
        ssds.push((config.name, device));
    }
    ensure!(!ssds.is_empty(), "it has no ssd of this godwitd's: QEMU alone can move it");
    Ok((qemu, ssds))
}

/// The ssd of the configuration that a device's server is.
fn ssd_of(house: &House, server: &Server) -> Option<config::Ssd> {
    house.configs().into_iter().find(|config| serves(config, server))
}

fn serves(config: &config::Ssd, server: &Server) -> bool {
    match server {
        Server::Socket(path) => is_same(&config.socket, path),
        // As `godwit attach` names it.
        Server::Node(name) => {
            config.door == Door::VhostUser && name.strip_prefix(DEVICE_PREFIX) == Some(config.name.as_str())
        }
    }
}

/// Whether a block node can be the ssd whose name it has.
fn check_size(house: &House, config: &config::Ssd, node: &Device) -> anyhow::Result<()> {
    let ssd = house.number(&config.name).and_then(|number| house.ssd(number));
    if let (Some(ssd), Some(its)) = (ssd, node.size_bytes) {
        let ours = ssd.limits().capacity_bytes;
        ensure!(
            its == ours,
            "its {} has {its} bytes, and ssd \"{}\" {ours}: the node has another ssd's name{}",
            node.server,
            config.name,
            naming(node)
        );
    }
    Ok(())
}

/// What to do about a device that is nobody's, if its name was all there was to go by.
fn naming(device: &Device) -> &'static str {
    match device.server {
        Server::Socket(_) => "",
        Server::Node(_) => {
            " (QEMU does not say at which socket a block node is: give it the node-name that `godwit attach NAME --qemu-nvme` prints)"
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    whole(one) == whole(other)
}

/// Those that are other than after a reset.
fn vectors_of(table: &[Vector]) -> Vec<VectorV1> {
    let rows = (0_u16..).zip(table);
    let set = rows.filter(|(_, row)| **row != Vector::RESET);
    set.map(|(vector, row)| VectorV1 { vector, address: row.address, data: row.data, masked: row.masked })
        .collect()
}

/// What a hypervisor is to know of a controller, as the controller's state has it.
fn pci_of(controller: &ControllerV1) -> PciState {
    let mut config = [0; CONFIG_BYTES];
    for word in &controller.config {
        if let Some(there) =
            config.get_mut(usize::from(word.offset)..).and_then(|rest| rest.first_chunk_mut())
        {
            *there = word.value.to_le_bytes();
        }
    }
    // Message control, in the word of the capability's head.
    let table_z = u16::from_le_bytes([config[MSIX_CAP + 2], config[MSIX_CAP + 3]]) & 0x7ff;
    let mut vectors = vec![Vector::RESET; usize::from(table_z) + 1];
    for row in &controller.vectors {
        if let Some(there) = vectors.get_mut(usize::from(row.vector)) {
            *there = Vector { address: row.address, data: row.data, masked: row.masked };
        }
    }
    PciState { config, vectors }
}

/// The controllers of a guest, each with its device in its hypervisor. `is_its`: by the names of the guest's ssds, whatever the hypervisor says.
fn controllers<'a>(
    house: &House,
    devices: &'a [Device],
    is_its: &dyn Fn(&str) -> bool,
) -> anyhow::Result<Vec<(&'a Device, Passenger)>> {
    let mut found = Vec::new();
    for device in devices.iter().filter(|device| device.interface == Interface::VfioUser) {
        let config = ssd_of(house, &device.server);
        let number =
            config.filter(|config| is_its(&config.name)).and_then(|config| house.number(&config.name));
        let passenger = number
            .and_then(|number| house.passenger(number))
            .with_context(|| format!("its device at {} is no ssd of this guest's", device.server))?;
        found.push((device, passenger));
    }
    Ok(found)
}

/// Sets the controllers of a guest that has come up in its hypervisor as they were.
fn restore(
    house: &House,
    qemu: &mut Destination,
    devices: &[Device],
    is_its: &dyn Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let mut states = Vec::new();
    for (device, passenger) in controllers(house, devices, is_its)? {
        passenger.check_client()?;
        // One that does not stand still was let go on already.
        if let Ok(state) = passenger.save() {
            states.push((device, pci_of(&ControllerV1::from_bytes(&state)?)));
        }
    }
    qemu.restore_pci(&states).context("its controllers cannot be set up in its hypervisor")
}

/// Lets a guest run that has come and whose controllers are set up: they go on first.
fn let_run(
    house: &House,
    qemu: &mut Destination,
    devices: &[Device],
    is_its: &dyn Fn(&str) -> bool,
) -> anyhow::Result<()> {
    for (_, passenger) in controllers(house, devices, is_its)? {
        passenger.run()?;
    }
    Ok(qemu.run()?)
}

/// Ends what the hypervisor at `path` may have begun, so that its guest runs here, where all of its ssds are. For a migration that came to nothing, whoever
/// began it.
///
/// # Errors
/// It does not run, and what to do.
pub(super) fn call_back(house: &House, path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + CALL_BACK;
    loop {
        let done = once_back(house, path);
        match done {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(
                    error.context(format!("its guest may stand still: look at QEMU ({})", path.display()))
                );
            }
            Ok(false) if Instant::now() > deadline => {
                bail!("its guest may stand still: QEMU ({}) does not end its migration", path.display())
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Whether the guest runs by now.
fn once_back(house: &House, path: &Path) -> anyhow::Result<bool> {
    let mut qemu = Source::connect(path, QMP_PATIENCE)?;
    match qemu.now()? {
        SourceNow::Runs => return Ok(true),
        SourceNow::Copying | SourceNow::PreSwitchover => qemu.cancel()?,
        SourceNow::SwitchingOver | SourceNow::GivingUp => {}
        SourceNow::Completed => {
            for device in qemu.devices()? {
                let number = ssd_of(house, &device.server).and_then(|config| house.number(&config.name));
                ensure!(
                    number
                        .and_then(|number| house.ssd(number))
                        .is_some_and(|ssd| ssd.terms.hold() == Hold::Open),
                    "its device at {} is not served here any more, or not yet again",
                    device.server
                );
            }
            qemu.run()?;
        }
        SourceNow::Stopped(word) | SourceNow::Unknown(word) => bail!("it does not run: QEMU says \"{word}\""),
    }
    Ok(false)
}
