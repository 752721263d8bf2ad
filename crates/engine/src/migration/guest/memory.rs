//! A guest's memory on its way between two hypervisors: what one writes into a socket the other reads from one, through two connections of TLS, one
//! for each direction.

use super::super::means::Means;
use super::super::word::{FromDestination, Guest, Memory, receive, send};
use crate::migration::Migrations;
use crate::migration::listener::Known;
use crate::run::House;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use transfer::tls::{Incoming, Protocol, Stream};

const BUFFER_BYTES: usize = 256 << 10;

/// Both directions between a hypervisor here and the connections to the other host. Dropped, both end, and the hypervisor's socket with them.
pub(super) struct Tunnel {
    ours: UnixStream,
    sockets: [TcpStream; 2],
    is_over: Arc<AtomicBool>,
    /// Bytes that went from the source to the destination.
    pub(super) carried: Arc<AtomicU64>,
}

impl Tunnel {
    /// At the source: connects to the other host, whose hypervisor expects the guest when this returns. Beside it: the hypervisor's end.
    ///
    /// # Errors
    /// The other host's, in its words.
    pub(super) fn open(means: &Means, to: &str, guest: &Guest) -> anyhow::Result<(Self, OwnedFd)> {
        let mut there = means.connect(to, Protocol::Memory)?;
        send(&mut there, &Memory { guest: guest.id, back: false })?;
        if !matches!(receive(&mut there)?, FromDestination::Noted) {
            anyhow::bail!("{to} expects no guest by now: see `godwit migration list` there");
        }
        let mut back = means.connect(to, Protocol::Memory)?;
        send(&mut back, &Memory { guest: guest.id, back: true })?;
        match receive(&mut back)? {
            FromDestination::Welcome => {}
            FromDestination::No { why } => anyhow::bail!("{to} refuses it: {why}"),
            _ => anyhow::bail!("{to} answers for a guest's memory with something else"),
        }
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::between(ours, there, back, true)?, theirs.into()))
    }

    /// `ours`: the other end is the hypervisor's. What it says is taken from there if `is_source`, and comes there if not, through `outward`; what the
    /// other one answers goes through `backward`.
    pub(super) fn between(
        ours: UnixStream,
        outward: impl Stream,
        backward: impl Stream,
        is_source: bool,
    ) -> io::Result<Self> {
        let sockets = [outward.socket().try_clone()?, backward.socket().try_clone()?];
        let (is_over, carried, answered) = (Arc::default(), Arc::default(), AtomicU64::new(0));
        let tunnel = Self { ours, sockets, is_over: Arc::clone(&is_over), carried: Arc::clone(&carried) };
        let [one, other] = [tunnel.ours.try_clone()?, tunnel.ours.try_clone()?];
        if is_source {
            spawn(move || take(one, outward, &carried))?;
            spawn(move || give(backward, other, &is_over, &answered))?;
        } else {
            spawn(move || give(outward, one, &is_over, &carried))?;
            spawn(move || take(other, backward, &answered))?;
        }
        Ok(tunnel)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.ours.shutdown(Shutdown::Both);
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("memory".to_owned()).spawn(body).map(drop)
}

/// From the hypervisor to the other host, until either ends.
fn take(mut from: UnixStream, mut to: impl Stream, carried: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).and_then(|()| to.flush()).is_err() {
            break;
        }
        carried.fetch_add(len as u64, Ordering::Relaxed);
    }
    // It said all that it had to say; what is on its way arrives.
    let _ = to.end();
}

/// From the other host to the hypervisor, until either ends. The other one may have nothing to say for as long as it likes.
fn give(mut from: impl Stream, mut to: UnixStream, is_over: &AtomicBool, carried: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
                carried.fetch_add(len as u64, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if is_over.load(Ordering::Acquire) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// At the destination: a connection that carries a guest's memory.
///
/// # Errors
/// The connection's, or no such guest comes here.
pub(in crate::migration) fn arrive(
    house: &Arc<House>,
    migrations: &Migrations,
    mut stream: Incoming,
    known: Known,
) -> io::Result<()> {
    let Memory { guest, back } = receive(&mut stream)?;
    match migrations.coming(guest) {
        Some(coming) => {
            coming.connected(house, (stream, known), back);
            Ok(())
        }
        None => {
            let why = "no such guest is expected".to_owned();
            send(&mut stream, &FromDestination::No { why })
        }
    }
}
