//! Guest RAM: rings below, buffers above.

use memory::Iova;

use super::Guest;

/// A memory page.
pub const PAGE: u64 = 4096;
/// All of it.
pub const RAM_BYTES: u64 = 2 << 20;
/// Rings of queue n: submission at this page + 2n, completion after it.
const RINGS: u64 = 2;
/// Shadow doorbells, and EventIdx behind them.
pub(crate) const SHADOW: u64 = 14 * PAGE;
pub(crate) const EVENT_INDEX: u64 = 15 * PAGE;
/// First buffer.
const DATA: u64 = 16 * PAGE;
/// Buffers: five pages each, the last for lists.
pub(crate) const BUFFERS: usize = 96;

/// A data buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    index: usize,
    /// Offset of the first byte in its page.
    offset: u64,
    /// Pages are used in falling order.
    falling: bool,
}

pub(crate) fn sq_base(qid: u16) -> u64 {
    (RINGS + 2 * u64::from(qid)) * PAGE
}

pub(crate) fn cq_base(qid: u16) -> u64 {
    (RINGS + 2 * u64::from(qid) + 1) * PAGE
}

impl Buffer {
    fn page(self, at: u64) -> u64 {
        let at = if self.falling { 3 - at } else { at };
        DATA + (self.index as u64 * 5 + at) * PAGE
    }

    fn list(self) -> u64 {
        DATA + (self.index as u64 * 5 + 4) * PAGE
    }

    /// Runs of addresses, in order.
    fn runs(self, len: usize) -> Vec<(u64, usize)> {
        let (mut left, mut offset) = (len, self.offset);
        let mut runs = Vec::new();
        for at in 0..4 {
            let len = left.min(usize::try_from(PAGE - offset).unwrap_or(0));
            runs.push((self.page(at) + offset, len));
            left -= len;
            offset = 0;
            if left == 0 {
                break;
            }
        }
        assert!(left == 0, "buffers are as long as the longest command");
        runs
    }
}

impl Guest {
    pub(crate) fn take_buffer(&mut self) -> Option<Buffer> {
        let index = self.buffers.pop()?;
        let offset = self.rng.pick(&[0, 0, 0, 512, 4, 3584]).unwrap_or(0);
        Some(Buffer { index, offset, falling: self.rng.percent(30) })
    }

    pub(crate) fn give_buffer(&mut self, buffer: Buffer) {
        // Whatever still reads or writes it must be seen to do so.
        let junk = [0xdb; 4096];
        for at in 0..4 {
            self.poke(buffer.page(at), &junk);
        }
        self.buffers.insert(0, buffer.index);
    }

    pub(crate) fn poke(&self, at: u64, bytes: &[u8]) {
        let stored = self.ram.write_bytes(Iova(at), bytes);
        assert!(stored.is_ok(), "guest memory is there");
    }

    pub(crate) fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.ram.read_bytes(Iova(at), &mut bytes);
        assert!(read.is_ok(), "guest memory is there");
        bytes
    }

    pub(crate) fn put(&self, buffer: Buffer, bytes: &[u8]) {
        let mut rest = bytes;
        for (at, len) in buffer.runs(bytes.len()) {
            let (part, tail) = rest.split_at(len);
            self.poke(at, part);
            rest = tail;
        }
    }

    pub(crate) fn get(&self, buffer: Buffer, len: usize) -> Vec<u8> {
        buffer.runs(len).into_iter().flat_map(|(at, len)| self.peek(at, len)).collect()
    }

    /// PRP1 and PRP2 for so many bytes.
    pub(crate) fn prps(&self, buffer: Buffer, len: usize) -> (u64, u64) {
        let runs = buffer.runs(len);
        match runs.as_slice() {
            [(first, _)] => (*first, 0),
            [(first, _), (second, _)] => (*first, *second),
            [(first, _), rest @ ..] => {
                let list: Vec<u8> = rest.iter().flat_map(|(at, _)| at.to_le_bytes()).collect();
                self.poke(buffer.list(), &list);
                (*first, buffer.list())
            }
            [] => (0, 0),
        }
    }
}
