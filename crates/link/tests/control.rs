//! Both ends of a control link.

use link::control::*;
use link::frame::Wait;
use link::{LinkError, blame};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::AsFd;
use std::sync::Arc;

fn over<M>(message: &M) -> M
where
    M: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()>,
{
    let (one, other) = Link::pair().expect("socketpair");
    one.send(message, &[]).expect("sent");
    match other.receive(Wait::Block).expect("sound") {
        Received::Message(message, fds) if fds.is_empty() => message,
        _ => panic!("no message"),
    }
}

fn welcome(config: String) -> ToEngine {
    let slot =
        |name: &str, saved| Slot { name: name.to_owned(), saved, parked: false, number: Some(u32::MAX) };
    ToEngine::Welcome(Welcome {
        version: 1,
        generation: 3,
        config_path: "/etc/godwit/godwit.toml".to_owned(),
        config,
        ssds: vec![slot("a", true), slot("b", false)],
        stats: None,
        predecessor: Some(Predecessor { reason: "killed".to_owned(), ended_ns: 9, paused: false }),
        has_served: true,
    })
}

#[test]
fn every_message_arrives_as_it_was_sent() {
    let messages = [
        welcome("[[ssd]]".to_owned()),
        ToEngine::Saved(Saved {
            ssd: 1,
            roles: vec![Role::REGION, Role(77)],
            record: Some(vec![1]),
            crashes: 2,
        }),
        ToEngine::Rings { numbers: vec![7, 300] },
        ToEngine::Session(Session { ssd: 1, session: 8, door: Door::VHOST_USER }),
        ToEngine::Deposit(Deposit { ssd: 1, door: Door::VFIO_USER, bytes: vec![0; 9] }),
        ToEngine::Check,
        ToEngine::Start,
        ToEngine::Pause,
        ToEngine::Stop,
        ToEngine::RingKept { number: 5, kept: true },
        ToEngine::Prepare(Change {
            change: 4,
            config: "[[ssd]]".to_owned(),
            added: vec![Slot { name: "c".to_owned(), number: Some(7), ..Slot::default() }],
            removed: vec![0],
            grown: vec![1, 3],
        }),
        ToEngine::Commit { change: 4 },
        ToEngine::Forget { change: u64::MAX },
    ];
    for message in messages {
        assert_eq!(over(&message), message);
    }
    let messages = [
        ToKeeper::Hello(Hello { version: 1, release: "0.1.0".to_owned(), formats: Vec::new() }),
        ToKeeper::Ready(Ready { replayed: 1, reposted: 2, fenced: 3 }),
        ToKeeper::Refused(Refused { reason: "no".to_owned(), ssd: Some(0) }),
        ToKeeper::PowerOn(PowerOn { ssd: 0, ended: Some(4), roles: vec![Role::DOORBELLS], record: None }),
        ToKeeper::Record { ssd: 0, record: vec![3; 5] },
        ToKeeper::Ring { number: 9 },
        ToKeeper::RingGone { number: 9 },
        ToKeeper::Paused,
        ToKeeper::Fault { ssd: None, why: "the drive is slow".to_owned() },
        ToKeeper::Prepared(Prepared { change: 4, refused: Some("it is in use".to_owned()) }),
        ToKeeper::Changed { change: 4 },
        ToKeeper::Fenced,
        ToKeeper::Standing { ssd: 2, standing: None },
        ToKeeper::Standing {
            ssd: 2,
            standing: Some(Standing { word: "gone".to_owned(), why: "to b".to_owned(), holds: true }),
        },
    ];
    for message in messages {
        assert_eq!(over(&message), message);
    }
}

#[test]
fn a_configuration_of_a_thousand_ssds_fits() {
    let message = welcome("x".repeat(3 << 20));
    assert_eq!(over(&message), message);
    let too_long = welcome("x".repeat(BODY_BYTES_MAX));
    assert!(matches!(Packet::new(&too_long, Vec::new()), Err(LinkError::TooLarge(_))));
}

#[test]
fn descriptors_travel_beside_a_message_of_any_size() {
    for size in [0, 1 << 20] {
        let (one, other) = Link::pair().expect("socketpair");
        let fds: Vec<_> = (0..FDS_MAX).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")).collect();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let message = ToKeeper::Record { ssd: 0, record: vec![0; size] };
        one.send(&message, &borrowed).expect("sent");
        let Ok(Received::Message(got, fds)) = other.receive::<ToKeeper>(Wait::Block) else {
            panic!("nothing")
        };
        assert_eq!((got, fds.len()), (message, FDS_MAX));
    }
    let (one, _other) = Link::pair().expect("socketpair");
    let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let many = vec![fd.as_fd(); FDS_MAX + 1];
    assert!(matches!(one.send(&ToKeeper::Paused, &many), Err(LinkError::TooLarge(_))));
}

#[test]
fn the_end_is_seen_after_all_that_was_sent() {
    let (one, other) = Link::pair().expect("socketpair");
    assert!(matches!(other.receive::<ToKeeper>(Wait::Never), Ok(Received::Later)));
    one.send(&ToKeeper::Paused, &[]).expect("sent");
    drop(one);
    assert!(matches!(other.receive(Wait::Block), Ok(Received::Message(ToKeeper::Paused, _))));
    assert!(matches!(other.receive::<ToKeeper>(Wait::Block), Ok(Received::Closed)));
    let packet = Packet::new(&ToEngine::Stop, Vec::new()).expect("small");
    assert!(matches!(other.send_packet(&packet, Wait::Block), Err(LinkError::Gone)));
}

