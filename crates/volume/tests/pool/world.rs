//! A pool, what it should hold, and guests that write tags into their extents.
//!
//! Every write leaves a tag of its own in the first and last sector of an extent, so whoever reads a tag that was
//! written at another place or by another family of volumes has read somebody else's data.

use std::collections::{BTreeMap, BTreeSet};

use state::envelope::{EnvelopeError, record_bytes};
use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use state::pool::HEADER_MAGIC;
use volume::{
    Allocation, CopyOrder, Disk as _, Entry, FormatOptions, HostId, OpenOptions, Pool, PoolError,
    Provisioning, VolumeId, VolumeSpec,
};

use crate::drive::{Chance, SimDisk};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const HOST: HostId = HostId([7; 16]);

/// A drive whose pool has `extents` extents of 1 MiB.
pub(crate) fn drive(extents: u64) -> SimDisk {
    SimDisk::new((10 + extents) * MIB)
}

pub(crate) fn format_options() -> FormatOptions {
    FormatOptions {
        uuid: [1; 16],
        name: "tank".to_owned(),
        host: HOST,
        extent_bytes: Some(MIB),
        zeroed: true,
        overwrite: false,
    }
}

pub(crate) fn open_as(disk: &SimDisk, nonce: u64) -> Result<Pool, PoolError> {
    Pool::open(Box::new(disk.clone()), &OpenOptions { host: HOST, nonce, take_over: false })
}

pub(crate) fn formatted(extents: u64) -> SimDisk {
    let disk = drive(extents);
    Pool::format(&disk, &format_options()).expect("it is large enough");
    disk
}

pub(crate) fn spec(name: &str, extents: u64, provisioning: Provisioning) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        uuid: [2; 16],
        size_bytes: extents * MIB,
        provisioning,
        attributes: name.as_bytes().to_vec(),
    }
}

/// What a volume should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub name: String,
    pub extents: u32,
    pub full: bool,
    pub read_only: bool,
    pub epoch: u64,
    pub family: u64,
    /// The journal of its migrations, and whether its owner is here by it.
    pub passage: Option<(Vec<u8>, bool)>,
    /// Mapped extents, each with the tags it may have after a crash; the last is what it has without one.
    pub content: BTreeMap<u32, Vec<u64>>,
}

/// What all volumes should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub volumes: BTreeMap<u64, Expected>,
    /// Where each tag was written: family and logical extent.
    pub tags: BTreeMap<u64, (u64, u32)>,
    pub next: u64,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { next: 1, ..Self::default() }
    }

    fn tag(&mut self, family: u64, logical: u32) -> u64 {
        let tag = 0x7a90_0000_0000 + self.tags.len() as u64;
        self.tags.insert(tag, (family, logical));
        tag
    }

    /// All guests' writes are durable.
    fn flushed(&mut self) {
        for tags in self.volumes.values_mut().flat_map(|volume| volume.content.values_mut()) {
            tags.drain(..tags.len() - 1);
        }
    }

    /// Whether the pool has these volumes with these extents.
    pub(crate) fn fits(&self, pool: &Pool) -> Result<(), String> {
        let infos = pool.volumes();
        let ids: Vec<u64> = infos.iter().map(|info| info.id.0).collect();
        if ids != self.volumes.keys().copied().collect::<Vec<_>>() {
            return Err(format!("volumes {ids:?}"));
        }
        for (info, want) in infos.iter().zip(self.volumes.values()) {
            let full = info.provisioning == Provisioning::Full;
            let have =
                (&info.name, info.size_bytes / MIB, full, info.read_only, info.epoch, info.mapped_extents);
            let should = (
                &want.name,
                u64::from(want.extents),
                want.full,
                want.read_only,
                want.epoch,
                want.content.len() as u64,
            );
            if have != should {
                return Err(format!("volume {}: {have:?}, not {should:?}", info.id));
            }
            let passage = want.passage.as_ref().map(|(bytes, _)| bytes);
            let is_here = want.passage.as_ref().is_none_or(|(_, is_here)| *is_here);
            if info.passage.as_ref() != passage || pool.may_serve(info.id).is_ok() != is_here {
                return Err(format!("volume {}: {:?}, not {:?}", info.id, info.passage, want.passage));
            }
        }
        Ok(())
    }
}

