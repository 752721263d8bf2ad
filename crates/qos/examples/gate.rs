//! Nanoseconds that limits cost a request.
//!
//! `cargo run --release -p qos --example gate`

use block::{Now, Op};
use qos::drive::Party;
use qos::{Drive, Gate, Limits, Member, Rate, Throttle, Weight};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Of a sample: short, so that many are not interrupted.
const REQUESTS: u64 = 16_000;
const SAMPLES: u64 = 3000;
/// Requests of a turn. The best of the samples counts.
const TURN: u64 = 16;

fn measure(name: &str, limits: Limits) {
    let mut gate = Gate::new(Arc::new(Throttle::new(limits)));
    let mut best = f64::MAX;
    let mut now = 0;
    for _ in 0..SAMPLES {
        let (start, mut went) = (Instant::now(), 0);
        for _ in 0..REQUESTS / TURN {
            // A thousandth of the limit.
            now += 1000 * TURN;
            gate.turn(Now(black_box(now)));
            for _ in 0..TURN {
                went += u64::from(gate.admit(black_box(Op::Read), black_box(4096)));
            }
        }
        black_box(went);
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / REQUESTS as f64);
    }
    println!("{name:40} {best:6.2} ns a request");
}

fn measure_member(name: &str, parties: usize) {
    let drive = Arc::new(Drive::default());
    let parties: Vec<_> =
        (0..parties).map(|_| Arc::new(Party::new(Arc::clone(&drive), Weight::default()))).collect();
    let mut members: Vec<_> = parties.into_iter().map(Member::new).collect();
    let mut best = f64::MAX;
    let mut now = 0;
    for _ in 0..SAMPLES {
        let (start, turns) = (Instant::now(), REQUESTS / TURN);
        for _ in 0..turns {
            now += 1000;
            for member in &mut members {
                black_box(member.turn(Now(black_box(now)), 16, 16));
                member.end(black_box(16 << 12), 32, false);
            }
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / turns as f64 / members.len() as f64);
    }
    println!("{name:40} {best:6.2} ns a turn");
}

fn main() {
    // Never reached at the pace of this loop: what is measured is the look, not the wait.
    let rate = |per_second: u64| Some(Rate { per_second, burst: None });
    let (iops, bandwidth) = (rate(1_000_000_000), rate(1 << 44));
    measure("no limits", Limits::default());
    measure("iops", Limits { iops, ..Limits::default() });
    measure("iops and bandwidth", Limits { iops, bandwidth, ..Limits::default() });
    measure(
        "all six",
        Limits {
            iops,
            read_iops: iops,
            write_iops: iops,
            bandwidth,
            read_bandwidth: bandwidth,
            write_bandwidth: bandwidth,
        },
    );
    measure_member("a drive of its own", 1);
    measure_member("a drive shared by eight", 8);
}
