//! A network between two hosts, on this machine: what comes in at one address goes on to another, and on the way it can be cut, stalled,
//! slowed down, and made long.
//!
//! Not here: packets. A delay is one of bytes, and nothing is lost but whole connections.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on the way at once, of one connection in one direction.
const CHUNKS_MAX: usize = 1024;
/// How long something may take to be noticed.
const LOOK: Duration = Duration::from_millis(20);
const NAP: Duration = Duration::from_millis(1);
/// A sleep that was too long is made up for, up to this.
const BURST: Duration = Duration::from_millis(2);
const CONNECT: Duration = Duration::from_secs(2);

/// See the module; dropping it cuts it for good.
pub struct Relay {
    address: SocketAddr,
    wire: Arc<Wire>,
    listener: Option<JoinHandle<()>>,
}

/// How it is now.
#[derive(Default)]
struct Wire {
    is_over: AtomicBool,
    is_cut: AtomicBool,
    is_stalled: AtomicBool,
    /// 0: as fast as it goes.
    bytes_per_s: AtomicU64,
    delay_ns: AtomicU64,
    /// Those that are open, each with both ends.
    sockets: Mutex<Vec<Weak<Ends>>>,
    /// When the wire is free again, by direction.
    free: [Mutex<Option<Instant>>; 2],
    /// What has gone there, and back.
    bytes: [AtomicU64; 2],
}

impl Relay {
    /// Listens at an address of its own and passes on to `target`.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn new(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Self::over(listener, target)
    }

    /// The same with a socket that listens already.
    ///
    /// # Errors
    /// No thread is left.
    pub fn over(listener: TcpListener, target: SocketAddr) -> io::Result<Self> {
        let (address, wire) = (listener.local_addr()?, Arc::new(Wire::default()));
        let theirs = Arc::clone(&wire);
        let listen = move || theirs.listen(&listener, target);
        let listener = Some(std::thread::Builder::new().name("relay".to_owned()).spawn(listen)?);
        Ok(Self { address, wire, listener })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection; no other can be made until [`Relay::heal`].
    pub fn cut(&self) {
        self.wire.is_cut.store(true, Ordering::Release);
        self.wire.hang_up();
    }

    /// Keeps what comes, and says nothing.
    pub fn stall(&self) {
        self.wire.is_stalled.store(true, Ordering::Release);
    }

    /// Lets so many bytes a second through, each way; 0: as many as come.
    pub fn slow_down(&self, bytes_per_s: u64) {
        self.wire.bytes_per_s.store(bytes_per_s, Ordering::Release);
    }

    /// Makes each way take so long.
    pub fn delay(&self, delay: Duration) {
        self.wire.delay_ns.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// All is well again.
    pub fn heal(&self) {
        self.delay(Duration::ZERO);
        self.slow_down(0);
        self.wire.is_stalled.store(false, Ordering::Release);
        self.wire.is_cut.store(false, Ordering::Release);
    }

    /// Bytes that went to the target so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.wire.bytes[0].load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.wire.is_over.store(true, Ordering::Release);
        self.wire.hang_up();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        // One may have been on its way in.
        self.wire.hang_up();
    }
}

/// Of one connection: who came, and where it goes on.
type Ends = [TcpStream; 2];

/// A piece on its way, and when it is there.
type Piece = (Instant, Vec<u8>);

impl Wire {
    fn sockets(&self) -> MutexGuard<'_, Vec<Weak<Ends>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hang_up(&self) {
        self.sockets().drain(..).filter_map(|ends| ends.upgrade()).for_each(|ends| hang_up(&ends));
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn listen(self: &Arc<Self>, listener: &TcpListener, target: SocketAddr) {
        let look = Timespec::try_from(LOOK).ok();
        while !self.is_over() {
            if !matches!(poll(&mut [PollFd::new(listener, PollFlags::IN)], look.as_ref()), Ok(1)) {
                continue;
            }
            let Ok((near, _)) = listener.accept() else { continue };
            if self.is_cut.load(Ordering::Acquire) {
                continue;
            }
            let this = Arc::clone(self);
            // Whoever is not answered there hears of it here.
            let join =
                move || _ = TcpStream::connect_timeout(&target, CONNECT).map(|far| this.join(near, far));
            let _no_thread = std::thread::Builder::new().name("relay".to_owned()).spawn(join);
        }
    }

