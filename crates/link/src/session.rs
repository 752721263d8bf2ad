//! The session link: one client's commands and their answers.
//!
//! A STREAM socket pair for each connected client. Both ways a 24-byte header, then the client's frame, then what concerns
//! the session's state ("extra"); descriptors on the first byte:
//!
//! ```text
//!  0     1      2        3          4         8     16            20            24
//!  | kind | flags | fds | reply fds | fd first | seq | frame bytes | extra bytes | frame | extra: count, count x fd id, deposit
//! ```
//!
//! # The keeper's duties
//! - The first message is [`ToEngine::Restore`]: what a predecessor knew of this client, or nothing.
//! - Each command of the client has a `seq` of its own, counting up in the session. It is sent once to each engine, in
//!   order, until an answer names it. Its descriptors have ids of their own, counting up in the session.
//! - An [`Answer`] takes effect whole or not at all.
//! - When the client has left, and all of its commands are sent, the keeper closes its sending side: the engine reads the
//!   end, and takes leave of the client ([`crate::control::ToKeeper::PowerOn`]).
//! - Replies of the client go to the engine that asked; a reply to a dead engine's request is dropped.
//!
//! # The engine's duties
//! - One thread receives; any thread sends (a [`Sender`] is shared).
//! - Every command is answered once, also when the client wants no reply. A command may have been carried out by a
//!   predecessor that died before its answer was whole: carrying it out again must end in the same state and the same reply.
//! - Whatever a successor must know and can find nowhere else is in the deposit of the answer that changed it.
//! - A descriptor that the deposit refers to is named in its `keep`; the keeper closes all others once the answer is in.

use crate::LinkError;
use crate::frame::{BadFrame, Frame, Intake, Shape, Step, Wait};
use crate::outbox::{Outbox, Parcel};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Names a descriptor in a session.
pub type FdId = u32;

/// The engine numbers its own descriptors from here on; the keeper numbers the client's from 0 and never comes here.
pub const ENGINE_FDS: FdId = 1 << 31;
/// Bytes before the frame.
pub const HEADER_BYTES: usize = 24;
/// The longest frame of a client's protocol.
pub const FRAME_BYTES_MAX: usize = (1 << 20) + 4096;
/// The longest deposit.
pub const DEPOSIT_BYTES_MAX: usize = 4 << 20;
/// The most descriptors a session may keep.
pub const KEEP_MAX: usize = 8192;
/// The most descriptors of one message.
pub const FDS_MAX: usize = 253;

const EXTRA_BYTES_MAX: usize = 4 + 4 * KEEP_MAX + DEPOSIT_BYTES_MAX;

/// What the keeper sends.
#[derive(Debug)]
pub enum ToEngine {
    /// The first message: what is known of this client.
    Restore(Restore),
    /// A command of the client.
    Command(Command),
    /// The client's answer to a [`ToKeeper::Request`] of this engine, with the request's own id in its header.
    Reply {
        /// The client's frame.
        frame: Vec<u8>,
    },
}

/// What a predecessor left.
#[derive(Debug, Default)]
pub struct Restore {
    /// The last deposit; `None`: no engine ever answered this client with one.
    pub deposit: Option<Vec<u8>>,
    /// The descriptors that deposit named.
    pub fds: Vec<(FdId, OwnedFd)>,
}

/// A command of the client.
#[derive(Debug)]
pub struct Command {
    /// Its number in the session.
    pub seq: u64,
    /// The client's frame, whole: header and payload.
    pub frame: Vec<u8>,
    /// Its descriptors, in order.
    pub fds: Vec<(FdId, OwnedFd)>,
    /// The client sent more descriptors than a message may carry (the rest is closed): refuse the command.
    pub surplus_fds: bool,
}

/// What the engine sends.
#[derive(Debug)]
pub enum ToKeeper {
    /// A command is done: see [`Answer`].
    Answer(Answer),
    /// The engine asks the client (DMA_READ, DMA_WRITE). The id in its header is the engine's own; the keeper gives it
    /// another one on the way out and gives it back in the [`ToEngine::Reply`].
    Request {
        /// The frame for the client.
        frame: Vec<u8>,
    },
    /// End the session once what was answered is sent. The keeper then closes its sending side as if the client had left.
    HangUp,
}

