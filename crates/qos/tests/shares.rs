//! A drive and a reactor are shared by weight.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use block::Now;
use proptest::prelude::*;
use qos::allowance::cost;
use qos::drive::Party;
use qos::{Allowance, Drive, Member, Weight};
use std::sync::Arc;

const US: u64 = 1000;

fn weight(weight: u16) -> Weight {
    Weight::new(weight).unwrap()
}

/// An ssd that keeps `depth` requests of `len_bytes` wanted, or asks for one every `every_ns`.
struct Load {
    member: Member,
    len_bytes: u64,
    depth: usize,
    every_ns: u64,
    next: u64,
    out: usize,
    ended: usize,
    done: u64,
    waits: Vec<u64>,
}

/// A drive that serves one request after the other, in the order they came, at `bytes_per_us` and `base_ns` more for each to be heard.
struct World {
    loads: Vec<Load>,
    queue: std::collections::VecDeque<(usize, u64, u64)>,
    bytes_per_us: u64,
    free_at: u64,
    isolated: bool,
}

impl World {
    fn new(isolated: bool, loads: &[(u16, u64, usize, u64)]) -> Self {
        let drive = Arc::new(Drive::default());
        let load = |&(own, len_bytes, depth, every_ns): &(u16, u64, usize, u64)| {
            let party = Arc::new(Party::new(Arc::clone(&drive), weight(own)));
            let member = Member::new(party);
            Load { member, len_bytes, depth, every_ns, next: 0, out: 0, ended: 0, done: 0, waits: Vec::new() }
        };
        let loads = loads.iter().map(load).collect();
        Self { loads, queue: std::collections::VecDeque::new(), bytes_per_us: 500, free_at: 0, isolated }
    }

    fn run(&mut self, from_us: u64, to_us: u64) {
        for us in (from_us..to_us).step_by(10) {
            let now = us * US;
            while let Some(&(load, asked, ends)) = self.queue.front().filter(|(.., ends)| *ends <= now) {
                self.queue.pop_front();
                let load = &mut self.loads[load];
                load.out -= 1;
                load.ended += 1;
                load.done += load.len_bytes;
                load.waits.push(ends - asked);
            }
            for (index, load) in self.loads.iter_mut().enumerate() {
                let mut left = load.member.turn(Now(now), load.out, std::mem::take(&mut load.ended));
                if !self.isolated {
                    left = i64::MAX;
                }
                let (mut spent, mut held) = (0, false);
                while load.out < load.depth && load.next <= now {
                    if left <= 0 {
                        held = true;
                        break;
                    }
                    left = left.saturating_sub(cost(load.len_bytes));
                    spent += cost(load.len_bytes);
                    let asked = if load.every_ns > 0 { load.next } else { now };
                    load.next += load.every_ns;
                    load.out += 1;
                    self.free_at = self.free_at.max(now) + load.len_bytes * US / self.bytes_per_us + 20 * US;
                    self.queue.push_back((index, asked, self.free_at));
                }
                load.member.end(spent, load.out, held);
            }
        }
    }

    fn p99(&self, load: usize) -> u64 {
        let mut waits = self.loads[load].waits.clone();
        waits.sort_unstable();
        waits[waits.len() * 99 / 100]
    }

    fn forget(&mut self) {
        for load in &mut self.loads {
            load.waits.clear();
            load.done = 0;
        }
    }
}

const MODEST: (u16, u64, usize, u64) = (100, 4096, 4, 2_000_000);
const GREEDY: (u16, u64, usize, u64) = (100, 128 << 10, 128, 0);

