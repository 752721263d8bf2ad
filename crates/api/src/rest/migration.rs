//! Ssds that move between hosts.

use crate::control::MigrationStatus;
use serde::{Deserialize, Serialize};

/// The migrations that the host takes part in, and those that ended last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Migrations {
    /// By ssd.
    pub items: Vec<MigrationStatus>,
    /// Why the daemon does not tell them, if it does not.
    pub reason: Option<String>,
}
