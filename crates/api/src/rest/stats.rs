//! What was counted of each ssd, as the agent tells it.

use serde::{Deserialize, Serialize};

/// What was counted and timed of all ssds, from their beginning on: whoever wants to know what happens now takes two of these and
/// the difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Stats {
    /// When, ms since 1970.
    pub at_ms: u64,
    /// The same moment by a clock that only goes forward, also over restarts of the agent: rates are differences by this one, and
    /// `after_ms` is.
    pub clock_ms: u64,
    /// Where each bucket of the histograms begins, ns; the last one has no end.
    pub bucket_floors_ns: Vec<u64>,
    /// Counts the engines. Counters go on over their ends.
    pub engine_generation: u64,
    /// By the daemon's order.
    pub ssds: Vec<SsdStats>,
}

/// What was counted of one ssd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SsdStats {
    /// Its name.
    pub name: String,
    /// Its serial number. Another one under the same name: another ssd, which counts from zero.
    pub serial: String,
    /// `serving`, `parked` or `quarantined`.
    pub state: String,
    /// A client is connected.
    pub client: bool,
    /// Why there are no counts, if there are none.
    pub reason: Option<String>,
    /// Reads.
    pub read: OpStats,
    /// Writes.
    pub write: OpStats,
    /// Flushes, write zeroes, discards.
    pub other: OpStats,
}

/// I/Os of one kind. The times are histograms: pairs of a bucket's number and its count, without the empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OpStats {
    /// That have ended.
    pub ios: u64,
    /// Their data.
    pub bytes: u64,
    /// Failed by the drive.
    pub errors: u64,
    /// How long they waited in their queue.
    pub queue: Vec<[u64; 2]>,
    /// How long they were held back by limits or for the sake of others. Those that never were are in bucket 0.
    pub throttle: Vec<[u64; 2]>,
    /// How long they were at the drive.
    pub drive: Vec<[u64; 2]>,
}
