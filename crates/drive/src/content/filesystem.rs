//! File systems and swap whose signature needs more than one look.

use super::bytes::{View, text};
use super::{Finding, Kind};

pub(super) fn find(view: &View, findings: &mut Vec<Finding>) {
    findings.extend(ext(view));
    findings.extend(fat(view));
    findings.extend(swap(view));
}

/// ext2, ext3, ext4: the superblock at 1024 (kernel: Documentation/filesystems/ext4).
fn ext(view: &View) -> Option<Finding> {
    const SUPERBLOCK: u64 = 1024;
    if !view.has(SUPERBLOCK + 0x38, &[0x53, 0xef]) {
        return None;
    }
    let compatible = view.le32(SUPERBLOCK + 0x5c).unwrap_or(0);
    let incompatible = view.le32(SUPERBLOCK + 0x60).unwrap_or(0);
    let has_journal = compatible & 0x4 != 0;
    let name = match (incompatible & 0x8 != 0, has_journal, incompatible & !0x16 != 0) {
        (true, _, _) => "ext journal",
        (_, _, true) => "ext4",
        (_, true, false) => "ext3",
        (_, false, false) => "ext2",
    };
    let label = view.text(SUPERBLOCK + 0x78, 16);
    Some(
        Finding::new(Kind::Filesystem, name, SUPERBLOCK + 0x38)
            .label(label)
            .uuid(view.uuid(SUPERBLOCK + 0x68)),
    )
}

/// FAT has no magic: the name of the type stands where boot code may stand too, so the geometry is looked at as well.
fn fat(view: &View) -> Option<Finding> {
    if !view.has(510, &[0x55, 0xaa]) || !is_fat_geometry(view) {
        return None;
    }
    let (name, label_at, serial_at) = if view.has(82, b"FAT32   ") {
        ("fat32", 71, 67)
    } else if view.has(54, b"FAT16   ") {
        ("fat16", 43, 39)
    } else if view.has(54, b"FAT12   ") {
        ("fat12", 43, 39)
    } else if view.has(54, b"FAT     ") {
        ("fat", 43, 39)
    } else {
        return None;
    };
    let label = view.slice(label_at, 11).filter(|label| *label != b"NO NAME    ").and_then(text);
    let serial = view.le32(serial_at).map(|serial| format!("{:04x}-{:04x}", serial >> 16, serial & 0xffff));
    Some(Finding::new(Kind::Filesystem, name, 0).label(label).uuid(serial))
}

/// Does the first sector hold a BIOS parameter block?
pub(super) fn is_fat_geometry(view: &View) -> bool {
    let (Some(sector), Some(cluster), Some(fats)) = (view.le16(11), view.u8(13), view.u8(16)) else {
        return false;
    };
    matches!(sector, 512 | 1024 | 2048 | 4096) && cluster.is_power_of_two() && matches!(fats, 1 | 2)
}

/// The magic ends the first page, whatever its size on the machine that made it.
fn swap(view: &View) -> Option<Finding> {
    for page in [4096, 8192, 16384, 65536] {
        let at = page - 10;
        for magic in [b"SWAPSPACE2", b"SWAP-SPACE"] {
            if view.has(at, magic) {
                let swap = Finding::new(Kind::Swap, "swap", at);
                return Some(swap.label(view.text(1024 + 28, 16)).uuid(view.uuid(1024 + 12)));
            }
        }
        for magic in [b"S1SUSPEND\0", b"S2SUSPEND\0", b"LINHIB0001"] {
            if view.has(at, magic) {
                return Some(Finding::new(Kind::Swap, "hibernated system", at));
            }
        }
    }
    None
}
