//! Each message, as clients send it.

use frontend::vhost_user::{DEVICE_FDS, Errno, F_RING_PACKED, MEM_SLOTS_MAX};

use crate::harness::*;

#[test]
fn a_client_that_asks_first_learns_what_there_is() {
    let mut client = Client::new();
    let features = u64_of(&client.ask(GET_FEATURES, &[]));
    assert_eq!(features, VERSION_1 | PROTOCOL | LOG_ALL | F_RING_PACKED | 1 << 29 | 1 << 28 | 1 << 12);
    assert_eq!(u64_of(&client.ask(GET_PROTOCOL_FEATURES, &[])), ALL_PROTOCOL);
    assert_eq!(u64_of(&client.ask(GET_QUEUE_NUM, &[])), u64::from(QUEUES));
    assert_eq!(u64_of(&client.ask(GET_MAX_MEM_SLOTS, &[])), MEM_SLOTS_MAX as u64);
}

#[test]
fn an_acknowledgement_comes_when_it_was_agreed_on_and_asked_for() {
    let mut client = Client::new();
    assert!(client.send(SET_OWNER, true, &[], vec![]).reply.is_none(), "not agreed on");
    let outcome = client.send(SET_PROTOCOL_FEATURES, false, &u64s(&[REPLY_ACK]), vec![]);
    assert!(outcome.reply.is_none(), "not asked for");
    let outcome = client.send(SET_OWNER, true, &[], vec![]);
    assert_eq!(u64_of(&payload_of(&outcome)), 0);
    // "For the message types that already solicit a reply, need_reply brings no behavioural change."
    let outcome = client.send(GET_QUEUE_NUM, true, &[], vec![]);
    assert_eq!(u64_of(&payload_of(&outcome)), u64::from(QUEUES));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut client = Client::negotiated();
    assert_eq!(client.refused(SET_FEATURES, &u64s(&[1 << 63]), vec![]), EINVAL);
    // In-band notifications.
    assert_eq!(client.refused(SET_PROTOCOL_FEATURES, &u64s(&[1 << 14]), vec![]), EINVAL);
}

#[test]
fn the_configuration_is_as_long_as_the_client_wants_it() {
    let mut client = Client::negotiated();
    // SPDK asks for 256 bytes and wants all of them back; QEMU for those it knows.
    for (offset, size) in [(0_u32, 256_u32), (0, 60), (20, 4), (96, 160), (255, 1), (0, 0)] {
        let request = [u32s(&[offset, size, 0]), vec![0; size as usize]].concat();
        let answer = client.ask(GET_CONFIG, &request);
        assert_eq!(answer[..12], u32s(&[offset, size, 0]));
        let wanted = offset..offset + size;
        let expected = wanted.map(|at| if at < 96 { u8::try_from(at + 1).expect("small") } else { 0 });
        assert_eq!(answer[12..], expected.collect::<Vec<u8>>());
        // Without a buffer in the request.
        assert_eq!(client.ask(GET_CONFIG, &u32s(&[offset, size, 0])), answer);
    }
}

#[test]
fn a_configuration_request_that_cannot_be_answered_is_answered_with_nothing_and_the_session_goes_on() {
    let mut client = Client::new();
    for (offset, size) in [(0_u32, 257_u32), (256, 1), (u32::MAX, u32::MAX), (1, 256)] {
        let outcome = client.send(GET_CONFIG, false, &u32s(&[offset, size, 0]), vec![]);
        assert!(payload_of(&outcome).is_empty() && !outcome.close);
    }
    let outcome = client.send(GET_CONFIG, false, &u32s(&[0, 8, 0, 1]), vec![]);
    assert!(payload_of(&outcome).is_empty() && !outcome.close, "4 bytes where 8 belong");
}

#[test]
fn only_the_write_back_byte_of_the_configuration_can_be_written() {
    let mut client = Client::negotiated();
    let write = |offset: u32, data: &[u8], flags: u32| {
        [u32s(&[offset, u32::try_from(data.len()).expect("short"), flags]), data.to_vec()].concat()
    };
    client.tell(SET_CONFIG, &write(32, &[0], 0), vec![]);
    assert!(client.calls().contains(&"writeback false".to_owned()));
    assert_eq!(client.session.saved().writeback, Some(false));
    for bad in [write(0, &[0], 0), write(32, &[2], 0), write(32, &[0, 0], 0), write(0, &[0; 96], 1)] {
        assert_eq!(client.refused(SET_CONFIG, &bad, vec![]), EINVAL);
    }
}

