//! A host, guest memory, groups and a drive that only answer, around one `Controller`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block::{Fault, Limits, Now, Op, Outcome, Range, Request, Submitted, Token};
use memory::{Access, DoorbellPage, Iova, Mapping, MemoryMap, SharedRegion};
use nvme::controller::{
    AllocationList, AllocationQuery, Bar, Controller, ControllerConfig, Host, Survey, Unsurveyed,
};
use nvme::management::Order;
use nvme::namespace::NamespaceTable;
use nvme::profile::{GODWIT_1, Identity, IdentityConfig, Profile};
use nvme::queue::{close_cq, close_sq};
use nvme::sink::{GroupCommand, GroupEvent};
use spec::nvme::registers as reg;
use spec::nvme::{Command, Completion};
use state::SsdV1;
use state::region::ControllerRegion;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const RAM_BYTES: u64 = 8 << 20;
pub(crate) const CAPACITY_BYTES: u64 = 64 << 20;
pub(crate) const ASQ: u64 = 0x1_0000;
pub(crate) const ACQ: u64 = 0x2_0000;
pub(crate) const DATA: u64 = 0x10_0000;
pub(crate) const ENTRIES: u32 = 32;
const PAGE: u64 = 4096;

type GuestRam = [AtomicU64; (RAM_BYTES / 8) as usize];

/// What the world owes the controller.
pub(crate) enum Reply {
    Event(GroupEvent),
    Persisted,
    Complete(Token, Outcome),
    Surveyed(u32, Result<AllocationList, Unsurveyed>),
}

/// The engine's part.
pub(crate) struct Engine {
    region: Arc<SharedRegion<ControllerRegion>>,
    inbox: VecDeque<Reply>,
    /// One byte a page of the drive: 0 = zeros.
    pub(crate) drive: Vec<u8>,
    pub(crate) records: Vec<SsdV1>,
    pub(crate) interrupts: Vec<u16>,
    pub(crate) commands: Vec<GroupCommand>,
    pub(crate) table: Option<Arc<NamespaceTable>>,
    pub(crate) ops: Vec<Op>,
    pub(crate) fault: Option<Fault>,
    pub(crate) persist_ok: bool,
    pub(crate) full: bool,
    pub(crate) at_once: bool,
    /// What a management controller wants done: ticket, controller, order.
    pub(crate) orders: VecDeque<(u32, u16, Order)>,
    /// Runs of the drive's bytes that its map has: first, and one past the last.
    pub(crate) written: Vec<(u64, u64)>,
    /// Looks at the map.
    pub(crate) looks: Vec<Range>,
    /// Why there is none.
    pub(crate) unsurveyed: Option<Unsurveyed>,
    /// Answers are withheld: operations stay where they are.
    pub(crate) frozen: bool,
}

impl Engine {
    fn look(&self, range: Range, runs_max: usize) -> Survey {
        let end = range.end_bytes().expect("no overflow");
        let cut = |&(start, stop): &(u64, u64)| {
            let (start, stop) = (start.max(range.start_bytes), stop.min(end));
            (start < stop).then(|| Range { start_bytes: start, len_bytes: stop - start })
        };
        let runs: Vec<Range> = self.written.iter().filter_map(cut).take(runs_max).collect();
        let last = runs.last().filter(|_| runs.len() == runs_max);
        Survey { end_bytes: last.map_or(end, |run| run.start_bytes + run.len_bytes), runs }
    }

    /// Holds an answer back that is owed, the next one.
    pub(crate) fn take_answer(&mut self) -> Option<Reply> {
        self.inbox.pop_front()
    }

    pub(crate) fn put_answer(&mut self, reply: Reply) {
        self.inbox.push_back(reply);
    }

    fn carry_out(&mut self, request: &Request<'_>) -> Outcome {
        if let Some(fault) = self.fault {
            return Outcome::Failed(fault);
        }
        let first = (request.range.start_bytes / PAGE) as usize;
        let last = (request.range.end_bytes().expect("no overflow").div_ceil(PAGE)) as usize;
        match request.op {
            Op::WriteZeroes { .. } | Op::Discard => self.drive[first..last].fill(0),
            Op::Write { .. } => self.drive[first..last].fill(2),
            Op::Read | Op::Flush => {}
        }
        Outcome::Done
    }
}

