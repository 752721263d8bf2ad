//! Limits hold exactly, whatever comes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use block::{Now, Op};
use proptest::prelude::*;
use qos::{Gate, Limits, Rate, Throttle};
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
/// Some time after the machine started.
const START: u64 = 77 * SECOND;

/// One request of a seat: so long after the one before it came.
#[derive(Clone, Copy, Debug)]
struct Request {
    gap_ns: u64,
    op: Op,
    len_bytes: u64,
}

/// A seat: its requests one after the other, and how late its reactor looks.
struct Seat {
    gate: Gate,
    pattern: Vec<Request>,
    late_ns: Vec<u64>,
    next: usize,
    arrival: u64,
    at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Went {
    at: u64,
    read: bool,
    len_bytes: u64,
    seat: usize,
}

impl Seat {
    fn new(throttle: &Arc<Throttle>, pattern: Vec<Request>, late_ns: Vec<u64>) -> Self {
        let arrival = START + pattern[0].gap_ns;
        Self { gate: Gate::new(Arc::clone(throttle)), pattern, late_ns, next: 0, arrival, at: arrival }
    }

    fn request(&self) -> Request {
        self.pattern[self.next % self.pattern.len()]
    }

    /// A turn at `self.at`: lets go what has come and may go.
    fn turn(&mut self, seat: usize, went: &mut Vec<Went>) {
        self.gate.turn(Now(self.at));
        for _ in 0..64 {
            let Request { op, len_bytes, .. } = self.request();
            if self.arrival > self.at {
                self.at = self.arrival;
                return;
            }
            if !self.gate.admit(op, len_bytes) {
                let late = self.late_ns[self.next % self.late_ns.len()];
                self.at = self.gate.shut_until().map_or(self.at, |at| at.0) + late.max(1);
                return;
            }
            went.push(Went { at: self.at, read: op == Op::Read, len_bytes, seat });
            self.next += 1;
            self.arrival += self.request().gap_ns;
        }
        self.at += 1000;
    }
}

/// Runs the seats until `end`; at `change` their limits become others.
fn run(
    limits: Limits,
    seats: Vec<(Vec<Request>, Vec<u64>)>,
    end: u64,
    change: Option<(u64, Limits)>,
) -> Vec<Went> {
    let throttle = Arc::new(Throttle::new(limits));
    let mut seats: Vec<Seat> =
        seats.into_iter().map(|(pattern, late)| Seat::new(&throttle, pattern, late)).collect();
    let (mut went, mut change) = (Vec::new(), change);
    loop {
        let (index, seat) = seats.iter_mut().enumerate().min_by_key(|(_, seat)| seat.at).unwrap();
        if let Some((at, limits)) = change.filter(|(at, _)| seat.at >= *at) {
            change = None;
            let after = Arc::new(throttle.changed(limits, Now(at)));
            for seat in &mut seats {
                seat.gate.change(Arc::clone(&after));
                seat.at = seat.arrival.max(at);
            }
            continue;
        }
        if seat.at >= START + end {
            return went;
        }
        seat.turn(index, &mut went);
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![Just(Op::Read), Just(Op::Write { fua: false }), Just(Op::Write { fua: true })]
}

/// Sizes in 512 bytes, gaps from none to long pauses.
fn pattern(gaps: impl Strategy<Value = u64> + Clone) -> impl Strategy<Value = Vec<Request>> {
    let sectors = prop_oneof![Just(8_u64), 1..64_u64, 1..2048_u64];
    let request =
        (gaps, op(), sectors).prop_map(|(gap_ns, op, n)| Request { gap_ns, op, len_bytes: n * 512 });
    prop::collection::vec(request, 1..24)
}

fn any_gaps() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![4 => Just(0_u64), 4 => 0..20_000_u64, 2 => 0..2_000_000_u64, 1 => 0..300_000_000_u64]
}

fn seats(gaps: impl Strategy<Value = u64> + Clone) -> impl Strategy<Value = Vec<(Vec<Request>, Vec<u64>)>> {
    let late = prop::collection::vec(prop_oneof![Just(0_u64), 0..1_000_000_u64], 1..8);
    prop::collection::vec((pattern(gaps), late), 1..5)
}

fn most_in_a_second(went: &[Went], weight: impl Fn(&Went) -> u64) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for last in went {
        sum += weight(last);
        while went[first].at + SECOND <= last.at {
            sum -= weight(&went[first]);
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

const MAX_BYTES: u64 = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_no_second_does_more_go_than_the_limits_and_a_fiftieth(
        seats in seats(any_gaps()),
        iops in 100_u64..30_000,
        bandwidth in 50_u64..2000,
        (reads, writes) in (50_u64..20_000, 50_u64..20_000),
    ) {
        let bandwidth = bandwidth << 20;
        let limits = Limits {
            iops: Some(Rate::per_second(iops)),
            read_iops: Some(Rate::per_second(reads)),
            write_iops: Some(Rate::per_second(writes)),
            bandwidth: Some(Rate::per_second(bandwidth)),
            ..Limits::default()
        };
        let went = run(limits, seats, 3 * SECOND / 2, None);
        let bound = |rate: u64| rate + rate / 50 + 1;
        prop_assert!(most_in_a_second(&went, |_| 1) <= bound(iops));
        prop_assert!(most_in_a_second(&went, |it| u64::from(it.read)) <= bound(reads));
        prop_assert!(most_in_a_second(&went, |it| u64::from(!it.read)) <= bound(writes));
        // The last request may be dearer than a full bucket.
        prop_assert!(most_in_a_second(&went, |it| it.len_bytes) <= bound(bandwidth) + MAX_BYTES);
    }

    #[test]
    fn who_always_has_something_to_do_gets_its_limit_within_a_fiftieth(
        seats in seats(Just(0)),
        iops in 100_u64..50_000,
        bandwidth in 100_u64..2000,
    ) {
        let count = seats.len() as u64;
        let limits = |iops, bandwidth| Limits { iops, bandwidth, ..Limits::default() };
        let went = run(limits(Some(Rate::per_second(iops)), None), seats.clone(), SECOND, None);
        let done = went.len() as u64;
        prop_assert!(done + count >= iops * 98 / 100 && done <= iops * 102 / 100 + 1, "{} of {}", done, iops);
        let bandwidth = bandwidth << 20;
        let went = run(limits(None, Some(Rate::per_second(bandwidth))), seats, SECOND, None);
        let done: u64 = went.iter().map(|it| it.len_bytes).sum();
        prop_assert!(done + count * MAX_BYTES >= bandwidth * 98 / 100, "{} of {}", done, bandwidth);
        prop_assert!(done <= bandwidth * 102 / 100 + MAX_BYTES, "{} of {}", done, bandwidth);
    }

    #[test]
    fn after_a_pause_the_burst_goes_at_once_and_not_one_more(
        burst in 1_u64..5000,
        rate in 10_u64..10_000,
        count in 1_usize..5,
    ) {
        let limits = Limits { iops: Some(Rate { per_second: rate, burst: Some(burst) }), ..Limits::default() };
        let throttle = Arc::new(Throttle::new(limits));
        let mut gates: Vec<Gate> = (0..count).map(|_| Gate::new(Arc::clone(&throttle))).collect();
        // The second pause is long enough for a full bucket again.
        for at in [START, START + (burst + 1) * SECOND / rate + SECOND] {
            let mut went = 0;
            for turn in 0..2 * burst {
                let gate = &mut gates[turn as usize % count];
                gate.turn(Now(at));
                went += u64::from(gate.admit(Op::Read, 4096));
            }
            // A seat may hold a slice that others do not see: some of it is unspent when the others are refused.
            prop_assert!(went <= burst, "{} of {}", went, burst);
            prop_assert!(went + (count as u64 - 1) * (burst / 8 + 1) >= burst, "{} of {}", went, burst);
            if count == 1 {
                prop_assert_eq!(went, burst);
            }
        }
    }

    #[test]
    fn nobody_waits_longer_than_what_was_before_it_takes(seats in seats(Just(0)), bandwidth in 50_u64..1000) {
        let bandwidth = bandwidth << 20;
        let limits = Limits { bandwidth: Some(Rate::per_second(bandwidth)), ..Limits::default() };
        let count = seats.len() as u64;
        let went = run(limits, seats, SECOND / 2, None);
        let mut last = vec![START; count as usize];
        for it in went {
            // Each other seat has one request before it, and perhaps the debt of another; reactors are late by 1 ms.
            let bound = (2 * count + 1) * MAX_BYTES * SECOND / bandwidth + count * 2_000_000;
            prop_assert!(it.at - last[it.seat] <= bound, "{} ns, {:?}", it.at - last[it.seat], it);
            last[it.seat] = it.at;
        }
    }

    #[test]
    fn a_higher_limit_never_lets_anything_go_later(
        pattern in pattern(any_gaps()),
        (low, more) in (100_u64..5000, 1_u64..20_000),
        at in 0..SECOND,
    ) {
        let limits = |rate| Limits { iops: Some(Rate::per_second(rate)), ..Limits::default() };
        let seats = vec![(pattern, vec![0])];
        let kept = run(limits(low), seats.clone(), SECOND, None);
        let raised = run(limits(low), seats.clone(), SECOND, Some((START + at, limits(low + more))));
        let lowered = run(limits(low + more), seats.clone(), SECOND, Some((START + at, limits(low))));
        let high = run(limits(low + more), seats, SECOND, None);
        for (slow, fast) in [(&kept, &raised), (&raised, &high), (&kept, &lowered), (&lowered, &high)] {
            for (slow, fast) in slow.iter().zip(fast.iter()) {
                // Two slices and the nanosecond of a look.
                prop_assert!(fast.at <= slow.at + 250_000, "{:?} {:?}", fast, slow);
            }
        }
    }

    #[test]
    fn changing_a_limit_to_itself_gives_nothing(rate in 100_u64..20_000, every in 1_u64..40, burst in 1_u64..100) {
        let limits = Limits { iops: Some(Rate { per_second: rate, burst: Some(burst) }), ..Limits::default() };
        let mut throttle = Arc::new(Throttle::new(limits));
        let mut gate = Gate::new(Arc::clone(&throttle));
        let mut went = 0;
        for ms in 0..1000 {
            let now = Now(START + ms * 1_000_000);
            if ms % every == 0 {
                throttle = Arc::new(throttle.changed(limits, now));
                gate.change(Arc::clone(&throttle));
            }
            gate.turn(now);
            while gate.admit(Op::Read, 4096) {
                went += 1;
            }
        }
        prop_assert!(went <= burst + rate + 1, "{} of {}", went, rate);
    }
}

#[test]
fn what_is_not_limited_is_not_held() {
    let limits = Limits { read_iops: Some(Rate { per_second: 10, burst: Some(1) }), ..Limits::default() };
    let mut gate = Gate::new(Arc::new(Throttle::new(limits)));
    gate.turn(Now(START));
    assert!((0..1000).all(|_| gate.admit(Op::Write { fua: false }, 4096)));
    assert!(gate.admit(Op::Read, 4096));
    assert!(gate.admit(Op::Flush, 0));
    assert_eq!(gate.shut_until(), None, "a read may go while none waits");
    assert!(!gate.admit(Op::Read, 4096));
    assert!(gate.admit(Op::Flush, 0), "a flush is never held");
    let opens = gate.shut_until().unwrap();
    assert!((99_999_990..=100_000_010).contains(&(opens.0 - START)), "{opens:?}");
    gate.turn(opens);
    assert_eq!(gate.shut_until(), None);
    assert!(gate.admit(Op::Read, 4096));
}

#[test]
fn a_request_that_found_no_room_is_not_paid_twice() {
    let limits = Limits { iops: Some(Rate { per_second: 10, burst: Some(2) }), ..Limits::default() };
    let mut gate = Gate::new(Arc::new(Throttle::new(limits)));
    gate.turn(Now(START));
    for _ in 0..100 {
        assert!(gate.admit(Op::Read, 4096));
        gate.refund(Op::Read, 4096);
    }
    assert!(gate.admit(Op::Read, 4096) && gate.admit(Op::Read, 4096) && !gate.admit(Op::Read, 4096));
}

#[test]
fn a_request_dearer_than_the_burst_goes_and_is_paid_afterwards() {
    let limits =
        Limits { bandwidth: Some(Rate { per_second: 1 << 20, burst: Some(4096) }), ..Limits::default() };
    let mut gate = Gate::new(Arc::new(Throttle::new(limits)));
    gate.turn(Now(START));
    assert!(gate.admit(Op::Read, 1 << 20));
    assert!(!gate.admit(Op::Read, 4096));
    let wait = gate.shut_until().unwrap().0 - START;
    assert!((SECOND - 1000..SECOND + SECOND / 100).contains(&wait), "{wait}");
}

#[test]
fn extreme_limits_and_sizes_do_no_harm() {
    let rates = [0, 1, 2, u64::MAX];
    for (rate, burst) in rates.iter().flat_map(|rate| rates.map(|burst| (*rate, burst))) {
        let rate = Some(Rate { per_second: rate, burst: Some(burst) });
        let limits = Limits { iops: rate, bandwidth: rate, read_iops: rate, ..Limits::default() };
        let throttle = Arc::new(Throttle::new(limits));
        let mut gate = Gate::new(Arc::clone(&throttle));
        for now in [0, 1, START, u64::MAX / 2, u64::MAX] {
            gate.turn(Now(now));
            for len in [0, 1, 4096, u64::MAX] {
                gate.admit(Op::Read, len);
                gate.refund(Op::Read, len);
            }
            gate.change(Arc::new(throttle.changed(limits, Now(now))));
        }
    }
}
