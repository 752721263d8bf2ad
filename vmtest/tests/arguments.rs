//! What `godwit qemu-args` prints is what QEMU takes: a guest is started with its output, word for word.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd, tool};
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::{Vm, words};

const MEMORY_MIB: u64 = 640;

fn qemu_args(folder: &TempDir, name: &str, more: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new(tool()?);
    command.arg("--config").arg(folder.path().join("godwit.toml")).args(["qemu-args", name]).args(more);
    let output = command.output().context("run godwit")?;
    ensure!(output.status.success(), "godwit: {}", String::from_utf8_lossy(&output.stderr));
    words(&String::from_utf8(output.stdout).context("arguments in UTF-8")?)
}

#[test]
fn a_guest_started_with_what_qemu_args_prints_has_its_drives_and_its_memory() -> Result<()> {
    let image = Image::ensure()?;
    // A folder that a shell and QEMU's own option lists have their ideas about.
    let folder = TempDir::with_prefix("it's a bed, ")?;
    let ssds = [Ssd::new("first", 64), Ssd::new("second", 96)];
    let mut daemon = Daemon::start(folder.path(), &ssds)?;
    let memory = format!("{MEMORY_MIB}MiB");
    // Memory comes with the first; the second is a device alone.
    let first = qemu_args(&folder, "first", &["--memory", &memory])?;
    let second = qemu_args(&folder, "second", &["--device-only"])?;
    let all: Vec<&str> = first.iter().chain(&second).map(String::as_str).collect();
    let mut vm = Vm::builder().arguments(all).boot(&image)?;

    let sizes = vm.run_ok("cat /sys/block/nvme*n1/size | sort -n")?;
    assert_eq!(sizes.split_whitespace().collect::<Vec<_>>(), ["131072", "196608"], "64 and 96 MiB");
    let kib = vm.run_ok("awk '/MemTotal/ { print $2 }' /proc/meminfo")?;
    let mib = kib.trim().parse::<u64>()? / 1024;
    assert!((MEMORY_MIB - 140..=MEMORY_MIB).contains(&mib), "{mib} MiB of memory");
    vm.run_ok(
        "fio --name=v --filename=/dev/nvme0n1 --size=16m --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring \
         --direct=1 --verify=crc32c --verify_fatal=1",
    )?;

    let log = vm.shutdown()?;
    assert_eq!(nvme_complaints(&log, &[]), Vec::<&str>::new());
    daemon.stop()
}
