//! Who brings ssds here: connections of other hosts, each proved to be one before it is heard.

use super::Migrations;
use super::arrival::Arrival;
use super::means::{Means, prepare};
use super::word::{FromDestination, FromSource, receive, send};
use crate::run::House;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use transfer::receive::Greeted;
use transfer::tls::{Incoming, Protocol};

/// Connections at once: strangers who hold theirs open keep nobody out for longer than the silence that is allowed.
const CONNECTIONS_MAX: usize = 256;

/// Takes connections for ever.
pub(super) fn listen(house: &Arc<House>, means: &Arc<Means>, listener: &TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    for socket in listener.incoming() {
        let Ok(socket) = socket.inspect_err(|error| tracing::warn!(%error, "a connection of another host"))
        else {
            // Such as no descriptors left: it will not help to ask again at once.
            std::thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (house, means, count) = (Arc::clone(house), Arc::clone(means), Arc::clone(&open));
        let serve = move || {
            let peer = socket.peer_addr();
            if let Err(error) = serve(&house, &means, socket) {
                tracing::debug!(?peer, %error, "a connection of another host has ended");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if std::thread::Builder::new().name("host".to_owned()).spawn(serve).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn serve(house: &Arc<House>, means: &Means, socket: TcpStream) -> io::Result<()> {
    prepare(&socket)?;
    let (stream, protocol) = means.identity.accept(socket)?;
    let Some(migrations) = house.migrations() else { return Ok(()) };
    match protocol {
        Protocol::Control => converse(house, migrations, stream),
        Protocol::Pages => {
            let stream = Greeted::new(stream).map_err(io::Error::other)?;
            let migration = u128::from_be_bytes(stream.migration());
            let arrival = migrations.arrival(migration);
            // The landing's thread has it from here on.
            if arrival.is_some_and(|arrival| arrival.take(stream)) {
                Ok(())
            } else {
                Err(io::Error::other("pages of a migration that is not expected"))
            }
        }
    }
}

/// A source's words until it leaves.
fn converse(house: &Arc<House>, migrations: &Migrations, mut stream: Incoming) -> io::Result<()> {
    let FromSource::Offer(offer) = receive(&mut stream)? else {
        return send(&mut stream, &FromDestination::No { why: "an offer comes first".to_owned() });
    };
    let arrival: Option<Arc<Arrival>> = match migrations.expect(house, &offer) {
        Ok(arrival) => arrival,
        Err(error) => return send(&mut stream, &FromDestination::No { why: format!("{error:#}") }),
    };
    send(&mut stream, &FromDestination::Welcome)?;
    // Who only asked has heard it.
    let Some(arrival) = arrival else { return Ok(()) };
    loop {
        let answer = match receive(&mut stream)? {
            FromSource::Offer(_) => FromDestination::No { why: "a connection is for one offer".to_owned() },
            FromSource::Step { epoch, word } => arrival.hear(epoch, word),
            FromSource::Ping => arrival.say_again(),
        };
        send(&mut stream, &answer)?;
    }
}
