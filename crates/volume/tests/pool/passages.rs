//! What may be done with a volume by the journal of its migrations, and what a drive may say of it.

use state::migration::MigrationV1;
use state::pool::{ChangeV1, RECORD_MAGIC, RecordV1, VolumeV1};
use volume::steward::{News, Steward};
use volume::{Pool, PoolError, Provisioning, VolumeId, check};

use crate::checks::{JOURNAL_0, forge_as, header_at, texts, volume};
use crate::drive::SimDisk;
use crate::world::{MIB, formatted, former_build_refuses, open_as, record, spec};

/// Steps, as `record` numbers them.
const STEPS: std::ops::Range<u32> = 0..14;
const GRANTED: u32 = 1;
const GONE: u32 = 2;
const CANCELLED: u32 = 4;
const INCOMING: u32 = 8;
const READY: u32 = 9;
const OWNED: u32 = 10;

fn bytes(step: u32, now: u64) -> Vec<u8> {
    record(step, now, 0).0.to_bytes().expect("sound")
}

/// A pool with a volume that stands at a step.
fn at(step: u32) -> (SimDisk, Pool, VolumeId) {
    let disk = formatted(24);
    let mut pool = open_as(&disk, 1).expect("sound");
    let id = pool.create(&spec("a", 4, Provisioning::Thin)).expect("space is there");
    pool.allocate(&[(id, 1)]).expect("space is there");
    pool.set_passage(id, &bytes(step, 0)).expect("its first");
    (disk, pool, id)
}

struct Nothing;

