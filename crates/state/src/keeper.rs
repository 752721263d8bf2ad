//! All that a keeper holds, for the keeper after it: another program in the same process (re-exec), or another process (the
//! service manager's descriptor store).
//!
//! Descriptors stand here by their ids; they go beside the record (`docs/formats/keeper.md`). Bytes that are half in or half out
//! of a socket are part of it, so that no stream gets out of step. Fields are tagged: added, never renumbered or reused; one
//! that is added later has `#[cbor(default)]`.

use minicbor::{CborLen, Decode, Encode};
use thiserror::Error;

use crate::envelope::{self, EnvelopeError};

/// First eight bytes of a keeper's record.
pub const MAGIC: [u8; 8] = *b"GODWTKPR";
/// The newest version this build reads. Version 2: ssds have numbers of their own. As long as those are their places, version 1 is
/// written, which a build from before can go on from.
pub const VERSION: u32 = 2;
/// First eight bytes of a session's record.
pub const SESSION_MAGIC: [u8; 8] = *b"GODWTKPS";
/// More ssds than any configuration has.
const SSDS_MAX: usize = 65_536;
/// More ends of engines than are remembered.
const ENDS_MAX: usize = 4096;

/// The id of a descriptor beside the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, CborLen)]
#[cbor(transparent)]
pub struct Fd(#[n(0)] pub u32);

/// A keeper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct KeeperV1 {
    /// Counts the keepers, from 1.
    #[n(0)]
    pub generation: u64,
    /// Its release, for messages.
    #[n(1)]
    pub release: String,
    /// Where the configuration came from.
    #[n(2)]
    pub config_path: String,
    /// The text of the configuration.
    #[n(3)]
    pub config_text: String,
    /// Where the link to the engine's counters is to be.
    #[n(4)]
    pub stats: Option<String>,
    /// The control socket.
    #[n(5)]
    pub console: Option<ListenerV1>,
    /// In the order of the configuration.
    #[n(6)]
    #[cbor(default)]
    pub ssds: Vec<KeptSsdV1>,
    /// The number of the next session.
    #[n(7)]
    pub next_session: u64,
    /// The newest engine's generation.
    #[n(8)]
    pub last_engine: u32,
    /// The engine that serves.
    #[n(9)]
    pub engine: Option<EngineV1>,
    /// The program of the next engine.
    #[n(10)]
    pub program: Option<ProgramV1>,
    /// An upgrade's probation.
    #[n(11)]
    pub probation: Option<ProbationV1>,
    /// The last engines' ends, newest last.
    #[n(12)]
    #[cbor(default)]
    pub ends: Vec<EndV1>,
    /// Engines that crashed, in all.
    #[n(13)]
    #[cbor(default)]
    pub crashes: u64,
    /// Planned handovers, in all.
    #[n(14)]
    #[cbor(default)]
    pub handovers: u64,
    /// Some engine has served.
    #[n(15)]
    #[cbor(default)]
    pub has_served: bool,
    /// Who asked for the keeper after this one, and waits for the answer: a socket.
    #[n(16)]
    pub asker: Option<Fd>,
    /// The standard input of the process.
    #[n(17)]
    pub stdin: Option<Fd>,
    /// When the keeper was asked to go, CLOCK_MONOTONIC, ns.
    #[n(18)]
    #[cbor(default)]
    pub left_ns: u64,
    /// io_urings of dead engines: descriptor numbers of the process, which stay open across the re-exec, since a ring cannot be
    /// sent over a socket.
    #[n(19)]
    #[cbor(default)]
    pub old_rings: Vec<u32>,
    /// What its descriptors in the service manager's store are called.
    #[n(20)]
    #[cbor(default)]
    pub shelf: Vec<String>,
    /// The number of the next new ssd. `None`: the one after all those here.
    #[n(21)]
    pub next_ssd: Option<u32>,
    /// What the configuration's file said when the daemon began, if what it serves was changed since then.
    #[n(22)]
    pub file_text: Option<String>,
}

/// A socket that listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ListenerV1 {
    /// The socket.
    #[n(0)]
    pub fd: Fd,
    /// Its file.
    #[n(1)]
    pub path: String,
}

/// A program, held open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ProgramV1 {
    /// Its file.
    #[n(0)]
    pub fd: Fd,
    /// Where it was found.
    #[n(1)]
    pub path: String,
}

