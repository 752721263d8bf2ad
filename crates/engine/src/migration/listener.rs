//! Who brings ssds here: connections of other hosts, each proved to be one before it is heard.

use super::Migrations;
use super::arrival::Socket;
use super::guest;
use super::means::{Means, prepare};
use super::word::{FromDestination, FromSource, receive, send};
use crate::run::House;
use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use transfer::receive::Greeted;
use transfer::tls::{Incoming, Protocol};

/// Connections at once of hosts that have proved who they are, of whatever kind: words, pages, memory.
const CONNECTIONS_MAX: usize = 512;
/// Connections at once of which nobody knows that yet, and how long they may take to prove it when others wait.
const STRANGERS_MAX: usize = 64;
const PROOF: Duration = Duration::from_secs(10);

/// Takes connections for ever.
pub(super) fn listen(house: &Arc<House>, means: &Arc<Means>, listener: &TcpListener) {
    let hall = Arc::new(Hall::default());
    for socket in listener.incoming() {
        let Ok(socket) = socket.inspect_err(|error| tracing::warn!(%error, "a connection of another host"))
        else {
            // Such as no descriptors left: it will not help to ask again at once.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Some(stranger) = hall.enter(&socket) else { continue };
        let (house, means, hall) = (Arc::clone(house), Arc::clone(means), Arc::clone(&hall));
        let serve = move || {
            let peer = socket.peer_addr();
            if let Err(error) = serve(&house, &means, socket, &hall, stranger) {
                tracing::debug!(?peer, %error, "a connection of another host has ended");
            }
        };
        // What was taken of the hall is given back with the closure.
        if let Err(error) = std::thread::Builder::new().name("host".to_owned()).spawn(serve) {
            tracing::warn!(%error, "no thread for a connection of another host");
        }
    }
}

/// Who is there: strangers, and hosts.
#[derive(Default)]
struct Hall {
    strangers: Mutex<BTreeMap<u64, (Instant, TcpStream)>>,
    next: AtomicU64,
    hosts: AtomicUsize,
}

/// A stranger's place; gone when it is known who it is, or that it is nobody.
struct Stranger {
    hall: Arc<Hall>,
    number: u64,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.hall.strangers().remove(&self.number);
    }
}

impl Hall {
    fn strangers(&self) -> MutexGuard<'_, BTreeMap<u64, (Instant, TcpStream)>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever takes too long to say who it is makes room. `None`: nobody does.
    fn enter(self: &Arc<Self>, socket: &TcpStream) -> Option<Stranger> {
        let mut strangers = self.strangers();
        for (since, socket) in strangers.values() {
            if since.elapsed() > PROOF {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        if strangers.len() >= STRANGERS_MAX {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        strangers.insert(number, (Instant::now(), socket.try_clone().ok()?));
        Some(Stranger { hall: Arc::clone(self), number })
    }
}

/// A host's place: goes with its connection, whoever has that.
pub(super) struct Known(Arc<Hall>);

impl Known {
    fn new(hall: &Arc<Hall>) -> Option<Self> {
        let known = Self(Arc::clone(hall));
        (hall.hosts.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX).then_some(known)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.0.hosts.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(
    house: &Arc<House>,
    means: &Means,
    socket: TcpStream,
    hall: &Arc<Hall>,
    stranger: Stranger,
) -> io::Result<()> {
    prepare(&socket)?;
    let (stream, protocol) = means.identity.accept(socket)?;
    drop(stranger);
    let known = Known::new(hall).ok_or_else(|| io::Error::other("too many connections of hosts"))?;
    let Some(migrations) = house.migrations() else { return Ok(()) };
    match protocol {
        Protocol::Control => converse(house, migrations, stream),
        Protocol::Memory => guest::arrive(house, migrations, stream, known),
        Protocol::Pages => {
            let socket = Arc::new(Socket { socket: stream.sock.try_clone()?, _known: known });
            let stream = Greeted::new(stream).map_err(io::Error::other)?;
            let migration = u128::from_be_bytes(stream.migration());
            let arrival = migrations.arrival(migration);
            // The landing's thread has it from here on.
            if arrival.is_some_and(|arrival| arrival.take((stream, socket))) {
                Ok(())
            } else {
                Err(io::Error::other("pages of a migration that is not expected"))
            }
        }
    }
}

/// Counts conversations, so that of two it is known which is newer.
static SPEAKERS: AtomicU64 = AtomicU64::new(1);

/// A source's words until it leaves.
fn converse(house: &Arc<House>, migrations: &Migrations, mut stream: Incoming) -> io::Result<()> {
    let FromSource::Offer(offer) = receive(&mut stream)? else {
        return send(&mut stream, &FromDestination::No { why: "an offer comes first".to_owned() });
    };
    let speaker = SPEAKERS.fetch_add(1, Ordering::Relaxed);
    let (arrival, there) = match migrations.expect(house, &offer) {
        Ok(expected) => expected,
        Err(error) => return send(&mut stream, &FromDestination::No { why: format!("{error:#}") }),
    };
    send(&mut stream, &there.map_or(FromDestination::Welcome, FromDestination::Expected))?;
    // Who only asked has heard it.
    let Some(arrival) = arrival else { return Ok(()) };
    loop {
        let answer = match receive(&mut stream)? {
            FromSource::Offer(_) => FromDestination::No { why: "a connection is for one offer".to_owned() },
            FromSource::Step { epoch, word, limits } => arrival.hear(epoch, word, limits),
            FromSource::Ping => arrival.say_again(),
            FromSource::Empty { bytes } => arrival.empty(speaker, &bytes),
            FromSource::Snapshot { name } => arrival.keep(&name),
        };
        send(&mut stream, &answer)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_place_for_so_many_hosts_and_for_another_when_one_has_gone() {
        let hall = Arc::new(Hall::default());
        let mut known: Vec<_> = (0..CONNECTIONS_MAX).map(|_| Known::new(&hall)).collect();
        assert!(known.iter().all(Option::is_some) && Known::new(&hall).is_none());
        known.pop();
        assert!(Known::new(&hall).is_some_and(|_held| Known::new(&hall).is_none()));
        drop(known);
        assert_eq!(hall.hosts.load(Ordering::Acquire), 0);
    }
}
