//! A host, guest memory and a drive in memory around one `QueueGroup`.
#![expect(unsafe_code, reason = "the drive of the tests moves bytes")]
// UNSAFETY: segments are copied within `submit`, while the group that named them keeps their memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block::{Fault, Limits, Now, Op, Outcome, Request, Submitted, Token};
use memory::{Access, DoorbellPage, Iova, Mapping, MemoryMap, SharedRegion};
use nvme::group::{GroupConfig, QueueGroup};
use nvme::limits::MDTS_BYTES;
use nvme::namespace::{Gate, LbaFormat, Namespace, NamespaceTable};
use nvme::queue::{cq_index, create_cq, create_sq, sq_index};
use nvme::sink::{GroupCommand, GroupEvent, Sink};
use spec::nvme::{Command, Completion, NvmOpcode, Status};
use state::region::ControllerRegion;
use zerocopy::IntoBytes;

pub(crate) const RAM_BYTES: u64 = 16 << 20;
pub(crate) const ENTRIES: u32 = 16;
pub(crate) const SQ: u64 = 0x1_0000;
pub(crate) const CQ: u64 = 0x2_0000;
pub(crate) const DATA: u64 = 0x40_0000;
pub(crate) const DISK_BYTES: usize = 8 << 20;
pub(crate) const NS1_BLOCKS: u64 = 4096;
pub(crate) const NS2_BLOCKS: u64 = 512;

type GuestRam = [AtomicU64; (RAM_BYTES / 8) as usize];

/// How the drive answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    AtOnce,
    Later,
    Full,
}

pub(crate) struct Drive {
    pub(crate) disk: Vec<u8>,
    pub(crate) mode: Mode,
    pub(crate) later: VecDeque<(Token, Outcome)>,
    /// What is there waits for something else than the drive.
    pub(crate) idle: bool,
    pub(crate) fault: Option<Fault>,
    pub(crate) requests: Vec<(Op, block::Range)>,
    pub(crate) interrupts: Vec<u16>,
    pub(crate) events: Vec<GroupEvent>,
    ram: (usize, usize),
}

impl Drive {
    fn carry_out(&mut self, request: &Request<'_>) {
        let start = usize::try_from(request.range.start_bytes).expect("inside");
        let len = usize::try_from(request.range.len_bytes).expect("inside");
        let disk = self.disk.get_mut(start..start + len).expect("no block outside the drive");
        let mut at = 0;
        for segment in request.data {
            let address = segment.addr().addr();
            let in_ram = address >= self.ram.0 && address + segment.len() <= self.ram.0 + self.ram.1;
            assert!(in_ram || segment.len() <= 64 << 10, "a segment is guest memory, or a bounded buffer");
            let part = disk.get_mut(at..at + segment.len()).expect("segments add up to the range");
            match request.op {
                // SAFETY: see the module.
                Op::Read => unsafe { segment.copy_from(part) },
                // SAFETY: see the module.
                Op::Write { .. } => unsafe { segment.copy_to(part) },
                _ => panic!("data without a use"),
            }
            at += segment.len();
        }
        match request.op {
            Op::Read | Op::Write { .. } => assert_eq!(at, len, "segments add up to the range"),
            Op::WriteZeroes { .. } | Op::Discard => disk.fill(0),
            Op::Flush => {}
        }
    }
}

impl Sink for Drive {
    fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if self.mode == Mode::Full {
            return Submitted::Full;
        }
        self.requests.push((request.op, request.range));
        let outcome = self.fault.map_or(Outcome::Done, Outcome::Failed);
        if outcome == Outcome::Done {
            self.carry_out(request);
        }
        if self.mode == Mode::AtOnce {
            return Submitted::Ended(outcome);
        }
        self.later.push_back((request.token, outcome));
        Submitted::Queued
    }
    fn is_drive_idle(&self) -> bool {
        self.idle
    }
    fn interrupt(&mut self, vector: u16) {
        self.interrupts.push(vector);
    }
    fn report(&mut self, event: GroupEvent) {
        self.events.push(event);
    }
}

