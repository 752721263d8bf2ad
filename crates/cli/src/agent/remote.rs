//! An agent behind TCP and TLS: it shows a certificate, and so does who asks.

use super::TlsArguments;
use super::client::Away;
use anyhow::{Context, bail, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};

/// If the address has none.
const PORT: u16 = 8443;
/// Longest wait for the other side to take a connection, and to say who it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Clone)]
pub(crate) struct Remote {
    /// As the request says it.
    host: String,
    address: (String, u16),
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)
    }
}

impl Remote {
    /// `rest` is what follows `https://`.
    pub(super) fn new(rest: &str, tls: &TlsArguments) -> anyhow::Result<Self> {
        let host = rest.trim_end_matches('/');
        let (name, port) = parts(host).with_context(|| {
            format!(
                "https://{rest} is no address of an agent\n  next: write https://HOST or https://HOST:PORT"
            )
        })?;
        let server = ServerName::try_from(name.to_owned()).with_context(|| format!("{name} is no host"))?;
        let (Some(cert), Some(key), Some(ca)) = (&tls.cert, &tls.key, &tls.ca) else {
            bail!(
                "an agent over https knows who asks by a certificate\n  next: give --cert, --key and --ca (or GODWIT_CERT, GODWIT_KEY and GODWIT_CA)"
            );
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots
                .add(certificate)
                .with_context(|| format!("{}: this signs no certificates", ca.display()))?;
        }
        let pem = std::fs::read(key).with_context(|| key.display().to_string())?;
        let secret = PrivateKeyDer::from_pem_slice(&pem)
            .with_context(|| format!("{}: there is no private key in it (PEM)", key.display()))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(cert)?, secret)
            .with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))?;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { host: host.to_owned(), address: (name.to_owned(), port), name: server, connector })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, Away> {
        let host = &self.host;
        let late = |_| Away(format!("nobody answers at https://{host}\n  next: is the address right?"));
        let connected =
            tokio::time::timeout(PATIENCE, TcpStream::connect(&self.address)).await.map_err(late)?;
        let stream = connected.map_err(|error| {
            Away(format!("no agent answers at https://{host}: {error}\n  next: does it run with --listen?"))
        })?;
        let handshake = self.connector.connect(self.name.clone(), stream);
        let spoken = tokio::time::timeout(PATIENCE, handshake).await.map_err(late)?;
        spoken.map_err(|error| {
            Away(format!(
                "https://{host} is not believed, or does not believe: {error}\n  next: is --ca who signed the agent's certificate, and is its name {host}?"
            ))
        })
    }
}

/// Name or address, and port. An IPv6 address is in brackets.
fn parts(host: &str) -> Option<(&str, u16)> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if port.is_empty() => PORT,
        None => return None,
    };
    let fits = !name.is_empty() && !name.contains(['/', '@', '?', '#', ' ']);
    fits.then_some((name, port))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).with_context(|| path.display().to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.with_context(|| format!("{}: this is no PEM", path.display()))?;
    ensure!(!found.is_empty(), "{}: there is no certificate in it (PEM)", path.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port_and_nothing_else() {
        assert_eq!(parts("node1"), Some(("node1", PORT)));
        assert_eq!(parts("node1.example:1"), Some(("node1.example", 1)));
        assert_eq!(parts("[::1]:2"), Some(("::1", 2)));
        assert_eq!(parts("[::1]"), Some(("::1", PORT)));
        for bad in ["", ":1", "a:", "a:0", "a:65536", "a/b", "me@a", "[::1", "[::1]x", "::1"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
