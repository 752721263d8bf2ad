//! The control link: one SEQPACKET socket pair for each engine process; one message a packet, descriptors beside it.
//!
//! ```text
//!  keeper                                   engine
//!    Welcome, Saved*, Session*, Rings*  -->
//!    Start                              -->   restores all, fences the dead engine's I/O, serves
//!                                       <--   Hello (at once), PowerOn* (ssds that had nothing saved), Ready | Refused
//!    Session (a new client)             -->
//!                                       <--   Ring, RingGone, Record, PowerOn (a client left), Fault, Standing
//!    RingKept                           -->
//!    Pause                              -->   stops fetching, lets the drives' I/O end
//!                                       <--   Paused, then exits
//!    Stop                               -->   ends all sessions, makes all durable, exits with status 0
//!
//!  An upgrade asks the new engine first, while the old one serves:
//!    Welcome, Saved*, Deposit*          -->   reads copies; changes nothing, opens no drive
//!    Check                              -->
//!                                       <--   Hello, Ready | Refused (then it exits)
//!    Saved*, Session*, Rings*, Start    -->   all anew, when the old engine is gone: as above
//! ```
//!
//! # The keeper's duties
//! - `Welcome` comes first and once. Its `ssds` are those of the configuration, in its order; everywhere else an ssd is an
//!   index into that list. A parked (quarantined) ssd is not to be opened, and nothing more is said of it.
//! - What an engine sent before it died counts: the keeper reads the link to its end before it starts the next engine.
//! - When the keeper goes, the link ends: the engine exits at once and as it is.
//!
//! # The engine's duties
//! - `Hello` answers `Welcome` at once, from any version.
//! - After `Check` all that was sent is forgotten, but for `Welcome`.
//! - It submits nothing to an io_uring before `RingKept` for its descriptor came, and says `RingGone` before it closes it.
//! - `PowerOn` is the one atomic step of a power cycle: after it the old region is gone, and so is the session it names.

use crate::LinkError;
use crate::socket::{Wait, receive, send};
use minicbor::{Decode, Encode};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The longest body of a message.
pub const BODY_BYTES_MAX: usize = 32 << 20;
/// A longer body travels in a memfd, so that no packet is refused for its size.
const INLINE_BYTES_MAX: usize = 32 << 10;
/// The most descriptors beside a message.
pub const FDS_MAX: usize = 252;

