//! TLS 1.3 between two hosts, for blocking sockets: both show a certificate that the same authority signed, and nobody else is heard.
//!
//! By rustls with AWS-LC. A session is never resumed: what is resumed is not verified again, so a certificate that has run out would go on for ever.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
    SideData, StreamOwned, version,
};

/// Largest file of certificates or a key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is spoken inside, named while the connection is made: a certificate for something else of this host's cannot be used here by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// [Frames](crate::frame) of one stream.
    Pages,
    /// What the two hosts say about the migration.
    Control,
    /// A guest's memory, as its hypervisors say it to each other.
    Memory,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Pages, Self::Control, Self::Memory];

    fn name(self) -> &'static [u8] {
        match self {
            Self::Pages => b"godwit-migration/1",
            Self::Control => b"godwit-migration-control/1",
            Self::Memory => b"godwit-migration-memory/1",
        }
    }
}

/// A host's certificate, its key, and who signs those of the others, all PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority.
    pub authority: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}; is it there, and may this user read it?", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Certificate and key do not belong together, or nobody can be verified with them.
    #[error("{}: {source}", path.display())]
    Rejected {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The other host's name is none.
    #[error("{0} is no name or address of a host")]
    Name(String),
}

/// A connection of the side that sends pages.
pub type Outgoing = StreamOwned<ClientConnection, TcpStream>;
/// A connection of the side that receives them.
pub type Incoming = StreamOwned<ServerConnection, TcpStream>;

/// A connection, whoever began it.
pub trait Stream: Read + Write + Send + 'static {
    /// What is under it.
    fn socket(&self) -> &TcpStream;

    /// Says that nothing more will be said here, which the other side can tell from a connection that broke.
    ///
    /// # Errors
    /// The connection's.
    fn end(&mut self) -> io::Result<()>;
}

impl<C, S> Stream for StreamOwned<C, TcpStream>
where
    C: DerefMut<Target = ConnectionCommon<S>> + Send + 'static,
    S: SideData + 'static,
{
    fn socket(&self) -> &TcpStream {
        &self.sock
    }

    fn end(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.shutdown(Shutdown::Write)
    }
}

/// How a host takes part: both ways, since each can send and receive. Read once.
#[derive(Clone, Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    /// In the order of [`Protocol::ALL`].
    clients: [Arc<ClientConfig>; 3],
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(files: &Files) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let rejected = |source| Error::Rejected { path: files.certificate.clone(), source };
        let chain = certificates(&files.certificate)?;
        let key = || {
            PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|_| Error::Content {
                path: files.key.clone(),
                what: "there is no private key in it (PEM)",
            })
        };
        let unfit = || Error::Content { path: files.authority.clone(), what: "this signs no certificates" };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.authority)? {
            roots.add(certificate).map_err(|_| unfit())?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|_| unfit())?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(rejected)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .map_err(rejected)?;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.alpn_protocols = Protocol::ALL.map(|protocol| protocol.name().to_vec()).into();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(rejected)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .map_err(rejected)?;
        client.resumption = Resumption::disabled();
        let client = |protocol: Protocol| {
            let mut client = client.clone();
            client.alpn_protocols = vec![protocol.name().to_vec()];
            Arc::new(client)
        };
        Ok(Self { server: Arc::new(server), clients: Protocol::ALL.map(client) })
    }

    /// Speaks first to a host of this name, which its certificate must have. The socket has timeouts.
    ///
    /// # Errors
    /// [`Error::Name`], or of the connection: who is there is not who should be.
    pub fn connect(&self, host: &str, protocol: Protocol, socket: TcpStream) -> io::Result<Outgoing> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, Error::Name(host.to_owned())))?;
        let [pages, control, memory] = &self.clients;
        let config = match protocol {
            Protocol::Pages => pages,
            Protocol::Control => control,
            Protocol::Memory => memory,
        };
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        agreed(stream.conn.alpn_protocol())?;
        Ok(stream)
    }

    /// Answers who connected, and says what is to be spoken. The socket has timeouts.
    ///
    /// # Errors
    /// Of the connection: who is there has no certificate of our authority's.
    pub fn accept(&self, socket: TcpStream) -> io::Result<(Incoming, Protocol)> {
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let protocol = agreed(stream.conn.alpn_protocol())?;
        Ok((stream, protocol))
    }
}

/// Who names no protocol at all is not refused by TLS itself.
fn agreed(name: Option<&[u8]>) -> io::Result<Protocol> {
    let agreed = Protocol::ALL.into_iter().find(|protocol| Some(protocol.name()) == name);
    agreed.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the other side does not speak the migration protocol")
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |what| Error::Content { path: path.to_owned(), what };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|_| wrong("this is no PEM"))?;
    if found.is_empty() { Err(wrong("there is no certificate in it (PEM)")) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let what = "this is too large for a certificate or key";
        return Err(Error::Content { path: path.to_owned(), what });
    }
    Ok(bytes)
}
