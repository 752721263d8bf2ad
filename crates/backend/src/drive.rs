//! From a wish in the config to an open drive, and from a drive to each reactor's door.

use crate::{faulty, null, ram, uring};
use block::{Backend, Limits};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// What an ssd's data shall live on.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// No data: requests end at once, reads leave memory as it is.
    Null {
        /// Capacity.
        size_bytes: u64,
    },
    /// Memory of this process; gone with it.
    Ram {
        /// Capacity. Takes memory only as it is written.
        size_bytes: u64,
    },
    /// A file or block device.
    Uring(uring::Config),
    /// Another backend, with failures.
    Faulty {
        /// What carries the data.
        inner: Box<Config>,
        /// What goes wrong.
        plan: faulty::Plan,
    },
}

/// Why a drive cannot be opened. Says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that no drive can have.
    #[error(
        "a size of {size_bytes} bytes is not possible: give a multiple of {unit_bytes} bytes, at least one"
    )]
    Size {
        /// As given.
        size_bytes: u64,
        /// What it must be a multiple of.
        unit_bytes: u64,
    },
    /// Memory could not be had.
    #[error("cannot reserve {size_bytes} bytes of memory: {error}")]
    Memory {
        /// As given.
        size_bytes: u64,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something about the file or device.
    #[error("{}: {what}: {error}; {advice}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// The file or device does not fit the config.
    #[error("{}: {what}; {advice}", path.display())]
    Unfit {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// It keeps its size as long as it is open.
    #[error("a {0} drive cannot grow while it is served: leave its size as it is, or restart godwitd")]
    Fixed(&'static str),
    /// Memory that an older release has sealed.
    #[error("its memory was made by a release whose ram drives cannot grow: leave its size as it is")]
    Sealed,
    /// A probability, a factor or another figure of a plan is out of its range.
    #[error("the plan of a faulty drive: {0}")]
    Plan(&'static str),
}

enum Kind {
    Null(Limits),
    Ram(Arc<ram::Source>),
    Uring(Arc<uring::Target>),
    Faulty(Box<Drive>, faulty::Plan),
}

/// Whoever outlives this process and holds a duplicate of each io_uring, so that a successor can wait for what was in flight.
pub trait RingHolder: Send + Sync {
    /// A ring was made. Nothing is submitted to it before this returns.
    ///
    /// # Errors
    /// The ring cannot be held: it is not used.
    fn opened(&self, ring: BorrowedFd<'_>) -> io::Result<()>;
    /// All that the ring took has ended; it is about to be closed.
    fn closing(&self, ring: BorrowedFd<'_>);
}

/// An open drive. Opened once for each ssd; every reactor that serves the ssd opens its own door on its own thread.
pub struct Drive(Kind);

impl Drive {
    /// Opens what the config names, and creates or extends it where the config says so.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(config: &Config) -> Result<Drive, Error> {
        Drive::take_over(config, None)
    }

    /// As [`Drive::open`], with the descriptor that a predecessor's [`Drive::descriptor`] was: the memory of a ram drive, or the
    /// open file with its lock. One that is of another file than the config names is let go.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_over(config: &Config, kept: Option<OwnedFd>) -> Result<Drive, Error> {
        Ok(Drive(match config {
            Config::Null { size_bytes } => Kind::Null(null::limits(sized(*size_bytes)?)),
            Config::Ram { size_bytes } => Kind::Ram(Arc::new(ram::Source::new(sized(*size_bytes)?, kept)?)),
            Config::Uring(config) => Kind::Uring(Arc::new(uring::Target::take_over(config, kept)?)),
            Config::Faulty { inner, plan } => {
                plan.check().map_err(Error::Plan)?;
                Kind::Faulty(Box::new(Drive::take_over(inner, kept)?), plan.clone())
            }
        }))
    }

    /// As every door will report them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        match &self.0 {
            Kind::Null(limits) => *limits,
            Kind::Ram(source) => source.limits(),
            Kind::Uring(target) => target.limits(),
            Kind::Faulty(inner, _) => inner.limits(),
        }
    }

    /// Makes room for this size, which nobody sees before [`Drive::grow`].
    ///
    /// # Errors
    /// There is none, or a drive of this kind cannot grow while it is open.
    pub fn make_room(&self, size_bytes: u64) -> Result<(), Error> {
        match &self.0 {
            Kind::Null(_) => Err(Error::Fixed("null")),
            Kind::Ram(source) => source.can_grow(size_bytes),
            Kind::Uring(target) => target.make_room(size_bytes),
            Kind::Faulty(inner, _) => inner.make_room(size_bytes),
        }
    }

    /// Every door, open or to come, takes requests up to this size from now on. For a size that [`Drive::make_room`] was asked for.
    ///
    /// # Errors
    /// No memory for a ram drive, or a drive of this kind cannot grow while it is open.
    pub fn grow(&self, size_bytes: u64) -> Result<(), Error> {
        match &self.0 {
            Kind::Null(_) => Err(Error::Fixed("null")),
            Kind::Ram(source) => source.grow(size_bytes),
            Kind::Uring(target) => {
                target.grow(size_bytes);
                Ok(())
            }
            Kind::Faulty(inner, _) => inner.grow(size_bytes),
        }
    }

    /// What a successor process needs to go on with the same memory, or the same open file and its lock.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        match &self.0 {
            Kind::Null(_) => Ok(None),
            Kind::Ram(source) => source.descriptor().map(Some),
            Kind::Uring(target) => target.file.try_clone().map(|file| Some(file.into())),
            Kind::Faulty(inner, _) => inner.descriptor(),
        }
    }

    /// One more door, for the thread whose `rings` they are. It does not leave that thread.
    ///
    /// # Errors
    /// No ring or memory to be had.
    pub fn door(&self, rings: &uring::Rings) -> io::Result<Box<dyn Backend>> {
        Ok(match &self.0 {
            Kind::Null(limits) => Box::new(null::Null::new(*limits)),
            Kind::Ram(source) => Box::new(ram::Ram::new(Arc::clone(source))),
            Kind::Uring(target) => Box::new(uring::Uring::new(Arc::clone(target), rings)?),
            Kind::Faulty(inner, plan) => Box::new(faulty::Faulty::new(inner.door(rings)?, plan.clone())),
        })
    }

    /// What the drive is, for a log line.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Kind::Null(limits) => format!("null, {} bytes", limits.capacity_bytes),
            Kind::Ram(source) => format!("ram, {} bytes", source.limits().capacity_bytes),
            Kind::Uring(target) => target.describe(),
            Kind::Faulty(inner, plan) => format!("faulty (seed {}) on {}", plan.seed, inner.describe()),
        }
    }
}

impl core::fmt::Debug for Drive {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Drive").field(&self.describe()).finish()
    }
}

/// Whole blocks of 4 KiB, so that every LBA format divides the capacity.
pub(crate) fn sized(size_bytes: u64) -> Result<u64, Error> {
    let possible = size_bytes > 0 && size_bytes.is_multiple_of(4096) && i64::try_from(size_bytes).is_ok();
    if possible { Ok(size_bytes) } else { Err(Error::Size { size_bytes, unit_bytes: 4096 }) }
}
