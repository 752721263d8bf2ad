//! Who has which extent: the map in memory, and the rules by which it changes.
//!
//! The same code applies a change when it is made and when it is read from the journal, and it trusts neither: a
//! change that breaks a rule is refused whole by name.

use std::collections::BTreeMap;

use state::pool::{ChangeV1, RunV1, VERSION, VERSION_PLAIN, VolumeV1};

use crate::runs::{Run, Runs, Step};

/// Longest name, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 128;
/// Most bytes a volume's user may keep with it.
pub(crate) const ATTRIBUTES_BYTES_MAX: usize = 1024;
/// Longest journal of a volume's migrations: more than any build writes.
pub(crate) const PASSAGE_BYTES_MAX: usize = state::migration::RECORD_BYTES_MAX;
/// Most volumes of a pool, snapshots included.
pub(crate) const VOLUMES_MAX: usize = 1 << 16;
/// Sizes are multiples of it.
pub(crate) const SIZE_UNIT_BYTES: u64 = 4096;
/// Most bytes a run takes in a chunk.
const RUN_BYTES: u64 = 16;
/// Most bytes a volume takes in a chunk beside its name and attributes, the start of its runs included.
const VOLUME_BYTES: u64 = 160;
/// Most bytes a passage takes beside its own.
const PASSAGE_BYTES: usize = 8;

/// The first physical extent of a run of logical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Physical(pub(crate) u32);

impl Step for Physical {
    fn step(self, by: u32) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// How many volumes refer to an extent: one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refs(pub(crate) u32);

impl Step for Refs {
    fn step(self, _: u32) -> Self {
        self
    }
}

/// Nothing but being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark;

impl Step for Mark {
    fn step(self, _: u32) -> Self {
        self
    }
}

/// Why an extent cannot be handed out though nobody has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It must be zeroed first.
    Wiping,
    /// That failed.
    Quarantined,
}

impl Step for Unfit {
    fn step(self, _: u32) -> Self {
        self
    }
}

/// A volume and its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) saved: VolumeV1,
    pub(crate) map: Runs<Physical>,
}

/// What a change did to maps that reactors read, and to the queue of wipes.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// In the order they happened.
    pub(crate) entries: Vec<Effect>,
    /// Extents nobody refers to any more.
    pub(crate) dropped: Vec<Run<Mark>>,
}

/// One change of what reactors read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    /// These logical extents are the volume's own.
    Mapped { volume: u64, run: RunV1 },
    /// These are nowhere.
    Unmapped { volume: u64, logical: u32, count: u32 },
    /// All that this volume has is shared now.
    Shared { volume: u64 },
    /// The volume is gone.
    Gone { volume: u64 },
}

/// Who has which extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) extent_bytes: u64,
    pub(crate) extents: u32,
    pub(crate) next_volume: u64,
    pub(crate) volumes: BTreeMap<u64, Volume>,
    pub(crate) used: Runs<Refs>,
    pub(crate) unfit: Runs<Unfit>,
    pub(crate) free: Runs<Mark>,
    names: BTreeMap<String, u64>,
    map_runs: u64,
    volume_bytes: u64,
    /// Volumes that have a passage.
    passages: u64,
}

impl Ledger {
    /// Nobody has anything.
    pub(crate) fn new(extent_bytes: u64, extents: u32) -> Self {
        let mut free = Runs::default();
        free.insert(Run { first: 0, count: extents, value: Mark });
        Self {
            extent_bytes,
            extents,
            next_volume: 1,
            volumes: BTreeMap::new(),
            used: Runs::default(),
            unfit: Runs::default(),
            free,
            names: BTreeMap::new(),
            map_runs: 0,
            volume_bytes: 0,
            passages: 0,
        }
    }

    /// Logical extents of a size. `None`: more than a map can have.
    pub(crate) fn logical_extents(&self, size_bytes: u64) -> Option<u32> {
        u32::try_from(size_bytes.div_ceil(self.extent_bytes))
            .ok()
            .filter(|count| *count <= crate::EXTENTS_MAX)
    }

