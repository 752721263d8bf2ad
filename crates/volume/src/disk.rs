//! Where a pool's own records are kept: a drive as a synchronous store of bytes.

use std::io;
use std::sync::Arc;

/// A drive, as the pool's metadata sees it. Slow and blocking on purpose: guests' I/O never comes this way.
///
/// Duties of the caller: offsets and lengths are multiples of 4096 and lie inside the drive.
/// Duties of the implementer: all bytes or an error (no short read or write); a read sees every earlier write; what
/// was written before a `flush` that succeeded is durable, *whoever wrote it* (the data path too), and what was not
/// flushed may be lost or kept sector by sector.
pub trait Disk {
    /// Size of the drive.
    ///
    /// # Errors
    /// The drive does not say.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Fills `into` from `offset_bytes` on.
    ///
    /// # Errors
    /// Not all of it could be read.
    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `from` at `offset_bytes`.
    ///
    /// # Errors
    /// Not all of it could be written; some may have been.
    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()>;

    /// Makes every finished write durable, those of the data path to the same drive included.
    ///
    /// # Errors
    /// Some may not be durable, now or ever.
    fn flush(&self) -> io::Result<()>;
}

impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn len_bytes(&self) -> io::Result<u64> {
        (**self).len_bytes()
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset_bytes, into)
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        (**self).write_at(offset_bytes, from)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
}
