//! A queue group with everything around it: a host that owns the rings, a backend that answers when told, a home that grants,
//! persists and holds. It checks what must hold whatever the host does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{Fault, Limits, Now, Op, Outcome, Request, Submitted, Token};
use memory::{Access, DoorbellPage, Iova, MemoryMap, Segment, SharedRegion, Window};
use nvme::group::{GroupConfig, QueueGroup};
use nvme::namespace::{Gate, LbaFormat, Marks, Namespace, NamespaceTable, SubsystemGate};
use nvme::queue::{create_cq, create_sq};
use nvme::sink::{GroupCommand, GroupEvent, Scope, Sink};
use state::region::ControllerRegion;

use crate::{guest, region};

pub const CQS: u16 = 3;
pub const SQS: u16 = 4;
pub const CAPACITY_BYTES: u64 = 64 << 20;
pub const MDTS_BYTES: u32 = 1 << 20;

fn cq_base(cqid: u16) -> u64 {
    guest::RINGS + u64::from(cqid - 1) * 0x2000
}

fn sq_base(sqid: u16) -> u64 {
    guest::RINGS + 0x8000 + u64::from(sqid - 1) * 0x2000
}

const SHADOW: u64 = guest::RINGS + 0x18000;
const EVENTS: u64 = guest::RINGS + 0x19000;

/// How the backend takes the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Queue,
    Full,
    Done,
    Fail(Fault),
}

/// A request at the backend.
struct Pending {
    token: Token,
    op: Op,
    data: Vec<Segment>,
}

/// The engine and the drive.
pub struct World {
    region: Arc<SharedRegion<ControllerRegion>>,
    map: Arc<MemoryMap>,
    table: Arc<NamespaceTable>,
    pending: VecDeque<Pending>,
    pub moods: VecDeque<Mood>,
    /// The drive takes everything at once: for the end of an input.
    pub calm: bool,
    events: Vec<GroupEvent>,
    interrupts: HashSet<u16>,
}

impl World {
    /// The invariants of every request.
    fn check(&self, request: &Request<'_>) {
        let (sqid, slot) = ((request.token.0 >> 16) as usize, (request.token.0 & 0xffff) as usize);
        let place = &self.region.slots[sqid][slot];
        let word = place.word.load(Ordering::Relaxed);
        assert_eq!(word & 3, state::region::SLOT_ACCEPTED, "a request of a command that is not accepted");
        assert!(!self.pending.iter().any(|one| one.token == request.token), "two requests of one command");
        let len: u64 = request.data.iter().map(|segment| segment.len() as u64).sum();
        match request.op {
            Op::Flush => return assert!(request.data.is_empty()),
            Op::Read | Op::Write { .. } => {
                assert_eq!(len, request.range.len_bytes, "segments of another length")
            }
            Op::WriteZeroes { .. } | Op::Discard => assert!(request.data.is_empty()),
        }
        assert!(request.data.len() <= limits().segments_max);
        let nsid = u32::try_from(place.command[0].load(Ordering::Relaxed) >> 32).expect("32 bits");
        let namespace = self.table.attached(nsid).expect("a request for no attached namespace");
        let end = request.range.end_bytes().expect("no wrap");
        let own_end = namespace.start_bytes + (namespace.blocks << namespace.format.shift());
        assert!(request.range.len_bytes > 0, "an empty request");
        assert!(
            request.range.start_bytes >= namespace.start_bytes && end <= own_end,
            "outside the namespace"
        );
        assert!(end <= CAPACITY_BYTES);
        let block = u64::from(namespace.format.block_bytes());
        assert!((request.range.start_bytes - namespace.start_bytes).is_multiple_of(block));
        assert!(request.range.len_bytes.is_multiple_of(block));
        for segment in request.data {
            assert!(!segment.is_empty(), "an empty segment");
            let addr = segment.addr().addr();
            if guest::owns(addr) {
                let write = request.op == Op::Read;
                assert!(
                    guest::allows(&self.map, addr, segment.len(), write),
                    "a segment outside guest memory"
                );
            } else {
                assert!(segment.len() <= 1 << 20, "a private buffer");
            }
        }
    }

