//! Submission and completion queues over guest memory, and the in-flight slots of the shared region.
//!
//! ```text
//!  guest ring --fetch--> Command (private copy) --accept--> Slot ACCEPTED + Accepted (the permit)
//!                                                             |  executed by `io` or `admin`
//!  guest CQ <--dword 3 last-- Slot POSTING <--post(permit, answer)
//! ```
//!
//! The store order, and why a successor that finds the region between any two stores does the right thing, is in
//! `docs/formats/controller-region.md`. Every shared store goes through `crate::store` or `steps`, so that tests can end the world before
//! any one of them.
//!
//! Used for I/O queues by [`group`](crate::group) and for the admin queue by the controller.

mod completion;
mod doorbell;
mod inspect;
mod record;
mod recovery;
pub(crate) mod steps;
mod submission;

#[cfg(test)]
mod tests;

pub(crate) use completion::WORD_PHASE;
pub use completion::{Answer, CompletionQueue, Unwritten};
pub use doorbell::{Doorbells, cq_index, sq_index};
pub use inspect::{Left, Unsound, inspect, inspect_header, settle_region};
pub use record::{CqRecord, SqRecord, close_cq, close_sq, create_cq, create_sq};
pub(crate) use record::{count_change, count_if_changing, is_changing_data, restore_cq, restore_sq};
pub use recovery::{Conclusion, Unanswered, conclude, free_slot};
pub use submission::{Accepted, Look, SubmissionQueue};
pub(crate) use submission::{position_of, seq_of, slot_word, state_of};