impl Host for Engine {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        assert!(request.token.0 >> 63 == 1, "the controller's tokens have bit 63 set");
        if self.full {
            return Submitted::Full;
        }
        self.ops.push(request.op);
        let outcome = self.carry_out(request);
        if self.at_once {
            return Submitted::Ended(outcome);
        }
        self.inbox.push_back(Reply::Complete(request.token, outcome));
        Submitted::Queued
    }

    fn interrupt(&mut self, vector: u16) {
        self.interrupts.push(vector);
    }

    fn to_queue(&mut self, _cqid: u16, command: GroupCommand) {
        let event = match &command {
            GroupCommand::DeleteSq { sqid } => {
                close_sq(&self.region, *sqid);
                Some(GroupEvent::SqDeleted { sqid: *sqid })
            }
            GroupCommand::DeleteCq { cqid } => {
                close_cq(&self.region, *cqid);
                Some(GroupEvent::CqDeleted { cqid: *cqid })
            }
            GroupCommand::Abort { id, .. } => Some(GroupEvent::AbortResult { id: *id, aborted: false }),
            _ => None,
        };
        self.inbox.extend(event.map(Reply::Event));
        self.commands.push(command);
    }

    fn to_all(&mut self, command: GroupCommand) {
        if matches!(command, GroupCommand::Reset { .. }) {
            // As the groups do: a hold not yet acknowledged is forgotten.
            let holds: Vec<u32> = self.commands.iter().filter_map(hold_id).collect();
            self.inbox.retain(|reply| match reply {
                Reply::Event(GroupEvent::Acknowledged { id }) => !holds.contains(id),
                _ => true,
            });
        }
        match &command {
            GroupCommand::Namespaces { id, .. }
            | GroupCommand::Hold { id, .. }
            | GroupCommand::ShadowDoorbells { id, .. }
            | GroupCommand::Reset { id } => {
                self.inbox.push_back(Reply::Event(GroupEvent::Acknowledged { id: *id }));
            }
            _ => {}
        }
        self.commands.push(command);
    }

    fn persist(&mut self, record: SsdV1) {
        let again = SsdV1::from_bytes(&record.to_bytes().expect("short")).expect("readable");
        assert_eq!(again, record, "every record survives its own bytes");
        self.records.push(record);
        self.inbox.push_back(Reply::Persisted);
    }

    fn manage(&mut self, ticket: u32, cntlid: u16, order: Order) {
        self.orders.push_back((ticket, cntlid, order));
    }

    fn survey(&mut self, ticket: u32, query: AllocationQuery) {
        self.looks.push(query.range());
        let found = match self.unsurveyed {
            Some(why) => Err(why),
            None => Ok(query.list(&self.look(query.range(), query.runs_max()))),
        };
        self.inbox.push_back(Reply::Surveyed(ticket, found));
    }

    fn namespaces(&mut self, table: &Arc<NamespaceTable>) {
        self.table = Some(Arc::clone(table));
    }
}

fn hold_id(command: &GroupCommand) -> Option<u32> {
    match command {
        GroupCommand::Hold { id, .. } => Some(*id),
        _ => None,
    }
}

pub(crate) struct World {
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) region: Arc<SharedRegion<ControllerRegion>>,
    pub(crate) doorbells: Arc<SharedRegion<DoorbellPage>>,
    pub(crate) controller: Controller,
    pub(crate) host: Engine,
    pub(crate) now: u64,
    pub(crate) entries: u32,
    /// Of the drive.
    pub(crate) capacity_bytes: u64,
    profile: &'static Profile,
    tail: u32,
    head: u32,
    phase: bool,
    cid: u16,
}

pub(crate) fn guest_memory() -> Arc<MemoryMap> {
    let ram = SharedRegion::<GuestRam>::memfd("ram").expect("a memfd");
    let fd = ram.fd().expect("has one").try_clone_to_owned().expect("an fd");
    let mapping = Mapping::new(fd, 0, RAM_BYTES, Access::BOTH).expect("mapped");
    let map = MemoryMap::empty().with(Iova(0), RAM_BYTES, Access::BOTH, Some((mapping, 0)));
    Arc::new(map.expect("a region"))
}

