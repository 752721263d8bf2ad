//! All rings of one device on one reactor.
//!
//! Duties of the caller: one reactor thread; `poll` and `flush` in every turn; each token that was `Queued` comes back through
//! `complete` once. Before it sleeps it calls [`VirtQueueGroup::arm`], and does not sleep when that returns `false`. After a
//! crash, and whenever a queue starts with a used in-flight region, the driver is called once by the next `flush`.

use std::collections::VecDeque;
use std::sync::Arc;

use block::{Fault, Op, Outcome, Request, Submitted, Token};
use memory::{Hint, Iova, MemoryMap, Segment};
use spec::virtio_blk as blk;

use crate::chain::{Chain, Piece};
use crate::config::Device;
use crate::crash;
use crate::order::meet;
use crate::request::{Parsed, envelope, parse, write_id};
use crate::ring::{Ring, RingConfig, Slot};
use crate::sink::{Broken, Event, Sink};

/// Chains taken from one queue in one poll.
const BATCH: usize = 32;
/// The most queues of a group.
pub const QUEUES_MAX: u16 = 256;

/// A request at the drive, or one that waits for room there.
#[derive(Clone, Debug)]
struct Live {
    status: Iova,
    len: u32,
    epoch: u32,
    /// What the drive writes to; only while the map has a log.
    written: Vec<Piece>,
}

struct Queue {
    config: RingConfig,
    ring: Ring,
    hint: Hint,
    live: Vec<Option<Live>>,
    /// Taken, but not at the drive: resubmission, or no room.
    retries: VecDeque<Slot>,
    at_backend: usize,
    broken: bool,
    stopping: bool,
    /// Answers were given since the last look at whether a call is wanted.
    published: bool,
    /// The driver was asked to kick.
    armed: bool,
    /// Call whatever the driver wants: a predecessor's call may be lost.
    call: bool,
}

/// See the module.
pub struct VirtQueueGroup {
    device: Arc<Device>,
    map: Arc<MemoryMap>,
    /// Maps that I/O still uses, until all begun before `epoch` has ended.
    retired: Vec<Arc<MemoryMap>>,
    epoch: u32,
    /// At the backend, begun under an older map.
    older: usize,
    features: u64,
    writeback: bool,
    queues: Vec<Option<Box<Queue>>>,
    active: Vec<u16>,
    chain: Chain,
    segments: Vec<Segment>,
    at_backend: usize,
    full: bool,
    pausing: bool,
    paused: bool,
    /// Answers, starts or stops since the last flush.
    news: bool,
}

fn token_of(queue: u16, slot: Slot) -> Token {
    Token(u64::from(queue) << 16 | u64::from(slot))
}

impl VirtQueueGroup {
    /// A group without queues.
    #[must_use]
    pub fn new(device: Arc<Device>, map: Arc<MemoryMap>) -> Self {
        let segments = Vec::with_capacity(device.limits.segments_max);
        Self {
            device,
            map,
            retired: Vec::new(),
            epoch: 0,
            older: 0,
            features: 0,
            writeback: true,
            queues: (0..QUEUES_MAX).map(|_| None).collect(),
            active: Vec::new(),
            chain: Chain::new(),
            segments,
            at_backend: 0,
            full: false,
            pausing: false,
            paused: false,
            news: false,
        }
    }

