//! The host's drives.

use serde::{Deserialize, Serialize};

/// A drive of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Drive {
    /// `nvme0n1`.
    pub name: String,
    /// `/dev/nvme0n1`.
    pub path: String,
    /// `nvme`, `scsi`, `virtio`, ...
    pub bus: String,
    /// What it calls itself.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its firmware.
    pub firmware: Option<String>,
    /// Capacity.
    pub size_bytes: u64,
    /// `free`, `pool`, `taken`, `in-use`, `read-only`, `wiping` or `quarantined`.
    pub state: String,
    /// What is on it, in words.
    pub contents: String,
    /// Who uses it now.
    pub users: Vec<String>,
    /// The pool of this agent that is on it.
    pub pool: Option<String>,
    /// How it is, if it can say.
    pub health: Option<DriveHealth>,
    /// What must be repeated as `force_destroy_data` before its data is destroyed.
    pub confirmation: String,
    /// What could not be asked, and why.
    pub unknown: Vec<String>,
}

/// How a drive is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DriveHealth {
    /// `good`, `warning` or `failing`.
    pub verdict: String,
    /// How much of its life is used; may be above 100.
    pub used_percent: u64,
    /// Spare blocks that are left.
    pub spare_percent: u64,
    /// Degrees Celsius.
    pub temperature_c: Option<i64>,
    /// What it warns of.
    pub warnings: Vec<String>,
}
