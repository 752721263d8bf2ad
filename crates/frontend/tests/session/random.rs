//! Any bytes at all: the parser returns, the session ends or answers, and the next client is served.

use std::time::Duration;

use crate::harness::*;
use frontend::vfio_user::ClientFd;
use frontend::vfio_user::frame::{self, HEADER_BYTES, Header, MESSAGE_BYTES_MAX, Request};
use proptest::prelude::*;

/// Numbers near where things go wrong.
fn edge32() -> impl Strategy<Value = u32> {
    prop_oneof![0..40u32, Just(u32::MAX), Just(1 << 20), Just((1 << 20) + 1), Just(1 << 31), any::<u32>()]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        prop::collection::vec(edge32(), 0..24).prop_map(|words| u32s(&words)),
    ]
}

fn plausible() -> impl Strategy<Value = (u16, u32, Vec<u8>, usize)> {
    let flags =
        prop_oneof![4 => Just(0u32), 1 => Just(1), 1 => Just(0x10), 1 => Just(0x21), 1 => any::<u32>()];
    (prop_oneof![9 => 0..20u16, 1 => any::<u16>()], flags, payload(), 0..4usize)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parser_takes_any_bytes(head in any::<[u8; HEADER_BYTES]>()) {
        if let Ok(header) = Header::parse(&head) {
            prop_assert!(header.payload_bytes <= MESSAGE_BYTES_MAX - HEADER_BYTES);
        }
    }

    #[test]
    fn what_the_parser_lets_through_is_bounded((command, flags, payload, fds) in plausible()) {
        let bytes = message(1, command, flags, &payload);
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().expect("16 bytes")).expect("a sound size");
        let fds = (0..).take(fds).map(|id| ClientFd { id, fd: event() }).collect();
        match frame::parse(&header, &payload, fds) {
            Ok(Request::RegionRead(range)) => prop_assert!(range.count <= 1 << 20),
            Ok(Request::RegionWrite { range, data }) => {
                prop_assert_eq!(usize::try_from(range.count).expect("small"), data.len());
            }
            Ok(Request::RegionWriteMulti(writes)) => {
                prop_assert!(writes.iter().all(|write| write.bytes().len() <= 8));
            }
            Ok(Request::DmaMap(map)) => prop_assert!(map.iova.checked_add(map.size - 1).is_some()),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_session_survives_any_messages_and_the_next_client_is_served(
        messages in prop::collection::vec(plausible(), 0..30),
        garbage in prop::collection::vec(any::<u8>(), 0..60),
        first in any::<bool>(),
    ) {
        // ASK_AT makes the fake device wait for us: it must not wait long.
        let soon = Duration::from_millis(50);
        let limits = frontend::vfio_user::Limits { remote_time: soon, ..Default::default() };
        let mut running = Running::start_with(limits);
        if first {
            running.client.negotiate();
        }
        let event = event();
        for (command, flags, payload, fds) in &messages {
            let fds = vec![std::os::fd::AsFd::as_fd(&event); *fds];
            if running.client.try_send(&message(3, *command, *flags, payload), &fds).is_err() {
                break;
            }
        }
        let _ = running.client.try_send(&garbage, &[]);
        running.leave();
        let mut next = Running::negotiated();
        prop_assert!(next.client.call(RESET, &[]).is_ok());
        next.leave();
    }
}
