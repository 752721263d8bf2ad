//! Which of QEMU's devices are served from outside, and by whom.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{Error, Fault, quote};
use crate::qmp::Qmp;

/// Devices that have an id, and those that have none.
const SHELVES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// QEMU's block driver for a vhost-user-blk server.
const BLOCK_DRIVER: &str = "virtio-blk-vhost-user";

/// How a device is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// A virtio-blk disk by vhost-user. QEMU migrates all of it but the disk's data.
    VhostUserBlk,
    /// Any PCI device by vfio-user. QEMU migrates nothing of it, and does not say so.
    VfioUser,
    /// A block node of QEMU's own by vhost-user (its driver `virtio-blk-vhost-user`), under whatever device QEMU emulates. QEMU migrates all of that but the data.
    BlockNode,
}

/// By what a device's server can be told from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// Its socket, as QEMU was told it: it may be relative to QEMU's working folder.
    Socket(PathBuf),
    /// The node's name, all that QEMU (up to 11.1) says of a block node: not its socket.
    Node(String),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Node(name) => write!(f, "block node {}", quote(name)),
        }
    }
}

/// Where a PCI device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciAddress {
    /// As the guest's firmware numbered it.
    pub bus: u8,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.slot, self.function)
    }
}

/// A device of the guest's that a process outside QEMU serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The `id` that QEMU was given for it. Of a block node: its name.
    pub id: Option<String>,
    /// Its path in QEMU's object model. Of a block node: its name.
    pub path: String,
    /// How it is served.
    pub interface: Interface,
    /// Who serves it.
    pub server: Server,
    /// Of a block node: its size.
    pub size_bytes: Option<u64>,
    /// Unknown while the guest's firmware has not numbered the bus, for a device without an id, and for one that is not on PCI.
    pub address: Option<PciAddress>,
    /// Why the device cannot be migrated as it is, and what to do.
    pub problem: Option<String>,
}

pub(crate) fn devices(qmp: &mut Qmp) -> Result<Vec<Device>, Error> {
    let mut found = Vec::new();
    for shelf in SHELVES {
        for (name, kind) in children(qmp, shelf)? {
            let path = format!("{shelf}/{name}");
            let id = (shelf == SHELVES[0]).then_some(name);
            if kind == "vfio-user-pci" {
                found.push(vfio_user(qmp, id, path)?);
            } else if kind.starts_with("vhost-user-blk") {
                found.push(vhost_user_blk(qmp, id, path)?);
            }
        }
    }
    if found.iter().any(|device| device.id.is_some()) {
        let addresses = addresses(qmp)?;
        for device in &mut found {
            device.address = device.id.as_ref().and_then(|id| addresses.get(id).copied());
        }
    }
    found.extend(block_nodes(qmp)?);
    Ok(found)
}

