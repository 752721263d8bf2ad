//! The wipe ladder: how a drive, a namespace or an ssd is made empty for good, whatever happens on the way.
//!
//! [`plan`] decides which rungs a drive has, and why it lacks the others. [`Wipe`] is a pure state machine: [`Wipe::next`] says what to do,
//! [`Wipe::apply`] takes what came of it. [`run`] has it done, and writes the [`Record`] down before each step, so that whoever finds
//! the record after a crash goes on. At the end stands a [`Certificate`]: wiped, or quarantined. There is no third end, and no rung is
//! believed: known patterns are laid out before an erase and must be gone after it, and at the end the whole range is read, and is
//! zero.
//!
//! Two kinds of rungs: those that *erase* (a key destroyed, a format, a sanitize) need not leave zeros behind; those that *blank* (write
//! zeroes, deallocate, overwrite) do. The first erase that holds is enough; what does not read as zeros then is blanked. Without
//! any erase, blanking alone is the wipe.
//!
//! Not done: a look at spare blocks that no interface reaches (nobody but the drive's maker can), and a power cycle to see behind a
//! drive's cache.

mod certificate;
mod hands;
mod journal;
mod machine;
mod medium;
mod pattern;
mod plan;
mod record;
mod shelf;

pub use certificate::{Certificate, Verdict};
pub use hands::{Hands, Keys, NoKeys, RunError, perform, run};
pub(crate) use journal::replace;
pub use journal::{FileJournal, Journal};
pub use machine::{Effect, Outcome, Wipe};
pub use medium::{DirectMedium, Medium, Zeroing};
pub use plan::{Plan, plan};
pub use record::{Attempt, LeftOut, Options, Record, RecordError, Rung, Scope, Step, Target};
pub use shelf::{DEFAULT_FOLDER, Shelf};

#[cfg(test)]
mod tests;