#[test]
fn a_link_that_nobody_reads_takes_no_more_and_does_not_block() {
    let (one, other) = Link::pair().expect("socketpair");
    let packet = Packet::new(&ToEngine::Check, Vec::new()).expect("small");
    let mut sent = 0;
    while one.send_packet(&packet, Wait::Never).expect("open") {
        sent += 1;
        assert!(sent < 100_000);
    }
    for _ in 0..sent {
        assert!(matches!(other.receive(Wait::Never), Ok(Received::Message(ToEngine::Check, _))));
    }
    assert!(one.send_packet(&packet, Wait::Never).expect("open"));
}

#[test]
fn any_bytes_are_a_message_or_an_error() {
    let (one, other) = Link::pair().expect("socketpair");
    let good = minicbor::to_vec(welcome("text".to_owned())).expect("encoded");
    for at in 0..good.len() {
        for byte in [0, 1, 0x7F, 0x9B, 0xBF, 0xFF] {
            let mut bad = good.clone();
            bad[at] = byte;
            let _ = decode::<ToEngine>(&bad);
            let _ = decode::<ToEngine>(&bad[..at]);
        }
    }
    assert!(decode::<ToEngine>(&[&good[..], &[0]].concat()).is_err());
    // Announces 2^64 - 1 entries.
    assert!(decode::<ToEngine>(&[0x9B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]).is_err());
    for packet in [&[0_u8][..], &[3], &[2], &[2, 0], &[1], &[1, 0xFF]] {
        rustix::net::send(&one, packet, rustix::net::SendFlags::empty()).expect("sent");
        assert!(other.receive::<ToEngine>(Wait::Never).is_err(), "{packet:?}");
    }
}

#[test]
fn a_body_in_memory_that_can_still_change_is_refused() {
    let (one, other) = Link::pair().expect("socketpair");
    let memfd = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    // A packet of the second kind, made by hand: its body can be changed by its sender while it is read.
    let mut outbox = link::outbox::Outbox::default();
    outbox.push(link::outbox::Parcel::whole(vec![2], vec![Arc::new(memfd)])).expect("small");
    outbox.flush(&one, Wait::Block).expect("sent");
    assert!(matches!(other.receive::<ToEngine>(Wait::Never), Err(LinkError::Nonsense(_))));
}

#[test]
fn fields_of_the_future_are_skipped_and_missing_ones_are_not_invented() {
    // Welcome as a map with a field 99, and one without its required fields.
    let mut bytes = Vec::new();
    let mut encoder = minicbor::Encoder::new(&mut bytes);
    encoder
        .map(5)
        .expect("vec")
        .u8(0)
        .expect("vec")
        .u32(1)
        .expect("vec")
        .u8(1)
        .expect("vec")
        .u64(2)
        .expect("vec");
    encoder.u8(2).expect("vec").str("p").expect("vec").u8(3).expect("vec").str("c").expect("vec");
    encoder.u8(4).expect("vec").array(0).expect("vec");
    let without: Welcome = decode(&bytes).expect("an older keeper's");
    assert_eq!(without.generation, 2);
    bytes[0] += 1;
    minicbor::Encoder::new(&mut bytes).u8(99).expect("vec").str("new").expect("vec");
    assert_eq!(decode::<Welcome>(&bytes).expect("a newer keeper's"), without);
    assert!(decode::<Welcome>(&[0xA0]).is_err());
}

/// The bytes of the first release: they must not change.
#[test]
fn the_bytes_on_the_wire_are_those_of_the_first_release() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let encoded = |message: &ToEngine| hex(minicbor::to_vec(message).expect("encoded"));
    let saved =
        Saved { ssd: 2, roles: vec![Role::REGION, Role::DRIVE], record: Some(vec![0xAB]), crashes: 1 };
    assert_eq!(encoded(&ToEngine::Saved(saved)), "820181a40002018200020241ab0301");
    assert_eq!(encoded(&ToEngine::Start), "820680");
    assert_eq!(encoded(&ToEngine::RingKept { number: 5, kept: true }), "82098205f5");
    let power = PowerOn { ssd: 0, ended: Some(4), roles: vec![Role::DOORBELLS], record: None };
    let power = minicbor::to_vec(ToKeeper::PowerOn(power)).expect("encoded");
    assert_eq!(hex(power), "820381a30000010402 8101".replace(' ', ""));
}

#[test]
fn a_page_names_those_in_hand_and_the_thread_that_failed() {
    let mut page = vec![0; blame::PAGE_BYTES];
    assert_eq!(blame::verdict(&page, |ssd| ssd < 10), blame::Verdict::default());
    page[0..4].copy_from_slice(&4u32.to_ne_bytes());
    page[64..68].copy_from_slice(&8u32.to_ne_bytes());
    page[68..72].copy_from_slice(&1u32.to_ne_bytes());
    page[128..132].copy_from_slice(&4u32.to_ne_bytes());
    page[192..196].copy_from_slice(&u32::MAX.to_ne_bytes());
    let verdict = blame::verdict(&page, |ssd| ssd < 10);
    assert_eq!(verdict, blame::Verdict { certain: vec![7], possible: vec![3, 7] });
    assert_eq!(blame::verdict(&page, |ssd| ssd < 7).certain, []);
    assert_eq!(blame::verdict(&[1; 3], |_| true), blame::Verdict::default());
}
