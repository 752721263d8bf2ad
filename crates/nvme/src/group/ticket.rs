//! What a group asks the controller for, by a ticket: which command it is for, and a number. The slot is another command's as soon as it is
//! answered, and then what is on its way must not be taken for that one's.
//!
//! ```text
//!  31       16 15    8 7     0
//!  |  number  |  SQID  |  slot |
//! ```

use state::region::{QUEUES_MAX, SLOTS_MAX};

const _: () = assert!(QUEUES_MAX <= 256 && SLOTS_MAX <= 256);

/// Makes tickets.
#[derive(Debug, Default)]
pub(super) struct Tickets(u16);

impl Tickets {
    /// One that this group has not given for its last 65,535.
    pub(super) fn next(&mut self, sqid: u16, slot: u16) -> u32 {
        self.0 = self.0.wrapping_add(1);
        u32::from(self.0) << 16 | u32::from(sqid & 0xff) << 8 | u32::from(slot & 0xff)
    }
}

/// Submission queue and slot.
pub(super) fn command_of(ticket: u32) -> (u16, u16) {
    let [slot, sqid, ..] = ticket.to_le_bytes();
    (sqid.into(), slot.into())
}
