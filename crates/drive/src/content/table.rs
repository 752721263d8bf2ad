//! Partition tables.

use super::bytes::View;
use super::filesystem::is_fat_geometry;
use super::{Finding, Kind};

/// Entries of a GPT that are looked at.
const GPT_ENTRIES_MAX: u32 = 128;

pub(super) fn find(view: &View, findings: &mut Vec<Finding>) {
    let is_file_system =
        findings.iter().any(|found| found.kind == Kind::Filesystem && found.offset_bytes < 512);
    let gpts = gpt(view, findings);
    if !is_file_system {
        findings.extend(mbr(view, gpts));
    }
    findings.extend(others(view));
}

/// GPT: at the second block, of 512 or 4096 bytes, and a second header in the last (UEFI 2.10, 5.3). True if there is one.
fn gpt(view: &View, findings: &mut Vec<Finding>) -> bool {
    const MAGIC: &[u8] = b"EFI PART";
    for block in [512_u64, 4096] {
        if view.has(block, MAGIC) {
            let found = Finding::new(Kind::PartitionTable, "gpt", block).uuid(view.guid(block + 56));
            findings.push(match gpt_partitions(view, block) {
                Some(count) => found.detail(partitions(count)),
                None => found.detail("its entries are elsewhere or damaged"),
            });
            return true;
        }
    }
    for block in [512_u64, 4096] {
        let last = (view.len_bytes() / block).checked_sub(1).map(|number| number * block);
        if let Some(offset) = last.filter(|&offset| view.has(offset, MAGIC)) {
            let found = Finding::new(Kind::PartitionTable, "gpt", offset).uuid(view.guid(offset + 56));
            findings.push(found.detail("only the second header is left"));
            return true;
        }
    }
    false
}

fn gpt_partitions(view: &View, block: u64) -> Option<u32> {
    let entries = view.le64(block + 72)?.checked_mul(block)?;
    let count = view.le32(block + 80)?.min(GPT_ENTRIES_MAX);
    let stride = u64::from(view.le32(block + 84)?);
    if !(128..=4096).contains(&stride) {
        return None;
    }
    let mut used = 0;
    for index in 0..u64::from(count) {
        let kind = view.slice(entries.checked_add(index * stride)?, 16)?;
        used += u32::from(kind.iter().any(|&byte| byte != 0));
    }
    Some(used)
}

fn partitions(count: u32) -> String {
    match count {
        1 => "1 partition".to_owned(),
        _ => format!("{count} partitions"),
    }
}

/// MBR: the signature alone is on every boot sector, so its four entries must make sense.
fn mbr(view: &View, has_gpt: bool) -> Option<Finding> {
    if !view.has(510, &[0x55, 0xaa]) {
        return None;
    }
    let entries = view.slice(446, 64)?;
    let mut used = 0;
    let mut protective = false;
    for entry in entries.chunks_exact(16) {
        let (status, kind) = (*entry.first()?, *entry.get(4)?);
        if !matches!(status, 0 | 0x80) {
            // Boot code of something else: still somebody's first sector.
            return (!has_gpt).then(|| Finding::new(Kind::PartitionTable, "boot sector", 510));
        }
        protective |= kind == 0xee;
        used += u32::from(kind != 0);
    }
    if (has_gpt && protective) || (used == 0 && is_fat_geometry(view)) {
        return None;
    }
    let id = view.le32(440).filter(|&id| id != 0).map(|id| format!("{id:08x}"));
    let found = Finding::new(Kind::PartitionTable, "mbr", 510).uuid(id);
    Some(if protective {
        found.detail("protective, its gpt is gone")
    } else {
        found.detail(partitions(used))
    })
}

/// Tables of other systems.
fn others(view: &View) -> Option<Finding> {
    let table = |name: &str, offset: u64| Some(Finding::new(Kind::PartitionTable, name, offset));
    if view.has(0, b"ER") && view.has(512, b"PM\0\0") {
        return table("mac", 512);
    }
    if view.has(508, &[0xda, 0xbe]) {
        return table("sun", 508);
    }
    if view.has(512, &[0x57, 0x45, 0x56, 0x82]) && view.has(512 + 132, &[0x57, 0x45, 0x56, 0x82]) {
        return table("bsd", 512);
    }
    if view.has(0, &[0x0b, 0xe5, 0xa9, 0x41]) {
        return table("sgi", 0);
    }
    None
}
