//! An ssd put into a running guest and taken out of it.

use super::Monitor;
use crate::hypervisor::Device;
use ::hypervisor::qmp::{Event, Version};
use anyhow::{Context, bail};
use api::config::Door;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The first with `vfio-user-pci`.
const VFIO_USER_SINCE: Version = Version { major: 10, minor: 1, micro: 0 };
/// The first in which plain shared RAM of QEMU's has a descriptor that other processes can map.
const SHARED_RAM_SINCE: Version = Version { major: 10, minor: 0, micro: 0 };
/// QEMU's devices that are one PCI Express port, in which one device can be plugged.
const PORTS: [&str; 3] = ["pcie-root-port", "xio3130-downstream", "ioh3420"];
const NAMED: &str = "/machine/peripheral";
const NAMELESS: &str = "/machine/peripheral-anon";
/// A device is freed a moment after its end was told, and holds its character device until then.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(20);

/// Plugs a device in, at `bus` or where there is room; says where.
pub(crate) fn attach(monitor: &mut Monitor, device: &Device, bus: Option<&str>) -> anyhow::Result<String> {
    if driver(monitor, &device.id)?.is_some() {
        bail!("the guest has a device {} already", device.id);
    }
    if device.door == Door::VfioUser && monitor.release < VFIO_USER_SINCE {
        bail!(
            "this is QEMU {}: NVMe ssds need vfio-user-pci, which came with {VFIO_USER_SINCE}; \
             use a newer QEMU, or give the ssd a vhost_socket instead of a socket: a virtio-blk disk",
            monitor.release
        );
    }
    check_memory(monitor)?;
    let bus = match bus {
        Some(bus) => Some(bus.to_owned()),
        None => free_port(monitor)?,
    };
    let mut properties = match device.door {
        Door::VfioUser => {
            let socket = json!({ "type": "unix", "path": device.socket });
            json!({ "driver": "vfio-user-pci", "id": device.id, "socket": socket })
        }
        Door::VhostUser => {
            add_chardev(monitor, device)?;
            json!({ "driver": "vhost-user-blk-pci", "id": device.id, "chardev": device.id })
        }
    };
    if let Some(bus) = &bus {
        properties["bus"] = json!(bus);
    }
    if let Err(refusal) = monitor.execute("device_add", &properties)? {
        if device.door == Door::VhostUser {
            remove_chardev(monitor, &device.id)?;
        }
        bail!("QEMU refuses to plug {}: {}", device.id, refusal.text);
    }
    Ok(format!("plugged in as {}{}", device.id, bus.map_or(String::new(), |bus| format!(" at {bus}"))))
}

/// Takes a device out and waits until the guest has let it go. `even_if_qemu_aborts`: see [`refuse_abort`].
pub(crate) fn detach(
    monitor: &mut Monitor,
    id: &str,
    patience: Duration,
    even_if_qemu_aborts: bool,
) -> anyhow::Result<String> {
    let Some(driver) = driver(monitor, id)? else {
        // An earlier detach may have been interrupted between the device and its socket.
        if has_chardev(monitor, id)? {
            remove_chardev(monitor, id)?;
            return Ok(format!("{id} was out already; its socket is closed now"));
        }
        bail!("the guest has no device {id}; it has: {}", named(monitor)?.join(", "));
    };
    if driver == "vfio-user-pci" && !even_if_qemu_aborts {
        refuse_abort(monitor.release)?;
    }
    if let Err(refusal) = monitor.execute("device_del", &json!({ "id": id }))? {
        // Asked for before: what is left is to wait.
        if !refusal.text.contains("already in the process of unplug") {
            bail!("QEMU refuses to unplug {id}: {}", refusal.text);
        }
    }
    wait_unplugged(monitor, id, patience)?;
    if has_chardev(monitor, id)? {
        remove_chardev(monitor, id)?;
    }
    Ok(format!("{id} is out of the guest"))
}

/// Every QEMU with `vfio-user-pci` so far (10.1 to 11.1.3 were looked at) aborts when such a device with MSI-X is taken away: it
/// removes the MSI-X table's memory region after that has ended (`vfio_user_msix_teardown`). No guest is ended by surprise.
fn refuse_abort(release: Version) -> anyhow::Result<()> {
    bail!(
        "this is QEMU {release}: QEMU aborts, and the guest with it, when a vfio-user-pci device is unplugged \
         (known up to 11.1; its own fault, in hw/vfio-user/pci.c). Stop the guest to take an NVMe ssd away, or use virtio-blk \
         disks (vhost_socket), which can be unplugged. If your QEMU has the fix (\"vfio-user: Do not delete the subregion\"), \
         say --even-if-qemu-aborts"
    )
}

fn wait_unplugged(monitor: &mut Monitor, id: &str, patience: Duration) -> anyhow::Result<()> {
    let of_this = |event: &Event| event.data["device"] == id;
    let wanted = |event: &Event| {
        of_this(event) && ["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"].contains(&event.name.as_str())
    };
    let event = monitor
        .event(Instant::now() + patience, wanted)
        .with_context(|| format!("while {id} was unplugged"))?;
    match event {
        Some(event) if event.name == "DEVICE_DELETED" => Ok(()),
        Some(_) => bail!("the guest does not let {id} go: is it mounted or in use there?"),
        None if driver(monitor, id)?.is_none() => Ok(()),
        None => bail!(
            "the guest has not let {id} go within {} s; it may still do so. A guest lets go only while it runs, with a driver \
             for hot-plug; run this again to wait on",
            patience.as_secs()
        ),
    }
}