/// A running engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct EngineV1 {
    /// Which.
    #[n(0)]
    pub generation: u32,
    /// Its process.
    #[n(1)]
    pub pid: i32,
    /// The same, as a pidfd.
    #[n(2)]
    pub pidfd: Fd,
    /// The control link. `None`: it ended with the keeper that had it.
    #[n(3)]
    pub link: Option<Fd>,
    /// Its page of blame.
    #[n(4)]
    pub blame: Fd,
    /// Its program.
    #[n(5)]
    pub program: ProgramV1,
    /// Its io_urings: its own descriptor number, and that of this process, which stays open across the re-exec.
    #[n(6)]
    #[cbor(default)]
    pub rings: Vec<(u32, u32)>,
    /// Its release, as it says.
    #[n(7)]
    pub release: String,
    /// Version of the link that it speaks.
    #[n(8)]
    pub link_version: u32,
    /// When it began to serve, CLOCK_MONOTONIC, ns.
    #[n(9)]
    pub ready_ns: u64,
}

/// What is left of an upgrade's probation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ProbationV1 {
    /// The program before.
    #[n(0)]
    pub former: ProgramV1,
    /// When it ends, CLOCK_MONOTONIC, ns.
    #[n(1)]
    pub until_ns: u64,
    /// Who waits for its end: a socket.
    #[n(2)]
    pub asker: Option<Fd>,
}

/// How an engine ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct EndV1 {
    /// Which engine.
    #[n(0)]
    pub generation: u64,
    /// When, seconds since 1970.
    #[n(1)]
    pub unix_s: u64,
    /// Why.
    #[n(2)]
    pub reason: String,
    /// It handed over as planned.
    #[n(3)]
    pub planned: bool,
    /// Until the next one served, µs.
    #[n(4)]
    pub blackout_us: Option<u64>,
    /// Commands executed again.
    #[n(5)]
    pub replayed: u64,
    /// Completions written again.
    #[n(6)]
    pub reposted: u64,
    /// Requests waited for.
    #[n(7)]
    pub fenced: u64,
}

/// An ssd, as its keeper holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct KeptSsdV1 {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// Its socket. `None`: it is to be bound anew.
    #[n(1)]
    pub listener: Option<ListenerV1>,
    /// Its memory: role (`docs/formats/link.md`) and descriptor.
    #[n(2)]
    #[cbor(default)]
    pub memory: Vec<(u32, Fd)>,
    /// The newest record an engine sent; opaque.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub record: Option<Vec<u8>>,
    /// Why it is quarantined.
    #[n(4)]
    pub quarantined: Option<String>,
    /// What an engine said is wrong with it.
    #[n(5)]
    pub fault: Option<String>,
    /// Where its client's record is, when it is not beside this one: a memfd.
    #[n(6)]
    pub cell: Option<Fd>,
    /// The number by which engines know it. `None`: its place among the ssds (written before there were numbers).
    #[n(7)]
    pub number: Option<u32>,
    /// Why no engine serves it, though nothing is wrong with it: its owner is elsewhere.
    #[n(8)]
    pub standing: Option<StandingV1>,
}

/// An ssd whose owner is elsewhere, as the engine said it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct StandingV1 {
    /// In one word.
    #[n(0)]
    pub word: String,
    /// What has happened, and the way on.
    #[n(1)]
    pub why: String,
    /// Its clients wait.
    #[n(2)]
    #[cbor(default)]
    pub holds: bool,
}

/// A client, as its keeper holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct KeptSessionV1 {
    /// Its number.
    #[n(0)]
    pub id: u64,
    /// What it speaks (`docs/formats/link.md`).
    #[n(1)]
    pub door: u32,
    /// Its socket. `None`: it has left, and an engine takes leave of it.
    #[n(2)]
    pub client: Option<StreamV1>,
    /// The link to the engine, as far as that lives on.
    #[n(3)]
    pub link: Option<StreamV1>,
    /// Commands that nobody has answered.
    #[n(4)]
    #[cbor(default)]
    pub unanswered: Vec<PendingV1>,
    /// The number of its next command.
    #[n(5)]
    pub next_seq: u64,
    /// The id of its next descriptor, in the session.
    #[n(6)]
    pub next_fd: u32,
    /// What the engine deposited; opaque.
    #[n(7)]
    #[cbor(with = "minicbor::bytes")]
    pub deposit: Option<Vec<u8>>,
    /// What the deposit keeps: id in the session, descriptor.
    #[n(8)]
    #[cbor(default)]
    pub kept: Vec<(u32, Fd)>,
    /// Requests of engines by the id that the client knows: the engine's own id, or `None` of a dead engine.
    #[n(9)]
    #[cbor(default)]
    pub requests: Vec<(u16, Option<u16>)>,
    /// The id of the next request.
    #[n(10)]
    #[cbor(default)]
    pub next_request: u16,
    /// Commands answered, in all.
    #[n(11)]
    #[cbor(default)]
    pub answered: u64,
    /// The name of its ssd.
    #[n(12)]
    pub ssd: String,
}

