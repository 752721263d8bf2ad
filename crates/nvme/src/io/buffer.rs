//! Private buffers for transfers that cannot go straight between drive and guest memory. Made on first need, bounded, kept.

/// Bytes in a buffer; a multiple of every logical block size.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;
/// Buffers of one group.
pub(crate) const BUFFERS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<u8>>,
    made: usize,
}

impl Buffers {
    /// A buffer, if one is free or may still be made.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        if self.made >= BUFFERS_MAX {
            return None;
        }
        self.made += 1;
        Some(vec![0; BUFFER_BYTES])
    }

    /// Takes one back; an empty one is none.
    pub(crate) fn give(&mut self, buffer: Vec<u8>) {
        if !buffer.is_empty() {
            self.free.push(buffer);
        }
    }
}
