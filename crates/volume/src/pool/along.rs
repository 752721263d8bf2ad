//! Snapshots that move with their volume: what one has that the next has not, and by which mark they belong to a migration until it is over.
//!
//! ```text
//!  source:       offered ... each that is over there is marked "went" ... gone: deleted with what is left | cancelled, taken back: no mark
//!  destination:  incoming .. each is taken of what came, and marked "came" .. owned: no mark              | dropped: deleted with what came
//! ```
//! A mark is what the pool keeps with a snapshot for its user, which nobody else uses. It changes in the store of the step that ends the migration, or of the
//! space that is given back by it, so no crash lies between the two.

use std::collections::BTreeSet;

use state::migration::MigrationV1;
use state::pool::{ChangeV1, VolumeV1};

use super::passage::{record_of, refusal};
use super::{Pool, VolumeId};
use crate::PoolError;
use crate::ledger::Physical;
use crate::runs::Runs;

/// The first bytes of a mark, before the migration's number.
const CAME: [u8; 8] = *b"GODWCAME";
const WENT: [u8; 8] = *b"GODWWENT";

/// Logical extents that lie elsewhere on the drive than they did in another volume, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// They are somewhere; otherwise they read as zeros by now.
    pub mapped: bool,
}

/// In which way a snapshot belongs to a migration.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Came,
    Went,
}

fn mark(side: Side, migration: [u8; 16]) -> Vec<u8> {
    let tag = if side == Side::Came { CAME } else { WENT };
    [&tag[..], &migration].concat()
}

fn marked(saved: &VolumeV1) -> Option<(Side, [u8; 16])> {
    let (tag, migration) = saved.attributes.split_at_checked(8)?;
    let side = match tag {
        tag if tag == CAME => Side::Came,
        tag if tag == WENT => Side::Went,
        _ => return None,
    };
    Some((side, migration.try_into().ok()?))
}

impl Pool {
    /// Where a volume's extents are others than those of one before, ascending. What both have at one place is the same to the byte: who writes to a shared
    /// extent gets a copy. `before`: none, for all that the volume has.
    ///
    /// # Errors
    /// No such volume.
    pub fn differences(
        &self,
        before: Option<VolumeId>,
        after: VolumeId,
    ) -> Result<Vec<Difference>, PoolError> {
        let nothing = Runs::default();
        let before = before.map_or(Ok(&nothing), |id| self.known(id).map(|volume| &volume.map))?;
        Ok(differences(before, &self.known(after)?.map))
    }

    /// The snapshots of a volume, oldest first.
    #[must_use]
    pub fn snapshots_of(&self, id: VolumeId) -> Vec<VolumeId> {
        self.snapshots(id).map(|saved| VolumeId(saved.id)).collect()
    }

    fn snapshots(&self, id: VolumeId) -> impl Iterator<Item = &VolumeV1> {
        let all = self.ledger.volumes.values().map(|volume| &volume.saved);
        all.filter(move |saved| saved.read_only && saved.parent == Some(id.0))
    }

    /// A snapshot of what has come of a volume so far, which is what it was at the source. It is the migration's until that is over: dropped, it is
    /// deleted with what came. Once more for one that is there already is as once.
    ///
    /// # Errors
    /// The volume is not on its way here by that migration, or the name is taken.
    pub fn keep_come(
        &mut self,
        id: VolumeId,
        name: &str,
        uuid: [u8; 16],
        migration: [u8; 16],
    ) -> Result<VolumeId, PoolError> {
        let is_coming = |record: &MigrationV1| record.step() == "incoming" && record.migration == migration;
        if !record_of(&self.known(id)?.saved)?.as_ref().is_some_and(is_coming) {
            return Err(refusal(id, "it is not on its way here by this migration".to_owned()));
        }
        let mine = mark(Side::Came, migration);
        if let Some(there) = self.snapshots(id).find(|saved| saved.name == name && saved.attributes == mine) {
            return Ok(VolumeId(there.id));
        }
        self.derive_as(id, name, uuid, true, mine)
    }

