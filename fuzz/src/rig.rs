//! A controller with two real queue groups, a record's writer, a drive, and messages between them that are delivered when an
//! input says so. It checks what must hold whatever the host does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{Fault, Limits, Now, Op, Outcome, Range, Request, Submitted, Token};
use memory::{DoorbellPage, MemoryMap, Segment, SharedRegion};
use nvme::controller::{AllocationQuery, Bar, Controller, ControllerConfig, Host, Survey};
use nvme::group::{GroupConfig, QueueGroup};
use nvme::management::Order;
use nvme::namespace::{Gate, NamespaceTable, SubsystemGate};
use nvme::profile::{GODWIT_1, Identity, IdentityConfig, Profile};
use nvme::queue::conclude;
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use state::SsdV1;
use state::region::ControllerRegion;

use crate::{guest, region};

pub const CAPACITY_BYTES: u64 = 8 << 20;
/// Admin rings.
pub const ASQ: u64 = guest::RINGS;
pub const ACQ: u64 = guest::RINGS + 0x1000;
pub const ADMIN_ENTRIES: u32 = 48;
const GROUPS: usize = 2;
const AER: u64 = 0x0c;

/// Who asked the backend for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Home,
    Group(usize),
}

struct Pending {
    who: Who,
    token: Token,
    op: Op,
    data: Vec<Segment>,
}

/// The engine: what controller and groups ask for lands here.
pub struct Engine {
    who: Who,
    pending: VecDeque<Pending>,
    /// Answers of the drive to the next requests: `None` queues.
    pub moods: VecDeque<Option<Submitted>>,
    pub calm: bool,
    to_groups: [VecDeque<GroupCommand>; GROUPS],
    to_home: VecDeque<GroupEvent>,
    gathers: BTreeMap<u32, usize>,
    writing: Option<SsdV1>,
    survey: Option<(u32, AllocationQuery)>,
    stable: SsdV1,
    table: Arc<NamespaceTable>,
    map: Arc<MemoryMap>,
    /// A fingerprint of everything that happened.
    pub trace: u64,
}

fn group_of(cqid: u16) -> usize {
    usize::from(cqid) % GROUPS
}

impl Engine {
    pub fn note(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(9);
    }

    fn check(&self, request: &Request<'_>) {
        let home = self.who == Who::Home;
        assert_eq!(request.token.0 >> 63 == 1, home, "bit 63 is the controller's");
        let known = |one: &Pending| one.who == self.who && one.token == request.token;
        assert!(!self.pending.iter().any(known), "a token twice");
        if request.op == Op::Flush {
            return assert!(request.data.is_empty());
        }
        let end = request.range.end_bytes().expect("no wrap");
        assert!(end <= CAPACITY_BYTES && request.range.len_bytes > 0, "outside the ssd");
        if matches!(request.op, Op::Read | Op::Write { .. }) {
            let len: u64 = request.data.iter().map(|segment| segment.len() as u64).sum();
            assert_eq!(len, request.range.len_bytes);
        }
        for segment in request.data {
            let addr = segment.addr().addr();
            if guest::owns(addr) {
                assert!(!home, "the controller's own requests use its own buffers");
                assert!(guest::allows(&self.map, addr, segment.len(), request.op == Op::Read));
            }
        }
        if home && request.op != Op::Read {
            // Nothing is erased under a namespace that serves I/O.
            for ns in self.table.iter() {
                let ns_end = ns.start_bytes + ns.reserved_bytes;
                let apart = end <= ns.start_bytes || ns_end <= request.range.start_bytes;
                let closed = ns.gate == Gate::Formatting || self.table.gate() != SubsystemGate::Open;
                assert!(apart || closed, "namespace {} is erased while it is open", ns.nsid);
            }
        }
    }

    fn carry_out(op: Op, data: &[Segment]) {
        for segment in data {
            if op == Op::Read {
                // SAFETY: guest memory is never unmapped here, private buffers live as long as the request.
                unsafe { segment.fill(0x5a) };
            }
        }
    }

