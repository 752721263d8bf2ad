//! The block devices of a host, as the kernel shows them in sysfs, and who uses them.
//!
//! Nothing is opened here. Files of sysfs hold what drives say of themselves (models, serials): they are bounded and cleaned.

use crate::text::clean;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most bytes taken from one file of sysfs.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;
/// Most bytes taken from a list of mounts.
const MOUNTS_BYTES_MAX: u64 = 4 << 20;
/// Most devices that are listed.
const DEVICES_MAX: usize = 16_384;

/// Where the kernel shows its devices; a test gives folders of its own.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Host {
    fn default() -> Host {
        Host { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// An NVMe namespace.
    Nvme,
    /// A SCSI, SATA or SAS disk.
    Scsi,
    /// A virtio disk.
    Virtio,
    /// A loop device on a file.
    Loop,
    /// Made by the device mapper (LVM, LUKS, ...).
    DeviceMapper,
    /// An MD array.
    Md,
    /// A regular file.
    File,
    /// Anything else.
    Other,
}

/// A part of a device that the kernel shows as one of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// `nvme0n1p1`.
    pub name: String,
    /// Where it begins.
    pub offset_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// What NVMe says of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NvmeIdentity {
    /// Namespace identifier.
    pub nsid: u32,
    /// The controller's name, `nvme0`, if there is one.
    pub controller: Option<String>,
    /// Its transport: `pcie`, `tcp`, ...
    pub transport: Option<String>,
    /// Its PCI or network address.
    pub address: Option<String>,
    /// Subsystem qualified name.
    pub subsystem_nqn: Option<String>,
    /// EUI-64.
    pub eui64: Option<String>,
    /// NGUID.
    pub nguid: Option<String>,
    /// UUID.
    pub uuid: Option<String>,
}

/// An NVMe controller. It may have no namespace, and so no block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// `nvme0`.
    pub name: String,
    /// `/dev/nvme0`.
    pub path: PathBuf,
    /// Its serial number.
    pub serial: Option<String>,
    /// What it calls itself.
    pub model: Option<String>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `nvme0n1`.
    pub name: String,
    /// `/dev/nvme0n1`.
    pub path: PathBuf,
    /// What kind it is.
    pub bus: Bus,
    /// What it calls itself.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its firmware.
    pub firmware: Option<String>,
    /// A name that no other device has, as the kernel makes it.
    pub wwid: Option<String>,
    /// Capacity.
    pub size_bytes: u64,
    /// Its blocks, as addressed.
    pub logical_block_bytes: u32,
    /// Its blocks, as stored.
    pub physical_block_bytes: u32,
    /// It turns.
    pub rotational: bool,
    /// It can be taken out.
    pub removable: bool,
    /// It cannot be written.
    pub read_only: bool,
    /// It can be told that blocks are no longer used.
    pub discard: bool,
    /// What an NVMe namespace says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvme: Option<NvmeIdentity>,
    /// Its file, for a loop device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Its partitions, as the kernel sees them.
    pub partitions: Vec<Partition>,
    /// Who uses it or one of its partitions now: `mounted at /`, `swap`, `held by dm-0`.
    pub users: Vec<String>,
}

impl Device {
    /// What a person must repeat before this device's data is destroyed: its serial number, or, if it has none, its path.
    #[must_use]
    pub fn confirmation(&self) -> String {
        self.serial.clone().unwrap_or_else(|| self.path.display().to_string())
    }
}

impl Host {
    /// Every block device that has a size; not floppy, CD or RAM disks.
    ///
    /// # Errors
    /// Sysfs cannot be read.
    pub fn devices(&self) -> io::Result<Vec<Device>> {
        let folder = self.sys.join("block");
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(&folder)?.take(DEVICES_MAX) {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_by_key(|name| natural(name));
        let uses = self.uses();
        Ok(names.iter().filter_map(|name| self.device_with(name, &uses)).collect())
    }

    /// The NVMe controllers, of local and remote drives.
    ///
    /// # Errors
    /// Sysfs cannot be read; a host without NVMe has none.
    pub fn controllers(&self) -> io::Result<Vec<Controller>> {
        let folder = self.sys.join("class/nvme");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries.take(DEVICES_MAX) {
            let (Ok(name), folder) = (entry?.file_name().into_string(), &folder) else { continue };
            let folder = folder.join(&name);
            let (serial, model) = (attribute(&folder, "serial"), attribute(&folder, "model"));
            found.push(Controller { path: self.dev.join(&name), serial, model, name });
        }
        found.sort_by_key(|controller| natural(&controller.name));
        Ok(found)
    }

    /// One block device by its name. `None`: there is none, or it has no size, or is no drive.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<Device> {
        let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        if plain { self.device_with(name, &self.uses()) } else { None }
    }

