//! Client memory reached by DMA_READ and DMA_WRITE messages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use spec::vfio_user::{CommandId, DmaAccess};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::{Channel, Fault};
use super::frame::{HEADER_BYTES, Header, Outgoing, OutgoingHeader};

/// The most commands of ours under way at a time.
const OUTSTANDING_MAX: usize = 64;

/// Reads and writes client memory that came without a descriptor. Clones share the session; any thread may call, each
/// call blocks until the client has answered, at most [`super::Limits::remote_time`] in all.
///
/// A client answers only while it reads its socket: QEMU does so on a thread of its own, except that it copies under its
/// big lock, so a call made while QEMU waits for *us* with that lock held runs into the time limit. The same happens while
/// a client has so many commands under way that the session takes no more off the socket (256) before its device call,
/// which waits here, has ended.
#[derive(Clone)]
pub struct RemoteMemory(Arc<Remote>);

struct Remote {
    channel: Arc<dyn Channel>,
    state: Mutex<State>,
    changed: Condvar,
    time_limit: Duration,
    /// The session was ended here, because the client does not read.
    unread: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By message id; `None` until answered.
    waiting: HashMap<u16, Option<Answer>>,
    next_id: u16,
    /// 0 until the version is agreed on.
    data_bytes_max: usize,
    closed: bool,
    layout: Layout,
}

impl State {
    fn free_id(&mut self) -> u16 {
        // Fewer than 2^16 are in use, so this ends.
        while self.waiting.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }
}

struct Answer {
    header: Header,
    payload: Vec<u8>,
}

/// A command of ours, without its data.
struct Access {
    id: u16,
    kind: Outgoing,
    command: CommandId,
    iova: u64,
    count: u64,
}

impl std::fmt::Debug for RemoteMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteMemory").finish_non_exhaustive()
    }
}

impl RemoteMemory {
    pub(crate) fn new(channel: Arc<dyn Channel>, time_limit: Duration) -> Self {
        let (state, changed, unread) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Self(Arc::new(Remote { channel, state, changed, time_limit, unread }))
    }

