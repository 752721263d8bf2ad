//! The rings against a small device that knows the layouts by itself.

use super::*;

/// A device that takes requests and gives them back in an order of the test's choosing.
struct Device {
    ram: Arc<Ram>,
    places: [u64; 3],
    size: u16,
    packed: bool,
    /// Next available, next used; with wrap counters for a packed ring.
    avail: (u16, bool),
    used: (u16, bool),
    chains: VecDeque<(u16, u16, Vec<Piece>)>,
}

impl Device {
    fn new(ram: &Arc<Ram>, ring: &Ring) -> Self {
        Device {
            ram: Arc::clone(ram),
            places: ring.places(),
            size: ring.size(),
            packed: matches!(ring, Ring::Packed(_)),
            avail: (0, true),
            used: (0, true),
            chains: VecDeque::new(),
        }
    }

    fn bytes<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.mapping().read(self.ram.offset_of(iova, N).expect("inside"), &mut bytes);
        bytes
    }

    fn store(&self, iova: u64, bytes: &[u8]) {
        self.ram.mapping().write(self.ram.offset_of(iova, bytes.len()).expect("inside"), bytes);
    }

    fn half(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.bytes(iova))
    }

    fn take(&mut self) {
        if self.packed { self.take_packed() } else { self.take_split() }
    }

    fn piece(&self, iova: u64, flags_at: u64) -> (Piece, u16) {
        let flags = self.half(iova + flags_at);
        let (address, len) = (u64::from_le_bytes(self.bytes(iova)), u32::from_le_bytes(self.bytes(iova + 8)));
        (Piece { iova: address, len, device_writes: flags & WRITE != 0 }, flags)
    }

    fn take_split(&mut self) {
        let [table, driver, _] = self.places;
        while self.avail.0 != self.half(driver + 2) {
            let head = self.half(driver + 4 + 2 * u64::from(self.avail.0 % self.size));
            let (mut pieces, mut at) = (Vec::new(), head);
            loop {
                let (piece, flags) = self.piece(table + 16 * u64::from(at), 12);
                if flags & INDIRECT != 0 {
                    let mut index = 0;
                    loop {
                        let inner = piece.iova + 16 * u64::from(index);
                        let (one, flags) = self.piece(inner, 12);
                        pieces.push(one);
                        if flags & NEXT == 0 {
                            break;
                        }
                        index = self.half(inner + 14);
                    }
                } else {
                    pieces.push(piece);
                }
                if flags & NEXT == 0 {
                    break;
                }
                at = self.half(table + 16 * u64::from(at) + 14);
            }
            self.chains.push_back((head, 1, pieces));
            self.avail.0 = self.avail.0.wrapping_add(1);
        }
    }

    fn take_packed(&mut self) {
        loop {
            let (mut pieces, mut count, mut place) = (Vec::new(), 0, self.avail);
            loop {
                let iova = self.places[0] + 16 * u64::from(place.0);
                let (piece, flags) = self.piece(iova, 14);
                if (flags & AVAIL != 0) != place.1 || (flags & USED != 0) == place.1 {
                    assert!(pieces.is_empty(), "a request shown before its end was written");
                    return;
                }
                if flags & INDIRECT != 0 {
                    let table =
                        (0..piece.len / 16).map(|at| self.piece(piece.iova + u64::from(at) * 16, 14).0);
                    pieces.extend(table.collect::<Vec<_>>());
                } else {
                    pieces.push(piece);
                }
                count += 1;
                place = step(place, 1, self.size);
                if flags & NEXT == 0 {
                    let id = self.half(iova + 12);
                    self.chains.push_back((id, count, pieces));
                    self.avail = place;
                    break;
                }
            }
        }
    }

    fn give(&mut self, which: usize, written: u32) -> Vec<Piece> {
        let (id, count, pieces) = self.chains.remove(which).expect("a request");
        if self.packed {
            let iova = self.places[0] + 16 * u64::from(self.used.0);
            let flags = if self.used.1 { AVAIL | USED } else { 0 };
            self.store(iova + 8, &written.to_le_bytes());
            self.store(iova + 12, &id.to_le_bytes());
            self.store(iova + 14, &flags.to_le_bytes());
            self.used = step(self.used, count, self.size);
        } else {
            let iova = self.places[2] + 4 + 8 * u64::from(self.used.0 % self.size);
            self.store(iova, &u32::from(id).to_le_bytes());
            self.store(iova + 4, &written.to_le_bytes());
            self.used.0 = self.used.0.wrapping_add(1);
            self.store(self.places[2] + 2, &self.used.0.to_le_bytes());
        }
        pieces
    }
}

fn step((at, wrap): (u16, bool), by: u16, size: u16) -> (u16, bool) {
    if at + by >= size { (at + by - size, !wrap) } else { (at + by, wrap) }
}

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
        let mut device = Device::new(&ram, &ring);
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
        let mut device = Device::new(&ram, &ring);
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
    let mut device = Device::new(&ram, &ring);
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
        let device = Device::new(&ram, &ring);
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
    let device = Device::new(&ram, &ring);
    let event = |at: u16| device.store(device.places[2] + 4 + 8 * 8, &at.to_le_bytes());
    event(2);
    let mut kicks = Vec::new();
    for _ in 0..5 {
        ring.add(&pieces(1, 1));
        kicks.push(ring.publish());
    }
    assert_eq!(kicks, [false, false, true, false, false]);
}
