//! What moves from which reactor to which: pure, and the same for the same past.
//!
//! A queue pair moves only when a reactor has been busy for several looks in a row while another had much less to do, and only if that brings
//! both clearly nearer together. So a pair that moved has no reason to move back, and what moved lately stays for a while whatever is
//! measured meanwhile.

use crate::message::{Pair, SsdId};
use std::collections::HashMap;

/// A reactor with less to do than that needs no help.
const BUSY_PERMILLE: u32 = 500;
/// The least difference that counts, and how much less of it must be left after a move.
const GAP_PERMILLE: u32 = 250;
const GAIN_PERMILLE: u32 = 100;
/// Looks in a row that must say the same.
const PATIENCE: u32 = 3;
/// Looks before another move: measured anew meanwhile.
const SETTLE: u32 = 5;
/// Looks for which a pair that was moved stays.
const STAY: u64 = 50;

/// What a reactor did between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) reactor: usize,
    pub(crate) busy_permille: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) ssd: SsdId,
    pub(crate) queue: u16,
    pub(crate) to: usize,
    pub(crate) ring: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Balancer {
    look: u64,
    /// Looks in a row that named this reactor as the one with too much.
    wanted: Option<(usize, u32)>,
    /// Looks without a move that are left.
    settling: u32,
    /// What each pair had done when all were last asked for.
    done: HashMap<(SsdId, u16), u64>,
    /// The look at which each was moved.
    moved: HashMap<(SsdId, u16), u64>,
}

impl Balancer {
    /// Looks at the loads. Whether it is worth its price to ask for all pairs.
    pub(crate) fn wants_more(&mut self, loads: &[Load]) -> bool {
        self.look += 1;
        self.settling = self.settling.saturating_sub(1);
        let Some((most, _)) = uneven(loads) else {
            (self.wanted, self.done) = (None, HashMap::new());
            return false;
        };
        let looks = self.wanted.filter(|(reactor, _)| *reactor == most.reactor).map_or(0, |(_, looks)| looks);
        self.wanted = Some((most.reactor, looks + 1));
        // Those asked for before show what each did in the last look.
        looks + 2 >= PATIENCE && self.settling == 0
    }

    /// The move that helps most, if one does.
    pub(crate) fn next(&mut self, loads: &[Load], pairs: &[Pair]) -> Option<Move> {
        let (most, least) = uneven(loads)?;
        let before = std::mem::take(&mut self.done);
        self.done = pairs.iter().map(|pair| ((pair.ssd, pair.queue), pair.done)).collect();
        let patient = self.wanted.is_some_and(|(_, looks)| looks >= PATIENCE);
        if !patient || self.settling > 0 {
            return None;
        }
        let here = pairs.iter().filter(|pair| pair.at == most.reactor);
        let work: Vec<(&Pair, u64)> = here
            .filter_map(|pair| {
                let then = before.get(&(pair.ssd, pair.queue))?;
                // A ring that moved begins to count anew.
                Some((pair, pair.done.saturating_sub(*then)))
            })
            .collect();
        let all: u64 = work.iter().map(|(_, done)| done).sum();
        let gap = most.busy_permille - least.busy_permille;
        let look = self.look;
        self.moved.retain(|_, at| look - *at < STAY);
        let candidates = work.iter().filter(|(pair, _)| !self.moved.contains_key(&(pair.ssd, pair.queue)));
        // What is left of the difference; then the name, so that the same past leads to the same future.
        let left = |done: u64| {
            let share = u64::from(most.busy_permille).saturating_mul(done) / all.max(1);
            u64::from(gap).abs_diff(share.saturating_mul(2))
        };
        let best = candidates.map(|(pair, done)| (left(*done), pair.ssd, pair.queue, pair.ring)).min()?;
        let (left, ssd, queue, ring) = best;
        if left + u64::from(GAIN_PERMILLE) > u64::from(gap) {
            return None;
        }
        self.moved.insert((ssd, queue), self.look);
        (self.settling, self.wanted) = (SETTLE, None);
        Some(Move { ssd, queue, to: least.reactor, ring })
    }
}

