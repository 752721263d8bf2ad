//! The back-end's own requests to its front-end, on the socket that SET_BACKEND_REQ_FD brought.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;
use spec::vhost_user as wire;
use zerocopy::IntoBytes;

/// The socket for our own requests: the client's descriptor, and perhaps no socket at all.
#[derive(Debug)]
pub(crate) struct BackendChannel(OwnedFd);

impl BackendChannel {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Tells the front-end that the configuration space has changed, if the socket has room (it reads the space anew then,
    /// so one message is as good as many). No reply is asked for.
    pub(crate) fn config_changed(&self) -> Result<(), Errno> {
        let header = wire::Header {
            request: wire::BackendRequestId::ConfigChange.0,
            flags: wire::HeaderFlags(wire::VERSION),
            size: 0,
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&self.0, header.as_bytes(), flags) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_end_that_never_reads_is_not_waited_for_and_one_that_is_gone_is_noticed() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
        let channel = BackendChannel::new(theirs.into());
        (0..100_000).for_each(|_| channel.config_changed().expect("dropped"));
        drop(ours);
        assert_eq!(channel.config_changed(), Err(Errno::PIPE));
    }
}
