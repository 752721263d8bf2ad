//! Two hosts of one authority, whose daemons move ssds to one another.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Their certificates, and where they listen. The files go with it.
pub struct Hosts {
    folder: tempfile::TempDir,
    /// `[migration]` of each one's configuration.
    pub sections: [String; 2],
    /// Where each one listens for the other's ssds.
    pub addresses: [String; 2],
}

impl Hosts {
    /// Hosts that nobody has used yet.
    ///
    /// # Panics
    /// No folder, port or certificate is to be had.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes files")]
    pub fn new() -> Self {
        Self::make().expect("a folder, two ports and certificates")
    }

    fn make() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key)?.pem())?;
        let authority = Issuer::new(params, key);
        // Both are bound before either is given up.
        let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [one, other] = ports.each_ref().map(TcpListener::local_addr);
        let addresses = [one?.to_string(), other?.to_string()];
        let section = |host: usize| section(&files(folder.path(), host), &authority, &addresses[host]);
        let sections = [section(0)?, section(1)?];
        Ok(Self { folder, sections, addresses })
    }

    /// What a host shows others and believes: its certificate, the key of that, and who signed both hosts' certificates.
    #[must_use]
    pub fn files(&self, host: usize) -> [PathBuf; 3] {
        files(self.folder.path(), host)
    }
}

fn files(folder: &Path, host: usize) -> [PathBuf; 3] {
    [format!("host-{host}.pem"), format!("host-{host}.key"), "ca.pem".to_owned()]
        .map(|name| folder.join(name))
}

fn section(
    files: &[PathBuf; 3],
    authority: &Issuer<'static, KeyPair>,
    address: &str,
) -> anyhow::Result<String> {
    let [certificate, key, ca] = files;
    let its_key = KeyPair::generate()?;
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(certificate, params.signed_by(&its_key, authority)?.pem())?;
    std::fs::write(key, its_key.serialize_pem())?;
    Ok(format!(
        "[migration]\nlisten = \"{address}\"\ncertificate = \"{}\"\nkey = \"{}\"\nauthority = \"{}\"\n",
        certificate.display(),
        key.display(),
        ca.display()
    ))
}
