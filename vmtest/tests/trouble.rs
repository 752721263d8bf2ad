//! Trouble: resets under load, drivers that come and go, hypervisors that die, daemons that stop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Bed, Drive, with_guest};
use vmtest::daemon::Ssd;
use vmtest::vm::Vm;

const LOAD_PATIENCE: Duration = Duration::from_secs(180);

fn write_pattern(vm: &mut Vm) -> Result<()> {
    vm.run_ok("head -c 8M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/nvme0n1 bs=1M oflag=direct conv=fsync status=none")
        .map(drop)
}

fn drive_checksum(bed: &mut Bed) -> Result<String> {
    bed.vm().run_ok("dd if=/dev/nvme0n1 bs=1M count=8 iflag=direct status=none | sha256sum")
}

#[test]
fn resets_under_load_lose_no_write_and_fail_no_command() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        // The kernel tells of a reset it was asked for.
        bed.expect_complaint("resetting controller");
        let load = "fio --name=load --filename=/dev/nvme0n1 --size=64m --rw=randwrite --bs=4k --iodepth=32 \
                    --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1 --rate_iops=3000 > /tmp/fio 2>&1 & \
                    load=$!; for n in 1 2 3 4; do sleep 1; nvme reset /dev/nvme0 || exit 9; done; \
                    wait $load || { cat /tmp/fio; exit 8; }";
        bed.vm().run_within(LOAD_PATIENCE, load)?.into_ok(load).map(drop)
    })
}

#[test]
fn a_function_level_reset_leaves_a_drive_that_starts_again() -> Result<()> {
    with_guest(&[Ssd::new("a", 128)], |bed| {
        write_pattern(bed.vm())?;
        bed.vm().run_ok(
            "set -e; dev=$(readlink -f /sys/class/nvme/nvme0/device); name=$(basename $dev); grep flr $dev/reset_method; \
             cd /sys/bus/pci/drivers/nvme; echo $name > unbind; echo flr > $dev/reset_method; echo 1 > $dev/reset; \
             echo $name > bind; for n in $(seq 300); do [ -b /dev/nvme0n1 ] && break; sleep 0.2; done; \
             cmp -n 8388608 /tmp/d /dev/nvme0n1",
        )?;
        Ok(())
    })
}

#[test]
fn a_driver_unbound_and_bound_again_finds_its_data() -> Result<()> {
    with_guest(&[Ssd::new("a", 128)], |bed| {
        write_pattern(bed.vm())?;
        for _ in 0..3 {
            bed.vm().run_ok(
                "dev=$(basename $(readlink -f /sys/class/nvme/nvme0/device)); cd /sys/bus/pci/drivers/nvme; \
                 echo $dev > unbind && [ ! -e /dev/nvme0n1 ] && echo $dev > bind && \
                 for n in $(seq 300); do [ -b /dev/nvme0n1 ] && break; sleep 0.2; done; [ -b /dev/nvme0n1 ]",
            )?;
            bed.vm().run_ok("cmp -n 8388608 /tmp/d /dev/nvme0n1")?;
        }
        bed.vm()
            .run_ok(
                "rmmod nvme && modprobe nvme && for n in $(seq 300); do [ -b /dev/nvme0n1 ] && break; sleep 0.2; done; \
                 cmp -n 8388608 /tmp/d /dev/nvme0n1",
            )
            .map(drop)
    })
}

#[test]
fn a_guest_killed_under_load_leaves_the_drive_to_the_next_one() -> Result<()> {
    with_guest(&[Ssd::new("a", 256)], |bed| {
        write_pattern(bed.vm())?;
        let before = drive_checksum(bed)?;
        bed.vm().run_ok(
            "fio --name=load --filename=/dev/nvme0n1 --offset=64m --size=64m --rw=randrw --bs=4k --iodepth=64 \
             --ioengine=io_uring --direct=1 --time_based --runtime=60 > /dev/null 2>&1 & sleep 2",
        )?;
        bed.crash_guest();
        bed.boot()?;
        ensure!(
            drive_checksum(bed)? == before,
            "data written and flushed before the crash is not there after it"
        );
        Ok(())
    })
}

#[test]
#[ignore = "QEMU up to 11.1.3 aborts when any vfio-user device with MSI-X is unplugged (vfio_user_msix_teardown); for a QEMU that has the fix"]
fn a_drive_unplugged_and_plugged_again_finds_its_data() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 128)], |bed| {
        write_pattern(bed.vm())?;
        bed.vm().unplug("a")?;
        ensure!(!bed.vm().run_ok("ls /dev")?.contains("nvme0n1"), "the drive is still there");
        let socket = bed.daemon().socket("a");
        bed.vm().plug_vfio_user("again", &socket, 1)?;
        let wait = "for n in $(seq 300); do [ -b /dev/nvme0n1 ] && exit 0; sleep 0.2; done; exit 1";
        bed.vm().run_ok(wait).context("the drive plugged in again does not appear")?;
        bed.vm().run_ok("cmp -n 8388608 /tmp/d /dev/nvme0n1").map(drop)
    })
}

#[test]
fn data_and_identity_outlive_a_stop_of_the_daemon() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let identity = "nvme id-ctrl /dev/nvme0 | grep -E '^(sn|mn|fr|subnqn)' && nvme id-ns /dev/nvme0n1 | grep -E 'nguid|eui64'";
        write_pattern(bed.vm())?;
        let (sum, names) = (drive_checksum(bed)?, bed.vm().run_ok(identity)?);
        bed.shutdown_guest()?;
        bed.daemon().stop()?;
        bed.daemon().restart()?;
        bed.boot()?;
        ensure!(drive_checksum(bed)? == sum, "the data changed");
        ensure!(bed.vm().run_ok(identity)? == names, "the identity changed");
        Ok(())
    })
}
