//! One promise each.

use std::io;
use std::sync::{Arc, Mutex};

use volume::{Allocation, Disk, Entry, ExtentMap, OpenOptions, Pool, PoolError, Provisioning, VolumeId};

use crate::drive::SimDisk;
use crate::world::{HOST, MIB, formatted, open_as, spec};

fn pool(extents: u64) -> (SimDisk, Pool) {
    let disk = formatted(extents);
    let pool = open_as(&disk, 1).expect("sound");
    (disk, pool)
}

fn thin(pool: &mut Pool, name: &str, extents: u64) -> VolumeId {
    pool.create(&spec(name, extents, Provisioning::Thin)).expect("a name and some space")
}

/// Looks at a map whenever the pool writes or flushes.
#[derive(Clone)]
struct Watch {
    disk: SimDisk,
    map: Arc<Mutex<Option<Arc<ExtentMap>>>>,
    seen: Arc<Mutex<Vec<Entry>>>,
}

impl Watch {
    fn look(&self) {
        if let Some(map) = &*self.map.lock().expect("one thread") {
            self.seen.lock().expect("one thread").push(map.entry(0));
        }
    }
}

impl Disk for Watch {
    fn len_bytes(&self) -> io::Result<u64> {
        self.disk.len_bytes()
    }
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(at, into)
    }
    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.look();
        self.disk.write_at(at, from)
    }
    fn flush(&self) -> io::Result<()> {
        self.look();
        self.disk.flush()
    }
}

#[test]
fn reactors_see_a_change_only_after_it_is_durable() {
    let disk = formatted(8);
    let watch = Watch { disk, map: Arc::default(), seen: Arc::default() };
    let options = OpenOptions { host: HOST, nonce: 1, take_over: false };
    let mut pool = Pool::open(Box::new(watch.clone()), &options).expect("sound");
    let id = thin(&mut pool, "a", 4);
    let map = pool.map(id).expect("there");
    *watch.map.lock().expect("one thread") = Some(Arc::clone(&map));
    pool.allocate(&[(id, 0)]).expect("space is there");
    assert_eq!(std::mem::take(&mut *watch.seen.lock().expect("one thread")), [Entry::Unmapped; 2]);
    let Entry::Mapped { physical } = map.entry(0) else { panic!("allocated") };
    pool.release(id, 0..1).expect("thin");
    assert_eq!(*watch.seen.lock().expect("one thread"), [Entry::Mapped { physical }; 2]);
    assert_eq!(map.entry(0), Entry::Unmapped);
}

#[test]
fn a_batch_of_allocations_is_one_write_and_one_flush() {
    let (disk, mut pool) = pool(24);
    let (a, b) = (thin(&mut pool, "a", 30), thin(&mut pool, "b", 4));
    disk.die_at(u64::MAX);
    let wanted: Vec<_> = (0..10).map(|at| (a, at)).chain([(b, 3), (a, 0), (a, 29)]).collect();
    let answers = pool.allocate(&wanted).expect("space is there");
    assert_eq!(disk.effects(), 2);
    assert_eq!(answers[11], answers[0], "asked twice, given once");
    assert_eq!(pool.info().used, 12);
}

#[test]
fn without_space_the_map_stays_and_space_that_appears_is_given() {
    let (_, mut pool) = pool(4);
    let extents = pool.info().extents;
    let count = u32::try_from(extents).expect("few");
    let id = thin(&mut pool, "a", extents + 1);
    let all: Vec<_> = (0..=count).map(|at| (id, at)).collect();
    let answers = pool.allocate(&all).expect("no drive failed");
    assert_eq!(answers.iter().filter(|answer| **answer == Allocation::NoSpace).count(), 1);
    assert_eq!(pool.map(id).expect("there").entry(count), Entry::Unmapped);
    assert!(matches!(
        pool.create(&spec("full", 1, Provisioning::Full)),
        Err(PoolError::NoSpace { wanted: 1, free: 0, .. })
    ));
    pool.release(id, 0..1).expect("thin");
    assert_eq!(pool.allocate(&[(id, count)]).expect("no drive failed"), [Allocation::NoSpace]);
    assert_eq!(pool.next_wipe(8), None, "I/O to it may still be under way");
    pool.grace_over(pool.grace());
    let order = pool.next_wipe(8).expect("released");
    pool.wiped(order).expect("ordered");
    assert!(matches!(pool.allocate(&[(id, count)]).expect("space")[..], [Allocation::Mapped { .. }]));
}

