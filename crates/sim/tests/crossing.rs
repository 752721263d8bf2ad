//! The fixed set of seeds of the world of a crossing: every other in each test, so that they run beside one another. And what this world breaks on
//! purpose, each with a seed that shows it.

use sim::crossing::broken::Broken;
use sim::crossing::{Report, run, run_with};

/// Seeds of each test.
const SEEDS: u64 = 125;

/// What is broken, a seed that notices, and what it says.
const BROKEN: [(Broken, u64, &str); 11] = [
    (Broken::GrantBeforeJournal, 1, "both hosts own the ssd by what is durable"),
    (Broken::ServeBeforeGrant, 0, "serves the ssd and does not own it"),
    (Broken::ServeAfterGrant, 0, "both hosts serve the ssd"),
    (Broken::MarkLost, 8, "does not tell sector 13"),
    (Broken::MarkEarly, 28, "at the owner"),
    (Broken::LastLeftOut, 0, "from sector"),
    (Broken::NotHalted, 0, "which nobody asked"),
    (Broken::NotFlushed, 111, "has Some(Zero) at"),
    (Broken::RecordNotDurable, 0, "serves the ssd and does not own it"),
    (Broken::StateLeftOut, 0, "it never ends"),
    (Broken::NotEmptied, 2, "something of the ssd is left where it is not any more"),
];

fn search(first: u64) -> Report {
    let mut sum = Report::default();
    for seed in (first..2 * SEEDS).step_by(2) {
        match run(seed, false) {
            Ok(report) => {
                assert!(report.crossings + report.taken_back <= report.migrations, "seed {seed}: {report:?}");
                sum.crossings += report.crossings;
                sum.taken_back += report.taken_back;
                sum.crashes += report.crashes;
                sum.power_losses += report.power_losses;
                sum.left_audited += report.left_audited;
                sum.cuts += report.cuts;
            }
            Err(violation) => panic!("{}\nreplay: cargo xtask sim --crossing --seed {seed}", violation.0),
        }
    }
    assert!(sum.crossings > SEEDS / 2 && sum.crashes > SEEDS && sum.power_losses > 0 && sum.cuts > SEEDS);
    sum
}

#[test]
fn a_guest_that_crosses_reads_what_it_wrote_whatever_is_in_its_way() {
    assert!(search(0).left_audited > 0);
}

#[test]
fn there_is_one_owner_after_every_crossing_wherever_a_host_ends() {
    assert!(search(1).taken_back > 0);
}

/// Each rule that is broken on purpose, with a seed that finds nothing when it is kept.
#[test]
fn whatever_is_broken_on_purpose_is_noticed_for_what_it_is() {
    let said = |broken, seed| match run_with(seed, false, Some(broken)) {
        Ok(_) => "nothing".to_owned(),
        Err(violation) => violation.0,
    };
    let said = BROKEN.map(|(broken, seed, words)| (broken, words, said(broken, seed)));
    let otherwise: Vec<_> = said.iter().filter(|(_, words, said)| !said.contains(words)).collect();
    assert!(otherwise.is_empty(), "{otherwise:#?}");
    let known: Vec<Broken> = BROKEN.into_iter().map(|(broken, ..)| broken).collect();
    assert_eq!(known, Broken::ALL);
}
