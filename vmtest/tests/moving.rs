//! Guests that move between two hosts with their disks, by `godwit migrate --vm`: their memory by QEMU's own migration, all else by the two daemons.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, MORE, Ssd, tool};
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::{Vm, VmBuilder};

const PATIENCE: Duration = Duration::from_secs(300);
/// A busy machine, where a guest has no help of the hardware.
const MAX_STUN: &str = "2s";
const KNOWN_MIB: u32 = 8;
/// The link to a QEMU's QMP socket.
const QEMU: &str = "qemu.qmp";

/// Reads known data through the page cache, which the device writes to.
const READER: &str = r"
until [ -e /run/stop ]; do
    echo 1 > /proc/sys/vm/drop_caches
    cmp -n $bytes /tmp/known $disk >> /run/bad 2>&1 || echo 'as it was read' >> /run/bad
    cmp -n $bytes /tmp/known $disk >> /run/bad 2>&1 || echo 'as it was kept' >> /run/bad
    echo >> /run/reader.rounds
done
touch /run/reader.done
";
/// Writes and verifies, past the page cache.
const WRITER: &str = "
until [ -e /run/stop ]; do
    fio --name=verify --filename=$disk --offset=48m --size=6m --rw=randrw --bs=4k --iodepth=16 --ioengine=io_uring \
        --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 > /run/fio.out 2>&1 || cat /run/fio.out >> /run/bad
    echo >> /run/writer.rounds
done
touch /run/writer.done
";
/// Memory that the guest's own processors write, and that must be as they wrote it.
const CHECKER: &str = r"
until [ -e /run/stop ]; do
    head -c 4m /dev/urandom > /run/memory
    sum=$(md5sum < /run/memory)
    for i in 1 2 3 4 5; do [ $(md5sum < /run/memory | cut -c1-32) = ${sum%% *} ] || echo 'memory' >> /run/bad; done
done
touch /run/checker.done
";

/// A daemon with a disk, and its folder.
struct Host {
    daemon: Daemon,
    folder: TempDir,
    address: String,
}

/// Two hosts of one authority; the disk is the first's.
fn two_hosts(ssd: &Ssd) -> Result<[Host; 2]> {
    let pki = TempDir::with_prefix("pki-").context("create a folder for certificates")?;
    let tls = |words: &[&str]| -> Result<()> {
        let mut command = Command::new(tool()?);
        let said =
            command.arg("tls").args(words).arg("--folder").arg(pki.path()).output().context("godwit tls")?;
        ensure!(said.status.success(), "godwit tls {words:?}: {}", String::from_utf8_lossy(&said.stderr));
        Ok(())
    };
    tls(&["init"])?;
    // Both are bound before either is given up.
    let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut hosts = Vec::new();
    for (name, port) in ["a", "b"].into_iter().zip(ports) {
        tls(&["host", name, "127.0.0.1"])?;
        let folder = TempDir::with_prefix("host-").context("create a folder for a host")?;
        for file in ["ca.pem", &format!("{name}.pem"), &format!("{name}.key")] {
            fs::copy(pki.path().join(file), folder.path().join(file))
                .with_context(|| format!("copy {file}"))?;
        }
        let (at, address) = (folder.path().display(), port.local_addr()?.to_string());
        let section = format!(
            "[migration]\nlisten = \"{address}\"\ncertificate = \"{at}/{name}.pem\"\nkey = \"{at}/{name}.key\"\nauthority = \"{at}/ca.pem\"\n"
        );
        fs::write(folder.path().join(MORE), section).context("write a configuration")?;
        drop(port);
        let ssd = ssd.clone().with_guest_at(QEMU);
        let ssd = if name == "b" { ssd.incoming() } else { ssd };
        hosts.push(Host { daemon: Daemon::start(folder.path(), &[ssd])?, folder, address });
    }
    let [a, b] = <[Host; 2]>::try_from(hosts).map_err(|_| anyhow::anyhow!("two hosts"))?;
    Ok([a, b])
}