#[test]
fn what_was_taken_away_after_a_grace_began_is_not_wiped_at_its_end() {
    let (_, mut pool) = pool(8);
    let id = thin(&mut pool, "a", 4);
    pool.allocate(&[(id, 0), (id, 1)]).expect("space is there");
    pool.release(id, 0..1).expect("thin");
    let grace = pool.grace();
    pool.release(id, 1..2).expect("thin");
    pool.grace_over(grace);
    assert_eq!(pool.next_wipe(8).map(|order| order.count), Some(1));
    assert_eq!(pool.next_wipe(8), None);
}

#[test]
fn a_deleted_volumes_map_leads_nowhere_though_somebody_still_holds_it() {
    let (_, mut pool) = pool(8);
    let id = pool.create(&spec("a", 4, Provisioning::Full)).expect("space is there");
    let map = pool.map(id).expect("there");
    assert!(matches!(map.entry(3), Entry::Mapped { .. }));
    let generation = map.generation();
    pool.delete(id).expect("there");
    assert!((0..4).all(|at| map.entry(at) == Entry::Unmapped));
    assert!(map.generation() > generation);
    assert!(matches!(pool.map(id), Err(PoolError::NoVolume(_))));
    let next = thin(&mut pool, "a", 4);
    assert_ne!(next, id, "a number is never used twice");
}

/// A volume with an extent that a snapshot shares, and the order to copy it.
fn shared(pool: &mut Pool) -> (VolumeId, VolumeId, volume::CopyOrder) {
    let id = thin(pool, "a", 4);
    pool.allocate(&[(id, 2)]).expect("space is there");
    let snapshot = pool.snapshot(id, "s", [4; 16]).expect("there");
    let Allocation::Copy(order) = pool.allocate(&[(id, 2)]).expect("space is there")[0] else {
        panic!("it is shared")
    };
    (id, snapshot, order)
}

#[test]
fn a_shared_extent_is_copied_before_it_is_written_and_the_snapshot_keeps_the_old() {
    let (_, mut pool) = pool(8);
    let (id, snapshot, order) = shared(&mut pool);
    let map = pool.map(id).expect("there");
    assert_eq!(map.entry(2), Entry::Shared { physical: order.from }, "until the copy is made");
    assert_eq!(pool.allocate(&[(id, 2)]).expect("space"), [Allocation::Copying]);
    pool.copied(&[order, order]).expect("ordered");
    assert_eq!(map.entry(2), Entry::Mapped { physical: order.to });
    let old = pool.map(snapshot).expect("there").entry(2);
    assert_eq!(old, Entry::Mapped { physical: order.from });
    assert!(matches!(pool.allocate(&[(snapshot, 2)]), Err(PoolError::ReadOnly(_))));
    assert!(matches!(pool.copied(&[order]), Err(PoolError::StaleOrder(_))));
}

#[test]
fn an_extent_that_is_not_shared_any_more_is_written_in_place() {
    let (_, mut pool) = pool(8);
    let id = thin(&mut pool, "a", 4);
    pool.allocate(&[(id, 2)]).expect("space is there");
    let map = pool.map(id).expect("there");
    let snapshot = pool.snapshot(id, "s", [4; 16]).expect("there");
    let Entry::Shared { physical } = map.entry(2) else { panic!("shared") };
    pool.delete(snapshot).expect("there");
    assert_eq!(pool.allocate(&[(id, 2)]).expect("mapped"), [Allocation::Mapped { physical }]);
    assert_eq!(map.entry(2), Entry::Mapped { physical });
}

