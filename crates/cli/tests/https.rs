//! `godwit --agent https://...`: a certificate for each side, and nothing said to whom it does not know.
#![expect(clippy::unwrap_used, reason = "tests")]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

type Issuer = CertifiedIssuer<'static, KeyPair>;

const FLAVORS: &str =
    r#"{"items":[{"name":"local-1500","size_bytes":1497843302400,"limits":{"weight":300}}],"version":4}"#;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(by: &Issuer, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, by).unwrap(), key)
}

/// An agent's double: one connection, one answer. Returns its port and, at its end, what it was asked.
fn agent(server: &Issuer, clients: &Issuer) -> (u16, std::thread::JoinHandle<String>) {
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(clients.der().to_vec())).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let (certificate, key) = signed(server, "localhost");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
        let mut asked = Vec::new();
        let mut some = [0; 4096];
        while !asked.ends_with(b"\r\n\r\n") {
            match stream.read(&mut some) {
                Ok(0) | Err(_) => return String::new(),
                Ok(len) => asked.extend_from_slice(&some[..len]),
            }
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{FLAVORS}",
            FLAVORS.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
        stream.flush().unwrap();
        String::from_utf8(asked).unwrap()
    };
    (port, std::thread::spawn(serve))
}

fn put(folder: &Path, name: &str, text: String) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// `godwit flavor list`, as one with this certificate who knows this authority.
fn godwit(port: u16, shows: &Issuer, trusts: &Issuer) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = signed(shows, "operator");
    Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["flavor", "list", "-o", "name", "--agent", &format!("https://localhost:{port}")])
        .arg("--cert")
        .arg(put(folder.path(), "me.pem", certificate.pem()))
        .arg("--key")
        .arg(put(folder.path(), "me.key", key.serialize_pem()))
        .arg("--ca")
        .arg(put(folder.path(), "ca.pem", trusts.pem()))
        .output()
        .unwrap()
}

#[test]
fn an_agent_is_asked_over_tls_by_a_certificate() {
    let (server, clients) = (authority(), authority());
    let (port, asked) = agent(&server, &clients);
    let output = godwit(port, &clients, &server);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "local-1500\n", "{output:?}");
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("GET /api/v1/flavors HTTP/1.1"), "{asked}");
    assert!(asked.contains(&format!("host: localhost:{port}")), "{asked}");
}

#[test]
fn nothing_is_said_to_an_agent_of_another_authority_and_a_stranger_hears_why_he_is_refused() {
    let (server, clients, stranger) = (authority(), authority(), authority());
    let (port, asked) = agent(&server, &clients);
    let output = godwit(port, &clients, &stranger);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not believed") && said.contains("--ca"), "{said}");
    assert_eq!(asked.join().unwrap(), "", "no request was sent");
    let (port, asked) = agent(&server, &clients);
    let output = godwit(port, &stranger, &server);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(asked.join().unwrap(), "", "no request was heard");
}

#[test]
fn https_needs_its_files_and_http_is_refused() {
    for (agent, expected) in
        [("https://localhost", "--cert, --key and --ca"), ("http://localhost", "https only")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args(["flavor", "list", "--agent", agent])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{said}");
    }
}
