//! The drive as a disk: file systems, verified data at several depths and sizes, discards, reboots, shutdown.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmtest::bed::{Bed, with_guest};
use vmtest::daemon::{Backend, Ssd};

const FIO_PATIENCE: Duration = Duration::from_secs(300);

fn fio_verify(bed: &mut Bed, what: &str) -> Result<()> {
    let job = format!(
        "fio --name=verify --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 {what}"
    );
    bed.vm().run_within(FIO_PATIENCE, &job)?.into_ok(&job).map(drop)
}

#[test]
fn a_stock_guest_boots_and_finds_its_drive() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        ensure!(bed.vm().run_ok("nvme list")?.contains("/dev/nvme0n1"));
        let size = bed.vm().run_ok("blockdev --getsize64 /dev/nvme0n1")?;
        ensure!(size.trim() == (256_u64 << 20).to_string(), "the drive has {size} bytes");
        // One queue pair a processor, and no fallback to one shared interrupt.
        ensure!(bed.vm().run_ok("grep -c nvme0q /proc/interrupts")?.trim().parse::<u32>()? >= 3);
        ensure!(bed.vm().run_ok("grep nvme0q /proc/interrupts")?.contains("MSI"));
        Ok(())
    })
}

#[test]
fn a_file_system_holds_verified_data_over_a_reboot_and_a_shutdown() -> Result<()> {
    with_guest(&[Ssd::new("a", 512)], |bed| {
        let vm = bed.vm();
        vm.run_ok("mkfs.ext4 -q -E nodiscard /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")?;
        vm.run_ok(
            "head -c 64M /dev/urandom > /mnt/data && sync && sha256sum /mnt/data > /mnt/sum && fstrim /mnt",
        )?;
        fio_verify(bed, "--filename=/mnt/f --size=32m --rw=randwrite --bs=4k --iodepth=16 --fsync=32")?;
        bed.vm().run_ok("umount /mnt")?;

        bed.vm().reboot()?;
        bed.vm().run_ok(
            "mount /dev/nvme0n1 /mnt && sha256sum -c /mnt/sum && umount /mnt && e2fsck -fn /dev/nvme0n1",
        )?;

        bed.shutdown_guest()?;
        bed.boot()?;
        bed.vm().run_ok("mount /dev/nvme0n1 /mnt && sha256sum -c /mnt/sum && umount /mnt").map(drop)
    })
}

#[test]
fn what_fio_wrote_at_any_depth_and_size_is_what_it_reads() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        for (bs, depth, size) in
            [("512", 1, "256k"), ("4k", 1, "4m"), ("4k", 128, "32m"), ("64k", 32, "64m"), ("1m", 8, "128m")]
        {
            fio_verify(
                bed,
                &format!("--filename=/dev/nvme0n1 --size={size} --rw=randwrite --bs={bs} --iodepth={depth}"),
            )?;
        }
        // Several submitters, several queues, all sizes, offsets aligned to a block only: every form of PRP list.
        fio_verify(
            bed,
            "--filename=/dev/nvme0n1 --size=32m --offset_increment=64m --numjobs=2 --rw=randwrite --bsrange=512-1m \
             --blockalign=512 --iodepth=32",
        )
    })
}

#[test]
fn discarded_and_zeroed_blocks_read_as_zeros_and_their_neighbours_keep_their_data() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        let vm = bed.vm();
        vm.run_ok("head -c 16M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/nvme0n1 bs=1M oflag=direct status=none")?;
        vm.run_ok("blkdiscard -o 4M -l 4M /dev/nvme0n1 && blkdiscard -z -o 9M -l 64k /dev/nvme0n1")?;
        vm.run_ok("dd if=/dev/zero of=/tmp/d bs=1M seek=4 count=4 conv=notrunc status=none")?;
        vm.run_ok("dd if=/dev/zero of=/tmp/d bs=64k seek=144 count=1 conv=notrunc status=none")?;
        vm.run_ok("dd if=/dev/nvme0n1 bs=1M count=16 iflag=direct status=none | cmp - /tmp/d")?;
        vm.run_ok("blkdiscard -f /dev/nvme0n1")?;
        vm.run_ok("dd if=/dev/nvme0n1 bs=1M count=16 iflag=direct status=none | cmp -n 16777216 - /dev/zero")
            .map(drop)
    })
}

#[test]
fn a_drive_in_memory_serves_like_one_on_a_file() -> Result<()> {
    with_guest(&[Ssd::new("a", 128).on(Backend::Ram)], |bed| {
        fio_verify(bed, "--filename=/dev/nvme0n1 --size=64m --rw=randwrite --bs=4k --iodepth=32")?;
        bed.vm().run_ok("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && umount /mnt").map(drop)
    })
}

#[test]
fn two_drives_of_one_daemon_keep_their_data_apart() -> Result<()> {
    with_guest(&[Ssd::new("a", 128), Ssd::new("b", 128)], |bed| {
        let vm = bed.vm();
        vm.run_ok("for n in 0 1; do head -c 8M /dev/urandom > /tmp/$n; done")?;
        vm.run_ok(
            "for n in 0 1; do dd if=/tmp/$n of=/dev/nvme${n}n1 bs=256k oflag=direct status=none & done; wait",
        )?;
        vm.run_ok("for n in 0 1; do cmp -n 8388608 /tmp/$n /dev/nvme${n}n1 || exit 1; done")?;
        let serials = vm.run_ok("cat /sys/class/nvme/nvme*/serial | sort -u")?;
        ensure!(serials.lines().count() == 2, "the drives share a serial: {serials}");
        Ok(())
    })
}
