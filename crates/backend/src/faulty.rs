//! A decorator that goes wrong by plan. The same seed and the same calls give the same failures.
#![expect(unsafe_code, reason = "passes Backend::submit on")]
// UNSAFETY: a request is handed on with its own segments or a prefix of them, under the caller's own promise.

use block::{Backend, Completion, Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use memory::{MemoryMap, Segment};
use std::sync::Arc;

/// A chance in a million.
pub type PerMillion = u32;
const MILLION: u64 = 1_000_000;
/// Completions this decorator can hold back.
const HELD_MAX: usize = 4096;

/// Which requests a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// All.
    Any,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Write zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
}

impl On {
    fn matches(self, op: Op) -> bool {
        match self {
            On::Any => true,
            On::Read => op == Op::Read,
            On::Write => matches!(op, Op::Write { .. }),
            On::Flush => op == Op::Flush,
            On::WriteZeroes => matches!(op, Op::WriteZeroes { .. }),
            On::Discard => op == Op::Discard,
        }
    }
}

/// When a rule strikes, among the requests it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// By chance.
    Chance(PerMillion),
    /// Only the nth, counted from 1.
    Nth(u64),
    /// Every nth.
    Every(u64),
}

/// What has happened to the data when a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing was done.
    Refused,
    /// The first half of the blocks was moved (a short transfer).
    Short,
    /// All was done, and reported as failed all the same.
    DoneAndDenied,
}

/// One cause of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which requests.
    pub on: On,
    /// When.
    pub when: When,
    /// What happens to the data.
    pub how: How,
    /// What is reported.
    pub fault: Fault,
}

/// What goes wrong. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Of the generator of chance. Each door runs the plan from its beginning.
    pub seed: u64,
    /// The first rule that strikes a request decides.
    pub rules: Vec<Rule>,
    /// How likely a completion is held back.
    pub delay: PerMillion,
    /// For how many polls at most; 1 to that many, evenly.
    pub delay_polls_max: u32,
    /// Completions are handed out in a random order.
    pub reorder: bool,
    /// How likely a submit begins a storm of `Full`.
    pub full: PerMillion,
    /// How many submits a storm refuses at most; 1 to that many, evenly.
    pub full_submits_max: u32,
}

impl Plan {
    /// Is every figure possible?
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let chance = |when: &Rule| matches!(when.when, When::Chance(n) if u64::from(n) > MILLION);
        let never = |when: &Rule| matches!(when.when, When::Every(0) | When::Nth(0));
        if self.rules.iter().any(chance) || u64::from(self.delay) > MILLION {
            return Err("a chance is at most 1000000 in a million");
        }
        if self.rules.iter().any(never) {
            return Err("requests are counted from 1: write nth = 1 for the first, every = 1 for all");
        }
        if u64::from(self.full) >= MILLION {
            return Err("full must stay below 1000000, or no request is ever taken");
        }
        Ok(())
    }
}

/// SplitMix64: small, seeded, and ours, so that a plan replays on any build.
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn strikes(&mut self, chance: PerMillion) -> bool {
        chance > 0 && self.next() % MILLION < u64::from(chance)
    }

    /// 1 to `max`, and 1 when `max` is 0.
    fn up_to(&mut self, max: u32) -> u32 {
        u32::try_from(self.next() % u64::from(max.max(1))).unwrap_or(0) + 1
    }
}

#[derive(Debug)]
struct Held {
    completion: Completion,
    polls: u32,
}

/// See the module.
pub struct Faulty {
    inner: Box<dyn Backend>,
    plan: Plan,
    chance: Chance,
    /// Matching requests seen, by rule.
    seen: Vec<u64>,
    /// Taken, and to be reported as failed when the inner backend has ended them.
    denied: Vec<(Token, Fault)>,
    held: Vec<Held>,
    ended: Vec<Completion>,
    prefix: Vec<Segment>,
    storm: u32,
}

impl Faulty {
    /// Decorates a door.
    #[must_use]
    pub fn new(inner: Box<dyn Backend>, plan: Plan) -> Faulty {
        Faulty {
            chance: Chance(plan.seed),
            seen: vec![0; plan.rules.len()],
            denied: Vec::with_capacity(HELD_MAX),
            held: Vec::with_capacity(HELD_MAX),
            ended: Vec::with_capacity(HELD_MAX),
            prefix: Vec::with_capacity(inner.limits().segments_max),
            storm: 0,
            inner,
            plan,
        }
    }

