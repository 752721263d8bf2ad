//! Two hosts of one authority on this machine, between which guests move with their ssds (`godwit migrate --vm`).

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, MORE, Ssd};
use crate::vm::Vm;

const PATIENCE: Duration = Duration::from_secs(300);
/// The link to a QEMU's QMP socket.
const QEMU: &str = "qemu.qmp";

/// A daemon, and its folder.
pub struct Host {
    /// It serves the ssds, or waits for them.
    pub daemon: Daemon,
    /// Its files.
    pub folder: TempDir,
    /// Where other hosts bring ssds to.
    pub address: String,
}

/// Who signs hosts, by `godwit tls`.
pub struct Authority {
    godwit: PathBuf,
    pki: TempDir,
}

impl Authority {
    /// A new one, made by this `godwit`.
    pub fn new(godwit: &Path) -> Result<Authority> {
        let pki = TempDir::with_prefix("pki-").context("create a folder for certificates")?;
        let authority = Authority { godwit: godwit.to_owned(), pki };
        authority.tls(&["init"])?;
        Ok(authority)
    }

    fn tls(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.godwit);
        let said = command.arg("tls").args(words).arg("--folder").arg(self.pki.path()).output();
        let said = said.context("godwit tls")?;
        ensure!(said.status.success(), "godwit tls {words:?}: {}", String::from_utf8_lossy(&said.stderr));
        Ok(())
    }

    /// The folder of a host that is reached at this address: its certificate, and the part of its daemon's configuration that is of migrations.
    pub fn host(&self, name: &str, address: SocketAddr) -> Result<TempDir> {
        self.tls(&["host", name, &address.ip().to_string()])?;
        let folder = TempDir::with_prefix("host-").context("create a folder for a host")?;
        for file in ["ca.pem", &format!("{name}.pem"), &format!("{name}.key")] {
            fs::copy(self.pki.path().join(file), folder.path().join(file))
                .with_context(|| format!("copy {file}"))?;
        }
        let at = folder.path().display();
        let section = format!(
            "[migration]\nlisten = \"{address}\"\ncertificate = \"{at}/{name}.pem\"\nkey = \"{at}/{name}.key\"\nauthority = \"{at}/ca.pem\"\n"
        );
        fs::write(folder.path().join(MORE), section).context("write a configuration")?;
        Ok(folder)
    }
}

impl Host {
    /// Two of one authority, of this `godwitd`; the ssds are the first's.
    pub fn two(binary: &Path, ssds: &[Ssd]) -> Result<[Host; 2]> {
        // Both are bound before either is given up.
        let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let addresses = [ports[0].local_addr()?, ports[1].local_addr()?];
        drop(ports);
        Self::two_at(binary, ssds, addresses, |_, start| start())
    }

    /// The same at these addresses, where `within` starts the daemon of host 0 or 1.
    pub fn two_at(
        binary: &Path,
        ssds: &[Ssd],
        addresses: [SocketAddr; 2],
        within: impl Fn(usize, &(dyn Fn() -> Result<Daemon> + Sync)) -> Result<Daemon>,
    ) -> Result<[Host; 2]> {
        let authority = Authority::new(&binary.with_file_name("godwit"))?;
        let mut hosts = Vec::new();
        for (number, (name, address)) in ["a", "b"].into_iter().zip(addresses).enumerate() {
            let folder = authority.host(name, address)?;
            let its = |ssd: &Ssd| {
                let ssd = ssd.clone().with_guest_at(QEMU);
                if name == "b" { ssd.incoming() } else { ssd }
            };
            let ssds: Vec<Ssd> = ssds.iter().map(its).collect();
            let daemon = within(number, &|| Daemon::start_binary(binary, folder.path(), &ssds))?;
            hosts.push(Host { daemon, folder, address: address.to_string() });
        }
        <[Host; 2]>::try_from(hosts).map_err(|_| anyhow!("two hosts"))
    }

    /// The migrations that this host knows of, as `godwit migration list --json` has them.
    pub fn migrations(&self) -> Result<Vec<Value>> {
        let list = self.daemon.tool(&["migration", "list", "--json"])?;
        serde_json::from_str(&list).context("a list of migrations")
    }

    /// The socket by which this host's daemon drives a guest's QEMU.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join(QEMU)
    }

    /// The guest's QEMU is the one that this host's daemon drives.
    pub fn has(&self, vm: &Vm) -> Result<()> {
        let _ = fs::remove_file(self.qmp());
        symlink(vm.mover_socket(), self.qmp()).context("link a QMP socket")
    }

    /// Moves the guest from here; what `godwit migrate` said. An engine that has just begun, here or there, is waited for.
    pub fn migrate(&self, to: &Host, more: &[&str]) -> Result<String> {
        let qmp = self.qmp();
        let words = ["migrate", "--vm", qmp.to_str().context("a path")?, "--to", &to.address];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.daemon.tool(&[&words[..], more].concat());
            // None of these is said of one that is under way.
            let early = ["does not serve yet", "has just begun", "cannot speak to"];
            let too_early = |why: &str| early.iter().any(|word| why.contains(word));
            match said {
                Err(error) if too_early(&error.to_string()) && Instant::now() < deadline => {}
                said => return said,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Until the host's migrations are so.
    pub fn until(&self, is: impl Fn(&[Value]) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // An engine that has just begun asks to be asked again.
            let list = self.migrations();
            if list.as_ref().is_ok_and(|list| is(list)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{list:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Until none of the host's migrations is under way.
    pub fn until_over(&self) -> Result<()> {
        self.until(|list| list.iter().all(|migration| migration["over"] == true))
    }
}