    fn take(&mut self, request: &Request<'_>) -> Submitted {
        self.check(request);
        self.note(request.range.start_bytes ^ request.token.0 << 1);
        let mood = if self.calm { None } else { self.moods.pop_front().flatten() };
        if let Some(mood) = mood {
            return mood;
        }
        let (who, token, op, data) = (self.who, request.token, request.op, request.data.to_vec());
        self.pending.push_back(Pending { who, token, op, data });
        Submitted::Queued
    }
}

impl Host for Engine {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.take(request)
    }

    fn interrupt(&mut self, vector: u16) {
        assert!(vector < 129, "no such vector");
        self.note(u64::from(vector));
    }

    fn to_queue(&mut self, cqid: u16, command: GroupCommand) {
        self.note(0x1000 + u64::from(cqid));
        self.to_groups[group_of(cqid)].push_back(command);
    }

    fn to_all(&mut self, command: GroupCommand) {
        self.note(0x2000);
        if let Some(id) = command.acknowledged_by() {
            assert!(self.gathers.insert(id, GROUPS).is_none(), "an id twice");
        }
        self.to_groups.iter_mut().for_each(|queue| queue.push_back(command.clone()));
    }

    fn persist(&mut self, record: SsdV1) {
        assert!(self.writing.is_none(), "two records at a time");
        let bytes = record.to_bytes().expect("short enough");
        assert_eq!(SsdV1::from_bytes(&bytes).expect("our own"), record);
        self.note(bytes.len() as u64);
        self.writing = Some(record);
    }

    fn manage(&mut self, _ticket: u32, _cntlid: u16, _order: Order) {
        unreachable!("an I/O controller manages nobody");
    }

    fn survey(&mut self, ticket: u32, query: AllocationQuery) {
        let (range, runs_max) = (query.range(), query.runs_max());
        assert!(
            range.end_bytes().expect("no wrap") <= CAPACITY_BYTES && range.len_bytes > 0,
            "outside the ssd"
        );
        assert!(runs_max > 0 && self.survey.is_none(), "two looks at a time");
        self.note(range.start_bytes ^ u64::from(ticket) << 1);
        self.survey = Some((ticket, query));
    }

    fn namespaces(&mut self, table: &Arc<NamespaceTable>) {
        self.table = Arc::clone(table);
    }
}

impl Sink for Engine {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        self.take(request)
    }

    fn interrupt(&mut self, vector: u16) {
        Host::interrupt(self, vector);
    }

    fn report(&mut self, event: GroupEvent) {
        if let GroupEvent::Acknowledged { id } = event {
            let left = self.gathers.get_mut(&id).expect("an acknowledgement nobody asked for");
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.gathers.remove(&id);
        }
        if !matches!(event, GroupEvent::MemoryAdopted { .. }) {
            self.to_home.push_back(event);
        }
    }
}

/// See the module.
pub struct Rig {
    pub engine: Engine,
    pub controller: Controller,
    profile: &'static Profile,
    groups: [QueueGroup; GROUPS],
    pub region: Arc<SharedRegion<ControllerRegion>>,
    pub page: Arc<SharedRegion<DoorbellPage>>,
    pub now: u64,
    /// The host's side of the admin queue.
    tail: u32,
    head: u32,
    phase: bool,
    next_cid: u16,
    owed: BTreeSet<u16>,
    /// The host did something that leaves its own bookkeeping behind.
    pub lied: bool,
}

fn limits() -> Limits {
    Limits { capacity_bytes: CAPACITY_BYTES, block_bytes: 512, segments_max: 16, discard: true }
}

fn group(
    region: &Arc<SharedRegion<ControllerRegion>>,
    page: &Arc<SharedRegion<DoorbellPage>>,
    engine: &Engine,
) -> QueueGroup {
    let config = GroupConfig {
        region: Arc::clone(region),
        doorbells: Arc::clone(page),
        limits: limits(),
        mdts_bytes: 1 << 20,
    };
    QueueGroup::new(config, Arc::clone(&engine.map), Arc::clone(&engine.table))
}

#[must_use]
pub fn identity() -> Identity {
    Identity::new(&IdentityConfig { serial: "FUZZ", ..IdentityConfig::default() }).expect("good")
}

pub fn controller(
    region: &Arc<SharedRegion<ControllerRegion>>,
    page: &Arc<SharedRegion<DoorbellPage>>,
    record: &SsdV1,
    now: u64,
) -> Controller {
    controller_of(&GODWIT_1, region, page, record, now)
}