/// What is done next, drawn before it is done.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Create {
        name: String,
        extents: u32,
        full: bool,
    },
    Delete(u64),
    Grow(u64, u32),
    Derive {
        source: u64,
        name: String,
        read_only: bool,
    },
    /// Volumes and logical extents: allocate, copy where told, write.
    Write(Vec<(u64, u32)>),
    Release(u64, u32, u32),
    Wipe {
        count: u32,
        fails: bool,
    },
    Retry,
    Epoch(u64),
    Attributes(u64),
    /// A volume's migration comes to a step (as `record` numbers them), by an epoch so far above its own.
    Passage(u64, u32, u64),
    Vacate(u64),
    Flush,
    Grace,
}

pub(crate) struct World {
    pub disk: SimDisk,
    pub pool: Pool,
    pub model: Model,
}

impl World {
    pub(crate) fn open(disk: &SimDisk, model: Model, nonce: u64) -> Result<Self, PoolError> {
        let pool = open_as(disk, nonce)?;
        let mut world = Self { disk: disk.clone(), pool, model };
        world.model.flushed();
        Ok(world)
    }

    /// Something that can be done now.
    pub(crate) fn draw(&self, chance: &mut Chance) -> Deed {
        let ids: Vec<u64> = self.model.volumes.keys().copied().collect();
        let any = |chance: &mut Chance| {
            let at = chance.below(u32::try_from(ids.len()).expect("few")) as usize;
            let id = ids[at];
            (id, self.model.volumes[&id].extents)
        };
        let name = format!("v{}", chance.below(9));
        if ids.is_empty() {
            return Deed::Create { name, extents: 1 + chance.below(8), full: chance.below(3) == 0 };
        }
        let (id, extents) = any(chance);
        match chance.below(30) {
            0..=2 => Deed::Create { name, extents: 1 + chance.below(10), full: chance.below(3) == 0 },
            3 | 4 => Deed::Delete(id),
            5 => Deed::Grow(id, extents + chance.below(4)),
            6..=8 => Deed::Derive { source: id, name, read_only: chance.below(2) == 0 },
            9..=14 => {
                let count = 1 + chance.below(4);
                let places = (0..count).map(|_| {
                    let (id, extents) = any(chance);
                    (id, chance.below(extents))
                });
                Deed::Write(places.collect())
            }
            15 | 16 => Deed::Release(id, chance.below(extents), 1 + chance.below(4)),
            17..=19 => Deed::Wipe { count: 1 + chance.below(6), fails: chance.below(12) == 0 },
            20 => Deed::Retry,
            21 => Deed::Epoch(id),
            22 => Deed::Flush,
            27 | 28 => {
                let is_away = |id: &&u64| {
                    matches!(&self.model.volumes[*id].passage, Some((bytes, false))
                        if MigrationV1::from_bytes(bytes).is_ok_and(|record| record.is_over()))
                };
                Deed::Vacate(ids.iter().find(is_away).copied().unwrap_or(id))
            }
            23..=26 => Deed::Passage(id, chance.below(14), u64::from(chance.below(3))),
            _ if chance.below(2) == 0 => Deed::Attributes(id),
            _ => Deed::Grace,
        }
    }

    fn tag_at(&self, physical: u32) -> (u64, u64) {
        tags(&self.disk, self.pool.drive_offset(physical))
    }

    fn write_tag(&self, physical: u32, tag: u64) -> Result<(), PoolError> {
        let mut sector = [0; 512];
        sector[..8].copy_from_slice(&tag.to_le_bytes());
        let at = self.pool.drive_offset(physical);
        for place in [at, at + MIB - 512] {
            let dead = |source| PoolError::Drive { doing: "writing as a guest", source };
            self.disk.write_at(place, &sector).map_err(dead)?;
        }
        Ok(())
    }

