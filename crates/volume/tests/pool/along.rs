//! Snapshots that move with their volume: what becomes of them with each end that a migration can have.

use volume::{Allocation, Difference, Pool, PoolError, Provisioning, VolumeId};

use crate::drive::SimDisk;
use crate::world::{formatted, open_as, record, spec};

/// As `record` has it.
const MIGRATION: [u8; 16] = [4; 16];
const OFFERED: u32 = 0;
const GRANTED: u32 = 1;
const GONE: u32 = 2;
const CANCELLED: u32 = 4;
const TAKEN_BACK: u32 = 5;
const INCOMING: u32 = 8;
const READY: u32 = 9;
const OWNED: u32 = 10;
const FORCED: u32 = 11;
const DROPPED: u32 = 12;

fn step(pool: &mut Pool, id: VolumeId, step: u32, migration: [u8; 16]) {
    let now = pool.volume(id).expect("there").epoch;
    let mut record = record(step, now, 0).0;
    record.migration = migration;
    pool.set_passage(id, &record.to_bytes().expect("sound")).expect("its turn");
}

fn names(pool: &Pool) -> Vec<String> {
    pool.volumes().into_iter().map(|volume| volume.name).collect()
}

fn new(name: &str) -> (SimDisk, Pool, VolumeId) {
    let disk = formatted(24);
    let mut pool = open_as(&disk, 1).expect("sound");
    let id = pool.create(&spec(name, 8, Provisioning::Thin)).expect("space is there");
    (disk, pool, id)
}

/// On its way here, with two snapshots that came, and a third that was here before.
fn coming() -> (SimDisk, Pool, VolumeId) {
    let (disk, mut pool, id) = new("a");
    pool.allocate(&[(id, 1)]).expect("space is there");
    pool.snapshot(id, "before", [1; 16]).expect("it is here");
    step(&mut pool, id, INCOMING, MIGRATION);
    for name in ["monday", "tuesday"] {
        let kept = pool.keep_come(id, name, [5; 16], MIGRATION).expect("it is coming");
        assert_eq!(pool.keep_come(id, name, [6; 16], MIGRATION).expect("said again"), kept);
    }
    (disk, pool, id)
}

#[test]
fn what_came_is_its_own_when_its_ssd_is_owned_and_goes_with_it_when_it_was_dropped() {
    let all = ["a", "before", "monday", "tuesday"];
    for (end, left) in [(OWNED, &all[..]), (FORCED, &all), (DROPPED, &all[..2])] {
        let (disk, mut pool, id) = coming();
        let monday = pool.find("monday").expect("there");
        // Nobody has it, deletes it or begins with it before.
        assert!(matches!(pool.clone_volume(monday, "c", [7; 16]), Err(PoolError::Passage { .. })));
        assert!(matches!(pool.delete(monday), Err(PoolError::Passage { .. })));
        assert!(matches!(pool.snapshot(id, "mine", [7; 16]), Err(PoolError::Passage { .. })));
        if end != DROPPED {
            step(&mut pool, id, READY, MIGRATION);
        }
        step(&mut pool, id, end, MIGRATION);
        // The space is given back by an engine that began since.
        drop(pool);
        let mut pool = open_as(&disk, 2).expect("sound");
        if end == DROPPED {
            assert_eq!(names(&pool), all, "until it is wiped");
            pool.vacate(id).expect("it is nobody's");
            pool.vacate(id).expect("and once more");
        } else {
            pool.clone_volume(monday, "c", [7; 16]).expect("it is whole");
            pool.delete(pool.find("c").expect("there")).expect("nobody has it");
        }
        assert_eq!(names(&pool), left, "after {end}");
        assert!(
            pool.volumes().iter().all(|it| !it.read_only || it.attributes.is_empty() || it.name == "before")
        );
    }
}

#[test]
fn what_came_by_a_migration_that_never_ended_goes_when_another_takes_its_place() {
    let (_, mut pool, id) = coming();
    step(&mut pool, id, DROPPED, MIGRATION);
    step(&mut pool, id, INCOMING, [9; 16]);
    assert_eq!(names(&pool), ["a", "before"]);
    pool.keep_come(id, "monday", [5; 16], [9; 16]).expect("the name is free again");
    let late = pool.keep_come(id, "tuesday", [5; 16], MIGRATION);
    assert!(matches!(late, Err(PoolError::Passage { .. })), "a word of the former one");
    let taken = pool.keep_come(id, "before", [5; 16], [9; 16]);
    assert!(matches!(taken, Err(PoolError::NameTaken(_))));
}

