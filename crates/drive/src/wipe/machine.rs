//! The wipe as a state machine: pure, every step recorded and repeatable.

use super::pattern;
use super::plan::Plan;
use super::record::{Attempt, Options, Record, RecordError, Rung, Scope, Step, Target, VERSION};
use super::{Certificate, Zeroing};

/// What is to be done next. Ranges are inside the target's: offset 0 is its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Destroy this key, and see that it is gone.
    DestroyKey(String),
    /// Write the witnesses of this seed, flush, and read them back.
    WriteWitnesses,
    /// Format the target's namespace. The scope is checked again.
    Format(Rung),
    /// Start a sanitize, unless it runs already.
    Sanitize(Rung),
    /// Look how far the sanitize is.
    Poll(Rung),
    /// See that no witness is left.
    CheckWitnesses,
    /// Zero a range.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// How.
        how: Zeroing,
        /// Flush behind it: it is the last.
        flush: bool,
    },
    /// Write the pattern over a range.
    Scribble {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// Flush behind it: it is the last.
        flush: bool,
    },
    /// Read a range, which holds the pattern.
    ReadScribble {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Read a range, which should be zero.
    ReadZeros {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Nothing: it has ended.
    Nothing,
}

/// What came of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and what was read is as it should be.
    Done,
    /// A sanitize goes on, this far of 65536.
    Going(u16),
    /// What was read is something else, from this byte of the target on.
    Differs(u64),
    /// It was refused or failed.
    Failed(String),
}

/// A wipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wipe {
    record: Record,
}

impl Wipe {
    /// Begins one. `id` names it, `seed` should be drawn.
    ///
    /// # Errors
    /// The target or the options make no sense.
    pub fn begin(
        id: &str,
        seed: u64,
        target: Target,
        (scope, key): (Scope, Option<String>),
        plan: Plan,
        options: Options,
        now_unix_s: u64,
    ) -> Result<Wipe, RecordError> {
        let record = Record {
            version: VERSION,
            id: id.to_owned(),
            seed,
            target,
            scope,
            key,
            options,
            rungs: plan.rungs,
            left_out: plan.left_out,
            attempts: Vec::new(),
            erased_by: None,
            blind: false,
            at: Step::Quarantined,
            started_unix_s: now_unix_s,
            ended_unix_s: None,
        };
        record.check().map_err(|reason| RecordError::Damaged(reason.to_owned()))?;
        let mut wipe = Wipe { record };
        wipe.enter(0, now_unix_s);
        Ok(wipe)
    }

    /// Goes on with one on record.
    ///
    /// # Errors
    /// The record makes no sense.
    pub fn resume(record: Record) -> Result<Wipe, RecordError> {
        record.check().map_err(|reason| RecordError::Damaged(reason.to_owned()))?;
        Ok(Wipe { record })
    }

