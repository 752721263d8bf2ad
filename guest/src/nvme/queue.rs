//! The rings: a tail the driver writes, a head the controller reports, a phase that says what is new.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::command::{Completion, Sqe};
use crate::ram::{Buffer, Ram};
use crate::{Error, Result};

/// Bytes of a submission queue entry.
pub(super) const SQE_BYTES: usize = 64;
/// Bytes of a completion queue entry.
pub(super) const CQE_BYTES: usize = 16;

/// A submission queue of the driver.
#[derive(Debug)]
pub struct SubmissionQueue {
    /// Its identifier.
    pub id: u16,
    /// The completion queue its completions go to.
    pub cqid: u16,
    /// Entries.
    pub depth: u32,
    /// The next free slot.
    pub tail: u32,
    /// The controller's head as last reported.
    pub head: u32,
    ring: Buffer,
    next_cid: u16,
    outstanding: BTreeSet<u16>,
}

impl SubmissionQueue {
    pub(crate) fn new(ram: &Arc<Ram>, id: u16, cqid: u16, depth: u32) -> Result<Self> {
        let ring = ram.alloc(depth as usize * SQE_BYTES)?;
        Ok(SubmissionQueue {
            id,
            cqid,
            depth,
            tail: 0,
            head: 0,
            ring,
            next_cid: 0,
            outstanding: BTreeSet::new(),
        })
    }

    /// The ring's memory.
    #[must_use]
    pub fn ring(&self) -> &Buffer {
        &self.ring
    }

    /// Commands the driver still waits for.
    #[must_use]
    pub fn outstanding(&self) -> &BTreeSet<u16> {
        &self.outstanding
    }

    /// Places a command with a command identifier of the driver's choice and returns it.
    pub(super) fn push(&mut self, sqe: Sqe) -> Result<u16> {
        if (self.tail + 1) % self.depth == self.head || self.outstanding.len() >= usize::from(u16::MAX) {
            return Err(Error::QueueFull(self.id));
        }
        // FFFFh is reserved for error log entries that belong to no command (Base 2.1, Figure 206).
        while self.next_cid == u16::MAX || self.outstanding.contains(&self.next_cid) {
            self.next_cid = self.next_cid.wrapping_add(1);
        }
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        self.push_raw(sqe.cid(cid));
        self.outstanding.insert(cid);
        Ok(cid)
    }

    /// Places a command as it is, even over one that the controller has not fetched.
    pub(super) fn push_raw(&mut self, sqe: Sqe) {
        let block: Vec<u8> = sqe.to_block().iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ring.write(self.tail as usize * SQE_BYTES, &block);
        self.tail = (self.tail + 1) % self.depth;
    }

    pub(super) fn completed(&mut self, completion: &Completion) {
        self.head = u32::from(completion.sqhd) % self.depth;
        self.outstanding.remove(&completion.cid);
    }
}

/// A completion queue of the driver.
#[derive(Debug)]
pub struct CompletionQueue {
    /// Its identifier.
    pub id: u16,
    /// Entries.
    pub depth: u32,
    /// The next entry to look at.
    pub head: u32,
    /// The phase a new entry has.
    pub phase: bool,
    ring: Buffer,
}

impl CompletionQueue {
    pub(crate) fn new(ram: &Arc<Ram>, id: u16, depth: u32) -> Result<Self> {
        let ring = ram.alloc(depth as usize * CQE_BYTES)?;
        Ok(CompletionQueue { id, depth, head: 0, phase: true, ring })
    }

    /// The ring's memory.
    #[must_use]
    pub fn ring(&self) -> &Buffer {
        &self.ring
    }

    /// The next completion, if it is there. The head doorbell is not rung.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let at = self.head as usize * CQE_BYTES;
        // The acquire load of the phase comes before the rest is read.
        let high = self.ring.load_u64(at + 8);
        let (completion, phase) = Completion::from_words(self.ring.load_u64(at), high);
        if phase != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.depth {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> Arc<Ram> {
        Ram::new(1 << 20, 0).unwrap()
    }

    #[test]
    fn a_ring_of_four_takes_three_commands() {
        let mut queue = SubmissionQueue::new(&ram(), 1, 1, 4).unwrap();
        for cid in 0..3 {
            assert_eq!(queue.push(Sqe::new(2)).unwrap(), cid);
        }
        assert!(matches!(queue.push(Sqe::new(2)), Err(Error::QueueFull(1))));
        queue.completed(&Completion { sqhd: 1, cid: 0, ..Completion::default() });
        assert_eq!(queue.push(Sqe::new(2)).unwrap(), 3);
        assert_eq!(queue.tail, 0);
    }

    #[test]
    fn a_command_identifier_in_use_is_not_given_again() {
        let mut queue = SubmissionQueue::new(&ram(), 0, 0, 8).unwrap();
        let parked = queue.push(Sqe::new(0x0C)).unwrap();
        for _ in 0..70_000 {
            let cid = queue.push(Sqe::new(2)).unwrap();
            assert_ne!(cid, parked);
            assert_ne!(cid, u16::MAX);
            let sqhd = u16::try_from(queue.tail).unwrap();
            queue.completed(&Completion { sqhd, cid, ..Completion::default() });
        }
    }

    #[test]
    fn the_phase_turns_when_the_ring_wraps() {
        let mut queue = CompletionQueue::new(&ram(), 1, 2).unwrap();
        assert_eq!(queue.pop(), None);
        for round in 0..4_u64 {
            let phase = u64::from(round.is_multiple_of(2));
            for slot in 0..2 {
                queue.ring().store_u64(slot * CQE_BYTES + 8, phase << 48 | round << 32);
                assert_eq!(u64::from(queue.pop().unwrap().cid), round);
                assert_eq!(queue.pop(), None);
            }
        }
    }
}
