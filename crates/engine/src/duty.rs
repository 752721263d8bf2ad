//! Who is on duty, and who has how much to do: reactors come and go, and what they serve moves, while guests run.
//!
//! ```text
//!  godwit apply --> call_up --> crew: on duty --Muster--> homes: queue pairs and homes leave who is off duty
//!  balance thread: what each reactor did --> Balancer --Move--> home: Yield on the one, Create on the other
//! ```
//! All of it is done beside the reactors, which never wait for one another. Nothing of it is written down: an engine that begins spreads what
//! it finds anew.

use crate::balance::{Balancer, Load, Move};
use crate::clock::Clock;
use crate::crew::Crew;
use crate::keeper::Keeper;
use crate::message::{Address, Message, Pair, SsdId};
use crate::reactor::{self, Options};
use crate::records::Records;
use crate::run::House;
use crate::stats::Stats;
use crate::vhost::Disk;
use anyhow::Context;
use api::config::Engine;
use api::control::ReactorStatus;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at what the reactors did.
const LOOK: Duration = Duration::from_millis(100);
/// How long a reactor may take to say what it has: one that has less to do than it seems is asked again soon.
const ANSWER: Duration = Duration::from_millis(50);
/// Looks after a change for which all are told to muster, at least: what was under way then may have come to rest only now.
const MUSTERS: u32 = 5;

/// See the module.
pub(crate) struct Duty {
    crew: Arc<Crew>,
    stats: Stats,
    clock: Clock,
    keeper: Option<Arc<Keeper>>,
    state: Mutex<State>,
    /// The number on duty has changed, or all is over.
    changed: Condvar,
}

struct State {
    threads: Vec<JoinHandle<()>>,
    /// `None`: dismissed.
    records: Option<Records>,
    /// Looks that are still to be musters.
    musters: u32,
}

