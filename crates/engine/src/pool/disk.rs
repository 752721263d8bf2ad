//! A pool's drive as its own thread sees it: records, copies and wipes by plain system calls, past the page cache where the drive's
//! doors go past it, on the same open file and so under the same lock.

use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use volume::Disk;
use volume::steward::Medium;

/// What direct I/O asks of memory: no drive asks for more.
const ALIGN: usize = 4096;
/// Copied or looked at in one step.
const CHUNK_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct PoolDisk {
    file: File,
    len_bytes: u64,
}

impl PoolDisk {
    pub(super) fn new(fd: OwnedFd, len_bytes: u64) -> Self {
        Self { file: File::from(fd), len_bytes }
    }

    /// Runs with a buffer that direct I/O takes.
    fn aligned<T>(&self, len: usize, act: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
        let mut room = vec![0_u8; len + ALIGN];
        let skip = room.as_ptr().align_offset(ALIGN).min(ALIGN);
        let buffer = room.get_mut(skip..skip + len).ok_or(io::ErrorKind::OutOfMemory)?;
        act(buffer)
    }
}

impl Medium for PoolDisk {
    /// By a hole where the drive can make one, else by writing.
    fn zero(&self, start: u64, len: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, hole, start, len) {
            Ok(()) => Ok(()),
            Err(_) => each_chunk(start, len, |at, len| self.write_at(at, zeros(len))),
        }
    }

    fn is_zero(&self, start: u64, len: u64) -> io::Result<bool> {
        let mut clean = true;
        each_chunk(start, len, |at, len| {
            self.aligned(len, |buffer| {
                self.file.read_exact_at(buffer, at).map(|()| clean &= all_zero(buffer))
            })
        })?;
        Ok(clean)
    }

    fn copy(&self, from: u64, to: u64, len: u64) -> io::Result<()> {
        each_chunk(0, len, |at, len| {
            self.aligned(len, |buffer| {
                self.file.read_exact_at(buffer, from + at)?;
                self.file.write_all_at(buffer, to + at)
            })
        })
    }
}

impl Disk for PoolDisk {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.aligned(into.len(), |buffer| {
            self.file.read_exact_at(buffer, offset_bytes)?;
            into.copy_from_slice(buffer);
            Ok(())
        })
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        self.aligned(from.len(), |buffer| {
            buffer.copy_from_slice(from);
            self.file.write_all_at(buffer, offset_bytes)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn each_chunk(start: u64, len: u64, mut act: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let (mut at, end) = (start, start.saturating_add(len));
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        act(at, step)?;
        at += step as u64;
    }
    Ok(())
}

fn zeros(len: usize) -> &'static [u8] {
    static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];
    ZEROS.get(..len).unwrap_or(&ZEROS)
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes == zeros(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_range_reads_as_zeros_and_its_neighbours_are_as_they_were() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let disk = PoolDisk::new(file.into(), 8 << 20);
        disk.write_at(0, &vec![7; 4 << 20]).unwrap();
        assert!(!disk.is_zero(1 << 20, 2 << 20).unwrap());
        disk.zero(1 << 20, 2 << 20).unwrap();
        assert!(disk.is_zero(1 << 20, 2 << 20).unwrap());
        assert!(!disk.is_zero(0, 1 << 20).unwrap() && !disk.is_zero(3 << 20, 4096).unwrap());
        disk.copy(0, 5 << 20, 1 << 20).unwrap();
        let mut back = vec![0; 4096];
        disk.read_at(6 * (1 << 20) - 4096, &mut back).unwrap();
        assert_eq!(back, vec![7; 4096]);
    }
}
