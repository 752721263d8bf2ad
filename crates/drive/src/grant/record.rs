//! The record of a grant; `docs/formats/grant-record.md`.

use crate::discovery::{Bus, Device, Host};
use crate::nvme::AdminError;
use crate::nvme::namespaces::Shape;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where they are, if nobody says.
pub const DEFAULT_FOLDER: &str = "/var/lib/godwit/grants";
/// The version this release writes; it reads no newer one.
pub const VERSION: u32 = 1;
/// Most bytes of a record that is read back.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// Most records that are looked at.
const RECORDS_MAX: usize = 4096;

/// What an ssd has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// All of a drive.
    Drive,
    /// One namespace, made for it.
    Namespace,
}

/// How far it is. What is named has yet to be done, or may have been done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Which namespaces there are is to be looked up.
    Planned,
    /// The namespace is to be made.
    Create,
    /// It is to be attached to the controller.
    Attach,
    /// It is to be wiped before its first use.
    Clean,
    /// The ssd has it.
    Given,
    /// The ssd has it no more; it is to be wiped.
    Empty,
    /// It is to be detached.
    Detach,
    /// It is to be deleted.
    Delete,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Of the record's form.
    pub version: u32,
    /// Whose.
    pub ssd: String,
    /// The drive's serial number; a file's path.
    pub serial: String,
    /// What of it.
    pub what: What,
    /// How far it is.
    pub step: Step,
    /// The namespace. `None`: not made yet, or the drive has none.
    #[serde(default)]
    pub nsid: Option<u32>,
    /// Its size.
    pub size_bytes: u64,
    /// As it is to be made.
    #[serde(default)]
    pub shape: Shape,
    /// The namespaces that were there before, so that a new one is known after a crash.
    #[serde(default)]
    pub others: Vec<u32>,
    /// What names it for good, if the drive gives it such a name: NGUID, else EUI-64, in hexadecimal digits.
    #[serde(default)]
    pub identity: Option<String>,
}

/// Why an ssd does not have what it should.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// No record.
    #[error(
        "drive {serial} is not given to ssd \"{ssd}\"; `godwit drive give` or `godwit drive carve` does that"
    )]
    NotGiven {
        /// Whose.
        ssd: String,
        /// Which.
        serial: String,
    },
    /// Another drive, or another part of it.
    #[error("ssd \"{ssd}\" has {has}, not {wanted}; write that in the configuration, or take it back first")]
    Another {
        /// Whose.
        ssd: String,
        /// What it has.
        has: String,
        /// What it should have.
        wanted: String,
    },
    /// Begun and not ended.
    #[error("what ssd \"{ssd}\" has of drive {serial} is not ready ({step}); finish it with `{with}`")]
    NotReady {
        /// Whose.
        ssd: String,
        /// Which drive.
        serial: String,
        /// How far.
        step: &'static str,
        /// With what it goes on.
        with: String,
    },
    /// Not there now.
    #[error(
        "{what} of ssd \"{ssd}\" is not on this host: is the drive there? `godwit drive list` shows them"
    )]
    Gone {
        /// What.
        what: String,
        /// Whose.
        ssd: String,
    },
    /// Somebody uses it.
    #[error("{} is in use: {users}; stop that first", path.display())]
    InUse {
        /// The device.
        path: PathBuf,
        /// By whom.
        users: String,
    },
    /// It is another one by now.
    #[error("{0}; nothing was done")]
    Changed(String),
    /// The record.
    #[error("the record {}: {why}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The drive.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl Step {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Step::Planned | Step::Create => "to be made",
            Step::Attach => "to be attached",
            Step::Clean => "to be wiped before its first use",
            Step::Given => "given",
            Step::Empty => "to be wiped, the ssd has it no more",
            Step::Detach => "to be detached",
            Step::Delete => "to be deleted",
        }
    }

    /// On the way back to the drive.
    #[must_use]
    pub fn is_return(self) -> bool {
        matches!(self, Step::Empty | Step::Detach | Step::Delete)
    }
}

impl Grant {
    /// All of a drive, for an ssd. Whoever calls this holds the permission ([`crate::claim::Cleared`]). It is to be wiped first: a drive on which
    /// a look found nothing may still hold somebody's bytes between the places that were looked at.
    #[must_use]
    pub fn of_drive(ssd: &str, device: &Device) -> Grant {
        Grant {
            version: VERSION,
            ssd: ssd.to_owned(),
            serial: device.confirmation(),
            what: What::Drive,
            step: Step::Clean,
            nsid: device.nvme.as_ref().map(|nvme| nvme.nsid),
            size_bytes: device.size_bytes,
            shape: Shape::default(),
            others: Vec::new(),
            identity: None,
        }
    }

    /// A namespace that is to be made.
    #[must_use]
    pub fn of_namespace(ssd: &str, serial: &str, shape: Shape) -> Grant {
        Grant {
            version: VERSION,
            ssd: ssd.to_owned(),
            serial: serial.to_owned(),
            what: What::Namespace,
            step: Step::Planned,
            nsid: None,
            size_bytes: shape.bytes(),
            shape,
            others: Vec::new(),
            identity: None,
        }
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        match (self.what, self.nsid) {
            (What::Drive, _) => format!("drive {}", self.serial),
            (What::Namespace, Some(nsid)) => format!("namespace {nsid} of drive {}", self.serial),
            (What::Namespace, None) => format!("a namespace of drive {}", self.serial),
        }
    }