#[test]
fn a_copy_that_nobody_wants_any_more_is_wiped_and_never_seen() {
    for way in 0..3 {
        let (_, mut pool) = pool(8);
        let (id, _, order) = shared(&mut pool);
        let free = pool.info().free;
        match way {
            0 => pool.copy_failed(order).expect("ordered"),
            1 => {
                pool.release(id, 2..3).expect("thin");
                // Mapped anew meanwhile, to something else.
                pool.allocate(&[(id, 2)]).expect("space is there");
                pool.copied(&[order]).expect("ordered");
                let now = pool.map(id).expect("there").entry(2);
                assert!(matches!(now, Entry::Mapped { physical } if physical != order.to), "{now:?}");
            }
            _ => {
                pool.delete(id).expect("there");
                pool.copied(&[order]).expect("ordered");
            }
        }
        assert!(pool.info().free <= free, "nothing is free before it is wiped");
        pool.grace_over(pool.grace());
        let mut wiped = Vec::new();
        while let Some(wipe) = pool.next_wipe(1) {
            wiped.push(wipe.first);
            pool.wiped(wipe).expect("ordered");
        }
        assert!(wiped.contains(&order.to), "way {way}: {wiped:?}");
        assert_eq!(pool.info().wiping, 0);
    }
}

#[test]
fn a_wipe_that_was_not_ordered_frees_nothing() {
    let (_, mut pool) = pool(8);
    let id = pool.create(&spec("a", 4, Provisioning::Full)).expect("space is there");
    let wrong = volume::WipeOrder { first: 0, count: 4 };
    assert!(matches!(pool.wiped(wrong), Err(PoolError::StaleOrder(_))));
    pool.delete(id).expect("there");
    pool.grace_over(pool.grace());
    let order = pool.next_wipe(2).expect("deleted");
    let long = volume::WipeOrder { count: 3, ..order };
    assert!(matches!(pool.wiped(long), Err(PoolError::StaleOrder(_))));
    pool.wipe_failed(order).expect("ordered");
    assert!(matches!(pool.wiped(order), Err(PoolError::StaleOrder(_))));
    assert_eq!((pool.info().quarantined, pool.info().wiping), (2, 2));
    assert_eq!(pool.retry_quarantined().expect("the drive works"), 2);
}

#[test]
fn a_full_volume_keeps_its_space_and_grows_with_it() {
    let (_, mut pool) = pool(8);
    let id = pool.create(&spec("a", 4, Provisioning::Full)).expect("space is there");
    assert!(matches!(pool.release(id, 0..1), Err(PoolError::KeepsSpace(_))));
    let old = pool.map(id).expect("there");
    pool.can_grow(id, 6 * MIB + 4096).expect("space is there");
    assert_eq!(pool.info().used, 4, "nothing has changed");
    assert!(matches!(pool.can_grow(id, 900 * MIB), Err(PoolError::NoSpace { .. })));
    pool.grow(id, 6 * MIB + 4096).expect("space is there");
    assert_eq!((pool.info().used, old.extents()), (7, 4));
    let new = pool.map(id).expect("there");
    assert_eq!((new.extents(), new.entry(0)), (7, old.entry(0)));
    assert!(matches!(pool.grow(id, 4 * MIB), Err(PoolError::Invalid(_))));
    assert!(matches!(pool.grow(id, 900 * MIB), Err(PoolError::NoSpace { .. })));
}

#[test]
fn only_the_owner_with_the_newest_epoch_can_take_a_volume() {
    let (disk, mut pool) = pool(8);
    let id = thin(&mut pool, "a", 4);
    assert_eq!(pool.advance_epoch(id, 0).expect("first"), 1);
    let late = pool.advance_epoch(id, 0).expect_err("somebody has it");
    assert!(matches!(late, PoolError::VolumeEpoch { expected: 0, found: 1, .. }), "{late}");
    assert_eq!(open_as(&disk, 2).expect("sound").volume(id).expect("there").epoch, 1);
}

#[test]
fn after_a_failure_of_the_drive_nothing_is_done_until_the_pool_is_opened_again() {
    let (disk, mut pool) = pool(8);
    let id = thin(&mut pool, "a", 4);
    let map = pool.map(id).expect("there");
    disk.die_at(1);
    assert!(matches!(pool.allocate(&[(id, 0)]), Err(PoolError::Drive { .. })));
    assert_eq!(map.entry(0), Entry::Unmapped);
    assert!(matches!(pool.allocate(&[(id, 0)]), Err(PoolError::Stopped)));
    assert!(matches!(pool.map(id), Err(PoolError::Stopped)));
    assert_eq!(pool.next_wipe(1), None);
}

