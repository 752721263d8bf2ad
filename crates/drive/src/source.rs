//! What can be read by offset: a drive, a file, or bytes in a test.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Something with a length that can be read at any offset.
pub trait Source {
    /// Its length.
    fn len_bytes(&self) -> u64;

    /// Fills `into` from `offset` on, or fails.
    ///
    /// # Errors
    /// What the drive said, or the range is not inside it.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Opens a regular file or a block device, and nothing that could keep who opens it waiting, such as a FIFO. Plain reads and writes of
/// what comes out are as ever; io_uring's would not be.
///
/// # Errors
/// It cannot be opened, or is something else.
pub fn open(path: &Path, options: &mut OpenOptions, flags: libc::c_int) -> io::Result<File> {
    let file = options.custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = "neither a block device nor a file: name one of these";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(file)
}

/// A file or block device that is read through the page cache: for looking, not for proving what a drive holds.
#[derive(Debug)]
pub struct Opened {
    file: File,
    len_bytes: u64,
}

impl Opened {
    /// Measures an open file or device.
    ///
    /// # Errors
    /// It has no length.
    pub fn new(file: File) -> io::Result<Opened> {
        use std::io::{Seek, SeekFrom};
        let len_bytes = (&file).seek(SeekFrom::End(0))?;
        Ok(Opened { file, len_bytes })
    }
}

impl Source for Opened {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

impl Source for [u8] {
    fn len_bytes(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|start| self.get(start..));
        let bytes = from.and_then(|rest| rest.get(..into.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}
