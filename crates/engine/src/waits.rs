//! How long what a seat hands in has waited: in its queue, and for its limits or for the sake of others. Pure.
//!
//! ```text
//!  came after `since` |---- queue ----| refused, or behind one that was |---- throttle ----| handed in
//! ```
//! From the first refusal until a turn that refuses nothing, all that waits at the seat waits for that reason.

use block::Now;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    now: Now,
    /// When the queues were last looked at.
    looked: Now,
    /// Of what is handed in now.
    wait: Wait,
    held: Option<Held>,
}

/// The two parts of a wait, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) queue_ns: u64,
    /// 0: nothing held it back.
    pub(crate) throttle_ns: u64,
}

#[derive(Debug)]
struct Held {
    since: Now,
    /// The request that was refused first and comes again first: how long it had waited in its queue.
    refused: Option<(u64, Now)>,
    /// Also in this turn.
    again: bool,
}

impl Waits {
    /// A turn begins. What it finds came after the last look, if nobody knows better.
    #[inline]
    pub(crate) fn turn(&mut self, now: Now) {
        self.now = now;
        self.since(self.looked);
    }

    /// The time of the turn.
    #[inline]
    pub(crate) fn now(&self) -> Now {
        self.now
    }

    /// Nothing had come at this time.
    #[inline]
    pub(crate) fn looked_at(&mut self, at: Now) {
        self.looked = at;
    }

    /// What is handed in from now on was not there yet at `since`.
    #[inline]
    pub(crate) fn since(&mut self, since: Now) {
        let all_ns = self.now.0.saturating_sub(since.0);
        let throttle_ns = match &self.held {
            None => 0,
            Some(held) => self.now.0.saturating_sub(held.since.0).min(all_ns),
        };
        self.wait = Wait { queue_ns: all_ns - throttle_ns, throttle_ns };
    }

    /// A request may not go.
    #[cold]
    pub(crate) fn refused(&mut self) {
        let now = self.now;
        let held = self.held.get_or_insert(Held { since: now, refused: None, again: true });
        held.again = true;
        held.refused.get_or_insert((self.wait.queue_ns, now));
    }

    /// A request goes.
    #[inline]
    pub(crate) fn gone(&mut self) -> Wait {
        match &mut self.held {
            None => self.wait,
            Some(held) => match held.refused.take() {
                None => self.wait,
                Some((queue_ns, at)) => {
                    Wait { queue_ns, throttle_ns: self.now.0.saturating_sub(at.0).max(1) }
                }
            },
        }
    }

    /// The turn ends. `shut`: it looked at no queue, because nothing of the seat may go.
    #[inline]
    pub(crate) fn end(&mut self, shut: bool) {
        if shut {
            return;
        }
        self.looked = self.now;
        if let Some(held) = &mut self.held
            && !std::mem::take(&mut held.again)
        {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(queue_ns: u64, throttle_ns: u64) -> Wait {
        Wait { queue_ns, throttle_ns }
    }

    #[test]
    fn without_limits_all_of_a_wait_is_the_queues() {
        let mut waits = Waits::default();
        waits.turn(Now(1000));
        waits.end(false);
        waits.turn(Now(1500));
        assert_eq!(waits.gone(), wait(500, 0));
        waits.since(Now(200));
        assert_eq!((waits.gone(), waits.gone()), (wait(1300, 0), wait(1300, 0)));
    }

    #[test]
    fn who_was_refused_and_who_is_behind_it_wait_for_the_limit() {
        let mut waits = Waits::default();
        waits.turn(Now(1000));
        waits.end(false);
        waits.turn(Now(1300));
        waits.refused();
        waits.end(false);
        waits.turn(Now(2000));
        waits.end(true);
        waits.turn(Now(5300));
        assert_eq!(waits.gone(), wait(300, 4000), "the one that was refused");
        waits.since(Now(1200));
        assert_eq!(waits.gone(), wait(100, 4000), "one that was there before the refusal");
        waits.since(Now(4000));
        assert_eq!(waits.gone(), wait(0, 1300), "one that came later");
        waits.refused();
        waits.end(false);
        waits.turn(Now(6300));
        assert_eq!(waits.gone(), wait(0, 1000));
        waits.end(false);
        waits.turn(Now(6400));
        assert_eq!(waits.gone(), wait(100, 0), "nothing was refused in the turn before");
    }
}
