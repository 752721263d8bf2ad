//! Rules that this world breaks on purpose, to see that the auditor notices: in what drives the product's machines, never in the product.

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The grant is sent before its record is durable.
    GrantBeforeJournal,
    /// The destination serves as soon as it is ready.
    ServeBeforeGrant,
    /// The source serves again though it has granted.
    ServeAfterGrant,
    /// A harvest loses a mark.
    MarkLost,
    /// A write is noted when it begins, not when it ended.
    MarkEarly,
    /// What was written since the last pass is left out when the guest stands still.
    LastLeftOut,
    /// The state is saved and the rest is sent while the controller still runs.
    NotHalted,
    /// What comes is called durable and is not.
    NotFlushed,
    /// A record is called durable and is not.
    RecordNotDurable,
    /// The controller begins afresh at the destination.
    StateLeftOut,
    /// What was given up is left at the destination, and the next copy arrives on top of it.
    NotEmptied,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::GrantBeforeJournal,
        Self::ServeBeforeGrant,
        Self::ServeAfterGrant,
        Self::MarkLost,
        Self::MarkEarly,
        Self::LastLeftOut,
        Self::NotHalted,
        Self::NotFlushed,
        Self::RecordNotDurable,
        Self::StateLeftOut,
        Self::NotEmptied,
    ];
}
