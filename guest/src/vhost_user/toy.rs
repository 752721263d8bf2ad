//! A small device that knows the layouts of the rings by itself.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ring::{AVAIL, INDIRECT, NEXT, Piece, Ring, USED, WRITE};
use crate::ram::Ram;

/// A device that takes requests and gives them back in an order of the test's choosing.
pub(super) struct Toy {
    ram: Arc<Ram>,
    pub(super) places: [u64; 3],
    size: u16,
    pub(super) packed: bool,
    /// Next available, next used; with wrap counters for a packed ring.
    avail: (u16, bool),
    used: (u16, bool),
    /// Taken and not given back: head or id, descriptors, runs of memory.
    pub(super) chains: VecDeque<(u16, u16, Vec<Piece>)>,
}

impl Toy {
    pub(super) fn new(ram: &Arc<Ram>, ring: &Ring) -> Self {
        Toy {
            ram: Arc::clone(ram),
            places: ring.places(),
            size: ring.size(),
            packed: matches!(ring, Ring::Packed(_)),
            avail: (0, true),
            used: (0, true),
            chains: VecDeque::new(),
        }
    }

    pub(super) fn bytes<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.mapping().read(self.ram.offset_of(iova, N).expect("inside"), &mut bytes);
        bytes
    }

    pub(super) fn store(&self, iova: u64, bytes: &[u8]) {
        self.ram.mapping().write(self.ram.offset_of(iova, bytes.len()).expect("inside"), bytes);
    }

    fn half(&self, iova: u64) -> u16 {
        u16::from_le_bytes(self.bytes(iova))
    }

    pub(super) fn take(&mut self) {
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

    pub(super) fn give(&mut self, which: usize, written: u32) -> Vec<Piece> {
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
