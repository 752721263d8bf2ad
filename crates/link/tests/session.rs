//! Both ends of a session link over a real socket pair.

use link::LinkError;
use link::frame::{Frame, Intake, Step, Wait};
use link::outbox::{Outbox, Parcel};
use link::session::*;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

fn event() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"))
}

/// Two descriptors name the same open file.
fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    rustix::io::write(one, &7u64.to_ne_bytes()).expect("written");
    let mut value = [0; 8];
    let mut fds = [rustix::event::PollFd::new(other, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut fds, Some(&now)).expect("polled") == 1;
    rustix::io::read(one, &mut value).expect("read");
    ready
}

struct Keeper {
    link: OwnedFd,
    intake: Intake,
}

impl Keeper {
    fn send(&self, parcels: impl IntoIterator<Item = Parcel>) {
        let mut outbox = Outbox::default();
        parcels.into_iter().for_each(|parcel| outbox.push(parcel).expect("small"));
        assert!(outbox.flush(&self.link, Wait::Block).expect("sent"));
    }

    fn raw(&self, bytes: &[u8]) {
        self.send([Parcel::whole(bytes.to_vec(), Vec::new())]);
    }

    fn next(&mut self) -> Result<ToKeeper, LinkError> {
        match self.intake.step(&self.link, Wait::Block) {
            Step::Frame(frame) => parse_to_keeper(frame),
            other => panic!("{other:?}"),
        }
    }
}

fn ends() -> (Keeper, Receiver, Sender) {
    let (ours, theirs) = pair().expect("socketpair");
    let (receiver, sender) = open(theirs).expect("opened");
    (Keeper { link: ours, intake: Intake::new(&SHAPE) }, receiver, sender)
}

#[test]
fn a_session_begins_with_all_that_was_kept_however_many_descriptors_that_are() {
    let (keeper, mut engine, _sender) = ends();
    let kept: Vec<_> = (0..600).map(|id| (id * 3, event())).collect();
    let sent = kept.clone();
    let keeper = std::thread::spawn(move || {
        keeper.send(encode_restore(Some(b"state"), &sent).expect("small"));
        keeper
    });
    let Some(ToEngine::Restore(restore)) = engine.receive().expect("sound") else { panic!("no restore") };
    assert_eq!(restore.deposit.as_deref(), Some(&b"state"[..]));
    assert_eq!(restore.fds.len(), kept.len());
    for ((id, fd), (kept_id, kept_fd)) in restore.fds.iter().zip(&kept) {
        assert_eq!(id, kept_id);
        assert!(same(fd, kept_fd));
    }
    drop(keeper.join().expect("no panic"));
    assert!(engine.receive().expect("the end").is_none());
}

#[test]
fn a_new_client_has_no_deposit_which_is_not_an_empty_one() {
    for deposit in [None, Some(&b""[..])] {
        let (keeper, mut engine, _sender) = ends();
        keeper.send(encode_restore(deposit, &[]).expect("small"));
        let Some(ToEngine::Restore(restore)) = engine.receive().expect("sound") else { panic!("no restore") };
        assert_eq!(restore.deposit.as_deref(), deposit);
    }
}

#[test]
fn commands_and_replies_arrive_whole_with_their_descriptors() {
    let (keeper, mut engine, _sender) = ends();
    keeper.send(encode_restore(None, &[]).expect("small"));
    let (one, two) = (event(), event());
    let frame = Arc::new(vec![9; 300]);
    keeper.send([encode_command(7, &frame, 40, &[one.clone(), two.clone()], true).expect("small")]);
    keeper.send([encode_reply(vec![1, 2, 3]).expect("small")]);
    assert!(matches!(engine.receive(), Ok(Some(ToEngine::Restore(_)))));
    let Ok(Some(ToEngine::Command(command))) = engine.receive() else { panic!("no command") };
    assert_eq!((command.seq, command.surplus_fds), (7, true));
    assert_eq!(command.frame, *frame);
    assert_eq!(command.fds.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [40, 41]);
    assert!(same(&command.fds[1].1, &two));
    assert!(matches!(engine.receive(), Ok(Some(ToEngine::Reply { frame })) if frame == [1, 2, 3]));
}

