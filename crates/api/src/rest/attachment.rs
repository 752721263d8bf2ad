//! Who has which ssd.

use super::Interface;
use serde::{Deserialize, Serialize};

/// An ssd that is promised to a guest. It cannot be deleted, nor promised to another, as long as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The ssd: it has one at most.
    pub ssd: String,
    /// The guest, as whoever runs guests calls it.
    pub guest: String,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// What the guest sees.
    pub interface: Interface,
    /// Where its hypervisor connects.
    pub socket: String,
    /// A client is connected now.
    pub connected: bool,
}

/// The wish to promise an ssd to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AttachmentCreate {
    /// The ssd.
    pub ssd: String,
    /// The guest: letters, digits, `-`, `_` or `.`, at most 64.
    pub guest: String,
}