pub(crate) fn identity() -> Identity {
    Identity::new(&IdentityConfig { serial: "TEST-1", ..IdentityConfig::default() }).expect("valid")
}

fn controller(
    region: &Arc<SharedRegion<ControllerRegion>>,
    doorbells: &Arc<SharedRegion<DoorbellPage>>,
    record: &SsdV1,
    capacity_bytes: u64,
    profile: &Profile,
    now: u64,
) -> Controller {
    let config = ControllerConfig {
        region: Arc::clone(region),
        doorbells: Arc::clone(doorbells),
        profile: profile.clone(),
        identity: identity(),
        capacity_bytes,
        limits: Limits { capacity_bytes, block_bytes: 512, segments_max: 256, discard: true },
    };
    Controller::new(config, record, Now(now))
}

impl World {
    /// Powered on, memory there, not enabled.
    pub(crate) fn new() -> Self {
        Self::with_record(&SsdV1::default())
    }

    pub(crate) fn with_record(record: &SsdV1) -> Self {
        Self::of(&GODWIT_1, record)
    }

    /// As [`World::with_record`], of another device model.
    pub(crate) fn of(profile: &'static Profile, record: &SsdV1) -> Self {
        let region = Arc::new(SharedRegion::<ControllerRegion>::private());
        let doorbells = Arc::new(SharedRegion::<DoorbellPage>::private());
        let controller = controller(&region, &doorbells, record, CAPACITY_BYTES, profile, 0);
        let host = Engine {
            region: Arc::clone(&region),
            inbox: VecDeque::new(),
            drive: vec![1; (CAPACITY_BYTES / PAGE) as usize],
            records: Vec::new(),
            interrupts: Vec::new(),
            commands: Vec::new(),
            table: None,
            ops: Vec::new(),
            fault: None,
            persist_ok: true,
            full: false,
            at_once: false,
            orders: VecDeque::new(),
            written: vec![(0, CAPACITY_BYTES)],
            looks: Vec::new(),
            unsurveyed: None,
            frozen: false,
        };
        let (map, now) = (guest_memory(), 0);
        let mut world = Self {
            map,
            region,
            doorbells,
            controller,
            host,
            now,
            entries: ENTRIES,
            capacity_bytes: CAPACITY_BYTES,
            profile,
            tail: 0,
            head: 0,
            phase: true,
            cid: 0,
        };
        world.controller.memory(Arc::clone(&world.map), Now(0), &mut world.host);
        world.pump();
        world
    }

    /// Enabled.
    pub(crate) fn ready() -> Self {
        let mut world = Self::new();
        world.enable();
        assert_eq!(world.csts() & 3, 1, "ready, not fatal");
        world
    }

    /// The process ends at this instruction; another goes on with the region and the last record.
    /// What a successor would go on with, over the same region.
    pub(crate) fn successor(&self) -> Controller {
        let record = self.host.records.last().cloned().unwrap_or_default();
        controller(&self.region, &self.doorbells, &record, self.capacity_bytes, self.profile, self.now)
    }

    pub(crate) fn succeed(&mut self) {
        let record = self.host.records.last().cloned().unwrap_or_default();
        self.host.inbox.clear();
        self.controller =
            controller(&self.region, &self.doorbells, &record, self.capacity_bytes, self.profile, self.now);
        self.controller.memory(Arc::clone(&self.map), Now(self.now), &mut self.host);
        self.pump();
    }

    pub(crate) fn enable(&mut self) {
        self.set_queues(self.entries, self.entries);
        self.write32(reg::CC, 0x0046_0001);
        self.pump();
    }

    pub(crate) fn set_queues(&mut self, sq: u32, cq: u32) {
        self.write32(reg::AQA, (cq - 1) << 16 | (sq - 1));
        self.write64(reg::ASQ, ASQ);
        self.write64(reg::ACQ, ACQ);
        (self.tail, self.head, self.phase, self.entries) = (0, 0, true, sq.min(cq));
        self.map.write_bytes(Iova(ACQ), &vec![0; 16 * cq as usize]).expect("mapped");
    }

