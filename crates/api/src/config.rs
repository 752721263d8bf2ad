//! `godwit.toml`: what `godwitd` serves. See `docs/guide/configuration.md`.

mod limits;
mod management;
mod migration;
mod profile;

pub use limits::{Limits, Rate, WEIGHT_DEFAULT};
pub use management::MANAGEMENT_PROFILE;
pub use migration::Migration;
pub use profile::{PROFILE_DEFAULT, PROFILES, profiles};

use crate::identity::{Identity, serial_of_name, uuid_of_text};
use crate::size::Size;
use limits::RawLimits;
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;

/// Most ssds of one daemon.
pub const SSDS_MAX: usize = 1024;
/// How a hypervisor calls an ssd's device, and its block node: this, and the ssd's name. A guest that moves is known by it.
pub const DEVICE_PREFIX: &str = "godwit-";
/// Most reactors.
pub const REACTORS_MAX: usize = 64;
/// Longest name of a volume.
const VOLUME_BYTES_MAX: usize = 128;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the engine runs.
    pub engine: Engine,
    /// What it serves; names, sockets and state files are distinct. A management controller comes last, with a profile of its own.
    pub ssds: Vec<Ssd>,
    /// Drives that carry a pool each; names and paths are distinct.
    pub pools: Vec<Pool>,
    /// Where the daemon listens for `godwit`. `None`: at [`crate::control::DEFAULT_SOCKET`], if it can.
    pub control: Option<PathBuf>,
    /// How ssds move to and from other hosts. `None`: they do not.
    pub migration: Option<Migration>,
}

/// How the engine runs.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Polling threads, 1 to [`REACTORS_MAX`].
    pub reactors: usize,
    /// The CPU of each reactor; empty = not pinned.
    pub cpus: Vec<usize>,
    /// How long a reactor spins without work before it sleeps, µs.
    pub spin_us: u32,
    /// Longest sleep between two looks at the doorbells of an idle guest, µs.
    pub idle_us: u32,
    /// Drives and reactors that several ssds use are shared by weight.
    pub isolation: bool,
}

/// One virtual SSD.
#[derive(Clone, Debug)]
pub struct Ssd {
    /// Its name: letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// Capacity, a multiple of 1 MiB. `None`: that of the existing file or device.
    pub size_bytes: Option<u64>,
    /// Where its guests find it.
    pub socket: PathBuf,
    /// What is spoken there.
    pub door: Door,
    /// Where its state outlives the daemon. `None` keeps it in memory only.
    pub state: Option<PathBuf>,
    /// Where the journal of its migrations lies. `None`: in its pool, or it cannot be moved.
    pub journal: Option<PathBuf>,
    /// It comes from another host: until a journal says that it is owned here it is not served.
    pub incoming: bool,
    /// What is here and nowhere else, though the ssd is at another host, is not replaced by one that comes, whatever `incoming` says.
    pub spared: bool,
    /// Where the QEMU that its guest comes to (`-S -incoming defer`) is told what to do, by QMP. `None`: it comes without its guest.
    pub hypervisor: Option<PathBuf>,
    /// Where its data lives.
    pub backend: Backend,
    /// Where the key of its data comes from. `None`: its data lies there in the clear.
    pub key: Option<KeySource>,
    /// Block size of its first namespace: 512 or 4096.
    pub lba_bytes: u32,
    /// The device model's profile.
    pub profile: String,
    /// What it is called by a management controller, which manages it then.
    pub controller_id: Option<u16>,
    /// What names it to the guest.
    pub identity: Identity,
    /// How much it may do.
    pub limits: Limits,
    /// `[ssd.limits]` is written, and holds whatever limits it comes from another host with.
    pub limits_written: bool,
    /// It shares by weight ([`Engine::isolation`]).
    pub isolated: bool,
}

/// Where the key of an ssd's data comes from. It is read when the ssd is powered on, and not again while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file with 64 bytes, or their 128 hexadecimal digits.
    File(PathBuf),
    /// A program that prints them, and its arguments.
    Command(PathBuf, Vec<String>),
}

/// A drive with Godwit's layout on it, in which ssds have their data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name: letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// The file or block device.
    pub path: PathBuf,
    /// For a file: it is made with this size, and the pool in it, where there is nothing yet.
    pub size_bytes: Option<u64>,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
}

/// What is spoken at an ssd's socket, and thereby what the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// vfio-user: an NVMe controller (`socket`).
    VfioUser,
    /// vhost-user: a virtio-blk disk, all of the drive (`vhost_socket`).
    VhostUser,
}

/// Where an ssd's data lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A file or block device through io_uring.
    Uring {
        /// The file or device. A file is made and extended as needed.
        path: PathBuf,
        /// Bypass the page cache (O_DIRECT).
        direct: bool,
        /// Register guest memory with the kernel. `None`: the backend's default.
        register_buffers: Option<bool>,
    },
    /// Extents of a pool. The ssd is made there when the pool does not have it yet.
    Pool {
        /// The pool's name.
        pool: String,
        /// Extents are given when they are first written, and given back when they are discarded. Else all are the ssd's from the
        /// start.
        thin: bool,
        /// What its volume is called in the pool. `None`: as the ssd.
        volume: Option<String>,
    },
    /// A whole drive, or a namespace that was made for the ssd: what `godwit drive give` or `godwit drive carve` gave it.
    Drive {
        /// The drive's serial number.
        serial: String,
        /// A namespace of it, not all of it.
        namespace: bool,
        /// The folder of what was given to whom. `None`: where it usually is.
        grants: Option<PathBuf>,
    },
    /// Memory of the daemon; gone when it stops.
    Ram,
    /// Nothing: writes are dropped, reads leave memory as it is. For measuring.
    Null,
}

