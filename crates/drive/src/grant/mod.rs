//! What an ssd has of a drive when it has more than extents: the whole drive, or a namespace that was made for it.
//!
//! A [`Grant`] is the record of that, one for each ssd, in a folder ([`Grants`]). It is written before each step, so whoever finds it
//! after a crash goes on: every step bears to be done twice. An engine serves what is [`Step::Given`] and nothing else.
//!
//! ```text
//!  a namespace:  Planned -> Create -> Attach -> Clean -> Given -> Empty -> Detach -> Delete -> (no record)
//!  a drive:                                     Given -> Empty -> (no record)
//! ```
//! In `Clean` and `Empty` the namespace is wiped by the ladder ([`crate::wipe`]): a new one, because nobody knows what its flash held.
//!
//! Not done: namespaces shared by several controllers, NVM sets and endurance groups (the drive's default is taken), resizing.

mod record;
mod steps;

pub use record::{DEFAULT_FOLDER, Grant, GrantError, Grants, Step, VERSION, What};
pub use steps::{Need, advance};

#[cfg(test)]
mod tests;
