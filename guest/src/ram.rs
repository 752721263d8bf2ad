//! The guest's memory: one memfd, an IOVA base, and an allocator of whole pages.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::mapping::Mapping;
use crate::{Error, Result};

/// The page size of guest memory and of the controller (CC.MPS = 0).
pub const PAGE_BYTES: usize = 4096;

/// The memfd's name. The bench finds guest RAM by it in the engine's memory maps.
pub const MEMFD_NAME: &str = "guest-ram";

/// Guest RAM. The IOVA of a byte is its offset in the memfd plus [`Ram::iova`].
pub struct Ram {
    fd: OwnedFd,
    mapping: Mapping,
    iova: u64,
    pages: Mutex<Pages>,
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").field("iova", &self.iova).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Ram {
    /// A memfd of `len` bytes (rounded up to pages), seen by the device at `iova`.
    ///
    /// # Errors
    /// As memfd_create(2), ftruncate(2), mmap(2).
    pub fn new(len: usize, iova: u64) -> Result<Arc<Self>> {
        let len = len.next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
        let fd = memfd_create(MEMFD_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        let mapping = Mapping::new(&fd, 0, len, true)?;
        Ok(Arc::new(Ram { fd, mapping, iova, pages: Mutex::new(Pages::new(len / PAGE_BYTES)) }))
    }

    /// Has every page there, as in a guest that has run for long.
    ///
    /// # Errors
    /// As [`Mapping::populate`].
    pub fn populate(&self) -> Result<()> {
        Ok(self.mapping.populate()?)
    }

    /// The memfd.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The device's address of the first byte.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// The size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The memory by offset, for tight loops.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The offset of `len` bytes at `iova`, if they all lie inside.
    #[must_use]
    pub fn offset_of(&self, iova: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(iova.checked_sub(self.iova)?).ok()?;
        (offset.checked_add(len)? <= self.len()).then_some(offset)
    }

    /// Zeroed, page-aligned memory of at least `len` bytes, given back when the buffer is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfRam`].
    pub fn alloc(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        let pages = len.div_ceil(PAGE_BYTES).max(1);
        let first = self.lock().take(pages).ok_or(Error::OutOfRam(len))?;
        let offset = first * PAGE_BYTES;
        self.mapping.fill(offset, pages * PAGE_BYTES, 0);
        Ok(Buffer { ram: Arc::clone(self), offset, len, pages })
    }

    /// [`Ram::alloc`] and a copy of `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfRam`].
    pub fn alloc_with(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        buffer.write(0, bytes);
        Ok(buffer)
    }

    /// Pages not allocated.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.lock().free
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run of guest pages. Dropping it frees them, so keep it until the device has answered.
#[derive(Debug)]
pub struct Buffer {
    ram: Arc<Ram>,
    offset: usize,
    len: usize,
    pages: usize,
}

impl Buffer {
    /// The device's address.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.ram.iova + self.offset as u64
    }

    /// The offset in guest RAM.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer of no bytes (which still holds a page).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check(&self, offset: usize, len: usize) -> usize {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.pages * PAGE_BYTES);
        assert!(fits, "{offset:#x}+{len:#x} is outside this buffer");
        self.offset + offset
    }

    /// Copies in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.ram.mapping.write(self.check(offset, bytes.len()), bytes);
    }

    /// Copies out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.ram.mapping.read(self.check(offset, bytes.len()), bytes);
    }

    /// A copy of `len` bytes from `offset`.
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes);
        bytes
    }

    /// A copy of it all.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes(0, self.len)
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        self.ram.mapping.fill(self.offset, self.len, byte);
    }

    /// Acquire load of a word.
    #[must_use]
    pub fn load_u16(&self, offset: usize) -> u16 {
        self.ram.mapping.load_u16(self.check(offset, 2))
    }

    /// Release store of a word.
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.ram.mapping.store_u16(self.check(offset, 2), value);
    }

    /// Acquire load of a dword.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.ram.mapping.load_u32(self.check(offset, 4))
    }

    /// Release store of a dword.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.ram.mapping.store_u32(self.check(offset, 4), value);
    }

    /// Acquire load of a quadword.
    #[must_use]
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.ram.mapping.load_u64(self.check(offset, 8))
    }

    /// Release store of a quadword.
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.ram.mapping.store_u64(self.check(offset, 8), value);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.ram.lock().give(self.offset / PAGE_BYTES, self.pages);
    }
}

/// First fit over a map of pages, going on from where the last run was found.
#[derive(Debug)]
struct Pages {
    used: Vec<bool>,
    hint: usize,
    free: usize,
}

impl Pages {
    fn new(count: usize) -> Self {
        Pages { used: vec![false; count], hint: 0, free: count }
    }

    fn take(&mut self, count: usize) -> Option<usize> {
        let first = self.find(self.hint, count).or_else(|| self.find(0, count))?;
        self.used[first..first + count].fill(true);
        self.hint = first + count;
        self.free -= count;
        Some(first)
    }

    fn find(&self, from: usize, count: usize) -> Option<usize> {
        let mut run = 0;
        for (page, used) in self.used.iter().enumerate().skip(from) {
            run = if *used { 0 } else { run + 1 };
            if run == count {
                return Some(page + 1 - count);
            }
        }
        None
    }

    fn give(&mut self, first: usize, count: usize) {
        debug_assert!(self.used[first..first + count].iter().all(|used| *used), "freed twice");
        self.used[first..first + count].fill(false);
        self.free += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_come_back_when_dropped() {
        let ram = Ram::new(8 * PAGE_BYTES, 0x10_0000).unwrap();
        let first = ram.alloc(3 * PAGE_BYTES).unwrap();
        let second = ram.alloc(PAGE_BYTES + 1).unwrap();
        assert_eq!(first.iova(), 0x10_0000);
        assert_eq!(second.iova(), 0x10_0000 + 3 * PAGE_BYTES as u64);
        assert_eq!(ram.free_pages(), 3);
        assert!(matches!(ram.alloc(4 * PAGE_BYTES), Err(Error::OutOfRam(_))));
        drop(first);
        assert_eq!(ram.free_pages(), 6);
        assert_eq!(ram.alloc(3 * PAGE_BYTES).unwrap().len(), 3 * PAGE_BYTES);
    }

    #[test]
    fn a_freed_page_is_zero_when_given_again() {
        let ram = Ram::new(PAGE_BYTES, 0).unwrap();
        ram.alloc(PAGE_BYTES).unwrap().fill(0xAA);
        assert!(ram.alloc(PAGE_BYTES).unwrap().to_vec().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_written_at_any_alignment_is_read_back() {
        let ram = Ram::new(2 * PAGE_BYTES, 0).unwrap();
        let buffer = ram.alloc(2 * PAGE_BYTES).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        for offset in [0, 1, 7, 8, 4090] {
            buffer.write(offset, &bytes);
            assert_eq!(buffer.bytes(offset, bytes.len()), bytes);
        }
    }

    #[test]
    fn an_iova_outside_has_no_offset() {
        let ram = Ram::new(PAGE_BYTES, 0x1000).unwrap();
        assert_eq!(ram.offset_of(0x1000, PAGE_BYTES), Some(0));
        assert_eq!(ram.offset_of(0xFFF, 1), None);
        assert_eq!(ram.offset_of(0x1FFF, 2), None);
        assert_eq!(ram.offset_of(u64::MAX, 2), None);
    }
}
