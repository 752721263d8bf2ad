//! Tracking of host memory against Base 2.1: 5.1.27.1.2 (Track Send, Track Memory Changes), 5.1.26 (Track Receive), 8.1.12.

use nvme::management::{Memory, Trouble};
use spec::nvme::{Command, Status};

use crate::management::{House, house, resume, suspend};
use crate::world::{World, command};

const PAGE: u64 = 4096;
const MORE: u8 = 1;
const SUSPENDED: u8 = 2;

fn start(cntlid: u32) -> Command {
    command(0x3d, 0, [1 << 16 | 1, cntlid])
}

fn stop(cntlid: u32) -> Command {
    command(0x3d, 0, [1, cntlid])
}

/// `dwords` are 1's based here, and 0's based in the command.
fn receive(cntlid: u32, dwords: u32) -> Command {
    Command { cdw12: dwords - 1, ..command(0x3e, 0, [0, cntlid]) }
}

/// A Track Memory Changes data structure; the descriptors follow its header.
fn data(ver: u8, rmrtg: u8, rnmrtd: u32, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = vec![ver, 0, 0, rmrtg];
    bytes.extend(rnmrtd.to_le_bytes());
    for (saddr, len) in ranges {
        bytes.extend(saddr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
    }
    bytes
}

impl House {
    fn set_memory(&self, rmrtg: u8, ranges: &[(u64, u32)]) {
        self.manager.set_data(&data(0, rmrtg, ranges.len() as u32, ranges));
    }

    /// Attributes, granularity and descriptors of a report that is asked for with room for so many.
    #[track_caller]
    fn told(&mut self, cntlid: u16, room: u32) -> (u8, u16, Vec<(u64, u32)>) {
        let dwords = 4 + 4 * room;
        self.manager.set_data(&vec![0xee; dwords as usize * 4]);
        self.succeeds(receive(cntlid.into(), dwords));
        let bytes = self.manager.data(dwords as usize * 4);
        let count = u32::from_le_bytes(bytes[4..8].try_into().expect("four")) as usize;
        assert_eq!((bytes[0], &bytes[2..4]), (0, &cntlid.to_le_bytes()[..]));
        assert_eq!(bytes[10..16], [0; 6]);
        let (descriptors, rest) = bytes[16..].split_at(count * 16);
        assert!(rest.iter().all(|byte| *byte == 0));
        let descriptor = |bytes: &[u8]| {
            assert_eq!(bytes[12..], [0; 4]);
            let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four"));
            (u64::from_le_bytes(bytes[..8].try_into().expect("eight")), len)
        };
        let granularity = u16::from_le_bytes([bytes[8], bytes[9]]);
        (bytes[1], granularity, descriptors.chunks(16).map(descriptor).collect())
    }

    fn writes_memory(&mut self, cntlid: u16, runs: &[(u64, u32)]) {
        self.managed.get_mut(&cntlid).expect("there").written.extend(runs);
    }
}

fn tracked() -> House {
    let mut house = house(vec![World::ready(), World::ready()]);
    house.set_memory(0, &[(0, 1024)]);
    house.succeeds(start(1));
    house
}

/// Base 2.1, 5.1.27.1.2: the data structure, byte by byte; reserved bytes are nothing.
#[test]
fn memory_is_tracked_in_the_ranges_that_the_host_names() {
    let mut house = house(vec![World::ready()]);
    let mut bytes = data(0, 9, 2, &[(4 << 21, 3), (1 << 40, 1)]);
    bytes[1..3].fill(0xff);
    house.manager.set_data(&bytes);
    house.succeeds(Command { cdw10: 0xffff_ff01, cdw11: 0xffff_0001, ..start(1) });
    let expected = Memory { granularity: 9, ranges: vec![(4 << 21, 3 << 21), (1 << 40, 1 << 21)] };
    assert_eq!(house.managed[&1].memory, Some(expected));
    // As many as a page has.
    house.succeeds(stop(1));
    assert_eq!(house.managed[&1].memory, None);
    let many: Vec<_> = (0..300).map(|at| (at * 2 * PAGE, 1)).collect();
    house.set_memory(0, &many);
    house.succeeds(start(1));
    assert_eq!(house.managed[&1].memory.as_ref().map(|memory| memory.ranges.len()), Some(300));
    // Stopping does not look at data, and what is not tracked is as it is to be.
    house.succeeds(Command { prp1: 1 << 50, ..stop(1) });
    house.succeeds(stop(1));
}

/// Base 2.1, 5.1.27.1.2: what is wrong with the data structure is Invalid Field in Command.
#[test]
fn a_data_structure_that_is_wrong_is_refused() {
    let mut house = house(vec![World::ready()]);
    let good = [(PAGE, 1)];
    let wrong = [
        data(1, 0, 1, &good),
        data(0, 19, 1, &good),
        data(0, 255, 1, &good),
        data(0, 0, 0, &good),
        data(0, 0, 1025, &good),
        data(0, 0, u32::MAX, &good),
        data(0, 0, 1, &[(PAGE + 512, 1)]),
        data(0, 1, 1, &good),
        data(0, 0, 1, &[(PAGE, 0)]),
        data(0, 0, 2, &[(PAGE, 1), (u64::MAX - 4095, 2)]),
        data(0, 18, 1, &[(0xffff_ffff_c000_0000, 2)]),
    ];
    for bytes in wrong {
        house.manager.set_data(&bytes);
        house.fails(start(1), Status::INVALID_FIELD);
        assert_eq!(house.managed[&1].memory, None, "{bytes:x?}");
    }
    house.manager.set_data(&data(0, 0, 1, &[(u64::MAX - 4095, 1)]));
    house.succeeds(start(1));
    house.fails(command(0x3d, 0, [2, 1]), Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.27.1.2: the status codes of the command.
#[test]
fn what_cannot_be_tracked_has_the_status_of_the_specification() {
    let mut house = tracked();
    // It is tracked already; the management controller itself; one that is not there.
    for cntlid in [1, 0, 9] {
        house.fails(start(cntlid), Status::INVALID_CONTROLLER_IDENTIFIER);
    }
    for cntlid in [0, 9] {
        house.fails(stop(cntlid), Status::INVALID_CONTROLLER_IDENTIFIER);
    }
    house.succeeds(suspend(1));
    house.succeeds(suspend(2));
    house.fails(start(2), Status::CONTROLLER_SUSPENDED);
    house.fails(stop(1), Status::CONTROLLER_SUSPENDED);
    house.succeeds(resume(1));
    house.succeeds(resume(2));
    for (trouble, status) in [
        (Trouble::NotMemory, Status::INVALID_FIELD),
        (Trouble::TooMany, Status::INVALID_FIELD),
        (Trouble::Busy, Status::COMMAND_INTERRUPTED),
        (Trouble::Failed, Status::INTERNAL_ERROR),
    ] {
        house.managed.get_mut(&2).expect("there").trouble = Some(trouble);
        house.fails(start(2), status);
    }
    // With what could be: dword 0 the granularity, dword 1 the descriptors.
    house.managed.get_mut(&2).expect("there").trouble = Some(Trouble::NoRoom { ranges: 255 });
    let entry = house.admin(start(2));
    assert_eq!(entry.status.code(), Status::NOT_ENOUGH_RESOURCES.code());
    assert_eq!((entry.dw0, entry.dw1), (0, 255));
    house.managed.get_mut(&2).expect("there").trouble = None;
    house.succeeds(start(2));
}

/// Base 2.1, 5.1.26.1.1: layout, and what was reported is removed.
#[test]
fn what_a_controller_wrote_is_reported_once() {
    let mut house = tracked();
    assert_eq!(house.told(1, 4), (0, 0, vec![]));
    let runs = [(3 * PAGE, 2), (1 << 33, 7)];
    house.writes_memory(1, &runs);
    assert_eq!(house.told(1, 4), (0, 0, runs.to_vec()));
    assert_eq!(house.told(1, 4), (0, 0, vec![]));
    // MTR, as long as there is more.
    house.writes_memory(1, &[(0, 1), (2 * PAGE, 1), (4 * PAGE, 1)]);
    assert_eq!(house.told(1, 2), (MORE, 0, vec![(0, 1), (2 * PAGE, 1)]));
    assert_eq!(house.told(1, 2), (0, 0, vec![(4 * PAGE, 1)]));
    // SUSP: nothing more comes.
    house.writes_memory(1, &[(PAGE, 1), (3 * PAGE, 1)]);
    house.succeeds(suspend(1));
    assert_eq!(house.told(1, 1), (MORE | SUSPENDED, 0, vec![(PAGE, 1)]));
    assert_eq!(house.told(1, 1), (SUSPENDED, 0, vec![(3 * PAGE, 1)]));
    assert_eq!(house.told(1, 1), (SUSPENDED, 0, vec![]));
    house.succeeds(resume(1));
    house.succeeds(stop(1));
    house.set_memory(5, &[(0, 4)]);
    house.succeeds(start(1));
    house.writes_memory(1, &[(1 << 17, 2)]);
    assert_eq!(house.told(1, 9), (0, 5, vec![(1 << 17, 2)]));
}

/// Base 2.1, 5.1.26: status and lengths. One without room for a descriptor would say that there is nothing to report.
#[test]
fn track_receive_has_the_status_of_the_specification() {
    let mut house = tracked();
    for cntlid in [0, 2, 9] {
        house.fails(receive(cntlid, 8), Status::INVALID_CONTROLLER_IDENTIFIER);
    }
    house.fails(Command { cdw10: 1, ..receive(1, 8) }, Status::INVALID_FIELD);
    for dwords in [1, 4, 7, (1 << 18) + 1] {
        house.fails(receive(1, dwords), Status::INVALID_FIELD);
    }
    house.fails(Command { cdw12: u32::MAX, ..receive(1, 8) }, Status::INVALID_FIELD);
    house.succeeds(Command { cdw10: 0xffff_ff00, cdw11: 0xffff_0001, ..receive(1, 8) });
    house.fails(Command { nsid: 1, ..receive(1, 8) }, Status::INVALID_FIELD);
}

/// Base 2.1, 5.1.26.1.1: only a command that succeeds removes what was reported.
#[test]
fn a_report_that_did_not_arrive_is_told_again() {
    let mut house = tracked();
    house.writes_memory(1, &[(PAGE, 1)]);
    let lost = Command { prp1: 1 << 50, ..receive(1, 8) };
    assert!(!house.admin(lost).status.is_success());
    assert_eq!(house.told(1, 4), (0, 0, vec![(PAGE, 1)]));
    assert_eq!(house.told(1, 4), (0, 0, vec![]));
}

/// Ours: whether a dead engine's last report arrived is not known, so it is told again.
#[test]
fn a_successor_tells_the_last_report_again() {
    let mut house = tracked();
    house.writes_memory(1, &[(PAGE, 1)]);
    assert_eq!(house.told(1, 4).2, [(PAGE, 1)]);
    house.manager.succeed();
    house.writes_memory(1, &[(5 * PAGE, 1)]);
    assert_eq!(house.told(1, 4).2, [(PAGE, 1), (5 * PAGE, 1)]);
    assert_eq!(house.told(1, 4).2, []);
    // It had begun to track, and did not live to say so.
    house.succeeds(stop(1));
    house.set_memory(0, &[(0, 1024)]);
    for (ranges, answer) in [(vec![(0, 1024 * PAGE)], true), (vec![(0, PAGE)], false)] {
        house.manager.submit(start(1));
        house.manager.pump();
        house.managed.get_mut(&1).expect("there").memory = Some(Memory { granularity: 0, ranges });
        house.manager.host.orders.clear();
        house.manager.succeed();
        house.settle();
        let entry = house.manager.reap().expect("a completion");
        assert_eq!(entry.status.is_success(), answer, "{:x}", entry.status.code());
    }
}

/// Base 2.1, 8.1.12: a controller level reset of the management controller ends all tracking.
#[test]
fn a_reset_of_the_management_controller_ends_all_tracking() {
    let mut house = tracked();
    house.manager.disable();
    house.settle();
    assert!(house.managed.values().all(|managed| managed.memory.is_none()));
    house.manager.enable();
    house.fails(receive(1, 8), Status::INVALID_CONTROLLER_IDENTIFIER);
    house.set_memory(0, &[(0, 1024)]);
    house.succeeds(start(1));
}
