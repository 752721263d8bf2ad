//! TCP with TLS on both sides: who asks shows a certificate that the client CA signed, and nobody else is heard.
//!
//! TLS 1.3 only, by rustls with AWS-LC. A certificate says who may ask at all; all who may, may all. Files are read once: after a
//! renewal the agent is restarted, which disturbs nobody.

use anyhow::{Context, bail, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

/// Largest file of certificates or a key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the agent serves besides its socket, and by which certificates.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The address and port.
    pub listen: SocketAddr,
    /// Its certificate and those between it and the one that clients know, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs clients' certificates, PEM.
    pub client_ca: PathBuf,
}

/// Listens, and knows how to speak.
pub(crate) struct Listener {
    pub(crate) listener: std::net::TcpListener,
    pub(crate) acceptor: TlsAcceptor,
}

impl Listener {
    pub(crate) fn bind(tls: &Tls) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(config(tls)?));
        let listener = std::net::TcpListener::bind(tls.listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .with_context(|| {
                format!("cannot listen at {}: is the address this host's, and free?", tls.listen)
            })?;
        Ok(Self { listener, acceptor })
    }
}

fn config(tls: &Tls) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.client_ca)? {
        let place = tls.client_ca.display();
        roots.add(certificate).with_context(|| format!("{place}: this signs no certificates"))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .context("clients cannot be told apart")?;
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?)
        .with_context(|| format!("{}: there is no private key in it (PEM)", tls.key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .context("no TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&tls.certificate)?, key)
        .with_context(|| {
            format!("{} and {} do not belong together", tls.certificate.display(), tls.key.display())
        })?;
    // A session that is resumed is not verified again, so a certificate that has run out would go on for ever.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.with_context(|| format!("{}: this is no PEM", path.display()))?;
    ensure!(!found.is_empty(), "{}: there is no certificate in it (PEM)", path.display());
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let place = path.display();
    let len = std::fs::metadata(path).with_context(|| format!("{place}: is it there?"))?.len();
    if len > FILE_BYTES_MAX {
        bail!("{place}: with {len} bytes this is no certificate or key");
    }
    std::fs::read(path).with_context(|| format!("{place}: may the agent's user read it?"))
}
