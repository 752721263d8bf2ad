//! What each block may hold.
//!
//! Most blocks are *quiet*: commands that would overlap there are not sent, so one version is right and no other. A few are
//! *contested*: anything may overlap, and a read may return every version that some order of the commands allows. With the
//! times of submission and answer as a count of events, version `v` is impossible for a read when another write was
//! submitted after `v` was answered, and answered before the read was submitted. Overlapping writes leave one of them; once
//! a read has shown which, the others are impossible too. In a contested block each word may come from another allowed
//! version: a read that races with a write may see half of it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::door::{Kind, Op};
use super::pattern::{self, Seen, Version};

/// A block that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Which.
    pub block: u64,
    /// Bytes that are of no allowed version.
    pub bytes: u64,
    /// What it is instead, for people.
    pub what: String,
}

/// An operation that is outstanding. It goes back to [`Model::finish`].
#[derive(Debug)]
#[must_use = "blocks stay claimed until the operation is finished"]
pub struct Claim {
    /// What was claimed.
    pub op: Op,
    /// What the blocks hold when it has succeeded, if it changes them.
    pub version: Version,
    tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    version: Version,
    submitted: u64,
    /// `u64::MAX` = not answered.
    answered: u64,
}

/// Marks a quiet block that is being changed; less = that many reads.
const CHANGING: u8 = u8::MAX;

/// The truth about one ssd.
#[derive(Debug)]
pub struct Model {
    ssd: u64,
    block_bytes: usize,
    settled: Vec<Version>,
    holders: Vec<u8>,
    contested: Range<u64>,
    histories: HashMap<u64, Vec<Written>>,
    /// When the outstanding reads of blocks with a history were submitted.
    reads: BTreeSet<u64>,
    tick: u64,
}

impl Model {
    /// An ssd full of zeros; the blocks of `contested` may be fought over.
    #[must_use]
    pub fn new(ssd: u64, blocks: u64, block_bytes: usize, contested: Range<u64>) -> Self {
        let len = index(blocks);
        Model {
            ssd,
            block_bytes,
            settled: vec![Version::NEVER; len],
            holders: vec![0; len],
            contested,
            histories: HashMap::new(),
            reads: BTreeSet::new(),
            tick: 0,
        }
    }

    /// The bytes of a write.
    pub fn fill(&self, claim: &Claim, target: &mut [u8]) {
        for (block, bytes) in claim.op.range().zip(target.chunks_exact_mut(self.block_bytes)) {
            pattern::fill(self.ssd, block, claim.version, bytes);
        }
    }

    /// Claims an operation's blocks, or refuses because it would overlap in quiet blocks.
    pub fn claim(&mut self, op: Op) -> Option<Claim> {
        let busy = |holders: &u8| if op.changes() { *holders > 0 } else { *holders >= CHANGING - 1 };
        if op.range().any(|block| !self.is_contested(block) && busy(&self.holders[index(block)])) {
            return None;
        }
        self.tick += 1;
        let version = match op.kind {
            Kind::Write { .. } => Version::data(self.tick),
            _ => Version::zeros(self.tick),
        };
        let mut history = false;
        for block in op.range() {
            if self.is_contested(block) {
                history = true;
                if op.changes() {
                    let written = Written { version, submitted: self.tick, answered: u64::MAX };
                    self.history(block).push(written);
                }
            } else {
                let holders = &mut self.holders[index(block)];
                *holders = if op.changes() { CHANGING } else { *holders + 1 };
            }
        }
        if history && op.kind == Kind::Read {
            self.reads.insert(self.tick);
        }
        Some(Claim { op, version, tick: self.tick })
    }

    /// The operation was answered. What a failed one left is unknown: the old or the new.
    pub fn finish(&mut self, claim: &Claim, succeeded: bool) {
        self.tick += 1;
        self.reads.remove(&claim.tick);
        for block in claim.op.range() {
            if self.is_contested(block) {
                self.answered(block, claim, succeeded);
                continue;
            }
            let at = index(block);
            if !claim.op.changes() {
                self.holders[at] -= 1;
                continue;
            }
            self.holders[at] = 0;
            if succeeded {
                self.settled[at] = claim.version;
            } else {
                let written = Written { version: claim.version, submitted: claim.tick, answered: u64::MAX };
                self.history(block).push(written);
            }
        }
    }

    /// None of these will be answered, since their device is gone, and none happens later: what was changed holds what it held or any of
    /// what was on its way, and stays so.
    pub fn abandon(&mut self, claims: &[Claim]) {
        self.tick += 1;
        let tick = self.tick;
        for claim in claims {
            self.reads.remove(&claim.tick);
            for block in claim.op.range() {
                if self.is_contested(block) {
                    continue;
                }
                let at = index(block);
                if !claim.op.changes() {
                    self.holders[at] -= 1;
                    continue;
                }
                self.holders[at] = 0;
                let written = Written { version: claim.version, submitted: claim.tick, answered: u64::MAX };
                self.history(block).push(written);
            }
        }
        for claim in claims.iter().filter(|claim| claim.op.changes()) {
            for block in claim.op.range() {
                let possible = self.allowed(block, tick);
                let history = self.history(block);
                history.retain(|written| possible.contains(&written.version));
                // All at one time: none of them replaces another, and the next read may tell which it is.
                history.iter_mut().for_each(|written| written.answered = tick);
            }
        }
    }

