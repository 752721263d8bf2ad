//! Samples: the sectors that `mkfs`, `sfdisk`, `pvcreate`, `cryptsetup` and their like of Debian 12 wrote, kept as text. MD, DDF, ZFS
//! and the others are written by hand from the formats' documents.

use super::*;

const SAMPLES_OF_TOOLS: &[(&str, &str, Kind, &str)] = &[
    ("ext2", include_str!("../../tests/samples/ext2.txt"), Kind::Filesystem, "ext2 \"data\""),
    ("ext3", include_str!("../../tests/samples/ext3.txt"), Kind::Filesystem, "ext3 \"data\""),
    ("ext4", include_str!("../../tests/samples/ext4.txt"), Kind::Filesystem, "ext4 \"data\""),
    ("xfs", include_str!("../../tests/samples/xfs.txt"), Kind::Filesystem, "xfs \"data\""),
    ("btrfs", include_str!("../../tests/samples/btrfs.txt"), Kind::Filesystem, "btrfs \"data\""),
    ("fat16", include_str!("../../tests/samples/fat16.txt"), Kind::Filesystem, "fat16 \"DATA\""),
    ("fat32", include_str!("../../tests/samples/fat32.txt"), Kind::Filesystem, "fat32 \"DATA\""),
    ("f2fs", include_str!("../../tests/samples/f2fs.txt"), Kind::Filesystem, "f2fs"),
    ("ntfs", include_str!("../../tests/samples/ntfs.txt"), Kind::Filesystem, "ntfs"),
    ("exfat", include_str!("../../tests/samples/exfat.txt"), Kind::Filesystem, "exfat"),
    ("iso", include_str!("../../tests/samples/iso.txt"), Kind::Filesystem, "iso9660"),
    ("erofs", include_str!("../../tests/samples/erofs.txt"), Kind::Filesystem, "erofs"),
    ("swap", include_str!("../../tests/samples/swap.txt"), Kind::Swap, "swap \"data\""),
    ("gpt", include_str!("../../tests/samples/gpt.txt"), Kind::PartitionTable, "gpt (2 partitions)"),
    ("mbr", include_str!("../../tests/samples/mbr.txt"), Kind::PartitionTable, "mbr (3 partitions)"),
    (
        "mbr-empty",
        include_str!("../../tests/samples/mbr-empty.txt"),
        Kind::PartitionTable,
        "mbr (0 partitions)",
    ),
    ("sun", include_str!("../../tests/samples/sun.txt"), Kind::PartitionTable, "sun"),
    ("sgi", include_str!("../../tests/samples/sgi.txt"), Kind::PartitionTable, "sgi"),
    ("luks1", include_str!("../../tests/samples/luks1.txt"), Kind::Encryption, "LUKS1"),
    ("luks2", include_str!("../../tests/samples/luks2.txt"), Kind::Encryption, "LUKS2 \"data\""),
    ("lvm", include_str!("../../tests/samples/lvm.txt"), Kind::Volume, "LVM2"),
    ("bcache", include_str!("../../tests/samples/bcache.txt"), Kind::Volume, "bcache"),
];

/// A drive that is zero but for some runs of bytes.
#[derive(Default)]
struct Sparse {
    len_bytes: u64,
    runs: Vec<(u64, Vec<u8>)>,
    broken: Option<std::ops::Range<u64>>,
}

impl Sparse {
    fn new(len_bytes: u64) -> Sparse {
        Sparse { len_bytes, ..Sparse::default() }
    }

    fn with(mut self, offset: u64, bytes: &[u8]) -> Sparse {
        self.runs.push((offset, bytes.to_vec()));
        self
    }

    fn sample(text: &str) -> Sparse {
        let mut lines = text.lines();
        let len = lines.next().unwrap().strip_prefix("length ").unwrap().parse().unwrap();
        lines.fold(Sparse::new(len), |sparse, line| {
            let (offset, hex) = line.split_once(' ').unwrap();
            let digits: Vec<u32> = hex.chars().map(|c| c.to_digit(16).unwrap()).collect();
            let bytes: Vec<u8> =
                digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect();
            sparse.with(offset.parse().unwrap(), &bytes)
        })
    }
}

