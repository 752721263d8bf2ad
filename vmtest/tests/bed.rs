//! The bed proves itself on QEMU's own drive before it judges Godwit's.

use anyhow::Result;
use tempfile::TempDir;
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::Vm;

#[test]
fn a_stock_guest_boots_and_uses_the_drive_of_qemu_itself() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("drive.img");
    std::fs::File::create(&file)?.set_len(512 << 20)?;
    let mut vm = Vm::builder().emulated_nvme("oracle", &file).boot(&Image::ensure()?)?;

    assert!(vm.run_ok("nvme list")?.contains("/dev/nvme0n1"));
    vm.run_ok("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")?;
    vm.run_ok(
        "fio --name=v --filename=/mnt/f --size=16m --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 \
         --verify=crc32c --verify_fatal=1",
    )?;
    vm.run_ok("umount /mnt")?;
    assert_eq!(vm.run("exit 3")?.status, 3);
    assert_eq!(vm.run_ok("printf 'a\\nb'")?, "a\nb");

    vm.reboot()?;
    vm.run_ok("mount -o ro /dev/nvme0n1 /mnt && test -f /mnt/f && umount /mnt")?;
    vm.unplug("oracle")?;
    assert!(!vm.run_ok("ls /dev")?.contains("nvme0n1"));

    let log = vm.shutdown()?;
    assert_eq!(nvme_complaints(&log, &[]), Vec::<&str>::new());
    Ok(())
}