    /// What is wrong with the data of a read that was answered. Call it before [`Model::finish`].
    #[must_use]
    pub fn check(&mut self, claim: &Claim, data: &[u8]) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for (block, actual) in claim.op.range().zip(data.chunks_exact(self.block_bytes)) {
            if self.is_contested(block) {
                let allowed = self.allowed(block, claim.tick);
                let bytes = pattern::strange_bytes(self.ssd, block, &allowed, actual);
                if bytes > 0 {
                    wrong.push(self.explain(block, bytes, &allowed, actual));
                } else {
                    self.resolve(block, claim.tick, &allowed, actual);
                }
            } else if !pattern::holds(self.ssd, block, self.settled[index(block)], actual) {
                let allowed = [self.settled[index(block)]];
                let bytes = pattern::strange_bytes(self.ssd, block, &allowed, actual);
                wrong.push(self.explain(block, bytes, &allowed, actual));
            }
        }
        wrong
    }

    fn is_contested(&self, block: u64) -> bool {
        self.contested.contains(&block) || (!self.histories.is_empty() && self.histories.contains_key(&block))
    }

    fn history(&mut self, block: u64) -> &mut Vec<Written> {
        let first = Written { version: self.settled[index(block)], submitted: 0, answered: 0 };
        self.histories.entry(block).or_insert_with(|| vec![first])
    }

    /// Every version that a read submitted at `since` and answered now may see.
    fn allowed(&mut self, block: u64, since: u64) -> Vec<Version> {
        let history = self.history(block);
        let replaced =
            |old: &Written| history.iter().any(|new| new.submitted > old.answered && new.answered < since);
        history.iter().filter(|old| !replaced(old)).map(|old| old.version).collect()
    }

    fn answered(&mut self, block: u64, claim: &Claim, succeeded: bool) {
        let tick = self.tick;
        let oldest = self.reads.first().copied().unwrap_or(tick);
        let history = self.history(block);
        if claim.op.changes() && succeeded {
            for written in history.iter_mut().filter(|written| written.submitted == claim.tick) {
                written.answered = tick;
            }
        }
        // No read can see these any more.
        let all = history.clone();
        history.retain(|old| !all.iter().any(|new| new.submitted > old.answered && new.answered < oldest));
    }

    /// A read that began after every write of a block was answered says which of them it holds.
    fn resolve(&mut self, block: u64, since: u64, allowed: &[Version], actual: &[u8]) {
        let Some(history) = self.histories.get(&block).filter(|_| allowed.len() > 1) else { return };
        let oldest = self.reads.first().copied().unwrap_or(since).min(since);
        if history.iter().any(|written| written.answered >= oldest) {
            return;
        }
        let ssd = self.ssd;
        if let Some(version) = allowed.iter().find(|version| pattern::holds(ssd, block, **version, actual)) {
            let keep = *version;
            self.history(block).retain(|written| written.version == keep);
        }
    }

    fn explain(&self, block: u64, bytes: u64, allowed: &[Version], actual: &[u8]) -> Wrong {
        let newest = allowed.iter().map(|version| version.number()).max().unwrap_or(0);
        let what = match pattern::look(actual) {
            Seen::Zeros => "zeros".to_owned(),
            Seen::Filled(byte) => format!("never filled by the device ({byte:#04x})"),
            Seen::Block { ssd, .. } if ssd != self.ssd => "a block of another ssd".to_owned(),
            Seen::Block { block: other, version, .. } if other != block => {
                format!("misplaced: block {other} version {version:?}")
            }
            Seen::Block { version, .. } if version.number() < newest => format!("stale: version {version:?}"),
            Seen::Block { version, .. } => format!("version {version:?}, not yet answered for"),
            Seen::Garbage if bytes < actual.len() as u64 / 2 => "torn or corrupt".to_owned(),
            Seen::Garbage => "garbage".to_owned(),
        };
        Wrong { block, bytes, what: format!("{what}; allowed: {allowed:?}") }
    }
}

