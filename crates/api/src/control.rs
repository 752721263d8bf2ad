//! What `godwit` and `godwitd` say to one another on the control socket: one JSON object a line.
//!
//! The client sends one [`Request`]; the daemon answers with any number of [`Response::Progress`] lines and then one
//! [`Response::Status`], [`Response::Done`] or [`Response::Error`]. Fields are added, never renamed; a reader ignores those it
//! does not know.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the daemon listens if its configuration does not say.
pub const DEFAULT_SOCKET: &str = "/run/godwit/godwitd.sock";
/// The longest line of a request.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How things are.
    Status,
    /// Replaces the running engine, with I/O in flight.
    Upgrade {
        /// The new program. `None`: the file that the running one was started from, as it is now.
        #[serde(default)]
        binary: Option<PathBuf>,
        /// Replaces the keeper instead of the engine.
        #[serde(default)]
        keeper: bool,
        /// Answer when the new engine serves, not when its probation is over.
        #[serde(default)]
        no_wait: bool,
    },
    /// Takes an ssd out of quarantine.
    Resume {
        /// Its name.
        ssd: String,
    },
    /// Serves what a configuration says, in place of what is served now; whatever is the same in both is not disturbed. Refused
    /// whole if any part of it cannot be done: then nothing has changed.
    Apply {
        /// Its text.
        config: String,
        /// Where it came from, for messages.
        #[serde(default)]
        path: Option<PathBuf>,
        /// Say what would be done, and do nothing.
        #[serde(default)]
        dry_run: bool,
        /// Remove ssds whose clients are connected, too: they lose their device.
        #[serde(default)]
        force: bool,
    },
    /// About pools: the engine answers.
    Pool(PoolRequest),
    /// About what the engine does: it answers.
    Engine(EngineRequest),
}

/// What can be asked of the engine itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "kebab-case")]
pub enum EngineRequest {
    /// Its reactors and how busy they are, measured over a moment: [`Response::Reactors`].
    Reactors,
    /// The limits in force of the ssds that are served: [`Response::Limits`].
    Limits,
    /// Moves an ssd, its data and its ownership, to another host.
    Migrate {
        /// Its name.
        ssd: String,
        /// The other host and its port, as its certificate has the name.
        to: String,
        /// How it is moved.
        #[serde(default)]
        terms: MigrationTerms,
        /// Ask the other host whether it could be, and do nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// Moves a guest to another host, with all the ssds that it has from here.
    MigrateGuest {
        /// The QMP socket of its QEMU.
        qmp: PathBuf,
        /// The other host and its port, as its certificate has the name.
        to: String,
        /// How it is moved.
        #[serde(default)]
        terms: MigrationTerms,
        /// Ask the other host whether it could be, and do nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// The time line of an ssd's last migration: [`Response::Timeline`].
    Timeline {
        /// The ssd's name here.
        ssd: String,
    },
    /// All migrations that this host takes part in, and those that ended last: [`Response::Migrations`].
    Migrations,
    /// Steers a migration.
    Steer {
        /// The ssd's name here.
        ssd: String,
        /// What is to be done.
        steer: Steer,
    },
}

/// How an ssd is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationTerms {
    /// Bytes a second on the wire at most. 0: no limit.
    pub bandwidth: u64,
    /// How long its guest's I/O may stand still, µs.
    pub max_stun_us: u64,
    /// Connections side by side, 1 to 64.
    pub streams: u16,
    /// What is left here is kept, and not wiped.
    pub keep_source: bool,
    /// How long one in a hundred of the guest's I/Os may take meanwhile, in thousandths of what it took before: the copy is slowed until it holds. 0: as
    /// long as it may.
    pub latency_budget_permille: u32,
    /// It may lie in the clear at the other host, though it is encrypted here.
    pub allow_unencrypted: bool,
}

impl Default for MigrationTerms {
    fn default() -> Self {
        Self {
            bandwidth: 0,
            max_stun_us: 10_000,
            streams: 2,
            keep_source: false,
            latency_budget_permille: 0,
            allow_unencrypted: false,
        }
    }
}

/// What can be done to a migration that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steer {
    /// Copy nothing for now; the guest goes on.
    Pause,
    /// Copy on.
    Resume,
    /// Bytes a second on the wire at most from now on. 0: no limit.
    Bandwidth(u64),
    /// End it: the ssd stays where it is.
    Cancel,
    /// Take the ssd here. Whoever says so answers for it that the other host does not serve it.
    Force,
}