/// Who has too much, and who the least, if they differ enough.
fn uneven(loads: &[Load]) -> Option<(Load, Load)> {
    let most = loads.iter().max_by_key(|load| (load.busy_permille, std::cmp::Reverse(load.reactor)))?;
    let least = loads.iter().min_by_key(|load| (load.busy_permille, load.reactor))?;
    let counts = most.busy_permille >= BUSY_PERMILLE
        && most.busy_permille.saturating_sub(least.busy_permille) >= GAP_PERMILLE;
    counts.then_some((*most, *least))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reactors and pairs of known loads, in permille of a reactor.
    struct World {
        reactors: usize,
        pairs: Vec<(usize, u32)>,
        done: Vec<u64>,
        balancer: Balancer,
        moves: usize,
    }

    impl World {
        fn new(reactors: usize, pairs: &[(usize, u32)]) -> Self {
            let (pairs, done) = (pairs.to_vec(), vec![0; pairs.len()]);
            Self { reactors, pairs, done, balancer: Balancer::default(), moves: 0 }
        }

        fn busy(&self, reactor: usize) -> u32 {
            self.pairs.iter().filter(|(at, _)| *at == reactor).map(|(_, load)| load).sum::<u32>().min(1000)
        }

        fn look(&mut self) {
            for (done, (_, load)) in self.done.iter_mut().zip(&self.pairs) {
                *done += u64::from(*load);
            }
            let loads: Vec<Load> = (0..self.reactors)
                .map(|reactor| Load { reactor, busy_permille: self.busy(reactor) })
                .collect();
            if !self.balancer.wants_more(&loads) {
                return;
            }
            let pairs: Vec<Pair> = (0_u16..)
                .zip(self.pairs.iter().zip(&self.done))
                .map(|(queue, ((at, _), done))| Pair {
                    ssd: SsdId(7),
                    queue,
                    at: *at,
                    done: *done,
                    ring: false,
                })
                .collect();
            if let Some(Move { queue, to, .. }) = self.balancer.next(&loads, &pairs) {
                self.pairs[usize::from(queue)].0 = to;
                self.moves += 1;
            }
        }

        fn looks(&mut self, count: usize) {
            (0..count).for_each(|_| self.look());
        }
    }

    #[test]
    fn what_is_on_one_reactor_spreads_over_all_and_then_stays() {
        let mut world = World::new(4, &[(0, 300); 4]);
        world.looks(200);
        assert!((0..4).all(|reactor| world.busy(reactor) == 300), "{:?}", world.pairs);
        assert_eq!(world.moves, 3);
        world.looks(1000);
        assert_eq!(world.moves, 3);
    }

    #[test]
    fn one_heavy_pair_is_not_handed_round() {
        let mut world = World::new(2, &[(0, 900)]);
        world.looks(1000);
        assert_eq!(world.moves, 0);
        let mut world = World::new(2, &[(0, 700), (0, 200)]);
        world.looks(1000);
        assert_eq!((world.moves, world.busy(0).min(world.busy(1))), (1, 200));
    }

    #[test]
    fn who_has_time_to_spare_is_not_helped_and_a_moment_is_not_enough() {
        let mut world = World::new(2, &[(0, 200), (0, 200)]);
        world.looks(1000);
        assert_eq!(world.moves, 0);
        let mut world = World::new(2, &[(0, 0), (0, 0)]);
        for _ in 0..100 {
            world.pairs.iter_mut().for_each(|pair| pair.1 = 450);
            world.looks(2);
            world.pairs.iter_mut().for_each(|pair| pair.1 = 0);
            world.looks(2);
        }
        assert_eq!(world.moves, 0);
    }

    #[test]
    fn whatever_the_loads_the_moves_end_and_the_same_past_has_the_same_future() {
        let mut random = 1_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for _ in 0..200 {
            let reactors = usize::try_from(2 + below(6)).unwrap();
            let count = 1 + below(24);
            let pairs: Vec<(usize, u32)> = (0..count)
                .map(|_| {
                    let at = usize::try_from(below(reactors as u64)).unwrap();
                    (at, u32::try_from(below(1500 * reactors as u64 / count)).unwrap())
                })
                .collect();
            let mut worlds = [World::new(reactors, &pairs), World::new(reactors, &pairs)];
            for world in &mut worlds {
                world.looks(2000);
            }
            let settled = worlds[0].moves;
            assert!(settled <= 3 * pairs.len(), "{settled} moves of {pairs:?}");
            worlds[0].looks(1000);
            assert_eq!(worlds[0].moves, settled, "{pairs:?}");
            assert_eq!(worlds[0].pairs, worlds[1].pairs);
        }
    }
}
