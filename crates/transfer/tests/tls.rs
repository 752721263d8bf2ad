//! Two hosts with certificates, and others without the right ones.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use transfer::frame::{FEATURES, Frame, Hello, Limits, Plan};
use transfer::receive::Receiver;
use transfer::source::{Run, Sink};
use transfer::tls::{Error, Files, Identity, Protocol};
use transfer::wire::{Fault, Wire};

type Authority = Issuer<'static, KeyPair>;

fn authority(folder: &Path, name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(folder.join(name), certificate.pem()).expect("written");
    Issuer::new(params, key)
}

fn host(folder: &Path, name: &str, signed_by: &Authority, trusts: &str) -> Files {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, signed_by).expect("a certificate");
    let files = Files {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        authority: folder.join(trusts),
    };
    std::fs::write(&files.certificate, certificate.pem()).expect("written");
    std::fs::write(&files.key, key.serialize_pem()).expect("written");
    files
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (theirs, _) = listener.accept().expect("connected");
    for socket in [&ours, &theirs] {
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        socket.set_write_timeout(Some(Duration::from_secs(60))).expect("a socket");
    }
    (ours, theirs)
}

struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _: Run, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: Run, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn two_hosts_of_one_authority_speak_and_others_are_not_heard() {
    let folder = TempDir::new().expect("a folder");
    let (ours, others) = (authority(folder.path(), "ca.pem"), authority(folder.path(), "other.pem"));
    let read = |name, signed_by, trusts| {
        Identity::read(&host(folder.path(), name, signed_by, trusts)).expect("sound")
    };
    let (a, b) = (read("host-a", &ours, "ca.pem"), read("host-b", &ours, "ca.pem"));
    let stranger = read("host-c", &others, "ca.pem");
    let dupe = read("host-d", &ours, "other.pem");
    // Who asks, whom, by which name; whether pages can flow.
    for (who, whom, name, good) in [
        (&a, &b, "host-b", true),
        (&b, &a, "host-a", true),
        (&a, &b, "host-c", false),
        (&stranger, &b, "host-b", false),
        (&a, &stranger, "host-c", false),
        (&dupe, &b, "host-b", false),
    ] {
        let (near, far) = sockets();
        let served = std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let receiver = Receiver::new([1; 16], Limits::default(), &Nowhere, &|_| Ok(()));
                receiver.serve(whom.accept(far)?.0)
            });
            // In TLS 1.3 who asks learns with its first read that it was not accepted.
            let done = who.connect(name, Protocol::Pages, near).map_err(Fault::from).and_then(|stream| {
                let mut wire = Wire::sender(stream);
                wire.send(&Frame::Hello(hello()))?;
                wire.flush()?;
                wire.receive()?;
                let (name, profile) = (String::new(), String::new());
                wire.send(&Frame::Plan(Plan { pages: 1, name, profile, settings: Vec::new() }))?;
                wire.flush()
            });
            assert_eq!(done.is_ok(), good, "{name}: {done:?}");
            served.join().expect("no panic").expect_err("no copy was made")
        });
        // A connection that ends without a word of TLS's own may have been cut by anybody.
        assert_eq!(matches!(served, Fault::Torn | Fault::Closed), good, "{name}: {served:?}");
    }
}

fn hello() -> Hello {
    let limits = Limits::default();
    let (version_min, version_max, features, migration) = (1, 1, FEATURES, [1; 16]);
    Hello { version_min, version_max, features, migration, stream: 0, streams: 1, attempt: 1, limits }
}

#[test]
fn who_speaks_no_tls_is_not_heard() {
    let folder = TempDir::new().expect("a folder");
    let ca = authority(folder.path(), "ca.pem");
    let host = Identity::read(&host(folder.path(), "host", &ca, "ca.pem")).expect("sound");
    let (mut near, far) = sockets();
    near.write_all(&[0x47; 600]).expect("room");
    let refused = host.accept(far).map(|_| ());
    assert!(refused.is_err(), "{refused:?}");
    let _ = near.read(&mut [0; 16]);
}

#[test]
fn files_that_are_not_what_they_should_be_are_told_by_name() {
    let folder = TempDir::new().expect("a folder");
    let ca = authority(folder.path(), "ca.pem");
    let (files, other) =
        (host(folder.path(), "host", &ca, "ca.pem"), host(folder.path(), "two", &ca, "ca.pem"));
    let told = |files: Files, what: &str| {
        let error = Identity::read(&files).expect_err("not sound");
        assert!(error.to_string().contains(what), "{error}");
        error
    };
    let absent = Files { key: folder.path().join("absent"), ..files.clone() };
    assert!(matches!(told(absent, "absent"), Error::File { .. }));
    told(Files { key: files.certificate.clone(), ..files.clone() }, "no private key");
    told(Files { certificate: files.key.clone(), ..files.clone() }, "no certificate");
    let mixed = told(Files { key: other.key, ..files.clone() }, "host.pem");
    assert!(matches!(mixed, Error::Rejected { .. }), "{mixed:?}");
    let large = folder.path().join("large");
    std::fs::write(&large, vec![b'x'; 2 << 20]).expect("written");
    told(Files { authority: large, ..files }, "too large");
}
