//! The side that owns the ssd when a migration begins.

use super::{Alarm, Destination, Message, Pledge, Refusal, Rule, Rules, ToDestination, ToSource};

/// What the source's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRecord {
    /// Which migration.
    pub pledge: Pledge,
    /// The epoch that the ssd is owned by here, while it is.
    pub held: u64,
    /// The last round that was opened.
    pub round: u32,
    /// How far it is.
    pub step: SourceStep,
}

/// How far the source is, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceStep {
    /// Owner. A destination may be copying.
    Offered,
    /// The one atomic step: not the owner any more, unless the destination gives it back or an operator takes it.
    Granted,
    /// The destination owns it; the copy here is stale.
    Gone,
    /// Owner. The destination has yet to say that it has dropped its copy.
    Cancelling,
    /// Owner, and the destination knows.
    Cancelled,
    /// Owner by the epoch after the pledged one (`held` says so). The destination has yet to hear of it.
    TakenBack,
    /// Taken back, and the destination knows.
    TakenBackHeard,
    /// The destination was taken by force while this side owned.
    Superseded,
}

/// What the hypervisor at the source says of its own migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VmWord {
    /// The guest runs here again, or will: it failed or was cancelled.
    Resumed,
    /// The guest's memory is over there whole, and it does not run here by itself any more.
    Completed,
}

/// What happens to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceEvent {
    /// The record is durable.
    Written,
    /// From the destination.
    Message(Message<ToSource>),
    /// The moment has come: little is left to copy, and the hypervisor holds the guest (`pre-switchover`).
    SwitchOver,
    /// Nothing is in flight any more, and the last blocks are on their way.
    Frozen,
    /// The hypervisor's word on the migration that it began in this round. Without a hypervisor: `Completed` follows
    /// [`SourceEffect::ContinueVm`] at once.
    Vm {
        /// The round that was [frozen](SourceEffect::Freeze) for it.
        round: u32,
        /// The word.
        word: VmWord,
    },
    /// What awaits an answer is said again.
    Retry,
    /// The stun has lasted too long, or the connection is lost.
    Expired,
    /// An operator ends the migration.
    Cancel,
    /// An operator takes the ssd here, and answers for it that the destination does not run.
    Force,
}

/// What the source's driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEffect {
    /// Replace the record, durably.
    Write(SourceRecord),
    /// To the destination.
    Send(Message<ToDestination>),
    /// The destination takes blocks of this round: copy what has changed.
    Copy {
        /// The round.
        round: u32,
    },
    /// Queue all I/O from now on and fail none. Done already: nothing.
    Freeze,
    /// The destination has all of it: let the hypervisor go on (`migrate-continue`).
    ContinueVm {
        /// The round.
        round: u32,
    },
    /// Serve by this epoch, the queue first. End the hypervisor's migration; if it has completed, let the guest run here (`cont`).
    /// Done already: nothing.
    Thaw {
        /// The epoch.
        epoch: u64,
    },
    /// Serve no more: end clients' sessions.
    Stop,
    /// The copy here is stale: wipe it, or keep it marked so.
    Wipe,
    /// Tell who asked, or count it.
    Refuse(Refusal),
    /// Show it until another step.
    Raise(Alarm),
}

/// Where the source is between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    /// Nothing is on record yet.
    New,
    /// Asks the destination to open the round.
    Opening,
    Copying,
    Freezing,
    Frozen {
        ready: bool,
        completed: bool,
    },
    /// As the record says.
    At(SourceStep),
}

/// The source of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pledge: Pledge,
    held: u64,
    round: u32,
    phase: Phase,
    /// Under way to the journal: until it is there nothing else is done.
    writing: Option<SourceRecord>,
    rules: Rules,
}

type Effects = Vec<SourceEffect>;