#[test]
fn a_greedy_ssd_leaves_seven_modest_ones_their_rate_and_most_of_their_speed() {
    let mut loads = vec![MODEST; 7];
    loads.push(GREEDY);
    let mut off = World::new(false, &loads);
    off.run(0, 3_000_000);
    let mut on = World::new(true, &loads);
    on.run(0, 1_000_000);
    on.forget();
    on.run(1_000_000, 6_000_000);
    for modest in 0..7 {
        // One in 2 ms each.
        assert!(on.loads[modest].done >= 2450 * 4096, "{}", on.loads[modest].done);
        // A large request that is being served is waited for: 280 µs here.
        assert!(on.p99(modest) < 2 * (280 + 7 * 28) * US, "{}", on.p99(modest));
        assert!(off.p99(modest) > 20_000 * US, "{}", off.p99(modest));
    }
    // What the others leave is used.
    assert!(on.loads[7].done > 5 * (500 << 20) * 6 / 10, "{}", on.loads[7].done >> 20);
}

#[test]
fn who_is_alone_at_the_drive_is_held_to_nothing() {
    let mut world = World::new(true, &[GREEDY, MODEST]);
    world.loads[1].depth = 0;
    world.run(0, 100_000);
    assert_eq!(world.loads[0].out, 128);
    // Nor when the other has left again.
    world.loads[1].depth = 4;
    world.run(100_000, 400_000);
    assert!(world.loads[0].out < 64);
    world.loads[1].depth = 0;
    world.run(400_000, 900_000);
    assert_eq!(world.loads[0].out, 128);
}

#[test]
fn a_seat_that_goes_leaves_nothing_behind() {
    let drive = Arc::new(Drive::default());
    let party = Arc::new(Party::new(Arc::clone(&drive), weight(100)));
    let other = Arc::new(Party::new(Arc::clone(&drive), weight(100)));
    let mut stays = Member::new(Arc::clone(&other));
    for round in 1..100 {
        let mut goes = Member::new(Arc::clone(&party));
        goes.turn(Now(round), 8, 1);
        goes.end(8 << 20, 16, true);
        goes.turn(Now(round + 1), 16, 0);
        stays.turn(Now(round), 1, 1);
        assert!(stays.turn(Now(round), 1, 0) < i64::MAX, "the drive is shared");
        drop(goes);
        assert_eq!(stays.turn(Now(round), 1, 1), i64::MAX, "and now it is not");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_ssds_share_a_drive_by_weight(weights in prop::collection::vec(50_u16..400, 2..5)) {
        let loads: Vec<_> = weights.iter().map(|own| (*own, 32 << 10, 128, 0)).collect();
        let mut world = World::new(true, &loads);
        world.run(0, 500_000);
        world.forget();
        world.run(500_000, 2_500_000);
        let all: u64 = world.loads.iter().map(|load| load.done).sum();
        let sum: u64 = weights.iter().copied().map(u64::from).sum();
        for (load, own) in world.loads.iter().zip(&weights) {
            let fair = all * u64::from(*own) / sum;
            prop_assert!(load.done * 100 >= fair * 85, "{} of {}, {:?}", load.done, fair, weights);
        }
    }

    #[test]
    fn a_reactor_is_shared_by_weight_whatever_the_sizes(
        seats in prop::collection::vec((1_u16..1000, 1_u64..2048), 2..6),
    ) {
        let mut allowances = vec![Allowance::default(); seats.len()];
        let mut spent = vec![0; seats.len()];
        for _ in 0..20_000 {
            for (at, (own, sectors)) in seats.iter().enumerate() {
                let mut left = allowances[at].turn(weight(*own), 256 << 10);
                while left > 0 {
                    left -= cost(sectors * 512);
                    spent[at] += cost(sectors * 512);
                    allowances[at].spend(cost(sectors * 512));
                }
            }
        }
        // Weights below 2 get the least quantum; compare those that are in proportion.
        let per: Vec<i64> =
            seats.iter().zip(&spent).filter(|((own, _), _)| *own >= 10).map(|((own, _), spent)| spent / i64::from(*own)).collect();
        for (a, b) in per.iter().zip(per.iter().skip(1)) {
            prop_assert!((a - b).abs() * 50 <= *a.max(b), "{:?}", per);
        }
    }
}
