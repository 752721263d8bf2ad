//! Both ends of a copy as the product's code sees them: what it copies from, where it arrives, its sockets and its clock. All of it asks the world.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dirty::{BLOCK_PAGES, Map, PAGE_BYTES};
use transfer::control::{Clock, Control, Work};
use transfer::copy::{Error, Options, Precopy, Verdict};
use transfer::frame::{Limits, Plan};
use transfer::receive::Receiver;
use transfer::source::{Content, Run, Sink, Source};

use super::actors::{Ask, End, Reply, ask, enter};
use super::broken::Broken;

fn failed(reply: &Reply) -> io::Error {
    match reply {
        Reply::Failed(kind) => (*kind).into(),
        _ => ErrorKind::Other.into(),
    }
}

/// One end of a connection.
pub(super) struct Socket(pub(super) End);

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match ask(Ask::Receive(self.0, out.len())) {
            Reply::Bytes(bytes) => {
                out[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            reply => Err(failed(&reply)),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ask(Ask::Send(self.0, bytes.to_vec())) {
            Reply::Count(count) => Ok(count),
            reply => Err(failed(&reply)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Of a process that has ended the kernel closes it.
        if !std::thread::panicking() {
            ask(Ask::Close(self.0));
        }
    }
}

/// The world's clock.
pub(super) struct Time(pub(super) Arc<AtomicU64>);

impl Clock for Time {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn sleep(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        ask(Ask::Sleep { nanos });
    }

    fn wait(&self, time: Duration, look: &mut dyn FnMut(Duration) -> bool) -> bool {
        let until = self.now() + time;
        while self.now() < until {
            if look(Duration::ZERO) {
                return true;
            }
            ask(Ask::Sleep { nanos: 1_000_000 });
        }
        false
    }

    fn at_once(&self, works: Vec<Work<'_>>) {
        let Reply::Ports(ports) = ask(Ask::Spawn(works.len())) else { return };
        std::thread::scope(|scope| {
            for (work, port) in works.into_iter().zip(ports) {
                scope.spawn(move || enter(port, work));
            }
            ask(Ask::Join);
        });
    }
}

/// The drive of the source, while its guest writes it.
pub(super) struct Blocks {
    pub(super) map: Arc<Map>,
    pub(super) broken: Option<Broken>,
    /// The guest stands still.
    pub(super) closing: Arc<AtomicU64>,
}

impl Source for Blocks {
    fn pages(&self) -> u64 {
        self.map.pages()
    }

    fn arm(&self) -> io::Result<()> {
        ask(Ask::Arm);
        Ok(())
    }

    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let Reply::Runs(runs) = ask(Ask::Allocated) else { return Err(ErrorKind::Other.into()) };
        runs.into_iter().for_each(|(first, pages)| each(first, pages));
        Ok(())
    }

    fn harvest(&self, into: &Map) -> io::Result<()> {
        ask(Ask::Yield);
        let closing = self.closing.load(Ordering::Relaxed) != 0;
        let mut lose = self.broken == Some(Broken::MarkLost);
        let leave_out = self.broken == Some(Broken::LastLeftOut) && closing;
        self.map.take(|block, marks| {
            let base = block as u64 * BLOCK_PAGES;
            marks.runs(|first, pages| {
                if !std::mem::take(&mut lose) && !leave_out {
                    into.mark(base + u64::from(first), pages.into());
                }
            });
        });
        Ok(())
    }

    fn read(&self, run: Run, out: &mut [u8]) -> io::Result<Content> {
        let (start_bytes, len_bytes) = (run.first() * PAGE_BYTES, run.bytes());
        match ask(Ask::Read { start_bytes, len_bytes }) {
            Reply::Bytes(bytes) => out.copy_from_slice(&bytes),
            reply => return Err(failed(&reply)),
        }
        Ok(Content::Bytes)
    }
}

/// Where it arrives.
struct Landing;

impl Sink for Landing {
    fn write(&self, run: Run, bytes: &[u8]) -> io::Result<()> {
        ask(Ask::Write { start_bytes: run.first() * PAGE_BYTES, bytes: bytes.to_vec() });
        Ok(())
    }

    fn zero(&self, run: Run, _hole: bool) -> io::Result<()> {
        ask(Ask::Zero { start_bytes: run.first() * PAGE_BYTES, len_bytes: run.bytes() });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        ask(Ask::Flush);
        Ok(())
    }
}

/// Passes before the guest is stopped, whatever is left.
const PASSES_MAX: usize = 6;

/// A copy, as the engine's (`engine/src/migration/copy.rs`).
pub(super) fn copy(
    plan: Plan,
    blocks: &Blocks,
    clock: &Time,
    control: &Control,
    options: Options,
) -> Result<(), Error> {
    let connect = |stream| match ask(Ask::Connect { stream }) {
        Reply::Connected(end) => Ok(Socket(end)),
        reply => Err(failed(&reply)),
    };
    let pages = plan.pages;
    let mut precopy = Precopy::new(plan, blocks, &connect, clock, control, options)?;
    for _ in 0..PASSES_MAX {
        match precopy.round() {
            Ok(Some(Verdict::Ready(_))) => break,
            Ok(_) => {}
            Err(Error::Lost { .. }) => clock.sleep(Duration::from_millis(50)),
            Err(error) => return Err(error),
        }
    }
    let Reply::State(state) = ask(Ask::Near) else { return Err(Error::Cancelled) };
    blocks.closing.store(1, Ordering::Relaxed);
    let missing = Map::new(pages)?;
    ask(Ask::Rested);
    loop {
        match precopy.last(&missing, &state) {
            Ok(()) => return Ok(()),
            Err(Error::Lost { .. }) => clock.sleep(Duration::from_millis(50)),
            Err(error) => return Err(error),
        }
    }
}

/// What comes, each stream on an actor of its own, as the engine's (`engine/src/migration/arrival.rs`).
pub(super) fn land(migration: [u8; 16], limits: Limits, pages: u64) {
    let accept =
        |plan: &Plan| if plan.pages == pages { Ok(()) } else { Err("it has another size".to_owned()) };
    let receiver = Receiver::new(migration, limits, &Landing, &accept);
    std::thread::scope(|scope| {
        while let Reply::Accepted(end, port) = ask(Ask::Accept) {
            let receiver = &receiver;
            scope.spawn(move || {
                enter(port, || {
                    // Whatever it was: the source connects again, or gives up.
                    let _ = receiver.serve(Socket(end));
                    if let Some(arrived) = receiver.arrived() {
                        ask(Ask::Arrived(Box::new(arrived)));
                    }
                });
            });
        }
    });
}
