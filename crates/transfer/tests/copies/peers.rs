//! Peers by hand: one that says nothing, one that comes back, one that lost its memory, one that lies.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::rig::{Guest, Host, PAGE, PAGES, Ticks, options, plan, socket_pair};
use transfer::control::Control;
use transfer::copy::{Error, Options, Precopy};
use transfer::frame::{
    Barrier, Cancel, Damage, Data, FEATURES, Frame, Hello, Limits, Payload, Plan, Reason, STRIPE_PAGES,
    Welcome,
};
use transfer::receive::Receiver;
use transfer::source::Run;
use transfer::wire::{Fault, Wire};

/// Takes everything, welcomes, and never answers.
struct Silent {
    said: Cursor<Vec<u8>>,
    taken: Arc<AtomicU64>,
}

impl Read for Silent {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.said.read(out)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Silent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.taken.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_more_than_a_window_is_under_way_to_a_peer_that_does_not_answer() {
    for window_bytes in [64 << 10, 100_000, 1 << 20] {
        let taken = Arc::new(AtomicU64::new(0));
        let limits = Limits { window_bytes, data_pages: 256 };
        let connect = |_| {
            let mut said = Vec::new();
            let welcome = Welcome { version: 1, features: FEATURES, durable: 0, limits };
            Frame::Welcome(welcome).encode(0, &mut said).expect("small");
            Ok(Silent { said: Cursor::new(said), taken: Arc::clone(&taken) })
        };
        let guest = Guest::new(2, &[(0, 4000)]);
        let (control, clock) = (Control::default(), Ticks::default());
        let options = Options { attempts_max: 0, compress: false, ..options(1) };
        let mut precopy = Precopy::new(plan(), &guest, &connect, &clock, &control, options).expect("sound");
        let done = precopy.round();
        assert!(matches!(done, Err(Error::Lost { fault: Fault::Stalled, .. })), "{done:?}");
        let (taken, window) = (taken.load(Relaxed), u64::from(window_bytes.min(256 << 10)));
        assert!((window / 2..window + 400).contains(&taken), "{taken} of {window}");
    }
}

fn hello(attempt: u32) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: FEATURES,
        migration: [5; 16],
        stream: 0,
        streams: 1,
        attempt,
        limits: Limits::default(),
    }
}

fn knock(hello: Hello, plan: Plan) -> (Wire<UnixStream>, UnixStream) {
    let (ours, theirs) = socket_pair();
    (knock_at(ours, hello, plan), theirs)
}

fn knock_at(socket: UnixStream, hello: Hello, plan: Plan) -> Wire<UnixStream> {
    let mut wire = Wire::sender(socket);
    wire.send(&Frame::Hello(hello)).expect("room");
    wire.send(&Frame::Plan(plan)).expect("room");
    wire
}

/// The other side may have closed already.
fn send_page(wire: &mut Wire<UnixStream>, at: u64, byte: u8, barrier: u64) {
    send_page_for(wire, at, byte, Barrier { id: barrier, flush: false });
}

fn send_page_for(wire: &mut Wire<UnixStream>, at: u64, byte: u8, barrier: Barrier) {
    let bytes = [byte; PAGE];
    let run = Run::checked(at, 1, u64::from(u32::MAX)).expect("a run");
    let check = crc32c::crc32c(&bytes);
    let _ = wire.send(&Frame::Data(Data { run, payload: Payload::Raw(&bytes), check }));
    let _ = wire.send(&Frame::Barrier(barrier));
}

#[test]
fn what_is_said_to_be_durable_was_flushed() {
    let host = Host::default();
    let receiver = Receiver::new([5; 16], Limits::default(), &host, &|_| Ok(()));
    std::thread::scope(|scope| {
        let (mut one, theirs) = knock(hello(1), plan());
        let end = scope.spawn(|| receiver.serve(theirs));
        assert!(matches!(one.receive(), Ok(Frame::Welcome(_))));
        let barrier = Barrier { id: 1, flush: true };
        send_page_for(&mut one, 3, 1, barrier);
        assert!(matches!(one.receive(), Ok(Frame::Ack(ack)) if ack == barrier));
        assert!(!host.volatile.load(Relaxed));
        send_page(&mut one, 4, 1, 2);
        assert!(matches!(one.receive(), Ok(Frame::Ack(Barrier { id: 2, flush: false }))));
        assert!(host.volatile.load(Relaxed), "nobody asked for it");
        drop(one);
        let _broken = end.join().expect("no panic");
        // Where to go on from is durable, too.
        let (mut two, theirs) = knock(hello(2), plan());
        let end = scope.spawn(|| receiver.serve(theirs));
        assert!(matches!(two.receive(), Ok(Frame::Welcome(Welcome { durable: 2, .. }))));
        assert!(!host.volatile.load(Relaxed));
        drop(two);
        let _closed = end.join().expect("no panic");
    });
}