/// The one atomic step of a session.
#[derive(Debug, Default)]
pub struct Answer {
    /// The command that is done.
    pub seq: u64,
    /// The frame for the client; empty: it wanted none.
    pub reply: Vec<u8>,
    /// What a successor must know from now on. `None`: the last deposit stands, with all it keeps, and nothing of this
    /// command's descriptors is kept.
    pub deposit: Option<Deposit>,
    /// Descriptors for the client (with the reply) or to be kept (with ids from [`ENGINE_FDS`] on), or both.
    pub fds: EngineFds,
}

/// What a successor must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deposit {
    /// Opaque to the keeper: a tagged, versioned record of crate `state`.
    pub bytes: Vec<u8>,
    /// All descriptors it refers to, and no others: of this and earlier commands, kept so far or attached to this answer.
    pub keep: Vec<FdId>,
}

/// Descriptors that the engine attaches to an answer.
#[derive(Debug, Default)]
pub struct EngineFds {
    /// The id of the first; the others count up from it. Only needed for those that are kept.
    pub first: FdId,
    /// The first so many of them go to the client with the reply.
    pub for_client: usize,
    /// The descriptors. Shared, so that the sender may go on using them.
    pub fds: Vec<Arc<OwnedFd>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Kept = 1,
    Restore = 2,
    Command = 3,
    Reply = 4,
    Answer = 0x81,
    Request = 0x82,
    HangUp = 0x83,
}

const SURPLUS_FDS: u8 = 1;
const DEPOSIT: u8 = 2;

/// The 24 bytes.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    flags: u8,
    fd_count: u8,
    for_client: u8,
    fd_first: u32,
    seq: u64,
    frame_bytes: u32,
    extra_bytes: u32,
}

impl Header {
    fn new(kind: Kind) -> Self {
        Self {
            kind: kind as u8,
            flags: 0,
            fd_count: 0,
            for_client: 0,
            fd_first: 0,
            seq: 0,
            frame_bytes: 0,
            extra_bytes: 0,
        }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&[self.kind, self.flags, self.fd_count, self.for_client]);
        bytes[4..8].copy_from_slice(&self.fd_first.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.frame_bytes.to_le_bytes());
        bytes[20..].copy_from_slice(&self.extra_bytes.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        Some(Self {
            kind: bytes[0],
            flags: bytes[1],
            fd_count: bytes[2],
            for_client: bytes[3],
            fd_first: word(4)?,
            seq: u64::from(word(8)?) | u64::from(word(12)?) << 32,
            frame_bytes: word(16)?,
            extra_bytes: word(20)?,
        })
    }
}

/// The session link's frames, for an [`Intake`].
pub static SHAPE: Shape = Shape { header_bytes: HEADER_BYTES, payload_bytes, fds_max: FDS_MAX };

fn payload_bytes(header: &[u8]) -> Result<usize, BadFrame> {
    let header = Header::parse(header).ok_or(BadFrame::Nonsense("short"))?;
    let bounded = |bytes: u32, max: usize| {
        usize::try_from(bytes).ok().filter(|bytes| *bytes <= max).ok_or(BadFrame::TooLong(bytes))
    };
    Ok(bounded(header.frame_bytes, FRAME_BYTES_MAX)? + bounded(header.extra_bytes, EXTRA_BYTES_MAX)?)
}

/// A frame taken apart.
struct Parts {
    header: Header,
    /// The client's frame.
    frame: Vec<u8>,
    ids: Vec<FdId>,
    deposit: Option<Vec<u8>>,
    fds: Vec<OwnedFd>,
}

impl Parts {
    fn parse(frame: Frame) -> Result<Self, LinkError> {
        let nonsense = LinkError::Nonsense;
        let header = Header::parse(&frame.bytes).ok_or(nonsense("short"))?;
        if frame.surplus_fds || frame.fds.len() != usize::from(header.fd_count) {
            return Err(nonsense("not as many descriptors as the header says"));
        }
        let frame_bytes = usize::try_from(header.frame_bytes).map_err(|_| nonsense("size"))?;
        let mut bytes = frame.bytes;
        let body_end = HEADER_BYTES.checked_add(frame_bytes).filter(|end| *end <= bytes.len());
        let extra = bytes.split_off(body_end.ok_or(nonsense("shorter than its frame"))?);
        bytes.drain(..HEADER_BYTES);
        let (ids, deposit) = parse_extra(&extra).ok_or(nonsense("the list of descriptors to keep"))?;
        let has_deposit = header.flags & DEPOSIT != 0;
        if !has_deposit && !deposit.is_empty() {
            return Err(nonsense("a deposit without its flag"));
        }
        let deposit = has_deposit.then(|| deposit.to_vec());
        Ok(Self { header, frame: bytes, ids, deposit, fds: frame.fds })
    }

