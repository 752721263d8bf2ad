//! The wire: connections with a delay of their own, cuts, stalls, and the line that the words about the ownership go by.
//!
//! Bytes of one connection come in order or not at all. Between connections there is no order: each has its own delay, and each piece is late by
//! chance.

use std::collections::VecDeque;
use std::io::ErrorKind;

use transfer::commit::{Message, ToDestination, ToSource};

use super::actors::End;
use crate::rng::Rng;

/// How long a socket waits, in either direction.
pub(super) const SOCKET_NS: u64 = 400_000_000;
/// Bytes on the way in one direction before the sender waits.
const BUFFER_BYTES: usize = 96 << 10;

struct Piece {
    at: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Direction {
    pieces: VecDeque<Piece>,
    last_at: u64,
    /// From when on the receiver sees that it is over: broken, or closed.
    over: Option<(u64, bool)>,
}

struct Connection {
    stream: u16,
    delay: u64,
    /// To the destination, and to the source: who receives is the index.
    to: [Direction; 2],
    stalled_until: u64,
    accepted: bool,
}

/// A word on its way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    ToSource(Message<ToSource>),
    ToDestination(Message<ToDestination>),
}

/// See the module.
pub(super) struct Wire {
    connections: Vec<Option<Connection>>,
    /// Words to each host.
    lines: [VecDeque<(u64, Word)>; 2],
    /// Nobody gets through before this.
    pub(super) down_until: u64,
    rng: Rng,
    /// Cuts so far.
    pub(super) cuts: u64,
    /// Words come again, late.
    pub(super) repeats: bool,
}