    fn device_with(&self, name: &str, uses: &BTreeMap<String, Vec<String>>) -> Option<Device> {
        let bus = bus(name)?;
        let folder = self.sys.join("block").join(name);
        let size_bytes = number(&folder, "size")?.checked_mul(512).filter(|&size| size > 0)?;
        let inner = folder.join("device");
        let mut users = self.users(&folder, uses);
        let partitions = self.partitions(&folder, name, uses, &mut users);
        users.sort();
        users.dedup();
        let vendor = attribute(&inner, "vendor").filter(|vendor| bus == Bus::Scsi && vendor != "ATA");
        let model = attribute(&inner, "model");
        Some(Device {
            path: self.dev.join(name.replace('!', "/")),
            bus,
            model: match (vendor, model) {
                (Some(vendor), Some(model)) => Some(format!("{vendor} {model}")),
                (_, model) => model,
            },
            serial: serial(&folder, &inner),
            firmware: attribute(&inner, "firmware_rev").or_else(|| attribute(&inner, "rev")),
            wwid: attribute(&folder, "wwid").or_else(|| attribute(&inner, "wwid")),
            size_bytes,
            logical_block_bytes: block_bytes(&folder, "queue/logical_block_size"),
            physical_block_bytes: block_bytes(&folder, "queue/physical_block_size"),
            rotational: flag(&folder, "queue/rotational"),
            removable: flag(&folder, "removable"),
            read_only: flag(&folder, "ro"),
            discard: number(&folder, "queue/discard_max_bytes").is_some_and(|most| most > 0),
            nvme: (bus == Bus::Nvme).then(|| nvme_identity(&folder, &inner)),
            backing_file: attribute(&folder, "loop/backing_file"),
            partitions,
            users,
            name: name.to_owned(),
        })
    }

    fn partitions(
        &self,
        folder: &Path,
        name: &str,
        uses: &BTreeMap<String, Vec<String>>,
        users: &mut Vec<String>,
    ) -> Vec<Partition> {
        let mut partitions = Vec::new();
        let Ok(entries) = fs::read_dir(folder) else { return partitions };
        for entry in entries.flatten().take(DEVICES_MAX) {
            let Ok(inner) = entry.file_name().into_string() else { continue };
            if !inner.starts_with(name) || !entry.path().join("partition").exists() {
                continue;
            }
            users.extend(self.users(&entry.path(), uses));
            let bytes = |file: &str| number(&entry.path(), file).and_then(|sectors| sectors.checked_mul(512));
            partitions.push(Partition {
                offset_bytes: bytes("start").unwrap_or(0),
                size_bytes: bytes("size").unwrap_or(0),
                name: inner,
            });
        }
        partitions.sort_by_key(|partition| natural(&partition.name));
        partitions
    }

    /// Who has the device with this folder of sysfs: mounts and swap by its number, and other devices on top of it.
    fn users(&self, folder: &Path, uses: &BTreeMap<String, Vec<String>>) -> Vec<String> {
        let number = attribute(folder, "dev").unwrap_or_default();
        let mut users = uses.get(&number).cloned().unwrap_or_default();
        if let Ok(holders) = fs::read_dir(folder.join("holders")) {
            let names = holders.flatten().filter_map(|holder| clean(&holder.file_name().to_string_lossy()));
            users.extend(names.map(|name| format!("held by {name}")));
        }
        users
    }