impl Host {
    /// The socket by which this host's daemon drives a guest's QEMU.
    fn has(&self, vm: &Vm) -> Result<()> {
        let link = self.folder.path().join(QEMU);
        let _ = fs::remove_file(&link);
        symlink(vm.mover_socket(), &link).context("link a QMP socket")
    }

    /// Moves a guest from here.
    fn migrate(&self, to: &Host) -> Result<String> {
        let qmp = self.folder.path().join(QEMU);
        let qmp = qmp.to_str().context("a path")?;
        self.daemon.tool(&["migrate", "--vm", qmp, "--to", &to.address, "--max-stun", MAX_STUN])
    }
}

fn guest(host: &Host, device: impl Fn(VmBuilder, &Path) -> VmBuilder) -> VmBuilder {
    device(Vm::builder().root_in_memory(), &host.daemon.socket("a"))
}

fn begin_io(vm: &mut Vm, disk: &str) -> Result<()> {
    vm.run_ok(&format!("for i in $(seq 100); do [ -b {disk} ] && exit; sleep 0.1; done; exit 1"))?;
    vm.run_ok(&format!(
        "dd if=/dev/urandom of=/tmp/known bs=1M count={KNOWN_MIB} 2>&1 && dd if=/tmp/known of={disk} bs=1M oflag=direct 2>&1"
    ))?;
    for (name, script) in [("reader", READER), ("writer", WRITER), ("checker", CHECKER)] {
        let bytes = u64::from(KNOWN_MIB) << 20;
        vm.run_ok(&format!(
            "cat > /run/{name} <<'END'\ndisk={disk}\nbytes={bytes}\n{script}\nEND\nsetsid sh /run/{name} < /dev/null > /run/{name}.out 2>&1 &"
        ))?;
    }
    wait_rounds(vm, 1)
}

/// Until the reader and the writer have gone round so often since they began.
fn wait_rounds(vm: &mut Vm, rounds: usize) -> Result<()> {
    let script = format!(
        "for i in $(seq 400); do
            [ $(cat /run/reader.rounds 2>/dev/null | wc -l) -ge {rounds} ] && [ $(cat /run/writer.rounds 2>/dev/null | wc -l) -ge {rounds} ] && exit
            sleep 0.2
        done
        ps; cat /run/bad /run/*.out /sys/block/*/inflight; echo w > /proc/sysrq-trigger; dmesg | tail -60; exit 1"
    );
    vm.run_within(PATIENCE, &script)?.into_ok(&script).map(drop)
}

/// How often both have gone round.
fn rounds(vm: &mut Vm) -> Result<usize> {
    let count = vm.run_ok("cat /run/reader.rounds | wc -l; cat /run/writer.rounds | wc -l")?;
    let counts = count.split_whitespace().map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    counts.into_iter().max().context("no rounds")
}

fn boot_id(vm: &mut Vm) -> Result<String> {
    vm.run_ok("cat /proc/sys/kernel/random/boot_id")
}

/// A guest under I/O goes to and fro.
fn moves(ssd: &Ssd, disk: &str, times: usize, device: impl Fn(VmBuilder, &Path) -> VmBuilder) -> Result<()> {
    let image = Image::ensure()?;
    let mut hosts = two_hosts(ssd)?;
    let mut vm = guest(&hosts[0], &device).boot(&image)?;
    hosts[0].has(&vm)?;
    begin_io(&mut vm, disk)?;
    let id = boot_id(&mut vm)?;
    for _ in 0..times {
        let destination = guest(&hosts[1], &device).await_migration(&image)?;
        hosts[1].has(&destination)?;
        let said = hosts[0].migrate(&hosts[1])?;
        println!("{}", said.trim());
        vm.kill();
        vm = destination;
        let before = rounds(&mut vm)?;
        wait_rounds(&mut vm, before + 2)?;
        ensure!(boot_id(&mut vm)? == id, "another kernel runs");
        hosts.reverse();
    }
    vm.run_ok("touch /run/stop; for i in $(seq 400); do [ -e /run/reader.done ] && [ -e /run/writer.done ] && exit; sleep 0.2; done; exit 1")?;
    let bad = vm.run_ok("cat /run/bad")?;
    ensure!(bad.is_empty(), "the guest read what it should not: {bad}");
    let log = vm.kernel_log()?;
    let complaints = nvme_complaints(&log, &[]);
    ensure!(complaints.is_empty(), "the guest's kernel complains:\n{}", complaints.join("\n"));
    vm.shutdown()?;
    for host in &mut hosts {
        host.daemon.stop()?;
    }
    Ok(())
}