    /// Moves the data, as a drive does.
    fn carry_out(op: Op, data: &[Segment]) {
        for segment in data {
            match op {
                // SAFETY: checked when submitted; guest memory is never unmapped here, and private buffers live as long
                // as the request (which the sanitizer checks).
                Op::Read => unsafe { segment.fill(0x5a) },
                Op::Write { .. } => {
                    let mut byte = [0];
                    // SAFETY: as above.
                    unsafe { segment.split_at(segment.len() - 1).1.copy_to(&mut byte) };
                }
                _ => {}
            }
        }
    }
}

impl Sink for World {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.check(request);
        let mood = if self.calm { Mood::Done } else { self.moods.pop_front().unwrap_or(Mood::Queue) };
        match mood {
            Mood::Full => Submitted::Full,
            Mood::Done => {
                Self::carry_out(request.op, request.data);
                Submitted::Ended(Outcome::Done)
            }
            Mood::Fail(fault) => Submitted::Ended(Outcome::Failed(fault)),
            Mood::Queue if self.pending.len() >= 600 => Submitted::Full,
            Mood::Queue => {
                let data = request.data.to_vec();
                self.pending.push_back(Pending { token: request.token, op: request.op, data });
                Submitted::Queued
            }
        }
    }

    fn interrupt(&mut self, vector: u16) {
        self.interrupts.insert(vector);
    }

    fn report(&mut self, event: GroupEvent) {
        self.events.push(event);
    }
}

#[must_use]
pub fn limits() -> Limits {
    Limits { capacity_bytes: CAPACITY_BYTES, block_bytes: 512, segments_max: 8, discard: true }
}

fn namespace(nsid: u32, start_bytes: u64, blocks: u64, format: LbaFormat, attached: bool) -> Namespace {
    Namespace {
        nsid,
        start_bytes,
        reserved_bytes: (blocks << format.shift()).next_multiple_of(1 << 20),
        blocks,
        format,
        attached,
        shared: false,
        eui64: [1; 8],
        nguid: [2; 16],
        uuid: [3; 16],
        gate: Gate::Open,
        marks: Arc::new(Marks::default()),
    }
}

/// Several sizes and both block sizes; 5 is detached.
fn table(kind: u8) -> NamespaceTable {
    let table = NamespaceTable::new([
        namespace(1, 0, 4096, LbaFormat::B512, true),
        namespace(2, 2 << 20, 512, LbaFormat::B4096, true),
        namespace(3, 4 << 20, 1, LbaFormat::B512, true),
        namespace(5, 5 << 20, 64, LbaFormat::B512, false),
        namespace(32, 6 << 20, (58 << 20) >> 12, LbaFormat::B4096, true),
    ]);
    match kind % 5 {
        0 => table,
        1 => table.gated(SubsystemGate::Sanitizing),
        2 => table.without(2),
        3 => table.with(namespace(1, 0, 512, LbaFormat::B4096, true)),
        _ => table.gated(SubsystemGate::SanitizeFailed),
    }
}

#[derive(Clone, Copy, Default)]
struct Sq {
    exists: bool,
    deleting: bool,
    cqid: u16,
    base: u64,
    size: u32,
    tail: u32,
    /// Entries of it seen in completion queues.
    answered: u32,
}

#[derive(Clone, Copy, Default)]
struct Cq {
    exists: bool,
    base: u64,
    size: u32,
    /// Where the host reads next, and the phase it waits for.
    head: u32,
    phase: bool,
    /// Entries posted and not taken.
    unread: u32,
    /// The host rang something that is not true.
    lied: bool,
    tail: u32,
}

/// Why a hold was begun.
#[derive(Clone, Copy)]
enum HoldFor {
    Nobody,
    Ticket(u32),
    Table(u8),
}

/// See the module.
pub struct Bench {
    pub world: World,
    group: QueueGroup,
    region: Arc<SharedRegion<ControllerRegion>>,
    page: Arc<SharedRegion<DoorbellPage>>,
    sqs: [Sq; SQS as usize + 1],
    cqs: [Cq; CQS as usize + 1],
    now: u64,
    next_id: u32,
    waiting: HashSet<u32>,
    holds: HashMap<u32, HoldFor>,
    acknowledged: Vec<u32>,
    persists: VecDeque<u32>,
    grants: VecDeque<(u32, u32, u16)>,
    aborts: HashSet<u32>,
    reset: Option<u32>,
    shadow: bool,
    rings_mapped: bool,
    /// Maps given and not yet adopted.
    adoptions: u32,
}

