//! Damage of every kind, in any combination, on pools that have lived: what is wrong is told, what is mended is right, and nothing
//! wrong is opened.

use volume::{OpenOptions, PoolError, Provisioning, Severity, check};

use crate::drive::{Chance, SimDisk};
use crate::world::{HOST, MIB, Model, World, formatted, is_refusal, open_as, spec};

/// Where the maps and journals of a drive of 24 extents are (`docs/formats/pool.md`).
const LAYOUT: std::ops::Range<u64> = 2 * MIB..2 * MIB + 2 * (3 * MIB + (256 << 10));

/// A pool with some life behind it, what it was a while ago, and where its last record is.
fn lived(seed: u64) -> (SimDisk, SimDisk, Model, u64) {
    let mut world = World::open(&formatted(24), Model::new(), 1).expect("sound");
    let mut chance = Chance(seed);
    let deeds = 30 + chance.below(150);
    let mut before = world.disk.fork();
    for number in 0..deeds {
        if number == deeds - 10 {
            before = world.disk.fork();
        }
        let deed = world.draw(&mut chance);
        if let Err(error) = world.act(&deed, &mut None) {
            assert!(is_refusal(&error), "{deed:?}: {error}");
        }
    }
    // The last record is one that can be recognised: without it, the layout is whole.
    let without = world.disk.fork();
    world.pool.create(&spec("last", 1, Provisioning::Thin)).expect("it takes no extent");
    let changed = world.disk.changed_since(&without);
    let last = changed.iter().map(|(at, _)| at / 4096 * 4096).rfind(|at| LAYOUT.contains(at));
    (world.disk, before, world.model, last.expect("it was written"))
}

/// A block where something is written, headers too.
fn some_block(disk: &SimDisk, spared: Option<u64>, chance: &mut Chance) -> u64 {
    if chance.below(6) == 0 {
        return [0, MIB][chance.below(2) as usize];
    }
    let blocks: Vec<u64> = LAYOUT
        .step_by(4096)
        .filter(|at| Some(*at) != spared && disk.peek(*at, 64).iter().any(|byte| *byte != 0))
        .collect();
    blocks[chance.below(u32::try_from(blocks.len()).expect("few")) as usize]
}

fn damage(disk: &SimDisk, before: &SimDisk, spared: Option<u64>, chance: &mut Chance) -> String {
    let at = some_block(disk, spared, chance);
    match chance.below(5) {
        0 => {
            let byte = at + u64::from(chance.below(400));
            disk.poke(byte, &[disk.peek(byte, 1)[0] ^ (1 << chance.below(8))]);
            format!("a bit of byte {byte} turned")
        }
        1 => {
            disk.poke(at, &[0; 4096]);
            format!("block {at} lost")
        }
        2 => {
            let other = some_block(disk, None, chance);
            disk.poke(at, &disk.peek(other, 4096));
            format!("block {at} written over with {other}")
        }
        // Both headers of an earlier time are a whole layout of that time: nobody can tell.
        3 if LAYOUT.contains(&at) => {
            disk.poke(at, &before.peek(at, 4096));
            format!("block {at} as it was")
        }
        _ => {
            disk.spoil(at);
            format!("block {at} unreadable")
        }
    }
}

/// It is what it should be, with or without the last change.
fn is_right(disk: &SimDisk, model: &Model, label: &str) {
    let mut pool = open_as(disk, 77).unwrap_or_else(|error| panic!("{label}: {error}"));
    if let Some(last) = pool.find("last") {
        pool.delete(last).expect("it is there");
    }
    model.fits(&pool).unwrap_or_else(|why| panic!("{label}: opened, and wrong: {why}"));
}

#[test]
fn whatever_is_damaged_is_told_and_mended_rightly_or_refused() {
    let mut met = [0_u32; 4];
    for seed in 0..12 {
        let (disk, before, model, last) = lived(seed);
        for round in 0..60 {
            let mut chance = Chance(seed << 32 | round);
            let disk = disk.fork();
            let count = 1 + chance.below(3);
            // The last record may rot unseen, and with it those before it that do too: nobody can tell that from a torn end.
            let spared = (count > 1).then_some(last);
            let what: Vec<String> = (0..count).map(|_| damage(&disk, &before, spared, &mut chance)).collect();
            let label = format!("seed {seed} round {round}: {}", what.join(", "));
            let report = match check(&disk, None) {
                Ok(report) => report,
                // Both headers are gone without a trace, or an area cannot be read.
                Err(PoolError::NoPool | PoolError::Drive { .. }) => {
                    assert!(open_as(&disk.fork(), 5).is_err(), "{label}");
                    met[0] += 1;
                    continue;
                }
                Err(error) => panic!("{label}: {error}"),
            };
            if report.findings.iter().any(|finding| finding.severity == Severity::Damage) {
                assert!(open_as(&disk.fork(), 5).is_err(), "{label}: {report:?}, and it opens");
                let untouched = disk.fork();
                let options = OpenOptions { host: HOST, nonce: 9, take_over: false };
                let again = check(&disk, Some(&options)).unwrap_or_else(|error| panic!("{label}: {error}"));
                assert!(again.findings.iter().all(|finding| !finding.repaired), "{label}: half a repair");
                assert!(disk.changed_since(&untouched).is_empty(), "{label}: a guess was written");
                met[1] += 1;
                continue;
            }
            if report.is_sound() {
                is_right(&disk, &model, &label);
                met[2] += 1;
                continue;
            }
            let options = OpenOptions { host: HOST, nonce: 9, take_over: false };
            match check(&disk, Some(&options)) {
                Ok(mended) => {
                    assert!(mended.is_sound(), "{label}: {mended:?}");
                    is_right(&disk, &model, &label);
                    met[3] += 1;
                }
                // A block that cannot be read or written stays so.
                Err(PoolError::Drive { .. } | PoolError::Fenced { .. } | PoolError::Damaged(_))
                    if label.contains("unreadable") => {}
                Err(error) => panic!("{label}: {error}"),
            }
        }
    }
    assert!(met.iter().all(|times| *times >= 5), "refused, damaged, sound, mended: {met:?}");
}
