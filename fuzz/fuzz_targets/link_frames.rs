//! What keeper and engine read of one another: any bytes as control messages and as frames of a session link, in any pieces and
//! with any descriptors. Whatever comes is a message or an error; what one side sends, the other reads back.
#![no_main]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use godwit_fuzz::edge::Edge;
use libfuzzer_sys::fuzz_target;
use link::control;
use link::frame::{Frame, Intake, Step, Wait};
use link::session::{self, Answer, Deposit, EngineFds, FDS_MAX, HEADER_BYTES, KEEP_MAX, ToEngine, ToKeeper};

#[derive(Arbitrary, Debug)]
enum Input {
    /// A control message's body.
    Control { body: Vec<u8> },
    /// A frame of a session link, nearly.
    Frame { head: Head, body: Vec<u8>, fds: u8, surplus: bool },
    /// Frames on the socket, cut into pieces, as an engine reads them.
    Stream { frames: Vec<(Head, Vec<u8>, u8)>, pieces: Vec<u8>, first_is_restore: bool },
    /// An answer of an engine, as the keeper reads it.
    Answer {
        seq: u64,
        reply: Vec<u8>,
        deposit: Option<(Vec<u8>, Vec<u32>)>,
        first: Edge,
        fds: u8,
        for_client: u8,
    },
    /// A command of a client, as an engine reads it.
    Command {
        seq: u64,
        frame: Vec<u8>,
        first: Edge,
        fds: u8,
        surplus: bool,
        deposit: Option<Vec<u8>>,
        kept: Vec<u32>,
    },
}

/// A header whose lengths are right, or lie.
#[derive(Arbitrary, Debug)]
struct Head {
    kind: Kind,
    flags: u8,
    fd_count: Option<u8>,
    for_client: u8,
    fd_first: Edge,
    seq: u64,
    /// Of the body, how much is frame.
    split: u8,
    lie: Option<(Edge, Edge)>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Known(u8),
    Any(u8),
}

impl Head {
    fn encode(&self, body: usize, fds: usize) -> [u8; HEADER_BYTES] {
        let kinds = [1, 2, 3, 4, 0x81, 0x82, 0x83];
        let kind = match self.kind {
            Kind::Known(at) => kinds[usize::from(at) % kinds.len()],
            Kind::Any(kind) => kind,
        };
        let frame = body * usize::from(self.split) / 255;
        let right = (u32::try_from(frame).unwrap_or(0), u32::try_from(body - frame).unwrap_or(0));
        let (frame, extra) = self.lie.map_or(right, |(frame, extra)| (frame.u32(), extra.u32()));
        let count = self.fd_count.unwrap_or(u8::try_from(fds).unwrap_or(u8::MAX));
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&[kind, self.flags, count, self.for_client]);
        bytes[4..8].copy_from_slice(&self.fd_first.u32().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&frame.to_le_bytes());
        bytes[20..].copy_from_slice(&extra.to_le_bytes());
        bytes
    }
}

fn null() -> &'static Arc<OwnedFd> {
    static FD: OnceLock<Arc<OwnedFd>> = OnceLock::new();
    FD.get_or_init(|| Arc::new(std::fs::File::open("/dev/null").expect("/dev/null").into()))
}

fn nulls(count: u8) -> Vec<Arc<OwnedFd>> {
    (0..usize::from(count).min(FDS_MAX)).map(|_| Arc::clone(null())).collect()
}

/// A message that was read is written and read again as the same.
fn again<M>(body: &[u8])
where
    M: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()> + PartialEq + std::fmt::Debug,
{
    let Ok(message) = control::decode::<M>(body) else { return };
    let bytes = minicbor::to_vec(&message).expect("what was read can be written");
    assert_eq!(control::decode::<M>(&bytes).expect("and read again"), message);
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: u8) -> bool {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let fd = null();
    let fds: Vec<BorrowedFd<'_>> = (0..fds.min(8)).map(|_| fd.as_fd()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut control, flags) == Ok(bytes.len())
}

/// An engine reads until the end or an error; nothing it reads is larger than the link carries.
fn read_as_engine(theirs: OwnedFd) -> Vec<ToEngine> {
    let (mut receiver, _sender) = session::open(theirs).expect("a descriptor");
    let mut read = Vec::new();
    while let Ok(Some(message)) = receiver.receive() {
        match (&message, read.len()) {
            (ToEngine::Restore(restore), 0) => assert!(restore.fds.len() <= KEEP_MAX),
            (ToEngine::Restore(_), _) => panic!("a second Restore"),
            (ToEngine::Command(command), 1..) => assert!(command.fds.len() <= FDS_MAX),
            (ToEngine::Reply { .. }, 1..) => {}
            _ => panic!("something before the Restore"),
        }
        read.push(message);
    }
    read
}

fn take(socket: &OwnedFd) -> Option<Frame> {
    match Intake::new(&session::SHAPE).step(socket, Wait::Never) {
        Step::Frame(frame) => Some(frame),
        _ => None,
    }
}

