//! Two hosts of one authority on this machine, between which an ssd moves.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, MORE, Ssd, tool};

/// A daemon, its folder, and where other hosts bring ssds to.
pub struct Host {
    /// See the module.
    pub daemon: Daemon,
    /// With its configuration, its control socket and its files.
    pub folder: TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

/// The ssd is the first's, on a file that begins with so many MiB of noise (zeros go by in no time), and comes to the second.
pub fn two_hosts(ssd: &Ssd, noise_mib: u64) -> Result<[Host; 2]> {
    let pki = TempDir::with_prefix("pki-").context("create a folder for certificates")?;
    let tls = |words: &[&str]| -> Result<()> {
        let mut command = Command::new(tool()?);
        let said = command.arg("tls").args(words).arg("--folder").arg(pki.path()).output();
        let said = said.context("godwit tls")?;
        ensure!(said.status.success(), "godwit tls {words:?}: {}", String::from_utf8_lossy(&said.stderr));
        Ok(())
    };
    tls(&["init"])?;
    tls(&["host", "both", "127.0.0.1"])?;
    let host = |ssd: Ssd| -> Result<Host> {
        let folder = TempDir::with_prefix("host-").context("create a folder for a host")?;
        for file in ["both.pem", "both.key", "ca.pem"] {
            fs::copy(pki.path().join(file), folder.path().join(file))
                .with_context(|| format!("copy {file}"))?;
        }
        let at = folder.path().display();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let section = format!(
            "[migration]\nlisten = \"{address}\"\ncertificate = \"{at}/both.pem\"\nkey = \"{at}/both.key\"\nauthority = \"{at}/ca.pem\"\n"
        );
        fs::write(folder.path().join(MORE), section).context("write a configuration")?;
        if !ssd.incoming {
            let mut file = File::create(folder.path().join(format!("{}.img", ssd.name)))?;
            io::copy(&mut File::open("/dev/urandom")?.take(noise_mib << 20), &mut file).context("noise")?;
            file.set_len(ssd.size_mib << 20)?;
        }
        Ok(Host { daemon: Daemon::start(folder.path(), &[ssd])?, folder, address })
    };
    Ok([host(ssd.clone())?, host(ssd.clone().incoming())?])
}
