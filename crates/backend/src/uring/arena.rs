//! Private memory of one door, taken from the system only as it is used.
#![expect(unsafe_code, reason = "anonymous mmap, because an allocator would touch the zeros it hands out")]
// UNSAFETY: each arena owns an anonymous private mapping from `new` to `drop`. The segment lists are plain private
// memory behind &mut self; the bounce buffers are touched only by raw copies and by the kernel.

use crate::SEGMENTS_MAX;
use core::ptr::{self, NonNull};
use memory::Segment;
use std::io;

/// A bounced request goes through its buffer in steps of this length.
pub(crate) const BOUNCE_BYTES: usize = 64 * 1024;
/// Bounced requests at once, of one door; more wait (`Full`).
const BOUNCES_MAX: usize = 32;

struct Pages {
    base: NonNull<u8>,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> io::Result<Pages> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags | libc::MAP_NORESERVE, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Huge pages would make one used byte cost 2 MiB.
        // SAFETY: our own new mapping; advice may fail without harm.
        unsafe { libc::madvise(base, len, libc::MADV_NOHUGEPAGE) };
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Pages { base, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: ours from mmap; whoever owns the pages ended all use of them.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The segments of each request slot.
pub(crate) struct Lists {
    pages: Pages,
    slots: usize,
}

impl Lists {
    pub(crate) fn new(slots: usize) -> io::Result<Lists> {
        Ok(Lists { pages: Pages::new(slots * SEGMENTS_MAX * size_of::<Segment>())?, slots })
    }

    /// The list of one slot: [`SEGMENTS_MAX`] segments.
    pub(crate) fn of(&mut self, slot: usize) -> &mut [Segment] {
        assert!(slot < self.slots, "a slot that does not exist");
        // SAFETY: inside the mapping (asserted), page-aligned, private to self, and zeros are valid segments.
        unsafe {
            let first = self.pages.base.as_ptr().cast::<Segment>().add(slot * SEGMENTS_MAX);
            core::slice::from_raw_parts_mut(first, SEGMENTS_MAX)
        }
    }
}

/// Aligned buffers for requests whose guest memory direct I/O cannot take.
pub(crate) struct Bounces {
    pages: Pages,
    free: Vec<usize>,
}

impl Bounces {
    pub(crate) fn new() -> io::Result<Bounces> {
        Ok(Bounces { pages: Pages::new(BOUNCE_BYTES * BOUNCES_MAX)?, free: (0..BOUNCES_MAX).rev().collect() })
    }

    /// A free buffer, the hottest first.
    pub(crate) fn take(&mut self) -> Option<usize> {
        self.free.pop()
    }

    pub(crate) fn give_back(&mut self, index: usize) {
        debug_assert!(!self.free.contains(&index), "given back twice");
        self.free.push(index);
    }

    /// A buffer's first `len` bytes, mapped as long as self.
    pub(crate) fn segment(&self, index: usize, len: usize) -> Segment {
        assert!(index < BOUNCES_MAX && len <= BOUNCE_BYTES, "outside the bounce buffers");
        // SAFETY: inside the mapping (asserted).
        Segment::from_raw(unsafe { self.pages.base.as_ptr().add(index * BOUNCE_BYTES) }, len)
    }
}
