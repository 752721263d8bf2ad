//! Volumes that move between hosts: the steps of their migrations in any order that is one, each a store of the pool that the process or the
//! power may end in.
//!
//! The other host is not here: what it would say is drawn. What is looked at is this side alone: a step that was answered is there after
//! a crash, one under way is there whole or not at all, and nobody opens a volume at a step whose owner is elsewhere.

use std::collections::BTreeMap;

use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use volume::{Pool, PoolError, VolumeId, VolumeInfo};

use super::{Asked, World, broken};
use crate::guest::Checked;
use crate::ledger::Content;
use crate::rng::Rng;

/// Whose a volume is, as it was answered last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The journal; `None`: it was never moved.
    passage: Option<Vec<u8>>,
    /// How far it is.
    at: At,
    epoch: u64,
}

/// What a volume's migrations came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// It was never moved.
    #[default]
    Home,
    Source(SourceStepV1),
    Destination(DestinationStepV1),
}

impl At {
    /// docs/formats/migration-journal.md, its tables.
    fn is_here(self) -> bool {
        use DestinationStepV1 as D;
        use SourceStepV1 as S;
        match self {
            Self::Home => true,
            Self::Source(step) => !matches!(step, S::Granted | S::Gone | S::Superseded),
            Self::Destination(step) => matches!(step, D::Owned | D::Forced),
        }
    }

    /// Steps that may follow.
    fn next(self) -> &'static [Self] {
        use DestinationStepV1 as D;
        use SourceStepV1 as S;
        const OFFERED: &[At] = &[At::Source(S::Offered)];
        const INCOMING: &[At] = &[At::Destination(D::Incoming)];
        match self {
            Self::Home | Self::Source(S::Cancelled | S::TakenBackHeard) | Self::Destination(D::Forced) => {
                OFFERED
            }
            Self::Source(S::Offered) => &[
                Self::Source(S::Offered),
                Self::Source(S::Granted),
                Self::Source(S::Granted),
                Self::Source(S::Cancelling),
            ],
            Self::Source(S::Granted) => {
                &[Self::Source(S::Gone), Self::Source(S::Gone), Self::Source(S::TakenBack)]
            }
            Self::Source(S::Cancelling) => &[Self::Source(S::Cancelled)],
            Self::Source(S::TakenBack) => &[Self::Source(S::TakenBackHeard)],
            Self::Source(S::Gone | S::Superseded) | Self::Destination(D::Dropped | D::Superseded) => INCOMING,
            Self::Destination(D::Incoming) => {
                &[Self::Destination(D::Ready), Self::Destination(D::Ready), Self::Destination(D::Dropped)]
            }
            Self::Destination(D::Ready) => &[
                Self::Destination(D::Incoming),
                Self::Destination(D::Owned),
                Self::Destination(D::Owned),
                Self::Destination(D::Forced),
                Self::Destination(D::Dropped),
            ],
            Self::Destination(D::Owned) => {
                &[Self::Source(S::Offered), Self::Source(S::Offered), Self::Destination(D::Superseded)]
            }
        }
    }

    /// What the other host has is not counted on here any more, and what is here neither.
    fn is_left(self) -> bool {
        use DestinationStepV1 as D;
        use SourceStepV1 as S;
        matches!(self, Self::Source(S::Gone | S::Superseded) | Self::Destination(D::Dropped | D::Superseded))
    }
}

impl Standing {
    /// At this step, from the epoch that the volume has.
    fn then(&self, at: At, round: u32) -> Self {
        let now = self.epoch;
        let taken_back = matches!(at, At::Source(SourceStepV1::TakenBack));
        // What was heard, or fenced off, is of the epoch that it is owned by.
        let pledged = match at {
            At::Source(SourceStepV1::TakenBackHeard) => now - 1,
            At::Destination(DestinationStepV1::Superseded) => now,
            _ => now + 1,
        };
        let (source, destination) = match at {
            At::Home => return Self::default(),
            At::Source(step) => (Some(SourceV1 { held: if taken_back { now + 2 } else { now }, step }), None),
            At::Destination(step) => {
                let fenced_by = (step == DestinationStepV1::Superseded).then_some(pledged + 1);
                (None, Some(DestinationV1 { step, fenced_by }))
            }
        };
        let epoch = match at {
            At::Source(SourceStepV1::TakenBack) => now + 2,
            At::Destination(DestinationStepV1::Owned | DestinationStepV1::Forced) => pledged,
            _ => now,
        };
        let (keep, closed, wiped) = (None, None, None);
        let (ssd, migration, peer) = ([5; 16], [6; 16], "b".to_owned());
        let record = MigrationV1 {
            ssd,
            peer,
            migration,
            epoch: pledged,
            round,
            source,
            destination,
            keep,
            closed,
            wiped,
            hypervisor: None,
            limits: None,
        };
        Self { passage: record.to_bytes().ok(), at, epoch }
    }

