//! A record in shared memory that is whole at every moment: two slots, of which the older is written next.
//!
//! ```text
//!  0          | number | record (its own length and checksum) ...
//!  SLOT_BYTES | number | record ...
//! ```
//! The number is written after the record; the whole record with the highest number counts. So a writer that is killed leaves the
//! record before.

use anyhow::{Context, ensure};
use rustix::fs::MemfdFlags;
use state::envelope;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where the second slot begins. The memory between is never touched, so it is none.
const SLOT_BYTES: u64 = 1 << 30;
/// Bytes before the record.
const NUMBER_BYTES: u64 = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) fd: Arc<OwnedFd>,
    number: u64,
}

impl Cell {
    /// With nothing in it.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("godwit-cell", MemfdFlags::CLOEXEC)?;
        Ok(Self { fd: Arc::new(fd), number: 0 })
    }

    /// Replaces the record.
    pub(crate) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let next = self.number + 1;
        let at = next % 2 * SLOT_BYTES;
        write_all(&self.fd, record, at + NUMBER_BYTES)?;
        write_all(&self.fd, &next.to_le_bytes(), at)?;
        self.number = next;
        Ok(())
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pwrite(fd, bytes, at)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(count..).unwrap_or(&[]);
        at += count as u64;
    }
    Ok(())
}

/// The newest whole record of a cell.
pub(crate) fn read(fd: &OwnedFd) -> anyhow::Result<Vec<u8>> {
    let slots = [0, SLOT_BYTES].map(|at| slot(fd, at));
    let newest = slots.into_iter().flatten().max_by_key(|(number, _)| *number);
    newest.map(|(_, record)| record).context("there is no whole record")
}

fn slot(fd: &OwnedFd, at: u64) -> anyhow::Result<(u64, Vec<u8>)> {
    let mut number = [0; 8];
    read_exact(fd, &mut number, at)?;
    let mut record = vec![0; envelope::HEADER_BYTES];
    read_exact(fd, &mut record, at + NUMBER_BYTES)?;
    record.resize(envelope::record_bytes(&record)?, 0);
    read_exact(fd, &mut record, at + NUMBER_BYTES)?;
    envelope::verify(&record)?;
    Ok((u64::from_le_bytes(number), record))
}

fn read_exact(fd: &OwnedFd, mut bytes: &mut [u8], mut at: u64) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pread(fd, &mut *bytes, at)?;
        ensure!(count > 0, "the record is cut short");
        bytes = bytes.get_mut(count..).unwrap_or(&mut []);
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Vec<u8> {
        envelope::seal(*b"GODWTEST", 1, text.as_bytes()).expect("short")
    }

    #[test]
    fn the_newest_record_counts_and_a_half_written_one_leaves_the_one_before() {
        let mut cell = Cell::new().expect("memory");
        assert!(read(&cell.fd).is_err());
        for text in ["one", "a longer second one", "3"] {
            cell.write(&record(text)).expect("written");
            assert_eq!(read(&cell.fd).expect("whole"), record(text));
        }
        // The fourth goes where the second is; its number comes last.
        let torn = record("the fourth, of which half is written");
        for len in 0..=torn.len() {
            write_all(&cell.fd, &torn[..len], NUMBER_BYTES).expect("written");
            assert_eq!(read(&cell.fd).expect("whole"), record("3"), "{len} bytes");
        }
        cell.write(&torn).expect("written");
        assert_eq!(read(&cell.fd).expect("whole"), torn);
    }
}