/// What the keeper sends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToEngine {
    /// First of all. Beside it: the page of [`crate::blame`].
    #[n(0)]
    Welcome(#[n(0)] Welcome),
    /// What is kept of an ssd. Beside it: one descriptor for each of its roles.
    #[n(1)]
    Saved(#[n(0)] Saved),
    /// The dead engine's io_urings, which the keeper holds until `Ready`. Nothing may be executed again, and no new I/O be
    /// submitted, before every request they took has ended.
    #[n(2)]
    Rings {
        /// The keeper's descriptor numbers: rings cannot be sent over sockets (EINVAL since Linux 6.7), but whoever holds one
        /// shows its counts in its `fdinfo`, and the keeper is the engine's parent.
        #[n(0)]
        numbers: Vec<u32>,
    },
    /// A client's session; its link is beside it.
    #[n(3)]
    Session(#[n(0)] Session),
    /// For a check only: what the last engine deposited for a client.
    #[n(4)]
    Deposit(#[n(0)] Deposit),
    /// Say whether all that was sent can be read: `Ready` or `Refused`.
    #[n(5)]
    Check,
    /// Serve. `Ready` when every ssd is served again, or `Refused`.
    #[n(6)]
    Start,
    /// Stop fetching, let the drives' I/O end, say `Paused` and exit; another engine goes on.
    #[n(7)]
    Pause,
    /// End all sessions, make everything durable, exit with status 0. The keeper does not serve any more.
    #[n(8)]
    Stop,
    /// An io_uring is held (or cannot be, then `kept` is false and a crash cannot be fenced).
    #[n(9)]
    RingKept {
        /// The engine's descriptor number.
        #[n(0)]
        number: u32,
        /// Whether the keeper has a duplicate.
        #[n(1)]
        kept: bool,
    },
    /// Make ready for a change of what is served; nothing that is served changes yet. `Prepared` answers. A later one takes the place of one
    /// that was not committed.
    #[n(10)]
    Prepare(#[n(0)] Change),
    /// Carry out the change that was prepared. `Changed` answers.
    #[n(11)]
    Commit {
        /// Its number.
        #[n(0)]
        change: u64,
    },
    /// Somebody asks about pools, or about the engine: `PoolAnswered` with the same number answers.
    #[n(12)]
    Pool {
        /// The question's number.
        #[n(0)]
        id: u32,
        /// An `api::control::PoolRequest` or `EngineRequest` as JSON; opaque to the keeper.
        #[n(1)]
        request: String,
    },
    /// A change that was prepared, and is not waited for any more, will not be committed. Since version 5.
    #[n(13)]
    Forget {
        /// Its number.
        #[n(0)]
        change: u64,
    },
}

/// A change of what is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Change {
    /// Counts the changes of a keeper.
    #[n(0)]
    pub change: u64,
    /// The text of the configuration as it will be.
    #[n(1)]
    pub config: String,
    /// The ssds of the new configuration that are not served yet.
    #[n(2)]
    #[cbor(default)]
    pub added: Vec<Slot>,
    /// The numbers of those to be served no more.
    #[n(3)]
    #[cbor(default)]
    pub removed: Vec<u32>,
    /// The numbers of those whose size grows.
    #[n(4)]
    #[cbor(default)]
    pub grown: Vec<u32>,
}

/// Whether a change can be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Prepared {
    /// Which.
    #[n(0)]
    pub change: u64,
    /// Why it cannot be: what, of what, and what to do. Nothing has changed then.
    #[n(1)]
    pub refused: Option<String>,
}

/// First of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// [`crate::VERSION`] of the keeper.
    #[n(0)]
    pub version: u32,
    /// Counts the engines of this keeper, from 1.
    #[n(1)]
    pub generation: u64,
    /// Where the configuration came from, for messages.
    #[n(2)]
    pub config_path: String,
    /// The text of the configuration.
    #[n(3)]
    pub config: String,
    /// The ssds, in the configuration's order.
    #[n(4)]
    pub ssds: Vec<Slot>,
    /// Make this path a link to the page of counters.
    #[n(5)]
    pub stats: Option<String>,
    /// How the last engine ended, if there was one.
    #[n(6)]
    pub predecessor: Option<Predecessor>,
    /// An engine of this keeper has served: what cannot be served is a [`ToKeeper::Fault`], and the others are.
    #[n(7)]
    #[cbor(default)]
    pub has_served: bool,
}

/// An ssd of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Slot {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// A `Saved` will come for it: it is powered on. If not, the engine powers it on.
    #[n(1)]
    pub saved: bool,
    /// It is quarantined: leave it alone.
    #[n(2)]
    #[cbor(default)]
    pub parked: bool,
    /// Its number: everywhere else an ssd is named by it. Given once by the keeper and never to another ssd. `None`: of a keeper
    /// of version 1, whose numbers are the places in this list.
    #[n(3)]
    pub number: Option<u32>,
}

/// How the last engine ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Predecessor {
    /// In words, for the log.
    #[n(0)]
    pub reason: String,
    /// When the keeper saw it, CLOCK_MONOTONIC, ns.
    #[n(1)]
    pub ended_ns: u64,
    /// It handed over as planned: nothing is in flight.
    #[n(2)]
    #[cbor(default)]
    pub paused: bool,
}

/// What is kept of an ssd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Saved {
    /// Which.
    #[n(0)]
    pub ssd: u32,
    /// What the descriptors beside it are.
    #[n(1)]
    pub roles: Vec<Role>,
    /// The newest record an engine sent; opaque to the keeper. For an ssd with a state file, the file is what counts.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub record: Option<Vec<u8>>,
    /// Engines that crashed with this ssd in hand, one after the other.
    #[n(3)]
    #[cbor(default)]
    pub crashes: u32,
}

/// What a descriptor of an ssd is. An unknown one is kept and passed on all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Role(#[n(0)] pub u32);

impl Role {
    /// The controller's region.
    pub const REGION: Self = Self(0);
    /// The page a guest rings doorbells in.
    pub const DOORBELLS: Self = Self(1);
    /// The memory of a RAM drive.
    pub const DRIVE: Self = Self(2);
    /// Nothing: beside a virtio-blk disk, which has no controller, so that it is powered on all the same.
    pub const POWERED: Self = Self(3);
    /// The key of its data, read once: a successor must not depend on whoever gave it.
    pub const KEY: Self = Self(4);
    /// What is counted of the ssd (crate `metrics`).
    pub const METRICS: Self = Self(5);
    /// The log of what is written into the guest's memory, for an engine that moves the guest.
    pub const WRITTEN: Self = Self(6);
}

