//! The side that shall own the ssd when a migration ends.

use super::{Alarm, Message, Pledge, Refusal, Rule, Rules, ToDestination, ToSource};

/// What the destination's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationRecord {
    /// Which migration.
    pub pledge: Pledge,
    /// The round that is taken, or was taken last.
    pub round: u32,
    /// How far it is.
    pub step: DestinationStep,
}

/// How far the destination is, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DestinationStep {
    /// Takes blocks; what is there is not whole.
    Incoming,
    /// Has all of the round, and has promised to wait for the source's word.
    Ready,
    /// The owner, because the source granted it.
    Owned,
    /// The owner, because an operator said so.
    Forced,
    /// Not the owner, and never by this migration. It is kept until another migration of the ssd comes, so that none of this one's messages
    /// begins it again.
    Dropped,
    /// Was the owner; the source was taken by force.
    Superseded {
        /// The source's epoch.
        epoch: u64,
    },
}

/// What happens to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DestinationEvent {
    /// The record is durable.
    Written,
    /// From the source.
    Message(Message<ToDestination>),
    /// All that the source sent in this round and all before it, blocks and device state, is durable here.
    Settled {
        /// The round.
        round: u32,
    },
    /// What awaits an answer is said again.
    Retry,
    /// An operator, or want of room, ends the migration here.
    Cancel,
    /// An operator takes the ssd here, and answers for it that the source does not run.
    Force,
}

/// What the destination's driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEffect {
    /// Replace the record, durably.
    Write(DestinationRecord),
    /// To the source.
    Send(Message<ToSource>),
    /// Make durable all that came, and say [`DestinationEvent::Settled`] if nothing is missing.
    Settle {
        /// The round.
        round: u32,
    },
    /// Serve by this epoch, and let the guest run. Done already: nothing.
    Serve {
        /// The epoch.
        epoch: u64,
    },
    /// Serve no more: end clients' sessions, stop the guest.
    Stop,
    /// The copy here is worth nothing: wipe it and free its room.
    Wipe,
    /// Tell who asked, or count it.
    Refuse(Refusal),
    /// Show it until another step.
    Raise(Alarm),
}

/// The destination of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pledge: Pledge,
    round: u32,
    /// `None`: nothing is on record yet.
    step: Option<DestinationStep>,
    /// The last block of the round has come; its data is being made durable.
    settling: bool,
    /// The source knows how it ended.
    closed: bool,
    /// Under way to the journal: until it is there nothing else is done.
    writing: Option<DestinationRecord>,
    rules: Rules,
}

type Effects = Vec<DestinationEffect>;

impl Destination {
    /// Takes part in a migration, when its first `Open` comes and there is room. `seen` is the highest epoch of this ssd that is known here: the one it
    /// was last owned by, or that of the last record.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: an `Open` of a migration that is long over.
    pub fn begin(pledge: Pledge, round: u32, seen: Option<u64>) -> Result<(Self, Effects), Refusal> {
        if let Some(seen) = seen.filter(|seen| *seen >= pledge.epoch) {
            return Err(Refusal::Stale { seen });
        }
        let mut destination = Self {
            pledge,
            round,
            step: None,
            settling: false,
            closed: false,
            writing: None,
            rules: Rules::default(),
        };
        let effects = destination.write(DestinationStep::Incoming);
        Ok((destination, effects))
    }

    /// Goes on from what the journal says after a crash of whatever was between it and the guest.
    #[must_use]
    pub fn recover(record: DestinationRecord) -> (Self, Effects) {
        Self::recover_by(record, Rules::default())
    }

    pub(super) fn recover_by(record: DestinationRecord, rules: Rules) -> (Self, Effects) {
        let DestinationRecord { pledge, round, step } = record;
        let destination =
            Self { pledge, round, step: Some(step), settling: false, closed: false, writing: None, rules };
        let mut effects = destination.arrive(step);
        if let DestinationStep::Superseded { .. } = step {
            effects.insert(0, DestinationEffect::Stop);
        }
        (destination, effects)
    }

