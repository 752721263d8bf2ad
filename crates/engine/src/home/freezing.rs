//! Coming to rest for another process: nothing new begins, what is at the drive ends, all else stays in the region.
//!
//! What waits for space in a pool is not at the drive: it stays in the region, too, and is begun again by who comes next. There is no way
//! back: who froze ends with its process, so nobody here ever goes on with what was left.

use super::Home;
use crate::message::Answer;
use block::Backend;
use nvme::sink::GroupEvent;
use std::sync::mpsc::SyncSender;

/// See the module.
#[derive(Default)]
pub(super) struct Freezing {
    wanted: bool,
    /// Who asked for it.
    reply: Option<SyncSender<Answer>>,
    /// Calls that came too late. They are made again to who comes next, so nobody may hear that they failed.
    unanswered: Vec<SyncSender<Answer>>,
}

impl Freezing {
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn want(&mut self, reply: SyncSender<Answer>) {
        self.wanted = true;
        self.reply = Some(reply);
    }

    pub(super) fn leave_unanswered(&mut self, reply: SyncSender<Answer>) {
        self.unanswered.push(reply);
    }
}

impl Home {
    /// Stops every group, and answers once all have stopped and nothing is at the drive.
    pub(super) fn freeze(&mut self) {
        self.links.freeze(&self.seat);
        loop {
            if let Some(command) = self.links.local.pop_front() {
                self.seat.command(command);
            } else if let Some(event) = self.seat.desk.reports.pop_front() {
                self.frozen_event(event);
            } else {
                break;
            }
        }
        let quiet = self.links.is_frozen() && self.seat.desk.backend.at_drive() == 0;
        if let Some(reply) = self.freezing.reply.take_if(|_| quiet) {
            let _ = reply.send(Answer::Done);
        }
    }

    /// Of what groups say now only the end of their pause counts.
    pub(super) fn frozen_event(&mut self, event: GroupEvent) {
        let _ = self.links.gather(event);
    }
}