    fn numbered(self) -> Result<Vec<(FdId, OwnedFd)>, LinkError> {
        let ids = self.header.fd_first..=FdId::MAX;
        if usize::try_from(FdId::MAX - self.header.fd_first).is_ok_and(|room| room < self.fds.len()) {
            return Err(LinkError::Nonsense("ids of descriptors beyond the last"));
        }
        Ok(ids.zip(self.fds).collect())
    }
}

fn parse_extra(extra: &[u8]) -> Option<(Vec<FdId>, &[u8])> {
    let Some((count, rest)) = extra.split_first_chunk() else {
        return extra.is_empty().then_some((Vec::new(), extra));
    };
    let count = usize::try_from(u32::from_le_bytes(*count)).ok().filter(|count| *count <= KEEP_MAX)?;
    let (ids, deposit) = rest.split_at_checked(count.checked_mul(4)?)?;
    let (ids, _) = ids.as_chunks();
    Some((ids.iter().map(|id| u32::from_le_bytes(*id)).collect(), deposit))
}

fn extra(ids: &[FdId], deposit: &[u8]) -> Result<Vec<u8>, LinkError> {
    if ids.len() > KEEP_MAX {
        return Err(LinkError::TooLarge("a session keeps more descriptors than the link carries"));
    }
    if deposit.len() > DEPOSIT_BYTES_MAX {
        return Err(LinkError::TooLarge("a deposit"));
    }
    let count = u32::try_from(ids.len()).map_err(|_| LinkError::TooLarge("ids"))?;
    let mut extra = Vec::with_capacity(4 + 4 * ids.len() + deposit.len());
    extra.extend_from_slice(&count.to_le_bytes());
    ids.iter().for_each(|id| extra.extend_from_slice(&id.to_le_bytes()));
    extra.extend_from_slice(deposit);
    Ok(extra)
}

fn length(bytes: usize, max: usize) -> Result<u32, LinkError> {
    let fits = u32::try_from(bytes).ok().filter(|_| bytes <= max);
    fits.ok_or(LinkError::TooLarge("a frame of the client's protocol"))
}

fn fd_count(count: usize) -> Result<u8, LinkError> {
    let fits = u8::try_from(count).ok().filter(|_| count <= FDS_MAX);
    fits.ok_or(LinkError::TooLarge("more than 253 descriptors in one message"))
}

// ---- The keeper's side: non-blocking, so it encodes into parcels and parses frames of an `Intake` over `SHAPE`.

/// The messages that open a session: what it keeps, in as many messages as the descriptors need, then the deposit.
///
/// # Errors
/// More than a link carries.
pub fn encode_restore(
    deposit: Option<&[u8]>,
    kept: &[(FdId, Arc<OwnedFd>)],
) -> Result<Vec<Parcel>, LinkError> {
    let mut parcels = Vec::new();
    for some in kept.chunks(FDS_MAX) {
        let ids: Vec<FdId> = some.iter().map(|(id, _)| *id).collect();
        let extra = extra(&ids, &[])?;
        let header = Header {
            fd_count: fd_count(some.len())?,
            extra_bytes: length(extra.len(), usize::MAX)?,
            ..Header::new(Kind::Kept)
        };
        let head = [&header.encode()[..], &extra].concat();
        parcels.push(Parcel::whole(head, some.iter().map(|(_, fd)| Arc::clone(fd)).collect()));
    }
    let extra = extra(&[], deposit.unwrap_or(&[]))?;
    let header = Header {
        flags: if deposit.is_some() { DEPOSIT } else { 0 },
        extra_bytes: length(extra.len(), usize::MAX)?,
        ..Header::new(Kind::Restore)
    };
    parcels.push(Parcel::whole([&header.encode()[..], &extra].concat(), Vec::new()));
    Ok(parcels)
}

/// A command. `fd_first` is the id of its first descriptor.
///
/// # Errors
/// More than a link carries.
pub fn encode_command(
    seq: u64,
    frame: &Arc<Vec<u8>>,
    fd_first: FdId,
    fds: &[Arc<OwnedFd>],
    surplus_fds: bool,
) -> Result<Parcel, LinkError> {
    let header = Header {
        flags: if surplus_fds { SURPLUS_FDS } else { 0 },
        fd_count: fd_count(fds.len())?,
        fd_first,
        seq,
        frame_bytes: length(frame.len(), FRAME_BYTES_MAX)?,
        ..Header::new(Kind::Command)
    };
    Ok(Parcel { head: header.encode().to_vec(), body: Arc::clone(frame), fds: fds.to_vec() })
}

