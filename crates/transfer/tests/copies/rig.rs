//! Two ends in one process: a source that is written while it is read, a sink, and connections that break where a test says.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dirty::Map;
use transfer::control::{Clock, Control};
use transfer::copy::{Error, Options, Precopy};
use transfer::frame::{Limits, Plan, STRIPE_PAGES};
use transfer::receive::{Accept, Receiver};
use transfer::source::{Content, Run, Sink, Source};
use transfer::wire::Fault;

pub(crate) const PAGE: usize = 4096;
pub(crate) const PAGES: u64 = 3 * STRIPE_PAGES + 50;

/// Time passes a little whenever somebody looks.
#[derive(Default)]
pub(crate) struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.fetch_add(1, Relaxed))
    }

    fn sleep(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_micros()).expect("short"), Relaxed);
    }
}

/// A page of zeros, of something that compresses, or of noise.
fn page(seed: u64) -> Vec<u8> {
    let mut word = seed;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word
    };
    match seed % 4 {
        0 => vec![0; PAGE],
        1 => seed.to_le_bytes().repeat(PAGE / 8),
        _ => (0..PAGE / 8).flat_map(|_| next().to_le_bytes()).collect(),
    }
}

type Pages = BTreeMap<u64, Vec<u8>>;

/// Pages of a guest that goes on.
pub(crate) struct Guest {
    pages: Mutex<(Pages, u64)>,
    dirty: Map,
    armed: AtomicBool,
    /// Pages that it writes whenever some are read.
    pub(crate) eager: AtomicU64,
    /// Reads that have begun.
    pub(crate) reads: AtomicU64,
    /// Whoever holds it keeps reads from ending.
    pub(crate) gate: Mutex<()>,
}

impl Guest {
    pub(crate) fn new(seed: u64, runs: &[(u64, u64)]) -> Self {
        let mut pages = Pages::new();
        for &(first, count) in runs {
            for at in first..(first + count).min(PAGES) {
                pages.insert(at, page(seed ^ at.wrapping_mul(77)));
            }
        }
        let dirty = Map::new(PAGES).expect("small");
        let armed = AtomicBool::new(false);
        let pages = Mutex::new((pages, seed | 1));
        Self {
            pages,
            dirty,
            armed,
            eager: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            gate: Mutex::default(),
        }
    }

    /// Writes or discards some pages, near one another or anywhere.
    pub(crate) fn scribble(&self, count: u64) {
        let mut guard = self.pages.lock().expect("no panic");
        for _ in 0..count {
            let (pages, seed) = &mut *guard;
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let what = *seed >> 20;
            let at = if what % 3 == 0 { what / 3 % 40 } else { what / 3 % PAGES };
            if what % 7 == 0 {
                pages.remove(&at);
            } else {
                pages.insert(at, page(what));
            }
            dirty::settle();
            if self.armed.load(Relaxed) {
                self.dirty.mark(at, 1);
            }
        }
    }
}

impl Source for Guest {
    fn pages(&self) -> u64 {
        PAGES
    }

    fn arm(&self) -> io::Result<()> {
        self.armed.store(true, Relaxed);
        Ok(())
    }

    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let all: Vec<u64> = self.pages.lock().expect("no panic").0.keys().copied().collect();
        all.iter().for_each(|at| each(*at, 1));
        Ok(())
    }

    fn harvest(&self, into: &Map) -> io::Result<()> {
        self.dirty.take(|block, marks| {
            marks.runs(|first, pages| {
                into.mark(block as u64 * dirty::BLOCK_PAGES + u64::from(first), pages.into())
            });
        });
        Ok(())
    }

    fn read(&self, run: Run, out: &mut [u8]) -> io::Result<Content> {
        self.reads.fetch_add(1, Relaxed);
        drop(self.gate.lock().expect("no panic"));
        let found = {
            let guard = self.pages.lock().expect("no panic");
            let mut some = false;
            for (at, out) in (run.first()..).zip(out.chunks_mut(PAGE)) {
                match guard.0.get(&at) {
                    Some(bytes) => out.copy_from_slice(bytes),
                    None => out.fill(0),
                }
                some |= guard.0.contains_key(&at);
            }
            if some { Content::Bytes } else { Content::Hole }
        };
        self.scribble(self.eager.load(Relaxed));
        Ok(found)
    }
}

/// Where pages arrive, and what was made durable.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) pages: Mutex<Pages>,
    pub(crate) full: AtomicBool,
    /// Something was written since the last flush.
    pub(crate) volatile: AtomicBool,
    /// The next flush fails, and the one after it knows nothing of that.
    pub(crate) flush_fails: AtomicBool,
}

impl Sink for Host {
    fn write(&self, run: Run, bytes: &[u8]) -> io::Result<()> {
        assert!(run.end() <= PAGES && bytes.len() as u64 == run.bytes());
        if self.full.load(Relaxed) {
            return Err(ErrorKind::StorageFull.into());
        }
        let mut pages = self.pages.lock().expect("no panic");
        self.volatile.store(true, Relaxed);
        for (at, bytes) in (run.first()..).zip(bytes.chunks(PAGE)) {
            pages.insert(at, bytes.to_vec());
        }
        Ok(())
    }

