//! Ssds that move between hosts.

use crate::control::{MigrationStatus, MigrationTerms};
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

/// The wish to move an ssd, or a guest with all of its ssds, to another host. What is left out of its terms is as `godwit migrate` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MigrationCreate {
    /// The ssd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssd: Option<String>,
    /// Or the guest: the QMP socket of its QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The other host and its port, as its certificate has the name.
    pub to: String,
    /// Bytes a second on the wire at most. 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// How long its guest's I/O may stand still, µs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stun_us: Option<u64>,
    /// Connections side by side, 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u16>,
    /// What is left here is kept, and not wiped.
    #[serde(default)]
    pub keep_source: bool,
    /// How long one in a hundred of the guest's I/Os may take meanwhile, in thousandths of what it took before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_budget_permille: Option<u32>,
    /// It may lie in the clear at the other host, though it is encrypted here.
    #[serde(default)]
    pub allow_unencrypted: bool,
}

impl MigrationCreate {
    /// How it is moved.
    #[must_use]
    pub fn terms(&self) -> MigrationTerms {
        let usual = MigrationTerms::default();
        MigrationTerms {
            bandwidth: self.bandwidth.unwrap_or(usual.bandwidth),
            max_stun_us: self.max_stun_us.unwrap_or(usual.max_stun_us),
            streams: self.streams.unwrap_or(usual.streams),
            keep_source: self.keep_source,
            latency_budget_permille: self.latency_budget_permille.unwrap_or(usual.latency_budget_permille),
            allow_unencrypted: self.allow_unencrypted,
        }
    }
}

/// What the daemon said to a wish about a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrationAnswer {
    /// In words; what is not as it was here, too.
    pub message: String,
}
