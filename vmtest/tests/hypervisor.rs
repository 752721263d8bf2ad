//! Crate `hypervisor` against real QEMUs: what it is told of a guest's devices, a migration that is given up, and the PCI state of an NVMe device that comes to
//! another QEMU. The controller's own state is not moved here, so the guest leaves its disk alone afterwards.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hypervisor::{
    CONFIG_BYTES, DestinationNow, DestinationWord, Device, Interface, PciAddress, PciState, Qmp, Server,
    SourceNow, SourceWord, Terms,
};
use serde_json::{Value, json};
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
    let told = |at: usize| (devices[at].interface, devices[at].server.clone(), devices[at].address);
    ensure!(devices.len() == 2, "{devices:?}");
    let socket = |name: &str| Server::Socket(here.folder.path().join(name));
    let address = |bus| Some(PciAddress { bus, slot: 0, function: 0 });
    ensure!(told(0) == (Interface::VfioUser, socket("a.sock"), address(1)), "{devices:?}");
    ensure!(told(1) == (Interface::VhostUserBlk, socket("b.sock"), address(2)), "{devices:?}");
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
    mover.begin(from.into(), &Terms { bandwidth_bytes_s: 0, downtime_limit_ms: 300 })?;
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

#[test]
fn a_guest_that_has_gone_stands_still_and_can_be_taken_back() -> Result<()> {
    let image = Image::ensure()?;
    let (here, there) = (Host::start()?, Host::start()?);
    let mut source = here.guest().boot(&image)?;
    // Without -S this QEMU would run the guest as soon as it has come.
    let destination = there.guest().arguments(["-incoming", "defer"]).start(&image)?;
    let mut migration = Migration::begin(&source, &destination)?;
    migration.hurry()?;
    migration.switch_over()?;
    let Migration { source: mut from, destination: mut to } = migration;
    ensure!(to.now()? == DestinationNow::Completed, "{:?}", to.now()?);
    ensure!(from.now()? == SourceNow::Completed, "{:?}", from.now()?);
    let second = Qmp::connect(&source.mover_socket(), Duration::from_millis(300)).err();
    let second = second.context("two clients of one socket")?.to_string();
    ensure!(second.contains("is another client connected"), "{second}");

    to.quit()?;
    from.run()?;
    ensure!(from.now()? == SourceNow::Runs, "{:?}", from.now()?);
    from.check()?;
    let io = "for d in vda nvme0n1; do dd if=/dev/urandom of=/dev/$d bs=1M count=4 oflag=direct 2>&1 || exit; done";
    source.run_ok(
        "modprobe nvme; for i in $(seq 600); do [ -b /dev/nvme0n1 ] && exit; sleep 0.1; done; exit 1",
    )?;
    source.run_ok(io)?;
    Ok(())
}

/// The NVMe device, as QEMU itself lists it: regions, where they are decoded, and the interrupt line.
fn listed(qmp: &mut Qmp) -> Result<Value> {
    fn find(devices: &Value) -> Option<&Value> {
        let devices = devices.as_array()?;
        let here = devices.iter().find(|device| device["qdev_id"] == "a");
        here.or_else(|| devices.iter().find_map(|device| find(&device["pci_bridge"]["devices"])))
    }
    let told = qmp.execute("query-pci", json!({}))?;
    find(&told[0]["devices"]).cloned().context("QEMU lists no device a")
}

/// What the keeper holds for its clients.
fn eventfds(daemon: &Daemon) -> Result<usize> {
    let folder = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).context("the keeper's descriptors")?;
    let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    Ok(folder.filter_map(target).filter(|target| target == Path::new("anon_inode:[eventfd]")).count())
}

/// What `od -v -A x -t x4` printed of configuration space.
fn config_of(dump: &str) -> Result<[u8; CONFIG_BYTES]> {
    let words = dump.lines().flat_map(|line| line.split_whitespace().skip(1));
    let bytes: Result<Vec<[u8; 4]>, _> =
        words.map(|word| u32::from_str_radix(word, 16).map(u32::to_le_bytes)).collect();
    let bytes = bytes.with_context(|| format!("no dump: {dump}"))?.concat();
    Ok(*bytes.first_chunk().with_context(|| format!("not all of configuration space: {dump}"))?)
}