/// The client's reply to a request of the engine.
///
/// # Errors
/// More than a link carries.
pub fn encode_reply(frame: Vec<u8>) -> Result<Parcel, LinkError> {
    let header = Header { frame_bytes: length(frame.len(), FRAME_BYTES_MAX)?, ..Header::new(Kind::Reply) };
    Ok(Parcel { head: header.encode().to_vec(), body: Arc::new(frame), fds: Vec::new() })
}

/// What an engine sent.
///
/// # Errors
/// It is no message of an engine.
pub fn parse_to_keeper(frame: Frame) -> Result<ToKeeper, LinkError> {
    let parts = Parts::parse(frame)?;
    let kind = parts.header.kind;
    if kind != Kind::Answer as u8
        && !(parts.fds.is_empty() && parts.ids.is_empty() && parts.deposit.is_none())
    {
        return Err(LinkError::Nonsense("only an answer carries descriptors and a deposit"));
    }
    match kind {
        kind if kind == Kind::Answer as u8 => {
            let for_client = usize::from(parts.header.for_client);
            if for_client > parts.fds.len() {
                return Err(LinkError::Nonsense("fewer descriptors than the client is to get"));
            }
            if !parts.ids.is_empty() && parts.deposit.is_none() {
                return Err(LinkError::Nonsense("descriptors to keep without a deposit"));
            }
            let first = parts.header.fd_first;
            let room = usize::try_from(FdId::MAX - first).is_ok_and(|room| room >= parts.fds.len());
            if !room {
                return Err(LinkError::Nonsense("ids of descriptors beyond the last"));
            }
            Ok(ToKeeper::Answer(Answer {
                seq: parts.header.seq,
                reply: parts.frame,
                deposit: parts.deposit.map(|bytes| Deposit { bytes, keep: parts.ids }),
                fds: EngineFds { first, for_client, fds: parts.fds.into_iter().map(Arc::new).collect() },
            }))
        }
        kind if kind == Kind::Request as u8 => Ok(ToKeeper::Request { frame: parts.frame }),
        kind if kind == Kind::HangUp as u8 => Ok(ToKeeper::HangUp),
        _ => Err(LinkError::Nonsense("an unknown kind of message from an engine")),
    }
}

// ---- The engine's side: blocking.

/// The engine's two halves of a session link, for one thread that receives and any that send.
///
/// # Errors
/// The descriptor cannot be duplicated.
pub fn open(link: OwnedFd) -> std::io::Result<(Receiver, Sender)> {
    let link = Arc::new(link);
    let receiver =
        Receiver { link: Arc::clone(&link), intake: Intake::new(&SHAPE), kept: Vec::new(), opened: false };
    Ok((receiver, Sender { link, sending: Arc::default() }))
}

/// Takes messages off the link, in the keeper's order.
#[derive(Debug)]
pub struct Receiver {
    link: Arc<OwnedFd>,
    intake: Intake,
    /// Descriptors for the coming `Restore`.
    kept: Vec<(FdId, OwnedFd)>,
    opened: bool,
}

impl Receiver {
    /// Waits for the next message; `None`: the client has left, and this was its last. The first message is a
    /// [`ToEngine::Restore`], and no later one is.
    ///
    /// # Errors
    /// The keeper is gone in the middle of a message, or what came is none.
    pub fn receive(&mut self) -> Result<Option<ToEngine>, LinkError> {
        loop {
            match self.intake.step(&*self.link, Wait::Block) {
                Step::Frame(frame) => {
                    if let Some(message) = self.sort(frame)? {
                        return Ok(Some(message));
                    }
                }
                // A non-blocking descriptor was handed in: wait for it, it is the same link.
                Step::Later => wait_readable(&*self.link)?,
                Step::Closed => return Ok(None),
                Step::Truncated => return Err(LinkError::Truncated),
                Step::Bad(bad) => return Err(bad.into()),
                Step::Failed(errno) => return Err(errno.into()),
            }
        }
    }

