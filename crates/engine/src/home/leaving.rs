//! Giving the ssd to its session, for as long as the client wants it to stand still.
//!
//! As for a move to another reactor every group pauses and drains. But where the ssd goes nothing hears of it any more, so that nothing may be on
//! its way: no record to the record keeper, and no word of one to a group.

use super::{Goal, Home};
use crate::message::{Answer, Settlement};
use std::sync::mpsc::SyncSender;

/// See the module.
#[derive(Default)]
pub(super) struct Leaving {
    /// Who asked for the ssd.
    reply: Option<SyncSender<Answer>>,
    /// A record became stable since the groups paused: one may yet answer a command for it.
    recorded: bool,
}

impl Leaving {
    pub(super) fn note_record(&mut self) {
        self.recorded = true;
    }
}

impl Home {
    pub(super) fn leave(&mut self, reply: SyncSender<Answer>) {
        self.leaving = Leaving { reply: Some(reply), recorded: false };
        self.links.want_away();
    }

    /// It takes too long for whoever asked.
    pub(super) fn stay(&mut self) {
        if self.leaving.reply.take().is_some() {
            let here = if self.private { Goal::Private } else { Goal::Shared(self.links.here()) };
            self.links.stay(&self.seat, here);
        }
    }

    /// Whether nothing that a move would take along is left behind.
    pub(super) fn may_leave(&self) -> bool {
        self.links.goal() != Goal::Away || !self.controller.is_recording() && !self.leaving.recorded
    }

    /// The groups were told of a record while they paused.
    pub(super) fn pause_before_leaving(&mut self) {
        let rests = self.links.is_paused() && self.controller.is_quiet() && !self.controller.is_recording();
        if self.links.goal() == Goal::Away && rests && self.leaving.recorded {
            self.leaving.recorded = false;
            self.links.pause_again(&self.seat);
        }
    }

    /// Goes.
    pub(crate) fn depart(mut self) -> Option<(SyncSender<Answer>, Settlement)> {
        let reply = self.leaving.reply.take()?;
        Some((reply, self.pack()))
    }
}
