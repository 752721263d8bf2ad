//! Things that wait for running commands to end: holds, memory changes, deletions, reset, pause.

use std::sync::Arc;

use block::Now;
use memory::MemoryMap;

use super::live::{Live, State};
use super::{QueueGroup, Sq};
use crate::queue::{close_cq, close_sq};
use crate::sink::{GroupEvent, Scope, Sink};

/// How long commands of a queue pair that is to go to another group may take to end. The guest's next ones wait so long.
const YIELD_NS: u64 = 10_000_000;

/// Nothing begins, but may again soon.
#[derive(Clone, Copy, Debug)]
struct Lull {
    id: u32,
    reported: bool,
}

/// A hold, acknowledged or not yet.
#[derive(Debug)]
struct Hold {
    scope: Scope,
    id: u32,
    acknowledged: bool,
}

/// A map that I/O may still use.
#[derive(Debug)]
struct Retired {
    /// Kept mapped until then.
    _map: Arc<MemoryMap>,
    /// What to report: the map that came after.
    generation: u64,
    /// The epoch that began with that map.
    epoch: u32,
}

/// A queue pair on its way to another group.
#[derive(Debug)]
struct Yield {
    cqid: u16,
    since: Now,
}

/// Why nothing new begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Reset,
    Pause,
    /// A pause before the end of the process.
    Freeze,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Drains {
    holds: Vec<Hold>,
    retired: Vec<Retired>,
    stop: Option<(Stop, u32, bool)>,
    lull: Option<Lull>,
    yields: Vec<Yield>,
    epoch: u32,
    /// Something may be due for a report.
    watching: bool,
}

impl Drains {
    /// Whether commands to this namespace must wait.
    #[inline]
    pub(super) fn holds(&self, nsid: u32) -> bool {
        !self.holds.is_empty() && self.holds.iter().any(|hold| hold.scope.covers(nsid))
    }

    /// Whether nothing begins at all, nor goes on.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether no request begins. Unless the group is stopped, a command whose request ends goes on to its next.
    #[inline]
    pub(super) fn is_quieted(&self) -> bool {
        self.stop.is_some() || self.lull.is_some()
    }

    /// Counts the memory maps.
    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    #[inline]
    pub(super) fn is_watching(&self) -> bool {
        self.watching
    }

    pub(super) fn watch(&mut self) {
        self.watching = true;
    }

    pub(super) fn hold(&mut self, scope: Scope, id: u32) {
        self.holds.push(Hold { scope, id, acknowledged: false });
        self.watch();
    }

    pub(super) fn release(&mut self, id: u32) {
        self.holds.retain(|hold| hold.id != id);
    }

    pub(super) fn retire_map(&mut self, old: Arc<MemoryMap>, generation: u64) {
        self.epoch = self.epoch.wrapping_add(1);
        self.retired.push(Retired { _map: old, generation, epoch: self.epoch });
        self.watch();
    }

    pub(super) fn yield_pair(&mut self, cqid: u16, now: Now) {
        self.yields.push(Yield { cqid, since: now });
        self.watch();
    }

    pub(super) fn lull(&mut self, id: u32) {
        self.lull = Some(Lull { id, reported: false });
        self.watch();
    }

    pub(super) fn end_lull(&mut self) {
        self.lull = None;
    }

    pub(super) fn reset(&mut self, id: u32) {
        self.holds.clear();
        self.yields.clear();
        self.lull = None;
        self.stop = Some((Stop::Reset, id, false));
        self.watch();
    }

    pub(super) fn pause(&mut self, id: u32) {
        self.lull = None;
        self.stop = Some((Stop::Pause, id, false));
        self.watch();
    }

    pub(super) fn freeze(&mut self, id: u32) {
        self.lull = None;
        self.stop = Some((Stop::Freeze, id, false));
        self.watch();
    }
}

impl QueueGroup {
    /// Reports every drain that has come to its end. Once a turn while any is watched.
    #[inline(never)]
    pub(super) fn check_drains(&mut self, sink: &mut impl Sink) {
        self.check_holds(sink);
        self.check_maps(sink);
        self.check_deletions(sink);
        self.check_yields(sink);
        self.check_lull(sink);
        self.check_stop(sink);
        let drains = &mut self.drains;
        drains.watching = drains.holds.iter().any(|hold| !hold.acknowledged)
            || !drains.retired.is_empty()
            || drains.is_quieted()
            || !drains.yields.is_empty()
            || self.sqs.iter().flatten().any(|sq| sq.deleting || sq.dead);
    }

    fn check_holds(&mut self, sink: &mut impl Sink) {
        let Self { drains, sqs, .. } = self;
        let pausing = matches!(drains.stop, Some((Stop::Pause | Stop::Freeze, ..)));
        for hold in drains.holds.iter_mut().filter(|hold| !hold.acknowledged) {
            // While the group pauses nothing goes on by itself: what would is the next group's.
            let is_running =
                |live: &Live| live.state.is_running() && !(pausing && live.state == State::Retry);
            let runs = |sq: &Sq| sq.live.iter().any(|live| is_running(live) && hold.scope.covers(live.nsid));
            if !sqs.iter().flatten().any(|sq| runs(sq)) {
                hold.acknowledged = true;
                sink.report(GroupEvent::Acknowledged { id: hold.id });
            }
        }
    }

