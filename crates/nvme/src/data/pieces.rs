//! A data pointer as guest addresses, for transfers through a private buffer.

use memory::{Fault, Iova, MemoryMap};

use super::{Refused, Visit};

#[derive(Clone, Copy, Debug)]
struct Piece {
    /// `None`: a bit bucket.
    address: Option<u64>,
    len_bytes: usize,
}

/// Runs of guest addresses, in the order of the data. Checked anew at each access.
#[derive(Debug, Default)]
pub struct Pieces {
    list: Vec<Piece>,
}

impl Pieces {
    /// Copies the data from byte `at` on to private memory. Bit buckets leave the bytes as they are.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read(&self, map: &MemoryMap, at: usize, data: &mut [u8]) -> Result<(), Fault> {
        self.each(at, data.len(), |address, range| {
            data.get_mut(range).map_or(Err(Fault::Unmapped), |part| map.read_bytes(Iova(address), part))
        })
    }

    /// Copies private memory to the data from byte `at` on.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn write(&self, map: &MemoryMap, at: usize, data: &[u8]) -> Result<(), Fault> {
        self.each(at, data.len(), |address, range| {
            crate::crash::point();
            data.get(range).map_or(Err(Fault::Unmapped), |part| map.write_bytes(Iova(address), part))
        })
    }

    fn each(
        &self,
        at: usize,
        len_bytes: usize,
        mut access: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut skip, mut done) = (at, 0);
        for piece in &self.list {
            if skip >= piece.len_bytes {
                skip -= piece.len_bytes;
                continue;
            }
            let len = (piece.len_bytes - skip).min(len_bytes - done);
            if let Some(address) = piece.address {
                access(address + skip as u64, done..done + len)?;
            }
            done += len;
            skip = 0;
            if done == len_bytes {
                return Ok(());
            }
        }
        if done == len_bytes { Ok(()) } else { Err(Fault::Unmapped) }
    }
}

impl Visit for Pieces {
    fn memory(&mut self, _map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused> {
        if address.checked_add(len_bytes as u64).is_none() {
            return Err(Fault::Unmapped.into());
        }
        match self.list.last_mut() {
            Some(Piece { address: Some(last), len_bytes: len }) if *last + *len as u64 == address => {
                *len += len_bytes
            }
            _ => self.list.push(Piece { address: Some(address), len_bytes }),
        }
        Ok(())
    }

    fn bucket(&mut self, len_bytes: usize) -> Result<(), Refused> {
        self.list.push(Piece { address: None, len_bytes });
        Ok(())
    }
}
