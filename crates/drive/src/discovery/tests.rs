use super::*;
use std::os::unix::fs::symlink;

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// A host with two NVMe namespaces (one of a subsystem with two paths), a SATA disk with partitions, and things that are no drives.
fn host() -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(
        root,
        &[
            ("sys/block/nvme10n1/size", "2048\n"),
            ("sys/block/nvme2n1/size", "1953525168\n"),
            ("sys/block/nvme2n1/dev", "259:0\n"),
            ("sys/block/nvme2n1/nsid", "7\n"),
            ("sys/block/nvme2n1/uuid", "0f0f0f0f-0000-4000-8000-000000000001\n"),
            ("sys/block/nvme2n1/nguid", "00000000-0000-0000-0000-000000000000\n"),
            ("sys/block/nvme2n1/wwid", "uuid.0f0f0f0f\n"),
            ("sys/block/nvme2n1/queue/logical_block_size", "4096\n"),
            ("sys/block/nvme2n1/queue/rotational", "0\n"),
            ("sys/block/nvme2n1/queue/discard_max_bytes", "2199023255040\n"),
            ("sys/class/nvme/nvme2/model", "SAMSUNG MZ1LB1T9HALS-00007              \n"),
            ("sys/class/nvme/nvme2/serial", "S436NA0M500123      \n"),
            ("sys/class/nvme/nvme2/firmware_rev", "EDA7602Q\n"),
            ("sys/class/nvme/nvme2/transport", "pcie\n"),
            ("sys/class/nvme/nvme2/address", "0000:81:00.0\n"),
            ("sys/block/sda/size", "1000000\n"),
            ("sys/block/sda/dev", "8:0\n"),
            ("sys/block/sda/device/vendor", "ATA     \n"),
            ("sys/block/sda/device/model", "ST4000\u{1b}[31mNM\n"),
            ("sys/block/sda/device/vpd_pg80", "\0\u{7f}\0\u{8}ZC1ABCDE"),
            ("sys/block/sda/queue/rotational", "1\n"),
            ("sys/block/sda/sda2/partition", "2\n"),
            ("sys/block/sda/sda2/start", "2048\n"),
            ("sys/block/sda/sda2/size", "4096\n"),
            ("sys/block/sda/sda2/dev", "8:2\n"),
            ("sys/block/sda/sda3/partition", "3\n"),
            ("sys/block/sda/sda3/dev", "8:3\n"),
            ("sys/block/sda/sda3/holders/dm-0", ""),
            ("sys/class/block/sda3/dev", "8:3\n"),
            ("sys/block/loop0/size", "0\n"),
            ("sys/block/zram0/size", "4096\n"),
            ("sys/block/sr0/size", "4096\n"),
            ("proc/self/mountinfo", "26 1 8:2 / /var rw shared:1 - ext4 /dev/sda2 rw\n"),
            ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda3 partition 1 0 -2\n"),
        ],
    );
    symlink(root.join("sys/class/nvme/nvme2"), root.join("sys/block/nvme2n1/device")).unwrap();
    let host = Host { sys: root.join("sys"), dev: "/dev".into(), proc: root.join("proc") };
    (folder, host)
}

#[test]
fn drives_are_listed_in_the_order_people_count_and_others_are_left_out() {
    let (_folder, host) = host();
    let names: Vec<String> = host.devices().unwrap().into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["nvme2n1", "nvme10n1", "sda"]);
}

#[test]
fn a_drive_says_what_it_is() {
    let (_folder, host) = host();
    let drive = host.device("nvme2n1").unwrap();
    assert_eq!(drive.model.as_deref(), Some("SAMSUNG MZ1LB1T9HALS-00007"));
    assert_eq!(drive.confirmation(), "S436NA0M500123");
    assert_eq!((drive.size_bytes, drive.logical_block_bytes), (1_000_204_886_016, 4096));
    assert_eq!((drive.bus, drive.rotational, drive.discard), (Bus::Nvme, false, true));
    assert_eq!(drive.firmware.as_deref(), Some("EDA7602Q"));
    let nvme = drive.nvme.unwrap();
    assert_eq!((nvme.nsid, nvme.controller.as_deref(), nvme.nguid), (7, Some("nvme2"), None));
    assert_eq!((nvme.transport.as_deref(), nvme.address.as_deref()), (Some("pcie"), Some("0000:81:00.0")));
}

#[test]
fn a_drive_in_use_says_by_whom_also_through_its_partitions() {
    let (_folder, host) = host();
    let drive = host.device("sda").unwrap();
    assert_eq!(drive.users, ["held by dm-0", "mounted at /var", "swap"]);
    let partitions: Vec<(&str, u64)> =
        drive.partitions.iter().map(|p| (p.name.as_str(), p.offset_bytes)).collect();
    assert_eq!(partitions, [("sda2", 1 << 20), ("sda3", 0)]);
    assert!(host.device("nvme2n1").unwrap().users.is_empty());
}

#[test]
fn what_a_drive_calls_itself_cannot_write_to_the_terminal() {
    let (_folder, host) = host();
    let drive = host.device("sda").unwrap();
    assert_eq!(drive.model.as_deref(), Some("ST4000?[31mNM"));
    assert_eq!(drive.serial.as_deref(), Some("ZC1ABCDE"));
}

#[test]
fn a_name_that_leads_elsewhere_is_no_device() {
    let (_folder, host) = host();
    for name in ["", "..", "../block/sda", "sda/sda2", "nope", "zram0", "loop0"] {
        assert!(host.device(name).is_none(), "{name}");
    }
}

#[test]
fn this_machines_own_devices_can_be_listed() {
    for device in Host::default().devices().unwrap() {
        assert!(device.size_bytes > 0 && device.path.starts_with("/dev"), "{device:?}");
    }
}