    fn zero(&self, run: Run, _: bool) -> io::Result<()> {
        assert!(run.end() <= PAGES);
        let mut pages = self.pages.lock().expect("no panic");
        self.volatile.store(true, Relaxed);
        (run.first()..run.end()).for_each(|at| drop(pages.remove(&at)));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.flush_fails.swap(false, Relaxed) {
            return Err(io::Error::other("it is gone"));
        }
        self.volatile.store(false, Relaxed);
        Ok(())
    }
}

/// Both have the same, where pages of zeros are nothing.
pub(crate) fn assert_same(guest: &Guest, host: &Host) {
    let solid = |pages: &Pages| -> Vec<(u64, Vec<u8>)> {
        let some = pages.iter().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        some.map(|(at, bytes)| (*at, bytes.clone())).collect()
    };
    let (guest, host) =
        (solid(&guest.pages.lock().expect("no panic").0), solid(&host.pages.lock().expect("no panic")));
    let places = |pages: &[(u64, Vec<u8>)]| pages.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!(places(&guest), places(&host));
    let differs: Vec<u64> =
        guest.iter().zip(&host).filter(|(one, other)| one != other).map(|(one, _)| one.0).collect();
    assert!(differs.is_empty(), "pages {differs:?} differ");
}

/// What befalls a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fate {
    /// It breaks after so many bytes towards the receiver.
    pub(crate) cut_sent: Option<u64>,
    /// It breaks after so many bytes towards the sender.
    pub(crate) cut_said: Option<u64>,
    /// One bit of this byte towards the receiver flips.
    pub(crate) flip: Option<u64>,
}

/// The sender's end of a connection with a fate.
pub(crate) struct Line {
    socket: UnixStream,
    fate: Fate,
    sent: u64,
    said: u64,
}

impl Line {
    fn broken<T>(&self) -> io::Result<T> {
        let _ = self.socket.shutdown(Shutdown::Both);
        Err(ErrorKind::BrokenPipe.into())
    }
}

impl Read for Line {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.fate.cut_said.map_or(u64::MAX, |cut| cut.saturating_sub(self.said));
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 && !out.is_empty() {
            return self.broken();
        }
        let count = self.socket.read(&mut out[..len])?;
        self.said += count as u64;
        Ok(count)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.fate.cut_sent.map_or(u64::MAX, |cut| cut.saturating_sub(self.sent));
        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 && !bytes.is_empty() {
            return self.broken();
        }
        let at =
            self.fate.flip.and_then(|at| at.checked_sub(self.sent)).and_then(|at| usize::try_from(at).ok());
        let count = match at.filter(|at| *at < len) {
            Some(at) => {
                let mut wrong = bytes[..len].to_vec();
                wrong[at] ^= 1 << (at % 8);
                self.socket.write(&wrong)?
            }
            None => self.socket.write(&bytes[..len])?,
        };
        self.sent += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

pub(crate) fn plan() -> Plan {
    let (name, profile) = ("vol".to_owned(), "godwit-1".to_owned());
    Plan { pages: PAGES, name, profile, settings: vec![1, 2, 3] }
}

pub(crate) fn options(streams: u16) -> Options {
    Options {
        migration: [5; 16],
        streams,
        limits: Limits { window_bytes: 256 << 10, data_pages: 8 },
        flush_bytes: 512 << 10,
        attempts_max: 200,
        retry: Duration::ZERO,
        stun_max: Duration::from_secs(3600),
        ..Options::default()
    }
}

pub(crate) fn socket_pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    for socket in [&ours, &theirs] {
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        socket.set_write_timeout(Some(Duration::from_secs(60))).expect("a socket");
    }
    (ours, theirs)
}

/// How connections were served, in the order in which they ended.
pub(crate) type Served = Mutex<Vec<Result<(), Fault>>>;

/// A copy to a host, over connections with these fates; those after them are sound.
pub(crate) fn copy<T>(
    guest: &Guest,
    host: &Host,
    accept: &Accept<'_>,
    options: Options,
    fates: &[Fate],
    work: impl FnOnce(&mut Precopy<'_, Line>, &Control, &Receiver<'_>) -> Result<T, Error>,
) -> (Result<T, Error>, Vec<Result<(), Fault>>) {
    let receiver = Receiver::new(options.migration, Limits::default(), host, accept);
    let (control, clock) = (Control::default(), Ticks::default());
    let fates = Mutex::new(VecDeque::from(fates.to_vec()));
    let served = Served::default();
    let done = std::thread::scope(|scope| {
        let connect = |_| {
            let (ours, theirs) = socket_pair();
            scope.spawn(|| {
                let done = receiver.serve(theirs);
                served.lock().expect("no panic").push(done);
            });
            let fate = fates.lock().expect("no panic").pop_front().unwrap_or_default();
            Ok(Line { socket: ours, fate, sent: 0, said: 0 })
        };
        let mut precopy = Precopy::new(plan(), guest, &connect, &clock, &control, options)?;
        work(&mut precopy, &control, &receiver)
    });
    (done, served.into_inner().expect("no panic"))
}
