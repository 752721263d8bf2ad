//! The record of a keeper: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::written_now;
use state::envelope::{self, EnvelopeError};
use state::keeper::{
    EndV1, EngineV1, Fd, KeeperError, KeeperV1, KeptSessionV1, KeptSsdV1, ListenerV1, MAGIC, ParcelV1,
    PendingV1, ProbationV1, ProgramV1, StandingV1, StreamV1, VERSION, read_all,
};

fn program(fd: u32) -> ProgramV1 {
    ProgramV1 { fd: Fd(fd), path: "/usr/bin/godwitd".to_owned() }
}

/// A keeper with every field set.
fn full() -> KeeperV1 {
    let listener = |fd, path: &str| Some(ListenerV1 { fd: Fd(fd), path: path.to_owned() });
    KeeperV1 {
        generation: 7,
        release: "0.1.0".to_owned(),
        config_path: "/etc/godwit/godwit.toml".to_owned(),
        config_text: "[[ssd]]".to_owned(),
        stats: Some("/run/godwit/stats".to_owned()),
        console: listener(1, "/run/godwit/godwitd.sock"),
        ssds: vec![KeptSsdV1 {
            name: "a".to_owned(),
            listener: listener(2, "/run/godwit/a.sock"),
            memory: vec![(0, Fd(3)), (1, Fd(4))],
            record: Some(vec![1, 2, 3]),
            quarantined: Some("three crashes".to_owned()),
            fault: Some("slow".to_owned()),
            cell: Some(Fd(5)),
            number: None,
            standing: None,
        }],
        next_session: 9,
        last_engine: 3,
        engine: Some(EngineV1 {
            generation: 3,
            pid: 4711,
            pidfd: Fd(6),
            link: Some(Fd(7)),
            blame: Fd(8),
            program: program(9),
            rings: vec![(12, 40), (13, 41)],
            release: "0.1.0".to_owned(),
            link_version: 1,
            ready_ns: 1_000_000,
        }),
        program: Some(program(9)),
        probation: Some(ProbationV1 { former: program(10), until_ns: 5, asker: Some(Fd(11)) }),
        ends: vec![EndV1 {
            generation: 2,
            unix_s: 1_700_000_000,
            reason: "killed by SIGKILL".to_owned(),
            planned: true,
            blackout_us: Some(1234),
            replayed: 5,
            reposted: 6,
            fenced: 7,
        }],
        crashes: 1,
        handovers: 2,
        has_served: true,
        asker: Some(Fd(12)),
        stdin: Some(Fd(13)),
        left_ns: 77,
        old_rings: vec![42],
        shelf: vec!["godwit-1-root".to_owned()],
        next_ssd: None,
        file_text: None,
    }
}

/// With what version 2 added, and an ssd whose number is not its place.
fn full_v2() -> KeeperV1 {
    let mut keeper = KeeperV1 { next_ssd: Some(12), file_text: Some("# before".to_owned()), ..full() };
    keeper.ssds[0].number = Some(11);
    keeper
}

/// A session with every field set.
fn session() -> KeptSessionV1 {
    let parcel = |bytes: &[u8], fds: &[u32]| ParcelV1 {
        bytes: bytes.to_vec(),
        fds: fds.iter().copied().map(Fd).collect(),
    };
    let stream = |fd| StreamV1 {
        fd: Fd(fd),
        begun: parcel(b"half", &[20]),
        surplus_fds: true,
        waiting: vec![parcel(b"reply", &[21, 22])],
        sent: 3,
        ending: 1,
        tally: Some(Fd(23)),
        came_bytes: 1000,
        went_bytes: 2000,
    };
    KeptSessionV1 {
        id: 5,
        door: 1,
        client: Some(stream(14)),
        link: Some(stream(15)),
        unanswered: vec![PendingV1 {
            seq: 8,
            frame: parcel(b"frame", &[16]),
            fd_first: 4,
            surplus_fds: true,
        }],
        next_seq: 9,
        next_fd: 5,
        deposit: Some(vec![9; 10]),
        kept: vec![(0, Fd(17)), (3, Fd(18))],
        requests: vec![(1, Some(2)), (3, None)],
        next_request: 4,
        answered: 8,
        ssd: "a".to_owned(),
    }
}

fn both() -> Vec<u8> {
    [full().to_bytes().expect("small"), session().to_bytes().expect("small")].concat()
}

#[test]
fn the_golden_record_of_version_1_reads_as_what_was_written() {
    let golden = written_now("keeper-v1.bin", &both());
    assert_eq!(read_all(&golden).expect("a golden file"), (full(), vec![session()]));
}

#[test]
fn the_golden_record_of_version_2_reads_as_what_was_written() {
    let golden = written_now("keeper-v2.bin", &full_v2().to_bytes().expect("small"));
    assert_eq!(KeeperV1::from_bytes(&golden).expect("a golden file"), full_v2());
}

#[test]
fn why_an_ssd_is_not_served_here_is_carried_to_the_next_keeper() {
    let mut keeper = full();
    let (word, why) = ("gone".to_owned(), "it is at host-b".to_owned());
    keeper.ssds[0].standing = Some(StandingV1 { word, why, holds: true });
    assert_eq!(KeeperV1::from_bytes(&keeper.to_bytes().expect("small")).expect("ours"), keeper);
}

#[test]
fn numbers_that_are_places_are_written_so_that_a_build_from_before_can_go_on() {
    let version = |keeper: &KeeperV1| {
        let bytes = keeper.to_bytes().expect("small");
        envelope::open(MAGIC, VERSION, &bytes).expect("whole").0
    };
    let mut keeper = full();
    keeper.ssds[0].number = Some(0);
    assert_eq!(version(&keeper), 1);
    keeper.ssds[0].number = Some(1);
    assert_eq!(version(&keeper), 2);
}

#[test]
fn any_number_of_sessions_follows_a_keeper() {
    let keeper = full().to_bytes().expect("small");
    assert_eq!(read_all(&keeper).expect("alone"), (full(), vec![]));
    let three = [&both()[..], &session().to_bytes().expect("small"), &session().to_bytes().expect("small")];
    assert_eq!(read_all(&three.concat()).expect("three").1.len(), 3);
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = both();
    let whole = full().to_bytes().expect("small").len();
    for len in (0..bytes.len()).filter(|len| *len != whole) {
        assert!(read_all(&bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read_all(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_field_of_a_newer_build_is_skipped_and_a_newer_version_is_refused_by_name() {
    let body = minicbor::to_vec(full()).expect("small");
    // The map's head, one entry more, and the entry {99: 1} at its end.
    let mut longer = body;
    assert_eq!(longer[0], 0xA0 + 21, "a map of 21");
    longer[0] += 1;
    longer.extend([0x18, 0x63, 0x01]);
    let sealed = envelope::seal(MAGIC, VERSION, &longer).expect("small");
    assert_eq!(KeeperV1::from_bytes(&sealed).expect("readable"), full());
    let newer = envelope::seal(MAGIC, VERSION + 1, &[0xA0]).expect("small");
    let error = KeeperV1::from_bytes(&newer);
    assert!(matches!(error, Err(KeeperError::Envelope(EnvelopeError::Newer { found: 3, newest: 2 }))));
}
