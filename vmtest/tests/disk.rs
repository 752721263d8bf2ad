//! A virtio-blk disk over vhost-user: file systems, verified data, discards, and an engine that is killed meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vmtest::bed::{Bed, with_guest, with_guest_of};
use vmtest::daemon::{Backend, Ssd};
use vmtest::image::Image;

const FIO_PATIENCE: Duration = Duration::from_secs(300);

fn fio_verify(bed: &mut Bed, what: &str) -> Result<()> {
    let job = format!(
        "fio --name=verify --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 {what}"
    );
    bed.vm().run_within(FIO_PATIENCE, &job)?.into_ok(&job).map(drop)
}

/// The image loads what it needs to boot; the disk's driver is not among it.
fn find_disk(bed: &mut Bed) -> Result<()> {
    bed.vm().run_ok(
        "modprobe virtio_blk && for i in $(seq 600); do [ -b /dev/vda ] && exit; sleep 0.1; done; exit 1",
    )?;
    Ok(())
}

#[test]
fn a_stock_guest_finds_its_disk_with_a_queue_a_processor_and_its_serial_number() -> Result<()> {
    with_guest(&[Ssd::new("a", 256).as_disk()], |bed| {
        find_disk(bed)?;
        let size = bed.vm().run_ok("blockdev --getsize64 /dev/vda")?;
        ensure!(size.trim() == (256_u64 << 20).to_string(), "the disk has {size} bytes");
        let queues = bed.vm().run_ok("ls /sys/block/vda/mq | wc -l")?;
        ensure!(queues.trim() == "2", "{queues} queues");
        let serial = bed.vm().run_ok("cat /sys/block/vda/serial")?;
        ensure!(serial.starts_with("GW"), "serial number {serial}");
        ensure!(bed.vm().run_ok("cat /sys/block/vda/cache_type")?.trim() == "write back");
        Ok(())
    })
}

#[test]
fn a_file_system_on_a_disk_holds_verified_data_over_a_reboot() -> Result<()> {
    with_guest(&[Ssd::new("a", 512).as_disk()], |bed| {
        find_disk(bed)?;
        bed.vm().run_ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")?;
        bed.vm().run_ok(
            "head -c 64M /dev/urandom > /mnt/data && sync && sha256sum /mnt/data > /mnt/sum && fstrim /mnt",
        )?;
        fio_verify(bed, "--filename=/mnt/f --size=32m --rw=randwrite --bs=4k --iodepth=16 --fsync=32")?;
        bed.vm().run_ok("umount /mnt")?;
        bed.vm().reboot()?;
        find_disk(bed)?;
        bed.vm()
            .run_ok("mount /dev/vda /mnt && sha256sum -c /mnt/sum && umount /mnt && e2fsck -fn /dev/vda")
            .map(drop)
    })
}

#[test]
fn what_fio_wrote_to_a_disk_is_what_it_reads_and_discarded_blocks_are_zeros() -> Result<()> {
    with_guest(&[Ssd::new("a", 256).as_disk().on(Backend::Ram)], |bed| {
        find_disk(bed)?;
        for (bs, depth, size) in [("512", 1, "256k"), ("4k", 1, "4m"), ("4k", 128, "32m"), ("1m", 8, "64m")] {
            fio_verify(
                bed,
                &format!("--filename=/dev/vda --size={size} --rw=randwrite --bs={bs} --iodepth={depth}"),
            )?;
        }
        let vm = bed.vm();
        vm.run_ok(
            "head -c 16M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/vda bs=1M oflag=direct status=none",
        )?;
        vm.run_ok("blkdiscard -o 4M -l 4M /dev/vda && blkdiscard -z -o 9M -l 64k /dev/vda")?;
        vm.run_ok("dd if=/dev/zero of=/tmp/d bs=1M seek=4 count=4 conv=notrunc status=none")?;
        vm.run_ok("dd if=/dev/zero of=/tmp/d bs=64k seek=144 count=1 conv=notrunc status=none")?;
        vm.run_ok("dd if=/dev/vda bs=1M count=16 iflag=direct status=none | cmp - /tmp/d")?;
        vm.run_ok("blkdiscard -f /dev/vda")?;
        vm.run_ok("dd if=/dev/vda bs=1M count=16 iflag=direct status=none | cmp -n 16777216 - /dev/zero")
            .map(drop)
    })
}

