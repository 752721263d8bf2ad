//! Reserved bits are ignored, reserved values are refused (Base 2.1, 1.4.1.6; docs/decisions/0012-reserved.md): every admin
//! command, every field.

use nvme::profile::{GODWIT_1, GODWIT_2};
use spec::nvme::{Command, Status};
use state::SsdV1;
use zerocopy::transmute;

use crate::world::{DATA, World, command};

const ALL: u32 = u32::MAX;

/// A command that succeeds, and the bits of its sixteen dwords that are reserved, or ignored by a controller like this one.
struct Case {
    name: &'static str,
    command: Command,
    prepare: fn(&mut World),
    /// Dword and bits, beside those that no admin command uses.
    ignored: &'static [(usize, u32)],
}

fn nothing(_: &mut World) {}

fn queues(world: &mut World) {
    assert!(world.admin(create_cq()).status.is_success());
}

fn queue_pair(world: &mut World) {
    queues(world);
    assert!(world.admin(create_sq()).status.is_success());
}

fn empty(world: &mut World) {
    assert!(world.admin(command(0x0d, 1, [1, 0])).status.is_success());
    let blocks = 2048_u64.to_le_bytes();
    let mut data = vec![0; 4096];
    data[..8].copy_from_slice(&blocks);
    data[8..16].copy_from_slice(&blocks);
    world.set_data(&data);
}

fn controller_list(world: &mut World) {
    world.set_data(&[1, 0, 0, 0]);
}

fn create_cq() -> Command {
    let mut create = command(0x05, 0, [15 << 16 | 1, 0b11]);
    create.prp1 = 0x20_0000;
    create
}

fn create_sq() -> Command {
    let mut create = command(0x01, 0, [15 << 16 | 1, 1 << 16 | 1]);
    create.prp1 = 0x30_0000;
    create
}

fn doorbell_buffers() -> Command {
    let mut config = command(0x7c, 0, [0, 0]);
    config.prp2 = DATA + 0x1000;
    config
}

fn get_lba_status() -> Command {
    let mut get = command(0x86, 1, [0, 0]);
    (get.cdw12, get.cdw13) = (9, 0x1000_0000);
    get
}

/// The data pointer and dwords 11 to 15, of commands without data.
const NO_DATA: [(usize, u32); 4] = [(6, ALL), (7, ALL), (8, ALL), (9, ALL)];
const FROM_11: [(usize, u32); 5] = [(11, ALL), (12, ALL), (13, ALL), (14, ALL), (15, ALL)];

fn cases() -> Vec<(Case, Vec<(usize, u32)>)> {
    let case = |name, command, prepare, ignored| Case { name, command, prepare, ignored };
    let no_data = |more: &[(usize, u32)]| [&NO_DATA[..], &FROM_11[..], more].concat();
    let data = |more: &[(usize, u32)]| [&FROM_11[1..], more].concat();
    vec![
        (case("Delete I/O SQ", command(0x00, 0, [1, 0]), queue_pair, &[(10, 0xffff_0000)]), no_data(&[])),
        // QPRIO counts only with weighted arbitration, NVMSETID only with SQ Associations.
        (case("Create I/O SQ", create_sq(), queues, &[(8, ALL), (9, ALL), (11, 0xfffe)]), data(&[])),
        (
            // The SMART page has no LSP, LSI, CSI or UUID index.
            case("Get Log Page", command(0x02, ALL, [127 << 16 | 2, 0]), nothing, &[(10, 0x7f00)]),
            vec![(11, 0xffff_0000), (14, !(1 << 23)), (15, ALL)],
        ),
        (case("Delete I/O CQ", command(0x04, 0, [1, 0]), queues, &[(10, 0xffff_0000)]), no_data(&[])),
        (case("Create I/O CQ", create_cq(), nothing, &[(8, ALL), (9, ALL), (11, 0xfffc)]), data(&[])),
        // CNTID, CNSSID and CSI belong to other CNS values.
        (case("Identify", command(0x06, 0, [1, 0]), nothing, &[(10, 0xffff_ff00), (11, ALL)]), data(&[])),
        (case("Abort", command(0x08, 0, [7 << 16, 0]), nothing, &[]), no_data(&[])),
        (
            case("Set Features", command(0x09, 0, [6, 0]), nothing, &[(10, 0x7fff_ff00), (11, !1)]),
            [&NO_DATA[..], &FROM_11[1..]].concat(),
        ),
        (case("Get Features", command(0x0a, 0, [6, 0]), nothing, &[(10, 0xffff_f800)]), no_data(&[])),
        (
            case("Create namespace", command(0x0d, 0, [0, 0]), empty, &[(10, !0xf), (11, 0xff_ffff)]),
            data(&[]),
        ),
        (case("Delete namespace", command(0x0d, 1, [1, 0]), nothing, &[(10, !0xf)]), no_data(&[])),
        (case("Device Self-test", command(0x14, 1, [1, 0]), nothing, &[(10, !0xf)]), no_data(&[])),
        (
            case("Namespace Attachment", command(0x15, 1, [1, 0]), controller_list, &[(10, !0xf), (11, ALL)]),
            data(&[]),
        ),
        (case("Keep Alive", command(0x18, 0, [0, 0]), nothing, &[(10, ALL)]), no_data(&[])),
        (case("Doorbell Buffer Config", doorbell_buffers(), nothing, &[(10, ALL), (11, ALL)]), data(&[])),
        // MSET and PIL count only with metadata, LBAFU only with extended formats.
        (case("Format NVM", command(0x80, 1, [0, 0]), nothing, &[(10, 0xffff_f110)]), no_data(&[])),
        // OWPASS, OIPBP and the pattern belong to an overwrite.
        (case("Sanitize", command(0x84, 0, [2, 0]), nothing, &[(10, 0xffff_f9f0)]), no_data(&[])),
        (case("Get LBA Status", get_lba_status(), nothing, &[(13, 0x00ff_0000)]), vec![(14, ALL), (15, ALL)]),
    ]
}

