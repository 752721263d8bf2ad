//! The layout to the byte: what version 1 wrote is read for ever.

use state::migration::MigrationV1;
use volume::{Entry, Pool, Provisioning};

use crate::drive::SimDisk;
use crate::world::{MIB, drive, formatted, former_build_refuses, open_as, record, spec};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pool-v1.bin");
const GOLDEN_2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pool-v2.bin");

/// The same life every time, with something of everything.
fn life() -> SimDisk {
    let disk = formatted(16);
    let mut pool = open_as(&disk, 0x1122_3344_5566_7788).expect("sound");
    let full = pool.create(&spec("full", 3, Provisioning::Full)).expect("space is there");
    let thin = pool.create(&spec("thin", 100, Provisioning::Thin)).expect("space is there");
    pool.allocate(&[(thin, 7), (thin, 8), (thin, 50)]).expect("space is there");
    for _ in 0..70 {
        // Long enough for a map in the other area.
        let epoch = pool.volume(thin).expect("there").epoch;
        pool.advance_epoch(thin, epoch).expect("its owner");
    }
    pool.snapshot(thin, "snap", [6; 16]).expect("there");
    let clone = pool.clone_volume(thin, "clone", [7; 16]).expect("there");
    if let volume::Allocation::Copy(order) = pool.allocate(&[(clone, 8)]).expect("space is there")[0] {
        pool.copied(&[order]).expect("ordered");
    }
    pool.allocate(&[(clone, 50)]).expect("space is there");
    pool.release(thin, 7..8).expect("thin");
    pool.grow(full, 4 * MIB).expect("space is there");
    pool.set_attributes(thin, b"profile=godwit-1").expect("short");
    let gone = pool.create(&spec("gone", 3, Provisioning::Full)).expect("space is there");
    pool.delete(gone).expect("there");
    pool.grace_over(pool.grace());
    let order = pool.next_wipe(1).expect("deleted");
    pool.wipe_failed(order).expect("ordered");
    let order = pool.next_wipe(1).expect("deleted");
    pool.wiped(order).expect("ordered");
    disk
}

/// The same, and what moved between hosts: one that is gone, and one that came.
fn life_2() -> SimDisk {
    let disk = life();
    let mut pool = open_as(&disk, 3).expect("sound");
    for (name, steps) in [("thin", &[0, 1, 2][..]), ("clone", &[8, 9, 10])] {
        let id = pool.find(name).expect("there");
        for step in steps {
            let epoch = pool.volume(id).expect("there").epoch;
            pool.set_passage(id, &record(*step, epoch, 0).0.to_bytes().expect("sound")).expect("its turn");
        }
    }
    disk
}

/// Blocks that are not zero, each as: offset (8 bytes), length (4 bytes), bytes.
fn pack(disk: &SimDisk) -> Vec<u8> {
    let mut packed = Vec::new();
    for at in (0..12 * MIB).step_by(4096) {
        let block = disk.peek(at, 4096);
        let Some(last) = block.iter().rposition(|byte| *byte != 0) else { continue };
        packed.extend_from_slice(&at.to_le_bytes());
        packed.extend_from_slice(&u32::try_from(last + 1).expect("a block").to_le_bytes());
        packed.extend_from_slice(&block[..=last]);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> SimDisk {
    let disk = drive(16);
    while let Some((head, rest)) = packed.split_at_checked(12) {
        let at = u64::from_le_bytes(head[..8].try_into().expect("eight"));
        let len = u32::from_le_bytes(head[8..].try_into().expect("four")) as usize;
        disk.poke(at, &rest[..len]);
        packed = &rest[len..];
    }
    disk
}

fn golden(path: &str) -> Vec<u8> {
    std::fs::read(path).expect("the golden file is in the tree")
}

#[test]
fn version_1_is_written_as_it_always_was() {
    let packed = pack(&life());
    assert!(packed == golden(GOLDEN), "the bytes differ: a change of the layout needs a version of its own");
}

#[test]
#[ignore = "writes the golden file: only for a new version"]
fn write_the_golden_file() {
    std::fs::write(GOLDEN, pack(&life())).expect("golden file");
    std::fs::write(GOLDEN_2, pack(&life_2())).expect("golden file");
}

#[test]
fn version_2_is_written_as_it_always_was_and_a_build_of_version_1_refuses_it_by_name() {
    let disk = life_2();
    assert!(
        pack(&disk) == golden(GOLDEN_2),
        "the bytes differ: a change of the layout needs a version of its own"
    );
    assert!(former_build_refuses(&disk) && !former_build_refuses(&life()));
}

#[test]
fn version_2_is_read_for_ever() {
    let mut pool = open_as(&unpack(&golden(GOLDEN_2)), 4).expect("whole");
    let steps: Vec<_> = pool
        .volumes()
        .into_iter()
        .map(|volume| {
            let record = volume.passage.map(|bytes| MigrationV1::from_bytes(&bytes).expect("sound"));
            (volume.name, volume.epoch, record.map(|record| record.step()))
        })
        .collect();
    let row = |name: &str, epoch, step| (name.to_owned(), epoch, step);
    assert_eq!(
        steps,
        [
            row("full", 0, None),
            row("thin", 70, Some("gone")),
            row("snap", 0, None),
            row("clone", 1, Some("owned"))
        ]
    );
    let [thin, clone] = ["thin", "clone"].map(|name| pool.find(name).expect("listed"));
    assert!(pool.may_serve(thin).is_err() && pool.may_serve(clone).is_ok());
    assert!(pool.map(clone).is_ok());
}

#[test]
fn version_1_is_read_for_ever() {
    let disk = unpack(&golden(GOLDEN));
    let info = Pool::peek(&disk).expect("whole");
    assert_eq!((info.name.as_str(), info.epoch, info.extent_bytes), ("tank", 1, MIB));
    assert_eq!((info.used, info.wiping, info.quarantined), (8, 2, 1));
    let mut pool = open_as(&disk, 2).expect("whole");
    let rows: Vec<_> = pool
        .volumes()
        .into_iter()
        .map(|volume| (volume.name, volume.size_bytes / MIB, volume.mapped_extents, volume.epoch))
        .collect();
    let row = |name: &str, mib, mapped, epoch| (name.to_owned(), mib, mapped, epoch);
    assert_eq!(
        rows,
        [row("full", 4, 4, 0), row("thin", 100, 2, 70), row("snap", 100, 3, 0), row("clone", 100, 3, 0)]
    );
    let thin = pool.find("thin").expect("listed");
    assert_eq!(pool.volume(thin).expect("listed").attributes, b"profile=godwit-1");
    let map = pool.map(thin).expect("listed");
    assert_eq!(map.entry(7), Entry::Unmapped);
    assert!(matches!(map.entry(50), Entry::Shared { .. }), "snapshot and clone have it too");
}