    #[cfg(test)]
    pub(super) fn breaking(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// What the migration is about.
    #[must_use]
    pub fn pledge(&self) -> Pledge {
        self.pledge
    }

    /// Whether blocks of this round may be written to the copy. Those of another must not be.
    #[must_use]
    pub fn takes(&self, round: u32) -> bool {
        let step = match &self.writing {
            None => self.step,
            Some(_) if self.rules.keeps(Rule::ReopenAfterJournal) => None,
            Some(record) => Some(record.step),
        };
        step == Some(DestinationStep::Incoming) && round == self.round && !self.settling
    }

    /// It is on record that this side is the owner.
    #[must_use]
    pub fn owns(&self) -> bool {
        matches!(self.step, Some(DestinationStep::Owned | DestinationStep::Forced))
    }

    /// The source knows how it ended, too: the record is kept only against old messages.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// One event.
    pub fn handle(&mut self, event: DestinationEvent) -> Effects {
        if let DestinationEvent::Written = event {
            let Some(record) = self.writing.take() else { return Vec::new() };
            self.step = Some(record.step);
            self.round = record.round;
            return self.arrive(record.step);
        }
        if self.writing.is_some() {
            return match event {
                DestinationEvent::Cancel | DestinationEvent::Force => refuse(Refusal::Busy),
                _ => Vec::new(),
            };
        }
        match event {
            DestinationEvent::Message(message) => self.message(message),
            DestinationEvent::Settled { round } => self.settled(round),
            DestinationEvent::Retry => self.say_again(),
            DestinationEvent::Cancel => self.cancel(),
            DestinationEvent::Force => self.force(),
            DestinationEvent::Written => Vec::new(),
        }
    }

    fn say(&self, word: ToSource) -> DestinationEffect {
        DestinationEffect::Send(Message { pledge: self.pledge, word })
    }

    fn write(&mut self, step: DestinationStep) -> Effects {
        self.settling = false;
        let record = DestinationRecord { pledge: self.pledge, round: self.round, step };
        self.writing = Some(record);
        vec![DestinationEffect::Write(record)]
    }

    /// What is done at a step once it is on record.
    fn arrive(&self, step: DestinationStep) -> Effects {
        let mut effects = match step {
            DestinationStep::Owned | DestinationStep::Forced => {
                vec![DestinationEffect::Serve { epoch: self.pledge.epoch }]
            }
            DestinationStep::Dropped => vec![DestinationEffect::Wipe],
            _ => Vec::new(),
        };
        effects.push(self.answer(step));
        if let DestinationStep::Superseded { epoch } = step {
            effects.push(DestinationEffect::Raise(Alarm::Superseded { epoch }));
        }
        effects
    }

    fn answer(&self, step: DestinationStep) -> DestinationEffect {
        self.say(match step {
            DestinationStep::Incoming => ToSource::Opened { round: self.round },
            DestinationStep::Ready => ToSource::Ready { round: self.round },
            DestinationStep::Owned | DestinationStep::Forced => ToSource::Owned,
            DestinationStep::Dropped | DestinationStep::Superseded { .. } => ToSource::Dropped,
        })
    }

    /// What awaits an answer, and what an operator must know.
    fn say_again(&self) -> Effects {
        let Some(step) = self.step else { return Vec::new() };
        let mut effects = Vec::new();
        if !self.closed {
            effects.push(self.answer(step));
        }
        match step {
            DestinationStep::Ready => effects.push(DestinationEffect::Raise(Alarm::AwaitsSource)),
            DestinationStep::Superseded { epoch } => {
                effects.push(DestinationEffect::Raise(Alarm::Superseded { epoch }));
            }
            _ => {}
        }
        effects
    }

    fn message(&mut self, message: Message<ToDestination>) -> Effects {
        if message.pledge != self.pledge && self.rules.keeps(Rule::OnlyThisMigration) {
            return refuse(Refusal::Stranger);
        }
        let Some(step) = self.step else { return Vec::new() };
        match (message.word, step) {
            (ToDestination::Closed, _) => {
                self.closed = !matches!(step, DestinationStep::Incoming | DestinationStep::Ready);
                Vec::new()
            }
            (ToDestination::Open { round }, DestinationStep::Incoming | DestinationStep::Ready)
                if round > self.round =>
            {
                self.round = round;
                let mut effects = Vec::new();
                if !self.rules.keeps(Rule::ReopenAfterJournal) {
                    effects.push(self.say(ToSource::Opened { round }));
                }
                effects.extend(self.write(DestinationStep::Incoming));
                effects
            }
            (ToDestination::Seal { round }, DestinationStep::Incoming) => self.seal(round),
            (ToDestination::Grant { round }, DestinationStep::Ready) if round == self.round => {
                let mut effects = Vec::new();
                if !self.rules.keeps(Rule::ServeAfterJournal) {
                    effects.push(DestinationEffect::Serve { epoch: self.pledge.epoch });
                }
                effects.extend(self.write(DestinationStep::Owned));
                effects
            }
            (ToDestination::Cancel, DestinationStep::Incoming | DestinationStep::Ready) => {
                self.write(DestinationStep::Dropped)
            }
            (ToDestination::Fenced { epoch }, _) if epoch > self.pledge.epoch => self.fenced(epoch, step),
            _ => vec![self.answer(step)],
        }
    }

    fn seal(&mut self, round: u32) -> Effects {
        if round != self.round {
            return Vec::new();
        }
        if !self.rules.keeps(Rule::ReadyAfterData) {
            return self.write(DestinationStep::Ready);
        }
        self.settling = true;
        vec![DestinationEffect::Settle { round }]
    }

    fn settled(&mut self, round: u32) -> Effects {
        if self.settling && round == self.round {
            return self.write(DestinationStep::Ready);
        }
        Vec::new()
    }

    /// The source was taken by force: whatever was done here, it is the owner.
    fn fenced(&mut self, epoch: u64, step: DestinationStep) -> Effects {
        match step {
            DestinationStep::Incoming | DestinationStep::Ready => self.write(DestinationStep::Dropped),
            DestinationStep::Owned | DestinationStep::Forced if self.rules.keeps(Rule::LaterEpochWins) => {
                let mut effects = vec![DestinationEffect::Stop];
                effects.extend(self.write(DestinationStep::Superseded { epoch }));
                effects
            }
            _ => vec![self.answer(step)],
        }
    }

    /// A destination that has promised may still give back: a source that granted hears it and takes the ssd back.
    fn cancel(&mut self) -> Effects {
        match self.step {
            Some(DestinationStep::Incoming | DestinationStep::Ready) => self.write(DestinationStep::Dropped),
            Some(DestinationStep::Owned | DestinationStep::Forced) => refuse(Refusal::Owner),
            _ => refuse(Refusal::Over),
        }
    }

    fn force(&mut self) -> Effects {
        match self.step {
            Some(DestinationStep::Ready) => self.write(DestinationStep::Forced),
            Some(DestinationStep::Incoming) | None => refuse(Refusal::NotWhole),
            Some(DestinationStep::Owned | DestinationStep::Forced) => refuse(Refusal::Owner),
            Some(DestinationStep::Dropped) => refuse(Refusal::Over),
            Some(DestinationStep::Superseded { .. }) => refuse(Refusal::OwnedElsewhere),
        }
    }
}

fn refuse(why: Refusal) -> Effects {
    vec![DestinationEffect::Refuse(why)]
}