    /// Requests at the backend. At 0 the group may be dropped; the in-flight regions keep what was taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.at_backend
    }

    /// No queues.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// The negotiated features. While no queue runs.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
        self.chain.indirect = features & blk::F_INDIRECT_DESC != 0;
    }

    /// The write-back byte of the configuration space. For requests begun from now on.
    pub fn set_writeback(&mut self, on: bool) {
        self.writeback = on;
    }

    /// Uses this memory from now on; [`Event::MemoryAdopted`] by a `flush` when no I/O uses an older map. What is read from the drive is marked in
    /// the map's log if it was begun under a map with one.
    pub fn set_memory(&mut self, map: Arc<MemoryMap>, sink: &mut impl Sink) {
        self.retired.push(core::mem::replace(&mut self.map, map));
        self.epoch = self.epoch.wrapping_add(1);
        self.older = self.at_backend;
        self.news = true;
        for index in 0..self.active.len() {
            let Some(&queue) = self.active.get(index) else { return };
            let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { continue };
            q.hint = Hint::default();
            if let Err(why) = q.ring.remap(&q.config, &self.map) {
                break_queue(q, queue, why, sink);
            }
        }
    }

    /// Serves a ring. What its in-flight region says was taken and not answered is done first, in order.
    ///
    /// Returns how many requests that is.
    ///
    /// # Errors
    /// Why it cannot be served; nothing runs then.
    pub fn start(&mut self, queue: u16, config: RingConfig) -> Result<usize, Broken> {
        let place = self.queues.get_mut(usize::from(queue)).filter(|place| place.is_none());
        let place = place.ok_or(Broken::Size)?;
        let (mut ring, again) = Ring::open(&config, &self.map)?;
        // Whoever served the ring before may have asked the driver not to kick.
        ring.want_kicks(true)?;
        // It may have died between a store and its mark. What it stored for requests that are not answered is stored, and marked, again.
        ring.mark_all();
        let slots = config.inflight.as_ref().map_or(config.size, |region| region.desc_num);
        let call = config.inflight.is_some();
        let count = again.len();
        *place = Some(Box::new(Queue {
            config,
            ring,
            hint: Hint::default(),
            live: vec![None; usize::from(slots)],
            retries: again.into(),
            at_backend: 0,
            broken: false,
            stopping: false,
            published: false,
            armed: true,
            call,
        }));
        self.active.push(queue);
        self.news = true;
        Ok(count)
    }

    /// The queues that run or are being stopped.
    #[must_use]
    pub fn queues(&self) -> &[u16] {
        &self.active
    }

    /// Takes nothing more from the ring; [`Event::Stopped`] by a `flush` when everything taken is answered. `false`: it does
    /// not run.
    pub fn stop(&mut self, queue: u16) -> bool {
        let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { return false };
        q.stopping = true;
        self.news = true;
        true
    }

    /// Takes from a ring again whose stop takes too long. `false`: it has stopped.
    pub fn go_on(&mut self, queue: u16) -> bool {
        let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { return false };
        q.stopping = false;
        self.news = true;
        true
    }

    /// Begins nothing more; [`Event::Paused`] by a `flush` when no I/O is at the backend. What was taken and not begun is in
    /// the in-flight regions, for the successor.
    pub fn pause(&mut self) {
        self.pausing = true;
        self.news = true;
    }

    /// Asks every driver to kick, before a sleep. `false`: there is something to do.
    pub fn arm(&mut self, sink: &mut impl Sink) -> bool {
        let mut idle = !self.news;
        for &queue in &self.active {
            let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { continue };
            if q.broken || q.stopping || self.paused {
                continue;
            }
            if !q.armed {
                q.armed = true;
                if let Err(why) = q.ring.want_kicks(true) {
                    break_queue(q, queue, why, sink);
                }
            }
        }
        // The driver makes a buffer available, fences, and looks whether a kick is wanted: one of the two sees the other.
        meet();
        for &queue in &self.active {
            let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { continue };
            if !q.broken {
                idle &= q.retries.is_empty() && (q.stopping || !q.ring.has_more().unwrap_or(true));
            }
        }
        idle
    }

    /// Whether there is nothing to do before a driver makes something available. If so, the group needs no turn until
    /// [`VirtQueueGroup::rang`], or a call.
    #[must_use]
    pub fn rest(&self) -> bool {
        !self.news && !self.pausing && self.at_backend == 0 && self.retired.is_empty() && !self.rang()
    }

    /// Whether a driver made something available since the group rests: one load for each ring.
    #[inline]
    #[must_use]
    pub fn rang(&self) -> bool {
        self.active.iter().any(|queue| {
            let Some(Some(q)) = self.queues.get(usize::from(*queue)) else { return false };
            !q.broken && (q.stopping || !q.retries.is_empty() || q.ring.waits())
        })
    }

    /// One look at each ring. Returns the number of chains taken.
    pub fn poll(&mut self, sink: &mut impl Sink) -> usize {
        self.full = false;
        if self.pausing {
            return 0;
        }
        let mut taken = 0;
        for index in 0..self.active.len() {
            let Some(&queue) = self.active.get(index) else { break };
            taken += self.serve(queue, sink);
            if self.full {
                break;
            }
        }
        // The queue that found no room is the first next time.
        if self.full && self.active.len() > 1 {
            self.active.rotate_left(1);
        }
        taken
    }

    #[inline]
    fn serve(&mut self, queue: u16, sink: &mut impl Sink) -> usize {
        let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { return 0 };
        if q.broken {
            return 0;
        }
        let write_through = is_write_through(self.features, self.writeback);
        let mut work = Work {
            device: &self.device,
            map: &self.map,
            epoch: self.epoch,
            write_through,
            chain: &mut self.chain,
            segments: &mut self.segments,
        };
        let mut taken = 0;
        let before = q.at_backend;
        let result = (|| {
            if !q.retries.is_empty() {
                for _ in 0..q.retries.len() {
                    let Some(slot) = q.retries.pop_front() else { break };
                    q.ring.again(work.map, &mut q.hint, slot, work.chain)?;
                    self.news = true;
                    if !work.begin(q, queue, slot, sink)? {
                        q.retries.push_front(slot);
                        self.full = true;
                        return Ok(());
                    }
                }
            }
            if q.stopping {
                return Ok(());
            }
            while taken < BATCH {
                let Some(slot) = q.ring.take(work.map, &mut q.hint, work.chain)? else { break };
                if taken == 0 && q.armed {
                    q.armed = false;
                    q.ring.want_kicks(false)?;
                }
                taken += 1;
                if !work.begin(q, queue, slot, sink)? {
                    q.retries.push_back(slot);
                    self.full = true;
                    return Ok(());
                }
            }
            Ok(())
        })();
        self.at_backend += q.at_backend - before;
        self.news |= taken > 0;
        if let Err(why) = result {
            break_queue(q, queue, why, sink);
            self.news = true;
        }
        taken
    }

    /// A request ended.
    pub fn complete(&mut self, token: Token, outcome: Outcome, sink: &mut impl Sink) {
        let Ok(slot) = Slot::try_from(token.0 & 0xffff) else { return };
        let Ok(queue) = u16::try_from(token.0 >> 16) else { return };
        let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { return };
        let Some(live) = q.live.get_mut(usize::from(slot)).and_then(Option::take) else { return };
        q.at_backend -= 1;
        self.at_backend -= 1;
        if live.epoch != self.epoch {
            self.older = self.older.saturating_sub(1);
        }
        self.news = true;
        if q.broken {
            return;
        }
        let ended = ended(&self.map, &mut q.hint, &live, outcome);
        match ended {
            Ok(len) => q.ring.answer(slot, len),
            Err(why) => break_queue(q, queue, why, sink),
        }
    }

    /// The end of a turn: answers become visible, one call a queue, and what waited for an end is reported.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if !core::mem::take(&mut self.news) || self.paused {
            return;
        }
        let mut published = false;
        for &queue in &self.active {
            let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { continue };
            if q.broken {
                continue;
            }
            match q.ring.publish() {
                Ok(any) => {
                    q.published |= any;
                    published |= any || q.call;
                }
                Err(why) => break_queue(q, queue, why, sink),
            }
        }
        if published {
            self.call(sink);
        }
        self.report_ends(sink);
    }

    fn call(&mut self, sink: &mut impl Sink) {
        // The driver enables calls, fences, and looks at the used ring: one of the two sees the other. One fence a batch.
        meet();
        for &queue in &self.active {
            let Some(Some(q)) = self.queues.get_mut(usize::from(queue)) else { continue };
            if q.broken {
                continue;
            }
            let mut wanted = core::mem::take(&mut q.call);
            if core::mem::take(&mut q.published) {
                match q.ring.wants_call() {
                    Ok(wants) => wanted |= wants,
                    Err(why) => break_queue(q, queue, why, sink),
                }
            }
            if wanted {
                crash::point();
                sink.call(queue);
            }
        }
    }

    fn report_ends(&mut self, sink: &mut impl Sink) {
        let Self { active, queues, .. } = self;
        active.retain(|&queue| {
            let Some(place) = queues.get_mut(usize::from(queue)) else { return false };
            let Some(q) = place else { return false };
            if !q.stopping || q.at_backend > 0 || !q.broken && !q.retries.is_empty() {
                return true;
            }
            sink.report(Event::Stopped { queue, base: q.ring.base() });
            *place = None;
            false
        });
        if self.older == 0 && !self.retired.is_empty() {
            self.retired.clear();
            sink.report(Event::MemoryAdopted { generation: self.map.generation() });
        }
        if self.pausing && self.at_backend == 0 {
            self.paused = true;
            sink.report(Event::Paused);
        }
    }
}

