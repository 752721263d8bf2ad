//! Crate `hypervisor` against real QEMUs: what it is told of a guest's devices, and of a migration that is given up.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hypervisor::{DestinationNow, DestinationWord, Interface, PciAddress, SourceNow, SourceWord};
use tempfile::TempDir;
use vmtest::daemon::{Backend, Daemon, Ssd};
use vmtest::image::Image;
use vmtest::migration::Migration;
use vmtest::vm::{Vm, VmBuilder};

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with an NVMe ssd and a disk, and its folder.
struct Host {
    daemon: Daemon,
    folder: TempDir,
}

impl Host {
    fn start() -> Result<Host> {
        let folder = TempDir::with_prefix("host-").context("create a folder for a host")?;
        let ssds = [Ssd::new("a", 64).on(Backend::Ram), Ssd::new("b", 64).on(Backend::Ram).as_disk()];
        Ok(Host { daemon: Daemon::start(folder.path(), &ssds)?, folder })
    }

    fn guest(&self) -> VmBuilder {
        let builder = Vm::builder().root_in_memory().vfio_user("a", &self.daemon.socket("a"));
        builder.vhost_user("b", &self.daemon.socket("b"))
    }
}

#[test]
fn a_migration_that_is_given_up_leaves_the_guest_where_it_is() -> Result<()> {
    let image = Image::ensure()?;
    let (here, there) = (Host::start()?, Host::start()?);
    let mut source = here.guest().boot(&image)?;
    let destination = there.guest().await_migration(&image)?;

    let devices = source.as_source()?.devices()?;
    let told = |at: usize| (devices[at].interface, devices[at].socket.clone(), devices[at].address);
    ensure!(devices.len() == 2, "{devices:?}");
    let address = |bus| Some(PciAddress { bus, slot: 0, function: 0 });
    ensure!(told(0) == (Interface::VfioUser, here.folder.path().join("a.sock"), address(1)), "{devices:?}");
    ensure!(
        told(1) == (Interface::VhostUserBlk, here.folder.path().join("b.sock"), address(2)),
        "{devices:?}"
    );
    ensure!(devices.iter().all(|device| device.problem.is_none()), "{devices:?}");
    let waiting = destination.as_destination()?.devices()?;
    ensure!(waiting[0].id.as_deref() == Some("a") && waiting[0].address.is_none(), "{waiting:?}");
    let refused = source.as_destination()?.check().err().context("a guest that runs waits for none")?;
    ensure!(refused.to_string().contains("-S -incoming defer"), "{refused}");

    let mut migration = Migration::begin(&source, &destination)?;
    ensure!(migration.source.check().is_err(), "a second migration");
    migration.hurry()?;
    let progress = migration.source.progress()?;
    ensure!(progress.transferred_bytes > 0 && progress.total_bytes > 768 << 20, "{progress:?}");
    drop(migration);
    // Whoever moved it is gone, and another looks.
    let mut mover = source.as_source()?;
    let mut waits = destination.as_destination()?;
    ensure!(mover.now()? == SourceNow::PreSwitchover, "{:?}", mover.now()?);
    ensure!(waits.now()? == DestinationNow::Coming, "{:?}", waits.now()?);
    ensure!(waits.run().is_err(), "a guest that has not come");
    mover.cancel()?;
    let mut words = Vec::new();
    while !words.contains(&SourceWord::Resumed) || !words.contains(&SourceWord::Cancelled) {
        words.push(mover.next(PATIENCE)?.context("the source says nothing")?);
    }
    ensure!(mover.now()? == SourceNow::Runs, "{:?}", mover.now()?);
    let failed = loop {
        match waits.next(PATIENCE)?.context("the destination says nothing")? {
            DestinationWord::Failed { why } => break why,
            other => ensure!(other == DestinationWord::Coming, "{other:?}"),
        }
    };
    ensure!(waits.now()? == DestinationNow::Failed, "{:?}, {failed}", waits.now()?);
    let refused = waits.check().err().context("it takes no second guest")?;
    ensure!(refused.to_string().contains("start it anew"), "{refused}");

    // To try again on the same source: with nobody at the other end it fails, and the guest runs on.
    let (from, to) = UnixStream::pair().context("a socket for the memory")?;
    drop(to);
    mover.begin(from.into(), &hypervisor::Terms { bandwidth_bytes_s: 0, downtime_limit_ms: 300 })?;
    let why = loop {
        match mover.next(PATIENCE)?.context("the source says nothing")? {
            SourceWord::Failed { why } => break why,
            _ => continue,
        }
    };
    ensure!(!why.contains("does not say"), "{why}");
    ensure!(mover.now()? == SourceNow::Runs, "{:?}", mover.now()?);
    source.run_ok("dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 2>&1")?;
    waits.quit()?;
    Ok(())
}
