//! The deposit of a vhost-user session: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::written_now;
use state::envelope::{self, EnvelopeError};
use state::vhost_session::{
    AreaV1, InflightV1, MAGIC, RegionV1, VERSION, VhostSessionError, VhostUserV1, VringAddrV1, VringV1,
};

/// A session with every field set.
fn full() -> VhostUserV1 {
    VhostUserV1 {
        features: 1 << 34 | 1 << 32 | 1 << 30,
        protocol_features: 0x1_9229,
        status: 15,
        writeback: Some(false),
        regions: vec![RegionV1 {
            guest_address: 0x1_0000_0000,
            size: 2 << 30,
            user_address: 0x7F00_0000_0000,
            mmap_offset: 0xC000_0000,
            fd: 3,
        }],
        vrings: vec![
            VringV1::default(),
            VringV1 {
                num: 256,
                addr: Some(VringAddrV1 {
                    descriptor: 0x7F00_0000_1000,
                    used: 0x7F00_0000_3000,
                    available: 0x7F00_0000_2000,
                    log: Some(0x3000),
                }),
                base: 0x8005_8005,
                started: true,
                enabled: true,
                kick: Some(4),
                call: Some(5),
                err: Some(6),
            },
        ],
        inflight: Some(InflightV1 {
            area: AreaV1 { fd: 1 << 31, offset: 64, size: 8192 },
            num_queues: 2,
            queue_size: 256,
            own: true,
        }),
        log: Some(AreaV1 { fd: 7, offset: 4096, size: 32768 }),
        log_event: Some(8),
        backend_channel: Some(9),
        forget: true,
        // Newer than the golden file, which must read as if it were not known.
        told_sectors: None,
    }
}

#[test]
fn the_capacity_that_the_client_has_read_is_kept_and_an_older_build_skips_it() {
    let session = VhostUserV1 { told_sectors: Some(1 << 40), ..full() };
    let bytes = session.to_bytes().expect("small");
    assert_eq!(VhostUserV1::from_bytes(&bytes).expect("readable"), session);
}

#[test]
fn the_golden_deposit_of_version_1_reads_as_what_was_written() {
    let golden = written_now("vhost-session-v1.bin", &full().to_bytes().expect("small"));
    assert_eq!(VhostUserV1::from_bytes(&golden).expect("a golden file"), full());
}

#[test]
fn a_field_that_an_older_build_did_not_write_reads_as_not_known() {
    // A map with the two fields that have no default.
    let record = envelope::seal(MAGIC, VERSION, &[0xA2, 0x00, 0x05, 0x01, 0x07]).expect("small");
    let session = VhostUserV1::from_bytes(&record).expect("readable");
    assert_eq!(session, VhostUserV1 { features: 5, protocol_features: 7, ..VhostUserV1::default() });
}

#[test]
fn a_field_of_a_newer_build_is_skipped() {
    let record = envelope::seal(MAGIC, VERSION, &[0xA3, 0x00, 0x05, 0x01, 0x07, 0x18, 0x63, 0x01]);
    assert_eq!(VhostUserV1::from_bytes(&record.expect("small")).expect("readable").features, 5);
}

#[test]
fn a_newer_version_and_a_damaged_deposit_are_refused_by_name() {
    let newer = envelope::seal(MAGIC, VERSION + 1, &[0xA0]).expect("small");
    assert!(matches!(
        VhostUserV1::from_bytes(&newer),
        Err(VhostSessionError::Envelope(EnvelopeError::Newer { found: 2, newest: 1 }))
    ));
    let mut damaged = full().to_bytes().expect("small");
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(VhostUserV1::from_bytes(&damaged).is_err());
}

#[test]
fn more_rings_or_regions_than_any_session_has_are_refused() {
    let vrings = VhostUserV1 { vrings: vec![VringV1::default(); 257], ..VhostUserV1::default() };
    assert!(VhostUserV1::from_bytes(&vrings.to_bytes().expect("small")).is_err());
    let regions = VhostUserV1 { regions: vec![RegionV1::default(); 4097], ..VhostUserV1::default() };
    assert!(VhostUserV1::from_bytes(&regions.to_bytes().expect("small")).is_err());
}
