//! The fixed set of seeds of the world of a crossing: every other in each test, so that they run beside one another. And what this world breaks on
//! purpose, each with a seed that shows it.

use sim::crossing::broken::Broken;
use sim::crossing::{Report, run, run_with};

/// Seeds of each test.
const SEEDS: u64 = 100;

/// What is broken, and a seed that notices.
const BROKEN: [(Broken, u64); 11] = [
    (Broken::GrantBeforeJournal, 4),
    (Broken::ServeBeforeGrant, 0),
    (Broken::ServeAfterGrant, 8),
    (Broken::MarkLost, 8),
    (Broken::MarkEarly, 34),
    (Broken::LastLeftOut, 8),
    (Broken::NotHalted, 5),
    (Broken::NotFlushed, 36),
    (Broken::RecordNotDurable, 0),
    (Broken::StateLeftOut, 0),
    (Broken::NotEmptied, 2),
];

fn search(first: u64) {
    let mut sum = Report::default();
    for seed in (first..2 * SEEDS).step_by(2) {
        match run(seed, false) {
            Ok(report) => {
                sum.crossings += report.crossings;
                sum.crashes += report.crashes;
                sum.power_losses += report.power_losses;
                sum.cuts += report.cuts;
            }
            Err(violation) => panic!("{}\nreplay: cargo xtask sim --crossing --seed {seed}", violation.0),
        }
    }
    assert!(sum.crossings > SEEDS / 2 && sum.crashes > SEEDS && sum.power_losses > 0 && sum.cuts > SEEDS);
}

#[test]
fn a_guest_that_crosses_reads_what_it_wrote_whatever_is_in_its_way() {
    search(0);
}

#[test]
fn there_is_one_owner_after_every_crossing_wherever_a_host_ends() {
    search(1);
}

/// Each rule that is broken on purpose, with a seed that finds nothing when it is kept.
#[test]
fn whatever_is_broken_on_purpose_is_noticed() {
    for (broken, seed) in BROKEN {
        assert!(run_with(seed, false, Some(broken)).is_err(), "{broken:?} is not noticed by seed {seed}");
    }
    let known: Vec<Broken> = BROKEN.into_iter().map(|(broken, _)| broken).collect();
    assert_eq!(known, Broken::ALL);
}