impl Duty {
    /// Nobody is on duty yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new(
        stats: Stats,
        records: Records,
        keeper: Option<Arc<Keeper>>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let state = Mutex::new(State { threads: Vec::new(), records: Some(records), musters: 0 });
        Ok(Self { crew: Crew::new()?, stats, clock, keeper, state, changed: Condvar::new() })
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// The home of an ssd that comes.
    pub(crate) fn home_of(&self, number: usize) -> Address {
        Arc::clone(self.crew.address(self.crew.deal(number)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many reactors are on duty from now on.
    ///
    /// # Errors
    /// A thread cannot be started: then those that have one are on duty.
    pub(crate) fn call_up(&self, config: &Engine) -> anyhow::Result<()> {
        let mut state = self.state();
        let options = |at: usize| Options {
            cpu: config.cpus.get(at).copied(),
            spin_ns: u64::from(config.spin_us) * 1000,
            idle_ns: u64::from(config.idle_us) * 1000,
            clock: self.clock,
        };
        for (at, _) in state.threads.iter().enumerate() {
            self.crew.address(at).send(Message::Options(Box::new(options(at))));
        }
        let mut result = Ok(());
        while state.threads.len() < config.reactors {
            let (at, keeper) = (state.threads.len(), self.keeper.clone());
            let Some(records) = state.records.clone() else { break };
            let counters = self.stats.counters(at);
            match reactor::spawn(at, Arc::clone(&self.crew), options(at), records, keeper, counters) {
                Ok(thread) => state.threads.push(thread),
                Err(error) => {
                    result = Err(error).with_context(|| format!("reactor {at} cannot be started"));
                    break;
                }
            }
        }
        self.crew.call_up(config.reactors.min(state.threads.len()));
        state.musters = MUSTERS;
        self.changed.notify_all();
        result
    }

    /// Tells the homes that others are on duty.
    pub(crate) fn muster(&self) {
        self.crew.tell_all(|| Message::Muster);
    }

    /// Ends all reactors.
    pub(crate) fn dismiss(&self) {
        let mut state = self.state();
        state.records = None;
        let threads = std::mem::take(&mut state.threads);
        self.changed.notify_all();
        drop(state);
        self.crew.tell_all(|| Message::Stop);
        threads.into_iter().for_each(|thread| _ = thread.join());
    }

    /// Somebody who is off duty has something still.
    fn is_settled(&self) -> bool {
        let seats = |at: usize| self.stats.of(at).map_or(0, |stats| stats.seats.load(Relaxed));
        self.crew.manned().all(|at| self.crew.is_on_duty(at) || seats(at) == 0)
    }

    /// Waits until it is time to look. `None`: all is over. Whether all are to be mustered.
    fn next_look(&self) -> Option<bool> {
        let mut state = self.state();
        loop {
            state.records.as_ref()?;
            let moves = state.musters > 0 || self.crew.on_duty().nth(1).is_some() || !self.is_settled();
            let musters = state.musters;
            state = if moves {
                let waited = self.changed.wait_timeout(state, LOOK);
                waited.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard)
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
            if state.records.is_some() && moves {
                state.musters = state.musters.saturating_sub(u32::from(state.musters == musters));
                return Some(musters > 0 || !self.is_settled());
            }
        }
    }

    /// What each reactor on duty did since the last call.
    fn loads(&self, before: &mut HashMap<usize, (Instant, u64)>) -> Vec<Load> {
        let now = Instant::now();
        let load = |at: usize| {
            let busy_ns = self.stats.of(at)?.busy_ns.load(Relaxed);
            let (since, then) = before.insert(at, (now, busy_ns))?;
            let span_ns = span_ns(now.duration_since(since));
            Some(Load { reactor: at, busy_permille: permille(busy_ns.saturating_sub(then), span_ns) })
        };
        self.crew.on_duty().filter_map(load).collect()
    }

    /// How each reactor is. Takes a moment, over which it is measured.
    pub(crate) fn reactors(&self) -> Vec<ReactorStatus> {
        let look = |at: usize| {
            self.stats.of(at).map_or((0, 0), |of| (of.busy_ns.load(Relaxed), of.commands.load(Relaxed)))
        };
        let manned: Vec<usize> = self.crew.manned().collect();
        let (begin, before): (_, Vec<_>) = (Instant::now(), manned.iter().map(|at| look(*at)).collect());
        std::thread::sleep(LOOK);
        let span_ns = span_ns(begin.elapsed());
        let status = |(&at, (busy, commands)): (&usize, (u64, u64))| {
            let (now, of) = (look(at), self.stats.of(at));
            ReactorStatus {
                reactor: at,
                on_duty: self.crew.is_on_duty(at),
                busy_permille: permille(now.0.saturating_sub(busy), span_ns),
                iops: now.1.saturating_sub(commands).saturating_mul(1_000_000_000) / span_ns,
                ssds: of.map_or(0, |of| of.seats.load(Relaxed)),
                queue_pairs: of.map_or(0, |of| of.pairs.load(Relaxed)),
            }
        };
        manned.iter().zip(before).map(status).collect()
    }

    /// All that can be moved. Fewer than there are where a reactor does not answer soon.
    fn pairs(&self) -> Vec<Pair> {
        let (reply, answers) = channel();
        self.crew.tell_all(|| Message::Pairs(reply.clone()));
        drop(reply);
        let end = Instant::now() + ANSWER;
        let mut pairs = Vec::new();
        while let Ok(some) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            pairs.extend(some);
        }
        pairs
    }
}

impl House {
    /// So many reactors are on duty from now on.
    pub(crate) fn call_up(&self, config: &Engine) {
        if let Err(error) = self.duty.call_up(config) {
            self.keeper.fault(None, format!("{error:#}: fewer reactors serve than were asked for"));
        }
    }

    /// Until the engine ends: moves what is to be moved.
    pub(crate) fn keep_balance(&self) {
        let mut balancer = Balancer::default();
        let mut before = HashMap::new();
        while let Some(musters) = self.duty.next_look() {
            if musters {
                self.duty.muster();
                self.disks().into_iter().for_each(|(_, disk)| _ = free(&disk).map(|mut disk| disk.muster()));
            }
            let loads = self.duty.loads(&mut before);
            // What goes where it belongs is not judged meanwhile.
            if !musters
                && balancer.wants_more(&loads)
                && let Some(Move { ssd, queue, to, ring }) = balancer.next(&loads, &self.duty.pairs())
            {
                tracing::debug!(ssd = ssd.0, queue, to, "a queue pair moves");
                self.shift(ssd, queue, to, ring);
            }
        }
    }

    fn shift(&self, ssd: SsdId, queue: u16, to: usize, ring: bool) {
        if !ring {
            // Only its home knows what to do.
            return self.duty.crew.tell_all(|| Message::Shift(ssd, queue, to));
        }
        if let Some((_, disk)) = self.disks().into_iter().find(|(id, _)| *id == ssd) {
            let _ = free(&disk).map(|mut disk| disk.shift(queue, to));
        }
    }

    /// The disks that are served. Not held while a ring moves.
    fn disks(&self) -> Vec<(SsdId, Arc<Mutex<Disk>>)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.open.values().filter_map(|served| Some((served.ssd().id, served.disk()?))).collect()
    }
}

/// A time to divide by.
fn span_ns(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A part of a time.
fn permille(part_ns: u64, span_ns: u64) -> u32 {
    u32::try_from((part_ns.saturating_mul(1000) / span_ns).min(1000)).unwrap_or(1000)
}

/// A disk whose client asks nothing now: what it asks may take as long as its I/O, and nobody else's rings wait for that.
fn free(disk: &Mutex<Disk>) -> Option<MutexGuard<'_, Disk>> {
    match disk.try_lock() {
        Ok(disk) => Some(disk),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