#[test]
fn an_answer_carries_reply_deposit_and_descriptors_in_one_message() {
    let (mut keeper, _engine, sender) = ends();
    let fd = event();
    let answer = Answer {
        seq: u64::MAX,
        reply: vec![5; 70],
        deposit: Some(Deposit { bytes: b"new".to_vec(), keep: vec![1, 2, ENGINE_FDS] }),
        fds: EngineFds { first: ENGINE_FDS, for_client: 1, fds: vec![fd.clone()] },
    };
    sender.answer(&answer).expect("sent");
    let Ok(ToKeeper::Answer(got)) = keeper.next() else { panic!("no answer") };
    assert_eq!((got.seq, &got.reply, &got.deposit), (answer.seq, &answer.reply, &answer.deposit));
    assert_eq!((got.fds.first, got.fds.for_client), (ENGINE_FDS, 1));
    assert!(same(&got.fds.fds[0], &fd));
    sender.answer(&Answer { seq: 3, ..Answer::default() }).expect("sent");
    let Ok(ToKeeper::Answer(got)) = keeper.next() else { panic!("no answer") };
    assert_eq!((got.seq, got.deposit, got.reply.len()), (3, None, 0));
    sender.requests(vec![vec![8; 20]]).expect("sent");
    assert!(matches!(keeper.next(), Ok(ToKeeper::Request { frame }) if frame == [8; 20]));
    sender.hang_up().expect("sent");
    assert!(matches!(keeper.next(), Ok(ToKeeper::HangUp)));
}

#[test]
fn messages_of_several_threads_never_mix() {
    let (mut keeper, _engine, sender) = ends();
    let threads: Vec<_> = (0..4u8)
        .map(|number| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    sender.requests(vec![vec![number; 100_000]]).expect("sent");
                }
            })
        })
        .collect();
    for _ in 0..200 {
        let Ok(ToKeeper::Request { frame }) = keeper.next() else { panic!("no request") };
        assert_eq!(frame.len(), 100_000);
        assert!(frame.iter().all(|byte| *byte == frame[0]));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_of_it_is_sent() {
    let (mut keeper, _engine, sender) = ends();
    let deposit = |bytes, keep| Answer { deposit: Some(Deposit { bytes, keep }), ..Answer::default() };
    for answer in [
        deposit(vec![0; DEPOSIT_BYTES_MAX + 1], Vec::new()),
        deposit(Vec::new(), vec![0; KEEP_MAX + 1]),
        Answer { reply: vec![0; FRAME_BYTES_MAX + 1], ..Answer::default() },
        Answer { fds: EngineFds { fds: vec![event(); 254], ..EngineFds::default() }, ..Answer::default() },
    ] {
        assert!(matches!(sender.answer(&answer), Err(LinkError::TooLarge(_))));
    }
    sender.hang_up().expect("the link is as it was");
    assert!(matches!(keeper.next(), Ok(ToKeeper::HangUp)));
}

#[test]
fn a_message_cut_off_by_death_is_no_message() {
    let (ours, theirs) = pair().expect("socketpair");
    let (mut keeper, engine) = (Keeper { link: theirs, intake: Intake::new(&SHAPE) }, ours);
    let (other, far) = pair().expect("socketpair");
    let (_receiver, sender) = open(far).expect("opened");
    sender.answer(&Answer { seq: 1, reply: vec![1; 50], ..Answer::default() }).expect("sent");
    let mut whole = vec![0; 74];
    rustix::io::read(&other, &mut whole).expect("read");
    for cut in 1..whole.len() {
        let (ours, theirs) = pair().expect("socketpair");
        rustix::io::write(&ours, &whole[..cut]).expect("written");
        drop(ours);
        let mut intake = Intake::new(&SHAPE);
        assert!(matches!(intake.step(&theirs, Wait::Never), Step::Truncated), "after {cut} bytes");
    }
    rustix::io::write(&engine, &whole).expect("written");
    assert!(matches!(keeper.next(), Ok(ToKeeper::Answer(answer)) if answer.seq == 1));
}

#[test]
fn hostile_headers_are_errors() {
    let header = |kind: u8, flags: u8, fds: u8, frame: u32, extra: u32| {
        let mut bytes = vec![kind, flags, fds, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&frame.to_le_bytes());
        bytes.extend_from_slice(&extra.to_le_bytes());
        bytes
    };
    let frame = |bytes: Vec<u8>| Frame { bytes, ..Frame::default() };
    let sound = |bytes: Vec<u8>| parse_to_keeper(frame(bytes)).is_ok();
    assert!(sound(header(0x82, 0, 0, 0, 0)));
    for kind in (0..=255).filter(|kind| !(0x81..=0x83).contains(kind)) {
        assert!(!sound(header(kind, 0, 0, 0, 0)), "kind {kind}");
    }
    assert!(!sound(header(0x82, 0, 1, 0, 0)), "a descriptor that did not come");
    assert!(!sound([header(0x81, 0, 0, 0, 4), vec![0xFF; 4]].concat()), "ids without end");
    assert!(!sound([header(0x81, 0, 0, 0, 5), vec![0, 0, 0, 0, 1]].concat()), "a deposit without its flag");
    assert!(!sound([header(0x81, 0, 0, 0, 3), vec![0; 3]].concat()), "half a count");
    assert!(!sound([header(0x82, 2, 0, 0, 4), vec![0; 4]].concat()), "a request with a deposit");
    let mut for_client = header(0x81, 0, 0, 0, 0);
    for_client[3] = 1;
    assert!(!sound(for_client), "a descriptor for the client that did not come");
    for (frame, extra) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        let (keeper, mut engine, _sender) = ends();
        keeper.raw(&header(2, 0, 0, frame, extra));
        assert!(matches!(engine.receive(), Err(LinkError::Frame(_))));
    }
}

