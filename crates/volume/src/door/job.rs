//! A request that cannot go down whole: it has several extents, or must wait for one, or needs no drive at all.

use super::ticket::Ticket;
use block::{Op, Outcome, Range, Request, Token};
use memory::Segment;
use std::sync::Arc;

/// What a job waits for, beside its pieces at the drive.
#[derive(Debug)]
pub(super) enum Wait {
    /// For nothing: it goes on when it is looked at.
    Nothing,
    /// For room at the drive.
    Room,
    /// For an extent of its own.
    Extent,
    /// For the pool to take extents back; then it goes on at this byte.
    Release(Arc<Ticket>, u64),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) token: Token,
    pub(super) op: Op,
    /// The next byte that is nobody's yet.
    pub(super) at: u64,
    pub(super) end: u64,
    /// All of its memory, and how much of it was given to pieces: whole segments, and bytes of the next.
    segments: Vec<Segment>,
    used: usize,
    used_bytes: usize,
    /// Pieces at the drive.
    pub(super) pieces: u32,
    pub(super) outcome: Outcome,
    pub(super) wait: Wait,
}

impl Job {
    /// `segments` is a list to use again.
    pub(super) fn new(request: &Request<'_>, mut segments: Vec<Segment>) -> Self {
        let Range { start_bytes, len_bytes } = request.range;
        segments.clear();
        segments.extend_from_slice(request.data);
        Self {
            token: request.token,
            op: request.op,
            at: start_bytes,
            end: start_bytes.saturating_add(len_bytes),
            segments,
            used: 0,
            used_bytes: 0,
            pieces: 0,
            outcome: Outcome::Done,
            wait: Wait::Nothing,
        }
    }

    /// The memory of the next `len` bytes, appended to `to`. Nothing is used up.
    pub(super) fn gather(&self, mut len: u64, to: &mut Vec<Segment>) {
        let mut skip = self.used_bytes;
        for segment in self.segments.get(self.used..).unwrap_or(&[]) {
            if len == 0 {
                break;
            }
            let (piece, _) = segment.split_at(skip).1.split_at(usize::try_from(len).unwrap_or(usize::MAX));
            skip = 0;
            len -= piece.len() as u64;
            to.push(piece);
        }
    }

    /// The next `len` bytes are somebody's now.
    pub(super) fn advance(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while let Some(segment) = self.segments.get(self.used) {
            let rest = segment.len() - self.used_bytes.min(segment.len());
            if left < rest {
                self.used_bytes += left;
                return;
            }
            left -= rest;
            self.used += 1;
            self.used_bytes = 0;
            if left == 0 {
                return;
            }
        }
    }

    /// One failure is the whole's.
    pub(super) fn merge(&mut self, outcome: Outcome) {
        if self.outcome == Outcome::Done {
            self.outcome = outcome;
        }
    }

    /// Nothing more of it begins.
    pub(super) fn give_up(&mut self, outcome: Outcome) {
        self.merge(outcome);
        self.at = self.end;
        self.wait = Wait::Nothing;
    }

    pub(super) fn is_over(&self) -> bool {
        self.at >= self.end && self.pieces == 0
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

/// Jobs, whose indices stay while they live.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    all: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Lists to use again.
    lists: Vec<Vec<Segment>>,
}

impl Jobs {
    pub(super) fn count(&self) -> usize {
        self.all.len() - self.free.len()
    }

    pub(super) fn add(&mut self, request: &Request<'_>) -> usize {
        let job = Job::new(request, self.lists.pop().unwrap_or_default());
        match self.free.pop() {
            Some(at) => {
                if let Some(place) = self.all.get_mut(at) {
                    *place = Some(job);
                }
                at
            }
            None => {
                self.all.push(Some(job));
                self.all.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, at: usize) -> Option<&mut Job> {
        self.all.get_mut(at)?.as_mut()
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<(Token, Outcome)> {
        let job = self.all.get_mut(at)?.take()?;
        self.free.push(at);
        let ended = (job.token, job.outcome);
        self.lists.push(job.into_segments());
        Some(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_job_are_all_of_its_memory_in_order() {
        let mut memory = vec![0_u8; 64];
        let whole = Segment::of(&mut memory);
        let (a, rest) = whole.split_at(10);
        let (b, c) = rest.split_at(20);
        for step in 1..=64 {
            let range = Range { start_bytes: 0, len_bytes: 64 };
            let request = Request { token: Token(1), op: Op::Read, range, data: &[a, b, c] };
            let mut job = Job::new(&request, Vec::new());
            let mut all = Vec::new();
            while job.at < 64 {
                let len = step.min(64 - job.at);
                let mut piece = Vec::new();
                job.gather(len, &mut piece);
                assert_eq!(piece.iter().map(|segment| segment.len() as u64).sum::<u64>(), len);
                all.extend(piece);
                job.advance(len);
            }
            let joined = all.into_iter().reduce(|one, next| one.join(next).expect("no gap")).expect("some");
            assert_eq!(joined, whole, "in steps of {step}");
        }
    }
}