#[test]
fn memory_comes_in_one_table_or_region_by_region_and_goes_again() {
    let mut client = Client::negotiated();
    client.calls();
    let second = [REGION_BYTES, REGION_BYTES, USER + (4 << 20), 0x1000];
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    client.tell(ADD_MEM_REG, &single(second), vec![memfd(REGION_BYTES)]);
    client.tell(REM_MEM_REG, &single(FIRST), vec![]);
    // "The back-end MAY accept messages with one file descriptor."
    client.tell(REM_MEM_REG, &single([second[0], second[1], second[2], 0]), vec![event()]);
    assert_eq!(
        client.calls(),
        ["memory of 1", "add 0x100000+0x100000 at 0x1000", "remove 0x0+0x100000", "remove 0x100000+0x100000"]
    );
    assert_eq!(client.refused(REM_MEM_REG, &single(FIRST), vec![]), ENOENT);
    client.tell(SET_MEM_TABLE, &table(&[]), vec![]);
}

#[test]
fn running_rings_stand_still_while_memory_changes_and_go_on_where_they_were() {
    let mut client = Client::running();
    client.start_ring(1);
    client.blk.positions.insert(0, 17);
    client.calls();
    let second = [REGION_BYTES, REGION_BYTES, USER + REGION_BYTES, 0];
    client.tell(ADD_MEM_REG, &single(second), vec![memfd(REGION_BYTES)]);
    assert_eq!(
        client.calls(),
        ["stop 0", "stop 1", "add 0x100000+0x100000 at 0x0", "start 0 at 0x11", "start 1 at 0x0"]
    );
}

#[test]
fn a_ring_whose_memory_is_taken_stops_and_the_client_is_told() {
    let mut client = Client::running();
    assert_eq!(client.refused(REM_MEM_REG, &single(FIRST), vec![]), EFAULT);
    assert!(client.blk.running.is_empty() && client.blk.memory.is_empty());
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    assert!(client.blk.running.contains_key(&0), "it goes on when the memory is back");
}

#[test]
fn a_ring_that_is_asked_for_its_base_stops_and_needs_a_new_kick() {
    let mut client = Client::running();
    client.blk.positions.insert(0, 42);
    assert_eq!(client.ask(GET_VRING_BASE, &u32s(&[0, 0])), u32s(&[0, 42]));
    assert!(client.blk.running.is_empty());
    assert_eq!(client.ask(GET_VRING_BASE, &u32s(&[0, 0])), u32s(&[0, 42]), "again");
    client.tell(SET_VRING_ENABLE, &u32s(&[0, 1]), vec![]);
    assert!(client.blk.running.is_empty());
    client.tell(SET_VRING_KICK, &u64s(&[NO_FD]), vec![]);
    assert_eq!(client.blk.running[&0].base, 42);
    assert!(!client.blk.events.contains(&("kick", 0)), "polled");
}

#[test]
fn a_ring_runs_only_while_it_is_enabled() {
    let mut client = Client::running();
    client.tell(SET_VRING_ENABLE, &u32s(&[0, 0]), vec![]);
    assert!(client.blk.running.is_empty());
    client.tell(SET_VRING_ENABLE, &u32s(&[0, 1]), vec![]);
    assert!(client.blk.running.contains_key(&0));
    assert_eq!(client.refused(SET_VRING_ENABLE, &u32s(&[0, 2]), vec![]), EINVAL);
}