#[test]
fn a_change_too_large_for_the_journal_is_as_durable_and_atomic() {
    let disk = formatted(3000);
    let mut pool = open_as(&disk, 1).expect("sound");
    let id = thin(&mut pool, "comb", 3000);
    // Every other extent of the drive is taken, so what is free is in a thousand pieces.
    for start in (0..3000).step_by(500) {
        let all: Vec<_> = (start..start + 500).map(|at| (id, at)).collect();
        pool.allocate(&all).expect("space is there");
    }
    for at in (0..3000).step_by(2) {
        pool.release(id, at..at + 1).expect("thin");
    }
    pool.grace_over(pool.grace());
    while let Some(order) = pool.next_wipe(1) {
        pool.wiped(order).expect("ordered");
    }
    let want = spec("scattered", 1400, Provisioning::Full);
    let before = disk.fork();
    for boundary in 0..9 {
        let disk = before.fork();
        let mut pool = open_as(&disk, 2).expect("sound");
        disk.die_at(boundary);
        let done = pool.create(&want).is_ok();
        for loss in 0..5 {
            let pool = open_as(&disk.after_crash(loss), 3).expect("the old or the new");
            let there = pool.find("scattered").map(|id| pool.volume(id).expect("named").mapped_extents);
            assert!(matches!(there, None | Some(1400)), "{there:?}");
            assert!(!done || there.is_some());
        }
        if boundary == 8 {
            assert!(done, "eight effects are enough");
        }
    }
}

#[test]
fn a_map_that_outgrows_its_area_is_refused_and_deletes_still_work() {
    let (disk, mut pool) = pool(4);
    let mut spec = spec("v", 1, Provisioning::Thin);
    spec.attributes = vec![1; 1024];
    let mut made = Vec::new();
    let refused = loop {
        spec.name = format!("v{}", made.len());
        match pool.create(&spec) {
            Ok(id) => made.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PoolError::MapFull), "{refused}");
    assert!(made.len() > 1000, "{}", made.len());
    pool.delete(made[0]).expect("a delete uses the reserve");
    let again = open_as(&disk, 2).expect("sound");
    assert_eq!(again.volumes().len(), made.len() - 1);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (disk, mut pool) = pool(8);
    let id = thin(&mut pool, "a", 4);
    let before = disk.fork();
    let mut bad = spec("b", 1, Provisioning::Thin);
    for name in ["", "a\nb", &"x".repeat(129)] {
        bad.name = name.to_owned();
        assert!(matches!(pool.create(&bad), Err(PoolError::Invalid(_))), "{name:?}");
    }
    bad.name = "a".to_owned();
    assert!(matches!(pool.create(&bad), Err(PoolError::NameTaken(_))));
    bad.name = "b".to_owned();
    for size_bytes in [0, 1, 4095, u64::MAX, u64::MAX - 4095] {
        bad.size_bytes = size_bytes;
        assert!(matches!(pool.create(&bad), Err(PoolError::Invalid(_))), "{size_bytes}");
    }
    assert!(matches!(pool.allocate(&[(id, 4)]), Err(PoolError::Invalid(_))));
    assert!(matches!(pool.allocate(&[(id, u32::MAX)]), Err(PoolError::Invalid(_))));
    assert!(matches!(pool.allocate(&[(VolumeId(9), 0)]), Err(PoolError::NoVolume(_))));
    assert!(matches!(pool.allocate(&vec![(id, 0); 501]), Err(PoolError::Invalid(_))));
    assert!(matches!(pool.delete(VolumeId(0)), Err(PoolError::NoVolume(_))));
    assert!(matches!(pool.set_attributes(id, &[0; 1025]), Err(PoolError::Invalid(_))));
    assert_eq!(pool.release(id, 2..u32::MAX).expect("nothing was there"), 0);
    #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake")]
    let backwards = pool.release(id, 3..1).expect("nothing was there");
    assert_eq!(backwards, 0);
    assert!(disk.changed_since(&before).is_empty());
}