/// A migration, as one of the two hosts sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct MigrationStatus {
    /// The ssd.
    pub ssd: String,
    /// The other host.
    pub peer: String,
    /// The QMP socket of the QEMU whose guest goes with it, at the source.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub guest: Option<PathBuf>,
    /// It comes here; else it goes.
    pub incoming: bool,
    /// What is done now, or how it ended, in a word.
    pub state: String,
    /// What an operator must know, and the way on; or why it failed.
    pub reason: Option<String>,
    /// It is over.
    pub over: bool,
    /// Bytes of the ssd.
    pub size_bytes: u64,
    /// Bytes on the wire until now.
    pub sent_bytes: u64,
    /// Bytes of its guest's memory on the wire until now.
    pub memory_bytes: u64,
    /// Bytes that this pass has still to send.
    pub left_bytes: u64,
    /// Passes that are done.
    pub pass: u32,
    /// Bytes a second, last.
    pub rate: u64,
    /// Bytes a second that the guest writes anew.
    pub dirty_rate: u64,
    /// How long the guest's I/O would stand still if it were switched over now, ns.
    pub predicted_stun_ns: Option<u64>,
    /// How long it did: from the last command here to the word that it is served there, ns.
    pub stun_ns: Option<u64>,
    /// What one in a hundred of the guest's reads and writes took at least before the copy, and takes now, in queues here and at the drive, ns.
    pub p99_before_ns: Option<u64>,
    /// See `p99_before_ns`.
    pub p99_ns: Option<u64>,
    /// Since it began, ms.
    pub elapsed_ms: u64,
}

/// How a guest's I/O went while its ssd moved, as one of the two hosts counted it: the last two minutes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Timeline {
    /// The ssd.
    pub ssd: String,
    /// When the migration began here, by this host's clock, ms since 1970.
    pub began_unix_ms: u64,
    /// One about each 10 ms, in order.
    pub points: Vec<TimelinePoint>,
    /// What was done from when on, in order.
    pub marks: Vec<TimelineMark>,
}

/// What was counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TimelinePoint {
    /// Since the migration began here, µs.
    #[serde(rename = "t")]
    pub at_us: u64,
    /// I/Os that have ended since some moment before.
    #[serde(rename = "n")]
    pub ios: u64,
}

/// A change of what is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TimelineMark {
    /// Since the migration began here, µs.
    pub at_us: u64,
    /// What is done, as in [`MigrationStatus::state`].
    pub state: String,
}

/// A reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReactorStatus {
    /// Its number, from 0.
    pub reactor: usize,
    /// It serves. One that does not sleeps until it is called up again.
    pub on_duty: bool,
    /// Of its time, how much it was at work, in a thousandth.
    pub busy_permille: u32,
    /// Commands a second.
    pub iops: u64,
    /// Ssds that have something there.
    pub ssds: u64,
    /// Queue pairs and rings that it serves.
    pub queue_pairs: u64,
}

/// The limits of an ssd that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsStatus {
    /// The ssd.
    pub ssd: String,
    /// As the configuration says, or as it came from another host.
    pub limits: crate::config::Limits,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// More is to come.
    Progress(String),
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`PoolRequest::List`]. Every other request about pools is answered with `Done` or `Error`.
    Pool(Vec<PoolStatus>),
    /// The answer to [`EngineRequest::Reactors`].
    Reactors(Vec<ReactorStatus>),
    /// The answer to [`EngineRequest::Limits`].
    Limits(Vec<LimitsStatus>),
    /// The answer to [`EngineRequest::Timeline`].
    Timeline(Timeline),
    /// The answer to [`EngineRequest::Migrations`].
    Migrations(Vec<MigrationStatus>),
    /// It is done.
    Done(String),
    /// It is not done: what happened, to what, and what to do.
    Error(String),
}

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Release of the keeper.
    pub release: String,
    /// The keeper's process.
    pub pid: u32,
    /// How often the keeper was replaced.
    pub keeper_generation: u64,
    /// The engine.
    pub engine: EngineStatus,
    /// The ssds, in the configuration's order.
    pub ssds: Vec<SsdStatus>,
    /// The engine's reactors. Asked of it separately ([`EngineRequest::Reactors`]); empty if it did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reactors: Vec<ReactorStatus>,
    /// The last engines' ends, newest last.
    pub restarts: Vec<Restart>,
}

/// The engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStatus {
    /// Counts the engines, from 1.
    pub generation: u64,
    /// `serving`, `starting`, `pausing`, `stopping` or `down`.
    pub state: String,
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// Its release, as it says.
    pub release: String,
    /// Its program.
    pub binary: PathBuf,
    /// How long it has served, ms.
    pub serving_ms: u64,
    /// Engines that crashed or were killed, in all.
    pub crashes: u64,
    /// Upgrades and planned handovers, in all.
    pub handovers: u64,
    /// An upgrade's probation is running.
    pub on_probation: bool,
}