/// Bits of dword 0 between FUSE and PSDT, dwords 2 and 3, and the metadata pointer: no admin command here uses them.
const COMMON: [(usize, u32); 5] = [(0, 0x3c00), (2, ALL), (3, ALL), (4, ALL), (5, ALL)];

fn with(command: Command, bits: impl IntoIterator<Item = (usize, u32)>) -> Command {
    let mut dwords: [u32; 16] = transmute!(command);
    bits.into_iter().for_each(|(dword, bits)| dwords[dword] |= bits);
    transmute!(dwords)
}

/// Base 2.1, 1.4.1.6: "the recipient of a command is not required to check reserved bits".
#[test]
fn reserved_bits_of_admin_commands_change_nothing() {
    for (case, more) in cases() {
        for bits in [vec![], COMMON.iter().chain(case.ignored).chain(&more).copied().collect()] {
            let mut world = World::ready();
            (case.prepare)(&mut world);
            let entry = world.admin(with(case.command, bits));
            assert!(entry.status.is_success(), "{}: {:?}", case.name, entry.status);
        }
    }
}

/// Base 2.1, 1.4.1.6, and 5.1.2: the one command that is answered only when something happens.
#[test]
fn reserved_bits_of_an_event_request_change_nothing() {
    let mut world = World::ready();
    let bits = COMMON.iter().chain(&NO_DATA).chain(&FROM_11).copied().chain([(10, ALL)]);
    let aer = world.submit(with(command(0x0c, 0, [0, 0]), bits));
    world.pump();
    assert!(world.reap().is_none(), "parked");
    world.submit(command(0x08, 0, [u32::from(aer) << 16, 0]));
    world.pump();
    assert_eq!(world.reap().expect("aborted").cid, aer);
}

/// Base 2.1, 1.4.1.6: reserved bits are not remembered either.
#[test]
fn reserved_bits_of_a_feature_read_back_as_zeros() {
    let defined = [
        (0x01, 0xffff_ff07),
        (0x02, 0x0000_0040),
        (0x06, 1),
        (0x08, 0x0000_ffff),
        (0x0a, 1),
        (0x0b, 0x0000_01ff),
        (0x0f, ALL),
    ];
    for (fid, bits) in defined {
        let mut world = World::ready();
        // Power states and endurance group notices that are none are values, not bits.
        let unwanted = match fid {
            0x02 => 0xbf,
            0x0b => 1 << 14,
            _ => 0,
        };
        let entry = world.admin(command(0x09, 0, [fid, ALL & !unwanted]));
        assert!(entry.status.is_success(), "{fid:#x}: {:?}", entry.status);
        assert_eq!(world.admin(command(0x0a, 0, [fid, 0])).dw0, bits, "{fid:#x}");
    }
}

