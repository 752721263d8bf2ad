//! A piece of a client's file, mapped.
#![expect(unsafe_code, reason = "mmap and munmap")]
// UNSAFETY: a Mapping owns the address range that mmap gave it, from `new` to `drop`, and hands out only its numbers.

use crate::{Access, sigbus};
use core::ptr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

/// Why a client's fd cannot be guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// Nothing to map.
    #[error("a mapping of no bytes")]
    Empty,
    /// Offset plus length leave 64 bits.
    #[error("offset {offset:#x} plus length {len:#x} wrap around")]
    Wraps {
        /// As given.
        offset: u64,
        /// As given.
        len: u64,
    },
    /// Not memory.
    #[error("the fd is a {0}; guest memory must be a memfd or a file on tmpfs, hugetlbfs or a local disk")]
    NotMemory(&'static str),
    /// The file ends before the range does: touching it would raise SIGBUS.
    #[error("the fd has {size:#x} bytes, but the range ends at {end:#x}")]
    TooShort {
        /// Size of the file.
        size: u64,
        /// End of the range.
        end: u64,
    },
    /// Too many mappings in this process.
    #[error("more than {} mappings in this process", sigbus::MAPPINGS_MAX)]
    TooMany,
    /// The kernel refused.
    #[error("{call}: {error}")]
    System {
        /// What was called.
        call: &'static str,
        /// What it said.
        error: io::Error,
    },
}

/// A range of a file mapped shared, until dropped. Not inherited by children, not in core dumps.
#[derive(Debug)]
pub struct Mapping {
    /// Address of the first byte asked for (not of the page).
    host: usize,
    len: usize,
    base: usize,
    base_len: usize,
    watch: Option<sigbus::Registration>,
    access: Access,
}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`. The device may not do more with it than `access`.
    ///
    /// # Errors
    /// [`MappingError`]: the fd is checked before the kernel is asked.
    pub fn new(fd: OwnedFd, offset: u64, len: u64, access: Access) -> Result<Arc<Mapping>, MappingError> {
        let end = offset.checked_add(len).ok_or(MappingError::Wraps { offset, len })?;
        if len == 0 {
            return Err(MappingError::Empty);
        }
        let file = File::from(fd);
        let page = page_bytes(&file, end)?;
        let slack = offset % page;
        let wraps = || MappingError::Wraps { offset, len };
        // The length is rounded up as well: hugetlbfs asks for it, and the handler replaces whole pages.
        let base_len = (len + slack).checked_next_multiple_of(page).ok_or_else(wraps)?;
        let base_len = usize::try_from(base_len).map_err(|_| wraps())?;
        let start = libc::off_t::try_from(offset - slack).map_err(|_| wraps())?;
        sigbus::install().map_err(|error| MappingError::System { call: "sigaction", error })?;
        let prot = if access.write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), base_len, prot, libc::MAP_SHARED, file.as_raw_fd(), start) };
        if base == libc::MAP_FAILED {
            return Err(MappingError::System { call: "mmap", error: io::Error::last_os_error() });
        }
        // SAFETY: our own new mapping. Advice may fail without harm.
        unsafe {
            libc::madvise(base, base_len, libc::MADV_DONTFORK);
            libc::madvise(base, base_len, libc::MADV_DONTDUMP);
        }
        let base = base.expose_provenance();
        let slack = usize::try_from(slack).map_err(|_| wraps())?;
        let len = base_len.min(usize::try_from(len).map_err(|_| wraps())?);
        // From here on `drop` unmaps.
        let mut mapping = Mapping { host: base + slack, len, base, base_len, watch: None, access };
        mapping.watch = Some(sigbus::Registration::new(base, base_len).ok_or(MappingError::TooMany)?);
        Ok(Arc::new(mapping))
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the device may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Was the file shrunk under us? From then on this reads as zeros and writes go nowhere.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.watch.as_ref().is_some_and(sigbus::Registration::is_poisoned)
    }

    /// Address of the first byte.
    pub(crate) fn host(&self) -> usize {
        self.host
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before munmap, so that the slot never names addresses that are somebody else's.
        self.watch = None;
        // SAFETY: the range is ours from mmap and nothing uses it any more: whoever does holds the Arc.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.base), self.base_len) };
    }
}

/// The page size of the file's file system, when the file may be guest memory and holds `end` bytes.
fn page_bytes(file: &File, end: u64) -> Result<u64, MappingError> {
    let stat = file.metadata().map_err(|error| MappingError::System { call: "fstat", error })?;
    let kind = stat.file_type();
    if !kind.is_file() {
        return Err(MappingError::NotMemory(match () {
            () if kind.is_block_device() => "block device",
            () if kind.is_char_device() => "character device",
            () if kind.is_socket() => "socket",
            () if kind.is_fifo() => "pipe",
            () if kind.is_dir() => "directory",
            () => "file of no kind",
        }));
    }
    if end > stat.size() {
        return Err(MappingError::TooShort { size: stat.size(), end });
    }
    let mut fs = core::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fills our buffer.
    if unsafe { libc::fstatfs(file.as_raw_fd(), fs.as_mut_ptr()) } != 0 {
        return Err(MappingError::System { call: "fstatfs", error: io::Error::last_os_error() });
    }
    // SAFETY: filled by the kernel, and zeros were valid before.
    let fs = unsafe { fs.assume_init() };
    let huge = fs.f_type == libc::HUGETLBFS_MAGIC;
    // A page of FUSE or of a network file system is delivered when its server pleases: a client could stop a
    // reactor for good. Only what the local kernel answers alone may be guest memory.
    let local = [libc::TMPFS_MAGIC, RAMFS_MAGIC, libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC];
    if !huge && !local.contains(&fs.f_type) && fs.f_type != libc::BTRFS_SUPER_MAGIC {
        return Err(MappingError::NotMemory("file on a file system that may block"));
    }
    // SAFETY: no memory involved.
    let page = if huge { fs.f_bsize } else { unsafe { libc::sysconf(libc::_SC_PAGESIZE) } };
    Ok(u64::try_from(page).ok().filter(|page| page.is_power_of_two()).unwrap_or(4096))
}

/// `linux/magic.h`; not in libc.
const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;