    /// The other host has a snapshot of a volume that is on its way there: it is deleted with what is left of the volume here.
    ///
    /// # Errors
    /// It is no snapshot of such a volume.
    pub fn mark_went(&mut self, id: VolumeId, name: &str, migration: [u8; 16]) -> Result<(), PoolError> {
        let is_going = |record: &MigrationV1| record.step() == "offered" && record.migration == migration;
        if !record_of(&self.known(id)?.saved)?.as_ref().is_some_and(is_going) {
            return Err(refusal(id, "it is not on its way to another host by this migration".to_owned()));
        }
        let Some(snapshot) = self.snapshots(id).find(|saved| saved.name == name) else {
            return Err(refusal(id, format!("it has no snapshot {name:?} any more")));
        };
        self.commit(&[ChangeV1::Attributes(snapshot.id, mark(Side::Went, migration))], true)
    }

    /// What becomes of a volume's snapshots with a step of its journal: they are their own when their migration has ended well for this side, and what came by
    /// a migration whose place another takes was never whole. A build that knew of no marks may have written that the volume is owned here: what came is, too.
    pub(super) fn released(&self, id: VolumeId, record: &MigrationV1) -> Vec<ChangeV1> {
        let is_here = record.owned_here().is_some();
        let was_here = self.is_owned_here(id);
        let change = |saved: &VolumeV1| {
            let (side, migration) = marked(saved)?;
            match side {
                _ if migration == record.migration && !(is_here && record.is_over()) => None,
                Side::Came if migration != record.migration && !was_here => Some(ChangeV1::Delete(saved.id)),
                _ => Some(ChangeV1::Attributes(saved.id, Vec::new())),
            }
        };
        self.snapshots(id).filter_map(change).collect()
    }

    /// So it is as well where nobody can say: nothing is deleted by that.
    fn is_owned_here(&self, id: VolumeId) -> bool {
        let record = self.known(id).and_then(|volume| record_of(&volume.saved));
        record.map_or(true, |record| record.is_none_or(|record| record.owned_here().is_some()))
    }

    /// What is stored of a volume's snapshots when it is deleted: as when its space is [given back](Pool::vacate), if it should have been.
    pub(super) fn left_by(&self, id: VolumeId) -> Result<Vec<ChangeV1>, PoolError> {
        let is_away = |it: &MigrationV1| it.is_over() && it.owned_here().is_none() && it.keep != Some(true);
        let record = record_of(&self.known(id)?.saved)?.filter(is_away);
        Ok(record.map_or_else(Vec::new, |record| self.left_behind(id, record.migration)))
    }

    /// The snapshots that a volume is deleted with: they went or came with it, and it is another host's.
    ///
    /// # Errors
    /// No such volume, or nobody can say whose it is.
    pub(crate) fn deleted_with(&self, id: VolumeId) -> Result<Vec<VolumeId>, PoolError> {
        let deleted = |change| if let ChangeV1::Delete(id) = change { Some(VolumeId(id)) } else { None };
        Ok(self.left_by(id)?.into_iter().filter_map(deleted).collect())
    }

    /// What a new volume that begins with another has of what is kept with that: no mark, which is of the one that moved.
    pub(super) fn attributes_of(&self, id: VolumeId) -> Result<Vec<u8>, PoolError> {
        let saved = &self.known(id)?.saved;
        Ok(if marked(saved).is_some() { Vec::new() } else { saved.attributes.clone() })
    }

    /// The snapshots of a volume that its space is given back with: what came of it, or what is at the other host. One that somebody made a clone of stays.
    pub(super) fn left_behind(&self, id: VolumeId, migration: [u8; 16]) -> Vec<ChangeV1> {
        let all = self.ledger.volumes.values();
        let cloned: BTreeSet<u64> = all.filter_map(|volume| volume.saved.parent).collect();
        let is_of_it = |saved: &&VolumeV1| marked(saved).is_some_and(|(_, marked)| marked == migration);
        let change = |saved: &VolumeV1| match cloned.contains(&saved.id) {
            true => ChangeV1::Attributes(saved.id, Vec::new()),
            false => ChangeV1::Delete(saved.id),
        };
        self.snapshots(id).filter(is_of_it).map(change).collect()
    }