fn controller_of(
    profile: &Profile,
    region: &Arc<SharedRegion<ControllerRegion>>,
    page: &Arc<SharedRegion<DoorbellPage>>,
    record: &SsdV1,
    now: u64,
) -> Controller {
    let config = ControllerConfig {
        region: Arc::clone(region),
        doorbells: Arc::clone(page),
        profile: profile.clone(),
        identity: identity(),
        capacity_bytes: CAPACITY_BYTES,
        limits: limits(),
    };
    Controller::new(config, record, Now(now))
}

impl Rig {
    #[must_use]
    pub fn new(record: &SsdV1, shape: u8) -> Self {
        Self::of(&GODWIT_1, record, shape)
    }

    /// Of another device model.
    #[must_use]
    pub fn of(profile: &'static Profile, record: &SsdV1, shape: u8) -> Self {
        guest::clear();
        let page = Arc::new(SharedRegion::<DoorbellPage>::private());
        Self::with(profile, region::fresh(), page, record, shape)
    }

    /// Over a region that may have been in use.
    #[must_use]
    pub fn over(
        region: Arc<SharedRegion<ControllerRegion>>,
        page: Arc<SharedRegion<DoorbellPage>>,
        record: &SsdV1,
        shape: u8,
    ) -> Self {
        Self::with(&GODWIT_1, region, page, record, shape)
    }

    fn with(
        profile: &'static Profile,
        region: Arc<SharedRegion<ControllerRegion>>,
        page: Arc<SharedRegion<DoorbellPage>>,
        record: &SsdV1,
        shape: u8,
    ) -> Self {
        let controller = controller_of(profile, &region, &page, record, 0);
        let engine = Engine {
            who: Who::Home,
            pending: VecDeque::new(),
            moods: VecDeque::new(),
            calm: false,
            to_groups: Default::default(),
            to_home: VecDeque::new(),
            gathers: BTreeMap::new(),
            writing: None,
            survey: None,
            stable: record.clone(),
            table: Arc::clone(controller.namespaces()),
            map: guest::map(shape),
            trace: 0,
        };
        let groups = [group(&region, &page, &engine), group(&region, &page, &engine)];
        let mut rig = Self {
            engine,
            controller,
            profile,
            groups,
            region,
            page,
            now: 0,
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 1,
            owed: BTreeSet::new(),
            lied: false,
        };
        rig.memory(shape);
        rig
    }

    fn home(&mut self, act: impl FnOnce(&mut Controller, Now, &mut Engine)) {
        self.engine.who = Who::Home;
        act(&mut self.controller, Now(self.now), &mut self.engine);
    }

    pub fn poll(&mut self, step: u64) {
        self.now = self.now.saturating_add(step);
        self.home(|controller, now, host| {
            controller.poll(now, host);
        });
        for (at, group) in self.groups.iter_mut().enumerate() {
            self.engine.who = Who::Group(at);
            group.poll(Now(self.now), &mut self.engine);
            group.flush(&mut self.engine);
        }
        self.check();
    }

    /// Delivers at most `count` messages of one direction.
    pub fn deliver(&mut self, which: u8, count: u8) {
        for _ in 0..count {
            match usize::from(which) % (GROUPS + 1) {
                GROUPS => {
                    let Some(event) = self.engine.to_home.pop_front() else { break };
                    self.home(|controller, now, host| controller.event(event, now, host));
                }
                at => {
                    let Some(command) = self.engine.to_groups[at].pop_front() else { break };
                    self.engine.who = Who::Group(at);
                    self.groups[at].command(command, &mut self.engine);
                }
            }
        }
        self.check();
    }

    pub fn complete(&mut self, which: usize, outcome: Outcome) {
        if self.engine.pending.is_empty() {
            return;
        }
        let at = which % self.engine.pending.len();
        let Some(Pending { who, token, op, data }) = self.engine.pending.remove(at) else { return };
        if outcome == Outcome::Done {
            Engine::carry_out(op, &data);
        }
        match who {
            Who::Home => self.home(|controller, now, host| controller.complete(token, outcome, now, host)),
            Who::Group(at) => {
                self.engine.who = who;
                self.groups[at].complete(token, outcome, &mut self.engine);
            }
        }
        self.check();
    }

