//! The record of an ssd: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::{golden, written_now};
use state::envelope::EnvelopeError;
use state::ssd::{
    CountersV1, MarkV1, NamespaceV1, RangeV1, SanitizeV1, SelfTestV1, SsdError, SsdV1, TotalsV1, VERSION,
};

/// A record with every field set.
fn full() -> SsdV1 {
    SsdV1 {
        capacity_bytes: 10 << 30,
        profile: "godwit-1".to_owned(),
        laid_out: true,
        namespaces: vec![NamespaceV1 {
            nsid: 3,
            start_bytes: 5 << 20,
            reserved_bytes: 2 << 30,
            blocks: 524_288,
            lba_shift: 12,
            attached: true,
            eui64: [1, 2, 3, 4, 5, 6, 7, 8],
            nguid: [9; 16],
            uuid: [10; 16],
            marks: vec![MarkV1 { start_block: 7, blocks: 2 }],
            shared: true,
        }],
        to_wipe: vec![RangeV1 { start_bytes: 3 << 30, len_bytes: 1 << 20 }],
        sanitize: SanitizeV1 {
            status: 2,
            cdw10: 0x23,
            pattern: 0xdead_beef,
            passes_done: 1,
            done_bytes: 4096,
            erased: true,
            left: true,
            writes_at_end: 5,
        },
        totals: TotalsV1 {
            power_cycles: 11,
            unsafe_shutdowns: 12,
            power_on_seconds: 13,
            media_errors: 14,
            error_log_entries: 15,
            base: CountersV1 { reads: 1, writes: 2, read_sectors: 3, write_sectors: 4, other_changes: 8 },
            live: CountersV1 {
                reads: 5,
                writes: 6,
                read_sectors: 7,
                write_sectors: u64::MAX,
                other_changes: 9,
            },
        },
        clean: true,
        self_tests: vec![SelfTestV1 {
            code: 1,
            result: 7,
            segment: 1,
            power_on_hours: 9,
            nsid: 3,
            failing_lba: Some(77),
        }],
        created: 4,
        key_check: Some([0x5A; 16]),
    }
}

#[test]
fn the_golden_record_of_version_1_is_read_for_ever_and_written_now() {
    let golden = written_now("ssd-v1.bin", &full().to_bytes().expect("short"));
    assert_eq!(SsdV1::from_bytes(&golden).expect("readable"), full());
}

/// Written before changes other than writes were counted.
#[test]
fn a_record_of_an_older_build_has_none_of_the_counters_that_came_later() {
    let mut expected = full();
    (expected.totals.base.other_changes, expected.totals.live.other_changes) = (0, 0);
    expected.key_check = None;
    let golden = golden("ssd-v1-before-other-changes.bin");
    assert_eq!(SsdV1::from_bytes(&golden).expect("readable"), expected);
}

/// Written before data could be encrypted.
#[test]
fn a_record_of_a_build_without_encryption_is_of_data_in_the_clear() {
    let golden = golden("ssd-v1-before-keys.bin");
    assert_eq!(SsdV1::from_bytes(&golden).expect("readable"), SsdV1 { key_check: None, ..full() });
}

#[test]
fn a_record_with_the_first_two_fields_alone_has_defaults_for_the_others() {
    // A map of two entries: {0: 4096, 1: "godwit-1"}.
    let body = [&[0xa2, 0x00, 0x19, 0x10, 0x00, 0x01, 0x68][..], b"godwit-1"].concat();
    let bytes = state::envelope::seal(state::ssd::MAGIC, 1, &body).expect("short");
    let record = SsdV1::from_bytes(&bytes).expect("readable");
    assert_eq!(record, SsdV1 { capacity_bytes: 4096, profile: "godwit-1".to_owned(), ..SsdV1::default() });
}

#[test]
fn fields_that_a_later_build_added_are_skipped() {
    // {0: 4096, 1: "godwit-1", 99: [1, 2]}.
    let body =
        [&[0xa3, 0x00, 0x19, 0x10, 0x00, 0x01, 0x68][..], b"godwit-1", &[0x18, 99, 0x82, 1, 2]].concat();
    let bytes = state::envelope::seal(state::ssd::MAGIC, 1, &body).expect("short");
    assert_eq!(SsdV1::from_bytes(&bytes).expect("readable").capacity_bytes, 4096);
}

#[test]
fn damaged_truncated_newer_and_foreign_records_are_refused_by_name() {
    let good = full().to_bytes().expect("short");
    for len in 0..good.len() {
        let found = SsdV1::from_bytes(&good[..len]);
        assert!(matches!(found, Err(SsdError::Envelope(EnvelopeError::Truncated { .. }))), "{len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(SsdV1::from_bytes(&bad).is_err(), "byte {at}");
    }
    let newer = state::envelope::seal(state::ssd::MAGIC, VERSION + 1, b"?").expect("short");
    let text = SsdV1::from_bytes(&newer).expect_err("refused").to_string();
    assert!(text.contains("use a newer build"), "{text}");
    let foreign = state::envelope::seal(*b"OTHERKND", 1, b"?").expect("short");
    assert!(SsdV1::from_bytes(&foreign).is_err());
    let nonsense = state::envelope::seal(state::ssd::MAGIC, 1, b"\xff\xff").expect("short");
    assert!(matches!(SsdV1::from_bytes(&nonsense), Err(SsdError::Body(_))));
}
