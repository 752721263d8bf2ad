//! The migration management controller against Base 2.1: 5.1.13 (Identify), 5.1.16 (Migration Receive), 5.1.17 (Migration Send), 8.1.12.
//! The controllers that it manages are real ones.

use std::collections::BTreeMap;

use block::Now;
use nvme::controller::saved::{Place, check};
use nvme::management::format::UUID;
use nvme::management::{Change, Memory, Order, Report, Trouble};
use nvme::profile::{GODWIT_1, GODWIT_MANAGEMENT_1};
use spec::nvme::identify::IdentifyController;
use spec::nvme::log::CommandsSupportedAndEffects;
use spec::nvme::registers as reg;
use spec::nvme::{Command, Completion, Status};
use state::SsdV1;
use state::controller::ControllerV1;
use zerocopy::FromBytes;

use crate::world::{World, command, identity};

const SEND: u8 = 0x41;
const RECEIVE: u8 = 0x42;
const FIRST: u32 = 0b01;
const MIDDLE: u32 = 0b00;
const LAST: u32 = 0b10;
const ONLY: u32 = 0b11;

/// A controller that is managed.
pub(crate) struct Managed {
    pub(crate) world: World,
    pub(crate) suspended: bool,
    pub(crate) tracked: bool,
    /// What was written since it was said.
    pub(crate) changed: Vec<Change>,
    /// The memory of its host that is tracked, what was written there and not told, and what was told last.
    pub(crate) memory: Option<Memory>,
    pub(crate) written: Vec<(u64, u32)>,
    pub(crate) told: Vec<(u64, u32)>,
    /// Why its memory cannot be tracked.
    pub(crate) trouble: Option<Trouble>,
}

impl Managed {
    fn memory_order(&mut self, order: Order) -> Report {
        match order {
            Order::HarvestMemory { most, heard } => {
                if self.memory.is_none() {
                    return Report::Failed(Trouble::NoController);
                }
                let again = std::mem::take(&mut self.told);
                if !heard {
                    self.written.splice(0..0, again);
                }
                let count = self.written.len().min(most as usize);
                self.told = self.written.drain(..count).collect();
                let granularity = self.memory.as_ref().map_or(0, |memory| memory.granularity);
                let (runs, more) = (self.told.clone(), !self.written.is_empty());
                return Report::Memory { granularity, runs, more, suspended: self.suspended };
            }
            _ if self.suspended => return Report::Failed(Trouble::Suspended),
            Order::TrackMemory(memory) => match (&self.memory, self.trouble) {
                (_, Some(trouble)) => return Report::Failed(trouble),
                (Some(here), _) => return Report::Failed(Trouble::Tracked { same: *here == memory }),
                (None, None) => (self.memory, self.told) = (Some(memory), Vec::new()),
            },
            _ => self.memory = None,
        }
        Report::Done
    }
}

/// A management controller and those it manages, by identifier.
pub(crate) struct House {
    pub(crate) manager: World,
    pub(crate) managed: BTreeMap<u16, Managed>,
}

fn with_queues() -> World {
    let mut world = World::ready();
    world.controller.config_write(4, &[6, 4], Now(0), &mut world.host);
    world.controller.config_write(0x52, &[0, 0x80], Now(0), &mut world.host);
    let create = |opcode, prp1, dwords| {
        let mut create = command(opcode, 0, dwords);
        create.prp1 = prp1;
        create
    };
    assert!(world.admin(create(0x05, 0x20_0000, [2 | 31 << 16, 5 << 16 | 3])).status.is_success());
    assert!(world.admin(create(0x01, 0x30_0000, [1 | 15 << 16, 2 << 16 | 1])).status.is_success());
    world.region.sqs[1].head_seq.store(3 << 32 | 3, std::sync::atomic::Ordering::Relaxed);
    world.region.cqs[2].tail_phase.store(1 << 16 | 7, std::sync::atomic::Ordering::Relaxed);
    world.doorbells.store(2, 4);
    world.doorbells.store(5, 6);
    world
}

pub(crate) fn house(worlds: Vec<World>) -> House {
    let mut manager = World::of(&GODWIT_MANAGEMENT_1, &SsdV1::default());
    manager.enable();
    assert_eq!(manager.csts() & 3, 1, "ready, not fatal");
    let managed = worlds.into_iter().map(|world| Managed {
        world,
        suspended: false,
        tracked: false,
        changed: Vec::new(),
        memory: None,
        written: Vec::new(),
        told: Vec::new(),
        trouble: None,
    });
    House { manager, managed: (1..).zip(managed).collect() }
}