impl Source {
    /// Begins a migration of an ssd that is owned here by epoch `held`. `former` is the migration before, if there was one.
    ///
    /// # Errors
    /// [`Refusal::Unheard`]: the destination of the one before might still become the owner. [`Refusal::Unclosed`]: its source might still be taken by
    /// force. [`Refusal::OwnedElsewhere`]: by the former, this side does not own the ssd. [`Refusal::Stale`]: `held` is not the epoch that it is owned by.
    /// [`Refusal::Exhausted`]: there are no epochs left.
    pub fn begin(
        migration: [u8; 16],
        held: u64,
        former: Option<Former<'_>>,
    ) -> Result<(Self, Effects), Refusal> {
        let (owned, pledged) = former.map_or(Ok((held, 0)), |former| former.owned_and_pledged())?;
        if held < owned {
            return Err(Refusal::Stale { seen: owned });
        }
        let epoch = held.max(pledged).checked_add(1).ok_or(Refusal::Exhausted)?;
        // The one after the pledge must be there for an operator.
        epoch.checked_add(1).ok_or(Refusal::Exhausted)?;
        let pledge = Pledge { migration, epoch };
        let mut source =
            Self { pledge, held, round: 1, phase: Phase::New, writing: None, rules: Rules::default() };
        let effects = source.write(SourceStep::Offered).into();
        Ok((source, effects))
    }

    /// Goes on from what the journal says after a crash of whatever was between it and the guest.
    #[must_use]
    pub fn recover(record: SourceRecord) -> (Self, Effects) {
        Self::recover_by(record, Rules::default())
    }

    pub(super) fn recover_by(record: SourceRecord, rules: Rules) -> (Self, Effects) {
        let SourceRecord { pledge, held, round, step } = record;
        let mut source = Self { pledge, held, round, phase: Phase::At(step), writing: None, rules };
        let effects = match step {
            // Whether it was frozen, and what the destination was told of the round, nobody knows: a new one.
            SourceStep::Offered => source.thaw_and_reopen(),
            SourceStep::Granted | SourceStep::Superseded => {
                let hold =
                    if step == SourceStep::Granted { SourceEffect::Freeze } else { SourceEffect::Stop };
                let mut effects = vec![hold];
                effects.extend(source.say_again());
                effects
            }
            _ => source.arrive(step),
        };
        (source, effects)
    }

    /// As [`Source::recover`] for a source whose guest's hypervisor says that it has completed in the round of the record, and that the guest has not run
    /// since: what was ready is so still, and the grant follows ([`Rule::OnlyWhileItRests`]). For a guest that has gone already with another of its ssds.
    #[must_use]
    pub fn recover_completed(record: SourceRecord) -> (Self, Effects) {
        Self::recover_completed_by(record, Rules::default())
    }

    pub(super) fn recover_completed_by(record: SourceRecord, rules: Rules) -> (Self, Effects) {
        let SourceRecord { pledge, held, round, step } = record;
        if step != SourceStep::Offered {
            return Self::recover_by(record, rules);
        }
        let phase = Phase::Frozen { ready: false, completed: true };
        let source = Self { pledge, held, round, phase, writing: None, rules };
        let mut effects = vec![SourceEffect::Freeze];
        effects.extend(source.say_again());
        (source, effects)
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

    /// The round that is copied or frozen.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.round
    }

    /// One event.
    pub fn handle(&mut self, event: SourceEvent) -> Effects {
        if let SourceEvent::Written = event {
            return self.writing.take().map_or_else(Vec::new, |record| self.written(record));
        }
        if self.writing.is_some() {
            return match event {
                SourceEvent::Cancel | SourceEvent::Force | SourceEvent::SwitchOver => {
                    vec![SourceEffect::Refuse(Refusal::Busy)]
                }
                SourceEvent::Vm { word: VmWord::Resumed, .. } if !self.rules.keeps(Rule::GrantIsFinal) => {
                    vec![self.thaw()]
                }
                // Messages are said again; the hypervisor's word counts only while frozen, and nothing is written then but the grant.
                _ => Vec::new(),
            };
        }
        match event {
            SourceEvent::Message(message) => self.message(message),
            SourceEvent::SwitchOver => self.switch_over(),
            SourceEvent::Frozen => self.frozen(),
            SourceEvent::Vm { round, word } => self.vm(round, word),
            SourceEvent::Retry => self.say_again(),
            SourceEvent::Expired if self.is_frozen() => self.thaw_and_reopen(),
            SourceEvent::Cancel => self.cancel(),
            SourceEvent::Force => self.force(),
            SourceEvent::Written | SourceEvent::Expired => Vec::new(),
        }
    }

    fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Freezing | Phase::Frozen { .. })
    }

    fn say(&self, word: ToDestination) -> SourceEffect {
        SourceEffect::Send(Message { pledge: self.pledge, word })
    }

    fn thaw(&self) -> SourceEffect {
        SourceEffect::Thaw { epoch: self.held }
    }

    fn write(&mut self, step: SourceStep) -> [SourceEffect; 1] {
        let record = SourceRecord { pledge: self.pledge, held: self.held, round: self.round, step };
        self.writing = Some(record);
        [SourceEffect::Write(record)]
    }

    fn written(&mut self, record: SourceRecord) -> Effects {
        self.held = record.held;
        self.round = record.round;
        self.phase = Phase::At(record.step);
        self.arrive(record.step)
    }

    /// What is done at a step once it is on record.
    fn arrive(&mut self, step: SourceStep) -> Effects {
        match step {
            SourceStep::Offered => {
                self.phase = Phase::Opening;
                self.say_again()
            }
            SourceStep::Granted => vec![self.say(ToDestination::Grant { round: self.round })],
            SourceStep::Gone => vec![SourceEffect::Stop, self.say(ToDestination::Closed), SourceEffect::Wipe],
            SourceStep::Cancelling => vec![self.thaw(), self.say(ToDestination::Cancel)],
            SourceStep::Cancelled | SourceStep::TakenBackHeard => vec![self.thaw()],
            SourceStep::TakenBack => vec![self.thaw(), self.say(ToDestination::Fenced { epoch: self.held })],
            SourceStep::Superseded => self.say_again(),
        }
    }

    /// What awaits an answer, and what an operator must know.
    fn say_again(&self) -> Effects {
        match self.phase {
            Phase::Opening => vec![self.say(ToDestination::Open { round: self.round })],
            Phase::Frozen { ready: false, .. } => vec![self.say(ToDestination::Seal { round: self.round })],
            Phase::At(SourceStep::Granted) => vec![
                self.say(ToDestination::Grant { round: self.round }),
                SourceEffect::Raise(Alarm::AwaitsDestination),
            ],
            Phase::At(SourceStep::Cancelling) => vec![self.say(ToDestination::Cancel)],
            Phase::At(SourceStep::TakenBack) => vec![self.say(ToDestination::Fenced { epoch: self.held })],
            Phase::At(SourceStep::Superseded) => {
                let alarm = Alarm::Superseded { epoch: self.pledge.epoch };
                vec![self.say(ToDestination::Closed), SourceEffect::Raise(alarm)]
            }
            _ => Vec::new(),
        }
    }

    /// Before the grant only. The guest goes on here; what the destination has of the round is worth nothing from now on.
    fn thaw_and_reopen(&mut self) -> Effects {
        let mut effects = vec![self.thaw()];
        if !self.rules.keeps(Rule::RoundsAreNew) {
            effects.extend(self.arrive(SourceStep::Offered));
            return effects;
        }
        if let Some(round) = self.round.checked_add(1) {
            self.round = round;
            effects.extend(self.write(SourceStep::Offered));
        } else {
            effects.extend(self.write(SourceStep::Cancelling));
        }
        effects
    }

    fn switch_over(&mut self) -> Effects {
        match self.phase {
            Phase::Copying => {
                self.phase = Phase::Freezing;
                vec![SourceEffect::Freeze]
            }
            _ => vec![SourceEffect::Refuse(Refusal::NotNow)],
        }
    }

    fn frozen(&mut self) -> Effects {
        if self.phase == Phase::Freezing {
            self.phase = Phase::Frozen { ready: false, completed: false };
            return self.say_again();
        }
        Vec::new()
    }

    fn vm(&mut self, round: u32, word: VmWord) -> Effects {
        if round != self.round && self.rules.keeps(Rule::WordOfThisRound) {
            return Vec::new();
        }
        match (word, &mut self.phase) {
            (VmWord::Resumed, Phase::Freezing | Phase::Frozen { .. }) => self.thaw_and_reopen(),
            (VmWord::Completed, Phase::Frozen { completed, .. }) => {
                *completed = true;
                self.grant_if_all_is_there()
            }
            (VmWord::Resumed, Phase::At(SourceStep::Granted)) if !self.rules.keeps(Rule::GrantIsFinal) => {
                vec![self.thaw()]
            }
            _ => Vec::new(),
        }
    }

    fn grant_if_all_is_there(&mut self) -> Effects {
        if self.phase != (Phase::Frozen { ready: true, completed: true }) {
            return Vec::new();
        }
        let mut effects = Vec::new();
        if !self.rules.keeps(Rule::GrantAfterJournal) {
            effects.push(self.say(ToDestination::Grant { round: self.round }));
        }
        // From here on the record may be durable, whoever crashes: nothing thaws the source but a later epoch.
        effects.extend(self.write(SourceStep::Granted));
        effects
    }

    fn message(&mut self, message: Message<ToSource>) -> Effects {
        if message.pledge != self.pledge && self.rules.keeps(Rule::OnlyThisMigration) {
            return vec![SourceEffect::Refuse(Refusal::Stranger)];
        }
        match message.word {
            ToSource::Opened { round } if self.phase == Phase::Opening && round == self.round => {
                self.phase = Phase::Copying;
                vec![SourceEffect::Copy { round }]
            }
            ToSource::Ready { round } => self.peer_ready(round),
            ToSource::Owned => self.peer_owns(),
            ToSource::Dropped => self.peer_dropped(),
            ToSource::Opened { .. } => self.answer(),
        }
    }

    /// To a destination that is behind.
    fn answer(&self) -> Effects {
        match self.phase {
            Phase::Freezing | Phase::Copying => Vec::new(),
            Phase::At(SourceStep::Gone | SourceStep::Cancelled | SourceStep::TakenBackHeard) => {
                vec![self.say(ToDestination::Closed)]
            }
            _ => self.say_again(),
        }
    }

    fn peer_ready(&mut self, round: u32) -> Effects {
        let this_round = round == self.round;
        match &mut self.phase {
            Phase::Frozen { ready, .. } if this_round => {
                if *ready {
                    return Vec::new();
                }
                *ready = true;
                let mut effects = vec![SourceEffect::ContinueVm { round }];
                effects.extend(self.grant_if_all_is_there());
                effects
            }
            _ => self.answer(),
        }
    }

    /// The destination is the owner: by the grant, or by force.
    fn peer_owns(&mut self) -> Effects {
        match self.phase {
            Phase::At(SourceStep::Granted) => self.write(SourceStep::Gone).into(),
            Phase::At(SourceStep::Gone | SourceStep::Superseded) => vec![self.say(ToDestination::Closed)],
            Phase::At(SourceStep::TakenBack | SourceStep::TakenBackHeard) => {
                vec![self.say(ToDestination::Fenced { epoch: self.held })]
            }
            _ if self.held < self.pledge.epoch && self.rules.keeps(Rule::LaterEpochWins) => {
                let mut effects = vec![SourceEffect::Stop];
                effects.extend(self.write(SourceStep::Superseded));
                effects
            }
            _ => Vec::new(),
        }
    }

    /// The destination never was the owner, or is not any more, and will not be: it is here, and nothing needs an operator.
    fn peer_dropped(&mut self) -> Effects {
        match self.phase {
            Phase::At(SourceStep::Granted) => self.take_back(SourceStep::TakenBackHeard),
            Phase::At(SourceStep::TakenBack) => self.write(SourceStep::TakenBackHeard).into(),
            Phase::At(SourceStep::Cancelling) => self.write(SourceStep::Cancelled).into(),
            Phase::At(_) => vec![self.say(ToDestination::Closed)],
            _ => {
                let mut effects = if self.is_frozen() { vec![self.thaw()] } else { Vec::new() };
                effects.extend(self.write(SourceStep::Cancelled));
                effects
            }
        }
    }

    fn cancel(&mut self) -> Effects {
        match self.phase {
            Phase::At(SourceStep::Granted) => vec![SourceEffect::Refuse(Refusal::Granted)],
            Phase::At(SourceStep::Gone | SourceStep::Superseded) => {
                vec![SourceEffect::Refuse(Refusal::OwnedElsewhere)]
            }
            Phase::At(_) => vec![SourceEffect::Refuse(Refusal::Over)],
            _ => {
                let mut effects = if self.is_frozen() { vec![self.thaw()] } else { Vec::new() };
                effects.extend(self.write(SourceStep::Cancelling));
                effects
            }
        }
    }

    fn force(&mut self) -> Effects {
        match self.phase {
            // A cancelled destination that never answers might be taken by force over there: the later epoch fences it.
            Phase::At(SourceStep::Granted | SourceStep::Cancelling) => self.take_back(SourceStep::TakenBack),
            Phase::At(SourceStep::Gone | SourceStep::Superseded) => {
                vec![SourceEffect::Refuse(Refusal::OwnedElsewhere)]
            }
            _ => vec![SourceEffect::Refuse(Refusal::Owner)],
        }
    }

    fn take_back(&mut self, step: SourceStep) -> Effects {
        let skip = u64::from(self.rules.keeps(Rule::ForceSkipsThePledge));
        match self.pledge.epoch.checked_add(skip) {
            Some(held) => {
                let record = SourceRecord { pledge: self.pledge, held, round: self.round, step };
                self.writing = Some(record);
                vec![SourceEffect::Write(record)]
            }
            None => vec![SourceEffect::Refuse(Refusal::Exhausted)],
        }
    }
}

