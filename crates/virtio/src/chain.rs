//! A chain of descriptors, copied out of the ring: each descriptor is read once.

use memory::{Hint, Iova, MemoryMap};
use spec::virtio_blk::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, PackedDescriptor};

use crate::sink::Broken;

/// The most descriptors of a request, indirect ones included.
pub(crate) const CHAIN_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) addr: u64,
    pub(crate) len: u32,
}

/// What the device reads, then what it writes.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) readable: Vec<Piece>,
    pub(crate) writable: Vec<Piece>,
    /// INDIRECT_DESC was negotiated.
    pub(crate) indirect: bool,
}

impl Chain {
    pub(crate) fn new() -> Self {
        let room = || Vec::with_capacity(CHAIN_MAX);
        Self { readable: room(), writable: room(), indirect: false }
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    #[inline]
    pub(crate) fn push(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), Broken> {
        if self.readable.len() + self.writable.len() >= CHAIN_MAX {
            return Err(Broken::Chain);
        }
        let piece = Piece { addr, len };
        if flags & DESC_WRITE != 0 {
            self.writable.push(piece);
        } else if self.writable.is_empty() {
            self.readable.push(piece);
        } else {
            return Err(Broken::Order);
        }
        Ok(())
    }

    fn table_len(&self, len: u32) -> Result<u16, Broken> {
        let count = len / 16;
        if !self.indirect || !len.is_multiple_of(16) || count == 0 || count as usize > CHAIN_MAX {
            return Err(Broken::Indirect);
        }
        u16::try_from(count).map_err(|_| Broken::Indirect)
    }

    /// virtio 1.2, 2.7.5.3. A circle is longer than the table.
    pub(crate) fn split_table(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        at: u64,
        len: u32,
    ) -> Result<(), Broken> {
        let count = self.table_len(len)?;
        let mut index = 0;
        for _ in 0..count {
            let desc: Descriptor = map.read_hinted(hint, entry(at, index)?)?;
            if desc.flags & DESC_INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            self.push(desc.addr, desc.len, desc.flags)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
            if index >= count {
                return Err(Broken::Chain);
            }
        }
        Err(Broken::Chain)
    }

    /// virtio 1.2, 2.8.7: all entries, in order.
    pub(crate) fn packed_table(
        &mut self,
        map: &MemoryMap,
        hint: &mut Hint,
        at: u64,
        len: u32,
    ) -> Result<(), Broken> {
        for index in 0..self.table_len(len)? {
            let desc: PackedDescriptor = map.read_hinted(hint, entry(at, index)?)?;
            if desc.flags & DESC_INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            self.push(desc.addr, desc.len, desc.flags)?;
        }
        Ok(())
    }
}

#[inline]
fn entry(at: u64, index: u16) -> Result<Iova, Broken> {
    at.checked_add(u64::from(index) * 16).map(Iova).ok_or(Broken::Indirect)
}