fn stream(frames: &[(Head, Vec<u8>, u8)], pieces: &[u8], first_is_restore: bool) {
    let (ours, theirs) = session::pair().expect("a pair");
    if first_is_restore {
        let mut outbox = link::outbox::Outbox::default();
        for parcel in session::encode_restore(None, &[]).expect("short") {
            outbox.push(parcel).expect("short");
        }
        outbox.flush(&ours, Wait::Never).expect("room");
    }
    let mut pieces = pieces.iter().cycle();
    'frames: for (head, body, fds) in frames.iter().take(8) {
        let bytes = [&head.encode(body.len(), usize::from((*fds).min(8))), &body[..]].concat();
        let mut fds = *fds;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = pieces.next().map_or(rest.len(), |piece| usize::from(*piece).clamp(1, rest.len()));
            if !send(&ours, &rest[..len], std::mem::take(&mut fds)) {
                break 'frames;
            }
            rest = &rest[len..];
        }
    }
    drop(ours);
    read_as_engine(theirs);
}

fn answered(answer: &Answer) {
    let (ours, theirs) = session::pair().expect("a pair");
    let (_receiver, sender) = session::open(theirs).expect("a descriptor");
    let sent = sender.answer(answer);
    let Some(frame) = take(&ours) else { return assert!(sent.is_err(), "sent, and not there") };
    let Ok(ToKeeper::Answer(read)) = session::parse_to_keeper(frame) else {
        // Ids that run over are the keeper's to refuse.
        let count = u32::try_from(answer.fds.fds.len()).unwrap_or(u32::MAX);
        let over = answer.fds.first.checked_add(count).is_none();
        return assert!(over || answer.fds.for_client > answer.fds.fds.len(), "an answer that is none");
    };
    assert_eq!((read.seq, &read.reply, &read.deposit), (answer.seq, &answer.reply, &answer.deposit));
    let for_client = answer.fds.for_client.min(answer.fds.fds.len());
    assert_eq!((read.fds.first, read.fds.for_client), (answer.fds.first, for_client));
    assert_eq!(read.fds.fds.len(), answer.fds.fds.len());
}

fuzz_target!(|input: Input| {
    match input {
        Input::Control { body } => {
            again::<control::ToEngine>(&body);
            again::<control::ToKeeper>(&body);
        }
        Input::Frame { head, body, fds, surplus } => {
            let head = head.encode(body.len(), usize::from(fds));
            let bytes = [&head[..], &body].concat();
            if let Ok(rest) = (session::SHAPE.payload_bytes)(&head) {
                assert!(rest <= session::FRAME_BYTES_MAX + session::DEPOSIT_BYTES_MAX + 4 + 4 * KEEP_MAX);
            }
            let fds = nulls(fds).iter().map(|fd| fd.try_clone().expect("a descriptor")).collect();
            let _ = session::parse_to_keeper(Frame { bytes, fds, surplus_fds: surplus });
        }
        Input::Stream { frames, pieces, first_is_restore } => stream(&frames, &pieces, first_is_restore),
        Input::Answer { seq, reply, deposit, first, fds, for_client } => {
            let deposit = deposit.map(|(bytes, keep)| Deposit { bytes, keep });
            let fds = EngineFds { first: first.u32(), for_client: usize::from(for_client), fds: nulls(fds) };
            answered(&Answer { seq, reply, deposit, fds });
        }
        Input::Command { seq, frame, first, fds, surplus, deposit, kept } => {
            let (ours, theirs) = session::pair().expect("a pair");
            let kept: Vec<_> = kept.iter().take(600).map(|id| (*id, Arc::clone(null()))).collect();
            let mut outbox = link::outbox::Outbox::default();
            for parcel in session::encode_restore(deposit.as_deref(), &kept).expect("short") {
                outbox.push(parcel).expect("short");
            }
            let (frame, fds) = (Arc::new(frame), nulls(fds));
            let command = session::encode_command(seq, &frame, first.u32(), &fds, surplus);
            outbox.push(command.expect("short")).expect("short");
            outbox.flush(&ours, Wait::Never).expect("room");
            drop(ours);
            if !outbox.is_empty() {
                return;
            }
            let read = read_as_engine(theirs);
            let over = first.u32().checked_add(u32::try_from(fds.len()).unwrap_or(0)).is_none();
            match (&read[..], over) {
                ([ToEngine::Restore(restore), ToEngine::Command(command)], _) => {
                    assert_eq!((&restore.deposit, restore.fds.len()), (&deposit, kept.len()));
                    assert_eq!((command.seq, &command.frame, command.surplus_fds), (seq, &*frame, surplus));
                    assert_eq!(command.fds.len(), fds.len());
                }
                ([ToEngine::Restore(_)], true) => {}
                _ => panic!("{} messages read", read.len()),
            }
        }
    }
});
