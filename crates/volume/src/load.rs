//! From the drive to a ledger: a map and the journal after it.

use state::pool::{ChunkV1, HeaderV1, VERSION_PLAIN};

use crate::geometry::Geometry;
use crate::journal::{self, Tail};
use crate::ledger::{Ledger, Unfit};
use crate::map_area::{self, Stamp};
use crate::runs::{Run, Runs, Step};
use crate::{Disk, PoolError};

/// Most contradictions that are told one by one.
const FOUND_MAX: usize = 1000;

/// What happens when the map contradicts itself.
#[derive(Debug)]
pub(crate) enum Judge {
    /// The pool is refused.
    Strict,
    /// What contradicts is left out and told.
    Collect(Vec<String>),
}

impl Judge {
    fn found(&mut self, problem: String) -> Result<(), PoolError> {
        match self {
            Self::Strict => Err(PoolError::Damaged(problem)),
            Self::Collect(found) => {
                if found.len() < FOUND_MAX {
                    found.push(problem);
                }
                Ok(())
            }
        }
    }

    fn check(&mut self, result: Result<(), String>) -> Result<(), PoolError> {
        result.or_else(|problem| self.found(problem))
    }
}

/// Where the owners of a physical extent have it: all of one family, all at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    family: u64,
    logical: u32,
}

impl Step for Place {
    fn step(self, by: u32) -> Self {
        Self { family: self.family, logical: self.logical.saturating_add(by) }
    }
}

/// Builds a ledger from chunks.
pub(crate) struct Loader {
    ledger: Ledger,
    places: Runs<Place>,
    capacity_bytes: u64,
    version: u32,
}

impl Loader {
    pub(crate) fn new(geometry: &Geometry, version: u32) -> Self {
        Self {
            ledger: Ledger::new(geometry.extent_bytes, geometry.extents),
            places: Runs::default(),
            capacity_bytes: geometry.map_bytes,
            version,
        }
    }

    pub(crate) fn chunk(&mut self, chunk: &ChunkV1, judge: &mut Judge) -> Result<(), PoolError> {
        for volume in &chunk.volumes {
            let unseen = volume.passage.is_some() && self.version == VERSION_PLAIN;
            let allowed = if unseen { Err(unseen_passage(volume.id)) } else { Ok(()) };
            judge.check(allowed.and_then(|()| self.ledger.load_volume(volume)))?;
        }
        for of_volume in &chunk.runs {
            for run in &of_volume.runs {
                let placed = self.place(of_volume.volume, *run);
                judge.check(placed.and_then(|()| self.ledger.load_run(of_volume.volume, *run)))?;
            }
        }
        for unfit in &chunk.unfit {
            let why = if unfit.quarantined { Unfit::Quarantined } else { Unfit::Wiping };
            judge.check(self.ledger.load_unfit(unfit.first, unfit.count, why))?;
        }
        // Not a matter of judgement: what a drive says must not fill the memory.
        if self.ledger.map_bytes() > self.capacity_bytes {
            return Err(PoolError::Damaged("the map is larger than its area".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn end(mut self, next_volume: u64, judge: &mut Judge) -> Result<Ledger, PoolError> {
        if next_volume < self.ledger.next_volume {
            judge.found(format!("the next volume's number, {next_volume}, was used before"))?;
        }
        self.ledger.next_volume = self.ledger.next_volume.max(next_volume);
        Ok(self.ledger)
    }

    /// Two volumes may have an extent only if one is derived from the other, and then at the same place.
    fn place(&mut self, id: u64, run: state::pool::RunV1) -> Result<(), String> {
        let family = self.ledger.volumes.get(&id).map_or(0, |volume| volume.saved.family);
        let place = Place { family, logical: run.logical };
        if run.count == 0 || u64::from(run.physical) + u64::from(run.count) > u64::from(self.ledger.extents) {
            return Ok(()); // the ledger refuses it by a better name
        }
        let mut fresh = Vec::new();
        let mut at = run.physical;
        for known in self.places.within(run.physical, run.count) {
            if known.value != place.step(known.first - run.physical) {
                return Err(format!(
                    "extent {} is at {} of volume {id}, and at {} of another that is not derived from the same",
                    known.first,
                    u64::from(run.logical) + u64::from(known.first - run.physical),
                    known.value.logical
                ));
            }
            if known.first > at {
                fresh.push((at, known.first - at));
            }
            at = known.first + known.count;
        }
        if at < run.physical + run.count {
            fresh.push((at, run.physical + run.count - at));
        }
        for (first, count) in fresh {
            self.places.insert(Run { first, count, value: place.step(first - run.physical) });
        }
        Ok(())
    }
}

/// A ledger, and where its journal goes on.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) ledger: Ledger,
    pub(crate) tail: Tail,
}

/// What a header's map and journal say.
pub(crate) fn load(
    disk: &dyn Disk,
    geometry: &Geometry,
    header: &HeaderV1,
    judge: &mut Judge,
) -> Result<Loaded, PoolError> {
    let (mut ledger, map) =
        map_area::read(disk, geometry, header, header.slot, header.map_generation, judge)?;
    if map.chain != header.map_chain || map.seq != header.map_seq || map.epoch != header.map_epoch {
        return Err(PoolError::Damaged(format!("map {} is not the one its header names", header.slot)));
    }
    let span = journal::Span::of(geometry, header);
    let tail = journal::replay(disk, &span, &mut ledger)?;
    Ok(Loaded { ledger, tail })
}

/// The map that a header names, from the one before it and its journal. Proved by its checksum to be the same.
pub(crate) fn rebuild(disk: &dyn Disk, geometry: &Geometry, header: &HeaderV1) -> Result<Ledger, PoolError> {
    let lost =
        |why: &str| PoolError::Damaged(format!("the map cannot be rebuilt from the one before it: {why}"));
    let generation = header.map_generation.checked_sub(1).ok_or_else(|| lost("there is none"))?;
    if !header.map_follows {
        return Err(lost("a large change was written only into the map that is lost"));
    }
    let other = 1 - header.slot.min(1);
    let (mut ledger, map) = map_area::read(disk, geometry, header, other, generation, &mut Judge::Strict)?;
    let span = journal::Span {
        at: geometry.journal_at(other),
        generation,
        until_seq: header.map_seq,
        start: Tail { seq: map.seq, chain: map.chain, epoch: map.epoch, used_bytes: 0 },
        ..journal::Span::of(geometry, header)
    };
    let tail = journal::replay(disk, &span, &mut ledger)?;
    if tail.seq != header.map_seq {
        return Err(lost("its journal ends too early"));
    }
    let chain = map_area::encode(&ledger, stamp_of(header), &mut |_, _| Ok(()))?;
    if chain == header.map_chain { Ok(ledger) } else { Err(lost("the result is not what its header names")) }
}

/// What stands in every chunk of the map that a header names.
pub(crate) fn stamp_of(header: &HeaderV1) -> Stamp {
    Stamp {
        uuid: header.uuid,
        generation: header.map_generation,
        seq: header.map_seq,
        epoch: header.map_epoch,
        version: header.layout(),
    }
}

/// A build of version 1 would have opened it.
pub(crate) fn unseen_passage(id: u64) -> String {
    format!("volume {id} has a passage in a pool of version {VERSION_PLAIN}")
}