impl volume::steward::Medium for Nothing {
    fn zero(&self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn is_zero(&self, _: u64, _: u64) -> std::io::Result<bool> {
        Ok(true)
    }

    fn copy(&self, _: u64, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// docs/decisions/0034-commit.md, "Where the record lies".
#[test]
fn each_step_allows_what_its_owner_and_its_content_allow() {
    // offered, granted, gone, cancelling, cancelled, taken back, and heard, superseded;
    // incoming, ready, owned, forced, dropped, superseded
    let serve = [0, 3, 4, 5, 6, 10, 11];
    let land = [2, 7, 8, 12, 13];
    let delete = [2, 4, 5, 6, 7, 10, 11, 12, 13];
    // What has gone is nothing, unless it was kept.
    let not_whole = [2, 8, 12];
    // And nothing is on its way.
    let snapshot = [4, 5, 6, 7, 10, 11, 13];
    for step in STEPS {
        let (_, pool, id) = at(step);
        assert_eq!(pool.may_serve(id).is_ok(), serve.contains(&step), "serving at {step}");
        let mut steward = Steward::new(pool, Nothing);
        assert_eq!(steward.serve(id).is_ok(), serve.contains(&step), "doors at {step}");
        let landing = steward.land(id);
        assert_eq!(landing.is_ok(), land.contains(&step), "landing at {step}");
        drop(landing);
        let cloned = steward.clone_volume(id, "clone", [9; 16]);
        assert_eq!(cloned.is_ok(), !not_whole.contains(&step), "a clone at {step}");
        if let Ok((clone, _)) = cloned {
            assert!(steward.pool().passage(clone).expect("there").is_none(), "a new volume of its own");
            steward.serve(clone).expect("whoever owns what it was made of");
        }
        let taken = steward.snapshot(id, "snapshot", [9; 16]);
        assert_eq!(taken.is_ok(), snapshot.contains(&step), "a snapshot at {step}");
        let deleted = steward.delete(id);
        assert_eq!(deleted.is_ok(), delete.contains(&step), "a delete at {step}");
    }
    let (_, mut pool, id) = at(GONE);
    let kept = MigrationV1 { keep: Some(true), ..record(GONE, 0, 0).0 };
    pool.set_passage(id, &kept.to_bytes().expect("sound")).expect("the same step");
    Steward::new(pool, Nothing).clone_volume(id, "clone", [9; 16]).expect("it was kept");
}

#[test]
fn a_volume_that_is_served_takes_no_blocks_of_another_host() {
    let (_, pool, id) = at(4);
    let mut steward = Steward::new(pool, Nothing);
    let gate = steward.serve(id).expect("it is here");
    // A word that came too late, or a mover that is out of its mind.
    steward.set_passage(id, &bytes(INCOMING, 0)).expect("a migration to here");
    assert!(matches!(steward.land(id), Err(PoolError::Open(_))));
    drop(gate);
    steward.land(id).map(drop).expect("nobody has it open");
}

#[test]
fn a_step_raises_the_epoch_with_it_and_none_lowers_it() {
    for (step, epoch) in [(OWNED, 1), (11, 1), (5, 2), (6, 2), (0, 0), (GRANTED, 0), (INCOMING, 0), (12, 0)] {
        let (disk, pool, id) = at(step);
        assert_eq!(pool.volume(id).expect("there").epoch, epoch, "{step}");
        drop(pool);
        assert_eq!(open_as(&disk, 2).expect("sound").volume(id).expect("there").epoch, epoch, "{step}");
    }
    let (_, mut pool, id) = at(OWNED);
    pool.set_passage(id, &bytes(0, 7)).expect("it may be further than the pool knew");
    assert_eq!(pool.volume(id).expect("there").epoch, 7);
    let before = pool.volume(id);
    // Whoever lets go, takes over or sends by an epoch from before is not told the truth any more.
    for step in [0, GRANTED, 2, 3, 4, INCOMING, READY, OWNED, 11] {
        let late = pool.set_passage(id, &bytes(step, 5));
        assert!(matches!(late, Err(PoolError::VolumeEpoch { found: 7, .. })), "{step}: {late:?}");
    }
    assert_eq!(pool.volume(id), before, "nothing has changed");
}

#[test]
fn what_went_to_another_host_gives_its_space_back_and_stays_not_served() {
    for provisioning in [Provisioning::Thin, Provisioning::Full] {
        let disk = formatted(24);
        let mut pool = open_as(&disk, 1).expect("sound");
        let id = pool.create(&spec("a", 4, provisioning)).expect("space is there");
        pool.allocate(&[(id, 1)]).expect("space is there");
        for step in [0, GRANTED, INCOMING, READY, OWNED] {
            let now = pool.volume(id).expect("there").epoch;
            pool.set_passage(id, &bytes(step, now)).expect("its turn");
            assert!(matches!(pool.vacate(id), Err(PoolError::Passage { .. })), "{step}");
        }
        let now = pool.volume(id).expect("there").epoch;
        pool.set_passage(id, &bytes(2, now)).expect("gone");
        let mut steward = Steward::new(pool, Nothing);
        steward.vacate(id).expect("it is another host's");
        assert_eq!(steward.pool().volume(id).expect("it stays").mapped_extents, 0);
        assert!(steward.serve(id).is_err());
        for _ in 0..20 {
            steward.turn();
        }
        let info = steward.pool().info();
        assert_eq!(info.free, info.extents);
        // And comes back.
        let gate = steward.land(id).expect("it is not here");
        let has = if provisioning == Provisioning::Full { 4 } else { 0 };
        assert_eq!(steward.pool().volume(id).expect("there").mapped_extents, has);
        assert!(matches!(steward.vacate(id), Err(PoolError::Open(_))), "blocks are coming");
        drop(gate);
    }
}

#[test]
fn what_lands_in_a_full_pool_fails_and_what_is_served_there_waits() {
    for is_landing in [true, false] {
        let disk = formatted(24);
        let mut pool = open_as(&disk, 1).expect("sound");
        let id = pool.create(&spec("a", 8, Provisioning::Thin)).expect("space is there");
        pool.create(&spec("b", pool.info().free, Provisioning::Full)).expect("space is there");
        if is_landing {
            pool.set_passage(id, &bytes(INCOMING, 0)).expect("its first");
        }
        let mut steward = Steward::new(pool, Nothing);
        let gate = if is_landing { steward.land(id) } else { steward.serve(id) }.expect("it may");
        steward.own(id, 3);
        for _ in 0..20 {
            steward.turn();
        }
        assert_eq!(steward.waiting(), usize::from(!is_landing));
        let is_told = steward.take_news().iter().any(|news| matches!(news, News::Fault(_)));
        assert_eq!(is_told, !is_landing, "an operator is told of who waits");
        drop(gate);
    }
}

#[test]
fn what_is_no_journal_is_not_written() {
    let (_, mut pool, id) = at(CANCELLED);
    let good = bytes(GRANTED, 0);
    for bad in [&b""[..], &good[1..], &good[..good.len() - 1], &[0; 9000]] {
        assert!(matches!(pool.set_passage(id, bad), Err(PoolError::Invalid(_))));
    }
    let snapshot = pool.snapshot(id, "s", [8; 16]).expect("it is here");
    assert!(matches!(pool.set_passage(snapshot, &good), Err(PoolError::ReadOnly(_))));
    assert!(matches!(pool.set_passage(VolumeId(99), &good), Err(PoolError::NoVolume(_))));
    assert_eq!(pool.passage(id).expect("there"), Some(&bytes(CANCELLED, 0)[..]));
}

#[test]
fn a_pool_is_of_version_2_as_long_as_any_volume_has_a_passage() {
    let (disk, mut pool, id) = at(2);
    let other = pool.create(&spec("b", 1, Provisioning::Thin)).expect("space is there");
    assert!(former_build_refuses(&disk));
    pool.set_passage(other, &bytes(OWNED, 0)).expect("its first");
    pool.delete(id).expect("it is over");
    assert!(former_build_refuses(&disk), "one is left");
    pool.delete(other).expect("it is over");
    assert!(!former_build_refuses(&disk));
    drop(pool);
    // A former build that opens it now finds what it can read.
    assert_eq!(header_at(&disk, 0).version, None);
    assert_eq!(open_as(&disk, 2).expect("sound").volumes(), []);
}

#[test]
fn check_tells_what_is_not_opened_here_and_why() {
    let (disk, pool, _) = at(GRANTED);
    drop(pool);
    let report = check(&disk, None).expect("there");
    assert!(report.is_sound());
    assert!(
        texts(&report).contains("note: \"a\" is granted (the other host: \"host-b\")"),
        "{}",
        texts(&report)
    );
    let (disk, pool, _) = at(OWNED);
    drop(pool);
    assert!(!texts(&check(&disk, None).expect("there")).contains("host-b"));
}

/// A volume with such a passage in the map itself.
fn forged(header: u32, map: u32, passage: &[u8], epoch: u64) -> SimDisk {
    let disk = formatted(24);
    forge_as(&disk, header, map, |chunk| {
        chunk.volumes = vec![VolumeV1 { passage: Some(passage.to_vec()), epoch, ..volume(1, 2) }];
    });
    disk
}

#[test]
fn a_drive_cannot_have_a_passage_overlooked() {
    let gone = bytes(2, 0);
    open_as(&forged(2, 2, &gone, 0), 2).expect("as we would have written it");
    for (header, map, part) in
        [(1, 1, "in a pool of version 1"), (1, 2, "version 2, its pool 1"), (2, 1, "version 1, its pool 2")]
    {
        let disk = forged(header, map, &gone, 0);
        let refused = open_as(&disk, 2).expect_err("refused").to_string();
        assert!(refused.contains(part), "{refused}");
        assert!(!check(&disk, None).expect("there").is_sound());
    }
    let long = forged(2, 2, &vec![7; 9000], 0);
    assert!(matches!(open_as(&long, 2), Err(PoolError::Damaged(why)) if why.contains("longer than any")));
    // In the journal.
    let journalled = |header: u32, record: u32, changes: Vec<ChangeV1>| {
        let disk = formatted(24);
        forge_as(&disk, header, header, |chunk| chunk.volumes = vec![volume(1, 2)]);
        let header = header_at(&disk, 0);
        let change = RecordV1 {
            uuid: header.uuid,
            map_generation: header.map_generation,
            seq: header.map_seq + 1,
            epoch: header.epoch,
            chain: header.map_chain,
            changes,
        };
        let (bytes, _) = state::pool::seal(RECORD_MAGIC, record, &change).expect("short");
        disk.poke(JOURNAL_0, &bytes);
        open_as(&disk, 2).map(|pool| pool.may_serve(VolumeId(1)).is_ok())
    };
    let passage = || vec![ChangeV1::Passage(1, gone.clone())];
    assert!(!journalled(2, 2, passage()).expect("as we would have written it"));
    let begins = VolumeV1 { passage: Some(gone.clone()), ..volume(10, 1) };
    for (header, record, changes) in [
        (1, 1, passage()),
        (1, 2, passage()),
        (1, 2, vec![ChangeV1::Grow(1, 3 * MIB)]),
        (2, 1, vec![ChangeV1::Grow(1, 3 * MIB)]),
        (2, 2, vec![ChangeV1::Passage(7, gone.clone())]),
        (2, 2, vec![ChangeV1::Passage(1, vec![1; 9000])]),
        (2, 2, vec![ChangeV1::Create(begins.clone())]),
        (2, 2, vec![ChangeV1::Derive(1, VolumeV1 { family: 1, ..begins })]),
    ] {
        let opened = journalled(header, record, changes.clone());
        assert!(matches!(opened, Err(PoolError::Damaged(_))), "{header} {record} {changes:?}: {opened:?}");
    }
}

#[test]
fn what_nobody_can_read_opens_nothing_of_its_volume_and_all_of_the_others() {
    for (passage, epoch) in [(vec![1, 2, 3], 0), (Vec::new(), 0), (bytes(OWNED, 4), 4)] {
        let disk = forged(2, 2, &passage, epoch);
        let mut pool = open_as(&disk, 2).expect("the pool is sound");
        let id = VolumeId(1);
        assert!(matches!(pool.may_serve(id), Err(PoolError::Passage { .. })));
        assert!(pool.may_land(id).is_err());
        let other = pool.create(&spec("other", 1, Provisioning::Thin)).expect("space is there");
        pool.may_serve(other).expect("never moved");
        drop(pool);
        let report = check(&disk, None).expect("there");
        assert!(report.is_sound() && texts(&report).contains("\"v1\""), "{}", texts(&report));
    }
    let mut pool = open_as(&forged(2, 2, &[1, 2, 3], 0), 2).expect("the pool is sound");
    assert!(pool.delete(VolumeId(1)).is_err() && pool.clone_volume(VolumeId(1), "c", [9; 16]).is_err());
}
