//! `godwit drive` on real drives: inside a guest, on Godwit's own NVMe controller and on QEMU's, through the kernel's ioctls.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd, tool};
use vmtest::image::Image;
use vmtest::vm::Vm;

/// Boots a guest with an ssd of Godwit's as its first drive, QEMU's as its second, and the tool in /tmp.
fn guest(folder: &TempDir) -> Result<(Daemon, Vm)> {
    let daemon = Daemon::start(folder.path(), &[Ssd::new("a", 16)])?;
    let image = folder.path().join("qemu.img");
    fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).context("create a drive for QEMU")?;
    let tool = tool()?;
    let drive = format!("id=tool,file={},format=raw,if=none,readonly=on,file.locking=off", tool.display());
    let builder = Vm::builder().vfio_user("a", &daemon.socket("a")).emulated_nvme("q", &image).arguments([
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=tool",
    ]);
    let mut vm = builder.boot(&Image::ensure()?)?;
    // QEMU fills the last sector with zeros; a program does not mind.
    vm.run_ok(
        "modprobe virtio_blk; for i in $(seq 600); do [ -b /dev/vda ] && break; sleep 0.1; done; \
         dd if=/dev/vda of=/tmp/godwit bs=1M status=none && chmod +x /tmp/godwit",
    )?;
    Ok((daemon, vm))
}

fn drives(vm: &mut Vm) -> Result<Vec<Value>> {
    let text = vm.run_ok("/tmp/godwit drive list -o json")?;
    serde_json::from_str(&text).with_context(|| format!("godwit printed {text}"))
}

fn of_serial(drives: &[Value], is_ours: bool) -> Result<Value> {
    let nvme = drives.iter().filter(|drive| drive["bus"] == "nvme");
    let found = nvme.filter(|drive| (drive["serial"] != "q") == is_ours).collect::<Vec<_>>();
    ensure!(found.len() == 1, "{found:?}");
    Ok(found[0].clone())
}

fn wipe(vm: &mut Vm, drive: &Value, options: &str) -> Result<Value> {
    let (path, serial) = (drive["path"].as_str().unwrap_or(""), drive["serial"].as_str().unwrap_or(""));
    let text = vm.run_ok(&format!(
        "/tmp/godwit drive wipe {path} --force-destroy-data {serial} --json {options} && \
         dd if={path} bs=1M iflag=direct status=none | cmp -n 16777216 - /dev/zero"
    ))?;
    serde_json::from_str(&text).with_context(|| format!("godwit printed {text}"))
}

/// Namespaces that the controller has, attached or not.
fn namespaces(vm: &mut Vm, controller: &str) -> Result<usize> {
    Ok(vm.run_ok(&format!("nvme list-ns --all {controller}"))?.matches("]:0x").count())
}

#[test]
fn a_guests_drives_are_listed_refused_and_wiped_by_their_own_commands() -> Result<()> {
    let folder = TempDir::with_prefix("wipe-").context("create a folder for the test")?;
    let (mut daemon, mut vm) = guest(&folder)?;
    let blank = drives(&mut vm)?;
    let (ours, theirs) = (of_serial(&blank, true)?, of_serial(&blank, false)?);
    for drive in [&ours, &theirs] {
        ensure!(drive["state"] == "free" && drive["health"]["verdict"] == "good", "{drive}");
        ensure!(drive["capabilities"]["format"] == true && drive["size_bytes"] == 16 << 20, "{drive}");
        let path = drive["path"].as_str().context("a path")?;
        vm.run_ok(&format!("mkfs.ext4 -q -F -L precious {path}"))?;
    }
    let taken = drives(&mut vm)?;
    let refused = vm.run(&format!("/tmp/godwit drive wipe {}", ours["path"].as_str().unwrap_or("")))?;
    ensure!(refused.status != 0 && refused.stderr.contains("ext4 \"precious\""), "{refused:?}");
    for (drive, options, rung) in [
        (of_serial(&taken, true)?, "--whole-drive", "sanitize-block"),
        (of_serial(&taken, false)?, "", "format-"),
    ] {
        ensure!(drive["state"] == "taken", "{drive}");
        let certificate = wipe(&mut vm, &drive, options)?;
        ensure!(certificate["verdict"] == "wiped", "{certificate}");
        let by = certificate["erased_by"].as_str().unwrap_or("");
        ensure!(by.starts_with(rung), "erased by {by:?}: {certificate}");
    }
    // One namespace of Godwit's controller, by a format whose scope is that namespace.
    vm.run_ok(&format!("mkfs.ext4 -q -F {}", ours["path"].as_str().unwrap_or("")))?;
    let certificate = wipe(&mut vm, &ours, "")?;
    ensure!(certificate["erased_by"].as_str().is_some_and(|by| by.starts_with("format-")), "{certificate}");
    for drive in drives(&mut vm)?.iter().filter(|drive| drive["bus"] == "nvme") {
        ensure!(drive["state"] == "free", "{drive}");
    }
    vm.kill();
    daemon.stop()
}

