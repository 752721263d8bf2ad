//! Clients that lie (hostile inputs, rows 16 and 18 to 20).

use std::os::fd::{AsFd, OwnedFd};

use frontend::vhost_user::{BrokenStream, ClientFd, Header, MEM_SLOTS_MAX, PAYLOAD_BYTES_MAX};

use crate::harness::*;

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| event()).collect()
}

#[test]
fn row_16_any_other_number_of_descriptors_is_refused_and_all_are_closed() {
    let wanted: &[(u32, Vec<u8>, &[usize])] = &[
        (SET_FEATURES, u64s(&[VERSION_1]), &[0]),
        (SET_OWNER, vec![], &[0]),
        (SET_MEM_TABLE, table(&[FIRST]), &[1]),
        (SET_MEM_TABLE, table(&[]), &[0]),
        (ADD_MEM_REG, single(FIRST), &[1]),
        (REM_MEM_REG, single(FIRST), &[0, 1]),
        (SET_LOG_BASE, u64s(&[4096, 0]), &[1]),
        (SET_LOG_FD, vec![], &[1]),
        (SET_VRING_KICK, u64s(&[0]), &[1]),
        (SET_VRING_KICK, u64s(&[NO_FD]), &[0]),
        (SET_VRING_CALL, u64s(&[0]), &[1]),
        (SET_VRING_ERR, u64s(&[NO_FD]), &[0]),
        (SET_BACKEND_REQ_FD, vec![], &[1]),
        (SET_INFLIGHT_FD, [u64s(&[4096, 0]), vec![1, 0, 8, 0], u32s(&[0])].concat(), &[1]),
        (GET_VRING_BASE, u32s(&[0, 0]), &[0]),
        (GET_INFLIGHT_FD, [u64s(&[0, 0]), vec![1, 0, 8, 0], u32s(&[0])].concat(), &[0]),
        (SET_STATUS, u64s(&[1]), &[0]),
    ];
    for (request, payload, counts) in wanted {
        for count in 0..4 {
            let mut client = Client::negotiated();
            let (read, write) = rustix::pipe::pipe().expect("pipe");
            let mut given = fds(count);
            if let Some(first) = given.first_mut() {
                *first = write.try_clone().expect("dup");
            }
            drop(write);
            let outcome = client.send(*request, true, payload, given);
            if !counts.contains(&count) {
                assert!(outcome.refused.is_some(), "message {request} with {count}");
                client.held.clear();
                assert_eq!(
                    rustix::io::read(&read, &mut [0; 1]),
                    Ok(0),
                    "a descriptor of {request} stays open"
                );
            }
        }
    }
}

#[test]
fn row_16_more_descriptors_than_any_message_has_are_refused() {
    let mut client = Client::negotiated();
    let mut message = message(SET_MEM_TABLE, true, &table(&[FIRST]), vec![]);
    message.fds.push(ClientFd { id: 0, fd: memfd(REGION_BYTES) });
    message.surplus_fds = true;
    assert!(client.give(message).refused.is_some());
}

#[test]
fn row_18_tables_that_overlap_wrap_or_are_empty_are_refused_and_the_old_one_stays() {
    let other = REGION_BYTES * 4;
    let bad: &[&[RegionWords]] = &[
        &[FIRST, [0, REGION_BYTES, USER + other, 0]],
        &[FIRST, [other, REGION_BYTES, USER + REGION_BYTES - 1, 0]],
        &[[0, 0, USER, 0]],
        &[[u64::MAX, 2, USER, 0]],
        &[[0, 2, u64::MAX, 0]],
        &[[0, 1, USER, u64::MAX]],
        &[[0, u64::MAX, 1, 2]],
    ];
    let mut client = Client::running();
    let before = client.session.saved();
    for regions in bad {
        let fds = regions.iter().map(|_| memfd(REGION_BYTES)).collect();
        client.refused(SET_MEM_TABLE, &table(regions), fds);
        client.refused(ADD_MEM_REG, &single(regions[regions.len() - 1]), vec![memfd(REGION_BYTES)]);
    }
    assert_eq!(client.session.saved(), before);
    assert!(client.blk.running.contains_key(&0));
}