    fn check_maps(&mut self, sink: &mut impl Sink) {
        let Self { drains, sqs, .. } = self;
        let now = drains.epoch;
        drains.retired.retain(|retired| {
            // Ages, so that the count may wrap.
            let age = now.wrapping_sub(retired.epoch);
            let is_older = |epoch: u32| now.wrapping_sub(epoch) > age;
            let uses =
                |sq: &Sq| sq.live.iter().any(|live| live.state == State::Backend && is_older(live.epoch));
            let used = sqs.iter().flatten().any(|sq| uses(sq));
            if !used {
                sink.report(GroupEvent::MemoryAdopted { generation: retired.generation });
            }
            used
        });
    }

    fn check_deletions(&mut self, sink: &mut impl Sink) {
        for sqid in self.active_sqs.clone() {
            let Some(place) = self.sqs.get_mut(usize::from(sqid)) else { continue };
            if place.as_ref().is_some_and(|sq| sq.deleting && sq.live.is_empty()) {
                if let Some(Some(cq)) =
                    place.as_ref().and_then(|sq| self.cqs.get_mut(usize::from(sq.queue.cqid())))
                {
                    cq.forget(sqid);
                }
                *place = None;
                self.active_sqs.retain(|&other| other != sqid);
                close_sq(&self.region, sqid);
                sink.report(GroupEvent::SqDeleted { sqid });
            }
        }
    }

    /// Lets go of what has come to rest. While the group pauses all goes to another group as it is.
    fn check_yields(&mut self, sink: &mut impl Sink) {
        if self.drains.is_stopped() {
            return;
        }
        let mut yields = core::mem::take(&mut self.drains.yields);
        yields.retain(|&Yield { cqid, since }| {
            let sqs = || self.sqs.iter().flatten().filter(|sq| sq.queue.cqid() == cqid);
            let unwritten = self.cqs.get(usize::from(cqid)).and_then(Option::as_ref);
            let ended =
                sqs().all(|sq| sq.live.is_empty()) && unwritten.is_some_and(|cq| cq.late_at().is_none());
            let late = self.now.0.saturating_sub(since.0) >= YIELD_NS;
            if ended {
                let gone: Vec<u16> = sqs().map(|sq| sq.queue.sqid()).collect();
                for sqid in &gone {
                    if let Some(place) = self.sqs.get_mut(usize::from(*sqid)) {
                        *place = None;
                    }
                }
                if let Some(place) = self.cqs.get_mut(usize::from(cqid)) {
                    *place = None;
                }
                self.active_sqs.retain(|sqid| !gone.contains(sqid));
                self.active_cqs.retain(|other| *other != cqid);
            } else if late {
                self.set_yielding(cqid, false);
            }
            if ended || late {
                sink.report(GroupEvent::Yielded { cqid, kept: !ended });
            }
            !ended && !late
        });
        self.drains.yields = yields;
    }

    /// Whether the submission queues of a completion queue are on their way to another group.
    pub(super) fn set_yielding(&mut self, cqid: u16, yielding: bool) {
        for sq in self.sqs.iter_mut().flatten().filter(|sq| sq.queue.cqid() == cqid) {
            sq.yielding = yielding;
        }
    }

    fn check_lull(&mut self, sink: &mut impl Sink) {
        if self.at_backend == 0
            && let Some(Lull { id, reported: reported @ false }) = &mut self.drains.lull
        {
            *reported = true;
            sink.report(GroupEvent::Lulled { id: *id });
        }
    }

    fn check_stop(&mut self, sink: &mut impl Sink) {
        let Some((stop, id, acknowledged)) = self.drains.stop else { return };
        // A command that waits before the drive has no answer in the region: the next process begins it again.
        let rests = self.at_backend == 0 || stop == Stop::Freeze && sink.is_drive_idle();
        if !rests || acknowledged {
            return;
        }
        if stop == Stop::Reset {
            for sqid in core::mem::take(&mut self.active_sqs) {
                if let Some(Some(mut sq)) = self.sqs.get_mut(usize::from(sqid)).map(Option::take) {
                    let Sq { live, queue, .. } = &mut *sq;
                    for live in live.take_all() {
                        if let Some(job) = live.job {
                            self.io.retire(*job);
                        }
                        queue.abandon(&self.region, live.accepted);
                    }
                    close_sq(&self.region, sqid);
                }
            }
            self.drains.stop = None;
        } else {
            self.drains.stop = Some((stop, id, true));
        }
        sink.report(GroupEvent::Acknowledged { id });
    }

    /// Drops a completion queue.
    pub(super) fn drop_cq(&mut self, cqid: u16) {
        if let Some(place) = self.cqs.get_mut(usize::from(cqid)) {
            *place = None;
        }
        self.active_cqs.retain(|&other| other != cqid);
        close_cq(&self.region, cqid);
    }
}
