//! What the agent and its clients say to one another over REST: JSON objects under [`ROOT`].
//!
//! Sizes are bytes, times are milliseconds since 1970. What a client sends is read strictly (an unknown field is refused: it may be a
//! limit with a typing error); what the agent sends gains fields, and a client ignores those it does not know.

mod attachment;
mod drive;
mod migration;
mod pool;
mod stats;

pub use attachment::{Attachment, AttachmentCreate};
pub use drive::{Drive, DriveHealth};
pub use migration::{MigrationAnswer, MigrationCreate, Migrations};
pub use pool::{
    Certificate, KeyFate, Pool, PoolCheck, PoolCreate, PoolServing, Snapshot, SnapshotCreate, Verdict,
    WipedKind,
};
pub use stats::{OpStats, SsdStats, Stats};

use serde::{Deserialize, Serialize};

/// Where all of it lives.
pub const ROOT: &str = "/api/v1";
/// Where the agent listens if nobody says.
pub const DEFAULT_SOCKET: &str = "/run/godwit/agent.sock";
/// The header in which a client gives an operation its id. The same id again is the same operation, not a second one.
pub const OPERATION_HEADER: &str = "idempotency-key";
/// Longest name of anything, and longest id of an operation.
pub const NAME_BYTES_MAX: usize = 64;
/// An ssd's size is a multiple of this.
pub const SIZE_UNIT_BYTES: u64 = 1 << 20;
/// The largest ssd.
pub const SIZE_BYTES_MAX: u64 = 1 << 50;

/// A name or an id: 1 to [`NAME_BYTES_MAX`] letters, digits, `-`, `_` or `.`, and not `.` first. Nothing else can be part of a path.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.starts_with('.') && text.chars().all(fits)
}

/// What the guest sees of an ssd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Interface {
    /// An NVMe controller, over vfio-user.
    #[default]
    Nvme,
    /// A virtio-blk disk, over vhost-user.
    VirtioBlk,
}

/// What an ssd may use. What is left out is not limited. The fields are those of `[ssd.limits]` in the daemon's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Reads and writes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// What may come at once after a pause, beyond `iops`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<u64>,
    /// Reads a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// What may come at once after a pause, beyond `read_iops`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops_burst: Option<u64>,
    /// Writes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
    /// What may come at once after a pause, beyond `write_iops`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops_burst: Option<u64>,
    /// Bytes a second, read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Bytes that may come at once after a pause, beyond `bandwidth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<u64>,
    /// Bytes read a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bandwidth: Option<u64>,
    /// Bytes that may come at once after a pause, beyond `read_bandwidth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bandwidth_burst: Option<u64>,
    /// Bytes written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bandwidth: Option<u64>,
    /// Bytes that may come at once after a pause, beyond `write_bandwidth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bandwidth_burst: Option<u64>,
    /// Its share of a busy drive and reactor, beside those of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

impl Limits {
    /// Nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where an ssd is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is being made.
    Creating,
    /// It is to come from another host, or is on its way: it is not served here.
    Incoming,
    /// It is there.
    Ready,
    /// It is at another host now: it is not served here. It may come back.
    Gone,
    /// It is being deleted: nobody is served, its data is being removed.
    Deleting,
    /// Its data could not be removed: it is not served, and its space is nobody's until a deletion succeeds.
    Quarantined,
}

impl Phase {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Incoming => "incoming",
            Self::Gone => "gone",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::Quarantined => "quarantined",
        }
    }
}

/// What names an ssd that comes from another host to its guest, as it is there: `godwit ssd export` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Incoming {
    /// Its identity.
    pub uuid: String,
    /// Its serial number. Left out: what an agent gives an ssd of this identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The name of its NVM subsystem. Left out: what follows from its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
}

/// How the daemon says an ssd is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Serving {
    /// `serving`, `parked` or `quarantined`; how far its migration is, when its owner is not here (`incoming`, `granted`, `gone`...); `unknown` when the daemon does not answer; `absent` when it does not have it.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// A client is connected.
    pub client: bool,
    /// Its commands that nobody has answered yet.
    pub unanswered: u64,
}

