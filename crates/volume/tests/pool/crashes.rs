//! The power fails between any two stores, and of what was not flushed any part is lost.

use std::collections::BTreeMap;

use volume::{PoolError, check};

use crate::drive::{Chance, SimDisk};
use crate::world::{
    Deed, Model, World, format_options, formatted, former_build_refuses, is_refusal, open_as,
};

/// Ways in which what was not flushed may be lost, tried at every boundary.
const LOSSES: u64 = 4;

fn has_damage(report: &volume::Report) -> bool {
    report.findings.iter().any(|finding| finding.severity == volume::Severity::Damage)
}

/// Comes up after a crash: what holds is the model before the deed or the one after it.
fn recover(disk: &SimDisk, before: &Model, after: Option<&Model>, label: &str) {
    let report = check(disk, None).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(!has_damage(&report), "{label}: {report:?}");
    // Before our own opening writes anything: a build that skips passages must not even read what has one.
    let refused = former_build_refuses(disk);
    let pool = open_as(disk, 99).unwrap_or_else(|error| panic!("{label}: {error}"));
    let moved = pool.volumes().iter().any(|volume| volume.passage.is_some());
    assert!(refused || !moved, "{label}: a former build would open what is owned elsewhere");
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

/// Where the power failed, and how often: kinds of deeds, and what was being written.
type Met = BTreeMap<String, u64>;

/// What lies at a byte of a drive of 24 extents (`docs/formats/pool.md`: maps of 3 MiB, journals of 256 KiB).
fn place_of(write: Option<u64>) -> &'static str {
    const MIB: u64 = 1 << 20;
    const SLOT: u64 = 3 * MIB + (256 << 10);
    match write {
        None => "at a flush",
        Some(at) if at < 2 * MIB => "at a header",
        Some(at) if at < 2 * MIB + 2 * SLOT && (at - 2 * MIB) % SLOT < 3 * MIB => "at a map",
        Some(at) if at < 2 * MIB + 2 * SLOT => "at a journal",
        Some(_) => "at data",
    }
}

/// Does some deeds on a drive of its own, until there were enough, or what one of them wrote is what is waited for.
fn live(image: &SimDisk, mut chance: Chance, deeds: u32, until: impl Fn(Vec<u64>) -> bool) -> (World, u32) {
    let mut world = World::open(&image.fork(), Model::new(), 1).expect("sound");
    for number in 0..deeds {
        world.disk.take_trail();
        let deed = world.draw(&mut chance);
        if let Err(error) = world.act(&deed, &mut None) {
            assert!(is_refusal(&error), "{deed:?}: {error}");
        }
        if until(world.disk.take_trail()) {
            return (world, number);
        }
    }
    (world, deeds)
}

/// Opens the pool on `image`, does some deeds with the power failing at every boundary in turn, and recovers.
fn every_boundary(image: &SimDisk, model: &Model, seed: u64, deeds: u32, met: &mut Met) -> u64 {
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
        let kind = deed.split([' ', '(']).next().unwrap_or_default().to_owned();
        *met.entry(kind).or_default() += 1;
        *met.entry(place_of(disk.last_write()).to_owned()).or_default() += 1;
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
    let (mut boundaries, mut met) = (0, Met::new());
    for seed in 0..100 {
        let mut chance = Chance(seed ^ 0x1234_5678);
        let some = 40 + chance.below(80);
        // Some life before, so that there is something to lose; in every third, until just before the map is switched.
        let until = |trail: Vec<u64>| trail.into_iter().any(|at| place_of(Some(at)) == "at a map");
        let deeds = match seed % 3 {
            0 => live(&image, chance.clone(), 1000, until).1.saturating_sub(3),
            _ => some,
        };
        let (world, _) = live(&image, chance, deeds, |_| false);
        boundaries += every_boundary(&world.disk, &world.model, seed, 6, &mut met);
    }
    assert!(boundaries > 1500, "only {boundaries} boundaries were met");
    let deeds = [
        "open",
        "Create",
        "Grow",
        "Write",
        "Release",
        "Derive",
        "Delete",
        "Wipe",
        "Epoch",
        "Attributes",
        "Passage",
        "Vacate",
    ];
    let places = ["at a flush", "at a header", "at a map", "at a journal", "at data"];
    for what in deeds.iter().chain(&places) {
        assert!(met.get(*what).is_some_and(|times| *times >= 10), "hardly any end in {what}: {met:?}");
    }
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

/// Rule 7 of `docs/formats/pool.md`. Many losses for each boundary: of two headers and a map a certain subset must stay.
#[test]
fn a_crash_at_any_boundary_of_a_format_over_a_pool_leaves_the_old_pool_whole_or_none_or_the_new_one() {
    let old = formatted(8);
    let mut pool = open_as(&old, 1).expect("sound");
    for name in ["a", "b", "c"] {
        pool.create(&crate::world::spec(name, 1, volume::Provisioning::Full)).expect("space is there");
    }
    drop(pool);
    let options =
        volume::FormatOptions { overwrite: true, uuid: [8; 16], name: "new".to_owned(), ..format_options() };
    let mut seen = [0_u32; 3];
    for boundary in 0..200 {
        let image = old.fork();
        image.die_at(boundary);
        let done = volume::Pool::format(&image, &options).is_ok();
        for loss in 0..200 {
            let disk = image.after_crash(loss);
            let label = format!("boundary {boundary} loss {loss}");
            match check(&disk, None) {
                Ok(report) => assert!(!has_damage(&report), "{label}: {report:?}"),
                Err(PoolError::NoPool) => {}
                Err(error) => panic!("{label}: {error}"),
            }
            match open_as(&disk, 2) {
                Ok(pool) if pool.info().name == "new" => {
                    assert_eq!(pool.volumes().len(), 0, "{label}");
                    seen[2] += 1;
                }
                Ok(pool) => {
                    assert!(!done && pool.volumes().len() == 3, "{label}: the old pool is whole or gone");
                    seen[0] += 1;
                }
                Err(PoolError::NoPool) => {
                    assert!(!done, "{label}");
                    seen[1] += 1;
                }
                Err(error) => panic!("{label}: {error}"),
            }
        }
        if done {
            assert!(seen.iter().all(|times| *times > 0), "all three are met: {seen:?}");
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