/// What a request needs of the group while a queue is borrowed.
struct Work<'a> {
    device: &'a Device,
    map: &'a MemoryMap,
    epoch: u32,
    write_through: bool,
    chain: &'a mut Chain,
    segments: &'a mut Vec<Segment>,
}

impl Work<'_> {
    /// Begins the request in `chain`. `false`: no room at the drive.
    #[inline]
    fn begin(&mut self, q: &mut Queue, queue: u16, slot: Slot, sink: &mut impl Sink) -> Result<bool, Broken> {
        let (header, status) = envelope(self.map, &mut q.hint, self.chain)?;
        let parsed =
            parse(self.device, self.map, &mut q.hint, header, self.chain, self.write_through, self.segments);
        let mut live = Live { status, len: 0, epoch: self.epoch, written: Vec::new() };
        let (op, range) = match parsed {
            Parsed::Drive { op, range, len } => {
                live.len = len;
                (op, range)
            }
            Parsed::Status(status) => {
                let len = answer(self.map, &mut q.hint, &live, status)?;
                q.ring.answer(slot, len);
                return Ok(true);
            }
            Parsed::Id => {
                let (status, len) = write_id(self.device, self.map, self.chain);
                live.len = len;
                let len = answer(self.map, &mut q.hint, &live, status)?;
                q.ring.answer(slot, len);
                return Ok(true);
            }
        };
        // No allocation unless there is a log.
        if op == Op::Read && self.map.log().is_some() {
            live.written.clone_from(&self.chain.writable);
        }
        crash::point();
        let request = Request { token: token_of(queue, slot), op, range, data: self.segments };
        match sink.submit(&request) {
            Submitted::Full => return Ok(false),
            Submitted::Ended(outcome) => {
                let len = ended(self.map, &mut q.hint, &live, outcome)?;
                q.ring.answer(slot, len);
            }
            Submitted::Queued => {
                q.at_backend += 1;
                *q.live.get_mut(usize::from(slot)).ok_or(Broken::Head)? = Some(live);
            }
        }
        Ok(true)
    }
}

