//! DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE, byte for byte (vfio-user.rst, "Device Features").

use crate::harness::*;
use frontend::vfio_user::{Limits, State, Transition};

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const EBUSY: u32 = 16;
const STATES: [(u32, State); 6] = [
    (0, State::Error),
    (1, State::Stop),
    (2, State::Running),
    (3, State::StopCopy),
    (4, State::Resuming),
    (6, State::PreCopy),
];

fn running(state: State, prepare: impl FnOnce(&mut Machine)) -> Running {
    let mut running = Running::start_device(Limits::default(), |device| prepare(device.migrates(state)));
    let agreed = running.client.negotiate();
    let text = String::from_utf8(agreed.payload[4..].to_vec()).expect("JSON");
    assert!(text.contains(r#""migration":{"max_bitmap_size":1048576,"pgsize":4096}"#), "{text}");
    running
}

fn feature(flags: u32, data: &[u8]) -> Vec<u8> {
    [u32s(&[4096, flags]), data.to_vec()].concat()
}

#[test]
fn migration_is_announced_to_those_who_know_it_and_by_those_who_can() {
    let mut fixed = Running::start();
    let text = String::from_utf8(fixed.client.negotiate().payload[4..].to_vec()).expect("JSON");
    assert!(!text.contains("migration"), "{text}");
    let mut running = Running::start_device(Limits::default(), |device| _ = device.migrates(State::Running));
    let agreed = running.client.call(VERSION, &version(r#"{"capabilities":{"max_msg_fds":8}}"#));
    assert!(!String::from_utf8(agreed.payload[4..].to_vec()).expect("JSON").contains("migration"));
}

#[test]
fn a_probe_succeeds_exactly_for_the_methods_that_a_feature_has_and_repeats_the_request() {
    let mut running = running(State::Running, |_| {});
    for (index, get, set) in
        [(1, true, false), (2, true, true), (6, false, true), (7, false, true), (8, true, false)]
    {
        for methods in [0, GET, SET, GET | SET] {
            let payload = u32s(&[8, index | PROBE | methods]);
            let answer = running.client.call(FEATURE, &payload);
            if (methods & GET == 0 || get) && (methods & SET == 0 || set) {
                assert!(answer.is_ok(), "{index} {methods:#x}");
                assert_eq!(answer.payload, payload);
            } else {
                answer.expect_error(EINVAL);
            }
        }
    }
    for unknown in [0, 3, 4, 5, 9, 10, 11, 0xffff] {
        for methods in [PROBE, PROBE | GET, GET, SET] {
            running.client.call(FEATURE, &u32s(&[8, unknown | methods])).expect_error(ENOTTY);
        }
    }
}

#[test]
fn flags_and_sizes_that_make_no_sense_are_refused_before_the_device_hears_of_them() {
    let mut running = running(State::Running, |_| {});
    let state = |to: u32| u32s(&[to, 0]);
    let bad = [
        // Shorter than its head; argsz below it; no method; two methods; flags that mean nothing.
        u32s(&[8]),
        u32s(&[7, GET | 1]),
        u32s(&[8, 1]),
        feature(GET | SET | 2, &state(1)),
        feature(1 << 19 | GET | 2, &[]),
        feature(1 << 31 | SET | 2, &state(1)),
        // No room for the reply; no data; no such state; ERROR; those that are not offered.
        u32s(&[15, GET | 1]),
        u32s(&[15, GET | 2]),
        u32s(&[15, SET | 2, 1, 0]),
        feature(SET | 2, &u32s(&[1])),
        feature(SET | 2, &state(0)),
        feature(SET | 2, &state(5)),
        feature(SET | 2, &state(7)),
        feature(SET | 2, &state(8)),
        feature(SET | 2, &state(u32::MAX)),
        // Methods that the feature does not have.
        feature(SET | 1, &[0; 8]),
        feature(GET | 6, &[0; 16]),
        feature(SET | 8, &[0; 24]),
    ];
    for payload in bad {
        running.client.call(FEATURE, &payload).expect_error(EINVAL);
    }
    assert!(running.take_calls().is_empty());
    let flags = running.client.call(FEATURE, &u32s(&[16, GET | 1]));
    assert_eq!(flags.payload, [u32s(&[16, GET | 1]), u64s(&[5])].concat(), "STOP_COPY, PRE_COPY and no more");
}

/// `vfio_mig_get_next_state` of Linux without P2P.
#[test]
fn every_pair_of_states_is_gone_through_by_the_shortest_way_or_refused() {
    for (from_number, from) in STATES {
        for (to_number, to) in STATES {
            let mut running = running(from, |_| {});
            let answer = running.client.call(FEATURE, &feature(SET | 2, &u32s(&[to_number, 0])));
            let calls = running.take_calls();
            let expected: &[&str] = match (from, to) {
                (State::Error, _) | (_, State::Error) | (State::StopCopy, State::PreCopy) => {
                    answer.expect_error(EINVAL);
                    assert!(calls.is_empty(), "{from:?} {to:?}");
                    let now = running.client.call(FEATURE, &feature(GET | 2, &[]));
                    assert_eq!(now.u32_at(8), from_number);
                    continue;
                }
                (from, to) if from == to => &[],
                (State::PreCopy, State::StopCopy) => &["StopCopy"],
                (State::PreCopy, State::Running) => &["EndPreCopy"],
                (State::PreCopy, State::Stop) => &["EndPreCopy", "Stop"],
                (State::PreCopy, _) => &["EndPreCopy", "Stop", "Load"],
                (State::Running, State::PreCopy) => &["BeginPreCopy"],
                (State::Stop, State::PreCopy) => &["Run", "BeginPreCopy"],
                (State::Resuming, State::PreCopy) => &["EndLoad", "Run", "BeginPreCopy"],
                (State::Running, State::Stop) => &["Stop"],
                (State::Running, State::StopCopy) => &["Stop", "Save"],
                (State::Running, _) => &["Stop", "Load"],
                (State::Stop, State::Running) => &["Run"],
                (State::Stop, State::StopCopy) => &["Save"],
                (State::Stop, _) => &["Load"],
                (State::StopCopy, State::Stop) => &["EndSave"],
                (State::StopCopy, State::Running) => &["EndSave", "Run"],
                (State::StopCopy, _) => &["EndSave", "Load"],
                (State::Resuming, State::Stop) => &["EndLoad"],
                (State::Resuming, State::Running) => &["EndLoad", "Run"],
                (State::Resuming, _) => &["EndLoad", "Save"],
            };
            assert!(answer.is_ok(), "{from:?} {to:?}");
            assert_eq!(answer.payload, feature(SET | 2, &u32s(&[to_number, 0])));
            assert_eq!(calls, expected, "{from:?} {to:?}");
            let now = running.client.call(FEATURE, &u32s(&[16, GET | 2]));
            assert_eq!(now.payload, u32s(&[16, GET | 2, to_number, u32::MAX]));
        }
    }
}

#[test]
fn a_step_that_fails_ends_the_way_and_the_state_is_what_the_device_says() {
    for (left, number) in [(State::Running, 2), (State::Error, 0)] {
        let mut running = running(State::Running, |machine| machine.fails = Some((Transition::Stop, left)));
        running.client.call(FEATURE, &feature(SET | 2, &u32s(&[3, 0]))).expect_error(EBUSY);
        assert_eq!(running.take_calls(), ["Stop"]);
        assert_eq!(running.client.call(FEATURE, &feature(GET | 2, &[])).u32_at(8), number);
        assert!(running.client.call(RESET, &[]).is_ok());
        assert_eq!(running.client.call(FEATURE, &feature(GET | 2, &[])).u32_at(8), 2, "a reset leads out");
    }
}

#[test]
fn data_is_read_in_stop_copy_and_pre_copy_only_and_the_last_piece_is_shorter_than_asked_for() {
    let is_read = |state: State| matches!(state, State::StopCopy | State::PreCopy);
    for (_, state) in STATES.into_iter().filter(|(_, state)| !is_read(*state)) {
        let mut running = running(state, |machine| machine.data = vec![1; 9]);
        running.client.call(MIG_READ, &u32s(&[16, 8])).expect_error(EINVAL);
    }
    for state in [State::StopCopy, State::PreCopy] {
        let mut running = running(state, |machine| machine.data = vec![1, 2, 3, 4, 5]);
        let too_many = (1 << 20) + 1;
        for bad in [vec![8], vec![11, 4], vec![u32::MAX, u32::MAX], vec![1 << 21, too_many], vec![12, 4, 0]] {
            running.client.call(MIG_READ, &u32s(&bad)).expect_error(EINVAL);
        }
        for (size, data) in [(3, vec![1, 2, 3]), (3, vec![4, 5]), (3, vec![]), (0, vec![])] {
            let answer = running.client.call(MIG_READ, &u32s(&[64, size]));
            let bytes = u32::try_from(data.len()).expect("small");
            assert_eq!(answer.payload, [u32s(&[8 + bytes, bytes]), data].concat());
        }
    }
}

#[test]
fn data_is_written_in_resuming_only_and_its_size_is_that_of_the_message() {
    for (_, state) in STATES.into_iter().filter(|(_, state)| *state != State::Resuming) {
        let mut running = running(state, |_| {});
        running.client.call(MIG_WRITE, &[u32s(&[11, 3]), vec![1, 2, 3]].concat()).expect_error(EINVAL);
        assert!(running.take_calls().is_empty());
    }
    let mut running = running(State::Resuming, |_| {});
    for bad in [vec![8_u8, 0, 0, 0], u32s(&[8, 1]), u32s(&[7, 0]), [u32s(&[12, 3]), vec![0; 4]].concat()] {
        running.client.call(MIG_WRITE, &bad).expect_error(EINVAL);
    }
    let good = running.client.call(MIG_WRITE, &[u32s(&[11, 3]), vec![1, 2, 3]].concat());
    assert!(good.is_ok() && good.payload.is_empty());
    assert_eq!(running.take_calls(), ["data [1, 2, 3]"]);
}

fn ranges(page: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let count = u32::try_from(ranges.len()).expect("few");
    let all: Vec<u64> = ranges.iter().flat_map(|(iova, length)| [*iova, *length]).collect();
    feature(SET | 6, &[u64s(&[page]), u32s(&[count, 0]), u64s(&all)].concat())
}

#[test]
fn logging_is_started_with_sound_ranges_and_answers_with_its_own_page_size() {
    let mut running = running(State::Running, |_| {});
    let mut too_many = ranges(4096, &[(0, 4096)]);
    too_many[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let bad = [
        ranges(0, &[]),
        ranges(4095, &[]),
        ranges(4096, &[(0, 0)]),
        ranges(4096, &[(u64::MAX, 2)]),
        ranges(4096, &[(0, 4096), (2, u64::MAX)]),
        too_many,
        [ranges(4096, &[]), vec![0]].concat(),
        feature(SET | 6, &[0; 15]),
    ];
    for payload in bad {
        running.client.call(FEATURE, &payload).expect_error(EINVAL);
    }
    assert!(running.take_calls().is_empty());
    let answer = running.client.call(FEATURE, &ranges(1 << 21, &[(0x1000, 4096), (u64::MAX, 1)]));
    assert_eq!(answer.payload, ranges(4096, &[(0x1000, 4096), (u64::MAX, 1)]));
    assert_eq!(running.take_calls(), [format!("log [(4096, 4096), ({}, 1)]", u64::MAX)]);
    running.client.call(FEATURE, &ranges(4096, &[])).expect_error(EINVAL);
    assert!(running.client.call(FEATURE, &feature(SET | 7, &[])).is_ok());
    running.client.call(FEATURE, &feature(SET | 7, &[])).expect_error(EINVAL);
}

fn report(argsz: u32, iova: u64, length: u64, page: u64) -> Vec<u8> {
    [u32s(&[argsz, GET | 8]), u64s(&[iova, length, page])].concat()
}

#[test]
fn a_report_has_a_bit_for_each_page_of_its_range_and_none_beside() {
    const PAGE: u64 = 4096;
    let mut running = running(State::Running, |machine| {
        machine.logs = Some(true);
        machine.pages = vec![0, 3 * PAGE, 4 * PAGE, 70 * PAGE, 99 * PAGE, 100 * PAGE, u64::MAX - 4095];
    });
    let client = &mut running.client;
    let answer = client.call(FEATURE, &report(48, 3 * PAGE, 97 * PAGE, PAGE));
    let expected =
        [u32s(&[48, GET | 8]), u64s(&[3 * PAGE, 97 * PAGE, PAGE, 0b11, 1 << 3 | 1 << 32])].concat();
    assert_eq!(answer.payload, expected);
    let coarse = client.call(FEATURE, &report(40, 0, 128 * PAGE, 64 * PAGE));
    assert_eq!(coarse.u64_at(32), 0b11);
    let bad = [
        report(47, 3 * PAGE, 97 * PAGE, PAGE),
        report(4096, 0, 0, PAGE),
        report(4096, 1, PAGE, PAGE),
        report(4096, 0, PAGE, 2048),
        report(4096, 0, PAGE, 3 * PAGE),
        report(4096, 0, PAGE, 0),
        report(4096, u64::MAX - 4095, 4097, PAGE),
        report(u32::MAX, 0, (1 << 35) + 1, PAGE),
        report(u32::MAX, 0, u64::MAX, PAGE),
        report(4096, 0, PAGE, PAGE)[..31].to_vec(),
    ];
    for payload in bad {
        client.call(FEATURE, &payload).expect_error(EINVAL);
    }
    let largest = client.call(FEATURE, &report(u32::MAX, 0, 1 << 35, PAGE));
    assert_eq!(largest.payload.len(), 32 + (1 << 20));
    assert!(client.call(FEATURE, &feature(SET | 7, &[])).is_ok());
    client.call(FEATURE, &report(4096, 0, PAGE, PAGE)).expect_error(EINVAL);
}

#[test]
fn a_device_that_does_not_log_has_no_such_feature() {
    let mut running = Running::start_device(Limits::default(), |device| {
        device.migrates(State::Running).logs = None;
    });
    let text = String::from_utf8(running.client.negotiate().payload[4..].to_vec()).expect("JSON");
    assert!(text.contains(r#""migration":{}"#), "{text}");
    for index in [6, 7, 8] {
        running.client.call(FEATURE, &u32s(&[8, PROBE | index])).expect_error(ENOTTY);
    }
    assert!(running.client.call(FEATURE, &u32s(&[8, PROBE | 2])).is_ok());
}
