//! Where an ssd's bytes are: a drive of its own, or extents of a pool.

use crate::pool::{Pools, Purpose, Volume};
use crate::serve::backend_config;
use api::config;
use backend::uring::Rings;
use block::{Backend, Limits};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// What a file has, as its file system tells it; all of a device.
fn data_of(file: &OwnedFd, end_bytes: u64, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
    let mut at = 0;
    while at < end_bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            // It has no holes, or tells nobody of them.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                each(at, end_bytes);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(end_bytes);
        if start >= end {
            return Ok(());
        }
        each(start, end);
        at = end;
    }
    Ok(())
}

/// See the module.
pub(crate) enum Drive {
    Own(backend::Drive),
    Pooled(Volume),
}

impl Drive {
    /// Opens what the configuration says. `kept` is the descriptor of a drive of its own that a predecessor left.
    pub(crate) fn open(
        ssd: &config::Ssd,
        kept: Option<OwnedFd>,
        purpose: Purpose,
        pools: &Pools,
    ) -> anyhow::Result<Self> {
        Ok(match &ssd.backend {
            config::Backend::Pool { pool, thin, .. } => {
                Self::Pooled(pools.volume(ssd, pool, *thin, purpose)?)
            }
            _ => Self::Own(backend::Drive::take_over(&backend_config(ssd)?, kept)?),
        })
    }

    /// As every door will report them.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::Own(drive) => drive.limits(),
            Self::Pooled(volume) => volume.limits(),
        }
    }

    /// Makes room for this size, or says that there is none. Nobody sees it before [`Drive::grow`]; a room that was made may stay,
    /// or be given back with the file's length.
    pub(crate) fn make_room(&self, size_bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Own(drive) => Ok(drive.make_room(size_bytes)?),
            Self::Pooled(volume) => volume.can_grow(size_bytes),
        }
    }

    /// Every door, open or to come, takes requests up to this size when this returns.
    pub(crate) fn grow(&self, size_bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Own(drive) => Ok(drive.grow(size_bytes)?),
            Self::Pooled(volume) => volume.grow(size_bytes),
        }
    }

    /// Calls `each` with the first byte and the one behind the last of each run that may be other than zeros, in order. What is written
    /// meanwhile may be missing.
    pub(crate) fn allocated(&self, end_bytes: u64, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        match self {
            Self::Own(drive) => match drive.descriptor()? {
                Some(file) => return data_of(&file, end_bytes, each),
                None => each(0, end_bytes),
            },
            Self::Pooled(volume) => volume.allocated(each),
        }
        Ok(())
    }

    /// What a successor needs to go on with the same memory, or under the same lock.
    pub(crate) fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Own(drive) => drive.descriptor(),
            Self::Pooled(volume) => volume.descriptor(),
        }
    }

    /// One more door, for this thread.
    pub(crate) fn door(&self, rings: &Rings) -> io::Result<Box<dyn Backend>> {
        match self {
            Self::Own(drive) => drive.door(rings),
            Self::Pooled(volume) => volume.door(rings),
        }
    }
}
