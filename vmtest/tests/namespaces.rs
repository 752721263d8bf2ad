//! Namespaces and what changes them whole: format, create, attach, detach, delete, sanitize.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Drive, with_guest};
use vmtest::daemon::Ssd;
use vmtest::vm::Vm;

const FORMAT_PATIENCE: Duration = Duration::from_secs(120);

/// `node NSID` prints the block device of a namespace; `gone NSID` waits until it has none. Linux scans namespaces side
/// by side since 6.12 and numbers the devices in the order in which that ends: nvme0n1 may be namespace 2.
const BY_NSID: &str = r#"
    node() { grep -lx "$1" /sys/block/nvme0n*/nsid 2>/dev/null | sed 's,/sys/block/\(.*\)/nsid,/dev/\1,' | grep .; }
    there() { for n in $(seq 600); do node $1 >/dev/null && [ -b $(node $1) ] && return 0; sleep 0.1; done; return 1; }
    gone() { for n in $(seq 600); do node $1 >/dev/null || return 0; sleep 0.1; done; return 1; }
    id=$(nvme id-ctrl /dev/nvme0 | awk '/^cntlid/ { print $3 }')
    set -e
"#;

/// Runs a script that may say `node`, `there`, `gone` and `$id`, the controller's.
fn run_ok(vm: &mut Vm, script: &str) -> Result<String> {
    vm.run_ok(&format!("{BY_NSID}{script}"))
}

fn format(vm: &mut Vm, namespace: u32, block_size: u32) -> Result<()> {
    let script = format!(
        "{BY_NSID} nvme format $(node {namespace}) --block-size={block_size} --force; nvme ns-rescan /dev/nvme0; \
         for n in $(seq 600); do there {namespace}; [ $(blockdev --getss $(node {namespace})) = {block_size} ] && exit; sleep 0.1; done"
    );
    vm.run_within(FORMAT_PATIENCE, &script)?.into_ok(&script)?;
    let actual = run_ok(vm, &format!("blockdev --getss $(node {namespace})"))?;
    ensure!(
        actual.trim() == block_size.to_string(),
        "namespace {namespace} has blocks of {actual} bytes, not {block_size}"
    );
    Ok(())
}

/// Replaces namespace 1 by two of `mib` MiB each.
fn make_two_namespaces(vm: &mut Vm, mib: u64) -> Result<()> {
    let blocks = mib << 11;
    let script = format!(
        "nvme detach-ns /dev/nvme0 -n 1 -c $id; nvme delete-ns /dev/nvme0 -n 1; \
         for n in 1 2; do nvme create-ns /dev/nvme0 -s {blocks} -c {blocks} -f 0 -d 0 -m 0; nvme attach-ns /dev/nvme0 -n $n -c $id; done; \
         nvme ns-rescan /dev/nvme0; there 1; there 2"
    );
    run_ok(vm, &script).map(drop)
}

fn write_pattern(vm: &mut Vm, namespace: u32) -> Result<()> {
    let script = format!(
        "head -c 4M /dev/urandom > /tmp/{namespace}; \
         dd if=/tmp/{namespace} of=$(node {namespace}) bs=1M oflag=direct status=none"
    );
    run_ok(vm, &script).map(drop)
}

fn check_pattern(vm: &mut Vm, namespace: u32) -> Result<()> {
    let script =
        format!("dd if=$(node {namespace}) bs=1M count=4 iflag=direct status=none | cmp - /tmp/{namespace}");
    run_ok(vm, &script).map(drop).with_context(|| format!("namespace {namespace} lost its data"))
}

#[test]
fn a_namespace_is_formatted_to_4096_byte_blocks_and_back() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        for block_size in [4096, 512] {
            format(bed.vm(), 1, block_size)?;
            let job = "fio --name=verify --filename=/dev/nvme0n1 --size=16m --rw=randwrite --bs=4k --iodepth=32 \
                       --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1";
            bed.vm().run_ok(job)?;
            bed.vm().run_ok(
                "mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && cp /bin/bash /mnt && umount /mnt && \
                 e2fsck -fn /dev/nvme0n1",
            )?;
        }
        // Over a reboot the format stays.
        format(bed.vm(), 1, 4096)?;
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
        run_ok(
            bed.vm(),
            "nvme detach-ns /dev/nvme0 -n 2 -c $id; nvme ns-rescan /dev/nvme0; gone 2; \
             nvme list-ns --all /dev/nvme0 | grep 0x2; nvme attach-ns /dev/nvme0 -n 2 -c $id; nvme ns-rescan /dev/nvme0; there 2",
        )?;
        for namespace in [1, 2] {
            check_pattern(bed.vm(), namespace)?;
        }
        // Another guest sees the same namespaces.
        bed.vm().reboot()?;
        run_ok(bed.vm(), "there 1; there 2")?;
        run_ok(bed.vm(), "nvme delete-ns /dev/nvme0 -n 2; nvme ns-rescan /dev/nvme0; gone 2; there 1")?;
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
        format(bed.vm(), 1, 4096)?;
        check_pattern(bed.vm(), 2)?;
        run_ok(bed.vm(), "nvme format $(node 1) --ses=1 --force; there 1")?;
        run_ok(
            bed.vm(),
            "dd if=$(node 1) bs=1M count=4 iflag=direct status=none | cmp -n 4194304 - /dev/zero",
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
        let wait = "for n in $(seq 600); do nvme sanitize-log /dev/nvme0 | grep -q 'SPROG.*65535' && exit 0; sleep 0.1; done; \
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
