//! Ssds that come from other hosts and go there: who owns one is said by the journal of its migrations, and followed here.
//!
//! ```text
//!  ssd-create, incoming   nothing of it is there --> serve: apply with it, `incoming` --> its place is made: it is incoming, end
//!                            | something is: end, failed, and that stays          | there is no room, refused: undo
//!  each look              incoming, gone --journal: owned here--> ready
//!                         ready, incoming --journal: gone-------> gone
//! ```
//!
//! A change of what an ssd may do or holds is refused when it has gone, by the agent before and after, and of its size by the daemon in the very moment: what
//! has grown cannot be made smaller. Which QEMU its guest comes to (`hypervisor`) is said at any time.
//!
//! The daemon moves them, and serves by the journal alone; the agent may learn of it late, or never. What it writes for one that is
//! elsewhere is `incoming`, so that it contradicts no journal, not even one that is lost. Before anything of such an ssd is removed the
//! daemon has let go of it, so that nothing can come any more, and the journal is read.

use super::{Step, Work, along};
use crate::desired::Wish;
use crate::plane::PlaneError;
use crate::store::{self, OperationRow, SsdRow, SsdSpec, StoreError};
use api::control::Status;
use api::rest::{OperationState, Phase};
use state::migration::{MigrationV1, RECORD_BYTES_MAX};
use std::io::{self, Read};

/// What the journal says of an ssd whose owner is here. One that was never moved has none.
const HERE: [&str; 6] = ["owned", "forced", "offered", "cancelling", "cancelled", "taken back"];
/// What it says of one that another host has.
const THERE: [&str; 2] = ["gone", SUPERSEDED];
/// Another host took it by force.
const SUPERSEDED: &str = "superseded";
/// What it says where nothing is that anybody counts on.
const NOTHING: [&str; 2] = ["incoming", "dropped"];
/// It cannot be read.
const DOUBTFUL: &str = "doubtful";

/// By the word of a journal.
fn owned_here(word: Option<&str>) -> Result<(), PlaneError> {
    match word {
        Some(word) if !HERE.contains(&word) => Err(PlaneError::Refused(format!(
            "it is not here any more: the journal of its migrations is {word}. `godwit migration list` says more"
        ))),
        _ => Ok(()),
    }
}

/// Nothing changes but which QEMU its guest comes to.
fn is_of_its_guest_only(is: &SsdSpec, will_be: &SsdSpec) -> bool {
    SsdSpec { hypervisor: will_be.hypervisor.clone(), ..is.clone() } == *will_be
}

impl Work {
    /// How far the journal says that the migration of an ssd is. `None`: there is no journal.
    pub(super) fn passage(&self, ssd: &SsdRow) -> Result<Option<String>, PlaneError> {
        match &ssd.spec.pool {
            None => Ok(self.passage_in_file(ssd)),
            Some(pool) => self.passage_in_pool(pool, &ssd.volume()),
        }
    }

    fn passage_in_pool(&self, pool: &str, volume: &str) -> Result<Option<String>, PlaneError> {
        let volumes = self.served_pool(pool)?.volumes;
        Ok(volumes.into_iter().find(|there| there.name == volume).and_then(|there| there.migration))
    }

    fn passage_in_file(&self, ssd: &SsdRow) -> Option<String> {
        let path = self.place.journal(ssd);
        let file = match std::fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            file => file,
        };
        let mut bytes = Vec::new();
        let read = file.and_then(|file| file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
        let record = read
            .map_err(|error| error.to_string())
            .and_then(|_| MigrationV1::from_bytes(&bytes).map_err(|error| error.to_string()));
        let word = record.map_or_else(
            |error| {
                tracing::warn!(path = %path.display(), error, "a journal");
                DOUBTFUL
            },
            |record| record.step(),
        );
        Some(word.to_owned())
    }

