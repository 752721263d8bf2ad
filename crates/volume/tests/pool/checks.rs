//! What `check` finds, what it repairs, and what is refused.

use state::pool::{CHUNK_MAGIC, ChunkV1, HEADER_MAGIC, HeaderV1, RunV1, UnfitV1, VolumeRunsV1, VolumeV1};
use volume::{OpenOptions, Pool, PoolError, Provisioning, Report, Severity, check};

use crate::drive::SimDisk;
use crate::world::{HOST, MIB, formatted, open_as, spec};

const OPTIONS: OpenOptions = OpenOptions { host: HOST, nonce: 9, take_over: false };
const MAP_0: u64 = 2 * MIB;
const MAP_BYTES: u64 = 3 * MIB;
pub(crate) const JOURNAL_0: u64 = MAP_0 + MAP_BYTES;

pub(crate) fn header_at(disk: &SimDisk, at: u64) -> HeaderV1 {
    let block = disk.peek(at, 4096);
    let len = state::envelope::record_bytes(&block).expect("a header");
    state::pool::open(HEADER_MAGIC, &block[..len]).expect("whole").0
}

pub(crate) fn write_headers(disk: &SimDisk, header: &HeaderV1) {
    let (mut bytes, _) = state::pool::seal(HEADER_MAGIC, header.layout(), header).expect("short");
    bytes.resize(4096, 0);
    disk.poke(0, &bytes);
    disk.poke(MIB, &bytes);
}

/// Puts a map of one chunk in the place of the pool's, with every checksum right.
fn forge(disk: &SimDisk, change: impl FnOnce(&mut ChunkV1)) {
    forge_as(disk, 1, 1, change);
}

/// The same, with headers and a map of such versions.
pub(crate) fn forge_as(disk: &SimDisk, header_is: u32, map_is: u32, change: impl FnOnce(&mut ChunkV1)) {
    let mut header = HeaderV1 { version: (header_is != 1).then_some(header_is), ..header_at(disk, 0) };
    let mut chunk = ChunkV1 {
        uuid: header.uuid,
        map_generation: header.map_generation,
        last: true,
        seq: header.map_seq,
        epoch: header.map_epoch,
        next_volume: 10,
        ..ChunkV1::default()
    };
    change(&mut chunk);
    let (bytes, chain) = state::pool::seal(CHUNK_MAGIC, map_is, &chunk).expect("short");
    disk.poke(MAP_0, &bytes);
    header.map_chain = chain;
    write_headers(disk, &header);
}

pub(crate) fn volume(id: u64, extents: u64) -> VolumeV1 {
    VolumeV1 { id, name: format!("v{id}"), size_bytes: extents * MIB, family: id, ..VolumeV1::default() }
}

fn runs(volume: u64, runs: &[(u32, u32, u32)]) -> VolumeRunsV1 {
    let run = |&(logical, count, physical)| RunV1 { logical, count, physical };
    VolumeRunsV1 { volume, runs: runs.iter().map(run).collect() }
}

fn worst(report: &Report) -> Severity {
    report.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Note)
}

pub(crate) fn texts(report: &Report) -> String {
    report.findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// A pool with a life behind it: the map was switched at least once and its journal is in use.
fn lived() -> SimDisk {
    let disk = formatted(24);
    let mut pool = open_as(&disk, 1).expect("sound");
    let id = pool.create(&spec("a", 20, Provisioning::Thin)).expect("space is there");
    for round in 0..40 {
        pool.allocate(&[(id, round % 20)]).expect("space is there");
        pool.release(id, round % 20..round % 20 + 1).expect("thin");
        pool.grace_over(pool.grace());
        let order = pool.next_wipe(1).expect("released");
        pool.wiped(order).expect("ordered");
    }
    pool.allocate(&[(id, 5), (id, 9)]).expect("space is there");
    pool.snapshot(id, "s", [5; 16]).expect("there");
    disk
}

#[test]
fn one_damaged_header_is_found_survived_and_repaired() {
    for at in [0, MIB] {
        let disk = lived();
        disk.poke(at + 40, &[0xee; 3]);
        let report = check(&disk, None).expect("the other holds");
        assert_eq!(worst(&report), Severity::Repairable, "{}", texts(&report));
        drop(open_as(&disk.fork(), 2).expect("the other holds"));
        let report = check(&disk, Some(&OPTIONS)).expect("the other holds");
        assert!(report.is_sound() && report.findings[0].repaired, "{}", texts(&report));
        assert!(check(&disk, None).expect("there").findings.is_empty());
        assert_eq!(header_at(&disk, 0), header_at(&disk, MIB));
    }
}

#[test]
fn an_unreadable_header_is_survived() {
    for at in [0, MIB] {
        let disk = lived();
        disk.spoil(at);
        assert_eq!(open_as(&disk, 2).expect("the other holds").volumes().len(), 2);
    }
}

#[test]
fn without_any_header_there_is_damage_and_without_a_trace_no_pool() {
    let disk = lived();
    disk.poke(30, &[0xee; 3]);
    disk.poke(MIB + 30, &[0xee; 3]);
    assert_eq!(worst(&check(&disk, Some(&OPTIONS)).expect("a trace is there")), Severity::Damage);
    assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(_))));
    disk.poke(0, &[0; 8]);
    disk.poke(MIB, &[0; 8]);
    assert!(matches!(check(&disk, None), Err(PoolError::NoPool)));
}

