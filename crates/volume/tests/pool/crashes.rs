//! The power fails between any two stores, and of what was not flushed any part is lost.

use volume::{PoolError, check};

use crate::drive::{Chance, SimDisk};
use crate::world::{Deed, Model, World, format_options, formatted, is_refusal, open_as};

/// Ways in which what was not flushed may be lost, tried at every boundary.
const LOSSES: u64 = 4;

/// Comes up after a crash: what holds is the model before the deed or the one after it.
fn recover(disk: &SimDisk, before: &Model, after: Option<&Model>, label: &str) {
    let report = check(disk, None).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(
        report.findings.iter().all(|finding| finding.severity != volume::Severity::Damage),
        "{label}: {report:?}"
    );
    let pool = open_as(disk, 99).unwrap_or_else(|error| panic!("{label}: {error}"));
    let tags_of = |model: &Model| Model { tags: after.unwrap_or(before).tags.clone(), ..model.clone() };
    let model = match (before.fits(&pool), after.map(|after| after.fits(&pool))) {
        (Ok(()), _) => tags_of(before),
        (Err(_), Some(Ok(()))) => tags_of(after.expect("it fits")),
        (why, other) => panic!("{label}: neither before ({why:?}) nor after ({other:?})"),
    };
    let mut world = World { disk: disk.clone(), pool, model };
    world.audit(true);
    world.settle();
    // And it goes on as if nothing had happened.
    let mut chance = Chance(disk.unflushed() as u64 ^ 5);
    world.model.next = world.model.volumes.keys().max().copied().unwrap_or(0).max(before.next - 1) + 1;
    for _ in 0..3 {
        let deed = match world.draw(&mut chance) {
            // Which number a volume gets depends on whether the torn one happened.
            Deed::Create { .. } | Deed::Derive { .. } => Deed::Wipe { count: 2, fails: false },
            deed => deed,
        };
        if let Err(error) = world.act(&deed, &mut None) {
            assert!(is_refusal(&error), "{label} then {deed:?}: {error}");
        }
    }
    world.audit(false);
    world.audit_free();
}

/// Opens the pool on `image`, does some deeds with the power failing at every boundary in turn, and recovers.
fn every_boundary(image: &SimDisk, model: &Model, seed: u64, deeds: u32) -> u64 {
    for boundary in 0.. {
        let disk = image.fork();
        disk.die_at(boundary);
        let mut chance = Chance(seed);
        let (mut before, mut after) = (model.clone(), None);
        let mut failed = None;
        match World::open(&disk, model.clone(), 3) {
            Err(error) => failed = Some(("open".to_owned(), error)),
            Ok(mut world) => {
                for _ in 0..deeds {
                    let deed = world.draw(&mut chance);
                    let result = world.act(&deed, &mut after);
                    before = world.model.clone();
                    match result {
                        Ok(()) => {}
                        Err(error) if is_refusal(&error) => {}
                        Err(error) => {
                            failed = Some((format!("{deed:?}"), error));
                            break;
                        }
                    }
                }
            }
        }
        let Some((deed, error)) = failed else { return boundary };
        assert!(disk.is_dead(), "seed {seed} {deed}: {error}");
        for loss in 0..LOSSES {
            let label = format!("seed {seed} boundary {boundary} loss {loss} {deed}");
            recover(&disk.after_crash(loss + 5 * seed), &before, after.as_ref(), &label);
        }
    }
    unreachable!("some boundary is beyond the last")
}

#[test]
fn a_crash_at_any_boundary_of_any_operation_leaves_the_old_or_the_new() {
    let image = formatted(24);
    let mut boundaries = 0;
    for seed in 0..100 {
        let mut chance = Chance(seed ^ 0x1234_5678);
        // Some life before, so that there is something to lose; its length puts map switches into the episode.
        let mut world = World::open(&image.fork(), Model::new(), 1).expect("sound");
        for _ in 0..40 + chance.below(80) {
            let deed = world.draw(&mut chance);
            if let Err(error) = world.act(&deed, &mut None) {
                assert!(is_refusal(&error), "seed {seed} {deed:?}: {error}");
            }
        }
        boundaries += every_boundary(&world.disk, &world.model, seed, 6);
    }
    assert!(boundaries > 1500, "only {boundaries} boundaries were met");
}

#[test]
fn a_crash_at_any_boundary_of_format_leaves_no_pool_or_a_whole_one() {
    for boundary in 0..200 {
        let disk = crate::world::drive(8);
        disk.die_at(boundary);
        let done = volume::Pool::format(&disk, &format_options()).is_ok();
        for loss in 0..6 {
            let disk = disk.after_crash(loss);
            match open_as(&disk, 1) {
                Ok(pool) => assert_eq!((pool.volumes().len(), pool.info().free >= 8), (0, true)),
                Err(PoolError::NoPool | PoolError::Damaged(_)) => assert!(!done, "boundary {boundary}"),
                Err(error) => panic!("boundary {boundary}: {error}"),
            }
            let again = volume::FormatOptions { overwrite: true, uuid: [8; 16], ..format_options() };
            volume::Pool::format(&disk, &again).expect("it can always be formatted anew");
            open_as(&disk, 2).expect("sound");
        }
        if done {
            return;
        }
    }
    panic!("format never ended");
}

#[test]
fn a_crash_at_any_boundary_of_an_export_or_a_repair_leaves_a_pool_that_opens() {
    for boundary in 0..12 {
        for loss in 0..6 {
            let disk = formatted(8);
            let pool = open_as(&disk, 1).expect("sound");
            disk.die_at(boundary);
            let _ = pool.export();
            let disk = disk.after_crash(loss);
            open_as(&disk, 2).unwrap_or_else(|error| panic!("boundary {boundary}: {error}"));
            // A header is lost, and the power fails while it is repaired.
            disk.poke(1 << 20, &[0xff; 64]);
            disk.die_at(boundary);
            let options = volume::OpenOptions { host: crate::world::HOST, nonce: 5, take_over: false };
            let _ = check(&disk, Some(&options));
            let disk = disk.after_crash(loss);
            open_as(&disk, 3).unwrap_or_else(|error| panic!("boundary {boundary}: {error}"));
        }
    }
}
