//! What can go wrong between a guest and its device.

use std::io;
use std::time::Duration;

use crate::nvme::Status;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the guest did not get what it wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("system call: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server answered with the Error flag.
    #[error("the server refused command {command} with errno {errno}")]
    Refused {
        /// The vfio-user command number.
        command: u16,
        /// The errno of the reply.
        errno: u32,
    },
    /// The server's bytes make no sense.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// Guest RAM has no such run of free pages left.
    #[error("guest RAM has no {0} free bytes in one run")]
    OutOfRam(usize),
    /// The submission queue has no free slot.
    #[error("submission queue {0} is full")]
    QueueFull(u16),
    /// This driver has no such queue.
    #[error("this driver has not created queue {0}")]
    NoQueue(u16),
    /// The command completed with a status other than success.
    #[error("the command failed: {0}")]
    Status(Status),
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal status (CSTS {0:#x})")]
    Fatal(u32),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Error::Io(errno.into())
    }
}

impl Error {
    /// The errno of a refusal, if it is one.
    #[must_use]
    pub fn errno(&self) -> Option<u32> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The NVMe status of a failed command, if it is one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Error::Status(status) => Some(*status),
            _ => None,
        }
    }
}
