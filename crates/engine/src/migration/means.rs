//! How this host speaks with others: its certificate, and connections with timeouts.

use anyhow::Context;
use api::config;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;
use transfer::tls::{Files, Identity, Outgoing, Protocol};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a peer may say nothing, or take nothing.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Means {
    pub(super) identity: Identity,
}

impl Means {
    pub(super) fn new(config: &config::Migration) -> anyhow::Result<Self> {
        let config::Migration { certificate, key, authority, .. } = config.clone();
        let identity = Identity::read(&Files { certificate, key, authority }).context("[migration]")?;
        Ok(Self { identity })
    }

    /// Speaks to `HOST:PORT`, whose certificate has the name HOST.
    pub(super) fn connect(&self, to: &str, protocol: Protocol) -> io::Result<Outgoing> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{to} has no address"));
        for address in to.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(socket) => {
                    prepare(&socket)?;
                    return self.identity.connect(&host_of(to)?, protocol, socket);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A host that says nothing is not waited for, and a small word goes at once.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))
}

/// What is before the port.
pub(super) fn host_of(to: &str) -> io::Result<String> {
    let wrong = || {
        let why =
            format!("\"{to}\" is no host and port; write for example host-b:8010, or [2001:db8::1]:8010");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
    let plain = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_whole = plain.is_some() || !host.contains(':');
    if port.parse::<u16>().is_err() || host.is_empty() || !is_whole {
        return Err(wrong());
    }
    Ok(plain.unwrap_or(host).to_owned())
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn a_host_is_what_is_before_its_port() {
        for (to, host) in [
            ("b:1", "b"),
            ("192.0.2.1:8010", "192.0.2.1"),
            ("[::1]:8010", "::1"),
            ("b.example:65535", "b.example"),
        ] {
            assert_eq!(host_of(to).unwrap(), host);
        }
        for wrong in ["", "b", ":1", "b:", "b:65536", "::1:8010", "b:x"] {
            assert!(host_of(wrong).unwrap_err().to_string().contains("host and port"), "{wrong}");
        }
    }
}
