//! The fixed set of seeds of the pool's world: every other in each test, so that they run beside one another.

/// Crash points each test covers.
const CRASHES: u64 = 4_000;

fn search(first: u64) {
    let (mut crashes, mut seed) = (0, first);
    while crashes < CRASHES {
        match sim::pool::run(seed, false) {
            Ok(report) => crashes += report.crashes,
            Err(violation) => panic!("{}\nreplay: cargo xtask sim --pool --seed {seed}", violation.0),
        }
        seed += 2;
    }
}

#[test]
fn no_volume_ever_reads_a_former_owners_byte_wherever_the_engine_or_the_power_ends() {
    search(0);
}

#[test]
fn what_a_pool_acknowledged_is_there_wherever_the_engine_or_the_power_ends() {
    search(1);
}