impl Wire {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            connections: Vec::new(),
            lines: Default::default(),
            down_until: 0,
            rng,
            cuts: 0,
            repeats: true,
        }
    }

    fn delay(&mut self) -> u64 {
        match self.rng.below(3) {
            0 => 100_000,
            1 => 1_000_000,
            _ => 4_000_000,
        }
    }

    /// A new connection, which the other side has not accepted yet.
    pub(super) fn connect(&mut self, stream: u16, now: u64) -> Option<End> {
        if now < self.down_until {
            return None;
        }
        let delay = self.delay();
        self.connections.push(Some(Connection {
            stream,
            delay,
            to: Default::default(),
            stalled_until: 0,
            accepted: false,
        }));
        Some((self.connections.len() - 1, 0))
    }

    /// One that waits to be accepted, whichever.
    pub(super) fn accept(&mut self) -> Option<End> {
        let waits = |connection: &Option<Connection>| connection.as_ref().is_some_and(|it| !it.accepted);
        let waiting: Vec<usize> =
            (0..self.connections.len()).filter(|at| waits(&self.connections[*at])).collect();
        let at = self.rng.pick(&waiting)?;
        self.connections[at].as_mut()?.accepted = true;
        Some((at, 1))
    }

    pub(super) fn stream_of(&self, (at, _): End) -> u16 {
        self.connections.get(at).and_then(Option::as_ref).map_or(0, |connection| connection.stream)
    }

    /// Takes a part of the bytes, or says why not. `None`: not yet.
    pub(super) fn send(
        &mut self,
        (at, side): End,
        bytes: &[u8],
        now: u64,
        since: u64,
    ) -> Option<Result<usize, ErrorKind>> {
        let Some(Some(connection)) = self.connections.get_mut(at) else {
            return Some(Err(ErrorKind::BrokenPipe));
        };
        if connection.to[side].over.is_some_and(|(when, _)| when <= now) {
            return Some(Err(ErrorKind::BrokenPipe));
        }
        let to = &mut connection.to[1 - side];
        if to.over.is_some() {
            // It is lost; the sender does not know yet.
            return Some(Ok(bytes.len()));
        }
        let under_way: usize = to.pieces.iter().map(|piece| piece.bytes.len()).sum();
        if under_way >= BUFFER_BYTES {
            return (now > since + SOCKET_NS).then_some(Err(ErrorKind::WouldBlock));
        }
        let part = if self.rng.one_in(8) { 1 + self.rng.below(bytes.len()) } else { bytes.len() };
        let late = if self.rng.one_in(4) { connection.delay * self.rng.below(4) as u64 } else { 0 };
        let when = to.last_at.max(now + connection.delay + late);
        to.last_at = when;
        to.pieces.push_back(Piece { at: when, bytes: bytes[..part].to_vec() });
        Some(Ok(part))
    }

    /// What has come, at most so much. `None`: nothing yet.
    pub(super) fn receive(
        &mut self,
        (at, side): End,
        max: usize,
        now: u64,
        since: u64,
    ) -> Option<Result<Vec<u8>, ErrorKind>> {
        let Some(Some(connection)) = self.connections.get_mut(at) else {
            return Some(Err(ErrorKind::ConnectionReset));
        };
        let stalled = now < connection.stalled_until;
        let from = &mut connection.to[side];
        if let Some(piece) = from.pieces.front_mut().filter(|piece| piece.at <= now && !stalled) {
            let rest = piece.bytes.split_off(max.min(piece.bytes.len()));
            let bytes = std::mem::replace(&mut piece.bytes, rest);
            if piece.bytes.is_empty() {
                from.pieces.pop_front();
            }
            return Some(Ok(bytes));
        }
        match from.over {
            Some((when, closed)) if when <= now && from.pieces.is_empty() => {
                Some(if closed { Ok(Vec::new()) } else { Err(ErrorKind::ConnectionReset) })
            }
            _ => (now > since + SOCKET_NS).then_some(Err(ErrorKind::WouldBlock)),
        }
    }

    /// One end is not used any more: what it has sent still comes, and then its end.
    pub(super) fn close(&mut self, (at, side): End, now: u64) {
        let Some(place) = self.connections.get_mut(at) else { return };
        let Some(connection) = place else { return };
        let to = &mut connection.to[1 - side];
        to.over.get_or_insert((to.last_at.max(now), true));
        connection.to[side].pieces.clear();
        connection.to[side].over = Some((0, true));
        if connection.to.iter().all(|to| to.over == Some((0, true))) {
            *place = None;
        }
    }

    /// All of one side's ends are closed by the end of its process.
    pub(super) fn close_all(&mut self, side: usize, now: u64) {
        (0..self.connections.len()).for_each(|at| self.close((at, side), now));
    }

    /// Cuts a connection, whichever: of what is on its way a beginning comes, and each side hears of it in its own time.
    pub(super) fn cut_one(&mut self, now: u64) {
        let live: Vec<usize> =
            (0..self.connections.len()).filter(|at| self.connections[*at].is_some()).collect();
        if let Some(at) = self.rng.pick(&live) {
            self.cut(at, now);
        }
    }

    fn cut(&mut self, at: usize, now: u64) {
        let Some(Some(connection)) = self.connections.get_mut(at) else { return };
        self.cuts += 1;
        for to in connection.to.iter_mut().filter(|to| to.over.is_none()) {
            let keep = self.rng.below(to.pieces.len() + 1);
            to.pieces.truncate(keep);
            if let Some(last) = to.pieces.back_mut() {
                let bytes = 1 + self.rng.below(last.bytes.len());
                last.bytes.truncate(bytes);
            }
            to.over = Some((to.last_at.max(now) + self.rng.below(20_000_000) as u64, false));
        }
    }

    /// Nothing gets through for a while, and all that was on its way is lost.
    pub(super) fn cut_all(&mut self, now: u64, until: u64) {
        (0..self.connections.len()).for_each(|at| self.cut(at, now));
        self.lines.iter_mut().for_each(VecDeque::clear);
        self.down_until = until;
    }

    /// A connection, whichever, is silent for a while.
    pub(super) fn stall_one(&mut self, until: u64) {
        let live: Vec<usize> =
            (0..self.connections.len()).filter(|at| self.connections[*at].is_some()).collect();
        if let Some(Some(connection)) = self.rng.pick(&live).and_then(|at| self.connections.get_mut(at)) {
            connection.stalled_until = until;
        }
    }

    /// A word to a host.
    pub(super) fn say(&mut self, to: usize, word: Word, now: u64) {
        if now < self.down_until {
            return;
        }
        let at = now + self.delay();
        self.lines[to].push_back((at, word));
        if self.repeats && self.rng.one_in(20) {
            let late = at + self.rng.below(300_000_000) as u64;
            self.lines[to].push_back((late, word));
        }
    }

    /// The next word that has come to a host: any that is due.
    pub(super) fn hear(&mut self, host: usize, now: u64) -> Option<Word> {
        let at = self.lines[host].iter().position(|(at, _)| *at <= now)?;
        self.lines[host].remove(at).map(|(_, word)| word)
    }

    /// The host is not there to hear.
    pub(super) fn deafen(&mut self, host: usize) {
        self.lines[host].clear();
    }
}
