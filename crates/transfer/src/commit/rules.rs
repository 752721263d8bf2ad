//! What the protocol rests on, each rule by a name that stands where it is kept.

/// A rule. All are always kept; the model breaks one at a time, to see that each is needed and that breaking it is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A source that has begun to write its grant thaws only by a later epoch.
    GrantIsFinal,
    /// The grant is sent when it is durable.
    GrantAfterJournal,
    /// The destination serves when its record says that it owns.
    ServeAfterJournal,
    /// The destination is ready when the data of the round is durable.
    ReadyAfterData,
    /// A message of another migration changes nothing.
    OnlyThisMigration,
    /// Each freeze has a number that none before it had, over crashes too.
    RoundsAreNew,
    /// A destination that was ready takes blocks again only after its record says that it is not ready.
    ReopenAfterJournal,
    /// The grant waits for the hypervisor's `completed`, of this round.
    WordOfThisRound,
    /// A source that crashed takes up the round on record only if its hypervisor completed in it and the guest has not run here since.
    OnlyWhileItRests,
    /// Force at the source skips the epoch that was pledged.
    ForceSkipsThePledge,
    /// Who hears of a later epoch stops.
    LaterEpochWins,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::GrantIsFinal,
        Self::GrantAfterJournal,
        Self::ServeAfterJournal,
        Self::ReadyAfterData,
        Self::OnlyThisMigration,
        Self::RoundsAreNew,
        Self::ReopenAfterJournal,
        Self::WordOfThisRound,
        Self::OnlyWhileItRests,
        Self::ForceSkipsThePledge,
        Self::LaterEpochWins,
    ];
}

/// Which rules hold: all, outside of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rules {
    #[cfg(test)]
    pub(super) broken: Option<Rule>,
}

impl Rules {
    #[cfg(test)]
    pub(super) fn keeps(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    #[cfg(not(test))]
    pub(super) fn keeps(self, _rule: Rule) -> bool {
        true
    }
}
