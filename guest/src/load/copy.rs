//! The bare memory copy a RAM disk is measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::workload::{Direction, Random};
use crate::Result;
use crate::mapping::Mapping;

const BLOCK: usize = 4096;

/// Two shared memories, as an ssd and a guest have them: `disk_bytes`, and `buffers` blocks of 4 KiB.
pub struct Copier {
    disk: Mapping,
    buffers: Mapping,
    random: Random,
}

impl Copier {
    /// Allocates and touches both.
    ///
    /// # Errors
    /// As memfd_create(2), ftruncate(2) and mmap(2).
    pub fn new(disk_bytes: usize, buffers: usize) -> Result<Self> {
        let memory = |len: usize| -> Result<Mapping> {
            let fd = memfd_create("bench-copy", MemfdFlags::CLOEXEC)?;
            ftruncate(&fd, len as u64)?;
            let mapping = Mapping::new(&fd, 0, len, true)?;
            mapping.fill(0, len, 0x5A);
            Ok(mapping)
        };
        Ok(Copier { disk: memory(disk_bytes)?, buffers: memory(buffers * BLOCK)?, random: Random::new(11) })
    }

    /// Copies 4 KiB blocks between random places of the disk and the buffers in turn; nanoseconds each. With one buffer each
    /// copy begins when the last has ended, as at depth 1; with more the processor may overlap them, as the engine's.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a place below the mapping's length")]
    pub fn ns_per_copy(&mut self, direction: Direction, duration: Duration) -> f64 {
        let (places, buffers) = ((self.disk.len() / BLOCK) as u64, self.buffers.len() / BLOCK);
        let (start, mut copies, mut last) = (Instant::now(), 0_u32, 0);
        while start.elapsed() < duration {
            for buffer in (0..buffers.max(128)).map(|turn| turn % buffers * BLOCK) {
                let place = (self.random.below(places) as usize + zero_once_known(last)) * BLOCK;
                match direction {
                    Direction::Read => self.disk.copy_to(place, &self.buffers, buffer, BLOCK),
                    Direction::Write => self.buffers.copy_to(buffer, &self.disk, place, BLOCK),
                }
                if buffers == 1 {
                    let copied = if direction == Direction::Read { &self.buffers } else { &self.disk };
                    let begin = if direction == Direction::Read { 0 } else { place };
                    last = copied.load_u64(begin + BLOCK - 8);
                }
                copies += 1;
            }
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(copies)
    }
}

/// Zero; the processor learns that when it has `bytes`.
#[expect(clippy::cast_possible_truncation, reason = "zero")]
fn zero_once_known(bytes: u64) -> usize {
    (black_box(bytes) & black_box(0)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_some_time_but_not_much() {
        let mut copier = Copier::new(1 << 20, 4).unwrap();
        let ns = copier.ns_per_copy(Direction::Read, Duration::from_millis(5));
        assert!(ns > 10.0 && ns < 1e6, "{ns}");
    }
}
