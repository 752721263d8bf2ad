//! Any bytes, any messages: the device asserts what it was promised, and a successor ends up where its predecessor was.

use frontend::vhost_user::{ClientFd, FDS_MAX, HEADER_BYTES, Header, Message};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::harness::*;

/// Numbers near what matters.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..5_u64,
        Just(64),
        Just(REGION_BYTES),
        (0..4_u64).prop_map(|index| index * 0x1_0000),
        (0..16_u64, -1..2_i64).prop_map(|(page, off)| (USER + page * 0x4000).wrapping_add_signed(off)),
        Just(VERSION_1 | PROTOCOL),
        Just(ALL_PROTOCOL),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Raw(u32, u32, Vec<u8>, usize),
    Words(u32, bool, Vec<u64>, usize),
    Halves(u32, Vec<u32>),
    Table(Vec<RegionWords>, i8),
    Start(u32),
    Crash,
}

fn region() -> impl Strategy<Value = RegionWords> {
    (0..6_u64, prop_oneof![Just(REGION_BYTES), word()], 0..6_u64, prop_oneof![Just(0), word()])
        .prop_map(|(guest, size, user, offset)| [guest << 20, size, USER + (user << 20), offset])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..45_u32, 0..16_u32, vec(any::<u8>(), 0..64), 0..3_usize)
            .prop_map(|(request, flags, payload, fds)| Step::Raw(request, flags, payload, fds)),
        (0..45_u32, any::<bool>(), vec(word(), 0..6), 0..2_usize)
            .prop_map(|(request, reply, words, fds)| Step::Words(request, reply, words, fds)),
        (8..19_u32, vec(0..5_u32, 2)).prop_map(|(request, halves)| Step::Halves(request, halves)),
        (vec(region(), 0..4), -1..2_i8).prop_map(|(regions, lie)| Step::Table(regions, lie)),
        (0..4_u32).prop_map(Step::Start),
        Just(Step::Crash),
    ]
}

/// False: the session is over.
fn take(client: &mut Client, step: &Step) -> bool {
    let events = |count: usize| (0..count).map(|_| event()).collect::<Vec<_>>();
    let outcome = match step {
        Step::Raw(request, flags, payload, count) => {
            let mut given = Vec::new();
            for fd in events(*count) {
                client.held.insert(client.next_fd, fd.try_clone().expect("dup"));
                given.push(ClientFd { id: client.next_fd, fd });
                client.next_fd += 1;
            }
            client.give(raw(*request, *flags, payload, given))
        }
        Step::Words(request, reply, words, count) => {
            client.send(*request, *reply, &u64s(words), events(*count))
        }
        Step::Halves(request, halves) => client.send(*request, true, &u32s(halves), vec![]),
        Step::Table(regions, lie) => {
            let count = regions.len().saturating_add_signed(isize::from(*lie));
            client.send(SET_MEM_TABLE, true, &table(regions), events(count))
        }
        Step::Start(index) => {
            client.send(SET_VRING_NUM, true, &u32s(&[*index, 64]), vec![]);
            client.send(SET_VRING_ADDR, true, &good_addr(*index), vec![]);
            client.send(SET_VRING_KICK, true, &u64s(&[(*index).into()]), vec![event()]);
            client.send(SET_VRING_ENABLE, true, &u32s(&[*index, 1]), vec![])
        }
        Step::Crash => return true,
    };
    if let Some(reply) = &outcome.reply {
        assert!(reply.bytes.len() <= HEADER_BYTES + 12 + 256);
    }
    assert!(outcome.refused.is_some() || !outcome.close);
    !outcome.close
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_conversation_breaks_a_promise_to_the_device(steps in vec(step(), 1..60)) {
        let mut client = Client::negotiated();
        for step in &steps {
            if !take(&mut client, step) {
                break;
            }
            let running: Vec<u16> = client.blk.running.keys().copied().collect();
            prop_assert_eq!(client.session.running(), running);
            let saved = client.session.saved();
            prop_assert!(saved.fd_ids().iter().all(|id| client.held.contains_key(id)));
            // A ring that cannot run is a reason to refuse; then there is no successor to compare with.
            if matches!(step, Step::Crash) && let Ok(successor) = client.successor() {
                prop_assert_eq!(successor.session.saved(), saved);
                prop_assert_eq!(
                    successor.blk.running.keys().collect::<Vec<_>>(),
                    client.blk.running.keys().collect::<Vec<_>>()
                );
                client = successor;
            }
        }
    }

    #[test]
    fn any_bytes_are_a_request_or_an_error(
        head in any::<[u8; HEADER_BYTES]>(), payload in vec(any::<u8>(), 0..300), fds in 0..=FDS_MAX
    ) {
        if let Ok(mut header) = Header::parse(&head) {
            header.payload_bytes = payload.len();
            let fds = (0..fds).map(|id| ClientFd { id: u32::try_from(id).expect("small"), fd: event() });
            let message = Message { header, payload, fds: fds.collect(), surplus_fds: false };
            let _ = frontend::vhost_user::frame::parse(message);
        }
    }
}