/// A client's session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Session {
    /// Of which ssd.
    #[n(0)]
    pub ssd: u32,
    /// Its number, never used twice by a keeper.
    #[n(1)]
    pub session: u64,
    /// What the client speaks.
    #[n(2)]
    pub door: Door,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Door(#[n(0)] pub u32);

impl Door {
    /// vfio-user.
    pub const VFIO_USER: Self = Self(0);
    /// vhost-user.
    pub const VHOST_USER: Self = Self(1);
}

/// For a check: a client's deposit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Deposit {
    /// Of which ssd.
    #[n(0)]
    pub ssd: u32,
    /// What the client speaks.
    #[n(1)]
    pub door: Door,
    /// The deposit.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// What the engine sends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToKeeper {
    /// Answers `Welcome`.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Answers `Check` (all can be read) or `Start` (every ssd is served).
    #[n(1)]
    Ready(#[n(0)] Ready),
    /// Answers `Check` or `Start`; the engine exits.
    #[n(2)]
    Refused(#[n(0)] Refused),
    /// An ssd begins a new power cycle. Beside it: one descriptor for each of its roles; roles that are not named keep
    /// their descriptors.
    #[n(3)]
    PowerOn(#[n(0)] PowerOn),
    /// The newest record of an ssd.
    #[n(4)]
    Record {
        /// Of which.
        #[n(0)]
        ssd: u32,
        /// Opaque to the keeper.
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        record: Vec<u8>,
    },
    /// Hold a duplicate of this io_uring.
    #[n(5)]
    Ring {
        /// The engine's descriptor number.
        #[n(0)]
        number: u32,
    },
    /// All that the ring took has ended; it is about to be closed.
    #[n(6)]
    RingGone {
        /// The engine's descriptor number.
        #[n(0)]
        number: u32,
    },
    /// Nothing is fetched and nothing in flight any more.
    #[n(7)]
    Paused,
    /// Something an operator must know of: the engine goes on.
    #[n(8)]
    Fault {
        /// Of which ssd; `None`: of all.
        #[n(0)]
        ssd: Option<u32>,
        /// What happened, to what, and what to do.
        #[n(1)]
        why: String,
    },
    /// Answers `Prepare`.
    #[n(9)]
    Prepared(#[n(0)] Prepared),
    /// Answers `Commit`: all of the change is carried out; what could not be was said by `Fault`.
    #[n(10)]
    Changed {
        /// Its number.
        #[n(0)]
        change: u64,
    },
    /// Answers `Pool`.
    #[n(11)]
    PoolAnswered {
        /// The question's number.
        #[n(0)]
        id: u32,
        /// An `api::control::Response` as JSON.
        #[n(1)]
        response: String,
    },
    /// Whether an ssd is served here at all: said of each that an engine takes up, and again when it changes. From version 3 on.
    #[n(12)]
    Standing {
        /// Of which.
        #[n(0)]
        ssd: u32,
        /// `None`: its owner is here.
        #[n(1)]
        standing: Option<Standing>,
    },
    /// All that the rings of `Rings` took has ended: they are held for nobody any more. From version 4 on.
    #[n(13)]
    Fenced,
}

/// Why an ssd is not served, though nothing is wrong with it: its owner is elsewhere, or nobody can say where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Standing {
    /// In one word, such as `incoming` or `gone`.
    #[n(0)]
    pub word: String,
    /// What has happened, and the way on.
    #[n(1)]
    pub why: String,
    /// Clients wait until it is served; else they are turned away.
    #[n(2)]
    #[cbor(default)]
    pub holds: bool,
}

/// Who the engine is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`crate::VERSION`] of the engine.
    #[n(0)]
    pub version: u32,
    /// Its release, such as "0.1.0".
    #[n(1)]
    pub release: String,
    /// The saved formats it reads, and the newest version of each.
    #[n(2)]
    #[cbor(default)]
    pub formats: Vec<Format>,
}

/// A saved format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Format {
    /// Its name, such as "controller-region".
    #[n(0)]
    pub name: String,
    /// The newest version that is read.
    #[n(1)]
    pub newest: u32,
}

/// Every ssd is served, or could be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ready {
    /// Commands of guests executed again, in all.
    #[n(0)]
    #[cbor(default)]
    pub replayed: u64,
    /// Completions that were being written, written again.
    #[n(1)]
    #[cbor(default)]
    pub reposted: u64,
    /// Requests of the dead engine that were waited for.
    #[n(2)]
    #[cbor(default)]
    pub fenced: u64,
}

/// What cannot be served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// What is wrong, with what, and what to do.
    #[n(0)]
    pub reason: String,
    /// The ssd it is about.
    #[n(1)]
    pub ssd: Option<u32>,
}

/// A new power cycle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PowerOn {
    /// Of which ssd.
    #[n(0)]
    pub ssd: u32,
    /// The session that ended with the last cycle: its client has left, and the keeper forgets it now.
    #[n(1)]
    pub ended: Option<u64>,
    /// What the descriptors beside it are.
    #[n(2)]
    pub roles: Vec<Role>,
    /// The record the cycle began with. `None`: the last one stands.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub record: Option<Vec<u8>>,
}

/// An encoded message. It can be sent more than once.
#[derive(Clone, Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

const INLINE: u8 = 1;
const IN_MEMFD: u8 = 2;