#[test]
fn a_guest_under_qemu_7_2_reads_what_it_wrote_and_zeros_where_it_discarded_over_a_kill_and_an_upgrade()
-> Result<()> {
    let image = Image::ensure_with_old_qemu()?;
    with_guest_of(image, &[Ssd::new("a", 64).as_disk()], |bed| {
        let version = bed.vm().qmp("query-version", &serde_json::json!({}))?;
        let version = &version["qemu"];
        ensure!((version["major"] == 7) && (version["minor"] == 2), "this is QEMU {version}");
        find_disk(bed)?;
        fio_verify(bed, "--filename=/dev/vda --size=4m --rw=randwrite --bs=4k --iodepth=16")?;
        bed.vm().run_ok(
            "head -c 8M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/vda bs=1M oflag=direct status=none",
        )?;
        bed.daemon().kill_engine()?;
        bed.vm().run_ok("blkdiscard -o 2M -l 4M /dev/vda")?;
        bed.daemon().upgrade()?;
        bed.vm().run_ok("dd if=/dev/zero of=/tmp/d bs=1M seek=2 count=4 conv=notrunc status=none")?;
        bed.vm().run_ok("dd if=/dev/vda bs=1M count=8 iflag=direct status=none | cmp - /tmp/d").map(drop)
    })
}

#[test]
fn a_disk_whose_file_grew_is_larger_in_the_guest_after_an_upgrade_and_one_that_shrank_is_refused()
-> Result<()> {
    with_guest(&[Ssd::new("a", 64).as_disk().as_whole_file()], |bed| {
        find_disk(bed)?;
        bed.vm()
            .run_ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && head -c 8M /dev/urandom > /mnt/d")?;
        let file = std::fs::File::options().write(true).open(bed.folder().join("a.img"))?;
        file.set_len(96 << 20)?;
        bed.daemon().upgrade()?;
        let grown = "for i in $(seq 600); do [ $(blockdev --getsize64 /dev/vda) = 100663296 ] && exit; sleep 0.1; done; exit 1";
        bed.vm().run_ok(grown)?;
        bed.vm().run_ok("resize2fs /dev/vda && sync && umount /mnt && e2fsck -fn /dev/vda")?;
        fio_verify(bed, "--filename=/dev/vda --offset=92m --size=4m --rw=randwrite --bs=4k --iodepth=16")?;
        file.set_len(80 << 20)?;
        let refusal = bed.daemon().upgrade().expect_err("the drive has shrunk").to_string();
        ensure!(refusal.contains("its client was told 100663296"), "{refusal}");
        file.set_len(96 << 20)?;
        bed.daemon().upgrade()
    })
}

/// QEMU has no `reconnect` here: it must not notice.
#[test]
fn a_guest_does_not_notice_that_the_engine_of_its_disk_is_killed() -> Result<()> {
    with_guest(&[Ssd::new("a", 256).as_disk()], |bed| {
        find_disk(bed)?;
        let keeper = bed.daemon().pid();
        let killer = std::thread::spawn(move || -> Result<u32> {
            let mut kills = 0;
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(700));
                if let Some(engine) = child_of(keeper)? {
                    kill_process(engine, Signal::KILL).context("kill the engine")?;
                    kills += 1;
                }
            }
            Ok(kills)
        });
        while !killer.is_finished() {
            fio_verify(bed, "--filename=/dev/vda --size=32m --rw=randwrite --bs=4k --iodepth=16")?;
        }
        let kills = killer.join().expect("the killer ends")?;
        ensure!(kills >= 5, "only {kills} engines were killed");
        fio_verify(bed, "--filename=/dev/vda --size=32m --rw=randwrite --bs=4k --iodepth=16")
    })
}

fn child_of(pid: u32) -> Result<Option<Pid>> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .context("this kernel does not tell children")?;
    Ok(children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?)))
}
