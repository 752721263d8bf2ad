//! A queue's stretch of guest memory, translated once.
#![expect(unsafe_code, reason = "volatile access to a range that was checked when the window was made")]
// UNSAFETY: a direct window's range lies in a mapping that `map` keeps alive as long as the window; every offset is
// checked against its length before the access.

use crate::segment;
use crate::{Access, Fault, Hint, Iova, MemoryMap, Segment};
use core::ptr;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// A checked range of guest memory that stays mapped. All methods are safe; an offset out of range is a fault.
///
/// Direct when the range is one piece of host memory. Otherwise each access goes through the map (remote regions
/// included, when the map reaches them).
#[derive(Clone, Debug)]
pub struct Window {
    /// Host address of the first byte; null when not direct.
    host: *mut u8,
    len: usize,
    access: Access,
    /// The map has a log: known here, so that a store without one looks nowhere else.
    logged: bool,
    iova: Iova,
    map: Arc<MemoryMap>,
}

// SAFETY: the pointer is a number into memory that `map` (Send + Sync) keeps mapped; all accesses through it are
// volatile or atomic.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window on `len` bytes at `iova`, for `access` only.
    ///
    /// # Errors
    /// [`Fault`] when any byte of it cannot be reached through this map.
    pub fn new(map: &Arc<MemoryMap>, iova: Iova, len: usize, access: Access) -> Result<Window, Fault> {
        let mut hint = Hint::default();
        let host = match map.segment(&mut hint, iova, len, access) {
            Ok(segment) => segment.addr(),
            Err(Fault::Unmapped | Fault::Remote) => {
                map.check(iova, len, access)?;
                ptr::null_mut()
            }
            Err(fault) => return Err(fault),
        };
        let logged = map.log().is_some();
        Ok(Window { host, len, access, logged, iova, map: Arc::clone(map) })
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First address.
    #[inline]
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// One piece of host memory: accesses are plain loads and stores.
    #[inline]
    #[must_use]
    pub fn is_direct(&self) -> bool {
        !self.host.is_null()
    }

    /// The map it holds.
    #[must_use]
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// The host address of `len` bytes at `offset`, when direct, in range and allowed.
    #[inline]
    fn at(&self, offset: usize, len: usize, allowed: bool) -> Option<*mut u8> {
        let inside = offset <= self.len && len <= self.len - offset;
        // SAFETY: inside the checked range.
        (inside && allowed && !self.host.is_null()).then(|| unsafe { self.host.add(offset) })
    }

    /// After a direct store. Others are marked by the map.
    #[inline]
    fn stored(&self, offset: usize, len: usize) {
        if self.logged {
            self.mark(offset, len);
        }
    }

    /// Marks a part of the window as written by the device, if the map has a log: what a predecessor may have stored and not marked. A part out of range is
    /// not.
    #[cold]
    pub fn mark(&self, offset: usize, len: usize) {
        if let Ok(iova) = self.iova_at(offset, len, true) {
            self.map.mark(iova, len as u64);
        }
    }

    /// Where `at` said no: out of range, denied, or not direct.
    #[cold]
    fn iova_at(&self, offset: usize, len: usize, allowed: bool) -> Result<Iova, Fault> {
        if offset > self.len || len > self.len - offset {
            return Err(Fault::Unmapped);
        }
        if !allowed {
            return Err(Fault::Denied);
        }
        Ok(Iova(self.iova.0 + offset as u64))
    }

    /// One private copy of the `T` at `offset`, each byte read once.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Result<T, Fault> {
        match self.at(offset, size_of::<T>(), self.access.read) {
            // SAFETY: size_of::<T>() mapped bytes (see the module).
            Some(at) => Ok(unsafe { segment::read(at) }),
            None => self.map.read(self.iova_at(offset, size_of::<T>(), self.access.read)?),
        }
    }

    /// As [`Window::read`], straight to where the copy is wanted: a value that is returned is moved on in pieces of another size than it
    /// was written in, and each such piece waits until the stores before it have left the processor's buffer.
    ///
    /// # Errors
    /// [`Fault`]; what `into` holds then is unspecified.
    #[inline]
    pub fn read_into<T: FromBytes + IntoBytes>(&self, offset: usize, into: &mut T) -> Result<(), Fault> {
        let into = into.as_mut_bytes();
        match self.at(offset, into.len(), self.access.read) {
            Some(at) => {
                // SAFETY: as many mapped bytes (see the module); the destination is ours alone.
                unsafe { segment::copy_out(at, into.as_mut_ptr(), into.len()) };
                Ok(())
            }
            None => self.map.read_bytes(self.iova_at(offset, into.len(), self.access.read)?, into),
        }
    }

    /// Stores bytes at `offset`.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<(), Fault> {
        match self.at(offset, src.len(), self.access.write) {
            Some(at) => {
                // SAFETY: as many mapped, writable bytes (see the module).
                unsafe { segment::copy_in(src.as_ptr(), at, src.len()) };
                self.stored(offset, src.len());
                Ok(())
            }
            None => self.map.write_bytes(self.iova_at(offset, src.len(), self.access.write)?, src),
        }
    }

    /// Stores a 16-byte completion entry so that dword 3, with the phase, is never seen before the rest. `entry` is little-endian: its
    /// first byte is the least significant.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn write_completion(&self, offset: usize, entry: u128) -> Result<(), Fault> {
        match self.at(offset, 16, self.access.write) {
            Some(at) => {
                // SAFETY: sixteen mapped, writable bytes (see the module).
                unsafe { segment::store_completion(at, entry) };
                self.stored(offset, 16);
                Ok(())
            }
            None => self.write_completion_slow(offset, entry),
        }
    }

    #[cold]
    fn write_completion_slow(&self, offset: usize, entry: u128) -> Result<(), Fault> {
        let iova = self.iova_at(offset, 16, self.access.write)?;
        let [a, b, c, last] = segment::dwords(entry);
        let mut head = [0; 12];
        for (to, dword) in head.chunks_exact_mut(4).zip([a, b, c]) {
            to.copy_from_slice(&dword.to_le_bytes());
        }
        self.map.write_bytes(iova, &head)?;
        self.store_u32(offset + 12, last)
    }

    /// The little-endian word at `offset`, with acquire ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn load_u32(&self, offset: usize) -> Result<u32, Fault> {
        match self.at(offset, 4, self.access.read) {
            // SAFETY: four mapped bytes (see the module).
            Some(at) => Ok(unsafe { segment::load_u32(at) }),
            None => self.map.load_u32(self.iova_at(offset, 4, self.access.read)?),
        }
    }

    /// Stores a little-endian word at `offset`, with release ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<(), Fault> {
        match self.at(offset, 4, self.access.write) {
            Some(at) => {
                // SAFETY: four mapped, writable bytes (see the module).
                unsafe { segment::store_u32(at, value) };
                self.stored(offset, 4);
                Ok(())
            }
            None => self.map.store_u32(self.iova_at(offset, 4, self.access.write)?, value),
        }
    }

    /// The little-endian half word at `offset`, with acquire ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn load_u16(&self, offset: usize) -> Result<u16, Fault> {
        match self.at(offset, 2, self.access.read) {
            // SAFETY: two mapped bytes (see the module).
            Some(at) => Ok(unsafe { segment::load_u16(at) }),
            None => self.map.read(self.iova_at(offset, 2, self.access.read)?).map(u16::from_le_bytes),
        }
    }

    /// Stores a little-endian half word at `offset`, with release ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16) -> Result<(), Fault> {
        match self.at(offset, 2, self.access.write) {
            Some(at) => {
                // SAFETY: two mapped, writable bytes (see the module).
                unsafe { segment::store_u16(at, value) };
                self.stored(offset, 2);
                Ok(())
            }
            None => self.map.write_bytes(self.iova_at(offset, 2, self.access.write)?, &value.to_le_bytes()),
        }
    }

    /// Stores a little-endian double word at `offset`, with release ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<(), Fault> {
        match self.at(offset, 8, self.access.write) {
            Some(at) => {
                // SAFETY: eight mapped, writable bytes (see the module).
                unsafe { segment::store_u64(at, value) };
                self.stored(offset, 8);
                Ok(())
            }
            None => self.map.write_bytes(self.iova_at(offset, 8, self.access.write)?, &value.to_le_bytes()),
        }
    }

    /// Asks the processor to bring the line at `offset` near. Out of range: nothing.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        if let Some(at) = self.at(offset, 1, true) {
            segment::prefetch(at);
        }
    }

    /// The host memory of `len` bytes at `offset`; `None` when not direct or out of range.
    #[inline]
    #[must_use]
    pub fn segment(&self, offset: usize, len: usize) -> Option<Segment> {
        self.at(offset, len, true).map(|at| Segment::from_raw(at, len))
    }
}
