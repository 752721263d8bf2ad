//! Peers by hand: one that says nothing, one that comes back, one that lost its memory, one that lies.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::rig::{Guest, Host, PAGE, PAGES, Ticks, options, plan, socket_pair};
use transfer::control::Control;
use transfer::copy::{Error, Options, Precopy};
use transfer::frame::{Barrier, Damage, Data, FEATURES, Frame, Hello, Limits, Payload, Plan, Welcome};
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
    let bytes = [byte; PAGE];
    let run = Run::checked(at, 1, u64::from(u32::MAX)).expect("a run");
    let check = crc32c::crc32c(&bytes);
    let _ = wire.send(&Frame::Data(Data { run, payload: Payload::Raw(&bytes), check }));
    let _ = wire.send(&Frame::Barrier(Barrier { id: barrier, flush: false }));
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
