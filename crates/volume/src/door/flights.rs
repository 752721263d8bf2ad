//! What a door has at the drive: a slot for each request that the lower backend took.

use super::gate::Stamp;
use block::Token;

/// What a completion of the lower backend belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A request that went down whole: its own token.
    Request(Token),
    /// A piece of a job.
    Job(usize),
}

/// One request at the drive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) owner: Owner,
    pub(super) stamp: Stamp,
}

/// Slots, whose indices are the tokens of the lower backend.
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Flights {
    pub(super) fn new(depth: usize) -> Self {
        Self { slots: vec![None; depth], free: (0..depth).rev().collect() }
    }

    /// `None`: as much as the drive is given at once is there.
    #[inline]
    pub(super) fn take(&mut self, flight: Flight) -> Option<Token> {
        let slot = self.free.pop()?;
        *self.slots.get_mut(slot)? = Some(flight);
        Some(Token(slot as u64))
    }

    #[inline]
    pub(super) fn end(&mut self, token: Token) -> Option<Flight> {
        let slot = usize::try_from(token.0).ok()?;
        let flight = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(flight)
    }
}