    fn strike(&mut self, op: Op) -> Option<Rule> {
        let mut struck = None;
        for (rule, seen) in self.plan.rules.iter().zip(&mut self.seen) {
            if !rule.on.matches(op) {
                continue;
            }
            *seen += 1;
            let strikes = match rule.when {
                When::Chance(chance) => self.chance.strikes(chance),
                When::Nth(nth) => *seen == nth,
                When::Every(every) => seen.is_multiple_of(every.max(1)),
            };
            if strikes && struck.is_none() {
                struck = Some(*rule);
            }
        }
        struck
    }

    fn is_storming(&mut self) -> bool {
        if self.storm == 0 && self.chance.strikes(self.plan.full) {
            self.storm = self.chance.up_to(self.plan.full_submits_max);
        }
        let storming = self.storm > 0;
        self.storm = self.storm.saturating_sub(1);
        storming
    }

    /// A completion of the inner backend, or of ours, on its way out.
    fn hold(&mut self, token: Token, outcome: Outcome) {
        let denied = self.denied.iter().position(|(denied, _)| *denied == token);
        let outcome = match denied.map(|at| self.denied.swap_remove(at)) {
            Some((_, fault)) => Outcome::Failed(fault),
            None => outcome,
        };
        let delayed = self.chance.strikes(self.plan.delay);
        let polls = if delayed { self.chance.up_to(self.plan.delay_polls_max) } else { 0 };
        self.held.push(Held { completion: (token, outcome), polls });
    }

    /// The first half of the blocks of a request, in `self.prefix`.
    fn halve(&mut self, range: Range, data: &[Segment]) -> Range {
        let block = u64::from(self.inner.limits().block_bytes);
        let len_bytes = range.len_bytes / block / 2 * block;
        let mut left = usize::try_from(len_bytes).unwrap_or(0);
        self.prefix.clear();
        for segment in data {
            let (head, _) = segment.split_at(left);
            if head.is_empty() {
                break;
            }
            left -= head.len();
            self.prefix.push(head);
        }
        Range { len_bytes, ..range }
    }
}

impl Backend for Faulty {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if self.in_flight() >= HELD_MAX || self.is_storming() {
            return Submitted::Full;
        }
        let rule = self.strike(request.op);
        if let Some(Rule { how: How::Refused, fault, .. }) = rule {
            self.hold(request.token, Outcome::Failed(fault));
            return Submitted::Queued;
        }
        let short =
            rule.is_some_and(|rule| rule.how == How::Short) && request.data.len() <= self.prefix.capacity();
        let range = if short { self.halve(request.range, request.data) } else { request.range };
        let data = if short { self.prefix.as_slice() } else { request.data };
        let inner = Request { range, data, ..*request };
        // SAFETY: the same memory, or a part of it, under the same promise.
        let submitted = unsafe { self.inner.submit(&inner) };
        if submitted != Submitted::Full {
            self.denied.extend(rule.map(|rule| (request.token, rule.fault)));
        }
        match submitted {
            Submitted::Ended(outcome) => {
                self.hold(request.token, outcome);
                Submitted::Queued
            }
            other => other,
        }
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ended = core::mem::take(&mut self.ended);
        self.inner.poll(&mut ended);
        for (token, outcome) in ended.drain(..) {
            self.hold(token, outcome);
        }
        self.ended = ended;
        for held in &mut self.held {
            held.polls = held.polls.saturating_sub(1);
        }
        while done.len() < done.capacity() {
            let ready = self.held.iter().filter(|held| held.polls == 0).count() as u64;
            if ready == 0 {
                break;
            }
            let pick = if self.plan.reorder { self.chance.next() % ready } else { 0 };
            let pick = usize::try_from(pick).unwrap_or(0);
            let at = (0..self.held.len()).filter(|at| self.held[*at].polls == 0).nth(pick);
            let Some(at) = at else { break };
            done.push(self.held.remove(at).completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }

    // No wake_fd: what is held back ends by polling alone.

    fn memory_changed(&mut self, map: &Arc<MemoryMap>) {
        self.inner.memory_changed(map);
    }
}