/// The daemon must be able to map all of the guest's memory.
fn check_memory(monitor: &mut Monitor) -> anyhow::Result<()> {
    let answer = monitor.must("query-memdev", &json!({}))?;
    let backends = answer.as_array().context("QEMU says nothing about the guest's memory")?;
    for backend in backends {
        let id = backend["id"].as_str().unwrap_or("without a name");
        let mib = backend["size"].as_u64().unwrap_or(0) >> 20;
        if backend["share"] != true {
            bail!(not_shared(id, mib, "it is private to QEMU"));
        }
        let kind = property(monitor, &format!("/objects/{id}"), "type")?;
        if kind.as_deref() == Some("memory-backend-ram") && monitor.release < SHARED_RAM_SINCE {
            bail!(not_shared(id, mib, "in this QEMU it has no descriptor"));
        }
    }
    Ok(())
}

fn not_shared(id: &str, mib: u64, why: &str) -> String {
    format!(
        "the daemon cannot reach the guest's memory \"{id}\" ({mib} MiB): {why}. A running guest's memory cannot be changed: \
         start it with\n  -object memory-backend-memfd,id=ram0,size={mib}M,share=on -machine memory-backend=ram0\n\
         or, in libvirt's domain,\n  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    )
}

/// A port with nothing in it. `None`: the machine's own bus takes devices at any time.
fn free_port(monitor: &mut Monitor) -> anyhow::Result<Option<String>> {
    let ports: Vec<String> = children(monitor, NAMED)?
        .into_iter()
        .filter(|(_, kind)| PORTS.contains(&kind.as_str()))
        .map(|(name, _)| name)
        .collect();
    let mut buses = Vec::new();
    for folder in [NAMED, NAMELESS] {
        for (name, _) in children(monitor, folder)? {
            buses.extend(property(monitor, &format!("{folder}/{name}"), "parent_bus")?);
        }
    }
    let is_free = |port: &&String| !buses.iter().any(|bus| bus.starts_with(&format!("{NAMED}/{port}/")));
    if let Some(port) = ports.iter().find(is_free) {
        return Ok(Some(port.clone()));
    }
    let machine = property(monitor, "/machine", "type")?.unwrap_or_default();
    if machine.starts_with("pc-i440fx") {
        return Ok(None);
    }
    let ports = match ports.len() {
        0 => "has no PCI Express port with a name".to_owned(),
        count => format!("has something in each of its {count} PCI Express ports"),
    };
    bail!(
        "the guest {ports}, so nothing can be plugged in while it runs. Start it with a spare one, \
         -device pcie-root-port,id=spare1,chassis=101,slot=101 for each (libvirt: <controller type='pci' model='pcie-root-port'/>), \
         or name a bus with --bus"
    )
}

/// The driver of a device with a name.
fn driver(monitor: &mut Monitor, id: &str) -> anyhow::Result<Option<String>> {
    Ok(children(monitor, NAMED)?.into_iter().find(|(name, _)| name == id).map(|(_, kind)| kind))
}

fn named(monitor: &mut Monitor) -> anyhow::Result<Vec<String>> {
    Ok(children(monitor, NAMED)?.into_iter().map(|(name, _)| name).collect())
}

/// Names and types of an object's children.
fn children(monitor: &mut Monitor, path: &str) -> anyhow::Result<Vec<(String, String)>> {
    let answer = monitor.must("qom-list", &json!({ "path": path }))?;
    let entries = answer.as_array().context("QEMU lists no objects")?;
    let child = |entry: &Value| {
        let kind = entry["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
        Some((entry["name"].as_str()?.to_owned(), kind.to_owned()))
    };
    Ok(entries.iter().filter_map(child).collect())
}

/// A property that is text, of an object that may not be there.
fn property(monitor: &mut Monitor, path: &str, name: &str) -> anyhow::Result<Option<String>> {
    let answer = monitor.execute("qom-get", &json!({ "path": path, "property": name }))?;
    Ok(answer.ok().and_then(|value| value.as_str().map(str::to_owned)))
}

fn has_chardev(monitor: &mut Monitor, id: &str) -> anyhow::Result<bool> {
    let answer = monitor.must("query-chardev", &json!({}))?;
    Ok(answer.as_array().is_some_and(|list| list.iter().any(|entry| entry["label"] == id)))
}

/// Without `reconnect`: the keeper keeps the connection when the engine ends.
fn add_chardev(monitor: &mut Monitor, device: &Device) -> anyhow::Result<()> {
    if has_chardev(monitor, &device.id)? {
        // Left by an attach or a detach that was interrupted: there is no such device.
        remove_chardev(monitor, &device.id)?;
    }
    let address = json!({ "type": "unix", "data": { "path": device.socket } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    monitor
        .must("chardev-add", &json!({ "id": device.id, "backend": backend }))
        .with_context(|| format!("no connection to {}", device.socket.display()))
        .map(drop)
}

fn remove_chardev(monitor: &mut Monitor, id: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    while let Err(refusal) = monitor.execute("chardev-remove", &json!({ "id": id }))? {
        if !refusal.text.contains("busy") || Instant::now() >= deadline {
            bail!("QEMU keeps the socket of {id} open ({}); run `godwit detach` again", refusal.text);
        }
        std::thread::sleep(RELEASE_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