impl Bench {
    /// A group without queues over memory of this shape.
    #[must_use]
    pub fn new(shape: u8) -> Self {
        guest::clear();
        let region = region::fresh();
        let page = Arc::new(SharedRegion::<DoorbellPage>::private());
        let map = guest::map(shape);
        let table = Arc::new(table(0));
        let config = GroupConfig {
            region: Arc::clone(&region),
            doorbells: Arc::clone(&page),
            limits: limits(),
            mdts_bytes: MDTS_BYTES,
        };
        let group = QueueGroup::new(config, Arc::clone(&map), Arc::clone(&table));
        let world = World {
            region: Arc::clone(&region),
            map,
            table,
            pending: VecDeque::new(),
            moods: VecDeque::new(),
            calm: false,
            events: Vec::new(),
            interrupts: HashSet::new(),
        };
        Self {
            world,
            group,
            region,
            page,
            sqs: Default::default(),
            cqs: Default::default(),
            now: 0,
            next_id: 1,
            waiting: HashSet::new(),
            holds: HashMap::new(),
            acknowledged: Vec::new(),
            persists: VecDeque::new(),
            grants: VecDeque::new(),
            aborts: HashSet::new(),
            reset: None,
            shadow: false,
            rings_mapped: shape & 32 == 0,
            adoptions: 0,
        }
    }