pub(crate) struct World {
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) region: Arc<SharedRegion<ControllerRegion>>,
    pub(crate) page: Arc<SharedRegion<DoorbellPage>>,
    pub(crate) table: Arc<NamespaceTable>,
    pub(crate) group: QueueGroup,
    pub(crate) drive: Drive,
    pub(crate) limits: Limits,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) phase: bool,
    next_cid: u16,
}

pub(crate) fn namespace(nsid: u32, start_bytes: u64, blocks: u64, format: LbaFormat) -> Namespace {
    Namespace {
        nsid,
        start_bytes,
        reserved_bytes: blocks << format.shift(),
        blocks,
        format,
        attached: true,
        shared: false,
        eui64: [0; 8],
        nguid: [0; 16],
        uuid: [0; 16],
        gate: Gate::Open,
        marks: Arc::default(),
    }
}

/// Guest memory from address 0 on, of a memfd.
pub(crate) fn guest_memory() -> Arc<MemoryMap> {
    let ram = SharedRegion::<GuestRam>::memfd("ram").expect("a memfd");
    let fd = ram.fd().expect("has one").try_clone_to_owned().expect("an fd");
    let mapping = Mapping::new(fd, 0, RAM_BYTES, Access::BOTH).expect("mapped");
    let map = MemoryMap::empty().with(Iova(0), RAM_BYTES, Access::BOTH, Some((mapping, 0)));
    Arc::new(map.expect("a region"))
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_segments(257)
    }

    pub(crate) fn with_segments(segments_max: usize) -> Self {
        let map = guest_memory();
        let whole = map.segment(&mut memory::Hint::default(), Iova(0), RAM_BYTES as usize, Access::BOTH);
        let ram = (whole.expect("one piece").addr().addr(), RAM_BYTES as usize);
        let region = Arc::new(SharedRegion::<ControllerRegion>::private());
        let page = Arc::new(SharedRegion::<DoorbellPage>::private());
        let table = Arc::new(NamespaceTable::new([
            namespace(1, 0, NS1_BLOCKS, LbaFormat::B512),
            namespace(2, 4 << 20, NS2_BLOCKS, LbaFormat::B4096),
        ]));
        let limits =
            Limits { capacity_bytes: DISK_BYTES as u64, block_bytes: 512, segments_max, discard: true };
        create_cq(&region, 1, CQ, ENTRIES, Some(3));
        create_sq(&region, 1, SQ, ENTRIES, 1);
        let drive = Drive {
            disk: (0..DISK_BYTES).map(|i| (i / 512 * 7 + i % 251) as u8).collect(),
            mode: Mode::AtOnce,
            later: VecDeque::new(),
            idle: false,
            fault: None,
            requests: Vec::new(),
            interrupts: Vec::new(),
            events: Vec::new(),
            ram,
        };
        let group = Self::group(&region, &page, &map, &table, limits);
        let mut world = Self {
            map,
            region,
            page,
            table,
            group,
            drive,
            limits,
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 100,
        };
        world.open();
        world
    }

    fn group(
        region: &Arc<SharedRegion<ControllerRegion>>,
        page: &Arc<SharedRegion<DoorbellPage>>,
        map: &Arc<MemoryMap>,
        table: &Arc<NamespaceTable>,
        limits: Limits,
    ) -> QueueGroup {
        let config = GroupConfig {
            region: Arc::clone(region),
            doorbells: Arc::clone(page),
            limits,
            mdts_bytes: MDTS_BYTES,
        };
        QueueGroup::new(config, Arc::clone(map), Arc::clone(table))
    }

    fn open(&mut self) {
        self.tell(GroupCommand::CreateCq { cqid: 1 });
        self.tell(GroupCommand::CreateSq { sqid: 1 });
    }

    /// Another group in the place of this one, on the same region.
    pub(crate) fn succeed(&mut self) {
        self.group = Self::group(&self.region, &self.page, &self.map, &self.table, self.limits);
        self.open();
    }

    /// New queues in the same group, as after a controller reset.
    pub(crate) fn renew(&mut self) {
        self.map.write_bytes(Iova(CQ), &[0; 16 * ENTRIES as usize]).expect("mapped");
        (self.tail, self.head, self.phase) = (0, 0, true);
        self.page.store(sq_index(1), 0);
        self.page.store(cq_index(1), 0);
        create_cq(&self.region, 1, CQ, ENTRIES, Some(3));
        create_sq(&self.region, 1, SQ, ENTRIES, 1);
        self.open();
    }

    pub(crate) fn tell(&mut self, command: GroupCommand) {
        self.group.command(command, &mut self.drive);
    }

    pub(crate) fn command(&mut self, opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32) -> Command {
        let mut command = Command::default();
        self.next_cid += 1;
        command.cdw0 = command.cdw0.with_opcode(opcode.0).with_cid(self.next_cid);
        command.nsid = nsid;
        command.set_slba(slba);
        command.cdw12 = blocks.wrapping_sub(1);
        command.prp1 = DATA;
        command.prp2 = DATA + 4096;
        command
    }

    pub(crate) fn put(&mut self, command: &Command) {
        self.map.write_bytes(Iova(SQ + u64::from(self.tail) * 64), command.as_bytes()).expect("mapped");
        self.tail = (self.tail + 1) % ENTRIES;
    }

    pub(crate) fn ring(&mut self) {
        self.page.store(sq_index(1), self.tail);
    }

    pub(crate) fn turn(&mut self) -> usize {
        let taken = self.group.poll(Now(0), &mut self.drive);
        self.group.flush(&mut self.drive);
        taken
    }

    /// Everything the drive has finished.
    pub(crate) fn deliver(&mut self) {
        while let Some((token, outcome)) = self.drive.later.pop_front() {
            self.group.complete(token, outcome, &mut self.drive);
        }
        self.group.flush(&mut self.drive);
    }

    /// What the drive has finished first.
    pub(crate) fn deliver_one(&mut self) {
        if let Some((token, outcome)) = self.drive.later.pop_front() {
            self.group.complete(token, outcome, &mut self.drive);
        }
        self.group.flush(&mut self.drive);
    }

    /// New entries of the completion queue.
    pub(crate) fn reap(&mut self) -> Vec<Completion> {
        let mut found = Vec::new();
        while found.len() < ENTRIES as usize {
            let dwords: [u32; 4] = self.map.read(Iova(CQ + u64::from(self.head) * 16)).expect("mapped");
            let completion = Completion::from_dwords(dwords);
            if completion.status.phase() != self.phase {
                break;
            }
            found.push(completion);
            self.head += 1;
            if self.head == ENTRIES {
                (self.head, self.phase) = (0, !self.phase);
            }
        }
        self.page.store(cq_index(1), self.head);
        found
    }

    /// One command to its end, the controller granting and persisting what is asked.
    pub(crate) fn run(&mut self, command: &Command) -> Status {
        self.put(command);
        self.ring();
        let mut done = self.settle();
        assert_eq!(done.len(), 1, "exactly one answer");
        let completion = done.remove(0);
        assert_eq!((completion.cid, completion.sqid), (command.cid(), 1));
        completion.status.with_phase(false)
    }

    /// Turns until nothing moves; the answers.
    pub(crate) fn settle(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        for _ in 0..64 {
            self.turn();
            self.deliver();
            for event in core::mem::take(&mut self.drive.events) {
                match event {
                    GroupEvent::WantExclusive { ticket, .. } => self.tell(GroupCommand::Granted { ticket }),
                    GroupEvent::WantPersist { ticket } => {
                        self.tell(GroupCommand::Persisted { ticket, ok: true })
                    }
                    _ => {}
                }
            }
            done.extend(self.reap());
        }
        done
    }

    pub(crate) fn memory(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.read_bytes(Iova(address), &mut bytes).expect("mapped");
        bytes
    }

    pub(crate) fn poke(&self, address: u64, bytes: &[u8]) {
        self.map.write_bytes(Iova(address), bytes).expect("mapped");
    }
}
