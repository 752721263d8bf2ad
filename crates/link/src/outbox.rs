//! Messages on their way out of a stream socket, in order, with their descriptors.

use crate::socket::{SCM_FDS_MAX, Wait, send};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Messages that go out by one system call at most.
const TOGETHER_MAX: usize = 64;

/// A message to send: a head, and a body that others may share.
#[derive(Clone, Debug, Default)]
pub struct Parcel {
    /// Goes first.
    pub head: Vec<u8>,
    /// Goes after the head.
    pub body: Arc<Vec<u8>>,
    /// Go with the first byte; at most 253.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Parcel {
    /// A message in one piece.
    #[must_use]
    pub fn whole(bytes: Vec<u8>, fds: Vec<Arc<OwnedFd>>) -> Self {
        Self { head: bytes, body: Arc::default(), fds }
    }

    /// Bytes of head and body.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// What waits for room in a socket. Whoever fills it looks at [`Outbox::len_bytes`] first and bounds it.
#[derive(Debug, Default)]
pub struct Outbox {
    parcels: VecDeque<Parcel>,
    /// Bytes of the first parcel that are sent.
    sent: usize,
    len_bytes: usize,
}

impl Outbox {
    /// Goes on where another outbox stopped: what waits, and how many bytes of the first message are sent.
    ///
    /// # Errors
    /// Of the first message less waits than was sent, or one has more descriptors than a message carries.
    pub fn resume(parcels: Vec<Parcel>, sent: usize) -> Result<Self, crate::LinkError> {
        let mut outbox = Self::default();
        for parcel in parcels {
            outbox.push(parcel)?;
        }
        if outbox.parcels.front().map_or(sent > 0, |parcel| sent >= parcel.len_bytes()) {
            return Err(crate::LinkError::Nonsense("more bytes sent than there were"));
        }
        outbox.sent = sent;
        outbox.len_bytes -= sent;
        Ok(outbox)
    }

    /// Appends a message. An empty one is nothing.
    ///
    /// # Errors
    /// More descriptors than one message carries.
    pub fn push(&mut self, parcel: Parcel) -> Result<(), crate::LinkError> {
        if parcel.fds.len() > SCM_FDS_MAX {
            return Err(crate::LinkError::TooLarge("more than 253 descriptors in one message"));
        }
        if parcel.len_bytes() > 0 {
            self.len_bytes += parcel.len_bytes();
            self.parcels.push_back(parcel);
        }
        Ok(())
    }

    /// Bytes not yet sent.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// All is sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    /// Messages not yet sent whole.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parcels.len()
    }

    /// What waits, and how many bytes of the first message are sent already: for a successor process.
    pub fn waiting(&self) -> (impl Iterator<Item = &Parcel>, usize) {
        (self.parcels.iter(), self.sent)
    }

    /// Forgets so many bytes at the front, which were sent after all. False: there are not so many.
    #[must_use]
    pub fn skip(&mut self, bytes: u64) -> bool {
        let Some(mut bytes) = usize::try_from(bytes).ok().filter(|bytes| *bytes <= self.len_bytes) else {
            return false;
        };
        self.len_bytes -= bytes;
        while let Some(parcel) = self.parcels.front()
            && bytes > 0
        {
            let step = bytes.min(parcel.len_bytes() - self.sent);
            self.sent += step;
            bytes -= step;
            if self.sent == parcel.len_bytes() {
                self.parcels.pop_front();
                self.sent = 0;
            }
        }
        true
    }

    /// Sends until all is sent (true) or the socket is full (false; never with [`Wait::Block`]).
    ///
    /// # Errors
    /// The peer is gone, or the socket failed.
    pub fn flush(&mut self, socket: impl AsFd, wait: Wait) -> Result<bool, Errno> {
        self.flush_by(|parts, fds| send(&socket, parts, fds, wait))
    }