    /// Whether anything is at the place of an ssd that is to come: then it is not this wish's, and stays.
    pub(super) fn begin_incoming(&self, operation: &OperationRow, name: &str) -> Result<Step, StoreError> {
        let Some(ssd) = self.ssd(name)? else { return Err(super::early(name)) };
        let there = match &ssd.spec.pool {
            None => self.place.has_any(&ssd).then(|| self.place.ssds.display().to_string()),
            Some(pool) => match self.served_pool(pool) {
                Err(error) => return Ok(Step::Later(error.to_string())),
                Ok(found) => {
                    let is_there = found.volumes.iter().any(|volume| volume.name == ssd.volume());
                    is_there.then(|| format!("pool \"{pool}\""))
                }
            },
        };
        let Some(place) = there else { return self.begin_key(operation, &ssd.spec) };
        // An agent before this one may have made it.
        if let Err(why) = self.end_key(&ssd.uuid, ssd.spec.key.as_deref())? {
            return Ok(Step::Later(why));
        }
        let why = format!(
            "{place} has something of this very ssd already ({}): it stays as it is. Look what it is, and remove it, or take another place",
            ssd.volume()
        );
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            store::remove_ssd(sqlite, name)?;
            store::end(sqlite, operation, OperationState::Failed, Some(&why), now_ms)
        })?;
        Ok(Step::Ended)
    }

    /// The daemon expects an ssd also where it has no room for it. Then it is refused.
    pub(super) fn has_room(&self, wish: &Wish) -> Result<Result<(), PlaneError>, StoreError> {
        let Wish::SsdCreate { name, spec, .. } = wish else { return Ok(Ok(())) };
        let Some(ssd) = self.ssd(name)?.filter(|_| spec.incoming) else { return Ok(Ok(())) };
        let is_there = match &spec.pool {
            None => Ok(self.place.data(&ssd).exists()),
            Some(pool) => {
                let is_its = |there: &api::control::VolumeStatus| there.name == ssd.volume();
                self.served_pool(pool).map(|pool| pool.volumes.iter().any(is_its))
            }
        };
        Ok(match is_there {
            Ok(true) => Ok(()),
            Ok(false) => self.plane.status().and_then(|status| {
                let said = status.ssds.into_iter().find(|said| said.name == *name);
                let why = said.and_then(|said| said.reason);
                Err(PlaneError::Refused(why.unwrap_or_else(|| "its place was not made".to_owned())))
            }),
            Err(error) => Err(error),
        })
    }

    /// Refuses what was derived from a volume that is not, or not any more, this host's: the agent may not have heard that its ssd has gone. Asked
    /// after it was derived, so that nothing can go in between.
    pub(super) fn is_whole(&self, pool: &str, source: &str) -> Result<(), PlaneError> {
        owned_here(self.passage_in_pool(pool, source)?.as_deref())
    }

    /// An ssd that has gone is not changed here. Asked before anything is done: what the daemon has accepted it may not take back.
    pub(super) fn begin_change(
        &self,
        operation: &OperationRow,
        name: &str,
        spec: &SsdSpec,
    ) -> Result<Step, StoreError> {
        let Some(ssd) = self.ssd(name)? else { return Err(super::early(name)) };
        let said = match is_of_its_guest_only(&ssd.spec, spec) {
            true => Ok(()),
            false => self.is_here(&ssd),
        };
        if let Some(step) = self.unless_done(operation, said)? {
            return Ok(step);
        }
        self.write_step(operation, "serve", None)?;
        Ok(Step::On)
    }

    /// Where no journal can be read now (its pool is not served), the daemon's word is enough.
    fn is_here(&self, ssd: &SsdRow) -> Result<(), PlaneError> {
        self.passage(ssd).map_or(Ok(()), |word| owned_here(word.as_deref()))
    }

    /// An ssd may have gone after its change had begun. Its limits were changed where nobody uses it then, or went along: that is seen there, and
    /// here they are what they were. The daemon lets none grow that has gone: what has grown, has grown where it was.
    pub(super) fn is_still_here(&self, wish: &Wish) -> Result<Result<(), PlaneError>, StoreError> {
        let Wish::SsdChange { name, spec } = wish else { return Ok(Ok(())) };
        let Some(ssd) = self.ssd(name)? else { return Err(super::early(name)) };
        let may_be_undone = ssd.spec.size_bytes == spec.size_bytes;
        Ok(match may_be_undone && ssd.spec.limits != spec.limits {
            true => self.is_here(&ssd),
            false => Ok(()),
        })
    }

    /// An ssd that is to be deleted because it is not here may have come before the daemon let go of it. Then it is kept, and so is one that
    /// nobody knows to be elsewhere.
    pub(super) fn spare_what_came(
        &self,
        operation: &OperationRow,
        name: &str,
    ) -> Result<Option<Step>, StoreError> {
        let Some(ssd) = self.ssd(name)? else { return Ok(None) };
        let word = match self.passage(&ssd) {
            Err(error) => return Ok(Some(Step::Later(error.to_string()))),
            Ok(None) => return Ok(None),
            Ok(Some(word)) => word,
        };
        let is_here = HERE.contains(&word.as_str());
        let may_go = THERE.contains(&word.as_str()) || NOTHING.contains(&word.as_str());
        // While it has a record, which has their key.
        if THERE.contains(&word.as_str())
            && let Err(error) = self.let_go(&ssd)?
        {
            return Ok(Some(Step::Later(error.to_string())));
        }
        if may_go || is_here && !ssd.is_elsewhere() {
            return Ok(None);
        }
        let why = match is_here {
            true => format!(
                "ssd \"{name}\" has come meanwhile, and is this host's: delete it once more if that is meant"
            ),
            false => format!(
                "the journal of its migrations is {word}: what is here may be all that there is of it. `godwit ssd show {name}` says more"
            ),
        };
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            if let Some(mut ssd) = store::ssd(sqlite, name)? {
                ssd.operation = None;
                store::put_ssd(sqlite, &ssd)?;
            }
            store::end(sqlite, operation, OperationState::Failed, Some(&why), now_ms)
        })?;
        (self.between)();
        Ok(Some(Step::Ended))
    }

    /// Whether an ssd that was to come may have come, by its journal. `None`: that cannot be read now.
    pub(super) fn may_have_come(&self, wish: &Wish) -> Result<Option<bool>, StoreError> {
        let Wish::SsdCreate { name, spec, .. } = wish else { return Ok(Some(false)) };
        let Some(ssd) = self.ssd(name)?.filter(|_| spec.incoming) else { return Ok(Some(false)) };
        let word = self.passage(&ssd).ok();
        Ok(word.map(|word| word.is_some_and(|word| !NOTHING.contains(&word.as_str()))))
    }

    /// An ssd that was to come, and whose creation is undone, may have come before an earlier agent heard that it was accepted. Then it was.
    pub(super) fn keep_what_came(
        &mut self,
        operation: &OperationRow,
        wish: &Wish,
    ) -> Result<Option<Step>, StoreError> {
        let Wish::SsdCreate { name, spec, .. } = wish else { return Ok(None) };
        let Some(ssd) = self.ssd(name)?.filter(|_| spec.incoming) else { return Ok(None) };
        match self.passage(&ssd) {
            Err(error) => return Ok(Some(Step::Later(error.to_string()))),
            Ok(word) if word.as_deref().is_none_or(|word| NOTHING.contains(&word)) => return Ok(None),
            Ok(_) => {}
        }
        (self.between)();
        match self.apply(Some(wish), false)? {
            Ok(()) => {
                (self.between)();
                self.accepted(operation, wish).map(Some)
            }
            Err(PlaneError::Silent(why) | PlaneError::Refused(why)) => Ok(Some(Step::Later(why))),
        }
    }

    /// Writes down who has come and who has gone.
    pub(crate) fn follow(&mut self, status: &Status) -> Result<(), StoreError> {
        let all = self.book.read(store::ssds)?;
        for ssd in &all {
            let Some(said) = status.ssds.iter().find(|said| said.name == ssd.name) else { continue };
            let (next, words): (_, &[&str]) = match (ssd.phase, said.state.as_str()) {
                (Phase::Ready | Phase::Incoming, state) if THERE.contains(&state) => (Phase::Gone, &THERE),
                (Phase::Incoming | Phase::Gone, "serving") => (Phase::Ready, &HERE),
                // It came and went while nobody looked.
                (Phase::Gone, state)
                    if THERE.contains(&state) && (state == SUPERSEDED) != ssd.spec.superseded =>
                {
                    (Phase::Gone, &THERE)
                }
                _ => continue,
            };
            // What the daemon serves it says by names; whose journal it is by, this says.
            match self.passage(ssd) {
                Ok(Some(word)) if words.contains(&word.as_str()) => self.becomes(ssd, next, &word)?,
                word => tracing::debug!(ssd = ssd.name, ?word, "it is said to be {}", said.state),
            }
        }
        // Its pool may have wiped them since it has gone, or wipe them later.
        for ssd in self.book.read(store::ssds)?.iter().filter(|ssd| ssd.phase == Phase::Gone) {
            if let Err(error) = self.let_go(ssd)? {
                tracing::debug!(ssd = ssd.name, %error, "whether its snapshots went along");
            }
        }
        Ok(())
    }

    fn becomes(&mut self, ssd: &SsdRow, phase: Phase, word: &str) -> Result<(), StoreError> {
        let came = match phase {
            Phase::Ready => match self.has_along(ssd) {
                Ok(came) => came,
                Err(error) => {
                    tracing::debug!(ssd = ssd.name, %error, "which snapshots came along");
                    return Ok(());
                }
            },
            _ => Vec::new(),
        };
        tracing::info!(ssd = ssd.name, phase = phase.word(), "it was moved");
        (self.between)();
        self.book.write(|sqlite| {
            let now = store::ssd(sqlite, &ssd.name)?;
            // Whoever asked for its deletion asked when it was elsewhere: as long as that is under way it is judged so, and what came is spared. Whoever
            // asked for its growth asked when it was here: written as `incoming` the daemon would let it grow where it is not.
            let Some(mut now) = now.filter(|now| now.uuid == ssd.uuid && now.phase == ssd.phase) else {
                return Ok(());
            };
            if now.operation.is_some() {
                return Ok(());
            }
            (now.phase, now.generation) = (phase, now.generation + 1);
            now.spec.superseded = word == SUPERSEDED;
            if phase == Phase::Gone {
                // The promise was to a guest of this host.
                store::remove_attachment(sqlite, &now.name)?;
            }
            along::take_in(sqlite, &now, &came, (self.now_ms)(), self.uuid)?;
            store::put_ssd(sqlite, &now)
        })?;
        (self.between)();
        // The daemon is to keep what it is told from now on.
        self.told = None;
        Ok(())
    }
}
