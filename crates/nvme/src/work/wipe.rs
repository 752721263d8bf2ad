//! Makes ranges of the backend read as zeros (or as a pattern), piece by piece, and flushes.

use block::{Fault, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;

use crate::controller::{Controller, Host};

/// Longest piece that moves no data.
const ZERO_PIECE_BYTES: u64 = 256 << 20;
/// Longest piece that is written.
const WRITE_PIECE_BYTES: u64 = 1 << 20;
/// Requests started in one turn when each ends at once.
const BURST_MAX: usize = 64;

/// How blocks are erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Erase {
    /// To zeros; space is given back when `deallocate`.
    Zeros { deallocate: bool },
    /// To a pattern, several times; inverted on every second pass when `invert`, so that the last pass writes the pattern
    /// itself or its inversion as Base 2.1, 5.1.22 defines for OIPBP.
    /// Zeros follow when `deallocate`.
    Pattern { pattern: u32, passes: u8, invert: bool, deallocate: bool },
}

/// A wipe under way.
#[derive(Debug)]
pub(crate) struct Wiper {
    ranges: Vec<Range>,
    erase: Erase,
    pass: u8,
    index: usize,
    offset_bytes: u64,
    /// Total of finished pieces in this pass.
    pass_bytes: u64,
    in_flight: Option<(Token, u64)>,
    flushing: bool,
    by_writing: bool,
    wants_room: bool,
    buffer: Vec<u8>,
    filled_for: Option<u32>,
}

/// What came of a piece.
enum After {
    /// More to do.
    Continue,
    /// All done and durable, or failed.
    Ended(bool),
}

impl Wiper {
    pub(crate) fn new(ranges: Vec<Range>, erase: Erase) -> Self {
        Self {
            ranges,
            erase,
            pass: 0,
            index: 0,
            offset_bytes: 0,
            pass_bytes: 0,
            in_flight: None,
            flushing: false,
            by_writing: false,
            wants_room: false,
            buffer: Vec::new(),
            filled_for: None,
        }
    }

    /// Goes on where a predecessor was: so many passes done, so many bytes of the one range in the next.
    pub(crate) fn resumed(mut self, passes_done: u8, done_bytes: u64) -> Self {
        self.pass = passes_done.min(self.passes());
        self.offset_bytes = done_bytes.min(self.ranges.first().map_or(0, |r| r.len_bytes));
        self.pass_bytes = self.offset_bytes;
        self
    }

    /// Needs another turn: the backend was full, or the burst was long enough.
    pub(crate) fn wants_room(&self) -> bool {
        self.wants_room
    }

    /// Passes finished, and bytes of the one under way.
    pub(crate) fn progress(&self) -> (u8, u64) {
        (self.pass, self.pass_bytes)
    }

    /// The part done, in 65536ths.
    pub(crate) fn fraction(&self) -> u16 {
        let total: u64 = self.ranges.iter().map(|r| r.len_bytes).sum();
        let whole = u128::from(total) * u128::from(self.passes());
        let done = u128::from(total) * u128::from(self.pass) + u128::from(self.pass_bytes);
        u16::try_from((done * 65536).checked_div(whole).unwrap_or(0))
            .unwrap_or(u16::MAX - 1)
            .min(u16::MAX - 1)
    }

    fn passes(&self) -> u8 {
        match self.erase {
            Erase::Zeros { .. } => 1,
            Erase::Pattern { passes, deallocate, .. } => passes.max(1).saturating_add(u8::from(deallocate)),
        }
    }

    /// The next piece, or `None` when only the flush is left.
    fn piece(&mut self) -> Option<Range> {
        loop {
            if self.pass >= self.passes() {
                return None;
            }
            let Some(range) = self.ranges.get(self.index) else {
                (self.pass, self.index, self.offset_bytes, self.pass_bytes) = (self.pass + 1, 0, 0, 0);
                continue;
            };
            let left = range.len_bytes.saturating_sub(self.offset_bytes);
            if left == 0 {
                (self.index, self.offset_bytes) = (self.index + 1, 0);
                continue;
            }
            let most = if self.writes() { WRITE_PIECE_BYTES } else { ZERO_PIECE_BYTES };
            return Some(Range {
                start_bytes: range.start_bytes + self.offset_bytes,
                len_bytes: left.min(most),
            });
        }
    }

