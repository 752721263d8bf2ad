//! The agent over TCP: who has no certificate of the client CA is not heard.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::net::{SocketAddr, TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// After this time the agent gives up those who say nothing.
const GIVEN_UP: Duration = Duration::from_secs(10);

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of `name` and its key.
fn signed(by: &Issuer, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, by).unwrap(), key)
}

/// What an agent needs to serve at a port of its own.
fn arguments(folder: &Path, server: &Issuer, clients: &Issuer) -> (Vec<String>, SocketAddr) {
    let (certificate, key) = signed(server, "localhost");
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // Free a moment ago: the kernel gives the same port again only when all others were given.
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = [
        "--listen".to_owned(),
        at.to_string(),
        "--certificate".to_owned(),
        put("agent.pem", certificate.pem()),
        "--key".to_owned(),
        put("agent.key", key.serialize_pem()),
        "--client-ca".to_owned(),
        put("clients.pem", clients.pem()),
    ];
    (arguments.to_vec(), at)
}

/// Asks for the host, as one with this certificate, or with none.
fn ask(
    at: SocketAddr,
    trusts: &Issuer,
    shows: Option<(rcgen::Certificate, KeyPair)>,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusts.der().to_vec())).unwrap();
    let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shows {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(at)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(b"GET /api/v1/flavors HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn over_tcp_only_those_are_heard_whom_the_client_ca_signed() {
    let folder = tempfile::tempdir().unwrap();
    let _served = daemon(&folder.path().join("control.sock"));
    let (server, clients, stranger) = (authority(), authority(), authority());
    let (arguments, at) = arguments(folder.path(), &server, &clients);
    let agent = Agent::start_with(folder.path(), &arguments);
    let answer = ask(at, &server, Some(signed(&clients, "operator"))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("local-1500"), "{answer}");
    let none = ask(at, &server, None);
    assert!(none.is_err(), "{none:?}");
    let wrong = ask(at, &server, Some(signed(&stranger, "operator")));
    assert!(wrong.is_err(), "{wrong:?}");
    // The agent's own certificate is of another authority than its clients': it is none of a client.
    let own = ask(at, &server, Some(signed(&server, "operator")));
    assert!(own.is_err(), "{own:?}");
    let mistaken = ask(at, &stranger, Some(signed(&clients, "operator")));
    assert!(mistaken.is_err(), "who asks looks at the agent's certificate, too: {mistaken:?}");
    // In the clear it is nothing.
    let mut plain = TcpStream::connect(at).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    let _sent = plain.write_all(b"GET /api/v1/flavors HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut answer = Vec::new();
    let _its_end = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    assert!(ask(at, &server, Some(signed(&clients, "operator"))).is_ok(), "the others disturbed nobody");
    // Nor do those who say nothing, and whom the agent has not given up yet.
    let begun = Instant::now();
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
    assert!(ask(at, &server, Some(signed(&clients, "operator"))).is_ok());
    silent[0].set_nonblocking(true).unwrap();
    let heard = (&silent[0]).read(&mut [0]).map_err(|error| error.kind());
    let has_waited = begun.elapsed() > GIVEN_UP;
    assert!(has_waited || heard == Err(std::io::ErrorKind::WouldBlock), "it was waited for: {heard:?}");
    agent.kill();
}

#[test]
fn an_agent_with_a_certificate_that_is_not_of_its_key_does_not_start_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients) = (authority(), authority());
    let (arguments, _) = arguments(folder.path(), &server, &clients);
    std::fs::write(folder.path().join("agent.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_godwitd"))
        .args(["agent", "--state", &path("agent.db"), "--socket", &path("agent.sock")])
        .args(["--ssds", &path("ssds"), "--sockets", &path("sockets")])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("agent.key do not belong together"), "{said}");
}