impl Source for Sparse {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        if end > self.len_bytes
            || self.broken.as_ref().is_some_and(|range| offset < range.end && range.start < end)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.fill(0);
        for (at, bytes) in &self.runs {
            for (place, byte) in (*at..).zip(bytes) {
                if (offset..end).contains(&place) {
                    into[usize::try_from(place - offset).unwrap()] = *byte;
                }
            }
        }
        Ok(())
    }
}

fn summary(drive: &Sparse) -> String {
    look(drive).summary()
}

#[test]
fn what_the_tools_write_is_recognised_by_name_and_label() {
    for (name, text, kind, expected) in SAMPLES_OF_TOOLS {
        let contents = look(&Sparse::sample(text));
        assert!(contents.findings.iter().any(|found| found.kind == *kind), "{name}: {contents:?}");
        assert_eq!(contents.summary(), *expected, "{name}: {contents:?}");
    }
}

#[test]
fn what_the_tools_write_is_recognised_by_its_uuid() {
    let given = "11112222-3333-4444-5555-666677778888";
    for (name, text, ..) in SAMPLES_OF_TOOLS {
        let contents = look(&Sparse::sample(text));
        let uuid = contents.findings.iter().find_map(|found| found.uuid.clone()).unwrap_or_default();
        match *name {
            "fat16" | "fat32" => assert_eq!(uuid, "1234-abcd", "{name}"),
            "mbr" | "mbr-empty" => assert_eq!(uuid, "1234abcd", "{name}"),
            "lvm" => assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [6, 4, 4, 4, 4, 4, 6]),
            "ntfs" | "exfat" | "iso" | "sun" | "sgi" => {}
            // The tools make one of their own.
            "f2fs" | "bcache" => assert_eq!(uuid.len(), 36, "{name}"),
            _ => assert_eq!(uuid, given, "{name}: {contents:?}"),
        }
    }
}

#[test]
fn a_blank_drive_is_blank_at_every_size() {
    for len in [0, 1, 511, 512, 4096, 65536, 1 << 20, (5 << 20) + 513, 1 << 40] {
        assert!(look(&Sparse::new(len)).is_blank(), "{len}");
    }
}

#[test]
fn data_without_a_signature_is_somebodys() {
    let drive = Sparse::new(1 << 30).with(77, b"x");
    assert_eq!(look(&drive).findings[0].offset_bytes, 77);
    // In a sample of the middle, behind every window.
    let drive = Sparse::new(1 << 30).with(512 << 20, b"y");
    assert_eq!(look(&drive).findings[0].kind, Kind::Unknown);
}