/// A socket, with what is half in and half out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct StreamV1 {
    /// The socket.
    #[n(0)]
    pub fd: Fd,
    /// The part of a message that has come in.
    #[n(1)]
    pub begun: ParcelV1,
    /// More descriptors than allowed came with it.
    #[n(2)]
    #[cbor(default)]
    pub surplus_fds: bool,
    /// Messages to send.
    #[n(3)]
    #[cbor(default)]
    pub waiting: Vec<ParcelV1>,
    /// Bytes of the first of them that are sent.
    #[n(4)]
    #[cbor(default)]
    pub sent: u64,
    /// 0: open. 1: the peer ended its input. 2: we are done with it. Of a link, not 0: the engine was told the end.
    #[n(5)]
    #[cbor(default)]
    pub ending: u8,
    /// The counts of what went through it, where they are kept: a memfd.
    #[n(6)]
    pub tally: Option<Fd>,
    /// Bytes that had come in when this record was made.
    #[n(7)]
    #[cbor(default)]
    pub came_bytes: u64,
    /// Bytes that had gone out when this record was made.
    #[n(8)]
    #[cbor(default)]
    pub went_bytes: u64,
}

/// Bytes with descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct ParcelV1 {
    /// The bytes.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// The descriptors, in order.
    #[n(1)]
    #[cbor(default)]
    pub fds: Vec<Fd>,
}

/// A command that nobody has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, CborLen)]
#[cbor(map)]
pub struct PendingV1 {
    /// Its number.
    #[n(0)]
    pub seq: u64,
    /// The message.
    #[n(1)]
    pub frame: ParcelV1,
    /// The id of its first descriptor, in the session.
    #[n(2)]
    pub fd_first: u32,
    /// More descriptors than allowed came with it.
    #[n(3)]
    #[cbor(default)]
    pub surplus_fds: bool,
}

/// Why bytes are no keeper's record.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The envelope says so.
    #[error("record of a keeper: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The body, though undamaged, has another shape.
    #[error("record of a keeper: its fields cannot be read: {0}")]
    Body(String),
}

impl KeeperV1 {
    /// The bytes of the record.
    ///
    /// # Errors
    /// [`KeeperError`] when it is longer than an envelope may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, KeeperError> {
        let placed = (0..).zip(&self.ssds).all(|(place, ssd)| ssd.number.unwrap_or(place) == place);
        seal(MAGIC, if placed { 1 } else { 2 }, self)
    }

    /// The keeper in the bytes of a record.
    ///
    /// # Errors
    /// [`KeeperError`] names what is wrong: cut short, damaged, foreign, or written by a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeeperError> {
        let (_version, body) = envelope::open(MAGIC, VERSION, bytes)?;
        let keeper: Self = minicbor::decode(body).map_err(|error| KeeperError::Body(error.to_string()))?;
        if keeper.ssds.len() > SSDS_MAX || keeper.ends.len() > ENDS_MAX {
            return Err(KeeperError::Body("more ssds or ends than any keeper has".to_owned()));
        }
        Ok(keeper)
    }
}

impl KeptSessionV1 {
    /// The bytes of a record of its own.
    ///
    /// # Errors
    /// [`KeeperError`] when it is longer than an envelope may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, KeeperError> {
        seal(SESSION_MAGIC, 1, self)
    }

    /// The session in the bytes of a record.
    ///
    /// # Errors
    /// [`KeeperError`] names what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeeperError> {
        let (_version, body) = envelope::open(SESSION_MAGIC, VERSION, bytes)?;
        minicbor::decode(body).map_err(|error| KeeperError::Body(error.to_string()))
    }
}

/// A keeper's record and those of its sessions, which follow it in one file.
///
/// # Errors
/// [`KeeperError`] names what is wrong, with whichever record.
pub fn read_all(bytes: &[u8]) -> Result<(KeeperV1, Vec<KeptSessionV1>), KeeperError> {
    let (keeper, mut rest) = first(bytes)?;
    let keeper = KeeperV1::from_bytes(keeper)?;
    let mut sessions = Vec::new();
    while !rest.is_empty() {
        let (session, behind) = first(rest)?;
        sessions.push(KeptSessionV1::from_bytes(session)?);
        rest = behind;
    }
    Ok((keeper, sessions))
}

/// The first record of several.
fn first(bytes: &[u8]) -> Result<(&[u8], &[u8]), KeeperError> {
    let need_bytes = envelope::record_bytes(bytes)?;
    let truncated = EnvelopeError::Truncated { have_bytes: bytes.len(), need_bytes };
    Ok(bytes.split_at_checked(need_bytes).ok_or(truncated)?)
}

fn seal(magic: [u8; 8], version: u32, record: &impl Encode<()>) -> Result<Vec<u8>, KeeperError> {
    let body = minicbor::to_vec(record).map_err(|error| KeeperError::Body(error.to_string()))?;
    Ok(envelope::seal(magic, version, &body)?)
}
