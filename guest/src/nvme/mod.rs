//! A minimal polled NVMe driver (NVMe Base 2.1, NVM Command Set 1.1).

mod admin_commands;
mod command;
mod controller;
mod data;
mod driver;
mod interrupt;
mod io_commands;
mod queue;
mod shadow;

pub use command::{Completion, Sqe, Status, admin, feature, nvm};
pub use controller::reg;
pub use data::{Prp, Sgl, SglDescriptor};
pub use driver::{Driver, Options};
pub use queue::{CompletionQueue, SubmissionQueue};
pub use shadow::needs_ring;
