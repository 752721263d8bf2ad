//! Who decides at a seat whether a request may go to the drive now: the ssd's limits, its part of the reactor's turn, and its part
//! of a drive that others use.

use crate::terms::{Hold, Terms};
use block::{Now, Request};
use qos::allowance::cost;
use qos::{Allowance, Gate, Member};
use std::sync::Arc;

/// Bytes handed to the drive in one turn at most, but for the last request: a drive that is done at once (`ram`) must not
/// keep the reactor from its other ssds. About half a millisecond of copying.
pub(crate) const TURN_BYTES_MAX: u64 = 4 << 20;
/// The same for an ssd of the default weight while others are at work on the reactor.
const TURN_BYTES_CROWDED: u64 = 256 << 10;

/// See the module.
pub(crate) struct Admission {
    terms: Arc<Terms>,
    gate: Gate,
    allowance: Allowance,
    member: Option<Member>,
    /// Cost of what may still be handed in in this turn.
    left: i64,
    /// What that was at the beginning.
    granted: i64,
    /// Something was refused for want of it.
    held: bool,
    /// What was taken must be answered: limits do not count.
    winding_up: bool,
    hold: Hold,
}

impl Admission {
    pub(crate) fn new(terms: &Arc<Terms>) -> Self {
        Self {
            gate: Gate::new(terms.throttle()),
            allowance: Allowance::default(),
            member: terms.party().map(|party| Member::new(Arc::clone(party))),
            hold: terms.hold(),
            terms: Arc::clone(terms),
            left: 0,
            granted: 0,
            held: false,
            winding_up: false,
        }
    }

    /// A turn begins: `ended` requests came back from the drive, `in_flight` are there still. `crowded`: other ssds are at work on
    /// this reactor.
    #[inline]
    pub(crate) fn begin(&mut self, now: Now, crowded: bool, in_flight: usize, ended: usize) {
        self.gate.turn(now);
        self.left = match &mut self.member {
            Some(member) => {
                let turn = if crowded {
                    self.allowance.turn(member.weight(), TURN_BYTES_CROWDED)
                } else {
                    self.allowance.alone(TURN_BYTES_MAX)
                };
                turn.min(member.turn(now, in_flight, ended))
            }
            None => self.allowance.alone(TURN_BYTES_MAX),
        };
        if self.hold != Hold::Open {
            self.left = 0;
        }
        self.granted = self.left;
    }

    /// Whether a request may go. If so it is paid for. Always inlined: as a call it would read the operation, just stored byte by
    /// byte, as one word, which waits for the stores.
    #[inline(always)]
    pub(crate) fn admits(&mut self, request: &Request<'_>) -> bool {
        let len_bytes = request.range.len_bytes;
        if self.left <= 0 && (len_bytes > 0 || self.hold == Hold::Frozen) {
            self.held = true;
            return false;
        }
        if !self.winding_up && !self.gate.admit(request.op, len_bytes) {
            return false;
        }
        self.left = self.left.saturating_sub(cost(len_bytes));
        true
    }

    /// Whether what was refused just now waits for its limit or for the sake of others, and not only for the next turn.
    #[cold]
    pub(crate) fn is_holding(&self) -> bool {
        self.shut_until().is_some() || self.granted < i64::try_from(TURN_BYTES_MAX).unwrap_or(i64::MAX)
    }

    /// As [`Admission::admits`] for what a controller does by itself: that is not the guest's, and not limited.
    pub(crate) fn admits_own(&mut self, request: &Request<'_>) -> bool {
        let len_bytes = request.range.len_bytes;
        if self.left <= 0 && (len_bytes > 0 || self.hold == Hold::Frozen) {
            return false;
        }
        self.left = self.left.saturating_sub(cost(len_bytes));
        true
    }

    /// The drive had no room for what was admitted.
    #[cold]
    pub(crate) fn no_room(&mut self, request: &Request<'_>) {
        if !self.winding_up {
            self.gate.refund(request.op, request.range.len_bytes);
        }
        self.left = self.left.saturating_add(cost(request.range.len_bytes));
    }

    /// The turn ends.
    #[inline]
    pub(crate) fn end(&mut self, in_flight: usize) {
        let spent = self.granted.saturating_sub(self.left);
        self.allowance.spend(spent);
        let held = std::mem::take(&mut self.held);
        if let Some(member) = &mut self.member {
            member.end(spent, in_flight, held);
        }
    }

    /// Until when nothing of this seat may go: its limits have been reached and something waits.
    #[inline]
    pub(crate) fn shut_until(&self) -> Option<Now> {
        if self.hold != Hold::Open {
            return Some(Now(u64::MAX));
        }
        self.gate.shut_until().filter(|_| !self.winding_up)
    }

    /// Nothing of the ssd may change now.
    #[inline]
    pub(crate) fn is_frozen(&self) -> bool {
        self.hold == Hold::Frozen
    }

    /// The ssd is not this host's any more: nothing of its client's is answered.
    pub(crate) fn is_closed(&self) -> bool {
        self.hold == Hold::Closed
    }

    /// What was taken must be answered, however long it would take by the limits.
    pub(crate) fn wind_up(&mut self, winding_up: bool) {
        self.winding_up = winding_up;
    }

    /// The ssd's limits were changed, or it was frozen or thawed.
    pub(crate) fn change(&mut self) {
        self.hold = self.terms.hold();
        if self.hold != Hold::Open {
            self.left = 0;
        }
        self.gate.change(self.terms.throttle());
    }
}
