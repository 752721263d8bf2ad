//! Frames off a stream socket: a header of fixed size that says how long the rest is, and descriptors.
//!
//! An [`Intake`] never reads a byte beyond the frame it is at, so descriptors are always counted to the frame they were sent
//! with. It keeps what came so far, so it works on blocking and non-blocking sockets alike.

use crate::socket::{SCM_FDS_MAX, peek, receive};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

pub use crate::socket::Wait;

/// Why the next frame cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Shorter than its header.
    #[error("a message of {0} bytes is shorter than its header")]
    TooShort(u32),
    /// Longer than any that the protocol needs.
    #[error("a message of {0} bytes is longer than any that the protocol needs")]
    TooLong(u32),
    /// The header is none of this protocol.
    #[error("the header is none of this protocol: {0}")]
    Nonsense(&'static str),
}

/// What is known of a protocol's frames. All the keeper knows of a client's protocol is in one of these.
#[derive(Debug)]
pub struct Shape {
    /// Bytes of the header, at most [`Shape::HEADER_BYTES_MAX`].
    pub header_bytes: usize,
    /// Bytes after the header, by the header. Must be bounded.
    pub payload_bytes: fn(&[u8]) -> Result<usize, BadFrame>,
    /// Descriptors of one frame that are kept; any more are closed, and the frame is marked.
    pub fds_max: usize,
}

impl Shape {
    /// The longest header.
    pub const HEADER_BYTES_MAX: usize = 64;
}

/// A frame, whole.
#[derive(Debug, Default)]
pub struct Frame {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Descriptors in the order they came.
    pub fds: Vec<OwnedFd>,
    /// More descriptors came than the shape allows. They are closed.
    pub surplus_fds: bool,
}

/// What a step of an [`Intake`] led to.
#[derive(Debug)]
pub enum Step {
    /// A frame is complete.
    Frame(Frame),
    /// Nothing more to read now (never with [`Wait::Block`]).
    Later,
    /// The peer closed between two frames.
    Closed,
    /// The peer closed inside a frame.
    Truncated,
    /// The stream cannot be followed any more.
    Bad(BadFrame),
    /// The socket failed.
    Failed(Errno),
}

/// A frame on its way in.
#[derive(Debug)]
pub struct Intake {
    shape: &'static Shape,
    bytes: Vec<u8>,
    filled: usize,
    /// The header was understood; `bytes` has the frame's length.
    sized: bool,
    fds: Vec<OwnedFd>,
    surplus_fds: bool,
}

impl Intake {
    /// Ready for the first frame.
    #[must_use]
    pub fn new(shape: &'static Shape) -> Self {
        debug_assert!(shape.header_bytes <= Shape::HEADER_BYTES_MAX && shape.header_bytes > 0);
        Self { shape, bytes: Vec::new(), filled: 0, sized: false, fds: Vec::new(), surplus_fds: false }
    }

    /// Part of a frame is here: its sender owes the rest.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.filled > 0
    }

    /// The part of a frame that is here, to be given to [`Intake::resume`] in another process.
    #[must_use]
    pub fn begun(&self) -> (&[u8], &[OwnedFd], bool) {
        (self.bytes.get(..self.filled).unwrap_or(&[]), &self.fds, self.surplus_fds)
    }

    /// Goes on where another intake stopped.
    ///
    /// # Errors
    /// The bytes are no beginning of a frame.
    pub fn resume(shape: &'static Shape, begun: Frame) -> Result<Self, BadFrame> {
        let mut intake = Self::new(shape);
        intake.filled = begun.bytes.len();
        intake.bytes = begun.bytes;
        intake.fds = begun.fds;
        intake.surplus_fds = begun.surplus_fds;
        if intake.filled >= shape.header_bytes {
            let frame_bytes = intake.size()?;
            if intake.filled > frame_bytes {
                return Err(BadFrame::Nonsense("more bytes than the frame has"));
            }
        } else {
            intake.bytes.resize(shape.header_bytes, 0);
        }
        Ok(intake)
    }

    /// Reads until a frame is complete, the socket is empty, or something is wrong.
    pub fn step(&mut self, socket: impl AsFd, wait: Wait) -> Step {
        if self.bytes.is_empty() {
            self.bytes.resize(self.shape.header_bytes, 0);
        }
        loop {
            match self.bytes.get_mut(self.filled..) {
                Some(rest) if !rest.is_empty() => {
                    let mut fds = Vec::new();
                    let received = match receive(&socket, rest, &mut fds, wait) {
                        Ok(received) => received,
                        Err(Errno::AGAIN) => return Step::Later,
                        Err(Errno::CONNRESET) => return self.closed(),
                        Err(errno) => return Step::Failed(errno),
                    };
                    self.surplus_fds |= received.cut;
                    self.keep(fds);
                    if received.bytes == 0 {
                        return self.closed();
                    }
                    self.filled += received.bytes;
                }
                _ if self.sized => return Step::Frame(self.take()),
                _ => {
                    if let Err(bad) = self.size() {
                        return Step::Bad(bad);
                    }
                }
            }
        }
    }

    /// As [`Intake::step`] with [`Wait::Never`], but reads once at most, and what it reads stays in the socket: before the next
    /// look the caller takes as many bytes from there as are returned.
    pub fn peek(&mut self, socket: impl AsFd) -> (Step, usize) {
        if self.bytes.is_empty() {
            self.bytes.resize(self.shape.header_bytes, 0);
        }
        let mut peeked = 0;
        let rest = self.bytes.get_mut(self.filled..).unwrap_or(&mut []);
        if !rest.is_empty() {
            let mut fds = Vec::new();
            let received = match peek(&socket, rest, &mut fds) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return (Step::Later, 0),
                Err(Errno::CONNRESET) => return (self.closed(), 0),
                Err(errno) => return (Step::Failed(errno), 0),
            };
            self.surplus_fds |= received.cut;
            self.keep(fds);
            if received.bytes == 0 {
                return (self.closed(), 0);
            }
            peeked = received.bytes;
            self.filled += peeked;
        }
        if !self.sized
            && self.filled >= self.shape.header_bytes
            && let Err(bad) = self.size()
        {
            return (Step::Bad(bad), peeked);
        }
        match self.sized && self.filled == self.bytes.len() {
            true => (Step::Frame(self.take()), peeked),
            false => (Step::Later, peeked),
        }
    }

    fn closed(&self) -> Step {
        if self.is_begun() { Step::Truncated } else { Step::Closed }
    }

    fn keep(&mut self, fds: Vec<OwnedFd>) {
        for fd in fds {
            if self.fds.len() < self.shape.fds_max {
                self.fds.push(fd);
            } else {
                self.surplus_fds = true;
            }
        }
    }

    /// The header is here: makes room for the rest.
    fn size(&mut self) -> Result<usize, BadFrame> {
        let header_bytes = self.shape.header_bytes;
        let header = self.bytes.get(..header_bytes).ok_or(BadFrame::Nonsense("short"))?;
        let frame_bytes = header_bytes.saturating_add((self.shape.payload_bytes)(header)?);
        self.bytes.resize(frame_bytes.max(self.filled), 0);
        self.sized = true;
        Ok(frame_bytes)
    }

    fn take(&mut self) -> Frame {
        self.filled = 0;
        self.sized = false;
        Frame {
            bytes: std::mem::take(&mut self.bytes),
            fds: std::mem::take(&mut self.fds),
            surplus_fds: std::mem::take(&mut self.surplus_fds),
        }
    }
}

const _: () = assert!(SCM_FDS_MAX >= 16);