#[test]
fn without_protocol_features_a_ring_needs_no_enabling() {
    let mut client = Client::new();
    let send = |client: &mut Client, request, payload: &[u8], fds| {
        let outcome = client.send(request, false, payload, fds);
        assert!(outcome.refused.is_none() && outcome.reply.is_none());
    };
    send(&mut client, SET_FEATURES, &u64s(&[VERSION_1]), vec![]);
    send(&mut client, SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    send(&mut client, SET_VRING_NUM, &u32s(&[3, 16]), vec![]);
    send(&mut client, SET_VRING_ADDR, &good_addr(3), vec![]);
    send(&mut client, SET_VRING_KICK, &u64s(&[3]), vec![event()]);
    assert_eq!(client.blk.running.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn ring_addresses_become_the_guests() {
    let mut client = Client::negotiated();
    client.tell(SET_MEM_TABLE, &table(&[[0x8000_0000, REGION_BYTES, USER, 0]]), vec![memfd(REGION_BYTES)]);
    client.start_ring(1);
    let ring = client.blk.running[&1];
    let base = 0x8000_0000 + 0x1_0000;
    assert_eq!((ring.descriptors, ring.driver, ring.device), (base, base + 0x4000, base + 0x8000));
    assert_eq!((ring.size, ring.log_address), (64, None));
}

#[test]
fn a_packed_ring_may_have_any_size_and_a_split_one_only_powers_of_two() {
    for (features, taken) in [(VERSION_1 | PROTOCOL | F_RING_PACKED, true), (VERSION_1 | PROTOCOL, false)] {
        let mut client = Client::negotiated();
        client.tell(SET_FEATURES, &u64s(&[features]), vec![]);
        client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
        client.tell(SET_VRING_NUM, &u32s(&[0, 100]), vec![]);
        client.tell(SET_VRING_ADDR, &good_addr(0), vec![]);
        client.tell(SET_VRING_ENABLE, &u32s(&[0, 1]), vec![]);
        if taken {
            client.tell(SET_VRING_KICK, &u64s(&[0]), vec![event()]);
            assert!(client.blk.running[&0].packed);
        } else {
            assert_eq!(client.refused(SET_VRING_KICK, &u64s(&[0]), vec![event()]), EINVAL);
        }
    }
}

#[test]
fn logging_goes_on_and_off_under_a_running_ring() {
    let mut client = Client::running();
    let outcome = client.send(SET_LOG_BASE, false, &u64s(&[4096, 0]), vec![memfd(4096)]);
    assert_eq!(u64_of(&payload_of(&outcome)), 0, "QEMU waits for an answer unasked");
    client.tell(SET_LOG_FD, &[], vec![event()]);
    client.tell(SET_FEATURES, &u64s(&[VERSION_1 | PROTOCOL | LOG_ALL]), vec![]);
    client.tell(SET_VRING_ADDR, &addr(0, 1, USER, USER + 0x8000, USER + 0x4000), vec![]);
    assert_eq!(client.blk.running[&0].log_address, Some(0x5000));
    assert_eq!(client.blk.features, VERSION_1 | LOG_ALL);
    client.tell(SET_VRING_ADDR, &good_addr(0), vec![]);
    assert_eq!(client.blk.running[&0].log_address, None);
    for bad in [[0, 0], [1, u64::MAX]] {
        assert_eq!(client.refused(SET_LOG_BASE, &u64s(&bad), vec![memfd(4096)]), EINVAL);
    }
}

#[test]
fn requests_in_flight_have_a_region_before_any_ring_can_run() {
    let mut client = Client::new();
    let outcome = client.send(GET_FEATURES, false, &[], vec![]);
    assert!(outcome.changed && outcome.reply.is_some());
    assert_eq!(client.calls(), ["new inflight 4 x 256", "inflight 4 x 256 own"]);
    let inflight = client.session.saved().inflight.expect("a region");
    assert_eq!((inflight.fd, inflight.own), (DEVICE_FDS, true));
    assert!(client.session.saved().fd_ids().contains(&DEVICE_FDS));
    assert!(client.held.contains_key(&DEVICE_FDS), "handed out to be kept");
    assert!(!client.send(GET_FEATURES, false, &[], vec![]).changed);
}

#[test]
fn a_client_gets_a_region_for_requests_in_flight_and_brings_it_back() {
    // As a C compiler lays it out, and by the letter of the specification.
    for wire_bytes in [24, 20] {
        let mut client = Client::negotiated();
        let mut shape = [u64s(&[0, 0]), vec![2, 0, 64, 0], u32s(&[0])].concat();
        shape.truncate(wire_bytes);
        let outcome = client.send(GET_INFLIGHT_FD, false, &shape, vec![]);
        let answer = payload_of(&outcome);
        assert_eq!(answer.len(), wire_bytes);
        assert_eq!(u64_of(&answer[..8]), 2 * (64 + 32 * 64));
        let fd = outcome.reply.and_then(|reply| reply.fd).expect("its memory");
        client.tell(SET_INFLIGHT_FD, &answer, vec![fd.try_clone().expect("dup")]);
        assert_eq!(client.blk.inflight, Some((2, 64, false)));
        assert!(!client.session.saved().fd_ids().contains(&DEVICE_FDS), "ours is not needed any more");
    }
}

#[test]
fn a_ring_that_the_in_flight_region_has_no_room_for_does_not_run() {
    let mut client = Client::negotiated();
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    let shape = [u64s(&[4096, 0]), vec![1, 0, 32, 0], u32s(&[0])].concat();
    client.tell(SET_INFLIGHT_FD, &shape, vec![memfd(4096)]);
    for index in [0, 1] {
        client.tell(SET_VRING_NUM, &u32s(&[index, 64 - index * 32]), vec![]);
        client.tell(SET_VRING_ADDR, &good_addr(index), vec![]);
        client.tell(SET_VRING_ENABLE, &u32s(&[index, 1]), vec![]);
        assert_eq!(client.refused(SET_VRING_KICK, &u64s(&[index.into()]), vec![event()]), EINVAL);
    }
}

#[test]
fn a_ring_that_begins_anew_is_forgotten_by_our_region_and_never_by_the_clients() {
    let mut client = Client::running();
    client.ask(GET_VRING_BASE, &u32s(&[0, 0]));
    client.calls();
    client.tell(SET_VRING_BASE, &u32s(&[0, 5]), vec![]);
    assert_eq!(client.calls(), ["clear 0"]);
    let shape = [u64s(&[1 << 20, 0]), vec![4, 0, 64, 0], u32s(&[0])].concat();
    client.tell(SET_INFLIGHT_FD, &shape, vec![memfd(1 << 20)]);
    client.calls();
    client.tell(SET_VRING_BASE, &u32s(&[0, 0]), vec![]);
    assert!(client.calls().is_empty(), "after a reconnect the region is what counts");
}

#[test]
fn a_reset_leaves_memory_and_agreements_and_nothing_else() {
    for (request, payload) in [(RESET_DEVICE, vec![]), (SET_STATUS, u64s(&[0]))] {
        let mut client = Client::running();
        client.tell(SET_STATUS, &u64s(&[15]), vec![]);
        assert_eq!(u64_of(&client.ask(GET_STATUS, &[])), 15);
        client.tell(request, &payload, vec![]);
        assert_eq!(client.calls().last().map(String::as_str), Some("reset"));
        assert!(client.blk.running.is_empty());
        assert_eq!(u64_of(&client.ask(GET_STATUS, &[])), 0);
        let saved = client.session.saved();
        assert_eq!((saved.features, saved.protocol_features), (0, ALL_PROTOCOL));
        assert_eq!(saved.regions.len(), 1);
        assert!(saved.vrings.iter().all(|vring| !vring.started && !vring.enabled && vring.num == 0));
        client.tell(SET_FEATURES, &u64s(&[VERSION_1 | PROTOCOL]), vec![]);
        client.start_ring(0);
    }
}

#[test]
fn the_deprecated_reset_of_the_owner_stops_all_rings() {
    let mut client = Client::running();
    client.tell(RESET_OWNER, &[], vec![]);
    assert!(client.blk.running.is_empty());
}

#[test]
fn what_the_device_refuses_is_told_and_changes_nothing() {
    let mut client = Client::running();
    let before = client.session.saved();
    client.blk.fail = Some(Errno::INVAL);
    assert_eq!(client.refused(SET_VRING_CALL, &u64s(&[0]), vec![memfd(1)]), EINVAL);
    assert_eq!(client.session.saved(), before);
}

#[test]
fn a_device_that_cannot_stop_a_ring_ends_the_session() {
    let mut client = Client::running();
    client.blk.fail = Some(Errno::NODEV);
    assert!(client.send(GET_VRING_BASE, true, &u32s(&[0, 0]), vec![]).close);
    let mut client = Client::running();
    client.blk.fail = Some(Errno::NODEV);
    assert!(client.send(SET_MEM_TABLE, true, &table(&[]), vec![]).close, "even if it could be told");
}

#[test]
fn after_a_reset_our_region_forgets_the_rings_only_when_the_reset_was_answered() {
    let mut client = Client::running();
    client.calls();
    client.tell(RESET_DEVICE, &[], vec![]);
    // Killed before the answer, a successor would start the ring as it was, and must find what was in flight.
    assert!(!client.calls().iter().any(|call| call.starts_with("clear")));
    let mut successor = client.successor().expect("restored");
    for client in [&mut client, &mut successor] {
        client.calls();
        client.ask(GET_STATUS, &[]);
        assert_eq!(client.calls(), ["clear 0", "clear 1", "clear 2", "clear 3"]);
        assert!(!client.session.saved().forget);
        client.ask(GET_STATUS, &[]);
        assert!(client.calls().is_empty());
    }
}

#[test]
fn an_in_flight_region_is_not_changed_under_a_running_ring() {
    let mut client = Client::running();
    let shape = [u64s(&[1 << 20, 0]), vec![4, 0, 64, 0], u32s(&[0])].concat();
    assert_eq!(client.refused(SET_INFLIGHT_FD, &shape, vec![memfd(1 << 20)]), EBUSY);
    assert!(client.blk.running.contains_key(&0));
}

#[test]
fn memory_for_requests_in_flight_that_the_first_message_replaces_is_not_kept() {
    let mut client = Client::new();
    let shape = [u64s(&[1 << 16, 0]), vec![1, 0, 8, 0], u32s(&[0])].concat();
    client.send(SET_INFLIGHT_FD, false, &shape, vec![memfd(1 << 16)]);
    let named = client.session.saved().fd_ids();
    assert!(!named.is_empty() && client.held.keys().all(|id| named.contains(id)), "{named:?}");
}
