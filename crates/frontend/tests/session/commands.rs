//! Each command's bounds.

use std::os::fd::AsFd;

use crate::harness::*;
use frontend::vfio_user::{EndReason, Limits};

/// A sound payload of every command the client may send, with how many descriptors it takes.
fn sound() -> Vec<(u16, Vec<u8>)> {
    vec![
        (DMA_MAP, dma_map(3, 0, 0x10_0000, 0x1000)),
        (DMA_UNMAP, dma_unmap(0, 0x10_0000, 0x1000)),
        (GET_INFO, u32s(&[16, 0, 0, 0])),
        (REGION_INFO, u32s(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (REGION_IO_FDS, u32s(&[16, 0, 0, 0])),
        (IRQ_INFO, u32s(&[16, 0, 2, 0])),
        (SET_IRQS, u32s(&[20, 0x21, 2, 0, 0])),
        (REGION_READ, range(0, 7, 4)),
        (REGION_WRITE, [range(0, 7, 4), vec![0; 4]].concat()),
        (RESET, vec![]),
        (WRITE_MULTI, [u64s(&[1]), range(0, 0, 4), vec![0; 8]].concat()),
    ]
}

#[test]
fn every_sound_command_is_answered() {
    let mut running = Running::negotiated();
    for (command, payload) in sound() {
        assert!(running.client.call(command, &payload).is_ok(), "command {command}");
    }
    assert_eq!(running.leave().refused, 0);
}

#[test]
fn every_command_before_the_version_is_refused_and_the_version_still_works() {
    let mut running = Running::start();
    for (command, payload) in sound() {
        running.client.call(command, &payload).expect_error(EINVAL);
    }
    for command in [0, DMA_READ, DMA_WRITE, 14, MIG_READ, MIG_WRITE, 19, 0xFFFF] {
        running.client.call(command, &u32s(&[8, 0])).expect_error(EINVAL);
    }
    running.client.call(FEATURE, &u32s(&[8, 1 << 18 | 1])).expect_error(EINVAL);
    assert!(running.take_calls().is_empty());
    running.client.negotiate();
    assert!(running.client.call(RESET, &[]).is_ok());
    running.leave();
}

#[test]
fn a_second_version_is_refused_and_the_session_goes_on() {
    let mut running = Running::negotiated();
    running.client.call(VERSION, &version(QEMU_JSON)).expect_error(EINVAL);
    assert!(running.client.call(GET_INFO, &u32s(&[16, 0, 0, 0])).is_ok());
    running.leave();
}

#[test]
fn another_major_version_is_refused_and_the_connection_closed() {
    let mut running = Running::start();
    running.client.call(VERSION, &[1, 0, 0, 0]).expect_error(EPROTONOSUPPORT);
    assert_eq!(running.ends().reason, EndReason::Version);
}

#[test]
fn the_minor_version_of_the_reply_is_at_most_the_proposed_one() {
    for (proposed, answered) in [(0, 0), (1, 1), (2, 1), (0xFFFF, 1)] {
        let mut running = Running::start();
        let payload = [0u16.to_le_bytes(), u16::to_le_bytes(proposed)].concat();
        assert_eq!(running.client.call(VERSION, &payload).payload[2..4], u16::to_le_bytes(answered));
        running.leave();
    }
}

#[test]
fn version_data_is_taken_with_or_without_its_nul_and_refused_when_it_is_nonsense() {
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(8000), "]".repeat(8000));
    let good =
        ["{}", "{\"capabilities\":{}}", QEMU_JSON, "{\"capabilities\":{\"max_msg_fds\":0,\"new\":[[{}]]}}"];
    let bad = [
        "{",
        "7",
        "\"capabilities\"",
        "{\"capabilities\":7}",
        "{\"capabilities\":{\"max_msg_fds\":\"many\"}}",
        "{\"capabilities\":{\"max_msg_fds\":-1}}",
        "{\"capabilities\":{\"pgsizes\":0}}",
        "{\"capabilities\":{\"pgsizes\":512}}",
        "{\"capabilities\":{\"max_data_xfer_size\":0}}",
        "{\"capabilities\":{\"max_data_xfer_size\":1e400}}",
        "\u{1}\u{2}",
    ];
    let mut running = Running::start();
    for json in bad {
        running.client.call(VERSION, &version(json)).expect_error(EINVAL);
    }
    // Nesting is skipped without recursion, or refused: in no case does a small stack overflow.
    let _ = running.client.call(VERSION, &version(&deep));
    running.client.call(VERSION, &version(&" ".repeat(1 << 15))).expect_error(EINVAL);
    running.client.call(VERSION, &[0, 0, 1]).expect_error(EINVAL);
    running.client.call(VERSION, &[]).expect_error(EINVAL);
    running.leave();
    for json in good {
        for nul in [&b"\0"[..], b"", b"\0\0garbage"] {
            let mut running = Running::start();
            let payload = [&[0, 0, 1, 0][..], json.as_bytes(), nul].concat();
            assert!(running.client.call(VERSION, &payload).is_ok(), "{json}");
            running.leave();
        }
    }
}

#[test]
fn a_client_that_takes_no_descriptors_is_told_that_nothing_can_be_mapped() {
    let mut running = Running::start();
    running.client.call(VERSION, &version(r#"{"capabilities":{"max_msg_fds":0}}"#));
    let info = running.client.call(REGION_INFO, &u32s(&[64, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!((info.u32_at(0), info.u32_at(4), info.fds.len()), (32, 3, 0));
    running.leave();
}

#[test]
fn payloads_one_byte_short_or_empty_are_refused() {
    let mut running = Running::negotiated();
    for (command, payload) in sound().into_iter().filter(|(_, payload)| !payload.is_empty()) {
        running.client.call(command, &payload[..payload.len() - 1]).expect_error(EINVAL);
        running.client.call(command, &[]).expect_error(EINVAL);
    }
    assert!(running.take_calls().is_empty());
    running.leave();
}

#[test]
fn payloads_one_byte_longer_are_padding_or_refused() {
    let mut running = Running::negotiated();
    for (command, mut payload) in sound() {
        payload.push(0);
        let answer = running.client.call(command, &payload);
        if matches!(command, REGION_READ | REGION_WRITE | RESET | WRITE_MULTI) {
            answer.expect_error(EINVAL);
        } else {
            assert!(answer.is_ok(), "command {command}");
        }
    }
    running.leave();
}

#[test]
fn the_longest_payload_is_read_whole_and_answered() {
    let mut running = Running::negotiated();
    let longest = vec![0xFF; frontend::vfio_user::frame::MESSAGE_BYTES_MAX - 16];
    for command in (0..20).filter(|command| *command != VERSION) {
        let answer = running.client.call(command, &longest);
        // Its argsz is huge and the rest padding: sound where no other field matters.
        assert_eq!(answer.errno == 0, command == GET_INFO, "command {command}");
    }
    running.client.call(VERSION, &longest).expect_error(EINVAL);
    assert!(running.client.call(RESET, &[]).is_ok());
    running.leave();
}

#[test]
fn an_argsz_smaller_than_the_structure_is_refused_and_a_huge_one_is_not_believed() {
    let mut running = Running::negotiated();
    for (command, mut payload) in sound() {
        if matches!(command, REGION_READ | REGION_WRITE | RESET | WRITE_MULTI) {
            continue;
        }
        let needed = u32::from_le_bytes(payload[..4].try_into().expect("4 bytes"));
        for (argsz, fine) in [(0, false), (needed - 1, false), (u32::MAX, true)] {
            payload[..4].copy_from_slice(&argsz.to_le_bytes());
            let answer = running.client.call(command, &payload);
            if fine {
                assert!(answer.is_ok(), "command {command}");
                assert!(answer.payload.len() <= 64);
            } else {
                answer.expect_error(EINVAL);
            }
        }
    }
    running.leave();
}

#[test]
fn descriptors_that_a_command_does_not_take_are_refused_and_closed() {
    let mut running = Running::negotiated();
    let fds: Vec<_> = (0..2).map(|_| event()).collect();
    for (command, payload) in sound() {
        let allowed = matches!(command, DMA_MAP | DMA_UNMAP);
        let answer = running.client.call_with(command, &payload, &borrow(&fds[..1]));
        assert_eq!(answer.is_ok(), allowed, "command {command}");
        running.client.call_with(command, &payload, &borrow(&fds)).expect_error(EINVAL);
    }
    // More than a message may carry: the kernel or we close the surplus.
    let many: Vec<_> = (0..40).map(|_| event()).collect();
    for count in [17, 18, 40] {
        let set = u32s(&[20, 0x24, 2, 0, u32::try_from(count).expect("small")]);
        running.client.call_with(SET_IRQS, &set, &borrow(&many[..count])).expect_error(EINVAL);
    }
    assert!(running.client.call(RESET, &[]).is_ok());
    running.leave();
}

#[test]
fn unknown_and_unsupported_commands_are_answered_with_an_errno() {
    let mut running = Running::negotiated();
    for command in [0, DMA_READ, DMA_WRITE, 14, 19, 0x7FFF, 0xFFFF, MIG_READ, MIG_WRITE] {
        // Without migration there is no data of it.
        running.client.call(command, &u32s(&[8, 0])).expect_error(EOPNOTSUPP);
    }
    for feature in [1, 2, 6, 7, 8, 0xFFFF] {
        running.client.call(FEATURE, &u32s(&[8, 1 << 18 | feature])).expect_error(ENOTTY);
    }
    running.leave();
}

#[test]
fn unknown_header_flags_are_refused() {
    let running = Running::negotiated();
    for flags in [2, 0xF, 0x20, 0x40, 0x8000_0000] {
        running.client.send(&message(9, RESET, flags, &[]), &[]);
        running.client.receive().expect("a reply").expect_error(EINVAL);
    }
    running.leave();
}

#[test]
fn a_command_that_wants_no_reply_gets_none_whether_it_succeeds_or_fails() {
    let mut running = Running::negotiated();
    for (command, payload) in sound() {
        running.client.send(&message(1, command, NO_REPLY, &payload), &[]);
        running.client.send(&message(1, command, NO_REPLY, &[1]), &[]);
    }
    running.client.send(&message(1, 99, NO_REPLY, &[]), &[]);
    // The next message is the reply to the next command.
    assert!(running.client.call(RESET, &[]).is_ok());
    assert_eq!(running.take_calls().iter().filter(|call| *call == "reset").count(), 2);
    running.leave();
}

#[test]
fn region_accesses_of_any_size_and_alignment_inside_the_region_are_served() {
    let mut running = Running::negotiated();
    for (offset, count) in
        [(0, 1), (1, 1), (3, 7), (0xFFF, 2), (0, 0x4000), (0x3FFF, 1), (5, 4096), (0, 0), (0x4000, 0)]
    {
        let data: Vec<_> = (0..count).map(|at: u32| at.to_le_bytes()[0] ^ 0x5A).collect();
        let written = running.client.call(REGION_WRITE, &[range(offset, 0, count), data.clone()].concat());
        assert_eq!(written.payload, range(offset, 0, count));
        let read = running.client.call(REGION_READ, &range(offset, 0, count));
        assert_eq!(read.payload, [range(offset, 0, count), data].concat());
    }
    running.leave();
}

#[test]
fn region_accesses_beyond_the_end_or_against_the_flags_are_refused() {
    let mut running = Running::negotiated();
    let beyond = [
        (0x4000, 0, 1),
        (0x3FFF, 0, 2),
        (0, 0, 0x4001),
        (u64::MAX, 0, 1),
        (u64::MAX, 0, u32::MAX),
        (0x4001, 0, 0),
        (0, 1, 0),
        (0, 1, 4),
        (0, 9, 4),
        (0, u32::MAX, 4),
    ];
    for (offset, region, count) in beyond {
        running.client.call(REGION_READ, &range(offset, region, count)).expect_error(EINVAL);
        let data = vec![0; usize::try_from(count.min(0x5000)).expect("small")];
        running
            .client
            .call(REGION_WRITE, &[range(offset, region, count), data].concat())
            .expect_error(EINVAL);
    }
    running.client.call(REGION_WRITE, &[range(0, 6, 1), vec![0]].concat()).expect_error(EPERM_LIKE);
    assert!(running.take_calls().is_empty());
    running.client.call(REGION_WRITE, &[range(FAIL_AT, 0, 1), vec![0]].concat()).expect_error(5);
    running.leave();
}

#[test]
fn write_multi_checks_every_write_before_the_first_is_done() {
    let mut running = Running::negotiated();
    let one = |offset, region, count| [range(offset, region, count), vec![7; 8]].concat();
    let good = [u64s(&[3]), one(0, 0, 8), one(8, 0, 1), one(0x3FF8, 0, 8)].concat();
    assert_eq!(running.client.call(WRITE_MULTI, &good).payload, u64s(&[3]));
    assert_eq!(running.take_calls(), ["write 0 0x0+8", "write 0 0x8+1", "write 0 0x3ff8+8"]);
    assert_eq!(running.client.call(WRITE_MULTI, &u64s(&[0])).payload, u64s(&[0]));
    for bad in [
        [u64s(&[2]), one(0, 0, 8)].concat(),
        [u64s(&[0]), one(0, 0, 8)].concat(),
        [u64s(&[u64::MAX]), one(0, 0, 8)].concat(),
        [u64s(&[u64::MAX / 24 + 2]), one(0, 0, 8)].concat(),
        [u64s(&[2]), one(0, 0, 8), one(0, 0, 9)].concat(),
        [u64s(&[2]), one(0, 0, 8), one(0, 0, u32::MAX)].concat(),
        [u64s(&[2]), one(0, 0, 8), one(0x3FF9, 0, 8)].concat(),
        [u64s(&[2]), one(0, 0, 8), one(0, 9, 8)].concat(),
    ] {
        running.client.call(WRITE_MULTI, &bad).expect_error(EINVAL);
    }
    assert!(running.take_calls().is_empty());
    running.leave();
    let mut running = Running::start();
    running.client.call(VERSION, &[0, 0, 1, 0]);
    running.client.call(WRITE_MULTI, &good).expect_error(EOPNOTSUPP);
    running.leave();
}

#[test]
fn dma_maps_that_wrap_overlap_or_are_too_many_are_refused() {
    let mut running = Running::start_with(Limits { dma_maps_max: 3, ..Limits::default() });
    running.client.negotiate();
    let ram = memfd(0x1000);
    let client = &mut running.client;
    for (flags, offset, iova, size) in [(3, 0, 0x1000, 0), (3, 0, u64::MAX, 2), (4, 0, 0, 1), (!0, 0, 0, 1)] {
        client.call(DMA_MAP, &dma_map(flags, offset, iova, size)).expect_error(EINVAL);
    }
    for offset in [u64::MAX, i64::MAX.unsigned_abs()] {
        client.call_with(DMA_MAP, &dma_map(3, offset, 0, 0x1000), &[ram.as_fd()]).expect_error(EINVAL);
    }
    assert!(client.call(DMA_MAP, &dma_map(3, 0, 0x1000, 0x1000)).is_ok());
    for (iova, size) in [(0x1000, 0x1000), (0x1FFF, 1), (0, 0x1001), (0, 0x10000), (0x1800, 0x10)] {
        client.call(DMA_MAP, &dma_map(3, 0, iova, size)).expect_error(EEXIST);
    }
    // Right before, and up to the last address there is.
    assert!(client.call(DMA_MAP, &dma_map(3, 0, 0, 0x1000)).is_ok());
    assert!(client.call(DMA_MAP, &dma_map(0, 0, 0x2000, u64::MAX - 0x1FFF)).is_ok());
    client.call(DMA_UNMAP, &dma_unmap(0, 0x2000, u64::MAX - 0x1FFF));
    assert!(client.call(DMA_MAP, &dma_map(0, 0, 0x2000, 1)).is_ok());
    client.call(DMA_MAP, &dma_map(3, 0, 0x8000, 0x1000)).expect_error(ENOSPC);
    for (iova, size) in
        [(0x1000, 0x800), (0x1000, 0x2000), (0x1800, 0x800), (0x8000, 1), (u64::MAX, u64::MAX)]
    {
        client.call(DMA_UNMAP, &dma_unmap(0, iova, size)).expect_error(ENOENT);
    }
    for (flags, iova, size) in
        [(0, 0x1000, 0), (1, 0x1000, 0x1000), (2, 0x1000, 0x1000), (2, 0, 1), (4, 0, 0)]
    {
        client.call(DMA_UNMAP, &dma_unmap(flags, iova, size)).expect_error(EINVAL);
    }
    assert!(client.call(DMA_UNMAP, &dma_unmap(2, 0, 0)).is_ok());
    assert!(client.call(DMA_MAP, &dma_map(3, 0, 0x1000, 0x1000)).is_ok());
    running.leave();
}

#[test]
fn interrupts_outside_their_index_or_with_mixed_flags_are_refused() {
    let mut running = Running::negotiated();
    let event = event();
    let client = &mut running.client;
    for (flags, index, start, count) in [
        (0x24, 2, 0, 130),
        (0x24, 2, 129, 1),
        (0x24, 2, u32::MAX, 2),
        (0x24, 2, 2, u32::MAX),
        (0x24, 1, 0, 1),
        (0x24, 5, 0, 1),
        (0x24, u32::MAX, 0, 1),
        (0x24, 2, 0, 0),
        (0x21, 2, 1, 0),
        (0x09, 0, 0, 0),
        (0x09, 2, 0, 1),
        (0x11, 2, 0, 1),
        (0x22, 2, 0, 4),
        (0x20, 2, 0, 1),
        (0x04, 2, 0, 1),
        (0x3C, 2, 0, 1),
        (0x27, 2, 0, 1),
        (0x64, 2, 0, 1),
    ] {
        client.call(SET_IRQS, &u32s(&[20, flags, index, start, count])).expect_error(EINVAL);
    }
    let fds = [event.as_fd()];
    client.call_with(SET_IRQS, &u32s(&[20, 0x24, 2, 0, 2]), &fds).expect_error(EINVAL);
    client.call_with(SET_IRQS, &u32s(&[20, 0x21, 2, 0, 1]), &fds).expect_error(EINVAL);
    // Booleans: argsz covers them, and they are there.
    let bools = |argsz, count, data: &[u8]| [u32s(&[argsz, 0x22, 2, 1, count]), data.to_vec()].concat();
    client.call(SET_IRQS, &bools(22, 3, &[1, 0, 2])).expect_error(EINVAL);
    client.call(SET_IRQS, &bools(23, 3, &[1, 0])).expect_error(EINVAL);
    assert!(running.take_calls().is_empty());
    assert!(running.client.call(SET_IRQS, &bools(23, 3, &[1, 0, 2])).is_ok());
    assert!(running.client.call(SET_IRQS, &u32s(&[20, 0x11, 0, 0, 1])).is_ok());
    assert_eq!(running.take_calls(), ["irqs 2 1+3 Trigger [true, false, true]", "irqs 0 0+1 Unmask none"]);
    running.leave();
}

#[test]
fn infos_of_regions_and_interrupts_that_do_not_exist_are_refused() {
    let mut running = Running::negotiated();
    for index in [9, 10, u32::MAX] {
        running.client.call(REGION_INFO, &u32s(&[64, 0, index, 0, 0, 0, 0, 0])).expect_error(EINVAL);
        running.client.call(REGION_IO_FDS, &u32s(&[64, 0, index, 0])).expect_error(EINVAL);
        running.client.call(IRQ_INFO, &u32s(&[16, 0, index, 0])).expect_error(EINVAL);
    }
    running.client.call(IRQ_INFO, &u32s(&[16, 0, 5, 0])).expect_error(EINVAL);
    let none = running.client.call(REGION_IO_FDS, &u32s(&[64, 0, 0, 0]));
    assert_eq!((none.payload, none.fds.len()), (u32s(&[16, 0, 0, 0]), 0));
    running.leave();
}
