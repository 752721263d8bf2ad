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
    /// A destination that begins anew goes on in what is there: its space is not made empty.
    NotEmptied,
    /// What a stale copy holds is not known to be stale: a source that has begun again after its crash says that the rest has been sent.
    SealedUnsent,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 12] = [
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
        Self::SealedUnsent,
    ];
}