#[test]
fn a_damaged_map_is_rebuilt_from_the_one_before_it_and_its_journal() {
    let disk = lived();
    let header = header_at(&disk, 0);
    let map = MAP_0 + u64::from(header.slot) * (MAP_BYTES + (256 << 10));
    assert!(header.map_follows && header.map_generation > 1, "the life was long enough");
    let sound = open_as(&disk.fork(), 2).expect("sound");
    let before = disk.peek(map, 4096);
    disk.poke(map + 60, &[0xee; 5]);
    assert!(matches!(open_as(&disk, 3), Err(PoolError::Damaged(_))));
    let report = check(&disk, None).expect("there");
    assert_eq!(worst(&report), Severity::Repairable, "{}", texts(&report));
    assert!(check(&disk, Some(&OPTIONS)).expect("there").is_sound());
    assert_eq!(disk.peek(map, 4096), before, "the same to the byte");
    let mended = open_as(&disk, 4).expect("repaired");
    assert_eq!(mended.volumes(), sound.volumes());
    assert_eq!(mended.info().free, sound.info().free);
}

#[test]
fn a_map_that_cannot_be_rebuilt_is_damage_and_says_why() {
    let disk = formatted(8);
    disk.poke(MAP_0 + 30, &[0xee; 5]);
    let report = check(&disk, Some(&OPTIONS)).expect("there");
    assert_eq!(worst(&report), Severity::Damage);
    assert!(texts(&report).contains("cannot be rebuilt"), "{}", texts(&report));
}

#[test]
fn a_damaged_change_in_the_middle_of_the_journal_is_not_taken_for_its_end() {
    let disk = formatted(8);
    let mut pool = open_as(&disk, 1).expect("sound");
    for name in ["a", "b", "c"] {
        pool.create(&spec(name, 1, Provisioning::Thin)).expect("space is there");
    }
    drop(pool);
    let second = JOURNAL_0 + 4096;
    let whole = disk.fork();
    disk.poke(second + 50, &[0xee]);
    assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(_))));
    let report = check(&disk, None).expect("there");
    assert!(texts(&report).contains("change 2 of the journal is lost"), "{}", texts(&report));
    // Lost altogether, as if it had landed elsewhere.
    let disk = whole;
    disk.poke(second, &[0; 4096]);
    assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(_))));
}

#[test]
fn a_torn_last_change_never_happened_and_is_no_damage() {
    let disk = formatted(8);
    let mut pool = open_as(&disk, 1).expect("sound");
    pool.create(&spec("a", 1, Provisioning::Thin)).expect("space is there");
    pool.create(&spec("b", 1, Provisioning::Thin)).expect("space is there");
    drop(pool);
    disk.poke(JOURNAL_0 + 4096 + 50, &[0xee]);
    assert!(check(&disk, None).expect("there").is_sound());
    assert_eq!(open_as(&disk, 2).expect("sound").volumes().len(), 1);
}

#[test]
fn every_contradiction_is_told_and_none_is_opened() {
    type Forgery = (&'static str, fn(&mut ChunkV1));
    let forgeries: [Forgery; 13] = [
        ("not derived from the same", |chunk| {
            chunk.volumes = vec![volume(1, 4), volume(2, 4)];
            chunk.runs = vec![runs(1, &[(0, 2, 3)]), runs(2, &[(0, 1, 4)])];
        }),
        ("not derived from the same", |chunk| {
            chunk.volumes = vec![volume(1, 4), volume(2, 4)];
            chunk.runs = vec![runs(1, &[(0, 1, 4)]), runs(2, &[(u32::MAX, 2, 3)])];
        }),
        ("extent 3 is at 1 of volume 1, and at 0", |chunk| {
            chunk.volumes = vec![volume(1, 4)];
            chunk.runs = vec![runs(1, &[(0, 1, 3), (1, 1, 3)])];
        }),
        ("lie outside the pool", |chunk| {
            chunk.volumes = vec![volume(1, 4)];
            chunk.runs = vec![runs(1, &[(0, 2, u32::MAX)])];
        }),
        ("are not its own", |chunk| {
            chunk.volumes = vec![volume(1, 4)];
            chunk.runs = vec![runs(1, &[(3, 2, 0)])];
        }),
        ("are mapped twice", |chunk| {
            chunk.volumes = vec![volume(1, 4)];
            chunk.runs = vec![runs(1, &[(0, 2, 0), (1, 1, 7)])];
        }),
        ("are not all free", |chunk| {
            // In one chunk runs come before what is unfit.
            chunk.volumes = vec![volume(1, 4)];
            chunk.unfit = vec![UnfitV1 { first: 2, count: 2, quarantined: false }];
            chunk.runs = vec![runs(1, &[(0, 1, 3)])];
        }),
        ("are not all free", |chunk| {
            let unfit = |first, quarantined| UnfitV1 { first, count: 2, quarantined };
            chunk.unfit = vec![unfit(2, false), unfit(3, true)];
        }),
        ("are not all free", |chunk| {
            chunk.unfit = vec![UnfitV1 { first: u32::MAX, count: u32::MAX, quarantined: false }];
        }),
        ("there is no volume 7", |chunk| chunk.runs = vec![runs(7, &[(0, 1, 0)])]),
        ("was used before", |chunk| chunk.volumes = vec![volume(2, 1), volume(1, 1)]),
        ("two volumes have the name", |chunk| {
            chunk.volumes = vec![volume(1, 1), VolumeV1 { name: "v1".to_owned(), ..volume(2, 1) }];
        }),
        ("was used before", |chunk| {
            chunk.volumes = vec![volume(11, 1)];
        }),
    ];
    for (at, (wanted, forgery)) in forgeries.into_iter().enumerate() {
        let disk = formatted(8);
        forge(&disk, forgery);
        let report = check(&disk, Some(&OPTIONS)).expect("there");
        assert_eq!(worst(&report), Severity::Damage, "{at}: {}", texts(&report));
        assert!(texts(&report).contains(wanted), "{at} {wanted}: {}", texts(&report));
        assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(_))), "{at}");
    }
}