    pub fn persisted(&mut self, ok: bool) {
        let Some(record) = self.engine.writing.take() else { return };
        if ok {
            self.engine.stable = record;
        }
        self.home(|controller, now, host| controller.persisted(ok, now, host));
        self.check();
    }

    /// The drive's map is looked at: every other page is allocated, to the byte.
    pub fn surveyed(&mut self) {
        let Some((ticket, query)) = self.engine.survey.take() else { return };
        let (range, runs_max) = (query.range(), query.runs_max());
        let end = range.end_bytes().expect("no wrap");
        let mut found = Survey { runs: Vec::new(), end_bytes: end };
        for start in (range.start_bytes..end).step_by(8192) {
            found.runs.push(Range { start_bytes: start, len_bytes: (end - start).min(4096) });
            if found.runs.len() == runs_max {
                found.end_bytes = found.runs.last().and_then(|run| run.end_bytes()).unwrap_or(end);
                break;
            }
        }
        self.home(|controller, now, host| controller.surveyed(ticket, Ok(query.list(&found)), now, host));
        self.check();
    }

    pub fn memory(&mut self, shape: u8) {
        let map = guest::map(shape);
        self.engine.map = Arc::clone(&map);
        for (at, group) in self.groups.iter_mut().enumerate() {
            self.engine.who = Who::Group(at);
            group.command(GroupCommand::Memory { map: Arc::clone(&map) }, &mut self.engine);
        }
        self.home(|controller, now, host| controller.memory(map, now, host));
        self.check();
    }

    pub fn device_reset(&mut self) {
        self.home(|controller, now, host| controller.reset(now, host));
        self.forget();
        self.check();
    }

    pub fn write(&mut self, bar: Bar, offset: u64, data: &[u8]) {
        self.home(|controller, now, host| controller.bar_write(bar, offset, data, now, host));
        self.check();
    }

