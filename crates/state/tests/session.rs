//! The deposit of a session: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::written_now;
use state::envelope::EnvelopeError;
use state::session::{
    AheadV1, DmaMapV1, LoggedRangeV1, LoggingV1, MAGIC, MigrationV1, NegotiatedV1, SessionError, VERSION,
    VfioUserV1,
};

/// A session with every field set.
fn full() -> VfioUserV1 {
    VfioUserV1 {
        negotiated: Some(NegotiatedV1 {
            client_takes_fds: true,
            data_bytes_max: 1 << 20,
            write_multiple: true,
        }),
        maps: vec![
            DmaMapV1 { iova: 0, size: 1 << 30, read: true, write: true, fd: Some(3), offset: 1 << 40 },
            DmaMapV1 { iova: 1 << 32, size: 4096, read: true, write: false, fd: None, offset: 0 },
        ],
        intx: Some(7),
        intx_masked: true,
        msix: vec![9, 0, 10, 9],
        migration: None,
        made: None,
        logging: None,
        ahead: None,
    }
}

/// As [`full`], of a device that is being saved.
fn stopped() -> VfioUserV1 {
    let migration = MigrationV1 { state: 3, fd: Some(1 << 31), len_bytes: 1 << 20, read_bytes: 4096 };
    VfioUserV1 { migration: Some(migration), made: Some(1), ..full() }
}

/// As [`stopped`], with a log.
fn logged() -> VfioUserV1 {
    let ranges = vec![
        LoggedRangeV1 { iova: 1 << 32, size: 1 << 30 },
        LoggedRangeV1 { iova: 0, size: 0xa_0000 },
        LoggedRangeV1 { iova: u64::MAX - 0xfff, size: 0x1000 },
    ];
    VfioUserV1 { logging: Some(LoggingV1 { fd: 1 << 31 | 1, ranges }), made: Some(2), ..stopped() }
}

/// As [`full`], with a log and in PRE_COPY.
fn ahead() -> VfioUserV1 {
    let ahead = AheadV1 { fd: 1 << 31 | 2, len_bytes: 120, read_bytes: 60 };
    VfioUserV1 { ahead: Some(ahead), made: Some(3), migration: None, ..logged() }
}

#[test]
fn the_golden_session_in_pre_copy_is_read_for_ever_and_written_now() {
    let golden = written_now("session-ahead.bin", &ahead().to_bytes().expect("short"));
    assert_eq!(VfioUserV1::from_bytes(&golden).expect("readable"), ahead());
}

/// A client must not keep a host from the release before by a state that costs it nothing.
#[test]
fn a_build_that_knows_no_pre_copy_takes_a_session_in_it_up_as_one_that_runs() {
    for (session, version) in [(ahead(), 3), (VfioUserV1 { logging: None, ..ahead() }, 1)] {
        let bytes = session.to_bytes().expect("short");
        assert!(state::envelope::open(MAGIC, version, &bytes).is_ok());
    }
}

#[test]
fn the_golden_session_of_version_3_is_read_for_ever_and_written_now() {
    let golden = written_now("session-v3.bin", &logged().to_bytes().expect("short"));
    assert_eq!(VfioUserV1::from_bytes(&golden).expect("readable"), logged());
}

/// It would write memory that nobody copies.
#[test]
fn a_build_that_knows_no_log_refuses_a_session_that_has_one() {
    for session in [logged(), VfioUserV1 { migration: None, ..logged() }] {
        let opened = state::envelope::open(MAGIC, 2, &session.to_bytes().expect("short")).map(drop);
        assert_eq!(opened, Err(EnvelopeError::Newer { found: 3, newest: 2 }));
    }
}

#[test]
fn a_session_with_more_ranges_than_a_log_may_have_is_refused() {
    let ranges = vec![LoggedRangeV1 { iova: 0, size: 4096 }; 1025];
    let bytes =
        VfioUserV1 { logging: Some(LoggingV1 { fd: 1, ranges }), ..full() }.to_bytes().expect("short");
    assert!(matches!(VfioUserV1::from_bytes(&bytes), Err(SessionError::Body(_))));
}

#[test]
fn the_golden_session_of_version_2_is_read_for_ever_and_written_now() {
    let golden = written_now("session-v2.bin", &stopped().to_bytes().expect("short"));
    assert_eq!(VfioUserV1::from_bytes(&golden).expect("readable"), stopped());
}

/// It would let the device run, beside the one that the state went to.
#[test]
fn a_build_that_knows_no_migration_refuses_a_session_whose_device_is_stopped() {
    let newest = |bytes: &[u8]| state::envelope::open(MAGIC, 1, bytes).map(|(version, _)| version);
    assert_eq!(newest(&full().to_bytes().expect("short")), Ok(1));
    assert_eq!(
        newest(&stopped().to_bytes().expect("short")),
        Err(EnvelopeError::Newer { found: 2, newest: 1 })
    );
}

#[test]
fn the_golden_session_of_version_1_is_read_for_ever_and_written_now() {
    let golden = written_now("session-v1.bin", &full().to_bytes().expect("short"));
    assert_eq!(VfioUserV1::from_bytes(&golden).expect("readable"), full());
}

#[test]
fn every_descriptor_is_named_once() {
    assert_eq!(full().descriptors(), [3, 7, 8, 9]);
    assert_eq!(stopped().descriptors(), [3, 7, 8, 9, 1 << 31]);
    assert_eq!(logged().descriptors(), [3, 7, 8, 9, 1 << 31, 1 << 31 | 1]);
    assert_eq!(ahead().descriptors(), [3, 7, 8, 9, 1 << 31 | 1, 1 << 31 | 2]);
}

#[test]
fn fields_that_are_missing_have_defaults_and_later_ones_are_skipped() {
    // {} and {99: [1, 2]}.
    for body in [&[0xa0][..], &[0xa1, 0x18, 99, 0x82, 1, 2]] {
        let bytes = state::envelope::seal(MAGIC, 1, body).expect("short");
        assert_eq!(VfioUserV1::from_bytes(&bytes).expect("readable"), VfioUserV1::default());
    }
}

#[test]
fn damaged_truncated_newer_and_foreign_sessions_are_refused_by_name() {
    let good = full().to_bytes().expect("short");
    for len in 0..good.len() {
        let found = VfioUserV1::from_bytes(&good[..len]);
        assert!(matches!(found, Err(SessionError::Envelope(EnvelopeError::Truncated { .. }))), "{len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(VfioUserV1::from_bytes(&bad).is_err(), "byte {at}");
    }
    let newer = state::envelope::seal(MAGIC, VERSION + 1, b"?").expect("short");
    let text = VfioUserV1::from_bytes(&newer).expect_err("refused").to_string();
    assert!(text.contains("use a newer build"), "{text}");
}