#[inline]
fn ended(map: &MemoryMap, hint: &mut Hint, live: &Live, outcome: Outcome) -> Result<u32, Broken> {
    let status = match outcome {
        Outcome::Done => blk::S_OK,
        Outcome::Failed(Fault::Unsupported) => blk::S_UNSUPP,
        Outcome::Failed(_) => blk::S_IOERR,
    };
    answer(map, hint, live, status)
}

/// Writes the status byte. Returns what the used ring says was written: after a failure nobody knows how much data was.
#[inline]
fn answer(map: &MemoryMap, hint: &mut Hint, live: &Live, status: u8) -> Result<u32, Broken> {
    crash::point();
    map.store_u8(hint, live.status, status)?;
    // Also after a failure: nobody knows how much was stored.
    live.written.iter().for_each(|piece| map.mark(Iova(piece.addr), u64::from(piece.len)));
    Ok(if status == blk::S_OK { live.len.saturating_add(1) } else { 1 })
}

/// The ring is not looked at any more.
#[cold]
fn break_queue(q: &mut Queue, queue: u16, why: Broken, sink: &mut impl Sink) {
    if !core::mem::replace(&mut q.broken, true) {
        sink.report(Event::Broken { queue, why });
    }
}

fn is_write_through(features: u64, writeback: bool) -> bool {
    // 5.2.5 and 5.2.6.2: without FLUSH every write is durable; with CONFIG_WCE the byte decides.
    if features & blk::F_CONFIG_WCE != 0 { !writeback } else { features & blk::F_FLUSH == 0 }
}