    fn id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id);
        id
    }

    fn send(&mut self, command: GroupCommand) {
        self.group.command(command, &mut self.world);
    }

    fn ring(&mut self, index: usize, value: u32) {
        self.page.store(index, value);
        if self.shadow {
            guest::poke(SHADOW + index as u64 * 4, &value.to_le_bytes());
        }
    }

    pub fn create_cq(&mut self, cqid: u16, size: u32, base: Option<u64>) {
        if self.reset.is_some() || self.cqs[usize::from(cqid)].exists {
            return;
        }
        let base = base.unwrap_or(cq_base(cqid));
        guest::poke(cq_base(cqid), &[0; 0x2000]);
        let size = size.clamp(2, 4096);
        create_cq(&self.region, cqid, base, size, (cqid != 3).then_some(cqid));
        self.ring(usize::from(cqid) * 2 + 1, 0);
        self.send(GroupCommand::CreateCq { cqid });
        let lied = base != cq_base(cqid) || size > 512;
        let cq = Cq { exists: true, base, size, phase: true, lied, ..Cq::default() };
        self.cqs[usize::from(cqid)] = cq;
    }

    pub fn create_sq(&mut self, sqid: u16, cqid: u16, size: u32, base: Option<u64>) {
        if self.reset.is_some() || self.sqs[usize::from(sqid)].exists || !self.cqs[usize::from(cqid)].exists {
            return;
        }
        // Old answers to a queue of this name would be taken for new ones.
        (1..=CQS).for_each(|cqid| self.consume(cqid, u32::MAX));
        if self.cqs.iter().any(|cq| cq.exists && !cq.lied && cq.unread > 0) {
            return;
        }
        let base = base.unwrap_or(sq_base(sqid));
        let size = size.clamp(2, 4096);
        create_sq(&self.region, sqid, base, size, cqid);
        self.ring(usize::from(sqid) * 2, 0);
        self.send(GroupCommand::CreateSq { sqid });
        let sq = Sq { exists: true, cqid, base, size, ..Sq::default() };
        self.sqs[usize::from(sqid)] = sq;
    }

    /// The host writes an entry at its tail; `false` when the ring is full as far as the device's head says.
    pub fn enqueue(&mut self, sqid: u16, command: &[u8; 64]) -> bool {
        let sq = self.sqs[usize::from(sqid)];
        if !sq.exists || sq.deleting {
            return false;
        }
        let next = (sq.tail + 1) % sq.size;
        let head =
            u32::try_from(self.region.sqs[usize::from(sqid)].head_seq.load(Ordering::Relaxed) & 0xffff_ffff);
        if Ok(next) == head {
            return false;
        }
        guest::poke(sq.base.wrapping_add(u64::from(sq.tail) * 64), command);
        self.sqs[usize::from(sqid)].tail = next;
        true
    }

    pub fn ring_sq(&mut self, sqid: u16) {
        let tail = self.sqs[usize::from(sqid)].tail;
        self.ring(usize::from(sqid) * 2, tail);
    }

    pub fn wild_bell(&mut self, index: u8, value: u32) {
        let index = usize::from(index) % 10;
        self.ring(index, value);
        if index % 2 == 1
            && let Some(cq) = self.cqs.get_mut(index / 2)
        {
            cq.lied = true;
        }
    }

    pub fn poll(&mut self, step: u64) {
        self.now = self.now.saturating_add(step);
        self.group.poll(Now(self.now), &mut self.world);
        self.settle();
    }

    pub fn flush(&mut self) {
        self.world.interrupts.clear();
        self.group.flush(&mut self.world);
        for &vector in &self.world.interrupts {
            assert!((1..=2).contains(&vector), "an interrupt of no queue");
        }
        self.settle();
    }

    pub fn complete(&mut self, which: usize, outcome: Outcome) {
        if self.world.pending.is_empty() {
            return;
        }
        let at = which % self.world.pending.len();
        let Some(one) = self.world.pending.remove(at) else { return };
        if outcome == Outcome::Done {
            World::carry_out(one.op, &one.data);
        }
        self.group.complete(one.token, outcome, &mut self.world);
        self.settle();
    }

    pub fn unknown_token(&mut self, token: u64) {
        if !self.world.pending.iter().any(|one| one.token.0 == token) {
            self.group.complete(Token(token), Outcome::Done, &mut self.world);
            self.settle();
        }
    }

    /// The host takes what was posted, at most `count`, and says so.
    pub fn consume(&mut self, cqid: u16, count: u32) {
        self.look_at_tails();
        let cq = &mut self.cqs[usize::from(cqid)];
        if !cq.exists || cq.lied {
            return;
        }
        for _ in 0..count.min(cq.unread) {
            let at = cq.base + u64::from(cq.head) * 16;
            let entry: [u8; 16] = guest::peek(at).expect("our ring");
            if entry[14] & 1 != u8::from(cq.phase) {
                assert!(!self.rings_mapped, "an entry of the wrong phase inside the queue");
                break;
            }
            let sqid = u16::from_le_bytes([entry[10], entry[11]]);
            let sq = &mut self.sqs[usize::from(sqid)];
            if sq.exists {
                assert_eq!(sq.cqid, cqid, "an answer in another completion queue");
                sq.answered += 1;
            }
            cq.unread -= 1;
            cq.head += 1;
            if cq.head == cq.size {
                (cq.head, cq.phase) = (0, !cq.phase);
            }
        }
        let head = cq.head;
        self.ring(usize::from(cqid) * 2 + 1, head);
    }

    /// What was posted since the last look. Never more than fits.
    fn look_at_tails(&mut self) {
        for (cqid, cq) in self.cqs.iter_mut().enumerate().filter(|(_, cq)| cq.exists) {
            let word = self.region.cqs[cqid].tail_phase.load(Ordering::Relaxed);
            let tail = word & 0xffff;
            assert!(tail < cq.size, "a tail outside the queue");
            let posted = (tail + cq.size - cq.tail) % cq.size;
            cq.tail = tail;
            if cq.lied {
                continue;
            }
            cq.unread += posted;
            assert!(cq.unread < cq.size, "completion queue {cqid} overrun: {} of {}", cq.unread, cq.size);
            // The entry at the tail was not written: it has the phase of the round before.
            let at = cq.base + u64::from(tail) * 16;
            let entry: [u8; 16] = guest::peek(at).expect("our ring");
            let phase = word >> 16 & 1 == 1;
            assert_ne!(entry[14] & 1 == 1, phase, "an entry beyond the tail");
        }
    }

    /// Bookkeeping after each step.
    fn settle(&mut self) {
        for event in std::mem::take(&mut self.world.events) {
            self.event(event);
        }
        assert_eq!(self.group.in_flight(), self.world.pending.len(), "requests at the backend");
        self.look_at_tails();
        for sqid in 1..=SQS {
            let sq = self.sqs[usize::from(sqid)];
            if !sq.exists || self.reset.is_some() {
                continue;
            }
            let record = &self.region.sqs[usize::from(sqid)];
            let head = record.head_seq.load(Ordering::Relaxed) & 0xffff_ffff;
            assert!(head < u64::from(sq.size), "a head outside the queue");
        }
    }

    fn event(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::SqDeleted { sqid } => {
                let sq = &mut self.sqs[usize::from(sqid)];
                assert!(sq.deleting, "nobody deleted submission queue {sqid}");
                assert_eq!(self.busy_slots(sqid), 0, "slots of a deleted queue");
                self.sqs[usize::from(sqid)] = Sq::default();
            }
            GroupEvent::CqDeleted { cqid } => self.cqs[usize::from(cqid)].exists = false,
            GroupEvent::Yielded { cqid, .. } => panic!("nobody asked for queue pair {cqid}"),
            GroupEvent::Lulled { id } => panic!("nobody asked for lull {id}"),
            GroupEvent::MemoryAdopted { .. } => {
                self.adoptions = self.adoptions.checked_sub(1).expect("a map adopted that was never given");
            }
            GroupEvent::Acknowledged { id } => {
                assert!(self.waiting.remove(&id), "acknowledged twice, or never asked: {id}");
                if self.reset == Some(id) {
                    self.reset = None;
                    assert!(self.world.pending.is_empty(), "a reset with I/O in flight");
                    assert!(self.group.is_empty());
                    for sqid in 1..=SQS {
                        assert_eq!(self.busy_slots(sqid), 0, "slots after a reset");
                    }
                }
                if self.holds.contains_key(&id) {
                    self.acknowledged.push(id);
                }
            }
            GroupEvent::AbortResult { id, .. } => {
                assert!(self.aborts.remove(&id), "an abort nobody asked for")
            }
            GroupEvent::Error(record) => assert!((1..=SQS).contains(&record.sqid)),
            GroupEvent::InvalidDoorbell { qid, .. } => assert!(qid <= SQS),
            GroupEvent::WantExclusive { ticket, nsid, sqid } => {
                assert!(!self.grants.iter().any(|(other, ..)| *other == ticket), "a ticket twice");
                self.grants.push_back((ticket, nsid, sqid));
            }
            GroupEvent::ExclusiveDone { ticket } => {
                self.grants.retain(|(other, ..)| *other != ticket);
                let ended = |kind: &HoldFor| matches!(kind, HoldFor::Ticket(other) if *other == ticket);
                let ids: Vec<u32> =
                    self.holds.iter().filter(|(_, kind)| ended(kind)).map(|(id, _)| *id).collect();
                for id in ids {
                    self.release(id);
                }
            }
            GroupEvent::WantPersist { ticket } => self.persists.push_back(ticket),
            GroupEvent::NeedsRemote => assert!(!self.world.map.is_remote_reachable()),
        }
    }

    fn busy_slots(&self, sqid: u16) -> usize {
        let busy = |slot: &&state::region::Slot| slot.word.load(Ordering::Relaxed) & 3 != 0;
        self.region.slots[usize::from(sqid)].iter().filter(busy).count()
    }

    fn hold_for(&mut self, scope: Scope, except: Option<u16>, kind: HoldFor) {
        let id = self.id();
        self.holds.insert(id, kind);
        self.send(GroupCommand::Hold { scope, except, id });
        self.settle();
    }

    pub fn hold(&mut self, nsid: Option<u32>) {
        if self.holds.len() < 8 {
            self.hold_for(nsid.map_or(Scope::All, Scope::Nsid), None, HoldFor::Nobody);
        }
    }

    /// Changes the namespaces, as home does: under a hold of all.
    pub fn change_table(&mut self, kind: u8) {
        if self.holds.is_empty() {
            self.hold_for(Scope::All, None, HoldFor::Table(kind));
        }
    }

    fn release(&mut self, id: u32) {
        self.holds.remove(&id);
        self.acknowledged.retain(|other| *other != id);
        // A hold that ends before it was acknowledged is not acknowledged any more.
        self.waiting.remove(&id);
        self.send(GroupCommand::Release { id });
    }

    /// Home goes on with what was acknowledged or asked for.
    pub fn home(&mut self, ok: bool) {
        for id in std::mem::take(&mut self.acknowledged) {
            match self.holds.get(&id).copied() {
                Some(HoldFor::Ticket(ticket)) => self.send(GroupCommand::Granted { ticket }),
                Some(HoldFor::Table(kind)) => {
                    let table = Arc::new(table(kind));
                    self.world.table = Arc::clone(&table);
                    let other = self.id();
                    self.send(GroupCommand::Namespaces { table, id: other });
                    self.settle();
                    self.release(id);
                }
                Some(HoldFor::Nobody) => self.release(id),
                None => {}
            }
            self.settle();
        }
        // One exclusive operation at a time, as home orders them.
        while !self.holds.values().any(|kind| matches!(kind, HoldFor::Table(_)))
            && let Some((ticket, nsid, sqid)) = self.grants.pop_front()
        {
            self.hold_for(Scope::Nsid(nsid), Some(sqid), HoldFor::Ticket(ticket));
        }
        while let Some(ticket) = self.persists.pop_front() {
            self.send(GroupCommand::Persisted { ticket, ok });
            self.settle();
        }
    }

    pub fn abort(&mut self, sqid: u16, cid: u16) {
        if self.reset.is_some() {
            return;
        }
        let id = self.id();
        self.waiting.remove(&id);
        self.aborts.insert(id);
        self.send(GroupCommand::Abort { sqid, cid, id });
        self.settle();
        assert!(self.aborts.is_empty(), "an abort without a result");
    }

    pub fn delete_sq(&mut self, sqid: u16) {
        let sq = &mut self.sqs[usize::from(sqid)];
        if self.reset.is_none() && sq.exists && !sq.deleting {
            sq.deleting = true;
            self.send(GroupCommand::DeleteSq { sqid });
            self.settle();
        }
    }

    pub fn delete_cq(&mut self, cqid: u16) {
        let used = self.sqs.iter().any(|sq| sq.exists && sq.cqid == cqid);
        if self.reset.is_none() && !used && self.cqs[usize::from(cqid)].exists {
            self.send(GroupCommand::DeleteCq { cqid });
            self.settle();
        }
    }

    pub fn reset(&mut self) {
        if self.reset.is_some() {
            return;
        }
        let id = self.id();
        self.reset = Some(id);
        self.sqs = Default::default();
        self.cqs = Default::default();
        self.shadow = false;
        self.send(GroupCommand::Reset { id });
        // A reset ends every hold.
        let holds: Vec<u32> = self.holds.keys().copied().collect();
        for id in holds {
            self.release(id);
        }
        self.grants.clear();
        self.persists.clear();
        self.settle();
    }

    pub fn memory(&mut self, shape: u8) {
        // What was said under the map before, by the creation of a queue too, is judged by it.
        self.settle();
        let map = guest::map(shape);
        self.adoptions += 1;
        self.world.map = Arc::clone(&map);
        self.rings_mapped = shape & 32 == 0;
        self.send(GroupCommand::Memory { map });
        self.settle();
    }

    pub fn shadow(&mut self, enabled: bool, wild: Option<(u64, u64)>) {
        if self.reset.is_some() {
            return;
        }
        let (values, events) = wild.unwrap_or((SHADOW, EVENTS));
        let admin = &self.region.admin;
        admin.shadow_doorbells.store(if enabled { values } else { 0 }, Ordering::Release);
        admin.event_indices.store(if enabled { events } else { 0 }, Ordering::Release);
        // The host copies what it had rung before.
        for index in 0..10 {
            guest::poke(SHADOW + index * 4, &self.page.load(index as usize).to_le_bytes());
        }
        if wild.is_some() {
            self.cqs.iter_mut().for_each(|cq| cq.lied = true);
        }
        self.shadow = enabled && wild.is_none();
        let id = self.id();
        self.send(GroupCommand::ShadowDoorbells { enabled, id });
        self.settle();
    }

    /// The engine moves the queues to another reactor: pause, drop, a new group over the same region.
    pub fn move_group(&mut self) {
        if self.reset.is_some() || self.sqs.iter().any(|sq| sq.deleting) {
            return;
        }
        let id = self.id();
        self.send(GroupCommand::Pause { id });
        for _ in 0..2000 {
            self.complete(0, Outcome::Done);
            self.flush();
            if !self.waiting.contains(&id) {
                break;
            }
        }
        assert!(!self.waiting.contains(&id), "a pause that does not end");
        let holds: Vec<u32> = self.holds.keys().copied().collect();
        for id in holds {
            self.release(id);
        }
        self.grants.clear();
        self.persists.clear();
        self.settle();
        let config = GroupConfig {
            region: Arc::clone(&self.region),
            doorbells: Arc::clone(&self.page),
            limits: limits(),
            mdts_bytes: MDTS_BYTES,
        };
        // The group that goes has no I/O any more; who made the maps waits for nobody.
        self.adoptions = 0;
        self.group = QueueGroup::new(config, Arc::clone(&self.world.map), Arc::clone(&self.world.table));
        for cqid in (1..=CQS).filter(|cqid| self.cqs[usize::from(*cqid)].exists) {
            self.group.command(GroupCommand::CreateCq { cqid }, &mut self.world);
        }
        for sqid in (1..=SQS).filter(|sqid| self.sqs[usize::from(*sqid)].exists) {
            self.group.command(GroupCommand::CreateSq { sqid }, &mut self.world);
        }
        if self.region.admin.shadow_doorbells.load(Ordering::Relaxed) != 0 {
            let id = self.id();
            self.send(GroupCommand::ShadowDoorbells { enabled: true, id });
        }
        self.settle();
    }

    /// The host sets feature 06h.
    pub fn write_cache(&mut self, on: bool) {
        self.region.admin.features_set[0].fetch_or(1 << 6, Ordering::Relaxed);
        self.region.admin.features[6].store(u32::from(on), Ordering::Relaxed);
    }

    fn ring_is_mapped(&self, base: u64, bytes: usize) -> bool {
        let access = Access { read: false, write: true };
        Window::new(&self.world.map, Iova(base), bytes, access).is_ok()
    }

    fn is_quiet(&self) -> bool {
        self.world.pending.is_empty()
            && self.waiting.is_empty()
            && self.adoptions == 0
            && self.holds.is_empty()
            && self.grants.is_empty()
            && self.persists.is_empty()
            && (1..=SQS).all(|sqid| self.busy_slots(sqid) == 0)
            && self.cqs.iter().all(|cq| cq.lied || cq.unread == 0)
    }

    /// Everybody does their duty: then every accepted command is answered, every drain ends.
    pub fn end(&mut self) {
        self.world.calm = true;
        self.memory(16);
        self.shadow(false, None);
        for sqid in 1..=SQS {
            let head = self.region.sqs[usize::from(sqid)].head_seq.load(Ordering::Relaxed) & 0xffff_ffff;
            self.ring(usize::from(sqid) * 2, u32::try_from(head).expect("32 bits"));
        }
        // Many: a completion queue behind a client that refuses now and then gets some ten entries a round.
        for round in 0..4096 {
            if round > 2 && self.is_quiet() {
                break;
            }
            for _ in 0..700 {
                if self.world.pending.is_empty() {
                    break;
                }
                self.complete(0, Outcome::Done);
            }
            self.home(true);
            self.poll(1_000_000);
            for cqid in 1..=CQS {
                self.consume(cqid, u32::MAX);
            }
            self.flush();
        }
        assert!(self.reset.is_none(), "a reset that does not end");
        assert_eq!(self.adoptions, 0, "maps that are never adopted");
        assert!(self.waiting.is_empty(), "never acknowledged: {:?}", self.waiting);
        for sqid in 1..=SQS {
            let sq = self.sqs[usize::from(sqid)];
            let cq = self.cqs[usize::from(sq.cqid)];
            if !sq.exists || !self.ring_is_mapped(cq.base, cq.size as usize * 16) {
                continue;
            }
            assert!(!sq.deleting, "submission queue {sqid} is not let go");
            assert_eq!(
                self.busy_slots(sqid),
                0,
                "commands of submission queue {sqid} that are never answered"
            );
            let seq = self.region.sqs[usize::from(sqid)].head_seq.load(Ordering::Relaxed) >> 32;
            let answered = self.world_answers(sqid);
            if let Some(answered) = answered {
                assert_eq!(seq, u64::from(answered), "answers to submission queue {sqid}");
            }
        }
    }

    /// Entries seen for a queue, when its completion queue was honest throughout.
    fn world_answers(&self, sqid: u16) -> Option<u32> {
        let sq = self.sqs[usize::from(sqid)];
        let cq = self.cqs[usize::from(sq.cqid)];
        (!cq.lied && cq.unread == 0).then_some(sq.answered)
    }
}