/// Base 2.1, 1.4.1.6: "receipt of reserved coded values in defined fields in commands shall be reported as an error". Which
/// error: the section of each command. What is defined and not supported here is refused likewise.
#[test]
fn every_reserved_value_in_an_admin_command_gets_its_status() {
    let mut wrong: Vec<(&str, Command, Status)> = Vec::new();
    let mut add = |name, opcode, nsid, dwords: [u32; 2], status| {
        wrong.push((name, command(opcode, nsid, dwords), status))
    };
    for opcode in (0..=255).filter(|opcode| !OPCODES.contains(opcode)) {
        add("opcode", opcode, 0, [0, 0], Status::INVALID_OPCODE);
    }
    // 5.2.1, 5.2.2: queues that are not contiguous, with CAP.CQR.
    add("Create I/O CQ: PC", 0x05, 0, [15 << 16 | 1, 0b10], Status::INVALID_FIELD);
    add("Create I/O CQ: IV", 0x05, 0, [15 << 16 | 1, 0xffff_0003], Status::INVALID_INTERRUPT_VECTOR);
    for lid in (0x07..=0x11).chain(0x13..=0x80).chain(0x82..=0xff) {
        add("Get Log Page: LID", 0x02, ALL, [127 << 16 | lid, 0], Status::INVALID_LOG_PAGE);
    }
    let cns = [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x1a, 0x1b, 0x1c, 0x1f];
    for reserved in (0..=0xff).filter(|value| !cns.contains(value)) {
        add("Identify: CNS", 0x06, 1, [reserved, 0], Status::INVALID_FIELD);
    }
    for (cns, csi) in [5, 6, 7, 0x1a, 0x1b].into_iter().flat_map(|cns| (1..=0xff).map(move |csi| (cns, csi)))
    {
        add("Identify: CSI", 0x06, 1, [cns, csi << 24], Status::INVALID_FIELD);
    }
    let fids = [1, 2, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xe, 0xf, 0x16, 0x19, 0x81];
    for fid in (0..=0xff).filter(|fid| !fids.contains(fid)) {
        add("Set Features: FID", 0x09, 0, [fid, 0], Status::INVALID_FIELD);
        add("Get Features: FID", 0x0a, 0, [fid, 0], Status::INVALID_FIELD);
    }
    for sel in 4..8 {
        add("Get Features: SEL", 0x0a, 0, [sel << 8 | 6, 0], Status::INVALID_FIELD);
    }
    add("Set Features: SV", 0x09, 0, [1 << 31 | 6, 0], Status::FEATURE_NOT_SAVEABLE);
    for hint in 3..8 {
        add("Power Management: WH", 0x09, 0, [2, hint << 5], Status::INVALID_FIELD);
    }
    for state in 1..32 {
        add("Power Management: PS", 0x09, 0, [2, state], Status::INVALID_FIELD);
    }
    for sensor in 1..0xf {
        add("Temperature Threshold: TMPSEL", 0x09, 0, [4, sensor << 16 | 300], Status::INVALID_FIELD);
        add("Temperature Threshold: TMPSEL", 0x0a, 0, [4, sensor << 16], Status::INVALID_FIELD);
    }
    for kind in 2..4 {
        add("Temperature Threshold: THSEL", 0x09, 0, [4, kind << 20 | 300], Status::INVALID_FIELD);
        add("Temperature Threshold: THSEL", 0x0a, 0, [4, kind << 20], Status::INVALID_FIELD);
    }
    add("Error Recovery: DULBE", 0x09, 1, [5, 1 << 16], Status::INVALID_FIELD);
    add("Number of Queues: NSQR", 0x09, 0, [7, 0xffff], Status::INVALID_FIELD);
    add("Number of Queues: NCQR", 0x09, 0, [7, 0xffff_0000], Status::INVALID_FIELD);
    add("Interrupt Vector Configuration: IV", 0x09, 0, [9, 0xffff], Status::INVALID_FIELD);
    add("Asynchronous Event Configuration: EGEALCN", 0x09, 0, [0xb, 1 << 14], Status::INVALID_FIELD);
    add("I/O Command Set Profile: IOCSCI", 0x09, 0, [0x19, 1], Status::IO_COMMAND_SET_COMBINATION_REJECTED);
    for select in 2..16 {
        add("Namespace Management: SEL", 0x0d, 0, [select, 0], Status::INVALID_FIELD);
        add("Namespace Attachment: SEL", 0x15, 1, [select, 0], Status::INVALID_FIELD);
    }
    for csi in 1..=0xff {
        add("Namespace Management: CSI", 0x0d, 0, [0, csi << 24], Status::IO_COMMAND_SET_NOT_SUPPORTED);
    }
    for code in (0..0xf).filter(|code| ![1, 2].contains(code)) {
        add("Device Self-test: STC", 0x14, 1, [code, 0], Status::INVALID_FIELD);
    }
    for format in 2..16 {
        add("Format NVM: LBAFL", 0x80, 1, [format, 0], Status::INVALID_FORMAT);
    }
    for pi in 1..8 {
        add("Format NVM: PI", 0x80, 1, [pi << 5, 0], Status::INVALID_FORMAT);
    }
    for erase in 2..8 {
        add("Format NVM: SES", 0x80, 1, [erase << 9, 0], Status::INVALID_FIELD);
    }
    for action in [0, 4, 5, 6, 7] {
        add("Sanitize: SANACT", 0x84, 0, [action, 0], Status::INVALID_FIELD);
    }
    add("Sanitize: EMVS", 0x84, 0, [1 << 10 | 2, 0], Status::INVALID_FIELD);
    let mut world = World::ready();
    for (name, command, status) in wrong {
        let got = world.admin(command).status;
        assert_eq!((got.bare(), got.dnr()), (status, true), "{name}: {command:?}");
    }
}

