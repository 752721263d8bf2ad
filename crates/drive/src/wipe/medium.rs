//! The bytes that are wiped.
#![expect(unsafe_code, reason = "BLKZEROOUT, BLKDISCARD, fallocate and F_SETFL have no safe form in std")]
// UNSAFETY: system calls on an open file, with a local array of the kernel's layout or no memory at all.

use crate::source::Source;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

/// How a range becomes zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// By the drive's own command for it, or, where it has none, by the kernel's writes.
    WriteZeroes,
    /// By telling the drive that nobody needs the range: some then read zeros.
    Deallocate,
    /// By writing zeros.
    Write,
}

/// A range of a drive. What is read comes from the drive, not from a cache of the host.
pub trait Medium: Source {
    /// Writes at `offset`.
    ///
    /// # Errors
    /// What the drive said.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Zeroes a range without sending zeros.
    ///
    /// # Errors
    /// What the drive said, or it cannot.
    fn zero(&self, offset: u64, len: u64, how: Zeroing) -> io::Result<()>;

    /// All that was written is on the drive when this returns.
    ///
    /// # Errors
    /// What the drive said.
    fn flush(&self) -> io::Result<()>;
}

/// `_IO(0x12, 127)`.
const BLKZEROOUT: libc::c_ulong = 0x127f;
/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;
/// What memory and lengths are aligned to, so that any drive takes them.
const ALIGN_BYTES: usize = 4096;

/// A range of a block device or file, past the page cache.
#[derive(Debug)]
pub struct DirectMedium {
    file: File,
    is_block_device: bool,
    offset_bytes: u64,
    len_bytes: u64,
}

impl DirectMedium {
    /// The range of a file that is open for reading and writing.
    ///
    /// # Errors
    /// A device that cannot be read past the page cache. A file on a file system without O_DIRECT is read through it, with
    /// nothing but the host's memory in between.
    pub fn new(file: File, offset_bytes: u64, len_bytes: u64) -> io::Result<DirectMedium> {
        let is_block_device = file.metadata()?.file_type().is_block_device();
        let is_whole = [offset_bytes, len_bytes].iter().all(|bytes| bytes.is_multiple_of(ALIGN_BYTES as u64));
        if is_block_device || is_whole {
            // SAFETY: no memory involved.
            let set = unsafe {
                let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
                libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT)
            };
            if set < 0 && is_block_device {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(DirectMedium { file, is_block_device, offset_bytes, len_bytes })
    }

    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len_bytes);
        end.and_then(|_| self.offset_bytes.checked_add(offset)).ok_or(io::ErrorKind::InvalidInput.into())
    }
}

/// Calls `with` with aligned memory of `len` bytes.
fn aligned<T>(len: usize, with: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    let mut memory = vec![0_u8; len.saturating_add(ALIGN_BYTES)];
    let start = memory.as_ptr().align_offset(ALIGN_BYTES);
    let buffer = memory.get_mut(start..).and_then(|rest| rest.get_mut(..len));
    with(buffer.ok_or(io::ErrorKind::InvalidInput)?)
}

fn bytes_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

impl Source for DirectMedium {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let at = self.place(offset, bytes_of(into.len()))?;
        aligned(into.len(), |buffer| {
            self.file.read_exact_at(buffer, at)?;
            into.copy_from_slice(buffer);
            Ok(())
        })
    }
}

impl Medium for DirectMedium {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = self.place(offset, bytes_of(bytes.len()))?;
        aligned(bytes.len(), |buffer| {
            buffer.copy_from_slice(bytes);
            self.file.write_all_at(buffer, at)
        })
    }

    fn zero(&self, offset: u64, len: u64, how: Zeroing) -> io::Result<()> {
        let at = self.place(offset, len)?;
        let result = if self.is_block_device {
            let range: [u64; 2] = [at, len];
            let request = if how == Zeroing::Deallocate { BLKDISCARD } else { BLKZEROOUT };
            // SAFETY: both take a pointer to two 64-bit numbers and only read them.
            unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) }
        } else {
            let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let (at, len) = (i64::try_from(at).map_err(too_large)?, i64::try_from(len).map_err(too_large)?);
            let mode = match how {
                Zeroing::Deallocate => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                _ => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            };
            // SAFETY: no memory involved.
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, len) }
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
