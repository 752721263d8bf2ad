//! A door to a drive whose data is encrypted.
#![expect(
    unsafe_code,
    reason = "copies between guest memory and bounce buffers, and passes Backend::submit on"
)]
// UNSAFETY: guest memory is touched only between `submit` and the end of its request, under the caller's promise that it stays mapped so
// long. The lower drive gets bounce buffers only, which live as long as the lower drive does: it is dropped first.

use crate::key::Key;
use crate::xts::{SECTOR_BYTES, Xts};
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// Requests at once.
const SLOTS: usize = 128;
/// Bytes of a request that are under way at once: longer ones go piece by piece.
const PIECE_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;

/// A request under way.
struct Slot {
    token: Token,
    op: Op,
    range: Range,
    /// Where the piece under way begins, from the request's start.
    at: usize,
    /// What is left of the guest's memory, from there on.
    data: Vec<Segment>,
}

impl Slot {
    fn len(&self) -> usize {
        usize::try_from(self.range.len_bytes).unwrap_or(usize::MAX)
    }

    fn moves_data(&self) -> bool {
        matches!(self.op, Op::Read | Op::Write { .. })
    }

    fn piece(&self) -> usize {
        if self.moves_data() { PIECE_BYTES.min(self.len() - self.at) } else { self.len() }
    }
}

/// See the crate.
pub struct Crypt {
    // First: nothing may write into a bounce buffer that is gone.
    lower: Box<dyn Backend>,
    xts: Xts,
    slots: Vec<Slot>,
    free: Vec<usize>,
    bounce: Bounce,
    /// Slots whose next piece the lower drive had no room for.
    stalled: VecDeque<usize>,
    below: Vec<Completion>,
    ended: VecDeque<Completion>,
}

/// How a step of a request ended.
enum Step {
    Ended(Outcome),
    Queued,
    Full,
}

impl Crypt {
    /// Decorates a door. `None`: no memory.
    ///
    /// # Panics
    /// The drive's blocks are no multiples of a sector, which [`block::Limits`] rules out.
    #[must_use]
    pub fn new(lower: Box<dyn Backend>, key: &Key) -> Option<Crypt> {
        let limits = lower.limits();
        assert!((limits.block_bytes as usize).is_multiple_of(SECTOR_BYTES));
        let slot = || Slot {
            token: Token(0),
            op: Op::Flush,
            range: Range { start_bytes: 0, len_bytes: 0 },
            at: 0,
            data: Vec::with_capacity(limits.segments_max),
        };
        Some(Crypt {
            xts: Xts::new(key)?,
            slots: (0..SLOTS).map(|_| slot()).collect(),
            free: (0..SLOTS).collect(),
            bounce: Bounce::new(),
            stalled: VecDeque::with_capacity(SLOTS),
            below: Vec::with_capacity(SLOTS),
            ended: VecDeque::with_capacity(SLOTS),
            lower,
        })
    }

    /// Hands the piece at hand to the lower drive, and those after it as long as each ends at once.
    ///
    /// # Safety
    /// The guest's memory of the slot is mapped.
    unsafe fn go_on(&mut self, index: usize) -> Step {
        loop {
            let slot = &self.slots[index];
            let (start, len) = (slot.range.start_bytes + slot.at as u64, slot.piece());
            let buffer = if slot.moves_data() { self.bounce.of(index, len) } else { &mut [] };
            if let Op::Write { .. } = slot.op {
                // SAFETY: mapped, as promised to us.
                unsafe { gather(&slot.data, buffer) };
                self.xts.encrypt(start / SECTOR_BYTES as u64, buffer);
            }
            let data = [Segment::of(buffer)];
            let request = Request {
                token: Token(index as u64),
                op: slot.op,
                range: Range { start_bytes: start, len_bytes: len as u64 },
                data: if slot.moves_data() { &data } else { &[] },
            };
            // SAFETY: the bounce buffer lives longer than the lower drive.
            match unsafe { self.lower.submit(&request) } {
                Submitted::Queued => return Step::Queued,
                Submitted::Full => return Step::Full,
                // SAFETY: as promised to us.
                Submitted::Ended(outcome) => match unsafe { self.piece_ended(index, outcome) } {
                    None => {}
                    Some(outcome) => return Step::Ended(outcome),
                },
            }
        }
    }

    /// Takes the piece at hand as done; how the request ended, if that was the last.
    ///
    /// # Safety
    /// The guest's memory of the slot is mapped.
    unsafe fn piece_ended(&mut self, index: usize, outcome: Outcome) -> Option<Outcome> {
        let slot = &mut self.slots[index];
        if outcome != Outcome::Done || !slot.moves_data() {
            return Some(outcome);
        }
        let len = slot.piece();
        if slot.op == Op::Read {
            let buffer = self.bounce.of(index, len);
            self.xts.decrypt((slot.range.start_bytes + slot.at as u64) / SECTOR_BYTES as u64, buffer);
            // SAFETY: mapped, as promised to us.
            unsafe { scatter(&slot.data, buffer) };
        }
        slot.at += len;
        if slot.at == slot.len() {
            return Some(Outcome::Done);
        }
        advance(&mut slot.data, len);
        None
    }

    fn release(&mut self, index: usize) {
        self.slots[index].data.clear();
        self.free.push(index);
    }

    fn end(&mut self, index: usize, outcome: Outcome) {
        self.ended.push_back((self.slots[index].token, outcome));
        self.release(index);
    }