/// An ssd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SsdStatus {
    /// Its name.
    pub name: String,
    /// `serving`, `parked` (no engine serves it now) or `quarantined`; or, when its owner is not here, how far its migration is:
    /// `incoming`, `ready`, `granted`, `gone`, `dropped`, `superseded`, or `doubtful` when nobody can say.
    pub state: String,
    /// Why it is quarantined or not served here, or what is wrong with it.
    pub reason: Option<String>,
    /// A client is connected.
    pub client: bool,
    /// Its commands that nobody has answered yet.
    pub unanswered: u64,
    /// Crashes of engines, lately, with it in hand.
    pub crashes: u64,
    /// Where its page of metrics (`docs/formats/ssd-metrics.md`) can be opened, by whoever may look into the keeper's process. Open it
    /// once: what is open stays good when the keeper replaces itself.
    pub metrics: Option<PathBuf>,
    /// How much it may do. The keeper says what the configuration says; an engine that is asked ([`EngineRequest::Limits`]) knows what it came with.
    pub limits: crate::config::Limits,
}

/// An engine's end and what followed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    /// The engine that ended.
    pub generation: u64,
    /// When, seconds since 1970.
    pub unix_s: u64,
    /// Why.
    pub reason: String,
    /// It handed over as planned.
    pub planned: bool,
    /// From its end until the next one served, µs. `None`: not yet.
    pub blackout_us: Option<u64>,
    /// Commands executed again.
    pub replayed: u64,
    /// Completions written again.
    pub reposted: u64,
    /// Requests at the drives that were waited for.
    pub fenced: u64,
}

/// What can be asked about pools. `pool` is the name in the configuration, `volume` the ssd's name or a snapshot's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case")]
pub enum PoolRequest {
    /// The pools and what is in them.
    List,
    /// Makes a drive a pool without ssds, which the configuration can name then. Its data is lost.
    Create {
        /// Its name.
        name: String,
        /// The file or block device.
        path: PathBuf,
        /// A file is made or extended to this size.
        #[serde(default)]
        size_bytes: Option<u64>,
        /// A power of two, 1 MiB to 1 GiB. `None`: by the drive's size.
        #[serde(default)]
        extent_bytes: Option<u64>,
        /// Also when the drive is taken: its serial number (a file: its path), repeated.
        #[serde(default)]
        force_destroy_data: Option<String>,
        /// Its identity, 32 hexadecimal digits: a drive that carries this pool already is left as it is, so that one who did not
        /// hear the answer asks again. `None`: a new one.
        #[serde(default)]
        uuid: Option<String>,
    },
    /// Looks for inconsistencies of a pool: one that is open, one of the configuration that cannot be opened, or, by its path, one
    /// that is not in the configuration.
    Check {
        /// Which; a path begins with `/`.
        pool: String,
        /// Put right what is safe. An open pool needs none: opening it did that.
        #[serde(default)]
        repair: bool,
    },
    /// Deletes a volume that nobody serves; its extents are wiped before anybody else gets them.
    Delete {
        /// Where.
        pool: String,
        /// Which.
        volume: String,
    },
    /// Keeps what a volume contains now under another name, unchangeable.
    Snapshot {
        /// Where.
        pool: String,
        /// Of which.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// A new volume that begins with what another contains now. An ssd of this name in the configuration has it.
    Clone {
        /// Where.
        pool: String,
        /// Of which.
        volume: String,
        /// The clone's name.
        name: String,
    },
    /// Makes a volume larger.
    Grow {
        /// Where.
        pool: String,
        /// Which.
        volume: String,
        /// Its size then.
        size_bytes: u64,
    },
    /// Gives a pool without served ssds up, so that another host may open it.
    Export {
        /// Which.
        pool: String,
    },
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its drive.
    pub path: PathBuf,
    /// `serving`, or what is wrong with it.
    pub state: String,
    /// Its identity, in hexadecimal digits.
    pub uuid: String,
    /// How often it was opened.
    pub epoch: u64,
    /// Size of an extent.
    pub extent_bytes: u64,
    /// Extents in all.
    pub extents: u64,
    /// Extents that are nobody's.
    pub free: u64,
    /// Extents that volumes refer to.
    pub used: u64,
    /// Extents that are being zeroed.
    pub wiping: u64,
    /// Extents that could not be zeroed.
    pub quarantined: u64,
    /// Writes to this many extents wait for space.
    pub waiting: u64,
    /// What is in it.
    pub volumes: Vec<VolumeStatus>,
}

/// A volume: an ssd's data, or a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Extents it refers to, in bytes, shared ones included.
    pub mapped_bytes: u64,
    /// Extents are given when they are first written.
    pub thin: bool,
    /// A snapshot.
    pub read_only: bool,
    /// The volume that it was made of, a snapshot or a clone, if that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// An ssd serves it now.
    pub served: bool,
    /// Its ownership epoch.
    pub epoch: u64,
    /// How far its migration is or how the last one ended, if it was ever moved: `gone`, `owned`...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
}