fn load(managed: &mut Managed, state: &ControllerV1) -> Report {
    let (identity, record) = (identity(), managed.world.controller.record());
    let place = Place {
        region: &managed.world.region,
        doorbells: &managed.world.doorbells,
        profile: &GODWIT_1,
        identity: &identity,
        record: &record,
        block_bytes: 512,
    };
    let Ok(checked) = check(state, &place, Now(0)) else { return Report::Failed(Trouble::Refused) };
    managed.world.host.records.push(checked.load(1, Now(0)).expect("it was checked"));
    managed.world.controller = managed.world.successor();
    managed.suspended = true;
    Report::Done
}

impl House {
    pub(crate) fn carry_out(&mut self, cntlid: u16, order: Order) -> Report {
        if order == Order::List {
            return Report::Controllers(self.managed.keys().copied().collect());
        }
        if order == Order::EndAll {
            self.managed.values_mut().for_each(|managed| managed.memory = None);
            return Report::Done;
        }
        let Some(managed) = self.managed.get_mut(&cntlid) else {
            return Report::Failed(Trouble::NoController);
        };
        match order {
            Order::TrackMemory(_) | Order::EndMemory | Order::HarvestMemory { .. } => {
                return managed.memory_order(order);
            }
            Order::Suspend => managed.suspended = true,
            Order::Resume if !managed.suspended => return Report::Failed(Trouble::NotSuspended),
            Order::Resume => managed.suspended = false,
            Order::Look => {
                let enabled = managed.world.read32(reg::CC) & 1 == 1;
                return Report::Standing { suspended: managed.suspended, enabled };
            }
            Order::Save => {
                let state = Box::new(managed.world.controller.save(Now(managed.world.now)));
                return Report::State { state, suspended: managed.suspended };
            }
            Order::Load(state) => return load(managed, &state),
            Order::Track(on) => {
                managed.changed.clear();
                managed.tracked = on;
                return Report::Standing { suspended: managed.suspended, enabled: true };
            }
            Order::Harvest { .. } if !managed.tracked => return Report::Failed(Trouble::Failed),
            Order::Harvest { whole: true, .. } => {
                return Report::Changes { changes: vec![Change::Namespace(1)], more: false };
            }
            Order::Harvest { most, .. } => {
                let count = managed.changed.len().min(most as usize);
                let changes = managed.changed.drain(..count).collect();
                return Report::Changes { changes, more: !managed.changed.is_empty() };
            }
            Order::List | Order::EndAll => unreachable!("answered above"),
        }
        Report::Done
    }

    /// Until nothing is asked any more.
    pub(crate) fn settle(&mut self) {
        self.manager.pump();
        while let Some((ticket, cntlid, order)) = self.manager.host.orders.pop_front() {
            let report = self.carry_out(cntlid, order);
            self.manager.controller.managed(ticket, report, Now(0), &mut self.manager.host);
            self.manager.pump();
        }
    }

    pub(crate) fn admin(&mut self, command: Command) -> Completion {
        let cid = self.manager.submit(command);
        self.settle();
        let entry = self.manager.reap().expect("a completion");
        assert_eq!(entry.cid, cid);
        entry
    }

    #[track_caller]
    pub(crate) fn succeeds(&mut self, command: Command) -> u32 {
        let entry = self.admin(command);
        assert!(entry.status.is_success(), "{:x}", entry.status.code());
        entry.dw0
    }

    #[track_caller]
    pub(crate) fn fails(&mut self, command: Command, status: Status) {
        assert_eq!(self.admin(command).status.code(), status.code());
    }

    fn get_all(&mut self, cntlid: u16, csvi: u32, csuuidi: u32) -> Vec<u8> {
        self.succeeds(get(cntlid, csvi, csuuidi, 0, 1 << 10));
        let header = self.manager.data(48);
        let dwords = |at: usize| u128::from_le_bytes(header[at..at + 16].try_into().expect("sixteen bytes"));
        let len = 48 + 4 * (dwords(16) + dwords(32)) as usize;
        assert!(len <= 4096, "one page has it");
        self.manager.data(len)
    }