#[test]
fn row_18_hundreds_of_regions_end_at_the_number_of_slots() {
    let mut client = Client::negotiated();
    for index in 0..MEM_SLOTS_MAX as u64 {
        client.tell(ADD_MEM_REG, &single([index << 20, 1 << 20, USER + (index << 20), 0]), vec![event()]);
    }
    let one_more = single([1 << 40, 1 << 20, USER + (1 << 40), 0]);
    assert_eq!(client.refused(ADD_MEM_REG, &one_more, vec![event()]), ENOSPC);
    let nine: Vec<RegionWords> =
        (0..9).map(|index| [index << 20, 1 << 20, USER + (index << 20), 0]).collect();
    assert_eq!(client.refused(SET_MEM_TABLE, &table(&nine), fds(9)), EINVAL);
    let mut lying = table(&[FIRST]);
    lying[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(client.refused(SET_MEM_TABLE, &lying, fds(1)), EINVAL);
    lying[..4].copy_from_slice(&2_u32.to_le_bytes());
    assert_eq!(client.refused(SET_MEM_TABLE, &lying, fds(2)), EINVAL, "shorter than it says");
}

#[test]
fn row_18_memory_goes_only_when_no_ring_uses_it() {
    // The device asserts that it is told of each change while no ring runs.
    let mut client = Client::running();
    client.start_ring(1);
    client.calls();
    client.send(SET_MEM_TABLE, true, &table(&[]), vec![]);
    assert_eq!(client.calls(), ["stop 0", "stop 1", "memory of 0"]);
}

#[test]
fn row_19_every_other_size_of_a_payload_is_refused() {
    let sizes: &[(u32, &[usize])] = &[
        (GET_FEATURES, &[0]),
        (SET_FEATURES, &[8]),
        (SET_OWNER, &[0]),
        (RESET_OWNER, &[0]),
        (RESET_DEVICE, &[0]),
        (GET_PROTOCOL_FEATURES, &[0]),
        (SET_PROTOCOL_FEATURES, &[8]),
        (SET_VRING_NUM, &[8]),
        (SET_VRING_ADDR, &[40]),
        (SET_VRING_BASE, &[8]),
        (GET_VRING_BASE, &[8]),
        (SET_VRING_ENABLE, &[8]),
        (GET_QUEUE_NUM, &[0]),
        (GET_MAX_MEM_SLOTS, &[0]),
        (REM_MEM_REG, &[40]),
        (GET_INFLIGHT_FD, &[20, 24]),
        (SET_STATUS, &[8]),
        (GET_STATUS, &[0]),
    ];
    for (request, good) in sizes {
        for size in (0..80).filter(|size| !good.contains(size)) {
            let mut client = Client::negotiated();
            let outcome = client.send(*request, true, &vec![0; size], vec![]);
            assert!(outcome.refused.is_some(), "message {request} of {size} bytes");
        }
    }
}

#[test]
fn row_19_a_message_longer_than_any_ends_the_stream() {
    let longest = u32::try_from(PAYLOAD_BYTES_MAX).expect("small");
    assert!(Header::parse(&header(1, 1, longest)).is_ok());
    for size in [longest + 1, u32::MAX] {
        assert_eq!(Header::parse(&header(1, 1, size)), Err(BrokenStream::TooLong(size)));
    }
}

#[test]
fn row_19_another_version_ends_the_session_and_other_flags_are_refused() {
    for flags in [0, 2, 3, 8, 10] {
        let outcome = Client::negotiated().give(raw(SET_OWNER, flags, &[], vec![]));
        assert!(outcome.close && outcome.reply.is_none(), "flags {flags:#x}");
    }
    // A reply that nobody asked for, and bits without a name.
    for flags in [5, 13, 1 << 4 | 9, 1 << 31 | 9] {
        assert!(Client::negotiated().give(raw(SET_OWNER, flags, &[], vec![])).refused.is_some());
    }
}

#[test]
fn row_19_what_nobody_knows_is_refused() {
    for request in [0, 19, 20, 22, 23, 26, 33, 35, 41, 44, 1000, u32::MAX] {
        let mut client = Client::negotiated();
        assert_eq!(client.refused(request, &[], vec![]), EOPNOTSUPP);
        assert!(client.send(request, false, &[], vec![]).close, "there is no other way to tell");
    }
}

#[test]
fn row_19_a_wrong_index_reaches_no_ring() {
    for index in [u32::from(QUEUES), 255, 256, 65_536, u32::MAX] {
        let mut client = Client::negotiated();
        client.calls();
        for request in [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE] {
            assert_eq!(client.refused(request, &u32s(&[index, 1]), vec![]), EINVAL);
        }
        assert_eq!(client.refused(SET_VRING_ADDR, &good_addr(index), vec![]), EINVAL);
        for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
            assert_eq!(client.refused(request, &u64s(&[index.into()]), vec![event()]), EINVAL);
        }
        assert!(client.calls().is_empty());
        assert!(
            client.send(GET_VRING_BASE, true, &u32s(&[index, 0]), vec![]).close,
            "its answer has no form for it"
        );
    }
}

