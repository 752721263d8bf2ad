//! The file or block device behind an ssd, opened and measured once.
#![expect(unsafe_code, reason = "statx, fstatfs and ioctl have no safe form in std")]
// UNSAFETY: each block is one system call that fills a local buffer of the right type.

use crate::{Error, SEGMENTS_MAX};
use block::Limits;
use core::mem::MaybeUninit;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Does I/O go past the page cache?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// `O_DIRECT`, and a refusal where the file system has none; except on tmpfs, which is memory anyhow.
    #[default]
    Required,
    /// `O_DIRECT` where there is, else the page cache, with a warning.
    Auto,
    /// The page cache.
    Never,
}

/// A file or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it is. A regular file is created when it does not exist and `size_bytes` is given.
    pub path: PathBuf,
    /// Capacity. `None`: what is there. A shorter file is extended (sparse); a shorter device is refused.
    pub size_bytes: Option<u64>,
    /// See [`Direct`].
    pub direct: Direct,
    /// Register guest memory with the ring, which pins all of it and so makes all of it resident. Off by default: on a
    /// virtio disk it measured no faster.
    pub register_buffers: bool,
    /// Requests in the kernel at once, of one door: 1 to 4096.
    pub depth: u16,
}

impl Config {
    /// A path with everything at its default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Config {
        Config {
            path: path.into(),
            size_bytes: None,
            direct: Direct::default(),
            register_buffers: false,
            depth: 512,
        }
    }
}

/// An open file or device, and what it needs.
#[derive(Debug)]
pub struct Target {
    pub(crate) file: File,
    pub(crate) config: Config,
    /// All but the capacity.
    limits: Limits,
    /// May grow while doors are open.
    capacity_bytes: AtomicU64,
    pub(crate) is_block_device: bool,
    /// Whether the page cache is passed by.
    pub(crate) is_direct: bool,
    /// Addresses and lengths of memory must be multiples of these (1 when not direct).
    pub(crate) addr_align: usize,
    pub(crate) len_align: usize,
}

impl Target {
    /// Opens, locks, extends and measures.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(config: &Config) -> Result<Target, Error> {
        Target::take_over(config, None)
    }

    /// As [`Target::open`], with the open file of a predecessor, whose lock comes with it: it never lapsed. A descriptor of another
    /// file than the path's is let go.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_over(config: &Config, kept: Option<OwnedFd>) -> Result<Target, Error> {
        let path = &config.path;
        if config.depth == 0 || config.depth > 4096 {
            return Err(unfit(path, format!("depth = {}", config.depth), "give 1 to 4096"));
        }
        let is_block_device = is_block_device(path)?;
        let (file, is_direct) = match kept.and_then(|fd| same_file(path, File::from(fd))) {
            Some(file) => file,
            None => {
                let opened = open_file(config, is_block_device)?;
                lock(path, &opened.0)?;
                opened
            }
        };
        let (addr_align, len_align) = alignment(&file, is_block_device, is_direct);
        let block_bytes = match u32::try_from(len_align) {
            Ok(size @ (512 | 4096)) => size,
            Ok(..512) => 512,
            _ => {
                let what = format!("its direct I/O works in units of {len_align} bytes");
                return Err(unfit(path, what, "set direct = false, or use another file system"));
            }
        };
        let capacity_bytes = capacity(config, &file, is_block_device)?;
        let discard = !is_block_device || can_zero(&file);
        let limits = Limits { capacity_bytes, block_bytes, segments_max: SEGMENTS_MAX, discard };
        let capacity_bytes = AtomicU64::new(capacity_bytes);
        let config = config.clone();
        Ok(Target { file, config, limits, capacity_bytes, is_block_device, is_direct, addr_align, len_align })
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { capacity_bytes: self.capacity_bytes.load(Ordering::Relaxed), ..self.limits }
    }

    /// See `Drive::make_room`.
    pub(crate) fn make_room(&self, size_bytes: u64) -> Result<(), Error> {
        let config = Config { size_bytes: Some(size_bytes), ..self.config.clone() };
        capacity(&config, &self.file, self.is_block_device).map(drop)
    }

    /// See `Drive::grow`.
    pub(crate) fn grow(&self, size_bytes: u64) {
        self.capacity_bytes.fetch_max(size_bytes, Ordering::Relaxed);
    }

    pub(crate) fn describe(&self) -> String {
        let kind = if self.is_block_device { "block device" } else { "file" };
        let way = if self.is_direct { "direct" } else { "through the page cache" };
        let (path, bytes) = (self.config.path.display(), self.limits().capacity_bytes);
        format!("{kind} {path}, {bytes} bytes, {way}, blocks of {} bytes", self.limits.block_bytes)
    }
}

fn unfit(path: &Path, what: String, advice: &'static str) -> Error {
    Error::Unfit { path: path.to_owned(), what, advice }
}

fn failed(path: &Path, what: &'static str, error: io::Error, advice: &'static str) -> Error {
    Error::Path { path: path.to_owned(), what, error, advice }
}

fn is_block_device(path: &Path) -> Result<bool, Error> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(true),
        Ok(meta) if meta.is_file() => Ok(false),
        Ok(_) => Err(unfit(path, "neither a file nor a block device".to_owned(), "name one of these")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "cannot look at it", error, "check the path and its permissions")),
    }
}