    fn set(&mut self, cntlid: u16, bytes: &[u8]) -> Completion {
        self.manager.set_data(bytes);
        self.admin(set(cntlid, ONLY, 0, bytes.len()))
    }
}

pub(crate) fn suspend(cntlid: u16) -> Command {
    command(SEND, 0, [0, 1 << 16 | u32::from(cntlid)])
}

pub(crate) fn resume(cntlid: u16) -> Command {
    command(SEND, 0, [1, u32::from(cntlid)])
}

/// `dwords` are 1's based here, and 0's based in the command.
fn get(cntlid: u16, csvi: u32, csuuidi: u32, offset: u32, dwords: u32) -> Command {
    let mut get = command(RECEIVE, 0, [csvi << 16, csuuidi << 16 | u32::from(cntlid)]);
    (get.cdw12, get.cdw15) = (offset, dwords - 1);
    get
}

/// Both parts.
fn set(cntlid: u16, seqind: u32, offset: u32, bytes: usize) -> Command {
    set_parts(cntlid, seqind, [1, 1], offset, bytes)
}

fn set_parts(cntlid: u16, seqind: u32, [csvi, csuuidi]: [u32; 2], offset: u32, bytes: usize) -> Command {
    let mut set = command(SEND, 0, [seqind << 16 | 2, csuuidi << 24 | csvi << 16 | u32::from(cntlid)]);
    (set.cdw12, set.cdw15) = (offset, bytes as u32 / 4);
    set
}

