//! Signatures that are a magic at a fixed place, and perhaps a label and a UUID at others.

use super::bytes::View;
use super::{Finding, Kind};

struct Magic {
    kind: Kind,
    name: &'static str,
    offset: u64,
    magic: &'static [u8],
    label: Option<(u64, usize)>,
    uuid: Option<u64>,
}

const fn magic(kind: Kind, name: &'static str, offset: u64, magic: &'static [u8]) -> Magic {
    Magic { kind, name, offset, magic, label: None, uuid: None }
}

const fn named(mut magic: Magic, label: (u64, usize), uuid: u64) -> Magic {
    magic.label = Some(label);
    magic.uuid = Some(uuid);
    magic
}

const fn with_uuid(mut magic: Magic, uuid: u64) -> Magic {
    magic.uuid = Some(uuid);
    magic
}

/// Offsets from the start of the drive. The sources are the formats' own headers in Linux (`include/uapi/linux/magic.h` and each file
/// system's), and the projects' documents.
const MAGICS: &[Magic] = &[
    named(magic(Kind::Filesystem, "xfs", 0, b"XFSB"), (108, 12), 32),
    named(magic(Kind::Filesystem, "btrfs", 0x1_0040, b"_BHRfS_M"), (0x1_012b, 256), 0x1_0020),
    named(magic(Kind::Filesystem, "bcachefs", 4096 + 24, &BCACHEFS), (4096 + 72, 32), 4096 + 56),
    with_uuid(magic(Kind::Volume, "bcache", 4096 + 24, &BCACHE), 4096 + 40),
    magic(Kind::Filesystem, "ntfs", 3, b"NTFS    "),
    magic(Kind::Filesystem, "exfat", 3, b"EXFAT   "),
    magic(Kind::Filesystem, "refs", 3, b"ReFS\0\0\0\0"),
    magic(Kind::Encryption, "BitLocker", 3, b"-FVE-FS-"),
    with_uuid(magic(Kind::Filesystem, "f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]), 1024 + 108),
    named(magic(Kind::Filesystem, "nilfs2", 1024 + 6, &[0x34, 0x34]), (1024 + 152, 80), 1024 + 136),
    named(magic(Kind::Filesystem, "reiserfs", 65536 + 52, b"ReIsEr"), (65536 + 100, 16), 65536 + 84),
    named(magic(Kind::Filesystem, "jfs", 32768, b"JFS1"), (32768 + 152, 16), 32768 + 136),
    with_uuid(magic(Kind::Filesystem, "gfs2", 65536, &[0x01, 0x16, 0x19, 0x70]), 65536 + 256),
    magic(Kind::Filesystem, "ocfs2", 1024 * 8, b"OCFSV2"),
    magic(Kind::Filesystem, "ocfs2", 4096 * 2, b"OCFSV2"),
    magic(Kind::Filesystem, "hfs+", 1024, b"H+\0\x04"),
    magic(Kind::Filesystem, "hfsx", 1024, b"HX\0\x05"),
    magic(Kind::Filesystem, "apfs", 32, b"NXSB"),
    magic(Kind::Filesystem, "squashfs", 0, b"hsqs"),
    named(magic(Kind::Filesystem, "erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]), (1024 + 64, 16), 1024 + 48),
    magic(Kind::Filesystem, "cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    magic(Kind::Filesystem, "romfs", 0, b"-rom1fs-"),
    magic(Kind::Filesystem, "iso9660", 32768 + 1, b"CD001"),
    magic(Kind::Filesystem, "udf", 32768 + 1, b"BEA01"),
    magic(Kind::Filesystem, "ufs2", 65536 + 1372, &[0x19, 0x01, 0x54, 0x19]),
    magic(Kind::Filesystem, "VMFS", 0x10_0000, &[0x0d, 0xd0, 0x01, 0xc0]),
    magic(Kind::Volume, "VMFS volume", 0x10_0000, &[0x5e, 0xf1, 0xab, 0x2f]),
    magic(Kind::Volume, "Stratis", 4096 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    magic(Kind::Volume, "VDO", 0, b"dmvdo001"),
    magic(Kind::Encryption, "dm-integrity", 0, b"integrt\0"),
    magic(Kind::Encryption, "dm-verity", 0, b"verity\0\0"),
    magic(Kind::Storage, "Ceph BlueStore", 0, b"bluestore block device"),
    magic(Kind::Storage, "Oracle ASM", 32, b"ORCLDISK"),
    magic(Kind::Storage, "DAOS or SPDK blobstore", 0, b"SPDKBLOB"),
    // As `state::pool::HEADER_MAGIC` and `HALF_MADE_MAGIC`, in the places of `docs/formats/pool.md`.
    magic(Kind::HalfMadePool, "half-made Godwit pool", 0, b"GODWHALF"),
    magic(Kind::GodwitPool, "Godwit pool", 0, b"GODWPOOL"),
    magic(Kind::GodwitPool, "Godwit pool", 1 << 20, b"GODWPOOL"),
];

const BCACHE: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
const BCACHEFS: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];

/// DRBD's metadata ends 4 KiB before the end; the magic is big-endian, one for each layout.
const DRBD_MAGICS: [u32; 4] = [0x8374_026b, 0x8374_026c, 0x8374_026d, 0x8374_026e];

pub(super) fn find(view: &View, findings: &mut Vec<Finding>) {
    for known in MAGICS.iter().filter(|known| view.has(known.offset, known.magic)) {
        let label = known.label.and_then(|(offset, len)| view.text(offset, len));
        let uuid = known.uuid.and_then(|offset| view.uuid(offset));
        findings.push(Finding::new(known.kind, known.name, known.offset).label(label).uuid(uuid));
    }
    findings.dedup_by(|a, b| a.name == b.name && a.offset_bytes == b.offset_bytes);
    let drbd = (view.len_bytes() & !4095).checked_sub(4096);
    if let Some(offset) = drbd.and_then(|block| block.checked_add(60))
        && view.be32(offset).is_some_and(|magic| DRBD_MAGICS.contains(&magic))
    {
        findings.push(Finding::new(Kind::Raid, "DRBD", offset));
    }
}
