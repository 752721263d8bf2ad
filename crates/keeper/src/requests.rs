//! Requests that engines made to a client: each has an id of the keeper's on the client's socket, so that a reply to a dead
//! engine's request finds nobody and is dropped.

use std::collections::HashMap;

/// The most requests that may wait for their replies, dead engines' included.
const WAITING_MAX: usize = 8192;

/// Ids of one session.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// By the id the client sees: the engine's own id, or `None` if that engine is dead.
    pub(crate) waiting: HashMap<u16, Option<u16>>,
    pub(crate) next: u16,
    /// Replies that nobody had asked for, or nobody waits for any more.
    pub(crate) unasked: u64,
}

impl Requests {
    /// Goes on where an earlier keeper stopped.
    pub(crate) fn resume(waiting: impl Iterator<Item = (u16, Option<u16>)>, next: u16) -> Self {
        Self { waiting: waiting.collect(), next, unasked: 0 }
    }

    /// Gives the engine's request an id of its own. `None`: too many wait.
    pub(crate) fn asked(&mut self, mut frame: Vec<u8>, wants_reply: bool) -> Option<Vec<u8>> {
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        let theirs = u16::from_le_bytes(*frame.first_chunk()?);
        while self.waiting.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let ours = self.next;
        self.next = self.next.wrapping_add(1);
        if wants_reply {
            self.waiting.insert(ours, Some(theirs));
        }
        frame.get_mut(..2)?.copy_from_slice(&ours.to_le_bytes());
        Some(frame)
    }

    /// Gives a reply the id that the engine knows. `None`: nobody waits for it.
    pub(crate) fn answered(&mut self, mut frame: Vec<u8>) -> Option<Vec<u8>> {
        let ours = u16::from_le_bytes(*frame.first_chunk()?);
        let Some(theirs) = self.waiting.remove(&ours).flatten() else {
            self.unasked += 1;
            return None;
        };
        frame.get_mut(..2)?.copy_from_slice(&theirs.to_le_bytes());
        Some(frame)
    }

    /// The engine is dead: replies to it are dropped when they come. Until then their ids stay taken.
    pub(crate) fn forget_engine(&mut self) {
        self.waiting.values_mut().for_each(|engine| *engine = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: u16) -> Vec<u8> {
        [&id.to_le_bytes()[..], b"rest"].concat()
    }

    fn id(frame: &[u8]) -> u16 {
        u16::from_le_bytes([frame[0], frame[1]])
    }

    #[test]
    fn a_reply_comes_back_with_the_engines_own_id() {
        let mut requests = Requests::default();
        let one = requests.asked(frame(7), true).expect("room");
        let two = requests.asked(frame(7), true).expect("room");
        assert_ne!(id(&one), id(&two));
        assert_eq!(requests.answered(two), Some(frame(7)));
        assert_eq!(requests.answered(one.clone()), Some(frame(7)));
        assert_eq!(requests.answered(one), None, "a second reply");
        assert_eq!(requests.unasked, 1);
    }

    #[test]
    fn a_reply_to_a_dead_engines_request_reaches_nobody_and_its_id_is_not_given_to_another() {
        let mut requests = Requests::default();
        let dead = requests.asked(frame(1), true).expect("room");
        requests.forget_engine();
        requests.next = id(&dead);
        let living = requests.asked(frame(1), true).expect("room");
        assert_ne!(id(&dead), id(&living));
        assert_eq!(requests.answered(dead), None);
        assert_eq!(requests.answered(living), Some(frame(1)));
    }

    #[test]
    fn requests_without_replies_take_no_room_and_others_are_bounded() {
        let mut requests = Requests::default();
        for _ in 0..200_000 {
            assert!(requests.asked(frame(1), false).is_some());
        }
        for _ in 0..WAITING_MAX {
            assert!(requests.asked(frame(1), true).is_some());
        }
        assert!(requests.asked(frame(1), true).is_none());
    }

    #[test]
    fn a_frame_without_an_id_is_nothing() {
        assert_eq!(Requests::default().asked(vec![1], true), None);
        assert_eq!(Requests::default().answered(vec![]), None);
    }
}
