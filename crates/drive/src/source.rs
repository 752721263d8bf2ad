//! What can be read by offset: a drive, a file, or bytes in a test.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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