    /// Reads client memory. `ENOTCONN` once the session is over, `ETIMEDOUT` when the client does not answer, `EPROTO`
    /// when it answers nonsense, else the client's own errno. On failure the contents of `data` are unspecified.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Errno> {
        let (chunk_bytes, deadline) = self.begin()?;
        let mut at = iova;
        for chunk in data.chunks_mut(chunk_bytes) {
            let bytes = chunk.len() as u64;
            let answer = self.round_trip(CommandId::DmaRead, at, bytes, &[], deadline)?;
            let data_at = self.learn(&answer, chunk.len())?;
            let copied = answer.get(data_at..data_at + chunk.len()).ok_or(Errno::PROTO)?;
            chunk.copy_from_slice(copied);
            at = at.wrapping_add(bytes);
        }
        Ok(())
    }

    /// Writes client memory; fails as [`RemoteMemory::read`] does, and then any part may have been written.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        let (chunk_bytes, deadline) = self.begin()?;
        let mut at = iova;
        for chunk in data.chunks(chunk_bytes) {
            let bytes = chunk.len() as u64;
            self.round_trip(CommandId::DmaWrite, at, bytes, chunk, deadline)?;
            at = at.wrapping_add(bytes);
        }
        Ok(())
    }

    /// Stores bytes of client memory as they are, so that the client takes their pages for written by the device. A client takes our commands in their
    /// order: it is asked to answer the last, for all. Returns when they are sent; others may be sent before the answer is waited for.
    ///
    /// # Errors
    /// `ENOTCONN` once the session is over; `EINVAL`: none, or one is more than the client takes at once; `EPROTO`: the client has other bytes there; else
    /// as [`RemoteMemory::read`].
    pub fn touch(&self, stores: &[Store]) -> Result<Receipt<'_>, Errno> {
        let (bytes_max, deadline) = self.begin()?;
        let last = stores.last().ok_or(Errno::INVAL)?;
        if stores.iter().any(|store| store.bytes.len() > bytes_max) {
            return Err(Errno::INVAL);
        }
        for store in stores {
            self.settle_layout(store.iova, &store.bytes)?;
        }
        let place = self.place(deadline)?;
        let mut messages = Vec::with_capacity(stores.len());
        let (layout, notice) = {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody answers to it.
            (state.layout, state.free_id())
        };
        for (number, store) in (1..).zip(stores) {
            let (id, kind) = match number == stores.len() {
                true => (place.id, Outgoing::Command),
                false => (notice, Outgoing::Notice),
            };
            let (command, count) = (CommandId::DmaWrite, store.bytes.len() as u64);
            messages.push(encode(
                &Access { id, kind, command, iova: store.iova, count },
                &store.bytes,
                layout,
            ));
        }
        self.send(messages)?;
        Ok(Receipt { place, iova: last.iova, count: last.bytes.len() as u64, deadline })
    }

    /// Before bytes are written that would be others in the other layout. Zeros are zeros in both.
    fn settle_layout(&self, iova: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.iter().all(|byte| *byte == 0) || self.layout() != Layout::Unknown {
            return Ok(());
        }
        let mut there = vec![0; bytes.len()];
        self.read(iova, &mut there)?;
        if there == bytes && self.layout() != Layout::Unknown { Ok(()) } else { Err(Errno::PROTO) }
    }

    /// Ends the session from the device's side: the client's memory proved not to be what it was said to be.
    pub fn hang_up(&self) {
        self.close();
        self.0.channel.hang_up();
    }

    /// The session is over: everyone who waits is told, and later calls fail at once.
    pub(crate) fn close(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.changed.notify_all();
    }

    /// The session ended because the client did not read a command of ours.
    pub(crate) fn ended_unread(&self) -> bool {
        self.0.unread.load(Ordering::Acquire)
    }

    /// The version is agreed on.
    pub(crate) fn open(&self, data_bytes_max: usize) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).data_bytes_max = data_bytes_max;
    }

    /// Hands a reply to whoever waits for it; false when nobody does.
    pub(crate) fn answer(&self, header: Header, payload: Vec<u8>) -> bool {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.waiting.get_mut(&header.id) {
            Some(place @ None) => {
                *place = Some(Answer { header, payload });
                drop(state);
                self.0.changed.notify_all();
                true
            }
            _ => false,
        }
    }

    fn begin(&self) -> Result<(usize, Instant), Errno> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed || state.data_bytes_max == 0 {
            return Err(Errno::NOTCONN);
        }
        Ok((state.data_bytes_max, Instant::now() + self.0.time_limit))
    }

    /// Sends one command and waits for its reply's payload, whose address and count have been checked.
    fn round_trip(
        &self,
        command: CommandId,
        iova: u64,
        count: u64,
        data: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Errno> {
        let place = self.place(deadline)?;
        let access = Access { id: place.id, kind: Outgoing::Command, command, iova, count };
        self.send(vec![encode(&access, data, self.layout())])?;
        let answer = place.wait(deadline)?;
        check(&answer, command, iova, count)?;
        Ok(answer.payload)
    }

    fn send(&self, messages: Vec<Vec<u8>>) -> Result<(), Errno> {
        let Err(fault) = self.0.channel.requests(messages) else { return Ok(()) };
        // Part of a message may be out: nothing after it could be understood.
        self.0.unread.store(fault == Fault::Slow, Ordering::Release);
        self.close();
        self.0.channel.hang_up();
        Err(Errno::NOTCONN)
    }

    fn layout(&self) -> Layout {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).layout
    }

    /// Where the data of a DMA_READ reply begin.
    fn learn(&self, payload: &[u8], data_bytes: usize) -> Result<usize, Errno> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (data_at, layout) = state.layout.learn(payload, data_bytes).ok_or(Errno::PROTO)?;
        state.layout = layout;
        Ok(data_at)
    }

    /// A free message id, in use until the place is dropped.
    fn place(&self, deadline: Instant) -> Result<Place<'_>, Errno> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && state.waiting.len() >= OUTSTANDING_MAX {
            state = self.sleep(state, deadline)?;
        }
        if state.closed {
            return Err(Errno::NOTCONN);
        }
        let id = state.free_id();
        state.waiting.insert(id, None);
        Ok(Place { memory: self, id })
    }

    fn sleep<'a>(
        &self,
        state: std::sync::MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Result<std::sync::MutexGuard<'a, State>, Errno> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        Ok(self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// Bytes of client memory, as they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where.
    pub iova: u64,
    /// At most as many as the client takes at once.
    pub bytes: Vec<u8>,
}