    /// To be written down before [`Wipe::next`]'s effect is had.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// It has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.record.at, Step::Wiped | Step::Quarantined)
    }

    /// What is known at the end; before it there is none.
    #[must_use]
    pub fn certificate(&self) -> Option<Certificate> {
        self.has_ended().then(|| Certificate::of(&self.record))
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self) -> Effect {
        let rung = |index: usize| self.record.rungs.get(index).copied();
        match self.record.at {
            Step::Witness { .. } => Effect::WriteWitnesses,
            Step::Act { rung: index } => match rung(index) {
                Some(Rung::DestroyKey) => Effect::DestroyKey(self.record.key.clone().unwrap_or_default()),
                Some(rung @ (Rung::FormatCrypto | Rung::FormatErase)) => Effect::Format(rung),
                Some(rung) => Effect::Sanitize(rung),
                None => Effect::Nothing,
            },
            Step::Poll { rung: index, .. } => rung(index).map_or(Effect::Nothing, Effect::Poll),
            Step::CheckWitness { .. } => Effect::CheckWitnesses,
            Step::Zero { rung: index, done_bytes } => {
                let how = match rung(index) {
                    Some(Rung::Deallocate) => Zeroing::Deallocate,
                    Some(Rung::Overwrite) => Zeroing::Write,
                    _ => Zeroing::WriteZeroes,
                };
                let (offset, len, flush) = self.chunk(done_bytes);
                Effect::Zero { offset, len, how, flush }
            }
            Step::Scribble { done_bytes, .. } => {
                let (offset, len, flush) = self.chunk(done_bytes);
                Effect::Scribble { offset, len, flush }
            }
            Step::ReadScribble { done_bytes, .. } => {
                let (offset, len, _) = self.chunk(done_bytes);
                Effect::ReadScribble { offset, len }
            }
            Step::IsBlank { done_bytes, .. } | Step::ReadBack { done_bytes, .. } => {
                let (offset, len, _) = self.chunk(done_bytes);
                Effect::ReadZeros { offset, len }
            }
            Step::Wiped | Step::Quarantined => Effect::Nothing,
        }
    }

    /// The next chunk after `done` bytes, and whether it is the last.
    fn chunk(&self, done: u64) -> (u64, u64, bool) {
        let left = self.record.target.len_bytes.saturating_sub(done);
        let len = left.min(self.record.options.chunk_bytes);
        (done, len, len == left)
    }

    /// Takes what came of the effect that [`Wipe::next`] named.
    pub fn apply(&mut self, outcome: Outcome, now_unix_s: u64) {
        if self.has_ended() {
            return;
        }
        let failure = match outcome {
            Outcome::Done => return self.advance(now_unix_s),
            Outcome::Going(progress) => return self.going(progress, now_unix_s),
            Outcome::Differs(at) => self.difference(at),
            Outcome::Failed(reason) => Some(reason),
        };
        let rung = self.index();
        match failure {
            Some(_) if self.may_go_blind() => {
                self.record.blind = true;
                self.record.at = Step::Act { rung };
            }
            Some(reason) => {
                self.attempted(rung, false, reason, now_unix_s);
                self.enter(rung + 1, now_unix_s);
            }
            // An erase held, and what it left behind is not zero: it is blanked.
            None => self.enter(rung + 1, now_unix_s),
        }
    }

    fn index(&self) -> usize {
        match self.record.at {
            Step::Witness { rung }
            | Step::Act { rung }
            | Step::Poll { rung, .. }
            | Step::CheckWitness { rung }
            | Step::IsBlank { rung, .. }
            | Step::Zero { rung, .. }
            | Step::Scribble { rung, .. }
            | Step::ReadScribble { rung, .. }
            | Step::ReadBack { rung, .. } => rung,
            Step::Wiped | Step::Quarantined => self.record.rungs.len(),
        }
    }

    /// No witness can be laid because a sanitize failed: the next sanitize is the one thing that the drive still does.
    fn may_go_blind(&self) -> bool {
        let is_sanitize = self.record.rungs.get(self.index()).is_some_and(|rung| rung.is_sanitize());
        let one_failed =
            self.record.attempts.iter().any(|attempt| attempt.rung.is_sanitize() && !attempt.held);
        matches!(self.record.at, Step::Witness { .. }) && is_sanitize && one_failed && !self.record.blind
    }

    /// What a difference means here; `None`: nothing bad.
    fn difference(&self, at: u64) -> Option<String> {
        match self.record.at {
            Step::IsBlank { .. } => None,
            Step::Witness { .. } => {
                Some(format!("the drive does not keep what is written: byte {at} reads as something else"))
            }
            Step::CheckWitness { .. } => {
                Some(format!("the drive said it was done, and byte {at} still reads as before"))
            }
            Step::ReadScribble { .. } => {
                Some(format!("the drive took the pattern, and byte {at} reads as something else"))
            }
            _ => Some(format!("the drive said it was done, and byte {at} is not zero")),
        }
    }

    fn going(&mut self, progress: u16, now_unix_s: u64) {
        let rung = self.index();
        let (best, stalled) = match self.record.at {
            Step::Poll { progress: best, stalled, .. } => (Some(best), stalled),
            _ => (None, 0),
        };
        let advanced = best.is_none_or(|best| progress > best);
        let stalled = if advanced { 0 } else { stalled.saturating_add(1) };
        if stalled > self.record.options.stalled_polls_max {
            let reason = format!("the sanitize has stood at {progress} of 65536 for too long");
            self.attempted(rung, false, reason, now_unix_s);
            return self.enter(rung + 1, now_unix_s);
        }
        self.record.at =
            Step::Poll { rung, progress: best.map_or(progress, |best| best.max(progress)), stalled };
    }

    fn advance(&mut self, now_unix_s: u64) {
        let rung = self.index();
        let kind = self.record.rungs.get(rung).copied();
        let (total, chunk) = (self.record.target.len_bytes, self.record.options.chunk_bytes);
        let more = |done: u64| Some(done.saturating_add(chunk)).filter(|&done| done < total);
        self.record.at = match self.record.at {
            Step::Witness { rung } => Step::Act { rung },
            // A key has no witness: that it is gone was seen.
            Step::Act { rung } if kind == Some(Rung::DestroyKey) => {
                return self.erased(rung, now_unix_s);
            }
            Step::Act { rung } | Step::Poll { rung, .. } => Step::CheckWitness { rung },
            Step::CheckWitness { rung } if self.record.blind => {
                self.record.blind = false;
                Step::Witness { rung }
            }
            Step::CheckWitness { rung } => return self.erased(rung, now_unix_s),
            Step::IsBlank { rung, done_bytes } => match more(done_bytes) {
                Some(done_bytes) => Step::IsBlank { rung, done_bytes },
                None => return self.wiped(now_unix_s),
            },
            Step::Scribble { rung, done_bytes } => match more(done_bytes) {
                Some(done_bytes) => Step::Scribble { rung, done_bytes },
                None => Step::ReadScribble { rung, done_bytes: 0 },
            },
            Step::ReadScribble { rung, done_bytes } => match more(done_bytes) {
                Some(done_bytes) => Step::ReadScribble { rung, done_bytes },
                None => Step::Zero { rung, done_bytes: 0 },
            },
            Step::Zero { rung, done_bytes } => match more(done_bytes) {
                Some(done_bytes) => Step::Zero { rung, done_bytes },
                None => Step::ReadBack { rung, done_bytes: 0 },
            },
            Step::ReadBack { rung, done_bytes } => match more(done_bytes) {
                Some(done_bytes) => Step::ReadBack { rung, done_bytes },
                None => {
                    self.attempted(
                        rung,
                        true,
                        "the whole range was read back and is zero".to_owned(),
                        now_unix_s,
                    );
                    return self.wiped(now_unix_s);
                }
            },
            end @ (Step::Wiped | Step::Quarantined) => end,
        };
    }

    fn erased(&mut self, rung: usize, now_unix_s: u64) {
        let kind = self.record.rungs.get(rung).copied();
        let result = match kind {
            Some(Rung::DestroyKey) => "the key is gone",
            _ => "every witness is gone",
        };
        self.attempted(rung, true, result.to_owned(), now_unix_s);
        self.record.erased_by = kind;
        self.record.at = Step::IsBlank { rung, done_bytes: 0 };
    }

    fn wiped(&mut self, now_unix_s: u64) {
        self.record.at = Step::Wiped;
        self.record.ended_unix_s = Some(now_unix_s);
    }

    fn attempted(&mut self, rung: usize, held: bool, result: String, now_unix_s: u64) {
        if let Some(&rung) = self.record.rungs.get(rung) {
            self.record.attempts.push(Attempt { rung, held, result, unix_s: now_unix_s });
        }
    }

    /// The first rung from `from` on that is still of use; the end, if there is none.
    fn enter(&mut self, from: usize, now_unix_s: u64) {
        self.record.blind = false;
        let is_erased = self.record.erased_by.is_some();
        let found =
            self.record.rungs.iter().enumerate().skip(from).find(|(_, rung)| !is_erased || rung.blanks());
        self.record.at = match found {
            Some((rung, Rung::DestroyKey)) => Step::Act { rung },
            Some((rung, Rung::Overwrite)) => Step::Scribble { rung, done_bytes: 0 },
            Some((rung, kind)) if kind.blanks() => Step::Zero { rung, done_bytes: 0 },
            Some((rung, _)) => Step::Witness { rung },
            None => {
                self.record.ended_unix_s = Some(now_unix_s);
                Step::Quarantined
            }
        };
    }

    /// The pattern of this wipe at `offset` of the target.
    pub(super) fn fill(&self, offset: u64, into: &mut [u8]) {
        pattern::fill(self.record.seed, offset, into);
    }

    /// Where the witnesses lie.
    pub(super) fn witnesses(&self) -> Vec<u64> {
        pattern::places(self.record.seed, self.record.target.len_bytes, self.record.options.witnesses)
    }
}