impl Ssd {
    /// What its volume in a pool is called.
    #[must_use]
    pub fn volume(&self) -> &str {
        match &self.backend {
            Backend::Pool { volume: Some(volume), .. } => volume,
            _ => &self.name,
        }
    }

    /// The limits that are written for it. `None`: it has those that it came from another host with, if any.
    #[must_use]
    pub fn own_limits(&self) -> Option<Limits> {
        self.limits_written.then_some(self.limits)
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] with place, reason and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.to_owned(),
            place: None,
            reason: format!("cannot be read: {error}"),
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// [`ConfigError`] with place, reason and remedy.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let error = |span: Option<Range<usize>>, reason: String| ConfigError {
            file: path.to_owned(),
            place: span.map(|span| Place::new(text, &span)),
            reason,
        };
        let raw: RawConfig = toml::from_str(text)
            .map_err(|e| error(e.span(), e.message().trim_end_matches('.').to_owned()))?;
        check(raw).map_err(|Wrong { span, reason }| error(Some(span), reason))
    }

    /// The ssd of that name.
    #[must_use]
    pub fn ssd(&self, name: &str) -> Option<&Ssd> {
        self.ssds.iter().find(|ssd| ssd.name == name)
    }
}

/// A configuration that was refused.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    file: PathBuf,
    place: Option<Place>,
    reason: String,
}

#[derive(Debug)]
struct Place {
    line: usize,
    column: usize,
    source: String,
    marked: usize,
}

