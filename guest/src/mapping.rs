//! Memory shared with the device: guest RAM, the doorbell page, the engine's statistics.
#![expect(unsafe_code, reason = "mmap and access to memory that another process changes")]
// UNSAFETY: this module is the crate's only owner of raw pointers. A `Mapping` owns its address range from mmap to munmap,
// every access is bounds-checked against its length, and every access is volatile or atomic because the device's process
// reads and writes the same bytes. No reference into the range ever leaves the module.

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A shared mapping of a file descriptor. Offsets out of range panic: they are a bug of the test.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the pointer is owned by this value alone and every access through it is volatile or atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent volatile or atomic access to shared memory is what a device sees too.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, shared; read-only unless `writable`.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(fd: impl AsFd, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address the kernel chooses aliases nothing.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd.as_fd(), offset)? };
        Ok(Mapping { base: base.cast(), len })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: mmap refuses a length of zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn at(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits && offset.is_multiple_of(align), "{offset:#x}+{len:#x} is outside {:#x}", self.len);
        // SAFETY: offset + len <= self.len, the length of the mapping.
        unsafe { self.base.add(offset) }
    }

    #[inline]
    fn word16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in bounds and aligned (checked by `at`; the base is page aligned), mapped as long as `self`.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2, 2).cast()) }
    }

    #[inline]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: in bounds and aligned (checked by `at`; the base is page aligned), mapped as long as `self`.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast()) }
    }

    #[inline]
    fn word64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned (checked by `at`; the base is page aligned), mapped as long as `self`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    /// Acquire load.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.word16(offset).load(Ordering::Acquire))
    }

    /// Release store.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.word16(offset).store(value.to_le(), Ordering::Release);
    }

    /// Acquire load.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.word32(offset).load(Ordering::Acquire))
    }

    /// Release store: everything written before is visible to a device that sees this value.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.word32(offset).store(value.to_le(), Ordering::Release);
    }

    /// Acquire load.
    #[inline]
    #[must_use]
    pub fn load_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.word64(offset).load(Ordering::Acquire))
    }

    /// Release store.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.word64(offset).store(value.to_le(), Ordering::Release);
    }

    /// Writes one 64-byte block, such as a submission queue entry.
    #[inline]
    pub fn store_block(&self, offset: usize, block: &[u64; 8]) {
        let target = self.at(offset, 64, 8).cast::<u64>();
        for (index, word) in block.iter().enumerate() {
            // SAFETY: 64 bytes in bounds and aligned (checked by `at`), index < 8.
            unsafe { target.add(index).write_volatile(word.to_le()) };
        }
    }

    /// Copies out.
    pub fn read(&self, offset: usize, target: &mut [u8]) {
        let source = self.at(offset, target.len(), 1);
        let mut done = 0;
        if source.addr().is_multiple_of(8) {
            for word in target.chunks_exact_mut(8) {
                // SAFETY: done + 8 <= target.len(), in bounds by `at`; aligned as the source is and steps are 8.
                let value = unsafe { source.add(done).cast::<u64>().read_volatile() };
                word.copy_from_slice(&value.to_ne_bytes());
                done += 8;
            }
        }
        for (index, byte) in target.iter_mut().enumerate().skip(done) {
            // SAFETY: index < target.len(), in bounds by `at`.
            *byte = unsafe { source.add(index).read_volatile() };
        }
    }

    /// Copies in.
    pub fn write(&self, offset: usize, source: &[u8]) {
        let target = self.at(offset, source.len(), 1);
        let (words, _) = source.as_chunks::<8>();
        let mut done = 0;
        if target.addr().is_multiple_of(8) {
            for word in words {
                // SAFETY: done + 8 <= source.len(), in bounds by `at`; aligned as the target is and steps are 8.
                unsafe { target.add(done).cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
                done += 8;
            }
        }
        for (index, byte) in source.iter().enumerate().skip(done) {
            // SAFETY: index < source.len(), in bounds by `at`.
            unsafe { target.add(index).write_volatile(*byte) };
        }
    }

    /// Sets every byte of a range.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let target = self.at(offset, len, 1);
        // SAFETY: in bounds by `at`. The device only reads a range that is filled, and byte-wise tearing is harmless.
        unsafe { ptr::write_bytes(target, byte, len) };
    }

    /// Has the kernel find every page now, and none at its first use.
    ///
    /// # Errors
    /// As madvise(2), MADV_POPULATE_WRITE (Linux 5.14).
    pub fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own, and its bytes stay as they are.
        Ok(unsafe { madvise(self.base.cast(), self.len, Advice::LinuxPopulateWrite) }?)
    }

    /// One plain memory copy into another mapping: the bare cost a RAM disk is measured against.
    #[inline]
    pub fn copy_to(&self, offset: usize, target: &Mapping, target_offset: usize, len: usize) {
        let (from, to) = (self.at(offset, len, 1), target.at(target_offset, len, 1));
        // SAFETY: both in bounds by `at`; `copy` allows overlap, and both are memory of the calling bench alone.
        unsafe { ptr::copy(from, to, len) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those mmap gave; no reference into the range outlives `self`.
        let _unmapped = unsafe { munmap(self.base.cast(), self.len) };
    }
}
