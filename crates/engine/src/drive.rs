//! Where an ssd's bytes are: a drive of its own, or extents of a pool.

use crate::pool::{Pools, Purpose, Volume};
use crate::serve::backend_config;
use anyhow::{bail, ensure};
use api::config;
use backend::uring::Rings;
use block::{Backend, Limits};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// Takes the first byte of a run, and the one behind its last.
pub(crate) type Each<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// What a file has there, as its file system tells it; all of a device.
fn data_of(file: &OwnedFd, bytes: Range<u64>, each: Each<'_>) -> io::Result<()> {
    let (mut at, end_bytes) = (bytes.start, bytes.end);
    while at < end_bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            // It has no holes, or tells nobody of them.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let _ = each(at, end_bytes);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if start >= end_bytes {
            return Ok(());
        }
        // It may have become a hole meanwhile, and so it is up to there.
        let end = seek(file, SeekFrom::Hole(start))?.min(end_bytes);
        if start < end && each(start, end).is_break() {
            return Ok(());
        }
        at = end.max(start + 1);
    }
    Ok(())
}

/// See the module.
pub(crate) enum Drive {
    Own(backend::Drive),
    Pooled(Volume),
    Awaited(Awaited),
}

/// A drive that its ssd does not have yet. Nothing may reach it before: the ssd is frozen.
pub(crate) struct Awaited {
    /// As its doors will report them.
    limits: Limits,
    there: OnceLock<Box<Drive>>,
}

impl Drive {
    /// Opens what the configuration says. `kept` is the descriptor of a drive of its own that a predecessor left.
    pub(crate) fn open(
        ssd: &config::Ssd,
        kept: Option<OwnedFd>,
        purpose: Purpose,
        pools: &Pools,
    ) -> anyhow::Result<Self> {
        if let Purpose::Await(limits) = purpose {
            return Ok(Self::Awaited(Awaited { limits, there: OnceLock::new() }));
        }
        Ok(match &ssd.backend {
            config::Backend::Pool { pool, thin, .. } => {
                Self::Pooled(pools.volume(ssd, pool, *thin, purpose)?)
            }
            _ => Self::Own(backend::Drive::take_over(&backend_config(ssd)?, kept)?),
        })
    }

    /// Whether there is a drive, and not the wait for one.
    pub(crate) fn is_there(&self) -> bool {
        self.there().is_some()
    }

    fn there(&self) -> Option<&Self> {
        match self {
            Self::Awaited(awaited) => awaited.there.get().map(|drive| &**drive),
            there => Some(there),
        }
    }

    fn missing() -> io::Error {
        io::Error::new(io::ErrorKind::WouldBlock, "it has not come from the other host yet")
    }

    /// What was awaited has come. Doors that are opened from now on lead to it.
    ///
    /// # Errors
    /// It is not what was awaited, or nothing was.
    pub(crate) fn come(&self, drive: Self) -> anyhow::Result<()> {
        let Self::Awaited(awaited) = self else { bail!("it has a drive already") };
        let (told, limits) = (awaited.limits, drive.limits());
        ensure!(
            (limits.capacity_bytes, limits.block_bytes) == (told.capacity_bytes, told.block_bytes),
            "its drive is another than its guest's hypervisor was told of: {limits:?} instead of {told:?}"
        );
        ensure!(awaited.there.set(Box::new(drive)).is_ok(), "it has a drive already");
        Ok(())
    }

    /// Of a pool.
    pub(crate) fn volume(&self) -> Option<&Volume> {
        match self.there() {
            Some(Self::Pooled(volume)) => Some(volume),
            _ => None,
        }
    }

    /// As every door will report them.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::Own(drive) => drive.limits(),
            Self::Pooled(volume) => volume.limits(),
            Self::Awaited(awaited) => awaited.there.get().map_or(awaited.limits, |drive| drive.limits()),
        }
    }

    /// Makes room for this size, or says that there is none. Nobody sees it before [`Drive::grow`]; a room that was made may stay,
    /// or be given back with the file's length.
    pub(crate) fn make_room(&self, size_bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Own(drive) => Ok(drive.make_room(size_bytes)?),
            Self::Pooled(volume) => volume.can_grow(size_bytes),
            Self::Awaited(_) => self.there().ok_or_else(Self::missing)?.make_room(size_bytes),
        }
    }

    /// Every door, open or to come, takes requests up to this size when this returns.
    pub(crate) fn grow(&self, size_bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Own(drive) => Ok(drive.grow(size_bytes)?),
            Self::Pooled(volume) => volume.grow(size_bytes),
            Self::Awaited(_) => self.there().ok_or_else(Self::missing)?.grow(size_bytes),
        }
    }

    /// Calls `each` with the first byte and the one behind the last of each run that may be other than zeros, in order. What is written
    /// meanwhile may be missing.
    pub(crate) fn allocated(&self, end_bytes: u64, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        self.allocated_in(0..end_bytes, &mut |start, end| {
            each(start, end);
            ControlFlow::Continue(())
        })
    }

    /// As [`Drive::allocated`], of this part, until `each` has enough.
    pub(crate) fn allocated_in(&self, bytes: Range<u64>, each: Each<'_>) -> io::Result<()> {
        match self {
            Self::Own(drive) => match drive.descriptor()? {
                Some(file) => return data_of(&file, bytes, each),
                None if bytes.is_empty() => {}
                None => _ = each(bytes.start, bytes.end),
            },
            Self::Pooled(volume) => volume.allocated_in(bytes, each),
            Self::Awaited(_) => return self.there().ok_or_else(Self::missing)?.allocated_in(bytes, each),
        }
        Ok(())
    }

    /// What a successor needs to go on with the same memory, or under the same lock.
    pub(crate) fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Own(drive) => drive.descriptor(),
            Self::Pooled(volume) => volume.descriptor(),
            Self::Awaited(_) => self.there().map_or(Ok(None), Self::descriptor),
        }
    }

    /// One more door, for this thread.
    pub(crate) fn door(&self, rings: &Rings) -> io::Result<Box<dyn Backend>> {
        match self {
            Self::Own(drive) => drive.door(rings),
            Self::Pooled(volume) => volume.door(rings),
            Self::Awaited(_) => self.there().ok_or_else(Self::missing)?.door(rings),
        }
    }
}