impl Place {
    fn new(text: &str, span: &Range<usize>) -> Self {
        let start = span.start.min(text.len());
        let before = text.get(..start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let source: String = text.get(line_start..).unwrap_or("").lines().next().unwrap_or("").to_owned();
        let column = before.len() - line_start + 1;
        let marked = span.len().min((source.len() + 1).saturating_sub(column)).max(1);
        Self { line: before.matches('\n').count() + 1, column, source, marked }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        let Some(place) = &self.place else { return write!(f, "{file}: {}", self.reason) };
        writeln!(f, "{file}:{}:{}: {}", place.line, place.column, self.reason)?;
        let number = place.line.to_string();
        writeln!(f, " {number} | {}", place.source)?;
        write!(
            f,
            " {:w$} | {:c$}{}",
            "",
            "",
            "^".repeat(place.marked),
            w = number.len(),
            c = place.column - 1
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    engine: RawEngine,
    #[serde(default)]
    ssd: Vec<Spanned<RawSsd>>,
    #[serde(default)]
    pool: Vec<RawPool>,
    control: Option<Spanned<PathBuf>>,
    migration: Option<migration::RawMigration>,
    management: Option<Spanned<management::RawManagement>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawEngine {
    reactors: Option<Spanned<usize>>,
    cpus: Option<Spanned<Vec<usize>>>,
    spin_us: Option<Spanned<u32>>,
    idle_us: Option<Spanned<u32>>,
    isolation: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPool {
    name: Spanned<String>,
    path: Spanned<PathBuf>,
    size: Option<Spanned<String>>,
    direct: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSsd {
    name: Spanned<String>,
    size: Option<Spanned<String>>,
    socket: Option<Spanned<PathBuf>>,
    vhost_socket: Option<Spanned<PathBuf>>,
    state: Option<Spanned<PathBuf>>,
    journal: Option<Spanned<PathBuf>>,
    incoming: Option<Spanned<bool>>,
    #[serde(default)]
    spared: bool,
    hypervisor: Option<PathBuf>,
    backend: Spanned<RawBackend>,
    lba: Option<Spanned<u32>>,
    profile: Option<Spanned<String>>,
    controller_id: Option<Spanned<u16>>,
    serial: Option<Spanned<String>>,
    nqn: Option<Spanned<String>>,
    uuid: Option<Spanned<String>>,
    encryption: Option<Spanned<RawEncryption>>,
    limits: Option<RawLimits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEncryption {
    key_file: Option<PathBuf>,
    key_command: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBackend {
    r#type: Spanned<String>,
    path: Option<Spanned<PathBuf>>,
    direct: Option<Spanned<bool>>,
    register_buffers: Option<Spanned<bool>>,
    pool: Option<Spanned<String>>,
    thin: Option<Spanned<bool>>,
    serial: Option<Spanned<String>>,
    grants: Option<Spanned<PathBuf>>,
    volume: Option<Spanned<String>>,
}

struct Wrong {
    span: Range<usize>,
    reason: String,
}

fn wrong<T>(at: &Spanned<T>, reason: impl Into<String>) -> Wrong {
    Wrong { span: at.span(), reason: reason.into() }
}

fn check(raw: RawConfig) -> Result<Config, Wrong> {
    let engine = check_engine(&raw.engine)?;
    if raw.ssd.len() > SSDS_MAX {
        return Err(wrong(
            &raw.ssd[SSDS_MAX],
            format!("more than {SSDS_MAX} ssds; run a second daemon for these"),
        ));
    }
    let ssd = |ssd: &Spanned<RawSsd>| check_ssd(ssd.get_ref(), engine.isolation);
    let mut ssds = raw.ssd.iter().map(ssd).collect::<Result<Vec<_>, _>>()?;
    check_distinct(&raw.ssd, &ssds)?;
    let ids: Vec<_> = raw.ssd.iter().map(|ssd| ssd.get_ref().controller_id.as_ref()).collect();
    management::check_controller_ids(&ids, &ssds)?;
    let pools = check_pools(&raw, &ssds)?;
    if let Some(management) = &raw.management {
        ssds.push(management::check(management, &ssds)?);
    }
    let control = raw.control.as_ref().map(|path| check_control(path, &ssds)).transpose()?;
    let migration = raw.migration.map(migration::check).transpose()?;
    Ok(Config { engine, ssds, pools, control, migration })
}

/// Pools are distinct from one another and from the ssds' files, and each that an ssd names is there.
fn check_pools(raw: &RawConfig, ssds: &[Ssd]) -> Result<Vec<Pool>, Wrong> {
    let mut pools: Vec<Pool> = Vec::new();
    for raw in &raw.pool {
        let name = check_name(&raw.name)?;
        let path = raw.path.get_ref().clone();
        let size_bytes = raw.size.as_ref().map(size_of).transpose()?;
        if let Some(other) = pools.iter().find(|other| other.name == name) {
            return Err(wrong(&raw.name, format!("a second pool `{}`; give each its own name", other.name)));
        }
        let own = plain(&path);
        let taken = pools.iter().find(|other| plain(&other.path) == own).map(|other| &other.name);
        let used =
            ssds.iter().find(|ssd| files(ssd).any(|(_, file)| plain(file) == own)).map(|ssd| &ssd.name);
        if let Some(user) = taken.or(used) {
            return Err(wrong(
                &raw.path,
                format!("`{user}` uses this already; a pool has a drive of its own"),
            ));
        }
        pools.push(Pool { name, path, size_bytes, direct: raw.direct.unwrap_or(true) });
    }
    let mut volumes = HashMap::new();
    for (raw, ssd) in raw.ssd.iter().zip(ssds) {
        let Backend::Pool { pool, .. } = &ssd.backend else { continue };
        if let Some(other) = volumes.insert((pool, ssd.volume()), &ssd.name) {
            let reason = format!("`{other}` has this volume of pool `{pool}` already; give each its own");
            return Err(wrong(&raw.get_ref().backend, reason));
        }
        if !pools.iter().any(|there| there.name == *pool) {
            let reason =
                format!("there is no pool `{pool}`; add [[pool]] with this name and the drive's path");
            return Err(wrong(&raw.get_ref().backend, reason));
        }
    }
    Ok(pools)
}

fn check_control(raw: &Spanned<PathBuf>, ssds: &[Ssd]) -> Result<PathBuf, Wrong> {
    let path = raw.get_ref();
    if path.as_os_str().is_empty() || path.as_os_str().len() > 107 {
        return Err(wrong(raw, "a unix socket's path has 1 to 107 bytes; use a shorter directory"));
    }
    let own = plain(path);
    for ssd in ssds {
        if let Some((what, _)) = files(ssd).find(|(_, file)| plain(file) == own) {
            let reason =
                format!("this is the {what} of ssd \"{}\"; give the daemon a socket of its own", ssd.name);
            return Err(wrong(raw, reason));
        }
    }
    Ok(path.clone())
}

fn check_engine(raw: &RawEngine) -> Result<Engine, Wrong> {
    let cpus = raw.cpus.as_ref().map_or(Vec::new(), |cpus| cpus.get_ref().clone());
    let reactors = raw.reactors.as_ref().map_or(cpus.len().max(1), |reactors| *reactors.get_ref());
    if let Some(at) = raw.reactors.as_ref().filter(|_| reactors == 0 || reactors > REACTORS_MAX) {
        return Err(wrong(
            at,
            format!("reactors must be 1 to {REACTORS_MAX}: one for each CPU given to storage"),
        ));
    }
    if let Some(at) = raw.cpus.as_ref().filter(|_| !cpus.is_empty() && cpus.len() != reactors) {
        let reason = format!("{} cpus for {reactors} reactors; name one CPU for each reactor", cpus.len());
        return Err(wrong(at, reason));
    }
    if let Some(at) = raw.cpus.as_ref().filter(|_| cpus.iter().any(|&cpu| cpu >= 1024)) {
        return Err(wrong(at, "a CPU number must be below 1024"));
    }
    if let Some(at) = raw.idle_us.as_ref().filter(|us| !(10..=900).contains(us.get_ref())) {
        return Err(wrong(
            at,
            "idle_us must be 10 to 900: an idle guest's first I/O waits this long at most",
        ));
    }
    if let Some(at) = raw.spin_us.as_ref().filter(|us| *us.get_ref() > 1_000_000) {
        return Err(wrong(at, "spin_us must be at most 1000000 (one second)"));
    }
    Ok(Engine {
        reactors,
        cpus,
        spin_us: raw.spin_us.as_ref().map_or(50, |us| *us.get_ref()),
        idle_us: raw.idle_us.as_ref().map_or(900, |us| *us.get_ref()),
        isolation: raw.isolation.unwrap_or(true),
    })
}

fn check_name(raw: &Spanned<String>) -> Result<String, Wrong> {
    let name = raw.get_ref().clone();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) || name.starts_with('.') {
        let reason = "a name is 1 to 64 letters, digits, '-', '_' or '.', and does not begin with '.'";
        return Err(wrong(raw, reason));
    }
    Ok(name)
}

fn check_ssd(raw: &RawSsd, isolated: bool) -> Result<Ssd, Wrong> {
    let name = check_name(&raw.name)?;
    let (door, socket) = check_door(raw)?;
    let lba_bytes = raw.lba.as_ref().map_or(512, |lba| *lba.get_ref());
    if let Some(at) = raw.lba.as_ref().filter(|_| !matches!(lba_bytes, 512 | 4096)) {
        return Err(wrong(at, "lba must be 512 or 4096"));
    }
    let profile = profile::check(raw.profile.as_ref())?;
    let backend = check_backend(raw.backend.get_ref())?;
    Ok(Ssd {
        size_bytes: check_size(raw, &backend)?,
        socket: socket.get_ref().clone(),
        door,
        state: raw.state.as_ref().map(|state| state.get_ref().clone()),
        incoming: raw.incoming.as_ref().is_some_and(|incoming| *incoming.get_ref()),
        spared: raw.spared,
        hypervisor: raw.hypervisor.clone(),
        journal: check_journal(raw, &backend)?,
        identity: check_identity(raw, &name)?,
        key: check_encryption(raw, &backend)?,
        name,
        backend,
        lba_bytes,
        profile,
        controller_id: raw.controller_id.as_ref().map(|id| *id.get_ref()),
        limits: limits::check(raw.limits.as_ref())?,
        limits_written: raw.limits.is_some(),
        isolated,
    })
}

/// Beside the state, unless another place is written. A pool keeps the journals of its volumes itself.
fn check_journal(raw: &RawSsd, backend: &Backend) -> Result<Option<PathBuf>, Wrong> {
    let is_pooled = matches!(backend, Backend::Pool { .. });
    let journal = match (&raw.journal, &raw.state) {
        (Some(journal), _) if is_pooled => {
            let reason = "an ssd of a pool has the journal of its migrations there; leave `journal` out";
            return Err(wrong(journal, reason));
        }
        (Some(journal), _) => Some(journal.get_ref().clone()),
        (None, Some(state)) if !is_pooled => {
            let mut path = state.get_ref().clone().into_os_string();
            path.push(".migration");
            Some(path.into())
        }
        (None, _) => None,
    };
    if let Some(incoming) = raw.incoming.as_ref().filter(|_| journal.is_none() && !is_pooled) {
        let reason = "an ssd that comes from another host needs a place for the journal of that: add \
                      `journal = \"/var/lib/godwit/NAME.migration\"`";
        return Err(wrong(incoming, reason));
    }
    Ok(journal)
}

/// One door each: NVMe's namespaces and marks say what blocks hold, and a disk beside them would change it unseen.
fn check_door(raw: &RawSsd) -> Result<(Door, &Spanned<PathBuf>), Wrong> {
    let (door, socket) = match (&raw.socket, &raw.vhost_socket) {
        (Some(socket), None) => (Door::VfioUser, socket),
        (None, Some(socket)) => (Door::VhostUser, socket),
        (Some(_), Some(second)) => {
            let reason =
                "an ssd is either NVMe (`socket`) or virtio-blk (`vhost_socket`); leave one of them out";
            return Err(wrong(second, reason));
        }
        (None, None) => {
            let reason = "an ssd needs a socket: socket = \"/run/godwit/NAME.sock\" for NVMe over vfio-user, or \
                          vhost_socket = \"/run/godwit/NAME.vhost\" for virtio-blk over vhost-user";
            return Err(wrong(&raw.name, reason));
        }
    };
    if socket.get_ref().as_os_str().len() > 107 || socket.get_ref().as_os_str().is_empty() {
        return Err(wrong(socket, "a unix socket's path has 1 to 107 bytes; use a shorter directory"));
    }
    let only_nvme = [
        ("state", raw.state.as_ref().map(Spanned::span)),
        ("lba", raw.lba.as_ref().map(Spanned::span)),
        ("profile", raw.profile.as_ref().map(Spanned::span)),
        ("nqn", raw.nqn.as_ref().map(Spanned::span)),
        ("uuid", raw.uuid.as_ref().map(Spanned::span)),
    ];
    for (field, span) in only_nvme {
        if let Some(span) = span.filter(|_| door == Door::VhostUser) {
            let reason = format!(
                "`{field}` is NVMe's and goes with `socket`; leave it out: a virtio-blk disk has none"
            );
            return Err(Wrong { span, reason });
        }
    }
    Ok((door, socket))
}

fn check_size(raw: &RawSsd, backend: &Backend) -> Result<Option<u64>, Wrong> {
    let Some(size) = &raw.size else {
        return match backend {
            Backend::Uring { .. } | Backend::Drive { .. } => Ok(None),
            _ => Err(wrong(
                &raw.backend,
                "this backend has no size of its own; add size = \"4GiB\" to the ssd",
            )),
        };
    };
    size_of(size).map(Some)
}

fn size_of(size: &Spanned<String>) -> Result<u64, Wrong> {
    let bytes = Size::from_str(size.get_ref()).map_err(|reason| wrong(size, reason))?.bytes;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
        return Err(wrong(size, "size must be a multiple of 1MiB and not 0"));
    }
    if bytes > 1 << 50 {
        return Err(wrong(size, "size must be at most 1024TiB"));
    }
    Ok(bytes)
}

fn check_encryption(raw: &RawSsd, backend: &Backend) -> Result<Option<KeySource>, Wrong> {
    let Some(at) = &raw.encryption else { return Ok(None) };
    if let Backend::Null = backend {
        return Err(wrong(at, "a null backend keeps no data to encrypt; leave `encryption` out"));
    }
    let hint = "encryption needs a key of 64 bytes from one place: key_file = \"/etc/godwit/keys/NAME\" or \
                key_command = [\"/usr/bin/program\", \"argument\"]";
    let source = match (&at.get_ref().key_file, at.get_ref().key_command.as_deref()) {
        (Some(file), None) => KeySource::File(file.clone()),
        (None, Some([program, arguments @ ..])) => KeySource::Command(program.into(), arguments.to_vec()),
        _ => return Err(wrong(at, hint)),
    };
    let (KeySource::File(path) | KeySource::Command(path, _)) = &source;
    if !path.is_absolute() {
        return Err(wrong(at, "the daemon may start anywhere: write the key's path from / on"));
    }
    Ok(Some(source))
}

fn check_backend(raw: &RawBackend) -> Result<Backend, Wrong> {
    let kind = raw.r#type.get_ref().as_str();
    let fields = [
        ("path", raw.path.as_ref().map(Spanned::span), &["uring"][..]),
        ("direct", raw.direct.as_ref().map(Spanned::span), &["uring"]),
        ("register_buffers", raw.register_buffers.as_ref().map(Spanned::span), &["uring"]),
        ("pool", raw.pool.as_ref().map(Spanned::span), &["pool"]),
        ("thin", raw.thin.as_ref().map(Spanned::span), &["pool"]),
        ("volume", raw.volume.as_ref().map(Spanned::span), &["pool"]),
        ("serial", raw.serial.as_ref().map(Spanned::span), &["drive", "namespace"]),
        ("grants", raw.grants.as_ref().map(Spanned::span), &["drive", "namespace"]),
    ];
    let backend = match kind {
        "uring" => {
            let hint = "a uring backend needs a path: path = \"/srv/disk.img\" or \"/dev/nvme0n1\"";
            let path = raw.path.as_ref().ok_or_else(|| wrong(&raw.r#type, hint))?;
            Backend::Uring {
                path: path.get_ref().clone(),
                direct: raw.direct.as_ref().is_none_or(|direct| *direct.get_ref()),
                register_buffers: raw.register_buffers.as_ref().map(|register| *register.get_ref()),
            }
        }
        "pool" => {
            let hint = "a pool backend needs a pool: pool = \"NAME\" of a [[pool]]";
            let pool = raw.pool.as_ref().ok_or_else(|| wrong(&raw.r#type, hint))?.get_ref().clone();
            let volume = raw.volume.as_ref().map(check_volume).transpose()?;
            Backend::Pool { pool, thin: raw.thin.as_ref().is_some_and(|thin| *thin.get_ref()), volume }
        }
        "drive" | "namespace" => {
            let hint = "this backend needs a drive: serial = \"S4EWNX0R\", as `godwit drive list` shows it";
            let serial = raw.serial.as_ref().ok_or_else(|| wrong(&raw.r#type, hint))?.get_ref().clone();
            let grants = raw.grants.as_ref().map(|folder| folder.get_ref().clone());
            Backend::Drive { serial, namespace: kind == "namespace", grants }
        }
        "ram" => Backend::Ram,
        "null" => Backend::Null,
        other => {
            let reason = format!(
                "`{other}` is no backend; write \"uring\", \"pool\", \"drive\", \"namespace\", \"ram\" or \"null\""
            );
            return Err(wrong(&raw.r#type, reason));
        }
    };
    for (field, span, owners) in fields {
        if let Some(span) = span.filter(|_| !owners.contains(&kind)) {
            let owners = owners.join("\" or \"");
            let reason = format!("`{field}` goes with type = \"{owners}\" only; leave it out");
            return Err(Wrong { span, reason });
        }
    }
    Ok(backend)
}

/// As a volume may be called: longer than an ssd's name, so that it can have an identity in it.
fn check_volume(raw: &Spanned<String>) -> Result<String, Wrong> {
    let text = raw.get_ref();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !text.is_empty() && text.len() <= VOLUME_BYTES_MAX && text.chars().all(fits) {
        true => Ok(text.clone()),
        false => {
            Err(wrong(raw, format!("a volume's name is 1 to {VOLUME_BYTES_MAX} letters, digits, - _ .")))
        }
    }
}

fn check_identity(raw: &RawSsd, name: &str) -> Result<Identity, Wrong> {
    let mut identity = Identity { serial: serial_of_name(name), nqn: None, uuid: None };
    if let Some(uuid) = &raw.uuid {
        let hint = "a uuid looks like \"1b4e28ba-2fa1-11d2-883f-0016d3cca427\"";
        let nonzero = uuid_of_text(uuid.get_ref()).filter(|uuid| *uuid != [0; 16]);
        identity.uuid = Some(nonzero.ok_or_else(|| wrong(uuid, hint))?);
    }
    if let Some(serial) = &raw.serial {
        let text = serial.get_ref();
        if text.is_empty()
            || text.len() > 20
            || text.trim() != text
            || !text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
        {
            return Err(wrong(
                serial,
                "a serial is 1 to 20 printable ASCII characters, without space at its ends",
            ));
        }
        identity.serial.clone_from(text);
    }
    if let Some(nqn) = &raw.nqn {
        let text = nqn.get_ref();
        if !text.starts_with("nqn.")
            || text.len() > 223
            || text.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let hint = "an NQN begins with \"nqn.\" and has at most 223 bytes: \"nqn.2014-08.org.nvmexpress:uuid:...\"";
            return Err(wrong(nqn, hint));
        }
        identity.nqn = Some(text.clone());
    }
    Ok(identity)
}

/// The files of an ssd, and what each is.
pub(crate) fn files(ssd: &Ssd) -> impl Iterator<Item = (&'static str, &Path)> {
    let backend = match &ssd.backend {
        Backend::Uring { path, .. } => Some(path.as_path()),
        Backend::Pool { .. } | Backend::Drive { .. } | Backend::Ram | Backend::Null => None,
    };
    let (state, journal) = (ssd.state.as_deref(), ssd.journal.as_deref());
    [
        ("socket", Some(ssd.socket.as_path())),
        ("state file", state),
        ("journal", journal),
        ("backend", backend),
    ]
    .into_iter()
    .filter_map(|(what, path)| Some((what, path?)))
}

/// A path as it is compared with others: from the root, without `.`, `..` and doubled slashes. Links are not followed: the
/// locks of drives and sockets see what they lead to.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain
}

/// Two ssds that share a name, a socket, a state file or a backend would destroy each other; two that share what names them to a
/// guest would be one to it.
fn check_distinct(raw: &[Spanned<RawSsd>], ssds: &[Ssd]) -> Result<(), Wrong> {
    let mut seen: HashMap<(&str, String), &str> = HashMap::new();
    for (ssd, raw) in ssds.iter().zip(raw) {
        let raw = raw.get_ref();
        let mut claims = vec![("name", ssd.name.clone(), raw.name.span())];
        for (what, file) in files(ssd) {
            let at = match what {
                "socket" => raw.socket.as_ref().or(raw.vhost_socket.as_ref()).map(Spanned::span),
                "state file" => raw.state.as_ref().map(Spanned::span),
                "journal" => raw.journal.as_ref().or(raw.state.as_ref()).map(Spanned::span),
                _ => Some(raw.backend.span()),
            };
            claims.push(("file", plain(file).display().to_string(), at.unwrap_or(raw.name.span())));
        }
        claims.push(("serial", ssd.identity.serial.clone(), raw.serial.as_ref().unwrap_or(&raw.name).span()));
        if let (Some(uuid), Some(at)) = (&raw.uuid, &ssd.identity.uuid) {
            claims.push(("uuid", format!("{:032x}", u128::from_be_bytes(*at)), uuid.span()));
        }
        if let Some(nqn) = &raw.nqn {
            claims.push(("nqn", nqn.get_ref().clone(), nqn.span()));
        }
        for (what, value, span) in claims {
            let reason = format!("the {what} `{value}` is used twice; give each ssd its own");
            if seen.insert((what, value), &ssd.name).is_some() {
                return Err(Wrong { span, reason });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[engine]
reactors = 2
cpus = [0, 1]

[[ssd]]
name = "demo"
size = "4GiB"
socket = "/run/godwit/demo.sock"
state = "/var/lib/godwit/demo.state"
backend = { type = "uring", path = "/srv/demo.img" }

[[ssd]]
name = "scratch"
size = "64MiB"
lba = 4096
serial = "S1"
socket = "/run/godwit/scratch.sock"
backend = { type = "ram" }
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("godwit.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_read() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.engine.reactors, 2);
        assert_eq!(config.ssd("demo").unwrap().size_bytes, Some(4 << 30));
        assert_eq!(config.ssd("scratch").unwrap().lba_bytes, 4096);
        assert_eq!(config.ssd("scratch").unwrap().identity.serial, "S1");
        assert!(config.ssd("other").is_none());
    }

    #[test]
    fn an_ssd_that_may_be_moved_has_a_journal_and_one_that_is_to_come_needs_it() {
        let journal = |text: &str, name: &str| {
            let ssd = parse(text)?.ssd(name).unwrap().clone();
            Ok::<_, String>((ssd.journal.map(|path| path.display().to_string()), ssd.incoming))
        };
        let beside = Some("/var/lib/godwit/demo.state.migration".to_owned());
        assert_eq!(journal(GOOD, "demo").unwrap(), (beside.clone(), false));
        assert_eq!(journal(GOOD, "scratch").unwrap(), (None, false));
        assert_eq!(
            journal(&GOOD.replace("state =", "incoming = true\nstate ="), "demo").unwrap(),
            (beside, true)
        );
        let scratch = |more: &str| format!("{}{more}\n", GOOD.trim_start());
        assert!(journal(&scratch("incoming = true"), "scratch").unwrap_err().contains("add `journal ="));
        let own = journal(&scratch("incoming = true\njournal = \"/j\""), "scratch").unwrap();
        assert_eq!(own, (Some("/j".to_owned()), true));
        let taken = scratch("journal = \"/var/lib/godwit/demo.state.migration\"");
        assert!(journal(&taken, "scratch").unwrap_err().contains("used twice"));
        let pooled = GOOD.replace("{ type = \"ram\" }", "{ type = \"pool\", pool = \"p\" }");
        let pool = "\n[[pool]]\nname = \"p\"\npath = \"/dev/p\"\n";
        let comes = format!("{pooled}incoming = true{pool}");
        assert_eq!(journal(&comes, "scratch").unwrap(), (None, true));
        let both = format!("{pooled}journal = \"/j\"{pool}");
        assert!(journal(&both, "scratch").unwrap_err().contains("leave `journal` out"));
    }

    #[test]
    fn an_ssd_with_a_vhost_user_socket_is_a_virtio_disk() {
        let text = GOOD
            .replace("lba = 4096", "")
            .replace("socket = \"/run/godwit/scratch.sock\"", "vhost_socket = \"/run/godwit/scratch.vhost\"");
        let config = parse(&text).unwrap();
        let scratch = config.ssd("scratch").unwrap();
        assert_eq!(
            (scratch.door, scratch.socket.to_str()),
            (Door::VhostUser, Some("/run/godwit/scratch.vhost"))
        );
        assert_eq!(config.ssd("demo").unwrap().door, Door::VfioUser);
        let same = text.replace("scratch.vhost", "demo.sock");
        assert!(parse(&same).unwrap_err().contains("used twice"));
    }

    #[test]
    fn an_ssd_on_a_whole_drive_or_a_namespace_names_it_by_its_serial_number() {
        let of = |backend: &str| {
            parse(&GOOD.replace("{ type = \"ram\" }", backend).replace("size = \"64MiB\"\n", ""))
        };
        let config = of("{ type = \"namespace\", serial = \"S1\" }").unwrap();
        let scratch = config.ssd("scratch").unwrap();
        assert_eq!(scratch.size_bytes, None, "it is as large as what it was given");
        assert!(matches!(&scratch.backend, Backend::Drive { serial, namespace: true, .. } if serial == "S1"));
        let config = of("{ type = \"drive\", serial = \"S1\", grants = \"/srv/grants\" }").unwrap();
        assert!(matches!(config.ssd("scratch").unwrap().backend, Backend::Drive { namespace: false, .. }));
        assert!(of("{ type = \"drive\" }").unwrap_err().contains("serial = "));
        assert!(
            of("{ type = \"drive\", serial = \"S1\", thin = true }").unwrap_err().contains("\"pool\" only")
        );
        let strange = of("{ type = \"uring\", path = \"/x\", serial = \"S1\" }").unwrap_err();
        assert!(strange.contains("\"drive\" or \"namespace\" only"), "{strange}");
    }

    #[test]
    fn an_ssd_in_a_pool_names_one_that_is_there() {
        let pool = "[[pool]]\nname = \"p\"\npath = \"/dev/nvme0n1\"\n";
        let ssd = GOOD.replace("{ type = \"ram\" }", "{ type = \"pool\", pool = \"p\", thin = true }");
        let config = parse(&format!("{ssd}{pool}")).unwrap();
        assert!(
            matches!(&config.ssd("scratch").unwrap().backend, Backend::Pool { pool, thin: true, volume: None } if pool == "p")
        );
        assert_eq!((config.pools.len(), config.pools[0].direct), (1, true));
        assert_eq!(config.ssd("scratch").unwrap().volume(), "scratch");
        let named = ssd.replace("thin = true", "volume = \"v.1\"");
        assert_eq!(parse(&format!("{named}{pool}")).unwrap().ssd("scratch").unwrap().volume(), "v.1");
        assert!(
            parse(&format!("{}{pool}", named.replace("v.1", "a/b"))).unwrap_err().contains("a volume's name")
        );
        let one = |name: &str| {
            format!(
                "[[ssd]]\nname = \"{name}\"\nsize = \"1MiB\"\nsocket = \"/{name}\"\n\
                 backend = {{ type = \"pool\", pool = \"p\", volume = \"v\" }}\n"
            )
        };
        let refused = parse(&format!("{}{}{pool}", one("a"), one("b"))).unwrap_err();
        assert!(refused.contains("`a` has this volume of pool `p` already"), "{refused}");
        assert!(parse(&ssd).unwrap_err().contains("no pool `p`; add [[pool]]"));
        assert!(parse(&format!("{ssd}{pool}{pool}")).unwrap_err().contains("a second pool `p`"));
        let own = pool.replace("/dev/nvme0n1", "/srv/../srv/demo.img");
        assert!(parse(&format!("{ssd}{own}")).unwrap_err().contains("`demo` uses this already"));
        let thin = GOOD.replace("type = \"ram\"", "type = \"ram\", thin = true");
        assert!(parse(&thin).unwrap_err().contains("goes with type = \"pool\" only"));
    }

    #[test]
    fn an_error_names_line_column_and_what_to_write() {
        let error = parse(&GOOD.replace("\"4GiB\"", "\"4 potatoes\"")).unwrap_err();
        assert!(error.starts_with("godwit.toml:8:8: "), "{error}");
        assert!(error.contains("such as \"4GiB\""), "{error}");
        assert!(error.ends_with("^^^^^^^^^^^^"), "{error}");
    }

    #[test]
    fn a_file_that_is_named_twice_is_refused_however_it_is_spelled() {
        for twice in [
            "/run/godwit/demo.sock",
            "/run//godwit/./demo.sock",
            "/run/godwit/../godwit/demo.sock",
            "/../srv/demo.img",
            "/var/lib/godwit/x/../demo.state",
        ] {
            let error = parse(&GOOD.replace("/run/godwit/scratch.sock", twice)).expect_err(twice);
            assert!(error.contains("used twice"), "{twice}: {error}");
            let error = parse(&format!("control = \"{twice}\"\n{GOOD}")).expect_err(twice);
            assert!(error.contains("of ssd \"demo\"; give the daemon a socket"), "{twice}: {error}");
        }
        let here = std::env::current_dir().unwrap().join("demo.sock");
        let relative = GOOD.replace("/run/godwit/demo.sock", "demo.sock");
        let both = relative.replace("/run/godwit/scratch.sock", here.to_str().unwrap());
        assert!(parse(&both).unwrap_err().contains("used twice"));
    }

    #[test]
    fn what_names_an_ssd_to_its_guest_belongs_to_one_ssd() {
        let [a, b] = ["1b4e28ba-2fa1-11d2-883f-0016d3cca427", "1B4E28BA-2fa1-11d2-883f-0016d3cca427"];
        let both = |key: &str, first: &str, second: &str| {
            let one = format!("{key} = \"{first}\"\nstate = ");
            let other = format!("{key} = \"{second}\"\nserial = ");
            parse(&GOOD.replace("state = ", &one).replace("serial = ", &other))
        };
        assert!(
            both("uuid", a, b).unwrap_err().contains("uuid `1b4e28ba2fa111d2883f0016d3cca427` is used twice")
        );
        assert!(both("nqn", "nqn.2014-08.x:a", "nqn.2014-08.x:a").unwrap_err().contains("is used twice"));
        assert!(both("nqn", "nqn.2014-08.x:a", "nqn.2014-08.x:b").is_ok());
    }

    #[test]
    fn every_wrong_value_is_refused() {
        let cases = [
            ("reactors = 2", "reactors = 0", "reactors must be"),
            ("cpus = [0, 1]", "cpus = [0]", "one CPU for each"),
            ("name = \"demo\"", "name = \"../x\"", "a name is"),
            ("name = \"demo\"", "name = \"scratch\"", "used twice"),
            ("\"/run/godwit/scratch.sock\"", "\"/run/godwit/demo.sock\"", "used twice"),
            ("\"64MiB\"", "\"64KiB\"", "multiple of 1MiB"),
            ("\"64MiB\"", "\"0\"", "multiple of 1MiB"),
            ("lba = 4096", "lba = 520", "512 or 4096"),
            ("type = \"ram\"", "type = \"rma\"", "no backend"),
            ("type = \"ram\"", "type = \"ram\", path = \"/x\"", "leave it out"),
            (", path = \"/srv/demo.img\"", "", "needs a path"),
            ("serial = \"S1\"", "serial = \"\"", "serial is"),
            ("serial = \"S1\"", "nqn = \"x\"", "begins with"),
            ("serial = \"S1\"", "uuid = \"x\"", "looks like"),
            ("serial = \"S1\"", "colour = \"red\"", "unknown field"),
            ("serial = \"S1\"", "profile = \"godwit-9\"", "knows the profiles"),
            ("size = \"64MiB\"", "", "no size of its own"),
            ("[engine]", "[engine", "newline"),
            ("socket = \"/run/godwit/scratch.sock\"", "", "an ssd needs a socket"),
            ("serial = \"S1\"", "vhost_socket = \"/run/godwit/scratch.vhost\"", "either NVMe"),
            (
                "\nsocket = \"/run/godwit/scratch.sock\"",
                "\nvhost_socket = \"/run/godwit/s.vhost\"",
                "`lba` is NVMe's",
            ),
        ];
        for (from, to, expected) in cases {
            let error = parse(&GOOD.replace(from, to)).expect_err(to);
            assert!(error.contains(expected) || expected == "newline", "{to}: {error}");
        }
    }
}
