//! A load that verifies, for soaks: every block says which write it came from, and every answer is audited.
//!
//! - [`door::Door`] is a device of any protocol: submit an operation, poll for answers. [`nvme::NvmeDoor`] is one, and
//!   [`VhostDoor`](crate::vhost_user::VhostDoor) is the other: one load, one model and one auditor serve both.
//! - [`pattern`] is what a block holds: its address, its version, the ssd, and a checksum over them and the filling.
//! - [`model::Model`] knows what each block may hold, also where commands overlapped.
//! - [`auditor::Auditor`] holds every submission and every answer against the model: wrong, stale, torn and misplaced bytes,
//!   completions repeated, lost or failed.
//! - [`load::Load`] makes up operations from a seed, and [`gaps`] are the longest times without a completion.
//! - [`chat`] is what is said to the device meanwhile: registers, admin commands, memory mappings, queues that come and go; or
//!   features, configuration, rings that stop and go on, connections anew.
//! - [`plug`] connects to an ssd by its frontend.
//! - [`daemon::Daemon`] is what it all runs against, [`events`] what happens to it, [`soak`] puts them together.
//! - [`migrations`] are two such daemons, and ssds that move between them.
//!
//! What it does *not* do: power failures (what a kill of the host loses; the simulator does that), guests with kernels (see
//! vmtest), and time from the seed: the same seed gives the same operations, not the same interleaving.

pub mod auditor;
pub mod chat;
pub mod daemon;
pub mod door;
pub mod events;
pub mod gaps;
pub mod load;
pub mod migrations;
pub mod model;
pub mod nvme;
pub mod pattern;
pub mod plug;
pub mod report;
pub mod soak;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod proofs;
