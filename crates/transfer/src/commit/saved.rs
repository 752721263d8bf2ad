//! The records of both machines as they are saved: to bytes, and back with every doubt told.

use state::migration::{
    DestinationStepV1, DestinationV1, LimitsV1, MigrationError, MigrationV1, SourceStepV1, SourceV1,
};

use super::{DestinationRecord, DestinationStep, Pledge, SourceRecord, SourceStep};

/// Whose migration it is, beside what the machines need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parties {
    /// Identity of the ssd.
    pub ssd: [u8; 16],
    /// Name of the other host.
    pub peer: String,
    /// At the source: what is left there is not wiped when the ssd has gone.
    pub keep: bool,
    /// The other side knows how it ended.
    pub closed: bool,
    /// At the source: what was left there is wiped.
    pub wiped: bool,
    /// The QMP socket here of the hypervisor whose guest moves with the ssd.
    pub hypervisor: Option<String>,
    /// The limits that the ssd came here with, or comes with.
    pub limits: Option<LimitsV1>,
}

/// What a journal says: which side it is of, and how far that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Of the source.
    Source(SourceRecord),
    /// Of the destination.
    Destination(DestinationRecord),
}

impl Record {
    /// The bytes to write.
    ///
    /// # Errors
    /// [`MigrationError`]: the other host's name cannot be saved.
    pub fn to_bytes(self, parties: &Parties) -> Result<Vec<u8>, MigrationError> {
        let (pledge, round, source, destination) = match self {
            Self::Source(SourceRecord { pledge, held, round, step }) => {
                (pledge, round, Some(SourceV1 { held, step: source_step(step) }), None)
            }
            Self::Destination(DestinationRecord { pledge, round, step }) => {
                (pledge, round, None, Some(destination_step(step)))
            }
        };
        let Pledge { migration, epoch } = pledge;
        let Parties { ssd, peer, keep, closed, wiped, hypervisor, limits } = parties.clone();
        let [keep, closed, wiped] = [keep, closed, wiped].map(|it| it.then_some(true));
        MigrationV1 {
            ssd,
            peer,
            migration,
            epoch,
            round,
            source,
            destination,
            keep,
            closed,
            wiped,
            hypervisor,
            limits,
        }
        .to_bytes()
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// [`MigrationError`]; then nobody knows by this journal who owns the ssd, and it must not be served.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Parties, Self), MigrationError> {
        Self::of(MigrationV1::from_bytes(bytes)?)
    }

    /// What a record says that was read already.
    ///
    /// # Errors
    /// [`MigrationError::Contradiction`].
    pub fn of(saved: MigrationV1) -> Result<(Parties, Self), MigrationError> {
        let MigrationV1 {
            ssd,
            peer,
            migration,
            epoch,
            round,
            source,
            destination,
            keep,
            closed,
            wiped,
            hypervisor,
            limits,
        } = saved;
        let pledge = Pledge { migration, epoch };
        let record = match (source, destination) {
            (Some(SourceV1 { held, step }), None) => {
                Self::Source(SourceRecord { pledge, held, round, step: saved_source_step(step) })
            }
            (None, Some(destination)) => {
                let step = saved_destination_step(destination)
                    .ok_or(MigrationError::Contradiction("it is fenced by no epoch"))?;
                Self::Destination(DestinationRecord { pledge, round, step })
            }
            _ => return Err(MigrationError::Contradiction("it is not of exactly one side")),
        };
        let [keep, closed, wiped] = [keep, closed, wiped].map(Option::unwrap_or_default);
        Ok((Parties { ssd, peer, keep, closed, wiped, hypervisor, limits }, record))
    }
}

fn source_step(step: SourceStep) -> SourceStepV1 {
    match step {
        SourceStep::Offered => SourceStepV1::Offered,
        SourceStep::Granted => SourceStepV1::Granted,
        SourceStep::Gone => SourceStepV1::Gone,
        SourceStep::Cancelling => SourceStepV1::Cancelling,
        SourceStep::Cancelled => SourceStepV1::Cancelled,
        SourceStep::TakenBack => SourceStepV1::TakenBack,
        SourceStep::TakenBackHeard => SourceStepV1::TakenBackHeard,
        SourceStep::Superseded => SourceStepV1::Superseded,
    }
}

fn saved_source_step(step: SourceStepV1) -> SourceStep {
    match step {
        SourceStepV1::Offered => SourceStep::Offered,
        SourceStepV1::Granted => SourceStep::Granted,
        SourceStepV1::Gone => SourceStep::Gone,
        SourceStepV1::Cancelling => SourceStep::Cancelling,
        SourceStepV1::Cancelled => SourceStep::Cancelled,
        SourceStepV1::TakenBack => SourceStep::TakenBack,
        SourceStepV1::TakenBackHeard => SourceStep::TakenBackHeard,
        SourceStepV1::Superseded => SourceStep::Superseded,
    }
}

fn destination_step(step: DestinationStep) -> DestinationV1 {
    let (step, fenced_by) = match step {
        DestinationStep::Incoming => (DestinationStepV1::Incoming, None),
        DestinationStep::Ready => (DestinationStepV1::Ready, None),
        DestinationStep::Owned => (DestinationStepV1::Owned, None),
        DestinationStep::Forced => (DestinationStepV1::Forced, None),
        DestinationStep::Dropped => (DestinationStepV1::Dropped, None),
        DestinationStep::Superseded { epoch } => (DestinationStepV1::Superseded, Some(epoch)),
    };
    DestinationV1 { step, fenced_by }
}

fn saved_destination_step(saved: DestinationV1) -> Option<DestinationStep> {
    Some(match saved.step {
        DestinationStepV1::Incoming => DestinationStep::Incoming,
        DestinationStepV1::Ready => DestinationStep::Ready,
        DestinationStepV1::Owned => DestinationStep::Owned,
        DestinationStepV1::Forced => DestinationStep::Forced,
        DestinationStepV1::Dropped => DestinationStep::Dropped,
        DestinationStepV1::Superseded => DestinationStep::Superseded { epoch: saved.fenced_by? },
    })
}