    fn fits(&self, info: &VolumeInfo, pool: &Pool) -> bool {
        let opens = pool.may_serve(info.id).is_ok();
        (&self.passage, self.epoch, self.at.is_here()) == (&info.passage, info.epoch, opens)
    }
}

/// Whose the volumes are.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<u32, Standing>);

impl Owners {
    fn of(&self, id: u32) -> Standing {
        self.0.get(&id).cloned().unwrap_or_default()
    }

    /// Nobody may open it.
    pub(super) fn is_away(&self, id: u32) -> bool {
        self.0.get(&id).is_some_and(|standing| !standing.at.is_here())
    }

    /// A new volume may have its number.
    pub(super) fn forget(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// After a crash the volume stands as it was answered, or as it was asked.
    pub(super) fn reconcile(
        &mut self,
        id: u32,
        info: &VolumeInfo,
        pool: &Pool,
        asked: Option<&Asked>,
    ) -> Checked {
        let had = self.of(id);
        match asked {
            _ if had.fits(info, pool) => {}
            Some(Asked::Step(of, then)) if *of == id && then.fits(info, pool) => {
                self.0.insert(id, then.clone());
            }
            asked => return broken(format!("after a crash there is {info:?}, had {had:?}, asked {asked:?}")),
        }
        Ok(())
    }

    fn draw(&self, id: u32, rng: &mut Rng) -> Standing {
        let had = self.of(id);
        let at = rng.pick(had.at.next()).unwrap_or(had.at);
        had.then(at, 1 + rng.below32(9))
    }
}

impl World {
    /// A volume's migration goes a step on.
    pub(super) fn pass(&mut self, id: u32) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let then = self.owners.draw(id, &mut self.rng);
        let read_only = self.outside.guests.borrow().volumes.get(&id).is_none_or(|face| face.read_only);
        // Who lets go of a volume has stopped its I/O before.
        if read_only || (!then.at.is_here() && !self.outside.guests.borrow_mut().leave(id)) {
            return Ok(());
        }
        let volume = VolumeId(u64::from(id));
        self.asked = Some(Asked::Step(id, then.clone()));
        steward.set_passage(volume, then.passage.as_deref().unwrap_or_default())?;
        self.asked = None;
        let is_incoming = then.at == At::Destination(DestinationStepV1::Incoming);
        self.owners.0.insert(id, then);
        if is_incoming && self.rng.percent(50) {
            // For blocks that nobody sends here: it has its space again.
            steward.land(volume).map(drop)?;
        }
        self.report.steps += 1;
        Ok(())
    }

    /// What is left of a volume that went to another host is given back.
    pub(super) fn vacate(&mut self, id: u32) -> Result<(), PoolError> {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        if !self.owners.of(id).at.is_left() {
            return Ok(());
        }
        self.asked = Some(Asked::Vacate(id));
        steward.vacate(VolumeId(u64::from(id)))?;
        self.asked = None;
        let mut guests = self.outside.guests.borrow_mut();
        let at = guests.tick();
        guests.ledger.reset(id, 0, Content::Zero, at);
        Ok(())
    }

    /// Every volume comes back, so that all of it can be looked at.
    pub(super) fn bring_home(&mut self) -> Checked {
        let Some(steward) = &mut self.steward else { return Ok(()) };
        let infos = steward.pool().volumes();
        for info in infos {
            let id = u32::try_from(info.id.0).unwrap_or(u32::MAX);
            let mut standing = self.owners.of(id);
            if standing.at.is_here() {
                continue;
            }
            if steward.serve(info.id).is_ok() {
                return broken(format!("volume {id} is opened at {standing:?}"));
            }
            standing = standing.then(At::Destination(DestinationStepV1::Owned), 1);
            let taken = steward.set_passage(info.id, standing.passage.as_deref().unwrap_or_default());
            taken.map_err(|error| super::Violation(format!("volume {id} cannot come back: {error}")))?;
            self.owners.0.insert(id, standing);
        }
        Ok(())
    }
}
