//! Holds every submission and every answer against the model.

use std::collections::HashMap;
use std::time::Duration;

use super::door::{Answer, Kind, Tag};
use super::model::{Claim, Model, Wrong};

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that were answered.
    pub answered: u64,
    /// Bytes read and checked.
    pub checked_bytes: u64,
    /// Answers with a failure, broken protocol, refused messages, lost connections.
    pub errors: u64,
    /// Operations never answered.
    pub lost: u64,
    /// Answers to operations that were not outstanding.
    pub repeated: u64,
    /// Bytes that were read and are of no allowed version, or lie around the data and changed.
    pub wrong_bytes: u64,
}

impl Tally {
    /// Nothing to complain about.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors + self.lost + self.repeated + self.wrong_bytes == 0
    }

    /// Both.
    #[must_use]
    pub fn plus(self, other: Tally) -> Tally {
        Tally {
            answered: self.answered + other.answered,
            checked_bytes: self.checked_bytes + other.checked_bytes,
            errors: self.errors + other.errors,
            lost: self.lost + other.lost,
            repeated: self.repeated + other.repeated,
            wrong_bytes: self.wrong_bytes + other.wrong_bytes,
        }
    }
}

/// Faults told in words; more are only counted.
const FAULTS_TOLD_MAX: usize = 40;

/// The auditor of one ssd.
#[derive(Debug)]
pub struct Auditor {
    name: String,
    /// The truth.
    pub model: Model,
    outstanding: HashMap<(usize, Tag), Outstanding>,
    tally: Tally,
    abandoned: u64,
    faults: Vec<String>,
}

#[derive(Debug)]
struct Outstanding {
    claim: Claim,
    since_ns: u64,
}

/// An answer that was expected; [`Auditor::judge`] it with the data.
#[derive(Debug)]
#[must_use = "blocks stay claimed until the answer is judged"]
pub struct Expected {
    claim: Claim,
    tag: Tag,
    failure: Option<u32>,
}

impl Expected {
    /// Bytes of blocks whose data is there to be judged; 0 when none is.
    #[must_use]
    pub fn data_blocks(&self) -> usize {
        let read = self.claim.op.kind == Kind::Read && self.failure.is_none();
        if read { self.claim.op.blocks as usize } else { 0 }
    }
}

impl Auditor {
    /// Of an ssd that holds what the model says.
    #[must_use]
    pub fn new(name: &str, model: Model) -> Self {
        let (outstanding, faults) = (HashMap::new(), Vec::new());
        Auditor { name: name.to_owned(), model, outstanding, tally: Tally::default(), abandoned: 0, faults }
    }

    /// An operation went out.
    pub fn submitted(&mut self, lane: usize, tag: Tag, claim: Claim, now_ns: u64) {
        let old = self.outstanding.insert((lane, tag), Outstanding { claim, since_ns: now_ns });
        assert!(old.is_none(), "the door gave tag {tag} of lane {lane} twice");
    }

    /// An answer came: the operation it belongs to, or a complaint.
    pub fn answered(&mut self, lane: usize, answer: Answer) -> Option<Expected> {
        let Some(Outstanding { claim, .. }) = self.outstanding.remove(&(lane, answer.tag)) else {
            self.tally.repeated += 1;
            self.tell(&format!("lane {lane}: an answer to {}, which is not outstanding", answer.tag));
            return None;
        };
        self.tally.answered += 1;
        if let Some(status) = answer.failure {
            self.tally.errors += 1;
            self.tell(&format!("lane {lane}: {:?} failed with {status:#x}", claim.op));
        }
        Some(Expected { claim, tag: answer.tag, failure: answer.failure })
    }

    /// Checks an answer's data and lets go of its blocks.
    pub fn judge(&mut self, lane: usize, expected: &Expected, data: &[u8], around_untouched: bool) {
        let Expected { claim, tag, failure } = expected;
        for Wrong { block, bytes, what } in self.model.check(claim, data) {
            self.tally.wrong_bytes += bytes;
            self.tell(&format!("lane {lane} tag {tag}: block {block} has {bytes} wrong bytes: {what}"));
        }
        if !around_untouched {
            self.tally.wrong_bytes += 1;
            self.tell(&format!("lane {lane} tag {tag}: bytes around the data of {:?} changed", claim.op));
        }
        self.tally.checked_bytes += data.len() as u64;
        self.model.finish(claim, failure.is_none());
    }

    /// Something else is wrong.
    pub fn error(&mut self, what: &str) {
        self.tally.errors += 1;
        self.tell(what);
    }

    /// Counts the operations that are outstanding for too long as lost.
    pub fn give_up(&mut self, now_ns: u64, patience: Duration) {
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let late = |out: &Outstanding| now_ns.saturating_sub(out.since_ns) > patience_ns;
        let lost: Vec<_> =
            self.outstanding.iter().filter(|(_, out)| late(out)).map(|(key, _)| *key).collect();
        for key in lost {
            if let Some(Outstanding { claim, .. }) = self.outstanding.remove(&key) {
                self.tally.lost += 1;
                let (lane, tag) = key;
                self.tell(&format!("lane {lane} tag {tag}: {:?} had no answer in {patience:?}", claim.op));
                // Its blocks stay claimed: it may still happen.
            }
        }
    }

    /// The device is gone, and nothing that is outstanding will be answered.
    pub fn abandon(&mut self) {
        let claims: Vec<Claim> = self.outstanding.drain().map(|(_, out)| out.claim).collect();
        self.model.abandon(&claims);
        self.abandoned += claims.len() as u64;
    }

    /// How many operations were.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// Operations not answered yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Those of them that need the drive: a flush may be answered without it.
    #[must_use]
    pub fn outstanding_data(&self) -> usize {
        self.outstanding.values().filter(|out| out.claim.op.kind != Kind::Flush).count()
    }

    /// What was counted so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The ssd's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first faults, in words.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    fn tell(&mut self, what: &str) {
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(format!("{}: {what}", self.name));
        }
    }
}