impl Packet {
    /// Encodes a message.
    ///
    /// # Errors
    /// It is too large, or no memory is left.
    pub fn new<M: Encode<()>>(message: &M, fds: Vec<Arc<OwnedFd>>) -> Result<Self, LinkError> {
        if fds.len() > FDS_MAX {
            return Err(LinkError::TooLarge("more than 252 descriptors beside a control message"));
        }
        let body = minicbor::to_vec(message).map_err(|error| LinkError::Unknown(error.to_string()))?;
        if body.len() <= INLINE_BYTES_MAX {
            return Ok(Self { bytes: [&[INLINE][..], &body].concat(), fds });
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(LinkError::TooLarge("a control message"));
        }
        let mut fds = fds;
        fds.push(Arc::new(body_memfd(&body)?));
        Ok(Self { bytes: vec![IN_MEMFD], fds })
    }
}

fn body_memfd(body: &[u8]) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create("godwit-message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = body;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or(&[]);
    }
    rustix::fs::fcntl_add_seals(&fd, BODY_SEALS)?;
    Ok(fd)
}

const BODY_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

fn read_body(fd: &OwnedFd) -> Result<Vec<u8>, LinkError> {
    let sealed = rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(BODY_SEALS));
    let len = usize::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(usize::MAX);
    if !sealed || len > BODY_BYTES_MAX {
        return Err(LinkError::Nonsense("the body's memory is too large, or can change"));
    }
    let mut body = vec![0; len];
    let mut filled = 0;
    while let Some(rest) = body.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(fd, rest, filled as u64)? {
            0 => return Err(LinkError::Truncated),
            count => filled += count,
        }
    }
    Ok(body)
}

/// One end of a control link.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

/// What a look at the link brought.
#[derive(Debug)]
pub enum Received<M> {
    /// A message, and the descriptors beside it.
    Message(M, Vec<OwnedFd>),
    /// Nothing now.
    Later,
    /// The peer is gone, and this was all.
    Closed,
}

impl Link {
    /// Takes an end.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Two ends, close-on-exec.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pair() -> std::io::Result<(Self, Self)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(one), Self::new(other)))
    }

    /// Sends a message and waits for room.
    ///
    /// # Errors
    /// It is too large; the peer is gone.
    pub fn send<M: Encode<()>>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let mut owned = Vec::with_capacity(fds.len());
        for fd in fds {
            owned.push(Arc::new(fd.try_clone_to_owned().map_err(|error| os_error(&error))?));
        }
        self.send_packet(&Packet::new(message, owned)?, Wait::Block).map(|_| ())
    }

    /// Sends an encoded message; false: there is no room now.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn send_packet(&self, packet: &Packet, wait: Wait) -> Result<bool, LinkError> {
        let fds: Vec<_> = packet.fds.iter().map(|fd| fd.as_fd()).collect();
        match send(&self.socket, &[IoSlice::new(&packet.bytes)], &fds, wait) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// What came is no message that this build knows.
    pub fn receive<M: for<'b> Decode<'b, ()>>(&self, wait: Wait) -> Result<Received<M>, LinkError> {
        let mut buffer = vec![0; 1 + INLINE_BYTES_MAX];
        let mut fds = Vec::new();
        let received = match receive(&self.socket, &mut buffer, &mut fds, wait) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Received::Later),
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(errno) => return Err(errno.into()),
        };
        if received.cut {
            return Err(LinkError::Nonsense("a packet that is too long or has too many descriptors"));
        }
        match buffer.get(..received.bytes).and_then(<[u8]>::split_first) {
            None => Ok(Received::Closed),
            Some((&INLINE, body)) => Ok(Received::Message(decode(body)?, fds)),
            Some((&IN_MEMFD, [])) => {
                let memfd = fds.pop().ok_or(LinkError::Nonsense("a body in memory that did not come"))?;
                Ok(Received::Message(decode(&read_body(&memfd)?)?, fds))
            }
            Some(_) => Err(LinkError::Nonsense("an unknown kind of packet")),
        }
    }

    /// Both directions end.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// The socket, to be handed to another process.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn os_error(error: &std::io::Error) -> LinkError {
    LinkError::Io(Errno::from_io_error(error).unwrap_or(Errno::MFILE))
}

/// Reads the body of a message; any bytes are a message or an error.
///
/// # Errors
/// The bytes are no message that this build knows.
pub fn decode<M: for<'b> Decode<'b, ()>>(body: &[u8]) -> Result<M, LinkError> {
    let mut decoder = minicbor::Decoder::new(body);
    let message = decoder.decode().map_err(|error| LinkError::Unknown(error.to_string()))?;
    if decoder.position() != body.len() {
        return Err(LinkError::Nonsense("bytes after the end of a message"));
    }
    Ok(message)
}