fn open_file(config: &Config, is_block_device: bool) -> Result<(File, bool), Error> {
    let path = &config.path;
    let open = |flags: libc::c_int| {
        let create = config.size_bytes.is_some() && !is_block_device;
        // O_EXCL on a block device: refused while it is mounted or claimed by another.
        let exclusive = if is_block_device { libc::O_EXCL } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600);
        options.custom_flags(flags | exclusive | libc::O_CLOEXEC).open(path)
    };
    let opened = |result: io::Result<File>| {
        result.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::NotFound => "create it, or give a size so that it can be created",
                io::ErrorKind::PermissionDenied => "let this user read and write it",
                io::ErrorKind::ResourceBusy => "unmount it, or stop whoever uses it",
                _ => "check the path",
            };
            failed(path, "cannot open it", error, advice)
        })
    };
    if config.direct == Direct::Never {
        return Ok((opened(open(0))?, false));
    }
    match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = opened(open(0))?;
            if config.direct == Direct::Auto {
                tracing::warn!(path = %path.display(), "no O_DIRECT here: I/O goes through the page cache");
            } else if !is_tmpfs(&file) {
                let advice = "move it to a file system that has O_DIRECT, or leave direct out";
                return Err(failed(path, "cannot pass the page cache by", error, advice));
            }
            Ok((file, false))
        }
        // tmpfs takes the flag since Linux 6.6, and goes through the page cache all the same.
        result => {
            let file = opened(result)?;
            // (A device node lives on devtmpfs, which says nothing about the device.)
            let direct = is_block_device || !is_tmpfs(&file);
            Ok((file, direct))
        }
    }
}

/// The kept file and whether it passes the page cache by, if it is the one at the path.
fn same_file(path: &Path, file: File) -> Option<(File, bool)> {
    let (there, kept) = (std::fs::metadata(path).ok()?, file.metadata().ok()?);
    if (there.dev(), there.ino()) != (kept.dev(), kept.ino()) {
        return None;
    }
    // SAFETY: no memory involved.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let is_block_device = kept.file_type().is_block_device();
    let is_direct = flags >= 0 && flags & libc::O_DIRECT != 0 && (is_block_device || !is_tmpfs(&file));
    Some((file, is_direct))
}

/// Two daemons on one file would destroy it. A daemon just killed holds its lock for a moment longer, until the kernel
/// has taken its rings apart: hence the patience.
fn lock(path: &Path, file: &File) -> Result<(), Error> {
    let mut attempts = 0;
    let locked = loop {
        attempts += 1;
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) if attempts < LOCK_ATTEMPTS => {
                std::thread::sleep(LOCK_PAUSE)
            }
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => {
            let error = io::Error::from(io::ErrorKind::ResourceBusy);
            Err(failed(path, "it is in use", error, "stop whoever uses it; an ssd needs a file of its own"))
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(failed(path, "cannot lock it", error, "use a file system with flock"))
        }
    }
}

fn capacity(config: &Config, file: &File, is_block_device: bool) -> Result<u64, Error> {
    let path = &config.path;
    let present = if is_block_device {
        device_bytes(file).map_err(|error| failed(path, "cannot read its size", error, "check the device"))?
    } else {
        file.metadata().map_err(|error| failed(path, "cannot read its size", error, "check the file"))?.len()
    };
    let Some(wanted) = config.size_bytes else {
        let whole = present - present % 4096;
        return match whole {
            0 => Err(unfit(path, "it is empty".to_owned(), "give a size")),
            _ => Ok(whole),
        };
    };
    let wanted = crate::drive::sized(wanted)?;
    if present < wanted && is_block_device {
        let what = format!("the device has {present} bytes, less than the {wanted} asked for");
        return Err(unfit(path, what, "give a smaller size"));
    }
    if present < wanted {
        let advice = "give a smaller size, or use another file system";
        file.set_len(wanted).map_err(|error| failed(path, "cannot extend it", error, advice))?;
    }
    Ok(wanted)
}

fn is_tmpfs(file: &File) -> bool {
    let mut fs = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fills our buffer; zeros are a valid statfs.
    unsafe {
        libc::fstatfs(file.as_raw_fd(), fs.as_mut_ptr()) == 0 && fs.assume_init().f_type == libc::TMPFS_MAGIC
    }
}

/// What direct I/O asks of memory addresses and of lengths.
fn alignment(file: &File, is_block_device: bool, is_direct: bool) -> (usize, usize) {
    if !is_direct {
        return (1, 1);
    }
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: fills our buffer; the empty path with AT_EMPTY_PATH names the fd itself; zeros are a valid statx.
    let stat = unsafe {
        let mask = libc::STATX_DIOALIGN;
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, stat.as_mut_ptr());
        stat.assume_init()
    };
    let known = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    if known {
        let size = |align: u32| usize::try_from(align.max(1)).unwrap_or(4096);
        return (size(stat.stx_dio_mem_align), size(stat.stx_dio_offset_align));
    }
    // Before Linux 6.1: the logical block of the device, or the largest usual one below a file.
    let block = if is_block_device { logical_block_bytes(file).unwrap_or(4096) } else { 4096 };
    (block, block)
}

fn device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 stores a u64.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if result == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

fn logical_block_bytes(file: &File) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores an int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut bytes) };
    usize::try_from(bytes).ok().filter(|bytes| result == 0 && bytes.is_power_of_two())
}

/// Does the device zero ranges by itself? Without, zeroing means writing zeros, which is no discard.
fn can_zero(file: &File) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let path = |up: &str| format!("/sys/dev/block/{major}:{minor}/{up}queue/write_zeroes_max_bytes");
    // A partition has no queue of its own: its parent has.
    let text = std::fs::read_to_string(path("")).or_else(|_| std::fs::read_to_string(path("../")));
    text.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
}

/// Ten seconds in all: a busy host was seen to take 2.4 s to take a dead daemon's rings apart.
const LOCK_ATTEMPTS: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// `linux/fs.h`; not in libc.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
/// `linux/fs.h`; not in libc.
const BLKSSZGET: libc::Ioctl = 0x1268;