    /// One step further with a request that is under way.
    fn resume(&mut self, index: usize) -> bool {
        // SAFETY: the request was taken and has not ended: its memory is mapped.
        match unsafe { self.go_on(index) } {
            Step::Queued => true,
            Step::Ended(outcome) => {
                self.end(index, outcome);
                true
            }
            Step::Full => false,
        }
    }
}

impl Backend for Crypt {
    fn limits(&self) -> Limits {
        self.lower.limits()
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        let limits = self.lower.limits();
        let in_range = request.range.end_bytes().is_some_and(|end| end <= limits.capacity_bytes);
        let bytes: usize = request.data.iter().map(Segment::len).sum();
        let moves_data = matches!(request.op, Op::Read | Op::Write { .. });
        if request.op != Op::Flush && !in_range || moves_data && bytes as u64 != request.range.len_bytes {
            return Submitted::Ended(Outcome::Failed(Fault::OutOfRange));
        }
        if request.data.len() > limits.segments_max {
            return Submitted::Ended(Outcome::Failed(Fault::Unsupported));
        }
        let Some(index) = self.free.pop() else { return Submitted::Full };
        let slot = &mut self.slots[index];
        (slot.token, slot.op, slot.range, slot.at) = (request.token, request.op, request.range, 0);
        slot.data.extend_from_slice(request.data);
        // SAFETY: the caller promises that the memory is mapped.
        match unsafe { self.go_on(index) } {
            Step::Queued => Submitted::Queued,
            Step::Ended(outcome) => {
                self.release(index);
                Submitted::Ended(outcome)
            }
            // Pieces before this one may be done: it is taken, and goes on with the next poll.
            Step::Full if self.slots[index].at > 0 => {
                self.stalled.push_back(index);
                Submitted::Queued
            }
            Step::Full => {
                self.release(index);
                Submitted::Full
            }
        }
    }

    fn kick(&mut self) {
        self.lower.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut below = core::mem::take(&mut self.below);
        self.lower.poll(&mut below);
        let mut moved = false;
        for (Token(index), outcome) in below.drain(..) {
            let Some(index) = usize::try_from(index).ok().filter(|index| *index < SLOTS) else { continue };
            // SAFETY: the request has not ended: its memory is mapped.
            match unsafe { self.piece_ended(index, outcome) } {
                Some(outcome) => self.end(index, outcome),
                None => self.stalled.push_back(index),
            }
        }
        self.below = below;
        while let Some(index) = self.stalled.pop_front() {
            if !self.resume(index) {
                self.stalled.push_front(index);
                break;
            }
            moved = true;
        }
        if moved {
            self.lower.kick();
        }
        let room = done.capacity() - done.len();
        done.extend(self.ended.drain(..room.min(self.ended.len())));
    }

    fn in_flight(&self) -> usize {
        SLOTS - self.free.len() + self.ended.len()
    }

    fn at_drive(&self) -> usize {
        self.lower.at_drive() + self.stalled.len() + self.ended.len()
    }

    fn give_up_waiting(&mut self, whose: &dyn Fn(Token) -> bool) {
        let Self { lower, slots, .. } = self;
        let slot = |Token(index)| slots.get(usize::try_from(index).ok()?);
        lower.give_up_waiting(&|index| slot(index).is_some_and(|slot| whose(slot.token)));
    }

    fn wake_fd(&self) -> Option<RawFd> {
        // What has ended here, or waits for room, no descriptor tells.
        if self.ended.is_empty() && self.stalled.is_empty() { self.lower.wake_fd() } else { None }
    }
}

/// Copies the segments' first bytes into the buffer.
///
/// # Safety
/// The segments are mapped.
unsafe fn gather(data: &[Segment], mut buffer: &mut [u8]) {
    for segment in data {
        let len = segment.len().min(buffer.len());
        let (head, rest) = buffer.split_at_mut(len);
        // SAFETY: mapped, as promised to us.
        unsafe { segment.copy_to(head) };
        buffer = rest;
    }
}

/// Copies the buffer into the segments' first bytes.
///
/// # Safety
/// The segments are mapped and writable.
unsafe fn scatter(data: &[Segment], mut buffer: &[u8]) {
    for segment in data {
        let (head, rest) = buffer.split_at(segment.len().min(buffer.len()));
        // SAFETY: mapped, as promised to us.
        unsafe { segment.copy_from(head) };
        buffer = rest;
    }
}

/// Takes `len` bytes off the segments' front.
fn advance(data: &mut Vec<Segment>, mut len: usize) {
    let whole = data.iter().take_while(|segment| {
        let is_whole = segment.len() <= len;
        len -= if is_whole { segment.len() } else { 0 };
        is_whole
    });
    let whole = whole.count();
    data.drain(..whole);
    if let Some(first) = data.first_mut() {
        *first = first.split_at(len).1;
    }
}

/// A buffer for each slot, of pages. Memory that no request ever touched takes no room.
struct Bounce {
    bytes: Vec<u8>,
    /// Of the first page.
    offset: usize,
}

impl Bounce {
    fn new() -> Bounce {
        let bytes = vec![0; SLOTS * PIECE_BYTES + PAGE_BYTES];
        let offset = bytes.as_ptr().align_offset(PAGE_BYTES);
        Bounce { bytes, offset }
    }

    /// The first bytes of a slot's.
    fn of(&mut self, slot: usize, len: usize) -> &mut [u8] {
        let start = self.offset + slot * PIECE_BYTES;
        &mut self.bytes[start..start + len]
    }
}
