//! Members of something larger: LVM, MD, vendors' RAID, LUKS, ZFS.

use super::bytes::{View, text};
use super::{Finding, Kind};

pub(super) fn find(view: &View, findings: &mut Vec<Finding>) {
    findings.extend(lvm(view));
    md(view, findings);
    findings.extend(luks(view));
    findings.extend(zfs(view));
    findings.extend(firmware_raid(view));
}

/// LVM2's label is in one of the first four sectors: `LABELONE`, the sector's number, CRC, offset, `LVM2 001`, then the UUID of the
/// physical volume as text (lib/format_text/layout.h).
fn lvm(view: &View) -> Option<Finding> {
    for sector in [0_u64, 512, 1024, 1536] {
        if view.has(sector, b"LABELONE") {
            let name = if view.has(sector + 24, b"LVM2 001") { "LVM2" } else { "LVM" };
            let uuid = view.slice(sector + 32, 32).and_then(text);
            return Some(Finding::new(Kind::Volume, name, sector).uuid(uuid.map(|raw| lvm_uuid(&raw))));
        }
    }
    None
}

/// LVM prints its 32 characters in groups of 6, 4, 4, 4, 4, 4 and 6.
fn lvm_uuid(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len() + 6);
    for (index, c) in raw.chars().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(c);
    }
    text
}

/// MD: version 1 at the start (1.1), 4 KiB behind it (1.2) or near the end (1.0), version 0.90 in the last whole 64 KiB but one
/// (kernel: include/uapi/linux/raid/md_p.h).
fn md(view: &View, findings: &mut Vec<Finding>) {
    const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    let len = view.len_bytes();
    let at_end = (len / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    for (name, offset) in [("MD 1.1", Some(0)), ("MD 1.2", Some(4096)), ("MD 1.0", at_end)] {
        let Some(offset) = offset.filter(|&offset| view.has(offset, &MAGIC)) else { continue };
        if view.le32(offset + 4) == Some(1) {
            let level = view.le32(offset + 72).unwrap_or(0);
            let disks = view.le32(offset + 92).unwrap_or(0);
            let found = Finding::new(Kind::Raid, name, offset).label(view.text(offset + 32, 32));
            findings.push(found.uuid(view.uuid(offset + 16)).detail(md_detail(level, disks)));
        }
    }
    let old = (len & !0xffff).checked_sub(0x1_0000);
    if let Some(offset) = old.filter(|&offset| {
        // Some machines write it big-endian.
        view.has(offset, &MAGIC) || view.has(offset, &[0xa9, 0x2b, 0x4e, 0xfc])
    }) && view.le32(offset + 4).is_some_and(|major| major == 0 || major == 0x0000_0000_u32.to_be())
    {
        let (level, disks) = (view.le32(offset + 28).unwrap_or(0), view.le32(offset + 40).unwrap_or(0));
        findings.push(Finding::new(Kind::Raid, "MD 0.90", offset).detail(md_detail(level, disks)));
    }
}

fn md_detail(level: u32, disks: u32) -> String {
    format!("raid level {}, {disks} disks", level.cast_signed())
}

/// LUKS1, LUKS2, and the second header of a LUKS2 whose first is gone (its place depends on the size of the JSON area).
fn luks(view: &View) -> Option<Finding> {
    let header = |offset: u64, name: &str, detail: Option<&str>| {
        let found = Finding::new(Kind::Encryption, name, offset).uuid(view.text(offset + 168, 40));
        Some(match detail {
            Some(detail) => found.detail(detail),
            None => found.label((name == "LUKS2").then(|| view.text(offset + 24, 48)).flatten()),
        })
    };
    if view.has(0, b"LUKS\xba\xbe") {
        let name = if view.has(6, &[0, 1]) { "LUKS1" } else { "LUKS2" };
        return header(0, name, None);
    }
    (14..=22)
        .map(|shift| 1_u64 << shift)
        .find(|&offset| view.has(offset, b"SKUL\xba\xbe"))
        .and_then(|offset| header(offset, "LUKS2", Some("only the second header is left")))
}

/// ZFS: four labels of 256 KiB, two at each end; in each, from 128 KiB on, a ring of uberblocks that begin with 0x00bab10c, one for each
/// KiB or more. The name is in an XDR list at 16 KiB, which is searched for, not parsed.
fn zfs(view: &View) -> Option<Finding> {
    const LABEL: u64 = 256 << 10;
    let end = view.len_bytes() & !(LABEL - 1);
    let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    for label in labels.into_iter().flatten() {
        let mut ring = (0..128).map(|slot| label + (128 << 10) + (slot << 10));
        let magics: [[u8; 8]; 2] = [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()];
        if let Some(at) = ring.find(|&at| magics.iter().any(|magic| view.has(at, magic))) {
            let name = view.slice(label + (16 << 10), 4096).and_then(zfs_name);
            return Some(Finding::new(Kind::Volume, "ZFS", at).label(name));
        }
    }
    None
}

/// In an XDR list, the pair `name`, then: type 9 (string), one element, its length, its bytes.
fn zfs_name(list: &[u8]) -> Option<String> {
    let key = [0, 0, 0, 4, b'n', b'a', b'm', b'e', 0, 0, 0, 9, 0, 0, 0, 1];
    let at = list.windows(key.len()).position(|window| window == key)?;
    let rest = list.get(at.checked_add(key.len())?..)?;
    let len = usize::try_from(u32::from_be_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
    text(rest.get(4..4_usize.checked_add(len)?)?)
}

/// RAID of firmware, which sits at the very end: SNIA DDF and Intel's.
fn firmware_raid(view: &View) -> Option<Finding> {
    let sectors = view.len_bytes() / 512;
    let ddf = sectors.checked_sub(1).map(|sector| sector * 512);
    if let Some(offset) = ddf.filter(|&offset| view.has(offset, &[0xde, 0x11, 0xde, 0x11])) {
        return Some(Finding::new(Kind::Raid, "DDF", offset));
    }
    let intel = sectors.checked_sub(2).map(|sector| sector * 512);
    let offset = intel.filter(|&offset| view.has(offset, b"Intel Raid ISM Cfg Sig. "))?;
    Some(Finding::new(Kind::Raid, "Intel RAID", offset))
}