/// Moves a guest that has an NVMe disk; the state that came along, and the time that it took to restore it.
fn move_pci(guest: impl Fn(&Host) -> VmBuilder, config_file: &str) -> Result<(PciState, Duration)> {
    let image = Image::ensure()?;
    let (here, there) = (Host::start()?, Host::start()?);
    let mut source = guest(&here).boot(&image)?;
    source.run_ok(
        "modprobe nvme; for i in $(seq 600); do [ -b /dev/nvme0n1 ] && exit; sleep 0.1; done; exit 1",
    )?;
    source.run_ok("for cpu in 1 2; do taskset $cpu dd if=/dev/nvme0n1 of=/dev/null bs=64k count=8 iflag=direct 2>&1; done")?;
    let config = source.run_ok(&format!("od -v -A x -t x4 {config_file}"))?;
    let mut destination = guest(&there).await_migration(&image)?;
    let mut migration = Migration::begin(&source, &destination)?;
    let device = nvme(migration.source.devices()?)?;
    let seen = config_of(&config)?;
    let refused = migration.source.vectors(&device, &seen).err().context("a guest that runs")?;
    ensure!(refused.to_string().contains("the guest runs"), "{refused}");
    migration.hurry()?;
    let begun = Instant::now();
    let state = PciState { config: seen, vectors: migration.source.vectors(&device, &seen)? };
    eprintln!("read in {:?}", begun.elapsed());
    let wanted = listed(migration.source.qmp())?;
    migration.switch_over()?;

    let device = nvme(migration.destination.devices()?)?;
    let before = eventfds(&there.daemon)?;
    let refused =
        migration.destination.vectors(&device, &seen).err().context("a device that is not set up")?;
    ensure!(refused.to_string().contains("base address"), "QEMU has brought the device along: {refused}");
    let mut other = state.clone();
    other.config[0] ^= 1;
    let refused =
        migration.destination.restore_pci(&[(&device, other)]).err().context("another device's state")?;
    ensure!(refused.to_string().contains("not the one"), "{refused}");
    let mut short = state.clone();
    short.vectors.pop();
    ensure!(migration.destination.restore_pci(&[(&device, short)]).is_err(), "a table that is too short");
    ensure!(listed(migration.destination.qmp())? != wanted, "what was refused was written");
    let begun = Instant::now();
    migration.destination.prepare_pci()?;
    migration.destination.restore_pci(&[(&device, state.clone())])?;
    let took = begun.elapsed();
    ensure!(
        migration.destination.vectors(&device, &seen)? == state.vectors,
        "another table than was restored"
    );
    ensure!(
        listed(migration.destination.qmp())? == wanted,
        "QEMU lists {:?}",
        listed(migration.destination.qmp())?
    );
    let unmasked = state.vectors.iter().filter(|vector| !vector.masked).count();
    // That of the pin goes when MSI-X comes.
    let (had, has) = (before - 1, eventfds(&there.daemon)?);
    ensure!(unmasked >= 2 && has == had + unmasked, "{has} eventfds, {had} and {unmasked} vectors");
    migration.destination.restore_pci(&[(&device, state.clone())]).context("once more")?;
    migration.destination.run()?;
    let came = destination.run_ok(&format!("od -v -A x -t x4 {config_file}"))?;
    ensure!(came == config, "the guest sees\n{came}\nand had\n{config}");
    Ok((state, took))
}

fn nvme(devices: Vec<Device>) -> Result<Device> {
    devices.into_iter().find(|device| device.interface == Interface::VfioUser).context("no vfio-user device")
}

#[test]
fn an_nvme_device_behind_a_port_has_its_addresses_and_its_interrupts_at_the_destination() -> Result<()> {
    let (state, took) = move_pci(Host::guest, "/sys/bus/pci/devices/0000:01:00.0/config")?;
    eprintln!("{} vectors, {took:?}", state.vectors.len());
    ensure!(state.vectors.len() > 2 && state.vectors.iter().any(|vector| vector.masked), "{state:?}");
    Ok(())
}

#[test]
fn an_nvme_device_on_an_old_machines_bus_has_them_too() -> Result<()> {
    let guest = |host: &Host| {
        let socket = json!({ "type": "unix", "path": host.daemon.socket("a") });
        let device = json!({ "driver": "vfio-user-pci", "id": "a", "addr": "1e.0", "socket": socket });
        Vm::builder().root_in_memory().arguments(["-machine", "pc", "-device", &device.to_string()])
    };
    let (_, took) = move_pci(guest, "/sys/bus/pci/devices/0000:00:1e.0/config")?;
    eprintln!("{took:?}");
    Ok(())
}