    /// `None`: more is to come before there is a message.
    fn sort(&mut self, frame: Frame) -> Result<Option<ToEngine>, LinkError> {
        let parts = Parts::parse(frame)?;
        let kind = parts.header.kind;
        let opening = kind == Kind::Kept as u8 || kind == Kind::Restore as u8;
        if opening == self.opened {
            return Err(LinkError::Nonsense(
                "the first message, and no other, says what is known of the client",
            ));
        }
        match kind {
            kind if kind == Kind::Kept as u8 => {
                if parts.ids.len() != parts.fds.len() || self.kept.len() + parts.fds.len() > KEEP_MAX {
                    return Err(LinkError::Nonsense("kept descriptors and their ids do not match"));
                }
                self.kept.extend(parts.ids.into_iter().zip(parts.fds));
                Ok(None)
            }
            kind if kind == Kind::Restore as u8 => {
                self.opened = true;
                let fds = std::mem::take(&mut self.kept);
                Ok(Some(ToEngine::Restore(Restore { deposit: parts.deposit, fds })))
            }
            kind if kind == Kind::Command as u8 => {
                let (seq, surplus_fds) = (parts.header.seq, parts.header.flags & SURPLUS_FDS != 0);
                let mut parts = parts;
                let frame = std::mem::take(&mut parts.frame);
                Ok(Some(ToEngine::Command(Command { seq, frame, fds: parts.numbered()?, surplus_fds })))
            }
            kind if kind == Kind::Reply as u8 => Ok(Some(ToEngine::Reply { frame: parts.frame })),
            _ => Err(LinkError::Nonsense("an unknown kind of message from a keeper")),
        }
    }
}

fn wait_readable(link: impl AsFd) -> Result<(), LinkError> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::new(&link, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends to the keeper. Clones share the link; messages never mix. Blocks while the client does not read, at most as long
/// as the keeper is patient with it.
#[derive(Clone, Debug)]
pub struct Sender {
    link: Arc<OwnedFd>,
    sending: Arc<Mutex<()>>,
}

impl Sender {
    /// Answers a command.
    ///
    /// # Errors
    /// [`LinkError::TooLarge`]: nothing was sent. Otherwise the link is over.
    pub fn answer(&self, answer: &Answer) -> Result<(), LinkError> {
        let extra = match &answer.deposit {
            Some(deposit) => extra(&deposit.keep, &deposit.bytes)?,
            None => Vec::new(),
        };
        let header = Header {
            flags: if answer.deposit.is_some() { DEPOSIT } else { 0 },
            fd_count: fd_count(answer.fds.fds.len())?,
            for_client: fd_count(answer.fds.for_client.min(answer.fds.fds.len()))?,
            fd_first: answer.fds.first,
            seq: answer.seq,
            frame_bytes: length(answer.reply.len(), FRAME_BYTES_MAX)?,
            extra_bytes: length(extra.len(), usize::MAX)?,
            ..Header::new(Kind::Answer)
        };
        let head = [&header.encode()[..], &answer.reply, &extra].concat();
        self.send(Parcel::whole(head, answer.fds.fds.clone()))
    }

    /// Asks the client, in this order. The id in a frame's header must not be in use by another request of this engine and session.
    ///
    /// # Errors
    /// As [`Sender::answer`].
    pub fn requests(&self, frames: Vec<Vec<u8>>) -> Result<(), LinkError> {
        let mut outbox = Outbox::default();
        for frame in frames {
            let frame_bytes = length(frame.len(), FRAME_BYTES_MAX)?;
            let head = Header { frame_bytes, ..Header::new(Kind::Request) }.encode().to_vec();
            outbox.push(Parcel { head, body: Arc::new(frame), fds: Vec::new() })?;
        }
        self.send_all(outbox)
    }

    /// Asks for the end of the session.
    ///
    /// # Errors
    /// As [`Sender::answer`].
    pub fn hang_up(&self) -> Result<(), LinkError> {
        self.send(Parcel::whole(Header::new(Kind::HangUp).encode().to_vec(), Vec::new()))
    }

    /// Ends both directions in this process: a [`Receiver`] that waits wakes and reads the end. Only for the engine's own
    /// stop: to the keeper it looks like a link that broke.
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&*self.link, rustix::net::Shutdown::Both);
    }

    fn send(&self, parcel: Parcel) -> Result<(), LinkError> {
        let mut outbox = Outbox::default();
        outbox.push(parcel)?;
        self.send_all(outbox)
    }

    fn send_all(&self, mut outbox: Outbox) -> Result<(), LinkError> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        while !outbox.flush(&*self.link, Wait::Block)? {
            use rustix::event::{PollFd, PollFlags, poll};
            match poll(&mut [PollFd::new(&*self.link, PollFlags::OUT)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// A new link: the keeper's end does not block, the engine's does.
///
/// # Errors
/// No descriptors are left.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}