#[test]
fn members_of_an_md_array_are_found_wherever_their_version_hides_them() {
    let mut superblock = vec![0; 256];
    superblock[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
    superblock[32..40].copy_from_slice(b"host:md0");
    superblock[72] = 5;
    superblock[92] = 3;
    let len = (1 << 30) + 512;
    for (name, offset) in [("MD 1.1", 0), ("MD 1.2", 4096), ("MD 1.0", (1 << 30) - 8192)] {
        let contents = look(&Sparse::new(len).with(offset, &superblock));
        assert_eq!(contents.summary(), format!("{name} \"host:md0\""));
        assert_eq!(contents.findings[0].detail.as_deref(), Some("raid level 5, 3 disks"));
    }
    let mut old = vec![0; 64];
    old[..4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
    assert_eq!(summary(&Sparse::new(len).with((1 << 30) - 65536, &old)), "MD 0.90");
}

#[test]
fn what_sits_at_the_very_end_is_found() {
    let len = (1 << 30) + 512;
    assert_eq!(summary(&Sparse::new(len).with(len - 512, &[0xde, 0x11, 0xde, 0x11])), "DDF");
    assert_eq!(summary(&Sparse::new(len).with(len - 1024, b"Intel Raid ISM Cfg Sig. 1.3")), "Intel RAID");
    let drbd = (len & !4095) - 4096 + 60;
    assert_eq!(summary(&Sparse::new(len).with(drbd, &[0x83, 0x74, 0x02, 0x6d])), "DRBD");
    let gpt = Sparse::new(len).with(len - 512, b"EFI PART");
    assert_eq!(summary(&gpt), "gpt (only the second header is left)");
    let zfs = Sparse::new(len).with((1 << 30) - (256 << 10) + (128 << 10), &0x00ba_b10c_u64.to_le_bytes());
    assert_eq!(summary(&zfs), "ZFS");
}

#[test]
fn a_zfs_pool_is_called_by_its_name() {
    let mut list = vec![0, 0, 0, 4];
    list.extend(b"name");
    list.extend([0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 4]);
    list.extend(b"tank");
    let drive =
        Sparse::new(1 << 30).with((16 << 10) + 100, &list).with(200 << 10, &0x00ba_b10c_u64.to_be_bytes());
    assert_eq!(summary(&drive), "ZFS \"tank\"");
}

#[test]
fn a_luks2_whose_first_header_is_gone_is_found_by_its_second() {
    let drive = Sparse::new(64 << 20).with(4 << 20, b"SKUL\xba\xbe\0\x02");
    assert_eq!(look(&drive).findings[0].kind, Kind::Encryption);
}

#[test]
fn the_other_formats_are_found_by_their_magic() {
    for (offset, bytes, expected) in [
        (0, b"bluestore block device\n".as_slice(), "Ceph BlueStore"),
        (4100, b"!Stra0tis\x86\xff\x02^\x41rh", "Stratis"),
        (32, b"ORCLDISK", "Oracle ASM"),
        (3, b"-FVE-FS-", "BitLocker"),
        (0, b"hsqs", "squashfs"),
        (65536 + 52, b"ReIsEr2Fs", "reiserfs"),
        (0, b"GODWPOOL", "Godwit pool"),
        (4096 - 10, b"S1SUSPEND\0", "hibernated system"),
    ] {
        assert_eq!(summary(&Sparse::new(1 << 30).with(offset, bytes)), expected);
    }
}

#[test]
fn a_damaged_table_is_still_somebodys() {
    for (name, text, kind, _) in
        SAMPLES_OF_TOOLS.iter().filter(|sample| matches!(sample.0, "gpt" | "ext4" | "luks2"))
    {
        let mut drive = Sparse::sample(text);
        // Everything behind the magic is overwritten with ones.
        for (_, bytes) in &mut drive.runs {
            bytes.iter_mut().skip(8).for_each(|byte| *byte = 0xff);
        }
        let found = look(&drive).findings;
        assert!(!found.is_empty(), "{name}");
        if *name == "gpt" {
            assert!(found.iter().any(|found| found.kind == *kind), "{found:?}");
        }
    }
}

#[test]
fn a_place_that_cannot_be_read_is_told_and_is_not_blank() {
    for broken in [0..4096, (1 << 30) - 4096..(1 << 30), (512 << 20)..(512 << 20) + 1] {
        let drive = Sparse { broken: Some(broken.clone()), ..Sparse::new(1 << 30) };
        let contents = look(&drive);
        assert!(
            !contents.is_blank() && contents.summary().contains("unreadable"),
            "{broken:?}: {contents:?}"
        );
    }
}

#[test]
fn any_bytes_anywhere_never_panic_and_stay_bounded() {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    };
    for (_, text, ..) in SAMPLES_OF_TOOLS {
        for _ in 0..8 {
            let mut drive = Sparse::sample(text);
            for (_, bytes) in &mut drive.runs {
                bytes.iter_mut().for_each(|byte| {
                    if random() < 40 {
                        *byte = random()
                    }
                });
            }
            assert!(look(&drive).findings.len() <= FINDINGS_MAX);
        }
    }
}