    /// Does it, and keeps the model true. The model is changed before the pool is asked where the answer is known, so
    /// `after` says what holds if the power fails in between.
    pub(crate) fn act(&mut self, deed: &Deed, after: &mut Option<Model>) -> Result<(), PoolError> {
        let mut model = self.model.clone();
        *after = None;
        match deed {
            Deed::Create { name, extents, full } => {
                let id = model.next;
                let content =
                    if *full { (0..*extents).map(|at| (at, vec![0])).collect() } else { BTreeMap::new() };
                model.next += 1;
                model.volumes.insert(
                    id,
                    Expected {
                        name: name.clone(),
                        extents: *extents,
                        full: *full,
                        read_only: false,
                        epoch: 0,
                        family: id,
                        passage: None,
                        content,
                    },
                );
                *after = Some(model);
                let provisioning = if *full { Provisioning::Full } else { Provisioning::Thin };
                let got = self.pool.create(&spec(name, u64::from(*extents), provisioning))?;
                assert_eq!(got, VolumeId(id));
            }
            Deed::Delete(id) => {
                model.volumes.remove(id);
                *after = Some(model);
                self.pool.delete(VolumeId(*id))?;
            }
            Deed::Grow(id, extents) => {
                let volume = model.volumes.get_mut(id).expect("drawn");
                let had = std::mem::replace(&mut volume.extents, *extents);
                if volume.full {
                    volume.content.extend((had..*extents).map(|at| (at, vec![0])));
                }
                *after = Some(model);
                self.pool.grow(VolumeId(*id), u64::from(*extents) * MIB)?;
            }
            Deed::Derive { source, name, read_only } => {
                let id = model.next;
                model.next += 1;
                let from = &model.volumes[source];
                let new = Expected {
                    name: name.clone(),
                    full: false,
                    read_only: *read_only,
                    epoch: 0,
                    passage: None,
                    ..from.clone()
                };
                model.volumes.insert(id, new);
                *after = Some(model);
                let source = VolumeId(*source);
                if *read_only {
                    self.pool.snapshot(source, name, [3; 16])?;
                } else {
                    self.pool.clone_volume(source, name, [3; 16])?;
                }
            }
            Deed::Write(places) => return self.write(places, after),
            Deed::Release(id, logical, count) => {
                let volume = model.volumes.get_mut(id).expect("drawn");
                let range = *logical..(logical + count).min(volume.extents);
                volume.content.retain(|at, _| !range.contains(at));
                *after = Some(model);
                self.pool.release(VolumeId(*id), range)?;
            }
            Deed::Wipe { count, fails } => return self.wipe(*count, *fails),
            Deed::Retry => {
                self.pool.retry_quarantined()?;
                return Ok(());
            }
            Deed::Epoch(id) => {
                let volume = model.volumes.get_mut(id).expect("drawn");
                let expected = volume.epoch;
                volume.epoch += 1;
                *after = Some(model);
                self.pool.advance_epoch(VolumeId(*id), expected)?;
            }
            Deed::Passage(id, step, ahead) => {
                let volume = model.volumes.get_mut(id).expect("drawn");
                let (record, by) = record(*step, volume.epoch, *ahead);
                let bytes = record.to_bytes().expect("sound");
                volume.epoch = by.unwrap_or(volume.epoch);
                volume.passage = Some((bytes.clone(), by.is_some()));
                *after = Some(model);
                self.pool.set_passage(VolumeId(*id), &bytes)?;
            }
            Deed::Vacate(id) => {
                model.volumes.get_mut(id).expect("drawn").content.clear();
                *after = Some(model);
                self.pool.vacate(VolumeId(*id))?;
            }
            Deed::Attributes(id) => {
                self.pool.set_attributes(VolumeId(*id), &[9; 40])?;
                return Ok(());
            }
            Deed::Flush => {
                self.disk
                    .flush()
                    .map_err(|source| PoolError::Drive { doing: "flushing as a guest", source })?;
                self.model.flushed();
                return Ok(());
            }
            Deed::Grace => {
                self.pool.grace_over(self.pool.grace());
                return Ok(());
            }
        }
        self.model = after.clone().expect("set above");
        Ok(())
    }

