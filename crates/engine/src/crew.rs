//! The shared reactors: which there are, and which of them are on duty.
//!
//! A reactor is known by its index for as long as the process lives. One that is taken off duty gives up its seats and sleeps; its thread
//! stays, passes on what still comes for homes that were there, and is the first to be put on duty again. So no address ever dangles, and
//! nobody who sends a message has to ask first.

use crate::mailbox::Mailbox;
use crate::message::{Address, Message};
use api::config::REACTORS_MAX;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const _: () = assert!(REACTORS_MAX == 64, "one bit each");

/// See the module.
pub(crate) struct Crew {
    addresses: Vec<Address>,
    /// Bit by bit: a thread reads that mailbox.
    manned: AtomicU64,
    /// Bit by bit: it is on duty.
    on_duty: AtomicU64,
}

impl Crew {
    /// Nobody yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let addresses = (0..REACTORS_MAX).map(|_| Mailbox::new().map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { addresses, manned: AtomicU64::new(0), on_duty: AtomicU64::new(0) }))
    }

    /// One reactor by itself, on duty.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn private() -> std::io::Result<Arc<Self>> {
        let addresses = vec![Arc::new(Mailbox::new()?)];
        Ok(Arc::new(Self { addresses, manned: AtomicU64::new(1), on_duty: AtomicU64::new(1) }))
    }

    /// Where messages reach a reactor.
    pub(crate) fn address(&self, index: usize) -> &Address {
        &self.addresses[index % self.addresses.len()]
    }

    /// How many indices there are.
    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Those that have a thread.
    pub(crate) fn manned(&self) -> impl Iterator<Item = usize> + use<> {
        bits(self.manned.load(Ordering::Acquire))
    }

    pub(crate) fn on_duty(&self) -> impl Iterator<Item = usize> + use<> {
        bits(self.on_duty.load(Ordering::Acquire))
    }

    pub(crate) fn is_on_duty(&self, index: usize) -> bool {
        index < REACTORS_MAX && self.on_duty.load(Ordering::Acquire) >> index & 1 == 1
    }

    /// A thread reads this reactor's mailbox from now on.
    pub(crate) fn man(&self, index: usize) {
        self.manned.fetch_or(1 << index, Ordering::AcqRel);
    }

    /// The first so many are on duty from now on, and no others. They have threads.
    pub(crate) fn call_up(&self, count: usize) {
        self.on_duty.store(u64::MAX >> (REACTORS_MAX - count.clamp(1, REACTORS_MAX)), Ordering::Release);
    }

    /// The reactor for the so-manieth of things that are dealt out in turn.
    pub(crate) fn deal(&self, number: usize) -> usize {
        let on_duty: Vec<usize> = self.on_duty().collect();
        on_duty.get(number % on_duty.len().max(1)).copied().unwrap_or(0)
    }

    /// To all that have a thread.
    pub(crate) fn tell_all(&self, message: impl Fn() -> Message) {
        self.manned().for_each(|index| self.address(index).send(message()));
    }
}

fn bits(word: u64) -> impl Iterator<Item = usize> + use<> {
    (0..REACTORS_MAX).filter(move |index| word >> index & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_dealt_out_among_those_on_duty() {
        let crew = Crew::new().unwrap();
        crew.call_up(3);
        assert!((0..5).map(|number| crew.deal(number)).eq([0, 1, 2, 0, 1]));
        crew.call_up(1);
        assert!((0..5).all(|number| crew.deal(number) == 0));
        crew.call_up(64);
        assert_eq!(crew.on_duty().count(), 64);
        assert!(crew.is_on_duty(63) && !crew.is_on_duty(64));
        assert_eq!(crew.manned().count(), 0);
    }
}