#[test]
fn what_came_stays_where_a_build_that_knew_of_no_marks_wrote_that_it_is_here() {
    let (disk, mut pool, id) = coming();
    step(&mut pool, id, READY, MIGRATION);
    let mark = |pool: &Pool| pool.volume(pool.find("monday").expect("there")).expect("there").attributes;
    let kept = mark(&pool);
    step(&mut pool, id, OWNED, MIGRATION);
    for name in ["monday", "tuesday"] {
        let snapshot = pool.find(name).expect("there");
        pool.set_attributes(snapshot, &kept).expect("as that build left it");
    }
    drop(pool);
    let mut pool = open_as(&disk, 2).expect("sound");
    let monday = pool.find("monday").expect("there");
    let clone = pool.clone_volume(monday, "c", [7; 16]).expect("it is here, and whole");
    assert!(pool.volume(clone).expect("there").attributes.is_empty(), "no mark of another's");
    step(&mut pool, id, OFFERED, [9; 16]);
    assert_eq!(names(&pool), ["a", "before", "monday", "tuesday", "c"]);
    assert!(mark(&pool).is_empty());
}

#[test]
fn who_deletes_a_volume_that_is_not_here_deletes_what_came_or_went_of_it() {
    let (_, mut pool, id) = coming();
    step(&mut pool, id, DROPPED, MIGRATION);
    pool.delete(id).expect("it is nobody's");
    assert_eq!(names(&pool), ["before"]);
    let (_, mut pool, id) = new("a");
    for name in ["monday", "mine"] {
        pool.snapshot(id, name, [5; 16]).expect("it is here");
    }
    step(&mut pool, id, OFFERED, MIGRATION);
    pool.mark_went(id, "monday", MIGRATION).expect("it went");
    for to in [GRANTED, GONE] {
        step(&mut pool, id, to, MIGRATION);
    }
    pool.delete(id).expect("it is another host's");
    assert_eq!(names(&pool), ["mine"]);
}

#[test]
fn what_went_is_deleted_with_what_is_left_of_its_ssd_and_stays_when_that_does() {
    for end in [GONE, CANCELLED, TAKEN_BACK] {
        let (disk, mut pool, id) = new("a");
        for name in ["cloned", "monday", "late"] {
            pool.allocate(&[(id, 1)]).expect("space is there");
            pool.snapshot(id, name, [5; 16]).expect("it is here");
        }
        pool.clone_volume(pool.find("cloned").expect("there"), "clone", [5; 16]).expect("there");
        assert!(pool.mark_went(id, "monday", MIGRATION).is_err(), "it is not on its way");
        step(&mut pool, id, OFFERED, MIGRATION);
        for name in ["cloned", "monday"] {
            pool.mark_went(id, name, MIGRATION).expect("it went");
        }
        assert!(pool.mark_went(id, "never", MIGRATION).is_err());
        // Another round, and another: nothing is over yet.
        step(&mut pool, id, OFFERED, MIGRATION);
        let monday = pool.find("monday").expect("there");
        assert!(matches!(pool.delete(monday), Err(PoolError::Passage { .. })));
        if end != CANCELLED {
            step(&mut pool, id, GRANTED, MIGRATION);
        }
        step(&mut pool, id, end, MIGRATION);
        drop(pool);
        let mut pool = open_as(&disk, 2).expect("sound");
        if end == GONE {
            pool.vacate(id).expect("it is at the other host");
            assert_eq!(names(&pool), ["a", "cloned", "late", "clone"]);
            continue;
        }
        assert_eq!(names(&pool), ["a", "cloned", "monday", "late", "clone"]);
        // And it goes after all, by another migration that takes none along.
        let next = [9; 16];
        for to in [OFFERED, GRANTED, GONE] {
            step(&mut pool, id, to, next);
        }
        pool.vacate(id).expect("it is at the other host");
        assert_eq!(names(&pool), ["a", "cloned", "monday", "late", "clone"]);
    }
}

#[test]
fn what_a_write_changed_since_a_snapshot_differs_and_nothing_else_does() {
    let (_, mut pool, id) = new("a");
    pool.allocate(&[(id, 0), (id, 1), (id, 2)]).expect("space is there");
    let first = pool.snapshot(id, "s", [5; 16]).expect("there");
    let all = [Difference { first: 0, count: 3, mapped: true }];
    assert_eq!(pool.differences(None, first).expect("there"), all);
    assert_eq!(pool.differences(Some(first), id).expect("there"), []);
    let answers = pool.allocate(&[(id, 1), (id, 5)]).expect("space is there");
    let Allocation::Copy(order) = answers[0] else { panic!("{answers:?}") };
    pool.copied(&[order]).expect("it was ordered");
    pool.release(id, 2..3).expect("it is thin");
    let (written, gone) =
        (Difference { first: 1, count: 1, mapped: true }, Difference { first: 2, count: 1, mapped: false });
    let new = Difference { first: 5, count: 1, mapped: true };
    assert_eq!(pool.differences(Some(first), id).expect("there"), [written, gone, new]);
    assert!(pool.differences(Some(VolumeId(77)), id).is_err());
}