/// In the order of their names: QEMU's own is another each time.
fn block_nodes(qmp: &mut Qmp) -> Result<Vec<Device>, Error> {
    let told = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let nodes = told.as_array().into_iter().flatten().filter(|node| node["drv"] == BLOCK_DRIVER);
    let mut found: Vec<Device> = nodes.filter_map(block_node).collect();
    found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn block_node(node: &Value) -> Option<Device> {
    let name = node["node-name"].as_str()?;
    Some(Device {
        id: Some(name.to_owned()),
        path: name.to_owned(),
        interface: Interface::BlockNode,
        server: Server::Node(name.to_owned()),
        size_bytes: node["image"]["virtual-size"].as_u64(),
        address: None,
        problem: None,
    })
}

/// An object's children: their names and types.
fn children(qmp: &mut Qmp, path: &str) -> Result<Vec<(String, String)>, Error> {
    let told = qmp.execute("qom-list", json!({ "path": path }))?;
    let child = |one: &Value| {
        let kind = one["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
        Some((one["name"].as_str()?.to_owned(), kind.to_owned()))
    };
    Ok(told.as_array().into_iter().flatten().filter_map(child).collect())
}

fn vhost_user_blk(qmp: &mut Qmp, id: Option<String>, path: String) -> Result<Device, Error> {
    let chardev = qmp.execute("qom-get", json!({ "path": path, "property": "chardev" }))?;
    let chardevs = qmp.execute("query-chardev", json!({}))?;
    let one = chardevs.as_array().into_iter().flatten().find(|one| one["label"] == chardev);
    let file = one.and_then(|one| one["filename"].as_str()).unwrap_or_default();
    let Some((socket, connected)) = unix_socket(file) else {
        let text =
            format!("the disk {path} has no unix socket, but {}: migrate the guest without it", quote(file));
        return Err(qmp.error("devices", Fault::Unfit(text)));
    };
    let problem = (!connected).then(|| "QEMU is not connected to the disk's server".to_owned());
    Ok(Device {
        id,
        path,
        interface: Interface::VhostUserBlk,
        server: Server::Socket(socket),
        size_bytes: None,
        address: None,
        problem,
    })
}

/// The path in `unix:PATH`, `unix:PATH,server=on` and `disconnected:unix:PATH`, and whether it is connected.
fn unix_socket(file: &str) -> Option<(PathBuf, bool)> {
    let connected = file.strip_prefix("disconnected:");
    let path = connected.unwrap_or(file).strip_prefix("unix:")?;
    let path = path.strip_suffix(",server=on").unwrap_or(path);
    (!path.is_empty()).then(|| (PathBuf::from(path), connected.is_none()))
}

/// The property `socket` can be set and not read. QEMU names the device's memory regions after it.
fn vfio_user(qmp: &mut Qmp, id: Option<String>, path: String) -> Result<Device, Error> {
    let regions = children(qmp, &path)?;
    let Some(socket) = regions.iter().find_map(|(name, _)| region_socket(name)) else {
        let text = format!(
            "of the device {path} no region names its socket, so nobody can tell whose it is: unplug it"
        );
        return Err(qmp.error("devices", Fault::Unfit(text)));
    };
    let problem = id.is_none().then(|| {
        "a vfio-user device without an id cannot be migrated: start QEMU with an id for it (-device vfio-user-pci,id=...)"
            .to_owned()
    });
    Ok(Device {
        id,
        path,
        interface: Interface::VfioUser,
        server: Server::Socket(socket),
        size_bytes: None,
        address: None,
        problem,
    })
}

/// The path in `vfio-user:PATH base BAR 0[0]`, in which QEMU writes slashes and brackets as `\x2f`.
fn region_socket(name: &str) -> Option<PathBuf> {
    let rest = name.strip_prefix("vfio-user:")?;
    let end = rest.rfind(" base BAR ")?;
    let mut bytes = Vec::new();
    let mut rest = &rest[..end];
    while let Some(at) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let code = rest.get(at + 2..at + 4)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
}

/// By id, of all devices on PCI that have one.
fn addresses(qmp: &mut Qmp) -> Result<HashMap<String, PciAddress>, Error> {
    let told = qmp.execute("query-pci", json!({}))?;
    let mut found = HashMap::new();
    on_pci(&told, |id, device| {
        if let Some(address) = address(device) {
            found.insert(id.to_owned(), address);
        }
    });
    Ok(found)
}

/// Where a device is, and what: vendor and device. From what `query-pci` told.
pub(crate) fn found(told: &Value, id: &str) -> Option<(PciAddress, (u64, u64))> {
    let mut found = None;
    on_pci(told, |found_id, device| {
        if found_id == id {
            let number = |name: &str| device["id"][name].as_u64();
            found = address(device).zip(number("vendor").zip(number("device")));
        }
    });
    found
}

/// Where QEMU decodes a device's base addresses, from what `query-pci` told: numbers and addresses.
pub(crate) fn regions(told: &Value, id: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    on_pci(told, |found_id, device| {
        let regions = device["regions"].as_array().into_iter().flatten();
        let regions = regions.filter_map(|one| Some((one["bar"].as_u64()?, one["address"].as_u64()?)));
        found.extend(regions.filter(|_| found_id == id));
    });
    found
}

/// Each device with an id.
fn on_pci(told: &Value, mut each: impl FnMut(&str, &Value)) {
    let mut lists: Vec<&Value> = told.as_array().into_iter().flatten().map(|bus| &bus["devices"]).collect();
    while let Some(list) = lists.pop() {
        for device in list.as_array().into_iter().flatten() {
            if let Some(id) = device["qdev_id"].as_str().filter(|id| !id.is_empty()) {
                each(id, device);
            }
            lists.push(&device["pci_bridge"]["devices"]);
        }
    }
}

fn address(device: &Value) -> Option<PciAddress> {
    let number = |name: &str| device[name].as_u64();
    Some(PciAddress {
        bus: number("bus")?.try_into().ok()?,
        slot: number("slot").filter(|slot| *slot < 32)?.try_into().ok()?,
        function: number("function").filter(|function| *function < 8)?.try_into().ok()?,
    })
}

#[cfg(test)]
mod tests;