    fn join(self: &Arc<Self>, near: TcpStream, far: TcpStream) -> io::Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let ends = Arc::new([near, far]);
        {
            let mut sockets = self.sockets();
            sockets.retain(|ends| ends.strong_count() > 0);
            sockets.push(Arc::downgrade(&ends));
        }
        for (direction, (from, to)) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])].into_iter().enumerate() {
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            let (pieces, coming) = sync_channel(CHUNKS_MAX);
            let (reads, writes) = (Arc::clone(self), Arc::clone(self));
            let (reader, writer) = (Arc::clone(&ends), Arc::clone(&ends));
            let spawn = |work: Box<dyn FnOnce() + Send>| {
                std::thread::Builder::new().name("relay".to_owned()).spawn(work).map(drop)
            };
            spawn(Box::new(move || reads.take(direction, from, &reader, &pieces)))?;
            spawn(Box::new(move || writes.give(direction, to, &writer, &coming)))?;
        }
        // It may have been cut meanwhile.
        if self.is_cut.load(Ordering::Acquire) || self.is_over() {
            self.hang_up();
        }
        Ok(())
    }

    fn take(&self, direction: usize, mut from: TcpStream, ends: &Ends, pieces: &SyncSender<Piece>) {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match from.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    self.pass(direction, count);
                    let delay = Duration::from_nanos(self.delay_ns.load(Ordering::Acquire));
                    if pieces.send((Instant::now() + delay, chunk[..count].to_vec())).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return hang_up(ends),
            }
        }
    }

    /// Waits for as long as so many bytes take on the wire.
    fn pass(&self, direction: usize, count: usize) {
        let rate = self.bytes_per_s.load(Ordering::Acquire);
        if rate == 0 {
            return;
        }
        let time = Duration::from_nanos((count as u64).saturating_mul(1_000_000_000) / rate);
        let until = {
            let mut free = self.free[direction].lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let since = now.checked_sub(BURST).unwrap_or(now);
            let until = free.map_or(since, |free| free.max(since)) + time;
            *free.insert(until)
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    fn give(&self, direction: usize, mut to: TcpStream, ends: &Ends, coming: &Receiver<Piece>) {
        for (due, piece) in coming {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            while self.is_stalled.load(Ordering::Acquire) && !self.is_over() {
                std::thread::sleep(NAP);
            }
            if to.write_all(&piece).is_err() {
                return hang_up(ends);
            }
            self.bytes[direction].fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        let _gone_already = to.shutdown(Shutdown::Write);
    }
}

/// A connection that is broken on one side is on the other.
fn hang_up(ends: &Ends) {
    ends.iter().for_each(|end| _ = end.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay to somebody who sends back what comes, and a connection through it.
    fn echo() -> (Relay, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::new(listener.local_addr().unwrap()).unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                std::thread::spawn(move || {
                    let mut back = socket.try_clone().unwrap();
                    let _ = io::copy(&mut socket, &mut back);
                    let _ = socket.shutdown(Shutdown::Both);
                });
            }
        });
        let socket = connect(&relay);
        (relay, socket)
    }

    fn connect(relay: &Relay) -> TcpStream {
        let socket = TcpStream::connect(relay.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    fn say(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
        socket.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        socket.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn what_is_sent_comes_whole_and_an_end_is_an_end() {
        let (relay, mut socket) = echo();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let mut writer = socket.try_clone().unwrap();
        let sent = bytes.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        socket.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == bytes && relay.bytes_sent() == 1_000_000);
    }

    #[test]
    fn a_cut_ends_connections_and_lets_none_in_until_it_is_healed() {
        let (relay, mut socket) = echo();
        assert_eq!(say(&mut socket, b"one").unwrap(), b"one");
        relay.cut();
        assert!(say(&mut socket, b"two").is_err());
        assert!(say(&mut connect(&relay), b"three").is_err());
        relay.heal();
        assert_eq!(say(&mut connect(&relay), b"four").unwrap(), b"four");
    }

    #[test]
    fn a_stall_loses_nothing_and_a_delay_and_a_rate_take_their_time() {
        let (relay, mut socket) = echo();
        relay.stall();
        socket.write_all(b"wait").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut back = [0; 4];
        assert!(socket.read_exact(&mut back).is_err());
        relay.heal();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"wait");
        relay.delay(Duration::from_millis(30));
        let start = Instant::now();
        say(&mut socket, b"far").unwrap();
        assert!(start.elapsed() >= Duration::from_millis(60));
        relay.heal();
        relay.slow_down(1 << 20);
        let start = Instant::now();
        say(&mut socket, &[7; 100 << 10]).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
    }
}
