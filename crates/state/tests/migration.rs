//! The journal of a migration: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::written_now;
use state::envelope::{self, EnvelopeError};
use state::migration::{
    DestinationStepV1, DestinationV1, LimitsV1, MAGIC, MigrationError, MigrationV1, RateV1, SourceStepV1,
    SourceV1, VERSION,
};

fn source() -> MigrationV1 {
    MigrationV1 {
        ssd: *b"an ssd's uuid 16",
        peer: "host-b.example".to_owned(),
        migration: [0xa5; 16],
        epoch: 8,
        round: 3,
        source: Some(SourceV1 { held: 7, step: SourceStepV1::Granted }),
        destination: None,
        keep: None,
        closed: None,
        wiped: None,
        hypervisor: None,
        limits: None,
    }
}

fn destination() -> MigrationV1 {
    let superseded = DestinationV1 { step: DestinationStepV1::Superseded, fenced_by: Some(9) };
    MigrationV1 { peer: "host-a".to_owned(), source: None, destination: Some(superseded), ..source() }
}

/// Of an ssd that came with limits.
fn limited() -> MigrationV1 {
    let rate = |per_second, burst| Some(RateV1 { per_second, burst });
    let limits = LimitsV1 {
        weight: 200,
        iops: rate(1500, Some(30_000)),
        read_iops: None,
        write_iops: rate(1000, None),
        bandwidth: rate(90 << 20, None),
        read_bandwidth: None,
        write_bandwidth: rate(1 << 40, Some(1 << 50)),
    };
    let owned = DestinationV1 { step: DestinationStepV1::Owned, fenced_by: None };
    MigrationV1 { source: None, destination: Some(owned), limits: Some(limits), ..source() }
}

fn contradicts(record: &MigrationV1) -> bool {
    matches!(record.to_bytes(), Err(MigrationError::Contradiction(_)))
}

#[test]
fn the_golden_journals_of_version_1_are_read_for_ever_and_written_now() {
    for (name, record) in [
        ("migration-source-v1.bin", source()),
        ("migration-destination-v1.bin", destination()),
        ("migration-limits-v1.bin", limited()),
    ] {
        let golden = written_now(name, &record.to_bytes().expect("sound"));
        assert_eq!(MigrationV1::from_bytes(&golden).expect("readable"), record, "{name}");
    }
}

#[test]
fn damaged_truncated_newer_and_foreign_journals_are_refused_by_name() {
    let good = source().to_bytes().expect("sound");
    for len in 0..good.len() {
        let found = MigrationV1::from_bytes(&good[..len]);
        assert!(matches!(found, Err(MigrationError::Envelope(EnvelopeError::Truncated { .. }))), "{len}");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(MigrationV1::from_bytes(&bad).is_err(), "bit {bit}");
    }
    let newer = envelope::seal(MAGIC, VERSION + 1, b"?").expect("short");
    let text = MigrationV1::from_bytes(&newer).expect_err("refused").to_string();
    assert!(text.contains("use a newer build"), "{text}");
}

#[test]
fn a_step_that_nobody_knows_and_bytes_behind_the_fields_are_refused_whatever_their_checksum_says() {
    let good = source().to_bytes().expect("sound");
    let body = &good[envelope::HEADER_BYTES..];
    // The last field is {0: held, 1: step}, so its last byte is the step.
    let unknown = [&body[..body.len() - 1], &[8]].concat();
    let longer = [body, &[0xf6]].concat();
    for body in [unknown, longer, Vec::new(), vec![0xa0], vec![0xf6; 5000]] {
        let sealed = envelope::seal(MAGIC, VERSION, &body).expect("short");
        assert!(MigrationV1::from_bytes(&sealed).is_err(), "{body:?}");
    }
}

#[test]
fn keys_that_a_later_build_added_are_skipped() {
    let good = source().to_bytes().expect("sound");
    let body = &good[envelope::HEADER_BYTES..];
    assert_eq!(body[0], 0xa6, "a map of six");
    let more = [&[0xa7], &body[1..], &[0x18, 99, 0x82, 1, 2]].concat();
    let sealed = envelope::seal(MAGIC, VERSION, &more).expect("short");
    assert_eq!(MigrationV1::from_bytes(&sealed).expect("readable"), source());
}

#[test]
fn a_journal_that_contradicts_itself_says_nothing_of_who_owns() {
    let both = MigrationV1 { destination: destination().destination, ..source() };
    let neither = MigrationV1 { source: None, ..source() };
    assert!(contradicts(&both) && contradicts(&neither));
    let held = |held, step| MigrationV1 { source: Some(SourceV1 { held, step }), ..source() };
    assert!(contradicts(&held(8, SourceStepV1::Offered)), "owned by what it pledged");
    assert!(
        contradicts(&held(8, SourceStepV1::TakenBack))
            && contradicts(&held(10, SourceStepV1::TakenBackHeard))
    );
    assert!(!contradicts(&held(9, SourceStepV1::TakenBack)));
    let fenced = |step, fenced_by| MigrationV1 {
        source: None,
        destination: Some(DestinationV1 { step, fenced_by }),
        ..source()
    };
    assert!(contradicts(&fenced(DestinationStepV1::Owned, Some(9))));
    assert!(contradicts(&fenced(DestinationStepV1::Superseded, None)));
    assert!(contradicts(&fenced(DestinationStepV1::Superseded, Some(8))));
    for epoch in [0, u64::MAX] {
        assert!(contradicts(&MigrationV1 { epoch, ..destination() }));
    }
    for peer in [String::new(), "a\nb".to_owned(), "x".repeat(256)] {
        assert!(contradicts(&MigrationV1 { peer, ..source() }));
    }
    assert!(contradicts(&MigrationV1 { round: 0, ..source() }));
}

#[test]
fn any_changed_byte_with_a_good_checksum_is_refused_or_read_as_what_is_written_again() {
    for record in [source(), destination(), limited()] {
        let good = record.to_bytes().expect("sound");
        let body = &good[envelope::HEADER_BYTES..];
        for at in 0..body.len() {
            for byte in 0..=u8::MAX {
                let changed = [&body[..at], &[byte], &body[at + 1..]].concat();
                let sealed = envelope::seal(MAGIC, VERSION, &changed).expect("short");
                let Ok(read) = MigrationV1::from_bytes(&sealed) else { continue };
                let again = read.to_bytes().expect("what is read can be written");
                assert_eq!(MigrationV1::from_bytes(&again).expect("our own"), read, "byte {at} as {byte}");
            }
        }
    }
}