    /// As [`Outbox::flush`], by another way to send: parts and descriptors in, bytes sent out.
    ///
    /// # Errors
    /// What `send` fails with, but EAGAIN.
    pub fn flush_by(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>], &[BorrowedFd<'_>]) -> Result<usize, Errno>,
    ) -> Result<bool, Errno> {
        while let Some(parcel) = self.parcels.front() {
            let fds: Vec<_> = match self.sent {
                0 => parcel.fds.iter().map(|fd| fd.as_fd()).collect(),
                _ => Vec::new(),
            };
            let sent = match send(&self.parts(), &fds) {
                Ok(count) => self.skip(count as u64),
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            debug_assert!(sent, "more than there was to send");
        }
        Ok(true)
    }

    /// What goes out at once: messages from the first on, up to one that has descriptors, which are to go with its own first byte.
    fn parts(&self) -> Vec<IoSlice<'_>> {
        let together = self.parcels.iter().skip(1).take_while(|parcel| parcel.fds.is_empty());
        let mut parts = Vec::with_capacity(2 * self.parcels.len().min(TOGETHER_MAX));
        let mut sent = self.sent;
        for parcel in self.parcels.front().into_iter().chain(together).take(TOGETHER_MAX) {
            let head = parcel.head.get(sent..).unwrap_or(&[]);
            let body = parcel.body.get(sent.saturating_sub(parcel.head.len())..).unwrap_or(&[]);
            parts.extend([head, body].into_iter().filter(|part| !part.is_empty()).map(IoSlice::new));
            sent = 0;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_goes_on_in_the_middle_of_a_message_and_never_beyond_its_end() {
        let parcels =
            || vec![Parcel::whole(b"hello ".to_vec(), vec![]), Parcel::whole(b"world".to_vec(), vec![])];
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
        let mut outbox = Outbox::resume(parcels(), 4).expect("resumed");
        assert_eq!((outbox.len_bytes(), outbox.len()), (7, 2));
        assert_eq!(outbox.flush(&ours, Wait::Never), Ok(true));
        drop(ours);
        assert_eq!(std::io::read_to_string(theirs).expect("read"), "o world");
        let mut outbox = Outbox::resume(parcels(), 4).expect("resumed");
        assert!(!outbox.skip(8) && outbox.skip(0));
        assert!(outbox.skip(4) && outbox.len_bytes() == 3 && outbox.waiting().1 == 2);
        assert!(outbox.skip(3) && outbox.is_empty());
        assert!(Outbox::resume(parcels(), 6).is_err());
        assert!(Outbox::resume(Vec::new(), 1).is_err());
        assert!(Outbox::resume(Vec::new(), 0).expect("empty").is_empty());
    }

    /// What each call to send would have been given, by a socket that takes so many bytes of each.
    fn calls(outbox: &mut Outbox, takes: usize) -> Vec<(Vec<u8>, usize)> {
        let mut calls = Vec::new();
        let all = outbox.flush_by(|parts, fds| {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let count = bytes.len().min(takes);
            calls.push((bytes[..count].to_vec(), fds.len()));
            Ok(count)
        });
        assert_eq!((all, outbox.len_bytes(), outbox.is_empty()), (Ok(true), 0, true));
        calls
    }

    #[test]
    fn messages_go_together_up_to_one_that_has_descriptors() {
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("a file")));
        let filled = || {
            let mut outbox = Outbox::default();
            for (text, fds) in [("a", 1), ("b", 0), ("c", 0), ("d", 2), ("e", 0)] {
                let body = Arc::new(text.repeat(3).into_bytes());
                let parcel = Parcel { head: text.into(), body, fds: vec![Arc::clone(&fd); fds] };
                outbox.push(parcel).expect("few descriptors");
            }
            outbox
        };
        let call = |text: &str, fds| (text.as_bytes().to_vec(), fds);
        assert_eq!(calls(&mut filled(), 100), [call("aaaabbbbcccc", 1), call("ddddeeee", 2)]);
        let few = [call("aaaab", 1), call("bbbcc", 0), call("cc", 0), call("dddde", 2), call("eee", 0)];
        assert_eq!(calls(&mut filled(), 5), few);
    }

    #[test]
    fn a_call_takes_so_many_messages_and_no_more() {
        let mut outbox = Outbox::default();
        for _ in 0..=TOGETHER_MAX {
            outbox.push(Parcel::whole(vec![1], Vec::new())).expect("no descriptors");
        }
        let sizes: Vec<_> = calls(&mut outbox, 1000).iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(sizes, [TOGETHER_MAX, 1]);
    }
}
