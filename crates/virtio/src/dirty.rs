//! The dirty log: one bit for each 4 KiB page that was written (vhost-user.rst, "Migration").

use memory::Window;

const PAGE_SHIFT: u32 = 12;

/// A log that a client maps. Pages beyond its end are not logged: the client sized it for its memory.
#[derive(Clone, Debug)]
pub struct DirtyLog(Window);

impl DirtyLog {
    /// A log in this memory, which must be writable.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self(window)
    }

    /// Marks the pages of a range, after it was written. Others mark in the same bytes: the bits are set atomically.
    pub fn mark(&self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = start >> PAGE_SHIFT;
        let last = start.saturating_add(len - 1) >> PAGE_SHIFT;
        let mut page = first;
        while page <= last {
            let Ok(byte) = usize::try_from(page >> 3) else { return };
            let in_byte = (last - page).min(7 - (page & 7));
            let bits = (0xff_u8 >> (7 - in_byte)) << (page & 7);
            if self.0.or_u8(byte, bits).is_err() {
                return;
            }
            page += in_byte + 1;
        }
    }
}