    fn writes(&self) -> bool {
        self.by_writing || self.is_patterned()
    }

    /// This pass writes the pattern.
    fn is_patterned(&self) -> bool {
        matches!(self.erase, Erase::Pattern { passes, .. } if self.pass < passes.max(1))
    }

    fn fill(&mut self) {
        let word = match self.erase {
            Erase::Pattern { pattern, passes, invert, .. } if self.is_patterned() => {
                // The pass after which an even number is left writes the pattern itself: the last one does.
                let inverted = invert && (passes.max(1) - 1 - self.pass) % 2 == 1;
                if inverted { !pattern } else { pattern }
            }
            _ => 0,
        };
        if self.filled_for != Some(word) {
            self.buffer = word.to_le_bytes().repeat(usize::try_from(WRITE_PIECE_BYTES / 4).unwrap_or(0));
            self.filled_for = Some(word);
        }
    }

    fn submit(&mut self, token: Token, host: &mut impl Host) -> Submitted {
        let Some(range) = self.piece() else {
            self.flushing = true;
            self.in_flight = Some((token, 0));
            let range = Range { start_bytes: 0, len_bytes: 0 };
            return host.submit(&Request { token, op: Op::Flush, range, data: &[] });
        };
        self.in_flight = Some((token, range.len_bytes));
        if self.writes() {
            self.fill();
            let len = usize::try_from(range.len_bytes).unwrap_or(0).min(self.buffer.len());
            let data = [Segment::of(&mut self.buffer[..len])];
            return host.submit(&Request { token, op: Op::Write { fua: false }, range, data: &data });
        }
        let (Erase::Zeros { deallocate } | Erase::Pattern { deallocate, .. }) = self.erase;
        host.submit(&Request { token, op: Op::WriteZeroes { deallocate, fua: false }, range, data: &[] })
    }

    fn ended(&mut self, outcome: Outcome) -> After {
        let len = self.in_flight.take().map_or(0, |(_, len)| len);
        match outcome {
            Outcome::Done if self.flushing => After::Ended(true),
            Outcome::Done => {
                self.offset_bytes += len;
                self.pass_bytes += len;
                After::Continue
            }
            Outcome::Failed(Fault::Unsupported) if !self.writes() => {
                self.by_writing = true;
                After::Continue
            }
            Outcome::Failed(fault) => {
                tracing::error!(?fault, "a range could not be wiped");
                After::Ended(false)
            }
        }
    }
}

impl Controller {
    /// Starts (or goes on with) the wipe: as many requests as end at once, up to a burst.
    pub(crate) fn pump_wipe(&mut self, host: &mut impl Host) {
        for _ in 0..BURST_MAX {
            if self.wiper.as_ref().is_none_or(|w| w.in_flight.is_some()) {
                return;
            }
            let token = self.next_token();
            let Some(wiper) = &mut self.wiper else { return };
            wiper.wants_room = false;
            match wiper.submit(token, host) {
                Submitted::Queued => return,
                Submitted::Full => {
                    wiper.in_flight = None;
                    wiper.flushing = false;
                    wiper.wants_room = true;
                    return;
                }
                Submitted::Ended(outcome) => self.wipe_piece_ended(outcome, host),
            }
        }
        if let Some(wiper) = &mut self.wiper {
            wiper.wants_room = wiper.in_flight.is_none();
        }
    }

    /// Takes the end of a piece. `false`: the token is another's.
    pub(crate) fn wipe_ended(&mut self, token: Token, outcome: Outcome, host: &mut impl Host) -> bool {
        let mine = self.wiper.as_ref().is_some_and(|w| w.in_flight.is_some_and(|(t, _)| t == token));
        if mine {
            self.wipe_piece_ended(outcome, host);
            self.pump_wipe(host);
        }
        mine
    }

    fn wipe_piece_ended(&mut self, outcome: Outcome, host: &mut impl Host) {
        let Some(wiper) = &mut self.wiper else { return };
        match wiper.ended(outcome) {
            After::Continue => self.note_sanitize_progress(host),
            After::Ended(ok) => {
                self.wiper = None;
                if !ok {
                    self.media_error(host);
                }
                self.work_wiped(ok, host);
            }
        }
    }
}