/// Base 2.1, 4.1.1 and 1.4.1.6: FUSE and PSDT of dword 0, in every admin command.
#[test]
fn admin_commands_are_neither_fused_nor_do_they_use_sgls() {
    let mut world = World::ready();
    for opcode in OPCODES {
        for (fuse, psdt) in [(1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3)] {
            let mut wrong = command(opcode, 0, [0, 0]);
            wrong.cdw0.set_fuse(fuse);
            wrong.cdw0.set_psdt(psdt);
            assert_eq!(world.admin(wrong).status.bare(), Status::INVALID_FIELD, "{opcode:#x} {fuse} {psdt}");
        }
    }
}

/// NVM 1.1, 4.2.1; Base 2.1, 1.4.1.6.
#[test]
fn every_action_of_get_lba_status_but_those_of_the_profile_is_refused() {
    for (profile, supported) in [(&GODWIT_1, &[0x10, 0x11][..]), (&GODWIT_2, &[0x02, 0x10, 0x11])] {
        let mut world = World::of(profile, &SsdV1::default());
        world.enable();
        for action in (0..=0xff).filter(|action| !supported.contains(action)) {
            let mut get = get_lba_status();
            get.cdw13 = action << 24;
            assert_eq!(world.admin(get).status.bare(), Status::INVALID_FIELD, "{action:#x}");
        }
    }
}

/// Base 2.1, 5.1.12 and 1.4.1.6: the offset type counts only in pages that are lists with an index.
#[test]
fn an_index_into_a_log_page_that_has_none_is_refused() {
    let mut world = World::ready();
    for lid in [0, 1, 2, 3, 4, 5, 6, 0x12, 0x81] {
        let mut log = command(0x02, ALL, [127 << 16 | lid, 0]);
        log.cdw14 = 1 << 23;
        assert_eq!(world.admin(log).status.bare(), Status::INVALID_FIELD, "{lid:#x}");
    }
}

/// Base 2.1, 5.1.21, 5.1.25.1.14 and 1.4.1.6: data structures are read by the same rule.
#[test]
fn reserved_values_in_data_are_refused_and_reserved_bits_are_not_looked_at() {
    let create = |change: &dyn Fn(&mut [u8])| {
        let mut world = World::ready();
        empty(&mut world);
        let mut data = world.data(4096);
        change(&mut data);
        world.set_data(&data);
        world.admin(command(0x0d, 0, [0, 0])).status.bare()
    };
    assert_eq!(create(&|data| data[16..26].fill(0xff)), Status::SUCCESS);
    assert_eq!(create(&|data| data[29] = 0xf0), Status::SUCCESS, "DPS: bits 7:4");
    assert_eq!(create(&|data| data[30] = 0xfd), Status::SUCCESS, "NMIC: shared, and bits 7:2");
    assert_eq!(create(&|data| data[31..92].fill(0xff)), Status::SUCCESS);
    assert_eq!(create(&|data| data[26] = 1 << 4), Status::SUCCESS, "FLBAS: metadata settings, of none");
    for dps in 1..16 {
        assert_eq!(create(&|data| data[29] = dps), Status::INVALID_FORMAT, "DPS {dps}");
    }
    assert_eq!(create(&|data| data[30] = 2), Status::INVALID_FIELD, "NMIC: dispersed");
    for (at, value) in [(0, 2), (0, 0xff), (1, 2), (2, 2), (3, 0xff)] {
        let mut world = World::ready();
        let mut data = [0; 512];
        data[at] = value;
        world.set_data(&data);
        let status = world.admin(command(0x09, 0, [0x16, 0])).status.bare();
        assert_eq!(status, Status::INVALID_FIELD, "Host Behavior Support, byte {at} = {value}");
    }
    let mut world = World::ready();
    let mut data = [0xff; 512];
    data[..6].fill(0);
    data[0] = 1;
    world.set_data(&data);
    assert!(world.admin(command(0x09, 0, [0x16, 0])).status.is_success());
}

const OPCODES: [u8; 18] = [
    0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x0d, 0x14, 0x15, 0x18, 0x7c, 0x80, 0x84,
    0x86,
];