    pub(crate) fn disable(&mut self) {
        self.write32(reg::CC, 0x0046_0000);
        self.pump();
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.controller.bar_read(Bar::Registers, offset, &mut data);
        data
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset, 4).try_into().expect("four bytes"))
    }

    pub(crate) fn read64(&mut self, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(offset, 8).try_into().expect("eight bytes"))
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.controller.bar_write(Bar::Registers, offset, data, Now(self.now), &mut self.host);
    }

    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write64(&mut self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn csts(&mut self) -> u32 {
        self.read32(reg::CSTS)
    }

    /// Gives every answer that is owed, until none is. Returns how many.
    pub(crate) fn pump(&mut self) -> usize {
        let mut given = 0;
        loop {
            self.controller.poll(Now(self.now), &mut self.host);
            if self.host.frozen {
                return given;
            }
            let due = self.controller.deadline().is_some_and(|at| at.0 <= self.now) && !self.host.full;
            given += 1;
            assert!(given < 100_000, "the controller goes round in circles");
            if !self.deliver() && !due {
                return given;
            }
        }
    }

    /// Gives the next answer that is owed. `false`: none is.
    pub(crate) fn deliver(&mut self) -> bool {
        let Some(reply) = self.host.inbox.pop_front() else { return false };
        let now = Now(self.now);
        match reply {
            Reply::Event(event) => self.controller.event(event, now, &mut self.host),
            Reply::Persisted => self.controller.persisted(self.host.persist_ok, now, &mut self.host),
            Reply::Complete(token, outcome) => {
                self.controller.complete(token, outcome, now, &mut self.host);
            }
            Reply::Surveyed(ticket, found) => {
                self.controller.surveyed(ticket, found, now, &mut self.host);
            }
        }
        true
    }

    /// The drive is larger now.
    pub(crate) fn grow(&mut self, capacity_bytes: u64) {
        self.capacity_bytes = capacity_bytes;
        self.host.drive.resize((capacity_bytes / PAGE) as usize, 0);
        self.controller.grow(capacity_bytes, Now(self.now), &mut self.host);
    }

    pub(crate) fn event(&mut self, event: GroupEvent) {
        self.controller.event(event, Now(self.now), &mut self.host);
        self.pump();
    }

    /// Puts a command in the ring; its command identifier.
    pub(crate) fn submit(&mut self, mut command: Command) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        command.cdw0.set_cid(self.cid);
        self.map.write_bytes(Iova(ASQ + u64::from(self.tail) * 64), command.as_bytes()).expect("mapped");
        self.tail = (self.tail + 1) % self.entries;
        self.doorbells.store(0, self.tail);
        self.cid
    }

    /// The next completion, if there is one.
    pub(crate) fn reap(&mut self) -> Option<Completion> {
        let mut bytes = [0; 16];
        self.map.read_bytes(Iova(ACQ + u64::from(self.head) * 16), &mut bytes).expect("mapped");
        let entry = Completion::read_from_bytes(&bytes).expect("sixteen bytes");
        if entry.status.phase() != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        self.doorbells.store(1, self.head);
        Some(entry)
    }

    /// Submits, lets the world turn, and reaps the one completion.
    pub(crate) fn admin(&mut self, command: Command) -> Completion {
        let cid = self.submit(command);
        self.pump();
        let entry = self.reap().expect("a completion");
        assert_eq!(entry.cid, cid);
        entry
    }

    pub(crate) fn data(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.read_bytes(Iova(DATA), &mut bytes).expect("mapped");
        bytes
    }

    pub(crate) fn set_data(&self, bytes: &[u8]) {
        self.map.write_bytes(Iova(DATA), bytes).expect("mapped");
    }
}

/// A command with its data at [`DATA`].
pub(crate) fn command(opcode: u8, nsid: u32, dwords: [u32; 2]) -> Command {
    let mut command = Command { nsid, prp1: DATA, cdw10: dwords[0], cdw11: dwords[1], ..Command::default() };
    command.cdw0.set_opcode(opcode);
    command
}
