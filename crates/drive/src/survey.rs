//! A drive, looked at from all sides: what it is, what is on it, how it is, and whether it is free.

use crate::content::{self, Contents, Kind};
use crate::discovery::{Bus, Device, Host};
use crate::nvme::capability::{Capabilities, Carving};
use crate::nvme::health::Health;
use crate::nvme::ioctl::Ioctl;
use crate::source::{self, Opened};
use crate::wipe::{Shelf, Step};
use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Whether a drive may be given to Godwit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing is on it, or a Godwit pool that was begun and never was one.
    Free,
    /// It is a Godwit pool.
    Pool,
    /// Somebody's data is on it, or it cannot be read: it is refused without its serial number.
    Taken,
    /// It is mounted, swap, or part of something that runs: it is refused.
    InUse,
    /// It cannot be written.
    ReadOnly,
    /// A wipe goes on, or was interrupted: it is refused until that has ended.
    Wiping,
    /// A wipe failed: it is refused.
    Quarantined,
}

impl State {
    /// As tables and JSON call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Free => "free",
            State::Pool => "pool",
            State::Taken => "taken",
            State::InUse => "in-use",
            State::ReadOnly => "read-only",
            State::Wiping => "wiping",
            State::Quarantined => "quarantined",
        }
    }
}

/// All that is known of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// Whether it may be given to Godwit.
    pub state: State,
    /// What is on it.
    pub contents: Contents,
    /// How it is, if it can say.
    pub health: Option<Health>,
    /// What an NVMe drive can do.
    pub capabilities: Option<Capabilities>,
    /// Whether and how it can be carved into namespaces; or why not.
    pub carving: Option<Result<Carving, String>>,
    /// Why it is not known whether a wipe of it has ended well: it is refused.
    #[serde(skip)]
    pub wipes_unread: Option<String>,
    /// What could not be asked, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

impl Host {
    /// Every drive of the host.
    ///
    /// # Errors
    /// Sysfs cannot be read.
    pub fn survey(&self) -> io::Result<Vec<Survey>> {
        Ok(self.devices()?.into_iter().map(Survey::of).collect())
    }

    /// The device or file at a path, or of that name.
    ///
    /// # Errors
    /// There is no such drive.
    pub fn find(&self, path: &Path) -> io::Result<Device> {
        let plain = path.components().count() == 1 && !path.exists();
        let path = if plain { self.dev.join(path) } else { path.to_owned() };
        let real = fs::canonicalize(&path)?;
        let kind = fs::metadata(&real)?.file_type();
        if kind.is_block_device() {
            let name = real.strip_prefix(&self.dev).unwrap_or(&real).to_string_lossy().replace('/', "!");
            return self.device(&name).ok_or_else(|| self.no_drive(&real));
        }
        if kind.is_file() {
            return file(&real);
        }
        let reason = format!("{} is neither a block device nor a file", real.display());
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }

    fn no_drive(&self, path: &Path) -> io::Error {
        let is_partition = path
            .file_name()
            .is_some_and(|name| self.sys.join("class/block").join(name).join("partition").exists());
        let reason =
            if is_partition { "is a partition: name the whole drive" } else { "is no drive with a size" };
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} {reason}", path.display()))
    }
}

/// A regular file as a drive: it has no model, and its path stands for a serial number.
fn file(path: &Path) -> io::Result<Device> {
    let meta = fs::metadata(path)?;
    Ok(Device {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        path: path.to_owned(),
        bus: Bus::File,
        model: None,
        serial: None,
        firmware: None,
        wwid: None,
        size_bytes: meta.len(),
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        rotational: false,
        removable: false,
        read_only: meta.permissions().readonly(),
        discard: true,
        nvme: None,
        backing_file: None,
        partitions: Vec::new(),
        users: Vec::new(),
    })
}

impl Survey {
    /// Looks at a device. Never fails: what cannot be asked is part of the answer, and a drive that cannot be read is taken.
    #[must_use]
    pub fn of(device: Device) -> Survey {
        let opened = source::open(&device.path, OpenOptions::new().read(true), 0).and_then(Opened::new);
        let contents = match &opened {
            Ok(source) => content::look(source),
            Err(error) => Contents { unreadable: vec![error.to_string()], ..Contents::default() },
        };
        let mut survey = Survey {
            state: state(&device, &contents),
            device,
            contents,
            health: None,
            capabilities: None,
            carving: None,
            wipes_unread: None,
            unknown: Vec::new(),
        };
        if survey.device.bus == Bus::Nvme {
            match Ioctl::open(&survey.device.path) {
                Ok(mut admin) => survey.ask(&mut admin),
                Err(error) => survey.unknown.push(format!("it cannot be asked: {error}")),
            }
        }
        survey
    }

    /// Looks whether a wipe keeps the drive from being used.
    #[must_use]
    pub fn with_wipes(mut self, shelf: &Shelf) -> Survey {
        match shelf.holds(&self.device) {
            Ok(Some(Step::Quarantined)) => self.state = State::Quarantined,
            Ok(Some(_)) => self.state = State::Wiping,
            Ok(None) => {}
            Err(error) => {
                self.unknown.push(format!("wipes: {error}"));
                self.wipes_unread = Some(error.to_string());
            }
        }
        self
    }

    fn ask(&mut self, admin: &mut Ioctl) {
        let mut note = |what: &str, error: &dyn std::fmt::Display| {
            self.unknown.push(format!("{what}: {error}"));
        };
        match Health::read(admin) {
            Ok(health) => self.health = Some(health),
            Err(error) => note("health", &error),
        }
        match Capabilities::read(admin) {
            Ok(capabilities) => self.capabilities = Some(capabilities),
            Err(error) => note("capabilities", &error),
        }
        match Carving::read(admin) {
            Ok(carving) => self.carving = Some(carving.map_err(|reason| reason.to_string())),
            Err(error) => note("namespaces", &error),
        }
    }
}

pub(crate) fn state(device: &Device, contents: &Contents) -> State {
    let half_made = contents.unreadable.is_empty()
        && matches!(&*contents.findings, [only] if only.kind == Kind::HalfMadePool);
    let only_pool = contents.unreadable.is_empty()
        && contents.findings.iter().any(|found| found.kind == Kind::GodwitPool)
        && contents.findings.iter().all(|found| matches!(found.kind, Kind::GodwitPool | Kind::HalfMadePool));
    if !device.users.is_empty() {
        State::InUse
    } else if device.read_only {
        State::ReadOnly
    } else if (contents.is_blank() || half_made) && device.partitions.is_empty() {
        State::Free
    } else if only_pool {
        State::Pool
    } else {
        State::Taken
    }
}