    fn write(&mut self, places: &[(u64, u32)], after: &mut Option<Model>) -> Result<(), PoolError> {
        let wanted: Vec<(VolumeId, u32)> = places.iter().map(|(id, at)| (VolumeId(*id), *at)).collect();
        // If the power fails in the allocation: all that could be mapped may be mapped, and holds zeros.
        let mut model = self.model.clone();
        let mut free = self.pool.info().free;
        for (id, logical) in places {
            let volume = model.volumes.get_mut(id).expect("drawn");
            let mapped = volume.content.contains_key(logical);
            if !mapped && free > 0 {
                volume.content.insert(*logical, vec![0]);
            }
            let shared = mapped && {
                let map = self.pool.map(VolumeId(*id))?;
                matches!(map.entry(*logical), Entry::Shared { .. })
            };
            free = free.saturating_sub(u64::from(!mapped || shared));
        }
        *after = Some(model);
        let answers = self.pool.allocate(&wanted)?;
        let mut copies: Vec<CopyOrder> = Vec::new();
        for (answer, (id, logical)) in answers.iter().zip(places) {
            match answer {
                Allocation::Mapped { .. } => {
                    let content = &mut self.model.volumes.get_mut(id).expect("drawn").content;
                    content.entry(*logical).or_insert_with(|| vec![0]);
                }
                Allocation::Copy(order) => copies.push(*order),
                Allocation::Copying | Allocation::NoSpace => {}
            }
        }
        *after = None;
        for order in &copies {
            let (first, last) = self.tag_at(order.from);
            assert!(self.tag_at(order.to) == (0, 0), "a copy goes to a free extent");
            self.write_tag(order.to, first)?;
            assert!(first == last, "torn only by a crash, and then it is written whole or not at all");
        }
        self.pool.copied(&copies)?;
        if !copies.is_empty() {
            self.model.flushed();
        }
        for (id, logical) in places.iter().collect::<BTreeSet<_>>() {
            let map = self.pool.map(VolumeId(*id))?;
            if let Entry::Mapped { physical } = map.entry(*logical) {
                let family = self.model.volumes[id].family;
                let tag = self.model.tag(family, *logical);
                let content = &mut self.model.volumes.get_mut(id).expect("drawn").content;
                content.get_mut(logical).expect("mapped").push(tag);
                self.write_tag(physical, tag)?;
            }
        }
        Ok(())
    }

    fn wipe(&mut self, count: u32, fails: bool) -> Result<(), PoolError> {
        let Some(order) = self.pool.next_wipe(count) else { return Ok(()) };
        if fails {
            return self.pool.wipe_failed(order);
        }
        for physical in order.first..order.first + order.count {
            self.write_tag(physical, 0)?;
        }
        self.pool.wiped(order)?;
        self.model.flushed();
        Ok(())
    }

    /// The pool says what the model says, in its lists, in its maps and on the drive. `crashed`: writes that were
    /// not flushed may be there in part.
    pub(crate) fn audit(&mut self, crashed: bool) {
        self.model.fits(&self.pool).unwrap_or_else(|why| panic!("{why}"));
        let moved = self.model.volumes.values().any(|volume| volume.passage.is_some());
        assert_eq!(former_build_refuses(&self.disk), moved, "version 2 as long as any volume has a passage");
        let info = self.pool.info();
        assert_eq!(info.free + info.used + info.wiping + info.quarantined, info.extents, "{info:?}");
        let mut owners: BTreeMap<u32, (u64, u32, u32)> = BTreeMap::new();
        let mut entries = Vec::new();
        for (id, want) in &self.model.volumes {
            let map = self.pool.map(VolumeId(*id)).expect("listed");
            for logical in 0..map.extents() {
                let (physical, shared) = match map.entry(logical) {
                    Entry::Unmapped => {
                        assert!(!want.content.contains_key(&logical), "volume {id} lost {logical}");
                        continue;
                    }
                    Entry::Mapped { physical } => (physical, false),
                    Entry::Shared { physical } => (physical, true),
                };
                let allowed = want.content.get(&logical);
                let allowed = allowed.unwrap_or_else(|| panic!("volume {id} gained {logical}"));
                let (first, last) = self.tag_at(physical);
                if crashed {
                    assert!(allowed.contains(&first), "volume {id} at {logical}: {first:x} of {allowed:x?}");
                    assert!(allowed.contains(&last), "volume {id} at {logical}: {last:x} of {allowed:x?}");
                } else {
                    let now = *allowed.last().expect("never empty");
                    assert_eq!((first, last), (now, now), "volume {id} at {logical}");
                }
                let owner = owners.entry(physical).or_insert((want.family, logical, 0));
                assert_eq!(
                    (owner.0, owner.1),
                    (want.family, logical),
                    "extent {physical} has strange owners"
                );
                owner.2 += 1;
                entries.push((physical, shared));
            }
        }
        assert_eq!(owners.len() as u64, info.used);
        for (physical, shared) in entries {
            // Said to be shared though it is not: costs a question. The other way round costs data.
            assert!(shared || owners[&physical].2 == 1, "extent {physical} is shared and would be written");
        }
    }

