//! A drive in memory for pools.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volume::Disk;

const BLOCK: usize = 4096;

/// Blocks that were written; all others are zeros.
#[derive(Clone, Default)]
pub struct SparseDisk {
    blocks: Arc<Mutex<BTreeMap<u64, [u8; BLOCK]>>>,
    len_bytes: u64,
}

impl SparseDisk {
    /// An empty drive.
    #[must_use]
    pub fn new(len_bytes: u64) -> Self {
        Self { len_bytes, ..Self::default() }
    }

    /// One with the same content and a life of its own.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { blocks: Arc::new(Mutex::new(self.blocks().clone())), len_bytes: self.len_bytes }
    }

    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, [u8; BLOCK]>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes at the start of a block; the rest of the last block becomes zeros.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        for (place, part) in (at / BLOCK as u64..).zip(bytes.chunks(BLOCK)) {
            let mut block = [0; BLOCK];
            block[..part.len()].copy_from_slice(part);
            if block == [0; BLOCK] {
                self.blocks().remove(&place);
            } else {
                self.blocks().insert(place, block);
            }
        }
    }
}

impl Disk for SparseDisk {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(at.is_multiple_of(BLOCK as u64) && into.len().is_multiple_of(BLOCK), "whole blocks");
        assert!(at.checked_add(into.len() as u64).is_some_and(|end| end <= self.len_bytes), "on the drive");
        let blocks = self.blocks();
        for (place, part) in (at / BLOCK as u64..).zip(into.chunks_mut(BLOCK)) {
            part.copy_from_slice(blocks.get(&place).unwrap_or(&[0; BLOCK]));
        }
        Ok(())
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        assert!(at.is_multiple_of(BLOCK as u64) && from.len().is_multiple_of(BLOCK), "whole blocks");
        assert!(at.checked_add(from.len() as u64).is_some_and(|end| end <= self.len_bytes), "on the drive");
        self.put(at, from);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
