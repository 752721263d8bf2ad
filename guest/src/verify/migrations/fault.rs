//! What goes wrong during a migration, by a seeded choice.

use std::time::Duration;

use anyhow::Result;

use super::host::Host;
use crate::load::workload::Random;
use crate::verify::daemon::Backing;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    /// An engine is killed; its keeper starts another.
    Engine(usize),
    /// A keeper is killed, and started again with what a service manager keeps.
    Keeper(usize),
    /// A host goes off and is back after a while.
    Host(usize),
    /// The destination goes off, and is back only when an operator has brought the ssd to serve without it.
    Away(usize),
    /// Connections break, and none can be made for a while.
    Cut(Duration),
    /// Nothing comes over, and nobody says so.
    Stall(Duration),
    /// The network is slow for a while.
    Slow(Duration),
    /// The network is long for as long as it takes.
    Far(Duration),
    /// An operator gives it up, at this host.
    Cancel(usize),
    /// The destination's drive, a file, takes no write behind so many bytes.
    Drive(u64),
    /// The destination's pool is full.
    Full,
}

/// How many sorts there are.
#[cfg(test)]
pub(super) const SORTS: usize = 12;

impl Fault {
    /// One of those that can come of a migration from a host to the other.
    pub(super) fn draw(random: &mut Random, from: usize, there: Backing, mebibytes: u64) -> Self {
        let to = 1 - from;
        let side = usize::try_from(random.below(2)).unwrap_or(0);
        let ms = |random: &mut Random, most: u64| Duration::from_millis(100 + random.below(most));
        match random.below(20) {
            0..3 => Fault::Nothing,
            3..7 => Fault::Engine(side),
            7..9 => Fault::Keeper(side),
            9 => Fault::Host(side),
            10 => Fault::Away(to),
            11..13 => Fault::Cut(ms(random, 3000)),
            // Sometimes longer than a destination is waited for while the guest stands still.
            13..15 => Fault::Stall(ms(random, 7000)),
            15 => Fault::Slow(ms(random, 1500)),
            16 => Fault::Far(Duration::from_millis(1 + random.below(20))),
            17 => Fault::Cancel(side),
            _ if matches!(there, Backing::Pool { .. }) => Fault::Full,
            _ => Fault::Drive((1 + random.below(mebibytes / 2)) << 20),
        }
    }

    /// In a word, for counting.
    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Nothing => "none",
            Fault::Engine(_) => "engine",
            Fault::Keeper(_) => "keeper",
            Fault::Host(_) => "host",
            Fault::Away(_) => "away",
            Fault::Cut(_) => "cut",
            Fault::Stall(_) => "stall",
            Fault::Slow(_) => "slow",
            Fault::Far(_) => "far",
            Fault::Cancel(_) => "cancel",
            Fault::Drive(_) => "drive",
            Fault::Full => "full",
        }
    }

    /// It is there before the migration begins: else the ssd could have moved to what fails, and its guest would, rightly, be told.
    pub(super) fn comes_first(self) -> bool {
        matches!(self, Fault::Drive(_) | Fault::Full | Fault::Far(_))
    }

    pub(super) fn strike(self, hosts: &[Host; 2], to: usize, ssd: &str) -> Result<()> {
        let way = &hosts[to].way;
        match self {
            Fault::Nothing => {}
            Fault::Engine(side) => hosts[side].kill_engine(),
            Fault::Keeper(side) => hosts[side].process().kill_and_restart()?,
            Fault::Host(side) | Fault::Away(side) => hosts[side].process().go_off()?,
            Fault::Cut(_) => way.cut(),
            Fault::Stall(_) => way.stall(),
            Fault::Slow(_) => way.slow_down(2 << 20),
            Fault::Far(delay) => way.delay(delay),
            // It may be over, or not yet begun.
            Fault::Cancel(side) => _ = hosts[side].steer(ssd, "cancel"),
            Fault::Drive(bytes) => hosts[to].fail_writes_behind(Some(bytes)),
            Fault::Full => hosts[to].fill()?,
        }
        Ok(())
    }

    /// How long it lasts.
    pub(super) fn lasts(self) -> Duration {
        match self {
            Fault::Cut(time) | Fault::Stall(time) | Fault::Slow(time) => time,
            Fault::Host(_) => Duration::from_millis(300),
            _ => Duration::ZERO,
        }
    }

    /// It ends by the passing of time alone.
    pub(super) fn passes(self) -> bool {
        matches!(self, Fault::Cut(_) | Fault::Stall(_) | Fault::Slow(_) | Fault::Host(_))
    }

    pub(super) fn heal(self, hosts: &[Host; 2], to: usize) -> Result<()> {
        hosts[to].way.heal();
        match self {
            Fault::Host(side) | Fault::Away(side) => hosts[side].process().start_again()?,
            Fault::Drive(_) => hosts[to].fail_writes_behind(None),
            Fault::Full => hosts[to].empty()?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_of_fault_is_drawn_and_a_seed_says_which() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..400)
                .map(|round| {
                    let there = if round % 2 == 0 { Backing::Uring } else { Backing::Pool { thin: true } };
                    Fault::draw(&mut random, 0, there, 64)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        let mut names: Vec<_> = draw(7).into_iter().map(Fault::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SORTS);
    }
}