    /// Snapshots neither come nor go while their volume is on its way: what was agreed on is what moves.
    pub(super) fn may_snapshot(&self, id: VolumeId) -> Result<(), PoolError> {
        match record_of(&self.known(id)?.saved)? {
            Some(record) if !record.is_over() => {
                let what = format!(
                    "its migration is not over ({}), and its snapshots move with it: wait for the end of that",
                    record.step()
                );
                Err(refusal(id, what))
            }
            _ => Ok(()),
        }
    }

    /// As [`Pool::may_snapshot`], of the volume that this is a snapshot of, if it is one.
    pub(super) fn may_lose(&self, snapshot: VolumeId) -> Result<(), PoolError> {
        let saved = &self.known(snapshot)?.saved;
        let parent = saved.parent.map(VolumeId).filter(|id| saved.read_only && self.known(*id).is_ok());
        parent.map_or(Ok(()), |parent| self.may_snapshot(parent))
    }

    /// What is not known to be whole yet is nobody's beginning.
    pub(super) fn may_begin_with(&self, snapshot: VolumeId) -> Result<(), PoolError> {
        let saved = &self.known(snapshot)?.saved;
        let parent = saved.parent.map(VolumeId).filter(|id| self.known(*id).is_ok());
        match marked(saved) {
            Some((Side::Came, _)) if parent.is_some_and(|parent| !self.is_owned_here(parent)) => {
                Err(refusal(snapshot, "it comes with its ssd, and that is not here yet".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// See [`Pool::differences`].
fn differences(before: &Runs<Physical>, after: &Runs<Physical>) -> Vec<Difference> {
    let ends = |runs: &Runs<Physical>| -> Vec<u32> {
        runs.iter().flat_map(|run| [run.first, run.first + run.count]).collect()
    };
    // Between two of them each volume is in one run or in none.
    let bounds: BTreeSet<u32> = ends(before).into_iter().chain(ends(after)).collect();
    let mut found: Vec<Difference> = Vec::new();
    for (&first, &end) in bounds.iter().zip(bounds.iter().skip(1)) {
        let there = after.get(first);
        if before.get(first) == there {
            continue;
        }
        let (count, mapped) = (end - first, there.is_some());
        match found.last_mut() {
            Some(last) if last.mapped == mapped && last.first + last.count == first => last.count += count,
            _ => found.push(Difference { first, count, mapped }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Run;

    const EXTENTS: u32 = 24;

    /// A map that a seed says: extents here and there, some of them neighbours on the drive, too.
    fn map(seed: &mut u64) -> Runs<Physical> {
        let mut runs = Runs::default();
        for at in 0..EXTENTS {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = Physical(match (*seed >> 33) % 4 {
                0 => continue,
                1 => at + 100,
                2 => at + 200,
                _ => 300 + u32::try_from(*seed >> 60).unwrap_or(0),
            });
            assert!(runs.insert(Run { first: at, count: 1, value }));
        }
        runs
    }

    #[test]
    fn what_differs_is_what_lies_elsewhere_extent_by_extent_and_nothing_else() {
        let mut seed = 7;
        for _ in 0..2000 {
            let (before, after) = (map(&mut seed), map(&mut seed));
            let found = differences(&before, &after);
            for at in 0..EXTENTS {
                let is_in = |it: &&Difference| (it.first..it.first + it.count).contains(&at);
                let there: Vec<_> = found.iter().filter(is_in).collect();
                let (was, is) = (before.get(at), after.get(at));
                let expected = (was != is).then(|| is.is_some());
                assert_eq!(there.iter().map(|it| it.mapped).collect::<Vec<_>>(), Vec::from_iter(expected));
            }
            let apart = |pair: &[Difference]| {
                let end = pair[0].first + pair[0].count;
                end < pair[1].first || end == pair[1].first && pair[0].mapped != pair[1].mapped
            };
            assert!(found.windows(2).all(apart), "few and ascending: {found:?}");
            assert_eq!(differences(&after, &after), []);
        }
    }
}