    /// Twice, because reading must change nothing.
    pub fn read(&mut self, bar: Bar, offset: u64, len: usize) -> Vec<u8> {
        let (mut one, mut two) = (vec![0xee; len], vec![0x11; len]);
        self.controller.bar_read(bar, offset, &mut one);
        self.controller.bar_read(bar, offset, &mut two);
        assert_eq!(one, two, "a register changed because it was read");
        one
    }

    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.home(|controller, now, host| controller.config_write(offset, data, now, host));
        self.check();
    }

    pub fn config_read(&mut self, offset: u16, len: usize) -> Vec<u8> {
        let (mut one, mut two) = (vec![0xee; len], vec![0x11; len]);
        self.controller.config_read(offset, &mut one);
        self.controller.config_read(offset, &mut two);
        assert_eq!(one, two, "a configuration register changed because it was read");
        one
    }

    pub fn write32(&mut self, offset: u64, value: u32) {
        self.write(Bar::Registers, offset, &value.to_le_bytes());
    }

    #[must_use]
    pub fn csts(&self) -> u32 {
        self.region.registers.csts.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn cc(&self) -> u32 {
        self.region.registers.cc.load(Ordering::Acquire)
    }

    /// A proper enable with the host's own rings, if the controller is disabled and at rest.
    pub fn enable(&mut self) {
        if self.csts() & 1 != 0 || self.cc() & 1 != 0 {
            return;
        }
        self.write32(0x24, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
        for (at, value) in [(0x28, ASQ), (0x30, ACQ)] {
            self.write(Bar::Registers, at, &value.to_le_bytes());
        }
        guest::poke(ACQ, &[0; 0x1000]);
        self.forget();
        self.lied = false;
        self.write32(0x14, 0x0046_0001);
    }

    pub fn disable(&mut self) {
        self.write32(0x14, 0x0046_0000);
        self.forget();
    }

    /// Commands of before a reset are owed nothing.
    pub fn forget(&mut self) {
        self.owed.clear();
        (self.tail, self.head, self.phase) = (0, 0, true);
        // Until the next enable the bookkeeping says nothing.
        self.lied = true;
    }

    /// The host puts a command into its admin ring; its identifier is this bench's own.
    pub fn submit(&mut self, dwords: &mut [u32; 16]) {
        // A host waits for CSTS.RDY; a ring before that is lost with the reset under way.
        if self.lied || self.csts() & 1 == 0 || self.owed.len() + 2 > ADMIN_ENTRIES as usize {
            return;
        }
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        dwords[0] = (dwords[0] & 0xffff) | u32::from(cid) << 16;
        let mut bytes = [0; 64];
        for (to, dword) in bytes.chunks_exact_mut(4).zip(dwords.iter()) {
            to.copy_from_slice(&dword.to_le_bytes());
        }
        guest::poke(ASQ + u64::from(self.tail) * 64, &bytes);
        self.tail = (self.tail + 1) % ADMIN_ENTRIES;
        self.owed.insert(cid);
        self.page.store(0, self.tail);
    }

    /// An identifier that was given lately.
    #[must_use]
    pub fn recent_cid(&self, back: u8) -> u16 {
        self.next_cid.wrapping_sub(u16::from(back % 32) + 1)
    }

    /// The host takes its completions: each names a command that is owed an answer.
    pub fn consume(&mut self) {
        if self.lied {
            return;
        }
        for _ in 0..ADMIN_ENTRIES {
            let entry: [u8; 16] = guest::peek(ACQ + u64::from(self.head) * 16).expect("our ring");
            if entry[14] & 1 != u8::from(self.phase) {
                break;
            }
            let cid = u16::from_le_bytes([entry[12], entry[13]]);
            assert!(self.owed.remove(&cid), "an answer to a command that is owed none: {cid}");
            self.engine.note(u64::from_le_bytes(entry[8..].try_into().expect("8 bytes")));
            self.head += 1;
            if self.head == ADMIN_ENTRIES {
                (self.head, self.phase) = (0, !self.phase);
            }
        }
        self.page.store(1, self.head);
    }

    /// The process dies here; the record is the last stable one, or the one that was being written.
    pub fn crash(&mut self, written: bool) {
        if let Some(record) = self.engine.writing.take().filter(|_| written) {
            self.engine.stable = record;
        }
        self.engine.pending.clear();
        self.engine.survey = None;
        self.engine.to_home.clear();
        self.engine.to_groups.iter_mut().for_each(VecDeque::clear);
        self.engine.gathers.clear();
        let record = self.engine.stable.clone();
        self.controller = controller_of(self.profile, &self.region, &self.page, &record, self.now);
        self.engine.table = Arc::clone(self.controller.namespaces());
        for sqid in 1..self.region.sqs.len() {
            let sqid = u16::try_from(sqid).expect("few");
            if let Some(found) = conclude(&self.region, sqid) {
                found.settle(&self.region, sqid);
            }
        }
        self.groups = [0, 1].map(|_| group(&self.region, &self.page, &self.engine));
        let queues = u16::try_from(self.region.cqs.len()).expect("few");
        for cqid in 1..queues {
            if self.region.cqs[usize::from(cqid)].size.load(Ordering::Relaxed) != 0 {
                self.engine.to_groups[group_of(cqid)].push_back(GroupCommand::CreateCq { cqid });
            }
        }
        for sqid in 1..queues {
            let record = &self.region.sqs[usize::from(sqid)];
            if record.size.load(Ordering::Relaxed) != 0 {
                let cqid = u16::try_from(record.cqid.load(Ordering::Relaxed) & 0xffff).expect("16 bits");
                self.engine.to_groups[group_of(cqid)].push_back(GroupCommand::CreateSq { sqid });
            }
        }
        for at in 0..GROUPS {
            self.deliver(u8::try_from(at).expect("few"), 255);
        }
        let map = Arc::clone(&self.engine.map);
        self.home(|controller, now, host| controller.memory(map, now, host));
        self.check();
    }

    /// After every step.
    pub fn check(&mut self) {
        let mut ends: Vec<(u64, u64)> = Vec::new();
        for ns in self.controller.namespaces().iter() {
            assert!((1..=32).contains(&ns.nsid));
            assert!(ns.blocks << ns.format.shift() <= ns.reserved_bytes, "a namespace larger than its space");
            ends.push((ns.start_bytes, ns.start_bytes + ns.reserved_bytes));
        }
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "namespaces overlap: {ends:?}");
        assert!(ends.last().is_none_or(|(_, end)| *end <= CAPACITY_BYTES), "outside the ssd");
        let at_groups: usize = self.groups.iter().map(QueueGroup::in_flight).sum();
        let theirs = self.engine.pending.iter().filter(|one| one.who != Who::Home).count();
        assert_eq!(at_groups, theirs, "requests of the groups");
        let head = self.region.sqs[0].head_seq.load(Ordering::Relaxed) & 0xffff_ffff;
        let size = u64::from(self.region.sqs[0].size.load(Ordering::Relaxed));
        assert!(size == 0 || head < size);
    }

    fn is_moving(&self) -> bool {
        !self.engine.pending.is_empty()
            || self.engine.writing.is_some()
            || self.engine.survey.is_some()
            || !self.engine.to_home.is_empty()
            || self.engine.to_groups.iter().any(|queue| !queue.is_empty())
    }

    /// Everybody answers until nothing is owed. Bounded, or it is a hang.
    pub fn settle(&mut self) {
        let calm = std::mem::replace(&mut self.engine.calm, true);
        let mut still = 0;
        for turn in 0..4000 {
            for which in 0..=GROUPS {
                self.deliver(u8::try_from(which).expect("few"), 255);
            }
            for _ in 0..self.engine.pending.len() {
                self.complete(0, Outcome::Done);
            }
            self.persisted(true);
            self.surveyed();
            self.consume();
            self.poll(1);
            still = if self.is_moving() { 0 } else { still + 1 };
            if still > 20 {
                break;
            }
            assert!(turn < 3999, "it never comes to rest");
        }
        self.engine.calm = calm;
    }

    /// The end of an input: everybody does their duty.
    pub fn end(&mut self) {
        self.memory(16);
        // What lies in the rings of I/O queues is of no interest any more.
        for sqid in 1..self.region.sqs.len() {
            let head = self.region.sqs[sqid].head_seq.load(Ordering::Relaxed) & 0xffff_ffff;
            self.page.store(sqid * 2, u32::try_from(head).expect("32 bits"));
        }
        self.settle();
        self.consume();
        let (cc, csts) = (self.cc(), self.csts());
        let (enabled, ready, fatal) = (cc & 1 == 1, csts & 1 == 1, csts & 2 == 2);
        assert!(fatal || enabled == ready, "CC {cc:#x} and CSTS {csts:#x} after everything has settled");
        assert!(fatal || csts >> 2 & 3 != 1, "a shutdown that never ends: CSTS {csts:#x}");
        assert_eq!(
            self.region.registers.reset_count.load(Ordering::Relaxed) % 2,
            0,
            "a reset that never ends"
        );
        let record = self.controller.record();
        let used: u64 = record.namespaces.iter().map(|ns| ns.reserved_bytes).sum();
        assert!(used <= CAPACITY_BYTES, "more is used than there is");
        if !ready || fatal || self.lied {
            return;
        }
        let left = self.region.slots[0].iter().filter(|slot| slot.word.load(Ordering::Relaxed) & 3 != 0);
        let opcodes: Vec<u64> = left.map(|slot| slot.command[0].load(Ordering::Relaxed) & 0xff).collect();
        assert!(opcodes.iter().all(|opcode| *opcode == AER), "admin commands never answered: {opcodes:x?}");
        assert!(opcodes.len() <= 16, "more event requests are parked than there may be");
        if csts >> 2 & 3 == 0 {
            assert_eq!(self.owed.len(), opcodes.len(), "admin commands neither answered nor parked");
        }
    }

    pub fn fault(byte: u8) -> Fault {
        [Fault::Media, Fault::NoSpace, Fault::Unsupported, Fault::OutOfRange, Fault::Memory, Fault::Gone]
            [usize::from(byte) % 6]
    }

    /// What the drive says to the next requests.
    pub fn moods(&mut self, moods: &[u8]) {
        for mood in moods.iter().take(64) {
            self.engine.moods.push_back(match mood % 8 {
                0..=4 => None,
                5 => Some(Submitted::Full),
                6 => Some(Submitted::Ended(Outcome::Done)),
                _ => Some(Submitted::Ended(Outcome::Failed(Self::fault(mood >> 3)))),
            });
        }
    }
}
