//! Windows on a drive, and numbers and texts out of them. The only way in is checked: outside a window there is nothing.

use super::unreadable;
use crate::source::Source;
use std::fmt::Write as _;

/// From the first byte on: the last copy of a LUKS2 header begins at 4 MiB.
const HEAD_BYTES: u64 = (4 << 20) + (64 << 10);
/// To the last byte: two ZFS labels, MD, DDF, DRBD and the second GPT.
const TAIL_BYTES: u64 = 1 << 20;
/// Longest text taken from a drive.
const TEXT_MAX: usize = 256;

/// What is held of a drive.
pub(super) struct View {
    len_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    tail_offset: u64,
}

impl View {
    pub(super) fn read(source: &(impl Source + ?Sized), errors: &mut Vec<String>) -> View {
        let len_bytes = source.len_bytes();
        let tail_offset = len_bytes.saturating_sub(TAIL_BYTES);
        let mut window = |offset: u64, most: u64| {
            let len = usize::try_from(most.min(len_bytes - offset)).unwrap_or(0);
            let mut bytes = vec![0; len];
            match source.read_at(offset, &mut bytes) {
                Ok(()) => bytes,
                Err(error) => {
                    errors.push(unreadable(offset, &error));
                    Vec::new()
                }
            }
        };
        let head = window(0, HEAD_BYTES);
        let tail = window(tail_offset, TAIL_BYTES);
        View { len_bytes, head, tail, tail_offset }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// `len` bytes from `offset` on, if a window holds them all.
    pub(super) fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let within = |window: &'_ [u8], start: u64| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let end = from.checked_add(len)?;
            (end <= window.len()).then_some(from..end)
        };
        if let Some(range) = within(&self.head, 0) {
            return self.head.get(range);
        }
        within(&self.tail, self.tail_offset).and_then(|range| self.tail.get(range))
    }

    pub(super) fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.slice(offset, magic.len()) == Some(magic)
    }

    pub(super) fn u8(&self, offset: u64) -> Option<u8> {
        self.slice(offset, 1)?.first().copied()
    }

    pub(super) fn le16(&self, offset: u64) -> Option<u16> {
        Some(u16::from_le_bytes(self.slice(offset, 2)?.try_into().ok()?))
    }

    pub(super) fn le32(&self, offset: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.slice(offset, 4)?.try_into().ok()?))
    }

    pub(super) fn le64(&self, offset: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.slice(offset, 8)?.try_into().ok()?))
    }

    pub(super) fn be32(&self, offset: u64) -> Option<u32> {
        Some(u32::from_be_bytes(self.slice(offset, 4)?.try_into().ok()?))
    }

    /// A text of at most `len` bytes that a zero may end.
    pub(super) fn text(&self, offset: u64, len: usize) -> Option<String> {
        text(self.slice(offset, len)?)
    }

    /// A UUID in the order of its bytes; all zeros is none.
    pub(super) fn uuid(&self, offset: u64) -> Option<String> {
        let bytes: [u8; 16] = self.slice(offset, 16)?.try_into().ok()?;
        uuid(bytes)
    }

    /// A GUID as GPT stores it: the first three groups little-endian.
    pub(super) fn guid(&self, offset: u64) -> Option<String> {
        let mut bytes: [u8; 16] = self.slice(offset, 16)?.try_into().ok()?;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        uuid(bytes)
    }

    pub(super) fn first_data(&self) -> Option<u64> {
        let first = |bytes: &[u8], start: u64| {
            let at = bytes.iter().position(|&byte| byte != 0)?;
            start.checked_add(u64::try_from(at).ok()?)
        };
        first(&self.head, 0).or_else(|| first(&self.tail, self.tail_offset))
    }
}

/// Text up to the first zero, without what does not print; `None` if nothing is left.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let raw = String::from_utf8_lossy(bytes.get(..end.min(TEXT_MAX))?);
    crate::text::clean(&raw)
}

fn uuid(bytes: [u8; 16]) -> Option<String> {
    if bytes == [0; 16] {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _infallible = write!(text, "{byte:02x}");
    }
    Some(text)
}
