//! The state of a controller: every released version is read for ever, anything else is refused by name.

mod golden;

use golden::written_now;
use state::SsdV1;
use state::controller::{
    AdminV1, Begins, CompletionQueueV1, ControllerError, ControllerV1, ErrorV1, FeatureV1, IdentityV1, MAGIC,
    OUTLINE_BYTES_MAX, OUTLINE_MAGIC, OUTLINE_VERSION, OutlineV1, PostingV1, QueueCountersV1, RegistersV1,
    SlotV1, SubmissionQueueV1, VERSION, VectorV1, WordV1,
};
use state::envelope::EnvelopeError;
use state::ssd::CountersV1;

/// A state with every field set.
fn full() -> ControllerV1 {
    let posting = Some(PostingV1 { phase: true, entry: [7; 16] });
    let slot = SlotV1 { slot: 4, seq: 9, position: 3, command: [8; 64], posting, progress: 1 << 32 | 1 };
    ControllerV1 {
        identity: IdentityV1 {
            serial: *b"GW-1                ",
            nqn: "nqn.2026-11.example:gw-1".to_owned(),
            uuid: [1; 16],
            eui64: [2; 8],
            nguid: [3; 16],
        },
        record: SsdV1 {
            capacity_bytes: 1 << 30,
            profile: "godwit-1".to_owned(),
            laid_out: true,
            ..SsdV1::default()
        },
        registers: RegistersV1 {
            cc: 0x0046_0001,
            csts: 1,
            aqa: 0x001f_001f,
            interrupt_mask: 2,
            asq: 1 << 32,
            acq: 1 << 33,
        },
        config: vec![WordV1 { offset: 0, value: 0x6477_676f }, WordV1 { offset: 4, value: 0x0010_0406 }],
        vectors: vec![VectorV1 { vector: 1, address: 0xfee0_1000, data: 0x21, masked: false }],
        admin: AdminV1 {
            features: vec![FeatureV1 { fid: 7, value: 0x0001_0001 }],
            coalescing_disabled: vec![2],
            host_identifier: [4; 16],
            timestamp_ms: 1 << 63 | 5,
            parked_events: vec![6, 7],
            pending_events: vec![0x0004_0002],
            masked_event_types: 4,
            host_behavior: 1,
            shadow_doorbells: 4096,
            event_indices: 8192,
            changed_namespaces: 1,
            error_count: 3,
        },
        completion_queues: vec![CompletionQueueV1 {
            cqid: 1,
            base: 1 << 20,
            size: 32,
            vector: Some(1),
            tail: 5,
            phase: true,
            head: 4,
            doorbell: 4,
        }],
        submission_queues: vec![SubmissionQueueV1 {
            sqid: 1,
            base: 1 << 21,
            size: 16,
            cqid: 1,
            head: 10,
            seq: 10,
            doorbell: 11,
            slots: vec![slot, SlotV1 { slot: 5, posting: None, ..slot }],
        }],
        counters: vec![QueueCountersV1 {
            sqid: 1,
            counters: CountersV1 { reads: 1, ..CountersV1::default() },
        }],
        errors: vec![ErrorV1 { entry: [5; 64] }],
    }
}

#[test]
fn the_golden_state_of_version_1_is_read_for_ever_and_written_now() {
    let golden = written_now("controller-v1.bin", &full().to_bytes().expect("short"));
    assert_eq!(ControllerV1::from_bytes(&golden).expect("readable"), full());
}

#[test]
fn damaged_truncated_newer_and_foreign_states_are_refused_by_name() {
    let good = full().to_bytes().expect("short");
    for len in 0..good.len() {
        let found = ControllerV1::from_bytes(&good[..len]);
        assert!(matches!(found, Err(ControllerError::Envelope(EnvelopeError::Truncated { .. }))), "{len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(ControllerV1::from_bytes(&bad).is_err(), "byte {at}");
    }
    let newer = state::envelope::seal(MAGIC, VERSION + 1, b"?").expect("short");
    let text = ControllerV1::from_bytes(&newer).expect_err("refused").to_string();
    assert!(text.contains("use a newer build"), "{text}");
}

#[test]
fn the_golden_outline_is_read_for_ever_and_written_now() {
    let golden = written_now("outline-v1.bin", &full().outline().to_bytes().expect("short"));
    let begins = OutlineV1::at_head(&golden).expect("readable");
    assert_eq!(begins, Begins::Outline(full().outline(), golden.len()));
}

#[test]
fn an_outline_is_found_as_soon_as_it_is_whole_and_what_follows_it_is_the_state() {
    let (outline, state) = (full().outline().to_bytes().expect("short"), full().to_bytes().expect("short"));
    let stream = [&outline[..], &state].concat();
    for len in 0..stream.len() {
        let expected = match len < outline.len() {
            true => Begins::NotYet,
            false => Begins::Outline(full().outline(), outline.len()),
        };
        assert_eq!(OutlineV1::at_head(&stream[..len]).expect("sound"), expected, "{len}");
        assert!(ControllerV1::from_stream(&stream[..len]).is_err(), "{len}");
    }
    assert_eq!(ControllerV1::from_stream(&stream).expect("readable"), full());
    assert_eq!(ControllerV1::from_stream(&state).expect("readable"), full());
    for len in OUTLINE_MAGIC.len()..state.len() {
        assert_eq!(OutlineV1::at_head(&state[..len]).expect("sound"), Begins::Otherwise, "{len}");
    }
    assert!(ControllerV1::from_stream(&[&outline[..], &stream].concat()).is_err(), "two of them");
}

#[test]
fn damaged_long_and_newer_outlines_are_refused_by_name() {
    let good = full().outline().to_bytes().expect("short");
    for at in OUTLINE_MAGIC.len()..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(
            !matches!(OutlineV1::at_head(&bad), Ok(Begins::Outline(..) | Begins::Otherwise)),
            "byte {at}"
        );
    }
    let long = state::envelope::seal(OUTLINE_MAGIC, 1, &vec![0; OUTLINE_BYTES_MAX]).expect("short");
    // Before any of its body has come.
    let refused = OutlineV1::at_head(&long[..20]);
    assert!(matches!(refused, Err(ControllerError::Envelope(EnvelopeError::TooLong { .. }))), "{refused:?}");
    let newer = state::envelope::seal(OUTLINE_MAGIC, OUTLINE_VERSION + 1, b"?").expect("short");
    let text = OutlineV1::at_head(&newer).expect_err("refused").to_string();
    assert!(text.contains("use a newer build"), "{text}");
    let name = OutlineV1 { profile: "x".repeat(OUTLINE_BYTES_MAX), ..OutlineV1::default() };
    assert!(name.to_bytes().is_err());
}
