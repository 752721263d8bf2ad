//! The rings against a small device that knows the layouts by itself.

use super::super::toy::Toy;
use super::*;

fn pieces(count: u32, seed: u64) -> Vec<Piece> {
    let one = |at: u32| Piece { iova: seed * 100 + u64::from(at), len: at + 1, device_writes: at % 2 == 1 };
    (0..count).map(one).collect()
}

fn rings() -> Vec<(Arc<Ram>, Ring)> {
    let ring = |size, packed| {
        let ram = Ram::new(1 << 20, 0x10_0000).expect("memory");
        let ring = Ring::new(&ram, size, packed, false).expect("a ring");
        (ram, ring)
    };
    vec![ring(16, false), ring(16, true), ring(13, true)]
}

#[test]
fn what_is_added_comes_out_at_the_device_and_back_whatever_the_order() {
    for (ram, mut ring) in rings() {
        let mut device = Toy::new(&ram, &ring);
        let table = ram.alloc(4096).expect("memory");
        let mut sent = std::collections::HashMap::new();
        for round in 0..5000_u64 {
            for part in 0..round % 4 {
                let wanted = pieces(u32::try_from(1 + (round + part) % 5).expect("small"), round * 10 + part);
                let token = if round % 7 == 3 && sent.is_empty() {
                    ring.add_indirect(&wanted, &table, 64)
                } else {
                    ring.add(&wanted)
                };
                if let Some(token) = token {
                    assert!(sent.insert(token, wanted).is_none(), "a token twice");
                }
            }
            device.take();
            ring.publish();
            device.take();
            assert_eq!(device.chains.len(), sent.len());
            while !device.chains.is_empty() && (round % 3 != 0 || device.chains.len() > 2) {
                let which = usize::try_from(round).expect("small") % device.chains.len();
                let id = device.chains[which].0;
                assert!(!ring.is_ready(1, 1));
                let seen = device.give(which, 77);
                assert!(ring.is_ready(1, 1));
                assert_eq!(ring.take(), Some(Used { token: id.into(), written: 77, expected: true }));
                assert_eq!(sent.remove(&id.into()), Some(seen));
            }
            assert_eq!(ring.take(), None);
        }
    }
}

#[test]
fn a_full_ring_takes_nothing_more_until_something_comes_back() {
    for (ram, mut ring) in rings() {
        let mut device = Toy::new(&ram, &ring);
        let size = usize::from(ring.size());
        (0..size).for_each(|at| assert!(ring.add(&pieces(1, at as u64)).is_some()));
        assert_eq!(ring.add(&pieces(1, 0)), None);
        ring.publish();
        device.take();
        device.give(size / 2, 0);
        assert!(ring.take().is_some());
        assert_eq!(ring.add(&pieces(2, 0)), None);
        assert!(ring.add(&pieces(1, 0)).is_some());
    }
}

#[test]
fn a_request_given_back_twice_is_noticed() {
    let (ram, mut ring) = rings().remove(0);
    let mut device = Toy::new(&ram, &ring);
    ring.add(&pieces(2, 1));
    ring.publish();
    device.take();
    device.chains.push_back(device.chains[0].clone());
    device.give(0, 0);
    device.give(0, 0);
    assert!(ring.take().is_some_and(|used| used.expected));
    assert!(ring.take().is_some_and(|used| !used.expected));
}

#[test]
fn a_device_that_wants_no_kicks_gets_none() {
    for (ram, mut ring) in rings() {
        let device = Toy::new(&ram, &ring);
        assert!(!ring.publish(), "nothing to tell of");
        ring.add(&pieces(1, 1));
        assert!(ring.publish());
        let flags_at = if device.packed { 2 } else { 0 };
        device.store(device.places[2] + flags_at, &1_u16.to_le_bytes());
        ring.add(&pieces(1, 1));
        assert!(!ring.publish());
    }
}

#[test]
fn with_the_event_index_a_kick_is_due_when_the_index_passes_the_event() {
    let ram = Ram::new(1 << 20, 0).expect("memory");
    let mut ring = Ring::new(&ram, 8, false, true).expect("a ring");
    let device = Toy::new(&ram, &ring);
    let event = |at: u16| device.store(device.places[2] + 4 + 8 * 8, &at.to_le_bytes());
    event(2);
    let mut kicks = Vec::new();
    for _ in 0..5 {
        ring.add(&pieces(1, 1));
        kicks.push(ring.publish());
    }
    assert_eq!(kicks, [false, false, true, false, false]);
}