#[test]
fn a_map_of_a_clone_and_its_source_is_sound() {
    let disk = formatted(8);
    forge(&disk, |chunk| {
        chunk.volumes = vec![volume(1, 4), VolumeV1 { family: 1, parent: Some(1), ..volume(2, 4) }];
        chunk.runs = vec![runs(1, &[(0, 3, 2)]), runs(2, &[(1, 2, 3), (3, 1, 0)])];
    });
    let report = check(&disk, None).expect("there");
    assert!(report.findings.is_empty(), "{}", texts(&report));
    assert_eq!(open_as(&disk, 2).expect("sound").info().used, 4);
}

#[test]
fn a_header_that_points_outside_the_drive_or_at_itself_is_refused() {
    type Forgery = fn(&mut HeaderV1);
    let forgeries: [Forgery; 14] = [
        |header| header.extents = u32::MAX,
        |header| header.extents += 1,
        |header| header.extents = 0,
        |header| header.extent_bytes = 0,
        |header| header.extent_bytes = 3 << 20,
        |header| header.extent_bytes = 1 << 63,
        |header| header.data_offset_bytes = 0,
        |header| header.data_offset_bytes = u64::MAX - 4095,
        |header| header.map_bytes = u64::MAX - 4095,
        |header| header.journal_bytes = 0,
        |header| header.slot = 2,
        |header| header.map_seq = u64::MAX,
        |header| header.epoch = u64::MAX,
        |header| header.map_epoch = header.epoch + 1,
    ];
    for (at, forgery) in forgeries.into_iter().enumerate() {
        let disk = formatted(8);
        let mut header = header_at(&disk, 0);
        forgery(&mut header);
        write_headers(&disk, &header);
        assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(_))), "{at}");
        assert_eq!(worst(&check(&disk, Some(&OPTIONS)).expect("there")), Severity::Damage, "{at}");
    }
}

#[test]
fn a_shrunk_drive_a_newer_pool_and_half_another_pool_are_refused_by_name() {
    let disk = formatted(8);
    disk.set_len(16 * MIB);
    assert!(texts(&check(&disk, None).expect("there")).contains("beyond the drive"));
    let disk = formatted(8);
    let block = disk.peek(0, 4096);
    let len = state::envelope::record_bytes(&block).expect("a header");
    let newer = state::envelope::seal(HEADER_MAGIC, 3, &block[20..len]).expect("short");
    disk.poke(MIB, &newer);
    assert!(matches!(open_as(&disk, 2), Err(PoolError::Newer { found: 3, newest: 2 })));
    let disk = formatted(8);
    let foreign = HeaderV1 { uuid: [0xaa; 16], ..header_at(&disk, 0) };
    let (bytes, _) = state::pool::seal(HEADER_MAGIC, 1, &foreign).expect("short");
    disk.poke(MIB, &bytes);
    assert!(matches!(open_as(&disk, 2), Err(PoolError::Damaged(why)) if why.contains("different pools")));
    assert!(matches!(Pool::peek(&SimDisk::new(MIB * 64)), Err(PoolError::NoPool)));
}

#[test]
fn a_map_of_another_time_is_not_taken_for_this_one() {
    let old = formatted(8);
    let disk = old.fork();
    let mut pool = open_as(&disk, 1).expect("sound");
    for _ in 0..140 {
        let id = pool.create(&spec("a", 1, Provisioning::Thin)).expect("space is there");
        pool.delete(id).expect("there");
    }
    drop(pool);
    // A stale copy of the first map lies where the newest should be.
    let header = header_at(&disk, 0);
    let map = MAP_0 + u64::from(header.slot) * (MAP_BYTES + (256 << 10));
    disk.poke(map, &old.peek(MAP_0, 4096));
    let refused = open_as(&disk, 2).expect_err("stale");
    assert!(matches!(&refused, PoolError::Damaged(why) if why.contains("another pool or time")), "{refused}");
}
