//! `godwit attach --qmp` and `godwit detach`: ssds of both kinds go into a running guest, do its I/O, and a disk goes out again.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd, is_listening, tool};
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::{Vm, VmBuilder};

/// One host: a daemon's folder, and the monitor of the guest under test.
struct Host {
    folder: TempDir,
    monitor: PathBuf,
}

impl Host {
    fn new() -> Result<Host> {
        let folder = TempDir::with_prefix("plug-").context("create a folder for the test")?;
        let monitor = folder.path().join("monitor");
        Ok(Host { folder, monitor })
    }

    fn godwit(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(tool()?);
        command.arg("--config").arg(self.folder.path().join("godwit.toml")).args(words);
        command.arg("--qmp").arg(&self.monitor).output().context("run godwit")
    }

    fn must(&self, words: &[&str]) -> Result<String> {
        let output = self.godwit(words)?;
        ensure!(output.status.success(), "godwit {words:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }

    fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.godwit(words)?;
        ensure!(!output.status.success(), "godwit {words:?} said: {}", text(&output.stdout));
        Ok(text(&output.stderr))
    }

    fn builder(&self) -> VmBuilder {
        let monitor = format!("unix:{},server=on,wait=off", self.monitor.display());
        let port = |number: u8| format!("pcie-root-port,id=spare{number},chassis=10{number},slot=10{number}");
        Vm::builder().arguments(["-qmp", &monitor, "-device", &port(1), "-device", &port(2)])
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_for(vm: &mut Vm, condition: &str) -> Result<()> {
    let script = format!("for n in $(seq 600); do {condition} && exit 0; sleep 0.1; done; exit 1");
    vm.run_ok(&script).map(drop)
}

fn verify(vm: &mut Vm, drive: &str) -> Result<()> {
    vm.run_ok(&format!(
        "fio --name=v --filename={drive} --size=8m --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 \
         --verify=crc32c --verify_fatal=1"
    ))
    .map(drop)
}

#[test]
fn ssds_of_both_kinds_are_plugged_into_a_running_guest_and_a_disk_is_taken_out_and_put_back() -> Result<()> {
    let host = Host::new()?;
    let ssds = [Ssd::new("fast", 64), Ssd::new("plain", 96).as_disk(), Ssd::new("third", 64)];
    let mut daemon = Daemon::start(host.folder.path(), &ssds)?;
    let mut vm = host.builder().boot(&Image::ensure()?)?;
    ensure!(host.monitor.exists(), "QEMU serves no monitor");

    let said = host.must(&["attach", "fast"])?;
    ensure!(said == "fast: plugged in as godwit-fast at spare1\n", "{said}");
    wait_for(&mut vm, "[ -b /dev/nvme0n1 ]")?;
    verify(&mut vm, "/dev/nvme0n1")?;

    vm.run_ok("modprobe virtio_blk")?;
    let said = host.must(&["attach", "plain"])?;
    ensure!(said == "plain: plugged in as godwit-plain at spare2\n", "{said}");
    wait_for(&mut vm, "[ -b /dev/vda ]")?;
    verify(&mut vm, "/dev/vda")?;
    vm.run_ok("head -c 8M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/vda bs=1M oflag=direct status=none")?;

    ensure!(host.refused(&["attach", "fast"])?.contains("has a client"));
    ensure!(host.refused(&["attach", "third"])?.contains("each of its 2 PCI Express ports"));

    let said = host.must(&["detach", "plain"])?;
    ensure!(said == "plain: godwit-plain is out of the guest\n", "{said}");
    ensure!(!vm.run_ok("ls /dev")?.contains("vda"), "the disk is still there");
    ensure!(host.refused(&["detach", "plain"])?.contains("has no device godwit-plain"));

    // The NVMe ssd stays: QEMU would abort. The guest must not notice that somebody asked.
    let said = host.refused(&["detach", "fast"])?;
    ensure!(said.contains("QEMU aborts") && said.contains("Stop the guest"), "{said}");
    verify(&mut vm, "/dev/nvme0n1")?;

    host.must(&["attach", "plain"])?;
    wait_for(&mut vm, "[ -b /dev/vda ]")?;
    vm.run_ok("cmp -n 8388608 /tmp/d /dev/vda")?;

    let log = vm.shutdown()?;
    ensure!(nvme_complaints(&log, &[]).is_empty(), "the guest's kernel complains:\n{log}");
    daemon.stop()
}

#[test]
fn a_guest_with_private_memory_is_told_what_to_change() -> Result<()> {
    let host = Host::new()?;
    let mut daemon = Daemon::start(host.folder.path(), &[Ssd::new("a", 64)])?;
    // No guest is needed for this: a QEMU that waits at its start knows its memory.
    let (mut qemu, root) = {
        let image = Image::ensure()?;
        let (qemu, root) = image.qemu();
        (qemu, root.to_owned())
    };
    for firmware in ["usr/share/qemu", "usr/share/seabios"] {
        qemu.arg("-L").arg(root.join(firmware));
    }
    let monitor = format!("unix:{},server=on,wait=off", host.monitor.display());
    qemu.args(["-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64M", "-S"]);
    let mut child = qemu.args(["-qmp", &monitor]).spawn().context("start QEMU")?;
    let refused = || -> Result<String> {
        // QEMU binds it before it listens at it.
        for _ in 0..1200 {
            if is_listening(child.id(), &host.monitor) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        host.refused(&["attach", "a"])
    };
    let said = refused();
    let _ = child.kill();
    let _ = child.wait();
    let said = said?;
    ensure!(said.contains("it is private to QEMU") && said.contains("memory-backend-memfd"), "{said}");
    daemon.stop()
}