/// Base 2.1, 5.1.13.2.1: OACS.HMLMS and controller type 3; 5.1.13.2.20: one version, one UUID; 3.1.3.3: no I/O queues and no namespaces.
#[test]
fn identify_says_what_a_management_controller_is() {
    let mut house = house(vec![World::ready(), World::ready()]);
    assert_eq!(house.manager.read64(reg::CAP) >> 37 & 0xff, 0x80, "no I/O command set");
    house.succeeds(command(0x06, 0, [1, 0]));
    let page = IdentifyController::read_from_bytes(&house.manager.data(4096)).unwrap();
    assert_eq!((page.oacs.into_bits(), page.cntrltype, page.cntlid, page.nn), (1 << 11, 3, 0, 0));
    assert_eq!((page.hmpre, page.cmic.mcs()), (0, true));
    assert_eq!(
        page.trattr.into_bits(),
        3,
        "memory and user data are tracked, and ranges may be of any length"
    );
    assert_eq!((page.cmmrtd, page.nmmrtd, page.minmrtg, page.maxmrtg), (1024, 1024, 0, 18));
    assert_eq!((page.mcudmq, page.mnsudmq, page.mcmr, page.nmcmr, page.mcdqpc), (4, 4, 0, 0, 512));
    house.succeeds(command(0x06, 0, [0x20, 0]));
    let formats = house.manager.data(4096);
    assert_eq!(formats[..4], [1, 1, 0, 0]);
    assert_eq!(formats[4..20], UUID);
    assert!(formats[20..].iter().all(|byte| *byte == 0));
    for (from, expected) in [(0_u32, &[3_u16, 0, 1, 2][..]), (2, &[1, 2]), (3, &[0])] {
        house.succeeds(command(0x06, 0, [from << 16 | 0x13, 0]));
        let list: Vec<u16> =
            house.manager.data(8).chunks(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
        assert_eq!(&list[..expected.len()], expected);
    }
    house.succeeds(command(0x06, 0, [2, 0]));
    assert!(house.manager.data(4096).iter().all(|byte| *byte == 0), "no namespace");
    house.succeeds(command(0x02, 0xffff_ffff, [1023 << 16 | 5, 0]));
    let effects = CommandsSupportedAndEffects::read_from_bytes(&house.manager.data(4096)).unwrap();
    let supported = (0..256).filter(|at| effects.acs[*at].csupp()).collect::<Vec<_>>();
    assert_eq!(supported, [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x3d, 0x3e, 0x41, 0x42, 0x45]);
    assert!(effects.iocs.iter().all(|effect| !effect.csupp()));
    for opcode in [0x01, 0x05, 0x0d, 0x80, 0x84] {
        house.fails(command(opcode, 0, [0, 0]), Status::INVALID_OPCODE);
    }
    house.fails(command(0x0a, 0, [7, 0]), Status::INVALID_FIELD);
}

/// Base 2.1, 8.1.12: a migratable controller has none of it.
#[test]
fn a_controller_that_is_managed_does_not_manage() {
    let mut world = World::ready();
    for opcode in [SEND, RECEIVE] {
        assert_eq!(world.admin(command(opcode, 0, [0, 1])).status.code(), Status::INVALID_OPCODE.code());
    }
    assert_eq!(world.admin(command(0x06, 0, [0x20, 0])).status.code(), Status::INVALID_FIELD.code());
}

/// Base 2.1, 5.1.17.1.1 and 5.1.17.1.2.
#[test]
fn suspend_and_resume_have_the_status_of_the_specification() {
    let mut house = house(vec![World::ready()]);
    house.fails(resume(1), Status::CONTROLLER_NOT_SUSPENDED);
    house.succeeds(command(SEND, 0, [0, 1]));
    assert!(!house.managed[&1].suspended, "that was a notification");
    house.succeeds(suspend(1));
    house.succeeds(suspend(1));
    assert!(house.managed[&1].suspended);
    house.succeeds(resume(1));
    house.fails(resume(1), Status::CONTROLLER_NOT_SUSPENDED);
    // The management controller itself, and one that is not there.
    for cntlid in [0, 2, u16::MAX] {
        house.fails(suspend(cntlid), Status::INVALID_CONTROLLER_IDENTIFIER);
        house.fails(resume(cntlid), Status::INVALID_CONTROLLER_IDENTIFIER);
        house.fails(command(SEND, 0, [0, cntlid.into()]), Status::INVALID_CONTROLLER_IDENTIFIER);
        house.fails(get(cntlid, 1, 1, 0, 12), Status::INVALID_CONTROLLER_IDENTIFIER);
        house.fails(set(cntlid, FIRST, 0, 48), Status::INVALID_CONTROLLER_IDENTIFIER);
    }
    house.fails(command(SEND, 0, [0, 2 << 16 | 1]), Status::INVALID_FIELD);
    house.fails(command(SEND, 0, [3, 1]), Status::INVALID_FIELD);
    house.fails(command(RECEIVE, 0, [1, 1]), Status::INVALID_FIELD);
    house.fails(Command { nsid: 1, ..suspend(1) }, Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.16.1.1: header, queues with every field in its place, and our data.
#[test]
fn a_controller_state_has_the_layout_of_the_specification() {
    let mut house = house(vec![with_queues()]);
    assert_eq!(house.succeeds(get(1, 1, 0, 0, 64)), 0, "it runs");
    assert_eq!(house.manager.data(3), [0, 0, 0]);
    house.succeeds(suspend(1));
    assert_eq!(house.succeeds(get(1, 1, 0, 0, 64)), 1, "CSUP");
    let bytes = house.manager.data(256);
    assert_eq!(bytes[..16], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..32], 14_u128.to_le_bytes(), "NVMECSS: 2 + 6 for each queue");
    assert_eq!(bytes[32..48], [0; 16], "VSS");
    assert_eq!(bytes[48..56], [0, 0, 1, 0, 1, 0, 0, 0]);
    let sq = [0x30_0000_u64.to_le_bytes(), [15, 0, 1, 0, 2, 0, 1, 0], [3, 0, 4, 0, 0, 0, 0, 0]].concat();
    assert_eq!(bytes[56..80], sq, "PRP1, QSIZE, QID, CQID, PC, head, tail");
    let cq = [0x20_0000_u64.to_le_bytes(), [31, 0, 2, 0, 6, 0, 7, 0], [7, 0, 5, 0, 0, 0, 0, 0]].concat();
    assert_eq!(bytes[80..104], cq, "PRP1, QSIZE, QID, head, tail, PC | IEN | S0PT, IV");
    assert!(bytes[104..].iter().all(|byte| *byte == 0));
    let whole = house.get_all(1, 1, 1);
    assert_eq!(whole[48..104], bytes[48..104]);
    let len = u32::from_le_bytes(whole[104..108].try_into().unwrap()) as usize;
    let state = ControllerV1::from_bytes(&whole[108..108 + len]).expect("docs/formats/controller-state.md");
    assert_eq!(state, house.managed[&1].world.controller.save(Now(0)));
    let vendor = house.get_all(1, 0, 1);
    assert_eq!((&vendor[16..32], &vendor[48..]), (&[0; 16][..], &whole[104..]));
}

/// Base 2.1, 5.1.16: offset and length; the pieces of a suspended controller's state are of one state.
#[test]
fn a_state_is_read_in_pieces() {
    let mut house = house(vec![with_queues()]);
    house.succeeds(suspend(1));
    let (mut pieces, mut total) = (Vec::new(), 1);
    while pieces.len() < total {
        // The time of day is part of it.
        house.managed.get_mut(&1).unwrap().world.now += 3_600_000_000_000;
        house.succeeds(get(1, 1, 1, pieces.len() as u32, 25));
        pieces.extend(house.manager.data(100));
        let dwords = |at: usize| u128::from_le_bytes(pieces[at..at + 16].try_into().unwrap());
        total = 48 + 4 * (dwords(16) + dwords(32)) as usize;
    }
    let len = u32::from_le_bytes(pieces[104..108].try_into().unwrap()) as usize;
    assert!(ControllerV1::from_bytes(&pieces[108..108 + len]).is_ok(), "its checksum is right");
    assert!(pieces[total..].iter().all(|byte| *byte == 0));
    house.fails(get(1, 1, 1, 2, 25), Status::INVALID_FIELD);
    house.fails(get(1, 1, 1, total as u32, 1), Status::INVALID_FIELD);
    house.fails(Command { cdw13: 1, ..get(1, 1, 1, 0, 1) }, Status::INVALID_FIELD);
    house.fails(get(1, 2, 1, 0, 25), Status::INVALID_FIELD);
    house.fails(get(1, 1, 2, 0, 25), Status::INVALID_FIELD);
    house.fails(get(1, 1, 1, 0, (1 << 18) + 1), Status::INVALID_FIELD);
    // One that was resumed meanwhile says so.
    house.succeeds(resume(1));
    assert_eq!(house.succeeds(get(1, 1, 1, 48, 25)), 0);
}

/// Ours: what the NVMe part cannot say of commands that are underway is not left out unseen.
#[test]
fn queues_alone_are_not_given_away_while_a_command_would_be_lost() {
    let mut house = house(vec![with_queues()]);
    house.succeeds(suspend(1));
    let slot = &house.managed[&1].world.region.slots[1][4];
    slot.word.store(2 << 32 | 2 << 16 | 1, std::sync::atomic::Ordering::Relaxed);
    house.fails(get(1, 1, 0, 0, 64), Status::INVALID_FIELD);
    house.succeeds(get(1, 1, 1, 0, 64));
}

fn state_of(house: &House, cntlid: u16) -> ControllerV1 {
    let mut state = house.managed[&cntlid].world.controller.save(Now(0));
    state.admin.timestamp_ms = 0;
    state
}

/// Base 2.1, 5.1.17.1.3, 8.1.12.1: to a disabled controller, whole and in pieces; it is suspended then.
#[test]
fn a_controller_goes_on_in_the_state_of_another() {
    let mut house = house(vec![with_queues(), World::new(), World::new()]);
    house.succeeds(suspend(1));
    let whole = house.get_all(1, 1, 1);
    assert!(house.set(2, &whole).status.is_success());
    assert_eq!(state_of(&house, 2), state_of(&house, 1));
    assert!(house.managed[&2].suspended);
    house.succeeds(resume(2));
    for (at, piece) in whole.chunks(64).enumerate() {
        house.manager.set_data(piece);
        house.succeeds(set(3, if at == 0 { FIRST } else { MIDDLE }, at as u32 * 64, piece.len()));
        house.fails(resume(3), Status::COMMAND_SEQUENCE_ERROR);
    }
    assert!(!house.managed[&3].suspended, "not committed");
    house.succeeds(set(3, LAST, 0, 0));
    assert_eq!(state_of(&house, 3), state_of(&house, 1));
    house.succeeds(resume(3));
}

/// Base 2.1, 5.1.16.1.1: the host brings admin queue and registers back by itself. S0PT is the phase tag that slot 0 has.
#[test]
fn a_state_of_queues_alone_is_taken() {
    for (tail_phase, phase) in [(1 << 16 | 7, true), (7, false), (1 << 16, true), (0, false)] {
        let mut house = house(vec![with_queues(), World::ready()]);
        let tail = &house.managed[&1].world.region.cqs[2].tail_phase;
        tail.store(tail_phase, std::sync::atomic::Ordering::Relaxed);
        house.succeeds(suspend(1));
        house.succeeds(suspend(2));
        let bytes = house.get_all(1, 1, 0);
        house.manager.set_data(&bytes);
        house.succeeds(set_parts(2, ONLY, [1, 0], 0, bytes.len()));
        let (from, to) = (state_of(&house, 1), state_of(&house, 2));
        assert_eq!(to.completion_queues[1].phase, phase);
        assert_eq!(to.completion_queues[1].tail, from.completion_queues[1].tail);
        let told = |state: &ControllerV1| {
            let sq = &state.submission_queues[1];
            (sq.sqid, sq.base, sq.size, sq.cqid, sq.head, sq.doorbell)
        };
        assert_eq!(told(&to), told(&from));
        assert_eq!(to.completion_queues[1].vector, Some(5));
        house.succeeds(resume(2));
    }
}

/// Base 2.1, 5.1.17.1.3, every reason.
#[test]
fn a_state_that_cannot_be_is_refused_with_its_status() {
    let mut house = house(vec![with_queues(), World::new(), World::ready()]);
    house.succeeds(suspend(1));
    let whole = house.get_all(1, 1, 1);
    house.manager.set_data(&whole);
    let len = whole.len();
    // Neither suspended nor disabled.
    house.fails(set(3, ONLY, 0, len), Status::INVALID_CONTROLLER_IDENTIFIER);
    // It has I/O queues.
    house.fails(set(1, ONLY, 0, len), Status::INVALID_FIELD);
    // Out of sequence.
    house.fails(set(2, MIDDLE, 0, len), Status::COMMAND_SEQUENCE_ERROR);
    house.fails(set(2, LAST, 0, len), Status::COMMAND_SEQUENCE_ERROR);
    // Indices.
    for parts in [[2, 1], [1, 2], [0, 0], [0, 1], [1, 0]] {
        house.fails(set_parts(2, ONLY, parts, 0, len), Status::INVALID_FIELD);
    }
    house.succeeds(set(2, FIRST, 0, 48));
    house.fails(set_parts(2, MIDDLE, [1, 0], 48, 4), Status::INVALID_FIELD);
    // Offsets and lengths.
    house.fails(set(2, MIDDLE, 50, 4), Status::INVALID_FIELD);
    house.fails(set(2, MIDDLE, 52, 4), Status::INVALID_FIELD);
    house.fails(set(2, MIDDLE, 0, 0), Status::INVALID_FIELD);
    house.fails(set(2, MIDDLE, 0, (1 << 20) + 4), Status::INVALID_FIELD);
    house.fails(Command { cdw13: 1, ..set(2, MIDDLE, 0, 4) }, Status::INVALID_FIELD);
    // Cut short. A sequence that has failed is over.
    house.fails(set(2, LAST, 0, 48), Status::INVALID_FIELD);
    house.fails(set(2, LAST, 0, 48), Status::COMMAND_SEQUENCE_ERROR);
    for at in [0, 16, 31, 47, 48, 50, 52, 66, 90, 104, 111, 130] {
        let mut other = whole.clone();
        other[at] ^= 0x40;
        assert_eq!(house.set(2, &other).status.code(), Status::INVALID_FIELD.code(), "byte {at}");
    }
    assert!(!house.managed[&2].suspended);
    assert!(house.set(2, &whole).status.is_success(), "nothing of that is left");
}

/// Base 2.1, 5.1.17.1.3: "a new sequence" drops the one before. Ours: there are as many at once as there are.
#[test]
fn sequences_are_bounded_and_begin_anew() {
    let mut house = house((0..6).map(|_| World::new()).collect());
    for cntlid in 1..=4 {
        house.succeeds(set(cntlid, FIRST, 0, 64));
    }
    house.succeeds(set(4, FIRST, 0, 64));
    let entry = house.admin(set(5, FIRST, 0, 64));
    assert_eq!((entry.status.code(), entry.status.dnr()), (Status::NOT_ENOUGH_RESOURCES.code(), false));
    house.fails(set(1, LAST, 0, 0), Status::INVALID_FIELD);
    house.succeeds(set(5, FIRST, 0, 64));
}

/// Ours: one order a controller, in the order of the commands; others go on beside it.
#[test]
fn commands_to_one_controller_do_not_overtake_each_other() {
    let mut house = house(vec![World::ready(), World::ready()]);
    let cids = [suspend(1), resume(1), suspend(1), suspend(2)].map(|command| house.manager.submit(command));
    house.manager.pump();
    let orders: Vec<_> = house.manager.host.orders.iter().map(|(_, cntlid, _)| *cntlid).collect();
    assert_eq!(orders, [1, 2]);
    house.settle();
    let done: Vec<u16> = std::iter::from_fn(|| house.manager.reap()).map(|entry| entry.cid).collect();
    assert_eq!(done.len(), 4);
    let place = |cid: u16| done.iter().position(|other| *other == cid).unwrap();
    assert!(place(cids[0]) < place(cids[1]) && place(cids[1]) < place(cids[2]));
    assert!(house.managed[&1].suspended && house.managed[&2].suspended);
}

/// Base 2.1, 3.7.2: nothing of before a reset is answered after it.
#[test]
fn a_report_that_comes_after_a_reset_is_for_nobody() {
    let mut house = house(vec![World::ready()]);
    house.succeeds(set_first(1));
    house.manager.submit(suspend(1));
    house.manager.pump();
    let (ticket, ..) = house.manager.host.orders.pop_front().expect("an order");
    house.manager.disable();
    house.manager.enable();
    let waiting = house.manager.submit(suspend(1));
    house.manager.pump();
    house.manager.controller.managed(ticket, Report::Done, Now(0), &mut house.manager.host);
    house.manager.pump();
    assert!(house.manager.reap().is_none(), "its order is still out");
    house.settle();
    assert_eq!(house.manager.reap().expect("answered").cid, waiting);
    // The sequence went, too, and with it what a resume would have had to wait for.
    house.succeeds(resume(1));
}

/// A first piece, to a controller that has to be suspended for it.
fn set_first(cntlid: u16) -> Command {
    command(SEND, 0, [0, u32::from(cntlid)])
}

/// Ours: docs/decisions/0038.
#[test]
fn a_successor_does_again_what_was_not_answered() {
    let mut house = house(vec![with_queues(), World::new()]);
    house.succeeds(suspend(1));
    let whole = house.get_all(1, 1, 1);
    house.manager.set_data(&whole);
    house.succeeds(set(2, FIRST, 0, whole.len()));
    // Carried out, and not answered.
    for (command, done) in [(resume(1), true), (suspend(1), true), (suspend(1), false)] {
        let cid = house.manager.submit(command);
        house.manager.pump();
        let (_, cntlid, order) = house.manager.host.orders.pop_front().expect("an order");
        if done {
            assert_eq!(house.carry_out(cntlid, order), Report::Done);
        }
        house.manager.succeed();
        house.settle();
        let entry = house.manager.reap().expect("answered");
        assert!(entry.status.is_success() && entry.cid == cid);
    }
    house.manager.succeed();
    house.fails(set(2, LAST, 0, 0), Status::COMMAND_SEQUENCE_ERROR);
    house.fails(resume(2), Status::CONTROLLER_NOT_SUSPENDED);
    assert!(house.set(2, &whole).status.is_success());
}

/// Ours: each trouble has a status, and those that pass have no Do Not Retry.
#[test]
fn every_trouble_is_answered() {
    let mut house = house(vec![World::ready()]);
    for (trouble, status, again) in [
        (Trouble::NoController, Status::INVALID_CONTROLLER_IDENTIFIER, false),
        (Trouble::NotSuspended, Status::CONTROLLER_NOT_SUSPENDED, false),
        (Trouble::AtWork, Status::INVALID_CONTROLLER_IDENTIFIER, false),
        (Trouble::Busy, Status::COMMAND_INTERRUPTED, true),
        (Trouble::Refused, Status::INVALID_FIELD, false),
        (Trouble::Failed, Status::INTERNAL_ERROR, true),
    ] {
        house.manager.submit(suspend(1));
        house.manager.pump();
        let (ticket, ..) = house.manager.host.orders.pop_front().expect("an order");
        let report = Report::Failed(trouble);
        house.manager.controller.managed(ticket, report, Now(0), &mut house.manager.host);
        house.manager.pump();
        let found = house.manager.reap().expect("answered").status;
        assert_eq!((found.code(), !found.dnr()), (status.code(), again), "{trouble:?}");
    }
}