/// What a client will answer to stores that it was sent.
#[must_use = "what was sent is stored when the client has said so"]
pub struct Receipt<'a> {
    place: Place<'a>,
    iova: u64,
    count: u64,
    deadline: Instant,
}

impl Receipt<'_> {
    /// Until the client has stored them, and all that it was sent before.
    ///
    /// # Errors
    /// As [`RemoteMemory::read`].
    pub fn wait(self) -> Result<(), Errno> {
        check(&self.place.wait(self.deadline)?, CommandId::DmaWrite, self.iova, self.count)
    }
}

fn encode(access: &Access, data: &[u8], layout: Layout) -> Vec<u8> {
    let Access { id, kind, command, iova, count } = *access;
    let payload_bytes = size_of::<DmaAccess>() + data.len();
    let header = OutgoingHeader { id, command, payload_bytes, kind }.encode();
    let mut message = Vec::with_capacity(header.len() + payload_bytes);
    message.extend_from_slice(&header);
    message.extend_from_slice(DmaAccess { address: iova, count }.as_bytes());
    message.extend_from_slice(data);
    if command == CommandId::DmaWrite && layout == Layout::Narrow {
        // The upper half of the count moves behind the data, as padding.
        if let Some(tail) = message.get_mut(HEADER_BYTES + 12..) {
            tail.rotate_left(4);
        }
    }
    message
}

/// A message id in use.
struct Place<'a> {
    memory: &'a RemoteMemory,
    id: u16,
}

impl Place<'_> {
    fn wait(&self, deadline: Instant) -> Result<Answer, Errno> {
        let mut state = self.memory.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = state.waiting.get_mut(&self.id).and_then(Option::take) {
                return Ok(answer);
            }
            if state.closed {
                return Err(Errno::NOTCONN);
            }
            state = self.memory.sleep(state, deadline)?;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.memory.0.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.id);
        self.memory.0.changed.notify_all();
    }
}

/// How a client lays out DMA_READ and DMA_WRITE.
///
/// QEMU 10.1 and 10.2 have a 32-bit count, the data right after it and four bytes of padding at the end, so that only the
/// contents tell the layouts apart. Until they do, the client is taken to follow vfio-user.rst. (The first thing a
/// controller reads is a command, which begins with a byte that is not 0.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Layout {
    #[default]
    Unknown,
    /// A 64-bit count, as vfio-user.rst says.
    Wide,
    /// A 32-bit count.
    Narrow,
}

impl Layout {
    /// Where the data of a DMA_READ reply begin, and what is now known; `None` when it fits neither layout.
    fn learn(self, payload: &[u8], data_bytes: usize) -> Option<(usize, Self)> {
        if payload.len() != size_of::<DmaAccess>() + data_bytes {
            return None;
        }
        let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        let count_fits_wide = zero(payload.get(12..16)?);
        let padding_fits_narrow = zero(payload.get(12 + data_bytes..)?);
        match (self, count_fits_wide, padding_fits_narrow) {
            (Self::Unknown, true, true) => Some((16, Self::Unknown)),
            (Self::Unknown | Self::Wide, true, false) | (Self::Wide, true, true) => Some((16, Self::Wide)),
            (Self::Unknown | Self::Narrow, false, true) | (Self::Narrow, true, true) => {
                Some((12, Self::Narrow))
            }
            _ => None,
        }
    }
}

/// An error is the client's errno; a reply to something else is `EPROTO`. Of the count only the half that every layout
/// has is looked at.
fn check(answer: &Answer, command: CommandId, iova: u64, count: u64) -> Result<(), Errno> {
    if answer.header.command != command {
        return Err(Errno::PROTO);
    }
    if answer.header.is_error() {
        // An errno out of the kernel's range is the client's invention.
        let errno = i32::try_from(answer.header.errno).ok().filter(|errno| (1..4096).contains(errno));
        return Err(errno.map_or(Errno::IO, Errno::from_raw_os_error));
    }
    let (address, rest) = u64::read_from_prefix(&answer.payload).map_err(|_| Errno::PROTO)?;
    let (done, _) = u32::read_from_prefix(rest).map_err(|_| Errno::PROTO)?;
    if address == iova && u64::from(done) == count { Ok(()) } else { Err(Errno::PROTO) }
}