    /// Mounts and swap, by the device's number (`254:0`).
    fn uses(&self) -> BTreeMap<String, Vec<String>> {
        let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mounts = bounded(&self.proc.join("self/mountinfo"), MOUNTS_BYTES_MAX).unwrap_or_default();
        for line in mounts.lines() {
            // id parent major:minor root mount-point options [fields] - type source options
            let mut words = line.split(' ');
            let (Some(number), Some(place)) = (words.nth(2), words.nth(1)) else { continue };
            let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
            let place = clean(place).unwrap_or_default();
            // Btrfs has numbers of its own: its source names the device.
            let by_source =
                source.filter(|source| source.starts_with('/')).and_then(|source| self.number_of(source));
            for number in [Some(number.to_owned()), by_source].into_iter().flatten() {
                uses.entry(number).or_default().push(format!("mounted at {place}"));
            }
        }
        let swaps = bounded(&self.proc.join("swaps"), MOUNTS_BYTES_MAX).unwrap_or_default();
        for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            if let Some(number) = self.number_of(path) {
                uses.entry(number).or_default().push("swap".to_owned());
            }
        }
        uses
    }

    fn number_of(&self, path: &str) -> Option<String> {
        let name = Path::new(path).file_name()?;
        attribute(&self.sys.join("class/block").join(name), "dev")
    }
}

fn bus(name: &str) -> Option<Bus> {
    let not_drives = ["fd", "sr", "ram", "zram", "nbd", "mtdblock"];
    let after = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    if not_drives.iter().any(|prefix| after(prefix)) {
        return None;
    }
    Some(match name {
        _ if after("nvme") => Bus::Nvme,
        _ if name.starts_with("sd") => Bus::Scsi,
        _ if name.starts_with("vd") => Bus::Virtio,
        _ if after("loop") => Bus::Loop,
        _ if name.starts_with("dm-") => Bus::DeviceMapper,
        _ if after("md") => Bus::Md,
        _ => Bus::Other,
    })
}

fn serial(folder: &Path, inner: &Path) -> Option<String> {
    let plain = attribute(inner, "serial").or_else(|| attribute(folder, "serial"));
    plain.or_else(|| {
        // SCSI's page 80h: four bytes of header, then the text.
        let page = bounded_bytes(&inner.join("vpd_pg80"), ATTRIBUTE_BYTES_MAX).ok()?;
        clean(&String::from_utf8_lossy(page.get(4..)?))
    })
}

fn nvme_identity(folder: &Path, inner: &Path) -> NvmeIdentity {
    // With multipath, the device is the subsystem and its controllers lie in it.
    let controller_folder = if inner.join("transport").exists() {
        fs::canonicalize(inner).ok()
    } else {
        let entries = fs::read_dir(inner).ok();
        let mut found: Vec<PathBuf> = entries
            .into_iter()
            .flatten()
            .flatten()
            .take(DEVICES_MAX)
            .map(|entry| entry.path())
            .filter(|path| path.join("transport").exists())
            .collect();
        found.sort();
        found.into_iter().next()
    };
    let from = |name: &str| controller_folder.as_ref().and_then(|folder| attribute(folder, name));
    let own = |name: &str| {
        attribute(folder, name).filter(|text| text.chars().any(|c| !matches!(c, '0' | '-' | ' ')))
    };
    NvmeIdentity {
        nsid: number(folder, "nsid").and_then(|nsid| u32::try_from(nsid).ok()).unwrap_or(0),
        controller: controller_folder
            .as_ref()
            .and_then(|folder| clean(&folder.file_name()?.to_string_lossy())),
        transport: from("transport"),
        address: from("address"),
        subsystem_nqn: from("subsysnqn").or_else(|| attribute(inner, "subsysnqn")),
        eui64: own("eui"),
        nguid: own("nguid"),
        uuid: own("uuid"),
    }
}

fn bounded_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn bounded(path: &Path, most: u64) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bounded_bytes(path, most)?).into_owned())
}

fn attribute(folder: &Path, name: &str) -> Option<String> {
    let text = bounded(&folder.join(name), ATTRIBUTE_BYTES_MAX).ok()?;
    clean(text.trim_end_matches(['\n', '\0', ' ']))
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    attribute(folder, name)?.parse().ok()
}

fn flag(folder: &Path, name: &str) -> bool {
    number(folder, name) == Some(1)
}

fn block_bytes(folder: &Path, name: &str) -> u32 {
    number(folder, name).and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(512)
}

/// `nvme2n1` before `nvme10n1`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(word_end);
        let digits_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        parts.push((word.to_owned(), digits.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests;
