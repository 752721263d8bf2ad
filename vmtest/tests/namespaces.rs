//! Namespaces and what changes them whole: format, create, attach, detach, delete, sanitize.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Drive, with_guest};
use vmtest::daemon::Ssd;
use vmtest::vm::Vm;

const FORMAT_PATIENCE: Duration = Duration::from_secs(120);

fn format(vm: &mut Vm, device: &str, block_size: u32) -> Result<()> {
    let script = format!(
        "nvme format {device} --block-size={block_size} --force && nvme ns-rescan /dev/nvme0 && sleep 1"
    );
    vm.run_within(FORMAT_PATIENCE, &script)?.into_ok(&script)?;
    let actual = vm.run_ok(&format!("blockdev --getss {device}"))?;
    ensure!(
        actual.trim() == block_size.to_string(),
        "{device} has blocks of {actual} bytes, not {block_size}"
    );
    Ok(())
}

/// Replaces namespace 1 by two of `mib` MiB each.
fn make_two_namespaces(vm: &mut Vm, mib: u64) -> Result<()> {
    let blocks = mib << 11;
    let script = format!(
        "set -e; id=$(nvme id-ctrl /dev/nvme0 | awk '/^cntlid/ {{ print $3 }}'); \
         nvme detach-ns /dev/nvme0 -n 1 -c $id; nvme delete-ns /dev/nvme0 -n 1; \
         for n in 1 2; do nvme create-ns /dev/nvme0 -s {blocks} -c {blocks} -f 0 -d 0 -m 0; nvme attach-ns /dev/nvme0 -n $n -c $id; done; \
         nvme ns-rescan /dev/nvme0; \
         for n in $(seq 50); do [ -b /dev/nvme0n1 ] && [ -b /dev/nvme0n2 ] && exit 0; sleep 0.1; done; \
         ls /dev/nvme*; exit 1"
    );
    vm.run_ok(&script).map(drop)
}

fn write_pattern(vm: &mut Vm, namespace: u32) -> Result<()> {
    vm.run_ok(&format!(
        "head -c 4M /dev/urandom > /tmp/{namespace} && \
         dd if=/tmp/{namespace} of=/dev/nvme0n{namespace} bs=1M oflag=direct status=none"
    ))
    .map(drop)
}

fn check_pattern(vm: &mut Vm, namespace: u32) -> Result<()> {
    let read = format!(
        "dd if=/dev/nvme0n{namespace} bs=1M count=4 iflag=direct status=none | cmp - /tmp/{namespace}"
    );
    vm.run_ok(&read).map(drop).with_context(|| format!("namespace {namespace} lost its data"))
}

#[test]
fn a_namespace_is_formatted_to_4096_byte_blocks_and_back() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        for block_size in [4096, 512] {
            format(bed.vm(), "/dev/nvme0n1", block_size)?;
            let job = "fio --name=verify --filename=/dev/nvme0n1 --size=16m --rw=randwrite --bs=4k --iodepth=32 \
                       --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1";
            bed.vm().run_ok(job)?;
            bed.vm().run_ok(
                "mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && cp /bin/bash /mnt && umount /mnt && \
                 e2fsck -fn /dev/nvme0n1",
            )?;
        }
        // Over a reboot the format stays.
        format(bed.vm(), "/dev/nvme0n1", 4096)?;
        bed.vm().reboot()?;
        ensure!(bed.vm().run_ok("blockdev --getss /dev/nvme0n1")?.trim() == "4096");
        Ok(())
    })
}

#[test]
fn namespaces_are_created_attached_detached_and_deleted() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 256)], |bed| {
        make_two_namespaces(bed.vm(), 64)?;
        for namespace in [1, 2] {
            write_pattern(bed.vm(), namespace)?;
        }
        // Detached, a namespace disappears but keeps its data.
        bed.vm().run_ok(
            "set -e; id=$(nvme id-ctrl /dev/nvme0 | awk '/^cntlid/ { print $3 }'); \
             nvme detach-ns /dev/nvme0 -n 2 -c $id; nvme ns-rescan /dev/nvme0; \
             for n in $(seq 100); do [ -e /dev/nvme0n2 ] || break; sleep 0.1; done; [ ! -e /dev/nvme0n2 ]; \
             nvme list-ns --all /dev/nvme0 | grep 0x2; nvme attach-ns /dev/nvme0 -n 2 -c $id; nvme ns-rescan /dev/nvme0; \
             for n in $(seq 50); do [ -b /dev/nvme0n2 ] && exit 0; sleep 0.1; done; exit 1",
        )?;
        for namespace in [1, 2] {
            check_pattern(bed.vm(), namespace)?;
        }
        // Another guest sees the same namespaces.
        bed.vm().reboot()?;
        bed.vm().run_ok("[ -b /dev/nvme0n1 ] && [ -b /dev/nvme0n2 ]")?;
        bed.vm().run_ok(
            "set -e; nvme delete-ns /dev/nvme0 -n 2; nvme ns-rescan /dev/nvme0; [ -b /dev/nvme0n1 ]; \
             for n in $(seq 100); do [ -e /dev/nvme0n2 ] || break; sleep 0.1; done; [ ! -e /dev/nvme0n2 ]",
        )?;
        // Too much is refused, and says so.
        let huge = bed.vm().run("nvme create-ns /dev/nvme0 -s 0x100000000 -c 0x100000000 -f 0 2>&1")?;
        ensure!(huge.status != 0 && huge.stdout.to_lowercase().contains("capacity"), "{huge:?}");
        Ok(())
    })
}

#[test]
fn formatting_one_namespace_leaves_the_other_its_data() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 256)], |bed| {
        make_two_namespaces(bed.vm(), 64)?;
        for namespace in [1, 2] {
            write_pattern(bed.vm(), namespace)?;
        }
        format(bed.vm(), "/dev/nvme0n1", 4096)?;
        check_pattern(bed.vm(), 2)?;
        let erase = "nvme format /dev/nvme0n1 --ses=1 --force && sleep 1";
        bed.vm().run_ok(erase)?;
        bed.vm().run_ok(
            "dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct status=none | cmp -n 4194304 - /dev/zero",
        )?;
        check_pattern(bed.vm(), 2)
    })
}

#[test]
fn a_sanitized_drive_holds_nothing_and_works() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let wait = "for n in $(seq 300); do nvme sanitize-log /dev/nvme0 | grep -q 'SPROG.*65535' && exit 0; sleep 0.1; done; \
                    nvme sanitize-log /dev/nvme0; exit 1";
        write_pattern(bed.vm(), 1)?;
        bed.vm().run_ok("nvme sanitize /dev/nvme0 -a 2")?;
        bed.vm().run_ok(wait).context("block erase")?;
        bed.vm().run_ok(
            "dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct status=none | cmp -n 4194304 - /dev/zero",
        )?;

        write_pattern(bed.vm(), 1)?;
        bed.vm().run_ok("nvme sanitize /dev/nvme0 -a 3 -n 1 -p 0xa5a5a5a5")?;
        bed.vm().run_ok(wait).context("overwrite")?;
        ensure!(check_pattern(bed.vm(), 1).is_err(), "the data outlived an overwrite");
        bed.vm().run_ok("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && umount /mnt").map(drop)
    })
}
