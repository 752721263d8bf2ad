//! The vocabulary of I/O: what a device model asks of a drive, and what it hears back.
//!
//! A [`Backend`] is one flat space of bytes. It is owned by one reactor: each reactor that serves an ssd opens its own
//! instance on the same file, device or memory, so nothing here is shared, locked or sent while I/O runs.
//!
//! What this crate does *not* do: it performs no I/O, knows no namespaces, and reads no clock.
#![deny(unsafe_op_in_unsafe_fn)]
#![expect(
    unsafe_code,
    reason = "one unsafe trait method: the lifetime of guest memory under I/O is a contract"
)]
// UNSAFETY: `Backend::submit` is an unsafe method so that the promise "this memory stays mapped until the completion"
// has one named place. This crate itself contains no unsafe block.

use memory::Segment;

/// Nanoseconds since an arbitrary origin that never goes back. Handed in, never read from a clock by device models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

/// The submitter's name for a request. The backend returns it unchanged, exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Drive to memory. Never-written bytes read as zeros.
    Read,
    /// Memory to drive. With `fua` the completion means the data is on stable media.
    Write {
        /// Force unit access: durable before the completion.
        fua: bool,
    },
    /// All writes completed before this was submitted are durable when it completes. `range` is ignored.
    Flush,
    /// The range reads as zeros afterwards; space may be given back when `deallocate`. No data segments.
    WriteZeroes {
        /// Space may be given back to the drive.
        deallocate: bool,
        /// Durable before the completion.
        fua: bool,
    },
    /// Advice that the range is unused. A successful discard reads back as zeros. No data segments.
    Discard,
}

/// A half-open run of bytes on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start_bytes: u64,
    /// Length. Reads and writes: the sum of the data segments.
    pub len_bytes: u64,
}

impl Range {
    /// One past the last byte; `None` when it does not fit in 64 bits.
    #[must_use]
    pub fn end_bytes(self) -> Option<u64> {
        self.start_bytes.checked_add(self.len_bytes)
    }
}

/// One request. The segments are copied (or consumed) before `submit` returns; the memory they name is not.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Returned with the outcome.
    pub token: Token,
    /// What to do.
    pub op: Op,
    /// Where on the backend. Multiples of [`Limits::block_bytes`].
    pub range: Range,
    /// Where in memory, in order. At most [`Limits::segments_max`]; any address, any length.
    pub data: &'a [Segment],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, whole.
    Done,
    /// The drive failed it (the host's fault). Part of a write may have landed.
    Failed(Fault),
}

/// Why a drive failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The medium could not be read or written (EIO and everything unnamed).
    Media,
    /// No space left to hold the data (ENOSPC, EDQUOT).
    NoSpace,
    /// The backend cannot do this operation at all (EOPNOTSUPP).
    Unsupported,
    /// The range lies outside the backend: a bug of the caller, refused before any I/O.
    OutOfRange,
    /// The guest memory could not be accessed (EFAULT): unmapped or truncated under us.
    Memory,
    /// The drive is gone or shut down.
    Gone,
}

/// A completion.
pub type Completion = (Token, Outcome);

/// What a backend can do; constant for its life.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the flat space.
    pub capacity_bytes: u64,
    /// Smallest addressable unit: 512 or 4096. Ranges are multiples of it.
    pub block_bytes: u32,
    /// Most data segments in a request.
    pub segments_max: usize,
    /// `Discard` gives space back and reads as zeros.
    pub discard: bool,
}

/// Whether a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// Ended at once; there will be no completion for it in `poll`.
    Ended(Outcome),
    /// In flight; `poll` will return its token once.
    Queued,
    /// No room now. Nothing happened; submit again after a completion.
    Full,
}

/// One reactor's door to a drive.
///
/// Duties of the caller: call `kick` after a burst of `submit`s and `poll` in every turn while anything is in flight.
/// Duties of the backend: every queued token comes back exactly once; no call blocks for the drive; no allocation on
/// the `submit`/`poll` path; nothing is ordered except as [`Op::Flush`] states.
pub trait Backend {
    /// Constant facts.
    fn limits(&self) -> Limits;

    /// Takes a request if there is room.
    ///
    /// # Safety
    /// The memory named by `request.data` stays mapped (its [`memory::MemoryMap`] or buffer is kept alive) until the
    /// token's completion was returned by `poll`, or `Ended`/`Full` by this call, or the backend was dropped.
    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted;

    /// Hands what was submitted since the last call to the drive: one system call for a burst, none when idle.
    fn kick(&mut self);

    /// Appends what has ended, at most `done.capacity() - done.len()` entries. Never blocks.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// Requests taken and not yet returned.
    fn in_flight(&self) -> usize;

    /// Requests whose memory or range the drive itself may be using now, or will by the next `poll`. Fewer than
    /// [`Backend::in_flight`] where some wait for something else than the drive; a process that ends may leave those to its successor.
    fn at_drive(&self) -> usize {
        self.in_flight()
    }

    /// Who asked for these wants them no more: those that wait for space end with [`Fault::NoSpace`], by the next `poll`. Parts of a write
    /// may have landed. All others end as they would. Nothing where nothing waits for space.
    fn give_up_waiting(&mut self, _whose: &dyn Fn(Token) -> bool) {}

    /// A descriptor that becomes readable when `poll` has something to return, for an idle reactor to sleep on.
    /// `None`: only polling moves things on, so do not sleep while anything is in flight.
    /// A sleep may also end early with `EINTR`: that, too, means `poll`.
    fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    /// Guest memory came or went: the backend may register it for faster I/O, and must forget what is gone. Called
    /// with no I/O of the departing memory in flight. Optional.
    fn memory_changed(&mut self, _map: &std::sync::Arc<memory::MemoryMap>) {}
}