#[test]
fn row_19_rings_of_impossible_sizes_and_places_do_not_run() {
    let mut client = Client::negotiated();
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    for num in [0, 257, 32_768, 65_536, u32::MAX] {
        assert_eq!(client.refused(SET_VRING_NUM, &u32s(&[0, num]), vec![]), EINVAL);
    }
    client.tell(SET_VRING_NUM, &u32s(&[0, 64]), vec![]);
    client.tell(SET_VRING_ENABLE, &u32s(&[0, 1]), vec![]);
    client.tell(SET_VRING_ADDR, &good_addr(0), vec![]);
    client.tell(SET_VRING_KICK, &u64s(&[0]), vec![event()]);
    let (good, end) = (USER, USER + REGION_BYTES);
    let places = [
        (good + 8, good + 0x8000, good + 0x4000, EINVAL),
        (good, good + 0x8002, good + 0x4000, EINVAL),
        (good, good + 0x8000, good + 0x4001, EINVAL),
        (end - 64 * 16 + 16, good + 0x8000, good + 0x4000, EFAULT),
        (good, end - 8, good + 0x4000, EFAULT),
        (good, good + 0x8000, end - 2, EFAULT),
        (0, 0, 0, EFAULT),
        (u64::MAX - 15, good + 0x8000, good + 0x4000, EFAULT),
    ];
    for (descriptor, used, available, errno) in places {
        assert_eq!(client.refused(SET_VRING_ADDR, &addr(0, 0, descriptor, used, available), vec![]), errno);
        assert!(client.blk.running.is_empty());
    }
    assert_eq!(
        client.refused(SET_VRING_ADDR, &addr(0, 2, good, good, good), vec![]),
        EINVAL,
        "unknown flags"
    );
    client.tell(SET_VRING_ADDR, &good_addr(0), vec![]);
    assert!(client.blk.running.contains_key(&0), "and then it does");
}

#[test]
fn row_19_in_flight_regions_of_impossible_sizes_are_refused() {
    let shape = |size: u64, offset: u64, queues: u16, entries: u16| {
        let counts = [queues.to_le_bytes(), entries.to_le_bytes()].concat();
        [u64s(&[size, offset]), counts, u32s(&[0])].concat()
    };
    let mut client = Client::negotiated();
    for bad in [
        shape(0, 0, 1, 8),
        shape(1, u64::MAX, 1, 8),
        shape(4096, 0, 0, 8),
        shape(4096, 0, 5, 8),
        shape(4096, 0, 1, 0),
        shape(4096, 0, u16::MAX, u16::MAX),
    ] {
        assert_eq!(client.refused(SET_INFLIGHT_FD, &bad, vec![memfd(4096)]), EINVAL);
    }
    assert!(client.send(GET_INFLIGHT_FD, false, &shape(0, 0, 5, 8), vec![]).close);
}

#[test]
fn row_20_what_needs_something_else_first_waits_for_it_or_is_refused() {
    let mut client = Client::new();
    // Kick before anything: remembered, and nothing runs.
    assert!(client.send(SET_VRING_KICK, false, &u64s(&[0]), vec![event()]).refused.is_none());
    assert!(client.send(SET_VRING_ENABLE, false, &u32s(&[0, 1]), vec![]).refused.is_none());
    assert!(client.blk.running.is_empty());
    // The memory comes last.
    assert!(client.send(SET_VRING_NUM, false, &u32s(&[0, 64]), vec![]).refused.is_none());
    assert!(client.send(SET_VRING_ADDR, false, &good_addr(0), vec![]).refused.is_none());
    assert!(client.send(SET_MEM_TABLE, false, &table(&[FIRST]), vec![memfd(REGION_BYTES)]).refused.is_none());
    assert!(client.blk.running.contains_key(&0));
    // A log that was not agreed on.
    assert!(client.send(SET_LOG_BASE, false, &u64s(&[4096, 0]), vec![memfd(4096)]).close);
}

#[test]
fn no_descriptor_outlives_the_session() {
    let (read, write) = rustix::pipe::pipe().expect("pipe");
    let mut client = Client::running();
    client.tell(SET_LOG_FD, &[], vec![write.as_fd().try_clone_to_owned().expect("dup")]);
    drop(write);
    drop(client);
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
}
