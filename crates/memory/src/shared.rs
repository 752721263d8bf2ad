//! One value in memory that several processes map.
#![expect(unsafe_code, reason = "mmap, and one reference to atomics that live in it")]
// UNSAFETY: a SharedRegion owns a range of at least size_of::<T>() bytes, aligned for T, from construction to drop, whose
// file cannot shrink (F_SEAL_SHRINK). Any bytes are a T (FromBytes); T is made of atomics, so that writers elsewhere are
// no data race.

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use zerocopy::FromBytes;

/// One `T` in shared memory.
///
/// `T` must consist of atomics only: other processes write it at any time. Its initial value is all zeros.
pub struct SharedRegion<T: FromBytes + Sync> {
    at: NonNull<T>,
    /// `None`: private memory.
    fd: Option<OwnedFd>,
    _owns: PhantomData<T>,
}

// SAFETY: a reference to T is all that is handed out, and T may be shared between threads.
unsafe impl<T: FromBytes + Sync> Send for SharedRegion<T> {}
// SAFETY: as above.
unsafe impl<T: FromBytes + Sync> Sync for SharedRegion<T> {}

impl<T: FromBytes + Sync> SharedRegion<T> {
    const LAYOUT: Layout = {
        assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096);
        Layout::new::<T>()
    };

    /// New memory, all zeros, that other processes can map by [`SharedRegion::fd`]. Nobody can change its size.
    ///
    /// # Errors
    /// What the kernel says; a name with a NUL byte.
    pub fn memfd(name: &str) -> io::Result<Self> {
        let name = CString::new(name)?;
        // SAFETY: a NUL-terminated name; the result is checked.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new and ours alone.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let size = u64::try_from(Self::LAYOUT.size()).map_err(io::Error::other)?;
        file.set_len(size.next_multiple_of(4096))?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: no memory involved.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Self::from_fd(file.into())
    }

    /// Memory made by [`SharedRegion::memfd`], here or in another process.
    ///
    /// # Errors
    /// Too small; able to shrink; not mappable.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        // SAFETY: no memory involved.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(invalid("shared memory that can shrink: make it with SharedRegion::memfd"));
        }
        if file.metadata()?.len() < u64::try_from(Self::LAYOUT.size()).map_err(io::Error::other)? {
            return Err(invalid("shared memory smaller than what it shall hold"));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), Self::LAYOUT.size(), prot, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        match NonNull::new(at.cast::<T>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(SharedRegion { at, fd: Some(file.into()), _owns: PhantomData })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Private memory, all zeros, for tests and simulations.
    #[must_use]
    pub fn private() -> Self {
        // SAFETY: LAYOUT has a size (asserted).
        let at = unsafe { alloc_zeroed(Self::LAYOUT) };
        let Some(at) = NonNull::new(at.cast::<T>()) else { handle_alloc_error(Self::LAYOUT) };
        SharedRegion { at, fd: None, _owns: PhantomData }
    }

    /// What another process maps; `None` for private memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

impl<T: FromBytes + Sync> Deref for SharedRegion<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: mapped or allocated until drop, aligned, initialised (zeros or what another process stored), and any
        // bytes are a T. Concurrent stores go to atomics.
        unsafe { self.at.as_ref() }
    }
}

impl<T: FromBytes + Sync> Drop for SharedRegion<T> {
    fn drop(&mut self) {
        let at = self.at.as_ptr();
        match &self.fd {
            // SAFETY: ours from mmap with this length; no reference outlives self.
            Some(_) => unsafe {
                libc::munmap(at.cast(), Self::LAYOUT.size());
            },
            // SAFETY: ours from alloc_zeroed with this layout.
            None => unsafe { dealloc(at.cast(), Self::LAYOUT) },
        }
    }
}

/// A [`SharedRegion`] that is held, with its address at hand: reaching the value needs no look at the count of its holders, which
/// is a line and a page of its own.
pub struct Held<T: FromBytes + Sync> {
    at: NonNull<T>,
    _region: Arc<SharedRegion<T>>,
}

// SAFETY: as a `SharedRegion`, which it keeps.
unsafe impl<T: FromBytes + Sync> Send for Held<T> {}
// SAFETY: as above.
unsafe impl<T: FromBytes + Sync> Sync for Held<T> {}

impl<T: FromBytes + Sync> Held<T> {
    /// Holds it.
    #[must_use]
    pub fn new(region: &Arc<SharedRegion<T>>) -> Self {
        Self { at: region.at, _region: Arc::clone(region) }
    }
}

impl<T: FromBytes + Sync> Deref for Held<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the region is there as long as `self`, at the same address; for the rest see `SharedRegion::deref`.
        unsafe { self.at.as_ref() }
    }
}

impl<T: FromBytes + Sync> core::fmt::Debug for SharedRegion<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SharedRegion").field("bytes", &size_of::<T>()).field("fd", &self.fd).finish()
    }
}