/// A block's place in a table.
#[must_use]
pub fn index(block: u64) -> usize {
    usize::try_from(block).expect("blocks of a soak fit into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Kind = Kind::Write { fua: false };

    fn op(kind: Kind, start: u64, blocks: u32) -> Op {
        Op { kind, start, blocks }
    }

    fn model() -> Model {
        Model::new(3, 64, 512, 32..64)
    }

    fn done(model: &mut Model, kind: Kind, start: u64) -> Version {
        let claim = model.claim(op(kind, start, 1)).unwrap();
        model.finish(&claim, true);
        claim.version
    }

    /// Whether a read that is outstanding may return that version.
    fn may(model: &mut Model, claim: &Claim, version: Version) -> bool {
        let mut data = vec![0; 512];
        pattern::fill(3, claim.op.start, version, &mut data);
        model.check(claim, &data).is_empty()
    }

    #[test]
    fn quiet_blocks_are_never_overlapped_but_by_reads() {
        let mut model = model();
        let read = model.claim(op(Kind::Read, 0, 8)).unwrap();
        let another = model.claim(op(Kind::Read, 4, 8)).unwrap();
        assert!(model.claim(op(WRITE, 7, 1)).is_none());
        model.finish(&read, true);
        model.finish(&another, true);
        let write = model.claim(op(WRITE, 7, 1)).unwrap();
        assert!(model.claim(op(Kind::Read, 0, 8)).is_none());
        assert!(model.claim(op(Kind::Deallocate, 7, 1)).is_none());
        model.finish(&write, true);
        let read = model.claim(op(Kind::Read, 7, 1)).unwrap();
        assert!(may(&mut model, &read, write.version));
        assert!(!may(&mut model, &read, Version::NEVER));
    }

    #[test]
    fn what_a_write_replaced_is_stale_once_it_is_answered() {
        let mut model = model();
        let (first, second) = (done(&mut model, WRITE, 40), done(&mut model, WRITE, 40));
        let read = model.claim(op(Kind::Read, 40, 1)).unwrap();
        assert!(may(&mut model, &read, second));
        let mut data = vec![0; 512];
        pattern::fill(3, 40, first, &mut data);
        let wrong = model.check(&read, &data);
        assert!(wrong[0].what.starts_with("stale"), "{wrong:?}");
    }

    #[test]
    fn a_read_beside_writes_may_see_the_old_and_each_of_the_new() {
        let mut model = model();
        let old = done(&mut model, WRITE, 40);
        let read = model.claim(op(Kind::Read, 40, 1)).unwrap();
        let (one, two) = (done(&mut model, WRITE, 40), done(&mut model, WRITE, 40));
        for version in [old, one, two] {
            assert!(may(&mut model, &read, version), "{version:?}");
        }
        model.finish(&read, true);
        let later = model.claim(op(Kind::Read, 40, 1)).unwrap();
        assert!(!may(&mut model, &later, one));
        assert!(may(&mut model, &later, two));
    }

    #[test]
    fn of_two_writes_at_once_either_stays_and_does_not_change_back() {
        let mut model = model();
        let one = model.claim(op(WRITE, 40, 1)).unwrap();
        let two = model.claim(op(WRITE, 40, 1)).unwrap();
        model.finish(&two, true);
        model.finish(&one, true);
        let read = model.claim(op(Kind::Read, 40, 1)).unwrap();
        assert!(may(&mut model, &read, two.version));
        model.finish(&read, true);
        let later = model.claim(op(Kind::Read, 40, 1)).unwrap();
        assert!(may(&mut model, &later, two.version));
        assert!(!may(&mut model, &later, one.version), "it was seen to be the other");
    }

    #[test]
    fn a_failed_write_leaves_the_old_or_the_new() {
        let mut model = model();
        let old = done(&mut model, WRITE, 5);
        let failed = model.claim(op(WRITE, 5, 1)).unwrap();
        model.finish(&failed, false);
        let read = model.claim(op(Kind::Read, 5, 1)).unwrap();
        assert!(may(&mut model, &read, old) && may(&mut model, &read, failed.version));
        assert!(!may(&mut model, &read, Version::NEVER));
    }

    #[test]
    fn of_writes_that_were_abandoned_any_may_be_there_and_stays_once_it_was_seen() {
        for start in [5, 40] {
            let mut model = model();
            let replaced = done(&mut model, WRITE, start);
            let old = done(&mut model, WRITE, start);
            let lost = model.claim(op(WRITE, start, 1)).unwrap();
            let read = model.claim(op(Kind::Read, 20, 1)).unwrap();
            let version = lost.version;
            model.abandon(&[lost, read]);
            let read = model.claim(op(Kind::Read, start, 1)).unwrap();
            assert!(may(&mut model, &read, old) && !may(&mut model, &read, replaced), "block {start}");
            model.finish(&read, true);
            let read = model.claim(op(Kind::Read, start, 1)).unwrap();
            assert!(!may(&mut model, &read, version), "it was seen to be the old one");
            model.finish(&read, true);
            // Whoever reads or writes there now is not held up by what is gone.
            let write = model.claim(op(WRITE, 20, 1)).unwrap();
            model.finish(&write, true);
            let next = done(&mut model, WRITE, start);
            let read = model.claim(op(Kind::Read, start, 1)).unwrap();
            assert!(may(&mut model, &read, next) && !may(&mut model, &read, old), "block {start}");
        }
    }

    #[test]
    fn histories_stay_short() {
        let mut model = model();
        for _ in 0..1000 {
            done(&mut model, WRITE, 40);
            done(&mut model, Kind::Read, 40);
        }
        assert!(model.histories[&40].len() <= 2, "{:?}", model.histories[&40]);
    }
}