#[test]
fn after_a_flush_that_failed_no_stream_is_told_that_anything_is_durable() {
    let host = Host::default();
    let receiver = Receiver::new([5; 16], Limits::default(), &host, &|_| Ok(()));
    let of = |stream: u16| Hello { stream, streams: 2, ..hello(1) };
    std::thread::scope(|scope| {
        let mut wires = Vec::new();
        let mut ends = Vec::new();
        for stream in [0, 1] {
            let (mut wire, theirs) = knock(of(stream), plan());
            ends.push(scope.spawn(|| receiver.serve(theirs)));
            assert!(matches!(wire.receive(), Ok(Frame::Welcome(_))));
            wires.push(wire);
        }
        host.flush_fails.store(true, Relaxed);
        for (stream, wire) in (0_u64..).zip(&mut wires) {
            send_page_for(wire, stream * STRIPE_PAGES, 1, Barrier { id: 1, flush: true });
            let said = wire.receive();
            assert!(
                matches!(&said, Err(Fault::Cancelled(cancel)) if cancel.reason == Reason::Drive),
                "stream {stream}: {said:?}"
            );
        }
        drop(wires);
        ends.into_iter().for_each(|end| assert!(end.join().expect("no panic").is_err()));
    });
    let (mut again, theirs) = knock(Hello { attempt: 2, ..of(0) }, plan());
    std::thread::scope(|scope| {
        let end = scope.spawn(|| receiver.serve(theirs));
        assert!(matches!(again.receive(), Err(Fault::Cancelled(_))));
        drop(again);
        assert!(end.join().expect("no panic").is_err());
    });
}

#[test]
fn who_says_cancel_before_it_says_of_what_ends_nothing() {
    let host = Host::default();
    let receiver = Receiver::new([5; 16], Limits::default(), &host, &|_| Ok(()));
    let (ours, theirs) = socket_pair();
    let mut wire = Wire::sender(ours);
    let cancel = Cancel { reason: Reason::Wish, text: "just so".to_owned() };
    wire.send(&Frame::Cancel(cancel)).expect("room");
    assert!(matches!(receiver.serve(theirs), Err(Fault::Damage(Damage::Order(_)))));
    std::thread::scope(|scope| {
        let (mut one, theirs) = knock(hello(1), plan());
        let end = scope.spawn(|| receiver.serve(theirs));
        assert!(matches!(one.receive(), Ok(Frame::Welcome(_))));
        drop(one);
        let _closed = end.join().expect("no panic");
    });
}

/// Welcomes, and then says what it is given, over and over.
struct Parrot {
    said: Vec<u8>,
    at: usize,
    next: u64,
    phrase: Frame<'static>,
}

