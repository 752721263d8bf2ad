//! The fixed set of seeds: every fourth in each test, so that they run beside one another.

/// Crash points each test covers; together more than 100,000.
const CRASHES: u64 = 28_000;

fn search(first: u64) {
    let (mut crashes, mut seed) = (0, first);
    while crashes < CRASHES {
        match sim::run(seed, false) {
            Ok(report) => crashes += report.crashes,
            Err(violation) => panic!("{}\nreplay: cargo xtask sim --seed {seed}", violation.0),
        }
        seed += 4;
    }
}

#[test]
fn no_answer_or_acknowledged_byte_is_lost_wherever_the_engine_ends() {
    search(0);
}

#[test]
fn nothing_is_answered_twice_wherever_the_engine_ends() {
    search(1);
}

#[test]
fn what_was_flushed_is_there_after_every_power_cut() {
    search(2);
}

#[test]
fn queues_come_and_go_under_crashes() {
    search(3);
}