    /// The volume of a name.
    pub(crate) fn named(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    /// The version in which it has to be written.
    pub(crate) fn version(&self) -> u32 {
        if self.passages == 0 { VERSION_PLAIN } else { VERSION }
    }

    /// As [`Ledger::version`], if these changes were made.
    pub(crate) fn version_after(&self, changes: &[ChangeV1]) -> u32 {
        let had = |id: &u64| self.volumes.get(id).is_some_and(|volume| volume.saved.passage.is_some());
        let mut after = BTreeMap::new();
        for change in changes {
            match change {
                ChangeV1::Passage(id, _) => _ = after.insert(*id, true),
                ChangeV1::Delete(id) => _ = after.insert(*id, false),
                _ => {}
            }
        }
        let gone = after.iter().filter(|(id, has)| had(id) && !**has).count() as u64;
        let come = after.iter().filter(|(id, has)| !had(id) && **has).count() as u64;
        if self.passages + come == gone { VERSION_PLAIN } else { VERSION }
    }

    /// At most so many bytes the map takes in chunks.
    pub(crate) fn map_bytes(&self) -> u64 {
        (self.map_runs + self.unfit.len()) * RUN_BYTES + self.volume_bytes
    }

    /// At most so many bytes a change adds to the map.
    pub(crate) fn growth_bytes(&self, change: &ChangeV1) -> u64 {
        let pieces = |volume: u64, first: u32, count: u32| -> u64 {
            self.volumes.get(&volume).map_or(0, |v| {
                v.map
                    .within(first, count)
                    .map(|run| self.used.within(run.value.0, run.count).count() as u64)
                    .sum()
            })
        };
        match change {
            ChangeV1::Create(volume) => saved_bytes(volume),
            ChangeV1::Derive(source, volume) => {
                let runs = self.volumes.get(source).map_or(0, |v| v.map.len());
                saved_bytes(volume) + runs * RUN_BYTES
            }
            ChangeV1::Delete(volume) => pieces(*volume, 0, u32::MAX) * RUN_BYTES,
            ChangeV1::Unmap(volume, first, count) => (pieces(*volume, *first, *count) + 2) * RUN_BYTES,
            ChangeV1::Attributes(_, bytes) => bytes.len() as u64,
            ChangeV1::Passage(_, bytes) => (bytes.len() + PASSAGE_BYTES) as u64,
            ChangeV1::Adopt(..) => 4 * RUN_BYTES,
            ChangeV1::Grow(..) | ChangeV1::Epoch(..) => 0,
            _ => 2 * RUN_BYTES,
        }
    }

    /// Makes one change.
    ///
    /// The error says which rule it breaks; the ledger may then be half changed and must not be used any more.
    pub(crate) fn apply(&mut self, change: &ChangeV1, effects: &mut Effects) -> Result<(), String> {
        match change {
            ChangeV1::Create(saved) | ChangeV1::Derive(_, saved) if saved.passage.is_some() => {
                Err(format!("volume {} begins with a passage", saved.id))
            }
            ChangeV1::Create(saved) => self.add(saved.clone(), Runs::default()),
            ChangeV1::Derive(source, saved) => self.derive(*source, saved, effects),
            ChangeV1::Delete(id) => self.delete(*id, effects),
            ChangeV1::Grow(id, size_bytes) => self.grow(*id, *size_bytes),
            ChangeV1::Map(id, run) => self.map(*id, *run, effects),
            ChangeV1::Unmap(id, logical, count) => self.unmap(*id, *logical, *count, effects),
            ChangeV1::Reserve(first, count) => {
                take(&mut self.free, *first, *count, Mark, "free")?;
                self.put_unfit(*first, *count, Unfit::Wiping)
            }
            ChangeV1::Adopt(id, logical, to) => self.adopt(*id, *logical, *to, effects),
            ChangeV1::Wiped(first, count) => {
                take(&mut self.unfit, *first, *count, Unfit::Wiping, "to be wiped")?;
                put(&mut self.free, *first, *count, Mark)
            }
            ChangeV1::Quarantine(first, count) => {
                take(&mut self.unfit, *first, *count, Unfit::Wiping, "to be wiped")?;
                self.put_unfit(*first, *count, Unfit::Quarantined)
            }
            ChangeV1::Retry(first, count) => {
                take(&mut self.unfit, *first, *count, Unfit::Quarantined, "quarantined")?;
                self.put_unfit(*first, *count, Unfit::Wiping)
            }
            ChangeV1::Epoch(id, epoch) => {
                let volume = self.volume_mut(*id)?;
                if *epoch <= volume.saved.epoch {
                    return Err(format!("the epoch of volume {id} does not rise"));
                }
                volume.saved.epoch = *epoch;
                Ok(())
            }
            ChangeV1::Attributes(id, bytes) => self.set_attributes(*id, bytes),
            ChangeV1::Passage(id, bytes) => self.set_passage(*id, bytes),
        }
    }

    /// A volume as it stands in the map, without its runs.
    pub(crate) fn load_volume(&mut self, saved: &VolumeV1) -> Result<(), String> {
        self.add(saved.clone(), Runs::default())
    }

    /// A run as it stands in the map; its extents may have owners already.
    pub(crate) fn load_run(&mut self, id: u64, run: RunV1) -> Result<(), String> {
        self.fits(id, run)?;
        if self.unfit.within(run.physical, run.count).next().is_some() {
            return Err(format!("volume {id} has extents from {} on that are to be wiped", run.physical));
        }
        let shared = self.used.remove(run.physical, run.count);
        let fresh = self.free.remove(run.physical, run.count);
        for part in fresh {
            self.used.insert(Run { first: part.first, count: part.count, value: Refs(1) });
        }
        for part in shared {
            let refs = part.value.0.checked_add(1).ok_or("an extent has too many owners")?;
            self.used.insert(Run { first: part.first, count: part.count, value: Refs(refs) });
        }
        self.insert_run(id, run)
    }

    /// Unfit extents as they stand in the map.
    pub(crate) fn load_unfit(&mut self, first: u32, count: u32, unfit: Unfit) -> Result<(), String> {
        take(&mut self.free, first, count, Mark, "free")?;
        self.put_unfit(first, count, unfit)
    }

    fn volume_mut(&mut self, id: u64) -> Result<&mut Volume, String> {
        self.volumes.get_mut(&id).ok_or_else(|| format!("there is no volume {id}"))
    }

    fn add(&mut self, saved: VolumeV1, map: Runs<Physical>) -> Result<(), String> {
        let id = saved.id;
        if id < self.next_volume || id == u64::MAX {
            return Err(format!("volume number {id} was used before"));
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(format!("there are more volumes than {VOLUMES_MAX}"));
        }
        check_name(&saved.name)?;
        if saved.attributes.len() > ATTRIBUTES_BYTES_MAX {
            return Err(format!("volume {id} has {} bytes of attributes", saved.attributes.len()));
        }
        if saved.passage.as_ref().is_some_and(|bytes| bytes.len() > PASSAGE_BYTES_MAX) {
            return Err(format!("volume {id} has a passage that is longer than any"));
        }
        if saved.size_bytes == 0 || !saved.size_bytes.is_multiple_of(SIZE_UNIT_BYTES) {
            return Err(format!("volume {id} has a size of {} bytes", saved.size_bytes));
        }
        self.logical_extents(saved.size_bytes).ok_or_else(|| format!("volume {id} is too large"))?;
        if self.names.insert(saved.name.clone(), id).is_some() {
            return Err(format!("two volumes have the name {:?}", saved.name));
        }
        self.next_volume = id + 1;
        self.passages += u64::from(saved.passage.is_some());
        self.volume_bytes += saved_bytes(&saved);
        self.map_runs += map.len();
        self.volumes.insert(id, Volume { saved, map });
        Ok(())
    }

    fn derive(&mut self, source: u64, saved: &VolumeV1, effects: &mut Effects) -> Result<(), String> {
        let from = self.volumes.get(&source).ok_or_else(|| format!("there is no volume {source}"))?;
        if saved.family != from.saved.family || saved.size_bytes != from.saved.size_bytes {
            return Err(format!("volume {} is not what its source {source} is", saved.id));
        }
        let map = from.map.clone();
        for run in map.iter() {
            for part in self.used.remove(run.value.0, run.count) {
                let refs = part.value.0.checked_add(1).ok_or("an extent has too many owners")?;
                self.used.insert(Run { first: part.first, count: part.count, value: Refs(refs) });
            }
        }
        effects.entries.push(Effect::Shared { volume: source });
        self.add(saved.clone(), map)
    }

    fn delete(&mut self, id: u64, effects: &mut Effects) -> Result<(), String> {
        let volume = self.volumes.remove(&id).ok_or_else(|| format!("there is no volume {id}"))?;
        self.names.remove(&volume.saved.name);
        self.passages -= u64::from(volume.saved.passage.is_some());
        self.volume_bytes -= saved_bytes(&volume.saved);
        self.map_runs -= volume.map.len();
        for run in volume.map.iter() {
            self.drop_refs(run.value.0, run.count, effects)?;
        }
        effects.entries.push(Effect::Gone { volume: id });
        Ok(())
    }

    fn grow(&mut self, id: u64, size_bytes: u64) -> Result<(), String> {
        self.logical_extents(size_bytes).ok_or_else(|| format!("volume {id} would be too large"))?;
        let volume = self.volume_mut(id)?;
        if size_bytes < volume.saved.size_bytes || !size_bytes.is_multiple_of(SIZE_UNIT_BYTES) {
            return Err(format!("volume {id} cannot grow to {size_bytes} bytes"));
        }
        volume.saved.size_bytes = size_bytes;
        Ok(())
    }

    fn map(&mut self, id: u64, run: RunV1, effects: &mut Effects) -> Result<(), String> {
        self.fits(id, run)?;
        take(&mut self.free, run.physical, run.count, Mark, "free")?;
        put(&mut self.used, run.physical, run.count, Refs(1))?;
        effects.entries.push(Effect::Mapped { volume: id, run });
        self.insert_run(id, run)
    }

    fn unmap(&mut self, id: u64, logical: u32, count: u32, effects: &mut Effects) -> Result<(), String> {
        let volume = self.volume_mut(id)?;
        let before = volume.map.len();
        let taken = volume.map.remove(logical, count);
        let after = volume.map.len();
        self.map_runs = self.map_runs - before + after;
        for run in taken {
            self.drop_refs(run.value.0, run.count, effects)?;
        }
        effects.entries.push(Effect::Unmapped { volume: id, logical, count });
        Ok(())
    }

    fn adopt(&mut self, id: u64, logical: u32, to: u32, effects: &mut Effects) -> Result<(), String> {
        let mut silent = Effects::default();
        let volume = self.volume_mut(id)?;
        if volume.map.get(logical).is_none() {
            return Err(format!("volume {id} has no extent at {logical} to replace"));
        }
        self.unmap(id, logical, 1, &mut silent)?;
        effects.dropped.append(&mut silent.dropped);
        take(&mut self.unfit, to, 1, Unfit::Wiping, "reserved")?;
        put(&mut self.used, to, 1, Refs(1))?;
        let run = RunV1 { logical, count: 1, physical: to };
        effects.entries.push(Effect::Mapped { volume: id, run });
        self.insert_run(id, run)
    }

    fn set_attributes(&mut self, id: u64, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > ATTRIBUTES_BYTES_MAX {
            return Err(format!("{} bytes of attributes are too many", bytes.len()));
        }
        let volume = self.volume_mut(id)?;
        let before = saved_bytes(&volume.saved);
        volume.saved.attributes = bytes.to_vec();
        let after = saved_bytes(&volume.saved);
        self.volume_bytes = self.volume_bytes - before + after;
        Ok(())
    }

    fn set_passage(&mut self, id: u64, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > PASSAGE_BYTES_MAX {
            return Err(format!("a passage of {} bytes is longer than any", bytes.len()));
        }
        let volume = self.volume_mut(id)?;
        let before = saved_bytes(&volume.saved);
        let is_new = volume.saved.passage.replace(bytes.to_vec()).is_none();
        let after = saved_bytes(&volume.saved);
        self.volume_bytes = self.volume_bytes - before + after;
        self.passages += u64::from(is_new);
        Ok(())
    }

    /// One owner less for each of these extents.
    fn drop_refs(&mut self, first: u32, count: u32, effects: &mut Effects) -> Result<(), String> {
        if !self.used.covers(first, count) {
            return Err(format!("extents from {first} on are mapped and not in use"));
        }
        for part in self.used.remove(first, count) {
            match part.value.0 {
                0 | 1 => {
                    self.put_unfit(part.first, part.count, Unfit::Wiping)?;
                    effects.dropped.push(Run { first: part.first, count: part.count, value: Mark });
                }
                refs => put(&mut self.used, part.first, part.count, Refs(refs - 1))?,
            }
        }
        Ok(())
    }

    /// Whether a run lies in its volume and in the pool.
    fn fits(&self, id: u64, run: RunV1) -> Result<(), String> {
        let volume = self.volumes.get(&id).ok_or_else(|| format!("there is no volume {id}"))?;
        let logical = self.logical_extents(volume.saved.size_bytes).unwrap_or(0);
        let ends_by = |first: u32, limit: u32| first.checked_add(run.count).is_some_and(|end| end <= limit);
        if run.count == 0 || !ends_by(run.logical, logical) {
            return Err(format!(
                "volume {id}: {} extents from {} on are not its own",
                run.count, run.logical
            ));
        }
        if !ends_by(run.physical, self.extents) {
            return Err(format!(
                "volume {id}: {} extents from physical {} on lie outside the pool",
                run.count, run.physical
            ));
        }
        Ok(())
    }

    fn insert_run(&mut self, id: u64, run: RunV1) -> Result<(), String> {
        let volume = self.volume_mut(id)?;
        let before = volume.map.len();
        let value = Physical(run.physical);
        if !volume.map.insert(Run { first: run.logical, count: run.count, value }) {
            return Err(format!("volume {id}: extents from {} on are mapped twice", run.logical));
        }
        let after = volume.map.len();
        self.map_runs = self.map_runs - before + after;
        Ok(())
    }

    fn put_unfit(&mut self, first: u32, count: u32, unfit: Unfit) -> Result<(), String> {
        put(&mut self.unfit, first, count, unfit)
    }
}

/// Whether a name can be a volume's.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("{name:?} is no name: 1 to {NAME_BYTES_MAX} bytes without control characters"));
    }
    Ok(())
}

pub(crate) fn saved_bytes(volume: &VolumeV1) -> u64 {
    let passage = volume.passage.as_ref().map_or(0, |bytes| bytes.len() + PASSAGE_BYTES);
    VOLUME_BYTES + (volume.name.len() + volume.attributes.len() + passage) as u64
}

/// Takes a whole run of one value out of where it must be.
fn take<V: Step>(runs: &mut Runs<V>, first: u32, count: u32, value: V, what: &str) -> Result<(), String> {
    if count == 0 || !runs.covers(first, count) || runs.within(first, count).any(|run| run.value != value) {
        return Err(format!("{count} extents from {first} on are not all {what}"));
    }
    runs.remove(first, count);
    Ok(())
}

/// Puts a run where nothing may be.
fn put<V: Step>(runs: &mut Runs<V>, first: u32, count: u32, value: V) -> Result<(), String> {
    let free = runs.insert(Run { first, count, value });
    if free { Ok(()) } else { Err(format!("{count} extents from {first} on are in two states")) }
}