impl Read for Parrot {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.said.len() {
            (self.said, self.at) = (Vec::new(), 0);
            self.phrase.encode(self.next, &mut self.said).expect("small");
            self.next += 1;
        }
        let count = out.len().min(self.said.len() - self.at);
        out[..count].copy_from_slice(&self.said[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Parrot {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy_to_a_parrot(phrase: &Frame<'static>, cancels: bool) -> Error {
    let connect = |_| {
        let mut said = Vec::new();
        let limits = Limits { window_bytes: 64 << 10, data_pages: 8 };
        let welcome = Welcome { version: 1, features: FEATURES, durable: 0, limits };
        Frame::Welcome(welcome).encode(0, &mut said).expect("small");
        Ok(Parrot { said, at: 0, next: 1, phrase: phrase.clone() })
    };
    let guest = Guest::new(2, &[(0, 400)]);
    let (control, clock) = (Control::default(), Ticks::default());
    let patience = std::time::Duration::from_millis(if cancels { u64::MAX } else { 1 });
    let options = Options { attempts_max: 0, compress: false, patience, ..options(1) };
    let mut precopy = Precopy::new(plan(), &guest, &connect, &clock, &control, options).expect("sound");
    if cancels {
        // Not before it is at it: the first look at the pace would see it.
        std::thread::scope(|scope| {
            let cancel = scope.spawn(|| {
                while control.progress().bytes_sent == 0 {
                    std::thread::yield_now();
                }
                control.cancel();
            });
            let done = precopy.round().expect_err("nobody answers");
            cancel.join().expect("no panic");
            done
        })
    } else {
        precopy.round().expect_err("nobody answers")
    }
}

#[test]
fn a_peer_that_only_says_that_it_is_there_holds_nobody_up() {
    let stalled = copy_to_a_parrot(&Frame::Pace(0), false);
    assert!(matches!(stalled, Error::Lost { fault: Fault::Stalled, .. }), "{stalled:?}");
    let ended = copy_to_a_parrot(&Frame::Pace(0), true);
    assert!(matches!(ended, Error::Cancelled), "{ended:?}");
}

#[test]
fn an_ack_of_something_else_than_what_was_asked_is_none() {
    // The first barrier does not ask for a flush.
    for phrase in [Barrier { id: 1, flush: true }, Barrier { id: 2, flush: false }] {
        let wrong = copy_to_a_parrot(&Frame::Ack(phrase), false);
        let Error::Lost { fault: Fault::Damage(Damage::Field { field: "barrier", .. }), .. } = wrong else {
            panic!("{wrong:?}")
        };
    }
}

#[test]
fn an_older_connection_writes_nothing_once_a_newer_one_has_the_stream() {
    let host = Host::default();
    let receiver = Receiver::new([5; 16], Limits::default(), &host, &|_| Ok(()));
    std::thread::scope(|scope| {
        let (mut old, theirs) = knock(hello(1), plan());
        let old_end = scope.spawn(|| receiver.serve(theirs));
        send_page(&mut old, 3, 1, 1);
        assert!(matches!(old.receive(), Ok(Frame::Welcome(_))));
        assert!(matches!(old.receive(), Ok(Frame::Ack(Barrier { id: 1, .. }))));

        let (mut new, theirs) = knock(hello(2), plan());
        let new_end = scope.spawn(|| receiver.serve(theirs));
        assert!(matches!(new.receive(), Ok(Frame::Welcome(Welcome { durable: 1, .. }))));
        send_page(&mut new, 3, 2, 2);
        assert!(matches!(new.receive(), Ok(Frame::Ack(_))));
        send_page(&mut old, 3, 9, 3);
        assert!(matches!(old_end.join().expect("no panic"), Err(Fault::Superseded(_))));
        // Nor does it come back, nor a copy of its hello.
        let (_again, theirs) = knock(hello(2), plan());
        assert!(matches!(receiver.serve(theirs), Err(Fault::Superseded(_))));
        drop(new);
        assert!(matches!(new_end.join().expect("no panic"), Err(Fault::Closed)));
    });
    assert_eq!(host.pages.lock().expect("no panic")[&3][0], 2);
}

#[test]
fn a_peer_that_lies_is_told_by_name_and_nothing_outside_the_plan_is_touched() {
    let host = Host::default();
    let receiver = Receiver::new([5; 16], Limits::default(), &host, &|_| Ok(()));
    let attempt = AtomicUsize::new(0);
    let serve = |change: &dyn Fn(&mut Hello), plan: Plan, say: &dyn Fn(&mut Wire<UnixStream>)| {
        let mut hello = hello(u32::try_from(attempt.fetch_add(1, Relaxed) + 1).expect("few"));
        change(&mut hello);
        let (ours, theirs) = socket_pair();
        let end = ours.try_clone().expect("a socket");
        let mut wire = knock_at(ours, hello, plan);
        say(&mut wire);
        end.shutdown(Shutdown::Write).expect("a socket");
        receiver.serve(theirs).expect_err("a lie")
    };
    let same = |_: &mut Hello| {};
    let quiet = |_: &mut Wire<UnixStream>| {};
    assert!(matches!(serve(&same, plan(), &quiet), Fault::Closed), "nothing wrong yet");
    let other = |hello: &mut Hello| hello.migration = [6; 16];
    assert!(matches!(serve(&other, plan(), &quiet), Fault::Superseded(_)));
    let more = |hello: &mut Hello| hello.streams = 2;
    assert!(matches!(serve(&more, plan(), &quiet), Fault::Damage(Damage::Field { .. })));
    let larger = Plan { pages: PAGES + 1, ..plan() };
    assert!(matches!(serve(&same, larger, &quiet), Fault::Damage(Damage::Field { .. })));
    for at in [PAGES, u64::from(u32::MAX) - 1] {
        let outside = serve(&same, plan(), &|wire| send_page(wire, at, 1, 50));
        assert!(
            matches!(outside, Fault::Damage(Damage::Outside { first, .. }) if first == at),
            "{outside:?}"
        );
    }
    let twice = serve(&same, plan(), &|wire| {
        send_page(wire, 1, 1, 60);
        send_page(wire, 1, 1, 60);
    });
    assert!(matches!(twice, Fault::Damage(Damage::Field { field: "id", .. })), "{twice:?}");
    assert_eq!(host.pages.lock().expect("no panic").keys().copied().collect::<Vec<_>>(), [1]);
    assert!(receiver.arrived().is_none());
}

#[test]
fn a_host_that_lost_what_it_acknowledged_is_not_gone_on_with() {
    let (first, second) = (Host::default(), Host::default());
    let receivers =
        [&first, &second].map(|host| Receiver::new([5; 16], Limits::default(), host, &|_| Ok(())));
    let guest = Guest::new(2, &[(0, 100)]);
    let (control, clock) = (Control::default(), Ticks::default());
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let connect = |_| {
            let (ours, theirs) = socket_pair();
            let receiver = &receivers[calls.fetch_add(1, Relaxed).min(1)];
            scope.spawn(|| receiver.serve(theirs));
            ours.try_clone()
        };
        let mut precopy =
            Precopy::new(plan(), &guest, &connect, &clock, &control, options(1)).expect("sound");
        precopy.round().expect("it gets through");
        receivers[0].cancel();
        guest.scribble(9);
        let done = precopy.round();
        assert!(matches!(done, Err(Error::Forgotten { stream: 0 })), "{done:?}");
    });
}