/// An ssd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Ssd {
    /// Its name.
    pub name: String,
    /// Its identity: another one when a deleted ssd is made again under its name.
    pub uuid: String,
    /// Its serial number.
    #[serde(default)]
    pub serial: String,
    /// The name of its NVM subsystem, where that does not follow from its identity.
    #[serde(default)]
    pub nqn: Option<String>,
    /// Counts the changes of what is wanted; what `If-Match` compares.
    pub generation: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// The operation that works on it.
    pub operation: Option<String>,
    /// Capacity.
    pub size_bytes: u64,
    /// What the guest sees.
    pub interface: Interface,
    /// Of an NVMe ssd: the device model, for its life.
    #[serde(default)]
    pub profile: Option<String>,
    /// The pool it lives in. `None`: a file.
    pub pool: Option<String>,
    /// Its space is taken when it is written.
    pub thin: bool,
    /// The flavor it was made by.
    pub flavor: Option<String>,
    /// It is encrypted at rest.
    #[serde(default)]
    pub encrypted: bool,
    /// What it may use.
    pub limits: Limits,
    /// Where its guests' hypervisor finds it.
    pub socket: String,
    /// The QMP socket of the QEMU that its guest comes to with it.
    #[serde(default)]
    pub hypervisor: Option<String>,
    /// Why it is as it is, when that is not well.
    pub reason: Option<String>,
    /// How the daemon says it is.
    pub serving: Serving,
}

/// The wish for an ssd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SsdCreate {
    /// Its name.
    pub name: String,
    /// Capacity, a multiple of 1 MiB. May be left out with a flavor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Size and limits by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<String>,
    /// What the guest sees.
    #[serde(default)]
    pub interface: Interface,
    /// The device model of an NVMe ssd, such as `godwit-2`. Left out: `godwit-1`, which every release can serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The pool to take it from. `None`: a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Take space when it is written. Left out: yes for a file, no for a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin: Option<bool>,
    /// Encrypt it at rest, with a key of its own that the agent makes. Left out: as what it begins with is, else no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// What it may use. Left out: as the flavor says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Begin with what this snapshot contains: in its pool, and of its size if no other is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<String>,
    /// Begin with what this ssd contains now: in its pool, and of its size if no other is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ssd: Option<String>,
    /// It comes from another host: its place is made, and it is not served until it was moved here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incoming: Option<Incoming>,
    /// The QMP socket of the QEMU here that its guest comes to with it (`-S -incoming defer`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
}

/// The wish to change an ssd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SsdChange {
    /// The new capacity: not less than the old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The new limits, all of them: what is left out is not limited any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The QMP socket of the QEMU here that its guest comes to with it; empty: none. Also of one that is at another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
}

/// A named size with limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Flavor {
    /// Its name.
    pub name: String,
    /// Capacity of an ssd made by it.
    pub size_bytes: u64,
    /// Limits of an ssd made by it.
    #[serde(default)]
    pub limits: Limits,
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// The agent works on it, and goes on after a restart.
    Running,
    /// Done, once.
    Done,
    /// Not done, and what it had begun is undone.
    Failed,
}

impl OperationState {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A change that the agent makes, or has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id, as the client gave it.
    pub id: String,
    /// What is done: `ssd-create`, `ssd-change`, `ssd-delete`, ...
    pub kind: String,
    /// The name of what it is done to.
    pub target: String,
    /// Where it is.
    pub state: OperationState,
    /// The step that it is at.
    pub step: String,
    /// What it waits for, or why it failed.
    pub message: Option<String>,
    /// When it was asked for, ms since 1970.
    pub created_ms: u64,
    /// When it ended, ms since 1970.
    pub finished_ms: Option<u64>,
}

/// A list, and the version of all that the agent holds at that moment: what [`Watch`] goes on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct List<T> {
    /// What there is, by name; operations from the newest on.
    pub items: Vec<T>,
    /// The version.
    pub version: u64,
}

/// Something that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Change {
    /// Its number; they only grow.
    pub version: u64,
    /// `ssd`, `flavor`, `pool`, `snapshot`, `attachment`, `certificate` or `operation`.
    pub kind: String,
    /// The name or the id.
    pub name: String,
    /// It is no more.
    pub gone: bool,
}

/// What has changed since a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Watch {
    /// The changes, oldest first.
    pub changes: Vec<Change>,
    /// The version to ask with next.
    pub version: u64,
    /// Older changes are forgotten: list everything again.
    pub lost: bool,
}

/// What a change would do (`dry_run=true`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Plan {
    /// For people.
    pub plan: String,
}

/// A host as the agent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Host {
    /// Release of the agent.
    pub release: String,
    /// The version of all that the agent holds.
    pub version: u64,
    /// The daemon answers.
    pub daemon: bool,
    /// What is wrong with the daemon, or with what it was last asked to serve.
    pub reason: Option<String>,
    /// The engine: `serving`, `starting`, `pausing`, `stopping` or `down`.
    pub engine: String,
    /// The engine's number.
    pub engine_generation: u64,
    /// Engines that crashed or were killed, in all.
    pub engine_crashes: u64,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// For programs: `bad-request`, `not-found`, `conflict`, `precondition`, ...
    pub code: String,
    /// What happened, to what.
    pub message: String,
    /// What to do.
    pub next_step: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_a_part_of_a_path() {
        for good in ["a", "vm-1.data_2", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\0", "a%2f", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
