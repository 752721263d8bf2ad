//! What the session's call waits for. One at a time: a session waits for its answer.

use crate::message::Answer;
use crate::seat::Desk;
use block::{Backend, Op, Outcome, Range, Request, Submitted, Token};
use rustix::io::Errno;
use std::sync::mpsc::SyncSender;

/// The engine's own flush. Distinct from every token of a group (top bit clear) and of a controller (which numbers its
/// tokens from the top bit up).
pub(super) const FLUSH: Token = Token(u64::MAX);

/// The one call of the session that waits for something.
pub(super) enum Waiting {
    Nothing,
    /// Groups that have I/O under older maps.
    Memory {
        generation: u64,
        left: usize,
        reply: SyncSender<Answer>,
    },
    /// Branches that have not taken the new eventfds.
    Interrupts {
        left: usize,
        reply: SyncSender<Answer>,
    },
    /// The end of a reset.
    Quiet {
        reply: SyncSender<Answer>,
    },
    /// The drive's flush, not yet `submitted` while the drive is full.
    Flush {
        submitted: bool,
        reply: SyncSender<Answer>,
    },
}

impl Waiting {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// A call waits for something. One that still waits was not the session's: a session that calls waits for nothing. Whose it was asks again.
    pub(super) fn turn_to(&mut self, next: Self) {
        match std::mem::replace(self, next) {
            Self::Nothing => {}
            Self::Memory { reply, .. }
            | Self::Interrupts { reply, .. }
            | Self::Quiet { reply }
            | Self::Flush { reply, .. } => _ = reply.send(Answer::Failed(Errno::AGAIN)),
        }
    }

    /// A group uses this map; true when it was the last.
    pub(super) fn adopted(&mut self, adopted: u64) -> bool {
        match self {
            Self::Memory { generation, left, .. } if *generation == adopted => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            _ => false,
        }
    }

    /// A branch uses the new eventfds.
    pub(super) fn interrupts_taken(&mut self) {
        if let Self::Interrupts { left, .. } = self {
            *left = left.saturating_sub(1);
        }
    }

    /// Hands the flush to the drive, if that is due and the drive has room.
    pub(super) fn flush(&mut self, desk: &mut Desk) {
        let Self::Flush { submitted: submitted @ false, .. } = self else { return };
        let range = Range { start_bytes: 0, len_bytes: 0 };
        let flush = Request { token: FLUSH, op: Op::Flush, range, data: &[] };
        match desk.hand_in(&flush) {
            Submitted::Full => {}
            Submitted::Queued => {
                *submitted = true;
                desk.backend.kick();
            }
            Submitted::Ended(outcome) => self.flushed(outcome),
        }
    }

    /// The flush has ended.
    pub(super) fn flushed(&mut self, outcome: Outcome) {
        if let Self::Flush { reply, .. } = std::mem::replace(self, Self::Nothing) {
            let answer = if outcome == Outcome::Done { Answer::Done } else { Answer::Failed(Errno::IO) };
            let _ = reply.send(answer);
        }
    }

    /// Answers if what it waits for has come; true then.
    pub(super) fn answer(&mut self, resetting: bool) -> bool {
        let done = match self {
            Self::Nothing | Self::Flush { .. } => false,
            Self::Memory { left, .. } | Self::Interrupts { left, .. } => *left == 0,
            Self::Quiet { .. } => !resetting,
        };
        if done
            && let Self::Memory { reply, .. } | Self::Interrupts { reply, .. } | Self::Quiet { reply } =
                std::mem::replace(self, Self::Nothing)
        {
            let _ = reply.send(Answer::Done);
        }
        done
    }
}
