//! Random operations against a model.

use crate::drive::Chance;
use crate::world::{Deed, Model, World, formatted, is_refusal};

#[test]
fn ten_thousand_random_sequences_leave_what_the_model_says() {
    let image = formatted(24);
    for seed in 0..10_000_u64 {
        let mut chance = Chance(seed);
        let mut world = World::open(&image.fork(), Model::new(), 1).expect("sound");
        for step in 0..24 {
            let deed = world.draw(&mut chance);
            match world.act(&deed, &mut None) {
                Ok(()) => {}
                Err(error) if is_refusal(&error) => {}
                Err(error) => panic!("seed {seed} step {step} {deed:?}: {error}"),
            }
            if matches!(deed, Deed::Flush) && chance.below(4) == 0 {
                world = World::open(&world.disk.clone(), world.model.clone(), step).expect("sound");
            }
        }
        world.audit(false);
        world.audit_free();
    }
}

#[test]
fn a_long_life_with_many_switches_of_the_map_leaves_what_the_model_says() {
    let image = formatted(40);
    for seed in 0..4_u64 {
        let mut chance = Chance(seed ^ 0xabcd);
        let mut world = World::open(&image.fork(), Model::new(), 1).expect("sound");
        for step in 0..1500 {
            let deed = world.draw(&mut chance);
            if let Err(error) = world.act(&deed, &mut None) {
                assert!(is_refusal(&error), "seed {seed} step {step} {deed:?}: {error}");
            }
            if step % 50 == 0 {
                world.audit(false);
            }
            if step % 190 == 0 {
                world = World::open(&world.disk.clone(), world.model.clone(), step).expect("sound");
                world.audit(false);
            }
        }
        let report = volume::check(&world.disk, None).expect("there");
        assert!(report.is_sound(), "{report:?}");
        world.audit(false);
        world.audit_free();
    }
}