/// The migration before, as this side took part in it.
#[derive(Clone, Copy, Debug)]
pub enum Former<'a> {
    /// As the source: what the journal says.
    From(&'a SourceRecord),
    /// As the destination: the machine, which knows whether the source has heard how it ended.
    To(&'a Destination),
}

impl Former<'_> {
    /// The epoch that the ssd is owned by here, and the last that was pledged.
    fn owned_and_pledged(self) -> Result<(u64, u64), Refusal> {
        match self {
            Former::From(record) if !record.is_over() => Err(Refusal::Unheard),
            Former::From(SourceRecord { step: SourceStep::Gone | SourceStep::Superseded, .. }) => {
                Err(Refusal::OwnedElsewhere)
            }
            Former::From(record) => Ok((record.held, record.pledge.epoch)),
            Former::To(destination) if !destination.owns() => Err(Refusal::OwnedElsewhere),
            // Its source, taken by force, would have the epoch after this one: the one that is pledged next.
            Former::To(destination) if !destination.is_closed() => Err(Refusal::Unclosed),
            Former::To(destination) => Ok((destination.pledge().epoch, destination.pledge().epoch)),
        }
    }
}

impl SourceRecord {
    /// Nobody can become the owner by this migration any more: the next may begin, and its record take this one's place.
    ///
    /// A destination that has yet to hear that the ssd was taken back is [fenced](fence) without a record.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self.step, SourceStep::Offered | SourceStep::Granted | SourceStep::Cancelling)
    }
}

/// What the owner of an ssd by epoch `held` answers to the destination of a migration that it has no record of. `None`: nothing.
///
/// It is how an operator's force is made true when the two meet again, however much later.
#[must_use]
pub fn fence(held: u64, message: Message<ToSource>) -> Option<Message<ToDestination>> {
    let Message { pledge, word } = message;
    let is_stale = word != ToSource::Dropped && pledge.epoch < held;
    is_stale.then_some(Message { pledge, word: ToDestination::Fenced { epoch: held } })
}
