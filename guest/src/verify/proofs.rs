//! The auditor is audited: each kind of fault is made once, and must be counted as what it is.

use std::time::Duration;

use super::auditor::Tally;
use super::fake::{Fake, Fault};
use super::load::Load;

const TURNS: usize = 400;

/// A run over a perfect drive that makes one fault in its middle.
fn run(fault: Option<Fault>, seed: u64) -> (Tally, Vec<String>) {
    let fake = Fake::new(3, 8);
    let wish = fake.fault.clone();
    let mut load = Load::new("fake", 9, Box::new(fake), seed, 0);
    let clock = std::cell::Cell::new(0_u64);
    let now = || {
        clock.set(clock.get() + 1);
        clock.get()
    };
    let turns = |load: &mut Load| {
        for _ in 0..TURNS {
            load.turn(&now).unwrap();
        }
    };
    turns(&mut load);
    *wish.borrow_mut() = fault;
    turns(&mut load);
    load.drain();
    turns(&mut load);
    load.sweep();
    turns(&mut load);
    assert!(wish.borrow().is_none(), "{fault:?} was never made");
    if fault == Some(Fault::Lost) {
        load.give_up(u64::MAX, Duration::from_secs(1));
    }
    assert!(load.is_done());
    (load.auditor.tally(), load.auditor.faults().to_vec())
}

#[test]
fn a_perfect_drive_has_the_zero_row_under_every_seed() {
    for seed in 1..20 {
        let (tally, faults) = run(None, seed);
        assert!(tally.is_clean(), "seed {seed}: {faults:?}");
        assert!(tally.answered > 5000 && tally.checked_bytes > 10 << 20, "{tally:?}");
    }
}

#[test]
fn every_fault_of_the_data_is_counted_as_wrong_bytes() {
    let faults = [
        Fault::Rot,
        Fault::DroppedWrite,
        Fault::Misplaced,
        Fault::Torn,
        Fault::LateAgain,
        Fault::Unread,
        Fault::Overrun,
        Fault::Undiscarded,
    ];
    for fault in faults {
        // A fault may hide: two dropped writes, zeros over zeros, a replay overwritten before anybody looked. Not in every run.
        let seen = (1..6).filter(|seed| run(Some(fault), *seed).0.wrong_bytes > 0).count();
        assert!(seen >= 2, "{fault:?} was seen in {seen} of 5 runs");
    }
}

#[test]
fn a_failed_command_is_an_error() {
    let (tally, faults) = run(Some(Fault::Failed), 3);
    assert_eq!((tally.errors, tally.lost, tally.repeated, tally.wrong_bytes), (1, 0, 0, 0), "{faults:?}");
}

#[test]
fn a_second_answer_is_a_repetition() {
    let (tally, faults) = run(Some(Fault::Repeated), 3);
    assert_eq!((tally.errors, tally.lost, tally.repeated, tally.wrong_bytes), (0, 0, 1, 0), "{faults:?}");
}

#[test]
fn a_command_without_an_answer_is_lost() {
    let (tally, faults) = run(Some(Fault::Lost), 3);
    assert_eq!((tally.errors, tally.lost, tally.repeated, tally.wrong_bytes), (0, 1, 0, 0), "{faults:?}");
}

#[test]
fn a_stale_block_is_told_as_one() {
    let told = (1..6).flat_map(|seed| run(Some(Fault::DroppedWrite), seed).1).collect::<Vec<_>>();
    assert!(told.iter().any(|fault| fault.contains("stale") || fault.contains("zeros")), "{told:?}");
}