/// Begins to move a guest so slowly that its memory does not arrive, and returns while it is on its way.
fn begin_to_move(from: &Host, to: &Host) -> Result<()> {
    let qmp = from.folder.path().join(QEMU);
    let qmp = qmp.to_str().context("a path")?;
    let words = [
        "migrate",
        "--vm",
        qmp,
        "--to",
        &to.address,
        "--bandwidth",
        "4MiB",
        "--max-stun",
        MAX_STUN,
        "--no-wait",
    ];
    from.daemon.tool(&words)?;
    until(from, |list| list.contains("copying memory"))
}

/// Until the host's list of migrations is so.
fn until(host: &Host, is: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // An engine that has just begun asks to be asked again.
        let list = host.daemon.tool(&["migration", "list"]).unwrap_or_default();
        if is(&list) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{list}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_with_a_virtio_blk_disk_under_io_goes_to_another_host_and_comes_back() -> Result<()> {
    moves(&Ssd::new("a", 96).as_disk(), "/dev/vda", 2, |vm, socket| vm.vhost_user("a", socket))
}

#[test]
fn a_guest_with_an_nvme_disk_under_io_goes_to_another_host_and_comes_back() -> Result<()> {
    moves(&Ssd::new("a", 96), "/dev/nvme0n1", 2, |vm, socket| vm.vfio_user("a", socket))
}

/// What ends a move before the guest is gone leaves it where it is, and the next one goes.
#[test]
fn a_guest_whose_move_comes_to_nothing_goes_on_where_it_is() -> Result<()> {
    let image = Image::ensure()?;
    let [mut a, mut b] = two_hosts(&Ssd::new("a", 96))?;
    let device = |vm: VmBuilder, socket: &Path| vm.vfio_user("a", socket);
    let mut vm = guest(&a, device).boot(&image)?;
    a.has(&vm)?;
    begin_io(&mut vm, "/dev/nvme0n1")?;
    for ends in ["source engine killed", "destination engine killed", "cancelled"] {
        let waiting = guest(&b, device).await_migration(&image)?;
        b.has(&waiting)?;
        begin_to_move(&a, &b).context(ends)?;
        match ends {
            "source engine killed" => a.daemon.kill_engine()?,
            "destination engine killed" => b.daemon.kill_engine()?,
            _ => _ = a.daemon.tool(&["migration", "cancel", "a"])?,
        }
        until(&a, |list| !list.contains("copying") && !list.contains("cancelling")).context(ends)?;
        let before = rounds(&mut vm).context(ends)?;
        wait_rounds(&mut vm, before + 1).context(ends)?;
        until(&b, |list| !list.contains("incoming")).context(ends)?;
        waiting.kill();
    }
    let mut destination = guest(&b, device).await_migration(&image)?;
    b.has(&destination)?;
    a.migrate(&b)?;
    let before = rounds(&mut destination)?;
    wait_rounds(&mut destination, before + 1)?;
    let bad = destination.run_ok("cat /run/bad")?;
    ensure!(bad.is_empty(), "the guest read what it should not: {bad}");
    destination.shutdown()?;
    a.daemon.stop()?;
    b.daemon.stop()
}