#[test]
fn a_namespace_is_made_for_an_ssd_given_and_taken_back_on_a_real_controller() -> Result<()> {
    let folder = TempDir::with_prefix("carve-").context("create a folder for the test")?;
    let (mut daemon, mut vm) = guest(&folder)?;
    let ours = of_serial(&drives(&mut vm)?, true)?;
    let serial = ours["serial"].as_str().context("a serial number")?.to_owned();
    let controller = format!("/dev/{}", ours["nvme"]["controller"].as_str().context("a controller")?);
    let refused = vm.run(&format!("/tmp/godwit drive carve {serial} a --size 4MiB"))?;
    ensure!(refused.status != 0 && refused.stderr.contains("do not fit"), "{refused:?}");
    // QEMU's drive cannot, and its numbers say so.
    let other = vm.run("/tmp/godwit drive carve q a --size 4MiB")?;
    ensure!(other.status != 0 && other.stderr.contains("cannot be carved so"), "{other:?}");
    vm.run_ok(&format!("nvme delete-ns {controller} -n 1 && nvme ns-rescan {controller}"))?;
    vm.run_ok(&format!(
        "/tmp/godwit drive carve {controller} a --size 4MiB && /tmp/godwit drive carve {serial} b --size 4MiB"
    ))?;
    let grants = vm.run_ok("/tmp/godwit drive grants")?;
    ensure!(
        grants.lines().filter(|line| line.contains("given") && line.contains(&serial)).count() == 2,
        "{grants}"
    );
    // Done already: nothing is made twice.
    vm.run_ok(&format!("/tmp/godwit drive carve {serial} a --size 4MiB"))?;
    ensure!(namespaces(&mut vm, &controller)? == 2);
    vm.run_ok(
        "for n in $(ls -d /sys/block/nvme*); do d=/dev/$(basename $n); \
         [ $(blockdev --getsize64 $d) = 4194304 ] && tr '\\0' 'x' < /dev/zero | dd of=$d bs=1M count=4 iflag=fullblock oflag=direct status=none; \
         done; true",
    )?;
    let unsaid = vm.run("/tmp/godwit drive take-back a")?;
    ensure!(unsaid.status != 0 && unsaid.stderr.contains("--force-destroy-data"), "{unsaid:?}");
    vm.run_ok(&format!("/tmp/godwit drive take-back a --force-destroy-data {serial}"))?;
    ensure!(namespaces(&mut vm, &controller)? == 1);
    // The other ssd's data are as they were.
    vm.run_ok(
        "for n in $(ls -d /sys/block/nvme*); do d=/dev/$(basename $n); \
         [ $(blockdev --getsize64 $d) = 4194304 ] && [ $(dd if=$d bs=1M iflag=direct status=none | tr -d x | wc -c) = 0 ] && echo same; \
         done | grep -c same | grep -qx 1",
    )?;
    vm.kill();
    daemon.stop()
}