    /// Whoever gets an extent reads zeros.
    pub(crate) fn audit_free(mut self) {
        let free = u32::try_from(self.pool.info().free).expect("few");
        if free == 0 {
            return;
        }
        let id =
            self.pool.create(&spec("probe", u64::from(free), Provisioning::Full)).expect("space is there");
        let map = self.pool.map(id).expect("new");
        for logical in 0..free {
            let Entry::Mapped { physical } = map.entry(logical) else { panic!("full and its own") };
            assert_eq!(self.tag_at(physical), (0, 0), "extent {physical} is free and not empty");
        }
    }

    /// After a crash every guest's tags are what they are; go on from there.
    pub(crate) fn settle(&mut self) {
        for (id, want) in &mut self.model.volumes {
            let map = self.pool.map(VolumeId(*id)).expect("listed");
            for (logical, allowed) in &mut want.content {
                if let Entry::Mapped { physical } | Entry::Shared { physical } = map.entry(*logical) {
                    let at = self.pool.drive_offset(physical);
                    let (first, last) = tags(&self.disk, at);
                    if first != last {
                        // Torn: the guest writes it anew, all who share it alike.
                        let mut sector = [0; 512];
                        sector[..8].copy_from_slice(&first.to_le_bytes());
                        self.disk.poke(at + MIB - 512, &sector);
                    }
                    *allowed = vec![first];
                }
            }
        }
    }
}

/// A migration's record at a step (0 to 7 of the source, 8 to 13 of the destination) of a volume of this epoch, and the epoch that it has by it if
/// its owner is here: docs/formats/migration-journal.md.
pub(crate) fn record(step: u32, now: u64, ahead: u64) -> (MigrationV1, Option<u64>) {
    use DestinationStepV1 as D;
    use SourceStepV1 as S;
    let pledged = now + ahead;
    let source = |step, held| (Some(SourceV1 { held, step }), None);
    let destination = |step, fenced_by| (None, Some(DestinationV1 { step, fenced_by }));
    let ((source, destination), by) = match step {
        0 => (source(S::Offered, now), Some(now)),
        1 => (source(S::Granted, now), None),
        2 => (source(S::Gone, now), None),
        3 => (source(S::Cancelling, now), Some(now)),
        4 => (source(S::Cancelled, now), Some(now)),
        5 => (source(S::TakenBack, pledged + 2), Some(pledged + 2)),
        6 => (source(S::TakenBackHeard, pledged + 2), Some(pledged + 2)),
        7 => (source(S::Superseded, now), None),
        8 => (destination(D::Incoming, None), None),
        9 => (destination(D::Ready, None), None),
        10 => (destination(D::Owned, None), Some(pledged + 1)),
        11 => (destination(D::Forced, None), Some(pledged + 1)),
        12 => (destination(D::Dropped, None), None),
        _ => (destination(D::Superseded, Some(pledged + 2)), None),
    };
    let (ssd, migration, peer, epoch, round) = ([3; 16], [4; 16], "host-b".to_owned(), pledged + 1, 1);
    let (keep, closed, wiped) = (None, None, None);
    (
        MigrationV1 {
            ssd,
            peer,
            migration,
            epoch,
            round,
            source,
            destination,
            keep,
            closed,
            wiped,
            hypervisor: None,
            limits: None,
        },
        by,
    )
}

/// What a build that knows version 1 alone makes of the headers: `header::newest` as it was then.
pub(crate) fn former_build_refuses(disk: &SimDisk) -> bool {
    [0, MIB].into_iter().any(|at| {
        let block = disk.peek(at, 4096);
        let len = record_bytes(&block).unwrap_or(block.len()).min(block.len());
        let read = state::envelope::open(HEADER_MAGIC, 1, &block[..len]);
        matches!(read, Err(EnvelopeError::Newer { found: 2, newest: 1 }))
    })
}

fn tags(disk: &SimDisk, at: u64) -> (u64, u64) {
    let word = |at| u64::from_le_bytes(disk.peek(at, 8).try_into().expect("eight"));
    (word(at), word(at + MIB - 512))
}

/// Deeds that the pool may rightly refuse.
pub(crate) fn is_refusal(error: &PoolError) -> bool {
    matches!(
        error,
        PoolError::NoSpace { .. }
            | PoolError::NameTaken(_)
            | PoolError::ReadOnly(_)
            | PoolError::KeepsSpace(_)
            | PoolError::Invalid(_)
            | PoolError::Passage { .. }
            | PoolError::VolumeEpoch { .. }
    )
}