    /// Its block device, if it is there, the ssd's, and nobody uses it.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn device(&self, host: &Host) -> Result<Device, GrantError> {
        let gone = || GrantError::Gone { what: self.describe(), ssd: self.ssd.clone() };
        let mut found = match self.serial.starts_with('/') {
            true => host.find(Path::new(&self.serial)).into_iter().collect(),
            false => host.devices().map_err(|_| gone())?,
        };
        found.retain(|device| self.is_of(device));
        let [device] = found.as_slice() else { return Err(gone()) };
        if device.size_bytes != self.size_bytes {
            return Err(GrantError::Changed(format!(
                "{} has {} bytes, {} when it was given",
                self.describe(),
                device.size_bytes,
                self.size_bytes
            )));
        }
        if !device.users.is_empty() {
            let (path, users) = (device.path.clone(), device.users.join(", "));
            return Err(GrantError::InUse { path, users });
        }
        Ok(device.clone())
    }

    fn is_of(&self, device: &Device) -> bool {
        let nsid = device.nvme.as_ref().map(|nvme| nvme.nsid);
        let named = match (&self.identity, &device.nvme) {
            (Some(identity), Some(nvme)) => {
                let plain = |name: &String| name.chars().filter(char::is_ascii_hexdigit).collect::<String>();
                let mut names = [&nvme.nguid, &nvme.eui64].into_iter().flatten().map(plain).peekable();
                // A kernel that shows no such name cannot contradict it.
                names.peek().is_none() || names.any(|name| name.eq_ignore_ascii_case(identity))
            }
            _ => true,
        };
        let right_bus = self.what == What::Drive || device.bus == Bus::Nvme;
        device.confirmation() == self.serial && nsid == self.nsid && right_bus && named
    }
}

/// A folder of grants.
#[derive(Clone, Debug)]
pub struct Grants {
    folder: PathBuf,
}

impl Grants {
    /// Those in a folder, which is made when something is put there.
    #[must_use]
    pub fn new(folder: &Path) -> Grants {
        Grants { folder: folder.to_owned() }
    }

    fn path(&self, ssd: &str) -> Result<PathBuf, GrantError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = !ssd.is_empty() && ssd.len() <= 64 && !ssd.starts_with('.') && ssd.chars().all(fits);
        let path = self.folder.join(format!("{ssd}.json"));
        if is_name {
            Ok(path)
        } else {
            let why = format!("{ssd:?} is no ssd's name: 1 to 64 letters, digits, '-', '_' or '.'");
            Err(GrantError::Record { path: self.folder.clone(), why })
        }
    }

    /// What an ssd has.
    ///
    /// # Errors
    /// The record cannot be read, or makes no sense.
    pub fn load(&self, ssd: &str) -> Result<Option<Grant>, GrantError> {
        let path = self.path(ssd)?;
        let wrong = |why: String| GrantError::Record { path: path.clone(), why };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
        // The version is looked at first: a newer record may have other fields.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if head.version > VERSION {
            return Err(wrong(format!("version {}, this release reads up to {VERSION}", head.version)));
        }
        let grant: Grant = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if grant.ssd != ssd {
            return Err(wrong(format!("it is of ssd {:?}", grant.ssd)));
        }
        Ok(Some(grant))
    }

    /// All of them that can be read.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self) -> Result<Vec<Grant>, GrantError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(GrantError::Record { path: self.folder.clone(), why: error.to_string() });
            }
        };
        let mut grants = Vec::new();
        for entry in entries.flatten().take(RECORDS_MAX) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(ssd) = name.strip_suffix(".json") {
                grants.extend(self.load(ssd)?);
            }
        }
        grants.sort_by(|one, other| one.ssd.cmp(&other.ssd));
        Ok(grants)
    }

    /// Keeps a record: when this returns, it is there after a power loss.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn save(&self, grant: &Grant) -> Result<(), GrantError> {
        let path = self.path(&grant.ssd)?;
        let keep = || {
            fs::create_dir_all(&self.folder)?;
            crate::wipe::replace(&path, &serde_json::to_string_pretty(grant).map_err(io::Error::other)?)?;
            // The daemon reads it as a user of its own, and never writes it.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        };
        keep().map_err(|error| GrantError::Record { path: path.clone(), why: error.to_string() })
    }

    /// The ssd has nothing any more.
    ///
    /// # Errors
    /// The record cannot be removed.
    pub fn remove(&self, ssd: &str) -> Result<(), GrantError> {
        let path = self.path(ssd)?;
        let gone = fs::remove_file(&path).and_then(|()| File::open(&self.folder)?.sync_all());
        gone.map_err(|error| GrantError::Record { path, why: error.to_string() })
    }

    /// The ssds that have something of a drive.
    ///
    /// # Errors
    /// As [`Grants::all`].
    pub fn of_drive(&self, serial: &str) -> Result<Vec<Grant>, GrantError> {
        Ok(self.all()?.into_iter().filter(|grant| grant.serial == serial).collect())
    }

    /// What an engine serves an ssd from: the device that the ssd was given, if that is what the configuration says.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn served(&self, host: &Host, ssd: &str, serial: &str, what: What) -> Result<Device, GrantError> {
        let not_given = || GrantError::NotGiven { ssd: ssd.to_owned(), serial: serial.to_owned() };
        let grant = self.load(ssd)?.ok_or_else(not_given)?;
        if grant.serial != serial || grant.what != what {
            let part = if what == What::Drive { "drive" } else { "a namespace of drive" };
            let (has, wanted) = (grant.describe(), format!("{part} {serial}"));
            return Err(GrantError::Another { ssd: ssd.to_owned(), has, wanted });
        }
        if grant.step != Step::Given {
            let (ssd, serial, step) = (grant.ssd.clone(), grant.serial.clone(), grant.step.name());
            let with = match grant.step.is_return() {
                true => format!("godwit drive take-back {ssd}"),
                false => format!("godwit drive carve {serial} {ssd}"),
            };
            return Err(GrantError::NotReady { ssd, serial, step, with });
        }
        grant.device(host)
    }
}
