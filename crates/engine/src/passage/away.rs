//! Why an ssd is not served here, in words: one for a list, and what an operator can do.

use state::migration::{DestinationStepV1, MigrationV1, SourceStepV1};

/// An ssd whose owner is not here, or of which nobody can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Away {
    /// Its step, in one word.
    pub(crate) word: &'static str,
    /// What has happened, and the way on.
    pub(crate) why: String,
    /// It may yet be served here without anybody's doing: a client waits for that, as a guest does whose memory comes from another
    /// host. Else a client is turned away, so that whoever started it hears of it.
    pub(crate) holds: bool,
}

impl Away {
    /// The configuration says that it comes, and no migration has begun.
    pub(super) fn expected() -> Self {
        let why = "it comes from another host, and its migration has not begun: start it there. To begin with an empty ssd instead, take \
                   `incoming` out of the configuration and restart godwitd";
        Self { word: "incoming", why: why.to_owned(), holds: true }
    }

    /// Its pool is in use, as it is for a moment after an engine was killed.
    pub(super) fn in_use(why: &str, incoming: bool) -> Self {
        let word = if incoming { "incoming" } else { "doubtful" };
        Self { word, why: format!("its journal cannot be read yet: {why}"), holds: true }
    }

    /// By a record whose owner is not here.
    pub(super) fn by(record: &MigrationV1, place: &str, is_file: bool) -> Self {
        let (peer, epoch) = (&record.peer, record.epoch);
        let fenced_by = record.destination.and_then(|destination| destination.fenced_by).unwrap_or(epoch);
        let source = record.source.map(|source| source.step);
        let (holds, why) = match (source, record.destination.map(|destination| destination.step)) {
            (Some(SourceStepV1::Granted), _) => (
                true,
                format!(
                    "it was granted to \"{peer}\", which has not said that it has it: let the two hosts talk, or cancel there. Only if \
                     \"{peer}\" is lost for good: take it here by force"
                ),
            ),
            (Some(SourceStepV1::Superseded), _) => (false, superseded(peer, epoch)),
            (Some(_), _) => (
                false,
                format!(
                    "it is at \"{peer}\" now: use it there, or migrate it back. What is left here is a stale copy: take it out of \
                     the configuration"
                ),
            ),
            (None, Some(DestinationStepV1::Incoming)) => (
                true,
                format!(
                    "it is on its way here from \"{peer}\", which still has it; to give it up, cancel the migration"
                ),
            ),
            (None, Some(DestinationStepV1::Ready)) => (
                true,
                format!(
                    "all of it has come from \"{peer}\", which has not granted it yet: let the two hosts talk, or cancel here. Only if \
                     \"{peer}\" is lost for good: take it here by force; what was written there after this copy was made is lost"
                ),
            ),
            (None, Some(DestinationStepV1::Superseded)) => (false, superseded(peer, fenced_by)),
            (None, _) => (
                false,
                format!(
                    "it did not come: its migration from \"{peer}\" was given up, and what is here is not whole. Migrate it again, or take it \
                     out of the configuration. {}",
                    if is_file {
                        format!(
                            "To begin with an empty ssd of this name, remove its drive's data and its journal ({place})"
                        )
                    } else {
                        format!(
                            "To begin with an empty ssd of this name, delete {place} when it is out of the configuration (`godwit volume delete`), and write it there anew"
                        )
                    }
                ),
            ),
        };
        Self { word: record.step(), why, holds }
    }

    /// The journal cannot be read, or makes no sense.
    pub(super) fn doubtful(error: &anyhow::Error, place: &str, is_file: bool) -> Self {
        let mut why = format!("nobody can say who owns it: {place}: {error:#}. Use the Godwit that wrote it");
        if is_file {
            why += ", or restore it from a backup. Only if you know that no other host serves this ssd, move the journal away and restart \
                    godwitd";
        }
        Self { word: "doubtful", why, holds: false }
    }

    /// As the keeper is told.
    pub(crate) fn standing(&self) -> link::control::Standing {
        let Self { word, why, holds } = self.clone();
        link::control::Standing { word: word.to_owned(), why, holds }
    }
}

fn superseded(peer: &str, epoch: u64) -> String {
    format!(
        "it was taken at \"{peer}\" by force (epoch {epoch}). What was written here after that is only here: open this copy as a new ssd \
         to save it, or take it out of the configuration"
    )
}