#[test]
fn the_first_message_and_no_other_says_what_is_known_of_the_client() {
    let (keeper, mut engine, _sender) = ends();
    keeper.send([encode_reply(vec![1]).expect("small")]);
    assert!(matches!(engine.receive(), Err(LinkError::Nonsense(_))));
    let (keeper, mut engine, _sender) = ends();
    keeper.send(encode_restore(None, &[]).expect("small"));
    keeper.send(encode_restore(None, &[]).expect("small"));
    assert!(engine.receive().is_ok());
    assert!(matches!(engine.receive(), Err(LinkError::Nonsense(_))));
}

#[test]
fn half_a_frame_is_carried_to_another_intake() {
    let (ours, theirs) = pair().expect("socketpair");
    let fd = event();
    let parcel = encode_command(1, &Arc::new(vec![4; 100]), 0, &[fd], false).expect("small");
    let whole = [&parcel.head[..], &parcel.body].concat();
    for cut in 1..whole.len() {
        let (now, later) = whole.split_at(cut);
        let mut outbox = Outbox::default();
        outbox.push(Parcel::whole(now.to_vec(), parcel.fds.clone())).expect("small");
        outbox.flush(&ours, Wait::Block).expect("sent");
        let mut intake = Intake::new(&SHAPE);
        assert!(matches!(intake.step(&theirs, Wait::Never), Step::Later));
        let (bytes, fds, surplus_fds) = intake.begun();
        let fds = fds.iter().map(|fd| fd.as_fd().try_clone_to_owned().expect("cloned")).collect();
        let begun = Frame { bytes: bytes.to_vec(), fds, surplus_fds };
        let mut intake = Intake::resume(&SHAPE, begun).expect("a beginning");
        rustix::io::write(&ours, later).expect("written");
        let Step::Frame(frame) = intake.step(&theirs, Wait::Never) else { panic!("cut at {cut}") };
        assert_eq!((frame.bytes, frame.fds.len()), (whole.clone(), 1));
        assert!(frame.fds[0].as_raw_fd() >= 0);
    }
}
